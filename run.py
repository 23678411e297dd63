"""Train or evaluate one model, and watch how it learns each example.

Reads a dataset, and the cartography, cluster or id files that filters and curriculum name. Writes the model, metrics
and predictions to --output_dir, and with --enable_cartography the training dynamics and the data map.

    python run.py --do_train --do_eval --enable_cartography --num_train_epochs 5 --output_dir ./trainer_output
    python run.py --do_train --do_eval --enable_cartography --model tiny --dataset demo:clinical --max_length 128 \\
        --doc_stride 32 --num_train_epochs 5 --no_cuda          (a minute on a laptop)
    python run.py --do_train --do_eval --task classification --model lstm_reader --dataset demo:stories \\
        --num_train_epochs 10 --eval_split validation validB test --slice_by category num_actors --no_cuda
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.analysis.filter_config import apply_filters
from datamap.cartography.maps import CARTOGRAPHY_FILES
from datamap.core.artifacts import check_writable, stage
from datamap.core.errors import UserError, command_line, is_main_process
from datamap.core.files import write_csv, write_json, write_jsonl
from datamap.core.plots import dataset_label
from datamap.core.splits import Split
from datamap.tasks.base import Task
from datamap.tasks.slices import (
    OVERALL,
    generalization_table,
    plot_generalization,
    printed,
    rate_name,
    slice_columns,
    slice_table,
)
from datamap.training.arguments import EVALUATION_FILES, SIZES, TRAINING_FILES, inputs_of, parse_args, task_of_run
from datamap.training.checkpoints import checkpoint_to_resume
from datamap.training.data import evaluation_splits, features_of, known_variability, training_split
from datamap.training.library_flags import given_training_flags
from datamap.training.models import learning_rate_of, load_model, usable_length, usable_stride

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from datamap.training.trainer import CartographyTrainer

logger = logging.getLogger(__name__)


# --- train and evaluate -------------------------------------------------------------------------------------------


def training_arguments(args: argparse.Namespace, task: Task) -> TrainingArguments:
    import torch
    from transformers import TrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks
    from transformers.utils import logging as transformers_logging

    given = given_training_flags(vars(args))
    given.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    if args.no_cuda:
        given["use_cpu"] = True
    if rate := learning_rate_of(args.model):
        given.setdefault("learning_rate", rate)
    if given.get("load_best_model_at_end") or "best" in given.get("save_strategy", "") or (
        given.get("lr_scheduler_type") == "reduce_lr_on_plateau"
    ):
        given.setdefault("metric_for_best_model", task.metric)
        given.setdefault("greater_is_better", not given["metric_for_best_model"].endswith("loss"))
    if not sys.stderr.isatty():
        given.setdefault("disable_tqdm", True)
        transformers_logging.disable_progress_bar()
    try:
        arguments = TrainingArguments(
            output_dir=args.output_dir, seed=args.seed, do_train=args.do_train, do_eval=args.do_eval,
            remove_unused_columns=False, label_names=["row_index"], **given
        )
        for tracker in get_reporting_integration_callbacks(arguments.report_to):
            tracker()  # says whether it is installed
        return arguments
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"training arguments: {str(error).strip().splitlines()[0]}") from error


def build_trainer(
    args: argparse.Namespace,
    task: Task,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Split | None,
    watched: Split | None,
    variability: np.ndarray | None,
    checkpoint: str | None,
) -> CartographyTrainer:
    """watched: the split that is evaluated during training."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from datamap.cartography.recorder import CartographyCallback
    from datamap.training.callbacks import EvaluationCallback, ProgressBar, StatusCallback
    from datamap.training.trainer import CartographyTrainer, PadToLongest, smoothing_of, weights_of

    features, dynamics, smoothing, weights = None, None, None, None
    if train is not None:
        features = features_of(train, tokenizer, args.max_length, args.doc_stride, args.ablations)
        rows = np.asarray(features["example_index"][:])
        if variability is not None and args.use_label_smoothing:
            smoothing = smoothing_of(variability, args.smoothing_factor)[rows]
        if variability is not None and args.use_soft_weighting:
            weights = weights_of(variability, args.weight_clip_min, args.weight_clip_max)[rows]
        in_rows = f" in {len(features):,} windows" if len(features) > len(train.data) else ""
        logger.info(f"training on {len(train.data):,} examples{in_rows}")
        counts = np.asarray(features["counts"][:], dtype=bool)
        uncounted = len(train.data) - len(np.unique(rows[counts]))
        if uncounted:
            logger.warning(f"{uncounted:,} examples have their answer whole in no window: they are trained as without "
                           "answer and have no dynamics; a larger --max_length or --doc_stride helps")
        if args.enable_cartography:
            dynamics = CartographyCallback(
                train.ids, args.cartography_output_dir, np.where(counts, rows, -1), args.confidence_type, checkpoint,
                title=f"{dataset_label(args.dataset, args.train_split)}, {Path(args.model).name}",
            )
    evaluation = None
    if watched is not None:
        windows = features_of(watched, tokenizer, args.max_length, args.doc_stride, args.ablations)
        evaluation = watched.task.evaluation(watched.data, windows)
    trainer = CartographyTrainer(
        model=model, args=arguments, train_dataset=features, processing_class=tokenizer,
        eval_dataset=evaluation and evaluation.features, compute_metrics=evaluation,
        data_collator=PadToLongest(tokenizer, task, 8 if arguments.bf16 or arguments.fp16 else 1),
        task=task, dynamics=dynamics, smoothing=smoothing, weights=weights,
    )
    # A word for each step and evaluation instead of the library's dump of all the numbers.
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(ProgressBar)
    trainer.add_callback(StatusCallback)
    if watched is not None:
        metric = (arguments.metric_for_best_model or task.metric).removeprefix("eval_")
        values = slice_columns(watched.data, args.slice_by or (), args.dataset)
        trainer.add_callback(
            EvaluationCallback(trainer, args.output_dir, metric, arguments.greater_is_better is not False, values,
                               args.keep_top_epochs or 0, _title(args, watched))
        )
    return trainer


