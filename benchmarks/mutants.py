"""How many small changes to the numeric code do the tests catch? A sampled mutation run.

Draws places in NUMERIC at random and turns one operator, sign, truth value or constant in each (the operators of
cosmic-ray), in a copy of the checkout; then runs the fast tests that import the module and, where they pass, the rest
of those of its room. Writes mutants.csv (one row a change, with its diff and the test that caught it) to --output_dir;
what judged.jsonl there holds already is not run again. Not drawn: annotations, and what only shapes a picture
(LAYOUT).

    pip install cosmic-ray && python benchmarks/mutants.py --number 200 --workers 2 --output_dir ./mutants_output
    python benchmarks/mutants.py --number 2 --modules core/intervals --output_dir ./mutants_output
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from timing import bench_parser, report

from datamap.core.errors import UserError, command_line
from datamap.core.files import read_jsonl, write_csv
from datamap.core.flags import positive_int, seed_number
from datamap.core.intervals import wilson_interval
from datamap.core.places import CHECKOUT

NUMERIC = (
    "core/intervals", "tasks/evaluation", "tasks/qa_features", "tasks/qa_metrics", "tasks/slices", "tasks/spans",
    "cartography/categories", "cartography/learning", "cartography/metrics", "cartography/dynamics",
    "cartography/maps", "cartography/recorder", "training/batches", "training/trainer", "training/embeddings",
    "analysis/clusters", "analysis/error_rules", "analysis/filters", "analysis/integrated", "analysis/map_summary",
    "analysis/unified_table", "selection/base", "selection/diversity", "detection/label_quality",
    "selection/model_scores", "selection/selectors", "selection/text_metrics", "thoughts/metrics",
    "thoughts/statistics", "suites/comparison", "suites/results", "suites/plots",
)
OPERATORS = re.compile(r"core/(Replace(Binary|Comparison|Unary)Operator_.*|AddNot|Replace(True|False|And|Or)With.*|"
                       "NumberReplacer)")
# Keyword arguments, and functions whose numbers, only say how a picture looks.
LAYOUT = re.compile(r"alpha|borderaxespad|capsize|dpi|edgecolor|elinewidth|figsize|fontsize|frameon|ha|height|"
                    r"labelpad|linewidth|lw|markersize|markerscale|ms|ncols?|pad|rotation|s|size|va|width|x?y?margin|zorder|"
                    r"bbox_to_anchor|stacklevel|maxsize|new_figure|tick_params|tight_layout|subplots_adjust|margins")
TIMEOUT = 600  # seconds of one run of tests; a change that makes them hang is caught

Place = tuple[int, int]  # line, column


CHANGE = ("module", "line", "operator", "diff")  # what tells one from another


class Change(NamedTuple):
    module: str
    line: int
    operator: str
    source: str
    diff: str


def not_drawn(source: str) -> list[tuple[Place, Place]]:
    """Where annotations and layout stand."""

    def span(node: Any) -> tuple[Place, Place]:
        return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)

    spans: list[tuple[Place, Place]] = []
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            if (annotation := getattr(node, name, None)) is not None:
                spans.append(span(annotation))
        if isinstance(node, ast.Call):
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if LAYOUT.fullmatch(function):
                spans.append(span(node))
            spans += [span(each.value) for each in node.keywords if each.arg and LAYOUT.fullmatch(each.arg)]
        if isinstance(node, ast.Dict):
            spans += [span(value) for key, value in zip(node.keys, node.values, strict=True)
                      if isinstance(key, ast.Constant) and LAYOUT.fullmatch(str(key.value))]
    return spans


def places_of(module: str) -> dict[Place, list[tuple[str, int]]]:
    """Where a module can be changed -> the operators that change it there, each with its number of the occurrence."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    source = source_of(module).read_text()
    hidden, nodes = not_drawn(source), list(ast_nodes(get_ast(source)))
    at: dict[Place, list[tuple[str, int]]] = defaultdict(list)
    for name in filter(OPERATORS.fullmatch, plugins.operator_names()):
        operator = plugins.get_operator(name)()
        positions = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, place in enumerate(positions):
            if not any(start <= place < end for start, end in hidden):
                at[place].append((name, occurrence))
    return at


