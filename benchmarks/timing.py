"""What the benchmarks share: clocks, sides taken in turn, bounds, and the one form in which figures are left.

Importing it puts the repository on the path: a benchmark runs from any directory, installed or not.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamap.core.artifacts import stage
from datamap.core.files import write_json
from datamap.core.flags import Parser

T = TypeVar("T")


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
