"""How well scores find what is wrong, where that is known: figures with intervals over seeds and examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

SHARES = (0.01, 0.05)  # of the examples, looked at first


def ranked_first(scores: np.ndarray) -> np.ndarray:
    """Scores to rank by, (N,): what a detector says nothing of (NaN) comes after all that it judged."""
    known = np.isfinite(scores)
    lowest = scores[known].min() if known.any() else 0.0
    return np.where(known, scores, lowest - 1)


def average_precision(wrong: np.ndarray, scores: np.ndarray) -> float:
    """Mean precision at each wrong example found, 0..1; a random order has the share of errors.

    wrong: (N,) bool. scores: (N,), higher is more suspicious; equal ones count as one step.
    """
    order = np.argsort(-scores, kind="stable")
    wrong, ordered = wrong[order], scores[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # of equal scores
    found, seen = np.cumsum(wrong)[last], np.flatnonzero(last) + 1
    return float((np.diff(found, prepend=0) * found / seen).sum() / found[-1])


def auroc(wrong: np.ndarray, scores: np.ndarray) -> float:
    """The probability that a wrong example has a higher score than a right one, 0..1, ties counting half."""
    from scipy.stats import rankdata

    n = int(wrong.sum())
    ranks = rankdata(scores)
    return float((ranks[wrong].sum() - n * (n + 1) / 2) / (n * (len(wrong) - n)))


def precision_at(wrong: np.ndarray, scores: np.ndarray, n: int) -> float:
    """Share of wrong ones among the ``n`` highest scores, 0..1; of equal scores at the cut as by chance."""
    cut = np.sort(scores)[-n]
    above, at = scores > cut, scores == cut
    left = n - int(above.sum())
    return float((wrong[above].sum() + left * wrong[at].mean()) / n)


def figures(wrong: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """average_precision, auroc, precision_at_errors (as many as are wrong), precision_at_1 and _5 (percent of all)."""
    scores = ranked_first(scores)
    found = {"average_precision": average_precision(wrong, scores), "auroc": auroc(wrong, scores),
             "precision_at_errors": precision_at(wrong, scores, int(wrong.sum()))}
    for share in SHARES:
        found[f"precision_at_{100 * share:g}"] = precision_at(wrong, scores, max(1, round(share * len(wrong))))
    return found


class Interval(NamedTuple):
    """A mean over seeds with the middle 95 % of its bootstrap distribution."""

    mean: float
    low: float
    high: float


Judged = tuple[np.ndarray, np.ndarray]  # wrong (N,) bool, scores (N,)


def over_seeds_and_examples(
    runs: Sequence[Sequence[Judged]], figure: Callable[[np.ndarray, np.ndarray], float] = average_precision, *,
    draws: int = 500, seed: int = 0,
) -> Interval:
    """A figure's mean over seeds, or where each run holds two judgements that of their difference (first - second).

    Bootstrap over both: draws seeds with replacement, and within each its examples, wrong and right ones apart (so
    that the share of errors stays). The two of a pair get the same examples.
    """
    rng = np.random.default_rng(seed)

    def value(run: Sequence[Judged], rows: np.ndarray | slice) -> float:
        values = [figure(wrong[rows], ranked_first(scores)[rows]) for wrong, scores in run]
        return values[0] - values[1] if len(values) == 2 else values[0]

    point = np.mean([value(run, slice(None)) for run in runs])
    strata = [[np.flatnonzero(run[0][0]), np.flatnonzero(~run[0][0])] for run in runs]
    drawn = []
    for _ in range(draws):
        chosen = rng.integers(len(runs), size=len(runs))
        rows = [np.concatenate([rng.choice(stratum, len(stratum)) for stratum in strata[run]]) for run in chosen]
        drawn.append(np.mean([value(runs[run], each) for run, each in zip(chosen, rows, strict=True)]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(point), float(low), float(high))
