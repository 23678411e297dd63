"""The runs of a suite, carried out: the state of each, one run in this process, many of them in local workers.

A run is a directory: ``config.json`` says what it is, ``log.txt`` what it said, ``run_meta.json`` (written by run.py)
how it ended, and a lock on ``.lock`` that some process is at it. The lock goes with that process, however it ends.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from multiprocessing import connection
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from datamap.core.artifacts import META, load_meta, mark_failed
from datamap.core.errors import UserError, setup_logging
from datamap.core.files import read_json, write_json
from datamap.core.places import load_script
from datamap.suites.definition import Run
from datamap.training.checkpoints import whole_checkpoints

PENDING, RUNNING, FINISHED, FAILED, INTERRUPTED = "pending", "running", "finished", "failed", "interrupted"
DAMAGED = "damaged"  # status of a run_meta.json that cannot be read
PLACE_FLAGS = ("--output_dir", "--cartography_output_dir", "--cluster_assignments_path")
STOPPED = ("KeyboardInterrupt", "SystemExit: -1")  # Ctrl-C; Slurm's time limit, by way of submitit
CONFIG, LOG, LOCK = "config.json", "log.txt", ".lock"
LOCK_SECONDS = 2.0  # longer than state_of holds a lock to see whether it is free
POLL_SECONDS = 1.0  # between two looks at a run that another process carries out
STOP_SECONDS = 10.0  # that a worker has to go after it was told to

logger = logging.getLogger(__name__)


# --- states -------------------------------------------------------------------------------------------------------


def state_of(directory: Path) -> str:
    """The state of a run, from its directory alone."""
    state = _left(directory)
    if state != FINISHED and (directory / LOCK).exists() and os.access(directory / LOCK, os.W_OK):
        try:
            with FileLock(directory / LOCK, timeout=0):
                pass
        except Timeout:
            return RUNNING
    return state


def meta_of(directory: Path) -> dict[str, Any] | None:
    """The run_meta.json of a run; with the status ``damaged`` where it cannot be read, None where there is none."""
    try:
        meta = load_meta(directory) if directory.is_dir() else None
    except UserError as error:
        logger.warning(f"{error}: the run counts as interrupted")
        return {"status": DAMAGED, "arguments": {}}
    if meta is None or (isinstance(meta, dict) and "status" in meta):
        return meta
    logger.warning(f"{directory / META} says nothing of a run, which counts as interrupted")
    return {"status": DAMAGED, "arguments": {}}


def _left(directory: Path) -> str:
    """How a run was left that nobody is at."""
    meta = meta_of(directory)
    if meta is None:
        return PENDING
    if meta["status"] == "failed":
        return INTERRUPTED if meta.get("error", "").startswith(STOPPED) else FAILED
    return FINISHED if _is_evaluated(directory, meta) and _is_tidy(directory) else INTERRUPTED


def _is_tidy(directory: Path) -> bool:
    try:
        return (directory / CONFIG).exists() and "identity" in read_json(directory / CONFIG)
    except UserError:
        return False


def _is_evaluated(directory: Path, meta: dict[str, Any]) -> bool:
    """Whether the evaluation is finished, a stage of its own behind the training, and what it wrote is there."""
    if meta["status"] != "finished" or meta.get("arguments", {}).get("do_train"):
        return False
    files = [(directory / name, size) for name, size in meta.get("outputs", {}).items()]
    return all(file.exists() and file.stat().st_size >= size for file, size in files)


def _is_of(run: Run, meta: dict[str, Any]) -> bool:
    """Whether it was this run that left its directory so, not a command typed by hand with other flags."""

    def said(words: Sequence[str]) -> list[str]:
        attempt = ("--overwrite", "--resume_from_checkpoint")
        return [word for word in words if word not in attempt and word.partition("=")[0] not in PLACE_FLAGS]

    return said(shlex.split(meta.get("command", ""))) == said(["run.py", *run.argv])


# --- one run ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its state, the seconds it took now (0: it was not begun), the reason of a failure."""

    state: str
    seconds: float = 0.0
    error: str = ""


