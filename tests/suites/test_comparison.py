"""comparison.py: the statistics against slow ones, their symmetries, every branch of a verdict, the calibration."""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamap.core.clusters import Clusters
from datamap.core.intervals import paired_interval, unseen
from datamap.suites.comparison import (
    BETTER,
    NO_DIFFERENCE,
    ROW,
    STATISTICS,
    UNDERPOWERED,
    WORSE,
    Comparison,
    compare_family,
    examples_needed,
    hedges_correction,
    holm,
    multi_bootstrap,
    paired_statistics,
    power_at,
    power_of_equivalence,
    seeds_needed,
    single_seed_statistics,
    upper_sd,
    verdict,
)

ROOT = Path(__file__).resolve().parents[2]
# Multiples of 0.01 percentage points, as metrics over 10,000 examples are.
METRIC = st.integers(0, 10_000).map(lambda count: count / 100)


@pytest.fixture(scope="module", autouse=True)
def later():
    """Garbage, which Holm of statsmodels collects each time, can wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda *_: 0)
        yield


def pairs(low: int = 2, high: int = 7):
    return st.integers(low, high).flatmap(
        lambda n: st.tuples(st.lists(METRIC, min_size=n, max_size=n), st.lists(METRIC, min_size=n, max_size=n))
    )


def one(values, reference, margin: float = 1.0, **fields: Any) -> dict[str, Any]:
    return compare_family([Comparison(range(len(values)), values, reference, margin, **fields)])[0]


def scored(scores: np.ndarray, reference_scores: np.ndarray, margin: float, **fields: Any) -> dict[str, Any]:
    return one(
        scores.mean(axis=1), reference_scores.mean(axis=1), margin, scores=scores, reference_scores=reference_scores,
        **fields,
    )


def slow_t(t: float, degrees: int, steps: int = 200_000) -> float:
    """Two-sided p by the trapezoid rule over the density of Student's t, after x = tan(angle)."""
    angles = np.linspace(math.atan(abs(t)), math.pi / 2, steps)[:-1]
    norm = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2) / math.sqrt(degrees * math.pi)
    density = norm * (1 + np.tan(angles) ** 2 / degrees) ** (-(degrees + 1) / 2) / np.cos(angles) ** 2
    return float(2 * np.trapezoid(density, angles))


# --- one metric over seeds ---------------------------------------------------------------------------------------


def test_paired_statistics_by_hand():
    values, reference = [81.0, 83.5, 80.0, 84.0, 82.0], [80.0, 81.0, 80.5, 82.0, 82.0]
    found = paired_statistics(np.array(values), np.array(reference))
    differences = [1.0, 2.5, -0.5, 2.0, 0.0]
    mean, sd = 1.0, math.sqrt((0 + 1.5**2 + 1.5**2 + 1 + 1) / 4)
    assert found["difference"] == pytest.approx(mean) and found["difference_sd"] == pytest.approx(sd)
    assert (found["n"], found["wins"], found["ties"]) == (5, 3, 1)
    assert found["mean"] == pytest.approx(82.1) and found["reference_mean"] == pytest.approx(81.1)
    assert found["sd"] == pytest.approx(math.sqrt(11.2 / 4)), "ddof 1"
    assert found["reference_sd"] == pytest.approx(math.sqrt(3.2 / 4))
    half = 2.7764451 * sd / math.sqrt(5)  # t of 4 degrees of freedom, 97.5 %
    assert found["low"] == pytest.approx(mean - half, rel=1e-7) and found["high"] == pytest.approx(mean + half)
    assert found["p_t"] == pytest.approx(slow_t(mean / sd * math.sqrt(5), 4), abs=1e-4)
    assert found["cohens_d"] == pytest.approx(mean / sd)
    # Hedges' correction for 4 degrees of freedom: gamma(2) / (sqrt(2) gamma(1.5)).
    assert found["hedges_g"] == pytest.approx(mean / sd / (math.sqrt(2) * math.gamma(1.5)))
    assert found["p_sign_flip_smallest"] == 0.0625
    extreme = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= 5 - 1e-9
               for signs in itertools.product((-1, 1), repeat=5)]
    assert found["p_sign_flip"] == pytest.approx(sum(extreme) / 32)


@settings(max_examples=40, deadline=None)
@given(pairs())
def test_sign_flip_counts_every_pattern(pair):
    values, reference = np.array(pair)
    differences = np.round(100 * (values - reference))  # whole numbers: exact sums, so ties are ties
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=len(differences))]
    expected = np.mean(np.array(sums) >= abs(differences.sum()))
    found = paired_statistics(values, reference)
    assert found["p_sign_flip"] == pytest.approx(expected)
    assert found["p_sign_flip"] >= found["p_sign_flip_smallest"] == 2 / 2 ** len(values)


@pytest.mark.parametrize(
    ("values", "reference", "expected"),
    [
        # 0.5, -1.6, 0.8 and 0.8: a pattern whose sum is 0.5 is as extreme as what was seen, whatever rounding says.
        ([68.3, 65.9, 70.4, 72.6], [67.8, 67.5, 69.6, 71.8], 1.0),
        ([0.3, 0.6, 0.9], [0.2, 0.4, 0.6], 0.25),
        ([80.1, 80.2, 80.4], [80.0, 80.1, 80.6], 1.0),
    ],
)
def test_sign_flip_of_tied_sums(values, reference, expected):
    for shift in (0.0, 0.1, 7.7):
        found = paired_statistics(np.array(values) + shift, np.array(reference) + shift)
        assert found["p_sign_flip"] == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), min_size=2, max_size=7))
def test_sign_flip_of_decimals_is_that_of_whole_numbers(pairs):
    tenths = np.array(pairs).T
    sums = [abs(np.dot(signs, tenths[0] - tenths[1])) for signs in itertools.product((-1, 1), repeat=len(pairs))]
    found = paired_statistics(tenths[0] / 10, tenths[1] / 10)
    assert found["p_sign_flip"] == np.mean(np.array(sums) >= abs((tenths[0] - tenths[1]).sum()))


