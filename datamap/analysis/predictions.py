"""Predictions that run.py wrote, by id."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from datamap.core.artifacts import artifact_file
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import read_jsonl
from datamap.core.splits import Split

logger = logging.getLogger(__name__)


def read_predictions(
    path: str | Path, column: str, kind: Any, expected: str
) -> tuple[Path, dict[str, dict[str, Any]]]:
    """eval_predictions.jsonl, or any JSON Lines with ``id`` and ``column``, and its rows by id.

    kind: the types of a prediction, ``expected`` says them; a prediction may be null.
    """
    file = artifact_file(path, "eval_predictions.jsonl", "run.py --do_eval")
    lines = read_jsonl(file, ("id", column))
    rows = {str(row["id"]): row for row in lines}
    if len(rows) < len(lines):
        raise UserError(f"{file}: {len(lines) - len(rows):,} ids occur more than once; one prediction per example")
    wrong = [example for example, row in rows.items() if not isinstance(row[column], kind | None)]
    if wrong:
        raise UserError(f"{file}: {column} of {name_a_few(wrong)} is not a {expected}")
    return file, rows


def predictions_of(path: str | Path, split: Split) -> list[Any]:
    """The prediction for every example of the split, None where the file has none: ``predicted_answer``, a text, for
    a task with error rules, else ``predicted_label``, a text or a number.

    Predictions of another dataset (no shared ids, or another text under a shared id) are a UserError.
    """
    column, kind, expected = "predicted_label", str | int, "label"
    if split.task.has_error_rules:
        column, kind, expected = "predicted_answer", str, "text"
    file, rows = read_predictions(path, column, kind, expected)
    this = f"{split.name} [{split.split}]"
    shared = [example for example in split.ids if example in rows]
    if not shared:
        raise UserError(
            f"{file} holds predictions of {name_a_few(rows)} and shares no ids with {this}; "
            f"run.py --do_eval --eval_split {split.split} predicts that"
        )
    for name in split.task.text_columns:
        other = [
            example
            for example, text in zip(split.ids, split.data[name][:], strict=True)
            if example in rows and rows[example].get(name, text) != text
        ]
        if other:
            raise UserError(f"{file} has another {name} than {this} under the same ids ({name_a_few(other)})")
    logger.info(f"{file} covers {len(shared):,} of {len(split.ids):,} examples ({len(shared) / len(split.ids):.1%})")
    return [rows[example][column] if example in rows else None for example in split.ids]
