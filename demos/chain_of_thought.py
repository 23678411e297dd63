"""Walk the chain-of-thought road from end to end on a CPU: generate, reflect, score, fine-tune, map, evaluate.

Reads the built-in pairs of demo:nli. Makes a tiny chat model, serves it on this machine (transformers serve), and
calls the project's own scripts, whose outputs it writes to --output_dir; says at the end what each of them found. The
tiny model knows nothing: the numbers show that the road can be walked, not where it leads. For real models, take the
commands that it prints.

    python demos/chain_of_thought.py --output_dir ./thoughts_demo
    python demos/chain_of_thought.py --num_pairs 20 --num_train_epochs 1 --output_dir /tmp/thoughts_demo
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package beside this folder, installed or not

from datamap.core.artifacts import artifact_file, check_writable, load_meta
from datamap.core.errors import UserError, command_line
from datamap.core.files import read_json, read_jsonl
from datamap.core.flags import DEFAULT_SEED, Parser, positive_int, seed_number
from datamap.core.places import script_file
from datamap.thoughts.data import is_right, read_reflections, read_thoughts
from datamap.thoughts.reader import CRITERIA

PAIRS = ["--dataset", "demo:nli", "--label_map", "entailment=1,neutral=0,contradiction=0"]
SERVING = ("fastapi", "uvicorn", "openai")  # what transformers serve needs
READY_SECONDS, END_SECONDS = 120, 10  # that the server may take to begin, and to end
# Settings of train_sft.py for a model that is 10,000 times smaller than the ones that its defaults are for.
TRAINING = ["--effective_batch_size", "8", "--learning_rate", "1e-2", "--warmup_steps", "2", "--logging_steps", "1",
            "--eval_generate_steps", "5", "--save_strategy", "no", "--max_new_tokens", "128"]

logger = logging.getLogger(__name__)


# --- commands ----------------------------------------------------------------------------------------------------


def run(*command: Any) -> None:
    """Run a script of this project and wait for it; its command is shown first. UserError where it fails."""
    words = [str(word) for word in command]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, str(script_file(words[0])), *words[1:]], check=False).returncode
    if code:
        raise UserError(f"{words[0]} ended with exit status {code}: what it said stands above; the same command of "
                        "this demo goes on from what is there")


@contextmanager
def served(model: Path, log: Path) -> Iterator[str]:
    """The address of a server of ``model`` on this machine, which ends with the block, however that ends."""
    missing = [name for name in SERVING if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"transformers serve needs {', '.join(missing)}: pip install -c constraints.txt -e "
                        "'.[serving]'")
    with socket.create_server(("127.0.0.1", 0)) as probe:  # a port that is free
        port = probe.getsockname()[1]
    arguments = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    print(f"\n$ transformers {shlex.join(arguments)} > {log} &", flush=True)
    # Nothing is to be fetched, and a server on this machine needs no key.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "transformers.cli.transformers", *arguments], stdout=output,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**environment, "HF_HUB_OFFLINE": "1"},
            start_new_session=True,  # Ctrl-C is for the scripts; the server answers until they are through
        )
    try:
        wait_until_ready(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Ask for the server's health until it answers; UserError where it ends first or takes too long."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know this machine
    end = time.monotonic() + READY_SECONDS
    while server.poll() is None and time.monotonic() < end:
        try:
            with direct.open(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):  # not yet
            time.sleep(0.2)
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
    state = f"was not ready after {READY_SECONDS} s" if server.poll() is None else f"ended ({server.returncode})"
    raise UserError(f"the server of the tiny model {state}; its last line in {log}: {last:.200}")


def tiny_model(output: Path, seed: int) -> Path:
    """The tiny chat model, made unless it is there; what another one answered is removed with it."""
    path = output / "tiny_chat_model"
    meta = load_meta(path) or {}
    if meta.get("status") == "finished" and meta.get("seed") == seed:
        print(f"the tiny chat model is in {path} already")
        return path
    shutil.rmtree(output / "thoughts_output", ignore_errors=True)
    run("demos/tiny_chat_model.py", "--output_dir", path, "--seed", seed)
    return path


# --- the road ----------------------------------------------------------------------------------------------------


def ask(args: argparse.Namespace, output: Path, base_url: str, model: Path) -> None:
    thoughts = output / "thoughts_output"
    server = ["--model", model, "--base_url", base_url, "--max_tokens", 256, "--workers", 2, "--output_dir", thoughts]
    run("generate_thoughts.py", "--mode", "generate", *PAIRS, "--split", "train", "--max_samples", args.num_pairs,
        *server)
    run("generate_thoughts.py", "--mode", "reflect", "--thoughts", thoughts / "thoughts.jsonl", *server)
    run("generate_thoughts.py", "--mode", "score", "--thoughts", thoughts, *server)


def learn(args: argparse.Namespace, output: Path, model: Path) -> None:
    thoughts, cartography = output / "thoughts_output", output / "cartography_output"
    reflections = ["--reflections", thoughts] if (thoughts / "reflections.jsonl").exists() else []
    run("train_sft.py", "--model", model, "--thoughts", thoughts, *reflections, *TRAINING, "--num_train_epochs",
        args.num_train_epochs, "--enable_cartography", "--cartography_output_dir", cartography, "--eval_dataset",
        *PAIRS[1:], "--eval_split", "validation", "--eval_samples", 16, "--seed", args.seed, "--no_cuda",
        "--output_dir", output / "sft_output", "--overwrite")
    run("analyze_cartography.py", "--cartography_dir", cartography, "--output_dir", output / "cartography_analysis")
    run("evaluate_thoughts.py", "--model", model, "--adapter", output / "sft_output", *PAIRS, "--split", "validation",
        "--max_samples", 2 * args.num_pairs, "--quantization", "4bit", "--max_new_tokens", 128, "--no_cuda",
        "--output_dir", output / "thoughts_evaluation", "--overwrite")


def findings(output: Path) -> Iterator[tuple[str, str]]:
    """What each stage found, as (name, text), read from its artifacts."""
    from datamap.cartography.categories import counted
    from datamap.cartography.maps import load_map

    directory = output / "thoughts_output"
    thoughts = read_thoughts(directory)
    failures = directory / "failures.jsonl"
    failed = len(read_jsonl(failures)) if failures.exists() else 0
    right = sum(is_right(chain) is True for chain in thoughts)
    yield "chains of thought", f"{len(thoughts):,}, of which {right:,} come to the true label; {failed:,} not readable"
    if (directory / "reflections.jsonl").exists():
        repaired = read_reflections(directory)
        good = sum(is_right(chain) is True for chain in repaired)
        yield "reflections", f"{len(repaired):,}, of which {good:,} come to the true label"
    report = read_json(artifact_file(directory, "score_report.json", "generate_thoughts.py --mode score"))
    means = {name: report[name]["all"] for name in CRITERIA}
    texts = [f"{name} {'-' if mean is None else format(mean, '.1f')}" for name, mean in means.items()]
    yield "scores", f"{', '.join(texts)} (means, 1 to 5)"
    rows = read_jsonl(artifact_file(output / "sft_output", "sft_data.jsonl", "train_sft.py"))
    rows = [row for row in rows if row["part"] == "train"]
    repaired_rows = sum(row["source"] == "reflection" for row in rows)
    yield "fine-tuning", f"{len(rows):,} chains, {repaired_rows:,} of them repaired"
    frame, cuts = load_map(output / "cartography_output")
    yield "data map", f"{len(frame):,} chains: {counted(frame, cuts)}"
    found = read_json(artifact_file(output / "thoughts_evaluation", "metrics.json", "evaluate_thoughts.py"))
    yield "evaluation", (
        f"{found['n']:,} unseen pairs: {found['parse_rate']:.1%} of the answers readable, accuracy "
        f"{found['accuracy']:.1%} ({found['accuracy_low']:.1%} to {found['accuracy_high']:.1%}; always the more "
        f"frequent label: {found['majority_baseline']:.1%})"
    )


# --- script ------------------------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Walk the chain-of-thought road from end to end, on a tiny model.")
    parser.add_argument("--output_dir", default="./thoughts_demo", help="every stage writes into a directory in it")
    parser.add_argument("--num_pairs", type=positive_int, default=40, metavar="N", help="pairs of demo:nli used")
    parser.add_argument("--num_train_epochs", type=positive_int, default=4, metavar="N", help="of fine-tuning")
    parser.add_argument("--seed", type=seed_number, default=DEFAULT_SEED, help="of the tiny model and of fine-tuning")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    output = Path(args.output_dir)
    check_writable(output)
    output.mkdir(parents=True, exist_ok=True)
    # The server must not outlive this process, also where that is told to end in another way than by Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Threads of such a small model wait for each other longer than they work.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    tiny = tiny_model(output, args.seed)
    with served(tiny, output / "server.log") as base_url:
        ask(args, output, base_url, tiny)
    learn(args, output, tiny)
    print(f"\nwhat was found, in {time.monotonic() - began:.0f} s:")
    for name, text in findings(output):
        print(f"  {name:<18} {text}")
    print("pictures:")
    for file in sorted(output.glob("*/*.png")):
        print(f"  {file}")
    print("a tiny model that knows nothing was fine-tuned: these numbers say nothing about chains of thought")
    print(f"wrote every stage's files to {output}")


if __name__ == "__main__":
    main()
