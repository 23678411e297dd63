"""One line for a mistake, and for what the system refuses; exit statuses."""

import errno
import logging
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from datamap.core.errors import UserError, command_line, first_line, name_a_few, printable
from datamap.core.flags import Parser

# A script that does what ``DOES`` says, then prints, and says what stands in the file that it wrote.
SCRIPT = """
import logging, sys
from datamap.core.errors import UserError, command_line
@command_line
def main(argv=None):
    logging.getLogger("x").warning("a status line")
    with open(sys.argv[1], "w") as file:
        file.write("content")
        DOES
    print("the deliverable")
main()
"""


def test_user_errors_and_interrupts_end_a_script(capsys):
    def raising(error):
        @command_line
        def main(argv=None):
            raise error

        with pytest.raises(SystemExit) as stopped:
            main([])
        return stopped.value.code, capsys.readouterr().err

    assert raising(UserError("found a, expected b")) == (2, "test_errors.py: error: found a, expected b\n")
    assert raising(KeyboardInterrupt()) == (130, "test_errors.py: interrupted\n")
    assert raising(UserError("label '\x1b[2J\nother'")) == (2, "test_errors.py: error: label '\\x1b[2J\\nother'\n")
    with pytest.raises(ZeroDivisionError):  # bugs raise
        raising(ZeroDivisionError())


def test_name_a_few():
    assert name_a_few(["a", "b"]) == "'a', 'b'"
    assert name_a_few(iter("abcd")) == "'a', 'b', 'c', ..."


HOSTILE = "\x1b]0;title\x07 \x9b31m \b\r \u202e \ud800 caf\u00e9\t\u597d\n"
SHOWN = "\\x1b]0;title\\x07 \\x9b31m \\x08\\r \\u202e \\ud800 caf\u00e9\t\u597d\n"


def test_what_a_terminal_would_obey_is_shown():
    assert printable(HOSTILE) == SHOWN


def test_nothing_that_a_script_says_controls_the_terminal(capsys):
    @command_line
    def main(argv=None):
        print(HOSTILE, end="")
        # Without half a surrogate: pytest-xdist cannot hand on records with one.
        logging.getLogger("datamap.x").warning("label %s", HOSTILE.replace("\ud800", "?"))
        Parser("x").parse_args(argv)

    main([])
    said = capsys.readouterr()
    assert said.out == SHOWN and "label " + SHOWN.replace("\\ud800", "?") in said.err
    with pytest.raises(SystemExit):
        main(["--no\x1b[2J"])
    said = capsys.readouterr()
    assert "\x1b" not in said.err and r"unknown argument --no\x1b[2J" in said.err


def test_an_exception_that_says_nothing_has_a_first_line():
    assert [first_line(error) for error in (ValueError(), OSError("\n"), KeyError("a."), ValueError("a.\nb"))] == [
        "ValueError", "OSError", "'a.'", "a"]


def test_an_error_that_repeats_a_long_value_is_a_line_that_can_be_read(capsys):
    @command_line
    def main(argv=None):
        raise UserError(f"found {'a' * 100_000}: expected b; give c")

    with pytest.raises(SystemExit):
        main([])
    said = capsys.readouterr().err
    assert said.startswith("test_errors.py: error: found aaa") and said.endswith("aaa: expected b; give c\n")
    assert " ... " in said and len(said) < 2_000


def test_ctrl_c_at_any_moment_is_one_line(capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("datamap.core.errors.setup_logging", interrupted)
    with pytest.raises(SystemExit) as stopped:
        command_line(test_ctrl_c_at_any_moment_is_one_line)([])
    assert stopped.value.code == 130 and capsys.readouterr().err == "test_errors.py: interrupted\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "full", "a/b.csv"), "No space left on device: a/b.csv; make room"),
        (OSError(errno.ENOSPC, "full"), "standard output cannot be written (No space left on device); the files that"),
        (PermissionError(errno.EACCES, "no", "a"), "Permission denied: a; make room or mend that, then run the same"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "as on a full disk"),
        (Exception("No space left on device (os error 28)"), "as on a full disk: No space left"),  # of tokenizers
        (RuntimeError("basic_ios::clear: iostream error"), "as on a full disk: basic_ios::clear"),  # of torch.save
        (OSError("100000 requested and 2484 written"), "as on a full disk: 100000 requested and 2484 written"),
    ],
)
def test_what_the_system_refuses_is_one_line(capsys, error, words):
    @command_line
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as stopped:
        main([])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("test_errors.py: error: ") and words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ConnectionRefusedError(111, "refused"), OSError("no errno")])
def test_other_failures_are_no_refusal_of_the_system(error):
    @command_line
    def main(argv=None):
        raise error

    with pytest.raises(type(error)):
        main([])


def run_script(tmp_path, redirections, does="pass"):
    """Exit status, stdout and stderr of SCRIPT, and the file that it wrote."""
    (tmp_path / "script.py").write_text(SCRIPT.replace("DOES", does))
    command = f'exec "{sys.executable}" script.py written.txt {redirections}'
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    return done.returncode, done.stdout, done.stderr, (tmp_path / "written.txt").read_text()


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_stop_nothing_and_write_into_no_file(tmp_path, closed):
    status, printed, said, written = run_script(tmp_path, closed)
    assert (status, written) == (0, "content")
    assert printed == ("" if ">&-" in closed.replace("2>&-", "") else "the deliverable\n")
    assert said == ("" if "2>&-" in closed else "warning: a status line\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_streams_that_are_full(tmp_path):
    status, _, said, written = run_script(tmp_path, ">/dev/full")
    assert (status, written, said.count("\n")) == (2, "content", 2)
    assert "standard output cannot be written (No space left on device); the files that were written are whole" in said
    for full in ("2>/dev/full", ">/dev/full 2>/dev/full"):
        status = run_script(tmp_path, full, 'raise UserError("found a")')[0]
        assert status == 2
