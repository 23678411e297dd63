"""Classification data: columns guessed, labels of every kind, features, and what a model's labels mean."""

import argparse
import dataclasses
import json
import logging

import datasets
import numpy as np
import pandas as pd
import pytest
from conftest import write_rows

from datamap.core.errors import UserError
from datamap.core.splits import default_eval_split, load_split
from datamap.tasks.base import Task
from datamap.tasks.evaluation import Evaluation
from datamap.tasks.registry import TASKS, get_task, task_of
from datamap.training.tiny_model import train_tokenizer

TEXTS = ["a fine film", "a dull film", "truly fine", "so very dull", "fine", "dull dull dull"]


def rows_of(**columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def load(tmp_path, rows, task="classification", **settings):
    return load_split(str(write_rows(tmp_path / "train.jsonl", rows)), "train", get_task(task, **settings))


def names_and_labels(split):
    column = split.task.label_column
    return split.data.features[column].names, split.data[column][:]


# --- columns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "columns", "texts", "label"),
    [
        ("classification", ("sentence", "label"), ("sentence",), "label"),
        ("classification", ("question", "story", "label", "category"), ("story", "question"), "label"),
        ("classification", ("premise", "hypothesis", "gold_label"), ("premise", "hypothesis"), "gold_label"),
        ("classification", ("question", "sentence", "label"), ("sentence", "question"), "label"),
        ("nli", ("hypothesis", "premise", "label", "text"), ("premise", "hypothesis"), "label"),
        ("nli", ("sentence_A", "sentence_B", "entailment_label"), ("sentence_A", "sentence_B"), "entailment_label"),
    ],
)
def test_columns_are_guessed_and_the_guess_is_told(tmp_path, caplog, task, columns, texts, label):
    caplog.set_level(logging.INFO)
    values = {name: [f"{name} {number}" for number in range(4)] for name in columns}
    split = load(tmp_path, rows_of(**{**values, label: [0, 1, 0, 1]}), task)
    assert split.task.text_columns == texts and split.task.label_column == label
    assert " and ".join(texts) in caplog.text and "guessed" in caplog.text
    assert split.identity()["task"] == {"name": task, "text_columns": list(texts), "label_column": label}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (("words", "label"), "no column with a usual name for --text_columns; give --text_columns: there is words, "),
        (("text", "review", "label"), "more than one possibility (text or review)"),
        (("text", "label", "gold_label"), "more than one possibility (label or gold_label)"),
        (("text", "stars"), "no column with a usual name for --label_column"),
    ],
)
def test_ambiguous_columns_are_an_error_that_lists_them(tmp_path, columns, words):
    values = {name: ["x y", "z"] for name in columns if name not in ("label", "gold_label")}
    values |= {name: [0, 1] for name in columns if name in ("label", "gold_label")}
    with pytest.raises(UserError) as error:
        load(tmp_path, rows_of(**values))
    assert words in str(error.value)


def test_given_columns_are_taken_in_their_order(tmp_path):
    rows = rows_of(b=["q1", "q2"], a=["s1", "s2"], kind=["yes", "no"])
    split = load(tmp_path, rows, text_columns=["a", "b"], label_column="kind")
    assert split.data.column_names[:4] == ["id", "a", "b", "kind"]
    for settings, words in (
        ({"text_columns": ["a", "c"], "label_column": "kind"}, "no column 'c'"),
        ({"text_columns": ["a", "b"], "label_column": "label"}, "no column 'label'"),
        ({"text_columns": ["a", "b", "id"], "label_column": "kind"}, "one or two columns"),
        ({"text_columns": ["a", "a"], "label_column": "kind"}, "twice"),
        ({"text_columns": ["id"], "label_column": "kind"}, "neither text nor label"),
        ({"text_columns": ["a"], "label_column": "a"}, "is one of the --text_columns"),
    ):
        with pytest.raises(UserError, match=words):
            load(tmp_path, rows, **settings)
    with pytest.raises(UserError, match="--text_columns is not for --task qa"):
        get_task("qa", text_columns=["a"])


