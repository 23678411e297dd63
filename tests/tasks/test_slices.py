"""Slices: the table against a slow one, names, errors, console, log, and what the pictures show."""

from __future__ import annotations

import itertools

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from read_pictures import caption, legend, lines, seen, title

from datamap.core.errors import UserError
from datamap.core.files import write_csv
from datamap.core.intervals import wilson_interval
from datamap.core.plots import COLORS, GREY, LIGHT_GREY
from datamap.tasks import slices
from datamap.tasks.slices import (
    RATE_LABELS,
    generalization_table,
    logged,
    plot_generalization,
    plot_slices,
    printed,
    slice_columns,
    slice_table,
)
from datamap.training.evaluation import write_slices

CATEGORIES = ("simple", "dense", "deeper")
BOTH = ("category", "num_actors")


def statistics_of(right: np.ndarray, scale: int = 1, baseline: bool = True):
    """What run.py hands to slice_table, from (N,) booleans."""

    def statistics(mask: np.ndarray) -> dict[str, float]:
        n, k = int(mask.sum()), int(right[mask].sum())
        low, high = wilson_interval(k, n)
        rate = "accuracy" if scale == 1 else "exact_match"
        extra = {"majority_baseline": 0.5 + n % 7 / 20} if baseline else {}
        return {"n": n, rate: scale * k / n, "low": scale * low, "high": scale * high, **extra}

    return statistics


def stories(low: int = 2, high: int = 8, n: int = 210, categories=CATEGORIES, scale: int = 1, seed: int = 0):
    """A slice table by category and number of actors, its values and which examples are right."""
    cells = list(itertools.product(categories, range(low, high + 1)))
    rows = [cells[number % len(cells)] for number in range(n)]
    values = {"category": [row[0] for row in rows], "num_actors": [row[1] for row in rows]}
    right = np.random.default_rng(seed).random(n) < 0.8
    return slice_table(values, statistics_of(right, scale)), values, right


def count(mask: np.ndarray) -> dict[str, float]:
    return {"n": int(mask.sum())}


# --- values ------------------------------------------------------------------------------------------------------


def test_slice_columns_reads_values():
    data = datasets.Dataset.from_dict(
        {
            "label": [1, 0, -1, 1],
            "category": ["b", "a", "", None],
            "num_actors": [3, 2, None, 3],
            "score": [0.5, float("nan"), 0.5, 1.0],
            "planted": [True, False, True, True],
        }
    ).cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    assert slice_columns(data, ["num_actors", "label"], "here") == {
        "num_actors": [3, 2, None, 3],
        "label": ["yes", "no", None, "yes"],
    }
    assert list(slice_columns(data, ["num_actors", "label"], "here")) == ["num_actors", "label"]
    assert slice_columns(data.select([0, 0, 1, 2, 3]), ["category", "score", "planted"], "here") == {
        "category": ["b", "b", "a", None, None],
        "score": [0.5, 0.5, None, 0.5, 1.0],
        "planted": [True, True, False, True, True],
    }


def test_slice_columns_one_example_is_enough():
    assert slice_columns(datasets.Dataset.from_dict({"a": ["x"]}), ["a"], "here") == {"a": ["x"]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["other"], "no column 'other'; it has unique, twice, lists, dicts, loss$"),
        (["twice", "lists", "twice"], "'twice' more than once"),
        (["lists"], "'lists' of here holds values of type list"),
        (["dicts"], "'dicts' of here holds values of type dict"),
        (["unique"], "all 3 values of column 'unique' of here differ; a slice needs several examples"),
        (["loss"], "'loss' of here is also a column of the table"),
    ],
)
def test_slice_columns_refuses(columns, message):
    data = datasets.Dataset.from_dict(
        {
            "unique": [1, 2, None],
            "twice": [1, 1, 2],
            "lists": [[1], [1], [2]],
            "dicts": [{"a": 1}] * 3,
            "loss": [1, 1, 1],
        }
    )
    with pytest.raises(UserError, match=message) as caught:
        slice_columns(data, columns, "here")
    assert "\n" not in str(caught.value)


