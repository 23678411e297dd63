"""What running and comparing a suite costs beyond the training: overhead of a run, resuming, analysing.

Reads nothing; runs a small suite on demo:clinical and makes the directories of finished runs for the rest, all in a
temporary directory. Prints a table and writes bench_suites.json.

    OMP_NUM_THREADS=1 python benchmarks/bench_suites.py
    OMP_NUM_THREADS=1 python benchmarks/bench_suites.py --only analyze --experiments 3 --predictions 500

Overhead: seconds of a run minus those of its training and evaluation (train_runtime, eval_runtime), for runs of one
worker as run_experiments.py has them, and for a process of run.py alone; a process after every run, in turn. Seconds
of a worker's run are those from handing it out to hearing of its end, the first with the start of the worker.
Resume: the whole process of run_experiments.py --mode run on 200 finished and compared runs; beside it the seconds of
--dry_run, and of comparing them anew (--mode analyze). Analyze: seconds and peak
memory of the process of --mode analyze; the files were written just before, so they come from the page cache. CPU
seconds tell what of the time is due to other work of the machine. Peak memory is read from /proc, so on Linux only.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import Measure, bench_parser, report

from datamap.core.artifacts import META, stage
from datamap.core.errors import UserError, command_line
from datamap.core.files import read_json, write_csv, write_json
from datamap.core.flags import DEFAULT_SEED, positive_int
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

OVERHEAD_BOUND, RESUME_BOUND, ANALYZE_BOUND, MEMORY_BOUND = 1.5, 5, 60, 4  # seconds, and GB
RESUME_EXPERIMENTS, RESUME_SEEDS, RESUME_PREDICTIONS, RESUME_ROUNDS, ANALYZE_SEEDS = 20, 10, 400, 3, 6
BASE = {
    "dataset": "demo:clinical", "model": "tiny", "max_train_samples": 400, "max_length": 128, "doc_stride": 32,
    "num_train_epochs": 1, "per_device_train_batch_size": 16, "warmup_steps": 0.1, "save_strategy": "epoch",
    "save_total_limit": 1, "logging_steps": 50, "no_cuda": True, "do_train": True, "do_eval": True,
}
# The script given first, then a line with its peak memory: what the parent is told counts the parent's own.
MEASURED = """
import atexit, runpy, sys
atexit.register(lambda: print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def plan(directory: Path, experiments: int, seeds: Sequence[int]) -> tuple[Suite, list[Run], list[str]]:
    """A suite whose experiments differ in their learning rate, its runs, and the flags that name it."""
    rates = [{"name": f"rate{number:02}" if number else "baseline", "args": {"learning_rate": 2e-3 + 1e-5 * number}}
             for number in range(experiments)]
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "bench.json", {"name": "bench", "base": BASE, "experiments": rates})
    flags = ["--suite", str(directory / "bench.json"), "--experiments_dir", str(directory)]
    suite, _, runs = plan_suite(suite_args([*flags, "--seeds", *map(str, seeds)]))
    write_plan(suite, seeds, directory / suite.name)
    return suite, runs, flags


def measure_overhead(directory: Path, rounds: int) -> dict[str, Any]:
    _, runs, _ = plan(directory, 1, range(1, rounds + 1))
    warm, cold = list[dict[str, float]](), list[dict[str, float]]()
    began = time.perf_counter()
    for run, outcome in run_locally(runs, workers=1, retry=False, keep_models=False, stop_on_error=True):
        if outcome.state != FINISHED:
            raise UserError(f"{run} is {outcome.state}: {outcome.error}")
        warm.append(parts(run.directory, time.perf_counter() - began) | {"in_the_worker": outcome.seconds})
        place = directory / f"cold-{run.seed}"
        script = [sys.executable, str(script_file("run.py")), *run.argv, f"--output_dir={place}"]
        began = time.perf_counter()
        subprocess.run(script, cwd=CHECKOUT, check=True, capture_output=True)
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


