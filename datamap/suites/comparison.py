"""Comparisons over seeds: is an experiment better than its reference on a metric, or can that not be told?"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamap.core.flags import DEFAULT_SEED
from datamap.core.intervals import mcnemar, paired_interval

ALPHA = 0.05
POWER = 0.8
MIN_SEEDS = 3  # below it a spread over seeds is hardly an estimate
MAX_SEEDS_NEEDED = 10_000
SIGN_FLIPS = 10_000  # a sample of sign patterns above 13 seeds, all 2**n up to there
BETTER, WORSE = "better", "worse"
NO_DIFFERENCE, UNDERPOWERED = "no detectable difference", "underpowered"

STATISTICS = (
    "n", "mean", "sd", "reference_mean", "reference_sd", "difference", "difference_sd", "low", "high", "wins", "ties",
    "p_t", "p_sign_flip", "p_sign_flip_smallest", "cohens_d",
)
# A row of compare_family; what does not apply to a comparison is None in it.
ROW = (
    *STATISTICS, "bootstrap_low", "bootstrap_high", "bootstrap_se", "p_bootstrap", "only_experiment_right",
    "only_reference_right", "p_mcnemar", "p", "p_holm", "family_size", "margin", "power", "seeds_needed",
    "examples", "examples_needed", "scope", "verdict", "note",
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
    support a finding from 6 seeds on); ``cohens_d`` (difference / difference_sd).

    Plain numbers, never NaN; None where there is no answer: everything but n, means and difference at one seed, and
    ``low``, ``high``, ``p_t``, ``cohens_d`` where all differences are the same (up to rounding), as no spread over
    seeds can be estimated then. Raises ValueError for no values, unequal lengths, NaN or infinity.
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
    return found


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


def multi_bootstrap(scores: np.ndarray, reference_scores: np.ndarray, highest: float = 1.0) -> dict[str, float]:
    """The mean difference over seeds and examples together: does it hold for other seeds and other examples?

    ``scores`` and ``reference_scores`` are (S, N) per-example scores in the metric's unit, the same S >= 2 seeds and
    N examples in the same order; ``highest`` is as in ``Comparison``. What the Multi-Bootstrap (Sellam et al. 2021,
    arXiv 2106.16163) estimates by resampling seeds and examples, both arms alike, in closed form. Keys:

    ``bootstrap_se``: standard error of the mean difference. The differences are a table of seeds x examples, whose
    mean varies with the seeds, the examples and the noise of single answers; the variances of the means of the rows
    and of the columns hold that noise once each, the residual mean square takes it off once (random effects, two-way
    crossed; the variance of the resamples themselves is that of Owen 2007, The pigeonhole bootstrap, arXiv 0712.1111,
    which counts the noise almost three times and has (S - 1) / S of the seeds' variance). Never below what the
    seeds or the examples alone give.
    ``bootstrap_low``, ``bootstrap_high``, ``p_bootstrap``: 95% interval of the mean difference and two-sided p, of t
    with that standard error; one over its degrees of freedom is w / (S - 1) + (1 - w) / (N - 1), w the share of the
    seeds in the variance. Satterthwaite's squares of the shares are liberal for an estimated w: with 5 seeds and a
    quarter of the variance from the examples 5.7% false findings, this one 4.5%; without the part of the examples
    there were 4 to 10% where there are 6 of them, so 1 to 4%. Without any spread they are those of
    ``_without_spread``.

    Raises ValueError for other shapes, NaN or infinity.
    """
    differences = np.subtract(*_checked(2, scores=scores, reference_scores=reference_scores))
    seeds, examples = differences.shape
    if seeds < 2:
        raise ValueError("expected the scores of at least 2 seeds; single_seed_statistics compares one")
    by_seed, by_example, mean = differences.mean(axis=1), differences.mean(axis=0), float(differences.mean())
    if examples == 1 or np.ptp(differences) <= 1e-9 * np.abs(differences).max():
        return {"bootstrap_se": 0.0} | _without_spread(mean, examples, highest)
    of_seeds, of_examples = float(by_seed.var(ddof=1)) / seeds, float(by_example.var(ddof=1)) / examples
    residuals = differences - by_seed[:, None] - by_example + mean
    noise = float((residuals**2).sum()) / ((seeds - 1) * (examples - 1)) / (seeds * examples)
    variance = max(of_seeds + of_examples - noise, of_seeds, of_examples)
    share = of_seeds / variance
    degrees = 1 / (share / (seeds - 1) + (1 - share) / (examples - 1))
    return {"bootstrap_se": math.sqrt(variance)} | _with_t(mean, math.sqrt(variance), degrees)


def _with_t(mean: float, se: float, degrees: float) -> dict[str, float]:
    from scipy import stats

    half = float(stats.t.isf(ALPHA / 2, degrees)) * se
    return {"bootstrap_low": mean - half, "bootstrap_high": mean + half,
            "p_bootstrap": float(2 * stats.t.sf(abs(mean) / se, degrees))}


def _without_spread(mean: float, examples: int, highest: float) -> dict[str, float]:
    """Where every example has the same difference, there is no spread to go by, but other examples may differ.

    Of n examples without an exception, at most 1 - 0.05**(1 / n) of all are exceptions (95% bound of a proportion,
    Clopper and Pearson 1934; about 3 / n), each by ``highest`` at most. p is that of the signs: 2 / 2**n, or 1.
    """
    share = 1 - ALPHA ** (1 / examples)
    return {"bootstrap_low": mean - share * (highest + mean), "bootstrap_high": mean + share * (highest - mean),
            "p_bootstrap": 2.0 ** (1 - examples) if mean else 1.0}


def single_seed_statistics(
    scores: np.ndarray, reference_scores: np.ndarray, binary: bool, highest: float = 1.0
) -> dict[str, Any]:
    """One trained model against another on the same N examples: this checkpoint, not the method.

    ``scores`` and ``reference_scores`` are (N,) in the metric's unit; ``binary`` ones are 0 or ``highest`` (1, or 100
    for percentages). Keys: ``difference`` (mean of scores - reference_scores), ``bootstrap_low`` and
    ``bootstrap_high`` (its 95% interval over examples), ``p``. Binary scores: ``paired_interval``, and McNemar's
    exact test (1947) with the discordant pairs in ``only_experiment_right`` and ``only_reference_right``; others:
    paired t over the examples, or ``_without_spread``. Raises ValueError for unequal lengths, NaN, infinity, or
    binary scores that are not.
    """
    differences = np.subtract(*_checked(1, scores=scores, reference_scores=reference_scores))
    n, difference = len(differences), float(differences.mean())
    if binary:
        known = np.unique(np.concatenate([scores, reference_scores]))
        if not np.isin(known, (0, highest)).all():
            raise ValueError(f"expected binary scores, 0 or {highest:g}, got {known[:4].tolist()}")
        ours, theirs = int((differences > 0).sum()), int((differences < 0).sum())
        low, high = paired_interval(ours, theirs, n)
        return {"difference": difference, "bootstrap_low": highest * low, "bootstrap_high": highest * high,
                "only_experiment_right": ours, "only_reference_right": theirs, "p": mcnemar(ours, theirs)}
    if n == 1 or np.ptp(differences) <= 1e-9 * np.abs(differences).max():
        found = _without_spread(difference, n, highest)
    else:
        found = _with_t(difference, float(differences.std(ddof=1)) / math.sqrt(n), n - 1)
    return {"difference": difference, **found, "p": found.pop("p_bootstrap")}


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


def seeds_needed(difference_sd: float | None, margin: float, alpha: float = ALPHA) -> int | None:
    """The smallest number of paired seeds, at least 2, that find a true difference of ``margin`` with a power of 0.8.

    Arguments as in ``power_at``. None for a spread of 0 or None, or where more than 10,000 seeds are needed.
    """

    def enough(n: int) -> bool:
        found = power_at(n, difference_sd, margin, alpha)
        return found is not None and found >= POWER

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


# --- verdicts ----------------------------------------------------------------------------------------------------


def verdict(
    statistics: Mapping[str, Any], p_holm: float | None, margin: float, family_size: int = 1
) -> tuple[str, str | None]:
    """``better``, ``worse``, ``no detectable difference`` or ``underpowered``, and a note on what limits it, or None.

    ``statistics`` are those of ``paired_statistics``, and of ``multi_bootstrap`` where there are per-example scores;
    ``p_holm`` is the Holm-adjusted p of the comparison (of ``compare_family``), ``margin`` the smallest difference
    that matters, in the metric's unit, above 0.

    From 3 seeds on: better or worse where p_holm <= 0.05; else no detectable difference where a true difference of
    ``margin`` would be found with a power of at least 0.8, and, if there are per-example scores, there are as many
    examples as can show it (``examples_needed``); else underpowered. The power is that at the spread observed
    (of the seeds, or of seeds and examples where that is larger) and at 0.05 / family_size, so that
    |difference| < margin wherever no difference is detected. The same metric at every seed, without scores, is
    underpowered: nothing tells the spread. Two seeds are always underpowered. One seed gives better, worse or
    underpowered, of this checkpoint only.
    """
    n, difference, spread = statistics["n"], statistics["difference"], statistics["difference_sd"]
    if n == 0:
        return UNDERPOWERED, "no seed at which both runs are finished"
    found = BETTER if difference > 0 else WORSE
    significant = p_holm is not None and p_holm <= ALPHA and difference != 0
    if n == 1:
        if p_holm is None:
            return UNDERPOWERED, f"1 seed and no per-example scores; train at least {MIN_SEEDS}"
        return (found if significant else UNDERPOWERED), "1 seed: this checkpoint, not the method"
    if n < MIN_SEEDS:
        return UNDERPOWERED, f"{n} seeds; train at least {MIN_SEEDS}"
    if spread == 0 and difference != 0:
        return UNDERPOWERED, "the same difference at every seed: the metric is too coarse to estimate the spread"
    if significant:
        return found, None
    if (limits := _limits(statistics, margin, ALPHA / family_size)):
        return UNDERPOWERED, "; ".join(limits)
    return NO_DIFFERENCE, None if spread else "no difference at any seed"


def _limits(statistics: Mapping[str, Any], margin: float, alpha: float) -> list[str]:
    """Why a difference of ``margin`` may be there unseen; empty where it would have been found."""
    n, spread, total = statistics["n"], statistics["difference_sd"], _spread(statistics)
    examples, fewest = statistics.get("examples"), statistics.get("examples_needed")
    if examples is None and total == 0:
        return ["the same value at every seed, and no scores of the examples: nothing tells the spread"]
    few = []
    if examples is not None and fewest is not None and examples < fewest:
        few = [f"{examples:,} evaluation example{'s' * (examples != 1)}, at least {fewest:,} needed to rule out a "
               f"difference of {margin:g}"]
    power = power_at(n, total, margin, alpha)
    if total == 0 or (power is not None and power >= POWER):
        return few
    needed = seeds_needed(spread, margin, alpha)
    if spread == 0 or (needed is not None and needed <= n):
        return few or ["more evaluation examples needed"]
    helped = ["more evaluation examples help too"] if total**2 > 2 * spread**2 else []
    count = f"more than {MAX_SEEDS_NEEDED:,}" if needed is None else f"about {max(needed, MIN_SEEDS):,}"
    return [f"{count} seeds needed to find a difference of {margin:g}, {n} there", *(few or helped)]


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


def compare_family(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One row per comparison, in their order, with the keys ``ROW``: plain values, None where one does not apply.

    The comparisons are one family: those planned together, of which any would be reported. ``p`` is, from 2 seeds on,
    the t test's, or the larger of that and ``p_bootstrap`` where there are per-example scores (a difference must hold
    for other seeds and for other examples); at one seed McNemar's or the t test's over examples; ``p_holm`` is
    adjusted for the ``family_size`` of them. ``power``, ``seeds_needed`` and ``examples_needed`` are for a true
    difference of ``margin`` at 0.05 / family_size; ``seeds_needed`` takes the examples as given. ``scope`` is
    ``method``, or ``this checkpoint, not the method`` at one seed.

    Raises ValueError for lengths that do not match, repeated seeds, or scores whose mean over the examples is not the
    value of the seed (within 1%: fractions beside percentages, seeds in another order).
    """
    rows = [_test(comparison) for comparison in comparisons]
    for row, p_holm, comparison in zip(rows, holm([row["p"] for row in rows]), comparisons, strict=True):
        row |= {"p_holm": p_holm, "family_size": len(rows)}
        if row["n"] > 1:
            alpha = ALPHA / len(rows)
            row["power"] = power_at(row["n"], _spread(row), comparison.margin, alpha)
            row["seeds_needed"] = seeds_needed(row["difference_sd"], comparison.margin, alpha)
            if row["examples"] is not None:
                row["examples_needed"] = examples_needed(comparison.margin, comparison.highest, alpha)
        row["verdict"], row["note"] = verdict(row, p_holm, comparison.margin, len(rows))
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
    row["p"] = row["p_t"]
    if comparison.scores is None or comparison.reference_scores is None:
        return row
    scores, reference_scores = np.asarray(comparison.scores), np.asarray(comparison.reference_scores)
    _check_scores("scores", scores, comparison.values)
    _check_scores("reference_scores", reference_scores, comparison.reference)
    row["examples"] = scores.shape[1]
    if (most := max(map(abs, (*comparison.values, *comparison.reference)))) > comparison.highest:
        raise ValueError(f"a value is {most:g}, the score of a right answer {comparison.highest:g}; give both in one "
                         "unit")
    if row["n"] > 1:
        row |= multi_bootstrap(scores, reference_scores, comparison.highest)
        row["p"] = None if row["p_t"] is None else max(row["p_t"], row["p_bootstrap"])
        return row
    single = single_seed_statistics(scores[0], reference_scores[0], comparison.binary, comparison.highest)
    row |= single | {"difference": row["difference"]}
    row["p_mcnemar" if comparison.binary else "p_bootstrap"] = single["p"]
    return row


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
