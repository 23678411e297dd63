"""One line for a mistake, and exit statuses."""


import logging

import pytest

from datamap.core.errors import UserError, command_line, name_a_few, printable
from datamap.core.flags import Parser


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
        logging.getLogger("datamap.x").warning("label %s", HOSTILE)
        Parser("x").parse_args(argv)

    main([])
    said = capsys.readouterr()
    assert said.out == SHOWN and f"label {SHOWN}" in said.err
    with pytest.raises(SystemExit):
        main(["--no\x1b[2J"])
    said = capsys.readouterr()
    assert "\x1b" not in said.err and r"unknown argument --no\x1b[2J" in said.err
