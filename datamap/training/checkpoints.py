"""Checkpoints: which one a run goes on from, and which epochs it keeps."""

from __future__ import annotations

import argparse
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamap.core.artifacts import model_meta
from datamap.core.errors import UserError
from datamap.core.files import nulls_for_nan, read_json, write_json
from datamap.core.splits import Split

# What decides which rows are trained on in which order, and what is recorded of them.
RESUMED_WITH = (
    "seed", "data_seed", "max_train_samples", "windows", "ablations", "confidence_type", "filters",
    "train_ids", "per_device_train_batch_size", "gradient_accumulation_steps", "model", "hidden_size", "num_layers",
    "vocab_size",
)

logger = logging.getLogger(__name__)


def checkpoint_to_resume(args: argparse.Namespace, train: Split) -> str | None:
    """The checkpoint that --resume_from_checkpoint means; None for a fresh start, which deletes nothing unasked."""
    found = _checkpoints(args.output_dir)
    meta = model_meta(args.output_dir)
    if not args.resume_from_checkpoint:
        if found and not args.overwrite and (meta is None or meta["status"] != "finished"):
            raise UserError(
                f"{args.output_dir} holds {found[-1].name} of an unfinished run: go on from it with "
                "--resume_from_checkpoint, or start again with --overwrite"
            )
        return None
    if args.resume_from_checkpoint == "last":
        whole = whole_checkpoints(args.output_dir, args.enable_cartography)
        if not whole:
            raise UserError(f"{args.output_dir} holds no whole checkpoint to resume from; start without the flag")
        if whole[-1] != found[-1]:
            logger.warning(f"{found[-1].name} is not whole, it was being written; resuming from {whole[-1].name}")
        checkpoint = whole[-1]
    else:
        checkpoint = Path(args.resume_from_checkpoint)
        if not _is_whole(checkpoint, args.enable_cartography):
            raise UserError(f"{checkpoint} is not a whole checkpoint of such a run; name another checkpoint-N")
    # The best so far must have been measured on the same examples.
    watched = ("eval_split", "max_eval_samples") if args.keep_top_epochs else ()
    for name in (*RESUMED_WITH, *watched):
        before, now = (meta or {}).get("arguments", {}).get(name), getattr(args, name, None)
        if meta and before != now:
            raise UserError(f"{args.output_dir} was trained with {name} {before}, not {now}: resume with the flags it "
                            "was started with")
    recorded = [identity["fingerprint"] for identity in (meta or {}).get("datasets", [])]
    if recorded and train.fingerprint not in recorded:
        raise UserError(
            f"{args.output_dir} was trained on other data than {args.dataset} [{args.train_split}]; resume with the "
            "dataset it was started with"
        )
    return str(checkpoint)


def whole_checkpoints(output_dir: str | Path, with_dynamics: bool) -> list[Path]:
    """The checkpoints in a directory that were written to their end, the newest last."""
    return [path for path in _checkpoints(output_dir) if _is_whole(path, with_dynamics)]


def _checkpoints(output_dir: str | Path) -> list[Path]:
    numbered = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"\d+", path.name[11:])]
    return sorted(numbered, key=lambda path: int(path.name[11:]))


def _is_whole(checkpoint: Path, with_dynamics: bool) -> bool:
    needed = ["trainer_state.json"] + (["training_dynamics.npz"] if with_dynamics else [])
    return all((checkpoint / name).exists() for name in needed)


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
        for path in _checkpoints(self.output_dir):
            if path.name not in names:
                shutil.rmtree(path)
        write_json(self.output_dir / self.FILE, nulls_for_nan(self.entries))
