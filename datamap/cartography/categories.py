"""Easy, ambiguous, hard: the categories of a data map, and the thresholds between them.

In use, "ambiguous" sometimes also asks for a middling confidence. Here high variability alone decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datamap.core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

CATEGORIES = ("easy", "ambiguous", "hard")
THRESHOLD_METHODS = ("median", "percentile", "fixed")
DEFAULT_PERCENTILES = (50, 67)  # of confidence, of variability


def check_asked(
    confidence_threshold: float | None = None, variability_threshold: float | None = None, method: str = "median"
) -> None:
    """UserError for thresholds that ``category_thresholds`` would refuse, whatever the metrics."""
    if method not in THRESHOLD_METHODS:
        raise UserError(f"unknown threshold method {method!r}; there is {', '.join(THRESHOLD_METHODS)}")
    given = {"confidence": confidence_threshold, "variability": variability_threshold}
    if method == "fixed" and None in given.values():
        raise UserError("method fixed needs both a confidence threshold and a variability threshold")
    highest = (100, 100) if method == "percentile" else (1, 0.5)
    for (name, cut), high in zip(given.items(), highest, strict=True):
        if cut is not None and not 0 <= cut <= high:
            raise UserError(f"method {method}: the {name} threshold lies in 0..{high:g}, found {cut:g}")


def category_thresholds(
    metrics: pd.DataFrame, confidence_threshold: float | None = None, variability_threshold: float | None = None,
    method: str = "median",
) -> tuple[float, float]:
    """The (confidence, variability) cuts between the categories, from the whole metrics file.

    ``median``: the medians, unless a threshold is given. ``percentile``: thresholds are percentiles 0..100 (defaults
    50 and 67). ``fixed``: thresholds are the values themselves, both needed.
    """
    check_asked(confidence_threshold, variability_threshold, method)
    given = {"confidence": confidence_threshold, "variability": variability_threshold}
    if method == "percentile":
        given = {name: float(np.percentile(metrics[name], default if cut is None else cut))
                 for (name, cut), default in zip(given.items(), DEFAULT_PERCENTILES, strict=True)}
    confidence, variability = (
        float(metrics[name].median()) if cut is None else float(cut) for name, cut in given.items()
    )
    return confidence, variability


def categorize_examples(
    df: pd.DataFrame, confidence_threshold: float | None = None, variability_threshold: float | None = None,
    method: str = "median",
) -> pd.DataFrame:
    """A copy of the metrics with a column ``category``, at the thresholds asked for (``category_thresholds``).

    Pass the whole metrics file, never a subset: the thresholds come from it. Those that were written with a map, and
    that every stage goes by, ``maps.load_map`` reads.
    """
    return with_categories(df, category_thresholds(df, confidence_threshold, variability_threshold, method))


def with_categories(metrics: pd.DataFrame, thresholds: tuple[float, float]) -> pd.DataFrame:
    """A copy of the metrics with a column ``category``, at the cuts (confidence, variability).

    Variability above its cut is ``ambiguous``; else confidence at or above its cut is ``easy``, below it ``hard``.
    """
    import pandas as pd

    words = np.array(CATEGORIES, dtype=object)[category_places(metrics, thresholds)]
    return metrics.assign(category=pd.array(words, dtype="str"))


def category_places(metrics: pd.DataFrame, thresholds: tuple[float, float]) -> np.ndarray:
    """The category of each example as its place in CATEGORIES, (n,) int8, by the rule of ``with_categories``."""
    confidence, variability = thresholds
    # As arrays: numpy asks a series for attributes, for which pandas looks in the index.
    settled = np.where(metrics["confidence"].to_numpy() >= confidence, np.int8(0), np.int8(2))
    return np.where(metrics["variability"].to_numpy() > variability, np.int8(1), settled)


def counted(metrics: pd.DataFrame, thresholds: tuple[float, float]) -> str:
    """How many examples are in each category, and where the cuts (confidence, variability) are that they go by."""
    confidence, variability = thresholds
    easy, ambiguous, hard = np.bincount(category_places(metrics, thresholds), minlength=len(CATEGORIES)).tolist()
    return (f"{easy:,} easy (confidence from {confidence:.3g}), {ambiguous:,} ambiguous (variability above "
            f"{variability:.3g}), {hard:,} hard (confidence below {confidence:.3g})")


def get_examples_by_category(df: pd.DataFrame, category: str, n: int | None = None) -> list[str]:
    """Ids of a category, lowest confidence first for hard and ambiguous, highest first for easy; at most ``n``.

    ``df`` is the metrics, with or without the column ``category``. Ties are broken by id.
    """
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative, found {n}")
    if category not in CATEGORIES:
        raise UserError(f"unknown category {category!r}; there is {', '.join(CATEGORIES)}")
    if "category" not in df:
        df = categorize_examples(df)
    chosen = df[df["category"] == category].sort_index()
    ranked = chosen.sort_values("confidence", ascending=category != "easy", kind="stable")
    return ranked.index[:n].tolist()
