"""Copies: examples whose texts are there more than once, exactly or nearly, within a split and across splits."""

from __future__ import annotations

import itertools
import logging
from array import array
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.errors import UserError
from datamap.core.splits import EVAL_SPLITS, Split, held_out_beside, load_split, overlap, splits_of
from datamap.tasks.questions import fold

if TYPE_CHECKING:
    import pandas as pd

ALIKE = 0.8  # Jaccard overlap of the words of near copies, of every text of an example
LIKELY = 0.65  # share of the hashes in which a pair must agree to be compared: 0.8 is 3.7 standard errors above
HASHES, BANDS = 96, 16  # a pair at 0.8 is found with probability 1 - (1 - 0.8^6)^16 = 0.992
MOST_IN_BUCKET = 20  # of texts with a common band, how many each is compared with
FACTOR = np.uint64(6364136223846793005)  # of a linear congruential generator
SEPARATOR = "\x1f"
LEAK_COLUMNS = ("id", "split", "other_id", "kind", "overlap", "same_gold")
DUPLICATE_COLUMNS = ("id", "other_id", "kind", "overlap", "same_gold")

logger = logging.getLogger(__name__)


def other_splits(split: Split) -> tuple[list[Split], list[str]]:
    """The evaluation splits that lie beside this one, and what to say of those that cannot be read."""
    found, said = [], []
    beside = [name for name in splits_of(split.name) if name in (*EVAL_SPLITS, "test", "train")]
    for name in [*filter(None, [held_out_beside(split.split)]), *beside]:
        if not overlap(name, split.split):
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


def near_pairs(keys: Sequence[str], others: Sequence[str] | None) -> list[tuple[int, int, float]]:
    """Places in ``keys`` and ``others`` (None: in keys again, the first below the second) whose every text shares
    ALIKE of its words, and the smallest of these overlaps.

    Candidates are found by MinHash (Broder 1997) over the words of all texts together, and compared exactly. Texts of
    fewer than three words together are not compared, and of many that are candidates of each other each is with the
    MOST_IN_BUCKET that follow it.
    """
    everything, border = [*keys, *(others or ())], len(keys)
    found = []
    for low, high in _candidates(_signatures(everything)).tolist():
        if others is not None and (low < border) == (high < border):
            continue
        overlap = _overlap(everything[low], everything[high])
        if overlap >= ALIKE:
            found.append((low, high - (border if others is not None else 0), overlap))
    return found


def _overlap(one: str, other: str) -> float:
    return min(_jaccard(set(part.split()), set(another.split()))
               for part, another in zip(one.split(SEPARATOR), other.split(SEPARATOR), strict=True))


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other) if one or other else 1.0


def _signatures(texts: Sequence[str]) -> np.ndarray:
    """(N, HASHES) uint32, 0 for texts of fewer than three words: two texts agree in a column with probability J, the
    Jaccard overlap of their words."""
    numbers: dict[str, int] = defaultdict(itertools.count().__next__)
    flat, lengths = array("i"), []
    for text in texts:
        words = dict.fromkeys(text.split())
        lengths.append(len(words) if len(words) >= 3 else 0)
        if lengths[-1]:
            flat.extend(map(numbers.__getitem__, words))
    found, counts = np.zeros((len(texts), HASHES), dtype=np.uint32), np.array(lengths)
    usable = np.flatnonzero(counts)
    if not len(usable):
        return found
    places = np.frombuffer(flat, dtype=np.int32)
    starts = np.concatenate([[0], np.cumsum(counts[usable])[:-1]])
    rng = np.random.default_rng(0)
    for column in range(HASHES):  # a random number for each word: a hash function
        ranks = rng.permutation(len(numbers)).astype(np.uint32)
        found[usable, column] = np.minimum.reduceat(ranks[places], starts) + 1
    return found


def _candidates(signatures: np.ndarray) -> np.ndarray:
    """(P, 2) int64, sorted: pairs of rows that agree in a band of columns, and in LIKELY of all."""
    rows, width = len(signatures), HASHES // BANDS
    pairs = np.zeros(0, dtype=np.int64)
    for first in range(0, HASHES, width):
        band = np.zeros(rows, dtype=np.uint64)
        for column in range(first, first + width):
            band = band * FACTOR + signatures[:, column]
        order = np.argsort(band, kind="stable")
        order = order[signatures[order, 0] > 0]
        of_band = [pairs]
        for shift in range(1, MOST_IN_BUCKET + 1):
            alike = band[order[:-shift]] == band[order[shift:]]
            if not alike.any():
                break
            one, other = order[:-shift][alike], order[shift:][alike]
            likely = (signatures[one] == signatures[other]).mean(axis=1) >= LIKELY
            one, other = one[likely], other[likely]
            of_band.append(np.minimum(one, other) * rows + np.maximum(one, other))
        pairs = np.unique(np.concatenate(of_band))
    return np.stack(np.divmod(pairs, rows), axis=1) if rows else np.zeros((0, 2), dtype=np.int64)
