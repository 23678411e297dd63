"""dataset_cartography.py --cartography_dir A B C: the maps of several runs as one, which every later stage reads."""

import itertools
import statistics
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from conftest import qa_rows
from made_dynamics import make_epochs, write_epochs
from scipy.stats import spearmanr

import analyze_cartography
import dataset_cartography
from datamap.analysis.filter_config import apply_filters
from datamap.cartography.categories import CATEGORIES, categorize_examples
from datamap.cartography.joint import join_maps
from datamap.cartography.learning import Learning
from datamap.cartography.maps import CARTOGRAPHY_FILES, load_map, write_cartography
from datamap.cartography.metrics import METRIC_COLUMNS, compute_metrics, load_cartography_metrics
from datamap.core.artifacts import recorded_dataset, stage
from datamap.core.files import read_json, read_table, write_jsonl
from datamap.core.splits import load_split
from datamap.detection.base import score_all
from datamap.detection.evidence import load_evidence
from datamap.detection.suspicion import suspicion
from datamap.tasks.registry import get_task

N = 40


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "stories.jsonl"
    write_jsonl(file, qa_rows(N))
    return load_split(str(file), "train", get_task("qa"))


def record(directory, split, seed, *, ids=None, epochs=4, guess=0.1, **arguments):
    """A map as run.py leaves it, but for the picture."""
    args = {"do_train": True, "output_dir": "model", "seed": seed, "model": "tiny", "confidence_type": "geometric",
            **arguments}
    with stage(directory, args, owns=CARTOGRAPHY_FILES, datasets=[split]) as path:
        write_epochs(path, make_epochs(ids=ids or split.ids, epochs=epochs, seed=seed))
        learning = Learning({"accuracy": guess, "loss": 0.1})
        metrics = compute_metrics(learning.follow(dataset_cartography.read_dynamics(path)))
        with patch("datamap.cartography.maps.plot_data_map"):
            write_cartography(path, metrics, "stories", learning=learning.record(metrics))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory, split):
    """Five runs; the fourth lacks ten examples, the fifth knows the first alone and ten others."""
    home = tmp_path_factory.mktemp("runs")
    subsets = {4: split.ids[10:], 5: [split.ids[0], *split.ids[-10:]]}
    return [record(home / f"map_{seed}", split, seed, ids=subsets.get(seed)) for seed in (1, 2, 3, 4, 5)]


@pytest.fixture(scope="module")
def joined(tmp_path_factory, runs):
    return run(tmp_path_factory.mktemp("joined") / "joint", *runs)


def run(output, *maps, flags=()):
    dataset_cartography.main(["--cartography_dir", *map(str, maps), "--output_dir", str(output), *map(str, flags)])
    return output


@pytest.mark.parametrize("asked", [{}, {"method": "percentile"},
                                   {"method": "fixed", "confidence_threshold": 0.55, "variability_threshold": 0.3}])
