"""The review learns: what the decisions so far say of the examples that are not decided yet.

A logistic regression over suspicion and its detectors, what the texts look like and are about, the class or question
type, and all of these within each class. It starts at ``suspicion``: without decisions it gives just that, and each
decision moves it from there. Everything that is learned lies in ``learn``, in ways that a page can repeat: it
maximises a strictly concave function, so whoever maximises it finds the same weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from datamap.core.words import numbered_words
from datamap.detection.base import Evidence
from datamap.detection.detect_texts import content
from datamap.detection.suspicion import normal_scores, sigmoid

if TYPE_CHECKING:
    import pandas as pd

WRONG = {"keep": 0.0, "drop": 1.0, "fix": 1.0}
FLOOR = 1e-4  # suspicion is taken for at least this far from 0 and 1, so that decisions can move it
# How far each kind of feature moves the log-odds before any decision, as a standard deviation. A class can be another
# matter altogether; what tells wrong from right within it adds to suspicion, which knows the detectors already.
# Half and twice of these 0.5 find as many planted errors of SST-2 and SICK, within a few in a hundred.
GROUP_SPREAD, FEATURE_SPREAD = 1.0, 0.5
SLOPE_SPREAD = 0.3  # of the factor, 1 before any decision, by which suspicion's log-odds count: it may be too sure
TOPICS = 32  # directions of the words; more tell no more with some hundred decisions
LEAST_EXAMPLES = 3  # that have a word, for it to count
MOST_GROUPS = 12  # classes or question types with weights of their own; the rarer ones share one
OTHERS = "others"
STEPS, SMALLEST_STEP, PRECISION = 100, 1e-6, 1e-9  # Newton takes about ten
ROUNDING = 1e-12  # of the height that is climbed
SMALLEST_SPREAD = 1e-9
SUSPICION, TOPIC = "suspicion", "topic "
TOLD_WORDS, TOLD_FEATURES, TOLD_FROM = 3, 3, 5  # most of each that is told; decisions of each sort from which on
TOLD_GAP = 0.5  # standard deviations


# --- what is looked at -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReviewFeatures:
    """What the review looks at, of N examples.

    values: (N, B) float64, each of mean 0, scaled so that the columns of one kind (detectors, opinions, shapes of the
    texts, topics) together have the variance FEATURE_SPREAD^2 where they are known; the last is suspicion. names: of
    the columns. group: (N,) int64, the class or question type as a place in ``groups``. offset: (N,) float64, the
    log-odds of suspicion.
    """

    values: np.ndarray
    names: list[str]
    group: np.ndarray
    groups: list[str]
    offset: np.ndarray

    def __len__(self) -> int:
        return len(self.group)

    def rows(self, chosen: np.ndarray) -> ReviewFeatures:
        return ReviewFeatures(self.values[chosen], self.names, self.group[chosen], self.groups, self.offset[chosen])


def features(evidence: Evidence, scores: pd.DataFrame, suspicion: np.ndarray) -> ReviewFeatures:
    """What there is to look at in ``evidence``.

    scores: of the detectors (``known.detectors_needed``) and opinions; their ranks are looked at, and one that says
    nothing is in the middle. An opinion is a kind of its own, as it tells something else than all of these.
    suspicion: (N,) 0..1; below FLOOR it counts as FLOOR, above 1 - FLOOR as that.
    """
    opinions = [name for name in scores if name in evidence.opinions]
    kinds = [_detectors(scores.drop(columns=opinions)), _detectors(scores[opinions]), _shapes(evidence),
             _topics(evidence)]
    blocks = [(FEATURE_SPREAD / np.sqrt(max(1, len(names))) * values, names) for values, names in kinds]
    group, groups = _groups(evidence)
    offset = _log_odds(suspicion)
    slope = SLOPE_SPREAD * (offset - offset.mean())[:, None]
    values = np.hstack([*(values for values, _ in blocks), slope])
    return ReviewFeatures(values, [*(name for _, names in blocks for name in names), SUSPICION], group, groups, offset)


def _log_odds(suspicion: np.ndarray) -> np.ndarray:
    kept = np.clip(suspicion, FLOOR, 1 - FLOOR)
    return np.log(kept) - np.log1p(-kept)


def _standardised(columns: Mapping[str, np.ndarray], rows: int) -> tuple[np.ndarray, list[str]]:
    """Of mean 0 and variance 1 where they are known, and 0 elsewhere; one that does not vary is left out."""
    found = {}
    for name, values in columns.items():
        known = np.isfinite(values)
        spread = values[known].std() if known.any() else 0.0
        if spread > SMALLEST_SPREAD:
            found[name] = np.where(known, (values - values[known].mean()) / spread, 0)
    return np.stack(list(found.values()), axis=1) if found else np.zeros((rows, 0)), list(found)


def _detectors(scores: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    columns = {}
    for name in scores:
        values = scores[name].to_numpy(dtype=np.float64, copy=True)
        known = np.isfinite(values)
        values[known] = normal_scores(values[known])
        columns[str(name)] = values
    return _standardised(columns, len(scores))


def _texts(evidence: Evidence) -> list[tuple[str, ...]]:
    """Of each example its texts; of a question the question and the answer, as contexts are long and shared."""
    texts = evidence.once(content)
    if evidence.answers_questions:
        return [(question, answer.casefold()) for (question, _), answer in zip(texts, evidence.golds, strict=True)]
    return texts


class _Sets(NamedTuple):
    """sets: of each place among the texts of an example, every (example, word) once, rising, as example * size + word.
    size: of the vocabulary. lengths: (N,) words, of each place."""

    sets: list[np.ndarray]
    lengths: list[np.ndarray]
    vocabulary: list[str]

    @property
    def size(self) -> int:
        return max(1, len(self.vocabulary))

    def of_each(self, chosen: np.ndarray) -> np.ndarray:
        """(N,) how many of (example, word) each example has."""
        return np.bincount(chosen // self.size, minlength=len(self.lengths[0]))


def word_sets(evidence: Evidence) -> _Sets:
    """Of the texts of each example their words."""
    texts = evidence.once(_texts)
    places = range(len(texts[0]))
    words = numbered_words(each[place].split() for place in places for each in texts)
    size, rows, counts = max(1, len(words.vocabulary)), words.rows, words.counts.reshape(len(places), len(texts))
    ends = np.cumsum(counts.sum(axis=1))
    keys = np.split((rows % len(texts)) * size + words.codes, ends[:-1])
    return _Sets([_once(each) for each in keys], list(counts), words.vocabulary)


def _once(keys: np.ndarray) -> np.ndarray:
    """Each of ``keys`` once, rising, as np.unique gives them, whose hash table is slow where most are different."""
    ordered = np.sort(keys)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def _text_names(evidence: Evidence) -> list[str]:
    return ["question", "answer"] if evidence.answers_questions else list(evidence.split.task.text_columns)


def _shapes(evidence: Evidence) -> tuple[np.ndarray, list[str]]:
    """How long the texts are, and of two how they compare."""
    if not len(evidence):
        return np.zeros((0, 0)), []
    words, names = evidence.once(word_sets), _text_names(evidence)
    lengths = {name: np.log1p(counts) for name, counts in zip(names, words.lengths, strict=True)}
    columns = {f"length of {name}": values for name, values in lengths.items()}
    if len(names) == 2:
        one, two = words.sets
        common = words.of_each(np.intersect1d(one, two, assume_unique=True))
        columns["shared words"] = common / np.maximum(words.of_each(one) + words.of_each(two) - common, 1)
        columns[f"length of {names[0]} over {names[1]}"] = lengths[names[0]] - lengths[names[1]]
    return _standardised({name: normal_scores(values) for name, values in columns.items()}, len(evidence))


def telling_words(evidence: Evidence, rows: Iterable[int]) -> list[list[str]]:
    """Of each of these examples the words that tell it from others: those in one of its two texts alone, as the label
    of a pair hangs on where they differ; of questions and single texts all."""
    found, texts = [], evidence.once(_texts)
    for row in rows:
        sets = [dict.fromkeys(text.split()) for text in texts[row]]
        if len(sets) == 2 and not evidence.answers_questions:
            found.append([*(word for word in sets[0] if word not in sets[1]),
                          *(word for word in sets[1] if word not in sets[0])])
        else:
            found.append(list(dict.fromkeys(word for text in sets for word in text)))
    return found


def _topics(evidence: Evidence) -> tuple[np.ndarray, list[str]]:
    """The leading directions of the telling words, weighted by TF-IDF and of length 1 (latent semantic analysis)."""
    from scipy.sparse import csr_array
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    if not len(evidence):
        return np.zeros((0, 0)), []
    words = evidence.once(word_sets)
    sets = words.sets
    pairs = len(sets) == 2 and not evidence.answers_questions
    told = np.setxor1d(sets[0], sets[1], assume_unique=True) if pairs else _once(np.concatenate(sets))
    rows, codes = np.divmod(told, words.size)
    counts = np.bincount(codes, minlength=words.size)
    known = sorted((word, code) for code, word in enumerate(words.vocabulary) if counts[code] >= LEAST_EXAMPLES)
    size = min(TOPICS, len(known) - 1, len(evidence) - 1)
    if size < 1:
        return np.zeros((len(evidence), 0)), []
    place = np.full(words.size, -1)
    place[[code for _, code in known]] = np.arange(len(known))
    kept = place[codes] >= 0
    there = csr_array((np.ones(kept.sum()), (rows[kept], place[codes[kept]])), shape=(len(evidence), len(known)))
    counted = TfidfTransformer().fit_transform(there)
    with np.errstate(invalid="ignore"):  # the share of no variance, which nobody asks for, where all texts are alike
        found = TruncatedSVD(size, random_state=0).fit_transform(counted)
    found -= found.mean(axis=0)
    total = np.sqrt((found**2).sum(axis=1).mean())  # the directions keep their proportions: the first tell most
    return found * (np.sqrt(size) / max(total, SMALLEST_SPREAD)), [f"{TOPIC}{number}" for number in range(1, size + 1)]


def _groups(evidence: Evidence) -> tuple[np.ndarray, list[str]]:
    given = evidence.groups[1]
    counts = Counter(given)
    own = sorted(counts, key=lambda name: (-counts[name], name))
    if len(own) > MOST_GROUPS:
        own = [*own[: MOST_GROUPS - 1], OTHERS]
    place = {name: number for number, name in enumerate(own)}
    return np.array([place.get(name, len(own) - 1) for name in given], dtype=np.int64), own


# --- learning ----------------------------------------------------------------------------------------------------


def design(found: ReviewFeatures) -> np.ndarray:
    """(N, G + B + G B): one column per group, each feature, and each feature within each group, 0 outside of it."""
    rows, groups = len(found), len(found.groups)
    inside = np.zeros((rows, groups))
    inside[np.arange(rows), found.group] = 1
    if groups == 1:  # the features within the one group are the features
        return np.hstack([GROUP_SPREAD * inside, found.values])
    within = inside[:, :, None] * found.values[:, None, :] / np.sqrt(groups)
    return np.hstack([GROUP_SPREAD * inside, found.values, within.reshape(rows, groups * found.values.shape[1])])


def weighted(found: ReviewFeatures, weights: np.ndarray) -> np.ndarray:
    """``design(found) @ weights``, (N,), without the many zeros."""
    groups, width = len(found.groups), found.values.shape[1]
    own = np.broadcast_to(weights[groups : groups + width], (groups, width))
    if groups > 1:
        own = own + weights[groups + width :].reshape(groups, width) / np.sqrt(groups)
    return GROUP_SPREAD * weights[found.group] + np.einsum("nb,nb->n", found.values, own[found.group])


def learn(rows: np.ndarray, offset: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Weights (P,) float64 that maximise the log-likelihood of the decisions less half the sum of their squares.

    rows: (n, P), ``design`` of the decided examples. offset: (n,), the log-odds of suspicion. wrong: (n,), 0 or 1.
    The probability of an example is sigmoid(offset + rows @ weights). Newton's method from 0; a step that does not
    lead up is halved. Without rows all weights are 0.
    """
    weights = np.zeros(rows.shape[1])
    height = _height(rows, offset, wrong, weights)
    for _ in range(STEPS):
        p = sigmoid(offset + rows @ weights)
        gradient = rows.T @ (wrong - p) - weights
        if np.abs(gradient).max(initial=0) < PRECISION:
            break
        curvature = (rows.T * (p * (1 - p))) @ rows + np.eye(len(weights))
        step, size = np.linalg.solve(curvature, gradient), 1.0
        floor = height - ROUNDING * (1 + abs(height))
        while (reached := _height(rows, offset, wrong, weights + size * step)) < floor and size > SMALLEST_STEP:
            size /= 2
        weights, height = weights + size * step, reached
    return weights


