"""Texts as numbers of their words: what is counted and compared for many texts at once."""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Words(NamedTuple):
    """codes: (T,) int64, the words of all texts, one text after the other, as places in ``vocabulary``. counts: (N,),
    how many each text has. vocabulary: the different words, as they first appear."""

    codes: np.ndarray
    counts: np.ndarray
    vocabulary: list[str]

    @property
    def rows(self) -> np.ndarray:
        """(T,) int64: of each word the text it is of."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def starts(self) -> np.ndarray:
        """(N,) int64: where each text begins in ``codes``."""
        return np.cumsum(self.counts) - self.counts


def numbered_words(texts: Iterable[Sequence[str]]) -> Words:
    """Of texts given as lists of words."""
    numbers: dict[str, int] = defaultdict(itertools.count().__next__)
    flat, counts = array("q"), array("q")
    for words in texts:
        counts.append(len(words))
        flat.extend(map(numbers.__getitem__, words))
    return Words(np.array(flat, dtype=np.int64), np.array(counts, dtype=np.int64), list(numbers))


def how_often(keys: np.ndarray) -> np.ndarray:
    """(n,) int64: how often each of ``keys`` (n,) stands among them."""
    _, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return counts[place]
