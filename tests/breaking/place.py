"""Where a try happens, and what must hold of every command in it, whatever was done to it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import base_artifacts
import numpy as np
import warm_processes
from base_artifacts import STAGES, Stage, clear
from warm_processes import Outcome, Started

# Differs from run to run, or says how long something took, and how much memory.
VOLATILE = re.compile("seconds|runtime|per_second|memory|started|finished|^date|^versions|^git|flos|_time$|^time")
NOT_COMPARED = re.compile(r"^(run_meta\.json|map\.json|log\.txt|training_args\.bin|trainer_state\.json|README\.md"
                          r"|report\.html|usage\.json|\.examples-.*|.*\.lock|optimizer\.pt|rng_state.*)$")
LONGEST_LINE = 3_000


class Broke(Exception):
    """What did not end well, in words."""


class Place:
    """A directory in which everything of the base artifacts is seen; what is changed is copied first."""

    def __init__(self, base: Path, directory: Path, rng: np.random.Generator, url: str):
        self.base, self.directory, self.rng, self.url = base, directory, rng, url
        self.outcomes: list[Outcome] = []
        self.note = ""
        directory.mkdir(parents=True)
        for item in base.glob("[!.]*"):
            (directory / item.name).symlink_to(item)

    def own(self, name: str) -> Path:
        """A copy that may be changed."""
        path = self.directory / name
        if path.is_symlink():
            path.unlink()
            copy = shutil.copytree if (self.base / name).is_dir() else shutil.copyfile
            copy(self.base / name, path)  # type: ignore[operator]
        return path

    def make_room(self, stage: Stage) -> None:
        """What a stage writes is not there yet; what it writes and reads is a copy."""
        if "--cache_dir cache" in stage.argv:
            self.own("cache")
        for name in stage.writes:
            if f"--mode analyze --experiments_dir {name}" in stage.argv:
                self.own(name)
            elif (self.directory / name).is_symlink():
                clear(self.directory / name)

    def argv(self, stage: Stage, *more: str) -> list[str]:
        return [*stage.argv.format(url=self.url).split(), *more]

    # --- commands ---

    def start(self, script: str, argv: list[str], **settings: Any) -> Started:
        return warm_processes.start(script, argv, settings.pop("directory", self.directory), **settings)

    def end(self, started: Started) -> Outcome:
        outcome = warm_processes.end(started)
        self.outcomes.append(outcome)
        return outcome

    def run(self, script: str, argv: list[str], **settings: Any) -> Outcome:
        """A command that must end well."""
        outcome = self.end(self.start(script, argv, **settings))
        self.check(outcome)
        return outcome

    def run_stage(self, stage: Stage, *more: str, **settings: Any) -> Outcome:
        self.make_room(stage)
        return self.run(stage.script, self.argv(stage, *more), **settings)

    # --- what must hold ---

    def check(self, outcome: Outcome, may: Iterable[int] = (0, 2)) -> None:
        """It ended with 0, or with 2 and one line; nothing is left over, and what is finished is whole."""
        check_words(outcome, may)
        self.check_files()

    def check_files(self) -> None:
        for path in self._own_files():
            name = str(path.relative_to(self.directory))
            if ".tmp-" in path.name:
                raise Broke(f"left a temporary file: {name}")
            if path.name == ".lock" or path.suffix == ".lock":
                raise Broke(f"left a lock: {name}")
            if path.name == "log.txt" and "Traceback (most recent" in path.read_text(errors="replace"):
                raise Broke(f"a traceback in {name}: {last_error(path.read_text(errors='replace'))}")
            if path.name == "run_meta.json" and not self._is_of_base(path):
                check_whole(path)

    def check_same(self, names: Iterable[str], pictures: bool = True) -> None:
        """These artifacts equal those of the undisturbed run; pictures of a fresh process are finer."""
        for name in names:
            differences = different(self.base / name, self.directory / name, str(self.base), str(self.directory),
                                    pictures)
            if differences:
                raise Broke(f"{name} is not what an undisturbed run makes: {differences}")

    def _own_files(self) -> Iterator[Path]:
        for folder, _, files in os.walk(self.directory):
            yield from (path for file in files if (path := Path(folder, file)).is_file())

    def _is_of_base(self, path: Path) -> bool:
        """What was copied, and perhaps damaged by the try."""
        base = self.base / path.relative_to(self.directory)
        began = [started(base), started(path)]
        return base.exists() and (began[0] == began[1] or began[1] is None)


def check_words(outcome: Outcome, may: Iterable[int] = (0, 2)) -> None:
    script = outcome.command.split()[1]
    if outcome.status is None:
        raise Broke(f"did not end within {warm_processes.PATIENCE:.0f} s")
    if "Traceback (most recent call last)" in outcome.err:
        raise Broke(f"traceback: {last_error(outcome.err)}")
    # Runs of a suite that failed are told one by one.
    if outcome.status == 1 and re.search(r"\n\d+ failed; --retry_failed runs them again\n$", outcome.err):
        return
    if outcome.status not in may:
        raise Broke(f"exit status {outcome.status}: {last_error(outcome.err)}")
    lines = [line for line in outcome.err.splitlines() if re.match(r"[\w.]+\.py: error: ", line)]
    if outcome.status == 2 and (len(lines) != 1 or not outcome.err.endswith(lines[0] + "\n")):
        raise Broke(f"exit status 2 with {len(lines)} lines of error of {script}: {last_error(outcome.err)}")
    if outcome.status == 0 and lines:
        raise Broke(f"exit status 0 with an error: {lines[0][:200]}")
    if lines and len(lines[0]) > LONGEST_LINE + max(map(len, outcome.command.split(" --"))):
        raise Broke(f"a line of {len(lines[0]):,} characters: {lines[0][:200]}")
    if re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", re.sub("\x1b\\[[0-9;]*[mK]|\r", "", outcome.out + outcome.err)):
        raise Broke("control characters on the terminal")


def last_error(text: str) -> str:
    lines = text.strip().splitlines() or ["(nothing on stderr)"]
    found = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt|Exit|Stop\w*)\b", line)]
    return (found or lines)[-1][:300]


def started(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))["started"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def check_whole(file: Path) -> None:
    """A run_meta.json that a command of the try wrote: it is not marked as running, and what it calls finished is
    there and can be read."""
    meta = json.loads(file.read_text(encoding="utf-8"))
    if meta["status"] == "running":
        raise Broke(f"{file.parent.name} is recorded as running, and nothing runs")
    if meta["status"] != "finished":
        return
    for name, size in meta["outputs"].items():
        path = file.parent / name
        if not path.is_file():
            raise Broke(f"{file.parent.name}/{name} is recorded as written and is not there")
        if path.stat().st_size != size:
            raise Broke(f"{file.parent.name}/{name} has {path.stat().st_size} bytes, {size} are recorded")
        try:
            content(path)
        except (ValueError, OSError) as error:
            raise Broke(f"{file.parent.name}/{name} is called finished and cannot be read: {error}") from error


def content(path: Path) -> Any:
    """What a file holds, as far as runs must agree in it."""
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_not_strict)
    if path.suffix == ".jsonl":
        rows = [json.loads(line, parse_constant=_not_strict)
                for line in path.read_text(encoding="utf-8").split("\n") if line]
        # As the answers came.
        return sorted(rows, key=lambda row: row["id"]) if path.name == "judge_answers.jsonl" else rows
    if path.suffix == ".csv":
        csv.field_size_limit(2**31 - 1)
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.reader(file, strict=True))
    if path.suffix == ".npy":
        return np.load(path).tolist()
    return path.read_bytes()


def _not_strict(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def lasting(value: Any, here: str, there: str) -> Any:
    """A value without what differs from run to run; paths ``here`` as ``there``."""
    if isinstance(value, Mapping):
        return {key: lasting(item, here, there) for key, item in value.items() if not VOLATILE.search(str(key))}
    if isinstance(value, list):
        if value and isinstance(value[0], list) and any(VOLATILE.search(str(each)) for each in value[0]):
            value = [[cell for name, cell in zip(value[0], row, strict=False) if not VOLATILE.search(str(name))]
                     for row in value]
        return [lasting(item, here, there) for item in value]
    return value.replace(here, there) if isinstance(value, str) else value


def compared(directory: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder, below, files in os.walk(directory):
        below[:] = [each for each in below if not each.startswith("checkpoint-")]
        found |= {str(Path(folder, file).relative_to(directory)): Path(folder, file) for file in files
                  if not NOT_COMPARED.match(file)}
    return found


def different(expected: Path, found: Path, base: str, here: str, pictures: bool = True) -> str:
    """In which files two artifacts differ; "" where in none."""
    one, other = compared(expected), compared(found)
    words = [f"no {name}" for name in one.keys() - other.keys()] + [f"a new {name}" for name in other.keys() - one]
    for name in sorted(each for each in one.keys() & other.keys() if pictures or not each.endswith(".png")):
        try:
            same = lasting(content(one[name]), base, base) == lasting(content(other[name]), here, base)
        except ValueError as error:
            same = False
            words.append(f"{name} cannot be read ({error})")
        if not same:
            words.append(name)
    return ", ".join(words)


Family = Callable[[Place], None]
__all__ = ["STAGES", "Broke", "Family", "Place", "base_artifacts", "check_words", "clear"]
