"""Questions to an OpenAI-compatible chat server: every answer is recorded as it comes, and none is asked for twice."""

from __future__ import annotations

import email.utils
import functools
import hashlib
import json
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from artifacts import check_writable
from helpers import UserError

if TYPE_CHECKING:
    import openai

DEFAULT_URL = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"
NO_KEY = "none"  # sent where there is no key: the library insists on one, a local server does not look at it
SECRET_LENGTH = 8  # characters from which on a key is a secret, not a stand-in such as "none" that texts may hold

FIRST_DELAY, LONGEST_DELAY = 2.0, 60.0  # seconds before the first retry; it doubles with each further one
LONGEST_WAIT = 600.0  # seconds that a server may ask to be left alone before the run ends instead
RETRIED = (408, 409, 429)  # and all from 500 on
# What servers call a refusal that lies in this one question: too long for the model, or its contents.
OF_THE_QUESTION = ("context_length_exceeded", "exceed_context_size_error", "content_filter")
TOO_LONG = "maximum context length"  # vLLM has no name for it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """``messages`` as the server wants them: ``[{"role": "user", "content": "..."}]``."""

    id: str
    messages: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Answers:
    """``parsed``: id -> what ``check`` made of the answer; ``failures``: id -> why there is none to be had.

    usage: ``requests`` sent for them, ``prompt_tokens`` and ``completion_tokens``, those of earlier runs included (of
    a failure that was asked for again the last time); None where no server said how many.
    """

    parsed: dict[str, Any]
    failures: dict[str, str]
    usage: dict[str, int | None]


def ask_all(
    questions: Sequence[Question],
    path: str | Path,
    *,
    model: str,
    parameters: Mapping[str, Any] | None = None,
    base_url: str | None = None,
    key_variable: str = KEY_VARIABLE,
    check: Callable[[str], Any] = str,
    workers: int = 4,
    requests_per_minute: float | None = None,
    max_requests: int | None = None,
    max_retries: int = 5,
    timeout: float = 120.0,
    retry_failures: bool = False,
) -> Answers:
    """The answers to all questions; only those that ``path`` does not hold yet are asked for, and appended to it.

    path: JSON Lines, one record per answered question, known again by its id and by model, parameters and messages. A
    run may be stopped or killed at any moment and loses no more than the answers on their way.
    parameters: of the request, such as temperature. base_url: None for the library's default.
    check: makes of an answer what is wanted, or raises ValueError; then the question is asked again up to
    ``max_retries`` times. Without success it is recorded as a failure and left alone unless ``retry_failures``.
    requests_per_minute, max_requests: bounds on what this call sends, retries included; None for no bound.
    max_retries: also how often a request is repeated that got no answer. timeout: seconds without a sign of the
    server.

    Raises UserError for what a user can mend: a refused key, an unknown model, a server that cannot be reached, a
    used up ``max_requests``. All that was answered by then is recorded, and the same call goes on from there.
    """
    path, parameters = Path(path), dict(parameters or {})
    keys = {question.id: prompt_key(model, parameters, question.messages) for question in questions}
    if len(keys) < len(questions):
        repeated = next(name for name, count in Counter(question.id for question in questions).items() if count > 1)
        raise ValueError(f"id {repeated!r} occurs twice")
    check_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(path.name + ".lock"), timeout=0):
            records = read_records(path, keys)
            outcomes = {name: _outcome(record, check) for name, record in records.items()}
            missing = [
                question for question in questions
                if question.id not in outcomes or (retry_failures and outcomes[question.id][1] is not None)
            ]  # fmt: skip
            logger.info(f"{path}: {len(questions) - len(missing):,} of {len(questions):,} answers are there")
            if missing:
                gate = _Gate(requests_per_minute, max_requests)
                client, redact = connect(base_url, key_variable, timeout)
                with client:
                    asker = _Asker(client, redact, gate, model, parameters, check, max_retries, key_variable)
                    new = _ask_missing(missing, keys, path, asker, workers, len(questions))
                records |= new
                outcomes |= {name: _outcome(record, check) for name, record in new.items()}
    except Timeout:
        raise UserError(f"{path}: another process is asking; wait until it is through, or name another file") from None
    usage = {name: _total(records.values(), name) for name in ("requests", "prompt_tokens", "completion_tokens")}
    ordered = [(question.id, *outcomes[question.id]) for question in questions]
    answers = Answers(
        {name: parsed for name, parsed, failure in ordered if failure is None},
        {name: failure for name, _, failure in ordered if failure is not None},
        usage,
    )
    logger.info(
        f"{path}: {len(answers.parsed):,} answered, {len(answers.failures):,} without a usable answer; "
        + ", ".join(f"{'?' if count is None else format(count, ',')} {name}" for name, count in usage.items())
    )
    return answers


