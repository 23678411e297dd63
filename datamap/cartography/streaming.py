"""From training dynamics in Parquet to a data map, block by block, and to the same numbers as in memory.

No more than ROWS_A_GROUP examples of every epoch are held at a time, and of all examples only the columns that the
thresholds and the picture need: medians and percentiles are exact, of all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datamap.cartography.dynamics import MADE_BY, confidences, epoch_blocks, holds_dynamics, streamed_files
from datamap.cartography.learning import Learning
from datamap.cartography.maps import write_map
from datamap.cartography.metrics import JOINT_COLUMNS, METRIC_COLUMNS, METRICS_FILE, compute_metrics, metric_blocks
from datamap.cartography.settling import ByEpoch
from datamap.core.artifacts import artifact_file
from datamap.core.files import atomic
from datamap.core.parquet import format_for, open_parquet, row_groups, table_of

if TYPE_CHECKING:
    import pandas as pd

KEPT = ("confidence", "variability", "correctness", "num_epochs")  # of all examples, for thresholds and picture


def stream_map(
    directory: str | Path, files: Sequence[tuple[int, Path]], title: str | None = None,
    guessing: dict[str, float] | None = None, blocks: Iterable[pd.DataFrame] | None = None, **asked: Any,
) -> tuple[pd.DataFrame, pd.DataFrame | None, dict[str, Any] | None]:
    """Write what ``write_cartography`` writes, with ``cartography_metrics.parquet``, of dynamics that are in ``files``
    (of ``dynamics.streamed_files``).

    guessing: of ``learning.guessing``, where known. blocks: the metrics where they were written before
    (``metric_blocks``). asked: of ``category_thresholds``. Returns the metrics, without ids and only the columns KEPT,
    the table of the categories by epoch, and whether the model has learned anything (``Learning.record``).
    """
    learning, by_epoch = Learning(guessing), ByEpoch(**asked)
    followed = learning.follow_blocks(epoch_blocks(files))
    if blocks is None:
        metrics = written_in_blocks(directory, map(compute_metrics, followed))
    else:
        metrics = written_in_blocks(directory, blocks)
        for _ in followed:
            pass
    by_epoch.follow_confidences(confidences(files))
    table, record = by_epoch.table(), learning.record(metrics)
    del by_epoch
    write_map(directory, metrics, title, learning=record, by_epoch=table, **asked)
    return metrics, table, record


def written_in_blocks(directory: str | Path, blocks: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Write ``cartography_metrics.parquet`` of metrics that come in blocks; their columns KEPT, without ids."""
    import pandas as pd

    kept: dict[str, list[np.ndarray]] = {}
    with atomic((Path(directory) / METRICS_FILE).with_suffix(".parquet")) as temporary, row_groups(temporary) as write:
        for metrics in blocks:
            write(table_of(metrics.reset_index()))
            for name in KEPT:
                if name in metrics:
                    values = metrics[name].to_numpy()
                    kept.setdefault(name, []).append(values.astype(np.int32) if name == "num_epochs" else values)
    return pd.DataFrame({name: np.concatenate(kept.pop(name)) for name in list(kept)})


# --- a map that is written again ---------------------------------------------------------------------------------


class Streamed(NamedTuple):
    """What of a cartography directory is read block by block. columns: of its metrics, () where it has none."""

    files: list[tuple[int, Path]]
    metrics: Path | None
    columns: Sequence[str]


def to_stream(source: Path, artifact_format: str | None) -> Streamed | None:
    """The Parquet files of a directory that become Parquet again; None where they are to become something else, or
    the metrics are text or have columns of their own, or the epochs are not of the same examples
    (``streamed_files``). UserError for what no map can be made of."""
    metrics = None
    if not holds_dynamics(source):
        return None
    if any(source.glob("cartography_metrics.*")):
        metrics = artifact_file(source, METRICS_FILE, MADE_BY)
        if metrics.suffix != ".parquet":
            return None
    if (files := streamed_files(source)) is None:
        return None
    with open_parquet(files[0][1]) as file:
        if not file.metadata.num_rows or format_for(file.metadata.num_rows, artifact_format) != "parquet":
            return None
    columns: Sequence[str] = ()
    if metrics is not None:
        with open_parquet(metrics) as file:
            columns = file.schema_arrow.names
        if not set(columns) <= {"id", *METRIC_COLUMNS, *JOINT_COLUMNS}:
            return None  # what others have added may have gaps, and so another type in each block
        for _ in metric_blocks(metrics):  # what is wrong with them is told before the old map is taken away
            pass
    for _ in epoch_blocks(files):
        pass
    return Streamed(files, metrics, columns)


def stream_again(
    directory: Path, streamed: Streamed, title: str, guessing: dict[str, float] | None, **asked: Any
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """A directory with copies of the dynamics, and the map at the thresholds ``asked`` for: its metrics, without ids,
    and the table of the categories by epoch."""
    for _, file in streamed.files:
        with atomic(directory / file.name) as temporary:
            shutil.copyfile(file, temporary)
    blocks = None if streamed.metrics is None else metric_blocks(streamed.metrics)
    metrics, table, _ = stream_map(directory, streamed.files, title, guessing, blocks, **asked)
    return metrics, table
