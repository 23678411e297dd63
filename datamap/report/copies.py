"""Copies: examples whose texts are there more than once, exactly or nearly, within a split and across splits."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.errors import UserError
from datamap.core.splits import EVAL_SPLITS, Split, load_split, splits_of
from datamap.tasks.questions import fold

if TYPE_CHECKING:
    import pandas as pd

ALIKE = 0.8  # Jaccard overlap of the words of near copies, of every text of an example
HASHES, BANDS = 64, 16  # a pair at 0.8 is found with probability 1 - (1 - 0.8^4)^16 = 0.9998
MOST_IN_BUCKET = 50  # of texts with a common band, how many each is compared with
SEPARATOR = "\x1f"
LEAK_COLUMNS = ("id", "split", "other_id", "kind", "overlap", "same_gold")
DUPLICATE_COLUMNS = ("id", "other_id", "kind", "overlap", "same_gold")

logger = logging.getLogger(__name__)


def other_splits(split: Split) -> tuple[list[Split], list[str]]:
    """The evaluation splits that lie beside this one, and what to say of those that cannot be read."""
    found, said = [], []
    for name in splits_of(split.name):
        if name != split.split and name in (*EVAL_SPLITS, "test", "train"):
            try:
                found.append(load_split(split.name, name, split.task))
            except UserError as error:
                said.append(f"{name}: {error}")
                logger.warning(f"{split.name} [{name}] is not compared with: {error}")
    return found, said


def keys_of(split: Split) -> list[str]:
    """Of each example all that a model reads of it, as texts are compared: but for case and blanks."""
    columns = []
    for name in split.task.text_columns:
        texts = split.data[name][:]
        known = {text: fold(text) for text in dict.fromkeys(texts)}  # a context is shared by many questions
        columns.append([known[text] for text in texts])
    return [SEPARATOR.join(row) for row in zip(*columns, strict=True)]


def golds_of(split: Split) -> list[str]:
    """The annotated label, or the first answer but for case and blanks."""
    readable = split.task.readable(split.data)
    return [fold(str(value)) for value in readable["answer" if split.task.name == "qa" else split.task.label_column]]


def duplicates(split: Split) -> pd.DataFrame:
    """Pairs within a split, DUPLICATE_COLUMNS: each copy with the first of its kind, each near copy with the one it
    was found beside. same_gold: whether both are annotated alike."""
    import pandas as pd

    keys, golds, ids = keys_of(split), golds_of(split), split.ids
    first: dict[str, int] = {}
    pairs = []
    for row, key in enumerate(keys):
        if (other := first.setdefault(key, row)) != row:
            pairs.append((row, other, "exact", 1.0))
    rows = list(first.values())
    pairs += [(max(rows[one], rows[other]), min(rows[one], rows[other]), "near", overlap)
              for one, other, overlap in near_pairs(list(first), None)]
    table = [(ids[row], ids[other], kind, overlap, golds[row] == golds[other])
             for row, other, kind, overlap in sorted(pairs)]
    return pd.DataFrame(table, columns=list(DUPLICATE_COLUMNS))


def leaks(split: Split, others: Sequence[Split]) -> pd.DataFrame:
    """Pairs of an example of ``split`` and one of the others, LEAK_COLUMNS: what a model trained on ``split`` has seen
    of what it is evaluated on. Of each example of the others its exact copies count once, with the first of them, and
    its near copies where there is no exact one."""
    import pandas as pd

    first: dict[str, int] = {}
    for row, key in enumerate(keys_of(split)):
        first.setdefault(key, row)
    rows, golds, ids = list(first.values()), golds_of(split), split.ids
    table: list[tuple[Any, ...]] = []
    for other in others:
        keys, theirs, other_ids = keys_of(other), golds_of(other), other.ids
        exact = [(first[key], at) for at, key in enumerate(keys) if key in first]
        table += [(ids[row], other.split, other_ids[at], "exact", 1.0, golds[row] == theirs[at]) for row, at in exact]
        left = [at for at, key in enumerate(keys) if key not in first]
        near = near_pairs(list(first), [keys[at] for at in left])
        table += [(ids[rows[one]], other.split, other_ids[left[at]], "near", overlap,
                   golds[rows[one]] == theirs[left[at]]) for one, at, overlap in sorted(near)]
    return pd.DataFrame(table, columns=list(LEAK_COLUMNS))


# --- near copies -------------------------------------------------------------------------------------------------


def near_pairs(keys: Sequence[str], others: Sequence[str] | None) -> Iterator[tuple[int, int, float]]:
    """Places in ``keys`` and ``others`` (None: in keys again, the first below the second) whose every text shares
    ALIKE of its words, and the smallest of these overlaps.

    Candidates are found by MinHash (Broder 1997) over the words of all texts, in BANDS bands, then compared exactly;
    texts of fewer than three words are not compared. Overlap of all the words above ALIKE is asked for to be a
    candidate, so a pair with a short and a long text is told by the long one first.
    """
    everything = [*keys, *(others or ())]
    words = [dict.fromkeys(key.split()) for key in everything]  # in the order of the text, which is always the same
    usable = np.array([len(each) >= 3 for each in words], dtype=bool)
    bands, border, seen = _bands(words, usable), len(keys), set()
    for band in range(bands.shape[1]):
        rows = np.flatnonzero(usable)
        order = rows[np.argsort(bands[rows, band], kind="stable")]
        cuts = np.flatnonzero(np.diff(bands[order, band])) + 1
        for bucket in np.split(order, cuts):
            if len(bucket) < 2:
                continue
            for place, one in enumerate(bucket.tolist()):
                for other in bucket[place + 1 : place + 1 + MOST_IN_BUCKET].tolist():
                    low, high = min(one, other), max(one, other)
                    if (others is not None and (low < border) == (high < border)) or (low, high) in seen:
                        continue
                    seen.add((low, high))
                    overlap = _overlap(everything[low], everything[high], words[low], words[high])
                    if overlap >= ALIKE:
                        yield low, high - (border if others is not None else 0), overlap


def _overlap(one: str, other: str, words: Sized, more: Sized) -> float:
    if min(len(words), len(more)) < ALIKE * max(len(words), len(more)):
        return 0.0
    parts, others = one.split(SEPARATOR), other.split(SEPARATOR)
    return min(1.0 if part == another else _jaccard(set(part.split()), set(another.split()))
               for part, another in zip(parts, others, strict=True))


def _jaccard(one: set[str], other: set[str]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common) if common else 0.0


def _bands(words: Sequence[dict[str, None]], usable: np.ndarray) -> np.ndarray:
    """(N, BANDS) uint64: two rows share a band with probability J^4, J the Jaccard overlap of their words."""
    numbers: dict[str, int] = {}
    compared = [words[row] for row in np.flatnonzero(usable).tolist()]
    lengths = np.array([len(each) for each in compared], dtype=np.int64)
    flat = np.fromiter((numbers.setdefault(word, len(numbers)) for each in compared for word in each), dtype=np.int64,
                       count=int(lengths.sum()))
    bands = np.zeros((len(words), BANDS), dtype=np.uint64)
    if not len(flat):
        return bands
    rng = np.random.default_rng(0)
    # A random number for each word and hash, in the stead of a hash function: the words are numbered already.
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    for number in range(HASHES):
        ranks = rng.permutation(len(numbers)).astype(np.uint32)
        smallest = np.minimum.reduceat(ranks[flat], starts).astype(np.uint64)
        band = number * BANDS // HASHES
        bands[usable, band] = bands[usable, band] * np.uint64(1_000_003) + smallest
    return bands
