"""Datasets as they come out of spreadsheets, other programs and accidents: read as they are meant, or one line."""

import csv
import gzip
import io
import json
import logging
import shutil

import datasets
import pandas as pd
import pytest
from conftest import qa_rows, review_rows, write_rows

from datamap.core.artifacts import artifact_file, stage
from datamap.core.errors import UserError
from datamap.core.files import read_json, read_jsonl, read_rows, read_table, write_csv
from datamap.core.splits import load_split
from datamap.tasks.registry import get_task

ROWS = qa_rows(6, seed=3)
REVIEWS = review_rows(8, seed=0)


def load(path, task="qa", split="train", **settings):
    return load_split(str(path), split, get_task(task, **settings))


def changed(rows, **columns):
    """Rows of which some columns are other: by row number, else of every row."""
    made = json.loads(json.dumps(rows))
    for column, values in columns.items():
        for number, row in enumerate(made):
            if not isinstance(values, dict):
                row[column] = values
            elif number in values:
                row[column] = values[number]
    return made


# --- offsets ---


@pytest.mark.parametrize("written", [float, str, lambda start: f"{start}.0", lambda start: f" {start} "])
@pytest.mark.parametrize("only", [None, 2])
def test_offsets_as_tables_write_them(tmp_path, written, only):
    """9.0 and "9", in every row or in one among others."""
    rows = changed(ROWS)
    for number, row in enumerate(rows):
        if only in (None, number):
            row["answers"]["answer_start"] = [written(start) for start in row["answers"]["answer_start"]]
    split, plain = load(write_rows(tmp_path / "a.jsonl", rows)), load(write_rows(tmp_path / "b.jsonl", ROWS))
    assert split.data["answers"][:] == plain.data["answers"][:] and split.fingerprint == plain.fingerprint


def test_offsets_of_a_spreadsheet_with_a_gap(tmp_path):
    (tmp_path / "a.csv").write_text("id,question,context,answer_text,answer_start\n1,Q?,a b c,b,2.0\n2,Q?,a b c,,\n")
    assert load(tmp_path / "a.csv").data["answers"][:] == [{"text": ["b"], "answer_start": [2]},
                                                           {"text": [], "answer_start": []}]


@pytest.mark.parametrize("start", [9.5, "x", True, float("inf"), None, [1], 10**20, "1e300", 10**99])
def test_offsets_that_are_none_name_column_row_and_value(tmp_path, start):
    rows = changed(ROWS, answers={3: {"text": ["a"], "answer_start": [start]}})
    with pytest.raises(UserError, match=r"a\.jsonl \[train\]: column answers of row 4: .*answer_start is ") as error:
        load(write_rows(tmp_path / "a.jsonl", rows))
    assert repr(start)[:40] in str(error.value)


# --- columns of several types ---


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({2: 2**70}, f"holds a number in row 3 that is too large for 64 bits ({2**70})"),
        (dict(enumerate([0, 1, None, "x", 4, 5])), "holds 'x' in row 4, which is of another type than 0 in row 1"),
        (dict(enumerate([None, True, 3, True])), "holds 3 in row 3, which is of another type than True in row 2"),
        (dict(enumerate([{"a": 1}, {"a": "b"}])), "holds {'a': 'b'} in row 2, which is of another type than {'a': 1}"),
        (dict(enumerate([[1], 3])), "holds 3 in row 2, which is of another type than [1] in row 1"),
        ({1: [1, "a"]}, "holds values of several types in row 2 ([1, 'a'])"),
        ({4: {"n": {"m": -(2**80)}}}, "holds a number in row 5 that is too large for 64 bits"),
    ],
)
def test_a_column_that_nobody_uses_stops_nothing(tmp_path, caplog, values, why):
    """It becomes text, and a line says so."""
    split = load(write_rows(tmp_path / "a.jsonl", changed(ROWS, extra=values)))
    plain = load(write_rows(tmp_path / "b.jsonl", ROWS))
    assert f"a.jsonl: column extra {why}" in caplog.text and "its values are taken as text" in caplog.text
    assert split.fingerprint == plain.fingerprint
    place, value = next((place, value) for place, value in values.items() if value is not None)
    assert split.data["extra"][place] == (value if isinstance(value, str) else json.dumps(value))


