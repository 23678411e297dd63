"""benchmarks/mutants.py: where a change may be made, which tests judge it, and that a failing test is seen."""

from __future__ import annotations

import importlib
import sys

import pytest

from datamap.core.places import CHECKOUT


@pytest.fixture
def mutants(monkeypatch):
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    return importlib.import_module("mutants")


def test_annotations_and_layout_are_not_drawn(mutants):
    source = ("def f(x: int | None = 3) -> 'a':\n    draw(x + 1, linewidth=2)\n    new_figure(4, 5)\n"
              "    return {'lw': 6, 'n': 7}\n")
    spans = mutants.not_drawn(source)

    def hidden(text: str) -> bool:
        line = next(number for number, each in enumerate(source.splitlines(), 1) if text in each)
        place = line, source.splitlines()[line - 1].index(text)
        return any(start <= place < end for start, end in spans)

    assert [hidden(text) for text in ("| None", "2)", "4, 5", "6,")] == [True] * 4
    assert [hidden(text) for text in ("3)", "+ 1", "7}")] == [False] * 3


def test_every_numeric_module_has_tests(mutants):
    for module in mutants.NUMERIC:
        assert mutants.source_of(module).exists(), module
        groups = mutants.tests_of(module)
        files = [file for group in groups for file in group]
        assert files and len(set(files)) == len(files), module
        assert all(file.split("/")[1] == module.split("/")[0] for file in groups[-1] if len(groups) > 1)


def test_a_failing_test_is_named(mutants, tmp_path):
    (tmp_path / "test_it.py").write_text("def test_one():\n    assert True\n\n\ndef test_two():\n    assert False\n")
    assert mutants.failing(tmp_path, ["test_it.py"]).startswith("test_it.py::test_two")
    assert mutants.failing(tmp_path, ["test_it.py", "-k", "one"]) == ""


def test_without_the_tool_one_line_says_what_to_install(mutants, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cosmic_ray", None)
    with pytest.raises(SystemExit, match="2"):
        mutants.main(["--number", "1"])
    assert "pip install cosmic-ray" in capsys.readouterr().err