def _title(args: argparse.Namespace, split: Split) -> str:
    return f"{dataset_label(split.name, split.split)}, {Path(args.model).name}"


def train_model(trainer: CartographyTrainer, args: argparse.Namespace, checkpoint: str | None) -> None:
    result = trainer.train(resume_from_checkpoint=checkpoint)
    metrics = dict(result.metrics)
    # The Trainer leaves losses that are not numbers out of its mean, so only the weights can tell.
    if not all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters()):
        raise UserError("training diverged: weights are no numbers any more; lower --learning_rate")
    if trainer.dynamics is not None:
        metrics["cartography_seconds"] = trainer.dynamics.seconds
    trainer.save_model()  # with the tokenizer
    if is_main_process():
        from datamap.training.callbacks import training_log

        write_json(Path(args.output_dir) / "train_metrics.json", metrics)
        write_csv(Path(args.output_dir) / "training_log.csv", training_log(trainer.state.log_history))


def evaluate_split(
    trainer: CartographyTrainer, args: argparse.Namespace, split: Split, suffix: str, kept: set[str] | None
) -> pd.DataFrame:
    """Evaluate one split under each ablation: metrics, predictions and slices to files, the console and the trackers.

    Metrics under the training's own ablation are ``eval_*``. suffix: of the file names. kept: ids whose metrics are
    reported as ``eval_filtered_*`` beside those of all. Returns the table of slices, at least its row ``overall``.
    """
    import pandas as pd

    from datamap.training.callbacks import print_metrics, quality, tracked, write_slices

    output, table = Path(args.output_dir), pd.DataFrame()
    metrics: dict[str, float] = {}
    values = slice_columns(split.data, args.slice_by or (), f"{args.dataset} [{split.split}]")
    for ablation in args.eval_ablations or [args.ablations]:
        features = features_of(split, trainer.processing_class, args.max_length, args.doc_stride, ablation)
        evaluation = split.task.evaluation(split.data, features)
        trainer.compute_metrics = evaluation
        own = ablation == args.ablations
        prefix, ending = ("eval", suffix) if own else (f"eval_{ablation}", f"{suffix}_{ablation}")
        name = prefix + suffix  # or every set would go into the trackers' one curve eval/accuracy
        found = trainer.evaluate(evaluation.features, metric_key_prefix=name)
        found = {key.replace(name, prefix, 1): value for key, value in found.items()}
        found.pop("epoch", None)
        everything = np.ones(len(split.data), dtype=bool)
        rows = pd.DataFrame([{"slice": OVERALL, **evaluation.slice_statistics(everything)}])
        if values:
            rows = slice_table(values, evaluation.slice_statistics)
            write_slices(rows, list(values), evaluation.rate, output, ending, _title(args, split))
        if kept is not None:
            inside = np.array([example in kept for example in split.ids])
            found |= {f"{prefix}_filtered_{name}": value for name, value in evaluation.summary(inside).items()}
        within = suffix.removeprefix("_") if own else ending.removeprefix("_")
        trainer.log(tracked(quality(found, f"{prefix}_"), rows, list(values), within))
        if own or table.empty:
            table = rows
        metrics |= found
        if is_main_process():
            write_jsonl(output / f"eval_predictions{ending}.jsonl", evaluation.rows())
            evaluation.write(output, ending, _title(args, split))
            print_metrics(found, f"{split.split}:" if suffix else "")
            if values:
                print(printed(rows))
    if is_main_process():
        write_json(output / f"eval_metrics{suffix}.json", metrics)
    return table


