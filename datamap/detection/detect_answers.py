"""Detectors for question answering: what a model answers against the gold span, and the nine error rules."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from datamap.analysis.error_rules import RULES, RULES_NEEDING_PREDICTIONS
from datamap.detection.base import Evidence, detector
from datamap.detection.detect_dynamics import numbers
from datamap.tasks.qa_metrics import score_predictions

Answers = Callable[[Evidence], list[str | None]]


def own_answers(evidence: Evidence) -> list[str | None]:
    assert evidence.predictions is not None
    return evidence.predictions


def out_of_fold_answers(evidence: Evidence) -> list[str | None]:
    assert evidence.out_of_fold is not None
    return [answer if isinstance(answer, str) else None for answer in evidence.out_of_fold["predicted_answer"]]


def own_overlap(evidence: Evidence) -> np.ndarray:
    return answer_overlap(own_answers(evidence), evidence)


def out_of_fold_overlap(evidence: Evidence) -> np.ndarray:
    return answer_overlap(out_of_fold_answers(evidence), evidence)


def answer_overlap(answers: list[str | None], evidence: Evidence) -> np.ndarray:
    """(N,) token F1 of each answer with the best of its gold answers, 0..1, by the rules of SQuAD 2.0 (no answer
    agrees with no answer alone); NaN without one."""
    golds = [gold["text"] for gold in evidence.column("answers")]
    overlap = score_predictions([answer or "" for answer in answers], golds, version_2=True).f1
    return np.where([answer is None for answer in answers], np.nan, overlap)


def _flagged(overlap: np.ndarray, fired: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(overlap), np.nan, fired)


OWN = (own_answers, own_overlap, "the trained model", {"needs": ("predictions",), "cost": "one evaluation"})
FOLDS = (out_of_fold_answers, out_of_fold_overlap, "a model trained without it",
         {"needs": ("out_of_fold",), "columns": ("predicted_answer",), "cost": "K trainings"})


def _register(prefix: str, answers: Answers, overlap: Callable[[Evidence], np.ndarray], who: str, about: dict) -> None:
    @detector(f"{prefix}answer_mismatch", f"1 - F1 of gold and what {who} answers", tasks="qa", suspicious="low",
              paper="van Halteren 2000", **about)
    def _mismatch(evidence: Evidence) -> np.ndarray:
        return 1 - evidence.once(overlap)

    @detector(f"{prefix}answer_none", f"{who} finds no answer, where gold has one", tasks="qa", flags=True, **about)
    def _none(evidence: Evidence) -> np.ndarray:
        empty = np.array([not answer for answer in answers(evidence)])
        return _flagged(evidence.once(overlap), empty & np.array([bool(gold) for gold in evidence.golds]))

    @detector(f"{prefix}answer_elsewhere", f"{who} gives an answer that shares no word with gold", tasks="qa",
              flags=True, **about)
    def _elsewhere(evidence: Evidence) -> np.ndarray:
        found = evidence.once(overlap)
        return _flagged(found, (found == 0) & np.array([bool(answer) for answer in answers(evidence)]))

    @detector(f"{prefix}answer_overlaps", f"{who} gives an answer that shares some words with gold, not all",
              tasks="qa", flags=True, **about)
    def _overlaps(evidence: Evidence) -> np.ndarray:
        found = evidence.once(overlap)
        return _flagged(found, (found > 0) & (found < 1))


_register("", *OWN)
_register("oof_", *FOLDS)


@detector("span_margin", "score of the best other span - that of the gold span (logits), out of fold",
          needs=("out_of_fold",), columns=("span_margin",), tasks="qa", range="any number", suspicious="low",
          cost="K trainings")
def _span_margin(evidence: Evidence) -> np.ndarray:
    return -numbers(evidence.out_of_fold, "span_margin")


# --- rules -------------------------------------------------------------------------------------------------------


def _rule(name: str) -> Callable[[Evidence], np.ndarray]:
    return lambda evidence: numbers(evidence.rules, name)


for _name in RULES:
    _cost = "one evaluation" if _name in RULES_NEEDING_PREDICTIONS else "texts"
    detector(_name, f"rule {_name.removeprefix('rule').partition('_')[0]} of the nine error rules fires",
             needs=("rules",), tasks="qa", flags=True, cost=_cost)(_rule(_name))


@detector("rule_score", "share of the nine error rules that fire", needs=("rules",), tasks="qa", cost="texts")
def _rule_score(evidence: Evidence) -> np.ndarray:
    """Of those that could be applied: seven without a prediction."""
    return numbers(evidence.rules, "dataset_error_score") / numbers(evidence.rules, "num_rules")
