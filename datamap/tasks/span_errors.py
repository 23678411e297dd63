"""Of what kind a wrong answer is: where a predicted answer stands beside the annotated ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datamap.tasks.qa_metrics import score_predictions
from datamap.tasks.spans import places_of, seen, stands_at

NONE, TRUNCATED, OVERLONG, SHIFTED, ELSEWHERE = "none", "truncated", "overlong", "shifted", "elsewhere"
NOT_GIVEN, NOT_WANTED = "no answer given", "no answer wanted"
SPAN_ERRORS = (NONE, TRUNCATED, OVERLONG, SHIFTED, ELSEWHERE, NOT_GIVEN, NOT_WANTED)

Place = tuple[int, int]  # first character and end


def span_errors(
    contexts: Sequence[str], answers: Sequence[Mapping[str, Any]], predictions: Sequence[str | None],
) -> list[str | None]:
    """One of ``SPAN_ERRORS`` for each prediction, None where there is none (None); "" is the prediction that there is
    no answer. answers: all annotated ones, ``{"text": [...], "answer_start": [...]}``, empty of an unanswerable one.

    ``none``: exact match with an annotated answer, by SQuAD's rules (those of 2.0 where some example is unanswerable),
    or the very place of one.
    ``no answer given``, ``no answer wanted``: only the annotation, or only the prediction, has an answer.
    ``truncated``: a part of an annotated answer. ``overlong``: one is a part of it. ``shifted``: they overlap, and
    each has characters that the other has not. ``elsewhere``: no character in common with any.

    A prediction is a text. Where it stands in its context several times the place nearest to the annotation counts
    (most characters in common, as intersection over union), so too many answers rather than too few pass for parts of
    the annotation; of several annotated answers it is the nearest, the first of two alike. A text that does not stand
    in the context has no place, and so is ``elsewhere``.
    """
    if not len(contexts) == len(answers) == len(predictions):
        raise ValueError(f"{len(contexts)} contexts, answers to {len(answers)}, predictions of {len(predictions)}")
    golds = [list(each["text"]) for each in answers]
    said = ["" if each is None else each for each in predictions]
    exact = score_predictions(said, golds, version_2=not all(golds)).exact_match.tolist()
    return [None if prediction is None else NONE if right else _kind(context, answer, prediction)
            for context, answer, prediction, right in zip(contexts, answers, predictions, exact, strict=True)]


def _kind(context: str, answer: Mapping[str, Any], prediction: str) -> str:
    """Of a prediction that is no exact match."""
    golds = [(text, start) for text, start in zip(answer["text"], answer["answer_start"], strict=True) if text.strip()]
    if not golds:
        return NOT_WANTED
    if not prediction.strip():
        return NOT_GIVEN
    predicted = places_of(context, prediction)
    pairs = [(gold, place) for text, start in golds for gold in annotated_places(context, text, start)
             for place in predicted]
    if not pairs:
        return ELSEWHERE
    gold, place = max(pairs, key=lambda pair: common_share(*pair))
    if not common_share(gold, place):
        return ELSEWHERE
    if gold == place:
        return NONE
    if gold[0] <= place[0] and place[1] <= gold[1]:
        return TRUNCATED
    return OVERLONG if place[0] <= gold[0] and gold[1] <= place[1] else SHIFTED


def annotated_places(context: str, text: str, start: int) -> list[Place]:
    """Where an annotated answer stands: at its start, without what is not to be seen at its ends; where it does not
    stand there, everywhere that it does."""
    if not stands_at(context, text, start):
        return places_of(context, text)
    core = seen(text)
    first = start + text.index(core)
    return [(first, first + len(core))]


def common_share(one: Place, other: Place) -> float:
    """Intersection over union of two spans of characters, 0..1; neither is empty."""
    common = min(one[1], other[1]) - max(one[0], other[0])
    return max(0, common) / (max(one[1], other[1]) - min(one[0], other[0]))