def test_sign_flip_of_twelve_is_exact_and_of_many_is_seeded():
    rng = np.random.default_rng(0)
    values = rng.normal(0.6, 1, 12)
    signs = np.array(list(itertools.product((-1, 1), repeat=12)))
    expected = np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-9)
    assert 0.001 < expected < 0.5
    assert paired_statistics(values, np.zeros(12))["p_sign_flip"] == pytest.approx(expected)
    many = rng.normal(0.4, 1, 20)
    first, second = (paired_statistics(many, np.zeros(20)) for _ in range(2))
    assert first == second
    assert first["p_sign_flip"] == pytest.approx(first["p_t"], abs=0.02)
    # Of 10,000 patterns of 40 signs none is all alike; the one that was seen counts, so that p is never 0.
    assert paired_statistics(np.ones(40) + 0.01 * np.arange(40), np.zeros(40))["p_sign_flip"] == 1 / 10_001


@settings(max_examples=60, deadline=None)
@given(pairs(), st.randoms(use_true_random=False))
def test_paired_symmetries(pair, random):
    values, reference = np.array(pair)
    found = paired_statistics(values, reference)
    keys = ("difference", "difference_sd", "low", "high", "p_t", "p_sign_flip", "cohens_d")

    def same(other, **changes):
        expected = {key: found[key] for key in (*keys, "wins", "ties")} | changes
        for key, value in expected.items():
            assert other[key] == (None if value is None else pytest.approx(value, rel=1e-6, abs=1e-8)), key

    order = list(range(len(values)))
    random.shuffle(order)
    same(paired_statistics(values[order], reference[order]))
    same(paired_statistics(values + 50, reference + 50))
    scaled = paired_statistics(100 * values, 100 * reference)
    spread = ("difference", "difference_sd", "low", "high")
    same(scaled, **{key: None if found[key] is None else 100 * found[key] for key in spread})

    def minus(key):
        return None if found[key] is None else -found[key]

    same(
        paired_statistics(reference, values), difference=minus("difference"), low=minus("high"), high=minus("low"),
        cohens_d=minus("cohens_d"), wins=len(values) - found["wins"] - found["ties"],
    )
    json.dumps(found, allow_nan=False)
    assert all(type(value) in (int, float, type(None)) for value in found.values()) and set(found) == set(STATISTICS)


def test_one_seed_has_no_spread():
    found = paired_statistics(np.array([3.0]), np.array([1.0]))
    assert {key: value for key, value in found.items() if value is not None} == {
        "n": 1, "mean": 3.0, "reference_mean": 1.0, "difference": 2.0,
    }


@pytest.mark.parametrize("n", [3, 4, 8])
def test_hedges_g_is_without_bias(n):
    drawn = np.random.default_rng(0).normal(0.7, 1.0, (40_000, n))
    d = drawn.mean(axis=1) / drawn.std(axis=1, ddof=1)
    assert d.mean() * hedges_correction(n - 1) == pytest.approx(0.7, abs=0.03) and d.mean() > 0.76
    found = paired_statistics(drawn[0], np.zeros(n))
    assert found["hedges_g"] == pytest.approx(hedges_correction(n - 1) * found["cohens_d"])
    assert paired_statistics(drawn[0][:2], np.zeros(2))["hedges_g"] is None, "d of two seeds has no mean"


@pytest.mark.parametrize(("shift", "ties"), [(0.01, 0), (0.0, 4)])
def test_rounding_is_no_spread(shift, ties):
    reference = np.array([0.7, 0.8, 0.1, 0.3])
    values = reference + shift
    assert shift == 0 or np.ptp(values - reference) > 0, "the differences must differ by rounding here"
    found = paired_statistics(values, reference)
    assert found["difference_sd"] == 0 and found["ties"] == ties
    assert [found[key] for key in ("p_t", "cohens_d", "low", "high")] == [None] * 4
    assert paired_statistics(np.array([0.1 + 0.2, 0.4]), np.array([0.3, 0.5]))["ties"] == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_missing_values_are_refused(bad):
    with pytest.raises(ValueError, match=r"reference\[1\] is"):
        paired_statistics(np.array([1.0, 2.0]), np.array([1.0, bad]))
    with pytest.raises(ValueError, match=r"^scores\[1, 2\] is"):
        multi_bootstrap(np.array([[0, 1, 1.0], [0, 1, bad]]), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"reference_scores\[0\] is"):
        single_seed_statistics(np.zeros(2), np.array([bad, 1.0]), False)


