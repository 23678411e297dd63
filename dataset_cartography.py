"""Write a data map again at other thresholds, join the maps of several runs, or compare two.

Reads cartography directories (run.py --enable_cartography), or with --training_dynamics another trainer's log. Writes
training_dynamics_epoch_N.json, cartography_metrics.csv and .json, thresholds.json and cartography_map.png: a
cartography directory, which every other stage reads. Of one run also categories_by_epoch.csv and .png, of several
joint_map.json, run_agreement.csv, agreement_curve.csv and stability.png. --compare writes moved.csv,
category_moves.csv, map_comparison.json and moved_map.png. Its functions are imported from here, too.

    python dataset_cartography.py --cartography_dir ./cartography_output --method percentile --output_dir ./map_67
    python dataset_cartography.py --cartography_dir ./map_seed1 ./map_seed2 ./map_seed3 --output_dir ./joint_map
    python dataset_cartography.py --compare ./joint_map ./joint_map_cleaned --output_dir ./map_comparison
    python dataset_cartography.py --training_dynamics ./logged_dynamics --output_dir ./logged_map
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamap.cartography.categories import (
    CATEGORIES,
    THRESHOLD_METHODS,
    categorize_examples,
    category_thresholds,
    check_asked,
    counted,
    get_examples_by_category,
)
from datamap.cartography.compare import COMPARISON_FILES, compare, said_of_comparison, write_comparison
from datamap.cartography.dynamics import holds_dynamics, read_dynamics, read_logged_logits, write_dynamics
from datamap.cartography.joint import join, join_maps, read_runs
from datamap.cartography.joint_files import joint_identity, said_of, write_joint
from datamap.cartography.learning import Learning
from datamap.cartography.maps import (
    CARTOGRAPHY_FILES,
    check_no_recording,
    load_map,
    map_thresholds,
    plot_data_map,
    was_trained_on,
    write_cartography,
    written_learning,
)
from datamap.cartography.metrics import METRIC_COLUMNS, compute_metrics, load_cartography_metrics
from datamap.cartography.settling import BY_EPOCH_PICTURE, ByEpoch, plot_by_epoch
from datamap.cartography.streaming import stream_again, to_stream
from datamap.core.artifacts import (
    check_not_read,
    hand_on_digests,
    load_meta,
    recorded_dataset,
    stage,
)
from datamap.core.errors import UserError, command_line
from datamap.core.flags import Parser, number
from datamap.core.parquet import add_artifact_format, format_for, format_of
from datamap.core.plots import CATEGORY_COLORS, add_plot_format, dataset_label
from datamap.detection.out_of_fold import OUT_OF_FOLD_FILE

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CATEGORIES", "CATEGORY_COLORS", "METRIC_COLUMNS", "categorize_examples", "category_thresholds",
    "compute_metrics", "get_examples_by_category", "join_maps", "load_cartography_metrics", "load_map",
    "map_thresholds", "plot_data_map", "read_dynamics", "read_logged_logits", "write_cartography", "write_dynamics",
]

logger = logging.getLogger(__name__)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Write a data map again at other thresholds, join the maps of several runs, or compare two.")
    group = parser.add_argument_group("what is read").add_mutually_exclusive_group()
    group.add_argument("--cartography_dir", nargs="+", default=["./cartography_output"], metavar="DIR",
                       help="directory that run.py --enable_cartography wrote, or a file of metrics; several, of the "
                            "same data, are joined (default: ./cartography_output)")
    group.add_argument("--training_dynamics", metavar="DIR",
                       help="read dynamics_epoch_N.jsonl (guid, logits_epoch_N, gold) of another trainer instead")
    group.add_argument("--compare", nargs=2, metavar=("A", "B"),
                       help="two maps of the same examples, before and after a cleaning or of two models: who moved "
                            "where, and how far beyond the noise of seeds where both are joint maps")
    group = parser.add_argument_group("thresholds of the categories, which every stage that reads the map goes by")
    group.add_argument("--method", choices=THRESHOLD_METHODS, default="median",
                       help="median: cut at the medians unless a threshold is given; percentile: the thresholds are "
                            "percentiles 0..100 (50 and 67 unless given); fixed: they are the values")
    group.add_argument("--confidence_threshold", type=number, help="easy from here on, hard below")
    group.add_argument("--variability_threshold", type=number, help="ambiguous above")
    group = parser.add_argument_group("what is written")
    group.add_argument("--output_dir", help="where the files go; not where they are read (default: ./cartography_map; "
                       "with --compare ./map_comparison)")
    add_artifact_format(group, "form of dynamics and metrics")
    group.add_switch("--error_bars", help="of several maps: draw the standard deviation over runs")
    add_plot_format(group)
    args = parser.parse_args(argv)
    if args.compare:
        for name in ("method", "confidence_threshold", "variability_threshold", "error_bars"):
            if getattr(args, name) != parser.get_default(name):
                parser.error(f"--{name} does nothing with --compare: each map is taken at its own thresholds")
        if format_of(args):
            parser.error("--artifact_format does nothing with --compare: it writes no map")
    args.output_dir = args.output_dir or ("./map_comparison" if args.compare else "./cartography_map")
    # A directory may have commas and blanks in its name.
    args.cartography_dir = [each for text in args.cartography_dir
                            for each in ([text] if Path(text).exists() else filter(None, text.split(",")))]
    if args.error_bars and (args.training_dynamics or len(args.cartography_dir) < 2):
        parser.error("--error_bars draws the spread over runs: give the maps of several to --cartography_dir")
    return args


def read_epochs(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The recorded epochs in order; none where only metrics are read."""
    if args.training_dynamics:
        return read_logged_logits(args.training_dynamics)
    return read_dynamics(args.cartography_dir[0]) if holds_dynamics(args.cartography_dir[0]) else iter(())


