"""Which task a dataset is for, and in which columns its texts and labels are: guessed from names, then from values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from datamap.core.errors import UserError, name_a_few
from datamap.tasks.classification import NO_GOLD_LABEL, SequenceClassification
from datamap.tasks.missing import task_of_columns
from datamap.tasks.nli import NaturalLanguageInference
from datamap.tasks.qa import ANSWER_COLUMNS, QuestionAnswering

# Beside the names that a task knows by itself. Of pairs, those in which one text is to follow from the other.
NLI_PAIRS = (("premise", "hypothesis"), ("sentence_a", "sentence_b"))
NLI_LABELS = ("entailment_label", "entailment_judgment", "gold_label")
NLI_WORDS = {"entailment", "contradiction", "not_entailment"}
MORE_TEXTS = (("text_a", "text_b"), ("text1", "text2"), ("question1", "question2"), ("comment",), ("headline",),
              ("message",), ("body",), ("utterance",), ("document",), ("post",))
MORE_LABELS = ("sentiment", "category", "topic", "intent", "emotion", "target", "stars", "rating", "y")
# By values: a label is one of few, which come twice or more on average; a text has words, and seldom comes twice.
MOST_CLASSES, FEWEST_OF_A_CLASS, FEWEST_WORDS, DIFFERENT = 100, 2, 2, 0.5


class Guess(NamedTuple):
    """A task and its columns, spelled as in the data; none for qa, whose columns have fixed names."""

    task: str
    text_columns: tuple[str, ...] = ()
    label_column: str = ""

    def __str__(self) -> str:
        """``nli: texts in columns premise and hypothesis, labels in column label``"""
        if not self.label_column:
            return self.task
        several = "s" * (len(self.text_columns) > 1)
        return f"{self.task}: texts in column{several} {' and '.join(self.text_columns)}, labels in column " \
               f"{self.label_column}"


def guess_task(
    rows: Mapping[str, Sequence[Any]], source: str, task: str | None = None, text_columns: Sequence[str] = (),
    label_column: str | None = None,
) -> Guess:
    """What the task, the text columns and the label column of a dataset most likely are; those given stand.

    rows: column -> some values. source: what to call the dataset. UserError, which names the columns that there are,
    where nothing can be guessed.
    """
    names = {name.strip().casefold(): name for name in rows}
    if absent := [name for name in (*text_columns, label_column or "") if name and name.casefold() not in names]:
        raise UserError(f"{source} has no column {name_a_few(absent)}; there is {', '.join(rows)}")
    asks = {"question", "context"} <= names.keys() and any(name in names for name in ANSWER_COLUMNS)
    if task == QuestionAnswering.name or (task is None and asks and not (text_columns or label_column)):
        return Guess(QuestionAnswering.name)
    label = label_column or _label(rows, names, text_columns)
    texts = tuple(text_columns) or _texts(rows, names, label)
    if not (label and texts):
        lacking = " and no ".join([*["text"] * (not texts), *["label"] * (not label)])
        raise UserError(
            f"{source}: no {lacking} column can be told from the names {', '.join(rows)}; name them with "
            "--text_columns and --label_column (questions on a context need question, context and answers)"
            + task_of_columns(list(rows))
        )
    lower = tuple(text.strip().casefold() for text in texts)
    if task is None:
        follows = lower in NLI_PAIRS or label.strip().casefold() in NLI_LABELS or _is_about_entailment(rows.get(label))
        task = NaturalLanguageInference.name if len(texts) == 2 and follows else SequenceClassification.name
    return Guess(task, texts, label)


def _label(rows: Mapping[str, Sequence[Any]], names: Mapping[str, str], texts: Sequence[str]) -> str | None:
    free = {lower: name for lower, name in names.items() if name not in (*texts, "id")}
    known = (*NaturalLanguageInference.label_guesses, *SequenceClassification.label_guesses, *MORE_LABELS)
    for name in known:
        if name in free:
            return free[name]
    return _sole([name for name in free.values() if _holds_classes(rows[name])])


def _texts(rows: Mapping[str, Sequence[Any]], names: Mapping[str, str], label: str | None) -> tuple[str, ...]:
    free = {lower: name for lower, name in names.items() if name not in (label, "id")}
    known = (*NaturalLanguageInference.text_guesses, *SequenceClassification.text_guesses, *MORE_TEXTS)
    pairs_first = sorted(known, key=len, reverse=True)
    for guess in pairs_first:
        if {name.casefold() for name in guess} <= free.keys():
            return tuple(free[name.casefold()] for name in guess)
    only = _sole([name for name in free.values() if _holds_texts(rows[name])])
    return (only,) if only else ()


def _sole(found: Sequence[str]) -> str | None:
    return found[0] if len(found) == 1 else None


def _holds_classes(values: Sequence[Any]) -> bool:
    there = [value for value in values if value not in NO_GOLD_LABEL]
    if not there or not all(isinstance(value, str | int) for value in there):
        return False
    classes = set(there)
    return 2 <= len(classes) <= MOST_CLASSES and len(there) >= FEWEST_OF_A_CLASS * len(classes)


def _holds_texts(values: Sequence[Any]) -> bool:
    there = [value for value in values if isinstance(value, str) and value.strip()]
    if not there or len(there) < len(values) / 2 or len(set(there)) < DIFFERENT * len(there):
        return False
    return sum(len(text.split()) for text in there) >= FEWEST_WORDS * len(there)


def _is_about_entailment(values: Sequence[Any] | None) -> bool:
    words = {str(value).strip().casefold() for value in itertools.islice(values or (), 1000)}
    return bool(words & NLI_WORDS)
