"""Cluster the embeddings of a dataset with HDBSCAN and draw them in two dimensions.

Reads embeddings.npy and embeddings_metadata.json (extract_embeddings.py). Writes cluster_assignments.csv,
cluster_statistics.csv, cluster_samples.json, cluster_metadata.json, cluster_map.png and cluster_sizes.png.

    python cluster_analysis.py --embedding_dir ./embeddings_output --output_dir ./cluster_output
    python cluster_analysis.py --embedding_dir ./embeddings_output --min_cluster_size 5 --visualization_method umap

The embeddings are standardised, reduced by PCA and clustered. The picture shows two principal components; UMAP keeps
neighbours together in it, and compiles itself first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from datamap.analysis import clusters
from datamap.analysis.cluster_arguments import build_parser, check_sizes
from datamap.core.artifacts import check_not_read, hand_on_digests, recorded_dataset, stage
from datamap.core.errors import command_line
from datamap.core.files import write_csv, write_json
from datamap.core.progress import Progress
from datamap.core.tables import console_table

PRINTED: dict[str, Any] = {
    "cluster": clusters.cluster_name, "size": ",d", "fraction": ".1%", "persistence": ".3f", "mean_probability": ".3f",
}
ROWS_PRINTED = 20

logger = logging.getLogger(__name__)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    embeddings = clusters.load_embeddings(args.embedding_dir)
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

    scaled = clusters.standardise(embeddings.values)
    with stage(
        args.output_dir, args, owns=clusters.CLUSTER_FILES, inputs={"embeddings": embeddings.file},
        datasets=[recorded_dataset(embeddings.file)],
    ) as path, Progress("clustering", 3, "steps") as progress:
        hand_on_digests(path, embeddings.file)
        logger.info(f"reducing {rows:,} x {dims} embeddings to {reduction_dim} dimensions ({args.reduction_method})")
        reduced, shares = clusters.reduce_dimensions(scaled, reduction_dim, args.reduction_method, "euclidean",
                                                     args.seed)
        explained = min(sum(shares), 1.0) if shares else None
        progress.advance()
        metric = args.metric
        if metric == "cosine":
            reduced, metric = clusters.unit_length(reduced), "euclidean"
        fitted = min(rows, args.max_cluster_points)
        logger.info(f"clustering {fitted:,} rows")
        if fitted < rows:
            logger.info(f"these are a random sample (--max_cluster_points); the other {rows - fitted:,} are assigned")
        found = clusters.cluster(reduced, args.min_cluster_size, args.min_samples, metric, args.max_cluster_points,
                                 args.seed)
        progress.advance()
        logger.info(f"drawing {rows:,} rows in two dimensions ({args.visualization_method})")
        picture, shares = clusters.reduce_dimensions(reduced, 2, args.visualization_method, metric, args.seed)
        progress.advance()

        table = clusters.statistics(found)
        write_csv(path / "cluster_assignments.csv", clusters.assignments(embeddings.ids, found, picture))
        write_csv(path / "cluster_statistics.csv", table)
        write_json(path / "cluster_samples.json", clusters.samples(embeddings, found))
        axes = clusters.axis_labels(shares, explained if args.metric != "cosine" else None)
        settings = {name: value for name, value in vars(args).items() if not name.endswith("_dir")}
        write_json(path / "cluster_metadata.json", {
            "embeddings": embeddings.metadata, "settings": {**settings, "reduction_dim": reduction_dim},
            "num_rows": rows, "num_dims": dims, "explained_variance": explained, "num_clusters": found.num_clusters,
            "num_noise": int(np.sum(found.labels == clusters.NOISE)), "noise_fraction": found.noise_fraction,
            "num_clustered": found.num_fitted, "num_assigned": rows - found.num_fitted, "axes": axes,
        })
        colours = clusters.choose_colours(found, picture)
        clusters.plot_map(path / "cluster_map.png", found, picture, colours, axes, args.seed)
        clusters.plot_sizes(path / "cluster_sizes.png", found, table, colours)

    print(console_table(table[list(PRINTED)], PRINTED, ROWS_PRINTED + 1))
    clusters.warn_if_poor(found, args.min_cluster_size)
    print(f"wrote clusters, samples and pictures ({found.summary}) to {path}")


if __name__ == "__main__":
    main()