def flags(task=None, text_columns=None, label_column=None) -> argparse.Namespace:
    return argparse.Namespace(task=task, text_columns=text_columns, label_column=label_column)


def test_the_recorded_task_fills_what_the_flags_leave_open(tmp_path):
    recorded = {"name": "classification", "text_columns": ["a"], "label_column": "kind"}
    assert task_of(flags(), recorded) == get_task("classification", text_columns=["a"], label_column="kind")
    assert task_of(flags(), None) == get_task("qa") == task_of(flags("qa"), recorded)
    assert task_of(flags(label_column="other"), recorded).settings() == {**recorded, "label_column": "other"}
    # Another dataset need not have the columns of the first.
    data = write_rows(tmp_path / "d.jsonl", rows_of(sentence=["x", "y"], label=[0, 1]))
    assert load_split(str(data), "train", task_of(flags(), recorded)).task.text_columns == ("sentence",)


# --- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([0, 1, 2, 1], ["0", "1", "2"], [0, 1, 2, 1]),
        ([5, 1, 3, 1], ["1", "3", "5"], [2, 0, 1, 0]),
        (["no", "yes", "no", "maybe"], ["maybe", "no", "yes"], [1, 2, 1, 0]),
        ([True, False, True, True], ["False", "True"], [1, 0, 1, 1]),
        ([1.0, 0.0, 1.0, 0.0], ["0", "1"], [1, 0, 1, 0]),
        ([10, 9, 10, 9], ["9", "10"], [1, 0, 1, 0]),
        (["1.0", "0.0", "1.0", "-1.0"], ["0", "1"], [1, 0, 1]),
    ],
)
def test_labels_of_every_kind(tmp_path, labels, names, numbers):
    assert names_and_labels(load(tmp_path, rows_of(text=TEXTS[:4], label=labels))) == (names, numbers)


@pytest.mark.parametrize("nothing", [-1, None, "-", ""])
def test_rows_without_gold_label_are_left_out_and_counted(tmp_path, caplog, nothing):
    known = ["no", "yes", "no"] if isinstance(nothing, str) else [0, 1, 0]
    rows = rows_of(id=list("abcde"), text=TEXTS[:5], label=[known[0], nothing, known[1], nothing, known[2]])
    split = load(tmp_path, rows)
    assert split.ids == ["a", "c", "e"]
    assert "2 of 5 examples without gold label are left out (rows 2, 4)" in caplog.text


def test_class_labels_keep_their_names_and_order():
    feature = datasets.ClassLabel(names=["neutral", "entailment", "contradiction"])
    data = datasets.Dataset.from_dict(
        {"premise": ["p"] * 3, "hypothesis": ["h1", "h2", "h3"], "label": [2, -1, 0]},
        features=datasets.Features(
            {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string"), "label": feature}
        ),
    )
    task = get_task("nli").for_columns(data.column_names, "x")
    normalized = task.normalize(data, "x")
    assert normalized.features["label"].names == feature.names and normalized["label"][:] == [2, 0]
    assert task.readable(normalized)["label"] == ["contradiction", "neutral"]
    assert task.groups(normalized) == ("label", ["contradiction", "neutral"])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0.5, 1.5, 0.5], "labels are whole numbers or names"),
        ([0, "yes", 1], "of another type than|both numbers and names"),
        ([-7, 0, 1], "the label -7; labels are numbers from 0, names, or -1"),
        ([-1, -1, -1], "no row has a label in column label"),
        ([None, None, None], "no row has a label in column label"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, words):
    with pytest.raises(UserError, match=words):
        load(tmp_path, rows_of(text=TEXTS[:3], label=labels))


