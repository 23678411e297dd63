"""One class per text, or per pair of texts: the task, what a label is, and how predicted classes are scored."""

from __future__ import annotations

import dataclasses
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from datamap.core.errors import UserError, name_a_few
from datamap.core.files import nulls_for_nan, write_csv
from datamap.core.splits import arrow_column, with_column
from datamap.core.tables import further_columns, safe_to_open
from datamap.tasks.base import Task
from datamap.tasks.evaluation import MAX_CLASSES_REPORTED, Evaluation, plot_confusion
from datamap.tasks.missing import REGRESSION, task_of_columns, task_of_label

if TYPE_CHECKING:
    import datasets
    from transformers import EvalPrediction, PreTrainedConfig

MAX_CLASSES = 1000
WHOLE_NUMBER = re.compile(r"[+-]?\d+")
MEASUREMENT = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?\s?%?", re.IGNORECASE)  # a number, whole or not
NO_GOLD_LABEL = (None, -1, "-1", "-", "")  # SNLI writes -1, in its own files "-"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SequenceClassification(Task):
    """One class per text, or per pair of texts: columns id, one or two text columns, a label column.

    Columns that are not given are guessed from their names. Labels are class numbers, class names, or none (-1):
    examples without a gold label are left out and counted. remembered: the columns are those of an earlier stage, and
    another dataset may have others.
    """

    text_columns: tuple[str, ...] = ()
    label_column: str = ""
    remembered: bool = dataclasses.field(default=False, compare=False)

    name = "classification"
    flags = ("text_columns", "label_column", "plant_kind", "plant_confusion")
    metric = "accuracy"
    # Columns in the order in which the model reads them: what is read first, then what is asked of it.
    text_guesses: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("story", "question"), ("passage", "question"), ("context", "question"), ("sentence", "question"),
        ("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence",), ("text",), ("content",), ("review",),
        ("tweet",),
    )
    label_guesses: ClassVar[tuple[str, ...]] = ("label", "labels", "gold_label", "entailment_label", "class")

    def __post_init__(self) -> None:
        object.__setattr__(self, "text_columns", tuple(self.text_columns))
        if len(self.text_columns) > 2:
            raise UserError(f"--text_columns takes one or two columns, found {', '.join(self.text_columns)}")
        if len(set(self.text_columns)) < len(self.text_columns):
            raise UserError(f"--text_columns names {self.text_columns[0]!r} twice")
        if "id" in self.content_columns:
            raise UserError("column 'id' names the examples; it is neither text nor label")
        if self.label_column in self.text_columns:
            raise UserError(f"--label_column {self.label_column!r} is one of the --text_columns; name another")

    @property
    def model_class(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    @property
    def content_columns(self) -> tuple[str, ...]:
        return (*self.text_columns, self.label_column)

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "text_columns": list(self.text_columns), "label_column": self.label_column}

    # --- columns and rows ---

    def sought(self, columns: Sequence[str]) -> Sequence[str]:
        names = [*self.text_columns, *([self.label_column] if self.label_column else [])]
        if self.remembered or not self.text_columns:
            usual = any(set(guess) <= set(columns) - {self.label_column, "id"} for guess in self.text_guesses)
            names += [] if usual else [name for guess in self.text_guesses for name in guess]
        if self.remembered or not self.label_column:
            names += [] if set(self.label_guesses) & set(columns) else self.label_guesses
        return list(dict.fromkeys(names))

    def for_columns(self, columns: Sequence[str], source: str) -> SequenceClassification:
        known = self
        if self.remembered and not set(self.content_columns) <= set(columns):
            known = type(self)()
        return type(self)(*known.named_columns(columns, source))

    def named_columns(
        self, columns: Sequence[str], source: str, label_guesses: Sequence[str] = (), needs_label: bool = True
    ) -> tuple[tuple[str, ...], str]:
        """The text columns and the label column: those given, else guessed from their names.

        label_guesses: names for labels beside the usual ones. needs_label: else "" where none has such a name.
        """
        texts, label = self.text_columns, self.label_column
        absent = [name for name in (*texts, *([label] if label else [])) if name not in columns]
        if absent:
            blank = "; a name with a blank in it cannot be given: rename it" * any(" " in name for name in columns)
            raise UserError(f"{source} has no column {name_a_few(absent)}; there is {', '.join(columns)}{blank}")
        guessed = []
        if not texts:
            taken = {label, "id"}
            texts = self._guess([guess for guess in self.text_guesses if set(guess) <= set(columns) - taken],
                                "--text_columns", columns, source)
            guessed.append(f"text from {' and '.join(texts)}")
        if not label:
            guesses = (*self.label_guesses, *label_guesses)
            usual = [guess for guess in guesses if guess in columns and guess not in texts]
            if usual or needs_label:
                label = self._guess([(guess,) for guess in usual], "--label_column", columns, source)[0]
                guessed.append(f"labels from {label}")
        if guessed:
            logger.info(f"{source}: {', '.join(guessed)} (guessed; --text_columns and --label_column name others)")
        return texts, label

    def _guess(self, found: list[tuple[str, ...]], flag: str, columns: Sequence[str], source: str) -> tuple[str, ...]:
        found = [guess for guess in found if not any(set(guess) < set(other) for other in found)]
        if len(found) == 1:
            return found[0]
        problem = "no column with a usual name" if not found else "more than one possibility ("
        problem += " or ".join("+".join(guess) for guess in found) + ")" * bool(found)
        is_qa = {"question", "context"} <= set(columns)
        raise UserError(f"{source}: {problem} for {flag}; give {flag}: there is {', '.join(columns)}"
                        f"{' (--task qa answers questions on a context)' * is_qa}{task_of_columns(columns)}")

    def normalize(self, data: datasets.Dataset, source: str) -> datasets.Dataset:
        import datasets

        labels, names = _class_numbers(data, self.label_column, source)
        blank = np.zeros(len(data), dtype=bool)
        for column in self.text_columns:
            is_blank = _is_blank(data, column, source)
            if is_blank.all():
                raise UserError(f"{source}: column {column} is empty in every row; name another with --text_columns")
            blank |= is_blank
        unlabelled = labels < 0
        for left_out, why in ((unlabelled & ~blank, "without gold label"), (blank, "with an empty text")):
            if left_out.any():
                rows = ", ".join(str(row + 1) for row in np.flatnonzero(left_out)[:3])
                logger.warning(f"{source}: {left_out.sum():,} of {len(data):,} examples {why} are left out "
                               f"(row{'s' * bool(left_out.sum() > 1)} {rows}{', ...' * bool(left_out.sum() > 3)})")
        kept = np.flatnonzero(~(unlabelled | blank))
        if not len(kept):
            raise UserError(f"{source}: no example has a gold label and a text; it cannot be trained or evaluated on")
        data = data.remove_columns(self.label_column)
        data = data if len(kept) == len(data) else data.select(kept)
        data = with_column(data, self.label_column, labels[kept], datasets.ClassLabel(names=names))
        first = [*(["id"] if "id" in data.column_names else []), *self.content_columns]
        return data.select_columns([*first, *(column for column in data.column_names if column not in first)])

    def check_training_data(self, data: datasets.Dataset, source: str) -> None:
        there = np.unique(data[self.label_column][:])
        if len(there) < 2:
            name = data.features[self.label_column].names[there[0]]
            raise UserError(f"{source}: every example to train on has the label {name!r}; at least two classes are "
                            "needed (-1 means no gold label)")

    def composition(self, data: datasets.Dataset) -> str:
        """``3 classes: positive (1,203), negative (1,190), neutral (40)``, the commonest first, at most 20 of them."""
        names = data.features[self.label_column].names
        counts = np.bincount(data[self.label_column][:], minlength=len(names))
        order = np.argsort(-counts, kind="stable")
        shown = ", ".join(f"{names[place]} ({counts[place]:,})" for place in order[:MAX_CLASSES_REPORTED])
        more = len(names) - MAX_CLASSES_REPORTED
        return f"{len(names):,} classes: {shown}{f' and {more:,} more' if more > 0 else ''}"

    def readable(self, data: datasets.Dataset) -> dict[str, list]:
        """The text columns, and the labels as they stood in the data."""
        values = label_values(data.features[self.label_column].names)
        labels = [values[label] for label in data[self.label_column][:]]
        return {**{column: data[column][:] for column in self.text_columns}, self.label_column: labels}

    def groups(self, data: datasets.Dataset) -> tuple[str, Sequence[str]]:
        names = data.features[self.label_column].names
        return "label", [names[label] for label in data[self.label_column][:]]

    # --- model ---

    def head(self, config: PreTrainedConfig | None, data: datasets.Dataset | None, source: str) -> dict[str, Any]:
        if data is None:
            return {}
        names = data.features[self.label_column].names
        if config is not None and any("SequenceClassification" in each for each in config.architectures or []):
            places = _places(names, config)
            if places is not None and not _nameless(config):
                return {}
            if places is not None:  # LABEL_0, ...: from now on the names of the data, so that every split fits by name
                names = [names[places.index(place)] if place in places else str(place)
                         for place in range(config.num_labels)]
            else:
                logger.warning(f"the model's classes ({name_a_few(config.id2label.values())}) are not those of "
                               f"{source} ({name_a_few(names)}): it gets a new head")
        return {
            "num_labels": len(names), "id2label": dict(enumerate(names)),
            "label2id": {name: place for place, name in enumerate(names)},
        }

    def match_labels(self, data: datasets.Dataset, config: PreTrainedConfig, source: str) -> datasets.Dataset:
        import datasets

        names = data.features[self.label_column].names
        places = _places(names, config)
        model_names = [str(config.id2label[place]) for place in range(config.num_labels)]
        if places is None:
            unknown = [name for name in names if name not in model_names]
            raise UserError(f"{source}: labels {name_a_few(unknown or names)} are not among those the model knows "
                            f"({name_a_few(model_names, 10)}); give them the same names")
        if _nameless(config) and not all(name.isdecimal() for name in names):
            logger.warning(f"{source}: the model's classes have no names; {model_names[0]} is taken for {names[0]!r}, "
                           f"{model_names[1]} for {names[1]!r}, and so on")
        if places == list(range(config.num_labels)) == list(range(len(names))):
            return data
        shown = list(model_names)  # the names of the data, where the model's are only numbers
        for name, place in zip(names, places, strict=True):
            shown[place] = name
        labels = [places[label] for label in data[self.label_column][:]]
        numbered = data.remove_columns(self.label_column)
        numbered = with_column(numbered, self.label_column, labels, datasets.ClassLabel(names=shown))
        return numbered.select_columns(data.column_names)

    # --- features and predictions ---

    def labels(self, data: datasets.Dataset) -> list:
        return data[self.label_column][:]

    def evaluation(self, data: datasets.Dataset, features: datasets.Dataset) -> ClassificationEvaluation:
        return ClassificationEvaluation(data, features, self.label_column, self.text_columns)


