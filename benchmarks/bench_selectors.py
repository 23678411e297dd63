"""What k-center, herding and k-means cost on big matrices, beside the forms in which they are commonly written.

Reads nothing; draws its matrices, of 768 float32 a row. Writes bench_selectors.json and selector_scaling_DEVICE.png,
prints a Markdown table. On a machine with a GPU ours are timed on both.

    OMP_NUM_THREADS=2 python benchmarks/bench_selectors.py
    python benchmarks/bench_selectors.py --quick

Ratios are of wall-clock times within one run, on random and on clustered rows; half of the steps of a slow form are
timed before ours and half after it. The forms that ours are held against, of which only steps are timed, spread over
the picks, and their total found from those:

- k-center, one product: after each pick the product of the matrix and that row, then minimum and argmax (numpy).
- k-center, pairwise to the newest: scikit-learn's pairwise_distances between chunks of the rows and the newest pick,
  then minimum and argmax. The common form that does not repeat itself; the same cost at every step.
- k-center, pairwise to all: pairwise_distances between chunks of the rows and all picks so far, anew at each step.
  A step grows with the picks: steps at three sizes, a straight line through them, summed.
- herding, copying: at each step the rows that remain are copied and the means that they would make compared.
- k-means: scikit-learn's MiniBatchKMeans with its defaults, whole, in turn with ours over seeds.

Our k-center and k-means are timed whole; a herding step costs the same whatever was picked, so steps are timed too.
That our k-center is the plain greedy is checked in float64: at every step the distance of the pick is compared with
the largest distance of any row, found from all distances. Peak memory: VmHWM of a fresh process less its resident
memory before the call, all pages counted, those of the mapped file too (they are the features once). Linux only.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamap.core.artifacts import stage  # noqa: E402
from datamap.core.errors import command_line  # noqa: E402
from datamap.core.files import write_json  # noqa: E402
from datamap.core.flags import (  # noqa: E402
    DEFAULT_SEED,  # noqa: E402
    Parser,
    positive_int,
)
from datamap.core.plots import COLORS as PALETTE  # noqa: E402
from datamap.core.plots import new_figure, save_figure  # noqa: E402
from datamap.selection import diversity  # noqa: E402

DIMS, CLUSTERS, GROUPS, CHUNK = 768, 128, 200, 4096
BOUNDS = {"one product": 4.0, "pairwise to the newest": 40.0, "pairwise to all": 40.0, "copying": 5.0,
          "MiniBatchKMeans": 1.0}
RADIUS_BOUND, MEMORY_BOUND = 1e-5, 1.5
KINDS = ("random", "clustered")
COLORS = dict(zip(("k-center", "herding", "k-means"), PALETTE, strict=False))


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


def seconds_of(call: Callable[..., Any], *args: Any, **settings: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = call(*args, **settings)
    return time.perf_counter() - began, result


# --- the forms that ours are held against --------------------------------------------------------------------------


def product_steps(vectors: np.ndarray) -> Iterator[None]:
    norms = np.einsum("ij,ij->i", vectors, vectors)
    near = np.full(len(vectors), np.inf, dtype=np.float32)
    pick = 0
    while True:
        np.minimum(near, norms - 2 * (vectors @ vectors[pick]) + norms[pick], out=near)
        near[pick] = -1
        pick = int(near.argmax())
        yield


def newest_steps(vectors: np.ndarray) -> Iterator[None]:
    from sklearn.metrics import pairwise_distances

    near = np.full(len(vectors), np.inf, dtype=np.float32)
    pick = 0
    while True:
        for start in range(0, len(vectors), CHUNK):
            piece = slice(start, start + CHUNK)
            np.minimum(near[piece], pairwise_distances(vectors[piece], vectors[[pick]])[:, 0], out=near[piece])
        near[pick] = -1
        pick = int(near.argmax())
        yield


def all_picks_step(vectors: np.ndarray, picks: np.ndarray) -> int:
    from sklearn.metrics import pairwise_distances

    starts = range(0, len(vectors), CHUNK)
    near = [pairwise_distances(vectors[start : start + CHUNK], vectors[picks]).min(axis=1) for start in starts]
    return int(np.concatenate(near).argmax())


def copying_steps(vectors: np.ndarray) -> Iterator[None]:
    mean, sums = vectors.mean(axis=0), np.zeros(vectors.shape[1], dtype=np.float32)
    remaining, count = np.arange(len(vectors)), 0
    while True:
        best = int(np.linalg.norm(mean - (sums + vectors[remaining]) / (count + 1), axis=1).argmin())
        sums, count = sums + vectors[remaining[best]], count + 1
        remaining = np.delete(remaining, best)
        yield


# --- measurements ------------------------------------------------------------------------------------------------


def measure_k_center(vectors: np.ndarray, k: int, steps: int, devices: Sequence[str]) -> dict[str, Any]:
    product, newest = product_steps(vectors), newest_steps(vectors)
    slow: dict[str, list[float]] = {"one product": [], "pairwise to the newest": []}
    ours: dict[str, Any] = {}
    next(product), next(newest)  # loads the libraries, computes the norms

    def half() -> None:
        for _ in range(max(1, steps // 2)):
            slow["one product"].append(seconds_of(next, product)[0])
            slow["pairwise to the newest"].append(seconds_of(next, newest)[0])

    half()
    for device in devices:
        diversity.k_center(vectors[:2000], 100, 0, device=device)  # starts the device and the threads
        seconds, (picks, distances, radius) = seconds_of(diversity.k_center, vectors, k, 0, device=device)
        ours[device] = {"seconds": seconds, "radius": radius, **greedy_gap(vectors, picks, distances, radius)}
    half()
    sizes = sorted({max(1, k // 100), max(1, k // 10), max(1, k // 3)})
    grown = [seconds_of(all_picks_step, vectors, picks[:size])[0] for size in sizes]
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
    theirs = [seconds_of(next, copying)[0] for _ in range(max(1, steps // 2))]
    ours: dict[str, Any] = {}
    for device in devices:
        diversity.herding(vectors[:2000], 10, device=device)
        start, _ = seconds_of(diversity.herding, vectors, 1, device=device)
        seconds, _ = seconds_of(diversity.herding, vectors, steps + 1, device=device)
        ours[device] = {"seconds": start + (k - 1) * (seconds - start) / steps, "timed_steps": steps}
    theirs += [seconds_of(next, copying)[0] for _ in range(max(1, steps // 2))]
    return {"ours": ours, "their_seconds": {"copying": k * float(np.mean(theirs))}, "their_steps": {"copying": theirs}}


def measure_kmeans(vectors: np.ndarray, clusters: int, seeds: int, devices: Sequence[str]) -> dict[str, Any]:
    from sklearn.cluster import MiniBatchKMeans

    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ("MiniBatchKMeans", *devices)}
    MiniBatchKMeans(8).fit(vectors[:2000])
    for device in devices:
        diversity.kmeans(vectors[:2000], 8, np.random.default_rng(0), device=device)
    for seed in range(seeds):
        seconds, model = seconds_of(MiniBatchKMeans(clusters, random_state=seed).fit, vectors)
        rounds["MiniBatchKMeans"].append({"seconds": seconds, "inertia": float(model.inertia_)})
        for device in devices:
            rng = np.random.default_rng(seed)
            seconds, found = seconds_of(diversity.kmeans, vectors, clusters, rng, device=device)
            rounds[device].append({"seconds": seconds, "inertia": found[2]})
    medians = {
        name: {key: float(np.median([each[key] for each in found])) for key in ("seconds", "inertia")}
        for name, found in rounds.items()
    }
    peer = medians.pop("MiniBatchKMeans")
    for device in devices:
        medians[device]["inertia_ratio"] = medians[device]["inertia"] / peer["inertia"]
    return {"ours": medians, "their_seconds": {"MiniBatchKMeans": peer["seconds"]}, "rounds": rounds}


def selectors(k: int, clusters: int, device: str) -> dict[str, Callable[[np.ndarray], Any]]:
    return {
        "k-center": lambda vectors: diversity.k_center(vectors, min(k, len(vectors)), 0, device=device),
        "herding": lambda vectors: diversity.herding(vectors, min(k, len(vectors)), device=device),
        "k-means": lambda vectors: diversity.kmeans(vectors, clusters, np.random.default_rng(0), device=device),
    }


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def peak_memory(file: str, name: str, k: int, clusters: int) -> float:
    """Peak memory of one call on a mapped file, as a multiple of the features; runs in a process of its own."""
    selectors(20, 8, "cpu")[name](draw("random", 100, np.random.default_rng(0)))  # loads the libraries
    vectors = np.load(file, mmap_mode="r")
    before = status("VmRSS")
    selectors(k, clusters, "cpu")[name](vectors)
    return (status("VmHWM") - before) / vectors.nbytes


def measure_memory(file: str, k: int, clusters: int) -> dict[str, float]:
    found = {}
    for name in COLORS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found[name] = pool.submit(peak_memory, file, name, k, clusters).result()
    return found


def measure_scaling(file: str, sizes: Sequence[int], ks: dict[str, int], clusters: int, device: str) -> dict[str, Any]:
    """Seconds over n, the best of three up to 100,000 rows; and the exponent of a power of n through them."""
    vectors = np.load(file, mmap_mode="r")
    found: dict[str, Any] = {}
    for name in COLORS:
        call = selectors(ks.get(name, 0), clusters, device)[name]
        seconds = [min(seconds_of(call, vectors[:n])[0] for _ in range(3 if n <= 100_000 else 1)) for n in sizes]
        exponent, offset = np.polyfit(np.log(sizes), np.log(seconds), 1)
        found[name] = {"n": list(sizes), "seconds": seconds, "exponent": float(exponent), "offset": float(offset)}
    return found


# --- what is shown ---------------------------------------------------------------------------------------------------


def plot_scaling(path: Path, scaling: dict[str, Any], ks: dict[str, int], clusters: int, device: str) -> None:
    figure, axis = new_figure(6.4, 4.4)
    labels = {"k-center": f"k-center, k = {ks['k-center']:,}", "herding": f"herding, k = {ks['herding']:,}",
              "k-means": f"k-means, {clusters} clusters"}
    for (name, found), marker in zip(scaling.items(), "osD", strict=True):
        n = np.array(found["n"])
        axis.plot(n, np.exp(found["offset"]) * n ** found["exponent"], color=COLORS[name], linewidth=1, alpha=0.6)
        axis.plot(n, found["seconds"], marker, color=COLORS[name], markersize=6,
                  label=rf"{labels[name]}:  time $\propto n^{{{found['exponent']:.2f}}}$")
    axis.set(xscale="log", yscale="log", xlabel="rows n", ylabel="time (s)")
    axis.set_ylim(top=10 * axis.get_ylim()[1])  # room for the legend
    axis.grid(which="major", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(frameon=False, fontsize=9, loc="upper left")
    one = next(iter(scaling.values()))
    where = "on a GPU" if device == "cuda" else f"on {threads()} CPU thread{'s' * (threads() > 1)}"
    caption = (
        f"Random rows of {DIMS} float32, n = {one['n'][0]:,} to {one['n'][-1]:,}, mapped from a file, {where}. Best "
        "of three up to 100,000 rows, else one run. Lines: least squares in both logarithms."
    )
    save_figure(figure, path, "Time of selection against the number of rows", caption)


def rows_of(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    yield "rows", "device", "ours (s)", "held against", "its time (s)", "ratio", "bound"
    yield ("---",) * 7
    for kind in KINDS:
        for name in COLORS:
            one = found["ratios"][kind][name]
            for device, ours in one["ours"].items():
                for peer, seconds in one["their_seconds"].items():
                    ratio = seconds / ours["seconds"]
                    yield (f"{kind}, {name}", device, f"{ours['seconds']:,.2f}", peer, f"{seconds:,.1f}",
                           f"{ratio:,.1f}", f">= {BOUNDS[peer]:g}")
                if name == "k-center":
                    for what in ("pick_gap", "radius_gap"):
                        yield (f"{kind}, {name}", device, "", f"plain greedy, float64: {what.replace('_', ' ')}", "",
                               f"{ours[what]:.1e}", f"<= {RADIUS_BOUND:g}")
                if name == "k-means":
                    ratio = ours["inertia_ratio"]
                    yield f"{kind}, {name}", device, "", "MiniBatchKMeans: inertia", "", f"{ratio:.4f}", "<= 1"
    for name, ratio in found["peak_memory_ratio"].items():
        yield name, "cpu", "", "the features: peak memory", "", f"{ratio:.2f}", f"<= {MEMORY_BOUND:g}"
    for device, scaling in found["scaling"].items():
        for name, one in scaling.items():
            yield (name, device, f"{one['seconds'][-1]:,.1f}", f"n = {one['n'][-1]:,}", "", f"n^{one['exponent']:.2f}",
                   "")


def threads() -> int:
    import torch

    return int(torch.get_num_threads())


def machine() -> dict[str, Any]:
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(), "cores": os.cpu_count(), "threads": threads(),
        "load_average": os.getloadavg(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {"python": platform.python_version(),
                     **{name: metadata.version(name) for name in ("numpy", "torch", "scikit-learn")}},
    }


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=positive_int, default=67_349, help="of the ratios; a tenth is picked")
    parser.add_argument("--steps", type=positive_int, default=200, help="of the slow forms and of herding, timed")
    parser.add_argument("--seeds", type=positive_int, default=3, help="of k-means; medians are shown")
    parser.add_argument("--max_n", type=positive_int, default=1_000_000, help="rows of the last point of the plot")
    parser.add_argument("--scaling_k", type=positive_int, default=1000, help="picks of k-center in the plot; herding "
                        "takes a fifth")
    parser.add_switch("--quick", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of the matrices")
    parser.add_argument("--output_dir", default="./bench_selectors", help="where the JSON and the picture go")
    args = parser.parse_args(argv)
    if args.quick:
        args.rows, args.steps, args.seeds, args.max_n, args.scaling_k = 3000, 4, 1, 8000, 100
    return args


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import torch

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    k = max(1, args.rows // 10)
    smallest = min(10_000, args.max_n // 8)
    points = 1 + max(2, round(2 * np.log10(args.max_n / smallest)))
    sizes = np.geomspace(smallest, args.max_n, points).round().astype(int).tolist()
    ks = {"k-center": args.scaling_k, "herding": max(1, args.scaling_k // 5)}
    owns = ("bench_selectors.json", "selector_scaling*.png")
    with stage(args.output_dir, args, owns=owns) as path, tempfile.TemporaryDirectory() as scratch:
        rng = np.random.default_rng(args.seed)
        found: dict[str, Any] = {"rows": args.rows, "dims": DIMS, "k": k, "machine": machine(), "ratios": {}}
        file = str(Path(scratch, "vectors.npy"))
        for kind in KINDS:
            vectors = draw(kind, args.rows, rng)
            found["ratios"][kind] = {
                "k-center": measure_k_center(vectors, k, args.steps, devices),
                "herding": measure_herding(vectors, k, args.steps, devices),
                "k-means": measure_kmeans(vectors, CLUSTERS, args.seeds, devices),
            }
        np.save(file, vectors)
        del vectors
        found["peak_memory_ratio"] = measure_memory(file, ks["k-center"], CLUSTERS)
        draw("random", args.max_n, rng,
             np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(args.max_n, DIMS)))
        found["scaling"] = {device: measure_scaling(file, sizes, ks, CLUSTERS, device) for device in devices}
        for device, scaling in found["scaling"].items():
            plot_scaling(path / f"selector_scaling_{device}.png", scaling, ks, CLUSTERS, device)
        write_json(path / "bench_selectors.json", found)
    print("\n".join(f"| {' | '.join(row)} |" for row in rows_of(found)))
    print(f"wrote bench_selectors.json and {len(devices)} pictures to {args.output_dir}")


if __name__ == "__main__":
    main()
