"""Work that a second core does meanwhile."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import REPOSITORY

from datamap.core import beside
from datamap.core.errors import UserError


@pytest.fixture(params=[True, False], ids=["two cores", "one core"])
def cores(request, monkeypatch):
    monkeypatch.setattr(beside, "second_core", lambda: request.param)
    return 2 if request.param else 1


def test_results_come_back_in_whatever_order_they_are_asked_for(cores):
    numbers = np.arange(100_000)
    first, second, third = beside.begin([numbers.sum, lambda: numbers * 2, os.getpid])
    assert (third() != os.getpid()) == (cores == 2)
    np.testing.assert_array_equal(second(), numbers * 2)
    assert first() == numbers.sum() == first()


def test_what_a_work_raises_is_raised_where_its_result_is_asked_for(cores):
    def refuse():
        raise UserError("no such thing")

    bad, good = beside.begin([refuse, lambda: "well"])
    assert good() == "well"
    with pytest.raises(UserError, match="no such thing"):
        bad()


def test_a_result_that_cannot_be_sent_is_told(monkeypatch):
    monkeypatch.setattr(beside, "second_core", lambda: True)
    bad, good = beside.begin([lambda: lambda: None, lambda: "well"])
    with pytest.raises((AttributeError, TypeError), match="(?i)pickle|local"):
        bad()
    assert good() == "well"


class Odd(Exception):
    def __init__(self, one, two):  # what cannot be unpickled
        super().__init__(f"{one} {two}")


def test_what_cannot_be_read_moves_no_other_result(monkeypatch):
    monkeypatch.setattr(beside, "second_core", lambda: True)

    def odd():
        raise Odd(1, 2)

    first, second, third = beside.begin([odd, lambda: "second", lambda: "third"])
    with pytest.raises(TypeError):
        first()
    assert (second(), third()) == ("second", "third")


def test_it_ends_with_its_parent(tmp_path):
    """Also when what it has to send is more than a pipe holds."""
    program = """
import os, signal, sys, time
from datamap.core import beside
beside.second_core = lambda: True
beside.begin([lambda: bytes(10**7), lambda: open(sys.argv[1], "w").close()])
import multiprocessing
print(multiprocessing.active_children()[0].pid, flush=True)
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "reached"], cwd=REPOSITORY, capture_output=True,
                          text=True, timeout=60)  # the pipes of its output end with the last process that has them
    child = int(done.stdout)
    for _ in range(100):
        if not os.path.exists(f"/proc/{child}"):
            break
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{child}") and not (tmp_path / "reached").exists()


def test_a_process_that_is_killed_is_told(monkeypatch):
    monkeypatch.setattr(beside, "second_core", lambda: True)
    first, second = beside.begin([lambda: 1, lambda: os.kill(os.getpid(), signal.SIGKILL)])
    assert first() == 1
    with pytest.raises(RuntimeError, match="exit status -9; out of memory"):
        second()
