"""Data map and clusters together: how hard the clusters are, what stands out, and the pictures of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from datamap.analysis.clusters import ANY_AXES, NOISE, cluster_name
from datamap.analysis.map_summary import METRIC_LABELS, group_table
from datamap.cartography.categories import CATEGORIES
from datamap.core.plots import CATEGORY_COLORS, COLORS, GREY, LIGHT_GREY, drawn_sample, new_figure, save_figure

MIN_EXAMPLES = 10  # a cluster, question type or label with fewer is not tested
ALPHA = 0.05
MAX_LISTED = 5
MAX_CLUSTERS_DRAWN = 40


# --- tables ------------------------------------------------------------------------------------------------------


def overlap_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Every cell of category x cluster: category, cluster, n and its shares (0..1) of category, cluster and all."""
    cells = pd.MultiIndex.from_product([CATEGORIES, sorted(frame["cluster"].unique())], names=["category", "cluster"])
    table = frame.groupby(["category", "cluster"]).size().reindex(cells, fill_value=0).rename("n").reset_index()
    for column in ("category", "cluster"):
        total = table.groupby(column)["n"].transform("sum")
        table[f"share_of_{column}"] = (table["n"] / total).where(total > 0)
    return table.assign(share_of_all=table["n"] / len(frame))


def difficulty_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Per cluster: n, mean metrics, category shares; confidence and variability with the 95% t-interval of the mean.

    Clusters with the lowest mean confidence come first. An interval needs two examples.
    """
    table = group_table(frame, "cluster")
    for metric in ("confidence", "variability"):
        spread = frame.groupby("cluster")[metric].sem().to_numpy(dtype=float)
        margin = stats.t.ppf(0.975, table["n"].to_numpy(dtype=float) - 1) * spread
        position = table.columns.get_loc(f"{metric}_mean") + 1
        table.insert(position, f"{metric}_low", table[f"{metric}_mean"] - margin)
        table.insert(position + 1, f"{metric}_high", table[f"{metric}_mean"] + margin)
    return table.sort_values(["confidence_mean", "cluster"], ignore_index=True)


# --- patterns ----------------------------------------------------------------------------------------------------


def significant(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows whose ``p_adjusted`` is below 5% once adjusted (Benjamini-Hochberg); NaN does not count."""
    known = [row for row in rows if not np.isnan(row["p_adjusted"])]
    adjusted = stats.false_discovery_control([row["p_adjusted"] for row in known]).tolist() if known else []
    return [{**row, "p_adjusted": p} for row, p in zip(known, adjusted, strict=True) if p < ALPHA]


