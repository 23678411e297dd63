"""The chat client against a server on this machine: what is sent, what is kept, and what is never sent twice."""

import asyncio
import errno
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
from chat_server import body, chat_server, drop, echo_headers, hang, says, status, surroundings, truncate
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamap.core.errors import UserError
from datamap.thoughts.chat_client import Question, ask_all, contents
from datamap.thoughts.records import prompt_key, read_records

SECRET = "sk-7f3c9d0a1b2e4455"
LOCAL = {"base_url": "http://127.0.0.1:9/v1"}
REPOSITORY = Path(__file__).resolve().parents[2]


def capitals(text):
    if not text.startswith("I WAS"):
        raise ValueError(f"found {text}")
    return text


@pytest.fixture(autouse=True)
def of_the_machine(monkeypatch):
    surroundings(monkeypatch)


def questions(count, prefix="q"):
    names = [f"{prefix}{number:03d}" for number in range(count)]
    return [Question(name, [{"role": "user", "content": name}]) for name in names]


def shout(request):
    return request["messages"][-1]["content"].upper()


def upper(text):
    if not text.isupper():
        raise ValueError(f"small letters: {text}")
    return text


def ask(asked, path, server=None, check=str, **settings):
    place = {"base_url": server.url} if server else {}
    return ask_all(asked, path, check=lambda _, text: check(text), **{"model": "m", **place, **settings})


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- asking ------------------------------------------------------------------------------------------------------


def test_every_question_is_asked_once_and_its_answer_kept(tmp_path):
    path = tmp_path / "deep" / "answers.jsonl"
    with chat_server(shout, delay=0.02) as server:
        answers = ask(questions(30), path, server, workers=5, parameters={"temperature": 0, "top_k": 7})
        assert 2 <= server.most_at_once <= 5
        assert set(server.paths) == {"/v1/chat/completions"}
        assert all(request["temperature"] == 0 and request["top_k"] == 7 for request in server.requests)
        assert server.asked() == {f"q{number:03d}": 1 for number in range(30)}
    assert list(answers.parsed) == [f"q{number:03d}" for number in range(30)]
    assert answers.parsed["q007"] == "Q007"
    assert answers.failures == {}
    assert answers.usage == {"requests": 30, "prompt_tokens": 90, "completion_tokens": 60}
    assert sorted(record["id"] for record in records(path)) == sorted(answers.parsed)


def test_a_notebook_whose_loop_runs_may_ask(tmp_path):
    async def cell():
        return ask(questions(5), tmp_path / "answers.jsonl", server, workers=2)

    with chat_server(shout) as server:
        assert len(asyncio.run(cell()).parsed) == 5


def test_recorded_answers_need_no_server_and_no_key(tmp_path):
    path = tmp_path / "answers.jsonl"
    with chat_server(shout) as server:
        first = ask(questions(6), path, server)
    before = path.read_bytes()
    again = ask(questions(6)[::-1], path, key_variable="NOT_SET_ANYWHERE", max_requests=0)
    assert again.parsed == first.parsed
    assert list(again.parsed) == list(first.parsed)[::-1]
    assert again.usage == first.usage
    assert path.read_bytes() == before


def test_more_questions_ask_for_the_new_ones_only(tmp_path):
    with chat_server(shout) as server:
        ask(questions(4), tmp_path / "a", server)
        answers = ask(questions(6), tmp_path / "a", server)
        assert server.asked() == {f"q{number:03d}": 1 for number in range(6)}
    assert len(answers.parsed) == 6
    assert answers.usage["requests"] == 6


@pytest.mark.parametrize(
    "other", [{"model": "n"}, {"parameters": {"temperature": 1}},
              {"asked": [Question("q000", [{"role": "user", "content": "else"}])]}]
)
def test_an_answer_to_another_prompt_does_not_count(tmp_path, other):
    with chat_server(shout) as server:
        ask(questions(1), tmp_path / "a", server)
        ask(**{"asked": questions(1), "path": tmp_path / "a", "server": server, **other})
        assert len(server.requests) == 2
        ask(questions(1), tmp_path / "a", server)
        assert len(server.requests) == 2
    assert len(records(tmp_path / "a")) == 2