# --- the table ---------------------------------------------------------------------------------------------------


def test_table_rows_names_and_numbers():
    values: dict[str, list] = {"category": ["dense", "simple", "dense", "simple"], "num_actors": [15, 15, 9, 15]}
    table = slice_table(values, statistics_of(np.array([True, False, True, True]), baseline=False))
    assert list(table.columns) == ["slice", "category", "num_actors", "n", "accuracy", "low", "high"]
    assert table[["slice", "n", "accuracy"]].values.tolist() == [
        ["overall", 4, 0.75],
        ["dense", 2, 1.0],
        ["simple", 2, 0.5],
        ["num_actors_9", 1, 1.0],
        ["num_actors_15", 3, 2 / 3],
        ["dense/num_actors_9", 1, 1.0],
        ["dense/num_actors_15", 1, 1.0],
        ["simple/num_actors_15", 2, 0.5],
    ]
    assert (table["low"][0], table["high"][0]) == wilson_interval(3, 4)


def test_table_as_csv(tmp_path):
    values: dict[str, list] = {
        "category": ["b", None, "b"],
        "num_actors": [2.0, 10.0, 2.0],
        "planted": [True, False, True],
    }
    write_csv(tmp_path / "slice_metrics.csv", slice_table(values, count))
    assert (tmp_path / "slice_metrics.csv").read_text().splitlines() == [
        '"slice","category","num_actors","planted","n"',
        '"overall",,,,3',
        '"b","b",,,2',
        '"missing","missing",,,1',
        '"num_actors_2",,2,,2',
        '"num_actors_10",,10,,1',
        '"planted_false",,,false,1',
        '"planted_true",,,true,2',
        '"b/num_actors_2/planted_true","b",2,true,2',
        '"missing/num_actors_10/planted_false","missing",10,false,1',
    ]


def test_the_text_missing_is_another_slice_than_an_empty_cell():
    values: dict[str, list] = {"kind": ["missing", "", None, "old", "missing", "missing"], "k": [1, 1, None, 2, 2, 2]}
    table = slice_table({"kind": values["kind"]}, count)
    assert table["slice"].tolist() == ["overall", "missing", "old", "(missing)"]
    assert table["kind"].tolist()[1:] == ["missing", "old", "(missing)"] and table["n"].tolist() == [6, 3, 1, 2]
    both = slice_table(values, count)
    assert both["slice"].is_unique and {"missing/k_1", "(missing)/k_1", "(missing)/k_missing"} <= set(both["slice"])
    assert len(logged(table, ["kind"])) == 3
    assert slice_table({"kind": ["missing", "old"]}, count)["slice"].tolist() == ["overall", "missing", "old"]


def test_missing_is_last_and_a_slice_of_numbers_too():
    values = {"num_actors": [None, 10, 9, float("nan"), 9]}
    table = slice_table(values, count)
    assert table["slice"].tolist() == ["overall", "num_actors_9", "num_actors_10", "num_actors_missing"]
    assert table["num_actors"].tolist()[1:] == ["9", "10", "missing"]
    assert table["n"].tolist() == [5, 2, 1, 2]
    assert slice_table({"empty": [None, None]}, count)["slice"].tolist() == ["overall", "missing"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"a": ["yes", "no", "no"], "b": ["no", "no", "yes"]}, ["overall", "a=no", "a=yes", "b=no", "b=yes"]),
        ({"a": ["overall", "x", "x"]}, ["overall", "a=overall", "a=x"]),
        ({"a": ["b_1", "x", "x"], "b": [1, 2, 2]}, ["overall", "a=b_1", "a=x", "b_1", "b_2"]),
        ({"a": [None, "x"], "b": [None, "y"]}, ["overall", "a=x", "a=missing", "b=y", "b=missing"]),
        ({"a": ["x/y", "z", "z"], "b": ["u", "v", "v"]}, ["overall", "x/y", "z", "u", "v"]),
    ],
)
def test_names_that_collide(values, expected):
    table = slice_table(values, count)
    assert table["slice"].tolist()[: len(expected)] == expected
    assert table["slice"].is_unique


