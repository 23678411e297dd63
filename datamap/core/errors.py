"""Errors, status lines and the manners of a script: one line for a mistake, exit statuses, quiet libraries."""

from __future__ import annotations

import errno
import functools
import gc
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from datamap.core.progress import all_ended

T = TypeVar("T")

# What libraries that keep no errno say of a disk that is full: safetensors, torch.save, numpy.
DISK_IS_FULL = re.compile(r"\(os error \d+\)|basic_ios::clear|inline_container\.cc|PytorchStreamWriter"
                          r"|\d+ requested and \d+ written")
LONGEST_LINE = 2_000  # characters of an error
# How often unreachable cycles are looked for, by objects made. Python's own 700 has it look through the hundred
# thousands of rows that are read, which are none, again and again: profilers show it as time of whatever allocates.
RARELY = (100_000, 20, 100)
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
    """For a terminal; of a value as long as a book, which some message repeats, the middle is left out."""
    line = printable(text).replace("\n", r"\n")
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 4:]}"


class _Printable:
    """A stream that shows the control characters of what it is given instead of passing them on."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class StatusHandler(logging.StreamHandler):
    """What logging shows on stderr."""

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
    if not any(isinstance(handler, StatusHandler) for handler in root.handlers):
        handler = StatusHandler()
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
    """Wrap ``main(argv=None)``: a UserError, and whatever the system refuses to read or write, becomes one line on
    stderr and exit status 2, Ctrl-C exit status 130.

    What is printed may hold labels and texts of anybody's: a terminal only ever sees them as text (``printable``).
    """

    @functools.wraps(main)
    def wrapper(argv: Sequence[str] | None = None) -> None:
        name = Path(main.__globals__["__file__"]).name
        collections = gc.get_threshold()
        try:
            gc.set_threshold(*RARELY)
            _open_closed_streams()
            setup_logging()
            try:
                with redirect_stdout(_Printable(sys.stdout)), all_ended():  # type: ignore[type-var]
                    main(argv)
            except SystemExit:  # of --help
                sys.stdout.flush()
                raise
            sys.stdout.flush()  # here, where it can still be told that it fails
        except UserError as error:
            _end(f"{name}: error: {one_line(str(error))}", 2)
        except KeyboardInterrupt:
            _end(f"{name}: interrupted", 130)
        except BrokenPipeError:  # of ``| head``, which has read enough
            _end("", 1)
        except Exception as error:
            if (refusal := refused_by_system(error)) is None:
                raise
            if _is_of_stream(error):
                refusal = f"standard output cannot be written ({refusal}); the files that were written are whole"
            else:  # each stage that was open has noted what is left of it
                refusal = "; ".join([refusal, *getattr(error, "__notes__", ())])
                refusal += "; make room or mend that, then run the same command again"
            _end(f"{name}: error: {refusal}", 2)
        finally:
            gc.set_threshold(*collections)

    return wrapper


def refused_by_system(error: BaseException) -> str | None:
    """What the system refused, a full disk for example, and of which file; None for an error of another kind."""
    is_of_network = isinstance(error, ConnectionError | TimeoutError)
    if isinstance(error, OSError) and error.errno is not None and not is_of_network:
        what = os.strerror(error.errno)
    elif DISK_IS_FULL.search(str(error)) and (
        isinstance(error, OSError | RuntimeError | ValueError) or type(error) is Exception  # of tokenizers
    ) or (type(error).__name__ == "SafetensorError" and "I/O error" in str(error)):
        what = f"a file could not be written whole, as on a full disk: {first_line(error)}"
    else:
        return None
    file = getattr(error, "filename", None)
    return f"{what}{f': {file}' if file else ''}"


def _is_of_stream(error: Exception) -> bool:
    """Whether a standard stream could not be written: an error that names no file, and was in no stage."""
    named = getattr(error, "filename", None) is not None or hasattr(error, "__notes__")
    return not named and getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _open_closed_streams() -> None:
    """A standard stream that is closed (``2>&-``) becomes the null device: the next file would take its place."""
    for stream, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, mode))  # noqa: SIM115  open until the end


def _end(message: str, status: int) -> NoReturn:
    with suppress(OSError):  # stderr itself may be full
        print(message, end="\n" * bool(message), file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        if _is_broken(stream):  # or the interpreter says so again, with another exit status
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    raise SystemExit(status) from None


def _is_broken(stream: Any) -> bool:
    try:
        stream.flush()
    except OSError:
        return True
    return False


def name_a_few(items: Iterable[Any], limit: int = 3) -> str:
    """``'a', 'b', 'c', ...``: enough of a list to find the trouble."""
    items = list(items)
    return ", ".join(repr(item) for item in items[:limit]) + (", ..." if len(items) > limit else "")


def repeated(items: Iterable[T]) -> list[T]:
    """The items that are there more than once, each one time."""
    items = list(items)
    return [item for item, count in Counter(items).items() if count > 1] if len(set(items)) < len(items) else []


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, without its full stop; the name of its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
