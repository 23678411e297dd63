"""How often each kind of error occurs, over groups of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"


def error_counts(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """How many examples of each group in the column ``by`` (rows, the largest first; ``all`` below) have each kind of
    error (columns), and ``n``. table: one row per example, ``error`` categorical over all kinds."""
    import pandas as pd

    counts = pd.crosstab(table[by], table["error"], dropna=False)
    counts.columns = counts.columns.astype("str")
    counts = counts.assign(n=counts.sum(axis=1)).sort_values("n", ascending=False, kind="stable")
    return pd.concat([counts, counts.sum().to_frame(ALL).T]).rename_axis(index=by, columns=None)


def tidy_error_counts(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """``error_counts`` by each of ``columns``, a row per group and kind of error: ``by`` (``all``, then the columns),
    ``group``, ``error``, ``n``, and ``share`` of the group, 0..1.

    Of the examples with an error or ``none``; those that are in no group of a column do not count in it.
    """
    import pandas as pd

    known = table[table["error"].notna()]
    parts = [error_counts(known.assign(all=ALL), ALL).iloc[:1]]
    parts += [error_counts(known[known[by].notna()], by).iloc[:-1] for by in columns]
    rows = [
        {"by": by, "group": str(group), "error": kind, "n": int(counts[kind]), "share": counts[kind] / counts["n"]}
        for by, part in zip((ALL, *columns), parts, strict=True)
        for group, counts in part.iterrows() for kind in part.columns.drop("n")
    ]
    return pd.DataFrame(rows, columns=["by", "group", "error", "n", "share"])
