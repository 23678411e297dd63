"""Join cartography, clusters and error rules: which clusters are hard, where errors gather, one table of everything.

Reads cartography_metrics.csv (run.py --enable_cartography) and cluster_assignments.csv (cluster_analysis.py). Writes
category_cluster_overlap.csv, cluster_difficulty.csv, cluster_map.csv, patterns.json and pictures; with
--export_unified also unified_analysis.csv (one row per example of the split) and overlap_summary.json. The error rules
are for question answering; for classification and NLI the table goes without them.

    python analyze_dataset.py --cartography_dir ./cartography_output --cluster_dir ./cluster_output
    python analyze_dataset.py --export_unified --predictions ./train_predictions/eval_predictions.jsonl
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamap.core.artifacts import (
    artifact_file,
    check_not_read,
    check_same_dataset,
    recorded_dataset,
    recorded_split,
    recorded_task,
    stage,
)
from datamap.core.errors import UserError, command_line, name_a_few
from datamap.core.files import read_jsonl, read_table, write_csv, write_json
from datamap.core.flags import Parser
from datamap.core.splits import Split
from datamap.tasks.base import add_task_flags, task_of

if TYPE_CHECKING:
    import pandas as pd

OWNS = (
    "category_cluster_overlap.csv", "cluster_difficulty.csv", "cluster_map.csv", "patterns.json",
    "category_by_cluster.png", "cluster_difficulty.png", "cluster_map_by_category.png", "unified_analysis.csv",
    "overlap_summary.json",
)
CLUSTER_COLUMNS = ("cluster", "dim1", "dim2", "cluster_probability")
NOISE = -1
MIN_EXAMPLES = 10  # a cluster, question type or label with fewer is not tested
ALPHA = 0.05
MAX_LISTED = 5
ROWS_PRINTED = 20
MAX_CLUSTERS_DRAWN = 40
MAX_DRAWN_POINTS = 25_000

logger = logging.getLogger(__name__)


# --- reading -----------------------------------------------------------------------------------------------------


def load_clusters(path: str | Path) -> pd.DataFrame:
    """cluster_assignments.csv indexed by id; ``cluster`` is Int64, -1 is noise."""
    import pandas as pd

    file = artifact_file(path, "cluster_assignments.csv", "cluster_analysis.py")
    table = read_table(file, columns=("id", *CLUSTER_COLUMNS))
    if table.empty:
        raise UserError(f"{file} holds no examples; run cluster_analysis.py again")
    numbers = {column: pd.to_numeric(table[column], errors="coerce") for column in CLUSTER_COLUMNS}
    bad = numbers["cluster"].isna() | (numbers["cluster"] % 1 != 0)
    if bad.any():
        raise UserError(
            f"{file}: cluster of {int(bad.sum()):,} examples ({name_a_few(table['id'][bad])}) is no whole number"
        )
    return table.assign(**numbers).astype({"cluster": "Int64"}).set_index("id")[list(CLUSTER_COLUMNS)]


def load_predictions(path: str | Path, split: Split) -> list[Any]:
    """The prediction for every example of the split, None where the file has none: ``predicted_answer``, a text, for
    a task with error rules, else ``predicted_label``, a text or a number.

    Predictions of another dataset (no shared ids, or another text under a shared id) are a UserError.
    """
    column, kind, expected = "predicted_label", str | int, "label"
    if split.task.has_error_rules:
        column, kind, expected = "predicted_answer", str, "text"
    file = artifact_file(path, "eval_predictions.jsonl", "run.py --do_eval")
    rows = {str(row["id"]): row for row in read_jsonl(file, ("id", column))}
    wrong = [example for example, row in rows.items() if not isinstance(row[column], kind | None)]
    if wrong:
        raise UserError(f"{file}: {column} of {name_a_few(wrong)} is not a {expected}")
    this = f"{split.name} [{split.split}]"
    shared = [example for example in split.ids if example in rows]
    if not shared:
        raise UserError(
            f"{file} holds predictions of {name_a_few(rows)} and shares no ids with {this}; "
            f"run.py --do_eval --eval_split {split.split} predicts that"
        )
    for name in split.task.text_columns:
        other = [
            example
            for example, text in zip(split.ids, split.data[name][:], strict=True)
            if example in rows and rows[example].get(name, text) != text
        ]
        if other:
            raise UserError(f"{file} has another {name} than {this} under the same ids ({name_a_few(other)})")
    logger.info(f"{file} covers {len(shared):,} of {len(split.ids):,} examples ({len(shared) / len(split.ids):.1%})")
    return [rows[example][column] if example in rows else None for example in split.ids]


# --- tables ------------------------------------------------------------------------------------------------------


def overlap_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Every cell of category x cluster: category, cluster, n and its shares (0..1) of category, cluster and all."""
    import pandas as pd

    from datamap.cartography.metrics import CATEGORIES

    cells = pd.MultiIndex.from_product(
        [CATEGORIES, sorted(frame["cluster"].unique())], names=["category", "cluster"]
    )
    table = frame.groupby(["category", "cluster"]).size().reindex(cells, fill_value=0).rename("n").reset_index()
    for column in ("category", "cluster"):
        total = table.groupby(column)["n"].transform("sum")
        table[f"share_of_{column}"] = (table["n"] / total).where(total > 0)
    return table.assign(share_of_all=table["n"] / len(frame))


