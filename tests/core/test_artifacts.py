"""Artifacts: one run of a stage, what is whole, and what is refused because it belongs elsewhere."""

import argparse
import json
import logging
import os
import resource
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import qa_rows, write_rows

from datamap.core import artifacts
from datamap.core.artifacts import (
    artifact_file,
    check_not_read,
    check_same_dataset,
    check_writable,
    hand_on_digests,
    load_meta,
    model_meta,
    recorded_dataset,
    recorded_split,
    stage,
)
from datamap.core.errors import UserError, command_line
from datamap.core.files import atomic, room_for_array, write_csv, write_json, write_jsonl
from datamap.core.splits import load_split
from datamap.tasks.qa import QuestionAnswering
from datamap.training.models import check_whole_model

TASK = QuestionAnswering()
TABLE = "id\nabc\nde\n"


@pytest.fixture
def split(tmp_path):
    return load_split(str(write_rows(tmp_path / "stories.jsonl", qa_rows(10))), "train", TASK)


def meta_of(path):
    meta = load_meta(path)
    assert meta is not None
    return meta


def names(directory):
    return sorted(path.name for path in directory.iterdir())


# --- one run of a stage ---


def run_stage(path, files, **settings):
    with stage(path, settings.pop("args", {"seed": 3}), owns=("*.csv", "part_*"), **settings) as directory:
        for name in files:
            (directory / name).write_text(TABLE if name.endswith(".csv") else "x" * len(TABLE))
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


def test_versions_are_read_once_a_process(tmp_path, monkeypatch):
    first = run_stage(tmp_path / "a", [])["versions"]

    def read_again(**_):
        raise AssertionError

    monkeypatch.setattr(artifacts.metadata, "distributions", read_again)
    assert run_stage(tmp_path / "b", [])["versions"] == first


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


@pytest.mark.parametrize("name", ["", " ", "/proc/x", "/dev/null/x", "a" * 300])
def test_a_directory_that_there_cannot_be_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="output directory"), stage(name, {}, owns=("*",)):
        pass
    assert names(tmp_path) == []


