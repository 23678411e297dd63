"""Clusters of embeddings: HDBSCAN, what it found, and its pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.artifacts import artifact_file
from datamap.core.errors import UserError, name_a_few, repeated
from datamap.core.files import nulls_for_nan, read_json, read_json_like, read_table
from datamap.core.plots import (
    COLORS,
    DARK_GREY,
    GREY,
    LIGHT_GREY,
    new_figure,
    picture_files,
    save_figure,
    whole_numbers,
)

if TYPE_CHECKING:
    import hdbscan
    import pandas as pd

MADE_BY = "extract_embeddings.py"
CLUSTER_FILES = (
    "cluster_assignments.csv", "cluster_statistics.csv", "cluster_samples.json", "cluster_metadata.json",
    *picture_files("cluster_map", "cluster_sizes"),
)
CLUSTER_COLUMNS = ("cluster", "dim1", "dim2", "cluster_probability")
NOISE = -1
SAMPLES_PER_CLUSTER = 5
LABELS_DRAWN = 30
ASSIGNED_AT_ONCE = 50_000  # rows, of which all neighbours are held
ANY_AXES = ("dimension 1 (no unit)", "dimension 2 (no unit)")
SHAPES = "os^Dv"  # of points; with the colours they tell LABELS_DRAWN clusters apart

logger = logging.getLogger(__name__)


# --- embeddings --------------------------------------------------------------------------------------------------


@dataclass
class Embeddings:
    values: np.ndarray  # (rows, dims) floating point and finite, a memory map
    ids: list[str]
    texts: dict[str, list[Any]]  # column -> one value per row; empty when the file carries no texts
    metadata: dict[str, Any]  # the rest of embeddings_metadata.json
    file: Path


def load_embeddings(path: str) -> Embeddings:
    file = artifact_file(path, "embeddings.npy", MADE_BY)
    metadata_file = artifact_file(file.parent, "embeddings_metadata.json", MADE_BY)
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{file} is not a whole .npy file ({error}); run {MADE_BY} again") from error
    metadata = read_json_like(metadata_file, {"ids": [str]}, MADE_BY)
    ids = metadata.pop("ids")
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind != "f" or values.shape[1] < 2:
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise UserError(f"{file}: expected floating-point rows x dimensions (2 or more), found {found}")
    if len(ids) != len(values):
        raise UserError(f"{metadata_file} lists {len(ids):,} ids, but {file.name} has {len(values):,} rows; run "
                        f"{MADE_BY} again")
    if twice := repeated(ids):
        raise UserError(f"{metadata_file}: {len(twice):,} ids occur more than once ({name_a_few(twice)})")
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(broken):
        names = name_a_few(ids[row] for row in broken)
        raise UserError(f"{file}: {len(broken):,} rows hold NaN or infinity (ids {names}); run {MADE_BY} again")
    texts = metadata.pop("texts", {})
    if not isinstance(texts, dict) or not all(
        isinstance(column, list) and len(column) == len(ids) for column in texts.values()
    ):
        raise UserError(f"{metadata_file}: each column of 'texts' must have one entry for each of {len(ids):,} ids")
    return Embeddings(values, ids, texts, metadata, file)


def standardise(values: np.ndarray) -> np.ndarray:
    """(rows, dims) to mean 0 and standard deviation 1 per column; constant columns become 0."""
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(values)
    if not scaled.any():
        raise UserError(f"all {len(values):,} embeddings are the same vector; was the model trained?")
    return scaled


def reduce_dimensions(
    values: np.ndarray, dimensions: int, method: str, metric: str, seed: int
) -> tuple[np.ndarray, list[float] | None]:
    """(rows, dims) to (rows, dimensions); also the fraction of variance of each component, for PCA only."""
    if method == "pca":
        from sklearn.decomposition import PCA

        pca = PCA(dimensions, random_state=seed)
        return pca.fit_transform(values), pca.explained_variance_ratio_.tolist()
    from umap import UMAP

    # n_jobs=1: what a seed means to UMAP anyway. Packed points (min_dist 0) suit density clustering, not a picture.
    umap = UMAP(
        n_components=dimensions, n_neighbors=min(15, len(values) - 1), min_dist=0.1 if dimensions == 2 else 0.0,
        metric=metric, random_state=seed, n_jobs=1,
    )
    return umap.fit_transform(values), None


def unit_length(values: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(norms == 0, 1, norms)


# --- clusters ----------------------------------------------------------------------------------------------------


def cluster_name(cluster: int) -> str:
    return "noise" if cluster == NOISE else str(cluster)


@dataclass
class Clustering:
    """One entry per row. Clusters are numbered from 0 by decreasing size; -1 is noise."""

    labels: np.ndarray  # int
    probabilities: np.ndarray  # 0..1, higher = nearer the core of its cluster; 0 for noise
    outlier_scores: np.ndarray  # GLOSH, 0..1, higher = more of an outlier; NaN where undefined
    persistence: np.ndarray  # (clusters,) 0..1, higher = more stable over density levels
    num_fitted: int  # rows that HDBSCAN saw; the others were assigned afterwards

    @property
    def num_clusters(self) -> int:
        return len(self.persistence)

    @property
    def noise_fraction(self) -> float:
        return float(np.mean(self.labels == NOISE))

    @property
    def summary(self) -> str:
        clusters = "1 cluster" if self.num_clusters == 1 else f"{self.num_clusters:,} clusters"
        assigned = len(self.labels) - self.num_fitted
        note = f", {assigned:,} rows assigned after clustering {self.num_fitted:,}" if assigned else ""
        return f"n = {len(self.labels):,}, {clusters}, {self.noise_fraction:.1%} noise{note}"


def cluster(
    values: np.ndarray, min_cluster_size: int, min_samples: int | None, metric: str, max_points: int, seed: int
) -> Clustering:
    """HDBSCAN (Campello et al. 2013) of (rows, dims), with GLOSH outlier scores (Campello et al. 2015).

    Above ``max_points`` rows, a seeded sample of that many is clustered and every other row gets the cluster that
    ``approximate_predict`` finds for it.
    """
    import hdbscan

    rows = len(values)
    sampled = rows > max_points
    drawn = np.random.default_rng(seed).choice(rows, max_points, replace=False) if sampled else np.arange(rows)
    fitted = np.sort(drawn)
    clusterer = hdbscan.HDBSCAN(
        min_cluster_size=min_cluster_size, min_samples=min_samples, metric=metric
    ).fit(values[fitted])
    labels, probabilities, scores = np.full(rows, NOISE), np.zeros(rows), np.zeros(rows)
    labels[fitted], probabilities[fitted] = clusterer.labels_, clusterer.probabilities_
    scores[fitted] = clusterer.outlier_scores_
    if sampled:
        others = np.setdiff1d(np.arange(rows), fitted)
        make_assignable(clusterer, values[fitted])
        for some in np.array_split(others, -(-len(others) // ASSIGNED_AT_ONCE)):
            block = values[some]
            labels[some], probabilities[some] = hdbscan.approximate_predict(clusterer, block)
            # A row denser than every fitted one comes out below 0; none comes out above 1. In a cluster that holds
            # twins, which are infinitely dense, it is NaN.
            with np.errstate(invalid="ignore"):
                scores[some] = np.maximum(hdbscan.approximate_predict_scores(clusterer, block), 0)
    return number_by_size(Clustering(labels, probabilities, scores, clusterer.cluster_persistence_, len(fitted)))


class NearestFitted:
    """The nearest fitted rows, by what scikit-learn chooses: above 15 dimensions every distance is computed, which
    takes less time than the trees that hdbscan searches."""

    def __init__(self, values: np.ndarray, metric: str) -> None:
        from sklearn.neighbors import NearestNeighbors

        self.values, self.metric = values, metric
        self.search = NearestNeighbors(metric=metric).fit(values)
        self.last: tuple[np.ndarray, int, tuple[np.ndarray, np.ndarray]] | None = None

    def query(self, values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances, (rows, k), ascending, and the places of the neighbours, (rows, k). hdbscan asks twice for the
        same rows, for their clusters and for their scores."""
        if self.last is None or self.last[0] is not values or self.last[1] != k:
            self.last = values, k, self.find(values, k)
        return self.last[2]

    def find(self, values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        values = values.astype(self.values.dtype)  # of two types the search would be another, a slow one
        distances, places = self.search.kneighbors(values, k)
        if self.metric == "euclidean":  # those of many rows at once are rounded: twins lie apart
            for row, near in enumerate(places):
                distances[row] = np.linalg.norm(self.values[near] - values[row], axis=1)
            order = np.argsort(distances, axis=1, kind="stable")
            distances, places = (np.take_along_axis(each, order, axis=1) for each in (distances, places))
        return distances, places


def make_assignable(clusterer: hdbscan.HDBSCAN, values: np.ndarray) -> None:
    """What hdbscan makes of the (rows, dims) it was fitted to by ``prediction_data=True``, with ``NearestFitted``."""
    from hdbscan.prediction import PredictionData

    class Searched(PredictionData):
        _tree_type_map = {"kdtree": NearestFitted}

    clusterer._prediction_data = Searched(
        values, clusterer.condensed_tree_, clusterer.min_samples or clusterer.min_cluster_size, metric=clusterer.metric
    )


def number_by_size(found: Clustering) -> Clustering:
    """Renumber the clusters so that 0 is the largest: HDBSCAN's own numbers mean nothing."""
    sizes = np.bincount(found.labels[found.labels != NOISE], minlength=found.num_clusters)
    order = np.argsort(-sizes, kind="stable")
    new = np.append(np.argsort(order, kind="stable"), NOISE)  # the last entry is what -1 picks
    return replace(found, labels=new[found.labels], persistence=np.asarray(found.persistence)[order])


def assignments(ids: Sequence[str], found: Clustering, dims: np.ndarray) -> pd.DataFrame:
    """One row per example; dims: its place in the picture, (rows, 2)."""
    import pandas as pd

    return pd.DataFrame({
        "id": ids, "cluster": found.labels, "dim1": dims[:, 0], "dim2": dims[:, 1],
        "cluster_probability": found.probabilities, "outlier_score": found.outlier_scores,
    })


def statistics(found: Clustering) -> pd.DataFrame:
    """One row per cluster, noise (-1) first: its share, how stable it is, how firmly its rows belong."""
    import pandas as pd

    clusters = pd.Index(range(NOISE, found.num_clusters), name="cluster")
    scores = pd.DataFrame({"mean_probability": found.probabilities, "mean_outlier_score": found.outlier_scores})
    means = scores.groupby(found.labels).mean().reindex(clusters)
    sizes = np.bincount(found.labels - NOISE, minlength=len(clusters))
    first = {"size": sizes, "fraction": sizes / len(scores), "persistence": [np.nan, *found.persistence]}
    return pd.concat([pd.DataFrame(first, clusters), means], axis=1).reset_index()


def samples(embeddings: Embeddings, found: Clustering) -> dict[str, list[dict[str, Any]]]:
    """For each cluster the rows that belong to it most firmly; for noise the strongest outliers."""
    chosen = {}
    for label in range(NOISE, found.num_clusters):
        members = np.flatnonzero(found.labels == label)
        rank = found.outlier_scores if label == NOISE else found.probabilities
        best = members[np.argsort(-rank[members], kind="stable")][:SAMPLES_PER_CLUSTER]
        chosen[str(label)] = [
            {"id": embeddings.ids[row], "cluster_probability": found.probabilities[row],
             "outlier_score": nulls_for_nan(found.outlier_scores[row]),
             **{column: values[row] for column, values in embeddings.texts.items()}}
            for row in best
        ]
    return chosen


def load_clusters(
    path: str | Path, columns: Sequence[str] = CLUSTER_COLUMNS, optional: Sequence[str] = ()
) -> pd.DataFrame:
    """``columns`` of cluster_assignments.csv, and those of ``optional`` that it has, indexed by id, as numbers;
    ``cluster`` is Int64, -1 is noise."""
    import pandas as pd

    file = artifact_file(path, "cluster_assignments.csv", "cluster_analysis.py")
    table = read_table(file, columns=("id", *columns))
    if table.empty:
        raise UserError(f"{file} holds no examples; run cluster_analysis.py again")
    columns = [*columns, *(column for column in optional if column in table)]
    numbers = {column: pd.to_numeric(table[column], errors="coerce") for column in columns}
    for column in columns:
        if len(bad := table["id"][numbers[column].isna() & table[column].notna()]):
            raise UserError(f"{file}: {column} of {len(bad):,} examples ({name_a_few(bad)}) is no number")
    bad = table["id"][numbers["cluster"].isna() | (numbers["cluster"] % 1 != 0)]
    if len(bad):
        raise UserError(f"{file}: cluster of {len(bad):,} examples ({name_a_few(bad)}) is no whole number")
    return table.assign(**numbers).astype({"cluster": "Int64"}).set_index("id")[columns]


def warn_if_poor(found: Clustering, min_cluster_size: int) -> None:
    if found.num_clusters == 0:
        logger.warning(f"no clusters: every row is noise at --min_cluster_size {min_cluster_size}; a smaller value or "
                       "a smaller --reduction_dim may find some, or there may be none")
    elif np.mean(found.labels == 0) > 0.9:  # number 0 is the largest
        logger.warning(f"one cluster holds {np.mean(found.labels == 0):.1%} of the rows: the data is hardly divided")
    elif found.noise_fraction > 0.5:
        logger.warning(f"{found.noise_fraction:.1%} of the rows are noise: the clusters describe the smaller part of "
                       "the data; smaller --min_samples or --reduction_dim makes HDBSCAN less strict")


# --- pictures ----------------------------------------------------------------------------------------------------


def choose_colours(found: Clustering, dims: np.ndarray) -> list[str]:
    """A colour per cluster. There are more clusters than colours that anybody can tell apart, so a colour is used
    again, each time for the cluster that lies farthest from those that have it already, and as often as there are
    shapes (``choose_shapes``). The clusters beyond those that are named are grey."""
    named = min(found.num_clusters, LABELS_DRAWN)
    centres = [np.median(dims[found.labels == label], axis=0) for label in range(named)]
    colours = list(COLORS[:named])
    for label in range(len(COLORS), named):
        distances = np.linalg.norm(np.array(centres[:label]) - centres[label], axis=1)
        taken = np.array(colours)
        free = [colour for colour in COLORS if colours.count(colour) < len(SHAPES)]
        colours.append(max(free, key=lambda colour: distances[taken == colour].min()))
    return [*colours, *[GREY] * (found.num_clusters - named)]


def choose_shapes(colours: Sequence[str]) -> list[str]:
    """A shape of its points per cluster: of the named clusters no two have the same colour and shape."""
    return [SHAPES[0 if colour == GREY else colours[:label].count(colour)] for label, colour in enumerate(colours)]


def place_names(anchors: np.ndarray, widths: Sequence[float], height: float, free: np.ndarray) -> np.ndarray:
    """Where the middles of names go, (m, 2): at their anchors (m, 2), or the nearest place where none lies on another.

    The first has the first choice. widths, height: of the names, in the unit of the anchors. free: (2, 2) lowest and
    highest corner of where they may lie.
    """
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False) + np.pi / 2
    steps = np.vstack([[0, 0], *(radius * height * np.column_stack([np.cos(angles), np.sin(angles)])
                                 for radius in np.arange(0.75, 30, 0.25))])
    placed = np.empty((0, 2))
    for anchor, width in zip(anchors, widths, strict=True):
        tries = np.clip(anchor + steps, *free)
        apart = np.abs(tries[:, None] - placed) >= np.stack([(np.array(widths[: len(placed)]) + width) / 2,
                                                             np.full(len(placed), height)], axis=1)
        clear = apart.any(axis=2).all(axis=1)
        # Clipped to the frame a farther try may be the nearer place; without any clear one they lie on each other.
        nearest = np.where(clear, np.linalg.norm(tries - anchor, axis=1), np.inf)
        placed = np.vstack([placed, tries[nearest.argmin()]])
    return placed


