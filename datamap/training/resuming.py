"""How a training begins: anew, if nothing is lost by it, or from a checkpoint, if it goes on as it began."""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from datamap.core.artifacts import META, model_meta
from datamap.core.errors import UserError
from datamap.core.files import plain
from datamap.core.splits import Split
from datamap.training.checkpoints import checkpoints_in, damage_of, processes_of
from datamap.training.library_flags import TRAINING_ARGUMENTS, training_fields
from datamap.training.models import learning_rate_of

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
MAP = "cartography_metrics.csv"
# What does not change what the model learns or what is recorded of it. All that is not here must be as it was.
MAY_CHANGE = {
    # Places, and what is done beside the training.
    "config", "output_dir", "cartography_output_dir", "overwrite", "resume_from_checkpoint", "do_eval", "slice_by",
    "eval_ablations", "filter_validation", "max_drop_percentage",
    # What came of them is compared instead: the data, the filters.
    "dataset", "train_split", "filter_config", "filter_cartography", "filter_categories",
    "filter_clusters", "filter_random", "ambiguous_top_fraction", "cluster_assignments_path", "exclude_clusters",
    "min_cluster_probability", "rows_digest",
    # Longer is allowed, see _longer.
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
    "eval_accumulation_steps", "eval_use_gather_object", "bf16_full_eval", "fp16_full_eval",
}
# May change unless the best epoch is chosen, or the learning rate set, by what is measured on the way.
WATCHING = {"eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_split", "max_eval_samples",
            "max_answer_length", "metric_for_best_model", "greater_is_better"}
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
    found = checkpoints_in(args.output_dir)
    if not args.resume_from_checkpoint:
        if not args.overwrite:
            _check_nothing_is_lost(args, found)
        return None
    if args.resume_from_checkpoint == "last":
        home = Path(args.output_dir)
        if not found:
            raise UserError(f"{home} holds no whole checkpoint to go on from, nor any other: start "
                            + ("again with --overwrite" if _holds_model(home) else "without the flag"))
    else:
        home = Path(args.resume_from_checkpoint).absolute().parent
        if home != Path(args.output_dir).absolute():
            _check_nothing_is_lost(args, found)
    meta = model_meta(home)
    if meta is None and any(home.glob("*")):
        raise UserError(f"{home} holds no {META} of its training: whether it would go on as it began cannot be told; "
                        "start anew from its weights with --model")
    before = (meta or {}).get("arguments", {})
    if meta is not None:
        _check_same_training(args, meta, train, arguments, may_change, digests)
    if args.resume_from_checkpoint == "last":
        checkpoint = _last_whole(home, found, args.enable_cartography)
    else:
        checkpoint = Path(args.resume_from_checkpoint)
        if damage := damage_of(checkpoint, args.enable_cartography):
            raise UserError(f"{checkpoint} is not a whole checkpoint of such a run: {damage}; name another "
                            "checkpoint-N")
    _check_processes(checkpoint)
    if Path(before.get("cartography_output_dir", "")).absolute() != Path(args.cartography_output_dir).absolute():
        _check_no_map_is_lost(args)
    return str(checkpoint)


# --- anew ---------------------------------------------------------------------------------------------------------


def _check_nothing_is_lost(args: argparse.Namespace, found: list[Path]) -> None:
    meta = model_meta(args.output_dir)
    status = meta.get("status") if meta else None
    if found and status != "finished":
        damage, holds = damage_of(found[-1], args.enable_cartography), f"{args.output_dir} holds {found[-1].name}"
        if any(damage_of(path, args.enable_cartography) is None for path in reversed(found)):
            raise UserError(f"{holds} of an unfinished run: go on from it with --resume_from_checkpoint, or start "
                            "again with --overwrite")
        raise UserError(f"{holds} of an unfinished run, and no whole checkpoint to go on from ({damage}): start again "
                        "with --overwrite")
    if status == "finished" or _holds_model(Path(args.output_dir)):
        when = f" (finished {meta['finished']})" if meta and status == "finished" and meta.get("finished") else ""
        raise UserError(f"{args.output_dir} holds a trained model{when}: name another --output_dir, or replace it "
                        "with --overwrite")
    _check_no_map_is_lost(args)


