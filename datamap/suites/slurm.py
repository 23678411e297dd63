"""A suite as one Slurm array job (submitit): any function over many items, and how far Slurm is with them.

Preempted tasks and those that reach their time limit are requeued and start again from the top: the function itself
must know how to resume. Works without accounting: nothing here, nor in the jobs, asks sacct.
"""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamap.core.errors import UserError
from datamap.core.files import read_json_like, write_json
from datamap.core.places import CHECKOUT
from datamap.suites.runner import execute_task
from datamap.suites.runs import Run
from datamap.training.prerequisites import Prerequisite, is_made, make

MADE_BY = "run_experiments.py --launcher slurm"
JOBS = "slurm.json"  # in the directory of a suite: each job, and the runs of its tasks
MAX_TIMEOUTS = 10  # a task that never gets further than its time limit must end some day
INSTALL = 'pip install -e ".[slurm]"'

logger = logging.getLogger(__name__)


# --- any function over many items ---------------------------------------------------------------------------------


@dataclass
class Resumable:
    """``call``, and what submitit looks for in something that may be requeued at its time limit."""

    call: Callable[[Any], Any]

    def __call__(self, item: Any) -> Any:
        os.register_at_fork(after_in_child=_drop_signal_handlers)
        return self.call(item)

    def checkpoint(self, item: Any) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, item)


