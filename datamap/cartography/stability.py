"""How far maps of several runs agree: in categories, in ranks, in their extremes, and with how many runs they would.

A run is one draw: of weights, of the order of the examples, maybe of a model. Everything here takes one column per run
and one row per example, NaN where a run lacks an example.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOP = 0.1  # the share of the hardest, or most ambiguous, whose agreement over runs is followed
SHARES = (0.05, TOP, 0.25)  # of which the overlap of two runs is told
ENOUGH = 0.9  # of the TOP, in two joint maps of as many runs
MAX_SPLITS = 50  # of the runs into two halves of a size, drawn where there are more
MAX_FACTOR = 10  # times the largest half that was measured: an extrapolation goes no further
MAX_MISS = 0.05  # overlap by which the formula may miss what was measured


def pair_agreement(categories: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Of each example the share of pairs of runs that give it the same category, (N,) float64, 0..1.

    categories: (N, R) of ``names``, other values where a run lacks the example; NaN for fewer than two runs. It is the
    agreement of one example in Fleiss (1971), and estimates the probability that two more runs agree, without bias
    whatever their number. (The share of runs that agree with the commonest category does not: it is at least a half of
    two runs, a third of three, and falls as runs are added.)
    """
    counts = np.stack([(categories == name).sum(axis=1) for name in names], axis=1).astype(np.float64)
    n = counts.sum(axis=1)
    pairs = n * (n - 1)
    return np.divide((counts * (counts - 1)).sum(axis=1), pairs, out=np.full(len(n), np.nan), where=pairs > 0)


def chance_agreement(categories: np.ndarray, names: Sequence[str]) -> float:
    """The mean of ``pair_agreement`` if each run dealt its categories out at random: the sum of their squared shares
    over all examples and runs (Fleiss 1971)."""
    counts = np.array([(categories == name).sum() for name in names], dtype=np.float64)
    return float(((counts / counts.sum()) ** 2).sum())


def top_mask(values: np.ndarray, share: float) -> np.ndarray:
    """bool (N,): the ceil(share * N) highest of ``values``, of equal ones the first."""
    count = top_count(len(values), share)
    cut = np.partition(values, -count)[-count]
    chosen = values > cut
    chosen[np.flatnonzero(values == cut)[: count - int(chosen.sum())]] = True
    return chosen


def top_count(n: int, share: float) -> int:
    return math.ceil(round(share * n, 9))


