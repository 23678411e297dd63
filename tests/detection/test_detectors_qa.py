"""Detectors of texts and of answers to questions, against their formulas written slowly here."""

import math
import string
from collections import Counter
from statistics import median

import numpy as np
import pytest
from conftest import review_rows, write_rows
from evidence_made import made_labels, made_questions, of_rows

from datamap.analysis.error_rules import RULES
from datamap.core.splits import load_split
from datamap.detection.base import Evidence, detectors
from datamap.tasks.registry import get_task

QUESTIONS = made_questions()
CONTEXT = "Ada went to Oslo on Monday. Bob carried a red kite. Ada ate the green soup."


def score(name, evidence=QUESTIONS):
    return detectors()[name](evidence)


def same(found, expected):
    np.testing.assert_allclose(found, np.asarray(expected, dtype=np.float64), rtol=1e-9, atol=1e-9)


def tokens(text):
    kept = "".join(char for char in text.lower() if char not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def slow_f1(one, other):
    left, right = Counter(tokens(one)), Counter(tokens(other))
    if not left or not right:
        return float(left == right)
    common = sum((left & right).values())
    return 2 * common / (sum(left.values()) + sum(right.values()))


def asked(tmp_path, *pairs, context=CONTEXT):
    """Evidence of questions over one context, each with its answer."""
    def answers(text):
        return {"text": [text], "answer_start": [context.index(text)]} if text else {"text": [], "answer_start": []}

    rows = [{"id": f"q{number}", "question": question, "context": context, "answers": answers(answer)}
            for number, (question, answer) in enumerate(pairs)]
    return Evidence(load_split(str(write_rows(tmp_path / "asked.jsonl", rows)), "train", get_task("qa")))


def labelled(tmp_path, *pairs):
    rows = [{"id": f"t{number}", "sentence": text, "label": label} for number, (text, label) in enumerate(pairs)]
    file = write_rows(tmp_path / "labelled.jsonl", rows)
    return Evidence(load_split(str(file), "train", get_task("classification")))


# --- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "oof_"])
def test_what_is_answered_against_gold(prefix):
    """Each answer is none, elsewhere, overlapping, or right; one that is not there says nothing."""
    answers = list(QUESTIONS.out_of_fold["predicted_answer"] if prefix else QUESTIONS.predictions)
    golds = [each["text"] for each in QUESTIONS.split.data["answers"][:]]
    overlap = [max(slow_f1(answer, gold) for gold in texts) for answer, texts in zip(answers, golds, strict=True)]
    same(score(f"{prefix}answer_mismatch"), [1 - each for each in overlap])
    same(score(f"{prefix}answer_none"), [not answer for answer in answers])
    same(score(f"{prefix}answer_elsewhere"),
         [bool(answer) and each == 0 for answer, each in zip(answers, overlap, strict=True)])
    same(score(f"{prefix}answer_overlaps"), [0 < each < 1 for each in overlap])
    kinds = sum(score(f"{prefix}answer_{kind}") for kind in ("none", "elsewhere", "overlaps"))
    assert set(kinds) == {0, 1} and (kinds == (np.array(overlap) < 1)).all()


def test_no_answer_where_there_is_none(tmp_path):
    evidence = asked(tmp_path, ("Where did Ada go?", "Oslo"), ("Who sang?", ""), ("Who flew?", ""))
    evidence.predictions = ["", "", "Bob"]
    same(score("answer_mismatch", evidence), [1, 0, 1])
    same(score("answer_none", evidence), [1, 0, 0])
    same(score("answer_elsewhere", evidence), [0, 0, 1])


def test_span_margin_and_rules():
    same(score("span_margin"), [-margin for margin in QUESTIONS.out_of_fold["span_margin"]])
    for rule in RULES:
        same(score(rule), [float(fired) for fired in QUESTIONS.rules[rule]])
    same(score("rule_score"), [sum(bool(row[rule]) for rule in RULES) / 9 for _, row in QUESTIONS.rules.iterrows()])
    blind = of_rows(QUESTIONS, np.arange(60))
    blind.rules = blind.rules.assign(rule4_pred_inside_gold_better=None, rule8_pred_better_q_alignment=None)
    assert np.isnan(score("rule4_pred_inside_gold_better", blind)).all()


# --- copies ------------------------------------------------------------------------------------------------------


def test_copies_with_another_label(tmp_path):
    evidence = labelled(tmp_path, ("A good film", "good"), ("a  good film", "good"), ("A GOOD film", "bad"),
                        ("a good film ", "so-so"), ("a bad film", "bad"), ("dull", "bad"), ("dull", "bad"))
    same(score("duplicate_disagreement", evidence), [2 / 3, 2 / 3, 1, 1, math.nan, 0, 0])


def test_copies_with_another_answer(tmp_path):
    evidence = asked(tmp_path, ("Where did Ada go?", "Oslo"), ("where did  Ada go?", "Oslo on Monday"),
                     ("Where did Ada go?", "Oslo"), ("What did Bob carry?", "a red kite"))
    far = 1 - slow_f1("Oslo", "Oslo on Monday")
    same(score("duplicate_disagreement", evidence), [far / 2, far, far / 2, math.nan])


def test_near_duplicates_are_neighbours_that_share_words(tmp_path):
    evidence = labelled(tmp_path, ("the road was long and full of grey dust today", "bad"),
                        ("the road was long and full of grey dust here", "good"),
                        ("the road was long and full of grey dust today again", "bad"),
                        ("we ate soup", "good"), ("nobody said a word", "bad"))
    evidence.embeddings = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    near = score("near_duplicate_disagreement", evidence)
    same(near, [0.5, 1, 0, math.nan, math.nan])  # 9 of 11, 10 of 11, 9 of 12 words
    rows = review_rows(40, 3)
    many = labelled(tmp_path, *((row["sentence"], row["label"]) for row in rows))
    many.embeddings = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    words, expected = [set(row["sentence"].split()) for row in rows], []
    for row, others in enumerate(many.neighbours.rows):
        alike = [other for other in others if len(words[row] & words[other]) >= 0.8 * len(words[row] | words[other])]
        wrong = [rows[other]["label"] != rows[row]["label"] for other in alike]
        expected.append(np.mean(wrong) if wrong else math.nan)
    same(score("near_duplicate_disagreement", many), expected)


def test_questions_alike_over_one_context(tmp_path):
    question = "Where did the old man called Ada go on that day{}?"
    evidence = asked(tmp_path, (question.format(""), "Oslo"), (question.format(" then"), "Oslo on Monday"),
                     (question.format(" now"), "a red kite"), ("What did Bob carry?", "a red kite"))
    # Those with "day then?" and "day now?" share 11 of 13 words, that with "day?" only 10 of 13 with either.
    far = 1 - slow_f1("Oslo on Monday", "a red kite")
    assert slow_pairs(evidence)[1] == far
    same(score("similar_questions", evidence), [math.nan, far, far, math.nan])


def slow_pairs(evidence):
    asked_of = [set(question.lower().split()) for question in evidence.split.data["question"][:]]
    contexts, golds = evidence.split.data["context"][:], evidence.golds
    expected = []
    for row in range(len(evidence)):
        far = [1 - slow_f1(golds[row], golds[other]) for other in range(len(evidence))
               if other != row and contexts[other] == contexts[row]
               and len(asked_of[row] & asked_of[other]) >= 0.8 * len(asked_of[row] | asked_of[other])]
        expected.append(np.mean(far) if far else math.nan)
    return expected


def test_questions_alike_in_the_demo():
    many = made_questions(600)
    expected = slow_pairs(many)
    assert np.isfinite(expected).any()
    same(score("similar_questions", many), expected)


# --- questions and answers by themselves -------------------------------------------------------------------------


def test_how_expected_the_steps_of_a_question_are():
    questions = [["<", *question.lower().split(), ">"] for question in QUESTIONS.split.data["question"][:]]
    expected = []
    for row, mine in enumerate(questions):
        others = [words for place, words in enumerate(questions) if place != row]
        follows = [step for words in others for step in zip(words, words[1:], strict=False)]
        arrived = Counter(word for words in others for word in words[1:])
        kinds = len({word for words in questions for word in words[1:]})
        surprises = []
        for step in zip(mine, mine[1:], strict=False):
            share = (arrived[step[1]] + 1) / (sum(arrived.values()) + kinds + 1)
            leaving = sum(a == step[0] for a, _ in follows)
            surprises.append(-math.log((follows.count(step) + share) / (leaving + 1)))
        expected.append(sum(surprises) / len(surprises))
    same(score("odd_question"), expected)


def test_a_garbled_question_is_odd():
    many = made_questions(400)
    kinds = np.array(many.split.data["planted_error"][:])
    odd = score("odd_question", many)
    garbled, clean = odd[kinds == "malformed_question"], odd[kinds == ""]
    assert np.mean(garbled[:, None] > clean) > 0.98


def test_long_answers():
    lengths = [len(gold.split()) for gold in QUESTIONS.golds]
    types = QUESTIONS.split.task.groups(QUESTIONS.split.data)[1]
    usual = {kind: median(length for length, other in zip(lengths, types, strict=True) if other == kind)
             for kind in set(types)}
    same(score("long_answer"), [math.log(length / usual[kind]) for length, kind in zip(lengths, types, strict=True)])


def test_detectors_of_the_other_task_cannot_judge():
    for name, each in detectors().items():
        if each.tasks != "any":
            assert not each.can_judge(QUESTIONS if each.tasks == "labels" else made_labels(20)), name
