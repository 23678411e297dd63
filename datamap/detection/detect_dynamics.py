"""Detectors from training dynamics: every column of the data map, and the same from models that were trained without
the example (``oof_``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from datamap.detection.base import Evidence, detector

MAPS, FOLDS = "recorded in training", "K trainings"
SWAYAMDIPTA, PLEISS = "Swayamdipta et al. 2020", "Pleiss et al. 2020"
THRESHOLD_CLASS, THRESHOLD_PERCENTILE = "threshold_sample", 99


def numbers(table: Any, column: str) -> np.ndarray:
    """(N,) float64 of a column, NaN where it is missing."""
    return table[column].to_numpy(dtype=np.float64, na_value=np.nan)


def _high(column: str) -> Callable[[Any], np.ndarray]:
    return lambda table: numbers(table, column)


def _low(column: str) -> Callable[[Any], np.ndarray]:
    return lambda table: -numbers(table, column)


def _improbable(column: str) -> Callable[[Any], np.ndarray]:
    return lambda table: 1 - numbers(table, column)


def _weaker(table: Any) -> np.ndarray:
    return 1 - np.minimum(numbers(table, "start_confidence"), numbers(table, "end_confidence"))


def _gap(table: Any) -> np.ndarray:
    return np.abs(numbers(table, "start_confidence") - numbers(table, "end_confidence"))


ANY_NUMBER = "any number"
BOUNDARIES = ("start_confidence", "end_confidence")
# name, what, score of a table, range, suspicious end, paper, columns, task
COLUMNS: tuple[tuple[str, str, Callable[[Any], np.ndarray], dict[str, Any]], ...] = (
    ("confidence", "1 - mean p(gold) over epochs", _improbable("confidence"),
     {"suspicious": "low", "paper": SWAYAMDIPTA}),
    ("correctness", "share of epochs predicted wrong", _improbable("correctness"),
     {"suspicious": "low", "paper": SWAYAMDIPTA}),
    ("variability", "standard deviation of p(gold) over epochs", _high("variability"),
     {"range": "0..0.5", "paper": SWAYAMDIPTA}),
    ("forgetting_events", "how often right became wrong", _high("forgetting_events"),
     {"range": "0..epochs / 2", "paper": "Toneva et al. 2019"}),
    ("never_learned", "right in no epoch", _high("never_learned"), {"flags": True, "paper": "Toneva et al. 2019"}),
    ("aum", "mean of the largest other logit - gold logit", _low("aum"),
     {"range": ANY_NUMBER, "suspicious": "low", "paper": PLEISS}),
    ("el2n", "mean norm of softmax - one-hot", _high("el2n"), {"range": "0..1.41", "paper": "Paul et al. 2021"}),
    ("aleatoric", "mean p(gold) (1 - p(gold))", _high("aleatoric"),
     {"range": "0..0.25", "paper": "Seedat et al. 2022"}),
    ("loss", "mean loss: the area under the loss by the number of epochs", _high("loss"),
     {"range": "0 and more", "paper": "Huang et al. 2019"}),
    ("label_confidence", "1 - mean p of the label's token (chains of thought)", _improbable("label_confidence"),
     {"suspicious": "low", "paper": SWAYAMDIPTA}),
    ("weaker_boundary", "1 - the lower of the mean p(gold start) and p(gold end)", _weaker,
     {"tasks": "qa", "columns": BOUNDARIES, "suspicious": "low"}),
    ("boundary_gap", "how far the mean p(gold start) and p(gold end) differ", _gap,
     {"tasks": "qa", "columns": BOUNDARIES}),
)


def _of(table: str, score: Callable[[Any], np.ndarray]) -> Callable[[Evidence], np.ndarray]:
    return lambda evidence: score(getattr(evidence, table))


for _table, _prefix, _after, _cost in (("metrics", "", "", MAPS), ("out_of_fold", "oof_", ", out of fold", FOLDS)):
    for _name, _what, _score, _about in COLUMNS:
        detector(_prefix + _name, _what + _after, needs=(_table,), cost=_cost, **{"columns": (_name,), **_about})(
            _of(_table, _score))


@detector("aum_threshold", f"AUM below the {THRESHOLD_PERCENTILE}th percentile of that of threshold samples: examples "
          f"relabelled with a class of their own, called {THRESHOLD_CLASS}", needs=("metrics",), columns=("aum",),
          tasks="labels", flags=True, suspicious="low", cost=MAPS, paper=PLEISS)
def _below_threshold_samples(evidence: Evidence) -> np.ndarray:
    """NaN without such a class, and of the samples themselves. Its cut is in the order of ``aum``."""
    if THRESHOLD_CLASS not in evidence.class_names:
        return np.full(len(evidence), np.nan)
    aum = numbers(evidence.metrics, "aum")
    samples = evidence.labels == evidence.class_names.index(THRESHOLD_CLASS)
    if np.isnan(aum[samples]).all():
        return np.full(len(evidence), np.nan)
    flags = np.where(np.isnan(aum), np.nan, aum < np.nanpercentile(aum[samples], THRESHOLD_PERCENTILE))
    return np.where(samples, np.nan, flags)
