"""Small seeded changes to a text (a synonym, a deletion, a swap), and how often they flip a prediction."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from datamap.core.errors import UserError

KINDS = ("synonym", "deletion", "swap")
SHARE = 0.1  # of the words that one perturbation deletes or replaces, at least one

# A text without its negation means something else, so that a flip would be right: these are neither deleted nor
# replaced, and no word that ends in n't is.
NEGATIONS = frozenset(
    "no not nor neither never none nobody nothing nowhere without cannot nt non hardly barely scarcely".split()
)
# WordNet knows these only as something else: "a" as the angstrom, "in" as the inch, "he" as helium.
FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any all both each every such same other another
    i me my we us our you your he him his she her it its they them their who whom whose which what
    am is are was were be been being have has had having do does did will would shall should can could may might must
    in on at by for from of off to up down out over under into onto with about against between through during before
    after above below as than then so if or and but because until while when where why how there here
    too very just only own more most less least few once again further now also
    """.split()
)

Synonyms = Callable[[str], list[str]]


# --- words -------------------------------------------------------------------------------------------------------


@functools.cache
def _word() -> re.Pattern[str]:
    """Letters, digits and their combining marks, joined by apostrophes or hyphens; or a split-off 's, 're, 'll ...

    ``\\w`` alone would cut a decomposed accent or an Indic vowel sign off its letter.
    """
    marks = "".join(chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "M")
    return re.compile(rf"['’](?:s|re|ve|ll|d|m|t)\b|\w[\w{marks}]*(?:['’-]\w[\w{marks}]*)*", re.IGNORECASE)


def words(text: str) -> list[tuple[int, int]]:
    """Start and end of each word. What is written without spaces (Chinese, Thai) counts as one word."""
    return [match.span() for match in _word().finditer(text)]


def _is_negation(word: str) -> bool:
    plain = word.lower().replace("’", "'")
    return plain in NEGATIONS or plain.endswith("n't")


# --- perturbations -----------------------------------------------------------------------------------------------


def perturb(text: str, kind: str, rng: np.random.Generator, synonyms: Synonyms | None = None) -> str:
    """One small change to ``text``, drawn by ``rng``; the text itself where this kind can change nothing.

    ``kind``:

    - ``deletion`` removes a tenth of the words, at least one, each with the white space after it (or before it, where
      none follows). Negations stay. Even so a deletion may take the word that carried the label, and then a flip is
      right: a single flip accuses nobody, the share over several copies says how much hangs on single words.
    - ``swap`` exchanges two neighbouring words; what stands between them stays.
    - ``synonym`` replaces a tenth of the words, at least one, by a synonym, in the letter case of the word.
      ``synonyms`` gives those of a word, in a fixed order (see ``wordnet_synonyms``). Negations stay.

    Everything else stays as it is: punctuation, white space, letter case. A text of fewer than two words is never
    changed. The caller masks an example that no perturbation changes.
    """
    _check_kinds([kind])
    spans = words(text)
    if len(spans) < 2:
        return text
    if kind == "swap":
        return _swap(text, spans, rng)
    if kind == "deletion":
        return _delete(text, spans, rng)
    if synonyms is None:
        raise ValueError("the perturbation 'synonym' needs a function that gives synonyms")
    return _replace(text, spans, rng, synonyms)


def _delete(text: str, spans: list[tuple[int, int]], rng: np.random.Generator) -> str:
    for start, end in _drawn([span for span in spans if not _is_negation(text[slice(*span)])], len(spans), rng):
        before, after = text[:start], text[end:]
        text = before + after.lstrip() if after[:1].isspace() else before.rstrip() + after
    return text


def _swap(text: str, spans: list[tuple[int, int]], rng: np.random.Generator) -> str:
    pairs = [pair for pair in zip(spans, spans[1:], strict=False) if text[slice(*pair[0])] != text[slice(*pair[1])]]
    if not pairs:
        return text
    (start, end), (next_start, next_end) = pairs[rng.integers(len(pairs))]
    return text[:start] + text[next_start:next_end] + text[end:next_start] + text[start:end] + text[next_end:]


