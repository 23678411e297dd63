"""Training speed of our loop against the same loop padded to 512, and what recording training dynamics costs.

Reads a question-answering dataset. Prints a table, writes JSON with --output; exit status 1 when a bound is broken.

    python benchmarks/bench_training.py --output bench_training.json
    python benchmarks/bench_training.py --dataset demo:clinical --steps 4 --rounds 1
    python benchmarks/bench_training.py --model ./encoder --max_train_samples 500

Padding: the same trainer, model and rows, in batches drawn from an epoch as our sampler groups it by length; ours pads
each to its own longest, the other to 512, where it does not matter which rows share a batch. Recording: seconds inside
the recorder over seconds of training, and pairs of trainings with and without it; what comes once, after the last
epoch (metrics and data map), is shown apart. Pairs are interleaved in one process, their order alternates, and ratios
are taken within pairs, so that a load on the machine falls on both sides.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from datamap.core.artifacts import check_writable  # noqa: E402
from datamap.core.errors import UserError, command_line  # noqa: E402
from datamap.core.files import write_json  # noqa: E402
from datamap.core.flags import DEFAULT_SEED, Parser, positive_int  # noqa: E402
from datamap.core.splits import load_split  # noqa: E402
from datamap.tasks.registry import get_task  # noqa: E402

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PADDED_LENGTH = 512
SPEED_BOUND = 4.0  # examples per second of ours over those of the padded loop
RECORDING_BOUND = 0.02  # seconds in the recorder over seconds of training
WARM_UP_STEPS = 3


def load_model(name: str, data: datasets.Dataset) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """``tiny``, or a directory with an encoder; a question-answering head that is missing gets random weights."""
    import torch
    from transformers import AutoTokenizer

    from datamap.training import tiny_model

    task = get_task("qa")
    torch.manual_seed(DEFAULT_SEED)
    if name == "tiny":
        texts = (text for column in task.text_columns for text in data[column][:])
        tokenizer = tiny_model.train_tokenizer(texts, PADDED_LENGTH)
        return tiny_model.build_model(tokenizer, task.model_class, PADDED_LENGTH), tokenizer
    if not Path(name).is_dir():
        raise UserError(f"--model {name}: no such directory; give tiny or a directory with an encoder")
    return task.model_class.from_pretrained(name), AutoTokenizer.from_pretrained(name)


class Bench:
    """Trains copies of one model on given rows and times it."""

    def __init__(self, args: argparse.Namespace, scratch: str):
        from datamap.training.trainer import PadToLongest

        self.args, self.scratch = args, Path(scratch)
        self.task = get_task("qa")
        self.split = load_split(args.dataset, args.split, self.task, args.max_train_samples)
        data = self.split.data.select(np.flatnonzero(self.task.is_usable(self.split.data)))
        self.ids = data["id"][:]
        self.model, self.tokenizer = load_model(args.model, data)
        self.features = self.task.features(data, self.tokenizer, PADDED_LENGTH)
        self.weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.collators = {
            False: PadToLongest(self.tokenizer, self.task),
            True: PadToLongest(self.tokenizer, self.task, PADDED_LENGTH),
        }

    def train(
        self, features: datasets.Dataset, *, in_order: bool = False, padded: bool = False, record: bool = False,
        epochs: int = 1,
    ) -> dict[str, float]:
        """One training from the same weights: seconds of the whole, of its epochs alone (also of the processors),
        and inside the recorder."""
        import torch
        from transformers import PrinterCallback, TrainerCallback, TrainingArguments

        from datamap.cartography.recorder import CartographyCallback
        from datamap.training.trainer import CartographyTrainer

        class Epochs(TrainerCallback):
            seconds = cpu_seconds = 0.0

            def on_epoch_begin(self, *_: Any, **__: Any) -> None:
                self.began, self.cpu_began = now(), time.process_time()

            def on_epoch_end(self, *_: Any, **__: Any) -> None:  # after the recorder's, which was added before
                self.seconds += now() - self.began
                self.cpu_seconds += time.process_time() - self.cpu_began

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
                output_dir=str(self.scratch), num_train_epochs=epochs,
                per_device_train_batch_size=self.args.batch_size, seed=self.args.seed, use_cpu=self.args.no_cuda,
                dataloader_pin_memory=torch.cuda.is_available(), save_strategy="no", logging_strategy="no",
                disable_tqdm=True, remove_unused_columns=False, label_names=["row_index"],
            ),
            train_dataset=features, processing_class=self.tokenizer,
            data_collator=self.collators[padded], task=self.task, dynamics=dynamics,
        )
        trainer.remove_callback(PrinterCallback)
        clock = Epochs()
        trainer.add_callback(clock)
        began = now()
        trainer.train()
        return {
            "seconds": now() - began,
            "epoch_seconds": clock.seconds,
            "epoch_cpu_seconds": clock.cpu_seconds,
            "recorder": dynamics.seconds if dynamics else 0.0,
        }

    def sample(self, steps: int, seed: int) -> datasets.Dataset:
        """The rows of ``steps`` batches, drawn at random from the batches of one epoch of our sampler."""
        from datamap.training.trainer import LengthGroupedSampler

        size = self.args.batch_size
        order = list(LengthGroupedSampler(self.features["length"][:], size, seed))
        whole = len(order) // size
        if whole < steps:
            raise UserError(f"{len(order):,} rows make {whole} batches of {size}, {steps} are needed: give more")
        chosen = np.random.default_rng(seed).choice(whole, steps, replace=False)
        return self.features.select(np.concatenate([order[batch * size : (batch + 1) * size] for batch in chosen]))


def now() -> float:
    """Seconds, after the device has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(rounds: int, one: Callable[[int], Any], other: Callable[[int], Any]) -> list[tuple[Any, Any]]:
    """A pair of results for each round, the functions called with its number; who begins alternates."""
    pairs = []
    for number in range(rounds):
        if number % 2:
            second = other(number)
            pairs.append((one(number), second))
        else:
            first = one(number)
            pairs.append((first, other(number)))
    return pairs