def _drop_signal_handlers() -> None:
    """For forked processes, such as the workers of a DataLoader, which inherit submitit's handlers.

    Slurm's warning of the time limit goes to every process of the task: each would requeue it. And a worker that
    overhears SIGTERM cannot be ended by its pool.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def submit(
    call: Callable[[Any], Any], items: Sequence[Any], folder: Path, *, name: str, time_minutes: int,
    partition: str | None, gpus: int, cpus: int, parallel: int | None = None, after: str | None = None,
    behind: str | None = None,
) -> str:
    """Submit one array job whose task i runs ``call(items[i])``, at least one item; return the job id.

    ``call`` is pickled by reference when it stands in a module of the package, with its code otherwise. Tasks run in
    the current directory and environment; their logs and pickles go to ``folder``, which the nodes must see. At most
    ``parallel`` tasks run at a time (None: all). ``after`` is a job that must have ended well first; when it fails,
    this one is cancelled. ``behind`` is one that must have ended, however. Accounts and the like: sbatch's variables,
    SBATCH_ACCOUNT. Raises UserError when Slurm or submitit is missing, and with sbatch's own words when it refuses.
    """
    missing = [program for program in ("sbatch", "srun", "squeue") if shutil.which(program) is None]
    if missing:
        raise UserError(
            f"no {missing[0]} on the PATH: is this a login node of a Slurm cluster? Elsewhere run without Slurm; with "
            f"it, {INSTALL} installs what else is needed"
        )
    try:
        import submitit
        from submitit.core.utils import FailedSubmissionError, UncompletedJobError
    except ImportError as error:
        raise UserError(f"submitting to Slurm needs submitit, which is not installed: {INSTALL}") from error

    # -P: otherwise modules in the current directory, a helpers.py of the user's, would come before ours.
    executor = submitit.SlurmExecutor(folder, MAX_TIMEOUTS, python=f"{shlex.quote(sys.executable)} -P")
    extra: dict[str, Any] = {"requeue": True}  # the cluster's default may be never to requeue
    waits = [f"{how}:{job}" for how, job in (("afterok", after), ("afterany", behind)) if job is not None]
    if waits:
        extra["dependency"] = ",".join(waits)
        extra["kill-on-invalid-dep"] = "yes"  # by default it would be pending for ever
    executor.update_parameters(
        job_name=name, time=time_minutes, array_parallelism=parallel or len(items), cpus_per_task=cpus,
        # Since Slurm 22.05 a step does not take this over from its job.
        srun_args=[f"--cpus-per-task={cpus}"],
        # How long before the time limit the task is requeued. Slurm is early by up to 30 s more.
        signal_delay_s=min(90, 15 * time_minutes),
        # The modules may not be installed.
        setup=[f'export PYTHONPATH={shlex.quote(str(CHECKOUT))}"${{PYTHONPATH:+:$PYTHONPATH}}"'],
        additional_parameters=extra,
        **({"gpus_per_node": gpus} if gpus else {}),
        **({"partition": partition} if partition else {}),
    )
    try:
        with redirect_stderr(io.StringIO()):  # submitit prints sbatch's words besides raising them
            jobs = executor.map_array(Resumable(call), items)
    except (FailedSubmissionError, UncompletedJobError) as error:
        raise UserError(f"sbatch refused {name}: {_one_line(str(error))}") from error
    return jobs[0].job_id.split("_")[0]


def array_limit() -> int | None:
    """The most tasks that the cluster takes in one array job; None where it does not say."""
    try:
        shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return None
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    return int(found[1]) if found and int(found[1]) else None  # 0: no arrays at all, which sbatch will say


def states(job_id: str) -> dict[int, str]:
    """Array index -> PENDING, RUNNING, COMPLETING, ... of the tasks that are not over (squeue)."""
    command = ["squeue", "--jobs", job_id, "--array", "--noheader", "--format=%i %T"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError("no squeue on the PATH: is this a login node of a Slurm cluster?") from error
    if result.returncode:
        if "Invalid job id" in result.stderr:  # over for so long that Slurm has forgotten it
            return {}
        raise UserError(f"squeue does not answer: {_one_line(result.stderr)}")
    found = {}
    for line in result.stdout.splitlines():
        task, state = line.split()
        # Only one item: submitit submits a plain job, without an index.
        found[int(task.partition("_")[2] or 0)] = state
    return found


def _one_line(text: str) -> str:
    return "; ".join(line.removeprefix("sbatch: error: ").strip() for line in text.splitlines() if line.strip())


# --- the runs of a suite ------------------------------------------------------------------------------------------


def submit_suite(
    directory: Path, needed: Sequence[Prerequisite], todo: Sequence[Run], *, retry: bool, keep_models: bool,
    parallel: int | None, **limits: Any,
) -> None:
    """Submit the runs that are not in the queue yet, behind a job that makes what they need; limits: of ``submit``."""
    queued = queued_runs(directory)
    if queued:
        logger.info(f"{len(queued):,} runs are in Slurm's queue already and are not submitted again")
    todo = [run for run in todo if run.directory.name not in queued]
    if not todo:
        logger.info("nothing to submit")
        return
    if limits["gpus"] > 1 and any(run.records for run in todo):
        raise UserError(f"--slurm_gpus {limits['gpus']}: these runs record training dynamics, which takes one process "
                        "per GPU; give --slurm_gpus 1")
    folder, name = directory / "slurm", directory.name
    after = _job_that_makes(needed, folder, f"{name}-prerequisites", limits)
    most = array_limit() or len(todo)
    jobs = jobs_of(directory)
    submitted: list[str] = []
    for first in range(0, len(todo), most):
        some = todo[first : first + most]
        # So that no more than ``parallel`` of all arrays run at a time.
        behind = submitted[-1] if submitted and parallel else None
        submitted.append(submit(execute_task, [(run, retry, keep_models) for run in some], folder, name=name,
                                parallel=parallel, after=after, behind=behind, **limits))
        jobs.append({"job": submitted[-1], "runs": [run.directory.name for run in some]})
        write_json(directory / JOBS, jobs)
    arrays = f" as {len(submitted)} arrays, as the cluster takes {most:,} in one" if len(submitted) > 1 else ""
    print(f"submitted job {', '.join(submitted)} with {len(todo):,} runs{arrays}; --mode status shows them, --mode "
          "analyze compares")


def _job_that_makes(
    needed: Sequence[Prerequisite], folder: Path, name: str, limits: Mapping[str, Any]
) -> str | None:
    """The job that makes what is missing, one that is in the queue already or a new one; None where nothing is.

    It is noted beside what it makes, which suites share.
    """
    notes = {each.directory.parent / JOBS for each in needed if not is_made(each)}
    if not notes:
        return None
    known = {read_json_like(note, {"job": str}, MADE_BY)["job"] if note.exists() else None for note in notes}
    job = known.pop() if len(known) == 1 else None
    if job is not None and states(job):
        logger.info(f"job {job}, in Slurm's queue already, makes the prerequisites, the runs wait for it")
        return job
    job = submit(make, [needed], folder, name=name, **limits)
    for note in notes:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, {"job": job})
    logger.info(f"job {job} makes the prerequisites, the runs wait for it")
    return job


def queued_runs(directory: Path) -> dict[str, str]:
    """Name of a run's directory -> its state in Slurm's queue, of those that Slurm still knows."""
    jobs = jobs_of(directory)
    return {job["runs"][task]: state for job in jobs for task, state in states(job["job"]).items()}


def jobs_of(directory: Path) -> list[dict[str, Any]]:
    """The array jobs of a suite that were submitted so far."""
    file = directory / JOBS
    return read_json_like(file, [{"job": str, "runs": [str]}], MADE_BY) if file.exists() else []
