"""Analyse one data map: metrics by question type or label, examples of every category with their text, distributions.

Reads cartography_metrics.csv (run.py --enable_cartography) and the dataset that it was recorded on, or with
--training_dynamics what another trainer logged. Writes {easy,hard,ambiguous}_samples.json, question_type_analysis.csv
(classification and NLI: label_analysis.csv), and metric_distributions, metric_correlations and
category_by_question_type (category_by_label) as pictures, with their data as CSV.

    python analyze_cartography.py --cartography_dir ./cartography_output
    python analyze_cartography.py --training_dynamics ./logged_dynamics --output_dir ./logged_map
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datamap.core.artifacts import check_same_dataset, recorded_split, recorded_task, stage
from datamap.core.errors import UserError, command_line
from datamap.core.files import nulls_for_nan, write_csv, write_json
from datamap.core.flags import Parser, number, positive_int
from datamap.core.splits import Split
from datamap.tasks.base import add_task_flags, task_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

OWNS = (
    "question_type_analysis.csv", "category_by_question_type.png", "label_analysis.csv", "category_by_label.png",
    "*_samples.json", "metric_distributions.*", "metric_correlations.*", "cartography_metrics.*",
    "thresholds.json", "cartography_map.png",
)
NUM_BINS = 40
MAX_DISCRETE = 20  # a metric with at most so many values (correctness, counts) gets one bar per value
ROWS_PRINTED = 12
MAX_GROUPS_DRAWN = 25

logger = logging.getLogger(__name__)


# --- tables ------------------------------------------------------------------------------------------------------


def samples(frame: pd.DataFrame, category: str, n: int, split: Split | None) -> list[dict]:
    """The first ``n`` of ``get_examples_by_category`` as records: id, texts, other columns of the data, metrics.

    A missing value is None. A column of the dataset whose name is that of a metric gets the prefix ``data_``.
    """
    import pandas as pd

    from datamap.cartography.categories import get_examples_by_category
    from datamap.cartography.metrics import METRIC_COLUMNS

    ids = get_examples_by_category(frame, category, n)
    metrics = frame.loc[ids, [metric for metric in METRIC_COLUMNS if metric in frame]].astype(object)
    texts: dict[str, list] = {}
    if split is not None:
        rows = {example: row for row, example in enumerate(split.ids)}
        chosen = split.data.select([rows[example] for example in ids])
        columns = split.task.readable(chosen)
        rest = [name for name in chosen.column_names if name not in ("id", *split.task.content_columns, *columns)]
        columns |= {name: nulls_for_nan(chosen[name][:]) for name in rest}
        texts = {f"data_{name}" if name in metrics else name: values for name, values in columns.items()}
    records = metrics.where(pd.notna(metrics), None).to_dict("records")
    return [
        {"id": example, **{name: values[row] for name, values in texts.items()}, **record}
        for row, (example, record) in enumerate(zip(ids, records, strict=True))
    ]


def groups_analysis(frame: pd.DataFrame, split: Split) -> tuple[str, pd.DataFrame]:
    """The name of the task's grouping (question_type, label), and its ``group_table``, largest group first."""
    import pandas as pd

    from datamap.analysis.groups import group_table

    by, values = split.task.groups(split.data)
    groups = pd.Series(list(values), index=split.ids, dtype=object)
    table = group_table(frame.assign(**{by: groups}), by, ("mean", "median"))
    return by, table.sort_values("n", ascending=False, kind="stable")


def distributions(frame: pd.DataFrame) -> pd.DataFrame:
    """Histogram of every metric by category: metric, low, high, category, n; low equals high for single values."""
    import numpy as np
    import pandas as pd

    from datamap.analysis.groups import metric_columns
    from datamap.cartography.categories import CATEGORIES

    tables = []
    for metric in metric_columns(frame):
        values = frame[metric].to_numpy(dtype=float)
        known = values[np.isfinite(values)]
        if not len(known):
            continue
        low = high = np.unique(known)
        edges = np.concatenate([low, [np.inf]])
        if len(low) > MAX_DISCRETE:
            edges = np.histogram_bin_edges(known, NUM_BINS)
            low, high = edges[:-1], edges[1:]
        for category in CATEGORIES:
            n, _ = np.histogram(values[(frame["category"] == category).to_numpy()], edges)
            tables.append(pd.DataFrame({"metric": metric, "low": low, "high": high, "category": category, "n": n}))
    return pd.concat(tables, ignore_index=True)


def correlations(frame: pd.DataFrame) -> pd.DataFrame:
    """Spearman rank correlation of every pair of metrics: metric_a, metric_b, spearman, n. Constant: missing."""
    import pandas as pd

    from datamap.analysis.groups import metric_columns

    metrics = metric_columns(frame)
    matrix = frame[metrics].corr(method="spearman")
    known = frame[metrics].notna()
    rows = [
        {"metric_a": a, "metric_b": b, "spearman": matrix.loc[a, b], "n": int((known[a] & known[b]).sum())}
        for position, a in enumerate(metrics)
        for b in metrics[:position]
    ]
    return pd.DataFrame(rows, columns=["metric_a", "metric_b", "spearman", "n"])