def _replace(text: str, spans: list[tuple[int, int]], rng: np.random.Generator, synonyms: Synonyms) -> str:
    choices = []
    for span in spans:
        word = text[slice(*span)]
        found = [] if _is_negation(word) else [_in_case_of(word, synonym) for synonym in synonyms(word)]
        if found := [synonym for synonym in found if synonym != word]:
            choices.append((span, found))
    for (start, end), found in _drawn(choices, len(spans), rng):
        text = text[:start] + found[rng.integers(len(found))] + text[end:]
    return text


def _drawn(choices: list[Any], n_words: int, rng: np.random.Generator) -> list[Any]:
    """SHARE of n words, at least one, among the choices that there are; the last of the text first."""
    count = min(max(1, round(SHARE * n_words)), len(choices))
    return [choices[number] for number in sorted(rng.choice(len(choices), count, replace=False), reverse=True)]


def _in_case_of(word: str, synonym: str) -> str:
    if len(word) > 1 and word.isupper():
        return synonym.upper()
    return synonym[:1].upper() + synonym[1:] if word[0].isupper() else synonym


def perturbed_texts(
    texts: Sequence[str], ids: Sequence[str], kinds: Sequence[str], copies: int, seed: int,
    synonyms: Synonyms | None = None,
) -> list[list[str]]:
    """Up to ``copies`` perturbed copies of each text, copy c of kind ``kinds[c % len(kinds)]``.

    A copy that came out equal to its text is left out, so that a list may be shorter, and is empty for a text that
    cannot be perturbed. Two copies may be equal to each other. Each copy is drawn from (seed, id, c) alone: the order
    and presence of other rows change nothing.
    """
    _check_kinds(kinds)
    if not kinds or copies < 1:
        raise UserError(f"found {len(kinds)} kinds of perturbation and {copies} copies; expected at least 1 of each")
    result = []
    for text, identity in zip(texts, ids, strict=True):
        drawn = (perturb(text, kinds[copy % len(kinds)], _generator(seed, identity, copy), synonyms)
                 for copy in range(copies))
        result.append([copy for copy in drawn if copy != text])
    return result


def _check_kinds(kinds: Sequence[str]) -> None:
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"found the perturbation {unknown[0]!r}; expected some of {', '.join(KINDS)}")


def _generator(seed: int, identity: str, copy: int) -> np.random.Generator:
    # JSON keeps ("1", 2) from being ("12", ...), and writes any string as ASCII.
    digest = hashlib.blake2b(json.dumps([seed, copy, identity]).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def flip_rate(
    original_predictions: Sequence | np.ndarray, perturbed_predictions: Sequence[Sequence | np.ndarray]
) -> np.ma.MaskedArray:
    """Share of the perturbed copies of each example whose prediction differs from that of the text itself.

    ``original_predictions``: n predicted classes or answers; ``perturbed_predictions``: for each of them those of its
    copies, any number. Returns (n,) float64 from 0 (no copy flips) to 1 (all do), masked where there is no copy.
    """
    pairs = zip(original_predictions, perturbed_predictions, strict=True)
    rates = [np.mean([copy != original for copy in copies] or [0]) for original, copies in pairs]
    return np.ma.array(rates, mask=[not len(copies) for copies in perturbed_predictions], dtype=float)


# --- WordNet -----------------------------------------------------------------------------------------------------


def wordnet_synonyms() -> Synonyms:
    """A function that gives the WordNet synonyms of a word: single words, none of them the word, sorted.

    From the most frequent sense of the word as each part of speech: the rarer senses of a common word are mostly about
    something else. Only for words that WordNet lists in this very form; it has no plurals or past tenses to put for
    others. Function words have none. WordNet is Miller 1995, doi 10.1145/219717.219748, read through nltk. Raises
    UserError where its files are not installed.
    """
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise UserError("nltk finds no WordNet that it may read; type `python -m nltk.downloader wordnet`, or leave "
                        "synonyms out: --perturbations deletion swap") from error

    @functools.cache
    def of(word: str) -> tuple[str, ...]:
        if word in FUNCTION_WORDS:
            return ()
        found: set[str] = set()
        for part_of_speech in (wordnet.NOUN, wordnet.VERB, wordnet.ADJ, wordnet.ADV):
            for sense in wordnet.synsets(word, part_of_speech)[:1]:
                names = sense.lemma_names()
                if word in (name.lower() for name in names):
                    found.update(name for name in names if name.isalpha() and name.lower() != word)
        return tuple(sorted(found))

    return lambda word: list(of(word.lower()))
