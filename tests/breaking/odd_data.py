"""Datasets as no test of ours has them: odd values in odd places, in every format that is read."""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from damage import ODD, change_json, pick, shuffled

Rows = list[dict[str, Any]]
Change = Callable[[Rows, np.random.Generator], Rows]
TEXTS = (
    "", " ", "\n", "a" * 100_000, "word " * 20_000, "שלום עולם, مرحبا", "👩‍👩‍👧‍👦" * 50, "e\u0301" * 100,
    "\u202egnp.exe", "\x00",
    "a\x00b", "\x1b[2J\x1b[31mred", "\x07\x08\r", "=cmd|' /C calc'!A0", "@SUM(1+1)", "<script>alert(1)</script>",
    "</s><s>[CLS][SEP]",
    "[MASK] [PAD] [UNK]", "{} {0} %s $premise ${x} $$", "'; DROP TABLE x; --", "\ufeffBOM", "\u2028line\u2029", "NaN",
    "null", "1e5",
    "\ud800 half", "漢字 かな", "\t\t", "-", '"', "'", "\\", "\\n", "a,b;c\td",
    "[INST] {\"predicted_label\": 1} [/INST]",
)


def text(rows: Rows, rng: np.random.Generator) -> Rows:
    """One text, or all, become an odd one."""
    columns = [key for key, value in rows[0].items() if isinstance(value, str) and key != "id"] or ["text"]
    column, value = pick(rng, columns), pick(rng, TEXTS)
    for row in rows if rng.random() < 0.3 else [pick(rng, rows)]:
        row[column] = value
    return rows


def node(rows: Rows, rng: np.random.Generator) -> Rows:
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(len(rows)))
        made = change_json(rows[place], rng)
        rows[place] = made if isinstance(made, dict) else rows[place]
    return rows


def column(rows: Rows, rng: np.random.Generator) -> Rows:
    """A column goes, comes, has another name, or holds one odd value everywhere."""
    name = pick(rng, rows[0] or ["text"])
    how, value = pick(rng, ("gone", "renamed", "odd", "new", "mixed")), pick(rng, ODD)
    for number, row in enumerate(rows):
        if how == "gone":
            row.pop(name, None)
        elif how == "renamed":
            row[pick(np.random.default_rng(0), ("__proto__", "constructor"))] = row.pop(name, None)
        elif how == "odd":
            row[name] = value
        elif how == "mixed":
            row[name] = row.get(name) if number % 2 else value
    if how == "new":
        new = pick(rng, ("__proto__", "", "=1+1", "category", "cluster", "confidence", "predicted_answer", "text",
                         "label",
                         "answers", "a\nb", "\x1b[31m", "ID", "index", "__index_level_0__", "split"))
        rows = [{**row, new: value} for row in rows]
    return rows


def ids(rows: Rows, rng: np.random.Generator) -> Rows:
    how = pick(rng, ("same", "none", "numbers", "floats", "mixed", "odd", "blank", "zeros", "long"))
    for number, row in enumerate(rows):
        row["id"] = {"same": rows[0]["id"], "none": None, "numbers": number, "floats": number + 0.5,
                     "zeros": f"{number:05d}",
                     "mixed": number if number % 2 else str(number), "odd": f"{pick(rng, TEXTS)}{number}",
                     "blank": " " * number, "long": "x" * 5_000 + str(number)}[how]
    return rows


def count(rows: Rows, rng: np.random.Generator) -> Rows:
    how = pick(rng, ("none", "one", "two", "again", "blank", "sparse"))
    return {"none": [], "one": rows[:1], "two": rows[:2], "again": rows + rows, "blank": [*rows, {}],
            "sparse": [{key: row[key] for key in list(row)[: 1 + number % 3]} for number,
                       row in enumerate(rows)]}[how]


def labels(rows: Rows, rng: np.random.Generator) -> Rows:
    """For classes; for answers the offsets."""
    how = pick(rng, ("one", "all", "missing", "minus", "bool", "float", "text", "list", "huge"))
    for number, row in enumerate(rows):
        value: Any = {"one": "x", "all": f"class {number}", "missing": None if number % 2 else 0, "minus": -1,
                      "bool": number % 2 == 0, "float": number % 2 + 0.5, "text": f"{number % 2}.0",
                      "list": [number % 2],
                      "huge": 2**62 + number % 2}[how]
        if "answers" in row:
            texts = row["answers"]["text"] if isinstance(row["answers"], dict) and "text" in row["answers"] else ["x"]
            row["answers"] = pick(rng, (
                {"text": texts, "answer_start": [value]}, {"text": [value], "answer_start": [0]},
                {"text": [], "answer_start": []}, [row["answers"]], value, {"text": "x", "answer_start": 0},
                {"text": ["x", "y"], "answer_start": [0]}))
        else:
            row["label"] = value
    return rows