def run_suite_script(flags: Sequence[str]) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of a process of run_experiments.py."""
    script = [sys.executable, "-c", MEASURED, str(script_file("run_experiments.py")), *flags]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(script, cwd=CHECKOUT, capture_output=True, text=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode:
        raise UserError(f"run_experiments.py {' '.join(flags)} failed: {done.stderr.strip().splitlines()[-1:]}")
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": int(done.stdout.split()[-2]) * 1024 / 1e9}


def measure_resume(directory: Path) -> dict[str, Any]:
    seeds = range(1, RESUME_SEEDS + 1)
    suite, runs, flags = plan(directory, RESUME_EXPERIMENTS, seeds)
    finish(suite, runs, directory / "template", RESUME_PREDICTIONS)
    run = ["--mode", "run", *flags, "--seeds", *map(str, seeds)]
    rounds = [run_suite_script(run) for _ in range(RESUME_ROUNDS)]
    return {
        "runs": len(runs), "predictions": RESUME_PREDICTIONS,
        **{name: float(np.median([each[name] for each in rounds])) for name in rounds[0]}, "rounds": rounds,
        "planning": run_suite_script([*run, "--dry_run"]),
        "comparing": run_suite_script(["--mode", "analyze", *flags]),
    }


def measure_analyze(directory: Path, experiments: int, predictions: int) -> dict[str, Any]:
    suite, runs, flags = plan(directory, experiments, range(1, ANALYZE_SEEDS + 1))
    needed, free = 1000 * predictions * len(runs), shutil.disk_usage(directory).free
    if free < 2 * needed:
        raise UserError(f"{directory}: {free / 1e9:.1f} GB free, expected {2 * needed / 1e9:.1f}; set TMPDIR")
    finish(suite, runs, directory / "template", predictions)
    return {"runs": len(runs), "predictions": predictions, **run_suite_script(["--mode", "analyze", *flags])}


def measures_of(found: dict[str, Any]) -> list[Measure]:
    measures = []
    if one := found.get("overhead"):
        first, *later = (each["overhead"] for each in one["runs_of_worker"])
        cold = [each["overhead"] for each in one["cold_processes"]]
        measures += [Measure("a worker's first run, beyond its training", [first], " s"),
                     Measure("its later runs", later, " s", most=OVERHEAD_BOUND),
                     Measure("processes of run.py", cold, " s")]
    if one := found.get("resume"):
        measures += [*shown(f"resuming {one['runs']} finished runs", one, RESUME_BOUND),
                     *shown("planning them (--dry_run)", one["planning"]),
                     *shown("comparing them anew (--mode analyze)", one["comparing"])]
    if one := found.get("analyze"):
        measures += [*shown(f"analysing {one['runs']} runs of {one['predictions']:,} predictions", one, ANALYZE_BOUND),
                     Measure("its peak memory", [one["peak_gb"]], " GB", most=MEMORY_BOUND)]
    return measures


def shown(what: str, one: dict[str, Any], bound: float | None = None) -> list[Measure]:
    return [Measure(what, [one["seconds"]], " s", most=bound), Measure("of CPU", [one["cpu_seconds"]], " s")]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--only", choices=("overhead", "resume", "analyze"), help="one of the three (default: all)")
    parser.add_argument("--rounds", type=positive_int, default=6, help="runs and processes in turn, overhead")
    parser.add_argument("--experiments", type=positive_int, default=83, help=f"by {ANALYZE_SEEDS} seeds, analyze")
    parser.add_argument("--predictions", type=positive_int, default=5000, help="of each run, analyze")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error("--rounds must be at least 2: the first run of a worker stands apart")
    return args


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if args.only in (None, "overhead"):
            found["overhead"] = measure_overhead(Path(scratch, "overhead"), args.rounds)
        if args.only in (None, "resume"):
            found["resume"] = measure_resume(Path(scratch, "resume"))
        if args.only in (None, "analyze"):
            found["analyze"] = measure_analyze(Path(scratch, "analyze"), args.experiments, args.predictions)
    report(args, __file__, found, measures_of(found), enforce=False)


if __name__ == "__main__":
    main()
