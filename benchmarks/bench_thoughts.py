"""Answers per second that generate_thoughts.py gets from a chat server that takes a fixed time for each.

Reads nothing; starts a server on this machine, in a process of its own, that answers after --latency seconds. Writes
bench_thoughts.json: the rate of each repeat beside workers / latency, which no client can pass. --check fails below
90 % of it.

    python benchmarks/bench_thoughts.py --check
    python benchmarks/bench_thoughts.py --pairs 80 --repeats 1 --output_dir /tmp/bench_thoughts
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datamap.core.artifacts import stage  # noqa: E402
from datamap.core.errors import UserError, command_line  # noqa: E402
from datamap.core.files import write_json, write_jsonl  # noqa: E402
from datamap.core.flags import Parser, number, positive_int  # noqa: E402

WANTED = 0.9  # of workers / latency
THOUGHT = {"thought_process": "Step 1: a. Step 2: b. Step 3: c.", "predicted_label": 1}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    latency = 0.0

    def do_POST(self) -> None:
        began = time.monotonic()
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": json.dumps(THOUGHT)}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        whole = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": choices,
                 "usage": usage}
        answer = json.dumps(whole).encode()
        time.sleep(max(0.0, self.latency - (time.monotonic() - began)))
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"
        self.wfile.write(head.encode() + answer)

    def log_message(self, *_: Any) -> None:
        pass


def serve(latency: float, address: Any) -> None:
    Handler.latency = latency
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address.send(f"http://127.0.0.1:{server.server_address[1]}/v1")
    server.serve_forever()


def rate(url: str, pairs: int, workers: int) -> float:
    """Answers per second, recorded ones, of one call for so many pairs; the library is loaded before."""
    import generate_thoughts
    from datamap.thoughts.chains import ask

    with tempfile.TemporaryDirectory() as directory:
        texts = [{"premise": f"Premise {number}.", "hypothesis": "So it is."} for number in range(pairs)]
        file = Path(directory) / "pairs.jsonl"
        write_jsonl(file, texts)
        argv = ["--mode", "generate", "--dataset", str(file), "--model", "m", "--base_url", url, "--workers",
                str(workers), "--output_dir", str(Path(directory) / "out")]
        args = generate_thoughts.parse_args(argv)
        questions = [(str(place), dict(pair), dict(pair)) for place, pair in enumerate(texts)]
        began = time.perf_counter()
        answers = ask(args, "generate", "thoughts.jsonl", questions)
        seconds = time.perf_counter() - began
    if len(answers.parsed) < pairs:
        raise RuntimeError(f"{len(answers.failures)} pairs without an answer")
    return pairs / seconds


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Answers per second from a chat server that takes a fixed time for each.")
    parser.add_argument("--pairs", type=positive_int, default=800, help="how many")
    parser.add_argument("--workers", type=positive_int, default=8, help="requests at a time")
    parser.add_argument("--latency", type=lambda text: number(text, 0.001, 60), default=0.2,
                        help="seconds that an answer takes")
    parser.add_argument("--repeats", type=positive_int, default=3)
    parser.add_switch("--check", help=f"fail unless the median is at least {WANTED:.0%} of workers / latency")
    parser.add_argument("--output_dir", default="./bench_thoughts_output", help="where bench_thoughts.json goes")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    import numpy as np

    args = parse_args(argv)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(args.latency, theirs), daemon=True)
    server.start()
    try:
        url = ours.recv()
        rate(url, args.workers, args.workers)  # loads the library
        rates = [rate(url, args.pairs, args.workers) for _ in range(args.repeats)]
    finally:
        server.terminate()
        server.join()
    most = args.workers / args.latency
    found = {"pairs": args.pairs, "workers": args.workers, "latency_seconds": args.latency, "rates_per_second": rates,
             "possible_per_second": most, "median_share": float(np.median(rates)) / most}
    with stage(args.output_dir, args, owns=("bench_thoughts.json",)) as path:
        write_json(path / "bench_thoughts.json", found)
    print(f"{', '.join(f'{one:.1f}' for one in rates)} answers per second, of {most:.1f} that are possible: "
          f"{found['median_share']:.1%}")
    print(f"wrote bench_thoughts.json to {args.output_dir}")
    if args.check and found["median_share"] < WANTED:
        raise UserError(f"{found['median_share']:.1%} is below {WANTED:.0%} of workers / latency")


if __name__ == "__main__":
    main()
