"""The library's training arguments: their flags, read from its source, and what they become.

Importing the class to ask ``HfArgumentParser`` imports torch and most of transformers, reading its source nothing:
every typo, every --help_all and every plan of a suite would wait for it.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from datamap.core.errors import UserError, first_line
from datamap.core.flags import ListOf, Parser, boolean, number

TRAINING_ARGUMENTS, SFT_CONFIG = "transformers.TrainingArguments", "trl.SFTConfig"
T = TypeVar("T")
SOURCES = {TRAINING_ARGUMENTS: "training_args.py", SFT_CONFIG: "trainer/sft_config.py"}
# Fields of these classes that are no flags of the library: scripts set them, or our Trainer decides them.
DECIDED_BY_US = {
    "output_dir", "seed", "do_train", "do_eval", "do_predict", "resume_from_checkpoint", "remove_unused_columns",
    "train_sampling_strategy", "length_column_name", "label_smoothing_factor", "label_names", "include_for_metrics",
    "batch_eval_metrics", "prediction_loss_only", "local_rank", "eval_do_concat_batches", "parallelism_config",
}
# The same of train_sft.py: the rows, the model and the tokenizer are its own affair.
DECIDED_BY_US_IN_SFT = {
    *DECIDED_BY_US, "model_init_kwargs", "trust_remote_code", "chat_template_path", "dataset_text_field",
    "dataset_kwargs", "eos_token", "pad_token", "truncation_mode", "shuffle_dataset", "padding_free", "eval_packing",
    "completion_only_loss", "assistant_only_loss",
}
OLD_NAMES = {"eval_strategy": "evaluation_strategy"}


@functools.cache
def training_fields(arguments: str = TRAINING_ARGUMENTS) -> dict[str, tuple[str, str, str]]:
    """Name -> (annotation, default as written, help) of every flag of a class of training arguments."""
    decided = DECIDED_BY_US_IN_SFT if arguments == SFT_CONFIG else DECIDED_BY_US
    fields = _all_fields(arguments)
    return {name: fields[name] for name in fields if name not in decided and not name.startswith("_")}


def _all_fields(arguments: str) -> dict[str, tuple[str, str, str]]:
    package, _, name = arguments.partition(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"{package} is not installed: pip install {package}")
    return _fields_in(Path(spec.origin).parent / SOURCES[arguments], name)


def _fields_in(file: Path, name: str) -> dict[str, tuple[str, str, str]]:
    """The fields of a class in a source file, behind those of the classes that it extends."""
    tree = ast.parse(file.read_text(encoding="utf-8")).body
    found = next(node for node in tree if isinstance(node, ast.ClassDef) and node.name == name)
    fields: dict[str, tuple[str, str, str]] = {}
    for base in (ast.unparse(each) for each in found.bases):
        for node in tree:
            if isinstance(node, ast.ImportFrom) and base in [alias.name for alias in node.names]:
                fields |= _fields_in(file.parents[node.level - 1] / f"{node.module}.py", base) if node.level else (
                    _all_fields(f"{node.module}.{base}")
                )
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            fields[node.target.id] = _field(node)
    return fields


def _field(node: ast.AnnAssign) -> tuple[str, str, str]:
    default, help_text = "", ""
    for keyword in node.value.keywords if isinstance(node.value, ast.Call) else ():
        if keyword.arg == "default":
            default = ast.unparse(keyword.value).strip("'\"")
        elif keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
            texts = [value for value in keyword.value.values if isinstance(value, ast.Constant)]
            # %% is TRL's escape for argparse; ours comes later
            help_text = " ".join(str(text.value) for text in texts).replace("%%", "%")
    return ast.unparse(node.annotation), default, help_text


def add_training_flags(parser: Parser, show: bool, arguments: str = TRAINING_ARGUMENTS) -> None:
    """Add those that ``parser`` has not: absent from the namespace unless given, in --help only when ``show``."""
    group = parser.add_argument_group(f"training (every flag of {arguments})")
    fields = training_fields(arguments)
    for name, (annotation, default, help_text) in fields.items():
        flags = [f"--{each}" for each in (name, OLD_NAMES.get(name)) if each]
        if flags[0] in parser.flags:
            continue
        kind = _kind(annotation)
        text = f"{help_text} (default: {default})".replace("%", "%%") if show else argparse.SUPPRESS
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name, "help": text}
        if kind is boolean:
            group.add_argument(*flags, nargs="?", const=True, type=boolean, metavar="true|false", **settings)
        else:
            group.add_argument(*flags, type=kind, metavar=annotation.split(" ")[0].upper(), **settings)
    for name in sorted(DECIDED_BY_US_IN_SFT if arguments == SFT_CONFIG else DECIDED_BY_US):
        if f"--{name}" not in parser.flags:
            parser.add_argument(f"--{name}", nargs="?", action=_Refuse, help=argparse.SUPPRESS)


class _Refuse(argparse.Action):
    """A flag of the library's that our Trainer would not heed: better an error than no effect."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parser.error(f"--{self.dest} is not taken: our Trainer decides that itself")


