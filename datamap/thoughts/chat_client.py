"""Questions to an OpenAI-compatible chat server: every answer is recorded as it comes, and none is asked for twice.

The openai client sends, waits and asks again (408, 409, from 500 on, and where the connection fails), also as long as
a server's Retry-After says, up to two minutes. What it does not do stands here: records, what a refusal means
(chat_errors.py), and budgets and the rate over all requests (chat_pace.py).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from datamap.core.artifacts import check_writable
from datamap.core.errors import UserError, first_line, repeated
from datamap.core.progress import Progress
from datamap.thoughts.chat_errors import (
    INSTEAD,
    is_no_credit,
    is_of_the_question,
    may_be_of_the_question,
    parameter_not_taken,
    wait_said,
)
from datamap.thoughts.chat_pace import ATTEMPT, TOKENS, Budget, BudgetUsedUp, Stopped
from datamap.thoughts.records import append, line_of, locked, prompt_key, read_records, rewrite

if TYPE_CHECKING:
    import openai

DEFAULT_URL = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"
ADDRESS = re.compile(r"https?://(\[[^]/]+\]|[^/:\s]+)(?P<port>:[1-9]\d*)?(/\S*)?")
NO_KEY = "none"  # sent where there is no key: the library insists on one, a local server does not look at it
SECRET_LENGTH = 8  # characters from which on a key is a secret, not a stand-in such as "none" that texts may hold

FIRST_ANSWERS = 5  # of a call, which ``verify`` looks at
TEXT_PARTS = ("text", "output_text")  # of an answer in parts
AGAIN = 0.7  # temperature at which an unreadable answer is asked for again: at 0 it would only be given once more
IN_A_ROW = 20  # questions refused without an answer in between: then it is not the questions
NO_COMPLETION = 599  # the status of a success that holds no completion, for the client to ask again
# What decides about connections beside --base_url.
ENVIRONMENT = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
HEADERS = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS")

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
    ``max_retries`` times, at a temperature of AGAIN where it was 0. Without success it is recorded as a failure and
    left alone unless ``retry_failures``. So is a question that the server refuses, while it answers others.
    parameters: of the request, such as temperature. What a model does not take is left out or sent by its other name,
    with a warning; a record tells where it was asked with others (``changed_parameters``; None: left out). base_url:
    None for the library's default.
    keep_parsed: a record holds the mapping that ``check`` made of an answer, beside the raw text.
    failures_path: a file of their own for the failures, so that ``path`` holds usable answers only; what is asked for
    again is taken off it first. verify: says what is wrong with one of the first answers where that ends the run.
    requests_per_minute, max_requests: bounds on what this call sends, retries included; None for no bound.
    max_cost: bound on what its answers cost, in the currency of ``prices`` for a million prompt and a million
    completion tokens; before the first answer is there nobody knows what one costs, so the first ``workers`` requests
    may go beyond it. max_retries: also how often a request is repeated that got no answer; not for the rate, where
    all requests wait as long as the server says. timeout: seconds without a sign of the server.

    Raises UserError for what a user can mend: a refused key, an unknown model, a server that cannot be reached, a
    used up budget, a full disk. All that was answered by then is recorded, and the same call goes on from there. A
    question that gets no answer while others do is recorded as a failure.
    """
    path, parameters = Path(path), dict(parameters or {})
    failures_path = path if failures_path is None else Path(failures_path)
    keys = {question.id: prompt_key(model, parameters, question.messages) for question in questions}
    if twice := repeated(question.id for question in questions):
        raise ValueError(f"id {twice[0]!r} occurs twice")
    for each in (path, failures_path):
        check_writable(each.parent)
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
            known = any(record["text"] is not None for record in records.values())
            new = _run(_ask_missing(missing, keys, path, failures_path, asker, workers, len(questions), known))
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


# --- asking ------------------------------------------------------------------------------------------------------


class _InDoubt(NamedTuple):
    """A question that was refused at a time (monotonic): its record if the server answers others, else the error."""

    refused: float
    question: Question
    record: dict[str, Any]
    error: UserError


