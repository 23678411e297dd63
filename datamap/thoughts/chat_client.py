"""Questions to an OpenAI-compatible chat server: every answer is recorded as it comes, and none is asked for twice.

The openai client sends, waits and asks again (429, 408, 409, from 500 on, and where the connection fails), also as
long as a server's Retry-After says, up to two minutes. What it does not do stands here: records, budgets and the rate
over all requests.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from datamap.core.artifacts import check_writable
from datamap.core.errors import UserError, repeated
from datamap.thoughts.records import line_of, locked, prompt_key, read_records, rewrite

if TYPE_CHECKING:
    import openai

DEFAULT_URL = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"
ADDRESS = re.compile(r"https?://(\[[^]/]+\]|[^/:\s]+)(:[1-9]\d*)?(/\S*)?")
NO_KEY = "none"  # sent where there is no key: the library insists on one, a local server does not look at it
SECRET_LENGTH = 8  # characters from which on a key is a secret, not a stand-in such as "none" that texts may hold

TOKENS = ("prompt_tokens", "completion_tokens")
STATUS_SECONDS = 30.0  # between two status lines where there is no bar
FIRST_ANSWERS = 5  # of a call, which ``verify`` looks at
TEXT_PARTS = ("text", "output_text")  # of an answer in parts
# What servers call a refusal that lies in this one question: too long for the model, or its contents.
OF_THE_QUESTION = ("context_length_exceeded", "exceed_context_size_error", "content_filter")
TOO_LONG = "maximum context length"  # vLLM has no name for it
NO_COMPLETION = 599  # the status of a success that holds no completion, for the client to ask again
ATTEMPT = "x-stainless-retry-count"  # header of the client: how often it has asked before

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """``messages`` as the server wants them: ``[{"role": "user", "content": "..."}]``.

    about: what the record says of the question beside its id, such as the example that it is about.
    """

    id: str
    messages: Sequence[Mapping[str, Any]]
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """``parsed``: id -> what ``check`` made of the answer; ``failures``: id -> why there is none to be had.

    usage: ``requests`` sent for them, ``prompt_tokens`` and ``completion_tokens``, those of earlier runs included (of
    a failure that was asked for again the last time); None where no server said how many. records: id -> as recorded.
    """

    parsed: dict[str, Any]
    failures: dict[str, str]
    usage: dict[str, int | None]
    records: dict[str, dict[str, Any]]


Check = Callable[[Question, str], Any]


def ask_all(
    questions: Sequence[Question], path: str | Path, *, model: str, check: Check,
    parameters: Mapping[str, Any] | None = None, base_url: str | None = None, key_variable: str = KEY_VARIABLE,
    keep_parsed: bool = False, failures_path: str | Path | None = None,
    verify: Callable[[str], str | None] | None = None, workers: int = 4, requests_per_minute: float | None = None,
    max_requests: int | None = None, prices: tuple[float, float] | None = None, max_cost: float | None = None,
    max_retries: int = 5, timeout: float = 120.0, retry_failures: bool = False,
) -> Answers:
    """The answers to all questions; only those that ``path`` does not hold yet are asked for, and appended to it.

    path: JSON Lines, one record per answered question, known again by its id and by model, parameters and messages. A
    run may be stopped or killed at any moment and loses no more than the answers on their way.
    check: makes of a question's answer what is wanted, or raises ValueError; then the question is asked again up to
    ``max_retries`` times. Without success it is recorded as a failure and left alone unless ``retry_failures``.
    parameters: of the request, such as temperature. base_url: None for the library's default.
    keep_parsed: a record holds the mapping that ``check`` made of an answer, beside the raw text.
    failures_path: a file of their own for the failures, so that ``path`` holds usable answers only; what is asked for
    again is taken off it first. verify: says what is wrong with one of the first answers where that ends the run.
    requests_per_minute, max_requests: bounds on what this call sends, retries included; None for no bound.
    max_cost: bound on what its answers cost, in the currency of ``prices`` for a million prompt and a million
    completion tokens; before the first answer is there nobody knows what one costs, so the first ``workers`` requests
    may go beyond it. max_retries: also how often a request is repeated that got no answer. timeout: seconds without a
    sign of the server.

    Raises UserError for what a user can mend: a refused key, an unknown model, a server that cannot be reached, a
    used up budget. All that was answered by then is recorded, and the same call goes on from there. A question that
    gets no answer while others do is recorded as a failure.
    """
    path, parameters = Path(path), dict(parameters or {})
    failures_path = path if failures_path is None else Path(failures_path)
    keys = {question.id: prompt_key(model, parameters, question.messages) for question in questions}
    if twice := repeated(question.id for question in questions):
        raise ValueError(f"id {twice[0]!r} occurs twice")
    for each in (path, failures_path):
        check_writable(each.parent)
        each.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        for each in sorted({path, failures_path}):
            locks.enter_context(locked(each))
        records, outcomes = _recorded(path, failures_path, questions, keys, check, keep_parsed)
        missing = [
            question for question in questions
            if question.id not in outcomes or (retry_failures and outcomes[question.id][1] is not None)
        ]
        logger.info(f"{path}: {len(questions) - len(missing):,} of {len(questions):,} answers are there")
        if missing:
            if retry_failures and failures_path != path:
                again = {keys[question.id] for question in missing}
                rewrite(failures_path, lambda record: None if record["prompt"] in again else record)
            budget = Budget(requests_per_minute, max_requests, prices, max_cost, max_retries)
            client, key = connect(base_url, key_variable, timeout, budget)
            asker = _Asker(client, key, budget, model, parameters, check, keep_parsed, verify, key_variable)
            new = _run(_ask_missing(missing, keys, path, failures_path, asker, workers, len(questions)))
            records |= new
            outcomes |= {question.id: _outcome(new[question.id], question, check) for question in missing}
    usage = {name: total(records.values(), name) for name in ("requests", *TOKENS)}
    names = [question.id for question in questions]
    answers = Answers(
        {name: outcomes[name][0] for name in names if outcomes[name][1] is None},
        {name: failure for name in names if (failure := outcomes[name][1]) is not None},
        usage,
        {name: records[name] for name in names},
    )
    logger.info(
        f"{path}: {len(answers.parsed):,} answered, {len(answers.failures):,} without a usable answer; "
        + ", ".join(f"{'?' if count is None else format(count, ',')} {name}" for name, count in usage.items())
    )
    return answers


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run``, in a thread of its own where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def cost_of(tokens: Mapping[str, int | None], prices: tuple[float, float]) -> float:
    """What ``prompt_tokens`` and ``completion_tokens`` cost at prices per million; an unknown number costs nothing."""
    return sum((tokens.get(name) or 0) * price for name, price in zip(TOKENS, prices, strict=True)) / 1e6


# --- records -----------------------------------------------------------------------------------------------------


def _recorded(
    path: Path, failures_path: Path, questions: Sequence[Question], keys: Mapping[str, str], check: Check, keep: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[Any, str | None]]]:
    """What is there of earlier calls, by id: the records, and what today's check makes of them (``_outcome``).

    Records that say something else of their questions than is said today, such as a label that was corrected since,
    are written anew.
    """
    records = read_records(path, keys)
    outcomes, anew = {}, {}
    for question in questions:
        if record := records.get(question.id):
            parsed, failure = outcomes[question.id] = _outcome(record, question, check)
            said = {**question.about, **parsed} if keep and failure is None else {}
            if any(name not in record or record[name] != value for name, value in said.items()):
                anew[question.id, record["prompt"]] = records[question.id] = {**record, **said}
    if anew:
        logger.info(f"{path}: {len(anew):,} records say something else of their questions today, and are written anew")
        rewrite(path, lambda record: anew.get((record["id"], record["prompt"]), record))
    if failures_path != path:
        failed = {name: each for name, each in read_records(failures_path, keys).items() if name not in records}
        outcomes |= {name: (None, str(record["failure"])) for name, record in failed.items()}
        records |= failed
    return records, outcomes


def _outcome(record: Mapping[str, Any], question: Question, check: Check) -> tuple[Any, str | None]:
    """What ``check`` makes of a recorded answer, or why there is none.

    Not the verdict of then: an answer that today's ``check`` can read need not be paid for again.
    """
    if record["text"] is None:
        return None, str(record.get("failure"))
    try:
        return check(question, record["text"]), None
    except ValueError as error:
        return None, record.get("failure") or str(error)


def total(records: Iterable[Mapping[str, Any]], name: str) -> int | None:
    """Of what is known; None where nothing is."""
    known = [record[name] for record in records if record.get(name) is not None]
    return sum(known) if known else None


# --- budgets and the rate ----------------------------------------------------------------------------------------


class Stopped(BaseException):
    """The run has ended elsewhere; nothing is wrong with this question.

    Like the one below no Exception, which older clients take for a failed connection, and ask again.
    """


class BudgetUsedUp(BaseException):
    """The message says which budget."""


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
        turn = max(time.monotonic(), self._turn)
        self._turn = turn + (60 / self.requests_per_minute if self.requests_per_minute else 0)
        if (delay := turn - time.monotonic()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), delay)
                self.sent -= 1
                raise Stopped

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


# --- asking ------------------------------------------------------------------------------------------------------


async def _ask_missing(
    questions: Sequence[Question], keys: Mapping[str, str], path: Path, failures_path: Path, asker: _Asker,
    workers: int, total: int,
) -> dict[str, dict[str, Any]]:
    """Ask ``workers`` questions at a time and append every record to its file at once; the records by id.

    The first error, and Ctrl-C, end it: nothing more is sent, and what was sent is waited for. A second Ctrl-C, which
    asyncio raises by itself, leaves at once.
    """
    from tqdm.auto import tqdm

    budget, pending = asker.budget, iter(questions)
    new: dict[str, dict[str, Any]] = {}
    counts = {"failed": 0, "requests": 0, "tokens": 0}
    reported, used_up = time.monotonic(), list[BudgetUsedUp]()

    def keep(question: Question, record: dict[str, Any]) -> None:
        nonlocal reported
        # Redacted once more, for an answer may spell the key with escapes that are only read as such now.
        line = asker.redact(line_of(record).decode()).encode()
        new[question.id] = record = json.loads(line)
        target = file if record["failure"] is None else failures_file
        target.write(line)
        target.flush()  # from here on the answer outlives this process
        counts["failed"] += record["failure"] is not None
        counts["requests"] = budget.sent
        counts["tokens"] += sum(record[name] or 0 for name in TOKENS)
        shown = {**counts, **({"cost": f"{budget.spent:.4f}"} if budget.prices else {})}
        bar.update()
        bar.set_postfix(shown, refresh=False)
        if bar.disable and time.monotonic() - reported > STATUS_SECONDS:
            reported = time.monotonic()
            logger.info(f"{total - len(questions) + len(new):,} of {total:,} answers are there; "
                        + ", ".join(f"{name} {value}" for name, value in shown.items()))

    async def work() -> None:
        try:
            for question in pending:
                keep(question, await asker.ask(question, keys[question.id]))
        except Stopped:
            pass
        except BudgetUsedUp as error:  # others still have requests to send that were counted
            used_up.append(error)

    bar = tqdm(total=total, initial=total - len(questions), desc=f"asking {asker.model}", unit="answer", disable=None)
    with bar, path.open("ab") as file, failures_path.open("ab") as failures_file:
        async with asker.client:
            tasks = [asyncio.create_task(work()) for _ in range(min(workers, len(questions)))]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            except asyncio.CancelledError:  # Ctrl-C
                logger.warning("waiting for the answers on their way; Ctrl-C again leaves them")
                raise
            finally:
                budget.over.set()
                await asyncio.wait(tasks)
    ends = [error for task in tasks if (error := task.exception())] or used_up
    if ends and not isinstance(ends[0], UserError | BudgetUsedUp):
        raise ends[0]
    if ends:
        missing = len(questions) - len(new)
        raise UserError(
            f"{ends[0]}; {total - missing:,} of {total:,} questions are answered and recorded in {path}, {missing:,} "
            "are missing: the same command goes on from there" + ", with a new budget" * (ends is used_up)
        )
    return new


class _Refused(Exception):
    """The server will not answer this question, and does answer others."""


@dataclass
class _Asker:
    """One question at a time until it is answered or is known to stay without an answer."""

    client: openai.AsyncOpenAI
    key: str
    budget: Budget
    model: str
    parameters: dict[str, Any]
    check: Check
    keep_parsed: bool
    verify: Callable[[str], str | None] | None
    key_variable: str
    answered: int = 0  # requests so far

    def redact(self, text: str) -> str:
        return text.replace(self.key, "[key]") if len(self.key) >= SECRET_LENGTH else text

    async def ask(self, question: Question, prompt: str) -> dict[str, Any]:
        """The record of a question. prompt: its key."""
        cost: Counter[str] = Counter()
        parsed: Any = None
        text, finish, failure = None, None, None
        try:
            for _ in range(self.budget.max_retries + 1):
                text, finish = await self._send(question, cost)
                if text is None:
                    failure = f"an answer without text ({finish})"
                    continue
                # Half a surrogate pair can be sent in JSON, but not be written to a file.
                text = self.redact(text.encode("utf-8", "replace").decode("utf-8"))
                if self.verify and self.answered <= FIRST_ANSWERS and finish != "length":
                    if trouble := self.verify(text):
                        raise UserError(f"{self.client.base_url} {trouble}")
                try:
                    parsed = self.check(question, text)
                except ValueError as error:
                    failure = f"{error}" + " (the answer was cut off at its longest)" * (finish == "length")
                else:
                    failure = None
                    break
        except _Refused as error:
            text, finish, failure = None, None, str(error)
        kept = parsed if self.keep_parsed and failure is None else {}
        return {"id": question.id, **question.about, **kept, "prompt": prompt, "model": self.model, "text": text,
                "failure": failure, "finish_reason": finish, "requests": cost["requests"],
                **{name: cost.get(name) for name in TOKENS}}

    async def _send(self, question: Question, cost: Counter[str]) -> tuple[str | None, str | None]:
        """Text and finish reason of the server's answer, whatever it says."""
        import openai

        answered = self.answered
        try:
            with self.budget.answer() as tokens:
                reply = await self.client.chat.completions.with_raw_response.create(
                    model=self.model, messages=list(question.messages), extra_body=self.parameters  # type: ignore
                )
                text, finish, used = contents(reply.http_response.json())
                tokens |= used
            if self.budget.max_cost is not None and len(tokens) < len(TOKENS):
                raise UserError(f"{self.client.base_url} does not say how many tokens an answer took, so --max_cost "
                                "cannot be kept; leave it out, or set --max_requests")
            cost.update(tokens, requests=reply.retries_taken + 1)
            self.answered += 1
            return text, finish
        except openai.APIError as error:
            caught = error
        # Out of that block: no traceback of ours shall go on with an error that may hold the key.
        attempts = int(caught.request.headers.get(ATTEMPT, 0)) + 1
        cost.update(requests=attempts)
        raise self._meaning(caught, question, attempts, self.answered > answered)

    def _meaning(
        self, error: openai.APIError, question: Question, attempts: int, others: bool
    ) -> UserError | _Refused:
        """What an error of the client means: _Refused where it lies in the question, else UserError. others: were
        answered meanwhile."""
        import openai

        url, trouble = self.client.base_url, self._line(error, error.__cause__)
        if isinstance(error, openai.APIStatusError):
            status = error.status_code
            if status == NO_COMPLETION:
                trouble = self._line("no chat completion:", error.response.text)
            else:
                said = isinstance(error.body, Mapping) and isinstance(error.body.get("message"), str)
                trouble = self._line(error.message, "" if said else error.body)
            if error.code == "insufficient_quota":
                return UserError(f"{url} says that the account has no credit left ({trouble}); top it up")
            if status not in (408, 409, 429) and status < 500:
                return self._refusal(error, trouble, question)
            if attempts <= self.budget.max_retries:
                wait = self._line(error.response.headers.get("retry-after", "not to be asked again"))
                return UserError(f"{url} wants to be left alone for longer (Retry-After: {wait}; {trouble}); run the "
                                 "same command then")
        if others:
            return _Refused(f"no answer in {attempts} attempts (at last: {trouble})")
        return UserError(
            f"{url} gave no answer to {question.id!r} in {attempts} attempts (at last: {trouble}); expected a running "
            "chat server with that --base_url: start it, or ask it less at a time"
        )

    def _refusal(self, error: openai.APIStatusError, trouble: str, question: Question) -> UserError | _Refused:
        """Of an error that no waiting mends."""
        status = error.status_code
        if error.code in OF_THE_QUESTION or error.type in OF_THE_QUESTION or TOO_LONG in trouble:
            return _Refused(trouble)
        if status in (401, 403):
            mend = (f"refuses the key ({trouble}); expected one that is valid there in the environment variable "
                    f"{self.key_variable}, which is {'' if self.key else 'not '}set")
        elif "response_format" in self.parameters and ("response_format" in trouble or "json_schema" in trouble):
            mend = f"refuses the --response_format ({trouble}); try json_object or none"
        elif status == 404:
            mend = (f"knows nothing of the kind ({trouble}); expected a model that it serves (found {self.model!r}), "
                    "and a --base_url that ends before chat/completions, most often in /v1")
        elif status < 400:
            target = self._line(error.response.headers.get("location"))
            mend = f"sends elsewhere ({status} to {target}); name the place itself as --base_url"
        else:
            mend = (f"refuses the request for {question.id!r} ({trouble}); expected one that it takes: see to the "
                    f"model {self.model!r}, the parameters {json.dumps(self.parameters)} and that example")
        return UserError(f"{self.client.base_url} {mend}")

    def _line(self, *parts: Any) -> str:
        """What a server or the library says, in one line without the key."""
        return f"{' '.join(self.redact(' '.join(str(part) for part in parts if part)).split()):.300}"