def test_collision_reaches_combinations():
    values: dict[str, list] = {"a": ["yes", "no"], "b": ["no", "no"], "k": [1, 1]}
    table = slice_table(values, count)
    assert table["slice"].tolist()[-2:] == ["a=no/b=no/k_1", "a=yes/b=no/k_1"]


@pytest.mark.parametrize(
    "values", [{}, {"a": [1, 1], "b": [1]}, {"n": ["x", "x"]}, {"accuracy": ["x", "x"]}], ids=lambda value: str(value)
)
def test_table_refuses(values):
    with pytest.raises(ValueError, match=r"one length|names of slice columns"):
        slice_table(values, statistics_of(np.array([True, False])))


def slow_rows(values: dict[str, list], right: list[bool]) -> list[tuple]:
    """(values of the columns or None, n, number right) per row, one example at a time."""
    examples = list(zip(*values.values(), strict=True))
    orders = []
    for column in values.values():
        known = [value for value in column if value is not None]
        levels = sorted(set(known))
        orders.append([*levels, *([None] if None in column else [])])
    wanted: list[dict[int, object]] = [{}]
    wanted += [{place: level} for place, order in enumerate(orders) for level in order]
    if len(orders) > 1:
        wanted += [dict(enumerate(levels)) for levels in itertools.product(*orders) if levels in examples]
    rows = []
    for want in wanted:
        hits = [ok for row, ok in zip(examples, right, strict=True) if all(row[p] == v for p, v in want.items())]
        cells = tuple(
            None if place not in want else "missing" if want[place] is None else str(want[place])
            for place in range(len(orders))
        )
        rows.append((*cells, len(hits), sum(hits)))
    return rows


@given(st.data())
def test_table_equals_slow_one(data):
    n = data.draw(st.integers(1, 30))
    kinds = [st.integers(-3, 3), st.sampled_from("abc"), st.sampled_from([0.5, 1.25, -2.5])]
    columns = data.draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3))
    values = {
        f"column{number}": data.draw(st.lists(st.none() | kind, min_size=n, max_size=n))
        for number, kind in enumerate(columns)
    }
    right = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    table = slice_table(values, lambda mask: {"right": int(right[mask].sum())})
    cells = [
        [None if pd.isna(cell) else str(cell) for cell in table[column]] for column in values
    ]
    found = list(zip(*cells, table["n"], table["right"], strict=True))
    assert found == slow_rows(values, right.tolist())


# --- console and log ---------------------------------------------------------------------------------------------


def test_printed_is_aligned():
    table = pd.DataFrame(
        {
            "slice": ["overall", "simple"],
            "category": [None, "simple"],
            "n": [1200, 7],
            "accuracy": [0.8451, float("nan")],
            "low": [0.8124, float("nan")],
            "high": [0.8736, float("nan")],
            "loss": [1.23456, 0.5],
        }
    )
    assert printed(table, "x.csv").splitlines() == [
        "slice        n  accuracy  95% interval     loss",
        "overall  1,200     0.845  [0.812, 0.874]  1.235",
        "simple       7                            0.500",
    ]


def test_printed_percentages():
    table, _, _ = stories(scale=100)
    first = printed(table.assign(loss=0.25), "x.csv").splitlines()[1].split()
    row = table.iloc[0]
    assert first[:3] == ["overall", "210", f"{row['exact_match']:.1f}"]
    assert first[3:5] == [f"[{row['low']:.1f},", f"{row['high']:.1f}]"]
    assert first[-1] == "0.250"


