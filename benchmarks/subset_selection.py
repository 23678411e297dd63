"""Which selectors choose a better training subset than chance, what they cost, and which find wrong labels.

Reads a classification dataset and an encoder. Writes to --output_dir: heads.csv (accuracy of a logistic head on frozen
embeddings, trained on each selection), comparison.csv (each selector against random, paired by seed, with intervals),
selection.png, noise.csv (average precision in finding labels that were flipped), every selection, and finetune.json, a
suite for run_experiments.py that fine-tunes the encoder on the best of them.

    python benchmarks/subset_selection.py --dataset DATA/sst2 --encoder ENCODER --output_dir ./subset_selection
    python benchmarks/subset_selection.py --dataset demo:nli --encoder ENCODER --seeds 1 2 --epochs 1 --max_samples 300

The training dynamics are of the encoder fine-tuned on all candidates (run.py --enable_cartography), once on the labels
as they are and once with a tenth of them wrong. What is finished is not done again. A seed is that of the random
draws, folds, clusters and warm-ups; a selector without any of these chooses the same with every seed, so that the
interval of its difference says how chance, not how it, varies.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import bench_parser, machine, timed

from datamap.core.artifacts import load_meta, stage
from datamap.core.errors import UserError, command_line
from datamap.core.files import read_json, read_table, write_csv, write_json, write_jsonl
from datamap.core.flags import positive_int, seed_number
from datamap.core.places import script_file
from datamap.core.plots import COLORS, GREY, new_figure, save_figure
from datamap.core.splits import Split, default_eval_split, load_split
from datamap.core.tables import console_table
from datamap.selection.arguments import parse_args as parse_selection_args
from datamap.selection.candidates import Candidates, load_candidates
from datamap.selection.features import features_for
from datamap.suites.comparison import Comparison, compare_family
from datamap.tasks.registry import add_task_flags, task_of

# name in the tables -> flags of select_subset.py; {share} is that of a pipeline's last member.
ARMS: dict[str, list[str]] = {
    "random": ["--selector=random"],
    "random, stratified by label": ["--selector=random", "--stratify=label"],
    **{name: [f"--selector={name}"] for name in (
        "stratified", "kcenter", "kmeans", "herding", "lexical_diversity", "label_issues", "self_filter",
        "wordpiece_ratio", "el2n", "grand", "forgetting", "aum")},
    "confidence, lowest": ["--selector=confidence"],
    "confidence, highest": ["--selector=confidence", "--keep=highest"],
    **{name: [f"--selector={name}"] for name in ("variability", "loss_trajectory")},
    "label_issues, then kmeans": ["--pipeline=label_issues:0.9,kmeans:{share}"],
    "aum and variability": ["--fusion=aum:1,variability:1"],
}
READS_MAP = ("forgetting", "aum", "confidence", "variability", "loss_trajectory")
RANDOM, EVERYTHING = "random", "full"
FRACTIONS = (0.05, 0.1, 0.2)
DETECTORS = {"label_issues": "label_quality", "self_filter": "self_filter", "aum": "aum", "forgetting": "forgetting",
             "confidence": "confidence", "variability": "variability"}
HIGH_IS_WRONG = ("forgetting", "variability")
MARGIN = 1.0  # percentage point
MAX_LENGTH = 64  # of a text, in tokens
FLIPPED = 0.1  # share of the labels that are made wrong, to be found
BEST = 3  # selectors that are tried with fine-tuning too

logger = logging.getLogger(__name__)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--dataset", required=True, help="with a train and a validation split")
    parser.add_argument("--encoder", required=True, help="Hub name or directory")
    add_task_flags(parser)
    parser.add_list("--seeds", type=seed_number, default=[1, 2, 3, 4, 5], help="every selector runs with each")
    parser.add_argument("--max_samples", type=positive_int, metavar="N", help="choose among the first N only")
    parser.add_argument("--epochs", type=positive_int, default=4, help="of the training that records dynamics")
    return parser.parse_args(argv)


def is_finished(place: Path) -> bool:
    return ((load_meta(place) if place.is_dir() else None) or {}).get("status") == "finished"


def name_of(arm: str) -> str:
    """As a word."""
    return arm.replace(", ", "-").replace(" ", "_")


def on_cpu() -> list[str]:
    import torch

    return [] if torch.cuda.is_available() else ["--no_cuda"]


# --- what is compared ---------------------------------------------------------------------------------------------


def record_dynamics(args: argparse.Namespace, dataset: str, home: Path) -> float:
    """Train on all candidates and record; returns the seconds that the training took."""
    map_dir = home / "cartography_output"
    if not is_finished(map_dir):
        size = [f"--max_train_samples={args.max_samples}"] if args.max_samples else []
        command = [sys.executable, str(script_file("run.py")), "--do_train", "--enable_cartography",
                   f"--task={args.task}", f"--dataset={dataset}", f"--model={args.encoder}", *size,
                   f"--num_train_epochs={args.epochs}",
                   f"--config={home.parent / 'training.json'}", f"--cartography_output_dir={map_dir}", "--overwrite",
                   f"--output_dir={home / 'trainer_output'}"]
        subprocess.run(command, check=True)
    return read_json(home / "trainer_output" / "train_metrics.json")["train_runtime"]


def with_wrong_labels(split: Split, share: float, path: Path) -> None:
    """The split as JSON Lines with ``share`` of its labels flipped to another class, said so in ``is_flipped``."""
    rng = np.random.default_rng(0)
    column, names = split.task.label_column, split.data.features[split.task.label_column].names
    flipped = np.zeros(len(split.data), dtype=bool)
    flipped[rng.permutation(len(flipped))[: round(share * len(flipped))]] = True
    step = np.where(flipped, rng.integers(1, len(names), len(flipped)), 0)
    labels = (np.asarray(split.data[column][:]) + step) % len(names)
    rows = [{**row, column: names[label], "is_flipped": int(wrong)}
            for row, label, wrong in zip(split.data, labels, flipped, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, rows)


def choose(args: argparse.Namespace, arm: str, share: float, seed: int, home: Path) -> tuple[list[str], dict]:
    """The ids that an arm chooses, and its selection_meta.json."""
    import select_subset

    place = home / "selections" / f"{name_of(arm)}-{share:g}-seed{seed}"
    if not is_finished(place):
        flags = [flag.format(share=share) for flag in ARMS[arm]]
        sizes = [] if "--pipeline" in flags[0] else [f"--fraction={share}"]
        if args.max_samples:
            sizes.append(f"--max_samples={args.max_samples}")
        if any(name in flags[0] for name in READS_MAP):
            sizes.append(f"--cartography_dir={home / 'clean' / 'cartography_output'}")
        if any(name in flags[0] for name in ("el2n", "grand")):
            sizes.append(f"--training_config={home / 'training.json'}")
        select_subset.main([*flags, *sizes, *reading(args, args.dataset, home), f"--seed={seed}",
                            f"--output_dir={place}", *on_cpu()])
    return read_table(place / "selected.csv")["id"].tolist(), read_json(place / "selection_meta.json")


def reading(args: argparse.Namespace, dataset: str | Path, home: Path) -> list[str]:
    """The flags of select_subset.py that say what is read, and by which model."""
    return [f"--task={args.task}", f"--dataset={dataset}", f"--model={args.encoder}", f"--max_length={MAX_LENGTH}",
            f"--cache_dir={home / 'cache'}"]


def embedded(args: argparse.Namespace, split: Split, home: Path) -> np.ndarray:
    given = parse_selection_args(["--selector=kcenter", "--k=1", *reading(args, args.dataset, home), *on_cpu()])
    return np.asarray(features_for(Candidates(split, np.arange(len(split.data)), given))[0]["embeddings"])


def head_correct(train: np.ndarray, labels: np.ndarray, test: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """(E,) 100 where a logistic head is right, else 0: its mean is accuracy in percent."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:  # one class was chosen, and will always be predicted
        return 100.0 * (gold == labels[0])
    return 100.0 * (LogisticRegression(C=1.0, max_iter=1000).fit(train, labels).predict(test) == gold)


