"""Locks: one process at a time writes into a directory or a file, and the others are told who, and since when.

A lock is held on a file (``flock``) and goes with the process, however it ends: a killed run blocks nobody.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datamap.core.errors import UserError

LOCK = ".lock"  # of a directory
PATIENCE = 0.5  # seconds; who looks whether a lock is free holds it for a moment
BUSY = (errno.EAGAIN, errno.EACCES)
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of some network file systems

logger = logging.getLogger(__name__)


class Locked(UserError):
    """Another process holds the lock."""


@dataclass
class _Held:
    descriptor: int
    since: str
    entered: int = 0


_held: dict[Path, _Held] = {}  # by this process


@contextmanager
def lock(file: str | Path, doing: str = "writing", wait: bool = False) -> Iterator[int]:
    """Hold a lock file (``directory/.lock``, or ``name.lock`` beside a file); yields its descriptor.

    Locked, a UserError that says who is ``doing`` what since when, where another process holds it; with ``wait`` it is
    waited for. A process may hold a lock several times over. A directory that is not there is made, and goes again if
    nothing comes into it. Where the file system has no locks a warning says so, and nothing is held.
    """
    file = Path(file)
    path = file.absolute()
    path = path.parent.resolve() / path.name
    if path not in _held:
        made = [parent for parent in path.parents if not parent.exists()]
        _held[path] = _Held(_acquire(path, file, doing, wait), datetime.now(UTC).isoformat(timespec="seconds"))
    else:
        made = []
    held = _held[path]
    held.entered += 1
    _sign(held)
    try:
        yield held.descriptor
    finally:
        held.entered -= 1
        if not held.entered:
            del _held[path]
            path.unlink(missing_ok=True)  # before it is free: whoever waits for it looks whether it is still there
            os.close(held.descriptor)
            with suppress(OSError):  # not empty
                for directory in made:
                    directory.rmdir()


def is_locked(file: str | Path) -> bool:
    """Whether a process holds this lock."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:  # not there, or none of ours
        return False
    try:
        return not _flock(descriptor, shared=True)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        raise
    finally:
        os.close(descriptor)


def check_unlocked(file: str | Path, doing: str = "writing") -> None:
    """Raise Locked where another process holds this lock; for a word before long work, ``lock`` asks again."""
    path = Path(file).absolute()
    if path.parent.resolve() / path.name not in _held and is_locked(file):
        raise Locked(_refusal(Path(file), doing))


def _acquire(path: Path, shown: Path, doing: str, wait: bool) -> int:
    end = time.monotonic() + PATIENCE
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the directory went with the last lock in it
            continue
        keep = False
        try:
            if _flock(descriptor, wait=wait):
                keep = os.path.samestat(os.fstat(descriptor), os.stat(path))
            elif time.monotonic() > end:
                raise Locked(_refusal(shown, doing))
            else:
                time.sleep(PATIENCE / 10)
        except FileNotFoundError:  # it was removed when it was given back
            pass
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            logger.warning(f"{path.parent} is on a file system without locks ({error.strerror}): nothing keeps a "
                           "second run out, so start none there")
            keep = True
        finally:
            if not keep:
                os.close(descriptor)
        if keep:
            return descriptor


def _flock(descriptor: int, shared: bool = False, wait: bool = False) -> bool:
    """Whether it was free."""
    try:
        import fcntl
    except ImportError as error:  # not Unix
        raise OSError(errno.ENOSYS, "this system has none") from error
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in BUSY:
            return False
        raise
    return True


def _sign(held: _Held) -> None:
    """Who holds it; the command is the latest, for a worker carries out several."""
    command = " ".join(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]).split())
    by = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": held.since}
    content = json.dumps(by).encode()
    os.pwrite(held.descriptor, content, 0)
    os.ftruncate(held.descriptor, len(content))


def _refusal(file: Path, doing: str) -> str:
    place = file.parent if file.name == LOCK else file.with_name(file.name.removesuffix(".lock"))
    by: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # gone, or about to be written
        by = json.loads(file.read_bytes())
    who = f" since {by['since']} ({by['command']:.80}, process {by['pid']} on {by['host']})" if by else ""
    return f"{place}: another process is {doing}{who}; wait until it is through, or name another place to write to"
