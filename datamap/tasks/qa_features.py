"""Extractive QA as tokens: answers of any known layout into one, contexts into overlapping windows."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.errors import UserError
from datamap.core.files import parsed_json
from datamap.core.progress import Progress
from datamap.tasks.spans import answer_tokens, whole_offsets

if TYPE_CHECKING:
    import datasets
    from transformers import BatchEncoding, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ABLATIONS = ("none", "q_only", "p_only")
P_ONLY_QUESTION = "Find the answer in the passage."

# What a token is to the answer (feature column ``token_roles``).
PADDING, OTHER, CONTEXT, NO_ANSWER = 0, 1, 2, 3  # OTHER: question and separators. NO_ANSWER: the [CLS] position

LONGEST_TEXT = 2**31  # characters; what lies beyond fits no column
MIN_ADVANCE = 16  # consecutive windows advance by at least this many context tokens


def answer_lists(answer: Any, start: Any, where: str) -> dict[str, list]:
    """One example's answers as two lists, from a mapping of lists or scalars, a list of mappings, or text, start."""
    if isinstance(answer, str) and answer.lstrip().startswith(("{", "[")) and start is None:
        try:
            answer = parsed_json(answer, where)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not JSON ({error.msg})") from error
    if answer is None or answer == "":
        return {"text": [], "answer_start": []}
    if isinstance(answer, str | int | float):
        answer = {"text": answer, "answer_start": start}
    if isinstance(answer, list):
        if not all(isinstance(item, Mapping) and "text" in item for item in answer):
            raise UserError(f"{where} holds {answer!r:.60}; expected objects with text and answer_start")
        answer = {key: [item.get(key) for item in answer] for key in ("text", "answer_start")}
    if answer and "text" not in answer:
        raise UserError(f"{where} has {', '.join(map(str, answer))}; expected text and answer_start")
    texts, starts = _listed(answer.get("text")), _listed(answer.get("answer_start"))
    texts = [str(text) if isinstance(text, int | float) else text for text in texts]  # a file may hold 42 for "42"
    if odd := [text for text in texts if text is not None and not isinstance(text, str)]:
        raise UserError(f"{where} holds the answer {odd[0]!r:.60}; expected a text")
    if len(texts) != len(starts):
        raise UserError(f"{where}: {len(texts)} answer texts need as many answer_start offsets, found {starts!r:.60}")
    pairs = [(text, _offset(value, where)) for text, value in zip(texts, starts, strict=True) if text]
    return {"text": [text for text, _ in pairs], "answer_start": [offset for _, offset in pairs]}


def _listed(value: Any) -> list:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _offset(value: Any, where: str) -> int:
    """A character's place: 9, also as 9.0, "9" or "9.0", as tables and spreadsheets write it beside a gap."""
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            if (place := float(value)).is_integer() and abs(place) < LONGEST_TEXT:
                return int(place)
    except (ValueError, OverflowError):  # a word, or an integer of hundreds of digits
        pass
    raise UserError(f"{where}: answer_start is {value!r:.40}; expected the place of the answer's first character in "
                    "the context, a whole number from 0")


def qa_features(
    data: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, doc_stride: int, ablation: str,
) -> datasets.Dataset:
    """The windows of ``QuestionAnswering.features`` (qa.py), whose docstring tells the columns."""
    import datasets
    from datasets.fingerprint import generate_random_fingerprint

    if not tokenizer.is_fast:
        raise UserError(f"{type(tokenizer).__name__} gives no character offsets; question answering needs them")
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if doc_stride > max_length // 2:
        logger.warning(f"--doc_stride {doc_stride} is more than half of --max_length; {max_length // 2} is used")
        doc_stride = max_length // 2
    question_limit = max_length - doc_stride - MIN_ADVANCE - tokenizer.num_special_tokens_to_add(pair=True)
    if question_limit < 8:
        raise UserError(f"--max_length {max_length} leaves no room for a question beside the context; give more")
    lists = dict.fromkeys([*tokenizer.model_input_names, "offset_start", "offset_end"], "int32")
    lists |= dict.fromkeys(["attention_mask", "token_roles"], "int8")
    numbers = dict.fromkeys(["example_index", "start_positions", "end_positions", "length"], "int64")
    numbers |= dict.fromkeys(["counts", "cut_answer", "question_cut"], "bool")
    schema = {name: datasets.List(datasets.Value(kind)) for name, kind in lists.items()}

    def counted(examples: dict[str, list], indices: list[int]) -> dict[str, list]:
        rows = _windows(examples, indices, tokenizer=tokenizer, max_length=max_length, doc_stride=doc_stride,
                        question_limit=question_limit, ablation=ablation)
        progress.advance(len(indices))
        return rows

    with Progress("tokenising", len(data), bar=None) as progress:
        windows = data.select_columns(["question", "context", "answers"]).map(
            counted,
            with_indices=True,
            batched=True,
            batch_size=500,
            remove_columns=["question", "context", "answers"],
            # No cache: the library knows functions by name and would serve the windows of older code.
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint=generate_random_fingerprint(),  # what it would make of the function is read by nobody
            features=datasets.Features(schema | {name: datasets.Value(kind) for name, kind in numbers.items()}),
            desc="tokenising",
        )
    cut = len(set(np.asarray(windows["example_index"][:])[np.asarray(windows["question_cut"][:], dtype=bool)]))
    if cut:
        logger.warning(f"{cut:,} questions are longer than {question_limit} tokens and were cut to that")
    return windows.remove_columns("question_cut").add_column("row_index", list(range(len(windows))))


