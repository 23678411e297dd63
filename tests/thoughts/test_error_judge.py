"""The judge of suspects: whom it is asked about, what is read out of answers, and its verdicts in suspects.csv."""

import functools
import json
import re

import numpy as np
import pandas as pd
import pytest
from chat_server import chat_server, says, status, surroundings
from conftest import write_rows

import analyze_dataset
from datamap.core.errors import UserError
from datamap.core.files import read_table
from datamap.core.splits import load_split
from datamap.detection import known
from datamap.detection.decisions import NO_ANSWER
from datamap.tasks.registry import get_task
from datamap.thoughts.error_judge import ANSWERS, expected_cost, judge_errors, parse_opinion, questions

LABELS = ["entailment", "neutral", "contradiction"]


@pytest.fixture(autouse=True)
def of_the_machine(monkeypatch):
    surroundings(monkeypatch)


@pytest.fixture
def pairs(tmp_path):
    rows = [{"id": f"p{row}", "premise": f"A man eats {row} apples.", "hypothesis": f"Someone eats {row}.",
             "label": LABELS[row % 3]} for row in range(9)]
    return load_split(str(write_rows(tmp_path / "pairs.jsonl", rows)), "train", get_task("nli"))


@pytest.fixture
def asked(tmp_path):
    rows = [{"id": f"q{row}", "question": "Who?", "context": "Ada met Bob.",
             "answers": {"text": text, "answer_start": [0] * len(text)}}
            for row, text in enumerate([["Ada"], ["Ada"], [], ["Ada"], ["Ada"]])]
    return load_split(str(write_rows(tmp_path / "asked.jsonl", rows)), "train", get_task("qa"))


def verdict(verdict="wrong", probability=0.9, correction: object = "entailment", reason="He does."):
    return {"verdict": verdict, "probability": probability, "correction": correction, "reason": reason}


def parts(request):
    """What stands between the lines [begin NAME CODE] and [end NAME CODE]."""
    prompt = request["messages"][0]["content"]
    code = re.findall(r"^\[begin .* ([0-9a-f]{16})\]$", prompt, re.MULTILINE)[0]
    return dict(re.findall(rf"^\[begin (.*?) {code}\]\n(.*?)\n\[end \1 {code}\]$", prompt, re.MULTILINE | re.DOTALL))


def strict(request):
    """All that is not entailment is wrong."""
    label = parts(request)["label"]
    right = verdict("right", 0.1, None, f"It is {label}.")
    return json.dumps(right if label == "entailment" else verdict(reason=f"It is not {label}."))


def judged(split, directory, server, suspicion=None, top=9, **settings):
    suspicion = np.linspace(0.1, 0.9, len(split.data)) if suspicion is None else suspicion
    return judge_errors(split, suspicion, top=top, directory=directory, model="m", base_url=server.url, **settings)


# --- asking ------------------------------------------------------------------------------------------------------


def test_the_most_suspicious_are_asked_about_and_once_only(tmp_path, pairs):
    with chat_server(strict) as server:
        found = judged(pairs, tmp_path / "out", server, top=4)
        assert sorted(found) == ["p5", "p6", "p7", "p8"]
        assert {parts(request)["premise"] for request in server.requests} == {
            f"A man eats {row} apples." for row in (5, 6, 7, 8)}
        assert all(request["temperature"] == 0 and request["model"] == "m" for request in server.requests)
        assert "The labels of this dataset are: contradiction, entailment, neutral." in (
            server.requests[0]["messages"][0]["content"])
        again = judged(pairs, tmp_path / "out", server, top=6)
        assert len(server.requests) == 6
    assert {name: again[name] for name in found} == found
    assert found["p6"] == (0.1, "a chat model says right: It is entailment.", None)
    assert found["p7"] == (0.9, "a chat model says wrong: It is not neutral.", "entailment")
    lines = (tmp_path / "out" / ANSWERS).read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == [f"p{row}" for row in range(3, 9)]