def test_the_key_of_a_prompt_does_not_depend_on_the_order_of_its_names():
    one = prompt_key("m", {"a": 1, "b": 2}, [{"role": "user", "content": "x"}])
    assert one == prompt_key("m", {"b": 2, "a": 1}, [{"content": "x", "role": "user"}])
    assert one != prompt_key("m", {"a": 1, "b": 2}, [{"role": "user", "content": "x "}])
    assert len(one) == 32


def test_an_id_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'q000' occurs twice"):
        ask(questions(1) * 2, tmp_path / "a")


def test_no_questions_no_requests(tmp_path):
    answers = ask([], tmp_path / "a")
    assert (answers.parsed, answers.failures) == ({}, {})
    assert answers.usage == {"requests": None, "prompt_tokens": None, "completion_tokens": None}


def test_half_a_surrogate_pair_is_kept_as_a_question_mark(tmp_path):
    with chat_server(lambda request: "a\ud800b\u2028c\nd") as server:
        assert ask(questions(1), tmp_path / "a", server).parsed == {"q000": "a?b\u2028c\nd"}
    assert ask(questions(1), tmp_path / "a").parsed == {"q000": "a?b\u2028c\nd"}


# --- trouble on the way ------------------------------------------------------------------------------------------

PASSING = {
    "408": status(408), "409": status(409), "429": status(429), "500": status(500), "503": status(503),
    "529": status(529), "dropped": drop, "truncated": truncate, "hanging": hang(0.6), "no JSON": body(b"{half a"),
    "not UTF-8": body(b'{"choices": "\xff\xfe"}'), "HTML": body(b"<html>up again soon</html>", "text/html"),
    "an error as a success": body(b'{"error": {"message": "overloaded"}}'), "no choices": body(b'{"choices": []}'),
    "a list": body(b"[1]"), "null": body(b"null"), "null message": body(b'{"choices": [{"message": null}]}'),
    "content that is no text": body(b'{"choices": [{"message": {"content": 3}}]}'),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_may_pass_is_tried_again_and_counted(tmp_path, fault):
    with chat_server(shout, [fault, fault]) as server:
        answers = ask(questions(3), tmp_path / "a", server, workers=1, timeout=0.3)
        assert server.asked() == {"q000": 3, "q001": 1, "q002": 1}
    assert answers.parsed == {f"q{number:03d}": f"Q{number:03d}" for number in range(3)}
    assert answers.usage["requests"] == 5
    assert [(record["id"], record["requests"]) for record in records(tmp_path / "a")][:2] == [("q000", 3), ("q001", 1)]


@pytest.mark.parametrize("fault", ["dropped", "truncated", "hanging", "no JSON", "an error as a success"])
def test_what_does_not_pass_ends_the_run_in_one_line(tmp_path, fault):
    with chat_server(shout, [says("FIRST"), *[PASSING[fault]] * 3]) as server:
        with pytest.raises(UserError) as refused:
            ask(questions(3), tmp_path / "a", server, workers=1, max_retries=2, timeout=0.3)
        assert len(server.requests) == 4
        message = str(refused.value)
        assert "\n" not in message
        assert f"{server.url}/ gave no answer to 'q001' in 3 attempts" in message
        assert "1 of 3 questions are answered and recorded" in message
        answers = ask(questions(3), tmp_path / "a", server, workers=1)
        assert server.asked() == {"q000": 1, "q001": 4, "q002": 1}
    assert answers.parsed["q000"] == "FIRST"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(("choices", "message", "content", "text", "finish_reason", "usage", "prompt_tokens")), inner),
    max_leaves=8,
)