@contextmanager
def full_disk(size):
    """No file of this process can grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", [
    lambda path: write_json(path, ["x" * 60_000]), lambda path: write_jsonl(path, [{"a": "x" * 60_000}]),
    lambda path: write_csv(path, pd.DataFrame({"id": range(20_000)})),
    lambda path: room_for_array(path, (60_000,), np.int64),
])
def test_a_full_disk_is_one_line_that_says_what_is_whole(tmp_path, capsys, write):
    @command_line
    def main(argv=None):
        with stage(tmp_path / "out", {}, owns=("*.csv", "*.json", "part_*")) as path:
            (path / "a.csv").write_text(TABLE)
            with full_disk(40_000), atomic(path / "b.json") as temporary:
                write(temporary)

    with pytest.raises(SystemExit) as stopped:
        main([])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1
    assert f"error: File too large: {tmp_path / 'out' / 'b.json'}; {tmp_path / 'out'} is not whole" in said
    assert "whole files in it: 'a.csv'" in said and "then run the same command again" in said
    assert not [name for name in names(tmp_path / "out") if name.startswith((".b", "b"))]
    assert meta_of(tmp_path / "out")["status"] == "failed"
    with pytest.raises(UserError, match="is not whole: the run that writes it failed"):
        artifact_file(tmp_path / "out", "a.csv", "make.py")


def test_a_disk_too_full_for_a_new_run_meta_marks_the_stage_in_the_old_one(tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as error, stage(tmp_path, {}, owns=("*.csv",)) as path:
        monkeypatch.setattr("datamap.core.files.os.replace", no_room)
        write_json(path / "a.json", {})
    assert error.value.filename == str(tmp_path / "a.json") and "is not whole" in error.value.__notes__[0]
    monkeypatch.undo()
    assert meta_of(tmp_path)["status"] == "failed" and names(tmp_path) == ["run_meta.json"]
    run_stage(tmp_path, ["t.csv"])
    assert meta_of(tmp_path)["status"] == "finished"


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "null", '"text"', '{"datasets": 3}', '{"datasets": [3]}', '{"datasets": [{"dataset": "a"}]}',
     '{"outputs": []}', '{"outputs": {"t.csv": "10"}}', '{"owns": [3]}', '{"history": {}}', '{"history": [[]]}',
     '{"arguments": []}', '{"datasets": [{"dataset": "a", "split": "b", "fingerprint": "c", "task": []}]}', "{", "",
     '{"seed": NaN}', '{"history": [{"arguments": {"learning_rate": 1e999}}]}'],
)
def test_a_damaged_run_meta_is_one_line(tmp_path, content):
    (tmp_path / "t.csv").write_text(TABLE)
    (tmp_path / "run_meta.json").write_text(content)
    for read in (load_meta, recorded_dataset, lambda path: artifact_file(path, "t.csv", "make.py"),
                 lambda path: run_stage(path, ["t.csv"])):
        with pytest.raises(UserError, match="run_meta.json"):
            read(tmp_path)


def test_a_run_meta_of_somebody_else_is_taken(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    (tmp_path / "run_meta.json").write_text('{"model": "x", "seed": null}')
    assert artifact_file(tmp_path, "t.csv", "make.py") == tmp_path / "t.csv"


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
    for cut, there in ((TABLE[:-1], 1), (TABLE[:-4], 0)):  # in its last line, and before it
        (tmp_path / "t.csv").write_text(cut)
        with pytest.raises(UserError, match=f"is truncated: {there} rows, 2 when it was written; run make.py again"):
            artifact_file(tmp_path, "t.csv", "make.py")
    run_stage(tmp_path, ["part_1"])
    (tmp_path / "part_1").write_text("x" * 9)
    with pytest.raises(UserError, match="is truncated: 9 bytes, 10 when it was written; run make.py again"):
        artifact_file(tmp_path, "part_1", "make.py")
    run_stage(tmp_path, ["t.csv"])
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(UserError, match="is empty; run make.py again"):
        artifact_file(tmp_path, "t.csv", "make.py")


def test_a_killed_run_is_refused(tmp_path):
    meta = run_stage(tmp_path, ["t.csv"])
    write_json(tmp_path / "run_meta.json", {**meta, "status": "running"})  # what a kill leaves
    with pytest.raises(UserError, match="still running or was killed"):
        artifact_file(tmp_path / "t.csv", "t.csv", "make.py")


# --- which dataset ---


def test_the_same_dataset_is_accepted(tmp_path, split, caplog):
    run_stage(tmp_path / "map", [], datasets=[split.identity()])
    with caplog.at_level(logging.INFO):
        assert check_same_dataset(tmp_path / "map", split.ids, split) == set()
        assert caplog.text == ""
        assert check_same_dataset(tmp_path / "map", [*split.ids[:4], "other"], split) == set()
    assert "covers 4 of 10 examples" in caplog.text and "(40.0%)" in caplog.text
    with caplog.at_level(logging.INFO):  # without run_meta.json
        assert check_same_dataset(tmp_path / "elsewhere.csv", split.ids[:1], split) == set()
    assert "covers 1 of 10 examples" in caplog.text


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
    run_stage(tmp_path / "old", [], datasets=[other.identity()])  # as written before examples were told apart
    run_stage(tmp_path / "map", [], datasets=[other])
    untold = r"other content \(.*without \.examples-.*copy it too, or make .* again from"
    for name, why in (("old", untold), ("map", "in every example")):
        with pytest.raises(UserError, match=rf"changed\.jsonl \[train\], which has ids of .*stories.*{why}") as no:
            check_same_dataset(tmp_path / name, other.ids, split)
        assert split.fingerprint in str(no.value) and other.fingerprint in str(no.value)


def changed_split(tmp_path, change, name="changed.jsonl"):
    rows = qa_rows(10)
    change(rows)
    return load_split(str(write_rows(tmp_path / name, rows)), "train", TASK)


def test_one_label_changed_leaves_the_others_as_they_are(tmp_path, split, caplog):
    """What is unchanged joins, what changed is named, counted, and left out or taken."""
    run_stage(tmp_path / "map", ["t.csv"], datasets=[split])
    run_stage(tmp_path / "next", ["t.csv"], datasets=[recorded_dataset(tmp_path / "map")])
    hand_on_digests(tmp_path / "next", tmp_path / "map" / "t.csv")

    def change(rows):
        rows[3]["answers"] = {"text": [], "answer_start": []}
        rows[7]["question"] += "?"

    now = changed_split(tmp_path, change)
    expected = {now.ids[3], now.ids[7]}
    for path in (tmp_path / "map", tmp_path / "map" / "t.csv", tmp_path / "next"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert check_same_dataset(path, split.ids, now) == expected
        assert "2 of 10 examples" in caplog.text and repr(now.ids[3]) in caplog.text and "left out" in caplog.text
        assert "covers 8 of 10" in caplog.text
        assert check_same_dataset(path, split.ids[:5], now) == {now.ids[3]}
    now.allow_changed = True
    assert check_same_dataset(tmp_path / "map", split.ids, now) == set()
    assert "their old rows are taken" in caplog.text
    with caplog.at_level(logging.INFO):
        caplog.clear()
        assert check_same_dataset(tmp_path / "map", split.ids[:5], now) == set()
        assert "covers 5 of 10" in caplog.text  # the changed one with them, as its row is taken
    with pytest.raises(UserError, match="other content in every example"):
        check_same_dataset(tmp_path / "map", expected, now)


def test_other_rows_and_another_format_change_no_example(tmp_path, split):
    """Rows that went, came or moved, a column that is no content, another file format."""
    run_stage(tmp_path / "map", [], datasets=[load_split(split.name, "train", TASK, max_samples=6)])

    def change(rows):
        rows[:] = [*reversed(rows[2:]), *qa_rows(3, prefix="new")]
        for row in rows:
            row["note"] = "x"

    now = changed_split(tmp_path, change)
    assert now.fingerprint != split.fingerprint
    assert check_same_dataset(tmp_path / "map", split.ids, now) == set()
    assert check_same_dataset(tmp_path / "map", split.ids, load_split(now.name, "train", TASK, max_samples=2)) == set()


def test_damaged_digests_are_a_line(tmp_path, split):
    run_stage(tmp_path / "map", [], datasets=[split])
    (file,) = (tmp_path / "map").glob(".examples-*")
    file.write_bytes(file.read_bytes()[:-9])
    now = changed_split(tmp_path, lambda rows: rows.pop())
    with pytest.raises(UserError, match="is damaged .*make .*map again"):
        check_same_dataset(tmp_path / "map", split.ids, now)


def test_a_capped_split_is_the_same_dataset(tmp_path, split):
    capped = load_split(split.name, "train", TASK, max_samples=3)
    run_stage(tmp_path / "map", [], datasets=[capped.identity()])
    assert check_same_dataset(tmp_path / "map", capped.ids, split) == set()
    assert check_same_dataset(tmp_path / "map", split.ids, capped) == set()


def test_the_first_rows_are_found_again(tmp_path, split, caplog):
    """A model of the first 3 of 10: the next stages take these, unless asked for others."""
    capped = load_split(split.name, "train", TASK, max_samples=3)
    assert capped.identity() == {**split.identity(), "max_samples": 3}
    run_stage(tmp_path / "map", [], datasets=[capped])

    def found(dataset, name, max_samples=None):
        again = recorded_split(tmp_path / "map", dataset, name, TASK, max_samples)
        assert again is not None
        return again.ids

    with caplog.at_level(logging.INFO):
        assert found(None, None) == split.ids[:3]
    assert "the first 3 examples of" in caplog.text
    assert found(split.name, None) == found(None, "train") == split.ids[:3]
    assert found(None, None, max_samples=5) == split.ids[:5]
    assert found(None, None, max_samples=99) == split.ids
    other = str(write_rows(tmp_path / "other.jsonl", qa_rows(8)))
    assert len(found(other, None)) == 8


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


def test_what_a_program_writes_itself_does_not_count_as_a_change(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], cwd=tmp_path, check=True)

    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/a.json", "page.md"):
        (tmp_path / name).write_text("before")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "all")
    monkeypatch.setattr(artifacts, "CHECKOUT", tmp_path)
    for name in ("results/a.json", "page.md"):
        (tmp_path / name).write_text("after")
    written = ("results", "page.md", "no_such.md")
    assert artifacts.provenance()["git_dirty"] and not artifacts.provenance(apart_from=written)["git_dirty"]
    assert artifacts.provenance(apart_from=written)["git_commit"] == artifacts.provenance()["git_commit"] is not None
    (tmp_path / "code.py").write_text("after")
    assert artifacts.provenance(apart_from=written)["git_dirty"]


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


@pytest.mark.parametrize("earlier", ["nothing", "finished"])
def test_a_stage_that_was_to_go_on_and_did_nothing_leaves_all_as_it_was(tmp_path, earlier):
    """A flag that turns out wrong when all is read must not spoil what is there, or leave a failed run of nothing."""
    out = tmp_path / "out"
    if earlier == "finished":
        run_stage(out, ["t.csv"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError), stage(out, {}, owns=("*.csv",), resume=True):
        raise UserError("no key")
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: json.loads(raw) if path.suffix == ".json" else raw for path, raw in after.items()} == {
        path: json.loads(raw) if path.suffix == ".json" else raw for path, raw in before.items()}
    assert out.exists() == (earlier == "finished")
    for error, write in ((UserError("no"), True), (ValueError("a bug"), False)):  # something was done; no mistake
        with pytest.raises(type(error)), stage(out, {}, owns=("*.csv",), resume=True) as path:
            if write:
                (path / "t.csv").write_text(TABLE + "more\n")
            raise error
        assert meta_of(out)["status"] == "failed"


def test_what_a_killed_process_left_half_written_goes_also_where_a_stage_goes_on(tmp_path):
    run_stage(tmp_path, ["t.csv", ".t.tmp-99.csv"])
    run_stage(tmp_path, ["u.csv"], resume=True)
    assert names(tmp_path) == ["run_meta.json", "t.csv", "u.csv"]