def test_of_many_slices_the_worst_and_the_best_are_printed():
    table, _, _ = stories()
    rest = table.iloc[1:]
    lines = printed(table, "slices.csv").splitlines()
    worst = rest.sort_values(["high", "n"], ascending=[True, False], kind="stable")["slice"].tolist()[:6]
    best = rest.sort_values(["low", "n"], ascending=False, kind="stable")["slice"].tolist()[:6]
    assert [line.split()[0] for line in lines[1:]] == ["overall", *worst, "...", *best[::-1]]
    assert lines[8] == f"... {len(table) - 13} more between the worst and the best, in slices.csv"
    assert len({len(line) for line in lines if not line.startswith("...")}) == 1
    assert len(printed(table.head(13), "slices.csv").splitlines()) == 1 + 13
    long = slice_table({"a": ["x\n" * 200] * 2}, count)
    assert max(map(len, printed(long, "x").splitlines())) < 80


def test_logged_keys_and_values():
    table, values, right = stories()
    numbers = logged(table, BOTH)
    assert len(numbers) == (3 + 7) * 5, "no combinations, not overall"
    chosen = np.array([actors == 5 for actors in values["num_actors"]])
    assert numbers["slices/num_actors/5/n"] == chosen.sum()
    assert numbers["slices/num_actors/5/accuracy"] == pytest.approx(right[chosen].mean())
    assert "slices/category/deeper/majority_baseline" in numbers
    assert {type(value) for value in numbers.values()} == {int, float}
    table["accuracy"] = np.where(table["slice"] == "simple", np.nan, table["accuracy"])
    assert set(numbers) - set(logged(table, BOTH)) == {"slices/category/simple/accuracy"}
    planted = logged(slice_table({"planted": [True, None, True]}, count), ["planted"])
    assert planted == {"slices/planted/true/n": 2, "slices/planted/missing/n": 1}
    assert logged(slice_table({"planted": [True, False]}, count), ["planted"])["slices/planted/true/n"] == 1


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(pictures, tmp_path):
    """Call a plot function with an output file; the figure and its caption, without the breaks of its lines."""

    def call(plot, *args):
        plot(tmp_path / "picture.png", *args, "A title", "n = 210")
        return pictures["picture.png"], caption(pictures["picture.png"])

    return call


def points(axis) -> list[tuple[list[float], list[float], np.ndarray]]:
    """x, y and interval ends (rows, 2) of each series with error bars; works for vertical bars."""
    series = []
    for container in axis.containers:
        line, _, (bars,) = container
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        series.append((line.get_xdata().tolist(), line.get_ydata().tolist(), ends))
    return series


def shown_axes(figure):
    return [axis for axis in figure.axes if axis.get_visible()]


def rows_of(table, category):
    chosen = table["category"].isna() if category is None else table["category"] == category
    return table[chosen & table["num_actors"].notna()]


def written(directory, name="slice_metrics") -> pd.DataFrame:
    return pd.read_csv(directory / f"{name}.csv", keep_default_na=False, na_values=[""])


def test_the_panels_show_the_table_beside_them(tmp_path, pictures):
    write_slices(stories(scale=100)[0], BOTH, "exact_match", tmp_path, "_valid", "stories [valid]")
    table, figure = written(tmp_path, "slice_metrics_valid"), pictures["slice_metrics_valid.png"]
    assert title(figure) == "Exact match by category and num_actors"
    assert caption(figure).startswith("stories [valid], n = 210 line and bar: exact match and its 95% Wilson interval")
    overall = rows_of(table, None)
    for place, (axis, category) in enumerate(zip(shown_axes(figure), (None, *sorted(CATEGORIES)), strict=True)):
        rows = rows_of(table, category)
        color = "#000000" if place == 0 else COLORS[place - 1].lower()
        grey = [(overall["num_actors"].tolist(), overall["exact_match"].tolist(), LIGHT_GREY)]
        assert [line for line in lines(axis) if line[2] != color] == [
            *grey[: min(place, 1)], (rows["num_actors"].tolist(), rows["majority_baseline"].tolist(), GREY)]
        ((x, y, ends),) = points(axis)
        assert (x, y) == (rows["num_actors"].tolist(), rows["exact_match"].tolist())
        np.testing.assert_allclose(ends, rows[["low", "high"]])
        assert axis.get_yticks().tolist() == [0, 25, 50, 75, 100]
        assert axis.get_title(loc="left").endswith(f"(n = {210 if category is None else 70})")