@pytest.mark.parametrize("thinking", [
    {"type": "thinking", "thinking": [{"type": "text", "text": "draft"}]}, {"type": "reasoning", "text": "draft"},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "draft"}]},
])
def test_parts_that_are_reasoning_are_no_text(thinking):
    parts = [thinking, {"type": "text", "text": "ans"}, {"type": "output_text", "text": "w"}, {"text": "er"}]
    text, *_ = contents({"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]})
    assert text == "answer"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JSON | JSON.map(lambda value: {"choices": [{"message": {"content": value}}], "usage": value}))
def test_whatever_a_server_sends_is_read_or_is_no_completion(value):
    try:
        text, _, tokens = contents(value)
    except ValueError:
        return
    assert isinstance(text, str | None) and all(isinstance(count, int) for count in tokens.values())


def test_the_message_says_what_the_server_said(tmp_path):
    with chat_server(shout, [body(b"<html>\n <b>come later</b></html>", "text/html")]) as server:
        with pytest.raises(UserError, match="no chat completion: <html> <b>come later</b></html>"):
            ask(questions(1), tmp_path / "a", server, max_retries=0)
    with pytest.raises(UserError, match="Connection error. All connection attempts failed"):
        ask(questions(1), tmp_path / "a", server, max_retries=1)


def test_trouble_that_lasts_is_told_once(tmp_path, caplog):
    with chat_server(shout, [status(429), says("Q000"), *[status(503)] * 4]) as server:
        ask(questions(3), tmp_path / "a", server, workers=1)
        assert "127.0.0.1 gives no answer; it is asked again, up to 5 times" in caplog.text
    assert caplog.text.count("gives no answer") == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [(status(401), "OPENAI_API_KEY, which is not set"), (status(403), "refuses the key"),
     (status(402, message="Insufficient credits"), "no credit left"),
     (status(404), "expected a model that it serves (found 'm')"),
     (status(307, {"Location": "http://elsewhere/v1"}), "307 to http://elsewhere/v1")],
)
def test_what_will_not_pass_ends_the_run_at_once(tmp_path, fault, words):
    with chat_server(shout, [says("FIRST"), fault]) as server:
        with pytest.raises(UserError) as refused:
            ask(questions(3), tmp_path / "a", server, workers=1, parameters={"temperature": 9})
        assert len(server.requests) == 2
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [record["id"] for record in records(tmp_path / "a")] == ["q000"]


# --- answers that are no use -------------------------------------------------------------------------------------


def test_a_malformed_answer_is_asked_for_again(tmp_path):
    with chat_server(shout, [says("small"), says(None), says("half", "length")]) as server:
        answers = ask(questions(2), tmp_path / "a", server, workers=1, check=upper, max_retries=3)
        assert server.asked() == {"q000": 4, "q001": 1}
        assert all(request == server.requests[0] for request in server.requests[:4])
    assert answers.parsed == {"q000": "Q000", "q001": "Q001"}
    assert answers.usage == {"requests": 5, "prompt_tokens": 15, "completion_tokens": 10}


@pytest.mark.parametrize(
    ("last", "text", "reason"),
    [(says("bad"), "bad", "small letters: bad"), (says(None, "tool_calls"), None, "without text (tool_calls)"),
     (says("bad", "length"), "bad", "cut off at its longest")],
)
def test_a_question_without_usable_answer_is_recorded_and_left_alone(tmp_path, last, text, reason):
    path = tmp_path / "a"
    with chat_server(shout, [says("worse"), last]) as server:
        answers = ask(questions(2), path, server, workers=1, check=upper, max_retries=1)
        assert list(answers.failures) == ["q000"]
        assert reason in answers.failures["q000"]
        record = records(path)[0]
        assert (record["text"], record["requests"]) == (text, 2)
        assert reason in record["failure"]
        assert ask(questions(2), path, server, check=upper) == answers
        assert server.asked() == {"q000": 2, "q001": 1}

        again = ask(questions(2), path, server, check=upper, retry_failures=True)
        assert server.asked() == {"q000": 3, "q001": 1}
    assert again.parsed == {"q000": "Q000", "q001": "Q001"}
    assert ask(questions(2), path, check=upper) == again


def test_a_better_check_reads_what_was_recorded(tmp_path):
    with chat_server(lambda request: "small") as server:
        assert ask(questions(1), tmp_path / "a", server, check=upper, max_retries=0).failures
        assert ask(questions(1), tmp_path / "a", server).parsed == {"q000": "small"}
        assert len(server.requests) == 1