def test_shapes_are_refused():
    with pytest.raises(ValueError, match=r"differ in shape: \(2,\) and \(3,\)"):
        paired_statistics(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="at least one value"):
        paired_statistics(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="at least 2 seeds"):
        multi_bootstrap(np.zeros((1, 4)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="2 dimension"):
        multi_bootstrap(np.zeros(4), np.zeros(4))


# --- per-example scores ------------------------------------------------------------------------------------------


def test_multi_bootstrap_against_loops():
    rng = np.random.default_rng(0)
    scores, reference = rng.random((2, 4, 30))
    scores += 0.05 + 0.5 * rng.random(30) + 0.5 * rng.random((4, 1))
    found = multi_bootstrap(scores, reference)
    differences = scores - reference
    rows, columns = differences.mean(axis=1), differences.mean(axis=0)
    residuals = [differences[i, j] - rows[i] - columns[j] + rows.mean() for i in range(4) for j in range(30)]
    noise = sum(each**2 for each in residuals) / (3 * 29) / (4 * 30)
    of_seeds = sum((each - rows.mean()) ** 2 for each in rows) / 3 / 4
    of_examples = sum((each - columns.mean()) ** 2 for each in columns) / 29 / 30
    variance = of_seeds + of_examples - noise
    assert variance > max(of_seeds, of_examples)
    assert found["bootstrap_se"] == pytest.approx(math.sqrt(variance))
    from scipy import stats

    share = of_seeds / variance
    degrees = 1 / (share / 3 + (1 - share) / 29)
    assert found["p_bootstrap"] == pytest.approx(2 * stats.t.sf(rows.mean() / math.sqrt(variance), degrees))
    low, high = rows.mean() + np.array([-1, 1]) * stats.t.isf(0.025, degrees) * math.sqrt(variance)
    assert (found["bootstrap_low"], found["bootstrap_high"]) == pytest.approx((low, high))


def test_the_closed_form_is_what_all_resamples_say():
    """Every draw of 3 seeds and 4 examples with replacement, each once: the variance of the pigeonhole bootstrap."""
    differences = np.random.default_rng(1).normal(size=(3, 4)) + [[0.0], [1.0], [3.0]] + np.array([0, 2, 4, 9.0])
    means = [differences[np.ix_(seeds, examples)].mean() for seeds in itertools.product(range(3), repeat=3)
             for examples in itertools.product(range(4), repeat=4)]
    by_seed, by_example = differences.mean(axis=1), differences.mean(axis=0)
    residuals = differences - by_seed[:, None] - by_example + differences.mean()
    assert np.var(means) == pytest.approx(by_seed.var() / 3 + by_example.var() / 4 + (residuals**2).sum() / 12**2)
    # Without its bias: seeds and examples with one degree of freedom less, the noise of single answers once.
    corrected = (by_seed.var() / 2 + by_example.var() / 3) - (residuals**2).sum() / (2 * 3) / 12
    assert multi_bootstrap(differences, np.zeros((3, 4)))["bootstrap_se"] == pytest.approx(math.sqrt(corrected))


def test_the_standard_error_is_without_bias():
    """Over many tables of 4 seeds x 12 examples with known variances the squared standard errors have their mean."""
    rng = np.random.default_rng(0)
    squared = [
        multi_bootstrap(0.5 * rng.normal(size=(4, 1)) + rng.normal(size=12) + rng.normal(size=(4, 12)),
                        np.zeros((4, 12)))["bootstrap_se"] ** 2
        for _ in range(2000)
    ]
    # Never below one part alone: hence a bit more.
    assert np.mean(squared) == pytest.approx(0.25 / 4 + 1 / 12 + 1 / 48, rel=0.06)


def test_multi_bootstrap_has_the_variance_of_seeds_and_examples():
    rng = np.random.default_rng(0)
    seeds, examples = rng.normal(0, 0.5, (12, 1)), rng.normal(0, 3.0, (1, 200))
    found = multi_bootstrap(seeds + examples, np.zeros((12, 200)))
    assert found["bootstrap_se"] == pytest.approx(math.sqrt(seeds.var(ddof=1) / 12 + examples.var(ddof=1) / 200))
    # Nothing but seeds: the t test's own standard error, interval and p.
    alone = multi_bootstrap(seeds + np.zeros((1, 200)), np.zeros((12, 200)))
    statistics = paired_statistics(seeds[:, 0], np.zeros(12))
    assert alone["bootstrap_se"] == pytest.approx(seeds.std(ddof=1) / math.sqrt(12))
    for name in ("p", "low", "high"):
        assert alone["p_bootstrap" if name == "p" else f"bootstrap_{name}"] == pytest.approx(
            statistics["p_t" if name == "p" else name])
    # Nothing but examples: a t test over them.
    single = single_seed_statistics(examples[0], np.zeros(200), False, 100.0)
    both = multi_bootstrap(np.tile(examples, (3, 1)), np.zeros((3, 200)))
    for name, key in (("p_bootstrap", "p"), ("bootstrap_low", "bootstrap_low"), ("bootstrap_high", "bootstrap_high")):
        assert both[name] == pytest.approx(single[key])


def test_multi_bootstrap_of_clusters_against_loops():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(8), rng.integers(1, 6, 8))
    n = len(codes)
    scores, reference = rng.random((2, 4, n)) + 0.4 * rng.normal(size=8)[codes] + 0.2 * rng.normal(size=(2, 4, 1))
    clusters = Clusters(codes)
    found = multi_bootstrap(scores, reference, clusters=clusters)
    differences = scores - reference
    rows, columns = differences.mean(axis=1), differences.mean(axis=0)
    of_seeds = sum((each - rows.mean()) ** 2 for each in rows) / 3 / 4
    of_examples = noise = 0.0
    for code in range(8):
        inside = np.flatnonzero(codes == code)
        weight = 1 / (1 - len(inside) / n)
        of_examples += weight * sum(columns[place] - rows.mean() for place in inside) ** 2 / n**2
        for seed in range(4):
            left = sum(differences[seed, place] - rows[seed] - columns[place] + rows.mean() for place in inside)
            noise += weight * left**2 / (3 * 4 * n**2)
    variance = max(of_seeds + of_examples - noise, of_seeds, of_examples)
    assert found["bootstrap_se"] == pytest.approx(math.sqrt(variance))
    assert found["bootstrap_se_examples"] == pytest.approx(math.sqrt(of_examples))
    share = of_seeds / variance
    assert found["bootstrap_degrees"] == pytest.approx(1 / (share / 3 + (1 - share) / clusters.degrees))
    # Clusters of one size are examples whose scores are the means.
    equal = Clusters(np.repeat(np.arange(6), 5))
    wide, other = rng.random((2, 3, 30))
    means, other_means = (each.reshape(3, 6, 5).mean(axis=2) for each in (wide, other))
    assert multi_bootstrap(wide, other, clusters=equal) == pytest.approx(multi_bootstrap(means, other_means))
    with pytest.raises(ValueError, match="clusters of 30 examples, scores of 4"):
        multi_bootstrap(wide[:, :4], other[:, :4], clusters=equal)


