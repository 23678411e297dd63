"""Files are whole or not there, and read back as they were written."""

import gzip
import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamap.core import files
from datamap.core.errors import UserError
from datamap.core.files import (
    atomic,
    read_json,
    read_json_like,
    read_jsonl,
    read_table,
    write_csv,
    write_json,
    write_jsonl,
)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


# --- writing ---


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "a.csv").write_text("old")
    with pytest.raises(error):
        with atomic(tmp_path / "a.csv") as temporary:
            assert temporary.parent == tmp_path and temporary.suffix == ".csv" and temporary.name.startswith(".")
            temporary.write_text("half")
            raise error
    assert names(tmp_path) == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "old"


def test_a_finished_write_replaces_the_old_file(tmp_path):
    (tmp_path / "a.npy").write_text("old")
    with atomic(tmp_path / "a.npy") as temporary:
        np.save(temporary, np.arange(3))
        assert (tmp_path / "a.npy").read_text() == "old"  # until the end
    assert names(tmp_path) == ["a.npy"]
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2]


def test_json_takes_numpy_and_paths_and_keeps_text(tmp_path):
    value = {
        "a": np.float64(0.1), "b": np.int64(3), "c": np.array([[1, 2]]), "d": Path("x/y"), "e": np.bool_(True),
        "f": None, "g": "é 🙂", "h": 0.1 + 0.2,
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "é 🙂" in text and text.endswith("}\n")
    assert read_json(tmp_path / "a.json") == {
        "a": 0.1, "b": 3, "c": [[1, 2]], "d": "x/y", "e": True, "f": None, "g": "é 🙂", "h": 0.1 + 0.2,
    }


@pytest.mark.parametrize(
    "value, error",
    [(math.nan, ValueError), (np.float32("inf"), ValueError), (np.array([1, math.nan]), ValueError),
     (object(), TypeError), ({1, 2}, TypeError)],
)
def test_json_refuses_what_it_cannot_hold(tmp_path, value, error):
    with pytest.raises(error):
        write_json(tmp_path / "a.json", {"x": value})
    with pytest.raises(error):
        write_jsonl(tmp_path / "a.jsonl", [{"x": 1}, {"x": value}])
    assert names(tmp_path) == []


def test_json_lines_there_and_back(tmp_path):
    rows: list[dict] = [{"id": "001", "text": "two\nlines\u2028é"}, {"id": "2", "text": None}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == 2
    assert read_jsonl(tmp_path / "a.jsonl", columns=("id", "text")) == rows


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=8)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(CELLS, st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.integers(-9, 2**53)),
        min_size=1, max_size=6, unique_by=lambda row: row[0],
    )
)
def test_tables_there_and_back(tmp_path, rows):
    frame = pd.DataFrame(rows, columns=["id", "value", "flag", "count"])
    write_csv(tmp_path / "a.csv", frame)
    back = read_table(tmp_path / "a.csv", columns=("id", "value"))
    assert back["id"].tolist() == frame["id"].tolist()
    assert back["value"].tolist() == frame["value"].tolist()  # every digit
    assert back["flag"].tolist() == frame["flag"].tolist() and back["flag"].dtype == bool
    assert back["count"].tolist() == frame["count"].tolist()


@pytest.mark.parametrize("value", [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, 1e-17, 123456789.12345679, -0.0])
def test_floats_keep_every_digit(tmp_path, value):
    write_csv(tmp_path / "a.csv", pd.DataFrame({"id": ["a"], "x": [value]}))
    assert read_table(tmp_path / "a.csv")["x"].iloc[0] == value
    assert float((tmp_path / "a.csv").read_text().splitlines()[1].split(",")[1]) == value  # in any language


def test_booleans_and_ids_of_plain_pandas_users(tmp_path):
    write_csv(tmp_path / "a.csv", pd.DataFrame({"id": ["001", "12e5", "7"], "is_dataset_error": [True, False, True]}))
    frame = pd.read_csv(tmp_path / "a.csv", dtype={"id": str})
    assert frame["is_dataset_error"].dtype == bool
    assert frame[frame["is_dataset_error"]]["id"].tolist() == ["001", "7"]


def test_a_missing_value_is_an_empty_cell(tmp_path):
    frame = pd.DataFrame(
        {"id": ["a", "NA", "nan"], "x": [1.5, math.nan, 2], "text": ["NA", None, "null"], "n": [1, None, 3],
         "rule": pd.array([True, None, False], dtype="boolean")}
    )
    write_csv(tmp_path / "a.csv", frame)
    assert (tmp_path / "a.csv").read_text().splitlines()[2] == '"NA",,,,'
    back = read_table(tmp_path / "a.csv")
    assert back["id"].tolist() == ["a", "NA", "nan"]
    assert back["text"].tolist()[::2] == ["NA", "null"] and back["text"].isna().tolist() == [False, True, False]
    assert back["x"].isna().tolist() == [False, True, False]
    assert back["rule"].tolist()[::2] == [True, False] and pd.isna(back["rule"][1])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_empty_text_is_not_a_missing_one(tmp_path, suffix):
    frame = pd.DataFrame({"id": ["a", "b", "c", "d"], "answer": ["x", "", None, 'quote ""\n,"",\n'],
                          "none": ["", None, "", None], "n": [1.0, None, 2.0, 3.0]})
    write_csv(tmp_path / "a.csv", frame)
    path = tmp_path / f"a.csv{suffix}"
    if suffix:
        path.write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    back = read_table(path, text=("none",))
    for column in ("answer", "none"):
        assert back[column].isna().tolist() == frame[column].isna().tolist()
        assert back[column].dropna().tolist() == frame[column].dropna().tolist()
    assert back["n"].isna().tolist() == [False, True, False, False]


