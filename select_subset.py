"""Choose k examples of a dataset to train on, and say why.

Reads a dataset, and the model, cartography or embedding directory that the selector needs. Writes selected.csv (id,
rank, score, reason), rejected.csv (id, score, reason) of all others, selection_meta.json, and pictures of what was
chosen on the embeddings and the data map that were read, to --output_dir; run.py --train_ids trains on it.

    python select_subset.py --selector kcenter --fraction 0.1 --dataset stanfordnlp/sst2 --seed 42 \\
        --output_dir ./selection_output
    python select_subset.py --selector stratified --k 50 --dataset demo:nli --task nli --strata token_count label
    python select_subset.py --list
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from datamap.core.artifacts import recorded_task, stage
from datamap.core.errors import UserError, command_line
from datamap.core.files import write_csv, write_json
from datamap.selection.arguments import check_places, parse_args, training_command
from datamap.selection.base import FILLED, SELECTORS, Features, count_of
from datamap.selection.candidates import load_candidates
from datamap.selection.features import computed, features_for, peak_memory
from datamap.selection.pictures import PICTURES, pictures, write_pictures
from datamap.selection.selectors import described, rejected, select
from datamap.tasks.registry import task_of

OWNS = ("selected.csv", "rejected.csv", "selection_meta.json", *PICTURES)
COMMON = ("model", "max_length", "doc_stride", "batch_size", "max_samples")

logger = logging.getLogger(__name__)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import pandas as pd  # after mistakes in the flags, which are answered at once

    if args.list:
        print(described())
        return
    check_places(args, args.sources)
    candidates = load_candidates(args, task_of(args, recorded_task(*args.sources.values())))
    split, n = candidates.split, len(candidates.ids)
    k = args.k or count_of(args.fraction, n)
    if k > n:
        raise UserError(f"--k {k:,} is more than the {n:,} examples that there are to choose from")
    # A name of its own: a column may be called as a feature is.
    stratify = f"column {args.stratify}" if args.stratify else None
    strata = {stratify: candidates.strata(args.stratify)} if stratify else {}

    values, costs = features_for(candidates)
    began = time.monotonic()
    features = Features(candidates.ids, values | strata)
    chosen = select(features, args.selector, k, args.seed, args.settings, stratify=stratify)
    seconds = time.monotonic() - began

    unusable = pd.DataFrame({"id": candidates.unusable, "score": np.nan,
                             "reason": split.task.unusable or "cannot be trained on"})
    others = rejected(features, args.selector, chosen, args.settings)
    others = pd.concat([others, unusable]) if len(unusable) else others
    labels = candidates.label_counts(chosen["id"].tolist())
    if labels and k > 1 and len(labels) == 1:
        logger.warning(f"every chosen example has the label {next(iter(labels))!r}; --stratify label keeps the "
                       "proportions of the dataset")
    settings = {name: getattr(args, name) for name in [*COMMON, *args.read]}
    meta: dict[str, Any] = {
        "selector": args.selector, "what": SELECTORS[args.selector].what, "k": k, "n": n, "fraction": k / n,
        "seed": args.seed, "stratify": args.stratify, "fill": args.fill, "dataset": split.identity(),
        "settings": {**settings, "members": args.settings.members},
        "features": costs,
        "select_seconds": round(seconds, 3),
        "seconds": round(seconds + sum(cost["seconds"] for cost in costs.values()), 3),
        "peak_memory_mb": round(peak_memory(), 1),
        "filled": int(chosen["reason"].str.startswith(FILLED).sum()),
        "labels": labels,
    }
    if args.embedding_dir:
        computed(candidates, "embeddings")  # also where the selector does not read them
    drawn = pictures(candidates, chosen["id"].tolist())
    flags = {name: value for name, value in vars(args).items() if name not in ("settings", "sources", "read")}
    with stage(args.output_dir, flags, owns=OWNS, inputs=args.sources, datasets=[split]) as path:
        write_csv(path / "selected.csv", chosen)
        write_csv(path / "rejected.csv", others)
        write_json(path / "selection_meta.json", meta)
        write_pictures(path, drawn)
    if meta["filled"]:
        logger.warning(f"{args.selector} left {k - meta['filled']:,}; {meta['filled']:,} were drawn at random")
    print(f"train on them: {training_command(args, split.task, path)}")
    print(f"wrote {k:,} of {n:,} ids, chosen by {args.selector} in {meta['seconds']:.1f} s, and the rest to {path}")


if __name__ == "__main__":
    main()