def _height(rows: np.ndarray, offset: np.ndarray, wrong: np.ndarray, weights: np.ndarray) -> float:
    z = offset + rows @ weights
    return float((wrong * z - np.logaddexp(0, z)).sum() - (weights @ weights) / 2)


def review(found: ReviewFeatures, decided: np.ndarray) -> np.ndarray:
    """The probability that each example is wrong, (N,) float64 in 0..1, after what was decided.

    decided: (N,), 1 wrong, 0 right, NaN undecided. Without decisions it is suspicion.
    """
    known = np.isfinite(decided)
    weights = learn(design(found.rows(known)), found.offset[known], decided[known])
    return sigmoid(found.offset + weighted(found, weights))


# --- a ranking ---------------------------------------------------------------------------------------------------


class Ranking(NamedTuple):
    """probability: (N,) float64, 0..1, that each example is wrong. learned: sentences, what the decisions taught."""

    probability: np.ndarray
    learned: list[str]


def rank(
    evidence: Evidence, scores: pd.DataFrame, suspicion: np.ndarray, decisions: Mapping[str, str]
) -> Ranking:
    """What the decisions so far make of ``suspicion`` (N,).

    scores: of its detectors, (N, D). decisions: id -> keep, drop or fix, "" where there is none yet; of ids that are
    not in the split nothing is learned. ValueError for another word: ``decisions.read_decisions`` lets none pass.
    """
    if unknown := sorted(set(decisions.values()) - WRONG.keys() - {""}):
        raise ValueError(f"no decisions: {', '.join(unknown)}")
    decided = np.array([WRONG.get(decisions.get(each, ""), np.nan) for each in evidence.split.ids])
    found = features(evidence, scores, suspicion)
    return Ranking(review(found, decided), learned(evidence, found, decided))


