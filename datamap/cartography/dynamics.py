"""Training dynamics in files, one an epoch: what our recorder writes, and what other trainers log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamap.core.artifacts import artifact_file, has_open_stage
from datamap.core.errors import UserError, name_a_few, repeated
from datamap.core.files import atomic, read_json, read_jsonl

MADE_BY = "run.py --do_train --enable_cartography"
DYNAMICS_FILES = "training_dynamics_epoch_*.json"


def holds_dynamics(directory: str | Path) -> bool:
    return any(Path(directory).glob(DYNAMICS_FILES))


def dynamics_file(directory: str | Path, epoch: int) -> Path:
    return Path(directory) / f"training_dynamics_epoch_{epoch}.json"


def write_dynamics(directory: str | Path, epoch: int, ids: Sequence[str], columns: Mapping[str, np.ndarray]) -> None:
    """Write one epoch (counted from 1): ``{"epoch": N, "id": [...], "confidence": [...], ...}``.

    Each column has one value per id; floats are kept to six decimals, so that a million examples stay below 120 MB.
    """
    content: dict[str, Any] = {"epoch": epoch, "id": list(ids)}
    for name, values in columns.items():
        if values.dtype.kind == "f":
            if bad := [ids[row] for row in np.flatnonzero(~np.isfinite(values)).tolist()]:
                raise UserError(
                    f"training diverged: {name} of {len(bad):,} examples ({name_a_few(bad)}) is not a number in epoch "
                    f"{epoch}; lower --learning_rate or set --max_grad_norm"
                )
            values = np.round(values.astype(np.float64), 6) + 0.0  # + 0.0 makes of -0.0 a 0.0
        content[name] = values.tolist()
    with atomic(dynamics_file(directory, epoch)) as temporary:
        temporary.write_text(json.dumps(content, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")


def read_dynamics(directory: str | Path) -> Iterator[dict[str, Any]]:
    """The epochs of a cartography directory in order: ``id`` a list, every other column an array.

    UserError for what is not whole, and for a recording that goes on or has failed, unless by a stage of this process.
    """
    is_ours = has_open_stage(directory)
    for epoch, path in _numbered_files(directory, "training_dynamics_epoch_N.json", MADE_BY):
        if not is_ours:
            artifact_file(path, path.name, MADE_BY)
        content = read_json(path)
        if not isinstance(content, dict) or not {"id", "confidence", "correct"} <= content.keys():
            raise UserError(f"{path}: expected columns id, confidence, correct, ...; it was not written by {MADE_BY}")
        if other := [name for name, values in content.items() if name != "epoch" and not isinstance(values, list)]:
            raise UserError(f"{path}: {name_a_few(other)} is no column, one value per example; is the file whole?")
        lengths = {name: len(values) for name, values in content.items() if name != "epoch"}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{path}: columns of different lengths {lengths}; is the file whole?")
        if content.get("epoch", epoch) != epoch:
            raise UserError(f"{path} says that it is of epoch {content['epoch']!r:.60}, its name says {epoch}; which "
                            "is right? the files of one training are numbered from 1")
        columns = {name: np.asarray(content[name]) for name in lengths if name != "id"}
        for name, values in columns.items():
            # numpy takes the text "False" for true, and so does bool(0.5).
            is_right = values.dtype.kind in "bif" and (name != "correct" or np.isin(values, (0, 1)).all())
            if not is_right and len(values):
                expected = "true or false" if name == "correct" else "a number"
                example, value = _unfit(content, name)
                raise UserError(f"{path}: {name} of {example!r} is {value!r:.60}; expected {expected} for every "
                                "example")
        yield {"epoch": epoch, "id": [str(example) for example in content["id"]], **columns}


def _unfit(content: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """The first id, and its value, that is not what a column holds."""
    pairs = list(zip(content["id"], content[name], strict=True))
    unfit = (each for each in pairs
             if not isinstance(each[1], bool | int | float) or name == "correct" and each[1] not in (0, 1))
    return next(unfit, pairs[0])


def read_logged_logits(directory: str | Path) -> Iterator[dict[str, Any]]:
    """Dynamics logged by another trainer, as classification: ``dynamics_epoch_N.jsonl`` (also .gz) with one record
    ``{"guid": ..., "logits_epoch_N": [...], "gold": class index}`` per example (the form of allenai/cartography).

    ``gold`` is a column too. Numbers may be text ("0.5"). The gold class of a guid and the number of classes are the
    same in every epoch, or it is a UserError.
    """
    gold_of: dict[str, int] = {}
    classes: int | None = None
    epochs = _numbered_files(directory, "dynamics_epoch_N.jsonl", "another trainer's log")
    for epoch, (number, path) in enumerate(epochs, 1):
        key = f"logits_epoch_{number}"
        ids, gold, logits = [], [], []
        for record in read_jsonl(path, ("guid", key, "gold")):
            try:
                ids.append(str(record["guid"]))
                gold.append(_class_index(record["gold"]))
                if not isinstance(record[key], list):
                    raise TypeError(f"{key} is {record[key]!r:.60}")
                logits.append([float(value) for value in record[key]])
            except (TypeError, ValueError, OverflowError) as error:
                raise UserError(
                    f"{path}, guid {record['guid']!r}: expected a list of numbers in {key} and a class index in gold "
                    f"({error})"
                ) from error
        if not ids:
            raise UserError(f"{path} is empty")
        if twice := repeated(ids):
            raise UserError(f"{path}: a guid occurs more than once ({name_a_few(twice)})")
        if len({len(row) for row in logits}) > 1:
            raise UserError(f"{path}: {key} has rows of different lengths")
        if classes is not None and len(logits[0]) != classes:
            raise UserError(f"{path}: {key} has {len(logits[0])} classes, the epochs before it have {classes}; are "
                            "the files of one training?")
        classes = len(logits[0])
        statistics = gold_statistics(np.asarray(logits, dtype=np.float64), np.asarray(gold))
        pairs = list(zip(ids, gold, strict=True))
        if changed := [example for example, value in pairs if gold_of.setdefault(example, value) != value]:
            raise UserError(f"{path}: gold of {len(changed):,} examples ({name_a_few(changed)}) is another class than "
                            "in an earlier epoch; are the files of one training, and a guid of one example?")
        yield {"epoch": epoch, "id": ids, "gold": np.asarray(gold), **statistics}


def _class_index(value: Any) -> int:
    """A whole number, also as text or as 1.0; ValueError for others, which ``int`` would round."""
    if isinstance(value, bool) or float(value) != int(float(value)):
        raise ValueError(f"gold is {value!r}")
    return int(float(value))


def gold_statistics(logits: np.ndarray, gold: np.ndarray) -> dict[str, np.ndarray]:
    """Per example, from logits (N, C) and gold classes (N,): confidence, correct, loss, aum (margin), el2n; each (N,).

    confidence: probability of the gold class, 0..1. aum: gold logit minus the largest other logit, low is suspicious
    (Pleiss 2020). el2n: L2 norm of softmax minus one-hot, 0..sqrt(2), high is hard (Paul 2021).
    """
    if gold.min() < 0 or gold.max() >= logits.shape[1] or logits.shape[1] < 2:
        raise UserError(f"gold labels run from {gold.min()} to {gold.max()}, logits have {logits.shape[1]} classes")
    rows = np.arange(len(gold))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    difference = np.exp(log_p)
    difference[rows, gold] -= 1
    others = logits.copy()
    others[rows, gold] = -np.inf
    return {
        "confidence": np.exp(log_p[rows, gold]),
        "correct": logits.argmax(axis=1) == gold,
        "loss": -log_p[rows, gold],
        "aum": logits[rows, gold] - others.max(axis=1),
        "el2n": np.sqrt((difference**2).sum(axis=1)),
    }


def _numbered_files(directory: str | Path, name: str, made_by: str) -> list[tuple[int, Path]]:
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; {made_by} writes one")
    pattern = re.escape(name).replace("N", r"(\d+)") + r"(?:\.gz)?"
    matches = [(re.fullmatch(pattern, path.name), path) for path in directory.iterdir()]
    files = sorted((int(match[1]), path) for match, path in matches if match)
    if not files:
        raise UserError(f"{directory} holds no {name}; {made_by} writes them")
    numbers = [number for number, _ in files]
    if numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        there = ", ".join(map(str, numbers))
        raise UserError(f"{directory}: {name} is there for N = {there} only; one is missing")
    return files
