"""Where do annotation errors gather? Pictures and a list of problem examples from the unified table.

Reads unified_analysis.csv (analyze_dataset.py --export_unified). Writes error_rates, rule_distribution and
flagged_examples as pictures, the first two with their data as CSV, and problem_examples.csv. The error rules are for
question answering; of another task's table it makes problem_examples.csv only: hard examples, least confident first.

    python demos/unified_analysis_example.py --unified_dir ./unified_export --output_dir ./unified_example
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the modules beside this folder, installed or not

from datamap.core.artifacts import artifact_file, check_not_read, recorded_dataset, stage
from datamap.core.errors import UserError, command_line
from datamap.core.files import read_table, write_csv
from datamap.core.flags import Parser
from datamap.core.tables import console_table

if TYPE_CHECKING:
    import pandas as pd

OWNS = ("error_rates.*", "rule_distribution.*", "flagged_examples.png", "problem_examples.csv")
NEEDED = ("id", "category", "cluster", "confidence", "variability")
SHOWN = ("id", "question", "answer", *NEEDED[1:], "dataset_error_score")  # of a problem example, where rules apply
MAX_CLUSTERS_DRAWN = 40
EXAMPLES_PRINTED = 5


def load_unified(path: str | Path) -> pd.DataFrame:
    """The unified table with its own types: cluster Int64, the rules, if any, booleans that can be missing."""
    from datamap.analysis.error_rules import RULES

    file = artifact_file(path, "unified_analysis.csv", "analyze_dataset.py --export_unified")
    table = read_table(file, columns=NEEDED, text=("question", "context", "answer"))
    if table.empty:
        raise UserError(f"{file} holds no examples; run analyze_dataset.py --export_unified again")
    rules = {"is_dataset_error": "bool", **dict.fromkeys(RULES, "boolean")} if has_rules(table) else {}
    return table.astype({"cluster": "Int64", **rules})


def has_rules(df: pd.DataFrame) -> bool:
    from datamap.analysis.error_rules import RULES

    return {*SHOWN, *RULES, "is_dataset_error"} <= set(df.columns)


# --- tables ------------------------------------------------------------------------------------------------------


def error_rates(df: pd.DataFrame) -> pd.DataFrame:
    """One row per cell of category and cluster: n, errors, error_rate."""
    cells = df.groupby(["category", "cluster"])["is_dataset_error"]
    return cells.agg(n="size", errors="sum", error_rate="mean").reset_index()


def rule_distribution(df: pd.DataFrame) -> pd.DataFrame:
    """One row per rule: of how many examples it could be applied to, how many it flags."""
    import pandas as pd

    from datamap.analysis.error_rules import RULES

    rules = df[list(RULES)]
    applied, flagged = rules.notna().sum(), rules.sum().astype(int)
    rate = flagged / applied.where(applied > 0)
    return pd.DataFrame({"rule": RULES, "applied": applied, "flagged": flagged, "rate": rate})


def problem_examples(df: pd.DataFrame) -> pd.DataFrame:
    """Hard or ambiguous examples that break at least three rules, the most suspicious first."""
    from datamap.analysis.error_rules import RULES

    problems = df[(df["category"].isin(["hard", "ambiguous"])) & (df["is_dataset_error"])]
    problems = problems.sort_values(["dataset_error_score", "confidence", "id"], ascending=[False, True, True])
    flags = problems[list(RULES)].fillna(False).to_numpy(dtype=bool)
    broken = [";".join(rule for rule, fired in zip(RULES, row, strict=True) if fired) for row in flags]
    return problems[list(SHOWN)].assign(rules=broken)


def hard_examples(df: pd.DataFrame) -> pd.DataFrame:
    """Hard examples with all that is known of them, the least confident first: there wrong labels gather."""
    return df[df["category"] == "hard"].sort_values(["confidence", "id"])


# --- pictures ----------------------------------------------------------------------------------------------------


def plot_error_rates(path: Path, table: pd.DataFrame, caption: str) -> None:
    from seaborn import heatmap

    from datamap.analysis.clusters import cluster_name
    from datamap.cartography.categories import CATEGORIES
    from datamap.core.plots import new_figure, save_figure

    sizes = table.groupby("cluster")["n"].sum()
    shown = sorted(sizes.nlargest(MAX_CLUSTERS_DRAWN).index)
    if len(shown) < len(sizes):
        caption += f"; the {len(shown)} largest of {len(sizes)} clusters"
    cells = table.set_index(["cluster", "category"]).unstack("category").reindex(shown)
    rates = 100 * cells["error_rate"].reindex(columns=list(CATEGORIES)).astype(float)
    counts = cells["n"].reindex(columns=list(CATEGORIES)).fillna(0).astype(int)
    texts = rates.map("{:.0f}% of ".format) + counts.map("{:,}".format)
    figure, axis = new_figure(5.5, 1.8 + 0.32 * len(shown))
    heatmap(
        rates, ax=axis, cmap="viridis", vmin=0, vmax=max(float(rates.max().max()), 1.0), annot=texts, fmt="",
        annot_kws={"fontsize": 8}, yticklabels=[cluster_name(cluster) for cluster in shown],
        cbar_kws={"label": "examples that break 3 rules or more (%)"},
    )
    axis.tick_params(axis="y", rotation=0)
    axis.set(xlabel="", ylabel="cluster")
    save_figure(figure, path, "Error rate by category and cluster", caption)


def plot_rules(path: Path, table: pd.DataFrame, caption: str) -> None:
    from datamap.core.plots import COLORS, new_figure, save_figure

    figure, axis = new_figure(7, 3.6)
    bars = axis.barh(range(len(table)), (100 * table["rate"]).fillna(0), color=COLORS[0])
    texts = [
        f"{flagged:,} of {applied:,}" if applied else "no predictions"
        for flagged, applied in zip(table["flagged"], table["applied"], strict=True)
    ]
    axis.bar_label(bars, texts, padding=3, fontsize=7)
    axis.set_yticks(range(len(table)), [rule.replace("_", " ") for rule in table["rule"]], fontsize=8)
    axis.invert_yaxis()
    axis.set_xticks(range(0, 101, 20))
    axis.set_xlim(0, 120)  # room for the texts
    axis.set_xlabel("flagged (% of the examples that the rule applies to)")
    save_figure(figure, path, "How often each rule fires", caption)


def plot_flagged(path: Path, df: pd.DataFrame, caption: str) -> None:
    import numpy as np

    from datamap.analysis.map_summary import METRIC_LABELS
    from datamap.cartography.categories import CATEGORIES
    from datamap.core.plots import CATEGORY_COLORS, GREY, LIGHT_GREY, new_figure, save_figure

    flagged = df[df["is_dataset_error"]]
    figure, axis = new_figure(6.5, 5)
    size = float(np.clip(6000 / len(df), 1.5, 15))
    axis.scatter(df["variability"], df["confidence"], s=size, color=LIGHT_GREY, linewidths=0, label="all examples")
    for category in CATEGORIES:
        points = flagged[flagged["category"] == category]
        axis.scatter(
            points["variability"], points["confidence"], s=22, color=CATEGORY_COLORS[category], edgecolors=GREY,
            linewidths=0.4, label=f"flagged, {category} ({len(points):,})",
        )
    axis.set(xlabel=METRIC_LABELS["variability"], ylabel=METRIC_LABELS["confidence"])
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path, "Flagged examples\non the data map", caption)


# --- command line ------------------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Pictures and a list of problem examples from the unified table.")
    parser.add_argument("--unified_dir", default="./unified_export", help="from analyze_dataset.py --export_unified")
    parser.add_argument("--output_dir", default="./unified_example", help="where the files go")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from datamap.core.plots import dataset_label

    check_not_read(args.output_dir, args.unified_dir)
    df = load_unified(args.unified_dir)
    recorded = recorded_dataset(args.unified_dir)
    datasets = [recorded] if recorded else []
    if not has_rules(df):
        hard = hard_examples(df)
        with stage(args.output_dir, args, owns=OWNS, inputs={"unified": args.unified_dir}, datasets=datasets) as path:
            write_csv(path / "problem_examples.csv", hard)
        mapped = df["category"].notna().sum()
        print("this table has no error rules (they are for question answering)")
        print(f"{len(hard):,} of {mapped:,} examples with metrics are hard; the least confident:")
        for row in hard.head(EXAMPLES_PRINTED).itertuples():
            print(f"  {row.id}: confidence {row.confidence:.3f}, cluster {row.cluster}")
        print(f"wrote problem_examples.csv to {path}")
        return
    rates, rules, problems = error_rates(df), rule_distribution(df), problem_examples(df)
    name = dataset_label(recorded["dataset"], recorded["split"]) if recorded else args.unified_dir
    in_cells = f"{name}, n = {rates['n'].sum():,} with category and cluster; blank: none"
    on_map = f"{name}, n = {df['confidence'].notna().sum():,} with metrics"
    with stage(args.output_dir, args, owns=OWNS, inputs={"unified": args.unified_dir}, datasets=datasets) as path:
        write_csv(path / "error_rates.csv", rates)
        write_csv(path / "rule_distribution.csv", rules)
        write_csv(path / "problem_examples.csv", problems)
        plot_error_rates(path / "error_rates.png", rates, in_cells)
        plot_rules(path / "rule_distribution.png", rules, f"{name}, n = {len(df):,}")
        plot_flagged(path / "flagged_examples.png", df, on_map)

    print(console_table(rules, {"applied": ",d", "flagged": ",d", "rate": ".1%"}))
    print(f"{len(problems):,} hard or ambiguous examples break at least 3 rules")
    print(f"wrote problem_examples.csv, tables and pictures to {path}")


if __name__ == "__main__":
    main()
