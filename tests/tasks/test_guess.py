"""The task and its columns, guessed from column names and values."""

import pytest

from datamap.core.errors import UserError
from datamap.tasks.guess import Guess, guess_task

TEXTS = ["a film to see", "a dull film", "we liked it", "nobody laughed", "a warm story", "it was long"]
OTHERS = ["one of them", "two of them", "three of them", "four of them", "five of them", "six of them"]
LABELS = ["good", "bad", "good", "bad", "good", "bad"]
NUMBERS = [0, 1, 1, 0, 1, 0]
IDS = [str(row) for row in range(6)]


@pytest.mark.parametrize("rows, expected", [
    ({"id": IDS, "question": TEXTS, "context": OTHERS, "answers": TEXTS}, Guess("qa")),
    ({"Question": TEXTS, "Context ": OTHERS, "answer_text": TEXTS, "answer_start": NUMBERS}, Guess("qa")),
    ({"title": TEXTS, "context": OTHERS, "question": TEXTS, "answers": TEXTS, "label": NUMBERS}, Guess("qa")),
    ({"premise": TEXTS, "hypothesis": OTHERS, "label": NUMBERS}, Guess("nli", ("premise", "hypothesis"), "label")),
    ({"sentence_A": TEXTS, "sentence_B": OTHERS, "entailment_judgment": LABELS, "relatedness_score": [1.5] * 6},
     Guess("nli", ("sentence_A", "sentence_B"), "entailment_judgment")),
    ({"sentence1": TEXTS, "sentence2": OTHERS, "gold_label": LABELS},
     Guess("nli", ("sentence1", "sentence2"), "gold_label")),
    ({"sentence1": TEXTS, "sentence2": OTHERS, "label": ["entailment", "not_entailment"] * 3},
     Guess("nli", ("sentence1", "sentence2"), "label")),
    ({"sentence1": TEXTS, "sentence2": OTHERS, "label": NUMBERS, "idx": IDS},
     Guess("classification", ("sentence1", "sentence2"), "label")),
    ({"sentence": TEXTS, "label": NUMBERS}, Guess("classification", ("sentence",), "label")),
    ({"Text": TEXTS, "Label": LABELS}, Guess("classification", ("Text",), "Label")),
    ({"text": TEXTS, "sentiment": LABELS}, Guess("classification", ("text",), "sentiment")),
    ({"question": TEXTS, "context": OTHERS, "label": NUMBERS},
     Guess("classification", ("context", "question"), "label")),
    # Only by what stands in them.
    ({"id": IDS, "what was said": TEXTS, "mood": LABELS}, Guess("classification", ("what was said",), "mood")),
    ({"remark": TEXTS, "verdict": [*LABELS[:5], None], "written": IDS},
     Guess("classification", ("remark",), "verdict")),
])
def test_names_and_values_tell_the_task(rows, expected):
    assert guess_task(rows, "my.csv") == expected


def test_what_is_given_stands():
    rows: dict[str, list] = {"premise": TEXTS, "hypothesis": OTHERS, "text": TEXTS, "label": NUMBERS, "mood": LABELS}
    assert guess_task(rows, "my.csv", "classification").task == "classification"
    assert guess_task(rows, "my.csv", None, ["text"], "mood") == Guess("classification", ("text",), "mood")
    assert guess_task(rows, "my.csv", None, [], "mood") == Guess("nli", ("premise", "hypothesis"), "mood")
    assert guess_task({"question": TEXTS, "context": OTHERS, "answers": LABELS}, "my.csv", "classification", [],
                      "answers") == Guess("classification", ("context", "question"), "answers")
    assert guess_task({"a": [], "b": []}, "my.csv", "qa") == Guess("qa")


@pytest.mark.parametrize("rows, lacking", [
    ({"a": TEXTS, "b": OTHERS}, "no text and no label"),
    ({"text": TEXTS, "score": [0.5, 1.5] * 3}, "no label"),
    ({"number": NUMBERS, "label": LABELS}, "no text"),
    ({"one": TEXTS, "other": OTHERS, "label": LABELS}, "no text"),  # two that could be it
    ({"text": TEXTS, "name": [*"abcdef"]}, "no label"),  # one of a kind each
    ({"question": TEXTS, "context": OTHERS}, "no label"),
])
def test_where_nothing_can_be_told_the_columns_are_named(rows, lacking):
    with pytest.raises(UserError, match=f"^my.csv: {lacking} column can be told from the names {', '.join(rows)}; "):
        guess_task(rows, "my.csv")


@pytest.mark.parametrize("rows, task", [
    ({"tokens": [["a", "b"]] * 6, "ner_tags": [[0, 1]] * 6}, "single tokens .tagging."),
    ({"document": TEXTS, "summary": OTHERS}, "texts to be written"),
])
def test_a_task_that_there_is_not_is_named(rows, task):
    with pytest.raises(UserError, match=f"can be told from the names .*; (labels of )?{task}.* are no task here: "):
        guess_task(rows, "my.csv")


def test_a_guess_in_words():
    assert str(Guess("qa")) == "qa"
    assert str(Guess("nli", ("a", "b"), "c")) == "nli: texts in columns a and b, labels in column c"
    assert str(Guess("classification", ("a",), "c")) == "classification: texts in column a, labels in column c"
