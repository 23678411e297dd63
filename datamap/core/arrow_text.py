"""JSON and CSV by Arrow's readers, in less time and memory than Python's, where both read the same.

A function gives None where that is not sure, as of a file that is damaged: it is then read value by value, by what can
also say what is wrong with it. Arrow infers dates, takes two objects for two lines, numbers beyond 2^53 for floats,
NaN for a number and a stray quotation mark for text; and it overflows the stack on deep nesting, but for types that it
is told.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE = 1000  # lines of JSON that tell what types the columns have
MAX_DEPTH = 3  # of lists and objects in a column, as of answers
BLOCK = 2**23  # bytes of JSON Lines that are parsed at a time; a line is never longer
EXACT = 2.0**53  # below it a float holds every whole number
_HEAD = re.compile(rb'\{"epoch":(0|[1-9]\d{,8}),"id":\["')
_NEXT = re.compile(rb',"([a-z_0-9]+)":\[')
_NO_ID = bytes(range(32)) + b"\\"


# --- JSON ----------------------------------------------------------------------------------------------------------


def json_lines(raw: bytes) -> pa.Table | None:
    """The rows of JSON Lines, as ``files.read_rows`` and a dataset of them give them; None where that is not sure."""
    import pyarrow as pa
    import pyarrow.json

    lines = raw.count(b"\n") + (not raw.endswith(b"\n"))
    ends = raw.count(b"}\n") + (raw.count(b"}\r\n") if b"\r" in raw else 0) + raw.endswith(b"}")
    # Else two objects in a line may make up for one over two lines; and what follows a NUL Arrow does not see.
    if lines < 2 or not raw.startswith(b"{") or raw.count(b"\n{") + 1 != lines or ends != lines or b"\0" in raw:
        return None
    try:
        rows = [json.loads(line) for line in itertools.islice(io.BytesIO(raw), SAMPLE)]
        names = list(dict.fromkeys(name for row in rows for name in row))
        schema = pa.schema({name: pa.array([row.get(name) for row in rows]).type for name in names})
        if not names or "paragraphs" in names or not all(_is_known(field.type) for field in schema):
            return None
        if "id" in names and schema.field("id").type not in (pa.string(), pa.int64(), pa.null()):
            return None
        table = pyarrow.json.read_json(
            pa.BufferReader(raw), pyarrow.json.ReadOptions(block_size=BLOCK),
            pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
        )
        table.validate(full=True)  # a text that is no UTF-8
    except (pa.ArrowException, ValueError, TypeError, OverflowError, RecursionError):
        return None
    if table.num_rows != lines or not _is_exact(table) or b"-0" in raw and _has_negative_zero(table):
        return None
    if "id" in names and schema.field("id").type == pa.int64():  # ids are text; of other kinds what Python writes
        place = names.index("id")
        table = table.set_column(place, "id", table.column(place).cast(pa.string()))
    return table


def _has_negative_zero(table: pa.Table) -> bool:
    """Whether a float is -0.0, which may have been written as -0: that is 0 for Python."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return any(pc.any(pc.and_(pc.equal(column, 0.0), pc.less(pc.divide(1.0, column), 0.0))).as_py()
               for column in table.columns if pa.types.is_floating(column.type))


def _is_known(kind: pa.DataType, depth: int = 0) -> bool:
    import pyarrow as pa

    if pa.types.is_nested(kind):
        inner = [kind.field(place).type for place in range(kind.num_fields)]
        return depth < MAX_DEPTH and all(_is_known(each, depth + 1) for each in inner)
    return kind in (pa.string(), pa.int64(), pa.bool_()) or depth == 0 and kind in (pa.float64(), pa.null())


