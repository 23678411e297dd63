"""Slices: how a model does on the examples that share a value of a column, each rate with its 95% interval."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.errors import UserError, name_a_few
from datamap.core.plots import COLORS, GREY, LIGHT_GREY, new_figure, save_figure
from datamap.core.tables import console_table, shortened

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    from matplotlib.axes import Axes

NUMBER = re.compile(r"-?(0|[1-9]\d*)\.\d+")
OVERALL, MISSING = "overall", "missing"
# Columns of our tables, which a column of the data must not hide.
RESERVED = (
    "slice", "split", "n", "accuracy", "exact_match", "low", "high", "f1", "loss", "majority_baseline",
    "clusters", "n_effective",
)
PERCENTAGES = ("exact_match", "f1", "low", "high")  # of a table with exact_match; every other rate is 0..1
MAX_NAME_PRINTED = 48  # characters
ENDS_PRINTED = 6  # of many slices so many of the worst, and of the best
MAX_PANELS, MAX_POINTS = 6, 40
# They tell the series apart in grey.
MARKERS = ("o", "s", "^", "D", "v", "P")
RATE_LABELS = {"accuracy": "accuracy (fraction right)", "exact_match": "exact match (%)"}


def rate_name(rate: str) -> str:
    return rate.replace("_", " ").capitalize()


# --- values ------------------------------------------------------------------------------------------------------


def slice_columns(data: datasets.Dataset, columns: Sequence[str], source: str) -> dict[str, list]:
    """The values of each column to slice by, one per example; those of a ClassLabel as names, a missing one as None.

    ``source`` names the dataset in messages. Raises UserError for a column that is not there, named twice, named
    like a column of the table, neither text nor numbers nor true/false, or different in every example.
    """
    repeated = sorted({column for column in columns if list(columns).count(column) > 1})
    if repeated:
        raise UserError(f"--slice_by names {name_a_few(repeated)} more than once; name every column once")
    values = {}
    for column in columns:
        if column not in data.column_names:
            there = ", ".join(data.column_names)
            raise UserError(f"--slice_by: {source} has no column {column!r}; it has {there}")
        if column in RESERVED:
            raise UserError(
                f"--slice_by: {column!r} of {source} is also a column of the table of slices; rename it in the data"
            )
        found = _numbers_of([None if _is_missing(value) else value for value in data[column][:]])
        odd = next((value for value in found if not isinstance(value, str | int | float | None)), None)
        if odd is not None:
            raise UserError(
                f"--slice_by: column {column!r} of {source} holds values of type {type(odd).__name__}; expected text, "
                "numbers or true/false"
            )
        names = getattr(data.features[column], "names", None)  # of a ClassLabel, where -1 means no label
        if names is not None:
            found = [None if value is None or value < 0 else names[value] for value in found]
        if len(found) > 1 and len(set(found)) == len(found):
            raise UserError(
                f"--slice_by: all {len(found):,} values of column {column!r} of {source} differ; a slice needs "
                "several examples: name a column whose values repeat"
            )
        values[column] = found
    return values


def cluster_values(data: datasets.Dataset, column: str, source: str) -> list:
    """The values of the column by which the examples of an evaluation go together, one per example.

    ``source`` names the dataset in messages. Raises UserError for a column that is not there, or not in every example.
    """
    if column not in data.column_names:
        raise UserError(f"--cluster_by: {source} has no column {column!r}; it has {', '.join(data.column_names)}")
    values = data[column][:]
    without = [example for example, value in zip(data["id"][:], values, strict=True) if _is_missing(value)]
    if without:
        raise UserError(f"--cluster_by: {len(without):,} of {len(values):,} examples of {source} have no {column} "
                        f"({name_a_few(without)}); fill it, or take another column")
    return values


def _numbers_of(values: list) -> list:
    """Numbers that stand in a CSV as text (0.5, or 8.0 beside a gap) as numbers; all of a column or none."""
    known = [value for value in values if value is not None]
    if not known or not all(isinstance(value, str) and NUMBER.fullmatch(value) for value in known):
        return values
    return [None if value is None else float(value) for value in values]


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or value != value  # an empty cell, or NaN


# --- tables ------------------------------------------------------------------------------------------------------


def slice_table(values: Mapping[str, Sequence], statistics: Callable[[np.ndarray], dict[str, float]]) -> pd.DataFrame:
    """One row per slice: all examples, then every value of each column, then every combination that occurs.

    ``values`` holds N values per column: text, numbers or booleans; None, NaN and "" are the slice ``missing``, which
    is ``(missing)`` in a column that has the text "missing".
    ``statistics`` gets the (N,) bool mask of a slice, never empty, and returns its numbers by name, the same names
    for every slice. Numbers are in ascending order, texts in alphabetical order, missing is last.

    Columns: ``slice`` (``overall``; a text value as it is, a number as ``<column>_<value>``, combinations joined
    with "/"; where two slices would get one name, every text value becomes ``<column>=<value>``); one column per
    slice column with its value, empty where the row is not by it (a column with missing values is text); ``n``; the
    statistics. Combinations are of all columns, and there only for two columns or more. Raises ValueError where
    columns differ in length or a statistic has the name of a slice column.
    """
    import pandas as pd

    encoded = {column: _encode(each) for column, each in values.items()}
    lengths = {column: len(codes) for column, (codes, _) in encoded.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"expected slice columns of one length, got {lengths}")
    codes = np.stack([codes for codes, _ in encoded.values()], axis=1)

    # Each row as the place of its value among the levels of each column, -1 where it is not by that column.
    places = [[-1] * len(encoded)]
    for position, (_, levels) in enumerate(encoded.values()):
        places += [[place if other == position else -1 for other in range(len(encoded))]
                   for place in range(len(levels))]
    if len(encoded) > 1:
        places += np.unique(codes, axis=0).tolist()
    numbers = []
    for row in np.array(places):
        mask = ((codes == row) | (row < 0)).all(axis=1)
        numbers.append({"n": int(mask.sum()), **statistics(mask)})

    table = pd.DataFrame({"slice": _slice_names({column: levels for column, (_, levels) in encoded.items()}, places)})
    for position, (column, (_, levels)) in enumerate(encoded.items()):
        table[column] = _cells(levels, [row[position] for row in places])
    taken = [name for name in numbers[0] if name in table]
    if taken:
        raise ValueError(f"statistics have the names of slice columns: {name_a_few(taken)}")
    return pd.concat([table, pd.DataFrame(numbers)], axis=1)


def _encode(values: Sequence) -> tuple[np.ndarray, list]:
    """Codes (N,) into the distinct values in their natural order, missing (None) last."""
    plain = [None if _is_missing(value) else value for value in values]
    known = {value for value in plain if value is not None}
    are_numbers = not any(isinstance(value, str | bool) for value in known)
    # Counts that a missing value has made floats; beyond 2**53 floats are no longer exact.
    if are_numbers and all(float(value).is_integer() and abs(value) < 2**53 for value in known):
        plain, known = [value if value is None else int(value) for value in plain], {int(value) for value in known}
    # Not in the order of the data: a value must have one place and colour in the pictures of all sets.
    levels = sorted(known, key=None if are_numbers else str) + [None] * (None in plain)
    places = {level: place for place, level in enumerate(levels)}
    return np.array([places[value] for value in plain], dtype=np.int64), levels


def _text(level: Any) -> str:
    if level is None:
        return MISSING
    return str(level).lower() if isinstance(level, bool) else str(level)


def _texts(levels: Sequence) -> list[str]:
    """Each value as text; what stands for missing ones is no value of the column, as the text "missing" may be."""
    missing = MISSING
    while missing in levels:
        missing = f"({missing})"
    return [missing if level is None else _text(level) for level in levels]


def _slice_names(levels: Mapping[str, list], places: Sequence[Sequence[int]]) -> list[str]:
    names: list[str] = []
    for with_column in (False, True):
        parts = []
        for column, known in levels.items():
            is_text = any(isinstance(level, str) for level in known) or known == [None]
            prefix = "" if is_text and not with_column else f"{column}=" if is_text else f"{column}_"
            parts.append([prefix + text for text in _texts(known)])
        names = ["/".join(part[place] for part, place in zip(parts, row, strict=True) if place >= 0) or OVERALL
                 for row in places]
        if len(set(names)) == len(names):
            break
    return names


def _cells(levels: list, places: Sequence[int]) -> pd.Series:
    """One cell per row in a type that keeps 15 from becoming 15.0 beside the empty cells."""
    import pandas as pd

    if None in levels or any(isinstance(level, str) for level in levels):
        levels, dtype = _texts(levels), "string"
    elif isinstance(levels[0], bool):
        dtype = "boolean"
    else:
        dtype = "Int64" if all(isinstance(level, int) for level in levels) else "Float64"
    return pd.Series([levels[place] if place >= 0 else None for place in places], dtype=dtype)


def generalization_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The slice tables of several evaluation sets, one below the other, with the name of the set in ``split``."""
    import pandas as pd

    columns = next(iter(tables.values())).columns
    # Missing in one set only: a column with 15 and "missing" is text.
    texts = [column for column in columns[1 : columns.get_loc("n")]
             if any(table[column].dtype == "string" for table in tables.values())]
    frames = []
    for name, table in tables.items():
        as_text = {column: table[column].astype(object).map(_text, na_action="ignore").astype("string")
                   for column in texts}
        frames.append(table.assign(split=name, **as_text))
    joined = pd.concat(frames, ignore_index=True)
    joined.insert(0, "split", joined.pop("split"))
    return joined


