"""The tasks that there are, by name: every ``Task`` with a name in a module of this room."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from datamap import tasks
from datamap.core.artifacts import recorded_task
from datamap.core.errors import UserError
from datamap.tasks.base import Task

DEFAULT_TASK = "qa"
SPANS = ("nearest", "strict")


def _tasks_of_this_room() -> dict[str, type[Task]]:
    found = {}
    for each in pkgutil.iter_modules(tasks.__path__, f"{tasks.__name__}."):
        for value in vars(importlib.import_module(each.name)).values():
            if isinstance(value, type) and issubclass(value, Task) and "name" in vars(value):
                found[value.name] = value
    return dict(sorted(found.items()))


TASKS = _tasks_of_this_room()


def get_task(name: str, **settings: Any) -> Task:
    """The task of that name; settings: the fields of its class, such as text_columns and label_column."""
    known = _settings(name)
    for setting in settings:
        if setting not in known:
            raise UserError(f"--{setting} is not for --task {name}")
    return TASKS[name](**settings)


def _settings(name: str) -> set[str]:
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; there is {', '.join(TASKS)}")
    return {field.name for field in dataclasses.fields(TASKS[name])}  # type: ignore[arg-type]


def add_task_flags(group: Any, default: str = DEFAULT_TASK) -> None:
    """--task, --text_columns, --label_column, --spans: not needed where an artifact records them."""
    group.add_argument("--task", choices=list(TASKS),
                       help=f"what the dataset is for (default: as recorded by the earlier stage, else {default})")
    group.add_list("--text_columns", help="one or two columns with the texts, of nli and classification (default: "
                   "guessed from the usual names)")
    group.add_argument("--label_column", metavar="NAME", help="column with the classes (default: guessed)")
    group.add_argument("--spans", choices=SPANS, help="answers that do not stand at their answer_start: nearest takes "
                       "them where they do within 20 characters, strict leaves them out (default: nearest)")


def task_of(args: argparse.Namespace, recorded: Mapping[str, Any] | None) -> Task:
    """The task that the flags mean, where they are silent the one ``recorded``, else that of a dataset which a stage
    of ours wrote, else qa.

    A flag with the name of a field of the task's class is its setting.
    """
    earlier = dict(recorded or (recorded_task(args.dataset) if getattr(args, "dataset", None) else None) or {})
    name = args.task or earlier.get("name") or DEFAULT_TASK
    fields = _settings(name)
    flags = {"text_columns", "label_column", "spans"} | fields
    given = {flag: getattr(args, flag) for flag in sorted(flags) if getattr(args, flag, None)}
    known = {key: value for key, value in earlier.items() if key != "name"} if earlier.get("name") == name else {}
    if known and not given and "remembered" in fields:
        known["remembered"] = True
    return get_task(name, **{**known, **given})
