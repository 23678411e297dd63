"""What a task is: its columns, its features, its predictions and how they are scored.

Adding a task means adding a class here with the attributes and methods of ``QuestionAnswering`` and naming it in
``TASKS``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import qa_metrics
from artifacts import nulls_for_nan
from helpers import UserError, name_a_few

if TYPE_CHECKING:
    import datasets
    import torch
    from transformers import EvalPrediction, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ABLATIONS = ("none", "q_only", "p_only")
P_ONLY_QUESTION = "Find the answer in the passage."

# What a token is to the answer (feature column ``token_roles``).
PADDING, OTHER, CONTEXT, NO_ANSWER = 0, 1, 2, 3  # OTHER: question and separators. NO_ANSWER: the [CLS] position

MIN_ADVANCE = 16  # consecutive windows advance by at least this many context tokens


class QuestionAnswering:
    """Extractive QA (SQuAD 1.1 and 2.0, emrQA): columns id, question, context, answers.

    ``answers`` is ``{"text": [...], "answer_start": [...]}``; empty lists mean unanswerable. Training uses the first
    gold answer, scoring all of them. A long context becomes several windows that overlap by ``doc_stride`` tokens.
    """

    name = "qa"
    content_columns = ("question", "context", "answers")
    text_columns = ("question", "context")
    metric = "f1"  # what "best" means, in eval_metrics.json as eval_f1

    @property
    def model_class(self) -> Any:
        from transformers import AutoModelForQuestionAnswering

        return AutoModelForQuestionAnswering

    # --- rows ---

    def normalize(self, data: datasets.Dataset, source: str) -> datasets.Dataset:
        """Bring the answers of any known layout into one; see ``helpers.load_split``."""
        import datasets

        columns = set(data.column_names)
        missing = {"question", "context"} - columns
        answer_column = next((name for name in ("answers", "answer", "answer_text") if name in columns), None)
        if missing or answer_column is None:
            wanted = sorted(missing) + ([] if answer_column else ["answers"])
            raise UserError(
                f"{source} has no column {name_a_few(wanted)}; question answering needs question, context, answers; "
                f"there is {', '.join(data.column_names)}"
            )
        for column in self.text_columns:
            empty = [row for row, text in enumerate(data[column][:]) if not isinstance(text, str)]
            if empty:
                raise UserError(f"{source}: column {column} of row {empty[0] + 1} holds no text")
        raw = data[answer_column][:]
        starts = data["answer_start"][:] if "answer_start" in columns else [None] * len(raw)
        answers = [
            _answer_lists(answer, start, f"{source}, row {row}")
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

    def is_aligned(self, data: datasets.Dataset) -> np.ndarray:
        """Whether the first gold answer of each example stands at its offset (true where there is no answer); (N,)."""
        return np.array(
            [
                not answer["text"] or context.startswith(answer["text"][0], answer["answer_start"][0])
                for context, answer in zip(data["context"][:], data["answers"][:], strict=True)
            ],
            dtype=bool,
        )

    # --- features ---

    def features(
        self,
        data: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 512,
        doc_stride: int = 128,
        ablation: str = "none",
    ) -> datasets.Dataset:
        """Windows in the order of the examples, one row each.

        Columns: the tokenizer's own (input_ids, attention_mask, ...); ``example_index`` into ``data``; ``row_index``,
        the window's number; ``start_positions``, ``end_positions`` of the first gold answer, the [CLS] position where
        the window does not hold it; ``counts``, whether the window holds the answer or the example is unanswerable;
        ``token_roles``; ``offset_start``, ``offset_end`` (characters of the context); ``length`` in tokens.

        ``doc_stride`` is the overlap of consecutive windows in tokens, at most ``max_length // 2``. ``q_only`` hides
        the context from attention, its tokens stay candidates; ``p_only`` asks the same question of every passage.
        """
        import datasets

        if not tokenizer.is_fast:
            raise UserError(f"{type(tokenizer).__name__} gives no character offsets; question answering needs them")
        tokenizer.padding_side = "right"
        if doc_stride > max_length // 2:
            logger.warning(f"--doc_stride {doc_stride} is more than half of --max_length; {max_length // 2} is used")
            doc_stride = max_length // 2
        question_limit = max_length - doc_stride - MIN_ADVANCE - tokenizer.num_special_tokens_to_add(pair=True)
        if question_limit < 8:
            raise UserError(f"--max_length {max_length} leaves no room for a question beside the context; give more")
        integers = datasets.List(datasets.Value("int32"))
        small = datasets.List(datasets.Value("int8"))
        schema = {name: integers for name in tokenizer.model_input_names if name not in ("attention_mask",)}
        windows = data.select_columns(["question", "context", "answers"]).map(
            _qa_windows,
            with_indices=True,
            batched=True,
            batch_size=500,
            remove_columns=["question", "context", "answers"],
            fn_kwargs={
                "tokenizer": tokenizer,
                "max_length": max_length,
                "doc_stride": doc_stride,
                "question_limit": question_limit,
                "ablation": ablation,
            },
            # No cache: the library knows functions by name and would serve the windows of older code.
            keep_in_memory=True,
            load_from_cache_file=False,
            features=datasets.Features(
                {
                    **schema,
                    "attention_mask": small,
                    "token_roles": small,
                    "offset_start": integers,
                    "offset_end": integers,
                    "example_index": datasets.Value("int64"),
                    "start_positions": datasets.Value("int64"),
                    "end_positions": datasets.Value("int64"),
                    "counts": datasets.Value("bool"),
                    "length": datasets.Value("int64"),
                    "question_cut": datasets.Value("bool"),
                }
            ),
            desc="tokenising",
        )
        cut = len(set(np.asarray(windows["example_index"][:])[np.asarray(windows["question_cut"][:], dtype=bool)]))
        if cut:
            logger.warning(f"{cut:,} questions are longer than {question_limit} tokens and were cut to that")
        return windows.remove_columns("question_cut").add_column("row_index", list(range(len(windows))))

    # --- predictions ---

    def window_predictions(
        self, outputs: Any, batch: Mapping[str, torch.Tensor], max_answer_length: int | None
    ) -> torch.Tensor:
        """What evaluation keeps of a batch of windows: (B, 4) float64 of best span score, its start and end token, and
        the no-answer score. Its size does not depend on the sequence length."""
        import torch

        roles = batch["token_roles"]
        spans = qa_metrics.best_spans(outputs.start_logits, outputs.end_logits, roles == CONTEXT, max_answer_length)
        null = outputs.start_logits.float() + outputs.end_logits.float()
        null = null.masked_fill(roles != NO_ANSWER, -torch.inf).amax(dim=1)
        return torch.stack([spans.score.double(), spans.start.double(), spans.end.double(), null.double()], dim=1)

    def evaluation(self, data: datasets.Dataset, features: datasets.Dataset) -> QAEvaluation:
        return QAEvaluation(data, features)


class QAEvaluation:
    """Scores one evaluation set; a ``compute_metrics`` of the Trainer. After a call ``predictions`` holds the answers.

    The rules of SQuAD 2.0 apply exactly when some example of the set is unanswerable (``version_2``).
    """

    def __init__(self, data: datasets.Dataset, features: datasets.Dataset):
        self.data = data
        self.features = features.remove_columns(["offset_start", "offset_end"])
        # Longest first, so that batches hold windows of one length and memory runs out at once or never.
        self.features = self.features.select(np.argsort(-np.asarray(features["length"][:]), kind="stable"))
        self._example_index = np.asarray(features["example_index"][:])
        self._first_token = np.concatenate([[0], np.cumsum(features["length"][:])[:-1]]).astype(np.int64)
        self._offsets = np.stack([_flat(features, "offset_start"), _flat(features, "offset_end")], axis=1)
        self._contexts = data["context"][:]
        self._golds = [answers["text"] for answers in data["answers"][:]]
        self.version_2 = not all(self._golds)
        self.predictions: list[str] = []

    def __call__(self, output: EvalPrediction) -> dict[str, float]:
        """``output.predictions`` as ``window_predictions`` gives them, ``output.label_ids`` the windows' row_index."""
        windows = np.empty((len(self._example_index), 4))
        windows[np.asarray(output.label_ids)] = output.predictions
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
        """The metrics of a part of the examples; among: (N,) bool."""
        columns = (self.scores.exact_match[among], self.scores.f1[among], self.scores.has_answer[among])
        return qa_metrics.squad_summary(qa_metrics.Scores(*columns, self.version_2))

    def rows(self) -> list[dict[str, Any]]:
        """The examples as loaded, each with ``predicted_answer``, ``exact_match`` (0 or 1) and ``f1`` (0..1)."""
        return [
            {**nulls_for_nan(example), "predicted_answer": answer, "exact_match": int(exact), "f1": float(overlap)}
            for example, answer, exact, overlap in zip(
                self.data, self.predictions, self.scores.exact_match, self.scores.f1, strict=True
            )
        ]


