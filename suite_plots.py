"""Pictures of a suite: differences with their intervals, metrics against training-set size, learning curves."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison import BETTER, NO_DIFFERENCE, UNDERPOWERED, WORSE
from plotting import GREY, LIGHT_GREY, new_figure, save_figure

if TYPE_CHECKING:
    import pandas as pd

    from suite_report import Metric

# Colours of Okabe and Ito (2008), told apart by the colour-blind.
VERDICT_COLORS = {BETTER: "#009e73", WORSE: "#d55e00", NO_DIFFERENCE: "#0072b2", UNDERPOWERED: GREY}
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LEGEND_LINE = 0.2  # inches
STYLES = ("-", "--", ":", "-.")


def write_plots(
    directory: Path,
    plan: Mapping[str, Any],
    results: pd.DataFrame,
    metrics: Sequence[Metric],
    rows: Sequence[Mapping[str, Any]],
    curves: pd.DataFrame,
) -> None:
    """``comparison_METRIC.png`` and ``training_size_METRIC.png`` of every metric, and ``learning_curves.png``.

    results: results.csv; rows: comparison.csv; curves: learning_curves.csv, which hold what is drawn.
    """
    title = plan["description"] or plan["name"]
    for metric in metrics:
        drawn = [row for row in rows if row["metric"] == metric.name and row["n"] > 0]
        if drawn:
            plot_differences(directory / f"comparison_{metric.name}.png", title, metric, drawn, plan["baseline"])
        sized = results[results["train_examples"].notna() & results[metric.name].notna()]
        if sized["train_examples"].nunique() > 1:
            own = [each["name"] for each in plan["experiments"] if each["control_of"] is None]
            plot_sizes(directory / f"training_size_{metric.name}.png", title, metric, sized, own)
    logged = [name for name in curves.columns if name in ("loss", *(f"eval_{metric.name}" for metric in metrics))]
    if logged:
        plot_curves(directory / "learning_curves.png", title, curves, logged)


def _unit(metric: Metric, points: str) -> str:
    return f"{metric.name.replace('_', ' ')} ({points if metric.scale == 100 else '0..1'})"


def _range(counts: Collection[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def plot_differences(
    path: Path, title: str, metric: Metric, rows: Sequence[Mapping[str, Any]], baseline: str
) -> None:
    """Difference from the reference of every comparison: the seeds, their mean, its 95 % interval, and the verdict."""
    figure, axis = new_figure(8, 1.6 + 0.42 * len(rows))
    margin = rows[0]["margin"]
    axis.axvspan(-margin, margin, color=LIGHT_GREY, alpha=0.5, lw=0)
    axis.axvline(0, color="#444444", lw=0.8)
    for place, row in enumerate(rows):
        color = VERDICT_COLORS[row["verdict"]]
        pairs = zip(row["values"], row["reference_values"], strict=True)
        differences = [value - reference for value, reference in pairs]
        low, high = row["shown_low"], row["shown_high"]
        if low is not None:
            axis.plot([low, high], [place, place], color=color, lw=2.2, solid_capstyle="butt")
        axis.plot(differences, [place] * len(differences), "o", ms=4.5, mfc="white", mec=color)
        axis.plot(row["difference"], place, "D", color=color, ms=6)
        axis.annotate(row["verdict"], (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8,
                      color=color)  # fmt: skip
    labels = [f"{row['experiment']}\nagainst {row['reference']}" for row in rows]
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel(f"difference in {_unit(metric, 'percentage points')}")
    count = _range([row["n"] for row in rows])
    caption = (f"Diamonds: mean difference, paired by seed; bars: its 95 % interval; circles: the {count} seeds. Grey "
               f"band: differences smaller than {margin:g}, which do not matter.")  # fmt: skip
    save_figure(figure, path, title, caption)


def plot_sizes(path: Path, title: str, metric: Metric, results: pd.DataFrame, own: Sequence[str]) -> None:
    """The metric of every run against the number of examples it was trained on; controls (not in own) are hollow."""
    names = list(dict.fromkeys(results["experiment"]))
    figure, axis = new_figure(8, max(4.2, LEGEND_LINE * len(names)))
    treated = {name: results.loc[results["experiment"] == name, "control_of"].iloc[0] for name in names}
    step = 0.006 * (results["train_examples"].max() - results["train_examples"].min())
    for number, name in enumerate(names):  # a little apart, where several have one size
        part = results[results["experiment"] == name]
        is_control = name not in own
        color = LINES[own.index(treated[name] if is_control else name) % len(LINES)]
        sizes = part["train_examples"].to_numpy(float) + step * (number - len(names) / 2)
        values = part[metric.name].to_numpy(float)
        fill = "none" if is_control else color
        axis.plot(sizes, values, "o", ms=4, mfc=fill, mec=color, alpha=0.5)
        axis.plot(sizes.mean(), values.mean(), "D" if not is_control else "s", ms=8, mfc=fill, mec=color, label=name)
    axis.set_xlabel("training examples")
    axis.set_ylabel(_unit(metric, "percent"))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_figure(figure, path, title, f"Small: one seed each, n = {len(results):,} runs; large: their mean. Hollow: "
                "size-matched random controls.")  # fmt: skip


def plot_curves(path: Path, title: str, curves: pd.DataFrame, logged: Sequence[str]) -> None:
    """What was logged while training, mean over seeds, with the range of the seeds behind it."""
    height = max(3.4 * len(logged), LEGEND_LINE * curves["experiment"].nunique())
    figure, axes = new_figure(8, height, rows=len(logged), squeeze=False)
    for axis, column in zip(axes[:, 0], logged, strict=True):
        for number, (name, part) in enumerate(curves.groupby("experiment", sort=False)):
            part = part.dropna(subset=[column])
            # Where seeds train on other examples, the k-th log comes at slightly other epochs.
            logs = part.groupby(part.groupby("seed").cumcount())
            epoch, values = logs["epoch"].mean(), logs[column]
            color, style = LINES[number % len(LINES)], STYLES[number // len(LINES) % len(STYLES)]
            axis.plot(epoch, values.mean(), style, color=color, lw=1.4, label=str(name))
            axis.fill_between(epoch, values.min(), values.max(), color=color, alpha=0.12, lw=0)
        axis.set_xlabel("epoch")
        axis.set_ylabel("training loss (nats)" if column == "loss" else column.replace("_", " "))
    axes[0, 0].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    count = _range(curves.groupby("experiment")["seed"].nunique())
    save_figure(figure, path, title, f"Lines: mean of {count} seeds; bands: from the lowest to the highest.")
