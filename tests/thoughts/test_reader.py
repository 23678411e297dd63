"""Reading answers: a thousand known objects in every wrapping a model has for them, and what is no answer."""

import json
import string
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from datamap.thoughts.prompts import PAIR, PROMPTS, fill_tagged, load_prompt
from datamap.thoughts.reader import (
    ANALYSIS,
    CRITERIA,
    IMPROVED,
    LABEL,
    SIDES,
    THOUGHT,
    Parsed,
    as_label,
    completion_text,
    objects_in,
    parse_preference,
    parse_reflection,
    parse_scores,
    parse_thought,
)

NASTY = (
    "Step 1: The premise says so. Step 2: It is the same. Step 3: It follows.", 'He said "no" and left.', "} { }{ {{",
    '{"thought_process": "other", "predicted_label": 0}', '{"thought_process": "other", "predicted_label": 1}',
    'the "predicted_label": 0 of old, the "predicted_label": 1 of new', "line\nbreak\r\n",
    "a\\b \\\" \\n \\u0041 C:\\new",
    "```json\n{}\n```", "é ß 漢字 \U0001f600 \u2028 \u200b", "[INST] again [/INST]", "no </think> of mine", "</s><s>",
    "\t\x00",
    "[THINK] and <reasoning>, then [/THINK] <|channel|>final", "<|end|> assistantfinal", "Wait, no. Final answer:",
    "ends in a backslash\\", '"', "{", "}", "\\", "'single'", "$premise and $$", "[1, 2, {3}]", "null",
)


# What opens and closes reasoning: of most models, Magistral, Seed-OSS, prompts of old, LongCat, Sky-T1, Command A,
# Kimi, and Harmony with its special tokens and without them.
FORMS = [
    ("<think>", "</think>"), ("<THINK>", "</THINK>"), ("[THINK]", "[/THINK]"), ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"), ("<seed:think>", "</seed:think>"),
    ("<ant_thinking>", "</ant_thinking>"), ("<longcat_think>", "</longcat_think>"),
    ('<thought step="1">', "</thought>"), ("<scratchpad>", "</scratchpad>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"), ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>commentary to=functions.x <|message|>", "<|call|><|start|>assistant<|channel|>final<|message|>"),
    ("analysis", "assistantfinal"),
]
TAKES_BACK = (
    "Wait, actually that is wrong.", "Hmm, no. The dog is asleep!", "Actually, let me reconsider:",
    "I made a mistake above.\n\nCorrected:", "On second thought it does not say so.", "**Correction**",
    "But looking again at the premise: he may.", "That was not final. Wait:", "Note that this is final.",
)
SETTLES = ("so the final answer is", "So the final answer is:\n\n```json\n", "### Final answer\n",
           "Wait, that is wrong. My final answer:", "Oops. Final JSON: ")


def template(name="generate"):
    return load_prompt(PROMPTS / f"{name}.txt", PAIR)


def answer(thought="because", label=1, **more):
    return json.dumps({THOUGHT: thought, LABEL: label, **more})


def broken(thought, label):
    """Quotation marks that are not escaped: no JSON."""
    return f'{{"{THOUGHT}": "He said "{thought}" loudly.", "{LABEL}": {label}}}'


# --- a thousand cases --------------------------------------------------------------------------------------------


@st.composite
def written(draw, thought, label, labels=None):
    """An object with the two keys as JSON, in one of the ways to write it."""
    shown = draw(st.sampled_from(labels or [label, str(label)]))
    more = draw(st.sampled_from([{}, {}, {"note": {"a": [1, "{"]}}, {"confidence": 0.5}]))
    parts = {THOUGHT: thought, LABEL: shown, **more}
    if draw(st.booleans()):
        parts = dict(reversed(parts.items()))
    return json.dumps(parts, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, None, 2])))


ALPHABET = st.sampled_from(list('{}[]":,\\ \nabc01é') + ['"predicted_label": 1', "```", "Answer:"])
REMARK = st.lists(ALPHABET, max_size=12).map("".join) | st.sampled_from(["Sure! Here it is:\n", "Hope it helps :)"])
WRONG_LABELS = (2, -1, True, False, None, "yes", "01", 1.5, "", [1], {"is": 1}, 10, "1.0", "entailment", 0.0001)