def prompt_key(model: str, parameters: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> str:
    """32 hex digits over all that an answer depends on."""
    prompt = json.dumps([model, parameters, list(messages)], sort_keys=True, allow_nan=False)
    return hashlib.blake2b(prompt.encode(), digest_size=16).hexdigest()


# --- records -----------------------------------------------------------------------------------------------------


def read_records(path: Path, keys: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The records in ``path`` that answer the prompt in ``keys`` (id -> prompt key), the last where there are several.

    A last line that was cut off in mid-write is taken off the file; UserError for any other damaged line.
    """
    records: dict[str, dict[str, Any]] = {}
    if not path.exists():
        return records
    with path.open("r+b") as file:
        end = 0
        for number, line in enumerate(file, 1):
            try:
                record = _record(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    logger.warning(f"{path}, line {number}, was cut off in mid-write; it is taken off")
                    file.truncate(end)
                    break
                raise UserError(
                    f"{path}, line {number}: damaged ({error}); expected a recorded answer: delete that line (its "
                    "question is asked again), or name another file"
                ) from error
            end += len(line)
            if keys.get(record["id"]) == record["prompt"]:
                records[record["id"]] = record
            if not line.endswith(b"\n"):  # whole, but the next record would land in the same line
                file.seek(end)
                file.write(b"\n")
    return records


def _record(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in ("id", "prompt")):
        raise ValueError("no object with id and prompt")
    if "text" not in record or not isinstance(record["text"], str | None):
        raise ValueError("no text")
    return record


def _outcome(record: Mapping[str, Any], check: Callable[[str], Any]) -> tuple[Any, str | None]:
    """What ``check`` makes of a recorded answer, or why there is none.

    Not the verdict of then: an answer that today's ``check`` can read need not be paid for again.
    """
    if record["text"] is None:
        return None, str(record.get("failure"))
    try:
        return check(record["text"]), None
    except ValueError as error:
        return None, record.get("failure") or str(error)


def _total(records: Iterable[Mapping[str, Any]], name: str) -> int | None:
    known = [record[name] for record in records if record.get(name) is not None]
    return sum(known) if known else None


# --- threads -----------------------------------------------------------------------------------------------------


def _ask_missing(
    questions: Sequence[Question], keys: Mapping[str, str], path: Path, asker: _Asker, workers: int, total: int
) -> dict[str, dict[str, Any]]:
    """Ask in ``workers`` threads and append every record to ``path`` at once; the records by id."""
    from tqdm.auto import tqdm

    new: dict[str, dict[str, Any]] = {}
    failed, turn = 0, threading.Lock()
    bar = tqdm(total=total, initial=total - len(questions), desc=f"asking {asker.model}", unit="answer", disable=None)
    with bar, path.open("ab") as file:

        def act(question: Question) -> None:
            nonlocal failed
            record = asker.ask(question, keys[question.id])
            line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
            with turn:
                file.write(line)
                file.flush()  # from here on the answer outlives this process
                new[question.id] = record
                failed += record["failure"] is not None
                bar.update()
                bar.set_postfix(failed=failed, requests=asker.gate.sent, refresh=False)

        try:
            _in_threads(act, questions, min(workers, len(questions)), asker.gate)
        except _BudgetUsedUp:
            missing = len(questions) - len(new)
            raise UserError(
                f"--max_requests: the {asker.gate.budget:,} requests are used up; {total - missing:,} of {total:,} "
                f"questions are answered and recorded in {path}, {missing:,} are missing: the same command goes on "
                "from there, further with a larger --max_requests"
            ) from None
        except UserError as error:
            done = total - len(questions) + len(new)
            raise UserError(
                f"{error}; {done:,} of {total:,} questions are answered and recorded, the same command goes on there"
            ) from error
    return new


def _in_threads(act: Callable[[Question], None], questions: Iterable[Question], workers: int, gate: _Gate) -> None:
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
        except _Stopped:
            pass
        except _BudgetUsedUp as error:  # other threads still have requests to send that were counted
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
        raise next((error for error in errors if not isinstance(error, _BudgetUsedUp)), errors[0])


# --- asking ------------------------------------------------------------------------------------------------------


class _Stopped(Exception):
    """The run has ended elsewhere; nothing is wrong with this question."""


class _BudgetUsedUp(Exception):
    pass


class _Refused(Exception):
    """The server will not answer this question, and does answer others."""


class _NoCompletion(Exception):
    """The server sent something else."""


class _Gate:
    """Every request passes here before it is sent, and is counted: the rate, the budget, pauses and the end."""

    def __init__(self, requests_per_minute: float | None, max_requests: int | None):
        self.interval = 60 / requests_per_minute if requests_per_minute else 0.0
        self.budget = max_requests
        self.sent = 0
        self.closed = threading.Event()  # nothing is begun or repeated any more: stopped, or the budget used up
        self._stopped = threading.Event()  # nor sent
        self._turn = self._opens = time.monotonic()
        self._lock = threading.Lock()

    def enter(self) -> None:
        with self._lock:
            if self._stopped.is_set():
                raise _Stopped
            if self.budget is not None and self.sent >= self.budget:
                self.closed.set()
                raise _BudgetUsedUp
            self.sent += 1
            turn = max(time.monotonic(), self._turn)
            self._turn = turn + self.interval
        while (delay := max(turn, self._opens) - time.monotonic()) > 0:
            if self._stopped.wait(delay):
                with self._lock:
                    self.sent -= 1
                raise _Stopped

    def close_for(self, seconds: float) -> None:
        """The server wants to be left alone, by every thread."""
        with self._lock:
            self._opens = max(self._opens, time.monotonic() + seconds)

    def wait(self, seconds: float) -> None:
        if self.closed.wait(seconds):
            raise _Stopped

    def stop(self) -> None:
        self._stopped.set()
        self.closed.set()


@dataclass
class _Asker:
    """One question at a time, from any thread, until it is answered or is known to stay without an answer."""

    client: openai.OpenAI
    redact: Callable[[str], str]
    gate: _Gate
    model: str
    parameters: dict[str, Any]
    check: Callable[[str], Any]
    max_retries: int
    key_variable: str
    told: bool = False  # that the server is in trouble: once is enough

    def ask(self, question: Question, key: str) -> dict[str, Any]:
        """The record of a question."""
        cost: Counter[str] = Counter()
        text: str | None = None
        finish, failure = None, None
        try:
            for _ in range(self.max_retries + 1):
                text, finish = self._send(question, cost)
                if text is None:
                    failure = f"an answer without text ({finish})"
                    continue
                # Half a surrogate pair can be sent in JSON, but not be written to a file.
                text = self.redact(text.encode("utf-8", "replace").decode("utf-8"))
                try:
                    self.check(text)
                except ValueError as error:
                    failure = f"{error}" + " (the answer was cut off at its longest)" * (finish == "length")
                else:
                    failure = None
                    break
        except _Refused as error:
            text, finish, failure = None, None, str(error)
        tokens = {name: cost.get(name) for name in ("prompt_tokens", "completion_tokens")}
        return {"id": question.id, "prompt": key, "model": self.model, "text": text, "failure": failure,
                "finish_reason": finish, "requests": cost["requests"], **tokens}  # fmt: skip

    def _send(self, question: Question, cost: Counter[str]) -> tuple[str | None, str | None]:
        """Text and finish reason of the server's answer, whatever it says."""
        import openai

        url = self.client.base_url
        attempt = 0
        while True:
            self.gate.enter()
            cost["requests"] += 1
            wanted = 0.0
            try:
                completion = self.client.chat.completions.create(
                    model=self.model, messages=list(question.messages), extra_body=self.parameters  # type: ignore
                )  # fmt: skip
                return _contents(completion, cost)
            except openai.APIStatusError as error:
                refusal: openai.APIStatusError | None = error
                trouble = self._trouble(error)
            except openai.APIConnectionError as error:  # time-outs as well
                refusal, trouble = None, self._line(error, error.__cause__)
            except (json.JSONDecodeError, UnicodeDecodeError, _NoCompletion) as error:
                refusal, trouble = None, self._line("no chat completion:", error)
            # Out of those blocks: no traceback of ours shall go on with an error that may hold the key.
            if refusal is not None:
                self._raise_if_final(refusal, trouble, question)
                wanted = retry_after(refusal.response.headers)
            if wanted > LONGEST_WAIT:
                raise UserError(f"{url} asks to wait {wanted:,.0f} seconds ({trouble}); run the same command then")
            if attempt == self.max_retries:
                raise UserError(
                    f"{url} gave no answer to {question.id!r} in {attempt + 1} attempts (at last: {trouble}); "
                    "expected a running chat server with that --base_url: start it, or ask it less at a time"
                )
            # The jitter keeps threads apart that failed together; no result depends on it.
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2**attempt) * random.uniform(0.5, 1.5)
            attempt += 1
            if attempt == 2 and not self.told:
                self.told = True
                logger.warning(f"{url} gives no answer ({trouble}); it is asked again, up to {self.max_retries} times")
            self.gate.close_for(wanted)
            self.gate.wait(max(delay, wanted))

    def _trouble(self, error: openai.APIStatusError) -> str:
        said = isinstance(error.body, Mapping) and isinstance(error.body.get("message"), str)
        return self._line(error.message, "" if said else error.body)

    def _line(self, *parts: Any) -> str:
        """What a server or the library says, in one line without the key."""
        return f"{' '.join(self.redact(' '.join(str(part) for part in parts if part)).split()):.300}"

    def _raise_if_final(self, error: openai.APIStatusError, trouble: str, question: Question) -> None:
        """For a refusal that no waiting mends: _Refused where it lies in the question, else UserError."""
        status, url = error.status_code, self.client.base_url
        if error.code == "insufficient_quota":
            raise UserError(f"{url} says that the account has no credit left ({trouble}); top it up")
        if status in RETRIED or status >= 500:
            return
        if error.code in OF_THE_QUESTION or error.type in OF_THE_QUESTION or TOO_LONG in trouble:
            raise _Refused(trouble)
        if status in (401, 403):
            raise UserError(
                f"{url} refuses the key ({trouble}); expected one that is valid there in the environment variable "
                f"{self.key_variable}, which is {'not ' * (self.client.api_key == NO_KEY)}set"
            )
        if status == 404:
            raise UserError(
                f"{url} knows nothing of the kind ({trouble}); expected a model that it serves (found "
                f"{self.model!r}), and a --base_url that ends before chat/completions, most often in /v1"
            )
        if status < 400:
            target = self._line(error.response.headers.get("location"))
            raise UserError(f"{url} sends elsewhere ({status} to {target}); name the place itself as --base_url")
        raise UserError(
            f"{url} refuses the request for {question.id!r} ({trouble}); expected one that it takes: see to the model "
            f"{self.model!r}, the parameters {json.dumps(self.parameters)} and that example"
        )


def _contents(completion: Any, cost: Counter[str]) -> tuple[str | None, str | None]:
    try:
        choice = completion.choices[0]
        text, finish = choice.message.content, choice.finish_reason
    except (AttributeError, IndexError, TypeError):
        found = completion if isinstance(completion, str) else getattr(completion, "model_extra", None) or completion
        raise _NoCompletion(str(found)) from None
    if not isinstance(text, str | None):
        raise _NoCompletion(f"content {text!r}")
    for name in ("prompt_tokens", "completion_tokens"):
        count = getattr(completion.usage, name, None)
        if isinstance(count, int):
            cost[name] += count
    return text, finish


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait, 0 where it does not say or says what cannot be read."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(headers["retry-after-ms"]) / 1000 if "retry-after-ms" in headers else float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return seconds if seconds > 0 else 0.0  # neither is NaN


def connect(base_url: str | None, key_variable: str, timeout: float) -> tuple[openai.OpenAI, Callable[[str], str]]:
    """A client of the server, and what takes the key out of any text.

    The client sends one request per call: retries and redirects would go uncounted.
    """
    url = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
    _check_url(url)
    key = os.environ.get(key_variable, "").strip()
    if not key and (key_variable != KEY_VARIABLE or url == DEFAULT_URL):
        raise UserError(
            f"the environment variable {key_variable} is not set; {url} needs a key: export {key_variable}=..., or "
            "name a local server with --base_url"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the environment variable {key_variable} holds characters that no key has; set it anew")
    import openai

    logging.getLogger("httpx2").setLevel(logging.WARNING)  # one line for every request otherwise
    client = openai.OpenAI(
        api_key=key or NO_KEY, base_url=url, max_retries=0, timeout=timeout,
        http_client=openai.DefaultHttpxClient(follow_redirects=False, timeout=timeout),
    )  # fmt: skip
    return client, functools.partial(_redacted, key=key)


def _check_url(url: str) -> None:
    if "@" in url or "?" in url:  # a user, a password: it would be told in messages and files
        raise UserError("--base_url holds a user, a password or a query; expected the address alone: the key belongs "
                        "into an environment variable")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise UserError(f"--base_url {url}: expected the address of a server, such as http://localhost:8000/v1")


def _redacted(text: str, key: str) -> str:
    return text.replace(key, "[key]") if len(key) >= SECRET_LENGTH else text