def learned(evidence: Evidence, found: ReviewFeatures, decided: np.ndarray) -> list[str]:
    """What the decisions say, in words that can be checked with them: by class or question type; how many were wrong
    where suspicion expected how many; words and features that wrong and right ones differ in."""
    known = np.isfinite(decided)
    if not known.any():
        return ["no decisions yet: the order is that of suspicion"]
    total, wrong = int(known.sum()), int(decided[known].sum())
    expected = sigmoid(found.offset[known]).sum()
    said = [_by_group(evidence, found, decided, known),
            f"{_count(wrong)} of {total} {_were(wrong)} wrong, where suspicion had expected {expected:.1f}"]
    if min(wrong, total - wrong) < TOLD_FROM:
        return [*said, f"fewer than {TOLD_FROM} of one sort: the order is still close to that of suspicion"]
    return [*said, *_told_features(found, decided, known), *_told_words(evidence, decided, known)]


def _by_group(evidence: Evidence, found: ReviewFeatures, decided: np.ndarray, known: np.ndarray) -> str:
    """``of 41 reviewed pairs labelled neutral 14 were wrong, of 60 labelled contradiction none``"""
    texts = "questions" if evidence.answers_questions else "pairs" if len(_text_names(evidence)) == 2 else "texts"
    kind = "of type" if evidence.answers_questions else "labelled"
    parts: list[str] = []
    for number, name in enumerate(found.groups):
        inside = decided[known & (found.group == number)]
        if len(inside):
            wrong = int(inside.sum())
            parts.append(f"of {len(inside)} {kind} {name} {_count(wrong)}" if parts else
                         f"of {len(inside)} reviewed {texts} {kind} {name} {_count(wrong)} {_were(wrong)} wrong")
    return ", ".join(parts)


