"""Comparisons over seeds: is an experiment better than its reference on a metric, or can that not be told?"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamap.core.clusters import Clusters
from datamap.core.flags import DEFAULT_SEED
from datamap.core.intervals import ALPHA, compare_right, equivalence, unseen

POWER = 0.8
PLANNED_AT = 0.8  # confidence that the standard deviation is not above the one that seeds are planned with
MIN_SEEDS = 3  # below it a spread over seeds is hardly an estimate
MAX_SEEDS_NEEDED = 10_000
SIGN_FLIPS = 10_000  # a sample of sign patterns above 13 seeds, all 2**n up to there
BETTER, WORSE = "better", "worse"
NO_DIFFERENCE, UNDERPOWERED = "no detectable difference", "underpowered"

STATISTICS = (
    "n", "mean", "sd", "reference_mean", "reference_sd", "difference", "difference_sd", "low", "high", "wins", "ties",
    "p_t", "p_sign_flip", "p_sign_flip_smallest", "cohens_d", "hedges_g",
)
# A row of compare_family; what does not apply to a comparison is None in it.
ROW = (
    *STATISTICS, "bootstrap_low", "bootstrap_high", "bootstrap_se", "bootstrap_se_examples", "bootstrap_degrees",
    "p_bootstrap", "only_experiment_right", "only_reference_right", "p_mcnemar", "p", "p_holm", "p_equivalence",
    "p_equivalence_holm", "family_size", "margin", "power", "difference_sd_upper", "seeds_needed", "examples",
    "examples_needed", "examples_to_decide", "cluster_by", "clusters", "design_effect",
    "effective_examples", "scope", "verdict", "note",
)


# --- one metric over seeds ---------------------------------------------------------------------------------------


def paired_statistics(values: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """What n seeds say of a metric: means, spread, interval and p-values of the differences ``values - reference``.

    ``values`` and ``reference`` are (n,) floats in the metric's unit, the same seeds in the same order. Keys:
    ``n``; ``mean``, ``sd``, ``reference_mean``, ``reference_sd`` (ddof 1); ``difference`` (their mean),
    ``difference_sd`` (ddof 1), ``low`` and ``high`` (95% t interval of the mean); ``wins`` (seeds at which the
    experiment is strictly higher) and ``ties``; ``p_t`` (two-sided paired t test); ``p_sign_flip`` (two-sided
    sign-flip permutation test on the mean, Fisher 1935: all 2**n patterns for n <= 13, else 10,000 seeded ones);
    ``p_sign_flip_smallest`` (2 / 2**n, the smallest p that n seeds allow: 0.0625 at 5, so the sign flip can only
    support a finding from 6 seeds on); ``cohens_d`` (difference / difference_sd), and ``hedges_g``, without the bias
    that it has on few seeds (Hedges 1981: d of 3 seeds is 1.8 times too high on average).

    Plain numbers, never NaN; None where there is no answer: everything but n, means and difference at one seed, and
    ``low``, ``high``, ``p_t``, ``cohens_d`` where all differences are the same (up to rounding), as no spread over
    seeds can be estimated then; ``hedges_g`` also at two seeds, where d has no mean. Raises ValueError for no values,
    unequal lengths, NaN or infinity.
    """
    values, reference = _checked(1, values=values, reference=reference)
    n = len(values)
    differences = values - reference
    scale = max(np.abs(values).max(), np.abs(reference).max())
    # 0.8 + 0.01 - 0.8 and 0.7 + 0.01 - 0.7 differ by rounding: without this a t test would find that significant.
    differences[np.abs(differences) <= 1e-9 * scale] = 0.0
    found: dict[str, Any] = dict.fromkeys(STATISTICS)
    found |= {"n": n, "mean": float(values.mean()), "reference_mean": float(reference.mean())}
    found["difference"] = float(differences.mean())
    if n == 1:
        return found
    from scipy import stats

    spread = float(differences.std(ddof=1)) if np.ptp(differences) > 1e-9 * scale else 0.0
    found |= {
        "sd": float(values.std(ddof=1)), "reference_sd": float(reference.std(ddof=1)), "difference_sd": spread,
        "wins": int((differences > 0).sum()), "ties": int((differences == 0).sum()),
        "p_sign_flip": _sign_flip(differences, 1e-9 * scale), "p_sign_flip_smallest": 2.0 ** (1 - n),
    }
    if spread > 0:
        test = stats.ttest_1samp(differences, 0.0)
        interval = test.confidence_interval(1 - ALPHA)
        found |= {"low": float(interval.low), "high": float(interval.high), "p_t": float(test.pvalue)}
        found["cohens_d"] = float(differences.mean()) / spread
        found["hedges_g"] = found["cohens_d"] * hedges_correction(n - 1) if n > 2 else None
    return found


def hedges_correction(degrees: int) -> float:
    """What a standardised mean difference is multiplied with to be without bias, 0..1 (Hedges 1981, exact)."""
    from scipy.special import gammaln

    return float(np.exp(gammaln(degrees / 2) - gammaln((degrees - 1) / 2)) * math.sqrt(2 / degrees))


def _sign_flip(differences: np.ndarray, tolerance: float) -> float:
    """Two-sided p of (n,) differences; sums within the tolerance are ties: 0.6 + 0.9 and 0.5 + 1.0 differ by rounding.

    (scipy's permutation_test compares within 1e-14 of the sum, less than the differences themselves are off.)
    """
    n = len(differences)
    if 2**n <= SIGN_FLIPS:
        flips, known = (np.arange(2**n)[:, None] >> np.arange(n)) & 1, 0
    else:
        flips, known = np.random.default_rng(DEFAULT_SEED).integers(0, 2, (SIGN_FLIPS, n)), 1  # and the one observed
    sums = (1 - 2 * flips) @ differences
    extreme = int((np.abs(sums) >= abs(differences.sum()) - n * tolerance).sum())
    return (known + extreme) / (known + len(flips))


def _checked(dimensions: int, **pair: Any) -> list[np.ndarray]:
    """Two arrays of one shape as float64; raises ValueError, with their names."""
    arrays = {name: np.array(values, dtype=np.float64) for name, values in pair.items()}
    for name, array in arrays.items():
        if array.ndim != dimensions or not array.size:
            raise ValueError(f"{name}: expected {dimensions} dimension(s) and at least one value, got shape "
                             f"{array.shape}")
        for place in np.argwhere(~np.isfinite(array))[:1]:
            raise ValueError(f"{name}{place.tolist()} is {array[tuple(place)]}; expected finite numbers")
    shapes = [array.shape for array in arrays.values()]
    if len(set(shapes)) > 1:
        raise ValueError("experiment and reference differ in shape: " + " and ".join(map(str, shapes)))
    return list(arrays.values())


# --- per-example scores ------------------------------------------------------------------------------------------


def multi_bootstrap(
    scores: np.ndarray, reference_scores: np.ndarray, highest: float = 1.0, clusters: Clusters | None = None
) -> dict[str, float]:
    """The mean difference over seeds and examples together: does it hold for other seeds and other examples?

    ``scores`` and ``reference_scores`` are (S, N) per-example scores in the metric's unit, the same S >= 2 seeds and
    N examples in the same order; ``highest`` is as in ``Comparison``; ``clusters`` of the examples (None: each by
    itself). What the Multi-Bootstrap (Sellam et al. 2021, arXiv 2106.16163) estimates by resampling seeds and clusters
    of examples, both arms alike, in closed form. Keys:

    ``bootstrap_se``: standard error of the mean difference. The differences are a table of seeds x clusters, whose
    mean varies with the seeds, the clusters and the noise of single answers; the variances of the means of the rows
    and of the columns hold that noise once each, the residual mean square takes it off once (random effects, two-way
    crossed; the variance of the resamples themselves is that of Owen 2007, The pigeonhole bootstrap, arXiv 0712.1111,
    which counts the noise almost three times and has (S - 1) / S of the seeds' variance). Never below what the
    seeds or the clusters alone give; ``bootstrap_se_examples`` is what those alone give.
    ``bootstrap_low``, ``bootstrap_high``, ``p_bootstrap``: 95% interval of the mean difference and two-sided p, of t
    with that standard error; one over its degrees of freedom, ``bootstrap_degrees``, is w / (S - 1) + (1 - w) / D, w
    the share of the seeds in the variance, D the degrees of the clusters. Satterthwaite's squares of the shares are
    liberal for an estimated w: with 5 seeds and a quarter of the variance from the examples 5.7% false findings, this
    one 4.5%; without the part of the examples there were 4 to 10% where there are 6 of them, so 1 to 4%. Without any
    spread they are those of ``_without_spread``.

    Raises ValueError for other shapes, NaN or infinity.
    """
    differences = np.subtract(*_checked(2, scores=scores, reference_scores=reference_scores))
    seeds, examples = differences.shape
    if seeds < 2:
        raise ValueError("expected the scores of at least 2 seeds; single_seed_statistics compares one")
    groups = _clusters(clusters, examples)
    by_seed, by_example, mean = differences.mean(axis=1), differences.mean(axis=0), float(differences.mean())
    if groups.count == 1 or np.ptp(differences) <= 1e-9 * np.abs(differences).max():
        return {"bootstrap_se": 0.0} | _without_spread(mean, groups.count, highest)
    of_seeds, of_examples = float(by_seed.var(ddof=1)) / seeds, groups.variance_of_mean(by_example)
    residuals = groups.sums(differences - by_seed[:, None] - by_example + mean)
    noise = float((groups.weights * residuals**2).sum()) / ((seeds - 1) * seeds * examples**2)
    variance = max(of_seeds + of_examples - noise, of_seeds, of_examples)
    share = of_seeds / variance
    degrees = 1 / (share / (seeds - 1) + (1 - share) / groups.degrees)
    return {"bootstrap_se": math.sqrt(variance), "bootstrap_se_examples": math.sqrt(of_examples)} | _with_t(
        mean, math.sqrt(variance), degrees)


def _clusters(clusters: Clusters | None, examples: int) -> Clusters:
    """Those given, or every example by itself; ValueError where they are of another number of examples."""
    if clusters is None:
        return Clusters(np.arange(examples))
    if clusters.n != examples:
        raise ValueError(f"clusters of {clusters.n} examples, scores of {examples}")
    return clusters


def _with_t(mean: float, se: float, degrees: float) -> dict[str, float]:
    from scipy import stats

    half = float(stats.t.isf(ALPHA / 2, degrees)) * se
    return {"bootstrap_low": mean - half, "bootstrap_high": mean + half, "bootstrap_degrees": degrees,
            "p_bootstrap": float(2 * stats.t.sf(abs(mean) / se, degrees))}


def _without_spread(mean: float, examples: int, highest: float) -> dict[str, float]:
    """Where every example has the same difference, there is no spread to go by, but other examples may differ.

    Of n examples (clusters of them) without an exception, at most 1 - 0.05**(1 / n) of all are exceptions (95% bound
    of a proportion, Clopper and Pearson 1934; about 3 / n), each by ``highest`` at most. p is that of the signs:
    2 / 2**n, or 1.
    """
    share = 1 - ALPHA ** (1 / examples)
    return {"bootstrap_low": mean - share * (highest + mean), "bootstrap_high": mean + share * (highest - mean),
            "p_bootstrap": 2.0 ** (1 - examples) if mean else 1.0}


def single_seed_statistics(
    scores: np.ndarray, reference_scores: np.ndarray, binary: bool, highest: float = 1.0,
    clusters: Clusters | None = None, margin: float = 1.0,
) -> dict[str, Any]:
    """One trained model against another on the same N examples: this checkpoint, not the method.

    ``scores`` and ``reference_scores`` are (N,) in the metric's unit; ``binary`` ones are 0 or ``highest`` (1, or 100
    for percentages). Keys: ``difference`` (mean of scores - reference_scores), ``bootstrap_low`` and
    ``bootstrap_high`` (its 95% interval over examples), ``p``, and ``p_equivalence`` (that the difference is
    ``margin`` or more). Binary scores: ``compare_right``, with the discordant pairs in ``only_experiment_right`` and
    ``only_reference_right``; others: paired t over the clusters (examples), or ``_without_spread``. Raises ValueError
    for unequal lengths, NaN, infinity, or binary scores that are not.
    """
    differences = np.subtract(*_checked(1, scores=scores, reference_scores=reference_scores))
    n, difference = len(differences), float(differences.mean())
    groups = _clusters(clusters, n)
    if binary:
        known = np.unique(np.concatenate([scores, reference_scores]))
        if not np.isin(known, (0, highest)).all():
            raise ValueError(f"expected binary scores, 0 or {highest:g}, got {known[:4].tolist()}")
        right = np.divide(scores, highest), np.divide(reference_scores, highest)
        found = compare_right(*right, margin / highest, groups)
        return {"difference": difference, "bootstrap_low": highest * found["low"],
                "bootstrap_high": highest * found["high"], "only_experiment_right": found["only_first"],
                "only_reference_right": found["only_second"], "p": found["p"], "p_equivalence": found["p_equivalence"]}
    equal = unseen(margin / highest, groups.effective_examples(differences))
    if groups.count == 1 or np.ptp(differences) <= 1e-9 * np.abs(differences).max():
        single = _without_spread(difference, groups.count, highest)
        equal = 1.0 if difference else equal
    else:
        se = math.sqrt(groups.variance_of_mean(differences))
        single = _with_t(difference, se, groups.degrees)
        equal = max(equal, equivalence(difference, se, groups.degrees, margin))
    return {"difference": difference, **single, "p": single.pop("p_bootstrap"), "p_equivalence": equal}


# --- families and power ------------------------------------------------------------------------------------------


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm-adjusted p-values (Holm 1979), in the order given: at most 5% families with a false finding at <= 0.05.

    None, a comparison that was planned but could not be tested, stays None and counts in the family: it was a chance
    to find something. It enters as p = 1, which can only raise the others' values. Raises ValueError for a p-value
    outside 0..1.
    """
    from statsmodels.stats.multitest import multipletests

    filled = np.array([1.0 if p is None else p for p in p_values], dtype=float)
    if not ((filled >= 0) & (filled <= 1)).all():
        raise ValueError(f"expected p-values of 0..1 or None, got {list(p_values)}")
    if not len(filled):
        return []
    adjusted = multipletests(filled, method="holm")[1].tolist()
    return [None if p is None else value for p, value in zip(p_values, adjusted, strict=True)]


def power_at(n: int, difference_sd: float | None, margin: float, alpha: float = ALPHA) -> float | None:
    """Chance, 0..1, that n paired seeds find a true difference of ``margin`` (two-sided paired t test at ``alpha``).

    ``difference_sd`` is the standard deviation of the differences between seeds, in the unit of ``margin``. None for
    n < 2 or a spread of 0 or None. Raises ValueError unless margin > 0.
    """
    if not margin > 0:
        raise ValueError(f"expected a margin above 0, got {margin}")
    if n < 2 or not difference_sd:
        return None
    from scipy import stats

    # What statsmodels' TTestPower computes, but that is NaN for many large effects: scipy's lower tail of the
    # noncentral t fails there, and the upper tail of its mirror image does not.
    shift = margin / difference_sd * math.sqrt(n)
    critical = stats.t.isf(alpha / 2, n - 1)
    return float(min(1.0, stats.nct.sf(critical, n - 1, shift) + stats.nct.sf(critical, n - 1, -shift)))


def power_of_equivalence(n: int, difference_sd: float | None, margin: float, alpha: float = ALPHA) -> float | None:
    """Chance, 0..1, that n paired seeds show a difference below ``margin`` (``equivalence``) where there is none.

    Arguments and None as in ``power_at``. Each of the two tests fails with the chance of a one-sided t test of
    ``margin``; both together hardly ever do, and are counted as if never: a little too low where it is far below 1.
    """
    if not margin > 0:
        raise ValueError(f"expected a margin above 0, got {margin}")
    if n < 2 or not difference_sd:
        return None
    from scipy import stats

    one = stats.nct.sf(stats.t.isf(alpha, n - 1), n - 1, margin / difference_sd * math.sqrt(n))
    return float(max(0.0, 2 * min(1.0, one) - 1))


def upper_sd(difference_sd: float | None, n: int) -> float | None:
    """The 80% upper confidence bound of a standard deviation that n normal values have shown; None where they cannot.

    With that of a pilot study, not its own, as many are planned as give the power in 80% of all studies (Browne 1995).
    """
    if n < 2 or not difference_sd:
        return None
    from scipy import stats

    return float(difference_sd * math.sqrt((n - 1) / stats.chi2.isf(PLANNED_AT, n - 1)))


def seeds_needed(difference_sd: float | None, margin: float, alpha: float = ALPHA) -> int | None:
    """The smallest number of paired seeds, at least 2, that decide about ``margin``: with a power of 0.8 each, they
    find a difference of it where there is one, and show a smaller one where there is none.

    Arguments as in ``power_at``. None for a spread of 0 or None, or where more than 10,000 seeds are needed.
    """

    def enough(n: int) -> bool:
        found = (power_at(n, difference_sd, margin, alpha), power_of_equivalence(n, difference_sd, margin, alpha))
        return all(power is not None and power >= POWER for power in found)

    found = 2 + bisect_left(range(2, MAX_SEEDS_NEEDED + 1), True, key=enough)
    return found if found <= MAX_SEEDS_NEEDED else None


def examples_needed(margin: float, highest: float = 1.0, alpha: float = ALPHA) -> int:
    """The fewest examples that can show that there is no difference of ``margin``.

    Were there one, at least the share margin / highest of all examples would be scored otherwise, ``highest`` being
    the most that one can differ by; as many as these hold none of them with a chance of ``alpha`` at most (the rule
    of three: 299 for 1 of 100). Fewer may be scored all alike, or hardly differ, whatever is true. Raises ValueError
    unless margin > 0.
    """
    if not margin > 0:
        raise ValueError(f"expected a margin above 0, got {margin}")
    return 1 if margin >= highest else math.ceil(math.log(alpha) / math.log1p(-margin / highest))


def examples_to_decide(statistics: Mapping[str, Any], margin: float, alpha: float = ALPHA) -> int | None:
    """About how many evaluation examples of this kind, in clusters of this size, decide about ``margin`` with these
    seeds: at that standard error a difference of it, or a smaller one, is shown with a power of 0.8.

    ``statistics`` are those of ``multi_bootstrap`` and ``examples``. None without their spread, and where the seeds
    alone vary too much for that.
    """
    of_examples, examples = statistics.get("bootstrap_se_examples"), statistics.get("examples")
    if not of_examples or not examples:
        return None
    from scipy import stats

    # In standard errors: a two-sided test of the margin, and two one-sided ones of which neither may fail.
    to_find = stats.norm.isf(alpha / 2) + stats.norm.ppf(POWER)
    errors = max(to_find, stats.norm.isf(alpha) + stats.norm.ppf((1 + POWER) / 2))
    left = (margin / errors) ** 2 - (statistics["bootstrap_se"] ** 2 - of_examples**2)
    return math.ceil(examples * of_examples**2 / left) if left > 0 else None


# --- verdicts ----------------------------------------------------------------------------------------------------


def verdict(
    statistics: Mapping[str, Any], p_holm: float | None, p_equivalence: float | None, margin: float,
    family_size: int = 1,
) -> tuple[str, str | None]:
    """``better``, ``worse``, ``no detectable difference`` or ``underpowered``, and a note on how much or why, or None.

    ``statistics`` are those of ``paired_statistics``, and of ``multi_bootstrap`` where there are per-example scores;
    ``p_holm`` and ``p_equivalence`` are the Holm-adjusted p-values of the comparison (of ``compare_family``),
    ``margin`` the smallest difference that matters, in the metric's unit, above 0.

    From 3 seeds on: better or worse where p_holm <= 0.05, with a note on whether that is by more than ``margin``
    (its 95% interval lies beyond) or by less (p_equivalence <= 0.05); else no detectable difference where
    p_equivalence <= 0.05, that is where a difference of ``margin`` is ruled out; else underpowered, with what would
    decide. The same difference at every seed, other than 0, is underpowered: nothing tells the spread. Two seeds are
    always underpowered. One seed gives a verdict of this checkpoint only.
    """
    n, difference, spread = statistics["n"], statistics["difference"], statistics["difference_sd"]
    if n == 0:
        return UNDERPOWERED, "no seed at which both runs are finished"
    significant = p_holm is not None and p_holm <= ALPHA and difference != 0
    equivalent = p_equivalence is not None and p_equivalence <= ALPHA
    if n == 1 and p_holm is None:
        return UNDERPOWERED, f"1 seed and no per-example scores; train at least {MIN_SEEDS}"
    if 1 < n < MIN_SEEDS:
        return UNDERPOWERED, f"{n} seeds; train at least {MIN_SEEDS}"
    if spread == 0 and difference != 0:
        return UNDERPOWERED, "the same difference at every seed: the metric is too coarse to estimate the spread"
    if significant:
        return (BETTER if difference > 0 else WORSE), _by_how_much(statistics, equivalent, margin)
    if equivalent:
        return NO_DIFFERENCE, f"within ±{margin:g}"
    return UNDERPOWERED, _limits(statistics, margin, ALPHA / family_size)


def widest_interval(statistics: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The interval that goes with the verdict: over seeds and examples where there are scores of the examples, and it
    is the wider one; else over seeds."""
    pairs = [(statistics.get(f"{of}low"), statistics.get(f"{of}high")) for of in ("", "bootstrap_")]
    return max(pairs, key=lambda pair: -1 if pair[0] is None else pair[1] - pair[0])


def _by_how_much(statistics: Mapping[str, Any], equivalent: bool, margin: float) -> str:
    low, high = widest_interval(statistics)
    if equivalent:
        return f"by less than {margin:g}"
    if low is not None and high is not None and max(low, -high) >= margin:
        return f"by more than {margin:g}"
    return f"maybe by less than {margin:g}"


def _limits(statistics: Mapping[str, Any], margin: float, alpha: float) -> str:
    """What it would take to decide between no difference and one of ``margin``."""
    n, spread = statistics["n"], statistics["difference_sd"]
    examples, fewest = statistics.get("examples"), statistics.get("examples_needed")
    if examples is None and not spread:
        return "the same value at every seed, and no scores of the examples: nothing tells the spread"
    needs = []
    if n > 1 and spread:
        needed = seeds_needed(upper_sd(spread, n), margin, alpha)
        if needed is None or needed > n:
            count = f"more than {MAX_SEEDS_NEEDED:,}" if needed is None else f"about {max(needed, MIN_SEEDS):,}"
            needs.append(f"{count} seeds")
    worth = statistics.get("effective_examples") or examples
    decide = examples_to_decide(statistics, margin, alpha)
    if examples is not None and fewest is not None and worth < fewest:
        clusters = statistics.get("clusters") or examples
        grouped = f" in {clusters:,} clusters, worth {worth:,.0f}" * (clusters < examples)
        needs.append(f"at least {fewest:,} independent evaluation examples ({examples:,} there{grouped})")
    elif examples is not None and decide is not None and decide > examples:
        needs.append(f"about {decide:,} evaluation examples ({examples:,} there)")
    elif examples is not None and statistics.get("bootstrap_se_examples") and decide is None:
        needs.append("more evaluation examples")
    return f"to decide about {margin:g}: {' and '.join(needs) or 'more seeds or examples'}"


def _spread(statistics: Mapping[str, Any]) -> float:
    """The standard deviation of a difference between seeds that the standard error of the comparison stands for."""
    se = statistics.get("bootstrap_se") or 0.0
    return max(statistics["difference_sd"], se * math.sqrt(statistics["n"]))


@dataclass(frozen=True)
class Comparison:
    """An experiment and its reference on one metric, at the same seeds in the same order."""

    seeds: Sequence[int]
    values: Sequence[float] | np.ndarray
    reference: Sequence[float] | np.ndarray
    margin: float  # the smallest difference that matters, in the metric's unit
    binary: bool = False  # per-example scores are right or wrong
    scores: np.ndarray | None = None  # (S, N) in the metric's unit, their means the values; or None
    reference_scores: np.ndarray | None = None
    highest: float = 1.0  # the most that two scores of an example differ by: that of a right answer
    clusters: Clusters | None = None  # of the examples; None: each by itself
    cluster_by: str | None = None  # the column that the clusters come from


def compare_family(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One row per comparison, in their order, with the keys ``ROW``: plain values, None where one does not apply.

    The comparisons are one family: those planned together, of which any would be reported. ``p`` is, from 2 seeds on,
    the t test's, or the larger of that and ``p_bootstrap`` where there are per-example scores (a difference must hold
    for other seeds and for other examples); at one seed McNemar's or the t test's over examples; ``p_equivalence`` is
    likewise the larger p of ``equivalence``, and not below the chance that as many examples hold none of those that
    would make a difference of ``margin`` (``unseen``). ``p_holm`` and ``p_equivalence_holm`` are adjusted for the
    ``family_size`` of them. ``power`` (to find a true difference of ``margin``), ``seeds_needed`` (at
    ``difference_sd_upper``), ``examples_needed`` and ``examples_to_decide`` are for 0.05 / family_size;
    ``seeds_needed`` takes the examples as given. ``scope`` is ``method``, or ``this checkpoint, not the method`` at
    one seed. ``design_effect`` is that of the mean differences of the examples, ``effective_examples`` what they are
    worth.

    Raises ValueError for lengths that do not match, repeated seeds, or scores whose mean over the examples is not the
    value of the seed (within 1%: fractions beside percentages, seeds in another order).
    """
    rows = [_test(comparison) for comparison in comparisons]
    adjusted = [holm([row[name] for row in rows]) for name in ("p", "p_equivalence")]
    for row, p_holm, p_equal, comparison in zip(rows, *adjusted, comparisons, strict=True):
        margin, alpha = comparison.margin, ALPHA / len(rows)
        row |= {"p_holm": p_holm, "p_equivalence_holm": p_equal, "family_size": len(rows)}
        if row["n"] > 1:
            row["power"] = power_at(row["n"], _spread(row), margin, alpha)
            row["difference_sd_upper"] = upper_sd(row["difference_sd"], row["n"])
            row["seeds_needed"] = seeds_needed(row["difference_sd_upper"], margin, alpha)
        if row["examples"] is not None:
            row["examples_needed"] = examples_needed(margin, comparison.highest, alpha)
            row["examples_to_decide"] = examples_to_decide(row, margin, alpha)
        row["verdict"], row["note"] = verdict(row, p_holm, p_equal, margin, len(rows))
    return rows


def _test(comparison: Comparison) -> dict[str, Any]:
    """The row of a comparison up to its own p."""
    seeds = comparison.seeds
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds repeat: {list(seeds)}")
    if len(seeds) != len(comparison.values):
        raise ValueError(f"expected one value per seed, got {len(comparison.values)} for {len(seeds)} seeds")
    row: dict[str, Any] = dict.fromkeys(ROW)
    if not seeds:  # planned, but nothing came of it: it counts in the family
        return row | {"n": 0, "margin": comparison.margin, "scope": "method"}
    row |= paired_statistics(np.asarray(comparison.values), np.asarray(comparison.reference))
    row |= {"margin": comparison.margin, "scope": "method" if row["n"] > 1 else "this checkpoint, not the method"}
    row["p"], equal = row["p_t"], []
    if row["difference_sd"]:
        se = row["difference_sd"] / math.sqrt(row["n"])
        equal.append(equivalence(row["difference"], se, row["n"] - 1, comparison.margin))
    if comparison.scores is not None and comparison.reference_scores is not None:
        equal += _test_examples(comparison, row)
    return row | {"p_equivalence": max(equal, default=None)}


def _test_examples(comparison: Comparison, row: dict[str, Any]) -> list[float]:
    """Adds to the row what the scores of the examples say; the p-values of their tests of equivalence."""
    scores, reference_scores = np.asarray(comparison.scores), np.asarray(comparison.reference_scores)
    _check_scores("scores", scores, comparison.values)
    _check_scores("reference_scores", reference_scores, comparison.reference)
    if (most := max(map(abs, (*comparison.values, *comparison.reference)))) > comparison.highest:
        raise ValueError(f"a value is {most:g}, the score of a right answer {comparison.highest:g}; give both in one "
                         "unit")
    examples, margin, highest = scores.shape[1], comparison.margin, comparison.highest
    clusters = _clusters(comparison.clusters, examples)
    by_example = np.subtract(scores, reference_scores, dtype=np.float64).mean(axis=0)
    worth = clusters.effective_examples(by_example)
    row |= {"examples": examples, "effective_examples": worth}
    if comparison.clusters is not None:
        row |= {"cluster_by": comparison.cluster_by, "clusters": clusters.count,
                "design_effect": clusters.design_effect(by_example)}
    if row["n"] == 1:
        single = single_seed_statistics(scores[0], reference_scores[0], comparison.binary, highest,
                                        comparison.clusters, margin)
        row |= single | {"difference": row["difference"]}
        row["p_mcnemar" if comparison.binary and clusters.are_examples else "p_bootstrap"] = single["p"]
        return [row["p_equivalence"]]
    row |= multi_bootstrap(scores, reference_scores, highest, clusters)
    row["p"] = None if row["p_t"] is None else max(row["p_t"], row["p_bootstrap"])
    equal = unseen(margin / highest, worth)
    if row["bootstrap_se"]:
        return [equal, equivalence(row["difference"], row["bootstrap_se"], row["bootstrap_degrees"], margin)]
    return [equal if row["difference"] == 0 else 1.0]


def _check_scores(name: str, scores: np.ndarray, values: Sequence[float] | np.ndarray) -> None:
    if len(scores) != len(values):
        raise ValueError(f"{name}: expected {len(values)} rows, one per seed, got {len(scores)}")
    if (worst := seed_of_other_scores(scores, values)) is not None:
        raise ValueError(
            f"{name}[{worst}] has the mean {scores[worst].mean():g}, the metric at that seed is {values[worst]:g}; "
            "give scores in the metric's unit, seeds in the same order, or none where the metric is no mean over "
            "examples"
        )


def seed_of_other_scores(scores: np.ndarray, values: Sequence[float] | np.ndarray) -> int | None:
    """Which of (S, N) scores has a mean farthest off its value, where that is off by more than 1%; else None."""
    off = np.abs(scores.mean(axis=1) - values)
    return int(off.argmax()) if off.max() > 0.01 * np.abs(values).max() else None
