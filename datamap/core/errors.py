"""Errors, status lines and the manners of a script: one line for a mistake, exit statuses, quiet libraries."""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
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


# Those that a terminal obeys (escape, backspace, carriage return, ...), those that turn the direction of what follows,
# and halves of characters, which cannot be written.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` as a terminal may show it: control characters, beside tab and line end, as ``\\x1b``."""
    return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    return printable(text).replace("\n", r"\n")


class _Printable:
    """A stream that shows the control characters of what it is given instead of passing them on."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _StatusHandler(logging.StreamHandler):
    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr  # that of the moment: a caller may have replaced it since
        super().emit(record)


class _StatusFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = printable(super().format(record))
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
    """Wrap ``main(argv=None)``: a UserError becomes one line on stderr and exit status 2, Ctrl-C exit status 130.

    What is printed may hold labels and texts of anybody's: a terminal only ever sees them as text (``printable``).
    """

    @functools.wraps(main)
    def wrapper(argv: Sequence[str] | None = None) -> None:
        name = Path(main.__globals__["__file__"]).name
        setup_logging()
        try:
            with redirect_stdout(_Printable(sys.stdout)), all_ended():  # type: ignore[type-var]
                main(argv)
        except UserError as error:
            print(f"{name}: error: {one_line(str(error))}", file=sys.stderr)
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
