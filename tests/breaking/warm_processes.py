"""Command lines in processes that need not import anything: children of one that has imported it all.

The parent imports and never computes, so that no thread of a library is lost in a child. ``fresh=True`` starts a new
interpreter instead, for what must be so from its first moment.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pkgutil
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 240.0  # seconds that a command has
LIBRARIES = (  # what the scripts import when they need it
    "torch", "torch.distributed.tensor", "transformers.trainer", "transformers.models.electra.modeling_electra",
    "transformers.models.mistral.modeling_mistral", "trl.trainer.sft_trainer", "peft", "datasets", "accelerate",
    "bitsandbytes", "hdbscan", "sklearn.decomposition", "sklearn.linear_model", "sklearn.cluster", "scipy.stats",
    "sklearn.feature_extraction.text", "sklearn.neighbors", "pyarrow.csv", "pyarrow.parquet", "seaborn", "openai",
    "matplotlib.backends.backend_agg", "cleanlab", "textstat", "nltk", "statsmodels.stats.multitest",
    "safetensors.torch",
)


class Outcome(NamedTuple):
    """How a command ended: ``status`` below 0 for a signal, None where it did not end in time."""

    command: str
    status: int | None
    out: str
    err: str


class Started(NamedTuple):
    command: str
    pid: int
    files: Path
    end: float


def import_everything() -> None:
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]
    import datamap

    for module in pkgutil.walk_packages(datamap.__path__, "datamap."):
        importlib.import_module(module.name)
    for name in LIBRARIES:
        importlib.import_module(name)
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer, Trainer, TrainingArguments  # noqa: F401

    from datamap.core import artifacts, plots

    artifacts._git_state = lambda *apart_from: (None, None)  # the code may be edited meanwhile
    torch.set_num_threads(1)
    plots.DOTS_PER_INCH = 40  # nobody looks at them
    # Workers of a suite are children of a warm process, too.
    multiprocessing.get_context = lambda method=None: multiprocessing.context._concrete_contexts["fork"]  # type: ignore


def start(
    script: str, argv: list[str], directory: Path, *, environment: Mapping[str, str | None] | None = None,
    before: Callable[[], None] = lambda: None, fresh: bool = False,
) -> Started:
    """Begin ``python SCRIPT ARGV`` in ``directory``. ``before``: called in its process, with its streams in place."""
    files = Path(tempfile.mkdtemp(prefix="streams-", dir=os.environ["BREAKING_DIR"]))
    command = shlex.join(["python", script, *argv])
    pid = os.fork()
    if pid == 0:
        try:
            _carry_out(script, argv, directory, files, environment or {}, before, fresh)
        finally:
            os._exit(70)
    return Started(command, pid, files, time.monotonic() + PATIENCE)


def _carry_out(
    script: str, argv: list[str], directory: Path, files: Path, environment: Mapping[str, str | None],
    before: Callable[[], None], fresh: bool,
) -> None:
    os.setsid()
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_CREAT), (2, os.O_WRONLY | os.O_CREAT)):
        os.dup2(os.open(os.devnull if number == 0 else files / str(number), flags), number)
    (files / "tmp").mkdir()
    os.environ["TMPDIR"], tempfile.tempdir = str(files / "tmp"), str(files / "tmp")
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    os.chdir(directory)
    file = str(REPOSITORY / script)
    if fresh:
        os.environ["PYTHONPATH"] = str(REPOSITORY)
        before()
        os.execv(sys.executable, [sys.executable, file, *argv])
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", errors="backslashreplace" if number == 2 else "strict",  # noqa: SIM115
             buffering=1 if number == 2 else -1) for number, mode in ((0, "r"), (1, "w"), (2, "w")))
    before()
    sys.argv = [file, *argv]
    status: object = 0
    try:
        runpy.run_path(file, run_name="__main__")
    except SystemExit as stop:
        status = stop.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    try:
        sys.stdout.flush()
    except OSError as error:  # what the interpreter says when it ends
        print(f"Exception ignored: {error}", file=sys.stderr)
        status = 120
    os._exit(int(status))  # type: ignore[call-overload]


def end(started: Started) -> Outcome:
    """Wait for a command, at most until its time is over; its whole group goes with it."""
    status: int | None = None
    while (found := os.waitpid(started.pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > started.end:
            break
        time.sleep(0.01)
    else:
        status = os.waitstatus_to_exitcode(found[1])
    try:
        os.killpg(started.pid, signal.SIGKILL)  # it, where it has not ended, and what it has started
    except ProcessLookupError:
        pass
    if status is None:
        os.waitpid(started.pid, 0)
    said = [(started.files / str(number)).read_text(encoding="utf-8", errors="replace") for number in (1, 2)]
    subprocess.run(["rm", "-rf", str(started.files)], check=False)
    return Outcome(started.command, status, *said)
