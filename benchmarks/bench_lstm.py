"""Time an epoch over long stories: the two LSTM classifiers beside the small Transformer, batches taken in turn.

Reads nothing; generates --stories stories of demo:stories, cut to 200 tokens. Prints seconds of an epoch (forward,
backward, optimiser step) and its ratio to tiny, and writes bench_lstm.json.

    python benchmarks/bench_lstm.py
    python benchmarks/bench_lstm.py --stories 64 --output_dir /tmp/bench_lstm
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from timing import Clock, bench_parser, markdown, report

from datamap.core.errors import command_line
from datamap.core.flags import DEFAULT_SEED, positive_int
from datamap.core.splits import Split, load_split
from datamap.demo import builtin
from datamap.tasks.registry import get_task

MODELS = ("tiny", "lstm", "lstm_reader")
TOKENS = 200
BATCH_SIZE = 32
WARM_UP = 3  # batches


class Runner:
    """One model and its batches; ``step`` trains on one of them."""

    def __init__(self, name: str, split: Split):
        import torch

        from datamap.training.models import load_model
        from datamap.training.trainer import PadToLongest

        torch.manual_seed(DEFAULT_SEED)
        self.model, tokenizer = load_model(name, split.task, split, TOKENS, {})
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        features = split.task.features(split.data, tokenizer, TOKENS)
        collate, names = PadToLongest(tokenizer, split.task, self.model), tokenizer.model_input_names
        rows = [features[row] for row in range(len(features))]
        batches = [collate(rows[first : first + BATCH_SIZE]) for first in range(0, len(rows), BATCH_SIZE)]
        self.batches = [{key: batch[key] for key in (*names, "labels")} for batch in batches]
        self.tokens = sum(int(batch["attention_mask"].sum()) for batch in self.batches)
        self.clock, self.warm_up = Clock(), Clock()

    def step(self, number: int) -> None:
        with self.clock if number >= 0 else self.warm_up:
            self.model(**self.batches[number]).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--stories", type=positive_int, default=2000, help="how many")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import datasets

    split = load_split("demo:stories", "test", get_task("classification"))
    rows = builtin.generate("stories", "test", num_examples=args.stories)
    split.data = split.task.normalize(datasets.Dataset.from_list(rows), "demo:stories")
    runners = {name: Runner(name, split) for name in MODELS}
    batches = len(runners["tiny"].batches)
    for number in range(-min(WARM_UP, batches), batches):
        for runner in runners.values():  # in turn, so that what else the machine does hits all alike
            runner.step(number)
    tiny = runners["tiny"].clock
    found = {name: {"tokens": each.tokens, "seconds": each.clock.seconds, "ratio": each.clock.seconds / tiny.seconds,
                    "cpu_seconds": each.clock.cpu_seconds, "cpu_ratio": each.clock.cpu_seconds / tiny.cpu_seconds}
             for name, each in runners.items()}
    print(markdown([("model", "tokens", "seconds", "of tiny", "CPU seconds", "of tiny"), *(
        (name, f"{one['tokens']:,}", f"{one['seconds']:.1f}", f"{one['ratio']:.2f}", f"{one['cpu_seconds']:.1f}",
         f"{one['cpu_ratio']:.2f}") for name, one in found.items())]))
    report(args, __file__, found)


if __name__ == "__main__":
    main()
