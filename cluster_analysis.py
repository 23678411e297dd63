"""Cluster the embeddings of a dataset with HDBSCAN and draw them in two dimensions.

Reads embeddings.npy and embeddings_metadata.json (extract_embeddings.py). Writes cluster_assignments.csv,
cluster_statistics.csv, cluster_samples.json, cluster_metadata.json, cluster_map.png and cluster_sizes.png.

    python cluster_analysis.py --embedding_dir ./embeddings_output --output_dir ./cluster_output
    python cluster_analysis.py --embedding_dir ./embeddings_output --min_cluster_size 5 --visualization_method pca

The embeddings are standardised, reduced by PCA and clustered; UMAP only draws the picture, and compiles itself for
half a minute first (--visualization_method pca does not).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datamap.core import plots as plotting
from datamap.core.artifacts import artifact_file, check_not_read, recorded_dataset, stage
from datamap.core.errors import UserError, command_line, name_a_few
from datamap.core.files import read_json, write_csv, write_json
from datamap.core.flags import DEFAULT_SEED, Parser, positive_int, seed_number

MADE_BY = "extract_embeddings.py"
OWNS = (
    "cluster_assignments.csv", "cluster_statistics.csv", "cluster_samples.json", "cluster_metadata.json",
    "cluster_map.png", "cluster_sizes.png",
)
NOISE = -1
SAMPLES_PER_CLUSTER = 5
ROWS_PRINTED = 20
LABELS_DRAWN = 30
# Paul Tol's "bright" scheme, whose grey is noise.
PALETTE = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
NOISE_COLOUR = "#BBBBBB"

logger = logging.getLogger(__name__)


@dataclass
class Embeddings:
    values: np.ndarray  # (rows, dims) float32
    ids: list[str]
    texts: dict[str, list[Any]]  # column -> one value per row; empty when the file carries no texts
    metadata: dict[str, Any]  # the rest of embeddings_metadata.json
    file: Path


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
        n_components=dimensions,
        n_neighbors=min(15, len(values) - 1),
        min_dist=0.1 if dimensions == 2 else 0.0,
        metric=metric,
        random_state=seed,
        n_jobs=1,
    )
    return umap.fit_transform(values), None


def unit_length(values: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(norms == 0, 1, norms)


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
    fitted = np.arange(rows)
    if sampled:
        fitted = np.sort(np.random.default_rng(seed).choice(rows, max_points, replace=False))
    clusterer = hdbscan.HDBSCAN(
        min_cluster_size=min_cluster_size, min_samples=min_samples, metric=metric, prediction_data=sampled
    ).fit(values[fitted])
    labels = np.full(rows, NOISE)
    probabilities, scores = np.zeros(rows), np.zeros(rows)
    labels[fitted] = clusterer.labels_
    probabilities[fitted] = clusterer.probabilities_
    scores[fitted] = clusterer.outlier_scores_
    if sampled:
        others = np.setdiff1d(np.arange(rows), fitted)
        labels[others], probabilities[others] = hdbscan.approximate_predict(clusterer, values[others])
        # A row denser than every fitted one comes out below 0.
        scores[others] = np.clip(hdbscan.approximate_predict_scores(clusterer, values[others]), 0, 1)
    return number_by_size(Clustering(labels, probabilities, scores, clusterer.cluster_persistence_, len(fitted)))


def number_by_size(found: Clustering) -> Clustering:
    """Renumber the clusters so that 0 is the largest: HDBSCAN's own numbers mean nothing."""
    sizes = np.bincount(found.labels[found.labels != NOISE], minlength=found.num_clusters)
    order = np.argsort(-sizes, kind="stable")
    new = np.append(np.argsort(order, kind="stable"), NOISE)  # the last entry is what -1 picks
    return Clustering(
        new[found.labels], found.probabilities, found.outlier_scores, np.asarray(found.persistence)[order],
        found.num_fitted,
    )


