"""Datasets in every form that DESIGN 4 names: one content, ids, answers, and what is refused."""

import csv
import gzip
import io
import json
import re

import datasets
import pandas as pd
import pytest
from conftest import qa_rows, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamap.core.errors import UserError
from datamap.core.splits import generate_hash_ids, load_split
from datamap.tasks.qa import QuestionAnswering

TASK = QuestionAnswering()
ROWS = qa_rows(7, seed=3)
SEPARATOR = "\u2028"  # a line end to str.splitlines, none to JSON


def load(path, split="train", **settings):
    return load_split(str(path), split, TASK, **settings)


def test_no_column_is_hashed_for_a_fingerprint_that_nobody_asks_for(tmp_path, monkeypatch):
    """The library pickles whatever a changed dataset was made with; of 100,000 answers that took seconds."""
    import datasets.fingerprint

    hashed: list[int] = []
    update = datasets.fingerprint.update_fingerprint

    def watched(fingerprint, transform, arguments):
        hashed.extend(len(value) for value in arguments.values() if isinstance(value, list))
        return update(fingerprint, transform, arguments)

    monkeypatch.setattr(datasets.fingerprint, "update_fingerprint", watched)
    rows = qa_rows(60, seed=4)
    assert load(write_rows(tmp_path / "notes.jsonl", rows)).ids == [row["id"] for row in rows]
    without = [{key: value for key, value in row.items() if key != "id"} for row in rows]
    assert len(load(write_rows(tmp_path / "without.jsonl", without)).ids) == 60
    assert max(hashed, default=0) < 60


# --- datasets: every form, one content ---


def as_json_text(rows):
    """Rows as a CSV holds them: answers as JSON text."""
    return [{**row, "answers": json.dumps(row["answers"])} for row in rows]


def squad(rows):
    """One article and paragraph per row, as SQuAD nests them."""
    articles = []
    for row in rows:
        answers = [{"text": text, "answer_start": start}
                   for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)]
        question = {"id": row["id"], "question": row["question"], "answers": answers, "source": row["source"]}
        articles.append({"title": "t", "paragraphs": [{"context": row["context"], "qas": [question]}]})
    return {"version": "1.1", "data": articles}


def csv_text(rows):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def parquet_bytes(rows):
    file = io.BytesIO()
    pd.DataFrame(rows).to_parquet(file, index=False)
    return file.getvalue()


FORMATS = {
    "list.json": lambda rows: json.dumps(rows).encode(),
    "pretty.json": lambda rows: json.dumps(rows, indent=2).encode(),
    "data.json": lambda rows: json.dumps({"data": rows}).encode(),
    "squad.json": lambda rows: json.dumps(squad(rows), ensure_ascii=False).encode(),
    "lines.jsonl": lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(),
    "lines.json": lambda rows: "\n".join(json.dumps(row) for row in rows).encode(),
    "crlf.jsonl": lambda rows: "\r\n".join(json.dumps(row) for row in rows).encode(),
    "mark.jsonl": lambda rows: b"\xef\xbb\xbf" + "".join(json.dumps(row) + "\n\n" for row in rows).encode(),
    "table.csv": lambda rows: csv_text(as_json_text(rows)).encode(),
    "mark.csv": lambda rows: b"\xef\xbb\xbf" + csv_text(as_json_text(rows)).encode(),
    "flat.csv": lambda rows: csv_text(
        [{"id": row["id"], "question": row["question"], "context": row["context"], "source": row["source"],
          "answer_text": row["answers"]["text"][0], "answer_start": row["answers"]["answer_start"][0]} for row in rows]
    ).encode(),
    "table.parquet": parquet_bytes,
}


def awkward_rows():
    rows = [dict(row) for row in ROWS]
    rows[2]["context"] += f' "Quoted", he said;\nnew line{SEPARATOR}é 漢字 🙂'
    rows[3]["id"] = "001"
    rows[4]["id"] = "12e5"
    return rows


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_same_dataset(tmp_path, name, compressed):
    rows = awkward_rows()
    raw = FORMATS[name](rows)
    path = tmp_path / (f"{name}.gz" if compressed else name)
    path.write_bytes(gzip.compress(raw) if compressed else raw)
    split = load(path)
    reference = load(write_rows(tmp_path / "reference.jsonl", rows))
    assert split.ids == [row["id"] for row in rows]
    assert split.data["question"][:] == [row["question"] for row in rows]
    assert split.data["context"][:] == [row["context"] for row in rows]
    assert split.data["answers"][:] == [row["answers"] for row in rows]
    assert split.data["source"][:] == [row["source"] for row in rows]
    assert split.data.column_names[:4] == ["id", "question", "context", "answers"]
    assert (split.fingerprint, split.rows) == (reference.fingerprint, len(rows))
    assert re.fullmatch("[0-9a-f]{16}", split.fingerprint)
    assert TASK.is_usable(split.data).all()


