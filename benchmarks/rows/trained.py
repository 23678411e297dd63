"""Trainings of run.py whose scores are compared example by example, over seeds."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from timing import Measure

from datamap.core.clusters import Clusters
from datamap.core.files import read_json, read_jsonl

QA_SCORES, LABEL_SCORES = ("exact_match", "f1"), ("correct",)


def quietly() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def run_of(output: Path, dataset: Path | str, model: str, *flags: str) -> dict[str, Any]:
    """What run.py finds with these flags: metrics of training and evaluation, and of the examples that it evaluates
    their ids, contexts (of questions) and scores, (N,)."""
    import run
    from datamap.training.arguments import parse_args

    with contextlib.redirect_stdout(io.StringIO()):
        run.train_and_evaluate(parse_args([
            f"--dataset={dataset}", f"--model={model}", f"--output_dir={output}", "--overwrite", "--no_cuda",
            "--per_device_train_batch_size=16", "--save_strategy=no", "--logging_strategy=no", "--disable_tqdm=true",
            *flags,
        ]))
    found = read_json(output / "train_metrics.json") if "--do_train" in flags else {}
    if "--do_eval" in flags:
        found |= read_json(output / "eval_metrics.json")
        answers = list(read_jsonl(output / "eval_predictions.jsonl"))
        scores = [name for name in (*QA_SCORES, *LABEL_SCORES) if name in answers[0]]
        found |= {name: np.array([float(row[name]) for row in answers]) for name in scores}
        found |= {"ids": [row["id"] for row in answers],
                  "contexts": [row["context"] for row in answers if "context" in row]}
    return found


def spread(
    what: str, scores: np.ndarray, others: np.ndarray, clusters: Clusters, least: float, most: float | None = None,
) -> tuple[list[Measure], str]:
    """By how many points ``scores`` (S, N), in percent, are above ``others`` of the same seeds and examples, and the
    ends of the 95 % interval for other seeds and other examples (``multi_bootstrap``) with their bounds; the same in
    words."""
    from datamap.suites.comparison import multi_bootstrap

    interval = multi_bootstrap(scores, others, 100.0, clusters)
    low, high = interval["bootstrap_low"], interval["bootstrap_high"]
    by_seed = (scores - others).mean(axis=1)
    return [
        Measure(f"{what}, more by", by_seed.tolist(), " points"),
        Measure(f"{what}, low end of its 95 % interval", [low], " points", least=least),
        Measure(f"{what}, high end", [high], " points", most=most),
    ], f"{what}: {by_seed.mean():+.2f} points, {low:+.2f} to {high:+.2f}"
