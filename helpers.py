"""Errors and status lines, datasets and ids: what every script stands on."""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import datasets

DEFAULT_DATASET = "Eladio/emrqa-msquad"
DEFAULT_MODEL = "google/electra-small-discriminator"
DEFAULT_SEED = 42
EVAL_SPLITS = ("validation", "validation_matched", "valid", "dev")  # the first that a dataset has is evaluated on
FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")

logger = logging.getLogger(__name__)


# --- errors and status lines -------------------------------------------------------------------------------------


class UserError(Exception):
    """A mistake of the user's. The message is one line: what was found, what was expected, how to mend it."""


class _StatusHandler(logging.StreamHandler):
    """To the stderr of the moment: a caller may have replaced it since."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        pass


class _StatusFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def setup_logging() -> None:
    """Send status lines to stderr: ours from INFO up, the libraries' from WARNING up, once per process."""
    root = logging.getLogger()
    if not any(isinstance(handler, _StatusHandler) for handler in root.handlers):
        handler = _StatusHandler()
        handler.setFormatter(_StatusFormatter())
        root.addHandler(handler)
    # Other processes of a distributed run would only repeat what the first one says.
    root.setLevel(logging.INFO if is_main_process() else logging.ERROR)
    for library in ("httpx", "httpx2", "openai", "datasets", "huggingface_hub", "accelerate", "torch", "fontTools",
                    "matplotlib", "numba"):  # fmt: skip
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of every optional kernel that is not there
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def is_main_process() -> bool:
    """Whether this is the process that writes files: rank 0 of a distributed run, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def command_line(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``main(argv=None)``: a UserError becomes one line on stderr and exit status 2, Ctrl-C exit status 130."""

    @functools.wraps(main)
    def wrapper(argv: Sequence[str] | None = None) -> None:
        name = Path(main.__globals__["__file__"]).name
        setup_logging()
        try:
            main(argv)
        except UserError as error:
            print(f"{name}: error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:  # of ``| head``, which has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None

    return wrapper


def name_a_few(items: Iterable[Any], limit: int = 3) -> str:
    """``'a', 'b', 'c', ...``: enough of a list to find the trouble."""
    items = list(items)
    return ", ".join(repr(item) for item in items[:limit]) + (", ..." if len(items) > limit else "")


# --- datasets ----------------------------------------------------------------------------------------------------


class RowFormat(Protocol):
    """What loading needs to know of a task (tasks.py): its columns and how to bring raw rows into them."""

    @property
    def content_columns(self) -> tuple[str, ...]: ...

    def settings(self) -> dict[str, Any]: ...

    def for_columns(self, columns: Sequence[str], source: str) -> Any: ...

    def normalize(self, data: datasets.Dataset, source: str) -> datasets.Dataset: ...


@dataclass
class Split:
    """One split of a dataset as loaded, with what is needed to recognise it again.

    ``fingerprint`` is 16 hex digits over ids and content of the *whole* split, before any cap, and does not depend
    on the file format. ``rows`` is the size of the whole split. ``task``: what it was loaded for, its columns named.
    """

    data: datasets.Dataset
    name: str
    split: str
    fingerprint: str
    rows: int
    task: Any

    @property
    def ids(self) -> list[str]:
        return self.data["id"][:]

    def identity(self) -> dict[str, Any]:
        local = os.path.exists(self.name)
        return {
            "dataset": os.path.abspath(self.name) if local else self.name,
            "split": self.split,
            "fingerprint": self.fingerprint,
            "rows": self.rows,
            "task": self.task.settings(),
        }


def load_split(name: str, split: str, task: RowFormat, max_samples: int | None = None) -> Split:
    """Load one split in the column layout of ``task``; ids are unique strings.

    ``name`` is a Hub name (``name`` or ``name:subset``), a local file (json, jsonl, csv, parquet, also .gz;
    SQuAD-style nesting is flattened), a directory of split files or one written by ``save_to_disk``, or a built-in
    ``demo:...``. ``max_samples`` keeps the first rows. Raises UserError for everything that a user can mend.
    """
    whole = _load_whole(name, split, task, _stamp(Path(name)))  # type: ignore[arg-type]
    if max_samples is None or max_samples >= whole.rows:
        return dataclasses.replace(whole)
    return dataclasses.replace(whole, data=whole.data.select(range(max_samples)))


@functools.lru_cache(maxsize=4)
def _load_whole(name: str, split: str, task: RowFormat, stamp: Any) -> Split:
    """``stamp`` tells a file from its older contents: the runs of a suite load the same splits again and again."""
    data = _read(name, split)
    if len(data) == 0:
        raise UserError(f"{name}: split {split!r} holds no examples")
    task = task.for_columns(data.column_names, name)
    data = task.normalize(_string_ids(data, name), f"{name} [{split}]")
    if "id" not in data.column_names:
        data = data.add_column("id", generate_hash_ids(data, task.content_columns))
    data = data.select_columns(["id", *(column for column in data.column_names if column != "id")])
    return Split(data, name, split, _fingerprint(data, task.content_columns), len(data), task)


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...] | None:
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    return tuple((str(file), (status := file.stat()).st_mtime_ns, status.st_size) for file in files) or None