def test_directories_of_files_and_of_save_to_disk(tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    write_rows(files / "train.jsonl", ROWS)
    (files / "validation.csv.gz").write_bytes(gzip.compress(FORMATS["table.csv"](ROWS[:3])))
    (files / "README.md").write_text("about")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    both = {"train": datasets.Dataset.from_list(ROWS), "validation": datasets.Dataset.from_list(ROWS[:3])}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "dict")

    prints = {load(tmp_path / name).fingerprint for name in ("files", "one", "dict")}
    assert len(prints) == 1
    assert load(files, "validation").ids == [row["id"] for row in ROWS[:3]]
    assert load(files, "validation").fingerprint == load(tmp_path / "dict", "validation").fingerprint
    for name, known in (("files", "train, validation"), ("dict", "train, validation"), ("one", "train")):
        with pytest.raises(UserError, match=f"has no split 'test'; it has {known}$"):
            load(tmp_path / name, "test")


def test_the_built_in_dataset():
    split = load("demo:clinical", "validation", max_samples=5)
    assert len(split.data) == 5 < split.rows
    assert set(split.data["planted_error"][:]) <= {"", None}
    assert split.identity() == {
        "dataset": "demo:clinical", "split": "validation", "fingerprint": split.fingerprint, "rows": split.rows,
        "task": {"name": "qa"}, "max_samples": 5,
    }
    with pytest.raises(UserError, match="'demo:poems' is not built in; there is demo:clinical, "):
        load("demo:poems")
    with pytest.raises(UserError, match="demo:clinical has no split 'test'; it has train, validation"):
        load("demo:clinical", "test")


def test_the_identity_of_a_local_dataset_does_not_depend_on_the_directory(tmp_path, monkeypatch):
    write_rows(tmp_path / "mine.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    assert load("mine.jsonl").identity()["dataset"] == str(tmp_path / "mine.jsonl")
    assert load("mine.jsonl").name == "mine.jsonl"


# --- fingerprints and ids ---


def test_the_fingerprint_is_that_of_the_whole_split(tmp_path):
    whole = load(write_rows(tmp_path / "a.jsonl", ROWS))
    capped = load(tmp_path / "a.jsonl", max_samples=2)
    assert capped.ids == whole.ids[:2]
    assert (capped.fingerprint, capped.rows) == (whole.fingerprint, 7)
    assert load(tmp_path / "a.jsonl", max_samples=100).ids == whole.ids
    assert load(write_rows(tmp_path / "b.jsonl", ROWS[:2])).fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"id": "other"},
        {"question": "Where did Ada go"},
        {"context": ROWS[1]["context"] + " "},
        {"answers": {"text": ["x"], "answer_start": [0]}},
        {"answers": {"text": [], "answer_start": []}},
    ],
)
def test_the_fingerprint_sees_ids_and_content(tmp_path, change):
    before = load(write_rows(tmp_path / "a.jsonl", ROWS)).fingerprint
    changed = [{**row, **change} if place == 1 else row for place, row in enumerate(ROWS)]
    assert load(write_rows(tmp_path / "b.jsonl", changed)).fingerprint != before


def test_the_fingerprint_does_not_see_other_columns(tmp_path):
    before = load(write_rows(tmp_path / "a.jsonl", ROWS)).fingerprint
    others = [{**row, "source": "new", "note": 1} for row in ROWS]
    assert load(write_rows(tmp_path / "b.jsonl", others)).fingerprint == before


def test_a_dataset_without_ids_gets_them(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "id"} for row in ROWS]
    rows += [rows[0], rows[1], rows[0]]
    split = load(write_rows(tmp_path / "a.jsonl", rows))
    ids = split.ids
    assert all(re.fullmatch("[0-9a-f]{16}", example) for example in ids[:7])
    assert len(set(ids[:7])) == 7
    assert ids[7:] == [f"{ids[0]}-2", f"{ids[1]}-2", f"{ids[0]}-3"]
    (tmp_path / "a.csv").write_text(csv_text(as_json_text(rows)), encoding="utf-8")
    assert load(tmp_path / "a.csv").ids == ids  # of the content, not of the format
    backwards = load(write_rows(tmp_path / "b.jsonl", rows[6::-1])).ids
    assert backwards == ids[6::-1]


