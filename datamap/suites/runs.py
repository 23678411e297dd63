"""A run of a suite: its directory, the plan that names it, and its state.

In its directory ``config.json`` says what the run is, ``log.txt`` what it said, ``run_meta.json`` (of run.py) how it
ended, and a lock on ``.lock`` that some process is at it. The lock goes with that process, however it ends.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from datamap.core.artifacts import META, digest, load_meta
from datamap.core.errors import UserError
from datamap.core.files import read_json_like
from datamap.core.locks import LOCK, is_locked

PENDING, RUNNING, FINISHED, FAILED, INTERRUPTED = "pending", "running", "finished", "failed", "interrupted"
DAMAGED = "damaged"  # status of a run_meta.json that cannot be read
PLAN = "suite.json"  # in the directory of a suite: what there is to run and to compare
LIKE_PLAN = {"name": str, "description": str, "baseline": str | None, "experiments": [
    {"name": str, "settings_hash": str, "seeds": [int], "control_of": str | None, "arguments": dict}]}
CONFIG, LOG = "config.json", "log.txt"
STOPPED = ("KeyboardInterrupt", "SystemExit: -1")  # Ctrl-C; Slurm's time limit, by way of submitit
PLACE_FLAGS = ("--output_dir", "--cartography_output_dir", "--cluster_assignments_path")
ATTEMPT_FLAGS = ("--overwrite", "--resume_from_checkpoint")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One training or evaluation of a suite, in a directory of its own. ``config``: what its config.json says."""

    experiment: str
    seed: int
    identity: str
    directory: Path
    argv: tuple[str, ...]
    config: dict[str, Any] = field(compare=False)
    records: bool = False  # training dynamics, which its checkpoints must hold too
    selection: tuple[str, ...] = ()  # argv of select_subset.py, whose choice it trains on

    def __str__(self) -> str:
        return f"{self.experiment}, seed {self.seed}"


def identity_of(settings_hash: str, seed: int) -> str:
    """16 hex digits: equal for two runs exactly when they train and evaluate the same on the same data."""
    return digest([settings_hash, seed])


def run_name(experiment: str, seed: int, identity: str) -> str:
    return f"{experiment}-seed{seed}-{identity[:8]}"


def read_plan(directory: Path) -> dict[str, Any]:
    if not (directory / PLAN).exists():
        raise UserError(f"{directory} holds no {PLAN}; run_experiments.py --mode run --suite NAME writes it")
    return read_json_like(directory / PLAN, LIKE_PLAN, "run_experiments.py --mode run")


def planned_runs(directory: Path, plan: Mapping[str, Any]) -> Iterator[tuple[str, int, Path]]:
    """``(experiment, seed, directory of the run)`` of every run of the plan, experiment by experiment."""
    for each in plan["experiments"]:
        for seed in each["seeds"]:
            identity = identity_of(each["settings_hash"], seed)
            yield each["name"], seed, directory / run_name(each["name"], seed, identity)


# --- states -------------------------------------------------------------------------------------------------------


def state_of(directory: Path) -> str:
    """The state of a run, from its directory alone."""
    state = state_unlocked(directory)
    return RUNNING if state != FINISHED and is_locked(directory / LOCK) else state


def state_unlocked(directory: Path) -> str:
    """How a run was left that no other process is at."""
    meta = meta_of(directory)
    if meta is None:
        return PENDING
    if meta["status"] == "failed":
        return INTERRUPTED if meta.get("error", "").startswith(STOPPED) else FAILED
    return FINISHED if is_evaluated(directory, meta) and is_tidy(directory) else INTERRUPTED


def meta_of(directory: Path) -> dict[str, Any] | None:
    """The run_meta.json of a run; with the status ``damaged`` where it cannot be read, None where there is none."""
    try:
        meta = load_meta(directory) if directory.is_dir() else None
        if meta is None or (isinstance(meta, dict) and "status" in meta):
            return meta
        reason = f"{directory / META} says nothing of a run"
    except UserError as error:
        reason = str(error)
    logger.warning(f"{reason}: it counts as interrupted")
    return {"status": DAMAGED, "arguments": {}}


def is_tidy(directory: Path) -> bool:
    """Whether its config.json is that of the run, not that of the model which it trained."""
    try:
        return (directory / CONFIG).exists() and bool(read_json_like(directory / CONFIG, {"identity": str}, "a suite"))
    except UserError:
        return False


def is_evaluated(directory: Path, meta: Mapping[str, Any]) -> bool:
    """Whether the evaluation is finished, a stage of its own behind the training, and what it wrote is there."""
    if meta["status"] != "finished" or meta.get("arguments", {}).get("do_train"):
        return False
    files = [(directory / name, size) for name, size in meta.get("outputs", {}).items()]
    return all(file.exists() and file.stat().st_size >= size for file, size in files)


def is_of(run: Run, meta: Mapping[str, Any]) -> bool:
    """Whether it was this run that left its directory so, not a command typed by hand with other flags."""

    def settings(words: Sequence[str]) -> list[str]:
        return [word for word in words if word.partition("=")[0] not in (*PLACE_FLAGS, *ATTEMPT_FLAGS)]

    return settings(shlex.split(meta.get("command", ""))) == settings(["run.py", *run.argv])


def seconds_of(meta: Mapping[str, Any]) -> float | None:
    """How long a run took from its first start to its last end, breaks between left out."""
    stages = [each for each in [meta, *meta.get("history", [])] if each.get("started") and each.get("finished")]
    spans = [datetime.fromisoformat(each["finished"]) - datetime.fromisoformat(each["started"]) for each in stages]
    return sum(span.total_seconds() for span in spans) if spans else None


def last_lines(file: Path, count: int) -> list[str]:
    """The last lines of a text file that are not blank; none where there is no file."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    return [line for line in text.splitlines() if line.strip()][-count:]
