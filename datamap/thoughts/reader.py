"""Chains of thought as models write them: the JSON object with thought and label, read out of an answer.

An answer is read as it comes: JSON and nothing else, or an object among other text (code fences, a list around it, an
echo of the prompt, a second object, text after it). What stands in reasoning (<think>, [THINK], channels, ...) is no
answer, nor is anything where reasoning has no end. A label is never guessed: what is cut off, or broken, or holds
another label than 0 or 1, is no answer, and where a broken object differs from the whole one behind it, none is. Of a
text that runs on the first object counts; where prose takes it back, the last one that is marked as final, else none.
"""

from __future__ import annotations

import json
import re
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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

# Where reasoning begins and ends: <think> of most, </think>, [THINK] of Magistral, <seed:think>, <|begin_of_thought|>,
# <|START_THINKING|>, Kimi's \u25c1think\u25b7, and the channels of Harmony (gpt-oss), also without their special
# tokens, as skip_special_tokens leaves them. Only the channel "final" holds an answer.
_REASONING = (
    r"(?P<bracket>[<\[\u25c1])(?=[|/\w])\|?(?P<how>/|(?:begin|start|end)_(?:of_)?)?(?:\w{1,20}:|(?:ant|longcat)_)?"
    r"(?P<name>think|thought|reason|analysis|scratchpad)(?:ing|s)?(?:\s[^<>\[\]/]{0,99})?\|?[>\]\u25b7]"
    r"|<\|channel\|>\s*(?P<channel>[a-z]+)(?:[^<\n]{0,99}<\|message\|>)?"
    r"|(?P<end><\|(?:end|call)\|>)(?P<goes_on>\s*<\|start\|>assistant)?"
    r"|(?-i:assistant(?P<glued>analysis|commentary|final))|\A\s*+(?-i:analysis(?=[^\s:.,*a-z]))"
)
# Where another turn begins: nothing behind it answers this question.
_TURN = (
    r"(?P<turn></?s>|\[/?INST\]|<\|(?:im_start|im_end|eot_id|eom_id|endoftext|start_header_id|user|return)\|>"
    r"|<(?:start|end)_of_turn>|<\|start\|>(?!\s*assistant))"
)
_MARKS = re.compile(f"{_TURN}|{_REASONING}", re.IGNORECASE)
# A question that a model puts to itself, by the names that questions have.
_NEXT = re.compile(r"\b(?:premise|hypothesis)\b\W{0,3}:|</?(?:premise|hypothesis)>"
                   r"|^\W{0,6}(?:user|human|question|input|example)\b[^\n:]{0,20}:", re.IGNORECASE | re.MULTILINE)
