"""Detectors from class probabilities and predictions of models that were trained without the example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from datamap.detection.base import Evidence, detector
from datamap.detection.detect_dynamics import numbers

COST = "K trainings, or embeddings"
NORTHCUTT = "Northcutt et al. 2021"


def of_known(evidence: Evidence, score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """``score`` of the labels and probabilities of the examples that have both, NaN for the others."""
    assert evidence.probabilities is not None
    known = np.isfinite(evidence.probabilities).all(axis=1) & (evidence.labels >= 0)
    scores = np.full(len(evidence), np.nan)
    if known.any():
        scores[known] = score(evidence.labels[known], evidence.probabilities[known])
    return scores


def _cleanlab_score(method: str) -> Callable[[Evidence], np.ndarray]:
    def score(evidence: Evidence) -> np.ndarray:
        from datamap.detection.label_quality import label_quality

        return of_known(evidence, lambda labels, p: 1 - label_quality(labels, p, method))

    return score


FROM_PROBABILITIES: dict[str, Any] = {"needs": ("probabilities",), "tasks": "labels", "cost": COST}

for _name, _what in (
    ("self_confidence", "1 - p(label), out of fold"),
    ("normalized_margin", "(1 + largest p of another class - p(label)) / 2, out of fold"),
    ("confidence_weighted_entropy", "entropy of the classes by p(label), scaled to 0..1, out of fold"),
):
    detector(_name, _what, suspicious="low", paper=NORTHCUTT, **FROM_PROBABILITIES)(_cleanlab_score(_name))


@detector("confident_learning", "what cleanlab marks: of each pair of classes as many as are confidently the other",
          flags=True, paper=NORTHCUTT, **FROM_PROBABILITIES)
def _confident_learning(evidence: Evidence) -> np.ndarray:
    from datamap.detection.label_quality import label_issues

    def marked(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        if len(np.unique(labels)) < 2:  # there is no other label that could be right
            return np.full(len(labels), np.nan)
        return label_issues(labels, probabilities).astype(np.float64)

    return of_known(evidence, marked)


@detector("prediction_margin", "1 - (largest p - second p), out of fold, whatever the label", suspicious="low",
          paper="Dligach & Palmer 2011", **FROM_PROBABILITIES)
def _prediction_margin(evidence: Evidence) -> np.ndarray:
    def unsure(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        first, second = np.sort(probabilities, axis=1)[:, :-3:-1].T
        return 1 - (first - second)

    return of_known(evidence, unsure)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """In nats, (n,) of (n, C): 0..log C."""
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    return -(probabilities * logs).sum(axis=1)


@detector("prediction_entropy", "entropy of the classes in nats, out of fold, whatever the label", range="0..log C",
          paper="Settles 2012", **FROM_PROBABILITIES)
def _prediction_entropy(evidence: Evidence) -> np.ndarray:
    return of_known(evidence, lambda labels, probabilities: entropy(probabilities))


DROPOUT = "K trainings, T more passes"
AMIRI = "Amiri et al. 2018"


@detector("dropout_confidence", "1 - mean p(gold) over passes with dropout, out of fold", needs=("out_of_fold",),
          columns=("dropout_confidence",), suspicious="low", cost=DROPOUT, paper=AMIRI)
def _dropout_confidence(evidence: Evidence) -> np.ndarray:
    return 1 - numbers(evidence.out_of_fold, "dropout_confidence")


@detector("dropout_entropy", "entropy in nats of the mean over passes with dropout, out of fold, whatever the gold",
          needs=("out_of_fold",), columns=("dropout_entropy",), range="0..log C", cost=DROPOUT, paper=AMIRI)
def _dropout_entropy(evidence: Evidence) -> np.ndarray:
    return numbers(evidence.out_of_fold, "dropout_entropy")


# --- retag: another label is predicted ---------------------------------------------------------------------------

HALTEREN = "van Halteren 2000"


def numbered(evidence: Evidence, labels: list[Any]) -> np.ndarray:
    """(N,) int64, the class number of predicted labels (names, or numbers as the data has them), -1 for none."""
    number = {name: place for place, name in enumerate(evidence.class_names)}
    return np.array([-1 if label is None or label != label else number.get(str(label), -1) for label in labels])


def _otherwise(evidence: Evidence, predicted: list[Any]) -> np.ndarray:
    found = numbered(evidence, predicted)
    return np.where((found < 0) | (evidence.labels < 0), np.nan, found != evidence.labels)


@detector("retag", "the trained model predicts another label", needs=("predictions",), tasks="labels", flags=True,
          cost="one evaluation", paper=HALTEREN)
def _retag(evidence: Evidence) -> np.ndarray:
    assert evidence.predictions is not None
    return _otherwise(evidence, evidence.predictions)


@detector("oof_retag", "another label is predicted out of fold", needs=("out_of_fold",), columns=("predicted_label",),
          tasks="labels", flags=True, cost=COST, paper=HALTEREN)
def _oof_retag(evidence: Evidence) -> np.ndarray:
    assert evidence.out_of_fold is not None
    return _otherwise(evidence, evidence.out_of_fold["predicted_label"].tolist())
