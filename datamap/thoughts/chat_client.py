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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from datamap.core.artifacts import check_writable
from datamap.core.errors import UserError
from datamap.core.files import appended_records, atomic
from datamap.thoughts.chat_threads import BudgetUsedUp, Gate, in_threads

if TYPE_CHECKING:
    import openai

DEFAULT_URL = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"
NO_KEY = "none"  # sent where there is no key: the library insists on one, a local server does not look at it
SECRET_LENGTH = 8  # characters from which on a key is a secret, not a stand-in such as "none" that texts may hold

FIRST_DELAY, LONGEST_DELAY = 2.0, 60.0  # seconds before the first retry; it doubles with each further one
STATUS_SECONDS = 30.0  # between two status lines where there is no bar
FIRST_ANSWERS = 5  # of a call, which ``verify`` looks at
LONGEST_WAIT = 600.0  # seconds that a server may ask to be left alone before the run ends instead
RETRIED = (408, 409, 429)  # and all from 500 on
# What servers call a refusal that lies in this one question: too long for the model, or its contents.
OF_THE_QUESTION = ("context_length_exceeded", "exceed_context_size_error", "content_filter")
TOO_LONG = "maximum context length"  # vLLM has no name for it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """``messages`` as the server wants them: ``[{"role": "user", "content": "..."}]``.

    about: what the record says of the question beside its id, such as the example that it is about. check: of this
    question alone, instead of ``ask_all``'s.
    """

    id: str
    messages: Sequence[Mapping[str, Any]]
    about: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[str], Any] | None = None


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


def ask_all(
    questions: Sequence[Question],
    path: str | Path,
    *,
    model: str,
    parameters: Mapping[str, Any] | None = None,
    base_url: str | None = None,
    key_variable: str = KEY_VARIABLE,
    check: Callable[[str], Any] = str,
    describe: Callable[[Question, Any], Mapping[str, Any]] | None = None,
    failures_path: str | Path | None = None,
    verify: Callable[[str], str | None] | None = None,
    workers: int = 4,
    requests_per_minute: float | None = None,
    max_requests: int | None = None,
    prices: tuple[float, float] | None = None,
    max_cost: float | None = None,
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
    describe: what a record says of the question and of what ``check`` made of its answer, beside the raw text.
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
    if max_cost is not None and prices is None:
        raise ValueError("max_cost needs prices")
    keys = {question.id: prompt_key(model, parameters, question.messages) for question in questions}
    if len(keys) < len(questions):
        repeated = next(name for name, count in Counter(question.id for question in questions).items() if count > 1)
        raise ValueError(f"id {repeated!r} occurs twice")
    for each in (path, failures_path):
        check_writable(each.parent)
        each.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        for each in sorted({path, failures_path}):
            locks.enter_context(locked(each))
        checks = {question.id: question.check or check for question in questions}
        records, outcomes = _recorded(path, failures_path, questions, keys, checks, describe)
        missing = [
            question for question in questions
            if question.id not in outcomes or (retry_failures and outcomes[question.id][1] is not None)
        ]
        logger.info(f"{path}: {len(questions) - len(missing):,} of {len(questions):,} answers are there")
        if missing:
            if retry_failures and failures_path != path:
                _take_off(failures_path, {keys[question.id] for question in missing})
            gate = Gate(requests_per_minute, max_requests, prices, max_cost)
            client, redact = connect(base_url, key_variable, timeout)
            with client:
                asker = _Asker(client, redact, gate, model, parameters, check, describe, verify, max_retries,
                               key_variable)
                new = _ask_missing(missing, keys, path, failures_path, asker, workers, len(questions))
            records |= new
            outcomes |= {name: _outcome(record, checks[name]) for name, record in new.items()}
    usage = {name: _total(records.values(), name) for name in ("requests", "prompt_tokens", "completion_tokens")}
    ordered = [(question.id, *outcomes[question.id]) for question in questions]
    answers = Answers(
        {name: parsed for name, parsed, failure in ordered if failure is None},
        {name: failure for name, _, failure in ordered if failure is not None},
        usage,
        {name: records[name] for name, _, _ in ordered},
    )
    logger.info(
        f"{path}: {len(answers.parsed):,} answered, {len(answers.failures):,} without a usable answer; "
        + ", ".join(f"{'?' if count is None else format(count, ',')} {name}" for name, count in usage.items())
    )
    return answers


@contextmanager
def locked(path: Path, doing: str = "asking") -> Iterator[None]:
    """No other process writes records to ``path`` meanwhile; UserError where one is ``doing`` so."""
    try:
        with FileLock(path.with_name(path.name + ".lock"), timeout=0):
            yield
    except Timeout:
        message = f"{path}: another process is {doing}; wait until it is through, or write somewhere else"
        raise UserError(message) from None


def prompt_key(model: str, parameters: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> str:
    """32 hex digits over all that an answer depends on."""
    prompt = json.dumps([model, parameters, list(messages)], sort_keys=True, allow_nan=False)
    return hashlib.blake2b(prompt.encode(), digest_size=16).hexdigest()


# --- records -----------------------------------------------------------------------------------------------------


def read_records(path: Path, keys: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The records in ``path`` that answer the prompt in ``keys`` (id -> prompt key), the last where there are several.

    A last line that was cut off in mid-write is taken off the file; UserError for any other damaged line.
    """
    mend = "expected a recorded answer: delete that line (its question is asked again), or name another file"
    records = appended_records(path, _record, mend)
    return {record["id"]: record for record in records if keys.get(record["id"]) == record["prompt"]}