def execute(run: Run, retry: bool, keep_model: bool) -> Outcome:
    """Carry out a run in this process, from its last checkpoint where it was interrupted.

    A finished run is left as it is, and so is a failed one unless ``retry``, which begins it anew; a run that another
    process is at comes back as running. Failures are marked in its run_meta.json and told in log.txt, not raised.
    """
    script = load_script("run.py")

    lock = FileLock(run.directory / LOCK, timeout=LOCK_SECONDS)
    try:
        run.directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        return Outcome(RUNNING)
    except OSError as error:
        return Outcome(FAILED, error=f"{run.directory} is not writable ({error.strerror})")
    began = time.monotonic()
    try:
        state = _left(run.directory)
        if state == FINISHED or (state == FAILED and not retry):
            return Outcome(state)
        argv = [*run.argv, "--overwrite"]
        meta = meta_of(run.directory)
        if meta and meta["status"] == DAMAGED:
            (run.directory / META).unlink()
        ours = meta is not None and _is_of(run, meta)
        if state == INTERRUPTED and ours and whole_checkpoints(run.directory, run.records):
            argv = [*run.argv, "--resume_from_checkpoint"]
        if not (meta and ours and _is_evaluated(run.directory, meta)):  # else it was killed before it was tidied
            write_json(run.directory / CONFIG, run.config)
            if run.selection:
                _choose(run)
            with _said_to(run.directory / LOG, "run.py", argv):
                script.main(argv)
        _tidy(run, script.TRAINING_FILES, keep_model)
        return Outcome(FINISHED, time.monotonic() - began)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        if reason == "SystemExit: 130":  # what run.py makes of Ctrl-C
            raise KeyboardInterrupt from None
        if reason.startswith(STOPPED):
            raise
        if isinstance(error, SystemExit):  # what it had to say stands in the log
            reason = _last_line(run.directory / LOG)
        with suppress(OSError):  # of a full disk, say
            mark_failed(run.directory, reason)
            write_json(run.directory / CONFIG, run.config)
        return Outcome(FAILED, time.monotonic() - began, reason)
    finally:
        lock.release()
        gc.collect()
        if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


def execute_task(item: tuple[Run, bool, bool]) -> Outcome:
    """``execute`` as a task of Slurm, in its own process: a child would die of Slurm's signals without a requeue."""
    setup_logging()
    return execute(*item)


def _choose(run: Run) -> None:
    """Choose what the run trains on, unless another run has; one that is at it is waited for."""
    select_subset = load_script("select_subset.py")

    directory = Path(run.selection[-1].partition("=")[2])
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / LOCK):
        meta = meta_of(directory)
        if meta is None or meta["status"] != "finished":
            with _said_to(run.directory / LOG, "select_subset.py", run.selection):
                select_subset.main(run.selection)


@contextmanager
def _said_to(log: Path, script: str, argv: Sequence[str]) -> Iterator[None]:
    """Send all that this process says to the end of a file, also what libraries in C say."""
    with log.open("a", encoding="utf-8") as file:
        command = shlex.join(["python", script, *argv])
        file.write(f"--- {datetime.now(UTC).isoformat(timespec='seconds')} {command}\n")
        file.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        before = [os.dup(1), os.dup(2)]
        streams, words = (sys.stdout, sys.stderr), sys.argv
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        sys.argv = [script, *argv]  # what run_meta.json records
        try:
            yield
        except Exception:
            traceback.print_exc(file=file)
            raise
        finally:
            file.flush()
            (sys.stdout, sys.stderr), sys.argv = streams, words
            for number, copy in enumerate(before, 1):
                os.dup2(copy, number)
                os.close(copy)


def _tidy(run: Run, artifacts: Sequence[str], keep_model: bool) -> None:
    """Leave the artifacts, and the model only if asked; its config.json makes room for the run's."""
    known = [*(each for each in artifacts if not each.startswith("checkpoint-")), META, LOG, ".*"]
    found = [path for path in run.directory.iterdir() if path.is_file() or path.name.startswith("checkpoint-")]
    for path in found:
        if any(fnmatch(path.name, pattern) for pattern in known) or _is_tidy(path.parent) and path.name == CONFIG:
            continue
        if keep_model:
            (run.directory / "model").mkdir(exist_ok=True)
            path.rename(run.directory / "model" / path.name)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    write_json(run.directory / CONFIG, run.config)


def _last_line(file: Path) -> str:
    lines = tail(file, 1)
    return lines[0] if lines else "it stopped without a word"


def tail(file: Path, lines: int = 20) -> list[str]:
    """The last lines of a text file that are not blank; none where there is no file."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    return [line for line in text.splitlines() if line.strip()][-lines:]


# --- many runs on this machine ------------------------------------------------------------------------------------


def visible_gpus() -> list[str]:
    """The GPUs that workers may share, as CUDA_VISIBLE_DEVICES would name them; found without importing torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    ask = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(ask, capture_output=True, text=True)
    return listed.stdout.split() if listed.returncode == 0 else []


