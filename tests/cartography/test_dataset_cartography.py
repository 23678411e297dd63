"""dataset_cartography.py: a map written again at other thresholds, which the later stages go by."""

import json

import numpy as np
import pytest
from conftest import qa_rows
from made_dynamics import make_epochs, write_epochs

import analyze_cartography
import dataset_cartography
from datamap.analysis import map_summary
from datamap.analysis.filter_config import apply_filters
from datamap.cartography.categories import CATEGORIES, category_thresholds
from datamap.cartography.learning import Learning
from datamap.cartography.maps import CARTOGRAPHY_FILES, load_map, write_cartography
from datamap.cartography.metrics import compute_metrics, load_cartography_metrics
from datamap.core.artifacts import recorded_dataset, stage
from datamap.core.files import read_json, write_jsonl
from datamap.core.splits import load_split
from datamap.tasks.registry import get_task

N = 40


@pytest.fixture
def split(tmp_path):
    write_jsonl(tmp_path / "stories.jsonl", qa_rows(N))
    return load_split(str(tmp_path / "stories.jsonl"), "train", get_task("qa"))


@pytest.fixture
def recorded(tmp_path, split):
    """A cartography directory as run.py leaves it."""
    args = {"do_train": True, "output_dir": "model"}
    with stage(tmp_path / "map", args, owns=CARTOGRAPHY_FILES, datasets=[split.identity()]) as path:
        write_epochs(path, make_epochs(ids=split.ids, epochs=5))
        learning = Learning()
        metrics = compute_metrics(learning.follow(dataset_cartography.read_dynamics(path)))
        write_cartography(path, metrics, "stories", learning=learning.record(metrics))
    return path


def run(output, *flags):
    dataset_cartography.main(["--output_dir", str(output), *map(str, flags)])
    return output


def refused(capsys, output, *flags):
    with pytest.raises(SystemExit) as stop:
        run(output, *flags)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


CUTS = [
    ("--method", "percentile"),
    ("--method", "percentile", "--confidence_threshold", "25", "--variability_threshold", "80"),
    ("--method", "fixed", "--confidence_threshold", "0.55", "--variability_threshold", "0.3"),
    ("--variability_threshold", "0.2"),
]


@pytest.mark.parametrize("flags", CUTS)
def test_samples_are_exactly_what_the_category_filter_keeps(tmp_path, recorded, split, flags, monkeypatch):
    for plot in ("plot_distributions", "plot_correlations", "plot_groups"):
        monkeypatch.setattr(map_summary, plot, lambda path, *rest: path.touch())
    again = run(tmp_path / "again", "--cartography_dir", recorded, *flags)
    analysis = ["--cartography_dir", str(again), "--output_dir", str(tmp_path / "analysis"), "--n_examples", str(N)]
    analyze_cartography.main(analysis)
    before, kept = load_map(recorded)[0]["category"], {}
    for category in CATEGORIES:
        samples = {sample["id"] for sample in read_json(tmp_path / f"analysis/{category}_samples.json")}
        if samples:
            block = {"category": {"metrics_path": str(again), "categories": [category]}}
            kept[category] = set(apply_filters(split, block)["id"])
            assert kept[category] == samples
    assert sum(map(len, kept.values())) == N
    assert any(kept[category] != set(before.index[before == category]) for category in kept)  # the cuts are others


def test_all_but_the_thresholds_and_the_picture_is_as_before(tmp_path, recorded, split, capsys):
    again = run(tmp_path / "again", "--cartography_dir", recorded, "--method", "percentile")
    for file in recorded.iterdir():
        same = (again / file.name).read_bytes() == file.read_bytes()
        assert same == (file.name not in ("thresholds.json", "cartography_map.png", "run_meta.json")), file.name
    assert recorded_dataset(again) == split.identity()  # with its task: the later stages need no flag
    meta = read_json(again / "run_meta.json")
    assert meta["status"] == "finished" and meta["inputs"]["cartography"]["path"] == str(recorded)
    lines = capsys.readouterr().out.splitlines()
    assert "stories.jsonl [train], n = 40: " in lines[0] and lines[-1].endswith(f"to {again}")
    third = run(tmp_path / "third", "--cartography_dir", again)
    assert (third / "thresholds.json").read_bytes() == (recorded / "thresholds.json").read_bytes()


def test_another_trainers_log_becomes_a_cartography_directory(tmp_path):
    rng = np.random.default_rng(5)
    (tmp_path / "log").mkdir()
    for epoch in range(4):
        records = [{"guid": row, f"logits_epoch_{epoch}": rng.normal(size=3).tolist(), "gold": row % 3}
                   for row in range(N)]
        write_jsonl(tmp_path / f"log/dynamics_epoch_{epoch}.jsonl", records)
    output = run(tmp_path / "out", "--training_dynamics", tmp_path / "log", "--method", "percentile")
    metrics = load_cartography_metrics(output)
    assert metrics["num_epochs"].tolist() == [4] * N and "el2n" in metrics
    assert load_map(output)[1] == category_thresholds(metrics, method="percentile")
    written = compute_metrics(dataset_cartography.read_dynamics(output))  # selectors read the losses of the epochs
    assert written["loss"].to_numpy() == pytest.approx(metrics["loss"].to_numpy(), abs=1e-5)
    assert recorded_dataset(output) is None


def test_a_file_of_metrics_and_a_trainer_that_was_stopped(tmp_path, recorded):
    alone = run(tmp_path / "alone", "--cartography_dir", recorded / "cartography_metrics.csv")
    assert not list(alone.glob("training_dynamics_epoch_*"))
    assert (alone / "cartography_metrics.csv").read_bytes() == (recorded / "cartography_metrics.csv").read_bytes()
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    write_epochs(stopped, make_epochs(epochs=3))
    assert load_cartography_metrics(run(tmp_path / "out", "--cartography_dir", stopped))["num_epochs"].max() == 3


def test_a_run_that_goes_on_is_refused(tmp_path, recorded, capsys):
    meta = read_json(recorded / "run_meta.json") | {"status": "running"}
    (recorded / "run_meta.json").write_text(json.dumps(meta))
    for file in ("", "cartography_metrics.csv", "cartography_metrics.json"):
        (recorded / file).unlink() if file else None
        assert "not whole" in refused(capsys, tmp_path / "out", "--cartography_dir", recorded)
    assert not (tmp_path / "out").exists()


def test_a_recording_is_never_written_over(tmp_path, recorded, capsys):
    assert "is read" in refused(capsys, recorded, "--cartography_dir", recorded)
    again = run(tmp_path / "again", "--cartography_dir", recorded)
    assert "was recorded" in refused(capsys, recorded, "--cartography_dir", again)
    run(again, "--cartography_dir", recorded, "--method", "percentile")  # a copy may be made anew
    (again / "run_meta.json").unlink()  # somebody else's
    assert "was recorded" in refused(capsys, again, "--cartography_dir", recorded)


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--method", "fixed"), "needs both"),
        (("--method", "mean"), "invalid choice: 'mean'"),
        (("--confidence_threshold", "1.5"), "0..1, found 1.5"),
        (("--method", "percentile", "--variability_threshold", "101"), "0..100, found 101"),
        (("--training_dynamics", "log"), "not allowed with argument --cartography_dir"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_written(tmp_path, recorded, flags, message, capsys):
    assert message in refused(capsys, tmp_path / "out", "--cartography_dir", recorded, *flags)
    assert not (tmp_path / "out").exists()
