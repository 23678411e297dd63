"""Measure every row of the table of speed beside what people use, and make README.md of what was found.

Reads the public data sets in --data_dir (policyqa, sst2, sick_nli). Writes a JSON for each row to --output_dir (its
figures, the versions, the machine, the commit), and README.md of all that lie there: beside this script for its own
results/, else in the directory itself. A row that is not measured now keeps its last figures, with their date and
commit.

    python benchmarks/run_all.py --data_dir DATA --output_dir benchmarks/results
    python benchmarks/run_all.py --data_dir DATA --only 1 3 suspects
    python benchmarks/run_all.py --page_only
    python benchmarks/run_all.py --quick --output_dir ./bench_quick     (tiny sizes: shows that every row runs)

With --resume the rows are left out that were measured at this very commit: the same command goes on where it was
stopped. What ours is held against is installed by pip install -c constraints.txt -e ".[bench]"; a row says what was
not there. Each row runs in a process of its own; sides are taken in turn within it. Linux only.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import resource
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rows.gpu_table import GPU_ROWS
from rows.scale import with_table
from rows.table import ROWS, Row
from timing import WRITTEN, Found, Measure, Setting, in_own_process, machine, markdown, record_of, shown

from datamap.core.artifacts import check_writable, provenance
from datamap.core.errors import UserError, command_line, first_line, setup_logging
from datamap.core.files import atomic, read_json, write_json
from datamap.core.flags import Parser

HERE = Path(__file__).resolve().parent
RESULTS, SCALE = HERE / "results", HERE.parent / "docs" / "scale.md"
TITLE = "# As fast as the machine allows, measured beside what people use"
ABOUT = """Made by `python benchmarks/run_all.py --data_dir DATA` of the JSONs in `results/` and of `rows/table.py`
(what is asked, and the remark below a row); `--only ROW` measures one row, `--quick` shows that all run. What ours
is held against is installed by `pip install -c constraints.txt -e ".[bench]"`. DATA holds public data, each set a
directory with `train.jsonl` and `validation.jsonl` in the columns of [docs/data.md](../docs/data.md): `policyqa`
(dev and test files of PolicyQA, Ahmad et al. 2020), `sst2` (whole sentences of SST-2, Socher et al. 2013) and
`sick_nli` (SICK, Marelli et al. 2014).

Figures are medians of rounds in which the sides are taken in turn, with the lowest and the highest; what takes
minutes is measured once, and then no range stands beside it. A ratio (x) says how many times faster ours is, within
the rounds. BROKEN stands where a bound is not kept. Each row is of the commit that is named.

The programs are in `rows/`, by subject. Beside `run_all.py` and `timing.py`, which they share, are `bench_gpu.py`
and studies of what is found rather than how fast, with their results in [RESULTS.md](../RESULTS.md); each says in
its first lines what it does."""
ON_A_GPU = """Measured by `python benchmarks/bench_gpu.py` on one card, in at most 6 minutes; models have the shapes
that are named and random weights, texts are made up."""
NOT_BUILT, NOT_MEASURED = "not built", "not measured"
MOST_SHOWN = 6  # figures of a row in the table
PEERS = {"answers": "torchmetrics", "embeddings": "sentence_transformers", "clusters": "fast_hdbscan"}  # beside ours
READS_DATA = ("training_qa", "training_sentences", "recording", "bf16", "embeddings", "empty_windows")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Measure every row of the table of speed, and make README.md of it.", script="run_all.py")
    parser.add_argument("--data_dir", type=Path, metavar="DATA", help="directory with policyqa/, sst2/ and sick_nli/")
    parser.add_argument("--output_dir", type=Path, help=f"where the JSONs go (default: {RESULTS})")
    parser.add_list("--only", metavar="ROW", help="rows by number or name (default: all)")
    parser.add_switch("--resume", help="leave out the rows that were measured at this very commit")
    parser.add_switch("--page_only", help="measure nothing, make README.md anew of the JSONs that there are")
    parser.add_switch("--quick", help="tiny sizes: shows that every row runs, measures nothing")
    args = parser.parse_args(argv)
    known = {name: row for row in ROWS for name in (row.key, row.name)}
    if unknown := [name for name in args.only or () if name not in known]:
        names = ", ".join(row.name if row.key == row.name else f"{row.key} ({row.name})" for row in ROWS)
        parser.error(f"--only {unknown[0]}: there is no such row; there are {names}")
    if args.page_only and (args.only or args.quick):
        parser.error("--page_only measures nothing: leave --only and --quick out")
    args.rows = [row for row in ROWS if not args.only or row in [known[name] for name in args.only]]
    if args.quick and args.output_dir is None:
        parser.error("--quick measures nothing that belongs into the results: give it an --output_dir of its own")
    args.output_dir = args.output_dir or RESULTS
    if args.quick and args.output_dir.resolve() == RESULTS:
        parser.error(f"--quick measures nothing that belongs into {args.output_dir}: name another --output_dir")
    if args.data_dir is not None and not args.data_dir.is_dir():
        parser.error(f"--data_dir {args.data_dir}: no such directory")
    measures = not (args.quick or args.page_only)
    if measures and args.data_dir is None and any(row.name in READS_DATA for row in args.rows):
        parser.error("--data_dir is missing: a directory with policyqa/, sst2/ and sick_nli/ in it")
    for row in args.rows if measures else ():
        if row.name in PEERS and importlib.util.find_spec(PEERS[row.name]) is None:
            parser.error(f"row {row.key} is held against {PEERS[row.name]}, which is not installed: pip install "
                         "-c constraints.txt -e \".[bench]\"")
    if args.page_only and not read_results(args.output_dir):
        parser.error(f"--output_dir {args.output_dir}: there is no JSON of a row in it")
    if other_page(place_of_page(args.output_dir)):
        parser.error(f"{place_of_page(args.output_dir)} is no page of ours, and would be overwritten: name another "
                     "--output_dir")
    return args


# --- measuring -------------------------------------------------------------------------------------------------------


def measured(name: str, setting: Setting) -> tuple[Found, dict[str, Any], dict[str, str]]:
    """What the row finds, of the machine on which it does, and what data it read; in a process of its own."""
    setup_logging()
    logging.getLogger().setLevel(logging.ERROR)  # of made-up data and short trainings much is to be warned of
    row = next(each for each in ROWS if each.name == name)
    assert row.measure is not None
    before = machine()
    return row.measure(setting), before, setting.read


def is_measured(row: Row, directory: Path) -> bool:
    """At this very commit, of code that was not changed since."""
    file = directory / row.file
    if not file.exists():
        return False
    record, now = read_json(file), provenance(apart_from=WRITTEN)
    return record["git_commit"] is not None and not (record["quick"] or record["git_dirty"] or now["git_dirty"]) \
        and record["git_commit"] == now["git_commit"]


def run_quickly(rows: Sequence[Row], args: argparse.Namespace) -> list[Row]:
    """Two rows at a time, in processes that take one after the other, as nothing is measured; those that failed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as workers, ThreadPoolExecutor(2) as pool:
        run = partial(measure, args=args, process=lambda *call: workers.submit(*call).result())
        return [row for row, done in zip(rows, pool.map(run, rows), strict=True) if not done]


