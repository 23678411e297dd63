"""Wilson's and the paired interval against their papers and all tables; McNemar's test against statsmodels."""

import math
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from datamap.core.intervals import mcnemar, paired_interval, wilson_interval


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
def test_mcnemar_is_that_of_statsmodels(only_first, only_second):
    from statsmodels.stats.contingency_tables import mcnemar as reference

    found = mcnemar(only_first, only_second)
    assert found == pytest.approx(reference([[3, only_first], [only_second, 2]], exact=True).pvalue, rel=1e-12)
    assert 0 <= found <= 1 and found == mcnemar(only_second, only_first)


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
