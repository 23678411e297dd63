"""Answers per second that generate_thoughts.py gets from a chat server that takes a fixed time for each.

Reads nothing; starts the tests' chat server on this machine, in a process of its own, that answers after 200 ms.
Writes bench_thoughts.json: the rate of each repeat beside workers / latency, which no client can pass. --check fails
below 90 % of it.

    python benchmarks/bench_thoughts.py --check
    python benchmarks/bench_thoughts.py --pairs 80 --repeats 1 --output_dir /tmp/bench_thoughts
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timing import Measure, bench_parser, report, timed

from datamap.core.errors import command_line
from datamap.core.files import write_jsonl
from datamap.core.flags import positive_int
from datamap.core.places import CHECKOUT

WANTED = 0.9  # of workers / latency
WORKERS, LATENCY = 8, 0.2  # requests at a time; seconds that an answer takes
THOUGHT = {"thought_process": "Step 1: a. Step 2: b. Step 3: c.", "predicted_label": 1}


def serve(address: Any) -> None:
    sys.path.append(str(CHECKOUT / "tests"))
    from chat_server import chat_server

    with chat_server(lambda _: json.dumps(THOUGHT), delay=LATENCY) as server:
        address.send(server.url)
        threading.Event().wait()  # until this process is ended


def rate(url: str, pairs: int) -> float:
    """Answers per second, recorded ones, of one call for so many pairs."""
    import generate_thoughts
    from datamap.thoughts.chains import ask

    with tempfile.TemporaryDirectory() as directory:
        texts = [{"premise": f"Premise {number}.", "hypothesis": "So it is."} for number in range(pairs)]
        file = Path(directory) / "pairs.jsonl"
        write_jsonl(file, texts)
        args = generate_thoughts.parse_args([
            "--mode", "generate", "--dataset", str(file), "--model", "m", "--base_url", url, "--workers", str(WORKERS),
            "--output_dir", str(Path(directory) / "out"),
        ])
        questions = [(str(place), dict(pair), dict(pair)) for place, pair in enumerate(texts)]
        seconds, answers = timed(ask, args, "generate", questions)
    if len(answers.parsed) < pairs:
        raise RuntimeError(f"{len(answers.failures)} pairs without an answer")
    return pairs / seconds


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--pairs", type=positive_int, default=800, help="how many")
    parser.add_argument("--repeats", type=positive_int, default=3, help="calls for so many")
    parser.add_switch("--check", help=f"fail unless the median is at least {WANTED:.0%} of workers / latency")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        url = ours.recv()
        rate(url, WORKERS)  # loads the library
        rates = [rate(url, args.pairs) for _ in range(args.repeats)]
    finally:
        server.terminate()
        server.join()
    possible = WORKERS / LATENCY
    report(args, __file__, {"pairs": args.pairs, "workers": WORKERS, "latency_seconds": LATENCY}, [
        Measure(f"answers per second, {possible:g} are possible", rates, least=WANTED * possible)
    ], enforce=args.check)


if __name__ == "__main__":
    main()
