"""How the training set does by slice in every epoch, from the dynamics that were recorded while it was trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from datamap.core.errors import UserError, name_a_few
from datamap.core.intervals import wilson_interval
from datamap.core.splits import Split
from datamap.tasks.slices import slice_columns, slice_table

RATE = "correctness"
MEANS = ("confidence", "loss")


def slices_by_epoch(
    epochs: Iterable[Mapping[str, Any]], split: Split, columns: Sequence[str], without: Collection[str] = ()
) -> pd.DataFrame:
    """The rows of ``slice_table`` for every epoch, below each other, with ``epoch`` (from 1) first.

    epochs: of ``read_dynamics`` or ``read_logged_logits``; without: ids whose texts have changed since.
    ``n``: examples of the slice recorded in the epoch; ``correctness``: the share of them that was predicted exactly
    right, 0..1, with its 95 % interval ``low, high`` (Wilson); ``confidence`` and ``loss``: means, where they were
    recorded. All are of the training's own forward passes, before each update and with dropout. UserError for columns
    that there are not, or that are called as one of these.
    """
    if taken := sorted({"epoch", RATE, *MEANS} & set(columns)):
        raise UserError(f"--slice_by: {name_a_few(taken)} is also a column of slices_by_epoch.csv; rename it in the "
                        "data")
    recorded = [dict(epoch) for epoch in epochs]
    known = {example for epoch in recorded for example in epoch["id"]} - set(without)
    data = split.data.select([row for row, example in enumerate(split.ids) if example in known])
    values = slice_columns(data, columns, f"{split.name} [{split.split}]")
    place = pd.Index(data["id"][:])
    tables = []
    for epoch in recorded:
        rows = place.get_indexer(pd.Index(epoch["id"]))
        there = rows >= 0
        numbers = {name: np.full(len(place), np.nan) for name in (RATE, *MEANS)}
        for name, column in ((RATE, "correct"), *((each, each) for each in MEANS)):
            if column in epoch:
                numbers[name][rows[there]] = np.asarray(epoch[column], dtype=float)[there]
        table = slice_table(values, lambda mask, numbers=numbers: _statistics(numbers, mask))  # type: ignore[misc]
        table.insert(0, "epoch", epoch["epoch"])
        tables.append(table)
    return pd.concat(tables, ignore_index=True).dropna(axis=1, how="all")


def _statistics(numbers: Mapping[str, np.ndarray], mask: np.ndarray) -> dict[str, float]:
    right = numbers[RATE][mask]
    right = right[~np.isnan(right)]
    low, high = wilson_interval(right.sum(), len(right))
    found: dict[str, float] = {"n": len(right), RATE: right.mean() if len(right) else np.nan, "low": low, "high": high}
    for name in MEANS:
        of_slice = numbers[name][mask]
        of_slice = of_slice[~np.isnan(of_slice)]
        found[name] = of_slice.mean() if len(of_slice) else np.nan
    return found