def unusual_clusters(frame: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Clusters whose mean confidence differs from that of all other examples (Welch's t-test, adjusted, 5%).

    Hardest first in ``hardest_clusters``, easiest first in ``easiest_clusters``. Noise is no cluster, and clusters of
    fewer than 10 examples are not tested.
    """
    rows = []
    # numpy asks a series for attributes, for which pandas looks in an index of texts.
    frame = frame[["cluster", "confidence", "category"]].reset_index(drop=True)
    for cluster, inside in frame.groupby("cluster"):
        rest = frame.loc[frame["cluster"] != cluster, "confidence"]
        if cluster == NOISE or len(inside) < MIN_EXAMPLES or len(rest) < MIN_EXAMPLES:
            continue
        with np.errstate(all="ignore"):  # two constant groups have no t, and p is NaN
            p = float(stats.ttest_ind(inside["confidence"], rest, equal_var=False).pvalue)
        mean = float(inside["confidence"].mean())
        shares = {f"{name}_share": float((inside["category"] == name).mean()) for name in ("hard", "ambiguous")}
        rows.append({"cluster": int(cluster), "n": len(inside), "confidence_mean": mean,
                     "difference_to_rest": mean - float(rest.mean()), **shares, "p_adjusted": p})
    found = sorted(significant(rows), key=lambda row: row["difference_to_rest"])
    return {
        "hardest_clusters": [row for row in found if row["difference_to_rest"] < 0][:MAX_LISTED],
        "easiest_clusters": [row for row in reversed(found) if row["difference_to_rest"] > 0][:MAX_LISTED],
    }


def association(frame: pd.DataFrame) -> dict[str, Any] | None:
    """Chi-square test of category against cluster (noise counts as one), and Cramer's V (0 none .. 1 full).

    None where there is only one category or one cluster. The test is rough where many cells expect fewer than 5.
    """
    counts = pd.crosstab(frame["category"], frame["cluster"]).to_numpy()
    if min(counts.shape) < 2:
        return None
    result = stats.chi2_contingency(counts, correction=False)
    return {
        "chi_square": float(result.statistic),
        "degrees_of_freedom": int(result.dof),
        "p": float(result.pvalue),
        "cramers_v": float(np.sqrt(result.statistic / (counts.sum() * (min(counts.shape) - 1)))),
        "share_of_cells_expecting_below_5": float((result.expected_freq < 5).mean()),
    }


def over_represented(frame: pd.DataFrame, by: str) -> list[dict[str, Any]]:
    """Values of ``by`` that are hard or ambiguous more often than chance gives (hypergeometric, adjusted, 5%)."""
    rows = []
    for category in ("hard", "ambiguous"):
        within = frame["category"] == category
        for value, inside in within.groupby(frame[by]):
            if len(inside) >= MIN_EXAMPLES:
                hits = int(inside.sum())
                p = float(stats.hypergeom.sf(hits - 1, len(frame), int(within.sum()), len(inside)))
                rows.append({"category": category, by: value, "n": len(inside), "n_in_category": hits,
                             "share": hits / len(inside), "share_overall": float(within.mean()), "p_adjusted": p})
    return sorted(significant(rows), key=lambda row: row["share_overall"] - row["share"])


def find_patterns(frame: pd.DataFrame, thresholds: tuple[float, float], by: str | None) -> dict[str, Any]:
    """The findings in numbers, of examples with metrics, category and cluster.

    ``by``: a column of groups, question_type or label; those that stand out are in ``question_types_over_represented``
    or ``labels_over_represented``.
    """
    shares = {f"{category}_share": float((frame["category"] == category).mean()) for category in CATEGORIES}
    means = {f"{metric}_mean": float(frame[metric].mean()) for metric in ("confidence", "variability")}
    groups = {} if by is None else {f"{by}s_over_represented": over_represented(frame, by)}
    return {
        "n": len(frame),
        "num_clusters": int(frame.loc[frame["cluster"] != NOISE, "cluster"].nunique()),
        "noise_share": float((frame["cluster"] == NOISE).mean()),
        "thresholds": {"confidence": thresholds[0], "variability": thresholds[1]},
        "overall": {**means, **shares},
        "category_cluster_association": association(frame),
        **unusual_clusters(frame),
        **groups,
        "cuts": {"min_examples": MIN_EXAMPLES, "p_adjusted_below": ALPHA, "adjustment": "Benjamini-Hochberg"},
    }


# --- pictures ----------------------------------------------------------------------------------------------------


def drawn_clusters(difficulty: pd.DataFrame) -> tuple[pd.DataFrame, list[str], str]:
    """The rows of the difficulty table that a picture has room for, their labels, and a note if some are left out."""
    largest = difficulty["n"].nlargest(MAX_CLUSTERS_DRAWN).index
    shown = difficulty.loc[sorted(largest)]
    names = [cluster_name(cluster) for cluster in shown["cluster"]]
    labels = [f"{name} (n = {n:,})" for name, n in zip(names, shown["n"], strict=True)]
    note = f"\nthe {len(shown)} largest of {len(difficulty)} clusters" if len(shown) < len(difficulty) else ""
    return shown, labels, note


def plot_category_by_cluster(path: Path, difficulty: pd.DataFrame, caption: str) -> None:
    from seaborn import heatmap

    shown, labels, note = drawn_clusters(difficulty)
    shares = 100 * shown[[f"{category}_share" for category in CATEGORIES]].to_numpy(dtype=float)
    figure, axis = new_figure(5.5, max(3.4, 1.8 + 0.3 * len(shown)))
    heatmap(shares, ax=axis, cmap="viridis", vmin=0, vmax=100, annot=True, fmt=".0f", annot_kws={"fontsize": 8},
            xticklabels=CATEGORIES, yticklabels=labels, cbar_kws={"label": "examples of the cluster (%)"})
    axis.tick_params(axis="y", labelsize=8, rotation=0)
    axis.set_ylabel("cluster, lowest mean confidence first")
    save_figure(figure, path, "Categories by cluster", caption + note)


def plot_difficulty(path: Path, difficulty: pd.DataFrame, overall: Mapping[str, float], caption: str) -> None:
    shown, labels, note = drawn_clusters(difficulty)
    places = range(len(shown))
    figure, axes = new_figure(8, max(3.2, 1.6 + 0.26 * len(shown)), columns=2, sharey=True)
    for axis, metric in zip(axes, ("confidence", "variability"), strict=True):
        axis.axvline(overall[f"{metric}_mean"], color=GREY, linewidth=1, linestyle="--")
        low, high = (shown[f"{metric}_{end}"].where(shown["n"] >= MIN_EXAMPLES) for end in ("low", "high"))
        axis.hlines(places, low, high, color=COLORS[0], linewidth=1.5)
        axis.plot(shown[f"{metric}_mean"], places, "o", color=COLORS[0], markersize=5)
        axis.set_xlabel(METRIC_LABELS[metric])
    axes[0].set_yticks(places, labels, fontsize=8)
    axes[0].set_ylabel("cluster")
    axes[0].set_ylim(len(shown) - 0.5, -0.5)
    text = f"{caption}{note}\ndot and line: mean and its 95% interval (from {MIN_EXAMPLES} examples on); dashed: all"
    save_figure(figure, path, "Difficulty of the clusters", text)


def plot_map(path: Path, table: pd.DataFrame, caption: str, axes_of: Sequence[str] = ANY_AXES) -> None:
    """One panel per category, so that none is drawn over another; all other examples are grey. axes_of: what dim1 and
    dim2 are (``clusters.axes_of``)."""
    drawn, note = drawn_sample(table.dropna(subset=["dim1", "dim2"]))
    size = float(np.clip(6000 / max(len(drawn), 1), 1.5, 15))
    figure, axes = new_figure(11, 4.2, columns=len(CATEGORIES), sharex=True, sharey=True)
    for axis, category in zip(axes, CATEGORIES, strict=True):
        for points, color in ((drawn, LIGHT_GREY), (drawn[drawn["category"] == category], CATEGORY_COLORS[category])):
            axis.scatter(points["dim1"], points["dim2"], s=size, color=color, linewidths=0)
        axis.set_title(f"{category} (n = {(table['category'] == category).sum():,})", fontsize=10)
        axis.set_xlabel(axes_of[0].replace(" (", "\n("))  # three beside each other have no room for one line
    axes[0].set_ylabel(axes_of[1].replace(" (", "\n("))
    text = f"{caption}{note}; grey: the other categories"
    save_figure(figure, path, "Embeddings in two dimensions, by category", text)
