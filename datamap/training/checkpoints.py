"""Checkpoints: which are whole, and those of which epochs are kept."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamap.core.errors import UserError
from datamap.core.files import nulls_for_nan, read_json, sha256_of, write_json

MANIFEST = "manifest.json"
DYNAMICS = "training_dynamics.npz"
RANDOM_STATES = "rng_state_*.pth"  # one a process; of a single one rng_state.pth


def write_manifest(checkpoint: Path, seconds: float | None = None) -> None:
    """Say which files belong to a checkpoint, now that all are written; without this, or with others, it is not
    whole. seconds: that the training took up to it."""
    files = {path.relative_to(checkpoint).as_posix(): path for path in sorted(checkpoint.rglob("*")) if path.is_file()}
    files.pop(MANIFEST, None)  # of one that stood here before
    write_json(checkpoint / MANIFEST, {"seconds": seconds, "files": {
        name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for name, path in files.items()
    }})


def seconds_until(checkpoint: str | Path | None) -> float | None:
    """That a training took up to this checkpoint of it, over all its processes; 0 without one, None where its manifest
    does not say (an older version wrote it)."""
    return 0.0 if checkpoint is None else read_json(Path(checkpoint) / MANIFEST).get("seconds")


def damage_of(checkpoint: str | Path, with_dynamics: bool) -> str | None:
    """What keeps a training from going on from a checkpoint; None where every file is there as it was written."""
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        return "there is no such directory"
    if not (checkpoint / MANIFEST).is_file():
        return f"it holds no {MANIFEST}, which is written last"
    try:
        written = read_json(checkpoint / MANIFEST)["files"]
        files = {name: (each["size"], each["sha256"]) for name, each in written.items()}
    except (UserError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is damaged"
    if not any("optim" in name for name in files):
        return "it was saved without its optimizer (--save_only_model)"
    if with_dynamics and DYNAMICS not in files:
        return f"it was saved without training dynamics ({DYNAMICS})"
    for name, (size, sha256) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes, {size:,} when it was written"
        if sha256_of(path) != sha256:
            return f"{name} is damaged"
    return None


def has_whole_checkpoint(output_dir: str | Path, with_dynamics: bool) -> bool:
    return any(damage_of(path, with_dynamics) is None for path in reversed(checkpoints_in(output_dir)))


def checkpoints_in(output_dir: str | Path) -> list[Path]:
    """The newest last."""
    numbered = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"\d+", path.name[11:])]
    return sorted(numbered, key=lambda path: int(path.name[11:]))


def processes_of(checkpoint: Path) -> int:
    """Of how many processes the training was that wrote it."""
    return max(1, len(list(checkpoint.glob(RANDOM_STATES))))


class TopEpochs:
    """The best epochs of a training: their checkpoints stay in ``output_dir``, ``top_epochs.json`` tells of them.

    metric: name in the metrics of an evaluation, without ``eval_``. An epoch that only equals an earlier one ranks
    behind it. The newest checkpoint stays too until the training ends, for a resume.
    """

    FILE = "top_epochs.json"

    def __init__(self, output_dir: str | Path, keep: int, metric: str, greater_is_better: bool):
        self.output_dir, self.keep, self.metric = Path(output_dir), keep, metric
        self.sign = 1 if greater_is_better else -1
        self.entries: list[dict[str, Any]] = []

    def restore(self, evaluated: Sequence[tuple[float, int, dict[str, float]]], standing: bool) -> None:
        """Go on after these evaluations (epoch, step, metrics); with ``standing`` only those whose checkpoint stands.

        Killed between checkpoint and list, a run leaves one that the list lacks: its slices are lost, not its rank.
        """
        file = self.output_dir / self.FILE
        written = {entry["step"]: entry["slices"] for entry in (read_json(file) if file.exists() else [])}
        for epoch, step, metrics in evaluated:
            if not standing or (self.output_dir / f"checkpoint-{step}").exists():
                self.add(epoch, step, metrics, written.get(step, []))

    def add(self, epoch: float, step: int, metrics: dict[str, float], slices: Sequence[dict[str, Any]]) -> None:
        """Rank an evaluated epoch; ``metrics`` without prefix, ``slices`` the rows of slice_metrics.csv."""
        entry = {"rank": 0, "epoch": epoch, "step": step, "checkpoint": f"checkpoint-{step}",
                 "metrics": metrics, "slices": list(slices)}
        known = [other for other in self.entries if other["step"] != step]
        ranked = sorted([*known, entry], key=self._order)
        self.entries = [{**one, "rank": rank} for rank, one in enumerate(ranked[: self.keep], 1)]

    def _order(self, entry: dict[str, Any]) -> tuple[bool, float, int]:
        value = entry["metrics"][self.metric]
        lost = value is None or value != value  # diverged: behind all others
        return lost, 0.0 if lost else -self.sign * value, entry["step"]

    def save(self, newest_step: int | None) -> None:
        """Write the list and delete the checkpoints that are not on it; the newest stays unless None."""
        names = {entry["checkpoint"] for entry in self.entries} | {f"checkpoint-{newest_step}"}
        for path in checkpoints_in(self.output_dir):
            if path.name not in names:
                shutil.rmtree(path)
        write_json(self.output_dir / self.FILE, nulls_for_nan(self.entries))
