"""What the detectors of the package nessie find in the same artifacts, beside ours (Klie, Webber & Gurevych 2023).

Reads runs of error_detection.py (of labels). Both sides get the same labels, out-of-fold probabilities, embeddings and
votes; nessie's own models are not trained. Writes compare_nessie.json and .csv to --output_dir.

    pip install --no-deps nessie faiss-cpu pyro-ppl pyro-api opt-einsum awkward awkward-cpp more-itertools netcal \\
        iobes suffix-tree crowd-kit backoff wget pooch platformdirs diskcache requests lightgbm \\
        sentence-transformers importlib_metadata zipp lazy-importer urllib3 certifi attrs clean-text emoji ftfy slurmee
    python benchmarks/compare_nessie.py --runs error_detection_output/runs/sick-real-*

nessie 0.1.1 pins flair 0.11, which today's Python cannot install; its array detectors use nothing of it, so an empty
module stands in for it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
from timing import bench_parser, report

from datamap.core.artifacts import recorded_split, recorded_task
from datamap.core.errors import UserError, command_line
from datamap.core.files import read_table, write_csv
from datamap.detection.base import Evidence, detectors
from datamap.detection.evidence import load_evidence
from datamap.detection.figures import average_precision, ranked_first
from datamap.detection.votes import votes
from datamap.tasks.registry import get_task

STOOD_IN_FOR = ("flair", "sklearn_crfsuite", "fasttext")


class _Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        of_those = fullname.partition(".")[0] in STOOD_IN_FOR
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if of_those else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module

    def exec_module(self, module: Any) -> None:
        pass


def theirs(evidence: Evidence) -> dict[str, Callable[[], np.ndarray]]:
    """Ours by name -> the scores of nessie's detector of the same kind, higher is more suspicious."""
    from sklearn.preprocessing import LabelEncoder

    def made(module: str, name: str, **settings: Any) -> Any:
        return getattr(importlib.import_module(f"nessie.detectors.{module}"), name)(**settings)

    labels = np.array([evidence.class_names[label] for label in evidence.labels])
    encoder = LabelEncoder().fit(evidence.class_names)
    assert evidence.probabilities is not None and evidence.embeddings is not None
    probabilities = evidence.probabilities[:, [evidence.class_names.index(name) for name in encoder.classes_]]
    predicted = encoder.classes_[probabilities.argmax(axis=1)]
    ballots = np.stack(list(votes(evidence).values()))  # numbers: SciPy takes no names since 1.11
    embedded = {"labels": labels, "embedded_instances": evidence.embeddings}
    return {
        "self_confidence": lambda: made("classification_uncertainty", "ClassificationUncertainty").score(
            labels=labels, probabilities=probabilities, le=encoder),
        "confident_learning": lambda: made("confident_learning", "ConfidentLearning").score(
            labels=labels, probabilities=probabilities, le=encoder),
        "prediction_margin": lambda: made("prediction_margin", "PredictionMargin").score(probabilities=probabilities),
        "prediction_entropy": lambda: made("classification_entropy", "ClassificationEntropy").score(
            probabilities=probabilities),
        "oof_retag": lambda: made("retag", "Retag").score(labels=labels, predictions=predicted),
        "knn_entropy": lambda: made("knn_entropy", "KnnEntropy").score(**embedded),
        "mean_distance": lambda: made("mean_distance", "MeanDistance").score(**embedded),
        "majority_vote": lambda: made("ensemble", "MajorityVotingEnsemble").score(
            labels=evidence.labels, ensemble_predictions=ballots),
        "item_discrimination": lambda: made("irt", "ItemResponseTheoryFlagger", num_iters=2000).score(
            labels=evidence.labels, ensemble_predictions=ballots),
    }


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--runs", nargs="+", required=True, metavar="DIR", help="of error_detection.py, with labels")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    import pandas as pd

    args = parse_args(argv)
    sys.meta_path.insert(0, _Empty())
    try:
        importlib.import_module("nessie.detectors")
    except ImportError as error:
        raise UserError(f"nessie cannot be imported ({error}); the head of this file says what to install") from error
    rows = []
    for run in map(Path, args.runs):
        task = recorded_task(run / "map")
        assert task is not None
        split = recorded_split(run / "map", None, None, get_task(**task))
        assert split is not None
        evidence = load_evidence(split, run / "map", embedding_dir=run / "embeddings", predictions=run / "model")
        truth = read_table(run / "scores.csv", ("id", "error")).set_index("id")["error"].reindex(split.ids)
        known = truth.notna().to_numpy()
        wrong = (truth != "right").to_numpy()[known]
        for name, score in theirs(evidence).items():
            both = {"nessie": np.asarray(score(), dtype=float), "ours": detectors()[name](evidence)}
            rows.append({"run": run.name, "detector": name, **{
                side: average_precision(wrong, ranked_first(values)[known]) for side, values in both.items()},
                "spearman": float(pd.Series(both["nessie"]).corr(pd.Series(both["ours"]), method="spearman"))})
    table = pd.DataFrame(rows)
    means = table.groupby("detector", sort=False)[["nessie", "ours", "spearman"]].mean()
    print(means.round(3).to_string())
    means = means.reset_index().astype(object)
    found = means.where(means.notna(), None)  # a side that says the same of all has no correlation
    report(args, __file__, {"average_precision": found.to_dict("records")})
    write_csv(Path(args.output_dir, "compare_nessie.csv"), table)


if __name__ == "__main__":
    main()