def evaluate_model(
    trainer: CartographyTrainer,
    args: argparse.Namespace,
    splits: Sequence[Split],
    kept: dict[str, set[str]] | None,
) -> None:
    """Evaluate every split; several get files of their own and one picture that compares them. kept: by split."""
    several, tables = len(splits) > 1, {}
    for split in splits:
        suffix, inside = f"_{split.split}" if several else "", kept[split.split] if kept is not None else None
        tables[split.split] = evaluate_split(trainer, args, split, suffix, inside)
    if several and is_main_process():
        write_csv(Path(args.output_dir) / "generalization.csv", generalization_table(tables))
        rate = trainer.compute_metrics.rate
        plot_generalization(
            Path(args.output_dir) / "generalization.png", tables, args.slice_by or (), rate,
            f"{rate_name(rate)} across the evaluation sets",
            f"{dataset_label(args.dataset, '').removesuffix(' []')}, {Path(args.model).name}",
        )


def _check_bfloat16(model: PreTrainedModel, arguments: TrainingArguments) -> None:
    from datamap.training.lstm_model import LSTMConfig, computes_in_bfloat16

    on_cpu = arguments.device.type == "cpu"
    if arguments.bf16 and on_cpu and isinstance(model.config, LSTMConfig) and not computes_in_bfloat16():
        raise UserError("--bf16: this CPU cannot run an LSTM in bfloat16; leave --bf16 out, or use a GPU")


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    task = task_of_run(args)
    check_writable(args.output_dir)
    loaded, train, report, variability = None, None, None, None
    if args.do_train:
        loaded, train, report = training_split(args, task)
        task = loaded.task
        variability = known_variability(args, train)
        if args.enable_cartography:
            check_writable(args.cartography_output_dir)
    watches = getattr(args, "eval_strategy", "no") != "no"
    splits = evaluation_splits(args, task) if args.do_eval or watches else []
    for split in splits:
        task = split.task
        slice_columns(split.data, args.slice_by or (), f"{args.dataset} [{split.split}]")
    kept = None
    if args.filter_validation:
        kept = {split.split: set(apply_filters(split, args.filters, seed=args.seed)["id"][:]) for split in splits}
    checkpoint = checkpoint_to_resume(args, train) if train is not None else None

    from transformers import set_seed

    arguments = training_arguments(args, task)
    if args.enable_cartography and arguments.n_gpu > 1:
        from datamap.cartography.recorder import ONE_PROCESS_PER_GPU

        raise UserError(ONE_PROCESS_PER_GPU)
    set_seed(args.seed)
    sizes = {size: getattr(args, size) for size in SIZES}
    model, tokenizer = load_model(args.model, task, loaded, args.max_length, sizes)
    _check_bfloat16(model, arguments)
    for split in [*([train] if train else []), *splits]:
        split.data = split.task.match_labels(split.data, model.config, f"{args.dataset} [{split.split}]")
    args.max_length = usable_length(args.max_length, model, tokenizer)
    if "doc_stride" in task.flags:
        args.doc_stride = usable_stride(args.doc_stride, args.max_length)  # here once, not at every tokenisation
    watched = splits[0] if watches else None
    trainer = build_trainer(args, task, arguments, model, tokenizer, train, watched, variability, checkpoint)

    identities = [split.identity() for split in splits]
    if train is not None:
        read = [train.identity(), *identities]
        runs: list[tuple[str, Sequence[str], list[dict[str, Any]]]] = [(args.output_dir, TRAINING_FILES, read)]
        if args.enable_cartography:
            runs.append((args.cartography_output_dir, CARTOGRAPHY_FILES, read[:1]))
        with ExitStack() as stack:
            for directory, owned, datasets in runs:
                run = stage(directory, args, owns=owned, inputs=inputs_of(args), datasets=datasets,
                            resume=bool(checkpoint))
                stack.enter_context(run)
            if report is not None and is_main_process():
                write_json(Path(args.output_dir) / "filter_report.json", report)
            train_model(trainer, args, checkpoint)
    if args.do_eval:
        # A run of its own: when it fails, the model is as whole as before.
        evaluating = {**vars(args), "do_train": False}
        with stage(args.output_dir, evaluating, owns=EVALUATION_FILES, inputs=inputs_of(args), datasets=identities):
            evaluate_model(trainer, args, splits, kept)
    if is_main_process():
        wrote = ["the model"] * args.do_train + ["metrics and predictions (eval_*)"] * args.do_eval
        wrote += ["top_epochs.json"] * bool(args.keep_top_epochs)
        print(f"wrote {', '.join(wrote)} to {args.output_dir}"
              + (f", training dynamics and cartography_map.png to {args.cartography_output_dir}"
                 if args.enable_cartography else ""))


if __name__ == "__main__":
    main()
