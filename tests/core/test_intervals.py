"""Intervals and tests against their papers, statsmodels and all tables."""

import math
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from datamap.core.intervals import (
    equivalence,
    mcnemar,
    paired_equivalence,
    paired_interval,
    unseen,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_newcombe(successes, n, low, high):
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    assert wilson_interval(successes, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_solves_score_equation(n, share):
    successes = round(share * n)
    low, high = wilson_interval(successes, n)
    z, p = NormalDist().inv_cdf(0.975), successes / n
    assert 0 <= low <= p <= high <= 1 and low < high
    for bound in (low, high):  # the proportions that are just not rejected: |p - bound| = z standard errors there
        assert (p - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / n, abs=1e-12)


def test_wilson_is_that_of_statsmodels():
    from statsmodels.stats.proportion import proportion_confint

    successes = np.arange(38)
    expected = proportion_confint(successes, 38, method="wilson")
    assert np.allclose(wilson_interval(successes, 38), expected, rtol=0, atol=1e-15)


def test_wilson_ends_arrays_and_nothing():
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(0, 10)[1] == pytest.approx(1 - wilson_interval(10, 10)[0])
    assert all(math.isnan(bound) and type(bound) is float for bound in wilson_interval(0, 0))
    low, high = wilson_interval(np.array([0, 5, 0]), np.array([10, 10, 0]))
    assert low.shape == high.shape == (3,)
    assert (low[1], high[1]) == wilson_interval(5, 10) and np.isnan([low[2], high[2]]).all()
    assert wilson_interval(pd.Series([1, 2]), 4)[1].tolist() == [wilson_interval(k, 4)[1] for k in (1, 2)]


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 2)])
def test_wilson_refuses(successes, n):
    with pytest.raises(ValueError, match="between 0 and"):
        wilson_interval(successes, n)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_test_less_half_of_what_was_seen(b, c):
    from statsmodels.stats.contingency_tables import mcnemar as exact

    expected = exact([[3, b], [c, 2]], exact=True).pvalue - math.comb(b + c, b) / 2 ** (b + c)
    if b == c:  # both tails hold it
        expected = 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9) == mcnemar(c, b)
    # The definition: of patterns more extreme than the one seen all, of those as extreme half.
    total = sum(math.comb(b + c, k) * (1 if k < min(b, c) else 0.5) for k in range(min(b, c) + 1))
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * total / 2 ** (b + c)), rel=1e-9)


def test_mcnemar_of_fagerland():
    # Fagerland, Lydersen and Laake 2013, table 1 (airway hyper-responsiveness): 1 against 7, exact p 0.070.
    assert mcnemar(1, 7) == pytest.approx(0.0391, abs=5e-5)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))).flatmap(
    lambda pair: st.tuples(st.just(pair[0]), st.just(pair[1]), st.integers(0, pair[0] - pair[1]))))
def test_the_test_and_its_interval_never_contradict_each_other(table):
    n, b, c = table
    low, high = paired_interval(b, c, n)
    assert (mcnemar(b, c) <= 0.05) == (low > 0 or high < 0)
    assert -1 <= low < high <= 1 and low <= (b - c) / n <= high
    assert paired_interval(c, b, n) == pytest.approx((-high, -low))


def test_a_contradiction_is_mended_at_the_tests_own_bound():
    """1 against 7 of 500: Bonett's and Price's interval holds 0, the mid-p test does not."""
    first, second = 8 / 502, 2 / 502
    assert first - second - 1.96 * math.sqrt((first + second - (first - second) ** 2) / 502) < 0
    low, high = paired_interval(7, 1, 500)
    share = (low * 500 / 8 + 1) / 2
    tail = sum(math.comb(8, k) * share**k * (1 - share) ** (8 - k) * (0.5 if k == 7 else 1) for k in (7, 8))
    assert low > 0 and tail == pytest.approx(0.025, abs=1e-9)


