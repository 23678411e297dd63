"""Arrow reads JSON and CSV as Python does, or leaves them to it."""

from __future__ import annotations

import hashlib
import json

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamap.cartography.dynamics import write_dynamics
from datamap.core import arrow_text, files
from datamap.core.errors import UserError
from datamap.core.splits import content_fingerprint, example_digests, load_split, raw_split
from datamap.tasks.registry import get_task

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
NUMBER = st.floats(allow_nan=False, allow_infinity=False, width=32) | st.integers(-(2**53), 2**53)
COLUMNS = st.dictionaries(
    st.sampled_from(["id", "text", "label", "answers"]),
    st.sampled_from([TEXT, st.integers(-(2**63), 2**63 - 1), NUMBER, st.booleans(), st.none() | TEXT,
                     st.none() | st.integers(-5, 5), st.lists(TEXT, max_size=2),
                     st.fixed_dictionaries({"text": st.lists(TEXT, max_size=2),
                                            "answer_start": st.lists(st.integers(0, 9), max_size=2)})]),
    min_size=1,
)


@settings(max_examples=60, deadline=None)
@given(st.data(), COLUMNS)
def test_lines_become_the_dataset_that_their_objects_become(data, kinds):
    rows = data.draw(st.lists(st.fixed_dictionaries({}, optional=kinds), min_size=2, max_size=6))
    table = arrow_text.json_lines("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    names = dict.fromkeys(name for row in rows for name in row)
    if table is not None:
        rows = [{**row, "id": str(row["id"])} if row.get("id") is not None else row for row in rows]
        expected = datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
        assert table.column_names == list(names)
        assert datasets.Dataset(table).features == expected.features
        assert table.to_pylist() == expected.to_list()


ROW = b'{"a":1}\n'
DEEP = b"[" * 200_000 + b"]" * 200_000


@pytest.mark.parametrize("raw", [
    ROW, ROW + b'{"a":1}{"a":2}\n', ROW + b'{"a":\n2}\n', ROW + b"\n" + ROW, ROW + b'{"a":2,"a":3}\n',
    ROW + b'{"a":NaN}\n', ROW * 1000 + b'{"a":0.5}\n', ROW + b'{"a":"x"}\n', ROW + b'{"b":' + DEEP + b"}\n",
    b'{"a":"\xff"}\n' + ROW, ROW * 1000 + b'{"a":1,"b":2}\n', b'{"a":0.5}\n{"a":9007199254740993}\n',
    b'{"a":"\\ud800"}\n{"a":"x"}\n', b"\xef\xbb\xbf" + ROW * 2, b"[1]\n[2]\n", b'{"a":[0.5]}\n' * 2,
    b'{"a":0.5}\n{"a":-0}\n', b'{"id":1}\n{"id":1.5}\n', b'{"id":["a"]}\n' * 2, ROW + b'{"a":2}\0 x\n',
    b'{"a":{"b":1}}\n' * 1000 + b'{"a":{"b":1}}{"a":{"b":1}}\n{"a":\n{"b":1}}\n',
    b'{"a":12345678901234567890}\n' * 2, b'{"paragraphs":[]}\n' * 2, b'{"a":' + DEEP + b"}\n" + ROW,
])
def test_lines_that_are_left_to_python(raw):
    assert arrow_text.json_lines(raw) is None


def test_dates_stay_text_and_gaps_are_missing():
    raw = b'{"d":"2020-01-01","n":null}\n{"n":null}\n{"d":"\\ud83d\\ude00","n":null}'
    table = arrow_text.json_lines(raw)
    assert table is not None and table.to_pylist() == [
        {"d": "2020-01-01", "n": None}, {"d": None, "n": None}, {"d": "😀", "n": None}]


def test_a_split_is_the_same_either_way(tmp_path, monkeypatch):
    """With ids that are numbers, gaps, blanks of all kinds and numbers for labels."""
    texts = ["one", "  two", "\u3000", "\x1f\u2003", "日本", "", None, "five"]
    rows = [{"id": place, "text": text, "label": place % 3 - 1, "extra": text or None}
            for place, text in enumerate(texts)]
    files.write_jsonl(tmp_path / "a.jsonl", rows)
    fast = load_split(str(tmp_path / "a.jsonl"), "train", get_task("classification"))
    monkeypatch.setattr("datamap.core.splits.json_lines", lambda raw: None)
    files.write_jsonl(tmp_path / "b.jsonl", rows)
    slow = load_split(str(tmp_path / "b.jsonl"), "train", get_task("classification"))
    assert fast.data.to_list() == slow.data.to_list() and fast.data.features == slow.data.features
    assert fast.fingerprint == slow.fingerprint and np.array_equal(fast.digests(), slow.digests())  # type: ignore[arg-type]
    assert fast.data["text"][:] == ["  two", "日本", "five"]  # the others have no gold label, or no text


@pytest.mark.parametrize("at_a_time", [1, 2, 100])
def test_fingerprints_are_those_of_the_texts_row_by_row(monkeypatch, at_a_time):
    monkeypatch.setattr("datamap.core.splits.TEXTS_AT_A_TIME", at_a_time)
    content = {"id": ["a", "b", "é"], "t": ["", None, "日"], "n": [1, None, 3], "f": [0.5, None, 2.0],
               "l": [["é"], [], None]}
    whole = datasets.Dataset.from_dict({**content, "c": [0, 1, 0]})
    whole = whole.cast_column("c", datasets.ClassLabel(names=["u", "v"]))
    for data in (whole, whole.select([2, 0]), whole.select([]), datasets.concatenate_datasets([whole, whole])):
        texts = {name: [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                        for value in data[name][:]] for name in content}
        texts["c"] = ["uv"[value] for value in data["c"][:]]
        joined = "".join("\x1e".join(column) + "\x1d" for column in texts.values())
        assert content_fingerprint(data, [*texts][1:]) == hashlib.blake2b(joined.encode(), digest_size=8).hexdigest()
        each = [hashlib.blake2b("\x1f".join(row).encode(), digest_size=8).digest()
                for row in zip(*texts.values(), strict=True)]
        assert example_digests(data, tuple(texts)[1:]).tobytes() == b"".join(each)


def test_an_error_in_a_long_file_is_told_as_in_a_short_one(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id":"a","text":"x","label":1}\n' * 3 + '{"id":\n')
    with pytest.raises(UserError, match="line 4: malformed JSON"):
        raw_split(str(tmp_path / "a.jsonl"), "train")


# --- columns of an epoch ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, NUMBER, st.integers(0, 9), st.booleans()), min_size=1, max_size=5))
def test_columns_are_those_of_the_object(rows):
    ids, numbers, counts, flags = map(list, zip(*rows, strict=True))
    content = {"epoch": 3, "id": ids, "confidence": numbers, "gold": counts, "correct": flags}
    columns = arrow_text.json_columns(json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode())
    if columns is None:
        assert any(set(text) & {"\\", '"'} or any(ord(mark) < 32 for mark in text) for text in ids) or any(
            abs(number) >= 2**53 or str(number) == "-0.0" for number in numbers)
        return
    assert list(columns) == list(content) and columns["epoch"] == 3
    assert columns["id"].to_pylist() == ids
    for name in ("confidence", "gold", "correct"):
        expected = np.asarray(content[name])
        assert columns[name].dtype == expected.dtype and columns[name].tolist() == expected.tolist()


@pytest.mark.parametrize("cells", [
    "", ".5", "5.", "+5", "05", "-05", "-.5", "1.e5", "1,,2", "1,", "-", "1-2", "1e", "null", "NaN", "true,1", "[1]",
    "1 ,2", "1,2", '"1"', "12345678901234567890", "0.5]", "1e999", "0.5,-0", "0.5,9007199254740993",
])
def test_columns_that_are_left_to_python(cells):
    assert arrow_text.json_columns(b'{"epoch":1,"id":["a"],"loss":[%s]}' % cells.encode()) is None


@pytest.mark.parametrize("raw", [
    b'{"epoch":1,"id":["a"],"loss":[1]', b'{"epoch":1,"id":["a"],"loss":[1],"loss":[2]}', b'{"id":["a"],"loss":[1]}',
    b'{"epoch":1,"id":["a"],"loss":[1]}{}', b'{"epoch":1,"id":["a"],"loss":[1]}\x0b',
    b'{"epoch":01,"id":["a"],"loss":[1]}', b'{"epoch":1,"id":[1],"loss":[1]}',
    b'{"epoch":1,"id":["\\""],"loss":[1]}', b'{"epoch":1,"id":["\xff"],"loss":[1]}', b'{"epoch":1,"id":["a',
    b'{"epoch":1,"id":["a"b"],"loss":[1]}', b'{"epoch": 1,"id":["a"],"loss":[1]}',
])
def test_objects_that_are_left_to_python(raw):
    assert arrow_text.json_columns(raw) is None


def test_what_a_recording_writes_is_read_fast(tmp_path):
    write_dynamics(tmp_path, 1, ["a", "é"], {"confidence": np.array([1e-6, 1.0]), "correct": np.array([True, False])})
    columns = arrow_text.json_columns((tmp_path / "training_dynamics_epoch_1.json").read_bytes())
    assert columns is not None and columns["confidence"].tolist() == [1e-6, 1.0]


# --- CSV -------------------------------------------------------------------------------------------------------------

CSV = [
    "id,a\n1,2\n2,3\n", '"id","a"\n"x",0.1\n"y",\n', "id,a\nx,1\ny,2,3\n", "id,a\nx\n", 'id,a\n"x"y,1\n',
    'id,a\n"x,1\n', 'id,a\n"x, "b",c",1\n', 'id,a\n"say ""hi""",1\n', 'id,a\n"x\ny",1\n',
    "id,a\nx,True\ny,False\n", "id,a\nx,True\ny,\n",
    "id,a\nx,2020-01-01\n", "id,a\nx,007\n", "id,a\nx,0x1F\n", "id,a\nx,+5\n", "id,a\nx,nan\n", "id,a\nx,inf\n",
    "id,a\nx,1e400\n", "id,a\nx, 5\n", 'id,a\nx,""\n', 'id,a\nx,"0.5"\n', "id,a\nx,1\ny,\n", "id,a\nx,NA\n",
    "id,a\nx,12345678901234567890\n", "id,a\nx,\ny,\n", "id,a\n\nx,1\n\n", "id,a\r\nx,1\r\n", "id,a\nx,1\ry,2\n",
    "id,a\nx,1_000\n", "id,a\nx,1\ny,b\n", "id,a\nx,1\ny,0.5\n", 'id,a\nx,a""b\n', 'id,a\nx,a"b\n',
    'id,t\nx,\ny,""\nz,"q"\n', "id,a,a\nx,1,2\n", "\ufeffid,a\nx,1\n", "id;a\nx;1\n", "id,a\n", "",
    "\n", 'id,a\n"",1\n',
    "id,a\n,1\n", "id,a\nx,0.1000000000000000055511151231257827\n", "id,a\nx,1e-5\ny,5E3\n", "id,a\nx,-0.0\n",
    "id,a\nx,1", 'id,a\nx,"""b"""\n', "id,a\nx,true\ny,FALSE\n", "id,a\nx,1.0\ny,1\n", 'id,"a;b"\nx,1\n',
    "sep=,\nid,a\nx,1\n", ",id\n1,x\n", "t\nx\n \ny\n", "id,a\nx,tRue\n", 'id,a\nx,""b\n', 't,id\nq,x\r"",y\n',
    "id,a\nx,00000000000000000000000000005\n", "id,a\nx,5\0 1\n",
    'id,a\n"""b",""\n"""""""",2\n', 'id,a\nx,"a,""b"""\n',
]


@pytest.mark.parametrize("content", CSV)
def test_a_csv_is_what_pandas_makes_of_it(tmp_path, content):
    path, raw = tmp_path / "a.csv", content.encode()
    path.write_bytes(raw)
    for text in ((), ("a", "t")):
        table = arrow_text.csv_table(raw, ("id", *text))
        if table is not None:
            pd.testing.assert_frame_equal(files.frame_of(path, table, text), files._read_by_pandas(path, text),
                                          check_exact=True)
    rows = arrow_text.csv_rows(raw)
    assert rows is None or rows == len(list(files.csv_records(path))) - 1


def test_what_we_write_is_read_fast(tmp_path):
    frame = pd.DataFrame({"id": ["01", 'a,"b"\n'], "x": [0.1, np.nan], "n": [1, 2], "flag": [True, False],
                          "word": ["", None]})
    files.write_csv(tmp_path / "a.csv", frame)
    raw = (tmp_path / "a.csv").read_bytes()
    table = arrow_text.csv_table(raw, ("id", "word"))
    assert table is not None and table.to_pylist() == [
        {"id": "01", "x": 0.1, "n": 1, "flag": True, "word": ""},
        {"id": 'a,"b"\n', "x": None, "n": 2, "flag": False, "word": None}]
    assert arrow_text.csv_rows(raw) == 2


def test_an_empty_id_is_none_and_text_elsewhere_must_be_utf_8(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'id,a\n"",\nx,2\n')
    with pytest.raises(UserError, match="line 2: no id"):
        files.read_table(tmp_path / "a.csv")
    assert arrow_text.csv_rows(b"id,a\nx,\xff\n") is None


@pytest.mark.parametrize("block", [16, 17, 18, 19, 23])
def test_rows_are_counted_whatever_is_read_at_a_time(block, monkeypatch):
    monkeypatch.setattr(arrow_text, "BLOCK", block)
    raw = b"id,a\n" + b"".join(f"{row},{'é€😀'[row % 3]}\n".encode() for row in range(99))
    assert arrow_text.csv_rows(raw) == 99
    assert arrow_text.csv_rows(raw.replace("50,😀".encode(), b"50,\xf0\x9f")) is None


def test_a_column_is_of_one_type_however_long_the_file(tmp_path):
    (tmp_path / "a.csv").write_text("id,a\n0,x\n" + "".join(f"{row},{row}\n" for row in range(1, 300_000)) + "end,1")
    assert {type(value) for value in files.read_table(tmp_path / "a.csv")["a"]} == {str}


def test_quotation_marks_are_followed_across_blocks(monkeypatch):
    monkeypatch.setattr(arrow_text, "BLOCK", 4)
    assert arrow_text._quoted_well(b'id,a\n"x\n""y""\n,z",1\n"",2\n')
    assert not arrow_text._quoted_well(b'id,a\n"x\ny"z,1\n"b",2\n')
