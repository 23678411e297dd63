"""How slices were learnt, epoch by epoch: against counts by hand, and through analyze_cartography.py."""

import json
import math

import datasets
import numpy as np
import pandas as pd
import pytest
from conftest import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from read_pictures import caption
from statsmodels.stats.proportion import proportion_confint

import analyze_cartography
from datamap.analysis.slice_epochs import slices_by_epoch
from datamap.cartography.dynamics import read_dynamics, write_dynamics
from datamap.cartography.maps import write_cartography
from datamap.cartography.metrics import compute_metrics
from datamap.core.artifacts import stage
from datamap.core.errors import UserError
from datamap.core.files import read_json, read_table
from datamap.core.splits import Split, load_split
from datamap.tasks.registry import get_task

EPOCHS = 3


def split_of(kinds, sizes) -> Split:
    data = datasets.Dataset.from_dict({"id": [f"x{row}" for row in range(len(kinds))], "kind": kinds, "size": sizes})
    return Split(data, "made", "train", "0" * 16, len(data), None)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), n=st.integers(4, 12))
def test_every_epoch_against_counts_by_hand(data, n):
    kinds = ["a", "a", *data.draw(st.lists(st.sampled_from(["a", "b", None]), min_size=n - 2, max_size=n - 2))]
    sizes = [1, 1, *data.draw(st.lists(st.sampled_from([1, 2, 10]), min_size=n - 2, max_size=n - 2))]
    split = split_of(kinds, sizes)
    epochs = []
    for number in range(1, EPOCHS + 1):  # in another order, and not of all, in every epoch
        there = data.draw(st.permutations(range(n)))[: data.draw(st.integers(1, n)) if number > 1 else n]
        rng = np.random.default_rng([n, number])
        epochs.append({"epoch": number, "id": [f"x{row}" for row in there], "confidence": rng.random(len(there)),
                       "correct": rng.random(len(there)) < 0.5, "loss": rng.random(len(there))})
    table = slices_by_epoch(iter(epochs), split, ["kind", "size"])
    assert table["epoch"].unique().tolist() == [1, 2, 3]
    facts = {f"x{row}": (kind or "missing", size) for row, (kind, size) in enumerate(zip(kinds, sizes, strict=True))}
    for line in table.to_dict("records"):
        epoch = epochs[line["epoch"] - 1]
        wanted = [None if pd.isna(line[column]) else line[column] for column in ("kind", "size")]
        rows = [place for place, example in enumerate(epoch["id"])
                if all(want in (None, fact) for want, fact in zip(wanted, facts[example], strict=True))]
        assert line["n"] == len(rows)
        if not rows:
            assert math.isnan(line["correctness"])
            continue
        right = sum(bool(epoch["correct"][place]) for place in rows)
        assert line["correctness"] == pytest.approx(right / len(rows))
        assert (line["low"], line["high"]) == pytest.approx(
            proportion_confint(right, len(rows), method="wilson"), abs=1e-9)
        for name in ("confidence", "loss"):
            assert line[name] == pytest.approx(math.fsum(epoch[name][place] for place in rows) / len(rows))


def test_changed_examples_and_those_that_were_not_trained_on_do_not_count():
    split = split_of(["a", "a", "b", "b"], [1, 2, 1, 2])
    epoch = {"epoch": 1, "id": ["x0", "x1", "x2", "gone", "x3"], "confidence": [0.2, 0.4, 0.9, 0.0, 0.7],
             "correct": [True, False, True, False, False]}
    table = slices_by_epoch([epoch], split, ["kind"], without={"x1"})
    assert table["slice"].tolist() == ["overall", "a", "b"] and table["n"].tolist() == [3, 1, 2]
    assert table["confidence"].tolist() == pytest.approx([0.6, 0.2, 0.8])
    assert table["correctness"].tolist() == pytest.approx([2 / 3, 1, 0.5])
    assert "loss" not in table, "what was not recorded is no column"