def overlap(first: np.ndarray, second: np.ndarray, share: float) -> float:
    """Share, 0..1, of the highest ``share`` of one column that are among those of the other, over the examples that
    both know; chance is about ``share``. NaN where they have no example in common."""
    both = ~(np.isnan(first) | np.isnan(second))
    if not both.any():
        return float("nan")
    tops = [top_mask(column[both], share) for column in (first, second)]
    return float((tops[0] & tops[1]).sum() / tops[0].sum())


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, -1..1, over the examples that both columns know; NaN for fewer than three, or where one is
    constant."""
    from scipy.stats import rankdata

    both = ~(np.isnan(first) | np.isnan(second))
    if both.sum() < 3:
        return float("nan")
    ranks = [rankdata(column[both]) for column in (first, second)]
    if any(np.ptp(each) == 0 for each in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


# --- how many runs ---------------------------------------------------------------------------------------------------


@dataclass
class Curve:
    """Agreement of the top ``TOP`` between the means of k runs and of k others.

    overlaps: k -> mean overlap, 0..1. fitted: k -> the same by the formula, k = 1, 2, ... up to where it goes. needed:
    runs for an overlap of ENOUGH; low, high: its 95 % interval. reason: why needed is None, or what it is.
    """

    overlaps: dict[int, float]
    fitted: dict[int, float]
    needed: int | None
    low: int | None
    high: int | None
    reason: str

    def record(self) -> dict[str, Any]:
        return {"overlaps": [{"runs": k, "overlap": value} for k, value in self.overlaps.items()],
                "fitted": [{"runs": k, "overlap": value} for k, value in self.fitted.items()],
                "needed": self.needed, "low": self.low, "high": self.high, "reason": self.reason}


def learning_curve(values: np.ndarray) -> Curve:
    """How the highest ``TOP`` of the mean over k runs agree with those of k others, and for which k by ENOUGH.

    values: (N, R), high is what is looked for. Measured for k up to R // 2, over all disjoint choices of k and k runs,
    at most MAX_SPLITS of them. Beyond, an overlap is turned into the correlation rho of two normal variables with that
    overlap (``normal_overlap``), and rho of means of k runs is k rho / (1 + (k - 1) rho) (Spearman 1910, Brown 1910):
    rho / (1 - rho) grows with k. This assumes runs of one kind, whose noise is independent and of one size near the
    cut. It is not taken where fewer than two points were measured, where it misses one by more than MAX_MISS, or
    beyond MAX_FACTOR times the largest k that was. The interval is a jackknife's over runs (of log odds, t with R - 1
    degrees of freedom): it knows nothing of other examples.
    """
    overlaps = _measured(values)
    largest = max(overlaps, default=0)
    if enough := [k for k, value in overlaps.items() if value >= ENOUGH]:
        return Curve(overlaps, {}, min(enough), None, None, f"measured: two means of {min(enough)} agree so far")
    if largest < 2:
        return Curve(overlaps, {}, None, None, None, "at least 4 runs are needed to tell: 2 against 2 show whether "
                                                     "agreement grows as the formula says")
    log_odds = _log_odds(overlaps)
    if log_odds is None:
        return Curve(overlaps, {}, None, None, None, "the runs agree no more than by chance")
    limit = MAX_FACTOR * largest
    fitted = {k: normal_overlap(_rho(k * math.exp(log_odds))) for k in range(1, limit + 1)}
    if (miss := max(abs(fitted[k] - value) for k, value in overlaps.items())) > MAX_MISS:
        return Curve(overlaps, {}, None, None, None,
                     f"the agreement does not grow as the formula says (off by {miss:.2f} where it was measured)")
    wanted = math.log(normal_odds(ENOUGH))
    needed = math.ceil(math.exp(wanted - log_odds))
    shown = {k: value for k, value in fitted.items() if k <= min(limit, max(needed + 1, largest))}
    if needed > limit:
        return Curve(overlaps, shown, None, None, None,
                     f"more than {limit}, which is as far as {values.shape[1]} runs can tell")
    low, high = _jackknife(values, log_odds, wanted)
    return Curve(overlaps, shown, needed, low, None if high > limit else int(high), "extrapolated")


def _measured(values: np.ndarray) -> dict[int, float]:
    known = ~np.isnan(values)
    found = {}
    for k in range(1, values.shape[1] // 2 + 1):
        each = []
        for halves in _halves(values.shape[1], k):
            first, second = (_mean_of(values[:, chosen], known[:, chosen]) for chosen in halves)
            each.append(overlap(first, second, TOP))
        if not np.isnan(each).all():
            found[k] = float(np.nanmean(each))
    return found


def _mean_of(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    counts = known.sum(axis=1)
    total = np.where(known, values, 0).sum(axis=1)
    return np.divide(total, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def _halves(runs: int, k: int) -> Iterator[tuple[list[int], list[int]]]:
    """Two disjoint choices of k runs; all there are, or a seeded MAX_SPLITS of them."""
    count = math.comb(runs, k) * math.comb(runs - k, k) // 2
    if count > MAX_SPLITS:
        rng = np.random.default_rng(0)
        for _ in range(MAX_SPLITS):
            drawn = rng.permutation(runs)[: 2 * k].tolist()
            yield drawn[:k], drawn[k:]
        return
    for first in itertools.combinations(range(runs), k):
        rest = [run for run in range(runs) if run not in first]
        for second in itertools.combinations(rest, k):
            if first < second:
                yield list(first), list(second)


def _log_odds(overlaps: dict[int, float]) -> float | None:
    """log of rho / (1 - rho) of a single run, by all that was measured; None where one shows no agreement."""
    found = []
    for k, value in overlaps.items():
        odds = normal_odds(value)
        if odds <= 0 or not math.isfinite(odds):
            return None
        found.append(math.log(odds / k))
    return float(np.mean(found))


def _jackknife(values: np.ndarray, log_odds: float, wanted: float) -> tuple[int, float]:
    from scipy.stats import t

    runs = values.shape[1]
    left_out = [_log_odds(_measured(np.delete(values, run, axis=1))) for run in range(runs)]
    if None in left_out:
        return 1, math.inf
    error = math.sqrt((runs - 1) * np.var(np.array(left_out, dtype=float)))
    half = float(t.ppf(0.975, runs - 1)) * error
    return max(1, math.ceil(math.exp(wanted - log_odds - half))), math.ceil(math.exp(wanted - log_odds + half))


def _rho(odds: float) -> float:
    return odds / (1 + odds)


def normal_overlap(rho: float, share: float = TOP) -> float:
    """Overlap of the highest ``share`` of two standard normal variables of correlation ``rho``, 0..1: P(both above the
    cut) / share."""
    from scipy.special import ndtr, ndtri

    if rho >= 1:
        return 1.0
    cut = -ndtri(share)
    nodes, weights = _nodes()
    x = cut + 4.5 * (nodes + 1)  # beyond cut + 9 lies nothing
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return float(4.5 * (weights * density * ndtr((rho * x - cut) / math.sqrt(1 - rho * rho))).sum() / share)


@functools.cache
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(200)


def normal_odds(overlap: float, share: float = TOP) -> float:
    """rho / (1 - rho) of the normal variables whose highest ``share`` overlap so far; 0 at chance or below."""
    from scipy.optimize import brentq

    if overlap <= normal_overlap(0.0, share):
        return 0.0
    if overlap >= normal_overlap(1 - 1e-6, share):
        return math.inf
    rho = brentq(lambda value: normal_overlap(value, share) - overlap, 0.0, 1 - 1e-6)
    return rho / (1 - rho)
