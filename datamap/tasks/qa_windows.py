"""Questions and contexts as the tokens of overlapping windows, in flat arrays.

Many questions share a context. Each text is tokenised once, by itself, and the windows are cut out of its tokens as
the tokenizer's own call on pairs cuts them, which would tokenise the context again for every question.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from datamap.tasks.spans import whole_offsets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = {"input_ids", "token_type_ids", "attention_mask"}  # what a model may read of a window
TOKENS_KEPT = 2**21  # of texts already tokenised, 12 bytes each


class Windows(NamedTuple):
    """Of some pairs, in their order: W windows one after the other, which have T tokens."""

    example: np.ndarray  # (W,) the pair's number
    length: np.ndarray  # (W,) tokens
    begin: np.ndarray  # (W,) tokens of the context before the first of this window
    at: np.ndarray  # (W,) place of that in the window
    held: np.ndarray  # (W,) tokens of the context in the window
    columns: dict[str, np.ndarray]  # (T,) int32: the tokenizer's; offset_start, offset_end, of contexts whole_offsets


class TokenisedTexts:
    """Texts as their tokens, without special tokens: (3, n) int32, the ids, first characters and ends. What was seen
    is kept, up to ``TOKENS_KEPT``. whole: with ``whole_offsets``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, whole: bool):
        self.tokenizer, self.whole = tokenizer, whole
        self._known: dict[str, np.ndarray] = {}
        self._kept = 0

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._kept > TOKENS_KEPT:
            self._known, self._kept = {}, 0
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            encoded = self.tokenizer(new, add_special_tokens=False, return_offsets_mapping=True,
                                     return_attention_mask=False, return_token_type_ids=False, verbose=False)
            columns = zip(new, encoded["input_ids"], encoded["offset_mapping"], encoded.encodings, strict=True)
            for text, ids, pairs, encoding in columns:
                offsets = _offsets(pairs)
                if self.whole:
                    offsets = whole_offsets(text, offsets, partial(getattr, encoding, "tokens"))
                self._known[text] = np.array([ids, offsets[:, 0], offsets[:, 1]], dtype=np.int32)
                self._kept += len(ids)
        return [self._known[text] for text in texts]


def _offsets(pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(pairs), np.int32, 2 * len(pairs)).reshape(-1, 2)


class _Frame(NamedTuple):
    """What a tokenizer puts before, between and behind a question and a context."""

    ids: list[list[int]]
    types: list[list[int]]  # token_type_ids of these
    text_types: list[int]  # of question and context


def windows_of(
    questions: Sequence[str], contexts: Sequence[str], known: tuple[TokenisedTexts, TokenisedTexts], max_length: int,
    doc_stride: int,
) -> Windows:
    """Windows of at most ``max_length`` tokens that share ``doc_stride`` tokens of their context.

    known: the tokens of questions and of contexts. The result is that of ``by_own_call``. That is asked where the
    tokenizer makes anything else of a pair than its texts' own tokens in a frame, or a question leaves no room; and
    where windows share nothing, as their first token then has other offsets than within the text with some byte-level
    tokenizers.
    """
    tokenizer, texts = known[0].tokenizer, (known[0](questions), known[1](contexts))
    both = (row for row, tokens in enumerate(zip(*texts, strict=True)) if all(each.size for each in tokens))
    if doc_stride and (probe := next(both, None)) is not None:
        frame = _frame(tokenizer, questions[probe], contexts[probe])
        longest = max_length - doc_stride - (sum(map(len, frame.ids)) if frame else 0)
        if frame and all(question.shape[1] < longest for question in texts[0]):
            return _cut_out(frame, *texts, max_length, doc_stride, "token_type_ids" in tokenizer.model_input_names)
    return by_own_call(questions, contexts, tokenizer, max_length, doc_stride)


