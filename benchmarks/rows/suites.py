"""What running and comparing a suite costs beyond the training: overhead of a run, resuming, analysing.

Overhead: seconds of a run minus those of its training and evaluation (train_runtime, eval_runtime), for runs of one
worker as run_experiments.py has them, and for a process of run.py alone; a process after every run, in turn. Seconds
of a worker's run are those from handing it out to hearing of its end, the first with the start of the worker.
Resume: the whole process of run_experiments.py --mode run on 200 finished and compared runs; beside it the seconds of
--dry_run, and of comparing them anew (--mode analyze). Analyze: seconds and peak memory of the process of --mode
analyze; the files were written just before, so they come from the page cache. CPU seconds tell what of the time is due
to other work of the machine. Peak memory is read from /proc, so on Linux only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import Found, Measure, Process, Setting, in_turn, script

from datamap.core.artifacts import META, stage
from datamap.core.errors import UserError
from datamap.core.files import read_json, write_csv, write_json
from datamap.core.flags import DEFAULT_SEED
from datamap.core.places import CHECKOUT, script_file
from datamap.core.splits import load_split
from datamap.demo import builtin
from datamap.suites.definition import Suite
from datamap.suites.planning import plan_suite, write_plan
from datamap.suites.runner import run_locally
from datamap.suites.runs import CONFIG, FINISHED, LOCK, Run
from datamap.tasks.registry import get_task
from datamap.training.arguments import EVALUATION_FILES, TRAINING_FILES
from run_experiments import parse_args as suite_args

BASE = {
    "dataset": "demo:clinical", "model": "tiny", "max_length": 128, "doc_stride": 32,
    "num_train_epochs": 1, "per_device_train_batch_size": 16, "warmup_steps": 0.1, "save_strategy": "epoch",
    "save_total_limit": 1, "logging_steps": 50, "no_cuda": True, "do_train": True, "do_eval": True,
}


def plan(
    directory: Path, experiments: int, seeds: Sequence[int], examples: int = 400
) -> tuple[Suite, list[Run], list[str]]:
    """A suite whose experiments differ in their learning rate, its runs, and the flags that name it."""
    rates = [{"name": f"rate{number:02}" if number else "baseline", "args": {"learning_rate": 2e-3 + 1e-5 * number}}
             for number in range(experiments)]
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "bench.json", {"name": "bench", "base": {**BASE, "max_train_samples": examples},
                                         "experiments": rates})
    flags = ["--suite", str(directory / "bench.json"), "--experiments_dir", str(directory)]
    suite, _, runs = plan_suite(suite_args([*flags, "--seeds", *map(str, seeds)]))
    write_plan(suite, seeds, directory / suite.name)
    return suite, runs, flags


def measure_overhead(directory: Path, rounds: int, examples: int) -> dict[str, Any]:
    _, runs, _ = plan(directory, 1, range(1, rounds + 1), examples)
    warm, cold = list[dict[str, float]](), list[dict[str, float]]()
    began = time.perf_counter()
    for run, outcome in run_locally(runs, workers=1, retry=False, keep_models=False, stop_on_error=True):
        if outcome.state != FINISHED:
            raise UserError(f"{run} is {outcome.state}: {outcome.error}")
        warm.append(parts(run.directory, time.perf_counter() - began) | {"in_the_worker": outcome.seconds})
        place = directory / f"cold-{run.seed}"
        command = [sys.executable, str(script_file("run.py")), *run.argv, f"--output_dir={place}"]
        began = time.perf_counter()
        subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
        cold.append(parts(place, time.perf_counter() - began))
        began = time.perf_counter()  # the worker gets its next run now
    return {"runs_of_worker": warm, "cold_processes": cold}


def parts(directory: Path, seconds: float) -> dict[str, float]:
    train = read_json(directory / "train_metrics.json")["train_runtime"]
    evaluation = read_json(directory / "eval_metrics.json")["eval_runtime"]
    return {"seconds": seconds, "training": train, "evaluation": evaluation, "overhead": seconds - train - evaluation}


def finish(suite: Suite, runs: Sequence[Run], scratch: Path, predictions: int) -> None:
    """Leave in every run's directory what a finished run leaves."""
    by_name = {each.name: each for each in suite.experiments}
    lines, f1 = prediction_lines(predictions)
    rng = np.random.default_rng(DEFAULT_SEED)
    ease = rng.normal(0.5, 1.0, predictions)
    effects = dict(zip(by_name, rng.normal(0, 0.05, len(by_name)), strict=True))
    template = template_meta(suite, scratch)
    for run in runs:
        run.directory.mkdir(parents=True)
        settings = {**vars(by_name[run.experiment].arguments), "seed": run.seed, "output_dir": str(run.directory)}
        trained = {**template["history"][0], "arguments": settings, "seed": run.seed}
        evaluated = {**template, "arguments": {**settings, "do_train": False}, "seed": run.seed, "history": [trained]}
        levels = np.searchsorted([-0.5, 0.0], ease + effects[run.experiment] + rng.normal(0, 0.3, predictions))
        scores = {"eval_exact_match": 100 * float((levels == 2).mean()), "eval_f1": 100 * float(f1[levels].mean())}
        chosen = [row[level] for row, level in zip(lines, levels.tolist(), strict=True)]
        (run.directory / "eval_predictions.jsonl").write_bytes(b"".join(chosen))
        write_json(run.directory / "eval_metrics.json", {**scores, "eval_total": predictions, "eval_runtime": 1.5})
        write_json(run.directory / "train_metrics.json", {"train_runtime": 12.5, "train_loss": 2.5, "epoch": 4.0})
        shutil.copy(scratch / "training_log.csv", run.directory)
        write_json(run.directory / CONFIG, run.config)
        write_json(run.directory / META, evaluated)
        (run.directory / LOCK).touch()
        (run.directory / "log.txt").write_text("training on 1,500 examples\n" * 60)