def test_equivalence_is_that_of_statsmodels_and_of_the_90_percent_interval():
    from statsmodels.stats.weightstats import ttost_paired

    rng = np.random.default_rng(0)
    for shift in (0.0, 0.3, -0.6):
        differences = rng.normal(shift, 1, 9)
        se = differences.std(ddof=1) / 3
        low, high = differences.mean() + np.array([-1, 1]) * stats.t.isf(0.05, 8) * se
        for margin in (0.4, 0.9, 1.5):
            found = equivalence(differences.mean(), se, 8, margin)
            assert found == pytest.approx(ttost_paired(differences, np.zeros(9), -margin, margin)[0])
            assert (found <= 0.05) == (max(-low, high) <= margin)
    with pytest.raises(ValueError, match="margin above 0"):
        equivalence(0.0, 1.0, 5, 0.0)


@pytest.mark.parametrize(("b", "c", "n", "margin"),
                         [(6, 5, 300, 0.05), (0, 0, 100, 0.1), (9, 2, 60, 0.3), (3, 0, 40, 0.2)])
def test_equivalence_of_pairs_by_search(b, c, n, margin):
    """Tango's score with the likeliest table of such a difference found by trying many."""
    tails = []
    for more, fewer in ((b, c), (c, b)):
        shares = np.linspace(1e-9, (1 - margin) / 2 - 1e-9, 400_001)
        likelihood = (more * np.log(shares + margin) + fewer * np.log(shares)
                      + (n - b - c) * np.log(1 - 2 * shares - margin))
        share = shares[likelihood.argmax()]
        tails.append(NormalDist().cdf((more - fewer - n * margin)
                                      / math.sqrt(n * (2 * share + margin - margin**2))))
    assert paired_equivalence(b, c, n, margin) == pytest.approx(max(*tails, (1 - margin) ** n), rel=1e-3)


def test_equivalence_of_pairs_at_the_ends():
    assert paired_equivalence(0, 0, 100, 0.01) == pytest.approx(0.99**100), "never below the chance to see none"
    assert unseen(0.01, 299) < 0.05 < unseen(0.01, 298) and unseen(2.0, 1) == 0
    assert paired_equivalence(30, 0, 100, 0.3) == pytest.approx(0.5) and paired_equivalence(5, 0, 9, 1.5) == 0
    with pytest.raises(ValueError, match="margin above 0"):
        paired_equivalence(1, 1, 9, 0.0)


def test_differences_of_the_margin_are_seldom_taken_for_none():
    """Of all tables of 60 pairs with a true difference of the margin, weighted by how likely they are."""
    n = 60
    for ours, theirs in ((0.25, 0.1), (0.35, 0.05), (0.1, 0.02)):
        missed = sum(stats.multinomial.pmf([b, c, n - b - c], n, [ours, theirs, 1 - ours - theirs])
                     for b in range(n + 1) for c in range(n + 1 - b)
                     if abs(b - c) < n * (ours - theirs) and paired_equivalence(b, c, n, ours - theirs) <= 0.05)
        assert 0.02 < missed <= 0.06, (ours, theirs, missed)


def test_the_paired_interval_covers_what_it_says():
    """Of all tables that can come, weighted by how likely they are, about 95 % give an interval around the truth."""
    n = 30
    # Where few pairs disagree, no interval can be tight: there it may cover more.
    for ours, theirs, highest in ((0.2, 0.1, 0.97), (0.4, 0.1, 0.97), (0.05, 0.05, 1.0)):
        covered = total = 0.0
        for b in range(n + 1):
            for c in range(n + 1 - b):
                p = stats.multinomial.pmf([b, c, n - b - c], n, [ours, theirs, 1 - ours - theirs])
                low, high = paired_interval(b, c, n)
                covered += p * (low <= ours - theirs <= high)
                total += p
        assert total == pytest.approx(1)
        assert 0.94 <= covered <= highest, (ours, theirs, covered)
    # The example's arithmetic done by hand: b = 10, c = 4, n = 50.
    first, second = 11 / 52, 5 / 52
    half = 1.959963985 * math.sqrt((first + second - (first - second) ** 2) / 52)
    assert paired_interval(10, 4, 50) == pytest.approx((first - second - half, first - second + half))
