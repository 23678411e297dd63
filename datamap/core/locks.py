"""Locks: one process at a time writes into a directory or a file, and the others are told who, and since when.

A lock is held on a file (``flock``, by way of filelock) and goes with the process: a killed run blocks nobody.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from datamap.core.errors import UserError

LOCK = ".lock"  # of a directory
PATIENCE = 0.5  # seconds; who looks whether a lock is free holds it for a moment
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of some network file systems

logger = logging.getLogger(__name__)
_held: dict[Path, list[int]] = {}  # by this process, with their descriptors


class Locked(UserError):
    """Another process holds the lock."""


@contextmanager
def lock(file: str | Path, doing: str = "writing", wait: bool = False) -> Iterator[list[int]]:
    """Hold a lock file (``directory/.lock``, or ``name.lock`` beside a file); yields what a child that is to hold it
    too needs as its ``pass_fds``.

    Locked, a UserError that says who is ``doing`` what since when, where another process holds it; with ``wait`` it is
    waited for. A process may hold a lock several times over. A directory that is not there is made, and goes again if
    nothing comes into it. Where the file system has no locks a warning says so, and nothing is held.
    """
    path = Path(file).resolve()
    if path in _held:
        yield _held[path]
        return
    made = [parent for parent in path.parents if not parent.exists()]
    descriptors: list[int] = []
    held = FileLock(path, -1 if wait else PATIENCE, fallback_to_soft=False, on_acquired=descriptors.append)
    _acquire(held, Path(file), doing)
    _held[path] = descriptors
    try:
        command = " ".join(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]).split())
        since = datetime.now(UTC).isoformat(timespec="seconds")
        who = f" since {since} ({command:.80}, process {os.getpid()} on {socket.gethostname()})"
        path.write_text(who, encoding="utf-8", errors="backslashreplace")
        yield descriptors
    finally:
        del _held[path]
        path.unlink(missing_ok=True)  # before it is free: filelock looks whether what it waited for is still there
        held.release()
        with suppress(OSError):  # not empty
            for directory in made:
                directory.rmdir()


def is_held(file: str | Path) -> bool:
    """Whether this process holds this lock."""
    return Path(file).resolve() in _held


def is_locked(file: str | Path) -> bool:
    """Whether a process is known to hold this lock."""
    try:
        with Path(file).open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: several may look at once
    except OSError as error:
        return isinstance(error, BlockingIOError)  # else: not there, not to be read, or no locks here
    return False


def check_unlocked(file: str | Path, doing: str = "writing") -> None:
    """Raise Locked where another process holds this lock; for a word before long work, ``lock`` asks again."""
    if not is_held(file) and is_locked(file):
        raise Locked(_refusal(Path(file), doing))


def _acquire(held: FileLock, file: Path, doing: str) -> None:
    while True:
        Path(held.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire()
        except FileNotFoundError:  # the directory went with the last lock in it
            continue
        except Timeout:
            raise Locked(_refusal(file, doing)) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            logger.warning(f"{file.parent} is on a file system without locks ({error.strerror}): nothing keeps a "
                           "second run out, so start none there")
        return


def _refusal(file: Path, doing: str) -> str:
    place = file.parent if file.name == LOCK else file.with_name(file.name.removesuffix(".lock"))
    who = ""
    with suppress(OSError):  # just given back
        who = file.read_text(encoding="utf-8")
    return f"{place}: another process is {doing}{who}; wait until it is through, or name another place to write to"
