"""How a training begins: anew, if nothing is lost by it, or from a checkpoint, if it goes on as it began."""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from datamap.core.artifacts import META, model_meta
from datamap.core.errors import UserError
from datamap.core.files import plain, read_json
from datamap.core.splits import Split
from datamap.training.arguments import map_split_dir
from datamap.training.checkpoints import checkpoints_in, damage_of, has_whole_checkpoint, processes_of
from datamap.training.library_flags import TRAINING_ARGUMENTS, training_fields
from datamap.training.models import learning_rate_of

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
MAP = "cartography_metrics.*"
# What does not change what the model learns or what is recorded of it. All that is not here must be as it was.
MAY_CHANGE = {
    # Places, and what is done beside the training.
    "config", "output_dir", "cartography_output_dir", "overwrite", "resume_from_checkpoint", "do_eval", "slice_by",
    "cluster_by", "eval_ablations", "filter_validation", "validation_cartography_output_dir",
    "validation_cluster_assignments_path", "max_drop_percentage", "cross_fit", "cross_fit_head", "cross_fit_workers",
    "mc_dropout", "artifact_format",
    # What came of them is compared instead: the data, the filters.
    "dataset", "train_split", "filter_config", "filter_cartography", "filter_categories",
    "filter_clusters", "filter_random", "ambiguous_top_fraction", "cluster_assignments_path", "exclude_clusters",
    "min_cluster_probability", "missing", "allow_changed", "rows_digest",
    # Longer is allowed, see _length.
    "num_train_epochs", "max_steps",
    # What is logged and saved.
    "logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_level",
    "log_level_replica", "log_on_each_node", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id",
    "trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen", "skip_memory_metrics", "debug",
    "save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node", "enable_jit_checkpoint",
    "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    # The machine, and how its time and memory are spent.
    "no_cuda", "use_cpu", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "ddp_find_unused_parameters",
    "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
    "activation_checkpointing_kwargs", "activation_offloading", "torch_empty_cache_steps", "torch_compile",
    "torch_compile_backend", "torch_compile_mode", "dataset_num_proc", "per_device_eval_batch_size",
    "eval_accumulation_steps", "eval_use_gather_object", "bf16_full_eval", "fp16_full_eval", "on_gpu",
}
# May change unless the best epoch is chosen, or the learning rate set, by what is measured on the way.
WATCHING = {"eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_split", "max_eval_samples",
            "max_answer_length", "metric_for_best_model", "greater_is_better"}
OF_TASK = {"spans", "text_columns", "label_column"}
OF_RUN = {"rows_digest": "other examples, or other metrics of them"}
ADVICE = "resume with the flags it was started with, or start again with --overwrite"

logger = logging.getLogger(__name__)


def checkpoint_to_resume(
    args: argparse.Namespace, train: Split, arguments: str = TRAINING_ARGUMENTS, may_change: Set[str] = frozenset(),
    digests: Mapping[str, str] = OF_RUN,
) -> str | None:
    """The checkpoint that --resume_from_checkpoint means; None for a fresh start, which deletes nothing unasked.

    train: what is trained on. arguments: the library's class of them. may_change: flags of the script that may, beside
    MAY_CHANGE. digests: attributes of ``args`` that tell what is trained on from others -> what to call it.
    UserError where the training would not go on as it began, with both values of each flag.
    """
    output, found = Path(args.output_dir), checkpoints_in(args.output_dir)
    if not args.resume_from_checkpoint:
        if not args.overwrite and (loss := _loss(args, found)):
            raise UserError(loss)
        return None
    named = None if args.resume_from_checkpoint == "last" else Path(args.resume_from_checkpoint).absolute()
    if named is None and not found:
        raise UserError(f"{output} holds no whole checkpoint to go on from, nor any other: start "
                        + ("again with --overwrite" if _loss(args, found) else "without the flag"))
    home = output if named is None else named.parent
    if home.absolute() != output.absolute() and (loss := _loss(args, found)):
        raise UserError(loss)
    if named is not None and not named.is_dir():
        raise UserError(f"--resume_from_checkpoint {named}: there is no such directory")
    meta = model_meta(home)
    if meta is None:
        raise UserError(f"{home} holds no {META} of its training: whether it would go on as it began cannot be told; "
                        "start anew from its weights with --model")
    _check_same_training(args, home, meta, train, arguments, may_change, digests)
    checkpoint = named or _last_whole(home, found, args.enable_cartography)
    if damage := damage_of(checkpoint, args.enable_cartography):
        raise UserError(f"{checkpoint} is not a whole checkpoint of such a run: {damage}; name another checkpoint-N")
    _check_processes(checkpoint)
    if getattr(args, "load_best_model_at_end", False):
        _check_best(checkpoint)
    own_map = Path(meta["arguments"].get("cartography_output_dir", "")).absolute()
    if own_map != Path(args.cartography_output_dir).absolute() and (loss := _loss_of_map(args)):
        raise UserError(loss)
    return str(checkpoint)


# --- anew ---------------------------------------------------------------------------------------------------------


