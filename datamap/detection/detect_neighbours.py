"""Detectors from embeddings: nearest neighbours, class means, clusters."""

from __future__ import annotations

import numpy as np

from datamap.detection.base import Evidence, detector

COST = "embeddings"
GRIVAS = "Grivas et al. 2020"


def neighbour_shares(evidence: Evidence) -> np.ndarray:
    """(N, C) float64: the share of each class among the nearest neighbours of an example, NaN without any."""
    rows, classes = evidence.neighbours.rows, len(evidence.class_names)
    found = evidence.labels[rows]
    shares = np.stack([((found == each) & (rows >= 0)).sum(axis=1) for each in range(classes)], axis=1).astype(float)
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
