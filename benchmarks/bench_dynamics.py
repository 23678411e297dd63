"""Time and memory from recorded training dynamics to metrics, CSV, JSON and data map, and bytes per example and epoch.

Writes seeded synthetic question-answering dynamics as the recorder does, then reads them in a process of its own.
Prints a table, writes JSON with --output; exit status 1 when a bound is broken.

    python benchmarks/bench_dynamics.py --output bench_dynamics.json
    python benchmarks/bench_dynamics.py --examples 20000 --epochs 3
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamap.core.artifacts import check_writable  # noqa: E402
from datamap.core.errors import command_line  # noqa: E402
from datamap.core.files import write_json  # noqa: E402
from datamap.core.flags import DEFAULT_SEED, Parser, positive_int  # noqa: E402

SECONDS_BOUND = 60.0  # for 1,000,000 examples over 10 epochs, read -> metrics -> files
MEMORY_BOUND = 3e9  # bytes, peak resident memory of the reading process
BYTES_BOUND = 120.0  # per example and epoch in the dynamics files


def make_ids(count: int, rng: np.random.Generator) -> list[str]:
    """``count`` ids of 24 hex digits."""
    return [rng.bytes(12).hex() for _ in range(count)]


def make_epochs(count: int, epochs: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """All seven columns of question answering: examples of different difficulty whose margins grow with time."""
    difficulty = rng.normal(0.0, 2.0, size=count)
    for epoch in range(epochs):
        margins = 6.0 * (epoch + 1) / epochs - difficulty + rng.normal(0.0, 1.0, size=(2, count))
        p = 1 / (1 + np.exp(-margins))
        yield {
            "confidence": np.sqrt(p[0] * p[1]),
            "correct": (margins > 0).all(axis=0),
            "loss": -np.log(p).mean(axis=0),
            "aum": margins.mean(axis=0),
            "el2n": np.sqrt(2) * (1 - p).mean(axis=0),
            "start_confidence": p[0],
            "end_confidence": p[1],
        }


def write_epochs(directory: str, examples: int, epochs: int, seed: int) -> dict[str, float]:
    """Write the dynamics files; seconds of the writing alone, and the bytes written."""
    from datamap.cartography.dynamics import dynamics_file, write_dynamics

    rng = np.random.default_rng(seed)
    ids = make_ids(examples, rng)
    seconds, size = 0.0, 0
    for epoch, columns in enumerate(make_epochs(examples, epochs, rng), 1):
        columns = {name: values.astype(np.float32) if values.dtype.kind == "f" else values
                   for name, values in columns.items()}
        began = time.perf_counter()
        write_dynamics(directory, epoch, ids, columns)
        seconds += time.perf_counter() - began
        size += dynamics_file(directory, epoch).stat().st_size
    return {"seconds": seconds, "bytes": size}


def read_and_measure(directory: str) -> dict[str, Any]:
    """Dynamics -> metrics -> files, as the end of a training does; seconds per step and this process's peak memory."""
    from datamap.cartography import maps
    from datamap.cartography.dynamics import read_dynamics
    from datamap.cartography.metrics import compute_metrics

    steps: dict[str, float] = {}

    def timed(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                steps[step] = steps.get(step, 0.0) + time.perf_counter() - began

        return call

    def epochs() -> Iterator[dict[str, Any]]:
        """read_dynamics is lazy: what it takes is taken inside compute_metrics."""
        step = timed("read_dynamics", lambda: next(reading, None))
        reading = read_dynamics(directory)
        while (epoch := step()) is not None:
            yield epoch
            del epoch

    maps.write_csv = timed("write CSV", maps.write_csv)
    maps.plot_data_map = timed("data map picture", maps.plot_data_map)
    began, cpu_began = time.perf_counter(), time.process_time()
    metrics = compute_metrics(epochs())
    computed = time.perf_counter()
    maps.write_cartography(directory, metrics)
    total = time.perf_counter() - began
    return {
        "examples": len(metrics),
        "seconds": {
            "read_dynamics": steps["read_dynamics"],
            "compute_metrics": computed - began - steps["read_dynamics"],
            "write CSV": steps["write CSV"],
            "write JSON": began + total - computed - steps["write CSV"] - steps["data map picture"],
            "data map picture": steps["data map picture"],
            "total": total,
        },
        "cpu_seconds": time.process_time() - cpu_began,
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    # A process begins with the peak memory of the one that started it, so writing has a process of its own too.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--examples", type=positive_int, default=1_000_000, help="examples per epoch")
    parser.add_argument("--epochs", type=positive_int, default=10, help="epochs")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of the synthetic dynamics")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file for the result")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.output:
        check_writable(args.output.parent)
    from importlib import metadata

    with tempfile.TemporaryDirectory() as directory:
        written = in_own_process(write_epochs, directory, args.examples, args.epochs, args.seed)
        measured = in_own_process(read_and_measure, directory)
    values = args.examples * args.epochs
    measures = {
        "seconds from dynamics to files": (measured["seconds"]["total"], SECONDS_BOUND * max(1, values / 1e7)),
        "peak memory (bytes)": (measured["peak_memory"], MEMORY_BOUND * max(1, args.examples / 1e6)),
        "bytes per example and epoch": (written["bytes"] / values, BYTES_BOUND),
    }
    print(f"{args.examples:,} examples x {args.epochs} epochs, {written['bytes'] / 1e6:,.0f} MB of dynamics\n")
    print(f"{'write_dynamics (not in the bound)':<40}{written['seconds']:>10.2f} s")
    for step, seconds in measured["seconds"].items():
        print(f"{step:<40}{seconds:>10.2f} s")
    print(f"{'CPU time of that (lower: busy machine)':<40}{measured['cpu_seconds']:>10.2f} s\n")
    for name, (found, bound) in measures.items():
        print(f"{name:<40}{found:>18,.1f}  bound {bound:>15,.0f}  {'ok' if found <= bound else 'BROKEN'}")
    if args.output:
        write_json(
            args.output,
            {
                "examples": args.examples,
                "epochs": args.epochs,
                "seed": args.seed,
                "write_dynamics_seconds": written["seconds"],
                "seconds": measured["seconds"],
                "cpu_seconds": measured["cpu_seconds"],
                "peak_memory_bytes": measured["peak_memory"],
                "bytes_per_example_and_epoch": written["bytes"] / values,
                "bounds": {name: bound for name, (_, bound) in measures.items()},
                "cores": os.cpu_count(),
                "versions": {"python": platform.python_version(),
                             **{name: metadata.version(name) for name in ("numpy", "pandas", "pyarrow")}},
            },
        )
    if any(found > bound for found, bound in measures.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