def plot_map(
    path: Path, found: Clustering, dims: np.ndarray, colours: Sequence[str], axes: Sequence[str], seed: int
) -> None:
    """The 2-D picture of cluster_assignments.csv: dim1 against dim2, coloured by cluster."""
    from matplotlib import patheffects

    figure, plot = new_figure(7, 6)
    size = float(np.clip(40000 / len(dims), 2, 20))
    shapes = np.array(choose_shapes(colours))
    noise = found.labels == NOISE
    plot.scatter(*dims[noise].T, s=size / 2, c=LIGHT_GREY, linewidths=0, label="noise")
    # In one seeded random order, so that no cluster is drawn over all of another; a scatter has one shape.
    order = np.random.default_rng(seed).permutation(np.flatnonzero(~noise))
    for shape in dict.fromkeys(shapes):
        rows = order[shapes[found.labels[order]] == shape]
        plot.scatter(*dims[rows].T, s=size, c=[colours[label] for label in found.labels[rows]], alpha=0.8,
                     linewidths=0, marker=shape)
    plot.set(xlabel=axes[0], ylabel=axes[1])
    named = min(found.num_clusters, LABELS_DRAWN)
    if named:
        # In points from the lower left corner; the frame is about 6.2 x 4.9 inches.
        low, high = (np.array(limits) for limits in zip(plot.get_xlim(), plot.get_ylim(), strict=True))
        frame = 72 * np.array([6.2, 4.9])
        unit = frame / (high - low)
        members = [dims[found.labels == label] for label in range(named)]
        centres = np.array([np.median(each, axis=0) for each in members])
        middles = (centres - low) * unit
        # UMAP packs a cluster into a spot smaller than its number, which then goes above it.
        up = unit[1] * np.array([np.quantile(each[:, 1], 0.98) for each in members]) - unit[1] * centres[:, 1]
        anchors = middles + np.stack([np.zeros(named), np.where(up < 8, up + 8, 0)], axis=1)
        places = place_names(anchors, [8 + 7 * len(str(label)) for label in range(named)], 13,
                             np.array([[8, 8], frame - 8]))
        for label, (anchor, place) in enumerate(zip(anchors, places, strict=True)):
            away = np.linalg.norm(place - anchor) > 1
            plot.annotate(
                str(label), centres[label], xytext=place - middles[label], textcoords="offset points", ha="center",
                va="center", fontsize=9, path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
                arrowprops={"arrowstyle": "-", "color": DARK_GREY, "linewidth": 0.6, "shrinkA": 3, "shrinkB": 0}
                if away else None,
            )
    caption = f"{found.summary}\nnoise is light grey"
    if found.num_clusters:
        which = f"the {LABELS_DRAWN} largest clusters" if found.num_clusters > LABELS_DRAWN else "the clusters"
        caption += f"; numbers name {which}, 0 is the largest"
    if found.num_clusters > len(COLORS):
        caption += "; colours repeat with other shapes"
    if found.num_clusters > LABELS_DRAWN:
        caption += "; the smaller clusters are grey"
    save_figure(figure, path, "HDBSCAN clusters of the embeddings", caption)