def test_questions_copied_are_no_evidence():
    """Every question ten times, as clusters: interval and p of the questions once."""
    rng = np.random.default_rng(3)
    once, reference = rng.random((2, 3, 40)) + [[[0.1]], [[0.0]]]
    found = multi_bootstrap(np.repeat(once, 10, axis=1), np.repeat(reference, 10, axis=1),
                            clusters=Clusters(np.repeat(np.arange(40), 10)))
    assert found == pytest.approx(multi_bootstrap(once, reference))
    single = single_seed_statistics(np.repeat(once[0], 10), np.repeat(reference[0], 10), False,
                                    clusters=Clusters(np.repeat(np.arange(40), 10)), margin=0.1)
    alone = single_seed_statistics(once[0], reference[0], False, margin=0.1)
    assert single == pytest.approx(alone)
    row = scored(np.repeat(once, 10, axis=1), np.repeat(reference, 10, axis=1), 0.1, cluster_by="context",
                 clusters=Clusters(np.repeat(np.arange(40), 10)))
    assert (row["examples"], row["clusters"], row["cluster_by"]) == (400, 40, "context")
    assert row["effective_examples"] == pytest.approx(400 / row["design_effect"]) == pytest.approx(39.1, abs=0.1)
    plain = scored(np.repeat(once, 10, axis=1), np.repeat(reference, 10, axis=1), 0.1)
    assert plain["p_bootstrap"] < row["p_bootstrap"] and plain["clusters"] is None


def test_right_or_wrong_in_clusters_at_one_seed():
    """t over clusters (Durkalski et al. 2003 without the correction), one pair of either kind added."""
    codes = np.repeat(np.arange(20), 5)
    ours = np.repeat(np.random.default_rng(0).integers(0, 2, 20), 5).astype(float)
    theirs = np.roll(ours, 5)
    found = single_seed_statistics(ours, theirs, True, clusters=Clusters(codes), margin=0.2)
    differences = np.append(ours - theirs, [1.0, -1.0])
    groups = Clusters(np.append(codes, [20, 21]))
    se = math.sqrt(groups.variance_of_mean(differences))
    from scipy import stats

    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(differences.mean()) / se, groups.degrees))
    assert found["bootstrap_low"] == pytest.approx(differences.mean() - stats.t.isf(0.025, groups.degrees) * se)
    worth = Clusters(codes).effective_examples(ours - theirs)
    tested = stats.t.sf((0.2 - abs(differences.mean())) / se, groups.degrees)
    assert found["p_equivalence"] == pytest.approx(max(tested, 0.8**worth)) and worth < 25
    assert found["only_experiment_right"] == ((ours == 1) & (theirs == 0)).sum()
    row = scored(ours[None], theirs[None], 0.2, binary=True, clusters=Clusters(codes), cluster_by="title")
    assert row["p_mcnemar"] is None and row["p"] == row["p_bootstrap"] == found["p"]
    # Four pairs, all for one side, in clusters of their own: McNemar's exact p is 0.125, a plain t over clusters 0.05.
    few = np.zeros(100)
    few[[0, 5, 10, 15]] = 1
    assert single_seed_statistics(few, np.zeros(100), True, clusters=Clusters(codes))["p"] > 0.08
    # One cluster says nothing of others.
    one_cluster = single_seed_statistics(few, np.zeros(100), True, clusters=Clusters(np.zeros(100, dtype=int)))
    assert one_cluster["p"] == 1.0 and one_cluster["p_equivalence"] == 1.0


def test_examples_alike_in_few_clusters_show_little():
    scores = np.tile(np.arange(400) % 2.0, (5, 1))
    clusters = Clusters(np.repeat(np.arange(100), 4))
    assert scored(scores, scores, margin=0.01, binary=True)["verdict"] == NO_DIFFERENCE
    row = scored(scores, scores, margin=0.01, binary=True, clusters=clusters, cluster_by="context")
    assert row["verdict"] == UNDERPOWERED and row["design_effect"] is None and row["effective_examples"] == 100
    assert row["p_equivalence"] == pytest.approx(unseen(0.01, 100))
    assert row["note"] == ("to decide about 0.01: at least 299 independent evaluation examples (400 there in 100 "
                           "clusters, worth 100)")
    assert row["bootstrap_high"] == pytest.approx(1 - 0.05 ** (1 / 100))
    assert clusters.effective_examples(np.tile([1.0, -1.0], 200)) == 400, "never more than there are"


@pytest.mark.parametrize("n", [1, 2, 6, 30])
@pytest.mark.parametrize(("difference", "highest"), [(0.0, 1.0), (0.0, 100.0), (1.0, 1.0), (-25.0, 100.0)])
def test_without_spread_other_examples_may_differ(n, difference, highest):
    """Of n alike, up to the share u of all may be otherwise, (1 - u)**n = 0.05; each then by what is possible."""
    scores, reference = np.full((3, n), 50.0 + difference), np.full((3, n), 50.0)
    found = multi_bootstrap(scores, reference, highest)
    share = 1 - 0.05 ** (1 / n)
    assert (1 - share) ** n == pytest.approx(0.05)
    assert found["bootstrap_low"] == pytest.approx((1 - share) * difference - share * highest)
    assert found["bootstrap_high"] == pytest.approx((1 - share) * difference + share * highest)
    assert found["p_bootstrap"] == (2 / 2**n if difference else 1.0) and found["bootstrap_se"] == 0
    single = single_seed_statistics(scores[0], reference[0], False, highest)
    assert [single[key] for key in ("bootstrap_low", "bootstrap_high", "p")] == [
        found[key] for key in ("bootstrap_low", "bootstrap_high", "p_bootstrap")
    ]


def test_one_example_says_nothing_of_others():
    scores = np.array([[0.9], [0.8], [0.85]])
    row = scored(scores, scores - 0.5, 0.01, highest=1.0)
    assert row["p_t"] is None or row["p"] == 1.0
    noisy = scored(scores, np.array([[0.4], [0.31], [0.36]]), 0.01)
    assert noisy["p_t"] < 0.001 and noisy["p"] == noisy["p_bootstrap"] == 1.0 and noisy["verdict"] == UNDERPOWERED


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(2, 40), st.integers(0, 99))
def test_bootstrap_symmetries(seeds, n, seed):
    scores, reference = np.random.default_rng(seed).random((2, seeds, n))
    found, swapped = multi_bootstrap(scores, reference), multi_bootstrap(reference, scores)
    assert found["bootstrap_low"] <= found["bootstrap_high"]
    assert swapped["bootstrap_low"] == pytest.approx(-found["bootstrap_high"], abs=1e-6)
    percent = multi_bootstrap(100 * scores + 7, 100 * reference + 7)
    for other in (swapped, percent):
        assert other["p_bootstrap"] == pytest.approx(found["p_bootstrap"], rel=1e-3, abs=1e-9)
    assert percent["bootstrap_high"] == pytest.approx(100 * found["bootstrap_high"], abs=1e-3)
    single = single_seed_statistics(scores[0], reference[0], False)
    back = single_seed_statistics(reference[0], scores[0], False)
    assert single["p"] == back["p"] and single["difference"] == -back["difference"]