def measure_padding(bench: Bench, rounds: int, steps: int, seed: int) -> dict[str, Any]:
    warm_up, *samples = [bench.sample(WARM_UP_STEPS if number == 0 else steps, seed + number)
                         for number in range(rounds + 1)]
    for padded in (False, True):
        bench.train(warm_up, in_order=True, padded=padded)
    pairs = interleaved(
        rounds,
        lambda number: bench.train(samples[number], in_order=True)["epoch_seconds"],
        lambda number: bench.train(samples[number], in_order=True, padded=True)["epoch_seconds"],
    )
    ours, other = (len(samples[0]) / np.array(seconds) for seconds in zip(*pairs, strict=True))
    return {
        "rows_per_round": len(samples[0]),
        "ours_examples_per_second": float(np.median(ours)),
        "padded_examples_per_second": float(np.median(other)),
        "ratios": (ours / other).tolist(),
        "ratio": float(np.median(ours / other)),
    }


def measure_recording(bench: Bench, rounds: int, epochs: int) -> dict[str, Any]:
    # The recorder counts rows from 0, so these are the first ones.
    few = min(WARM_UP_STEPS * bench.args.batch_size, len(bench.features))
    bench.train(bench.features.select(range(few)), record=True)
    pairs = interleaved(
        rounds,
        lambda _: bench.train(bench.features, record=True, epochs=epochs),
        lambda _: bench.train(bench.features, epochs=epochs),
    )
    def each(value: Callable[[dict[str, float], dict[str, float]], float]) -> list[float]:
        return [value(on, off) for on, off in pairs]

    measured = {
        "share": each(lambda on, _: on["recorder"] / on["seconds"]),
        "recorder_seconds": each(lambda on, _: on["recorder"]),
        "training_seconds": each(lambda on, _: on["seconds"]),
        "on_off_ratio": each(lambda on, off: on["epoch_seconds"] / off["epoch_seconds"]),
        "on_off_cpu_ratio": each(lambda on, off: on["epoch_cpu_seconds"] / off["epoch_cpu_seconds"]),
        "seconds_at_the_end": each(
            lambda on, off: on["seconds"] - on["epoch_seconds"] - (off["seconds"] - off["epoch_seconds"])
        ),
    }
    medians = {name: float(np.median(values)) for name, values in measured.items()}
    return {"epochs": epochs, **medians, "rounds": measured}