_CORRECTS = re.compile(
    r"\b(?:wait|hold on|hang on|actually|oops|sorry|apologi[sz]e|apologies|scratch that|my bad|correction|corrected"
    r"|correcting|revised|revise|revising|mistake|mistaken|error|wrong|incorrect|instead|rather|however|but"
    r"|should (?:be|have been)|(?:let me|i|i'll|to) (?:correct|fix|redo)|reconsider(?:ing)?|rethink(?:ing)?"
    r"|re-?read(?:ing)?|re-?check(?:ing)?|double-?check(?:ing)?|re-?examin(?:e|ing)|re-?evaluat(?:e|ing)"
    r"|(?:second|closer) (?:look|thoughts?|reading)|on reflection|look(?:ing)? (?:again|closer|closely)"
    r"|therefore|thus|hence|final(?:ly)?|no(?=[,.!:]))\b", re.IGNORECASE,
)
_FINAL = re.compile(r"\bfinal\b", re.IGNORECASE)
_NOT = re.compile(r"n't\b|\b(?:no|not|never|was|were|(?:this|that|it) is final)\b", re.IGNORECASE)
_VERDICTS = (LABEL, "better", *CRITERIA)  # what an answer comes to; the rest are its reasons


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

    prompt: what was asked; an object that stands in it is no answer, and one that ends in <think> has begun the
    reasoning. A text that begins with an instruction between [INST] and [/INST] is read from behind it. What stands in
    reasoning is no answer, and there is none where reasoning is cut off. An answer has both keys and the label 0 or 1.
    """

    def accept(found: Mapping[str, Any]) -> dict[str, Any] | None:
        label, thought = as_label(found[LABEL]), found[THOUGHT]
        return None if label is None else {LABEL: label, THOUGHT: thought if _is_text(thought) else None}

    found, method = read_answer(text, (THOUGHT, LABEL), accept, prompt)
    return Parsed(found[LABEL], found[THOUGHT], method) if found else Parsed(None, None, method)


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


Accept = Callable[[Mapping[str, Any]], dict[str, Any] | None]


def read_answer(
    text: str, keys: Sequence[str], accept: Accept, prompt: str = ""
) -> tuple[dict[str, Any] | None, str]:
    """What ``accept`` makes of the first object with ``keys`` that it takes (None: not an answer), and the method.

    ``strict``: the text is that object and nothing else. ``object``: the first complete one among other text that
    stands neither in ``prompt`` nor in reasoning, or the final one where the first is taken back. ``none``: there is
    none, or a broken object before it holds another label, or what takes it back is not marked as final.
    """
    echoed = [found for _, _, found in objects_in(prompt)] if prompt else []
    text = _behind_prompt(text, prompt)
    whole = _whole(text)
    if isinstance(whole, Mapping) and set(keys) <= whole.keys() and whole not in echoed:
        answer = accept(whole)
        return answer, "none" if answer is None else "strict"
    objects = [(start, end, found) for start, end, found in objects_in(text, keys) if set(keys) <= found.keys()]
    spans = [(start, end) for start, end, _ in objects]
    reasoning, turns = _reasoning(text, spans, begun=_begins_reasoning(prompt) and not text.lstrip().startswith("{"))

    def behind(place: int) -> int:
        """Where the last reasoning that begins before ``place`` ends."""
        number = bisect(reasoning, (place, len(text)))
        return reasoning[number - 1][1] if number else 0

    told = [(start, end, accept(found)) for start, end, found in objects
            if behind(start) <= start and found not in echoed]
    usable = [(start, end) for start, end, answer in told if answer is not None]
    if not usable:
        return None, "none"
    # Another turn is another question. In this one, an answer behind more reasoning stands for those before it.
    limit = next((turn for turn in turns if turn >= usable[0][1]), len(text))
    if reasoning and reasoning[-1][0] < limit and reasoning[-1][1] > len(text):
        return None, "none"  # taken up once more, and cut off
    begin = max(behind(start) for start, _ in usable if start < limit)
    while told[0][0] < begin or told[0][2] is None:
        told.pop(0)
    start, end, answer = told[0]
    labels = _labels_of_broken(text, begin, spans, spans.index((start, end)), prompt) if LABEL in keys else set()
    if answer is None or not labels <= {answer.get(LABEL)}:
        return None, "none"
    limit = next((place for place, _ in reasoning if end <= place < limit), limit)
    answer = _last_word(text[:limit], [one for one in told if one[0] < limit], prompt)
    return answer, "none" if answer is None else "object"


def _last_word(
    text: str, told: Sequence[tuple[int, int, dict[str, Any] | None]], prompt: str
) -> dict[str, Any] | None:
    """Of objects in a text as (start, end, answer or None) the first, or what its author has put in its place."""
    (_, end, answer), *others = told

    def verdict(found: Mapping[str, Any] | None) -> list[Any]:
        return [(found or {}).get(name) for name in _VERDICTS]

    standing = verdict(answer)
    for start, behind, other in others:
        prose = text[end:start]
        corrects = _corrects(prose, prompt)
        if not corrects and _NEXT.search(prose):
            return answer
        if corrects and verdict(other) != standing:
            answer = other if _says_final(prose) else None
            standing = verdict(answer)
        end = behind
    rest = text[end:]
    begun = re.search(r'\{\s*+(?:"|\Z)', rest)  # an object that is broken or cut off
    if answer is not None and begun and _corrects(rest[: begun.start()], prompt):
        labels = {int(match.group(1) or match.group(2)) for match in _BROKEN.finditer(rest)}
        return answer if labels and labels == {answer.get(LABEL)} else None
    return answer


def _corrects(prose: str, prompt: str) -> bool:
    """Whether prose behind an object takes it back, before it comes to another question; an echo does not."""
    lines = "\n".join(line for line in prose.splitlines() if not line.strip() or line.strip() not in prompt)
    cue, question = _CORRECTS.search(lines), _NEXT.search(lines)
    return cue is not None and (question is None or cue.start() < question.start())


def _says_final(prose: str) -> bool:
    """Whether the last sentence before an object calls it final."""
    around = " \r\n:*_#`([<>"  # of a code fence, a list, bold letters
    prose = prose.rstrip(around).removesuffix("json").rstrip(around)
    last = re.split(r"[.!?\n]+", prose.rstrip(".!? \n"))[-1]
    return bool(_FINAL.search(last)) and not _NOT.search(last)


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


def tells_reasoning(text: str) -> bool:
    """Whether a text has a mark of reasoning in it."""
    return any(_kind_of(mark) not in (None, "end") for mark in _MARKS.finditer(text))


def _behind_prompt(text: str, prompt: str) -> str:
    """``text`` without an echo of the prompt before it."""
    if prompt and text.lstrip().startswith(prompt.strip()):
        return text.lstrip()[len(prompt.strip()) :]
    return text.partition("[/INST]")[2] if _INSTRUCTION.match(text) else text


def _begins_reasoning(prompt: str) -> bool:
    """Whether the last that a prompt says is that the model now thinks, as some chat templates have it."""
    marks = list(_MARKS.finditer(prompt))
    if not marks or prompt[marks[-1].end() :].strip():
        return False
    return _kind_of(marks[-1]) not in (None, "end", "final") and not _closes(marks[-1])


def _kind_of(mark: re.Match[str]) -> str | None:
    """None of a turn; what closes reasoning is of the kind that opens it, and "end" and "final" of channels alone."""
    if mark["turn"]:
        return None
    if mark["end"]:
        return "end"
    if mark["bracket"]:
        return (mark["bracket"] + mark["name"]).lower()
    return "final" if (mark["channel"] or mark["glued"] or "").lower() == "final" else "channel"


def _closes(mark: re.Match[str]) -> bool:
    return bool(mark["how"]) and mark["how"].lower().startswith(("/", "end"))


def _reasoning(text: str, spans: Sequence[tuple[int, int]], begun: bool) -> tuple[list[tuple[int, int]], list[int]]:
    """The stretches of reasoning (start, end) and the places outside them where another turn begins, in order.

    begun: the text begins in reasoning. Marks within an object are said by its thought. Where reasoning is closed
    that was not opened, all of its turn is reasoning; what is not closed goes beyond the end of the text.
    """
    reasoning: list[tuple[int, int]] = []
    turns: list[int] = []
    opened, begin = ("", 0) if begun else None, 0  # begin: of the turn
    ends = iter(spans)
    start, end = next(ends, (len(text), len(text)))
    for mark in _MARKS.finditer(text):
        while end <= mark.start() < len(text):
            start, end = next(ends, (len(text), len(text)))
        kind = _kind_of(mark)
        if start < mark.start():
            continue
        closes = _closes(mark) or kind == "final"
        if kind == "end" and opened is None and not mark["goes_on"]:
            kind = None  # of a turn
        if kind is None:
            if opened is None:
                turns.append(mark.start())
                begin = mark.end()
        elif opened is None and closes:
            while reasoning and reasoning[-1][0] >= begin:
                reasoning.pop()
            reasoning.append((begin, mark.end()))
        elif opened is None and kind != "end":
            opened = (kind, mark.start())
        elif opened and (kind == "final" or (closes or kind == "end") and opened[0] in ("", _opener(kind))):
            reasoning.append((opened[1], mark.end()))
            opened = None
    return [*reasoning, *([(opened[1], len(text) + 1)] if opened else [])], turns


def _opener(kind: str) -> str:
    return "channel" if kind == "end" else kind


def _labels_of_broken(text: str, begin: int, spans: Sequence[tuple[int, int]], number: int, prompt: str) -> set[int]:
    """The labels of broken objects before the one at ``spans[number]``, and of one around it."""
    starts = [begin, *(max(begin, end) for _, end in spans[:number])]
    parts = [text[start:end] for start, (end, _) in zip(starts, spans[: number + 1], strict=True)]
    parts[-1] += "\n" + text[spans[number][1] :].partition("{")[0]
    found = (match for part in parts for match in _BROKEN.finditer(part) if match.group() not in prompt)
    return {int(match.group(1) or match.group(2)) for match in found}
