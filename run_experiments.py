"""Run a suite of experiments over several seeds, and say which differences are real.

Reads a suite (example_configs/suites/, or the path of a JSON file). Writes every run to
EXPERIMENTS_DIR/SUITE/RUN/, and results.csv, comparison.csv, comparison.json, comparison.md and plots beside them.

    python run_experiments.py --mode run --suite sample --max-train-samples 10000 --seeds 42 43 44
    python run_experiments.py --mode run --suite demo --seeds 1 2 3 4 5 6 --workers 2   (minutes on a CPU)
    python run_experiments.py --mode analyze
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from datamap.core.artifacts import check_writable
from datamap.core.configs import joined
from datamap.core.errors import UserError, command_line
from datamap.core.flags import DEFAULT_SEED, Parser, number, positive_int, seed_number
from datamap.core.plots import add_plot_format, plot_formats
from datamap.suites.console import announce, maps_to_join, report_failures, run_all, status_of
from datamap.suites.definition import DECIDED
from datamap.suites.planning import estimate, plan_suite, suites_in, write_plan
from datamap.suites.report import REPORT, is_compared, write_report
from datamap.suites.results import SCORES
from datamap.suites.runs import FAILED, FINISHED, state_of
from datamap.suites.slurm import submit_suite
from datamap.training.arguments import build_parser as build_run_parser
from datamap.training.prerequisites import PrerequisiteFailed, is_made, make

DEFAULT_MARGIN = 1.0  # percentage points
# Mode -> flags that do nothing in it.
WITHOUT_EFFECT = {
    "run": (),
    "status": ("dry_run", "margin", "cluster_by", "primary_metric", "retry_failed"),
    "analyze": ("dry_run", "retry_failed"),
}
COMPARED_WITH = ("margin", "cluster_by", "primary_metric")
SLURM_FLAGS = ("slurm_time", "slurm_partition", "slurm_gpus", "slurm_cpus", "slurm_parallel")

logger = logging.getLogger(__name__)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser((__doc__ or "").split("\n")[0])
    parser.epilog = "Flags of run.py are accepted too and win over the suite's base (run.py --help lists them)."
    parser.add_argument("--mode", choices=tuple(WITHOUT_EFFECT), default="run",
                        help="what to do; run compares at its end too")
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
                       help="the smallest difference that matters, in percentage points (default: 1, one answer in a "
                            "hundred): no difference is claimed where that is not ruled out")
    group.add_argument("--cluster_by", metavar="COLUMN", help="of the evaluated data: examples that share its value "
                       "go together and are no independent evidence; none: all are (default: context in question "
                       "answering, else none)")
    group.add_argument("--primary_metric", choices=SCORES, help="verdicts are about this one, the others are "
                       "secondary (default: all scores of an evaluation are corrected together)")
    add_plot_format(group)

    known, rest = parser.parse_known_args(argv)
    known.extra = _flags_of_run(parser, rest)
    if known.mode == "run" and not known.suite:
        parser.error("--mode run needs --suite")
    if known.margin == 0:
        parser.error("--margin must be above 0, found 0")
    for flag in WITHOUT_EFFECT[known.mode]:
        if getattr(known, flag) != parser.get_default(flag):
            parser.error(f"--{flag} does nothing with --mode {known.mode}")
    if known.mode == "status" and "plot_format" in known:
        parser.error("--plot_format does nothing with --mode status")
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
        if flag.removeprefix("--") in DECIDED:
            parser.error(f"{flag} is decided by the suite, run by run; leave it out")
    if words and not words[0].startswith("--"):
        parser.error(f"unknown argument {words[0]}")
    return words


def run_suite(args: argparse.Namespace) -> int:
    """Returns the exit status."""
    suite, needed, runs = plan_suite(args)
    directory = Path(args.experiments_dir) / suite.name
    if args.dry_run:
        for each in needed:
            if not is_made(each):
                print(shlex.join(["python", *each.command]))
        for run in runs:
            print(*(run.config[key] for key in ("selection", "command") if key in run.config), sep="\n")
        return 0
    check_writable(directory)
    write_plan(suite, args.seeds, directory)
    states = {run: state_of(run.directory) for run in runs}
    announce(suite, needed, states, args.seeds)
    failed = [run for run in runs if states[run] == FAILED and not args.retry_failed]
    if finished := sum(state == FINISHED for state in states.values()):
        logger.info(f"{finished:,} finished runs are left as they are")
    if failed:
        logger.warning(f"{len(failed):,} failed before and stay so; --retry_failed runs them again")
    todo = [run for run in runs if states[run] != FINISHED and run not in failed]
    if args.launcher == "slurm":
        submit_suite(
            directory, needed, todo, retry=args.retry_failed, keep_models=args.keep_models,
            parallel=args.slurm_parallel, time_minutes=args.slurm_time, partition=args.slurm_partition,
            gpus=args.slurm_gpus, cpus=args.slurm_cpus,
        )
        return 0
    if todo:
        make(needed)
        logger.info(f"{len(todo):,} to do: {estimate(todo, suite.experiments, needed, args.workers, directory)}")
        failed += run_all(todo, workers=args.workers, retry=args.retry_failed, keep_models=args.keep_models,
                          stop_on_error=args.stop_on_error)
    report_failures(failed)
    asked = [name for name in COMPARED_WITH if getattr(args, name) is not None]
    if todo or asked or "plot_format" in args or not is_compared(directory):
        analyze([directory], args)
    else:
        print(f"nothing to do: {directory / REPORT} is there already; --mode analyze makes it again")
    return 1 if failed else 0


def analyze(directories: Sequence[Path], args: argparse.Namespace) -> None:
    broken: list[str] = []
    for place, directory in enumerate(directories):
        check_writable(directory)
        try:
            print("\n" * bool(place) + write_report(
                directory, args.margin or DEFAULT_MARGIN, args.cluster_by, args.primary_metric))
        except UserError as error:  # the other suites are as whole as before
            broken.append(str(error))
            continue
        for command in maps_to_join(directory):
            print(f"to join its maps: {command}")
        print(f"wrote results.csv, comparison.csv, .json and .md, and plots to {directory}")
    if broken:
        raise UserError("; ".join(broken))


def carry_out(args: argparse.Namespace) -> None:
    if args.mode == "run":
        try:
            status = run_suite(args)
        except PrerequisiteFailed as error:
            print(f"run_experiments.py: {error}", file=sys.stderr)
            status = 1
        if status:
            raise SystemExit(status)
        return
    directories = suites_in(Path(args.experiments_dir), args.suite)
    if args.mode == "analyze":
        analyze(directories, args)
    else:
        print(*map(status_of, directories), sep="\n")


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with plot_formats(getattr(args, "plot_format", None)):
        carry_out(args)


if __name__ == "__main__":
    main()