def test_the_cost_is_said_before_and_of_what_is_missing_alone(tmp_path, pairs, caplog):
    asked, path = questions(pairs, range(9)), tmp_path / ANSWERS
    length = sum(len(question.messages[0]["content"]) for question in asked)
    cost = expected_cost(asked, path, "m")
    assert cost == (9, -(-length // 4), 9 * 70)
    with caplog.at_level("INFO"), chat_server(strict) as server:
        said = []

        def answer(request):
            said.append(caplog.text)
            return strict(request)

        server.answer = answer
        judged(pairs, tmp_path, server, top=9)
    assert f"m judges 9 examples: 9 requests to come, about {cost.prompt_tokens:,} tokens in and 630 out" in said[0]
    assert expected_cost(asked, path, "m") == (0, 0, 0)
    assert expected_cost(asked, path, "another").requests == 9


def test_a_verdict_that_cannot_be_read_is_none(tmp_path, pairs, caplog):
    """The first answer and all five repetitions."""
    bad = [says(json.dumps(verdict(probability=0.2)))] * 6
    with chat_server(strict, bad) as server:
        found = judged(pairs, tmp_path, server, top=3, workers=1)
        assert len(server.requests) == 6 + 2
    assert sorted(found) == ["p6", "p7"]
    assert "no verdict on 1 of 3 examples ('p8'; 'p8': 'verdict' is wrong and 'probability' 0.2" in caplog.text


def test_equals_are_asked_in_the_order_of_the_split(tmp_path, pairs):
    with chat_server(strict) as server:
        assert list(judged(pairs, tmp_path, server, np.zeros(9), top=2)) == ["p0", "p1"]
        assert len(judged(pairs, tmp_path, server, np.zeros(9), top=200)) == 9


# --- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [(verdict(), verdict()), (verdict("Wrong "), verdict()), (verdict("unsure", 0.1), verdict("unsure", 0.1)),
     (verdict("right", 0, None), verdict("right", 0.0, None)), (verdict("right", 0.5), verdict("right", 0.5)),
     ({**verdict(), "more": 1}, verdict())],
)
def test_an_opinion_is_found(said, expected):
    assert parse_opinion(f"<think>{{}}</think>So: {json.dumps(said)}!") == expected


@pytest.mark.parametrize(
    ("said", "words"),
    [(verdict("maybe"), "'verdict' is 'maybe'"), (verdict(None), "'verdict' is None"),
     (verdict(probability="0.9"), "'probability' is '0.9'"), (verdict(probability=True), "'probability' is True"),
     (verdict(probability=90), "'probability' is 90"), (verdict(probability=-0.1), "'probability' is -0.1"),
     (verdict("right", 0.9), "'verdict' is right and 'probability' 0.9"), (verdict(correction=1), "'correction' is 1"),
     (verdict(reason=None), "'reason' is None"), ({"verdict": "wrong"}, "no JSON object"), ([], "no JSON object")],
)
def test_no_opinion(said, words):
    with pytest.raises(ValueError, match=re.escape(words) if "no JSON" not in words else "no key|no JSON"):
        parse_opinion(json.dumps(said))


def test_opinions_that_differ_are_none():
    with pytest.raises(ValueError, match="2 verdicts that differ"):
        parse_opinion(json.dumps(verdict()) + json.dumps(verdict(probability=0.8)))


@pytest.mark.parametrize(
    ("correction", "kept"),
    [("entailment", "entailment"), (" Entailment", "entailment"), ("neutral", None), ("both", None), ("", None),
     (None, None)],
)
def test_a_label_is_proposed_where_it_is_one_and_another(tmp_path, pairs, correction, kept):
    with chat_server(lambda _: json.dumps(verdict(correction=correction))) as server:
        assert judged(pairs, tmp_path, server, np.eye(9)[1], top=1)["p1"].correction == kept
        assert pairs.data["label"][1] == pairs.data.features["label"].names.index("neutral")


def test_an_answer_is_proposed_where_it_stands_in_the_context(tmp_path, asked):
    said = iter(["Bob", "Eve", NO_ANSWER, "Ada", NO_ANSWER])
    with chat_server(lambda _: json.dumps(verdict(correction=next(said)))) as server:
        found = judged(asked, tmp_path, server, np.zeros(5), top=5, workers=1)
        prompt = server.requests[2]["messages"][0]["content"]
    assert [found[f"q{row}"].correction for row in range(5)] == ["Bob", None, None, None, NO_ANSWER]
    assert "(none: the dataset says that the context does not answer" in prompt
    assert "copied letter by letter" in prompt


def _always(reply: str, request: object) -> str:
    return reply


