"""The numbers of the page's overview, of all examples of the split: each is the one that the CSVs give too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.analysis.clusters import NOISE, cluster_name
from datamap.analysis.map_summary import group_table
from datamap.analysis.unified_table import RULE_COLUMNS, high_overlap_regions
from datamap.cartography.categories import CATEGORIES
from datamap.core.artifacts import load_meta
from datamap.core.files import nulls_for_nan
from datamap.detection.base import Evidence
from datamap.report.examples import SUSPECT, groups_of, rule_label

if TYPE_CHECKING:
    import pandas as pd

TYPICAL = 3  # examples of a cluster
MOST_CLUSTERS, MOST_GROUPS = 200, 60  # rows of a table on the page


def joined(evidence: Evidence, suspicion: np.ndarray) -> pd.DataFrame:
    """One row per example: metrics, category, cluster, the rules, the group, suspicion; what there is of these."""
    import pandas as pd

    by, groups = evidence.once(groups_of)
    tables = [table for table in (evidence.metrics, evidence.clusters, evidence.rules) if table is not None]
    frame = pd.concat(tables, axis=1) if tables else pd.DataFrame(index=pd.Index(evidence.split.ids, name="id"))
    frame = frame.assign(suspicion=suspicion, group=groups)
    frame.attrs["by"] = by
    return frame.astype({"cluster": "Int64"}) if "cluster" in frame else frame


def overview(
    evidence: Evidence, suspicion: np.ndarray, epochs: Mapping[str, np.ndarray], cuts: tuple[float, float] | None,
    warning: str | None, rows: np.ndarray,
) -> dict[str, Any]:
    """The numbers; rows: of the examples on the page, where typical ones are looked for (they are places there)."""
    frame = joined(evidence, suspicion)
    content: dict[str, Any] = {
        "examples": len(frame), "warning": warning,
        "suspects": int((suspicion >= SUSPECT).sum()), "suspect_from": SUSPECT,
        "cuts": None if cuts is None else {"confidence": cuts[0], "variability": cuts[1]},
        "groups": {"by": frame.attrs["by"], "rows": group_rows(frame, "group")[:MOST_GROUPS]},
    }
    if "category" in frame:
        counts = frame["category"].value_counts()
        content["categories"] = [{"name": name, "n": int(counts.get(name, 0))} for name in CATEGORIES]
        content["mapped"] = int(frame["category"].notna().sum())
    if epochs:
        content["learning"] = learning_curves(frame, epochs)
    if "cluster" in frame:
        content["clusters"] = cluster_rows(frame, rows)
        content["noise"] = int((frame["cluster"] == NOISE).sum())
    if evidence.rules is not None:
        content["rules"] = rule_rows(frame)
        if {"category", "cluster"} <= set(frame):
            content["regions"] = [{**region, "cluster": cluster_name(int(region["cluster"]))}
                                  for region in high_overlap_regions(frame.reset_index())]
    return nulls_for_nan(content)


def group_rows(frame: pd.DataFrame, by: str) -> list[dict[str, Any]]:
    """n, mean metrics, shares of the categories and mean suspicion, the largest group first."""
    if "category" not in frame:
        counts = frame[by].value_counts()
        return [{"name": name, "n": int(n)} for name, n in counts.items()]
    mapped = frame[frame["category"].notna()]
    table = group_table(mapped, by).rename(columns={by: "name"}).set_index("name")
    table["suspicion_mean"] = mapped.groupby(by, observed=True)["suspicion"].mean()
    if "is_dataset_error" in frame:
        table["error_rate"] = mapped["is_dataset_error"].astype(float).groupby(mapped[by], observed=True).mean()
    shown = ["n", "confidence_mean", "variability_mean", *(f"{name}_share" for name in CATEGORIES), "suspicion_mean",
             *(["error_rate"] if "error_rate" in table else [])]
    table = table[shown].sort_values("n", ascending=False, kind="stable")
    return table.reset_index().to_dict("records")


def cluster_rows(frame: pd.DataFrame, rows: np.ndarray) -> list[dict[str, Any]]:
    """``group_rows`` of the clusters, with ``typical``: places on the page of those that belong to it most firmly."""
    shown = frame.iloc[rows]
    labels = shown["cluster"].fillna(NOISE - 1).to_numpy(dtype=int)
    firmness = (shown["cluster_probability"] if "cluster_probability" in shown else shown["confidence"]).to_numpy()
    found = group_rows(frame[frame["cluster"].notna()], "cluster")[:MOST_CLUSTERS]
    for row in found:
        label = int(row["name"])
        members = np.flatnonzero(labels == label)
        best = members[np.argsort(-firmness[members], kind="stable")][:TYPICAL]
        row |= {"name": cluster_name(label), "typical": [] if label == NOISE else best.tolist()}
    return sorted(found, key=lambda row: row["name"] == cluster_name(NOISE))


def rule_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each rule how many it flags, of how many it could be applied to."""
    found = []
    for name in RULE_COLUMNS:
        values = frame[name].astype("float64")
        known, flagged = int(values.notna().sum()), int(values.sum())
        found.append({"key": name, "label": rule_label(name), "n": flagged,
                      "of": known, "rate": flagged / known if known else None})
    return found


def learning_curves(frame: pd.DataFrame, epochs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Per epoch the mean p(gold) and the share of right predictions, of all and by category."""
    curves = []
    for name in ("all", *(CATEGORIES if "category" in frame else ())):
        inside = np.ones(len(frame), dtype=bool) if name == "all" else (frame["category"] == name).to_numpy()
        inside = inside & ~np.isnan(epochs["confidence"]).all(axis=1)
        if inside.any():
            curves.append({"name": name, "n": int(inside.sum()),
                           "confidence": np.nanmean(epochs["confidence"][inside], axis=0).tolist(),
                           "correct": np.nanmean(epochs["correct"][inside], axis=0).tolist()})
    return curves


# --- how it was made ---------------------------------------------------------------------------------------------

SETTINGS = ("task", "model", "model_path", "dataset", "split", "train_split", "num_train_epochs", "learning_rate",
            "per_device_train_batch_size", "max_length", "doc_stride", "max_train_samples", "cross_fit", "mc_dropout",
            "confidence_type", "pooling", "reduction_dim", "reduction_method", "visualization_method", "metric",
            "min_cluster_size", "min_samples")


def provenance(sources: Mapping[str, str | Path | None]) -> list[dict[str, Any]]:
    """Of each artifact that was read: where it lies, the command that made it, when, from which commit and with which
    versions, and its settings that are given; of one made elsewhere only the place."""
    found = []
    for what, path in sources.items():
        if not path:
            continue
        meta = load_meta(path) or {}
        arguments = meta.get("arguments", {})
        settings = {name: arguments[name] for name in SETTINGS if arguments.get(name) not in (None, False)}
        found.append({
            "what": what, "path": str(path), **{name: meta.get(name) for name in
                                                ("command", "started", "finished", "seed", "git_commit", "git_dirty")},
            "versions": [f"{name} {version}" for name, version in meta.get("versions", {}).items()],
            "settings": [f"{name} {_written(value)}" for name, value in settings.items()],
        })
    return found


def _written(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