def test_mcnemar_is_the_binomial():
    ours = np.array([1] * 9 + [0] * 2 + [1] * 30 + [0] * 9, dtype=float)
    theirs = np.array([0] * 9 + [1] * 2 + [1] * 30 + [0] * 9, dtype=float)
    found = single_seed_statistics(100 * ours, 100 * theirs, True, 100.0)
    assert found["p"] == pytest.approx((2 * sum(math.comb(11, k) for k in range(2)) + math.comb(11, 2)) / 2**11)
    assert found["p_equivalence"] == 1.0 or found["p_equivalence"] > 0.9, "14 points are more than the margin of 1"
    assert (found["only_experiment_right"], found["only_reference_right"]) == (9, 2)
    assert found["difference"] == pytest.approx(14.0)
    low, high = paired_interval(9, 2, 50)
    assert (found["bootstrap_low"], found["bootstrap_high"]) == (100 * low, 100 * high) and 0 < low < 0.14 < high < 0.3
    same = single_seed_statistics(ours, ours, True)
    assert same["p"] == 1.0 and same["bootstrap_low"] == -same["bootstrap_high"] < -0.05, "of 50 examples"
    with pytest.raises(ValueError, match="expected binary scores"):
        single_seed_statistics(ours, ours / 2, True)


def test_one_seed_is_a_paired_t_test_over_examples():
    from scipy import stats

    rng = np.random.default_rng(0)
    reference = rng.random(300)
    for shift in (0.2, 0.04):
        shifted = reference + rng.normal(shift, 0.5, 300)
        found = single_seed_statistics(shifted, reference, False)
        expected = stats.ttest_rel(shifted, reference)
        interval = expected.confidence_interval(0.95)
        assert found["p"] == pytest.approx(expected.pvalue)
        assert (found["bootstrap_low"], found["bootstrap_high"]) == pytest.approx((interval.low, interval.high))
    assert single_seed_statistics(reference, reference, False)["p"] == 1.0


# --- families and power ------------------------------------------------------------------------------------------

P_VALUES = st.lists(st.none() | st.floats(0, 1), max_size=8)


@settings(max_examples=15, deadline=None)
@given(P_VALUES)
def test_holm_by_definition(p_values):
    found = holm(p_values)
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    running = 0.0
    for rank, (p, place) in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p))  # a None counts, at the end of the order
        assert found[place] == pytest.approx(running)
    assert [value is None for value in found] == [p is None for p in p_values]
    # Counting the untested is the conservative direction.
    without = holm([p for p in p_values if p is not None])
    kept = [p for p in found if p is not None]
    assert (np.array(kept, dtype=float) >= np.array(without, dtype=float) - 1e-12).all()


def test_holm_known_and_refused():
    assert holm([0.01, 0.04, 0.03, None]) == [pytest.approx(0.04), pytest.approx(0.09), pytest.approx(0.09), None]
    for bad in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match="of 0..1"):
            holm([0.5, bad])


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 6])
@pytest.mark.parametrize("n", [2, 3, 5, 10, 50])
def test_power_is_that_of_statsmodels(n, alpha):
    from statsmodels.stats.power import TTestPower

    for shift in (0.5, 2.0, 4.0):
        effect = shift / math.sqrt(n)
        assert power_at(n, 2.0, 2.0 * effect, alpha) == pytest.approx(TTestPower().power(effect, n, alpha), abs=1e-6)
    # Where statsmodels' is NaN.
    assert power_at(n, 1e-4, 1.0, alpha) == pytest.approx(1.0, abs=1e-6)


def test_seeds_needed():
    # Cohen 1988, d = 1 and d = 0.5, to find it; to show that there is none takes a little more.
    for n, margin, enough in ((9, 1.0, False), (10, 1.0, True), (33, 0.5, False), (34, 0.5, True)):
        assert ((power_at(n, 1.0, margin) or 0) >= 0.8) == enough
    assert seeds_needed(1.0, 1.0) == 11 and seeds_needed(1.0, 0.5) == 36
    assert seeds_needed(1.0, 100.0) == 2
    assert seeds_needed(1.0, 0.02) is None and seeds_needed(1.0, 0.03) == pytest.approx(9516, abs=20)
    assert seeds_needed(0.0, 1.0) is None and seeds_needed(None, 1.0) is None
    assert power_at(5, 0.0, 1.0) is None and power_at(5, None, 1.0) is None and power_at(1, 1.0, 1.0) is None
    with pytest.raises(ValueError, match="margin above 0"):
        power_at(5, 1.0, 0.0)


@pytest.mark.parametrize(("n", "margin"), [(3, 3.0), (5, 1.5), (10, 1.0), (40, 0.5)])
def test_power_of_equivalence_by_simulation(n, margin):
    from scipy import stats

    drawn = np.random.default_rng(n).normal(size=(20_000, n))
    means, errors = drawn.mean(axis=1), drawn.std(axis=1, ddof=1) / math.sqrt(n)
    shown = (np.abs(means) + stats.t.isf(0.05, n - 1) * errors <= margin).mean()
    power = power_of_equivalence(n, 1.0, margin)
    assert power is not None and 0.4 < power and shown - 0.025 < power < shown + 0.005


