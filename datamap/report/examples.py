"""What the page holds of each example: its texts and spans, its columns, its epochs, its neighbours.

Above ``max_points`` examples the page holds a seeded sample of that many and all suspects beside it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.analysis.clusters import NOISE, cluster_name
from datamap.analysis.error_rules import RULES
from datamap.analysis.map_summary import METRIC_LABELS
from datamap.cartography.categories import CATEGORIES
from datamap.detection.base import Evidence
from datamap.detection.reasons import NEAREST, RULE_WORDS, reasons
from datamap.detection.suspects import golds, predicted, proposals

if TYPE_CHECKING:
    import pandas as pd

SUSPECT = 0.5  # suspicion from which an example is on the page whatever the sample
TEXT_BYTES = 36_000_000  # of all texts together, in UTF-8; above it the longest are shown around their answers
EXCERPTS = (8000, 3000, 1000, 400)  # characters of a text, the first length at which all have room
MOST_LEVELS = 60  # different values of a column by which one can colour and filter


# --- which ones --------------------------------------------------------------------------------------------------


def shown_rows(suspicion: np.ndarray, order: np.ndarray, max_points: int, seed: int) -> np.ndarray:
    """(n,) int64: the rows on the page, rising. All where they are at most ``max_points``; else so many drawn by
    ``seed`` from ``order`` (rows by id), and beside them the ``max_points`` most suspicious of at least SUSPECT."""
    if len(order) <= max_points:
        return np.arange(len(order))
    drawn = order[np.random.default_rng(seed).choice(len(order), max_points, replace=False)]
    ranked = order[np.argsort(-suspicion[order], kind="stable")][:max_points]
    return np.union1d(drawn, ranked[suspicion[ranked] >= SUSPECT])


# --- packed for the page -----------------------------------------------------------------------------------------


def packed(values: np.ndarray, kind: str = "<f4") -> str:
    """base64 of little-endian numbers, float32 unless said otherwise; a missing one is NaN."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode()


def number(key: str, label: str, values: Any, group: str) -> dict[str, Any]:
    """A column of numbers; values: (n,). In single precision, unless whole numbers have no room in that."""
    values = np.asarray(values, dtype=float)
    wide = bool((np.abs(values[np.isfinite(values)]) > 2**24).any())
    return {"key": key, "label": label, "group": group, "kind": "number", "wide": wide,
            "values": packed(values, "<f8" if wide else "<f4")}


def factor(
    key: str, label: str, values: Sequence[str | None], group: str, levels: Sequence[str] | None = None
) -> dict[str, Any]:
    """A column with few different values; codes: the place of each in ``levels``, -1 where there is none. Levels are
    those that occur, in the order given, else the commonest first."""
    counts: dict[str, int] = {}
    for value in values:
        if value is not None:
            counts[value] = counts.get(value, 0) + 1
    if levels is None:
        levels = sorted(counts, key=lambda name: (-counts[name], name))
    kept = [level for level in levels if level in counts]
    place: dict[str | None, int] = {level: number for number, level in enumerate(kept)}
    codes = [place.get(value, -1) for value in values]
    return {"key": key, "label": label, "group": group, "kind": "factor", "levels": kept, "codes": codes}


class Texts:
    """Every different text once; examples hold its number."""

    def __init__(self) -> None:
        self.place: dict[str, int] = {}

    def numbers(self, values: Sequence[str | None]) -> list[int]:
        return [-1 if value is None else self.place.setdefault(value, len(self.place)) for value in values]

    def column(self, key: str, label: str, values: Sequence[str | None], group: str) -> dict[str, Any]:
        return {"key": key, "label": label, "group": group, "kind": "text", "texts": self.numbers(values)}


# --- texts -------------------------------------------------------------------------------------------------------


def excerpt_length(columns: Sequence[Sequence[str]]) -> int | None:
    """How many characters of each text the page has room for; None where all are whole."""
    size = sum(len(text.encode()) for text in {text for column in columns for text in column})
    if size <= TEXT_BYTES:
        return None
    every = [text for column in columns for text in column]  # cut, no two need be alike
    return next((most for most in EXCERPTS
                 if sum(len(text[:most].encode()) for text in every) <= TEXT_BYTES), EXCERPTS[-1])