def test_a_table_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(Exception, match="."):
        write_csv(tmp_path / "a.csv", pd.DataFrame({"id": ["a"], "x": [object()]}))
    assert names(tmp_path) == []


# --- reading ---


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "a.json, line 1: malformed JSON"),
        ('{"a": 1,\n "b": ', r"a.json, line 2: malformed JSON .*is the file whole\?"),
    ],
)
def test_malformed_json_is_refused_with_its_line(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json")


def test_text_that_is_not_utf_8_is_refused(tmp_path):
    for name, read in (("a.json", read_json), ("a.jsonl", read_jsonl), ("a.csv", read_table)):
        (tmp_path / name).write_bytes('{"a": "é"}\n'.encode("latin-1"))
        with pytest.raises(UserError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "second, message",
    [
        ('{"id": "b"', r"a\.jsonl, line 2: malformed JSON"),
        ('{"name": "b"}', r"a\.jsonl, line 2: no 'id' in "),
        ("[1]", r"a\.jsonl, line 2: expected a JSON object, found list"),
    ],
)
def test_malformed_json_lines_are_refused_with_their_line(tmp_path, second, message):
    (tmp_path / "a.jsonl").write_text('{"id": "a"}\n' + second + "\n")
    with pytest.raises(UserError, match=message):
        read_jsonl(tmp_path / "a.jsonl", columns=("id",))


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is empty"),
        ("id,x\na,1\nb,2,3\n", "line 3: 3 columns"),
        ("id,x\na,1,2\n", "line 2"),
        ("id,x,y\na,1,2\nb,3\n", "line 3"),
        ('id,x\na,1\nb,"2\n', "malformed CSV"),
        ("x,y\n1,2\n", r"has no column 'id'; it has 'x', 'y'"),
        ("id,x\na,1\n,2\n", r"line 3: no id"),
        ("id,x\na,1\nb,2\na,3\n", "1 ids occur more than once .'a'."),
    ],
)
def test_malformed_tables_are_refused(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "a.csv", columns=("id",))


def test_a_table_without_ids_is_read_when_none_are_needed(tmp_path):
    (tmp_path / "a.csv").write_text("cluster,size\n-1,3\n")
    assert read_table(tmp_path / "a.csv", columns=("cluster",)).to_dict("records") == [{"cluster": -1, "size": 3}]


LIKE = {"name": str, "by": str | None, "runs": [{"seeds": [int]}], "share": float}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None), ({"by": "x", "more": 3}, None), ({"name": 3}, r"name is 3"), ({"runs": {}}, r"runs is {}"),
        ({"runs": [3]}, r"item 1 of runs is 3"), ({"runs": [{}]}, r"item 1 of runs has no 'seeds'"),
        ({"runs": [{"seeds": [1, "2"]}]}, r"item 2 of item 1 of runs.seeds is '2'"),
        ({"runs": [{"seeds": [True]}]}, r"item 1 of item 1 of runs.seeds is True"), ({"by": False}, "by is False"),
    ],
)
def test_what_we_wrote_ourselves_is_built_as_we_wrote_it(tmp_path, change, words):
    value = {"name": "a", "by": None, "runs": [{"seeds": [1, 2]}], "share": 0.5} | change
    write_json(tmp_path / "a.json", value)
    if words is None:
        assert read_json_like(tmp_path / "a.json", LIKE, "make.py") == value
    else:
        with pytest.raises(UserError, match=rf"a\.json is not as make\.py writes it \({words}\)"):
            read_json_like(tmp_path / "a.json", LIKE, "make.py")
    write_json(tmp_path / "b.json", {"a": 1, "b": None})
    assert read_json_like(tmp_path / "b.json", {...: int | None}, "make.py") == {"a": 1, "b": None}
    with pytest.raises(UserError, match=r"\(b is None\)"):
        read_json_like(tmp_path / "b.json", {...: int}, "make.py")
    others: tuple[object, ...] = ([], 3, None)
    for other in others:
        write_json(tmp_path / "b.json", other)
        with pytest.raises(UserError, match=r"\(it is "):
            read_json_like(tmp_path / "b.json", LIKE, "make.py")


@pytest.mark.parametrize("rows", [0, 1, 6, 7, 8, 30])
def test_a_csv_written_in_blocks_is_that_written_at_once(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(files, "ROWS_AT_A_TIME", 7)
    rng = np.random.default_rng(rows)
    late = [None if row < 9 else row for row in range(rows)]  # nothing in the first block
    frame = pd.DataFrame({
        "id": [f'a"{row}' for row in range(rows)], "x": rng.random(rows), "nan": [np.nan] * rows,
        "text": [None if row is None else f"é,\n{row}" for row in late], "object": pd.Series(late, dtype=object),
        "whole": pd.array(late, dtype="Int64"),
        "said": pd.array([row and row % 2 == 0 for row in late], dtype="boolean"),
    })
    write_csv(tmp_path / "a.csv", frame)
    whole = io.BytesIO()
    pyarrow.csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), whole)
    assert (tmp_path / "a.csv").read_bytes() == whole.getvalue()
