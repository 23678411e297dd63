"""One map of several runs: per example the mean and the spread over runs, and how stable its category is."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.cartography import stability
from datamap.cartography.categories import CATEGORIES, category_thresholds, with_categories
from datamap.cartography.dynamics import holds_dynamics, read_dynamics
from datamap.cartography.learning import MEANS_NOTHING
from datamap.cartography.maps import map_learning
from datamap.cartography.metrics import METRIC_COLUMNS, load_cartography_metrics
from datamap.core.artifacts import load_meta, recorded_dataset
from datamap.core.errors import UserError, name_a_few

if TYPE_CHECKING:
    import pandas as pd

JOINT_FILE = "joint_map.json"
SPREAD = "_sd"  # ending of the column with the standard deviation over runs
NEVER_SHARE = "never_learned_share"
# What is looked for in a map: its name, the metric, and whether it is high.
EXTREMES = {"hardest": ("confidence", -1), "most ambiguous": ("variability", 1)}
# Arguments of a training in which runs that are joined may differ, in the order in which they are told.
MAY_DIFFER = ("seed", "model", "num_train_epochs", "learning_rate", "per_device_train_batch_size", "max_train_samples",
              "train_ids", "filters", "data_seed", "hidden_size", "num_layers", "dropout", "use_label_smoothing",
              "use_soft_weighting")
OF_ONE_KIND = {"seed", "data_seed"}  # runs that differ in these alone are draws of one kind
MUST_AGREE = {"confidence_type": "how start and end become one confidence", "ablations": "what the model is shown"}

logger = logging.getLogger(__name__)


@dataclass
class RecordedMap:
    """A map as one run recorded it. arguments: of its training, {} where nobody recorded them. recorded: identity of
    its dataset, None where nobody recorded it."""

    path: Path
    metrics: pd.DataFrame
    arguments: dict[str, Any]
    recorded: dict[str, Any] | None


def read_recorded(path: str | Path) -> RecordedMap:
    meta = load_meta(path) or {}
    arguments = meta.get("arguments", {})
    return RecordedMap(Path(path), load_cartography_metrics(path), arguments.get("recorded_with") or arguments,
                       recorded_dataset(path))


def read_runs(paths: Sequence[str | Path]) -> list[RecordedMap]:
    """The maps to be joined; UserError where they are not of the same examples and the same quantity."""
    runs = [read_recorded(path) for path in paths]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UserError("--cartography_dir names a map twice; each run counts once")
    for run in runs:
        if "n_runs" in run.metrics:
            raise UserError(f"{run.path} is a joint map already; give the maps that it was made of ({JOINT_FILE} "
                            "names them)")
    first = next((run for run in runs if run.recorded), runs[0])
    for run in runs:
        _check_alike(first, run)
    known = [run for run in runs if run is not first and not (run.recorded and first.recorded)]
    if strange := [run for run in known if not run.metrics.index.isin(first.metrics.index).any()]:
        raise UserError(f"{strange[0].path} shares no ids with {first.path}, and does not say of which dataset it is; "
                        "maps of one dataset are joined")
    epochs = [sorted(run.metrics["num_epochs"].unique().tolist()) for run in runs if "num_epochs" in run.metrics]
    if len({max(each) for each in epochs}) > 1:
        logger.warning(f"the maps are over {name_a_few(sorted({max(each) for each in epochs}), 9)} epochs: confidence "
                       "and variability of a longer training are other quantities, and the spread over runs holds "
                       "that difference too")
    return runs


def _check_alike(first: RecordedMap, other: RecordedMap) -> None:
    ours, theirs = first.recorded, other.recorded
    if ours and theirs:
        named = [f"{each['dataset']} [{each['split']}]" for each in (ours, theirs)]
        if ours["fingerprint"] != theirs["fingerprint"]:
            raise UserError(f"{first.path} is a map of {named[0]}, {other.path} of {named[1]} (fingerprints "
                            f"{ours['fingerprint']} and {theirs['fingerprint']}); maps of one dataset are joined, and "
                            "--compare tells two others apart")
        if ours.get("task") != theirs.get("task"):
            raise UserError(f"{first.path} was recorded for task {task_name(ours)}, {other.path} for "
                            f"{task_name(theirs)}; maps of one task are joined")
    for name, what in MUST_AGREE.items():
        values = [each.arguments.get(name) for each in (first, other)]
        if None not in values and values[0] != values[1]:
            raise UserError(f"{name} ({what}) is {values[0]} in {first.path} and {values[1]} in {other.path}: these "
                            "are different quantities, and are not joined")
    trained = [each.arguments.get("trained_on", True) for each in (first, other)]
    if trained[0] != trained[1]:
        raise UserError(f"{(first, other)[trained[0]].path} is a map of examples that were not trained on, "
                        f"{(first, other)[trained[1]].path} of a training: these are different quantities, and are "
                        "not joined")


def task_name(identity: Mapping[str, Any]) -> str:
    return str(identity.get("task", {}).get("name", "unknown"))


def join_maps(
    maps: Sequence[pd.DataFrame], confidence_threshold: float | None = None,
    variability_threshold: float | None = None, method: str = "median",
) -> pd.DataFrame:
    """One row per example of any of the maps, indexed by id in the order of first appearance.

    maps: metrics of each run (``load_cartography_metrics``). Every metric that all of them have becomes its mean over
    the runs that know the example, and METRIC_sd their standard deviation (ddof 1, NaN for one run). ``never_learned``
    stays a truth value: in no run that knows it; ``never_learned_share`` says in how many. ``n_runs``: runs that know
    the example. ``share_easy`` and so on: the share of these, 0..1, in whose map it has that category, cut there by
    the same method (``category_thresholds``). ``stability``: ``pair_agreement`` of these, NaN for one run.
    """
    import pandas as pd

    ids = list(dict.fromkeys(example for each in maps for example in each.index))
    index = pd.Index(ids, name="id", dtype="str")
    columns: dict[str, Any] = {}
    spreads: dict[str, Any] = {}
    for name in METRIC_COLUMNS:
        if not all(name in each for each in maps):
            continue
        values = over_runs(maps, name, index)
        known = ~np.isnan(values)
        n = known.sum(axis=1)
        mean = np.where(known, values, 0).sum(axis=1) / n
        squares = np.where(known, values - mean[:, None], 0) ** 2
        spread = np.sqrt(np.divide(squares.sum(axis=1), n - 1, out=np.full(len(n), np.nan), where=n > 1))
        if name == "never_learned":
            columns[name], spreads[NEVER_SHARE] = mean == 1, mean
            continue
        if name == "num_epochs" and (mean == mean.round()).all():
            mean = mean.astype(np.int64)
        columns[name], spreads[name + SPREAD] = mean, spread
    categories = run_categories(maps, index, confidence_threshold, variability_threshold, method)
    shares = {f"share_{name}": (categories == name).sum(axis=1) / (categories != "").sum(axis=1)
              for name in CATEGORIES}
    return pd.DataFrame({**columns, "n_runs": (categories != "").sum(axis=1), **shares,
                         "stability": stability.pair_agreement(categories, CATEGORIES), **spreads}, index=index)


def over_runs(maps: Sequence[pd.DataFrame], name: str, index: pd.Index) -> np.ndarray:
    """(N, R) float64: a metric of each run, NaN where it lacks the example."""
    return np.stack([each[name].astype("float64").reindex(index).to_numpy() for each in maps], axis=1)


def run_categories(
    maps: Sequence[pd.DataFrame], index: pd.Index, confidence_threshold: float | None = None,
    variability_threshold: float | None = None, method: str = "median",
) -> np.ndarray:
    """(N, R) text: the category of each example in each run, "" where that lacks it."""
    asked = (confidence_threshold, variability_threshold, method)
    categorized = [with_categories(each, category_thresholds(each, *asked))["category"] for each in maps]
    return np.stack([each.reindex(index).fillna("").to_numpy(dtype=str) for each in categorized], axis=1)


def mean_epochs(paths: Sequence[str | Path]) -> Iterator[dict[str, Any]]:
    """The training dynamics of a joint map: of each epoch that every run recorded the means over the runs that saw an
    example in it, columns that all of them have; ``correct`` is what more than half of these were. Nothing where one
    run has no dynamics.

    For curves and for those who choose by the losses of epochs: the metrics of a joint map are means of the metrics of
    its runs, not those of these means, which vary less.
    """
    if not all(Path(path).is_dir() and holds_dynamics(path) for path in paths):
        return
    for epochs in zip(*map(read_dynamics, paths), strict=False):
        ids = list(dict.fromkeys(example for epoch in epochs for example in epoch["id"]))
        place = {example: row for row, example in enumerate(ids)}
        rows = [np.fromiter((place[example] for example in epoch["id"]), np.int64, len(epoch["id"]))
                for epoch in epochs]
        seen = sum(np.bincount(each, minlength=len(ids)) for each in rows)
        columns: dict[str, Any] = {}
        for name in epochs[0]:
            if name in ("epoch", "id", "gold") or not all(name in epoch for epoch in epochs):
                continue
            weights = [np.asarray(epoch[name], dtype=np.float64) for epoch in epochs]
            mean = sum(np.bincount(each, weight, len(ids)) for each, weight in zip(rows, weights, strict=True)) / seen
            columns[name] = mean > 0.5 if name == "correct" else mean
        yield {"epoch": epochs[0]["epoch"], "id": ids, **columns}


def agreement_table(maps: Sequence[pd.DataFrame], names: Sequence[str], index: pd.Index) -> pd.DataFrame:
    """Every pair of runs: examples that both know, Spearman's rank correlation of every metric that all of them have,
    and the overlap of the hardest and the most ambiguous shares. One row a pair and statistic."""
    import pandas as pd

    rows = []
    columns = {name: over_runs(maps, name, index) for name in METRIC_COLUMNS if all(name in each for each in maps)}
    for first in range(len(maps)):
        for second in range(first + 1, len(maps)):
            pair = [values[:, [first, second]] for values in columns.values()]
            shared = int((~np.isnan(pair[0])).all(axis=1).sum())
            who = {"run_a": names[first], "run_b": names[second], "examples": shared}
            for name, values in zip(columns, pair, strict=True):
                if name not in ("num_epochs", "never_learned"):
                    rows.append({**who, "statistic": "spearman", "of": name, "share": None,
                                 "value": stability.rank_correlation(values[:, 0], values[:, 1])})
            for what, (name, sign) in EXTREMES.items():
                first_of, second_of = (sign * columns[name][:, [first, second]]).T
                rows += [{**who, "statistic": "overlap", "of": what, "share": share,
                          "value": stability.overlap(first_of, second_of, share)} for share in stability.SHARES]
    return pd.DataFrame(rows)


@dataclass
class Joint:
    """A joint map and what is known of its stability. record: what joint_map.json holds."""

    metrics: pd.DataFrame
    pairs: pd.DataFrame
    curves: dict[str, stability.Curve]
    record: dict[str, Any]
    learning: dict[str, Any] | None


def join(
    runs: Sequence[RecordedMap], confidence_threshold: float | None = None,
    variability_threshold: float | None = None, method: str = "median",
) -> Joint:
    """The joint map of ``read_runs``, with all that is told of it."""
    maps = [run.metrics for run in runs]
    lacking = sorted({name for name in METRIC_COLUMNS for each in maps if name in each} -
                     set.intersection(*(set(each) for each in maps)))
    if lacking:
        logger.warning(f"{name_a_few(lacking, 9)}: not in every map, and left out of the joint one")
    asked = (confidence_threshold, variability_threshold, method)
    metrics = join_maps(maps, *asked)
    categories = run_categories(maps, metrics.index, *asked)
    names = [str(run.path) for run in runs]
    pairs = agreement_table(maps, names, metrics.index)
    curves = {what: stability.learning_curve(sign * over_runs(maps, name, metrics.index))
              for what, (name, sign) in EXTREMES.items()}
    differ = differing(runs)
    record = {
        "runs": [{"path": str(run.path), "examples": len(run.metrics),
                  **{name: run.arguments.get(name) for name in ("seed", "model")}} for run in runs],
        "differ_in": differ,
        "examples": len(metrics), "in_every_run": int((metrics["n_runs"] == len(runs)).sum()),
        "stability": stability_record(metrics, categories, asked),
        "pairs": pair_record(pairs),
        "learning_curve": {"share": stability.TOP, "enough": stability.ENOUGH,
                           **{what: curve.record() for what, curve in curves.items()}},
    }
    return Joint(metrics, pairs, curves, record, joint_learning(runs, metrics))


def stability_record(
    metrics: pd.DataFrame, categories: np.ndarray, asked: tuple[Any, ...]
) -> dict[str, Any]:
    """Mean stability, of all and of each category of the joint map; by chance; and Fleiss' kappa of both."""
    joint = with_categories(metrics, category_thresholds(metrics, *asked))["category"]
    known = metrics["stability"].notna()
    mean = float(metrics["stability"].mean()) if known.any() else None
    chance = stability.chance_agreement(categories, CATEGORIES)
    return {
        "mean": mean, "by_chance": chance,
        "kappa": None if mean is None or chance == 1 else (mean - chance) / (1 - chance),
        "by_category": {name: (float(metrics["stability"][joint == name].mean())
                               if (known & (joint == name)).any() else None) for name in CATEGORIES},
        "always_the_same": float((metrics["stability"][known] == 1).mean()) if known.any() else None,
    }