def statistics(found: Clustering) -> pd.DataFrame:
    """One row per cluster, noise (-1) first: its share, how stable it is, how firmly its rows belong."""
    frame = pd.DataFrame(
        {"cluster": found.labels, "probability": found.probabilities, "score": found.outlier_scores}
    )
    grouped = frame.groupby("cluster")
    clusters = range(NOISE, found.num_clusters)
    table = pd.DataFrame(
        {
            "size": grouped.size(),
            "mean_probability": grouped["probability"].mean(),
            "mean_outlier_score": grouped["score"].mean(),
        }
    ).reindex(clusters)
    table["size"] = table["size"].fillna(0).astype(int)
    table["fraction"] = table["size"] / len(frame)
    table["persistence"] = [np.nan, *found.persistence]
    columns = ["cluster", "size", "fraction", "persistence", "mean_probability", "mean_outlier_score"]
    return table.rename_axis("cluster").reset_index()[columns]


def samples(embeddings: Embeddings, found: Clustering) -> dict[str, list[dict[str, Any]]]:
    """For each cluster the rows that belong to it most firmly; for noise the strongest outliers."""
    chosen = {}
    for label in range(NOISE, found.num_clusters):
        members = np.flatnonzero(found.labels == label)
        rank = found.outlier_scores if label == NOISE else found.probabilities
        best = members[np.argsort(-rank[members], kind="stable")][:SAMPLES_PER_CLUSTER]
        chosen[str(label)] = [
            {
                "id": embeddings.ids[row],
                "cluster_probability": found.probabilities[row],
                "outlier_score": None if np.isnan(found.outlier_scores[row]) else found.outlier_scores[row],
                **{column: values[row] for column, values in embeddings.texts.items()},
            }
            for row in best
        ]
    return chosen


# --- files and pictures ------------------------------------------------------------------------------------------


def load_embeddings(path: str) -> Embeddings:
    file = artifact_file(path, "embeddings.npy", MADE_BY)
    metadata_file = artifact_file(file.parent, "embeddings_metadata.json", MADE_BY)
    try:
        values = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{file} is not a whole .npy file ({error}); run {MADE_BY} again") from error
    metadata = read_json(metadata_file)
    ids = metadata.pop("ids", None) if isinstance(metadata, dict) else None
    if not isinstance(ids, list) or not all(isinstance(value, str) for value in ids):
        raise UserError(f"{metadata_file}: expected an object whose 'ids' lists one string per row of {file.name}")
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind != "f" or values.shape[1] < 2:
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise UserError(f"{file}: expected floating-point rows x dimensions (2 or more), found {found}")
    if len(ids) != len(values):
        raise UserError(
            f"{metadata_file} lists {len(ids):,} ids, but {file.name} has {len(values):,} rows; run {MADE_BY} again"
        )
    if len(set(ids)) != len(ids):
        repeated = pd.Series(ids)[pd.Series(ids).duplicated()].unique()
        raise UserError(f"{metadata_file}: {len(repeated):,} ids occur more than once ({name_a_few(repeated)})")
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(broken):
        names = name_a_few(ids[row] for row in broken)
        raise UserError(f"{file}: {len(broken):,} rows hold NaN or infinity (ids {names}); run {MADE_BY} again")
    texts = metadata.pop("texts", {})
    if not isinstance(texts, dict) or any(len(column) != len(ids) for column in texts.values()):
        raise UserError(f"{metadata_file}: each column of 'texts' must have one entry for each of {len(ids):,} ids")
    return Embeddings(values, ids, texts, metadata, file)


def choose_colours(found: Clustering, dims: np.ndarray) -> list[str]:
    """A colour per cluster. There are more clusters than colours that anybody can tell apart, so a colour is used
    again, each time for the cluster that lies farthest from those that have it already."""
    centres = [np.median(dims[found.labels == label], axis=0) for label in range(found.num_clusters)]
    colours: list[str] = []
    for label, centre in enumerate(centres):
        if label < len(PALETTE):
            colours.append(PALETTE[label])
            continue
        distances = np.linalg.norm(np.array(centres[:label]) - centre, axis=1)
        nearest = {colour: np.inf for colour in PALETTE}
        for colour, distance in zip(colours, distances, strict=True):
            nearest[colour] = min(nearest[colour], distance)
        colours.append(max(nearest, key=nearest.__getitem__))
    return colours


