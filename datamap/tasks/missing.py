"""Tasks that there are not: how their data are known, and what can be done with them here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MULTI_LABEL = (
    "several labels of one example (multi-label) are no task here: write a file for each label, with yes or no in a "
    "column that --label_column names"
)
TOKEN_LABELS = (
    "labels of single tokens (tagging) are no task here: ask for what is tagged with --task qa, or label whole "
    "sentences"
)
REGRESSION = (
    "numbers to be predicted (regression) are no task here: make classes of them, such as low, middle and high "
    "(docs/extending.md has a task that does)"
)
SEQ2SEQ = (
    "texts to be written (translation, summaries, chat) are no task here: --task qa takes answers that stand in their "
    "context, --task nli or classification a judgement of the text in a label column"
)
WRITTEN = (("document", "summary"), ("article", "highlights"), ("dialogue", "summary"), ("translation",),
           ("messages",), ("source", "target"), ("input", "output"), ("instruction", "output"),
           ("instruction", "response"), ("prompt", "completion"), ("prompt", "response"), ("prompt", "chosen"))
TAGS = ("ner_tags", "pos_tags", "chunk_tags", "upos", "tags")


def task_of_columns(columns: Sequence[str]) -> str:
    """``; ...`` where columns have the usual names of a task that there is not, else nothing."""
    there = {column.casefold() for column in columns}
    if there & set(TAGS):
        return f"; {TOKEN_LABELS}"
    return f"; {SEQ2SEQ}" if any(set(names) <= there for names in WRITTEN) else ""


def task_of_label(label: Any, texts: Sequence[Any]) -> str:
    """What a label that is no single value may be meant as, beside the texts of its example."""
    if not isinstance(label, list):
        return "labels are whole numbers or names"
    lengths = {len(text.split() if isinstance(text, str) else text) for text in texts if isinstance(text, str | list)}
    return TOKEN_LABELS if len(label) > 1 and len(label) in lengths else MULTI_LABEL
