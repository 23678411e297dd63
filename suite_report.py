"""What came out of a suite: one row per run, and every experiment beside the baseline and its size-matched control."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from artifacts import atomic, load_meta, model_meta, plain, read_json, write_csv, write_json
from comparison import ROW, UNDERPOWERED, Comparison, Resamples, compare_family
from evaluation import SPEED
from helpers import UserError, name_a_few
from qa_features import ABLATIONS
from suite_runner import FAILED, FINISHED, state_of
from suites import PLAN, identity_of, run_name

if TYPE_CHECKING:
    import pandas as pd

REPORT = "comparison.md"  # written when all else is
SCORES = ("exact_match", "accuracy", "f1")  # what is compared
BINARY = ("exact_match", "accuracy")
LISTS = ("seeds", "values", "reference_values", "warnings")
COUNTS = ("planned", "finished", "failed", "missing")  # runs of an experiment
# The columns of comparison.csv that say what is compared; ROW of comparison.py follows.
SUBJECT = ("experiment", "reference", "against", "metric", "train_examples", *COUNTS, *LISTS)

HEADINGS = ("experiment", "against", "training examples", "n", "mean ± SD", "difference", "95 % interval", "wins", "p",
            "p (Holm) of family", "p (sign flip; smallest possible)", "d", "verdict")  # fmt: skip
METHODS = (
    "Differences are paired by seed. The interval is that of the mean difference over seeds and evaluation examples "
    "resampled together (Sellam et al. 2021), or the paired t interval over seeds where that is wider; with one seed, "
    "a paired bootstrap over examples. A difference counts as better or worse when the p that belongs to the interval "
    "is at most 0.05 after Holm's correction over the comparisons of a metric with the same kind of reference."
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """A score of one evaluation: ``exact_match``, ``q_only_f1`` (ablation), ``accuracy_test`` (one set of several).

    ``scale`` is 100 for percentages, 1 for fractions: the metric of an example that is right.
    """

    name: str
    score: str
    ending: str  # of the name of its predictions file
    scale: float


@dataclass
class RunResult:
    """One planned run: its state, and what it measured when it is finished."""

    experiment: str
    seed: int
    state: str
    directory: Path
    meta: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    train_examples: int | None = None

    @property
    def fingerprints(self) -> list[str]:
        return [each["fingerprint"] for run in [self.meta, *self.meta.get("history", [])]
                for each in run.get("datasets", [])]  # fmt: skip


# --- collecting ---------------------------------------------------------------------------------------------------


def read_plan(directory: Path) -> dict[str, Any]:
    if not (directory / PLAN).exists():
        raise UserError(f"{directory} holds no {PLAN}; run_experiments.py --mode run --suite NAME writes it")
    return read_json(directory / PLAN)


def collect(directory: Path, plan: Mapping[str, Any]) -> list[RunResult]:
    """Every run of the plan, finished or not, experiment by experiment."""
    results = []
    for each in plan["experiments"]:
        for seed in each["seeds"]:
            place = directory / run_name(each["name"], seed, identity_of(each["settings_hash"], seed))
            result = RunResult(each["name"], seed, state_of(place), place, load_meta(place) or {})
            if result.state == FINISHED:
                result.metrics = _metrics(place)
                result.train_examples = _train_examples(place)
            results.append(result)
    known = {result.directory.name for result in results}
    others = [path.parent.name for path in directory.glob("*/run_meta.json") if path.parent.name not in known]
    if others:
        logger.info(f"{len(others):,} runs of {directory} are of other settings than {PLAN} and are left out "
                    f"({name_a_few(sorted(others))})")  # fmt: skip
    return results


def _metrics(place: Path) -> dict[str, float]:
    """Every number that the evaluations gave; of several sets the name of the set follows, as in the file's name."""
    found = {}
    for file in sorted(place.glob("eval_metrics*.json")):
        suffix = file.stem.removeprefix("eval_metrics")
        for name, value in read_json(file).items():
            if not name.endswith(SPEED):
                found[name.removeprefix("eval_") + suffix] = value
    return found


def _train_examples(place: Path) -> int | None:
    report = place / "filter_report.json"
    if report.exists():
        return read_json(report)["after"]
    trained = model_meta(place)
    if trained is None or not trained["datasets"]:
        return None
    rows = trained["datasets"][0]["rows"]
    return min(rows, trained["arguments"].get("max_train_samples") or rows)


