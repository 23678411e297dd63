"""The page's content: from artifacts to what is packed into the file, and the CSVs beside it."""

from __future__ import annotations

import base64
import csv
import json

import numpy as np
import pandas as pd
import pytest
from conftest import qa_rows, write_rows
from made_report import by_confidence, command, make_page, write_artifacts

import analyze_dataset
from datamap.analysis.unified_table import summarize_overlap
from datamap.core.files import read_json, read_table
from datamap.core.splits import load_split
from datamap.detection import known
from datamap.detection.base import Evidence
from datamap.report import examples, page, texts
from datamap.report.page import content_of
from datamap.tasks.registry import get_task


@pytest.fixture
def questions(tmp_path):
    directory = tmp_path / "notes"
    directory.mkdir()
    write_rows(directory / "train.jsonl", qa_rows(40, seed=3))
    write_rows(directory / "validation.jsonl", [*qa_rows(3, seed=3, prefix="v"), *qa_rows(3, seed=9, prefix="w")])
    return load_split(str(directory), "train", get_task("qa"))


@pytest.fixture
def written(tmp_path, questions, monkeypatch):
    return make_page(tmp_path, questions, monkeypatch)


def content(file):
    return content_of(file.read_text(encoding="utf-8"))


def values(column):
    return np.frombuffer(base64.b64decode(column["values"]), "<f4")


def columns(file):
    return {column["key"]: column for column in content(file)["columns"]}


def test_numbers_are_those_of_the_artifacts(written, questions, tmp_path):
    found, made = content(written), tmp_path / "made"
    metrics = read_table(made / "map" / "cartography_metrics.csv").set_index("id").loc[questions.ids]
    clusters = read_table(made / "clusters" / "cluster_assignments.csv").set_index("id").loc[questions.ids]
    by_key = columns(written)
    for name in ("confidence", "variability", "correctness"):
        assert np.allclose(values(by_key[name]), metrics[name], atol=1e-6)
    assert np.allclose(values(by_key["dim1"]), clusters["dim1"], atol=1e-6)
    cluster = by_key["cluster"]
    assert cluster["levels"] == ["0", "1", "noise"]
    named = [cluster["levels"][code] for code in cluster["codes"]]
    assert named == ["noise" if each == -1 else str(each) for each in clusters["cluster"]]
    facts = found["overview"]
    assert sum(each["n"] for each in facts["categories"]) == facts["examples"] == 40
    of_clusters = {row["name"]: row for row in facts["clusters"]}
    for name, inside in metrics.groupby(np.array(named)):
        assert of_clusters[name]["n"] == len(inside)
        assert of_clusters[name]["confidence_mean"] == pytest.approx(inside["confidence"].mean())
    epoch = read_json(made / "map" / "training_dynamics_epoch_2.json")
    packed = np.frombuffer(base64.b64decode(found["epochs"]["confidence"]), "<f4").reshape(40, 3)
    assert np.allclose(packed[:, 1], pd.Series(epoch["confidence"], epoch["id"]).loc[questions.ids], atol=1e-6)
    everybody = next(curve for curve in facts["learning"] if curve["name"] == "all")
    assert everybody["confidence"][1] == pytest.approx(np.mean(epoch["confidence"]))
    assert everybody["correct"][1] == pytest.approx(np.mean(epoch["correct"]))


def test_rules_and_regions_are_those_of_the_unified_table(written, questions, tmp_path):
    made = tmp_path / "made"
    analyze_dataset.main(["--export_unified", "--cartography_dir", str(made / "map"), "--cluster_dir",
                          str(made / "clusters"), "--predictions", str(made / "predictions"), "--dataset",
                          questions.name, "--output_dir", str(tmp_path / "unified")])
    unified = read_table(tmp_path / "unified" / "unified_analysis.csv")
    summary, facts = read_json(tmp_path / "unified" / "overlap_summary.json"), content(written)["overview"]
    rules = {rule["key"]: rule for rule in facts["rules"]}
    assert {name: rule["rate"] for name, rule in rules.items()} == pytest.approx(
        {name: rate for name, rate in summary["rule_rates"].items() if name != "n"})
    assert rules["is_dataset_error"]["n"] == summary["dataset_errors"]["n"] == unified["is_dataset_error"].sum()
    assert len(facts["regions"]) == len(summarize_overlap(unified, 40)["high_overlap_regions"])


