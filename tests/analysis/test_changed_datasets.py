"""What was made of a dataset before some of its examples changed, or of its first rows: the stages that read it."""

import argparse
import json

import numpy as np
import pandas as pd
import pytest
from conftest import qa_rows, write_rows

import analyze_cartography
import analyze_dataset
import dataset_filters
import run
import select_subset
from datamap.analysis import integrated, map_summary
from datamap.cartography.maps import write_cartography
from datamap.core.artifacts import load_meta, stage
from datamap.core.files import read_json, read_jsonl, read_table
from datamap.core.splits import load_split
from datamap.tasks.registry import get_task
from datamap.training.data import known_variability, training_split

N = 24
CHANGED = (3, 8)  # rows whose label is corrected later


@pytest.fixture(autouse=True)
def empty_pictures(monkeypatch):
    for module in (integrated, map_summary):
        for name in [name for name in vars(module) if name.startswith("plot_")]:
            monkeypatch.setattr(module, name, lambda path, *rest: path.touch())


def make(directory, split):
    """The map and the clusters of a split, as run.py and cluster_analysis.py leave them."""
    ids, n = split.ids, len(split.data)
    rng = np.random.default_rng(5)
    metrics = pd.DataFrame({"confidence": rng.random(n), "variability": rng.random(n) / 2, "correctness": 0.5,
                            "aum": 3.0 - np.arange(n)}, index=pd.Index(ids, name="id"))
    with stage(directory / "map", {}, owns=("cartography_metrics.*", "thresholds.json"), datasets=[split]) as path:
        write_cartography(path, metrics)
    with stage(directory / "clusters", {}, owns=("*.csv",), datasets=[split]) as path:
        pd.DataFrame({"id": ids, "cluster": np.arange(n) % 3, "dim1": 0.0, "dim2": 1.0, "cluster_probability": 0.5,
                      "outlier_score": 0.1}).to_csv(path / "cluster_assignments.csv", index=False)
    return metrics


@pytest.fixture
def before(tmp_path):
    """Rows, and artifacts of them; the file is then written again with two answers corrected and one row more."""
    rows = qa_rows(N)
    file = write_rows(tmp_path / "notes.jsonl", rows)
    metrics = make(tmp_path, load_split(str(file), "train", get_task("qa")))
    for row in CHANGED:
        context = rows[row]["context"]
        word = next(word for word in context.split() if word not in rows[row]["answers"]["text"][0])
        rows[row]["answers"] = {"text": [word], "answer_start": [context.index(word)]}
    rows += qa_rows(1, prefix="new")
    write_rows(file, rows)
    return file, [row["id"] for row in rows], metrics


