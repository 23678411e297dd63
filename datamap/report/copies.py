"""Copies: examples whose texts are there more than once, exactly or nearly, within a split and across splits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.errors import UserError
from datamap.core.splits import EVAL_SPLITS, Split, held_out_beside, load_split, overlap, splits_of
from datamap.core.words import Words, numbered_words
from datamap.detection.base import Evidence
from datamap.detection.detect_texts import content, folded
from datamap.tasks.classification import label_values

if TYPE_CHECKING:
    import pandas as pd

ALIKE = 0.8  # Jaccard overlap of the words of near copies, of every text of an example
LIKELY = 0.65  # share of the hashes in which a pair must agree to be compared: 0.8 is 3.7 standard errors above
HASHES, BANDS = 96, 16  # a pair at 0.8 is found with probability 1 - (1 - 0.8^6)^16 = 0.992
MOST_IN_BUCKET = 20  # of texts with a common band, how many each is compared with
FACTOR = np.uint64(6364136223846793005)  # of a linear congruential generator
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


Key = tuple[str, ...]


def texts_of(evidence: Evidence) -> tuple[list[Key], list[str]]:
    """Of each example all that a model reads of it, and its label or first answer, as texts are compared: but for case
    and blanks."""
    if evidence.answers_questions:
        golds = evidence.golds
    else:
        names = list(map(str, label_values(evidence.class_names)))
        golds = [names[label] for label in evidence.labels.tolist()]
    return evidence.once(content), folded(golds)


def duplicates(evidence: Evidence) -> pd.DataFrame:
    """Pairs within a split, DUPLICATE_COLUMNS: each copy with the first of its kind, each near copy with the one it
    was found beside. same_gold: whether both are annotated alike."""
    import pandas as pd

    (keys, golds), ids = evidence.once(texts_of), evidence.split.ids
    first: dict[Key, int] = {}
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


def leaks(evidence: Evidence, others: Sequence[Split]) -> pd.DataFrame:
    """Pairs of an example of the split and one of the others, LEAK_COLUMNS: what a model trained on the split has seen
    of what it is evaluated on. Of each example of the others its exact copies count once, with the first of them, and
    its near copies where there is no exact one."""
    import pandas as pd

    first: dict[Key, int] = {}
    own_keys, golds = evidence.once(texts_of)
    for row, key in enumerate(own_keys):
        first.setdefault(key, row)
    rows, ids = list(first.values()), evidence.split.ids
    table: list[tuple[Any, ...]] = []
    for other in others:
        (keys, theirs), other_ids = texts_of(Evidence(other)), other.ids
        exact = [(first[key], at) for at, key in enumerate(keys) if key in first]
        table += [(ids[row], other.split, other_ids[at], "exact", 1.0, golds[row] == theirs[at]) for row, at in exact]
        left = [at for at, key in enumerate(keys) if key not in first]
        near = near_pairs(list(first), [keys[at] for at in left])
        table += [(ids[rows[one]], other.split, other_ids[left[at]], "near", overlap,
                   golds[rows[one]] == theirs[left[at]]) for one, at, overlap in sorted(near)]
    return pd.DataFrame(table, columns=list(LEAK_COLUMNS))


# --- near copies -------------------------------------------------------------------------------------------------


def near_pairs(keys: Sequence[Key], others: Sequence[Key] | None) -> list[tuple[int, int, float]]:
    """Places in ``keys`` and ``others`` (None: in keys again, the first below the second) whose every text shares
    ALIKE of its words, and the smallest of these overlaps.

    Candidates are found by MinHash (Broder 1997) over the words of each text, and compared exactly. Texts of fewer
    than three words together are not compared, and of many that are candidates of each other each is with the
    MOST_IN_BUCKET that follow it.
    """
    everything, border = [*keys, *(others or ())], len(keys)
    words, place = _different_texts(everything)
    pairs = _candidates(_signatures(words, place), place.max(axis=1, initial=0) > 0)
    if others is not None:
        pairs = pairs[(pairs[:, 0] < border) & (pairs[:, 1] >= border)]
    overlaps = np.ones(len(pairs))
    for column in place.T:  # the first text of a question is its shortest, and most pairs end there
        alike = np.flatnonzero(overlaps >= ALIKE)
        overlaps[alike] = np.minimum(overlaps[alike], _jaccards(words, np.sort(column[pairs[alike]], axis=1)))
    fine = np.flatnonzero(overlaps >= ALIKE)
    return [(low, high - (border if others is not None else 0), overlap)
            for (low, high), overlap in zip(pairs[fine].tolist(), overlaps[fine].tolist(), strict=True)]


def _jaccards(words: Words, pairs: np.ndarray) -> np.ndarray:
    """(P,) float64 of pairs of texts (P, 2); a context that many questions share is compared with another once."""
    each, back = np.unique(pairs[:, 0] * len(words.counts) + pairs[:, 1], return_inverse=True)
    one, other = np.divmod(each, len(words.counts))
    starts, ends = words.starts, words.starts + words.counts
    sets = {at: frozenset(words.codes[starts[at] : ends[at]].tolist()) for at in np.union1d(one, other).tolist()}
    found = [_jaccard(sets[low], sets[high]) for low, high in zip(one.tolist(), other.tolist(), strict=True)]
    return np.array(found, dtype=np.float64)[back]


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common) if one or other else 1.0


def _different_texts(keys: Sequence[Key]) -> tuple[Words, np.ndarray]:
    """Every different text with each of its words once, and (N, texts of an example) the place of each in them; the
    first is empty, and stands for the texts of an example that has fewer than three words."""
    known: dict[str, int] = {}
    texts: list[list[str]] = [[]]
    place = np.zeros((len(keys), len(keys[0]) if keys else 0), dtype=np.int64)
    for row, key in enumerate(keys):
        new = {text: list(dict.fromkeys(text.split())) for text in key if text not in known}
        sets = [new[text] if text in new else texts[known[text]] for text in key]
        if max(map(len, sets)) >= 3 or len(set().union(*sets)) >= 3:
            for text, words in new.items():
                known[text] = len(texts)
                texts.append(words)
            place[row] = [known[text] for text in key]
    return numbered_words(texts), place


def _signatures(words: Words, place: np.ndarray) -> np.ndarray:
    """(N, HASHES) uint32, of one text of the examples after the other and round again: two examples agree in a column
    with probability J, the Jaccard overlap of the words of that text, so that whoever is like another in one text
    alone, as all questions about one context are, is seldom a candidate. words, place: ``_different_texts``."""
    found = np.zeros((len(place), HASHES), dtype=np.uint32)
    rng = np.random.default_rng(0)
    for text, at in enumerate(place.T):
        each, back = np.unique(at, return_inverse=True)
        counts = words.counts[each]
        filled, ends = np.flatnonzero(counts), np.cumsum(counts)
        codes = words.codes[np.repeat(words.starts[each] - (ends - counts), counts) + np.arange(counts.sum())]
        for column in range(text, HASHES if len(filled) else 0, place.shape[1]):
            ranks = rng.permutation(len(words.vocabulary)).astype(np.uint32)  # a number for each word: a hash function
            smallest = np.zeros(len(each), dtype=np.uint32)
            smallest[filled] = np.minimum.reduceat(ranks[codes], (ends - counts)[filled])
            found[:, column] = smallest[back]
    return found


def _candidates(signatures: np.ndarray, compared: np.ndarray) -> np.ndarray:
    """(P, 2) int64, sorted: pairs of rows that agree in a band of columns, and in LIKELY of all. compared: (N,) bool,
    which rows are."""
    rows, width = len(signatures), HASHES // BANDS
    found = [np.zeros(0, dtype=np.int64)]
    for first in range(0, HASHES, width):
        band = np.zeros(rows, dtype=np.uint64)
        for column in range(first, first + width):
            band = band * FACTOR + signatures[:, column]
        order = np.argsort(band, kind="stable")
        order = order[compared[order]]
        for shift in range(1, MOST_IN_BUCKET + 1):
            alike = band[order[:-shift]] == band[order[shift:]]
            if not alike.any():
                break
            one, other = order[:-shift][alike], order[shift:][alike]
            likely = (signatures[one] == signatures[other]).mean(axis=1) >= LIKELY
            one, other = one[likely], other[likely]
            found.append(np.minimum(one, other) * rows + np.maximum(one, other))
    pairs = np.sort(np.concatenate(found))
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    return np.stack(np.divmod(pairs, rows), axis=1) if rows else np.zeros((0, 2), dtype=np.int64)
