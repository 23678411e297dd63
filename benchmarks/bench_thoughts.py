"""Answers per second that generate_thoughts.py gets from a chat server that takes a fixed time for each.

Reads nothing; starts a server on this machine, in a process of its own, that answers after 200 ms and is leaner than
that of the tests. Writes bench_thoughts.json: the rate of each repeat beside workers / latency, which no client can
pass. --check fails below 90 % of it.

    python benchmarks/bench_thoughts.py --check
    python benchmarks/bench_thoughts.py --pairs 80 --repeats 1 --output_dir /tmp/bench_thoughts
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from timing import Measure, bench_parser, report, timed

from datamap.core.errors import command_line
from datamap.core.files import write_jsonl
from datamap.core.flags import positive_int

WANTED = 0.9  # of workers / latency
WORKERS, LATENCY = 8, 0.2  # requests at a time; seconds that an answer takes
THOUGHT = {"thought_process": "Step 1: a. Step 2: b. Step 3: c.", "predicted_label": 1}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        began = time.monotonic()
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": json.dumps(THOUGHT)}
        answer = json.dumps({
            "id": "c", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        }).encode()
        time.sleep(max(0.0, LATENCY - (time.monotonic() - began)))
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"
        self.wfile.write(head.encode() + answer)

    def log_message(self, *_: Any) -> None:
        pass


def serve(address: Any) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address.send(f"http://127.0.0.1:{server.server_address[1]}/v1")
    server.serve_forever()


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
