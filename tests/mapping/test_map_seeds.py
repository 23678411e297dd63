"""map_dataset.py --seeds: a training with each, and everything behind them made of their joint map."""

import contextlib
import io

import pytest

import map_dataset
from datamap.cartography.metrics import load_cartography_metrics
from datamap.core.files import read_json
from datamap.mapping import stages
from datamap.mapping.arguments import parse_args
from datamap.report.page import content_of
from datamap.tasks.guess import Guess

SIZES = ["--model", "tiny", "--hidden_size", "32", "--num_layers", "1", "--max_length", "96", "--no_cuda",
         "--num_train_epochs", "3", "--per_device_train_batch_size", "8", "--visualization_method", "pca",
         "--min_cluster_size", "3", "--min_samples", "1"]


def stages_of(tmp_path, *words):
    """Of a map that is still to be made, up to the joint map: name -> its stage."""
    args = parse_args(["--dataset", "demo:clinical", "--output_dir", str(tmp_path), *SIZES, *words])
    args.evaluates = True
    have: dict[str, str] = {}
    found: dict[str, stages.Stage] = {}
    for name, build in stages.order_of(args).items():
        if name == "predictions":
            return found, have
        found[name] = build(args, Guess("qa"), have)
        have |= found[name].leaves
    raise AssertionError


def test_each_seed_is_a_training_of_its_own_and_the_map_is_that_of_all(tmp_path):
    found, have = stages_of(tmp_path, "--seeds", "1", "2", "3", "--cross_fit", "2")
    assert list(found) == ["train", "seed 2", "seed 3", "joint"]
    first, second, _, joint = (stage.argv for stage in found.values())
    places = ("--output_dir=", "--cartography_output_dir=", "--seed=", "--cross_fit=")
    assert [word for word in first if not word.startswith(places)] == [
        word for word in second if not word.startswith(places)]
    assert "--seed=1" in first and "--seed=2" in second
    assert "--cross_fit=2" in first and "--cross_fit=2" not in second  # the folds of the first are enough
    maps = [str(tmp_path / each / "cartography_output") for each in (".", "seeds/2", "seeds/3")]
    assert joint == ("--cartography_dir", *maps, f"--output_dir={tmp_path / 'joint_map'}")
    assert have["cartography"] == str(tmp_path / "joint_map") and have["model"] == str(tmp_path / "trainer_output")
    assert all(stage.weights for stage in found.values())


def test_without_seeds_nothing_is_joined(tmp_path):
    found, have = stages_of(tmp_path)
    assert list(found) == ["train"] and have["cartography"] == str(tmp_path / "cartography_output")


@pytest.mark.parametrize(("words", "expected"), [
    (["--dataset", "demo:clinical", "--seeds", "1"], "name two or more"),
    (["--dataset", "demo:clinical", "--seeds", "1", "1"], "each once"),
    (["--dataset", "demo:clinical", "--seeds", "1", "2", "--seed", "3"], "--seed and --seeds exclude each other"),
    (["--cartography_dir", ".", "--seeds", "1", "2"], "--seeds is for trainings"),
])
def test_a_mistake_is_one_line(words, expected, refused):
    assert expected in refused(map_dataset.main, *words)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_one_command_makes_the_page_of_the_joint_map(tmp_path, qa_dir):
    def call():
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            map_dataset.main(["--dataset", str(qa_dir), "--output_dir", str(tmp_path / "m"), *SIZES, "--seeds", "1",
                              "2"])
        return out.getvalue(), err.getvalue()

    out, err = call()
    assert "stability               two of 2 runs put" in out
    frame = load_cartography_metrics(tmp_path / "m/joint_map")
    assert (frame["n_runs"] == 2).all()
    assert [each["seed"] for each in read_json(tmp_path / "m/joint_map/joint_map.json")["runs"]] == [1, 2]
    page = content_of((tmp_path / "m/report.html").read_text(encoding="utf-8"))
    assert len(page["joint"]["runs"]) == 2 and page["epochs"]["count"] == 3
    assert not list((tmp_path / "m").rglob("checkpoint-*"))
    out, err = call()  # nothing is left to do
    assert " s  wrote" not in err
