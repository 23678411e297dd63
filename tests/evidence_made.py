"""Evidence made up for the tests of detectors: real splits of the built-in datasets, random numbers about them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from datamap.analysis.error_rules import flag_errors
from datamap.core.splits import Split, load_split
from datamap.detection.base import Evidence
from datamap.tasks.registry import get_task

Full = Any  # an Evidence of which every field is there


def random_metrics(split: Split, rng: np.random.Generator, columns: tuple[str, ...] = ()) -> pd.DataFrame:
    """Columns of a data map, each within its range, of numbers that have nothing to do with each other."""
    n = len(split.data)
    table = {
        "confidence": rng.random(n), "correctness": rng.integers(0, 6, n) / 5, "variability": rng.random(n) / 2,
        "forgetting_events": rng.integers(0, 3, n), "never_learned": rng.random(n) < 0.2, "aum": rng.normal(size=n),
        "el2n": rng.random(n) * 1.4, "aleatoric": rng.random(n) / 4, "loss": rng.exponential(size=n),
        **{column: rng.random(n) for column in columns},
    }
    # As evidence.py hands it on: truth values and counts as numbers, so that they may be missing.
    return pd.DataFrame(table, index=pd.Index(split.ids, name="id")).astype("float64")


def made_labels(n: int = 60, seed: int = 0, dims: int = 6) -> Full:
    split = load_split("demo:nli", "train", get_task("nli"), max_samples=n)
    rng = np.random.default_rng(seed)
    evidence: Full = Evidence(split, random_metrics(split, rng, ("label_confidence",)), seed=seed)
    evidence.out_of_fold = random_metrics(split, rng, ("dropout_confidence", "dropout_entropy"))
    evidence.probabilities = rng.dirichlet(np.ones(len(evidence.class_names)), n)
    evidence.out_of_fold["predicted_label"] = [evidence.class_names[each]
                                               for each in evidence.probabilities.argmax(axis=1)]
    evidence.predictions = [evidence.class_names[each] for each in rng.integers(0, len(evidence.class_names), n)]
    evidence.embeddings = rng.normal(size=(n, dims)).astype(np.float32)
    clusters = {"cluster": rng.integers(-1, 4, n), "outlier_score": rng.random(n)}
    evidence.clusters = pd.DataFrame(clusters, index=pd.Index(split.ids, name="id")).astype("float64")
    return evidence


def made_questions(n: int = 60, seed: int = 0, dims: int = 6) -> Full:
    split = load_split("demo:clinical", "train", get_task("qa"), max_samples=n)
    rng = np.random.default_rng(seed)
    ends = ("start_confidence", "end_confidence")
    evidence: Full = Evidence(split, random_metrics(split, rng, ends), seed=seed)
    evidence.out_of_fold = random_metrics(split, rng, (*ends, "dropout_confidence", "dropout_entropy"))
    evidence.out_of_fold["span_margin"] = rng.normal(size=n)
    texts = split.task.readable(split.data)

    def answers() -> list[str]:
        """Gold, a part of it and more, another's, or none."""
        gold = texts["answer"]
        kinds = rng.integers(0, 4, n)
        return [[gold[row], f"the {gold[row].split()[0]} found", gold[row - 1], ""][kinds[row]] for row in range(n)]

    evidence.predictions = answers()
    evidence.out_of_fold["predicted_answer"] = answers()
    evidence.rules = flag_errors(texts["question"], texts["context"], texts["answer"], evidence.predictions)
    evidence.rules.index = evidence.metrics.index
    evidence.embeddings = rng.normal(size=(n, dims)).astype(np.float32)
    clusters = {"cluster": rng.integers(-1, 4, n), "outlier_score": rng.random(n)}
    evidence.clusters = pd.DataFrame(clusters, index=evidence.metrics.index).astype("float64")
    return evidence


def of_rows(evidence: Full, rows: np.ndarray) -> Full:
    """The same of some examples, or of all in another order."""
    def table(frame: pd.DataFrame | None) -> pd.DataFrame | None:
        return None if frame is None else frame.iloc[rows]

    def array(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[rows]

    predictions = None if evidence.predictions is None else [evidence.predictions[row] for row in rows]
    split = replace(evidence.split, data=evidence.split.data.select(rows))
    opinions = {name: score[rows] for name, score in evidence.opinions.items()}
    return Evidence(split, table(evidence.metrics), table(evidence.out_of_fold), array(evidence.probabilities),
                    array(evidence.embeddings), table(evidence.clusters), table(evidence.rules), predictions, opinions,
                    evidence.seed)


def relabelled(evidence: Full, row: int, label: int) -> Full:
    """The same where one example has another label."""
    column = evidence.label_column
    data = evidence.split.data
    labels = data[column][:]
    labels[row] = label
    changed = data.remove_columns(column).add_column(column, labels, feature=data.features[column])
    return replace(evidence, split=replace(evidence.split, data=changed.select_columns(data.column_names)))