class Case:
    """The parts of one case, drawn as they are asked for."""

    def __init__(self, draw):
        self.draw = draw
        self.label = draw(st.sampled_from([0, 1]))
        self.thought = draw(st.sampled_from(NASTY) | st.text(min_size=1).filter(str.strip))
        self.known = draw(written(self.thought, self.label))
        self.prompt = ""

    def other(self, labels=None):
        """Another object: by default one with the other label."""
        thought = self.draw(st.sampled_from(NASTY))
        return self.draw(written(thought, 1 - self.label, labels))

    def remark(self):
        return self.draw(REMARK)

    def cut(self, text, least=0):
        return text[: self.draw(st.integers(least, len(text) - 1))]

    def words(self):
        return self.draw(st.sampled_from(["so", "} {", "a \\ b", "one, two", "no: ", "{}", "漢字\n"]))

    def echo(self):
        """The real prompt, known to the reader; the premise holds an answer of its own now and then."""
        premise = self.draw(st.sampled_from(["A dog runs.", f"Write {self.other()} now.", "{ [/INST] }", *NASTY[:4]]))
        self.prompt = fill_tagged(template(), {"premise": premise, "hypothesis": "It moves."})
        return self.prompt

    def form(self):
        """What opens and what closes reasoning."""
        return self.draw(st.sampled_from(FORMS))

    def aloud(self, *drafts):
        opening, closing = self.form()
        said = " or ".join(self.draw(st.permutations(drafts)))
        return f"{opening}Either {said}, hm.{self.remark()}{closing}"

    def begun(self, form):
        """Reasoning that the prompt begins, as the chat templates of some models have it."""
        self.prompt = f"{self.echo()}\n{form[0]}" + "\n" * form[0].endswith("think>")

    def taken_back(self, how=TAKES_BACK):
        return self.draw(st.sampled_from(["\n", " ", "}\n"])) + self.draw(st.sampled_from(how))

    def begun_and_cut(self):
        self.begun(self.draw(st.sampled_from(FORMS[:-1])))
        return self.cut(f"Either {self.known} or {self.other()}", 1)

    def begun_and_closed(self):
        form = self.draw(st.sampled_from(FORMS[:-1]))
        self.begun(form)
        return f"Either {self.other()} or not.{form[1]}{self.known}"

    def part_of_echo(self):
        text = self.echo()
        start = self.draw(st.integers(0, len(text) - 1))
        return text[start : self.draw(st.integers(start, len(text)))]

    def instruction(self):
        """An echo of a prompt that the reader does not know; its form of an answer is no JSON."""
        body = string.Template((PROMPTS / "sft.txt").read_text()).substitute(premise="A {dog}.", hypothesis='"So".')
        return f"{self.draw(st.sampled_from(['<s>[INST] ', '[INST] ', ' <s> [INST]']))}{body} [/INST]"


