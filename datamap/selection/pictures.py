"""What a selection chose, as pictures: on the map of embeddings and on the data map."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datamap.analysis.clusters import reduce_dimensions
from datamap.cartography.categories import CATEGORIES
from datamap.cartography.maps import METRICS_FILE, load_map, means_nothing
from datamap.core.artifacts import check_same_dataset
from datamap.core.files import write_csv
from datamap.core.parquet import in_either_form
from datamap.core.plots import (
    CATEGORY_COLORS,
    COLORS,
    GREY,
    LIGHT_GREY,
    dataset_label,
    drawn_sample,
    new_figure,
    picture_files,
    save_figure,
)
from datamap.selection.candidates import Candidates

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ON_EMBEDDINGS, ON_MAP = "selected_on_embeddings", "selected_on_map"
PICTURES = (*picture_files(ON_EMBEDDINGS, ON_MAP), f"{ON_EMBEDDINGS}.csv", f"{ON_MAP}.csv")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """One to be written: points with ``id``, two columns of numbers, ``is_selected`` and, on a data map, ``category``.

    cuts: of the data map, (confidence, variability), None on embeddings.
    """

    name: str
    points: pd.DataFrame
    title: str
    caption: str
    axes: tuple[str, str]
    cuts: tuple[float, float] | None = None


def pictures(candidates: Candidates, chosen: Sequence[str]) -> list[Picture]:
    """Those that can be drawn of ``chosen`` ids: on the embeddings and the data map that were read, for the selector
    or because they were named. UserError where the map is of another dataset."""
    args, split = candidates.args, candidates.split
    members = ", ".join(f"{name}:{number:g}" for name, number in args.settings.members)
    caption = (f"{dataset_label(split.name, split.split)}, {len(chosen):,} of {len(candidates.ids):,} by "
               f"{args.selector}{f' ({members})' * bool(members)}")
    found = [_on_embeddings(candidates, chosen, caption), _on_map(candidates, chosen, caption)]
    return [picture for picture in found if picture]


def _on_embeddings(candidates: Candidates, chosen: Sequence[str], caption: str) -> Picture | None:
    """The first two principal components of the embeddings, or of a random sample where there are many."""
    import pandas as pd

    vectors = candidates.known.get("embeddings")
    if vectors is None:
        return None
    sample, note = drawn_sample(pd.DataFrame({"row": np.arange(len(vectors)), "id": candidates.ids}))
    values = np.asarray(vectors[np.sort(sample["row"].to_numpy())], dtype=np.float64)
    if len(values) < 3 or not np.ptp(values, axis=0).any():
        logger.info("the embeddings are too few, or all the same: no picture of them")
        return None
    points, shares = reduce_dimensions(values, 2, "pca", "euclidean", 0)
    assert shares is not None
    frame = sample.sort_values("row")[["id"]].assign(dim1=points[:, 0], dim2=points[:, 1])
    frame["is_selected"] = frame["id"].isin(set(chosen))
    axes = tuple(f"principal component {number} ({share:.0%} of the variance)"
                 for number, share in enumerate(shares, 1))
    return Picture(ON_EMBEDDINGS, frame, "What was chosen, on the embeddings", caption + note, axes)  # type: ignore[arg-type]


def _on_map(candidates: Candidates, chosen: Sequence[str], caption: str) -> Picture | None:
    path = candidates.args.sources.get("cartography_dir")
    if path is None or Path(path).is_dir() and not in_either_form(Path(path) / METRICS_FILE).exists():
        return None
    metrics, cuts = load_map(path)
    changed = check_same_dataset(path, metrics.index, candidates.split)
    metrics = metrics[metrics.index.isin(set(candidates.ids) - set(changed))]
    if metrics.empty:
        return None
    missing = len(candidates.ids) - len(metrics)
    note = f", {missing:,} of them not on the map" if missing else ""
    sample, drawn = drawn_sample(metrics[["variability", "confidence", "category"]])
    frame = sample.reset_index().assign(is_selected=sample.index.isin(set(chosen)))
    frame.columns = ["id", *frame.columns[1:]]
    caption += f"{note}{drawn}; dashed: the cuts, confidence {cuts[0]:.3g}, variability {cuts[1]:.3g}"
    return Picture(ON_MAP, frame, "What was chosen, on the data map", caption + means_nothing(path, metrics),
                   ("variability (standard deviation of p(gold) over epochs)",
                    "confidence (mean p(gold) over epochs)"), cuts)


def write_pictures(directory: Path, drawn: Sequence[Picture]) -> None:
    for picture in drawn:
        write_csv(directory / f"{picture.name}.csv", picture.points)
        _plot(directory / f"{picture.name}.png", picture)


def _plot(path: Path, picture: Picture) -> None:
    """The rest in grey, the chosen over it in the colours of their categories, or in one."""
    points = picture.points
    figure, axis = new_figure(6.2, 4.6)
    size = float(np.clip(8_000 / len(points), 3, 16))
    chosen, rest = points[points["is_selected"]], points[~points["is_selected"]]
    x, y = points.columns[1:3]
    axis.scatter(rest[x], rest[y], s=size, color=LIGHT_GREY, linewidths=0, label=f"not chosen ({len(rest):,})")
    size *= 1.6
    if picture.cuts is None:
        axis.scatter(chosen[x], chosen[y], s=size, color=COLORS[0], linewidths=0, label=f"chosen ({len(chosen):,})")
    else:
        for category in CATEGORIES:
            there = points["category"] == category
            part = points[there & points["is_selected"]]
            axis.scatter(part[x], part[y], s=size, color=CATEGORY_COLORS[category], linewidths=0,
                         label=f"{category} ({len(part):,} of {int(there.sum()):,})")
        _draw_cuts(axis, picture.cuts, float(points["variability"].max()))
    axis.set_xlabel(picture.axes[0], fontsize=9)
    axis.set_ylabel(picture.axes[1], fontsize=9)
    axis.tick_params(labelsize=8)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=8, borderaxespad=0,
                markerscale=float(np.sqrt(24 / size)), handletextpad=0.2, columnspacing=1.2)
    save_figure(figure, path, picture.title, picture.caption)


def _draw_cuts(axis: Axes, cuts: tuple[float, float], widest: float) -> None:
    axis.axvline(cuts[1], color=GREY, linewidth=0.8, linestyle="--")
    axis.plot([0, cuts[1]], [cuts[0], cuts[0]], color=GREY, linewidth=0.8, linestyle="--")
    axis.set(xlim=(-0.01, max(0.3, 1.03 * widest)), ylim=(-0.02, 1.02))
