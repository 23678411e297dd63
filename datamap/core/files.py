"""Files in and out: whole or not at all when written; plain or .gz, UTF-8 and checked when read."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import logging
import math
import os
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from datamap.core import arrow_text
from datamap.core.errors import UserError, first_line, name_a_few, repeated
from datamap.core.parquet import format_for, frame_of, read_parquet, row_groups, table_of

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
ROWS_AT_A_TIME = 2**13  # of a table that is written as text
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # of the columns of a CSV
DECIMAL_COMMA = r"[-+]?\d+(,\d+)?([eE][-+]?\d+)?"

logger = logging.getLogger(__name__)


# --- writing -----------------------------------------------------------------------------------------------------


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (same suffix) that replaces it when the block ends well.

    An OSError that names no file, as of a full disk, names ``path``.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary), temporary):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def nulls_for_nan(value: Any) -> Any:
    """A value of the user's with None for every NaN: strict JSON has no other way to say that a value is missing."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: nulls_for_nan(item) for key, item in value.items()}
    return [nulls_for_nan(item) for item in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """``default=`` of json.dumps for what we write; unknown objects raise."""
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, date | time):  # this and what follows: of the user's columns
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"cannot write {type(value).__name__} as JSON: {value!r}")


def write_json(path: str | Path, value: Any) -> None:
    """Strict JSON: NaN and unknown objects raise; a missing value is None."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False, default=plain)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, allow_nan=False, ensure_ascii=False, default=plain) + "\n")


def write_csv(path: str | Path, frame: pd.DataFrame) -> None:
    """Tidy CSV at full precision; a missing value is an empty cell."""
    import pyarrow as pa
    import pyarrow.csv

    schema = pa.Schema.from_pandas(frame, preserve_index=False)
    with atomic(path) as temporary, pyarrow.csv.CSVWriter(str(temporary), schema) as writer:
        for first in range(0, len(frame), ROWS_AT_A_TIME):  # at once all columns would be held twice
            block = frame.iloc[first : first + ROWS_AT_A_TIME]
            writer.write_table(pa.Table.from_pandas(block, schema=schema, preserve_index=False))


def write_parquet(path: str | Path, frame: pd.DataFrame) -> None:
    """The same columns and values as ``write_csv`` writes, as Parquet; a missing value is null."""
    with atomic(path) as temporary, row_groups(temporary) as write:
        write(table_of(frame))


def write_either(path: Path, frame: pd.DataFrame, artifact_format: str | None) -> str:
    """Write a table of a row an example as CSV, or with the ending .parquet (``format_for``); the name of its file."""
    if format_for(len(frame), artifact_format) == "parquet":
        path = path.with_suffix(".parquet")
        write_parquet(path, frame)
    else:
        write_csv(path, frame)
    return path.name


def room_for_array(path: str | Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    """A new .npy file of zeros, mapped for writing. All of it is written at once: on a full disk that is an OSError,
    where a page of a mapping that finds no room would kill the process (SIGBUS)."""
    dtype = np.dtype(dtype)
    with Path(path).open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, header)
        size, block = math.prod(shape) * dtype.itemsize, bytes(2**20)
        for first in range(0, size, len(block)):
            file.write(block[: size - first])
    return np.lib.format.open_memmap(path, mode="r+")


# --- reading -----------------------------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: str | Path) -> bytes:
    """The content of a file, unpacked where its name ends in .gz."""
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file ({first_line(error)})") from error


def read_text(path: str | Path) -> str:
    """The text of a file, plain or .gz, with its line ends as they stand and without a byte order mark."""
    raw = read_bytes(path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; convert the file to UTF-8") from error


def parsed_json(text: str, where: str | Path, **options: Any) -> Any:
    """json.loads; UserError for what is JSON and cannot be held: deep nesting, a number of thousands of digits."""
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise UserError(f"{where}: JSON nested too deeply to be read; is it what it should be?") from error
    except ValueError as error:
        raise UserError(f"{where}: a number that cannot be read ({first_line(error).partition(';')[0]})") from error


def read_json(path: str | Path, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    try:
        return parsed_json(read_text(path), path, object_pairs_hook=object_pairs_hook)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: malformed JSON ({error.msg}); is the file whole?") from error


def read_json_like(path: str | Path, like: Any, made_by: str) -> Any:
    """The JSON of a file that ``made_by`` writes; UserError where it is not built ``like`` what that writes.

    like: a type, or several as a union; ``{name: like}`` an object with these names among others, ``{...: like}`` one
    with such values under all names; ``[like]`` a list of such items; a tuple, as one of these.
    """
    value = read_json(path)
    if unlike := _unlike(value, like) or not_strict(value):
        raise UserError(f"{path} is not as {made_by} writes it ({unlike}): take it away, or make it again")
    return value


def not_strict(value: Any) -> str | None:
    """What in a value that was read as JSON cannot be written again; it was not written by us."""
    return None if nulls_for_nan(value) == value else "it holds NaN or a number that is too large"


def _unlike(value: Any, like: Any, where: str = "") -> str | None:
    """What in a JSON value is not built as it should be."""
    if isinstance(like, tuple):
        found = [_unlike(value, each, where) for each in like]
        return None if None in found else found[-1]
    kind = dict if isinstance(like, dict) else list if isinstance(like, list) else like
    if not isinstance(value, kind) or isinstance(value, bool) and kind in (int, float, int | float):
        return f"{where or 'it'} is {value!r:.40}"
    if isinstance(like, list):
        items = ((item, like[0], f"item {number} of {where or 'the list'}") for number, item in enumerate(value, 1))
    elif isinstance(like, dict):
        if ... in like:
            like = dict.fromkeys(value, like[...])
        if missing := [name for name in like if name not in value]:
            return f"{where or 'it'} has no {name_a_few(missing)}"
        items = ((value[name], each, f"{where}.{name}".lstrip(".")) for name, each in like.items())
    else:
        return None
    return next(filter(None, (_unlike(*item) for item in items)), None)


def read_jsonl(path: str | Path, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of JSON Lines, one a line; ``columns`` must stand in each. Blank lines are passed over."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):  # not splitlines(): strings may hold U+2028
        if not line.strip():
            continue
        try:
            row = parsed_json(line, f"{path}, line {number}")
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: malformed JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        if missing := [column for column in columns if column not in row]:
            raise UserError(f"{path}, line {number}: no {name_a_few(missing)} in {line.strip():.60}")
        rows.append(row)
    return rows


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSON list, of ``{"data": [...]}`` or of JSON Lines, whatever the file's ending says."""
    path = Path(path)
    text = read_text(path)
    if not text.strip():
        return []
    try:
        content = parsed_json(text, path)
    except json.JSONDecodeError as error:
        if path.suffixes[:1] != [".jsonl"]:
            try:  # a document over several lines fails in its first line too; its own error says more
                parsed_json(text.lstrip().partition("\n")[0], f"{path}, line 1")
            except json.JSONDecodeError:
                raise UserError(f"{path}, line {error.lineno}: malformed JSON ({error.msg})") from error
        return read_jsonl(path)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise UserError(f"{path}: expected a list of objects, JSON Lines, or SQuAD-style nested JSON")
    return content


