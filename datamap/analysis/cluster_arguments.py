"""The flags of cluster_analysis.py, and what contradicts what."""

from __future__ import annotations

import argparse

from datamap.core.errors import UserError
from datamap.core.flags import DEFAULT_SEED, Parser, positive_int, seed_number
from datamap.core.plots import add_plot_format


def at_least_two(text: str) -> int:
    value = positive_int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 2, found {text!r}")
    return value


def build_parser() -> Parser:
    parser = Parser("Cluster embeddings with HDBSCAN.", script="cluster_analysis.py")
    parser.add_argument("--embedding_dir", required=True, help="directory that extract_embeddings.py wrote")
    parser.add_argument("--output_dir", default="./cluster_output", help="where the files go")
    add_plot_format(parser)
    group = parser.add_argument_group("reduction before clustering")
    group.add_argument("--reduction_method", choices=("pca", "umap"), default="pca", help="how dimensions are reduced")
    group.add_argument("--reduction_dim", type=at_least_two, default=50, help="dimensions kept")
    group = parser.add_argument_group("HDBSCAN")
    group.add_argument("--min_cluster_size", type=at_least_two, default=15, help="rows in the smallest cluster")
    group.add_argument("--min_samples", type=positive_int,
                       help="neighbours that make a row dense; more = more noise (default: min_cluster_size)")
    group.add_argument("--metric", choices=("euclidean", "manhattan", "chebyshev", "cosine"), default="euclidean",
                       help="distance between reduced embeddings; cosine: euclidean between rows scaled to unit "
                            "length")
    group.add_argument("--max_cluster_points", type=positive_int, default=50_000, help="above this many rows a seeded "
                       "sample of that size is clustered and the rest assigned to its clusters")
    group = parser.add_argument_group("picture")
    group.add_argument("--visualization_method", choices=("pca", "umap"), default="pca",
                       help="two dimensions for the picture only; umap keeps neighbours together where pca lays "
                            "clusters over each other, and compiles itself first")
    parser.add_argument("--seed", type=seed_number, default=DEFAULT_SEED, help="of sample, reduction and picture")
    return parser


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
        raise UserError(f"assigning rows to clusters needs {2 * min_samples:,} neighbours (2 x --min_samples), more "
                        f"than {what}; raise --max_cluster_points or lower --min_samples")
    if "umap" in (args.visualization_method, args.reduction_method) and rows < 4:
        raise UserError(f"UMAP needs at least 4 rows, found {rows}; use pca for the reduction and the picture")
