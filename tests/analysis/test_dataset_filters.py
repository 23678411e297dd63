"""dataset_filters.py as a script: the files that it writes are the filtered examples, and run.py trains on them."""

from __future__ import annotations

import json
import shlex
from datetime import date

import datasets
import numpy as np
import pytest
from conftest import qa_rows, review_rows, write_rows

import dataset_filters
import run
from datamap.analysis.filter_config import apply_filters
from datamap.cartography.categories import category_thresholds, with_categories
from datamap.cartography.maps import load_map, write_cartography
from datamap.core.artifacts import stage
from datamap.core.files import read_json, read_jsonl
from datamap.core.splits import content_fingerprint, load_split
from datamap.tasks.registry import get_task
from datamap.training import arguments
from datamap.training.data import load_data, write_split


def write_map(directory, ids, **thresholds):
    """Metrics of these examples, confidence rising with their place."""
    import pandas as pd

    n = len(ids)
    frame = pd.DataFrame(
        {"confidence": np.linspace(0.1, 0.9, n), "variability": np.arange(n) % 7 / 20, "aum": np.arange(n) - 5.0},
        index=pd.Index(ids, name="id"),
    )
    directory.mkdir(exist_ok=True)
    write_cartography(directory, frame, **thresholds)
    return frame


def written(tmp_path, data, config, *flags):
    """The directory that dataset_filters.py writes."""
    file = tmp_path / "filters.json"
    file.write_text(json.dumps(config))
    argv = ["--dataset", data, "--filter_config", file, "--output_dir", tmp_path / "filtered", *flags]
    dataset_filters.main([str(word) for word in argv])
    return tmp_path / "filtered"


@pytest.fixture
def questions(tmp_path):
    """QA rows with columns of every kind, two of them unanswerable, one with its answer at another offset."""
    rows = qa_rows(30, seed=3)
    for place, row in enumerate(rows):
        row |= {"tags": ["a", None], "score": None if place == 4 else place / 3, "note": f"é\u2028{place}",
                "none": None}
    for place in (6, 7):
        rows[place]["answers"] = {"text": [], "answer_start": []}
    rows[9]["answers"]["answer_start"] = [5000]
    return write_rows(tmp_path / "notes.jsonl", rows), rows


def test_what_it_says_trains_on_them(tmp_path, capsys):
    """Also where run.py would take them for questions, or not know which column is which."""
    rows = [{"id": row["id"], "comment": row["sentence"], "mood": row["label"]} for row in review_rows(8, 3)]
    file = write_rows(tmp_path / "r.jsonl", rows)
    write_map(tmp_path / "map", [row["id"] for row in rows])
    config = {"metric": {"metrics_path": str(tmp_path / "map"), "metric": "aum", "min": -1}}
    written(tmp_path, file, config, "--task", "classification", "--text_columns", "comment", "--label_column", "mood")
    said = capsys.readouterr().out.strip().rpartition("run.py ")[2].removesuffix(" trains on them")
    assert "--task" not in said
    split = load_data(arguments.parse_args(["--do_train", *shlex.split(said)])).train
    assert split is not None and len(split.data) == 4 and split.task.content_columns == ("comment", "mood")


def test_questions_there_and_back(tmp_path, questions, capsys):
    file, rows = questions
    write_map(tmp_path / "map", [row["id"] for row in rows])
    config = {"metric": {"metrics_path": str(tmp_path / "map"), "metric": "aum", "min": 0}}
    output = written(tmp_path, file, config)
    expected = [row for place, row in enumerate(rows) if place >= 5 and place != 9]  # run.py cannot train on row 9
    assert read_jsonl(output / "train.jsonl") == [
        {"id": row["id"], "question": row["question"], "context": row["context"], "answers": row["answers"],
         **{name: row[name] for name in ("source", "tags", "score", "note", "none")}} for row in expected
    ]
    again, task = load_split(str(output), "train", get_task("qa")), get_task("qa")
    source = load_split(str(file), "train", task)
    kept = source.data.select([source.ids.index(row["id"]) for row in expected])
    assert again.ids == [row["id"] for row in expected]
    assert again.fingerprint == content_fingerprint(kept, task.content_columns)
    report, meta = read_json(output / "filter_report.json"), read_json(output / "run_meta.json")
    assert (report["before"], report["after"]) == (30, 24)
    assert [(each["filter"], each["before"], each["after"]) for each in report["filters"]] == [
        ("unusable", 30, 29), ("metric", 29, 24)
    ]
    assert meta["status"] == "finished" and list(meta["outputs"]) == ["filter_report.json", "train.jsonl"]
    assert meta["datasets"][0]["fingerprint"] == source.fingerprint and meta["inputs"]["0.metric.metrics_path"]
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"wrote 24 of 30 examples and filter_report.json to {output}")


