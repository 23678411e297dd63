"""The page of a joint map, of one that was not trained on, and of a pair of maps, in content and in a browser."""

import base64
import shutil
from unittest.mock import patch

import numpy as np
import pytest
from browser import CHROMIUM, Hands
from conftest import qa_rows, write_rows
from made_dynamics import make_epochs
from made_report import by_confidence, command

import analyze_dataset
from datamap.cartography.compare import compare, load_moved, write_comparison
from datamap.cartography.joint import join, read_recorded
from datamap.cartography.joint_files import write_joint
from datamap.cartography.maps import CARTOGRAPHY_FILES, load_map, write_cartography
from datamap.cartography.metrics import compute_metrics
from datamap.core.artifacts import stage
from datamap.core.files import read_json
from datamap.core.splits import load_split
from datamap.detection import known
from datamap.report.page import content_of
from datamap.report.several import MOST_ARROWS
from datamap.tasks.registry import get_task

N = 30


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    file = write_rows(tmp_path_factory.mktemp("data") / "notes.jsonl", qa_rows(N, seed=3))
    return load_split(str(file), "train", get_task("qa"))


@pytest.fixture(scope="module")
def maps(tmp_path_factory, split):
    """Two joint maps of three runs each, of which the second lacks an example, and their comparison: six examples are
    sure in the first and unsure in the second."""
    home = tmp_path_factory.mktemp("maps")
    for name, ids, seeds in (("a", split.ids, (1, 2, 3)), ("b", split.ids[1:], (4, 5, 6))):
        for seed in seeds:
            epochs = list(make_epochs(ids=ids, seed=seed))
            for epoch in epochs:
                rows = [ids.index(example) for example in split.ids[1:7]]
                epoch["confidence"][rows] = (0.9 if name == "a" else 0.1) + 0.01 * epoch["confidence"][rows]
            with (stage(home / f"run{seed}", {"seed": seed}, owns=CARTOGRAPHY_FILES, datasets=[split]) as path,
                  patch("datamap.cartography.maps.plot_data_map")):
                write_cartography(path, compute_metrics(epochs))
        runs = [read_recorded(home / f"run{seed}") for seed in seeds]
        with stage(home / name, {"seed": None}, owns=CARTOGRAPHY_FILES, datasets=[split]) as path:
            write_joint(path, join(runs), "notes")
    with stage(home / "compared", {}, owns=(), datasets=[split, split]) as path:
        write_comparison(path, compare(home / "a", home / "b"))
    return home


def made(split, output, monkeypatch, *flags):
    monkeypatch.setattr(known, "suspicion", by_confidence)
    argv = command(split, dict(zip(flags[::2], map(str, flags[1::2]), strict=True)), output)
    analyze_dataset.main(argv)
    return output / "report.html"


@pytest.fixture(scope="module")
def report(tmp_path_factory, split, maps):
    with pytest.MonkeyPatch.context() as monkey:
        return made(split, tmp_path_factory.mktemp("page"), monkey, "--cartography_dir", maps / "a",
                    "--comparison_dir", maps / "compared")


@pytest.fixture(scope="module")
def content(report):
    return content_of(report.read_text(encoding="utf-8"))


def values_of(content, key):
    [column] = [each for each in content["columns"] if each["key"] == key]
    return np.frombuffer(base64.b64decode(column["values"]), "<f8" if column["wide"] else "<f4")


def test_a_joint_map_has_its_stability_on_the_page(content, maps):
    frame = load_map(maps / "a")[0].loc[content["ids"]]
    for name in ("stability", "confidence_sd", "variability_sd", "n_runs"):
        assert values_of(content, name) == pytest.approx(frame[name].to_numpy(dtype=float), abs=1e-6)
    record = read_json(maps / "a/joint_map.json")
    assert content["joint"]["stability"] == record["stability"]
    assert content["joint"]["runs"] == [{"seed": seed, "model": None} for seed in (1, 2, 3)]


def test_a_joint_map_whose_record_is_gone_is_told_of(tmp_path, maps, split, monkeypatch, caplog):
    shutil.copytree(maps / "a", tmp_path / "a")
    (tmp_path / "a/joint_map.json").unlink()
    page = made(split, tmp_path / "page", monkeypatch, "--cartography_dir", tmp_path / "a")
    assert content_of(page.read_text(encoding="utf-8"))["joint"] is None
    assert "is of several runs, but joint_map.json is not there" in caplog.text


