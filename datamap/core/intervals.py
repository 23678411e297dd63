"""Confidence intervals and tests that several rooms report."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

Z = NormalDist().inv_cdf(0.975)


def wilson_interval(successes: Any, n: Any) -> tuple[Any, Any]:
    """The 95% interval ``(low, high)`` of a proportion of ``successes`` among ``n`` (Wilson 1927, score interval).

    Numbers give floats; arrays, of any shapes that broadcast, give float64 arrays. n = 0 gives NaN. Unlike
    p +- 1.96 standard errors, the interval stays within 0..1 and has a width at 0 and at n successes. Raises
    ValueError unless 0 <= successes <= n. (statsmodels has it too, behind a second of imports, and not exact at the
    ends.)
    """
    k, total = np.broadcast_arrays(np.asarray(successes, dtype=float), np.asarray(n, dtype=float))
    if not ((k >= 0) & (k <= total)).all():
        raise ValueError("successes must lie between 0 and n")
    size = np.where(total == 0, np.nan, total)
    share = k / size
    centre = (share + Z**2 / (2 * size)) / (1 + Z**2 / size)
    half = Z * np.sqrt(share * (1 - share) / size + Z**2 / (4 * size**2)) / (1 + Z**2 / size)
    # Exact at the ends, where rounding would give 1e-17 for 0.
    low = np.where(k == 0, size * 0, np.maximum(centre - half, 0))
    high = np.where(k == total, size / size, np.minimum(centre + half, 1))
    return (low, high) if low.ndim else (float(low), float(high))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p, 0..1, of McNemar's exact test (1947): a binomial test of the pairs that only one of two has right.

    1 where there are none. (statsmodels doubles one tail, which near p = 1 gives
    1 - 2e-16, behind a second of imports.)
    """
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def paired_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """95 % interval, within -1..1, of the difference of two proportions over the same n pairs.

    Wald's with one added to either kind of discordant pair (Bonett and Price 2012, recommended in Fagerland, Lydersen
    and Laake 2014): unlike Wald's own it has a width where the runs never disagree. Around (b - c) / (n + 2).
    """
    first, second = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    half = Z * math.sqrt((first + second - (first - second) ** 2) / (n + 2))
    return max(first - second - half, -1.0), min(first - second + half, 1.0)