def test_hash_ids_tell_columns_apart():
    data = datasets.Dataset.from_dict({"question": ["ab", "a", "ab"], "context": ["c", "bc", "c"]})
    first, second, third = generate_hash_ids(data, ("question", "context"))
    assert first != second and third == f"{first}-2"


@pytest.mark.parametrize("ids", [[1, 2, 3], [1, "2", "x"], [10**17, 10**17 + 1, 3], ["1.0", "001", "12e5"]])
def test_ids_are_strings(tmp_path, ids):
    rows = [{**row, "id": value} for row, value in zip(ROWS[:3], ids, strict=True)]
    expected = [str(value) for value in ids]
    for name in ("list.json", "lines.jsonl", "squad.json", "table.csv"):
        (tmp_path / name).write_bytes(FORMATS[name](rows))
        assert load(tmp_path / name).ids == expected
    if len({type(value) for value in ids}) == 1:
        (tmp_path / "t.parquet").write_bytes(parquet_bytes(rows))
        assert load(tmp_path / "t.parquet").ids == expected


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=8),
                min_size=1, max_size=4, unique=True))
def test_ids_survive_every_format(tmp_path, ids):
    rows = [{**ROWS[0], "id": example} for example in ids]
    prints = set()
    for name in ("list.json", "lines.jsonl", "table.csv", "table.parquet"):
        (tmp_path / name).write_bytes(FORMATS[name](rows))
        split = load(tmp_path / name)
        assert split.ids == ids
        prints.add(split.fingerprint)
    assert len(prints) == 1


@pytest.mark.parametrize("bad", [None, ""])
def test_a_row_without_an_id_is_named(tmp_path, bad):
    rows = [{**row, "id": bad} if place == 2 else row for place, row in enumerate(ROWS)]
    for name in ("lines.jsonl", "table.csv", "table.parquet"):
        (tmp_path / name).write_bytes(FORMATS[name](rows))
        with pytest.raises(UserError, match="row 3 has no id"):
            load(tmp_path / name)


def test_repeated_ids_are_named(tmp_path):
    rows = [{**row, "id": value} for row, value in zip(ROWS, "abcdeab", strict=True)]
    with pytest.raises(UserError, match="2 ids occur more than once .'a', 'b'."):
        load(write_rows(tmp_path / "a.jsonl", rows))
    rows = [{**row, "id": value} for row, value in zip(ROWS[:2], [1, "1"], strict=True)]
    with pytest.raises(UserError, match="1 ids occur more than once .'1'."):
        load(write_rows(tmp_path / "b.jsonl", rows))


# --- answers ---

TWO = {"text": ["Oslo", "Lima"], "answer_start": [3, 9]}


@pytest.mark.parametrize(
    "answers, expected",
    [
        (TWO, TWO),
        ({**TWO, "answer_end": [7, 13]}, TWO),
        ([{"text": "Oslo", "answer_start": 3}, {"text": "Lima", "answer_start": 9, "answer_end": 13}], TWO),
        ({"text": "Oslo", "answer_start": 3}, {"text": ["Oslo"], "answer_start": [3]}),
        (json.dumps(TWO), TWO),
        (json.dumps([{"text": "Oslo", "answer_start": 3}]), {"text": ["Oslo"], "answer_start": [3]}),
        ({"text": [], "answer_start": []}, {"text": [], "answer_start": []}),
        ({"text": [""], "answer_start": [0]}, {"text": [], "answer_start": []}),
        ([], {"text": [], "answer_start": []}),
        (None, {"text": [], "answer_start": []}),
        ("", {"text": [], "answer_start": []}),
    ],
)
def test_answers_of_every_layout_become_one(tmp_path, answers, expected):
    row = {"id": "a", "question": "q", "context": "To Oslo, Lima", "answers": answers}
    (tmp_path / "a.json").write_text(json.dumps([row, {**row, "id": "b"}] if expected["text"] else [row]))
    if not expected["text"]:  # a set of which nothing has an answer is refused
        with pytest.raises(UserError, match="all answers are empty"):
            load(tmp_path / "a.json")
        layout = "" if isinstance(answers, str) else [] if isinstance(answers, list) else answers
        full = {"": "Oslo", "[]": [{"text": "Oslo", "answer_start": 3}]}.get(json.dumps(layout).strip('"'), TWO)
        start = {"answer_start": 3} if isinstance(full, str) else {}
        (tmp_path / "a.json").write_text(json.dumps([{**row, **start}, {**row, "id": "b", "answers": full, **start}]))
    assert load(tmp_path / "a.json").data["answers"][0] == expected


