"""Suspicion: one number per example, the probability that it is wrong, from the detectors that can be had.

A logistic regression over a few detectors. Its weights stand in suspicion.json: fitted on planted errors alone by
benchmarks/error_detection.py --fit, one set of weights for each combination of what may be there beside the map, so
that what was not made is left out rather than guessed. A regression and not a vote or a mean of ranks, because
detectors of one kind repeat each other, and because a sum of evidence reads as a probability; and linear, because with
some thousand planted errors what is more flexible learns how they were planted. No weight is below 0.

Of questions it counts by how much a score stands out from the others of its dataset, which carries over from a model
that knows the language to one that does not, where ranks do not; and only that, as each detector finds errors of its
own kind: what one has nothing against takes nothing from what another found. Of labels all detectors ask the same, how
well it fits, so that both ends of their ranks tell.
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
MAP, OUT_OF_FOLD, TEXTS = "metrics", "out_of_fold", "texts"
# Beside the map: field of Evidence -> what it is called in the column ``evidence``.
PARTS = {"out_of_fold": "out-of-fold models", "embeddings": "embeddings", "predictions": "the model's predictions"}
OOF_WRONG = "oof_correctness"
MOST = 8.0  # by how many interquartile ranges a score counts as standing out


class Term(NamedTuple):
    """One input of the regression: a detector, and which part of the evidence it needs."""

    detector: str
    part: str = MAP


# Few, of different kinds, each of which found something on its own (RESULTS.md).
TERMS: dict[str, tuple[Term, ...]] = {
    "labels": (
        Term("aum"), Term("never_learned"), Term("duplicate_disagreement", TEXTS), Term("oof_confidence", OUT_OF_FOLD),
        Term("mean_distance", "embeddings"), Term("retag", "predictions"),
    ),
    "qa": (
        Term("weaker_boundary"), Term("aum"), Term("odd_question", TEXTS), Term("long_answer", TEXTS),
        Term("similar_questions", TEXTS), Term("rule9_question_not_starting_with_qword", TEXTS),
        Term("oof_weaker_boundary", OUT_OF_FOLD), Term("oof_aum", OUT_OF_FOLD), Term("oof_loss", OUT_OF_FOLD),
        Term("span_margin", OUT_OF_FOLD), Term("oof_answer_mismatch", OUT_OF_FOLD),
        Term("mean_distance", "embeddings"),
        Term("answer_mismatch", "predictions"),
    ),
}


class Suspicion(NamedTuple):
    """probability: (N,) float64, 0..1, higher is more likely wrong. made_of: in words, what it was made of."""

    probability: np.ndarray
    made_of: str


def kind_of(evidence: Evidence) -> str:
    return "qa" if evidence.answers_questions else "labels"


def parts_of(evidence: Evidence) -> tuple[str, ...]:
    """Which of PARTS are there, in their order. Out-of-fold models of which is not known how often they are right are
    left out: how far to trust them cannot be told."""
    table = evidence.out_of_fold
    unknown = table is not None and not ("correctness" in table and table["correctness"].notna().any())
    return tuple(part for part in PARTS if evidence.has(part) and not (part == OUT_OF_FOLD and unknown))


def terms_of(kind: str, parts: tuple[str, ...]) -> list[Term]:
    return [term for term in TERMS[kind] if term.part in (MAP, TEXTS, *parts)]


def term_values(scores: pd.DataFrame, terms: list[Term], kind: str) -> np.ndarray:
    """The inputs of the regression, (N, terms) float64, from the detectors' scores (N, D), as SCALES has them; 0 where
    a detector is not there or says nothing of an example.

    Each part of the evidence counts as far as it can be trusted (``trust``).
    """
    trusted = trust(scores, terms)
    columns = [trusted.get(term.part, 1.0) * SCALES[kind](scores[term.detector].to_numpy(dtype=np.float64))
               if term.detector in scores else np.zeros(len(scores)) for term in terms]
    return np.stack(columns, axis=1) if columns else np.zeros((len(scores), 0))


def trust(scores: pd.DataFrame, terms: list[Term]) -> dict[str, float]:
    """Part of the evidence -> how much it counts, 0..1.

    Out-of-fold models by the share of examples that they get right, and what was recorded in training by the rest: a
    model that could learn the task has learned its errors too, and one that could not says nothing of what it has not
    seen.
    """
    right, found = 0.0, {}
    if any(term.part == OUT_OF_FOLD for term in terms):
        right = 1 - _mean(scores, OOF_WRONG)
        found[OUT_OF_FOLD] = right
    found[MAP] = 1 - right
    return found


def _mean(scores: pd.DataFrame, detector: str) -> float:
    """Of what it says; 0 where it says nothing."""
    values = scores[detector].to_numpy(dtype=np.float64) if detector in scores else np.zeros(0)
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else 0.0


def standing_out(values: np.ndarray) -> np.ndarray:
    """How far each of ``values`` (n,) lies above their median, in interquartile ranges, 0..MOST; 0 for NaN.

    Where half of them or more are alike, as with flags, in standard deviations.
    """
    known = np.isfinite(values)
    result = np.zeros(len(values))
    if known.any():
        low, middle, high = np.percentile(values[known], [25, 50, 75])
        spread = high - low or values[known].std() or 1.0
        result[known] = np.clip((values[known] - middle) / spread, 0, MOST)
    return result


def among_the_rest(values: np.ndarray) -> np.ndarray:
    """``normal_scores`` of ``values`` (n,), 0 for NaN."""
    known = np.isfinite(values)
    result = np.zeros(len(values))
    result[known] = normal_scores(values[known])
    return result


def normal_scores(values: np.ndarray) -> np.ndarray:
    """Quantiles of the standard normal distribution at the ranks of ``values``, (n,); ties share their mean rank."""
    import pandas as pd
    from scipy.special import ndtri

    ranks = pd.Series(values).rank().to_numpy()  # scipy.stats, which has them too, is slow to import
    return ndtri((ranks - 0.5) / len(values)) if len(values) else values


SCALES = {"labels": among_the_rest, "qa": standing_out}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def suspicion(evidence: Evidence, scores: pd.DataFrame) -> Suspicion:
    """How likely each example is wrong, from the scores of all detectors (``base.score_all``).

    Fitted where a tenth of the examples is wrong. The order is what to go by: as a probability it says too much of
    some data and too little of other (RESULTS.md).
    """
    if not evidence.has(MAP):
        raise UserError("suspicion needs a data map: run.py --do_train --enable_cartography records one")
    kind, parts = kind_of(evidence), parts_of(evidence)
    terms = terms_of(kind, parts)
    fitted = weights()[kind]["+".join((MAP, *parts))]
    probability = sigmoid(linear(term_values(scores, terms, kind), fitted))
    return Suspicion(probability, ", ".join(["the data map", *(PARTS[part] for part in parts)]))


def linear(values: np.ndarray, fitted: dict[str, Any]) -> np.ndarray:
    """The log-odds that each example is wrong, (N,), from ``term_values``."""
    return values @ np.array(fitted["weights"]) + fitted["intercept"]


@functools.cache
def weights() -> dict[str, Any]:
    """kind -> parts joined by "+" -> {"weights": one per term, "intercept"}; ``fitted`` says on what."""
    return json.loads(resources.files("datamap.detection").joinpath(WEIGHTS).read_text(encoding="utf-8"))