def test_gold_spans_point_at_the_answers_in_utf16(tmp_path, monkeypatch):
    rows = qa_rows(6, seed=3)
    for each in rows:
        each["context"] = f"🙂🙂 {each['context']}"
        each["answers"]["answer_start"] = [each["answers"]["answer_start"][0] + 3]
    rows[2]["answers"] = {"text": [], "answer_start": []}
    split = load_split(str(write_rows(tmp_path / "e.jsonl", rows)), "train", get_task("qa"))
    found = content(make_page(tmp_path, split, monkeypatch))
    spans, contexts = found["text"]["spans"], found["text"]["columns"][1]["texts"]
    for row in range(6):
        wide = found["texts"][contexts[row]].encode("utf-16-le")
        start, length = spans["start"][row], spans["length"][row]
        answer = wide[2 * start : 2 * (start + length)].decode("utf-16-le")
        assert answer == rows[row]["answers"]["text"][0] if row != 2 else (start, length) == (-1, 0)
    assert found["texts"][found["said"]["gold"][2]] == found["no_answer"]


def test_no_id_of_the_copies_is_a_formula_or_an_escape(tmp_path, monkeypatch, capfd):
    directory = tmp_path / "evil"
    directory.mkdir()
    rows = qa_rows(3, seed=3)
    ids = {"=1+1": 0, "@a": 0, "\x1b[31m-1": 1, "-1": 2, "x": 2}
    write_rows(directory / "train.jsonl", [{**rows[place], "id": each} for each, place in ids.items()])
    write_rows(directory / "validation.jsonl", [{**rows[0], "id": "+1 a"}, {**rows[1], "id": "v"}])
    split = load_split(str(directory), "train", get_task("qa"))
    folder = make_page(tmp_path, split, monkeypatch).parent
    assert read_table(folder / "duplicates.csv", ("id", "other_id"))[["id", "other_id"]].to_numpy().tolist() == [
        ["'@a", "'=1+1"], ["x", "-1"]]  # a number is none
    assert read_table(folder / "leaks.csv", ("id", "other_id"))["other_id"].tolist() == ["'+1 a", "v"]
    assert "\x1b" not in "".join(capfd.readouterr())


def test_one_question_type_that_of_the_data_where_they_have_one(tmp_path, monkeypatch):
    rows = [{**row, "question_type": ("dose", "age")[place % 2]} for place, row in enumerate(qa_rows(6, seed=3))]
    split = load_split(str(write_rows(tmp_path / "own.jsonl", rows)), "train", get_task("qa"))
    file = make_page(tmp_path, split, monkeypatch)
    found = [column for column in content(file)["columns"] if column["label"].replace("_", " ") == "question type"]
    assert [(column["key"], column["levels"]) for column in found] == [("question_type", ["age", "dose"])]
    assert {row["name"]: row["n"] for row in content(file)["overview"]["groups"]["rows"]} == {"dose": 3, "age": 3}
    assert {row["name"]: row["n"] for row in content(file)["data"]["classes"]} == {"dose": 3, "age": 3}


@pytest.mark.parametrize(
    "start, length, most, expected",
    [(-1, 0, 5, ("abcde…", -1)), (10, 3, 7, ("…ijklmno…", 3)), (24, 2, 4, ("…wxyz", 3)), (0, 2, 4, ("abcd…", 0)),
     (3, 4, 100, ("abcdefghijklmnopqrstuvwxyz", 3)), (2, 20, 4, ("…cdefghijklmnopqrstuv…", 1))],
)
def test_excerpts_hold_their_answers(start, length, most, expected):
    text = "abcdefghijklmnopqrstuvwxyz"
    shown, place = examples.excerpt(text, start, length, most)
    assert (shown, place) == expected
    assert start < 0 or shown[place : place + length] == text[start : start + length]


def test_long_texts_are_cut_to_what_there_is_room_for(tmp_path, questions, monkeypatch):
    monkeypatch.setattr(examples, "TEXT_BYTES", 3000)
    monkeypatch.setattr(examples, "EXCERPTS", (200, 60, 30))
    found = content(make_page(tmp_path, questions, monkeypatch))
    assert found["text"]["cut"] in (30, 60)
    spans, shown = found["text"]["spans"], found["text"]["columns"][1]["texts"]
    for row, answer in enumerate(questions.data["answers"][:]):
        context = found["texts"][shown[row]]
        start = spans["start"][row]
        assert context[start : start + spans["length"][row]] == answer["text"][0] and len(context) < 100