def default_eval_split(name: str) -> str:
    """The split to evaluate on when none is named: validation, or what stands for it (MNLI: validation_matched)."""
    path = Path(name)
    if path.is_file():
        return "train"  # the only one
    known: Sequence[str] = ()
    if name.startswith("demo:"):
        import demo_data

        demo = name.removeprefix("demo:")
        known = demo_data.splits(demo) if demo in demo_data.DEMOS else ()
    elif path.is_dir():
        known = _directory_splits(path)
    elif path.suffix not in FILE_SUFFIXES:
        known = _hub_splits(name)
    return next((split for split in EVAL_SPLITS if split in known), EVAL_SPLITS[0])


def _string_ids(data: datasets.Dataset, name: str) -> datasets.Dataset:
    if "id" not in data.column_names:
        return data
    ids = [None if value is None else str(value) for value in data["id"][:]]
    if None in ids or "" in ids:
        row = next(row for row, value in enumerate(ids) if not value)
        raise UserError(f"{name}: row {row + 1} has no id; give every row one, or drop the column to have ids made")
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        repeated = list(dict.fromkeys(value for value in ids if value in seen or seen.add(value)))  # type: ignore
        raise UserError(
            f"{name}: {len(repeated):,} ids occur more than once ({name_a_few(repeated)}); ids must be unique in a "
            "split: rename them, or drop the id column to have ids made"
        )
    data = data.remove_columns("id")
    return data.add_column("id", ids)


def generate_hash_ids(data: datasets.Dataset, columns: Sequence[str]) -> list[str]:
    """Ids for a dataset that has none: 16 hex digits over the content columns; exact duplicates get -2, -3, ..."""
    counts: dict[str, int] = {}
    ids = []
    for row in zip(*(_as_text(data, column) for column in columns), strict=True):
        key = hashlib.blake2b("\x1f".join(row).encode(), digest_size=8).hexdigest()
        counts[key] = counts.get(key, 0) + 1
        ids.append(key if counts[key] == 1 else f"{key}-{counts[key]}")
    return ids


def _fingerprint(data: datasets.Dataset, columns: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for column in ("id", *columns):
        digest.update("\x1e".join(_as_text(data, column)).encode())
        digest.update(b"\x1d")
    return digest.hexdigest()


def _as_text(data: datasets.Dataset, column: str) -> list[str]:
    values = data[column][:]
    names = getattr(data.features[column], "names", None)
    if names is not None:  # the number of a class depends on which classes a file holds, its name does not
        values = [names[value] for value in values]
    return [
        value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False) for value in values
    ]


def _read(name: str, split: str) -> datasets.Dataset:
    path = Path(name)
    if name.startswith("demo:"):
        return _read_demo(name, split)
    if path.is_dir():
        return _read_directory(path, split)
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if path.is_file():
        if plain.suffix not in FILE_SUFFIXES:
            raise UserError(f"{name}: expected one of {', '.join(FILE_SUFFIXES)}, plain or .gz")
        if split != "train":
            raise UserError(
                f"{name} is a single file, whose only split is 'train'; {split!r} was asked for: name 'train', or put "
                f"train{plain.suffix} and {split}{plain.suffix} into one directory and give that"
            )
        return _read_file(path)
    if plain.suffix in FILE_SUFFIXES or name.startswith((".", "/", "~")):
        raise UserError(f"dataset {name!r}: no such file or directory")
    return read_hub(name, split)


def _read_demo(name: str, split: str) -> datasets.Dataset:
    import datasets

    import demo_data

    demo = name.removeprefix("demo:")
    if demo not in demo_data.DEMOS:
        known = ", ".join(f"demo:{known}" for known in demo_data.DEMOS)
        raise UserError(f"dataset {name!r} is not built in; there is {known}")
    _check_split(name, split, demo_data.splits(demo))
    return datasets.Dataset.from_list(demo_data.generate(demo, split))


