"""Data maps: metrics, thresholds and picture in one directory, written together and read by every later stage."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.cartography.categories import CATEGORIES, category_places, category_thresholds, counted, with_categories
from datamap.cartography.dynamics import DYNAMICS_FILES, MADE_BY, holds_dynamics
from datamap.cartography.learning import LIKE_LEARNING, MEANS_NOTHING, Learning
from datamap.cartography.metrics import METRICS_FILE, RANGES, load_cartography_metrics
from datamap.cartography.settling import BY_EPOCH_FILE, BY_EPOCH_PICTURE, unsettled
from datamap.core.artifacts import artifact_file, load_meta, model_meta
from datamap.core.errors import UserError
from datamap.core.files import ROWS_AT_A_TIME, atomic, read_json, read_json_like, write_csv, write_either, write_json
from datamap.core.parquet import in_either_form
from datamap.core.plots import (
    CATEGORY_COLORS,
    COLORS,
    GREY,
    drawn_sample,
    new_figure,
    picture_files,
    save_figure,
    whole_numbers,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

THRESHOLDS_FILE = "thresholds.json"
CARTOGRAPHY_FILES = (
    *DYNAMICS_FILES, "cartography_metrics.*", THRESHOLDS_FILE, *picture_files("cartography_map", "stability"),
    *picture_files(BY_EPOCH_PICTURE), BY_EPOCH_FILE, "out_of_fold.csv",
    "joint_map.json", "run_agreement.csv", "agreement_curve.csv",
)
NOT_TRAINED_ON = ("a map of examples that were not trained on: hard is what the model gets wrong there, not what it "
                  "could not learn")
MAX_ERROR_BARS = 80  # more hide each other
MAX_LEVELS = 7  # of correctness, each with a colour and a marker; with more epochs they are grouped
MARKERS = ("o", "X", "s", "P", "D", "^", "v")

logger = logging.getLogger(__name__)


def write_cartography(
    directory: str | Path, metrics: pd.DataFrame, title: str | None = None, method: str = "median",
    confidence_threshold: float | None = None, variability_threshold: float | None = None,
    learning: Mapping[str, Any] | None = None, error_bars: bool = False,
    by_epoch: pd.DataFrame | None = None, artifact_format: str | None = None,
) -> None:
    """Write ``cartography_metrics.csv`` and ``.json`` (records), ``thresholds.json``, ``cartography_map.png``.

    artifact_format: "parquet" for ``cartography_metrics.parquet`` instead of the first two (default: by the number of
    examples, ``format_for``).
    The thresholds are those of ``category_thresholds``; every stage that reads the map goes by them. learning: of
    ``Learning.record``, whether the model has learned anything; the default knows only what the metrics say of it.
    error_bars: draw the standard deviation over runs, of a joint map. by_epoch: ``ByEpoch.table``, which becomes
    ``categories_by_epoch.csv``, with a note where the map has not settled. Warns where the categories mean nothing.
    """
    table, file = metrics.reset_index(), Path(directory) / METRICS_FILE
    if write_either(file, table, artifact_format) == METRICS_FILE:
        with atomic(file.with_suffix(".json")) as temporary, temporary.open("w", encoding="utf-8") as records:
            records.write("[")
            for first in range(0, len(table), ROWS_AT_A_TIME):  # at once all of it would be held as text
                block = table[first : first + ROWS_AT_A_TIME]
                text = block.to_json(orient="records", double_precision=15, force_ascii=False)
                records.write("," * bool(first) + text[1:-1])
            records.write("]")
    write_map(directory, metrics, title, method, confidence_threshold, variability_threshold, learning, error_bars,
              by_epoch)


def write_map(
    directory: str | Path, metrics: pd.DataFrame, title: str | None = None, method: str = "median",
    confidence_threshold: float | None = None, variability_threshold: float | None = None,
    learning: Mapping[str, Any] | None = None, error_bars: bool = False, by_epoch: pd.DataFrame | None = None,
) -> None:
    """What ``write_cartography`` writes beside the metrics, of which it takes no ids and only the columns
    ``confidence``, ``variability``, ``correctness`` and ``num_epochs`` (and those of a joint map)."""
    learning = learning or Learning().record(metrics)
    warning = learning["warning"] if learning else None
    directory = Path(directory)
    cuts = category_thresholds(metrics, confidence_threshold, variability_threshold, method)
    write_json(directory / THRESHOLDS_FILE, {
        "confidence": cuts[0],
        "variability": cuts[1],
        "method": method,
        "confidence_threshold": confidence_threshold,  # as asked for, in the method's unit
        "variability_threshold": variability_threshold,
        **({"learning": learning} if learning else {}),
    })
    plot_data_map(metrics, directory / "cartography_map.png", title, cuts, warning, error_bars)
    if by_epoch is not None:
        write_csv(directory / BY_EPOCH_FILE, by_epoch)
    if warning:
        logger.warning(warning)
    elif note := unsettled(by_epoch):
        logger.info(note)


def load_map(path: str | Path, only: Collection[str] | None = None) -> tuple[pd.DataFrame, tuple[float, float]]:
    """The metrics of a cartography directory (``load_cartography_metrics``) with ``category``, and the cuts."""
    metrics = load_cartography_metrics(path, None if only is None else {*only, "correctness"})
    cuts = map_thresholds(path, metrics)
    learning = map_learning(path, metrics)
    if learning and learning["warning"]:
        logger.warning(f"{path}: {learning['warning']}")
    if not was_trained_on(path):
        logger.info(f"{path}: {NOT_TRAINED_ON}")
    return with_categories(metrics, cuts), cuts


def was_trained_on(path: str | Path) -> bool:
    """Whether the examples of a map were trained on while it was recorded (run.py --map_split records others)."""
    arguments = (load_meta(path) or {}).get("arguments", {})
    return (arguments.get("recorded_with") or arguments).get("trained_on", True)


def counted_map(path: str | Path) -> str:
    """How many examples of a map are in each category, and where its cuts are; below, where they mean nothing yet."""
    metrics = load_cartography_metrics(path)
    cuts = map_thresholds(path, metrics)
    counts = counted(with_categories(metrics, cuts), cuts)
    return f"{len(metrics):,} examples: {counts}{means_nothing(path, metrics)}"


def map_learning(path: str | Path, metrics: pd.DataFrame) -> dict[str, Any] | None:
    """Whether the model of a map has learned anything (``Learning.record``): as written with it, else what the metrics
    say of it, None where that is nothing."""
    return written_learning(path) or Learning().record(metrics)


def written_learning(path: str | Path) -> dict[str, Any] | None:
    """What was written of it with the map; None of a map of somebody else's."""
    file = in_either_form(Path(path) / METRICS_FILE) if Path(path).is_dir() else Path(path)
    thresholds = file.with_name(THRESHOLDS_FILE)
    if not file.match("cartography_metrics.*") or not thresholds.exists():
        return None
    maker = "dataset_cartography.py"
    if "learning" not in read_json_like(thresholds, dict, maker):  # of an older version
        return None
    return read_json_like(thresholds, {"learning": LIKE_LEARNING}, maker)["learning"]


