"""The arguments of train_sft.py: its flags, their defaults, and what contradicts what."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamap.analysis.filter_config import filter_inputs, load_filter_config, reads_metrics, validate_config
from datamap.core.artifacts import model_meta
from datamap.core.configs import with_config
from datamap.core.flags import DEFAULT_SEED, Parser, boolean, fraction, number, positive_int, seed_number
from datamap.core.parquet import add_artifact_format, format_of
from datamap.core.plots import add_plot_format
from datamap.core.splits import Split
from datamap.thoughts.data import add_pair_flags
from datamap.thoughts.prompts import TUNED
from datamap.training.library_flags import SFT_CONFIG, add_training_flags
from datamap.training.resuming import checkpoint_to_resume

DESCRIPTION = "Fine-tune a language model on chains of thought, with QLoRA."
DEFAULT_MODEL = "mistralai/Mistral-7B-v0.3"
EFFECTIVE_BATCH_SIZE = 64
# What may change when a training goes on: what is read of these is compared, and the pairs that are answered.
MAY_CHANGE = {
    "thoughts", "reflections", "prompt_file", "prompt_digest", "eval_dataset", "eval_samples", "eval_generate_steps",
    "max_new_tokens", "text_columns", "label_column", "label_map",
}
WHOLE = "bfd"  # how packing keeps rows whole
AUTO = "auto"  # as many rows at once as the memory holds
DIGESTS = {"rows_digest": "other chains of thought", "prompt_digest": "another prompt"}


def _not_negative(text: str) -> float:
    return number(text, 0)


def _whole(text: str) -> int:
    return 0 if text.strip() == "0" else positive_int(text)


def _rows_at_once(text: str) -> int | str:
    return AUTO if text.strip() == AUTO else positive_int(text)


def build_parser(show_all: bool = False) -> Parser:
    """The parser of every flag; those of SFTConfig are listed by --help only when ``show_all``."""
    parser = Parser(DESCRIPTION, script="train_sft.py")
    parser.epilog = f"The flags of {SFT_CONFIG} are accepted too (--help_all lists them)."
    parser.add_argument("--help_all", action="help", help=f"also list the flags of {SFT_CONFIG}")
    parser.add_argument("--config", metavar="FILE", help="JSON file of flags; those given here win over it")

    group = parser.add_argument_group("data")
    group.add_argument("--thoughts", metavar="PATH",
                       help="chains of thought: what generate_thoughts.py wrote, a file, or a Hub name; also a "
                       "fine-tuning file with text or messages; needed")
    group.add_argument("--reflections", metavar="PATH",
                       help="the repaired ones (default: none; only chains that came to the right label are used)")
    group.add_argument("--prompt_file", metavar="FILE", help="what the model is asked, with $premise and $hypothesis "
                       f"(default: {TUNED.relative_to(TUNED.parents[2])}; of a fine-tuning file its own)")
    group.add_argument("--max_length", type=positive_int, default=512, metavar="N",
                       help="longest prompt with its answer, in tokens; what is longer is cut, and reported")
    group.add_argument("--max_train_samples", type=positive_int, metavar="N", help="first N rows, before any filter")
    group.add_argument("--filter_config", metavar="FILE", help="JSON of filter blocks: which rows to train on")

    group = parser.add_argument_group("model")
    group.add_argument("--model", default=DEFAULT_MODEL, help="Hub name or directory of a causal language model")
    group.add_argument("--quantization", choices=("4bit", "none"), default="4bit",
                       help="of the frozen weights: NF4 with double quantisation, or whole")
    group.add_argument("--lora_r", type=positive_int, default=32, metavar="N", help="rank of the adapter")
    group.add_argument("--lora_alpha", type=positive_int, default=64, metavar="N", help="its scale, times 1 / rank")
    group.add_argument("--lora_dropout", type=fraction, default=0.05, help="share of its inputs left out, 0..1")
    group.add_list("--lora_target_modules", default=["all-linear"],
                   help="names of the layers that get one (default: all-linear)")
    group.add_argument("--attn_implementation", metavar="NAME",
                       help="such as sdpa, or flash_attention_2 on a GPU (default: the model's own)")

    group = parser.add_argument_group("training")
    group.add_argument("--output_dir", default="./sft_output", help="adapter, tokenizer, curves, model card go here")
    add_plot_format(group)
    group.add_argument("--overwrite", "--overwrite_output_dir", nargs="?", const=True, default=False, type=boolean,
                       metavar="true|false",
                       help="replace what another run left in --output_dir (checkpoints, adapter) and its data map")
    group.add_argument("--resume_from_checkpoint", nargs="?", const="last", metavar="DIR",
                       help="go on from a checkpoint; without a value from the last whole one in --output_dir")
    group.add_argument("--effective_batch_size", type=positive_int, metavar="N",
                       help="rows per step over all processes and accumulated batches (default: "
                            f"{EFFECTIVE_BATCH_SIZE})")
    group.add_argument("--per_device_train_batch_size", type=_rows_at_once, default=4, metavar="N|auto",
                       help="rows that a process takes at once; auto: as many as keep its GPU busy and as its memory "
                       "holds, tried out before the training, which stays the same")
    group.add_argument("--learning_rate", type=_not_negative, default=1e-4, help="the highest, after the warm-up")
    group.add_argument("--num_train_epochs", type=_not_negative, default=2.0, metavar="N", help="passes over the rows")
    group.add_argument("--lr_scheduler_type", default="cosine", metavar="NAME", help="how the learning rate falls")
    group.add_argument("--warmup_steps", type=_not_negative, default=150, metavar="N",
                       help="steps in which the learning rate rises; below 1 a share of all steps")
    group.add_argument("--max_grad_norm", type=_not_negative, default=0.3, help="gradients are scaled down to it")
    group.add_switch("--gradient_checkpointing", default=True, help="less memory, but slower (default: true; "
                     "with a batch size of auto only where memory is short)")
    group.add_switch("--packing", help="several rows in one sequence of --max_length, which do not see each other; "
                     "fastest with flash attention on a GPU")
    group.add_argument("--logging_steps", type=_not_negative, default=10, metavar="N", help="steps between two logs")
    group.add_argument("--save_steps", type=_not_negative, default=100, metavar="N", help="steps between checkpoints")
    group.add_argument("--save_total_limit", type=positive_int, default=2, metavar="N", help="checkpoints that stay")
    group.add_argument("--seed", type=seed_number, default=DEFAULT_SEED, help="of adapter, shuffling and hold-out")
    group.add_switch("--no_cuda", help="train on the CPU, the same as --use_cpu")

    group = parser.add_argument_group("evaluation while it trains")
    group.add_argument("--eval_fraction", type=fraction, default=0.05,
                       help="share of the rows held out for loss and token accuracy, 0..1, at least one row unless 0")
    group.add_argument("--eval_dataset", help="labelled pairs to be answered: Hub name, file, directory or demo:nli "
                       "(default: the held-out rows, a biased sample); the next five flags are about it")
    group.add_argument("--eval_split", metavar="NAME", help="its split (default: validation, or what stands for it)")
    add_pair_flags(group)
    group.add_argument("--eval_samples", type=positive_int, default=100, metavar="N",
                       help="how many pairs are answered, the first N")
    group.add_argument("--eval_generate_steps", type=_whole, default=100, metavar="N",
                       help="steps between answering them; they are answered at the end too, with 0 only then")
    group.add_argument("--max_new_tokens", type=positive_int, default=256, metavar="N", help="of an answer, at most")

    group = parser.add_argument_group("cartography")
    group.add_switch("--enable_cartography", help="record how the model learns each chain of thought")
    group.add_argument("--cartography_output_dir", default="./cartography_output", metavar="DIR",
                       help="training dynamics and the data map go here")
    add_artifact_format(group, "form of the training dynamics and the metrics")
    add_training_flags(parser, show_all, SFT_CONFIG)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, with ``filters``, ``num_processes`` and ``gradient_accumulation_steps`` worked out."""
    argv = list(sys.argv[1:] if argv is None else argv)
    show_all = any(str(word).replace("-", "_") == "__help_all" for word in argv)
    parser = build_parser(show_all)
    args = parser.parse_args(with_config(parser, argv))
    if args.thoughts is None:
        parser.error("--thoughts is missing: give what generate_thoughts.py wrote, or a file of chains of thought")
    if args.resume_from_checkpoint and args.overwrite:
        parser.error("--resume_from_checkpoint and --overwrite exclude each other")
    if getattr(args, "use_cpu", False):
        args.no_cuda = True
    args.prompt_file = args.prompt_file or str(TUNED)
    args.filters = load_filter_config(args.filter_config) if args.filter_config else {}
    if args.filters:
        validate_config(args.filters)
    if args.enable_cartography and reads_metrics(args.filters, args.cartography_output_dir):
        parser.error(f"--enable_cartography would write {args.cartography_output_dir}, which a filter reads; name "
                     "another --cartography_output_dir")
    if format_of(args) and not args.enable_cartography:
        parser.error("--artifact_format is the form of a recording; add --enable_cartography")
    strategy = getattr(args, "packing_strategy", WHOLE)
    if args.packing and args.enable_cartography and strategy != WHOLE:
        parser.error(f"--packing_strategy {strategy} cuts rows into pieces, which --enable_cartography cannot put "
                     f"together: give {WHOLE}, which keeps them whole, or leave one of the three out")
    for name in ("eval_split", "label_map", "text_columns", "label_column"):
        if getattr(args, name) and not args.eval_dataset:
            parser.error(f"--{name} does nothing without --eval_dataset")
    for flag, off in (("eval_strategy", "no"), ("eval_on_start", False)):
        if not args.eval_fraction and (value := getattr(args, flag, off)) != off:
            parser.error(f"--{flag} {value} needs rows to evaluate on: --eval_fraction is 0")
    _set_accumulation(parser, args)
    return args