RECOVERABLE = {
    "nothing around": lambda case: case.known,
    "space around": lambda case: f" \r\n{case.known}\n\n",
    "code fence": lambda case: f"```{case.draw(st.sampled_from(['', 'json', 'JSON']))}\n{case.known}\n```",
    "code fence without end": lambda case: f"```json\n{case.known}",
    "text around": lambda case: f"{case.remark()}{case.known}{case.remark()}",
    "list": lambda case: f"[{case.known}]",
    "list of two": lambda case: f"[{case.known}, {case.other()}]",
    "list without end": lambda case: f"[{case.known}, ",
    "nested": lambda case: f'{{"answer": {{"1": [{case.known}]}}, "n": 1}}',
    "nested, without end": lambda case: f'{{"answer": {case.known}',
    "deep": lambda case: '{"a": [' * 40 + case.known + "]}" * 40,
    "doubled": lambda case: f"{case.known}{case.draw(st.sampled_from(['', ' ', chr(10)]))}{case.other()}",
    "doubled in remarks": lambda case: f"{case.remark()}{case.known}{case.remark()}{case.other()}",
    "half a second": lambda case: f"{case.known}\n{case.cut(case.other(), 1)}",
    "broken second": lambda case: f"{case.known}\n{broken('so', 1 - case.label)}",
    "the next question": lambda case: f"{case.known}</s>[INST] And now? [/INST] {case.other()}",
    "a brace too many": lambda case: f"{case.known}}}",
    "half a first": lambda case: f"{case.cut(case.other(), 1)}\n{case.known}",
    "a first with another label": lambda case: f"{case.other(WRONG_LABELS)}\n{case.known}",
    "a first that lacks a key": lambda case: f'{{"{LABEL}": {1 - case.label}}} {{"{THOUGHT}": "so"}}\n{case.known}',
    "a form before": lambda case: f'{{"{THOUGHT}": <string>, "{LABEL}": {1 - case.label}}}\n{case.known}',
    "dots before": lambda case:
        f'{{"{THOUGHT}": "...", "{LABEL}": ...}} {{"{THOUGHT}": "", "{LABEL}": 0|1}} {case.known}',
    "broken first of the same label": lambda case: f"{broken('so', case.label)}\n{case.known}",
    "echo": lambda case: f"{case.echo()}\n{case.known}",
    "echo after a mark": lambda case: f"<s> {case.echo()} {case.known}",
    "part of an echo": lambda case: f"{case.part_of_echo()}\n{case.known}",
    "echo behind": lambda case: f"{case.known}\n{case.echo()}",
    "instruction": lambda case: f"{case.instruction()} {case.known}</s>",
    "instruction, doubled": lambda case: f"{case.instruction()} {case.known} </s>{case.instruction()} {case.other()}",
    "byte order mark": lambda case: f"\ufeff{case.known}",
    "Windows": lambda case: f"Yes:\r\n{json.dumps(json.loads(case.known), indent=1)}\r\n".replace("\n", "\r\n"),
    "line breaks in the text": lambda case: f'{{"{THOUGHT}": "Step 1:\nso\t.", "{LABEL}": {case.label}}}',
    "no number": lambda case: f'{{"score": NaN, "{THOUGHT}": "so", "{LABEL}": {case.label}, "of": -Infinity}}',
    "the same key twice": lambda case: f'{{"{LABEL}": {case.label}, "{THOUGHT}": "so", "{LABEL}": {case.label}}}',
    "no text": lambda case: case.draw(written(case.draw(st.sampled_from(["", " ", None, 3, ["a", "b"], {"1": "a"}])),
                                              case.label)),
    "long": lambda case: "{ " * 3000 + case.known + '{"' * 3000,
}
WITHOUT = {
    "cut off": lambda case: case.cut(case.known),
    "cut off in a fence": lambda case: f"```json\n{case.cut(case.known)}\n```",
    "cut off in a list": lambda case: f"[{case.cut(case.known)}]",
    "cut off behind the echo": lambda case: f"{case.echo()}\n{case.cut(case.known)}",
    "cut off behind an instruction": lambda case: f"{case.instruction()} {case.cut(case.known)}",
    "the echo and nothing else": lambda case: case.echo(),
    "part of an echo and nothing else": lambda case: case.part_of_echo(),
    "the echo, cut off, of a prompt that is not known": lambda case: f"[INST] Such as {case.known}. Premise: a",
    "another label": lambda case: case.other(WRONG_LABELS),
    "another label in a fence": lambda case: f"```\n{case.other(WRONG_LABELS)}\n```{case.remark()}",
    "a key missing": lambda case:
        case.known.replace(*case.draw(st.sampled_from([(THOUGHT, "a"), (LABEL, "label"), (LABEL, LABEL.upper())]))),
    "two values": lambda case: f'{{"{THOUGHT}": "so", "{LABEL}": {case.label}, "{LABEL}": {1 - case.label}}}',
    "broken": lambda case: f"{case.remark()}{broken(case.words(), case.label)}",
    "broken, then another label": lambda case: f"{broken(case.words(), case.label)}\n{case.other()}",
    "broken, then another question": lambda case: f"{broken('so', case.label)}</s>[INST] b [/INST]{case.other()}",
    "broken by an object": lambda case: f'{{"{THOUGHT}": "He wrote {case.other()} once.", "{LABEL}": {case.label}}}',
    "broken, the label first": lambda case:
        f'{{"{LABEL}": {case.label}, "{THOUGHT}": "He said "so" and"}} {case.other()}',
    "in single quotes": lambda case: f"{{'{THOUGHT}': 'so', '{LABEL}': {case.label}}}",
    "in words": lambda case: f'{LABEL}: {case.label}. "{LABEL}": {case.label}',
    "a string": lambda case: json.dumps(case.known),
}
REASONED = {
    "aloud": lambda case: f"{case.aloud(case.other())}\n{case.known}",
    "aloud, drafts of both": lambda case: f"{case.aloud(case.other(), case.known)} {case.known}{case.remark()}",
    "aloud, a broken draft": lambda case:
        f"{case.aloud(broken('so', 1 - case.label), case.cut(case.other()))}{case.known}",
    "aloud twice": lambda case: f"{case.aloud(case.other())}Hm.{case.aloud(case.other())}\n{case.known}",
    "aloud between two": lambda case: f"{case.other()}{case.aloud('so')}{case.known}",
    "aloud, doubled": lambda case: f"{case.aloud(case.other())}{case.known}{case.other()}",
    "aloud of the next question": lambda case:
        f"{case.aloud(case.other())}{case.known}</s>[INST] And now? [/INST]{case.aloud('a')}{case.other()}",
    "aloud, begun in the prompt": lambda case:
        f"Hm, {broken('so', 1 - case.label)} or {case.other()}.{case.form()[1]}{case.known}",
    "aloud, begun in the known prompt": lambda case: case.begun_and_closed(),
    "no reasoning, though begun in the prompt": lambda case:
        (case.begun(case.draw(st.sampled_from(FORMS[:-1]))), f"{case.known} {case.other()}")[1],
    "taken back for the final one": lambda case: f"{case.other()}{case.taken_back(SETTLES)}{case.known}",
    "taken back twice": lambda case:
        f"{case.known}{case.taken_back()}{case.other()}{case.taken_back(SETTLES)}{case.known}",
    "taken back and confirmed": lambda case:
        f"{case.known}{case.taken_back()}{case.draw(written('so', case.label))}",
    "the next question has such words": lambda case:
        f"{case.known}\n\nPremise: But wait, a final mistake.\nHypothesis: No, actually.\n{case.other()}",
    "words of the next turn": lambda case: f"{case.known}<|im_end|>\nWait, actually: {case.other()}",
}
REASONED_WITHOUT = {
    "said aloud": lambda case: f"{case.aloud(case.known)}{case.draw(st.sampled_from(['', ' So.']))}",
    "said aloud, in the prompt": lambda case: f"Hm, {case.known} or so.{case.form()[1]}",
    "aloud, cut off": lambda case: f"{case.form()[0]}Either {case.known} or {case.cut(case.other())}",
    "aloud, cut off behind another mark": lambda case:
        f"{case.draw(st.sampled_from(FORMS[-3:]))[0]}I shall close with </think>, so {case.known} or",
    "aloud, begun in the known prompt, cut off": lambda case: case.begun_and_cut(),
    "an answer, then aloud, cut off": lambda case: f"{case.known}\n{case.draw(st.sampled_from(FORMS[:-1]))[0]}No",
    "taken back": lambda case: f"{case.known}{case.taken_back()}\n{case.other()}",
    "taken back for the final one, and again": lambda case:
        f"{case.known}{case.taken_back(SETTLES)}{case.other()}{case.taken_back()}{case.known}",
    "taken back, cut off": lambda case: f"{case.known}{case.taken_back()} {case.cut(case.other(), 1)}",
    "taken back by a broken one": lambda case:
        f"{case.known}{case.taken_back((*TAKES_BACK, *SETTLES))} {broken('so', 1 - case.label)}",
    "taken back by another label": lambda case:
        f"{case.known}{case.taken_back((*TAKES_BACK, *SETTLES))} {case.other(WRONG_LABELS)}",
}


