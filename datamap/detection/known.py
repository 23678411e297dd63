"""All that finished artifacts say of a split: the evidence, what its detectors make of it, and suspicion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datamap.core.splits import Split, stamp
from datamap.detection.base import SEED, Evidence, score_all
from datamap.detection.evidence import load_evidence
from datamap.detection.out_of_fold import OUT_OF_FOLD_FILE
from datamap.detection.suspicion import OOF_WRONG, Suspicion, kind_of, parts_of, suspicion, terms_of

if TYPE_CHECKING:
    import pandas as pd


class Known(NamedTuple):
    """scores: of ``detectors_needed``, (N, D). sources: the artifacts that it was made from, by what they are, None
    for those that there are not; "data map" is among them."""

    evidence: Evidence
    scores: pd.DataFrame
    suspicion: Suspicion
    sources: dict[str, str | Path | None]


_latest: dict[str, Known] = {}  # one at most: suspects.csv and the page of one command are made of the same


def known_of(
    split: Split, cartography_dir: str | Path, *, embedding_dir: str | Path | None = None,
    cluster_dir: str | Path | None = None, predictions: str | Path | None = None, seed: int = SEED,
    ahead: Sequence[Callable[[Evidence], Any]] = (),
) -> Known:
    """What these artifacts say of ``split``; None leaves one out. Worked out once for as long as no file changes.
    ahead: as in ``load_evidence``."""
    sources = {"data map": cartography_dir, "embeddings": embedding_dir, "clusters": cluster_dir,
               "predictions": predictions}
    read = [Path(path) for path in sources.values() if path is not None]
    read.append(Path(cartography_dir).parent / OUT_OF_FOLD_FILE)  # of a map that is named by its file
    key = repr((split.identity(), split.allow_changed, seed, sources, [stamp(path) for path in read]))
    if key not in _latest:
        _latest.clear()
        evidence = load_evidence(split, cartography_dir, embedding_dir=embedding_dir, cluster_dir=cluster_dir,
                                 predictions=predictions, seed=seed, ahead=ahead)
        scores = score_all(evidence, detectors_needed(evidence))
        _latest[key] = Known(evidence, scores, suspicion(evidence, scores), sources)
    return _latest[key]


def detectors_needed(evidence: Evidence) -> tuple[str, ...]:
    """Those that suspicion is made of, and that reasons name. A review that learns from the others too finds no more
    (RESULTS.md), and they would take longer than all the rest."""
    terms = terms_of(kind_of(evidence), parts_of(evidence))
    return tuple(dict.fromkeys([*(term.detector for term in terms), "odd_question", OOF_WRONG]))