def _answer_lists(answer: Any, start: Any, where: str) -> dict[str, list]:
    """One example's answers as two lists, from a mapping of lists or scalars, a list of mappings, or text, start."""
    if isinstance(answer, str) and answer.lstrip().startswith(("{", "[")) and start is None:
        try:
            answer = json.loads(answer)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: answers is not JSON ({error.msg})") from error
    if answer is None or answer == "":
        return {"text": [], "answer_start": []}
    if isinstance(answer, str | int | float):
        answer = {"text": answer, "answer_start": start}
    if isinstance(answer, list):
        if not all(isinstance(item, Mapping) for item in answer):
            raise UserError(f"{where}: expected answers as objects with text and answer_start, found {answer!r:.60}")
        answer = {key: [item.get(key) for item in answer] for key in ("text", "answer_start")}
    texts, starts = answer.get("text"), answer.get("answer_start")
    texts = [texts] if isinstance(texts, str | int | float) else list(texts if texts is not None else [])
    texts = [str(text) if isinstance(text, int | float) else text for text in texts]  # a file may hold 42 for "42"
    starts = [starts] if isinstance(starts, int) else list(starts if starts is not None else [])
    if len(texts) != len(starts) or not all(isinstance(value, int) for value in starts):
        raise UserError(f"{where}: {len(texts)} answer texts need as many answer_start offsets, found {starts!r:.60}")
    kept = [(text, offset) for text, offset in zip(texts, starts, strict=True) if text]
    return {"text": [text for text, _ in kept], "answer_start": [offset for _, offset in kept]}


