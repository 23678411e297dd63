"""Choose k examples of a dataset to train on, and say why.

Reads a dataset, and the model, cartography or embedding directory that the selector needs. Writes selected.csv (id,
rank, score, reason) and selection_meta.json to --output_dir; run.py --train_ids trains on them.

    python select_subset.py --selector kcenter --fraction 0.1 --dataset stanfordnlp/sst2 --seed 42 \\
        --output_dir ./selection_output
    python select_subset.py --selector stratified --k 50 --dataset demo:nli --task nli --strata token_count label
    python select_subset.py --list
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import resource
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamap.core.artifacts import check_not_read, check_writable, recorded_task, stage
from datamap.core.errors import UserError, command_line, name_a_few
from datamap.core.files import write_csv, write_json
from datamap.core.splits import Split, load_split
from datamap.selection.arguments import parse_args
from datamap.selection.selectors import FILLED, SELECTORS, Features, count_of, described, select
from datamap.tasks.base import Task, task_of

OWNS = ("selected.csv", "selection_meta.json")
COMMON = ("model", "max_length", "doc_stride", "batch_size", "max_samples")
MADE_BY = {"cartography_dir": "run.py --enable_cartography", "embedding_dir": "extract_embeddings.py"}

logger = logging.getLogger(__name__)


# --- choosing -----------------------------------------------------------------------------------------------------


def candidates(args: argparse.Namespace, task: Task) -> tuple[Split, np.ndarray]:
    """The examples that can be trained on, in the order of their ids, and their places in the dataset as loaded."""
    split = load_split(args.dataset, args.split, task, args.max_samples)
    usable = split.task.is_usable(split.data)
    if not usable.all():
        bad = np.asarray(split.ids)[~usable].tolist()
        logger.warning(f"{len(bad):,} of {len(usable):,} examples ({name_a_few(bad)}) are not chosen from: "
                       f"{split.task.unusable}")
    ids = split.ids
    position = np.array(sorted(np.flatnonzero(usable).tolist(), key=lambda row: ids[row]), dtype=np.int64)
    return dataclasses.replace(split, data=split.data.select(position)), position


def strata_of(split: Split, column: str) -> np.ndarray:
    label_column = getattr(split.task, "label_column", "")
    name = label_column if column == "label" and label_column else column
    if name not in split.data.column_names:
        raise UserError(f"--stratify {column}: {split.name} has no such column; there is "
                        f"{', '.join(split.data.column_names)}")
    values = split.data[name][:]
    if any(isinstance(value, list | dict) for value in values):
        raise UserError(f"--stratify {column}: expected a value per example, found {values[0]!r:.60}")
    return np.array([str(value) for value in values])


def label_counts(split: Split, ids: Sequence[str]) -> dict[str, int] | None:
    """How many of the chosen have each label, the commonest first; None where there are no labels."""
    column = getattr(split.task, "label_column", "")
    if not column:
        return None
    chosen, names = set(ids), split.data.features[column].names
    labels = (names[label] for example, label in zip(split.ids, split.data[column][:], strict=True)
              if example in chosen)
    return dict(Counter(labels).most_common())


def check_places(args: argparse.Namespace, sources: Mapping[str, str]) -> None:
    """Whether what is read is there, and what is written can be, and in another place."""
    check_writable(args.output_dir)
    check_writable(args.cache_dir)
    for flag in ("cartography_dir", "embedding_dir"):
        if flag in sources and not Path(sources[flag]).exists():
            raise UserError(f"--{flag} {sources[flag]}: no such file or directory; {MADE_BY[flag]} writes it")
    local = [path for path in (*sources.values(), args.model, args.causal_lm) if Path(path).exists()]
    check_not_read(args.output_dir, *local)


def peak_memory() -> float:
    """The most memory that this process, or one that it started, has held so far, MB."""
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return most / (1024**2 if sys.platform == "darwin" else 1024)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.list:
        print(described())
        return
    from datamap.selection.features import features_for

    settings, sources, read = (args.__dict__.pop(name) for name in ("settings", "sources", "read"))
    check_places(args, sources)
    split, position = candidates(args, task_of(args, recorded_task(*sources.values())))
    n = len(position)
    k = args.k or count_of(args.fraction, n)
    if k > n:
        raise UserError(f"--k {k:,} is more than the {n:,} examples that there are to choose from")
    # A name of its own: a column may be called as a feature is.
    stratify = f"column {args.stratify}" if args.stratify else None
    strata = {stratify: strata_of(split, args.stratify)} if stratify else {}
    values, costs = features_for(split, position, args.features, args)
    began = time.monotonic()
    chosen = select(Features(split.ids, values | strata), args.selector, k, args.seed, settings,
                    stratify=stratify)
    seconds = time.monotonic() - began
    meta: dict[str, Any] = {
        "selector": args.selector, "what": SELECTORS[args.selector].what, "k": k, "n": n, "fraction": k / n,
        "seed": args.seed, "stratify": args.stratify, "fill": args.fill, "dataset": split.identity(),
        "settings": {**{name: getattr(args, name) for name in [*COMMON, *read]}, "members": settings.members},
        "features": costs,
        "select_seconds": round(seconds, 3),
        "seconds": round(seconds + sum(cost["seconds"] for cost in costs.values()), 3),
        "peak_memory_mb": round(peak_memory(), 1),
        "filled": int(chosen["reason"].str.startswith(FILLED).sum()),
        "labels": label_counts(split, chosen["id"].tolist()),
    }
    if meta["labels"] and k > 1 and len(meta["labels"]) == 1:
        logger.warning(f"every chosen example has the label {next(iter(meta['labels']))!r}; --stratify label keeps "
                       "the proportions of the dataset")
    with stage(args.output_dir, args, owns=OWNS, inputs=sources, datasets=[split.identity()]) as path:
        write_csv(path / "selected.csv", chosen)
        write_json(path / "selection_meta.json", meta)
    if meta["filled"]:
        logger.warning(f"{args.selector} left {k - meta['filled']:,}; {meta['filled']:,} were drawn at random")
    train_split = [] if args.split == "train" else ["--train_split", args.split]
    task = split.task.settings()
    columns = ["--text_columns", *task["text_columns"], "--label_column", task["label_column"]] if (
        "label_column" in task and (args.text_columns or args.label_column)
    ) else []
    command = ["python", "run.py", "--do_train", "--task", args.task, "--dataset", args.dataset, *train_split,
               *columns, "--train_ids", str(path / "selected.csv")]
    print(f"train on them: {shlex.join(command)}")
    print(f"wrote {k:,} of {n:,} ids, chosen by {args.selector} in {meta['seconds']:.1f} s, to {path}")


if __name__ == "__main__":
    main()
