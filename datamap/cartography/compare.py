"""Two maps of the same examples: who moved where, and how far beyond the noise of seeds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.cartography.categories import CATEGORIES, with_categories
from datamap.cartography.joint import MUST_AGREE, SPREAD, RecordedMap, read_recorded, task_name
from datamap.cartography.maps import map_thresholds
from datamap.core.artifacts import artifact_file
from datamap.core.errors import UserError
from datamap.core.files import read_table, write_csv, write_json
from datamap.core.plots import CATEGORY_COLORS, LIGHT_GREY, drawn_sample, new_figure, picture_files, save_figure
from datamap.core.tables import console_table

if TYPE_CHECKING:
    import pandas as pd

MOVED_FILE, MOVES_FILE, COMPARED_FILE = "moved.csv", "category_moves.csv", "map_comparison.json"
COMPARISON_FILES = (MOVED_FILE, MOVES_FILE, COMPARED_FILE, *picture_files("moved_map"))
COORDINATES = ("confidence", "variability")
ALPHA = 0.05  # of an example that has not moved, to be taken for one that has
ABSENT = "absent"  # category of an example that one of the maps lacks
MAX_ARROWS = 80  # more hide each other
SHOWN = 5  # on the console

logger = logging.getLogger(__name__)


@dataclass
class MapComparison:
    """moved: ``moved_table``. moves: ``category_moves``. record: what map_comparison.json holds."""

    moved: pd.DataFrame
    moves: pd.DataFrame
    cuts: tuple[tuple[float, float], tuple[float, float]]
    record: dict[str, Any]


def compare(first: str | Path, second: str | Path) -> MapComparison:
    """The maps in two directories; UserError where they are not about the same examples and the same quantity."""
    a, b = read_recorded(first), read_recorded(second)
    _check_comparable(a, b)
    cuts = map_thresholds(a.path, a.metrics), map_thresholds(b.path, b.metrics)
    moved = moved_table(a.metrics, b.metrics, *cuts)
    moves = category_moves(with_categories(a.metrics, cuts[0]), with_categories(b.metrics, cuts[1]))
    return MapComparison(moved, moves, cuts, _record(a, b, cuts, moved))


def _check_comparable(a: RecordedMap, b: RecordedMap) -> None:
    if a.path.resolve() == b.path.resolve():
        raise UserError(f"--compare {a.path} twice: give two maps")
    if a.recorded and b.recorded and task_name(a.recorded) != task_name(b.recorded):
        raise UserError(f"{a.path} was recorded for task {task_name(a.recorded)}, {b.path} for "
                        f"{task_name(b.recorded)}; maps of one task are compared")
    for name, what in MUST_AGREE.items():
        values = [each.arguments.get(name) for each in (a, b)]
        if None not in values and values[0] != values[1]:
            logger.warning(f"{name} ({what}) is {values[0]} in {a.path} and {values[1]} in {b.path}: shifts hold that "
                           "difference too")
    shared = a.metrics.index.intersection(b.metrics.index)
    if shared.empty:
        raise UserError(f"{a.path} and {b.path} share no ids; maps of the same examples are compared")
    if a.recorded and b.recorded and a.recorded["fingerprint"] != b.recorded["fingerprint"]:
        logger.info(f"{a.path} was made from {a.recorded['dataset']} [{a.recorded['split']}], {b.path} from "
                    f"{b.recorded['dataset']} [{b.recorded['split']}]: joined by id, of which {len(shared):,} are in "
                    "both; their content may differ")
    trained = [each.arguments.get("trained_on", True) for each in (a, b)]
    if trained[0] != trained[1]:
        logger.warning(f"{(a, b)[trained[0]].path} is of examples that were not trained on, "
                       f"{(a, b)[trained[1]].path} of a training: a shift is what having seen the example does, too")
    longest = [each.metrics["num_epochs"].max() for each in (a, b) if "num_epochs" in each.metrics]
    if len(set(longest)) > 1:
        logger.warning(f"{a.path} is over {longest[0]:g} epochs, {b.path} over {longest[1]:g}: a longer training is "
                       "surer of itself, and shifts hold that difference too")


def moved_table(
    a: pd.DataFrame, b: pd.DataFrame, cuts_a: tuple[float, float], cuts_b: tuple[float, float]
) -> pd.DataFrame:
    """One row per example that both maps have, indexed by id, what moved farthest beyond noise first.

    a, b: metrics. category_a, category_b: each at its own cuts; category_b_at_a: of b at the cuts of a, which tells
    who moved from where the cuts did. For confidence and variability: METRIC_a, METRIC_b, METRIC_shift (b - a), and
    METRIC_noise, the standard error of the shift over runs, NaN where one of the maps has fewer than two of them for
    the example. shift: distance on the map, 0..sqrt(1.25). beyond_noise: the distance by what of the two shifts lies
    beyond their intervals (``shift_noise``, at 1 - ALPHA / 2 each: an example that has not moved is above 0 with a
    probability of at most ALPHA); NaN without noise, and the rows are then in the order of ``shift``.
    """
    import pandas as pd

    shared = a.index[a.index.isin(b.index)]
    a, b = a.loc[shared], b.loc[shared]
    columns: dict[str, Any] = {
        "category_a": with_categories(a, cuts_a)["category"], "category_b": with_categories(b, cuts_b)["category"],
        "category_b_at_a": with_categories(b, cuts_a)["category"],
    }
    beyond = []
    for name in COORDINATES:
        shift = (b[name] - a[name]).to_numpy(dtype=float)
        noise, half = shift_noise(a, b, name)
        beyond.append(np.where(np.isnan(half), np.nan, np.maximum(0, np.abs(shift) - half)))
        columns |= {f"{name}_a": a[name], f"{name}_b": b[name], f"{name}_shift": shift, f"{name}_noise": noise}
    table = pd.DataFrame(columns, index=shared)
    table["shift"] = np.hypot(table["confidence_shift"], table["variability_shift"])
    table["beyond_noise"] = np.hypot(*beyond)
    return table.sort_values(["beyond_noise", "shift"], ascending=False, kind="stable")


def shift_noise(a: pd.DataFrame, b: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Standard error of the shift of a metric over runs, and half the width of its interval at 1 - ALPHA / 2; (N,)
    each, NaN where one of the maps has fewer than two runs for the example.

    The interval is that of t, whose degrees of freedom are those of the two maps weighed by their shares in the
    variance, as in ``multi_bootstrap``; of two runs on one side, that side's alone. Welch's (1947) are liberal for so
    few runs, where noises differ: 5 runs against 5 have up to 5.8 % false shifts in two metrics, 3 against 3 6.6 %,
    2 against 10 18 %; these at most 5 %, 3 against 10 5.9 %.
    """
    from scipy.stats import t

    n = len(a)
    if not all({"n_runs", name + SPREAD} <= set(each) for each in (a, b)):
        return np.full(n, np.nan), np.full(n, np.nan)
    runs = [each["n_runs"].to_numpy(dtype=float) for each in (a, b)]
    parts = [each[name + SPREAD].to_numpy(dtype=float) ** 2 / count for each, count in zip((a, b), runs, strict=True)]
    total = parts[0] + parts[1]
    with np.errstate(divide="ignore", invalid="ignore"):  # one run is no spread, and gives NaN
        freedom = 1 / sum(part / total / (count - 1) for part, count in zip(parts, runs, strict=True))
        freedom = np.where(np.minimum(*runs) == 2, 1.0, freedom)
        error = np.sqrt(total)
        half = np.where(total == 0, 0.0, t.ppf(1 - ALPHA / 4, freedom) * error)
    return error, half