# --- pictures ----------------------------------------------------------------------------------------------------


def plot_distributions(path: Path, table: pd.DataFrame, cuts: tuple[float, float], caption: str) -> None:
    import numpy as np

    from datamap.analysis.groups import METRIC_LABELS
    from datamap.cartography.categories import CATEGORIES
    from datamap.core.plots import CATEGORY_COLORS, new_figure, save_figure

    metrics = table["metric"].unique()
    columns = 5 if len(metrics) > 8 else min(len(metrics), 4)
    rows = -(-len(metrics) // columns)
    figure, axes = new_figure(2.7 * columns, 2.2 * rows + 0.8, rows, columns, squeeze=False)
    for axis, metric in zip(axes.flat, metrics, strict=False):
        bars = table[table["metric"] == metric]
        left, right = bars["low"].to_numpy(), bars["high"].to_numpy()
        widths = right - left
        if (widths == 0).all():  # single values: bars of one width, centred
            values = np.unique(left)
            widths = np.full(len(bars), 0.8 * np.diff(values).min() if len(values) > 1 else 0.05)
            left = left - widths / 2
            if len(values) <= 8:
                axis.set_xticks(values, [f"{value:.3g}" for value in values])
        bottom: float | np.ndarray = 0.0
        for category in CATEGORIES:
            chosen = (bars["category"] == category).to_numpy()
            n = bars["n"].to_numpy()[chosen]
            axis.bar(
                left[chosen], n, widths[chosen], bottom, align="edge", color=CATEGORY_COLORS[category], label=category
            )
            bottom = bottom + n
        cut = {"confidence": cuts[0], "variability": cuts[1]}.get(metric)
        if cut is not None:
            axis.axvline(cut, color="black", linewidth=1, linestyle="--")
        axis.set_xlabel(METRIC_LABELS[metric], fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes[:, 0]:
        axis.set_ylabel("examples (count)", fontsize=8)
    for axis in axes.flat[len(metrics) :]:
        axis.set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=8)
    save_figure(figure, path, "Distribution of the metrics by category", f"{caption}; dashed: the cuts")


def plot_correlations(path: Path, table: pd.DataFrame, metrics: Sequence[str], caption: str) -> None:
    import numpy as np

    from datamap.core.plots import new_figure, save_figure

    matrix = np.full((len(metrics), len(metrics)), np.nan)
    for a, b, value in table[["metric_a", "metric_b", "spearman"]].itertuples(index=False):
        matrix[metrics.index(a), metrics.index(b)] = value
    size = 2.4 + 0.55 * len(metrics)
    figure, axis = new_figure(size + 0.8, size)
    # The first row and the last column of a lower triangle without its diagonal are empty.
    image = axis.imshow(matrix[1:, :-1], cmap="RdBu_r", vmin=-1, vmax=1)
    for row, column in zip(*np.tril_indices(len(metrics) - 1), strict=True):
        value = matrix[row + 1, column]
        text = "n/a" if np.isnan(value) else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
        ink = "white" if abs(value) > 0.6 else "black"
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    names = [metric.replace("_", " ") for metric in metrics]
    axis.set_xticks(range(len(metrics) - 1), names[:-1], rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(metrics) - 1), names[1:], fontsize=8)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, label="Spearman rank correlation", shrink=0.7)
    save_figure(figure, path, "Correlation of the metrics (Spearman)", caption)


def plot_groups(path: Path, table: pd.DataFrame, by: str, caption: str) -> None:
    """table: one row per value of ``by``, the largest first; a picture has room for 25."""
    from datamap.analysis.groups import draw_category_shares
    from datamap.core.plots import new_figure, save_figure

    kind = by.replace("_", " ")
    shown = table.head(MAX_GROUPS_DRAWN)
    if len(shown) < len(table):
        caption += f"\nthe {len(shown)} largest of {len(table):,} {kind}s"
    figure, axis = new_figure(7, max(3.0, 1.6 + 0.32 * len(shown)))
    names = [name if len(name) <= 40 else f"{name[:39]}\N{HORIZONTAL ELLIPSIS}" for name in shown[by]]
    # A dollar sign would begin a formula.
    labels = [f"{name} (n = {n:,})".replace("$", r"\$") for name, n in zip(names, shown["n"], strict=True)]
    draw_category_shares(axis, shown, labels)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path, f"Categories by {kind}", caption)


