"""What the runs of a suite measured, and every experiment beside the baseline and its size-matched control."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.artifacts import model_meta
from datamap.core.clusters import NO_CLUSTERS, Clusters
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import read_json
from datamap.suites.comparison import Comparison, compare_family, seed_of_other_scores, widest_interval
from datamap.suites.runs import FAILED, FINISHED, PLAN, meta_of, planned_runs, state_of
from datamap.tasks.evaluation import SPEED
from datamap.tasks.qa_features import ABLATIONS

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCORES = ("exact_match", "accuracy", "f1")  # what is compared
BINARY = ("exact_match", "accuracy")
LISTS = ("seeds", "values", "reference_values", "warnings")
EVALUATED_WITH = ("eval_split", "max_eval_samples", "ablations", "max_answer_length")
COUNTS = ("planned", "finished", "failed", "missing", "reference_failed", "reference_missing")  # runs of an experiment
# The columns of comparison.csv that say what is compared; ROW of comparison.py follows.
SUBJECT = ("experiment", "reference", "against", "metric", "role", "train_examples", *COUNTS, *LISTS)
SECONDS = ("selection_seconds", "training_seconds", "evaluation_seconds")  # of a run, in results.csv
CONTROLS = "baseline (controls)"  # a control against the baseline: what the size alone does
PRIMARY, SECONDARY = "primary", "secondary"  # roles of metrics; none where all are one family
CONTEXT = "context"  # what the examples of question answering are clustered by, unless told otherwise
NO_CONTEXT = ("no column context in eval_predictions: the questions are taken as independent, which they are not "
              "where several are about one context")
NO_SCORES = "no scores of the examples (eval_predictions): interval and verdict are over seeds only"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """A score of one evaluation: ``exact_match``, ``q_only_f1`` (ablation), ``accuracy_test`` (one set of several).

    ``scale`` is 100 for percentages, 1 for fractions: the metric of an example that is right.
    """

    name: str
    score: str
    ending: str  # of the name of its predictions file
    ablation: str  # what the model was shown, beside the training's own ablation ("")
    scale: float

    @property
    def is_macro(self) -> bool:
        return self.score == "f1" and self.scale == 1  # F1 over classes, of which influence_on_macro_f1 makes scores


@dataclass
class RunResult:
    """One planned run: its state, and what it measured when it is finished."""

    experiment: str
    seed: int
    state: str
    directory: Path
    meta: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)  # all numbers of its evaluations
    compared: list[Metric] = field(default_factory=list)  # which of them are compared
    train_examples: int | None = None
    seconds: dict[str, float | None] = field(default_factory=dict)  # of SECONDS

    @property
    def stages(self) -> list[dict[str, Any]]:
        """run_meta.json of the evaluation, and of what was done in the directory before it."""
        return [self.meta, *self.meta.get("history", [])]

    @property
    def label_column(self) -> str | None:
        """Of a task with classes, the column of the gold label in eval_predictions."""
        tasks = [read.get("task", {}) for stage in self.stages for read in stage.get("datasets", [])]
        return next((task["label_column"] for task in tasks if task.get("label_column")), None)


# --- collecting ---------------------------------------------------------------------------------------------------


def collect(directory: Path, plan: Mapping[str, Any]) -> list[RunResult]:
    """Every run of the plan, finished or not, experiment by experiment."""
    results = []
    for experiment, seed, place in planned_runs(directory, plan):
        result = RunResult(experiment, seed, state_of(place), place, meta_of(place) or {})
        if result.state == FINISHED:
            _read_metrics(result)
            result.train_examples = _train_examples(place)
            result.seconds = _seconds(place)
        results.append(result)
    known = {result.directory.name for result in results}
    others = [path.parent.name for path in directory.glob("*/run_meta.json") if path.parent.name not in known]
    if others:
        logger.info(f"{len(others):,} runs of {directory} are not in the present plan ({PLAN}) and are left out "
                    f"({name_a_few(sorted(others))})")
    return results


def _read_metrics(result: RunResult) -> None:
    """Of several evaluation sets the name of the set follows that of the metric, as in the file's name."""
    compared = re.compile(rf"(?:({'|'.join(ABLATIONS)})_)?({'|'.join(SCORES)})")
    for file in sorted(result.directory.glob("eval_metrics*.json")):
        suffix = file.stem.removeprefix("eval_metrics")
        found = {name.removeprefix("eval_"): value for name, value in read_json(file).items()
                 if not name.endswith(SPEED)}
        result.metrics |= {name + suffix: value for name, value in found.items()}
        scale = 100.0 if "exact_match" in found else 1.0
        for match in filter(None, map(compared.fullmatch, found)):
            ending = suffix + (f"_{match[1]}" if match[1] else "")
            result.compared.append(Metric(match[0] + suffix, match[2], ending, match[1] or "", scale))