def spread(values: Sequence[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f} in {len(values)} rounds"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset", default="../shared/data/policyqa", metavar="NAME",
                        help="as for run.py; a relative path is taken from the repository root")
    parser.add_argument("--split", default="train", help="split to train on")
    parser.add_argument("--max_train_samples", type=positive_int, metavar="N", help="first N rows")
    parser.add_argument("--model", default="tiny", help="tiny, or a directory with an encoder")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="rows per step")
    parser.add_argument("--steps", type=positive_int, default=10, help="steps per side and round, padding")
    parser.add_argument("--rounds", type=positive_int, default=5, help="pairs of trainings, padding and recording")
    parser.add_argument("--recording_epochs", type=positive_int, default=1, help="epochs over the split, recording")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of samples and training")
    parser.add_switch("--no_cuda", help="train on the CPU even where there is a GPU")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file for the result")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    local = REPOSITORY / args.dataset
    if not args.dataset.startswith("demo:"):
        if not local.exists():
            raise UserError(f"--dataset {args.dataset}: no such file or directory; give one, or demo:clinical")
        args.dataset = str(local)
    if args.output:
        check_writable(args.output.parent)

    from importlib import metadata

    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args, scratch)
        padding = measure_padding(bench, args.rounds, args.steps, args.seed)
        recording = measure_recording(bench, args.rounds, args.recording_epochs)
    lengths = np.asarray(bench.features["length"][:])
    on_gpu = torch.cuda.is_available() and not args.no_cuda
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    share = f"{recording['recorder_seconds']:.2f} of {recording['training_seconds']:.2f} s"
    print(f"{len(bench.ids):,} examples in {len(lengths):,} windows, median {np.median(lengths):.0f} tokens; "
          f"{args.model}, batches of {args.batch_size}, {device}\n")
    print(f"{'ours, examples/s':<34}{padding['ours_examples_per_second']:>9.1f}")
    print(f"{'padded to 512, examples/s':<34}{padding['padded_examples_per_second']:>9.1f}")
    print(f"{'ratio (median)':<34}{padding['ratio']:>9.2f}  {spread(padding['ratios'])}; bound {SPEED_BOUND:g}")
    print(f"{'recording, % of training (median)':<34}{100 * recording['share']:>9.2f}  {share}; "
          f"bound {100 * RECORDING_BOUND:g}")
    for name, label in (("on_off_ratio", "epochs with/without recording"), ("on_off_cpu_ratio", "the same, CPU time"),
                        ("seconds_at_the_end", "metrics and data map, s")):
        print(f"{label:<34}{recording[name]:>9.3f}  {spread(recording['rounds'][name])}")
    broken = [name for name, is_broken in (("padding", padding["ratio"] < SPEED_BOUND),
                                           ("recording", recording["share"] > RECORDING_BOUND)) if is_broken]
    if args.output:
        write_json(
            args.output,
            {
                "dataset": Path(args.dataset).name,
                "model": Path(args.model).name,
                "batch_size": args.batch_size,
                "steps": args.steps,
                "seed": args.seed,
                "tokens": {"median": float(np.median(lengths)), "mean": float(lengths.mean()),
                           "longest": int(lengths.max())},
                "padding": padding,
                "recording": recording,
                "bounds": {"padding_ratio": SPEED_BOUND, "recording_share": RECORDING_BOUND},
                "broken": broken,
                "device": device,
                "cores": os.cpu_count(),
                "versions": {"python": platform.python_version(),
                             **{name: metadata.version(name) for name in ("torch", "transformers", "numpy")}},
            },
        )
    if broken:
        print(f"BROKEN: {', '.join(broken)}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
