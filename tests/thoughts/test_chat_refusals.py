"""What a server's refusal means: the question, a parameter that a model does not take, the rate, or the account."""

import itertools
import json
import threading
import time
from email.utils import formatdate

import httpx2
import openai
import pytest
from chat_server import body, chat_server, says, status, surroundings

from datamap.core.errors import UserError
from datamap.thoughts import chat_pace
from datamap.thoughts.chat_client import AGAIN, IN_A_ROW, Question, ask_all
from datamap.thoughts.chat_errors import is_no_credit, is_of_the_question, parameter_not_taken, wait_said

NO_MAX_TOKENS = {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                 "'max_completion_tokens' instead.", "type": "invalid_request_error", "param": "max_tokens",
                 "code": "unsupported_parameter"}
NO_TEMPERATURE = {"message": "Unsupported value: 'temperature' does not support 0 with this model. Only the default "
                  "(1) value is supported.", "type": "invalid_request_error", "param": "temperature",
                  "code": "unsupported_value"}


@pytest.fixture(autouse=True)
def of_the_machine(monkeypatch):
    surroundings(monkeypatch)


def questions(count):
    names = [f"q{number:03d}" for number in range(count)]
    return [Question(name, [{"role": "user", "content": name}]) for name in names]


def text_of(request):
    return request["messages"][-1]["content"]


def shout(request):
    return text_of(request).upper()


def ask(asked, path, server, check=str, **settings):
    return ask_all(asked, path, check=lambda _, text: check(text), model="m", base_url=server.url, **settings)


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def error_of(code, content):
    """As the library makes it of a response."""
    raw = content if isinstance(content, str) else json.dumps(content)
    response = httpx2.Response(code, text=raw, request=httpx2.Request("POST", "http://x/v1"))
    return openai.OpenAI(api_key="k", base_url="http://x/v1")._make_status_error_from_response(response)


# --- parameters that a model does not take -----------------------------------------------------------------------


def reasoning_model(request):
    """As OpenAI's later models are: one complaint at a time."""
    if "max_tokens" in request:
        return status(400, **NO_MAX_TOKENS)
    if request.get("temperature", 1) != 1:
        return status(400, **NO_TEMPERATURE)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_model_is_sent_what_it_takes(tmp_path, caplog, workers):
    path, parameters = tmp_path / "a", {"temperature": 0, "max_tokens": 99}
    with chat_server(shout, reasoning_model, delay=0.01) as server:
        answers = ask(questions(9), path, server, workers=workers, parameters=parameters)
        taken = [request for request in server.requests if not reasoning_model(request)]
        assert len(taken) == 9 and all(request["max_completion_tokens"] == 99 for request in taken)
        assert all("temperature" not in request and "max_tokens" not in request for request in taken)
        assert len(server.requests) <= 9 + 2 * workers
        assert answers.usage["requests"] == len(server.requests)
        assert ask(questions(9), path, server, parameters=parameters) == answers
        assert len(server.requests) <= 9 + 2 * workers
    assert len(answers.parsed) == 9 and not answers.failures
    assert caplog.text.count("m does not take max_tokens; max_completion_tokens is sent in its place") == 1
    assert caplog.text.count("m does not take temperature; it is left out (0 was asked for)") == 1
    changed = {"temperature": None, "max_tokens": None, "max_completion_tokens": 99}
    assert all(record["changed_parameters"] == changed for record in records(path))


PYDANTIC = {"detail": [{"type": "extra_forbidden", "loc": ["body", "temperature"], "input": "context length",
                        "msg": "Extra inputs are not permitted"}]}


@pytest.mark.parametrize(
    ("code", "content", "name"),
    [(400, {"error": NO_MAX_TOKENS}, "max_tokens"), (400, {"error": NO_TEMPERATURE}, "temperature"),
     (400, {"error": {"message": NO_MAX_TOKENS["message"], "code": "invalid_request_body"}}, "max_tokens"),
     (400, {"error": {"message": "`temperature` is deprecated for this model."}}, "temperature"),
     (422, PYDANTIC, "temperature"),
     (400, {"error": {"message": "invalid temperature: only 1 is allowed for this model"}}, "temperature"),
     (400, {"error": {"message": "`temperature` may only be set to 1 when thinking is enabled."}}, "temperature"),
     (400, {"error": {"message": "temperature: only 10 decimals are read"}}, None),
     (400, {"error": {"message": "Unsupported parameter: 'top_k'", "param": "top_k"}}, None),
     (400, {"error": {"message": "max_tokens is too large: 99. This model supports at most 9 completion tokens",
                      "param": "max_tokens", "code": "invalid_value"}}, None),
     (400, {"error": {"message": "temperature must be between 0 and 1", "param": "temperature"}}, None),
     (500, {"error": NO_TEMPERATURE}, None)],
)
def test_which_parameter_is_not_taken(code, content, name):
    error = error_of(code, content)
    assert parameter_not_taken(error, {"temperature": 0, "max_tokens": 99}) == name
    assert parameter_not_taken(error, {}) is None
    assert not is_of_the_question(error) and not is_no_credit(error)