def _seconds(place: Path) -> dict[str, float | None]:
    """How long it took to choose what the run trains on (its size-matched control chose nothing), to train (over all
    resumes), and to evaluate (all sets and ablations); None of what was not done, or is not known."""
    trained, training = model_meta(place), place / "train_metrics.json"
    arguments = (trained or {}).get("arguments", {})
    chosen = arguments.get("train_ids") if not arguments.get("filter_random") else None
    selected = Path(chosen or place)
    selection = (selected if selected.is_dir() else selected.parent) / "selection_meta.json"
    evaluations = [value for file in place.glob("eval_metrics*.json") for name, value in read_json(file).items()
                   if name.endswith("_runtime")]
    found = (
        read_json(selection).get("seconds") if chosen and selection.exists() else None,
        read_json(training).get("training_seconds") if training.exists() else None,
        sum(evaluations) if evaluations else None,
    )
    return dict(zip(SECONDS, found, strict=True))


def _train_examples(place: Path) -> int | None:
    report = place / "filter_report.json"
    if report.exists() and (after := read_json(report).get("after")) is not None:
        return after
    trained = model_meta(place)
    if trained is None or not trained["datasets"]:
        return None
    rows = trained["datasets"][0]["rows"]
    return min(rows, trained["arguments"].get("max_train_samples") or rows)


def compared_metrics(results: Sequence[RunResult]) -> list[Metric]:
    """The scores that finished runs report, in the order of SCORES, for each evaluation set and ablation."""
    found = {each.name: each for result in results for each in result.compared}
    return sorted(found.values(), key=lambda each: (each.ending, SCORES.index(each.score)))


def counts(results: Iterable[RunResult]) -> tuple[int, int, int]:
    """How many runs are finished, failed, and neither."""
    states = [each.state for each in results]
    finished, failed = states.count(FINISHED), states.count(FAILED)
    return finished, failed, len(states) - finished - failed


def results_table(results: Sequence[RunResult], plan: Mapping[str, Any]) -> pd.DataFrame:
    """results.csv: one row per run, all metrics, all settings."""
    import pandas as pd

    planned = {each["name"]: each for each in plan["experiments"]}
    rows = []
    for each in results:
        row: dict[str, Any] = {
            "suite": plan["name"], "experiment": each.experiment, "seed": each.seed, "state": each.state,
            "control_of": planned[each.experiment]["control_of"], "train_examples": each.train_examples,
            **{name: each.seconds.get(name) for name in SECONDS},
            "finished": each.meta.get("finished"),
            "git_commit": each.meta.get("git_commit"), "git_dirty": each.meta.get("git_dirty"),
            "error": each.meta.get("error") if each.state == FAILED else None, "directory": each.directory.name,
        }
        row |= each.metrics
        for name, value in planned[each.experiment]["arguments"].items():
            if name not in ("seed", "output_dir"):
                row[f"args.{name}"] = json.dumps(value) if isinstance(value, list | dict) else value
        rows.append(row)
    return pd.DataFrame(rows)


# --- comparing ----------------------------------------------------------------------------------------------------