def compare_heads(args: argparse.Namespace, train: Split, home: Path) -> Any:
    import pandas as pd

    test = load_split(args.dataset, default_eval_split(args.dataset), task_of(args, None))
    column, place = train.task.label_column, {example: row for row, example in enumerate(train.ids)}
    vectors, test_vectors = embedded(args, train, home), embedded(args, test, home)
    mean, spread = vectors.mean(axis=0), vectors.std(axis=0).max()  # one scale for all, or the penalty would differ
    vectors, test_vectors = (vectors - mean) / spread, (test_vectors - mean) / spread
    labels, gold = np.asarray(train.data[column][:]), np.asarray(test.data[column][:])
    everything = float(head_correct(vectors, labels, test_vectors, gold).mean())
    rows = [{"selector": EVERYTHING, "fraction": 1.0, "seed": None, "k": len(labels), "seconds": 0.0,
             "accuracy": everything}]
    table = []
    for share in FRACTIONS:
        correct = {}
        for arm in ARMS:
            right = []
            for seed in args.seeds:
                ids, meta = choose(args, arm, share, seed, home)
                chosen = [place[example] for example in ids]
                right.append(head_correct(vectors[chosen], labels[chosen], test_vectors, gold))
                rows.append({"selector": arm, "fraction": share, "seed": seed, "k": len(ids),
                             "seconds": meta["select_seconds"], "accuracy": float(right[-1].mean())})
            correct[arm] = np.stack(right)
            logger.info(f"{share:g} {arm}: {correct[arm].mean():.2f} %")
        reference = correct.pop(RANDOM)
        family = compare_family([
            Comparison(args.seeds, scores.mean(axis=1), reference.mean(axis=1), MARGIN, binary=True, scores=scores,
                       reference_scores=reference, highest=100.0)
            for scores in correct.values()
        ])
        table += [{"selector": arm, "fraction": share, **row} for arm, row in zip(correct, family, strict=True)]
        table.append({"selector": RANDOM, "fraction": share, "mean": float(reference.mean()),
                      "sd": float(reference.mean(axis=1).std(ddof=1)) if len(args.seeds) > 1 else None})
    frame = pd.DataFrame(table)
    write_csv(home / "heads.csv", pd.DataFrame(rows).astype({"seed": "Int64"}))
    write_csv(home / "comparison.csv", frame)
    plot_differences(frame, home / "selection.png", args, everything)
    return frame


