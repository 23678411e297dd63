"""Training dynamics in files, one an epoch: what our recorder writes, and what other trainers log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.arrow_text import json_columns
from datamap.core.artifacts import artifact_file, has_open_stage
from datamap.core.errors import UserError, name_a_few, repeated
from datamap.core.files import atomic, read_bytes, read_json, read_jsonl
from datamap.core.parquet import (
    UniqueIds,
    format_for,
    frame_of,
    ids_of,
    open_parquet,
    parquet_blocks,
    read_parquet,
    row_groups,
)

if TYPE_CHECKING:
    import pandas as pd

MADE_BY = "run.py --do_train --enable_cartography"
DYNAMICS_FILES = ("training_dynamics_epoch_*.json", "training_dynamics_epoch_*.parquet")
NEEDED = ("id", "confidence", "correct")
MEANS = ("loss", "aum", "el2n", "start_confidence", "end_confidence", "label_confidence")  # besides, where recorded


def holds_dynamics(directory: str | Path) -> bool:
    return any(next(Path(directory).glob(pattern), None) for pattern in DYNAMICS_FILES)


def dynamics_file(directory: str | Path, epoch: int, artifact_format: str = "json") -> Path:
    return Path(directory) / f"training_dynamics_epoch_{epoch}.{artifact_format}"


def write_dynamics(
    directory: str | Path, epoch: int, ids: Sequence[str], columns: Mapping[str, np.ndarray],
    artifact_format: str | None = None,
) -> None:
    """Write one epoch (counted from 1): ``{"epoch": N, "id": [...], "confidence": [...], ...}``, or as Parquet a row
    an example with the columns ``id``, ``confidence``, ...

    Each column has one value per id; floats are kept to six decimals, so that a million examples stay below 120 MB.
    artifact_format: "json" or "parquet" (default: by the number of ids, ``format_for``).
    """
    content: dict[str, Any] = {}
    for name, values in columns.items():
        if values.dtype.kind == "f":
            if bad := [ids[row] for row in np.flatnonzero(~np.isfinite(values)).tolist()]:
                raise UserError(
                    f"training diverged: {name} of {len(bad):,} examples ({name_a_few(bad)}) is not a number in epoch "
                    f"{epoch}; lower --learning_rate or set --max_grad_norm"
                )
            values = np.round(values.astype(np.float64), 6) + 0.0  # + 0.0 makes of -0.0 a 0.0
        content[name] = values
    form = format_for(len(ids), artifact_format)
    with atomic(dynamics_file(directory, epoch, form)) as temporary:
        if form == "parquet":
            import pyarrow as pa

            with row_groups(temporary) as write:
                write(pa.table({"id": pa.array(ids, pa.string()), **content}))
        else:
            content = {"epoch": epoch, "id": list(ids), **{name: each.tolist() for name, each in content.items()}}
            temporary.write_text(json.dumps(content, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")


def read_dynamics(directory: str | Path) -> Iterator[dict[str, Any]]:
    """The epochs of a cartography directory in order: ``id`` a list, every other column an array.

    UserError for what is not whole, and for a recording that goes on or has failed, unless by a stage of this process.
    """
    before, ids = None, list[str]()
    for epoch, path in dynamics_files(directory):
        if path.suffix == ".parquet":
            frame = read_parquet(path, NEEDED)
            ids = frame.pop("id").to_numpy(dtype=object).tolist()
            yield _checked_frame(path, epoch, ids, frame)
            continue
        columns = json_columns(read_bytes(path)) or {}
        if set(NEEDED) <= columns.keys() and columns["correct"].dtype == bool:  # else a value may be wrong
            _check_epoch(path, epoch, columns.pop("epoch"))
            found = columns.pop("id")
            if before is None or not found.equals(before):  # usually the same in the same order every epoch
                before, ids = found, found.to_pylist()
            yield {"epoch": epoch, "id": ids, **columns}
            continue
        content = read_json(path)
        if not isinstance(content, dict) or not set(NEEDED) <= content.keys():
            raise UserError(f"{path}: expected columns id, confidence, correct, ...; it was not written by {MADE_BY}")
        if other := [name for name, values in content.items() if name != "epoch" and not isinstance(values, list)]:
            raise UserError(f"{path}: {name_a_few(other)} is no column, one value per example; is the file whole?")
        lengths = {name: len(values) for name, values in content.items() if name != "epoch"}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{path}: columns of different lengths {lengths}; is the file whole?")
        _check_epoch(path, epoch, content.get("epoch", epoch))
        yield {"epoch": epoch, "id": [str(example) for example in content["id"]],
               **_checked(path, content, {name: np.asarray(content[name]) for name in lengths if name != "id"})}


def dynamics_files(directory: str | Path) -> list[tuple[int, Path]]:
    """The files of the epochs of a cartography directory, in order; UserError as of ``read_dynamics``."""
    files = _numbered_files(directory, "training_dynamics_epoch_N.json", MADE_BY, or_ending="parquet")
    if not has_open_stage(directory):
        for _, path in files:
            artifact_file(path, path.name, MADE_BY)
    return files


def _check_epoch(path: Path, epoch: int, said: Any) -> None:
    if said != epoch:
        raise UserError(f"{path} says that it is of epoch {said!r:.60}, its name says {epoch}; which "
                        "is right? the files of one training are numbered from 1")


def _checked(path: Path, content: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``columns``, where they hold what they should. content: lists of the same, with the ids, for the message."""
    for name, values in columns.items():
        # numpy takes the text "False" for true, and so does bool(0.5).
        is_right = values.dtype.kind in "bif" and (name != "correct" or np.isin(values, (0, 1)).all())
        if not is_right and len(values):
            expected = "true or false" if name == "correct" else "a number"
            example, value = _unfit(content, name)
            raise UserError(f"{path}: {name} of {example!r} is {value!r:.60}; expected {expected} for every "
                            "example")
    return dict(columns)