def appended_records(path: Path, parse: Callable[[bytes], T], mend: str) -> list[T]:
    """What ``parse`` makes of every line of JSON Lines that grow by whole records; [] where there is no file.

    A last line that was cut off in mid-write is taken off the file, with a warning; UserError for any other line that
    ``parse`` raises ValueError for. mend: what to do about such a line, for the message.
    """
    records: list[T] = []
    if not path.exists():
        return records
    with path.open("r+b") as file:
        end = 0
        for number, line in enumerate(file, 1):
            try:
                records.append(parse(line))
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    logger.warning(f"{path}, line {number}, was cut off in mid-write; it is taken off")
                    file.truncate(end)
                    break
                raise UserError(f"{path}, line {number}: damaged ({error}); {mend}") from error
            end += len(line)
            if not line.endswith(b"\n"):  # whole, but the next record would land in the same line
                file.seek(end)
                file.write(b"\n")
    return records


def csv_text(path: str | Path) -> tuple[str, str]:
    """The text of a CSV, without the line ``sep=;`` that Excel writes for itself, and what separates its columns: the
    one of SEPARATORS that makes most of its header."""
    text = read_text(path)
    if text[:4].casefold() == "sep=" and text[4:5] in SEPARATORS and text[5:6] in ("", "\r", "\n"):
        return text.partition("\n")[2], text[4]
    header = re.match(r'(?:[^"\r\n]+|"[^"]*")*', text)  # between quotation marks others may stand, and line ends
    return text, max(SEPARATORS, key=re.sub('"[^"]*"', "", header[0] if header else "").count)


def csv_records(path: str | Path) -> Iterator[list[str]]:
    """The rows of a CSV, header first, separated by commas, semicolons or tabs; each must have as many cells as the
    header, whose names must differ."""
    text, separator = csv_text(path)
    if separator != ",":
        logger.info(f"{path}: its columns are separated by {SEPARATORS[separator]}")
    yield from _records(path, text, separator)


def csv_rows(path: str | Path) -> int:
    """How many rows a CSV has beside its header, without a last one that no line end closes: it may be cut off."""
    if (rows := arrow_text.csv_rows(read_bytes(path))) is not None:
        return rows
    text, separator = csv_text(path)
    return sum(1 for _ in _records(path, text, separator)) - 1 - (not text.endswith(("\n", "\r")))