def test_each_example_is_averaged_over_the_runs_that_know_it(runs, split, asked):
    maps = [load_cartography_metrics(path) for path in runs]
    found = join_maps(maps, **asked)
    assert found.index.tolist() == split.ids
    categorized = [categorize_examples(each, **asked) for each in maps]
    for example, row in found.iterrows():
        own = [each.loc[example] for each in categorized if example in each.index]
        assert row["n_runs"] == len(own)
        for name in set(METRIC_COLUMNS) & set(maps[0].columns) - {"never_learned"}:
            values = [float(each[name]) for each in own]
            assert row[name] == pytest.approx(statistics.fmean(values))
            assert row[f"{name}_sd"] == pytest.approx(statistics.stdev(values), abs=1e-12)
        never = [bool(each["never_learned"]) for each in own]
        assert row["never_learned"] == all(never) and row["never_learned_share"] == statistics.fmean(never)
        words = [each["category"] for each in own]
        assert [row[f"share_{name}"] for name in CATEGORIES] == [words.count(name) / len(own) for name in CATEGORIES]
        pairs = list(itertools.combinations(words, 2))
        assert row["stability"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert found["num_epochs"].tolist() == [4] * N and found["never_learned"].dtype == bool


def test_one_run_has_no_spread_and_no_stability(runs, split):
    maps = [load_cartography_metrics(path) for path in (runs[0], runs[4])]
    found = join_maps(maps)
    alone = found.loc[found["n_runs"] == 1]
    assert len(alone) == N - 11 and alone[["confidence_sd", "stability"]].isna().all(axis=None)
    assert alone["confidence"].tolist() == maps[0].loc[alone.index, "confidence"].tolist()


def test_the_pairs_of_runs_are_told_one_by_one(joined, runs):
    maps = [load_cartography_metrics(path) for path in runs]
    pairs = read_table(joined / "run_agreement.csv")
    pairs = pairs.set_index(["run_a", "run_b", "statistic", "of", "share"]).sort_index()
    for first, second in itertools.combinations(range(5), 2):
        shared = maps[first].index.intersection(maps[second].index)
        one, other = maps[first].loc[shared], maps[second].loc[shared]
        names = (str(runs[first]), str(runs[second]))
        found = pairs.loc[names]
        assert (found["examples"] == len(shared)).all()
        for metric in ("confidence", "aum", "forgetting_events"):
            slow = spearmanr(one[metric], other[metric]).statistic
            assert found.loc[("spearman", metric)]["value"].item() == pytest.approx(slow)
        count = -(-len(shared) // 4)
        hardest = [set(each["confidence"].nsmallest(count).index) for each in (one, other)]
        slow = len(hardest[0] & hardest[1]) / count
        assert found.loc[("overlap", "hardest", 0.25), "value"] == pytest.approx(slow)
    told = read_json(joined / "joint_map.json")["pairs"]
    known = {(each["statistic"], each["of"], each["share"]): each for each in told}
    values = pairs.xs(("overlap", "most ambiguous", 0.1), level=("statistic", "of", "share"))["value"]
    row = known["overlap", "most ambiguous", 0.1]
    assert (row["mean"], row["lowest"], row["highest"]) == pytest.approx((values.mean(), values.min(), values.max()))


def test_the_summary_is_that_of_the_examples(joined, runs, split):
    record, frame = read_json(joined / "joint_map.json"), load_map(joined)[0]
    stable = record["stability"]
    assert stable["mean"] == pytest.approx(frame["stability"].mean())
    assert stable["kappa"] == pytest.approx((stable["mean"] - stable["by_chance"]) / (1 - stable["by_chance"]))
    for name in CATEGORIES:
        assert stable["by_category"][name] == pytest.approx(frame.loc[frame["category"] == name, "stability"].mean())
    assert record["differ_in"] == ["seed"] and [each["seed"] for each in record["runs"]] == [1, 2, 3, 4, 5]
    assert (record["examples"], record["in_every_run"]) == (N, 10)
    learning = read_json(joined / "thresholds.json")["learning"]
    own = [read_json(path / "thresholds.json")["learning"] for path in runs]
    assert learning["accuracy"] == pytest.approx(np.mean([each["accuracy"] for each in own], axis=0))
    assert learning["has_learned"] is True and learning["warning"] is None


def test_later_stages_read_it_like_a_single_map(tmp_path, joined, split):
    assert recorded_dataset(joined) == split.identity()
    frame, cuts = load_map(joined)
    assert cuts == (frame["confidence"].median(), frame["variability"].median())
    as_json = load_cartography_metrics(joined / "cartography_metrics.json")
    assert as_json["stability"].to_numpy() == pytest.approx(frame["stability"].to_numpy())
    kept = apply_filters(split, {"category": {"metrics_path": str(joined), "categories": ["hard"]}})
    assert set(kept["id"]) == set(frame.index[frame["category"] == "hard"])
    block = {"metric": {"metrics_path": str(joined), "metric": "forgetting_events", "max": 1.5}}
    dropped = apply_filters(split, block)
    assert len(dropped) == (frame["forgetting_events"] <= 1.5).sum()
    settled = apply_filters(split, {"metric": {"metrics_path": str(joined), "metric": "stability", "min": 0.9}})
    assert set(settled["id"]) == set(frame.index[frame["stability"] >= 0.9]) and 0 < len(settled) < len(frame)
    evidence = load_evidence(split, joined)
    assert np.isfinite(suspicion(evidence, score_all(evidence)).probability).all()
    analyze_cartography.main(["--cartography_dir", str(joined), "--output_dir", str(tmp_path / "analysis")])
    assert (tmp_path / "analysis/question_type_analysis.csv").exists()


@pytest.mark.parametrize("missing", ["keep", "drop"])
def test_an_example_of_one_run_has_no_stability_to_filter_by(tmp_path, runs, split, missing):
    joint = run(tmp_path / "joint", runs[0], runs[3])  # the fourth lacks the first ten
    frame = load_map(joint)[0]
    unknown = set(split.ids[:10])
    assert frame["stability"].isna().sum() == 10
    block = {"metric": {"metrics_path": str(joint), "metric": "stability", "min": 1.0, "missing": missing}}
    agreed = set(frame.index[frame["stability"] == 1.0])
    assert set(apply_filters(split, block)["id"]) == (agreed | unknown if missing == "keep" else agreed)


def test_the_dynamics_are_means_over_the_runs_that_saw_an_example(joined, runs):
    own = [list(dataset_cartography.read_dynamics(path)) for path in runs]
    found = list(dataset_cartography.read_dynamics(joined))
    assert [each["epoch"] for each in found] == [1, 2, 3, 4]
    for place, epoch in enumerate(found):
        for row, example in enumerate(epoch["id"]):
            seen = [(each[place], each[place]["id"].index(example)) for each in own if example in each[place]["id"]]
            for name in ("confidence", "loss"):
                slow = statistics.fmean(float(each[name][where]) for each, where in seen)
                assert epoch[name][row] == pytest.approx(slow, abs=1e-6)
            assert epoch["correct"][row] == (2 * sum(each["correct"][where] for each, where in seen) > len(seen))


def test_the_pictures(tmp_path, runs, pictures):
    run(tmp_path / "joint", *runs, flags=["--error_bars"])
    caption = pictures["cartography_map.png"]._supxlabel.get_text()
    assert "means over 5 runs" in caption and "bars: one standard deviation over runs" in caption
    axis = pictures["cartography_map.png"].axes[0]
    assert sum(len(bars.lines[0].get_xdata()) for bars in axis.containers) == N
    curves = pictures["stability.png"].axes[1]
    table = read_table(tmp_path / "joint/agreement_curve.csv")
    for line, (_, group) in zip([each for each in curves.lines if each.get_marker() == "o"],
                                table.groupby("of", sort=False), strict=True):
        measured = group[group["overlap"].notna()]
        assert line.get_xdata().tolist() == measured["runs"].tolist()
        assert line.get_ydata().tolist() == pytest.approx(measured["overlap"].tolist())


def test_what_a_user_reads(tmp_path, runs, capsys):
    run(tmp_path / "joint", *runs)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("stories.jsonl [train], n = 40: ") and lines[1] == "5 runs, seed 1, 2, 3, 4, 5"
    assert lines[2].startswith("10 of 40 examples are in every run") and lines[3].startswith("stability 0.")
    assert lines[-1].endswith(f"stability.png to {tmp_path / 'joint'}")


def test_runs_of_two_models_are_joined_and_that_is_said(tmp_path, split, capsys, caplog):
    maps = [record(tmp_path / f"map_{model}", split, 1, model=model, epochs=epochs)
            for model, epochs in (("tiny", 3), ("lstm", 5))]
    joint = run(tmp_path / "joint", *maps)
    assert "the runs differ in model" in capsys.readouterr().out
    assert any("the maps are over 3, 5 epochs" in each.message for each in caplog.records)
    assert load_cartography_metrics(joint)["num_epochs"].tolist() == [4] * N


def _of_other_data(home, split):
    write_jsonl(home / "other.jsonl", qa_rows(N, seed=5))
    return record(home / "odd", load_split(str(home / "other.jsonl"), "train", get_task("qa")), 1)


def _without_a_meta(home, split):
    path = home / "odd"
    path.mkdir()
    pd.DataFrame({"id": ["a", "b"], "confidence": [0.1, 0.2], "variability": [0.1, 0.1]}).to_csv(
        path / "cartography_metrics.csv", index=False)
    return path


@pytest.mark.parametrize(("odd", "why"), [
    (_of_other_data, "maps of one dataset are joined"),
    (_without_a_meta, "shares no ids with"),
    (lambda home, split: record(home / "odd", split, 1, confidence_type="mean"), "different quantities"),
    (lambda home, split: record(home / "odd", split, 1, trained_on=False), "were not trained on"),
])
def test_maps_that_are_no_runs_of_one_thing_are_refused(tmp_path, runs, split, refused, odd, why):
    maps = [str(runs[0]), str(odd(tmp_path, split))]
    said = refused(dataset_cartography.main, "--cartography_dir", *maps, "--output_dir", str(tmp_path / "joint"))
    assert why in said
    assert not (tmp_path / "joint").exists()


def test_a_joint_map_is_neither_joined_nor_cut_again(tmp_path, joined, runs, refused):
    argv = ["--output_dir", str(tmp_path / "again"), "--cartography_dir", str(joined)]
    assert "is a joint map already" in refused(dataset_cartography.main, *argv, str(runs[0]))
    assert "give --cartography_dir the maps that it was made of" in refused(dataset_cartography.main, *argv)
    assert "names a map twice" in refused(dataset_cartography.main, *argv[:3], str(runs[0]), str(runs[0]))
    assert "give the maps of several" in refused(dataset_cartography.main, *argv[:3], str(runs[0]), "--error_bars")


def test_a_run_that_learned_nothing_is_named(tmp_path, runs, split):
    joint = run(tmp_path / "joint", runs[0], record(tmp_path / "dull", split, 9, guess=0.9))
    warning = read_json(joint / "thresholds.json")["learning"]["warning"]
    assert "in 1 of 2 runs" in warning and "dull" in warning
