"""Dataset cartography: from recorded training dynamics to metrics, categories and the data map.

Swayamdipta et al. 2020, arXiv 2009.10795. ``training_dynamics.py`` records; this module reads what it recorded:

    from datamap.cartography.metrics import categorize_examples, get_examples_by_category, load_cartography_metrics
    metrics = categorize_examples(load_cartography_metrics("./cartography_output"))
    ids = get_examples_by_category(metrics, "hard", n=100)

In use, "ambiguous" sometimes also asks for a middling confidence. Here high variability alone decides.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datamap.core.artifacts import artifact_file
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import atomic, read_json, read_jsonl, read_table, write_csv

CATEGORIES = ("easy", "ambiguous", "hard")
CATEGORY_COLORS = {"easy": "#0072B2", "ambiguous": "#E69F00", "hard": "#D55E00"}  # Okabe and Ito 2008
CATEGORIZE_METHODS = ("median", "percentile", "fixed")
METRIC_COLUMNS = (
    "confidence", "variability", "correctness", "num_epochs", "start_confidence", "end_confidence",
    "label_confidence", "forgetting_events", "never_learned", "aum", "el2n", "aleatoric", "loss",
)
RANGES = {"confidence": (0, 1), "variability": (0, 0.5), "correctness": (0, 1), "label_confidence": (0, 1)}
CARTOGRAPHY_FILES = ("training_dynamics_epoch_*.json", "cartography_metrics.*", "cartography_map.png")
ONE_PROCESS_PER_GPU = (
    "recording needs one process per GPU: start with `accelerate launch`, or set CUDA_VISIBLE_DEVICES=0"
)
MADE_BY = "run.py --do_train --enable_cartography"
MAX_DRAWN_POINTS = 25_000

logger = logging.getLogger(__name__)


# --- training dynamics, one file an epoch ------------------------------------------------------------------------


def dynamics_file(directory: str | Path, epoch: int) -> Path:
    return Path(directory) / f"training_dynamics_epoch_{epoch}.json"


def write_dynamics(directory: str | Path, epoch: int, ids: Sequence[str], columns: Mapping[str, np.ndarray]) -> None:
    """Write one epoch (counted from 1): ``{"epoch": N, "id": [...], "confidence": [...], ...}``.

    Each column has one value per id; floats are kept to six decimals, so that a million examples stay below 120 MB.
    """
    content: dict[str, Any] = {"epoch": epoch, "id": list(ids)}
    for name, values in columns.items():
        if values.dtype.kind == "f":
            if not np.isfinite(values).all():
                bad = [ids[row] for row in np.flatnonzero(~np.isfinite(values)).tolist()]
                raise UserError(
                    f"training diverged: {name} of {len(bad):,} examples ({name_a_few(bad)}) is not a number in epoch "
                    f"{epoch}; lower --learning_rate or set --max_grad_norm"
                )
            values = np.round(values.astype(np.float64), 6) + 0.0  # + 0.0 makes of -0.0 a 0.0
        content[name] = values.tolist()
    with atomic(dynamics_file(directory, epoch)) as temporary:
        temporary.write_text(json.dumps(content, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")


def read_dynamics(directory: str | Path) -> Iterator[dict[str, Any]]:
    """The epochs of a cartography directory in order: ``id`` a list, every other column an array."""
    epochs = _numbered_files(directory, r"training_dynamics_epoch_(\d+)\.json", MADE_BY)
    for epoch, path in epochs:
        content = read_json(path)
        if not isinstance(content, dict) or not {"id", "confidence", "correct"} <= content.keys():
            raise UserError(f"{path}: expected columns id, confidence, correct, ...; it was not written by {MADE_BY}")
        lengths = {name: len(values) for name, values in content.items() if name != "epoch"}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{path}: columns of different lengths {lengths}; is the file whole?")
        yield {
            "epoch": epoch,
            "id": content["id"],
            **{name: np.asarray(content[name]) for name in lengths if name != "id"},
        }


def read_logged_logits(directory: str | Path) -> Iterator[dict[str, Any]]:
    """Dynamics logged by another trainer, as classification: ``dynamics_epoch_N.jsonl`` (also .gz) with one record
    ``{"guid": ..., "logits_epoch_N": [...], "gold": class index}`` per example (the form of allenai/cartography)."""
    epochs = _numbered_files(directory, r"dynamics_epoch_(\d+)\.jsonl(?:\.gz)?", "another trainer's log")
    for epoch, (number, path) in enumerate(epochs, 1):
        key = f"logits_epoch_{number}"
        ids, gold, logits = [], [], []
        try:
            raw = path.read_bytes()
            text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        except (EOFError, OSError, zlib.error, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not a whole file of UTF-8 JSON Lines ({error})") from error
        for line_number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
            try:
                record = json.loads(line)
                ids.append(str(record["guid"]))
                gold.append(int(record["gold"]))
                logits.append([float(value) for value in record[key]])
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{path}, line {line_number}: expected guid, {key} and gold ({type(error).__name__}: {error})"
                ) from error
        if not ids:
            raise UserError(f"{path} is empty")
        if len(set(ids)) != len(ids):
            raise UserError(f"{path}: a guid occurs more than once")
        if len({len(row) for row in logits}) > 1:
            raise UserError(f"{path}: {key} has rows of different lengths")
        yield {"epoch": epoch, "id": ids, **gold_statistics(np.asarray(logits, dtype=np.float64), np.asarray(gold))}


def gold_statistics(logits: np.ndarray, gold: np.ndarray) -> dict[str, np.ndarray]:
    """Per example, from logits (N, C) and gold classes (N,): confidence, correct, loss, aum (margin), el2n; each (N,).

    confidence: probability of the gold class, 0..1. aum: gold logit minus the largest other logit, low is suspicious
    (Pleiss 2020). el2n: L2 norm of softmax minus one-hot, 0..sqrt(2), high is hard (Paul 2021).
    """
    if gold.min() < 0 or gold.max() >= logits.shape[1] or logits.shape[1] < 2:
        raise UserError(f"gold labels run from {gold.min()} to {gold.max()}, logits have {logits.shape[1]} classes")
    rows = np.arange(len(gold))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    difference = np.exp(log_p)
    difference[rows, gold] -= 1
    others = logits.copy()
    others[rows, gold] = -np.inf
    return {
        "confidence": np.exp(log_p[rows, gold]),
        "correct": logits.argmax(axis=1) == gold,
        "loss": -log_p[rows, gold],
        "aum": logits[rows, gold] - others.max(axis=1),
        "el2n": np.sqrt((difference**2).sum(axis=1)),
    }


def _numbered_files(directory: str | Path, pattern: str, made_by: str) -> list[tuple[int, Path]]:
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; {made_by} writes one")
    matches = [(re.fullmatch(pattern, path.name), path) for path in directory.iterdir()]
    files = sorted((int(match[1]), path) for match, path in matches if match)
    readable = re.sub(r"\(\\d\+\)", "N", pattern).replace("(?:\\.gz)?", "").replace("\\", "")
    if not files:
        raise UserError(f"{directory} holds no {readable}; {made_by} writes them")
    numbers = [number for number, _ in files]
    if numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        there = ", ".join(map(str, numbers))
        raise UserError(f"{directory}: {readable} is there for N = {there} only; one is missing")
    return files


# --- metrics -----------------------------------------------------------------------------------------------------


def compute_metrics(epochs: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The metrics of DESIGN 6, one row per example, indexed by id in the order of first appearance.

    ``epochs`` yields mappings with ``id`` and, per id, ``confidence`` (p of the gold label, 0..1) and ``correct``
    (bool), and optionally ``loss``, ``aum``, ``el2n``, ``start_confidence``, ``end_confidence``, ``label_confidence``
    (of chains of thought: p of the label's token alone, 0..1). Examples may be missing from an epoch; each is averaged
    over its own ``num_epochs``. One pass, memory of one epoch.

    - confidence: mean p, 0..1, higher is easier. variability: population standard deviation of p, 0..0.5.
    - correctness: fraction of epochs predicted right. forgetting_events: right -> wrong transitions (Toneva 2019);
      never_learned: right in no epoch.
    - aum: mean margin, low is suspicious (Pleiss 2020). el2n: mean error norm, 0..sqrt(2) (Paul 2021).
    - aleatoric: mean p (1 - p), 0..0.25 (Seedat 2022). loss: mean cross-entropy in nats.
    """
    position: dict[str, int] = {}
    order: list[str] | None = None
    rows = np.empty(0, dtype=np.int64)
    totals: dict[str, np.ndarray] = {}
    means = ("loss", "aum", "el2n", "start_confidence", "end_confidence", "label_confidence")
    present: set[str] | None = None
    for epoch in epochs:
        ids = epoch["id"]
        if ids != order:  # usually the same examples in the same order every epoch
            if len(set(ids)) < len(ids):
                repeated = [example for example, count in Counter(ids).items() if count > 1]
                raise UserError(f"epoch {epoch['epoch']}: ids occur more than once ({name_a_few(repeated)})")
            for example in ids:
                position.setdefault(example, len(position))
            rows = np.fromiter((position[example] for example in ids), np.int64, len(ids))
            order = ids
        names = {name for name in means if name in epoch}
        if present is None:
            present = names
        elif names != present:
            raise UserError(f"the epochs have different columns: {sorted(names ^ present)} only in some")
        size = len(position)
        for name in ("n", "p", "m2", "right", "forgotten", "last", "aleatoric", *present):
            old = totals.get(name, np.empty(0))
            totals[name] = np.concatenate([old, np.zeros(size - len(old))])
        p = np.asarray(epoch["confidence"], dtype=np.float64)
        right = np.asarray(epoch["correct"], dtype=bool)
        if not (p >= 0).all() or not (p <= 1).all():
            bad = [ids[row] for row in np.flatnonzero(~((p >= 0) & (p <= 1)))]
            raise UserError(f"epoch {epoch['epoch']}: confidence of {name_a_few(bad)} is not in 0..1")
        # Welford's update: the variance of values near 0 or 1 survives it.
        totals["n"][rows] += 1
        delta = p - totals["p"][rows]
        totals["p"][rows] += delta / totals["n"][rows]
        totals["m2"][rows] += delta * (p - totals["p"][rows])
        totals["forgotten"][rows] += (totals["last"][rows] == 1) & ~right
        totals["last"][rows] = right
        totals["right"][rows] += right
        totals["aleatoric"][rows] += p * (1 - p)
        for name in present:
            values = np.asarray(epoch[name], dtype=np.float64)
            if not np.isfinite(values).all():
                bad = [ids[row] for row in np.flatnonzero(~np.isfinite(values))]
                raise UserError(f"epoch {epoch['epoch']}: {name} of {name_a_few(bad)} is no finite number")
            totals[name][rows] += values
    if not position:
        raise UserError("no training dynamics were recorded: no example was seen in any epoch")
    n = totals["n"]
    columns = {
        "confidence": totals["p"],
        "variability": np.sqrt(np.maximum(totals["m2"], 0) / n),
        "correctness": totals["right"] / n,
        "num_epochs": n.astype(np.int64),
        "forgetting_events": totals["forgotten"].astype(np.int64),
        "never_learned": totals["right"] == 0,
        "aleatoric": totals["aleatoric"] / n,
        **{name: totals[name] / n for name in present or ()},
    }
    return pd.DataFrame(
        {name: columns[name] for name in METRIC_COLUMNS if name in columns},
        index=pd.Index(list(position), name="id", dtype="str"),
    )


