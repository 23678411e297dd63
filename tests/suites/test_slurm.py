"""slurm_launcher on a real Slurm of one machine (tests/slurm_cluster.sh)."""

import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datamap.core.errors import UserError
from datamap.core.files import read_json
from datamap.suites import slurm as slurm_launcher
from datamap.suites.runs import Run
from datamap.training.prerequisites import Prerequisite

OPTIONS: dict[str, Any] = {
    "name": "test", "time_minutes": 2, "partition": None, "gpus": 0, "cpus": 1, "parallel": None, "after": None,
}


# --- what the tasks do, in the directory of the test -------------------------------------------------------------


def note(item: str, event: str) -> None:
    with Path(f"{item}.{event}").open("a") as file:
        file.write(f"{time.time()}\n")


def times(item: str, event: str) -> list[float]:
    path = Path(f"{item}.{event}")
    return [float(line) for line in path.read_text().split()] if path.exists() else []


def work(item: str) -> None:
    note(item, "start")
    time.sleep(0.5)
    if item == "bad":
        raise ValueError("an item that cannot be done")
    note(item, "end")


def wait_for_go(item: str) -> None:
    note(item, "start")
    while not Path("go").exists():
        time.sleep(0.1)
    note(item, "end")


def hang_at_first(item: str) -> None:
    """Never ends at the first start. Its worker gets every signal that the task gets."""
    note(item, "start")
    if len(times(item, "start")) == 1:
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,)).start()
        time.sleep(300)
    note(item, "end")


# --- without a cluster -------------------------------------------------------------------------------------------


def test_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no sbatch on the PATH.*\[slurm\]") as error:
        slurm_launcher.submit(work, ["a"], tmp_path, **OPTIONS)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no squeue on the PATH"):
        slurm_launcher.states("1")


def fake_programs(folder: Path, monkeypatch, script: str) -> None:
    for name in ("sbatch", "srun", "squeue", "scontrol"):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_without_submitit(tmp_path, monkeypatch):
    fake_programs(tmp_path, monkeypatch, "exit 1")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r'submitit, which is not installed: pip install -e "\.\[slurm\]"$'):
        slurm_launcher.submit(work, ["a"], tmp_path / "logs", **OPTIONS)


def test_options_reach_sbatch(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    fake_programs(tmp_path, monkeypatch, 'echo "Submitted batch job 77"')
    options = {**OPTIONS, "name": "seeds", "time_minutes": 90, "partition": "gpu", "gpus": 2, "cpus": 4}
    job = slurm_launcher.submit(work, ["a", "b", "c"], tmp_path / "logs", **{**options, "parallel": 2, "after": "5"})
    assert job == "77"
    script = (tmp_path / "logs" / "77_submission.sh").read_text()
    flags = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE))
    expected = {"job-name": "seeds", "time": "90", "partition": "gpu", "gpus-per-node": "2", "cpus-per-task": "4"}
    expected |= {"array": "0-2%2", "dependency": "afterok:5", "requeue": "", "signal": "USR2@90"}
    assert expected.items() <= flags.items()
    assert " --cpus-per-task=4 " in script.splitlines()[-1]


CLUSTER = """case $(basename "$0") in
scontrol) echo 'MaxArraySize            = 2' ;;
squeue) test -e queue && echo "$2 PENDING" || true ;;
sbatch) job=$(($(cat count 2>/dev/null || echo 100) + 1)); echo $job >count; echo "Submitted batch job $job" ;;
esac"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Slurm that takes arrays of two and runs nothing; in its queue is everything, while the file ``queue`` is there.

    submit(runs, needed, ...): submit them; returns the job ids in the suite's slurm.json with their runs.
    """
    pytest.importorskip("submitit")
    (tmp_path / "bin").mkdir()
    fake_programs(tmp_path / "bin", monkeypatch, CLUSTER)
    monkeypatch.chdir(tmp_path)
    limits = {name: OPTIONS[name] for name in ("time_minutes", "partition", "gpus", "cpus")}

    def submit(count, needed=(), records=False, parallel=None, **changed):
        runs = [Run("a", seed, "", Path(f"suite/a{seed}"), (), {}, records) for seed in range(count)]
        slurm_launcher.submit_suite(Path("suite"), needed, runs, retry=False, keep_models=False, parallel=parallel,
                                    **{**limits, **changed})
        return {job["job"]: job["runs"] for job in read_json(Path("suite/slurm.json"))}

    return submit


def flags_of(job: str) -> dict[str, str]:
    script = Path(f"suite/slurm/{job}_submission.sh").read_text()
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE))