def _rows_by(table: pd.DataFrame, columns: Sequence[str], chosen: Sequence[str]) -> pd.DataFrame:
    """The rows that are by the ``chosen`` of the slice columns and by no other."""
    by = np.array([table[column].notna().to_numpy() for column in columns])
    wanted = np.array([column in chosen for column in columns])
    return table[(by == wanted[:, None]).all(axis=0)]


# --- console and log ---------------------------------------------------------------------------------------------


def printed(table: pd.DataFrame, file: str, ends: int = ENDS_PRINTED) -> str:
    """Aligned lines for the console: slice, n, and the statistics with the interval as ``[low, high]``.

    Of many slices the first row, which is of all examples, the worst and the best: those with the lowest upper and the
    highest lower end of the interval, ``ends`` each, so that a slice of one example is neither. ``file`` holds the
    rest.
    """
    import pandas as pd

    parts, hidden = [table], len(table) - 1 - 2 * ends
    if hidden > 0:
        rest = table.iloc[1:]
        worst = rest.sort_values(["high", "n"], ascending=[True, False], kind="stable")
        worst = worst.head(ends)
        best = rest.drop(worst.index).sort_values(["low", "n"], ascending=False, kind="stable")
        parts = [table.head(1), worst, best.head(ends).iloc[::-1]]
    lines = _lines(pd.concat(parts)).split("\n")
    if hidden > 0:
        lines.insert(2 + ends, f"... {hidden:,} more between the worst and the best, in {file}")
    return "\n".join(lines)


