"""What the page shows of several runs: how stable the joint map is, and where examples lie in a map it is compared
with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.cartography.categories import CATEGORIES
from datamap.cartography.compare import COMPARED_FILE, MOVED_FILE, load_moved, names_apart
from datamap.cartography.joint import JOINT_FILE
from datamap.core.artifacts import artifact_file, check_same_dataset, load_meta
from datamap.core.files import read_json
from datamap.core.splits import Split
from datamap.report.examples import factor, number

if TYPE_CHECKING:
    import pandas as pd

MOST_ARROWS = 60
# Columns of a joint map that one can colour, filter and sort by.
JOINT_LABELS = {"stability": "stability over runs (share of pairs that agree on the category)",
                "confidence_sd": "confidence, SD over runs", "variability_sd": "variability, SD over runs",
                "n_runs": "runs that know it"}

logger = logging.getLogger(__name__)


def joint_columns(metrics: pd.DataFrame | None, rows: np.ndarray) -> list[dict[str, Any]]:
    """Of a joint map, on the rows of the page; none of another."""
    if metrics is None or "stability" not in metrics:
        return []
    return [number(name, label, metrics[name].to_numpy(dtype=float)[rows], "map")
            for name, label in JOINT_LABELS.items() if name in metrics and metrics[name].notna().any()]


def joint_content(cartography_dir: str | Path, metrics: pd.DataFrame) -> dict[str, Any] | None:
    """``joint_map.json`` of a joint map without the places of its runs; None of another."""
    if "n_runs" not in metrics:
        return None
    directory = Path(cartography_dir) if Path(cartography_dir).is_dir() else Path(cartography_dir).parent
    if not (directory / JOINT_FILE).exists():
        logger.warning(f"{cartography_dir} is of several runs, but {JOINT_FILE} is not there: the page does not say "
                       "how far they agree; dataset_cartography.py writes it with the map")
        return None
    found = read_json(artifact_file(directory, JOINT_FILE, "dataset_cartography.py"))
    return {**found, "runs": [{"seed": run["seed"], "model": run["model"]} for run in found["runs"]]}


def compared_content(
    comparison_dir: str | Path, split: Split, rows: np.ndarray, confidence: pd.Series
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the third picture needs beside its columns, and these: where the examples of the page lie in the other map,
    their category there, and how far they moved. confidence: in the map of the page, by id; where that is the second
    of the two, the other is the first. arrows: of what moved farthest, beyond noise where that is known, the place on
    the page and where it is in the map that is not the other."""
    moved = load_moved(comparison_dir)
    known = [each["fingerprint"] for each in (load_meta(comparison_dir) or {}).get("datasets", [])]
    if split.fingerprint not in known:
        moved = moved.drop(list(check_same_dataset(comparison_dir, moved.index, split)))
    record = read_json(artifact_file(comparison_dir, COMPARED_FILE, "dataset_cartography.py --compare"))
    ids = [split.ids[row] for row in rows.tolist()]
    here = moved.reindex(ids)
    place = {example: at for at, example in enumerate(ids)}
    beyond = moved["beyond_noise"]
    farthest = moved.index[beyond > 0] if beyond.notna().any() else moved.index[moved["shift"] > 0]
    names = names_apart([each["path"] for each in record["maps"]])
    cuts = [each["cuts"] for each in record["maps"]]
    near = [np.isclose(moved[f"confidence_{which}"], confidence.reindex(moved.index)).mean() for which in "ab"]
    here_is, other = "ba" if near[1] > near[0] else "ab"
    if other == "a":
        names, cuts = names[::-1], cuts[::-1]
    columns = [
        number("compared_confidence", f"confidence in {names[1]}", here[f"confidence_{other}"], "compared"),
        number("compared_variability", f"variability in {names[1]}", here[f"variability_{other}"], "compared"),
        factor("compared_category", f"category in {names[1]}",
               [each if isinstance(each, str) else None for each in here[f"category_{other}"]], "compared",
               CATEGORIES),
        number("shift", "shift on the map", here["shift"], "compared"),
    ]
    if beyond.notna().any():
        columns.append(number("beyond_noise", "shift beyond the noise of seeds", here["beyond_noise"], "compared"))
    return {
        "names": names, "cuts": cuts[1], "of": MOVED_FILE, "beyond_noise": record["beyond_noise"],
        "arrows": [{"at": place[example], "confidence": moved.at[example, f"confidence_{here_is}"],
                    "variability": moved.at[example, f"variability_{here_is}"]}
                   for example in farthest if example in place][:MOST_ARROWS],
    }, columns
