"""Write a data map again at other thresholds, or the first one of what another trainer logged.

Reads a cartography directory (run.py --enable_cartography), or with --training_dynamics another trainer's log. Writes
training_dynamics_epoch_N.json, cartography_metrics.csv and .json, thresholds.json and cartography_map.png: a
cartography directory, which every other stage reads. Its functions are imported from here, too.

    python dataset_cartography.py --cartography_dir ./cartography_output --method percentile --output_dir ./map_67
    python dataset_cartography.py --training_dynamics ./logged_dynamics --output_dir ./logged_map
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamap.cartography.categories import (
    CATEGORIES,
    THRESHOLD_METHODS,
    categorize_examples,
    category_thresholds,
    counted,
    get_examples_by_category,
    with_categories,
)
from datamap.cartography.dynamics import holds_dynamics, read_dynamics, read_logged_logits, write_dynamics
from datamap.cartography.learning import Learning
from datamap.cartography.maps import (
    CARTOGRAPHY_FILES,
    check_no_recording,
    load_map,
    map_thresholds,
    plot_data_map,
    write_cartography,
    written_learning,
)
from datamap.cartography.metrics import METRIC_COLUMNS, compute_metrics, load_cartography_metrics
from datamap.core.artifacts import (
    check_not_read,
    hand_on_digests,
    load_meta,
    recorded_dataset,
    stage,
)
from datamap.core.errors import command_line
from datamap.core.flags import Parser, number
from datamap.core.plots import CATEGORY_COLORS, add_plot_format, dataset_label

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CATEGORIES", "CATEGORY_COLORS", "METRIC_COLUMNS", "categorize_examples", "category_thresholds",
    "compute_metrics", "get_examples_by_category", "load_cartography_metrics", "load_map", "map_thresholds",
    "plot_data_map", "read_dynamics", "read_logged_logits", "write_cartography", "write_dynamics",
]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Write a data map again at other thresholds, or the first one of what another trainer logged.")
    group = parser.add_argument_group("what is read").add_mutually_exclusive_group()
    group.add_argument("--cartography_dir", default="./cartography_output",
                       help="directory that run.py --enable_cartography wrote, or a file of metrics")
    group.add_argument("--training_dynamics", metavar="DIR",
                       help="read dynamics_epoch_N.jsonl (guid, logits_epoch_N, gold) of another trainer instead")
    group = parser.add_argument_group("thresholds of the categories, which every stage that reads the map goes by")
    group.add_argument("--method", choices=THRESHOLD_METHODS, default="median",
                       help="median: cut at the medians unless a threshold is given; percentile: the thresholds are "
                            "percentiles 0..100 (50 and 67 unless given); fixed: they are the values")
    group.add_argument("--confidence_threshold", type=number, help="easy from here on, hard below")
    group.add_argument("--variability_threshold", type=number, help="ambiguous above")
    group = parser.add_argument_group("what is written")
    group.add_argument("--output_dir", default="./cartography_map", help="where the files go; not where they are read")
    add_plot_format(group)
    return parser.parse_args(argv)


def read_epochs(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The recorded epochs in order; none where only metrics are read."""
    if args.training_dynamics:
        return read_logged_logits(args.training_dynamics)
    return read_dynamics(args.cartography_dir) if holds_dynamics(args.cartography_dir) else iter(())


def read_metrics(args: argparse.Namespace) -> pd.DataFrame:
    """The metrics as they were written; from the epochs where nobody wrote them, as a trainer that was stopped."""
    source = Path(args.cartography_dir)
    if not args.training_dynamics:
        if any(source.glob("cartography_metrics.*")) or not holds_dynamics(source):
            return load_cartography_metrics(source)
    return compute_metrics(read_epochs(args))


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    source = Path(args.training_dynamics or args.cartography_dir)
    check_not_read(args.output_dir, source)
    check_no_recording(args.output_dir, of_training=True)
    metrics = read_metrics(args)
    asked = (args.method, args.confidence_threshold, args.variability_threshold)
    cuts = category_thresholds(metrics, *asked[1:], args.method)
    recorded = recorded_dataset(source)
    title = dataset_label(recorded["dataset"], recorded["split"]) if recorded else source.name

    meta = (load_meta(source) or {}).get("arguments", {})
    settings = {**vars(args), "recorded_with": meta.get("recorded_with", meta) or None}  # as a suite asks for it
    inputs = {"training_dynamics" if args.training_dynamics else "cartography": source}
    with stage(args.output_dir, settings, owns=CARTOGRAPHY_FILES, inputs=inputs, datasets=[recorded]) as path:
        hand_on_digests(path, source)
        written = written_learning(source) or {}
        learning = Learning(written.get("guessing"))
        for epoch in learning.follow(read_epochs(args)):
            columns = {name: values for name, values in epoch.items() if name not in ("epoch", "id", "gold")}
            write_dynamics(path, epoch["epoch"], epoch["id"], columns)
        known = learning.record(metrics) if learning.accuracy else written
        write_cartography(path, metrics, title, *asked, known)

    print(f"{title}, n = {len(metrics):,}: {counted(with_categories(metrics, cuts), cuts)}")
    print(f"wrote metrics, thresholds.json and cartography_map.png to {path}")


if __name__ == "__main__":
    main()