def means_nothing(path: str | Path, metrics: pd.DataFrame) -> str:
    """A line for the caption of what is made of a map, "" where its categories may mean something."""
    learning = map_learning(path, metrics)
    return f"\n{MEANS_NOTHING}" if learning and learning["warning"] else ""


def map_thresholds(path: str | Path, metrics: pd.DataFrame) -> tuple[float, float]:
    """The cuts (confidence, variability) of the map in a cartography directory, or beside its metrics file.

    The medians of ``metrics`` where no thresholds were written: by an older version, or by somebody else. Raises
    UserError when the file with them is damaged or gone.
    """
    file = artifact_file(path, METRICS_FILE, MADE_BY)
    thresholds = file.with_name(THRESHOLDS_FILE)
    recorded = THRESHOLDS_FILE in (load_meta(file) or {}).get("outputs", {})
    if not file.match("cartography_metrics.*") or not (thresholds.exists() or recorded):
        return category_thresholds(metrics)
    found = read_json(artifact_file(thresholds.parent, THRESHOLDS_FILE, "dataset_cartography.py"))
    cuts = [found.get(name) if isinstance(found, Mapping) else None for name in ("confidence", "variability")]
    for name, cut in zip(("confidence", "variability"), cuts, strict=True):
        low, high = RANGES[name]
        if not isinstance(cut, int | float) or not low <= cut <= high + 1e-6:
            raise UserError(
                f"{thresholds}: expected {name} as a number in {low:g}..{high:g}, found {cut!r:.60}; is the file "
                "whole? dataset_cartography.py writes it again"
            )
    if file.suffix == ".json":  # numbers of 15 decimals: an example that is the cut itself must stay on its side
        return category_thresholds(metrics, found.get("confidence_threshold"), found.get("variability_threshold"),
                                   found.get("method", "fixed"))
    return float(cuts[0]), float(cuts[1])  # type: ignore[arg-type]