@st.composite
def cases(draw, recoverable, without):
    kind = draw(st.sampled_from([*recoverable, *without]))
    case = Case(draw)
    text = {**recoverable, **without}[kind](case)
    return kind, text, case, case.label if kind in recoverable else None


@pytest.mark.parametrize(("readable", "without"), [(RECOVERABLE, WITHOUT), (REASONED, REASONED_WITHOUT)],
                         ids=["wrappings", "reasoning"])
def test_a_thousand_known_objects(readable, without):
    seen: Counter[str] = Counter()
    wrong, lost = [], []

    @settings(max_examples=1000, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(cases(readable, without))
    def look(drawn):
        kind, text, case, label = drawn
        found = parse_thought(text, case.prompt)
        seen[kind] += 1
        if found.label is not None and found.label != label:
            wrong.append((kind, text, case.prompt, found))
        if found.label is None and label is not None:
            lost.append((kind, text, case.prompt))
        assert (found.method == "none") == (found.label is None)
        if found.label is None:
            assert found.thought is None
        elif case.known in text:
            assert found.thought == case.thought, kind

    look()
    assert seen.total() == 1000
    assert set(seen) == {*readable, *without}
    recoverable = sum(seen[kind] for kind in readable)
    assert 500 < recoverable < 800
    assert wrong == []
    assert len(lost) <= 0.01 * recoverable, lost[:3]


@pytest.mark.parametrize("thought", NASTY)
@pytest.mark.parametrize("label", [0, 1])
def test_the_thought_is_read_as_it_was_written(thought, label):
    text = completion_text(thought, label)
    assert "\n" not in text
    assert list(json.loads(text)) == [THOUGHT, LABEL]
    assert parse_thought(text) == Parsed(label, thought, "strict")
    assert parse_thought(f"```json\n{text}\n``` {answer('x', 1 - label)}") == Parsed(label, thought, "object")


@settings(deadline=None)
@given(st.text(min_size=1).filter(str.strip), st.sampled_from([0, 1]))
def test_what_a_model_is_trained_to_write_is_read_back(thought, label):
    assert parse_thought(completion_text(thought, label)) == Parsed(label, thought, "strict")


@pytest.mark.parametrize("thought", ['a "b" {c}', '{"thought_process": "x", "predicted_label": 1}', "\\"])
@pytest.mark.parametrize("behind", ["", "\n```", "}", '"}', "</s>"])
def test_cut_off_anywhere_there_is_no_answer(thought, behind):
    text = answer(thought, 0, note={"a": "}"})
    assert parse_thought(text).label == 0
    for end in range(len(text)):
        cut = text[:end] + behind
        if end < len(text) - 1 or behind != "}":
            whole = cut == text or (cut.endswith("}") and _is_json(cut))
            assert whole or parse_thought(cut) == Parsed(None, None, "none"), cut


def _is_json(text):
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


@settings(deadline=None)
@given(st.text())
def test_of_any_text_something_can_be_said(text):
    found = parse_thought(text)
    assert found.label in (0, 1, None)
    assert (found.label is None) == (found.method == "none")


# --- one by one --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "method"),
    [(answer(), "strict"), (f"\n\t{answer()} \r\n", "strict"), (answer(label="1"), "strict"),
     (answer(label=" 1 "), "strict"), (answer(label=1.0), "strict"), (answer(more={"a": [1]}), "strict"),
     (f"[INST] a [/INST] {answer()}", "strict"),
     (f"<s>[INST] {answer(label=0)} [/INST]{answer()}", "strict"), (f"[{answer()}]", "object"),
     (f"\ufeff{answer()}", "object"), (f"{answer()}</s>", "object"), (f"{answer()}, {answer(label=0)}", "object"),
     (f"```\n{answer()}\n```", "object"), (f"<think>\n</think>{answer()}", "object"),
     (f"{answer('a </think> b')} done", "object"), (f"<think>no</think> {answer('a </think> b')}.", "object"),
     (f"so: {answer(label=2)} {answer()}", "object"), (f'{{"{LABEL}": 0}} {answer()}', "object")],
)
def test_how_it_was_read_is_said(text, method):
    found = parse_thought(text)
    assert (found.label, found.method) == (1, method)