def draw(module: str, number: int, rng: np.random.Generator) -> Iterator[Change]:
    """``number`` changes of a module, each at another place."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    source, at = source_of(module).read_text(), places_of(module)
    for line, column in rng.permutation(sorted(at))[:number].tolist():
        operators = at[line, column]
        name, occurrence = operators[rng.integers(len(operators))]
        changed = mutate_code(source, plugins.get_operator(name)(), occurrence)
        lines = difflib.unified_diff(source.splitlines(), changed.splitlines(), lineterm="", n=0)
        diff = "\n".join(line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---"))
        yield Change(module, line, name.removeprefix("core/"), changed, diff)


def source_of(module: str, checkout: Path = CHECKOUT) -> Path:
    return checkout / "datamap" / f"{module}.py"


def tests_of(module: str) -> list[list[str]]:
    """The test files that import the module, and the others of its room."""
    room, name = module.split("/")
    imports = re.compile(rf"datamap\.{room}(\.| import .*\b){name}\b|datamap/{module}")
    files = sorted(CHECKOUT.joinpath("tests").rglob("test_*.py"))
    direct = [file for file in files if imports.search(file.read_text())]
    direct.sort(key=lambda file: (file.parent.name != room, file.name))
    rest = [file for file in files if file.parent.name == room and file not in direct]
    return [[str(file.relative_to(CHECKOUT)) for file in group] for group in (direct, rest) if group]


def failing(place: Path, files: Sequence[str], *flags: str) -> str:
    """The first test that fails in a copy of the checkout, ``timeout``, or nothing."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *flags, *files]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return "timeout"
    if done.returncode in (0, 5):  # 5: every test of these files is slow
        return ""
    named = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return named[1] if named else f"exit status {done.returncode}"


def copy_checkout(place: Path) -> Path:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    for name in filter(None, done.stdout.split("\0")):
        if (CHECKOUT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, place / name)
    return place


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--number", type=positive_int, default=200, help="of changes")
    parser.add_list("--modules", choices=NUMERIC, default=list(NUMERIC), help="where they are made")
    parser.add_argument("--seed", type=seed_number, default=0, help="of the draw")
    parser.add_argument("--workers", type=positive_int, default=1, help="runs of tests at a time")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    import pandas as pd
    from tqdm.auto import tqdm

    args = parse_args(argv)
    try:
        import cosmic_ray  # noqa: F401
    except ImportError as error:
        raise UserError("cosmic-ray is not installed: pip install cosmic-ray") from error
    rng = np.random.default_rng(args.seed)
    sizes = np.array([len(places_of(module)) for module in args.modules])
    drawn = rng.multivariate_hypergeometric(sizes, min(args.number, sizes.sum()))
    changes = [change for module, number in zip(args.modules, drawn, strict=True)
               for change in draw(module, number, rng)]
    changes = [changes[number] for number in rng.permutation(len(changes))]  # so that a part is a sample, too
    judged = Path(args.output_dir, "judged.jsonl")
    judged.parent.mkdir(parents=True, exist_ok=True)
    known = {tuple(row[name] for name in CHANGE): row for row in (read_jsonl(judged) if judged.exists() else ())}
    with tempfile.TemporaryDirectory() as scratch, judged.open("a") as record:
        places: SimpleQueue[Path] = SimpleQueue()
        for number in range(args.workers):
            places.put(copy_checkout(Path(scratch, str(number))))
        unchanged = sorted({file for module in {change.module for change in changes}
                            for group in tests_of(module) for file in group})
        if failed := failing(Path(scratch, "0"), unchanged, "-n", str(args.workers)):
            raise UserError(f"{failed} fails without any change; what is caught would mean nothing")

        def judge(change: Change) -> dict[str, Any]:
            if row := known.get((change.module, change.line, change.operator, change.diff)):
                return row
            place = places.get()
            file = source_of(change.module, place)
            original = file.read_text()
            file.write_text(change.source)
            try:
                found = (failing(place, group) for group in tests_of(change.module))
                caught_by = next(filter(None, found), None)
            finally:
                file.write_text(original)
                places.put(place)
            row = {"module": change.module, "line": change.line, "operator": change.operator, "diff": change.diff,
                   "caught_by": caught_by}
            record.write(json.dumps(row) + "\n")
            record.flush()
            return row

        with ThreadPoolExecutor(args.workers) as pool:
            rows = list(tqdm(pool.map(judge, changes), total=len(changes), unit="change", disable=None))
    table = pd.DataFrame(rows)
    caught = int(table["caught_by"].notna().sum())
    low, high = wilson_interval(caught, len(table))
    for row in table[table["caught_by"].isna()].itertuples():
        print(f"not caught: datamap/{row.module}.py:{row.line}\n{row.diff}")
    print(f"{caught} of {len(table)} caught, {100 * caught / len(table):.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
    report(args, __file__, {"caught": caught, "changes": len(table), "places": int(sizes.sum())})
    write_csv(Path(args.output_dir, "mutants.csv"), table)


if __name__ == "__main__":
    main()
