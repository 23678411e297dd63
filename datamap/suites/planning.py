"""What a suite comes to: its prerequisites, its runs, the plan on disk, and a guess of how long it takes."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamap.core.artifacts import META, load_meta, model_meta
from datamap.core.configs import read_mapping
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import plain, write_json
from datamap.suites import prerequisites
from datamap.suites.definition import Experiment, Suite, load_suite, resolve, runs_of, suite_file
from datamap.suites.runs import PLAN, Run, meta_of, read_plan, seconds_of
from datamap.training.prerequisites import Prerequisite

PLANNED = ("name", "description", "why", "control_of", "select", "settings_hash")  # of an experiment, in suite.json

logger = logging.getLogger(__name__)


def plan_suite(args: argparse.Namespace) -> tuple[Suite, list[Prerequisite], list[Run]]:
    """Everything that can be wrong with a suite is found here, before anything starts.

    args: of run_experiments.py.
    """
    suite = load_suite(suite_file(args.suite), args.extra, controls=not args.no_controls)
    needed = prerequisites.plan(suite, Path(args.experiments_dir))
    made = {str(each.directory): each.identity for each in needed if each.identity is not None}
    resolve(suite, prerequisites.places_of(needed), made)
    return suite, needed, runs_of(suite, args.seeds, Path(args.experiments_dir) / suite.name)


def write_plan(suite: Suite, seeds: Sequence[int], directory: Path) -> None:
    """``suite.json``: what there is to compare; seeds of an earlier plan stay when the settings are the same."""
    file = directory / PLAN
    before = read_plan(directory) if file.exists() else None
    known = before["experiments"] if before else []
    earlier = {(each["name"], each["settings_hash"]): each["seeds"] for each in known}
    gone = [each["name"] for each in known if each["name"] not in {one.name for one in suite.experiments}]
    if gone:
        logger.warning(f"{file} planned {name_a_few(gone)} too, which {suite.file} does not: no longer compared")
    experiments = [
        {name: getattr(each, name) for name in PLANNED}
        | {"seeds": sorted({*seeds, *earlier.get((each.name, each.settings_hash), [])}),
           "arguments": vars(each.arguments)}
        for each in suite.experiments
    ]
    plan = {"name": suite.name, "description": suite.description, "baseline": suite.baseline,
            "experiments": experiments}
    directory.mkdir(parents=True, exist_ok=True)
    if before != json.loads(json.dumps(plan, default=plain)):
        write_json(file, plan)


def suites_in(experiments_dir: Path, suite: str | None) -> list[Path]:
    """The directory of a suite, or those of all suites, which were planned under ``experiments_dir``."""
    if suite:
        name = Path(suite)
        if name.suffix == ".json" or not (experiments_dir / name).is_dir():
            file = suite_file(suite)
            name = Path(str(read_mapping(file).get("name", file.stem)))
        if not (experiments_dir / name / PLAN).exists():
            raise UserError(f"{experiments_dir / name} holds no {PLAN}; --mode run --suite {suite} writes it")
        return [experiments_dir / name]
    found = sorted(path.parent for path in experiments_dir.glob(f"*/{PLAN}"))
    if not found:
        raise UserError(f"--experiments_dir {experiments_dir} holds no suite; --mode run --suite NAME makes one")
    return found


# --- how long it takes ---------------------------------------------------------------------------------------------


def estimate(runs: Sequence[Run], experiments: Sequence[Experiment], needed: Sequence[Prerequisite],
             workers: int, directory: Path) -> str:
    """A sentence about the time that ``runs`` will take, going by one that is there; filters make them shorter."""
    ended = [(path.parent, meta) for path in sorted(directory.glob(f"*/{META}"))
             if (meta := meta_of(path.parent)) and meta["status"] == "finished"]
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
    arguments = {each.name: vars(each.arguments) for each in experiments}
    total = sum(speed * _work(arguments[run.experiment], rows) for run in runs) / min(workers, len(runs))
    return f"about {duration(total)} with {workers} at a time, going by {place}"


def _work(arguments: Mapping[str, Any], rows: int) -> float:
    """Examples times epochs: what the time of a run grows with."""
    if (steps := arguments.get("max_steps") or 0) > 0:
        return steps * (arguments.get("per_device_train_batch_size") or 8)
    epochs = arguments.get("num_train_epochs")
    return min(rows, arguments.get("max_train_samples") or rows) * (3 if epochs is None else epochs)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
