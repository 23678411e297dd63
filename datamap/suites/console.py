"""What run_experiments.py tells of the runs: what there is to do, how each ended, what failed, the state of all."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamap.core.errors import printable
from datamap.core.progress import Progress
from datamap.core.tables import console_table
from datamap.suites.definition import Suite
from datamap.suites.planning import duration
from datamap.suites.runner import run_locally
from datamap.suites.runs import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    LOG,
    RUNNING,
    Run,
    last_lines,
    meta_of,
    planned_runs,
    read_plan,
    seconds_of,
    state_of,
)
from datamap.suites.slurm import queued_runs
from datamap.training.prerequisites import Prerequisite, is_made

logger = logging.getLogger(__name__)


def announce(suite: Suite, needed: Sequence[Prerequisite], states: Mapping[Run, str], seeds: Sequence[int]) -> None:
    for each in needed:
        logger.info(f"{each.name}: {each.directory}" + ("" if is_made(each) else ", to be made first"))
    counted = Counter(states.values())
    others = [f"{counted[state]:,} {state}" for state in (FINISHED, RUNNING, INTERRUPTED, FAILED) if counted[state]]
    logger.info(f"suite {suite.name}: {len(suite.experiments):,} experiments, seeds {', '.join(map(str, seeds))}: "
                f"{len(states):,} runs" + (f", of which {', '.join(others)}" if others else ""))


def maps_to_join(directory: Path) -> list[str]:
    """The command that joins the maps of an experiment, for each that recorded those of two seeds or more."""
    plan, found = read_plan(directory), dict[str, list[Path]]()
    records = {each["name"] for each in plan["experiments"] if each["arguments"].get("enable_cartography")}
    for name, _, place in planned_runs(directory, plan):
        if name in records and state_of(place) == FINISHED:
            found.setdefault(name, []).append(place / "cartography_output")
    return [shlex.join(["python", "dataset_cartography.py", "--cartography_dir", *map(str, maps), "--output_dir",
                        str(directory / f"joint_{name}")]) for name, maps in found.items() if len(maps) > 1]


def run_all(todo: Sequence[Run], **settings: Any) -> list[Run]:
    """Carry out the runs (``run_locally``) with one bar for all of them; returns those that failed."""
    from tqdm import tqdm

    failed: list[Run] = []
    began, count = time.monotonic(), 0

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        bar = tqdm(total=len(todo), desc="runs", disable=not sys.stderr.isatty())
        with bar, Progress("runs", len(todo), "runs", bar=None) as lines:
            for count, (run, outcome) in enumerate(run_locally(todo, **settings), 1):
                if outcome.state == FAILED:
                    failed.append(run)
                took = f" in {outcome.seconds:.0f} s" if outcome.seconds else ""
                reason = f": {outcome.error}" if outcome.error else "" if took else ", by another process"
                left = (time.monotonic() - began) / count * (len(todo) - count)
                remaining = f"; {duration(left)} left" if left and bar.disable else ""  # the bar says it too
                bar.clear()
                logger.info(f"{count}/{len(todo)}  {run}: {outcome.state}{took}{reason}{remaining}")
                bar.set_postfix_str(f"{len(failed)} failed" if failed else "", refresh=False)
                bar.update()
                lines.advance()
    except KeyboardInterrupt:
        logger.warning(f"stopped with {count} of {len(todo)} runs done; the same command goes on from there")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return failed


def report_failures(failed: Sequence[Run]) -> None:
    for run in failed:
        meta = meta_of(run.directory) or {}
        print(f"\nfailed: {run}: {printable(str(meta.get('error', '')))}\n  {run.directory / LOG}", file=sys.stderr)
        for line in last_lines(run.directory / LOG, 5):
            print(f"  | {printable(line)}", file=sys.stderr)
    if failed:
        print(f"\n{len(failed)} failed; --retry_failed runs them again", file=sys.stderr)


def status_of(directory: Path) -> str:
    """The state of every run of a suite, those in Slurm's queue named."""
    import pandas as pd

    plan, queued = read_plan(directory), queued_runs(directory)
    counted, rows = Counter[str](), []
    for experiment, seed, place in planned_runs(directory, plan):
        state = state_of(place)
        counted[state] += 1
        meta = meta_of(place) or {}
        error = " ".join(meta.get("error", "").split()) if state == FAILED else ""
        if state != FINISHED and place.name in queued:
            state += f" (Slurm: {queued[place.name].lower()})"
        rows.append((experiment, seed, state, seconds_of(meta), error))
    table = pd.DataFrame(rows, columns=["experiment", "seed", "state", "time", "error"])
    counts = ", ".join(f"{count} {state}" for state, count in counted.items())
    return f"{plan['name']}: {counts}\n{console_table(table, {'time': duration})}"
