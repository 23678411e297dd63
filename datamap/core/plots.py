"""The manner of every figure: its colours, its size, its title and caption."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.files import atomic

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Okabe and Ito 2008: told apart by the colour-blind, darkest first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CATEGORY_COLORS = {"easy": COLORS[0], "ambiguous": COLORS[4], "hard": COLORS[1]}
DARK_GREY, GREY, LIGHT_GREY = "#444444", "#8c8c8c", "#d8d8d8"
DOTS_PER_INCH = 160
MAX_DRAWN_POINTS = 25_000


def dataset_label(name: str, split: str) -> str:
    """``name [split]`` for captions; of a local path only the last part."""
    return f"{Path(name).resolve().name if Path(name).exists() else name} [{split}]"


def drawn_sample(points: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The points that a scatter has room for, a seeded sample where there are more, and what a caption says of it."""
    if len(points) <= MAX_DRAWN_POINTS:
        return points, ""
    rows = np.random.default_rng(0).choice(len(points), MAX_DRAWN_POINTS, replace=False)
    return points.iloc[rows], f" (random {len(rows):,} drawn)"


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **subplots: Any) -> tuple[Figure, Any]:
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
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color=DARK_GREY)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH)
