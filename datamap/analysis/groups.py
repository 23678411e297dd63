"""Groups of examples: the table of their metrics and categories, and its picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from datamap.cartography.categories import CATEGORIES
from datamap.core.plots import CATEGORY_COLORS
from datamap.core.tables import console_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

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


def printed_groups(table: pd.DataFrame, by: str, form: str | Callable[[Any], str], limit: int) -> str:
    """A ``group_table`` for the console: the groups as ``form`` has them, n, the main metrics, category shares."""
    means = [metric for metric in MAIN_METRICS if f"{metric}_mean" in table]
    shown = table[[by, "n", *(f"{metric}_mean" for metric in means), *(f"{name}_share" for name in CATEGORIES)]]
    shown = shown.set_axis([by, "n", *means, *CATEGORIES], axis=1)
    formats = {by: form, "n": ",d", **dict.fromkeys(means, ".3f"), **dict.fromkeys(CATEGORIES, ".1%")}
    return console_table(shown, formats, limit)


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
