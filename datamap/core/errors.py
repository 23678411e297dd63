"""Errors, status lines and the manners of a script: one line for a mistake, exit statuses, quiet libraries."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from datamap.core.progress import all_ended

T = TypeVar("T")

QUIET_LIBRARIES = (
    "httpx", "httpx2", "openai", "datasets", "huggingface_hub", "accelerate", "torch", "fontTools", "matplotlib",
    "numba",
)


class UserError(Exception):
    """A mistake of the user's. The message is one line: what was found, what was expected, how to mend it."""


class _StatusHandler(logging.StreamHandler):
    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr  # that of the moment: a caller may have replaced it since
        super().emit(record)


class _StatusFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def setup_logging() -> None:
    """Send status lines to stderr: ours from INFO up, the libraries' from WARNING up, once per process."""
    root = logging.getLogger()
    if not any(isinstance(handler, _StatusHandler) for handler in root.handlers):
        handler = _StatusHandler()
        handler.setFormatter(_StatusFormatter())
        root.addHandler(handler)
    # Other processes of a distributed run would only repeat what the first one says.
    root.setLevel(logging.INFO if is_main_process() else logging.ERROR)
    for library in QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of every optional kernel that is not there
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def is_main_process() -> bool:
    """Whether this is the process that writes files: rank 0 of a distributed run, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def command_line(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``main(argv=None)``: a UserError becomes one line on stderr and exit status 2, Ctrl-C exit status 130."""

    @functools.wraps(main)
    def wrapper(argv: Sequence[str] | None = None) -> None:
        name = Path(main.__globals__["__file__"]).name
        setup_logging()
        try:
            with all_ended():
                main(argv)
        except UserError as error:
            print(f"{name}: error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:  # of ``| head``, which has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None

    return wrapper


def name_a_few(items: Iterable[Any], limit: int = 3) -> str:
    """``'a', 'b', 'c', ...``: enough of a list to find the trouble."""
    items = list(items)
    return ", ".join(repr(item) for item in items[:limit]) + (", ..." if len(items) > limit else "")


def repeated(items: Iterable[T]) -> list[T]:
    """The items that are there more than once, each one time."""
    return [item for item, count in Counter(items).items() if count > 1]


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, without its full stop; the name of its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
