"""How predictions are scored: one class per kind of task, each a ``compute_metrics`` of the Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import datasets
    from transformers import EvalPrediction

SPEED = ("_runtime", "_per_second", "_model_preparation_time")  # of the metrics of an evaluation: not about the model
MAX_CLASSES_REPORTED = 20  # with more, eval_metrics.json holds the means over the classes only
MAX_CLASSES_WITH_NUMBERS = 12  # in the cells of the picture of a confusion matrix


class Evaluation:
    """One evaluation set: ``features`` is what the Trainer evaluates, a call scores what it returns.

    rate: the statistic that has a 95 % interval in every slice.
    """

    rate: str

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


def plot_confusion(path: Path, counts: np.ndarray, names: Sequence[str], title: str) -> None:
    """counts: (C, C), rows the gold labels. Colour is the share of the row."""
    from datamap.core.plots import new_figure, save_figure

    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = float(np.clip(1.6 + 0.55 * len(names), 3.2, 12))
    figure, axis = new_figure(size + 1.4, size + 0.3)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    if len(names) <= MAX_CLASSES_WITH_NUMBERS:
        for row, column in np.ndindex(*counts.shape):
            ink = "white" if shares[row, column] > 60 else "black"
            axis.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=9, color=ink)
    names = [name.replace("$", r"\$") for name in names]  # a bare $ would begin a formula
    wide, many = max(map(len, names)) > 6, len(names) > MAX_CLASSES_REPORTED
    axis.set_xticks(range(len(names)), names, rotation=90 if many else 30 if wide else 0,
                    ha="center" if many or not wide else "right")
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(labelsize=float(np.clip(500 / len(names), 2.5, 10)))
    axis.set_xlabel("predicted label")
    axis.set_ylabel("gold label")
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, label="examples of the gold label (%)")
    accuracy = np.trace(counts) / counts.sum()
    save_figure(figure, path, "Confusion matrix", f"{title}, n = {counts.sum():,}; accuracy {accuracy:.3f}")
