"""Show the calls of dataset_filters: several filters, their report, one filter alone, and the size-matched control.

Reads cartography_metrics.csv (run.py --enable_cartography), with --cluster_dir cluster_assignments.csv too, and the
dataset that they were made from. Prints what the filters keep and writes nothing.

    python demos/filtering_examples.py --cartography_dir ./cartography_output
    python demos/filtering_examples.py --cartography_dir ./cartography_output --cluster_dir ./cluster_output
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the modules are one directory up

from datamap.core.artifacts import recorded_split, recorded_task
from datamap.core.errors import command_line
from datamap.core.flags import DEFAULT_SEED, Parser, seed_number
from datamap.core.splits import Split, load_split
from datamap.core.tables import console_table


def several_filters(cartography_dir: str, cluster_dir: str | None, rules: bool) -> dict[str, Any]:
    """A config: the blocks are applied in this order. In a file it is what run.py --filter_config reads.

    rules: add the error rules, which are for question answering.
    """
    config: dict[str, Any] = {
        "ambiguous": {"metrics_path": cartography_dir, "top_fraction": 0.33},
        "metric": [
            {"metrics_path": cartography_dir, "metric": "confidence", "drop_fraction": 0.05, "drop": "lowest"},
            {"metrics_path": cartography_dir, "metric": "variability", "max": 0.4},
        ],
        **({"rules": {"max_error_score": 2}} if rules else {}),
        "random": {"enabled": False},
    }
    if cluster_dir:
        config["cluster"] = {"cluster_path": cluster_dir, "exclude_clusters": [-1], "min_probability": 0.5}
    return config


def show_report(report: dict[str, Any]) -> None:
    import pandas as pd

    rows = [
        {"filter": record["filter"], "reason": reason, "removed": len(ids), "such as": ids[0]}
        for record in report["filters"] for reason, ids in record["removed"].items()
    ]
    print(console_table(pd.DataFrame(rows), {"removed": ",d"}))
    print(f"together: {report['before']:,} -> {report['after']:,} examples")


def show(split: Split, cartography_dir: str, cluster_dir: str | None, seed: int) -> None:
    from datamap.analysis.filter_config import apply_filters
    from datamap.analysis.filters import CategoryFilter

    config = several_filters(cartography_dir, cluster_dir, split.task.has_error_rules)
    filtered, report = apply_filters(split, config, max_drop_percentage=90, return_report=True)
    print("several filters, in the order of the config:")
    show_report(report)

    control = apply_filters(split, {**config, "random": {"enabled": True}}, seed=seed)
    shared = len(set(filtered["id"]) & set(control["id"]))
    print(f"size-matched control: {len(control):,} examples at random, {shared:,} of them among the filtered")

    decision = CategoryFilter(metrics_path=cartography_dir, categories=["hard"]).decide(split)
    cuts = ", ".join(f"{name} {cut:.3f}" for name, cut in decision.thresholds.items() if cut is not None)
    print(f"one filter alone: {decision.keep.sum():,} examples are hard (thresholds: {cuts}), such as")
    chosen = split.data.select(decision.keep.nonzero()[0][:3])
    *texts, last = (values for name, values in split.task.readable(chosen).items() if name != "context")
    for row, example in enumerate(chosen["id"]):
        print(f"  {example}: {' | '.join(column[row] for column in texts)} -> {last[row]}")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cartography_dir", default="./cartography_output", help="where run.py wrote the metrics")
    parser.add_argument("--cluster_dir", help="where cluster_analysis.py wrote; adds a cluster filter")
    parser.add_argument("--dataset", help="default: the one recorded in --cartography_dir, else demo:clinical")
    parser.add_argument("--split", help="default: the one recorded in --cartography_dir, else train")
    parser.add_argument("--seed", type=seed_number, default=DEFAULT_SEED, help="of the size-matched control")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from datamap.cartography.metrics import load_cartography_metrics
    from datamap.tasks.registry import get_task

    load_cartography_metrics(args.cartography_dir)  # says how to make them before a dataset is loaded
    task = get_task(**(recorded_task(args.cartography_dir) or {"name": "qa"}))
    split = recorded_split(args.cartography_dir, args.dataset, args.split, task)
    split = split or load_split("demo:clinical", args.split or "train", task)
    show(split, args.cartography_dir, args.cluster_dir, args.seed)


if __name__ == "__main__":
    main()