def pair_record(pairs: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean, lowest and highest of each statistic over the pairs of runs; none where no pair has it."""
    rows = []
    for (statistic, of, share), group in pairs.groupby(["statistic", "of", "share"], dropna=False, sort=False):
        values = group["value"].dropna()
        if len(values):
            rows.append({"statistic": statistic, "of": of, "share": None if share != share else share,
                         "mean": float(values.mean()), "lowest": float(values.min()), "highest": float(values.max())})
    return rows


def differing(runs: Sequence[RecordedMap]) -> list[str]:
    """The arguments of their trainings in which the runs differ, of those that are recorded."""
    return [name for name in MAY_DIFFER
            if len({repr(run.arguments.get(name)) for run in runs if run.arguments}) > 1]


def joint_learning(runs: Sequence[RecordedMap], metrics: pd.DataFrame) -> dict[str, Any] | None:
    """``Learning.record`` of a joint map: means over runs, and a warning where one of these has learned nothing."""
    records = [map_learning(run.path, run.metrics) for run in runs]
    known = [record for record in records if record is not None]
    if len(known) < len(records):
        return None

    def mean(name: str) -> list[float] | None:
        curves = [record[name] for record in known]
        same = None not in curves and len({len(curve) for curve in curves}) == 1
        return np.mean(curves, axis=0).tolist() if same else None

    guesses = [record["guessing"] for record in known]
    bad = [str(run.path) for run, record in zip(runs, known, strict=True) if record["warning"]]
    learned = [record["has_learned"] for record in known]
    return {
        "examples": len(metrics), "ever_right": int((metrics["correctness"] > 0).sum()),
        "accuracy": mean("accuracy"), "loss": mean("loss"),
        "guessing": guesses[0] if all(guess == guesses[0] for guess in guesses) else None,
        "has_learned": False if bad else True if all(learned) else None,
        "warning": f"in {len(bad)} of {len(runs)} runs ({name_a_few(bad)}) {MEANS_NOTHING}; leave them out" if bad
        else None,
    }
