"""One data map in tables and pictures: samples by category, groups, distributions and correlations of the metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from datamap.analysis.groups import METRIC_LABELS, draw_category_shares, group_table, metric_columns
from datamap.cartography.categories import CATEGORIES, get_examples_by_category
from datamap.cartography.metrics import METRIC_COLUMNS
from datamap.core.files import nulls_for_nan
from datamap.core.plots import CATEGORY_COLORS, new_figure, save_figure
from datamap.core.splits import Split

NUM_BINS = 40
MAX_DISCRETE = 20  # a metric with at most so many values (correctness, counts) gets one bar per value
MAX_GROUPS_DRAWN = 25


# --- tables ------------------------------------------------------------------------------------------------------


def samples(frame: pd.DataFrame, category: str, n: int, split: Split | None) -> list[dict]:
    """The first ``n`` of ``get_examples_by_category`` as records: id, texts, other columns of the data, metrics.

    A missing value is None. A column of the dataset whose name is that of a metric gets the prefix ``data_``.
    """
    ids = get_examples_by_category(frame, category, n)
    metrics = frame.loc[ids, [metric for metric in METRIC_COLUMNS if metric in frame]].astype(object)
    texts: dict[str, list] = {}
    if split is not None:
        rows = {example: row for row, example in enumerate(split.ids)}
        chosen = split.data.select([rows[example] for example in ids])
        columns = split.task.readable(chosen)
        rest = [name for name in chosen.column_names if name not in ("id", *split.task.content_columns, *columns)]
        columns |= {name: nulls_for_nan(chosen[name][:]) for name in rest}
        texts = {f"data_{name}" if name in metrics else name: values for name, values in columns.items()}
    records = metrics.where(pd.notna(metrics), None).to_dict("records")
    return [
        {"id": example, **{name: values[row] for name, values in texts.items()}, **record}
        for row, (example, record) in enumerate(zip(ids, records, strict=True))
    ]


def groups_analysis(frame: pd.DataFrame, split: Split) -> tuple[str, pd.DataFrame]:
    """The name of the task's grouping (question_type, label), and its ``group_table``, largest group first."""
    by, values = split.task.groups(split.data)
    groups = pd.Series(list(values), index=split.ids, dtype=object)
    table = group_table(frame.assign(**{by: groups}), by, ("mean", "median"))
    return by, table.sort_values("n", ascending=False, kind="stable")


def distributions(frame: pd.DataFrame) -> pd.DataFrame:
    """Histogram of every metric by category: metric, low, high, category, n; low equals high for single values."""
    tables = []
    for metric in metric_columns(frame):
        values = frame[metric].to_numpy(dtype=float)
        known = values[np.isfinite(values)]
        if not len(known):
            continue
        low = high = np.unique(known)
        edges = np.concatenate([low, [np.inf]])
        if len(low) > MAX_DISCRETE:
            edges = np.histogram_bin_edges(known, NUM_BINS)
            low, high = edges[:-1], edges[1:]
        for category in CATEGORIES:
            n, _ = np.histogram(values[(frame["category"] == category).to_numpy()], edges)
            tables.append(pd.DataFrame({"metric": metric, "low": low, "high": high, "category": category, "n": n}))
    return pd.concat(tables, ignore_index=True)


def correlations(frame: pd.DataFrame) -> pd.DataFrame:
    """Spearman rank correlation of every pair of metrics: metric_a, metric_b, spearman, n. Constant: missing."""
    metrics = metric_columns(frame)
    matrix = frame[metrics].corr(method="spearman")
    known = frame[metrics].notna()
    rows = [
        {"metric_a": a, "metric_b": b, "spearman": matrix.loc[a, b], "n": int((known[a] & known[b]).sum())}
        for position, a in enumerate(metrics)
        for b in metrics[:position]
    ]
    return pd.DataFrame(rows, columns=["metric_a", "metric_b", "spearman", "n"])


# --- pictures ----------------------------------------------------------------------------------------------------