def test_examples_without_metrics_go_unless_asked_for(tmp_path, questions, refused):
    """A map of the first 12 of 30 (29 can be trained on): what is not known to be easy is not kept as easy."""
    file, rows = questions
    write_map(tmp_path / "map", [row["id"] for row in rows[:12]])
    config: dict[str, dict] = {
        "category": {"metrics_path": str(tmp_path / "map"), "categories": ["easy", "ambiguous", "hard"]}
    }
    for missing, after in ((None, 11), ("keep", 29), ("drop", 11)):
        output = written(tmp_path, file, config, *(("--missing", missing) if missing else ()))
        assert read_json(output / "filter_report.json")["after"] == len(read_jsonl(output / "train.jsonl")) == after
    config["confidence"] = {"min_confidence": 1}
    (tmp_path / "filters.json").write_text(json.dumps(config))
    said = refused(dataset_filters.main, "--dataset", file, "--filter_config", tmp_path / "filters.json",
                   "--output_dir", tmp_path / "none")
    assert "category drops 18, 18 of which its file does not list, confidence drops 11)" in said


def test_run_trains_on_what_is_written_as_with_the_config(tmp_path, questions):
    file, rows = questions
    write_map(tmp_path / "map", [row["id"] for row in rows])
    config = {"category": {"metrics_path": str(tmp_path / "map"), "categories": ["easy", "hard"]}, "random": {}}
    output = written(tmp_path, file, config, "--seed", "5")
    trained = []
    for name, flags in {"files": ["--dataset", str(output)],
                        "config": ["--dataset", str(file), "--filter_config", str(tmp_path / "filters.json")]}.items():
        run.main(
            ["--do_train", "--model", "tiny", "--hidden_size", "16", "--max_length", "64", "--doc_stride", "16",
             "--num_train_epochs", "1", "--enable_cartography", "--output_dir", str(tmp_path / name), "--no_cuda",
             "--cartography_output_dir", str(tmp_path / f"m_{name}"), "--save_strategy", "no", "--seed", "5", *flags]
        )
        trained.append(read_json(tmp_path / f"m_{name}" / "training_dynamics_epoch_1.json")["id"])
    assert trained[0] == trained[1] and 0 < len(trained[0]) < 29


def reviews_dataset(names):
    """A dataset as from the Hub: its labels are class numbers whose names are not in alphabetical order."""
    rows = review_rows(24, 1, classes=("good", "bad", "so-so"))
    place = {"good": 0, "bad": 1, "so-so": 2}
    return datasets.Dataset.from_dict(
        {
            "id": [row["id"] for row in rows], "sentence": [row["sentence"] for row in rows],
            "label": [place[row["label"]] for row in rows], "kind": [len(row["kind"]) % 2 for row in rows],
            "seen": [date(2020, 1, 1 + place) for place in range(24)], "weight": [float("nan")] * 12 + [0.5] * 12,
        },
        features=datasets.Features(
            {"id": datasets.Value("string"), "sentence": datasets.Value("string"),
             "label": datasets.ClassLabel(names=names), "kind": datasets.ClassLabel(names=["old", "new"]),
             "seen": datasets.Value("date32"), "weight": datasets.Value("float64")}
        ),
    )


@pytest.mark.parametrize("names", [["good", "bad", "so-so"], ["2", "1", "0"], ["10", "9", "8"]])
def test_classes_there_and_back(tmp_path, names):
    reviews_dataset(names).save_to_disk(str(tmp_path / "reviews"))
    task = get_task("classification")
    source = load_split(str(tmp_path / "reviews"), "train", task)
    write_map(tmp_path / "map", source.ids)
    config = {"confidence": {"metrics_path": str(tmp_path / "map"), "min_confidence": 0.3}}
    output = written(tmp_path, tmp_path / "reviews", config, "--task", "classification", "--max_train_samples", "20")
    again = load_split(str(output), "train", task)
    chosen = source.data.select([row for row, example in enumerate(source.ids) if example in again.ids])
    assert again.ids == source.ids[6:20]
    assert again.fingerprint == content_fingerprint(chosen, source.task.content_columns)
    assert source.task.readable(chosen) == again.task.readable(again.data)
    row = read_jsonl(output / "train.jsonl")[0]
    assert row["kind"] in ("old", "new") and row["seen"] == "2020-01-07" and row["weight"] is None


def test_a_class_that_files_cannot_hold(tmp_path):
    reviews_dataset(["-", "+", "0"]).save_to_disk(str(tmp_path / "reviews"))
    split = load_split(str(tmp_path / "reviews"), "train", get_task("classification"))
    with pytest.raises(dataset_filters.UserError, match="other content when it is read again .*need other names"):
        write_split(tmp_path / "train.jsonl", split)
    assert not (tmp_path / "train.jsonl").exists()


