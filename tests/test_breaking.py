"""The breaking run (tests/breaking/) sees what breaks: words, files and results that are not as they must be."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).with_name("breaking")))

import damage
import odd_data
import place
from base_artifacts import STAGES
from place import Broke, Outcome, Place, check_words

FINE = "run.py: error: a is b; give c\n"
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\nKeyError: 3\n'


@pytest.mark.parametrize(
    ("status", "out", "err", "words"),
    [
        (0, "wrote it\n", "a notice\n", None), (2, "", "a notice\n" + FINE, None),
        (2, "", FINE + FINE, "2 lines of error"), (2, "", "no\n", "0 lines of error"), (2, "", FINE + "x\n", "1 lin"),
        (1, "", "no\n", "exit status 1: no"),
        (-9, "", "", "exit status -9"), (None, "", "", "did not end"),
        (0, "", TRACEBACK, "traceback: KeyError: 3"), (2, "", TRACEBACK + FINE, "traceback"),
        (0, "", FINE, "exit status 0 with an error"), (0, "\x1b]0;title\x07", "", "control characters"),
        (2, "", f"run.py: error: {'a' * 5000}\n", "a line of 5,"),
    ],
)
def test_a_command_ends_well_or_with_one_line(status, out, err, words):
    outcome = Outcome("python run.py --do_eval", status, out, err)
    if words is None:
        check_words(outcome)
    else:
        with pytest.raises(Broke, match=words):
            check_words(outcome)


@pytest.fixture
def made(tmp_path):
    """A base with one artifact, and a place over it in which a command has made another."""
    base = tmp_path / "base"
    for name in ("old", "new"):
        (base / name).mkdir(parents=True)
        (base / name / "a.json").write_text(json.dumps({"place": f"{base}/old", "n": 3, "train_runtime": 1.5}))
        meta = {"status": "finished", "started": "now", "outputs": {"a.json": (base / name / "a.json").stat().st_size}}
        (base / name / "run_meta.json").write_text(json.dumps(meta))
    here = Place(base, tmp_path / "try", np.random.default_rng(0), "")
    written = here.own("new")
    text = json.dumps({"train_runtime": 2.5, "n": 3, "place": f"{here.directory}/old"})
    (written / "a.json").write_text(text)
    meta |= {"started": "later", "outputs": {"a.json": len(text)}}
    (written / "run_meta.json").write_text(json.dumps(meta))
    return here, written


def change_meta(written, **values):
    meta = json.loads((written / "run_meta.json").read_text()) | values
    (written / "run_meta.json").write_text(json.dumps(meta))


def test_what_a_run_leaves_is_whole_and_what_an_undisturbed_run_makes(made):
    here, written = made
    here.check_files()
    here.check_same(["new"])
    (written / "a.json").write_text((written / "a.json").read_text().replace("3", "4"))
    with pytest.raises(Broke, match="new is not what an undisturbed run makes: a.json"):
        here.check_same(["new"])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: (path / ".a.tmp-77.json").write_text(""), "left a temporary file: new/.a.tmp-77.json"),
        (lambda path: (path / ".lock").write_text(""), "left a lock: new/.lock"),
        (lambda path: (path / "log.txt").write_text(TRACEBACK), "a traceback in new/log.txt: KeyError: 3"),
        (lambda path: change_meta(path, status="running"), "new is recorded as running"),
        (lambda path: change_meta(path, outputs={"b.csv": 3}), "b.csv is recorded as written and is not there"),
        (lambda path: change_meta(path, outputs={"a.json": 3}), "a.json has .* bytes, 3 are recorded"),
        (lambda path: (path / "a.json").write_text((path / "a.json").read_text().replace("3", "{")), "cannot be read"),
    ],
)
def test_what_is_left_over_or_half_written_breaks(made, spoil, words):
    here, written = made
    spoil(written)
    with pytest.raises(Broke, match=words):
        here.check_files()


def test_every_script_is_tried():
    from conftest import REPOSITORY

    scripts = {path.name for path in REPOSITORY.glob("*.py")} - {"helpers.py"}
    assert {stage.script for stage in STAGES.values()} == scripts
    assert all(name in stage.argv for stage in STAGES.values() for name in stage.writes)


def test_damage_is_damage_and_odd_data_can_be_written(tmp_path):
    """Each kind of damage changes the file that it is given; each format holds rows, odd as they are."""
    rng = np.random.default_rng(0)
    contents = {".json": '{"a": [1, {"b": "x"}]}', ".jsonl": '{"a": 1}\n{"a": 2}\n', ".csv": "id,a\n1,2\n3,4\n",
                ".txt": "é"}
    for suffix, content in contents.items():
        unchanged = 0
        for kind in sorted({*damage.RAW, *damage.BY_SUFFIX[suffix]}, key=lambda each: each.__name__):
            path = tmp_path / f"{kind.__name__}{suffix}"
            path.write_text(content, encoding="utf-8")
            kind(path, rng)
            unchanged += path.is_file() and path.read_bytes() == content.encode()
        assert unchanged <= 1, suffix  # a draw may hit what stands there already
    rows = [{"id": str(n), "question": "Q?", "context": "a b", "answers": {"text": ["b"], "answer_start": [2]}}
            for n in range(4)]
    kinds = set()
    for number in range(60):
        odd, _ = odd_data.changed(rows, np.random.default_rng(number))
        kinds.add(odd_data.write(odd, tmp_path / f"odd{number}", np.random.default_rng(number)).name)
    assert len(kinds) >= 8 and rows[0]["question"] == "Q?"


def test_the_same_try_is_drawn_again(tmp_path):
    drawn = [damage.change_json({"a": [1, 2], "b": {"c": 3}}, np.random.default_rng([0, 7, 1])) for _ in range(2)]
    assert repr(drawn[0]) == repr(drawn[1])
    assert place.lasting({"b": [["id", "train_runtime"], ["1", "3.5"]]}, "x", "y") == {"b": [["id"], ["1"]]}