def read_metrics(args: argparse.Namespace) -> pd.DataFrame:
    """The metrics as they were written; from the epochs where nobody wrote them, as a trainer that was stopped."""
    source = Path(args.cartography_dir[0])
    if not args.training_dynamics:
        if any(source.glob("cartography_metrics.*")) or not holds_dynamics(source):
            return load_cartography_metrics(source)
    return compute_metrics(read_epochs(args))


def write_again(args: argparse.Namespace) -> None:
    """One map at the thresholds asked for."""
    source = Path(args.training_dynamics or args.cartography_dir[0])
    asked, form = thresholds_asked(args), format_of(args)
    check_asked(**asked)
    streamed = None if args.training_dynamics else to_stream(source, form)
    if streamed is None:
        metrics = read_metrics(args)
    if "n_runs" in (metrics if streamed is None else streamed.columns):
        raise UserError(f"{source} is a joint map, whose columns of categories and stability are of its own "
                        "thresholds: give --cartography_dir the maps that it was made of (joint_map.json names them)")
    recorded = recorded_dataset(source)
    title = title_of(recorded, source)

    inputs = {"training_dynamics" if args.training_dynamics else "cartography": source}
    with stage(args.output_dir, settings_of(args, source), owns=CARTOGRAPHY_FILES, inputs=inputs,
               datasets=[recorded]) as path:
        hand_on_digests(path, source)
        written = written_learning(source) or {}
        if streamed is not None:
            metrics, table = stream_again(path, streamed, title, written.get("guessing"), **asked)
        else:
            form = format_for(len(metrics), form)
            learning, by_epoch = Learning(written.get("guessing")), ByEpoch(**asked)
            for epoch in by_epoch.follow(learning.follow(read_epochs(args))):
                columns = {name: values for name, values in epoch.items() if name not in ("epoch", "id", "gold")}
                write_dynamics(path, epoch["epoch"], epoch["id"], columns, form)
            known = learning.record(metrics) if learning.accuracy else written
            table = by_epoch.table()
            write_cartography(path, metrics, title, learning=known, by_epoch=table, artifact_format=form, **asked)
        if table is not None:
            plot_by_epoch(path / f"{BY_EPOCH_PICTURE}.png", table, title)

    print(f"{title}, n = {len(metrics):,}: {counted(metrics, category_thresholds(metrics, **asked))}")
    by_epoch_files = "" if table is None else f", categories_by_epoch.csv and {BY_EPOCH_PICTURE}.png"
    print(f"wrote metrics, thresholds.json, cartography_map.png{by_epoch_files} to {path}")


def join_runs(args: argparse.Namespace) -> None:
    """The maps of several runs as one, with its stability."""
    runs = read_runs(args.cartography_dir)
    asked = thresholds_asked(args)
    joint = join(runs, **asked)
    recorded = joint_identity(runs)
    first = next((run.path for run in runs if run.recorded), runs[0].path)
    title = title_of(recorded, first)

    inputs = {f"run {place}": run.path for place, run in enumerate(runs, 1)}
    with stage(args.output_dir, settings_of(args, first), owns=CARTOGRAPHY_FILES, inputs=inputs,
               datasets=[recorded]) as path:
        hand_on_digests(path, first)
        write_joint(path, joint, title, error_bars=args.error_bars, artifact_format=format_of(args), **asked)
        if said := next((run.path / OUT_OF_FOLD_FILE for run in runs if (run.path / OUT_OF_FOLD_FILE).exists()), None):
            shutil.copyfile(said, path / OUT_OF_FOLD_FILE)
            logger.info(f"{OUT_OF_FOLD_FILE} is that of {said.parent}: what models say out of fold is not joined")

    cuts = category_thresholds(joint.metrics, **asked)
    print(f"{title}, n = {len(joint.metrics):,}: {counted(joint.metrics, cuts)}")
    print(said_of(joint, runs))
    print(f"wrote the joint map, joint_map.json, run_agreement.csv, agreement_curve.csv and stability.png to {path}")


def compare_maps(args: argparse.Namespace) -> None:
    """Who moved where between two maps."""
    found = compare(*args.compare)
    inputs = dict(zip(("A", "B"), args.compare, strict=True))
    with stage(args.output_dir, args, owns=COMPARISON_FILES, inputs=inputs,
               datasets=[recorded_dataset(path) for path in args.compare]) as path:
        for source in args.compare:
            hand_on_digests(path, source)
        write_comparison(path, found)
    print(said_of_comparison(found))
    print(f"wrote moved.csv, category_moves.csv, map_comparison.json and moved_map.png to {path}")


def thresholds_asked(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("method", "confidence_threshold", "variability_threshold")}


def title_of(recorded: dict[str, Any] | None, source: Path) -> str:
    name = dataset_label(recorded["dataset"], recorded["split"]) if recorded else source.name
    return name if was_trained_on(source) else f"{name}, not trained on"


def settings_of(args: argparse.Namespace, source: Path) -> dict[str, Any]:
    """The arguments, with those of the training that recorded the map: a suite asks for them."""
    meta = (load_meta(source) or {}).get("arguments", {})
    return {**vars(args), "recorded_with": meta.get("recorded_with", meta) or None}


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    logged = [args.training_dynamics] if args.training_dynamics else args.cartography_dir
    check_not_read(args.output_dir, *(args.compare or logged))
    check_no_recording(args.output_dir, of_training=True)
    if args.compare:
        compare_maps(args)
    elif len(args.cartography_dir) > 1 and not args.training_dynamics:
        join_runs(args)
    else:
        write_again(args)


if __name__ == "__main__":
    main()