def _windows(
    examples: dict[str, list], indices: list[int], *, tokenizer: PreTrainedTokenizerBase, max_length: int,
    doc_stride: int, question_limit: int, ablation: str,
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
    rows = defaultdict(list, {name: encoded[name] for name in tokenizer.model_input_names if name in encoded})
    rows["attention_mask"] = []
    inside = [np.array([side == 1 for side in encoded.sequence_ids(row)]) for row in range(len(encoded["input_ids"]))]
    offsets = [np.array(pairs, dtype=np.int64) for pairs in encoded["offset_mapping"]]
    windows = np.split(np.arange(len(inside)), np.flatnonzero(np.diff(encoded["overflow_to_sample_mapping"])) + 1)
    for sample, (context, answers) in enumerate(zip(examples["context"], examples["answers"], strict=True)):
        places = {window: np.flatnonzero(inside[window]) for window in windows[sample].tolist()}
        spans = _offsets_of_context(context, offsets, places, doc_stride, encoded)
        first, last, reads = -1, -1, True
        if answers["text"]:
            first, last, reads = answer_tokens(context, spans, answers["text"][0], answers["answer_start"][0])
        begin = 0  # of the window, in the tokens of the context
        for window, among in places.items():
            tokens, own = encoded["input_ids"][window], offsets[window]
            own[among] = spans[begin : begin + len(among)]
            no_answer = tokens.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in tokens else 0
            roles = np.where(inside[window], CONTEXT, OTHER).astype(np.int8)
            roles[no_answer] = NO_ANSWER
            holds = begin <= first and last < begin + len(among)
            row = {
                "attention_mask": (~inside[window] if ablation == "q_only" else np.ones(len(tokens))).astype(np.int8),
                "token_roles": roles, "offset_start": own[:, 0], "offset_end": own[:, 1],
                "example_index": indices[sample],
                "start_positions": int(among[first - begin]) if holds else no_answer,
                "end_positions": int(among[last - begin]) if holds else no_answer,
                "counts": reads and (holds or not answers["text"]), "cut_answer": not reads,
                "length": len(tokens), "question_cut": cut[sample],
            }
            for name, value in row.items():
                rows[name].append(value)
            begin += len(among) - doc_stride
    return rows


def _offsets_of_context(
    context: str, offsets: list[np.ndarray], places: dict[int, np.ndarray], doc_stride: int, encoded: BatchEncoding
) -> np.ndarray:
    """The ``spans.whole_offsets`` of all tokens of a context, (T, 2).

    offsets: of every window, (L, 2). places: of the windows of this context, in their order, where its tokens are;
    windows share ``doc_stride`` of them.
    """
    new = [(window, among[doc_stride if number else 0 :]) for number, (window, among) in enumerate(places.items())]

    def names() -> list[str]:
        return [encoded.encodings[window].tokens[place] for window, among in new for place in among.tolist()]

    return whole_offsets(context, np.concatenate([offsets[window][among] for window, among in new]), names)


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


def flat(data: datasets.Dataset, column: str) -> np.ndarray:
    """All values of a list column one after the other."""
    return data.data.column(column).combine_chunks().flatten().to_numpy()


def choose_windows(windows: datasets.Dataset, aligned: np.ndarray) -> tuple[datasets.Dataset, np.ndarray]:
    """One window per example, in example order, and whether its labels mark an answer, (N,) bool.

    The first window that holds the answer, else the first. ``aligned`` (N,): whether the answer stands at its offset;
    where it does not, there is no span to look for.
    """
    example = np.asarray(windows["example_index"][:])
    holds = (np.asarray(windows["start_positions"][:]) != cls_positions(windows)) & aligned[example]
    # Example by example, windows with the answer first, each kind in the order of the context.
    order = np.lexsort((~holds, example))
    first = order[np.unique(example[order], return_index=True)[1]]
    if len(first) != len(aligned):
        raise ValueError(f"{len(aligned)} examples, but windows of {len(first)}")
    return windows.select(first), holds[first]


def cls_positions(windows: datasets.Dataset) -> np.ndarray:
    return np.array([roles.index(NO_ANSWER) for roles in windows["token_roles"][:]], dtype=np.int64)