@pytest.mark.parametrize(
    "labels", [["0.37", "0.4", "1.0", "0"], ["-0.5", "1e-3", ".5", "2."], ["0,37", "1,5", "0,37", "2"],
               ["12.5 %", "80%", "3 %", "80%"], [0.37, 1.0, None, 2.5]],
)
def test_measurements_are_no_labels(tmp_path, labels):
    """0.37 as text, as every CSV has it, was a class like any other."""
    for suffix in ("jsonl", "csv"):
        rows = rows_of(text=TEXTS[:4], label=labels)
        with pytest.raises(UserError, match="column label holds numbers such as .*labels are whole numbers or names"):
            load_rows(tmp_path, rows, suffix)


@pytest.mark.parametrize("labels", [["v1.5", "v2", "v2", "v1.5"], ["1", "2", "1", "2"], ["1.0", "2.0", "1.0", ""],
                                    ["0.5", "high", "0.5", "high"], ["+", "-2", "+", "-2"]])
def test_names_and_whole_numbers_are_labels(tmp_path, labels):
    for suffix in ("jsonl", "csv"):
        assert len(names_and_labels(load_rows(tmp_path, rows_of(text=TEXTS[:4], label=labels), suffix))[0]) == 2


def load_rows(tmp_path, rows, suffix, **settings):
    path = tmp_path / f"train.{suffix}"
    if suffix == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        write_rows(path, rows)
    return load_split(str(path), "train", get_task("classification", **settings))


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_blanks_around_a_name_make_no_class(tmp_path, caplog, suffix):
    labels = ["positive", "positive ", "\tnegative", "negative", "\u00a0positive", " "]
    split = load_rows(tmp_path, rows_of(text=TEXTS, label=labels), suffix)
    assert names_and_labels(split) == (["negative", "positive"], [1, 1, 0, 0, 1])
    assert "3 labels of column label have blanks around them ('positive ', '\\tnegative', " in caplog.text


def test_classes_that_may_be_meant_as_one_are_named(tmp_path, caplog):
    labels = ["Not entailment", "not_entailment", "caf\u00e9", "cafe\u0301", "yes", "yes"]
    split = load_rows(tmp_path, rows_of(text=TEXTS, label=labels), "jsonl")
    assert len(names_and_labels(split)[0]) == 5
    assert "may be meant as one: 'Not entailment' (1), 'not_entailment' (1); they are taken as 2" in caplog.text
    assert "may be meant as one: 'cafe\u0301' (1), 'caf\u00e9' (1)" in caplog.text and "'yes'" not in caplog.text


def test_the_classes_are_told_with_their_counts(tmp_path):
    split = load_rows(tmp_path, rows_of(text=TEXTS, label=["a", "b", "b", "c", "b", "c"]), "jsonl")
    assert split.task.composition(split.data) == "3 classes: b (3), c (2), a (1)"
    many = [f"class {number:02d}" for number in range(25)] * 2
    split = load_rows(tmp_path, rows_of(text=[f"t {number}" for number in range(50)], label=many), "jsonl")
    assert split.task.composition(split.data).endswith("class 19 (2) and 5 more")


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_columns_are_found_in_another_case(tmp_path, caplog, suffix):
    caplog.set_level(logging.INFO)
    rows = rows_of(**{"ID": ["007", "008", "009"], "Sentence": TEXTS[:3], " Label": ["no", "yes", "no"]})
    split = load_rows(tmp_path, rows, suffix)
    assert split.ids == ["007", "008", "009"] and split.data.column_names == ["id", "sentence", "label"]
    assert "column 'ID' is taken as 'id', column 'Sentence' is taken as 'sentence'" in caplog.text
    given = load_rows(tmp_path, rows, suffix, text_columns=["SENTENCE"], label_column="label")
    assert given.data.column_names == ["id", "SENTENCE", "label"]


def test_columns_in_another_case_are_not_guessed_at(tmp_path):
    rows = rows_of(sentence=TEXTS[:2], Label=["no", "yes"], LABEL=["a", "b"])
    with pytest.raises(UserError, match="no column with a usual name for --label_column.*Label, LABEL"):
        load(tmp_path, rows)
    # One that has a usual name as it is wins, and the other stays what it is.
    split = load(tmp_path, rows_of(text=TEXTS[:2], label=["no", "yes"], Class=["a", "b"], Review=["x", "y"]))
    assert split.data.column_names == ["id", "text", "label", "Class", "Review"]
    qa = rows_of(Question=["Who?"], CONTEXT=["Ada ran."], Answer=["Ada"], Answer_Start=[0])
    split = load(tmp_path, qa, "qa")
    assert split.data.column_names == ["id", "question", "context", "answers"] and split.task.is_usable(split.data)[0]