@pytest.mark.parametrize("column", ["answer", "answer_text", "answers"])
def test_answers_as_columns_of_text_and_start(tmp_path, column):
    rows = [{"id": "a", "question": "q", "context": "To Oslo", column: "Oslo", "answer_start": 3},
            {"id": "b", "question": "q", "context": "To Lima", column: None, "answer_start": None}]
    for name in ("list.json", "csv.csv"):
        (tmp_path / name).write_bytes(FORMATS["list.json"](rows) if name == "list.json" else csv_text(rows).encode())
        data = load(tmp_path / name).data
        assert data["answers"][:] == [{"text": ["Oslo"], "answer_start": [3]}, {"text": [], "answer_start": []}]
        assert data.column_names == ["id", "question", "context", "answers"]


@pytest.mark.parametrize("name", ["a.csv", "json text.csv", "a.json"])
def test_answers_that_are_numbers_become_text(tmp_path, name):
    rows = [{"id": str(row), "question": "q", "context": "42 of 0", "answers": value, "answer_start": start}
            for row, (value, start) in enumerate([(42, 0), (0, 6)])]
    if name != "a.csv":
        for row in rows:
            row["answers"] = {"text": [row["answers"]], "answer_start": [row.pop("answer_start")]}
    content = json.dumps(rows) if name == "a.json" else csv_text(rows if name == "a.csv" else as_json_text(rows))
    (tmp_path / name).write_text(content)
    data = load(tmp_path / name).data
    assert data["answers"][:] == [{"text": ["42"], "answer_start": [0]}, {"text": ["0"], "answer_start": [6]}]
    assert TASK.is_usable(data).all()


