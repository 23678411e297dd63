"""Annotation errors that are planted on purpose: the built-in datasets carry them, run.py --plant_errors adds them.

In question answering an error is one of five kinds, each of which people make (or a script does):

- ``wrong_span``: one to four words from elsewhere in the text that are nobody's answer
- ``shifted_boundary``: the answer moved by one or two words
- ``overlong_span``: the sentence that holds the answer, maybe its neighbour too
- ``other_question``: the question of another answer in the same text
- ``malformed_question``: a question of which nothing is left that says what was asked

A label is replaced by another one: any, as annotators slip (``uniform``); one that this class is taken for
(``confusion``); or one that a weak model finds plausible (``plausible``).
"""

from __future__ import annotations

import re
import string
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import numpy as np

from datamap.demo.draws import pick, shuffled

T = TypeVar("T")
Span = tuple[int, int]  # character offsets into a text, end exclusive; or first and last number, both inclusive

QUESTION_KINDS = ("wrong_span", "shifted_boundary", "overlong_span", "other_question", "malformed_question")
LABEL_KINDS = ("uniform", "confusion", "plausible")
LONGEST_PAIR = 20  # words of two sentences that an overlong answer may have

# A word keeps its inner punctuation ("3.1", "mg/dL", "long-term") and none at its edges.
WORD = re.compile(r"\w+(?:[./-]\w+)*")
SENTENCE = re.compile(r"\S.*?(?:[.!?]+(?=\s|\Z)|[。！？।]|$)", re.MULTILINE)
# What is left of a question.
CUT_OFF = ("What is the", "What was", "Which of", "What", "Was it the", "Is the")
LITTLE_WORDS = ("the", "of", "was", "is", "a", "what", "to", "in", "this", "it")


# --- questions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A question about a passage, its gold answers (at least one), the first and last sentence that they are in, and
    what kind of fact it asks for, where that is known."""

    question: str
    golds: Sequence[Span]
    sentences: Span
    kind: str = ""


@dataclass(frozen=True)
class Passage:
    text: str
    sentences: Sequence[Span]
    asked: Sequence[Asked]


class Corrupted(NamedTuple):
    """What an example becomes: another question or another answer; the one that stays is None."""

    kind: str
    question: str | None = None
    answer: Span | None = None


def passage_of(text: str, asked: Sequence[tuple[str, Sequence[Span]]]) -> Passage:
    """A passage of any text; asked: (question, gold answers) of all that is known to be asked about it."""
    sentences = [match.span() for match in SENTENCE.finditer(text)] or [(0, len(text))]
    starts, ends = [start for start, _ in sentences], [end for _, end in sentences]
    last = len(sentences) - 1

    def place(golds: Sequence[Span]) -> Span:
        low, high = min(a for a, _ in golds), max(b for _, b in golds)
        first = min(bisect_right(ends, low), last)
        return first, max(first, bisect_left(starts, high) - 1)

    return Passage(text, sentences, [Asked(question, golds, place(golds)) for question, golds in asked])


def plant_in_questions(
    rng: np.random.Generator, contexts: Sequence[str], questions: Sequence[str], golds: Sequence[Sequence[Span]],
    count: int,
) -> tuple[dict[int, Corrupted], Counter[str]]:
    """``count`` errors: row -> what it becomes, and how many of each kind could not be planted where it was drawn.

    golds: the answers of each row; a row without any is left alone. Kinds come in equal shares, in random order. Where
    one is impossible (``other_question`` in a text with one answer) another is drawn in its place.
    """
    rows = [row for row, answers in enumerate(golds) if answers]
    about: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        about[contexts[row]].append(row)
    passages: dict[str, Passage] = {}
    planted: dict[int, Corrupted] = {}
    impossible: Counter[str] = Counter()
    for row, kind in zip(rows, error_plan(rng, QUESTION_KINDS, len(rows), count), strict=True):
        if not kind:
            continue
        context = contexts[row]
        if context not in passages:
            passages[context] = passage_of(context, [(questions[each], golds[each]) for each in about[context]])
        passage = passages[context]
        asked = passage.asked[about[context].index(row)]
        found = corrupted(rng, passage, asked, kind)
        if found is None:
            impossible[kind] += 1
            others = shuffled(rng, [other for other in QUESTION_KINDS if other != kind])
            found = next(each for other in others if (each := corrupted(rng, passage, asked, other)))
        planted[row] = found
    return planted, impossible


def error_plan(rng: np.random.Generator, kinds: Sequence[str], n: int, count: int) -> list[str]:
    """The error of each of ``n`` examples ("" for none): ``count`` of them, kinds in equal shares, in random order."""
    return shuffled(rng, [kinds[i % len(kinds)] for i in range(count)] + [""] * (n - count))


def corrupted(rng: np.random.Generator, passage: Passage, asked: Asked, kind: str) -> Corrupted | None:
    """The example with an error of this kind; None where it is impossible.

    An answer that is planted never reads like a gold one (case, punctuation and articles aside).
    """
    if kind == "malformed_question":
        return Corrupted(kind, question=malformed(rng, asked.question))
    if kind == "other_question":
        others = [other for other in passage.asked if other is not asked and _asks_for_another(passage, asked, other)]
        return Corrupted(kind, question=pick(rng, others).question) if others else None
    answer = MOVED_SPANS[kind](rng, passage, asked)
    return Corrupted(kind, answer=answer) if answer else None


def _wrong_span(rng: np.random.Generator, passage: Passage, asked: Asked) -> Span | None:
    """One to four words that are nobody's answer, of another sentence where there is one."""
    taken = sorted({span for other in passage.asked for span in other.golds})
    starts, ends = [start for start, _ in taken], list(accumulate((end for _, end in taken), max))

    def is_free(span: Span) -> bool:
        # Of the answers that begin before it ends, the one that goes on longest tells. It may lie between words.
        before = bisect_left(starts, span[1])
        return not before or ends[before - 1] <= span[0]

    first, last = asked.sentences
    elsewhere: list[Span] = []
    beside: list[Span] = []
    for number, sentence in enumerate(passage.sentences):
        words = _words(passage.text, sentence)
        spans = [(words[place][0], words[place + length - 1][1])
                 for length in range(1, 5) for place in range(len(words) - length + 1)]
        (beside if first <= number <= last else elsewhere).extend(filter(is_free, spans))
    gold = _right_answers(passage.text, asked)

    def is_wrong(text: str) -> bool:
        return not any(f" {right} " in f" {text} " for right in gold)

    return _pick(rng, passage.text, elsewhere, is_wrong) or _pick(rng, passage.text, beside, is_wrong)


