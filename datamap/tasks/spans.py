"""Where an answer stands: in its context, also where its file is off by a little, and in the tokens of that.

What is not to be seen at the ends of an answer (blanks; control and format characters such as zero-width spaces, soft
hyphens and direction marks) is no part of it: whether a tokenizer makes tokens of it differs from one to the next.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from datamap.tasks.qa_metrics import normalize_answer

REACH = 20  # characters that an answer may stand away from its answer_start
_TAGS = range(0xE0020, 0xE0080)  # format characters that make the flags of England, Scotland and Wales
_BYTE_LEVEL_BLANK = "Ġ"


# --- in the context ----------------------------------------------------------------------------------------------


def visible(text: str) -> tuple[int, int]:
    """First character and end of ``text`` without what is not to be seen at its ends; (0, 0) where nothing is."""
    first, end = 0, len(text)
    while first < end and _is_unseen(text[first]):
        first += 1
    while end > first and _is_unseen(text[end - 1]):
        end -= 1
    return (first, end) if first < end else (0, 0)


def seen(text: str) -> str:
    """``text`` without what is not to be seen at its ends; as it is where nothing is."""
    first, end = visible(text)
    return text[first:end] or text


def _is_unseen(char: str) -> bool:
    return char.isspace() or (unicodedata.category(char) in ("Cc", "Cf") and ord(char) not in _TAGS)


def stands_at(context: str, text: str, start: int) -> bool:
    return start >= 0 and context.startswith(text, start)  # below 0 Python counts from the end


def place_of(context: str, text: str, start: int) -> tuple[int, int] | None:
    """First character and end of the answer ``text`` in ``context``; None where that is not to be told.

    An answer at its ``start`` stays there, without control and format characters at its ends, which no prediction
    would match. Else it is where the text stands at the start but for blanks and Unicode form (compared as NFKD,
    without blanks and format characters), or the one place within ``REACH`` characters of it where the text itself
    stands, or if it does nowhere, where it stands but for those. Such a place does not begin or end within a word
    (of a script that has blanks between words). A text that stands at several places is not guessed at.
    """
    first, end = visible(text)
    if stands_at(context, text, start):
        same = text.strip() == text[first:end]  # but for blanks, which scoring ignores
        return (start, start + len(text)) if same else (start + first, start + end)
    core = text[first:end]
    if not core or start < 0:
        return None
    low, high = max(0, start - REACH), start + REACH
    alike = [place for place in _alike(context, core, low, high) if _is_whole(context, *place)]
    at_start = next((place for place in alike if place[0] == start), None)
    if at_start:
        itself = (start - first, start - first + len(text))
        return itself if stands_at(context, text, itself[0]) else at_start
    exact = [(place, place + len(text)) for place in _occurrences(context, text, low, high)]
    found = [place for place in exact if _is_whole(context, place[0] + first, place[0] + end)]
    found = found or alike
    return found[0] if len(found) == 1 else None


def places_of(context: str, text: str) -> list[tuple[int, int]]:
    """First character and end of every place where ``text`` stands in ``context``, as it is, else but for blanks and
    Unicode form; where some of them neither begin nor end within a word, these alone."""
    core = seen(text)
    exact = [(place, place + len(core)) for place in _occurrences(context, core, 0, len(context))] if core else []
    found = exact or _alike(context, core, 0, len(context))
    return [place for place in found if _is_whole(context, *place)] or found


def _occurrences(context: str, text: str, low: int, high: int) -> Iterable[int]:
    """Where ``text`` begins in ``context``, low <= place <= high; the places may overlap."""
    place = context.find(text, low)
    while 0 <= place <= high:
        yield place
        place = context.find(text, place + 1)


def _alike(context: str, core: str, low: int, high: int) -> list[tuple[int, int]]:
    """First character and end of what stands in ``context`` as ``core`` does but for blanks and Unicode form."""
    wanted = "".join(form for form, _ in _forms(core, 0))
    forms = list(_forms(context[low : high + 3 * len(core) + REACH], low))  # blanks and marks make it longer
    folded = "".join(form for form, _ in forms)
    owner = [place for form, place in forms for _ in form]
    found = []
    for at in _occurrences(folded, wanted, 0, len(folded)) if wanted else ():
        end = at + len(wanted)
        cuts_first = at > 0 and owner[at - 1] == owner[at]
        cuts_last = end < len(folded) and (owner[end] == owner[end - 1] or unicodedata.combining(folded[end]))
        if not cuts_first and not cuts_last and owner[at] <= high:
            found.append((owner[at], owner[end - 1] + 1))
    return found


def _forms(text: str, first: int) -> Iterable[tuple[str, int]]:
    """Each character that is to be seen as NFKD has it, and its place."""
    for place, char in enumerate(text, first):
        if not _is_unseen(char):
            yield unicodedata.normalize("NFKD", char), place


def _is_whole(context: str, first: int, end: int) -> bool:
    """Whether what stands there neither begins nor ends within a word."""
    return not any(begins_or_ends_in_word(context, first, end))


def begins_or_ends_in_word(context: str, first: int, end: int) -> tuple[bool, bool]:
    """Whether what stands there begins, and ends, within a word (of a script that has blanks between words)."""
    begins, ends = (0 < place < len(context) and _runs_on(context[place - 1]) and _runs_on(context[place])
                    for place in (first, end))
    return begins, ends


def _runs_on(char: str) -> bool:
    return char.isalnum() and unicodedata.category(char) != "Lo"  # Chinese, Japanese, Thai have no blanks


# --- in the tokens -----------------------------------------------------------------------------------------------


def whole_offsets(context: str, offsets: np.ndarray, tokens: Callable[[], Sequence[str]]) -> np.ndarray:
    """The offsets of a context's tokens, mended so that no token lacks a letter or mark of its word, (T, 2).

    offsets: (T, 2), the tokenizer's, characters of ``context``. tokens: gives the T tokens, asked only where needed.

    Byte-level tokenizers take the blank that a token begins with off its offsets, also where a splitter before them
    had taken the blank out and they had put one in: the letter behind it would be lost. Tokenizers that strip accents
    leave marks (accents, vowel signs, variation selectors) at the end of a word in no token.
    """
    characters = np.frombuffer(context.encode("utf-32-le"), dtype=np.uint32)
    steps = np.bincount(offsets[:, 0], minlength=len(characters) + 1)
    steps = steps - np.bincount(offsets[:, 1], minlength=len(characters) + 1)
    bare = np.flatnonzero((np.cumsum(steps)[: len(characters)] == 0) & (characters > 32))
    bare = np.array([place for place in bare.tolist() if not _is_unseen(context[place])], dtype=np.int64)
    if not len(bare):
        return offsets
    offsets = offsets.copy()
    behind = np.flatnonzero(np.isin(offsets[:, 0], bare + 1))
    names = tokens()
    prefixed = behind[[names[token].startswith(_BYTE_LEVEL_BLANK) for token in behind.tolist()]]
    offsets[prefixed, 0] -= 1
    marks = [place for place in bare.tolist() if unicodedata.category(context[place]).startswith("M")]
    loose = []
    for place in marks:
        before = (offsets[:, 1] == place) & (offsets[:, 0] < place)
        offsets[before, 1] += 1
        if not before.any():
            loose.append(place)
    for place in reversed(loose):  # nothing before them that they could belong to
        offsets[offsets[:, 0] == place + 1, 0] -= 1
    return offsets


def reads_as(labelled: str, answer: str) -> bool:
    """Whether the text of the tokens that overlap an answer is that answer, but for what is not to be seen at the ends
    of both: exact match has them equal, up to case, ASCII punctuation, the articles and blanks."""
    labelled, answer = seen(labelled), seen(answer)
    if labelled == answer:
        return True
    one, other = normalize_answer(labelled), normalize_answer(answer)
    return one == other if one or other else labelled.strip() == answer.strip()
