"""What k-center, herding and k-means cost on big matrices, beside the forms in which they are commonly written.

Matrices are drawn, of 768 float32 a row, random and clustered; ratios are of wall-clock times within one run, and
half of the steps of a slow form are timed before ours and half after it. The forms that ours are held against, of
which only steps are timed, spread over the picks, and their total found from those:

- k-center, one product: after each pick the product of the matrix and that row, then minimum and argmax (numpy).
- k-center, pairwise to the newest: scikit-learn's pairwise_distances between chunks of the rows and the newest pick,
  then minimum and argmax. The common form that does not repeat itself; the same cost at every step.
- k-center, pairwise to all: pairwise_distances between chunks of the rows and all picks so far, anew at each step.
  A step grows with the picks: steps at three sizes, a straight line through them, summed.
- herding, copying: at each step the rows that remain are copied and the means that they would make compared.
- k-means: scikit-learn's MiniBatchKMeans with its defaults, whole, in turn with ours over seeds.

Rare clusters: of COMMON clusters of 1,000 rows and RARE of 10, in 16 dimensions, the rare ones whose rows k-means (of
as many clusters) leaves together and by themselves, beside those that scikit-learn's KMeans and MiniBatchKMeans do.

Our k-center and k-means are timed whole; a herding step costs the same whatever was picked, so steps are timed too.
That our k-center is the plain greedy is checked in float64: at every step the distance of the pick is compared with
the largest distance of any row, found from all distances. Peak memory: VmHWM of a fresh process less its resident
memory before the call, all pages counted, those of the mapped file too (they are the features once). Linux only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import Found, Measure, Setting, in_own_process, memory, timed

from datamap.core import plots
from datamap.core.flags import DEFAULT_SEED
from datamap.core.plots import LIGHT_GREY, new_figure, save_figure
from datamap.selection import diversity

DIMS, CLUSTERS, GROUPS, CHUNK = 768, 128, 200, 4096
BOUNDS = {"one product": 8.0, "pairwise to the newest": 40.0, "pairwise to all": 40.0, "copying": 5.0,
          "MiniBatchKMeans": 0.3}  # which looks for centres in a sample and so loses the rare clusters
COMMON, RARE, RARE_BOUND = 10, 90, 0.95
RADIUS_BOUND, MEMORY_BOUND = 1e-5, 1.5
KINDS = ("random", "clustered")
COLORS = dict(zip(("k-center", "herding", "k-means"), plots.COLORS, strict=False))


def draw(kind: str, n: int, rng: np.random.Generator, out: np.ndarray | None = None) -> np.ndarray:
    """(n, DIMS) float32: normal, and where clustered around GROUPS centres three times as far apart as rows are."""
    vectors = np.empty((n, DIMS), dtype=np.float32) if out is None else out
    centres = 3 * rng.standard_normal((GROUPS, DIMS), dtype=np.float32)
    for start in range(0, n, CHUNK):
        part = vectors[start : start + CHUNK]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        if kind == "clustered":
            part += centres[rng.integers(GROUPS, size=len(part))]
    return vectors


# --- the forms that ours are held against --------------------------------------------------------------------------


def k_center_steps(n: int, distances_to: Callable[[int], np.ndarray]) -> Iterator[None]:
    near, pick = np.full(n, np.inf, dtype=np.float32), 0
    while True:
        np.minimum(near, distances_to(pick), out=near)
        near[pick] = -1
        pick = int(near.argmax())
        yield


def pairwise(vectors: np.ndarray, picks: Sequence[int] | np.ndarray) -> np.ndarray:
    """(n,) distance of every row from the nearest of the picks."""
    from sklearn.metrics import pairwise_distances

    starts = range(0, len(vectors), CHUNK)
    return np.concatenate([pairwise_distances(vectors[start : start + CHUNK], vectors[picks]).min(axis=1)
                           for start in starts])


def copying_steps(vectors: np.ndarray) -> Iterator[None]:
    mean, sums = vectors.mean(axis=0), np.zeros(vectors.shape[1], dtype=np.float32)
    remaining, count = np.arange(len(vectors)), 0
    while True:
        best = int(np.linalg.norm(mean - (sums + vectors[remaining]) / (count + 1), axis=1).argmin())
        sums, count = sums + vectors[remaining[best]], count + 1
        remaining = np.delete(remaining, best)
        yield


# --- measurements ------------------------------------------------------------------------------------------------


def half_of(steps: int, form: Iterator[None]) -> list[float]:
    """Seconds of each of half the steps."""
    return [timed(next, form)[0] for _ in range(max(1, steps // 2))]


def measure_k_center(vectors: np.ndarray, k: int, steps: int, devices: Sequence[str]) -> dict[str, Any]:
    norms = np.einsum("ij,ij->i", vectors, vectors)
    theirs = {
        "one product": k_center_steps(
            len(vectors), lambda pick: norms - 2 * (vectors @ vectors[pick]) + norms[pick]),
        "pairwise to the newest": k_center_steps(len(vectors), lambda pick: pairwise(vectors, [pick])),
    }
    ours: dict[str, Any] = {}
    for form in theirs.values():
        next(form)  # loads the libraries
    slow = {name: half_of(steps, form) for name, form in theirs.items()}
    for device in devices:
        diversity.k_center(vectors[:2000], 100, 0, device=device)  # starts the device and the threads
        seconds, (picks, distances, radius) = timed(diversity.k_center, vectors, k, 0, device=device)
        ours[device] = {"seconds": seconds, "radius": radius, **greedy_gap(vectors, picks, distances, radius)}
    for name, form in theirs.items():
        slow[name] += half_of(steps, form)
    sizes = sorted({max(1, k // 100), max(1, k // 10), max(1, k // 3)})
    grown = [timed(lambda size: pairwise(vectors, picks[:size]).argmax(), size)[0] for size in sizes]
    slope, base = np.polyfit(sizes, grown, 1) if len(sizes) > 1 else (grown[0] / sizes[0], 0.0)
    totals = {name: k * float(np.mean(each)) for name, each in slow.items()}
    totals["pairwise to all"] = float(base * k + slope * k * (k + 1) / 2)
    return {"ours": ours, "their_seconds": totals, "their_steps": slow, "all_picks_sizes": sizes,
            "all_picks_seconds": grown}


def greedy_gap(vectors: np.ndarray, picks: np.ndarray, distances: np.ndarray, radius: float) -> dict[str, float]:
    """How far, relative, our distances are from the largest of all rows at that step; all of it in float64.

    ``pick_gap``: over all picks; ``radius_gap``: of the radius. 0 where every pick is a plain greedy pick.
    """
    centre = vectors.mean(axis=0, dtype=np.float64)
    centres = vectors[picks] - centre
    norms = np.square(centres).sum(axis=1)
    largest = np.zeros(len(picks))
    for start in range(0, len(vectors), CHUNK // 4):
        rows = vectors[start : start + CHUNK // 4] - centre
        squared = rows @ centres.T
        squared *= -2
        squared += norms
        squared += np.square(rows).sum(axis=1)[:, None]
        np.minimum.accumulate(squared, axis=1, out=squared)
        np.maximum(largest, squared.max(axis=0), out=largest)
    farthest = np.sqrt(largest)
    gaps = np.abs(distances[1:] / farthest[:-1] - 1)
    return {"pick_gap": float(gaps.max(initial=0.0)), "radius_gap": float(abs(radius / farthest[-1] - 1))}


def measure_herding(vectors: np.ndarray, k: int, steps: int, devices: Sequence[str]) -> dict[str, Any]:
    copying = copying_steps(vectors)
    next(copying)
    theirs = half_of(steps, copying)
    ours: dict[str, Any] = {}
    for device in devices:
        diversity.herding(vectors[:2000], 10, device=device)
        start, _ = timed(diversity.herding, vectors, 1, device=device)
        seconds, _ = timed(diversity.herding, vectors, steps + 1, device=device)
        ours[device] = {"seconds": start + (k - 1) * (seconds - start) / steps, "timed_steps": steps}
    theirs += half_of(steps, copying)
    return {"ours": ours, "their_seconds": {"copying": k * float(np.mean(theirs))}, "their_steps": {"copying": theirs}}


def measure_kmeans(vectors: np.ndarray, seeds: int, devices: Sequence[str]) -> dict[str, Any]:
    import pandas as pd
    from sklearn.cluster import MiniBatchKMeans

    def fit(name: str, rows: np.ndarray, clusters: int, seed: int) -> float:
        if name == "MiniBatchKMeans":
            return float(MiniBatchKMeans(clusters, random_state=seed).fit(rows).inertia_)
        return diversity.kmeans(rows, clusters, np.random.default_rng(seed), device=name)[2]

    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ("MiniBatchKMeans", *devices)}
    for name in rounds:
        fit(name, vectors[:2000], 8, 0)
    for seed in range(seeds):
        for name, found in rounds.items():
            found.append(dict(zip(("seconds", "inertia"), timed(fit, name, vectors, CLUSTERS, seed), strict=True)))
    medians = {name: pd.DataFrame(found).median().to_dict() for name, found in rounds.items()}
    peer = medians.pop("MiniBatchKMeans")
    for device in devices:
        medians[device]["inertia_ratio"] = medians[device]["inertia"] / peer["inertia"]
    return {"ours": medians, "their_seconds": {"MiniBatchKMeans": peer["seconds"]}, "rounds": rounds}


def measure_rare_clusters(seeds: int, device: str) -> dict[str, list[int]]:
    """How many of the RARE clusters each k-means keeps, at each seed of the rows and of k-means."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    planted = np.repeat(np.arange(COMMON + RARE), [1000] * COMMON + [10] * RARE)
    found: dict[str, list[int]] = {"ours": [], "KMeans": [], "MiniBatchKMeans": []}
    for seed in range(seeds):
        rng = np.random.default_rng([DEFAULT_SEED, seed])
        centres = 20 * rng.normal(size=(COMMON + RARE, 16))
        rows = (centres[planted] + rng.normal(size=(len(planted), 16))).astype(np.float32)
        labels = {
            "ours": diversity.kmeans(rows, len(centres), np.random.default_rng(seed), device=device)[0],
            "KMeans": KMeans(len(centres), n_init=1, random_state=seed).fit(rows).labels_,
            "MiniBatchKMeans": MiniBatchKMeans(len(centres), random_state=seed).fit(rows).labels_,
        }
        for name, own in labels.items():
            found[name].append(sum(
                len(here := np.unique(own[planted == one])) == 1 and len(np.unique(planted[own == here[0]])) == 1
                for one in range(COMMON, COMMON + RARE)
            ))
    return found


