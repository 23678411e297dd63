"""How far something long is: lines off a terminal, a bar on one, neither where somebody watches."""

import io
import logging
import sys
import threading
import time

import pytest

from datamap.core import progress
from datamap.core.errors import command_line
from datamap.core.progress import Progress, duration


@pytest.fixture
def often(monkeypatch, caplog):
    """Lines as they come, twenty times a second."""
    monkeypatch.setattr(progress, "EVERY", 0.05)
    caplog.set_level(logging.INFO)
    return caplog


def wait_for(caplog, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.01)


def test_off_a_terminal_a_line_comes_by_itself(often):
    with Progress("folds", 3, "folds") as folds:
        folds.advance()
        with Progress("training", 10, "steps", done=2, size=16, note=lambda: "loss 0.5") as training:
            wait_for(often, "folds 2 of 3, training: 2 of 10 steps, loss 0.5\n")  # also where nothing moves
            training.began -= 100
            training.advance(2)
            wait_for(often, "folds 2 of 3, training: 4 of 10 steps, loss 0.5, 0.3 examples/s, 5 min ")
        wait_for(often, "folds: 1 of 3 folds, ")
    assert progress.underway() == "" and "progress" not in {thread.name for thread in threading.enumerate()}


def test_on_a_terminal_there_is_a_bar(often, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Progress("embedding", 4, note=lambda: "loss 1") as bar:
        bar.advance(3)
        time.sleep(0.2)
        bar.advance()
    assert "embedding: 100%" in terminal.getvalue() and "loss 1" in terminal.getvalue() and not often.records
    with Progress("embedding", 4, bar=False):
        wait_for(often, "embedding: 0 of 4 examples")
    often.clear()
    shown = terminal.getvalue()
    with Progress("tokenising", 4, bar=None):  # the library's own is there
        time.sleep(0.2)
    assert terminal.getvalue() == shown and not often.records


def test_who_watches_shows_it(often):
    with progress.watching(), Progress("outside", 2) as outside, Progress("inside", 4) as inside:
        inside.advance(3)
        time.sleep(0.2)
        assert progress.fraction() == pytest.approx(0.75 / 2) and progress.outermost() is outside
    assert not often.records and progress.fraction() == 0


def test_what_an_exception_leaves_open_ends_with_the_script(often):
    @command_line
    def main(argv=None):
        Progress("training", 5).__enter__()
        Progress("evaluating", 5).__enter__()
        raise ValueError

    with Progress("folds", 2) as folds:
        with pytest.raises(ValueError):
            main([])
        assert progress.outermost() is folds and progress.underway().startswith("folds: 0 of 2")
    assert progress.outermost() is None


@pytest.mark.parametrize("seconds, text", [(0.4, "0 s"), (59.6, "1 min 0 s"), (80, "1 min 20 s"), (7500, "2 h 5 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text