def gold_labels(data: datasets.Dataset, column: str) -> list[Any]:
    """Each row's label, the name (without blanks around it) or the whole number of a class; None without gold label.
    """
    raw, names = data[column][:], getattr(data.features[column], "names", None)
    if names is not None:
        return [None if value is None or value < 0 else names[value] for value in raw]
    return [_gold_label(value) for value in raw]


def _gold_label(value: Any) -> Any:
    value = _whole(value.strip() if isinstance(value, str) else value)
    return None if value in NO_GOLD_LABEL or value != value else value


def _different(data: datasets.Dataset, column: str) -> tuple[list[Any], np.ndarray]:
    """The values of a column in the order in which they come, and the place of each row's among them, (N,)."""
    import datasets
    import pyarrow as pa

    values = arrow_column(data, column)
    is_flat = values.type in (pa.string(), pa.int64(), pa.float64(), pa.bool_())
    if is_flat and isinstance(data.features[column], datasets.Value):
        encoded = values.combine_chunks().dictionary_encode("encode")
        return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    listed = data[column][:]
    return listed, np.arange(len(listed))


def _is_blank(data: datasets.Dataset, column: str, source: str) -> np.ndarray:
    """Which rows have no text in a column, (N,) bool; UserError where one holds something else."""
    import datasets
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = arrow_column(data, column)
    if texts.type != pa.string() or not isinstance(data.features[column], datasets.Value):
        values = data[column][:]
        other = next((row for row, value in enumerate(values) if not isinstance(value, str | None)), None)
        if other is not None:
            found = f"{values[other]!r:.40}"
            raise UserError(f"{source}: column {column} of row {other + 1} holds {found}, which is no text")
        return np.array([not (value and value.strip()) for value in values])
    # Where a visible character of ASCII comes first nobody need ask what else is a blank.
    visible = pa.array([chr(code) for code in range(33, 127)])
    blank = ~np.asarray(pc.is_in(pc.utf8_slice_codeunits(texts, 0, 1), visible))
    rows = np.flatnonzero(blank)
    blank[rows] = [not (text and text.strip()) for text in texts.take(rows).to_pylist()]
    return blank