def test_nesting_that_arrow_cannot_hold_becomes_text(tmp_path, caplog):
    deep = "[" * 300 + "]" * 300
    text = json.dumps({**ROWS[0], "extra": None}).replace("null", deep)
    (tmp_path / "a.jsonl").write_text(text + "\n" + json.dumps(ROWS[1]) + "\n")
    assert load(tmp_path / "a.jsonl").data["extra"][:] == [deep, None]
    assert "column extra is nested too deeply in row 1" in caplog.text


@pytest.mark.parametrize(
    ("task", "rows", "words"),
    [
        ("qa", changed(ROWS, context={3: 5}), "column context holds 5 in row 4, which is of another type than '"),
        ("qa", changed(ROWS, question=7), "column question of row 1 holds 7, which is no text"),
        ("qa", changed(ROWS, context={1: None}), "column context of row 2 holds no text"),
        ("qa", changed(ROWS, answers={3: "no"}), "column answers of row 4: 1 answer texts need as many answer_start"),
        ("qa", changed(ROWS, answers={2: {"text": [["a"]], "answer_start": [0]}}), "of row 3 holds the answer ['a']"),
        ("classification", changed(REVIEWS, label={4: 3}), "column label holds 3 in row 5, which is of another type"),
        ("classification", changed(REVIEWS, sentence={4: 3}), "column sentence holds 3 in row 5, which is of another"),
        ("classification", changed(REVIEWS, sentence=3), "column sentence of row 1 holds 3, which is no text"),
        ("classification", changed(REVIEWS, label={2: 2**70}), "label holds a number in row 3 that is too large"),
    ],
)
def test_a_column_that_is_used_names_row_and_value(tmp_path, task, rows, words):
    with pytest.raises(UserError) as error:
        load(write_rows(tmp_path / "a.jsonl", rows), task)
    assert words in str(error.value)


# --- JSON ---


@pytest.mark.parametrize("read", [read_json, read_rows, read_jsonl])
@pytest.mark.parametrize(
    ("text", "words"),
    [("[" * 100_000 + "]" * 100_000, "nested too deeply"), ('{"a":' * 5_000 + "1" + "}" * 5_000, "nested too deeply"),
     ('{"id": "1", "a": ' + "9" * 5_000 + "}", "a number that cannot be read .Exceeds the limit")],
)
def test_json_that_cannot_be_held(tmp_path, read, text, words):
    (tmp_path / "a.json").write_text(text + "\n")
    with pytest.raises(UserError, match=rf"a\.json.*{words}"):
        read(tmp_path / "a.json")


# --- files that are damaged, or are none ---


def test_damage_to_compressed_files_is_one_line(tmp_path):
    raw = gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode())
    for place in range(0, len(raw), 7):
        (tmp_path / "a.jsonl.gz").write_bytes(raw[:place] + bytes([raw[place] ^ 255]) + raw[place + 1 :])
        try:
            load(tmp_path / "a.jsonl.gz")
        except UserError as error:
            assert "a.jsonl.gz" in str(error)


