"""Measure what a GPU is for, beside what people use: training, embeddings, fine-tuning, generation.

Reads nothing (or policyqa and sst2 of --data_dir); models have real shapes and random weights, nothing is downloaded.
Writes a JSON for each row to --output_dir as soon as it is measured, so that a run that is cut keeps what it has;
``run_all.py --page_only`` makes README.md of them. At most 6 minutes on one card: a row that takes much longer than
its share is stopped, and says so. Without a card nothing is measured, and each row says when it last was.

    python benchmarks/bench_gpu.py
    python benchmarks/bench_gpu.py --only gpu_qa gpu_embeddings
    python benchmarks/bench_gpu.py --quick --output_dir ./bench_gpu_quick     (tiny sizes, also on a CPU)
"""

from __future__ import annotations

import argparse
import logging
import pickle
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rows.gpu_table import GPU_ROWS
from rows.table import Row
from timing import Found, Setting, machine, markdown, record_of

from datamap.core.artifacts import check_writable
from datamap.core.errors import UserError, command_line, first_line, setup_logging
from datamap.core.files import read_json, write_json
from datamap.core.flags import Parser
from datamap.training.on_gpu import out_of_memory

RESULTS = Path(__file__).resolve().parent / "results"
LIMIT = 335.0  # seconds that all rows may take
LONGEST = 1.4  # times its share that a row may take, as far as there is time
# By the process that those of the rows are made of. Nothing of it may ask for the card, as peft and the compiler do:
# processes that are made after that could not use it.
PRELOADED = ["datasets", "sklearn.metrics", "torch._dynamo", "transformers.generation.utils",
             "transformers.models.bert.modeling_bert", "transformers.models.electra.modeling_electra",
             "transformers.models.mistral.modeling_mistral"]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Measure what a GPU is for, beside what people use.", script="bench_gpu.py")
    parser.add_argument("--data_dir", type=Path, metavar="DATA", help="directory with policyqa/ and sst2/ (default: "
                        "texts are made up)")
    parser.add_argument("--output_dir", type=Path, help=f"where the JSONs go (default: {RESULTS})")
    names = [row.name for row in GPU_ROWS]
    parser.add_list("--only", metavar="ROW", choices=names, help=f"of {', '.join(names)} (default: all)")
    parser.add_switch("--quick", help="tiny sizes, also on a CPU: shows that every row runs, measures nothing")
    args = parser.parse_args(argv)
    if args.quick and (args.output_dir is None or args.output_dir.resolve() == RESULTS):
        parser.error("--quick measures nothing that belongs into the results: give it an --output_dir of its own")
    if args.data_dir is not None and not args.data_dir.is_dir():
        parser.error(f"--data_dir {args.data_dir}: no such directory")
    args.output_dir = args.output_dir or RESULTS
    args.rows = [row for row in GPU_ROWS if not args.only or row.name in args.only]
    return args


def measured(name: str, setting: Setting, file: str) -> None:
    """Leave what the row finds in a file, or in one line why it finds nothing; in a process of its own."""
    setup_logging()
    logging.getLogger().setLevel(logging.ERROR)  # of made-up data and short trainings much is to be warned of
    row = next(each for each in GPU_ROWS if each.name == name)
    assert row.measure is not None
    before = machine()
    try:
        left: Any = (row.measure(setting), before)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        left = f"out of memory on {before['gpu']}: lower BATCH_SIZE in benchmarks/rows/, or free the card of others"
    except UserError as error:
        left = str(error)
    Path(file).write_bytes(pickle.dumps(left))


def processes() -> Any:
    """Of the rows, each of which begins anew but for what is imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def measure(row: Row, args: argparse.Namespace, seconds: float) -> str | None:
    """Measure a row in at most so many seconds and write its JSON; why it could not be, None where it was."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "row").mkdir()
        setting = Setting(args.data_dir and args.data_dir.resolve(), args.quick, Path(scratch) / "row",
                          args.output_dir.resolve(), {})
        file = Path(scratch) / "found"
        process = processes().Process(target=measured, args=(row.name, setting, str(file)))
        process.start()
        process.join(None if args.quick else seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return f"it took longer than the {seconds:.0f} seconds that were left to it, and was stopped"
        if not file.exists():
            return f"its process ended with exit status {process.exitcode}"
        left = pickle.loads(file.read_bytes())
    if isinstance(left, str):
        return left
    found, about = left
    write(row, found, about, args, time.monotonic() - began)
    return None


def write(row: Row, found: Found, about: dict[str, Any], args: argparse.Namespace, seconds: float) -> None:
    for note in found.notes:
        print(f"{row.name}: {note}")
    write_json(args.output_dir / row.file, record_of(row, found, about, args.quick, seconds))
    if args.quick:
        print(f"{row.name} runs, {seconds:.0f} s", flush=True)
        return
    print(f"{row.name}: {row.what} ({seconds:.0f} s)\n"
          f"{markdown([('', 'found', 'bound'), *(one.row() for one in found.measures)])}", flush=True)


def last_measured(row: Row, directory: Path) -> str:
    if not (directory / row.file).exists():
        return "not measured, never yet"
    record = read_json(directory / row.file)
    return f"not measured now, but on {record['finished'][:10]} on {record['machine']['gpu']}"


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    import torch

    args = parse_args(argv)
    if not (args.quick or torch.cuda.is_available()):
        for row in args.rows:
            print(f"{row.name} ({row.what}): {last_measured(row, args.output_dir)}")
        print("there is no GPU here: nothing was measured, and nothing written")
        return
    check_writable(args.output_dir)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    failed, began = [], time.monotonic()
    for place, row in enumerate(args.rows):
        # Of the time that is left each row has its share: what one does not need goes to those behind it.
        left = LIMIT - (time.monotonic() - began)
        share = left * row.minutes / sum(each.minutes for each in args.rows[place:])
        try:
            why = measure(row, args, min(left, LONGEST * share))
        except OSError as error:
            why = first_line(error)
        if why is not None:
            failed.append(row.name)
            logging.error(f"{row.name} was not measured: {why}")
    print(f"wrote {len(args.rows) - len(failed)} JSONs to {args.output_dir}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
