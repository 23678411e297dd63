"""What every try starts from: small datasets, and the finished artifacts of every stage, made once.

Commands name everything by its place under one directory, as a user would who works in it.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import warm_processes
from chat_server import ChatServer

TRAINING = "--max_length 64 --num_train_epochs 2 --learning_rate 5e-3 --no_cuda"
ASKS = "--model m --base_url {url} --workers 1"


class Stage(NamedTuple):
    """One command, and what it writes."""

    script: str
    argv: str
    writes: tuple[str, ...]
    goes_on: str = ""  # what is added to the command where it was stopped

    @property
    def reads(self) -> list[str]:
        names = [word.partition("/")[0] for word in self.argv.split()]
        return [name for name in dict.fromkeys(names) if (name in WRITTEN or name in MADE) and name not in self.writes]


MADE = ("stories", "reviews", "pairs", "mistral", "decided", "settings", "cache", "logged")
CHAINS: dict[str, dict[str, Stage]] = {
    "qa": {
        "model": Stage("run.py", "--do_train --do_eval --enable_cartography --dataset stories --model tiny "
                       f"{TRAINING} --doc_stride 16 --hidden_size 16 --num_layers 1 --vocab_size 300 "
                       f"--cartography_output_dir qa_map "
                       "--eval_on_start --eval_strategy epoch --output_dir qa_model", ("qa_model", "qa_map"),
                       "--resume_from_checkpoint"),
        "predictions": Stage("run.py", "--do_eval --model qa_model --eval_split train --max_length 64 --doc_stride 16 "
                             "--no_cuda --output_dir qa_predictions", ("qa_predictions",)),
        "embeddings": Stage("extract_embeddings.py", "--model_path qa_model --max_length 64 --doc_stride 16 --no_cuda "
                            "--output_dir qa_embeddings", ("qa_embeddings",)),
        "clusters": Stage("cluster_analysis.py", "--embedding_dir qa_embeddings --min_cluster_size 3 "
                          "--visualization_method pca --output_dir qa_clusters", ("qa_clusters",)),
        "analysis": Stage("analyze_cartography.py", "--cartography_dir qa_map --output_dir qa_analysis",
                          ("qa_analysis",)),
        "integrated": Stage("analyze_dataset.py", "--cartography_dir qa_map --cluster_dir qa_clusters --output_dir "
                            "qa_integrated", ("qa_integrated",)),
        "unified": Stage("analyze_dataset.py", "--export_unified --cartography_dir qa_map --cluster_dir qa_clusters "
                         "--predictions qa_predictions --output_dir qa_unified", ("qa_unified",)),
        "suspects": Stage("analyze_dataset.py", "--find_errors --cartography_dir qa_map --cluster_dir qa_clusters "
                          "--embedding_dir qa_embeddings --predictions qa_predictions --output_dir qa_suspects",
                          ("qa_suspects",)),
        "decided": Stage("analyze_dataset.py", "--find_errors --cartography_dir qa_map --decisions "
                         "decided/suspects.csv --output_dir qa_suspects_again", ("qa_suspects_again",)),
        "page": Stage("analyze_dataset.py", "--report --cartography_dir qa_map --cluster_dir qa_clusters "
                      "--predictions "
                      "qa_predictions/eval_predictions.jsonl --decisions decided/suspects.csv --output_dir qa_page",
                      ("qa_page",)),
        "cut": Stage("dataset_cartography.py", "--cartography_dir qa_map --method percentile --output_dir qa_cut",
                     ("qa_cut",)),
        "logged": Stage("dataset_cartography.py", "--training_dynamics logged --output_dir qa_from_logged",
                        ("qa_from_logged",)),
        "judged": Stage("analyze_dataset.py", "--find_errors --cartography_dir qa_map --judge_top 4 --judge_model m "
                        "--base_url {url} --output_dir qa_judged", ("qa_judged",)),
        "cleaned": Stage("dataset_filters.py", "--dataset stories --decisions decided/suspects.csv --output_dir "
                         "qa_cleaned", ("qa_cleaned",)),
        "filtered": Stage("dataset_filters.py", "--dataset stories --eval_split validation --filter_config "
                          "settings/filters.json --output_dir qa_filtered", ("qa_filtered",)),
        "again": Stage("run.py", f"--do_train --dataset stories --model qa_model {TRAINING} --doc_stride 16 "
                       "--filter_cartography --filter_clusters --cluster_assignments_path qa_clusters "
                       "--exclude_clusters 5 --use_label_smoothing --use_soft_weighting --cartography_output_dir "
                       "qa_map "
                       "--save_strategy no --output_dir qa_again", ("qa_again",)),
    },
    "reviews": {
        "model": Stage("run.py", "--do_train --do_eval --enable_cartography --task classification --dataset reviews "
                       f"--model lstm --hidden_size 16 {TRAINING} --cartography_output_dir reviews_map "
                       f"--cross_fit_head "
                       "--slice_by kind --output_dir reviews_model", ("reviews_model", "reviews_map"),
                       "--resume_from_checkpoint"),
        "embeddings": Stage("extract_embeddings.py", "--model_path reviews_model --pooling mean --max_length 64 "
                            "--no_cuda --output_dir reviews_embeddings", ("reviews_embeddings",)),
        "analysis": Stage("analyze_cartography.py", "--cartography_dir reviews_map --n_examples 3 --output_dir "
                          "reviews_analysis", ("reviews_analysis",)),
        "suspects": Stage("analyze_dataset.py", "--find_errors --cartography_dir reviews_map --embedding_dir "
                          "reviews_embeddings --output_dir reviews_suspects", ("reviews_suspects",)),
        "selection": Stage("select_subset.py", "--selector kcenter --fraction 0.3 --embedding_dir reviews_embeddings "
                           "--stratify label --cache_dir cache --output_dir selection", ("selection",)),
        "hardest": Stage("select_subset.py", "--selector confidence --k 10 --cartography_dir reviews_map --cache_dir "
                         "cache --output_dir hardest", ("hardest",)),
        "coreset": Stage("select_subset.py", "--selector stratified --k 10 --dataset reviews --cache_dir cache "
                         "--output_dir coreset", ("coreset",)),
        "uncertain": Stage("select_subset.py", "--selector predictive_entropy --k 10 --model_path reviews_model "
                           "--no_cuda --cache_dir cache --output_dir uncertain", ("uncertain",)),
        "chosen": Stage("run.py", f"--do_train --task classification --dataset reviews --model lstm --hidden_size 16 "
                        f"{TRAINING} "
                        "--save_strategy no --train_ids selection --output_dir chosen", ("chosen",)),
        "configured": Stage("run.py", "--config settings/run.json --no_cuda --output_dir configured", ("configured",)),
        "asked": Stage("select_subset.py", "--selector llm_judge --k 10 --dataset reviews --judge_model m --base_url "
                       "{url} "
                       "--workers 1 --cache_dir cache --output_dir asked", ("asked",)),
        "mapped": Stage("map_dataset.py", f"--dataset reviews --model lstm --hidden_size 16 {TRAINING} "
                        f"--visualization_method pca "
                        "--min_cluster_size 3 --skip samples,integrated,unified --output_dir mapped", ("mapped",)),
    },
    "thoughts": {
        "chains": Stage("generate_thoughts.py", f"--mode generate --dataset pairs/train.jsonl {ASKS} --output_dir "
                        "thoughts", ("thoughts",)),
        "reflected": Stage("generate_thoughts.py", f"--mode reflect --thoughts thoughts {ASKS} --output_dir reflected",
                           ("reflected",)),
        "scored": Stage("generate_thoughts.py", "--mode score --thoughts thoughts --reflections reflected "
                        f"--position_samples 2 {ASKS} --output_dir scored", ("scored",)),
        "counted": Stage("generate_thoughts.py", "--mode statistics --thoughts thoughts --reflections reflected "
                         "--output_dir counted", ("counted",)),
        "tuned": Stage("train_sft.py", "--thoughts thoughts --reflections reflected --prompt_file settings/prompt.txt "
                       "--model mistral --quantization none --no_cuda --per_device_train_batch_size 4 "
                       "--effective_batch_size 4 --num_train_epochs 1 --save_steps 2 --max_new_tokens 4 "
                       "--eval_samples "
                       "2 --eval_fraction 0.1 --enable_cartography --cartography_output_dir tuned_map --output_dir "
                       "tuned", ("tuned", "tuned_map"), "--resume_from_checkpoint"),
        "answers": Stage("evaluate_thoughts.py", "--adapter tuned --dataset pairs/validation.jsonl --max_new_tokens 4 "
                         "--batch_size 4 --no_cuda --output_dir answers", ("answers",)),
        "outputs": Stage("evaluate_thoughts.py", "--predictions settings/outputs.jsonl --dataset "
                         "pairs/validation.jsonl --output_dir outputs", ("outputs",)),
    },
    "suites": {
        "suite": Stage("run_experiments.py", "--suite settings/suite.json --seeds 1 2 --experiments_dir experiments",
                       ("experiments",), "--retry_failed"),
        "status": Stage("run_experiments.py", "--mode status --experiments_dir experiments", ()),
        "compared": Stage("run_experiments.py", "--mode analyze --experiments_dir experiments", ("experiments",)),
    },
}
STAGES = {f"{chain}_{name}": stage for chain, stages in CHAINS.items() for name, stage in stages.items()}
WRITTEN = {name for stage in STAGES.values() for name in stage.writes}


def make_data(base: Path) -> None:
    from conftest import qa_rows, review_rows, write_rows
    from tiny_mistral import save_model, toy_tokenizer

    for name in MADE:
        (base / name).mkdir()
    for seed, (split, count) in enumerate({"train": 24, "validation": 8}.items()):
        write_rows(base / "stories" / f"{split}.jsonl", qa_rows(count, seed, prefix=split))
        write_rows(base / "reviews" / f"{split}.jsonl", review_rows(count, seed, prefix=split))
        write_rows(base / "pairs" / f"{split}.jsonl", [
            {"id": f"{split}-{n}", "premise": f"Scene {n} shows a dog.", "label": n % 2,
             "hypothesis": f"There is an animal in scene {n}."} for n in range(count)])
    save_model(base / "mistral", toy_tokenizer())
    filters = {"category": {"metrics_path": "qa_map", "categories": ["easy", "ambiguous"]},
               "cluster": {"cluster_path": "qa_clusters", "exclude_clusters": [5]}, "random": {}}
    (base / "settings" / "filters.json").write_text(json.dumps(filters))
    (base / "settings" / "prompt.txt").write_text("Premise: $premise\nHypothesis: $hypothesis\n")
    write_rows(base / "settings" / "outputs.jsonl", [
        {"id": f"validation-{n}", "output": said(n, n % 3 > 0)} for n in range(8)])
    config = {"do_train": True, "task": "classification", "dataset": "reviews", "model": "lstm", "hidden_size": 16,
              "num_train_epochs": 1, "max_length": 64, "save_strategy": "no"}
    (base / "settings" / "run.json").write_text(json.dumps(config))
    for epoch in range(3):
        write_rows(base / "logged" / f"dynamics_epoch_{epoch}.jsonl", [
            {"guid": n, f"logits_epoch_{epoch}": [n % 5 - epoch, epoch * n % 3], "gold": n % 2} for n in range(20)])
    suite = {"name": "few", "base": {
        "do_train": True, "do_eval": True, "task": "classification", "dataset": "reviews", "model": "lstm",
        "hidden_size": 16, "num_train_epochs": 1, "max_length": 64, "no_cuda": True}, "experiments": [
            {"name": "baseline", "args": {}}, {"name": "fast", "args": {"learning_rate": 0.01}}]}
    (base / "settings" / "suite.json").write_text(json.dumps(suite))


def decide(base: Path) -> None:
    """A list of suspects with some decisions, as a person leaves it."""
    with (base / "qa_suspects" / "suspects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["decision"] = ("drop", "keep", "")[min(number // 2, 2)]
    with (base / "decided" / "suspects.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def said(number: int, is_right: bool) -> str:
    chain = "Step 1: " + "so " * (number % 5 + 1) + "Step 2: b. Step 3: c."
    return json.dumps({"thought_process": chain, "predicted_label": number % 2 if is_right else 1 - number % 2})


def answer(request: dict) -> str:
    """Every third pair wrongly, repaired when asked again; scores and preferences."""
    prompt = request["messages"][-1]["content"]
    number = int([*re.findall(r"Scene (\d{1,9}) shows", prompt), "0"][0])
    if '"verdict"' in prompt:
        return json.dumps({"verdict": "unsure", "probability": 0.5, "correction": None, "reason": "so it seems"})
    if '"sarcastic"' in prompt:
        return json.dumps({"ambiguous": False, "sarcastic": len(prompt) % 2 == 0, "label_disagrees": False,
                           "reason": "x"})
    if "<thought_a>" in prompt:
        return json.dumps({"reason": "the first came first", "better": "A"})
    if "<thought>" in prompt:
        return json.dumps({name: {"reason": "so it seems", "score": 2 + number % 3}
                           for name in ("coherence", "correctness", "brevity")})
    if "<true_label>" in prompt:
        return json.dumps({"error_analysis": "step 2", "improved_thought_process": "Step 1: a Step 2: b Step 3: c",
                           "predicted_label": number % 2})
    return said(number, number % 3 > 0)


def serve_chat() -> ChatServer:
    """For ever; its own process calls this."""
    server = ChatServer(answer)
    return server


def make_chain(base: Path, chain: str, url: str) -> dict[str, float]:
    """The seconds that each stage took."""
    seconds = {}
    for name, stage in CHAINS[chain].items():
        argv, began = stage.argv.format(url=url).split(), time.monotonic()
        outcome = warm_processes.end(warm_processes.start(stage.script, argv, base))
        if outcome.status != 0:
            raise SystemExit(f"the base artifacts cannot be made: {chain}_{name}: {outcome.command}\n{outcome.err}")
        if (chain, name) == ("qa", "suspects"):
            decide(base)
        seconds[f"{chain}_{name}"] = time.monotonic() - began
    return seconds


def clear(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