def difficulty_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Per cluster: n, mean metrics, category shares; confidence and variability with the 95% t-interval of the mean.

    Clusters with the lowest mean confidence come first. An interval needs two examples.
    """
    from scipy import stats

    from datamap.analysis.groups import group_table

    table = group_table(frame, "cluster")
    for metric in ("confidence", "variability"):
        spread = frame.groupby("cluster")[metric].sem().to_numpy(dtype=float)
        margin = stats.t.ppf(0.975, table["n"].to_numpy(dtype=float) - 1) * spread
        position = table.columns.get_loc(f"{metric}_mean") + 1
        table.insert(position, f"{metric}_low", table[f"{metric}_mean"] - margin)
        table.insert(position + 1, f"{metric}_high", table[f"{metric}_mean"] + margin)
    return table.sort_values(["confidence_mean", "cluster"], ignore_index=True)


# --- patterns ----------------------------------------------------------------------------------------------------


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg adjusted p-values."""
    from scipy import stats

    return stats.false_discovery_control(p_values).tolist() if len(p_values) else []


def unusual_clusters(frame: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Clusters whose mean confidence differs from that of all other examples (Welch's t-test, adjusted, 5%).

    Hardest first in ``hardest_clusters``, easiest first in ``easiest_clusters``. Noise is no cluster, and clusters of
    fewer than 10 examples are not tested.
    """
    import numpy as np
    from scipy import stats

    rows, p_values = [], []
    for cluster, inside in frame.groupby("cluster"):
        rest = frame.loc[frame["cluster"] != cluster, "confidence"]
        if cluster == NOISE or len(inside) < MIN_EXAMPLES or len(rest) < MIN_EXAMPLES:
            continue
        with np.errstate(all="ignore"):  # two constant groups have no t; p is NaN and the cluster is left out
            p = float(stats.ttest_ind(inside["confidence"], rest, equal_var=False).pvalue)
        if np.isnan(p):
            continue
        mean = float(inside["confidence"].mean())
        p_values.append(p)
        rows.append(
            {
                "cluster": int(cluster),
                "n": len(inside),
                "confidence_mean": mean,
                "difference_to_rest": mean - float(rest.mean()),
                "hard_share": float((inside["category"] == "hard").mean()),
                "ambiguous_share": float((inside["category"] == "ambiguous").mean()),
            }
        )
    found = [{**row, "p_adjusted": p} for row, p in zip(rows, adjusted(p_values), strict=True) if p < ALPHA]
    found.sort(key=lambda row: row["difference_to_rest"])
    return {
        "hardest_clusters": [row for row in found if row["difference_to_rest"] < 0][:MAX_LISTED],
        "easiest_clusters": [row for row in reversed(found) if row["difference_to_rest"] > 0][:MAX_LISTED],
    }


def association(frame: pd.DataFrame) -> dict[str, Any] | None:
    """Chi-square test of category against cluster (noise counts as one), and Cramer's V (0 none .. 1 full).

    None where there is only one category or one cluster. The test is rough where many cells expect fewer than 5.
    """
    import numpy as np
    import pandas as pd
    from scipy import stats

    counts = pd.crosstab(frame["category"], frame["cluster"]).to_numpy()
    if min(counts.shape) < 2:
        return None
    result = stats.chi2_contingency(counts, correction=False)
    return {
        "chi_square": float(result.statistic),
        "degrees_of_freedom": int(result.dof),
        "p": float(result.pvalue),
        "cramers_v": float(np.sqrt(result.statistic / (counts.sum() * (min(counts.shape) - 1)))),
        "share_of_cells_expecting_below_5": float((result.expected_freq < 5).mean()),
    }


def over_represented(frame: pd.DataFrame, by: str) -> list[dict[str, Any]]:
    """Values of ``by`` that are hard or ambiguous more often than chance gives (hypergeometric, adjusted, 5%)."""
    from scipy import stats

    rows, p_values = [], []
    for category in ("hard", "ambiguous"):
        within = frame["category"] == category
        for value, inside in within.groupby(frame[by]):
            if len(inside) >= MIN_EXAMPLES:
                hits = int(inside.sum())
                p_values.append(float(stats.hypergeom.sf(hits - 1, len(frame), int(within.sum()), len(inside))))
                shares = {"share": hits / len(inside), "share_overall": float(within.mean())}
                rows.append({"category": category, by: value, "n": len(inside), "n_in_category": hits, **shares})
    found = [{**row, "p_adjusted": p} for row, p in zip(rows, adjusted(p_values), strict=True) if p < ALPHA]
    return sorted(found, key=lambda row: row["share_overall"] - row["share"])


def find_patterns(frame: pd.DataFrame, thresholds: tuple[float, float], by: str | None) -> dict[str, Any]:
    """The findings in numbers, of examples with metrics, category and cluster.

    ``by``: a column of groups, question_type or label; those that stand out are in ``question_types_over_represented``
    or ``labels_over_represented``.
    """
    from datamap.cartography.metrics import CATEGORIES

    overall = {f"{category}_share": float((frame["category"] == category).mean()) for category in CATEGORIES}
    groups = {} if by is None else {f"{by}s_over_represented": over_represented(frame, by)}
    return {
        "n": len(frame),
        "num_clusters": int(frame.loc[frame["cluster"] != NOISE, "cluster"].nunique()),
        "noise_share": float((frame["cluster"] == NOISE).mean()),
        "thresholds": {"confidence": thresholds[0], "variability": thresholds[1]},
        "overall": {
            "confidence_mean": float(frame["confidence"].mean()),
            "variability_mean": float(frame["variability"].mean()),
            **overall,
        },
        "category_cluster_association": association(frame),
        **unusual_clusters(frame),
        **groups,
        "cuts": {"min_examples": MIN_EXAMPLES, "p_adjusted_below": ALPHA, "adjustment": "Benjamini-Hochberg"},
    }


# --- pictures ----------------------------------------------------------------------------------------------------


def drawn_clusters(difficulty: pd.DataFrame) -> tuple[pd.DataFrame, list[str], str]:
    """The rows of the difficulty table that a picture has room for, their labels, and a note if some are left out."""
    largest = difficulty["n"].nlargest(MAX_CLUSTERS_DRAWN).index
    shown = difficulty.loc[sorted(largest)]
    names = ["noise" if cluster == NOISE else str(cluster) for cluster in shown["cluster"]]
    labels = [f"{name} (n = {n:,})" for name, n in zip(names, shown["n"], strict=True)]
    note = f"\nthe {len(shown)} largest of {len(difficulty)} clusters" if len(shown) < len(difficulty) else ""
    return shown, labels, note


def plot_category_by_cluster(path: Path, difficulty: pd.DataFrame, caption: str) -> None:
    from datamap.cartography.metrics import CATEGORIES
    from datamap.core.plots import new_figure, save_figure

    shown, labels, note = drawn_clusters(difficulty)
    shares = 100 * shown[[f"{category}_share" for category in CATEGORIES]].to_numpy(dtype=float)
    figure, axis = new_figure(5.5, max(3.4, 1.8 + 0.3 * len(shown)))
    image = axis.imshow(shares, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for row, cells in enumerate(shares):
        for column, share in enumerate(cells):
            ink = "white" if share < 55 else "black"
            axis.text(column, row, f"{share:.0f}%", ha="center", va="center", fontsize=8, color=ink)
    axis.set_xticks(range(len(CATEGORIES)), CATEGORIES)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_ylabel("cluster, lowest mean confidence first")
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, label="examples of the cluster (%)")
    save_figure(figure, path, "Categories by cluster", caption + note)


def plot_difficulty(path: Path, difficulty: pd.DataFrame, overall: Mapping[str, float], caption: str) -> None:
    from datamap.analysis.groups import METRIC_LABELS
    from datamap.core.plots import GREY, new_figure, save_figure

    shown, labels, note = drawn_clusters(difficulty)
    places = range(len(shown))
    figure, axes = new_figure(8, max(3.2, 1.6 + 0.26 * len(shown)), columns=2, sharey=True)
    for axis, metric in zip(axes, ("confidence", "variability"), strict=True):
        axis.axvline(overall[f"{metric}_mean"], color=GREY, linewidth=1, linestyle="--")
        low, high = (shown[f"{metric}_{end}"].where(shown["n"] >= MIN_EXAMPLES) for end in ("low", "high"))
        axis.hlines(places, low, high, color="#0072B2", linewidth=1.5)
        axis.plot(shown[f"{metric}_mean"], places, "o", color="#0072B2", markersize=5)
        axis.set_xlabel(METRIC_LABELS[metric])
    axes[0].set_yticks(places, labels, fontsize=8)
    axes[0].set_ylabel("cluster")
    axes[0].set_ylim(len(shown) - 0.5, -0.5)
    text = f"{caption}{note}\ndot and line: mean and its 95% interval (from {MIN_EXAMPLES} examples on); dashed: all"
    save_figure(figure, path, "Difficulty of the clusters", text)


def plot_map(path: Path, table: pd.DataFrame, caption: str) -> None:
    """One panel per category, so that none is drawn over another; all other examples are grey."""
    import numpy as np

    from datamap.cartography.metrics import CATEGORIES, CATEGORY_COLORS
    from datamap.core.plots import LIGHT_GREY, new_figure, save_figure

    drawn = table.dropna(subset=["dim1", "dim2"])
    if len(drawn) > MAX_DRAWN_POINTS:
        rows = np.sort(np.random.default_rng(0).choice(len(drawn), MAX_DRAWN_POINTS, replace=False))
        drawn = drawn.iloc[rows]
        caption += f" (random {len(drawn):,} drawn)"
    size = float(np.clip(6000 / max(len(drawn), 1), 1.5, 15))
    figure, axes = new_figure(11, 4.2, columns=len(CATEGORIES), sharex=True, sharey=True)
    for axis, category in zip(axes, CATEGORIES, strict=True):
        for points, color in ((drawn, LIGHT_GREY), (drawn[drawn["category"] == category], CATEGORY_COLORS[category])):
            axis.scatter(points["dim1"], points["dim2"], s=size, color=color, linewidths=0)
        axis.set_title(f"{category} (n = {(table['category'] == category).sum():,})", fontsize=10)
        axis.set_xlabel("dimension 1 (no unit)")
    axes[0].set_ylabel("dimension 2 (no unit)")
    save_figure(figure, path, "Embeddings in two dimensions, by category", f"{caption}; grey: the other categories")


# --- command line ------------------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Join cartography, clusters and error rules: difficulty per cluster, patterns, one table.")
    group = parser.add_argument_group("what is read")
    group.add_argument("--cartography_dir", default="./cartography_output", help="written by run.py")
    group.add_argument("--cluster_dir", default="./cluster_output", help="written by cluster_analysis.py")
    group.add_argument("--dataset", help="dataset with the texts (default: the one recorded in the artifacts)")
    group.add_argument("--split", help="its split (default: the one recorded in the artifacts, else train)")
    add_task_flags(group)
    group.add_argument(
        "--predictions", metavar="FILE",
        help="eval_predictions.jsonl of run.py --do_eval on this split, or its directory; with --export_unified it "
        "feeds rules 4 and 8 (qa), or gives the column predicted_label",
    )
    group = parser.add_argument_group("what is written")
    group.add_switch("--export_unified", help="also write unified_analysis.csv and overlap_summary.json")
    group.add_argument(
        "--output_dir",
        help="where the files go (default: ./integrated_analysis; with --export_unified ./unified_export)",
    )
    args = parser.parse_args(argv)
    if args.predictions and not args.export_unified:
        parser.error("--predictions is for the unified table, which only --export_unified writes; add it")
    args.output_dir = args.output_dir or ("./unified_export" if args.export_unified else "./integrated_analysis")
    return args


def print_table(difficulty: pd.DataFrame) -> None:
    from datamap.cartography.metrics import CATEGORIES

    names = ("confidence", "variability", *CATEGORIES)
    print(f"{'cluster':<9}{'n':>9}" + "".join(f"{name:>13}" for name in names))
    for row in difficulty.head(ROWS_PRINTED).to_dict("records"):
        name = "noise" if row["cluster"] == NOISE else str(row["cluster"])
        shares = "".join(f"{row[f'{category}_share']:>13.1%}" for category in CATEGORIES)
        print(f"{name:<9}{row['n']:>9,}{row['confidence_mean']:>13.3f}{row['variability_mean']:>13.3f}{shares}")
    if len(difficulty) > ROWS_PRINTED:
        print(f"... and {len(difficulty) - ROWS_PRINTED:,} easier ones in cluster_difficulty.csv")


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from datamap.analysis.unified_table import summarize_overlap, unified_table
    from datamap.cartography.metrics import categorize_examples, category_thresholds, load_cartography_metrics
    from datamap.core.plots import dataset_label

    check_not_read(args.output_dir, args.cartography_dir, args.cluster_dir)
    metrics = load_cartography_metrics(args.cartography_dir)
    thresholds = category_thresholds(metrics)
    metrics = categorize_examples(metrics)
    clusters = load_clusters(args.cluster_dir)
    sources = {"cartography": Path(args.cartography_dir), "clusters": Path(args.cluster_dir)}
    recorded = [source for source in sources.values() if recorded_dataset(source)]
    task = task_of(args, recorded_task(*sources.values()))
    split = recorded_split(recorded[0] if recorded else sources["cartography"], args.dataset, args.split, task)
    predictions = None
    if split is not None:
        check_same_dataset(sources["cartography"], metrics.index, split)
        check_same_dataset(sources["clusters"], clusters.index, split)
        if args.predictions:
            predictions = load_predictions(args.predictions, split)
    elif args.export_unified:
        raise UserError("the artifacts record no dataset; --export_unified needs its texts: name it with --dataset")
    else:
        logger.info("the artifacts record no dataset and --dataset names none: no question types or labels in "
                    "patterns.json")

    frame, by = metrics.join(clusters, how="inner"), None
    if split is not None:
        frame = frame[frame.index.isin(split.ids)]
        by, groups = split.task.groups(split.data)
        group_of = dict(zip(split.ids, groups, strict=True))
        frame = frame.assign(**{by: [group_of[example] for example in frame.index]})
    if frame.empty:
        raise UserError(f"{args.cartography_dir} and {args.cluster_dir} share no ids; make both from one dataset")

    name = dataset_label(split.name, split.split) if split else args.cartography_dir
    cuts = f"cuts: confidence {thresholds[0]:.3g}, variability {thresholds[1]:.3g}"
    caption = f"{name}, n = {len(frame):,} with metrics and cluster; {cuts}"
    inputs = {**sources, "predictions": args.predictions}
    identities = [split.identity()] if split else []
    with stage(args.output_dir, args, owns=OWNS, inputs=inputs, datasets=identities) as path:
        difficulty = difficulty_table(frame)
        patterns = find_patterns(frame, thresholds, by)
        points = frame.reset_index()[["id", "dim1", "dim2", "cluster", "category"]]
        write_csv(path / "category_cluster_overlap.csv", overlap_table(frame))
        write_csv(path / "cluster_difficulty.csv", difficulty)
        write_csv(path / "cluster_map.csv", points)
        write_json(path / "patterns.json", patterns)
        plot_category_by_cluster(path / "category_by_cluster.png", difficulty, caption)
        plot_difficulty(path / "cluster_difficulty.png", difficulty, patterns["overall"], caption)
        plot_map(path / "cluster_map_by_category.png", points, caption)
        summary = None
        if args.export_unified and split is not None:
            unified = unified_table(split, metrics, clusters, predictions)
            num_predicted = None if predictions is None else sum(each is not None for each in predictions)
            summary = summarize_overlap(unified, num_predicted)
            write_csv(path / "unified_analysis.csv", unified)
            write_json(path / "overlap_summary.json", summary)

    print(caption)
    print_table(difficulty)
    if patterns["category_cluster_association"]:
        strength = patterns["category_cluster_association"]["cramers_v"]
        print(f"association of category and cluster: Cramer's V {strength:.2f} (0 none, 1 full)")
    if summary and "dataset_errors" in summary:
        errors, regions = summary["dataset_errors"], summary["high_overlap_regions"]
        print(f"{errors['n']:,} of {len(unified):,} examples break at least 3 rules ({errors['share']:.1%}); "
              f"{len(regions)} high-overlap regions")
    print(f"wrote {'unified_analysis.csv, overlap_summary.json, ' if summary else ''}tables and pictures to {path}")


if __name__ == "__main__":
    main()
