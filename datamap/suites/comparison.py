"""Comparisons over seeds: is an experiment better than its reference on a metric, or can that not be told?"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from datamap.core.flags import DEFAULT_SEED
from datamap.core.intervals import mcnemar

ALPHA = 0.05
POWER = 0.8
MIN_SEEDS = 3  # below it a spread over seeds is hardly an estimate
MAX_SEEDS_NEEDED = 10_000
SIGN_FLIPS = 10_000  # all 2**n sign patterns up to 13 seeds, a sample of this size above
RESAMPLES = 2000
CACHED_CELLS = 300_000_000  # bytes of resampling counts kept between calls
BLOCK_CELLS = 2_000_000  # cells of the counts worked on at a time, about 20 bytes each
BETTER, WORSE = "better", "worse"
NO_DIFFERENCE, UNDERPOWERED = "no detectable difference", "underpowered"

STATISTICS = (
    "n", "mean", "sd", "reference_mean", "reference_sd", "difference", "difference_sd", "low", "high", "wins", "ties",
    "p_t", "p_sign_flip", "p_sign_flip_smallest", "cohens_d",
)
# A row of compare_family; what does not apply to a comparison is None in it.
ROW = (
    *STATISTICS, "bootstrap_low", "bootstrap_high", "bootstrap_se", "p_bootstrap", "only_experiment_right",
    "only_reference_right", "p_mcnemar", "p", "p_holm", "family_size", "margin", "power", "seeds_needed", "scope",
    "verdict", "note",
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
    flips = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=SIGN_FLIPS,
        rng=np.random.default_rng(DEFAULT_SEED),
    )
    found |= {
        "sd": float(values.std(ddof=1)), "reference_sd": float(reference.std(ddof=1)), "difference_sd": spread,
        "wins": int((differences > 0).sum()), "ties": int((differences == 0).sum()),
        "p_sign_flip": float(flips.pvalue), "p_sign_flip_smallest": 2.0 ** (1 - n),
    }
    if spread > 0:
        test = stats.ttest_1samp(differences, 0.0)
        interval = test.confidence_interval(1 - ALPHA)
        found |= {"low": float(interval.low), "high": float(interval.high), "p_t": float(test.pvalue)}
        found["cohens_d"] = float(differences.mean()) / spread
    return found


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


def seed_counts(n: int) -> np.ndarray:
    """(2000, n) float64: how often each of n seeds is drawn in each resample with replacement; each row has sum n."""
    rng = np.random.default_rng([DEFAULT_SEED, n, 0])
    return rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)


def example_counts(n: int) -> Iterable[np.ndarray]:
    """Blocks of rows of such counts of n examples, uint8; all comparisons over as many examples share them.

    Those of the last n are kept, up to 300 MB (n = 150,000); larger ones are drawn anew for every comparison.
    """
    return _kept(n, RESAMPLES) if RESAMPLES * n <= CACHED_CELLS else _drawn(n, RESAMPLES)


@lru_cache(maxsize=1)
def _kept(n: int, resamples: int) -> list[np.ndarray]:
    return list(_drawn(n, resamples))


def _drawn(n: int, resamples: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng([DEFAULT_SEED, n, 1])
    at_once = max(1, BLOCK_CELLS // n)
    for first in range(0, resamples, at_once):
        rows = min(at_once, resamples - first)
        drawn = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        # No example is drawn 256 times: the expected number is 1, the chance of 60 below 1e-80.
        yield np.bincount(drawn.reshape(-1), minlength=rows * n).reshape(rows, n).astype(np.uint8)


def multi_bootstrap(scores: np.ndarray, reference_scores: np.ndarray) -> dict[str, float]:
    """The mean difference over seeds and examples together: does it hold for other seeds and other examples?

    ``scores`` and ``reference_scores`` are (S, N) per-example scores in the metric's unit, the same S >= 2 seeds and
    N examples in the same order. Seeds and examples are resampled with replacement, both arms alike (the
    Multi-Bootstrap, Sellam et al. 2021, arXiv 2106.16163). Keys:

    ``bootstrap_se``: standard error of the mean difference. A resample of S seeds has (S - 1) / S of their variance;
    what is missing is added back here. And it counts the noise of single answers almost three times (Owen 2007,
    The pigeonhole bootstrap, arXiv 0712.1111): the residual mean square of seeds x examples takes it off again.
    ``bootstrap_low``, ``bootstrap_high``, ``p_bootstrap``: 95% interval of the mean difference and two-sided p, of t
    with that standard error and (S - 1) / w degrees of freedom, w the share of the seeds in the variance.
    Satterthwaite's (S - 1) / w**2 is liberal for an estimated w: with 5 seeds and a quarter of the variance from the
    examples 5.7% false findings, this one 4.5%. Percentiles of the resamples would be too narrow with few seeds, as
    every bootstrap of few values is: 84% coverage at 3 seeds.

    Raises ValueError for other shapes, NaN or infinity.
    """
    from scipy import stats

    differences = np.subtract(*_checked(2, scores=scores, reference_scores=reference_scores))
    n = len(differences)
    if n < 2:
        raise ValueError("expected the scores of at least 2 seeds; single_seed_statistics compares one")
    means = _bootstrap_means(differences)
    by_seed = differences.mean(axis=1)
    seed_variance = float(by_seed.var(ddof=1)) / n
    residuals = differences - by_seed[:, None] - differences.mean(axis=0) + by_seed.mean()
    examples = differences.shape[1]
    noise = float((residuals**2).sum()) / max(1, (n - 1) * (examples - 1)) / (n * examples)
    variance = float(means.var()) + seed_variance / n - (2 - 1 / n) * noise
    variance = max(variance, seed_variance)
    mean, se = float(by_seed.mean()), math.sqrt(variance)
    if se <= 1e-9 * np.abs(differences).max(initial=0.0):
        p = 1.0 if mean == 0 else 0.0  # no spread at all; verdict() does not rest on it
        se = half = 0.0
    else:
        degrees = (n - 1) * max(variance / seed_variance, 1.0) if seed_variance > 0 else math.inf
        p = float(2 * stats.t.sf(abs(mean) / se, degrees))
        half = float(stats.t.isf(ALPHA / 2, degrees)) * se
    return {"bootstrap_low": mean - half, "bootstrap_high": mean + half, "bootstrap_se": se, "p_bootstrap": p}


def single_seed_statistics(scores: np.ndarray, reference_scores: np.ndarray, binary: bool) -> dict[str, Any]:
    """One trained model against another on the same N examples: this checkpoint, not the method.

    ``scores`` and ``reference_scores`` are (N,) in the metric's unit; ``binary`` ones are 0 or one other number (1,
    or 100 for percentages). Keys: ``difference`` (mean of scores - reference_scores), ``bootstrap_low`` and
    ``bootstrap_high`` (95% percentile interval over resampled examples), ``p``. ``p`` is that of McNemar's exact
    test (1947) for binary scores, with the discordant pairs in ``only_experiment_right`` and
    ``only_reference_right``; else the two-sided bootstrap p (1 + more extreme resamples) / (1 + resamples), the
    resamples centred on no difference (Efron and Tibshirani 1993, chapter 16), never 0. Raises ValueError for
    unequal lengths, NaN, infinity, or binary scores that are not.
    """
    differences = np.subtract(*_checked(1, scores=scores, reference_scores=reference_scores))
    means = _bootstrap_means(differences[None, :])
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2]).tolist()
    difference = float(differences.mean())
    found: dict[str, Any] = {"difference": difference, "bootstrap_low": low, "bootstrap_high": high}
    if binary:
        known = np.unique(np.concatenate([scores, reference_scores]))
        if len(known[known != 0]) > 1:
            raise ValueError(f"expected binary scores, 0 or one other number, got {known[:4].tolist()}")
        ours, theirs = int((differences > 0).sum()), int((differences < 0).sum())
        return found | {"only_experiment_right": ours, "only_reference_right": theirs, "p": mcnemar(ours, theirs)}
    # The counts go through float32, so a resample as extreme as the data may fall short by its rounding.
    extreme = np.abs(means - difference) >= abs(difference) - 1e-6 * np.abs(differences).max()
    return found | {"p": float((1 + extreme.sum()) / (1 + len(means)))}


def _bootstrap_means(differences: np.ndarray) -> np.ndarray:
    """(B,) float64 means of (S, N) differences, seeds and examples resampled; one seed is always drawn once."""
    seeds, n = differences.shape
    columns = differences.T.astype(np.float32)
    by_seed = np.concatenate([counts.astype(np.float32) @ columns for counts in example_counts(n)])
    return (by_seed * seed_counts(seeds)).sum(axis=1) / (seeds * n)


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


# --- verdicts ----------------------------------------------------------------------------------------------------


def verdict(
    statistics: Mapping[str, Any], p_holm: float | None, margin: float, family_size: int = 1
) -> tuple[str, str | None]:
    """``better``, ``worse``, ``no detectable difference`` or ``underpowered``, and a note on what limits it, or None.

    ``statistics`` are those of ``paired_statistics``, and of ``multi_bootstrap`` where there are per-example scores;
    ``p_holm`` is the Holm-adjusted p of the comparison (of ``compare_family``), ``margin`` the smallest difference
    that matters, in the metric's unit, above 0.

    From 3 seeds on: better or worse where p_holm <= 0.05; else no detectable difference where a true difference of
    ``margin`` would be found with a power of at least 0.8; else underpowered. The power is that at the spread observed
    (of the seeds, or of seeds and examples where that is larger) and at 0.05 / family_size, so that
    |difference| < margin wherever no difference is detected.
    Two seeds are always underpowered. One seed gives better, worse or underpowered, of this checkpoint only.
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
    total = _spread(statistics)
    if total == 0:
        return NO_DIFFERENCE, "no difference at any seed"
    alpha = ALPHA / family_size
    power = power_at(n, total, margin, alpha)
    if power is not None and power >= POWER:
        return NO_DIFFERENCE, None
    needed = seeds_needed(spread, margin, alpha)
    if spread == 0 or (needed is not None and needed <= n):
        return UNDERPOWERED, "more evaluation examples needed"
    examples = "; more evaluation examples help too" if total**2 > 2 * spread**2 else ""
    count = f"more than {MAX_SEEDS_NEEDED:,}" if needed is None else f"about {max(needed, MIN_SEEDS):,}"
    return UNDERPOWERED, f"{count} seeds needed to find a difference of {margin:g}, {n} there{examples}"


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
    scores: np.ndarray | None = None  # (S, N) in the metric's unit, or None where it is no mean over examples
    reference_scores: np.ndarray | None = None


def compare_family(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One row per comparison, in their order, with the keys ``ROW``: plain values, None where one does not apply.

    The comparisons are one family: those planned together, of which any would be reported. ``p`` is, from 2 seeds on,
    the t test's, or the larger of that and ``p_bootstrap`` where there are per-example scores (a difference must hold
    for other seeds and for other examples); at one seed McNemar's or the bootstrap's; ``p_holm`` is adjusted for the
    ``family_size`` of them. ``power`` and ``seeds_needed`` are for a true difference of ``margin`` at
    0.05 / family_size; ``seeds_needed`` takes the examples as given. ``scope`` is ``method``, or
    ``this checkpoint, not the method`` at one seed.

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
    if row["n"] > 1:
        row |= multi_bootstrap(scores, reference_scores)
        row["p"] = None if row["p_t"] is None else max(row["p_t"], row["p_bootstrap"])
        return row
    single = single_seed_statistics(scores[0], reference_scores[0], comparison.binary)
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
