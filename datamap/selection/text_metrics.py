"""What can be said of a text by counting: length, readability, lexical diversity. textstat's words throughout."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from datamap.core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

METRICS = {
    "token_count": "words, without punctuation",
    "characters": "characters, without white space",
    "type_token_ratio": "distinct words / words, lower-cased: above 0, up to 1; falls as texts grow",
    "word_length": "mean letters of a word",
    "flesch": "Flesch reading ease of English: higher = easier, mostly 0 to 100",
    "syllables": "syllables, of English",
    "sentences": "sentences of at least three words, at least 1",
    "mattr": "mean type-token ratio of all windows of a fixed number of words: higher = more diverse, up to 1",
    "mtld": "mean number of words that keep the type-token ratio at 0.72: higher = more diverse",
}
BY_SYLLABLES = ("flesch", "syllables")  # the metrics that depend on how these are counted
SYLLABLE_RULES = ("cmudict", "hyphenation")
MATTR_WINDOW = 10
MTLD_MIN_TOKENS = 50
MTLD_THRESHOLD = 0.72
BLOCK = 10_000  # texts whose words are held at once

logger = logging.getLogger(__name__)


def syllable_rule() -> str:
    """``cmudict`` where NLTK finds the CMU pronouncing dictionary on this machine, else, with a warning,
    ``hyphenation``. Never downloads.

    ``syllables`` and ``flesch`` depend on it, so it belongs into whatever names or caches them.
    """
    import nltk

    try:
        nltk.data.find("corpora/cmudict")
    except LookupError:
        logger.warning("syllables and Flesch by hyphenation, which counts too few: NLTK has no CMU dictionary here; "
                       "python -m nltk.downloader cmudict brings it")
        return "hyphenation"
    return "cmudict"


def text_metrics(texts: Sequence[str], syllables_by: str, window: int = MATTR_WINDOW) -> pd.DataFrame:
    """One row a text, in order; the columns are METRICS. A value that a text cannot have is NaN.

    Words, characters, letters and sentences are textstat's: a word is what white space separates once punctuation is
    taken out, apostrophes of contractions excepted. syllables_by: one of SYLLABLE_RULES (see ``syllable_rule``).
    ``cmudict`` is textstat's way, the dictionary's first pronunciation, and hyphenation for the words that it has
    not; ``hyphenation`` takes that for all words and so counts too few ("area": 1).

    Without a word, counts are 0 (``sentences`` 1 where there are characters) and the ratios are NaN. ``mattr``
    (Covington and McFall 2010) is NaN below ``window`` words. ``mtld`` (McCarthy and Jarvis 2010: mean of both
    directions, the last factor by its part) is NaN below MTLD_MIN_TOKENS words, where the authors find it unreliable,
    and where no word occurs twice, as it then has no bound.
    """
    import pandas as pd
    from textstat import textstat
    from textstat.backend.selections import list_words

    if window < 1:
        raise UserError(f"found a window of {window} words; expected at least 1")
    count_syllables = _syllable_counter(syllables_by)
    syllables_of: dict[str, int] = {}
    blocks = []
    for first in range(0, len(texts), BLOCK):
        block = texts[first : first + BLOCK]
        words = [[word.lower() for word in list_words(text)] for text in block]
        counts = np.array([len(each) for each in words])
        text_of = np.repeat(np.arange(len(block)), counts)
        codes, distinct = pd.factorize(np.array([*chain.from_iterable(words)], dtype=object))
        for word in distinct:
            if word not in syllables_of:
                syllables_of[word] = count_syllables(word)
        weight = np.array([syllables_of[word] for word in distinct], dtype=np.int64)
        syllables = np.bincount(text_of, weight[codes], len(block)).astype(np.int64)
        sentences = np.array([textstat.sentence_count(text) for text in block])
        letters = np.array([textstat.letter_count(text) for text in block])
        previous = _previous(codes, text_of, counts)
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is the NaN that is wanted
            blocks.append({
                "token_count": counts,
                "characters": np.array([textstat.char_count(text) for text in block]),
                "type_token_ratio": np.bincount(text_of[previous < 0], minlength=len(block)) / counts,
                "word_length": letters / counts,
                "flesch": 206.835 - 1.015 * (counts / sentences) - 84.6 * (syllables / counts),
                "syllables": syllables,
                "sentences": sentences,
                "mattr": _mattr(previous, text_of, counts, window),
                "mtld": np.array([mtld(each) if len(each) >= MTLD_MIN_TOKENS else np.nan for each in words]),
            })
    whole = {name: np.concatenate([block[name] for block in blocks]) if blocks else np.zeros(0) for name in METRICS}
    return pd.DataFrame(whole)


def _syllable_counter(rule: str) -> Callable[[str], int]:
    """Syllables of one lower-cased word; at least 1."""
    from pyphen import Pyphen

    if rule not in SYLLABLE_RULES:
        raise UserError(f"found syllables_by {rule!r}; expected {' or '.join(SYLLABLE_RULES)}")
    hyphens = Pyphen(lang="en_US")
    pronunciations: dict[str, list[list[str]]] = {}
    if rule == "cmudict":
        from nltk.corpus import cmudict

        try:
            pronunciations = cmudict.dict()
        except LookupError as error:
            raise UserError("NLTK has no CMU dictionary on this machine; python -m nltk.downloader cmudict brings "
                            "it") from error

    def count(word: str) -> int:
        if word in pronunciations:  # a vowel's phone ends in its stress
            return sum(phone[-1].isdigit() for phone in pronunciations[word][0])
        return len(hyphens.positions(word)) + 1

    return count


def _previous(codes: np.ndarray, text_of: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(T,): place within its text where each of the T words of all texts stood last, -1 where it is new.

    codes (T,): which word; text_of (T,): in which text, rising; counts: words of each text.
    """
    key = text_of * (codes.max(initial=0) + 1) + codes
    order = np.argsort(key, kind="stable")
    again = key[order[1:]] == key[order[:-1]]
    previous = np.full(len(codes), -1)
    starts = np.cumsum(counts) - counts
    previous[order[1:][again]] = order[:-1][again] - starts[text_of[order[1:][again]]]
    return previous