def test_the_compared_map_stands_beside_it(content, maps, split):
    moved = load_moved(maps / "compared")
    for key, name in (("compared_confidence", "confidence_b"), ("compared_variability", "variability_b"),
                      ("shift", "shift"), ("beyond_noise", "beyond_noise")):
        there = moved[name].reindex(content["ids"]).to_numpy(dtype=float)
        assert values_of(content, key) == pytest.approx(there, abs=1e-6, nan_ok=True)
    assert np.isnan(values_of(content, "shift")[0])  # what the second map lacks
    [category] = [each for each in content["columns"] if each["key"] == "compared_category"]
    shown = [category["levels"][code] if code >= 0 else None for code in category["codes"]]
    assert shown == [None, *load_map(maps / "b")[0].loc[split.ids[1:], "category"]]
    farthest = moved.index[moved["beyond_noise"] > 0].tolist()[:MOST_ARROWS]
    assert [content["ids"][each["at"]] for each in content["compared"]["arrows"]] == farthest and farthest
    for each, example in zip(content["compared"]["arrows"], farthest, strict=True):
        assert (each["confidence"], each["variability"]) == pytest.approx(
            tuple(moved.loc[example, ["confidence_a", "variability_a"]]))


def test_on_the_page_of_the_second_map_the_other_is_the_first(tmp_path, maps, split, monkeypatch):
    page = made(split, tmp_path, monkeypatch, "--cartography_dir", maps / "b", "--comparison_dir", maps / "compared")
    shown, moved = content_of(page.read_text("utf-8")), load_moved(maps / "compared")
    assert shown["compared"]["names"] == ["b", "a"]
    assert values_of(shown, "compared_confidence") == pytest.approx(
        moved["confidence_a"].reindex(shown["ids"]).to_numpy(dtype=float), abs=1e-6, nan_ok=True)
    assert shown["compared"]["cuts"] == dict(zip(("confidence", "variability"), load_map(maps / "a")[1], strict=True))
    for each in shown["compared"]["arrows"]:
        assert each["confidence"] == pytest.approx(moved.at[shown["ids"][each["at"]], "confidence_b"])


def test_a_map_that_was_not_trained_on_says_so(tmp_path, split, monkeypatch):
    with stage(tmp_path / "map", {"trained_on": False}, owns=CARTOGRAPHY_FILES, datasets=[split]) as path:
        write_cartography(path, compute_metrics(make_epochs(ids=split.ids)))
    shown = content_of(made(split, tmp_path / "out", monkeypatch, "--cartography_dir", path).read_text("utf-8"))
    assert shown["overview"]["warning"].startswith("A map of examples that were not trained on")
    assert shown["joint"] is None and shown["compared"] is None
    assert not {"stability", "shift"} & {each["key"] for each in shown["columns"]}


def test_a_comparison_is_for_the_page(tmp_path, maps, refused):
    assert "--comparison_dir is for --report" in refused(analyze_dataset.main, "--comparison_dir",
                                                         str(maps / "compared"))


@pytest.mark.skipif(CHROMIUM is None, reason="the page is tested in Chromium, which is not installed here")
def test_the_third_picture_is_linked_and_the_overview_tells_of_the_runs(report, tmp_path):
    browser = Hands(tmp_path)
    try:
        browser.open(report)
        assert browser.run("MAPS.map((each) => each.id)") == ["map-data", "map-compared"]
        assert browser.text("#name-compared") == "In b, lines from where they are in a"
        browser.run("select([3, 5], MAPS[0])")
        painted = "MAPS[1].busy.then(() => byId('map-compared').data[0].selectedpoints)"
        assert sorted(browser.run(painted)) == [3, 5]
        shapes = "byId('map-compared').layout.shapes"
        lines = f"{shapes}.filter((each) => each.line.dash !== 'dot' && each.type === 'line').length"
        assert browser.run(lines) == browser.run("page.data.compared.arrows.length") > 0
        browser.run("location.hash = '#overview'")
        browser.until("byId('part-overview').textContent.includes('The map is the mean of 3 runs, different in seed "
                      "(1, 2, 3).')")
        assert browser.errors == []
    finally:
        browser.close()