def json_columns(raw: bytes) -> dict[str, Any] | None:
    """``{"epoch":1,"id":["a","b"],"loss":[0.5,1.25],"correct":[true,false]}``, written without blanks and escapes:
    name -> a whole number, an array of Arrow of text, or an array of numpy. None of anything else, also of columns of
    different lengths and of values that a float does not hold as they are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    head, last = _HEAD.match(raw), raw.find(b'"]')
    if not head or len(cells := raw[head.end() : last]) > len(cells.translate(None, _NO_ID)):
        return None
    try:
        ids = pc.split_pattern(pa.array([cells.decode()]), '","')[0].values
        columns: dict[str, Any] = {"epoch": int(head[1]), "id": ids}
        last += 2
        while name := _NEXT.match(raw, last):
            last = raw.find(b"]", name.end())
            if (values := _column(raw[name.end() : last])) is None or name[1].decode() in columns:
                return None
            columns[name[1].decode()] = values
            last += 1
    except (pa.ArrowException, ValueError):
        return None
    whole = raw[last:].rstrip(b" \t\r\n") == b"}" and pc.sum(pc.count_substring(ids, '"')).as_py() == 0
    return columns if whole and len({len(ids), *map(len, list(columns.values())[2:])}) == 1 else None


def _column(cells: bytes) -> np.ndarray | None:
    """Numbers, or true and false, between commas."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if cells.translate(None, b"0123456789+-.eE,"):
        texts = pc.split_pattern(pa.array([cells.decode()]), ",")[0].values
        is_true = np.asarray(pc.equal(texts, "true"))
        return is_true if (is_true | np.asarray(pc.equal(texts, "false"))).all() else None
    if not _are_numbers(cells):
        return None
    is_whole = not any(mark in cells for mark in b".eE")
    texts = pc.split_pattern(pa.array([cells.decode()]), ",")[0].values
    values = np.asarray(texts.cast(pa.int64() if is_whole else pa.float64()))
    if is_whole:
        return values
    has_zero = b"-0" in cells and bool((np.signbit(values) & (values == 0)).any())  # -0 is 0, -0.0 is not
    return values if (np.abs(values) < EXACT).all() and not has_zero else None


def _are_numbers(cells: bytes) -> bool:
    """Whether JSON has no more against them than Arrow has: no sign +, no 05, no .5, no 5."""
    marks = np.frombuffer(b"," + cells + b",", np.uint8)
    is_digit = marks - ord("0") < 10  # of unsigned numbers: what is less than "0" is far above
    dots = np.flatnonzero(marks == ord("."))
    first = np.flatnonzero(marks[:-1] == ord(",")) + 1
    first += marks[first] == ord("-")
    return bool((is_digit[dots - 1] & is_digit[dots + 1]).all() and is_digit[first].all()
                and not (is_digit[first + 1] & (marks[first] == ord("0"))).any())


def _is_exact(table: pa.Table) -> bool:
    """Whether its floats are finite, and below what whole numbers they can hold."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return all(pc.all(pc.less(pc.abs(column), EXACT)).as_py() is not False
               for column in table.columns if pa.types.is_floating(column.type))


# --- CSV -----------------------------------------------------------------------------------------------------------


def csv_table(raw: bytes, text: Collection[str]) -> pa.Table | None:
    """A CSV as we write it: commas, no byte order mark, a last line that ends. text: the columns of text, where a cell
    ``""`` is the empty text. None where pandas may see other values in it."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv

    names = _header(raw)
    if not names:
        return None
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(raw), pyarrow.csv.ReadOptions(block_size=BLOCK),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(text, pa.string()), null_values=[""], strings_can_be_null=True,
                quoted_strings_can_be_null=False, true_values=["True", "TRUE", "true"],
                false_values=["False", "FALSE", "false"],
            ),
        )
    except (pa.ArrowException, ValueError):
        return None
    told = table.num_rows and table.column_names == names and _is_exact(table) and all(
        name in text or _is_told(table.column(name), raw) for name in names)
    has_ids = "id" not in names or pc.all(pc.not_equal(table.column("id"), ""), skip_nulls=False).as_py()
    return table if told and has_ids else None