def test_the_points_show_the_table_beside_them(tmp_path, pictures):
    rng = np.random.default_rng(4)
    values = {"kind": rng.choice(["a", "b", "c"], 2000, p=(0.9, 0.08, 0.02)).tolist()}
    for scale, rate in ((1, "accuracy"), (100, "exact_match")):
        found = slice_table(values, statistics_of(rng.random(2000) < 0.7, scale, baseline=scale == 1))
        write_slices(found, ["kind"], rate, tmp_path, f"_{rate}", "x")
        table, (axis,) = written(tmp_path, f"slice_metrics_{rate}"), pictures[f"slice_metrics_{rate}.png"].axes
        line, _, (bars,) = axis.containers[0]
        assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == (table[rate].tolist(), [0, 1, 2, 3])
        np.testing.assert_allclose([segment[:, 0] for segment in bars.get_segments()], table[["low", "high"]])
        np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], [[row] * 2 for row in range(4)])
        assert list(seen(axis, "y").items()) == [
            (row, f"{each.slice} (n = {each.n:,})") for row, each in enumerate(table.itertuples())]
        assert "overall (n = 2,000)" in seen(axis, "y").values()
        ticks = [(table["majority_baseline"].tolist(), [0, 1, 2, 3], GREY)] if scale == 1 else []
        assert [each for each in lines(axis) if each[2] != COLORS[0].lower()] == [
            ([table[rate][0]] * 2, [0, 1], LIGHT_GREY), *ticks]
        low, high = axis.get_xlim()
        assert -0.1 * scale < low < 0 and scale < high < 1.1 * scale
        assert axis.get_xlabel() == RATE_LABELS[rate] and "grey line: all" in caption(axis.figure)


@pytest.mark.parametrize("sets", [2, 5])
def test_the_sets_show_the_table_beside_them(tmp_path, pictures, sets):
    tables = {f"set {number}": stories(seed=number)[0] for number in range(sets)}
    write_csv(tmp_path / "generalization.csv", generalization_table(tables))
    plot_generalization(tmp_path / "generalization.png", tables, BOTH, "accuracy", "Accuracy", "stories")
    table, (axis,) = written(tmp_path, "generalization"), pictures["generalization.png"].axes
    step = 0.15 if sets == 2 else 0.12
    for number, (x, y, ends) in enumerate(points(axis)):
        rows = rows_of(table[table["split"] == f"set {number}"], None)
        np.testing.assert_allclose(x, rows["num_actors"] + step * (number - (sets - 1) / 2))
        assert y == rows["accuracy"].tolist()
        np.testing.assert_allclose(ends, rows[["low", "high"]])
        assert (x, rows["majority_baseline"].tolist(), GREY) in lines(axis)
    assert len(points(axis)) == sets
    shown = legend(axis)
    assert list(shown) == [f"set {number} (n = 210)" for number in range(sets)]
    assert list(shown.values()) == [container[0].get_color().lower() for container in axis.containers]
    assert len(set(shown.values())) == sets