def _shifted_span(rng: np.random.Generator, passage: Passage, asked: Asked) -> Span | None:
    """The first gold answer moved by one or two words within its sentences."""
    first, last = asked.sentences
    words = _words(passage.text, (passage.sentences[first][0], passage.sentences[last][1]))
    inside = [i for i, word in enumerate(words) if _overlaps(word, asked.golds[0])]
    if not inside:
        return None
    spans = [
        (words[inside[0] + step][0], words[inside[-1] + step][1])
        for step in (-2, -1, 1, 2)
        if inside[0] + step >= 0 and inside[-1] + step < len(words)
    ]
    gold = _right_answers(passage.text, asked)
    return _pick(rng, passage.text, [span for span in spans if span not in asked.golds], lambda text: text not in gold)


def _overlong_span(rng: np.random.Generator, passage: Passage, asked: Asked) -> Span | None:
    """The sentence that holds the answer, without its full stop; where both are short, maybe its neighbour too."""
    text, sentences, (first, last) = passage.text, passage.sentences, asked.sentences
    pair = (first - 1, last) if last == len(sentences) - 1 else (first, last + 1)

    def whole(first: int, last: int) -> Span:
        start, end = sentences[first][0], sentences[last][1]
        end = start + len(text[start:end].rstrip(string.whitespace + ".!?"))
        return min(start, asked.golds[0][0]), max(end, asked.golds[0][1])

    both = whole(*pair) if pair[0] >= 0 else None
    wants_both = rng.random() < 0.5 and both is not None and len(_words(text, both)) <= LONGEST_PAIR
    spans = [both, whole(first, last)] if wants_both else [whole(first, last), both]
    right = _right_answers(text, asked)
    return next((span for span in spans if span and normalized(text[slice(*span)]) not in right), None)


MOVED_SPANS: dict[str, Callable[[np.random.Generator, Passage, Asked], Span | None]] = {
    "wrong_span": _wrong_span, "shifted_boundary": _shifted_span, "overlong_span": _overlong_span,
}


def malformed(
    rng: np.random.Generator, question: str, cut_off: Sequence[str] = CUT_OFF, little: Sequence[str] = LITTLE_WORDS
) -> str:
    """A question of which nothing is left that says what was asked, never ``question`` itself."""
    while True:
        how = int(rng.integers(3))
        if how == 0:  # a broken encoding
            left = re.sub(r"\w", "?", question)
        elif how == 1:  # cut off before it began
            left = pick(rng, cut_off)
        else:  # only little words are left
            left = " ".join(pick(rng, little) for _ in range(int(rng.integers(3, 8)))) + "?"
        if left != question:
            return left


