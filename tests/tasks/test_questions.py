"""The kinds of questions."""

import pandas as pd
import pytest

from datamap.tasks.questions import QUESTION_TYPES, question_types

TYPED = [
    ("What is the dose?", "what"), ("what's wrong?", "what"), ("In what year did it end?", "what"),
    ("It ended in what year?", "what"), ("When the patient fell, what was given?", "what"),
    ("What happened when she fell?", "what"), ("For patients who smoke, what is advised?", "what"),
    ("Who was it?", "who"), ("By whom was it made?", "who"), ("Whose is it?", "who"),
    ("Prior to him, who won?", "who"), ("When was it?", "when"), ("Since when?", "when"),
    ("It was signed when?", "when"), ("When exactly did he go?", "when"), ("When and where was he born?", "when"),
    ("When she fell?", "when"), ("  \u201cWhen\u201d is it?", "when"), ("Where is it?", "where"),
    ("He came from where?", "where"), ("Why was it stopped?", "why"), ("How many pills?", "how many/how much"),
    ("HOW  MUCH?", "how many/how much"), ("He took how many?", "how many/how much"), ("How is it given?", "how"),
    ("For how long?", "how"), ("Where it hurts, how is it treated?", "how"), ("Which drug?", "which"),
    ("On which day?", "which"), ("Is it?", "yes/no"), ("Has she ever had fever?", "yes/no"),
    ("Didn't he go?", "yes/no"), ("Can\u2019t she?", "yes/no"), ("Does he know when?", "yes/no"), ("", "other"),
    ("medications", "other"), ("Name the drug.", "other"), ("Isotope levels", "other"), ("whatever happened", "other"),
    ("7?", "other"),
]


@pytest.mark.parametrize(("question", "expected"), TYPED)
def test_question_type(question, expected):
    assert question_types([question]).tolist() == [expected]
    assert expected in QUESTION_TYPES


def test_question_types_of_a_column():
    questions = pd.Series([question for question, _ in TYPED] + [None], index=range(100, 101 + len(TYPED)))
    types = question_types(questions)
    assert types.tolist() == [expected for _, expected in TYPED] + ["other"]
    assert types.index.equals(questions.index) and types.name == "question_type"
    assert question_types([]).tolist() == [] and question_types([None]).tolist() == ["other"]
    assert {expected for _, expected in TYPED} == set(QUESTION_TYPES)