def test_above_the_limit_a_sample_and_all_suspects_are_shown(tmp_path, questions, monkeypatch, capsys):
    file = make_page(tmp_path, questions, monkeypatch, report_max_points="8")
    found = content(file)
    confidence = values(columns(file)["confidence"])
    shown = set(found["ids"])
    assert 8 <= len(shown) < 40 and shown | set(found["other_ids"]) == set(questions.ids)
    assert found["total"] == 40 and f"{len(shown)} of 40 examples are on the page" in capsys.readouterr().out
    metrics = read_table(tmp_path / "made" / "map" / "cartography_metrics.csv").set_index("id")["confidence"]
    suspects = metrics.sort_values(kind="stable").index[:8][metrics.sort_values().to_numpy()[:8] <= 0.5]
    assert set(suspects) <= shown and len(confidence) == len(shown)
    assert max(max(found["said"]["gold"]), max(found["text"]["columns"][1]["texts"])) < len(found["texts"])
    near = np.frombuffer(base64.b64decode(found["neighbours"]["rows"]), "<i4")
    assert near.max() < len(shown) and (near == -1).any()


def test_shown_rows_do_not_depend_on_the_order_of_the_file():
    rng = np.random.default_rng(0)
    ids, suspicion = np.array([f"e{each:03d}" for each in range(100)]), rng.random(100) * 0.6
    shown = examples.shown_rows(suspicion, np.arange(100), 10, 1)
    mixed = rng.permutation(100)
    other = examples.shown_rows(suspicion[mixed], np.argsort(ids[mixed], kind="stable"), 10, 1)
    assert set(ids[mixed][other]) == set(ids[shown]) and len(shown) <= 20


def test_what_was_not_made_is_left_out(tmp_path, questions, monkeypatch):
    monkeypatch.setattr(known, "suspicion", by_confidence)
    flags = write_artifacts(tmp_path / "made", questions)
    for file in (tmp_path / "made" / "map").glob("training_dynamics*"):
        file.unlink()
    analyze_dataset.main(command(questions, {"--cartography_dir": flags["--cartography_dir"]}, tmp_path / "report"))
    found = content(tmp_path / "report" / "report.html")
    assert found["epochs"] == {"count": 0} and found["neighbours"] is None
    assert not {"clusters", "regions", "learning"} & set(found["overview"])
    assert {"cluster", "dim1"}.isdisjoint(column["key"] for column in found["columns"])
    assert [source["what"] for source in found["provenance"]] == ["data map"]
    assert found["said"]["predicted"] == [-1] * 40


def test_earlier_decisions_are_where_it_begins(tmp_path, questions, monkeypatch):
    file = tmp_path / "decisions.csv"
    file.write_text("id,decision,corrected\nex-003,drop,\nex-004,fix,[no answer]\nex-005,,\n")
    found = content(make_page(tmp_path, questions, monkeypatch, decisions=str(file)))
    assert found["decisions"] == [["ex-003", "drop", ""], ["ex-004", "fix", "[no answer]"]]


def test_columns_of_the_data_become_what_they_are(tmp_path, monkeypatch):
    rows = qa_rows(12, seed=3)
    for number, row in enumerate(rows):
        row |= {"size": number / 2 if number else None, "kind": "ab"[number % 2], "note": f"note {number} " * 20,
                "tags": ["x", str(number)], "serial": 1234567890 + number, "done": number > 3, "empty": None}
    split = load_split(str(write_rows(tmp_path / "c.jsonl", rows)), "train", get_task("qa"))
    found = columns(make_page(tmp_path, split, monkeypatch))
    assert np.isnan(values(found["data size"])[0]) and values(found["data size"])[3] == 1.5
    assert found["data kind"]["levels"] == ["a", "b"] and found["data kind"]["codes"][:3] == [0, 1, 0]
    assert found["data note"]["kind"] == "text" and "data empty" not in found
    assert np.frombuffer(base64.b64decode(found["data serial"]["values"]), "<f8")[5] == 1234567895
    assert found["data done"]["levels"] == ["true", "false"]
    assert '["x", "0"]' in found["data tags"]["levels"]