def test_a_column_of_unique_values_is_no_label(tmp_path):
    rows = rows_of(text=[f"t {number}" for number in range(20)], label=[f"name {number}" for number in range(20)])
    with pytest.raises(UserError, match="20 different values in 20 rows; is it the label"):
        load(tmp_path, rows)


def test_one_class_cannot_be_trained_on(tmp_path):
    split = load(tmp_path, rows_of(text=TEXTS[:3], label=[-1, 1, 1]))
    with pytest.raises(UserError, match="every example to train on has the label '1'.*-1 means no gold label"):
        split.task.check_training_data(split.data, "here")


def test_empty_texts(tmp_path, caplog):
    split = load(tmp_path, rows_of(id=list("abc"), text=["x", "  ", "y"], label=[0, 1, 1]))
    assert split.ids == ["a", "c"] and "1 of 3 examples with an empty text are left out (row 2)" in caplog.text
    with pytest.raises(UserError, match="column text is empty in every row"):
        load(tmp_path, rows_of(text=["", " ", ""], label=[0, 1, 1]))
    with pytest.raises(UserError, match="column text of row 1 holds 7, which is no text"):
        load(tmp_path, rows_of(text=[7, 8, 9], label=[0, 1, 1]))


# --- features ----------------------------------------------------------------------------------------------------


def test_pairs_are_read_in_order_and_the_longer_text_is_cut(tmp_path, caplog):
    """The question must survive a story that is too long."""
    story = " ".join(f"word{number}" for number in range(40))
    rows = rows_of(story=[story, "word1 word2"], question=["is it word3"] * 2, label=[0, 1])
    split = load(tmp_path, rows)
    tokenizer = train_tokenizer([story, story, "is it", "is it"], max_length=64)
    features = split.task.features(split.data, tokenizer, max_length=20)
    first = features[0]
    tokens = tokenizer.convert_ids_to_tokens(first["input_ids"])
    assert len(tokens) == 20 == first["length"] and tokens[:3] == ["[CLS]", "word0", "word1"]
    assert tokens[-5:] == ["[SEP]", "is", "it", "word3", "[SEP]"]
    assert first["token_type_ids"] == [0] * 16 + [1] * 4
    assert "1 of 2 texts are longer than 20 tokens (up to 46) and were cut" in caplog.text
    assert features["labels"][:] == [0, 1] and features["row_index"][:] == [0, 1] == features["example_index"][:]
    whole = split.task.features(split.data, tokenizer, max_length=64)
    assert whole[1]["input_ids"] == features[1]["input_ids"]


def test_ids_do_not_depend_on_which_classes_a_file_holds(tmp_path):
    rows = rows_of(text=TEXTS, label=["a", "b", "c", "b", "c", "a"])
    (tmp_path / "part").mkdir()
    whole, part = load(tmp_path, rows), load(tmp_path / "part", [row for row in rows if row["label"] != "a"])
    assert set(part.ids) <= set(whole.ids) and len(part.ids) == 4


# --- the labels of a model ---------------------------------------------------------------------------------------


class Config:
    def __init__(self, *names, architectures=("BertForSequenceClassification",)):
        self.id2label, self.num_labels, self.architectures = dict(enumerate(names)), len(names), list(architectures)


def classified(tmp_path, labels):
    return load(tmp_path, rows_of(text=TEXTS[: len(labels)], label=labels))