def _checked_frame(path: Path, epoch: int, ids: list[str], frame: pd.DataFrame) -> dict[str, Any]:
    """An epoch, or a block of one, from the table of a Parquet file without its ids."""
    if "epoch" in frame:  # of a file made elsewhere
        for said in frame.pop("epoch").unique().tolist():
            _check_epoch(path, epoch, said)
    columns = {name: frame[name].to_numpy() for name in frame.columns}
    wrong: dict[str, list[Any]] = {}
    for name, values in columns.items():
        if values.dtype.kind not in "bi" and frame[name].isna().any():
            columns[name] = np.array([None if each != each else each for each in values.tolist()], dtype=object)
        if columns[name].dtype.kind not in "bif" or name == "correct" and not np.isin(values, (0, 1)).all():
            wrong[name] = columns[name].tolist()
    return {"epoch": epoch, "id": ids, **_checked(path, {"id": ids, **wrong}, columns)}


# --- epochs of the same examples, in blocks ----------------------------------------------------------------------


def streamed_files(directory: str | Path) -> list[tuple[int, Path]] | None:
    """The files of the epochs where ``epoch_blocks`` can read them: Parquet, all with the same examples in the same
    order, none twice, as a training leaves them whose epochs are whole. None where they are not so."""
    files = dynamics_files(directory)
    if not all(path.suffix == ".parquet" for _, path in files):
        return None
    counts = []
    for _, path in files:
        with open_parquet(path, NEEDED) as file:
            counts.append(file.metadata.num_rows)
    if len(set(counts)) > 1:
        return None
    (first, first_path), *others = files
    unique, row = UniqueIds(f"epoch {first}"), 0
    following = [parquet_blocks(path, ["id"]) for _, path in others]
    for table, *rest in zip_longest(parquet_blocks(first_path, ["id"]), *following):
        ids = ids_of(first_path, table, row)
        for (_, path), other in zip(others, rest, strict=True):
            if not ids.equals(ids_of(path, other, row)):
                return None
        unique.add(ids)
        row += len(ids)
    unique.check(lambda: (ids_of(first_path, table) for table in parquet_blocks(first_path, ["id"])))
    return files


def epoch_blocks(files: Sequence[tuple[int, Path]]) -> Iterator[list[dict[str, Any]]]:
    """Block by block of ROWS_A_GROUP examples what every epoch says of them, as ``read_dynamics`` gives whole epochs.

    files: of ``streamed_files``. Memory of one block.
    """
    readers = []
    for _, path in files:
        with open_parquet(path) as file:
            names = [name for name in file.schema_arrow.names if name != "id" or path == files[0][1]]
        readers.append(parquet_blocks(path, names))
    row = 0
    for tables in zip(*readers, strict=True):
        found = ids_of(files[0][1], tables[0], row)
        ids = found.to_numpy(zero_copy_only=False).tolist()
        tables = (tables[0].drop_columns("id"), *tables[1:])
        yield [_checked_frame(path, epoch, ids, frame_of(path, table))
               for (epoch, path), table in zip(files, tables, strict=True)]
        row += len(ids)


def confidences(files: Sequence[tuple[int, Path]]) -> Iterator[np.ndarray]:
    """Epoch by epoch p of the gold label, (n,) float64. files: of ``streamed_files``."""
    for _, path in files:
        blocks = (np.asarray(table.column(0), dtype=np.float64) for table in parquet_blocks(path, ["confidence"]))
        yield np.concatenate([np.empty(0), *blocks])


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


def _numbered_files(
    directory: str | Path, name: str, made_by: str, or_ending: str | None = None
) -> list[tuple[int, Path]]:
    """or_ending: with which the files may end instead, all of them."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; {made_by} writes one")

    def found(ending: str) -> list[tuple[int, Path]]:
        pattern = re.escape(ending).replace("N", r"(\d+)") + r"(?:\.gz)?"
        matches = [(re.fullmatch(pattern, path.name), path) for path in directory.iterdir()]
        return sorted((int(match[1]), path) for match, path in matches if match)

    files, others = found(name), found(str(Path(name).with_suffix(f".{or_ending}"))) if or_ending else []
    if files and others:
        raise UserError(f"{directory} holds training dynamics in two forms ({files[0][1].name}, {others[0][1].name}), "
                        "and which are of this training cannot be told: take those of one form away")
    if others:
        files, name = others, str(Path(name).with_suffix(f".{or_ending}"))
    if not files:
        raise UserError(f"{directory} holds no {name}; {made_by} writes them")
    numbers = [number for number, _ in files]
    if numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        there = ", ".join(map(str, numbers))
        raise UserError(f"{directory}: {name} is there for N = {there} only; one is missing")
    return files
