"""analyze_cartography.py through its command line, on a hand-made data map of 40 examples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from read_pictures import caption, heat_map, legend, lines, lying, seen, title, upright
from scipy.stats import spearmanr

import analyze_cartography
from datamap.analysis import map_summary
from datamap.cartography import maps
from datamap.cartography.categories import (
    CATEGORIES,
    categorize_examples,
    category_thresholds,
    get_examples_by_category,
)
from datamap.core.files import read_json, read_table
from datamap.core.plots import CATEGORY_COLORS
from datamap.core.splits import load_split
from datamap.tasks.registry import get_task

N = 40
COLOR_OF = {category: CATEGORY_COLORS[category].lower() for category in CATEGORIES}
QUESTIONS = ("What hurts?", "When was it?", "How many pills?", "Is it bad?")  # what, when, how many/how much, yes/no
FILES = {
    "question_type_analysis.csv", "easy_samples.json", "ambiguous_samples.json", "hard_samples.json",
    "metric_distributions.csv", "metric_distributions.png", "metric_correlations.csv", "metric_correlations.png",
    "category_by_question_type.png", "cartography_map_by_correctness.png", "run_meta.json",
}


def write_dataset(path: Path, word: str = "knee", prefix: str = "0") -> Path:
    rows: list[dict] = [
        {
            "id": f"{prefix}{row:02d}",
            "question": QUESTIONS[row % 4],
            "context": f"The {word} hurts, says patient {row}.",
            # Every tenth is unanswerable.
            "answers": {"text": [], "answer_start": []} if row % 10 == 9 else {"text": [word], "answer_start": [4]},
        }
        for row in range(N)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def metrics() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    confidence = rng.uniform(0.05, 0.95, N)
    return pd.DataFrame(
        {
            "id": [f"0{row:02d}" for row in range(N)],
            "confidence": confidence,
            "variability": rng.uniform(0, 0.4, N),
            "correctness": np.round(confidence * 5) / 5,
            "num_epochs": 5,
            "forgetting_events": rng.integers(0, 3, N),
            "never_learned": confidence < 0.1,
            "loss": -np.log(confidence),
        }
    )


def write_map(directory: Path, dataset: Path | None, table: pd.DataFrame | None = None) -> Path:
    directory.mkdir()
    (metrics() if table is None else table).to_csv(directory / "cartography_metrics.csv", index=False)
    if dataset is not None:
        identity = load_split(str(dataset), "train", get_task("qa")).identity()
        meta = {"status": "finished", "datasets": [identity]}
        (directory / "run_meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return directory


@pytest.fixture(autouse=True)
def empty_pictures(request, monkeypatch):
    """Pictures are drawn in the tests that ask for them; elsewhere they are empty files, for speed."""
    if "pictures" not in request.fixturenames:
        for plot in ("plot_distributions", "plot_correlations", "plot_groups"):
            monkeypatch.setattr(map_summary, plot, lambda path, *rest: path.touch())
        for plot in ("plot_data_map", "plot_map_by_correctness"):
            monkeypatch.setattr(maps, plot, lambda df, path, *rest: path.touch())


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "notes.jsonl")


@pytest.fixture
def cartography(tmp_path, dataset):
    return write_map(tmp_path / "map", dataset)


def run(output: Path, *flags: object) -> None:
    analyze_cartography.main(["--output_dir", str(output), *map(str, flags)])


def refused(capsys, output: Path, *flags: object) -> str:
    with pytest.raises(SystemExit) as stop:
        run(output, *flags)
    assert stop.value.code == 2
    assert not output.exists(), "nothing may be written for bad input"
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert ".py: error: " in line
    return line


def test_writes_everything_and_names_it(tmp_path, cartography, pictures, capsys):
    output = tmp_path / "out"
    run(output, "--cartography_dir", cartography)  # the dataset is the recorded one
    assert {path.name for path in output.iterdir()} == FILES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in output.glob("*.png"))
    assert read_json(output / "run_meta.json")["status"] == "finished"
    printed = capsys.readouterr().out.strip().splitlines()
    assert "n = 40" in printed[0] and printed[-1] == f"wrote tables, samples and pictures to {output}"


def test_question_types_against_a_slow_count(tmp_path, cartography):
    run(tmp_path / "out", "--cartography_dir", cartography)
    table = read_table(tmp_path / "out/question_type_analysis.csv").set_index("question_type")
    expected = categorize_examples(metrics())
    assert set(table.index) == {"what", "when", "how many/how much", "yes/no"}
    for place, name in enumerate(("what", "when", "how many/how much", "yes/no")):
        rows = expected.iloc[place::4]
        assert table.loc[name, "n"] == 10
        assert table.loc[name, "confidence_mean"] == pytest.approx(sum(rows["confidence"]) / 10)
        assert table.loc[name, "loss_median"] == pytest.approx(np.median(rows["loss"]))
        assert table.loc[name, "never_learned_share"] == sum(rows["never_learned"]) / 10
        for category in ("easy", "ambiguous", "hard"):
            assert table.loc[name, f"{category}_share"] == list(rows["category"]).count(category) / 10


def test_samples_hold_the_texts_in_the_order_of_the_library(tmp_path, cartography):
    run(tmp_path / "out", "--cartography_dir", cartography, "--n_examples", "3")
    frame = metrics().set_index("id")
    for category in ("easy", "ambiguous", "hard"):
        samples = read_json(tmp_path / f"out/{category}_samples.json")
        assert [sample["id"] for sample in samples] == get_examples_by_category(frame, category, 3)
        for sample in samples:
            row = int(sample["id"])
            assert sample["question"] == QUESTIONS[row % 4]
            assert sample["context"] == f"The knee hurts, says patient {row}."
            assert sample["answer"] == ("" if row % 10 == 9 else "knee")
            assert sample["confidence"] == pytest.approx(frame.loc[sample["id"], "confidence"])
            assert sample["num_epochs"] == 5 and isinstance(sample["never_learned"], bool)


def test_distributions_count_every_example_once(tmp_path, cartography):
    run(tmp_path / "out", "--cartography_dir", cartography)
    table = read_table(tmp_path / "out/metric_distributions.csv")
    names = {"confidence", "variability", "correctness", "forgetting_events", "loss"}
    assert table.groupby("metric")["n"].sum().to_dict() == dict.fromkeys(names, N)
    events = table[table["metric"] == "forgetting_events"]
    assert (events["low"] == events["high"]).all()
    counted = events.groupby("low")["n"].sum()
    assert counted.to_dict() == metrics()["forgetting_events"].value_counts().to_dict()


def test_correlations_are_rank_correlations(tmp_path, cartography):
    run(tmp_path / "out", "--cartography_dir", cartography)
    table = read_table(tmp_path / "out/metric_correlations.csv").set_index(["metric_b", "metric_a"])
    assert len(table) == 5 * 4 / 2 and (table["n"] == N).all()
    assert table.loc[("confidence", "loss"), "spearman"] == pytest.approx(-1)  # Pearson's would be about -0.9
    a, b = metrics()["confidence"].rank(), metrics()["variability"].rank()
    slow = np.mean((a - a.mean()) * (b - b.mean())) / (np.std(a) * np.std(b))
    assert table.loc[("confidence", "variability"), "spearman"] == pytest.approx(slow)


@pytest.mark.parametrize("flag", ["--threshold_method", "--confidence-threshold", "--variability_threshold=0.3"])
def test_thresholds_are_not_flags_but_the_maps(tmp_path, cartography, flag, capsys):
    words = flag.split("=") if "=" in flag else [flag, "0.5"]
    message = refused(capsys, tmp_path / "out", "--cartography_dir", cartography, *words)
    assert words[0].replace("-", "_")[2:] in message and "dataset_cartography.py" in message


def test_cuts_come_from_all_metrics_not_from_the_part_with_texts(tmp_path, cartography, dataset, caplog):
    part = tmp_path / "part.jsonl"
    part.write_text("\n".join(dataset.read_text().splitlines()[:8]), encoding="utf-8")
    (cartography / "run_meta.json").unlink()  # made elsewhere: only the ids can tell
    run(tmp_path / "out", "--cartography_dir", cartography, "--dataset", part, "--n_examples", N)
    expected = categorize_examples(metrics().set_index("id"))["category"].iloc[:8]
    assert expected.tolist() != categorize_examples(metrics().set_index("id").iloc[:8])["category"].tolist()
    for category in ("easy", "ambiguous", "hard"):
        samples = read_json(tmp_path / f"out/{category}_samples.json")
        assert {sample["id"] for sample in samples} == set(expected.index[expected == category])


def test_partial_coverage_is_reported(tmp_path, dataset, caplog):
    cartography = write_map(tmp_path / "map", dataset, metrics().head(10))
    with caplog.at_level("INFO"):
        run(tmp_path / "out", "--cartography_dir", cartography)
    assert "covers 10 of 40 examples" in caplog.text and "(25.0%)" in caplog.text


def test_without_a_dataset_samples_hold_metrics_only(tmp_path, caplog):
    cartography = write_map(tmp_path / "map", None)
    with caplog.at_level("INFO"):
        run(tmp_path / "out", "--cartography_dir", cartography)
    assert "no texts, no question types" in caplog.text
    missing = {"question_type_analysis.csv", "category_by_question_type.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES - missing
    assert not {"question", "context", "answer"} & read_json(tmp_path / "out/hard_samples.json")[0].keys()


def write_logits(directory: Path, epochs: int = 4) -> list[np.ndarray]:
    """Dynamics in the form of allenai/cartography; returns the logits of every epoch, gold class row % 3."""
    directory.mkdir()
    rng = np.random.default_rng(5)
    logits = [rng.normal(size=(N, 3)) for _ in range(epochs)]
    for epoch, values in enumerate(logits):
        records = [
            {"guid": f"0{row:02d}", f"logits_epoch_{epoch}": values[row].tolist(), "gold": row % 3} for row in range(N)
        ]
        file = directory / f"dynamics_epoch_{epoch}.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return logits


def test_dynamics_of_another_trainer(tmp_path, dataset):
    logits = write_logits(tmp_path / "log")
    output = tmp_path / "out"
    run(output, "--training_dynamics", tmp_path / "log", "--cartography_dir", tmp_path / "not there")
    written = {"cartography_metrics.csv", "cartography_metrics.json", "cartography_map.png"}
    assert written <= {path.name for path in output.iterdir()}
    table = read_table(output / "cartography_metrics.csv").set_index("id")
    for row in range(N):
        p = [np.exp(epoch[row])[row % 3] / np.exp(epoch[row]).sum() for epoch in logits]
        assert table.loc[f"0{row:02d}", "confidence"] == pytest.approx(np.mean(p))
        assert table.loc[f"0{row:02d}", "variability"] == pytest.approx(np.std(p))
    # What was written is a cartography directory, and with --dataset the texts are there.
    run(tmp_path / "again", "--cartography_dir", output, "--dataset", dataset)
    assert read_json(tmp_path / "again/hard_samples.json")[0]["question"] in QUESTIONS
    run(tmp_path / "text", "--training_dynamics", tmp_path / "log", "--dataset", dataset)
    assert read_table(tmp_path / "text/question_type_analysis.csv")["n"].sum() == N


def test_a_rerun_leaves_no_old_files(tmp_path, cartography):
    write_logits(tmp_path / "log")
    run(tmp_path / "out", "--training_dynamics", tmp_path / "log")
    run(tmp_path / "out", "--cartography_dir", cartography)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


@pytest.mark.parametrize("table", [metrics().assign(variability=0.0, confidence=0.5, loss=0.7), metrics().head(1)])
def test_a_map_without_spread_is_drawn(tmp_path, dataset, table, pictures):
    cartography = write_map(tmp_path / "map", dataset, table)
    run(tmp_path / "out", "--cartography_dir", cartography)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert read_table(tmp_path / "out/metric_correlations.csv")["spearman"].isna().any()


# --- bad input ---------------------------------------------------------------------------------------------------


def test_cartography_directory_missing_empty_or_unfinished(tmp_path, cartography, capsys):
    output = tmp_path / "out"
    assert "no such file or directory" in refused(capsys, output, "--cartography_dir", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "holds no cartography_metrics.csv" in refused(capsys, output, "--cartography_dir", tmp_path / "empty")
    file = cartography / "cartography_metrics.csv"
    whole = file.read_bytes()
    file.write_bytes(b"")
    assert "is empty" in refused(capsys, output, "--cartography_dir", cartography)
    file.write_bytes(whole)
    meta = read_json(cartography / "run_meta.json")
    (cartography / "run_meta.json").write_text(json.dumps({**meta, "status": "running"}), encoding="utf-8")
    assert "still running or was killed" in refused(capsys, output, "--cartography_dir", cartography)


def test_truncated_metrics(tmp_path, cartography, capsys):
    file = cartography / "cartography_metrics.csv"
    whole = file.read_bytes()
    meta = read_json(cartography / "run_meta.json") | {"outputs": {file.name: len(whole)}}
    (cartography / "run_meta.json").write_text(json.dumps(meta), encoding="utf-8")
    file.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refused(capsys, tmp_path / "out", "--cartography_dir", cartography)


def test_malformed_csv_names_the_line(tmp_path, cartography, capsys):
    with (cartography / "cartography_metrics.csv").open("a") as file:
        file.write("x,0.5,0.1,1,5,0,False,0.7,surplus,cells\n")
    message = refused(capsys, tmp_path / "out", "--cartography_dir", cartography)
    assert "line 42: 10 columns where the header has 8" in message


def test_missing_column_and_nan(tmp_path, dataset, capsys):
    lacking = write_map(tmp_path / "lacking", dataset, metrics().drop(columns="variability"))
    assert "no column 'variability'" in refused(capsys, tmp_path / "out", "--cartography_dir", lacking)
    table = metrics()
    table.loc[7, "confidence"] = np.nan
    holed = write_map(tmp_path / "holed", dataset, table)
    message = refused(capsys, tmp_path / "out", "--cartography_dir", holed)
    assert "confidence of 1 examples ('007') is missing" in message


def test_another_dataset(tmp_path, cartography, capsys):
    output = tmp_path / "out"
    other = write_dataset(tmp_path / "other.jsonl", prefix="x")
    message = refused(capsys, output, "--cartography_dir", cartography, "--dataset", other)
    assert "shares no ids" in message and "notes.jsonl" in message and "other.jsonl" in message
    changed = write_dataset(tmp_path / "changed.jsonl", word="foot")
    message = refused(capsys, output, "--cartography_dir", cartography, "--dataset", changed)
    assert "other content" in message and "changed.jsonl" in message


def test_unknown_dataset_split_task_and_flag_values(tmp_path, cartography, dataset, capsys):
    output, given = tmp_path / "out", ("--cartography_dir", cartography)
    assert "no such file" in refused(capsys, output, *given, "--dataset", tmp_path / "gone.jsonl")
    assert "only split is 'train'" in refused(capsys, output, *given, "--split", "validation")
    assert "invalid choice: 'poems'" in refused(capsys, output, *given, "--task", "poems")
    assert "at least 1" in refused(capsys, output, *given, "--n_examples", "0")
    dataset.unlink()
    message = refused(capsys, output, *given)
    assert "no such file" in message and "recorded in" in message and "--dataset" in message


def test_never_writes_over_a_recording(tmp_path, cartography, capsys):
    with pytest.raises(SystemExit) as stop:
        run(cartography, "--cartography_dir", cartography)
    assert stop.value.code == 2 and "is read" in capsys.readouterr().err
    recording = tmp_path / "recording"
    recording.mkdir()
    (recording / "training_dynamics_epoch_1.json").write_text("{}")
    with pytest.raises(SystemExit):
        run(recording, "--cartography_dir", cartography)
    assert [path.name for path in recording.iterdir()] == ["training_dynamics_epoch_1.json"]
    assert (cartography / "cartography_metrics.csv").exists()


def test_output_directory_that_is_a_file(tmp_path, cartography, capsys):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "file", "--cartography_dir", cartography)
    assert stop.value.code == 2 and "is a file" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_bad_dynamics_of_another_trainer(tmp_path, capsys):
    output, log = tmp_path / "out", tmp_path / "log"
    assert "no such directory" in refused(capsys, output, "--training_dynamics", log)
    write_logits(log)
    file = log / "dynamics_epoch_2.jsonl"
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    message = refused(capsys, output, "--training_dynamics", log)
    assert "dynamics_epoch_2.jsonl, line 2" in message
    file.write_text(text.replace('"gold": 0', '"gold": 7'))
    assert "3 classes" in refused(capsys, output, "--training_dynamics", log)
    file.unlink()
    assert "one is missing" in refused(capsys, output, "--training_dynamics", log)


# --- pictures ----------------------------------------------------------------------------------------------------


def test_the_pictures_show_the_tables_beside_them(tmp_path, dataset, pictures):
    """Of metrics of single and of many values."""
    cartography = write_map(tmp_path / "map", dataset, metrics().assign(variability=np.arange(N) % 7 / 20))
    run(tmp_path / "out", "--cartography_dir", cartography)
    frame = categorize_examples(read_table(cartography / "cartography_metrics.csv"))
    check_distributions(pictures["metric_distributions.png"], tmp_path / "out", frame)
    check_correlations(pictures["metric_correlations.png"], tmp_path / "out", frame)
    check_groups(pictures["category_by_question_type.png"], tmp_path / "out", frame)


def check_distributions(figure, output, frame):
    table = read_table(output / "metric_distributions.csv")
    axes = [axis for axis in figure.axes if axis.get_visible()]
    assert len(axes) == 5 and legend(figure) == COLOR_OF and not any(axis.get_legend() for axis in axes)
    cuts = category_thresholds(frame)
    for axis, metric in zip(axes, ("confidence", "variability", "correctness", "forgetting_events", "loss"),
                            strict=True):
        assert axis.get_xlabel().startswith(metric.replace("_", " "))
        rows = table[table["metric"] == metric]
        single = metric in ("variability", "correctness", "forgetting_events")
        assert (rows["low"] == rows["high"]).all() == single
        shown = [bar for bar in upright(axis) if bar[2] > bar[1]]
        expected, values = [], sorted(set(rows["low"]))
        for low in values:
            high, bottom = rows[rows["low"] == low]["high"].iloc[0], 0
            for category in CATEGORIES:  # from below
                inside = frame[frame["category"] == category][metric]
                last = low == values[-1]
                n = int(((inside >= low) & ((inside < high) | last)).sum() if not single else (inside == low).sum())
                assert n == rows[(rows["low"] == low) & (rows["category"] == category)]["n"].item()
                expected += [((low + high) / 2, bottom, bottom + n, COLOR_OF[category])] if n else []
                bottom += n
        assert len(shown) == len(expected)
        for found, wanted in zip(sorted(shown), sorted(expected), strict=True):
            assert found[:3] == pytest.approx(wanted[:3]) and found[3] == wanted[3]
        assert axis.get_ylim()[0] == 0 and axis.get_ylim()[1] >= max(top for _, _, top, _ in shown)
        assert all(tick % 1 == 0 for tick in axis.get_yticks()), "counts"
        if single:  # one does not touch the next
            assert all(0 < bar.get_width() < np.diff(values).min() for bar in axis.patches)
        cut = dict(zip(("confidence", "variability"), cuts, strict=True)).get(metric)
        assert [x for x, _, _ in lines(axis)] == ([] if cut is None else [[cut, cut]])
    assert [axis.get_ylabel() for axis in axes] == ["examples (count)", "", "", "", "examples (count)"]
    assert caption(figure) == (f"notes.jsonl [train], n = 40; cuts: confidence {cuts[0]:.3g}, "
                               f"variability {cuts[1]:.3g}; dashed: the cuts")


def check_correlations(figure, output, frame):
    names = ["confidence", "variability", "correctness", "forgetting_events", "loss"]
    axis, bar = figure.axes
    values, texts, mesh = heat_map(axis)
    table = read_table(output / "metric_correlations.csv").set_index(["metric_a", "metric_b"])["spearman"]
    for row, below in enumerate(names[1:]):
        for column, left in enumerate(names[:-1]):
            if column > row:
                assert np.isnan(values[row, column]) and texts[row, column] == ""
                continue
            rho = spearmanr(frame[below], frame[left]).statistic
            assert values[row, column] == table[below, left] == pytest.approx(rho)
            assert texts[row, column] == f"{rho:z.2f}"
    assert mesh.get_clim() == (-1, 1) and "Spearman" in bar.get_ylabel()
    shown = [name.replace("_", " ") for name in names]
    assert list(seen(axis, "x").values()) == shown[:-1]
    assert sorted(seen(axis, "y")) == [0.5, 1.5, 2.5, 3.5] and seen(axis, "y")[0.5] == shown[1]
    # Red is positive, blue negative.
    red, _, blue, _ = np.asarray(mesh.cmap(mesh.norm(np.array([1.0]))))[0]
    assert red > blue


def check_groups(figure, output, frame):
    table = read_table(output / "question_type_analysis.csv")
    (axis,) = figure.axes
    assert legend(figure) == COLOR_OF
    assert seen(axis, "y") == {row: f"{group.question_type} (n = {group.n})"
                               for row, group in enumerate(table.itertuples())}
    shown = {(middle, color): (left, right) for middle, left, right, color in lying(axis)}
    order = ("what", "when", "how many/how much", "yes/no")
    for row, group in enumerate(table["question_type"]):
        inside = frame["category"].iloc[order.index(group) :: 4].tolist()
        left = 0.0
        for category in CATEGORIES:
            share = 100 * inside.count(category) / len(inside)
            assert share == pytest.approx(100 * table[f"{category}_share"][row])
            assert shown[row, COLOR_OF[category]] == pytest.approx((left, left + share))
            left += share
    assert len(shown) == 12
    assert [text.get_text() for text in axis.texts] == [
        f"{100 * share:.0f}" if share >= 0.06 else "" for category in CATEGORIES
        for share in table[f"{category}_share"]]
    assert axis.get_ylim()[0] > axis.get_ylim()[1] and axis.get_xlim() == (0, 100)
    assert axis.get_xlabel() == "examples (%)" and caption(figure).startswith("notes.jsonl [train], n = 40;")


def test_many_values_are_drawn_in_their_bins(tmp_path, pictures):
    """Edges that lie apart from each other and from 0, as a histogram has them."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"confidence": 0.3 + rng.random(300) / 5, "loss": rng.exponential(2, 300),
                          "category": rng.choice(CATEGORIES, 300, p=(0.7, 0.2, 0.1))})
    table = map_summary.distributions(frame)
    assert table.index.tolist() == list(range(len(table)))
    map_summary.plot_distributions(tmp_path / "metric_distributions.png", table, (0.4, 0.1), "n = 300")
    for axis, metric in zip(pictures["metric_distributions.png"].axes, ("confidence", "loss"), strict=True):
        edges = np.histogram_bin_edges(frame[metric], 40)
        heights = {color: np.zeros(40) for color in COLOR_OF.values()}
        for middle, bottom, top, color in upright(axis):
            heights[color][np.searchsorted(edges, middle) - 1] = top - bottom
        for category, color in COLOR_OF.items():
            counts, _ = np.histogram(frame[metric][frame["category"] == category], edges)
            assert heights[color] == pytest.approx(counts)
    assert [x for x, _, _ in lines(pictures["metric_distributions.png"].axes[0])] == [[0.4, 0.4]]