def test_labels(tmp_path, monkeypatch):
    """Pairs with labels: no spans, classes to correct to, the group by which one colours."""
    split = load_split("demo:nli", "train", get_task("nli"), max_samples=30)
    monkeypatch.setattr(known, "suspicion", by_confidence)
    flags = write_artifacts(tmp_path / "made", split)
    analyze_dataset.main([*command(split, flags, tmp_path / "report"), "--max_samples", "30"])
    file = tmp_path / "report" / "report.html"
    found = content(file)
    assert found["kind"] == "labels" and found["classes"] == ["contradiction", "entailment", "neutral"]
    assert "spans" not in found["text"] and "rules" not in found["overview"]
    assert columns(file)["label"]["kind"] == "factor"
    assert [column["label"] for column in found["text"]["columns"]] == ["premise", "hypothesis"]


# --- the file ----------------------------------------------------------------------------------------------------


def test_the_page_holds_no_text_of_the_data_as_it_is(tmp_path, monkeypatch):
    rows = qa_rows(12, seed=3)
    rows[0]["question"] = "</script><script>%%DATA%%"
    split = load_split(str(write_rows(tmp_path / "n.jsonl", rows)), "train", get_task("qa"))
    text = make_page(tmp_path, split, monkeypatch).read_text(encoding="utf-8")
    assert "%%DATA" not in text and text.count("</script>") == 1 + 1 + len(page.SCRIPTS)
    assert rows[0]["question"] in content_of(text)["texts"]
    policy = text.partition('Content-Security-Policy" content="')[2].partition('"')[0]
    assert "default-src 'none'" in policy and policy.count("sha256-") == 1 + len(page.SCRIPTS)
    scripts = policy.partition("script-src")[2].partition(";")[0]
    assert "'unsafe-inline'" not in scripts and "http" not in policy


def test_the_command_writes_page_and_copies(written, questions, tmp_path):
    meta = read_json(written.parent / "run_meta.json")
    assert meta["status"] == "finished" and set(meta["outputs"]) == {"report.html", "leaks.csv", "duplicates.csv"}
    assert meta["datasets"][0]["fingerprint"] == questions.fingerprint
    leaks = list(csv.DictReader((written.parent / "leaks.csv").open(newline="")))
    exact = [(row["id"], row["split"], row["other_id"]) for row in leaks if row["kind"] == "exact"]
    assert exact == [(f"ex-00{number}", "validation", f"v-00{number}") for number in range(3)]
    assert {row["same_gold"] for row in leaks if row["kind"] == "exact"} == {"true"}
    facts = content(written)["data"]
    assert facts["compared"] == ["validation"]
    assert facts["leaks"]["counts"][0] == {"kind": "exact", "n": 3, "other_gold": 0}
    assert {pair["other_id"] for pair in facts["leaks"]["pairs"]} == {row["other_id"] for row in leaks}


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--report", "--find_errors"], "--find_errors and --report write different files"),
        (["--report_max_points", "5"], "--report_max_points is for --report"),
        (["--report", "--judge_top", "3"], "--judge_top is for --find_errors"),
        (["--report", "--cartography_dir", "none"], "no such file or directory"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, said, refused):
    assert said in refused(analyze_dataset.main, *flags)


# --- the data alone ----------------------------------------------------------------------------------------------


def test_lengths_in_words_and_in_tokens(questions, tiny_model, tmp_path):
    found = texts.lengths_of(Evidence(questions), None, None, 0)
    words = [len(text.split()) for text in questions.data["context"][:]]
    assert found["unit"] == "words" and found["cut"] is None
    context = found["columns"][1]
    assert (context["mean"], context["max"]) == (pytest.approx(np.mean(words)), max(words))
    assert [each["name"] for each in found["columns"]] == ["question", "context", "answer"]
    assert 0 < sum(context["counts"]) <= 40

    from transformers import AutoTokenizer

    (tmp_path / "map").mkdir()
    (tmp_path / "map" / "run_meta.json").write_text(json.dumps(
        {"status": "finished", "arguments": {"do_train": True, "output_dir": str(tiny_model), "max_length": 100}}))
    tokenizer, most = texts.tokenizer_of(tmp_path / "map")
    found = texts.lengths_of(Evidence(questions), tokenizer, most, 0)
    theirs = AutoTokenizer.from_pretrained(tiny_model)
    pairs = theirs(questions.data["question"][:], questions.data["context"][:])["input_ids"]
    assert found["unit"] == "tokens" and found["max_length"] == 100
    assert found["cut"] == sum(len(each) > 100 for each in pairs)
    alone = [len(each) for each in theirs(questions.data["context"][:], add_special_tokens=False)["input_ids"]]
    assert found["columns"][1]["max"] == max(alone) and found["columns"][1]["mean"] == pytest.approx(np.mean(alone))
