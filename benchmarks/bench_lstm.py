"""Time an epoch over long stories: the two LSTM classifiers beside the small Transformer, batches taken in turn.

Reads nothing; generates --stories stories of demo:stories, cut to 200 tokens. Prints seconds of an epoch (forward,
backward, optimiser step) and its ratio to tiny, and writes bench_lstm.json.

    python benchmarks/bench_lstm.py
    python benchmarks/bench_lstm.py --stories 64 --output_dir /tmp/bench_lstm
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datamap.core.artifacts import stage  # noqa: E402
from datamap.core.errors import command_line  # noqa: E402
from datamap.core.files import write_json  # noqa: E402
from datamap.core.flags import DEFAULT_SEED, Parser, positive_int  # noqa: E402
from datamap.core.splits import Split, load_split  # noqa: E402
from datamap.tasks.registry import get_task  # noqa: E402

MODELS = ("tiny", "lstm", "lstm_reader")
TOKENS = 200
BATCH_SIZE = 32
WARM_UP = 3  # batches


class Runner:
    """One model and its batches; ``step`` trains on one of them and adds up the seconds."""

    def __init__(self, name: str, split: Split):
        import torch

        from datamap.training.models import load_model
        from datamap.training.trainer import PadToLongest

        torch.manual_seed(DEFAULT_SEED)
        self.model, tokenizer = load_model(name, split.task, split, TOKENS, {})
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        features = split.task.features(split.data, tokenizer, TOKENS)
        collate, names = PadToLongest(tokenizer, split.task), tokenizer.model_input_names
        rows = [features[row] for row in range(len(features))]
        batches = [collate(rows[first : first + BATCH_SIZE]) for first in range(0, len(rows), BATCH_SIZE)]
        self.batches = [{key: batch[key] for key in (*names, "labels")} for batch in batches]
        self.tokens = sum(int(batch["attention_mask"].sum()) for batch in self.batches)
        self.seconds = self.cpu_seconds = 0.0

    def step(self, number: int, counted: bool) -> None:
        began, cpu_began = time.perf_counter(), time.process_time()
        self.model(**self.batches[number]).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if counted:
            self.seconds += time.perf_counter() - began
            self.cpu_seconds += time.process_time() - cpu_began


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Seconds of an epoch over long stories: LSTM classifiers beside the small Transformer.")
    parser.add_argument("--stories", type=positive_int, default=2000, help="how many")
    parser.add_argument("--output_dir", default="./bench_lstm_output", help="where bench_lstm.json goes")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import datasets
    import torch

    from datamap.demo import builtin as demo_data

    split = load_split("demo:stories", "test", get_task("classification"))
    rows = demo_data.generate("stories", "test", num_examples=args.stories)
    task = split.task
    split.data = task.normalize(datasets.Dataset.from_list(rows), "demo:stories")
    runners = {name: Runner(name, split) for name in MODELS}
    number_of_batches = len(runners["tiny"].batches)
    for number in range(-min(WARM_UP, number_of_batches), number_of_batches):
        for runner in runners.values():  # in turn, so that what else the machine does hits all alike
            runner.step(number, counted=number >= 0)
    tiny = runners["tiny"]
    found: dict[str, Any] = {"stories": args.stories, "threads": torch.get_num_threads()}
    print(f"{'model':<12}{'tokens':>10}{'seconds':>10}{'of tiny':>9}{'CPU seconds':>13}{'of tiny':>9}")
    for name, runner in runners.items():
        ratio, cpu_ratio = runner.seconds / tiny.seconds, runner.cpu_seconds / tiny.cpu_seconds
        print(f"{name:<12}{runner.tokens:>10,}{runner.seconds:>10.1f}{ratio:>9.2f}{runner.cpu_seconds:>13.1f}"
              f"{cpu_ratio:>9.2f}")
        found[name] = {"tokens": runner.tokens, "seconds": runner.seconds, "cpu_seconds": runner.cpu_seconds,
                       "ratio": ratio, "cpu_ratio": cpu_ratio}
    with stage(args.output_dir, args, owns=("bench_lstm.json",)) as path:
        write_json(path / "bench_lstm.json", found)
    print(f"wrote bench_lstm.json to {args.output_dir}")


if __name__ == "__main__":
    main()