def test_labels_are_matched_to_the_model_by_name(tmp_path):
    split = classified(tmp_path, ["neutral", "entailment", "neutral"])
    model = Config("CONTRADICTION", "ENTAILMENT", "NEUTRAL")
    matched = split.task.match_labels(split.data, model, "here")
    assert matched["label"][:] == [2, 1, 2] and matched.features["label"].names[1:] == ["entailment", "neutral"]
    assert split.task.readable(matched)["label"] == ["neutral", "entailment", "neutral"]
    assert split.task.head(model, split.data, "here") == {}
    with pytest.raises(UserError, match="'entailment', 'neutral' are not among those the model knows .'no', 'yes'"):
        split.task.match_labels(split.data, Config("no", "yes"), "here")


def test_a_label_outside_the_known_set(tmp_path):
    split = classified(tmp_path, [0, 1, 3])
    with pytest.raises(UserError, match="labels '3' are not among those the model knows .'0', '1', '2'"):
        split.task.match_labels(split.data, Config("0", "1", "2"), "here")


def test_numbers_and_a_model_without_names(tmp_path):
    split = classified(tmp_path, [2, 0, 2])
    matched = split.task.match_labels(split.data, Config("LABEL_0", "LABEL_1", "LABEL_2"), "here")
    assert matched["label"][:] == [2, 0, 2]
    # Which number stands for which name nobody knows: never guessed.
    with pytest.raises(UserError, match="give them the same names"):
        split.task.match_labels(split.data, Config("contradiction", "entailment", "neutral"), "here")


def test_a_model_without_names_gets_those_of_the_training_data(tmp_path, caplog):
    """Or a split in which a class is missing would be counted from 0 again."""
    (tmp_path / "v").mkdir()
    train = classified(tmp_path, ["a", "b", "c"])
    other = load(tmp_path / "v", rows_of(text=["x", "y"], label=["b", "c"]))
    model = Config("LABEL_0", "LABEL_1", "LABEL_2")
    assert train.task.head(model, train.data, "here")["id2label"] == {0: "a", 1: "b", 2: "c"}
    assert other.task.match_labels(other.data, Config("a", "b", "c"), "here")["label"][:] == [1, 2]
    with pytest.raises(UserError, match="give them the same names"):
        other.task.match_labels(other.data, model, "here")
    train.task.match_labels(train.data, model, "here")
    assert "the model's classes have no names; LABEL_0 is taken for 'a'" in caplog.text


def test_training_on_other_classes_gets_a_new_head(tmp_path, caplog):
    split = classified(tmp_path, ["a", "b", "a"])
    head = split.task.head(Config("x", "y", "z"), split.data, "here")
    assert head == {"num_labels": 2, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    assert "it gets a new head" in caplog.text
    caplog.clear()
    assert split.task.head(Config("LABEL_0", "LABEL_1", architectures=["BertModel"]), split.data, "here") == head
    assert not caplog.text


# --- evaluation --------------------------------------------------------------------------------------------------


class Output:
    def __init__(self, predictions, label_ids):
        self.predictions, self.label_ids = predictions, label_ids


def test_scores_against_slow_formulas(tmp_path):
    rng = np.random.default_rng(0)
    gold, logits = rng.integers(0, 3, 60), rng.normal(size=(60, 3)) * 3
    rows = rows_of(text=[f"text {number}" for number in range(60)], label=[int(label) for label in gold])
    split = load(tmp_path, rows)
    tokenizer = train_tokenizer([row["text"] for row in rows] * 2, 16)
    evaluation = split.task.evaluation(split.data, split.task.features(split.data, tokenizer, 16))
    shuffled = rng.permutation(60)
    metrics = evaluation(Output(logits[shuffled], shuffled))
    predicted = logits.argmax(axis=1)
    assert metrics["accuracy"] == pytest.approx(np.mean(predicted == gold))
    assert metrics["majority_baseline"] == pytest.approx(max(np.mean(gold == label) for label in range(3)))
    losses = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, gold, strict=True)]
    assert metrics["loss"] == pytest.approx(np.mean(losses))
    f1s = []
    for label in range(3):
        hit = np.sum((predicted == label) & (gold == label))
        precision, recall = hit / np.sum(predicted == label), hit / np.sum(gold == label)
        f1s.append(2 * precision * recall / (precision + recall))
        assert metrics[f"precision_{label}"] == pytest.approx(precision)
        assert metrics[f"recall_{label}"] == pytest.approx(recall)
        assert metrics[f"f1_{label}"] == pytest.approx(f1s[-1])
    assert metrics["f1"] == pytest.approx(np.mean(f1s))

    written = evaluation.rows()
    assert [row["label"] for row in written] == gold.tolist()
    assert [row["predicted_label"] for row in written] == predicted.tolist()
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in written)
    evaluation.write(tmp_path, "_x", "here")
    import pandas as pd

    counts = pd.read_csv(tmp_path / "confusion_matrix_x.csv")
    counts = counts.pivot(index="label", columns="predicted_label", values="n")
    assert counts.to_numpy()[1, 2] == np.sum((gold == 1) & (predicted == 2)) and counts.to_numpy().sum() == 60
    mistakes = pd.read_csv(tmp_path / "misclassified_x.csv", dtype={"id": str})
    assert len(mistakes) == np.sum(predicted != gold) and mistakes["confidence"].is_monotonic_decreasing
    assert (mistakes["label"] != mistakes["predicted_label"]).all()
    assert (tmp_path / "confusion_matrix_x.png").stat().st_size > 5000


