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
from datamap.core.tables import console_table

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    from matplotlib.axes import Axes

NUMBER = re.compile(r"-?(0|[1-9]\d*)\.\d+")
OVERALL, MISSING = "overall", "missing"
# Columns of our tables, which a column of the data must not hide.
RESERVED = (
    "slice", "split", "n", "accuracy", "exact_match", "low", "high", "f1", "loss", "majority_baseline",
)
PERCENTAGES = ("exact_match", "f1", "low", "high")  # of a table with exact_match; every other rate is 0..1
MAX_NAME_PRINTED = 48  # characters
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
        values[column] = _read_column(data, column, source)
    return values


def _read_column(data: datasets.Dataset, column: str, source: str) -> list:
    values = _numbers_of([None if _is_missing(value) else value for value in data[column][:]])
    odd = next((value for value in values if not isinstance(value, str | int | float | None)), None)
    if odd is not None:
        raise UserError(
            f"--slice_by: column {column!r} of {source} holds values of type {type(odd).__name__}; expected text, "
            "numbers or true/false"
        )
    names = getattr(data.features[column], "names", None)  # of a ClassLabel, where -1 means no label
    if names is not None:
        values = [None if value is None or value < 0 else names[value] for value in values]
    if len(values) > 1 and len(set(values)) == len(values):
        raise UserError(
            f"--slice_by: all {len(values):,} values of column {column!r} of {source} differ; a slice needs several "
            "examples: name a column whose values repeat"
        )
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


def slice_table(
    values: Mapping[str, Sequence], statistics: Callable[[np.ndarray], dict[str, float]]
) -> pd.DataFrame:
    """One row per slice: all examples, then every value of each column, then every combination that occurs.

    ``values`` holds N values per column: text, numbers or booleans; None, NaN and "" are the slice ``missing``.
    ``statistics`` gets the (N,) bool mask of a slice, never empty, and returns its numbers by name, the same names
    for every slice. Numbers are in ascending order, texts in alphabetical order, missing is last.

    Columns: ``slice`` (``overall``; a text value as it is, a number as ``<column>_<value>``, combinations joined
    with "/"; where two slices would get one name, every text value becomes ``<column>=<value>``); one column per
    slice column with its value, empty where the row is not by it (a column with missing values is text); ``n``; the
    statistics. Combinations are of all columns, and there only for two columns or more. Raises ValueError where
    columns differ in length or a statistic has the name of a slice column.
    """
    import pandas as pd

    columns = list(values)
    encoded = [_encode(values[column]) for column in columns]
    lengths = {column: len(codes) for column, (codes, _) in zip(columns, encoded, strict=True)}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"expected slice columns of one length, got {lengths}")
    total = next(iter(lengths.values()))

    # One entry per row: its numbers, and for each column the place of its value among the levels (None: not by it).
    numbers: list[dict[str, float]] = []
    places: list[tuple[int | None, ...]] = []

    def add(mask: np.ndarray, place: Sequence[int | None]) -> None:
        numbers.append({"n": int(mask.sum()), **statistics(mask)})
        places.append(tuple(place))

    add(np.ones(total, dtype=bool), [None] * len(columns))
    for position, (codes, levels) in enumerate(encoded):
        for code in range(len(levels)):
            add(codes == code, [code if other == position else None for other in range(len(columns))])
    if len(columns) > 1:
        stacked = np.stack([codes for codes, _ in encoded], axis=1)
        combinations, members = np.unique(stacked, axis=0, return_inverse=True)
        for row, combination in enumerate(combinations.tolist()):
            add(members.reshape(-1) == row, combination)

    levels_by_column = {column: levels for column, (_, levels) in zip(columns, encoded, strict=True)}
    table = pd.DataFrame({"slice": _slice_names(levels_by_column, places)})
    for position, (column, levels) in enumerate(levels_by_column.items()):
        table[column] = _cells(levels, [place[position] for place in places])
    taken = [name for name in numbers[0] if name in table]
    if taken:
        raise ValueError(f"statistics have the names of slice columns: {name_a_few(taken)}")
    return pd.concat([table, pd.DataFrame(numbers)], axis=1)