def compared_metrics(results: Sequence[RunResult]) -> list[Metric]:
    """The scores that finished runs report, in the order of SCORES, for each evaluation set and ablation."""
    found: dict[str, Metric] = {}
    ablation = "|".join(ABLATIONS)
    for result in results:
        for file in sorted(result.directory.glob("eval_metrics*.json")) if result.state == FINISHED else ():
            suffix = file.stem.removeprefix("eval_metrics")
            scale = 100.0 if f"exact_match{suffix}" in result.metrics else 1.0
            for name in result.metrics:
                match = re.fullmatch(rf"(?:({ablation})_)?({'|'.join(SCORES)}){re.escape(suffix)}", name)
                if match:
                    ending = suffix + (f"_{match[1]}" if match[1] else "")
                    found[name] = Metric(name, match[2], ending, scale)
    return sorted(found.values(), key=lambda each: (each.ending, SCORES.index(each.score)))


def results_table(results: Sequence[RunResult], plan: Mapping[str, Any]) -> pd.DataFrame:
    """results.csv: one row per run, all metrics, all settings."""
    import pandas as pd

    controls = {each["name"]: each["control_of"] for each in plan["experiments"]}
    settings = {each["name"]: each["arguments"] for each in plan["experiments"]}
    rows = []
    for each in results:
        row: dict[str, Any] = {
            "suite": plan["name"], "experiment": each.experiment, "seed": each.seed, "state": each.state,
            "control_of": controls[each.experiment], "train_examples": each.train_examples,
            "finished": each.meta.get("finished"),
            "git_commit": each.meta.get("git_commit"), "git_dirty": each.meta.get("git_dirty"),
            "error": each.meta.get("error") if each.state == FAILED else None, "directory": each.directory.name,
        }  # fmt: skip
        row |= each.metrics
        for name, value in settings[each.experiment].items():
            if name not in ("seed", "output_dir"):
                scalar = value is None or isinstance(value, str | int | float | bool)
                row[f"args.{name}"] = value if scalar else json.dumps(value, default=plain)
        rows.append(row)
    return pd.DataFrame(rows)


# --- comparing ----------------------------------------------------------------------------------------------------


def compare(
    results: Sequence[RunResult], plan: Mapping[str, Any], margin: float | None
) -> tuple[list[Metric], list[dict[str, Any]]]:
    """The metrics, and one row per (experiment, metric) against the baseline and against its control.

    The comparisons of experiments with the baseline on one metric are a family for Holm's correction; those of
    experiments with their controls another; those of controls with the baseline a third. margin: None for one
    percentage point.
    """
    metrics, resamples, scores = compared_metrics(results), Resamples(), _Scores()
    pairs = _pairs(plan)
    rows = []
    for metric in metrics:
        smallest = margin if margin is not None else metric.scale / 100
        for against in ("baseline", "control", "baseline (controls)"):
            family = [pair for pair in pairs if pair[2] == against]
            subjects, comparisons = [], []
            for experiment, reference, _ in family:
                subject, one = _comparison(results, experiment, reference, against, metric, smallest, scores)
                subjects.append(subject)
                comparisons.append(one)
            compared = compare_family(comparisons, resamples)
            rows += [subject | row | _shown_interval(row) for subject, row in zip(subjects, compared, strict=True)]
    return metrics, rows


