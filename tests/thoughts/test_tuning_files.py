"""Fine-tuning files of others: text or messages taken apart into pair, thought, label and prompt."""

import json
import string

import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from datamap.core.errors import UserError
from datamap.core.files import read_rows
from datamap.thoughts.prompts import PAIR, TUNED, load_prompt
from datamap.thoughts.reader import completion_text
from datamap.thoughts.tuning_files import tuning_column, tuning_rows

SAMPLE = DATA / "nli_thoughts" / "sample_ft.jsonl"
PROMPT = "Premise: $premise\nHypothesis: $hypothesis\n\nDoes it cost $$5? Say it in {\"thought_process\": ...}."
PAIRS = [("A dog runs.", "An animal moves."), ("It costs $5.", "It is [cheap]."), ("Paul: \"no\"", "Paul says no.")]
TURNS = {
    "mistral": "<s>[INST] {asked} [/INST] {answer} </s>",
    "chatml": "<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>",
    "alpaca": "### Instruction:\n{asked}\n\n### Response:\n{answer}",
}
WORDS = st.text(alphabet="abc $\\{}.*+?[]()|ü", min_size=1, max_size=30).map(str.strip).filter(bool)


def row(premise, hypothesis, thought="step 1: so it is.", label=1, turns="mistral", prompt=PROMPT, **more):
    asked = string.Template(prompt).substitute(premise=premise, hypothesis=hypothesis)
    return {"text": TURNS[turns].format(asked=asked, answer=completion_text(thought, label)), **more}


def messages(premise, hypothesis, thought="so it is.", label=0, system=False):
    asked = string.Template(PROMPT).substitute(premise=premise, hypothesis=hypothesis)
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": completion_text(thought, label)}]
    return {"messages": [{"role": "system", "content": "Be brief."}] * system + turns}


def facts(rows):
    return [(each["premise"], each["hypothesis"], each["thought_process"], each["label"]) for each in rows]


def test_the_prompt_of_the_file_and_its_pairs_are_found():
    rows = [row(*pair, label=number % 2, id=number) for number, pair in enumerate(PAIRS)]
    assert tuning_column(rows) == "text"
    found, template = tuning_rows(rows, "text", "x.jsonl")
    assert template.template == PROMPT
    assert facts(found) == [(*pair, "step 1: so it is.", number % 2) for number, pair in enumerate(PAIRS)]
    assert [each["id"] for each in found] == ["0", "1", "2"] and {each["source"] for each in found} == {"original"}


@pytest.mark.parametrize("turns", TURNS)
@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(WORDS, WORDS, WORDS, st.sampled_from([0, 1])), min_size=1, max_size=4))
def test_whatever_marks_the_turns_a_named_prompt_finds_what_was_put_in(turns, pairs):
    rows = [row(premise, hypothesis, thought, label, turns) for premise, hypothesis, thought, label in pairs]
    found, _ = tuning_rows(rows, "text", "x.jsonl", string.Template(PROMPT))
    assert facts(found) == pairs


def test_messages_of_a_user_and_an_assistant():
    rows = [messages(*PAIRS[0]), messages(*PAIRS[1], label=1, system=True)]
    assert tuning_column(rows) == "messages"
    found, template = tuning_rows(rows, "messages", "x.jsonl")
    assert template.template == PROMPT and [each["id"] for each in found] == ["1", "2"]
    assert facts(found) == [(*PAIRS[0], "so it is.", 0), (*PAIRS[1], "so it is.", 1)]


def test_a_prompt_that_ends_in_the_pair_ends_with_its_turn():
    prompt = "Given $premise, is it so that $hypothesis"
    for turns in ("mistral", "chatml"):
        found, _ = tuning_rows([row("a.", "b.", turns=turns, prompt=prompt)], "text", "x", string.Template(prompt))
        assert facts(found) == [("a.", "b.", "step 1: so it is.", 1)]


def test_chains_of_thought_are_no_fine_tuning_file():
    assert tuning_column([{"id": 1, "premise": "a", "hypothesis": "b", "thought_process": "c", "text": "d"}]) is None
    assert tuning_column([{"text": "a"}, {"id": 1}]) is None
    assert tuning_column([]) is None


def test_rows_without_an_answer_are_left_out_and_counted(caplog):
    caplog.set_level("INFO")
    rows = [row(*PAIRS[0], id="a"), {**row(*PAIRS[1], id="b")}, row(*PAIRS[2], id="c")]
    rows[1]["text"] = rows[1]["text"].replace('"predicted_label": 1', '"predicted_label": 7')
    found, _ = tuning_rows(rows, "text", "x.jsonl")
    assert [each["id"] for each in found] == ["a", "c"]
    assert "1 of 3 rows ('b') have no readable answer" in caplog.text
    with pytest.raises(UserError, match="no row has an answer with thought_process and predicted_label"):
        tuning_rows(rows[1:2], "text", "x.jsonl")


WRONG = {
    "another prompt": ([row(*PAIRS[0]), row(*PAIRS[1], prompt=PROMPT.replace("cost", "need"))], "row 2: "),
    "no pair": ([{"text": "[INST] Tell a joke. [/INST] Ha."}], "no lines Premise: and Hypothesis:"),
    "no text": ([{"text": 3}], "row 1: text is 3, no text"),
    "one id twice": ([row(*PAIRS[0], id=1), row(*PAIRS[1], id="1")], "1 ids occur more than once"),
    "three turns": ([{"messages": messages(*PAIRS[0])["messages"] * 2}], "a user and an assistant, one each"),
    "no messages": ([{"messages": "user: hello"}], "a user and an assistant, one each"),
    "no roles": ([{"messages": [{"content": "a"}, {"content": "b"}]}], "a user and an assistant, one each"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_taken_apart_is_one_line(case):
    rows, says = WRONG[case]
    column = tuning_column(rows)
    assert column
    with pytest.raises(UserError) as caught:
        tuning_rows(rows, column, "x.jsonl")
    assert says in str(caught.value) and "x.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_a_prompt_that_is_named_must_be_that_of_the_file():
    with pytest.raises(UserError, match="--prompt_file"):
        tuning_rows([row(*PAIRS[0])], "text", "x.jsonl", load_prompt(TUNED, PAIR))


@pytest.mark.skipif(not SAMPLE.exists(), reason="public data nli_thoughts is not here")
def test_a_real_file_comes_back_but_for_blanks():
    rows = read_rows(SAMPLE)
    found, template = tuning_rows(rows, "text", SAMPLE)
    assert len(found) == len(rows) == 100
    for before, after in zip(rows, found, strict=True):
        asked = template.substitute(premise=after["premise"], hypothesis=after["hypothesis"])
        answer = json.dumps({"thought_process": after["thought_process"], "predicted_label": after["label"]},
                            ensure_ascii=False)
        assert f"<s>[INST] {asked} [/INST] {answer} </s>".split() == before["text"].split()
