"""Training speed of our loop against the same loop padded to 512, and what recording training dynamics costs.

Reads a question-answering dataset. Prints a table and writes bench_training.json; exit status 1 when a bound is
broken.

    python benchmarks/bench_training.py
    python benchmarks/bench_training.py --dataset demo:clinical --steps 4 --rounds 1
    python benchmarks/bench_training.py --model ./encoder --max_train_samples 500

Padding: the same trainer, model and rows, in batches drawn from an epoch as our sampler groups it by length; ours pads
each to its own longest, the other to 512, where it does not matter which rows share a batch. Recording: seconds inside
the recorder over seconds of training, and pairs of trainings with and without it; what comes once, after the last
epoch (metrics and data map), is shown apart. The two sides are taken in turn in one process, and ratios are taken
within pairs, so that a load on the machine falls on both.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from timing import Clock, Measure, bench_parser, in_turn, report

from datamap.core.artifacts import check_writable
from datamap.core.errors import UserError, command_line
from datamap.core.flags import DEFAULT_SEED, positive_int
from datamap.core.places import CHECKOUT
from datamap.core.splits import load_split
from datamap.tasks.registry import get_task

if TYPE_CHECKING:
    import datasets

PADDED_LENGTH, BATCH_SIZE = 512, 16
SPEED_BOUND = 4.0  # examples per second of ours over those of the padded loop
RECORDING_BOUND = 2.0  # % of the seconds of training that are spent in the recorder
WARM_UP_STEPS = 3


class Bench:
    """Trains copies of one model on given rows and times it."""

    def __init__(self, args: argparse.Namespace, scratch: str):
        import torch

        from datamap.training.models import load_model
        from datamap.training.trainer import PadToLongest

        self.scratch, self.no_cuda, self.task = Path(scratch), args.no_cuda, get_task("qa")
        split = load_split(args.dataset, "train", self.task, args.max_train_samples)
        data = split.data.select(np.flatnonzero(self.task.is_usable(split.data)))
        self.ids = data["id"][:]
        torch.manual_seed(DEFAULT_SEED)
        self.model, self.tokenizer = load_model(args.model, self.task, split, PADDED_LENGTH, {})
        self.features = self.task.features(data, self.tokenizer, PADDED_LENGTH)
        self.weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.collators = {
            False: PadToLongest(self.tokenizer, self.task, self.model),
            True: PadToLongest(self.tokenizer, self.task, self.model, PADDED_LENGTH),
        }

    def train(
        self, features: datasets.Dataset, *, in_order: bool = False, padded: bool = False, record: bool = False
    ) -> dict[str, float]:
        """One epoch from the same weights: seconds of the whole training, of its epoch alone (also of the processors),
        and inside the recorder."""
        import torch
        from transformers import PrinterCallback, TrainerCallback, TrainingArguments

        from datamap.cartography.recorder import CartographyCallback
        from datamap.training.trainer import CartographyTrainer

        epoch = Clock()

        class Epoch(TrainerCallback):
            def on_epoch_begin(self, *_: Any, **__: Any) -> None:
                wait_for_device()
                epoch.__enter__()

            def on_epoch_end(self, *_: Any, **__: Any) -> None:  # after the recorder's, which was added before
                wait_for_device()
                epoch.__exit__()

        class InOrder(CartographyTrainer):
            def _get_train_sampler(self, train_dataset: Any = None) -> Any:
                return torch.utils.data.SequentialSampler(train_dataset)

        self.model.load_state_dict(self.weights)
        dynamics = None
        if record:
            rows = np.asarray(features["example_index"][:])
            counts = np.asarray(features["counts"][:], dtype=bool)
            dynamics = CartographyCallback(self.ids, self.scratch / "cartography", np.where(counts, rows, -1))
        trainer = (InOrder if in_order else CartographyTrainer)(
            model=self.model,
            args=TrainingArguments(
                output_dir=str(self.scratch), num_train_epochs=1, per_device_train_batch_size=BATCH_SIZE,
                seed=DEFAULT_SEED, use_cpu=self.no_cuda, dataloader_pin_memory=torch.cuda.is_available(),
                save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False,
                label_names=["row_index"],
            ),
            train_dataset=features, processing_class=self.tokenizer, data_collator=self.collators[padded],
            task=self.task, dynamics=dynamics,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Epoch())
        with Clock() as whole:
            trainer.train()
            wait_for_device()
        return {"seconds": whole.seconds, "epoch_seconds": epoch.seconds, "epoch_cpu_seconds": epoch.cpu_seconds,
                "recorder": dynamics.seconds if dynamics else 0.0}

    def sample(self, steps: int, seed: int) -> datasets.Dataset:
        """The rows of ``steps`` batches, drawn at random from the batches of one epoch of our sampler."""
        from datamap.training.trainer import LengthGroupedSampler

        order = list(LengthGroupedSampler(self.features["length"][:], BATCH_SIZE, seed))
        whole = len(order) // BATCH_SIZE
        if whole < steps:
            raise UserError(f"{len(order):,} rows make {whole} batches of {BATCH_SIZE}, {steps} are needed: give more")
        chosen = np.random.default_rng(seed).choice(whole, steps, replace=False)
        return self.features.select(np.reshape(order[: whole * BATCH_SIZE], (whole, BATCH_SIZE))[chosen].ravel())


def wait_for_device() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_padding(bench: Bench, rounds: int, steps: int) -> list[Measure]:
    samples = [bench.sample(steps, DEFAULT_SEED + 1 + number) for number in range(rounds)]
    warm_up = bench.sample(WARM_UP_STEPS, DEFAULT_SEED)
    for padded in (False, True):
        bench.train(warm_up, in_order=True, padded=padded)

    def speed(number: int, padded: bool) -> float:
        rows = samples[number]
        return len(rows) / bench.train(rows, in_order=True, padded=padded)["epoch_seconds"]

    ours, other = in_turn(rounds, lambda number: speed(number, False), lambda number: speed(number, True))
    return [
        Measure("ours, examples per second", ours), Measure(f"padded to {PADDED_LENGTH}, examples per second", other),
        Measure("ratio", np.divide(ours, other).tolist(), " times", least=SPEED_BOUND),
    ]


def measure_recording(bench: Bench, rounds: int) -> list[Measure]:
    # The recorder counts rows from 0, so these are the first ones.
    few = min(WARM_UP_STEPS * BATCH_SIZE, len(bench.features))
    bench.train(bench.features.select(range(few)), record=True)
    sides = in_turn(rounds, lambda _: bench.train(bench.features, record=True), lambda _: bench.train(bench.features))
    on, off = ({name: np.array([each[name] for each in side]) for name in side[0]} for side in sides)
    at_the_end = on["seconds"] - on["epoch_seconds"] - (off["seconds"] - off["epoch_seconds"])
    return [
        Measure("recording, of the training", (100 * on["recorder"] / on["seconds"]).tolist(), " %",
                most=RECORDING_BOUND),
        Measure("seconds in the recorder", on["recorder"].tolist()),
        Measure("epoch with / without recording", (on["epoch_seconds"] / off["epoch_seconds"]).tolist()),
        Measure("the same, CPU time", (on["epoch_cpu_seconds"] / off["epoch_cpu_seconds"]).tolist()),
        Measure("metrics and data map, once", at_the_end.tolist(), " s"),
    ]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--dataset", default="../shared/data/policyqa", metavar="NAME",
                        help="as for run.py; a relative path is taken from the repository root")
    parser.add_argument("--max_train_samples", type=positive_int, metavar="N", help="first N rows")
    parser.add_argument("--model", default="tiny", help="tiny, or a directory with an encoder")
    parser.add_argument("--steps", type=positive_int, default=10, help="steps per side and round, padding")
    parser.add_argument("--rounds", type=positive_int, default=5, help="pairs of trainings, padding and recording")
    parser.add_switch("--no_cuda", help="train on the CPU even where there is a GPU")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if not args.dataset.startswith("demo:"):
        args.dataset = str(CHECKOUT / args.dataset)
    check_writable(args.output_dir)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args, scratch)
        measures = [*measure_padding(bench, args.rounds, args.steps), *measure_recording(bench, args.rounds)]
    lengths = np.asarray(bench.features["length"][:])
    print(f"{len(bench.ids):,} examples in {len(lengths):,} windows, median {np.median(lengths):.0f} tokens\n")
    report(args, __file__, {"windows": len(lengths), "median_tokens": float(np.median(lengths)),
                            "mean_tokens": float(lengths.mean())}, measures)


if __name__ == "__main__":
    main()