async def _ask_missing(
    questions: Sequence[Question], keys: Mapping[str, str], path: Path, failures_path: Path, asker: _Asker,
    workers: int, total: int, answered_before: bool,
) -> dict[str, dict[str, Any]]:
    """Ask ``workers`` questions at a time and append every record to its file at once; the records by id.

    The first error, and Ctrl-C, end it: nothing more is sent, and what was sent is waited for. A second Ctrl-C, which
    asyncio raises by itself, leaves at once.
    """
    budget, pending = asker.budget, iter(questions)
    new: dict[str, dict[str, Any]] = {}
    counts = {"failed": 0, "tokens": 0}
    used_up, in_doubt = list[BudgetUsedUp](), list[_InDoubt]()

    def keep(question: Question, record: dict[str, Any]) -> None:
        # Redacted once more, for an answer may spell the key with escapes that are only read as such now.
        line = asker.redact(line_of(record).decode()).encode()
        append(file if record["failure"] is None else failures_file, line)  # from here on it outlives this process
        new[question.id] = record = json.loads(line)
        counts["failed"] += record["failure"] is not None
        counts["tokens"] += sum(record[name] or 0 for name in TOKENS)
        progress.advance()

    def shown() -> str:
        cost = f", cost {budget.spent:.4f}" if budget.prices else ""
        return f"failed {counts['failed']}, requests {budget.sent}, tokens {counts['tokens']}{cost}"

    async def work() -> None:
        try:
            for question in pending:
                began = time.monotonic()
                record, error = await asker.ask(question, keys[question.id])
                if error is not None:
                    in_doubt.append(_InDoubt(time.monotonic(), question, record, error))
                    if len(in_doubt) >= IN_A_ROW:
                        raise error
                    continue
                keep(question, record)
                if record["text"] is not None:  # so it was the questions before it that were refused
                    for each in [each for each in in_doubt if each.refused < began]:
                        in_doubt.remove(each)
                        keep(each.question, each.record)
        except Stopped:
            pass
        except BudgetUsedUp as error:  # others still have requests to send that were counted
            used_up.append(error)

    progress = Progress(f"asking {asker.model}", total, "answers", done=total - len(questions), note=shown)
    with progress, path.open("ab", buffering=0) as file, failures_path.open("ab", buffering=0) as failures_file:
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
        ends: list[BaseException] = [error for task in tasks if (error := task.exception())]
        if not ends and (asker.answered or answered_before):
            for each in in_doubt:
                keep(each.question, each.record)
        ends = ends or ([] if asker.answered or answered_before else [each.error for each in in_doubt]) or [*used_up]
    if ends and not isinstance(ends[0], UserError | BudgetUsedUp):
        raise ends[0]
    if ends:
        missing = len(questions) - len(new)
        raise UserError(
            f"{ends[0]}; {total - missing:,} of {total:,} questions are answered and recorded in {path}, {missing:,} "
            "are missing: the same command goes on from there"
            + ", with a new budget" * isinstance(ends[0], BudgetUsedUp)
        )
    return new


