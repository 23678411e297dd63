"""Extractive QA as tokens: answers of any known layout into one, contexts into overlapping windows."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.errors import UserError
from datamap.core.files import parsed_json
from datamap.core.progress import Progress
from datamap.tasks.qa_windows import TokenisedTexts, Windows, windows_of
from datamap.tasks.spans import reads_as, visible

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ABLATIONS = ("none", "q_only", "p_only")
P_ONLY_QUESTION = "Find the answer in the passage."

# What a token is to the answer (feature column ``token_roles``).
PADDING, OTHER, CONTEXT, NO_ANSWER = 0, 1, 2, 3  # OTHER: question and separators. NO_ANSWER: the [CLS] position

EXAMPLES_AT_ONCE = 500
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
    import pyarrow as pa
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
    numbers |= dict.fromkeys(["counts", "cut_answer"], "bool") | {"row_index": "int64"}
    schema = {name: datasets.List(datasets.Value(kind)) for name, kind in lists.items()}
    features = datasets.Features(schema | {name: datasets.Value(kind) for name, kind in numbers.items()})
    known = TokenisedTexts(tokenizer, whole=False), TokenisedTexts(tokenizer, whole=True)
    examples, tables, rows, cut = data.select_columns(["question", "context", "answers"]), [], 0, 0
    with Progress("tokenising", len(data)) as progress:
        for first in range(0, len(data), EXAMPLES_AT_ONCE):
            batch = examples[first : first + EXAMPLES_AT_ONCE]
            questions = [question.lstrip() for question in batch["question"]]
            if ablation == "p_only":
                questions = [P_ONLY_QUESTION] * len(questions)
            questions, shortened = _cut_questions(questions, known[0], question_limit)
            windows = windows_of(questions, batch["context"], known, max_length, doc_stride)
            columns = _columns(windows, batch["context"], batch["answers"], tokenizer.cls_token_id, ablation)
            columns["example_index"] = windows.example + first
            columns["row_index"] = np.arange(rows, rows := rows + len(windows.example))
            tables.append(_table(columns, windows.length, features.arrow_schema))
            cut += shortened
            progress.advance(len(questions))
    if cut:
        logger.warning(f"{cut:,} questions are longer than {question_limit} tokens and were cut to that")
    table = pa.concat_tables(tables or [features.arrow_schema.empty_table()])
    # A fingerprint of the rows would take reading them all; nobody asks for it.
    return datasets.Dataset(table, datasets.DatasetInfo(features=features), fingerprint=generate_random_fingerprint())


def _cut_questions(questions: list[str], known: TokenisedTexts, limit: int) -> tuple[list[str], int]:
    """Questions of at most ``limit`` tokens, and how many of them were longer."""
    tokens = known(questions)
    ends = [int(each[2, limit - 1]) if each.shape[1] > limit else None for each in tokens]
    shortened = [question[:end] for question, end in zip(questions, ends, strict=True)]
    return shortened, len(ends) - ends.count(None)


def _columns(
    windows: Windows, contexts: list[str], answers: list[dict[str, list]], cls: int | None, ablation: str,
) -> dict[str, np.ndarray]:
    """Of windows and their tokens, all but the numbers of example and row."""
    example, length, begin, at, held, columns = windows
    if not length.all():
        raise UserError("an example has neither question nor context, and the tokenizer adds no tokens of its own; "
                        "leave it out")
    first = np.cumsum(length) - length  # of a window, in the tokens of all
    place = np.arange(length.sum()) - np.repeat(first + at, length)  # of a token, in the window's part of the context
    inside = (place >= 0) & (place < np.repeat(held, length))
    marked = np.append(np.flatnonzero(columns["input_ids"] == (-1 if cls is None else cls)), -1)
    no_answer = marked[np.searchsorted(marked[:-1], first)] - first
    no_answer[(no_answer < 0) | (no_answer >= length)] = 0
    roles = np.where(inside, np.int8(CONTEXT), np.int8(OTHER))
    roles[first + no_answer] = NO_ANSWER

    span = np.array([_visible_span(each) for each in answers], dtype=np.int64).reshape(-1, 2)
    low, high = np.repeat(span[example], length, axis=0).T
    tokens = np.flatnonzero(inside & (columns["offset_end"] > low) & (columns["offset_start"] < high))
    owner = np.repeat(np.arange(len(length)), length)[tokens]
    # The first and last of an example's tokens that overlap its answer: its windows are in the order of the context.
    overlap = [np.searchsorted(example[owner], np.arange(len(contexts)), side) for side in ("left", "right")]
    found = overlap[0] < overlap[1]
    ends = np.stack([overlap[0][found], overlap[1][found] - 1])
    labelled = np.full((2, len(contexts)), -1)
    labelled[:, found] = (place[tokens] + begin[owner])[ends]
    answered = np.array([bool(each["text"]) for each in answers], dtype=bool)
    reads = ~answered
    characters = columns["offset_start"][tokens[ends[0]]], columns["offset_end"][tokens[ends[1]]]
    for row, low, high in zip(np.flatnonzero(found).tolist(), *(each.tolist() for each in characters), strict=True):
        reads[row] = reads_as(contexts[row][low:high], answers[row]["text"][0])
    start, end = labelled[:, example]
    holds = (begin <= start) & (end < begin + held)
    return columns | {
        "attention_mask": (~inside if ablation == "q_only" else np.ones(len(inside))).astype(np.int8),
        "token_roles": roles, "length": length, "cut_answer": ~reads[example],
        "start_positions": np.where(holds, at + start - begin, no_answer),
        "end_positions": np.where(holds, at + end - begin, no_answer),
        "counts": reads[example] & (holds | ~answered[example]),
    }


def _visible_span(answers: dict[str, list]) -> tuple[int, int]:
    """First character and end of the first answer in the context; the same twice where nothing is to be seen."""
    first, end = visible(answers["text"][0]) if answers["text"] else (0, 0)
    return (answers["answer_start"][0] + first, answers["answer_start"][0] + end) if first < end else (0, 0)


def _table(columns: dict[str, np.ndarray], length: np.ndarray, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    bounds = pa.array(np.append(0, np.cumsum(length)), pa.int32())
    arrays = [pa.ListArray.from_arrays(bounds, pa.array(columns[field.name]), type=field.type)
              if pa.types.is_list(field.type) else pa.array(columns[field.name], field.type) for field in schema]
    return pa.table(arrays, schema=schema)


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
