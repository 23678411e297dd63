"""Errors that are planted: what each kind is, in any text and among any labels."""

from collections import Counter

import numpy as np
import pytest
from conftest import qa_rows
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datamap.demo.planting import (
    LABEL_KINDS,
    QUESTION_KINDS,
    malformed,
    normalized,
    passage_of,
    plant_in_labels,
    plant_in_questions,
)
from datamap.tasks.qa_metrics import normalize_answer

WORDS = ("the", "a", "Oslo", "oslo.", "went", "U.S.", "3.1", "mg/dL", "„quoted“", "naïve", "东京。", "no", "An", "\n")


@st.composite
def questions_on_texts(draw):
    """(contexts, questions, golds): few texts, several questions each; some rows are unanswerable."""
    texts = draw(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join),
                          min_size=1, max_size=3))
    contexts, questions, golds = [], [], []
    for _ in range(draw(st.integers(1, 12))):
        text = draw(st.sampled_from(texts))
        spans = []
        for _ in range(draw(st.integers(0, 2))):
            start = draw(st.integers(0, len(text) - 1))
            spans.append((start, draw(st.integers(start + 1, len(text)))))
        contexts.append(text)
        questions.append(draw(st.sampled_from(("Who?", "who", "When?", "What was it?", "??"))))
        golds.append(spans)
    return contexts, questions, golds


@given(st.text())
def test_answers_are_compared_as_exact_match_compares_them(text):
    assert normalized(text) == normalize_answer(text)


@settings(max_examples=300, deadline=None)
@example((["the", "the the the „quoted“ the", *["the"] * 7], ["Who?"] * 9,  # a quotation mark is an answer
          [[(0, 1)], [(20, 21), (0, 1)], [], [], [], [], [(0, 1)], [(0, 1)], [(0, 1)]]), 1, 1.0)
@given(questions_on_texts(), st.integers(0, 5), st.floats(0, 1))
def test_every_error_in_any_text_is_what_it_is_called(rows, seed, share):
    contexts, questions, golds = rows
    answerable = [row for row, spans in enumerate(golds) if spans]
    count = round(share * len(answerable))
    planted, impossible = plant_in_questions(np.random.default_rng(seed), contexts, questions, golds, count)
    assert (planted, impossible) == plant_in_questions(np.random.default_rng(seed), contexts, questions, golds, count)
    assert len(planted) == count and set(planted) <= set(answerable)
    assert sum(impossible.values()) <= count
    for row, error in planted.items():
        text, right = contexts[row], {normalized(contexts[row][a:b]) for a, b in golds[row]}
        assert (error.question is None) != (error.answer is None) and error.kind in QUESTION_KINDS
        if error.answer is not None:
            start, end = error.answer
            assert 0 <= start < end <= len(text)
            assert normalized(text[start:end]) not in right
            if error.kind == "overlong_span":
                assert start <= golds[row][0][0] and end >= golds[row][0][1]
            if error.kind == "wrong_span":
                everyones = [span for each, spans in enumerate(golds) if contexts[each] == text for span in spans]
                assert not any(start < b and a < end for a, b in everyones)
        elif error.kind == "other_question":
            assert error.question and normalized(error.question) != normalized(questions[row])
            askers = [each for each in answerable if contexts[each] == text and questions[each] == error.question]
            assert any(not right & {normalized(text[a:b]) for a, b in golds[each]} for each in askers)
        else:
            assert error.kind == "malformed_question" and error.question != questions[row]


def test_kinds_come_in_equal_shares_on_usual_data():
    """The texts tell six facts each, and every text is asked about them all."""
    rows = [row for seed in range(4) for row in qa_rows(30, seed)]
    contexts = [row["context"] for row in rows]
    spans = [[(row["answers"]["answer_start"][0], row["answers"]["answer_start"][0] + len(row["answers"]["text"][0]))]
             for row in rows]
    asked = contexts[:40] * 2
    questions = [row["question"] for row in rows[:40]] + ["And the first word?"] * 40
    golds = spans[:40] + [[(0, len(text.split()[0]))] for text in contexts[:40]]
    planted, impossible = plant_in_questions(np.random.default_rng(0), asked, questions, golds, 50)
    assert not impossible and Counter(error.kind for error in planted.values()) == dict.fromkeys(QUESTION_KINDS, 10)
    for row, error in planted.items():
        if error.answer and error.kind == "shifted_boundary":  # by one or two words, within the sentence
            start, was = error.answer[0], golds[row][0][0]
            assert 0 < abs(len(asked[row][:start].split()) - len(asked[row][:was].split())) <= 2