@pytest.mark.parametrize("parallel", [None, 1])
def test_more_runs_than_the_cluster_takes_in_an_array(cluster, capsys, parallel):
    assert cluster(5, parallel=parallel) == {"101": ["a0", "a1"], "102": ["a2", "a3"], "103": ["a4"]}
    said = capsys.readouterr().out
    assert "submitted job 101, 102, 103 with 5 runs as 3 arrays, as the cluster takes 2 in one" in said
    behind = [None, "afterany:101", "afterany:102"] if parallel else [None] * 3  # no more than --slurm_parallel of all
    assert [flags_of(job).get("dependency") for job in ("101", "102", "103")] == behind
    assert flags_of("101")["array"].startswith("0-1")


def test_prerequisites_in_the_queue_are_not_queued_again(cluster, capsys):
    made = Prerequisite("cartography", Path("shared/map/cartography_output"), ["run.py"], "x")
    Path("queue").touch()
    assert set(cluster(1, [made], parallel=1)) == {"102"}  # 101 makes the map
    assert flags_of("102")["dependency"] == "afterok:101"
    assert cluster(4, [made], parallel=1) == {"102": ["a0"], "103": ["a1", "a2"], "104": ["a3"]}
    assert [flags_of(job)["dependency"] for job in ("103", "104")] == ["afterok:101", "afterok:101,afterany:103"]
    Path("queue").unlink()  # the job has failed
    assert "106" in cluster(1, [made])
    assert flags_of("106")["dependency"] == "afterok:105"


def test_runs_that_record_take_one_gpu(cluster):
    with pytest.raises(UserError, match="--slurm_gpus 2: these runs record .*give --slurm_gpus 1"):
        cluster(1, records=True, gpus=2)
    assert not Path("count").exists()


def test_squeue_that_fails(tmp_path, monkeypatch):
    fake_programs(tmp_path, monkeypatch, "echo 'slurm_load_jobs error: Unable to contact controller' >&2; exit 1")
    with pytest.raises(UserError, match="squeue does not answer: slurm_load_jobs error: Unable to contact controller"):
        slurm_launcher.states("1")


# --- on a cluster ------------------------------------------------------------------------------------------------