def test_a_parameter_of_the_users_that_is_not_taken_ends_the_run(tmp_path):
    refuse = status(400, message="Unsupported parameter: 'top_k'", param="top_k")
    with chat_server(shout, lambda _: refuse) as server:
        with pytest.raises(UserError, match="refuses the request for 'q000' .*'top_k'"):
            ask(questions(3), tmp_path / "a", server, workers=1, parameters={"top_k": 3})
    assert not records(tmp_path / "a")


# --- one question ------------------------------------------------------------------------------------------------

FLAGGED = {"code": 403, "message": "Your input was flagged", "metadata": {"reasons": ["hate"], "flagged_input": "q"}}
AZURE = {"code": "content_filter", "message": "no", "innererror": {"code": "ResponsibleAIPolicyViolation"}}
HTML = {"Content-Type": "text/html"}
SAID = {
    "too long": status(400, code="context_length_exceeded"),
    "too long, llama.cpp": status(400, type="exceed_context_size_error", code=400),
    "too long, vLLM": status(400, message="This model's maximum context length is 4 tokens"),
    "too long, a server error": status(500, message="the request exceeds the available context size"),
    "too large": status(413, message="Request too large for model `m`"),
    "too large for any minute": status(429, message="Request too large for m on tokens per min (TPM)", type="tokens",
                                       code="rate_limit_exceeded"),
    "policy": status(400, code="content_policy_violation"), "policy, Azure": status(400, **AZURE),
    "moderation, OpenRouter": status(403, **FLAGGED),
    "moderation in a success": body(json.dumps({"error": FLAGGED}).encode()),
    "nginx": lambda handler: handler.reply(413, b"<h1>413 Request Entity Too Large</h1>", HTML),
}
NOT_SAID = {"400": status(400), "413": status(413), "422": status(422),
            "firewall": lambda handler: handler.reply(403, b"<h1>blocked</h1>", HTML)}


@pytest.mark.parametrize("fault", (SAID | NOT_SAID).values(), ids=SAID | NOT_SAID)
@pytest.mark.parametrize(("refused", "workers"), [(0, 1), (2, 1), (4, 1), (2, 5)])
def test_a_refused_question_is_a_failure_of_its_own(tmp_path, fault, refused, workers):
    name, path = f"q{refused:03d}", tmp_path / "a"
    with chat_server(shout, lambda request: fault if text_of(request) == name else None) as server:
        answers = ask(questions(5), path, server, workers=workers, max_retries=0)
        assert list(answers.failures) == [name] and len(answers.parsed) == 4
        assert len(server.requests) == 5
        assert ask(questions(5), path, server) == answers
        assert len(server.requests) == 5
    assert [record["id"] for record in records(path) if record["failure"]] == [name]


def test_the_last_question_left_of_an_earlier_run_may_be_refused(tmp_path):
    """What used to end every run that comes to it."""
    with chat_server(shout, lambda request: status(422) if text_of(request) == "q004" else None) as server:
        ask(questions(4), tmp_path / "a", server)
        assert list(ask(questions(5), tmp_path / "a", server).failures) == ["q004"]


@pytest.mark.parametrize("fault", NOT_SAID.values(), ids=NOT_SAID)
@pytest.mark.parametrize("answered", [0, 7])
def test_a_server_that_refuses_everything_ends_the_run_and_nothing_is_lost(tmp_path, fault, answered):
    """What holds for every request cannot lie in the questions; also where it begins in the middle of a run."""
    path = tmp_path / "a"
    sent = itertools.count()
    with chat_server(shout, lambda _: fault if next(sent) >= answered else None) as server:
        with pytest.raises(UserError) as refused:
            ask(questions(60), path, server, workers=1, parameters={"top_k": 9})
        assert len(server.requests) == answered + IN_A_ROW
    assert "\n" not in str(refused.value) and "refuses the" in str(refused.value)
    assert f"{answered} of 60 questions are answered" in str(refused.value)
    assert [record["failure"] for record in records(path)] == [None] * answered


