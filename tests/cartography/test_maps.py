"""The data map: its thresholds, written and read, and its picture."""

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from made_dynamics import metrics_frame
from read_pictures import caption, legend, lines, scatters, seen, upright

from datamap.cartography import maps
from datamap.cartography.categories import (
    CATEGORIES,
    categorize_examples,
    category_thresholds,
)
from datamap.cartography.maps import (
    CARTOGRAPHY_FILES,
    load_map,
    plot_data_map,
    plot_map_by_correctness,
    write_cartography,
)
from datamap.core import plots
from datamap.core.artifacts import stage
from datamap.core.errors import UserError
from datamap.core.files import read_json, read_table
from datamap.core.plots import CATEGORY_COLORS


def slow_categories(table, cuts) -> list[str]:
    return ["ambiguous" if row.variability > cuts["variability"] else
            "easy" if row.confidence >= cuts["confidence"] else "hard" for row in table.itertuples()]


@pytest.mark.parametrize("size", [4, 60])
def test_the_data_map_shows_the_metrics_and_thresholds_beside_it(tmp_path, pictures, size):
    rng = np.random.default_rng(size)
    frame = metrics_frame(rng.random(size) ** 0.5, rng.random(size) / 4).assign(num_epochs=[*[3] * (size - 1), 5])
    frame.iloc[1] = [0.65, 0.2, 5]  # the cuts themselves
    write_cartography(tmp_path, frame, "stories", "fixed", 0.65, 0.2)
    table, cuts = read_table(tmp_path / "cartography_metrics.csv"), read_json(tmp_path / "thresholds.json")
    categories = slow_categories(table, cuts)
    counts = {name: categories.count(name) for name in CATEGORIES}
    assert categories[1] == "easy" and (size == 4 or len(set(counts.values())) == 3)
    figure = pictures["cartography_map.png"]
    axis, bars = figure.axes
    shown = {name: (points, colors) for name, points, colors in scatters(axis)}
    assert list(shown) == list(CATEGORIES)
    for name, (points, colors) in shown.items():
        inside = table[[category == name for category in categories]]
        assert points == inside[["variability", "confidence"]].to_numpy().tolist()
        assert set(colors) <= {CATEGORY_COLORS[name].lower()}
    assert legend(axis) == {name: CATEGORY_COLORS[name].lower() for name in CATEGORIES}
    assert "variability" in axis.get_xlabel() and "confidence" in axis.get_ylabel()
    assert [(x, y) for x, y, _ in lines(axis)] == [([0.2, 0.2], [0, 1]), ([0, 0.2], [0.65, 0.65])]
    assert seen(bars, "x") == dict(enumerate(CATEGORIES))
    assert upright(bars) == [(place, 0, counts[name], CATEGORY_COLORS[name].lower())
                             for place, name in enumerate(CATEGORIES)]
    assert [text.get_text() for text in bars.texts] == [
        f"{count}\n{100 * count / size:.0f}%" for count in counts.values()]
    assert bars.get_ylabel() == "examples (count)"
    assert bars.get_ylim()[0] == 0 and max(counts.values()) < bars.get_ylim()[1] < 1.3 * max(counts.values())
    told = caption(figure)
    assert told.startswith(f"stories, n = {size}, 5 epochs; ") and "cuts, confidence 0.65, variability 0.2" in told
    assert [path.name for path in tmp_path.glob("*.png")] == ["cartography_map.png"]


