"""The pictures of the benchmarks, read back from their axes: they equal the tables beside them."""

import importlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from read_pictures import caption, legend, lines, scatters, seen, segments

from datamap.core.plots import COLORS, LIGHT_GREY


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module


def test_planted_errors_are_drawn_by_kind(tmp_path, pictures, bench):
    planted = bench("planted_errors")
    rng = np.random.default_rng(0)
    kinds = np.repeat(["", "late_start", "wrong_label"], [1200, 30, 20])
    frame = pd.DataFrame({"planted_error": kinds, "confidence": rng.random(1250) * np.where(kinds == "", 1, 0.5),
                          "variability": rng.random(1250) / 2})
    table = planted.detection(frame["confidence"].to_numpy(), kinds)
    planted.plot_planted_errors(tmp_path / "planted_errors.png", frame, table, "Planted errors")
    axis, strips = pictures["planted_errors.png"].axes
    groups = (("", "clean", LIGHT_GREY), ("late_start", "late start", COLORS[0].lower()),
              ("wrong_label", "wrong label", COLORS[1].lower()))
    assert legend(axis) == {f"{label} (n = {(kinds == kind).sum():,})": color for kind, label, color in groups}
    assert seen(strips, "x") == {0: "clean", 1: "late\nstart", 2: "wrong\nlabel"}
    for place, (on_map, strip, (kind, label, color)) in enumerate(
            zip(scatters(axis), scatters(strips), groups, strict=True)):
        inside = frame[frame["planted_error"] == kind]
        assert on_map[0] == f"{label} (n = {len(inside):,})" and set(on_map[2]) == set(strip[2]) == {color}
        assert on_map[1] == inside[["variability", "confidence"]].to_numpy().tolist()
        x, y = np.transpose(strip[1])
        assert y.tolist() == inside["confidence"].tolist() and (abs(x - place) < 0.33).all() and np.ptp(x) > 0.4
    aurocs = {text.xy: text.get_text() for text in strips.texts}
    clean = frame["confidence"][kinds == ""].to_numpy()
    for place, kind in ((1, "late_start"), (2, "wrong_label")):
        wrong = frame["confidence"][kinds == kind].to_numpy()
        assert aurocs[place, 1.0] == f"{(wrong[:, None] < clean).mean():.3f}"
    assert aurocs[0, 1.0] == "AUROC" and len(aurocs) == 3
    lowest = kinds[np.argsort(frame["confidence"], kind="stable")[:50]]
    share, auroc = np.mean(lowest != ""), (frame["confidence"][kinds != ""].to_numpy()[:, None] < clean).mean()
    assert caption(pictures["planted_errors.png"]) == (
        f"n = 1,250, 50 of them planted errors. Ranked by low confidence: AUROC {auroc:.3f}; {share:.0%} of the 50 "
        "lowest are planted errors")


def test_selections_are_drawn_in_the_order_of_their_means(tmp_path, pictures, bench):
    selection = bench("subset_selection")
    rng = np.random.default_rng(1)
    rows = [{"selector": arm, "fraction": share, "difference": d, "bootstrap_low": d - 1 - width,
             "bootstrap_high": d + 2 + width}
            for arm in ("a", "b", "c", "d") for share in selection.FRACTIONS for d, width in [rng.normal(size=2) ** 2]]
    frame = pd.DataFrame([*rows, {"selector": "random", "fraction": 0.1, "mean": 50.0}])
    selection.plot_differences(frame, tmp_path / "selection.png", SimpleNamespace(seeds=[1, 2, 3]), 91.26)
    (axis,) = pictures["selection.png"].axes
    means = {arm: np.mean([row["difference"] for row in rows if row["selector"] == arm]) for arm in "abcd"}
    order = sorted(means, key=lambda arm: means[arm])
    assert seen(axis, "y") == dict(enumerate(order))
    assert list(legend(axis)) == ["5 %", "10 %", "20 %"] and len(set(legend(axis).values())) == 3
    *shown, zero = lines(axis)
    assert zero[0] == [0, 0]
    for share, (x, y, color), bars in zip(selection.FRACTIONS, shown, segments(axis), strict=True):
        known = {row["selector"]: row for row in rows if row["fraction"] == share}
        places = [place + {0.05: -0.22, 0.1: 0, 0.2: 0.22}[share] for place in range(4)]
        assert x == [known[arm]["difference"] for arm in order] and y == pytest.approx(places)
        assert bars == [[[known[arm][f"bootstrap_{end}"], pytest.approx(place)] for end in ("low", "high")]
                        for arm, place in zip(order, places, strict=True)]
        assert color == legend(axis)[f"{100 * share:g} %"]
    assert caption(pictures["selection.png"]) == "3 seeds, 95 % intervals; a head trained on everything: 91.3 %"


def test_times_of_selectors_are_drawn_with_the_power_through_them(tmp_path, pictures, bench):
    selectors = bench("rows.selectors")
    n = [1000, 10_000, 100_000]
    scaling = {name: {"n": n, "seconds": [0.5 * one ** power / 900 for one in n], "exponent": power,
                      "offset": float(np.log(0.5 / 900))}
               for name, power in (("k-center", 1.0), ("herding", 1.25), ("k-means", 0.75))}
    selectors.plot_scaling(tmp_path / "scaling.png", scaling, 100, "cpu")
    (axis,) = pictures["scaling.png"].axes
    found = lines(axis)
    for line, points, each in zip(found[::2], found[1::2], scaling.values(), strict=True):
        assert points[:2] == (n, each["seconds"]) and line[0] == n
        assert line[1] == pytest.approx(each["seconds"]) and line[2] == points[2]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    names = list(legend(axis))
    for name, size, power in zip(names, ("k-center, k = 100:", "herding, k = 20:", "k-means, 128 clusters:"),
                                 ("1.00", "1.25", "0.75"), strict=True):
        assert name.startswith(size) and name.endswith(f"n^{{{power}}}$")
    assert "n = 1,000 to 100,000" in caption(pictures["scaling.png"])
