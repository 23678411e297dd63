"""Evidence from finished artifacts: read, checked against the split, in its order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.analysis.clusters import load_clusters, load_embeddings
from datamap.cartography.maps import load_map, was_trained_on
from datamap.core.artifacts import check_same_dataset
from datamap.core.errors import UserError, name_a_few
from datamap.core.splits import Split
from datamap.detection.base import SEED, Evidence, detectors
from datamap.detection.detect_answers import out_of_fold_answers, out_of_fold_overlap, own_overlap
from datamap.detection.out_of_fold import OUT_OF_FOLD_FILE, PROBABILITY, load_out_of_fold, probability_columns

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


def load_evidence(
    split: Split, cartography_dir: str | Path | None = None, *, embedding_dir: str | Path | None = None,
    cluster_dir: str | Path | None = None, predictions: str | Path | None = None, seed: int = SEED,
    ahead: Sequence[Callable[[Evidence], Any]] = (),
) -> Evidence:
    """What these artifacts say of the examples of ``split``; None leaves one out.

    cartography_dir: a data map, and ``out_of_fold.csv`` where that lies there. predictions: eval_predictions.jsonl of
    the trained model for this very split. For questions the nine error rules are applied to the texts, with the
    predictions, else with the out-of-fold answers. An artifact of another dataset is refused, examples that have
    changed since count as unknown to it (``check_same_dataset``). ahead: what else ``Evidence.once`` will be asked
    for, made of texts alone; a second core begins with it.
    """
    from datamap.analysis.unified_table import predictions_of

    evidence = Evidence(split, seed=seed)
    directory = None if cartography_dir is None else _directory(cartography_dir)
    if predictions is not None:
        evidence.predictions = predictions_of(predictions, split)
    if directory is not None and (directory / OUT_OF_FOLD_FILE).exists():
        evidence.out_of_fold = _aligned(directory, load_out_of_fold(directory), split)
        evidence.probabilities = class_probabilities(evidence)
    evidence.begin(*_of_questions(evidence), *ahead)
    if cartography_dir is not None:
        evidence.metrics = _aligned(cartography_dir, load_map(cartography_dir)[0], split)
        evidence.trained_on = was_trained_on(cartography_dir)
    if embedding_dir is not None:
        evidence.embeddings = _aligned_vectors(embedding_dir, split)
    if cluster_dir is not None:
        evidence.clusters = _aligned(cluster_dir, load_clusters(cluster_dir, optional=("outlier_score",)), split)
    if evidence.answers_questions:
        evidence.rules = evidence.once(error_rules)
    return evidence


def _of_questions(evidence: Evidence) -> list[Callable[[Evidence], Any]]:
    """What takes longest of what is made of the texts of questions."""
    if not evidence.answers_questions:
        return []
    overlaps = [*[own_overlap] * evidence.has("predictions"), *[out_of_fold_overlap] * evidence.has("out_of_fold")]
    return [error_rules, *(detectors()[name].checked for name in ("odd_question", "similar_questions")), *overlaps]


def error_rules(evidence: Evidence) -> pd.DataFrame:
    """The nine error rules on the questions of a split, with the predictions, else with the out-of-fold answers."""
    from datamap.analysis.error_rules import flag_errors

    answers = evidence.predictions
    if answers is None and evidence.out_of_fold is not None and "predicted_answer" in evidence.out_of_fold:
        answers = out_of_fold_answers(evidence)
    rules = flag_errors(evidence.column("question"), evidence.column("context"), evidence.golds, answers)
    return rules.set_axis(_ids(evidence.split))


def _directory(path: str | Path) -> Path:
    return Path(path) if Path(path).is_dir() else Path(path).parent


def _ids(split: Split) -> pd.Index:
    import pandas as pd

    return pd.Index(split.ids, name="id")


def _aligned(path: str | Path, table: pd.DataFrame, split: Split) -> pd.DataFrame:
    """One row per example of the split; truth values as 0 and 1, as both they and whole numbers may be missing."""
    table = table.drop(list(check_same_dataset(path, table.index, split)))
    kinds = {name: "float64" for name, kind in table.dtypes.items() if kind.kind in "biu"}
    return table.astype(kinds).reindex(_ids(split))


def _aligned_vectors(path: str | Path, split: Split) -> np.ndarray:
    found = load_embeddings(str(path))
    changed = check_same_dataset(found.file.parent, found.ids, split)
    row_of = {example: row for row, example in enumerate(found.ids) if example not in changed}
    rows = np.array([row_of.get(example, -1) for example in split.ids])
    vectors = np.asarray(found.values[rows], dtype=np.float32)  # a copy
    vectors[rows < 0] = np.nan
    return vectors


def class_probabilities(evidence: Evidence) -> np.ndarray | None:
    """(N, C) float64, the columns ``probability_<class>`` of the out-of-fold table in the order of the classes of the
    split; None for questions, and for a table without such columns. UserError where some are missing."""
    table = evidence.out_of_fold
    known = {} if table is None or evidence.answers_questions else probability_columns(table)
    if table is None or not known:
        return None
    if missing := [f"{PROBABILITY}{name}" for name in evidence.class_names if name not in known]:
        raise UserError(f"{OUT_OF_FOLD_FILE} has no column {name_a_few(missing)}, but {evidence.split.name} has that "
                        "class; make it again with run.py --cross_fit")
    return table[[known[name] for name in evidence.class_names]].to_numpy(dtype=np.float64)
