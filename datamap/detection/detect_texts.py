"""Detectors from the texts alone: copies with another label or answer, questions alike over one context, questions
that are none, answers that are too long."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from datamap.core.words import how_often, numbered_words
from datamap.detection.base import Evidence, detector
from datamap.tasks.qa_metrics import score_predictions
from datamap.tasks.questions import fold

COST = "texts"
ALIKE = 0.8  # Jaccard overlap of the words of near duplicates
MOST_QUESTIONS = 500  # of one context that a question is compared with
BEGIN, END = "<", ">"


def content(evidence: Evidence) -> list[tuple[str, ...]]:
    """What a model reads of each example, in the form in which texts are compared."""
    columns = (evidence.column(column) for column in evidence.split.task.text_columns)
    return list(zip(*map(folded, columns), strict=True))


def folded(texts: Sequence[str]) -> list[str]:
    known = {text: fold(text) for text in dict.fromkeys(texts)}  # a context is shared by many questions
    return [known[text] for text in texts]


def answer_distances(answers: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """(n,) 1 - token F1 of each pair of answers, 0..1; "" (unanswerable) agrees with "" alone."""
    return 1 - score_predictions(answers, [[other] for other in others], version_2=True).f1


@detector("duplicate_disagreement", "share of its copies (case and spaces aside) with another label; questions: "
          "mean 1 - F1 with their answers", needs=(), cost=COST, paper="Hollenstein et al. 2016")
def _duplicate_disagreement(evidence: Evidence) -> np.ndarray:
    """NaN without a copy."""
    copies: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, texts in enumerate(evidence.once(content)):
        copies[texts].append(row)
    scores = np.full(len(evidence), np.nan)
    given = evidence.golds if evidence.answers_questions else evidence.labels.tolist()
    for rows in copies.values():
        if len(rows) > 1:
            scores[rows] = _disagreement([given[row] for row in rows], evidence.answers_questions)
    return scores


def _disagreement(values: list, are_answers: bool) -> list[float]:
    """Of each value with the others: the mean distance of answers, the share of other labels."""
    counts = Counter(values)
    others = len(values) - 1
    if not are_answers:
        return [1 - (counts[value] - 1) / others for value in values]
    pairs = list(itertools.permutations(counts, 2))
    distances = answer_distances([one for one, _ in pairs], [other for _, other in pairs]).tolist()
    total = dict.fromkeys(counts, 0.0)
    for (one, other), distance in zip(pairs, distances, strict=True):
        total[one] += counts[other] * distance
    return [total[value] / others for value in values]


@detector("near_duplicate_disagreement", "share of other labels among those of the 10 nearest neighbours that share "
          "0.8 of its words", needs=("embeddings",), tasks="labels", cost="embeddings, texts")
def _near_duplicates(evidence: Evidence) -> np.ndarray:
    """Jaccard overlap of the sets of words of all texts together. NaN without such a neighbour. Copies count."""
    words = [frozenset(f"{place} {word}" for place, text in enumerate(texts) for word in text.split())
             for texts in evidence.once(content)]
    sizes, near = np.array([len(each) for each in words]), evidence.neighbours.rows
    # Sets whose sizes differ by more than that cannot overlap so far.
    fewer, more = np.minimum(sizes[:, None], sizes[near]), np.maximum(sizes[:, None], sizes[near])
    maybe = (near >= 0) & (fewer >= ALIKE * more)
    scores = np.full(len(evidence), np.nan)
    labels = evidence.labels.tolist()
    for row in np.flatnonzero(maybe.any(axis=1)).tolist():
        alike = [other for other in near[row, maybe[row]].tolist() if overlap(words[row], words[other]) >= ALIKE]
        if alike:
            scores[row] = sum(labels[other] != labels[row] for other in alike) / len(alike)
    return scores


def overlap(left: frozenset[str], right: frozenset[str]) -> float:
    common = len(left & right)
    return common / (len(left) + len(right) - common) if common else 0.0


# --- questions ---------------------------------------------------------------------------------------------------


@detector("similar_questions", "mean 1 - F1 with the answers of questions over its context that share 0.8 of its "
          "words", needs=(), tasks="qa", cost=COST)
def _similar_questions(evidence: Evidence) -> np.ndarray:
    """NaN without such a question. Copies count. Of more than 500 questions over one context, each is compared with
    the first 500 in the order of the ids."""
    over: dict[str, list[int]] = defaultdict(list)
    texts, golds = evidence.once(content), evidence.golds
    for row in evidence.order.tolist():
        over[texts[row][1]].append(row)
    words = [frozenset(question.split()) for question, _ in texts]
    pairs = [(row, other) for rows in over.values() for row in rows for other in rows[:MOST_QUESTIONS]
             if row != other and overlap(words[row], words[other]) >= ALIKE]
    if not pairs:
        return np.full(len(evidence), np.nan)
    asked = np.array([row for row, _ in pairs])
    distances = answer_distances([golds[row] for row, _ in pairs], [golds[other] for _, other in pairs])
    count = np.bincount(asked, minlength=len(evidence))
    total = np.bincount(asked, weights=distances, minlength=len(evidence))
    return np.divide(total, count, out=np.full(len(evidence), np.nan), where=count > 0)


@detector("odd_question", "mean surprise in nats at the steps from word to word of the question, after those of the "
          "other questions", needs=(), tasks="qa", range="0 and more", cost=COST)
def _odd_question(evidence: Evidence) -> np.ndarray:
    """Of a bigram model over all other examples, with beginning and end: the mean of -log p(next word | word), where p
    backs off to the share of the next word among all words (which weighs as one step seen). A cut, garbled or
    shuffled question has steps that no other question takes."""
    place = evidence.split.task.text_columns.index("question")
    words = numbered_words([BEGIN, *texts[place].split(), END] for texts in evidence.once(content))
    is_step, size = np.ones(len(words.codes), dtype=bool), len(words.vocabulary)
    is_step[words.starts] = False
    at, rows, steps = np.flatnonzero(is_step), words.rows[is_step], words.counts - 1
    before, after = words.codes[at - 1], words.codes[at]
    _, pair = np.unique(before * size + after, return_inverse=True)
    pairs, froms, singles = np.bincount(pair), np.bincount(before, minlength=size), np.bincount(after, minlength=size)
    # Without those of the question itself.
    others = pairs[pair] - how_often(rows * len(pairs) + pair)
    leaving = froms[before] - how_often(rows * size + before)
    arriving = singles[after] - how_often(rows * size + after)
    share = (arriving + 1) / (len(at) - steps[rows] + np.count_nonzero(singles) + 1)
    surprise = -np.log((others + share) / (leaving + 1))
    return np.add.reduceat(surprise, np.cumsum(steps) - steps) / steps


@detector("long_answer", "log of the answer's words by the median of its question type", needs=(), tasks="qa",
          range="any number", cost=COST)
def _long_answer(evidence: Evidence) -> np.ndarray:
    """NaN where there is no answer. The continuous form of rule 1."""
    import pandas as pd

    lengths = np.array([len(answer.split()) for answer in evidence.golds], dtype=np.float64)
    group, _ = pd.factorize(np.asarray(evidence.groups[1], dtype=object))
    scores = np.full(len(evidence), np.nan)
    for each in range(group.max() + 1):
        answered = (group == each) & (lengths > 0)
        if answered.any():
            scores[answered] = np.log(lengths[answered] / np.median(lengths[answered]))
    return scores


