"""How predictions are scored: one class per kind of task, each a ``compute_metrics`` of the Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.clusters import Clusters
from datamap.core.intervals import clustered_interval
from datamap.core.plots import COLORS, new_figure, save_figure, whole_numbers
from datamap.core.tables import shortened

if TYPE_CHECKING:
    import datasets
    from transformers import EvalPrediction

SPEED = ("_runtime", "_per_second", "_model_preparation_time")  # of the metrics of an evaluation: not about the model
MAX_CLASSES_REPORTED = 20  # with more, eval_metrics.json holds the means over the classes only
MAX_CLASSES_WITH_NUMBERS = 12  # in the cells of the picture of a confusion matrix
MAX_CLASSES_DRAWN = 40  # as a matrix
MAX_PAIRS_DRAWN = 30


class Evaluation:
    """One evaluation set: ``features`` is what the Trainer evaluates, a call scores what it returns.

    rate: the statistic that has a 95 % interval in every slice. clusters: the examples that go together, None where
    each is by itself.
    """

    rate: str
    clusters: Clusters | None = None

    def __init__(self, data: datasets.Dataset, features: datasets.Dataset):
        self.data = data
        # Longest first, so that batches hold rows of one length and memory runs out at once or never.
        self.features = features.select(np.argsort(-np.asarray(features["length"][:]), kind="stable"))

    def __call__(self, output: EvalPrediction) -> dict[str, float]:
        """Score ``output.predictions`` (what ``Task.row_predictions`` gave) of the rows ``output.label_ids``."""
        raise NotImplementedError

    def summary(self, among: np.ndarray) -> dict[str, float]:
        """The metrics of a part of the examples; among: (N,) bool."""
        raise NotImplementedError

    def slice_statistics(self, among: np.ndarray) -> dict[str, float]:
        """What a row of slice_metrics.csv says of a part of the examples: n, the rate with its interval, and more."""
        raise NotImplementedError

    def share(self, right: np.ndarray, among: np.ndarray, scale: float = 1.0) -> dict[str, float]:
        """The statistics of a slice that every task has: ``n``, the ``rate`` of ``right`` (N,), 0 or 1, its 95 %
        interval ``low`` and ``high``; in clusters also how many, and how many independent examples n is worth."""
        clusters = None if self.clusters is None else self.clusters.among(among)
        low, high, worth = clustered_interval(right[among], clusters)
        found = {"n": int(among.sum()), self.rate: scale * float(right[among].mean()), "low": scale * low,
                 "high": scale * high}
        return found if clusters is None else found | {"clusters": clusters.count, "n_effective": worth}

    def predicted_values(self) -> list[Any]:
        """The prediction of every example, as it stands in ``rows``."""
        raise NotImplementedError

    def rows(self) -> list[dict[str, Any]]:
        """The examples as loaded, each with its prediction and its scores (eval_predictions.jsonl)."""
        raise NotImplementedError

    def write(self, directory: Path, suffix: str, title: str) -> None:
        """Write what else there is to see into ``directory``; names end in ``suffix``."""

    def _in_order(self, output: EvalPrediction, rows: int) -> np.ndarray:
        table = np.empty((rows, output.predictions.shape[1]))
        table[np.asarray(output.label_ids)] = output.predictions
        return table


def plot_confusion(
    path: Path, counts: np.ndarray, names: Sequence[str], caption: str, answers: Sequence[str] | None = None
) -> None:
    """counts: (C, A), rows the gold labels, columns the predicted ones, then what is none. Colour is the row's share;
    the row of a label without examples, which has no shares, is blank. Of more than 40 labels, which nobody could
    read, the pairs that are confused most often are drawn instead.

    names: of the C labels. answers: of the A columns, the same as ``names`` unless given.
    """
    import seaborn

    names, answers = ([text.replace("$", r"\$") for text in shortened(texts, 24)]
                      for texts in (names, answers or names))
    accuracy = np.trace(counts) / counts.sum()
    caption = f"{caption}, n = {counts.sum():,}; accuracy {accuracy:.3f}"
    if len(names) > MAX_CLASSES_DRAWN:
        plot_confused_pairs(path, counts, names, answers, caption)
        return
    sizes = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.where(sizes, sizes, np.nan)
    cells = np.array([f"{n:,}\n{share:.0f} %" for n, share in zip(counts.flat, shares.flat, strict=True)])
    width, height = np.clip(1.6 + 0.6 * np.array([len(answers), len(names)]), 3.2, 12)
    figure, axis = new_figure(float(width) + 1.4, float(height) + 0.3)
    seaborn.heatmap(
        shares, vmin=0, vmax=100, cmap="Blues", ax=axis, xticklabels=answers, yticklabels=names,
        annot=cells.reshape(counts.shape) if len(names) <= MAX_CLASSES_WITH_NUMBERS else False, fmt="",
        annot_kws={"fontsize": 8}, cbar_kws={"label": "examples of the gold label (%)"},
    )
    wide, many = max(map(len, answers)) > 6, len(answers) > MAX_CLASSES_REPORTED
    axis.set_xticklabels(axis.get_xticklabels(), rotation=90 if many else 30 if wide else 0,
                         ha="right" if wide and not many else "center")
    axis.set_yticklabels(axis.get_yticklabels(), rotation=0)
    axis.tick_params(labelsize=float(np.clip(500 / len(names), 2.5, 10)), length=0)
    axis.set_xlabel("predicted label")
    axis.set_ylabel("gold label")
    blank = "" if sizes.all() else "; blank: no examples"
    save_figure(figure, path, "Confusion matrix", f"{caption}{blank}")


def plot_confused_pairs(
    path: Path, counts: np.ndarray, names: Sequence[str], answers: Sequence[str], caption: str
) -> None:
    """The pairs of gold and predicted label with the most examples, as bars; counts as for ``plot_confusion``."""
    row, column = np.indices(counts.shape)
    wrong = np.where(row == column, 0, counts)
    order = np.argsort(-wrong, axis=None, kind="stable")[: min(MAX_PAIRS_DRAWN, np.count_nonzero(wrong))]
    gold, predicted = np.unravel_index(order, counts.shape)
    drawn, places = wrong[gold, predicted], np.arange(len(order))
    figure, axis = new_figure(8, 1.6 + 0.26 * max(len(order), 1))
    bars = axis.barh(places, drawn, color=COLORS[1])
    shares = 100 * drawn / counts.sum(axis=1)[gold]
    axis.bar_label(bars, [f"{share:.0f} %" for share in shares], padding=2, fontsize=7)
    labels = [f"{names[one]} → {answers[other]}" for one, other in zip(gold, predicted, strict=True)]
    axis.set_yticks(places, labels, fontsize=8)
    axis.set_ylim(max(len(order), 1) - 0.5, -0.5)
    axis.set_xlabel("examples (count)")
    whole_numbers(axis.xaxis)
    caption += (f"\nthe {len(order):,} of {np.count_nonzero(wrong):,} confused pairs of labels with the most examples "
                f"({drawn.sum():,} of {wrong.sum():,} mistakes); beside the bar: share of the gold label")
    save_figure(figure, path, f"Most confused of {len(names):,} labels: gold → predicted", caption)
