"""Detectors from embeddings: nearest neighbours, distance from the rest of a class, clusters."""

from __future__ import annotations

import numpy as np

from datamap.analysis.clusters import NOISE
from datamap.detection.base import Evidence, detector
from datamap.detection.detect_dynamics import numbers
from datamap.detection.detect_probabilities import entropy

COST, CLUSTERED = "embeddings", "embeddings, clusters"
GRIVAS, LARSON = "Grivas et al. 2020", "Larson et al. 2019"


def neighbour_shares(evidence: Evidence) -> np.ndarray:
    """(N, C) float64: the share of each class among the nearest neighbours of an example, NaN without any."""
    rows, classes = evidence.neighbours.rows, len(evidence.class_names)
    found = np.where(rows >= 0, evidence.labels[rows], -1)
    shares = np.stack([(found == each).sum(axis=1) for each in range(classes)], axis=1).astype(np.float64)
    total = shares.sum(axis=1, keepdims=True)
    return np.divide(shares, total, out=np.full(shares.shape, np.nan), where=total > 0)


def own(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What ``table`` (N, C) holds at each example's own class, NaN where it has none."""
    values = table[np.arange(len(labels)), np.maximum(labels, 0)]
    return np.where(labels >= 0, values, np.nan)


@detector("knn_disagreement", "share of other labels among the 10 nearest neighbours", needs=("embeddings",),
          tasks="labels", cost=COST, paper=GRIVAS)
def _knn_disagreement(evidence: Evidence) -> np.ndarray:
    return 1 - own(neighbour_shares(evidence), evidence.labels)


@detector("knn_entropy", "entropy in nats of the labels of the 10 nearest neighbours and its own, weighted by "
          "exp(-distance^2)", needs=("embeddings",), tasks="labels", range="0..log C", cost=COST, paper=GRIVAS)
def _knn_entropy(evidence: Evidence) -> np.ndarray:
    """Distances are those of vectors of length 1. The example itself counts as a neighbour at distance 0."""
    rows, distances = evidence.neighbours.rows, evidence.neighbours.distances.astype(np.float64)
    weights = np.where(rows >= 0, np.exp(-distances**2), 0)
    found = np.where(rows >= 0, evidence.labels[rows], -1)
    mass = np.stack([(weights * (found == each)).sum(axis=1) + (evidence.labels == each)
                     for each in range(len(evidence.class_names))], axis=1)
    mass /= mass.sum(axis=1, keepdims=True)
    return np.where((rows >= 0).any(axis=1) & (evidence.labels >= 0), entropy(mass), np.nan)


@detector("knn_distance", "mean distance to the 10 nearest neighbours", needs=("embeddings",), range="0..2",
          cost=COST, paper="Ramaswamy et al. 2000")
def _knn_distance(evidence: Evidence) -> np.ndarray:
    rows, distances = evidence.neighbours.rows, evidence.neighbours.distances
    if not rows.shape[1]:
        return np.full(len(evidence), np.nan)
    return distances.mean(axis=1, dtype=np.float64)


@detector("mean_distance", "distance to the mean vector of its label (questions: of its question type)",
          needs=("embeddings",), range="0 and more", cost=COST, paper=LARSON)
def _mean_distance(evidence: Evidence) -> np.ndarray:
    """Euclidean, between the embeddings as they are: brought to length 1 they find less (RESULTS.md)."""
    import pandas as pd

    vectors = evidence.embeddings
    assert vectors is not None
    group, _ = pd.factorize(np.asarray(evidence.groups[1], dtype=object))
    scores = np.full(len(evidence), np.nan)
    known = evidence.order[np.isfinite(vectors).all(axis=1)[evidence.order]]
    for each in range(group.max() + 1):
        rows = known[group[known] == each]
        if len(rows):
            chosen = vectors[rows]
            chosen -= chosen.mean(axis=0)
            scores[rows] = np.sqrt(np.einsum("ij,ij->i", chosen, chosen))
    return scores


@detector("cluster_noise", "in no cluster", needs=("clusters",), flags=True, cost=CLUSTERED,
          paper="Campello et al. 2013")
def _cluster_noise(evidence: Evidence) -> np.ndarray:
    cluster = numbers(evidence.clusters, "cluster")
    return np.where(np.isnan(cluster), np.nan, cluster == NOISE)


@detector("cluster_outlier", "outlier score (GLOSH) of the clusters", needs=("clusters",), columns=("outlier_score",),
          cost=CLUSTERED, paper="Campello et al. 2015")
def _cluster_outlier(evidence: Evidence) -> np.ndarray:
    return numbers(evidence.clusters, "outlier_score")


@detector("cluster_minority", "share of other labels among the others of its cluster", needs=("clusters",),
          tasks="labels", cost=CLUSTERED)
def _cluster_minority(evidence: Evidence) -> np.ndarray:
    """NaN in no cluster, and alone in one."""
    cluster = numbers(evidence.clusters, "cluster")
    inside = ~np.isnan(cluster) & (cluster != NOISE) & (evidence.labels >= 0)
    scores = np.full(len(evidence), np.nan)
    if inside.any():
        group, labels = cluster[inside].astype(np.int64), evidence.labels[inside]
        counts = np.zeros((group.max() + 1, len(evidence.class_names)))
        np.add.at(counts, (group, labels), 1)
        others = counts.sum(axis=1)[group] - 1
        scores[inside] = np.divide(others - (counts[group, labels] - 1), others,
                                   out=np.full(len(group), np.nan), where=others > 0)
    return scores
