"""Analyse one data map: metrics by question type or label, examples of every category with their text, distributions.

Reads cartography_metrics.csv (run.py --enable_cartography) and the dataset that it was recorded on, or with
--training_dynamics what another trainer logged. Writes {easy,hard,ambiguous}_samples.json, question_type_analysis.csv
(classification and NLI: label_analysis.csv), metric_distributions, metric_correlations and category_by_question_type
(category_by_label) as pictures, with their data as CSV, and the data map by correctness as a picture; with --slice_by
slices_by_epoch too, how the training set did by slice in every epoch.

    python analyze_cartography.py --cartography_dir ./cartography_output
    python analyze_cartography.py --training_dynamics ./logged_dynamics --output_dir ./logged_map
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from datamap.core.artifacts import check_not_read, check_same_dataset, recorded_split, recorded_task, stage
from datamap.core.errors import UserError, command_line
from datamap.core.files import write_csv, write_json
from datamap.core.flags import ALLOW_CHANGED, Parser, positive_int
from datamap.core.parquet import add_artifact_format, format_of
from datamap.core.plots import add_plot_format, dataset_label, picture_files
from datamap.core.tables import safe_to_open
from datamap.tasks.registry import add_task_flags, task_of

OWNS = (
    "question_type_analysis.csv", "label_analysis.csv", "*_samples.json", "metric_distributions.*",
    "metric_correlations.*", "cartography_metrics.*", "thresholds.json", "slices_by_epoch.*",
    *picture_files("category_by_question_type", "category_by_label", "cartography_map",
                   "cartography_map_by_correctness"),
)
ROWS_PRINTED = 12

logger = logging.getLogger(__name__)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Analyse one data map: question types or labels, samples of every category, distributions.")
    group = parser.add_argument_group("what is read")
    group.add_argument("--cartography_dir", default="./cartography_output",
                       help="directory that run.py --enable_cartography wrote")
    group.add_argument("--training_dynamics", metavar="DIR",
                       help="read dynamics_epoch_N.jsonl (guid, logits_epoch_N, gold) of another trainer instead, and "
                            "write cartography_metrics.csv, .json and the map into --output_dir")
    group.add_argument("--dataset", help="dataset with the texts (default: the one recorded in the artifact)")
    group.add_argument("--split", help="its split (default: the one recorded in the artifact, else train)")
    add_task_flags(group)
    group.add_switch("--allow_changed", help=ALLOW_CHANGED)
    group.add_list("--slice_by", help="columns of the dataset: how the training set did in every epoch on each of "
                                      "their values, and on every combination")
    group = parser.add_argument_group("what is written")
    group.add_argument("--n_examples", type=positive_int, default=20, help="samples per category")
    group.add_argument("--output_dir", default="./cartography_analysis", help="where the files go")
    add_artifact_format(group, "form of the metrics, where it writes a map")
    add_plot_format(group)
    moved = ("--threshold_method", "--confidence_threshold", "--variability_threshold")
    group.add_argument(*moved, dest="moved", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if "moved" in args:
        parser.error(f"{', '.join(moved)}: the thresholds belong to the map, so that every stage cuts alike; "
                     "dataset_cartography.py writes it again with others")
    return args


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from datamap.analysis import map_summary as summary
    from datamap.analysis.slice_epochs import RATE, slices_by_epoch
    from datamap.cartography.categories import CATEGORIES, category_thresholds, counted, with_categories
    from datamap.cartography.dynamics import read_dynamics, read_logged_logits
    from datamap.cartography.learning import MEANS_NOTHING, Learning
    from datamap.cartography.maps import (
        check_no_recording,
        load_map,
        map_learning,
        plot_map_by_correctness,
        write_cartography,
    )
    from datamap.cartography.metrics import compute_metrics
    from datamap.tasks import slices

    source = Path(args.training_dynamics or args.cartography_dir)
    makes_map = bool(args.training_dynamics) or ".jsonl" in source.suffixes  # made elsewhere: it has no map yet
    if format_of(args) and not makes_map:
        raise UserError(f"--artifact_format is the form of a map that is written, and {source} is one already; leave "
                        "it out, or write the map again with dataset_cartography.py")
    check_not_read(args.output_dir, source)
    check_no_recording(args.output_dir)
    if args.training_dynamics:
        learning = Learning()
        metrics = compute_metrics(learning.follow(read_logged_logits(source)))
        known, cuts = learning.record(metrics), category_thresholds(metrics)
        frame = with_categories(metrics, cuts)
    else:
        frame, cuts = load_map(source)
        metrics = frame.drop(columns="category")
        known = map_learning(source, metrics)
    split = recorded_split(source, args.dataset, args.split, task_of(args, recorded_task(source)))
    name = dataset_label(split.name, split.split) if split else source.name
    if split is None:
        logger.info(f"{source} records no dataset and --dataset names none: no texts, no question types or labels")
    else:
        split.allow_changed = args.allow_changed
        changed = check_same_dataset(source, frame.index, split)
        # After the cuts, which are those of all metrics.
        frame = frame[frame.index.isin(split.ids) & ~frame.index.isin(changed)]

    by_epoch = None
    if args.slice_by and split is None:
        raise UserError(f"--slice_by: {source} records no dataset with these columns; name it with --dataset")
    if args.slice_by and split is not None:
        epochs = read_logged_logits(source) if args.training_dynamics else read_dynamics(source)
        by_epoch = slices_by_epoch(epochs, split, args.slice_by, changed)
    caption = f"{name}, n = {len(frame):,}; cuts: confidence {cuts[0]:.3g}, variability {cuts[1]:.3g}"
    if known and known["warning"]:
        caption += f"\n{MEANS_NOTHING}"
    inputs = {"training_dynamics" if args.training_dynamics else "cartography": source}
    with stage(args.output_dir, args, owns=OWNS, inputs=inputs, datasets=[split and split.identity()]) as path:
        if makes_map:
            write_cartography(path, metrics, name, learning=known, artifact_format=format_of(args))
        if "correctness" in frame:
            plot_map_by_correctness(frame, path / "cartography_map_by_correctness.png", caption, cuts)
        for category in CATEGORIES:
            write_json(path / f"{category}_samples.json", summary.samples(frame, category, args.n_examples, split))
        table = summary.distributions(frame)
        write_csv(path / "metric_distributions.csv", table)
        summary.plot_distributions(path / "metric_distributions.png", table, cuts, caption)
        table = summary.correlations(frame)
        write_csv(path / "metric_correlations.csv", table)
        summary.plot_correlations(path / "metric_correlations.png", table, summary.metric_columns(frame), caption)
        if split is not None:
            by, by_group = summary.groups_analysis(frame, split)
            write_csv(path / f"{by}_analysis.csv", safe_to_open(by_group))
            summary.plot_groups(path / f"category_by_{by}.png", by_group, by, caption)

        if by_epoch is not None:
            write_csv(path / "slices_by_epoch.csv", safe_to_open(by_epoch))
            slices.plot_by_epoch(path / "slices_by_epoch.png", by_epoch, args.slice_by, RATE,
                                 f"The training set by {' and '.join(args.slice_by)} in every epoch",
                                 f"{name}; in the training's own passes, with dropout")

    print(f"{caption}\n{counted(frame, cuts)}")
    print(summary.printed_groups(summary.group_table(frame.assign(all="all"), "all"), "all", ROWS_PRINTED))
    if split is not None:
        print(summary.printed_groups(by_group, by, ROWS_PRINTED))
    if by_epoch is not None:
        last = by_epoch[by_epoch["epoch"] == by_epoch["epoch"].max()].drop(columns="epoch").reset_index(drop=True)
        print(f"epoch {by_epoch['epoch'].max()} of the training\n{slices.printed(last, 'slices_by_epoch.csv')}")
    print(f"wrote tables, samples and pictures to {path}")


if __name__ == "__main__":
    main()
