"""What a task is: its columns, its features, its predictions and how they are scored.

Adding a task means adding a subclass of ``Task`` here and naming it in ``TASKS``; where its predictions are scored in
a new way, it brings an ``Evaluation`` of its own (evaluation.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from datamap.core.errors import UserError, name_a_few
from datamap.tasks import qa_metrics
from datamap.tasks.evaluation import ClassificationEvaluation, Evaluation, QAEvaluation, label_values
from datamap.tasks.qa_features import CONTEXT, NO_ANSWER, answer_lists, choose_windows, cls_positions, qa_features

if TYPE_CHECKING:
    import datasets
    import torch
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

MAX_CLASSES = 1000
NO_GOLD_LABEL = (None, -1, "-1", "-", "")  # SNLI writes -1, in its own files "-"

logger = logging.getLogger(__name__)


class Task:
    """What the scripts ask of a task. A task is a frozen dataclass whose fields are the settings a user may give."""

    name: ClassVar[str]
    flags: ClassVar[tuple[str, ...]] = ()  # of run.py: those that no other kind of task understands
    metric: ClassVar[str]  # what "best" means, in eval_metrics.json with eval_ before it
    targets: ClassVar[tuple[str, ...]]  # feature columns with one number a row
    unusable: ClassVar[str] = ""  # why ``is_usable`` leaves an example out
    has_error_rules: ClassVar[bool] = False
    pooling: ClassVar[tuple[str, ...]]  # ways to one vector per example, the default first

    # --- rows ---

    @property
    def content_columns(self) -> tuple[str, ...]:
        """The columns that make up an example: ids and fingerprints are taken over them."""
        raise NotImplementedError

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that a tokenizer is trained on."""
        raise NotImplementedError

    @property
    def perturbed_columns(self) -> tuple[str, ...]:
        """The columns whose words may be changed a little without changing what is asked for."""
        return self.text_columns

    def settings(self) -> dict[str, Any]:
        """What ``get_task`` needs to make this very task again; recorded with every artifact."""
        return {"name": self.name}

    def for_columns(self, columns: Sequence[str], source: str) -> Task:
        """This task with its columns named, where they were to be guessed from those that there are."""
        return self

    def normalize(self, data: datasets.Dataset, source: str) -> datasets.Dataset:
        """Bring rows of any known layout into one; see ``helpers.load_split``."""
        raise NotImplementedError

    def is_usable(self, data: datasets.Dataset) -> np.ndarray:
        """Which examples can be trained on, (N,) bool."""
        return np.ones(len(data), dtype=bool)

    def check_training_data(self, data: datasets.Dataset, source: str) -> None:
        """Raise UserError where nothing could be learnt from ``data``."""

    def readable(self, data: datasets.Dataset) -> dict[str, list]:
        """The examples as a person reads them: column -> one text (or label) per example."""
        raise NotImplementedError

    def brief(self, data: datasets.Dataset) -> dict[str, list]:
        """``readable`` without what is too long to stand beside a cluster; None where there is no answer."""
        return self.readable(data)

    def groups(self, data: datasets.Dataset) -> tuple[str, Sequence[str]]:
        """By what analyses split the examples: the name of the grouping, and each example's group."""
        raise NotImplementedError

    # --- model ---

    @property
    def model_class(self) -> Any:
        """The Auto class of the models for this task."""
        raise NotImplementedError

    def head(self, config: PreTrainedConfig | None, data: datasets.Dataset | None, source: str) -> dict[str, Any]:
        """Settings of the model's head for training on ``data``, {} to take the head as it is.

        config: that of a model that was trained before; data None: the model is only evaluated.
        """
        return {}

    def match_labels(self, data: datasets.Dataset, config: PreTrainedConfig, source: str) -> datasets.Dataset:
        """``data`` with its labels numbered as the model numbers them."""
        return data

    # --- features and predictions ---

    def features(
        self,
        data: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 512,
        doc_stride: int = 128,
        ablation: str = "none",
    ) -> datasets.Dataset:
        """What the model reads, in the order of the examples, one or several rows each.

        Columns: the tokenizer's own (input_ids, attention_mask, ...); ``targets``; ``example_index`` into ``data``;
        ``row_index``, the row's number; ``counts``, whether the row says something of its example; ``length``, tokens.
        """
        raise NotImplementedError

    def row_predictions(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What evaluation keeps of a batch, (B, K): its size must not depend on the sequence length."""
        raise NotImplementedError

    def evaluation(self, data: datasets.Dataset, features: datasets.Dataset) -> Evaluation:
        raise NotImplementedError

    def embedding_rows(
        self, data: datasets.Dataset, features: datasets.Dataset, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[datasets.Dataset, np.ndarray, np.ndarray]:
        """For embeddings: one row of features per example, in example order; the position of its [CLS] token, (N,);
        the first and last position of its answer, (N, 2), -1 where there is none."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Task):
    """Extractive QA (SQuAD 1.1 and 2.0, emrQA): columns id, question, context, answers.

    ``answers`` is ``{"text": [...], "answer_start": [...]}``; empty lists mean unanswerable. Training uses the first
    gold answer, scoring all of them. A long context becomes several windows that overlap by ``doc_stride`` tokens.
    max_answer_length: longest predicted answer in tokens, None for no limit.
    """

    max_answer_length: int | None = None

    name = "qa"
    flags = ("doc_stride", "max_answer_length", "ablations", "eval_ablations", "confidence_type")
    content_columns = ("question", "context", "answers")
    text_columns = ("question", "context")
    perturbed_columns = ("question",)  # the answers stand in the context
    metric = "f1"
    targets = ("start_positions", "end_positions")
    unusable = "answer not at its answer_start"
    has_error_rules = True
    pooling = ("cls_and_answer_mean",)

    @property
    def model_class(self) -> Any:
        from transformers import AutoModelForQuestionAnswering

        return AutoModelForQuestionAnswering

    def normalize(self, data: datasets.Dataset, source: str) -> datasets.Dataset:
        import datasets

        columns = set(data.column_names)
        missing = {"question", "context"} - columns
        answer_column = next((name for name in ("answers", "answer", "answer_text") if name in columns), None)
        if missing or answer_column is None:
            wanted = sorted(missing) + ([] if answer_column else ["answers"])
            raise UserError(
                f"{source} has no column {name_a_few(wanted)}; question answering needs question, context, answers; "
                f"there is {', '.join(data.column_names)} (--task nli or classification for labelled texts)"
            )
        for column in self.text_columns:
            empty = [row for row, text in enumerate(data[column][:]) if not isinstance(text, str)]
            if empty:
                raise UserError(f"{source}: column {column} of row {empty[0] + 1} holds no text")
        raw = data[answer_column][:]
        starts = data["answer_start"][:] if "answer_start" in columns else [None] * len(raw)
        answers = [
            answer_lists(answer, start, f"{source}, row {row}")
            for row, (answer, start) in enumerate(zip(raw, starts, strict=True), 1)
        ]
        if not any(answer["text"] for answer in answers):
            raise UserError(f"{source}: all answers are empty; at least one example needs an answer")
        used = {"answers", answer_column} | ({"answer_start"} if "answer_start" in columns else set())
        data = data.remove_columns([column for column in data.column_names if column in used])
        features = datasets.Features(
            {"text": datasets.List(datasets.Value("string")), "answer_start": datasets.List(datasets.Value("int64"))}
        )
        rest = [column for column in data.column_names if column not in ("id", "question", "context")]
        return data.add_column("answers", answers, feature=features).select_columns(
            [*(["id"] if "id" in columns else []), "question", "context", "answers", *rest]
        )

    def is_usable(self, data: datasets.Dataset) -> np.ndarray:
        """Whether the first gold answer of each example stands at its offset (true where there is no answer)."""
        return np.array(
            [
                not answer["text"] or context.startswith(answer["text"][0], answer["answer_start"][0])
                for context, answer in zip(data["context"][:], data["answers"][:], strict=True)
            ],
            dtype=bool,
        )

    def check_training_data(self, data: datasets.Dataset, source: str) -> None:
        if not self.is_usable(data).any():
            raise UserError(f"{source}: no answer stands at its answer_start ({name_a_few(data['id'][:])}); mend them")

    def readable(self, data: datasets.Dataset) -> dict[str, list]:
        """``answer`` is the first gold text, "" where the example is unanswerable."""
        answers = [next(iter(answer["text"]), "") for answer in data["answers"][:]]
        return {"question": data["question"][:], "context": data["context"][:], "answer": answers}

    def brief(self, data: datasets.Dataset) -> dict[str, list]:
        answers = [next(iter(answer["text"]), None) for answer in data["answers"][:]]
        return {"question": data["question"][:], "answer": answers}

    def groups(self, data: datasets.Dataset) -> tuple[str, Sequence[str]]:
        from datamap.tasks.questions import question_types

        return "question_type", question_types(data["question"][:]).tolist()

    def features(
        self,
        data: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 512,
        doc_stride: int = 128,
        ablation: str = "none",
    ) -> datasets.Dataset:
        """Windows. Beside the columns of ``Task.features``: ``start_positions``, ``end_positions`` of the first gold
        answer, the [CLS] position where the window does not hold it; ``token_roles``; ``offset_start``, ``offset_end``
        (characters of the context). ``counts``: the window holds the answer or the example is unanswerable.

        ``doc_stride`` is the overlap of consecutive windows in tokens, at most ``max_length // 2``. ``q_only`` hides
        the context from attention, its tokens stay candidates; ``p_only`` asks the same question of every passage.
        """
        return qa_features(data, tokenizer, max_length, doc_stride, ablation)

    def row_predictions(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B, 4) float64: best span score, its start and end token, and the no-answer score."""
        import torch

        roles = batch["token_roles"]
        spans = qa_metrics.best_spans(
            outputs.start_logits, outputs.end_logits, roles == CONTEXT, self.max_answer_length
        )
        null = outputs.start_logits.float() + outputs.end_logits.float()
        null = null.masked_fill(roles != NO_ANSWER, -torch.inf).amax(dim=1)
        return torch.stack([spans.score.double(), spans.start.double(), spans.end.double(), null.double()], dim=1)

    def evaluation(self, data: datasets.Dataset, features: datasets.Dataset) -> QAEvaluation:
        return QAEvaluation(data, features)

    def embedding_rows(
        self, data: datasets.Dataset, features: datasets.Dataset, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[datasets.Dataset, np.ndarray, np.ndarray]:
        windows, has_span = choose_windows(features, self.is_usable(data))
        spans = np.stack([windows["start_positions"][:], windows["end_positions"][:]], axis=1)
        return windows, cls_positions(windows), np.where(has_span[:, None], spans, -1)


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
    flags = ("text_columns", "label_column")
    metric = "accuracy"
    targets = ("labels",)
    pooling = ("cls", "mean")
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

    def for_columns(self, columns: Sequence[str], source: str) -> SequenceClassification:
        known = self
        if self.remembered and not set(self.content_columns) <= set(columns):
            known = type(self)()
        texts, label = known.text_columns, known.label_column
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
            usual = [guess for guess in self.label_guesses if guess in columns and guess not in texts]
            label = self._guess([(guess,) for guess in usual], "--label_column", columns, source)[0]
            guessed.append(f"labels from {label}")
        if guessed:
            logger.info(f"{source}: {', '.join(guessed)} (guessed; --text_columns and --label_column name others)")
        return type(self)(texts, label)

    def _guess(
        self, found: list[tuple[str, ...]], flag: str, columns: Sequence[str], source: str
    ) -> tuple[str, ...]:
        found = [guess for guess in found if not any(set(guess) < set(other) for other in found)]
        if len(found) == 1:
            return found[0]
        problem = "no column with a usual name" if not found else "more than one possibility ("
        problem += " or ".join("+".join(guess) for guess in found) + ")" * bool(found)
        is_qa = {"question", "context"} <= set(columns)
        raise UserError(f"{source}: {problem} for {flag}; give {flag}: there is {', '.join(columns)}"
                        f"{' (--task qa answers questions on a context)' * is_qa}")

    def normalize(self, data: datasets.Dataset, source: str) -> datasets.Dataset:
        import datasets

        labels, names = _class_numbers(data, self.label_column, source)
        texts = [data[column][:] for column in self.text_columns]
        for column, values in zip(self.text_columns, texts, strict=True):
            other = [row for row, value in enumerate(values) if value is not None and not isinstance(value, str)]
            if other:
                found = f"{values[other[0]]!r:.40}"
                raise UserError(f"{source}: column {column} of row {other[0] + 1} holds {found}, which is no text")
            if not any(value and value.strip() for value in values):
                raise UserError(f"{source}: column {column} is empty in every row; name another with --text_columns")
        blank = np.array([not all(value and value.strip() for value in row) for row in zip(*texts, strict=True)])
        unlabelled = labels < 0
        for left_out, why in ((unlabelled & ~blank, "without gold label"), (blank, "with an empty text")):
            if left_out.any():
                rows = ", ".join(str(row + 1) for row in np.flatnonzero(left_out)[:3])
                logger.warning(f"{source}: {left_out.sum():,} of {len(data):,} examples {why} are left out "
                               f"(row{'s' * bool(left_out.sum() > 1)} {rows}{', ...' * bool(left_out.sum() > 3)})")
        kept = np.flatnonzero(~(unlabelled | blank))
        if not len(kept):
            raise UserError(f"{source}: no example has a gold label and a text; it cannot be trained or evaluated on")
        data = data.remove_columns(self.label_column).select(kept)
        data = data.add_column(self.label_column, labels[kept].tolist(), feature=datasets.ClassLabel(names=names))
        first = [*(["id"] if "id" in data.column_names else []), *self.content_columns]
        return data.select_columns([*first, *(column for column in data.column_names if column not in first)])

    def check_training_data(self, data: datasets.Dataset, source: str) -> None:
        there = np.unique(data[self.label_column][:])
        if len(there) < 2:
            name = data.features[self.label_column].names[there[0]]
            raise UserError(f"{source}: every example to train on has the label {name!r}; at least two classes are "
                            "needed (-1 means no gold label)")

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
        trained = config is not None and any("SequenceClassification" in each for each in config.architectures or [])
        if data is None:
            return {}
        names = data.features[self.label_column].names
        if config is not None and trained:
            places = _places(names, config)
            if places is not None and not _nameless(config):
                return {}
            if places is not None:  # LABEL_0, ...: from now on the names of the data, so that every split fits by name
                names = [names[places.index(place)] if place in places else str(place)
                         for place in range(config.num_labels)]
                return {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
            logger.warning(f"the model's classes ({name_a_few(config.id2label.values())}) are not those of {source} "
                           f"({name_a_few(names)}): it gets a new head")
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
        place_of_column = data.column_names
        data = data.remove_columns(self.label_column)
        data = data.add_column(self.label_column, labels, feature=datasets.ClassLabel(names=shown))
        return data.select_columns(place_of_column)

    # --- features and predictions ---

    def features(
        self,
        data: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 512,
        doc_stride: int = 0,
        ablation: str = "none",
    ) -> datasets.Dataset:
        """One row per example; all rows count. Of a text or pair that is too long, the longer text is cut at its end.

        ``doc_stride`` and ``ablation`` are for question answering and change nothing.
        """
        import datasets

        tokenizer.padding_side = "right"
        columns = list(self.text_columns)
        encoded = tokenizer(*(data[column][:] for column in columns), verbose=False)
        lengths = np.array([len(tokens) for tokens in encoded["input_ids"]])
        names = [name for name in tokenizer.model_input_names if name in encoded]
        rows = {name: encoded[name] for name in names}
        long = np.flatnonzero(lengths > max_length)
        if len(long):
            logger.warning(f"{len(long):,} of {len(data):,} texts are longer than {max_length} tokens (up to "
                           f"{lengths.max():,}) and were cut; --max_length takes more if the model does")
            cut = tokenizer(*([data[column][row] for row in long.tolist()] for column in columns),
                            truncation="longest_first", max_length=max_length)
            for name in names:
                for place, row in enumerate(long):
                    rows[name][row] = cut[name][place]
        count = len(data)
        small = datasets.List(datasets.Value("int8"))
        integers = datasets.List(datasets.Value("int32"))
        schema = {name: small if name == "attention_mask" else integers for name in names}
        numbers = {"example_index": range(count), "row_index": range(count), "labels": data[self.label_column][:],
                   "length": np.minimum(lengths, max_length).tolist()}
        return datasets.Dataset.from_dict(
            {**rows, **{name: list(values) for name, values in numbers.items()}, "counts": [True] * count},
            features=datasets.Features(
                {**schema, **dict.fromkeys(numbers, datasets.Value("int64")), "counts": datasets.Value("bool")}
            ),
        )

    def row_predictions(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The logits, (B, C) float32."""
        return outputs.logits.float()

    def evaluation(self, data: datasets.Dataset, features: datasets.Dataset) -> ClassificationEvaluation:
        return ClassificationEvaluation(data, features, self.label_column, self.text_columns)

    def embedding_rows(
        self, data: datasets.Dataset, features: datasets.Dataset, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[datasets.Dataset, np.ndarray, np.ndarray]:
        cls = tokenizer.cls_token_id
        places = [tokens.index(cls) if cls in tokens else -1 for tokens in features["input_ids"][:]]
        return features, np.array(places, dtype=np.int64), np.full((len(features), 2), -1)


@dataclasses.dataclass(frozen=True)
class NaturalLanguageInference(SequenceClassification):
    """Whether a hypothesis follows from a premise: columns id, premise, hypothesis, label (SNLI, MNLI, SICK)."""

    name = "nli"
    text_guesses = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_A", "sentence_B"),
                    ("text_a", "text_b"))
    label_guesses = ("label", "labels", "gold_label", "entailment_label", "entailment_judgment")


def _class_numbers(data: datasets.Dataset, column: str, source: str) -> tuple[np.ndarray, list[str]]:
    """Each row's class number, (N,), -1 without gold label, and the names of the classes in order."""
    feature, raw = data.features[column], data[column][:]
    names = getattr(feature, "names", None)
    if names is not None:
        numbers = np.array([-1 if value is None else value for value in raw], dtype=np.int64)
        return numbers, list(names)
    values = [_whole(value) for value in raw]
    values = [None if value in NO_GOLD_LABEL or value != value else value for value in values]
    labelled = [value for value in values if value is not None]
    if not labelled:
        raise UserError(f"{source}: no row has a label in column {column}")
    wrong = next((value for value in labelled if not isinstance(value, str | int)), None)
    if wrong is not None:
        raise UserError(f"{source}: column {column} holds {wrong!r:.40}; labels are whole numbers or names")
    if len({isinstance(value, str) for value in labelled}) > 1:
        raise UserError(f"{source}: column {column} holds both numbers and names; labels must be of one kind")
    negative = [value for value in labelled if not isinstance(value, str) and value < 0]
    if negative:
        raise UserError(f"{source}: column {column} holds the label {negative[0]}; labels are numbers from 0, names, "
                        "or -1 for no gold label")
    classes = sorted(set(labelled))
    if len(classes) > MAX_CLASSES or (len(classes) == len(labelled) > 10):
        raise UserError(f"{source}: column {column} has {len(classes):,} different values in {len(labelled):,} rows; "
                        "is it the label? --label_column names another")
    place = {value: number for number, value in enumerate(classes)}
    return np.array([-1 if value is None else place[value] for value in values]), [str(value) for value in classes]


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


TASKS: dict[str, type[Task]] = {
    task.name: task for task in (QuestionAnswering, NaturalLanguageInference, SequenceClassification)
}


def get_task(name: str, **settings: Any) -> Task:
    """The task of that name; settings: the fields of its class, such as text_columns and label_column."""
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; there is {', '.join(TASKS)}")
    known = {field.name for field in dataclasses.fields(TASKS[name])}  # type: ignore[arg-type]
    for setting in settings:
        if setting not in known:
            raise UserError(f"--{setting} is not for --task {name}")
    return TASKS[name](**settings)


def add_task_flags(group: Any, default: str = "qa") -> None:
    """--task, --text_columns, --label_column: not needed where an artifact records them."""
    group.add_argument("--task", choices=list(TASKS),
                       help=f"what the dataset is for (default: as recorded by the earlier stage, else {default})")
    group.add_list("--text_columns", help="one or two columns with the texts, of nli and classification (default: "
                   "guessed from the usual names)")
    group.add_argument("--label_column", metavar="NAME", help="column with the classes (default: guessed)")


def task_of(args: argparse.Namespace, recorded: Mapping[str, Any] | None) -> Task:
    """The task that the flags mean, where they are silent the one ``recorded``, else qa.

    A flag with the name of a field of the task's class is its setting.
    """
    earlier = dict(recorded or {})
    name = args.task or earlier.get("name") or QuestionAnswering.name
    fields = {field.name for field in dataclasses.fields(TASKS[name])}  # type: ignore[arg-type]
    flags = {"text_columns", "label_column"} | fields
    given = {flag: getattr(args, flag) for flag in sorted(flags) if getattr(args, flag, None)}
    known = {key: value for key, value in earlier.items() if key != "name"} if earlier.get("name") == name else {}
    if known and not given and "remembered" in fields:
        known["remembered"] = True
    return get_task(name, **{**known, **given})
