"""Time and memory from recorded training dynamics to metrics, CSV, JSON and data map, and bytes per example and epoch.

Writes seeded synthetic question-answering dynamics as the recorder does, then reads them in a process of its own.
Prints a table and writes bench_dynamics.json; exit status 1 when a bound is broken. Linux only.

    python benchmarks/bench_dynamics.py
    python benchmarks/bench_dynamics.py --examples 20000 --epochs 3
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence

import numpy as np
from timing import Clock, Measure, bench_parser, in_own_process, memory, report

from datamap.core.artifacts import check_writable
from datamap.core.errors import command_line
from datamap.core.flags import DEFAULT_SEED, positive_int

SECONDS_BOUND = 60.0  # for 1,000,000 examples over 10 epochs, read -> metrics -> files
MEMORY_BOUND = 3.0  # GB, peak resident memory of the reading process
BYTES_BOUND = 120.0  # per example and epoch in the dynamics files


def write_epochs(directory: str, examples: int, epochs: int) -> int:
    """All seven columns of question answering: examples of different difficulty whose margins grow with time; returns
    the bytes written."""
    from datamap.cartography.dynamics import dynamics_file, write_dynamics

    rng = np.random.default_rng(DEFAULT_SEED)
    ids = [rng.bytes(12).hex() for _ in range(examples)]
    difficulty = rng.normal(0.0, 2.0, size=examples)
    for epoch in range(1, epochs + 1):
        margins = (6.0 * epoch / epochs - difficulty + rng.normal(0.0, 1.0, size=(2, examples))).astype(np.float32)
        p = 1 / (1 + np.exp(-margins))
        write_dynamics(directory, epoch, ids, {
            "confidence": np.sqrt(p[0] * p[1]), "correct": margins.min(axis=0) > 0, "loss": -np.log(p).mean(axis=0),
            "aum": margins.mean(axis=0), "el2n": np.float32(2**0.5) * (1 - p).mean(axis=0),
            "start_confidence": p[0], "end_confidence": p[1],
        })
    return sum(dynamics_file(directory, epoch).stat().st_size for epoch in range(1, epochs + 1))


def read_and_measure(directory: str) -> dict[str, float]:
    """Dynamics -> metrics -> files, as the end of a training does."""
    from datamap.cartography.dynamics import read_dynamics
    from datamap.cartography.maps import write_cartography
    from datamap.cartography.metrics import compute_metrics

    with Clock() as computing:
        metrics = compute_metrics(read_dynamics(directory))
    with Clock() as writing:
        write_cartography(directory, metrics)
    return {"computing": computing.seconds, "writing": writing.seconds,
            "cpu": computing.cpu_seconds + writing.cpu_seconds, "gb": memory("VmHWM") / 1e9}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--examples", type=positive_int, default=1_000_000, help="examples per epoch")
    parser.add_argument("--epochs", type=positive_int, default=10, help="epochs")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_writable(args.output_dir)
    # A process begins with the peak memory of the one that started it, so writing has a process of its own too.
    with tempfile.TemporaryDirectory() as directory:
        size = in_own_process(write_epochs, directory, args.examples, args.epochs)
        found = in_own_process(read_and_measure, directory)
    values, seconds = args.examples * args.epochs, found["computing"] + found["writing"]
    report(args, __file__, {}, [
        Measure("dynamics to metrics", [found["computing"]], " s"),
        Measure("metrics to CSV, JSON and picture", [found["writing"]], " s"),
        Measure("both", [seconds], " s", most=SECONDS_BOUND * max(1, values / 1e7)),
        Measure("CPU time of both (lower: busy machine)", [found["cpu"]], " s"),
        Measure("peak memory", [found["gb"]], " GB", most=MEMORY_BOUND * max(1, args.examples / 1e6)),
        Measure("bytes per example and epoch", [size / values], most=BYTES_BOUND),
    ])


if __name__ == "__main__":
    main()
