"""Train or evaluate one model, and watch how it learns each example.

Reads a dataset, and the cartography, cluster or id files that filters and curriculum name. Writes the model, metrics
and predictions to --output_dir, and with --enable_cartography the training dynamics and the data map.

    python run.py --do_train --do_eval --enable_cartography --num_train_epochs 5 --output_dir ./trainer_output
    python run.py --do_train --do_eval --enable_cartography --model tiny --dataset demo:clinical --max_length 128 \\
        --doc_stride 32 --num_train_epochs 5 --no_cuda          (a minute on a laptop)
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from artifacts import (
    artifact_file,
    check_same_dataset,
    check_whole_model,
    check_writable,
    model_meta,
    read_table,
    recorded_dataset,
    stage,
    write_json,
    write_jsonl,
)
from dataset_cartography import CARTOGRAPHY_FILES, ONE_PROCESS_PER_GPU, load_cartography_metrics
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
    load_split,
    name_a_few,
    number,
    positive_int,
    seed_number,
)
from plotting import dataset_label
from tasks import ABLATIONS, TASKS, QuestionAnswering, get_task
from training_flags import add_training_flags, given_training_flags

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from trainers import CartographyTrainer

EVALUATION_FILES = ("eval_metrics.json", "eval_predictions*.jsonl")
TRAINING_FILES = (*EVALUATION_FILES, "filter_report.json", "train_metrics.json", "checkpoint-[0-9]*")
SCRATCH_MODELS = ("tiny",)
# A flag and the switch without which it does nothing.
NEEDS = {
    "exclude_clusters": "filter_clusters", "min_cluster_probability": "filter_clusters",
    "cluster_assignments_path": "filter_clusters", "ambiguous_top_fraction": "filter_cartography",
    "smoothing_factor": "use_label_smoothing", "weight_clip_min": "use_soft_weighting",
    "weight_clip_max": "use_soft_weighting", "eval_ablations": "do_eval", "train_ids": "do_train",
    "max_drop_percentage": "filters",
}  # fmt: skip
# What decides which rows are trained on in which order, and what is recorded of them.
RESUMED_WITH = (
    "seed", "data_seed", "max_train_samples", "windows", "ablations", "confidence_type", "filters",
    "train_ids", "per_device_train_batch_size", "gradient_accumulation_steps",
)  # fmt: skip
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
    group.add_argument("--task", choices=list(TASKS), default="qa", help="what the model does")
    group.add_argument("--model", default=DEFAULT_MODEL,
                       help="Hub name, directory written by run.py, or tiny: a small ELECTRA trained from scratch "
                            "(learning rate 2e-3 unless given)")
    group.add_argument("--output_dir", default="./trainer_output", help="model, metrics, predictions go here")
    group.add_argument("--overwrite", "--overwrite_output_dir", nargs="?", const=True, default=False, type=boolean,
                       metavar="true|false",
                       help="delete the checkpoints of an unfinished run in --output_dir and start again")
    group.add_argument("--resume_from_checkpoint", nargs="?", const="last", metavar="DIR",
                       help="go on from a checkpoint; without a value from the last whole one in --output_dir")
    group.add_argument("--seed", type=seed_number, default=DEFAULT_SEED, help="of weights, shuffling and filters")
    group.add_switch("--no_cuda", help="train on the CPU, the same as --use_cpu")

    group = parser.add_argument_group("data")
    group.add_argument("--dataset",
                       help="Hub name or name:subset, file (.json .jsonl .csv .parquet), directory, or demo:clinical "
                            f"(default: what --model was trained on by run.py, else {DEFAULT_DATASET})")
    group.add_argument("--train_split", default="train", help="split to train on")
    group.add_argument("--eval_split", help="split to evaluate on (default: validation)")
    group.add_argument("--max_train_samples", type=positive_int, metavar="N", help="first N rows, before any filter")
    group.add_argument("--max_eval_samples", type=positive_int, metavar="N", help="the first N rows")
    group.add_argument("--max_length", type=positive_int, default=512, help="longest window in tokens")
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
    _check_arguments(parser, args)
    args.windows = [args.max_length, args.doc_stride]  # as asked; what the model cannot take is lowered later
    if args.dataset is None:
        recorded = recorded_dataset(args.model) if Path(args.model).is_dir() else None
        args.dataset = recorded["dataset"] if recorded else DEFAULT_DATASET
    return args


def _check_arguments(parser: Parser, args: argparse.Namespace) -> None:
    if not (args.do_train or args.do_eval):
        parser.error("nothing to do: give --do_train, --do_eval or both")
    for flag in ("enable_cartography", "use_label_smoothing", "use_soft_weighting", "resume_from_checkpoint"):
        if getattr(args, flag) and not args.do_train:
            parser.error(f"--{flag} needs --do_train")
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
    if args.enable_cartography:
        _check_not_read_and_written(parser, args)
        if getattr(args, "num_train_epochs", 3) < MIN_EPOCHS and getattr(args, "max_steps", -1) < 0:
            logger.warning(f"cartography over fewer than {MIN_EPOCHS} epochs: variability will say little")


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


# --- data --------------------------------------------------------------------------------------------------------


def training_split(args: argparse.Namespace, task: QuestionAnswering) -> tuple[Split, Split, dict[str, Any] | None]:
    """The training split as loaded, the same after dropping and filtering, and the report of what went and why."""
    loaded = load_split(args.dataset, args.train_split, task, args.max_train_samples)
    data, report = loaded.data, []
    aligned = task.is_aligned(data)
    if not aligned.all():
        bad = [data["id"][row] for row in np.flatnonzero(~aligned)]
        if not aligned.any():
            raise UserError(f"{args.dataset}: no answer stands at its answer_start ({name_a_few(bad)}); mend them")
        logger.warning(f"{len(bad):,} of {len(data):,} answers are not at their answer_start ({name_a_few(bad)}): "
                       "not trained on")
        report.append({"filter": "answer_offsets", "before": len(data), "after": len(data) - len(bad),
                       "removed": {"answer not at its answer_start": bad}})  # fmt: skip
        data = data.select(np.flatnonzero(aligned))
    if args.train_ids:
        before, data = data, _select_ids(data, args.train_ids, loaded)
        kept = set(data["id"][:])
        removed = [example for example in before["id"][:] if example not in kept]
        report.append({"filter": "train_ids", "before": len(before), "after": len(data),
                       "removed": {f"not in {args.train_ids}": removed}})  # fmt: skip
    used = Split(data, loaded.name, loaded.split, loaded.fingerprint, loaded.rows)
    filter_report = None
    if args.filters:
        used.data, filter_report = apply_filters(
            used, args.filters, seed=args.seed, max_drop_percentage=args.max_drop_percentage, return_report=True
        )
    if not report and filter_report is None:
        return loaded, used, None
    if len(used.data) < len(loaded.data):
        logger.info(f"training on {len(used.data):,} of {len(loaded.data):,} examples")
    filters = (filter_report or {}).get("filters", [])
    whole = {"before": len(loaded.data), "after": len(used.data)}
    return loaded, used, {**(filter_report or {}), **whole, "filters": [*report, *filters]}


def _select_ids(data: Any, path: str, split: Split) -> Any:
    wanted = read_table(artifact_file(path, "selected.csv", "select_subset.py"), columns=("id",))["id"].tolist()
    check_same_dataset(path, wanted, split)
    place = {example: row for row, example in enumerate(data["id"][:])}
    known = [place[example] for example in wanted if example in place]
    if not known:
        raise UserError(f"{path}: none of its {len(wanted):,} ids are among the examples to train on")
    if len(known) < len(wanted):
        absent = [example for example in wanted if example not in place]
        logger.warning(f"{path}: {len(absent):,} ids ({name_a_few(absent)}) are not among the training examples")
    return data.select(sorted(known))


def evaluation_split(args: argparse.Namespace, task: QuestionAnswering) -> Split:
    """The evaluation split; refused when it is the training data and --eval_split does not ask for it."""
    asked = args.eval_split is not None
    split = args.eval_split or ("train" if Path(args.dataset).is_file() else "validation")
    loaded = load_split(args.dataset, split, task, args.max_eval_samples)
    trained_on = _trained_on(args)
    if not asked and (trained_on == loaded.fingerprint or (args.do_train and split == args.train_split)):
        raise UserError(
            f"{args.dataset} [{split}] is what the model trains on, and evaluating on it needs asking: give a "
            f"directory with train.* and validation.*, or --eval_split {split}"
        )
    if trained_on == loaded.fingerprint or (args.do_train and split == args.train_split):
        logger.warning(f"evaluating on {split!r}, which the model was trained on; that says nothing of other data")
    misaligned = int((~task.is_aligned(loaded.data)).sum())
    if misaligned:
        logger.warning(f"{misaligned:,} evaluation answers are not at their answer_start; scoring uses their text")
    return loaded


def _trained_on(args: argparse.Namespace) -> str | None:
    path = Path(args.model)
    if not path.is_dir():
        return None
    meta = model_meta(path) or (model_meta(path.parent) if path.name.startswith("checkpoint-") else None)
    return meta["datasets"][0]["fingerprint"] if meta and meta.get("datasets") else None


# --- model -------------------------------------------------------------------------------------------------------


def load_model(
    args: argparse.Namespace, task: QuestionAnswering, train: Split | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    if args.model in SCRATCH_MODELS:
        import tiny_model

        split = train or load_split(args.dataset, args.train_split, task, args.max_train_samples)
        texts = (text for column in task.text_columns for text in split.data[column][:])
        tokenizer = tiny_model.train_tokenizer(texts, args.max_length)
        return tiny_model.build_model(tokenizer, task.model_class, args.max_length), tokenizer
    check_whole_model(args.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model, loading = task.model_class.from_pretrained(args.model, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model {args.model!r} cannot be loaded: give a Hub name, a directory with config.json and weights, or "
            f"{' or '.join(SCRATCH_MODELS)} ({reason:.200})"
        ) from error
    untrained = sorted(loading["missing_keys"])
    if untrained and not args.do_train:
        raise UserError(f"model {args.model!r} has no trained {untrained[0]}: train it (--do_train), or evaluate a "
                        "directory that run.py wrote")
    longest = min(getattr(model.config, "max_position_embeddings", None) or 2**31, tokenizer.model_max_length)
    if args.max_length > longest:
        logger.warning(f"--max_length lowered from {args.max_length} to {longest}: {args.model} takes no more")
        args.max_length = longest
    return model, tokenizer


def training_arguments(args: argparse.Namespace) -> TrainingArguments:
    import torch
    from transformers import TrainingArguments
    from transformers.utils import logging as transformers_logging

    given = given_training_flags(vars(args))
    given.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    if args.no_cuda:
        given["use_cpu"] = True
    if args.model in SCRATCH_MODELS:
        import tiny_model

        given.setdefault("learning_rate", tiny_model.LEARNING_RATE)
    if given.get("load_best_model_at_end") or "best" in given.get("save_strategy", "") or (
        given.get("lr_scheduler_type") == "reduce_lr_on_plateau"
    ):
        given.setdefault("metric_for_best_model", QuestionAnswering.metric)
        given.setdefault("greater_is_better", not given["metric_for_best_model"].endswith("loss"))
    if not sys.stderr.isatty():
        given.setdefault("disable_tqdm", True)
        transformers_logging.disable_progress_bar()
    try:
        return TrainingArguments(
            output_dir=args.output_dir, seed=args.seed, do_train=args.do_train, do_eval=args.do_eval,
            remove_unused_columns=False, label_names=["row_index"], **given
        )  # fmt: skip
    except (ValueError, ImportError) as error:
        raise UserError(f"training arguments: {str(error).strip().splitlines()[0]}") from error


def known_variability(args: argparse.Namespace, split: Split) -> np.ndarray | None:
    """Variability of each example for the curriculum, NaN where it has no metrics; None without a curriculum."""
    if not (args.use_label_smoothing or args.use_soft_weighting):
        return None
    metrics = load_cartography_metrics(args.cartography_output_dir)
    check_same_dataset(args.cartography_output_dir, metrics.index, split)
    variability = metrics["variability"].reindex(split.ids).to_numpy(dtype=float)
    unknown = int(np.isnan(variability).sum())
    if unknown:
        logger.warning(f"{unknown:,} of {len(variability):,} examples have no metrics: weight 1, no smoothing")
    if not np.nansum(variability):
        logger.warning(f"no example of {args.cartography_output_dir} varies: smoothing is 0 and every weight 1")
    return variability


# --- checkpoints -------------------------------------------------------------------------------------------------


def checkpoint_to_resume(args: argparse.Namespace, train: Split) -> str | None:
    """The checkpoint that --resume_from_checkpoint means; None for a fresh start, which deletes nothing unasked."""
    numbered = [path for path in Path(args.output_dir).glob("checkpoint-*") if re.fullmatch(r"\d+", path.name[11:])]
    found = sorted(numbered, key=lambda path: int(path.name[11:]))
    meta = model_meta(args.output_dir)
    if not args.resume_from_checkpoint:
        if found and not args.overwrite and (meta is None or meta["status"] != "finished"):
            raise UserError(
                f"{args.output_dir} holds {found[-1].name} of an unfinished run: go on from it with "
                "--resume_from_checkpoint, or start again with --overwrite"
            )
        return None
    if args.resume_from_checkpoint == "last":
        whole = [path for path in found if _is_whole(path, args)]
        if not whole:
            raise UserError(f"{args.output_dir} holds no whole checkpoint to resume from; start without the flag")
        if whole[-1] != found[-1]:
            logger.warning(f"{found[-1].name} is not whole, it was being written; resuming from {whole[-1].name}")
        checkpoint = whole[-1]
    else:
        checkpoint = Path(args.resume_from_checkpoint)
        if not _is_whole(checkpoint, args):
            raise UserError(f"{checkpoint} is not a whole checkpoint of such a run; name another checkpoint-N")
    for name in RESUMED_WITH:
        before, now = (meta or {}).get("arguments", {}).get(name), getattr(args, name, None)
        if meta and before != now:
            raise UserError(f"{args.output_dir} was trained with {name} {before}, not {now}: resume with the flags it "
                            "was started with")
    recorded = [identity["fingerprint"] for identity in (meta or {}).get("datasets", [])]
    if recorded and train.fingerprint not in recorded:
        raise UserError(
            f"{args.output_dir} was trained on other data than {args.dataset} [{args.train_split}]; resume with the "
            "dataset it was started with"
        )
    return str(checkpoint)


def _is_whole(checkpoint: Path, args: argparse.Namespace) -> bool:
    needed = ["trainer_state.json"] + (["training_dynamics.npz"] if args.enable_cartography else [])
    return all((checkpoint / name).exists() for name in needed)


# --- train and evaluate ------------------------------------------------------------------------------------------


def build_trainer(
    args: argparse.Namespace,
    task: QuestionAnswering,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Split | None,
    evaluation: Split | None,
    variability: np.ndarray | None,
    checkpoint: str | None,
) -> CartographyTrainer:
    from transformers import PrinterCallback

    from trainers import CartographyTrainer, PadToLongest, StatusCallback, smoothing_of, weights_of
    from training_dynamics import CartographyCallback

    features, dynamics, smoothing, weights = None, None, None, None
    if train is not None:
        features = task.features(train.data, tokenizer, args.max_length, args.doc_stride, args.ablations)
        rows = np.asarray(features["example_index"][:])
        if variability is not None and args.use_label_smoothing:
            smoothing = smoothing_of(variability, args.smoothing_factor)[rows]
        if variability is not None and args.use_soft_weighting:
            weights = weights_of(variability, args.weight_clip_min, args.weight_clip_max)[rows]
        logger.info(f"training on {len(train.data):,} examples in {len(features):,} windows")
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
    watched = None
    if evaluation is not None and arguments.eval_strategy != "no":
        windows = task.features(evaluation.data, tokenizer, args.max_length, args.doc_stride, args.ablations)
        watched = task.evaluation(evaluation.data, windows)
    trainer = CartographyTrainer(
        model=model, args=arguments, train_dataset=features, processing_class=tokenizer,
        eval_dataset=watched and watched.features, compute_metrics=watched,
        data_collator=PadToLongest(tokenizer, 8 if arguments.bf16 or arguments.fp16 else 1),
        task=task, max_answer_length=args.max_answer_length, dynamics=dynamics, smoothing=smoothing, weights=weights,
    )  # fmt: skip
    if arguments.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StatusCallback)
    return trainer


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


def evaluate_model(
    trainer: CartographyTrainer, args: argparse.Namespace, task: QuestionAnswering, split: Split, kept: set[str] | None
) -> dict[str, float]:
    """Evaluate under each ablation, write metrics and predictions; those of the training's own are ``eval_*``.

    ``kept``: ids whose metrics are reported as ``eval_filtered_*`` beside those of all.
    """
    output = Path(args.output_dir)
    metrics: dict[str, float] = {}
    for ablation in args.eval_ablations or [args.ablations]:
        features = task.features(split.data, trainer.processing_class, args.max_length, args.doc_stride, ablation)
        evaluation = task.evaluation(split.data, features)
        trainer.compute_metrics = evaluation
        own = ablation == args.ablations
        prefix = "eval" if own else f"eval_{ablation}"
        metrics.update(trainer.evaluate(evaluation.features, metric_key_prefix=prefix))
        if kept is not None:
            inside = np.array([example in kept for example in split.ids])
            metrics.update({f"{prefix}_filtered_{name}": value for name, value in evaluation.summary(inside).items()})
        if is_main_process():
            write_jsonl(output / f"eval_predictions{'' if own else '_' + ablation}.jsonl", evaluation.rows())
    metrics.pop("epoch", None)
    if is_main_process():
        write_json(output / "eval_metrics.json", metrics)
    return metrics


def print_metrics(metrics: Mapping[str, float]) -> None:
    skipped = ("_runtime", "_per_second", "_model_preparation_time")
    for name, value in metrics.items():
        if not name.endswith(skipped):
            print(f"{name:<28} {value:>10,.2f}" if isinstance(value, float) else f"{name:<28} {value:>7,}")


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    task = get_task(args.task)
    check_writable(args.output_dir)
    loaded, train, report, variability = None, None, None, None
    if args.do_train:
        loaded, train, report = training_split(args, task)
        variability = known_variability(args, train)
        if args.enable_cartography:
            check_writable(args.cartography_output_dir)
    watches = getattr(args, "eval_strategy", "no") != "no"
    evaluation = evaluation_split(args, task) if args.do_eval or watches else None
    kept = None
    if args.filter_validation and evaluation is not None:
        kept = set(apply_filters(evaluation, args.filters, seed=args.seed)["id"][:])
    checkpoint = checkpoint_to_resume(args, train) if train is not None else None

    from transformers import set_seed

    arguments = training_arguments(args)
    if args.enable_cartography and arguments.n_gpu > 1:
        raise UserError(ONE_PROCESS_PER_GPU)
    set_seed(args.seed)
    model, tokenizer = load_model(args, task, loaded)
    if args.doc_stride > args.max_length // 2:  # here once, not at every tokenisation
        logger.warning(f"--doc_stride lowered from {args.doc_stride} to {args.max_length // 2}: half of --max_length")
        args.doc_stride = args.max_length // 2
    trainer = build_trainer(args, task, arguments, model, tokenizer, train, evaluation, variability, checkpoint)

    splits = [split.identity() for split in (train, evaluation) if split is not None]
    if args.do_train:
        runs: list[tuple[str, Sequence[str], list[dict[str, Any]]]] = [(args.output_dir, TRAINING_FILES, splits)]
        if args.enable_cartography:
            runs.append((args.cartography_output_dir, CARTOGRAPHY_FILES, splits[:1]))
        with ExitStack() as stack:
            for directory, owned, read in runs:
                stack.enter_context(
                    stage(directory, args, owns=owned, inputs=_inputs(args), datasets=read, resume=bool(checkpoint))
                )
            if report is not None and is_main_process():
                write_json(Path(args.output_dir) / "filter_report.json", report)
            train_model(trainer, args, checkpoint)
    if args.do_eval and evaluation is not None:
        # A run of its own: when it fails, the model is as whole as before.
        evaluating = {**vars(args), "do_train": False}
        identities = [evaluation.identity()]
        with stage(args.output_dir, evaluating, owns=EVALUATION_FILES, inputs=_inputs(args), datasets=identities):
            metrics = evaluate_model(trainer, args, task, evaluation, kept)
        if is_main_process():
            print_metrics(metrics)
    if is_main_process():
        wrote = ["the model"] * args.do_train + ["eval_metrics.json, eval_predictions*.jsonl"] * args.do_eval
        print(f"wrote {' and '.join(wrote)} to {args.output_dir}"
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
