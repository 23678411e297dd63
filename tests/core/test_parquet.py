"""Parquet as the second form of large tables: what is read back, whichever way, and what is refused."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY

from datamap.core import parquet
from datamap.core.artifacts import artifact_file
from datamap.core.errors import UserError
from datamap.core.files import read_table, write_csv, write_either, write_parquet

AWKWARD = ["001", "12e5", "nan", "NA", "None", "1.0", "true", "a,b", 'say "x"', "naïve/ü", " lead", "-1"]


def table(rows=12):
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "id": AWKWARD[:rows], "p": rng.random(rows), "tiny": rng.random(rows) * 1e-300, "n": np.arange(rows),
        "right": rng.random(rows) < 0.5, "known": pd.array([True, None, *[False] * (rows - 2)], "boolean"),
        "cluster": pd.array([None, *range(rows - 1)], "Int64"), "gap": [np.nan, *rng.random(rows - 1)],
        "word": ["", None, *["easy"] * (rows - 2)],
    })


def test_a_table_comes_back_the_same_from_csv_and_from_parquet(tmp_path):
    frame = table()
    write_csv(tmp_path / "t.csv", frame)
    write_parquet(tmp_path / "t.parquet", frame)
    from_csv, from_parquet = (read_table(tmp_path / f"t.{kind}", ("id",), ("word",)) for kind in ("csv", "parquet"))
    pd.testing.assert_frame_equal(from_parquet, from_csv, check_exact=True)
    assert from_parquet["id"].tolist() == AWKWARD and from_parquet["p"].tolist() == frame["p"].tolist()
    assert from_parquet["right"].dtype == bool and from_parquet["known"].tolist()[::2] == [True, *[False] * 5]
    assert from_parquet["known"].isna().tolist() == [False, True, *[False] * 10]
    assert from_parquet["word"][0] == "" and from_parquet["word"].isna().sum() == 1
    raw = pq.read_table(tmp_path / "t.parquet")  # null, and no NaN, is what is missing
    assert [raw[name].null_count for name in ("known", "cluster", "gap", "word")] == [1, 1, 1, 1]
    assert raw.schema.field("right").type == raw.schema.field("known").type == pa.bool_()


def test_row_groups_have_at_most_so_many_rows_and_blocks_are_of_that_size(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_A_GROUP", 5)
    write_parquet(tmp_path / "t.parquet", table())
    meta = pq.ParquetFile(tmp_path / "t.parquet").metadata
    assert [meta.row_group(place).num_rows for place in range(meta.num_row_groups)] == [5, 5, 2]
    with parquet.row_groups(tmp_path / "parts.parquet") as write:
        for rows in (3, 4, 5):
            write(parquet.table_of(table().iloc[:rows]))
    assert [len(block) for block in parquet.parquet_blocks(tmp_path / "parts.parquet")] == [5, 5, 2]


def test_the_form_goes_by_the_number_of_examples_unless_it_is_asked_for(tmp_path, monkeypatch):
    assert [parquet.format_for(n) for n in (0, parquet.PARQUET_ABOVE, parquet.PARQUET_ABOVE + 1)] == [
        "json", "json", "parquet"]
    assert parquet.format_for(3, "parquet") == "parquet" and parquet.format_for(10**9, "json") == "json"
    page = (REPOSITORY / "docs" / "scale.md").read_text(encoding="utf-8")
    assert f"Up to {parquet.PARQUET_ABOVE:,} examples a map is written as JSON and CSV" in page
    with pytest.raises(UserError, match="unknown artifact format 'csv'; there is json, parquet"):
        parquet.format_for(3, "csv")
    monkeypatch.setattr(parquet, "PARQUET_ABOVE", 11)
    assert write_either(tmp_path / "t.csv", table(11), None) == "t.csv"
    assert write_either(tmp_path / "t.csv", table(12), None) == "t.parquet"
    assert write_either(tmp_path / "t.csv", table(12), "json") == "t.csv"


@pytest.mark.parametrize("ids, expected", [
    (pa.array([7, 8, 9], pa.int32()), ["7", "8", "9"]),
    (pa.array(["a", "b", "c"], pa.large_string()), ["a", "b", "c"]),
    (pa.array(["a", "b", "c"]).dictionary_encode(), ["a", "b", "c"]),
    (pa.array([b"a", b"b", b"c"]), ["a", "b", "c"]),
])
def test_a_file_made_elsewhere_is_read(tmp_path, ids, expected):
    file = tmp_path / "theirs.parquet"
    pq.write_table(pa.table({
        "id": ids, "p": pa.array([0.5, 0.25, None], pa.float32()), "n": pa.array([1, 2, 3], pa.uint8()),
        "kind": pa.array(["x", "y", "x"]).dictionary_encode(), "nothing": pa.nulls(3),
    }), file, compression="gzip", row_group_size=1, version="1.0")
    frame = read_table(file, ("id", "p"))
    assert frame["id"].tolist() == expected and frame["p"].tolist()[:2] == [0.5, 0.25] and frame["p"].isna()[2]
    assert frame.dtypes[["p", "n"]].tolist() == [np.float64, np.int64] and frame["kind"].tolist() == ["x", "y", "x"]


def damaged(file, how):
    content = file.read_bytes()
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif how == "text":
        file.write_text("id,p\na,0.5\n")
    elif how == "pages":  # the footer is whole
        file.write_bytes(content[:4] + bytes(255 - each for each in content[4:200]) + content[200:])
    elif how == "footer":
        file.write_bytes(content[:-60] + b"\xff" * 40 + content[-20:])
    elif how == "length":
        file.write_bytes(content[:-8] + b"\xff\xff\xff\x7fPAR1")
    elif how == "empty":
        file.write_bytes(b"")


@pytest.mark.parametrize("how", ["cut", "text", "pages", "footer", "length", "empty"])
def test_a_damaged_file_is_one_clear_line(tmp_path, how):
    file = tmp_path / "t.parquet"
    write_parquet(file, table())
    damaged(file, how)
    for read in (lambda: read_table(file), lambda: list(parquet.parquet_blocks(file))):
        with pytest.raises(UserError, match="t.parquet cannot be read as Parquet") as caught:
            read()
        assert len(str(caught.value)) < 500 and str(caught.value).endswith("is the file whole?")


@pytest.mark.parametrize("columns, message", [
    ({"id": ["a", None, "b"]}, "row 2: no id"),
    ({"id": ["a", "b", "a"]}, r"1 ids occur more than once .'a'."),
    ({"id": [7, 8, 7]}, r"1 ids occur more than once .'7'."),
    ({"id": [["a"], ["b"], ["c"]]}, "id is of type list<.*>; expected text"),
    ({"id": pa.array([b"\xff", b"b", b"c"])}, "id is of type binary; expected text"),
    ({"guid": ["a", "b", "c"]}, "has no column 'id'; it has 'guid'"),
])
def test_ids_that_cannot_be_are_refused(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "t.parquet", ("id",))


def test_two_columns_of_one_name_are_refused(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([2])], ["id", "x", "x"]),
                   tmp_path / "t.parquet")
    with pytest.raises(UserError, match="columns 'x' are there more than once"):
        read_table(tmp_path / "t.parquet")


def test_ids_with_the_same_hash_are_told_from_the_same_ids(monkeypatch):
    monkeypatch.setattr(parquet, "_hashed", lambda ids: np.array([len(each) for each in ids], np.uint64))

    def check(blocks):
        unique = parquet.UniqueIds("here")
        for ids in blocks:
            unique.add(ids)
        unique.check(lambda: iter(blocks))

    check([["a", "bb"], ["c"]])
    with pytest.raises(UserError, match="here: 1 ids occur more than once .'a'."):
        check([["a", "bb"], ["c", "a"]])


def test_a_directory_with_both_forms_of_one_table_is_refused(tmp_path):
    for text in ("unified_analysis.csv", "cartography_metrics.csv", "cartography_metrics.json"):
        home = tmp_path / text
        home.mkdir()
        write_parquet((home / text).with_suffix(".parquet"), table())
        name = f"{text.partition('.')[0]}.csv"
        assert artifact_file(home, name, "a stage").suffix == ".parquet"
        (home / text).write_text("id\na\n")
        with pytest.raises(UserError, match=rf"holds {text} and .*parquet, and which one .* name the file itself"):
            artifact_file(home, name, "a stage")
        assert artifact_file(home / text, name, "a stage") == home / text  # named
    write_parquet(tmp_path / "cluster_assignments.parquet", table())
    with pytest.raises(UserError, match="holds no cluster_assignments.csv"):
        artifact_file(tmp_path, "cluster_assignments.csv", "a stage")
