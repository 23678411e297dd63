"""The data alone: classes, lengths, what a model cuts, copies within the split and across splits."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.artifacts import load_meta, model_meta
from datamap.report.examples import groups_of

if TYPE_CHECKING:
    import pandas as pd

    from datamap.detection.base import Evidence

MOST_MEASURED = 20_000  # texts whose tokens are counted, a seeded sample of longer columns
BINS = 30
MOST_CLASSES = 60
MOST_PAIRS = 100  # shown on the page; all are in the CSVs

logger = logging.getLogger(__name__)


def tokenizer_of(artifact: str | Path) -> tuple[Any, int | None]:
    """The tokenizer of the model that a map was recorded from, where it still lies there, and how many tokens the
    model was given at most; None for what is not known."""
    meta = model_meta(artifact) or load_meta(artifact) or {}
    arguments = meta.get("arguments", {})
    arguments = arguments.get("recorded_with") or arguments
    places = [arguments.get(name) for name in ("output_dir", "model")]
    file = next((Path(place) / "tokenizer.json" for place in places
                 if isinstance(place, str) and (Path(place) / "tokenizer.json").is_file()), None)
    if file is None:
        return None, None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, arguments.get("max_length")


def lengths_of(evidence: Evidence, tokenizer: Any, max_length: int | None, seed: int) -> dict[str, Any]:
    """Of every text column, and of what a model reads together, the lengths in tokens of ``tokenizer``, else in words.

    ``of``: from how many examples, all or a seeded sample of MOST_MEASURED. ``cut``: how many of these have more than
    max_length tokens together (a question's context then is read in several windows).
    """
    rows = np.arange(len(evidence))
    if tokenizer is not None and len(rows) > MOST_MEASURED:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST_MEASURED, replace=False))
    names = list(evidence.split.task.text_columns)
    columns = {name: _lengths(_of(evidence.column(name), rows), tokenizer) for name in names}
    table = [_described(name, values) for name, values in columns.items()]
    content: dict[str, Any] = {"unit": "words" if tokenizer is None else "tokens", "of": len(rows),
                               "max_length": max_length, "columns": table, "cut": None}
    if evidence.answers_questions:
        answers = [text for text in _of(evidence.golds, rows) if text]
        table.append(_described("answer", _lengths(answers, tokenizer)))
    if tokenizer is not None and max_length:
        special = tokenizer.num_special_tokens_to_add(len(names) > 1)
        content["cut"] = int((sum(columns.values()) + special > max_length).sum())
    return content


def _of(values: Sequence[str], rows: np.ndarray) -> list[str]:
    return [values[row] for row in rows.tolist()]


def _lengths(texts: Sequence[str], tokenizer: Any) -> np.ndarray:
    """(n,) int64; a text that is there more than once is measured once."""
    known = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    if tokenizer is None:
        lengths = np.array([len(text.split()) for text in known])
    else:
        lengths = np.array([len(each.ids) for each in tokenizer.encode_batch_fast(list(known),
                                                                                  add_special_tokens=False)])
    return lengths[[known[text] for text in texts]] if len(lengths) else np.zeros(0, dtype=np.int64)


def _described(name: str, lengths: np.ndarray) -> dict[str, Any]:
    if not len(lengths):
        return {"name": name, "n": 0}
    counts, edges = np.histogram(lengths, bins=BINS, range=(0, max(1.0, float(np.quantile(lengths, 0.99)))))
    quantiles = dict(zip(("median", "p95", "max"), np.quantile(lengths, (0.5, 0.95, 1)).tolist(), strict=True))
    return {"name": name, "n": len(lengths), "mean": float(lengths.mean()), **quantiles,
            "counts": counts.tolist(), "edges": edges.tolist()}


def classes_of(evidence: Evidence) -> list[dict[str, Any]]:
    """Of each class, or question type, how many; the commonest first."""
    return [{"name": name, "n": n} for name, n in Counter(evidence.once(groups_of)[1]).most_common(MOST_CLASSES)]


def described_copies(table: pd.DataFrame) -> dict[str, Any]:
    """Counts of the pairs by kind, with those annotated differently, and the first of them for the page."""
    return {
        "counts": [{"kind": kind, "n": int((table["kind"] == kind).sum()),
                    "other_gold": int(((table["kind"] == kind) & ~table["same_gold"].astype(bool)).sum())}
                   for kind in ("exact", "near")],
        "pairs": table.sort_values("same_gold", kind="stable").head(MOST_PAIRS).to_dict("records"),
        "examples": int(table["id"].nunique()),
    }
