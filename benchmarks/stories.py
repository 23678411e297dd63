"""How answers to yes/no story questions fall as stories grow: LSTM, Transformer from scratch, pretrained encoder.

Trains every model with every seed through run.py into --output_dir (runs that are there are not repeated) and writes
stories.csv, one row per dataset, model, seed, evaluation set and slice, and stories.md, the tables of RESULTS.md.

    python benchmarks/stories.py --dataset demo:stories --models lstm tiny ENCODER --output_dir ./stories_output
    python benchmarks/stories.py --dataset demo:stories --models lstm --seeds 42 --max_train_samples 200 --epochs 1
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import run  # noqa: E402
from datamap.core.artifacts import load_meta, stage  # noqa: E402
from datamap.core.errors import UserError, command_line  # noqa: E402
from datamap.core.files import atomic, read_table, write_csv  # noqa: E402
from datamap.core.flags import Parser, positive_int, seed_number  # noqa: E402
from datamap.core.splits import default_eval_split  # noqa: E402

# What each kind of model is trained with; anything that is not built in counts as a pretrained encoder.
SETTINGS = {
    "lstm": ["--num_train_epochs", "10", "--learning_rate", "3e-3"],
    "lstm_reader": ["--num_train_epochs", "10", "--learning_rate", "3e-3"],
    "tiny": ["--num_train_epochs", "10", "--learning_rate", "1e-3"],
    "pretrained": ["--num_train_epochs", "3", "--learning_rate", "1e-4"],
}
BANDS = ((2, 4), (5, 8), (9, 12), (13, 16), (17, 20), (21, 25), (26, 30))  # numbers of actors, in the table

logger = logging.getLogger(__name__)


def run_name(model: str, seed: int) -> str:
    return f"{model if model in SETTINGS else 'pretrained'}_seed_{seed}"


def train(args: argparse.Namespace, model: str, seed: int, directory: Path) -> None:
    settings = list(SETTINGS.get(model, SETTINGS["pretrained"]))
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


def rows_of(directory: Path, model: str, seed: int):  # type: ignore[no-untyped-def]
    table = read_table(directory / "generalization.csv", columns=("split", "slice", "n", "accuracy"), text=("slice",))
    return table.assign(model=model if model in SETTINGS else "pretrained", seed=seed)


def tables(frame) -> str:  # type: ignore[no-untyped-def]
    """Two tables in Markdown, by category and by number of actors: mean accuracy, and its range over the seeds."""
    import pandas as pd

    models = list(dict.fromkeys(frame["model"]))
    lines = []

    def add(head: str, groups: list[tuple[str, pd.DataFrame]]) -> None:
        lines.extend(["", f"| {head} | n | majority | " + " | ".join(models) + " |", "|---" * (3 + len(models)) + "|"])
        for name, rows in groups:
            cells = []
            for model in models:
                mine = rows[rows["model"] == model]
                by_seed = [(seed["accuracy"] * seed["n"]).sum() / seed["n"].sum() for _, seed in mine.groupby("seed")]
                spread = f" ({min(by_seed):.2f} to {max(by_seed):.2f})" if len(by_seed) > 1 else ""
                cells.append(f"{sum(by_seed) / len(by_seed):.3f}{spread}")
            once = rows[(rows["model"] == models[0]) & (rows["seed"] == rows["seed"].min())]
            majority = (once["majority_baseline"] * once["n"]).sum() / once["n"].sum()
            lines.append(f"| {name} | {once['n'].sum():,} | {majority:.2f} | " + " | ".join(cells) + " |")

    only_category = frame[frame["category"].notna() & frame["num_actors"].isna()]
    only_actors = frame[frame["num_actors"].notna() & frame["category"].isna()]
    overall = frame[frame["slice"] == "overall"]
    groups = []
    for split in dict.fromkeys(frame["split"]):
        groups.append((f"{split}, all", overall[overall["split"] == split]))
        here = only_category[only_category["split"] == split]
        names = [name for name in dict.fromkeys(only_category["category"]) if name in set(here["category"])]
        groups += [(f"{split}, {name}", here[here["category"] == name]) for name in names]
    add("category", groups)
    inside = [(low, high, only_actors[only_actors["num_actors"].between(low, high)]) for low, high in BANDS]
    add("actors", [(f"{low} to {high}", rows) for low, high, rows in inside if len(rows)])
    return "\n".join(lines).strip() + "\n"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Accuracy on story questions by category and number of actors, for several models and seeds.")
    parser.add_argument("--dataset", default="demo:stories", help="demo:stories, or a directory of that layout")
    parser.add_list("--models", default=["lstm", "lstm_reader", "tiny"],
                    help="built-in ones, and at most one pretrained encoder")
    parser.add_list("--seeds", type=seed_number, default=[42, 43, 44], help="one run each")
    parser.add_argument("--epochs", type=positive_int, help="instead of each model's own number")
    parser.add_argument("--max_train_samples", type=positive_int, metavar="N", help="first N stories (default: all)")
    parser.add_argument("--output_dir", default="./stories_output", help="a directory per run, and the tables")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import pandas as pd

    output = Path(args.output_dir)
    chosen = [(model, seed, output / run_name(model, seed)) for seed in args.seeds for model in args.models]
    for model, seed, directory in chosen:
        train(args, model, seed, directory)
    with stage(output, args, owns=("stories.csv", "stories.md")) as path:
        frame = pd.concat([rows_of(directory, model, seed) for model, seed, directory in chosen], ignore_index=True)
        frame["category"], frame["num_actors"] = frame["category"].astype(object), pd.to_numeric(frame["num_actors"])
        write_csv(path / "stories.csv", frame)
        text = tables(frame)
        with atomic(path / "stories.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(text)
    print(f"wrote stories.csv and stories.md to {output}")


if __name__ == "__main__":
    main()