def test_columns_that_are_not_there_or_are_ours_are_refused():
    split = split_of(["a", "a", "b"], [1, 1, 2])
    epoch = {"epoch": 1, "id": ["x0", "x1", "x2"], "confidence": [0.2, 0.4, 0.9], "correct": [True, False, True]}
    with pytest.raises(UserError, match="no column 'colour'; it has id, kind, size"):
        slices_by_epoch([epoch], split, ["colour"])
    with pytest.raises(UserError, match="'confidence' is also a column of slices_by_epoch.csv"):
        slices_by_epoch([epoch], split, ["confidence"])


@pytest.fixture
def recorded(tmp_path):
    rows = [{"id": f"s{row}", "sentence": f"sentence {row} is {'good' if row % 2 else 'bad'}", "label": row % 2,
             "kind": "long" if row % 3 else "short", "size": row % 4} for row in range(36)]
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", rows)
    split = load_split(str(tmp_path / "data"), "train", get_task("classification"))
    rng = np.random.default_rng(1)
    place = tmp_path / "map"
    with stage(place, {}, owns=("cartography*", "training_dynamics*"), datasets=[split.identity()]) as path:
        for number in range(1, EPOCHS + 1):
            p = np.clip(0.2 * number + 0.3 * rng.random(36), 0, 1)
            write_dynamics(path, number, split.ids, {"confidence": p, "correct": p > 0.5, "loss": -np.log(p)})
        write_cartography(path, compute_metrics(read_dynamics(path)))
    return place


def run(*flags) -> None:
    analyze_cartography.main([str(flag) for flag in flags])


def test_the_script_writes_table_picture_and_the_last_epoch(recorded, tmp_path, capsys, pictures):
    run("--cartography_dir", recorded, "--slice_by", "kind", "size", "--output_dir", tmp_path / "out")
    out = capsys.readouterr().out
    table = read_table(tmp_path / "out" / "slices_by_epoch.csv")
    assert table.columns.tolist() == ["epoch", "slice", "kind", "size", "n", "correctness", "low", "high",
                                      "confidence", "loss"]
    assert len(table) == EPOCHS * (1 + 2 + 4 + 8)
    content = json.loads((recorded / "training_dynamics_epoch_3.json").read_text())
    short = [right for example, right in zip(content["id"], content["correct"], strict=True)
             if int(example[1:]) % 3 == 0]
    [line] = table[(table["epoch"] == 3) & (table["slice"] == "short")].to_dict("records")
    assert (line["n"], line["correctness"]) == (12, pytest.approx(np.mean(short)))
    assert "epoch 3 of the training" in out and "short" in out
    figure = pictures["slices_by_epoch.png"]
    titles = [axis.get_title(loc="left") for axis in figure.axes if axis.get_visible()]
    assert titles == ["all examples (n = 36)", "long (n = 24)", "short (n = 12)", *(f"size_{size} (n = 9)"
                                                                                   for size in range(4))]
    assert "grey line: all examples" in caption(figure) and "with dropout" in caption(figure)
    assert "slices_by_epoch.csv" in read_json(tmp_path / "out" / "run_meta.json")["outputs"]
    run("--cartography_dir", recorded, "--output_dir", tmp_path / "out")
    assert not list((tmp_path / "out").glob("slices_by_epoch.*")), "a rerun without leaves none behind"


def test_what_was_not_recorded_cannot_be_sliced(recorded, tmp_path, refused):
    line = refused(analyze_cartography.main, "--cartography_dir", recorded, "--slice_by", "colour", "--output_dir",
                   tmp_path / "out")
    assert "no column 'colour'" in line and not (tmp_path / "out").exists()
    for file in recorded.glob("training_dynamics_*"):
        file.unlink()
    line = refused(analyze_cartography.main, "--cartography_dir", recorded, "--slice_by", "kind", "--output_dir",
                   tmp_path / "out")
    assert "training_dynamics_epoch_N.json" in line and not (tmp_path / "out").exists()
