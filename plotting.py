"""What the analyses show alike: the table of a grouping, its picture, and the manner of every figure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import atomic
from dataset_cartography import CATEGORIES, CATEGORY_COLORS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
GREY, LIGHT_GREY = "#8c8c8c", "#d8d8d8"
DOTS_PER_INCH = 160


def dataset_label(name: str, split: str) -> str:
    """``name [split]`` for captions; of a local path only the last part."""
    return f"{Path(name).resolve().name if Path(name).exists() else name} [{split}]"


def metric_columns(frame: pd.DataFrame) -> list[str]:
    """The metrics that ``frame`` holds, in the order of the tables."""
    return [metric for metric in METRIC_LABELS if metric in frame.columns]


def group_table(frame: pd.DataFrame, by: str, statistics: Sequence[str] = ("mean",)) -> pd.DataFrame:
    """One row per value of ``by``: n, statistics of every metric, and the share of each category (0..1).

    ``frame`` has one row per example with metrics and ``category``; rows without ``by`` are left out.
    """
    import pandas as pd

    groups = frame.groupby(by, observed=True)
    columns: dict[str, Any] = {"n": groups.size()}
    for metric in metric_columns(frame):
        for statistic in statistics:
            columns[f"{metric}_{statistic}"] = groups[metric].agg(statistic)
    if "never_learned" in frame.columns:
        columns["never_learned_share"] = groups["never_learned"].mean()
    for category in CATEGORIES:
        columns[f"{category}_share"] = (frame["category"] == category).groupby(frame[by], observed=True).mean()
    return pd.DataFrame(columns).reset_index()


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **subplots: Any
) -> tuple[Figure, Any]:
    """A figure of ``width`` x ``height`` inches and its axes, without pyplot (no window system, no global state)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, **subplots)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure: Figure, path: str | Path, title: str, caption: str) -> None:
    """Write a PNG with the title above and the caption (n, what is drawn) below, both left-aligned and wrapped.

    About 11 characters of the title and 16 of the caption go into an inch.
    """
    width = figure.get_figwidth()
    title, caption = (text.replace("$", r"\$") for text in (title, caption))  # a bare $ would begin a formula
    lines = [part for line in caption.split("\n") for part in textwrap.wrap(line, int(16 * width))]
    figure.suptitle(textwrap.fill(title, int(11 * width)), x=0.01, ha="left", fontsize=11)
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color="#444444")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH)


def draw_category_shares(axis: Axes, table: pd.DataFrame, labels: Sequence[str]) -> None:
    """Stacked horizontal bars of the category shares of a ``group_table``, first row on top."""
    left = [0.0] * len(table)
    for category in CATEGORIES:
        shares = table[f"{category}_share"].to_numpy(dtype=float)
        bars = axis.barh(range(len(table)), 100 * shares, left=left, color=CATEGORY_COLORS[category], label=category)
        texts = [f"{100 * share:.0f}" if share >= 0.06 else "" for share in shares]
        ink = "black" if category == "ambiguous" else "white"  # amber is too light for white
        axis.bar_label(bars, texts, label_type="center", fontsize=7, color=ink)
        left = [start + 100 * share for start, share in zip(left, shares, strict=True)]
    axis.set_yticks(range(len(table)), labels, fontsize=8)
    axis.set_ylim(len(table) - 0.5, -0.5)
    axis.set_xlim(0, 100)
    axis.set_xlabel("examples (%)")
