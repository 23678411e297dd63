"""Datasets and ids: one split of any source, in the columns of a task, each example with an id of its own."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from datamap.core.arrow_text import json_lines
from datamap.core.errors import UserError, first_line, name_a_few, repeated
from datamap.core.files import csv_records, read_bytes, read_json, read_rows
from datamap.core.hub import hub_splits, read_hub
from datamap.core.pickles import SUFFIXES as PICKLES
from datamap.core.pickles import pickled_splits

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

# Parts of a split: the share that is held out, and the rest of it.
PART = re.compile(r"(?P<split>.+)_(?P<part>held_out|without)_(?P<share>0\.\d+)")
EVAL_SPLITS = ("validation", "validation_matched", "valid", "dev")  # the first that a dataset has is evaluated on
FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", *PICKLES)
NO_SPLITS = ("run_meta.json", "filter_report.json", "cleaning_report.json")  # dataset_filters.py's
TEXTS_AT_A_TIME = 2**14  # in an array of Arrow, which holds 2 GB

logger = logging.getLogger(__name__)


class RowFormat(Protocol):
    """What loading needs to know of a task (``tasks.base.Task``): its columns and how to bring raw rows into them."""

    @property
    def content_columns(self) -> tuple[str, ...]: ...

    @property
    def text_columns(self) -> tuple[str, ...]: ...

    def settings(self) -> dict[str, Any]: ...

    def sought(self, columns: Sequence[str]) -> Sequence[str]: ...

    def for_columns(self, columns: Sequence[str], source: str) -> Any: ...

    def normalize(self, data: datasets.Dataset, source: str) -> datasets.Dataset: ...

    def mend(self, data: datasets.Dataset, source: str) -> tuple[datasets.Dataset, list[dict[str, Any]]]: ...


@dataclass
class Split:
    """One split of a dataset as loaded, with what is needed to recognise it again.

    ``fingerprint`` is 16 hex digits over ids and content of the *whole* split, before any cap, and does not depend
    on the file format. ``rows`` is the size of the whole split. ``task``: what it was loaded for, its columns named.
    ``max_samples``: how many of the first rows it was capped at, None where it was not. ``whole``: what the
    fingerprint is of. ``allow_changed``: what artifacts say of examples that have changed since is taken all the same.
    ``mended``: what was put right in it (``Task.mend``), a record per change; the fingerprint is from before.
    ``planted``: the errors that run.py --plant_errors put into it, a record with ``id, kind, was`` each.
    """

    data: datasets.Dataset
    name: str
    split: str
    fingerprint: str
    rows: int
    task: Any
    max_samples: int | None = None
    whole: datasets.Dataset | None = None
    allow_changed: bool = False
    mended: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    planted: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        return self.data["id"][:]

    def identity(self) -> dict[str, Any]:
        return {
            "dataset": place_of_dataset(self.name),
            "split": self.split,
            "fingerprint": self.fingerprint,
            "rows": self.rows,
            "task": self.task.settings(),
            **({} if self.max_samples is None else {"max_samples": self.max_samples}),
        }

    def digests(self) -> np.ndarray | None:
        """(rows,) uint64, one of id and content of each example of the whole split; None where that is not known."""
        return None if self.whole is None else example_digests(self.whole, self.task.content_columns)


def load_split(name: str, split: str, task: RowFormat, max_samples: int | None = None) -> Split:
    """Load one split in the column layout of ``task``; ids are unique strings.

    ``name`` is a Hub name (``name`` or ``name:subset``), a local file (json, jsonl, csv, parquet, also .gz;
    SQuAD-style nesting is flattened), a directory of split files or one written by ``save_to_disk``, or a built-in
    ``demo:...``. ``max_samples`` keeps the first rows. Raises UserError for everything that a user can mend.
    """
    whole = _load_whole(name, split, task, stamp(Path(name)))  # type: ignore[arg-type]
    if max_samples is None or max_samples >= whole.rows:
        return dataclasses.replace(whole)
    data = whole.data.select(range(max_samples))
    there = set(data["id"][:]) if whole.mended else ()
    mended = [each for each in whole.mended if each["id"] in there]
    return dataclasses.replace(whole, data=data, max_samples=max_samples, mended=mended)


@functools.lru_cache(maxsize=4)
def _load_whole(name: str, split: str, task: RowFormat, stamp: Any) -> Split:
    """``stamp`` tells a file from its older contents: the runs of a suite load the same splits again and again."""
    if (part := PART.fullmatch(split)) and not (Path(name).is_dir() and split in splits_of(name)):
        return _part_of(_load_whole(name, part["split"], task, stamp), part)  # type: ignore[arg-type]
    data, mixed = _read(name, split)
    if len(data) == 0:
        raise UserError(f"{name}: split {split!r} holds no examples")
    renamed = _respelled(data.column_names, ("id", *task.sought(data.column_names)), name)
    data = data.rename_columns(renamed) if renamed else data
    task = task.for_columns(data.column_names, name)
    for column, why in mixed.items():
        if renamed.get(column, column) in (*task.text_columns, getattr(task, "label_column", "")):
            raise UserError(f"{name}: column {column} {why}; make its values of one type")
        if column not in task.content_columns:  # else answers, each of which is looked at
            logger.warning(f"{name}: column {column} {why}; its values are taken as text")
    data = task.normalize(_string_ids(data, name), f"{name} [{split}]")
    if "id" not in data.column_names:
        data = with_column(data, "id", generate_hash_ids(data, task.content_columns))
    data = data.select_columns(["id", *(column for column in data.column_names if column != "id")])
    fingerprint = content_fingerprint(data, task.content_columns)
    mended, changes = task.mend(data, f"{name} [{split}]")
    return Split(mended, name, split, fingerprint, len(data), task, whole=data, mended=changes)


def place_of_dataset(name: str) -> str:
    """What a dataset is recorded as: a local one by its whole path."""
    return os.path.abspath(name) if os.path.exists(name) else name


def parts_of(split: str, share: float) -> tuple[str, str]:
    """What ``load_split`` calls a split without a share of its examples, 0 < share < 1, and that share."""
    return f"{split}_without_{share}", f"{split}_held_out_{share}"


def held_out_beside(split: str) -> str | None:
    """What was held out of a split, where the split is the rest."""
    part = PART.fullmatch(split)
    return parts_of(part["split"], float(part["share"]))[1] if part and part["part"] == "without" else None


def overlap(one: str, other: str) -> bool:
    """Whether two splits of a dataset have examples in common, as a split and a part of it have."""
    parts = [PART.fullmatch(split) for split in (one, other)]
    bases = [part["split"] if part else split for part, split in zip(parts, (one, other), strict=True)]
    apart = all(parts) and len({part["share"] for part in parts}) == 1 and one != other  # type: ignore[index]
    return bases[0] == bases[1] and not apart


def _part_of(base: Split, part: re.Match[str]) -> Split:
    """The share of a split that is held out, or the rest.

    Chance is drawn from the texts themselves: whatever the seed of a run, the same examples are held out, and few
    others once the file has grown. Examples with one context (else: one first text) stay together, as who has learnt
    some of them knows something of the others.
    """
    assert base.whole is not None
    task, share = base.task, float(part["share"])
    column = "context" if "context" in task.content_columns else task.content_columns[0]
    texts = base.whole[column][:]
    sizes, wanted, taken, held = Counter(texts), round(share * base.rows), 0, set()
    for text in sorted(sizes, key=lambda text: hashlib.blake2b(text.encode(), person=b"held out").digest()):
        if taken + sizes[text] <= wanted:
            held.add(text)
            taken += sizes[text]
    where = f"{base.name} [{base.split}]"
    if not held:
        raise UserError(f"{where}: {share:g} of {base.rows:,} examples cannot be held out, as those with one {column} "
                        f"stay together and the smallest of {len(sizes):,} such groups are {min(sizes.values()):,}; "
                        "give a larger share, or splits of your own")
    rows = np.flatnonzero([(text in held) == (part["part"] == "held_out") for text in texts])
    logger.info(f"{where}: {taken:,} of {base.rows:,} examples are held out")
    whole, ids = base.whole.select(rows), set(np.asarray(base.ids, dtype=object)[rows])
    return dataclasses.replace(
        base, data=base.data.select(rows), whole=whole, split=part.string, rows=len(rows),
        fingerprint=content_fingerprint(whole, task.content_columns),
        mended=[each for each in base.mended if each["id"] in ids],
    )


def stamp(path: Path) -> tuple[tuple[str, int, int], ...] | None:
    """Name, time and size of a file, or of all in a directory: what changes when it is written again."""
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    return tuple((str(file), (status := file.stat()).st_mtime_ns, status.st_size) for file in files) or None


def splits_of(name: str) -> list[str]:
    """The splits that a dataset has, as far as that can be told without loading it."""
    path = Path(name)
    if path.is_file():
        return list(pickled_splits(path)) if _suffix(path) in PICKLES else ["train"]
    if name.startswith("demo:"):
        from datamap.demo.builtin import DEMOS

        demo = DEMOS.get(name.removeprefix("demo:"))
        return list(demo.sizes) if demo else []
    if path.is_dir():
        return list(_directory_splits(path))
    return [] if path.suffix in FILE_SUFFIXES else list(hub_splits(name))


def default_eval_split(name: str) -> str:
    """The split to evaluate on when none is named: validation, or what stands for it (MNLI: validation_matched)."""
    known = splits_of(name)
    if known == ["train"] and Path(name).is_file():
        return "train"  # the only one
    return next((split for split in EVAL_SPLITS if split in known), EVAL_SPLITS[0])


def _respelled(there: Sequence[str], sought: Sequence[str], name: str) -> dict[str, str]:
    """Column -> what it is sought as, where the one differs from the other in case or blanks around."""
    renamed = {}
    for wanted in sought:
        alike = [column for column in there if column.strip().casefold() == wanted.casefold()]
        if wanted not in there and len(alike) == 1:
            renamed[alike[0]] = wanted
    if renamed:
        logger.info(f"{name}: {', '.join(f'column {old!r} is taken as {new!r}' for old, new in renamed.items())}")
    return renamed


def _string_ids(data: datasets.Dataset, name: str) -> datasets.Dataset:
    import pyarrow as pa
    import pyarrow.compute as pc

    if "id" not in data.column_names:
        return data
    ids = arrow_column(data, "id")
    is_text = ids.type == pa.string()
    if not is_text:
        ids = pa.chunked_array([pa.array([None if value is None else str(value) for value in data["id"][:]],
                                         pa.string())])
    no_id = np.asarray(pc.fill_null(pc.equal(ids, ""), True))
    if no_id.any():
        row = int(no_id.argmax())
        raise UserError(f"{name}: row {row + 1} has no id; give every row one, or drop the column to have ids made")
    if pc.count_distinct(ids).as_py() < len(ids):
        twice = repeated(ids.to_pylist())
        raise UserError(f"{name}: {len(twice):,} ids occur more than once ({name_a_few(twice)}); ids must be unique "
                        "in a split: rename them, or drop the id column to have ids made")
    return data if is_text else with_column(data.remove_columns("id"), "id", ids)


def arrow_column(data: datasets.Dataset, name: str) -> pa.ChunkedArray:
    """A column as Arrow holds it, in the order of the rows."""
    import pyarrow as pa

    values = data.with_format("arrow")[name][:]
    return values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])


def with_column(data: datasets.Dataset, name: str, values: Any, feature: Any = None) -> datasets.Dataset:
    """``data`` with one more column. The library would pickle and hash every value of it, for a fingerprint that
    nothing here asks for, which takes longer than all the rest of loading."""
    from datasets.fingerprint import generate_random_fingerprint

    return data.add_column(name, values, new_fingerprint=generate_random_fingerprint(), feature=feature)


def generate_hash_ids(data: datasets.Dataset, columns: Sequence[str]) -> list[str]:
    """Ids for a dataset that has none: 16 hex digits over the content columns; exact duplicates get -2, -3, ..."""
    counts: dict[str, int] = {}
    ids = []
    for row in zip(*(_as_text(data, column).to_pylist() for column in columns), strict=True):
        key = hashlib.blake2b("\x1f".join(row).encode(), digest_size=8).hexdigest()
        counts[key] = counts.get(key, 0) + 1
        ids.append(key if counts[key] == 1 else f"{key}-{counts[key]}")
    return ids


def content_fingerprint(data: datasets.Dataset, columns: Sequence[str]) -> str:
    """16 hex digits over ids and ``columns``; the names of classes count, not their numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    digest = hashlib.blake2b(digest_size=8)
    for column in ("id", *columns):
        between = b""
        for batch in pa.table({"": _as_text(data, column)}).to_batches(TEXTS_AT_A_TIME):
            whole = pa.ListArray.from_arrays(pa.array([0, len(batch)], pa.int32()), batch.column(0))
            digest.update(between)
            digest.update(pc.binary_join(whole, "\x1e")[0].as_buffer())
            between = b"\x1e"
        digest.update(b"\x1d")
    return digest.hexdigest()


