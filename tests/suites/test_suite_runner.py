"""Carrying out a suite: states, one run, workers that die, suites that meet, kills at any moment."""

import gc
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
from conftest import REPOSITORY
from filelock import FileLock

import run_experiments
from datamap.core import splits as core_splits
from datamap.core.artifacts import load_meta
from datamap.core.files import read_json
from datamap.suites import runner as suite_runner
from datamap.suites.planning import plan_suite
from datamap.suites.runner import Outcome, carry_out, execute, run_locally
from datamap.suites.runs import FAILED, FINISHED, INTERRUPTED, PENDING, RUNNING, Run, last_lines, state_of
from datamap.training import data as run_data
from datamap.training.trainer import CartographyTrainer

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = [1, 2]


def write_suite(path: Path, qa_dir: Path, model: Path, experiments: list[dict], **base) -> Path:
    flags = {
        "dataset": str(qa_dir), "model": str(model), "max_length": 96, "doc_stride": 24, "num_train_epochs": 2,
        "per_device_train_batch_size": 8, "save_strategy": "epoch", "no_cuda": True, "do_train": True, "do_eval": True,
        "logging_steps": 2, **base,
    }
    path.write_text(json.dumps({"name": path.stem, "base": flags, "experiments": experiments}), encoding="utf-8")
    return path


@pytest.fixture
def suite(tmp_path, monkeypatch, qa_dir, tiny_model):
    """Two experiments that differ in the learning rate, in the current directory."""
    monkeypatch.chdir(tmp_path)
    experiments = [{"name": "baseline", "args": {}}, {"name": "fast", "args": {"learning_rate": 1e-3}}]
    return write_suite(tmp_path / "small.json", qa_dir, tiny_model, experiments)


def runs_of(suite: Path, *extra: str, seeds=SEEDS):
    args = run_experiments.parse_args(["--suite", str(suite), "--seeds", *map(str, seeds), *extra])
    return plan_suite(args)[2]


def meta_of(directory: Path) -> dict:
    meta = load_meta(directory)
    assert meta is not None
    return meta