def check_no_recording(output_dir: str | Path, of_training: bool = False) -> None:
    """Refuse an output directory with training dynamics: writing removes, and they cost a training.

    of_training: only those that a training wrote; dataset_cartography.py may write over its own copies.
    """
    if not holds_dynamics(output_dir):
        return
    if not of_training or model_meta(output_dir) or not load_meta(output_dir):
        raise UserError(f"--output_dir {output_dir} holds a cartography that was recorded; name another directory")


def plot_data_map(
    df: pd.DataFrame, path: str | Path, title: str | None = None, thresholds: tuple[float, float] | None = None,
    warning: str | None = None, error_bars: bool = False,
) -> None:
    """Draw variability against confidence, coloured by category, with the cuts and the category counts.

    Above 25,000 examples a seeded sample is drawn, and the picture says so; counts are always of all. warning: why the
    categories mean nothing, in title and caption. error_bars: of a joint map, one standard deviation over runs to
    either side, of MAX_ERROR_BARS examples drawn at random.
    """
    cuts = thresholds or category_thresholds(df)
    counts = np.bincount(category_places(df, cuts), minlength=len(CATEGORIES)).tolist()
    caption = f"{title}, n = {len(df):,}" if title else f"n = {len(df):,}"
    if "num_epochs" in df:
        caption += f", {df['num_epochs'].max():g} epochs"
    joint = "n_runs" in df
    if joint:
        caption += f", means over {df['n_runs'].max()} runs"
    sample, note = drawn_sample(df)
    drawn = with_categories(sample, cuts)
    figure, (axis, bars) = new_figure(9, 5.2, columns=2, width_ratios=[3, 1])
    size = float(np.clip(20_000 / len(drawn), 3, 18))
    for category in CATEGORIES:
        points = drawn[drawn["category"] == category]
        axis.scatter(points["variability"], points["confidence"], s=size, alpha=0.6, linewidths=0,
                     color=CATEGORY_COLORS[category], label=category)
    if error_bars:
        caption += _draw_error_bars(axis, drawn)
    axis.axvline(cuts[1], color=GREY, linewidth=0.8, linestyle="--")
    axis.plot([0, cuts[1]], [cuts[0], cuts[0]], color=GREY, linewidth=0.8, linestyle="--")
    axis.set(xlabel=f"variability (standard deviation of p(gold) over epochs{', mean over runs' * joint})",
             ylabel=f"confidence (mean p(gold) over epochs{' and runs' * joint})",
             xlim=(-0.01, max(0.3, 1.03 * drawn["variability"].max())), ylim=(-0.02, 1.02))
    legend = axis.legend(loc="lower right", markerscale=float(np.sqrt(30 / size)))
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    drawn_bars = bars.bar(CATEGORIES, counts, color=[CATEGORY_COLORS[category] for category in CATEGORIES])
    bars.bar_label(drawn_bars, [f"{count:,}\n{count / len(df):.0%}" for count in counts], fontsize=8)
    bars.set(ylabel="examples (count)", ylim=(0, max(counts) * 1.15))
    whole_numbers(bars.yaxis)
    bars.tick_params(axis="x", labelsize=8)
    caption += f"{note}; dashed: the cuts, confidence {cuts[0]:.3g}, variability {cuts[1]:.3g}"
    heading = "Data map"
    if warning:
        heading += ": the categories mean nothing yet"
        caption += f"\n{warning}"
    save_figure(figure, path, heading, caption)