@pytest.mark.parametrize(
    "text",
    ["", " ", "1", "null", "[]", "{}", "true", '"1"', "predicted_label: 1", "The answer is 1.", "[" * 5000, "{" * 5000,
     '{"a":' * 5000, answer()[:-1], answer().replace('"', "'"), str({THOUGHT: "a", LABEL: 1}),
     json.dumps({THOUGHT: "a"}), json.dumps({LABEL: 1}), json.dumps([THOUGHT, LABEL, 1]),
     json.dumps({THOUGHT: {LABEL: 1}}), json.dumps({"a": {THOUGHT: "x"}, LABEL: 1}),
     json.dumps({"thought": "a", LABEL: 1}),
     f'{{"{THOUGHT}": "a", "{LABEL}": 01}}', f'{{"{THOUGHT}": "a", "{LABEL}": 0 or 1}}',
     f'{{"{THOUGHT}": "a", "{LABEL}": +1}}', f'{{"{THOUGHT}": "a", "{LABEL}": NaN}}',
     f'{{"{THOUGHT}": "a", "{LABEL}": {"1" * 5000}}}',
     f"<think>{answer()}</think>", f"<think>{answer()}", f"[INST] {answer()}", f"[INST] {answer()} [/INST] no"],
)
def test_what_is_no_answer_is_not_guessed(text):
    assert parse_thought(text) == Parsed(None, None, "none")


@pytest.mark.parametrize("label", WRONG_LABELS)
def test_another_label_is_none(label):
    assert as_label(label) is None
    assert parse_thought(answer(label=label)) == Parsed(None, None, "none")
    assert parse_thought(f"```{answer(label=label)}```") == Parsed(None, None, "none")
    # Whoever gives another label and then a right one has answered.
    assert parse_thought(f"{answer(label=label)} {answer('second')}") == Parsed(1, "second", "object")


