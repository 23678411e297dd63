"""Configs of filters: read, checked, and applied to a dataset.

    from dataset_filters import apply_filters
    filtered = apply_filters(dataset, {
        "ambiguous": {"metrics_path": "./cartography_output", "top_fraction": 0.33},
        "cluster": {"cluster_path": "./cluster_output", "exclude_clusters": [-1], "min_probability": 0.7},
    })

The keys of the config are blocks; their order is the order of the filters. Every block takes ``enabled`` (default
true) and ``missing``: what becomes of an example that the filter's file does not list, ``keep`` or ``drop``. By
default a block that says what to keep (category, confidence, metric with a minimum) drops it, one that says what to
remove (ambiguous, cluster, rules, metric without) keeps it. A list of settings as a block's value is several filters
of one kind. The settings of a block are the fields of its class in filters.py.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.analysis.filters import (
    BLOCKS,
    Filter,
    JoinedDataset,
    MetricFilter,
    RandomFilter,
    check_setting,
    number_in,
    shown,
)
from datamap.cartography.maps import THRESHOLDS_FILE
from datamap.core.configs import read_mapping
from datamap.core.errors import UserError
from datamap.core.splits import Split

if TYPE_CHECKING:
    import datasets

MISSING = ("keep", "drop")
MISSING_HELP = ("what becomes of examples that a filter's file does not list, where its block does not say (default: "
                "filters that say what to keep drop them, those that say what to remove keep them)")

logger = logging.getLogger(__name__)


# --- the config --------------------------------------------------------------------------------------------------


def reads_metrics(config: Mapping[str, Any], directory: str | Path) -> bool:
    """Whether a filter reads the cartography in ``directory``, which then must not be written in the same run."""
    place = Path(directory).resolve()
    paths = filter_inputs(config, is_selection=True).values()
    return any(Path(path).resolve() in (place, *place.glob("*")) for path in paths)


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
        raise UserError(f"expected filter blocks by name ({', '.join(BLOCKS)}), found {shown(config)}")
    filters: list[Filter] = []
    metrics_path = None
    for block, value in config.items():
        if block not in BLOCKS:
            raise UserError(f"unknown filter {block!r}{_near(block, BLOCKS)}; there is {', '.join(BLOCKS)}")
        for settings in value if isinstance(value, list) and value else [value]:
            fields = {field.name: field for field in dataclasses.fields(BLOCKS[block])}
            _check_settings(block, fields, settings)
            chosen = {name: setting for name, setting in settings.items() if name != "enabled" and setting is not None}
            if "metrics_path" in fields:
                metrics_path = chosen.setdefault("metrics_path", metrics_path)
            if not settings.get("enabled", True):
                continue
            for name, field in fields.items():
                if field.default is dataclasses.MISSING and chosen.get(name) is None:
                    raise UserError(f"filter {block} needs {name}: {field.metadata['kind'][1]}")
            filters.append(BLOCKS[block](**chosen))
    randoms = sum(isinstance(each, RandomFilter) for each in filters)
    if randoms > 1:
        raise UserError("filter random is there twice; it is one draw, as large as what the other blocks keep")
    if randoms and len(filters) == 1 and not is_selection:
        raise UserError("filter random draws as many examples as the other blocks would keep; put them beside it")
    return filters


def with_missing(config: Mapping[str, Any], missing: str | None) -> dict[str, Any]:
    """A valid config with ``missing`` in every block that does not say itself what becomes of unlisted examples."""
    if missing is None:
        return dict(config)
    blocks: dict[str, Any] = {}
    for name, value in config.items():
        settings = [{**each, "missing": each.get("missing") or missing}
                    for each in (value if isinstance(value, list) else [value])]
        blocks[name] = value if name == "random" else settings if isinstance(value, list) else settings[0]
    return blocks


def filter_inputs(config: Mapping[str, Any], is_selection: bool = False) -> dict[str, str]:
    """The artifacts that the filters of a config read, for run_meta.json and for what tells one run from another."""
    inputs = {
        f"{place}.{each.block}.{name}": str(value)
        for place, each in enumerate(validate_config(config, is_selection))
        for name, value in vars(each).items()
        if name.endswith("_path") and value is not None
    }
    for name, path in list(inputs.items()):
        cuts = Path(path).with_name(THRESHOLDS_FILE)
        if name.endswith(".metrics_path") and Path(path).is_file() and cuts.exists():  # of a directory they are a part
            inputs[name.replace("metrics_path", "thresholds")] = str(cuts)
    return inputs


def _check_settings(block: str, fields: Mapping[str, dataclasses.Field[Any]], settings: Any) -> None:
    if not isinstance(settings, Mapping):
        raise UserError(f'filter {block}: expected its settings, like {{"enabled": true}}, found {shown(settings)}')
    known = ["enabled"] if block == "random" else ["enabled", *fields]
    for name, value in settings.items():
        if name not in known:
            near = _near(name, known)
            raise UserError(f"filter {block}: unknown setting {name!r}{near}; it takes {', '.join(known)}")
        if name in fields:
            check_setting(block, fields[name], value)
        elif not isinstance(value, bool):
            raise UserError(f"filter {block}: enabled is {shown(value)}; expected true or false")


def _near(name: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


# --- applying it -------------------------------------------------------------------------------------------------


def apply_filters(
    dataset: datasets.Dataset | Split, filter_config: Mapping[str, Any], seed: int = 42,
    max_drop_percentage: float | None = None, return_report: bool = False, among: np.ndarray | None = None,
) -> Any:
    """The examples of ``dataset`` that the blocks of ``filter_config`` keep, in their order; texts are not copied.

    With a ``Split`` the files are checked to be about this very dataset, with a plain ``datasets.Dataset`` to
    share ids with it. ``seed`` is that of the block ``random``, which keeps a random sample of the size that the
    other blocks would keep instead of applying them. ``among``: (n,) bool, the examples that were chosen before; the
    filters leave the others out, and ``random`` draws from all.

    Raises UserError when the config is wrong, a file cannot be used, nothing is left, or more than
    ``max_drop_percentage`` (0..100, None: no limit) would be dropped.

    With ``return_report`` returns ``(filtered, report)``; the report can be written as JSON:

    - ``before``, ``after``, ``seed``
    - ``filters``: in order, each with ``filter``, ``settings``, ``before``, ``after``, ``missing_examples`` (how many
      its file does not list; kept or dropped as its setting ``missing`` says), ``thresholds`` (cuts that came from
      the data), ``removed`` ({reason: [ids]})
    - ``size_matched_to``: with ``random``, the same records of the blocks in whose stead it drew; else None
    """
    if max_drop_percentage is not None and not number_in(0, 100)[0](max_drop_percentage):
        raise UserError(f"max_drop_percentage is {shown(max_drop_percentage)}; expected a number from 0 to 100")
    filters = validate_config(filter_config, is_selection=among is not None)
    joined = JoinedDataset(dataset, {each.metric for each in filters if isinstance(each, MetricFilter)})
    is_control = any(isinstance(each, RandomFilter) for each in filters)
    keep, records = _apply([each for each in filters if not isinstance(each, RandomFilter)], joined, among)
    size_matched_to = None
    if is_control:
        size_matched_to = records
        keep, records = _apply([RandomFilter(num_examples=int(keep.sum()), seed=seed)], joined)
    before, after = len(joined.ids), int(keep.sum())
    for record in size_matched_to or records:
        absent = record["missing_examples"]
        what = "kept" if record["settings"]["missing"] == "keep" else "dropped"
        unlisted = f" ({absent:,} that its file does not list are {what})" if absent else ""
        logger.info(f"filter {record['filter']}: {record['before']:,} -> {record['after']:,} examples{unlisted}")
    if is_control:
        logger.info(f"filter random: instead, {after:,} of {before:,} examples drawn with seed {seed}")
    if max_drop_percentage is not None and 100 * (before - after) > max_drop_percentage * before:
        raise UserError(f"the filters drop {before - after:,} of {before:,} examples "
                        f"({100 * (before - after) / before:.1f} %: {_drops(records)}), more than max_drop_percentage "
                        f"{max_drop_percentage:g}; loosen them or raise it")
    filtered = joined.data.select(np.flatnonzero(keep))
    report = {"before": before, "after": after, "seed": seed, "filters": records, "size_matched_to": size_matched_to}
    return (filtered, report) if return_report else filtered


def _apply(
    filters: Iterable[Filter], joined: JoinedDataset, among: np.ndarray | None = None
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    keep = np.ones(len(joined.ids), bool) if among is None else among.copy()
    records: list[dict[str, Any]] = []
    for each in filters:
        decision = each.decide(joined, keep)
        records.append({
            "filter": each.block,
            "settings": {name: str(x) if isinstance(x, os.PathLike) else x for name, x in vars(each).items()},
            "before": int(keep.sum()),
            "after": int(decision.keep.sum()),
            "missing_examples": int(decision.missing.sum()),
            "thresholds": decision.thresholds,
            "removed": {reason: joined.index[mask].tolist() for reason, mask in decision.removed.items()},
        })
        keep = decision.keep
        if not keep.any():
            raise UserError(f"the filters leave none of {len(keep):,} examples ({_drops(records)}); loosen them")
    return keep, records


def _drops(records: Iterable[Mapping[str, Any]]) -> str:
    """``ambiguous drops 3, category drops 10, 4 of which its file does not list``"""
    return ", ".join(
        f"{record['filter']} drops {record['before'] - record['after']:,}"
        + (f", {len(unlisted):,} of which its file does not list" if (unlisted := record["removed"].get("missing"))
           else "")
        for record in records
    )