def plot_distributions(path: Path, table: pd.DataFrame, cuts: tuple[float, float], caption: str) -> None:
    """table: of ``distributions``; the categories are stacked."""
    import seaborn
    from matplotlib.patches import Patch

    metrics = table["metric"].unique()
    columns = 5 if len(metrics) > 8 else min(len(metrics), 4)
    rows = -(-len(metrics) // columns)
    figure, axes = new_figure(2.7 * columns, 2.2 * rows + 0.8, rows, columns, squeeze=False)
    for axis, metric in zip(axes.flat, metrics, strict=False):
        bars = table[table["metric"] == metric]
        edges = np.unique(bars[["low", "high"]])
        if (bars["low"] == bars["high"]).all():  # single values: bars of one width, centred
            if len(edges) <= 8:
                axis.set_xticks(edges, [f"{value:.3g}" for value in edges])
            half = 0.4 * np.diff(edges).min() if len(edges) > 1 else 0.025
            edges = np.sort(np.concatenate([edges - half, edges + half]))
        seaborn.histplot(
            bars.assign(middle=(bars["low"] + bars["high"]) / 2), x="middle", weights="n", bins=edges.tolist(),
            hue="category", hue_order=CATEGORIES[::-1], palette=CATEGORY_COLORS, multiple="stack", alpha=1,
            linewidth=0, legend=False, ax=axis,
        )
        cut = {"confidence": cuts[0], "variability": cuts[1]}.get(metric)
        if cut is not None:
            axis.axvline(cut, color="black", linewidth=1, linestyle="--")
        axis.set_xlabel(METRIC_LABELS[metric], fontsize=8)
        axis.set_ylabel("")
        axis.tick_params(labelsize=7)
    for axis in axes[:, 0]:
        axis.set_ylabel("examples (count)", fontsize=8)
    for axis in axes.flat[len(metrics) :]:
        axis.set_visible(False)
    handles = [Patch(color=CATEGORY_COLORS[category], label=category) for category in CATEGORIES]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=8)
    save_figure(figure, path, "Distribution of the metrics by category", f"{caption}; dashed: the cuts")


def plot_correlations(path: Path, table: pd.DataFrame, metrics: list[str], caption: str) -> None:
    """table: of ``correlations``; a lower triangle."""
    import seaborn

    matrix = table.pivot(index="metric_a", columns="metric_b", values="spearman")
    matrix = matrix.reindex(index=metrics[1:], columns=metrics[:-1])
    names = [metric.replace("_", " ") for metric in metrics]
    size = 2.4 + 0.55 * len(metrics)
    figure, axis = new_figure(size + 0.8, size)
    seaborn.heatmap(
        matrix, vmin=-1, vmax=1, cmap="RdBu_r", annot=True, fmt=".2f", annot_kws={"fontsize": 8}, square=True,
        xticklabels=names[:-1], yticklabels=names[1:], ax=axis,
        cbar_kws={"label": "Spearman rank correlation", "shrink": 0.7},
    )
    for row, column in zip(*np.nonzero(np.tril(matrix.isna())), strict=True):
        axis.text(column + 0.5, row + 0.5, "n/a", ha="center", va="center", fontsize=8)
    axis.set(xlabel=None, ylabel=None)
    axis.tick_params(labelsize=8, length=0)
    axis.set_xticklabels(axis.get_xticklabels(), rotation=45, ha="right")
    save_figure(figure, path, "Correlation of the metrics (Spearman)", caption)


def plot_groups(path: Path, table: pd.DataFrame, by: str, caption: str) -> None:
    """table: one row per value of ``by``, the largest first; a picture has room for 25."""
    kind = by.replace("_", " ")
    shown = table.head(MAX_GROUPS_DRAWN)
    if len(shown) < len(table):
        caption += f"\nthe {len(shown)} largest of {len(table):,} {kind}s"
    figure, axis = new_figure(7, max(3.0, 1.6 + 0.32 * len(shown)))
    names = [name if len(name) <= 40 else f"{name[:39]}\N{HORIZONTAL ELLIPSIS}" for name in shown[by]]
    # A dollar sign would begin a formula.
    labels = [f"{name} (n = {n:,})".replace("$", r"\$") for name, n in zip(names, shown["n"], strict=True)]
    draw_category_shares(axis, shown, labels)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path, f"Categories by {kind}", caption)
