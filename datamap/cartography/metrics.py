"""Cartography metrics: from training dynamics to one row per example (Swayamdipta et al. 2020, arXiv 2009.10795)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.cartography.dynamics import MADE_BY, MEANS
from datamap.core.artifacts import artifact_file
from datamap.core.errors import UserError, name_a_few, repeated
from datamap.core.files import read_json, read_jsonl, read_table
from datamap.core.parquet import UniqueIds, frame_of, ids_of, parquet_blocks

if TYPE_CHECKING:
    import pandas as pd

METRIC_COLUMNS = (
    "confidence", "variability", "correctness", "num_epochs", "start_confidence", "end_confidence",
    "label_confidence", "forgetting_events", "never_learned", "aum", "el2n", "aleatoric", "loss",
)
NEEDED = ("id", "confidence", "variability")
METRICS_FILE = "cartography_metrics.csv"  # as text; of a large map the same with .parquet
# Of a joint map beside them: of what the others are means, and how far its runs agree (cartography.joint).
JOINT_COLUMNS = ("n_runs", "stability", "confidence_sd", "variability_sd")
RANGES = {"confidence": (0, 1), "variability": (0, 0.5), "correctness": (0, 1), "label_confidence": (0, 1)}

logger = logging.getLogger(__name__)


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
    import pandas as pd

    position: dict[str, int] = {}
    order: list[str] | None = None
    totals: dict[str, np.ndarray] = {}
    present: set[str] | None = None
    for epoch in epochs:
        ids = epoch["id"]
        if ids != order:  # usually the same examples in the same order every epoch
            if twice := repeated(ids):
                raise UserError(f"epoch {epoch['epoch']}: ids occur more than once ({name_a_few(twice)})")
            rows: Any = slice(len(ids))  # of the first epoch; a view, not a copy
            if position:
                for example in ids:
                    position.setdefault(example, len(position))
                rows = np.fromiter((position[example] for example in ids), np.int64, len(ids))
            else:
                position = dict(zip(ids, range(len(ids)), strict=True))
            order = ids
        names = {name for name in MEANS if name in epoch}
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
        if bad := [ids[row] for row in np.flatnonzero(~((p >= 0) & (p <= 1)))]:
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
            if bad := [ids[row] for row in np.flatnonzero(~np.isfinite(values))]:
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


def load_cartography_metrics(path: str | Path, only: Collection[str] | None = None) -> pd.DataFrame:
    """The metrics of a cartography directory (or of its .csv, .json or .parquet), indexed by id (strings).

    only: of a Parquet file no more than these columns are read, beside those that every map has.

    Also reads the coordinates that allenai/cartography publishes, JSON Lines (.jsonl, .jsonl.gz) with ``guid``, which
    becomes the id, and ``correctness``, there a count of epochs.

    Raises UserError when the artifact is missing, not whole, or holds values outside the range of a metric.
    """
    import pandas as pd

    file = artifact_file(path, METRICS_FILE, MADE_BY)
    if ".jsonl" in file.suffixes:
        table = _published_metrics(file)
    elif file.suffix == ".json":
        records = read_json(file)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise UserError(f"{file}: expected a list of records with id, confidence, variability, ...")
        table = pd.DataFrame(records, columns=None if records else NEEDED)
        if missing := set(NEEDED) - set(table.columns):
            raise UserError(f"{file} has no column {name_a_few(sorted(missing))}")
        if table["id"].isna().any():
            raise UserError(f"{file}: record {int(table['id'].isna().to_numpy().argmax()) + 1} has no id")
        table["id"] = [str(value) for value in table["id"]]
    else:
        table = read_table(file, NEEDED, only=None if only is None else {*NEEDED, *only})
    is_json = file.suffix == ".json" or ".jsonl" in file.suffixes  # of a table it is known
    if is_json and (twice := repeated(table["id"])):
        raise UserError(f"{file}: ids occur more than once ({name_a_few(twice)})")
    return _checked(file, table)


def metric_blocks(file: Path) -> Iterator[pd.DataFrame]:
    """A Parquet file of metrics in blocks of ROWS_A_GROUP examples, as ``load_cartography_metrics`` gives it whole."""
    unique, row = UniqueIds(str(file)), 0
    for table in parquet_blocks(file, needed=NEEDED):
        ids = ids_of(file, table, row)
        unique.add(ids)
        yield _checked(file, frame_of(file, table))
        row += len(ids)
    if not row:
        raise UserError(f"{file} holds no examples; run {MADE_BY} again")
    unique.check(lambda: (ids_of(file, table) for table in parquet_blocks(file, ["id"])))


def _checked(file: Path, table: pd.DataFrame) -> pd.DataFrame:
    """``table`` indexed by id, where its metrics are in their ranges."""
    import pandas as pd

    if table.empty:
        raise UserError(f"{file} holds no examples; run {MADE_BY} again")
    for column in [name for name in METRIC_COLUMNS if name in table]:
        low, high = RANGES.get(column, (-np.inf, np.inf))
        as_numbers = pd.to_numeric(table[column], errors="coerce")  # of JSON they may come as text
        values = as_numbers.to_numpy(dtype=float)
        bad = ~(np.isfinite(values) & (values >= low) & (values <= high + 1e-6))
        if bad.any():
            expected = f"not in {low:g}..{high:g}" if column in RANGES else "no finite number"
            raise UserError(
                f"{file}: {column} of {int(bad.sum()):,} examples ({name_a_few(table['id'][bad])}) is missing or "
                f"{expected}; is the file whole? {MADE_BY} writes it"
            )
        if table[column].dtype.kind not in "bif":
            table[column] = as_numbers
    return table.set_index("id")


def _published_metrics(file: Path) -> pd.DataFrame:
    """``guid``, ``confidence``, ``variability``, ``correctness`` of each line; other fields are left out.

    The files do not say over how many epochs they count: it is taken to be the largest count.
    """
    import pandas as pd

    columns = ("guid", "confidence", "variability", "correctness")
    table = pd.DataFrame(read_jsonl(file, columns), columns=columns, dtype=object)
    table["guid"] = [str(value) for value in table["guid"]]
    counts = pd.to_numeric(table["correctness"], errors="coerce")
    if table.empty:
        raise UserError(f"{file} holds no examples")
    if not (counts >= 0).all() or not (counts == counts.round()).all() or not np.isfinite(counts).all():
        raise UserError(f"{file}: expected correctness as a count of epochs, whole numbers from 0")
    epochs = int(counts.max())
    if epochs == 0:
        logger.info(f"{file}: correctness is 0 throughout, no example was right in any epoch")
        return table.assign(correctness=0.0).rename(columns={"guid": "id"})
    logger.info(f"{file}: correctness is a count, of {epochs} epochs going by the largest; divided by that")
    return table.assign(correctness=counts / epochs, num_epochs=epochs).rename(columns={"guid": "id"})