# --- command line ------------------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Analyse one data map: question types or labels, samples of every category, distributions.")
    group = parser.add_argument_group("what is read")
    group.add_argument(
        "--cartography_dir", default="./cartography_output", help="directory that run.py --enable_cartography wrote"
    )
    group.add_argument(
        "--training_dynamics", metavar="DIR",
        help="read dynamics_epoch_N.jsonl (guid, logits_epoch_N, gold) of another trainer instead, and write "
        "cartography_metrics.csv, .json and the map into --output_dir",
    )
    group.add_argument("--dataset", help="dataset with the texts (default: the one recorded in the artifact)")
    group.add_argument("--split", help="its split (default: the one recorded in the artifact, else train)")
    add_task_flags(group)
    group = parser.add_argument_group("categories (the other stages cut at the medians)")
    group.add_argument(
        "--threshold_method", choices=("median", "percentile", "fixed"), default="median",
        help="median: cut at the medians unless a threshold is given; percentile: they are percentiles 0..100 "
        "(50 and 67 unless given); fixed: the thresholds are the values",
    )
    group.add_argument("--confidence_threshold", type=number, help="easy from here on, hard below")
    group.add_argument("--variability_threshold", type=number, help="ambiguous above")
    group = parser.add_argument_group("what is written")
    group.add_argument("--n_examples", type=positive_int, default=20, help="samples per category")
    group.add_argument("--output_dir", default="./cartography_analysis", help="where the files go")
    return parser.parse_args(argv)


def check_output(output_dir: str, source: Path) -> None:
    """Refuse to write over a recording: what this stage owns there could not be had back without training."""
    output = Path(output_dir)
    directory = source if source.is_dir() else source.parent
    if output.resolve() == directory.resolve() or any(output.glob("training_dynamics_epoch_*.json")):
        raise UserError(f"--output_dir {output_dir} holds a cartography that run.py recorded; name another directory")


def print_table(table: pd.DataFrame, by: str, rest: str = "") -> None:
    """The first rows of a ``group_table``; rest: the file that holds all of them."""
    from datamap.cartography.categories import CATEGORIES

    shown = [metric for metric in ("confidence", "variability", "correctness") if f"{metric}_mean" in table]
    print(f"{by:<20}{'n':>9}" + "".join(f"{name:>13}" for name in (*shown, *CATEGORIES)))
    for row in table.head(ROWS_PRINTED).to_dict("records"):
        numbers = [f"{row[f'{metric}_mean']:>13.3f}" for metric in shown]
        shares = [f"{row[f'{category}_share']:>13.1%}" for category in CATEGORIES]
        print(f"{row[by]:<20.20}{row['n']:>9,}" + "".join(numbers + shares))
    if len(table) > ROWS_PRINTED:
        print(f"... and {len(table) - ROWS_PRINTED:,} smaller ones in {rest}")


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from datamap.analysis.groups import group_table, metric_columns
    from datamap.cartography.categories import CATEGORIES, category_thresholds, with_categories
    from datamap.cartography.dynamics import read_logged_logits
    from datamap.cartography.maps import map_thresholds, write_cartography
    from datamap.cartography.metrics import compute_metrics, load_cartography_metrics
    from datamap.core.plots import dataset_label

    source = Path(args.training_dynamics or args.cartography_dir)
    check_output(args.output_dir, source)
    if args.training_dynamics:
        metrics = compute_metrics(read_logged_logits(source))
    else:
        metrics = load_cartography_metrics(source)
    chosen = (args.confidence_threshold, args.variability_threshold, args.threshold_method)
    if args.training_dynamics or chosen != (None, None, "median"):
        cuts = category_thresholds(metrics, *chosen)
    else:
        cuts = map_thresholds(source, metrics)
    frame = with_categories(metrics, cuts)
    split = recorded_split(source, args.dataset, args.split, task_of(args, recorded_task(source)))
    name = dataset_label(split.name, split.split) if split else source.name
    if split is None:
        logger.info(f"{source} records no dataset and --dataset names none: no texts, no question types or labels")
    else:
        check_same_dataset(source, frame.index, split)
        frame = frame[frame.index.isin(split.ids)]  # after the cuts, which are those of all metrics

    caption = f"{name}, n = {len(frame):,}; cuts: confidence {cuts[0]:.3g}, variability {cuts[1]:.3g}"
    inputs = {"training_dynamics" if args.training_dynamics else "cartography": source}
    identities = [split.identity()] if split else []
    with stage(args.output_dir, args, owns=OWNS, inputs=inputs, datasets=identities) as path:
        if args.training_dynamics or ".jsonl" in source.suffixes:  # made elsewhere: it has no map yet
            write_cartography(path, metrics, name, args.threshold_method, *chosen[:2])
        for category in CATEGORIES:
            write_json(path / f"{category}_samples.json", samples(frame, category, args.n_examples, split))
        table = distributions(frame)
        write_csv(path / "metric_distributions.csv", table)
        plot_distributions(path / "metric_distributions.png", table, cuts, caption)
        table = correlations(frame)
        write_csv(path / "metric_correlations.csv", table)
        plot_correlations(path / "metric_correlations.png", table, metric_columns(frame), caption)
        if split is not None:
            by, by_group = groups_analysis(frame, split)
            write_csv(path / f"{by}_analysis.csv", by_group)
            plot_groups(path / f"category_by_{by}.png", by_group, by, caption)

    print(caption)
    print_table(group_table(frame.assign(all="all"), "all"), "all")
    if split is not None:
        print_table(by_group, by, f"{by}_analysis.csv")
    print(f"wrote tables, samples and pictures to {path}")


if __name__ == "__main__":
    main()
