"""Run a suite of experiments over several seeds, and say which differences are real.

Reads a suite (example_configs/suites/, or the path of a JSON file). Writes every run to
EXPERIMENTS_DIR/SUITE/RUN/, and results.csv, comparison.csv, comparison.json, comparison.md and plots beside them.

    python run_experiments.py --mode run --suite sample --max-train-samples 10000 --seeds 42 43 44
    python run_experiments.py --mode run --suite demo --seeds 1 2 3 4 5 6 --workers 2   (minutes on a CPU)
    python run_experiments.py --mode analyze
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamap.core.artifacts import META, check_writable, load_meta, model_meta
from datamap.core.configs import joined, read_mapping
from datamap.core.errors import UserError, command_line, name_a_few
from datamap.core.files import plain, read_json, write_json
from datamap.core.flags import DEFAULT_SEED, Parser, number, positive_int, seed_number
from datamap.selection import arguments as selection_arguments
from datamap.suites import prerequisites
from datamap.suites import runner as suite_runner
from datamap.suites.definition import (
    PLAN,
    TAKEN,
    Experiment,
    Run,
    Suite,
    identity_of,
    load_suite,
    resolve,
    run_name,
    runs_of,
    suite_file,
)
from datamap.suites.report import REPORT, write_report
from datamap.suites.results import read_plan
from datamap.suites.runner import FAILED, FINISHED, PENDING, RUNNING, Outcome, meta_of, state_of, tail
from datamap.training import embedding_arguments
from datamap.training.arguments import build_parser as build_run_parser
from datamap.training.prerequisites import Prerequisite, PrerequisiteFailed, is_made, make, shown

SLURM_JOBS = "slurm.json"
DEFAULT_MARGIN = 1.0  # percentage points
MODES = ("run", "status", "analyze")
SLURM_FLAGS = ("slurm_time", "slurm_partition", "slurm_gpus", "slurm_cpus", "slurm_parallel")

logger = logging.getLogger(__name__)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser((__doc__ or "").split("\n")[0])
    parser.epilog = "Flags of run.py are accepted too and win over the suite's base (run.py --help lists them)."
    parser.add_argument("--mode", choices=MODES, default="run", help="what to do; run compares at its end too")
    parser.add_argument("--suite", metavar="NAME|FILE", help="built-in suite, or a JSON file; analyze and status take "
                        "all under --experiments_dir without it")
    parser.add_list("--seeds", type=seed_number, default=[DEFAULT_SEED], help="every experiment runs with each")
    parser.add_argument("--experiments_dir", default="./experiments", metavar="DIR", help="where everything goes")
    group = parser.add_argument_group("running")
    group.add_argument("--workers", type=positive_int, default=1, metavar="N",
                       help="runs at a time, one GPU each where there are GPUs")
    group.add_switch("--dry_run", help="print every command and run none")
    group.add_switch("--no_controls", help="no size-matched random controls")
    group.add_switch("--stop_on_error", help="begin no run after one has failed")
    group.add_switch("--retry_failed", help="run those again, from their start, that failed before")
    group.add_switch("--keep_models", help="keep model and checkpoints of finished runs, in RUN/model/")
    group = parser.add_argument_group("Slurm")
    group.add_argument("--launcher", choices=("local", "slurm"), default="local",
                       help="slurm: one array job for the suite, and return")
    group.add_argument("--slurm_time", type=positive_int, metavar="MINUTES", help="limit of one run; needed")
    group.add_argument("--slurm_partition", metavar="NAME", help="default: the cluster's")
    group.add_argument("--slurm_gpus", type=int, default=0, metavar="N", help="GPUs of one run")
    group.add_argument("--slurm_cpus", type=positive_int, default=1, metavar="N", help="CPU cores of one run")
    group.add_argument("--slurm_parallel", type=positive_int, metavar="N", help="runs at a time (default: no limit)")
    group = parser.add_argument_group("comparing")
    group.add_argument("--margin", type=lambda text: number(text, 0), metavar="D",
                       help="the smallest difference that matters, in percentage points (default: 1)")

    known, rest = parser.parse_known_args(argv)
    known.extra = _flags_of_run(parser, rest)
    if known.mode == "run" and not known.suite:
        parser.error("--mode run needs --suite")
    if known.mode != "run" and known.dry_run:
        parser.error(f"--dry_run does nothing with --mode {known.mode}")
    if known.margin == 0:
        parser.error("--margin must be above 0, found 0")
    for mode, flags in (("status", ("margin", "retry_failed")), ("analyze", ("retry_failed",))):
        for flag in flags:
            if known.mode == mode and getattr(known, flag) != parser.get_default(flag):
                parser.error(f"--{flag} does nothing with --mode {mode}")
    if known.mode != "run" and known.extra:
        parser.error(f"{known.extra[0].partition('=')[0]} does nothing with --mode {known.mode}")
    if len(set(known.seeds)) < len(known.seeds):
        parser.error(f"--seeds names a seed twice: {', '.join(map(str, known.seeds))}")
    if known.launcher == "slurm" and known.slurm_time is None:
        parser.error("--launcher slurm needs --slurm_time, the most minutes that one run may take")
    if known.slurm_gpus < 0:
        parser.error(f"--slurm_gpus must not be negative, found {known.slurm_gpus}")
    for flag in SLURM_FLAGS:
        if known.launcher != "slurm" and getattr(known, flag) != parser.get_default(flag):
            parser.error(f"--{flag} does nothing without --launcher slurm")
    return known


def _flags_of_run(parser: Parser, rest: Sequence[str]) -> list[str]:
    """What is left of the command line, which must be flags of run.py with their values."""
    run_parser = build_run_parser()
    words = joined(run_parser, rest)
    for word in words:
        flag = word.partition("=")[0]
        if not word.startswith("--"):
            continue
        if flag == "--seed":
            parser.error("--seed is run.py's; a suite takes --seeds")
        if flag not in run_parser.flags:
            near = parser.nearest(flag) or run_parser.nearest(flag)
            parser.error(f"unknown argument {flag}{near}")
        if flag.removeprefix("--") in TAKEN:
            parser.error(f"{flag} is decided by the suite, run by run; leave it out")
    if words and not words[0].startswith("--"):
        parser.error(f"unknown argument {words[0]}")
    return words


# --- the plan -----------------------------------------------------------------------------------------------------


def plan_suite(args: argparse.Namespace) -> tuple[Suite, list[Prerequisite], list[Run]]:
    """Everything that can be wrong with a suite is found here, before anything starts."""
    import cluster_analysis

    parsers = {
        "cartography": build_run_parser(), "embeddings": embedding_arguments.build_parser(),
        "clusters": cluster_analysis.build_parser(), "select": selection_arguments.build_parser(),
    }
    suite = load_suite(suite_file(args.suite), parsers, args.extra, controls=not args.no_controls)
    needed = prerequisites.plan(suite, Path(args.experiments_dir))
    made = {str(each.directory): each.identity for each in needed if each.identity is not None}
    resolve(suite, prerequisites.places_of(needed), made)
    return suite, needed, runs_of(suite, args.seeds, Path(args.experiments_dir) / suite.name)


def write_plan(suite: Suite, seeds: Sequence[int], directory: Path) -> None:
    """``suite.json``: what there is to compare; seeds of an earlier plan stay when the settings are the same."""
    file = directory / PLAN
    earlier: dict[tuple[str, str], list[int]] = {}
    if file.exists():
        known = read_json(file)["experiments"]
        earlier = {(each["name"], each["settings_hash"]): each["seeds"] for each in known}
        gone = [each["name"] for each in known if each["name"] not in {one.name for one in suite.experiments}]
        if gone:
            logger.warning(f"{file} planned {name_a_few(gone)} too, which {suite.file} does not: no longer compared")
    experiments = [
        {
            "name": each.name,
            "description": each.description,
            "why": each.why,
            "control_of": each.control_of,
            "select": each.select,
            "settings_hash": each.settings_hash,
            "seeds": sorted({*seeds, *earlier.get((each.name, each.settings_hash), [])}),
            "arguments": vars(each.arguments),
        }
        for each in suite.experiments
    ]
    plan = {"name": suite.name, "description": suite.description, "baseline": suite.baseline,
            "experiments": experiments}
    directory.mkdir(parents=True, exist_ok=True)
    if not file.exists() or read_json(file) != json.loads(json.dumps(plan, default=plain)):
        write_json(file, plan)


def seconds_of(meta: dict[str, Any]) -> float | None:
    """How long a run took from its first start to its last end, breaks between left out."""
    from datetime import datetime

    spans = [(each["started"], each["finished"]) for each in [meta, *meta.get("history", [])] if each.get("finished")]
    moments = [(datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() for start, end in spans
               if start]
    return sum(moments) if moments else None


def _work(arguments: dict[str, Any], rows: int) -> float:
    """Examples times epochs: what the time of a run grows with."""
    if (steps := arguments.get("max_steps") or 0) > 0:
        return steps * (arguments.get("per_device_train_batch_size") or 8)
    epochs = arguments.get("num_train_epochs")
    return min(rows, arguments.get("max_train_samples") or rows) * (3 if epochs is None else epochs)


def estimate(runs: Sequence[Run], experiments: dict[str, Experiment], needed: Sequence[Prerequisite],
             workers: int, directory: Path) -> str:
    """A sentence about the time that ``runs`` will take, going by one that is there; filters make them shorter."""
    places = [path.parent for path in sorted(directory.glob(f"*/{META}"))]
    ended = [(place, meta) for place in places if (meta := meta_of(place)) and meta["status"] == "finished"]
    if not ended:
        ended = [(each.directory, meta) for each in needed[:1] if (meta := load_meta(each.directory))]
    speeds = []
    for found, last in ended:
        training = model_meta(found)
        if training and training.get("datasets") and (seconds := seconds_of(last)):
            rows = training["datasets"][0]["rows"]
            speeds.append((seconds / max(1.0, _work(training["arguments"], rows)), str(found), rows))
    if not speeds:
        return "how long they take will be known when the first is finished"
    speed, place, rows = sorted(speeds)[len(speeds) // 2]
    total = sum(speed * _work(vars(experiments[run.experiment].arguments), rows) for run in runs)
    total /= min(workers, len(runs))
    return f"about {_duration(total)} with {workers} at a time, going by {place}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# --- running ------------------------------------------------------------------------------------------------------


def announce(suite: Suite, needed: Sequence[Prerequisite], states: dict[Run, str], seeds: Sequence[int]) -> None:
    for each in needed:
        there = each.command is None or is_made(each)
        logger.info(f"{each.name}: {each.directory}" + ("" if there else ", to be made first"))
    counted = Counter(states.values())
    others = [f"{counted[state]:,} {state}" for state in (FINISHED, RUNNING, "interrupted", FAILED) if counted[state]]
    logger.info(f"suite {suite.name}: {len(suite.experiments):,} experiments, seeds {', '.join(map(str, seeds))}: "
                f"{len(states):,} runs" + (f", of which {', '.join(others)}" if others else ""))


def run_suite(args: argparse.Namespace) -> int:
    """Returns the exit status."""
    suite, needed, runs = plan_suite(args)
    directory = Path(args.experiments_dir) / suite.name
    if args.dry_run:
        for each in needed:
            if each.command is not None and not is_made(each):
                print(shown(each))
        for run in runs:
            print(*(run.config[key] for key in ("selection", "command") if key in run.config), sep="\n")
        return 0
    check_writable(directory)
    write_plan(suite, args.seeds, directory)
    states = {run: state_of(run.directory) for run in runs}
    announce(suite, needed, states, args.seeds)
    failed = [run for run in runs if states[run] == FAILED]
    finished = [run for run in runs if states[run] == FINISHED]
    if finished:
        logger.info(f"{len(finished):,} finished runs are left as they are")
    if failed and not args.retry_failed:
        logger.warning(f"{len(failed):,} failed before and stay so; --retry_failed runs them again")
    todo = [run for run in runs if states[run] != FINISHED and (args.retry_failed or states[run] != FAILED)]
    if args.launcher == "slurm":
        return submit(args, suite, needed, todo, directory)
    if todo:
        make(needed)
        experiments = {each.name: each for each in suite.experiments}
        logger.info(f"{len(todo):,} to do: {estimate(todo, experiments, needed, args.workers, directory)}")
        failed = ([] if args.retry_failed else failed) + run_all(args, todo)
    report_failures(failed)
    if todo or args.margin is not None or not is_compared(directory):
        analyze(args, [directory])
    else:
        print(f"nothing to do: {directory / REPORT} is there already; --mode analyze makes it again")
    return 1 if failed else 0


def is_compared(directory: Path) -> bool:
    """Whether the comparison is younger than every run, and than the plan."""
    report = directory / REPORT
    names = [run_name(each["name"], seed, identity_of(each["settings_hash"], seed))
             for each in read_plan(directory)["experiments"] for seed in each["seeds"]]
    files = [directory / PLAN, *(directory / name / META for name in names)]
    return report.exists() and all(
        file.stat().st_mtime_ns <= report.stat().st_mtime_ns for file in files if file.exists()
    )


def run_all(args: argparse.Namespace, todo: Sequence[Run]) -> list[Run]:
    """Carry out the runs with one bar for all of them; returns those that failed."""
    from tqdm import tqdm

    failed: list[Run] = []
    began, count = time.monotonic(), 0

    def done(run: Run, outcome: Outcome) -> None:
        nonlocal count
        count += 1
        bar.update()
        if outcome.state == FAILED:
            failed.append(run)
        bar.set_postfix_str(f"{len(failed)} failed" if failed else "")
        took = f" in {outcome.seconds:.0f} s" if outcome.seconds else ""
        by = f": {outcome.error}" if outcome.error else "" if took else ", by another process"
        word = outcome.state + took + by
        left = (time.monotonic() - began) / count * (len(todo) - count)
        bar.clear()
        remaining = f"; {_duration(left)} left" if left and not sys.stderr.isatty() else ""  # the bar says it too
        logger.info(f"{count}/{len(todo)}  {run}: {word}{remaining}")
        bar.refresh()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with tqdm(total=len(todo), desc="runs", disable=not sys.stderr.isatty()) as bar:
            suite_runner.run_locally(
                todo, workers=args.workers, retry=args.retry_failed, keep_models=args.keep_models,
                stop_on_error=args.stop_on_error, done=done,
            )
    except KeyboardInterrupt:
        logger.warning(f"stopped with {count} of {len(todo)} runs done; the same command goes on from there")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return failed


def report_failures(failed: Sequence[Run]) -> None:
    for run in failed:
        meta = meta_of(run.directory) or {}
        print(f"\nfailed: {run}: {meta.get('error', '')}\n  {run.directory / suite_runner.LOG}", file=sys.stderr)
        for line in tail(run.directory / suite_runner.LOG, 5):
            print(f"  | {line}", file=sys.stderr)
    if failed:
        print(f"\n{len(failed)} failed; --retry_failed runs them again", file=sys.stderr)


# --- Slurm --------------------------------------------------------------------------------------------------------


def submit(
    args: argparse.Namespace, suite: Suite, needed: Sequence[Prerequisite], todo: Sequence[Run], directory: Path
) -> int:
    from datamap.suites import slurm as slurm_launcher

    queued = queued_runs(directory)
    if queued:
        logger.info(f"{len(queued):,} runs are in Slurm's queue already and are not submitted again")
    todo = [run for run in todo if run.directory.name not in queued]
    if not todo:
        logger.info("nothing to submit")
        return 0
    limits: dict[str, Any] = {
        "time_minutes": args.slurm_time, "partition": args.slurm_partition, "gpus": args.slurm_gpus,
        "cpus": args.slurm_cpus,
    }
    folder, after = directory / "slurm", None
    if any(each.command is not None and not is_made(each) for each in needed):
        after = slurm_launcher.submit(make, [needed], folder, name=f"{suite.name}-prerequisites",
                                      parallel=None, after=None, **limits)
        logger.info(f"job {after} makes the prerequisites, the runs wait for it")
    items = [(run, args.retry_failed, args.keep_models) for run in todo]
    job = slurm_launcher.submit(suite_runner.execute_task, items, folder, name=suite.name,
                                parallel=args.slurm_parallel, after=after, **limits)
    file = directory / SLURM_JOBS
    jobs = read_json(file) if file.exists() else []
    write_json(file, [*jobs, {"job": job, "runs": [run.directory.name for run in todo]}])
    print(f"submitted job {job} with {len(todo):,} runs; --mode status shows them, --mode analyze compares")
    return 0


def queued_runs(directory: Path) -> dict[str, str]:
    """Name of a run's directory -> its state in Slurm's queue, of those that Slurm still knows."""
    file = directory / SLURM_JOBS
    if not file.exists():
        return {}
    from datamap.suites import slurm as slurm_launcher

    found: dict[str, str] = {}
    for each in read_json(file):
        states = slurm_launcher.states(each["job"])
        found |= {each["runs"][place]: state for place, state in states.items()}
    return found


# --- status and analysis ------------------------------------------------------------------------------------------


def suites_in(args: argparse.Namespace) -> list[Path]:
    """The directories of the suites that --mode status and analyze are about."""
    root = Path(args.experiments_dir)
    if args.suite:
        name = Path(args.suite)
        if name.suffix == ".json" or not (root / name).is_dir():
            name = Path(str(read_mapping(suite_file(args.suite)).get("name", suite_file(args.suite).stem)))
        if not (root / name / PLAN).exists():
            raise UserError(f"{root / name} holds no {PLAN}; --mode run --suite {args.suite} writes it")
        return [root / name]
    found = sorted(path.parent for path in root.glob(f"*/{PLAN}"))
    if not found:
        raise UserError(f"--experiments_dir {root} holds no suite; --mode run --suite NAME makes one")
    return found


def show_status(args: argparse.Namespace) -> None:
    for directory in suites_in(args):
        plan, queued = read_plan(directory), queued_runs(directory)
        counted: Counter[str] = Counter()
        lines = []
        for each in plan["experiments"]:
            for seed in each["seeds"]:
                name = run_name(each["name"], seed, identity_of(each["settings_hash"], seed))
                state = state_of(directory / name)
                counted[state] += 1
                if state != FINISHED and name in queued:
                    state += f" (Slurm: {queued[name].lower()})"
                meta = meta_of(directory / name) if state != PENDING else None
                seconds = seconds_of(meta) if meta else None
                told = " ".join(meta.get("error", "").split()) if meta and state == FAILED else ""
                lines.append(f"  {each['name']:<28} seed {seed:<10} {state:<24} "
                             f"{_duration(seconds) if seconds else '':>8}  {told}".rstrip())
        print(f"{plan['name']}: " + ", ".join(f"{count} {state}" for state, count in counted.items()))
        print("\n".join(lines))


def analyze(args: argparse.Namespace, directories: Sequence[Path]) -> None:
    broken: list[str] = []
    for place, directory in enumerate(directories):
        check_writable(directory)
        try:
            print("\n" * bool(place) + write_report(directory, args.margin or DEFAULT_MARGIN))
        except UserError as error:  # the other suites are as whole as before
            broken.append(str(error))
            continue
        print(f"wrote results.csv, comparison.csv, .json and .md, and plots to {directory}")
    if broken:
        raise UserError("; ".join(broken))


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.mode == "status":
        show_status(args)
    elif args.mode == "analyze":
        analyze(args, suites_in(args))
    else:
        try:
            status = run_suite(args)
        except PrerequisiteFailed as error:
            print(f"run_experiments.py: {error}", file=sys.stderr)
            status = 1
        if status:
            raise SystemExit(status)


if __name__ == "__main__":
    main()
