"""Flags of a script in a JSON file: ``{"num_train_epochs": 5, "eval_split": ["validation", "test"]}``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamap.core.errors import UserError, repeated
from datamap.core.files import read_json
from datamap.core.flags import ListOf, Parser, boolean


def with_config(parser: Parser, argv: Sequence[str]) -> list[str]:
    """``argv`` behind the flags of the file that its ``--config`` names, so that the command line wins."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    finder.error = parser.error  # type: ignore[method-assign]
    argv = parser.normalize([str(word) for word in argv])
    file = finder.parse_known_args(argv)[0].config
    return argv if file is None else [*flags_to_argv(parser, read_mapping(file), file), *argv]


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file; UserError when it is something else, or when a key stands in it twice."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; expected a JSON file")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := repeated(name for name, _ in pairs):  # json keeps the last and is silent
            raise UserError(f"{path}: {twice[0]!r} occurs twice in one object; leave one, or write a list of both")
        return dict(pairs)

    value = read_json(path, object_pairs_hook=unique)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {value!r:.60}")
    return value


def flags_to_argv(parser: Parser, flags: Mapping[str, Any], source: str) -> list[str]:
    """Flags and their values as the words of a command line.

    A list is a list flag's value, true and false are those of a switch, null is the default. UserError, which names
    ``source``, for a flag that ``parser`` does not know and for a value that would become another on the way.
    """
    argv = []
    seen: dict[str, str] = {}
    for name, value in flags.items():
        flag = "--" + name.replace("-", "_")
        if flag not in parser.flags or flag == "--config":
            raise UserError(f"{source}: unknown flag {name!r}{parser.nearest(flag)}")
        action = parser.action(flag)
        if (other := seen.setdefault(action.dest, name)) != name:
            raise UserError(f"{source}: {other} and {name} are one flag; leave one")
        if value is None:
            continue  # the default
        words = value if isinstance(value, list) else [value]
        if not all(isinstance(word, str | bool | int | float) for word in words):
            raise UserError(f"{source}: {name} is {value!r:.60}; expected a value or a list of values")
        if isinstance(value, list):
            if not isinstance(action.type, ListOf):
                raise UserError(f"{source}: {name} is {value!r:.60}; expected one value")
            if broken := [word for word in words if len(str(word).replace(",", " ").split()) != 1]:
                raise UserError(f"{source}: {name} holds {broken[0]!r}; an item holds no comma and no blank")
        if any(isinstance(word, bool) for word in words) and action.type is not boolean:
            raise UserError(f"{source}: {name} is {value!r:.60}; it is no switch")
        texts = [str(word).lower() if isinstance(word, bool) else str(word) for word in words]
        argv.append(f"{flag}={','.join(texts)}")
    return argv


def joined(parser: Parser, argv: Sequence[str]) -> list[str]:
    """The same command line with every flag and its value in one word."""
    words: list[str] = []
    for word in parser.normalize([str(each) for each in argv]):
        if word.startswith("--") or not words or "=" in words[-1]:
            words.append(word)
        else:
            words[-1] += f"={word}"
    return words