def write_cartography(
    directory: str | Path,
    metrics: pd.DataFrame,
    title: str | None = None,
    thresholds: tuple[float, float] | None = None,
) -> None:
    """Write ``cartography_metrics.csv``, ``.json`` (a list of records) and ``cartography_map.png``."""
    directory = Path(directory)
    table = metrics.reset_index()
    write_csv(directory / "cartography_metrics.csv", table)
    with atomic(directory / "cartography_metrics.json") as temporary:
        table.to_json(temporary, orient="records", double_precision=15, force_ascii=False)
    plot_data_map(metrics, directory / "cartography_map.png", title, thresholds)


def load_cartography_metrics(path: str | Path) -> pd.DataFrame:
    """The metrics of a cartography directory (or of its .csv or .json), indexed by id (strings).

    Also reads the coordinates that allenai/cartography publishes, JSON Lines (.jsonl, .jsonl.gz) with ``guid``, which
    becomes the id, and ``correctness``, there a count of epochs.

    Raises UserError when the artifact is missing, not whole, or holds values outside the range of a metric.
    """
    file = artifact_file(path, "cartography_metrics.csv", MADE_BY)
    if ".jsonl" in file.suffixes:
        table = _published_metrics(file)
    elif file.suffix == ".json":
        records = read_json(file)
        if not isinstance(records, list) or not all(isinstance(record, dict) and "id" in record for record in records):
            raise UserError(f"{file}: expected a list of records with id, confidence, variability, ...")
        if not records:
            raise UserError(f"{file} holds no examples; run {MADE_BY} again")
        table = pd.DataFrame(records)
        if table["id"].isna().any():
            raise UserError(f"{file}: record {int(table['id'].isna().to_numpy().argmax()) + 1} has no id")
        table["id"] = [str(value) for value in table["id"]]
        if missing := {"confidence", "variability"} - set(table.columns):
            raise UserError(f"{file} has no column {name_a_few(sorted(missing))}")
    else:
        table = read_table(file, columns=("id", "confidence", "variability"))
    if table.empty:
        raise UserError(f"{file} holds no examples; run {MADE_BY} again")
    if table["id"].duplicated().any():
        raise UserError(f"{file}: ids occur more than once ({name_a_few(table['id'][table['id'].duplicated()])})")
    for column in [name for name in METRIC_COLUMNS if name in table]:
        low, high = RANGES.get(column, (-np.inf, np.inf))
        values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float)
        bad = ~(np.isfinite(values) & (values >= low) & (values <= high + 1e-6))
        if bad.any():
            expected = f"not in {low:g}..{high:g}" if column in RANGES else "no finite number"
            raise UserError(
                f"{file}: {column} of {int(bad.sum()):,} examples ({name_a_few(table['id'][bad])}) is missing or "
                f"{expected}; is the file whole? {MADE_BY} writes it"
            )
    return table.set_index("id")