def test_a_bug_in_check_is_no_malformed_answer(tmp_path):
    with chat_server(shout) as server, pytest.raises(ZeroDivisionError):
        ask(questions(1), tmp_path / "a", server, check=lambda text: 1 / 0)


# --- budget and rate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 7])
def test_the_budget_is_used_up_exactly_and_the_same_command_goes_on(tmp_path, workers):
    faults = [status(500), says("small"), drop, status(429)]
    with chat_server(shout, faults, delay=0.01) as server:
        settings = {"workers": workers, "check": upper, "requests_per_minute": 12000}
        with pytest.raises(UserError, match="--max_requests: the 20 requests .* with a new budget") as refused:
            ask(questions(40), tmp_path / "a", server, max_requests=20, **settings)
        assert len(server.requests) == 20
        done = len(records(tmp_path / "a"))
        assert 20 - len(faults) - workers <= done <= 20 - len(faults)
        assert f"{done} of 40 questions are answered and recorded in {tmp_path / 'a'}, {40 - done} are missing" in str(
            refused.value
        )
        answers = ask(questions(40), tmp_path / "a", server, max_requests=40 - done, **settings)
        assert len(server.requests) == 20 + 40 - done
    assert answers.parsed == {f"q{number:03d}": f"Q{number:03d}" for number in range(40)}


def test_a_budget_that_is_just_enough_is_no_error(tmp_path):
    with chat_server(shout) as server:
        assert len(ask(questions(8), tmp_path / "a", server, max_requests=8, workers=3).parsed) == 8


def test_a_question_that_waits_to_be_asked_again_ends_with_the_budget(tmp_path):
    with chat_server(shout, [status(500)]) as server:
        start = time.monotonic()
        with pytest.raises(UserError, match="1 of 3 questions"):
            ask(questions(3), tmp_path / "a", server, max_requests=2, workers=2)
    assert time.monotonic() - start < 5


def test_requests_per_minute(tmp_path):
    with chat_server(shout, [status(500)]) as server:
        start = time.monotonic()
        ask(questions(5), tmp_path / "a", server, workers=4, requests_per_minute=600)
        assert time.monotonic() - start >= 0.5  # six requests, a tenth of a second between two
        assert len(server.requests) == 6


# --- the file ----------------------------------------------------------------------------------------------------


def test_a_line_cut_off_anywhere_is_mended_and_no_whole_line_lost(tmp_path):
    path, keys = tmp_path / "a", {"a": "k", "b": "k"}
    lines = [json.dumps({"id": name, "prompt": "k", "text": "Ä\u2028"}, ensure_ascii=False).encode() for name in "ab"]
    whole = b"".join(line + b"\n" for line in lines)
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        found = read_records(path, keys)
        count = sum(size >= end for end in (len(lines[0]), len(whole) - 1))  # whole also without the line's end
        assert list(found) == list("ab")[:count]
        assert path.read_bytes() == b"".join(line + b"\n" for line in lines[:count])
        assert read_records(path, keys) == found


def test_a_run_goes_on_behind_a_mended_line(tmp_path):
    path = tmp_path / "a"
    with chat_server(shout) as server:
        ask(questions(3), path, server, workers=1)
        path.write_bytes(path.read_bytes()[:-20])
        ask(questions(3), path, server)
        assert server.asked() == {"q000": 1, "q001": 1, "q002": 2}
    assert [record["id"] for record in records(path)] == ["q000", "q001", "q002"]


@pytest.mark.parametrize(
    "damage", [b"{half\n", b"[]\n", b'{"id": 3, "prompt": "x", "text": "t"}\n', b'{"id": "q000", "prompt": "x"}\n',
               b'{"id": "q000", "prompt": "x", "text": 3}\n', b"\xff\xfe{}\n", b"\n"]
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path, damage):
    path = tmp_path / "a"
    with chat_server(shout) as server:
        ask(questions(3), path, server)
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = lines[0] + damage + b"".join(lines[1:])
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=f"{path}, line 2: damaged"):
        ask(questions(3), path)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("room", [0, 1, 700])
