"""The runs of a suite, carried out: one in this process, many in worker processes of this machine.

A worker is a warm interpreter that carries out command lines: it imports the libraries once, for all the runs that it
takes. What that saves is measured by benchmarks/rows/suites.py.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from datamap.core.artifacts import META, mark_failed
from datamap.core.errors import setup_logging
from datamap.core.files import write_json
from datamap.core.locks import LOCK, Locked, lock
from datamap.core.places import script_file
from datamap.suites.runs import (
    CONFIG,
    DAMAGED,
    FAILED,
    FINISHED,
    INTERRUPTED,
    LOG,
    RUNNING,
    Run,
    is_evaluated,
    is_of,
    is_tidy,
    last_lines,
    meta_of,
    state_of,
    state_unlocked,
)
from datamap.training.arguments import TRAINING_FILES
from datamap.training.checkpoints import has_whole_checkpoint
from datamap.training.prerequisites import visible_gpus

POLL_SECONDS = 1.0  # between two looks at a run that another process carries out
STOP_SECONDS = 10.0  # that a worker has to go after it was terminated

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
    process is at comes back as running. Failures are marked in its run_meta.json and written to log.txt, not raised.
    """
    held = ExitStack()
    try:
        held.enter_context(lock(run.directory / LOCK))
    except Locked:
        return Outcome(RUNNING)
    except OSError as error:
        return Outcome(FAILED, error=f"{run.directory} is not writable ({error.strerror})")
    began = time.monotonic()
    try:
        state = state_unlocked(run.directory)
        if state == FINISHED or (state == FAILED and not retry):
            return Outcome(state)
        _train_and_evaluate(run, state)
        _tidy(run, keep_model)
        return Outcome(FINISHED, time.monotonic() - began)
    except SystemExit as stop:
        if stop.code == 130:  # what a script makes of Ctrl-C
            raise KeyboardInterrupt from None
        if stop.code == -1:  # Slurm's time limit, by way of submitit
            raise
        reason = "".join(last_lines(run.directory / LOG, 1)) or "it stopped without a word"
        return Outcome(FAILED, time.monotonic() - began, _mark_failed(run, reason))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return Outcome(FAILED, time.monotonic() - began, _mark_failed(run, reason))
    finally:
        held.close()
        free_memory()


def _mark_failed(run: Run, reason: str) -> str:
    with suppress(OSError):  # a full disk, say, must not take the other runs along
        mark_failed(run.directory, reason)
        write_json(run.directory / CONFIG, run.config)
    return reason


def execute_task(item: tuple[Run, bool, bool]) -> Outcome:
    """``execute`` as a task of Slurm, in its own process: a child would die of Slurm's signals without a requeue."""
    setup_logging()
    return execute(*item)


def _train_and_evaluate(run: Run, state: str) -> None:
    meta = meta_of(run.directory)
    if meta is not None and meta["status"] == DAMAGED:
        (run.directory / META).unlink()
    ours = meta is not None and is_of(run, meta)
    if meta is not None and ours and is_evaluated(run.directory, meta):  # it was killed before it was tidied
        return
    write_json(run.directory / CONFIG, run.config)
    if run.selection:
        _choose(run)
    goes_on = state == INTERRUPTED and ours and has_whole_checkpoint(run.directory, run.records)
    carry_out("run.py", [*run.argv, "--resume_from_checkpoint" if goes_on else "--overwrite"], run.directory / LOG)


def _choose(run: Run) -> None:
    """Choose what the run trains on, unless another run has; one that is at it is waited for."""
    directory = Path(run.selection[-1].partition("=")[2])
    with lock(directory / LOCK, wait=True):
        meta = meta_of(directory)
        if meta is None or meta["status"] != "finished":
            carry_out("select_subset.py", run.selection, run.directory / LOG)