def test_sets_of_other_values_are_not_moved_apart(tmp_path, pictures):
    """Nor further than to the next value that there is."""
    tables = {"one": stories(2, 4)[0], "two": stories(5, 6)[0]}
    plot_generalization(tmp_path / "apart.png", tables, BOTH, "accuracy", "Accuracy", "stories")
    assert [x for x, _, _ in points(pictures["apart.png"].axes[0])] == [[2, 3, 4], [5, 6]]
    wide = {name: slice_table({"k": [0, 10, 10, 30]}, statistics_of(np.array([True, False, True, True])))
            for name in ("one", "two")}
    plot_generalization(tmp_path / "wide.png", wide, ["k"], "accuracy", "Accuracy", "stories")
    (one, _, _), (two, _, _) = points(pictures["wide.png"].axes[0])
    np.testing.assert_allclose([one, two], [[-0.75, 9.25, 29.25], [0.75, 10.75, 30.75]])
    single = {name: slice_table({"k": [7, 7, None]}, statistics_of(np.array([True, False, True])))
              for name in ("one", "two")}
    plot_generalization(tmp_path / "single.png", single, ["k"], "accuracy", "Accuracy", "stories")
    (one, _, _), (two, _, _) = points(pictures["single.png"].axes[0])
    np.testing.assert_allclose([one, two], [[6.925], [7.075]])
    assert "not drawn: 2 examples without k" in caption(pictures["single.png"])


@pytest.mark.parametrize(("size", "shown"), [(14, "x" * 14 + " (n = 3)"), (15, "x" * 15 + "\n(n = 3)"),
                                             (26, "x" * 26 + "\n(n = 3)"), (27, "x" * 23 + "...\n(n = 3)")])
def test_titles_of_panels_break_and_end(drawn, size, shown):
    table = slice_table({"k": [1, 2, 3, 1], "name": ["x" * size] * 3 + ["y"]}, statistics_of(np.ones(4, dtype=bool)))
    figure, _ = drawn(plot_slices, table, ["k", "name"], "accuracy")
    assert shown_axes(figure)[1].get_title(loc="left") == shown


@pytest.mark.parametrize("scale", [1, 100])
def test_panels_show_the_table(drawn, scale):
    table, _, _ = stories(scale=scale)
    rate = "accuracy" if scale == 1 else "exact_match"
    figure, told = drawn(plot_slices, table, BOTH, rate)
    axes = shown_axes(figure)
    assert [axis.get_title(loc="left") for axis in axes] == [
        "all examples (n = 210)", "deeper (n = 70)", "dense (n = 70)", "simple (n = 70)",
    ]
    for axis, category in zip(axes, (None, *sorted(CATEGORIES)), strict=True):
        rows = rows_of(table, category)
        ((x, y, ends),) = points(axis)
        assert x == list(range(2, 9)) == rows["num_actors"].tolist()
        assert y == rows[rate].tolist()
        np.testing.assert_allclose(ends, rows[["low", "high"]].to_numpy(dtype=float))
        lines = [line.get_ydata().tolist() for line in axis.lines]
        assert rows["majority_baseline"].tolist() in lines
        assert rows_of(table, None)[rate].tolist() in lines, "all examples, in every panel"
        low, high = axis.get_ylim()
        assert low < 0 and scale < high < 1.1 * scale
    assert axes[0].get_ylabel() == ("accuracy (fraction right)" if scale == 1 else "exact match (%)")
    assert [axis.get_xlabel() for axis in axes] == ["", "", "num actors", "num actors"]
    assert told.startswith("n = 210 line and bar: ")
    assert told.endswith("95% Wilson interval; dotted: majority baseline; grey line: all examples")
    styles = {(axis.containers[0][0].get_marker(), axis.containers[0][0].get_color()) for axis in axes}
    assert len(styles) == len({marker for marker, _ in styles}) == 4


def test_every_lowest_panel_names_its_axis(drawn):
    table, _, _ = stories(categories=("a", "b", "c", "d"))
    axes = shown_axes(drawn(plot_slices, table, BOTH, "accuracy")[0])
    assert [axis.get_xlabel() for axis in axes] == ["", "", *["num actors"] * 3], "three panels above two"
    assert [any(label.get_visible() for label in axis.get_xticklabels()) for axis in axes] == [False] * 2 + [True] * 3


def test_panels_of_many_values(drawn):
    table, _, _ = stories(n=7 * 8 * 4 + 14, categories=[f"c{number}" for number in range(8)])
    figure, told = drawn(plot_slices, table, BOTH, "accuracy")
    titles = [axis.get_title(loc="left") for axis in shown_axes(figure)]
    assert titles == ["all examples (n = 238)", "c0 (n = 35)", "c1 (n = 35)", *(f"c{k} (n = 28)" for k in range(2, 6))]
    assert "the 6 largest of 8 values of category" in told