def test_seeds_are_planned_with_what_the_spread_may_be():
    """Browne 1995: with the pilot's own spread every second study of 3 seeds is planned too small, with the bound
    a fifth."""
    pilots = np.random.default_rng(0).normal(size=(4000, 3)).std(axis=1, ddof=1)
    assert np.mean(pilots < 1.0) > 0.6
    assert np.mean([(upper_sd(spread, 3) or 0) < 1.0 for spread in pilots]) == pytest.approx(0.2, abs=0.02)
    assert upper_sd(1.0, 3) == pytest.approx(1 / math.sqrt(-math.log(0.8)))  # chi square of 2 degrees: 2 (-ln 0.8)
    assert upper_sd(0.0, 3) is None and upper_sd(1.0, 1) is None and upper_sd(None, 3) is None


def test_examples_needed():
    """As many as hold none of a share of margin / highest with a chance of 0.05: 0.99**299 < 0.05 < 0.99**298."""
    assert examples_needed(0.01) == examples_needed(1.0, 100.0) == 299
    assert 0.99**299 < 0.05 < 0.99**298
    assert examples_needed(0.01, alpha=0.05 / 6) == 477 and 0.99**477 < 0.05 / 6 < 0.99**476
    assert examples_needed(0.02) == 149 and examples_needed(1.0) == examples_needed(7.0) == 1
    with pytest.raises(ValueError, match="margin above 0"):
        examples_needed(0.0)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 5), st.floats(0.05, 5), st.sampled_from([0.05, 0.005]))
def test_seeds_needed_is_the_smallest(spread, margin, alpha):
    def enough(n: int) -> bool:
        both = power_at(n, spread, margin, alpha), power_of_equivalence(n, spread, margin, alpha)
        return all(power is not None and power >= 0.8 for power in both)

    needed = seeds_needed(spread, margin, alpha=alpha)
    if needed is None:
        assert not enough(10_000)
    else:
        assert enough(needed) and (needed == 2 or not enough(needed - 1))


# --- verdicts ----------------------------------------------------------------------------------------------------

REFERENCE = [80.0, 81.0, 79.5, 80.5, 82.0]


@pytest.mark.parametrize(
    ("differences", "margin", "expected", "note"),
    [
        ([2.0, 2.3, 1.8, 2.1, 2.2], 1.0, BETTER, "by more than 1"),
        ([-2.0, -2.3, -1.8, -2.1, -2.2], 1.0, WORSE, "by more than 1"),
        ([2.0, 2.3, 1.8, 2.1, 2.2], 3.0, BETTER, "by less than 3"),
        ([2.0, 2.3, 1.8, 2.1, 2.2], 2.1, BETTER, "maybe by less than 2.1"),
        ([0.1, -0.1, 0.2, 0.0, -0.1], 1.0, NO_DIFFERENCE, "within ±1"),
        # A power of 0.8 is not enough: a difference next to the margin was seen.
        ([0.9, -0.1, 1.6, 0.2, 0.8], 1.2, UNDERPOWERED, "to decide about 1.2: about "),
        ([0.1, -0.1, 0.2, 0.0, -0.1], 0.05, UNDERPOWERED, "to decide about 0.05: about "),
        ([9.0, -3.0, 8.0, 1.0, 7.0], 1.0, UNDERPOWERED, "to decide about 1: about "),
        ([900.0, -300.0, 800.0, 100.0, 700.0], 1.0, UNDERPOWERED, "more than 10,000 seeds"),
        ([0.0, 0.0, 0.0, 0.0, 0.0], 1.0, UNDERPOWERED, "nothing tells the spread"),
        ([2.0, 2.0, 2.0, 2.0, 2.0], 1.0, UNDERPOWERED, "too coarse"),
        ([5.0, 5.1, 4.9], 1.0, BETTER, "by more than 1"),
        ([5.0, 5.1], 1.0, UNDERPOWERED, "2 seeds; train at least 3"),
        ([0.0, 0.0], 1.0, UNDERPOWERED, "2 seeds; train at least 3"),
        ([5.0], 1.0, UNDERPOWERED, "1 seed and no per-example scores"),
    ],
)
def test_verdict_of_seeds(differences, margin, expected, note):
    reference = np.array(REFERENCE[: len(differences)])
    row = one(reference + differences, reference, margin)
    assert row["verdict"] == expected
    assert row["note"] is None if note is None else note in row["note"]
    assert row["scope"] == ("method" if len(differences) > 1 else "this checkpoint, not the method")
    swapped = one(reference, reference + differences, margin)["verdict"]
    assert swapped == {BETTER: WORSE, WORSE: BETTER}.get(expected, expected)
    assert set(row) == set(ROW) and json.dumps(row, allow_nan=False)


def test_note_names_the_seeds_needed():
    row = one(np.array(REFERENCE) + [2.0, -1.0, 1.0, 0.0, -2.0], REFERENCE, 1.0)
    upper = upper_sd(math.sqrt(2.5), 5)
    assert row["difference_sd_upper"] == upper and upper == pytest.approx(1.5574 * math.sqrt(2.5), rel=1e-3)
    assert row["seeds_needed"] == seeds_needed(upper, 1.0)
    assert row["seeds_needed"] > (seeds_needed(math.sqrt(2.5), 1.0) or 0) > 5
    assert row["note"] == f"to decide about 1: about {row['seeds_needed']} seeds"
    assert row["power"] == power_at(5, math.sqrt(2.5), 1.0)


def test_holm_decides_in_a_family():
    better = Comparison(range(5), np.array(REFERENCE) + [1.0, 2.0, 0.4, 1.2, 0.8], REFERENCE, 0.1)
    alone = compare_family([better])[0]
    assert alone["p"] < 0.05 < 6 * alone["p"] and alone["verdict"] == BETTER
    untested = Comparison([1], [80.0], [80.0], 0.1)
    rows = compare_family([better, *[untested] * 5])
    assert rows[0]["p_holm"] == pytest.approx(6 * alone["p"]) and rows[0]["verdict"] == UNDERPOWERED
    assert rows[0]["family_size"] == 6 and rows[1]["p_holm"] is None
    # The power is that of the adjusted test.
    assert rows[0]["power"] == power_at(5, alone["difference_sd"], 0.1, 0.05 / 6) < alone["power"]
    assert compare_family([]) == []