def _published_metrics(file: Path) -> pd.DataFrame:
    """``guid``, ``confidence``, ``variability``, ``correctness`` of each line; other fields are left out.

    The files do not say over how many epochs they count: it is taken to be the largest count.
    """
    records = read_jsonl(file, ("guid", "confidence", "variability", "correctness"))
    if not records:
        raise UserError(f"{file} holds no examples")
    table = pd.DataFrame(records)[["guid", "confidence", "variability", "correctness"]]
    table["guid"] = table["guid"].astype(str)
    counts = pd.to_numeric(table["correctness"], errors="coerce")
    if not (counts >= 0).all() or not (counts == counts.round()).all() or counts.max() == 0:
        raise UserError(f"{file}: expected correctness as a count of epochs, whole numbers from 0")
    epochs = int(counts.max())
    logger.info(f"{file}: correctness is a count, of {epochs} epochs going by the largest; divided by that")
    return table.assign(correctness=counts / epochs, num_epochs=epochs).rename(columns={"guid": "id"})


# --- categories --------------------------------------------------------------------------------------------------


def category_thresholds(
    metrics: pd.DataFrame,
    confidence_threshold: float | None = None,
    variability_threshold: float | None = None,
    method: str = "median",
) -> tuple[float, float]:
    """The (confidence, variability) cuts between the categories, from the whole metrics file.

    ``median``: the medians, unless a threshold is given. ``percentile``: thresholds are percentiles 0..100 (defaults
    50 and 67). ``fixed``: thresholds are the values themselves, both needed.
    """
    if method not in CATEGORIZE_METHODS:
        raise UserError(f"unknown threshold method {method!r}; there is {', '.join(CATEGORIZE_METHODS)}")
    given = {"confidence": confidence_threshold, "variability": variability_threshold}
    if method == "fixed" and None in given.values():
        raise UserError("method fixed needs both a confidence threshold and a variability threshold")
    if method == "percentile":
        cuts = {name: default if given[name] is None else given[name]
                for name, default in (("confidence", 50.0), ("variability", 67.0))}
        for name, cut in cuts.items():
            if not 0 <= float(cut) <= 100:  # type: ignore[arg-type]
                raise UserError(f"method percentile: the {name} threshold lies in 0..100, found {cut:g}")
        return tuple(float(np.percentile(metrics[name], cut)) for name, cut in cuts.items())  # type: ignore
    for name, high in (("confidence", 1.0), ("variability", 0.5)):
        cut = given[name]
        if cut is not None and not 0 <= cut <= high:
            raise UserError(f"the {name} threshold lies in 0..{high:g}, found {cut:g}")
    confidence, variability = (
        float(metrics[name].median()) if cut is None else float(cut) for name, cut in given.items()
    )
    return confidence, variability


