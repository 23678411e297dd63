"""Examples that go together, as the questions over one context do: what is drawn anew is a cluster of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

NO_CLUSTERS = "none"  # for --cluster_by: every example by itself


class Clusters:
    """Which of N examples go together: ``codes`` (N,) int64, 0 to ``count`` - 1.

    For a mean over the N examples, with the clusters drawn and not the examples (the clustered standard error of
    Miller 2024, arXiv 2411.00640, with the correction for few clusters of unequal size of Bell and McCaffrey 2002,
    CR2): the variance of the mean is the sum over clusters of ``weights`` times their squared sum of deviations, over
    N**2; its ``degrees`` of freedom are Bell's and McCaffrey's for examples that vary alike. ``weights`` is
    (count,). One cluster says nothing of others: its weight is infinite. Clusters of one example each give
    var(ddof=1) / N and N - 1 degrees. Raises ValueError for no examples.
    """

    def __init__(self, values: Sequence[Any] | np.ndarray):
        """values: (N,), numbers as an array, or a list of whatever JSON holds; examples of one value are a cluster."""
        if not len(values):
            raise ValueError("no examples to put into clusters")
        if isinstance(values, np.ndarray):
            self.codes: np.ndarray = np.unique(values, return_inverse=True)[1]
        else:  # contexts are long: an array of them would be as wide as the longest
            known: dict[Any, int] = {}
            keys = (value if isinstance(value, str) else (json.dumps(value),) for value in values)
            self.codes = np.array([known.setdefault(key, len(known)) for key in keys])
        self.sizes: np.ndarray = np.bincount(self.codes)
        self.n, self.count = len(self.codes), len(self.sizes)
        with np.errstate(divide="ignore"):
            self.weights: np.ndarray = 1 / (1 - self.sizes / self.n)
        parts = self.weights * self.sizes**2 / self.n
        self.degrees = 0.0
        if self.count > 1:
            self.degrees = float(self.n**2 / ((self.sizes**2).sum() + parts.sum() ** 2 - (parts**2).sum()))

    @property
    def are_examples(self) -> bool:
        """Whether every example is a cluster by itself."""
        return self.count == self.n

    def among(self, chosen: np.ndarray) -> Clusters:
        """Those of a part of the examples; chosen: (N,) bool, or their places."""
        return Clusters(self.codes[chosen])

    def halves(self, seed: int) -> np.ndarray | None:
        """(N,) bool: whether an example is in the first of two halves, of about as many examples, that share no
        cluster; None for a single cluster."""
        if self.count < 2:
            return None
        order = np.random.default_rng(seed).permutation(self.count)
        below = np.cumsum(self.sizes[order])
        inside = order[: int(np.clip(np.argmin(np.abs(below - self.n / 2)) + 1, 1, self.count - 1))]
        return np.isin(self.codes, inside)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(..., N) summed over each cluster: (..., count)."""
        if self.are_examples:
            return values[..., np.argsort(self.codes)]
        rows = values.reshape(-1, self.n)
        summed = [np.bincount(self.codes, row, self.count) for row in rows]
        return np.array(summed).reshape(*values.shape[:-1], self.count)

    def variance_of_mean(self, values: np.ndarray) -> float:
        """Of (N,) values, of which there are two clusters or more."""
        return float((self.weights * self.sums(values - values.mean()) ** 2).sum()) / self.n**2

    def design_effect(self, values: np.ndarray) -> float | None:
        """By how much the clusters raise the variance of the mean of (N,) values over that of independent examples.

        N over it is the effective sample size (Kish 1965). None for one cluster, and without any spread.
        """
        alone = float(values.var(ddof=1)) / self.n if self.n > 1 else 0.0
        if self.count < 2 or alone <= (1e-9 * np.abs(values).max()) ** 2 / self.n:
            return None
        return self.variance_of_mean(values) / alone

    def effective_examples(self, values: np.ndarray) -> float:
        """As many independent examples as the (N,) values are worth, N at most; the clusters where nothing tells."""
        effect = self.design_effect(values)
        return float(self.count) if effect is None else self.n / max(1.0, effect)
