"""run.py --plant_errors through its command line: the data that it trains on, and what later stages find of it."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import write_rows

import extract_embeddings
import run
from datamap.core.artifacts import recorded_dataset
from datamap.core.splits import load_split
from datamap.suites.definition import fingerprints
from datamap.tasks.registry import get_task
from datamap.training.arguments import parse_args

SMALL = ["--no_cuda", "--model", "tiny", "--hidden_size", "32", "--num_layers", "1", "--max_length", "64",
         "--save_strategy", "no", "--max_steps", "2"]
QA = [*SMALL, "--task", "qa", "--doc_stride", "16"]


def call(*argv):
    run.main([str(argument) for argument in argv])


def lines(file):
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def by_id(file):
    return {row["id"]: row for row in lines(file)}


def errors_of(directory):
    return pd.read_csv(directory / "planted_errors.csv", dtype=str)


@pytest.fixture(scope="module")
def planted(qa_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("planted")
    call("--do_train", "--do_eval", "--dataset", qa_dir, "--plant_errors", "0.5", *QA, "--output_dir", out / "m",
         "--enable_cartography", "--cartography_output_dir", out / "c")
    return out


def test_answers_and_questions_are_wrong_where_it_says(planted, qa_dir):
    errors = errors_of(planted / "m").set_index("id")
    assert list(errors.columns) == ["kind", "was"] and len(errors) == 12
    before, after = by_id(qa_dir / "train.jsonl"), by_id(planted / "m/planted_data/train.jsonl")
    assert list(before) == list(after)
    for example, row in after.items():
        if example not in errors.index:
            assert row == before[example]
            continue
        was = json.loads(errors.loc[example, "was"])
        assert {**row, **was} == before[example] and row != before[example], "nothing else has changed"
        assert set(was) == ({"question"} if errors.loc[example, "kind"].endswith("question") else {"answers"})
        [start], [text] = row["answers"]["answer_start"], row["answers"]["text"]
        assert row["context"][start : start + len(text)] == text
    assert by_id(planted / "m/planted_data/validation.jsonl") == by_id(qa_dir / "validation.jsonl")
    assert sorted(path.name for path in (planted / "m/planted_data").iterdir()) == ["train.jsonl", "validation.jsonl"]


def test_later_stages_go_on_with_the_planted_data(planted, tmp_path, capsys):
    place = str(planted / "m/planted_data")
    for artifact in (planted / "m", planted / "c"):
        recorded = recorded_dataset(artifact) or {}
        assert recorded["dataset"] == place
        assert recorded["fingerprint"] == load_split(place, "train", get_task("qa")).fingerprint
    extract_embeddings.main(["--model_path", str(planted / "m"), "--no_cuda", "--max_length", "64", "--doc_stride",
                             "16", "--output_dir", str(tmp_path / "e")])
    assert json.loads((tmp_path / "e/embeddings_metadata.json").read_text())["dataset"] == place
    call("--do_eval", "--model", planted / "m", "--eval_split", "train", *QA[:1], "--max_length", "64",
         "--doc_stride", "16", "--output_dir", tmp_path / "p")
    wrong = by_id(planted / "m/planted_data/train.jsonl")
    assert all(row["answers"] == wrong[row["id"]]["answers"] for row in lines(tmp_path / "p/eval_predictions.jsonl"))


def test_a_suite_knows_what_a_run_with_planted_errors_trains_on(planted, qa_dir):
    args = parse_args(["--do_train", "--do_eval", "--dataset", str(qa_dir), "--plant_errors", "0.5", *QA])
    found = fingerprints(args)
    recorded = recorded_dataset(planted / "m")
    assert recorded and found["train"] == recorded["fingerprint"]
    assert found["validation"] == load_split(str(qa_dir), "validation", get_task("qa")).fingerprint


def test_the_plant_seed_alone_says_which(planted, qa_dir, tmp_path):
    flags = ["--do_train", "--dataset", qa_dir, *QA, "--plant_errors", "0.5"]
    call(*flags, "--seed", "7", "--output_dir", tmp_path / "same")
    assert errors_of(tmp_path / "same").equals(errors_of(planted / "m"))
    call(*flags, "--plant_seed", "1", "--output_dir", tmp_path / "other")
    assert not errors_of(tmp_path / "other").equals(errors_of(planted / "m"))
    call(*flags[:-2], "--output_dir", tmp_path / "same", "--overwrite")
    assert not (tmp_path / "same/planted_errors.csv").exists() and not (tmp_path / "same/planted_data").exists()


def test_the_first_rows_are_taken_before_errors_are_planted(qa_dir, tmp_path):
    call("--do_train", "--do_eval", "--dataset", qa_dir, *QA, "--plant_errors", "0.5", "--max_train_samples", "10",
         "--max_eval_samples", "4", "--eval_split", "train", "validation", "--output_dir", tmp_path / "m")
    rows = lines(tmp_path / "m/planted_data/train.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in lines(qa_dir / "train.jsonl")[:10]]
    assert len(errors_of(tmp_path / "m")) == 5
    evaluated = by_id(tmp_path / "m/eval_predictions_train.jsonl")
    assert {example: row["answers"] for example, row in evaluated.items()} == {
        row["id"]: row["answers"] for row in rows[:4]}, "the split that is trained on is the one with errors"
    assert len(lines(tmp_path / "m/planted_data/validation.jsonl")) == 10, "whole"


def test_labels(reviews, tmp_path):
    flags = ["--do_train", "--do_eval", "--dataset", reviews, *SMALL, "--task", "classification",
             "--plant_errors", "0.25"]
    for kind, more in {"uniform": [], "confusion": ["--plant_confusion", "good>bad"], "plausible": []}.items():
        out = tmp_path / kind
        call(*flags, *(["--plant_kind", kind] if kind != "uniform" else []), *more, "--output_dir", out)
        before, after = by_id(reviews / "train.jsonl"), by_id(out / "planted_data/train.jsonl")
        errors = errors_of(out).set_index("id")
        assert len(errors) == 12 and set(errors["kind"]) == {kind}
        for example, row in after.items():
            was = errors["was"].get(example, row["label"])
            assert {**row, "label": was} == before[example] and (example in errors.index) == (row != before[example])
        if kind == "confusion":
            assert set(errors["was"]) == {"good"}


def test_labels_that_are_numbers(tmp_path):
    for split, count in {"train": 20, "validation": 6}.items():
        write_rows(tmp_path / f"{split}.jsonl", [
            {"id": f"{split}{row}", "sentence": f"word{row % 3} again", "label": row % 3} for row in range(count)])
    call("--do_train", "--do_eval", "--dataset", tmp_path, *SMALL, "--task", "classification", "--plant_errors", "0.1",
         "--plant_kind", "confusion", "--output_dir", tmp_path / "m")
    after = by_id(tmp_path / "m/planted_data/train.jsonl")
    assert all(after[row.id]["label"] == (int(row.was) + 1) % 3 for row in errors_of(tmp_path / "m").itertuples())


@pytest.fixture
def interrupted(qa_dir, tmp_path):
    flags = ["--do_train", "--dataset", qa_dir, *QA, "--plant_errors", "0.5", "--save_strategy", "steps",
             "--save_steps", "1", "--output_dir", tmp_path / "m"]
    call(*flags)
    shutil.rmtree(tmp_path / "m/checkpoint-2")
    return tmp_path, flags


def test_a_resumed_run_finds_the_same_errors(interrupted, refused):
    out, flags = interrupted
    before = (out / "m/planted_data/train.jsonl").read_bytes(), errors_of(out / "m")
    for others in (["--plant_seed", "1"], ["--plant_errors", "0.2"]):
        line = refused(run.main, *flags, *others, "--resume_from_checkpoint")
        assert f"{others[0].removeprefix('--')} 0" in line and f"not {others[1]}" in line
    without = [flag for flag in flags if flag not in ("--plant_errors", "0.5")]
    assert "was trained on other data" in refused(run.main, *without, "--resume_from_checkpoint")
    assert "holds a trained model" in refused(run.main, *flags, "--plant_seed", "1")
    assert (out / "m/planted_data/train.jsonl").read_bytes() == before[0], "what is refused changes nothing"
    call(*flags, "--resume_from_checkpoint")
    assert (out / "m/planted_data/train.jsonl").read_bytes() == before[0]
    assert errors_of(out / "m").equals(before[1])


def test_mistakes(qa_dir, reviews, tmp_path, refused):
    qa = ["--do_train", "--dataset", qa_dir, *QA, "--output_dir", tmp_path / "m"]
    labels = ["--do_train", "--dataset", reviews, *SMALL, "--task", "classification", "--output_dir", tmp_path / "m",
              "--plant_errors", "0.1"]
    cases = {
        "--plant_kind does nothing without --plant_errors": [*labels[:-2], "--plant_kind", "uniform"],
        "--plant_kind is for --task": [*qa, "--plant_errors", "0.1", "--plant_kind", "uniform"],
        "--plant_confusion is for --plant_kind confusion": [*labels, "--plant_confusion", "good>bad"],
        "found 'good>fine'; there is bad, good": [*labels, "--plant_kind", "confusion", "--plant_confusion",
                                                  "bad>good,good>fine"],
        "is not one example; give a larger share": [*qa, "--plant_errors", "0.001"],
        "a number from 0 to 1, found '2'": [*qa, "--plant_errors", "2"],
        "are 38, but only 24 are of --plant_confusion good>bad": [
            *labels[:-1], "0.8", "--plant_kind", "confusion", "--plant_confusion", "good>bad"],
    }
    for words, argv in cases.items():
        assert words in refused(run.main, *argv)
    assert not (tmp_path / "m").exists()


def test_too_few_questions_have_an_answer(qa_dir, tmp_path, refused):
    rows = lines(qa_dir / "train.jsonl")
    for row in rows[:12]:
        row["answers"] = {"text": [], "answer_start": []}
    data = write_rows(tmp_path / "half.jsonl", rows)
    flags = ["--do_train", "--dataset", data, *QA, "--output_dir", tmp_path / "m"]
    line = refused(run.main, *flags, "--plant_errors", "0.6")
    assert "are 14, but only 12 have an answer; give a smaller share" in line
    call(*flags, "--plant_errors", "0.5")
    assert set(errors_of(tmp_path / "m")["id"]) == {row["id"] for row in rows[12:]}


def test_the_planted_data_is_not_overwritten_by_what_trains_on_it(planted, refused):
    line = refused(run.main, "--do_train", *QA, "--dataset", planted / "m/planted_data", "--output_dir",
                   planted / "m", "--overwrite")
    assert "lies in --output_dir" in line and (planted / "m/planted_data/train.jsonl").exists()
