"""Filter a dataset, by cartography, clusters, error rules or chance, or clean it, into files that run.py trains on.

Reads a dataset, a filter config (JSON) and the files that its filters name, or decisions on suspects. Writes
train.jsonl, filter_report.json or cleaning_report.json, and run_meta.json; training on the directory is training on
exactly the examples that run.py --filter_config keeps.

    python dataset_filters.py --filter_config example_configs/filters.json --output_dir ./filtered
    python dataset_filters.py --decisions ./suspects/suspects.csv --eval_split validation --output_dir ./cleaned
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
from datamap.core.artifacts import check_not_read, load_meta, recorded_cap, recorded_dataset, recorded_task, stage
from datamap.core.errors import UserError, command_line
from datamap.core.files import write_json
from datamap.core.flags import (
    ALLOW_CHANGED,
    DEFAULT_DATASET,
    DEFAULT_SEED,
    Parser,
    fraction,
    number,
    positive_int,
    seed_number,
)
from datamap.core.splits import load_split, place_of_dataset
from datamap.detection.cleaning import clean, summary
from datamap.tasks.registry import add_task_flags, task_of
from datamap.training.data import training_split, write_split

__all__ = [
    "AmbiguousQuestionFilter", "CategoryFilter", "ClusterFilter", "ConfidenceThresholdFilter", "Filter",
    "MetricFilter", "RandomFilter", "RuleFilter", "apply_filters", "load_filter_config", "validate_config",
]

REPORTS = ("filter_report.json", "cleaning_report.json")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Filter or clean a dataset into files that run.py trains on.")
    parser.add_argument("--filter_config", metavar="FILE", help="JSON of filter blocks")
    parser.add_argument("--output_dir", required=True, help="where the files go; a dataset directory for --dataset")
    group = parser.add_argument_group("decisions")
    group.add_argument("--decisions", metavar="FILE", help="suspects.csv of analyze_dataset.py --find_errors with its "
                       "column decision filled in (keep, drop, fix), in any dialect of CSV")
    group.add_argument("--drop_above", type=fraction, metavar="SUSPICION", help="drop also what has a higher "
                       "suspicion in that file, 0..1, and no decision (default: no such example is dropped)")
    group = parser.add_argument_group("data")
    group.add_argument("--dataset",
                       help="Hub name or name:subset, file (.json .jsonl .csv .tsv .parquet .pkl), directory or demo: "
                            f"(default: that of what the filters read, else {DEFAULT_DATASET})")
    group.add_argument("--split", dest="train_split", metavar="SPLIT",
                       help="split to filter; what is written is called train (default: that of what the filters "
                            "read, else train)")
    group.add_list("--eval_split", help="further splits to write beside it as they are, so that run.py --do_eval on "
                   "the directory has them (default: none)")
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
    if not (args.filter_config or args.decisions):
        parser.error("nothing to do: give --filter_config, --decisions or both")
    if args.drop_above is not None and not args.decisions:
        parser.error("--drop_above goes by the suspicion in the file of --decisions; name it")
    args.filters = with_missing(load_filter_config(args.filter_config), args.missing) if args.filter_config else {}
    if args.filter_config and not validate_config(args.filters):
        raise UserError(f"{args.filter_config} enables no filter; nothing would be filtered")
    if twice := {"train", args.train_split} & set(args.eval_split or ()):
        parser.error(f"--eval_split {twice.pop()}: that is what is filtered; name others")
    return args


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    inputs = filter_inputs(args.filters) | ({"decisions": args.decisions} if args.decisions else {})
    recorded = next(filter(None, map(recorded_dataset, inputs.values())), {})
    args.dataset = args.dataset or recorded.get("dataset", DEFAULT_DATASET)
    same = place_of_dataset(args.dataset) == recorded.get("dataset")
    args.train_split = args.train_split or (recorded["split"] if same else "train")
    blocks = [each for value in args.filters.values() for each in (value if isinstance(value, list) else [value])]
    if not any(block.get("missing") == "keep" for block in blocks):  # who keeps what the map lacks wants it here
        args.max_train_samples = args.max_train_samples or recorded_cap(recorded, args.dataset, args.train_split)
    sources = [*inputs.values(), *([args.dataset] if os.path.exists(args.dataset) else [])]
    check_not_read(args.output_dir, *sources)
    loaded, kept, report = training_split(args, task_of(args, recorded_task(*inputs.values())))
    cleaning = None
    if args.decisions:
        kept, cleaning = clean(loaded, kept.ids, args.decisions, args.drop_above)
        check_dropped(args, len(loaded.data), len(kept.data))
    others = [load_split(args.dataset, name, loaded.task) for name in args.eval_split or ()]
    reports = {name: content for name, content in zip(REPORTS, (report, cleaning), strict=True) if content}
    with stage(args.output_dir, args, owns=owned(args), inputs=inputs, datasets=[loaded, *others]) as path:
        write_split(path / "train.jsonl", kept)
        for split in others:
            write_split(path / f"{split.split}.jsonl", split)
        for name, content in reports.items():
            write_json(path / name, content)
    if cleaning:
        print(summary(cleaning))
    of_split = "" if args.train_split == "train" else f" of {loaded.split}"
    print(f"wrote {len(kept.data):,} of {len(loaded.data):,} examples{of_split} and {' and '.join(reports)} to "
          f"{path}; run.py --dataset {path} trains on them")


def check_dropped(args: argparse.Namespace, before: int, after: int) -> None:
    share = 100 * (before - after) / before
    if args.max_drop_percentage is not None and share > args.max_drop_percentage:
        raise UserError(f"{before - after:,} of {before:,} examples would be dropped ({share:.1f} %), more than "
                        f"--max_drop_percentage {args.max_drop_percentage:g}")


def owned(args: argparse.Namespace) -> list[str]:
    """Files of the stage, those of an earlier run with other splits too."""
    earlier = (load_meta(args.output_dir) or {}).get("outputs", {}) if os.path.isdir(args.output_dir) else {}
    splits = [f"{name}.jsonl" for name in ("train", *(args.eval_split or ()))]
    return list(dict.fromkeys([*splits, *REPORTS, *(name for name in earlier if name.endswith(".jsonl"))]))


if __name__ == "__main__":
    main()