def prediction_lines(number: int) -> tuple[list[list[bytes]], np.ndarray]:
    """Rows of eval_predictions.jsonl, each in three versions: wrong, half right, right; and their F1, (3,)."""
    f1 = np.array([0.0, 0.4, 1.0])
    rows = builtin.generate("clinical", "validation", num_examples=number)
    lines = []
    for row, after in zip(rows, [*rows[1:], rows[0]], strict=True):
        row = {**row, "context": f"{row['context']} {after['context']}"[:600]}
        answers = ("none of it", "a part of it", row["answers"]["text"][0] if row["answers"]["text"] else "")
        versions = [{**row, "predicted_answer": answer, "exact_match": int(overlap == 1), "f1": overlap}
                    for answer, overlap in zip(answers, f1.tolist(), strict=True)]
        lines.append([(json.dumps(each, ensure_ascii=False) + "\n").encode() for each in versions])
    return lines, f1


def template_meta(suite: Suite, scratch: Path) -> dict[str, Any]:
    """run_meta.json as a training and the evaluation behind it leave it; and a training_log.csv."""
    import pandas as pd

    settings = vars(suite.experiments[0].arguments)
    splits = [load_split("demo:clinical", split, get_task("qa")).identity() for split in ("train", "validation")]
    with stage(scratch, settings, owns=TRAINING_FILES, datasets=splits):
        steps = np.arange(50, 400, 50)
        log = {"step": steps, "epoch": steps / 94, "loss": 4 - steps / 200, "grad_norm": 1.5, "learning_rate": 1e-3}
        write_csv(scratch / "training_log.csv", pd.DataFrame(log))
    with stage(scratch, {**settings, "do_train": False}, owns=EVALUATION_FILES, datasets=splits[1:]):
        pass  # its files are made once for every run
    return read_json(scratch / META)


def overhead(setting: Setting) -> Found:
    found = measure_overhead(setting.output("overhead"), setting.size(6, 2), setting.size(400, 32))
    first, *later = (each["overhead"] for each in found["runs_of_worker"])
    cold = [each["overhead"] for each in found["cold_processes"]]
    return Found([
        Measure("a worker's first run, beyond its training", [first], " s"),
        Measure("its later runs", later, " s"), Measure("processes of run.py", cold, " s"),
        Measure("a process / a later run", [one / own for one, own in zip(cold[1:], later, strict=True)], " x",
                least=20.0),
    ], details=found)


def timed_processes(what: str, each: Sequence[Process], most: float | None = None) -> list[Measure]:
    return [Measure(what, [one.seconds for one in each], " s", most=most),
            Measure(f"{what}, CPU", [one.cpu_seconds for one in each], " s")]


def ends(setting: Setting) -> Found:
    """Resuming a suite that is finished, and comparing its runs."""
    seeds, place = range(1, setting.size(10, 3) + 1), setting.output("resume")
    suite, runs, flags = plan(place, setting.size(20, 2), seeds)
    finish(suite, runs, place / "template", setting.size(400, 50))
    run = ["--mode", "run", *flags, "--seeds", *map(str, seeds)]
    resumed, planned, compared = in_turn(
        setting.size(3, 1), lambda _: script("run_experiments.py", *run),
        lambda _: script("run_experiments.py", *run, "--dry_run"),
        lambda _: script("run_experiments.py", "--mode", "analyze", *flags),
    )
    predictions, seeds, place = setting.size(5000, 50), range(1, setting.size(6, 3) + 1), setting.output("analyze")
    suite, many, flags = plan(place, setting.size(83, 2), seeds)
    needed, free = 1000 * predictions * len(many), shutil.disk_usage(place).free
    if free < 2 * needed:
        raise UserError(f"{place}: {free / 1e9:.1f} GB free, expected {2 * needed / 1e9:.1f}; set TMPDIR")
    finish(suite, many, place / "template", predictions)
    analysed = [script("run_experiments.py", "--mode", "analyze", *flags) for _ in range(setting.size(3, 1))]
    return Found([
        *timed_processes(f"resuming {len(runs)} finished runs", resumed, 5.0),
        *timed_processes("planning them (--dry_run)", planned),
        *timed_processes("comparing them anew (--mode analyze)", compared),
        *timed_processes(f"analysing {len(many)} runs of {predictions:,} predictions", analysed, 60.0),
        Measure("its peak memory", [one.peak_gb for one in analysed], " GB", most=4.0),
    ])
