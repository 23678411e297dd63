"""argparse with the manners of this project: the parser of every script, and the types of its flags."""

from __future__ import annotations

import argparse
import copy
import difflib
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from datamap.core.errors import one_line

DEFAULT_DATASET = "Eladio/emrqa-msquad"
DEFAULT_MODEL = "google/electra-small-discriminator"
DEFAULT_SEED = 42
ALLOW_CHANGED = ("of examples that have changed since a file about them was made (one label, say), take what it says "
                 "all the same (default: they are left out of it, and counted)")


def boolean(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return values[text.lower()]


def positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return value


def number(text: str, low: float = float("-inf"), high: float = float("inf")) -> float:
    expected = "a number" if low == float("-inf") else f"a number from {low:g} to {high:g}"
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high or value in (float("inf"), float("-inf")):
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return value


def seed_number(text: str) -> int:
    value = number(text, 0, 2**32 - 1)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(value)


def fraction(text: str) -> float:
    return number(text, 0.0, 1.0)


class ListOf:
    """argparse type of a list written with commas or spaces: ``a,b`` or ``a b``."""

    def __init__(self, item: Callable[[str], Any] = str, choices: Sequence[Any] | None = None):
        self.item, self.choices = item, choices

    def __call__(self, text: str) -> list[Any]:
        values = []
        for part in text.replace(",", " ").split():
            try:
                values.append(self.item(part))
            except ValueError:
                name = getattr(self.item, "__name__", "value")
                raise argparse.ArgumentTypeError(f"expected a list of {name}, found {part!r}") from None
            if self.choices is not None and values[-1] not in self.choices:
                raise argparse.ArgumentTypeError(f"{part!r} is not one of {', '.join(map(str, self.choices))}")
        if not values:
            raise argparse.ArgumentTypeError("expected at least one value, found none")
        return values


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str, **kwargs: Any):
        super().__init__(prog, max_help_position=34, width=110, **kwargs)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        silent = action.default is None or action.default is False or action.default is argparse.SUPPRESS
        return text if silent or "default" in text else f"{text} (default: %(default)s)"


class _Flags:
    """The two kinds of flag that plain argparse lacks, for parsers and for their groups."""

    add_argument: Callable[..., argparse.Action]
    _add_action: Callable[[Any], Any]

    def add_switch(self, flag: str, *, help: str, default: bool = False) -> argparse.Action:
        return self.add_argument(
            flag, nargs="?", const=True, default=default, type=boolean, metavar="true|false", help=help
        )

    def add_list(
        self, flag: str, *, help: str, type: Callable[[str], Any] = str, default: list[Any] | None = None,
        choices: Sequence[Any] | None = None, metavar: str = "A,B",
    ) -> argparse.Action:
        return self.add_argument(flag, type=ListOf(type, choices), default=default, metavar=metavar, help=help)

    def take_flags(self, other: Parser, left_out: Set[str], shown: Mapping[str, str]) -> None:
        """The flags of another script's parser but those ``left_out``: absent from the namespace unless given. In
        --help stand those ``shown``, with a text for each."""
        for action in other._actions:
            if action.dest in left_out:
                continue
            taken = copy.copy(action)
            taken.default, taken.help = argparse.SUPPRESS, shown.get(action.dest, argparse.SUPPRESS)
            self._add_action(taken)


class _Group(argparse._ArgumentGroup, _Flags):
    pass


class Parser(argparse.ArgumentParser, _Flags):
    """argparse with the manners of this project.

    Flags may be written with dashes or underscores, are never abbreviated, take lists with commas or spaces, and
    list values may begin with a minus sign (``--exclude_clusters "-1,3"``). An error is one line and exit status 2.
    """

    def __init__(self, description: str | None = None, script: str | None = None):
        # Whoever calls main, the messages name the script.
        script = script or Path(sys._getframe(1).f_globals["__file__"]).name
        super().__init__(script, description=description, allow_abbrev=False, formatter_class=_HelpFormatter)
        self.color = False  # what Python 3.14 colours with escapes, which command_line would show

    def add_argument_group(self, *args: Any, **kwargs: Any) -> Any:
        group = _Group(self, *args, **kwargs)
        self._action_groups.append(group)
        return group

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def,override]
        words = self.normalize(sys.argv[1:] if args is None else list(args))
        for word in words:
            if any("\ud800" <= character <= "\udfff" for character in word):
                self.error(f"{word!r:.100} is no UTF-8 text, and could not be recorded; rename what it names")
        values, rest = super().parse_known_args(words, namespace)
        for action in self._actions:  # an empty value would be taken for none, and another thing done than was meant
            if getattr(values, action.dest, None) == "" != action.default:
                self.error(f"{action.option_strings[0]} is empty: give a value, or leave it out (is a shell variable "
                           "not set?)")
        return values, rest

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def,override]
        values, rest = self.parse_known_args(args, namespace)
        if rest:
            name = rest[0].partition("=")[0]
            self.error(f"unknown argument {name}{self.nearest(name)}")
        return values

    @property
    def flags(self) -> list[str]:
        return list(self._option_string_actions)

    def action(self, flag: str) -> argparse.Action:
        return self._option_string_actions[flag]

    def nearest(self, flag: str) -> str:
        """``; did you mean --flag?`` for an unknown flag, or nothing."""
        near = [each for each in self.flags if each.startswith(flag)] or difflib.get_close_matches(flag, self.flags, 1)
        return f"; did you mean {near[0]}?" if near else ""

    def normalize(self, argv: list[str]) -> list[str]:
        """Underscores in flag names, and the values of a list flag joined to it so that "-1,3" is not a flag."""
        result: list[str] = []
        position = 0
        while position < len(argv):
            token = str(argv[position])
            position += 1
            if not token.startswith("--") or token == "--":
                result.append(token)
                continue
            name, equals, value = token.partition("=")
            name = "--" + name[2:].replace("-", "_")
            action = self._option_string_actions.get(name)
            if action is None or equals or not isinstance(action.type, ListOf):
                result.append(name + equals + value)
                continue
            values = []
            while position < len(argv) and not str(argv[position]).startswith("--") and str(argv[position]) != "-h":
                values.append(str(argv[position]))
                position += 1
            result.append(name + "=" + ",".join(values))
        return result

    def error(self, message: str) -> Any:  # type: ignore[override]
        print(f"{self.prog}: error: {one_line(message)} ({self.prog} --help lists the flags)", file=sys.stderr)
        raise SystemExit(2)
