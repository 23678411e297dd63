"""One table of everything known of each example, predictions too, and what it says of annotation errors.

The error rules are for question answering. For a task without them every column and number that comes from them is
absent: neither False nor missing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from datamap.analysis.error_rules import RULES, flag_errors
from datamap.cartography.metrics import JOINT_COLUMNS, METRIC_COLUMNS
from datamap.core.artifacts import artifact_file
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import nulls_for_nan, read_jsonl
from datamap.core.splits import Split
from datamap.core.tables import free_name, further_columns
from datamap.tasks.span_errors import span_errors

RULE_COLUMNS = (*RULES, "is_dataset_error")
# High-overlap regions: cells of these categories with at least so many examples and such an error rate.
REGION_CUTS: dict[str, Any] = {"categories": ["hard", "ambiguous"], "min_examples": 10, "min_error_rate": 0.3}

logger = logging.getLogger(__name__)


def read_predictions(path: str | Path, column: str) -> tuple[Path, dict[str, dict[str, Any]]]:
    """eval_predictions.jsonl, or any JSON Lines with ``id`` and ``column``, and its rows by id.

    A ``predicted_answer`` is a text, a ``predicted_label`` a text or a number; both may be null.
    """
    kind, expected = (str, "text") if column == "predicted_answer" else (str | int, "label")
    file = artifact_file(path, "eval_predictions.jsonl", "run.py --do_eval")
    lines = read_jsonl(file, ("id", column))
    rows = {str(row["id"]): row for row in lines}
    if len(rows) < len(lines):
        raise UserError(f"{file}: {len(lines) - len(rows):,} ids occur more than once; one prediction per example")
    wrong = [example for example, row in rows.items() if not isinstance(row[column], kind | None)]
    if wrong:
        raise UserError(f"{file}: {column} of {name_a_few(wrong)} is not a {expected}")
    return file, rows


def predictions_of(path: str | Path, split: Split) -> list[Any]:
    """The prediction for every example of the split, None where the file has none: ``predicted_answer`` for a task
    with error rules, else ``predicted_label``.

    An example whose text has changed since counts as not predicted, unless ``split.allow_changed``. Predictions of
    another dataset (no shared ids, or another text under every one) are a UserError.
    """
    column = "predicted_answer" if split.task.has_error_rules else "predicted_label"
    file, rows = read_predictions(path, column)
    this = f"{split.name} [{split.split}]"
    shared = [example for example in split.ids if example in rows]
    if not shared:
        raise UserError(f"{file} holds predictions of {name_a_few(rows)} and shares no ids with {this}; "
                        f"run.py --do_eval --eval_split {split.split} predicts that")
    changed: set[str] = set()
    for name in split.task.text_columns:
        pairs = zip(split.ids, split.data[name][:], strict=True)
        changed |= {example for example, text in pairs if rows.get(example, {}).get(name, text) != text}
        if len(changed) == len(shared):
            raise UserError(f"{file} has another {name} than {this} under the same ids ({name_a_few(shared)}); run.py "
                            f"--do_eval --eval_split {split.split} predicts that")
    if changed and not split.allow_changed:
        logger.warning(f"{file}: the texts of {len(changed):,} of {len(shared):,} examples "
                       f"({name_a_few(sorted(changed))}) have changed since; their predictions are left out "
                       "(--allow_changed takes them)")
        rows = {example: row for example, row in rows.items() if example not in changed}
        shared = [example for example in shared if example not in changed]
    logger.info(f"{file} covers {len(shared):,} of {len(split.ids):,} examples ({len(shared) / len(split.ids):.1%})")
    return [rows[example][column] if example in rows else None for example in split.ids]


def unified_table(
    split: Split, metrics: pd.DataFrame, clusters: pd.DataFrame, predictions: Sequence[Any] | None,
    rule_weights: str = "equal",
) -> pd.DataFrame:
    """One row per example of the split, in its order; what an example has not is missing (columns: DESIGN 5).

    ``metrics`` (with category) and ``clusters`` are indexed by id. ``predictions``: one per example, None where there
    is none; they feed the error rules (``rule_weights``: as in ``flag_errors``), and are the last columns:
    ``predicted_answer`` and ``span_error``, one of ``SPAN_ERRORS``, or ``predicted_label`` of a task without these
    rules. Columns of the dataset whose name is taken get the prefix ``data_``; those that hold lists or dicts become
    JSON text.
    """
    ids = pd.Index(split.ids, name="id")
    of_map = metrics[[column for column in (*METRIC_COLUMNS, *JOINT_COLUMNS, "category") if column in metrics]]
    added = [_nullable(of_map).reindex(ids), _nullable(clusters).reindex(ids)]
    readable = split.task.readable(split.data)
    if split.task.has_error_rules:
        texts = (readable["question"], readable["context"], readable["answer"])
        added.append(flag_errors(*texts, predictions, rule_weights=rule_weights).set_axis(ids))
        if predictions is not None:
            errors = span_errors(split.data["context"][:], split.data["answers"][:], predictions)
            said = {"predicted_answer": list(predictions), "span_error": errors}
            added.append(pd.DataFrame(said, index=ids, dtype="str"))
    elif predictions is not None:
        kind = "Int64" if all(isinstance(label, int | None) for label in predictions) else "str"
        labels = [str(label) if kind == "str" and label is not None else label for label in predictions]
        added.append(pd.DataFrame({"predicted_label": pd.array(labels, dtype=kind)}, index=ids))
    taken = {"id", *(column for table in added for column in table)}
    columns: dict[str, Any] = {
        free_name(column, taken, split.data.column_names): values for column, values in readable.items()
    }
    shown = {"id", *(column for column in split.task.content_columns if column in readable)}
    columns |= further_columns(split.data, shown, {*taken, *columns})
    return pd.concat([pd.DataFrame(columns, index=ids), *added], axis=1).reset_index()


def _nullable(frame: pd.DataFrame) -> pd.DataFrame:
    """Integers and booleans in types that can be missing, so that 5 does not become 5.0 beside an empty cell."""
    kinds = {"i": "Int64", "b": "boolean"}
    return frame.astype({name: kinds[kind.kind] for name, kind in frame.dtypes.items() if kind.kind in kinds})


def rule_rates(frame: pd.DataFrame) -> dict[str, Any]:
    """n, and the fraction of examples that each rule flags, of those it could be applied to."""
    return {"n": len(frame), **nulls_for_nan(frame[list(RULE_COLUMNS)].astype(float).mean().to_dict())}


def high_overlap_regions(unified: pd.DataFrame) -> list[dict[str, Any]]:
    """Cells of category x cluster where errors gather (REGION_CUTS), highest error rate first."""
    cells = unified[unified["category"].isin(REGION_CUTS["categories"])].groupby(["category", "cluster"])
    table = cells["is_dataset_error"].agg(total_examples="size", error_count="sum", error_rate="mean").reset_index()
    table = table[(table["total_examples"] >= REGION_CUTS["min_examples"])
                  & (table["error_rate"] >= REGION_CUTS["min_error_rate"])]
    order = ["error_rate", "total_examples", "cluster", "category"]
    return table.sort_values(order, ascending=[False, False, True, True]).to_dict("records")


def summarize_overlap(unified: pd.DataFrame, num_predicted: int | None) -> dict[str, Any]:
    """The content of overlap_summary.json; ``num_predicted`` is None without predictions."""
    total = len(unified)

    def coverage(n: int) -> dict[str, Any]:
        return {"n": n, "share": n / total}

    mapped, clustered = unified["category"].notna(), unified["cluster"].notna()
    has_rules = "is_dataset_error" in unified
    cells = unified.groupby(["category", "cluster"]).size().reset_index(name="n")
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
            "rule_rates": rule_rates(unified),
            **{f"rule_rates_by_{by}": [{by: value, **rule_rates(group)} for value, group in unified.groupby(by)]
               for by in ("category", "cluster")},
            "high_overlap_cuts": REGION_CUTS,
            "high_overlap_regions": high_overlap_regions(unified),
        }
    return summary
