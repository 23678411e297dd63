"""run.py --plant_errors: a training split with errors in it, of which is known where they are and what they are.

The errors are drawn by --plant_seed alone, so that runs with other seeds, and a resumed one, find the same. Nothing
but a benchmark reads planted_errors.csv.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.errors import UserError
from datamap.core.flags import fraction, seed_number
from datamap.core.splits import Split, content_fingerprint, load_split
from datamap.demo.planting import LABEL_KINDS, plant_in_labels, plant_in_questions
from datamap.tasks.spans import stands_at

if TYPE_CHECKING:
    import datasets

    from datamap.tasks.base import Task

PLANTED_DATA, PLANTED_FILE = "planted_data", "planted_errors.csv"

logger = logging.getLogger(__name__)


def plants_errors(args: argparse.Namespace) -> bool:
    return hasattr(args, "plant_errors")


def add_planting_flags(group: Any) -> None:
    """None has a default: the arguments of runs that do not use them tell what those are."""
    group.add_argument("--plant_errors", type=fraction, default=argparse.SUPPRESS, metavar="SHARE",
                       help="to try out what finds errors: make this share of what is trained on wrong, 0..1 "
                            "(planted_errors.csv says which)")
    group.add_argument("--plant_seed", type=seed_number, default=argparse.SUPPRESS, metavar="N",
                       help="which errors: --seed has no say in it (default: 0)")
    group.add_argument("--plant_kind", choices=LABEL_KINDS, default=argparse.SUPPRESS,
                       help="wrong labels: any other (the default), one that --plant_confusion names, or one that a "
                            "model of words finds plausible")
    group.add_argument("--plant_confusion", default=argparse.SUPPRESS, metavar="FROM>TO,...",
                       help="classes and what they are taken for (default: each for the next)")


def complete(args: argparse.Namespace) -> None:
    """What the flags leave open, so that it is recorded, and compared when the run is resumed."""
    args.plant_seed = getattr(args, "plant_seed", 0)
    if args.task != "qa":
        args.plant_kind = getattr(args, "plant_kind", LABEL_KINDS[0])
        args.plant_confusion = getattr(args, "plant_confusion", None)


def place_of_planted(args: argparse.Namespace) -> str:
    """The dataset that a run which plants errors trains on, and records as its own."""
    return os.path.abspath(os.path.join(args.output_dir, PLANTED_DATA))


def with_planted_errors(args: argparse.Namespace, split: Split) -> Split:
    """The training split with errors in round(--plant_errors x its rows) of them, listed in its ``planted``.

    Rows that cannot be trained on, and unanswerable questions, stay as they are. UserError where too few are left.
    """
    count = round(args.plant_errors * len(split.data))
    where = f"--plant_errors {args.plant_errors:g} of {len(split.data):,} examples of {split.name} [{split.split}]"
    if count == 0:
        raise UserError(f"{where} is not one example; give a larger share")
    rng = np.random.default_rng(args.plant_seed)
    plant = _plant_in_answers if split.task.name == "qa" else _plant_in_labels
    data, planted = plant(args, split, rng, count, where)
    kinds = ", ".join(f"{kind} {n:,}" for kind, n in sorted(Counter(each["kind"] for each in planted).items()))
    logger.info(f"planted {len(planted):,} errors in {len(split.data):,} examples ({kinds})")
    return dataclasses.replace(
        split, data=data, whole=data, name=place_of_planted(args), rows=len(data), max_samples=None, planted=planted,
        fingerprint=content_fingerprint(data, split.task.content_columns),
    )


def planted_fingerprint(args: argparse.Namespace, task: Task) -> str:
    """The fingerprint of what a run with these arguments trains on."""
    loaded = load_split(args.dataset, args.train_split, task, args.max_train_samples)
    return with_planted_errors(args, loaded).fingerprint


def beside_planted_errors(args: argparse.Namespace, split: Split, task: Task) -> Split:
    """A split that a run with planted errors evaluates on: the corrupted one, where it is the one trained on."""
    if split.split != args.train_split:
        return dataclasses.replace(split, name=place_of_planted(args))
    planted = with_planted_errors(args, load_split(args.dataset, args.train_split, task, args.max_train_samples))
    capped = planted.data.select(range(min(len(planted.data), args.max_eval_samples or len(planted.data))))
    return dataclasses.replace(planted, data=capped, max_samples=args.max_eval_samples)


def _plant_in_answers(
    args: argparse.Namespace, split: Split, rng: np.random.Generator, count: int, where: str
) -> tuple[datasets.Dataset, list[dict[str, Any]]]:
    data = split.data
    contexts, questions, answers = (data[column][:] for column in ("context", "question", "answers"))
    usable = split.task.is_usable(data)
    golds = [
        [(start, start + len(text)) for text, start in zip(answer["text"], answer["answer_start"], strict=True)
         if text and stands_at(context, text, start)] if row_is_usable else []
        for context, answer, row_is_usable in zip(contexts, answers, usable, strict=True)
    ]
    _check_enough(where, count, sum(map(bool, golds)), "have an answer")
    corrupted, impossible = plant_in_questions(rng, contexts, questions, golds, count)
    if impossible:
        logger.info("another kind was planted where one is impossible: "
                    + ", ".join(f"{kind} {n:,}" for kind, n in sorted(impossible.items())))
    planted = []
    for row, error in corrupted.items():
        if error.answer is not None:
            start, end = error.answer
            was: dict[str, Any] = {"answers": answers[row]}
            answers[row] = {"text": [contexts[row][start:end]], "answer_start": [start]}
        else:
            was, questions[row] = {"question": questions[row]}, error.question
        planted.append({"id": data["id"][row], "kind": error.kind, "was": json.dumps(was, ensure_ascii=False)})
    return _replaced(data, {"question": questions, "answers": answers}), planted


def _plant_in_labels(
    args: argparse.Namespace, split: Split, rng: np.random.Generator, count: int, where: str
) -> tuple[datasets.Dataset, list[dict[str, Any]]]:
    data, column, kind = split.data, split.task.label_column, args.plant_kind
    labels, names = list(data[column][:]), data.features[column].names
    if len(names) < 2:
        raise UserError(f"{where}: there is one class, so no other label")
    confusion = confusion_of(args.plant_confusion, names) if args.plant_confusion else None
    texts = [[text or "" for text in data[name][:]] for name in split.task.text_columns] if kind == "plausible" else ()
    flipped = plant_in_labels(rng, labels, len(names), count, kind, texts, confusion)
    _check_enough(where, count, len(flipped), f"are of --plant_confusion {args.plant_confusion}")
    planted = [{"id": data["id"][row], "kind": kind, "was": names[labels[row]]} for row in flipped]
    for row, label in flipped.items():
        labels[row] = label
    return _replaced(data, {column: labels}), planted


def confusion_of(text: str, names: Sequence[str]) -> Mapping[int, Sequence[int]]:
    """Class -> classes that it is taken for, of "FROM>TO,FROM>TO"; UserError for a class that is none."""
    confusion: dict[int, list[int]] = {}
    for pair in text.split(","):
        parts = [part.strip() for part in pair.split(">")]
        if len(parts) != 2 or parts[0] == parts[1] or not set(parts) <= set(names):
            raise UserError(f"--plant_confusion {text}: expected pairs of two classes, FROM>TO,..., found {pair!r}; "
                            f"there is {', '.join(names)}")
        confusion.setdefault(names.index(parts[0]), []).append(names.index(parts[1]))
    return confusion


def _check_enough(where: str, count: int, there: int, what: str) -> None:
    if there < count:
        raise UserError(f"{where} are {count:,}, but only {there:,} {what}; give a smaller share")


def _replaced(data: datasets.Dataset, columns: Mapping[str, list]) -> datasets.Dataset:
    """The same rows and columns, in order, with other values in some columns."""
    order, features = data.column_names, data.features
    for column, values in columns.items():
        data = data.remove_columns(column).add_column(column, values, feature=features[column])
    return data.select_columns(order)