async def _mark_no_completion(response: Any) -> None:
    """Of the HTTP client after every response: to the openai client any success is an answer."""
    if response.is_success:
        await response.aread()
        try:
            contents(response.json())
        except ValueError:
            response.status_code = NO_COMPLETION


def contents(completion: Any) -> tuple[str | None, str | None, dict[str, int]]:
    """Text, finish reason, and the numbers of tokens as far as the server tells them; ValueError for anything else
    than a completion."""
    try:
        choice, usage = completion["choices"][0], completion.get("usage") or {}
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        if isinstance(text, list):  # of parts, some of which may be text; others may be reasoning, with a text too
            text = "".join(part["text"] for part in text
                           if part.get("type", "text") in TEXT_PARTS and isinstance(part.get("text"), str))
        counts = {name: usage[name] for name in TOKENS if isinstance(usage.get(name), int)}
    except (AttributeError, LookupError, TypeError):
        raise ValueError("no completion") from None
    if not isinstance(text, str | None):
        raise ValueError("no text")
    return text, finish, counts


def connect(base_url: str | None, key_variable: str, timeout: float, budget: Budget) -> tuple[openai.AsyncOpenAI, str]:
    """A client of the server whose requests pass the budget, and the key, "" where there is none."""
    url = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
    if "@" in url or "?" in url:  # a user, a password: it would be told in messages and files
        raise UserError("--base_url holds a user, a password or a query; expected the address alone: the key belongs "
                        "into an environment variable")
    if not ADDRESS.fullmatch(url):
        raise UserError(f"--base_url {url}: expected the address of a server, such as http://localhost:8000/v1")
    key = os.environ.get(key_variable, "").strip()
    if not key and (key_variable != KEY_VARIABLE or url == DEFAULT_URL):
        raise UserError(
            f"the environment variable {key_variable} is not set; {url} needs a key: export {key_variable}=..., or "
            "name a local server with --base_url"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the environment variable {key_variable} holds characters that no key has; set it anew")
    import openai

    hooks: Any = {"request": [budget.enter], "response": [_mark_no_completion]}
    # No redirects: they would go uncounted, and take the key along.
    http = openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=timeout, event_hooks=hooks)
    client = openai.AsyncOpenAI(
        api_key=key or NO_KEY, base_url=url, max_retries=budget.max_retries, timeout=timeout, http_client=http
    )
    return client, key