def given_training_flags(values: Mapping[str, Any], arguments: str = TRAINING_ARGUMENTS) -> dict[str, Any]:
    """The part of a parsed namespace that goes to the training arguments."""
    return {name: value for name, value in values.items() if name in training_fields(arguments)}


def library_arguments(kind: type[T], **settings: Any) -> T:
    """Training arguments of a class of the library, without bars where nobody sees them.

    UserError, in one line, for what the library refuses, also for a tracker that is not installed.
    """
    from transformers.integrations import (
        get_available_reporting_integrations,
        get_reporting_integration_callbacks,
    )
    from transformers.training_args import trainer_log_levels
    from transformers.utils import is_liger_kernel_available
    from transformers.utils import logging as library_logging

    if not sys.stderr.isatty():
        settings.setdefault("disable_tqdm", True)
        library_logging.disable_progress_bar()
    try:
        arguments = kind(**settings)
        for flag in ("log_level", "log_level_replica"):  # which are looked up when the training begins
            level = getattr(arguments, flag)
            if level not in trainer_log_levels:
                raise ValueError(f"--{flag} {level}: expected one of {', '.join(trainer_log_levels)}")
        there, asked = get_available_reporting_integrations(), arguments.report_to  # type: ignore[attr-defined]
        for name, tracker in zip(asked, get_reporting_integration_callbacks(asked), strict=True):
            # Neptune's and MLflow's, half made, would print a traceback when they are taken apart again.
            if name not in (*there, "azure_ml", "flyte"):  # of which it does not tell
                raise ImportError(f"--report_to {name} needs the package of that name, which is not installed")
            tracker()  # says whether it is installed
        if arguments.use_liger_kernel and not is_liger_kernel_available():  # type: ignore[attr-defined]
            raise ImportError("--use_liger_kernel needs a package that is not installed: pip install liger-kernel")
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UserError(f"training arguments: {first_line(error)}") from error
    return arguments


def check_batches(arguments: Any, rows: int) -> None:
    """UserError where an epoch over so many rows would be none, as --dataloader_drop_last drops its only batch."""
    batch = arguments.train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and rows < batch:
        raise UserError(f"--dataloader_drop_last leaves nothing to train on: {rows:,} rows are less than one batch of "
                        f"{batch:,}; lower --per_device_train_batch_size, or leave it out")


def _kind(annotation: str) -> Callable[[str], Any]:
    parts = {part.strip() for part in annotation.split("|")} - {"None"}
    if "list[str]" in parts:
        return ListOf()
    kinds: dict[str, Callable[[str], Any]] = {"bool": boolean, "int": int, "float": number}
    return kinds.get(" ".join(parts), str)
