"""Nearest neighbours in embedding space, at a cost that stays small for many examples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NEIGHBOURS = 10
MOST_COMPARED = 20_000  # examples among which neighbours are sought
DIMENSIONS = 64  # kept where there are more examples than that
BLOCK = 256  # rows compared at a time: what they give stays in the cache
GROUP = 32  # columns of which only the largest is looked at first


class Neighbours(NamedTuple):
    rows: np.ndarray  # (N, k) int64, nearest first; -1 where there is none
    distances: np.ndarray  # (N, k) float32, Euclidean between vectors of length 1: 0..2; NaN where there is none
    vectors: np.ndarray  # (N, d) float32 as compared: centred, of length 1, maybe reduced; NaN where not compared


def nearest(
    vectors: np.ndarray, order: np.ndarray, *, seed: int, k: int = NEIGHBOURS, most_compared: int = MOST_COMPARED,
    asked: np.ndarray | None = None,
) -> Neighbours:
    """The k nearest others of each example by the cosine of vectors that are centred first.

    vectors: (N, d) floating point; a row with NaN is an example without a vector, which is nobody's neighbour and has
    none. order: (N,), the rows in an order that does not depend on the file; draws and ties go by it. Centring takes
    away what all vectors of an encoder share. Above ``most_compared`` examples neighbours are sought only among a
    sample of so many, drawn by ``seed``, and in the first 64 principal components of that sample: the share of a label
    among neighbours then is that among the nearest of a sample. asked: (n,), the only rows whose neighbours are
    sought; the others are left without.
    """
    known = order[np.isfinite(vectors).all(axis=1)[order]]
    n = len(known)
    pool = np.arange(n)
    if n > most_compared:
        pool = np.sort(np.random.default_rng(seed).choice(n, most_compared, replace=False))
    wanted = np.arange(n) if asked is None else np.flatnonzero(np.isin(known, asked))
    needed = np.union1d(pool, wanted)
    known, pool, wanted = known[needed], np.searchsorted(needed, pool), np.searchsorted(needed, wanted)
    chosen = np.asarray(vectors[known], dtype=np.float32)
    unit = unit_vectors(chosen, pool, DIMENSIONS if n > most_compared else None)
    k = max(0, min(k, len(pool) - 1))
    rows = np.full((len(vectors), k), -1)
    lengths = np.full(rows.shape, np.nan, np.float32)
    compared = np.full((len(vectors), unit.shape[1]), np.nan, np.float32)
    compared[known] = unit
    if k:
        found, lengths[known[wanted]] = _search(unit, pool, wanted, k)
        rows[known[wanted]] = known[found]
    return Neighbours(rows, lengths, compared)


def unit_vectors(vectors: np.ndarray, pool: np.ndarray, dimensions: int | None) -> np.ndarray:
    """(n, d) float32 without the mean of the pool's rows, in their first principal components where ``dimensions``
    are fewer than d, each row then of length 1 (a row of zeros stays)."""
    if not len(vectors):
        return vectors
    mean = vectors[pool].mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = vectors - mean
    if dimensions is not None and dimensions < vectors.shape[1]:
        sample = centred[pool]
        _, axes = np.linalg.eigh((sample.T @ sample).astype(np.float64))
        centred = centred @ axes[:, ::-1][:, :dimensions].astype(np.float32)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(norms == 0, 1, norms)


def _search(unit: np.ndarray, pool: np.ndarray, wanted: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each of the rows ``wanted`` (n,) of ``unit`` those among ``pool`` that lie nearest, without the row itself,
    and their distances, (n, k).

    The k largest similarities lie in the k groups of columns with the largest maxima, so that only these are sorted.
    """
    n, groups = len(wanted), -(-len(pool) // GROUP)
    others = np.zeros((unit.shape[1], groups * GROUP), dtype=np.float32)
    others[:, : len(pool)] = unit[pool].T
    place = np.full(len(unit), -1)
    place[pool] = np.arange(len(pool))
    few = min(k, groups)
    rows, similarities = np.empty((n, k), dtype=np.int64), np.empty((n, k), dtype=np.float32)
    for start in range(0, n, BLOCK):
        these = wanted[start : start + BLOCK]
        block = unit[these] @ others
        block[:, len(pool):] = -np.inf
        inside = np.flatnonzero(place[these] >= 0)
        block[inside, place[these[inside]]] = -np.inf
        # A group is every so-manieth column: their maxima are those of whole rows, several numbers at a time.
        best = np.argpartition(block.reshape(-1, GROUP, groups).max(axis=1), groups - few, axis=1)[:, groups - few:]
        columns = (best[:, None, :] + groups * np.arange(GROUP)[:, None]).reshape(len(these), -1)
        found = np.take_along_axis(block, columns, axis=1)
        top = _largest(found, k)
        rows[start : start + BLOCK] = np.take_along_axis(columns, top, axis=1)
        similarities[start : start + BLOCK] = np.take_along_axis(found, top, axis=1)
    return pool[rows], np.sqrt(np.maximum(2 - 2 * similarities, 0))


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """(n, k): of each row the places of the k largest, the largest first."""
    top = np.argpartition(values, values.shape[1] - k, axis=1)[:, values.shape[1] - k:]
    order = np.argsort(-np.take_along_axis(values, top, axis=1), axis=1, kind="stable")
    return np.take_along_axis(top, order, axis=1)
