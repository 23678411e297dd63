"""Artifacts are whole or not there, read back as they were written, and refused when they belong elsewhere."""

import argparse
import json
import logging
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import qa_rows, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamap.core import artifacts
from datamap.core.artifacts import (
    artifact_file,
    check_not_read,
    check_same_dataset,
    check_writable,
    load_meta,
    model_meta,
    recorded_dataset,
    recorded_split,
    stage,
)
from datamap.core.errors import UserError
from datamap.core.files import atomic, read_json, read_jsonl, read_table, write_csv, write_json, write_jsonl
from datamap.core.splits import load_split
from datamap.tasks.qa import QuestionAnswering
from datamap.training.model_files import check_whole_model

TASK = QuestionAnswering()


@pytest.fixture
def split(tmp_path):
    return load_split(str(write_rows(tmp_path / "stories.jsonl", qa_rows(10))), "train", TASK)


def meta_of(path):
    meta = load_meta(path)
    assert meta is not None
    return meta


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


def test_a_table_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(Exception, match="."):
        write_csv(tmp_path / "a.csv", pd.DataFrame({"id": ["a"], "x": [object()]}))
    assert names(tmp_path) == []


# --- one run of a stage ---


def run_stage(path, files, **settings):
    with stage(path, settings.pop("args", {"seed": 3}), owns=("*.csv", "part_*"), **settings) as directory:
        for name in files:
            (directory / name).write_text("x" * 10)
    return meta_of(path)


def test_a_stage_records_its_run(tmp_path, split):
    source = tmp_path / "source"
    run_stage(source, [], datasets=[split.identity()])
    args = argparse.Namespace(seed=7, output_dir=Path("out"), flag=None)
    meta = run_stage(tmp_path / "a" / "b", ["t.csv"], args=args, datasets=[split.identity()],
                     inputs={"cartography": source, "clusters": None})
    assert meta["status"] == "finished" and meta["seed"] == 7 and meta["history"] == []
    assert meta["arguments"] == {"seed": 7, "output_dir": "out", "flag": None}
    assert meta["datasets"] == [split.identity()]
    assert meta["inputs"] == {"cartography": {"path": str(source), "fingerprints": [split.fingerprint]}}
    assert meta["outputs"] == {"t.csv": 10}
    assert meta["started"] <= meta["finished"]
    assert meta["versions"]["python"] and meta["versions"]["numpy"] == np.__version__
    assert {"command", "git_commit", "git_dirty"} <= meta.keys()


def test_a_stage_is_marked_running_inside(tmp_path):
    with stage(tmp_path / "a", {}, owns=()) as path:
        assert meta_of(path)["status"] == "running" and meta_of(path)["finished"] is None
        with pytest.raises(UserError, match="is still running or was killed"):
            artifact_file(path, "t.csv", "make.py")
    assert meta_of(path)["status"] == "finished"


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), KeyboardInterrupt(), UserError("no")])
def test_a_stage_that_fails_says_so(tmp_path, error):
    with pytest.raises(type(error)):
        with stage(tmp_path, {}, owns=("*.csv",)) as path:
            (path / "t.csv").write_text("x")
            raise error
    meta = meta_of(tmp_path)
    assert meta["status"] == "failed"
    assert meta["error"] == f"{type(error).__name__}: {error}"
    with pytest.raises(UserError, match="is not whole: the run that writes it failed .*; run make.py again"):
        artifact_file(tmp_path, "t.csv", "make.py")


def test_a_stage_removes_what_it_owns_and_nothing_else(tmp_path):
    run_stage(tmp_path, ["old.csv", "notes.txt", ".old.tmp-12.csv"])
    (tmp_path / "part_1").mkdir()
    (tmp_path / "part_1" / "x").write_text("x")
    run_stage(tmp_path, ["new.csv"])
    assert names(tmp_path) == ["new.csv", "notes.txt", "run_meta.json"]


def test_a_resumed_stage_keeps_its_files(tmp_path):
    run_stage(tmp_path, ["old.csv"])
    meta = run_stage(tmp_path, ["new.csv"], resume=True)
    assert names(tmp_path) == ["new.csv", "old.csv", "run_meta.json"]
    assert set(meta["outputs"]) == {"old.csv", "new.csv"}


def test_earlier_runs_move_to_the_history(tmp_path):
    for number in range(3):
        meta = run_stage(tmp_path, [], args={"seed": number})
    assert [run["seed"] for run in meta["history"]] == [0, 1]  # oldest first
    assert meta["seed"] == 2
    assert all(run["status"] == "finished" and "history" not in run for run in meta["history"])


