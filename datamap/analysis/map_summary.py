"""A data map in tables and pictures: groups of its examples, samples by category, the metrics among themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datamap.cartography.categories import CATEGORIES, get_examples_by_category
from datamap.cartography.metrics import METRIC_COLUMNS
from datamap.core.files import nulls_for_nan
from datamap.core.plots import CATEGORY_COLORS, new_figure, save_figure, whole_numbers
from datamap.core.splits import Split
from datamap.core.tables import console_table, shortened

NUM_BINS = 40
MAX_DISCRETE = 20  # a metric with at most so many values (correctness, counts) gets one bar per value
MAX_GROUPS_DRAWN = 25
# Axis labels: what is measured and its unit or range. The order is that of the tables.
METRIC_LABELS = {
    "confidence": "confidence (mean probability)",
    "variability": "variability (SD of probability)",
    "correctness": "correctness (fraction of epochs)",
    "start_confidence": "start confidence (mean probability)",
    "end_confidence": "end confidence (mean probability)",
    "label_confidence": "label confidence (mean probability)",
    "forgetting_events": "forgetting events (count)",
    "aum": "AUM (mean logit margin)",
    "el2n": "EL2N (L2 norm)",
    "aleatoric": "aleatoric (mean p (1 - p))",
    "loss": "loss (mean, nats)",
}
MAIN_METRICS = ("confidence", "variability", "correctness")


# --- tables ------------------------------------------------------------------------------------------------------


def metric_columns(frame: pd.DataFrame) -> list[str]:
    """The metrics that ``frame`` holds, in the order of the tables."""
    return [metric for metric in METRIC_LABELS if metric in frame.columns]


def group_table(frame: pd.DataFrame, by: str, statistics: Sequence[str] = ("mean",)) -> pd.DataFrame:
    """One row per value of ``by``: n, statistics of every metric, and the share of each category (0..1).

    ``frame`` has one row per example with metrics and ``category``; rows without ``by`` are left out.
    """
    groups = frame.groupby(by, observed=True)
    columns = {"n": groups.size()}
    for metric in metric_columns(frame):
        columns |= {f"{metric}_{statistic}": groups[metric].agg(statistic) for statistic in statistics}
    if "never_learned" in frame.columns:
        columns["never_learned_share"] = groups["never_learned"].mean()
    for category in CATEGORIES:
        columns[f"{category}_share"] = (frame["category"] == category).groupby(frame[by], observed=True).mean()
    return pd.DataFrame(columns).reset_index()


def printed_groups(table: pd.DataFrame, by: str, limit: int, form: Callable[[Any], str] | None = None) -> str:
    """A ``group_table`` for the console: the groups as ``form`` has them, n, the main metrics, category shares."""
    means = [metric for metric in MAIN_METRICS if f"{metric}_mean" in table]
    shown = table[[by, "n", *(f"{metric}_mean" for metric in means), *(f"{name}_share" for name in CATEGORIES)]]
    shown = shown.set_axis([by, "n", *means, *CATEGORIES], axis=1)
    if form is None:
        shown[by] = shortened(list(map(str, shown[by])), 40)
    formats = {by: form or "", "n": ",d", **dict.fromkeys(means, ".3f"), **dict.fromkeys(CATEGORIES, ".1%")}
    return console_table(shown, formats, limit)


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
    return [{"id": example, **{name: values[row] for name, values in texts.items()}, **records[row]}
            for row, example in enumerate(ids)]


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
    rows = [(a, b, matrix.loc[a, b], len(frame[[a, b]].dropna())) for n, a in enumerate(metrics) for b in metrics[:n]]
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
        whole_numbers(axis.yaxis)
        if metric == "forgetting_events":
            whole_numbers(axis.xaxis)
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
    names = [METRIC_LABELS[metric].partition(" (")[0] for metric in metrics]
    size = 2.4 + 0.55 * len(metrics)
    figure, axis = new_figure(size + 0.8, size)
    seaborn.heatmap(matrix, vmin=-1, vmax=1, cmap="RdBu_r", annot=True, fmt="z.2f", annot_kws={"fontsize": 8},
                    square=True, xticklabels=names[:-1], yticklabels=names[1:], ax=axis,
                    cbar_kws={"label": "Spearman rank correlation", "shrink": 0.7})
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
    names = shortened(shown[by].tolist(), 40)
    # A dollar sign would begin a formula.
    labels = [f"{name} (n = {n:,})".replace("$", r"\$") for name, n in zip(names, shown["n"], strict=True)]
    left = np.zeros(len(shown))
    for category in CATEGORIES:
        shares = 100 * shown[f"{category}_share"].to_numpy(dtype=float)
        bars = axis.barh(range(len(shown)), shares, left=left, color=CATEGORY_COLORS[category], label=category)
        ink = "black" if category == "ambiguous" else "white"  # amber is too light for white
        texts = [f"{share:.0f}" if share >= 6 else "" for share in shares]
        axis.bar_label(bars, texts, label_type="center", fontsize=7, color=ink)
        left += shares
    axis.set_yticks(range(len(shown)), labels, fontsize=8)
    axis.set(xlim=(0, 100), ylim=(len(shown) - 0.5, -0.5), xlabel="examples (%)")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path, f"Categories by {kind}", caption)
