"""Where do annotation errors gather? Pictures and a list of problem examples from the unified table.

Reads unified_analysis.csv (analyze_dataset.py --export_unified). Writes error_rates, rule_distribution and
flagged_examples as pictures with their data as CSV, and problem_examples.csv. The error rules are for question
answering; of another task's table it makes problem_examples.csv only: hard examples, least confident first.

    python demos/unified_analysis_example.py --unified_dir ./unified_export --output_dir ./unified_example
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package beside this folder, installed or not

from datamap.cartography.categories import CATEGORIES
from datamap.core.artifacts import artifact_file, check_not_read, recorded_dataset, stage
from datamap.core.errors import UserError, command_line
from datamap.core.files import read_table, write_csv
from datamap.core.flags import Parser
from datamap.core.plots import (
    CATEGORY_COLORS,
    COLORS,
    GREY,
    LIGHT_GREY,
    add_plot_format,
    dataset_label,
    new_figure,
    save_figure,
)
from datamap.core.tables import console_table, safe_to_open

if TYPE_CHECKING:
    import pandas as pd

OWNS = ("error_rates.*", "rule_distribution.*", "flagged_examples.*", "problem_examples.csv")
NEEDED = ("id", "category", "cluster", "confidence", "variability")
SHOWN = ("id", "question", "answer", *NEEDED[1:], "dataset_error_score")  # of a problem example, where rules apply
MAX_CLUSTERS_DRAWN = 40
EXAMPLES_PRINTED = 5


def load_unified(path: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """The unified table with its own types, and the names of the rules in it, none where the task has none."""
    from datamap.analysis.error_rules import RULES

    file = artifact_file(path, "unified_analysis.csv", "analyze_dataset.py --export_unified")
    table = read_table(file, columns=NEEDED, text=("question", "context", "answer"))
    if table.empty:
        raise UserError(f"{file} holds no examples; run analyze_dataset.py --export_unified again")
    rules = list(RULES) if {*SHOWN, *RULES, "is_dataset_error"} <= set(table.columns) else []
    types = {"is_dataset_error": "bool", **dict.fromkeys(rules, "boolean")} if rules else {}
    return table.astype({"cluster": "Int64", **types}), rules


# --- tables ------------------------------------------------------------------------------------------------------


def error_rates(df: pd.DataFrame) -> pd.DataFrame:
    """One row per cell of category and cluster: n, errors, error_rate."""
    cells = df.groupby(["category", "cluster"])["is_dataset_error"]
    return cells.agg(n="size", errors="sum", error_rate="mean").reset_index()


def rule_distribution(df: pd.DataFrame, rules: list[str]) -> pd.DataFrame:
    """One row per rule: of how many examples it could be applied to, how many it flags."""
    import pandas as pd

    applied, flagged = df[rules].notna().sum(), df[rules].sum().astype(int)
    rate = flagged / applied.where(applied > 0)
    return pd.DataFrame({"rule": rules, "applied": applied, "flagged": flagged, "rate": rate})


def problem_examples(df: pd.DataFrame, rules: list[str]) -> pd.DataFrame:
    """Hard or ambiguous examples with an error score of 3 or more, the most suspicious first; without rules hard
    examples with all that is known of them, the least confident first: there wrong labels gather."""
    if not rules:
        return df[df["category"] == "hard"].sort_values(["confidence", "id"])
    problems = df[df["category"].isin(["hard", "ambiguous"]) & df["is_dataset_error"]]
    problems = problems.sort_values(["dataset_error_score", "confidence", "id"], ascending=[False, True, True])
    flags = problems[rules].fillna(False).astype(bool)
    return problems[list(SHOWN)].assign(rules=[";".join(flags.columns[row]) for row in flags.to_numpy()])


# --- pictures ----------------------------------------------------------------------------------------------------


def plot_error_rates(path: Path, table: pd.DataFrame, caption: str) -> None:
    from seaborn import heatmap

    from datamap.analysis.clusters import cluster_name

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
        cbar_kws={"label": "examples with an error score of 3 or more (%)"},
    )
    axis.tick_params(axis="y", rotation=0)
    axis.set(xlabel="", ylabel="cluster")
    save_figure(figure, path, "Examples with an error score of 3 or more, by category and cluster", caption)


def plot_rules(path: Path, table: pd.DataFrame, caption: str) -> None:
    figure, axis = new_figure(7, 3.6)
    names = [rule.replace("_", " ") for rule in table["rule"]]
    bars = axis.barh(names, (100 * table["rate"]).fillna(0), color=COLORS[0])
    texts = [f"{flagged:,} of {applied:,}" if applied else "no predictions"
             for flagged, applied in zip(table["flagged"], table["applied"], strict=True)]
    axis.bar_label(bars, texts, padding=3, fontsize=7)
    axis.tick_params(axis="y", labelsize=8)
    axis.invert_yaxis()
    axis.set(xticks=range(0, 101, 20), xlim=(0, 120),  # room for the texts
             xlabel="flagged (% of the examples that the rule applies to)")
    save_figure(figure, path, "How often each rule fires", caption)


def plot_flagged(path: Path, df: pd.DataFrame, caption: str) -> None:
    flagged = df[df["is_dataset_error"]]
    figure, axis = new_figure(6.5, 5)
    axis.scatter(df["variability"], df["confidence"], s=4, color=LIGHT_GREY, linewidths=0, label="all examples")
    for category in CATEGORIES:
        points = flagged[flagged["category"] == category]
        axis.scatter(points["variability"], points["confidence"], s=22, color=CATEGORY_COLORS[category],
                     edgecolors=GREY, linewidths=0.4, label=f"flagged, {category} ({len(points):,})")
    axis.set(xlabel="variability (SD of probability)", ylabel="confidence (mean probability)")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path, "Flagged examples\non the data map", caption)


# --- command line ------------------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Pictures and a list of problem examples from the unified table.")
    parser.add_argument("--unified_dir", default="./unified_export", help="from analyze_dataset.py --export_unified")
    parser.add_argument("--output_dir", default="./unified_example", help="where the files go")
    add_plot_format(parser)
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_not_read(args.output_dir, args.unified_dir)
    df, rules = load_unified(args.unified_dir)
    recorded = recorded_dataset(args.unified_dir)
    problems = problem_examples(df, rules)
    with stage(args.output_dir, args, owns=OWNS, inputs={"unified": args.unified_dir},
               datasets=[recorded] if recorded else []) as path:
        write_csv(path / "problem_examples.csv", safe_to_open(problems))
        if rules:
            rates, fired = error_rates(df), rule_distribution(df, rules)
            name = dataset_label(recorded["dataset"], recorded["split"]) if recorded else args.unified_dir
            write_csv(path / "error_rates.csv", rates)
            write_csv(path / "rule_distribution.csv", fired)
            points = df[df["confidence"].notna()]
            write_csv(path / "flagged_examples.csv", points[[*NEEDED, "dataset_error_score", "is_dataset_error"]])
            plot_error_rates(path / "error_rates.png", rates,
                             f"{name}, n = {rates['n'].sum():,} with category and cluster; blank: none")
            plot_rules(path / "rule_distribution.png", fired, f"{name}, n = {len(df):,}")
            plot_flagged(path / "flagged_examples.png", points, f"{name}, n = {len(points):,} with metrics")
    if rules:
        print(console_table(fired, {"applied": ",d", "flagged": ",d", "rate": ".1%"}))
        print(f"{len(problems):,} hard or ambiguous examples have an error score of 3 or more")
    else:
        print("this table has no error rules (they are for question answering)")
        print(f"{len(problems):,} of {df['category'].notna().sum():,} examples with metrics are hard; the least "
              "confident:")
        print(console_table(problems.head(EXAMPLES_PRINTED)[["id", "confidence", "cluster"]], {"confidence": ".3f"}))
    print(f"wrote problem_examples.csv{', tables and pictures' if rules else ''} to {path}")


if __name__ == "__main__":
    main()