def excerpt(text: str, start: int, length: int, most: int) -> tuple[str, int]:
    """At most about ``most`` characters of a text around a span (start -1: its beginning), with … where it is cut, and
    where the span starts in it."""
    if len(text) <= most:
        return text, start
    first = 0 if start < 0 else max(0, min(start - max(0, most - length) // 2, len(text) - most))
    last = max(first + most, start + length)
    before, after = "…" * (first > 0), "…" * (last < len(text))
    return f"{before}{text[first:last]}{after}", start if start < 0 else start - first + len(before)


def utf16(text: str, start: int, end: int) -> tuple[int, int]:
    """A place in code points as start and length in UTF-16, in which a browser counts."""
    if text.isascii():
        return start, end - start
    before, inside = text[:start], text[start:end]
    return len(before.encode("utf-16-le")) // 2, len(inside.encode("utf-16-le")) // 2


def spans_of(evidence: Evidence, rows: np.ndarray) -> list[tuple[int, int]]:
    """(start, length) of the first gold answer of each row, (-1, 0) where there is none or it stands elsewhere."""
    return [(answer["answer_start"][0], len(answer["text"][0])) if usable and answer["text"] else (-1, 0)
            for answer, usable in zip(_of_rows(evidence.column("answers"), rows), evidence.usable[rows], strict=True)]


def text_columns(evidence: Evidence, rows: np.ndarray, texts: Texts) -> dict[str, Any]:
    """``columns``, ``spans`` (start and length of the gold answer in the last of them, in UTF-16; questions only) and
    ``cut``, the length that texts were cut to."""
    names = evidence.split.task.text_columns
    found = {name: _of_rows(evidence.column(name), rows) for name in names}
    most = excerpt_length(list(found.values()))
    spans = spans_of(evidence, rows) if evidence.answers_questions else None
    if most is not None:
        for name in names:
            marked = spans if spans is not None and name == "context" else None
            cut = [excerpt(text, *(marked[place] if marked else (-1, 0)), most)
                   for place, text in enumerate(found[name])]
            found[name] = [text for text, _ in cut]
            if marked is not None:
                spans = [(start, length) for (_, start), (_, length) in zip(cut, marked, strict=True)]
    content: dict[str, Any] = {
        "columns": [texts.column(name, name, values, "text") for name, values in found.items()], "cut": most,
    }
    if spans is not None:
        places = [utf16(text, start, start + length) if start >= 0 else (-1, 0)
                  for text, (start, length) in zip(found["context"], spans, strict=True)]
        content["spans"] = {"start": [start for start, _ in places], "length": [length for _, length in places]}
    return content


def _of_rows(values: Sequence[Any], rows: np.ndarray) -> list[Any]:
    return [values[row] for row in rows.tolist()]


def groups_of(evidence: Evidence) -> tuple[str, list[str]]:
    """By what the examples are grouped, a class or a kind of question, and the group of each: of questions what the
    dataset itself calls so, where it does."""
    by, groups = evidence.groups
    if evidence.answers_questions and by in evidence.split.data.column_names:
        own = evidence.column(by)
        if all(isinstance(each, str) for each in own) and len(set(own)) <= MOST_LEVELS:
            groups = own
    return by, groups


# --- columns -----------------------------------------------------------------------------------------------------


def example_columns(evidence: Evidence, rows: np.ndarray, suspicion: np.ndarray, texts: Texts) -> list[dict[str, Any]]:
    """What to colour, filter and sort by, and what else is shown of an example opened whole."""
    columns = [number("suspicion", "suspicion", suspicion[rows], "suspicion")]
    metrics = evidence.metrics
    if metrics is not None:
        columns.append(factor("category", "category", _present(metrics["category"].iloc[rows]), "map", CATEGORIES))
        columns += [number(name, label, metrics[name].to_numpy(dtype=float)[rows], "map")
                    for name, label in METRIC_LABELS.items() if name in metrics and metrics[name].notna().any()]
    if evidence.clusters is not None:
        labels = evidence.clusters["cluster"].to_numpy(dtype=float)
        known = sorted({int(label) for label in labels[~np.isnan(labels)].tolist()},
                       key=lambda label: (label == NOISE, label))
        columns.append(factor("cluster", "cluster", [None if np.isnan(label) else cluster_name(int(label))
                                                     for label in labels[rows].tolist()], "clusters",
                              [cluster_name(label) for label in known]))
        columns += [number(name, label, evidence.clusters[name].to_numpy(dtype=float)[rows], "clusters")
                    for name, label in (("dim1", "dimension 1"), ("dim2", "dimension 2"),
                                        ("cluster_probability", "cluster probability"),
                                        ("outlier_score", "outlier score")) if name in evidence.clusters]
    by, groups = evidence.once(groups_of)
    if by != "task":
        columns.append(factor(by, by.replace("_", " "), _of_rows(groups, rows), "text"))
    columns += rule_columns(evidence.rules, rows)
    if evidence.out_of_fold is not None:
        columns += [number(f"out_of_fold {name}", f"out-of-fold {label}",
                           evidence.out_of_fold[name].to_numpy(dtype=float)[rows], "out of fold")
                    for name, label in (("confidence", "confidence"), ("span_margin", "span margin"))
                    if name in evidence.out_of_fold]
    return columns + data_columns(evidence, rows, texts)


def rule_label(rule: str) -> str:
    """``rule1_length_anomaly`` -> ``rule 1: the answer is longer than nearly all others``"""
    if rule == "is_dataset_error":
        return "breaks three rules or more"
    words = RULE_WORDS.get(rule, "the model's answer is a part of it, and nearer to the question")
    return f"rule {rule.partition('_')[0].removeprefix('rule')}: {words}"


def rule_columns(rules: pd.DataFrame | None, rows: np.ndarray) -> list[dict[str, Any]]:
    if rules is None:
        return []
    columns = []
    for name in (*RULES, "is_dataset_error"):
        values = [None if value != value else "yes" if value else "no"
                  for value in rules[name].astype("float64").to_numpy()[rows].tolist()]
        columns.append(factor(name, rule_label(name), values, "rules", ("yes", "no")))
    return columns


def data_columns(evidence: Evidence, rows: np.ndarray, texts: Texts) -> list[dict[str, Any]]:
    """The further columns of the dataset: numbers, columns with few values, texts; lists and the like as JSON."""
    import json

    from datamap.core.files import nulls_for_nan, plain

    data, found = evidence.split.data.select(rows), []
    by, groups = evidence.once(groups_of)
    for name in data.column_names:
        if name == "id" or name in evidence.split.task.content_columns:
            continue
        values = data[name][:]
        if (name, values) == (by, _of_rows(groups, rows)):
            continue  # it stands among the texts
        names = getattr(data.features[name], "names", None)
        known = [value for value in values if value is not None and value == value]
        if not known:
            continue
        if names is None and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
            numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
            found.append(number(f"data {name}", name, numbers, "data"))
            continue
        written: list[str | None] = []
        for value in values:
            if value is None or value != value:
                written.append(None)
            elif isinstance(value, str):
                written.append(value)
            elif names is not None:
                written.append(names[value] if value >= 0 else None)
            else:
                text = json.dumps(nulls_for_nan(value), ensure_ascii=False, default=plain)
                written.append(json.loads(text) if text.startswith('"') else text)  # a date is no quoted text
        if len(set(written)) <= MOST_LEVELS and max(len(text) for text in written if text is not None) <= 80:
            found.append(factor(f"data {name}", name, written, "data"))
        else:
            found.append(texts.column(f"data {name}", name, [None if text is None else text[:EXCERPTS[0]]
                                                             for text in written], "data"))
    return found


def _present(values: Any) -> list[str | None]:
    return [value if isinstance(value, str) else None for value in values.tolist()]


# --- the model's epochs, the neighbours, what was said of it -------------------------------------------------------


def epoch_columns(evidence: Evidence, epochs: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, Any]:
    """Of each epoch p(gold) and whether the prediction was right, (n, E) row after row."""
    return {"count": epochs["confidence"].shape[1], "confidence": packed(epochs["confidence"][rows]),
            "correct": packed(np.nan_to_num(epochs["correct"][rows], nan=2), "u1")} if epochs else {"count": 0}


def neighbour_rows(evidence: Evidence, rows: np.ndarray) -> dict[str, Any] | None:
    """The places on the page of the five nearest neighbours of each row, -1 of one that is not on it."""
    if evidence.embeddings is None:
        return None
    place = np.full(len(evidence) + 1, -1)  # the last is what -1 takes
    place[rows] = np.arange(len(rows))
    near = place[evidence.neighbours_of(rows)[:, :NEAREST]]
    return {"count": near.shape[1], "rows": packed(near, "<i4")}


def opinions(evidence: Evidence, scores: pd.DataFrame, rows: np.ndarray, texts: Texts) -> dict[str, list[int]]:
    """gold, predicted (out of fold where known), the trained model's, proposed and reasons, as numbers of texts."""
    said: dict[str, Sequence[str | None]] = {
        "gold": _of_rows(golds(evidence), rows), "predicted": _of_rows(predicted(evidence), rows),
        "proposed": proposals(evidence, rows), "reasons": reasons(evidence, scores, rows),
    }
    return {name: texts.numbers(values) for name, values in said.items()}
