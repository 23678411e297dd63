"""What a suite tells its reader: results.csv, comparison.csv, .json and .md, plots, and the table on the console."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np

from datamap.core.artifacts import META
from datamap.core.files import atomic, write_csv, write_json
from datamap.core.plots import picture_files
from datamap.core.tables import console_table
from datamap.suites import plots as suite_plots
from datamap.suites.comparison import ALPHA, ROW, UNDERPOWERED
from datamap.suites.results import (
    CONTROLS,
    LISTS,
    SECONDARY,
    SUBJECT,
    Metric,
    RunResult,
    collect,
    compare,
    counts,
    learning_curves,
    results_table,
)
from datamap.suites.runs import PLAN, planned_runs, read_plan
from datamap.tasks.qa_features import ABLATIONS

REPORT = "comparison.md"  # written when all else is
HEADINGS = ("experiment", "against", "training examples", "n", "mean ± SD", "difference", "95 % interval", "wins", "p",
            "p (Holm) of family", "p (equivalence, Holm)", "p (sign flip; smallest possible)", "g", "verdict")
METHODS = (
    "Differences are paired by seed. The interval is that of the mean difference over seeds and evaluation examples "
    "together (as the multi-bootstrap of Sellam et al. 2021, in closed form; macro F1 by the influence of each "
    "example), or the paired t interval over seeds where that is wider or there are no predictions; with one seed, "
    "over examples. {clusters} A difference counts as better or worse when the p that belongs to the interval "
    "is at most 0.05 after Holm's correction over {family}. By how much is said beside a margin of {margin:g} "
    "percentage point(s): more (the interval lies beyond it), or less (as below). No detectable difference: a "
    "difference of the margin is ruled out, by two one-sided tests (Schuirmann 1987) at 0.05 after Holm's correction, "
    "over seeds and over examples, of which there are enough that one of the margin would show. Underpowered: "
    "neither, and what would decide, with a power of 0.8; seeds are planned with the 80 % upper bound of their "
    "standard deviation (Browne 1995). g: the mean difference in standard deviations between seeds (Hedges 1981)."
)
FAMILY = "the comparisons with the same kind of reference on all scores of an evaluation"
FAMILY_OF_PRIMARY = ("the comparisons with the same kind of reference on the primary metric; a secondary one is "
                     "corrected by itself, and its verdicts are no findings of the suite")


def is_compared(directory: Path) -> bool:
    """Whether the comparison is younger than every run, and than the plan."""
    report = directory / REPORT
    files = [directory / PLAN, *(place / META for *_, place in planned_runs(directory, read_plan(directory)))]
    return report.exists() and all(
        file.stat().st_mtime_ns <= report.stat().st_mtime_ns for file in files if file.exists()
    )


def write_report(
    directory: Path, margin: float, cluster_by: str | None = None, primary_metric: str | None = None
) -> str:
    """Analyse one suite: write its tables and plots, return what the console shows. Arguments as for ``compare``."""
    import pandas as pd

    plan = read_plan(directory)
    results = collect(directory, plan)
    table = results_table(results, plan)
    write_csv(directory / "results.csv", table)
    metrics, rows = compare(results, plan, margin, cluster_by, primary_metric)
    for pattern in (*picture_files("comparison_*", "training_size_*"), "learning_curves.*"):
        for file in directory.glob(pattern):
            file.unlink()
    columns = [*SUBJECT, *ROW, "shown_low", "shown_high"]
    flat = pd.DataFrame([row | {name: json.dumps(row[name]) for name in LISTS} for row in rows], columns=columns)
    write_csv(directory / "comparison.csv", flat)
    write_json(directory / "comparison.json", {
        "suite": plan["name"], "description": plan["description"], "baseline": plan["baseline"],
        "comparisons": rows,
    })
    curves = learning_curves(results)
    if len(curves):
        write_csv(directory / "learning_curves.csv", curves)
    suite_plots.write_plots(directory, plan, table, metrics, rows, curves)
    with atomic(directory / REPORT) as temporary:
        temporary.write_text(markdown(plan, results, metrics, rows, margin), encoding="utf-8")
    return console(plan, results, metrics, rows)


def _mean_sd(results: Sequence[RunResult], experiment: str, metric: Metric) -> tuple[list[float], str]:
    values = [each.metrics[metric.name] for each in results
              if each.experiment == experiment and metric.name in each.metrics]
    if not values:
        return values, "-"
    spread = f" ± {shown(float(np.std(values, ddof=1)), metric)}" if len(values) > 1 else ""
    return values, shown(float(np.mean(values)), metric) + spread


def shown(value: float | None, metric: Metric, signed: bool = False) -> str:
    """A value with two digits behind the percentage point, or ``-``."""
    if value is None:
        return "-"
    digits = 2 if metric.scale == 100 else 4
    value = round(value, digits) + 0.0  # no -0.00
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def interval(row: Mapping[str, Any], metric: Metric) -> str:
    """``[low, high]`` of ``shown_low`` and ``shown_high``."""
    low, high = row["shown_low"], row["shown_high"]
    return "-" if low is None else f"[{shown(low, metric, True)}, {shown(high, metric, True)}]"


def verdict_of(row: Mapping[str, Any]) -> str:
    """The verdict, how it stands to the margin or what would decide, and whom it is about."""
    told = [row["note"]] if row["note"] and not (row["n"] == 1 and row["p"] is None) else []
    if row["verdict"] == UNDERPOWERED and row["p"] is not None and row["p"] <= ALPHA < row["p_holm"]:
        told = [f"p {row['p']:.2g} alone, {row['p_holm']:.2g} as one of {row['family_size']}", *told]
    told += [row["scope"]] * (row["n"] == 1) + [SECONDARY] * (row["role"] == SECONDARY)
    return row["verdict"] + (f" ({'; '.join(told)})" if told else "")


def clustered(rows: Iterable[Mapping[str, Any]]) -> str:
    """What the examples of one metric are clustered by, and what they are worth; "" where they are not."""
    known = [row for row in rows if row["clusters"]]
    if not known:
        return ""
    worth = [row["effective_examples"] for row in known]
    effects = [row["design_effect"] for row in known if row["design_effect"] is not None]
    ends = f"{min(worth):,.0f}" + (f" to {max(worth):,.0f}" if round(min(worth)) < round(max(worth)) else "")
    effect = f" (design effect {min(effects):.2f} to {max(effects):.2f})" if effects else ""
    return (f"{known[0]['examples']:,} examples in {known[0]['clusters']:,} clusters by {known[0]['cluster_by']}, "
            f"worth {ends} independent ones{effect}")


def console(
    plan: Mapping[str, Any], results: Sequence[RunResult], metrics: Sequence[Metric], rows: Sequence[Mapping[str, Any]]
) -> str:
    """What a reader of the terminal needs: difference, interval, verdict."""
    import pandas as pd

    lines = [_counts(plan, results)]
    for metric in metrics:
        own = [row for row in rows if row["metric"] == metric.name and row["against"] != CONTROLS]
        values, text = _mean_sd(results, plan["baseline"], metric)
        unit = "percent" if metric.scale == 100 else "0..1"
        seeds = f"{len(values)} seed" + "s" * (len(values) != 1)
        role = f", {own[0]['role']}" if own and own[0]["role"] else ""
        lines += ["", f"{metric.name} ({unit}{role}), {plan['baseline']}: {text}, {seeds}"]
        lines += [f"  {told}" for told in [clustered(own)] if told]
        table = pd.DataFrame([
            {"experiment": row["experiment"], "against": row["reference"], "n": row["n"],
             "difference": shown(row["difference"], metric, True), "95% interval": interval(row, metric),
             "verdict": verdict_of(row)} for row in own
        ])
        if own:  # a suite of one experiment compares nothing
            lines.append(indent(console_table(table), "  "))
    for warning in sorted({warning for row in rows for warning in row["warnings"]}):
        lines.append(f"warning: {warning}; see the column warnings of comparison.csv")
    return "\n".join(lines)


def _counts(plan: Mapping[str, Any], results: Sequence[RunResult]) -> str:
    finished, failed, missing = counts(results)
    return (f"suite {plan['name']}: {len(results):,} runs, {finished:,} finished, {failed:,} failed, "
            f"{missing:,} missing")


def markdown(
    plan: Mapping[str, Any], results: Sequence[RunResult], metrics: Sequence[Metric],
    rows: Sequence[Mapping[str, Any]], margin: float,
) -> str:
    """comparison.md: what an appendix needs to say of the suite."""
    described = plan["description"]
    described += "" if described.endswith((".", "?", "!")) else "."
    lines = [f"## Suite {plan['name']}", "", *([described, ""] if plan["description"] else [])]
    lines += [_counts(plan, results) + ".", ""]
    lines += _table(["experiment", "what", "runs finished / failed / missing"], [
        [each["name"], each["description"] + (f" ({each['why']})" if each["why"] else ""),
         " / ".join(map(str, counts(run for run in results if run.experiment == each["name"])))]
        for each in plan["experiments"]
    ])
    for metric in metrics:
        unit = "percent" if metric.scale == 100 else "0 to 1"
        baseline = _mean_sd(results, plan["baseline"], metric)[1]
        own = [row for row in rows if row["metric"] == metric.name]
        role = f", {own[0]['role']}" if own and own[0]["role"] else ""
        told = clustered(own)
        lines += ["", f"### {metric.name} ({unit}{role})", "", f"Baseline: {baseline}." + f" {told}." * bool(told), ""]
        lines += _table(HEADINGS, [_cells(row, results, metric) for row in own])
    lines += _ablation_table(plan, results, metrics)
    lines += ["", _methods(rows, margin), ""]
    for warning in sorted({warning for row in rows for warning in row["warnings"]}):
        lines += [f"Warning: {warning}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _methods(rows: Sequence[Mapping[str, Any]], margin: float) -> str:
    columns = sorted({row["cluster_by"] for row in rows if row["clusters"]})
    clusters = "The examples count each by itself." if not columns else (
        f"Examples of one {' or '.join(columns)} go together: clusters are resampled (Miller 2024; CR2 and degrees of "
        "freedom of Bell and McCaffrey 2002).")
    family = FAMILY_OF_PRIMARY if any(row["role"] for row in rows) else FAMILY
    return METHODS.format(margin=margin, clusters=clusters, family=family)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[" ".join(text.split()).replace("|", r"\|") for text in row] for row in (headings, *rows)]
    heading, *lines = [f"| {' | '.join(row)} |" for row in cells]
    return [heading, "|---" * len(headings) + "|", *lines]


def _cells(row: Mapping[str, Any], results: Sequence[RunResult], metric: Metric) -> list[str]:
    """Under HEADINGS."""

    def formatted(text: str, name: str) -> str:
        return "-" if row[name] is None else text.format(**row)

    return [
        row["experiment"], row["reference"], formatted("{train_examples:,.0f}", "train_examples"), str(row["n"]),
        _mean_of(row, results, metric), shown(row["difference"], metric, True), interval(row, metric),
        formatted("{wins} of {n}", "wins"), _p(row["p"]), f"{_p(row['p_holm'])} of {row['family_size']}",
        _p(row["p_equivalence_holm"]), formatted("{p_sign_flip:.3g}; {p_sign_flip_smallest:.3g}", "p_sign_flip"),
        formatted("{hedges_g:.2f}", "hedges_g"), verdict_of(row),
    ]


def _mean_of(row: Mapping[str, Any], results: Sequence[RunResult], metric: Metric) -> str:
    """Of the seeds that are compared; where none is, of those that are there."""
    if not row["n"]:
        return _mean_sd(results, row["experiment"], metric)[1]
    return shown(row["mean"], metric) + (f" ± {shown(row['sd'], metric)}" if row["n"] > 1 else "")


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if value >= 0.001 else "< 0.001"


def _ablation_table(
    plan: Mapping[str, Any], results: Sequence[RunResult], metrics: Sequence[Metric]
) -> list[str]:
    """Experiments by what the model was shown, where runs were evaluated under several ablations."""
    own = {each["name"]: each["arguments"].get("ablations") or "none" for each in plan["experiments"]}
    places: dict[str, dict[tuple[str, str], Metric]] = {}
    for each in metrics:
        places.setdefault(each.ending.removesuffix(f"_{each.ablation}"), {})[each.ablation, each.score] = each
    lines: list[str] = []
    for place, by_kind in places.items():
        kinds = [name for name in ABLATIONS
                 if (name, "f1") in by_kind or (name in own.values() and ("", "f1") in by_kind)]
        if len(kinds) < 2:
            continue
        of_set = f", {place.removeprefix('_')}" if place else ""
        headings = ["experiment", *("question and passage" if kind == "none" else kind for kind in kinds)]
        rows = []
        for name, trained_with in own.items():
            prefixes = ["" if kind == trained_with else kind for kind in kinds]
            pairs = [[by_kind.get((prefix, score)) for score in ("exact_match", "f1")] for prefix in prefixes]
            rows.append([name, *(" / ".join("-" if one is None else _mean_sd(results, name, one)[1] for one in pair)
                                 for pair in pairs)])
        lines += ["", f"### Exact match / F1 by what the model was shown{of_set}", "", *_table(headings, rows)]
    return lines
