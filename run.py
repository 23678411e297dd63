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

from artifacts import check_writable, recorded_dataset, recorded_task, stage, write_csv, write_json, write_jsonl
from checkpoints import checkpoint_to_resume
from dataset_cartography import CARTOGRAPHY_FILES, ONE_PROCESS_PER_GPU
from dataset_filters import apply_filters, load_filter_config, validate_config
from helpers import (
    DEFAULT_DATASET,
    DEFAULT_MODEL,
    DEFAULT_SEED,
    Parser,
    Split,
    UserError,
    boolean,
    command_line,
    fraction,
    is_main_process,
    number,
    positive_int,
    seed_number,
)
from models import SCRATCH_MODELS, learning_rate_of, load_model, usable_length, usable_stride
from plotting import dataset_label
from qa_features import ABLATIONS
from slices import (
    OVERALL,
    generalization_table,
    plot_generalization,
    printed,
    rate_name,
    slice_columns,
    slice_table,
)
from tasks import TASKS, Task, add_task_flags, task_of
from training_data import evaluation_splits, known_variability, training_split
from training_flags import add_training_flags, given_training_flags

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from trainers import CartographyTrainer

EVALUATION_FILES = (
    "eval_metrics*.json", "eval_predictions*.jsonl", "slice_metrics*", "generalization.*", "confusion_matrix*",
    "misclassified*.csv",
)  # fmt: skip
TRAINING_FILES = (
    *EVALUATION_FILES, "filter_report.json", "train_metrics.json", "top_epochs.json", "checkpoint-[0-9]*",
)  # fmt: skip
SIZES = ("hidden_size", "num_layers", "dropout", "vocab_size")
# A flag and the switch without which it does nothing.
NEEDS = {
    "exclude_clusters": "filter_clusters", "min_cluster_probability": "filter_clusters",
    "cluster_assignments_path": "filter_clusters", "ambiguous_top_fraction": "filter_cartography",
    "smoothing_factor": "use_label_smoothing", "weight_clip_min": "use_soft_weighting",
    "weight_clip_max": "use_soft_weighting", "eval_ablations": "do_eval", "train_ids": "do_train",
    "max_drop_percentage": "filters",
}  # fmt: skip
MIN_EPOCHS = 3  # below that the variability of an example says little

logger = logging.getLogger(__name__)