def _read_directory(path: Path, split: str) -> datasets.Dataset:
    import datasets

    _check_split(str(path), split, _directory_splits(path))
    if (path / "dataset_dict.json").exists():
        return datasets.load_from_disk(str(path))[split]
    if (path / "state.json").exists():
        return datasets.load_from_disk(str(path))
    return _read_file(_split_files(path)[split])


def _directory_splits(path: Path) -> list[str]:
    if (path / "dataset_dict.json").exists():  # of save_to_disk
        return list(json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])
    return ["train"] if (path / "state.json").exists() else list(_split_files(path))


def _split_files(path: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        plain = file.with_suffix("") if file.suffix == ".gz" else file
        if plain.suffix in FILE_SUFFIXES:
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


def read_hub(name: str, split: str) -> datasets.Dataset:
    import datasets

    repository, _, subset = name.partition(":")
    try:
        return datasets.load_dataset(repository, subset or None, split=split)
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError, ConnectionError) as error:
        raise UserError(
            f"dataset {name!r} is neither a local file or directory nor to be had from the Hub "
            f"({_first_line(error)}); check the name, the network, or log in with `hf auth login`"
        ) from error
    except ValueError as error:  # an unknown split or subset: the message lists the known ones
        raise UserError(f"dataset {name!r}: {_first_line(error)}") from error


def _hub_splits(name: str) -> Sequence[str]:
    import datasets

    repository, _, subset = name.partition(":")
    try:
        return datasets.get_dataset_split_names(repository, subset or None)
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError, ConnectionError, ValueError):
        return ()  # loading it comes next and says what is wrong


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _read_file(path: Path) -> datasets.Dataset:
    import datasets
    import pyarrow as pa

    raw = path.read_bytes()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as error:
            raise UserError(f"{path} is not a whole gzip file ({_first_line(error)})") from error
    if not raw.strip():
        raise UserError(f"{path} is empty")
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            return datasets.Dataset(pq.read_table(io.BytesIO(raw)))
        except pa.ArrowInvalid as error:
            raise UserError(f"{path} is not a parquet file ({_first_line(error)})") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; convert the file to UTF-8") from error
    rows = _csv_rows(path, text) if suffix == ".csv" else json_rows(path, text)
    if not rows:
        raise UserError(f"{path} holds no rows")
    for row in rows:
        if row.get("id") is not None:  # ids may be numbers in one row and strings in the next
            row["id"] = str(row["id"])
    columns = dict.fromkeys(key for row in rows for key in row)  # rows may lack keys; from_list reads the first's only
    try:
        return datasets.Dataset.from_dict({column: [row.get(column) for row in rows] for column in columns})
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: a text holds half a surrogate pair, which UTF-8 cannot hold ({error})") from error
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise UserError(f"{path}: a column holds values of different types ({_first_line(error)})") from error


def csv_records(path: Path, text: Iterable[str]) -> Iterator[list[str]]:
    """The rows of a CSV, header first; each must have as many cells as the header, whose names must differ."""
    csv.field_size_limit(2**31 - 1)  # contexts are longer than the module's default of 131,072 characters
    reader = csv.reader(text, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not header:
                header = cells
                if len(set(header)) < len(header):
                    repeated = sorted({name for name in header if header.count(name) > 1})
                    raise UserError(f"{path}: columns {name_a_few(repeated)} are in the header more than once")
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(cells)} columns where the header has {len(header)}"
                )
            if cells:
                yield cells
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: malformed CSV ({error})") from error


def _csv_rows(path: Path, text: str) -> list[dict[str, Any]]:
    """Rows of a CSV: every cell a string but whole numbers outside ``id``; empty cells are None."""
    records = csv_records(path, io.StringIO(text, newline=""))
    header = next(records)
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


def json_rows(path: Path, text: str) -> list[dict[str, Any]]:
    """Rows of JSON Lines, of a JSON list, of ``{"data": [...]}``, or of SQuAD-style nested JSON."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as whole:
        return _json_lines(path, text, whole)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise UserError(f"{path}: expected a list of objects, JSON Lines, or SQuAD-style nested JSON")
    if content and all("paragraphs" in article for article in content):
        return _flatten_squad(path, content)
    return content


def _json_lines(path: Path, text: str, whole: json.JSONDecodeError) -> list[dict[str, Any]]:
    lines = text.split("\n")  # not splitlines(): JSON strings may hold U+2028
    rows = []
    for line_number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            # A document over several lines fails at its first line too; its own error says more.
            is_lines = line_number > 1 or path.suffixes[:1] == [".jsonl"]
            found, at = (error, line_number) if is_lines else (whole, whole.lineno)
            raise UserError(f"{path}, line {at}: malformed JSON ({found.msg})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {line_number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    return rows


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