def test_numbers_alone_and_numbers_missing(drawn):
    rng = np.random.default_rng(0)
    values = {"length": [None if number % 7 == 0 else number % 5 for number in range(210)]}
    table = slice_table(values, statistics_of(rng.random(210) < 0.7, baseline=False))
    figure, told = drawn(plot_slices, table, ["length"], "accuracy")
    (axis,) = shown_axes(figure)
    ((x, y, _),) = points(axis)
    assert x == [0, 1, 2, 3, 4] and y == table["accuracy"].tolist()[1:-1]
    assert "not drawn: 30 examples without length" in told
    assert "majority" not in told and "grey" not in told


def test_value_without_any_number_has_an_empty_panel(drawn):
    values: dict[str, list] = {"k": [1, 2, None, None], "name": ["$a", "$a", "$b", "$b"]}
    table = slice_table(values, statistics_of(np.array([True, False, True, True])))
    figure, _ = drawn(plot_slices, table, ["k", "name"], "accuracy")
    titles = [axis.get_title(loc="left") for axis in shown_axes(figure)]
    assert titles == ["all examples (n = 2)", r"\$a (n = 2)", r"\$b (n = 0)"]


@pytest.mark.parametrize("names", [("category", "num_actors", "half"), ("category", "num_actors", "size"),
                                   ("num_actors", "size")])
def test_three_columns_or_two_of_numbers_have_no_panels(drawn, names):
    _, values, right = stories()
    values = {**values, "half": ["a", "b"] * 105, "size": [1, 2] * 105}
    table = slice_table({name: values[name] for name in names}, statistics_of(right))
    (axis,) = shown_axes(drawn(plot_slices, table, names, "accuracy")[0])
    ((x, _, _),) = points(axis)
    assert x == list(range(2, 9)) and axis.get_xlabel() == "num actors"


def test_true_and_false_get_panels(drawn):
    _, values, right = stories()
    values = {"num_actors": values["num_actors"], "planted": [number % 3 == 0 for number in range(210)]}
    figure, _ = drawn(plot_slices, slice_table(values, statistics_of(right)), list(values), "accuracy")
    titles = [axis.get_title(loc="left") for axis in shown_axes(figure)]
    assert titles[1:] == ["planted_false (n = 140)", "planted_true (n = 70)"]


def test_text_columns_as_points(drawn):
    _, values, right = stories()
    values = {"category": values["category"], "price": ["$1 to $2", None] * 105}
    table = slice_table(values, statistics_of(right))
    figure, told = drawn(plot_slices, table, list(values), "accuracy")
    (axis,) = shown_axes(figure)
    line, _, (bars,) = axis.containers[0]
    rows = table.head(1 + 3 + 2)
    assert line.get_xdata().tolist() == rows["accuracy"].tolist()
    np.testing.assert_allclose([segment[:, 0] for segment in bars.get_segments()], rows[["low", "high"]])
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels[:2] == ["overall (n = 210)", "deeper (n = 70)"]
    assert labels[-2:] == [r"\$1 to \$2 (n = 105)", "missing (n = 105)"]
    assert axis.get_ylim()[0] > axis.get_ylim()[1], "overall on top"
    assert rows["majority_baseline"].tolist() in [list(line.get_xdata()) for line in axis.lines]
    assert "grey tick: majority baseline" in told


def test_points_stop_at_forty(drawn):
    names = [f"v{number % 60}" for number in range(150)]
    table = slice_table({"name": names}, statistics_of(np.ones(150, dtype=bool)))
    figure, told = drawn(plot_slices, table, ["name"], "accuracy")
    assert len(shown_axes(figure)[0].get_yticklabels()) == 41
    assert "the 40 largest of 60 slices" in told


