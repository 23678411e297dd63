"""Detectors from the texts alone: copies with another label or answer, questions alike over one context, questions
that are none, answers that are too long."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from datamap.detection.base import Evidence, detector
from datamap.tasks.qa_metrics import score_predictions
from datamap.tasks.questions import fold

COST = "texts"
ALIKE = 0.8  # Jaccard overlap of the words of near duplicates
MOST_QUESTIONS = 500  # of one context that a question is compared with
BEGIN, END = "<", ">"


def content(evidence: Evidence) -> list[tuple[str, ...]]:
    """What a model reads of each example, in the form in which texts are compared."""
    columns = (evidence.split.data[column][:] for column in evidence.split.task.text_columns)
    return list(zip(*map(_folded, columns), strict=True))


def _folded(texts: Sequence[str]) -> list[str]:
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
    scores = np.full(len(evidence), np.nan)
    labels = evidence.labels.tolist()
    for row, near in enumerate(evidence.neighbours.rows.tolist()):
        alike = [other for other in near if other >= 0 and overlap(words[row], words[other]) >= ALIKE]
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
    questions = [[BEGIN, *fold(question).split(), END] for question in evidence.split.data["question"][:]]
    pairs = Counter(pair for words in questions for pair in itertools.pairwise(words))
    singles = Counter(word for words in questions for word in words[1:])
    froms = Counter(word for words in questions for word in words[:-1])
    total = sum(singles.values())
    scores = np.full(len(evidence), np.nan)
    for row, words in enumerate(questions):
        steps = list(itertools.pairwise(words))
        mine, leaving, arriving = Counter(steps), Counter(words[:-1]), Counter(words[1:])
        likely = []
        for a, b in steps:
            share = (singles[b] - arriving[b] + 1) / (total - len(steps) + len(singles) + 1)
            likely.append((pairs[a, b] - mine[a, b] + share) / (froms[a] - leaving[a] + 1))
        scores[row] = -np.log(likely).mean()
    return scores


@detector("long_answer", "log of the answer's words by the median of its question type", needs=(), tasks="qa",
          range="any number", cost=COST)
def _long_answer(evidence: Evidence) -> np.ndarray:
    """NaN where there is no answer. The continuous form of rule 1."""
    lengths = np.array([len(answer.split()) for answer in evidence.golds], dtype=np.float64)
    _, group = np.unique(np.asarray(evidence.split.task.groups(evidence.split.data)[1]), return_inverse=True)
    scores = np.full(len(evidence), np.nan)
    for each in range(group.max() + 1):
        answered = (group == each) & (lengths > 0)
        if answered.any():
            scores[answered] = np.log(lengths[answered] / np.median(lengths[answered]))
    return scores