def categorize_examples(
    df: pd.DataFrame,
    confidence_threshold: float | None = None,
    variability_threshold: float | None = None,
    method: str = "median",
) -> pd.DataFrame:
    """A copy of the metrics with a column ``category``.

    Variability above its threshold is ``ambiguous``; else confidence at or above its threshold is ``easy``, below it
    ``hard``. Pass the whole metrics file, never a subset: the thresholds come from it (``category_thresholds``).
    """
    confidence, variability = category_thresholds(df, confidence_threshold, variability_threshold, method)
    settled = np.where(df["confidence"] >= confidence, "easy", "hard")
    return df.assign(category=np.where(df["variability"] > variability, "ambiguous", settled))


def get_examples_by_category(df: pd.DataFrame, category: str, n: int | None = None) -> list[str]:
    """Ids of a category, lowest confidence first for hard and ambiguous, highest first for easy; at most ``n``.

    ``df`` is the metrics, with or without the column ``category``. Ties are broken by id.
    """
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative, found {n}")
    if category not in CATEGORIES:
        raise UserError(f"unknown category {category!r}; there is {', '.join(CATEGORIES)}")
    if "category" not in df:
        df = categorize_examples(df)
    chosen = df[df["category"] == category].sort_index()
    ranked = chosen.sort_values("confidence", ascending=category != "easy", kind="stable")
    return ranked.index[:n].tolist()