def test_a_full_disk_ends_the_run_and_what_is_recorded_is_whole(tmp_path, monkeypatch, room):
    """``room``: bytes that still find a place; the last write is cut off."""
    path, left = tmp_path / "a", [room]

    class Full(io.FileIO):
        def write(self, data):
            if not left[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            done = super().write(bytes(data)[: left[0]])
            left[0] -= done
            return done

    with chat_server(shout, delay=0.01) as server:
        monkeypatch.setattr(Path, "open", lambda self, mode="r", **settings: Full(self, mode) if mode == "ab" else
                            open(self, mode, **settings))
        with pytest.raises(UserError) as refused:
            ask(questions(30), path, server, workers=2)
        monkeypatch.undo()
        surroundings(monkeypatch)
        whole = path.read_bytes()
        assert len(records(path)) == whole.count(b"\n") and len(whole) <= room
        message = str(refused.value)
        assert f"{path} (No space left on device), where all that stands is whole: make room" in message
        assert f"{len(records(path))} of 30 questions are answered" in message and "\n" not in message
        assert len(server.requests) <= len(records(path)) + 4
        assert len(ask(questions(30), path, server).parsed) == 30
    assert path.read_bytes().startswith(whole) and len(records(path)) == 30


def test_one_process_at_a_time(tmp_path):
    with FileLock(tmp_path / "a.lock"), pytest.raises(UserError, match="another process is asking"):
        ask(questions(1), tmp_path / "a")


def test_a_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        ask(questions(1), tmp_path / "file" / "a")


# --- the key -----------------------------------------------------------------------------------------------------


def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path, monkeypatch, caplog, capfd):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("MY_KEY", f" {SECRET}\n")  # as a file pasted into a variable
    said = []
    faults = [echo_headers(500), body(f"<html>{SECRET}</html>".encode(), "text/html"), says(f"small {SECRET}")]
    with chat_server(lambda request: f"I WAS SENT {SECRET}", faults) as server:
        answers = ask(questions(2), tmp_path / "a", server, key_variable="MY_KEY", workers=1, check=capitals)
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}
        for fault in (echo_headers(500), body(SECRET.encode(), "text/html"), echo_headers(401), echo_headers(404),
                      status(302, {"Location": f"/{SECRET}"})):
            server.faults.append(fault)
            with pytest.raises(UserError) as refused:
                ask(questions(3), tmp_path / "a", server, key_variable="MY_KEY", max_retries=0)
            said.append("".join(traceback.format_exception(refused.value)))
            assert "[key]" in str(refused.value)
        server.faults.append(echo_headers(400))
        failures = ask(questions(3), tmp_path / "a", server, key_variable="MY_KEY").failures
        assert "[key]" in failures["q002"]
    assert answers.parsed["q000"] == answers.parsed["q001"] == "I WAS SENT [key]"
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*"))
    printed = "".join(capfd.readouterr())
    for place in (kept.decode(), "".join(said), repr(answers), repr(failures), caplog.text, printed):
        assert SECRET not in place


