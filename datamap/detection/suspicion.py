"""Suspicion: one number per example, the probability that it is wrong, from the detectors that can be had.

A logistic regression over a few detectors. Its weights stand in suspicion.json: fitted on planted errors alone by
benchmarks/error_detection.py --fit, one set of weights for each combination of what may be there beside the map, so
that what was not made is left out rather than guessed. A regression and not a vote or a mean of ranks, because
detectors of one kind repeat each other, and because a sum of evidence reads as a probability; and linear, because with
some thousand planted errors what is more flexible learns how they were planted.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datamap.core.errors import UserError
from datamap.detection.base import Evidence

if TYPE_CHECKING:
    import pandas as pd

WEIGHTS = "suspicion.json"
MAP = "metrics"
# Beside the map: field of Evidence -> what it is called in the column ``evidence``.
PARTS = {"out_of_fold": "out-of-fold models", "embeddings": "embeddings", "predictions": "the model's predictions"}
MOST_LOGIT = 6.0


class Term(NamedTuple):
    """One input of the regression: a detector, how it enters, and which part of the evidence it needs."""

    detector: str
    scale: str  # "rank": normal scores of its ranks; "logit": of a score in 0..1; "flag": as it is
    part: str


# Few, of different kinds, each of which found something on its own (RESULTS.md).
TERMS: dict[str, tuple[Term, ...]] = {
    "labels": (
        Term("confidence", "rank", MAP), Term("aum", "rank", MAP), Term("variability", "rank", MAP),
        Term("never_learned", "flag", MAP),
        Term("oof_confidence", "rank", "out_of_fold"), Term("oof_confidence", "logit", "out_of_fold"),
        Term("confident_learning", "flag", "out_of_fold"),
        Term("knn_disagreement", "rank", "embeddings"),
    ),
    "qa": (
        Term("confidence", "rank", MAP), Term("weaker_boundary", "rank", MAP), Term("aum", "rank", MAP),
        Term("variability", "rank", MAP), Term("never_learned", "flag", MAP),
        Term("odd_question", "rank", MAP), Term("long_answer", "rank", MAP), Term("similar_questions", "rank", MAP),
        Term("rule_score", "rank", MAP),
        Term("oof_confidence", "rank", "out_of_fold"), Term("oof_answer_mismatch", "rank", "out_of_fold"),
        Term("span_margin", "rank", "out_of_fold"),
        Term("answer_mismatch", "rank", "predictions"),
        Term("mean_distance", "rank", "embeddings"),
    ),
}


class Suspicion(NamedTuple):
    """probability: (N,) float64, 0..1, higher is more likely wrong. made_of: in words, what it was made of."""

    probability: np.ndarray
    made_of: str


def kind_of(evidence: Evidence) -> str:
    return "qa" if evidence.answers_questions else "labels"


def parts_of(evidence: Evidence) -> tuple[str, ...]:
    """Which of PARTS are there, in their order."""
    return tuple(part for part in PARTS if evidence.has(part))


def terms_of(kind: str, parts: tuple[str, ...]) -> list[Term]:
    return [term for term in TERMS[kind] if term.part in (MAP, *parts)]


def term_values(scores: pd.DataFrame, terms: list[Term]) -> np.ndarray:
    """The inputs of the regression, (N, terms) float64, from the detectors' scores (N, D); 0 is neutral.

    A detector that is not there, or says nothing of an example, is neutral.
    """
    columns = [_scaled(scores[term.detector].to_numpy(dtype=np.float64), term.scale)
               if term.detector in scores else np.zeros(len(scores)) for term in terms]
    return np.stack(columns, axis=1) if columns else np.zeros((len(scores), 0))


def _scaled(values: np.ndarray, scale: str) -> np.ndarray:
    known = np.isfinite(values)
    result = np.zeros(len(values))
    if scale == "rank":
        result[known] = normal_scores(values[known])
    elif scale == "logit":
        result[known] = logit(values[known])
    else:
        result[known] = values[known]
    return result


def normal_scores(values: np.ndarray) -> np.ndarray:
    """Quantiles of the standard normal distribution at the ranks of ``values``, (n,); ties share their mean rank."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    return ndtri((rankdata(values) - 0.5) / len(values)) if len(values) else values


def logit(p: np.ndarray) -> np.ndarray:
    """log p / (1 - p), (n,), clipped to -6..6."""
    with np.errstate(divide="ignore"):
        return np.clip(np.log(p) - np.log1p(-p), -MOST_LOGIT, MOST_LOGIT)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def suspicion(evidence: Evidence, scores: pd.DataFrame) -> Suspicion:
    """How likely each example is wrong, from the scores of all detectors (``base.score_all``).

    Calibrated on planted errors, a tenth of the examples wrong: of those at .8 about 80 % were (RESULTS.md says how it
    comes out on real ones). Of data with fewer errors it says too much; the order is what to go by.
    """
    if not evidence.has(MAP):
        raise UserError("suspicion needs a data map: run.py --do_train --enable_cartography records one")
    kind, parts = kind_of(evidence), parts_of(evidence)
    terms = terms_of(kind, parts)
    probability = sigmoid(linear(scores, terms, weights()[kind]["+".join((MAP, *parts))]))
    return Suspicion(probability, ", ".join(["the data map", *(PARTS[part] for part in parts)]))


def linear(scores: pd.DataFrame, terms: list[Term], fitted: dict[str, Any]) -> np.ndarray:
    """The log-odds that each example is wrong, (N,)."""
    return term_values(scores, terms) @ np.array(fitted["weights"]) + fitted["intercept"]


@functools.cache
def weights() -> dict[str, Any]:
    """kind -> parts joined by "+" -> {"weights": one per term, "intercept"}; ``fitted`` says on what."""
    return json.loads(resources.files("datamap.detection").joinpath(WEIGHTS).read_text(encoding="utf-8"))
