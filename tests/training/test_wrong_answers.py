"""What an evaluation gets wrong, as files: every kind of span error by a second definition, on sets of characters."""

import json
import re
import string
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from conftest import qa_rows, review_rows, write_rows

import run
from datamap.tasks.classification import ClassificationEvaluation
from datamap.tasks.qa import QAEvaluation
from datamap.tasks.qa_metrics import score_predictions
from datamap.tasks.questions import question_type_of
from datamap.tasks.span_errors import SPAN_ERRORS

SMALL = ["--no_cuda", "--max_length", "96", "--doc_stride", "24"]


def kind_by_characters(context: str, answers: dict, predicted: str) -> str:
    """The kind of a prediction, from the set of characters it takes and those of the annotated answers; where it
    stands several times the place with the most characters in common counts."""
    def plain(text):
        text = "".join(char for char in text.lower() if char not in string.punctuation)
        return [word for word in text.split() if word not in ("a", "an", "the")]

    golds = [text for text in answers["text"] if text.strip()]
    if not golds or not predicted.strip():
        return "none" if not golds and not predicted.strip() else \
            "no answer wanted" if not golds else "no answer given"
    if any(plain(text) == plain(predicted) for text in golds):
        return "none"
    wanted = [set(range(start, start + len(text)))
              for text, start in zip(answers["text"], answers["answer_start"], strict=True)]
    text = re.escape(predicted.strip())
    found = [set(range(one.start(), one.start() + len(predicted.strip())))
             for pattern in (rf"(?<!\w)(?={text}(?!\w))", rf"(?={text})") for one in re.finditer(pattern, context)]
    whole = len(list(re.finditer(rf"(?<!\w)(?={text}(?!\w))", context)))
    pairs = [(len(gold & said) / len(gold | said), gold, said) for said in (found[:whole] or found) for gold in wanted]
    share, gold, said = max(pairs, key=lambda each: each[0], default=(0.0, set(), set()))
    if not share:
        return "elsewhere"
    return "none" if gold == said else "truncated" if said < gold else "overlong" if said > gold else "shifted"


def spoilt(rows: list[dict]) -> list[str]:
    """Answers that are right, cut, too long, moved, from elsewhere or not there, in turn."""
    said = []
    for number, row in enumerate(rows):
        context, start = row["context"], [*row["answers"]["answer_start"], 0][0]
        end = start + len("".join(row["answers"]["text"][:1]))
        words = [each.span() for each in re.finditer(r"\w+", context)]
        before = max([first for first, _ in words if first < start], default=0)
        middle = [first for first, _ in words if start < first < end]
        cut = middle[0] if middle else end
        said.append({0: context[start:end], 1: context[start:cut].strip(), 2: context[before:end],
                     3: context[before:cut].strip(), 4: context[: words[2][1]], 5: ""}[number % 6])
    return said


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, tiny_model):
    """Rows, and what an evaluation writes of them when the model says ``spoilt``."""
    tmp_path = tmp_path_factory.mktemp("evaluated")
    rows = [{**row, "f1": "mine", "tags": ["x", str(number)]} for number, row in enumerate(qa_rows(60, seed=8))]
    for row in rows[::7]:
        row["answers"] = {"text": [], "answer_start": []}
    rows[5]["question"] = "=2+3"
    write_rows(tmp_path / "validation.jsonl", rows)
    write_rows(tmp_path / "train.jsonl", qa_rows(4, seed=9, prefix="t"))
    said, scored = spoilt(rows), QAEvaluation.__call__

    def call(self, output):
        scored(self, output)
        self.predictions = said
        self.scores = score_predictions(said, self._golds, self.version_2)
        return {"exact_match": 100 * float(self.scores.exact_match.mean())}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QAEvaluation, "__call__", call)
        run.main(["--do_eval", "--model", str(tiny_model), "--dataset", str(tmp_path), "--output_dir",
                  str(tmp_path / "out"), *SMALL])
    return rows, said, tmp_path / "out"


