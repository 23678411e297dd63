"""Evidence from finished artifacts: in the order of the split, missing what they do not know, foreign ones refused."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import qa_rows, review_rows, write_rows

import analyze_dataset
from datamap.core import beside
from datamap.core.artifacts import stage
from datamap.core.errors import UserError
from datamap.core.files import write_csv, write_json, write_jsonl
from datamap.core.splits import load_split
from datamap.detection import base
from datamap.detection.base import described
from datamap.detection.evidence import load_evidence
from datamap.detection.review import features
from datamap.report.page import OF_TEXTS
from datamap.tasks.registry import get_task

CLASSES = ("good", "bad")


def made(tmp_path, rows: list[dict], task: str, known: list[int]) -> tuple[Any, dict]:
    """A split, and artifacts that know the examples ``known`` of it, in that order; the numbers are row numbers."""
    split = load_split(str(write_rows(tmp_path / "data.jsonl", rows)), "train", get_task(task))
    ids, at = [split.ids[row] for row in known], np.array(known, dtype=float)
    metrics = pd.DataFrame({"id": ids, "confidence": at / 100, "variability": 0.1, "num_epochs": 5,
                            "never_learned": at % 2 == 1})
    said = {"predicted_answer": [f"answer {row}" for row in known]} if task == "qa" else {
        "predicted_label": "good", "probability_good": at / 100, "probability_bad": 1 - at / 100}
    with stage(tmp_path / "map", {}, owns=("*.csv",), datasets=[split]) as path:
        write_csv(path / "cartography_metrics.csv", metrics)
        write_csv(path / "out_of_fold.csv", metrics.assign(fold=1, **said))
    with stage(tmp_path / "embeddings", {}, owns=("embeddings*",), datasets=[split]) as path:
        np.save(path / "embeddings.npy", np.column_stack([at, -at]).astype(np.float32))
        write_json(path / "embeddings_metadata.json", {"ids": ids})
    with stage(tmp_path / "clusters", {}, owns=("*.csv",), datasets=[split]) as path:
        clusters = {"id": ids, "cluster": known, "dim1": 0.0, "dim2": 0.0, "cluster_probability": 1.0}
        write_csv(path / "cluster_assignments.csv", pd.DataFrame({**clusters, "outlier_score": at / 50}))
    column = "predicted_answer" if task == "qa" else "predicted_label"
    write_jsonl(tmp_path / "eval_predictions.jsonl",
                [{**rows[row], column: f"said {row}" if task == "qa" else "bad"} for row in known])
    return split, {"cartography_dir": tmp_path / "map", "embedding_dir": tmp_path / "embeddings",
                   "cluster_dir": tmp_path / "clusters", "predictions": tmp_path / "eval_predictions.jsonl"}


KNOWN = [7, 2, 9, 4, 5, 0, 1]  # of ten, in an order of their own
MISSING = [row for row in range(10) if row not in KNOWN]


@pytest.fixture
def labels(tmp_path) -> tuple[Any, dict]:
    return made(tmp_path, review_rows(10, 0), "classification", KNOWN)


def check_aligned(evidence: Any) -> None:
    at = np.where(np.isin(np.arange(10), MISSING), np.nan, np.arange(10))
    for table in (evidence.metrics, evidence.out_of_fold):
        assert list(table.index) == evidence.split.ids
        np.testing.assert_array_equal(table["confidence"], at / 100)
        np.testing.assert_array_equal(table["never_learned"], np.where(np.isnan(at), np.nan, at % 2))
    np.testing.assert_array_equal(evidence.embeddings, np.column_stack([at, -at]))
    np.testing.assert_array_equal(evidence.clusters["cluster"], at)
    np.testing.assert_array_equal(evidence.clusters["outlier_score"], at / 50)


def test_everything_of_labels_in_the_order_of_the_split(labels):
    split, places = labels
    evidence: Any = load_evidence(split, **places)
    check_aligned(evidence)
    assert evidence.class_names == ["bad", "good"]  # so the columns of the file, good first, change places
    np.testing.assert_array_equal(evidence.probabilities[KNOWN], [[1 - row / 100, row / 100] for row in KNOWN])
    assert np.isnan(evidence.probabilities[MISSING]).all() and evidence.rules is None
    assert evidence.predictions == [None if row in MISSING else "bad" for row in range(10)]


def test_everything_of_questions(tmp_path):
    split, places = made(tmp_path, qa_rows(10), "qa", KNOWN)
    evidence: Any = load_evidence(split, **places)
    check_aligned(evidence)
    assert evidence.probabilities is None and list(evidence.rules.index) == split.ids
    assert evidence.predictions == [None if row in MISSING else f"said {row}" for row in range(10)]
    assert evidence.rules["num_rules"].tolist() == [7 if row in MISSING else 9 for row in range(10)]
    places.pop("predictions")  # then the rules that compare go by the answers of the models of the folds
    by_folds: Any = load_evidence(split, **places)
    assert by_folds.rules["num_rules"].tolist() == evidence.rules["num_rules"].tolist()
    without_any: Any = load_evidence(split, None)
    assert set(without_any.rules["num_rules"]) == {7}


@pytest.mark.parametrize("task", ["qa", "classification"])
def test_a_second_core_changes_nothing(task, tmp_path, monkeypatch):
    rows = [*qa_rows(30), *qa_rows(30, seed=1)] if task == "qa" else review_rows(60, 0)
    rows = [{**row, "id": f"row{place}"} for place, row in enumerate(rows)]
    split, places = made(tmp_path, rows, task, KNOWN)
    asked = (*OF_TEXTS, features_of)
    alone: Any = load_evidence(split, **places)
    monkeypatch.setattr(base, "MANY", 0)
    monkeypatch.setattr(beside, "second_core", lambda: True)
    by_two: Any = load_evidence(split, **places, ahead=OF_TEXTS)
    assert set(by_two._begun) >= set(OF_TEXTS)
    pd.testing.assert_frame_equal(base.score_all(by_two), base.score_all(alone))
    for make in asked:
        one, two = alone.once(make), by_two.once(make)
        np.testing.assert_equal(two, one) if make is not OF_TEXTS[1] else pd.testing.assert_frame_equal(two, one)
    if task == "qa":
        pd.testing.assert_frame_equal(by_two.rules, alone.rules)
    assert not by_two._begun


def features_of(evidence: Any) -> np.ndarray:
    scores = base.score_all(evidence)
    return features(evidence, scores, np.full(len(evidence), 0.1)).values


def test_what_is_not_given_is_none(labels):
    split, places = labels
    (places["cartography_dir"] / "out_of_fold.csv").unlink()
    evidence = load_evidence(split, places["cartography_dir"])
    assert evidence.metrics is not None
    assert evidence.out_of_fold is evidence.probabilities is evidence.embeddings is evidence.clusters is None


def test_clusters_without_outlier_scores(labels, tmp_path):
    split, _ = labels
    table = pd.DataFrame({"id": split.ids, "cluster": 0, "dim1": 0.0, "dim2": 0.0, "cluster_probability": 1.0})
    write_csv(tmp_path / "plain.csv", table)
    evidence: Any = load_evidence(split, None, cluster_dir=tmp_path / "plain.csv")
    assert "outlier_score" not in evidence.clusters


@pytest.mark.parametrize("place", ["cartography_dir", "embedding_dir", "cluster_dir"])
def test_of_another_dataset(labels, tmp_path, place):
    _, places = labels
    other = load_split(str(write_rows(tmp_path / "other.jsonl", review_rows(10, 0, prefix="s"))), "train",
                       get_task("classification"))
    with pytest.raises(UserError, match="shares no ids with"):
        load_evidence(other, **{"cartography_dir": None, place: places[place]})


def test_an_example_that_has_changed_since_is_unknown(labels, tmp_path):
    _, places = labels
    rows = review_rows(10, 0)
    rows[4]["label"] = "bad" if rows[4]["label"] == "good" else "good"
    split = load_split(str(write_rows(tmp_path / "changed.jsonl", rows)), "train", get_task("classification"))
    places.pop("predictions")
    evidence: Any = load_evidence(split, **places)
    unknown = sorted([*MISSING, 4])
    assert np.flatnonzero(evidence.metrics["confidence"].isna()).tolist() == unknown
    assert np.flatnonzero(np.isnan(evidence.embeddings).any(axis=1)).tolist() == unknown
    assert np.flatnonzero(np.isnan(evidence.probabilities).any(axis=1)).tolist() == unknown


def test_probabilities_of_other_classes(labels):
    split, places = labels
    file = places["cartography_dir"] / "out_of_fold.csv"
    file.write_text(file.read_text().replace("probability_good", "probability_fine_by_me"))
    with pytest.raises(UserError, match="has no column 'probability_good', but .*data.jsonl has that class"):
        load_evidence(split, places["cartography_dir"])


def test_list_detectors(capsys):
    analyze_dataset.main(["--list_detectors"])
    assert capsys.readouterr().out == described() + "\n"
