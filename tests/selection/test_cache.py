"""cache.py: nothing is computed twice, and an interruption at any moment changes no byte."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from datamap.core import progress
from datamap.selection import cache
from datamap.selection.cache import cached

KEY = {"fingerprint": "0123456789abcdef", "model": "some/model", "max_length": 128}
N = 23
ORDER = np.random.default_rng(3).permutation(N)


class Interrupted(Exception):
    pass


def value_of(rows: np.ndarray, width: int) -> np.ndarray:
    return np.sin(rows[:, None] * 1.7 + np.arange(width)).astype(np.float32)


class Feature:
    """prepare() that counts its calls and the rows computed, and may stop in the midst of a shard."""

    def __init__(self, width: int = 3, order: np.ndarray = ORDER, stop_after: int | None = None):
        self.width, self.order, self.stop_after = width, order, stop_after
        self.prepared = 0
        self.shards: list[list[int]] = []

    def __call__(self):
        self.prepared += 1
        return self.order, self.compute

    def compute(self, rows: np.ndarray) -> np.ndarray:
        if self.stop_after == len(self.shards):
            raise Interrupted
        self.shards.append(rows.tolist())
        return value_of(rows, self.width)


def place_of(directory: Path, name: str = "perplexity") -> Path:
    (place,) = directory.glob(f"{name}-*")
    return place


def call(directory: Path, feature: Any, shard_rows: int = 5, key=KEY) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "SHARD_ROWS", shard_rows)
        return cached(directory, "perplexity", key, (N, 3), feature)


def test_values_order_and_files(tmp_path):
    feature = Feature()
    values = call(tmp_path, feature)
    np.testing.assert_array_equal(values, value_of(np.arange(N), 3))
    assert isinstance(values, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1
    assert feature.shards == [ORDER[first : first + 5].tolist() for first in range(0, N, 5)]
    place = place_of(tmp_path)
    assert len(place.name) == len("perplexity-") + 16
    meta = json.loads((place / "meta.json").read_text())
    assert meta["key"] == KEY and meta["status"] == "finished" and meta["shape"] == [N, 3]
    assert meta["rows_done"] == N and 0 <= meta["seconds"] < 60
    assert {file.name for file in place.iterdir()} <= {"values.npy", "meta.json", ".lock"}


def test_off_a_terminal_a_line_says_how_far_it_is(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    caplog.set_level(logging.INFO)
    feature, told = Feature(), r"perplexity: 15 of 23 rows, \d+ s left"

    def compute(rows):
        deadline = time.monotonic() + 20
        while len(feature.shards) == 3 and not any(re.fullmatch(told, line) for line in caplog.messages):
            assert time.monotonic() < deadline, caplog.messages
            time.sleep(0.01)
        return feature.compute(rows)

    call(tmp_path, lambda: (feature.order, compute))
    assert progress.underway() == ""


def test_second_call_prepares_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first = call(tmp_path, Feature())
    assert "read from" not in caplog.text
    again = call(tmp_path, None)  # calling None would raise
    np.testing.assert_array_equal(first, again)
    assert not again.flags.writeable
    assert caplog.text.count("read from") == 1


@pytest.mark.parametrize(("shape", "dtype"), [((N,), np.float64), ((N, 2, 3), np.int16), ((0, 4), np.float32)])
def test_shapes_and_types(tmp_path, monkeypatch, shape, dtype):
    whole = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    prepare: Any
    for prepare in (lambda: (np.arange(shape[0])[::-1], lambda rows: whole[rows]), None):
        monkeypatch.setattr(cache, "SHARD_ROWS", 4)
        values = cached(tmp_path, "metrics", KEY, shape, prepare, dtype)
        assert values.dtype == dtype
        np.testing.assert_array_equal(values, whole)


def test_another_key_is_another_feature(tmp_path):
    call(tmp_path, Feature())
    other = Feature()
    call(tmp_path, other, key={**KEY, "max_length": 64})
    assert other.prepared == 1
    call(tmp_path, None, key=dict(reversed(KEY.items())))  # in whatever order
    assert len(list(tmp_path.iterdir())) == 2


def test_key_of_tuples_is_found_again(tmp_path):
    call(tmp_path, Feature(), key={**KEY, "quantiles": (0.3, 0.7)})
    call(tmp_path, None, key={**KEY, "quantiles": [0.3, 0.7]})


@pytest.mark.parametrize("value", [Path("model"), np.float32(1), float("nan")])
def test_key_must_be_plain(tmp_path, value):
    with pytest.raises((TypeError, ValueError)):
        call(tmp_path, Feature(), key={**KEY, "more": value})


@settings(max_examples=25, deadline=None)
@given(stops=st.lists(st.integers(0, 5), max_size=4), shard_rows=st.integers(1, 30))
def test_resumed_is_the_same_bytes(stops, shard_rows):
    with tempfile.TemporaryDirectory() as scratch:
        whole, broken = Path(scratch) / "whole", Path(scratch) / "broken"
        call(whole, Feature(), shard_rows)
        computed = []
        for stop in stops:
            feature = Feature(stop_after=stop)
            try:
                call(broken, feature, shard_rows)
            except Interrupted:
                assert json.loads((place_of(broken) / "meta.json").read_text())["status"] == "running"
            computed += feature.shards
        last = Feature()
        call(broken, last, shard_rows)
        computed += last.shards
        assert sorted(row for shard in computed for row in shard) == list(range(N))  # none twice, none left out
        assert (place_of(whole) / "values.npy").read_bytes() == (place_of(broken) / "values.npy").read_bytes()


def test_resume_is_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(Interrupted):
        call(tmp_path, Feature(stop_after=2))
    call(tmp_path, Feature())
    assert "resumes at row 10 of 23" in caplog.text


@pytest.mark.parametrize("killed_at", range(1, 8))
def test_killed_before_a_record_is_replaced(tmp_path, monkeypatch, killed_at):
    """The n-th record never gets written: what is on disk is ahead of the record, and is computed again."""
    real, calls = cache.write_json, []

    def write(*args):
        calls.append(args)
        if len(calls) == killed_at:
            raise Interrupted
        real(*args)

    monkeypatch.setattr(cache, "write_json", write)
    with pytest.raises(Interrupted):
        call(tmp_path, Feature())
    feature = Feature()
    np.testing.assert_array_equal(call(tmp_path, feature), value_of(np.arange(N), 3))
    assert len(feature.shards) == min(5, 7 - killed_at)


@pytest.mark.parametrize("change", [{"shard_rows": 4}, {"order": np.arange(N)}])
def test_other_shards_start_over(tmp_path, caplog, change):
    with pytest.raises(Interrupted):
        call(tmp_path, Feature(stop_after=3))
    feature = Feature(order=change.get("order", ORDER))
    values = call(tmp_path, feature, change.get("shard_rows", 5))
    np.testing.assert_array_equal(values, value_of(np.arange(N), 3))
    assert sum(map(len, feature.shards)) == N
    assert "other shards or in another order" in caplog.text


def test_killed_while_starting_over(tmp_path, monkeypatch):
    """The old record must not vouch for the new, empty values."""
    with pytest.raises(Interrupted):
        call(tmp_path, Feature(stop_after=3))

    def stop(*args):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(cache, "write_json", stop)
        with pytest.raises(Interrupted):
            call(tmp_path, Feature(), shard_rows=4)
    np.testing.assert_array_equal(call(tmp_path, Feature()), value_of(np.arange(N), 3))


def test_seconds_add_up_and_leftovers_go(tmp_path):
    with pytest.raises(Interrupted):
        call(tmp_path, Feature(stop_after=3))
    place = place_of(tmp_path)
    meta = json.loads((place / "meta.json").read_text())
    (place / "meta.json").write_text(json.dumps({**meta, "seconds": 1000.0}))
    (place / ".meta.tmp-1.json").write_text("{")  # of a process that was killed while it wrote
    call(tmp_path, Feature())
    assert 1000 <= json.loads((place / "meta.json").read_text())["seconds"] < 1060
    assert {file.name for file in place.iterdir()} <= {"values.npy", "meta.json", ".lock"}


def cut(place: Path) -> None:
    whole = (place / "values.npy").read_bytes()
    (place / "values.npy").write_bytes(whole[:-8])


DAMAGE = {
    "meta cut": lambda place: (place / "meta.json").write_text('{"key": {'),
    "meta empty": lambda place: (place / "meta.json").write_text(""),
    "meta binary": lambda place: (place / "meta.json").write_bytes(b"\xff\xfe\x00"),
    "meta of another kind": lambda place: (place / "meta.json").write_text("[1]"),
    "values cut": cut,
    "values empty": lambda place: (place / "values.npy").write_bytes(b""),
    "values gone": lambda place: (place / "values.npy").unlink(),
    "values of another shape": lambda place: np.save(place / "values.npy", np.zeros((N, 4), np.float32)),
    "values of another type": lambda place: np.save(place / "values.npy", np.zeros((N, 3), np.float64)),
    "values of objects": lambda place: np.save(place / "values.npy", np.array([None] * N)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("finished", [True, False])
def test_damage_is_told_and_mended(tmp_path, caplog, damage, finished):
    if finished:
        call(tmp_path, Feature())
    else:
        with pytest.raises(Interrupted):
            call(tmp_path, Feature(stop_after=3))
    DAMAGE[damage](place_of(tmp_path))
    feature = Feature()
    np.testing.assert_array_equal(call(tmp_path, feature), value_of(np.arange(N), 3))
    assert sum(map(len, feature.shards)) == N
    assert caplog.text.count("is damaged") == 1
    call(tmp_path, None)


def test_foreign_key_in_the_directory(tmp_path, caplog):
    call(tmp_path, Feature())
    meta = place_of(tmp_path) / "meta.json"
    meta.write_text(meta.read_text().replace("some/model", "another"))
    feature = Feature()
    call(tmp_path, feature)
    assert feature.prepared == 1 and "describes another feature" in caplog.text


@pytest.mark.parametrize("order", [np.arange(N - 1), np.zeros(N, int), np.arange(N) + 1])
def test_order_must_be_a_permutation(tmp_path, order):
    with pytest.raises(ValueError, match="permutation"):
        call(tmp_path, Feature(order=order))


def test_shape_of_what_is_computed(tmp_path):
    with pytest.raises(ValueError, match="compute gave"):
        call(tmp_path, Feature(width=1))  # would be broadcast


# --- processes ---------------------------------------------------------------------------------------------------


def in_process(directory: Path, kill_after: int | None, seconds: float) -> None:
    class Slow(Feature):
        def __call__(self):
            (directory / f"prepared-{os.getpid()}").touch()
            return super().__call__()

        def compute(self, rows):
            if kill_after == len(self.shards):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(seconds)
            return super().compute(rows)

    np.testing.assert_array_equal(call(directory / "cache", Slow()), value_of(np.arange(N), 3))


def test_kill_and_resume(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    context = multiprocessing.get_context("fork")
    for directory, kills in ((whole, ()), (broken, (2, 0, 1))):
        directory.mkdir()
        for kill_after in (*kills, None):
            process = context.Process(target=in_process, args=(directory, kill_after, 0.0))
            process.start()
            process.join(60)
            assert process.exitcode == (0 if kill_after is None else -signal.SIGKILL)
    files = [place_of(directory / "cache") / "values.npy" for directory in (whole, broken)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_two_processes_compute_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=in_process, args=(tmp_path, None, 0.05)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("prepared-*"))) == 1


def test_waiting_is_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(Interrupted):
        call(tmp_path, Feature(stop_after=1))
    with FileLock(place_of(tmp_path) / ".lock"):
        waiting = threading.Thread(target=call, args=(tmp_path, Feature()))
        waiting.start()
        for _ in range(300):
            if "another process computes perplexity" in caplog.text:
                break
            time.sleep(0.02)
        said = caplog.text
    waiting.join(60)
    assert "another process computes perplexity" in said and "resumes" not in said
    assert "resumes" in caplog.text