def test_the_directory_takes_other_splits_beside(tmp_path, questions, qa_dir):
    file, rows = questions
    write_map(tmp_path / "map", [row["id"] for row in rows])
    config = {"metric": {"metrics_path": str(tmp_path / "map"), "metric": "aum", "min": 0}}
    output = written(tmp_path, file, config)
    with pytest.raises(dataset_filters.UserError, match="has no split 'validation'; it has train$"):
        load_split(str(output), "validation", get_task("qa"))
    (output / "validation.jsonl").write_bytes((qa_dir / "validation.jsonl").read_bytes())
    assert len(load_split(str(output), "validation", get_task("qa")).data) == 10
    written(tmp_path, file, config)
    assert (output / "validation.jsonl").exists()


def test_what_is_refused(tmp_path, questions, refused):
    file, rows = questions
    write_map(tmp_path / "map", [row["id"] for row in rows])
    config = tmp_path / "f.json"

    def message(content, *flags, output=tmp_path / "out"):
        config.write_text(json.dumps(content))
        given = ("--dataset", file, "--filter_config", config, "--output_dir", output)
        return refused(dataset_filters.main, *given, *flags)

    low = {"metric": {"metrics_path": str(tmp_path / "map"), "metric": "aum", "min": 0}}
    assert "enables no filter" in message({})
    assert "enables no filter" in message({"rules": {"enabled": False}})
    assert "unknown filter 'rule'" in message({"rule": {}})
    assert "more than max_drop_percentage 10" in message(low, "--max_drop_percentage", "10")
    assert "has no column 'label'" in message(low, "--task", "classification", "--text_columns", "question",
                                              "--label_column", "label")
    assert "only split is 'train'" in message(low, "--split", "validation")
    assert "which is read; name another directory" in message(low, output=tmp_path / "map")
    assert "which is read; name another directory" in message(low, output=tmp_path)
    assert not (tmp_path / "out").exists() and file.exists()


def test_categories_are_those_of_the_map(tmp_path, questions):
    """Thresholds written with the map reach the filters, also where the medians would say otherwise."""
    file, rows = questions
    ids = [row["id"] for row in rows]
    metrics = write_map(tmp_path / "map", ids, method="percentile", confidence_threshold=80, variability_threshold=70)
    cuts = category_thresholds(metrics, 80, 70, "percentile")
    frame, recorded = load_map(tmp_path / "map")
    assert recorded == cuts != category_thresholds(metrics)
    assert not frame["category"].equals(with_categories(metrics, category_thresholds(metrics))["category"])
    split = load_split(str(file), "train", get_task("qa"))
    for category in ("easy", "ambiguous", "hard"):
        config = {"category": {"metrics_path": str(tmp_path / "map"), "categories": [category]}}
        kept, report = apply_filters(split, config, return_report=True)
        assert kept["id"][:] == frame.index[frame["category"] == category].tolist()
        assert report["filters"][0]["thresholds"] == dict(zip(("confidence", "variability"), cuts, strict=True))
    least = {"ambiguous": {"metrics_path": str(tmp_path / "map"), "top_fraction": 0}}
    assert apply_filters(split, least)["id"][:] == frame.index[frame["category"] != "ambiguous"].tolist()


def test_the_dataset_is_that_of_what_the_filters_read(tmp_path, questions):
    path, _ = questions
    split = load_split(str(path), "train", get_task("qa"))
    with stage(tmp_path / "map", {}, owns=("*",), datasets=[split.identity()]):
        write_map(tmp_path / "map", split.ids)
    file = tmp_path / "filters.json"
    file.write_text(json.dumps({"category": {"metrics_path": str(tmp_path / "map"), "categories": ["easy"]}}))
    dataset_filters.main(["--filter_config", str(file), "--output_dir", str(tmp_path / "filtered")])
    chosen = load_map(tmp_path / "map")[0]
    kept = [row["id"] for row in read_jsonl(tmp_path / "filtered" / "train.jsonl")]
    assert kept and set(kept) <= set(chosen.index[chosen["category"] == "easy"])


def test_another_split_than_train_is_named_where_it_becomes_what_is_trained_on(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    rows = [{**row, "id": f"v{number}"} for number, row in enumerate(qa_rows(10))]
    for name in ("train", "validation"):
        write_rows(tmp_path / "data" / f"{name}.jsonl", rows)
    known = "".join(f"v{number},0.{number},0.1\n" for number in range(10))
    (tmp_path / "map.csv").write_text(f"id,confidence,variability\n{known}")
    block = {"confidence": {"metrics_path": str(tmp_path / "map.csv"), "min_confidence": 0.45}}
    (tmp_path / "filters.json").write_text(json.dumps(block))
    argv = ["--dataset", str(tmp_path / "data"), "--filter_config", str(tmp_path / "filters.json")]
    for flags, said in (([], "wrote 5 of 10 examples and"), (["--split", "validation"], "10 examples of validation")):
        dataset_filters.main([*argv, *flags, "--output_dir", str(tmp_path / "half")])
        assert said in capsys.readouterr().out.splitlines()[-1]