def _encode(values: Sequence) -> tuple[np.ndarray, list]:
    """Codes (N,) into the distinct values in their natural order, missing (None) last."""
    plain = [None if _is_missing(value) else value for value in np.asarray(values, dtype=object).tolist()]
    known = list(dict.fromkeys(value for value in plain if value is not None))
    if all(isinstance(value, bool | np.bool_) for value in known):
        plain = [value if value is None else bool(value) for value in plain]
        known = sorted({bool(value) for value in known})
    elif not any(isinstance(value, str | bool) for value in known):
        # Counts that a missing value has made floats; beyond 2**53 floats are no longer exact.
        if all(float(value).is_integer() and abs(value) < 2**53 for value in known):
            plain = [value if value is None else int(value) for value in plain]
        known = sorted({value for value in plain if value is not None})
    else:  # not in the order of the data: a value must have one place and colour in the pictures of all sets
        known = sorted(known, key=str)
    levels = known + [None] * (None in plain)
    codes = {level: code for code, level in enumerate(levels)}
    return np.array([codes[value] for value in plain], dtype=np.int64), levels


def _text(level: Any) -> str:
    if level is None:
        return MISSING
    return str(level).lower() if isinstance(level, bool) else str(level)


def _slice_names(levels: Mapping[str, list], places: Sequence[tuple[int | None, ...]]) -> list[str]:
    def names(with_column: bool) -> list[str]:
        parts = []
        for column, known in levels.items():
            is_text = any(isinstance(level, str) for level in known) or known == [None]
            prefix = "" if is_text and not with_column else f"{column}=" if is_text else f"{column}_"
            parts.append([prefix + _text(level) for level in known])
        result = []
        for place in places:
            chosen = [part[code] for part, code in zip(parts, place, strict=True) if code is not None]
            result.append("/".join(chosen) or OVERALL)
        return result

    short = names(False)
    return short if len(set(short)) == len(short) else names(True)


def _cells(levels: list, codes: Sequence[int | None]) -> pd.Series:
    """One cell per row in a type that keeps 15 from becoming 15.0 beside the empty cells."""
    import pandas as pd

    if None in levels or any(isinstance(level, str) for level in levels):
        levels, dtype = [_text(level) for level in levels], "string"
    elif isinstance(levels[0], bool):
        dtype = "boolean"
    else:
        dtype = "Int64" if all(isinstance(level, int) for level in levels) else "Float64"
    return pd.Series([None if code is None else levels[code] for code in codes], dtype=dtype)


