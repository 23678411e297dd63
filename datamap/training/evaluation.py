"""Evaluations of a run: metrics, predictions and slices to files and the console, and by name to every tracker."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datamap.core.errors import is_main_process
from datamap.core.files import write_csv, write_json, write_jsonl
from datamap.core.plots import dataset_label
from datamap.core.splits import Split
from datamap.core.tables import safe_to_open
from datamap.tasks import slices
from datamap.tasks.evaluation import SPEED
from datamap.training.data import RunData, features_of, write_filter_report
from datamap.training.on_gpu import room_for

if TYPE_CHECKING:
    import pandas as pd

    from datamap.training.trainer import CartographyTrainer


def evaluate_splits(trainer: CartographyTrainer, args: argparse.Namespace, data: RunData) -> None:
    """Evaluate every split; several get files of their own and one picture that compares them."""
    if is_main_process() and not args.do_train:
        write_filter_report(Path(args.output_dir), data, trained=False)
    several = len(data.evaluated) > 1
    tables = {split.split: evaluate_split(trainer, args, data, split, f"_{split.split}" if several else "")
              for split in data.evaluated}
    if several and is_main_process():
        write_csv(Path(args.output_dir) / "generalization.csv", safe_to_open(slices.generalization_table(tables)))
        rate = trainer.compute_metrics.rate
        slices.plot_generalization(
            Path(args.output_dir) / "generalization.png", tables, args.slice_by or (), rate,
            f"{slices.rate_name(rate)} across the evaluation sets",
            f"{dataset_label(args.dataset, '').removesuffix(' []')}, {Path(args.model).name}",
        )


def evaluate_split(
    trainer: CartographyTrainer, args: argparse.Namespace, data: RunData, split: Split, suffix: str
) -> pd.DataFrame:
    """Evaluate one split under each ablation: metrics, predictions and slices to files, the console and the trackers.

    Metrics under the training's own ablation are ``eval_*``; those of the examples that filters keep, where they were
    asked, ``eval_filtered_*``. suffix: of the file names. Returns the table of slices, at least its row ``overall``.
    """
    import pandas as pd

    output, table = Path(args.output_dir), pd.DataFrame()
    metrics: dict[str, float] = {}
    title = title_of(split, args.model)
    values = data.slices[split.split]
    for ablation in args.eval_ablations or [args.ablations]:
        features = features_of(split, trainer.processing_class, args.max_length, args.doc_stride, ablation)
        evaluation = data.evaluation(split, features)
        trainer.compute_metrics = evaluation
        own = ablation == args.ablations
        prefix, ending = ("eval", suffix) if own else (f"eval_{ablation}", f"{suffix}_{ablation}")
        name = prefix + suffix  # or every set would go into the trackers' one curve eval/accuracy
        with room_for(f"{trainer.args.per_device_eval_batch_size:,} rows at once",
                      "lower --per_device_eval_batch_size or --max_length"):
            found = trainer.evaluate(evaluation.features, metric_key_prefix=name)
        found = {key.replace(name, prefix, 1): value for key, value in found.items()}
        found.pop("epoch", None)
        everything = np.ones(len(split.data), dtype=bool)
        rows = pd.DataFrame([{"slice": slices.OVERALL, **evaluation.slice_statistics(everything)}])
        if values:
            rows = slices.slice_table(values, evaluation.slice_statistics)
            write_slices(rows, list(values), evaluation.rate, output, ending, title)
        if data.kept is not None:
            inside = np.array([example in data.kept[split.split] for example in split.ids])
            found |= {f"{prefix}_filtered_{name}": value for name, value in evaluation.summary(inside).items()}
        within = suffix.removeprefix("_") if own else ending.removeprefix("_")
        trainer.log(tracked(quality(found, f"{prefix}_"), rows, list(values), within))
        if own or table.empty:
            table = rows
        metrics |= found
        if is_main_process():
            write_jsonl(output / f"eval_predictions{ending}.jsonl", evaluation.rows())
            evaluation.write(output, ending, title)
            print_metrics(found, f"{split.split}:" if suffix else "")
            if values:
                print(slices.printed(rows, f"slice_metrics{ending}.csv"))
    if is_main_process():
        write_json(output / f"eval_metrics{suffix}.json", metrics)
        if split.mended:
            write_csv(output / f"eval_moved_answers{suffix}.csv", safe_to_open(pd.DataFrame(split.mended)))
    return table


def title_of(split: Split, model: str) -> str:
    return f"{dataset_label(split.name, split.split)}, {Path(model).name}"


def quality(metrics: Mapping[str, float], prefix: str = "eval_") -> dict[str, float]:
    """The metrics of an evaluation that say something of the model, without ``prefix``."""
    return {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(prefix) and not name.endswith(SPEED)
    }


def tracked(
    metrics: Mapping[str, float], table: pd.DataFrame | None, columns: Sequence[str], within: str = ""
) -> dict[str, float]:
    """``metrics/<name>`` and ``slices/<column>/<value>/<name>``; ``within`` names the evaluation set, if several."""
    named = {f"metrics/{name}": value for name, value in metrics.items()}
    if table is not None:
        named |= slices.logged(table, columns)
    if within:
        named = {key.replace("/", f"/{within}/", 1): value for key, value in named.items()}
    return named


def write_slices(
    table: pd.DataFrame, columns: Sequence[str], rate: str, directory: Path, suffix: str, title: str
) -> None:
    """Write the table of slices as ``slice_metrics`` CSV, and PNG of its ``rate``."""
    if is_main_process():
        write_csv(directory / f"slice_metrics{suffix}.csv", safe_to_open(table))
        slices.plot_slices(
            directory / f"slice_metrics{suffix}.png", table, columns, rate,
            f"{slices.rate_name(rate)} by {' and '.join(columns)}", f"{title}, n = {table['n'].iloc[0]:,}",
        )


def print_metrics(metrics: Mapping[str, float], heading: str = "") -> None:
    if heading:
        print(heading)
    for name, value in metrics.items():
        if not name.endswith(SPEED):
            print(f"{name:<34} {value:>10,.4g}" if isinstance(value, float) else f"{name:<34} {value:>10,}")