def category_moves(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """How many examples are in a category of a (rows) and in one of b, ``absent`` where a map lacks them; tidy:
    category_a, category_b, n. a, b: with ``category``."""
    import pandas as pd

    ids = a.index.union(b.index, sort=False)
    both = [each["category"].reindex(ids).fillna(ABSENT) for each in (a, b)]
    counts = pd.crosstab(*both).reindex(index=[*CATEGORIES, ABSENT], columns=[*CATEGORIES, ABSENT], fill_value=0)
    tidy = counts.rename_axis("category_a").reset_index().melt("category_a", var_name="category_b", value_name="n")
    return tidy[(tidy["category_a"] != ABSENT) | (tidy["category_b"] != ABSENT)].reset_index(drop=True)


def _record(
    a: RecordedMap, b: RecordedMap, cuts: tuple[tuple[float, float], tuple[float, float]], moved: pd.DataFrame
) -> dict[str, Any]:
    known = moved["beyond_noise"].notna()
    changed = moved["category_a"] != moved["category_b"]
    record: dict[str, Any] = {
        "maps": [{"path": str(each.path), "examples": len(each.metrics),
                  "runs": int(each.metrics["n_runs"].max()) if "n_runs" in each.metrics else 1,
                  "cuts": {"confidence": cut[0], "variability": cut[1]},
                  "stability": _mean(each.metrics["stability"]) if "stability" in each.metrics else None}
                 for each, cut in zip((a, b), cuts, strict=True)],
        "compared": len(moved),
        "changed_category": int(changed.sum()),
        "changed_category_at_cuts_of_a": int((moved["category_a"] != moved["category_b_at_a"]).sum()),
        **{f"mean_{name}_shift": float(moved[f"{name}_shift"].mean()) for name in COORDINATES},
        "with_noise": int(known.sum()),
        "beyond_noise": int((moved["beyond_noise"] > 0).sum()) if known.any() else None,
        "by_chance_at_most": ALPHA * int(known.sum()) if known.any() else None,
        "changed_category_beyond_noise": int((changed & (moved["beyond_noise"] > 0)).sum()) if known.any() else None,
    }
    return record


def names_apart(paths: Sequence[str | Path]) -> list[str]:
    """The last parts of the paths, as few as tell them apart: of x/joint_map and y/joint_map both parts."""
    parts = [Path(path).parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def _mean(values: pd.Series) -> float | None:
    return float(values.mean()) if values.notna().any() else None


def write_comparison(directory: str | Path, found: MapComparison) -> None:
    """moved.csv, category_moves.csv, map_comparison.json and moved_map.png."""
    directory = Path(directory)
    write_csv(directory / MOVED_FILE, found.moved.reset_index())
    write_csv(directory / MOVES_FILE, found.moves)
    write_json(directory / COMPARED_FILE, found.record)
    plot_moves(directory / "moved_map.png", found)


def load_moved(path: str | Path) -> pd.DataFrame:
    """``moved_table`` as ``write_comparison`` wrote it, indexed by id."""
    file = artifact_file(path, MOVED_FILE, "dataset_cartography.py --compare")
    needed = ("id", *(f"{name}_{which}" for which in "ab" for name in ("category", *COORDINATES)), "shift",
              "beyond_noise")
    return read_table(file, needed).set_index("id").astype({"beyond_noise": "float64"})


def plot_moves(path: str | Path, found: MapComparison) -> None:
    """Arrows on the first map, of what moved farthest, and the table of the categories."""
    moved = found.moved
    noisy = moved["beyond_noise"].notna().any()
    arrows = moved[moved["beyond_noise"] > 0] if noisy else moved[moved["shift"] > 0]
    shown = arrows.head(MAX_ARROWS)
    drawn, note = drawn_sample(moved)
    figure, (axis, right) = new_figure(9, 5.2, columns=2, width_ratios=[3, 1.5])
    axis.scatter(drawn["variability_a"], drawn["confidence_a"], s=float(np.clip(20_000 / len(drawn), 3, 12)),
                 color=LIGHT_GREY, linewidths=0)
    for category in CATEGORIES:
        points = shown[shown["category_b"] == category]
        axis.quiver(points["variability_a"], points["confidence_a"], points["variability_shift"],
                    points["confidence_shift"], angles="xy", scale_units="xy", scale=1, width=0.0025, alpha=0.8,
                    color=CATEGORY_COLORS[category], label=f"now {category}")
    high = max(0.3, 1.03 * moved[["variability_a", "variability_b"]].to_numpy().max())
    axis.set(xlabel="variability", ylabel="confidence", xlim=(-0.01, high), ylim=(-0.02, 1.02))
    axis.legend(loc="lower right")
    _draw_table(right, found.moves)
    what = f"moved beyond the noise of seeds (at most {ALPHA:.0%} would by chance)" if noisy else "moved"
    names = names_apart([each["path"] for each in found.record["maps"]])
    which = f"the {len(shown):,} farthest of {len(arrows):,}" if len(shown) < len(arrows) else f"all {len(shown):,}"
    save_figure(figure, path, f"From {names[0]} to {names[1]}",
                f"n = {len(moved):,} examples in both{note}, grey: where they were in {names[0]}; arrows: {which} "
                f"that {what}; categories each at the cuts of its own map")


def _draw_table(axis: Any, moves: pd.DataFrame) -> None:
    table = moves.pivot(index="category_a", columns="category_b", values="n")
    names = [name for name in (*CATEGORIES, ABSENT)
             if name != ABSENT or moves.loc[(moves == ABSENT).any(axis=1), "n"].sum()]
    counts = table.reindex(index=names, columns=names).to_numpy(dtype=float)
    shares = counts / np.maximum(np.nansum(counts, axis=1, keepdims=True), 1)
    axis.imshow(np.nan_to_num(shares), cmap="Greys", vmin=0, vmax=1.4)
    for row, column in np.ndindex(counts.shape):
        if counts[row, column] == counts[row, column]:
            text = f"{counts[row, column]:,.0f}\n{shares[row, column]:.0%}"
            axis.text(column, row, text, ha="center", va="center", fontsize=8)
    axis.set_xticks(range(len(names)), names, fontsize=8, rotation=30)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel="category after", ylabel="category before (share of its row)")
    axis.tick_params(length=0)


def said_of_comparison(found: MapComparison) -> str:
    """For the console."""
    record, moved = found.record, found.moved
    maps = record["maps"]
    lines = [f"A {maps[0]['path']} ({_runs(maps[0])}), B {maps[1]['path']} ({_runs(maps[1])}): {record['compared']:,} "
             f"examples in both, {maps[0]['examples'] - record['compared']:,} in A alone, "
             f"{maps[1]['examples'] - record['compared']:,} in B alone"]
    table = found.moves.pivot(index="category_a", columns="category_b", values="n")
    table = table.reindex(index=[*CATEGORIES, ABSENT], columns=[*CATEGORIES, ABSENT])
    table.index.name = "A \\ B"
    lines.append(console_table(table.reset_index(), {name: ",.0f" for name in table.columns}))
    changed, compared = record["changed_category"], record["compared"]
    at_a = record["changed_category_at_cuts_of_a"]
    means = [f"of {name} {record[f'mean_{name}_shift']:+.3f}" for name in COORDINATES]
    lines.append(f"{changed:,} ({changed / compared:.0%}) changed category, {at_a:,} at the cuts of A"
                 f"{_single_runs(maps)}; mean shift {', '.join(means)}")
    if record["beyond_noise"] is None:
        lines.append("how much of a shift is the noise of seeds is known only of joint maps: join several runs of A "
                     "and of B to see")
    else:
        lines.append(f"{record['beyond_noise']:,} of {record['with_noise']:,} moved beyond the noise of seeds "
                     f"(by chance alone at most {record['by_chance_at_most']:,.0f}), "
                     f"{record['changed_category_beyond_noise']:,} of them into another category")
    shown = moved.head(SHOWN).reset_index()[["id", "category_a", "category_b", "confidence_a", "confidence_b",
                                             "variability_a", "variability_b", "shift", "beyond_noise"]]
    form = {name: ".3f" for name in shown.columns if shown[name].dtype.kind == "f"}
    lines.append(console_table(shown, form))
    return "\n".join(lines)


def _runs(each: Mapping[str, Any]) -> str:
    return "1 run" if each["runs"] == 1 else f"{each['runs']} runs"


def _single_runs(maps: list[dict[str, Any]]) -> str:
    known = [f"{1 - each['stability']:.0%} of {name}" for name, each in zip("AB", maps, strict=True)
             if each["stability"] is not None]
    return f" (two single runs of one map differ in {' and '.join(known)})" if known else ""