def _class_numbers(data: datasets.Dataset, column: str, source: str) -> tuple[np.ndarray, list[str]]:
    """Each row's class number, (N,), -1 without gold label, and the names of the classes in order."""
    import pyarrow.compute as pc

    names = getattr(data.features[column], "names", None)
    if names is not None:
        numbers = np.asarray(pc.fill_null(arrow_column(data, column), -1), dtype=np.int64)
        counts = np.bincount(numbers[numbers >= 0], minlength=len(names)).tolist()
        _warn_of_near_duplicates({name: count for name, count in zip(names, counts, strict=True) if count}, column,
                                 source)
        return numbers, list(names)
    raw, place_of = _different(data, column)
    values, times = [_gold_label(value) for value in raw], np.bincount(place_of, minlength=len(raw)).tolist()
    labelled = [value for value in values if value is not None]
    rows = sum(count for value, count in zip(values, times, strict=True) if value is not None)
    if not labelled:
        raise UserError(f"{source}: no row has a label in column {column}")
    padded = Counter[str]()
    for value, count in zip(raw, times, strict=True):
        if isinstance(value, str) and value != value.strip() != "":
            padded[value] += count
    if padded:
        logger.warning(f"{source}: {sum(padded.values()):,} labels of column {column} have blanks around them "
                       f"({name_a_few(padded)}), which are not taken as part of the name")
    texts = Counter[str]()
    for value, count in zip(values, times, strict=True):
        if value is not None:
            texts[str(value)] += count
    measured = [text for text in texts if not WHOLE_NUMBER.fullmatch(text)]
    if measured and all(MEASUREMENT.fullmatch(text) for text in texts):
        raise UserError(f"{source}: column {column} holds numbers such as {measured[0]} ({len(texts):,} "
                        f"different values in {rows:,} rows); labels are whole numbers or names: --label_column "
                        f"names another column, or give the classes names; {REGRESSION}")
    wrong = next((place for place, value in enumerate(values) if not isinstance(value, str | int | None)), None)
    if wrong is not None:
        row = int((place_of == wrong).argmax())
        beside = [data[name][row] for name in data.column_names if name != column]
        raise UserError(f"{source}: column {column} of row {row + 1} holds {values[wrong]!r:.40}; "
                        f"{task_of_label(values[wrong], beside)}")
    if len({isinstance(value, str) for value in labelled}) > 1:
        raise UserError(f"{source}: column {column} holds both numbers and names; labels must be of one kind")
    negative = [value for value in labelled if not isinstance(value, str) and value < 0]
    if negative:
        raise UserError(f"{source}: column {column} holds the label {negative[0]}; labels are numbers from 0, names, "
                        "or -1 for no gold label")
    classes = sorted(set(labelled))
    if len(classes) > MAX_CLASSES or (len(classes) == rows > 10):
        raise UserError(f"{source}: column {column} has {len(classes):,} different values in {rows:,} rows; "
                        "is it the label? --label_column names another")
    _warn_of_near_duplicates(texts, column, source)
    place = {value: number for number, value in enumerate(classes)}
    numbers = np.array([-1 if value is None else place[value] for value in values])
    return numbers[place_of], [str(value) for value in classes]