@pytest.fixture
def submit(slurm, tmp_path, monkeypatch) -> Iterator[Callable[..., str]]:
    """submit(call, items, **options) in a directory of the test's own; what is left of the jobs is killed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the jobs import this file
    jobs = []

    def submit_one(call: Callable[[str], None], items: list[str], **options: object) -> str:
        jobs.append(slurm_launcher.submit(call, items, Path("logs"), **{**OPTIONS, **options}))
        return jobs[-1]

    yield submit_one
    for job in jobs:
        subprocess.run(["scancel", job], capture_output=True, check=False)
    wait_for_end(*jobs)


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, subprocess.run(["squeue"], capture_output=True, text=True).stdout
        time.sleep(0.2)


def wait_for_end(*jobs: str) -> None:
    wait_until(lambda: not any(slurm_launcher.states(job) for job in jobs))


def start_again_soon(job: str) -> None:
    """Wait until all tasks of the job are requeued. Slurm then lets them lie for two minutes; not here.

    In the second of its requeueing a task must not start: it would fail with "Job credential revoked".
    """
    wait_until(lambda: set(slurm_launcher.states(job).values()) == {"PENDING"})
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now+3"], check=True)


def state_and_exit(task: str) -> tuple[str, str]:
    shown = subprocess.run(["scontrol", "show", "job", task], capture_output=True, text=True, check=True).stdout
    return re.findall(r"JobState=(\w+)", shown)[0], re.findall(r"ExitCode=(\S+)", shown)[0]


def all_cpus() -> int:
    shown = subprocess.run(["sinfo", "-h", "-p", "normal", "-o", "%c"], capture_output=True, text=True, check=True)
    return int(shown.stdout)


@pytest.mark.slow
def test_failing_item_does_not_stop_the_others(submit):
    Path("helpers.py").write_text("raise ImportError('the wrong helpers.py')\n")
    job = submit(work, ["a", "bad", "b", "c"])
    wait_for_end(job)
    assert [len(times(item, "end")) for item in ("a", "bad", "b", "c")] == [1, 0, 1, 1]
    assert [len(times(item, "start")) for item in ("a", "bad", "b", "c")] == [1, 1, 1, 1]
    assert state_and_exit(f"{job}_1") == ("FAILED", "1:0")
    assert state_and_exit(f"{job}_2") == ("COMPLETED", "0:0")
    assert "ValueError: an item that cannot be done" in Path("logs", f"{job}_1_0_log.err").read_text()


@pytest.mark.slow
def test_states_and_parallel(submit):
    job = submit(wait_for_go, ["a", "b", "c"], parallel=1)
    wait_until(lambda: slurm_launcher.states(job).get(0) == "RUNNING")
    time.sleep(2)  # there is a second CPU, and Slurm looks for work every second
    assert slurm_launcher.states(job) == {0: "RUNNING", 1: "PENDING", 2: "PENDING"}
    Path("go").touch()
    wait_for_end(job)
    runs = sorted((times(item, "start")[0], times(item, "end")[0]) for item in "abc")
    assert all(end <= start for (_, end), (start, _) in zip(runs, runs[1:], strict=False))
    assert slurm_launcher.states("999999") == {}


@pytest.mark.slow
def test_cancelled_task_does_not_hurt_the_others(submit):
    job = submit(wait_for_go, ["a", "b", "c"])
    wait_until(lambda: times("a", "start"))
    subprocess.run(["scancel", f"{job}_0"], check=True)
    wait_until(lambda: 0 not in slurm_launcher.states(job))
    Path("go").touch()
    wait_for_end(job)
    assert [len(times(item, "end")) for item in "abc"] == [0, 1, 1]
    assert state_and_exit(f"{job}_0")[0] == "CANCELLED"


@pytest.mark.slow
def test_the_cluster_says_how_large_an_array_may_be(slurm):
    assert slurm_launcher.array_limit() == 1001, "Slurm's default"


@pytest.mark.slow
def test_behind_a_job_that_failed(submit):
    failing = submit(work, ["bad"])
    last = submit(work, ["c"], behind=failing)
    wait_for_end(failing, last)
    assert times("bad", "start")[0] < times("c", "start")[0] and times("c", "end")


@pytest.mark.slow
def test_after(submit):
    first = submit(wait_for_go, ["a", "b"])
    second = submit(work, ["c"], after=first)
    failing = submit(work, ["bad"])
    never = submit(work, ["d", "e"], after=failing)
    wait_until(lambda: times("a", "start"))
    time.sleep(1)
    assert slurm_launcher.states(second) == {0: "PENDING"}
    Path("go").touch()
    wait_for_end(first, second, failing, never)
    assert times("c", "start")[0] > max(times("a", "end") + times("b", "end"))
    assert not times("d", "start")
    assert state_and_exit(f"{never}_1")[0] == "CANCELLED"


@pytest.mark.slow
def test_preempted_tasks_run_again(submit):
    job = submit(hang_at_first, ["a", "b"])
    wait_until(lambda: times("a", "start") and times("b", "start"))
    urgent = submit(work, ["c"], cpus=all_cpus(), partition="urgent")
    wait_until(lambda: times("c", "end"))
    start_again_soon(job)
    wait_for_end(job, urgent)
    for index, item in enumerate("ab"):
        assert [len(times(item, event)) for event in ("start", "end")] == [2, 1]
        assert times("c", "end")[0] < times(item, "start")[1]
        assert state_and_exit(f"{job}_{index}")[0] == "COMPLETED"


@pytest.mark.slow
def test_tasks_at_their_time_limit_run_again(submit):
    job = submit(hang_at_first, ["a", "b"], time_minutes=1)
    wait_until(lambda: times("a", "start") and times("b", "start"))
    wait_until(lambda: "RUNNING" not in slurm_launcher.states(job).values(), seconds=60)
    start_again_soon(job)
    wait_for_end(job)
    for index, item in enumerate("ab"):
        assert [len(times(item, event)) for event in ("start", "end")] == [2, 1]
        log = Path("logs", f"{job}_{index}_0_log.out").read_text()
        requeued = f"Requeued job {job}_{index} ({slurm_launcher.MAX_TIMEOUTS - 1} remaining timeouts)"
        assert log.count(requeued) == 1
        assert log.count("Calling checkpoint method") == 1  # the worker leaves it to the task


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "nowhere"}, "sbatch refused test: .*[Ii]nvalid partition.*nowhere"),
        ({"gpus": 1}, "sbatch refused test: .*gres"),
        ({"after": "nonsense"}, "sbatch refused test: .*dependency"),
    ],
)
def test_refused(submit, capfd, options, words):
    with pytest.raises(UserError, match=words) as error:
        submit(work, ["a", "b"], **options)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