def test_a_correlation_of_nearly_0_has_no_sign(tmp_path, pictures):
    table = pd.DataFrame({"metric_a": ["loss"], "metric_b": ["confidence"], "spearman": [-0.004], "n": [9]})
    map_summary.plot_correlations(tmp_path / "metric_correlations.png", table, ["confidence", "loss"], "n = 9")
    assert heat_map(pictures["metric_correlations.png"].axes[0])[1].tolist() == [["0.00"]]


def test_a_correlation_that_is_not_known_says_so(tmp_path, pictures):
    frame = pd.DataFrame({"confidence": [0.1, 0.2, 0.4], "variability": [0.3] * 3, "loss": [3.0, 2.0, 1.0]})
    map_summary.plot_correlations(tmp_path / "metric_correlations.png", map_summary.correlations(frame), list(frame),
                                  "n = 3")
    values, texts, _ = heat_map(pictures["metric_correlations.png"].axes[0])
    np.testing.assert_array_equal(texts, [["n/a", ""], ["-1.00", "n/a"]])
    np.testing.assert_allclose(values, [[np.nan, np.nan], [-1, np.nan]])


def test_shares_that_are_too_small_for_a_number_have_none(tmp_path, pictures):
    table = pd.DataFrame({"label": ["a", "b"], "n": [200, 100], "easy_share": [0.06, 0.059],
                          "ambiguous_share": [0.94, 0.0], "hard_share": [0.0, 0.941]})
    map_summary.plot_groups(tmp_path / "category_by_label.png", table, "label", "n = 300")
    axis = pictures["category_by_label.png"].axes[0]
    assert [text.get_text() for text in axis.texts] == ["6", "", "94", "", "", "94"]
    assert seen(axis, "y") == {0: "a (n = 200)", 1: "b (n = 100)"}