def _count(number: int) -> str:
    return str(number) if number else "none"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _told_features(found: ReviewFeatures, decided: np.ndarray, known: np.ndarray) -> list[str]:
    """Of the features that have a name a person knows, and each group with decisions enough: those whose means differ
    most between wrong and right ones, in pooled standard deviations."""
    gaps: dict[tuple[int, int], float] = {}
    for group in range(len(found.groups)):
        inside = known & (found.group == group)
        wrong, right = found.values[inside & (decided == 1)], found.values[inside & (decided == 0)]
        if min(len(wrong), len(right)) < TOLD_FROM:
            continue
        spread = np.sqrt((wrong.var(axis=0) + right.var(axis=0)) / 2)
        gap = (wrong.mean(axis=0) - right.mean(axis=0)) / np.where(spread > SMALLEST_SPREAD, spread, np.inf)
        gaps |= {(group, number): float(gap[number]) for number, name in enumerate(found.names)
                 if not name.startswith(TOPIC) and abs(gap[number]) >= TOLD_GAP}
    strongest = sorted(gaps, key=lambda place: -abs(gaps[place]))[:TOLD_FEATURES]
    return [f"{found.groups[group]}: {found.names[number]} is {'higher' if gaps[group, number] > 0 else 'lower'} in "
            f"the wrong ones, by {abs(gaps[group, number]):.1f} standard deviations" for group, number in strongest]


