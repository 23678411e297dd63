"""How far runs agree, against versions of it that go example by example and pair by pair."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal, spearmanr

from datamap.cartography import stability
from datamap.cartography.stability import (
    TOP,
    chance_agreement,
    learning_curve,
    normal_odds,
    normal_overlap,
    overlap,
    pair_agreement,
    rank_correlation,
)

NAMES = ("easy", "ambiguous", "hard")


def noisy(runs, noise, n=4000, seed=0):
    """A truth that each run sees through noise of its own."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 1)) + noise * rng.normal(size=(n, runs))


def slow_overlap(first, second, share):
    both = [row for row in range(len(first)) if first[row] == first[row] and second[row] == second[row]]
    count = math.ceil(round(share * len(both), 9))
    tops = []
    for values in (first, second):
        ranked = sorted((-values[row], row) for row in both)
        tops.append({row for _, row in ranked[:count]})
    return len(tops[0] & tops[1]) / count


def test_stability_is_the_share_of_pairs_that_agree():
    rng = np.random.default_rng(1)
    categories = rng.choice([*NAMES, ""], size=(300, 5), p=[0.3, 0.3, 0.2, 0.2])
    found = pair_agreement(categories, NAMES)
    for row, values in enumerate(categories.tolist()):
        pairs = list(itertools.combinations([value for value in values if value], 2))
        if pairs:
            assert found[row] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
        else:
            assert np.isnan(found[row])
    every = [value for value in categories.ravel().tolist() if value]
    by_chance = sum((every.count(name) / len(every)) ** 2 for name in NAMES)
    assert chance_agreement(categories, NAMES) == pytest.approx(by_chance)


def test_stability_does_not_depend_on_how_many_runs_there_are_and_agreement_with_the_commonest_would():
    rng = np.random.default_rng(2)
    means, with_commonest = [], []
    for runs in (2, 3, 9):
        drawn = rng.choice(NAMES, size=(20_000, runs), p=[0.5, 0.3, 0.2])
        means.append(np.nanmean(pair_agreement(drawn, NAMES)))
        counts = np.stack([(drawn == name).sum(axis=1) for name in NAMES], axis=1)
        with_commonest.append((counts.max(axis=1) / runs).mean())
    assert means == pytest.approx([0.38] * 3, abs=0.01)
    assert with_commonest[0] - 0.02 > with_commonest[1] > with_commonest[2] + 0.02


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 1.0])
def test_overlap_and_rank_correlation_equal_the_slow_ones(share):
    rng = np.random.default_rng(3)
    first = np.round(rng.random(203), 2)  # with ties
    second = np.round(first + 0.3 * rng.random(203), 2)
    first[rng.random(203) < 0.1] = np.nan
    second[rng.random(203) < 0.1] = np.nan
    assert overlap(first, second, share) == pytest.approx(slow_overlap(first.tolist(), second.tolist(), share))
    both = ~(np.isnan(first) | np.isnan(second))
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first[both], second[both]).statistic)


def test_runs_without_a_common_example_have_no_agreement():
    first, second = np.array([1.0, 2, np.nan, np.nan]), np.array([np.nan, np.nan, 1.0, 2])
    assert np.isnan(overlap(first, second, 0.5)) and np.isnan(rank_correlation(first, second))
    assert np.isnan(rank_correlation(np.ones(5), np.arange(5.0)))


@pytest.mark.parametrize("rho", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_the_overlap_of_normal_variables_is_that_of_their_distribution(rho):
    cut = 1.2815515655446004
    slow = multivariate_normal.cdf([-cut, -cut], cov=[[1, rho], [rho, 1]]) / 0.1
    assert normal_overlap(rho) == pytest.approx(slow, abs=1e-7)
    if rho:
        assert normal_odds(slow) == pytest.approx(rho / (1 - rho), rel=1e-4)


def test_the_measured_curve_is_the_mean_over_all_disjoint_choices():
    values = noisy(5, 0.8, n=60)
    values[3, 2] = values[7, :4] = np.nan
    found = learning_curve(values).overlaps
    for k in (1, 2):
        slow = []
        for first in itertools.combinations(range(5), k):
            for second in itertools.combinations(range(5), k):
                if first < second and not set(first) & set(second):
                    one, other = ([np.nan if all(math.isnan(x) for x in row[list(half)]) else
                                   float(np.nanmean(row[list(half)])) for row in values] for half in (first, second))
                    slow.append(slow_overlap(one, other, TOP))
        assert len(slow) == {1: 10, 2: 15}[k] and found[k] == pytest.approx(np.mean(slow))


@pytest.mark.parametrize(("runs", "noise"), [(4, 0.4), (6, 0.3)])
def test_the_runs_needed_are_those_of_a_truth_that_is_known(runs, noise):
    curve = learning_curve(noisy(runs, noise))
    truth = normal_odds(0.9) * noise**2  # rho of one run is 1 / (1 + noise^2)
    assert curve.reason == "extrapolated" and curve.needed is not None and curve.low is not None
    assert curve.needed == pytest.approx(truth, rel=0.25, abs=1)
    assert curve.low <= truth + 1 and (curve.high is None or curve.high >= truth - 1)
    many = noisy(2 * curve.needed, noise, seed=9)
    halves = many[:, : curve.needed].mean(axis=1), many[:, curve.needed :].mean(axis=1)
    assert overlap(*halves, TOP) == pytest.approx(0.9, abs=0.03)  # as was said of runs that nobody had seen


def test_an_extrapolation_is_refused_where_nothing_bears_it():
    assert "at least 4 runs" in learning_curve(noisy(3, 0.4)).reason
    far = learning_curve(noisy(4, 2.0))
    assert far.needed is None and far.reason.startswith("more than 20") and max(far.fitted) == 20
    nothing = learning_curve(np.random.default_rng(5).normal(size=(200, 4)))
    assert nothing.needed is None
    measured = learning_curve(noisy(2, 0.001))
    assert measured.needed == 1 and measured.reason.startswith("measured")
    # Two models of which each agrees with itself alone: means of two do not agree as those of one kind would.
    rng = np.random.default_rng(6)
    kinds = rng.normal(size=(4000, 2))
    mixed = kinds[:, [0, 0, 1, 1]] + 0.05 * rng.normal(size=(4000, 4))
    curve = learning_curve(mixed)
    assert curve.needed is None and "does not grow as the formula says" in curve.reason


def test_many_runs_are_split_a_seeded_number_of_times():
    halves = list(stability._halves(12, 5))
    assert len(halves) == stability.MAX_SPLITS and halves == list(stability._halves(12, 5))
    assert all(len({*first, *second}) == 10 for first, second in halves)
