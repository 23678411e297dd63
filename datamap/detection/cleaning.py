"""A dataset as the decisions on its suspects want it: what was wrong dropped or put right, and a report of both."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.artifacts import check_same_dataset
from datamap.core.errors import UserError, name_a_few
from datamap.core.splits import Split
from datamap.detection.decisions import (
    NO_ANSWER,
    answer_place,
    check_decided_ids,
    idle_fixes_kept,
    label_number,
    read_decisions,
)

if TYPE_CHECKING:
    import datasets
    import pandas as pd

PERSON, DROP_ABOVE = "person", "drop_above"  # by whom it was decided

logger = logging.getLogger(__name__)


def clean(
    loaded: Split, chosen: Iterable[str], path: str, drop_above: float | None = None
) -> tuple[Split, dict[str, Any]]:
    """Of ``loaded`` the ``chosen`` without what is to be dropped, and with what is to be fixed put right; and
    the content of cleaning_report.json.

    chosen: ids that can be trained on and that other filters leave; an example that only a fix makes trainable comes
    beside them. path: the decisions (``read_decisions``). drop_above: what has a higher suspicion in that file is
    dropped too, unless a person decided on it. UserError where a decision cannot be carried out: unknown ids, a label
    that the data do not have, an answer that does not stand in its context.
    """
    table = read_decisions(path).set_index("id")
    check_decided_ids(path, table.index[table["decision"] != ""], loaded)
    changed = check_same_dataset(path, table.index, loaded)
    known = idle_fixes_kept(table[table.index.isin(set(loaded.ids) - changed)], loaded, path)
    data, fixed = _fixed(loaded, known.loc[known["decision"] == "fix", "corrected"].to_dict(), path)
    task, ids = loaded.task, np.asarray(loaded.ids, dtype=object)
    mended = ids[task.is_usable(data) & ~task.is_usable(loaded.data)]
    among = {*chosen, *mended}

    dropped = [{"id": example, "decided_by": PERSON} for example in known.index[known["decision"] == "drop"]]
    if drop_above is not None:
        suspicion = _suspicion(known[known["decision"] == ""], path)
        dropped += [{"id": example, "decided_by": DROP_ABOVE, "suspicion": value}
                    for example, value in suspicion.items() if value > drop_above]
    kept = [{"id": example, "decided_by": PERSON} for example in known.index[known["decision"] == "keep"]]
    decided = {each["id"] for each in (*dropped, *fixed, *kept)}
    gone = {each["id"] for each in dropped}
    rows = [row for row, example in enumerate(ids) if example in among and example not in gone]
    report = {
        "before": len(ids), "after": len(rows), "drop_above": drop_above,
        **{name: [each for each in records if each["id"] in among]
           for name, records in {"dropped": dropped, "fixed": fixed, "kept": kept}.items()},
        "undecided": len(among - decided),
        "left_out_before": sorted(decided - among),
        "changed_since": sorted(changed & set(table.index[table["decision"] != ""])),
    }
    if not rows:
        raise UserError(f"{path} leaves none of {len(ids):,} examples")
    cleaned = dataclasses.replace(loaded, data=data.select(rows))
    task.check_training_data(cleaned.data, f"{loaded.name} after cleaning")
    return cleaned, report


def summary(report: Mapping[str, Any]) -> str:
    """What was done, in a line."""
    by_hand = sum(each["decided_by"] == PERSON for each in report["dropped"])
    parts = [f"dropped {by_hand:,} as a person decided"]
    if report["drop_above"] is not None:
        parts.append(f"{len(report['dropped']) - by_hand:,} with a suspicion above {report['drop_above']:g}")
    text = f"{' and '.join(parts)}, fixed {len(report['fixed']):,}, kept {len(report['kept']):,} by decision, "
    text += f"{report['undecided']:,} undecided"
    several = sum(each.get("places", 1) > 1 for each in report["fixed"])
    if several:
        text += (f"; {several:,} corrected answers stand more than once in their contexts: the place nearest the old "
                 "one was taken")
    return text


def _suspicion(undecided: pd.DataFrame, path: str) -> pd.Series:
    """Suspicion as the file has it, 0..1; German spreadsheets write 0,93."""
    import pandas as pd

    given = undecided.loc[undecided["suspicion"] != "", "suspicion"]
    values = pd.to_numeric(given.str.replace(",", "."), errors="coerce")
    if undecided.shape[0] and given.empty:
        raise UserError(f"{path} has no suspicion to drop above; --drop_above needs that column as it was written")
    wrong = ~values.between(0, 1)
    if wrong.any():
        example = given.index[wrong.to_numpy().argmax()]
        raise UserError(f"{path}: the suspicion of {example!r} is {given[example]!r}; expected a number from 0 to 1 "
                        "(a spreadsheet may have taken it for another number: import the column as text)")
    return values


def _fixed(loaded: Split, fixes: Mapping[str, str], path: str) -> tuple[datasets.Dataset, list[dict[str, Any]]]:
    """The data with these gold labels or answers, and what was changed, a record each."""
    if not fixes:
        return loaded.data, []
    rows = {example: row for row, example in enumerate(loaded.ids)}
    chosen = {rows[example]: (example, text) for example, text in fixes.items()}
    mend = _with_answers if loaded.task.name == "qa" else _with_labels
    column, values, changes = mend(loaded, chosen, path)
    kind = loaded.data.features[column]
    data = loaded.data.remove_columns(column).add_column(column, values, feature=kind)  # type: ignore[arg-type]
    return data.select_columns(loaded.data.column_names), [{"decided_by": PERSON, **each} for each in changes]


def _with_labels(
    loaded: Split, fixes: Mapping[int, tuple[str, str]], path: str
) -> tuple[str, list[int], list[dict[str, Any]]]:
    column = loaded.task.label_column
    names, labels, changes, unknown = loaded.data.features[column].names, loaded.data[column][:], [], {}
    for row, (example, text) in fixes.items():
        if (number := label_number(names, text)) is None:
            unknown[example] = text
            continue
        changes.append({"id": example, "was": names[labels[row]], "corrected": names[number]})
        labels[row] = number
    if unknown:
        raise UserError(f"{path}: {len(unknown):,} corrected labels are none of the data's ({_named(unknown)}); there "
                        f"is {name_a_few(names, 20)}")
    return column, labels, changes


def _with_answers(
    loaded: Split, fixes: Mapping[int, tuple[str, str]], path: str
) -> tuple[str, list[dict[str, list]], list[dict[str, Any]]]:
    """The first gold answer is replaced, which is the one that was shown and is trained on."""
    contexts, answers = loaded.data["context"][:], loaded.data["answers"][:]
    changes: list[dict[str, Any]] = []
    absent = {}
    for row, (example, text) in fixes.items():
        answer = answers[row]
        was = {name: next(iter(values), None) for name, values in answer.items()}
        if text.strip().casefold() == NO_ANSWER:
            answers[row] = {"text": [], "answer_start": []}
            changes.append({"id": example, "was": was["text"], "corrected": None})
            continue
        place = answer_place(contexts[row], text, was["answer_start"] or 0)
        if place is None:
            absent[example] = text
            continue
        start, end, places = place
        found = contexts[row][start:end]
        answers[row] = {"text": [found, *answer["text"][1:]], "answer_start": [start, *answer["answer_start"][1:]]}
        changes.append({"id": example, "was": was["text"], "corrected": found, "answer_start": start,
                        "places": places})
    if absent:
        raise UserError(f"{path}: {len(absent):,} corrected answers do not stand in their contexts "
                        f"({_named(absent)}); copy them from there, without the [[ ]] of the mark")
    return "answers", answers, changes


def _named(wrong: Mapping[str, str]) -> str:
    shown = [f"id {example!r}: {text!r:.60}" for example, text in list(wrong.items())[:3]]
    return ", ".join(shown) + (", ..." if len(wrong) > len(shown) else "")