def _recorded(
    path: Path,
    failures_path: Path,
    questions: Sequence[Question],
    keys: Mapping[str, str],
    checks: Mapping[str, Callable[[str], Any]],
    describe: Callable[[Question, Any], Mapping[str, Any]] | None,
) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[Any, str | None]]]:
    """What is there of earlier calls, by id: the records, and what today's checks make of them (``_outcome``)."""
    records = read_records(path, keys)
    outcomes = {name: _outcome(record, checks[name]) for name, record in records.items()}
    records = _described_anew(path, questions, records, outcomes, describe)
    if failures_path != path:
        failed = {name: each for name, each in read_records(failures_path, keys).items() if name not in records}
        outcomes |= {name: (None, str(record["failure"])) for name, record in failed.items()}
        records |= failed
    return records, outcomes


def _described_anew(
    path: Path,
    questions: Sequence[Question],
    records: dict[str, dict[str, Any]],
    outcomes: Mapping[str, tuple[Any, str | None]],
    describe: Callable[[Question, Any], Mapping[str, Any]] | None,
) -> dict[str, dict[str, Any]]:
    """The records with what is said of their questions today, such as a label that was corrected; ``path`` too."""
    if describe is None:
        return records
    anew = {}
    for question in questions:
        if question.id in records and outcomes[question.id][1] is None:
            record = records[question.id]
            said = {**question.about, **describe(question, outcomes[question.id][0])}
            if any(name not in record or record[name] != value for name, value in said.items()):
                anew[record["prompt"]] = {**record, **said}
    if not anew:
        return records
    logger.info(f"{path}: {len(anew):,} records say something else of their questions today, and are written anew")
    lines = []
    for line in path.read_bytes().splitlines(keepends=True):
        record = _record(line)
        changed = anew.get(record["prompt"])
        lines.append(_line(changed) if changed and changed["id"] == record["id"] else line)
    with atomic(path) as temporary:
        temporary.write_bytes(b"".join(lines))
    return {name: anew.get(record["prompt"], record) for name, record in records.items()}


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _take_off(path: Path, keys: set[str]) -> None:
    """Rewrite a file of records without those with these prompt keys."""
    if not path.exists():
        return
    kept = [line for line in path.read_bytes().splitlines(keepends=True) if _record(line)["prompt"] not in keys]
    with atomic(path) as temporary:
        temporary.write_bytes(b"".join(kept))


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
    questions: Sequence[Question],
    keys: Mapping[str, str],
    path: Path,
    failures_path: Path,
    asker: _Asker,
    workers: int,
    total: int,
) -> dict[str, dict[str, Any]]:
    """Ask in ``workers`` threads and append every record to its file at once; the records by id."""
    from tqdm.auto import tqdm

    new: dict[str, dict[str, Any]] = {}
    failed, tokens, told, turn, gate = 0, 0, time.monotonic(), threading.Lock(), asker.gate
    bar = tqdm(total=total, initial=total - len(questions), desc=f"asking {asker.model}", unit="answer", disable=None)
    with bar, path.open("ab") as file, failures_path.open("ab") as failures_file:

        def act(question: Question) -> None:
            nonlocal failed, tokens, told
            # Once more, for an answer may spell the key with escapes that are only read as such now.
            line = asker.redact(_line(asker.ask(question, keys[question.id])).decode()).encode()
            record = json.loads(line)
            with turn:
                target = file if record["failure"] is None else failures_file
                target.write(line)
                target.flush()  # from here on the answer outlives this process
                new[question.id] = record
                failed += record["failure"] is not None
                tokens += (record["prompt_tokens"] or 0) + (record["completion_tokens"] or 0)
                bar.update()
                shown = {} if gate.prices is None else {"cost": f"{gate.spent:.4f}"}
                bar.set_postfix(failed=failed, requests=gate.sent, tokens=tokens, **shown, refresh=False)
                if bar.disable and time.monotonic() - told > STATUS_SECONDS:
                    told = time.monotonic()
                    parts = {"failed": failed, "requests": gate.sent, "tokens": tokens, **shown}
                    logger.info(f"{total - len(questions) + len(new):,} of {total:,} answers are there; "
                                + ", ".join(f"{name} {value}" for name, value in parts.items()))

        try:
            in_threads(act, questions, min(workers, len(questions)), gate)
        except BudgetUsedUp as error:
            missing = len(questions) - len(new)
            raise UserError(
                f"{error}; {total - missing:,} of {total:,} questions are answered and recorded in {path}, "
                f"{missing:,} are missing: the same command goes on from there, further with a larger budget"
            ) from None
        except UserError as error:
            done = total - len(questions) + len(new)
            raise UserError(
                f"{error}; {done:,} of {total:,} questions are answered and recorded, the same command goes on there"
            ) from error
    return new