def test_where_a_kind_is_impossible_another_is_planted_and_it_is_counted():
    texts = [f"Person {number} went to Oslo. It rained." for number in range(20)]  # one question each: no other
    golds = [[(text.index("Oslo"), text.index("Oslo") + 4)] for text in texts]
    planted, impossible = plant_in_questions(np.random.default_rng(0), texts, ["Where?"] * 20, golds, 20)
    assert impossible == {"other_question": 4} and len(planted) == 20
    kinds = Counter(error.kind for error in planted.values())
    assert kinds["other_question"] == 0 and all(kinds[kind] >= 4 for kind in set(QUESTION_KINDS) - {"other_question"})
    whole = [[(0, len(text))] for text in texts]  # the answer is the whole text: only the question can be wrong
    planted, impossible = plant_in_questions(np.random.default_rng(0), texts, ["Where?"] * 20, whole, 20)
    assert {error.kind for error in planted.values()} == {"malformed_question"} and sum(impossible.values()) == 16


def test_sentences_of_a_passage():
    text = "He weighs 3.1 kg, e.g. today. Dr Who left!\nA line without an end\n\n东京。大阪。 Last"
    passage = passage_of(text, [("q", [(3, 9)]), ("r", [(text.index("Who"), text.index("line") + 4)])])
    assert [text[a:b] for a, b in passage.sentences] == [
        "He weighs 3.1 kg, e.g.", "today.", "Dr Who left!", "A line without an end", "东京。", "大阪。", "Last"]
    assert [asked.sentences for asked in passage.asked] == [(0, 0), (2, 3)]


@given(st.text(max_size=30), st.integers(0, 100))
def test_a_malformed_question_is_another_one(question, seed):
    assert malformed(np.random.default_rng(seed), question) != question


# --- labels -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.floats(0, 1), st.integers(0, 9),
       st.sampled_from(["uniform", "confusion"]))
def test_every_planted_label_is_another_one(labels, share, seed, kind):
    count = round(share * len(labels))
    planted = plant_in_labels(np.random.default_rng(seed), labels, 4, count, kind)
    assert planted == plant_in_labels(np.random.default_rng(seed), labels, 4, count, kind)
    assert len(planted) == count and list(planted) == sorted(planted)
    for row, label in planted.items():
        assert label != labels[row] and label in range(4)
        if kind == "confusion":  # by default each class is taken for the next
            assert label == (labels[row] + 1) % 4


def test_uniform_flips_reach_every_other_class_alike():
    labels = np.random.default_rng(1).integers(3, size=3000).tolist()
    planted = plant_in_labels(np.random.default_rng(0), labels, 3, 1500, "uniform")
    pairs = Counter((labels[row], label) for row, label in planted.items())
    assert len(pairs) == 6 and all(200 < count < 300 for count in pairs.values())


def test_flips_along_a_given_confusion():
    labels = [0, 1, 2] * 100
    planted = plant_in_labels(np.random.default_rng(0), labels, 3, 90, "confusion", confusion={0: [1, 2], 2: [0]})
    pairs = Counter((labels[row], label) for row, label in planted.items())
    assert set(pairs) == {(0, 1), (0, 2), (2, 0)} and sum(pairs.values()) == 90
    assert 0.5 < pairs[0, 1] / pairs[0, 2] < 2
    assert len(plant_in_labels(np.random.default_rng(0), labels, 3, 150, "confusion", confusion={0: [1]})) == 100


def test_plausible_flips_are_where_the_words_speak_for_another_class():
    rng = np.random.default_rng(0)
    words = (["good", "fine", "bright"], ["bad", "dull", "grey"], ["plain", "usual", "known"])
    labels, texts = (np.arange(300) % 3).tolist(), []
    odd = {row: int((labels[row] + rng.integers(1, 3)) % 3) for row in range(0, 300, 5)}  # row -> what it speaks for
    for row, label in enumerate(labels):
        texts.append(" ".join(rng.choice(words[odd.get(row, label)], 4)))
    planted = plant_in_labels(np.random.default_rng(0), labels, 3, 20, "plausible", [texts])
    assert planted == plant_in_labels(np.random.default_rng(0), labels, 3, 20, "plausible", [texts])
    assert len(planted) == 20 and planted.items() <= odd.items()
    assert set(planted) != set(plant_in_labels(np.random.default_rng(1), labels, 3, 20, "plausible", [texts]))


@pytest.mark.parametrize("kind", LABEL_KINDS)
def test_plausible_labels_of_pairs_and_of_rare_classes(kind):
    """Two columns, a class of one example, and a fold that may lack it."""
    labels = [0] * 10 + [1] * 9 + [2]
    texts = [[f"word{label} first" for label in labels], [f"word{label} second" for label in labels]]
    planted = plant_in_labels(np.random.default_rng(0), labels, 3, 6, kind, texts)
    assert len(planted) == 6 and all(label != labels[row] for row, label in planted.items())
