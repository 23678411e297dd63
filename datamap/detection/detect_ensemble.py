"""Detectors from several models or several detectors at once: an ensemble, item response theory, Borda count."""

from __future__ import annotations

import numpy as np

from datamap.detection.base import Evidence, detector, detectors
from datamap.detection.votes import NO_VOTE, projection_votes, votes

WORDS, COST = "texts; embeddings, K trainings where there are", "embeddings"
# One of each kind, none in the same order as another; those that there are.
BORDA = ("confidence", "aum", "oof_confidence", "oof_aum", "self_confidence", "knn_disagreement", "mean_distance",
         "cluster_outlier", "ensemble_disagreement", "answer_mismatch", "oof_answer_mismatch", "span_margin",
         "rule_score")
STEPS = 20  # of Newton's method for the items of item response theory; they stand still long before


def _wrong(found: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(V, N) 1 where a voter has another label, 0 where the same, NaN without a vote or a label."""
    return np.where((found == NO_VOTE) | (labels < 0), np.nan, found != labels)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over voters (V, N), of those that have a vote, NaN where none has."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0).sum(axis=0)
    return np.divide(total, count, out=np.full(values.shape[1], np.nan), where=count > 0)


@detector("ensemble_disagreement", "share of different models that predict another label, each out of fold", needs=(),
          tasks="labels", cost=WORDS, paper="Loftsson 2009")
def _ensemble_disagreement(evidence: Evidence) -> np.ndarray:
    return _mean(_wrong(np.stack(list(evidence.once(votes).values())), evidence.labels))


@detector("majority_vote", "most of these models agree on another label", needs=(), tasks="labels", flags=True,
          cost=WORDS, paper="Loftsson 2009")
def _majority_vote(evidence: Evidence) -> np.ndarray:
    """Another label has more votes than any label and than its own; NaN without a vote or a label."""
    found = np.stack(list(evidence.once(votes).values()))
    counts = np.stack([(found == each).sum(axis=0) for each in range(len(evidence.class_names))], axis=1)
    rest = counts.copy()
    rest[np.arange(len(rest)), np.maximum(evidence.labels, 0)] = -1
    ordered = np.sort(counts, axis=1)
    first, second = ordered[:, -1], ordered[:, -2] if counts.shape[1] > 1 else np.zeros(len(counts))
    flags = (rest.max(axis=1) == first) & (first > second)
    return np.where((counts.sum(axis=1) > 0) & (evidence.labels >= 0), flags, np.nan)


@detector("projection_ensemble", "share of linear heads on random projections that predict another label",
          needs=("embeddings",), tasks="labels", cost=COST, paper="Reiss et al. 2020")
def _projection_ensemble(evidence: Evidence) -> np.ndarray:
    found = evidence.once(projection_votes)
    return _mean(_wrong(found, evidence.labels)) if len(found) else np.full(len(evidence), np.nan)


@detector("item_discrimination", "- discrimination of the item (two-parameter item response theory): good models get "
          "it wrong", needs=("embeddings",), tasks="labels", range="any number", suspicious="low", cost=WORDS,
          paper="Rodriguez et al. 2021")
def _item_discrimination(evidence: Evidence) -> np.ndarray:
    found = np.concatenate([np.stack(list(evidence.once(votes).values())), evidence.once(projection_votes)])
    return -discriminations(1 - _wrong(found, evidence.labels))


def discriminations(right: np.ndarray) -> np.ndarray:
    """(N,) of answers (V, N), 1 right, 0 wrong, NaN none: the slope a of p(right) = sigmoid(a ability + b).

    The ability of a model is how often it is right, its log odds standardised over the models. Slope and b are then
    fitted to each item by Newton's method, under normal priors with variance 1 and mean 1 and 0: an item that says
    nothing has slope 1. This is one half step of the alternation that fits a two-parameter model.
    """
    known = ~np.isnan(right)
    answers, weights = np.where(known, right, 0), known.astype(np.float64)
    rate = (answers.sum(axis=1) + 0.5) / (weights.sum(axis=1) + 1)
    ability = np.log(rate / (1 - rate))
    ability = (ability - ability.mean()) / (ability.std() or 1)
    slope, offset = np.ones(right.shape[1]), np.zeros(right.shape[1])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-(ability[:, None] * slope + offset)))
        error, curve = weights * (answers - p), weights * p * (1 - p)
        to_slope, to_offset = ability @ error - (slope - 1), error.sum(axis=0) - offset
        a, b, c = ability**2 @ curve + 1, ability @ curve, curve.sum(axis=0) + 1
        determinant = a * c - b**2
        slope = slope + (c * to_slope - b * to_offset) / determinant
        offset = offset + (a * to_offset - b * to_slope) / determinant
    return np.where(known.any(axis=0), slope, np.nan)


@detector("borda_count", "mean rank among the examples over detectors of different kinds, those that there are",
          needs=(), cost="that of the others", paper="Larson et al. 2020")
def _borda_count(evidence: Evidence) -> np.ndarray:
    """Ranks divided by the number of examples that a detector judges; examples with equal scores share their mean
    rank. NaN where none says anything."""
    from scipy.stats import rankdata

    known = detectors()
    ranks = []
    for each in (known[name] for name in BORDA if known[name].can_judge(evidence)):
        scores = each(evidence)
        judged = ~np.isnan(scores)
        ranked = np.full(len(scores), np.nan)
        ranked[judged] = (rankdata(scores[judged]) - 0.5) / max(judged.sum(), 1)
        ranks.append(ranked)
    return _mean(np.stack(ranks)) if ranks else np.full(len(evidence), np.nan)