def test_a_stand_in_for_a_key_is_an_ordinary_word(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with chat_server(lambda request: "none of it") as server:
        assert ask(questions(1), tmp_path / "a", server).parsed == {"q000": "none of it"}


@pytest.mark.parametrize(
    ("environment", "settings", "words"),
    [({}, {}, "OPENAI_API_KEY is not set"),
     ({}, {"key_variable": "MY_KEY", "base_url": "http://localhost:1"}, "MY_KEY is not set"),
     ({"OPENAI_API_KEY": f"{SECRET}\n{SECRET}"}, {}, "characters that no key has"),
     ({"OPENAI_API_KEY": f"{SECRET}é"}, {}, "characters that no key has"),
     ({}, {"base_url": "localhost:8000/v1"}, "--base_url localhost:8000/v1: expected the address"),
     ({}, {"base_url": "http://localhost:80a/v1"}, "expected the address"),
     ({}, {"base_url": "http:///v1"}, "expected the address"),
     ({}, {"base_url": "http://localhost:99999/v1"}, "expected the address"),
     ({}, {"base_url": "http://[::1/v1"}, "expected the address"),
     ({}, {"base_url": "http://999.1.1.1/v1"}, "no connection to http://999.1.1.1/v1 can be set up"),
     ({}, {"base_url": "http://\u2603.invalid/v1"}, "can be set up"),
     ({"ALL_PROXY": "socks5://127.0.0.1:9"}, LOCAL, "'socksio' package is not installed"),
     ({"all_proxy": "socks9://127.0.0.1:9"}, LOCAL, "or all_proxy in the environment"),
     ({"HTTP_PROXY": "http://[::1"}, LOCAL, "HTTP_PROXY in the environment"),
     ({"SSL_CERT_FILE": "/proc/nowhere"}, LOCAL, "No such file or directory); mend --base_url, or SSL_CERT_FILE"),
     ({"SSL_CERT_FILE": "/dev/null"}, LOCAL, "or SSL_CERT_FILE in the environment"),
     ({"OPENAI_ORG_ID": "é"}, LOCAL, "OPENAI_ORG_ID holds characters that cannot be sent"),
     ({"OPENAI_CUSTOM_HEADERS": "x: é"}, LOCAL, "OPENAI_CUSTOM_HEADERS holds"),
     ({}, {"base_url": f"http://me:{SECRET}@localhost:80a/v1"}, "address alone"),
     ({"OPENAI_BASE_URL": f"http://localhost/v1?key={SECRET}"}, {}, "address alone")],
)
def test_what_is_wrong_before_anything_is_sent(tmp_path, monkeypatch, environment, settings, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        ask(questions(1), tmp_path / "b" / "a", **settings)
    assert words in str(refused.value)
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


# --- stopped and killed ------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from datamap.thoughts.chat_client import Question, ask_all

path, url, count, workers = sys.argv[1:]
names = [f"q{number:03d}" for number in range(int(count))]
ask_all([Question(name, [{"role": "user", "content": name}]) for name in names], path, model="m", base_url=url,
        check=lambda _, text: text, workers=int(workers))
"""


def start(path, server, count, workers):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, path, server.url, str(count), str(workers)], cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE, text=True,
    )


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    path, count, workers, kills = tmp_path / "a", 60, 4, 2
    with chat_server(shout, delay=0.03) as server:
        for kill in range(kills):
            process = start(path, server, count, workers)
            until(lambda want=15 * (kill + 1): path.exists() and path.read_bytes().count(b"\n") >= want)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            until(lambda: server.at_once == 0)
        finished = {record["id"] for record in records(path)}
        assert 15 * kills <= len(finished) < count
        before = server.asked()
        answers = ask(questions(count), path, server, workers=workers)
        after = server.asked()
    assert sorted(record["id"] for record in records(path)) == sorted(question.id for question in questions(count))
    assert len(answers.parsed) == count
    assert all(after[name] == before[name] for name in finished)
    assert sum(after.values()) <= count + kills * workers  # those on their way when it was killed


@pytest.mark.slow
@pytest.mark.parametrize("after", [3, 4, 6, 20])
def test_ctrl_c_waits_for_what_is_on_its_way(tmp_path, after):
    path = tmp_path / "a"
    with chat_server(shout, delay=0.2) as server:
        process = start(path, server, 60, 3)
        until(lambda: len(server.requests) >= after)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=30)[1]
        assert "KeyboardInterrupt" in errors
        assert len(records(path)) == len(server.requests) < 50


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    with chat_server(shout, delay=30) as server:
        process = start(tmp_path / "a", server, 40, 3)
        until(lambda: len(server.requests) == 3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.communicate(timeout=20)
        assert time.monotonic() - began < 10


def test_threads_end_with_the_call(tmp_path):
    before = threading.active_count()
    with chat_server(shout) as server:
        ask(questions(5), tmp_path / "a", server, workers=5)
    until(lambda: threading.active_count() <= before, 5)
