"""Which examples to keep, and why: filters over cartography metrics, clusters and error rules.

    from datamap.analysis.filters import apply_filters
    filtered = apply_filters(dataset, {
        "ambiguous": {"metrics_path": "./cartography_output", "top_fraction": 0.33},
        "cluster": {"cluster_path": "./cluster_output", "exclude_clusters": [-1], "min_probability": 0.7},
    })

The keys of the config are blocks; their order is the order of the filters. Every block takes ``enabled`` (default
true) and ``missing``: what becomes of an example that the filter's file does not list, ``keep`` (default) or
``drop``. A list of settings as a block's value is several filters of one kind. The settings of a block are the fields
of its class below.

What depends on values (categories, minima, maxima) is decided with the whole metrics file, so that every stage
agrees on it. What is a fraction (``top_fraction``, ``drop_fraction``) is a fraction of the examples that the filters
before it left. Where it comes to no whole number of examples, one more is kept.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from datamap.cartography.metrics import (
    CATEGORIES,
    METRIC_COLUMNS,
    categorize_examples,
    category_thresholds,
    load_cartography_metrics,
)
from datamap.core.artifacts import artifact_file, check_same_dataset
from datamap.core.configs import read_mapping
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import read_jsonl, read_table
from datamap.core.splits import Split

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


# --- what filters read -------------------------------------------------------------------------------------------


@dataclass
class Table:
    """A table with an id per row, aligned with a dataset of n examples."""

    path: str
    whole: pd.DataFrame  # indexed by id: all of the file, also ids that the dataset lacks
    row_of: np.ndarray  # int (n,): the row of each example, -1 where it has none
    listed: np.ndarray  # bool (n,): False counts as missing
    ids: list[str]  # of the dataset

    def numbers(self, column: str) -> np.ndarray:
        """float64 (n,), NaN where an example has no row; UserError unless every value in the file is a number."""
        if column not in self.whole:
            raise UserError(f"{self.path} has no column {column!r}; it has {', '.join(map(str, self.whole.columns))}")
        values = pd.to_numeric(self.whole[column], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        bad = ~np.isfinite(values)
        if bad.any():
            raise UserError(
                f"{self.path}: {column} of {bad.sum():,} examples ({name_a_few(self.whole.index[bad])}) is missing or "
                "no finite number; filter by another column, or make the file again"
            )
        return np.where(self.row_of >= 0, values[self.row_of], np.nan)

    def is_in_category(self, category: str) -> np.ndarray:
        """bool (n,), False where an example has no row."""
        return (self.whole["category"] == category).to_numpy(dtype=bool)[self.row_of] & (self.row_of >= 0)

    def lowest(self, values: np.ndarray, among: np.ndarray, k: int) -> tuple[np.ndarray, float | None]:
        """Mask of the k lowest ``values`` of the examples ``among``, ties in the order of ids; and the k-th value."""
        chosen = np.zeros(len(values), bool)
        if k == 0:
            return chosen, None
        positions = np.flatnonzero(among)
        candidates = values[positions]
        cut = np.partition(candidates, k - 1)[k - 1]
        chosen[positions[candidates < cut]] = True
        tied = positions[candidates == cut]  # sorting ids is slow, so only those where it decides
        chosen[sorted(tied, key=lambda position: self.ids[position])[: k - int(chosen.sum())]] = True
        return chosen, float(cut)


class Source:
    """The dataset to be filtered, and the files about it, each read once."""

    def __init__(self, dataset: datasets.Dataset | Split):
        self.split = dataset if isinstance(dataset, Split) else None
        self.data = dataset.data if isinstance(dataset, Split) else dataset
        if "id" not in self.data.column_names:
            raise UserError(f"filters join on a column 'id'; this dataset has {', '.join(self.data.column_names)}")
        self.ids = [str(value) for value in self.data["id"][:]]
        self.index = pd.Index(self.ids, dtype=object)
        if not self.ids:
            raise UserError("the dataset to be filtered holds no examples")
        self._tables: dict[str, Table] = {}

    def metrics(self, path: str | Path) -> Table:
        """Cartography metrics and ``category``, whose thresholds come from the whole file."""
        if str(path) not in self._tables:
            self._tables[str(path)] = self._align(path, categorize_examples(load_cartography_metrics(path)))
        return self._tables[str(path)]

    def clusters(self, path: str | Path) -> Table:
        if str(path) not in self._tables:
            file = artifact_file(path, "cluster_assignments.csv", "cluster_analysis.py")
            frame = read_table(file, columns=("id", "cluster", "cluster_probability"))
            self._tables[str(path)] = self._align(path, frame.set_index("id"))
        return self._tables[str(path)]

    def error_rules(self, predictions_path: str | Path | None) -> Table:
        """The error rules, over the whole dataset; with predictions, examples without one count as missing."""
        from datamap.analysis.error_rules import flag_errors

        needed = {"question", "context", "answers"}
        if lacking := needed - set(self.data.column_names):
            raise UserError(
                f"filter rules: the dataset has no column {name_a_few(sorted(lacking))}; the error rules are for "
                "extractive question answering"
            )
        answers = [(answer["text"] or [""])[0] for answer in self.data["answers"][:]]
        predictions, predicted = None, np.ones(len(self.ids), bool)
        if predictions_path is not None:
            known = self._predictions(predictions_path)
            predictions = [known.get(example_id) for example_id in self.ids]
            predicted = np.array([text is not None for text in predictions])
        flags = flag_errors(self.data["question"][:], self.data["context"][:], answers, predictions)
        flags.index = self.index
        return Table("the dataset", flags, np.arange(len(self.ids)), predicted, self.ids)

    def no_table(self) -> Table:
        n = len(self.ids)
        return Table("", pd.DataFrame(index=self.index), np.arange(n), np.ones(n, bool), self.ids)

    def _predictions(self, path: str | Path) -> dict[str, str | None]:
        file = artifact_file(path, "eval_predictions.jsonl", "run.py --do_eval --eval_split train")
        rows = read_jsonl(file, columns=("id", "predicted_answer"))
        texts = {str(row["id"]): row["predicted_answer"] for row in rows}
        if len(texts) < len(rows):
            raise UserError(f"{file}: {len(rows) - len(texts):,} ids occur more than once; one prediction per example")
        wrong = [example_id for example_id, text in texts.items() if not isinstance(text, str | None)]
        if wrong:
            raise UserError(f"{file}: predicted_answer of {name_a_few(wrong)} is not a text")
        self._check(path, pd.Index(texts, dtype=object))
        return texts

    def _align(self, path: str | Path, whole: pd.DataFrame) -> Table:
        row_of = self._check(path, whole.index)
        return Table(str(path), whole, row_of, row_of >= 0, self.ids)

    def _check(self, path: str | Path, ids: pd.Index) -> np.ndarray:
        """Where each example stands in ``ids``; UserError when the file is about another dataset."""
        row_of = ids.get_indexer(self.index)
        if self.split is not None:
            check_same_dataset(path, ids, self.split)
        elif not (row_of >= 0).any():
            raise UserError(
                f"{path} shares no ids with the dataset (it has {name_a_few(ids[:3])}, the dataset "
                f"{name_a_few(self.ids[:3])}); give the file made from this dataset"
            )
        return row_of


# --- the filters -------------------------------------------------------------------------------------------------

Reasons = dict[str, np.ndarray]  # reason for removal -> bool (n,)
Thresholds = dict[str, float | None]


@dataclass
class Decision:
    """What a filter does to a dataset of n examples; every array is bool (n,), in the dataset's order."""

    keep: np.ndarray
    removed: Reasons  # each removed example under its first reason only
    missing: np.ndarray  # examples that the filter's file does not list
    thresholds: Thresholds  # the cuts that came from the data