def test_a_link_is_removed_and_its_target_kept(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "x").write_text("x")
    out = tmp_path / "out"
    out.mkdir()
    (out / "part_link").symlink_to(target)
    run_stage(out, [])
    assert names(out) == ["run_meta.json"] and names(target) == ["x"]


def test_other_processes_touch_no_files(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with stage(tmp_path / "a", {}, owns=("*",)) as path:
        assert path == tmp_path / "a"
    assert names(tmp_path) == []


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file; name a directory"):
        check_writable(tmp_path / "file")
    with pytest.raises(UserError, match="is not writable .*file refuses.; name another"):
        run_stage(tmp_path / "file" / "below", [])
    check_writable(tmp_path / "not" / "yet")
    assert names(tmp_path) == ["file"]  # checking creates nothing


def test_a_directory_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write where others may not
    with pytest.raises(UserError, match=f"below is not writable .{tmp_path} refuses.; name another"):
        check_writable(tmp_path / "below")


def test_an_output_directory_that_is_read_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "t.csv").write_text("x")
    for source in (tmp_path / "a", tmp_path / "a" / "t.csv", f"{tmp_path}/a/../a"):
        with pytest.raises(UserError, match="which is read; name another directory"):
            check_not_read(tmp_path / "a", tmp_path, source)
    check_not_read(tmp_path / "b", tmp_path / "a")


# --- reading ---


def test_an_artifact_is_its_directory_or_its_file(tmp_path):
    run_stage(tmp_path, ["t.csv"])
    assert artifact_file(tmp_path, "t.csv", "make.py") == tmp_path / "t.csv"
    assert artifact_file(str(tmp_path / "t.csv"), "t.csv", "make.py") == tmp_path / "t.csv"


def test_an_artifact_made_elsewhere_is_accepted(tmp_path):
    (tmp_path / "mine.csv").write_text("x")
    assert artifact_file(tmp_path / "mine.csv", "t.csv", "make.py") == tmp_path / "mine.csv"
    (tmp_path / "run_meta.json").write_text('{"made_by": "somebody"}')
    assert artifact_file(tmp_path / "mine.csv", "t.csv", "make.py") == tmp_path / "mine.csv"


def test_artifacts_that_are_not_whole_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such file or directory; make.py writes t\.csv"):
        artifact_file(tmp_path / "nowhere", "t.csv", "make.py")
    run_stage(tmp_path, ["t.csv"])
    with pytest.raises(UserError, match=r"holds no u\.csv; make\.py writes it"):
        artifact_file(tmp_path, "u.csv", "make.py")
    (tmp_path / "t.csv").write_text("x" * 9)
    with pytest.raises(UserError, match="is truncated: 9 bytes, 10 when it was written; run make.py again"):
        artifact_file(tmp_path, "t.csv", "make.py")
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(UserError, match="is empty; run make.py again"):
        artifact_file(tmp_path, "t.csv", "make.py")


def test_a_killed_run_is_refused(tmp_path):
    meta = run_stage(tmp_path, ["t.csv"])
    write_json(tmp_path / "run_meta.json", {**meta, "status": "running"})  # what a kill leaves
    with pytest.raises(UserError, match="still running or was killed"):
        artifact_file(tmp_path / "t.csv", "t.csv", "make.py")


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
        ("[1]", r"a\.jsonl, line 2: no 'id' in \[1\]"),
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


# --- which dataset ---


def test_the_same_dataset_is_accepted(tmp_path, split, caplog):
    run_stage(tmp_path / "map", [], datasets=[split.identity()])
    with caplog.at_level(logging.INFO):
        assert check_same_dataset(tmp_path / "map", split.ids, split) == 1
        assert caplog.text == ""
        assert check_same_dataset(tmp_path / "map", [*split.ids[:4], "other"], split) == 0.4
    assert "covers 4 of 10 examples" in caplog.text and "(40.0%)" in caplog.text
    assert check_same_dataset(tmp_path / "elsewhere.csv", split.ids[:1], split) == 0.1  # without run_meta.json


def test_another_dataset_is_refused_with_both_names(tmp_path, split):
    other = load_split(str(write_rows(tmp_path / "poems.jsonl", qa_rows(5, prefix="poem"))), "train", TASK)
    run_stage(tmp_path / "map", [], datasets=[other.identity()])
    with pytest.raises(UserError, match=r"made from .*poems\.jsonl \[train\] and shares no ids with .*stories"):
        check_same_dataset(tmp_path / "map", other.ids, split)
    with pytest.raises(UserError, match="was made from another dataset and shares no ids with"):
        check_same_dataset(tmp_path / "elsewhere.csv", other.ids, split)


