"""How far something long is: a bar on a terminal, elsewhere a line every half minute.

    with Progress("embedding", total=2500, unit="examples") as progress:
        progress.advance(32)

Whoever shows the progress of several stages in one place (map_dataset.py) watches instead: ``watching``, ``underway``.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

EVERY = 30.0  # seconds from line to line

logger = logging.getLogger(__name__)
_running: list[Progress] = []  # the outermost first
_watchers: list[object] = []  # who shows it instead
_ticker: threading.Thread | None = None
_ended = threading.Event()


class Progress:
    """Something of ``total`` units, of which ``done`` are done; shown while it is entered.

    size: examples in a unit, for the examples a second; 0 where these say nothing. note: said behind the count, such
    as the loss; asked for only when it is shown. bar: False for lines on a terminal too, None where a terminal has
    the bar of a library.
    """

    def __init__(
        self, what: str, total: int, unit: str = "examples", *, done: int = 0, size: float = 0,
        note: Callable[[], str] = str, bar: bool | None = True,
    ):
        self.what, self.total, self.unit, self.done, self.size, self.note = what, total, unit, done, size, note
        self.began, self.before = time.monotonic(), done
        self._bar_wanted = bar
        self._bar: Any = None

    def __enter__(self) -> Progress:
        global _ticker
        self.began = time.monotonic()
        _running.append(self)
        if _watchers:
            return self
        if self._bar_wanted is not False and sys.stderr.isatty():
            if self._bar_wanted is None:
                return self
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, initial=self.done, desc=self.what, unit=f" {self.unit}",
                                  leave=len(_running) == 1, dynamic_ncols=True)
        elif _ticker is None:
            _ended.clear()
            _ticker = threading.Thread(target=_tell, name="progress", daemon=True)
            _ticker.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Also ends what was begun inside it and not ended, as an exception leaves it."""
        global _ticker
        if self not in _running:
            return
        inside = _running[_running.index(self) :]
        del _running[-len(inside) :]
        for each in reversed(inside):
            if each._bar is not None:
                each._bar.close()
        if not _running and _ticker is not None:
            _ended.set()
            _ticker.join()
            _ticker = None

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self._bar is not None:
            self._bar.set_postfix_str(self.note(), refresh=False)
            self._bar.update(count)

    @property
    def rate(self) -> float:
        """Units a second since it was entered; 0 before the first is done."""
        return (self.done - self.before) / max(time.monotonic() - self.began, 1e-9)

    @property
    def left(self) -> float:
        """Seconds to its end at that rate; 0 before the first is done."""
        return (self.total - self.done) / self.rate if self.rate else 0.0

    def __str__(self) -> str:
        """``training: 120 of 625 steps, loss 0.412, 212 examples/s, 1 min 20 s left``"""
        parts = [f"{self.done:,} of {self.total:,} {self.unit}"]
        parts += [note] if (note := self.note()) else []
        if self.rate:
            parts += [f"{self.rate * self.size:,.{self.rate * self.size < 10:d}f} examples/s"] if self.size else []
            parts += [f"{duration(self.left)} left"]
        return f"{self.what}: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """``5 s``, ``1 min 20 s``, ``2 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def underway() -> str:
    """What is being done now, the outermost first; "" where nothing long is."""
    outer, [*innermost] = _running[:-1], _running[-1:]
    return ", ".join([*(f"{each.what} {each.done + 1} of {each.total}" for each in outer), *map(str, innermost)])


def outermost() -> Progress | None:
    return next(iter(_running), None)


def left() -> float:
    """Seconds to the end of the innermost; 0 where nothing long is under way, or its rate is not known yet."""
    return next((each.left for each in _running[-1:]), 0.0)


def fraction() -> float:
    """How much of the outermost is done, 0..1, with what is done inside it; 0 where nothing long is under way."""
    share = 0.0
    for each in reversed(list(_running)):
        share = min(1.0, (each.done + share) / max(each.total, 1))
    return share


@contextmanager
def watching() -> Iterator[None]:
    """Inside the block nothing is shown here: the caller does it."""
    _watchers.append(None)
    try:
        yield
    finally:
        _watchers.pop()


@contextmanager
def all_ended() -> Iterator[None]:
    """What the block begins and an exception leaves open is ended behind it."""
    before = len(_running)
    try:
        yield
    finally:
        for each in _running[before : before + 1]:
            each.close()


def _tell() -> None:
    while not _ended.wait(EVERY):
        if text := underway():
            logger.info(text)
