"""Tables for people: the one on the console, those with the columns of a dataset, those opened in a spreadsheet.

A spreadsheet runs a cell that begins like a formula. ``neutralised`` puts an apostrophe before such a text,
``restored`` takes it off again, and every text comes back as it was.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamap.core.errors import printable
from datamap.core.files import atomic, nulls_for_nan, plain

if TYPE_CHECKING:
    import datasets
    import pandas as pd

# = + - @ and their full-width forms, tab and CR run; a spreadsheet may overlook blanks and control characters before.
_RUNS = r"[\s\x00-\x1f\u200b\ufeff]*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]"
_WOULD_RUN = re.compile(f"'*{_RUNS}")
_WAS_NEUTRALISED = re.compile(f"'+{_RUNS}")
_IS_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


# --- on the console ----------------------------------------------------------------------------------------------


def console_table(
    frame: pd.DataFrame, formats: Mapping[str, str | Callable[[Any], str]] | None = None, limit: int | None = None
) -> str:
    """``frame`` as text without its index: a line of column names, then at most ``limit`` rows.

    formats: column -> format specification (``".3f"``, ``",d"``, ``".1%"``) or function of a value; a missing value is
    blank. Columns of text stand on the left, others on the right, every cell on one line. What is cut is counted in a
    last line.
    """
    shown = frame if limit is None else frame.head(limit)
    columns = []
    for name in shown.columns:
        values, form = shown[name], (formats or {}).get(str(name), "")
        texts = ["" if value is None or value != value else form(value) if callable(form) else format(value, form)
                 for value in values.tolist()]
        texts = [_on_one_line(text) for text in texts]
        cells = [str(name), *texts]
        blanks = [" " * (max(map(_width, cells)) - _width(cell)) for cell in cells]
        is_text = all(isinstance(value, str) or value is None or value != value for value in values.tolist())
        columns.append([cell + blank if is_text else blank + cell for cell, blank in zip(cells, blanks, strict=True)])
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    if len(shown) < len(frame):
        lines.append(f"... and {len(frame) - len(shown):,} more")
    return "\n".join(lines)


def _width(text: str) -> int:
    """In columns of a terminal: East Asian characters take two, accents that are characters of their own none."""
    return len(text) if text.isascii() else sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)


def _on_one_line(text: str) -> str:
    return " ".join(printable(text).split()) if re.search(r"[^\S ]", text) else printable(text)


def shortened(texts: Sequence[str], length: int) -> list[str]:
    """Each text on one line of at most ``length`` characters; those that differ stay different.

    The beginning is kept; where two would become the same, the beginning and the end of all; where these are the same
    too, a number tells them apart.
    """
    lines = [" ".join(printable(text).split()) for text in texts]
    for head in (length - 3, (length - 3) // 2):
        tail = length - 3 - head
        short = [line if len(line) <= length else f"{line[:head]}...{line[len(line) - tail:]}" for line in lines]
        owners = Counter(text for text, _ in set(zip(short, texts, strict=True)))
        if max(owners.values(), default=1) == 1:
            return short
    numbers: dict[str, dict[str, int]] = {}
    result = []
    for text, full in zip(short, texts, strict=True):
        place = numbers.setdefault(text, {}).setdefault(full, len(numbers[text]) + 1)
        mark = f" ({place})" if owners[text] > 1 else ""
        result.append(text[: length - len(mark)] + mark)
    return result


# --- of a dataset ------------------------------------------------------------------------------------------------


def further_columns(data: datasets.Dataset, shown: Collection[str], taken: Collection[str]) -> dict[str, Any]:
    """The columns of a dataset beside those ``shown``, for a table with the columns ``taken``: by a name that is free,
    lists and dicts as JSON text."""
    import pandas as pd
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for column in data.column_names:
        if column in shown:
            continue
        values = data.with_format("arrow")[column][:]
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        if pa.types.is_nested(values.type):
            texts = (None if value is None else json.dumps(nulls_for_nan(value), ensure_ascii=False, default=plain)
                     for value in values.to_pylist())
            values = pa.array(texts, pa.string())
        name = free_name(column, {*taken, *columns}, data.column_names)
        columns[name] = pd.array(values, dtype=pd.ArrowDtype(values.type))
    return columns


def free_name(column: str, taken: Collection[str], original: Collection[str]) -> str:
    """``column``, or where that is taken ``data_`` before it, as often as gives no other column's name."""
    name = f"data_{column}" if column in taken else column
    while name != column and name in {*taken, *original}:
        name = f"data_{name}"
    return name


# --- in a spreadsheet --------------------------------------------------------------------------------------------


def neutralised(text: str) -> str:
    """``text`` as a cell that no spreadsheet runs: with an apostrophe before it where it begins like a formula."""
    return f"'{text}" if _WOULD_RUN.match(text) else text


def restored(cell: str) -> str:
    """The text that ``neutralised`` made ``cell`` of."""
    return cell[1:] if _WAS_NEUTRALISED.match(cell) else cell


def write_for_spreadsheet(path: str | Path, frame: pd.DataFrame) -> None:
    """CSV of a frame whose texts are neutralised; None and NaN are empty cells.

    With a byte order mark, without which Excel takes UTF-8 for the code page of the system.
    """
    shown = frame.rename(columns=neutralised)
    for column in shown.columns:
        if shown[column].dtype.kind == "O" or shown[column].dtype.name.startswith("str"):
            shown[column] = [neutralised(cell) if isinstance(cell, str) else cell for cell in shown[column].tolist()]
    with atomic(path) as temporary:
        shown.to_csv(temporary, index=False, encoding="utf-8-sig", lineterminator="\r\n")


def safe_to_open(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with its texts neutralised, but for numbers that stand as text ("-1"), which are no formulas.

    For files that a person opens and no stage reads; in the others every text stays as it is.
    """
    import pandas as pd

    frame = frame.copy(deep=False)
    for column in frame.columns:
        cells = frame[column].tolist()
        texts = {cell for cell in cells if isinstance(cell, str) and not _IS_NUMBER.fullmatch(cell)}
        if changed := {text: neutralised(text) for text in texts if neutralised(text) != text}:
            cells = [changed.get(cell, cell) if isinstance(cell, str) else cell for cell in cells]
            kind = frame[column].dtype
            frame[column] = pd.Series(cells, frame.index, None if isinstance(kind, pd.CategoricalDtype) else kind)
    return frame.rename(columns=neutralised)
