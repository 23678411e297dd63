"""The training of run.py: the library's arguments, the trainer with all that watches it, and what is left of it."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.cartography.maps import CARTOGRAPHY_FILES
from datamap.core.artifacts import model_meta, stage
from datamap.core.errors import UserError, is_main_process
from datamap.core.files import nulls_for_nan, write_csv, write_json
from datamap.core.parquet import format_of
from datamap.core.splits import Split, with_column
from datamap.core.tables import safe_to_open
from datamap.tasks.base import Task
from datamap.training.arguments import TRAINING_FILES, inputs_of, map_split_dir
from datamap.training.checkpoints import seconds_until
from datamap.training.data import (
    RunData,
    features_of,
    leave_out_unlearnable,
    watches,
    write_filter_report,
    write_split,
)
from datamap.training.evaluation import title_of
from datamap.training.library_flags import check_batches, given_training_flags, library_arguments
from datamap.training.models import learning_rate_of
from datamap.training.on_gpu import (
    buckets_of,
    card_of_process,
    chosen_for,
    compile_flags,
    how_compiled,
    in_words,
    room_for,
)
from datamap.training.planted import PLANTED_FILE, place_of_planted, plants_errors

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from datamap.training.trainer import CartographyTrainer

logger = logging.getLogger(__name__)


def training_arguments(args: argparse.Namespace, task: Task) -> TrainingArguments:
    """The library's arguments, with what is chosen for a GPU; that is noted in ``args``, for run_meta.json."""
    from transformers import TrainingArguments

    from datamap.cartography.recorder import ONE_PROCESS_PER_GPU

    given = given_training_flags(vars(args))
    if args.no_cuda:
        given["use_cpu"] = True
    card = card_of_process(given.get("use_cpu", False))
    chosen = chosen_for(card, given)
    if args.resume_from_checkpoint and not {"bf16", "fp16"} & given.keys():  # in the precision that it began in
        began = (model_meta(args.output_dir) or {}).get("arguments", {}).get("on_gpu") or {}
        chosen.pop("bf16", None)
        chosen |= {"bf16": True} if began.get("bf16") else {}
    if card is not None:
        args.on_gpu = {"card": card.name, **chosen}
    given |= chosen
    given.setdefault("dataloader_pin_memory", card is not None)
    for name in compile_flags(given):  # our Trainer compiles
        del given[name]
    if rate := learning_rate_of(args.model):
        given.setdefault("learning_rate", rate)
    if given.get("load_best_model_at_end") or "best" in given.get("save_strategy", "") or (
        given.get("lr_scheduler_type") == "reduce_lr_on_plateau"
    ):
        given.setdefault("metric_for_best_model", task.metric)
        given.setdefault("greater_is_better", not given["metric_for_best_model"].endswith("loss"))
    arguments = library_arguments(
        TrainingArguments, output_dir=args.output_dir, seed=args.seed, do_train=args.do_train, do_eval=args.do_eval,
        remove_unused_columns=False, label_names=["row_index"], **given,
    )
    if args.enable_cartography and arguments.n_gpu > 1:
        raise UserError(ONE_PROCESS_PER_GPU)
    return arguments


def build_trainer(
    args: argparse.Namespace, arguments: TrainingArguments, data: RunData, model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase, checkpoint: str | None,
) -> CartographyTrainer:
    from datamap.training.batches import PadToLongest
    from datamap.training.callbacks import EvaluationCallback, Manifests, tell_in_lines
    from datamap.training.trainer import CartographyTrainer

    _check_bfloat16(model, arguments)
    leave_out_unlearnable(args, data, tokenizer)
    asked = (args.max_length, args.doc_stride, args.ablations)
    watched, evaluation = data.evaluated[0] if watches(args) else None, None
    if watched is not None:
        evaluation = data.evaluation(watched, features_of(watched, tokenizer, *asked))
    trainer = CartographyTrainer(
        model=model, args=arguments, processing_class=tokenizer,
        eval_dataset=evaluation and evaluation.features, compute_metrics=evaluation,
        data_collator=PadToLongest(tokenizer, data.task, model, 8 if arguments.bf16 or arguments.fp16 else 1,
                                   args.max_length),
        task=data.task,
        **_what_it_trains_on(args, arguments, data, tokenizer, checkpoint),
    )
    _speed_up(trainer, args)
    tell_in_lines(trainer)
    if data.held_out is not None:
        from datamap.training.held_out import HeldOutCallback

        features = features_of(data.held_out, tokenizer, *asked)
        recorder = HeldOutCallback(
            trainer, data.held_out, features, output_dir=args.cartography_output_dir,
            confidence_type=args.confidence_type, checkpoint=checkpoint, artifact_format=format_of(args),
        )
        recorder.check_dropout(getattr(args, "mc_dropout", 0))
        trainer.add_callback(recorder)
    if data.mapped is not None:
        from datamap.training.held_out import recorder_of_split

        place = map_split_dir(args)
        assert place is not None
        title = f"{title_of(data.mapped, args.model)}, not trained on"
        trainer.add_callback(recorder_of_split(trainer, args, data.mapped, place, checkpoint, title))
    trainer.add_callback(Manifests(checkpoint))  # behind the recorder
    if watched is not None:
        metric = (arguments.metric_for_best_model or data.task.metric).removeprefix("eval_")
        trainer.add_callback(
            EvaluationCallback(trainer, metric, arguments.greater_is_better is not False,
                               data.slices[watched.split], args.keep_top_epochs or 0, title_of(watched, args.model))
        )
    return trainer


