"""The benchmark of error detection on made-up scores: its tables against slow counts, its pictures read back."""

import importlib

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from read_pictures import caption
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, cohen_kappa_score

from datamap.core.plots import COLORS


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("error_detection")


def made(seed: int, n: int = 200, wrong: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    counts = [n - wrong, wrong // 2, wrong - wrong // 2]
    error = np.repeat(np.array(["right", "uniform", "other"], dtype=object), counts)
    is_wrong = error != "right"
    table = pd.DataFrame({"id": [f"e{row}" for row in range(n)], "error": error,
                          "label": rng.choice(["a", "b"], n), "confidence": rng.random(n) + is_wrong,
                          "aum": rng.normal(size=n) + 0.5 * is_wrong, "el2n": rng.random(n),
                          "never_learned": (rng.random(n) < 0.2 + 0.5 * is_wrong).astype(float),
                          "retag": (rng.random(n) < 0.1 + 0.3 * is_wrong).astype(float)})
    table.loc[5, "error"] = None  # nobody knows
    table.loc[7, "el2n"] = np.nan
    return table


@pytest.fixture
def found(bench):
    return bench.with_suspicion({"sst2": [made(0), made(1)], "sick": [made(2), made(3)]})


def test_figures_of_every_set_and_detector(bench, found):
    table, kinds = bench.figure_table(found, draws=20)
    for row in table.itertuples():
        values = []
        for each in found[row.set]:
            scores = each[row.detector].fillna(each[row.detector].min() - 1)
            values.append(average_precision_score(each["error"] != "right", scores))
        assert row.average_precision == pytest.approx(np.mean(values)) and row.low <= row.high
        assert (row.seeds, row.examples, row.errors) == (2, 199, 30)
    assert set(table["detector"]) >= {"confidence", "suspicion", "suspicion, other sets"}
    one = kinds[(kinds["set"] == "sst2") & (kinds["kind"] == "other") & (kinds["detector"] == "aum")].iloc[0]
    among = [each[each["error"].isin(["right", "other"])] for each in found["sst2"]]
    assert one["average_precision"] == pytest.approx(np.mean(
        [average_precision_score(each["error"] == "other", each["aum"]) for each in among]))


def test_suspicion_is_judged_by_weights_that_have_not_seen_the_set(bench, found):
    from datamap.detection.suspicion import PARTS, linear, sigmoid

    others = {"sick": [made(2), made(3)]}
    weights = bench.fitted(others, "labels", tuple(PARTS))
    expected = sigmoid(linear(bench.inputs_of(made(0), "labels", tuple(PARTS)), weights))
    is_known = made(0)["error"].notna().to_numpy()
    np.testing.assert_allclose(found["sst2"][0]["suspicion, other sets"], expected[is_known])
    assert min(weights["weights"]) >= 0 and len(weights["terms"]) == len(weights["weights"])
    assert "e5" not in set(found["sst2"][0]["id"])
    both = bench.fitted({"sst2": [made(0)], "sick": [made(2)]}, "labels", tuple(PARTS))
    p = np.concatenate([sigmoid(linear(bench.inputs_of(made(seed), "labels", tuple(PARTS)), both)) for seed in (0, 2)])
    assert p.mean() == pytest.approx(0.15, abs=0.01)  # as many as are wrong


def test_differences_and_agreement(bench, found):
    best = {"sst2": "confidence", "sick": "confidence"}
    table = bench.difference_table(found, best, draws=20)
    row = table[(table["set"] == "sst2") & (table["score"] == "suspicion") & (table["against"] == "aum")].iloc[0]
    expected = [average_precision_score(each["error"] != "right", each["suspicion"])
                - average_precision_score(each["error"] != "right", each["aum"]) for each in found["sst2"]]
    assert row["mean"] == pytest.approx(np.mean(expected)) and row["low"] <= row["mean"] <= row["high"]
    agreed = bench.agreement_table(found)
    pair = agreed[(agreed["set"] == "sick") & (agreed["detector"] == "never_learned") & (agreed["other"] == "retag")]
    expected = [(spearmanr(each["never_learned"], each["retag"])[0],
                 cohen_kappa_score(each["never_learned"], each["retag"])) for each in found["sick"]]
    np.testing.assert_allclose(pair[["spearman", "kappa"]].to_numpy()[0], np.mean(expected, axis=0))
    assert agreed[agreed["detector"] == "confidence"]["kappa"].isna().all()


def test_the_pictures_show_the_tables(bench, found, tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(bench, "LEAST_GAIN", 1.2)  # so that suspicion is among them
    table, _ = bench.figure_table(found, draws=20)
    bench.plot_detectors(tmp_path / "detectors.png", table)
    figure = pictures["detectors.png"]
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    gain = table["average_precision"] * table["examples"] / table["errors"]
    means = gain.groupby(table["detector"]).mean().sort_values()
    kept = [name for name in means.index[means >= 1.2] if not name.startswith("suspicion")]
    kept += ["suspicion, other sets", "suspicion"]
    assert shown == [name.replace("_", " ") for name in kept]
    for axis, name in zip(figure.axes, ("sst2", "sick"), strict=True):
        assert axis.get_title().startswith(f"{name}\n30 of 199 wrong")
        dots = {shown[int(line.get_ydata()[0])]: (line.get_xdata()[0], line.get_color()) for line in axis.lines
                if line.get_marker() == "o"}
        for row in table[(table["set"] == name) & table["detector"].isin(kept)].itertuples():
            x, color = dots[row.detector.replace("_", " ")]
            assert x == row.average_precision
            assert color == COLORS[row.detector.startswith("suspicion")]
    assert "seeds (2)" in caption(figure)
    calibration = bench.calibration_table(found)
    joined = pd.concat(found["sst2"])
    inside = joined[(joined["suspicion, other sets"] >= 0.1) & (joined["suspicion, other sets"] < 0.2)]
    row = calibration[(calibration["set"] == "sst2") & (calibration["from"] == 0.1)].iloc[0]
    assert row["n"] == len(inside) and row["wrong"] == pytest.approx((inside["error"] != "right").mean())
    bench.plot_calibration(tmp_path / "calibration.png", calibration)
    (axis,) = pictures["calibration.png"].axes
    part = calibration[(calibration["set"] == "sst2") & (calibration["n"] >= 20)]
    line = next(line for line in axis.lines if line.get_label() == "sst2")
    np.testing.assert_allclose(np.transpose(line.get_data()), part[["suspicion", "wrong"]])


def test_a_run_of_each_set_is_a_line_of_commands(bench, tmp_path):
    for name, about in bench.SETS.items():
        job = bench.Job(name, 3, about, tmp_path / name, "data", about.most)
        training, *_ = bench.steps(job)
        assert training[1] == "run.py" and ("--plant_errors" in training[2]) == bool(about.plant)
        assert training[2][training[2].index("--dataset") + 1] in (about.dataset, f"data/{about.dataset}")
