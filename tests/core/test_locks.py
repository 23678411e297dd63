"""Locks: one process at a time, told who is at it and since when; a killed one blocks nobody."""

import errno
import fcntl
import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, held_elsewhere

from datamap.core.artifacts import check_writable, load_meta, sole_writer, stage
from datamap.core.locks import Locked, is_locked, lock


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_second_process_is_told_who_is_at_it_since_when(tmp_path):
    with held_elsewhere(tmp_path / ".lock") as other:
        assert is_locked(tmp_path / ".lock")
        with pytest.raises(Locked) as no:
            with lock(tmp_path / ".lock"):
                pytest.fail("the other process has it")
        said = str(no.value)
        assert said.startswith(f"{tmp_path}: another process is writing since 20")
        assert re.search(r"since 20\d\d-\d\d-\d\dT[\d:+]+ \(-c ", said)
        assert f"process {other.pid} on {os.uname().nodename}" in said and "name another" in said
        assert "\n" not in said
    assert not is_locked(tmp_path / ".lock") and files(tmp_path) == []
    with lock(tmp_path / ".lock"):
        pass


def test_a_killed_process_blocks_nobody(tmp_path):
    with held_elsewhere(tmp_path / ".lock") as other:
        other.kill()
        other.wait()
        assert files(tmp_path) == [".lock"] and not is_locked(tmp_path / ".lock")
        with lock(tmp_path / ".lock"):
            assert is_locked(tmp_path / ".lock")
    assert files(tmp_path) == []


def test_a_child_that_was_given_the_lock_holds_it_when_its_parent_is_killed(tmp_path):
    code = ("import subprocess, sys; from datamap.core.locks import lock\n"
            "with lock(sys.argv[1]) as descriptors:\n"
            "    subprocess.run(['sh', '-c', 'echo begun; cat'], pass_fds=descriptors)")
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / ".lock"], stdin=subprocess.PIPE, text=True,
                          stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}) as parent:
        assert parent.stdin is not None and parent.stdout is not None and parent.stdout.readline() == "begun\n"
        parent.kill()
        parent.wait()
        assert is_locked(tmp_path / ".lock")
        parent.stdin.close()
        assert parent.stdout.read() == "", "the child has ended"
    with lock(tmp_path / ".lock", wait=True):
        pass


def test_one_process_may_hold_it_several_times(tmp_path):
    with lock(tmp_path / "a" / ".lock") as one:
        with lock(tmp_path / "b" / ".." / "a" / ".lock") as two:
            assert one == two
        assert is_locked(tmp_path / "a" / ".lock")
        told = subprocess.run([sys.executable, "-c", "import sys; from datamap.core.locks import is_locked\n"
                               "print(is_locked(sys.argv[1]))", tmp_path / "a" / ".lock"], capture_output=True,
                              text=True, check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
        assert told.stdout == "True\n"
    assert files(tmp_path) == [], "what was made for the lock alone goes with it"


def test_who_waits_gets_it_when_it_is_free(tmp_path):
    with held_elsewhere(tmp_path / ".lock") as other:
        assert other.stdin is not None
        threading.Timer(0.3, other.stdin.close).start()
        began = time.monotonic()
        with lock(tmp_path / ".lock", wait=True):
            assert time.monotonic() - began > 0.25 and is_locked(tmp_path / ".lock")


def test_a_lock_file_that_was_removed_is_nobodys(tmp_path):
    """Two that wait: the first to get it removes the file when it is through; the second must not hold a dead one."""
    with held_elsewhere(tmp_path / ".lock"):
        (tmp_path / ".lock").unlink()  # by hand
        with lock(tmp_path / ".lock"):
            assert is_locked(tmp_path / ".lock")


def test_a_file_system_without_locks_is_named_and_no_reason_to_stop(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with caplog.at_level(logging.WARNING), stage(tmp_path / "a", {}, owns=()):
        pass
    assert caplog.text.count("without locks (No locks available)") == 1 and str(tmp_path / "a") in caplog.text
    assert not is_locked(tmp_path / "a" / ".lock")


def test_a_stage_holds_its_directory_and_nothing_is_removed_before(tmp_path):
    (tmp_path / "old.csv").write_text("x")
    (tmp_path / "run_meta.json").write_text('{"status": "running", "arguments": {}}')
    with held_elsewhere(tmp_path / ".lock"):
        for refused in (stage(tmp_path, {}, owns=("*.csv",)), sole_writer(tmp_path / "free", tmp_path)):
            with pytest.raises(Locked):
                with refused:
                    pytest.fail("the other process has it")
        with pytest.raises(Locked):
            check_writable(tmp_path)
    assert files(tmp_path) == ["old.csv", "run_meta.json"]
    meta = load_meta(tmp_path)
    assert meta == {"status": "running", "arguments": {}}
    with stage(tmp_path, {}, owns=("*.csv",)):
        assert is_locked(tmp_path / ".lock")
    assert files(tmp_path) == ["run_meta.json"]


def test_other_processes_of_a_distributed_run_leave_the_lock_to_the_main_one(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with held_elsewhere(tmp_path / ".lock"), sole_writer(tmp_path), stage(tmp_path, {}, owns=()):
        pass