def _lines(table: pd.DataFrame) -> str:
    statistics = table.columns[table.columns.get_loc("n") :]
    percent = PERCENTAGES if "exact_match" in table else ()
    formats = {name: ".1f" if name in percent else ".3f" for name in statistics} | {
        "n": ",d", "clusters": ",d", "n_effective": ",.0f"}
    shown = table[statistics].drop(columns=["low", "high"], errors="ignore")
    shown.insert(0, "slice", shortened(table["slice"].tolist(), MAX_NAME_PRINTED))
    if "low" in table:
        ends = zip(table["low"], table["high"], strict=True)
        form = formats["low"]
        intervals = [None if low != low else f"[{low:{form}}, {high:{form}}]" for low, high in ends]
        shown.insert(int(statistics.get_loc("low")) + 1, "95% interval", intervals)
    return console_table(shown, formats)


def logged(table: pd.DataFrame, columns: Sequence[str]) -> dict[str, float]:
    """``slices/<column>/<value>/<statistic>`` of the rows that are by one of the slice columns; NaN is left out."""
    statistics = table.columns[table.columns.get_loc("n") :]
    return {
        f"slices/{column}/{_text(row[column])}/{name}": row[name]
        for column in columns for row in _rows_by(table, columns, [column]).to_dict("records")
        for name in statistics if row[name] is not None and not math.isnan(row[name])
    }


# --- pictures ----------------------------------------------------------------------------------------------------


