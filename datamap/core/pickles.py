"""Pickles of other people, read without running them: lists, tuples, dicts, strings and numbers, and nothing else.

A pickle is a program. ``pickle.load`` looks up any name that it holds and calls it; here its instructions are read
one by one (``pickletools.genops``), those that build plain values are carried out, and any other ends the reading.
"""

from __future__ import annotations

import functools
import pickletools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamap.core.errors import UserError, first_line, name_a_few
from datamap.core.files import read_bytes

SUFFIXES = (".pkl", ".pickle")
VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE",
          "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
PYTHON_2_TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
NAMES = {"GLOBAL", "INST", "STACK_GLOBAL"}
DEEPEST = 20
LARGEST = 100  # times the size of the file, when what it holds several times is written out
STORY_COLUMNS = ("story", "question", "label", "num_actors", "num_sentences")
SIGNS = {"pos": 1, "neg": 0}


# --- plain values ------------------------------------------------------------------------------------------------


def load_plain(raw: bytes, where: str | Path) -> Any:
    """The value of a pickle of any protocol: None, booleans, numbers of up to 64 bits, strings, and lists, tuples and
    dicts of these, at most DEEPEST deep. UserError in one line for whatever else it holds, and where it is damaged.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks below the marks
    memo: dict[int, Any] = {}
    try:
        for operation, argument, position in pickletools.genops(raw):
            name = operation.name
            if name == "STOP":
                [value] = stack
                if outer or position is None or position + 1 != len(raw):
                    raise ValueError("it goes on after its end")
                _check_plain(value, where, LARGEST * len(raw))
                return value
            if name == "MARK":
                outer.append(stack)
                stack = []
            elif name in ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS"):
                items, stack = stack, outer.pop()
                if name in ("APPENDS", "SETITEMS"):
                    _add(stack[-1], items, name == "SETITEMS")
                else:
                    made: Any = tuple(items) if name == "TUPLE" else items if name == "LIST" else {}
                    stack.append(made)
                    if name == "DICT":
                        _add(made, items, True)
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "SETITEM"):
                size = 1 if name == "APPEND" else 2 if name == "SETITEM" else int(name[-1])
                items = [stack.pop() for _ in range(size)][::-1]
                if name.startswith("TUPLE"):
                    stack.append(tuple(items))
                else:
                    _add(stack[-1], items, name == "SETITEM")
            elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if argument is None else int(argument)] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[int(argument or 0)])
            elif name not in ("PROTO", "FRAME"):
                stack.append(_value(name, argument, stack, where))
        raise ValueError("it has no end")
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise UserError(f"{where} is no whole pickle ({first_line(error) or type(error).__name__:.80})") from error


def _value(name: str, argument: Any, stack: Sequence[Any], where: str | Path) -> Any:
    """What an operation puts on the stack; UserError for one that does not make a plain value."""
    if name in VALUES or name in PYTHON_2_TEXTS and str(argument).isascii():
        if isinstance(argument, int) and not -(2**63) <= argument < 2**64:
            raise UserError(f"{where} holds a number of more than 64 bits")
        return argument
    if name in CONSTANTS:
        return CONSTANTS[name]
    if name in EMPTY:
        return EMPTY[name]()
    found = f"holds {name}"
    if name in NAMES:
        words = list(stack[-2:]) if name == "STACK_GLOBAL" else str(argument).split(" ", 1)
        found = f"names {'.'.join(map(str, words))!r:.80}"
    raise UserError(f"{where} {found}: of pickles only lists, tuples, dicts, strings and numbers are read, as "
                    "anything else may run a program; write it as JSON Lines with what made it")


def _add(target: Any, items: list[Any], in_pairs: bool) -> None:
    if isinstance(target, list) and not in_pairs:
        target.extend(items)
        return
    if not isinstance(target, dict) or not in_pairs:
        raise ValueError(f"adds to a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        parts = key if isinstance(key, tuple) else (key,)
        if any(isinstance(part, tuple | list | dict) for part in parts):  # deep ones would overrun the hash
            raise ValueError("a key that is no string, number or tuple of these")
        target[key] = value


def _check_plain(value: Any, where: str | Path, most: int) -> None:
    """UserError for what is too deep, as what holds itself is, and for what grows beyond ``most`` when written out:
    a file of a kilobyte can hold a list of ten of a list of ten of ..."""
    left, size = [(value, 0)], 0
    while left:
        each, depth = left.pop()
        size += 1 + (len(each) if isinstance(each, str) else 0)
        if depth > DEEPEST:
            raise UserError(f"{where} is nested more than {DEEPEST} deep, or holds itself; is it a dataset?")
        if size > most:
            raise UserError(f"{where} holds the same again and again: written out it is more than {LARGEST} times as "
                            "large as the file")
        if isinstance(each, dict):
            left.extend((part, depth + 1) for pair in each.items() for part in pair)
        elif isinstance(each, list | tuple):
            left.extend((part, depth + 1) for part in each)


# --- stories -----------------------------------------------------------------------------------------------------


def pickled_splits(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of a pickle by split.

    Rows are dicts, or tuples (or lists) in the order of STORY_COLUMNS, the first three at least: a list of these is
    the split ``train``. A story can be ``(sentences, (first, second, is_yes), facts)``, as in files that sort them as
    ``{(split, num_actors, num_sentences): {"pos": [...], "neg": [...]}}`` (katst3/following_pipeline, whose question
    it gets: "Is SECOND following FIRST?"); the split in the key may be missing, which means ``train``.
    """
    path = Path(path)
    return _splits(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _splits(path: Path, changed: int) -> dict[str, list[dict[str, Any]]]:
    content = load_plain(read_bytes(path), path)
    if isinstance(content, list | tuple):
        return {"train": [_row(each, f"{path}, item {number}") for number, each in enumerate(content, 1)]}
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds {content!r:.40}; expected a list of dicts or tuples, or stories by split and "
                        "length")
    splits: dict[str, list[dict[str, Any]]] = {}
    for key, groups in content.items():
        where = f"{path}, key {key!r:.60}"
        if not isinstance(groups, dict) or not groups.keys() <= SIGNS.keys() or not groups:
            raise UserError(f"{where}: expected lists of stories by {' and '.join(map(repr, SIGNS))}, found "
                            f"{groups!r:.60}")
        split, facts = _of_key(key, where)
        rows = splits.setdefault(split, [])
        for sign, stories in groups.items():
            if not isinstance(stories, list | tuple):
                raise UserError(f"{where}: expected a list of stories in {sign!r}, found {stories!r:.60}")
            for number, story in enumerate(stories, 1):
                here = f"{where}, story {number} of {sign!r}"
                row = {**_story(story, here), **facts} if _is_story(story) else _row(story, here)
                if row.get("label") != SIGNS[sign]:
                    raise UserError(f"{here}: its answer is {row.get('label')!r:.20}, and it stands in {sign!r}")
                rows.append(row)
    return splits