@dataclass(kw_only=True)
class Filter:
    """A filter reads a table (``read``) and names the examples to remove, by reason (``judge``)."""

    block: ClassVar[str]
    missing: str = "keep"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_setting(self.block, field, getattr(self, field.name))

    def decide(self, dataset: datasets.Dataset | Split | Source, among: np.ndarray | None = None) -> Decision:
        """Decide on the examples ``among`` (bool (n,), default all); the others are neither kept nor removed."""
        source = dataset if isinstance(dataset, Source) else Source(dataset)
        keep = np.ones(len(source.ids), bool) if among is None else among.copy()
        table = self.read(source)
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

    def read(self, source: Source) -> Table:
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
    metrics_path: str | Path  # in a config, a block without one reads that of the blocks before it

    def read(self, source: Source) -> Table:
        return source.metrics(self.metrics_path)


def _category_cuts(table: Table) -> Thresholds:
    return dict(zip(("confidence", "variability"), category_thresholds(table.whole), strict=True))


@dataclass(kw_only=True)
class AmbiguousQuestionFilter(_MetricsFilter):
    """Keep every easy and hard example and, of the ambiguous, ``top_fraction`` with the highest instability.

    Instability is (1 - confidence) + variability, 0..1.5. Of n ambiguous examples ceil(top_fraction * n) are kept; of
    equal ones the first by id.
    """

    block: ClassVar[str] = "ambiguous"
    top_fraction: float = 0.33

    def judge(self, table: Table, among: np.ndarray) -> tuple[Reasons, Thresholds]:
        instability = (1 - table.numbers("confidence")) + table.numbers("variability")
        ambiguous = among & table.is_in_category("ambiguous")
        top, cut = table.lowest(-instability, ambiguous, math.ceil(_exact(self.top_fraction) * int(ambiguous.sum())))
        thresholds = {**_category_cuts(table), "instability": None if cut is None else -cut}
        return {f"ambiguous, instability not in the top {self.top_fraction}": ambiguous & ~top}, thresholds