def test_damage_to_parquet_is_one_line(tmp_path):
    file = io.BytesIO()
    pd.DataFrame(ROWS).to_parquet(file, index=False)
    raw, refused = file.getvalue(), 0
    for place in range(3, len(raw), len(raw) // 60):
        for damaged in (raw[:place] + bytes([raw[place] ^ 255]) + raw[place + 1 :], raw[place:]):
            (tmp_path / "a.parquet").write_bytes(damaged)
            try:
                load(tmp_path / "a.parquet")
            except UserError as error:
                refused += "a.parquet" in str(error)
    assert refused > 60


DAMAGES = {
    "data-00000-of-00001.arrow": (None, b"", b"\xff\xff\xff\xff"),
    "state.json": (None, b"[]", b"{}", b'{"a', b"3"),
    "dataset_info.json": (None, b"[]", b"{"),
}


@pytest.mark.parametrize(("name", "content"), [(name, each) for name, all_ in DAMAGES.items() for each in all_])
def test_damage_to_save_to_disk_is_one_line(tmp_path, name, content):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "d")
    (tmp_path / "d" / name).unlink()
    if content is not None:
        (tmp_path / "d" / name).write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path / "d")):
        load(tmp_path / "d")


def test_a_saved_dataset_that_was_cut_off_is_found_when_it_is_loaded(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "d")
    (file,) = (tmp_path / "d").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-700])
    with pytest.raises(UserError, match="is no whole dataset of save_to_disk"):
        load(tmp_path / "d")


@pytest.mark.parametrize("content", ["[]", "{}", '{"splits": 3}', '{"splits": [3]}', '{"splits": []}', "{", None])
def test_damage_to_a_saved_dictionary_is_one_line(tmp_path, content):
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "d")
    if content is None:
        shutil.rmtree(tmp_path / "d" / "train")
    else:
        (tmp_path / "d" / "dataset_dict.json").write_text(content)
    with pytest.raises(UserError, match=str(tmp_path / "d")):
        load(tmp_path / "d")


def test_folders_with_the_name_of_a_file(tmp_path):
    (tmp_path / "d" / "train.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no dataset"):
        load(tmp_path / "d")
    for read in (read_json, read_jsonl, read_rows, read_table):
        with pytest.raises(UserError, match=r"train\.jsonl cannot be read \(Is a directory\)"):
            read(tmp_path / "d" / "train.jsonl")


# --- spreadsheets ---


def table(rows, separator=",", **settings):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator, **settings).writerows([list(rows[0]), *(row.values() for row in rows)])
    return file.getvalue()


AWKWARD = changed(REVIEWS, sentence={0: 'two; "good", parts\nof a\ttext', 1: "é 漢字"})


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("name", "separator", "line", "said"),
    [("a.csv", ";", "", "semicolons"), ("a.csv", "\t", "", "tabs"), ("a.tsv", "\t", "", "tabs"),
     ("a.csv", ",", "", ""), ("a.tsv", ",", "", ""),
     ("a.csv", ";", "sep=;\r\n", "semicolons"), ("a.csv", ",", "sep=,\r\n", "")],
)
def test_the_dialects_of_spreadsheets_hold_the_same(tmp_path, caplog, mark, name, separator, line, said):
    caplog.set_level(logging.INFO)
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        content = mark + line + table(AWKWARD, separator, quoting=quoting)
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
        split = load(tmp_path / name, "classification")
        assert split.data["sentence"][:] == [row["sentence"] for row in AWKWARD]
        assert split.fingerprint == load(write_rows(tmp_path / "b.jsonl", AWKWARD), "classification").fingerprint
        assert split.data["size"][:] == [row["size"] for row in AWKWARD]
    assert (f"{name}: its columns are separated by {said}" in caplog.text) == bool(said)


