"""A suite as an array job of a real Slurm: failures, scancel and preemption cost nothing but time."""

import json
import subprocess
import time

import pytest

import run_experiments
from datamap.core.artifacts import load_meta
from datamap.core.files import read_json
from datamap.suites import console
from datamap.suites import slurm as slurm_launcher
from datamap.suites.planning import plan_suite
from datamap.suites.runner import execute
from datamap.suites.runs import FAILED, FINISHED, INTERRUPTED, PENDING, RUNNING, state_of

pytestmark = pytest.mark.slow


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, subprocess.run(["squeue"], capture_output=True, text=True).stdout
        time.sleep(0.2)


def test_a_suite_on_slurm(slurm, tmp_path, monkeypatch, qa_dir, tiny_model, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    experiments = [
        {"name": "preempted", "args": {"num_train_epochs": 600}},
        {"name": "cancelled", "args": {"num_train_epochs": 500}},
        {"name": "broken", "args": {"max_length": 20}},
        {"name": "no_hard", "args": {"filter_categories": ["easy", "ambiguous"]}, "control": False},
    ]
    base = {
        "dataset": str(qa_dir), "model": str(tiny_model), "max_length": 96, "doc_stride": 24, "num_train_epochs": 3,
        "per_device_train_batch_size": 8, "save_strategy": "steps", "save_steps": 20, "save_total_limit": 2,
        "no_cuda": True, "do_train": True, "do_eval": True,
    }
    suite = {"name": "cluster", "baseline": "preempted", "base": base, "experiments": experiments,
             "prerequisites": {"cartography": {}}}
    (tmp_path / "cluster.json").write_text(json.dumps(suite))
    command = ["--suite", "cluster.json", "--seeds", "1", "--launcher", "slurm", "--slurm_time", "10"]
    planned = plan_suite(run_experiments.parse_args(command))[2]
    runs = {run.experiment: run.directory for run in planned}
    assert set(runs) == {"preempted", "cancelled", "broken", "no_hard"}

    run_experiments.main(command)
    assert "submitted job" in capsys.readouterr().out
    [record] = read_json(tmp_path / "experiments/cluster/slurm.json")
    job, places = record["job"], {name: place for place, name in enumerate(record["runs"])}
    tasks = {name: f"{job}_{places[directory.name]}" for name, directory in runs.items()}
    run_experiments.main(["--mode", "status"])
    assert "(Slurm: pending)" in capsys.readouterr().out, "the runs wait for the prerequisites"
    # Submitted twice by mistake: nothing more is queued.
    run_experiments.main(command)
    assert len(read_json(tmp_path / "experiments/cluster/slurm.json")) == 1

    wait_for(lambda: list(runs["preempted"].glob("checkpoint-*")) and list(runs["cancelled"].glob("checkpoint-*")))
    assert state_of(runs["preempted"]) == RUNNING
    subprocess.run(["scancel", tasks["cancelled"]], check=True)
    cpus = subprocess.run(["sinfo", "-h", "-p", "normal", "-o", "%c"], capture_output=True, text=True).stdout.strip()
    urgent = subprocess.run(["sbatch", "--parsable", "-p", "urgent", "-c", cpus, "--wrap", "sleep 2"],
                            capture_output=True, text=True, check=True).stdout.strip()
    wait_for(lambda: urgent not in subprocess.run(["squeue", "-h", "-o", "%A"], capture_output=True, text=True).stdout)
    assert state_of(runs["cancelled"]) == INTERRUPTED
    # Slurm lets a requeued task lie for two minutes; not here.
    wait_for(lambda: slurm_launcher.states(job).get(places[runs["preempted"].name]) == "PENDING")
    subprocess.run(["scontrol", "update", f"JobId={tasks['preempted']}", "StartTime=now+3"], check=True)
    wait_for(lambda: not slurm_launcher.states(job), seconds=240)

    states = {name: state_of(directory) for name, directory in runs.items()}
    assert states == {"preempted": FINISHED, "cancelled": INTERRUPTED, "broken": FAILED, "no_hard": FINISHED}
    assert "leaves no room for a question" in (load_meta(runs["broken"]) or {})["error"]
    log = (runs["preempted"] / "log.txt").read_text()
    assert log.count("--- ") == 2 and "--resume_from_checkpoint" in log, "it went on from its checkpoint"
    capsys.readouterr()
    run_experiments.main(["--mode", "status"])
    shown = capsys.readouterr().out
    assert "2 finished" in shown and "1 failed" in shown and "1 interrupted" in shown

    # The same command on this machine does what is left; the failed run is counted, not hidden.
    monkeypatch.setattr(console, "run_locally", lambda todo, **_: [(run, execute(run, False, False)) for run in todo])
    with pytest.raises(SystemExit, match="1"):
        run_experiments.main(["--suite", "cluster.json", "--seeds", "1"])
    assert "4 runs, 3 finished, 1 failed, 0 missing" in capsys.readouterr().out
    assert state_of(runs["cancelled"]) == FINISHED and state_of(runs["broken"]) == FAILED


def test_nothing_is_left_to_submit(slurm, tmp_path, monkeypatch, qa_dir, tiny_model, caplog):
    monkeypatch.chdir(tmp_path)
    suite = {"base": {"dataset": str(qa_dir), "model": str(tiny_model), "do_train": True, "do_eval": True},
             "experiments": [{"name": "baseline", "args": {}}]}
    (tmp_path / "one.json").write_text(json.dumps(suite))
    command = ["--suite", "one.json", "--launcher", "slurm", "--slurm_time", "10"]
    [run] = plan_suite(run_experiments.parse_args(command))[2]
    assert state_of(run.directory) == PENDING
    run.directory.mkdir(parents=True)
    (run.directory / "config.json").write_text(json.dumps({"identity": run.identity}))
    (run.directory / "run_meta.json").write_text(json.dumps({"status": "finished", "arguments": {}}))
    run_experiments.main(command)
    assert "nothing to submit" in caplog.text
    assert not (tmp_path / "experiments/one/slurm.json").exists()