@pytest.mark.parametrize(
    ("value", "label"), [(0, 0), (1, 1), ("0", 0), ("1", 1), (" 1\n", 1), (0.0, 0), (1.0, 1), (float("nan"), None),
                         (float("inf"), None), (b"1", None), ("１", None), (2**70, None), ("True", None)]
)
def test_labels_are_numbers_or_their_strings(value, label):
    found = as_label(value)
    assert found == label
    assert found is None or type(found) is int


@pytest.mark.parametrize("thought", ["", " \n", None, 5, ["Step 1", "Step 2"], {"step 1": "a"}, True])
def test_a_label_counts_also_where_the_thought_is_no_text(thought):
    assert parse_thought(answer(thought, 0)) == Parsed(0, None, "strict")
    assert parse_thought(f"So: {answer(thought, 0)}") == Parsed(0, None, "object")


@pytest.mark.parametrize("label", [0, 1])
def test_what_stands_in_the_prompt_is_no_answer(label):
    example = answer("as in the example", label)
    prompt = f"Such as {example} or [{answer('another', 1 - label)}]."
    for text in (example, f"{prompt}\n", prompt[4:], prompt[:-9], f"{example}{example}", f"<s> {prompt}",
                 json.dumps(json.loads(example), indent=4), f"```json\n{example}\n```"):
        assert parse_thought(text, prompt) == Parsed(None, None, "none"), text
        for answered in (1 - label, label):
            found = parse_thought(f"{text}\n{answer('my own', answered)}", prompt)
            assert (found.label, found.thought) == (answered, "my own"), text
    assert parse_thought(f"{prompt} {example}", prompt).label is None  # nor where a model repeats it as its own


def test_the_examples_of_our_prompts_are_no_answers():
    readers: dict[str, Any] = {"generate": parse_thought, "reflect": parse_reflection}
    for name, read in readers.items():
        text = (PROMPTS / f"{name}.txt").read_text()
        example = text.partition("<answer>\n")[2].partition("\n</answer>")[0]
        read_alone = read(example)
        assert (read_alone.label if name == "generate" else read_alone[LABEL]) == 1
        assert read(text, text) in (None, Parsed(None, None, "none"))
        assert read(example, text) in (None, Parsed(None, None, "none"))


def test_a_broken_object_before_an_answer():
    """Of a model that goes on with a question of its own, for one; where both say the same, nothing is guessed."""
    for first, second in ((0, 1), (1, 0)):
        assert parse_thought(f"{broken('no', first)} {answer('b', second)}") == Parsed(None, None, "none")
        assert parse_thought(f"{broken('no', first)} {answer('b', first)}") == Parsed(first, "b", "object")
        assert parse_thought(f"{answer('b', second)} {broken('no', first)}") == Parsed(second, "b", "object")
        prompt = f"Mind the marks: {broken('no', first)}"  # what stands in the prompt is nobody's answer
        assert parse_thought(f"I do: {broken('no', first)} {answer('b', second)}", prompt).label == second
        aloud = f"<think>{answer('a', first)} or {broken('no', first)}</think>"
        assert parse_thought(f"{aloud} {answer('b', second)}").label == second
        half = f'{{"{THOUGHT}": "a", "{LABEL}": {first}'
        for begun in (half, half + ",", half[:-1], half[:20]):
            assert parse_thought(f"{begun}\n{answer('b', second)}") == Parsed(second, "b", "object")


# --- reasoning, and what is taken back ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[0])
def test_a_draft_in_reasoning_is_no_answer(form):
    opening, closing = form
    draft, known = answer("a", 0), answer("a", 1)
    text = f"{opening}Draft {draft} no.{closing}{known}"
    assert parse_thought(text) == Parsed(1, "a", "object")
    for end in range(len(text)):  # cut off anywhere, also in the middle of a mark
        assert parse_thought(text[:end]).label is None or end < len(opening), text[:end]
    assert parse_thought(f"Hm. {text}" if opening != "analysis" else text).label == 1
    assert parse_thought(f"{known} {draft}").label == 1
    # The same of the other readers.
    scores = json.dumps({**SCORES, "brevity": {"reason": "a", "score": 1}})
    found = parse_scores(f"{opening}So: {scores}{closing}{json.dumps(SCORES)}")
    assert found is not None and found["brevity"] == 5
    assert parse_preference(f"{opening}So: {json.dumps(PREFERENCE)} or") is None