def test_generalization_shows_every_set(drawn):
    tables = {"valid": stories()[0], "validB": stories(9, 20, 360, seed=1)[0], "test": stories(21, 30, 300, seed=2)[0]}
    figure, _ = drawn(plot_generalization, tables, BOTH, "accuracy")
    (axis,) = shown_axes(figure)
    found = points(axis)
    assert [x for x, _, _ in found] == [list(range(2, 9)), list(range(9, 21)), list(range(21, 31))]
    for (_, y, ends), table in zip(found, tables.values(), strict=True):
        assert y == rows_of(table, None)["accuracy"].tolist()
        np.testing.assert_allclose(ends, rows_of(table, None)[["low", "high"]])
    legend = axis.get_legend()
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["valid (n = 210)", "validB (n = 360)", "test (n = 300)"]
    assert legend.get_window_extent().y0 >= axis.get_window_extent().y1, "not over the data"
    assert legend.get_window_extent().x1 <= figure.bbox.x1
    assert len({container[0].get_marker() for container in axis.containers}) == 3


def test_generalization_sets_side_by_side(drawn):
    tables = {"one": stories()[0], "two": stories(seed=1)[0]}
    figure, _ = drawn(plot_generalization, tables, BOTH, "accuracy")
    (first, _, _), (second, _, _) = points(shown_axes(figure)[0])
    np.testing.assert_allclose((np.array(first) + second) / 2, np.arange(2, 9))
    assert 0 < second[0] - first[0] < 0.5


def test_generalization_without_numbers(drawn):
    _, values, right = stories()
    table = slice_table({"category": values["category"]}, statistics_of(right))
    figure, _ = drawn(plot_generalization, {"one": table, "two": table}, ["category"], "accuracy")
    (axis,) = shown_axes(figure)
    assert axis.containers[0][0].get_xdata().tolist() == [table["accuracy"][0]] * 2
    assert [label.get_text() for label in axis.get_yticklabels()] == ["one (n = 210)", "two (n = 210)"]


def test_long_names_do_not_overlap(drawn):
    table, _, _ = stories(categories=[f"a category with a long name, number {number}" for number in range(5)])
    figure, _ = drawn(plot_slices, table, BOTH, "accuracy")
    boxes = [axis.get_tightbbox() for axis in shown_axes(figure)]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_long_title_and_caption_are_wrapped(drawn):
    figure, _ = drawn(lambda path, *_: plot_slices(path, stories()[0], BOTH, "accuracy", "title " * 30, "word " * 60))
    assert max(map(len, figure.get_suptitle().splitlines())) <= 11 * figure.get_figwidth()
    assert max(map(len, figure.get_supxlabel().splitlines())) <= 16 * figure.get_figwidth()


def test_generalization_table(tmp_path):
    tables = {"valid": stories()[0], "test": stories(21, 30, 300)[0]}
    joined = generalization_table(tables)
    assert list(joined.columns) == ["split", *tables["valid"].columns]
    assert joined["split"].tolist() == ["valid"] * len(tables["valid"]) + ["test"] * len(tables["test"])
    pd.testing.assert_frame_equal(
        joined[joined["split"] == "test"].drop(columns="split").reset_index(drop=True), tables["test"]
    )
    write_csv(tmp_path / "generalization.csv", joined)
    assert '"test","num_actors_21",,21,30,' in (tmp_path / "generalization.csv").read_text()


def test_generalization_table_missing_in_one_set(tmp_path):
    tables = {
        "valid": slice_table({"k": [1, 2]}, count),
        "test": slice_table({"k": [3, None]}, count),
    }
    write_csv(tmp_path / "generalization.csv", generalization_table(tables))
    back = pd.read_csv(tmp_path / "generalization.csv", keep_default_na=False, dtype=str)
    assert back["k"].tolist() == ["", "1", "2", "", "3", "missing"]


def test_colours_are_the_palette():
    assert len(set(slices.COLORS)) == len(set(slices.MARKERS)) == slices.MAX_PANELS