def measure(row: Row, args: argparse.Namespace, process: Callable[..., Any] | None = None) -> bool:
    """Measure a row and write its JSON; whether it could be. process: calls a function in another process (default: in
    one of its own)."""
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            setting = Setting(args.data_dir and args.data_dir.resolve(), args.quick, Path(scratch),
                              args.output_dir.resolve(), {})
            found, about, read = (process or in_own_process)(measured, row.name, setting)
    except (Exception, SystemExit) as error:  # a script that ends must not take the other rows along
        if not isinstance(error, UserError):
            traceback.print_exc()
        logging.error(f"row {row.key} was not measured: {type(error).__name__}: {first_line(error)}")
        return False
    seconds = time.monotonic() - began
    for note in found.notes:
        print(f"row {row.key}: {note}", flush=True)
    write_json(args.output_dir / row.file, record_of(row, found, about, args.quick, seconds, read))
    if args.quick:
        print(f"row {row.key} ({row.name}) runs, {seconds:.0f} s", flush=True)
    else:
        print(markdown([("", "found", "bound"), *(one.row() for one in found.measures)]))
    return True


# --- README.md -------------------------------------------------------------------------------------------------------


def read_results(directory: Path) -> dict[str, dict[str, Any]]:
    rows = (*ROWS, *GPU_ROWS)
    return {row.name: read_json(directory / row.file) for row in rows if (directory / row.file).exists()}


def measures_of(record: Mapping[str, Any]) -> list[Measure]:
    return [Measure(**one) for one in record["measures"]]


def state_of(row: Row, record: Mapping[str, Any] | None) -> str:
    """What the table says of a row: its figures that have a bound, or where these are many how many are kept."""
    if record is None:
        return NOT_BUILT if row.measure is None else NOT_MEASURED
    if record["quick"]:
        return "tiny sizes"
    if not record["measures"]:
        return "; ".join(record["notes"]) or "nothing was found"
    bounded = [one for one in measures_of(record) if one.least is not None or one.most is not None]
    if len(bounded) > MOST_SHOWN:
        broken = [f"{one.what} {shown(one.found)}{one.unit} BROKEN" for one in bounded if not one.keeps]
        return "; ".join([f"{len(bounded) - len(broken)} of {len(bounded)} bounds kept", *broken])
    return "; ".join(f"{shown(one.found)}{one.unit}{'' if one.keeps else ' BROKEN'}" for one in bounded) or "measured"