def test_the_claim_of_no_difference_is_made_at_the_level_of_the_family():
    near = Comparison(range(5), np.array(REFERENCE) + [0.3, -0.3, 0.6, 0.0, -0.3], REFERENCE, 0.7)
    alone = compare_family([near])[0]
    assert 0.05 / 6 < alone["p_equivalence"] < 0.05 and alone["verdict"] == NO_DIFFERENCE
    rows = compare_family([near] * 6)
    assert rows[0]["p_equivalence_holm"] == pytest.approx(6 * alone["p_equivalence"])
    needed = seeds_needed(alone["difference_sd_upper"], 0.7, alpha=0.05 / 6)
    assert (rows[0]["verdict"], rows[0]["note"]) == (
        UNDERPOWERED, f"to decide about 0.7: about {needed} seeds")


@settings(max_examples=20, deadline=None)
@given(pairs(3, 6), pairs(3, 6), st.sampled_from([0.5, 5.0, 50.0]))
def test_no_difference_is_below_the_margin(first, second, margin):
    family = [Comparison(range(len(pair[0])), pair[0], pair[1], margin) for pair in (first, second)]
    for row in compare_family(family):
        assert row["verdict"] != NO_DIFFERENCE or abs(row["difference"]) < margin
        found = row["verdict"] in (BETTER, WORSE)
        assert found == (row["p_holm"] is not None and row["p_holm"] <= 0.05)
        assert not found or (row["verdict"] == BETTER) == (row["difference"] > 0)


def two_level(n_seeds: int, n: int, seed_sd: float, example_sd: float, difference: float = 0.0, seed: int = 0):
    """Centred effects, so that the mean difference is ``difference`` whatever was drawn."""
    rng = np.random.default_rng(seed)
    seeds, examples = rng.normal(0, seed_sd, (n_seeds, 1)), rng.normal(0, example_sd, (1, n))
    reference = rng.normal(0.5, 0.2, (n_seeds, n))
    return reference + seeds - seeds.mean() + examples - examples.mean() + difference, reference


def test_a_difference_of_these_examples_only_is_not_of_the_method():
    scores, reference = two_level(5, 50, seed_sd=0.002, example_sd=0.3, difference=0.02)
    row = scored(scores, reference, margin=0.02)
    assert row["p_t"] < 0.001, "the seeds agree"
    assert row["bootstrap_low"] < 0 < row["bootstrap_high"] and row["p"] == row["p_bootstrap"] > 0.05
    few = "at least 149 independent evaluation examples (50 there)"
    assert row["verdict"] == UNDERPOWERED and row["note"].endswith(few)
    assert (row["examples"], row["examples_needed"]) == (50, 149)
    many, reference_of_many = two_level(5, 200, seed_sd=0.002, example_sd=0.3)
    row = scored(many, reference_of_many, margin=0.02)
    told = f"about {row['examples_to_decide']:,} evaluation examples (200 there)"
    assert row["note"].endswith(told) and 1500 < row["examples_to_decide"] < 3000
    # So many, drawn alike, do decide.
    enough, reference_of_enough = two_level(5, row["examples_to_decide"] * 2, seed_sd=0.002, example_sd=0.3)
    assert scored(enough, reference_of_enough, margin=0.02)["verdict"] == NO_DIFFERENCE
    assert one(scores.mean(axis=1), reference.mean(axis=1), 0.02)["verdict"] == BETTER, "without the scores"
    # Nor does it show that there is none, unless the margin is large beside the noise of the examples.
    none, reference = two_level(5, 50, seed_sd=0.002, example_sd=0.3)
    assert scored(none, reference, margin=0.02)["verdict"] == UNDERPOWERED
    assert one(none.mean(axis=1), reference.mean(axis=1), 0.02)["verdict"] == NO_DIFFERENCE
    assert scored(none, reference, margin=0.5)["verdict"] == NO_DIFFERENCE


def test_a_difference_beyond_seeds_and_examples():
    scores, reference = two_level(5, 400, seed_sd=0.01, example_sd=0.3, difference=0.2)
    row = scored(scores, reference, margin=0.02)
    assert row["verdict"] == BETTER and row["bootstrap_low"] > 0 and row["p"] == max(row["p_t"], row["p_bootstrap"])
    both, reference = two_level(4, 160, seed_sd=0.05, example_sd=1.2)
    note = scored(both, reference, margin=0.02)["note"]
    assert " seeds and " in note and "evaluation examples" in note


def test_the_interval_excludes_0_where_p_is_small():
    for difference in (0.01, 0.05, 0.1, 0.2):
        scores, reference = two_level(5, 100, seed_sd=0.02, example_sd=0.2, difference=difference)
        row = scored(scores, reference, margin=0.02)
        assert (row["bootstrap_low"] > 0) == (row["p_bootstrap"] < 0.05)


def test_nothing_finished_is_underpowered_and_counts_in_the_family():
    done = Comparison([1, 2, 3], [0.5, 0.6, 0.71], [0.4, 0.5, 0.6], 0.01)
    none, some = compare_family([Comparison([], [], [], 0.01), done])
    assert (none["n"], none["verdict"], none["difference"]) == (0, UNDERPOWERED, None)
    assert some["family_size"] == 2 and some["p_holm"] == pytest.approx(2 * some["p"])


def test_equal_means_on_different_examples():
    scores, reference = np.tile([1.0, 0, 1, 0], (3, 100)), np.tile([0.0, 1, 0, 1], (3, 100))
    row = scored(scores, reference, margin=0.05, binary=True)
    assert row["p"] is None and row["verdict"] == UNDERPOWERED
    assert row["note"] == f"to decide about 0.05: about {row['examples_to_decide']:,} evaluation examples (400 there)"