def plot_differences(frame: Any, path: Path, args: argparse.Namespace, everything: float) -> None:
    shown = frame[frame["selector"] != RANDOM]
    order = shown.groupby("selector")["difference"].mean().sort_values().index.tolist()
    figure, axis = new_figure(7.2, 0.34 * len(order) + 1.6)
    for number, (share, color) in enumerate(zip(FRACTIONS, (COLORS[0], COLORS[4], COLORS[2]), strict=True)):
        part = shown[shown["fraction"] == share].set_index("selector").reindex(order)
        height = np.arange(len(order)) + 0.22 * (number - 1)
        axis.hlines(height, part["bootstrap_low"], part["bootstrap_high"], color=color, linewidth=1.6)
        axis.plot(part["difference"], height, "o", color=color, markersize=3.5, label=f"{100 * share:g} %")
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.set_yticks(range(len(order)), order)
    axis.set_xlabel("accuracy, difference from random (percentage points)")
    axis.legend(title="chosen", frameon=False, loc="lower right")
    caption = f"{len(args.seeds)} seeds, 95 % intervals; a head trained on everything: {everything:.1f} %"
    save_figure(figure, path, "Chosen subsets against random ones", caption)


# --- wrong labels -------------------------------------------------------------------------------------------------


def find_wrong_labels(args: argparse.Namespace, home: Path) -> Any:
    """Average precision of each score in finding the flipped labels, over seeds where they matter."""
    import pandas as pd
    from sklearn.metrics import average_precision_score

    rows = []

    def add(name: str, seed: int, wrong: np.ndarray, score: np.ndarray, seconds: float) -> None:
        known = ~np.isnan(score)
        most_suspicious = np.argsort(-score, kind="stable")[: wrong.sum()]
        rows.append({"score": name, "seed": seed, "n": len(wrong), "flipped": int(wrong.sum()),
                     "average_precision": float(average_precision_score(wrong[known], score[known])),
                     "found_among_as_many": float(wrong[most_suspicious].mean()), "seconds": seconds})

    for seed in args.seeds:
        for name, feature in DETECTORS.items():
            given = parse_selection_args([
                f"--selector={name}", "--k=1", *reading(args, home / "noisy", home), f"--seed={seed}",
                *([f"--cartography_dir={home / 'noisy' / 'cartography_output'}"] if name in READS_MAP else []),
            ])
            candidates = load_candidates(given, task_of(given, None))
            seconds, (values, _) = timed(features_for, candidates)
            wrong = np.asarray(candidates.split.data["is_flipped"][:]).astype(bool)
            score = np.ma.filled(values[feature].astype(float), np.nan)
            add(name, seed, wrong, score if name in HIGH_IS_WRONG else -score, seconds)
        add("random", seed, wrong, np.random.default_rng(seed).random(len(wrong)), 0.0)
    frame = pd.DataFrame(rows)
    write_csv(home / "noise.csv", frame)
    return frame


