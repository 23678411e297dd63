"""What each of several models predicts of every example that it was not trained on: voters for an ensemble.

They are as different as can be had cheaply: a network's out-of-fold predictions, a linear head on embeddings, nearest
neighbours, the words alone; and sixteen linear heads on random projections of the embeddings.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from datamap.detection.base import Evidence
from datamap.detection.detect_neighbours import neighbour_shares, own
from datamap.detection.detect_probabilities import numbered
from datamap.detection.neighbours import MOST_COMPARED

FOLDS = 5
PROJECTIONS, DRAWS = (32, 64, 128, 256), 4  # dimensions, and how often each is drawn (Reiss et al. 2020)
NO_VOTE = -1


def votes(evidence: Evidence) -> dict[str, np.ndarray]:
    """(N,) int64 class numbers by voter, -1 where it has no vote; the voters that can be had from ``evidence``."""
    found = {"words": word_votes(evidence)}
    if evidence.out_of_fold is not None and "predicted_label" in evidence.out_of_fold:
        found["out_of_fold"] = numbered(evidence, evidence.out_of_fold["predicted_label"].tolist())
    if evidence.embeddings is not None:
        found["head"] = head_votes(evidence)
        shares = neighbour_shares(evidence)
        known = ~np.isnan(shares).any(axis=1)
        # Where as many neighbours have its own label as any other, they speak for it.
        agreed = own(shares, evidence.labels) == shares.max(axis=1)
        found["neighbours"] = np.where(known, np.where(agreed, evidence.labels, shares.argmax(axis=1)), NO_VOTE)
    return found


def _foldable(evidence: Evidence, known: np.ndarray) -> np.ndarray:
    """Rows in the order of the ids: those with a label, and ``known``, of classes with an example for each fold."""
    counts = np.bincount(evidence.labels[known & (evidence.labels >= 0)], minlength=len(evidence.class_names))
    large = np.append(counts >= FOLDS, False)[evidence.labels]  # -1 takes the last
    rows = evidence.order
    return rows[(known & large)[rows]]


def head_votes(evidence: Evidence) -> np.ndarray:
    """Of logistic regression on the embeddings, out of fold; above 20,000 examples on the vectors that neighbours are
    sought with. No vote on a class with fewer than 5 examples."""
    from datamap.detection.label_quality import out_of_fold_probabilities

    assert evidence.embeddings is not None
    vectors = evidence.embeddings if len(evidence) <= MOST_COMPARED else evidence.neighbours.vectors
    rows = _foldable(evidence, np.isfinite(vectors).all(axis=1))
    found = np.full(len(evidence), NO_VOTE)
    if len(np.unique(evidence.labels[rows])) > 1:
        probabilities = out_of_fold_probabilities(vectors[rows], evidence.labels[rows], len(evidence.class_names),
                                                  folds=FOLDS, seed=evidence.seed)
        found[rows] = probabilities.argmax(axis=1)
    return found


def word_votes(evidence: Evidence) -> np.ndarray:
    """Of ridge regression on the TF-IDF of single words and of pairs (of two texts: the words of both, of the first
    alone, of the second alone), out of fold. No vote on a class with fewer than 5 examples."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import StratifiedKFold

    rows, found = _foldable(evidence, np.ones(len(evidence), dtype=bool)), np.full(len(evidence), NO_VOTE)
    labels = evidence.labels[rows]
    if len(np.unique(labels)) < 2:
        return found
    texts = [evidence.column(column) for column in evidence.split.task.text_columns]
    documents = [terms([column[row] for column in texts]) for row in rows.tolist()]
    matrix = TfidfVectorizer(analyzer=lambda document: document, sublinear_tf=True, dtype=np.float32,
                             min_df=min(2, len(rows))).fit_transform(documents)

    def vote(fold: tuple[np.ndarray, np.ndarray]) -> None:
        train, test = fold
        model = RidgeClassifier(solver="sparse_cg", tol=1e-3).fit(matrix[train], labels[train])
        found[rows[test]] = model.predict(matrix[test])

    with ThreadPoolExecutor(min(FOLDS, os.cpu_count() or 1)) as pool:  # sparse products hold no lock of Python's
        list(pool.map(vote, StratifiedKFold(FOLDS, shuffle=True, random_state=evidence.seed).split(labels, labels)))
    return found


def terms(texts: Sequence[str]) -> list[str]:
    first, *rest = [text.casefold().split() for text in texts]
    if not rest:
        return [*first, *(f"{a} {b}" for a, b in zip(first, first[1:], strict=False))]
    one, other = set(first), set(rest[0])
    return [*(f"both {word}" for word in first if word in other), *(f"first {word}" for word in first
            if word not in other), *(f"second {word}" for word in rest[0] if word not in one)]


def projection_votes(evidence: Evidence) -> np.ndarray:
    """(V, N) int64: of linear heads on Gaussian projections of the embeddings, out of fold; -1 for no vote.

    As Reiss et al. 2020, of whose logistic regressions these are the least-squares form: a fold is left out by
    taking its sums from those of all, so that sixteen heads cost little more than one. Vectors are those that
    neighbours are sought with; where they have fewer dimensions than a projection, it is left out.
    """
    vectors = evidence.neighbours.vectors
    rows = _foldable(evidence, np.isfinite(vectors).all(axis=1))
    labels, width = evidence.labels[rows], vectors.shape[1]
    if len(np.unique(labels)) < 2:
        return np.full((0, len(evidence)), NO_VOTE)
    rng = np.random.default_rng(evidence.seed)
    sizes = [size for size in PROJECTIONS if size < width] or [-(-width // 2)]
    found = np.full((len(sizes) * DRAWS, len(evidence)), NO_VOTE)
    targets = np.where(labels[:, None] == np.arange(len(evidence.class_names)), 1.0, -1.0).astype(np.float32)
    chosen = vectors[rows]
    for voter, size in enumerate(np.repeat(sizes, DRAWS)):
        projection = rng.normal(size=(width, size)).astype(np.float32)
        inputs = np.column_stack([chosen @ projection / np.sqrt(size, dtype=np.float32), np.ones(len(rows))])
        found[voter, rows] = ridge_votes(inputs.astype(np.float32), targets, rng.permutation(len(rows)) % FOLDS)
    return found


def ridge_votes(inputs: np.ndarray, targets: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(n,): which column of ``targets`` (n, C) is predicted highest by least squares on the other folds; inputs:
    (n, m). A penalty of a hundredth of the mean square keeps the solution where inputs are few or alike."""
    folds = range(int(fold.max()) + 1)
    squares = np.stack([inputs[fold == each].T @ inputs[fold == each] for each in folds]).astype(np.float64)
    products = np.stack([inputs[fold == each].T @ targets[fold == each] for each in folds]).astype(np.float64)
    penalty = 0.01 * np.trace(squares.sum(axis=0)) / len(squares[0]) * np.eye(len(squares[0]))
    found = np.zeros(len(inputs), dtype=np.int64)
    for each in folds:
        left = squares.sum(axis=0) - squares[each] + penalty
        weights = np.linalg.solve(left, products.sum(axis=0) - products[each])
        found[fold == each] = (inputs[fold == each] @ weights.astype(np.float32)).argmax(axis=1)
    return found