def summary(found: Clustering) -> str:
    clusters = "1 cluster" if found.num_clusters == 1 else f"{found.num_clusters:,} clusters"
    assigned = len(found.labels) - found.num_fitted
    note = f", {assigned:,} rows assigned after clustering {found.num_fitted:,}" if assigned else ""
    return f"n = {len(found.labels):,}, {clusters}, {found.noise_fraction:.1%} noise{note}"


def plot_map(
    path: Path, found: Clustering, dims: np.ndarray, colours: Sequence[str], axes: Sequence[str], seed: int
) -> None:
    """The 2-D picture of cluster_assignments.csv: dim1 against dim2, coloured by cluster."""
    from matplotlib import patheffects

    figure, plot = plotting.new_figure(7, 6)
    size = float(np.clip(40000 / len(dims), 2, 20))
    noise = found.labels == NOISE
    plot.scatter(*dims[noise].T, s=size / 2, c=NOISE_COLOUR, linewidths=0, label="noise")
    # In one seeded random order, so that no cluster is drawn over all of another.
    order = np.random.default_rng(seed).permutation(np.flatnonzero(~noise))
    plot.scatter(*dims[order].T, s=size, c=[colours[label] for label in found.labels[order]], alpha=0.8, linewidths=0)
    for label in range(min(found.num_clusters, LABELS_DRAWN)):
        members = dims[found.labels == label]
        x, y = np.median(members, axis=0)
        top = np.quantile(members[:, 1], 0.98)
        # UMAP packs a cluster into a spot smaller than its number, which then goes above it.
        small = top - y < 0.03 * np.ptp(dims[:, 1])
        plot.annotate(
            str(label), (x, top if small else y), xytext=(0, 2 if small else 0), textcoords="offset points",
            ha="center", va="bottom" if small else "center", fontsize=9,
            path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
        )
    plot.set(xlabel=axes[0], ylabel=axes[1])
    caption = f"{summary(found)}\nnoise is grey"
    if found.num_clusters:
        named = f"the {LABELS_DRAWN} largest clusters" if found.num_clusters > LABELS_DRAWN else "the clusters"
        caption += f"; numbers name {named}, 0 is the largest"
    if found.num_clusters > len(PALETTE):
        caption += "; colours repeat"
    plotting.save_figure(figure, path, "HDBSCAN clusters of the embeddings", caption)


def plot_sizes(path: Path, found: Clustering, table: pd.DataFrame, colours: Sequence[str]) -> None:
    """Size and persistence of the largest clusters, from cluster_statistics.csv."""
    shown = table.iloc[: LABELS_DRAWN + 1]
    positions = np.arange(len(shown))
    fills = [NOISE_COLOUR, *colours[: len(shown) - 1]]
    figure, (upper, lower) = plotting.new_figure(
        max(5.0, 1.6 + 0.28 * len(shown)), 5, rows=2, sharex=True, height_ratios=(3, 2)
    )
    upper.bar(positions, shown["size"], color=fills)
    upper.yaxis.set_major_formatter("{x:,.0f}")
    upper.set_ylabel("examples (count)")
    lower.bar(positions[1:], shown["persistence"][1:], color=fills[1:])
    lower.set(ylabel="persistence (0 to 1)", xlabel="cluster")
    lower.set_xticks(positions, ["noise", *map(str, shown["cluster"][1:])], rotation=90 if len(shown) > 16 else 0)
    hidden = len(table) - len(shown)
    more = f"; the {hidden:,} smallest clusters are not shown" if hidden else ""
    plotting.save_figure(figure, path, "Size and persistence of the clusters", f"{summary(found)}{more}")


def axis_labels(shares: Sequence[float] | None, explained: float | None) -> list[str]:
    """``shares`` of the variance of the reduced embeddings, which hold the fraction ``explained`` of all variance."""
    if shares is None:
        return ["UMAP dimension 1", "UMAP dimension 2"]
    if explained is None:
        return ["principal component 1", "principal component 2"]
    return [f"principal component {n} ({share * explained:.1%} of variance)" for n, share in enumerate(shares, 1)]