def _qa_windows(
    examples: dict[str, list],
    indices: list[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    doc_stride: int,
    question_limit: int,
    ablation: str,
) -> dict[str, list]:
    questions = [question.lstrip() for question in examples["question"]]
    if ablation == "p_only":
        questions = [P_ONLY_QUESTION] * len(questions)
    questions, cut = _cut_questions(questions, tokenizer, question_limit)
    encoded = tokenizer(
        questions,
        examples["context"],
        truncation="only_second",
        max_length=max_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    rows: dict[str, list] = {name: encoded[name] for name in tokenizer.model_input_names if name in encoded}
    made = ("attention_mask", "token_roles", "offset_start", "offset_end", "example_index", "start_positions",
            "end_positions", "counts", "length", "question_cut")  # fmt: skip
    rows.update({name: [] for name in made})
    for window, sample in enumerate(encoded["overflow_to_sample_mapping"]):
        tokens = encoded["input_ids"][window]
        in_context = np.array([sequence == 1 for sequence in encoded.sequence_ids(window)])
        offsets = np.array(encoded["offset_mapping"][window], dtype=np.int32)
        no_answer = tokens.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in tokens else 0
        roles = np.where(in_context, CONTEXT, OTHER).astype(np.int8)
        roles[no_answer] = NO_ANSWER
        start, end, counts = _answer_tokens(examples["answers"][sample], in_context, offsets, no_answer)
        rows["attention_mask"].append((~in_context if ablation == "q_only" else np.ones(len(tokens))).astype(np.int8))
        rows["token_roles"].append(roles)
        rows["offset_start"].append(offsets[:, 0])
        rows["offset_end"].append(offsets[:, 1])
        rows["example_index"].append(indices[sample])
        rows["start_positions"].append(start)
        rows["end_positions"].append(end)
        rows["counts"].append(counts)
        rows["length"].append(len(tokens))
        rows["question_cut"].append(cut[sample])
    return rows


def _cut_questions(
    questions: list[str], tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[list[str], list[bool]]:
    encoded = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    cut = [len(tokens) > limit for tokens in encoded["input_ids"]]
    shortened = [
        question[: offsets[limit - 1][1]] if is_cut else question
        for question, offsets, is_cut in zip(questions, encoded["offset_mapping"], cut, strict=True)
    ]
    return shortened, cut


def _answer_tokens(
    answers: dict[str, list], in_context: np.ndarray, offsets: np.ndarray, no_answer: int
) -> tuple[int, int, bool]:
    """Start and end token of the first gold answer, and whether this window counts for the example."""
    if not answers["text"]:
        return no_answer, no_answer, True
    first = answers["answer_start"][0]
    last = first + len(answers["text"][0])
    tokens = np.flatnonzero(in_context)
    if not len(tokens) or offsets[tokens[0], 0] > first or offsets[tokens[-1], 1] < last:
        return no_answer, no_answer, False
    start = tokens[np.searchsorted(offsets[tokens, 0], first, side="right") - 1]
    end = tokens[np.searchsorted(offsets[tokens, 1], last, side="left")]
    return int(start), int(max(start, end)), True


def _flat(data: datasets.Dataset, column: str) -> np.ndarray:
    """All values of a list column one after the other."""
    return data.data.column(column).combine_chunks().flatten().to_numpy()


TASKS = {task.name: task for task in (QuestionAnswering(),)}


def get_task(name: str) -> QuestionAnswering:
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; there is {', '.join(TASKS)}")
    return TASKS[name]