def carry_out(script: str, argv: Sequence[str], log: Path) -> None:
    """Do in this process what ``python SCRIPT ARGV`` does; all that it says goes to the end of ``log``.

    Raises what the script raises, SystemExit included; the traceback of an exception stands in the log.
    """
    with _output_to(log):
        print(f"--- {datetime.now(UTC).isoformat(timespec='seconds')} {shlex.join(['python', script, *argv])}")
        before, sys.argv = sys.argv, [script, *argv]
        try:
            runpy.run_path(str(script_file(script)), run_name="__main__")
        except Exception:
            traceback.print_exc()
            raise
        finally:
            sys.argv = before


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Python's streams, and the descriptors below them: what libraries in C say, and the last words of a crash."""
    with log.open("a", encoding="utf-8", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        with ExitStack() as restored:
            for descriptor in (1, 2):
                copy = os.dup(descriptor)
                restored.callback(os.close, copy)
                restored.callback(os.dup2, copy, descriptor)
                os.dup2(file.fileno(), descriptor)
            yield


def _tidy(run: Run, keep_model: bool) -> None:
    """Leave the artifacts, and the model only if asked; its config.json makes room for the run's."""
    known = [*(each for each in TRAINING_FILES if not each.startswith("checkpoint-")), META, LOG, ".*"]
    found = [path for path in run.directory.iterdir() if path.is_file() or path.name.startswith("checkpoint-")]
    for path in found:
        if any(fnmatch(path.name, pattern) for pattern in known) or is_tidy(path.parent) and path.name == CONFIG:
            continue
        if keep_model:
            (run.directory / "model").mkdir(exist_ok=True)
            path.rename(run.directory / "model" / path.name)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    write_json(run.directory / CONFIG, run.config)


def free_memory() -> None:
    """Of the model, which the Trainer's cycles hold, for the next run and for others on the same GPU."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def freeze_libraries(imported: int) -> int:
    """Take what the libraries made out of garbage collection, if by now more than ``imported`` modules are; returns
    how many are.

    Each collection would look through it, and a run asks for two. What is frozen is never collected, so this is for
    when a run has ended and ``free_memory`` has been called: of the run nothing is left then but splits and features
    for the next ones, which hold no cycles and are freed without the collector.
    """
    if len(sys.modules) > imported:
        gc.freeze()
    return len(sys.modules)


# --- many runs on this machine ------------------------------------------------------------------------------------


def worker_environment(number: int, workers: int, gpus: Sequence[str]) -> dict[str, str]:
    """What the libraries of worker ``number`` of ``workers`` read from their environment."""
    environment = {"TOKENIZERS_PARALLELISM": "false"}
    if workers > 1:  # threads that share a core wait for each other
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // workers)))
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return environment


class _Worker:
    """A process that takes run after run, started anew where it has died. ``run``: what it is at, None while idle."""

    def __init__(self, environment: dict[str, str]):
        self.environment = environment
        self.run: Run | None = None
        self._start()

    def begin(self, run: Run, retry: bool, keep_model: bool) -> None:
        self.run = run
        if self.pipe.closed:
            self._start()
        # Where it has died meanwhile, the end of the pipe tells, as for one that dies at work.
        with suppress(BrokenPipeError):
            self.pipe.send((run, retry, keep_model))

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs,))
        # Ctrl-C reaches the whole group: the workers leave it to us. What libraries read from the environment they
        # read at their import. So both must be set when the process starts.
        before, handler = dict(os.environ), signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ.update(self.environment)
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
            os.environ.clear()
            os.environ.update(before)
        theirs.close()

    def end(self) -> tuple[Run, Outcome]:
        """The run that it was at, and what became of it, once the pipe has an answer or is closed."""
        run, self.run = self.run, None
        assert run is not None
        try:
            return run, self.pipe.recv()
        except (EOFError, ConnectionResetError):  # it died, and its end of the pipe with it
            return run, _outcome_of_death(run, self.stop())

    def stop(self) -> int | None:
        """Its exit status, below 0 for a signal."""
        if self.run is not None:
            self.process.terminate()
        self.pipe.close()  # an idle worker ends with its pipe
        self.process.join(STOP_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def _work(pipe: connection.Connection) -> None:
    setup_logging()
    imported = 0
    with suppress(EOFError, BrokenPipeError):  # whoever started us has gone, or has nothing left
        while True:
            pipe.send(execute(*pipe.recv()))
            imported = freeze_libraries(imported)


def _outcome_of_death(run: Run, status: int | None) -> Outcome:
    """What became of a run whose worker died; it may have ended just before."""
    if state_of(run.directory) == FINISHED:
        return Outcome(FINISHED)
    cause = f"exit status {status}"
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        cause = f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return Outcome(FAILED, error=_mark_failed(run, f"its process died: {cause}"))


def run_locally(
    runs: Sequence[Run], *, workers: int, retry: bool, keep_models: bool, stop_on_error: bool
) -> Iterator[tuple[Run, Outcome]]:
    """Carry out ``runs`` in worker processes; gives each with its outcome as it ends.

    A worker that dies costs its run, which is marked failed; another takes its place. A run that another process is at
    is waited for. With ``stop_on_error`` none is begun after a failure.
    """
    waiting, elsewhere = deque(runs), deque[Run]()
    gpus, number = visible_gpus(), min(workers, len(runs))
    pool = [_Worker(worker_environment(place, workers, gpus)) for place in range(number)]
    stopped = False
    try:
        while True:
            if stopped:
                waiting.clear()
                elsewhere.clear()
            ended: list[tuple[Run, Outcome]] = []
            if elsewhere and not waiting:
                run = elsewhere.popleft()
                state = state_of(run.directory)
                if state in (FINISHED, FAILED):
                    ended.append((run, Outcome(state)))
                else:
                    (elsewhere if state == RUNNING else waiting).append(run)
            for worker in pool:
                if waiting and worker.run is None:
                    worker.begin(waiting.popleft(), retry, keep_models)
            busy = {worker.pipe: worker for worker in pool if worker.run is not None}
            if not (busy or elsewhere or ended):
                return
            seconds = 0 if ended else POLL_SECONDS if elsewhere else None
            if not busy:
                time.sleep(seconds or 0)
            for pipe in connection.wait(list(busy), seconds) if busy else ():
                run, outcome = busy[pipe].end()  # type: ignore[index]
                if outcome.state == RUNNING:
                    elsewhere.append(run)
                else:
                    ended.append((run, outcome))
            stopped = stopped or (stop_on_error and any(outcome.state == FAILED for _, outcome in ended))
            yield from ended
    finally:
        for worker in pool:
            worker.stop()