@functools.lru_cache(maxsize=4)  # several stages of one run ask for the same
def example_digests(data: datasets.Dataset, columns: tuple[str, ...]) -> np.ndarray:
    """(N,) uint64: 64 bits over the id of each example and its ``columns``, as in ``content_fingerprint``."""
    rows = zip(*(_as_text(data, column).to_pylist() for column in ("id", *columns)), strict=True)
    digests = [hashlib.blake2b("\x1f".join(row).encode(), digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(digests), dtype="<u8")


def _as_text(data: datasets.Dataset, column: str) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    values = arrow_column(data, column)
    feature = data.features[column]
    names = getattr(feature, "names", None)
    if getattr(feature, "dtype", None) == "string" and values.type == pa.string():
        return pc.fill_null(values, "null")
    write = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode  # json.dumps makes one anew for each value
    rows = data[column][:]
    if names is not None:  # the number of a class depends on which classes a file holds, its name does not
        rows = [names[value] for value in rows]
    texts = [value if isinstance(value, str) else write(value) for value in rows]
    return pa.chunked_array([pa.array(texts[at : at + TEXTS_AT_A_TIME], pa.string())
                             for at in range(0, len(texts), TEXTS_AT_A_TIME)], pa.string())


# A dataset as it was read, and of each column that holds values of several types, which are text now, which they were.
Read = tuple["datasets.Dataset", dict[str, str]]


def raw_split(name: str, split: str) -> datasets.Dataset:
    """One split as it is stored, in whatever columns."""
    return _read(name, split)[0]


def _read(name: str, split: str) -> Read:
    path = Path(name)
    if name.startswith("demo:"):
        return _read_demo(name, split), {}
    if path.is_dir():
        return _read_directory(path, split)
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if path.is_file():
        if plain.suffix not in FILE_SUFFIXES:
            raise UserError(f"{name}: expected one of {', '.join(FILE_SUFFIXES)}, plain or .gz")
        if plain.suffix in PICKLES:
            _check_split(name, split, splits_of(name))
            return _of_rows(path, pickled_splits(path)[split])
        if split != "train":
            raise UserError(
                f"{name} is a single file, whose only split is 'train'; {split!r} was asked for: name 'train', or put "
                f"train{plain.suffix} and {split}{plain.suffix} into one directory and give that, or let run.py hold "
                "some out with --eval_fraction"
            )
        return _read_file(path)
    if plain.suffix in FILE_SUFFIXES or name.startswith((".", "/", "~")):
        raise UserError(f"dataset {name!r}: no such file or directory")
    return read_hub(name, split), {}


def _read_demo(name: str, split: str) -> datasets.Dataset:
    import datasets

    from datamap.demo.builtin import DEMOS, generate

    demo = name.removeprefix("demo:")
    if demo not in DEMOS:
        known = ", ".join(f"demo:{known}" for known in DEMOS)
        raise UserError(f"dataset {name!r} is not built in; there is {known}")
    _check_split(name, split, list(DEMOS[demo].sizes))
    return datasets.Dataset.from_list(generate(demo, split))


def _read_directory(path: Path, split: str) -> Read:
    _check_split(str(path), split, _directory_splits(path))
    if (path / "dataset_dict.json").exists():
        return _read_saved(path / split), {}
    return (_read_saved(path), {}) if (path / "state.json").exists() else _read_file(_split_files(path)[split])


def _read_saved(path: Path) -> datasets.Dataset:
    """What ``save_to_disk`` wrote, read to its end: a file that was cut off is found here and not in training."""
    import datasets

    try:
        data = datasets.Dataset.load_from_disk(str(path))
        for batch in data.with_format("arrow").iter(1000):
            batch.validate(full=True)
    except Exception as error:  # of the library, of Arrow and of JSON, as many kinds as files can be damaged in
        raise UserError(f"{path} is no whole dataset of save_to_disk ({first_line(error):.200}); write it "
                        "again") from error
    return data


def _directory_splits(path: Path) -> list[str]:
    if (path / "dataset_dict.json").exists():  # of save_to_disk
        content = read_json(path / "dataset_dict.json")
        named = content.get("splits") if isinstance(content, dict) else None
        if not isinstance(named, list) or not named or not all(isinstance(split, str) for split in named):
            raise UserError(f"{path / 'dataset_dict.json'} names no splits; is {path} whole as save_to_disk wrote it?")
        return named
    return ["train"] if (path / "state.json").exists() else list(_split_files(path))


def _split_files(path: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        plain = file.with_suffix("") if file.suffix == ".gz" else file
        if plain.suffix in FILE_SUFFIXES and file.name not in NO_SPLITS and not file.is_dir():
            if plain.stem in files:
                raise UserError(f"{path} holds both {files[plain.stem].name} and {file.name}; keep one of them")
            files[plain.stem] = file
    if not files:
        raise UserError(
            f"{path} holds no dataset: expected train.* / validation.* as {', '.join(FILE_SUFFIXES)}, or a directory "
            "written by save_to_disk"
        )
    return files


def _check_split(name: str, split: str, known: Sequence[str]) -> None:
    if split not in known:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(sorted(known))}")


def _read_file(path: Path) -> Read:
    import datasets
    import pyarrow as pa
    from datasets.fingerprint import generate_random_fingerprint

    raw = read_bytes(path)
    if not raw or raw.isspace():
        raise UserError(f"{path} is empty")
    suffix = _suffix(path)
    if suffix in PICKLES:
        found = pickled_splits(path)
        if list(found) != ["train"]:
            raise UserError(f"{path} holds the splits {', '.join(found)}; name it by itself, not its directory")
        return _of_rows(path, found["train"])
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(io.BytesIO(raw))
            table.validate(full=True)  # a text that is no UTF-8
            return datasets.Dataset(table), {}
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{path} is not a whole parquet file ({first_line(error)})") from error
    if suffix in (".json", ".jsonl") and (table := json_lines(raw)) is not None:
        return datasets.Dataset(table, fingerprint=generate_random_fingerprint()), {}
    is_csv = suffix in (".csv", ".tsv")
    return _of_rows(path, _csv_rows(path) if is_csv else read_rows(path), may_nest=not is_csv)


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _of_rows(path: Path, rows: list[dict[str, Any]], may_nest: bool = False) -> Read:
    import datasets

    if not rows:
        raise UserError(f"{path} holds no rows")
    if may_nest and all("paragraphs" in row for row in rows):
        rows = _flatten_squad(path, rows)
    for row in rows:
        if row.get("id") is not None:  # ids may be numbers in one row and strings in the next
            row["id"] = str(row["id"])
    # Rows may lack keys; from_list reads those of the first only.
    names = dict.fromkeys(key for row in rows for key in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    mixed = {}
    try:
        data = _dataset(columns)
        if isinstance(data, Exception):
            for column, values in columns.items():
                if isinstance(_dataset({column: values}), Exception):
                    mixed[column] = _first_misfit(values)
                    columns[column] = [value if isinstance(value, str) or value is None
                                       else json.dumps(value, ensure_ascii=False) for value in values]
            data = datasets.Dataset.from_dict(columns)
        return data, mixed
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: a text holds half a surrogate pair, which UTF-8 cannot hold ({error})") from error


def _dataset(columns: dict[str, list]) -> datasets.Dataset | Exception:
    """The columns as a dataset, or why they are none: values of several types, numbers beyond 64 bits, nesting."""
    import datasets
    import pyarrow as pa

    try:
        return datasets.Dataset.from_dict(columns)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError, RecursionError) as error:
        return error


def _first_misfit(values: list[Any]) -> str:
    """What the first row holds that does not go with those before."""
    fits, row = 0, len(values)
    while row - fits > 1:
        middle = (fits + row) // 2
        is_misfit = isinstance(_dataset({"": values[:middle]}), Exception)
        fits, row = (fits, middle) if is_misfit else (middle, row)
    value = values[row - 1]
    alone = _dataset({"": [value]})
    if isinstance(alone, OverflowError):
        return f"holds a number in row {row} that is too large for 64 bits ({value!r:.40})"
    if isinstance(alone, RecursionError):
        return f"is nested too deeply in row {row}"
    if isinstance(alone, Exception):
        return f"holds values of several types in row {row} ({value!r:.60})"
    before = next(place for place, other in enumerate(values) if other is not None)
    return (f"holds {value!r:.60} in row {row}, which is of another type than {values[before]!r:.40} in row "
            f"{before + 1}")


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV: every cell a string but whole numbers outside ``id``; empty cells are None."""
    records = csv_records(path)
    header = next(records, [])
    rows: list[dict[str, Any]] = [dict(zip(header, cells, strict=True)) for cells in records]
    for column in header:
        values = [row[column] for row in rows]
        whole = column != "id" and all(_is_whole_number(value) for value in values if value != "")
        for row in rows:
            value = row[column]
            row[column] = None if value == "" else int(value) if whole else value
    return rows


def _is_whole_number(text: str) -> bool:
    digits = text[1:] if text.startswith("-") else text
    plain = digits == "0" or not digits.startswith("0")
    return digits.isascii() and digits.isdigit() and plain and len(digits) <= 18  # what 64 bits hold


def _flatten_squad(path: Path, articles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    row = {key: value for key, value in question.items() if key != "plausible_answers"}
                    rows.append({"title": article.get("title", ""), "context": paragraph["context"], **row})
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: nested like SQuAD, but a paragraph or question lacks {error}") from error
    return rows