# --- asking ------------------------------------------------------------------------------------------------------


class _Refused(Exception):
    """The server will not answer this question, and does answer others."""


class _NoCompletion(Exception):
    """The server sent something else."""


@dataclass
class _Asker:
    """One question at a time, from any thread, until it is answered or is known to stay without an answer."""

    client: openai.OpenAI
    redact: Callable[[str], str]
    gate: Gate
    model: str
    parameters: dict[str, Any]
    check: Callable[[str], Any]
    describe: Callable[[Question, Any], Mapping[str, Any]] | None
    verify: Callable[[str], str | None] | None
    max_retries: int
    key_variable: str
    told: bool = False  # that the server is in trouble: once is enough
    answered: int = 0  # requests, so far, of all threads; not exact, for nothing hangs on one more or less

    def ask(self, question: Question, key: str) -> dict[str, Any]:
        """The record of a question."""
        cost: Counter[str] = Counter()
        text: str | None = None
        parsed, finish, failure = None, None, None
        try:
            for _ in range(self.max_retries + 1):
                text, finish = self._send(question, cost)
                if text is None:
                    failure = f"an answer without text ({finish})"
                    continue
                # Half a surrogate pair can be sent in JSON, but not be written to a file.
                text = self.redact(text.encode("utf-8", "replace").decode("utf-8"))
                if self.verify and self.answered <= FIRST_ANSWERS and finish != "length":
                    if trouble := self.verify(text):
                        raise UserError(f"{self.client.base_url} {trouble}")
                try:
                    parsed = (question.check or self.check)(text)
                except ValueError as error:
                    failure = f"{error}" + " (the answer was cut off at its longest)" * (finish == "length")
                else:
                    failure = None
                    break
        except _Refused as error:
            text, finish, failure = None, None, str(error)
        described = self.describe(question, parsed) if self.describe and failure is None else {}
        tokens = {name: cost.get(name) for name in ("prompt_tokens", "completion_tokens")}
        return {"id": question.id, **question.about, **described, "prompt": key, "model": self.model, "text": text,
                "failure": failure, "finish_reason": finish, "requests": cost["requests"], **tokens}

    def _send(self, question: Question, cost: Counter[str]) -> tuple[str | None, str | None]:
        """Text and finish reason of the server's answer, whatever it says."""
        import openai

        url = self.client.base_url
        attempt, answered = 0, self.answered
        while True:
            self.gate.enter()
            cost["requests"] += 1
            wanted = 0.0
            used: dict[str, int] = {}
            try:
                completion = self.client.chat.completions.create(
                    model=self.model, messages=list(question.messages), extra_body=self.parameters  # type: ignore
                )
                text, finish, used = _contents(completion)
                if self.gate.max_cost is not None and len(used) < 2:
                    raise UserError(f"{url} does not say how many tokens an answer took, so --max_cost cannot be "
                                    "kept; leave it out, or set --max_requests")
                cost.update(used)
                self.answered += 1
                return text, finish
            except openai.APIStatusError as error:
                refusal: openai.APIStatusError | None = error
                trouble = self._trouble(error)
            except openai.APIConnectionError as error:  # time-outs as well
                refusal, trouble = None, self._line(error, error.__cause__)
            except (json.JSONDecodeError, UnicodeDecodeError, _NoCompletion) as error:
                refusal, trouble = None, self._line("no chat completion:", error)
            finally:
                self.gate.leave(used)
            # Out of those blocks: no traceback of ours shall go on with an error that may hold the key.
            if refusal is not None:
                self._raise_if_final(refusal, trouble, question)
                wanted = retry_after(refusal.response.headers)
            if wanted > LONGEST_WAIT:
                raise UserError(f"{url} asks to wait {wanted:,.0f} seconds ({trouble}); run the same command then")
            if attempt == self.max_retries:
                if self.answered > answered:  # others were answered meanwhile
                    raise _Refused(f"no answer in {attempt + 1} attempts (at last: {trouble})")
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
        if "response_format" in self.parameters and ("response_format" in trouble or "json_schema" in trouble):
            raise UserError(f"{url} refuses the --response_format ({trouble}); try json_object or none")
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


def _contents(completion: Any) -> tuple[str | None, str | None, dict[str, int]]:
    """Text, finish reason, and the numbers of tokens as far as the server tells them."""
    try:
        choice = completion.choices[0]
        text, finish = choice.message.content, choice.finish_reason
    except (AttributeError, IndexError, TypeError):
        found = completion if isinstance(completion, str) else getattr(completion, "model_extra", None) or completion
        raise _NoCompletion(str(found)) from None
    if isinstance(text, list):  # of parts, some of which may be text
        text = "".join(part["text"] for part in text if isinstance(part, dict) and isinstance(part.get("text"), str))
    if not isinstance(text, str | None):
        raise _NoCompletion(f"content {text!r}")
    counts = {name: getattr(completion.usage, name, None) for name in ("prompt_tokens", "completion_tokens")}
    return text, finish, {name: count for name, count in counts.items() if isinstance(count, int)}


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
    )
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