def compare(
    results: Sequence[RunResult], plan: Mapping[str, Any], margin: float, cluster_by: str | None = None,
    primary_metric: str | None = None,
) -> tuple[list[Metric], list[dict[str, Any]]]:
    """The metrics, and one row per (experiment, metric) against the baseline and against its control.

    The comparisons of experiments with the baseline on all metrics of one evaluation are a family for Holm's
    correction; those of experiments with their controls another; those of controls with the baseline a third. With a
    ``primary_metric``, one of SCORES, its comparisons are such a family, and every other metric is secondary, a
    family by itself. margin: in percentage points. cluster_by: a column of the evaluated data whose values examples
    share that go together, or "none"; None is the context in question answering. UserError for a column or a metric
    that is not there.
    """
    metrics, scores = compared_metrics(results), _Scores(cluster_by)
    pairs = _pairs(plan)
    runs = {name: [each for each in results if each.experiment == name]
            for name in (each["name"] for each in plan["experiments"])}
    rows = []
    for metrics_of_family, role in _families(metrics, primary_metric):
        for against in ("baseline", "control", CONTROLS):
            family = [_comparison(*pair, runs, metric, margin * metric.scale / 100, scores)
                      for metric in metrics_of_family for pair in pairs if pair[2] == against]
            compared = compare_family([comparison for _, comparison in family])
            for (subject, _), row in zip(family, compared, strict=True):
                low, high = widest_interval(row)
                rows.append(subject | {"role": role} | row | {"shown_low": low, "shown_high": high})
    order = [metric.name for metric in metrics]
    return metrics, sorted(rows, key=lambda row: order.index(row["metric"]))


def _families(metrics: Sequence[Metric], primary: str | None) -> list[tuple[list[Metric], str | None]]:
    """The metrics whose comparisons are corrected together, and their role."""
    by_evaluation: dict[str, list[Metric]] = {}
    for metric in metrics:
        by_evaluation.setdefault(metric.ending, []).append(metric)
    if primary is None:
        return [(together, None) for together in by_evaluation.values()]
    for together in by_evaluation.values():
        if primary not in (scores := [metric.score for metric in together]):
            raise UserError(f"--primary_metric {primary}: the runs were scored by {' and '.join(scores)}")
    return [([metric], PRIMARY if metric.score == primary else SECONDARY) for metric in metrics]


