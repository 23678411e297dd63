"""Filters: which examples to keep, by cartography metrics, clusters, error rules or chance.

A filter is one class: its settings are its fields, the name of its block in a config is its ``block``. Adding one
means adding a class to this file (docs/extending.md); filter_config.py reads configs of them and applies them.

What depends on values (categories, minima, maxima) is decided with the whole metrics file, so that every stage
agrees on it. What is a fraction (``top_fraction``, ``drop_fraction``) is a fraction of the examples that the filters
before it left. Where it comes to no whole number of examples, one more is kept.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import numbers
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from datamap.analysis.clusters import load_clusters
from datamap.analysis.error_rules import (
    ERROR_SCORE,
    RULE_WEIGHTS,
    RULES,
    RULES_NEEDING_PREDICTIONS,
    flag_errors,
    silent_rules,
)
from datamap.cartography.categories import CATEGORIES
from datamap.cartography.maps import load_map
from datamap.cartography.metrics import JOINT_COLUMNS, METRIC_COLUMNS
from datamap.core.artifacts import check_same_dataset
from datamap.core.errors import UserError, name_a_few
from datamap.core.splits import Split

if TYPE_CHECKING:
    import datasets
    import pandas as pd

logger = logging.getLogger(__name__)

Reasons = dict[str, np.ndarray]  # reason for removal -> bool (n,)
Thresholds = dict[str, float | None]


# --- what filters read -------------------------------------------------------------------------------------------


@dataclass
class Table:
    """A table with an id per row, aligned with a dataset of n examples."""

    path: str
    whole: pd.DataFrame  # indexed by id: all of the file, also ids that the dataset lacks
    row_of: np.ndarray  # int (n,): the row of each example, -1 where it has none
    listed: np.ndarray  # bool (n,): False counts as missing
    ids: list[str]  # of the dataset
    thresholds: Thresholds = dataclasses.field(default_factory=dict)  # of a data map: between its categories

    def numbers(self, column: str) -> np.ndarray:
        """float64 (n,), NaN where an example has no row; UserError unless every value in the file is a number."""
        import pandas as pd

        if column not in self.whole:
            raise UserError(f"{self.path} has no column {column!r}; it has {', '.join(map(str, self.whole.columns))}")
        values = pd.to_numeric(self.whole[column], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        bad = ~np.isfinite(values)
        if bad.any():
            raise UserError(f"{self.path}: {column} of {bad.sum():,} examples ({name_a_few(self.whole.index[bad])}) "
                            "is missing or no finite number; filter by another column, or make the file again")
        return np.where(self.row_of >= 0, values[self.row_of], np.nan)

    def where_known(self, column: str) -> Table:
        """The table without the rows that have no value in a column."""
        if column not in self.whole:
            return self
        known = self.whole[column].notna().to_numpy()
        place = np.where(known, np.cumsum(known) - 1, -1)
        row_of = np.where(self.row_of >= 0, place[self.row_of], -1)
        return dataclasses.replace(self, whole=self.whole[known], row_of=row_of, listed=self.listed & (row_of >= 0))

    def is_in_category(self, category: str) -> np.ndarray:
        """bool (n,), False where an example has no row."""
        return (self.whole["category"] == category).to_numpy(dtype=bool)[self.row_of] & (self.row_of >= 0)

    def lowest(self, values: np.ndarray, among: np.ndarray, k: int) -> tuple[np.ndarray, float | None]:
        """Mask of the k lowest ``values`` of the examples ``among``, ties in the order of ids; and the k-th value."""
        chosen = np.zeros(len(values), bool)
        if k == 0:
            return chosen, None
        positions = np.flatnonzero(among)
        cut = np.partition(values[positions], k - 1)[k - 1]
        chosen[positions[values[positions] < cut]] = True
        tied = positions[values[positions] == cut]  # sorting ids is slow, so only those where it decides
        chosen[sorted(tied, key=lambda position: self.ids[position])[: k - int(chosen.sum())]] = True
        return chosen, float(cut)


class JoinedDataset:
    """The examples to be filtered, joined by id with the files about them, each read once. metrics: columns of a map
    that the filters ask for beside those that every map has (default: all)."""

    def __init__(self, dataset: datasets.Dataset | Split, metrics: Collection[str] | None = None):
        import pandas as pd

        self.only = metrics
        self.split = dataset if isinstance(dataset, Split) else None
        self.data = dataset.data if isinstance(dataset, Split) else dataset
        if "id" not in self.data.column_names:
            raise UserError(f"filters join on a column 'id'; this dataset has {', '.join(self.data.column_names)}")
        self.ids = [str(value) for value in self.data["id"][:]]
        self.index = pd.Index(self.ids, dtype=object)
        if not self.ids:
            raise UserError("the dataset to be filtered holds no examples")
        self.metrics, self.clusters = functools.cache(self._metrics), functools.cache(self._clusters)

    def columns(self, block: str, why: str, *names: str) -> list[list[Any]]:
        """Columns of the dataset, one value per example; UserError, which says ``why`` the filter needs them."""
        if lacking := set(names) - set(self.data.column_names):
            raise UserError(f"filter {block}: the dataset has no column {name_a_few(sorted(lacking))}; {why}")
        return [self.data[name][:] for name in names]

    def table(self, columns: pd.DataFrame | dict[str, Any]) -> Table:
        """Numbers taken from the examples themselves, one per example and column."""
        import pandas as pd

        n = len(self.ids)
        return Table("the dataset", pd.DataFrame(columns, self.index), np.arange(n), np.ones(n, bool), self.ids)

    def _metrics(self, path: str | Path) -> Table:
        """Cartography metrics and ``category``, cut at the map's own thresholds."""
        frame, cuts = load_map(path, self.only)
        if not set(self.only or ()) <= set(frame.columns):  # whoever asks is told of all that there are
            frame, cuts = load_map(path)
        return self._aligned(path, frame, dict(zip(("confidence", "variability"), cuts, strict=True)))

    def _clusters(self, path: str | Path) -> Table:
        return self._aligned(path, load_clusters(path, ("cluster", "cluster_probability")), {})

    def error_rules(self, predictions_path: str | Path | None, rule_weights: str) -> Table:
        """The error rules, over the whole dataset; with predictions, examples without one count as missing."""
        from datamap.analysis.unified_table import read_predictions

        why = "the error rules are for extractive question answering"
        questions, contexts, answers = self.columns("rules", why, "question", "context", "answers")
        predictions: list[str | None] = [None] * len(self.ids)
        if predictions_path is not None:
            _, known = read_predictions(predictions_path, "predicted_answer")
            is_known = self._rows(predictions_path, list(known)) >= 0
            predictions = [known[example]["predicted_answer"] if is_there else None
                           for example, is_there in zip(self.ids, is_known, strict=True)]
        texts = [(answer["text"] or [""])[0] for answer in answers]
        table = self.table(flag_errors(questions, contexts, texts, predictions, rule_weights=rule_weights)
                           .set_axis(self.index))
        if predictions_path is not None:
            table.listed = np.array([text is not None for text in predictions])
        logger.info(silent_rules(table.whole))
        return table

    def _aligned(self, path: str | Path, whole: pd.DataFrame, thresholds: Thresholds) -> Table:
        row_of = self._rows(path, whole.index)
        return Table(str(path), whole, row_of, row_of >= 0, self.ids, thresholds)

    def _rows(self, path: str | Path, ids: Sequence[str] | pd.Index) -> np.ndarray:
        """Where each example stands in ``ids``; UserError when the file is about another dataset."""
        import pandas as pd

        there = pd.Index(ids, dtype=object)
        if there.equals(self.index):  # the very examples that the file was made of
            row_of = np.arange(len(there))
        else:
            row_of = there.get_indexer(self.index)
        if self.split is not None:
            changed = check_same_dataset(path, ids, self.split)
            row_of[self.index.isin(changed)] = -1
        elif not (row_of >= 0).any():
            raise UserError(f"{path} shares no ids with the dataset (it has {name_a_few(ids[:3])}, the dataset "
                            f"{name_a_few(self.ids[:3])}); give the file made from this dataset")
        return row_of


