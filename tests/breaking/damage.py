"""Ways to damage a file that a stage reads: its bytes, or what it says."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from base_artifacts import clear

Damage = Callable[[Path, np.random.Generator], None]

# What no reader expects where it looks for something else.
ODD: tuple[Any, ...] = (
    None, [], {}, "", "x", " ", 0, -1, 3, 0.5, 1e308, float("nan"), float("inf"), True, 2**70, [1, "a"],
    {"a": {"b": 1}},
    "=cmd|' /C calc'!A0", "\x1b[31mred\x1b[0m", "a" * 100_000, "שלום עולם", "👩‍👩‍👧 e\u0301 \u202eabc",
    "../../etc/passwd",
    "null", "NaN", "1e999", "0x10", [[[[]]]], "\ud800", "a\x00b", -(2**40), "2020-01-01", "true", "easy", [None],
)


def pick(rng: np.random.Generator, items: Any) -> Any:
    items = list(items)
    return items[int(rng.integers(len(items)))]


# --- bytes --------------------------------------------------------------------------------------------------------


def flip(path: Path, rng: np.random.Generator) -> None:
    raw = bytearray(path.read_bytes())
    for place in rng.integers(max(1, len(raw)), size=int(rng.integers(1, 9))) if raw else ():
        raw[int(place)] ^= int(rng.integers(1, 256))
    path.write_bytes(bytes(raw))


def truncate(path: Path, rng: np.random.Generator) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(rng.integers(len(raw))) if raw else 0])


def empty(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(b"")


def remove(path: Path, rng: np.random.Generator) -> None:
    path.unlink()


def zeros(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def noise(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(rng.bytes(int(rng.integers(1, 3000))))


def folder(path: Path, rng: np.random.Generator) -> None:
    clear(path)
    path.mkdir()


def loop(path: Path, rng: np.random.Generator) -> None:
    clear(path)
    path.symlink_to(path.name)


def utf16(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes().decode("utf-8", "replace").encode(pick(rng, ("utf-16", "utf-16-le", "utf-32"))))


def latin(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(b"\xe9" + path.read_bytes())


def twice(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes() * 2)


# --- JSON ---------------------------------------------------------------------------------------------------------


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    keys = value if isinstance(value, dict) else range(min(len(value), 40)) if isinstance(value, list) else ()
    for key in keys:
        found += [(value, key), *_nodes(value[key])]
    return found


def change_json(value: Any, rng: np.random.Generator) -> Any:
    """The value with one node of another kind, without it, twice, or with odd company."""
    nodes = _nodes(value)
    if not nodes or rng.random() < 0.1:
        return pick(rng, ODD)
    # Nodes near the root are few and matter most.
    holder, key = pick(rng, nodes[: 30] if rng.random() < 0.5 else nodes)
    how = pick(rng, ("odd", "odd", "odd", "gone", "again", "renamed"))
    if how == "odd":
        holder[key] = pick(rng, ODD)
    elif how == "gone":
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(key, holder[key])
    elif how == "renamed":
        holder[f"{key}_"] = holder.pop(key)
    else:
        holder["__proto__"] = holder[key]
    return value


def odd_json(path: Path, rng: np.random.Generator) -> None:
    value = change_json(json.loads(path.read_text(encoding="utf-8")), rng)
    path.write_text(json.dumps(value))


def nested_json(path: Path, rng: np.random.Generator) -> None:
    path.write_text("[" * 100_000 + "]" * 100_000)


def odd_lines(path: Path, rng: np.random.Generator) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines:
        return noise(path, rng)
    place = int(rng.integers(len(lines)))
    how = pick(rng, ("odd", "odd", "odd", "gone", "again", "cut", "swapped", "word", "blank"))
    if how == "odd":
        lines[place] = json.dumps(change_json(json.loads(lines[place]), rng))
    elif how == "gone":
        del lines[place]
    elif how == "again":
        lines.append(lines[place])
    elif how == "cut":
        lines[place] = lines[place][: len(lines[place]) // 2]
    elif how == "swapped":
        lines[place], lines[0] = lines[0], lines[place]
    else:
        lines.insert(place, "not JSON" if how == "word" else "")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# --- CSV ----------------------------------------------------------------------------------------------------------


def odd_csv(path: Path, rng: np.random.Generator) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    place, column = int(rng.integers(len(rows))), int(rng.integers(len(rows[0])))
    how = pick(rng, ("cell", "cell", "cell", "header", "column", "row", "again", "wide", "only", "same", "quote"))
    if how == "cell":
        value = pick(rng, ODD)
        rows[max(1, place) % len(rows)][column] = (json.dumps(value) if isinstance(value, dict | list) else "" if
                                                   value is None else str(value))
    elif how == "header":
        rows[0][column] = pick(rng, ("", "id", "__proto__", "=1+1", "ID", rows[0][0]))
    elif how == "column":
        rows = [row[:column] + row[column + 1 :] for row in rows]
    elif how == "row" and len(rows) > 1:
        del rows[max(1, place)]
    elif how == "again":
        rows.append(list(rows[place]))
    elif how == "wide":
        rows[place].append("x")
    elif how == "only":
        del rows[1:]
    elif how == "same":
        for row in rows[1:]:
            row[column] = rows[-1][column]
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    said = text.getvalue()
    if how == "quote":
        middle = len(said) // 2
        said = said[:middle] + '"' + said[middle:]
    path.write_bytes(said.encode("utf-8", "surrogatepass"))


# --- NumPy --------------------------------------------------------------------------------------------------------


def odd_array(path: Path, rng: np.random.Generator) -> None:
    array = np.load(path)
    if array.dtype.kind not in "fiu":
        return flip(path, rng)
    how = pick(rng, ("object", "flat", "cube", "fewer", "none", "thin", "nan", "inf", "same", "text", "complex",
                     "huge",
                     "double", "whole", "order", "header"))
    made: Any = {
        "object": lambda: np.array([{}, [1], None], dtype=object), "flat": lambda: array.ravel(),
        "cube": lambda: array[None], "fewer": lambda: array[1:], "none": lambda: array[:0],
        "thin": lambda: array[..., :0], "nan": lambda: _with(array, rng, np.nan), "inf": lambda: _with(array, rng,
            np.inf),
        "same": lambda: np.zeros_like(array), "text": lambda: array.astype(str),
        "complex": lambda: array.astype(complex),
        "huge": lambda: _with(array, rng, 3e38), "double": lambda: array.astype(float),
        "whole": lambda: array.astype(int),
        "order": lambda: np.asfortranarray(array), "header": lambda: array,
    }[how]()
    np.save(path, made, allow_pickle=True)
    if how == "header":  # far more rows than there are bytes
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"'shape': (", b"'shape': (9" if rng.random() < 0.5 else b"'shape': (-"))


def _with(array: np.ndarray, rng: np.random.Generator, value: float) -> np.ndarray:
    made = np.array(array, dtype=float if array.dtype.kind != "f" else array.dtype)
    made.flat[int(rng.integers(made.size))] = value
    return made


RAW: tuple[Damage, ...] = (flip, truncate, empty, remove, zeros, noise, folder, loop, twice)
TEXT: tuple[Damage, ...] = (utf16, latin)
BY_SUFFIX: dict[str, tuple[Damage, ...]] = {
    ".json": (odd_json,) * 14 + (nested_json, *TEXT), ".jsonl": (odd_lines,) * 10 + TEXT,
    ".csv": (odd_csv,) * 10 + TEXT,
    ".npy": (odd_array,) * 10, ".txt": TEXT,
}
LOSSES = (truncate, empty, remove)  # which a reader must see, where the sizes were recorded


def damage_of(path: Path, rng: np.random.Generator) -> Damage:
    return pick(rng, RAW + BY_SUFFIX.get(path.suffix, ()))


def shuffled(items: list, rng: np.random.Generator) -> list:
    return random.Random(int(rng.integers(2**31))).sample(items, len(items))