class _Refused(Exception):
    """The server will not answer this question, and does answer others.

    otherwise: what it means where no other question is answered; None where the server leaves no doubt.
    """

    def __init__(self, reason: str, otherwise: UserError | None = None):
        super().__init__(reason)
        self.otherwise = otherwise


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

    def __post_init__(self) -> None:
        self.taken = dict(self.parameters)  # as the model takes them

    def redact(self, text: str) -> str:
        return text.replace(self.key, "[key]") if len(self.key) >= SECRET_LENGTH else text

    async def ask(self, question: Question, prompt: str) -> tuple[dict[str, Any], UserError | None]:
        """The record of a question, and what is wrong if the server answers no other. prompt: its key."""
        cost: Counter[str] = Counter()
        parsed: Any = None
        text, finish, failure, otherwise, sent = None, None, None, None, self.parameters
        try:
            for turn in range(self.budget.max_retries + 1):
                text, finish, sent = await self._send(question, cost, again=turn > 0)
                if text is None:
                    failure = f"an answer without text ({finish})"
                    if finish == "content_filter":  # it would not pass another time
                        break
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
            text, finish, failure, otherwise = None, None, str(error), error.otherwise
        kept = parsed if self.keep_parsed and failure is None else {}
        changed = {name: sent.get(name) for name in {**self.parameters, **sent}
                   if sent.get(name) != self.parameters.get(name)}
        return {"id": question.id, **question.about, **kept, "prompt": prompt, "model": self.model, "text": text,
                "failure": failure, "finish_reason": finish, "requests": cost["requests"],
                **{name: cost.get(name) for name in TOKENS},
                **({"changed_parameters": changed} if changed else {})}, otherwise

    async def _send(
        self, question: Question, cost: Counter[str], again: bool
    ) -> tuple[str | None, str | None, dict[str, Any]]:
        """Text and finish reason of the server's answer, whatever it says, and the parameters it was asked with.

        again: it has been answered before, in a way that is of no use.
        """
        import openai

        while True:
            answered, sent = self.answered, dict(self.taken)
            if again and sent.get("temperature") == 0:
                sent["temperature"] = AGAIN
            try:
                with self.budget.answer() as tokens:
                    reply = await self.client.chat.completions.with_raw_response.create(
                        model=self.model, messages=list(question.messages), extra_body=sent  # type: ignore
                    )
                    text, finish, used = contents(reply.http_response.json())
                    tokens |= used
                if self.budget.max_cost is not None and len(tokens) < len(TOKENS):
                    raise UserError(f"{self.client.base_url} does not say how many tokens an answer took, so "
                                    "--max_cost cannot be kept; leave it out, or set --max_requests")
                cost.update(tokens, requests=reply.retries_taken + 1)
                self.answered += 1
                self.budget.answered()
                return text, finish, sent
            except openai.APIError as error:
                caught = error
            # Out of that block: no traceback of ours shall go on with an error that may hold the key.
            attempts = int(caught.request.headers.get(ATTEMPT, 0)) + 1
            cost.update(requests=attempts)
            if isinstance(caught, openai.APIStatusError) and (self._leave_out(caught, sent) or self._pause(caught)):
                continue
            raise self._meaning(caught, question, attempts, self.answered > answered)

    def _leave_out(self, error: openai.APIStatusError, sent: Mapping[str, Any]) -> bool:
        """Whether the model refuses a parameter that it need not be sent; from now on it is not."""
        name = parameter_not_taken(error, sent)
        if name in self.taken:  # else the refusal of another request has said so before
            value, instead = self.taken.pop(name), INSTEAD[name]
            if instead:
                self.taken[instead] = value
            done = f"{instead} is sent in its place" if instead else f"it is left out ({value} was asked for)"
            logger.warning(f"{self.model} does not take {name}; {done}")
        return name is not None

    def _pause(self, error: openai.APIStatusError) -> bool:
        """Whether this is the rate alone, which passes: then all requests wait."""
        if error.status_code != 429 or is_no_credit(error) or is_of_the_question(error):
            return False
        said = wait_said(error.response.headers)
        self.budget.pause(error.request, said and (said[0], self._line(said[1])), self._said(error))
        return True

    def _said(self, error: openai.APIStatusError) -> str:
        if error.status_code == NO_COMPLETION:
            return self._line("no chat completion:", error.response.text)
        said = isinstance(error.body, Mapping) and isinstance(error.body.get("message"), str)
        return self._line(error.message, "" if said else error.body)

    def _meaning(
        self, error: openai.APIError, question: Question, attempts: int, others: bool
    ) -> UserError | _Refused:
        """What an error of the client means: _Refused where it lies in the question, else UserError. others: were
        answered meanwhile."""
        import openai

        url, trouble = self.client.base_url, self._line(error, error.__cause__)
        if isinstance(error, openai.APIStatusError):
            status, trouble = error.status_code, self._said(error)
            if is_no_credit(error):
                return UserError(f"{url} says that the account has no credit left ({trouble}); top it up")
            if status != 401 and is_of_the_question(error):
                return _Refused(trouble)
            if status not in (408, 409) and status < 500:
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
        status, doubtful = error.status_code, may_be_of_the_question(error)
        if status in (401, 403):
            mend = (f"refuses the key ({trouble}); expected one that is valid there in the environment variable "
                    f"{self.key_variable}, which is {'' if self.key else 'not '}set")
        elif "response_format" in self.parameters and ("response_format" in trouble or "json_schema" in trouble):
            mend, doubtful = f"refuses the --response_format ({trouble}); try json_object or none", False
        elif status == 404:
            mend = (f"knows nothing of the kind ({trouble}); expected a model that it serves (found {self.model!r}), "
                    "and a --base_url that ends before chat/completions, most often in /v1")
        elif status < 400:
            target = self._line(error.response.headers.get("location"))
            mend = f"sends elsewhere ({status} to {target}); name the place itself as --base_url"
        else:
            mend = (f"refuses the request for {question.id!r} ({trouble}); expected one that it takes: see to the "
                    f"model {self.model!r}, the parameters {json.dumps(self.taken)} and that example")
        refused = UserError(f"{self.client.base_url} {mend}")
        return _Refused(trouble, refused) if doubtful else refused

    def _line(self, *parts: Any) -> str:
        """What a server or the library says, in one line without the key."""
        return f"{' '.join(self.redact(' '.join(str(part) for part in parts if part)).split()):.300}"


