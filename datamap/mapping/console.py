"""What map_dataset.py shows while it works: a line per finished stage, warnings, one bar over all stages.

All that the stages print goes to log.txt. Off a terminal, and in the log, a line says every half minute how far it is.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from datamap.core import progress
from datamap.core.errors import StatusHandler, printable
from datamap.core.progress import EVERY, duration

BAR_SECONDS = 0.5  # from one look at the bar to the next
TOLD = 0.01  # less of all that is to do tells nothing of the time left


class Console(logging.Handler):
    """The terminal while others write to the log. As a handler of logging it shows warnings, each one once, whoever
    says it and whatever path it calls a place by."""

    def __init__(self, log: Path):
        super().__init__(logging.WARNING)
        self.log, self.seen = log, set[str]()
        self.expected = ""  # how a warning begins that is not shown
        self.stream = self.original = sys.stderr
        self.bar: Any = None
        self.began, self.told = time.monotonic(), time.monotonic()
        self.weights: dict[str, Mapping[str, float]] = {}  # of the stages that are not done, the current one first
        self.done = 0.0  # weight
        self.shown = 0.0  # 0..1
        self.ended = threading.Event()

    # --- lines ---

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.clear()
        print(printable(text), file=self.stream, flush=True)

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Show the warnings of the block here, and nowhere else on the terminal."""
        root = logging.getLogger()
        others = [handler for handler in root.handlers if isinstance(handler, StatusHandler)]

        def is_not_ours(record: logging.LogRecord) -> bool:
            in_a_stage = sys.stderr is not self.original  # it has turned that to the log
            return record.levelno < self.level or in_a_stage

        root.addHandler(self)
        for handler in others:
            handler.addFilter(is_not_ours)
        try:
            yield
        finally:
            for handler in others:
                handler.removeFilter(is_not_ours)
            root.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        said = self._said(message)
        if said not in self.seen and not (self.expected and message.startswith(self.expected)):
            self.seen.add(said)
            self.say(f"{record.levelname.lower()}: {message}")

    def _said(self, message: str) -> str:
        """What a message says, whether it begins with the artifact that it is about or not, and by whatever path."""
        place, colon, rest = message.partition(": ")
        home = self.log.parent.resolve()
        return rest if colon and home in Path(place).resolve().parents else re.sub(r"^\S*/", "", message)

    # --- how far all of it is ---

    def expect(self, weights: Mapping[str, Mapping[str, float]]) -> None:
        """What is to do: stage -> weight of each of its parts."""
        self.weights, self.began = dict(weights), time.monotonic()

    def finished(self, stage: str) -> None:
        self.done += sum(self.weights.pop(stage, {}).values())

    def dropped(self, stage: str) -> None:
        self.weights.pop(stage, None)

    def share(self) -> float:
        """How much of all that is to do is done, 0..1; it never falls."""
        todo = sum(weight for parts in self.weights.values() for weight in parts.values())
        parts, done = dict(next(iter(self.weights.values()), {})), self.done
        now = progress.outermost()
        if now is not None and now.what in parts:
            for part, weight in parts.items():
                if part == now.what:
                    done += progress.fraction() * weight
                    break
                done += weight
        elif now is not None and len(parts) == 1:
            done += progress.fraction() * sum(parts.values())
        self.shown = max(self.shown, done / max(self.done + todo, 1e-9))
        return self.shown

    def text(self) -> str:
        """``40%, 3 min left: train, training: 120 of 625 steps, loss 0.41, 212 examples/s, 1 min left``"""
        share, stage = self.share(), next(iter(self.weights), "")
        left = ""
        if share > TOLD:  # at the pace so far, which what is under way may not keep
            seconds = max((time.monotonic() - self.began) * (1 - share) / share, progress.left())
            left = f", {duration(seconds)} left"
        return f"{share:.0%}{left}: " + ", ".join(filter(None, [stage, progress.underway()]))

    # --- the thread that shows it ---

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show it, on the terminal of the moment: stages print into the log inside the block."""
        with _kept(self.original) as self.stream, progress.watching():
            if self.original.isatty():
                from tqdm import tqdm

                self.bar = tqdm(total=1000, file=self.stream, bar_format="|{bar:10}| {desc}",
                                leave=False, dynamic_ncols=True)
            watcher = threading.Thread(target=self._watch, name="console", daemon=True)
            watcher.start()
            try:
                yield
            finally:
                self.ended.set()
                watcher.join()
                if self.bar is not None:
                    self.bar.close()
        self.stream = self.original

    def _watch(self) -> None:
        while not self.ended.wait(BAR_SECONDS):
            text, now = self.text(), time.monotonic()
            if self.bar is not None:
                self.bar.n = round(1000 * self.shown)
                self.bar.set_description_str(text)
            if now - self.told >= EVERY:
                self.told = now
                with self.log.open("a", encoding="utf-8") as file:
                    file.write(f"{text}\n")
                if self.bar is None:
                    self.say(text)


@contextmanager
def _kept(stream: TextIO) -> Iterator[TextIO]:
    """The stream as it is now, whatever its descriptor is turned to inside the block."""
    try:
        descriptor = os.dup(stream.fileno())
    except (OSError, ValueError):  # none: a test holds what is printed
        yield stream
        return
    with os.fdopen(descriptor, "w", encoding=stream.encoding, errors="backslashreplace", buffering=1) as kept:
        yield kept