def plot_slices(
    path: str | Path, table: pd.DataFrame, columns: Sequence[str], rate: str, title: str, caption: str
) -> None:
    """Draw the ``rate`` (``accuracy`` or ``exact_match``) of the slices of ``slice_table`` with 95% intervals.

    Against the first numeric slice column: a panel for all examples and, where the other of two slice columns is not
    numeric, one for each of its values, at most six (lines in one panel would hide each other's intervals). Without a
    numeric column: a point for all examples and for every value, at most 40. Where there are more, those with the most
    examples are drawn. ``columns`` are all slice columns.
    """
    import pandas as pd

    numeric = next((column for column in columns if _is_numeric(table[column])), None)
    if numeric is None:
        shown, note = _largest(table[table[list(columns)].notna().sum(axis=1) == 1], MAX_POINTS, "slices")
        _plot_points(path, pd.concat([table.head(1), shown]), rate, title, caption + note, with_first=True)
        return
    pooled, note = _against(_rows_by(table, columns, [numeric]), numeric)
    panels = [("all examples", pooled)]
    others = [column for column in columns if column != numeric and not _is_numeric(table[column])]
    if len(columns) == 2 and others:
        shown, left_out = _largest(_rows_by(table, columns, others), MAX_PANELS, f"values of {others[0]}")
        note += left_out
        combinations, _ = _against(_rows_by(table, columns, columns), numeric)
        panels += [(name, combinations[combinations[others[0]] == value])
                   for name, value in zip(shown["slice"], shown[others[0]], strict=True)]

    across = {1: 1, 2: 2, 4: 2, 7: 4}.get(len(panels), 3)
    down = -(-len(panels) // across)
    size = (5.0, 3.4) if len(panels) == 1 else (0.6 + 2.0 * across, 1.0 + 1.8 * down)
    figure, axes = new_figure(*size, down, across, sharex=True, sharey=True, squeeze=False)
    titles = _sized([name for name, _ in panels], [rows["n"].sum() for _, rows in panels], 26, break_after=14)
    for number, (name, rows) in enumerate(panels):
        axis = axes.flat[number]
        if number:  # the first panel's line in grey
            axis.plot(pooled[numeric], pooled[rate], color=LIGHT_GREY, linewidth=2)
        color = "black" if number == 0 else COLORS[(number - 1) % len(COLORS)]
        _draw(axis, rows[numeric].to_numpy(), rows, rate, color, MARKERS[number % len(MARKERS)], name)
        _finish_axis(axis, numeric, rate, pooled[numeric].to_numpy())
        axis.label_outer()
        if number + across >= len(panels):  # nothing below it
            axis.tick_params(labelbottom=True)
            axis.set_xlabel(_axis_label(numeric), fontsize=9)
        axis.set_title(titles[number], fontsize=9, loc="left")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    grey = "; grey line: all examples" if len(panels) > 1 else ""
    save_figure(figure, path, title, caption + note + _key(rate, pooled) + grey)


def plot_generalization(
    path: str | Path, tables: Mapping[str, pd.DataFrame], columns: Sequence[str], rate: str, title: str, caption: str
) -> None:
    """Draw the ``rate`` of several evaluation sets, by name, in one picture with 95% intervals.

    Against the first numeric slice column, one colour and marker per set; without one, a point per set.
    """
    import pandas as pd

    numeric = next((each for each in columns if all(_is_numeric(table[each]) for table in tables.values())), None)
    if numeric is None:
        rows = pd.concat([table.head(1).assign(slice=name) for name, table in tables.items()])
        _plot_points(path, rows, rate, title, caption)
        return
    singles = pd.concat([_rows_by(table, columns, [numeric]).assign(split=name) for name, table in tables.items()])
    singles, note = _against(singles, numeric)
    parts = [singles[singles["split"] == name] for name in tables]
    distinct = np.unique(singles[numeric])
    # Sets that share a place on the axis are drawn side by side, else their intervals would hide each other.
    step = 0.0
    if len(distinct) < len(singles):
        step = min(0.15, 0.6 / len(parts)) * (float(np.diff(distinct).min()) if len(distinct) > 1 else 1.0)
    figure, axis = new_figure(6.0, 3.6)
    labels = _sized(list(tables), [rows["n"].sum() for rows in parts])
    for number, rows in enumerate(parts):
        x = rows[numeric].to_numpy() + (number - (len(parts) - 1) / 2) * step
        _draw(axis, x, rows, rate, COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)], labels[number])
    _finish_axis(axis, numeric, rate, distinct)
    in_a_row = max(1, 80 // (6 + max(map(len, labels))))  # characters
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=in_a_row, frameon=False, fontsize=8, borderaxespad=0)
    save_figure(figure, path, title, caption + note + _key(rate, singles))