# --- settings ----------------------------------------------------------------------------------------------------

Kind = tuple[Callable[[Any], bool], str]  # what is right, and its description


def setting(kind: Kind, default: Any = dataclasses.MISSING) -> Any:
    """A field of a filter. Without a default it must be given; with the default None it may be left out."""
    return dataclasses.field(default=default, metadata={"kind": kind})


def check_setting(block: str, field: dataclasses.Field[Any], value: Any) -> None:
    if value is None and field.default is None:
        return
    is_right, expected = field.metadata["kind"]
    if not is_right(value):
        raise UserError(f"filter {block}: {field.name} is {shown(value)}; expected {expected}")


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def number_in(low: float = -math.inf, high: float = math.inf) -> Kind:
    def is_right(value: Any) -> bool:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return real and math.isfinite(value) and low <= value <= high

    return is_right, "a number" if high == math.inf else f"a number from {low} to {high}"


def whole_number(low: float = -math.inf, high: float = math.inf) -> Kind:
    def is_right(value: Any) -> bool:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool) and low <= int(value) <= high

    until = f" from {low} to {high}" if high < math.inf else f" of at least {low}" if low > -math.inf else ""
    return is_right, f"a whole number{until}"


def path_of(what: str) -> Kind:
    """The setting's name must end in ``_path``: such settings are the inputs in run_meta.json."""
    return lambda value: isinstance(value, str | os.PathLike) and str(value) != "", f"the path of {what}"


