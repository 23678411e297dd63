"""Pictures of a suite: differences with their intervals, metrics against training-set size, learning curves."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.plots import COLORS, DARK_GREY, LIGHT_GREY, new_figure, save_figure, whole_numbers
from datamap.core.tables import shortened
from datamap.suites.comparison import BETTER, NO_DIFFERENCE, UNDERPOWERED, WORSE
from datamap.suites.definition import CONTROL

if TYPE_CHECKING:
    import pandas as pd

    from datamap.suites.results import Metric

VERDICT_COLORS = {BETTER: COLORS[2], WORSE: COLORS[1], NO_DIFFERENCE: COLORS[0], UNDERPOWERED: DARK_GREY}
LINES = (*COLORS, "#000000")
LEGEND_LINE = 0.2  # inches
MARKERS = "Dos^vP"
MAX_BANDS = 7  # more of them would be one grey mass
LEGEND: dict[str, Any] = {"fontsize": 8, "frameon": False, "loc": "center left", "bbox_to_anchor": (1.0, 0.5)}


def write_plots(
    directory: Path, plan: Mapping[str, Any], results: pd.DataFrame, metrics: Sequence[Metric],
    rows: Sequence[Mapping[str, Any]], curves: pd.DataFrame,
) -> None:
    """``comparison_METRIC.png`` and ``training_size_METRIC.png`` of every metric, and ``learning_curves.png``.

    results: results.csv; rows: comparison.csv; curves: learning_curves.csv, which hold what is drawn.
    """
    title = plan["description"] or plan["name"]
    own = [each["name"] for each in plan["experiments"] if each["control_of"] is None]
    for metric in metrics:
        drawn = [row for row in rows if row["metric"] == metric.name and row["n"] > 0]
        if drawn:
            plot_differences(directory / f"comparison_{metric.name}.png", title, metric, drawn)
        sized = results[results["train_examples"].notna() & results[metric.name].notna()]
        if sized["train_examples"].nunique() > 1:
            plot_sizes(directory / f"training_size_{metric.name}.png", title, metric, sized, own)
    logged = [name for name in curves.columns if name in ("loss", *(f"eval_{metric.name}" for metric in metrics))
              and curves[name].notna().any()]
    if logged:
        losses = {each["name"]: training_loss(each["arguments"]) for each in plan["experiments"]}
        plot_curves(directory / "learning_curves.png", title, curves, logged, own, losses)


def training_loss(arguments: Mapping[str, Any]) -> str:
    """What an experiment's logged loss is, in words: only losses of one name can be compared."""
    smoothed = arguments.get("use_label_smoothing") or arguments.get("label_smoothing_factor")
    words = ["smoothed"] * bool(smoothed) + ["weighted"] * bool(arguments.get("use_soft_weighting"))
    return " and ".join(words) + "\n" * bool(words) + "training loss (nats)"


def _unit(metric: Metric, points: str) -> str:
    return f"{titled(metric.name)} ({points if metric.scale == 100 else '0..1'})"


def titled(name: str) -> str:
    return name.replace("_", " ").replace("f1", "F1")


def literal(names: Sequence[str]) -> list[str]:
    """Names for matplotlib: no formulas, long ones cut but not alike."""
    return [name.replace("$", r"\$") for name in shortened(names, 40)]


def _seeds(counts: Collection[int]) -> str:
    text = " to ".join(map(str, sorted({min(counts), max(counts)})))
    return f"{text} seed" + "s" * (text != "1")


def plot_differences(path: Path, title: str, metric: Metric, rows: Sequence[Mapping[str, Any]]) -> None:
    """Difference from the reference of every comparison: the seeds, their mean, its 95 % interval, and the verdict."""
    families = [row["against"] for row in rows]
    # Half a line between the families.
    places = [number + 0.5 * len(set(families[: number + 1])) for number in range(len(rows))]
    figure, axis = new_figure(8, 1.6 + 0.42 * places[-1])
    margin = rows[0]["margin"]
    axis.axvspan(-margin, margin, color=LIGHT_GREY, alpha=0.5, lw=0)
    axis.axvline(0, color=DARK_GREY, lw=0.8)
    for place, row in zip(places, rows, strict=True):
        color = VERDICT_COLORS[row["verdict"]]
        differences = np.subtract(row["values"], row["reference_values"])
        if row["shown_low"] is not None:
            axis.plot([row["shown_low"], row["shown_high"]], [place] * 2, color=color, lw=2.2, solid_capstyle="butt")
        if row["n"] > 1:
            axis.plot(differences, [place] * len(differences), "o", ms=4.5, mfc="white", mec=color)
        axis.plot(row["difference"], place, "D", color=color, ms=6)
        word = row["verdict"] + "\n(this checkpoint)" * (row["n"] == 1)
        axis.annotate(word, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=color)
    experiments, references = (literal([row[name] for row in rows]) for name in ("experiment", "reference"))
    labels = [f"{one}\nagainst {other}" for one, other in zip(experiments, references, strict=True)]
    axis.set_yticks(places, labels, fontsize=8)
    axis.set_ylim(places[-1] + 0.6, places[0] - 0.6)
    axis.set_xlabel(f"difference in {_unit(metric, 'percentage points')}")
    caption = (f"Diamonds: mean difference over {_seeds([row['n'] for row in rows])}, paired by seed; circles: each "
               "of them; bars: 95 % interval of the comparison alone (the verdict counts all of a group, Holm). Grey "
               f"band: differences below {margin:g}, which do not matter.")
    save_figure(figure, path, title, caption)