def _warn_of_near_duplicates(counts: Mapping[str, int], column: str, source: str) -> None:
    """Name the classes that differ only in case, blanks, hyphens and Unicode form: they may be meant as one. counts:
    of the rows of each class."""
    alike: dict[str, list[str]] = {}
    for name in sorted(counts):
        form = unicodedata.normalize("NFKC", name).casefold()
        alike.setdefault(re.sub(r"[\s_-]", "", form) or form, []).append(name)
    for names in alike.values():
        if len(names) > 1:
            shown = ", ".join(f"{name!r} ({counts[name]:,})" for name in names)
            logger.warning(f"{source}: column {column} has classes that may be meant as one: {shown}; they are taken "
                           f"as {len(names)}")


def _whole(value: Any) -> Any:
    """1 for 1.0 and "1.0", which is how pandas writes whole numbers beside a gap."""
    if isinstance(value, str) and value.endswith(".0") and value[:-2].removeprefix("-").isdecimal():
        return int(value[:-2])
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _nameless(config: PreTrainedConfig) -> bool:
    return all(str(config.id2label[place]) == f"LABEL_{place}" for place in range(config.num_labels))


def _places(names: Sequence[str], config: PreTrainedConfig) -> list[int] | None:
    """The model's number of each class of the data, by name; None where the two do not fit.

    A model that calls its classes LABEL_0, LABEL_1, ... has no names: the numbers, else the order, of the data count.
    """
    known = [str(config.id2label[place]) for place in range(config.num_labels)]
    if _nameless(config):
        if all(name.isdecimal() for name in names):
            numbers = [int(name) for name in names]
            return numbers if max(numbers) < len(known) else None
        return list(range(len(names))) if len(names) == len(known) else None
    lower = [name.lower() for name in known]
    if not {name.lower() for name in names} <= set(lower):
        return None
    return [known.index(name) if name in known else lower.index(name.lower()) for name in names]


