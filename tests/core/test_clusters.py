"""Clusters against loops, matrices and statsmodels."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from datamap.core.clusters import Clusters
from datamap.core.intervals import clustered_interval, wilson_interval

CODES = st.lists(st.integers(0, 6), min_size=2, max_size=40).filter(lambda codes: len(set(codes)) > 1)


def values_of(codes, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=len(codes)) + rng.normal(size=7)[np.array(codes)]


@settings(max_examples=60, deadline=None)
@given(CODES)
def test_variance_and_degrees_are_those_of_bell_and_mccaffrey(codes):
    """With matrices: CR2 of a regression on a constant, and Satterthwaite's degrees for independent examples."""
    values, n = values_of(codes), len(codes)
    clusters = Clusters([f"c{code}" for code in codes])
    hat = np.ones((n, n)) / n
    variance, columns = 0.0, []
    for code in sorted(set(codes)):
        inside = np.flatnonzero(np.array(codes) == code)
        own = np.eye(len(inside)) - hat[np.ix_(inside, inside)]
        values_own, vectors = np.linalg.eigh(own)
        root = vectors @ np.diag(values_own**-0.5) @ vectors.T
        variance += (np.ones(len(inside)) @ root @ (values - values.mean())[inside] / n) ** 2
        columns.append((np.eye(n) - hat)[:, inside] @ root @ np.ones(len(inside)) / n)
    eigenvalues = np.linalg.eigvalsh(np.array(columns) @ np.array(columns).T)
    assert clusters.variance_of_mean(values) == pytest.approx(variance)
    assert clusters.degrees == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


@pytest.mark.parametrize("size", [1, 4])
def test_equal_clusters_are_those_of_statsmodels(size):
    from statsmodels.api import OLS

    codes = np.repeat(np.arange(9), size)
    values = np.random.default_rng(1).normal(size=len(codes)) + np.random.default_rng(2).normal(size=9)[codes]
    clusters = Clusters(codes)
    fit = OLS(values, np.ones(len(codes))).fit(cov_type="cluster", cov_kwds={"groups": codes})
    assert math.sqrt(clusters.variance_of_mean(values)) == pytest.approx(fit.bse[0])
    assert clusters.degrees == pytest.approx(8) and clusters.are_examples == (size == 1)
    if size == 1:
        assert clusters.variance_of_mean(values) == pytest.approx(values.var(ddof=1) / 9)
        assert clusters.design_effect(values) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(CODES)
def test_sums_by_loops(codes):
    table = np.random.default_rng(0).normal(size=(3, len(codes)))
    found = Clusters(np.array(codes)).sums(table)
    assert found.shape == (3, len(set(codes)))
    for place, code in enumerate(sorted(set(codes))):
        assert found[:, place] == pytest.approx(table[:, np.array(codes) == code].sum(axis=1))


def test_what_nothing_can_be_said_of():
    one = Clusters(["a"] * 5)
    assert one.design_effect(np.arange(5.0)) is None and one.degrees == 0 and one.count == 1
    assert Clusters([1, 1, 2]).design_effect(np.full(3, 0.1)) is None
    assert Clusters([["a"], ["a"], ["b"]]).sizes.tolist() == [2, 1], "values of any kind"
    with pytest.raises(ValueError, match="no examples"):
        Clusters([])


@settings(max_examples=60, deadline=None)
@given(CODES, st.integers(0, 9))
def test_halves_share_no_cluster(codes, seed):
    clusters = Clusters([f"c{code}" for code in codes])
    first = clusters.halves(seed)
    assert first is not None and 0 < first.sum() < len(codes)
    inside, outside = ({code for code, one in zip(codes, first, strict=True) if one == side} for side in (True, False))
    assert not inside & outside
    assert abs(first.sum() - len(codes) / 2) <= clusters.sizes.max(), "as near to a half as clusters allow"
    assert np.array_equal(clusters.halves(seed), first)  # type: ignore[arg-type]
    assert Clusters(["one"] * 4).halves(0) is None


def test_values_of_a_kind_are_no_values_of_another():
    assert Clusters(["1", 1, "1", None]).codes.tolist() == [0, 1, 0, 2]
    assert Clusters(["a", "b", "a", "c"]).among(np.array([True, False, True, True])).sizes.tolist() == [2, 1]


def test_the_design_effect_is_known_where_examples_repeat():
    """Each of 50 examples four times: as good as 50."""
    values = np.random.default_rng(0).normal(size=50)
    clusters = Clusters(np.repeat(np.arange(50), 4))
    assert clusters.design_effect(np.repeat(values, 4)) == pytest.approx(4 * 199 / 49 / 4, rel=1e-9)


def test_the_interval_of_a_share_in_clusters():
    codes = np.repeat(np.arange(30), 5)
    right = np.repeat(np.random.default_rng(0).integers(0, 2, 30), 5).astype(float)
    low, high, size = clustered_interval(right, Clusters(codes))
    effect = Clusters(codes).design_effect(right)
    assert effect is not None
    few = stats.t.isf(0.025, 149) / stats.t.isf(0.025, 29)
    assert size == pytest.approx(150 / effect * few**2) and 25 < size < 30
    assert (low, high) == wilson_interval(right.mean() * size, size)
    alone = wilson_interval(right.sum(), 150)
    assert clustered_interval(right, None) == (*alone, 150) == clustered_interval(right, Clusters(np.arange(150)))
    # All right: as many as there are clusters. Anything but clustered: never above N.
    assert clustered_interval(np.ones(150), Clusters(codes)) == (*wilson_interval(30, 30), 30)
    assert clustered_interval(np.tile([0.0, 1.0], 75), Clusters(np.repeat(np.arange(75), 2)))[2] == 150
    assert clustered_interval(np.array([1.0, 0.0]), Clusters([0, 0]))[2] == 1


def test_intervals_of_shares_in_clusters_cover():
    """600 times 40 contexts of 1 to 12 questions; independent questions would cover 83 %."""
    rng, covered, naive = np.random.default_rng(0), 0, 0
    for _ in range(600):
        codes = np.repeat(np.arange(40), rng.integers(1, 13, 40))
        right = (rng.normal(size=40)[codes] + rng.normal(size=len(codes)) < 0.8).astype(float)
        truth = stats.norm.cdf(0.8 / math.sqrt(2))
        low, high, _ = clustered_interval(right, Clusters(codes))
        covered += low <= truth <= high
        low, high = wilson_interval(right.sum(), len(right))
        naive += low <= truth <= high
    assert 0.925 <= covered / 600 <= 0.975 and naive / 600 < 0.88, (covered, naive)