def _draw_error_bars(axis: Axes, drawn: pd.DataFrame) -> str:
    """Bars of some of the points; returns what the caption says of them."""
    spreads = [f"{name}_sd" for name in ("variability", "confidence")]
    known = drawn[drawn[spreads].notna().all(axis=1)]
    rows = np.random.default_rng(0).permutation(len(known))[:MAX_ERROR_BARS]
    chosen = known.iloc[np.sort(rows)]
    for category in CATEGORIES:
        points = chosen[chosen["category"] == category]
        axis.errorbar(points["variability"], points["confidence"], xerr=points[spreads[0]], yerr=points[spreads[1]],
                      fmt="o", markersize=3, linewidth=0.6, color=CATEGORY_COLORS[category], markeredgecolor="black",
                      markeredgewidth=0.4)
    some = f" of {len(chosen):,} at random" if len(chosen) < len(known) else ""
    return f"; bars: one standard deviation over runs{some}"


def correctness_levels(correctness: pd.Series) -> list[tuple[str, pd.Series]]:
    """Of correctness (n, 0..1) the levels that occur, lowest first: a label, and which examples have it, bool (n,).

    Each value is a level, as the paper draws it, where there are at most 7; of more, 0, 1 and quarters between.
    """
    values = sorted(correctness.unique())
    if len(values) <= MAX_LEVELS:
        return [(f"{value:.2g}", correctness == value) for value in values]
    edges = (0, 0.25, 0.5, 0.75)
    inner = [(f"{low:g} to {low + 0.25:g}", (correctness > low) & (correctness <= low + 0.25) & (correctness < 1))
             for low in edges]
    levels = [("0", correctness == 0), *inner, ("1", correctness == 1)]
    return [(label, inside) for label, inside in levels if inside.any()]


def plot_map_by_correctness(df: pd.DataFrame, path: str | Path, caption: str, cuts: tuple[float, float]) -> None:
    """The data map as Swayamdipta et al. 2020 draw it: variability against confidence, colour and marker by
    correctness, and beside it how the three are distributed.

    df: the metrics, with ``correctness``. Above 25,000 examples a seeded sample is drawn; distributions are of all.
    """
    from matplotlib import colormaps

    drawn, note = drawn_sample(df)
    figure, axes = new_figure(9, 5.6, rows=3, columns=2, width_ratios=[3, 1])
    for each in axes[:, 0]:
        each.remove()
    axis: Any = figure.add_subplot(axes[0, 0].get_gridspec()[:, 0])
    axis.spines[["top", "right"]].set_visible(False)
    levels = correctness_levels(df["correctness"])
    size = float(np.clip(20_000 / len(drawn), 4, 22))
    for number, (label, inside) in enumerate(levels):
        points = drawn[inside.reindex(drawn.index)]
        # The palest end of the colours would be lost on white.
        color = colormaps["viridis"](0.9 * number / max(len(levels) - 1, 1))
        axis.scatter(points["variability"], points["confidence"], s=size, alpha=0.6, linewidths=0, color=[color],
                     marker=MARKERS[number], label=f"{label} (n = {int(inside.sum()):,})")
    axis.axvline(cuts[1], color=GREY, linewidth=0.8, linestyle="--")
    axis.plot([0, cuts[1]], [cuts[0], cuts[0]], color=GREY, linewidth=0.8, linestyle="--")
    axis.set(xlabel="variability (standard deviation of p(gold) over epochs)", ylim=(-0.02, 1.02),
             ylabel="confidence (mean p(gold) over epochs)", xlim=(-0.01, max(0.3, 1.03 * df["variability"].max())))
    legend = axis.legend(title="correctness", loc="lower right", markerscale=float(np.sqrt(30 / size)), fontsize=8,
                         title_fontsize=8)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    epochs = int(df["num_epochs"].max()) if "num_epochs" in df else 20
    for bars, column in zip(axes[:, 1], ("confidence", "variability", "correctness"), strict=True):
        # Correctness is a count of epochs: one bar for each.
        steps = min(epochs, 20) if column == "correctness" else 20
        half = 0.5 / steps if column == "correctness" else 0
        high = 1.0 if column != "variability" else 0.5
        bars.hist(df[column], bins=np.linspace(-half, high + half, steps + 1 + (half > 0)), color=COLORS[0],
                  edgecolor="white", linewidth=0.4)
        bars.set_xlabel(column, fontsize=8)
        bars.set_ylabel("examples (count)", fontsize=8)
        bars.tick_params(labelsize=7)
        whole_numbers(bars.yaxis)
    text = f"points{note}: colour and marker by correctness, the fraction of epochs predicted right; dashed: the cuts"
    save_figure(figure, path, "Data map by correctness", f"{caption}\n{text}")