def test_each_kind_of_wrong_answer_by_a_second_definition(evaluated):
    rows, said, out = evaluated
    kinds = [kind_by_characters(row["context"], row["answers"], text) for row, text in zip(rows, said, strict=True)]
    assert set(kinds) == set(SPAN_ERRORS), "the test has examples of every kind"
    wrong = [place for place, kind in enumerate(kinds) if kind != "none"]
    table = pd.read_csv(out / "wrong_answers.csv", dtype={"id": str}, keep_default_na=False)
    assert list(table) == ["id", "question", "context", "answer", "predicted_answer", "span_error", "f1",
                           "question_type", "answers", "source", "data_f1", "tags"]
    assert table["id"].tolist() == [rows[place]["id"] for place in wrong]
    assert table["span_error"].tolist() == [kinds[place] for place in wrong]
    assert table["predicted_answer"].tolist() == [said[place] for place in wrong]
    assert table["context"].tolist() == [rows[place]["context"] for place in wrong]
    assert set(table["data_f1"]) == {"mine"} and json.loads(table["tags"][0]) == ["x", str(wrong[0])]
    assert "'=2+3" in set(table["question"]), "a spreadsheet runs nothing"
    exact = json.loads((out / "eval_metrics.json").read_text())["eval_exact_match"]
    assert len(table) == round(60 * (1 - exact / 100))


def test_the_kinds_add_up_by_question_type(evaluated):
    rows, said, out = evaluated
    kinds = [kind_by_characters(row["context"], row["answers"], text) for row, text in zip(rows, said, strict=True)]
    types = [question_type_of(row["question"].lower()) for row in rows]
    table = pd.read_csv(out / "error_counts.csv")
    wanted = Counter({("all", "all", kind): n for kind, n in Counter(kinds).items()})
    wanted.update(("question_type", of, kind) for of, kind in zip(types, kinds, strict=True))
    found = {(row.by, row.group, row.error): row.n for row in table.itertuples()}
    assert {key: n for key, n in found.items() if n} == dict(wanted)
    assert len(table) == len(SPAN_ERRORS) * (1 + len(set(types)))
    by_group = table.groupby(["by", "group"])
    assert by_group["n"].sum()["all", "all"] == 60 and np.allclose(by_group["share"].sum(), 1)


def test_misclassified_has_all_columns_of_the_example(tmp_path, monkeypatch):
    rows = [{**row, "confidence": "high", "label": row["label"], "parts": {"n": number}}
            for number, row in enumerate(review_rows(40, 3))]
    write_rows(tmp_path / "validation.jsonl", rows)
    write_rows(tmp_path / "train.jsonl", review_rows(40, 4, prefix="t"))
    evaluations, written = [], ClassificationEvaluation.write

    def write(self, *rest):
        evaluations.append(self)
        written(self, *rest)

    monkeypatch.setattr(ClassificationEvaluation, "write", write)
    run.main(["--do_train", "--do_eval", "--task", "classification", "--model", "lstm", "--dataset", str(tmp_path),
              "--max_steps", "2", "--output_dir", str(tmp_path / "out"), "--no_cuda"])
    [evaluation] = evaluations
    table = pd.read_csv(tmp_path / "out/misclassified.csv", dtype={"id": str}).set_index("id")
    others = [name for name in rows[0] if name not in ("id", "label")]
    assert set(table) == {"predicted_label", "label", "confidence", "gold_probability", "data_confidence",
                          *(set(others) - {"confidence"})}
    by_id = {row["id"]: row for row in rows}
    wrong = np.flatnonzero(evaluation.predicted != evaluation.gold)
    assert sorted(table.index) == sorted(rows[place]["id"] for place in wrong) and len(wrong)
    for example, row in table.iterrows():
        assert row["label"] == by_id[example]["label"] != row["predicted_label"]
        assert row["data_confidence"] == "high" and json.loads(row["parts"]) == by_id[example]["parts"]
        assert row["size"] == by_id[example]["size"] and row["sentence"] == by_id[example]["sentence"]
