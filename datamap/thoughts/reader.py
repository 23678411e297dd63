"""Chains of thought as models write them: the JSON object with thought and label, read out of an answer.

An answer is read as it comes: JSON and nothing else, or an object among other text (code fences, a list around it, an
echo of the prompt, a second object, text after it). A label is never guessed: what is cut off, or broken, or holds
another label than 0 or 1, is no answer, and where a broken object differs from the whole one behind it, none is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

THOUGHT, LABEL = "thought_process", "predicted_label"
ANALYSIS, IMPROVED = "error_analysis", "improved_thought_process"
LABELS = (0, 1)  # 1: the hypothesis follows from the premise, 0: it does not
METHODS = ("strict", "object", "none")
CRITERIA = ("coherence", "correctness", "brevity")  # a judge's, each from 1 to 5
SIDES = ("A", "B", "tie")  # which of two chains a judge finds better

_ANY_THOUGHT = rf'"(?:{THOUGHT}|{IMPROVED})"\s*:\s*"'
# An object that ends, whatever stands in its text: what json refuses of them are quotation marks within it, as a rule.
# The thought is a text, as it is in no form of a prompt such as {"thought_process": <string>, "predicted_label": 1}.
_BROKEN = re.compile(
    rf'{_ANY_THOUGHT}(?:(?!{_ANY_THOUGHT}).)*?"{LABEL}"\s*:\s*"?([01])"?\s*(?:,[^{{}}]{{0,999}}+)?\}}'
    rf'|"{LABEL}"\s*:\s*"?([01])"?\s*,\s*{_ANY_THOUGHT}(?:(?!"{LABEL}"\s*:).)*?"\s*\}}',
    re.DOTALL,
)
_OPENING = re.compile(r'\{(?=\s*+"[^"\\]*+(?:\\.[^"\\]*+)*+"\s*+:)', re.DOTALL)  # an object's, up to its first key
_INSTRUCTION = re.compile(r"[\s\ufeff]*+(?:<s>)?\s*+\[INST\]")  # what an echo of a prompt to Mistral begins with
_STRETCH = 4096  # characters


@dataclass(frozen=True)
class Parsed:
    """label: 0, 1, or None for no answer. thought: None without an answer, and where it is no text, or an empty one.

    method: how the answer was read, one of METHODS.
    """

    label: int | None
    thought: str | None
    method: str


# --- answers -----------------------------------------------------------------------------------------------------


def parse_thought(text: str, prompt: str = "") -> Parsed:
    """The thought and the label in a model's answer, which is its new tokens only.

    prompt: what was asked; an object that stands in it is no answer. A text that begins with an instruction between
    [INST] and [/INST] is read from behind it, and one in which a model thinks aloud from behind </think>. An answer
    has both keys and the label 0 or 1.
    """

    def accept(found: Mapping[str, Any]) -> tuple[int, str | None] | None:
        label, thought = as_label(found[LABEL]), found[THOUGHT]
        return None if label is None else (label, thought if _is_text(thought) else None)

    found, method = read_answer(text, (THOUGHT, LABEL), accept, prompt)
    label, thought = found or (None, None)
    return Parsed(label, thought, method)


def parse_reflection(text: str, prompt: str = "") -> dict[str, Any] | None:
    """``error_analysis``, ``improved_thought_process`` and ``predicted_label`` in an answer, or None."""

    def accept(found: Mapping[str, Any]) -> dict[str, Any] | None:
        label = as_label(found[LABEL])
        usable = _is_text(found[ANALYSIS]) and _is_text(found[IMPROVED]) and label is not None
        return {ANALYSIS: found[ANALYSIS], IMPROVED: found[IMPROVED], LABEL: label} if usable else None

    return read_answer(text, (ANALYSIS, IMPROVED, LABEL), accept, prompt)[0]


def parse_scores(text: str, prompt: str = "") -> dict[str, Any] | None:
    """Of each of CRITERIA a whole number from 1 to 5 and ``<criterion>_reason``, or None."""

    def accept(found: Mapping[str, Any]) -> dict[str, Any] | None:  # {"coherence": {"score": 4, "reason": "..."}, ...}
        scores: dict[str, Any] = {}
        for name in CRITERIA:
            one = found[name]
            score = one.get("score") if isinstance(one, Mapping) else None
            if isinstance(score, str) and score.strip() in ("1", "2", "3", "4", "5"):
                score = int(score)
            if isinstance(score, bool) or score not in (1, 2, 3, 4, 5) or not _is_text(one.get("reason")):
                return None
            scores |= {name: int(score), f"{name}_reason": one["reason"]}
        return scores

    return read_answer(text, CRITERIA, accept, prompt)[0]


def parse_preference(text: str, prompt: str = "") -> dict[str, Any] | None:
    """``better`` (one of SIDES) and ``reason``, or None."""

    def accept(found: Mapping[str, Any]) -> dict[str, Any] | None:
        usable = found["better"] in SIDES and _is_text(found["reason"])
        return {"better": found["better"], "reason": found["reason"]} if usable else None

    return read_answer(text, ("better", "reason"), accept, prompt)[0]


def completion_text(thought: str, label: int) -> str:
    """What a model is trained to write: the JSON object on one line."""
    return json.dumps({THOUGHT: thought, LABEL: label}, ensure_ascii=False)


def as_label(value: Any) -> int | None:
    """0 or 1 of a number or of its string; None for anything else, true and false included."""
    if isinstance(value, str):
        value = {"0": 0, "1": 1}.get(value.strip())
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value in LABELS else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


# --- JSON among other text ---------------------------------------------------------------------------------------


def read_answer(
    text: str, keys: Sequence[str], accept: Callable[[Mapping[str, Any]], T | None], prompt: str = ""
) -> tuple[T | None, str]:
    """What ``accept`` makes of the first object with ``keys`` that it takes (None: not an answer), and the method.

    ``strict``: the text is that object and nothing else. ``object``: the first complete one among other text that does
    not stand in ``prompt``. ``none``: there is none, or a broken object before it holds another label.
    """
    echoed = [found for _, _, found in objects_in(prompt)] if prompt else []
    text = _behind_prompt(text, prompt)
    whole = _whole(text)
    if isinstance(whole, Mapping) and set(keys) <= whole.keys() and whole not in echoed:
        answer = accept(whole)
        return answer, "none" if answer is None else "strict"
    objects = [(start, end, found) for start, end, found in objects_in(text, keys) if set(keys) <= found.keys()]
    spans = [(start, end) for start, end, _ in objects]
    begin = _behind_thinking(text, spans)
    for number, (start, _, found) in enumerate(objects):
        if start < begin or found in echoed:
            continue
        answer = accept(found)
        if answer is not None:
            if LABEL in keys and not _labels_of_broken(text, begin, spans, number, prompt) <= {as_label(found[LABEL])}:
                break
            return answer, "object"
    return None, "none"


def objects_in(text: str, keys: Sequence[str] = ()) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The complete JSON objects in a text as (start, end, object), from left to right.

    An object without ``keys`` may hold others, which come after it; nothing within one that has them all is looked at.
    Line breaks within strings and NaN are taken; an object that gives a key two different values counts as broken.
    Empty objects are left out.
    """
    passed, after = 0, 0  # characters that were cut off, and where to go on in the rest
    while opening := _OPENING.search(text, after):
        place = opening.start()
        if place > _STRETCH:  # the json module counts the lines before every error: to the square of a long text
            text, passed, place = text[place:], passed + place, 0
        after = place + 1
        try:
            found, end = _DECODER.raw_decode(text, place)
        except ValueError:  # braces of another kind, a broken object, or one that is cut off
            pass
        except RecursionError:  # nested without end: no answer, and to begin anew at every brace would take hours
            return
        else:
            yield passed + place, passed + end, found
            if keys and set(keys) <= found.keys():
                after = end