def _pairs(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    pairs = []
    for each in plan["experiments"]:
        name, treated = each["name"], each["control_of"]
        if treated is not None:
            pairs += [(treated, name, "control"), (name, plan["baseline"], CONTROLS)]
        elif name != plan["baseline"]:
            pairs.append((name, plan["baseline"], "baseline"))
    return pairs


def _comparison(
    experiment: str, reference: str, against: str, runs: Mapping[str, Sequence[RunResult]], metric: Metric,
    margin: float, scores: _Scores,
) -> tuple[dict[str, Any], Comparison]:
    by_seed, by_seed_of_reference = ({each.seed: each for each in runs[name] if metric.name in each.metrics}
                                     for name in (experiment, reference))
    seeds = sorted(set(by_seed) & set(by_seed_of_reference))
    ours, theirs = [by_seed[seed] for seed in seeds], [by_seed_of_reference[seed] for seed in seeds]
    values, reference_values = ([each.metrics[metric.name] for each in arm] for arm in (ours, theirs))
    sizes = [each.train_examples for each in runs[experiment] if each.train_examples is not None]
    finished, failed, missing = counts(runs[experiment])
    _, reference_failed, reference_missing = counts(runs[reference])
    subject: dict[str, Any] = {
        "experiment": experiment, "reference": reference, "against": against, "metric": metric.name, "role": None,
        "train_examples": float(np.mean(sizes)) if sizes else None,
        "planned": len(runs[experiment]), "finished": finished, "failed": failed, "missing": missing,
        "reference_failed": reference_failed, "reference_missing": reference_missing,
        "seeds": seeds, "values": values, "reference_values": reference_values,
        "warnings": _differences(ours, theirs),
    }
    pair: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
    highest, clusters = metric.scale, None
    if seeds:
        if (read := scores.of(metric, [*ours, *theirs])) is None:
            subject["warnings"].append(NO_SCORES)
        else:
            found, highest = read
            measured = [*values, *reference_values]
            if (worst := seed_of_other_scores(found, measured)) is not None:
                place = (*ours, *theirs)[worst].directory
                raise UserError(f"{place / f'eval_predictions{metric.ending}.jsonl'}: the mean {metric.score} "
                                f"is {found[worst].mean():g}, eval_metrics says {measured[worst]:g}; evaluate that "
                                "run again")
            pair = found[: len(seeds)], found[len(seeds) :]
            clusters = scores.clusters(metric, ours[0])
            if clusters is None and scores.column(metric) is not None:
                subject["warnings"].append(NO_CONTEXT)
    by = None if clusters is None else scores.column(metric)
    return subject, Comparison(seeds, values, reference_values, margin, metric.score in BINARY, *pair, highest,
                               clusters, by)


def _differences(ours: Sequence[RunResult], theirs: Sequence[RunResult]) -> list[str]:
    """What differs between two arms beside the experiment: data, code."""
    warnings = []
    data, other_data = ({frozenset(read["fingerprint"] for stage in each.stages for read in stage.get("datasets", []))
                         for each in arm} for arm in (ours, theirs))
    if data != other_data:
        warnings.append("the data differ (fingerprints)")
    stages = [stage for each in [*ours, *theirs] for stage in each.stages]
    for name in EVALUATED_WITH:
        if len({json.dumps(stage["arguments"].get(name)) for stage in stages if stage.get("arguments")}) > 1:
            warnings.append(f"{name} differs: the arms were not evaluated alike")
    commits = {stage.get("git_commit") for stage in stages}
    if len(commits) > 1:
        warnings.append(f"the code differs ({len(commits)} commits)")
    if any(stage.get("git_dirty") for stage in stages):
        warnings.append("the code was changed and not committed")
    return warnings


def influence_on_macro_f1(gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(N,) float64 scores whose mean is the macro F1 (0..1) and whose spread over examples is its own.

    ``gold`` and ``predicted`` are (N,) class numbers from 0. F1 of a class is 2 t / (p + g), of the shares of the
    examples where it is right, predicted and gold; an example's score is macro F1 plus what a little more weight of
    that example would add to it (its influence, the delta method; Efron and Tibshirani 1993, chapter 22). Classes
    that neither occur nor are predicted do not count, as in eval_metrics.
    """
    classes = np.union1d(gold, predicted)
    is_gold, is_predicted = gold[:, None] == classes, predicted[:, None] == classes
    both, either = 2.0 * (is_gold & is_predicted), is_gold.astype(float) + is_predicted
    f1 = both.mean(axis=0) / either.mean(axis=0)
    return f1.mean() + ((both - f1 * either) / either.mean(axis=0)).mean(axis=1)


class _Scores:
    """Per-example scores from the eval_predictions files of a suite, each file read once.

    All files of one name list the same examples: their ids are kept once, and scores in their order.
    cluster_by: as for ``compare``.
    """

    def __init__(self, cluster_by: str | None) -> None:
        self._cluster_by = cluster_by
        self._clusters: dict[tuple[str, int], Clusters | None] = {}  # of each set of examples
        self._ids: dict[str, list[np.ndarray]] = {}  # name of the file -> (N,) ids of each set of examples
        self._read: dict[Path, tuple[int, dict[str, np.ndarray]] | None] = {}

    def of(self, metric: Metric, runs: Sequence[RunResult]) -> tuple[np.ndarray, float] | None:
        """(runs, N) scores in one order of the examples, and the most that two scores of an example differ by.

        None where they are not there, or not of the same examples.
        """
        name = f"eval_predictions{metric.ending}.jsonl"
        column = {"accuracy": "correct"}.get(metric.score, metric.score)
        found = []
        for run in runs:
            file = run.directory / name
            if file not in self._read:
                self._read[file] = self._aligned(file, run.label_column if metric.scale == 1 else None, metric.scale)
            read = self._read[file]
            if read is None or column not in read[1]:
                return None
            found.append(read)
        if len({number for number, _ in found}) > 1:
            return None
        scores = metric.scale * np.stack([each[column] for _, each in found])
        return scores, max(float(each["highest"]) for _, each in found) if metric.is_macro else metric.scale

    def column(self, metric: Metric) -> str | None:
        """What the examples are clustered by."""
        if self._cluster_by == NO_CLUSTERS:
            return None
        return self._cluster_by or (CONTEXT if metric.scale == 100 else None)

    def clusters(self, metric: Metric, run: RunResult) -> Clusters | None:
        """Of the examples of ``run``, in the order of ``of``; None without a column, or where there is no context."""
        column, file = self.column(metric), run.directory / f"eval_predictions{metric.ending}.jsonl"
        read = self._read[file]
        if column is None or read is None:
            return None
        key = file.name, read[0]
        if key not in self._clusters:
            found = _values_of(file, column, needed=self._cluster_by is not None)
            order = self._ids[file.name][read[0]]
            self._clusters[key] = None if found is None else Clusters([found[example] for example in order])
        return self._clusters[key]

    def _aligned(self, file: Path, label: str | None, scale: float) -> tuple[int, dict[str, np.ndarray]] | None:
        """Which set of examples it is, and (N,) float32 of each score; only these and the ids are parsed.

        With a label column also the scores of macro F1, ``f1``, and ``highest``, a number: an example of the rarest
        class changes macro F1 by 2 / (classes x examples of that class) at most.
        """
        if not file.exists():
            return None
        columns = ["correct"] if scale == 1 else ["exact_match", "f1"]
        table = _read_columns(file, columns, [label, "predicted_label"] if label else [])
        if table is None:
            return None  # written before scores stood there, or elsewhere
        own = table["id"].to_numpy().astype(str)
        scores = {column: table[column].to_numpy().astype(np.float32) for column in columns}
        if label in table.column_names:
            gold, predicted = (table[name].to_numpy().astype(str) for name in (label, "predicted_label"))
            classes, numbers = np.unique(np.concatenate([gold, predicted]), return_inverse=True)
            counts = np.unique(gold, return_counts=True)[1]
            scores["f1"] = influence_on_macro_f1(*np.split(numbers, 2)).astype(np.float32)
            scores["highest"] = np.float32(2 * len(gold) / (len(counts) * counts.min()))
        known = self._ids.setdefault(file.name, [])
        for number, ids in enumerate(known):
            if np.array_equal(own, ids):
                return number, scores
            if np.array_equal(np.sort(own), np.sort(ids)):
                places = np.argsort(own)[np.argsort(np.argsort(ids))]
                return number, {name: values[places] if values.ndim else values for name, values in scores.items()}
        known.append(own)
        return len(known) - 1, scores


def _values_of(file: Path, column: str, needed: bool) -> dict[str, Any] | None:
    """id -> value; None where the examples do not have the column, a UserError where it is ``needed``."""
    with open(file, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    without = [row["id"] for row in rows if row.get(column) is None]
    if without and (needed or len(without) < len(rows)):
        raise UserError(f"--cluster_by {column}: {len(without):,} of {len(rows):,} examples of {file} have none "
                        f"({name_a_few(without)}); there is {', '.join(rows[0])}; --cluster_by none takes every "
                        "example by itself")
    return None if without else {row["id"]: row[column] for row in rows}


def _read_columns(file: Path, numbers: Sequence[str], labels: Sequence[str]) -> pa.Table | None:
    """The ids and these columns; None where numbers are missing, and without the labels where some of those are."""
    import pyarrow as pa
    import pyarrow.json

    types = [("id", pa.string()), *((column, pa.float64()) for column in numbers)]
    try:
        with open(file, encoding="utf-8") as lines:
            first = json.loads(next(lines, "{}"))
        # Labels are whole numbers in all rows, or names in all.
        types += [(name, pa.int64() if isinstance(first.get(name), int) else pa.string()) for name in labels]
        table = pa.json.read_json(
            file,
            parse_options=pa.json.ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior="ignore"),
            read_options=pa.json.ReadOptions(block_size=max(1 << 20, min(file.stat().st_size, 1 << 30))),
        )
    except (pa.ArrowInvalid, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read ({reason}); evaluate that run again, or remove the file to compare "
                        "without scores of the examples") from error
    if any(table[name].null_count for name in ("id", *numbers)):
        return None
    return table.drop_columns(list(labels)) if any(table[name].null_count for name in labels) else table


def learning_curves(results: Sequence[RunResult]) -> pd.DataFrame:
    """What finished runs logged while training: experiment, seed, step, epoch, loss, eval_*."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.csv

    parts = []
    for each in results:
        file = each.directory / "training_log.csv"
        if each.state == FINISHED and file.exists():
            try:
                log = pa.csv.read_csv(file).to_pandas()  # of the logs of hundreds of runs
            except pa.ArrowInvalid as error:
                raise UserError(f"{file} cannot be read ({error}); remove it to do without its curve") from error
            if len(log):  # else nothing was logged, and its columns have no type
                parts.append(log.apply(pd.to_numeric).assign(experiment=each.experiment, seed=each.seed))
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts)
    first = ["experiment", "seed", "step", "epoch"]
    return table[[*first, *(name for name in table.columns if name not in first)]]