def test_other_content_under_the_same_ids_is_refused(tmp_path, split):
    other = load_split(str(write_rows(tmp_path / "changed.jsonl", qa_rows(10, seed=9))), "train", TASK)
    assert other.ids == split.ids
    run_stage(tmp_path / "map", [], datasets=[other.identity()])
    with pytest.raises(UserError, match=r"changed\.jsonl \[train\], which has ids of .*stories.*other content") as no:
        check_same_dataset(tmp_path / "map", other.ids, split)
    assert split.fingerprint in str(no.value) and other.fingerprint in str(no.value)


def test_a_capped_split_is_the_same_dataset(tmp_path, split):
    capped = load_split(split.name, "train", TASK, max_samples=3)
    run_stage(tmp_path / "map", [], datasets=[capped.identity()])
    assert check_same_dataset(tmp_path / "map", capped.ids, split) == 0.3
    assert check_same_dataset(tmp_path / "map", split.ids, capped) == 1


def test_the_recorded_split_is_found_again(tmp_path, split):
    run_stage(tmp_path / "map", ["t.csv"], datasets=[split.identity()])
    assert recorded_dataset(tmp_path / "map" / "t.csv") == split.identity()
    found = recorded_split(tmp_path / "map", None, None, TASK, max_samples=2)
    assert found is not None and (found.fingerprint, len(found.data)) == (split.fingerprint, 2)
    found = recorded_split(tmp_path / "map", str(write_rows(tmp_path / "other.jsonl", qa_rows(3))), None, TASK)
    assert found is not None and found.rows == 3
    assert recorded_split(tmp_path / "elsewhere", None, None, TASK) is None
    assert recorded_dataset(tmp_path) is None
    Path(split.name).unlink()
    with pytest.raises(UserError, match=r"stories\.jsonl.*recorded in .*map; --dataset names another place"):
        recorded_split(tmp_path / "map", None, None, TASK)


def test_a_model_stands_for_what_it_was_trained_on(tmp_path, split):
    other = load_split(str(write_rows(tmp_path / "test.jsonl", qa_rows(3))), "train", TASK)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no tokenizer"):
        check_whole_model(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    check_whole_model(tmp_path / "model")  # trained elsewhere
    run_stage(tmp_path / "model", [], args={"do_train": True}, datasets=[split.identity()])
    run_stage(tmp_path / "model", [], args={"do_train": False}, datasets=[other.identity()])
    trained = model_meta(tmp_path / "model")
    assert trained is not None and trained["datasets"] == [split.identity()]
    assert recorded_dataset(tmp_path / "model") == split.identity()
    check_whole_model(tmp_path / "model")
    check_whole_model("some/hub-name")
    with pytest.raises(ValueError):
        with stage(tmp_path / "model", {"do_train": True}, owns=()):
            raise ValueError
    run_stage(tmp_path / "model", [], args={"do_train": False})
    with pytest.raises(UserError, match="model .* is not whole: its training is marked failed"):
        check_whole_model(tmp_path / "model")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        check_whole_model(tmp_path)


def test_git_state_is_none_outside_a_checkout(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert artifacts._git_state() == (None, None)


def test_run_meta_is_json_for_everyone(tmp_path, split):
    run_stage(tmp_path / "a", ["t.csv"], datasets=[split.identity()])
    json.loads((tmp_path / "a" / "run_meta.json").read_text(), parse_constant=pytest.fail)


def test_another_stage_in_the_directory_does_not_make_a_killed_one_whole(tmp_path):
    """The last run that owns a file says whether it is whole, not the last run in the directory."""
    with pytest.raises(KeyboardInterrupt):
        with stage(tmp_path, {}, owns=("clusters.csv",)):
            (tmp_path / "clusters.csv").write_text("id\n")
            raise KeyboardInterrupt
    with stage(tmp_path, {}, owns=("samples.json",)):
        (tmp_path / "samples.json").write_text("[1]")
    assert artifact_file(tmp_path, "samples.json", "samples.py").exists()
    with pytest.raises(UserError, match="is not whole: the run that writes it failed"):
        artifact_file(tmp_path, "clusters.csv", "clusters.py")


@pytest.mark.parametrize("before", [None, '{"sta', '{"status": "running", "arguments": {"seed": 3}, "history": []}'])
def test_mark_failed_from_outside(tmp_path, before):
    if before is not None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "run_meta.json").write_text(before)
    artifacts.mark_failed(tmp_path / "run", "x" * 600)
    meta = load_meta(tmp_path / "run")
    assert meta is not None and meta["status"] == "failed" and meta["error"] == "x" * 500 and meta["finished"]
    assert meta["arguments"] == ({"seed": 3} if before and "seed" in before else {})