def print_table(table: pd.DataFrame) -> None:
    shown = table.iloc[: ROWS_PRINTED + 1]
    print(f"{'cluster':>7}  {'size':>9}  {'fraction':>8}  {'persistence':>11}  {'mean probability':>16}")
    for row in shown.itertuples():
        name = "noise" if row.cluster == NOISE else str(row.cluster)
        persistence = "" if np.isnan(row.persistence) else f"{row.persistence:.3f}"
        probability = "" if row.cluster == NOISE else f"{row.mean_probability:.3f}"
        print(f"{name:>7}  {row.size:>9,}  {row.fraction:>8.1%}  {persistence:>11}  {probability:>16}")
    if len(table) > len(shown):
        print(f"... and {len(table) - len(shown):,} smaller ones in cluster_statistics.csv")


def warn_if_poor(found: Clustering, min_cluster_size: int) -> None:
    if found.num_clusters == 0:
        logger.warning(
            f"no clusters: every row is noise at --min_cluster_size {min_cluster_size}; a smaller value or a smaller "
            "--reduction_dim may find some, or there may be none"
        )
    elif np.mean(found.labels == 0) > 0.9:  # number 0 is the largest
        logger.warning(f"one cluster holds {np.mean(found.labels == 0):.1%} of the rows: the data is hardly divided")
    elif found.noise_fraction > 0.5:
        logger.warning(
            f"{found.noise_fraction:.1%} of the rows are noise: the clusters describe the smaller part of the data; "
            "smaller --min_samples or --reduction_dim makes HDBSCAN less strict"
        )


# --- command line ------------------------------------------------------------------------------------------------


def at_least_two(text: str) -> int:
    value = positive_int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 2, found {text!r}")
    return value


def build_parser() -> Parser:
    parser = Parser("Cluster embeddings with HDBSCAN; see the README for what the files mean.")
    parser.add_argument("--embedding_dir", required=True, help="directory that extract_embeddings.py wrote")
    parser.add_argument("--output_dir", default="./cluster_output", help="where the files go")
    group = parser.add_argument_group("reduction before clustering")
    group.add_argument("--reduction_method", choices=("pca", "umap"), default="pca", help="how dimensions are reduced")
    group.add_argument("--reduction_dim", type=at_least_two, default=50, help="dimensions kept")
    group = parser.add_argument_group("HDBSCAN")
    group.add_argument("--min_cluster_size", type=at_least_two, default=15, help="rows in the smallest cluster")
    group.add_argument(
        "--min_samples", type=positive_int, help="neighbours that make a row dense; more = more noise (default: "
        "min_cluster_size)"
    )
    group.add_argument(
        "--metric", choices=("euclidean", "manhattan", "chebyshev", "cosine"), default="euclidean",
        help="distance between reduced embeddings; cosine: euclidean between rows scaled to unit length",
    )
    group.add_argument(
        "--max_cluster_points", type=positive_int, default=50_000,
        help="above this many rows a seeded sample of that size is clustered and the rest assigned to its clusters",
    )
    group = parser.add_argument_group("picture")
    group.add_argument(
        "--visualization_method", choices=("umap", "pca"), default="umap",
        help="two dimensions for the picture only; umap takes half a minute longer",
    )
    parser.add_argument("--seed", type=seed_number, default=DEFAULT_SEED, help="of sample, reduction and picture")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return build_parser().parse_args(argv)


