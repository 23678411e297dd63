"""Threads that send requests, and the gate before them: the rate, the budgets, pauses and the end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """The run has ended elsewhere; nothing is wrong with this question."""


class BudgetUsedUp(Exception):
    """The message says which budget."""


class Gate:
    """Every request passes here before it is sent, and is counted: the rate, the budgets, pauses and the end.

    prices: of a million prompt tokens and of a million completion tokens, in the currency of ``max_cost``.
    """

    def __init__(
        self,
        requests_per_minute: float | None,
        max_requests: int | None,
        prices: tuple[float, float] | None = None,
        max_cost: float | None = None,
    ):
        self.interval = 60 / requests_per_minute if requests_per_minute else 0.0
        self.max_requests, self.prices, self.max_cost = max_requests, prices, max_cost
        self.sent = 0
        self.spent = 0.0  # what the answers cost that came back
        self.closed = threading.Event()  # nothing is begun or repeated any more: stopped, or a budget used up
        self._stopped = threading.Event()  # nor sent
        self._under_way, self._dearest = 0, 0.0
        self._turn = self._opens = time.monotonic()
        self._lock = threading.Lock()

    def enter(self) -> None:
        with self._lock:
            if self._stopped.is_set():
                raise Stopped
            if self.max_requests is not None and self.sent >= self.max_requests:
                self.closed.set()
                raise BudgetUsedUp(f"--max_requests: the {self.max_requests:,} requests are used up")
            # Each request that is under way may come to cost as much as the dearest so far.
            if self.max_cost is not None and self.spent + (self._under_way + 1) * self._dearest > self.max_cost:
                self.closed.set()
                raise BudgetUsedUp(f"--max_cost: {self.spent:.4g} of {self.max_cost:g} are spent, and the next "
                                   "answers could cost more than the rest")
            self.sent += 1
            self._under_way += 1
            turn = max(time.monotonic(), self._turn)
            self._turn = turn + self.interval
        while (delay := max(turn, self._opens) - time.monotonic()) > 0:
            if self._stopped.wait(delay):
                with self._lock:
                    self.sent -= 1
                    self._under_way -= 1
                raise Stopped

    def leave(self, tokens: Mapping[str, int]) -> None:
        """A request that entered is through; tokens: what the answer cost, {} where there was none."""
        price = 0.0 if self.prices is None else cost_of(tokens, self.prices)
        with self._lock:
            self._under_way -= 1
            self.spent += price
            self._dearest = max(self._dearest, price)

    def close_for(self, seconds: float) -> None:
        """The server wants to be left alone, by every thread."""
        with self._lock:
            self._opens = max(self._opens, time.monotonic() + seconds)

    def wait(self, seconds: float) -> None:
        if self.closed.wait(seconds):
            raise Stopped

    def stop(self) -> None:
        self._stopped.set()
        self.closed.set()


def in_threads(act: Callable[[T], None], questions: Iterable[T], workers: int, gate: Gate) -> None:
    """``act`` on every question in ``workers`` threads.

    The first error, and Ctrl-C, end it: nothing more is sent, and what was sent is waited for. Ctrl-C comes
    to this thread, which only waits, and so does not break off what another one records. The threads are daemons, so
    that a second Ctrl-C leaves at once, whatever the server does.
    """
    pending, turn = iter(questions), threading.Lock()
    errors: list[Exception] = []
    running, through = workers, threading.Event()  # not Thread.join: Python 3.11 takes it for done when interrupted

    def work() -> None:
        nonlocal running
        try:
            while not gate.closed.is_set():
                with turn:
                    question = next(pending, None)
                if question is None:
                    break
                act(question)
        except Stopped:
            pass
        except BudgetUsedUp as error:  # other threads still have requests to send that were counted
            errors.append(error)
        except Exception as error:
            errors.append(error)
            gate.stop()
        finally:
            with turn:
                running -= 1
                if not running:
                    through.set()

    interrupted: KeyboardInterrupt | None = None
    try:
        for _ in range(workers):
            threading.Thread(target=work, daemon=True).start()
        while not through.is_set():
            try:
                through.wait()
            except KeyboardInterrupt as error:
                if interrupted:
                    raise
                interrupted = error
                gate.stop()
                logger.warning("waiting for the answers on their way; Ctrl-C again leaves them")
    finally:
        gate.stop()
    if interrupted:
        raise interrupted
    if errors:
        # A thread that finds the budget used up may come before one that tells what it was used up by.
        raise next((error for error in errors if not isinstance(error, BudgetUsedUp)), errors[0])


def cost_of(tokens: Mapping[str, int | None], prices: tuple[float, float]) -> float:
    """What ``prompt_tokens`` and ``completion_tokens`` cost at prices per million; an unknown number costs nothing."""
    used = (tokens.get("prompt_tokens") or 0, tokens.get("completion_tokens") or 0)
    return sum(count * price for count, price in zip(used, prices, strict=True)) / 1e6