def test_few_questions_that_are_all_refused_are_no_failures_of_theirs(tmp_path):
    with chat_server(shout, lambda _: status(422, message=None, detail="unknown field\n top_k")) as server:
        with pytest.raises(UserError, match=r"'q000' .*unknown field\\n top_k"):
            ask(questions(3), tmp_path / "a", server, workers=1, max_requests=2)
    assert not records(tmp_path / "a")


@pytest.mark.parametrize("code", [401, 403])
def test_a_bad_key_ends_the_run_at_once(tmp_path, code):
    with chat_server(shout, lambda _: status(code, message="Invalid API key")) as server:
        with pytest.raises(UserError, match="refuses the key"):
            ask(questions(60), tmp_path / "a", server, workers=1)
        assert len(server.requests) == 1


def test_an_answer_that_was_filtered_is_not_asked_for_again(tmp_path):
    with chat_server(shout, [says(None, "content_filter")]) as server:
        answers = ask(questions(2), tmp_path / "a", server, workers=1)
        assert len(server.requests) == 2
    assert answers.failures == {"q000": "an answer without text (content_filter)"}


# --- the rate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({}, None), ({"Retry-After": "soon"}, None), ({"Retry-After": "7"}, 7), ({"retry-after-ms": "20"}, 0.02),
     ({"Retry-After": "3", "retry-after-ms": "20"}, 0.02), ({"Retry-After": "-1"}, 0),
     ({"x-ratelimit-reset-requests": "6m0s"}, 360), ({"x-ratelimit-reset-tokens": "20ms"}, 0.02),
     ({"x-ratelimit-reset-tokens": "1h2m3.5s"}, 3723.5), ({"x-ratelimit-reset-requests": "12"}, 12),
     ({"x-ratelimit-reset-requests": "6m0s", "Retry-After": "1"}, 1),
     ({"x-ratelimit-reset-requests": "6 moons"}, None),
     ({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-reset-tokens": "20ms"}, 360),
     ({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-remaining-requests": "12",
       "x-ratelimit-reset-tokens": "20ms", "x-ratelimit-remaining-tokens": "0"}, 0.02)],
)
def test_how_long_the_headers_say(headers, seconds):
    said = wait_said(httpx2.Headers(headers))
    assert (said and said[0]) == (seconds if seconds is None else pytest.approx(seconds))


def test_a_date_to_wait_for():
    said = wait_said(httpx2.Headers({"Retry-After": formatdate(time.time() + 50, usegmt=True)}))
    assert said is not None and said[0] == pytest.approx(50, abs=2)


@pytest.mark.parametrize("headers", [{"Retry-After": "1"}, {"retry-after-ms": "1000"},
                                     {"x-ratelimit-reset-requests": "1s"}], ids=str)
def test_one_limit_pauses_all(tmp_path, headers, caplog):
    sent = itertools.count()
    with chat_server(shout, lambda _: status(429, headers) if next(sent) == 4 else None, delay=0.03) as server:
        answers = ask(questions(16), tmp_path / "a", server, workers=4)
        limited = server.times[4]
        after = [when - limited for when in server.times if when > limited]
    assert len(answers.parsed) == 16 and not answers.failures and answers.usage["requests"] == 17
    assert not [seconds for seconds in after if 0.2 < seconds < 0.95]  # those on their way come to their end
    assert caplog.text.count("127.0.0.1 limits the rate (Error code: 429 - no); all requests wait 1 s") == 1


def test_a_rate_limit_loses_no_question_however_often_it_comes(tmp_path):
    """Five requests in a window of 0.2 s, from eight workers that may ask but once again."""
    window, used = [0.0], [0]
    lock = threading.Lock()

    def limit(_):
        with lock:
            now = time.monotonic()
            if now - window[0] > 0.2:
                window[0], used[0] = now, 0
            used[0] += 1
            return status(429) if used[0] > 5 else None

    with chat_server(shout, limit) as server:
        answers = ask(questions(40), tmp_path / "a", server, workers=8, max_retries=1)
        assert len(server.requests) > 40
    assert len(answers.parsed) == 40 and not answers.failures
    assert answers.usage["requests"] == len(server.requests)