def one_of(*known: str) -> Kind:
    return lambda value: isinstance(value, str) and value in known, f"one of {', '.join(known)}"


def list_of(is_item: Callable[[Any], bool], expected: str, least: int = 0) -> Kind:
    return lambda value: isinstance(value, list | tuple) and len(value) >= least and all(map(is_item, value)), expected


NUMBER, FRACTION = number_in(), number_in(0, 1)


# --- the filters -------------------------------------------------------------------------------------------------


@dataclass
class Decision:
    """What a filter does to a dataset of n examples; every array is bool (n,), in the dataset's order."""

    keep: np.ndarray
    removed: Reasons  # each removed example under its first reason only
    missing: np.ndarray  # examples that the filter's file does not list
    thresholds: Thresholds  # the cuts that came from the data


BLOCKS: dict[str, type[Filter]] = {}  # name in a config -> filter


@dataclass(kw_only=True)
class Filter:
    """A filter reads a table (``read``) and names the examples to remove, by reason (``judge``).

    missing: what becomes of an example that the filter's file does not list. By default one that says what to keep
    (``says_what_to_keep``) drops it, for it is not known to be of that kind; one that says what to remove keeps it.
    """

    block: ClassVar[str]
    missing: str | None = setting(one_of("keep", "drop"), None)

    def __init_subclass__(cls, block: str = "", **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if block:
            cls.block = block
            BLOCKS[block] = cls

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_setting(self.block, field, getattr(self, field.name))
        if self.missing is None:
            self.missing = "drop" if self.says_what_to_keep() else "keep"

    def says_what_to_keep(self) -> bool:
        """Whether its settings describe the examples to keep, rather than those to remove."""
        return False

    def decide(self, dataset: datasets.Dataset | Split | JoinedDataset, among: np.ndarray | None = None) -> Decision:
        """Decide on the examples ``among`` (bool (n,), default all); the others are neither kept nor removed."""
        joined = dataset if isinstance(dataset, JoinedDataset) else JoinedDataset(dataset)
        keep = np.ones(len(joined.ids), bool) if among is None else among.copy()
        table = self.read(joined)
        reasons, thresholds = self.judge(table, keep)
        missing = keep & ~table.listed
        if self.missing == "drop":
            reasons = {**reasons, "missing": missing}
        removed = {}
        for reason, mask in reasons.items():
            if (mask & keep).any():
                removed[reason] = mask & keep
                keep = keep & ~mask
        return Decision(keep, removed, missing, thresholds)

    def read(self, joined: JoinedDataset) -> Table:
        raise NotImplementedError

    def judge(self, table: Table, among: np.ndarray) -> tuple[Reasons, Thresholds]:
        """Masks by reason. Only ``among`` counts; examples without a row compare as NaN, so no mask holds them."""
        raise NotImplementedError

    def _needs_one_of(self, *names: str) -> None:
        values = [getattr(self, name) for name in names]
        if all(value is None or isinstance(value, list | tuple) and not value for value in values):
            raise UserError(f"filter {self.block} has nothing to filter by; give {' or '.join(names)}")

    def _needs_order(self, low: str, high: str) -> None:
        a, b = getattr(self, low), getattr(self, high)
        if a is not None and b is not None and a > b:
            raise UserError(f"filter {self.block}: {low} {a:g} is above {high} {b:g}")


@dataclass(kw_only=True)
class _MetricsFilter(Filter):
    # In a config, a block without one reads that of the blocks before it.
    metrics_path: str | Path = setting(path_of("a cartography directory or its cartography_metrics.csv"))

    def read(self, joined: JoinedDataset) -> Table:
        return joined.metrics(self.metrics_path)


@dataclass(kw_only=True)
class AmbiguousQuestionFilter(_MetricsFilter, block="ambiguous"):
    """Keep every easy and hard example and, of the ambiguous, ``top_fraction`` with the highest instability.

    Instability is (1 - confidence) + variability, 0..1.5. Of n ambiguous examples ceil(top_fraction * n) are kept; of
    equal ones the first by id.
    """

    top_fraction: float = setting(FRACTION, 0.33)

    def judge(self, table: Table, among: np.ndarray) -> tuple[Reasons, Thresholds]:
        instability = (1 - table.numbers("confidence")) + table.numbers("variability")
        ambiguous = among & table.is_in_category("ambiguous")
        top, cut = table.lowest(-instability, ambiguous, math.ceil(_exact(self.top_fraction) * int(ambiguous.sum())))
        thresholds = {**table.thresholds, "instability": None if cut is None else -cut}
        return {f"ambiguous, instability not in the top {self.top_fraction}": ambiguous & ~top}, thresholds


@dataclass(kw_only=True)
class CategoryFilter(_MetricsFilter, block="category"):
    """Keep the examples of these categories."""

    categories: list[str] = setting(list_of(lambda item: item in CATEGORIES, f"a list of {', '.join(CATEGORIES)}", 1))

    def says_what_to_keep(self) -> bool:
        return True

    def judge(self, table: Table, among: np.ndarray) -> tuple[Reasons, Thresholds]:
        others = [category for category in CATEGORIES if category not in self.categories]
        return {f"category {other}": table.is_in_category(other) for other in others}, table.thresholds


@dataclass(kw_only=True)
class ConfidenceThresholdFilter(_MetricsFilter, block="confidence"):
    """Keep min_confidence <= confidence <= max_confidence."""

    min_confidence: float | None = setting(FRACTION, None)
    max_confidence: float | None = setting(FRACTION, None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs_one_of("min_confidence", "max_confidence")
        self._needs_order("min_confidence", "max_confidence")

    def says_what_to_keep(self) -> bool:
        return True

    def judge(self, table: Table, among: np.ndarray) -> tuple[Reasons, Thresholds]:
        return _outside("confidence", table.numbers("confidence"), self.min_confidence, self.max_confidence), {}


@dataclass(kw_only=True)
class ClusterFilter(Filter, block="cluster"):
    """Remove the members of ``exclude_clusters`` (-1 is noise) and those whose membership probability is lower than
    ``min_probability`` (noise has 0)."""

    cluster_path: str | Path = setting(path_of("a cluster directory or its cluster_assignments.csv"))
    exclude_clusters: Sequence[int] = setting(list_of(whole_number()[0], "a list of cluster numbers, like [-1, 3]"),
                                              ())
    min_probability: float | None = setting(FRACTION, None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs_one_of("exclude_clusters", "min_probability")

    def read(self, joined: JoinedDataset) -> Table:
        return joined.clusters(self.cluster_path)

    def judge(self, table: Table, among: np.ndarray) -> tuple[Reasons, Thresholds]:
        clusters = table.numbers("cluster")
        known = sorted(int(number) for number in table.whole["cluster"].unique())
        # Without noise there is no cluster -1, and excluding it is still right.
        if absent := sorted(set(self.exclude_clusters) - {-1, *known}):
            logger.warning(f"{table.path} has no cluster {name_a_few(absent, 10)}; it has {known[0]} to {known[-1]}")
        reasons = {f"cluster {number}": clusters == number for number in self.exclude_clusters}
        if self.min_probability is not None:
            reasons |= _outside("cluster_probability", table.numbers("cluster_probability"), self.min_probability)
        return reasons, {}


@dataclass(kw_only=True)
class MetricFilter(_MetricsFilter, block="metric"):
    """Keep min <= metric <= max, or drop ``drop_fraction`` of the examples at one end, "lowest" or "highest".

    ``metric`` is a column of the cartography metrics, of a joint map also ``stability``, ``n_runs``,
    ``confidence_sd`` and ``variability_sd``; never_learned counts as 0 or 1. Of n examples with metrics
    floor(drop_fraction * n) are dropped; of equal ones the first by id.
    """

    metric: str = setting(one_of(*METRIC_COLUMNS, *JOINT_COLUMNS))
    min: float | None = setting(NUMBER, None)
    max: float | None = setting(NUMBER, None)
    drop_fraction: float | None = setting(FRACTION, None)
    drop: str | None = setting(one_of("lowest", "highest"), None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs_one_of("min", "max", "drop_fraction")
        self._needs_order("min", "max")
        if (self.drop_fraction is None) != (self.drop is None):
            raise UserError('filter metric: drop_fraction and drop ("lowest" or "highest") go together; give both')
        if self.drop is not None and (self.min is not None or self.max is not None):
            raise UserError("filter metric: drop_fraction and min or max are two filters; give a list of two blocks")

    def says_what_to_keep(self) -> bool:
        return self.min is not None

    def read(self, joined: JoinedDataset) -> Table:
        table = super().read(joined)
        # An example of one run has no stability and no spread: it counts as one that the file does not know.
        return table.where_known(self.metric) if self.metric in JOINT_COLUMNS else table

    def judge(self, table: Table, among: np.ndarray) -> tuple[Reasons, Thresholds]:
        values = table.numbers(self.metric)
        if self.drop_fraction is None:
            return _outside(self.metric, values, self.min, self.max), {}
        sign = 1 if self.drop == "lowest" else -1
        known = among & table.listed
        dropped, cut = table.lowest(sign * values, known, math.floor(_exact(self.drop_fraction) * int(known.sum())))
        reason = f"{self.metric} in the {self.drop} {self.drop_fraction}"
        return {reason: dropped}, {self.metric: None if cut is None else sign * cut}


@dataclass(kw_only=True)
class RuleFilter(Filter, block="rules"):
    """Remove the examples on which more than ``max_error_score`` error rules fire (default 2), or any of ``rules``.

    With the ``rule_weights`` "measured" the score is in bits of evidence; by default those with ``ERROR_SCORE`` bits
    or more go. Rules 4 and 8 need ``predictions_path`` (eval_predictions.jsonl, its directory, or any JSON Lines with
    ``id`` and ``predicted_answer``). An example without a prediction counts as missing; unless dropped, seven rules
    judge it.
    """

    max_error_score: int | None = setting(whole_number(0, 9), None)
    rule_weights: str | None = setting(one_of(*RULE_WEIGHTS), None)
    rules: Sequence[str] | None = setting(list_of(lambda item: item in RULES, f"a list of {', '.join(RULES)}", 1),
                                          None)
    predictions_path: str | Path | None = setting(path_of("a JSON Lines file with id and predicted_answer"), None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rules is None:
            if self.max_error_score is None and self.rule_weights != "measured":
                self.max_error_score = ERROR_SCORE - 1
            return
        if self.max_error_score is not None or self.rule_weights is not None:
            given = "rule_weights" if self.max_error_score is None else "max_error_score"
            raise UserError(f"filter rules: {given} goes by how many of all rules fire, rules by those that it "
                            "names; give a list of two blocks to filter by both")
        compared = [rule for rule in self.rules if rule in RULES_NEEDING_PREDICTIONS]
        if bool(compared) != (self.predictions_path is not None):
            raise UserError(f"filter rules: {compared[0]} compares the answer with a prediction; give predictions_path"
                            if compared else "filter rules: predictions_path is for "
                            f"{' and '.join(RULES_NEEDING_PREDICTIONS)}, which rules does not name; leave it out")

    def read(self, joined: JoinedDataset) -> Table:
        return joined.error_rules(self.predictions_path, self.rule_weights or "equal")

    def judge(self, table: Table, among: np.ndarray) -> tuple[Reasons, Thresholds]:
        if self.rules is None:
            if self.max_error_score is None:
                return {f"at least {ERROR_SCORE} bits of evidence": table.whole["is_dataset_error"].to_numpy()}, {}
            score = table.numbers("dataset_error_score")
            return _outside("dataset_error_score", score, high=self.max_error_score), {}
        # Rules 4 and 8 are missing where there is no prediction.
        return {rule: table.whole[rule].fillna(False).to_numpy(dtype=bool) for rule in self.rules}, {}


@dataclass(kw_only=True)
class RandomFilter(Filter, block="random"):
    """Keep ``num_examples`` drawn at random; they depend on ``seed`` and the number of examples alone.

    In a config it takes no settings: it draws as many as the other blocks would keep, in their stead.
    """

    num_examples: int = setting(whole_number(0), 0)
    seed: int = setting(whole_number(), 42)

    def read(self, joined: JoinedDataset) -> Table:
        return joined.table({})

    def judge(self, table: Table, among: np.ndarray) -> tuple[Reasons, Thresholds]:
        drawn = np.random.default_rng(self.seed).permutation(np.flatnonzero(among))[: self.num_examples]
        rest = among.copy()
        rest[drawn] = False
        return {"not drawn": rest}, {}


def _outside(name: str, values: np.ndarray, low: float | None = None, high: float | None = None) -> Reasons:
    reasons = {}
    if low is not None:
        reasons[f"{name} below {low}"] = values < low
    if high is not None:
        reasons[f"{name} above {high}"] = values > high
    return reasons


def _exact(fraction: float) -> Fraction:
    """0.07 as 7/100, so that 0.07 * 100 is 7 and not 7.000000000000001, whose ceiling is 8."""
    return Fraction(str(float(fraction)))