# --- arguments ---------------------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    show_all = "--help_all" in [str(token).replace("-", "_").replace("__", "--", 1) for token in argv or sys.argv[1:]]
    parser = Parser((__doc__ or "").split("\n")[0])
    parser.epilog = "The flags of transformers.TrainingArguments are accepted too (--help_all lists them)."
    parser.add_argument("--help_all", action="help", help="also list the flags of TrainingArguments")

    group = parser.add_argument_group("what to do")
    group.add_switch("--do_train", help="train on --train_split")
    group.add_switch("--do_eval", help="evaluate on --eval_split (after training, if both)")
    add_task_flags(group)
    group.add_argument("--model", default=DEFAULT_MODEL,
                       help="Hub name, directory written by run.py, or one trained from scratch: tiny (a small "
                            "ELECTRA, any task), lstm or lstm_reader (nli, classification)")
    group.add_argument("--output_dir", default="./trainer_output", help="model, metrics, predictions go here")
    group.add_argument("--overwrite", "--overwrite_output_dir", nargs="?", const=True, default=False, type=boolean,
                       metavar="true|false",
                       help="delete the checkpoints of an unfinished run in --output_dir and start again")
    group.add_argument("--resume_from_checkpoint", nargs="?", const="last", metavar="DIR",
                       help="go on from a checkpoint; without a value from the last whole one in --output_dir")
    group.add_argument("--keep_top_epochs", type=positive_int, metavar="N",
                       help="evaluate every epoch, keep the checkpoints of the best N, load the best at the end")
    group.add_argument("--seed", type=seed_number, default=DEFAULT_SEED, help="of weights, shuffling and filters")
    group.add_switch("--no_cuda", help="train on the CPU, the same as --use_cpu")

    group = parser.add_argument_group("size of a model trained from scratch (default: its own)")
    group.add_argument("--hidden_size", type=positive_int, metavar="N", help="width of its vectors")
    group.add_argument("--num_layers", type=positive_int, metavar="N", help="layers one above the other")
    group.add_argument("--dropout", type=fraction, help="probability that a number is left out in training, 0..1")
    group.add_argument("--vocab_size", type=positive_int, metavar="N", help="most words that its tokenizer knows")

    group = parser.add_argument_group("data")
    group.add_argument("--dataset",
                       help="Hub name or name:subset, file (.json .jsonl .csv .parquet), directory, or demo:NAME "
                            f"(default: what --model was trained on by run.py, else {DEFAULT_DATASET})")
    group.add_argument("--train_split", default="train", help="split to train on")
    group.add_list("--eval_split", help="one or several splits to evaluate on (default: validation, or what stands "
                   "for it); the first is watched during training")
    group.add_list("--slice_by", help="columns: evaluate every value of each on its own too, and every combination")
    group.add_argument("--max_train_samples", type=positive_int, metavar="N", help="first N rows, before any filter")
    group.add_argument("--max_eval_samples", type=positive_int, metavar="N", help="the first N rows")
    group.add_argument("--max_length", type=positive_int, default=512, help="longest window or text, in tokens")
    group.add_argument("--doc_stride", type=positive_int, default=128, metavar="N",
                       help="tokens that consecutive windows share, at most half of --max_length")
    group.add_argument("--max_answer_length", type=positive_int, metavar="N",
                       help="longest predicted answer in tokens (default: no limit)")
    group.add_argument("--ablations", choices=ABLATIONS, default="none",
                       help="input for training and evaluation: q_only hides the context, p_only the question")
    group.add_list("--eval_ablations", choices=ABLATIONS, help="evaluate the one model under each of these")

    group = parser.add_argument_group("cartography")
    group.add_switch("--enable_cartography", help="record training dynamics")
    group.add_argument("--cartography_output_dir", default="./cartography_output", metavar="DIR",
                       help="written with --enable_cartography, else read by filters and curriculum")
    group.add_argument("--confidence_type", choices=("geometric", "product", "mean"), default="geometric",
                       help="how p(start) and p(end) become one confidence")

    group = parser.add_argument_group("which examples to train on")
    group.add_switch("--filter_cartography", help="of the ambiguous examples keep only the most unstable")
    group.add_argument("--ambiguous_top_fraction", type=fraction, default=0.33, help="how many of them, 0..1")
    group.add_list("--filter_categories", choices=("easy", "ambiguous", "hard"), help="keep only these categories")
    group.add_switch("--filter_clusters", help="leave clusters out")
    group.add_argument("--cluster_assignments_path", default="./cluster_output", metavar="DIR",
                       help="what cluster_analysis.py wrote")
    group.add_list("--exclude_clusters", type=int, default=[-1], help='clusters to leave out, such as "-1,3,5"')
    group.add_argument("--min_cluster_probability", type=fraction, help="keep only members at least this sure, 0..1")
    group.add_switch("--filter_random", help="size-matched control: as many as the other filters keep, at random")
    group.add_argument("--filter_config", metavar="FILE", help="JSON of filter blocks instead of the switches above")
    group.add_argument("--train_ids", metavar="FILE", help="train on the ids of this CSV only")
    group.add_switch("--filter_validation", help="apply the filters to the evaluation data too and report both "
                     "(files that filters read must then hold the evaluation ids)")
    group.add_argument("--max_drop_percentage", type=lambda text: number(text, 0, 100), metavar="PERCENT",
                       help="refuse to drop more than this, 0..100 (default: no limit)")

    group = parser.add_argument_group("curriculum (reads --cartography_output_dir)")
    group.add_switch("--use_label_smoothing", help="smooth the labels of variable examples")
    group.add_argument("--smoothing_factor", type=lambda text: number(text, 0), default=0.6,
                       help="times variability, at most 0.3, is the smoothing")
    group.add_switch("--use_soft_weighting", help="weight the loss of an example by its variability")
    group.add_argument("--weight_clip_min", type=lambda text: number(text, 0), default=0.1, help="smallest weight")
    group.add_argument("--weight_clip_max", type=lambda text: number(text, 0), default=10.0, help="largest weight")
    add_training_flags(parser, show_all)

    args = parser.parse_args(argv)
    args.task = _task(args).name
    _check_arguments(parser, args)
    args.windows = [args.max_length, args.doc_stride]  # as asked; what the model cannot take is lowered later
    if args.dataset is None:
        recorded = recorded_dataset(args.model) if Path(args.model).is_dir() else None
        args.dataset = recorded["dataset"] if recorded else DEFAULT_DATASET
    return args


def _task(args: argparse.Namespace) -> Task:
    return task_of(args, recorded_task(args.model) if Path(args.model).is_dir() else None)


