"""The arguments of run.py: its flags, what contradicts what, and which artifacts a run with them reads."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from datamap.analysis.filter_config import (
    MISSING,
    MISSING_HELP,
    filter_inputs,
    load_filter_config,
    reads_metrics,
    validate_config,
    with_missing,
)
from datamap.core.artifacts import recorded_dataset, recorded_task
from datamap.core.configs import with_config
from datamap.core.flags import (
    ALLOW_CHANGED,
    DEFAULT_DATASET,
    DEFAULT_MODEL,
    DEFAULT_SEED,
    Parser,
    boolean,
    fraction,
    number,
    positive_int,
    seed_number,
)
from datamap.core.parquet import add_artifact_format
from datamap.core.plots import add_plot_format
from datamap.core.splits import PART, held_out_beside, parts_of, place_of_dataset
from datamap.tasks.base import Task
from datamap.tasks.qa_features import ABLATIONS
from datamap.tasks.registry import TASKS, add_task_flags, task_of
from datamap.training.library_flags import add_training_flags
from datamap.training.models import SCRATCH_MODELS, place_of
from datamap.training.planted import PLANTED_DATA, PLANTED_FILE, add_planting_flags, complete, plants_errors

DESCRIPTION = "Train or evaluate one model, and watch how it learns each example."
SIZES = ("hidden_size", "num_layers", "dropout", "vocab_size")
NEED_TRAINING = (
    "enable_cartography", "use_label_smoothing", "use_soft_weighting", "resume_from_checkpoint", "keep_top_epochs"
)
# A flag and the switch without which it does nothing.
NEEDS = {
    "exclude_clusters": "filter_clusters", "min_cluster_probability": "filter_clusters",
    "ambiguous_top_fraction": "filter_cartography",
    "smoothing_factor": "use_label_smoothing", "weight_clip_min": "use_soft_weighting",
    "weight_clip_max": "use_soft_weighting", "eval_ablations": "do_eval", "train_ids": "do_train",
    "validation_cartography_output_dir": "filter_validation",
    "validation_cluster_assignments_path": "filter_validation",
    "max_drop_percentage": "filters", "missing": "filters", "plant_errors": "do_train", "empty_windows": "do_train",
    "plant_seed": "plant_errors", "plant_kind": "plant_errors", "plant_confusion": "plant_errors",
    "cross_fit": "enable_cartography", "cross_fit_head": "enable_cartography", "cross_fit_workers": "cross_fit",
    "mc_dropout": "cross_fit", "fold": "cross_fit", "map_split": "enable_cartography",
    "artifact_format": "enable_cartography",
}
# What a training, and what an evaluation writes into --output_dir beside the model.
EVALUATION_FILES = (
    "eval_metrics*.json", "eval_predictions*.jsonl", "slice_metrics*", "generalization.*", "confusion_matrix*",
    "misclassified*.csv", "wrong_answers*.csv", "error_counts*.csv", "eval_moved_answers*.csv",
)
TRAINING_FILES = (
    *EVALUATION_FILES, "filter_report.json", "train_metrics.json", "training_log.csv", "top_epochs.json",
    "moved_answers.csv", PLANTED_FILE, PLANTED_DATA,
    "checkpoint-[0-9]*",
)
VALIDATION_MAP, VALIDATION_CLUSTERS = "./cartography_output_validation", "./cluster_output_validation"
MIN_EPOCHS = 3  # below that the variability of an example says little

logger = logging.getLogger(__name__)


def build_parser(show_all: bool = False) -> Parser:
    """The parser of every flag; those of TrainingArguments are listed by --help only when ``show_all``."""
    parser = Parser(DESCRIPTION, script="run.py")
    parser.epilog = "The flags of transformers.TrainingArguments are accepted too (--help_all lists them)."
    parser.add_argument("--help_all", action="help", help="also list the flags of TrainingArguments")

    parser.add_argument("--config", metavar="FILE", help="JSON file of flags; those given here win over it")

    group = parser.add_argument_group("what to do")
    group.add_switch("--do_train", help="train on --train_split")
    group.add_switch("--do_eval", help="evaluate on --eval_split (after training, if both)")
    add_task_flags(group)
    group.add_argument("--model", default=DEFAULT_MODEL,
                       help="Hub name, directory written by run.py, minilm (six layers, pretrained, an extra), or one "
                            "trained from scratch: tiny (a small ELECTRA, any task), lstm or lstm_reader (nli, "
                            "classification)")
    group.add_argument("--output_dir", default="./trainer_output", help="model, metrics, predictions go here")
    add_plot_format(group)
    group.add_argument("--overwrite", "--overwrite_output_dir", nargs="?", const=True, default=False, type=boolean,
                       metavar="true|false",
                       help="replace what another run left in --output_dir (checkpoints, model) and its data map")
    group.add_argument("--resume_from_checkpoint", nargs="?", const="last", metavar="DIR",
                       help="go on from a checkpoint; without a value from the last whole one in --output_dir")
    group.add_argument("--keep_top_epochs", type=positive_int, metavar="N",
                       help="evaluate every epoch, keep the checkpoints of the best N, load the best at the end")
    group.add_argument("--seed", type=seed_number, default=DEFAULT_SEED, help="of weights, shuffling and filters")
    group.add_switch("--no_cuda", help="train on the CPU, the same as --use_cpu")

    _add_size_flags(parser)

    group = parser.add_argument_group("data")
    group.add_argument("--dataset",
                       help="Hub name or name:subset, file (.json .jsonl .csv .tsv .parquet .pkl), directory or demo: "
                            f"(default: what --model was trained on by run.py, else {DEFAULT_DATASET})")
    group.add_argument("--train_split", default="train", help="split to train on")
    _add_evaluated_data(group)
    group.add_argument("--max_train_samples", type=positive_int, metavar="N", help="first N rows, before any filter")
    group.add_argument("--max_eval_samples", type=positive_int, metavar="N", help="the first N rows")
    add_planting_flags(group)
    group.add_argument("--max_length", type=positive_int, default=512, help="longest window or text, in tokens")
    group.add_argument("--doc_stride", type=positive_int, default=128, metavar="N",
                       help="tokens that consecutive windows share, at most half of --max_length")
    group.add_argument("--empty_windows", type=fraction, default=argparse.SUPPRESS, metavar="SHARE",
                       help="of the windows that hold no answer, though their question has one elsewhere, train on "
                       "this share, drawn by --seed: of long documents nearly all are such (default: 1)")
    group.add_argument("--max_answer_length", type=positive_int, metavar="N",
                       help="longest predicted answer in tokens (default: no limit)")
    group.add_argument("--ablations", choices=ABLATIONS, default="none",
                       help="input for training and evaluation: q_only hides the context, p_only the question")
    group.add_list("--eval_ablations", choices=ABLATIONS, help="evaluate the one model under each of these")

    _add_cartography_flags(parser)

    group = parser.add_argument_group("which examples to train on")
    group.add_switch("--filter_cartography", help="of the ambiguous examples keep only the most unstable")
    group.add_argument("--ambiguous_top_fraction", type=fraction, default=0.33, help="how many of them, 0..1")
    group.add_list("--filter_categories", choices=("easy", "ambiguous", "hard"), help="keep only these categories")
    group.add_switch("--filter_clusters", help="leave clusters out")
    group.add_argument("--cluster_assignments_path", default="./cluster_output", metavar="DIR",
                       help="what cluster_analysis.py wrote")
    group.add_list("--exclude_clusters", type=int, default=[-1], help='clusters to leave out, such as "-1,3,5"')
    group.add_argument("--min_cluster_probability", type=fraction, help="keep only members at least this sure, 0..1")
    group.add_switch("--filter_random", help="size-matched control: as many as the other filters (or --train_ids) "
                     "leave, drawn at random")
    group.add_argument("--filter_config", metavar="FILE", help="JSON of filter blocks instead of the switches above")
    group.add_switch("--allow_changed", default=argparse.SUPPRESS, help=ALLOW_CHANGED)
    group.add_argument("--missing", choices=MISSING, default=argparse.SUPPRESS, help=MISSING_HELP)
    group.add_argument("--train_ids", metavar="FILE", help="train on the ids of this CSV only")
    group.add_switch("--filter_validation", help="report the evaluation of the examples that the filters keep too "
                     "(eval_filtered_*); map and clusters are those of the next two")
    group.add_argument("--validation_cartography_output_dir", default=argparse.SUPPRESS, metavar="DIR",
                       help=f"map of what is evaluated, read by these filters (default: {VALIDATION_MAP})")
    group.add_argument("--validation_cluster_assignments_path", default=argparse.SUPPRESS, metavar="DIR",
                       help=f"its clusters (default: {VALIDATION_CLUSTERS})")
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
    return parser


def _add_cartography_flags(parser: Parser) -> None:
    group = parser.add_argument_group("cartography")
    group.add_switch("--enable_cartography", help="record training dynamics")
    group.add_argument("--cartography_output_dir", default="./cartography_output", metavar="DIR",
                       help="written with --enable_cartography, else read by filters and curriculum")
    group.add_argument("--confidence_type", choices=("geometric", "product", "mean"), default="geometric",
                       help="how p(start) and p(end) become one confidence")
    add_artifact_format(group, "form of the training dynamics and the metrics")
    group.add_argument("--map_split", default=argparse.SUPPRESS, metavar="NAME|FILE",
                       help="also record a map of a split that is not trained on, or of a file: evaluated after each "
                            "epoch, written to DIR_NAME beside the DIR of --cartography_output_dir (with "
                            "--max_eval_samples of its first rows)")
    _add_fold_flags(group)


def _add_evaluated_data(group: Any) -> None:
    group.add_list("--eval_split", help="one or several splits to evaluate on (default: validation, or what stands "
                   "for it); the first is watched during training")
    group.add_argument("--eval_fraction", type=lambda text: number(text, 0.001, 0.9), default=argparse.SUPPRESS,
                       metavar="SHARE", help="hold this share of --train_split out and evaluate on it: the same "
                       "examples whatever --seed; those with one context (else: one first text) stay together")
    group.add_list("--slice_by", help="columns: evaluate every value of each on its own too, and every combination")
    group.add_argument("--cluster_by", metavar="COLUMN", default=argparse.SUPPRESS, help="of the evaluated data: "
                       "examples that share its value go together in the intervals of slices and the halves of SQuAD "
                       "2.0; none: each by itself (default: context for questions, else none)")


def _add_size_flags(parser: Parser) -> None:
    group = parser.add_argument_group("size of a model trained from scratch (default: its own)")
    group.add_argument("--hidden_size", type=positive_int, metavar="N", help="width of its vectors")
    group.add_argument("--num_layers", type=positive_int, metavar="N", help="layers one above the other")
    group.add_argument("--dropout", type=fraction, help="probability that a number is left out in training, 0..1")
    group.add_argument("--vocab_size", type=positive_int, metavar="N", help="most words that its tokenizer knows")


def _add_fold_flags(group: Any) -> None:
    """Absent from the namespace unless given: runs without them are what they were."""
    group.add_argument("--cross_fit", type=number_of_folds, metavar="K", default=argparse.SUPPRESS,
                       help="also train K models (at least 2), each without its fold of what is trained on, and write "
                            "what they say of it as out_of_fold.csv (costs K - 1 times the training)")
    group.add_argument("--cross_fit_workers", type=positive_int, metavar="N", default=argparse.SUPPRESS,
                       help="folds that are trained at a time, each in a process (default: 1)")
    group.add_argument("--mc_dropout", type=positive_int, metavar="T", default=argparse.SUPPRESS,
                       help="with --cross_fit: at the end, T more passes over the held-out fold with dropout on")
    group.add_switch("--cross_fit_head", default=argparse.SUPPRESS,
                     help="write out_of_fold.csv in seconds: only a linear head is trained without each fold, on "
                          "vectors of --model as it is before training (labels only)")
    group.add_argument("--fold", type=positive_int, metavar="K", default=argparse.SUPPRESS,
                       help="used by --cross_fit itself: train without this fold and record only that")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    tokens = sys.argv[1:] if argv is None else argv
    parser = build_parser("--help_all" in [str(token).replace("-", "_").replace("__", "--", 1) for token in tokens])
    args = parser.parse_args(with_config(parser, tokens))
    args.task = task_of_run(args).name
    _check_arguments(parser, args)
    if plants_errors(args):
        complete(args)
    place_of(args.model)  # says at once where its package is not installed
    args.windows = [args.max_length, args.doc_stride]  # as asked; what the model cannot take is lowered later
    recorded = recorded_dataset(args.model) if Path(args.model).is_dir() else None
    if args.dataset is None:
        args.dataset = recorded["dataset"] if recorded else DEFAULT_DATASET
    _name_parts(args, recorded)
    if args.do_train and Path(args.dataset).resolve() == (Path(args.output_dir) / PLANTED_DATA).resolve():
        parser.error(f"--dataset {args.dataset} lies in --output_dir, whose old files a training replaces; name "
                     "another --output_dir")
    return args


def _name_parts(args: argparse.Namespace, recorded: Mapping[str, Any] | None) -> None:
    """--eval_fraction as --train_split and --eval_split, which every later stage goes by; what was held out of the
    training of --model is evaluated on unless another split is named."""
    if hasattr(args, "eval_fraction") and not PART.fullmatch(args.train_split):  # else a fold, whose parts are named
        args.train_split, held_out = parts_of(args.train_split, args.eval_fraction)
        args.eval_split = [held_out]
    trained_on = args.train_split
    if not args.do_train and recorded and place_of_dataset(args.dataset) == recorded["dataset"]:
        trained_on = recorded["split"]
    if not args.eval_split and (rest := held_out_beside(trained_on)):
        args.eval_split = [rest]


def task_of_run(args: argparse.Namespace) -> Task:
    """What the flags say of the task, where they are silent what the model was trained for."""
    return task_of(args, recorded_task(args.model) if Path(args.model).is_dir() else None)


def _check_arguments(parser: Parser, args: argparse.Namespace) -> None:
    switched = _switched_filters(args)
    if args.filter_config and set(switched) - {"random"}:
        parser.error("--filter_config and the filter switches exclude each other; put all blocks into the file")
    filters = (load_filter_config(args.filter_config) if args.filter_config else {}) | switched
    args.filters = with_missing(filters, getattr(args, "missing", None))
    for refused, why in _refusals(parser, args):
        if refused:
            parser.error(why)
    if args.filters:
        validate_config(args.filters, is_selection=bool(args.train_ids))
    if args.keep_top_epochs:
        _evaluate_and_save_every_epoch(parser, args)
    if args.slice_by and not (args.do_eval or getattr(args, "eval_strategy", "no") != "no"):
        parser.error("--slice_by does nothing without an evaluation: add --do_eval")
    if hasattr(args, "cluster_by") and not (args.do_eval or getattr(args, "eval_strategy", "no") != "no"):
        parser.error("--cluster_by does nothing without an evaluation: add --do_eval")
    if args.enable_cartography:
        curriculum = args.use_label_smoothing or args.use_soft_weighting
        read = [args.filters, *([evaluation_filters(args)] if args.filter_validation else [])]
        if curriculum or any(reads_metrics(each, args.cartography_output_dir) for each in read):
            parser.error(f"--enable_cartography would write {args.cartography_output_dir}, which a filter or the "
                         "curriculum reads in the same run; train without --enable_cartography, or let a "
                         "--filter_config read another directory")
        short = getattr(args, "num_train_epochs", 3) < MIN_EPOCHS and getattr(args, "max_steps", -1) < 0
        if short and not hasattr(args, "fold"):  # said of the run that it is for
            logger.warning(f"cartography over fewer than {MIN_EPOCHS} epochs: variability will say little")


def _refusals(parser: Parser, args: argparse.Namespace) -> Iterator[tuple[Any, str]]:
    """Whether the flags contradict each other in one way, and how to say it; one way after the other."""
    given = {flag for flag in vars(args) if getattr(args, flag) != parser.get_default(flag)}
    low, high = args.weight_clip_min, args.weight_clip_max
    yield not (args.do_train or args.do_eval), "nothing to do: give --do_train, --do_eval or both"
    for flag in NEED_TRAINING:
        yield getattr(args, flag) and not args.do_train, f"--{flag} needs --do_train"
    for flag in sorted({flag for each in TASKS.values() for flag in each.flags} - set(TASKS[args.task].flags)):
        kinds = " or ".join(name for name, each in TASKS.items() if flag in each.flags)
        yield flag in given, f"--{flag} is for --task {kinds}, this is {args.task}"
    splits = args.eval_split or []
    yield len(set(splits)) < len(splits), f"--eval_split names a split twice: {', '.join(splits)}"
    yield (splits and hasattr(args, "eval_fraction"),
           "--eval_split and --eval_fraction exclude each other: the second evaluates on what it holds out")
    yield low > high, f"--weight_clip_min {low:g} is above --weight_clip_max {high:g}"
    yield high <= 0, f"--weight_clip_max must be above 0, found {high:g}"
    yield from _refusals_of_folds(args, given)
    yield (args.resume_from_checkpoint and args.overwrite,
           "--resume_from_checkpoint and --overwrite exclude each other")
    for flag in ("num_train_epochs", "learning_rate"):
        yield getattr(args, flag, 1) < 0, f"--{flag} must not be negative, found {getattr(args, flag, 1):g}"
    for flag in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        yield getattr(args, flag, 1) < 1, f"--{flag} must be at least 1, found {getattr(args, flag, 1)}"
    yield (args.filter_validation and not (set(args.filters) - {"random"} and args.do_eval),
           "--filter_validation needs a filter and --do_eval")
    yield (args.filters and not (args.do_train or args.filter_validation),
           "filters choose what to train on: add --do_train, or --filter_validation")
    for flag, switch in NEEDS.items():
        lacking = "a filter" if switch == "filters" else f"--{switch}"
        yield flag in given and not getattr(args, switch, None), f"--{flag} does nothing without {lacking}"
    yield ("plant_confusion" in given and getattr(args, "plant_kind", "") != "confusion",
           "--plant_confusion is for --plant_kind confusion")
    scratch = args.model in SCRATCH_MODELS
    yield scratch and not args.do_train, f"--model {args.model} is trained from scratch: add --do_train"
    for size in SIZES:
        yield (size in given and not scratch,
               f"--{size} is for models trained from scratch ({', '.join(SCRATCH_MODELS)})")


def _refusals_of_folds(args: argparse.Namespace, given: Set[str]) -> Iterator[tuple[Any, str]]:
    head = getattr(args, "cross_fit_head", False)
    yield head and "cross_fit" in given, "--cross_fit and --cross_fit_head exclude each other: they write one file"
    yield (head and args.task == "qa",
           "--cross_fit_head is for labels, which a head can tell from one vector; for questions there is --cross_fit")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    yield ((head or "cross_fit" in given) and processes > 1,
           f"--cross_fit{'_head' * head} is for one process, this is one of {processes}: start run.py without a "
           "launcher; --cross_fit_workers trains several folds at a time")
    yield ("cross_fit" in given and getattr(args, "lr_scheduler_type", "") == "reduce_lr_on_plateau",
           "--cross_fit and --lr_scheduler_type reduce_lr_on_plateau exclude each other: folds are not evaluated")
    yield getattr(args, "fold", 1) > getattr(args, "cross_fit", 1), "--fold is one of the folds of --cross_fit"


def number_of_folds(text: str) -> int:
    value = positive_int(text)
    if value < 2:
        raise argparse.ArgumentTypeError("expected at least 2 folds, one to learn from and one to judge, found 1")
    return value


def _evaluate_and_save_every_epoch(parser: Parser, args: argparse.Namespace) -> None:
    for name in ("eval_strategy", "save_strategy"):
        if getattr(args, name, "epoch") != "epoch":
            parser.error(f"--keep_top_epochs needs --{name} epoch, found {getattr(args, name)}")
        setattr(args, name, "epoch")
    if getattr(args, "save_total_limit", None):
        parser.error("--keep_top_epochs and --save_total_limit exclude each other: the first says what is kept")
    if not getattr(args, "load_best_model_at_end", True):
        parser.error("--keep_top_epochs loads the best epoch at the end; leave --load_best_model_at_end out")
    args.load_best_model_at_end = True


def map_split_dir(args: argparse.Namespace) -> str | None:
    """Where the map of --map_split goes; None without one."""
    if not hasattr(args, "map_split"):
        return None
    place = Path(args.cartography_output_dir)
    name = Path(args.map_split).name.partition(".")[0] if Path(args.map_split).is_file() else args.map_split
    return str(place.with_name(f"{place.name}_{name}"))


def _switched_filters(args: argparse.Namespace) -> dict[str, Any]:
    """The filter switches as a filter configuration (filter_config.py)."""
    config: dict[str, Any] = {}
    metrics = {"metrics_path": args.cartography_output_dir}
    if args.filter_cartography:
        config["ambiguous"] = {**metrics, "top_fraction": args.ambiguous_top_fraction}
    if args.filter_categories:
        config["category"] = {**metrics, "categories": args.filter_categories}
    if args.filter_clusters:
        config["cluster"] = {"cluster_path": args.cluster_assignments_path, "exclude_clusters": args.exclude_clusters}
        if args.min_cluster_probability is not None:
            config["cluster"]["min_probability"] = args.min_cluster_probability
    if args.filter_random:
        config["random"] = {}
    return config


def evaluation_filters(args: argparse.Namespace) -> dict[str, Any]:
    """What --filter_validation keeps of the evaluation data: the filters, by map and clusters of what is evaluated.

    The block ``random`` is left out: it stands for a choice of what to train on, and the run whose control it makes is
    evaluated on the same examples.
    """
    places = {"metrics_path": getattr(args, "validation_cartography_output_dir", VALIDATION_MAP),
              "cluster_path": getattr(args, "validation_cluster_assignments_path", VALIDATION_CLUSTERS)}
    config: dict[str, Any] = {}
    for block, value in args.filters.items():
        settings = [{name: places.get(name, setting) if setting else setting for name, setting in each.items()}
                    for each in (value if isinstance(value, list) else [value])]
        if block != "random":
            config[block] = settings if isinstance(value, list) else settings[0]
    return config


def inputs_of(args: argparse.Namespace) -> dict[str, str | None]:
    """Every artifact that a run with these arguments reads; None where it reads none of that kind."""
    inputs: dict[str, str | None] = {
        "model": args.model if Path(args.model).is_dir() else None, "train_ids": args.train_ids
    }
    if args.use_label_smoothing or args.use_soft_weighting:
        inputs["curriculum"] = args.cartography_output_dir
    if args.filter_validation:
        inputs |= {f"validation.{name}": path for name, path in filter_inputs(evaluation_filters(args)).items()}
    return inputs | filter_inputs(args.filters, is_selection=bool(args.train_ids))
