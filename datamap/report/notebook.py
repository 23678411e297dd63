"""A finished map in a notebook (demos/explore.ipynb): found in a directory, and shown as the page shows it."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import TYPE_CHECKING

from datamap.analysis import model_errors
from datamap.core.artifacts import recorded_split, recorded_task
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import read_jsonl
from datamap.core.parquet import in_either_form
from datamap.core.splits import Split
from datamap.detection.decisions import NO_ANSWER
from datamap.detection.known import Known, known_of
from datamap.detection.suspects import predicted
from datamap.report.page import gather, html_of
from datamap.tasks.registry import DEFAULT_TASK, get_task

if TYPE_CHECKING:
    import pandas as pd

MAP_FILE, PICTURE = "cartography_metrics.csv", "cartography_map.png"
PREDICTIONS = "eval_predictions.jsonl"
MAX_POINTS = 5_000  # a notebook keeps what it shows
HEIGHT = 900  # pixels


class Shown:
    """HTML that a notebook displays."""

    def __init__(self, text: str):
        self.text = text

    def _repr_html_(self) -> str:
        return self.text


def open_map(directory: str | Path) -> Known:
    """All that the artifacts in the folders of ``directory`` say of the split that its data map was made of.

    UserError where there is no data map, or where several artifacts of one kind leave open which is meant.
    """
    directory = Path(directory)
    cartography_dir = _only(directory, MAP_FILE)
    if cartography_dir is None:
        raise UserError(f"no folder of {directory} holds a {MAP_FILE}; make demo or map_dataset.py make one")
    recorded = recorded_task(cartography_dir) or {"name": DEFAULT_TASK}
    split = recorded_split(cartography_dir, None, None, get_task(**recorded))
    if split is None:
        raise UserError(f"{cartography_dir} records no dataset; analyze_dataset.py --report --dataset NAME shows it")
    return known_of(split, cartography_dir, embedding_dir=_only(directory, "embeddings.npy"),
                    cluster_dir=_only(directory, "cluster_assignments.csv"),
                    predictions=_predictions_of(directory, split))


def _only(directory: Path, file: str) -> Path | None:
    """The one folder in ``directory`` that holds a file of that name, in either form; None where there is none."""
    found = sorted(each for each in directory.glob("*") if in_either_form(each / file).exists())
    if len(found) > 1:
        raise UserError(f"{directory} has several folders with {file} ({name_a_few(each.name for each in found)}); "
                        "leave one of them there")
    return found[0] if found else None


def _predictions_of(directory: Path, split: Split) -> Path | None:
    """The predictions that cover most of the split; None where none cover any of it."""
    ids = set(split.ids)
    covered = {file: len(ids & {str(row["id"]) for row in read_jsonl(file, ("id",))})
               for file in sorted(directory.glob(f"*/{PREDICTIONS}"))}
    best = max(covered, key=lambda file: covered[file], default=None)
    return best if best and covered[best] else None


def linked_maps(known: Known, max_points: int = MAX_POINTS) -> Shown:
    """The page, in a frame: nothing is loaded, no kernel is asked, so it lives on in a saved notebook and in the HTML
    made of it. Where a viewer takes frames and scripts out, the picture of the data map behind it is seen."""
    page = html_of(gather(known, max_points=max_points).content)
    picture = Path(known.sources["data map"] or "") / PICTURE
    behind = ""
    if picture.exists():
        data = base64.b64encode(picture.read_bytes()).decode()
        behind = f'<img src="data:image/png;base64,{data}" alt="Data map" style="max-width:100%;max-height:100%">'
    frame = ('<iframe title="Data map" style="position:absolute;inset:0;width:100%;height:100%;border:0" '
             f'srcdoc="{html.escape(page)}"></iframe>')
    return Shown(f'<div style="position:relative;height:{HEIGHT}px">{behind}{frame}</div>')


def errors_of(known: Known) -> pd.DataFrame:
    """``analysis.model_errors.predicted_table`` of what models say: those that did not see the example, where there
    are such (out_of_fold.csv), else the trained model."""
    said = predicted(known.evidence)
    if known.evidence.answers_questions:
        said = ["" if each == NO_ANSWER else each for each in said]
    return model_errors.predicted_table(known.evidence.split, said)
