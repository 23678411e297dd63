"""One line for a mistake, and exit statuses."""


import pytest

from datamap.core.errors import UserError, command_line, name_a_few


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
    with pytest.raises(ZeroDivisionError):  # bugs raise
        raising(ZeroDivisionError())


def test_name_a_few():
    assert name_a_few(["a", "b"]) == "'a', 'b'"
    assert name_a_few(iter("abcd")) == "'a', 'b', 'c', ..."