def everything(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_command_line_is_carried_out_as_by_python(tmp_path, monkeypatch, capfd):
    (tmp_path / "script.py").write_text(
        "import os, sys\nprint(__name__, sys.argv[1:])\nos.write(2, b'from C\\n')\nsys.exit(3)\n"
    )
    monkeypatch.setattr(suite_runner, "script_file", tmp_path.joinpath)
    before = list(sys.argv)
    with pytest.raises(SystemExit, match="3"):
        carry_out("script.py", ["--flag=a b"], tmp_path / "log.txt")
    first, *lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert first.startswith("--- ") and first.endswith(" python script.py '--flag=a b'")
    assert lines == ["__main__ ['--flag=a b']", "from C"] and sys.argv == before
    os.write(2, b"to the terminal again\n")
    assert capfd.readouterr() == ("", "to the terminal again\n")


def test_cores_are_shared_where_the_system_has_no_affinity(monkeypatch):
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    environment = suite_runner.worker_environment(1, 4, ["0", "1"])
    assert (environment["OMP_NUM_THREADS"], environment["CUDA_VISIBLE_DEVICES"]) == ("2", "1")


def test_a_run_and_what_it_leaves(suite):
    run = runs_of(suite)[0]
    assert state_of(run.directory) == PENDING
    outcome = execute(run, retry=False, keep_model=False)
    assert outcome.state == FINISHED == state_of(run.directory) and outcome.seconds > 0
    digests = f".examples-{meta_of(run.directory)['history'][-1]['datasets'][0]['fingerprint']}.npy"  # of the training
    assert everything(run.directory) == {
        "config.json", "log.txt", "run_meta.json", "eval_metrics.json", "eval_predictions.jsonl", "train_metrics.json",
        "training_log.csv", "wrong_answers.csv", "error_counts.csv", digests,
    }
    config = read_json(run.directory / "config.json")
    assert (config["experiment"], config["seed"], config["identity"]) == ("baseline", 1, run.identity)
    log = (run.directory / "log.txt").read_text(encoding="utf-8")
    assert "python run.py" in log.splitlines()[0] and "eval_exact_match" in log
    meta = meta_of(run.directory)
    assert meta["command"].startswith("run.py --dataset") and meta["arguments"]["seed"] == 1
    # Again: nothing is touched.
    before = (run.directory / "run_meta.json").read_bytes()
    assert execute(run, retry=True, keep_model=False) == Outcome(FINISHED)
    assert (run.directory / "run_meta.json").read_bytes() == before


def test_planted_errors_are_left_with_the_data_that_has_them(tmp_path, monkeypatch, qa_dir, tiny_model):
    monkeypatch.chdir(tmp_path)
    dirty = {"name": "dirty", "args": {"plant_errors": 0.25, "max_steps": 1}}
    runs = runs_of(write_suite(tmp_path / "dirty.json", qa_dir, tiny_model, [dirty]))
    for run in runs:
        assert execute(run, retry=False, keep_model=False).state == FINISHED
        assert {"planted_errors.csv", "planted_data"} <= everything(run.directory)
    one, other = ((run.directory / "planted_errors.csv").read_bytes() for run in runs)
    assert one == other, "the seeds of an experiment learn the same errors"


def test_what_another_command_left_there_is_not_taken_for_the_run(suite, monkeypatch):
    """Somebody tries a variation of a printed command, and forgets to change its --output_dir."""
    import run as script

    def typed(argv):
        monkeypatch.setattr(sys, "argv", ["run.py", *argv])
        script.main(argv)

    run = runs_of(suite)[0]
    typed([*run.argv, "--num_train_epochs=1"])
    assert state_of(run.directory) == INTERRUPTED
    execute(run, retry=False, keep_model=False)
    assert meta_of(run.directory)["arguments"]["num_train_epochs"] == 2
    # The command as it was printed is the run.
    other = runs_of(suite)[1]
    typed(list(other.argv))
    trained = (other.directory / "train_metrics.json").stat().st_mtime_ns
    assert execute(other, retry=False, keep_model=False).state == FINISHED
    assert (other.directory / "train_metrics.json").stat().st_mtime_ns == trained


@pytest.mark.parametrize("damage", ["eval_metrics.json", "eval_predictions.jsonl", "run_meta.json"])
def test_a_run_that_lost_a_file_is_done_again(suite, damage):
    run = runs_of(suite)[0]
    execute(run, retry=False, keep_model=False)
    whole = (run.directory / damage).read_bytes()
    (run.directory / damage).write_bytes(whole[: len(whole) // 2])
    assert state_of(run.directory) == INTERRUPTED
    assert execute(run, retry=False, keep_model=False).state == FINISHED == state_of(run.directory)
    (run.directory / "eval_metrics.json").unlink()
    assert state_of(run.directory) == INTERRUPTED


def test_a_directory_that_cannot_be_written_fails_its_run_alone(suite, monkeypatch):
    def refuse(*arguments, **settings):
        raise PermissionError(13, "Permission denied")

    run = runs_of(suite)[0]
    monkeypatch.setattr(Path, "mkdir", refuse)
    outcome = execute(run, retry=False, keep_model=False)
    assert outcome.state == FAILED and "not writable (Permission denied)" in outcome.error


def test_the_model_stays_when_asked(suite):
    run = runs_of(suite)[0]
    execute(run, retry=False, keep_model=True)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= everything(run.directory / "model")
    assert "checkpoint-6" in everything(run.directory / "model") - everything(run.directory)
    assert "identity" in read_json(run.directory / "config.json")
    assert "architectures" in read_json(run.directory / "model" / "config.json")


TIMES = re.compile(rb"20\d\d-\d\d-\d\dT[\d:]+\+00:00"
                   rb'|"(\w+_runtime|\w+_per_second|\w*seconds|train_metrics.json|eval_metrics.json)": [\d.e-]+')


def test_runs_of_one_process_are_those_of_processes_of_their_own(tmp_path, monkeypatch, qa_dir):
    """Byte for byte but for times, the model's and its tokenizer's files too."""
    for place in ("alone", "together"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "together")
    suite = write_suite(tmp_path / "small.json", qa_dir, "tiny", [  # type: ignore[arg-type]
        {"name": "baseline", "args": {}}, {"name": "fast", "args": {"learning_rate": 1e-3}}])
    first, *_, last = runs_of(suite)
    for run in (first, last):
        execute(run, retry=False, keep_model=True)
    command = [sys.executable, str(REPOSITORY / "run.py"), *last.argv, "--overwrite"]
    subprocess.run(command, cwd=tmp_path / "alone", check=True, capture_output=True,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})
    alone = tmp_path / "alone" / last.directory
    files = [path.relative_to(alone) for path in alone.rglob("*") if path.is_file()]
    assert {"tokenizer.json", "model.safetensors", "eval_predictions.jsonl", "run_meta.json"} <= set(map(str, files))
    for name in files:
        tidied = last.directory / "model" / name
        there = tidied if tidied.exists() else last.directory / name
        assert TIMES.sub(b"", there.read_bytes()) == TIMES.sub(b"", (alone / name).read_bytes()), name


def test_a_run_leaves_nothing_that_only_the_collector_could_free(suite, monkeypatch):
    """What libraries made is frozen after a run, and what is frozen is never collected: no model may be among it. What
    is kept for the next run goes without the collector."""
    import datasets
    import torch
    import transformers

    kinds = (torch.nn.Parameter, torch.optim.Optimizer, transformers.Trainer, transformers.TrainingArguments)

    def alive(*kinds):
        return {id(each): each for each in gc.get_objects() if issubclass(type(each), kinds)}

    def forget():
        run_data._features.clear()
        core_splits._load_whole.cache_clear()
        core_splits.example_digests.cache_clear()

    forget()
    before, splits = alive(*kinds), alive(datasets.Dataset)
    run, broken = runs_of(suite)[:2]
    assert execute(run, retry=False, keep_model=False).state == FINISHED
    with monkeypatch.context() as patch:
        patch.setattr(CartographyTrainer, "evaluate", lambda *_, **__: 1 / 0)
        assert execute(broken, retry=False, keep_model=False).state == FAILED
    assert not [type(each) for place, each in alive(*kinds).items() if place not in before]
    kept = [weakref.ref(each) for place, each in alive(datasets.Dataset).items() if place not in splits]
    assert kept
    gc.disable()
    try:
        forget()
        assert not [each() for each in kept if each() is not None]
    finally:
        gc.enable()


def test_a_worker_freezes_what_was_imported_once(monkeypatch):
    """Or every collection looks through all that the libraries made, twice in a run."""
    counts: list[int] = []

    class Pipe:
        def recv(self):
            if len(counts) == 4:
                raise EOFError
            return ()

        def send(self, outcome):
            counts.append(gc.get_freeze_count())

    def run():
        if len(counts) == 2:
            monkeypatch.setitem(sys.modules, "imported_by_the_third_run", pytest)
        return [[[]] for _ in range(100)]

    gc.unfreeze()
    kept = []
    monkeypatch.setattr(suite_runner, "execute", lambda: kept.append(run()))
    try:
        suite_runner._work(Pipe())  # type: ignore[arg-type]
        assert counts[0] == 0 and counts[1] > 1000
        assert counts[2] <= counts[1], "nothing was imported"
        assert counts[3] > counts[2]
    finally:
        gc.unfreeze()


def test_a_failure_is_told_and_kept(suite, qa_dir):
    run = runs_of(suite, "--max_length", "20")[0]  # too short for a question beside a context
    outcome = execute(run, retry=False, keep_model=False)
    assert outcome.state == FAILED == state_of(run.directory)
    assert "leaves no room for a question" in outcome.error == meta_of(run.directory)["error"]
    assert "leaves no room" in "".join(last_lines(run.directory / "log.txt", 20))
    before = (run.directory / "log.txt").read_text(encoding="utf-8")
    assert execute(run, retry=False, keep_model=False).state == FAILED
    assert (run.directory / "log.txt").read_text(encoding="utf-8") == before, "not tried again unasked"
    assert execute(run, retry=True, keep_model=False).seconds > 0


def test_an_exception_is_told_with_its_traceback(suite, monkeypatch):
    run = runs_of(suite)[0]
    monkeypatch.setattr(CartographyTrainer, "train", lambda *_, **__: 1 / 0)
    outcome = execute(run, retry=False, keep_model=False)
    assert outcome.error == "ZeroDivisionError: division by zero"
    assert "Traceback" in (run.directory / "log.txt").read_text(encoding="utf-8")


def test_an_interrupted_run_goes_on_from_its_checkpoint(suite, monkeypatch):
    one, other = runs_of(suite)[:2]

    def stop(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CartographyTrainer, "evaluate", stop)
        execute(one, retry=False, keep_model=False)
    assert state_of(one.directory) == INTERRUPTED and (one.directory / "checkpoint-6").exists()
    assert execute(one, retry=False, keep_model=False).state == FINISHED
    log = (one.directory / "log.txt").read_text(encoding="utf-8").splitlines()
    commands = [line for line in log if line.startswith("--- ")]
    assert "--overwrite" in commands[0] and "--resume_from_checkpoint" in commands[1]
    # The same run without the break.
    reference = other.__class__(**{**vars(one), "directory": Path("reference"), "argv": (
        *[word for word in one.argv if not word.startswith("--output_dir")], "--output_dir=reference")})
    execute(reference, retry=False, keep_model=False)
    for name in ("eval_predictions.jsonl", "training_log.csv"):
        assert (one.directory / name).read_bytes() == (reference.directory / name).read_bytes(), name


def test_killed_while_it_was_tidied(suite, monkeypatch):
    run = runs_of(suite)[0]
    monkeypatch.setattr(suite_runner, "_tidy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        execute(run, retry=False, keep_model=False)
    assert state_of(run.directory) == INTERRUPTED
    monkeypatch.undo()
    monkeypatch.chdir(suite.parent)
    trained = (run.directory / "train_metrics.json").stat().st_mtime_ns
    assert execute(run, retry=False, keep_model=False).state == FINISHED
    assert (run.directory / "train_metrics.json").stat().st_mtime_ns == trained, "only the tidying was left"
    assert "model.safetensors" not in everything(run.directory)


def test_a_run_that_another_process_is_at(suite):
    run = runs_of(suite)[0]
    run.directory.mkdir(parents=True)
    with FileLock(run.directory / ".lock"):
        held = "import sys, pathlib; from datamap.suites import runs; print(runs.state_of(pathlib.Path(sys.argv[1])))"
        told = subprocess.run([sys.executable, "-c", held, run.directory], capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
        assert told.stdout.strip() == RUNNING
    assert state_of(run.directory) == PENDING


def test_stopped_by_slurm_is_interrupted(tmp_path):
    (tmp_path / "run_meta.json").write_text(json.dumps({"status": "failed", "error": "SystemExit: -1"}))
    assert state_of(tmp_path) == INTERRUPTED
    (tmp_path / "run_meta.json").write_text(json.dumps({"status": "failed", "error": "SystemExit: 2"}))
    assert state_of(tmp_path) == FAILED


def test_a_finished_training_without_its_evaluation_is_half_a_run(tmp_path):
    meta = {"status": "finished", "arguments": {"do_train": True, "do_eval": True}}
    (tmp_path / "run_meta.json").write_text(json.dumps(meta))
    assert state_of(tmp_path) == INTERRUPTED


# --- workers -----------------------------------------------------------------------------------------------------


def local(runs, **settings) -> dict[Run, Outcome]:
    settings = {"workers": 1, "retry": False, "keep_models": False, "stop_on_error": False, **settings}
    return dict(run_locally(runs, **settings))


@pytest.mark.slow
def test_a_worker_that_dies_costs_only_its_run(suite, tmp_path, monkeypatch):
    """``kill -9`` of the worker in the middle of a run: that run has failed, another worker takes the next."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runs = runs_of(suite)
    command = [sys.executable, str(REPOSITORY / "run_experiments.py"), "--suite", str(suite), "--seeds", "1", "2"]
    started = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: "eval" in text(runs[0].directory / "log.txt") or (runs[0].directory / "checkpoint-3").exists())
    [worker] = [pid for pid in children(started.pid) if "spawn_main" in text(Path(f"/proc/{pid}/cmdline"))]
    os.kill(worker, signal.SIGKILL)
    said = started.communicate(timeout=180)[1]
    assert started.returncode == 1
    states = [state_of(run.directory) for run in runs]
    assert states.count(FAILED) == 1 and states.count(FINISHED) == 3, states
    failed = runs[states.index(FAILED)]
    assert "killed by SIGKILL (out of memory?)" in meta_of(failed.directory)["error"]
    assert f"failed: {failed}" in said and "--retry_failed" in said
    assert execute(failed, retry=True, keep_model=False).state == FINISHED


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def wait_for(condition, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.mark.slow
def test_two_suites_in_one_directory_share_the_work(suite, tmp_path):
    command = [sys.executable, str(REPOSITORY / "run_experiments.py"), "--suite", str(suite), "--seeds", "1", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment)
            for _ in range(2)]
    said = [each.communicate(timeout=240)[1] for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    for run in runs_of(suite):
        assert state_of(run.directory) == FINISHED
        assert text(run.directory / "log.txt").count("--- ") == 1, "run once"
    assert all("4/4" in each or "finished runs are left" in each for each in said), said


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_leaves_what_can_go_on(suite, tmp_path):
    command = [sys.executable, str(REPOSITORY / "run_experiments.py"), "--suite", str(suite), "--seeds", "1", "2"]
    runs = runs_of(suite)
    started = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: (runs[1].directory / "log.txt").exists())
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does
    said = started.communicate(timeout=30)[1]
    assert started.returncode == 130 and "the same command goes on" in said and "Traceback" not in said
    assert state_of(runs[0].directory) == FINISHED
    assert state_of(runs[1].directory) in (INTERRUPTED, PENDING)
    assert not [run for run in runs if state_of(run.directory) == RUNNING], "a worker was left behind"
    assert [execute(run, retry=False, keep_model=False).state for run in runs] == [FINISHED] * 4


@pytest.mark.slow
def test_stop_on_error(suite, tmp_path, qa_dir, tiny_model):
    bad = write_suite(tmp_path / "bad.json", qa_dir, tiny_model, [
        {"name": "baseline", "args": {"num_train_epochs": 1}},
        {"name": "broken", "args": {"max_length": 20}},
        {"name": "later", "args": {"learning_rate": 1e-3}},
    ])
    runs = runs_of(bad, seeds=[1])
    outcomes = local(runs, stop_on_error=True)
    assert [outcomes[run].state for run in runs[:2]] == [FINISHED, FAILED] and runs[2] not in outcomes
    assert state_of(runs[2].directory) == PENDING


KILLS = 4  # tests/breaking kills, too


@pytest.mark.slow
def test_kill_9_of_the_whole_group_at_random_moments(tmp_path, qa_dir, tiny_model):
    """Whatever moment it dies at: in the end every run is finished once, and as if nothing had happened."""
    experiments = [
        {"name": "baseline", "args": {}},
        {"name": "no_hard", "args": {"filter_categories": ["easy", "ambiguous"]}},
        {"name": "watched", "args": {"enable_cartography": True, "eval_strategy": "epoch"}},
    ]
    places = [tmp_path / name for name in ("undisturbed", "killed")]
    for place in places:
        place.mkdir()
        suite = write_suite(place / "killed.json", qa_dir, tiny_model, experiments, num_train_epochs=30,
                            save_strategy="steps", save_steps=10, save_total_limit=2)
        table = json.loads(suite.read_text())
        suite.write_text(json.dumps({**table, "prerequisites": {"cartography": {"num_train_epochs": 3}}}))
    command = [sys.executable, str(REPOSITORY / "run_experiments.py"), "--suite", "killed.json", "--workers", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    done = subprocess.run(command, cwd=places[0], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    whole = time.monotonic() - began  # kills are timed by it, so that the suite outlives them on any machine

    rng = random.Random(0)
    directory = places[1] / "experiments" / "killed"
    finished: dict[Path, bytes] = {}
    moments, hits = [], 0
    while hits < KILLS or not finished:
        number = hits
        before = set((places[1] / "experiments").rglob("checkpoint-*"))
        started = subprocess.Popen(command, cwd=places[1], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   env=environment, start_new_session=True)
        began = time.monotonic()
        try:
            if number % 2:  # soon after something was achieved; else at any moment, also while it imports
                wait_for(lambda seen=before, process=started: process.poll() is not None
                         or set((places[1] / "experiments").rglob("checkpoint-*")) - seen)
            time.sleep(rng.uniform(0, whole / 12) if number % 2 else rng.uniform(0, whole / 5))
            moments.append(time.monotonic() - began)
        finally:
            assert started.poll() is None, f"the suite was over before kill {hits + 1}"
            hits += 1
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
        for file, content in finished.items():
            assert file.read_bytes() == content, f"{file.parent.name} was finished and was touched again"
        for file in directory.glob("*/run_meta.json"):
            if state_of(file.parent) == FINISHED:
                finished.setdefault(file, file.read_bytes())
    print(f"killed after {', '.join(f'{moment:.1f}' for moment in moments)} s; {len(finished)} runs finished by then")
    last = subprocess.run(command, cwd=places[1], capture_output=True, text=True, env=environment)
    assert last.returncode == 0, last.stderr
    runs = sorted(path.parent.name for path in directory.glob("*/run_meta.json"))
    assert runs == sorted(path.parent.name for path in (places[0] / "experiments/killed").glob("*/run_meta.json"))
    assert len(runs) == 4
    for name in runs:
        place, reference = directory / name, places[0] / "experiments/killed" / name
        meta = meta_of(place)
        ends = [each for each in [meta, *meta["history"]]
                if each["status"] == "finished" and not each["arguments"]["do_train"]]
        assert len(ends) == 1, f"{name} was evaluated {len(ends)} times"
        files = ["eval_metrics.json", "eval_predictions.jsonl", "training_log.csv"]
        if "watched" in name:
            files += ["cartography_output/cartography_metrics.csv"]
        for artifact in files:
            if artifact == "eval_metrics.json":
                values = [{key: value for key, value in read_json(where / artifact).items() if "second" not in key
                           and "runtime" not in key} for where in (place, reference)]
                assert values[0] == values[1], name
            elif artifact == "training_log.csv":
                assert [line.split(",")[:3] for line in text(place / artifact).splitlines()] == [
                    line.split(",")[:3] for line in text(reference / artifact).splitlines()
                ], name
            else:
                assert (place / artifact).read_bytes() == (reference / artifact).read_bytes(), f"{name}/{artifact}"
