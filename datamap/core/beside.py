"""Work that a second core does meanwhile, where Python's lock lets threads do it only in turn."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any


def second_core() -> bool:
    """Whether there is one, and a process that shares the memory of this one may be had for it: on Linux."""
    return sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1


def begin(works: Sequence[Callable[[], Any]]) -> list[Callable[[], Any]]:
    """Begin these, one after the other, in a process that sees all that is in memory now; what waits for each result.

    A result must be picklable, and of its process it brings nothing but itself. What a work raises is raised where its
    result is waited for. The works use nothing that needs threads of the parent: no torch, no products of matrices.
    Without a ``second_core`` each is done when it is asked for.
    """
    if not second_core():
        return list(works)
    import multiprocessing

    forked = multiprocessing.get_context("fork")
    receives, sends = forked.Pipe(duplex=False)
    process = forked.Process(target=_work, args=(works, receives, sends), daemon=True)
    process.start()
    sends.close()
    done: list[bytes] = []
    lock = threading.Lock()

    def wait_for(place: int) -> Any:
        with lock:
            while len(done) <= place:
                try:
                    done.append(receives.recv_bytes())
                except EOFError:
                    process.join()
                    raise RuntimeError("the process of a second core ended before its work was done: exit status "
                                       f"{process.exitcode}; out of memory?") from None
        went_well, found = pickle.loads(done[place])
        if not went_well:
            raise found
        return found

    return [lambda place=place: wait_for(place) for place in range(len(works))]  # type: ignore[misc]


def _work(works: Sequence[Callable[[], Any]], receives: Any, sends: Any) -> None:
    receives.close()  # else nobody would tell this process that its parent is gone
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told of it, and ends this process
    for work in works:
        try:
            outcome = pickle.dumps((True, work()), pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # raised where its result is waited for
            error.add_note(f"in the process of a second core:\n{traceback.format_exc()}")
            outcome = pickle.dumps((False, error))
        try:
            sends.send_bytes(outcome)
        except BrokenPipeError:  # whoever asked is gone
            return
    sends.close()