# --- splits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "split"),
    [(("train", "validation"), "validation"), (("train", "validation_matched", "validation_mismatched"),
     "validation_matched"), (("train", "valid", "test"), "valid"), (("train", "test"), "validation")],
)
def test_the_split_to_evaluate_on(tmp_path, files, split):
    for name in files:
        write_rows(tmp_path / f"{name}.jsonl", rows_of(text=["a", "b"], label=[0, 1]))
    assert default_eval_split(str(tmp_path)) == split


def test_mnli_of_the_hub_is_evaluated_on_its_matched_split(monkeypatch):
    asked = []

    def split_names(repository, subset):
        asked.append((repository, subset))
        return ["train", "validation_matched", "validation_mismatched", "test_matched"]

    monkeypatch.setattr(datasets, "get_dataset_split_names", split_names)
    assert default_eval_split("glue:mnli") == "validation_matched"
    assert asked == [("glue", "mnli")]


def test_every_task_is_complete():
    """A task that forgets a part of the contract is found here, not by its first user."""
    needed = {"text_columns", "content_columns", "model_class", "evaluation"}
    for name, task in TASKS.items():
        assert task.name == name and task.metric and task.targets and task.pooling
        assert not [member for member in needed if getattr(task, member) is getattr(Task, member)]
        assert task.labels is not Task.labels or task.features is not Task.features
    assert json.dumps(get_task("nli").settings())


def test_a_task_needs_seven_members():
    @dataclasses.dataclass(frozen=True)
    class Tone(Task):
        name, metric = "tone", "accuracy"
        text_columns, content_columns = ("said",), ("said", "tone")
        model_class = None

        def labels(self, data):
            return data["tone"][:]

        def evaluation(self, data, features):
            return Evaluation(data, features)

    task = Tone()
    data = datasets.Dataset.from_dict({"id": ["a", "b"], "said": ["well done", "oh no"], "tone": [1, 0]})
    tokenizer = train_tokenizer(data["said"][:] * 2, 32)
    features = task.features(task.normalize(data, "words"), tokenizer)
    assert features["labels"][:] == [1, 0] and features["counts"][:] == [True, True]
    assert len(task.evaluation(data, features).features) == 2
    assert task.embedding_rows(data, features, tokenizer)[1].tolist() == [0, 0]
    assert task.readable(data) == task.brief(data) == {"said": ["well done", "oh no"], "tone": [1, 0]}
    assert task.groups(data) == ("task", ["tone", "tone"])
    assert task.settings() == {"name": "tone"} and task.perturbed_columns == ("said",)
    with pytest.raises(UserError, match="words has no column 'tone'"):
        task.normalize(data.remove_columns("tone"), "words")
