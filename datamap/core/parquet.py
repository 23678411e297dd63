"""Large tables as Parquet, in row groups: when they are written so, and how such a file is read whole or in blocks.

The training dynamics of an epoch, the metrics of a data map and the joined table are kept in one of two forms, as text
(JSON and CSV), which people read, or as Parquet, with the same columns and values. A reader that is given a directory
takes whichever is there (``in_either_form``), and a Parquet file that was made elsewhere as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.errors import UserError, first_line, name_a_few, repeated

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

FORMATS = ("json", "parquet")
PARQUET_ABOVE = 2_000_000  # examples; benchmarks/rows/maps.py (dynamics) measures what half as many cost as text
ROWS_A_GROUP = 2**17  # of what is held at a time where a file is read or written in blocks
READ_AT_A_TIME = 2**20  # bytes of each column
IN_BOTH_FORMS = ("cartography_metrics.csv", "unified_analysis.csv")  # and dynamics, which have a reader of their own


def add_artifact_format(group: Any, what: str) -> None:
    """The flag --artifact_format, absent from the arguments where it is not given (``format_of``)."""
    group.add_argument("--artifact_format", choices=FORMATS, default=argparse.SUPPRESS,
                       help=f"{what}: json (with CSV), or parquet, in row groups (default: json up to "
                            f"{PARQUET_ABOVE:,} examples, parquet above)")


def format_of(args: argparse.Namespace) -> str | None:
    """What --artifact_format asks for; None where the size decides."""
    return getattr(args, "artifact_format", None)


def format_for(examples: int, asked: str | None = None) -> str:
    """"json" or "parquet": what is asked for, else what so many examples are written as."""
    if asked is not None and asked not in FORMATS:
        raise UserError(f"unknown artifact format {asked!r}; there is {', '.join(FORMATS)}")
    return asked or ("parquet" if examples > PARQUET_ABOVE else "json")


def in_either_form(file: Path) -> Path:
    """The file under its own name or, where only that is there, its Parquet form; UserError where both are."""
    if file.name not in IN_BOTH_FORMS:
        return file
    twin = file.with_suffix(".parquet")
    if not twin.exists():
        return file
    if text := next((each for each in (file, file.with_suffix(".json")) if each.exists()), None):
        raise UserError(f"{file.parent} holds {text.name} and {twin.name}, and which one counts cannot be told: take "
                        "one of them away, or name the file itself")
    return twin


# --- writing -----------------------------------------------------------------------------------------------------


@contextmanager
def row_groups(path: str | Path) -> Iterator[Callable[[pa.Table], None]]:
    """Yield a function that adds a table to a new Parquet file, in groups of at most ROWS_A_GROUP rows.

    All have the columns of the first. Floats are kept whole, their bytes sorted by place, which packs them best.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: pq.ParquetWriter | None = None

    def write(table: pa.Table) -> None:
        nonlocal writer
        if writer is None:
            floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
            repeats = [field.name for field in table.schema if field.name not in ("id", *floats)
                       and not pa.types.is_boolean(field.type)]
            writer = pq.ParquetWriter(
                str(path), table.schema, compression="zstd", compression_level=1, use_dictionary=repeats,
                use_byte_stream_split=floats,
            )
        writer.write_table(table, row_group_size=ROWS_A_GROUP)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


def table_of(frame: pd.DataFrame) -> pa.Table:
    """``frame`` without its index, and without what pandas alone would read in the file."""
    import pyarrow as pa

    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


# --- reading -----------------------------------------------------------------------------------------------------


