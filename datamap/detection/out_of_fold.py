"""What models that have not seen an example say of it: the folds, ``out_of_fold.csv``, and a linear head's version.

``run.py --cross_fit K`` trains a model for each fold, ``run.py --cross_fit_head`` only a head on the vectors of the
untrained model; readers need not know which.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datamap.cartography.dynamics import gold_statistics
from datamap.core.artifacts import artifact_file
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import read_table
from datamap.core.splits import Split
from datamap.detection.label_quality import out_of_fold_probabilities

if TYPE_CHECKING:
    import pandas as pd

OUT_OF_FOLD_FILE = "out_of_fold.csv"
MADE_BY = "run.py --do_train --enable_cartography --cross_fit K"
PROBABILITY = "probability_"  # of the class whose name follows
HEAD_FOLDS = 5
# What is a share or a probability; entropies, margins and losses are any number.
IN_0_TO_1 = ("confidence", "correctness", "start_confidence", "end_confidence", "dropout_confidence")


# --- folds -------------------------------------------------------------------------------------------------------


def folds_of(split: Split, folds: int, seed: int) -> np.ndarray:
    """The fold of each example of a split, (N,) from 1 to ``folds``: see ``assign_folds``. Classes are spread evenly.

    UserError where a class has too few different texts for every fold to have one.
    """
    task, data = split.task, split.data
    has_classes = "labels" in task.targets
    labels = np.asarray(task.labels(data)) if has_classes else np.zeros(len(data), dtype=np.int64)
    texts = list(zip(*(data[column][:] for column in task.text_columns), strict=True))
    names = data.features[task.label_column].names if has_classes else ["every question"]
    for number in np.unique(labels):
        different = len({texts[row] for row in np.flatnonzero(labels == number)})
        if different < folds:
            what = f"of class {names[number]!r}" if has_classes else "to train on"
            mend = f"--cross_fit {different}" if different > 1 else "more examples"
            raise UserError(f"{split.name} [{split.split}]: found {different} example{'s' * (different > 1)} {what} "
                            f"(equal texts counted once) for {folds} folds; expected at least one for each fold: "
                            f"{mend}" + (", or drop or merge the class" if has_classes else ""))
    return assign_folds(split.ids, texts, labels, folds, seed)


def assign_folds(
    ids: Sequence[str], texts: Sequence[tuple[str, ...]], labels: np.ndarray, folds: int, seed: int
) -> np.ndarray:
    """A fold for each example, (N,) int64 from 1 to ``folds``: of a size, with each label about as often in each.

    Examples with equal ``texts`` share a fold, whatever their labels, so that no model has seen what it judges. Drawn
    by ``seed``; the same for the same examples in another order. labels: (N,) class numbers, one number throughout to
    spread by size alone.
    """
    alike: dict[tuple[str, ...], list[int]] = {}
    for row in np.argsort(np.asarray(ids, dtype=object), kind="stable").tolist():
        alike.setdefault(texts[row], []).append(row)
    groups = list(alike.values())
    # Large groups first, while there is room to make up for them; those of one size in random order.
    order = np.random.default_rng(seed).permutation(len(groups))
    order = order[np.argsort([-len(groups[place]) for place in order], kind="stable")]
    assigned = np.zeros(len(ids), dtype=np.int64)
    of_label = {label: [0] * folds for label in np.unique(labels).tolist()}
    total = [0] * folds
    for place in order.tolist():
        rows = groups[place]
        counts = of_label[int(labels[rows[0]])]
        fold = min(range(folds), key=lambda each: (counts[each], total[each]))  # noqa: B023
        for row in rows:
            of_label[int(labels[row])][fold] += 1
            assigned[row] = fold + 1
        total[fold] += len(rows)
    return assigned


# --- a linear head -----------------------------------------------------------------------------------------------


def head_table(
    ids: Sequence[str], vectors: np.ndarray, labels: np.ndarray, names: Sequence[str], fold: np.ndarray, seed: int
) -> pd.DataFrame:
    """``out_of_fold.csv`` by ``label_quality.out_of_fold_probabilities`` on ``vectors`` (N, d), without columns that
    need several epochs. labels: (N,) class numbers. fold: (N,) from 1. One row per example."""
    import pandas as pd

    probabilities = out_of_fold_probabilities(vectors, labels, len(names), seed=seed, names=names, assigned=fold)
    # The margin of two logits is that of their log-probabilities; float32 may make a probability 0.
    statistics = gold_statistics(np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)), labels)
    table = pd.DataFrame({
        "id": list(ids), "fold": fold, "confidence": statistics["confidence"],
        "correctness": statistics["correct"].astype(float), "num_epochs": 1, "aum": statistics["aum"],
        "el2n": statistics["el2n"], "loss": statistics["loss"],
    })
    table["predicted_label"] = [names[place] for place in probabilities.argmax(axis=1)]
    columns = dict(zip((f"{PROBABILITY}{name}" for name in names), probabilities.T, strict=True))
    return table.assign(**columns)


# --- reading -----------------------------------------------------------------------------------------------------


def load_out_of_fold(path: str | Path) -> pd.DataFrame:
    """``out_of_fold.csv`` of a cartography directory (or the file itself), indexed by id (strings).

    Columns: ``fold`` (from 1), those of the data map as far as they are there (``confidence`` always), the last
    epoch's ``predicted_label`` or ``predicted_answer`` (strings), for classes ``probability_<class name>``, for
    question answering ``span_margin`` (logits, low is suspicious), maybe ``dropout_confidence`` (0..1, low is
    suspicious) and ``dropout_entropy`` (nats, high is unsure). Raises UserError when the file is missing, not whole,
    or holds what is out of range.
    """
    import pandas as pd

    file = artifact_file(path, OUT_OF_FOLD_FILE, MADE_BY)
    table = read_table(file, ("id", "fold", "confidence"), text=("predicted_label", "predicted_answer"))
    if table.empty:
        raise UserError(f"{file} holds no examples; run {MADE_BY} again")
    if not {"predicted_label", "predicted_answer"} & set(table.columns):
        raise UserError(f"{file} has neither predicted_label nor predicted_answer; {MADE_BY} writes one of them")
    for column in table.columns:
        shares = column in IN_0_TO_1 or column.startswith(PROBABILITY)
        if column in ("id", "predicted_label", "predicted_answer") or not (shares or column == "fold"):
            continue
        values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float)
        low, high = (0.0, 1 + 1e-6) if shares else (1.0, np.inf)
        bad = ~((values >= low) & (values <= high) & np.isfinite(values))
        if bad.any():
            raise UserError(f"{file}: {column} of {int(bad.sum()):,} examples ({name_a_few(table['id'][bad])}) is "
                            f"missing or not {'in 0..1' if shares else 'a fold from 1'}; {MADE_BY} writes the file")
    return table.set_index("id")


def probability_columns(table: pd.DataFrame) -> dict[str, str]:
    """Class name -> column, in the order of the columns; empty for question answering."""
    return {column.removeprefix(PROBABILITY): column for column in table.columns if column.startswith(PROBABILITY)}