def _loss(args: argparse.Namespace, found: list[Path]) -> str | None:
    """What a fresh start would destroy, and how to go on; None where there is nothing."""
    output, records = Path(args.output_dir), args.enable_cartography
    meta = model_meta(output) or {}
    finished = f" (finished {meta.get('finished')})" if meta.get("status") == "finished" else ""
    if found and not finished:
        holds = f"{output} holds {found[-1].name} of an unfinished run"
        if has_whole_checkpoint(output, records):
            return f"{holds}: go on from it with --resume_from_checkpoint, or start again with --overwrite"
        return (f"{holds}, and no whole checkpoint to go on from ({damage_of(found[-1], records)}): start again with "
                "--overwrite")
    model = any(next(output.glob(pattern), None) for pattern in WEIGHTS)
    if finished or model:
        what = "a trained model" if model else "the results of a training"
        return f"{output} holds {what}{finished}: name another --output_dir, or replace it with --overwrite"
    return _loss_of_map(args)


def _loss_of_map(args: argparse.Namespace) -> str | None:
    places = [args.cartography_output_dir, map_split_dir(args)] if args.enable_cartography else []
    held = next((place for place in places if place and any(Path(place).glob(MAP))), None)
    return held and f"{held} holds a data map: name another --cartography_output_dir, or replace it with --overwrite"


# --- from a checkpoint --------------------------------------------------------------------------------------------


def _last_whole(home: Path, found: list[Path], with_dynamics: bool) -> Path:
    damages: dict[str, str] = {}
    for checkpoint in reversed(found):
        damage = damage_of(checkpoint, with_dynamics)
        if damage is None:
            for name, why in damages.items():
                logger.warning(f"{name} is not whole, {why}; resuming from {checkpoint.name}")
            return checkpoint
        damages[checkpoint.name] = damage
    name, why = next(iter(damages.items()))
    raise UserError(f"{home} holds no whole checkpoint to go on from ({name}: {why}): start again with --overwrite")


def _check_same_training(
    args: argparse.Namespace, home: Path, meta: Mapping[str, Any], train: Split, arguments: str, may_change: Set[str],
    digests: Mapping[str, str],
) -> None:
    before = meta["arguments"]
    now = json.loads(json.dumps(vars(args), default=plain))  # as it was written
    defaults = _defaults(before, now, arguments)
    one, other = {**defaults, **before}, {**defaults, **now}
    [recorded, *_] = meta.get("datasets") or [train.identity()]  # the others are evaluated on
    for values, task in ((one, recorded.get("task")), (other, train.identity()["task"])):
        if task is not None:  # what was guessed, or is the default, may be given
            values.update({name: {"spans": "nearest", **task}.get(name) for name in OF_TASK & now.keys()})
    chooses = any(each.get("load_best_model_at_end") or each.get("keep_top_epochs")
                  or each.get("lr_scheduler_type") == "reduce_lr_on_plateau" for each in (one, other))
    free = MAY_CHANGE | may_change | (set() if chooses else WATCHING)
    if "windows" in now:  # they as they were asked for, which the model may have lowered
        free |= {"max_length", "doc_stride"}
    names = sorted((one.keys() & other.keys()) - free, key=lambda name: (name != "model", name))
    differences = [
        f"{name} {one[name]}{' (the default)' * (name not in before)}, not {other[name]}"
        f"{' (the default)' * (name not in now)}" for name in names if one[name] != other[name]
    ]
    (count, was), (its_count, asked) = _length(one), _length(other)
    if count != its_count or asked < was:
        differences.append(f"{count} {was:g}, not {f'{its_count} ' * (count != its_count)}{asked:g}")
    if differences:
        raise UserError(f"{home} was trained with {'; '.join(differences)}: {ADVICE}")
    if recorded["fingerprint"] != train.fingerprint:
        raise UserError(f"{home} was trained on other data than {train.name} [{train.split}]; resume with the dataset "
                        "it was started with")
    for name, what in digests.items():
        if before.get(name) is not None and before[name] != now.get(name):
            raise UserError(f"{home} was trained with {what}: {ADVICE}")
    if asked > was:
        logger.info(f"{count} {asked:g}, before {was:g}: from here on the learning rate takes the course of the "
                    "longer training")


def _length(values: Mapping[str, Any]) -> tuple[str, float]:
    """A training may become longer, never shorter: what counts, and how much of it."""
    count = "max_steps" if values["max_steps"] > 0 else "num_train_epochs"
    return count, values[count]


def _defaults(before: Mapping[str, Any], now: Mapping[str, Any], arguments: str) -> dict[str, Any]:
    """What the library takes where a flag is not given."""
    defaults: dict[str, Any] = {}
    for name, (_, written, _) in training_fields(arguments).items():
        try:
            defaults[name] = ast.literal_eval(written)
        except (ValueError, SyntaxError):
            defaults[name] = written
    if rate := learning_rate_of(before.get("model", "")):
        defaults["learning_rate"] = rate
    if ("optim" in before) != ("optim" in now):  # the one default that the library works out
        from transformers import TrainingArguments

        defaults["optim"] = str(TrainingArguments.__dataclass_fields__["optim"].default)
    return defaults


def _check_best(checkpoint: Path) -> None:
    """The library would only say in passing that the best is gone, and end with the last."""
    best = read_json(checkpoint / "trainer_state.json")["best_model_checkpoint"]
    if best and (damage := damage_of(best, with_dynamics=False)):
        raise UserError(f"{best}, the best of this training so far, is not whole: {damage}; resume where it was, or "
                        "start again with --overwrite")


def _check_processes(checkpoint: Path) -> None:
    before, now = processes_of(checkpoint), int(os.environ.get("WORLD_SIZE", "1"))
    if before != now:
        raise UserError(f"{checkpoint} was written by a training of {before} processes, not {now}: resume it with as "
                        "many, or start again with --overwrite")