def _plot_points(
    path: str | Path, rows: pd.DataFrame, rate: str, title: str, caption: str, with_first: bool = False
) -> None:
    """One horizontal point with its interval per row, the first on top; ``with_first``: its rate a line down all."""
    figure, axis = new_figure(6.0, 1.3 + 0.28 * len(rows))
    places = np.arange(len(rows))
    if with_first:
        axis.axvline(rows[rate].iloc[0], color=LIGHT_GREY, linewidth=1.5, zorder=0)
    if "majority_baseline" in rows:
        axis.plot(rows["majority_baseline"], places, "|", color=GREY, markersize=11)
    axis.errorbar(rows[rate], places, xerr=_errors(rows, rate), fmt="o", color=COLORS[0], markersize=5, elinewidth=1.2)
    axis.set_yticks(places, _sized(rows["slice"].tolist(), rows["n"].tolist()))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    scale = 100 if rate in PERCENTAGES else 1
    axis.set_xlim(-0.02 * scale, 1.02 * scale)
    axis.set_xlabel(RATE_LABELS.get(rate, rate), fontsize=9)
    axis.tick_params(labelsize=9)
    grey = "; grey line: all examples" if with_first else ""
    save_figure(figure, path, title, caption + _key(rate, rows, "point", "grey tick") + grey)


def _is_numeric(cells: pd.Series) -> bool:
    """Whether all values of a slice column are numbers, those that are missing aside."""
    import pandas as pd

    known = cells.dropna()
    known = known[known.map(_text) != MISSING]
    if known.empty or pd.api.types.is_bool_dtype(cells.dtype):
        return False
    return bool(np.isfinite(pd.to_numeric(known, errors="coerce").astype("float64")).all())


def _against(rows: pd.DataFrame, numeric: str) -> tuple[pd.DataFrame, str]:
    """The rows that have a value of ``numeric``, with it as float64, and a note if examples have none."""
    import pandas as pd

    numbers = pd.to_numeric(rows[numeric].map(_text), errors="coerce").astype("float64")
    left_out = int(rows["n"][numbers.isna()].sum())
    note = f"\nnot drawn: {left_out:,} examples without {numeric}" if left_out else ""
    return rows.assign(**{numeric: numbers})[numbers.notna()], note


def _largest(rows: pd.DataFrame, limit: int, what: str) -> tuple[pd.DataFrame, str]:
    """At most ``limit`` rows, those with the most examples, in their order, and a note if some are left out."""
    if len(rows) <= limit:
        return rows, ""
    return rows.loc[sorted(rows["n"].nlargest(limit).index)], f"\nthe {limit} largest of {len(rows):,} {what}"


def _errors(rows: pd.DataFrame, rate: str) -> np.ndarray:
    """Distances (2, rows) of the interval's ends from the rate, as matplotlib wants them."""
    return abs(rows[["low", "high"]].to_numpy(dtype=float).T - rows[rate].to_numpy(dtype=float))


def _draw(axis: Axes, x: np.ndarray, rows: pd.DataFrame, rate: str, color: str, marker: str, label: str) -> None:
    """The rate with its intervals as a line, and the majority baseline where there is one."""
    if "majority_baseline" in rows:
        axis.plot(x, rows["majority_baseline"], color=GREY, linewidth=1, linestyle=":")
    axis.errorbar(x, rows[rate], yerr=_errors(rows, rate), color=color, marker=marker, label=label, markersize=4,
                  linewidth=1, elinewidth=0.9)


def _finish_axis(axis: Axes, numeric: str, rate: str, x: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    scale = 100 if rate in PERCENTAGES else 1
    axis.set_ylim(-0.02 * scale, 1.03 * scale)
    axis.set_yticks([scale * tick / 4 for tick in range(5)])
    axis.set_xlabel(_axis_label(numeric), fontsize=9)
    axis.set_ylabel(RATE_LABELS.get(rate, rate), fontsize=9)
    axis.tick_params(labelsize=8)
    if (x == np.round(x)).all():
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _axis_label(column: str) -> str:
    return _plain(column.replace("_", " "))


def _key(rate: str, rows: pd.DataFrame, shape: str = "line", baseline: str = "dotted") -> str:
    """What the caption says of the marks."""
    majority = f"; {baseline}: majority baseline" if "majority_baseline" in rows else ""
    return f"\n{shape} and bar: {rate.replace('_', ' ')} and its 95% Wilson interval{majority}"


def _sized(names: Sequence[str], sizes: Sequence[int], length: int = 40, break_after: int = 40) -> list[str]:
    """``name (n = 240)``, on two lines where the name has more than ``break_after`` characters."""
    return [_plain(short) + ("\n" if len(short) > break_after else " ") + f"(n = {n:,})"
            for short, n in zip(shortened(names, length), sizes, strict=True)]


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # a bare $ would begin a formula