def _set_accumulation(parser: Parser, args: argparse.Namespace) -> None:
    args.num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if args.per_device_train_batch_size == AUTO:
        _check_auto(parser, args)
        return
    at_once = args.per_device_train_batch_size * args.num_processes
    given: Any = getattr(args, "gradient_accumulation_steps", None)
    if args.effective_batch_size is None:
        args.effective_batch_size = EFFECTIVE_BATCH_SIZE if given is None else at_once * given
    steps, rest = divmod(args.effective_batch_size, at_once)
    product = f"{args.per_device_train_batch_size} rows x {args.num_processes} processes"
    if rest or steps < 1:
        parser.error(f"--effective_batch_size {args.effective_batch_size} is no multiple of "
                     f"--per_device_train_batch_size x processes ({product} = {at_once}); change one of them")
    if given not in (None, steps):
        parser.error(f"--effective_batch_size {args.effective_batch_size} is not {product} x "
                     f"--gradient_accumulation_steps {given}; leave one of the two out")
    args.gradient_accumulation_steps = steps


def _check_auto(parser: Parser, args: argparse.Namespace) -> None:
    if getattr(args, "gradient_accumulation_steps", None) is not None:
        parser.error("--per_device_train_batch_size auto and --gradient_accumulation_steps exclude each other; say "
                     "with --effective_batch_size how many rows a step has")
    args.effective_batch_size = args.effective_batch_size or EFFECTIVE_BATCH_SIZE
    if args.effective_batch_size % args.num_processes:
        parser.error(f"--effective_batch_size {args.effective_batch_size} is no multiple of the {args.num_processes} "
                     "processes; change one of them")


def _as_recorded(args: argparse.Namespace) -> None:
    """A training goes on with the batches that were chosen when it began."""
    named = args.resume_from_checkpoint
    meta = model_meta(args.output_dir if named == "last" else Path(named).absolute().parent) or {}
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"):
        if name in meta.get("arguments", {}):
            setattr(args, name, meta["arguments"][name])


def checkpoint_of(args: argparse.Namespace, split: Split) -> str | None:
    """The checkpoint that --resume_from_checkpoint means; UserError where it was made with something else.

    A batch size of auto becomes the one that was chosen then.
    """
    if args.resume_from_checkpoint and args.per_device_train_batch_size == AUTO:
        _as_recorded(args)
    read = dataclasses.replace(split, name=args.thoughts)
    return checkpoint_to_resume(args, read, SFT_CONFIG, MAY_CHANGE, DIGESTS)


def inputs_of(args: argparse.Namespace) -> dict[str, str | None]:
    """The artifacts that a run reads, by name."""
    inputs = {"thoughts": args.thoughts, "reflections": args.reflections, "prompt": args.prompt_file,
              "model": args.model if Path(args.model).is_dir() else None}
    return inputs | filter_inputs(args.filters)