def selectors(k: int, device: str) -> dict[str, Callable[[np.ndarray], Any]]:
    """k: picks of k-center; herding takes a fifth of it."""
    return {
        "k-center": lambda vectors: diversity.k_center(vectors, min(k, len(vectors)), 0, device=device),
        "herding": lambda vectors: diversity.herding(vectors, min(max(1, k // 5), len(vectors)), device=device),
        "k-means": lambda vectors: diversity.kmeans(vectors, CLUSTERS, np.random.default_rng(0), device=device),
    }


def peak_memory(file: str, name: str, k: int) -> float:
    """Peak memory of one call on a mapped file, as a multiple of the features; runs in a process of its own."""
    selectors(20, "cpu")[name](draw("random", 200, np.random.default_rng(0)))  # loads the libraries
    vectors = np.load(file, mmap_mode="r")
    before = memory("VmRSS")
    selectors(k, "cpu")[name](vectors)
    return (memory("VmHWM") - before) / vectors.nbytes


def measure_scaling(file: str, sizes: Sequence[int], k: int, device: str) -> dict[str, Any]:
    """Seconds over n, the best of three up to 100,000 rows; and the exponent of a power of n through them."""
    vectors = np.load(file, mmap_mode="r")
    found: dict[str, Any] = {}
    for name, call in selectors(k, device).items():
        seconds = [min(timed(call, vectors[:n])[0] for _ in range(3 if n <= 100_000 else 1)) for n in sizes]
        exponent, offset = np.polyfit(np.log(sizes), np.log(seconds), 1)
        found[name] = {"n": list(sizes), "seconds": seconds, "exponent": float(exponent), "offset": float(offset)}
    return found


# --- what is shown ---------------------------------------------------------------------------------------------------


def plot_scaling(path: Path, scaling: dict[str, Any], k: int, device: str) -> None:
    import torch

    figure, axis = new_figure(6.4, 4.4)
    sizes = {"k-center": f"k = {k:,}", "herding": f"k = {max(1, k // 5):,}", "k-means": f"{CLUSTERS} clusters"}
    for (name, found), marker in zip(scaling.items(), "osD", strict=True):
        n = np.array(found["n"])
        axis.plot(n, np.exp(found["offset"]) * n ** found["exponent"], color=COLORS[name], linewidth=1, alpha=0.6)
        axis.plot(n, found["seconds"], marker, color=COLORS[name], markersize=6,
                  label=rf"{name}, {sizes[name]}:  time $\propto n^{{{found['exponent']:.2f}}}$")
    axis.set(xscale="log", yscale="log", xlabel="rows n", ylabel="time (s)")
    axis.set_ylim(top=10 * axis.get_ylim()[1])  # room for the legend
    axis.grid(which="major", color=LIGHT_GREY, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(frameon=False, fontsize=9, loc="upper left")
    where = "on a GPU" if device == "cuda" else f"on {torch.get_num_threads()} CPU threads"
    caption = (
        f"Random rows of {DIMS} float32, n = {n[0]:,} to {n[-1]:,}, mapped from a file, {where}. Best of three up to "
        "100,000 rows, else one run. Lines: least squares in both logarithms."
    )
    save_figure(figure, path, "Time of selection against the number of rows", caption)


def measures_of(found: dict[str, Any]) -> Iterator[Measure]:
    for kind, by_selector in found["ratios"].items():
        for name, one in by_selector.items():
            for device, ours in one["ours"].items():
                what = f"{kind}, {name}, {device}"
                yield Measure(what, [ours["seconds"]], " s")
                for peer, seconds in one["their_seconds"].items():
                    yield Measure(f"{what}, against {peer}", [seconds / ours["seconds"]], " times", BOUNDS[peer])
                for gap in ("pick_gap", "radius_gap"):
                    if gap in ours:
                        yield Measure(f"{what}, plain greedy in float64: {gap.replace('_', ' ')}", [ours[gap]],
                                      most=RADIUS_BOUND)
                if "inertia_ratio" in ours:
                    yield Measure(f"{what}, inertia / MiniBatchKMeans's", [ours["inertia_ratio"]], most=1.0)
    for name, kept in found["rare_clusters_kept"].items():
        least = RARE_BOUND * float(np.median(found["rare_clusters_kept"]["KMeans"])) if name == "ours" else None
        yield Measure(f"k-means, rare clusters kept of {RARE}, {name}", kept, least=least)
    for name, ratio in found["peak_memory_ratio"].items():
        yield Measure(f"{name}, peak memory / the features", [ratio], most=MEMORY_BOUND)


def devices() -> list[str]:
    import torch

    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def ratios(setting: Setting) -> Found:
    rows, steps, seeds = setting.size(67_349, 2000), setting.size(200, 4), setting.size(9, 2)
    rng, k = np.random.default_rng(DEFAULT_SEED), rows // 10
    found: dict[str, Any] = {"rows": rows, "dims": DIMS, "k": k, "ratios": {},
                             "rare_clusters_kept": measure_rare_clusters(setting.size(9, 1), devices()[-1])}
    for kind in KINDS:
        vectors = draw(kind, rows, rng)
        found["ratios"][kind] = {
            "k-center": measure_k_center(vectors, k, steps, devices()),
            "herding": measure_herding(vectors, k, steps, devices()),
            "k-means": measure_kmeans(vectors, seeds, devices()),
        }
    file = str(setting.scratch / "vectors.npy")
    np.save(file, vectors)
    del vectors
    found["peak_memory_ratio"] = {name: in_own_process(peak_memory, file, name, setting.size(1000, 100))
                                  for name in COLORS}
    return Found(list(measures_of(found)), details=found)


def scaling(setting: Setting, sizes: Sequence[int]) -> Found:
    """Seconds of k-center (k = 1,000), herding (200) and k-means over the rows, mapped from a file, and a picture."""
    file, k = str(setting.scratch / "vectors.npy"), setting.size(1000, 100)
    draw("random", sizes[-1], np.random.default_rng(DEFAULT_SEED),
         np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(sizes[-1], DIMS)))
    found = {device: measure_scaling(file, sizes, k, device) for device in devices()}
    pictures = {}
    for device, each in found.items():
        name = f"selector_scaling_{device}.png"
        plot_scaling(setting.pictures / name, each, k, device)
        pictures[name] = "Time of selection against the number of rows"
    measures = [Measure(f"{name}, {device}, {one['n'][-1]:,} rows", one["seconds"][-1:], " s")
                for device, each in found.items() for name, one in each.items()]
    return Found(measures, details=found, pictures=pictures)