def _told_words(evidence: Evidence, decided: np.ndarray, known: np.ndarray) -> list[str]:
    """Words that stand in many of the wrong ones and in few of the right ones: by the ratio of their shares."""
    inside = {value: list(map(set, telling_words(evidence, np.flatnonzero(known & (decided == value)).tolist())))
              for value in (0, 1)}
    counts = {value: Counter(word for each in sets for word in each) for value, sets in inside.items()}
    shares = {value: {word: (counts[value][word] + 0.5) / (len(inside[value]) + 1) for word in counts[1]}
              for value in (0, 1)}
    telling = [word for word in counts[1] if counts[1][word] >= TOLD_FROM
               and shares[1][word] >= 2 * shares[0][word]]
    strongest = sorted(telling, key=lambda word: (-shares[1][word] / shares[0][word], word))[:TOLD_WORDS]
    return ["words: " + ", ".join(
        f"{word!r} in {counts[1][word]} of {len(inside[1])} wrong and {counts[0][word]} of {len(inside[0])} right"
        for word in strongest)] if strongest else []


# --- would it have helped ----------------------------------------------------------------------------------------


def simulate_review(
    found: ReviewFeatures, truth: np.ndarray, *, depth: int, every: int | None = 10, seed: int = 0
) -> np.ndarray:
    """How many wrong ones somebody finds who decides by ``truth`` (N,) bool: (depth,) int64, after each decision.

    found: of the N examples that may be decided (``ReviewFeatures.rows``). every: after how many decisions the rest is
    ranked anew; None: the order of suspicion to the end. seed: of the order among equals.
    """
    depth, every = min(depth, len(truth)), every or len(truth)
    ties = np.random.default_rng(seed).permutation(len(truth))
    decided, order = np.full(len(truth), np.nan), list[int]()
    while len(order) < depth:
        by_rank = np.lexsort((ties, -review(found, decided)))
        chosen = by_rank[np.isnan(decided[by_rank])][: min(every, depth - len(order))]
        decided[chosen] = truth[chosen]
        order += chosen.tolist()
    return np.cumsum(truth[order])