def normalized(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces: what SQuAD's exact match compares."""
    plain = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def _right_answers(text: str, asked: Asked) -> set[str]:
    return {normalized(text[a:b]) for a, b in asked.golds}


def _asks_for_another(passage: Passage, asked: Asked, other: Asked) -> bool:
    if any(_overlaps(gold, span) for gold in asked.golds for span in other.golds):
        return False
    return (normalized(asked.question) != normalized(other.question)
            and not _right_answers(passage.text, asked) & _right_answers(passage.text, other))


def _pick(
    rng: np.random.Generator, text: str, spans: Sequence[Span], is_wrong: Callable[[str], bool]
) -> Span | None:
    """One of the spans that, normalized, are wrong answers; None where none is."""
    spans = list(spans)
    while spans:
        place = int(rng.integers(len(spans)))
        if is_wrong(normalized(text[slice(*spans[place])])):
            return spans[place]
        del spans[place]
    return None


def _words(text: str, span: Span) -> list[Span]:
    return [match.span() for match in WORD.finditer(text, *span)]


def _overlaps(a: Span, b: Span) -> bool:
    return a[0] < b[1] and b[0] < a[1]


# --- labels -------------------------------------------------------------------------------------------------------


def another(rng: np.random.Generator, label: T, labels: Sequence[T]) -> T:
    """Any of the other labels, each as likely."""
    return pick(rng, [other for other in labels if other != label])


def plant_in_labels(
    rng: np.random.Generator, labels: Sequence[int], num_classes: int, count: int, kind: str,
    texts: Sequence[Sequence[str]] = (), confusion: Mapping[int, Sequence[int]] | None = None,
) -> dict[int, int]:
    """``count`` wrong labels: row -> what its label becomes. Fewer where there are not as many rows to choose from.

    labels: class numbers. kind: one of LABEL_KINDS. confusion: class -> classes that it is taken for, drawn with equal
    chances; by default each class is taken for the next, the last for the first (Han et al. 2018, arXiv 1804.06872).
    Only the labels of classes in it change. texts: of ``plausible``, the columns: the labels that cross-validated
    logistic regression on words finds most plausible beside the given ones (``plausible_labels``), a random half of
    the 2 x ``count`` examples where it favours them most.
    """
    if kind == "plausible":
        other, favour = plausible_labels(texts, np.asarray(labels), num_classes, seed=int(rng.integers(2**31)))
        order = np.argsort(-favour, kind="stable")[: 2 * count]
        return {row: int(other[row]) for row in sorted(rng.permutation(order)[:count].tolist())}
    if kind == "confusion":
        confusion = confusion or {label: [(label + 1) % num_classes] for label in range(num_classes)}
        rows = [row for row, label in enumerate(labels) if label in confusion]
    else:
        rows = list(range(len(labels)))
    chosen = sorted(shuffled(rng, rows)[:count])
    if kind == "confusion" and confusion:
        return {row: pick(rng, confusion[labels[row]]) for row in chosen}
    return {row: another(rng, labels[row], range(num_classes)) for row in chosen}


def plausible_labels(
    texts: Sequence[Sequence[str]], labels: np.ndarray, num_classes: int, seed: int, folds: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """By a weak model that has not seen an example, its most plausible other label, (N,), and how much it favours it.

    The model is logistic regression on TF-IDF of words and pairs of words (one text), or on that of both texts, their
    product and their absolute difference (a pair). favour: p(other) - p(label), (N,), -1..1, high: most plausible.
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import KFold

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", sublinear_tf=True)
    vectorizer.fit([text for column in texts for text in column])
    parts: list[Any] = [vectorizer.transform(column) for column in texts]
    if len(parts) == 2:
        parts += [parts[0].multiply(parts[1]), abs(parts[0] - parts[1])]
    rows = hstack(parts, format="csr")
    probability = np.zeros((len(labels), num_classes))
    splits = KFold(min(folds, len(labels)), shuffle=True, random_state=seed)
    for seen, unseen in splits.split(rows):
        if len(set(labels[seen])) == 1:  # nothing to tell apart
            probability[unseen, labels[seen][0]] = 1
            continue
        # In 20 passes over the data: weak is what it should be, and the optimum takes far more.
        model = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=20, tol=None, average=True, random_state=seed)
        model.fit(rows[seen], labels[seen])
        probability[np.ix_(unseen, model.classes_)] = model.predict_proba(rows[unseen])
    given = np.arange(len(labels)), labels
    own = probability[given]
    probability[given] = -1
    other = probability.argmax(axis=1)
    return other, probability.max(axis=1) - own