def test_a_picture_of_many_groups_shows_the_largest_and_says_so(tmp_path, pictures):
    sizes = [60 - group for group in range(40)]
    frame = pd.DataFrame(
        {
            "confidence": 0.5, "variability": 0.1, "category": "hard",
            "label": [f"costs $5 or $6, {group} " + "x" * group for group, n in enumerate(sizes) for _ in range(n)],
        }
    )
    table = map_summary.group_table(frame, "label").sort_values("n", ascending=False)
    map_summary.plot_groups(tmp_path / "category_by_label.png", table, "label", "n = 1,620")
    figure = pictures["category_by_label.png"]
    assert title(figure) == "Categories by label" and caption(figure) == "n = 1,620 the 25 largest of 40 labels"
    names = list(seen(figure.axes[0], "y").values())  # two dollar signs are no formula
    assert len(names) == 25 and names[0].endswith(", 0 (n = 60)")
    assert names[-1].startswith(r"costs \$5 or \$6, 24 x") and names[-1].endswith("xxx... (n = 36)")
    assert len(set(names)) == 25
    assert len(names[-1].replace("\\", "").removesuffix(" (n = 36)")) == 40
    few = table.head(25)
    map_summary.plot_groups(tmp_path / "category_by_label.png", few, "label", "n = 1,200")
    assert caption(pictures["category_by_label.png"]) == "n = 1,200"
