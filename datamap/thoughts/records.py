"""Answers as they are recorded: JSON Lines that grow by one line an answer, by one process at a time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from datamap.core.errors import UserError
from datamap.core.files import appended_records, atomic
from datamap.core.locks import lock


@contextmanager
def locked(path: Path, doing: str = "asking") -> Iterator[None]:
    """No other process writes records to ``path`` meanwhile; UserError where one is ``doing`` so."""
    with lock(path.with_name(path.name + ".lock"), doing):
        yield


def prompt_key(model: str, parameters: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> str:
    """32 hex digits over all that an answer depends on."""
    prompt = json.dumps([model, parameters, list(messages)], sort_keys=True, allow_nan=False)
    return hashlib.blake2b(prompt.encode(), digest_size=16).hexdigest()


def read_records(path: Path, keys: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The records in ``path`` that answer the prompt in ``keys`` (id -> prompt key), the last where there are several.

    A last line that was cut off in mid-write is taken off the file; UserError for any other damaged line.
    """
    mend = "expected a recorded answer: delete that line (its question is asked again), or name another file"
    records = appended_records(path, _record, mend)
    return {record["id"]: record for record in records if keys.get(record["id"]) == record["prompt"]}


def rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Write the file with what ``change`` makes of each record: itself, another one, or None to leave it out."""
    if not path.exists():
        return
    lines = []
    for line in path.read_bytes().splitlines(keepends=True):
        record = _record(line)
        changed = change(record)
        if changed is not None:
            lines.append(line if changed is record else line_of(changed))
    with atomic(path) as temporary:
        temporary.write_bytes(b"".join(lines))


def append(file: FileIO, lines: bytes) -> None:
    """Add whole lines to a file opened with ``buffering=0``; where there is no room for them it is left as it was, and
    UserError says so."""
    size, rest = os.fstat(file.fileno()).st_size, memoryview(lines)
    try:
        while rest:
            rest = rest[file.write(rest) or 0 :]
    except OSError as error:
        with suppress(OSError):  # of no regular file; half a line is also taken off when the file is read
            os.truncate(file.fileno(), size)
        raise UserError(f"cannot write to {file.name} ({error.strerror}), where all that stands is whole: make room "
                        "there, and give the same command again") from error


def line_of(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _record(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in ("id", "prompt")):
        raise ValueError("no object with id and prompt")
    if "text" not in record or not isinstance(record["text"], str | None):
        raise ValueError("no text")
    return record