def _check_arguments(parser: Parser, args: argparse.Namespace) -> None:
    if not (args.do_train or args.do_eval):
        parser.error("nothing to do: give --do_train, --do_eval or both")
    for flag in ("enable_cartography", "use_label_smoothing", "use_soft_weighting", "resume_from_checkpoint"):
        if getattr(args, flag) and not args.do_train:
            parser.error(f"--{flag} needs --do_train")
    for flag in sorted({flag for each in TASKS.values() for flag in each.flags} - set(TASKS[args.task].flags)):
        if getattr(args, flag) != parser.get_default(flag):
            kinds = " or ".join(name for name, each in TASKS.items() if flag in each.flags)
            parser.error(f"--{flag} is for --task {kinds}, this is {args.task}")
    if args.eval_split and len(set(args.eval_split)) < len(args.eval_split):
        parser.error(f"--eval_split names a split twice: {', '.join(args.eval_split)}")
    if args.keep_top_epochs:
        _evaluate_and_save_every_epoch(parser, args)
    if args.filter_config and _switched_filters(args):
        parser.error("--filter_config and the filter switches exclude each other; put all blocks into the file")
    if args.weight_clip_min > args.weight_clip_max:
        parser.error(f"--weight_clip_min {args.weight_clip_min:g} is above --weight_clip_max {args.weight_clip_max:g}")
    if args.resume_from_checkpoint and args.overwrite:
        parser.error("--resume_from_checkpoint and --overwrite exclude each other")
    for name in ("num_train_epochs", "learning_rate"):
        if getattr(args, name, 1) < 0:
            parser.error(f"--{name} must not be negative, found {getattr(args, name):g}")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name} must be at least 1, found {getattr(args, name)}")
    args.filters = load_filter_config(args.filter_config) if args.filter_config else _switched_filters(args)
    if args.filters:
        validate_config(args.filters)
    if args.filter_validation and not (args.filters and args.do_eval):
        parser.error("--filter_validation needs a filter and --do_eval")
    if args.filters and not (args.do_train or args.filter_validation):
        parser.error("filters choose what to train on: add --do_train, or --filter_validation")
    if args.weight_clip_max <= 0:
        parser.error(f"--weight_clip_max must be above 0, found {args.weight_clip_max:g}")
    for flag, switch in NEEDS.items():
        if getattr(args, flag) != parser.get_default(flag) and not getattr(args, switch):
            parser.error(f"--{flag} does nothing without " + ("a filter" if switch == "filters" else f"--{switch}"))
    if args.model in SCRATCH_MODELS and not args.do_train:
        parser.error(f"--model {args.model} is trained from scratch: add --do_train")
    for size in SIZES:
        if getattr(args, size) is not None and args.model not in SCRATCH_MODELS:
            parser.error(f"--{size} is for models trained from scratch ({', '.join(SCRATCH_MODELS)})")
    if args.slice_by and not (args.do_eval or args.keep_top_epochs or getattr(args, "eval_strategy", "no") != "no"):
        parser.error("--slice_by does nothing without an evaluation: add --do_eval")
    if args.enable_cartography:
        _check_not_read_and_written(parser, args)
        if getattr(args, "num_train_epochs", 3) < MIN_EPOCHS and getattr(args, "max_steps", -1) < 0:
            logger.warning(f"cartography over fewer than {MIN_EPOCHS} epochs: variability will say little")


def _evaluate_and_save_every_epoch(parser: Parser, args: argparse.Namespace) -> None:
    if not args.do_train:
        parser.error("--keep_top_epochs needs --do_train")
    for name in ("eval_strategy", "save_strategy"):
        if getattr(args, name, "epoch") != "epoch":
            parser.error(f"--keep_top_epochs needs --{name} epoch, found {getattr(args, name)}")
        setattr(args, name, "epoch")
    if getattr(args, "save_total_limit", None):
        parser.error("--keep_top_epochs and --save_total_limit exclude each other: the first says what is kept")
    if not getattr(args, "load_best_model_at_end", True):
        parser.error("--keep_top_epochs loads the best epoch at the end; leave --load_best_model_at_end out")
    args.load_best_model_at_end = True


def _check_not_read_and_written(parser: Parser, args: argparse.Namespace) -> None:
    written = Path(args.cartography_output_dir).resolve()
    reads = args.use_label_smoothing or args.use_soft_weighting
    for settings in args.filters.values():
        for block in settings if isinstance(settings, list) else [settings]:
            path = block.get("metrics_path")
            reads = reads or (path is not None and Path(path).resolve() in (written, *written.glob("*")))
    if reads:
        parser.error(
            f"--enable_cartography would write {args.cartography_output_dir}, which a filter or the curriculum reads "
            "in the same run; train without --enable_cartography, or let a --filter_config read another directory"
        )