async def _before_the_client(response: Any) -> None:
    """Of the HTTP client after every response. To the openai client any success is an answer; some are none, and some
    servers put an error into one. And it would let each request wait for itself where the rate is limited."""
    if response.is_success:
        await response.aread()
        completion: Any = None
        try:
            completion = response.json()
            contents(completion)
        except ValueError:
            error = completion.get("error") if isinstance(completion, dict) else None
            code = error.get("code") if isinstance(error, dict) else None
            response.status_code = code if isinstance(code, int) and 400 <= code < 600 else NO_COMPLETION
    if response.status_code == 429:
        response.headers["x-should-retry"] = "false"


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


def server_address(base_url: str | None) -> str:
    """Where to ask; UserError for what is no address, before anything is written."""
    url = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
    if "@" in url or "?" in url:  # a user, a password: it would be told in messages and files
        raise UserError("--base_url holds a user, a password or a query; expected the address alone: the key belongs "
                        "into an environment variable")
    found = ADDRESS.fullmatch(url)
    if not found or int((found["port"] or ":0")[1:]) > 65535:
        raise UserError(f"--base_url {url}: expected the address of a server, such as http://localhost:8000/v1")
    return url


def connect(base_url: str | None, key_variable: str, timeout: float, budget: Budget) -> tuple[openai.AsyncOpenAI, str]:
    """A client of the server whose requests pass the budget, and the key, "" where there is none."""
    url = server_address(base_url)
    key = os.environ.get(key_variable, "").strip()
    if not key and (key_variable != KEY_VARIABLE or url == DEFAULT_URL):
        raise UserError(
            f"the environment variable {key_variable} is not set; {url} needs a key: export {key_variable}=..., or "
            "name a local server with --base_url"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the environment variable {key_variable} holds characters that no key has; set it anew")
    import openai

    hooks: Any = {"request": [budget.enter], "response": [_before_the_client]}
    try:
        # No redirects: they would go uncounted, and take the key along.
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=timeout, event_hooks=hooks)
        client = openai.AsyncOpenAI(
            api_key=key or NO_KEY, base_url=url, max_retries=budget.max_retries, timeout=timeout, http_client=http
        )
    except Exception as error:  # of several libraries; nothing of ours is done here
        given = [name for name in os.environ if name.upper() in ENVIRONMENT]
        by = f", or {', '.join(given)} in the environment, which may hold a proxy or certificates" if given else ""
        raise UserError(f"no connection to {url} can be set up ({first_line(error)}); mend --base_url{by}") from error
    if wrong := [name for name in HEADERS if not os.environ.get(name, "").isascii()]:
        raise UserError(f"the environment variable {wrong[0]} holds characters that cannot be sent; set it anew")
    return client, key