def _pairs(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    pairs = []
    for each in plan["experiments"]:
        name, treated = each["name"], each["control_of"]
        if treated is not None:
            pairs += [(treated, name, "control"), (name, plan["baseline"], "baseline (controls)")]
        elif name != plan["baseline"]:
            pairs.append((name, plan["baseline"], "baseline"))
    return pairs


def _comparison(
    results: Sequence[RunResult],
    experiment: str,
    reference: str,
    against: str,
    metric: Metric,
    margin: float,
    scores: _Scores,
) -> tuple[dict[str, Any], Comparison]:
    ours = [each for each in results if each.experiment == experiment]
    by_seed = {each.seed: each for each in ours if metric.name in each.metrics}
    theirs = {each.seed: each for each in results if each.experiment == reference and metric.name in each.metrics}
    seeds = sorted(set(by_seed) & set(theirs))
    states = Counter(each.state for each in ours)
    values = [by_seed[seed].metrics[metric.name] for seed in seeds]
    reference_values = [theirs[seed].metrics[metric.name] for seed in seeds]
    sizes = [each.train_examples for each in ours if each.train_examples is not None]
    subject = {
        "experiment": experiment, "reference": reference, "against": against, "metric": metric.name,
        "train_examples": float(np.mean(sizes)) if sizes else None,
        "planned": len(ours), "finished": states[FINISHED], "failed": states[FAILED],
        "missing": len(ours) - states[FINISHED] - states[FAILED],
        "seeds": seeds, "values": values, "reference_values": reference_values,
        "warnings": _differences([by_seed[seed] for seed in seeds], [theirs[seed] for seed in seeds]),
    }  # fmt: skip
    pair = scores.of(metric, [by_seed[seed].directory for seed in seeds], [theirs[seed].directory for seed in seeds])
    return subject, Comparison(
        seeds, values, reference_values, margin, binary=metric.score in BINARY,
        scores=None if pair is None else pair[0], reference_scores=None if pair is None else pair[1],
    )  # fmt: skip


def _differences(ours: Sequence[RunResult], theirs: Sequence[RunResult]) -> list[str]:
    """What differs between two arms beside the experiment: data, code."""
    warnings = []
    if {tuple(sorted(set(each.fingerprints))) for each in ours} != {
        tuple(sorted(set(each.fingerprints))) for each in theirs
    }:
        warnings.append("the data differ (fingerprints)")
    commits = {each.meta.get("git_commit") for each in [*ours, *theirs]}
    if len(commits) > 1:
        warnings.append(f"the code differs ({len(commits)} commits)")
    if any(each.meta.get("git_dirty") for each in [*ours, *theirs]):
        warnings.append("the code was changed and not committed")
    return warnings


class _Scores:
    """Per-example scores from the eval_predictions files of a suite, each file read once.

    All files of one name list the same examples: their ids are kept once, and scores in their order.
    """

    def __init__(self) -> None:
        self._ids: dict[str, np.ndarray] = {}  # name of the file -> (N,) ids
        self._read: dict[Path, dict[str, np.ndarray] | None] = {}

    def of(
        self, metric: Metric, ours: Sequence[Path], theirs: Sequence[Path]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """(S, N) scores of either arm in one order of the examples; None where they are not there, or not the same.

        F1 over classes is no mean over examples and has none.
        """
        if not ours or (metric.score == "f1" and metric.scale == 1):
            return None
        column = {"accuracy": "correct"}.get(metric.score, metric.score)
        name = f"eval_predictions{metric.ending}.jsonl"
        read = [self._one(place / name, [column] if metric.scale == 1 else ["exact_match", "f1"])
                for place in [*ours, *theirs]]  # fmt: skip
        if any(each is None for each in read):
            return None
        scores = metric.scale * np.stack([each[column] for each in read if each is not None])
        return scores[: len(ours)], scores[len(ours) :]

    def _one(self, file: Path, columns: Sequence[str]) -> dict[str, np.ndarray] | None:
        if file not in self._read:
            self._read[file] = self._aligned(file, columns) if file.exists() else None
        return self._read[file]

    def _aligned(self, file: Path, columns: Sequence[str]) -> dict[str, np.ndarray] | None:
        """(N,) float32 of each column; only these and the ids are parsed."""
        import pyarrow as pa
        import pyarrow.json

        schema = pa.schema([("id", pa.string()), *((column, pa.float64()) for column in columns)])
        table = pa.json.read_json(
            file,
            parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            read_options=pa.json.ReadOptions(block_size=max(1 << 20, min(file.stat().st_size, 1 << 30))),
        )
        if any(table[name].null_count for name in table.column_names):
            return None  # written before scores stood there, or elsewhere
        own = table["id"].to_numpy().astype(str)
        ids = self._ids.setdefault(file.name, own)
        scores = {column: table[column].to_numpy().astype(np.float32) for column in columns}
        if np.array_equal(own, ids):
            return scores
        order = np.argsort(own)
        places = order[np.searchsorted(own, ids, sorter=order).clip(max=len(own) - 1)]
        if len(own) != len(ids) or not np.array_equal(own[places], ids):
            return None  # other examples
        return {column: values[places] for column, values in scores.items()}


# --- writing ------------------------------------------------------------------------------------------------------


def write_report(directory: Path, margin: float | None) -> str:
    """Analyse one suite: write its tables and plots, return what the console shows."""
    import pandas as pd

    import suite_plots

    plan = read_plan(directory)
    results = collect(directory, plan)
    table = results_table(results, plan)
    write_csv(directory / "results.csv", table)
    metrics, rows = compare(results, plan, margin)
    columns = [*SUBJECT, *ROW, "shown_low", "shown_high"]
    flat = pd.DataFrame(
        [{name: json.dumps(row[name]) if name in LISTS else row[name] for name in columns} for row in rows],
        columns=columns,
    )
    write_csv(directory / "comparison.csv", flat)
    write_json(directory / "comparison.json", {
        "suite": plan["name"], "description": plan["description"], "baseline": plan["baseline"],
        "comparisons": [{name: row[name] for name in columns} for row in rows],
    })  # fmt: skip
    curves = learning_curves(results)
    if len(curves):
        write_csv(directory / "learning_curves.csv", curves)
    suite_plots.write_plots(directory, plan, table, metrics, rows, curves)
    with atomic(directory / REPORT) as temporary:
        temporary.write_text(markdown(plan, results, metrics, rows), encoding="utf-8")
    return console(plan, results, metrics, rows)


def learning_curves(results: Sequence[RunResult]) -> pd.DataFrame:
    """What finished runs logged while training: experiment, seed, step, epoch, loss, eval_*."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.csv

    parts = []
    for each in results:
        file = each.directory / "training_log.csv"
        if each.state == FINISHED and file.exists():
            log = pa.csv.read_csv(file).to_pandas()  # of the logs of hundreds of runs
            if len(log):  # else nothing was logged, and its columns have no type
                parts.append(log.assign(experiment=each.experiment, seed=each.seed))
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True)
    first = ["experiment", "seed", "step", "epoch"]
    return table[[*first, *(name for name in table.columns if name not in first)]]


def _mean_sd(results: Sequence[RunResult], experiment: str, metric: Metric) -> tuple[list[float], str]:
    values = [each.metrics[metric.name] for each in results
              if each.experiment == experiment and metric.name in each.metrics]  # fmt: skip
    if not values:
        return values, "-"
    spread = f" ± {shown(float(np.std(values, ddof=1)), metric)}" if len(values) > 1 else ""
    return values, shown(float(np.mean(values)), metric) + spread


def shown(value: float | None, metric: Metric, signed: bool = False) -> str:
    """A value with two digits behind the percentage point, or ``-``."""
    if value is None:
        return "-"
    digits = 2 if metric.scale == 100 else 4
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def interval(row: Mapping[str, Any], metric: Metric) -> str:
    """``[low, high]`` of ``shown_low`` and ``shown_high``."""
    low, high = row["shown_low"], row["shown_high"]
    return "-" if low is None else f"[{shown(low, metric, True)}, {shown(high, metric, True)}]"


def _shown_interval(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The interval that goes with the verdict: over seeds and examples where there are scores of the examples, and it
    is the wider one; else over seeds."""
    pairs = [(row["low"], row["high"]), (row["bootstrap_low"], row["bootstrap_high"])]
    known = [pair for pair in pairs if pair[0] is not None]
    low, high = max(known, key=lambda pair: pair[1] - pair[0]) if known else (None, None)
    return {"shown_low": low, "shown_high": high}


def verdict_of(row: Mapping[str, Any]) -> str:
    if row["n"] == 1:
        return f"{row['verdict']} ({row['scope']})"
    needed = row["seeds_needed"] if row["verdict"] == UNDERPOWERED else None
    return row["verdict"] + (f" (about {needed:,} seeds needed)" if needed and needed > row["n"] else "")


def console(
    plan: Mapping[str, Any], results: Sequence[RunResult], metrics: Sequence[Metric], rows: Sequence[Mapping[str, Any]]
) -> str:
    """What a reader of the terminal needs: difference, interval, verdict."""
    lines = [_counts(plan, results)]
    for metric in metrics:
        own = [row for row in rows if row["metric"] == metric.name and row["against"] != "baseline (controls)"]
        values, text = _mean_sd(results, plan["baseline"], metric)
        unit = "percent" if metric.scale == 100 else "0..1"
        seeds = f"{len(values)} seed" + "s" * (len(values) != 1)
        lines += ["", f"{metric.name} ({unit}), {plan['baseline']}: {text}, {seeds}"]
        table = [("experiment", "against", "n", "difference", "95% interval", "verdict")]
        for row in own:
            table.append((row["experiment"], row["reference"], str(row["n"]),
                          shown(row["difference"], metric, True), interval(row, metric), verdict_of(row)))  # fmt: skip
        widths = [max(len(line[column]) for line in table) for column in range(6)]
        for line in table:
            cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
            lines.append("  " + "  ".join(cells).rstrip())
    for warning in sorted({warning for row in rows for warning in row["warnings"]}):
        lines.append(f"warning: {warning}; see the column warnings of comparison.csv")
    return "\n".join(lines)


def _counts(plan: Mapping[str, Any], results: Sequence[RunResult]) -> str:
    states = Counter(each.state for each in results)
    missing = len(results) - states[FINISHED] - states[FAILED]
    return (f"suite {plan['name']}: {len(results):,} runs, {states[FINISHED]:,} finished, {states[FAILED]:,} failed, "
            f"{missing:,} missing")  # fmt: skip


def markdown(
    plan: Mapping[str, Any], results: Sequence[RunResult], metrics: Sequence[Metric], rows: Sequence[Mapping[str, Any]]
) -> str:
    """comparison.md: what an appendix needs to say of the suite."""
    described = plan["description"].rstrip(".") + "."
    lines = [f"## Suite {plan['name']}", "", *([described, ""] if plan["description"] else [])]
    lines += [_counts(plan, results) + ".", ""]
    lines += ["| experiment | what | runs finished / failed / missing |", "|---|---|---|"]
    for each in plan["experiments"]:
        states = Counter(result.state for result in results if result.experiment == each["name"])
        missing = sum(states.values()) - states[FINISHED] - states[FAILED]
        what = each["description"] + (f" ({each['why']})" if each["why"] else "")
        lines.append(f"| {each['name']} | {what} | {states[FINISHED]} / {states[FAILED]} / {missing} |")
    for metric in metrics:
        unit = "percent" if metric.scale == 100 else "0 to 1"
        baseline = _mean_sd(results, plan["baseline"], metric)[1]
        lines += ["", f"### {metric.name} ({unit})", "", f"Baseline: {baseline}.", ""]
        lines += [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
        for row in rows:
            if row["metric"] == metric.name:
                size = "-" if row["train_examples"] is None else f"{row['train_examples']:,.0f}"
                flips = "-" if row["p_sign_flip"] is None else (
                    f"{row['p_sign_flip']:.3g}; {row['p_sign_flip_smallest']:.3g}"
                )
                wins = "-" if row["wins"] is None else f"{row['wins']} of {row['n']}"
                note = f" ({row['note']})" if row["note"] else ""
                cells = [
                    row["experiment"], row["reference"], size, str(row["n"]),
                    _mean_sd(results, row["experiment"], metric)[1], shown(row["difference"], metric, True),
                    interval(row, metric), wins, _p(row["p"]), f"{_p(row['p_holm'])} of {row['family_size']}", flips,
                    "-" if row["cohens_d"] is None else f"{row['cohens_d']:.2f}", row["verdict"] + note,
                ]  # fmt: skip
                lines.append(f"| {' | '.join(cells)} |")
    lines += _ablation_table(plan, results, metrics)
    lines += ["", METHODS, ""]
    for warning in sorted({warning for row in rows for warning in row["warnings"]}):
        lines.append(f"Warning: {warning}.")
    return "\n".join(lines).rstrip() + "\n"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if value >= 0.001 else "< 0.001"


def _ablation_table(
    plan: Mapping[str, Any], results: Sequence[RunResult], metrics: Sequence[Metric]
) -> list[str]:
    """Experiments by what the model was shown, where runs were evaluated under several ablations."""
    shown_under = [name for name in ABLATIONS[1:] if any(metric.name.startswith(name) for metric in metrics)]
    if not shown_under:
        return []
    by_name = {metric.name: metric for metric in metrics}
    lines = ["", "### Exact match / F1 by what the model was shown", "",
             "| experiment | " + " | ".join(["question and passage", *shown_under]) + " |",
             "|---|" + "---|" * (1 + len(shown_under))]  # fmt: skip
    for each in plan["experiments"]:
        cells = []
        for prefix in ["", *(f"{name}_" for name in shown_under)]:
            pair = [by_name.get(f"{prefix}{score}") for score in ("exact_match", "f1")]
            cells.append(" / ".join("-" if one is None else _mean_sd(results, each["name"], one)[1] for one in pair))
        lines.append(f"| {each['name']} | " + " | ".join(cells) + " |")
    return lines
