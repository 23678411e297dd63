"""The one console table: what a stage prints of a frame, columns aligned, numbers rounded, the rest counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def console_table(
    frame: pd.DataFrame, formats: Mapping[str, str | Callable[[Any], str]] | None = None, limit: int | None = None
) -> str:
    """``frame`` as text without its index: a line of column names, then at most ``limit`` rows.

    formats: column -> format specification (``".3f"``, ``",d"``, ``".1%"``) or function of a value; a missing value is
    blank. Columns of text stand on the left, others on the right. What is cut is counted in a last line.
    """
    shown = frame if limit is None else frame.head(limit)
    columns = []
    for name in shown.columns:
        values, form = shown[name], (formats or {}).get(str(name), "")
        texts = ["" if value is None or value != value else form(value) if callable(form) else format(value, form)
                 for value in values.tolist()]
        width = max(map(len, [str(name), *texts]))
        is_text = all(isinstance(value, str) or value is None or value != value for value in values.tolist())
        columns.append([text.ljust(width) if is_text else text.rjust(width) for text in [str(name), *texts]])
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    if len(shown) < len(frame):
        lines.append(f"... and {len(frame) - len(shown):,} more")
    return "\n".join(lines)