def plot_sizes(path: Path, found: Clustering, table: pd.DataFrame, colours: Sequence[str]) -> None:
    """Size and persistence of the largest clusters, from cluster_statistics.csv."""
    shown = table.iloc[: LABELS_DRAWN + 1]
    positions = np.arange(len(shown))
    fills = [LIGHT_GREY, *colours[: len(shown) - 1]]
    width = max(5.0, 1.6 + 0.28 * len(shown))
    figure, (upper, lower) = new_figure(width, 5, rows=2, sharex=True, height_ratios=(3, 2))
    upper.bar(positions, shown["size"], color=fills)
    whole_numbers(upper.yaxis)
    upper.set_ylabel("examples (count)")
    lower.bar(positions[1:], shown["persistence"][1:], color=fills[1:])
    lower.set(ylabel="persistence (0 to 1)", xlabel="cluster")
    lower.set_xticks(positions, ["noise", *map(str, shown["cluster"][1:])], rotation=90 if len(shown) > 16 else 0)
    hidden = len(table) - len(shown)
    more = f"; the {hidden:,} smallest clusters are not shown" if hidden else ""
    save_figure(figure, path, "Size and persistence of the clusters", f"{found.summary}{more}")


def axes_of(path: str | Path) -> list[str]:
    """What dim1 and dim2 of a cluster directory are, as recorded there; clusters made elsewhere do not say."""
    file = (Path(path) if Path(path).is_dir() else Path(path).parent) / "cluster_metadata.json"
    found = read_json(file) if file.exists() else None
    axes = found.get("axes") if isinstance(found, dict) else None
    return list(map(str, axes)) if isinstance(axes, list) and len(axes) == 2 else list(ANY_AXES)


def axis_labels(shares: Sequence[float] | None, explained: float | None) -> list[str]:
    """``shares`` of the variance of the reduced embeddings, which hold the fraction ``explained`` of all variance.

    explained is None of vectors of unit length, or reduced by UMAP.
    """
    if shares is None:
        return ["UMAP dimension 1", "UMAP dimension 2"]
    if explained is None:
        return [f"principal component {n} ({share:.1%} of the variance of what is clustered)"
                for n, share in enumerate(shares, 1)]
    return [f"principal component {n} ({share * explained:.1%} of variance)" for n, share in enumerate(shares, 1)]
