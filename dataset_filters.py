"""Filter a dataset, by cartography, clusters, error rules or chance, into files that run.py trains on.

Reads a dataset, a filter config (JSON) and the files that its filters name. Writes train.jsonl, filter_report.json
and run_meta.json; training on the directory is training on exactly the examples that run.py --filter_config keeps.

    python dataset_filters.py --filter_config example_configs/filters.json --output_dir ./filtered
    python dataset_filters.py --dataset demo:clinical --filter_config example_configs/filters.json \\
        --output_dir ./filtered && python run.py --do_train --model tiny --dataset ./filtered --no_cuda

From Python: ``from dataset_filters import apply_filters``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from datamap.analysis.filter_config import (
    MISSING,
    MISSING_HELP,
    apply_filters,
    filter_inputs,
    load_filter_config,
    validate_config,
    with_missing,
)
from datamap.analysis.filters import (
    AmbiguousQuestionFilter,
    CategoryFilter,
    ClusterFilter,
    ConfidenceThresholdFilter,
    Filter,
    MetricFilter,
    RandomFilter,
    RuleFilter,
)
from datamap.core.artifacts import check_not_read, recorded_cap, recorded_dataset, recorded_task, stage
from datamap.core.errors import UserError, command_line
from datamap.core.files import write_json
from datamap.core.flags import (
    ALLOW_CHANGED,
    DEFAULT_DATASET,
    DEFAULT_SEED,
    Parser,
    number,
    positive_int,
    seed_number,
)
from datamap.tasks.registry import add_task_flags, task_of
from datamap.training.data import training_split, write_split

__all__ = [
    "AmbiguousQuestionFilter", "CategoryFilter", "ClusterFilter", "ConfidenceThresholdFilter", "Filter",
    "MetricFilter", "RandomFilter", "RuleFilter", "apply_filters", "load_filter_config", "validate_config",
]

OWNS = ("train.jsonl", "filter_report.json")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Filter a dataset into files that run.py trains on.")
    parser.add_argument("--filter_config", metavar="FILE", required=True, help="JSON of filter blocks")
    parser.add_argument("--output_dir", required=True, help="where the files go; a dataset directory for --dataset")
    group = parser.add_argument_group("data")
    group.add_argument("--dataset",
                       help="Hub name or name:subset, file (.json .jsonl .csv .parquet), directory, or demo:NAME "
                            f"(default: that of what the filters read, else {DEFAULT_DATASET})")
    group.add_argument("--split", dest="train_split", metavar="SPLIT", default="train",
                       help="split to filter; what is written is called train")
    add_task_flags(group)
    group.add_argument("--max_train_samples", type=positive_int, metavar="N", help="first N rows, before any filter "
                       "(default: those that what the filters read was made from)")
    group = parser.add_argument_group("filters")
    group.add_switch("--allow_changed", help=ALLOW_CHANGED)
    group.add_argument("--missing", choices=MISSING, help=MISSING_HELP)
    group.add_argument("--max_drop_percentage", type=lambda text: number(text, 0, 100), metavar="PERCENT",
                       help="refuse to drop more than this, 0..100 (default: no limit)")
    group.add_argument("--seed", type=seed_number, default=DEFAULT_SEED, help="of the filter random")
    parser.set_defaults(train_ids=None)
    args = parser.parse_args(argv)
    args.filters = with_missing(load_filter_config(args.filter_config), args.missing)
    if not validate_config(args.filters):
        raise UserError(f"{args.filter_config} enables no filter; nothing would be filtered")
    return args


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    inputs = filter_inputs(args.filters)
    recorded = next(filter(None, map(recorded_dataset, inputs.values())), {})
    args.dataset = args.dataset or recorded.get("dataset", DEFAULT_DATASET)
    blocks = [each for value in args.filters.values() for each in (value if isinstance(value, list) else [value])]
    if not any(block.get("missing") == "keep" for block in blocks):  # who keeps what the map lacks wants it here
        args.max_train_samples = args.max_train_samples or recorded_cap(recorded, args.dataset, args.train_split)
    sources = [*inputs.values(), *([args.dataset] if os.path.exists(args.dataset) else [])]
    check_not_read(args.output_dir, *sources)
    loaded, kept, report = training_split(args, task_of(args, recorded_task(*inputs.values())))
    with stage(args.output_dir, args, owns=OWNS, inputs=inputs, datasets=[loaded]) as path:
        write_split(path / "train.jsonl", kept)
        write_json(path / "filter_report.json", report)
    print(f"wrote {len(kept.data):,} of {len(loaded.data):,} examples and filter_report.json to {path}; "
          f"run.py --dataset {path} trains on them")


if __name__ == "__main__":
    main()
