"""The house stands as it was drawn: who may import whom, read from the source with ast, lazy imports included.

Each floor imports from those under it, a room also from itself, without circles. Scripts (those of demos/ too) never
import each other; above them are only benchmarks/, which measure them and share benchmarks/timing.py and the rows of
benchmarks/rows/. Made-up trees below show that each check can fail.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import REPOSITORY

ROOMS = (
    "mapping", "suites", "selection", "thoughts", "training", "report", "detection", "analysis", "cartography",
    "tasks", "core", "demo",
)
# ``helpers.py`` is no script; ``datamap`` alone is datamap/__init__.py, which offers the public names.
FLOORS = ("benchmarks", "scripts", "helpers", "datamap", *ROOMS)
SCRIPT_FOLDERS = ("demos", "benchmarks")
SHARED = ("benchmarks.timing", "benchmarks.rows")  # what the benchmarks share, and the rows of run_all.py: no scripts
LOADERS = {"spec_from_file_location", "SourceFileLoader", "run_path", "run_module"}
CARRIES_OUT_SCRIPTS = "suites"  # from their files, in processes of its own
MOST_SCRIPTS, MOST_LINES, LONGEST_FUNCTION = 15, 620, 95


class Arrow(NamedTuple):
    """``source`` imports ``target`` in ``line``."""

    source: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def modules(root: Path) -> dict[str, ast.Module]:
    """Every module of the house by its dotted name; a package has the name of its folder."""
    files = [*root.glob("*.py"), *(file for folder in ("datamap", *SCRIPT_FOLDERS)
                                   for file in (root / folder).rglob("*.py"))]
    names = {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    return {name: ast.parse(file.read_text(encoding="utf-8"), file.name) for name, file in sorted(names.items())}


def floor(module: str) -> str:
    first, _, rest = module.partition(".")
    if first == "datamap":
        return rest.partition(".")[0] or "datamap"
    return first if first in ("benchmarks", "helpers") else "scripts"


def arrows(house: dict[str, ast.Module]) -> list[Arrow]:
    """All imports of one module of the house by another, wherever they stand; a string that names a module counts."""

    def found(source: str, name: str) -> str | None:
        """The module of the house that ``name`` or the longest start of it means; scripts see their folder first."""
        for prefix in (f"{source.partition('.')[0]}." if source.startswith(SCRIPT_FOLDERS) else "", ""):
            parts = name.split(".")
            for end in range(len(parts), 0, -1):
                if (module := prefix + ".".join(parts[:end])) in house:
                    return module
        return None

    def named(source: str, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = source.split(".")
            is_package = any(other.startswith(f"{source}.") for other in house)
            above = package[: len(package) - node.level + is_package] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("datamap."):
            yield from [node.value] if node.value in house else []
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            yield from (str(word.value) for word in node.args if isinstance(word, ast.Constant))

    all_arrows = {Arrow(source, target, getattr(node, "lineno", 0)) for source, tree in house.items()
                  for node in ast.walk(tree) for name in named(source, node) if (target := found(source, name))}
    return sorted(all_arrows)


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def pointing_up(house: dict[str, ast.Module]) -> list[str]:
    return [str(arrow) for arrow in arrows(house)
            if FLOORS.index(floor(arrow.source)) > FLOORS.index(floor(arrow.target))]


def between_scripts(house: dict[str, ast.Module]) -> list[str]:
    return [str(arrow) for arrow in arrows(house)
            if floor(arrow.source) == floor(arrow.target) in ("benchmarks", "scripts")
            and ".".join(arrow.target.split(".")[:2]) not in SHARED]


def circle(house: dict[str, ast.Module]) -> list[str]:
    """The modules of one circle, empty without any."""
    graph: dict[str, set[str]] = {}
    for arrow in arrows(house):
        graph.setdefault(arrow.source, set()).add(arrow.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def loading_files(house: dict[str, ast.Module]) -> list[str]:
    """Imports that go by a file's name past the floors."""
    calls = [(module, called(node), node.lineno) for module, tree in house.items()
             for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [f"{module}:{line} calls {name}" for module, name, line in calls
            if name in LOADERS and floor(module) != CARRIES_OUT_SCRIPTS]


def outside_the_rooms(house: dict[str, ast.Module]) -> list[str]:
    return [module for module in house if module.startswith("datamap.") and floor(module) not in ROOMS]


def too_long(house: dict[str, ast.Module], root: Path) -> list[str]:
    found = []
    for module, tree in house.items():
        file = root.joinpath(*module.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        lines = len(file.read_text(encoding="utf-8").splitlines())
        found += [f"{module}: {lines} lines"] if lines > MOST_LINES else []
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                found += [f"{module}.{node.name}: {lines} lines"] if lines > LONGEST_FUNCTION else []
    return found


@pytest.fixture(scope="module")
def house() -> dict[str, ast.Module]:
    return modules(REPOSITORY)


def test_every_module_is_read(house):
    assert {floor(module) for module in house} == set(FLOORS)
    assert {"run", "demos.chain_of_thought", "benchmarks.planted_errors", "datamap.core",
            "datamap.core.files"} <= set(house)
    assert len(arrows(house)) > 200


def test_no_arrow_points_up(house):
    assert not (faults := pointing_up(house)), "\n".join(["", *faults])


def test_there_is_no_circle(house):
    assert circle(house) == []


def test_no_script_imports_a_script(house):
    assert not (faults := between_scripts(house)), "\n".join(["", *faults])


def test_no_script_is_loaded_past_the_floors(house):
    assert not (faults := loading_files(house)), "\n".join(["", *faults])


def test_the_top_level_and_the_rooms(house):
    assert len(list(REPOSITORY.glob("*.py"))) <= MOST_SCRIPTS
    assert not (faults := outside_the_rooms(house)), "\n".join(["", *faults])


def test_no_two_classes_have_one_name(house):
    names = Counter(node.name for module, tree in house.items() if module.startswith("datamap.") for node in tree.body
                    if isinstance(node, ast.ClassDef))
    assert names["Task"] == 1 and [name for name, count in names.items() if count > 1] == []


def test_no_module_and_no_function_is_too_long(house):
    assert not (faults := too_long(house, REPOSITORY)), "\n".join(["", *faults])


# --- the checks can fail ---


def built(root: Path, files: dict[str, str]) -> dict[str, ast.Module]:
    for name, text in {**dict.fromkeys((f"datamap/{room}/__init__.py" for room in ROOMS), ""), **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return modules(root)


GOOD = {
    "run.py": "import helpers\nfrom datamap import suites\n", "helpers.py": "from datamap.core.files import read\n",
    "datamap/__init__.py": "def __getattr__(name):\n    return getattr(import_module('datamap.core.files'), name)\n",
    "datamap/core/files.py": "import os\nfrom . import errors\nfrom .errors import UserError\n",
    "datamap/core/errors.py": "import datamap.demo.notes\n", "datamap/demo/notes.py": "TEXT = 'datamap.'\n",
    "datamap/suites/runner.py": "runpy.run_path('run.py')\n", "demos/summary.py": "import summary_of_others\n",
    "benchmarks/bench.py": "import run\nfrom timing import timed\n",
    "benchmarks/timing.py": "import datamap.core.files\n", "benchmarks/all.py": "from rows import table\n",
    "benchmarks/rows/__init__.py": "", "benchmarks/rows/table.py": "from rows import made\nimport run\n",
    "benchmarks/rows/made.py": "from timing import timed\n",
}


def test_a_good_house_has_no_fault(tmp_path):
    house = built(tmp_path, GOOD)
    assert pointing_up(house) == between_scripts(house) == loading_files(house) == outside_the_rooms(house) == []
    assert circle(house) == too_long(house, tmp_path) == []
    assert [arrow.target for arrow in arrows(house) if arrow.source == "datamap.core.files"] == [
        "datamap.core.errors", "datamap.core.errors"
    ]


@pytest.mark.parametrize(
    "file, text, target",
    [
        ("datamap/core/new.py", "from datamap.tasks.base import Task", "datamap.tasks"),
        ("datamap/core/new.py", "def lazy():\n    from datamap import suites\n", "datamap.suites"),
        ("datamap/core/new.py", "if TYPE_CHECKING:\n    import datamap.analysis", "datamap.analysis"),
        ("datamap/core/new.py", "from ..training import models", "datamap.training"),
        ("datamap/core/__init__.py", "from ..suites import runner", "datamap.suites.runner"),
        ("datamap/core/new.py", "importlib.import_module('datamap.suites.runner')", "datamap.suites.runner"),
        ("datamap/core/new.py", "run([sys.executable, '-m', 'datamap.suites.runner'])", "datamap.suites.runner"),
        ("datamap/demo/new.py", "from datamap.core import files", "datamap.core.files"),
        ("datamap/thoughts/new.py", "import datamap.selection", "datamap.selection"),
        ("datamap/suites/new.py", "from datamap import CartographyCallback", "datamap"),
        ("datamap/suites/new.py", "import run", "run"),
        ("datamap/suites/new.py", "import_module('run')", "run"),
        ("datamap/suites/new.py", "from helpers import load_split", "helpers"),
        ("datamap/suites/new.py", "from demos.summary import main", "demos.summary"),
        ("helpers.py", "import run", "run"),
    ],
)
def test_an_arrow_that_points_up_is_found(tmp_path, file, text, target):
    house = built(tmp_path, GOOD | {file: text})
    assert len(pointing_up(house)) == 1 and pointing_up(house)[0].endswith(f"imports {target}")


@pytest.mark.parametrize(
    "files, length",
    [
        ({"datamap/core/errors.py": "import datamap.core.files"}, 2),
        ({"datamap/core/errors.py": "def lazy():\n    from datamap.core import new",
          "datamap/core/new.py": "if TYPE_CHECKING:\n    from .files import read"}, 3),
        ({"datamap/core/new.py": "import datamap.core.new"}, 1),
    ],
)
def test_a_circle_is_found(tmp_path, files, length):
    assert len(circle(built(tmp_path, GOOD | files))) == length + 1


@pytest.mark.parametrize(
    "file, text", [("select.py", "import run"), ("demos/more.py", "def main():\n    from summary import tell\n"),
                   ("benchmarks/more.py", "import bench"), ("benchmarks/timing.py", "import bench"),
                   ("benchmarks/rows/table.py", "import bench"),
                   ("run.py", "import_module('demos.summary')")]
)
def test_a_script_that_imports_a_script_is_found(tmp_path, file, text):
    assert len(between_scripts(built(tmp_path, GOOD | {file: text}))) == 1


@pytest.mark.parametrize(
    "file, text", [("datamap/training/new.py", "runpy.run_module('run')"), ("select.py", "runpy.run_path('run.py')"),
                   ("datamap/core/new.py", "importlib.util.spec_from_file_location('run', 'run.py')")]
)
def test_a_script_that_is_loaded_from_its_file_is_found(tmp_path, file, text):
    assert len(loading_files(built(tmp_path, GOOD | {file: text}))) == 1


def test_what_lies_outside_the_rooms_or_is_too_long_is_found(tmp_path):
    function = "def long():\n" + "    pass\n" * LONGEST_FUNCTION
    house = built(tmp_path, GOOD | {"datamap/loose.py": "", "datamap/attic/old.py": "pass\n" * (MOST_LINES + 1),
                                    "datamap/core/files.py": function})
    assert outside_the_rooms(house) == ["datamap.attic.old", "datamap.loose"]
    assert too_long(house, tmp_path) == ["datamap.attic.old: 621 lines", "datamap.core.files.long: 96 lines"]