def test_a_large_data_map_draws_a_sample_and_counts_all(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(plots, "MAX_DRAWN_POINTS", 50)
    rng = np.random.default_rng(0)
    frame = metrics_frame(rng.random(1200), rng.random(1200) / 2)
    for name in ("one.png", "two.png"):
        plot_data_map(frame, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()  # seeded
    axis, bars = pictures["one.png"].axes
    found = [tuple(point) for _, points, _ in scatters(axis) for point in points]
    every = set(zip(frame["variability"], frame["confidence"], strict=True))
    assert len(found) == len(set(found)) == 50 and set(found) <= every
    assert caption(pictures["one.png"]).startswith("n = 1,200 (random 50 drawn); ")
    assert sum(int(text.get_text().split("\n")[0]) for text in bars.texts) == 1200


@pytest.mark.parametrize("epochs, levels", [
    (3, ["0", "0.33", "0.67", "1"]),
    (12, ["0", "0 to 0.25", "0.25 to 0.5", "0.5 to 0.75", "0.75 to 1", "1"]),
])
def test_the_map_by_correctness_shows_each_level_and_how_all_are_distributed(tmp_path, pictures, epochs, levels):
    rng = np.random.default_rng(epochs)
    right = rng.permutation(np.resize(np.arange(epochs + 1), 300))
    frame = metrics_frame(rng.random(300), rng.random(300) / 2).assign(correctness=right / epochs, num_epochs=epochs)
    plot_map_by_correctness(frame, tmp_path / "map.png", "stories, n = 300", (0.4, 0.3))
    figure = pictures["map.png"]
    axis, *sides = sorted(figure.axes, key=lambda each: each.get_xlabel() in ("confidence", "variability",
                                                                             "correctness"))

    def level(count):
        share = Fraction(int(count), epochs)
        if epochs == 3 or share in (0, 1):
            return f"{float(share):.2g}"
        low = [each for each in (0, 0.25, 0.5, 0.75) if share > Fraction(each)][-1]
        return f"{low:g} to {low + 0.25:g}"

    wanted = [level(count) for count in right]
    shown = {name.split(" (n = ")[0]: (name, points, colors) for name, points, colors in scatters(axis)}
    assert list(shown) == levels and sum(len(points) for _, points, _ in shown.values()) == 300
    for name, (label, points, _) in shown.items():
        inside = frame[[each == name for each in wanted]]
        assert points == inside[["variability", "confidence"]].to_numpy().tolist()
        assert label == f"{name} (n = {len(inside)})"
    assert len({colors[0] for _, _, colors in shown.values()}) == len(levels)
    assert [(x, y) for x, y, _ in lines(axis)] == [([0.3, 0.3], [0, 1]), ([0, 0.3], [0.4, 0.4])]
    for side in sides:
        column = side.get_xlabel()
        edges = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in side.patches]
        assert sum(height for _, _, height in edges) == 300
        assert all(height == sum(low <= value < high or value == high == edges[-1][1] for value in frame[column])
                   for low, high, height in edges)
    assert len(sides[-1].patches) == epochs + 1
    assert "stories, n = 300" in caption(figure)


@pytest.mark.parametrize("confidence, variability", [([0.5], [0.0]), ([0.0, 1.0], [0.5, 0.5]), ([1.0], [0.31])])
def test_the_data_map_of_few_or_extreme_examples(tmp_path, pictures, confidence, variability):
    plot_data_map(metrics_frame(confidence, variability), tmp_path / "map.png")
    axis = pictures["map.png"].axes[0]
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    assert -0.05 < left < 0 and max(variability) < right < max(0.31, 1.1 * max(variability))
    assert -0.05 < bottom < 0 and 1 < top < 1.05


# --- thresholds ---


def test_thresholds_are_written_with_the_map_and_read_there(tmp_path):
    metrics = metrics_frame([0.1, 0.5, 0.9, 0.7], [0.1, 0.2, 0.3, 0.4])
    write_cartography(tmp_path, metrics, None, "percentile", 30, 60)
    expected = category_thresholds(metrics, 30, 60, "percentile")
    assert expected != category_thresholds(metrics)
    assert read_json(tmp_path / "thresholds.json") == {
        "confidence": expected[0], "variability": expected[1], "method": "percentile", "confidence_threshold": 30,
        "variability_threshold": 60,
    }
    for path in (tmp_path, tmp_path / "cartography_metrics.csv", tmp_path / "cartography_metrics.json"):
        frame, cuts = load_map(path)
        assert cuts == expected
        assert frame["category"].tolist() == categorize_examples(metrics, 30, 60, "percentile")["category"].tolist()


def test_a_map_without_thresholds_is_cut_at_the_medians(tmp_path):
    metrics = metrics_frame([0.1, 0.5, 0.9], [0.1, 0.2, 0.3])
    write_cartography(tmp_path, metrics, None, "fixed", 0.9, 0.1)
    (tmp_path / "thresholds.json").unlink()
    assert load_map(tmp_path)[1] == (0.5, 0.2)
    write_cartography(tmp_path, metrics, None, "fixed", 0.9, 0.1)
    metrics.to_csv(tmp_path / "other_metrics.csv")  # of the same directory, but not that map's
    assert load_map(tmp_path / "other_metrics.csv")[1] == (0.5, 0.2)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is empty"),
        ("{", "malformed JSON"),
        ("[0.5, 0.2]", "expected confidence as a number in 0..1, found None"),
        ('{"confidence": 0.5}', "expected variability as a number in 0..0.5, found None"),
        ('{"confidence": NaN, "variability": 0.2}', "found nan"),
        ('{"confidence": "0.5", "variability": 0.2}', "found '0.5'"),
        ('{"confidence": 0.5, "variability": 0.7}', "found 0.7"),
    ],
)
def test_damaged_thresholds_are_refused(tmp_path, content, message):
    write_cartography(tmp_path, metrics_frame([0.1, 0.5], [0.1, 0.2]))
    (tmp_path / "thresholds.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_map(tmp_path)


def test_thresholds_that_were_written_and_are_gone_are_refused(tmp_path):
    with stage(tmp_path, {}, owns=CARTOGRAPHY_FILES) as path:
        write_cartography(path, metrics_frame([0.1, 0.5], [0.1, 0.2]))
    load_map(tmp_path)
    (tmp_path / "thresholds.json").unlink()
    with pytest.raises(UserError, match="holds no thresholds.json"):
        load_map(tmp_path)


def test_metrics_as_json_are_cut_as_those_of_the_csv(tmp_path, monkeypatch):
    """Of an odd number of examples the median is one example's own value, and JSON keeps 15 decimals of it."""
    monkeypatch.setattr(maps, "plot_data_map", lambda *_: None)
    rng = np.random.default_rng(5)
    for number in range(20):
        size = 2 * number + 5
        columns = {"confidence": rng.random(size), "variability": rng.random(size) / 2, "num_epochs": 3}
        metrics = pd.DataFrame(columns, index=pd.Index([f"e{row}" for row in range(size)], name="id"))
        write_cartography(tmp_path, metrics)
        from_csv, from_json = (load_map(tmp_path / f"cartography_metrics.{kind}")[0]["category"] for kind in
                               ("csv", "json"))
        assert from_csv.tolist() == from_json.tolist()
