"""What a task is: its columns, its features, its predictions and how they are scored.

A new task is a new file in this room with a subclass of ``Task``, which registry.py finds: docs/extending.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from datamap.core.errors import UserError, name_a_few
from datamap.core.progress import Progress
from datamap.tasks.evaluation import Evaluation

if TYPE_CHECKING:
    import datasets
    import torch
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

TEXTS_AT_ONCE = 10_000  # tokenised between two counts of how far it is

logger = logging.getLogger(__name__)


class Task:
    """What the scripts ask of a task. A task is a frozen dataclass whose fields are the settings a user may give.

    One text, or a pair of texts, of which a class is to be told need seven members: ``name``, ``metric``,
    ``text_columns``, ``content_columns``, ``model_class``, ``labels`` and ``evaluation``.
    """

    name: ClassVar[str]
    metric: ClassVar[str]  # what "best" means, in eval_metrics.json with eval_ before it
    flags: ClassVar[tuple[str, ...]] = ()  # of run.py: those that no other kind of task understands
    targets: ClassVar[tuple[str, ...]] = ("labels",)  # feature columns with one number a row
    unusable: ClassVar[str] = ""  # why ``is_usable`` leaves an example out
    unlearnable: ClassVar[str] = ""  # why ``is_learnable`` does
    has_error_rules: ClassVar[bool] = False
    pooling: ClassVar[tuple[str, ...]] = ("cls", "mean")  # ways to one vector per example, the default first

    # --- rows ---

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that a model reads, and that a tokenizer is trained on."""
        raise NotImplementedError

    @property
    def content_columns(self) -> tuple[str, ...]:
        """The columns that make up an example: ids and fingerprints are taken over them."""
        raise NotImplementedError

    @property
    def perturbed_columns(self) -> tuple[str, ...]:
        """The columns whose words may be changed a little without changing what is asked for."""
        return self.text_columns

    def settings(self) -> dict[str, Any]:
        """What ``get_task`` needs to make this very task again; recorded with every artifact."""
        return {"name": self.name}

    def sought(self, columns: Sequence[str]) -> Sequence[str]:
        """Names that a column may have in another case too, where none of ``columns`` has them as they are."""
        return self.content_columns

    def for_columns(self, columns: Sequence[str], source: str) -> Task:
        """This task with its columns named, where they were to be guessed from those that there are."""
        return self

    def normalize(self, data: datasets.Dataset, source: str) -> datasets.Dataset:
        """Bring rows of any known layout into one; see ``splits.load_split``."""
        absent = [column for column in self.content_columns if column not in data.column_names]
        if absent:
            raise UserError(f"{source} has no column {name_a_few(absent)}; there is {', '.join(data.column_names)}")
        return data

    def mend(self, data: datasets.Dataset, source: str) -> tuple[datasets.Dataset, list[dict[str, Any]]]:
        """Normalized ``data`` with what its file has a little wrong put right, and what was changed: one record with
        ``id`` per change. Ids and fingerprints are those of the data as they were."""
        return data, []

    def is_usable(self, data: datasets.Dataset) -> np.ndarray:
        """Which examples can be trained on, (N,) bool."""
        return np.ones(len(data), dtype=bool)

    def check_training_data(self, data: datasets.Dataset, source: str) -> None:
        """Raise UserError where nothing could be learnt from ``data``."""

    def composition(self, data: datasets.Dataset) -> str:
        """What the examples are, in a few words for the start of a training; "" where there is nothing to say."""
        return ""

    def readable(self, data: datasets.Dataset) -> dict[str, list]:
        """The examples as a person reads them: column -> one text (or label) per example."""
        return {column: data[column][:] for column in self.content_columns}

    def brief(self, data: datasets.Dataset) -> dict[str, list]:
        """``readable`` without what is too long to stand beside a cluster; None where there is no answer."""
        return self.readable(data)

    def groups(self, data: datasets.Dataset) -> tuple[str, Sequence[str]]:
        """By what analyses split the examples: the name of the grouping, and each example's group."""
        return "task", [self.name] * len(data)

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

    def labels(self, data: datasets.Dataset) -> list:
        """The class number of each example."""
        raise NotImplementedError

    def features(
        self, data: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int = 512, doc_stride: int = 0,
        ablation: str = "none",
    ) -> datasets.Dataset:
        """What the model reads, in the order of the examples, one or several rows each.

        Columns: the tokenizer's own (input_ids, attention_mask, ...); ``targets``; ``example_index`` into ``data``;
        ``row_index``, the row's number; ``counts``, whether the row says something of its example; ``length``, tokens.

        Here one row per example, which counts: its text, or its pair of texts, and ``labels``. Where it is too long,
        the longer text is cut at its end. ``doc_stride`` and ``ablation`` are for question answering.
        """
        import datasets

        tokenizer.padding_side = "right"
        columns, count = list(self.text_columns), len(data)
        rows: dict[str, list] = {}
        with Progress("tokenising", count) as progress:
            for first in range(0, max(count, 1), TEXTS_AT_ONCE):
                texts = data[first : first + TEXTS_AT_ONCE]
                encoded = tokenizer(*(texts[column] for column in columns), verbose=False)
                for name in tokenizer.model_input_names:
                    if name in encoded:
                        rows.setdefault(name, []).extend(encoded[name])
                progress.advance(len(texts[columns[0]]))
        names = list(rows)
        lengths = np.array([len(tokens) for tokens in rows["input_ids"]])
        long = np.flatnonzero(lengths > max_length)
        if len(long):
            logger.warning(f"{len(long):,} of {len(data):,} texts are longer than {max_length} tokens (up to "
                           f"{lengths.max():,}) and were cut; --max_length takes more if the model does")
            cut = tokenizer(*([data[column][row] for row in long.tolist()] for column in columns),
                            truncation="longest_first", max_length=max_length)
            for name in names:
                for place, row in enumerate(long):
                    rows[name][row] = cut[name][place]
        small = datasets.List(datasets.Value("int8"))
        integers = datasets.List(datasets.Value("int32"))
        schema = {name: small if name == "attention_mask" else integers for name in names}
        numbers = {"example_index": range(count), "row_index": range(count), "labels": self.labels(data),
                   "length": np.minimum(lengths, max_length).tolist()}
        return datasets.Dataset.from_dict(
            {**rows, **{name: list(values) for name, values in numbers.items()}, "counts": [True] * count},
            features=datasets.Features(
                {**schema, **dict.fromkeys(numbers, datasets.Value("int64")), "counts": datasets.Value("bool")}
            ),
        )

    def is_learnable(self, features: datasets.Dataset) -> np.ndarray:
        """Whether a row's labels say what the example says, (rows,) bool; the example of another is not trained on."""
        return np.ones(len(features), dtype=bool)

    def row_predictions(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What evaluation keeps of a batch, (B, K): its size must not depend on the sequence length.

        Here the logits, float32.
        """
        return outputs.logits.float()

    def evaluation(self, data: datasets.Dataset, features: datasets.Dataset) -> Evaluation:
        raise NotImplementedError

    def embedding_rows(
        self, data: datasets.Dataset, features: datasets.Dataset, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[datasets.Dataset, np.ndarray, np.ndarray]:
        """For embeddings: one row of features per example, in example order; the position of its [CLS] token, (N,);
        the first and last position of its answer, (N, 2), -1 where there is none."""
        cls = tokenizer.cls_token_id
        places = [tokens.index(cls) if cls in tokens else -1 for tokens in features["input_ids"][:]]
        return features, np.array(places, dtype=np.int64), np.full((len(features), 2), -1)