def csv_rows(raw: bytes) -> int | None:
    """How many rows such a CSV has beside its header."""
    import pyarrow as pa
    import pyarrow.csv

    names = _header(raw)
    if not names:
        return None
    try:
        decoder = codecs.getincrementaldecoder("utf-8")()  # of the other columns nothing is looked at
        for first in range(0, len(raw), BLOCK):
            decoder.decode(raw[first : first + BLOCK])
        decoder.decode(b"", final=True)
        with pyarrow.csv.open_csv(
            pa.BufferReader(raw), pyarrow.csv.ReadOptions(block_size=BLOCK),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            pyarrow.csv.ConvertOptions(include_columns=names[:1], column_types={names[0]: pa.string()}),
        ) as batches:
            return sum(batch.num_rows for batch in batches)
    except (pa.ArrowException, ValueError):
        return None


def _header(raw: bytes) -> list[str]:
    """The names of the columns; [] where the file is not as csv_table takes it."""
    head = raw[: raw.find(b"\n") + 1]
    if not raw.endswith(b"\n") or any(mark in head for mark in (b";", b"\t", b"\xef\xbb\xbf")):
        return []
    # A NUL ends a text for pandas, and sep= is Excel's. Line ends of \r alone are not looked for further on.
    if b"\0" in raw or head[:4].lower() == b"sep=":
        return []
    if b"\r" in raw and raw.count(b"\r") != raw.count(b"\r\n"):  # sooner told that there is none than counted
        return []
    try:
        names = next(csv.reader([head.decode()], strict=True), [])
    except (csv.Error, UnicodeDecodeError):
        return []
    # A line of blanks is none for pandas, but may be a row where there is one column.
    return names if len(names) > 1 and all(names) and len(set(names)) == len(names) and _quoted_well(raw) else []


def _is_told(column: pa.ChunkedArray, raw: bytes) -> bool:
    """Whether pandas sees values of the same kind in a column whose type was inferred."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if kind == pa.string():
        if pc.any(pc.equal(column, "")).as_py():
            return False
        first = column.drop_null()[0].as_py()
        try:
            float(first)
        except ValueError:
            return first.lower() not in ("true", "false")  # pandas takes tRUE for true
        return False  # "+5", or beyond 64 bits
    if kind == pa.int64():
        return not any(mark in raw and b"0" + mark in raw for mark in (b"x", b"X"))  # 0x1F is text for pandas
    if kind == pa.float64():  # "+5", and a 5 after many zeros, is a whole number for pandas
        is_whole = pc.all(pc.equal(column, pc.round(column))).as_py()  # sooner told than what raw holds
        return not (is_whole and (b"+" in raw or b"0" * 18 in raw))
    return kind == pa.null() or kind == pa.bool_() and not column.null_count


def _quoted_well(raw: bytes) -> bool:
    """Whether quotation marks stand around whole cells, and those in a text twice, as Python's strict reader asks."""
    ends = np.frombuffer(b",\r\n\0", np.uint8)  # \0 for two quotation marks; it is not in raw
    first = inside = 0
    while first < len(raw):
        last = raw.find(b"\n", first + BLOCK) + 1 or len(raw)
        cells = np.frombuffer(b"\n" + raw[first:last].replace(b'""', b"\0"), np.uint8)
        marks, pairs = np.flatnonzero(cells == ord('"')), np.flatnonzero(cells == 0)
        opening, closing = marks[inside::2], marks[1 - inside :: 2]
        pairs = pairs[(np.searchsorted(marks, pairs) + inside) % 2 == 0]  # outside: at the beginning of a cell
        after = cells[pairs + 1]
        if not (np.isin(cells[opening - 1], ends).all() and np.isin(cells[closing + 1], ends[:3]).all()
                and np.isin(cells[pairs - 1], ends).all() and (np.isin(after, ends) | (after == ord('"'))).all()):
            return False
        first, inside = last, (inside + len(marks)) % 2
    return not inside