def _switched_filters(args: argparse.Namespace) -> dict[str, Any]:
    """The filter switches as a filter configuration (dataset_filters.py)."""
    config: dict[str, Any] = {}
    metrics = {"metrics_path": args.cartography_output_dir}
    if args.filter_cartography:
        config["ambiguous"] = {**metrics, "top_fraction": args.ambiguous_top_fraction}
    if args.filter_categories:
        config["category"] = {**metrics, "categories": args.filter_categories}
    if args.filter_clusters:
        config["cluster"] = {
            "cluster_path": args.cluster_assignments_path, "exclude_clusters": args.exclude_clusters
        }  # fmt: skip
        if args.min_cluster_probability is not None:
            config["cluster"]["min_probability"] = args.min_cluster_probability
    if args.filter_random:
        config["random"] = {}
    return config


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
        )  # fmt: skip
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

    from reporting import EvaluationCallback, ProgressBar, StatusCallback
    from trainers import CartographyTrainer, PadToLongest, smoothing_of, weights_of
    from training_dynamics import CartographyCallback

    features, dynamics, smoothing, weights = None, None, None, None
    if train is not None:
        features = task.features(train.data, tokenizer, args.max_length, args.doc_stride, args.ablations)
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
            )  # fmt: skip
    evaluation = None
    if watched is not None:
        windows = watched.task.features(watched.data, tokenizer, args.max_length, args.doc_stride, args.ablations)
        evaluation = watched.task.evaluation(watched.data, windows)
    trainer = CartographyTrainer(
        model=model, args=arguments, train_dataset=features, processing_class=tokenizer,
        eval_dataset=evaluation and evaluation.features, compute_metrics=evaluation,
        data_collator=PadToLongest(tokenizer, task, 8 if arguments.bf16 or arguments.fp16 else 1),
        task=task, dynamics=dynamics, smoothing=smoothing, weights=weights,
    )  # fmt: skip
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
                               args.keep_top_epochs or 0, _title(args, watched))  # fmt: skip
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
        write_json(Path(args.output_dir) / "train_metrics.json", metrics)


def evaluate_split(
    trainer: CartographyTrainer, args: argparse.Namespace, split: Split, suffix: str, kept: set[str] | None
) -> pd.DataFrame:
    """Evaluate one split under each ablation: metrics, predictions and slices to files, the console and the trackers.

    Metrics under the training's own ablation are ``eval_*``. suffix: of the file names. kept: ids whose metrics are
    reported as ``eval_filtered_*`` beside those of all. Returns the table of slices, at least its row ``overall``.
    """
    import pandas as pd

    from reporting import print_metrics, quality, tracked, write_slices

    output, table = Path(args.output_dir), pd.DataFrame()
    metrics: dict[str, float] = {}
    values = slice_columns(split.data, args.slice_by or (), f"{args.dataset} [{split.split}]")
    for ablation in args.eval_ablations or [args.ablations]:
        tokenizer, task = trainer.processing_class, split.task
        features = task.features(split.data, tokenizer, args.max_length, args.doc_stride, ablation)
        evaluation = task.evaluation(split.data, features)
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
        )  # fmt: skip


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    task = _task(args)
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
        raise UserError(ONE_PROCESS_PER_GPU)
    set_seed(args.seed)
    sizes = {size: getattr(args, size) for size in SIZES}
    model, tokenizer = load_model(args.model, task, loaded, args.max_length, sizes)
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
                run = stage(directory, args, owns=owned, inputs=_inputs(args), datasets=datasets,
                            resume=bool(checkpoint))  # fmt: skip
                stack.enter_context(run)
            if report is not None and is_main_process():
                write_json(Path(args.output_dir) / "filter_report.json", report)
            train_model(trainer, args, checkpoint)
    if args.do_eval:
        # A run of its own: when it fails, the model is as whole as before.
        evaluating = {**vars(args), "do_train": False}
        with stage(args.output_dir, evaluating, owns=EVALUATION_FILES, inputs=_inputs(args), datasets=identities):
            evaluate_model(trainer, args, splits, kept)
    if is_main_process():
        wrote = ["the model"] * args.do_train + ["metrics and predictions (eval_*)"] * args.do_eval
        wrote += ["top_epochs.json"] * bool(args.keep_top_epochs)
        print(f"wrote {', '.join(wrote)} to {args.output_dir}"
              + (f", training dynamics and cartography_map.png to {args.cartography_output_dir}"
                 if args.enable_cartography else ""))


def _inputs(args: argparse.Namespace) -> dict[str, str | None]:
    """Every artifact that this run reads."""
    inputs = {"model": args.model if Path(args.model).is_dir() else None, "train_ids": args.train_ids}
    if args.use_label_smoothing or args.use_soft_weighting:
        inputs["curriculum"] = args.cartography_output_dir
    for each in validate_config(args.filters) if args.filters else ():
        for setting in ("metrics_path", "cluster_path", "predictions_path"):
            if path := getattr(each, setting, None):
                inputs[f"{each.block}.{setting}"] = str(path)
    return inputs


if __name__ == "__main__":
    main()
