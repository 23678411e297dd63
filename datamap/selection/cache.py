"""A feature of every row of a dataset, computed once, kept on disk, and resumed where it was interrupted."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datamap.core.artifacts import digest
from datamap.core.errors import UserError
from datamap.core.files import atomic, read_json, room_for_array, write_json
from datamap.core.locks import LOCK, is_locked, lock
from datamap.core.progress import Progress

Compute = Callable[[np.ndarray], np.ndarray]

VALUES, META = "values.npy", "meta.json"
SHARD_ROWS = 2048

logger = logging.getLogger(__name__)


def cached(
    directory: Path, name: str, key: Mapping[str, Any], shape: tuple[int, ...],
    prepare: Callable[[], tuple[np.ndarray, Compute]], dtype: Any = np.float32,
) -> np.ndarray:
    """The read-only memory-mapped (n, ...) values of the feature ``name``, computed where they are not there yet.

    key: plain JSON values that tell this feature from every other of that name: fingerprint of the data, model,
    parameters. shape: (n, ...). prepare: called only when rows are missing; returns ``order``, a permutation of the n
    rows, and ``compute``, which gives the (len(rows), ...) values of some rows.

    Rows are computed in shards, consecutive pieces of ``order``. After each, the values are on disk before the record
    says so: a process killed at any moment loses the shard it was at, and the next one goes on with the same shards,
    so that the same bytes come out. Of several processes that want a feature one computes and the others wait.
    """
    key = json.loads(json.dumps(key, allow_nan=False))  # as it will be read back: a tuple is a list
    identity = {"key": key, "shape": list(shape), "dtype": np.dtype(dtype).str}
    place = directory / f"{name}-{digest(key)}"
    if not _is_finished(_found(place, identity)[0]):
        place.mkdir(parents=True, exist_ok=True)
        if is_locked(place / LOCK):
            logger.info(f"another process computes {name}: waiting for {place}")
        with lock(place / LOCK, wait=True):
            meta, damage = _found(place, identity)
            if damage:
                logger.warning(f"{place} is damaged ({damage}): computed again")
            if not _is_finished(meta):  # nobody has finished it while we waited
                _compute(place, name, identity, meta, prepare)
                return np.load(place / VALUES, mmap_mode="r")
    logger.info(f"{name} of {shape[0]:,} rows read from {place}")
    return np.load(place / VALUES, mmap_mode="r")


def _is_finished(meta: Mapping[str, Any] | None) -> bool:
    return meta is not None and meta["status"] == "finished"


def _found(place: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """meta.json of whole files of this very feature, or None; and what is wrong where there is something else."""
    if not (place / META).exists():
        return None, None
    try:
        meta = read_json(place / META)
        if not isinstance(meta, dict) or meta.get("status") not in ("running", "finished"):
            return None, f"{META} has no status"
        if {part: meta.get(part) for part in identity} != identity:
            return None, f"{META} describes another feature"
        values = np.load(place / VALUES, mmap_mode="r")
        if list(values.shape) != identity["shape"] or values.dtype.str != identity["dtype"]:
            return None, f"{VALUES} holds {values.shape} of {values.dtype.str}"
    except (UserError, ValueError, EOFError, FileNotFoundError) as error:
        return None, f"{str(error).strip() or type(error).__name__:.200}".splitlines()[0]
    return meta, None


def _compute(
    place: Path, name: str, identity: Mapping[str, Any], meta: dict[str, Any] | None,
    prepare: Callable[[], tuple[np.ndarray, Compute]],
) -> None:
    """Fill values.npy, from where ``meta`` says that an earlier process got to."""
    order, compute = prepare()
    n, *rest = identity["shape"]
    if not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(f"order of {name} is no permutation of {n} rows")
    of_order = hashlib.blake2b(np.asarray(order, np.int64).tobytes(), digest_size=8).hexdigest()
    shards = {"shard_rows": SHARD_ROWS, "order": of_order}
    if meta is not None and {part: meta.get(part) for part in shards} != shards:
        logger.warning(f"{place} was begun with other shards or in another order: computed again")
        meta = None
    if meta is None:
        for file in (META, VALUES):  # the record first: it must never speak of values that are not its own
            (place / file).unlink(missing_ok=True)
        shape, dtype = tuple(identity["shape"]), np.dtype(identity["dtype"])
        with atomic(place / VALUES) as temporary:
            room_for_array(temporary, shape, dtype).flush()
        meta = {"status": "running", **identity, **shards, "rows_done": 0, "seconds": 0.0}
        write_json(place / META, meta)
    else:
        logger.info(f"{name} resumes at row {meta['rows_done']:,} of {n:,} ({place})")
    values = np.load(place / VALUES, mmap_mode="r+")
    before = time.perf_counter() - meta["seconds"]
    with Progress(name, n, "rows", done=meta["rows_done"]) as progress:
        for first in range(meta["rows_done"], n, SHARD_ROWS):
            rows = order[first : first + SHARD_ROWS]
            computed = np.asarray(compute(rows))
            if computed.shape != (len(rows), *rest):
                raise ValueError(f"{name}: compute gave {computed.shape} for {len(rows)} rows of {tuple(rest)}")
            values[rows] = computed
            values.flush()
            meta = {**meta, "rows_done": first + len(rows), "seconds": round(time.perf_counter() - before, 3)}
            write_json(place / META, meta)
            progress.advance(len(rows))
    write_json(place / META, {**meta, "status": "finished"})
    for left in place.glob(".meta.tmp-*"):  # of processes that were killed while they wrote
        left.unlink()