def of_whom(record: Mapping[str, Any]) -> str:
    """When, by which code, with what and where."""
    about, commit = record["machine"], (record["git_commit"] or "no commit")[:7]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    data = ", ".join(f"{file} {digest[:8]}" for file, digest in record.get("data", {}).items())
    return (f"{record['finished'][:10]}, commit `{commit}`{' with changes' if record['git_dirty'] else ''}, "
            f"{record['seconds']:,.0f} s on {about['cores']} cores of {about['processor']} "
            f"({about['threads']} threads){'' if about['gpu'] is None else ' with ' + about['gpu']}, load before "
            f"{about['load_average'][0]:.1f}; {versions}{data and f'; SHA-256 of the data: {data}'}.")


def page(results: Mapping[str, Mapping[str, Any]], pictures: str) -> str:
    """README.md, of the table and the JSONs alone. pictures: where they are, from the page."""
    numbered, others = [row for row in ROWS if row.number], [row for row in ROWS if not row.number]
    parts = [
        TITLE,
        ABOUT,
        "## The table",
        markdown([("#", "what", "against", "asked", "found", "measured"), *(
            (f"[{row.number}](#{row.name})", row.what, row.against, row.asked, state_of(row, results.get(row.name)),
             date_of(results.get(row.name))) for row in numbered)]),
        "## Besides",
        markdown([("row", "what", "against", "found", "measured"), *(
            (f"[{row.name}](#{row.name})", row.what, row.against, state_of(row, results.get(row.name)),
             date_of(results.get(row.name))) for row in others)]),
    ]
    parts += [
        "## On a GPU",
        ON_A_GPU,
        markdown([("row", "what", "against", "asked", "found", "measured"), *(
            (f"[{row.name}](#{row.name})", row.what, row.against, row.asked, state_of(row, results.get(row.name)),
             date_of(results.get(row.name))) for row in GPU_ROWS)]),
    ]
    for row in (*ROWS, *GPU_ROWS):
        if (record := results.get(row.name)) is not None:
            parts += section(row, record, pictures)
    return "\n\n".join(parts) + "\n"


def date_of(record: Mapping[str, Any] | None) -> str:
    return "" if record is None else f"{record['finished'][:10]}, `{(record['git_commit'] or 'no commit')[:7]}`"


def section(row: Row, record: Mapping[str, Any], pictures: str) -> list[str]:
    head = f"{row.number}. {row.what}" if row.number else row.what
    against = "" if row.against == "-" else f" Against: {row.against}."
    command = f"bench_gpu.py --only {row.name}" if row in GPU_ROWS else f"run_all.py --data_dir DATA --only {row.key}"
    return [
        f"## {head} <a name=\"{row.name}\"></a>",
        f"`python benchmarks/{command}`: {of_whom(record)}{against}",
        *(["Tiny sizes, which show that the row runs; these figures measure nothing."] if record["quick"] else []),
        markdown([("", "found", "bound"), *(one.row() for one in measures_of(record))]),
        *[f"- {note}" for note in record["notes"]],
        *([row.remark] if row.remark else []),
        *[f"![{shows}]({pictures}{name})" for name, shows in record["pictures"].items()],
    ]


def place_of_page(directory: Path) -> Path:
    return (HERE if directory.resolve() == RESULTS else directory) / "README.md"


def other_page(file: Path) -> bool:
    """Whether a file stands where the page goes that is none of ours."""
    return file.is_file() and not file.read_text(encoding="utf-8", errors="replace").startswith(TITLE)


def write_page(directory: Path) -> Path:
    own, results, file = directory.resolve() == RESULTS, read_results(directory), place_of_page(directory)
    with atomic(file) as temporary:
        temporary.write_text(page(results, "results/" if own else ""), encoding="utf-8")
    if own and "ten_million" in results:
        text = with_table(SCALE.read_text(encoding="utf-8"), results["ten_million"]["details"])
        with atomic(SCALE) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return file


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.page_only:
        print(f"wrote {write_page(args.output_dir)}")
        return
    check_writable(args.output_dir)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # scripts start as they do for users, from the byte code
    done = [row for row in args.rows if args.resume and is_measured(row, args.output_dir)]
    to_do = [row for row in args.rows if row.measure is not None and row not in done]
    for row in args.rows:
        if row.measure is None:
            print(f"row {row.key} ({row.name}): {NOT_BUILT}")
    if done:
        print(f"measured at this commit, and left out: {', '.join(row.key for row in done)}")
    if args.quick:
        failed = run_quickly(to_do, args)
    else:
        failed = []
        for place, row in enumerate(to_do):
            left = sum(each.minutes for each in to_do[place:])
            print(f"row {row.key} ({row.name}), {place + 1} of {len(to_do)}: about {row.minutes:g} minutes, "
                  f"{left:.0f} with those after it", flush=True)
            failed += [] if measure(row, args) else [row]
            write_page(args.output_dir)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"wrote {len(to_do) - len(failed)} JSONs to {args.output_dir}, and {write_page(args.output_dir)} "
          f"({used.ru_utime + used.ru_stime:,.0f} CPU seconds)")
    if failed:
        logging.error(f"not measured: {', '.join(f'{row.key} ({row.name})' for row in failed)}; see above")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
