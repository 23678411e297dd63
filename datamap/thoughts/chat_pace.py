"""When a request to a chat server may be sent: its turn, the pauses that the server asks for, budgets, the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from datamap.core.errors import UserError

TOKENS = ("prompt_tokens", "completion_tokens")
ATTEMPT = "x-stainless-retry-count"  # header of the client: how often it has asked before
STATUS_SECONDS = 30.0  # between two status lines where there is no bar
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds, where the server does not say how long: each twice the one before
PATIENCE = 3600.0  # seconds that a rate limit may keep everything waiting

logger = logging.getLogger(__name__)


class Stopped(BaseException):
    """The run has ended elsewhere; nothing is wrong with this question.

    Like the one below no Exception, which older clients take for a failed connection, and ask again.
    """


class BudgetUsedUp(BaseException):
    """The message says which budget."""


def cost_of(tokens: Mapping[str, int | None], prices: tuple[float, float]) -> float:
    """What ``prompt_tokens`` and ``completion_tokens`` cost at prices per million; an unknown number costs nothing."""
    return sum((tokens.get(name) or 0) * price for name, price in zip(TOKENS, prices, strict=True)) / 1e6


@dataclass
class Budget:
    """Every request passes here before it is sent, and is counted, the client's retries too: rate, budgets, the end.

    prices: of a million prompt tokens and of a million completion tokens, in the currency of ``max_cost``.
    """

    requests_per_minute: float | None
    max_requests: int | None
    prices: tuple[float, float] | None
    max_cost: float | None
    max_retries: int
    over: asyncio.Event = field(default_factory=asyncio.Event)  # nothing is sent any more
    sent: int = 0
    spent: float = 0.0  # what the answers cost that came back
    _under_way: int = 0
    _dearest: float = 0.0
    _turn: float = 0.0
    _in_trouble: bool = False
    _resume: float = 0.0  # the end of the last pause
    _pauses: int = 0  # since the last answer
    _limited: float = 0.0  # when the first of them began
    _told: float = 0.0

    async def enter(self, request: Any) -> None:
        """Of the HTTP client before every request: wait for its turn, or raise Stopped or BudgetUsedUp."""
        if self.over.is_set():
            raise Stopped
        if self.max_requests is not None and self.sent >= self.max_requests:
            raise BudgetUsedUp(f"--max_requests: the {self.max_requests:,} requests are used up")
        if request.headers.get(ATTEMPT) == "2" and not self._in_trouble:
            self._in_trouble = True
            logger.warning(f"{request.url.host} gives no answer; it is asked again, up to {self.max_retries} times")
        self.sent += 1
        turn = 0.0
        while turn <= self._resume:  # again where a pause has begun meanwhile
            turn = max(time.monotonic(), self._turn, self._resume + 1e-6)
            self._turn = turn + (60 / self.requests_per_minute if self.requests_per_minute else 0)
            if (delay := turn - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.over.wait(), delay)
                    self.sent -= 1
                    raise Stopped
        request.extensions["sent"] = turn

    def pause(self, request: Any, said: tuple[float, str] | None, trouble: str) -> None:
        """The server refused ``request`` for its rate: nothing is sent for as long as it said, or longer each time.

        said: seconds, and in what words; None where it did not say. UserError where that is longer than PATIENCE, or
        no answer has come for so long.
        """
        now, host = time.monotonic(), request.url.host
        if not self._pauses:
            self._limited = now
        if not self._pauses or request.extensions["sent"] > self._resume:  # else on its way when the pause began
            self._pauses += 1
        seconds, words = said or (0.0, "")
        seconds = max(seconds, min(FIRST_PAUSE * 2.0 ** min(self._pauses - 1, 30), LONGEST_PAUSE))
        if seconds > PATIENCE:
            raise UserError(f"{host} wants to be left alone for longer ({words}; {trouble}); run the same command "
                            "then")
        if now - self._limited > PATIENCE:
            raise UserError(f"{host} has limited the rate for {PATIENCE / 60:.0f} minutes without an answer "
                            f"({trouble}); ask it less at a time (--workers, --requests_per_minute), or later")
        if now + seconds > self._resume and now - self._told > STATUS_SECONDS:
            self._told = now
            logger.warning(f"{host} limits the rate ({trouble}); all requests wait {seconds:.3g} s")
        self._resume = max(self._resume, now + seconds)

    def answered(self) -> None:
        self._pauses = 0

    @contextmanager
    def answer(self) -> Iterator[dict[str, int]]:
        """Around asking for one answer, whose tokens are put into what is yielded; BudgetUsedUp where it may be too
        dear: each one that is under way may come to cost as much as the dearest so far."""
        if self.max_cost is not None and self.spent + (self._under_way + 1) * self._dearest > self.max_cost:
            raise BudgetUsedUp(f"--max_cost: {self.spent:.4g} of {self.max_cost:g} are spent, and the next answers "
                               "could cost more than the rest")
        tokens: dict[str, int] = {}
        self._under_way += 1
        try:
            yield tokens
        finally:
            price = cost_of(tokens, self.prices or (0, 0))
            self._under_way -= 1
            self.spent += price
            self._dearest = max(self._dearest, price)