def _holds_model(directory: Path) -> bool:
    return any(next(directory.glob(pattern), None) for pattern in WEIGHTS)


def _check_no_map_is_lost(args: argparse.Namespace) -> None:
    if args.enable_cartography and (Path(args.cartography_output_dir) / MAP).exists():
        raise UserError(f"{args.cartography_output_dir} holds a data map: name another --cartography_output_dir, or "
                        "replace it with --overwrite")


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
    args: argparse.Namespace, meta: Mapping[str, Any], train: Split, arguments: str, may_change: Set[str],
    digests: Mapping[str, str],
) -> None:
    home, before = args.output_dir, meta.get("arguments", {})
    now = json.loads(json.dumps(vars(args), default=plain))  # as it was written
    differences = [*_changed(before, now, arguments, may_change), *_shorter(before, now, arguments)]
    if differences:
        raise UserError(f"{home} was trained with {'; '.join(differences)}: {ADVICE}")
    [recorded, *_] = meta.get("datasets") or [{"fingerprint": train.fingerprint}]  # the others are evaluated on
    if recorded["fingerprint"] != train.fingerprint:
        raise UserError(f"{home} was trained on other data than {train.name} [{train.split}]; resume with the dataset "
                        "it was started with")
    for name, what in digests.items():
        if before.get(name) is not None and before[name] != now.get(name):
            raise UserError(f"{home} was trained with {what}: {ADVICE}")


def _changed(
    before: Mapping[str, Any], now: Mapping[str, Any], arguments: str, may_change: Set[str]
) -> Iterator[str]:
    """Name and both values of every flag that must be as it was and is not."""
    defaults = _defaults(before, arguments)
    if ("optim" in before) != ("optim" in now):  # the one default that the library works out
        from transformers import TrainingArguments

        defaults["optim"] = str(TrainingArguments.__dataclass_fields__["optim"].default)
    values = [{**defaults, **each} for each in (before, now)]
    chooses = any(each.get("load_best_model_at_end") or each.get("keep_top_epochs")
                  or each.get("lr_scheduler_type") == "reduce_lr_on_plateau" for each in values)
    free = MAY_CHANGE | may_change | (set() if chooses else WATCHING)
    if "windows" in now:  # they as they were asked for, which the model may have lowered
        free |= {"max_length", "doc_stride"}
    for name in sorted((values[0].keys() & values[1].keys()) - free, key=lambda name: (name != "model", name)):
        if values[0][name] != values[1][name]:
            one, other = (f"{each[name]}" + " (the default)" * (name not in given)
                          for each, given in zip(values, (before, now), strict=True))
            yield f"{name} {one}, not {other}"


def _defaults(before: Mapping[str, Any], arguments: str) -> dict[str, Any]:
    """What the library takes where a flag is not given."""
    defaults: dict[str, Any] = {}
    for name, (_, written, _) in training_fields(arguments).items():
        try:
            defaults[name] = ast.literal_eval(written)
        except (ValueError, SyntaxError):
            defaults[name] = written
    if rate := learning_rate_of(before.get("model", "")):
        defaults["learning_rate"] = rate
    return defaults


def _shorter(before: Mapping[str, Any], now: Mapping[str, Any], arguments: str) -> Iterator[str]:
    """A training may become longer, and that is said: the learning rate follows its length. It never gets shorter."""
    values = [{**_defaults(before, arguments), **each} for each in (before, now)]
    counts = ["max_steps" if each["max_steps"] > 0 else "num_train_epochs" for each in values]
    (was, one), (name, other) = ((count, each[count]) for count, each in zip(counts, values, strict=True))
    if was != name or other < one:
        yield f"{was} {one:g}, not {other:g}" if was == name else f"{was} {one:g}, not {name} {other:g}"
    elif other > one:
        logger.info(f"{name} {other:g}, before {one:g}: from here on the learning rate takes the course of the longer "
                    "training")


def _check_processes(checkpoint: Path) -> None:
    before, now = processes_of(checkpoint), int(os.environ.get("WORLD_SIZE", "1"))
    if before != now:
        raise UserError(f"{checkpoint} was written by a training of {before} processes, not {now}: resume it with as "
                        "many, or start again with --overwrite")