@pytest.mark.parametrize("form", FORMS[:-1], ids=lambda form: form[0])
def test_reasoning_that_the_prompt_begins(form):
    draft, known = answer("a", 0), answer("a", 1)
    for prompt in (f"Question? {form[0]}\n", f"<think>{draft}</think> Question?<|im_end|>{form[0]}"):
        assert parse_thought(f"Draft {draft} no.", prompt) == Parsed(None, None, "none")
        assert parse_thought(f"Draft {draft} no.{form[1]}{known}", prompt) == Parsed(1, "a", "object")
        # A model that was taught to answer at once.
        assert parse_thought(known, prompt) == Parsed(1, "a", "strict")
        assert parse_thought(f"{known} {draft}", prompt) == Parsed(1, "a", "object")
    for prompt in (f"Question? {form[0]}\n{form[1]}\n", f"Think in {form[0]}, then answer."):
        assert parse_thought(f"Draft {draft} no.", prompt) == Parsed(0, "a", "object")


@pytest.mark.parametrize("words", TAKES_BACK)
def test_what_is_taken_back_is_no_answer(words):
    assert parse_thought(f"{answer('a', 0)}\n{words}\n{answer('b', 1)}") == Parsed(None, None, "none")
    assert parse_thought(f"{answer('a', 1)}\n{words}\n{answer('b', 1)}") == Parsed(1, "a", "object")
    assert parse_thought(f"{answer('a', 1)}\n{words}") == Parsed(1, "a", "object")  # by nothing


@pytest.mark.parametrize("words", SETTLES)
def test_the_last_that_is_called_final_is_the_answer(words):
    first, second = answer("a", 0), answer("b", 1)
    assert parse_thought(f"{first} {words} {second}") == Parsed(1, "b", "object")
    assert parse_thought(f"{first} Wait. {second} {words} {first}") == Parsed(0, "a", "object")
    assert parse_thought(f"{first} {words} {second} No, wait: {first}") == Parsed(None, None, "none")
    scores = {**SCORES, "brevity": {"reason": "of brevity", "score": 1}}
    found = parse_scores(f"{json.dumps(SCORES)} {words} {json.dumps(scores)}")
    assert found is not None and found["brevity"] == 1
    assert parse_preference(f'{{"reason": "x", "better": "A"}} Wait. {json.dumps(PREFERENCE)}') is None
    other = {"reason": "Put otherwise.", "better": "B"}
    assert parse_preference(f"{json.dumps(PREFERENCE)} Wait. {json.dumps(other)}") == READ["preference"][2]


def test_reasoning_and_turns_between_answers():
    a, b, c = answer("a", 0), answer("b", 1), answer("c", 1)
    cases: dict[str, int | None] = {
        f"{a}<think>Wait, {b}</think>Done.": 0,  # more reasoning comes to no other answer
        f"{a}<think>Say [INST] and </s>.</think>{b}": 1,  # marks of turns within reasoning begin none
        f"{a}</s>[INST] And now? [/INST]Hm, {b}</think>{c}": 0,  # it was begun in the prompt of the second turn
        f"<think>x</think>{a}<think>y</think>z</think>": None,  # all of it was begun before
        f"<think>x</think>{a}<think>y</think>z</think>{b}": 1,
        f"{a}\nPremise: x\nHypothesis: y\n{b} Wait, actually: {c}": 0,  # of the next question
        f"{a} Wait: {broken('so', 0)}": 0,
        f"{a} Wait: {broken('so', 1)}": None,
        f"{a} No, wait.<|im_end|>{b}": 0,
    }
    assert {text: parse_thought(text).label for text in cases} == cases
    echoed = f"{a}\nWait, read it again.\n{b}"
    assert parse_thought(echoed).label is None
    assert parse_thought(echoed, "Label them.\nWait, read it again.\nThen answer.").label == 0


# --- texts without end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["{" * 10**6, '{"' * 500_000, '{"a":' * 200_000, "{}" * 500_000, "[" * 10**6, '{"a":[' * 160_000,
     '{"thought_process": "' * 50_000, '"predicted_label": 1, ' * 45_000, "</think>" * 125_000, "[INST]" * 160_000,
     '{"a": 1}' * 60_000, " " * 10**6, '{"thought_process": "' + "a" * 10**6, "\\" * 10**6, '{"\\"' * 250_000,
     '{"predicted_label": 1, "thought_process": "' * 20_000,
     '"thought_process": "' + '"predicted_label": 1, ' * 45_000],
    ids=lambda text: text[:12],
)
def test_a_megabyte_is_read_in_a_moment(text):
    began = time.perf_counter()
    assert parse_thought(text).label is None
    assert parse_thought(f"{answer(label=0)} {text}").label == (None if "</think>" in text else 0)
    assert parse_thought(f"{text} {answer(label=0)}").label in (None, 0)
    assert time.perf_counter() - began < 8  # the square of a megabyte takes minutes