def _frame(tokenizer: PreTrainedTokenizerBase, question: str, context: str) -> _Frame | None:
    """As learnt from one pair of texts that have tokens; None where the pair is not their own tokens in a frame."""
    pair = tokenizer([question], [context], return_offsets_mapping=True, return_token_type_ids=True, verbose=False)
    alone = tokenizer([question, context], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    sides, ids, types, offsets = pair.sequence_ids(0), *(pair[name][0] for name in (
        "input_ids", "token_type_ids", "offset_mapping"))
    if not {0, 1} <= set(sides) or not set(tokenizer.model_input_names) <= NAMES:
        return None
    first = [sides.index(0), sides.index(1)]
    end = [begin + len(tokens) for begin, tokens in zip(first, alone["input_ids"], strict=True)]
    gaps = [slice(0, first[0]), slice(end[0], first[1]), slice(end[1], None)]
    around = [[(None, token, (0, 0)) for token in ids[gap]] for gap in gaps]
    own = [[(side, *token) for token in zip(alone["input_ids"][side], alone["offset_mapping"][side], strict=True)]
           for side in (0, 1)]
    framed = [*around[0], *own[0], *around[1], *own[1], *around[2]]
    if (list(zip(sides, ids, offsets, strict=True)) != framed
            or any(len(set(types[first[side] : end[side]])) > 1 for side in (0, 1))
            or tokenizer.num_special_tokens_to_add(pair=True) != sum(map(len, around))):
        return None
    return _Frame([ids[gap] for gap in gaps], [types[gap] for gap in gaps], [types[begin] for begin in first])


def _cut_out(
    frame: _Frame, questions: list[np.ndarray], contexts: list[np.ndarray], max_length: int, doc_stride: int,
    with_types: bool,
) -> Windows:
    """Each window is five stretches of one long row of tokens: the frame's three, all questions, all contexts."""
    around = [np.array([ids, [0] * len(ids), [0] * len(ids)], dtype=np.int32) for ids in frame.ids]
    pieces = [*around, *questions, *contexts]
    size = np.array([piece.shape[1] for piece in pieces])
    first = np.cumsum(size) - size
    of_question, of_context = slice(3, 3 + len(questions)), slice(3 + len(questions), None)
    room = max_length - size[:3].sum() - size[of_question]  # for the context, in a window
    count = 1 + np.maximum(0, -((room - size[of_context]) // (room - doc_stride)))  # divided up
    example = np.repeat(np.arange(len(questions)), count)
    number = np.arange(len(example)) - np.repeat(np.cumsum(count) - count, count)
    begin = number * (room - doc_stride)[example]
    held = np.minimum(room[example], size[of_context][example] - begin)
    stretches = np.empty((2, len(example), 5), dtype=np.int64)  # first and size
    stretches[:, :, 0::2] = np.stack([first[:3], size[:3]])[:, None]
    stretches[:, :, 1] = first[of_question][example], size[of_question][example]
    stretches[:, :, 3] = first[of_context][example] + begin, held
    firsts, sizes = stretches.reshape(2, -1)
    taken = np.arange(sizes.sum()) + np.repeat(firsts - (np.cumsum(sizes) - sizes), sizes)
    ids, starts, ends = np.concatenate(pieces, axis=1)
    columns = {"input_ids": ids[taken], "offset_start": starts[taken], "offset_end": ends[taken]}
    if with_types:
        of_texts = np.repeat(frame.text_types, [size[of_question].sum(), size[of_context].sum()])
        columns["token_type_ids"] = np.array([*chain(*frame.types), *of_texts], dtype=np.int32)[taken]
    return Windows(example, stretches[1].sum(axis=1), begin, stretches[1, :, :3].sum(axis=1), held, columns)


def by_own_call(
    questions: Sequence[str], contexts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int,
    doc_stride: int,
) -> Windows:
    """The windows that the tokenizer makes of pairs: right for every fast tokenizer, and slower."""
    encoded = tokenizer(list(questions), list(contexts), truncation="only_second", max_length=max_length,
                        stride=doc_stride, return_overflowing_tokens=True, return_offsets_mapping=True)
    example = np.array(encoded["overflow_to_sample_mapping"], dtype=np.int64)
    names = [name for name in tokenizer.model_input_names if name in encoded and name != "attention_mask"]
    columns = {name: np.fromiter(chain.from_iterable(encoded[name]), np.int32) for name in names}
    sides = [encoded.sequence_ids(row) for row in range(len(example))]
    at = np.array([row.index(1) if 1 in row else 0 for row in sides], dtype=np.int64)
    held = np.array([row.count(1) for row in sides], dtype=np.int64)
    offsets = [_offsets(pairs) for pairs in encoded["offset_mapping"]]
    begin = np.zeros(len(example), dtype=np.int64)
    for pair, context in enumerate(contexts):
        rows = np.flatnonzero(example == pair).tolist()
        begin[rows] = np.cumsum(held[rows] - doc_stride) - (held[rows] - doc_stride)
        new = [(row, range(at[row] + (doc_stride if number else 0), at[row] + held[row]))
               for number, row in enumerate(rows)]

        def tokens(new: list = new) -> list[str]:
            return [encoded.encodings[row].tokens[place] for row, places in new for place in places]

        spans = whole_offsets(context, np.concatenate([offsets[row][places] for row, places in new]), tokens)
        for row in rows:
            offsets[row][at[row] : at[row] + held[row]] = spans[begin[row] : begin[row] + held[row]]
    columns["offset_start"], columns["offset_end"] = np.concatenate(offsets).T
    length = np.array([len(tokens) for tokens in encoded["input_ids"]], dtype=np.int64)
    return Windows(example, length, begin, at, held, columns)
