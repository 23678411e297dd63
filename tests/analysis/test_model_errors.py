"""The tables of what a model gets wrong, counted again by hand."""

import numpy as np
import pytest
from conftest import qa_rows, review_rows, write_rows

from datamap.analysis.model_errors import confusion_counts, predicted_table
from datamap.core.splits import load_split
from datamap.tasks.error_counts import error_counts
from datamap.tasks.questions import question_type_of
from datamap.tasks.registry import get_task


@pytest.fixture
def questions(tmp_path):
    rows = qa_rows(20, seed=1)
    rows[3]["answers"] = {"text": [], "answer_start": []}
    return load_split(str(write_rows(tmp_path / "notes.jsonl", rows)), "train", get_task("qa"))


def test_answers(questions):
    said = [next(iter(each["text"]), "") for each in questions.data["answers"][:]]
    said[0], said[1], said[2], said[3] = None, "", "nowhere to be found", "Nobody"
    table = predicted_table(questions, said)
    assert table.columns.tolist() == ["id", "question_type", "gold", "predicted", "error"]
    assert table["id"].tolist() == questions.ids[1:]
    assert table["error"].tolist() == ["no answer given", "elsewhere", "no answer wanted"] + ["none"] * 16
    assert table["gold"].tolist()[2] == "" and table["predicted"].tolist()[2] == "Nobody"
    counts = error_counts(table, "question_type")
    assert counts.columns.tolist() == ["none", "truncated", "overlong", "shifted", "elsewhere", "no answer given",
                                       "no answer wanted", "n"]
    assert counts.loc["all"].tolist() == [16, 0, 0, 0, 1, 1, 1, 19]
    kinds = [question_type_of(text.lower()) for text in questions.data["question"][1:]]
    assert counts["n"].drop("all").to_dict() == {kind: kinds.count(kind) for kind in kinds}
    assert counts["n"].drop("all").is_monotonic_decreasing
    assert (counts.drop(columns="n").sum(axis=1) == counts["n"]).all()


def test_labels(tmp_path):
    classes = ("good", "bad", "so-so")
    split = load_split(str(write_rows(tmp_path / "reviews.jsonl", review_rows(30, 0, classes))), "train",
                       get_task("classification"))
    gold = [split.data.features["label"].names[number] for number in split.data["label"][:]]
    said = [None if row < 2 else "good" for row in range(30)]
    table = predicted_table(split, said)
    assert table["id"].tolist() == split.ids[2:]
    assert (table["error"] == "none").tolist() == [name == "good" for name in gold[2:]]
    counts = confusion_counts(table)
    assert counts.index.tolist() == counts.columns.tolist() == ["bad", "good", "so-so"]  # those never predicted too
    assert counts["good"].tolist() == [gold[2:].count(name) for name in counts.index]
    assert np.asarray(counts).sum() == 28
    by_size = error_counts(table.assign(size=[size for size in split.data["size"][2:]]), "size")
    assert by_size.columns.tolist() == ["none", "wrong", "n"] and by_size.index.tolist()[-1] == "all"
    assert by_size.loc["all"].tolist() == [gold[2:].count("good"), 28 - gold[2:].count("good"), 28]
