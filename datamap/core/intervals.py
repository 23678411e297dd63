"""Confidence intervals and tests that several rooms report."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from datamap.core.clusters import Clusters

ALPHA = 0.05
Z = NormalDist().inv_cdf(1 - ALPHA / 2)


def wilson_interval(successes: Any, n: Any) -> tuple[Any, Any]:
    """The 95% interval ``(low, high)`` of a proportion of ``successes`` among ``n`` (Wilson 1927, score interval).

    Numbers give floats; arrays, of any shapes that broadcast, give float64 arrays. n = 0 gives NaN. Unlike
    p +- 1.96 standard errors, the interval stays within 0..1 and has a width at 0 and at n successes. Raises
    ValueError unless 0 <= successes <= n. (statsmodels has it too, behind heavy imports, and not exact at the
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


def clustered_interval(right: np.ndarray, clusters: Clusters | None) -> tuple[float, float, float]:
    """The 95% interval ``(low, high)`` of the share of ``right`` (N,), 0 or 1, and the effective sample size.

    Wilson's at the effective sample size: N over the design effect of the clusters, and of the smaller for few
    clusters (t instead of the normal distribution; Korn and Graubard 1998), never above N. Where all are right or
    none, nothing tells the design effect: it is then the number of clusters. None: independent examples, and N.
    """
    n = len(right)
    if clusters is None or clusters.are_examples:
        return *wilson_interval(float(right.sum()), n), float(n)
    effect = clusters.design_effect(right)
    size = float(clusters.count)
    if effect is not None:
        from scipy import stats

        few = stats.t.isf(ALPHA / 2, n - 1) / stats.t.isf(ALPHA / 2, clusters.degrees)
        size = float(n) if effect <= 0 else min(float(n), float(n / effect * few**2))
    size = max(size, 1.0)
    return *wilson_interval(float(right.mean()) * size, size), size


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p, 0..1, of McNemar's mid-p test of the pairs that only one of two has right; 1 where there are none.

    The exact conditional test, with half the probability of what was seen: unlike that test it is not conservative,
    and hardly ever rejects more than 5% (Fagerland, Lydersen and Laake 2013).
    """
    from scipy.stats import binom

    fewer, discordant = min(only_first, only_second), only_first + only_second
    if only_first == only_second:
        return 1.0
    return float(2 * binom.cdf(fewer, discordant, 0.5) - binom.pmf(fewer, discordant, 0.5))


def paired_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """95 % interval, within -1..1, of the difference of two proportions over the same n pairs; without 0 exactly where
    ``mcnemar`` is at most 0.05.

    Wald's with one added to either kind of discordant pair (Bonett and Price 2012, recommended in Fagerland, Lydersen
    and Laake 2014): unlike Wald's own it has a width where the runs never disagree. Around (b - c) / (n + 2). In the
    few tables where it and the test would say otherwise about 0, the end next to 0 is the test's own: the mid-p bound
    of the share of b among the discordant pairs, at their rate.
    """
    centre, se = _paired(only_first, only_second, n)
    low, high = max(centre - Z * se, -1.0), min(centre + Z * se, 1.0)
    if (mcnemar(only_first, only_second) <= ALPHA) == (low > 0 or high < 0):
        return low, high
    more, discordant = max(only_first, only_second), only_first + only_second
    nearest = (2 * _mid_p_bound(more, discordant) - 1) * discordant / n
    return (nearest, high) if only_first > only_second else (low, -nearest)


def _paired(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """Centre and standard error of Bonett and Price."""
    first, second = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    return first - second, math.sqrt((first + second - (first - second) ** 2) / (n + 2))


def _mid_p_bound(successes: int, n: int) -> float:
    """The lowest share whose one-sided mid-p, of as many successes or more, is 0.025."""
    from scipy.optimize import brentq
    from scipy.stats import binom

    def excess(share: float) -> float:
        return float(binom.sf(successes, n, share) + binom.pmf(successes, n, share) / 2) - ALPHA / 2

    return float(brentq(excess, 0.0, 1.0, xtol=1e-14))


def equivalence(difference: float, se: float, degrees: float, margin: float) -> float:
    """p, 0..1, of two one-sided t tests (Schuirmann 1987): that a mean lies beyond -margin or margin.

    The larger of the two: at most 0.05 where the 90% interval of the mean lies within the margin. ``se`` > 0, and
    ``degrees`` (math.inf: normal) as the standard error has them. Raises ValueError unless margin > 0.
    """
    if not margin > 0:
        raise ValueError(f"expected a margin above 0, got {margin}")
    from scipy import stats

    return float(stats.t.sf((margin - abs(difference)) / se, degrees))


def paired_equivalence(only_first: int, only_second: int, n: int, margin: float) -> float:
    """p, 0..1, of two one-sided tests that the difference of two proportions over n pairs is -margin or margin.

    Tango's score tests (1998): the variance is that of the likeliest table with such a difference. Never below the
    chance that n pairs hold no discordant one where a share ``margin`` of all is of one kind. ``margin`` of 1 or more:
    nothing is beyond it, 0. Raises ValueError unless margin > 0.
    """
    if not margin > 0:
        raise ValueError(f"expected a margin above 0, got {margin}")
    if margin >= 1:
        return 0.0
    scores = [_tango(*pair, n, margin) for pair in ((only_first, only_second), (only_second, only_first))]
    return max(*(NormalDist().cdf(score) for score in scores), unseen(margin, n))


def _tango(only_first: int, only_second: int, n: int, difference: float) -> float:
    """Score of b - c where the true difference is ``difference``, above 0; from the restricted likeliest p of c."""
    b = (2 * n - only_first + only_second) * difference - only_first - only_second
    root = math.sqrt(b * b + 8 * n * only_second * difference * (1 - difference))
    share = (root - b) / (4 * n)
    return (only_first - only_second - n * difference) / math.sqrt(n * (2 * share + difference * (1 - difference)))


def compare_right(
    right: np.ndarray, other_right: np.ndarray, margin: float, clusters: Clusters | None = None
) -> dict[str, Any]:
    """Two on the same N examples, (N,) each, 0 or 1 for right: is the one right more often than the other?

    ``difference`` of the shares, ``low`` and ``high`` of its 95% interval, ``p`` (two-sided), ``p_equivalence`` (that
    it is ``margin``, 0..1, or more), ``only_first``, ``only_second``. Independent examples: ``mcnemar``,
    ``paired_interval``, ``paired_equivalence``. In clusters: t over the clusters, after one example is added to either
    kind of discordant pair, as in ``paired_interval``: few of them would leave too small a spread. One cluster says
    nothing. Raises ValueError for other lengths and for none.
    """
    differences = np.subtract(right, other_right, dtype=np.float64)
    first, second, n = int((differences > 0).sum()), int((differences < 0).sum()), len(differences)
    found = {"difference": float(differences.mean()), "only_first": first, "only_second": second}
    if clusters is None or clusters.are_examples:
        low, high = paired_interval(first, second, n)
        return found | {"low": low, "high": high, "p": mcnemar(first, second),
                        "p_equivalence": paired_equivalence(first, second, n, margin)}
    if clusters.n != n:
        raise ValueError(f"clusters of {clusters.n} examples, {n} answers")
    if clusters.count == 1:
        return found | {"low": -1.0, "high": 1.0, "p": 1.0, "p_equivalence": 1.0}
    from scipy import stats

    more = np.append(differences, [1.0, -1.0])
    groups = Clusters(np.append(clusters.codes, [clusters.count, clusters.count + 1]))
    centre, se = float(more.mean()), math.sqrt(groups.variance_of_mean(more))
    half = float(stats.t.isf(ALPHA / 2, groups.degrees)) * se
    return found | {
        "low": max(centre - half, -1.0), "high": min(centre + half, 1.0),
        "p": float(2 * stats.t.sf(abs(centre) / se, groups.degrees)),
        "p_equivalence": max(equivalence(centre, se, groups.degrees, margin),
                             unseen(margin, clusters.effective_examples(differences))),
    }


def unseen(share: float, n: float) -> float:
    """The chance, 0..1, that n examples hold none of those that are ``share`` of all; share of 1 or more: 0."""
    return max(0.0, 1 - share) ** n
