"""The examples that a selector chooses from: those of a split that can be trained on, in the order of their ids."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datamap.core.errors import UserError, name_a_few
from datamap.core.splits import Split, load_split
from datamap.selection.cache import Compute, cached
from datamap.selection.text_metrics import BY_SYLLABLES, syllable_rule
from datamap.tasks.base import Task

SEPARATOR = "\n"  # between the columns of an example where it is taken as one text

logger = logging.getLogger(__name__)


@dataclass
class Candidates:
    """split: n rows in the order of their ids. position: (n,) place of each in the dataset as loaded. args: the flags
    of select_subset.py. known: the features that were computed so far. reports: what there is to say of some of them,
    beside how long it took. unusable: ids that cannot be trained on."""

    split: Split
    position: np.ndarray
    args: argparse.Namespace
    known: dict[str, np.ndarray] = field(default_factory=dict)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        return self.split.ids

    @property
    def texts(self) -> list[str]:
        """Each example as one text: its text columns one below the other."""
        columns = (self.split.data[name][:] for name in self.split.task.text_columns)
        return [SEPARATOR.join(parts) for parts in zip(*columns, strict=True)]

    @property
    def label_column(self) -> str:
        column = getattr(self.split.task, "label_column", "")
        if not column:
            raise UserError(f"examples of --task {self.split.task.name} have no class label, which this needs; choose "
                            "another selector (select_subset.py --list)")
        return column

    @property
    def labels(self) -> np.ndarray:
        """(n,) class numbers."""
        return np.asarray(self.split.data[self.label_column][:])

    @property
    def class_names(self) -> list[str]:
        return self.split.data.features[self.label_column].names

    @property
    def sizes(self) -> dict[str, int]:
        """The flags that say how much of a text a model reads at once."""
        sizes = {"max_length": self.args.max_length}
        return {**sizes, "doc_stride": self.args.doc_stride} if "doc_stride" in self.split.task.flags else sizes

    @cached_property
    def key(self) -> dict[str, Any]:
        """What tells these rows from others in the cache: the dataset, which of its examples, and in which order."""
        ids = hashlib.blake2b("\x1f".join(self.ids).encode(), digest_size=8).hexdigest()
        return {"fingerprint": self.split.fingerprint, "task": self.split.task.settings(), "ids": ids}

    @cached_property
    def syllables_by(self) -> str:
        """How syllables are counted; where no feature asks for them, the way that needs no dictionary."""
        return syllable_rule() if set(BY_SYLLABLES) & set(self.args.features) else "hyphenation"

    @property
    def cache(self) -> Path:
        return Path(self.args.cache_dir)

    def cached(
        self, name: str, key: Mapping[str, Any], prepare: Callable[[], tuple[np.ndarray, Compute]],
        width: tuple[int, ...] = (), dtype: Any = np.float32,
    ) -> np.ndarray:
        """The (n, *width) values of a feature, as ``cache.cached``; key: what they depend on beside the rows."""
        shape = (len(self.position), *width)
        return cached(self.cache, name, {**self.key, **key}, shape, prepare, dtype)

    def part(self, rows: np.ndarray) -> Split:
        return dataclasses.replace(self.split, data=self.split.data.select(rows))

    def strata(self, column: str) -> np.ndarray:
        """(n,) values of a column as text, "" where one is missing; ``label`` is the class label where there is one.
        """
        data = self.split.data
        name = getattr(self.split.task, "label_column", "") or column if column == "label" else column
        if name not in data.column_names:
            raise UserError(f"--stratify {column}: {self.split.name} has no such column; there is "
                            f"{', '.join(data.column_names)}")
        values = data[name][:]
        if any(isinstance(value, list | dict) for value in values):
            raise UserError(f"--stratify {column}: expected a value per example, found {values[0]!r:.60}")
        return np.array(["" if value is None else f"={value}" for value in values])  # "None" is a text like another

    def label_counts(self, ids: Sequence[str]) -> dict[str, int] | None:
        """How many of the chosen have each label, the commonest first; None where there are no labels."""
        if not getattr(self.split.task, "label_column", ""):
            return None
        chosen, names = set(ids), self.class_names
        labels = (names[label] for example, label in zip(self.ids, self.labels, strict=True) if example in chosen)
        return dict(Counter(labels).most_common())


def load_candidates(args: argparse.Namespace, task: Task) -> Candidates:
    split = load_split(args.dataset, args.split, task, args.max_samples)
    split.allow_changed = getattr(args, "allow_changed", False)
    usable = split.task.is_usable(split.data)
    ids = split.ids
    bad = [example for example, is_usable in zip(ids, usable.tolist(), strict=True) if not is_usable]
    if bad:
        logger.warning(f"{len(bad):,} of {len(usable):,} examples ({name_a_few(bad)}) are not chosen from: "
                       f"{split.task.unusable}")
    position = np.array(sorted(np.flatnonzero(usable).tolist(), key=lambda row: ids[row]), dtype=np.int64)
    return Candidates(dataclasses.replace(split, data=split.data.select(position)), position, args, unusable=bad)
