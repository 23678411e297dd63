"""How predictions are scored: one class per kind of task, each a ``compute_metrics`` of the Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.files import nulls_for_nan, write_csv
from datamap.core.intervals import wilson_interval
from datamap.tasks import qa_metrics
from datamap.tasks.qa_features import flat

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


class QAEvaluation(Evaluation):
    """Exact match and F1 in percent, as the official SQuAD scripts have them.

    The rules of SQuAD 2.0 apply exactly when some example of the set is unanswerable (``version_2``). After a call
    ``predictions`` holds the answers.
    """

    rate = "exact_match"

    def __init__(self, data: datasets.Dataset, features: datasets.Dataset):
        super().__init__(data, features.remove_columns(["offset_start", "offset_end"]))
        self._example_index = np.asarray(features["example_index"][:])
        self._first_token = np.concatenate([[0], np.cumsum(features["length"][:])[:-1]]).astype(np.int64)
        self._offsets = np.stack([flat(features, "offset_start"), flat(features, "offset_end")], axis=1)
        self._contexts = data["context"][:]
        self._golds = [answers["text"] for answers in data["answers"][:]]
        self.version_2 = not all(self._golds)
        self.predictions: list[str] = []

    def __call__(self, output: EvalPrediction) -> dict[str, float]:
        windows = self._in_order(output, len(self._example_index))
        score, null_score = windows[:, 0], windows[:, 3]
        start, end = windows[:, 1].astype(np.int64), windows[:, 2].astype(np.int64)
        char_start, char_end = qa_metrics.char_spans(self._offsets, start, end, self._first_token)
        answers = qa_metrics.choose_answers(
            self._contexts, self._example_index, score, char_start, char_end, null_score, version_2=self.version_2
        )
        self.predictions = answers.text
        self.scores = qa_metrics.score_predictions(answers.text, self._golds, self.version_2)
        return qa_metrics.squad_summary(self.scores)

    def summary(self, among: np.ndarray) -> dict[str, float]:
        columns = (self.scores.exact_match[among], self.scores.f1[among], self.scores.has_answer[among])
        return qa_metrics.squad_summary(qa_metrics.Scores(*columns, self.version_2))

    def slice_statistics(self, among: np.ndarray) -> dict[str, float]:
        exact, n = self.scores.exact_match[among], int(among.sum())
        low, high = wilson_interval(exact.sum(), n)
        return {
            "n": n, "exact_match": 100 * float(exact.mean()), "low": 100 * float(low), "high": 100 * float(high),
            "f1": 100 * float(self.scores.f1[among].mean()),
        }

    def predicted_values(self) -> list[Any]:
        return self.predictions

    def rows(self) -> list[dict[str, Any]]:
        """Adds ``predicted_answer``, ``exact_match`` (0 or 1) and ``f1`` (0..1)."""
        return [
            {**nulls_for_nan(example), "predicted_answer": answer, "exact_match": int(exact), "f1": float(overlap)}
            for example, answer, exact, overlap in zip(
                self.data, self.predictions, self.scores.exact_match, self.scores.f1, strict=True
            )
        ]


class ClassificationEvaluation(Evaluation):
    """Accuracy, precision, recall and F1, each 0..1, and the mean cross-entropy in nats.

    After a call: ``probabilities`` (N, C), ``gold``, ``predicted`` (N,) class numbers, ``losses`` (N,).
    """

    rate = "accuracy"

    def __init__(self, data: datasets.Dataset, features: datasets.Dataset, label_column: str, texts: Sequence[str]):
        super().__init__(data, features)
        self.label_column, self.texts = label_column, list(texts)
        self.names: list[str] = data.features[label_column].names
        self.values = label_values(self.names)
        self.gold = np.asarray(features["labels"][:])
        self.commonest = int(np.bincount(self.gold).argmax())

    def __call__(self, output: EvalPrediction) -> dict[str, float]:
        logits = self._in_order(output, len(self.gold))
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        self.probabilities, self.predicted = np.exp(log_p), logits.argmax(axis=1)
        self.losses = -log_p[np.arange(len(log_p)), self.gold]
        return self.summary(np.ones(len(self.gold), dtype=bool))

    def summary(self, among: np.ndarray) -> dict[str, float]:
        """``majority_baseline`` is the accuracy of always giving the commonest label of the evaluation set.

        Precision, recall and F1 are unweighted means over the classes that occur (macro), and one number per class. A
        class that is never predicted has precision 0.
        """
        from sklearn.metrics import precision_recall_fscore_support

        gold, predicted = self.gold[among], self.predicted[among]
        occurring = np.union1d(gold, predicted)
        scores = precision_recall_fscore_support(gold, predicted, labels=occurring, zero_division=0)
        metrics = {
            "accuracy": float((gold == predicted).mean()),
            "majority_baseline": float((gold == self.commonest).mean()),
            "loss": float(self.losses[among].mean()),
            **{name: float(score.mean()) for name, score in zip(("precision", "recall", "f1"), scores, strict=False)},
            "total": len(gold),
        }
        if len(self.names) <= MAX_CLASSES_REPORTED:
            classes = [self.names[place] for place in occurring]
            for name, score in zip(("precision", "recall", "f1"), scores, strict=False):
                metrics |= {f"{name}_{label}": float(one) for label, one in zip(classes, score, strict=True)}
        return metrics

    def slice_statistics(self, among: np.ndarray) -> dict[str, float]:
        gold, n = self.gold[among], int(among.sum())
        right = int((gold == self.predicted[among]).sum())
        low, high = wilson_interval(right, n)
        return {
            "n": n, "accuracy": right / n, "low": float(low), "high": float(high),
            "majority_baseline": float((gold == self.commonest).mean()), "loss": float(self.losses[among].mean()),
        }

    def predicted_values(self) -> list[Any]:
        return [self.values[label] for label in self.predicted]

    def rows(self) -> list[dict[str, Any]]:
        """Adds ``predicted_label``, ``correct`` (0 or 1) and ``probabilities``, one per label."""
        return [
            {
                **nulls_for_nan(example),
                self.label_column: self.values[gold],
                "predicted_label": predicted,
                "correct": int(self.values[gold] == predicted),
                "probabilities": dict(zip(self.names, p, strict=True)),
            }
            for example, gold, predicted, p in zip(
                self.data, self.gold, self.predicted_values(), self.probabilities.tolist(), strict=True
            )
        ]

    def write(self, directory: Path, suffix: str, title: str) -> None:
        """``confusion_matrix`` as CSV (label, predicted_label, n) and PNG; ``misclassified.csv``, the most confident
        mistakes first."""
        import pandas as pd

        counts = np.zeros((len(self.names), len(self.names)), dtype=np.int64)
        np.add.at(counts, (self.gold, self.predicted), 1)
        label, predicted = np.indices(counts.shape).reshape(2, -1)
        names = np.asarray(self.names, dtype=object)
        table = pd.DataFrame({"label": names[label], "predicted_label": names[predicted], "n": counts.ravel()})
        wrong = np.flatnonzero(self.gold != self.predicted)
        wrong = wrong[np.argsort(-self.probabilities[wrong, self.predicted[wrong]], kind="stable")]
        chosen = self.data.select(wrong)
        mistakes = pd.DataFrame(
            {
                "id": chosen["id"][:],
                **{column: chosen[column][:] for column in self.texts},
                "label": names[self.gold[wrong]],
                "predicted_label": names[self.predicted[wrong]],
                "confidence": self.probabilities[wrong, self.predicted[wrong]],
                "gold_probability": self.probabilities[wrong, self.gold[wrong]],
            }
        )
        write_csv(directory / f"confusion_matrix{suffix}.csv", table)
        write_csv(directory / f"misclassified{suffix}.csv", mistakes)
        plot_confusion(directory / f"confusion_matrix{suffix}.png", counts, self.names, title)


def label_values(names: Sequence[str]) -> list[str | int]:
    """Class names as they stood in the data: numbers again where they were numbers."""
    numbers = all(name.isdecimal() and str(int(name)) == name for name in names)
    return [int(name) for name in names] if numbers else list(names)


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