def _records(path: str | Path, text: str, separator: str) -> Iterator[list[str]]:
    csv.field_size_limit(2**31 - 1)  # contexts are longer than the module's default of 131,072 characters
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not header:
                header = cells
                if twice := repeated(header):
                    raise UserError(f"{path}: columns {name_a_few(sorted(twice))} are in the header more than once")
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(cells)} columns where the header has {len(header)}"
                )
            if cells:
                yield cells
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: malformed CSV ({error})") from error


def read_table(
    path: str | Path, columns: Sequence[str] = (), text: Sequence[str] = (), only: Collection[str] | None = None
) -> pd.DataFrame:
    """A CSV with its ids, and the columns ``text``, as strings ("001" stays "001"); only an empty cell is missing. A
    Parquet file (by its name) as the same table.

    ``columns`` must be there. In columns of text a cell ``""`` is the empty text, which ``write_csv`` tells from a
    missing one; a reader other than this one may take both for missing. A spreadsheet may have saved it since, with
    semicolons or tabs, and with semicolons also with decimal commas. only: of a Parquet file no more than these
    columns are read; a CSV is read whole.
    """
    if Path(path).suffix == ".parquet":
        return read_parquet(path, columns, text, only)
    if (table := arrow_text.csv_table(read_bytes(path), ("id", *text))) is not None:
        frame = frame_of(path, table, text)
    else:
        frame = _read_by_pandas(path, text)
    if missing := [column for column in columns if column not in frame.columns]:
        raise UserError(f"{path} has no column {name_a_few(missing)}; it has {name_a_few(frame.columns, 12)}")
    if "id" in frame.columns:
        if frame["id"].isna().any():
            row = int(frame["id"].isna().to_numpy().argmax())
            raise UserError(f"{path}, line {row + 2}: no id")
        if not frame["id"].is_unique:
            twice = repeated(frame["id"])
            raise UserError(f"{path}: {len(twice):,} ids occur more than once ({name_a_few(twice)})")
    return frame


def _read_by_pandas(path: str | Path, text: Sequence[str]) -> pd.DataFrame:
    """A CSV of others', or saved by a spreadsheet, as ``read_table`` gives it; UserError where it is malformed."""
    import pandas as pd

    content, separator = csv_text(path)
    # pandas fills short rows with NaN and takes long ones for an index
    if not sum(1 for _ in _records(path, content, separator)):
        raise UserError(f"{path} is empty")
    frame = pd.read_csv(
        io.StringIO(content, newline=""), sep=separator, dtype=dict.fromkeys(("id", *text), str),
        keep_default_na=False, na_values=[""], float_precision="round_trip",
        low_memory=False,  # else of a long file each part gets a type of its own, and texts stand beside numbers
    )
    if separator == ";":
        frame = _with_decimal_points(frame, ("id", *text))
    return _with_empty_texts(content, separator, frame, text)


def _with_decimal_points(frame: pd.DataFrame, text: Sequence[str]) -> pd.DataFrame:
    """``frame`` with numbers in the columns, but those of ``text``, of which each cell is one and some have a decimal
    comma: as a spreadsheet writes them where it separates columns by semicolons."""
    import pandas as pd

    for column in frame.columns.difference(list(text)):
        cells = frame[column].dropna()
        if len(cells) and isinstance(cells.iloc[0], str) and cells.str.fullmatch(DECIMAL_COMMA).all():
            frame[column] = pd.to_numeric(frame[column].str.replace(",", "."))
    return frame


def _with_empty_texts(content: str, separator: str, frame: pd.DataFrame, text: Sequence[str]) -> pd.DataFrame:
    """``frame`` with "" for the cells of its columns of text that are quoted in the CSV: pandas does not tell them."""
    import pyarrow as pa
    import pyarrow.csv

    missing = frame.columns[frame.isna().any()]
    gaps = [column for column in missing.difference(["id"], sort=False)  # a row without one is refused
            if column in text or isinstance(next(iter(frame[column].dropna()), None), str)]
    # In the CSV, or in one of its texts.
    if not gaps or not re.search(rf'(^|[{separator}\n])""(?=[{separator}\r\n]|$)', content):
        return frame
    raw = content.encode()
    cells = pyarrow.csv.read_csv(
        io.BytesIO(raw), read_options=pyarrow.csv.ReadOptions(block_size=len(raw)),
        parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=gaps, column_types=dict.fromkeys(gaps, pa.string()), null_values=[""],
            strings_can_be_null=True, quoted_strings_can_be_null=False,
        ),
    )
    for column in gaps:
        frame[column] = frame[column].mask([cell == "" for cell in cells[column].to_pylist()], "")
    return frame
