"""How answers to yes/no story questions fall as stories grow: LSTM, Transformer from scratch, pretrained encoder.

Trains every model with every seed through run.py into --output_dir (runs that are there are not repeated) and writes
stories.csv, one row per dataset, model, seed, evaluation set and slice, and stories.md, the tables of RESULTS.md.

    python benchmarks/stories.py --dataset demo:stories --models lstm tiny ENCODER --output_dir ./stories_output
    python benchmarks/stories.py --dataset demo:stories --models lstm --seeds 42 --max_train_samples 200 --epochs 1
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timing import bench_parser, markdown

import run
from datamap.core.artifacts import load_meta, stage
from datamap.core.errors import UserError, command_line
from datamap.core.files import atomic, read_table, write_csv
from datamap.core.flags import positive_int, seed_number
from datamap.core.splits import default_eval_split

# What each kind of model is trained with; anything that is not built in counts as a pretrained encoder.
SETTINGS = {
    "lstm": ["--num_train_epochs", "10", "--learning_rate", "3e-3"],
    "lstm_reader": ["--num_train_epochs", "10", "--learning_rate", "3e-3"],
    "tiny": ["--num_train_epochs", "10", "--learning_rate", "1e-3"],
    "pretrained": ["--num_train_epochs", "3", "--learning_rate", "1e-4"],
}
BANDS = ((2, 4), (5, 8), (9, 12), (13, 16), (17, 20), (21, 25), (26, 30))  # numbers of actors, in the table

logger = logging.getLogger(__name__)


def kind_of(model: str) -> str:
    return model if model in SETTINGS else "pretrained"


def train(args: argparse.Namespace, model: str, seed: int, directory: Path) -> None:
    settings = list(SETTINGS[kind_of(model)])
    if args.epochs:
        settings[1] = str(args.epochs)
    meta = load_meta(directory) or {}
    if meta.get("status") == "finished" and (directory / "generalization.csv").exists():
        wanted = {"dataset": args.dataset, "model": model, "num_train_epochs": float(settings[1]),
                  "max_train_samples": args.max_train_samples}
        for name, value in wanted.items():
            if meta["arguments"].get(name) != value:
                raise UserError(f"{directory} is of a run with {name} {meta['arguments'].get(name)}, not {value}; "
                                "name another --output_dir")
        logger.info(f"{directory} is there already")
        return
    if args.max_train_samples:
        settings += ["--max_train_samples", str(args.max_train_samples)]
    run.main([
        "--do_train", "--do_eval", "--task", "classification", "--model", model, "--dataset", args.dataset,
        "--eval_split", default_eval_split(args.dataset), "validB", "test", "--slice_by", "category", "num_actors",
        "--per_device_train_batch_size", "32", "--per_device_eval_batch_size", "64", "--warmup_steps", "0.1",
        "--save_strategy", "no", "--no_cuda",
        "--seed", str(seed), "--output_dir", str(directory), *settings,
    ])


def accuracy(rows: Any, column: str = "accuracy") -> float:
    """Over all examples of the slices in ``rows``."""
    return float((rows[column] * rows["n"]).sum() / rows["n"].sum())


def tables(frame: Any) -> str:
    """Two tables in Markdown, by category and by number of actors: mean accuracy, and its range over the seeds."""
    models = list(dict.fromkeys(frame["model"]))

    def cell(rows: Any) -> str:
        by_seed = [accuracy(part) for _, part in rows.groupby("seed")]
        spread = f" ({min(by_seed):.2f} to {max(by_seed):.2f})" if len(by_seed) > 1 else ""
        return f"{sum(by_seed) / len(by_seed):.3f}{spread}"

    def table(head: str, groups: list[tuple[str, Any]]) -> str:
        lines: list[Sequence[str]] = [(head, "n", "majority", *models)]
        for name, rows in groups:
            once = rows[(rows["model"] == models[0]) & (rows["seed"] == rows["seed"].min())]
            lines.append((name, f"{once['n'].sum():,}", f"{accuracy(once, 'majority_baseline'):.2f}",
                          *(cell(rows[rows["model"] == model]) for model in models)))
        return markdown(lines)

    only_category = frame[frame["category"].notna() & frame["num_actors"].isna()]
    only_actors = frame[frame["num_actors"].notna() & frame["category"].isna()]
    groups = []
    for split in dict.fromkeys(frame["split"]):
        groups.append((f"{split}, all", frame[(frame["slice"] == "overall") & (frame["split"] == split)]))
        groups += [(f"{split}, {name}", rows) for name, rows in
                   only_category[only_category["split"] == split].groupby("category", sort=False)]
    bands = [(f"{low} to {high}", only_actors[only_actors["num_actors"].between(low, high)]) for low, high in BANDS]
    return f"{table('category', groups)}\n\n{table('actors', [band for band in bands if len(band[1])])}\n"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--dataset", default="demo:stories", help="demo:stories, or a directory of that layout")
    parser.add_list("--models", default=["lstm", "lstm_reader", "tiny"],
                    help="built-in ones, and at most one pretrained encoder")
    parser.add_list("--seeds", type=seed_number, default=[42, 43, 44], help="one run each")
    parser.add_argument("--epochs", type=positive_int, help="instead of each model's own number")
    parser.add_argument("--max_train_samples", type=positive_int, metavar="N", help="first N stories (default: all)")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import pandas as pd

    output = Path(args.output_dir)
    chosen = [(model, seed, output / f"{kind_of(model)}_seed_{seed}") for seed in args.seeds for model in args.models]
    for model, seed, directory in chosen:
        train(args, model, seed, directory)
    with stage(output, args, owns=("stories.csv", "stories.md")) as path:
        frame = pd.concat([
            read_table(directory / "generalization.csv", ("split", "slice", "n", "accuracy"), text=("slice",))
            .assign(model=kind_of(model), seed=seed) for model, seed, directory in chosen
        ], ignore_index=True)
        frame["category"], frame["num_actors"] = frame["category"].astype(object), pd.to_numeric(frame["num_actors"])
        write_csv(path / "stories.csv", frame)
        text = tables(frame)
        with atomic(path / "stories.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(text)
    print(f"wrote stories.csv and stories.md to {output}")


if __name__ == "__main__":
    main()