def plot_sizes(path: Path, title: str, metric: Metric, results: pd.DataFrame, own: Sequence[str]) -> None:
    """The metric of every run against the number of examples it was trained on; controls (not in own) are hollow."""
    names = list(dict.fromkeys(results["experiment"]))
    figure, axis = new_figure(8, max(4.2, LEGEND_LINE * len(names)))
    step = 0.012 * (results["train_examples"].max() - results["train_examples"].min())
    sizes = results.groupby("experiment")["train_examples"].mean()
    handles: list[Any] = []
    for name in names:
        part = results[results["experiment"] == name]
        control_of = part["control_of"].iloc[0]
        family = own.index(control_of if name not in own else name)
        color, marker = LINES[family % len(LINES)], MARKERS[family // len(LINES) % len(MARKERS)]
        # Experiments of one size stand a little apart.
        alike = [other for other in names if sizes[other] == sizes[name]]
        place = sizes[name] + step * (alike.index(name) - (len(alike) - 1) / 2)
        values = part[metric.name].to_numpy(float)
        fill = color if name in own else "none"
        axis.plot([place] * len(values), values, "_", ms=9, color=color, alpha=0.8)
        handles += axis.plot(place, values.mean(), marker, ms=6, mfc=fill, mec=color)
    axis.set_xlabel("training examples")
    axis.set_ylabel(_unit(metric, "percent"))
    whole_numbers(axis.xaxis)
    axis.legend(handles, literal(names), **LEGEND)
    save_figure(figure, path, title, f"Dashes: one seed each, n = {len(results):,} runs; symbols: their mean, hollow "
                "for size-matched random controls. Experiments of one size are drawn side by side.")


def plot_curves(
    path: Path, title: str, curves: pd.DataFrame, logged: Sequence[str], own: Sequence[str], losses: Mapping[str, str],
) -> None:
    """What was logged while training, mean over seeds, with the range of the seeds behind it; controls are dashed.

    losses: experiment -> ``training_loss``. Losses that cannot be compared stand in panels of their own.
    """
    names = list(dict.fromkeys(curves["experiment"]))
    known = {column: [name for name in names if curves.loc[curves["experiment"] == name, column].notna().any()]
             for column in logged}
    panels = [(column, label, [name for name in known[column] if column != "loss" or losses[name] == label])
              for column in logged
              for label in (dict.fromkeys(losses[name] for name in known[column]) if column == "loss"
                            else [titled(column)])]
    figure, axes = new_figure(8, max(3.4 * len(panels), LEGEND_LINE * len(names)), rows=len(panels), squeeze=False)
    handles: dict[str, Any] = {}
    for axis, (column, label, shown) in zip(axes[:, 0], panels, strict=True):
        for name in shown:
            part = curves[(curves["experiment"] == name) & curves[column].notna()]
            # Where seeds train on other examples, the k-th log comes at slightly other epochs.
            logs = part.groupby(part.groupby("seed").cumcount())
            epoch, values = logs["epoch"].mean(), logs[column]
            family = own.index(name if name in own else name.removesuffix(CONTROL))
            color, style = LINES[family % len(LINES)], "-" if name in own else "--"
            marker = MARKERS[family // len(LINES) % len(MARKERS)] if family >= len(LINES) or len(epoch) == 1 else None
            [handles[name]] = axis.plot(epoch, values.mean(), style, marker=marker, ms=3, color=color, lw=1.4)
            if len(names) <= MAX_BANDS:
                axis.fill_between(epoch, values.min(), values.max(), color=color, alpha=0.12, lw=0)
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
    handles = {name: handles[name] for name in names if name in handles}
    axes[0, 0].legend(list(handles.values()), literal(list(handles)), **LEGEND)
    bands = "; bands: from the lowest to the highest" if len(names) <= MAX_BANDS else ""
    seeds = _seeds(curves.groupby("experiment")["seed"].nunique())
    apart = " A smoothed or weighted loss is another quantity, in a panel of its own." * (
        len({label for column, label, _ in panels if column == "loss"}) > 1)
    save_figure(figure, path, title, f"Lines: mean of {seeds}{bands}. Dashed: size-matched random controls.{apart}")
