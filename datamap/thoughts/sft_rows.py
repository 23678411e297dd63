"""The rows that train_sft.py trains on, holds out or leaves out, and the pairs that are answered meanwhile."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import string
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.analysis.filter_config import apply_filters
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import atomic, write_json, write_jsonl
from datamap.core.splits import Split, default_eval_split, load_split
from datamap.tasks.registry import get_task
from datamap.thoughts.data import (
    THOUGHTS_FILE,
    load_pairs,
    read_reflections,
    read_thoughts,
    rows_at,
    training_rows,
)
from datamap.thoughts.prompts import PROMPT_FILE, TUNED
from datamap.thoughts.tuning_files import tuning_column, tuning_rows

if TYPE_CHECKING:
    import pandas as pd

DATA_FILE = "sft_data.jsonl"
# What becomes of a row.
TRAINED, HELD_OUT, FILTERED, TOO_LONG, NOT_USED = "train", "held_out", "filtered", "too_long", "not_used"

logger = logging.getLogger(__name__)


def load_rows(
    args: argparse.Namespace, template: string.Template
) -> tuple[list[dict[str, Any]], string.Template]:
    """The rows, and the prompt: ``template``, or that of a fine-tuning file where --prompt_file names none."""
    file, records = rows_at(args.thoughts, *THOUGHTS_FILE)
    if column := tuning_column(records):
        if args.reflections:
            raise UserError(f"--reflections has nothing to repair in {file}, whose {column} are answers to be learnt; "
                            "leave it out")
        return tuning_rows(records, column, file, None if args.prompt_file == str(TUNED) else template)
    thoughts = read_thoughts(args.thoughts)
    beside = Path(args.thoughts) / "reflections.jsonl"
    if not args.reflections and beside.exists() and beside.stat().st_size:
        logger.warning(f"{beside} is not used: --reflections {args.thoughts} takes the repaired chains too")
    return training_rows(thoughts, read_reflections(args.reflections) if args.reflections else []), template


def as_split(rows: Sequence[Mapping[str, Any]], name: str) -> Split:
    """All rows as the NLI dataset that analyses and filters will find in the file ``name``."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / DATA_FILE
        write_jsonl(file, rows)
        task = get_task("nli", text_columns=["premise", "hypothesis"], label_column="label")
        return dataclasses.replace(load_split(str(file), "train", task), name=name)


def held_out_rows(ids: Sequence[str], fraction: float, seed: int) -> list[int]:
    """The rows to hold out, at least one unless ``fraction`` is 0: drawn from the sorted ids, whatever their order."""
    if not fraction:
        return []
    count = max(1, round(fraction * len(ids)))
    if count >= len(ids):
        raise UserError(f"--eval_fraction {fraction:g} holds out {count:,} of {len(ids):,} rows and leaves none to "
                        "train on; lower it, or give more chains of thought")
    order = sorted(range(len(ids)), key=lambda row: ids[row])
    return sorted(order[place] for place in np.random.default_rng(seed).permutation(len(ids))[:count])


def assign_parts(
    args: argparse.Namespace, split: Split, encoded: pd.DataFrame
) -> tuple[np.ndarray, dict[str, Any] | None]:
    """What becomes of every row, and the report of the filters.

    The first --max_train_samples rows are used; of these some are held out, before any filter, so that runs with and
    without filters are evaluated on the same.
    """
    ids = split.ids
    used = ids[: args.max_train_samples]
    parts = np.array([TRAINED] * len(used) + [NOT_USED] * (len(ids) - len(used)), dtype=object)
    parts[held_out_rows(used, args.eval_fraction, args.seed)] = HELD_OUT
    parts[(encoded["prompt_lengths"] >= args.max_length) & (parts != NOT_USED)] = TOO_LONG
    if named := [name for name, part in zip(ids, parts, strict=True) if part == TOO_LONG]:
        logger.warning(f"{len(named):,} rows ({name_a_few(named)}) are left out: their prompt alone has "
                       f"--max_length {args.max_length:,} tokens or more")
    report = None
    if args.filters:
        rows = np.flatnonzero(parts == TRAINED)
        # The fingerprint stays that of all rows: files about them are recognised whatever is held out.
        candidates = dataclasses.replace(split, data=split.data.select(rows))
        kept, report = apply_filters(candidates, args.filters, seed=args.seed, return_report=True)
        stays = set(kept["id"][:])
        parts[[row for row in rows if ids[row] not in stays]] = FILTERED
    if TRAINED not in parts:
        found = ", ".join(f"{count:,} {part}" for part, count in Counter(parts).items())
        raise UserError(f"no row is left to train on: {found}; give more chains of thought, or a larger --max_length")
    return parts, report


def pairs_to_answer(
    args: argparse.Namespace, held_out: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], Split | None]:
    """The pairs that are answered while training: those of --eval_dataset, else the held-out rows."""
    if args.eval_dataset is None:
        if held_out:
            logger.warning("pairs of the held-out rows are answered, a biased sample: only such whose chain was right "
                           "or was repaired; --eval_dataset names others")
        return [dict(row) for row in held_out[: args.eval_samples]], None
    split = load_pairs(
        args.eval_dataset, args.eval_split or default_eval_split(args.eval_dataset), args.label_map, args.eval_samples,
        args.text_columns or (), args.label_column,
    )
    pairs = [pair for pair in split.data.to_list() if pair["label"] is not None]
    if not pairs:
        raise UserError(f"{args.eval_dataset} [{split.split}]: none of the first {args.eval_samples:,} pairs has a "
                        "label; name a labelled split with --eval_split")
    return pairs, split


def count_parts(
    args: argparse.Namespace, rows: Sequence[Mapping[str, Any]], parts: np.ndarray, train: pd.DataFrame
) -> dict[str, int]:
    trained = [row for row, part in zip(rows, parts, strict=True) if part == TRAINED]
    lengths = train["input_ids"].str.len()
    named = train["ids"][lengths > args.max_length]
    cut, label_cut_off = len(named), int((train["label_positions"] >= args.max_length).sum())
    if label_cut_off == len(trained):
        raise UserError(f"every row is cut before its label: --max_length is {args.max_length:,}, the rows have up to "
                        f"{lengths.max():,} tokens; raise it")
    if cut:
        logger.warning(f"{cut:,} of {len(trained):,} rows ({100 * cut / len(trained):.1f} %) are longer than "
                       f"--max_length {args.max_length:,} tokens (up to {lengths.max():,}) and are cut "
                       f"({name_a_few(named)}), {label_cut_off:,} of them before their label"
                       + ", which leaves these out of the data map" * args.enable_cartography)
    sources, labels = Counter(row["source"] for row in trained), Counter(row["label"] for row in trained)
    return {
        **{part: int((parts == part).sum()) for part in (HELD_OUT, FILTERED, TOO_LONG, NOT_USED)},
        "originals": sources["original"], "reflections": sources["reflection"],
        "label_0": labels[0], "label_1": labels[1], "truncated": cut, "label_cut_off": label_cut_off,
    }


def write_inputs(args: argparse.Namespace, rows: Sequence[Mapping[str, Any]], parts: np.ndarray,
                 template: string.Template, report: dict[str, Any] | None) -> None:
    """The rows with what becomes of them, the prompt and the report of the filters: before anything is trained."""
    path = Path(args.output_dir)
    write_jsonl(path / DATA_FILE, [{**row, "part": part} for row, part in zip(rows, parts, strict=True)])
    with atomic(path / PROMPT_FILE) as temporary:
        temporary.write_text(template.template, encoding="utf-8")
    if report is not None:
        write_json(path / "filter_report.json", report)