def _speed_up(trainer: CartographyTrainer, args: argparse.Namespace) -> None:
    """Compile the steps where that is asked for or pays, and say what is done on a GPU."""
    arguments, card = trainer.args, card_of_process(trainer.args.use_cpu)
    if trainer.train_dataset is None:
        return
    sampler = trainer.length_sampler()
    batches = -(-len(sampler) // (arguments.train_batch_size * arguments.world_size))
    steps = arguments.max_steps if arguments.max_steps > 0 else (
        batches / arguments.gradient_accumulation_steps * arguments.num_train_epochs)
    trainer.compiled = how_compiled(
        compile_flags(vars(args)), card, trainer.model, int(steps), arguments.gradient_accumulation_steps)
    said = ""
    if trainer.compiled is not None:
        lengths = buckets_of(sampler.longest_of_batches(), longest=max(sampler.lengths))
        trainer.buckets = tuple(sorted({min(length, args.max_length) for length in lengths}))
        how = " ".join(str(trainer.compiled[name]) for name in ("backend", "mode") if name in trainer.compiled)
        said = f"steps are compiled ({how}) for batches of {', '.join(map(str, trainer.buckets))} tokens"
    if card is not None:
        chosen = {name: value for name, value in args.on_gpu.items() if name != "card"}
        args.on_gpu |= {"compiled": trainer.compiled, "lengths": list(trainer.buckets)}
        said = in_words(card, arguments, chosen) + ("; " + said) * bool(said)
    if said:
        logger.info(said)


def _what_it_trains_on(
    args: argparse.Namespace, arguments: TrainingArguments, data: RunData, tokenizer: PreTrainedTokenizerBase,
    checkpoint: str | None,
) -> dict[str, Any]:
    """Rows, their smoothing and weights, and the recorder: arguments of the trainer."""
    from datamap.cartography.recorder import CartographyCallback
    from datamap.training.trainer import smoothing_of, weights_of

    train, variability = data.train, data.variability
    if train is None:
        return {}
    features = features_of(train, tokenizer, args.max_length, args.doc_stride, args.ablations)
    if hasattr(args, "empty_windows"):
        features = with_fewer_empty(features, args.empty_windows, args.seed)
    check_batches(arguments, len(features))
    rows = np.asarray(features["example_index"][:])
    in_rows = f" in {len(features):,} windows" if len(features) > len(train.data) else ""
    composition = train.task.composition(train.data)
    logger.info(f"training on {len(train.data):,} examples{in_rows}{'; ' * bool(composition)}{composition}")
    counts = np.asarray(features["counts"][:], dtype=bool)
    uncounted = len(train.data) - len(np.unique(rows[counts]))
    if uncounted:
        logger.warning(f"{uncounted:,} examples have their answer whole in no window: their windows teach that there "
                       "is none, and they have no dynamics; a larger --max_length or --doc_stride helps")
    parts: dict[str, Any] = {"train_dataset": features}
    if variability is not None and args.use_label_smoothing:
        parts["smoothing"] = smoothing_of(variability, args.smoothing_factor)[rows]
    if variability is not None and args.use_soft_weighting:
        windows = np.bincount(rows, minlength=len(train.data))
        parts["weights"] = weights_of(variability, args.weight_clip_min, args.weight_clip_max, windows)[rows]
    if args.enable_cartography and data.held_out is None:
        parts["dynamics"] = CartographyCallback(
            train.ids, args.cartography_output_dir, np.where(counts, rows, -1), args.confidence_type, checkpoint,
            title=title_of(train, args.model), artifact_format=format_of(args),
        )
    return parts


def with_fewer_empty(features: datasets.Dataset, share: float, seed: int) -> datasets.Dataset:
    """The windows without most of those that only say that the answer of their question lies elsewhere: of these a
    ``share``, 0..1, drawn by ``seed``, as the baseline of Natural Questions leaves most of its null instances out
    (Kwiatkowski et al. 2019). Examples keep what says something of them, and unanswerable ones all."""
    counts = np.asarray(features["counts"][:], dtype=bool)
    empty = np.flatnonzero(~counts)
    drawn = np.random.default_rng(seed).choice(empty, round(share * len(empty)), replace=False)
    logger.info(f"of {len(empty):,} windows without the answer of their question {len(drawn):,} are trained on")
    chosen = np.union1d(np.flatnonzero(counts), drawn)
    if not len(chosen):
        raise UserError(f"--empty_windows {share:g} leaves nothing to train on: no window of the {len(features):,} "
                        "holds an answer; a larger --max_length helps")
    kept = features.select(chosen).remove_columns("row_index")
    return with_column(kept, "row_index", list(range(len(kept))))


def _check_bfloat16(model: PreTrainedModel, arguments: TrainingArguments) -> None:
    from datamap.training.lstm_model import LSTMConfig, computes_in_bfloat16

    on_cpu = arguments.device.type == "cpu"
    if arguments.bf16 and on_cpu and isinstance(model.config, LSTMConfig) and not computes_in_bfloat16():
        raise UserError("--bf16: this CPU cannot run an LSTM in bfloat16; leave --bf16 out, or use a GPU")


def write_planted_errors(args: argparse.Namespace, data: RunData) -> None:
    """The data of a run with --plant_errors, with which later stages go on, and the list of its errors."""
    import pandas as pd

    if not (plants_errors(args) and data.loaded is not None and is_main_process()):
        return
    place = Path(place_of_planted(args))
    place.mkdir(parents=True, exist_ok=True)
    others = [dataclasses.replace(split, data=split.whole) for split in data.evaluated
              if split.split != args.train_split]
    for split in (data.loaded, *others):
        write_split(place / f"{split.split}.jsonl", split)
    write_csv(Path(args.output_dir) / PLANTED_FILE, pd.DataFrame(data.loaded.planted))


@contextmanager
def training_stages(args: argparse.Namespace, data: RunData, resumes: bool) -> Iterator[None]:
    """The stages of a training: of the model in --output_dir, and of the dynamics where they are recorded."""
    assert data.train is not None
    read, settings = [data.train, *data.evaluated], vars(args)
    stages: list[tuple[str, Sequence[str], list[Split], dict[str, Any]]] = [
        (args.output_dir, TRAINING_FILES, read, settings)]
    if args.enable_cartography:
        stages.append((args.cartography_output_dir, CARTOGRAPHY_FILES, read[:1], settings))
    if data.mapped is not None and (place := map_split_dir(args)):
        stages.append((place, CARTOGRAPHY_FILES, [data.mapped], {**settings, "trained_on": False}))
    with ExitStack() as stack:
        for directory, owned, datasets, recorded in stages:
            stack.enter_context(
                stage(directory, recorded, owns=owned, inputs=inputs_of(args), datasets=datasets, resume=resumes)
            )
        write_planted_errors(args, data)
        yield


def train_model(trainer: CartographyTrainer, data: RunData, checkpoint: str | None) -> None:
    """Train, and write the model, its metrics and its log."""
    import pandas as pd

    from datamap.training.callbacks import LossSoFar, training_log

    output = Path(trainer.args.output_dir)
    if is_main_process():
        write_filter_report(output, data, trained=True)
    if data.loaded is not None and data.loaded.mended and is_main_process():
        write_csv(output / "moved_answers.csv", safe_to_open(pd.DataFrame(data.loaded.mended)))
    losses = LossSoFar(trainer)
    trainer.add_callback(losses)
    before = seconds_until(checkpoint)  # now: --save_total_limit may have deleted it by the end
    rows, evaluated = trainer.args.per_device_train_batch_size, trainer.args.per_device_eval_batch_size
    with room_for(f"{rows:,} rows at once, or {evaluated:,} to evaluate", "lower --per_device_train_batch_size, "
                  "--per_device_eval_batch_size or --max_length"):
        result = trainer.train(resume_from_checkpoint=checkpoint)
    whole = None if before is None else before + result.metrics["train_runtime"]
    # Both over all its processes.
    metrics = {**result.metrics, "train_loss": losses.mean(), "training_seconds": whole}
    # The Trainer leaves losses that are not numbers out of its mean, so only the weights can tell.
    if not all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters()):
        raise UserError("training diverged: weights are no numbers any more; lower --learning_rate")
    if trainer.dynamics is not None:
        metrics["cartography_seconds"] = trainer.dynamics.seconds
    trainer.save_model()  # with the tokenizer
    if is_main_process():
        write_json(output / "train_metrics.json", nulls_for_nan(metrics))
        write_csv(output / "training_log.csv", training_log(trainer.state.log_history))


def ask_about_held_out(trainer: CartographyTrainer, args: argparse.Namespace, data: RunData) -> None:
    """Write what a fold's model says of the fold; a stage of its own, like an evaluation."""
    from datamap.training.held_out import write_held_out

    with stage(args.output_dir, {**vars(args), "do_train": False}, owns=(), inputs=inputs_of(args),
               datasets=[data.held_out]):
        write_held_out(trainer, args, data)


def said_by_head(trainer: CartographyTrainer, args: argparse.Namespace, data: RunData) -> pd.DataFrame:
    """What a linear head on the model's vectors, as they are now, says of each example: ``out_of_fold.csv``."""
    from datamap.training.held_out import head_of_untrained

    return head_of_untrained(trainer, args, data)
