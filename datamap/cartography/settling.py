"""Categories as a function of how many epochs were recorded, and whether the map has settled.

Thresholds are medians, so counts barely change: what changes is who is in a category.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.cartography.categories import CATEGORIES, category_places, category_thresholds
from datamap.core.plots import CATEGORY_COLORS, COLORS, GREY, new_figure, save_figure, whole_numbers

if TYPE_CHECKING:
    import pandas as pd

BY_EPOCH_FILE = "categories_by_epoch.csv"
BY_EPOCH_PICTURE = "categories_by_epoch"
# Share of the examples whose category the last epoch changed. Another seed changes that of four in ten (demo:clinical,
# docs/cartography.md): where an epoch changes a quarter of that or less, more epochs would not make the map surer.
SETTLED = 0.1
LEAST = 2  # epochs: over one of them nothing varies


class ByEpoch:
    """Confidence and variability over the first E epochs, as these pass, E = 2, 3, ...; memory of one byte an example
    and epoch beside that of one epoch. asked: of ``category_thresholds``."""

    def __init__(self, **asked: Any):
        self.asked = asked
        self.rows: list[dict[str, Any]] = []
        self.categories: list[np.ndarray] = []  # (examples known by then,) places in CATEGORIES

    def follow(self, epochs: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The epochs as they are, noted as they pass."""
        self._begin()
        place: dict[str, int] = {}
        for epoch in epochs:
            rows = np.fromiter((place.setdefault(each, len(place)) for each in epoch["id"]), np.int64,
                               len(epoch["id"]))
            self._take(rows, len(place), np.asarray(epoch["confidence"], dtype=np.float64))
            yield epoch

    def follow_confidences(self, epochs: Iterable[np.ndarray]) -> None:
        """The same of epochs of the same n examples in the same order, by their confidences alone, each (n,)."""
        self._begin()
        for p in epochs:
            self._take(slice(None), len(p), p)

    def _begin(self) -> None:
        self.rows, self.categories = [], []
        self._n, self._mean, self._squares = (np.empty(0) for _ in range(3))
        self._epochs = 0

    def _take(self, rows: np.ndarray | slice, known: int, p: np.ndarray) -> None:
        """One more epoch. rows: of its examples, among the ``known`` ones."""
        import pandas as pd

        self._epochs += 1
        if new := known - len(self._n):
            self._n, self._mean, self._squares = (np.concatenate([each, np.zeros(new)])
                                                  for each in (self._n, self._mean, self._squares))
        self._n[rows] += 1
        delta = p - self._mean[rows]
        self._mean[rows] += delta / self._n[rows]
        self._squares[rows] += delta * (p - self._mean[rows])
        if self._epochs >= LEAST:
            variability = np.sqrt(self._squares / self._n)
            self._note(self._epochs, pd.DataFrame({"confidence": self._mean, "variability": variability}))

    def _note(self, epochs: int, metrics: pd.DataFrame) -> None:
        cuts = category_thresholds(metrics, **self.asked)
        found = category_places(metrics, cuts)
        changed = None
        if self.categories:
            before = self.categories[-1]
            changed = float((found[: len(before)] != before).mean())
        self.categories.append(found)
        counts = np.bincount(found, minlength=len(CATEGORIES)).tolist()
        self.rows.append({"epochs": epochs, "examples": len(found), **dict(zip(CATEGORIES, counts, strict=True)),
                          "confidence_cut": cuts[0], "variability_cut": cuts[1], "changed": changed})

    def table(self) -> pd.DataFrame | None:
        """A row per number of epochs E from 2: how many examples are in each category of the map over the first E, its
        cuts, ``changed``, the share (0..1) of the examples that had another over one epoch less (missing for the
        first), and ``as_in_the_end``, the share that has its final one. None for fewer than two epochs."""
        import pandas as pd

        if not self.rows:
            return None
        last = self.categories[-1]
        same = [float((each == last[: len(each)]).mean()) for each in self.categories]
        return pd.DataFrame(self.rows).astype({"changed": "float64"}).assign(as_in_the_end=same)


def unsettled(table: pd.DataFrame | None) -> str | None:
    """Why a map has not settled, in words; None where it has, or that cannot be told (fewer than three epochs)."""
    if table is None or len(table) < 2:
        return None
    last = table.iloc[-1]
    if last["changed"] <= SETTLED:
        return None
    return (f"the map has not settled: the last of {last['epochs']:.0f} epochs changed the category of "
            f"{last['changed']:.0%} of the examples (settled: at most {SETTLED:.0%}), and so may one more")


def plot_by_epoch(path: str | Path, table: pd.DataFrame, title: str | None) -> None:
    """Counts of the categories, and the shares that change, over the number of epochs."""
    figure, (left, right) = new_figure(9, 4, columns=2)
    for category in CATEGORIES:
        left.plot(table["epochs"], table[category], "o-", color=CATEGORY_COLORS[category], label=category)
    left.set(xlabel="epochs recorded", ylabel="examples (count)", ylim=(0, None))
    whole_numbers(left.yaxis)
    right.plot(table["epochs"], 100 * table["as_in_the_end"], "o-", color=COLORS[2], label="as in the end")
    right.plot(table["epochs"], 100 * table["changed"], "o-", color=COLORS[3], label="changed by this epoch")
    right.axhline(100 * SETTLED, color=GREY, linewidth=0.8, linestyle="--")
    right.set(xlabel="epochs recorded", ylabel="examples whose category is so (%)", ylim=(0, 102))
    for axis in (left, right):
        whole_numbers(axis.xaxis)
        axis.legend()
    caption = f"{title}, " if title else ""
    save_figure(figure, path, "Categories by the number of epochs",
                f"{caption}n = {table['examples'].iloc[-1]:,}; dashed: a map counts as settled where the last epoch "
                f"changes at most {SETTLED:.0%}")