def generalization_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The slice tables of several evaluation sets, one below the other, with the name of the set in ``split``."""
    import pandas as pd

    frames = [table.assign(split=name) for name, table in tables.items()]
    for column in frames[0].columns:
        kinds = {frame[column].dtype for frame in frames if column in frame}
        if len(kinds) > 1 and any(not pd.api.types.is_numeric_dtype(kind) for kind in kinds):
            # Missing in one set only: a column with 15 and "missing" is text.
            frames = [
                frame.assign(**{column: frame[column].map(_text, na_action="ignore").astype("string")})
                for frame in frames
            ]
    joined = pd.concat(frames, ignore_index=True)
    return joined[["split", *(column for column in joined.columns if column != "split")]]


def _rows_by(table: pd.DataFrame, columns: Sequence[str], chosen: Sequence[str]) -> pd.DataFrame:
    """The rows that are by the ``chosen`` of the slice columns and by no other."""
    by = np.array([table[column].notna().to_numpy() for column in columns])
    wanted = np.array([column in chosen for column in columns])
    return table[(by == wanted[:, None]).all(axis=0)]


# --- console and log ---------------------------------------------------------------------------------------------


def printed(table: pd.DataFrame, limit: int = 40) -> str:
    """Aligned lines for the console: slice, n, and the statistics with the interval as ``[low, high]``."""
    statistics = table.columns[table.columns.get_loc("n") :]
    percent = PERCENTAGES if "exact_match" in table else ()
    formats = {name: ".1f" if name in percent else ".3f" for name in statistics} | {"n": ",d"}
    shown = table[statistics].drop(columns=["low", "high"], errors="ignore")
    shown.insert(0, "slice", [_shortened(name, MAX_NAME_PRINTED) for name in table["slice"]])
    if "low" in table:
        ends = zip(table["low"], table["high"], strict=True)
        form = formats["low"]
        intervals = [None if low != low else f"[{low:{form}}, {high:{form}}]" for low, high in ends]
        shown.insert(int(statistics.get_loc("low")) + 1, "95% interval", intervals)
    return console_table(shown, formats, limit)


def _shortened(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."


def logged(table: pd.DataFrame, columns: Sequence[str]) -> dict[str, float]:
    """``slices/<column>/<value>/<statistic>`` of the rows that are by one of the slice columns; NaN is left out."""
    statistics = [name for name in table.columns if name not in ("slice", *columns)]
    numbers = {}
    for column in columns:
        for row in _rows_by(table, columns, [column]).to_dict("records"):
            for name in statistics:
                value = row[name]
                if value is not None and not math.isnan(value):
                    numbers[f"slices/{column}/{_text(row[column])}/{name}"] = value
    return numbers


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

    numeric = _numeric_column([table], columns)
    if numeric is None:
        shown, note = _largest(table[table[list(columns)].notna().sum(axis=1) == 1], MAX_POINTS, "slices")
        rows = pd.concat([table.head(1), shown])
        _plot_points(path, rows, list(rows["slice"]), rate, title, caption + note, reference=float(rows[rate].iloc[0]))
        return
    singles = _rows_by(table, columns, [numeric])
    pooled, note = _with_numbers(singles, numeric), _not_drawn([singles], numeric)
    panels = [("all examples", pooled)]
    others = [column for column in columns if column != numeric and _numbers(table[column]) is None]
    if len(columns) == 2 and others:
        shown, left_out = _largest(_rows_by(table, columns, others), MAX_PANELS, f"values of {others[0]}")
        note += left_out
        combinations = _with_numbers(_rows_by(table, columns, columns), numeric)
        for name, value in zip(shown["slice"], shown[others[0]], strict=True):
            panels.append((name, combinations[combinations[others[0]] == value]))
    _plot_panels(path, panels, numeric, rate, title, caption + note)


def plot_generalization(
    path: str | Path, tables: Mapping[str, pd.DataFrame], columns: Sequence[str], rate: str, title: str, caption: str
) -> None:
    """Draw the ``rate`` of several evaluation sets, by name, in one picture with 95% intervals.

    Against the first numeric slice column, one colour and marker per set; without one, a point per set.
    """
    import pandas as pd

    numeric = _numeric_column(list(tables.values()), columns)
    if numeric is None:
        rows = pd.concat([table.head(1) for table in tables.values()])
        _plot_points(path, rows, list(tables), rate, title, caption)
        return
    singles = [_rows_by(table, columns, [numeric]) for table in tables.values()]
    parts = [_with_numbers(rows, numeric) for rows in singles]
    places = [rows[numeric].to_numpy(dtype=float) for rows in parts]
    distinct = np.unique(np.concatenate(places))
    # Sets that share a place on the axis are drawn side by side, else their intervals would hide each other.
    step = 0.0
    if len(distinct) < sum(map(len, places)):
        step = min(0.15, 0.6 / len(parts)) * (float(np.diff(distinct).min()) if len(distinct) > 1 else 1.0)
    figure, axis = new_figure(6.0, 3.6)
    labels = [_sized(name, rows["n"].sum()) for name, rows in zip(tables, parts, strict=True)]
    for number, rows in enumerate(parts):
        x = places[number] + (number - (len(parts) - 1) / 2) * step
        _draw_baseline(axis, x, rows)
        style = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        _draw_rate(axis, x, rows, rate, *style, label=labels[number])
    _finish_axis(axis, numeric, rate, distinct)
    in_a_row = max(1, 80 // (6 + max(map(len, labels))))  # characters
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=in_a_row, frameon=False, fontsize=8, borderaxespad=0)
    save_figure(figure, path, title, caption + _not_drawn(singles, numeric) + _key(rate, parts[0]))


def _plot_panels(
    path: str | Path, panels: Sequence[tuple[str, pd.DataFrame]], numeric: str, rate: str, title: str, caption: str
) -> None:
    """One panel per (name, rows against ``numeric``); the line of the first stands in grey in all others."""
    across = {1: 1, 2: 2, 4: 2, 7: 4}.get(len(panels), 3)
    down = -(-len(panels) // across)
    size = (5.0, 3.4) if len(panels) == 1 else (0.6 + 2.0 * across, 1.0 + 1.8 * down)
    figure, axes = new_figure(*size, down, across, sharex=True, sharey=True, squeeze=False)
    pooled = panels[0][1]
    x_pooled = pooled[numeric].to_numpy(dtype=float)
    for number, (name, rows) in enumerate(panels):
        axis = axes.flat[number]
        x = rows[numeric].to_numpy(dtype=float)
        if number:
            axis.plot(x_pooled, pooled[rate], color=LIGHT_GREY, linewidth=2)
        _draw_baseline(axis, x, rows)
        color = "black" if number == 0 else COLORS[(number - 1) % len(COLORS)]
        _draw_rate(axis, x, rows, rate, color, MARKERS[number % len(MARKERS)], label=name)
        _finish_axis(axis, numeric, rate, x_pooled)
        axis.label_outer()
        if number + across >= len(panels):  # nothing below it
            axis.tick_params(labelbottom=True)
            axis.set_xlabel(_axis_label(numeric), fontsize=9)
        axis.set_title(_sized(name, rows["n"].sum(), 26, break_after=14), fontsize=9, loc="left")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    grey = "; grey line: all examples" if len(panels) > 1 else ""
    save_figure(figure, path, title, caption + _key(rate, pooled) + grey)


def _plot_points(
    path: str | Path, rows: pd.DataFrame, names: Sequence[str], rate: str, title: str, caption: str,
    reference: float | None = None,
) -> None:
    """One horizontal point with its interval per row, the first on top; ``reference`` is a line down all of them."""
    figure, axis = new_figure(6.0, 1.3 + 0.28 * len(rows))
    places = np.arange(len(rows))
    if reference is not None:
        axis.axvline(reference, color=LIGHT_GREY, linewidth=1.5, zorder=0)
    if "majority_baseline" in rows:
        axis.plot(rows["majority_baseline"], places, "|", color=GREY, markersize=11)
    value = rows[rate].to_numpy(dtype=float)
    axis.errorbar(value, places, xerr=_errors(rows, rate), fmt="o", color=COLORS[0], markersize=5, elinewidth=1.2)
    axis.set_yticks(places, [_sized(name, n) for name, n in zip(names, rows["n"], strict=True)])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    scale = 100 if rate in PERCENTAGES else 1
    axis.set_xlim(-0.02 * scale, 1.02 * scale)
    axis.set_xlabel(RATE_LABELS.get(rate, rate), fontsize=9)
    axis.tick_params(labelsize=9)
    grey = "; grey line: all examples" if reference is not None else ""
    save_figure(figure, path, title, caption + _key(rate, rows, "point", "grey tick") + grey)


def _numeric_column(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> str | None:
    return next(
        (column for column in columns if all(_numbers(table[column]) is not None for table in tables)), None
    )


def _numbers(cells: pd.Series) -> pd.Series | None:
    """The cells of a slice column as float64, NaN where there is none; None unless all its values are numbers."""
    import pandas as pd

    known = cells.dropna()
    known = known[known.map(_text) != MISSING]
    if known.empty or pd.api.types.is_bool_dtype(cells.dtype):
        return None
    numbers = pd.to_numeric(known, errors="coerce").astype("float64")
    return numbers.reindex(cells.index) if np.isfinite(numbers).all() else None


def _with_numbers(rows: pd.DataFrame, numeric: str) -> pd.DataFrame:
    """The rows that have a value of ``numeric``, with it as float64."""
    numbers = _numbers(rows[numeric])
    assert numbers is not None  # the caller has chosen a numeric column
    return rows.assign(**{numeric: numbers})[numbers.notna()]


def _not_drawn(singles: Sequence[pd.DataFrame], numeric: str) -> str:
    n = sum(int(rows["n"].sum() - _with_numbers(rows, numeric)["n"].sum()) for rows in singles)
    return f"\nnot drawn: {n:,} examples without {numeric}" if n else ""


def _largest(rows: pd.DataFrame, limit: int, what: str) -> tuple[pd.DataFrame, str]:
    """At most ``limit`` rows, those with the most examples, in their order, and a note if some are left out."""
    if len(rows) <= limit:
        return rows, ""
    return rows.loc[sorted(rows["n"].nlargest(limit).index)], f"\nthe {limit} largest of {len(rows):,} {what}"


def _errors(rows: pd.DataFrame, rate: str) -> np.ndarray:
    """Distances (2, rows) of the interval's ends from the rate, as matplotlib wants them."""
    value = rows[rate].to_numpy(dtype=float)
    ends = np.array([value - rows["low"].to_numpy(dtype=float), rows["high"].to_numpy(dtype=float) - value])
    return np.clip(ends, 0, None)


def _draw_rate(
    axis: Axes, x: np.ndarray, rows: pd.DataFrame, rate: str, color: str, marker: str, label: str
) -> None:
    axis.errorbar(
        x, rows[rate].to_numpy(dtype=float), yerr=_errors(rows, rate), color=color, marker=marker, label=label,
        markersize=4, linewidth=1, elinewidth=0.9,
    )


def _draw_baseline(axis: Axes, x: np.ndarray, rows: pd.DataFrame) -> None:
    if "majority_baseline" in rows:
        axis.plot(x, rows["majority_baseline"], color=GREY, linewidth=1, linestyle=":")


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


def _sized(name: str, n: int, length: int = 40, break_after: int = 40) -> str:
    """``name (n = 240)``, on two lines where the name has more than ``break_after`` characters."""
    short = _shortened(name, length)
    gap = "\n" if len(short) > break_after else " "
    return _plain(short) + f"{gap}(n = {n:,})"


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # a bare $ would begin a formula
