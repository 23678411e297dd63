"""The benchmark of joint maps on made-up maps: its tables against slow counts, its picture read back."""

import importlib
import itertools

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from sklearn.metrics import average_precision_score


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("joint_maps")


def maps_of(bench, runs=4, n=150, noise=0.6):
    """Metrics of runs that each see through noise of their own which tenth is wrong."""
    rng = np.random.default_rng(0)
    wrong = np.arange(n) < n // 10
    return [pd.DataFrame({score: sign * (wrong + noise * rng.normal(size=n)) for score, sign in bench.SCORES.items()})
            for _ in range(runs)], wrong


def test_the_precision_of_k_runs_is_the_mean_over_their_choices(bench):
    maps, wrong = maps_of(bench)
    for score, sign in bench.SCORES.items():
        found = bench.precision_by_runs(maps, wrong, score)
        for k, values in found.items():
            slow = [average_precision_score(wrong, sign * sum(maps[run][score] for run in choice) / k)
                    for choice in itertools.combinations(range(4), k)]
            assert sorted(values) == pytest.approx(sorted(slow))
        assert list(found) == [1, 2, 3, 4] and np.mean(found[4]) > np.mean(found[1])


def test_a_run_is_no_part_of_the_joint_map_that_it_is_set_against(bench):
    maps, wrong = maps_of(bench)
    row = bench.gain_row(maps, wrong, "confidence", draws=60)
    scores = [-each["confidence"] for each in maps]
    singles = [average_precision_score(wrong, score) for score in scores]
    others = [average_precision_score(wrong, sum(scores[:run] + scores[run + 1 :]) / 3) for run in range(4)]
    assert row["single"] == pytest.approx(np.mean(singles)) and row["runs"] == 3
    assert row["gain"] == pytest.approx(np.mean(np.subtract(others, singles)))
    assert row["gain_low"] < row["gain"] < row["gain_high"] and row["single_low"] < row["single"] < row["single_high"]


def test_maps_that_are_all_the_same_gain_nothing(bench):
    [one], wrong = maps_of(bench, runs=1)
    row = bench.gain_row([one, one, one], wrong, "aum", draws=20)
    assert (row["gain"], row["gain_low"], row["gain_high"]) == (0, 0, 0)


def test_the_picture_and_the_figures_of_stability(bench, tmp_path, pictures):
    maps, wrong = maps_of(bench)
    precision, gains = bench.tables_of({"sst2": (maps, wrong)}, draws=20)
    bench.plot_precision(tmp_path / "joint_maps.png", precision, gains)
    line, *_ = pictures["joint_maps.png"].axes[0].lines
    own = precision[precision["score"] == "confidence"]
    assert line.get_xdata().tolist() == [1, 2, 3, 4]
    assert line.get_ydata().tolist() == own["average_precision"].tolist()
    curve = {"needed": 7, "reason": "extrapolated"}
    row = bench.stability_row({
        "runs": [1, 2], "examples": 9, "stability": {"mean": 0.5, "by_chance": 0.4, "kappa": 0.1},
        "pairs": [{"statistic": "overlap", "of": "hardest", "share": 0.1, "mean": 0.3},
                  {"statistic": "spearman", "of": "confidence", "share": None, "mean": 0.6}],
        "learning_curve": {"hardest": curve, "most ambiguous": {"needed": None, "reason": "more than 20"}},
    })
    assert (row["overlap_hardest"], row["spearman_confidence"], row["needed_hardest"]) == (0.3, 0.6, 7)
    assert row["overlap_most_ambiguous"] is None and row["needed_most_ambiguous_why"] == "more than 20"


def test_what_moved_after_cleaning_is_counted_apart_for_right_and_wrong(bench, tmp_path, monkeypatch):
    """20 examples, of which e0 to e3 are wrong; the two most suspicious, e0 and e9, are left out."""
    (tmp_path / "runs").mkdir()
    order = ["e0", "e9", *(f"e{row}" for row in range(20) if row not in (0, 9))]
    moved = pd.DataFrame({"id": order[2:], "category_a": "hard", "category_b_at_a": ["easy"] * 3 + ["hard"] * 15,
                          "confidence_shift": [0.5, -0.5, 0.25, *[0.1] * 15], "beyond_noise": [0.1, 0.2, *[0.0] * 16]})
    trained = []

    def carried(script, argv, log):
        place = tmp_path / "runs/sst2-suspects" if "--find_errors" in argv else tmp_path / "sst2_compared"
        place.mkdir()
        table = pd.DataFrame({"id": order}) if "--find_errors" in argv else moved
        table.to_csv(place / ("suspects.csv" if "--find_errors" in argv else "moved.csv"), index=False)

    monkeypatch.setattr("datamap.suites.runner.carry_out", carried)
    monkeypatch.setattr(bench, "all_carried_out", lambda jobs, workers: trained.extend(jobs))
    monkeypatch.setattr(bench, "joined", lambda *given: None)
    monkeypatch.setattr(bench, "wrong_ids", lambda name, directory: {"e0", "e1", "e2", "e3"})
    jobs = [bench.Job("sst2", seed, tmp_path / "runs" / f"sst2-{seed}", ".", None) for seed in (1, 2)]
    row = bench.cleaned_row(jobs, 1, tmp_path)
    assert [job.directory.name for job in trained] == ["sst2-1-cleaned", "sst2-2-cleaned"]
    kept = pd.read_csv(trained[0].kept)["id"].tolist()
    assert kept == order[2:] and len(kept) == 18
    assert row == {"set": "sst2", "runs": 2, "removed": 2, "removed_wrong": 1, "left": 18, "right_left": 15,
                   "right_moved": 0, "right_up": 0, "right_confidence_shift": pytest.approx(0.1),
                   "right_other_category": 0, "wrong_left": 3, "wrong_moved": 2, "wrong_up": 1,
                   "wrong_confidence_shift": pytest.approx(0.25 / 3), "wrong_other_category": 3}