def check_sizes(args: argparse.Namespace, rows: int) -> None:
    """Refuse what HDBSCAN or UMAP cannot do with this many rows."""
    fitted = min(rows, args.max_cluster_points)
    sampled = fitted < rows
    what = f"the sample of --max_cluster_points {fitted:,} rows" if sampled else f"{rows:,} rows"
    if args.min_cluster_size > fitted:
        raise UserError(f"--min_cluster_size {args.min_cluster_size:,} is more than {what}; give a smaller one")
    min_samples = args.min_samples or args.min_cluster_size
    if args.min_samples and args.min_samples >= fitted:
        raise UserError(f"--min_samples {args.min_samples:,} must be less than {what}")
    if sampled and 2 * min_samples > fitted:  # approximate_predict looks at that many neighbours
        raise UserError(
            f"assigning rows to clusters needs {2 * min_samples:,} neighbours (2 x --min_samples), more than {what}; "
            "raise --max_cluster_points or lower --min_samples"
        )
    if "umap" in (args.visualization_method, args.reduction_method) and rows < 4:
        raise UserError(f"UMAP needs at least 4 rows, found {rows}; use pca for the reduction and the picture")


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    embeddings = load_embeddings(args.embedding_dir)
    rows, dims = embeddings.values.shape
    check_sizes(args, rows)
    check_not_read(args.output_dir, embeddings.file)
    if not embeddings.texts:
        logger.warning(f"{embeddings.file.parent} carries no texts: cluster_samples.json will hold ids only")
    # A manifold of n rows has at most n - 1 dimensions, and UMAP's start needs one more row.
    limit = min(rows, dims) if args.reduction_method == "pca" else min(rows - 2, dims)
    reduction_dim = min(args.reduction_dim, limit)
    if reduction_dim < args.reduction_dim:
        logger.info(f"--reduction_dim lowered to {reduction_dim}: there are {rows:,} rows of {dims} dimensions")

    scaled = standardise(embeddings.values)
    identity = recorded_dataset(embeddings.file)
    with stage(
        args.output_dir, args, owns=OWNS, inputs={"embeddings": embeddings.file},
        datasets=[identity] if identity else [],
    ) as path:
        logger.info(f"reducing {rows:,} x {dims} embeddings to {reduction_dim} dimensions ({args.reduction_method})")
        reduced, variance = reduce_dimensions(scaled, reduction_dim, args.reduction_method, "euclidean", args.seed)
        explained = min(sum(variance), 1.0) if variance else None
        metric = args.metric
        if metric == "cosine":
            reduced, metric = unit_length(reduced), "euclidean"
        fitted = min(rows, args.max_cluster_points)
        logger.info(f"clustering {fitted:,} rows")
        if fitted < rows:
            logger.info(f"these are a random sample (--max_cluster_points); the other {rows - fitted:,} are assigned")
        found = cluster(
            reduced, args.min_cluster_size, args.min_samples, metric, args.max_cluster_points, args.seed
        )
        logger.info(f"drawing {rows:,} rows in two dimensions ({args.visualization_method})")
        picture, shares = reduce_dimensions(reduced, 2, args.visualization_method, metric, args.seed)

        table = statistics(found)
        write_csv(
            path / "cluster_assignments.csv",
            pd.DataFrame(
                {
                    "id": embeddings.ids,
                    "cluster": found.labels,
                    "dim1": picture[:, 0],
                    "dim2": picture[:, 1],
                    "cluster_probability": found.probabilities,
                    "outlier_score": found.outlier_scores,
                }
            ),
        )
        write_csv(path / "cluster_statistics.csv", table)
        write_json(path / "cluster_samples.json", samples(embeddings, found))
        write_json(
            path / "cluster_metadata.json",
            {
                "embeddings": embeddings.metadata,
                "settings": {
                    **{name: value for name, value in vars(args).items() if not name.endswith("_dir")},
                    "reduction_dim": reduction_dim,
                },
                "num_rows": rows,
                "num_dims": dims,
                "explained_variance": explained,
                "num_clusters": found.num_clusters,
                "num_noise": int(np.sum(found.labels == NOISE)),
                "noise_fraction": found.noise_fraction,
                "num_clustered": found.num_fitted,
                "num_assigned": rows - found.num_fitted,
            },
        )
        colours = choose_colours(found, picture)
        axes = axis_labels(shares, explained if args.metric != "cosine" else None)
        plot_map(path / "cluster_map.png", found, picture, colours, axes, args.seed)
        plot_sizes(path / "cluster_sizes.png", found, table, colours)

    print_table(table)
    warn_if_poor(found, args.min_cluster_size)
    print(f"wrote clusters, samples and pictures ({summary(found)}) to {path}")


if __name__ == "__main__":
    main()