def test_a_limit_in_a_success_is_one(tmp_path):
    limited = body(json.dumps({"error": {"code": 429, "message": "slowly"}}).encode())
    with chat_server(shout, [limited] * 4) as server:
        assert len(ask(questions(2), tmp_path / "a", server, workers=1, max_retries=0).parsed) == 2


def test_a_limit_that_speaks_of_policies_loses_no_question(tmp_path):
    limited = status(429, message="Too many requests: please moderate your rate, see our usage policies")
    with chat_server(shout, [says("FIRST"), limited]) as server:
        answers = ask(questions(3), tmp_path / "a", server, workers=1)
    assert len(answers.parsed) == 3 and not answers.failures


def test_requests_keep_their_distance_after_a_pause(tmp_path):
    with chat_server(shout, [status(429)] * 6) as server:
        ask(questions(4), tmp_path / "a", server, workers=4, requests_per_minute=1200)
    assert len(server.times) == 10
    assert server.times[-1] - server.times[0] > 9 * 0.05 - 0.02


@pytest.mark.parametrize("said", [{"Retry-After": "5000"}, {"x-ratelimit-reset-requests": "2h0m0s"}], ids=str)
def test_a_server_that_wants_to_be_left_alone_for_long_ends_the_run(tmp_path, said):
    [(name, value)] = said.items()
    with chat_server(shout, [says("FIRST"), status(429, said)]) as server:
        with pytest.raises(UserError, match=f"left alone for longer .{name}: {value}; .*1 of 3 questions"):
            ask(questions(3), tmp_path / "a", server, workers=1)
        assert len(server.requests) == 2
        assert len(ask(questions(3), tmp_path / "a", server).parsed) == 3
    assert all(record["failure"] is None for record in records(tmp_path / "a"))


def test_a_limit_without_an_end_ends_the_run_after_all(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_pace, "PATIENCE", 0.3)
    monkeypatch.setattr(chat_pace, "LONGEST_PAUSE", 0.05)
    with chat_server(shout, lambda _: status(429)) as server:
        with pytest.raises(UserError, match="has limited the rate .* without an answer .*0 of 9 questions"):
            ask(questions(9), tmp_path / "a", server, workers=3)
        assert 3 < len(server.requests) < 60
    assert not records(tmp_path / "a")


@pytest.mark.parametrize("fault", [
    status(429, code="insufficient_quota", type="insufficient_quota", message="You exceeded your current quota"),
    status(400, message="Your credit balance is too low to access the API"), status(402),
])
def test_an_account_without_credit_ends_the_run_at_once_and_loses_nothing(tmp_path, fault):
    with chat_server(shout, [says("FIRST"), fault]) as server:
        with pytest.raises(UserError, match="no credit left .*1 of 3 questions are answered"):
            ask(questions(3), tmp_path / "a", server, workers=1)
        assert len(server.requests) == 2
        assert len(ask(questions(3), tmp_path / "a", server).parsed) == 3


# --- unreadable --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "again"), [({"temperature": 0}, AGAIN), ({"temperature": 0.0}, AGAIN),
                                              ({"temperature": 0.4}, 0.4), ({}, None)])
def test_an_unreadable_answer_is_not_asked_for_at_temperature_0_again(tmp_path, asked, again):
    def upper(text):
        if not text.isupper():
            raise ValueError(text)
        return text

    def stubborn(request):  # as likely words are the same each time
        return shout(request) if request.get("temperature") != 0 or text_of(request) == "q001" else "small"

    faults = [] if asked == {"temperature": 0} else [says("small")]
    with chat_server(stubborn, faults) as server:
        answers = ask(questions(2), tmp_path / "a", server, check=upper, workers=1, parameters=asked)
        first, second, other = server.requests
    assert len(answers.parsed) == 2
    assert first["messages"] == second["messages"]
    assert (first.get("temperature"), second.get("temperature")) == (asked.get("temperature"), again)
    assert other.get("temperature") == asked.get("temperature")
    changed = [record.get("changed_parameters") for record in records(tmp_path / "a")]
    assert changed == [{"temperature": AGAIN} if again == AGAIN else None, None]