def _mattr(previous: np.ndarray, text_of: np.ndarray, counts: np.ndarray, window: int) -> np.ndarray:
    """Moving-average type-token ratio of each text, above 0 and up to 1; NaN where it is shorter than the window.

    No window is looked at: a word is new in those windows that hold it and not its previous place. They are counted.
    """
    place = np.arange(len(text_of)) - (np.cumsum(counts) - counts)[text_of]
    last_start = (counts - window)[text_of]
    new_in = np.minimum(place, last_start) - np.maximum(previous, place - window)
    types = np.bincount(text_of, np.maximum(new_in, 0), len(counts))
    windows = counts - window + 1
    return np.where(windows > 0, types / (window * np.maximum(windows, 1)), np.nan)


def mtld(words: Sequence[str]) -> float:
    """Measure of textual lexical diversity, in words: above 0, higher = more diverse; NaN where no word comes twice.

    A factor ends where the type-token ratio falls below MTLD_THRESHOLD; what is left counts by how far its ratio has
    fallen. The mean over reading forwards and backwards of words / factors. McCarthy and Jarvis 2010.
    """
    return (_words_per_factor(words) + _words_per_factor(words[::-1])) / 2


def _words_per_factor(words: Sequence[str]) -> float:
    factors, seen, length = 0.0, set(), 0
    for word in words:
        seen.add(word)
        length += 1
        if len(seen) / length < MTLD_THRESHOLD:
            factors += 1
            seen, length = set(), 0
    if length:
        factors += (1 - len(seen) / length) / (1 - MTLD_THRESHOLD)
    return len(words) / factors if factors else math.nan
