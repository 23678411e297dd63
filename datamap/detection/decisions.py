"""Decisions back from a spreadsheet, whatever it made of suspects.csv (``tables.write_for_spreadsheet``) meanwhile."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datamap.core.artifacts import load_meta
from datamap.core.errors import UserError, name_a_few, repeated
from datamap.core.files import read_bytes
from datamap.core.splits import Split
from datamap.core.tables import restored
from datamap.tasks.spans import places_of

if TYPE_CHECKING:
    import pandas as pd

SUSPECTS_FILE = "suspects.csv"
MADE_BY = "analyze_dataset.py --find_errors"
DECISIONS = ("keep", "drop", "fix")
NO_ANSWER = "[no answer]"  # in a cell, of an unanswerable question: an empty cell says that nothing is known
_NUMBER = re.compile(r"[+-]?\d[\d.,]*(E[+-]?\d+)?", re.IGNORECASE)

logger = logging.getLogger(__name__)


def check_not_edited(directory: str | Path) -> None:
    """Refuse to replace a suspects.csv that somebody has worked on since it was written.

    A stage that was killed behind it could not say how it was: that file may go as long as there is no decision in it.
    """
    file, meta = Path(directory) / SUSPECTS_FILE, (load_meta(directory) if Path(directory).is_dir() else None) or {}
    if not file.exists() or file.stat().st_size == meta.get("outputs", {}).get(SUSPECTS_FILE):
        return
    if meta.get("status") != "running" or (read_decisions(file)["decision"] != "").any():
        raise UserError(f"{file} is not as it was written: it may hold decisions; rename it, or name another "
                        "--output_dir")


# --- and back ----------------------------------------------------------------------------------------------------


def read_decisions(path: str | Path) -> pd.DataFrame:
    """suspects.csv as a person left it: columns ``id, decision, corrected, suspicion``, texts, "" where empty.

    decision: keep, drop, fix, or "" where there is none yet. corrected: of a fix, what it is to be; where that cell is
    empty, what the column ``proposed`` holds. One row per id. ``path`` may be the directory. The file may be separated
    by commas, semicolons or tabs, be UTF-8 or UTF-16 or (with a warning) Windows-1252, and have columns in any order
    and case, and others beside them. UserError, one line, for a word that is no decision, a fix to nothing, a
    correction without a decision, an id without a decision of its own and one with two.
    """
    import pandas as pd

    file = Path(path) / SUSPECTS_FILE if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise UserError(f"{file}: no such file; {MADE_BY} writes {SUSPECTS_FILE}")
    rows = _rows(file)
    header = [name.strip().casefold() for name in next(rows)[1]]
    place = {name: header.index(name) for name in ("id", "decision", "corrected", "proposed", "suspicion")
             if name in header}
    found: dict[str, tuple[str, str, str]] = {}
    for line, cells in rows:
        row = {name: cells[at] for name, at in place.items() if at < len(cells)}
        example, word = restored(row.get("id", "")), row.get("decision", "").strip().casefold()
        corrected = restored(row.get("corrected", ""))
        where = f"{file}, line {line}"
        if not example:
            if word or corrected.strip():
                raise UserError(f"{where}: a decision without an id")
            continue
        where = f"{where} (id {example!r})"
        if word and word not in DECISIONS:
            raise UserError(f"{where}: decision {word!r}; expected {', '.join(DECISIONS)} or nothing")
        if corrected.strip() and word != "fix":
            raise UserError(f"{where}: corrected is {corrected!r:.60} and decision {word!r}; a correction is taken "
                            "where decision is fix")
        if word == "fix":
            corrected = corrected if corrected.strip() else restored(row.get("proposed", ""))
            if not corrected.strip():
                raise UserError(f"{where}: fix, and neither corrected nor proposed says to what; fill in corrected")
        decided = (word, corrected if word == "fix" else "", row.get("suspicion", "").strip())
        earlier = found.get(example)
        if earlier and earlier[0] and word and earlier[:2] != decided[:2]:
            raise UserError(f"{where}: decided twice, {_shown(earlier)} and {_shown(decided)}; leave one of them")
        if earlier is None or not earlier[0]:
            found[example] = decided
    if not found:
        raise UserError(f"{file} holds no examples; {MADE_BY} writes it")
    table = [(example, *decided) for example, decided in found.items()]
    return pd.DataFrame(table, columns=["id", "decision", "corrected", "suspicion"], dtype=object)


def check_decided_ids(path: str | Path, decided: Iterable[str], split: Split) -> None:
    """UserError where there is a decision on an id that the split, before any cap, does not have."""
    known = set((split.data if split.whole is None else split.whole)["id"][:])
    unknown = [example for example in decided if example not in known]
    if not unknown:
        return
    hint = ""
    if all(map(_NUMBER.fullmatch, unknown)):
        hint = ("; a spreadsheet that takes ids for numbers cuts leading zeros and all digits behind the 15th: import "
                "column id as text, or correct it")
    raise UserError(f"{path} decides on {len(unknown):,} ids that {split.name} [{split.split}] does not have "
                    f"({name_a_few(unknown)}){hint}")


def idle_fixes_kept(table: pd.DataFrame, split: Split, path: str | Path) -> pd.DataFrame:
    """``table`` (``decision`` and ``corrected`` by id) with ``keep`` where a fix says what is annotated already: an
    example that nothing is to change of is no wrong one, and nothing else is to be learned from it."""
    fixes = table.loc[table["decision"] == "fix", "corrected"].to_dict()
    rows = {example: row for row, example in enumerate(split.ids) if example in fixes}
    idle = [example for example, row in rows.items() if _changes_nothing(split, row, fixes[example])]
    if not idle:
        return table
    logger.warning(f"{path}: {len(idle):,} {'fixes say' if len(idle) > 1 else 'fix says'} what is annotated already "
                   f"({name_a_few(idle)}): {'they count' if len(idle) > 1 else 'it counts'} as keep")
    table = table.copy()
    table.loc[idle, ["decision", "corrected"]] = ["keep", ""]
    return table


def _changes_nothing(split: Split, row: int, text: str) -> bool:
    example = split.data[row]
    if split.task.name != "qa":
        names = split.data.features[split.task.label_column].names
        return label_number(names, text) == example[split.task.label_column]
    golds, starts = example["answers"]["text"], example["answers"]["answer_start"]
    if text.strip().casefold() == NO_ANSWER or not golds:
        return text.strip().casefold() == NO_ANSWER and not golds
    found = answer_place(example["context"], text, starts[0])
    return found is not None and found[0] == starts[0] and example["context"][slice(*found[:2])] == golds[0]


def label_number(names: Sequence[str], text: str) -> int | None:
    """The class that a cell names, whatever its case; None where there is no such class."""
    wanted = text.strip()
    if wanted not in names and wanted.endswith(".0"):  # how pandas and spreadsheets write 1 beside a gap
        wanted = wanted[:-2]
    folded = {name.casefold(): number for number, name in enumerate(names)}
    return names.index(wanted) if wanted in names else folded.get(wanted.casefold())


def answer_place(context: str, text: str, start: int) -> tuple[int, int, int] | None:
    """First character and end of the place of ``text`` in ``context`` that is nearest to ``start``, and how many
    places there are; None where there is none."""
    places = places_of(context, text)
    return (*min(places, key=lambda place: abs(place[0] - start)), len(places)) if places else None


def _shown(decided: Sequence[str]) -> str:
    return f"{decided[0]} {decided[1]!r:.40}" if decided[0] == "fix" else decided[0]


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row that is not empty, the header first."""
    text = _decoded(file)
    if text[:4].casefold() == "sep=":  # Excel's own line about the separator
        text = text.partition("\n")[2]
    csv.field_size_limit(2**31 - 1)
    header: list[str] | None = None
    for separator in ",;\t|":
        try:
            header = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
        except csv.Error:
            continue
        names = [name.strip().casefold() for name in header]
        if {"id", "decision"} <= set(names):
            break
    else:
        found = text.splitlines()[0] if text.strip() else ""
        raise UserError(f"{file}: no columns id and decision in its first line ({found!r:.80}); {MADE_BY} writes it")
    if twice := sorted(set(repeated(names)) & {"id", "decision", "corrected", "proposed", "suspicion"}):
        raise UserError(f"{file}: column {name_a_few(twice)} is there more than once; leave one of them")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        for cells in reader:
            if any(cells[len(names):]):
                raise UserError(f"{file}, line {reader.line_num}: {len(cells)} columns where the header has "
                                f"{len(names)}; is a quotation mark missing?")
            if any(cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: malformed CSV ({error})") from error


def _decoded(file: Path) -> str:
    raw = read_bytes(file)
    if raw.startswith(b"PK"):
        raise UserError(f"{file} is a workbook, not a CSV; save it as CSV (UTF-8) and give that")
    is_wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return raw.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        if is_wide:
            raise UserError(f"{file} is not whole UTF-16 text ({error.reason}); save it as CSV (UTF-8)") from error
    logger.warning(f"{file} is not UTF-8; it is read as Windows-1252, in which a spreadsheet keeps a ? for every "
                   "character that it lacks: better save it as CSV (UTF-8)")
    return raw.decode("cp1252", errors="replace")