@pytest.mark.parametrize(("n", "expected"), [(1, UNDERPOWERED), (2, UNDERPOWERED), (6, UNDERPOWERED),
                                             (30, UNDERPOWERED), (298, UNDERPOWERED), (299, NO_DIFFERENCE)])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_few_examples_alike_do_not_show_that_there_is_no_difference(n, expected, scale):
    """A difference of a percentage point is one example in a hundred; 298 without any are seen once in 20 times."""
    scores = scale * np.tile(np.arange(n) % 2.0, (5, 1))
    row = scored(scores, scores, margin=scale / 100, binary=True, highest=scale)
    assert row["verdict"] == expected and (row["examples"], row["examples_needed"]) == (n, 299)
    assert row["bootstrap_high"] == -row["bootstrap_low"] == pytest.approx(scale * (1 - 0.05 ** (1 / n)))
    assert (row["bootstrap_high"] <= row["margin"]) == (expected == NO_DIFFERENCE)
    if expected == UNDERPOWERED:
        assert row["note"] == (f"to decide about {scale / 100:g}: at least 299 independent evaluation examples "
                               f"({n} there)")
    # One answer in 5 n that differs makes a spread, a tiny one: it shows no more.
    other = scores.copy()
    other[0, 0] = scale
    if n > 1:
        assert scored(other, scores, margin=scale / 100, binary=True, highest=scale)["verdict"] == (
            expected if n > 200 else UNDERPOWERED)


def test_a_family_needs_more_examples():
    scores = np.tile(np.arange(400) % 2.0, (5, 1))
    means = scores.mean(axis=1)
    alike = Comparison(range(5), means, means, 0.01, True, scores, scores)
    assert compare_family([alike])[0]["verdict"] == NO_DIFFERENCE
    rows = compare_family([alike] * 6)
    assert {(row["examples_needed"], row["verdict"]) for row in rows} == {(477, UNDERPOWERED)}


def test_a_margin_in_another_unit_is_refused():
    scores = 100 * np.tile(np.arange(4) % 2.0, (3, 1))
    with pytest.raises(ValueError, match="a value is 50, the score of a right answer 1"):
        scored(scores, scores, margin=1.0)


@pytest.mark.parametrize("binary", [True, False])
def test_verdict_of_one_seed(binary):
    ours = np.array([[1.0] * 40 + [0.0] * 10])
    theirs = np.array([[1.0] * 20 + [0.0] * 30])
    row = scored(ours, theirs, 0.1, binary=binary)
    assert (row["verdict"], row["note"]) == (BETTER, "by more than 0.1")
    assert scored(theirs, ours, 0.1, binary=binary)["verdict"] == WORSE
    assert scored(ours, ours, 0.1, binary=binary)["verdict"] == NO_DIFFERENCE  # 0.9**50 < 0.05
    assert scored(ours, ours, 0.01, binary=binary)["verdict"] == UNDERPOWERED
    assert (row["p_mcnemar"] is not None) == binary and (row["p_bootstrap"] is None) == binary
    assert row["only_experiment_right"] == (20 if binary else None)
    assert row["difference"] == pytest.approx(0.4) and row["low"] is None and row["bootstrap_low"] > 0.2
    assert row["power"] is None and row["scope"] == "this checkpoint, not the method"
    assert set(row) == set(ROW) and json.dumps(row, allow_nan=False)


def test_family_refuses():
    scores = np.full((2, 4), 0.5)
    with pytest.raises(ValueError, match="seeds repeat"):
        compare_family([Comparison([1, 1], [0.5, 0.5], [0.5, 0.5], 0.1)])
    with pytest.raises(ValueError, match="got 3 for 2 seeds"):
        compare_family([Comparison([1, 2], [0.5] * 3, [0.5] * 3, 0.1)])
    with pytest.raises(ValueError, match="margin above 0"):
        compare_family([Comparison([1, 2], [0.5] * 2, [0.5] * 2, 0.0)])
    with pytest.raises(ValueError, match=r"reference_scores\[1\] has the mean 0.5, the metric at that seed is 50"):
        one([0.5, 0.5], [0.5, 50.0], 0.1, scores=scores, reference_scores=scores)
    with pytest.raises(ValueError, match="expected 3 rows"):
        one([0.5] * 3, [0.5] * 3, 0.1, scores=scores, reference_scores=scores)


# --- calibration -------------------------------------------------------------------------------------------------


def test_false_findings_are_rare():
    # At 5% of 400 the count lies within 8 to 34 but for 1 in 500 draws.
    rng = np.random.default_rng(0)
    values, reference = rng.normal(size=(2, 400, 5))
    found = 0
    for ours, theirs in zip(values, reference, strict=True):
        statistics = paired_statistics(ours, theirs)
        found += verdict(statistics, statistics["p_t"], None, 1.0)[0] in (BETTER, WORSE)
    assert 8 <= found <= 34


def test_benchmark_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = importlib.import_module("bench_calibration")
    monkeypatch.setattr(bench, "TWO_LEVEL_REPETITIONS", 10)
    monkeypatch.setattr(bench, "CHECKED", 1)
    monkeypatch.setattr(bench, "FAMILY", 2)
    bench.main(["--repetitions", "40", "--seed_counts", "3", "--output_dir", str(tmp_path)])
    rows = json.loads((tmp_path / "bench_calibration.json").read_text())["rows"]
    assert [row["shape"] for row in rows] == [*bench.SHAPES, *bench.TWO_LEVEL]
    assert all(0 <= row["low"] <= row["false_findings"] <= row["high"] <= 1 for row in rows)
    assert [row["repetitions"] for row in rows] == [40] * len(bench.SHAPES) + [10] * len(bench.TWO_LEVEL)
    assert (tmp_path / "bench_calibration.csv").exists()
    assert "| two-level, exact match | 3 |" in capsys.readouterr().out
    # The agreement with comparison.py is checked, not assumed.
    monkeypatch.setattr(bench, "verdicts", lambda tests, *_: np.full(tests.p.shape, "other"))
    with pytest.raises(AssertionError):
        bench.main(["--repetitions", "40", "--seed_counts", "3", "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--seed_counts", "2,3"])