@contextmanager
def damage_told(path: str | Path) -> Iterator[None]:
    """A UserError of what the library says of a file that is not whole, or is none."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise UserError(f"{path} cannot be read as Parquet ({reason:.200}); is the file whole?") from error


def open_parquet(path: str | Path, needed: Sequence[str] = ()) -> pq.ParquetFile:
    """UserError for what is no Parquet file, has two columns of one name, or lacks one of those ``needed``."""
    import pyarrow.parquet as pq

    with damage_told(path):
        # Else the whole file is held from the first block on, and of one that is a single row group all of it.
        file = pq.ParquetFile(str(path), pre_buffer=False, buffer_size=READ_AT_A_TIME)
        names = file.schema_arrow.names
    if twice := repeated(names):
        raise UserError(f"{path}: columns {name_a_few(sorted(twice))} are there more than once")
    if missing := [column for column in needed if column not in names]:
        raise UserError(f"{path} has no column {name_a_few(missing)}; it has {name_a_few(names, 12)}")
    return file


def parquet_blocks(
    path: str | Path, columns: Sequence[str] | None = None, needed: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """The rows of a file in blocks of ROWS_A_GROUP, the last with what is left, whatever the row groups in it."""
    import pyarrow as pa

    with open_parquet(path, needed) as file, damage_told(path):
        for batch in file.iter_batches(ROWS_A_GROUP, columns=columns, use_threads=False):
            yield pa.Table.from_batches([batch])


def texts_of(path: str | Path, table: pa.Table, column: str) -> pa.ChunkedArray:
    """A column as text: what a whole number or a category of pandas stands for is its text."""
    import pyarrow as pa

    values = table.column(column)
    kind = values.type
    try:
        if pa.types.is_nested(kind):
            raise pa.ArrowInvalid("it is nested")
        if pa.types.is_dictionary(kind):
            values = values.cast(kind.value_type)
        return values.cast(pa.string() if values.nbytes < 2**30 else pa.large_string())
    except pa.ArrowException as error:
        raise UserError(f"{path}: {column} is of type {kind}; expected text ({first_line(error):.100})") from error


def ids_of(path: str | Path, table: pa.Table, first_row: int = 0) -> pa.ChunkedArray:
    """The column id as text; UserError where one is missing. first_row: of the table in its file, from 0."""
    ids = texts_of(path, table, "id")
    if ids.null_count:
        row = first_row + int(np.asarray(ids.is_null()).argmax())
        raise UserError(f"{path}, row {row + 1:,}: no id")
    return ids


def frame_of(path: str | Path, table: pa.Table, text: Sequence[str] = ()) -> pd.DataFrame:
    """A table as ``files.read_table`` gives that of a CSV: ids and the columns ``text`` as text, floats in double
    precision, a missing value as NaN, columns of True and False as such."""
    import pandas as pd
    import pyarrow as pa

    for place, field in enumerate(table.schema):
        kind, values = field.type, None
        if field.name == "id":
            values = ids_of(path, table)
        elif field.name in text or pa.types.is_dictionary(kind):
            values = texts_of(path, table, field.name)
        elif pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
            values = table.column(place).cast(pa.float64())
        elif pa.types.is_integer(kind) and kind != pa.uint64():
            values = table.column(place).cast(pa.int64())
        if values is not None:
            table = table.set_column(place, field.name, values)
    # Each column goes as the frame has it, where nobody else holds the table.
    frame = table.replace_schema_metadata(None).to_pandas(split_blocks=True, self_destruct=True)
    for name in filter(lambda name: pd.api.types.is_object_dtype(frame[name]), frame.columns):
        kind = float if frame[name].isna().all() else object  # of nothing, as in a CSV
        frame[name] = pd.Series([np.nan if value is None else value for value in frame[name]], frame.index, kind)
    return frame


def read_parquet(
    path: str | Path, needed: Sequence[str] = (), text: Sequence[str] = (), only: Collection[str] | None = None
) -> pd.DataFrame:
    """All rows of a file as ``frame_of`` gives them. needed: columns that must be there. only: those to read, of those
    that are there (default: all)."""
    with open_parquet(path, needed) as file, damage_told(path):
        columns = [name for name in file.schema_arrow.names if only is None or name in only]
        frame = frame_of(path, file.read(columns=columns), text)
    if "id" in frame:
        unique = UniqueIds(str(path))
        unique.add(frame["id"].array)
        unique.check(lambda: iter([frame["id"].array]))
    return frame


class UniqueIds:
    """Whether ids that pass in blocks are unique, in 8 bytes an id: by 64-bit hashes, and where two of these are the
    same by the ids themselves, which are read once more."""

    def __init__(self, where: str):
        self.where = where
        self.hashes: list[np.ndarray] = []

    def add(self, ids: Any) -> None:
        """ids: (n,) text, of Arrow or of pandas."""
        self.hashes.append(_hashed(ids))

    def check(self, again: Callable[[], Iterator[Any]]) -> None:
        """UserError with some of those that occur more than once. again: the blocks once more."""
        hashes = np.concatenate(self.hashes) if self.hashes else np.empty(0, np.uint64)
        self.hashes = []
        hashes.sort()
        same = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        if not len(same):
            return
        found = [one for ids in again() for one in np.asarray(ids, dtype=object)[np.isin(_hashed(ids), same)].tolist()]
        if twice := repeated(found):
            raise UserError(f"{self.where}: {len(twice):,} ids occur more than once ({name_a_few(twice)})")


def _hashed(ids: Any) -> np.ndarray:
    import pandas as pd

    return pd.util.hash_array(np.asarray(ids, dtype=object), categorize=False)
