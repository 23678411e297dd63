"""Questions and contexts as the tokens of overlapping windows, in flat arrays.

Many questions share a context. Each text is tokenised once, by itself, and the windows are cut out of its tokens as
the tokenizer's own call on pairs cuts them; this cost most of the time that the features of question answering took.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from datamap.tasks.spans import whole_offsets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS_KEPT = 2**21  # of texts already tokenised: 25 MB


class Windows(NamedTuple):
    """Of some pairs, in their order: W windows one after the other, which have T tokens."""

    example: np.ndarray  # (W,) the pair's number
    length: np.ndarray  # (W,) tokens
    begin: np.ndarray  # (W,) tokens of the context before the first of this window
    at: np.ndarray  # (W,) place of that in the window
    held: np.ndarray  # (W,) tokens of the context in the window
    columns: dict[str, np.ndarray]  # (T,) int32: the tokenizer's; offset_start, offset_end, of contexts whole_offsets


class Texts:
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
                    offsets = whole_offsets(text, offsets, lambda encoding=encoding: encoding.tokens)
                self._known[text] = np.array([ids, offsets[:, 0], offsets[:, 1]], dtype=np.int32)
                self._kept += len(ids)
        return [self._known[text] for text in texts]


def _offsets(pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(pairs), np.int32, 2 * len(pairs)).reshape(-1, 2)


class _Frame(NamedTuple):
    """What a tokenizer puts around a question and a context: before, between and behind them."""

    ids: list[list[int]]
    types: list[list[int]]  # token_type_ids of the special tokens
    text_types: tuple[int, int]  # of question and context


def _frame(tokenizer: PreTrainedTokenizerBase, question: str, context: str) -> _Frame | None:
    """As learnt from one pair; None where the pair is anything but its texts' own tokens in a frame."""
    pair = tokenizer([question], [context], return_offsets_mapping=True, return_token_type_ids=True, verbose=False)
    alone = tokenizer([question, context], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    sides, ids, types = pair.sequence_ids(0), pair["input_ids"][0], pair["token_type_ids"][0]
    firsts = [sides.index(side) if side in sides else 0 for side in (0, 1)]
    ends = [first + len(tokens) for first, tokens in zip(firsts, alone["input_ids"], strict=True)]
    gaps = [slice(0, firsts[0]), slice(ends[0], firsts[1]), slice(ends[1], len(ids))]
    around = [len(ids[gap]) for gap in gaps]
    as_framed = [[None] * around[0], [0] * len(alone["input_ids"][0]), [None] * around[1],
                 [1] * len(alone["input_ids"][1]), [None] * around[2]]
    offsets = pair["offset_mapping"][0]
    fits = sides == list(chain(*as_framed)) and tokenizer.num_special_tokens_to_add(pair=True) == sum(around)
    for first, end, own, places in zip(firsts, ends, alone["input_ids"], alone["offset_mapping"], strict=True):
        fits = fits and ids[first:end] == own and offsets[first:end] == places and len(set(types[first:end])) == 1
    if not fits or any(place != (0, 0) for gap in gaps for place in offsets[gap]):
        return None
    return _Frame([ids[gap] for gap in gaps], [types[gap] for gap in gaps], (types[firsts[0]], types[firsts[1]]))


def windows_of(
    questions: Sequence[str], contexts: Sequence[str], known: tuple[Texts, Texts], max_length: int, doc_stride: int,
) -> Windows:
    """Windows of at most ``max_length`` tokens that share ``doc_stride`` tokens of their context.

    known: the tokens of questions and of contexts. Equal to ``by_own_call``, which is asked where the tokenizer does
    not put the texts' own tokens together, and where windows share nothing: some of the byte-level tokenizers then
    give a window's first token other offsets than it has within the text.
    """
    tokenizer = known[0].tokenizer
    texts = known[0](questions), known[1](contexts)
    both = (row for row, (one, other) in enumerate(zip(*texts, strict=True)) if one.size and other.size)
    probe = next(both, None)
    frame = None if probe is None or not doc_stride else _frame(tokenizer, questions[probe], contexts[probe])
    names = {"input_ids", "token_type_ids"} & set(tokenizer.model_input_names)
    if frame is None or set(tokenizer.model_input_names) - names > {"attention_mask"}:
        return by_own_call(questions, contexts, tokenizer, max_length, doc_stride)

    # One row of tokens of everything there is, frame, questions, contexts; each window is five stretches of it.
    special = [np.array([ids, [0] * len(ids), [0] * len(ids)], dtype=np.int32) for ids in frame.ids]
    pieces = [*special, *texts[0], *texts[1]]
    sizes = np.array([piece.shape[1] for piece in pieces])
    firsts = np.cumsum(sizes) - sizes
    of_question, of_context = slice(3, 3 + len(questions)), slice(3 + len(questions), None)
    room = max_length - sizes[:3].sum() - sizes[of_question]  # for tokens of the context
    advance = room - doc_stride
    if (advance <= 0).any():
        return by_own_call(questions, contexts, tokenizer, max_length, doc_stride)
    count = 1 + np.maximum(0, -((room - sizes[of_context]) // advance))
    example = np.repeat(np.arange(len(questions)), count)
    begin = (np.arange(len(example)) - np.repeat(np.cumsum(count) - count, count)) * advance[example]
    stretches = np.empty((2, len(example), 5), dtype=np.int64)  # first, size
    stretches[:, :, 0::2] = np.stack([firsts[:3], sizes[:3]])[:, None]
    stretches[:, :, 1] = firsts[of_question][example], sizes[of_question][example]
    held = np.minimum(room[example], sizes[of_context][example] - begin)
    stretches[:, :, 3] = firsts[of_context][example] + begin, held
    first, size = stretches.reshape(2, -1)
    taken = np.arange(size.sum()) + np.repeat(first - (np.cumsum(size) - size), size)
    ids, starts, ends = np.concatenate(pieces, axis=1)
    columns = {"input_ids": ids[taken]}
    if "token_type_ids" in names:
        of_texts = np.repeat(frame.text_types, [sizes[of_question].sum(), sizes[of_context].sum()])
        columns["token_type_ids"] = np.array([*chain(*frame.types), *of_texts], dtype=np.int32)[taken]
    columns |= {"offset_start": starts[taken], "offset_end": ends[taken]}
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
