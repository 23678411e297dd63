"""The page: everything that is known of a split in one file that opens from disk and needs nothing else.

Its data lie in the file packed (gzip, base64), so that no text of the data stands where a browser would take it for
markup or script; its own scripts are let in by their SHA-256, and nothing may be loaded from elsewhere.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.cartography.dynamics import holds_dynamics, read_dynamics
from datamap.cartography.maps import NOT_TRAINED_ON, map_learning, map_thresholds, was_trained_on
from datamap.core.files import atomic, plain, write_csv
from datamap.core.plots import CATEGORY_COLORS, COLORS, dataset_label
from datamap.core.splits import Split
from datamap.core.tables import safe_to_open
from datamap.detection.base import Evidence
from datamap.detection.decisions import NO_ANSWER
from datamap.detection.known import Known
from datamap.detection.review import GROUP_SPREAD, PRECISION, ROUNDING, SMALLEST_STEP, STEPS, features, word_sets
from datamap.detection.suspects import decisions_on
from datamap.report import copies, examples, overview, several, texts

if TYPE_CHECKING:
    import pandas as pd

REPORT_FILE = "report.html"
REPORT_FILES = (REPORT_FILE, "leaks.csv", "duplicates.csv")
MAX_POINTS = 20_000
OF_TEXTS = (word_sets, copies.duplicates)  # what a page asks of the evidence that takes long, and of texts alone
EVERY = 10  # decisions after which the page ranks anew
STYLE, SCRIPTS = "report.css", ("learn.js", "data.js", "maps.js", "table.js", "example.js", "overview.js", "report.js")

logger = logging.getLogger(__name__)


@dataclass
class Report:
    """What a page is made of. content: of the page, JSON. leaks: ``copies.leaks``, None without another split.
    duplicates: ``copies.duplicates``. shown: how many of the examples are on the page."""

    content: dict[str, Any]
    leaks: pd.DataFrame | None
    duplicates: pd.DataFrame
    shown: int


# --- what it is made of ------------------------------------------------------------------------------------------


def gather(
    known: Known, *, decisions: str | Path | None = None, max_points: int = MAX_POINTS,
    comparison_dir: str | Path | None = None,
) -> Report:
    """Work out what the page shows; what is not known is left out of it.

    decisions: a file of earlier decisions (``read_decisions``), with which the page begins. max_points: above so many
    examples a sample of so many is on the page, drawn by the seed of the evidence, beside all suspects.
    comparison_dir: of dataset_cartography.py --compare, which becomes a third picture.
    """
    evidence, scores, (suspected, made_of) = known.evidence, known.scores, known.suspicion
    split, seed, cartography_dir = evidence.split, evidence.seed, known.sources["data map"]
    assert evidence.metrics is not None and cartography_dir is not None
    rows = examples.shown_rows(suspected, evidence.order, max_points, seed)
    # The search for neighbours, sparse products and sorting hold no lock of Python's: a second core has them.
    with ThreadPoolExecutor(2) as beside:
        near = beside.submit(examples.neighbour_rows, evidence, rows)
        learned_from = beside.submit(review_content, evidence, scores, suspected, rows)
        epochs = epochs_of(split, cartography_dir)
        known_texts = examples.Texts()
        shown = examples.text_columns(evidence, rows, known_texts)
        near_rows = near.result()  # reasons name neighbours
        said = examples.opinions(evidence, scores, rows, known_texts)
        warning = (map_learning(cartography_dir, evidence.metrics) or {}).get("warning")
        if not was_trained_on(cartography_dir):
            warning = "; ".join(filter(None, [NOT_TRAINED_ON[0].upper() + NOT_TRAINED_ON[1:], warning]))
        compared, columns = (
            several.compared_content(comparison_dir, split, rows, evidence.metrics["confidence"]) if comparison_dir
            else (None, []))
        cuts = map_thresholds(cartography_dir, evidence.metrics)
        tokenizer, max_length = texts.tokenizer_of(cartography_dir)
        ids = split.ids
        on_page = set(rows.tolist())
        others, unread = copies.other_splits(split)
        leaks = copies.leaks(evidence, others) if others else None
        duplicates = evidence.once(copies.duplicates)
        content = {
            "title": dataset_label(split.name, split.split), "fingerprint": split.fingerprint, "task": split.task.name,
            "total": len(ids), "kind": "qa" if evidence.answers_questions else "labels", "made_of": made_of,
            "classes": [] if evidence.answers_questions else evidence.class_names, "no_answer": NO_ANSWER,
            "every": EVERY, "colors": COLORS, "category_colors": CATEGORY_COLORS,
            "ids": [ids[row] for row in rows.tolist()],
            "other_ids": [] if len(rows) == len(ids) else [each for row, each in enumerate(ids) if row not in on_page],
            "text": shown,
            "said": said,
            "columns": [*examples.example_columns(evidence, rows, suspected, known_texts),
                        *several.joint_columns(evidence.metrics, rows), *columns],
            "joint": several.joint_content(cartography_dir, evidence.metrics), "compared": compared,
            "epochs": examples.epoch_columns(evidence, epochs, rows),
            "neighbours": near_rows,
            "review": learned_from.result(),
            "decisions": _given_decisions(split, decisions, rows),
            "overview": overview.overview(evidence, suspected, epochs, cuts, warning, rows),
            "data": {
                "by": evidence.once(examples.groups_of)[0], "classes": texts.classes_of(evidence),
                "lengths": texts.lengths_of(evidence, tokenizer, max_length, seed),
                "duplicates": texts.described_copies(duplicates), "compared": [other.split for other in others],
                "leaks": None if leaks is None else texts.described_copies(leaks), "unread": unread,
            },
            "provenance": overview.provenance(known.sources),
            "texts": list(known_texts.place),
        }
    return Report(content, leaks, duplicates, len(rows))


def epochs_of(split: Split, cartography_dir: str | Path) -> dict[str, np.ndarray]:
    """``confidence`` and ``correct`` of each example and epoch, (N, E), NaN where unknown; {} without dynamics."""
    if not Path(cartography_dir).is_dir() or not holds_dynamics(cartography_dir):
        return {}
    place = {example: row for row, example in enumerate(split.ids)}
    columns: dict[str, list[np.ndarray]] = {"confidence": [], "correct": []}
    ids, rows = None, np.zeros(0, dtype=np.int64)
    for epoch in read_dynamics(cartography_dir):
        if epoch["id"] != ids:  # nearly always in the order of the first
            ids = epoch["id"]
            rows = np.array([place.get(example, -1) for example in ids])
        for name, found in columns.items():
            values = np.full(len(place), np.nan)
            values[rows[rows >= 0]] = epoch[name][rows >= 0]
            found.append(values)
    return {name: np.stack(found, axis=1) for name, found in columns.items()}


def review_content(
    evidence: Evidence, scores: pd.DataFrame, suspected: np.ndarray, rows: np.ndarray
) -> dict[str, Any]:
    """What the page learns from (``review.ReviewFeatures`` of its rows) and the numbers by which it does."""
    found = features(evidence, scores, suspected).rows(rows)
    return {
        "width": len(found.names), "values": examples.packed(found.values), "group": found.group.tolist(),
        "groups": len(found.groups), "offset": examples.packed(found.offset, "<f8"), "group_spread": GROUP_SPREAD,
        "steps": STEPS, "smallest_step": SMALLEST_STEP, "precision": PRECISION, "rounding": ROUNDING,
    }


def _given_decisions(split: Split, path: str | Path | None, rows: np.ndarray) -> list[list[str]]:
    """id, decision, correction of each example on the page that a file decides on."""
    if path is None:
        return []
    ids = split.ids
    shown = {ids[row] for row in rows.tolist()}
    table = decisions_on(split, str(path))
    left_out = sum(example not in shown for example in table.index)
    if left_out:
        logger.warning(f"{path}: {left_out:,} decisions are on examples that are not on the page; a larger "
                       "--report_max_points brings them")
    return [[example, word, corrected] for example, word, corrected in
            zip(table.index, table["decision"], table["corrected"], strict=True) if example in shown]


# --- the file ----------------------------------------------------------------------------------------------------


def write_report(directory: str | Path, report: Report) -> None:
    """report.html, duplicates.csv, and leaks.csv where there are other splits."""
    directory = Path(directory)
    page = html_of(report.content)
    with atomic(directory / REPORT_FILE) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    write_csv(directory / "duplicates.csv", safe_to_open(report.duplicates))
    if report.leaks is not None:
        write_csv(directory / "leaks.csv", safe_to_open(report.leaks))


def html_of(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=plain)
    data = base64.b64encode(gzip.compress(text.encode(), 5, mtime=0)).decode()
    scripts = [_plotly(), *map(_part, SCRIPTS)]
    # Plotly's WebGL traces compile their draw calls with Function, which a policy calls eval.
    policy = (f"default-src 'none'; script-src 'unsafe-eval' {' '.join(map(_hash, scripts))}; "
              "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'")
    parts = {"POLICY": policy, "STYLE": _part(STYLE), "DATA": data,
             "SCRIPTS": "\n".join(f"<script>{script}</script>" for script in scripts)}
    pieces = _part("report.html").split("%%")
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def content_of(page: str) -> dict[str, Any]:
    """What ``html_of`` packed into a page."""
    data = page.partition('<script type="text/plain" id="data">')[2].partition("</script>")[0]
    return json.loads(gzip.decompress(base64.b64decode(data)))


def _part(name: str) -> str:
    return resources.files("datamap.report").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    """plotly.min.js as the Python package brings it, without importing that."""
    from importlib.util import find_spec

    spec = find_spec("plotly")
    assert spec is not None and spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
