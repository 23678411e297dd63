"""Chains of thought as models write them: the JSON object with thought and label, read out of an answer.

An answer is read as it comes: JSON and nothing else, or an object among other text (code fences, a list around it, an
echo of the prompt, a second object, text after it). A label is never guessed: what is cut off, or holds another label
than 0 or 1, or is broken and gives two different answers, has none.
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

# A label that stands in what is no complete object.
_MENTION = re.compile(rf'"{LABEL}"\s*:\s*("?)([^\s",}}\]]+)\1\s*(?=[,}}\]]|$)')
_KEY = re.compile(rf'"(?:{THOUGHT}|{LABEL}|{IMPROVED})"\s*:')


@dataclass(frozen=True)
class Parsed:
    """label: 0, 1, or None for no answer. method: how it was read, one of METHODS."""

    label: int | None
    thought: str | None
    method: str


# --- answers -----------------------------------------------------------------------------------------------------


def parse_thought(text: str, prompt: str = "") -> Parsed:
    """The thought and the label in a model's answer, which is its new tokens only.

    prompt: what was asked; an object that stands in it is no answer. A text that begins with an instruction between
    [INST] and [/INST] is read from behind it.
    """
    found, method = read_answer(text, (THOUGHT, LABEL), _thought, prompt)
    return Parsed(found[1], found[0], method) if found else Parsed(None, None, method)


def parse_reflection(text: str, prompt: str = "") -> dict[str, Any] | None:
    """``error_analysis``, ``improved_thought_process`` and ``predicted_label`` in an answer, or None."""
    return read_answer(text, (ANALYSIS, IMPROVED, LABEL), _reflection, prompt)[0]


def parse_scores(text: str, prompt: str = "") -> dict[str, Any] | None:
    """Of each of CRITERIA a whole number from 1 to 5 and ``<criterion>_reason``, or None."""
    return read_answer(text, CRITERIA, _scores, prompt)[0]


def parse_preference(text: str, prompt: str = "") -> dict[str, Any] | None:
    """``better`` (one of SIDES) and ``reason``, or None."""
    return read_answer(text, ("better", "reason"), _preference, prompt)[0]


def completion_text(thought: str, label: int) -> str:
    """What a model is trained to write: the JSON object on one line."""
    return json.dumps({THOUGHT: thought, LABEL: label}, ensure_ascii=False)


def as_label(value: Any) -> int | None:
    """0 or 1 of a number or of its string; None for anything else, true and false included."""
    if isinstance(value, str):
        value = {"0": 0, "1": 1}.get(value.strip())
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value in LABELS else None


def _thought(found: Mapping[str, Any]) -> tuple[str, int] | None:
    label = as_label(found[LABEL])
    return (found[THOUGHT], label) if _is_text(found[THOUGHT]) and label is not None else None


def _reflection(found: Mapping[str, Any]) -> dict[str, Any] | None:
    label = as_label(found[LABEL])
    if not _is_text(found[ANALYSIS]) or not _is_text(found[IMPROVED]) or label is None:
        return None
    return {ANALYSIS: found[ANALYSIS], IMPROVED: found[IMPROVED], LABEL: label}


def _scores(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of ``{"coherence": {"score": 4, "reason": "..."}, ...}``."""
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


def _preference(found: Mapping[str, Any]) -> dict[str, Any] | None:
    if found["better"] not in SIDES or not _is_text(found["reason"]):
        return None
    return {"better": found["better"], "reason": found["reason"]}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


# --- JSON among other text ---------------------------------------------------------------------------------------


def read_answer(
    text: str, keys: Sequence[str], accept: Callable[[Mapping[str, Any]], T | None], prompt: str = ""
) -> tuple[T | None, str]:
    """What ``accept`` makes of the first object with ``keys`` that it takes (None: not an answer), and the method.

    ``strict``: the text is that object and nothing else. ``object``: the first complete one among other text that does
    not stand in ``prompt``. ``none``: there is none, or a broken object beside it holds another label.
    """
    echoed = [found for _, _, found in objects_in(prompt)] if prompt else []
    text = _behind_prompt(text, prompt)
    found = _whole(text)
    if isinstance(found, Mapping) and set(keys) <= found.keys() and found not in echoed:
        answer = accept(found)
        return answer, "none" if answer is None else "strict"
    text = text.rpartition("</think>")[2]  # what a model thinks aloud is no answer
    answer, place = None, (0, 0)
    covered: list[tuple[int, int]] = []
    for start, end, found in objects_in(text, keys):
        covered.append((start, end))
        if answer is None and set(keys) <= found.keys() and found not in echoed:
            answer, place = accept(found), (start, end)
    if answer is None or _contradicted(text, covered, place, prompt):
        return None, "none"
    return answer, "object"


def objects_in(text: str, keys: Sequence[str] = ()) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The complete JSON objects in a text as (start, end, object), from left to right.

    An object without ``keys`` may hold others, which come after it; nothing within one that has them all is looked at.
    Line breaks within strings are taken; an object in which a key occurs twice counts as broken.
    """
    place = text.find("{")
    while place >= 0:
        after = place + 1
        try:
            found, end = _DECODER.raw_decode(text, place)
        except ValueError:  # braces of another kind, a broken object, or one that is cut off
            pass
        except RecursionError:  # nested without end: no answer, and to begin anew at every brace would take hours
            return
        else:
            yield place, end, found
            if keys and set(keys) <= found.keys():
                after = end
        place = text.find("{", after)


def _whole(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # json would keep the last
        raise ValueError("a key occurs twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_refuse, strict=False)


def _behind_prompt(text: str, prompt: str) -> str:
    """``text`` without an echo of the prompt before it."""
    if prompt and text.lstrip().startswith(prompt.strip()):
        return text.lstrip()[len(prompt.strip()) :]
    if re.match(r"\s*(<s>)?\s*\[INST\]", text):
        return text.partition("[/INST]")[2]
    return text


def _contradicted(text: str, covered: Sequence[tuple[int, int]], place: tuple[int, int], prompt: str) -> bool:
    """Whether what is no complete object holds another label than the object at ``place``, and may be the answer.

    A broken object before it may be; one behind it only where the object lies within one that began before.
    """
    echo = {line.strip() for line in prompt.splitlines()}
    before: list[str] = []
    behind: list[str] = []
    for start, end in _gaps(covered, len(text)):
        rest = "\n".join(line for line in text[start:end].split("\n") if line.strip() not in echo)
        (before if end <= place[0] else behind).append(rest)
    begun = any(_KEY.search(rest) for rest in before)
    labels = {found.group(2) for rest in before + behind * begun for found in _MENTION.finditer(rest)}
    own = _MENTION.search(text, *place)
    return bool(own) and bool(labels - {own.group(2) if own else ""})


def _gaps(covered: Sequence[tuple[int, int]], length: int) -> Iterator[tuple[int, int]]:
    position = 0
    for start, end in covered:
        if start > position:
            yield position, start
        position = max(position, end)
    if position < length:
        yield position, length
