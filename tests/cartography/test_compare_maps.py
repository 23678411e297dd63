"""dataset_cartography.py --compare A B: who moved where, and how far beyond the noise of seeds."""

import math
import statistics

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

import dataset_cartography
from datamap.cartography.compare import ALPHA, MAX_ARROWS, category_moves, moved_table, names_apart, shift_noise
from datamap.cartography.joint import join_maps
from datamap.cartography.maps import load_map, write_cartography
from datamap.core.artifacts import stage
from datamap.core.files import read_json, read_table

IDS = [f"ex-{number}" for number in range(60)]


def simulated(rng, truth, ids, noise=0.03):
    """The metrics of one run that sees the truth, (N, 2), through noise."""
    seen = np.clip(truth + noise * rng.normal(size=truth.shape), [0, 0], [1, 0.5])
    return pd.DataFrame({"confidence": seen[:, 0], "variability": seen[:, 1], "correctness": 0.5, "num_epochs": 4,
                         "forgetting_events": 0, "never_learned": False}, index=pd.Index(ids, name="id"))


def simulated_maps(runs, ids=IDS, moved=0, seed=0, noise=0.03):
    """Two sets of runs; of the first ``moved`` examples the truth of the second set is 0.3 lower in confidence."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform([0.4, 0.15], [0.9, 0.35], (len(ids), 2))
    other = truth.copy()
    other[:moved, 0] -= 0.3
    return [[simulated(rng, each, ids, noise) for _ in range(count)] for each, count in zip((truth, other), runs,
                                                                                              strict=True)]


@pytest.fixture
def pair(tmp_path):
    """Joint maps of three and four runs, of which the second lacks an example and has another; five have moved."""
    maps = simulated_maps((3, 4), moved=5)
    maps[1] = [each.drop("ex-59").rename({"ex-58": "new"}) for each in maps[1]]
    for name, each in zip("ab", maps, strict=True):
        with stage(tmp_path / name, {"seed": None}, owns=()) as path:
            write_cartography(path, join_maps(each))
    return maps, tmp_path / "a", tmp_path / "b"


def run(a, b, output, *flags):
    dataset_cartography.main(["--compare", str(a), str(b), "--output_dir", str(output), *flags])
    return read_table(output / "moved.csv").set_index("id")


def test_every_shift_has_the_noise_of_its_own_runs_beside_it(tmp_path, pair, capsys):
    maps, a, b = pair
    table = run(a, b, tmp_path / "out")
    assert sorted(table.index) == sorted(IDS[:58])
    for example, row in table.iterrows():
        beyond = []
        for name in ("confidence", "variability"):
            first, second = ([float(each.loc[example, name]) for each in side] for side in maps)
            shift = statistics.fmean(second) - statistics.fmean(first)
            noise = math.sqrt(statistics.variance(first) / 3 + statistics.variance(second) / 4)
            assert row[f"{name}_shift"] == pytest.approx(shift) and row[f"{name}_noise"] == pytest.approx(noise)
            of_first = statistics.variance(first) / 3 / noise**2
            degrees = 1 / (of_first / 2 + (1 - of_first) / 3)
            beyond.append(max(0, abs(shift) - t.ppf(1 - ALPHA / 4, degrees) * noise))
        assert row["beyond_noise"] == pytest.approx(math.hypot(*beyond), abs=1e-12)
        assert row["shift"] == pytest.approx(math.hypot(row["confidence_shift"], row["variability_shift"]))
    assert table["beyond_noise"].is_monotonic_decreasing
    assert {f"ex-{number}" for number in range(5)} <= set(table.index[table["beyond_noise"] > 0])
    record = read_json(tmp_path / "out/map_comparison.json")
    assert record["beyond_noise"] == (table["beyond_noise"] > 0).sum() and record["compared"] == 58
    assert record["mean_confidence_shift"] == pytest.approx(table["confidence_shift"].mean())
    said = capsys.readouterr().out
    assert "58 examples in both, 2 in A alone, 1 in B alone" in said and "(by chance alone at most 3)" in said


@pytest.mark.parametrize("runs", [(2, 2), (2, 3), (2, 10), (3, 3), (3, 5), (5, 5)])
@pytest.mark.parametrize("noise", [0.1, 0.3, 1.0, 4.0])
def test_who_has_not_moved_is_rarely_said_to_have(runs, noise):
    """noise: of the second map beside that of the first; the surer of two models has less of it."""
    rng, ids = np.random.default_rng(sum(runs)), [f"s{number}" for number in range(8000)]
    a, b = (made_joint(rng.normal(0.5, scale, (2, len(ids), count)), ids)
            for count, scale in zip(runs, (0.01, 0.01 * noise), strict=True))
    table = moved_table(a, b, (0.5, 0.25), (0.5, 0.25))
    assert (table["beyond_noise"] > 0).mean() <= ALPHA + 0.005


def made_joint(values, ids):
    """values: (2, N, runs) of confidence and variability."""
    confidence, variability = values
    return pd.DataFrame({
        "confidence": confidence.mean(axis=1), "confidence_sd": confidence.std(axis=1, ddof=1),
        "variability": variability.mean(axis=1), "variability_sd": variability.std(axis=1, ddof=1),
        "n_runs": values.shape[2],
    }, index=ids)


def test_the_categories_are_those_of_each_map_and_the_cuts_of_the_first_tell_what_they_did(tmp_path, pair):
    _, a, b = pair
    table = run(a, b, tmp_path / "out")
    (first, cuts), (second, _) = load_map(a), load_map(b)
    moves = read_table(tmp_path / "out/category_moves.csv")
    assert moves["n"].sum() == 61
    for row in moves.itertuples():
        ids = [example for example in {*first.index, *second.index}
               if (first["category"].get(example, "absent"), second["category"].get(example, "absent"))
               == (row.category_a, row.category_b)]
        assert row.n == len(ids), (row.category_a, row.category_b)
    for example, row in table.iterrows():
        assert (row["category_a"], row["category_b"]) == (first["category"][example], second["category"][example])
        at_a = "ambiguous" if second["variability"][example] > cuts[1] else (
            "easy" if second["confidence"][example] >= cuts[0] else "hard")
        assert row["category_b_at_a"] == at_a
    record = read_json(tmp_path / "out/map_comparison.json")
    assert record["changed_category"] == (table["category_a"] != table["category_b"]).sum()
    assert record["changed_category_at_cuts_of_a"] == (table["category_a"] != table["category_b_at_a"]).sum()


def test_single_runs_have_shifts_without_noise(tmp_path, capsys):
    (a,), (b,) = simulated_maps((1, 1))
    for name, each in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        write_cartography(tmp_path / name, each)
    table = run(tmp_path / "a", tmp_path / "b", tmp_path / "out")
    assert table["shift"].is_monotonic_decreasing and table[["beyond_noise", "confidence_noise"]].isna().all(axis=None)
    assert read_json(tmp_path / "out/map_comparison.json")["beyond_noise"] is None
    assert "known only of joint maps" in capsys.readouterr().out


def test_an_example_that_one_run_alone_knows_has_no_noise():
    a, b = simulated_maps((2, 3))
    a[0] = a[0].drop("ex-7")
    error, half = shift_noise(join_maps(a).sort_index(), join_maps(b).sort_index(), "confidence")
    lone = sorted(IDS).index("ex-7")
    assert np.isnan(half[lone]) and np.isnan(error[lone])
    assert np.isfinite(np.delete([half, error], lone, axis=1)).all()


def test_runs_that_are_all_the_same_have_no_noise_at_all():
    a, b = simulated_maps((2, 2), moved=1, noise=0)
    table = moved_table(join_maps(a), join_maps(b), (0.5, 0.25), (0.5, 0.25))
    assert table.index[0] == "ex-0" and table["beyond_noise"].iloc[0] == pytest.approx(0.3)
    assert (table["beyond_noise"].iloc[1:] < 1e-9).all()


def test_arrows_of_what_moved(tmp_path, pair, pictures):
    _, a, b = pair
    table = run(a, b, tmp_path / "out")
    axis = pictures["moved_map.png"].axes[0]
    arrows = sum(each.N for each in axis.collections if hasattr(each, "U"))
    assert arrows == (table["beyond_noise"] > 0).sum() <= MAX_ARROWS
    assert f"all {arrows} that moved beyond the noise" in pictures["moved_map.png"]._supxlabel.get_text()


def test_what_cannot_be_compared(tmp_path, pair, refused):
    _, a, b = pair
    call = lambda *flags: refused(dataset_cartography.main, *map(str, flags))  # noqa: E731
    assert "twice: give two maps" in call("--compare", a, a)
    assert "does nothing with --compare" in call("--compare", a, b, "--method", "percentile")
    assert "--output_dir" in call("--compare", a, b, "--output_dir", a)
    with stage(tmp_path / "odd", {"seed": None}, owns=()) as path:
        write_cartography(path, simulated_maps((1, 1), [f"z{n}" for n in range(9)])[0][0])
    assert "share no ids" in call("--compare", a, tmp_path / "odd")


def test_moves_count_every_example_once():
    a, b = (pd.DataFrame({"category": words}, index=list(ids)) for words, ids in
            ((["easy", "hard", "hard"], "abc"), (["hard", "ambiguous"], "cd")))
    found = category_moves(a, b).set_index(["category_a", "category_b"])["n"]
    assert found.sum() == 4 and found["easy", "absent"] == 1 and found["hard", "absent"] == 1
    assert found["hard", "hard"] == 1 and found["absent", "ambiguous"] == 1


@pytest.mark.parametrize(("paths", "names"), [
    (["x/joint_map", "y/joint_map"], ["x/joint_map", "y/joint_map"]),
    (["joint_map", "/home/y/joint_map"], ["joint_map", "y/joint_map"]),
    (["x/1/before", "x/1/after"], ["before", "after"]),
])
def test_two_maps_have_names_that_tell_them_apart(paths, names):
    assert names_apart(paths) == names