@dataclass(kw_only=True)
class CategoryFilter(_MetricsFilter):
    """Keep the examples of these categories."""

    block: ClassVar[str] = "category"
    categories: list[str]

    def judge(self, table: Table, among: np.ndarray) -> tuple[Reasons, Thresholds]:
        others = [category for category in CATEGORIES if category not in self.categories]
        return {f"category {other}": table.is_in_category(other) for other in others}, _category_cuts(table)


@dataclass(kw_only=True)
class ConfidenceThresholdFilter(_MetricsFilter):
    """Keep min_confidence <= confidence <= max_confidence."""

    block: ClassVar[str] = "confidence"
    min_confidence: float | None = None
    max_confidence: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs_one_of("min_confidence", "max_confidence")
        self._needs_order("min_confidence", "max_confidence")

    def judge(self, table: Table, among: np.ndarray) -> tuple[Reasons, Thresholds]:
        return _outside("confidence", table.numbers("confidence"), self.min_confidence, self.max_confidence), {}


@dataclass(kw_only=True)
class MetricFilter(_MetricsFilter):
    """Keep min <= metric <= max, or drop ``drop_fraction`` of the examples at one end, "lowest" or "highest".

    ``metric`` is a column of the cartography metrics; never_learned counts as 0 or 1. Of n examples with metrics
    floor(drop_fraction * n) are dropped; of equal ones the first by id.
    """

    block: ClassVar[str] = "metric"
    metric: str
    min: float | None = None
    max: float | None = None
    drop_fraction: float | None = None
    drop: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs_one_of("min", "max", "drop_fraction")
        self._needs_order("min", "max")
        if (self.drop_fraction is None) != (self.drop is None):
            raise UserError('filter metric: drop_fraction and drop ("lowest" or "highest") go together; give both')
        if self.drop is not None and (self.min is not None or self.max is not None):
            raise UserError("filter metric: drop_fraction and min or max are two filters; give a list of two blocks")

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
class ClusterFilter(Filter):
    """Remove the members of ``exclude_clusters`` (-1 is noise) and those whose membership probability is lower than
    ``min_probability`` (noise has 0)."""

    block: ClassVar[str] = "cluster"
    cluster_path: str | Path
    exclude_clusters: list[int] = dataclasses.field(default_factory=list)
    min_probability: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._needs_one_of("exclude_clusters", "min_probability")

    def read(self, source: Source) -> Table:
        return source.clusters(self.cluster_path)

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
class RuleFilter(Filter):
    """Remove the examples on which more than ``max_error_score`` error rules fire.

    Rules 4 and 8 need ``predictions_path`` (eval_predictions.jsonl, its directory, or any JSON Lines with ``id`` and
    ``predicted_answer``). An example without a prediction counts as missing; unless dropped, seven rules judge it.
    """

    block: ClassVar[str] = "rules"
    max_error_score: int = 2
    predictions_path: str | Path | None = None

    def read(self, source: Source) -> Table:
        return source.error_rules(self.predictions_path)

    def judge(self, table: Table, among: np.ndarray) -> tuple[Reasons, Thresholds]:
        return _outside("dataset_error_score", table.numbers("dataset_error_score"), high=self.max_error_score), {}


@dataclass(kw_only=True)
class RandomFilter(Filter):
    """Keep ``num_examples`` drawn at random; they depend on ``seed`` and the number of examples alone.

    In a config it takes no settings: it draws as many as the other blocks would keep, in their stead.
    """

    block: ClassVar[str] = "random"
    num_examples: int = 0
    seed: int = 42

    def read(self, source: Source) -> Table:
        return source.no_table()

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


_KINDS: tuple[type[Filter], ...] = (
    AmbiguousQuestionFilter, CategoryFilter, ConfidenceThresholdFilter, ClusterFilter, MetricFilter, RuleFilter,
    RandomFilter,
)
BLOCKS = {kind.block: kind for kind in _KINDS}


# --- the config --------------------------------------------------------------------------------------------------


