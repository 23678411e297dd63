"""One table of everything known of each example, and what it says of annotation errors (analyze_dataset.py).

The error rules are for question answering. For a task without them every column and number that comes from them is
absent: neither False nor missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datamap.analysis.error_rules import RULES, flag_errors
from datamap.core.files import nulls_for_nan, plain
from datamap.core.splits import Split

if TYPE_CHECKING:
    import pandas as pd

RULE_COLUMNS = (*RULES, "is_dataset_error")
# High-overlap regions: cells of these categories with at least so many examples and such an error rate.
REGION_CUTS: dict[str, Any] = {"categories": ["hard", "ambiguous"], "min_examples": 10, "min_error_rate": 0.3}


def unified_table(
    split: Split, metrics: pd.DataFrame, clusters: pd.DataFrame, predictions: Sequence[Any] | None
) -> pd.DataFrame:
    """One row per example of the split, in its order; what an example has not is missing (columns: DESIGN 5).

    ``metrics`` (with category) and ``clusters`` are indexed by id. ``predictions``: one per example, None where there
    is none; they feed the error rules, or are the last column, ``predicted_label``, of a task without them. Columns of
    the dataset whose name is taken get the prefix ``data_``; those that hold lists or dicts become JSON text.
    """
    import pandas as pd

    from datamap.cartography.metrics import METRIC_COLUMNS

    ids = pd.Index(split.ids, name="id")
    added = [
        _nullable(metrics[[column for column in (*METRIC_COLUMNS, "category") if column in metrics]]).reindex(ids),
        _nullable(clusters).reindex(ids),
    ]
    readable = split.task.readable(split.data)
    if split.task.has_error_rules:
        texts = (readable["question"], readable["context"], readable["answer"])
        added.append(flag_errors(*texts, predictions).set_axis(ids))
    elif predictions is not None:
        numbers = all(isinstance(label, int | None) for label in predictions)
        values = [label if label is None or numbers else str(label) for label in predictions]
        labels = pd.array(values, dtype="Int64" if numbers else "str")
        added.append(pd.DataFrame({"predicted_label": labels}, index=ids))
    taken = {"id", *(column for table in added for column in table)}
    columns: dict[str, Any] = {}
    for column, values in readable.items():
        columns[_free_name(column, taken, split.data.column_names)] = values
    taken |= columns.keys()
    shown = {"id", *(column for column in split.task.content_columns if column in readable)}
    for column in split.data.column_names:
        if column not in shown:
            columns[_free_name(column, taken, split.data.column_names)] = _plain_column(split, column)
    return pd.concat([pd.DataFrame(columns, index=ids), *added], axis=1).reset_index()


def _free_name(column: str, taken: set[str], original: Sequence[str]) -> str:
    """``column``, or where that is taken ``data_`` before it, as often as gives no other column's name."""
    name = f"data_{column}" if column in taken else column
    while name != column and name in {*taken, *original}:
        name = f"data_{name}"
    return name


def _nullable(frame: pd.DataFrame) -> pd.DataFrame:
    """Integers and booleans in types that can be missing, so that 5 does not become 5.0 beside an empty cell."""
    kinds = {"i": "Int64", "b": "boolean"}
    return frame.astype({name: kinds[kind.kind] for name, kind in frame.dtypes.items() if kind.kind in kinds})


def _plain_column(split: Split, column: str) -> pd.api.extensions.ExtensionArray:
    import pandas as pd
    import pyarrow as pa

    values = split.data.with_format("arrow")[column][:]
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_nested(values.type):
        texts = (
            None if value is None else json.dumps(nulls_for_nan(value), ensure_ascii=False, default=plain)
            for value in values.to_pylist()
        )
        values = pa.array(texts, pa.string())
    return pd.array(values, dtype=pd.ArrowDtype(values.type))


def rule_rates(frame: pd.DataFrame, by: str) -> list[dict[str, Any]]:
    """Per value of ``by``: n, and the fraction of examples that each rule flags, of those it could be applied to."""
    return [
        {by: value, "n": len(group), **{rule: _rate(group[rule]) for rule in RULE_COLUMNS}}
        for value, group in frame.groupby(by)
    ]


def _rate(flags: pd.Series) -> float | None:
    known = flags.dropna()
    return float(known.astype(float).mean()) if len(known) else None


def high_overlap_regions(unified: pd.DataFrame) -> list[dict[str, Any]]:
    """Cells of category x cluster where errors gather (REGION_CUTS), highest error rate first."""
    cells = unified[unified["category"].isin(REGION_CUTS["categories"])].groupby(["category", "cluster"])
    regions = [
        {
            "category": category,
            "cluster": int(cluster),
            "total_examples": len(cell),
            "error_count": int(cell["is_dataset_error"].sum()),
            "error_rate": float(cell["is_dataset_error"].mean()),
        }
        for (category, cluster), cell in cells
    ]
    kept = [
        region
        for region in regions
        if region["total_examples"] >= REGION_CUTS["min_examples"]
        and region["error_rate"] >= REGION_CUTS["min_error_rate"]
    ]
    return sorted(kept, key=lambda region: (-region["error_rate"], -region["total_examples"], region["cluster"]))


def summarize_overlap(unified: pd.DataFrame, num_predicted: int | None) -> dict[str, Any]:
    """The content of overlap_summary.json; ``num_predicted`` is None without predictions."""
    total = len(unified)

    def coverage(n: int) -> dict[str, Any]:
        return {"n": n, "share": n / total}

    mapped, clustered = unified["category"].notna(), unified["cluster"].notna()
    cells = unified.groupby(["category", "cluster"]).size().reset_index(name="n")
    has_rules = set(RULE_COLUMNS) <= set(unified.columns)
    summary: dict[str, Any] = {
        "total_examples": total,
        "coverage": {
            "cartography": coverage(int(mapped.sum())),
            "clusters": coverage(int(clustered.sum())),
            "cartography_and_clusters": coverage(int((mapped & clustered).sum())),
            **({"error_rules": coverage(total)} if has_rules else {}),
            "predictions": None if num_predicted is None else coverage(num_predicted),
        },
    }
    if has_rules:
        summary["dataset_errors"] = coverage(int(unified["is_dataset_error"].sum()))
    summary["category_cluster_distribution"] = cells.to_dict("records")
    if has_rules:
        summary |= {
            "rule_rates": {"n": total, **{rule: _rate(unified[rule]) for rule in RULE_COLUMNS}},
            "rule_rates_by_category": rule_rates(unified, "category"),
            "rule_rates_by_cluster": rule_rates(unified, "cluster"),
            "high_overlap_cuts": REGION_CUTS,
            "high_overlap_regions": high_overlap_regions(unified),
        }
    return summary