class _Worker:
    """A process that imports torch once and takes run after run."""

    def __init__(self, number: int, environment: dict[str, str]):
        self.number = number
        self.run: Run | None = None
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # Ctrl-C reaches the whole group: the workers leave it to us. What libraries read from the environment they
        # read at their import, so it must stand there when the process starts.
        kept = dict(os.environ)
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ.update(environment)
        try:
            self.process = context.Process(target=_work, args=(theirs,))
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
            os.environ.clear()
            os.environ.update(kept)
        theirs.close()

    def begin(self, run: Run, retry: bool, keep_model: bool) -> None:
        self.run = run
        # Where it has died meanwhile, the end of the pipe tells, as for one that dies at work.
        with suppress(BrokenPipeError):
            self.pipe.send((run, retry, keep_model))

    def stop(self) -> None:
        if self.run is not None:
            self.process.terminate()
        self.pipe.close()  # an idle worker ends with its pipe
        self.process.join(STOP_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(pipe: connection.Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup_logging()
    is_first = True
    while True:
        try:
            run, retry, keep_model = pipe.recv()
        except EOFError:  # whoever started us has gone, or has nothing left
            return
        outcome = execute(run, retry, keep_model)
        if is_first:  # half a million objects of the libraries, which need not be looked through after every run
            gc.freeze()
            is_first = False
        try:
            pipe.send(outcome)
        except BrokenPipeError:
            return


def run_locally(
    runs: Sequence[Run],
    *,
    workers: int,
    retry: bool,
    keep_models: bool,
    stop_on_error: bool,
    done: Callable[[Run, Outcome], None],
) -> None:
    """Carry out ``runs`` in worker processes and tell ``done`` of each as it ends.

    A worker that dies costs its run, which is marked failed; another takes its place. A run that another process is at
    is waited for. With ``stop_on_error`` none is begun after a failure.
    """
    waiting, elsewhere = deque(runs), deque[Run]()
    gpus, cores = visible_gpus(), len(os.sched_getaffinity(0))
    crew: list[_Worker] = []
    stopped = False

    def hire(number: int) -> _Worker:
        environment = {"TOKENIZERS_PARALLELISM": "false"}
        if workers > 1:  # threads that share a core wait for each other
            environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // workers)))
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        return _Worker(number, environment)

    def finish(run: Run, outcome: Outcome) -> None:
        nonlocal stopped
        stopped = stopped or (stop_on_error and outcome.state == FAILED)
        done(run, outcome)

    try:
        while True:
            if stopped:
                waiting.clear()
                elsewhere.clear()
            if not waiting and elsewhere:
                run = elsewhere.popleft()
                state = state_of(run.directory)
                if state == RUNNING:
                    elsewhere.append(run)
                elif state in (FINISHED, FAILED):
                    finish(run, Outcome(state))
                else:
                    waiting.append(run)
            for worker in [each for each in crew if each.run is None]:
                if waiting:
                    worker.begin(waiting.popleft(), retry, keep_models)
            while waiting and len(crew) < workers:
                crew.append(hire(len(crew)))
                crew[-1].begin(waiting.popleft(), retry, keep_models)
            busy = {each.pipe: each for each in crew if each.run is not None}
            if not busy:
                if not (waiting or elsewhere):
                    return
                time.sleep(POLL_SECONDS)
                continue
            for pipe in connection.wait(list(busy), timeout=POLL_SECONDS if elsewhere else None):
                worker = busy[pipe]  # type: ignore[index]
                run, worker.run = worker.run, None  # type: ignore[assignment]
                assert run is not None
                try:
                    outcome = worker.pipe.recv()
                except (EOFError, ConnectionResetError):  # it died, and its end of the pipe with it
                    worker.stop()
                    outcome = _of_the_dead(run, worker)
                    crew[crew.index(worker)] = hire(worker.number)
                if outcome.state == RUNNING:
                    elsewhere.append(run)
                else:
                    finish(run, outcome)
    finally:
        for worker in crew:
            worker.stop()


def _of_the_dead(run: Run, worker: _Worker) -> Outcome:
    """What became of the run at which a worker died; it may have ended just before."""
    if state_of(run.directory) == FINISHED:
        return Outcome(FINISHED)
    reason = f"its process died: {_cause(worker.process.exitcode)}"
    with suppress(OSError):  # a full disk must not take the other runs along
        mark_failed(run.directory, reason)
    return Outcome(FAILED, error=reason)


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"exit status {exitcode}"