def test_only_what_is_wrong_is_corrected(tmp_path, pairs):
    for number, said in enumerate((verdict("right", 0.2), verdict("unsure", 0.5))):
        reply = json.dumps(said)
        with chat_server(functools.partial(_always, reply)) as server:
            assert judged(pairs, tmp_path / str(number), server, np.eye(9)[1], top=1)["p1"].correction is None


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path, pairs, monkeypatch):
    """Artifacts of the pairs, without run_meta.json; suspicion is 1 - confidence."""
    monkeypatch.setattr(known, "suspicion", lambda evidence, _: (
        1 - evidence.metrics["confidence"].to_numpy(dtype=float), "the data map"))
    (tmp_path / "map").mkdir()
    pd.DataFrame({
        "id": pairs.ids, "confidence": np.linspace(0.9, 0.1, 9), "variability": 0.1, "correctness": 1.0,
        "num_epochs": 5, "forgetting_events": 0, "never_learned": False, "aum": 1.0,
    }).to_csv(tmp_path / "map" / "cartography_metrics.csv", index=False)
    return ["--find_errors", "--cartography_dir", str(tmp_path / "map"), "--dataset", pairs.name, "--task", "nli",
            "--output_dir", str(tmp_path / "suspects")]


def test_the_command_asks_and_writes_what_was_said(tmp_path, finished, capsys):
    with chat_server(strict) as server:
        flags = ["--judge_top", "3", "--judge_model", "m", "--base_url", server.url]
        analyze_dataset.main([*finished, *flags])
        analyze_dataset.main([*finished, *flags])
        assert len(server.requests) == 3
    table = read_table(tmp_path / "suspects" / "suspects.csv").set_index("id")
    assert table.columns[:2].tolist() == ["suspicion", "judge"]
    assert table.index.tolist() == [f"p{row}" for row in range(8, -1, -1)]
    assert table["judge"].dropna().to_dict() == {"p8": 0.9, "p7": 0.9, "p6": 0.1}
    assert table["proposed"].dropna().to_dict() == {"p8": "entailment", "p7": "entailment"}
    assert table["reasons"]["p8"].startswith("a chat model says wrong: It is not contradiction.")
    assert "a judge's opinion of 3 examples, column judge" in capsys.readouterr().out
    assert (tmp_path / "suspects" / ANSWERS).exists()


def test_a_review_learns_how_far_to_trust_the_judge(tmp_path, finished):
    """The review before it decided as the judge says, and of two that are left the judge finds one wrong."""
    reviewed = tmp_path / "reviewed.csv"
    rows = [f"p{row},{'keep' if row % 3 == 0 else 'drop'}" for row in range(1, 8)]
    reviewed.write_text("\n".join(["id,decision", *rows]))
    chances = {}
    for say in ("wrong", "right"):
        def answer(request, say=say):
            is_left = "8 apples" in request["messages"][0]["content"]
            return json.dumps(verdict(say, 0.9 if say == "wrong" else 0.1)) if is_left else strict(request)

        with chat_server(answer) as server:
            analyze_dataset.main([*finished[:-1], str(tmp_path / say), "--decisions", str(reviewed),
                                  "--judge_top", "9", "--judge_model", "m", "--base_url", server.url])
            assert len(server.requests) == 9
        chances[say] = read_table(tmp_path / say / "suspects.csv").set_index("id")["suspicion"]["p8"]
    assert chances["wrong"] > chances["right"] + 0.05


@pytest.mark.parametrize(
    ("url", "certificates", "words"),
    [("localhost:1", "", "expected the address of a server"),
     ("http://localhost:1", "/proc/nowhere", "SSL_CERT_FILE")],
)
def test_a_server_that_cannot_be_leaves_nothing(tmp_path, finished, refused, monkeypatch, url, certificates, words):
    monkeypatch.setenv("SSL_CERT_FILE", certificates)
    before = set(tmp_path.rglob("*"))
    flags = ["--judge_top", "3", "--judge_model", "m", "--base_url", url]
    assert words in refused(analyze_dataset.main, *finished, *flags)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--judge_top", "3"], "--judge_top and --judge_model belong together"),
     (["--judge_model", "m"], "--judge_top and --judge_model belong together"),
     (["--base_url", "http://localhost:1"], "--base_url is where a judge is asked")],
)
def test_flags_that_go_together(finished, refused, flags, words):
    assert words in refused(analyze_dataset.main, *finished, *flags)


def test_a_judge_is_for_find_errors(refused):
    assert "--judge_top is for --find_errors" in refused(
        analyze_dataset.main, "--judge_top", "3", "--judge_model", "m")


def test_what_was_answered_before_an_error_is_not_asked_again(tmp_path, pairs):
    with chat_server(strict, [*[says(json.dumps(verdict()))] * 2, status(401)]) as server:
        with pytest.raises(UserError, match="refuses the key"):
            judged(pairs, tmp_path, server, workers=1)
        assert len(server.requests) == 3
        assert len(judged(pairs, tmp_path, server, workers=1)) == 9
        assert len(server.requests) == 3 + 7