@pytest.mark.parametrize(
    "answers, message",
    [
        ({"text": ["a", "b"], "answer_start": [1]}, "row 2: 2 answer texts need as many answer_start"),
        ({"text": ["a"], "answer_start": None}, "row 2: 1 answer texts need as many answer_start"),
        (json.dumps({"text": ["a"], "answer_start": ["one"]}), "row 2: answer_start is 'one'; expected the place"),
        ('{"text": ["a"', "column answers of row 2 is not JSON"),
        ('{"answer": ["a"], "start": [1]}', "row 2 has answer, start; expected text and answer_start"),
        ('[{"span": "a", "answer_start": 1}]', "row 2 holds .*; expected objects with text and answer_start"),
        ("a", "row 2: 1 answer texts need as many answer_start"),
        ("[1, 2]", "row 2 holds .1, 2.; expected objects with text and answer_start"),
    ],
)
def test_malformed_answers_are_refused_with_their_row(tmp_path, answers, message):
    good = json.dumps(TWO) if isinstance(answers, str) else TWO
    row = {"question": "q", "context": "c"}
    rows = [{**row, "id": "1", "answers": good}, {**row, "id": "2", "answers": answers}]
    with pytest.raises(UserError, match=message):
        load(write_rows(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize("missing", ["question", "context", "answers"])
def test_a_missing_column_is_named(tmp_path, missing):
    rows = [{key: value for key, value in row.items() if key != missing} for row in ROWS]
    with pytest.raises(UserError, match=f"has no column '{missing}'; question answering needs .*; there is .*source"):
        load(write_rows(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize("column", ["question", "context"])
def test_a_row_without_text_is_named(tmp_path, column):
    rows = [{**row, column: None} if place == 1 else row for place, row in enumerate(ROWS)]
    with pytest.raises(UserError, match=f"column {column} of row 2 holds no text"):
        load(write_rows(tmp_path / "a.jsonl", rows))


def test_rows_may_lack_keys(tmp_path):
    rows = [dict(row) for row in ROWS]
    del rows[0]["source"]
    rows[3]["late"] = "x"
    data = load(write_rows(tmp_path / "a.jsonl", rows)).data
    assert data["source"][:2] == [None, ROWS[1]["source"]]
    assert data["late"][:4] == [None, None, None, "x"]


def test_squad_2_has_unanswerable_questions_and_titles(tmp_path):
    nested = squad(ROWS)
    nested["data"][1]["paragraphs"][0]["qas"][0].update(
        answers=[], is_impossible=True, plausible_answers=[{"text": "x", "answer_start": 1}]
    )
    (tmp_path / "a.json").write_text(json.dumps(nested))
    data = load(tmp_path / "a.json").data
    assert data["answers"][1] == {"text": [], "answer_start": []}
    assert data["title"][:] == ["t"] * 7
    assert "plausible_answers" not in data.column_names


# --- columns of a CSV ---


def test_csv_cells_are_text_but_whole_numbers(tmp_path):
    rows = [{**row, "label": place, "code": f"{place:03d}", "score": f"{place}.50", "mixed": place or "x", "gap": ""}
            for place, row in enumerate(as_json_text(ROWS))]
    rows[3]["label"] = ""
    (tmp_path / "a.csv").write_text(csv_text(rows))
    data = load(tmp_path / "a.csv").data
    assert data["label"][:] == [0, 1, 2, None, 4, 5, 6]
    assert data["code"][:3] == ["000", "001", "002"]
    assert data["score"][:2] == ["0.50", "1.50"]
    assert data["mixed"][:2] == ["x", "1"]
    assert data["gap"][:] == [None] * 7


def test_csv_numbers_of_any_size(tmp_path):
    rows = [{**row, "record": f"{10**25 + place}"} for place, row in enumerate(as_json_text(ROWS))]
    (tmp_path / "a.csv").write_text(csv_text(rows))
    assert [str(value) for value in load(tmp_path / "a.csv").data["record"][:2]] == [str(10**25), str(10**25 + 1)]


def test_csv_contexts_may_be_long(tmp_path):
    rows = as_json_text([{**row, "context": row["context"] + " word" * 40_000} for row in ROWS[:2]])
    (tmp_path / "a.csv").write_text(csv_text(rows))
    assert len(load(tmp_path / "a.csv").data["context"][0]) > 200_000


# --- what is refused ---


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", '{"id": 1}\n{"id": 2', r"a\.jsonl, line 2: malformed JSON"),
        ("a.json", '[\n {"id": 1},\n {"id": \n]', r"a\.json, line 4: malformed JSON"),
        ("a.json", '{\n "data": [\n', r"a\.json, line 3: malformed JSON"),
        ("a.json", "[1, 2]", "expected a list of objects"),
        ("a.json", "[]", "holds no rows"),
        ("a.jsonl", '{"id": 1}\n[2]\n', "line 2: expected a JSON object, found list"),
        ("a.json", '{"data": [{"paragraphs": [{"qas": [{"id": 1}]}]}]}', "nested like SQuAD, but .* lacks 'context'"),
        ("a.csv", "id,question\na,b\nc\n", r"a\.csv, line 3: 1 columns where the header has 2"),
        ("a.csv", "id,question\na,b\nc,d,e\n", r"a\.csv, line 3: 3 columns where the header has 2"),
        ("a.csv", 'id,question\na,"b\n', r"a\.csv, line [23]: malformed CSV"),
        ("a.csv", "id,question,question\na,1,2\n", "'question' .*more than once"),
        ("a.csv", "id,question\n", "holds no rows"),
        ("a.csv", "", "is empty"),
        ("a.csv", "\ufeff", "holds no rows"),
        ("a.jsonl", " \n\n", "is empty"),
        ("a.parquet", "PAR1 not", "is not a whole parquet file"),
        ("a.json.gz", "[]", "is not a whole gzip file"),
        ("a.txt", "x", r"expected one of \.json, \.jsonl, \.csv, \.tsv, \.parquet, plain or \.gz"),
    ],
)
def test_malformed_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path / name)


def test_a_truncated_gzip_is_refused(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(FORMATS["lines.jsonl"](ROWS))[:-12])
    with pytest.raises(UserError, match="is not a whole gzip file"):
        load(tmp_path / "a.jsonl.gz")


def test_text_that_is_not_utf_8_is_refused_with_its_line(tmp_path):
    (tmp_path / "a.csv").write_bytes("id,question\na,b\nc,é\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.csv, line 3: not UTF-8"):
        load(tmp_path / "a.csv")


def test_a_single_file_has_one_split(tmp_path):
    write_rows(tmp_path / "mine.jsonl", ROWS)
    with pytest.raises(UserError, match="single file, whose only split is 'train'; 'validation' was asked for"):
        load(tmp_path / "mine.jsonl", "validation")


@pytest.mark.parametrize("name", ["./nowhere", "nowhere.jsonl", "/no/where", "nowhere.csv.gz"])
def test_a_missing_path_is_refused(name):
    with pytest.raises(UserError, match="no such file or directory"):
        load(name)


def test_a_directory_without_data_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="holds no dataset: expected train"):
        load(tmp_path)


def test_an_unknown_hub_name_is_refused_in_one_line():
    with pytest.raises(UserError, match="dataset 'nobody/nothing-at-all' is neither a local file") as refused:
        load("nobody/nothing-at-all")
    assert "\n" not in str(refused.value)


def test_half_a_surrogate_pair_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({**ROWS[0], "question": "a \ud83d?"}) + "\n")
    with pytest.raises(UserError, match="half a surrogate pair"):
        load(tmp_path / "a.jsonl")