def reads_metrics(config: Mapping[str, Any], directory: str | Path) -> bool:
    """Whether a filter reads the cartography in ``directory``, which then must not be written in the same run."""
    place = Path(directory).resolve()
    several = (settings if isinstance(settings, list) else [settings] for settings in config.values())
    paths = [block.get("metrics_path") for blocks in several for block in blocks]
    return any(path is not None and Path(path).resolve() in (place, *place.glob("*")) for path in paths)


def load_filter_config(path: str | Path) -> dict[str, Any]:
    """The filter config in a JSON file, checked as by ``validate_config``."""
    config = read_mapping(path)
    try:
        validate_config(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config


def validate_config(config: Mapping[str, Any], is_selection: bool = False) -> list[Filter]:
    """The enabled filters of a config, in its order; UserError for whatever can be wrong without reading a file.

    is_selection: the examples were chosen before, so that the block ``random`` may stand alone.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"expected filter blocks by name ({', '.join(BLOCKS)}), found {_shown(config)}")
    filters: list[Filter] = []
    metrics_path = None
    for block, value in config.items():
        if block not in BLOCKS:
            raise UserError(f"unknown filter {block!r}{_near(block, BLOCKS)}; there is {', '.join(BLOCKS)}")
        for settings in value if isinstance(value, list) and value else [value]:
            _check_settings(block, settings)
            fields = {field.name for field in dataclasses.fields(BLOCKS[block])}
            chosen = {name: setting for name, setting in settings.items() if name != "enabled" and setting is not None}
            if "metrics_path" in fields:
                metrics_path = chosen.setdefault("metrics_path", metrics_path)
            if not settings.get("enabled", True):
                continue
            for field in dataclasses.fields(BLOCKS[block]):
                if _is_required(field) and chosen.get(field.name) is None:
                    raise UserError(f"filter {block} needs {field.name}: {SETTINGS[field.name][1]}")
            filters.append(BLOCKS[block](**chosen))
    randoms = sum(isinstance(each, RandomFilter) for each in filters)
    if randoms > 1:
        raise UserError("filter random is there twice; it is one draw, as large as what the other blocks keep")
    if randoms and len(filters) == 1 and not is_selection:
        raise UserError("filter random draws as many examples as the other blocks would keep; put them beside it")
    return filters


def _check_settings(block: str, settings: Any) -> None:
    if not isinstance(settings, Mapping):
        raise UserError(f'filter {block}: expected its settings, like {{"enabled": true}}, found {_shown(settings)}')
    fields = {field.name: field for field in dataclasses.fields(BLOCKS[block])}
    known = ["enabled"] if block == "random" else ["enabled", *fields]
    for name, value in settings.items():
        if name not in known:
            near = _near(name, known)
            raise UserError(f"filter {block}: unknown setting {name!r}{near}; it takes {', '.join(known)}")
        if name in fields:
            _check_setting(block, fields[name], value)
        elif not isinstance(value, bool):
            raise UserError(f"filter {block}: enabled is {_shown(value)}; expected true or false")


def _check_setting(block: str, field: dataclasses.Field[Any], value: Any) -> None:
    if value is None and field.default is None:
        return
    is_right, expected = SETTINGS[field.name]
    if not is_right(value):
        raise UserError(f"filter {block}: {field.name} is {_shown(value)}; expected {expected}")


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value) and low <= value <= high


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_list(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(is_item, value))


def _path_of(what: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, str | os.PathLike) and str(value) != "", f"the path of {what}"


def _one_of(*known: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, str) and value in known, f"one of {', '.join(known)}"


_NUMBER = (_is_number, "a number")
_FRACTION = (lambda value: _is_number(value, 0, 1), "a number from 0 to 1")

# Setting -> (what is right, its description). A setting means the same in every block.
SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "metrics_path": _path_of("a cartography directory or its cartography_metrics.csv"),
    "cluster_path": _path_of("a cluster directory or its cluster_assignments.csv"),
    "predictions_path": _path_of("a JSON Lines file with id and predicted_answer"),
    "top_fraction": _FRACTION,
    "drop_fraction": _FRACTION,
    "min_probability": _FRACTION,
    "min_confidence": _FRACTION,
    "max_confidence": _FRACTION,
    "min": _NUMBER,
    "max": _NUMBER,
    "max_error_score": (lambda value: _is_whole(value) and 0 <= value <= 9, "a whole number from 0 to 9"),
    "categories": (
        lambda value: bool(value) and _is_list(value, lambda item: item in CATEGORIES),
        f"a list of {', '.join(CATEGORIES)}",
    ),
    "exclude_clusters": (lambda value: _is_list(value, _is_whole), "a list of cluster numbers, like [-1, 3]"),
    "metric": _one_of(*METRIC_COLUMNS),
    "drop": _one_of("lowest", "highest"),
    "missing": _one_of("keep", "drop"),
    "num_examples": (lambda value: _is_whole(value) and value >= 0, "a whole number of at least 0"),
    "seed": (_is_whole, "a whole number"),
}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _near(name: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


# --- applying them -----------------------------------------------------------------------------------------------


def apply_filters(
    dataset: datasets.Dataset | Split,
    filter_config: Mapping[str, Any],
    seed: int = 42,
    max_drop_percentage: float | None = None,
    return_report: bool = False,
    among: np.ndarray | None = None,
) -> Any:
    """The examples of ``dataset`` that the blocks of ``filter_config`` keep, in their order; texts are not copied.

    With a ``helpers.Split`` the files are checked to be about this very dataset, with a plain ``datasets.Dataset`` to
    share ids with it. ``seed`` is that of the block ``random``, which keeps a random sample of the size that the
    other blocks would keep instead of applying them. ``among``: (n,) bool, the examples that were chosen before; the
    filters leave the others out, and ``random`` draws from all.

    Raises UserError when the config is wrong, a file cannot be used, nothing is left, or more than
    ``max_drop_percentage`` (0..100, None: no limit) would be dropped.

    With ``return_report`` returns ``(filtered, report)``; the report can be written as JSON:

    - ``before``, ``after``, ``seed``
    - ``filters``: in order, each with ``filter``, ``settings``, ``before``, ``after``, ``missing_examples`` (how many
      its file does not list), ``thresholds`` (cuts that came from the data), ``removed`` ({reason: [ids]})
    - ``size_matched_to``: with ``random``, the same records of the blocks in whose stead it drew; else None
    """
    if max_drop_percentage is not None and not _is_number(max_drop_percentage, 0, 100):
        raise UserError(f"max_drop_percentage is {_shown(max_drop_percentage)}; expected a number from 0 to 100")
    filters = validate_config(filter_config, is_selection=among is not None)
    source = Source(dataset)
    is_control = any(isinstance(each, RandomFilter) for each in filters)
    keep, records = _apply([each for each in filters if not isinstance(each, RandomFilter)], source, among)
    size_matched_to = None
    if is_control:
        size_matched_to = records
        keep, records = _apply([RandomFilter(num_examples=int(keep.sum()), seed=seed)], source)
    before, after = len(source.ids), int(keep.sum())
    for record in size_matched_to or records:
        logger.info(
            f"filter {record['filter']}: {record['before']:,} -> {record['after']:,} examples "
            f"({record['missing_examples']:,} not in its file; missing: {record['settings']['missing']})"
        )
    if is_control:
        logger.info(f"filter random: instead, {after:,} of {before:,} examples drawn with seed {seed}")
    if max_drop_percentage is not None and 100 * (before - after) > max_drop_percentage * before:
        raise UserError(
            f"the filters drop {before - after:,} of {before:,} examples ({100 * (before - after) / before:.1f} %: "
            f"{_drops(records)}), more than max_drop_percentage {max_drop_percentage:g}; loosen them or raise it"
        )
    filtered = source.data.select(np.flatnonzero(keep))
    if not return_report:
        return filtered
    report = {"before": before, "after": after, "seed": seed, "filters": records, "size_matched_to": size_matched_to}
    return filtered, report


def _apply(
    filters: Iterable[Filter], source: Source, among: np.ndarray | None = None
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    keep = np.ones(len(source.ids), bool) if among is None else among.copy()
    records: list[dict[str, Any]] = []
    for each in filters:
        decision = each.decide(source, keep)
        settings = dataclasses.asdict(each)
        records.append(
            {
                "filter": each.block,
                "settings": {name: str(x) if isinstance(x, os.PathLike) else x for name, x in settings.items()},
                "before": int(keep.sum()),
                "after": int(decision.keep.sum()),
                "missing_examples": int(decision.missing.sum()),
                "thresholds": decision.thresholds,
                "removed": {reason: source.index[mask].tolist() for reason, mask in decision.removed.items()},
            }
        )
        keep = decision.keep
        if not keep.any():
            raise UserError(f"the filters leave none of {len(source.ids):,} examples ({_drops(records)}); loosen them")
    return keep, records


def _drops(records: Iterable[Mapping[str, Any]]) -> str:
    """``ambiguous drops 3, cluster drops 10``"""
    return ", ".join(f"{record['filter']} drops {record['before'] - record['after']:,}" for record in records)