# --- the data map ------------------------------------------------------------------------------------------------


def plot_data_map(
    df: pd.DataFrame,
    path: str | Path,
    title: str | None = None,
    thresholds: tuple[float, float] | None = None,
) -> None:
    """Draw variability against confidence, coloured by category, with the cuts and the category counts.

    Above 25,000 examples a seeded sample is drawn, and the picture says so; counts are always of all.
    """
    from matplotlib.figure import Figure

    cuts = thresholds or category_thresholds(df)
    categorized = categorize_examples(df, *cuts, method="fixed")
    counts = categorized["category"].value_counts()
    drawn = categorized
    if len(drawn) > MAX_DRAWN_POINTS:
        rows = np.random.default_rng(0).choice(len(drawn), MAX_DRAWN_POINTS, replace=False)
        drawn = drawn.iloc[rows]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes, bars = figure.subplots(1, 2, width_ratios=[3, 1])
    size = float(np.clip(20_000 / len(drawn), 3, 18))
    for category in CATEGORIES:
        points = drawn[drawn["category"] == category]
        axes.scatter(
            points["variability"], points["confidence"], s=size, alpha=0.6, linewidths=0,
            color=CATEGORY_COLORS[category], label=category, rasterized=True,
        )
    axes.axvline(cuts[1], color="0.35", linewidth=0.8, linestyle="--")
    axes.plot([0, cuts[1]], [cuts[0], cuts[0]], color="0.35", linewidth=0.8, linestyle="--")
    axes.set(
        xlabel="variability (standard deviation of p(gold) over epochs)",
        ylabel="confidence (mean p(gold) over epochs)",
        xlim=(-0.01, max(0.3, float(drawn["variability"].max()) * 1.03)),
        ylim=(-0.02, 1.02),
    )
    legend = axes.legend(loc="lower right", frameon=True, markerscale=float(np.sqrt(30 / size)))
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    epochs = df["num_epochs"].max() if "num_epochs" in df else None
    note = f"n = {len(df):,}" + (f", {epochs} epochs" if epochs is not None else "")
    if len(drawn) < len(df):
        note += f" (random {len(drawn):,} drawn)"
    axes.set_title(f"{title}: {note}" if title else note, fontsize=10)
    bars.bar(CATEGORIES, [counts.get(name, 0) for name in CATEGORIES], color=[CATEGORY_COLORS[c] for c in CATEGORIES])
    for place, name in enumerate(CATEGORIES):
        count = counts.get(name, 0)
        bars.annotate(f"{count:,}\n{count / len(df):.0%}", (place, count), ha="center", va="bottom", fontsize=8)
    bars.set(ylabel="examples", ylim=(0, counts.max() * 1.15))
    bars.tick_params(axis="x", labelsize=8)
    for plot in (axes, bars):
        plot.spines[["top", "right"]].set_visible(False)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150)
