"""The flags of the library's training arguments, read from its source, because importing it costs seconds."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datamap.core.errors import UserError
from datamap.core.flags import ListOf, Parser, boolean, number

# Flags that scripts define themselves, or whose meaning our Trainer takes over.
TAKEN = {
    "output_dir", "seed", "do_train", "do_eval", "do_predict", "resume_from_checkpoint", "remove_unused_columns",
    "train_sampling_strategy", "length_column_name", "label_smoothing_factor", "label_names", "include_for_metrics",
    "batch_eval_metrics", "prediction_loss_only", "local_rank", "eval_do_concat_batches", "parallelism_config",
}
# The same of train_sft.py: the rows, the model and the tokenizer are its own affair.
TAKEN_OF_SFT = {
    *TAKEN, "model_init_kwargs", "trust_remote_code", "chat_template_path", "dataset_text_field", "dataset_kwargs",
    "eos_token", "pad_token", "truncation_mode", "shuffle_dataset", "padding_free", "eval_packing",
    "completion_only_loss", "assistant_only_loss",
}
OLD_NAMES = {"evaluation_strategy": "eval_strategy"}
# Class of training arguments -> where it and those that it extends are defined, the first one first.
SOURCES = {
    "transformers.TrainingArguments": (("transformers", "training_args.py", "TrainingArguments"),),
    "trl.SFTConfig": (
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/sft_config.py", "SFTConfig"),
    ),
}


def taken(arguments: str) -> set[str]:
    return TAKEN_OF_SFT if arguments == "trl.SFTConfig" else TAKEN


@functools.cache
def training_fields(arguments: str = "transformers.TrainingArguments") -> dict[str, tuple[str, str, str]]:
    """Name -> (annotation, default as written, help) of every field of a class of SOURCES that is not taken."""
    fields = {}
    for package, file, name in SOURCES[arguments]:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise UserError(f"{package} is not installed: pip install {package}")
        source = (Path(spec.origin).parent / file).read_text(encoding="utf-8")
        body = next(
            node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name
        )
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                fields[node.target.id] = _field(node)
    return {name: field for name, field in fields.items() if name not in taken(arguments) and not name.startswith("_")}


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


def add_training_flags(parser: Parser, show: bool, arguments: str = "transformers.TrainingArguments") -> None:
    """Add those that ``parser`` has not: absent from the namespace unless given, in --help only when ``show``."""
    group = parser.add_argument_group(f"training (every flag of {arguments})")
    old = {new: old for old, new in OLD_NAMES.items()}
    for name, (annotation, default, help_text) in training_fields(arguments).items():
        flags = [f"--{name}"] + ([f"--{old[name]}"] if name in old else [])
        if f"--{name}" in parser.flags:
            continue
        kind = _kind(annotation)
        text = f"{help_text} (default: {default})".replace("%", "%%") if show else argparse.SUPPRESS
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name, "help": text}
        if kind is boolean:
            group.add_argument(*flags, nargs="?", const=True, type=boolean, metavar="true|false", **settings)
        else:
            group.add_argument(*flags, type=kind, metavar=annotation.split(" ")[0].upper(), **settings)
    for name in sorted(taken(arguments) - {action.dest for action in parser._actions}):
        parser.add_argument(f"--{name}", nargs="?", action=_Refuse, help=argparse.SUPPRESS)


class _Refuse(argparse.Action):
    """A flag of the library's that our Trainer would not heed: better an error than no effect."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parser.error(f"--{self.dest} is not taken: our Trainer decides that itself")


def given_training_flags(
    values: Mapping[str, Any], arguments: str = "transformers.TrainingArguments"
) -> dict[str, Any]:
    """The part of a parsed namespace that goes to the training arguments."""
    return {name: value for name, value in values.items() if name in training_fields(arguments)}


def _kind(annotation: str) -> Callable[[str], Any]:
    parts = {part.strip() for part in annotation.split("|")} - {"None"}
    if "list[str]" in parts:
        return ListOf()
    if parts == {"bool"}:
        return boolean
    if parts == {"int"}:
        return int
    if parts == {"float"}:
        return number
    return str