# --- scores ----------------------------------------------------------------------------------------------------


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
        from scipy.special import log_softmax

        logits = self._in_order(output, len(self.gold))
        log_p = log_softmax(logits, axis=1)
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
        by_class = precision_recall_fscore_support(gold, predicted, labels=occurring, zero_division=0)
        scores = dict(zip(("precision", "recall", "f1"), by_class, strict=False))
        metrics = {
            "accuracy": float((gold == predicted).mean()),
            "majority_baseline": float((gold == self.commonest).mean()),
            "loss": float(self.losses[among].mean()),
            **{name: float(score.mean()) for name, score in scores.items()},
            "total": len(gold),
        }
        if len(self.names) <= MAX_CLASSES_REPORTED:
            metrics |= {f"{name}_{self.names[place]}": float(one) for name, score in scores.items()
                        for place, one in zip(occurring, score, strict=True)}
        return metrics

    def slice_statistics(self, among: np.ndarray) -> dict[str, float]:
        return self.share((self.gold == self.predicted).astype(float), among) | {
            "majority_baseline": float((self.gold[among] == self.commonest).mean()),
            "loss": float(self.losses[among].mean()),
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
        mistakes first, with all columns of the example (``data_`` before those whose name is taken)."""
        import pandas as pd
        from sklearn.metrics import confusion_matrix

        counts = confusion_matrix(self.gold, self.predicted, labels=range(len(self.names)))
        label, predicted = np.indices(counts.shape).reshape(2, -1)
        names = np.asarray(self.names, dtype=object)
        table = pd.DataFrame({"label": names[label], "predicted_label": names[predicted], "n": counts.ravel()})
        wrong = np.flatnonzero(self.gold != self.predicted)
        wrong = wrong[np.argsort(-self.probabilities[wrong, self.predicted[wrong]], kind="stable")]
        chosen = self.data.select(wrong)
        mistakes = {
            "id": chosen["id"][:], **{column: chosen[column][:] for column in self.texts},
            "label": names[self.gold[wrong]], "predicted_label": names[self.predicted[wrong]],
            "confidence": self.probabilities[wrong, self.predicted[wrong]],
            "gold_probability": self.probabilities[wrong, self.gold[wrong]],
        }
        mistakes |= further_columns(chosen, {"id", *self.texts, self.label_column}, mistakes)
        write_csv(directory / f"confusion_matrix{suffix}.csv", safe_to_open(table))
        write_csv(directory / f"misclassified{suffix}.csv", safe_to_open(pd.DataFrame(mistakes)))
        plot_confusion(directory / f"confusion_matrix{suffix}.png", counts, self.names, title)


def label_values(names: Sequence[str]) -> list[str | int]:
    """Class names as they stood in the data: numbers again where they were numbers."""
    numbers = all(name.isdecimal() and str(int(name)) == name for name in names)
    return [int(name) for name in names] if numbers else list(names)