def write_suite(args: argparse.Namespace, frame: Any, home: Path) -> None:
    """finetune.json: a suite of the BEST selectors at a tenth, and random, for fine-tuning the encoder itself."""
    tenth = frame[(frame["fraction"] == 0.1) & ~frame["selector"].str.startswith(RANDOM)]
    best = tenth.nlargest(BEST, "mean")["selector"].tolist()
    experiments = []
    for arm in [RANDOM, *best]:
        select: dict[str, Any] = dict(flag.removeprefix("--").format(share=0.1).split("=") for flag in ARMS[arm])
        if "pipeline" not in select:
            select["fraction"] = 0.1
        if select.get("selector") in ("el2n", "grand"):
            select["training_config"] = str(home / "training.json")
        experiments.append({"name": name_of(arm), "control": False, "select": select})
    base = {**read_json(home / "training.json"), "task": args.task, "dataset": args.dataset, "model": args.encoder,
            "do_train": True, "do_eval": True, "num_train_epochs": 3,
            "cartography_output_dir": str(home / "clean" / "cartography_output"),
            "max_train_samples": args.max_samples}
    write_json(home / "finetune.json", {"name": "finetune", "baseline": RANDOM, "base": base,
                                        "experiments": experiments})


# --- costs --------------------------------------------------------------------------------------------------------


def costs(home: Path, rows: int) -> dict[str, Any]:
    """Seconds that embedding the ``rows`` of the training split took, once, and the median ones of each selector, over
    features that were there, and of a warm-up."""
    table = read_table(home / "heads.csv")
    times = table[table["selector"] != EVERYTHING].groupby("selector", sort=False)["seconds"].median().to_dict()
    embeddings = [read_json(file) for file in home.glob("cache/embeddings-*/meta.json")]
    warm_ups = [read_json(file) for file in home.glob("cache/model-*/trainer_output/train_metrics.json")]
    times["a warm-up"] = float(np.median([each["train_runtime"] for each in warm_ups]))
    once = float(np.median([each["seconds"] for each in embeddings if each["shape"][0] == rows]))
    return {"embeddings": once, "selectors": times}


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    args.task = args.task or "classification"
    home = Path(args.output_dir)
    home.mkdir(parents=True, exist_ok=True)
    before = (load_meta(home) or {}).get("arguments", vars(args))
    if changed := [name for name, value in vars(args).items() if name != "seeds" and before.get(name) != value]:
        raise UserError(f"--output_dir {home} holds what was measured with another --{changed[0]}; name another place")
    import torch

    on_gpu = torch.cuda.is_available()
    training = {"max_length": MAX_LENGTH, "learning_rate": 1e-4, "warmup_steps": 0.1, "bf16": True,
                "per_device_train_batch_size": 32, "save_strategy": "no", "no_cuda": not on_gpu}
    write_json(home / "training.json", training)
    train = load_split(args.dataset, "train", task_of(args, None), args.max_samples)
    if not (home / "noisy" / "train.jsonl").exists():
        with_wrong_labels(train, FLIPPED, home / "noisy" / "train.jsonl")
    owns = ("finetune.json", "heads.csv", "comparison.csv", "noise.csv", "selection.png", "subset_selection.json")
    with stage(home, args, owns=owns, datasets=[train.identity()]):
        seconds = {"clean": record_dynamics(args, args.dataset, home / "clean"),
                   "noisy": record_dynamics(args, str(home / "noisy"), home / "noisy")}
        noise = find_wrong_labels(args, home)
        heads = compare_heads(args, train, home)
        write_suite(args, heads, home)
        write_json(home / "subset_selection.json", {
            "machine": machine(), "seconds": {"maps": seconds, **costs(home, len(train.data))},
        })
    means = noise.groupby("score", sort=False)[["average_precision", "found_among_as_many"]].mean().reset_index()
    print(console_table(means, dict.fromkeys(means.columns[1:], ".3f")))
    shown = heads[["selector", "fraction", "mean", "difference", "bootstrap_low", "bootstrap_high", "verdict"]]
    shown = shown.sort_values(["fraction", "difference"], ascending=[True, False])
    print(console_table(shown, dict.fromkeys(shown.columns[2:6], ".2f")))
    print(f"wrote heads.csv, comparison.csv, noise.csv and selection.png to {home}")


if __name__ == "__main__":
    main()