@pytest.mark.parametrize("allowed", [False, True])
def test_every_stage_joins_what_is_unchanged(before, tmp_path, caplog, allowed):
    file, ids, metrics = before
    flags = ["--allow_changed"] * allowed
    changed = [ids[row] for row in CHANGED]
    known = [example for example in ids[:N] if allowed or example not in changed]
    reads = ["--cartography_dir", str(tmp_path / "map"), "--cluster_dir", str(tmp_path / "clusters")]

    def said():
        text, told = caplog.text, "old rows are taken" if allowed else "they are left out of it"
        assert f"2 of {N} examples" in text and repr(changed[0]) in text and repr(changed[1]) in text and told in text
        caplog.clear()

    analyze_dataset.main([*reads, "--export_unified", "--output_dir", str(tmp_path / "unified"), *flags])
    said()
    table = read_table(tmp_path / "unified" / "unified_analysis.csv").set_index("id")
    assert table.index.tolist() == ids
    assert table.index[table["aum"].notna()].tolist() == table.index[table["cluster"].notna()].tolist() == known
    assert table.loc[known, "aum"].tolist() == metrics.loc[known, "aum"].tolist()
    assert table["dataset_error_score"].notna().all()

    analyze_cartography.main([*reads[:2], "--n_examples", "99", "--output_dir", str(tmp_path / "analysis"), *flags])
    said()
    samples = [row["id"] for name in ("easy", "hard", "ambiguous")
               for row in read_json(tmp_path / "analysis" / f"{name}_samples.json")]
    assert sorted(samples) == sorted(known)

    config = tmp_path / "filters.json"
    config.write_text(json.dumps({"metric": {"metrics_path": str(tmp_path / "map"), "metric": "aum", "min": -99}}))
    dataset_filters.main(["--filter_config", str(config), "--output_dir", str(tmp_path / "filtered"), *flags])
    said()
    assert [row["id"] for row in read_jsonl(tmp_path / "filtered" / "train.jsonl")] == known

    select_subset.main(["--selector", "aum", "--k", "5", "--dataset", str(file), "--task", "qa", *reads[:2],
                        "--output_dir", str(tmp_path / "selected"), *flags])
    said()
    chosen = set(read_table(tmp_path / "selected" / "selected.csv")["id"])
    highest = metrics.loc[known, "aum"].nlargest(5).index
    assert chosen == set(highest) and (changed[0] in chosen) is allowed

    args = run.parse_args(["--do_train", "--dataset", str(file), "--use_soft_weighting", "--cartography_output_dir",
                           str(tmp_path / "map"), "--train_ids", str(tmp_path / "map" / "cartography_metrics.csv"),
                           *flags])
    _, train, _ = training_split(args, get_task("qa"))
    assert train.ids == known
    args.train_ids = None
    _, train, _ = training_split(args, get_task("qa"))
    variability = known_variability(args, train)
    assert variability is not None and train.ids == ids
    assert [example for example, value in zip(ids, variability, strict=True) if not np.isnan(value)] == known


def test_a_filtered_dataset_joins_the_map_of_the_whole(before, tmp_path):
    file, ids, metrics = before
    rows = read_jsonl(file)[:6]
    part = write_rows(tmp_path / "part.jsonl", rows)
    args = argparse.Namespace(use_label_smoothing=True, use_soft_weighting=False,
                              cartography_output_dir=str(tmp_path / "map"))
    variability = known_variability(args, load_split(str(part), "train", get_task("qa")))
    assert variability is not None and np.isnan(variability).tolist() == [row in CHANGED for row in range(6)]


def test_stages_take_the_examples_that_were_mapped(tmp_path, caplog):
    """A training with --max_train_samples 9: what comes next is of these 9, unless asked for more."""
    file = write_rows(tmp_path / "notes.jsonl", qa_rows(N))
    first = load_split(str(file), "train", get_task("qa"), max_samples=9)
    make(tmp_path, first)
    assert (load_meta(tmp_path / "map") or {})["datasets"][0]["max_samples"] == 9
    reads = ["--cartography_dir", str(tmp_path / "map"), "--cluster_dir", str(tmp_path / "clusters")]
    caplog.set_level("INFO")
    for flags, n in (([], 9), (["--dataset", str(file)], 9), (["--max_samples", "99"], N)):
        analyze_dataset.main([*reads, "--export_unified", "--output_dir", str(tmp_path / "unified"), *flags])
        assert len(read_table(tmp_path / "unified" / "unified_analysis.csv")) == n
    assert "the first 9 examples of" in caplog.text
    config = tmp_path / "filters.json"
    config.write_text(json.dumps({"ambiguous": {"metrics_path": str(tmp_path / "map"), "top_fraction": 1}}))
    for flags, n in (([], 9), (["--max_train_samples", "12"], 12), (["--missing", "keep"], N)):
        dataset_filters.main(["--filter_config", str(config), "--output_dir", str(tmp_path / "filtered"), *flags])
        assert len(read_jsonl(tmp_path / "filtered" / "train.jsonl")) == n
    for flags, n in (([], 9), (["--max_samples", "12"], 12)):
        select_subset.main(["--selector", "random", "--k", "2", "--dataset", str(file), "--task", "qa", "--output_dir",
                            str(tmp_path / "any"), *flags])  # reads nothing that says how many
        select_subset.main(["--selector", "aum", "--k", "2", *reads[:2], "--output_dir", str(tmp_path / "chosen"),
                            *flags])
        assert read_json(tmp_path / "chosen" / "selection_meta.json")["n"] == n