def test_a_long_answer():
    thought = 'The "{" of it. ' * 70_000
    assert parse_thought(answer(thought, 0)) == Parsed(0, thought, "strict")
    assert parse_thought("{ " * 10_000 + answer(thought, 0) + "}") == Parsed(0, thought, "object")


def test_places_of_objects_in_a_long_text():
    text = "{x} " * 3000 + '{"a": 1}' + ' {"b": ' * 2 + "é" * 5000 + '{"c": {"d": {}}}'
    found = list(objects_in(text))
    assert [one for *_, one in found] == [{"a": 1}, {"c": {"d": {}}}, {"d": {}}]
    assert all(json.loads(text[start:end]) == one for start, end, one in found)
    assert [one for *_, one in objects_in(text, ["c"])] == [{"a": 1}, {"c": {"d": {}}}]


# --- the other readers -------------------------------------------------------------------------------------------

REFLECTION = {ANALYSIS: 'It "overlooks" {this}.', IMPROVED: "Step 1: a. Step 2: b. Step 3: c.", LABEL: 1}
SCORES = {name: {"reason": f"of {name}", "score": number} for number, name in enumerate(CRITERIA, 3)}
PREFERENCE = {"reason": "Shorter.", "better": "B"}
READ: dict[str, Any] = {
    "reflection": (parse_reflection, REFLECTION, REFLECTION),
    "scores": (parse_scores, SCORES, {"coherence": 3, "coherence_reason": "of coherence", "correctness": 4,
                                      "correctness_reason": "of correctness", "brevity": 5,
                                      "brevity_reason": "of brevity"}),
    "preference": (parse_preference, PREFERENCE, {"better": "B", "reason": "Shorter."}),
}


@pytest.mark.parametrize("kind", READ)
def test_the_other_readers(kind):
    read, written, expected = READ[kind]
    text = json.dumps(written)
    for one in (text, f"```json\n{text}\n```", f"[{text}]", f"So: {text} {text}", json.dumps({"answer": written}),
                json.dumps({**written, "more": 1}), f"<think>{{}} {text[:-1]}</think>{text}"):
        assert read(one) == expected
    for one in ("", text[:-1], text.replace('"', "'"), f"<think>{text}</think>", answer(), "1", "B"):
        assert read(one) is None
    for key in written:
        assert read(json.dumps({name: value for name, value in written.items() if name != key})) is None
        unusable: tuple[Any, ...] = (None, "", " ", 7, [], {}, True)
        for value in unusable:
            assert read(json.dumps({**written, key: value})) is None
    assert read(text, f"Such as {text}") is None
    assert read(f"{text} {json.dumps({**written, 'more': 1})}", f"Such as {text}") == expected


def test_labels_of_reflections_are_read_as_those_of_thoughts():
    assert parse_reflection(json.dumps({**REFLECTION, LABEL: "0"})) == {**REFLECTION, LABEL: 0}
    for label in WRONG_LABELS:
        assert parse_reflection(json.dumps({**REFLECTION, LABEL: label})) is None
    first = f'{{"{ANALYSIS}": "a", "{IMPROVED}": "He said "no".", "{LABEL}": 0}}'
    assert parse_reflection(f"{first} {json.dumps(REFLECTION)}") is None
    assert parse_reflection(first.replace("0", "1") + json.dumps(REFLECTION)) == REFLECTION


@pytest.mark.parametrize("score", [0, 6, 3.5, "6", "", "four", None, True, [4], -1, "4/5"])
def test_a_score_is_a_whole_number_from_1_to_5(score):
    assert parse_scores(json.dumps({**SCORES, "brevity": {"reason": "a", "score": score}})) is None
    for number in (1, 2, 3, 4, 5):
        for good in (number, str(number), float(number)):
            found = parse_scores(json.dumps({**SCORES, "brevity": {"reason": "a", "score": good}}))
            assert found is not None and found["brevity"] == number
            assert type(found["brevity"]) is int


@pytest.mark.parametrize("better", ["a", "C", "A or B", 0, None, ["A"], "first"])
def test_a_preference_is_one_of_three(better):
    assert parse_preference(json.dumps({"reason": "x", "better": better})) is None
    for side in SIDES:
        assert parse_preference(json.dumps({"reason": "x", "better": side})) == {"reason": "x", "better": side}
