"""--filter_validation: the evaluation beside that of what filters keep, by a map and clusters of what is evaluated."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import run
from datamap.core.artifacts import stage
from datamap.core.splits import load_split
from datamap.tasks.registry import get_task
from datamap.training.arguments import inputs_of

SMALL = ["--no_cuda", "--max_length", "64", "--doc_stride", "20", "--per_device_train_batch_size", "8"]


def call(*argv):
    run.main([str(argument) for argument in argv])


def read(path):
    return json.loads(Path(path).read_text())


def artifact(directory, name, split, columns):
    with stage(directory, {}, owns=(name,), datasets=[split.identity()]) as path:
        pd.DataFrame({"id": split.ids, **columns}).to_csv(path / name, index=False)
    return directory


@pytest.fixture(scope="module")
def places(tmp_path_factory, qa_dir):
    """A map and clusters of each split, in the directories that are the defaults: the k-th example is easy, hard or
    ambiguous, and lies in cluster k modulo 4, less one."""
    home = tmp_path_factory.mktemp("places")
    for split_name, ending in (("train", ""), ("validation", "_validation")):
        split = load_split(str(qa_dir), split_name, get_task("qa"))
        place = np.arange(len(split.ids))
        artifact(home / f"cartography_output{ending}", "cartography_metrics.csv", split,
                 {"confidence": np.choose(place % 3, [0.9, 0.1, 0.5]),
                  "variability": np.choose(place % 3, [0.1, 0.1, 0.4])})
        artifact(home / f"cluster_output{ending}", "cluster_assignments.csv", split,
                 {"cluster": place % 4 - 1, "dim1": 0.0, "dim2": 0.0, "cluster_probability": 0.9,
                  "outlier_score": 0.1})
    return home


def kept_slowly(n):
    return [place for place in range(n) if place % 3 != 1 and place % 4 != 0]


def test_both_results_by_the_map_and_clusters_of_the_validation_split(places, qa_dir, tiny_model, tmp_path,
                                                                      monkeypatch, capsys):
    monkeypatch.chdir(places)  # all places are the defaults
    call("--do_train", "--do_eval", "--max_steps", "2", "--filter_categories", "easy", "ambiguous",
         "--filter_clusters", "--filter_validation", "--model", tiny_model, "--dataset", qa_dir, "--output_dir",
         tmp_path / "m", *SMALL)
    rows = [json.loads(line) for line in (tmp_path / "m/eval_predictions.jsonl").read_text().splitlines()]
    kept, metrics = kept_slowly(10), read(tmp_path / "m/eval_metrics.json")
    assert 0 < len(kept) < len(rows) == metrics["eval_total"] == 10
    assert metrics["eval_filtered_total"] == len(kept)
    for name, column in (("exact_match", "exact_match"), ("f1", "f1")):
        assert metrics[f"eval_{name}"] == pytest.approx(100 * np.mean([row[column] for row in rows]))
        of_kept = [rows[place][column] for place in kept]
        assert metrics[f"eval_filtered_{name}"] == pytest.approx(100 * np.mean(of_kept))
    shown = capsys.readouterr().out
    assert "eval_exact_match" in shown and "eval_filtered_exact_match" in shown
    report = read(tmp_path / "m/filter_report.json")
    assert (report["before"], report["after"]) == (24, len(kept_slowly(24)))
    of_validation = report["evaluation"]["validation"]
    assert (of_validation["before"], of_validation["after"]) == (10, len(kept))
    removed = [example for each in of_validation["filters"] for ids in each["removed"].values() for example in ids]
    assert sorted(removed) == sorted(rows[place]["id"] for place in range(10) if place not in kept)
    assert [each["settings"].get("metrics_path") or each["settings"]["cluster_path"]
            for each in of_validation["filters"]] == ["./cartography_output_validation", "./cluster_output_validation"]
    inputs = read(tmp_path / "m/run_meta.json")["inputs"]
    assert inputs["validation.0.category.metrics_path"]["path"] == "./cartography_output_validation"

    # Only evaluated again, by one filter of a file: what the training filtered stays in the report.
    config = tmp_path / "filters.json"
    config.write_text(json.dumps({"cluster": {"cluster_path": str(places / "cluster_output"),
                                              "exclude_clusters": [-1]}}))
    again = ["--do_eval", "--model", tmp_path / "m", "--output_dir", tmp_path / "m", *SMALL]
    call(*again, "--filter_config", config, "--filter_validation", "--validation_cluster_assignments_path",
         places / "cluster_output_validation")
    assert read(tmp_path / "m/eval_metrics.json")["eval_filtered_total"] == sum(place % 4 > 0 for place in range(10))
    found = read(tmp_path / "m/filter_report.json")
    assert {name: value for name, value in found.items() if name != "evaluation"} == {
        name: value for name, value in report.items() if name != "evaluation"}
    assert [each["filter"] for each in found["evaluation"]["validation"]["filters"]] == ["cluster"]
    call(*again)
    assert "evaluation" not in read(tmp_path / "m/filter_report.json")
    assert not [name for name in read(tmp_path / "m/eval_metrics.json") if "filtered" in name]


def test_a_control_is_evaluated_on_what_its_experiment_is(places, qa_dir, tiny_model, tmp_path, monkeypatch):
    """--filter_random chooses what to train on; of the evaluation it draws nothing."""
    monkeypatch.chdir(places)
    call("--do_train", "--do_eval", "--max_steps", "1", "--filter_categories", "easy", "ambiguous",
         "--filter_clusters", "--filter_random", "--filter_validation", "--model", tiny_model, "--dataset", qa_dir,
         "--output_dir", tmp_path / "m", *SMALL)
    report = read(tmp_path / "m/filter_report.json")
    assert [each["filter"] for each in report["filters"]] == ["random"]
    assert [each["filter"] for each in report["evaluation"]["validation"]["filters"]] == ["category", "cluster"]
    assert read(tmp_path / "m/eval_metrics.json")["eval_filtered_total"] == len(kept_slowly(10))


@pytest.mark.parametrize("flags, words", [
    (["--filter_categories", "easy", "--validation_cartography_output_dir", "nowhere"],
     "nowhere: no such file or directory; there --filter_validation reads (--validation_cartography_output_dir) what "
     "run.py --do_train --enable_cartography --train_split makes"),
    (["--filter_clusters", "--validation_cluster_assignments_path", "nowhere"],
     "(--validation_cluster_assignments_path) what cluster_analysis.py makes"),
    (["--filter_categories", "easy", "--validation_cartography_output_dir", "cartography_output"], "shares no ids"),
    (["--train_ids", "ids.csv", "--filter_random"], "--filter_validation needs a filter and --do_eval"),
    (["--enable_cartography", "--filter_config", "category.json", "--cartography_output_dir",
      "cartography_output_validation"], "would write cartography_output_validation, which a filter"),
])
def test_mistakes_are_said_before_anything_is_trained(places, qa_dir, tiny_model, tmp_path, refused, monkeypatch,
                                                      flags, words):
    monkeypatch.chdir(places)
    (places / "category.json").write_text(json.dumps({"category": {"metrics_path": "cartography_output",
                                                                   "categories": ["easy"]}}))
    told = refused(run.main, "--do_train", "--do_eval", "--filter_validation", *flags, "--model", tiny_model,
                   "--dataset", qa_dir, "--output_dir", tmp_path / "m", *SMALL)
    assert words in told and not (tmp_path / "m").exists()


def test_the_places_do_nothing_without_it(refused):
    for flag in ("validation_cartography_output_dir", "validation_cluster_assignments_path"):
        told = refused(run.main, "--do_train", "--filter_categories", "easy", f"--{flag}", "x")
        assert f"--{flag} does nothing without --filter_validation" in told


def test_what_is_read_tells_one_run_from_another(places):
    args = run.parse_args(["--do_train", "--do_eval", "--filter_categories", "easy", "--filter_validation",
                           "--cartography_output_dir", "a", "--validation_cartography_output_dir", "b"])
    assert inputs_of(args) == {"model": None, "train_ids": None, "0.category.metrics_path": "a",
                               "validation.0.category.metrics_path": "b"}
