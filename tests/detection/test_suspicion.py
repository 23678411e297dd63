"""Suspicion: a logistic regression over detectors, with the weights that were fitted on planted errors."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from datamap.core.errors import UserError
from datamap.core.splits import load_split
from datamap.detection import suspicion as module
from datamap.detection.base import Evidence, detectors, score_all
from datamap.detection.figures import auroc
from datamap.detection.suspicion import (
    MAP,
    OOF_WRONG,
    OUT_OF_FOLD,
    PARTS,
    TERMS,
    TEXTS,
    Term,
    normal_scores,
    standing_out,
    suspicion,
    term_values,
    terms_of,
    weights,
)
from datamap.tasks.registry import get_task


@pytest.fixture(scope="module")
def clinical():
    """A map that knows something of the errors that are planted in the demo."""
    split = load_split("demo:clinical", "train", get_task("qa"), 500)
    wrong = np.array([bool(kind) for kind in split.data["planted_error"][:]])
    rng = np.random.default_rng(0)
    logits = rng.normal(size=500) + 1.5 - 2 * wrong
    metrics = pd.DataFrame({
        "confidence": 1 / (1 + np.exp(-logits)), "variability": rng.random(500) / 4, "aum": logits,
        "correctness": (logits > 0).astype(float), "never_learned": (logits < 0).astype(float),
        "start_confidence": 1 / (1 + np.exp(-logits)), "end_confidence": 1 / (1 + np.exp(-logits + 0.1)),
    }, index=pd.Index(split.ids, name="id"))
    return Evidence(split, metrics), wrong


def test_the_terms_are_detectors_and_their_weights_are_there_for_every_combination():
    known = detectors()
    for kind, terms in TERMS.items():
        assert {term.detector for term in terms} | {OOF_WRONG} <= set(known)
        for term in terms:
            assert term.part in (MAP, TEXTS, *PARTS)
            assert known[term.detector].tasks in ("any", kind)
            assert not term.detector.startswith("oof_") or term.part == "out_of_fold"
        for size in range(len(PARTS) + 1):
            for parts in itertools.combinations(PARTS, size):
                fitted = weights()[kind]["+".join((MAP, *parts))]
                assert fitted["terms"] == [term.detector for term in terms_of(kind, parts)]
                assert len(fitted["weights"]) == len(fitted["terms"]) and min(fitted["weights"]) >= 0


def test_it_is_the_regression_written_out(clinical):
    evidence, wrong = clinical
    scores = score_all(evidence)
    found = suspicion(evidence, scores)
    fitted, total = weights()["qa"][MAP], np.zeros(500)
    for detector, weight in zip(fitted["terms"], fitted["weights"], strict=True):
        known = scores[detector].dropna() if detector in scores else pd.Series([0.0])
        spread = known.quantile(0.75) - known.quantile(0.25) or known.std(ddof=0) or 1
        standing = ((scores.get(detector, pd.Series(0.0, scores.index)) - known.median()) / spread).fillna(0)
        total += weight * standing.clip(0, 8).to_numpy()
    assert np.allclose(found.probability, 1 / (1 + np.exp(-total - fitted["intercept"])))
    assert found.made_of == "the data map" and auroc(wrong, found.probability) > 0.8


def test_what_is_there_is_used_and_named(clinical):
    evidence, _ = clinical
    more = Evidence(evidence.split, evidence.metrics, predictions=list(evidence.golds))
    found = suspicion(more, score_all(more))
    assert found.made_of == "the data map, the model's predictions"
    assert not np.allclose(found.probability, suspicion(evidence, score_all(evidence)).probability)
    with pytest.raises(UserError, match="needs a data map"):
        suspicion(Evidence(evidence.split), pd.DataFrame(index=evidence.split.ids))


def test_what_stands_out_counts_and_what_is_unsuspicious_takes_nothing():
    values = np.array([0.0, 1, 2, 3, 100, np.nan])
    np.testing.assert_allclose(standing_out(values), [0, 0, 0, 0.5, 8, 0])
    flags = np.array([0.0] * 9 + [1])
    np.testing.assert_allclose(standing_out(flags), [0] * 9 + [1 / 0.3])
    np.testing.assert_array_equal(standing_out(np.full(3, 7.0)), 0)
    np.testing.assert_array_equal(standing_out(np.full(3, np.nan)), 0)


def test_out_of_fold_models_that_may_be_right_or_wrong_are_left_out(clinical):
    evidence, _ = clinical
    with_folds = Evidence(evidence.split, evidence.metrics, out_of_fold=evidence.metrics)
    found = suspicion(with_folds, score_all(with_folds))
    assert found.made_of == "the data map, out-of-fold models"
    without = Evidence(evidence.split, evidence.metrics, out_of_fold=evidence.metrics[["confidence", "aum"]])
    found = suspicion(without, score_all(without))
    assert found.made_of == "the data map"
    assert np.allclose(found.probability, suspicion(evidence, score_all(evidence)).probability)


def test_a_detector_that_is_not_there_is_neutral():
    terms = [term for term in TERMS["labels"] if term.detector in ("aum", "never_learned")]
    table = pd.DataFrame({"aum": [0.1, np.nan, 0.9, 0.5]})
    np.testing.assert_allclose(term_values(table, terms, "qa"), [[0, 0], [0, 0], [1, 0], [0, 0]])
    ranks = norm.ppf(np.array([1, 5, 3]) / 6)
    found = term_values(table, terms, "labels")[:, 0]
    np.testing.assert_allclose(found, [ranks[0], 0, ranks[1], ranks[2]], atol=1e-12)


def test_models_that_have_not_seen_an_example_count_by_what_they_get_right():
    terms = [Term("aum"), Term("oof_aum", OUT_OF_FOLD), Term("odd_question", TEXTS)]
    table = pd.DataFrame({name: [0.0, 1, 2, 3, 4] for name in ("aum", "oof_aum", "odd_question")})
    for wrong, counts in ((0.0, 1.0), (0.25, 0.75), (1.0, 0.0)):
        found = term_values(table.assign(oof_correctness=wrong), terms, "qa")
        np.testing.assert_allclose(found[-1], [1 - counts, counts, 1])
    np.testing.assert_allclose(term_values(table, terms, "qa")[-1], [0, 1, 1])  # how many are wrong is not known
    np.testing.assert_allclose(term_values(table.assign(oof_correctness=0.5), terms[:1], "qa")[-1], [1])  # not asked


def test_normal_scores_of_ties_and_of_nothing():
    np.testing.assert_allclose(normal_scores(np.array([3.0, 1, 3, 3])), norm.ppf(np.array([2.5, 0.5, 2.5, 2.5]) / 4))
    assert len(normal_scores(np.zeros(0))) == 0


def test_the_file_is_strict_json():
    text = (module.resources.files("datamap.detection") / module.WEIGHTS).read_text()
    assert json.loads(text)["fitted"]["on"] and "NaN" not in text
