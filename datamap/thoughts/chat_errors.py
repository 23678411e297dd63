"""What a chat server means by an error: this one question, what every request holds, its rate, or the account.

Servers agree on status codes and on little else, so their words are read too: code, type and message.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openai

# Of a question that is too long for the model, or whose contents are refused.
TOO_LONG = re.compile(r"context.?(length|window|size)|maximum context|string_above_max_length"
                      r"|(request|payload|entity|prompt|input)\b[\w ]{0,20} too (large|long)", re.IGNORECASE)
REFUSED_CONTENTS = re.compile(r"content.?(filter|policy|management)|moderat|flagged|usage polic|invalid_prompt"
                              r"|data_inspection_failed|responsibleaipolicy", re.IGNORECASE)
NO_CREDIT = re.compile(r"insufficient.?(quota|credits|balance)|billing_(hard_limit_reached|not_active)|credit balance",
                       re.IGNORECASE)
NOT_TAKEN = re.compile(r"unsupported|not (currently )?support|deprecated|not permitted|not allowed|extra_forbidden"
                       r"|un(recogni[sz]ed|known|expected)|only (be )?(set to )?(the default|\(?1(\.0)?\b)",
                       re.IGNORECASE)
# What a model may refuse that others take, and what it takes instead: the rest of a request means the same without.
INSTEAD = {"max_tokens": "max_completion_tokens", "temperature": None}
MAY_BE_THE_QUESTION = (400, 413, 422)

RATE_LIMITS = ("requests", "tokens")  # of the headers x-ratelimit-reset-... and x-ratelimit-remaining-...
UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
DURATION = re.compile(r"(\d+(?:\.\d*)?)(h|ms|m|s|us|µs|ns)")  # in the notation of Go: 6m0s, 1h2m3.5s, 20ms


def words_of(error: openai.APIStatusError) -> str:
    """Code, type and message, also those that some servers nest; not the request, which some send back."""
    body = error.body
    if not isinstance(body, Mapping):
        return str(body or error.message)[:1000]
    found = [error.code, error.type, body.get("message")]
    for name in ("innererror", "metadata"):
        inner = body.get(name)
        if isinstance(inner, Mapping):
            found += [inner.get("code"), *(each for each in inner if each == "flagged_input")]
    detail = body.get("detail", body.get("error"))
    for each in detail if isinstance(detail, list) else [detail]:
        found += [each.get(name) for name in ("type", "loc", "msg")] if isinstance(each, Mapping) else [each]
    return " ".join(str(each) for each in found if each is not None)


def is_no_credit(error: openai.APIStatusError) -> bool:
    """No waiting mends it: the account has nothing left to spend."""
    return error.status_code == 402 or bool(NO_CREDIT.search(words_of(error)))


def is_of_the_question(error: openai.APIStatusError) -> bool:
    """The server says that it will not answer this question, whatever it makes of others.

    What limits the rate may speak of policies, and ask to be used moderately: that is nothing about contents.
    """
    words = words_of(error)
    return bool(TOO_LONG.search(words) or (error.status_code != 429 and REFUSED_CONTENTS.search(words)))


def may_be_of_the_question(error: openai.APIStatusError) -> bool:
    """It may also be what every request holds; whether others are answered tells. Of 403 those that are no answer of
    the API count, such as the page of a firewall that dislikes a text."""
    is_page = error.status_code == 403 and not isinstance(error.body, Mapping)
    return error.status_code in MAY_BE_THE_QUESTION or is_page


def parameter_not_taken(error: openai.APIStatusError, parameters: Mapping[str, Any]) -> str | None:
    """Which of INSTEAD, sent among ``parameters``, the model refuses to be given."""
    words = words_of(error)
    if error.status_code not in MAY_BE_THE_QUESTION or not NOT_TAKEN.search(words):
        return None
    named = (name for name in INSTEAD if name in parameters and re.search(rf"\b{name}\b", words))
    return error.param if error.param in INSTEAD and error.param in parameters else next(named, None)


# --- how long to wait --------------------------------------------------------------------------------------------


def wait_said(headers: Mapping[str, str]) -> tuple[float, str] | None:
    """Seconds until a request may be sent again, and the header that says so; None where none does."""
    milliseconds, after = headers.get("retry-after-ms", ""), headers.get("retry-after", "")
    said = [(_number(milliseconds) / 1000, f"retry-after-ms: {milliseconds}"),
            (_seconds_or_date(after), f"Retry-After: {after}")]
    for seconds, words in said:
        if math.isfinite(seconds):
            return max(seconds, 0.0), words
    resets = {name: headers.get(f"x-ratelimit-reset-{name}", "") for name in RATE_LIMITS}
    known = {name: seconds for name, text in resets.items() if math.isfinite(seconds := _duration(text))}
    # A limit of which something remains may be the one that is passed all the same, by a large request.
    used_up = [name for name in known if headers.get(f"x-ratelimit-remaining-{name}", "").strip() == "0"]
    if not known:
        return None
    name = max(used_up or known, key=lambda each: known[each])
    return known[name], f"x-ratelimit-reset-{name}: {resets[name]}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _seconds_or_date(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except ValueError:
        return math.nan


def _duration(text: str) -> float:
    """Seconds of ``6m0s``, ``20ms``, ``7.5`` or a date; NaN for anything else."""
    text = text.strip()
    parts = DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * UNITS[unit] for number, unit in parts)
    return _seconds_or_date(text)