def _whole(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs) and any(found[key] != value for key, value in pairs):
        raise ValueError("a key has two values")  # json would keep the last
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, strict=False)


def _behind_prompt(text: str, prompt: str) -> str:
    """``text`` without an echo of the prompt before it."""
    if prompt and text.lstrip().startswith(prompt.strip()):
        return text.lstrip()[len(prompt.strip()) :]
    return text.partition("[/INST]")[2] if _INSTRUCTION.match(text) else text


def _behind_thinking(text: str, spans: Sequence[tuple[int, int]]) -> int:
    """Where a model has ended to think aloud; what stands within an object is said by its thought."""
    end = text.rfind("</think>")
    for start, behind in reversed(spans):
        if start < end < behind:
            end = text.rfind("</think>", 0, start)
    if end < 0:
        return len(text) if text.lstrip().startswith("<think>") else 0
    return end


def _labels_of_broken(text: str, begin: int, spans: Sequence[tuple[int, int]], number: int, prompt: str) -> set[int]:
    """The labels of broken objects before the one at ``spans[number]``, and of one around it."""
    starts = [begin, *(max(begin, end) for _, end in spans[:number])]
    parts = [text[start:end] for start, (end, _) in zip(starts, spans[: number + 1], strict=True)]
    parts[-1] += "\n" + text[spans[number][1] :].partition("{")[0]
    found = (match for part in parts for match in _BROKEN.finditer(part) if match.group() not in prompt)
    return {int(match.group(1) or match.group(2)) for match in found}
