"""Figures of a ranking against scikit-learn and slow counts, and the intervals over seeds and examples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from datamap.detection.figures import (
    auroc,
    average_precision,
    figures,
    over_seeds_and_examples,
    precision_at,
    ranked_first,
)

rankings = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40).filter(
    lambda pairs: len({wrong for wrong, _ in pairs}) == 2)


@given(rankings)
@settings(max_examples=200, deadline=None)
def test_as_scikit_learn_has_them_ties_included(pairs):
    wrong, scores = np.array([pair[0] for pair in pairs]), np.array([float(pair[1]) for pair in pairs])
    assert average_precision(wrong, scores) == pytest.approx(average_precision_score(wrong, scores))
    assert auroc(wrong, scores) == pytest.approx(roc_auc_score(wrong, scores))


@given(rankings, st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_precision_at_n_is_the_mean_over_all_orders_of_equal_scores(pairs, n):
    wrong, scores = np.array([pair[0] for pair in pairs]), np.array([float(pair[1]) for pair in pairs])
    n, rng = min(n, len(pairs)), np.random.default_rng(0)
    drawn = [wrong[np.lexsort((rng.random(len(wrong)), -scores))[:n]].mean() for _ in range(400)]
    assert precision_at(wrong, scores, n) == pytest.approx(np.mean(drawn), abs=0.12)
    assert 0 <= precision_at(wrong, scores, n) <= 1


def test_what_a_detector_says_nothing_of_comes_last():
    np.testing.assert_array_equal(ranked_first(np.array([0.5, np.nan, -3.0])), [0.5, -4.0, -3.0])
    assert average_precision(np.array([True, False, False]), ranked_first(np.array([np.nan, 0.2, 0.1]))) == 1 / 3
    np.testing.assert_array_equal(ranked_first(np.full(2, np.nan)), [-1, -1])


def test_all_figures_of_a_ranking_worked_out_by_hand():
    wrong = np.zeros(100, dtype=bool)
    wrong[[0, 2, 50]] = True
    found = figures(wrong, -np.arange(100.0))
    assert found["average_precision"] == pytest.approx((1 + 2 / 3 + 3 / 51) / 3)
    assert found["precision_at_errors"] == pytest.approx(2 / 3)
    assert found["precision_at_1"] == 1 and found["precision_at_5"] == pytest.approx(2 / 5)


def _runs(shift: float, seeds: int = 4, n: int = 300):
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        wrong = rng.random(n) < 0.1
        yield wrong, rng.normal(size=n) + shift * wrong, rng.normal(size=n) + wrong


def test_the_interval_holds_the_mean_and_narrows_with_more_examples():
    few = over_seeds_and_examples([[run[:2]] for run in _runs(2)], draws=200)
    many = over_seeds_and_examples([[run[:2]] for run in _runs(2, n=3000)], draws=200)
    assert few.low < few.mean < few.high and many.high - many.low < few.high - few.low
    assert few == over_seeds_and_examples([[run[:2]] for run in _runs(2)], draws=200)  # seeded


def test_a_difference_is_that_of_the_means_and_its_interval_tells_a_better_score():
    pairs = [[(wrong, good), (wrong, poor)] for wrong, good, poor in _runs(3)]
    found = over_seeds_and_examples(pairs, draws=200)
    one, other = (over_seeds_and_examples([[pair[place]] for pair in pairs], draws=2).mean for place in (0, 1))
    assert found.mean == pytest.approx(one - other) and found.low > 0
    same = over_seeds_and_examples([[pair[0], pair[0]] for pair in pairs], draws=50)
    assert same == (0, 0, 0)
