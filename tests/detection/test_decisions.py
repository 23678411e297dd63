"""Decisions come back from any spreadsheet as they were made, and a dataset is cleaned by them."""

from __future__ import annotations

import csv
import io
import json

import pandas as pd
import pytest
from conftest import qa_rows, review_rows, write_rows
from hypothesis import example, given
from hypothesis import strategies as st

import dataset_filters
import run
from datamap.core.errors import UserError
from datamap.core.files import read_json, read_jsonl, read_table
from datamap.core.splits import load_split
from datamap.core.tables import neutralised, restored, write_for_spreadsheet
from datamap.detection.decisions import NO_ANSWER, read_decisions
from datamap.detection.suspects import decisions_on
from datamap.tasks.registry import get_task

NASTY = st.sampled_from("=+-@\t\r\n'\" ;,\uff1d\ufeff\x1fa1")
TEXTS = st.text(st.one_of(NASTY, st.characters(exclude_categories=["Cs"])))
RUNS = ("=1+1", "+49 30", "-5 mg", "@SUM(1)", "\t=1", "\rx", " =1", "\n=1", "\uff1d1", "\ufeff=1", "'=1", "''-")


def edited(path, rows, separator=",", encoding="utf-8", line_end="\r\n", header=("id", "decision", "corrected")):
    """A CSV as a spreadsheet saves it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator=line_end)
    writer.writerow(header)
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def as_rows(frame):
    return frame[["id", "decision", "corrected"]].values.tolist()


# --- texts -------------------------------------------------------------------------------------------------------


@given(TEXTS)
@example("'=x")
@example("''''\t")
def test_every_text_comes_back(text):
    cell = neutralised(text)
    assert restored(cell) == text
    assert cell.lstrip()[:1] not in tuple("=+-@\uff1d\uff0b\uff0d\uff20") and cell[:1] not in ("\t", "\r")


@pytest.mark.parametrize("text", RUNS)
def test_what_would_run_does_not(text):
    assert neutralised(text) == f"'{text}" and restored(f"'{text}") == text


@pytest.mark.parametrize("text", ["", "'", "'tis", "5 - 3", "a=b", "3.5", "\u2013 5"])
def test_what_would_not_run_stays(text):
    assert neutralised(text) == text == restored(text)


@given(st.lists(st.tuples(TEXTS.filter(bool), TEXTS.filter(str.strip)), min_size=1, max_size=5,
                unique_by=lambda cells: cells[0]),
       st.sampled_from(",;\t"), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_ids_and_corrections_come_back_through_a_spreadsheet(tmp_path_factory, cells, separator, encoding):
    """Written by us, read and saved again in another dialect."""
    file = tmp_path_factory.mktemp("sheet") / "suspects.csv"
    frame = pd.DataFrame([(one, "fix", two) for one, two in cells], columns=["id", "decision", "corrected"])
    write_for_spreadsheet(file, frame)
    rows = list(csv.reader(io.StringIO(file.read_bytes().decode("utf-8-sig"), newline="")))
    edited(file, rows[1:], separator, encoding, header=rows[0])
    assert as_rows(read_decisions(file)) == frame.values.tolist()


def test_our_own_readers_read_the_file_too(tmp_path):
    frame = pd.DataFrame({"id": ["001", "-2"], "suspicion": [0.25, None], "gold": ["=a", None]})
    write_for_spreadsheet(tmp_path / "suspects.csv", frame)
    read = read_table(tmp_path / "suspects.csv", ("id", "suspicion"), ("gold",))
    assert read["id"].tolist() == ["001", "'-2"] and read["suspicion"].isna().tolist() == [False, True]
    assert read["gold"].iloc[0] == "'=a"


def test_a_column_is_no_formula_either(tmp_path):
    write_for_spreadsheet(tmp_path / "suspects.csv", pd.DataFrame({"id": ["a"], "=1+1": ["b"]}))
    assert list(read_table(tmp_path / "suspects.csv")) == ["id", "'=1+1"]


# --- dialects ----------------------------------------------------------------------------------------------------


def test_columns_in_any_order_and_case_and_others_beside_them(tmp_path):
    rows = [["see p. 3", "1.25", " Keep ", "001", ""], ["", "x", "FIX", "12e5", "a; b"], ["", "", "", "7", ""],
            ["", "", "", "", ""]]
    file = edited(tmp_path / "s.csv", rows, ";", header=["My notes", "Column1", " Decision", "ID", "Corrected "])
    assert as_rows(read_decisions(file)) == [["001", "keep", ""], ["12e5", "fix", "a; b"], ["7", "", ""]]


def test_a_line_about_the_separator_and_short_rows(tmp_path):
    (tmp_path / "s.csv").write_text("sep=\t\r\nid\tdecision\tcorrected\r\n1\tdrop\r\n2\r\n")
    assert as_rows(read_decisions(tmp_path / "s.csv")) == [["1", "drop", ""], ["2", "", ""]]


def test_the_code_page_of_windows_is_read_with_a_warning(tmp_path, caplog):
    file = edited(tmp_path / "s.csv", [["a", "fix", "Müller"]], ";", "cp1252")
    assert as_rows(read_decisions(file)) == [["a", "fix", "Müller"]]
    assert "Windows-1252" in caplog.text


def test_a_fix_takes_what_was_proposed(tmp_path):
    header = ["id", "proposed", "decision", "corrected"]
    rows = [["a", "'-5 mg", "fix", ""], ["b", "x", "fix", "y"], ["c", "x", "", ""], ["d", "x", "keep", ""]]
    frame = read_decisions(edited(tmp_path / "s.csv", rows, header=header))
    assert as_rows(frame) == [["a", "fix", "-5 mg"], ["b", "fix", "y"], ["c", "", ""], ["d", "keep", ""]]


def test_the_same_decision_twice_is_one(tmp_path):
    rows = [["a", "", ""], ["a", "drop", ""], ["a", "Drop", ""]]
    assert as_rows(read_decisions(edited(tmp_path / "s.csv", rows))) == [["a", "drop", ""]]


@pytest.mark.parametrize(
    "rows, said",
    [
        ([["a", "remove", ""]], "line 2 (id 'a'): decision 'remove'; expected keep, drop, fix or nothing"),
        ([["a", "fix", " "]], "line 2 (id 'a'): fix, and neither corrected nor proposed says to what"),
        ([["a", "", "x"]], "corrected is 'x' and decision ''"),
        ([["a", "keep", "x"]], "corrected is 'x' and decision 'keep'"),
        ([["", "keep", ""]], "line 2: a decision without an id"),
        ([["a", "keep", ""], ["a", "drop", ""]], "line 3 (id 'a'): decided twice, keep and drop"),
        ([["a", "fix", "x"], ["a", "fix", "y"]], "decided twice, fix 'x' and fix 'y'"),
        ([["a", "keep", "", "more"]], "line 2: 4 columns where the header has 3"),
        ([], "holds no examples"),
    ],
)
def test_what_cannot_be_meant_is_said_in_one_line(tmp_path, rows, said):
    with pytest.raises(UserError) as error:
        read_decisions(edited(tmp_path / "s.csv", rows))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"PK\x03\x04", "is a workbook"), (b"", "no columns id and decision"), (b"id,label\n1,2\n", "'id,label'"),
        (b"id,decision,decision\n1,keep,\n", "column 'decision' is there more than once"),
        (b"\xff\xfea", "not whole UTF-16"),
    ],
)
def test_other_files_are_refused(tmp_path, content, said):
    (tmp_path / "s.csv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_decisions(tmp_path / "s.csv")


# --- a cleaned dataset -------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path):
    """A dataset directory; ids of the training split are numbers with leading zeros."""
    directory = tmp_path / "reviews"
    directory.mkdir()
    rows = review_rows(20, seed=0, classes=("good", "bad"))
    for number, row in enumerate(rows):
        row["id"] = f"{number:03d}"
    write_rows(directory / "train.jsonl", rows)
    write_rows(directory / "validation.jsonl", review_rows(8, seed=1, prefix="v"))
    write_rows(directory / "test.jsonl", review_rows(6, seed=2, prefix="t"))
    return directory, rows


def cleaned(tmp_path, data, file, *flags, task="classification"):
    argv = ["--task", task, "--dataset", data, "--decisions", file, "--output_dir", tmp_path / "cleaned", *flags]
    dataset_filters.main([str(word) for word in argv])
    return tmp_path / "cleaned"


def test_labels_are_dropped_fixed_and_kept(tmp_path, labelled, capsys):
    directory, rows = labelled
    header = ["id", "suspicion", "decision", "corrected"]
    suspects = [["000", "0.99", "keep", ""], ["001", "0,98", "", ""], ["002", "0.97", "fix", " Bad "],
                ["003", "0.96", "drop", ""], ["004", "0.9", "", ""], ["005", "0.2", "", ""], ["006", "", "", ""]]
    file = edited(tmp_path / "reviewed.csv", suspects, ";", header=header)
    output = cleaned(tmp_path, directory, file, "--drop_above", "0.9", "--eval_split", "validation,test")
    expected = [dict(row, label="bad" if row["id"] == "002" else row["label"]) for row in rows
                if row["id"] not in ("001", "003")]
    written = read_jsonl(output / "train.jsonl")
    assert [(row["id"], row["label"]) for row in written] == [(row["id"], row["label"]) for row in expected]
    report = read_json(output / "cleaning_report.json")
    assert report == {
        "before": 20, "after": 18, "drop_above": 0.9,
        "dropped": [{"id": "003", "decided_by": "person"},
                    {"id": "001", "decided_by": "drop_above", "suspicion": 0.98}],
        "fixed": [{"decided_by": "person", "id": "002", "was": "good", "corrected": "bad"}],
        "kept": [{"id": "000", "decided_by": "person"}],
        "undecided": 16, "left_out_before": [], "changed_since": [],
    }
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == ("dropped 1 as a person decided and 1 with a suspicion above 0.9, fixed 1, kept 1 by decision, "
                        "16 undecided")
    assert said[-1].startswith("wrote 18 of 20 examples and cleaning_report.json to ")
    for split in ("validation", "test"):
        task = get_task("classification")
        original, copied = (load_split(str(place), split, task) for place in (directory, output))
        assert original.fingerprint == copied.fingerprint


def test_a_fix_to_what_is_annotated_already_counts_as_keep(tmp_path, labelled, notes, caplog):
    """It changes nothing, so nothing was wrong: neither the report nor what a review learns may say so."""
    directory, rows = labelled
    label = rows[2]["label"]
    other = {"good": "bad", "bad": "good"}[rows[4]["label"]]
    file = edited(tmp_path / "reviewed.csv", [["002", "fix", f" {label.upper()} "], ["004", "fix", other]])
    report = read_json(cleaned(tmp_path, directory, file) / "cleaning_report.json")
    assert report["kept"] == [{"id": "002", "decided_by": "person"}]
    assert [each["id"] for each in report["fixed"]] == ["004"]
    assert f"{file}: 1 fix says what is annotated already ('002'): it counts as keep" in caplog.text
    decided = decisions_on(load_split(str(directory), "train", get_task("classification")), str(file))
    assert decided["decision"].to_dict() == {"002": "keep", "004": "fix"}
    # An answer at its place; one whose place is wrong is mended by its own text.
    file, rows = notes
    again = edited(tmp_path / "answers.csv", [[row["id"], "fix", row["answers"]["text"][0]] for row in rows[:3]])
    report = read_json(cleaned(tmp_path, file, again, task="qa") / "cleaning_report.json")
    assert [each["id"] for each in report["kept"]] == [rows[0]["id"], rows[2]["id"]]
    assert [each["id"] for each in report["fixed"]] == [rows[1]["id"]]


def test_a_split_of_an_earlier_run_does_not_stay(tmp_path, labelled):
    directory, _ = labelled
    file = edited(tmp_path / "reviewed.csv", [["000", "drop", ""]])
    output = cleaned(tmp_path, directory, file, "--eval_split", "validation")
    assert (output / "validation.jsonl").exists()
    cleaned(tmp_path, directory, file)
    assert sorted(path.name for path in output.glob("*.json*")) == [
        "cleaning_report.json", "run_meta.json", "train.jsonl"
    ]


def test_run_trains_and_evaluates_on_what_was_cleaned(tmp_path, labelled):
    directory, _ = labelled
    file = edited(tmp_path / "reviewed.csv", [["003", "drop", ""], ["002", "fix", "bad"]])
    output = cleaned(tmp_path, directory, file, "--eval_split", "validation")
    run.main(["--task", "classification", "--do_train", "--do_eval", "--model", "tiny", "--hidden_size", "16",
              "--max_length", "32", "--num_train_epochs", "1", "--dataset", str(output), "--no_cuda",
              "--save_strategy", "no", "--enable_cartography", "--cartography_output_dir", str(tmp_path / "map"),
              "--output_dir", str(tmp_path / "model")])
    assert len(read_jsonl(tmp_path / "model" / "eval_predictions.jsonl")) == 8
    assert len(read_table(tmp_path / "map" / "cartography_metrics.csv", ("id",))) == 19


def test_decisions_go_with_filters(tmp_path, labelled):
    """What a filter takes is gone, whatever was decided on it."""
    directory, rows = labelled
    (tmp_path / "map.csv").write_text("id,confidence,variability\n" + "".join(
        f"{row['id']},{place / 20},0.1\n" for place, row in enumerate(rows)))
    config = {"confidence": {"metrics_path": str(tmp_path / "map.csv"), "min_confidence": 0.25}}
    (tmp_path / "filters.json").write_text(json.dumps(config))
    file = edited(tmp_path / "reviewed.csv", [["001", "fix", "good"], ["010", "drop", ""]])
    output = cleaned(tmp_path, directory, file, "--filter_config", tmp_path / "filters.json")
    assert [row["id"] for row in read_jsonl(output / "train.jsonl")] == [
        f"{place:03d}" for place in range(5, 20) if place != 10
    ]
    report = read_json(output / "cleaning_report.json")
    assert report["fixed"] == [] and report["left_out_before"] == ["001"] and report["undecided"] == 14
    assert read_json(output / "filter_report.json")["after"] == 15


@pytest.fixture
def notes(tmp_path):
    """Questions; one answer not at its place, one context with its name at several places."""
    rows = qa_rows(6, seed=3)
    rows[1]["answers"]["answer_start"] = [5000]
    rows[2] |= {"context": "Oslo, Oslo and Oslo. Oslofjord is\u00a0near.", "question": "Where?",
                "answers": {"text": ["and"], "answer_start": [11]}}
    return write_rows(tmp_path / "notes.jsonl", rows), rows


def test_answers_are_put_where_they_stand(tmp_path, notes, capsys):
    file, rows = notes
    answer = rows[1]["answers"]["text"][0]
    decisions = edited(tmp_path / "reviewed.csv", [
        [rows[0]["id"], "fix", NO_ANSWER], [rows[1]["id"], "fix", answer], [rows[2]["id"], "fix", "Oslo"],
        [rows[3]["id"], "drop", ""],
    ])
    output = cleaned(tmp_path, file, decisions, task="qa")
    written = {row["id"]: row["answers"] for row in read_jsonl(output / "train.jsonl")}
    assert written[rows[0]["id"]] == {"text": [], "answer_start": []}
    start = written[rows[1]["id"]]["answer_start"][0]
    assert rows[1]["context"][start:].startswith(answer)  # it could not be trained on before
    assert written[rows[2]["id"]] == {"text": ["Oslo"], "answer_start": [15]}  # not in Oslofjord; 15 is nearer than 6
    assert rows[3]["id"] not in written and len(written) == 5
    report = read_json(output / "cleaning_report.json")
    assert report["fixed"][2] == {"decided_by": "person", "id": rows[2]["id"], "was": "and", "corrected": "Oslo",
                                  "answer_start": 15, "places": 3}
    assert "corrected answers stand more than once" in capsys.readouterr().out


def test_a_correction_may_differ_in_blanks(tmp_path, notes):
    file, rows = notes
    decisions = edited(tmp_path / "reviewed.csv", [[rows[2]["id"], "fix", "is near"]])
    output = cleaned(tmp_path, file, decisions, task="qa")
    assert read_jsonl(output / "train.jsonl")[1]["answers"] == {"text": ["is\u00a0near"], "answer_start": [31]}


def test_decisions_that_cannot_be_carried_out_are_refused(tmp_path, labelled, notes, refused):
    directory, _ = labelled
    file, rows = notes

    def said(data, task, decisions, *flags, header=("id", "decision", "corrected")):
        reviewed = edited(tmp_path / "reviewed.csv", decisions, header=header)
        line = refused(dataset_filters.main, "--dataset", data, "--task", task, "--decisions", reviewed,
                       "--output_dir", tmp_path / "out", *flags)
        assert not (tmp_path / "out").exists()
        return line

    assert ("1 corrected labels are none of the data's (id '000': 'great'); there is 'bad', 'good'"
            in said(directory, "classification", [["000", "fix", "great"]]))
    unknown = said(directory, "classification", [["1", "keep", ""], ["003", "drop", ""]])
    assert "decides on 1 ids that" in unknown and "cuts leading zeros" in unknown
    assert f"1 corrected answers do not stand in their contexts (id '{rows[0]['id']}': 'Nowhere')" in said(
        file, "qa", [[rows[0]["id"], "fix", "Nowhere"], [rows[2]["id"], "fix", "Oslo"]])
    header = ("id", "decision", "suspicion")
    above = ("--drop_above", "0.5")
    assert "the suspicion of '000' is '931'" in said(
        directory, "classification", [["000", "", "931"]], *above, header=header)
    assert "has no suspicion to drop above" in said(directory, "classification", [["000", "", ""]], *above)
    assert "18 of 20 examples would be dropped (90.0 %), more than --max_drop_percentage 50" in said(
        directory, "classification", [[f"{place:03d}", "drop", ""] for place in range(1, 19)],
        "--max_drop_percentage", "50")
    assert "every example to train on has the label 'good'" in said(
        directory, "classification", [[f"{place:03d}", "drop", ""] for place in range(1, 20)])
    assert "nothing to do" in refused(dataset_filters.main, "--output_dir", tmp_path / "out")
    assert "--drop_above goes by" in refused(dataset_filters.main, "--filter_config", "f.json", "--drop_above", "0.5",
                                             "--output_dir", tmp_path / "out")
