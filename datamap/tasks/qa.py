"""Extractive question answering: the task, and how its answers are scored."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.clusters import Clusters
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import nulls_for_nan, write_csv
from datamap.core.flags import DEFAULT_SEED
from datamap.core.splits import with_column
from datamap.core.tables import further_columns, safe_to_open
from datamap.tasks import qa_metrics
from datamap.tasks.base import Task
from datamap.tasks.error_counts import tidy_error_counts
from datamap.tasks.evaluation import Evaluation
from datamap.tasks.missing import task_of_columns
from datamap.tasks.qa_features import (
    CONTEXT,
    NO_ANSWER,
    answer_lists,
    choose_windows,
    cls_positions,
    flat,
    qa_features,
)
from datamap.tasks.span_errors import NONE, SPAN_ERRORS, span_errors
from datamap.tasks.spans import place_of, seen, stands_at

if TYPE_CHECKING:
    import datasets
    import torch
    from transformers import EvalPrediction, PreTrainedTokenizerBase


ANSWER_COLUMNS = ("answers", "answer", "answer_text")  # the first that there is

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Task):
    """Extractive QA (SQuAD 1.1 and 2.0, emrQA): columns id, question, context, answers.

    ``answers`` is ``{"text": [...], "answer_start": [...]}``; empty lists mean unanswerable. Training uses the first
    gold answer, scoring all of them. A long context becomes several windows that overlap by ``doc_stride`` tokens.
    max_answer_length: longest predicted answer in tokens, None for no limit. spans: an answer that does not stand at
    its answer_start is looked for around it (``nearest``), or left as it is, not to be trained on (``strict``).
    """

    max_answer_length: int | None = None
    spans: str = "nearest"

    name = "qa"
    flags = ("doc_stride", "empty_windows", "max_answer_length", "spans", "ablations", "eval_ablations",
             "confidence_type")
    content_columns = ("question", "context", "answers")
    text_columns = ("question", "context")
    perturbed_columns = ("question",)  # the answers stand in the context
    metric = "f1"
    targets = ("start_positions", "end_positions")
    unusable = "answer not at its answer_start"
    unlearnable = "answer is not made of whole tokens"
    has_error_rules = True
    pooling = ("cls_and_answer_mean",)

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, **({"spans": self.spans} if self.spans != "nearest" else {})}

    @property
    def model_class(self) -> Any:
        from transformers import AutoModelForQuestionAnswering

        return AutoModelForQuestionAnswering

    def sought(self, columns: Sequence[str]) -> Sequence[str]:
        answers = () if set(ANSWER_COLUMNS) & set(columns) else ANSWER_COLUMNS
        return "question", "context", *answers, "answer_start"

    def normalize(self, data: datasets.Dataset, source: str) -> datasets.Dataset:
        import datasets

        columns = set(data.column_names)
        missing = {"question", "context"} - columns
        answer_column = next((name for name in ANSWER_COLUMNS if name in columns), None)
        if missing or answer_column is None:
            wanted = sorted(missing) + ([] if answer_column else ["answers"])
            raise UserError(
                f"{source} has no column {name_a_few(wanted)}; question answering needs question, context, answers; "
                f"there is {', '.join(data.column_names)} (--task nli or classification for labelled texts)"
                f"{task_of_columns(data.column_names)}"
            )
        for column in self.text_columns:
            no_text = [(row, text) for row, text in enumerate(data[column][:], 1) if not isinstance(text, str)]
            if no_text:
                row, found = no_text[0]
                holds = "no text" if found is None else f"{found!r:.40}, which is no text"
                raise UserError(f"{source}: column {column} of row {row} holds {holds}")
        raw = data[answer_column][:]
        starts = data["answer_start"][:] if "answer_start" in columns else [None] * len(raw)
        answers = [
            answer_lists(answer, start, f"{source}: column {answer_column} of row {row}")
            for row, (answer, start) in enumerate(zip(raw, starts, strict=True), 1)
        ]
        if not any(answer["text"] for answer in answers):
            raise UserError(f"{source}: all answers are empty; at least one example needs an answer")
        data = data.remove_columns(sorted({"answers", answer_column, "answer_start"} & columns))
        features = datasets.Features(
            {"text": datasets.List(datasets.Value("string")), "answer_start": datasets.List(datasets.Value("int64"))}
        )
        rest = [column for column in data.column_names if column not in ("id", "question", "context")]
        return with_column(data, "answers", answers, features).select_columns(
            [*(["id"] if "id" in columns else []), "question", "context", "answers", *rest]
        )

    def mend(self, data: datasets.Dataset, source: str) -> tuple[datasets.Dataset, list[dict[str, Any]]]:
        """Answers that do not stand at their answer_start where they do, as ``spans.place_of`` finds them, with the
        text that stands there; the changes have ``id, answer_start, moved_start, answer, moved_answer``."""
        if self.spans == "strict":
            return data, []
        answers, changes = data["answers"][:], []
        for example, context, answer in zip(data["id"][:], data["context"][:], answers, strict=True):
            for number, (text, start) in enumerate(zip(answer["text"], answer["answer_start"], strict=True)):
                first, end = place_of(context, text, start) or (start, start + len(text))
                if (first, end) != (start, start + len(text)):
                    answer["text"][number], answer["answer_start"][number] = context[first:end], first
                    changes.append({"id": example, "answer_start": start, "moved_start": first, "answer": text,
                                    "moved_answer": context[first:end]})
        if not changes:
            return data, []
        moved = list(dict.fromkeys(change["id"] for change in changes))
        logger.warning(f"{source}: answers of {len(moved):,} of {len(data):,} examples ({name_a_few(moved)}) do not "
                       "stand at their answer_start, or have characters at their ends that are not to be seen; they "
                       "are taken where they stand nearest (--spans strict leaves them as they are)")
        columns = data.column_names
        mended = with_column(data.remove_columns("answers"), "answers", answers, data.features["answers"])
        return mended.select_columns(columns), changes

    def is_usable(self, data: datasets.Dataset) -> np.ndarray:
        """Whether the first gold answer of each example stands at its offset (true where there is no answer)."""
        return np.array(
            [
                not answer["text"] or stands_at(context, answer["text"][0], answer["answer_start"][0])
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
        self, data: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int = 512, doc_stride: int = 128,
        ablation: str = "none",
    ) -> datasets.Dataset:
        """Windows. Beside the columns of ``Task.features``: ``start_positions``, ``end_positions`` of the first gold
        answer, the [CLS] position where the window does not hold it; ``token_roles``; ``offset_start``, ``offset_end``
        (characters of the context). ``counts``: the window holds the answer or the example is unanswerable;
        ``cut_answer``: the tokens that overlap the answer are another text, as where it ends within a token.

        ``doc_stride`` is the overlap of consecutive windows in tokens, at most ``max_length // 2``. ``q_only`` hides
        the context from attention, its tokens stay candidates; ``p_only`` asks the same question of every passage.
        """
        return qa_features(data, tokenizer, max_length, doc_stride, ablation)

    def is_learnable(self, features: datasets.Dataset) -> np.ndarray:
        return ~np.asarray(features["cut_answer"][:], dtype=bool)

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


class QAEvaluation(Evaluation):
    """Exact match and F1 in percent, as the official SQuAD scripts have them.

    The rules of SQuAD 2.0 apply exactly when some example of the set is unanswerable (``version_2``); then the
    metrics hold those of ``threshold_scores`` too, with halves that share no cluster. After a call ``predictions``
    holds the answers, without blanks and what is not to be seen at their ends. Questions over one context go together.
    """

    rate = "exact_match"

    def __init__(self, data: datasets.Dataset, features: datasets.Dataset):
        super().__init__(data, features.remove_columns(["offset_start", "offset_end"]))
        self._example_index = np.asarray(features["example_index"][:])
        self._first_token = np.concatenate([[0], np.cumsum(features["length"][:])[:-1]]).astype(np.int64)
        self._offsets = np.stack([flat(features, "offset_start"), flat(features, "offset_end")], axis=1)
        self._contexts = data["context"][:]
        self.clusters = Clusters(self._contexts)
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
        self.predictions = [seen(text) for text in answers.text]
        self.spans, self.no_answer = [seen(text) for text in answers.span], answers.no_answer
        self.scores = qa_metrics.score_predictions(self.predictions, self._golds, self.version_2)
        summary = qa_metrics.squad_summary(self.scores)
        return summary | self._at_thresholds() if self.version_2 else summary

    def _at_thresholds(self) -> dict[str, float]:
        answered, unanswered = (qa_metrics.score_predictions(texts, self._golds, True)
                                for texts in (self.spans, [""] * len(self.spans)))
        clusters = self.clusters or Clusters(np.arange(len(self.spans)))
        return qa_metrics.threshold_scores(answered, unanswered, self.no_answer, clusters.halves(DEFAULT_SEED))

    def summary(self, among: np.ndarray) -> dict[str, float]:
        columns = (self.scores.exact_match[among], self.scores.f1[among], self.scores.has_answer[among])
        return qa_metrics.squad_summary(qa_metrics.Scores(*columns, self.version_2))

    def slice_statistics(self, among: np.ndarray) -> dict[str, float]:
        return self.share(self.scores.exact_match, among, 100.0) | {"f1": 100 * float(self.scores.f1[among].mean())}

    def predicted_values(self) -> list[Any]:
        return self.predictions

    def rows(self) -> list[dict[str, Any]]:
        """Adds ``predicted_answer``, ``exact_match`` (0 or 1) and ``f1`` (0..1); under the rules of SQuAD 2.0 also the
        best span, ``span_answer``, and ``no_answer_score`` (logits, above 0: no answer; None: nothing to compare)."""
        rows = [
            {**nulls_for_nan(example), "predicted_answer": answer, "exact_match": int(exact), "f1": float(overlap)}
            for example, answer, exact, overlap in zip(
                self.data, self.predictions, self.scores.exact_match, self.scores.f1, strict=True
            )
        ]
        if self.version_2:
            for row, span, value in zip(rows, self.spans, self.no_answer.tolist(), strict=True):
                row |= {"span_answer": span, "no_answer_score": value if np.isfinite(value) else None}
        return rows

    def write(self, directory: Path, suffix: str, title: str) -> None:
        """``wrong_answers.csv``: the examples with a wrong answer, its kind (``span_error``), and all their columns
        (``data_`` before those whose name is taken). ``error_counts.csv``: of all examples, each kind by question
        type."""
        import pandas as pd

        by, types = QuestionAnswering().groups(self.data)
        errors = span_errors(self._contexts, self.data["answers"][:], self.predictions)
        kinds = pd.Categorical(errors, SPAN_ERRORS)
        counts = tidy_error_counts(pd.DataFrame({by: list(types), "error": kinds}), [by])
        wrong = np.flatnonzero(kinds != NONE).tolist()
        chosen = self.data.select(wrong)
        columns = {
            "id": chosen["id"][:], **QuestionAnswering().readable(chosen),
            "predicted_answer": [self.predictions[row] for row in wrong], "span_error": [errors[row] for row in wrong],
            "f1": self.scores.f1[wrong], by: [types[row] for row in wrong],
        }
        columns |= further_columns(chosen, {"id", *QuestionAnswering.text_columns}, columns)
        write_csv(directory / f"error_counts{suffix}.csv", counts)
        write_csv(directory / f"wrong_answers{suffix}.csv", safe_to_open(pd.DataFrame(columns)))
        of_kind = ", ".join(f"{n:,} {kind}" for kind, n in kinds.value_counts().items() if n and kind != NONE)
        logger.info(f"{len(wrong):,} of {len(errors):,} answers are wrong{f' ({of_kind})' * bool(of_kind)}")