def test_a_header_decides_what_separates(tmp_path):
    for content, columns in (("id,a;b\n1,x;y\n", ["id", "a;b"]), ('id;"a,b,c,d"\n1;x\n', ["id", "a,b,c,d"]),
                             ("id\n1\n", ["id"])):
        (tmp_path / "a.csv").write_text(content)
        assert read_table(tmp_path / "a.csv").columns.tolist() == columns


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_an_artifact_saved_again_by_a_spreadsheet_is_read(tmp_path, separator, mark):
    """Shorter by its quotation marks or longer by its line ends: what counts is its content."""
    frame = pd.DataFrame({"id": ["001", "12e5", "c"], "text": ["a b", 'x, "y"; z', "line\nend"],
                          "p": [0.25, 1e-9, 3.0]})
    with stage(tmp_path, {}, owns=("t.csv",)):
        write_csv(tmp_path / "t.csv", frame)
    rows = frame.to_dict("records")
    (tmp_path / "t.csv").write_text(mark + table(rows, separator), encoding="utf-8", newline="")
    read = read_table(artifact_file(tmp_path, "t.csv", "make.py"))
    pd.testing.assert_frame_equal(read, frame, check_dtype=False)
    for cut in (table(rows[:2], separator), table(rows, separator)[:-1].rstrip("\r")):
        (tmp_path / "t.csv").write_text(mark + cut, encoding="utf-8", newline="")
        with pytest.raises(UserError, match=r"t\.csv is truncated: 2 rows, 3 when it was written"):
            artifact_file(tmp_path, "t.csv", "make.py")


@pytest.mark.parametrize("separator", [",", ";"])
def test_empty_texts_of_other_dialects(tmp_path, separator):
    (tmp_path / "a.csv").write_text(f'id{separator}"text"\n1{separator}""\n2{separator}\n3{separator}x\n')
    assert read_table(tmp_path / "a.csv", text=("text",))["text"].fillna("missing").tolist() == ["", "missing", "x"]


# --- tasks that there are not ---


@pytest.mark.parametrize(
    ("task", "rows", "words"),
    [
        ("classification", changed(REVIEWS, label={n: ["good"] * (1 + n % 2) for n in range(8)}), "multi-label"),
        ("classification", changed(REVIEWS, label=[0, 1]), "label of row 1 holds [0, 1]; several labels of one"),
        ("classification", [{"id": str(n), "text": "a b c", "label": [0, 1, 2]} for n in range(4)], "tagging"),
        ("classification", [{"id": str(n), "tokens": ["a", "b"], "ner_tags": [0, 1]} for n in range(4)], "tagging"),
        ("qa", [{"id": str(n), "tokens": ["a", "b"], "ner_tags": [0, 1]} for n in range(4)], "tagging"),
        ("classification", changed(REVIEWS, label={n: n / 7 for n in range(8)}), "regression"),
        ("classification", [{"document": "a b", "summary": "a"}] * 3, "texts to be written"),
        ("qa", [{"article": "a b", "highlights": "a"}] * 3, "texts to be written"),
        ("nli", [{"translation": {"en": "a", "de": "b"}}] * 3, "texts to be written"),
        ("classification", changed(REVIEWS, label={0: {"a": 1}, **dict.fromkeys(range(1, 8))}), "are whole num"),
    ],
)
def test_data_of_other_tasks_say_what_to_do(tmp_path, task, rows, words):
    with pytest.raises(UserError) as error:
        load(write_rows(tmp_path / "a.jsonl", rows), task)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_decimal_commas_of_a_spreadsheet_are_numbers(tmp_path):
    """As a German one saves a map: semicolons between columns, commas in numbers; words and ids stay what they are."""
    file = tmp_path / "a.csv"
    file.write_text("id;confidence;loss;correctness;label;gap\n1,5;0,25;1,5E-05;1;3,4 mg;\n2;1;-2,5;0;1,5;0,5\n")
    table = read_table(file, ("id", "confidence"))
    assert table["id"].tolist() == ["1,5", "2"] and table["label"].tolist() == ["3,4 mg", "1,5"]
    assert table["confidence"].tolist() == [0.25, 1.0] and table["loss"].tolist() == [1.5e-05, -2.5]
    assert table["correctness"].tolist() == [1, 0] and table["gap"].tolist()[1] == 0.5
    assert read_table(file, ("id",), ("confidence",))["confidence"].tolist() == ["0,25", "1"]
    file.write_text("id,confidence\n1,\"0,25\"\n")
    assert read_table(file)["confidence"].tolist() == ["0,25"], "with commas between columns it is no number"