def _of_key(key: Any, where: str) -> tuple[str, dict[str, int]]:
    """The split and the facts in a key: ``("train", 5, 10)`` or ``(5, 10)``."""
    parts = list(key) if isinstance(key, tuple) else [key]
    split = parts.pop(0) if parts and isinstance(parts[0], str) else "train"
    if len(parts) > 2 or not all(isinstance(part, int) for part in parts):
        raise UserError(f"{where}: expected (split, num_actors, num_sentences)")
    return split, dict(zip(STORY_COLUMNS[3:], parts, strict=False))


def _row(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        row = {str(name): each for name, each in value.items()}
        return {**row, **_story(row["story"], where)} if _is_story(row.get("story")) else row
    if _is_story(value):
        return _story(value, where)
    if isinstance(value, list | tuple) and 3 <= len(value) <= len(STORY_COLUMNS):
        return dict(zip(STORY_COLUMNS, value, strict=False))
    raise UserError(f"{where}: expected a dict, or {', '.join(STORY_COLUMNS)} in this order, found {value!r:.60}")


def _is_story(value: Any) -> bool:
    """Whether it is ``(sentences, (first, second, is_yes))``, with facts or without."""
    return (isinstance(value, list | tuple) and len(value) in (2, 3) and all(isinstance(part, list | tuple)
            for part in value[:2]) and len(value[1]) == 3)


def _story(value: Sequence[Any], where: str) -> dict[str, Any]:
    sentences, (first, second, is_yes), *more = value
    facts = more[0] if more else {}
    if (not all(isinstance(each, str) for each in (*sentences, first, second)) or is_yes not in (0, 1)
            or not isinstance(facts, dict)):
        raise UserError(f"{where}: expected sentences, two names with yes or no, and perhaps a dict of facts, found "
                        f"{value!r:.60}")
    facts = {"num_sentences" if name == "n_sentences" else str(name): fact for name, fact in facts.items()}
    if clash := sorted(facts.keys() & set(STORY_COLUMNS[:3])):
        raise UserError(f"{where}: its facts hold {name_a_few(clash)}, which the story itself says")
    return {"story": " ".join(each.strip() for each in sentences), "question": f"Is {second} following {first}?",
            "label": int(is_yes), **facts}
