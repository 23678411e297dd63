"""Choosing rows of a big matrix of vectors for their diversity: greedy k-center, herding, k-means.

Arrays go in and come out; the arithmetic is torch's, on a CUDA device where there is one, else on the CPU, in the
precision of the vectors. ``vectors`` is (n, d), float32 or float64, finite (``check_finite``), and may be a read-only
memory map: on the CPU it is worked on a few thousand rows at a time and never copied as a whole; a GPU holds it whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datamap.core.errors import UserError

if TYPE_CHECKING:
    import torch

CPU_ROWS, GPU_ROWS = 2048, 1 << 16  # rows worked on at a time: on the CPU they and their results stay in cache
POOL_LEAST, POOL_MOST = 32, 1024
ROUNDS = 5  # in which k-means looks for its first centres, with about n_clusters rows each
TOLERANCE = 2e-3  # share of the inertia
ROUNDING = 32  # machine epsilons, times the largest squared norm: more than a distance from products is off by


# --- the matrix --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Matrix:
    """The rows as tensors. Centred rows are what is multiplied: a common mean would cost most of the digits."""

    vectors: np.ndarray
    parts: list[tuple[slice, torch.Tensor]]
    total: np.ndarray  # (d,) float64, sum of the rows
    centre: torch.Tensor  # (d,), their mean
    norms: np.ndarray  # (n,) float64, squared norms of the centred rows

    def tensor(self, rows: np.ndarray) -> torch.Tensor:
        """Rows (p, d), centred."""
        import torch

        centred = rows.astype(np.float64) - self.total / len(self.vectors)
        return torch.from_numpy(centred).to(self.centre)


def _matrix(vectors: np.ndarray, device: str | None) -> _Matrix:
    import torch

    if vectors.ndim != 2 or not vectors.size or vectors.dtype not in (np.float32, np.float64):
        raise ValueError(f"vectors are {vectors.dtype} {vectors.shape}; expected float32 or float64 (n, d)")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes to it
        pieces = _slices(len(vectors), CPU_ROWS if device == "cpu" else GPU_ROWS)
        parts = [(piece, torch.from_numpy(np.asarray(vectors[piece])).to(device)) for piece in pieces]
    total = sum(part.sum(dim=0, dtype=torch.float64) for _, part in parts)
    centre = (total / len(vectors)).to(parts[0][1].dtype)
    norms = np.empty(len(vectors))
    for piece, part in parts:
        norms[piece] = (part - centre).square_().sum(dim=1).cpu().numpy()
    return _Matrix(vectors, parts, total.cpu().numpy(), centre, norms)


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _squared_distances(
    vectors: np.ndarray, rows: np.ndarray, to: np.ndarray, others: np.ndarray, times: int = 1
) -> np.ndarray:
    """(m,) float64, between ``times`` vectors[rows] and to[others] pair by pair, from differences: 0 for equals."""
    squared = np.empty(len(rows))
    for piece in _slices(len(rows), CPU_ROWS):
        differences = times * vectors[rows[piece]].astype(np.float64) - to[others[piece]]
        squared[piece] = np.square(differences, out=differences).sum(axis=1)
    return squared


def check_finite(vectors: np.ndarray, ids: Sequence[str]) -> None:
    """Raise UserError naming the first row of ``vectors`` (n, d), by its id, that holds a NaN or an infinite value."""
    for piece in _slices(len(vectors), CPU_ROWS):
        good = np.isfinite(vectors[piece]).all(axis=1)
        if not good.all():
            row = piece.start + int(np.argmin(good))
            values = vectors[row][~np.isfinite(vectors[row])]
            raise UserError(f"the vector of example {ids[row]!r} holds {len(values)} values that are NaN or infinite; "
                            "expected finite numbers: compute them anew, or leave the example out")


# --- k-center ----------------------------------------------------------------------------------------------------


def k_center(
    vectors: np.ndarray, k: int, first: int, *, bonus: np.ndarray | None = None, scale: float = 1.0,
    device: str | None = None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Greedy k-center: each pick is the row farthest from the picks before it, the lowest of equals.

    Gonzalez 1985 (doi 10.1016/0304-3975(85)90224-5), for subsets Sener & Savarese 2018 (arXiv 1708.00489); the
    covering radius is at most twice the best possible. ``first`` is the row picked first, 1 <= k <= n. With
    ``bonus`` (n,), each pick is the row of the largest ``distance / scale + bonus`` instead.

    Returns the picks (k,) int64 in order; the Euclidean distance (k,) of each to the nearest pick before it (larger:
    farther from all that is chosen; never growing without a bonus; the first, which has none before it, is given the
    largest distance of a row to it); and the covering radius, the largest distance of a row to its nearest pick.
    Rows are picked once, also where all distances are 0.

    The picks are those of the plain form, which after each pick computes the distances of all rows to it; here one
    product of matrices does that for hundreds of picks. Distances to the nearest pick only fall. So take as a pool
    the M rows of the largest values, and let tau be the largest value outside of it: while the best row of the pool
    is above tau it is the next pick, whatever became of the other rows. Those picks are found from distances inside
    the pool, and when its best falls to tau all rows are brought up to date at once. No product is wasted, since
    every column of it is a pick.

    With float64 vectors ``near`` holds bounds from above, so that rounding decides nothing but which rows are
    measured exactly, from differences. With float32, values outside of the pool are trusted to the rounding of the
    product, about 1e-6 of the largest squared norm: of rows tied within that either may come first. Where rows are
    tied by the thousand, a pick may cost a product of its own.
    """
    n = len(vectors)
    if not 1 <= k <= n or not 0 <= first < n:
        raise ValueError(f"k {k} and first {first} for {n} rows; expected 1 <= k <= n and 0 <= first < n")
    matrix = _matrix(vectors, device)
    margin = ROUNDING * np.finfo(np.float64).eps * matrix.norms.max() if vectors.dtype == np.float64 else 0.0
    bonus = np.zeros(n) if bonus is None else bonus
    near = np.full(n, np.inf)  # squared distance of each row to its nearest pick
    nearest = np.zeros(n, dtype=np.int64)  # that pick, as a row
    exact = np.zeros(n, dtype=bool)  # whether near was measured from differences
    picks, distances = np.full(k, first), np.zeros(k)

    def worth(rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        return np.sqrt(near[rows]) / scale + bonus[rows]

    def measure(rows: np.ndarray) -> None:
        rows = rows[~exact[rows]]
        near[rows] = _squared_distances(vectors, rows, vectors, nearest[rows])
        exact[rows] = True

    def radius() -> float:
        values = np.sqrt(near)
        _measured_best(values, POOL_LEAST, lambda rows: np.sqrt(near[rows]), measure, exact)
        return float(values.max())

    known, count, size = 0, 1, POOL_LEAST
    while True:
        _bring_up_to_date(matrix, picks[known:count], near, nearest, exact, margin)
        if known == 0:
            distances[0] = radius()
        known = count
        if count == k:
            return picks, distances, radius()
        values = worth()
        values[picks[:count]] = -np.inf
        pool = _measured_best(values, size, worth, measure, exact)
        if not near.any():  # only copies of picks are left, and will stay so
            picks[count:] = np.argsort(-values, kind="stable")[: k - count]
            return picks, distances, 0.0
        tau = np.delete(values, pool).max(initial=-np.inf)
        found, squared = _picks_in_pool(vectors, pool, near[pool], bonus[pool], scale, tau, k - count)
        picks[count : count + len(found)], distances[count : count + len(found)] = found, np.sqrt(squared)
        count += len(found)
        if 2 * len(found) > size:
            size = min(2 * size, POOL_MOST)
        elif 8 * len(found) < size:
            size = max(size // 2, POOL_LEAST)


def _measured_best(
    values: np.ndarray, size: int, worth: Callable[[np.ndarray], np.ndarray], measure: Callable[[np.ndarray], None],
    exact: np.ndarray,
) -> np.ndarray:
    """The rows of the ``size`` largest values, ascending, measured exactly; their values are updated.

    The lowest row of the largest value of all is among them: rows outside that may be as good are measured too.
    """
    size = min(size, len(values))
    pool = np.argpartition(values, len(values) - size)[len(values) - size :]
    pool = pool[values[pool] > -np.inf]
    measure(pool)
    values[pool] = worth(pool)
    rivals = np.flatnonzero((values >= values[pool].max()) & ~exact)
    measure(rivals)
    values[rivals] = worth(rivals)
    return np.union1d(pool, np.argmax(values))


def _picks_in_pool(
    vectors: np.ndarray, pool: np.ndarray, squared: np.ndarray, bonus: np.ndarray, scale: float, tau: float, most: int
) -> tuple[list[int], list[float]]:
    """Plain greedy among the rows ``pool`` (m,) while their best is above tau; the first is certain without that.

    ``squared`` (m,) are their squared distances to the picks so far, exact, and ``bonus`` (m,) theirs. Returns at
    most ``most`` rows and their squared distances to the picks before them. The products of the pool tell which of
    its rows a pick may have come nearer to; only those are measured.
    """
    rows = vectors[pool].astype(np.float64)
    values = np.sqrt(squared) / scale + bonus
    centred = rows - rows.mean(axis=0)
    products = centred @ centred.T
    norms = products.diagonal().copy()
    margin = ROUNDING * np.finfo(np.float64).eps * norms.max()
    found: list[int] = []
    distances: list[float] = []
    while len(found) < most:
        best = int(values.argmax())
        if found and values[best] <= tau:
            break
        found.append(int(pool[best]))
        distances.append(float(squared[best]))
        closer = np.flatnonzero(norms + (norms[best] - margin) - 2 * products[best] < squared)
        squared[closer] = np.minimum(squared[closer], np.square(rows[closer] - rows[best]).sum(axis=1))
        values[closer] = np.sqrt(squared[closer]) / scale + bonus[closer]
        squared[best] = values[best] = -np.inf
    return found, distances


def _bring_up_to_date(
    matrix: _Matrix, picks: np.ndarray, near: np.ndarray, nearest: np.ndarray, exact: np.ndarray, margin: float
) -> None:
    """Update near, nearest and exact, all (n,), for the new ``picks``: |x|^2 - 2 x.p + |p|^2 and its minimum."""
    import torch

    centres = matrix.tensor(matrix.vectors[picks])
    norms = centres.square().sum(dim=1)
    for piece, part in matrix.parts:
        lowest, place = torch.addmm(norms, part - matrix.centre, centres.T, alpha=-2).min(dim=1)
        squared = np.maximum(lowest.cpu().numpy() + matrix.norms[piece], 0) + margin
        closer = np.flatnonzero(squared < near[piece]) + piece.start
        near[closer] = squared[closer - piece.start]
        nearest[closer] = picks[place.cpu().numpy()[closer - piece.start]]
        exact[closer] = False
    near[picks], exact[picks] = 0.0, True


# --- herding -----------------------------------------------------------------------------------------------------


def herding(vectors: np.ndarray, k: int, *, device: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Greedy mean matching: each pick brings the mean of the picks nearest to the mean of all rows.

    Welling 2009 (doi 10.1145/1553374.1553517), in the form of iCaRL (Rebuffi et al. 2017, arXiv 1611.07725): pick
    t + 1 is the row, not yet picked, nearest to ``(t + 1) mean - sum of the picks``; of equals the lowest. One
    product of the matrix and a vector per pick. 1 <= k <= n.

    Returns the picks (k,) int64 in order, and the Euclidean distance (k,) between the mean of the picks and the
    mean of all after each pick (smaller: better matched; 0 when k = n). Sums are float64; rows whose scores are
    equal within rounding are compared in float64, so the picks are those of the plain form in float64.
    """
    import torch

    n = len(vectors)
    if not 1 <= k <= n:
        raise ValueError(f"k {k} for {n} rows; expected 1 <= k <= n")
    matrix = _matrix(vectors, device)
    norms = torch.from_numpy(matrix.norms).to(matrix.centre)
    size = float(np.sqrt(matrix.norms.max()))
    largest = size + float(matrix.centre.norm())  # no row is longer
    eps = ROUNDING * np.finfo(vectors.dtype).eps
    sums = np.zeros_like(matrix.total)
    picks, errors = np.empty(k, dtype=np.int64), np.empty(k)
    for count in range(k):
        # n times the row that would make the means equal: for whole numbers all of this is exact, and ties are ties.
        wanted = (count + 1) * matrix.total - n * sums
        step = (wanted - matrix.total) / n  # centred, as the norms are
        direction = torch.from_numpy(step).to(matrix.centre)
        scores = norms - 2 * torch.cat([part @ direction for _, part in matrix.parts])
        margin = eps * (size**2 + 2 * largest * float(np.linalg.norm(step)))
        rivals = torch.nonzero(scores <= scores.min() + margin).flatten().cpu().numpy()
        pick = int(rivals[0])
        if len(rivals) > 1:
            misses = _squared_distances(vectors, rivals, wanted[None], np.zeros_like(rivals), n)
            pick = int(rivals[np.argmin(misses)])
        picks[count] = pick
        norms[pick] = torch.inf
        sums += vectors[pick]
        errors[count] = np.linalg.norm(n * sums - (count + 1) * matrix.total) / (n * (count + 1))
    return picks, errors


# --- k-means -----------------------------------------------------------------------------------------------------


def kmeans(
    vectors: np.ndarray, n_clusters: int, rng: np.random.Generator, *, device: str | None = None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Lloyd's passes over all rows from the centres of k-means|| (``_first_centres``).

    They go on until the inertia falls by less than the share TOLERANCE. A cluster that loses all its rows keeps its
    centre, where rows may come back to it. More clusters than rows count as one for each row. Clusters can be empty
    at the end, and with more clusters than distinct rows some are: their labels do not occur.

    Returns labels (n,) int64 in [0, n_clusters), the Euclidean distance (n,) float64 of each row to its nearest
    centre (smaller: more typical), and the inertia, the sum of the squares of these.
    """
    import torch

    n = len(vectors)
    if n_clusters < 1:
        raise ValueError(f"n_clusters is {n_clusters}; expected at least 1")
    matrix = _matrix(vectors, device)
    centres = _first_centres(matrix, min(n_clusters, n), rng)
    labels, distances, before = np.empty(n, dtype=np.int64), np.empty(n), np.inf
    while True:
        sums, sizes = torch.zeros_like(centres), torch.zeros_like(centres[:, 0])
        lengths = centres.square().sum(dim=1)
        for piece, part in matrix.parts:
            rows = part - matrix.centre
            label = torch.addmm(lengths, rows, centres.T, alpha=-2).argmin(dim=1)
            labels[piece] = label.cpu().numpy()
            distances[piece] = torch.linalg.vector_norm(rows - centres[label], dim=1).cpu().numpy()
            sizes += torch.bincount(label, minlength=len(centres))
            if rows.is_cuda:  # index_add_ adds in another order, and so rounds otherwise, at every run there
                sums += torch.nn.functional.one_hot(label, len(centres)).to(rows.dtype).T @ rows
            else:
                sums.index_add_(0, label, rows)
        inertia = float(np.square(distances).sum())
        if inertia >= (1 - TOLERANCE) * before or inertia == 0:
            return labels, distances, inertia
        before = inertia
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)


def _first_centres(matrix: _Matrix, n_clusters: int, rng: np.random.Generator) -> torch.Tensor:
    """(n_clusters, d) centred rows: k-means|| (Bahmani et al. 2012, arXiv 1203.6402), 1 <= n_clusters <= n.

    In each round every row is a candidate with a chance of n_clusters times its share in the squared distances of all
    rows to the candidates so far, so that also a cluster of few rows, far from the others, has one soon. (k-means++
    among a sample of the rows never sees a cluster that the sample left out.) Among the candidates, each as heavy as
    the rows nearest to it, scikit-learn's greedy k-means++ chooses.
    """
    from sklearn.cluster import kmeans_plusplus

    n = len(matrix.vectors)
    near, nearest, exact = np.full(n, np.inf), np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool)
    new = rng.integers(n, size=1)
    for _ in range(ROUNDS + 1):  # the first row, and what the rounds add
        if len(new):
            _bring_up_to_date(matrix, new, near, nearest, exact, 0.0)
        new = np.flatnonzero(rng.random(n) * near.sum() < n_clusters * near)
    weights = np.bincount(nearest, minlength=n)
    missing = max(0, n_clusters - np.count_nonzero(weights))  # where most rows are copies, or as many as the clusters
    weights[np.flatnonzero(weights == 0)[:missing]] = 1
    rows = np.flatnonzero(weights)
    candidates = matrix.tensor(matrix.vectors[rows]).cpu().numpy()
    chosen, _ = kmeans_plusplus(candidates, n_clusters, sample_weight=weights[rows].astype(candidates.dtype),
                                random_state=int(rng.integers(2**32)))
    return matrix.centre.new_tensor(chosen)