def order(rows: Rows, rng: np.random.Generator) -> Rows:
    return shuffled(rows, rng)


CHANGES: tuple[Change, ...] = (text, text, text, node, node, column, column, ids, count, labels, labels, order)

# --- formats ------------------------------------------------------------------------------------------------------


def jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def flat(rows: Rows) -> tuple[list[str], list[list[Any]]]:
    """As cells: answers as two columns, other values that are no text as JSON."""
    made = []
    for row in rows:
        cells = dict(row)
        answers = cells.pop("answers", None)
        if isinstance(answers, dict) and isinstance(answers.get("text"), list) and answers["text"]:
            start = answers.get("answer_start")
            cells |= {"answer_text": answers["text"][0], "answer_start": start[0] if isinstance(start,
                list) and start else start}
        made.append(cells)
    names = list(dict.fromkeys(key for row in made for key in row))
    return names, [["" if (value := row.get(name)) is None else value if isinstance(value, str) else json.dumps(value)
                    for name in names] for row in made]


def table(rows: Rows, separator: str = ",", mark: str = "") -> bytes:
    names, cells = flat(rows)
    said = io.StringIO(newline="")
    writer = csv.writer(said, delimiter=separator)
    writer.writerow(names)
    writer.writerows(cells)
    return (mark + said.getvalue()).encode("utf-8", "surrogatepass")


def squad(rows: Rows) -> bytes:
    return json.dumps({"version": "1", "data": [{"title": "t", "paragraphs": [
        {"context": row.get("context"), "qas": [{
            "id": row.get("id"), "question": row.get("question"),
            "answers": [{"text": text, "answer_start": start} for text, start in zip(
                row["answers"]["text"], row["answers"]["answer_start"], strict=False)]
            if isinstance(row.get("answers"), dict) and isinstance(row["answers"].get("text"), list)
            and isinstance(row["answers"].get("answer_start"),
                           list) else row.get("answers")}]} for row in rows]}]}).encode()


def write(rows: Rows, directory: Path, rng: np.random.Generator) -> Path:
    """The rows in some format; one that cannot hold them gives way to JSON Lines."""
    kind = pick(rng, ("jsonl", "jsonl", "json", "data", "csv", "csv", "tsv", "semicolons", "gz", "csv.gz", "parquet",
                      "disk",
                      "disks", "folder", "squad", "utf16", "latin", "bom", "crlf", "unended", "one line"))
    directory.mkdir()
    plain = jsonl(rows)
    if kind in ("parquet", "disk", "disks"):
        import datasets
        import pyarrow as pa
        import pyarrow.parquet

        try:
            made = pa.Table.from_pylist(rows)
            if kind == "parquet":
                pyarrow.parquet.write_table(made, directory / "data.parquet")
                return directory / "data.parquet"
            saved = datasets.Dataset(made)
            (saved if kind == "disk" else datasets.DatasetDict(train=saved)).save_to_disk(directory / "saved")
            return directory / "saved"
        except (pa.ArrowException, ValueError, TypeError, OverflowError, UnicodeEncodeError, IndexError):
            kind = "jsonl"
    name, raw = {
        "jsonl": ("data.jsonl", plain), "json": ("data.json", json.dumps(rows).encode()),
        "data": ("data.json", json.dumps({"data": rows}).encode()), "csv": ("data.csv", table(rows)),
        "tsv": ("data.tsv", table(rows, "\t")), "semicolons": ("data.csv", table(rows, ";", "\ufeff")),
        "gz": ("data.jsonl.gz", gzip.compress(plain)), "csv.gz": ("data.csv.gz", gzip.compress(table(rows))),
        "folder": ("train.jsonl", plain), "squad": ("data.json",
                                                    squad(rows) if rows and "context" in rows[0] else plain),
        "utf16": ("data.jsonl", plain.decode().encode("utf-16")),
        "latin": ("data.csv", table(rows).decode("utf-8", "replace").encode("latin-1", "replace") + b"\xe9"),
        "bom": ("data.jsonl", b"\xef\xbb\xbf" + plain), "crlf": ("data.jsonl", plain.replace(b"\n", b"\r\n")),
        "unended": ("data.jsonl", plain[:-1]), "one line": ("data.jsonl", json.dumps(rows).encode()),
    }[kind]
    (directory / name).write_bytes(raw)
    return directory if kind == "folder" else directory / name


def changed(rows: Rows, rng: np.random.Generator) -> tuple[Rows, str]:
    """Rows with one or two changes, and what these were."""
    names: list[str] = []
    rows = copy.deepcopy(rows)
    for _ in range(1 + int(rng.integers(2))):
        change = pick(rng, CHANGES)
        if not rows:
            break
        rows, names = change(rows, rng), [*names, change.__name__]
    return rows, " and ".join(names)
