"""What a detector of wrong examples is: a function from all that is known of a split to one score per example.

Detectors lie in the modules ``detect_*`` of this room under ``@detector``; ``detectors()`` finds them. Every score is
higher for an example that is more likely wrong, whatever the direction of the quantity it is made from, and NaN where
it says nothing of an example.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from datamap.core.beside import begin
from datamap.core.progress import Progress
from datamap.core.splits import Split
from datamap.core.tables import console_table
from datamap.detection.neighbours import Neighbours, nearest

if TYPE_CHECKING:
    import pandas as pd

SEED = 42
MANY = 10_000  # examples for which a second process is worth its start
TABLES = ("metrics", "out_of_fold", "clusters", "rules")  # the fields of Evidence with columns
T = TypeVar("T")


@dataclass
class Evidence:
    """All that is known of the N examples of a split, everything in its order; None for what was not made.

    metrics: columns of the data map (``cartography.metrics.METRIC_COLUMNS``) and ``category``. out_of_fold: the same
    columns from models trained without the example, with ``fold``, ``predicted_label`` or ``predicted_answer``, and
    what else ``out_of_fold.csv`` holds. probabilities: (N, C) of the classes, out of fold. embeddings: (N, d) float32.
    clusters: columns of cluster_assignments.csv. rules: the nine of ``analysis.error_rules`` and their score (qa).
    predictions: answers or labels of the trained model for what it was trained on, None for an example without.
    opinions: by name, further scores of every example made elsewhere (a judge), higher is more likely wrong.
    trained_on: whether the model of the map and of the predictions was trained on these examples.
    In tables a row of NaN, in predictions None, stands for an example that the artifact does not know.
    """

    split: Split
    metrics: pd.DataFrame | None = None
    out_of_fold: pd.DataFrame | None = None
    probabilities: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    clusters: pd.DataFrame | None = None
    rules: pd.DataFrame | None = None
    predictions: list[Any] | None = None
    opinions: Mapping[str, np.ndarray] = field(default_factory=dict)
    seed: int = SEED
    trained_on: bool = True
    _made: dict[Callable[[Evidence], Any], Any] = field(default_factory=dict, init=False, repr=False)
    _begun: dict[Callable[[Evidence], Any], Callable[[], Any]] = field(default_factory=dict, init=False, repr=False)
    _columns: dict[str, list[Any]] = field(default_factory=dict, init=False, repr=False)
    _sought: tuple[np.ndarray, np.ndarray] | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.split.data)

    @functools.cached_property
    def order(self) -> np.ndarray:
        """(N,) int64: the rows by their ids, sorted. What draws, folds or breaks ties goes through the examples in
        this order, so that no score depends on how the file is shuffled."""
        return np.argsort(np.asarray(self.split.ids), kind="stable")

    @functools.cached_property
    def neighbours(self) -> Neighbours:
        """The nearest of the other examples by ``embeddings``, found once for all detectors."""
        if self.embeddings is None:
            raise ValueError("no embeddings, no neighbours")
        return nearest(self.embeddings, self.order, seed=self.seed)

    def neighbours_of(self, rows: np.ndarray) -> np.ndarray:
        """``neighbours.rows`` of these examples (n,) alone, (n, k): a few are sought in a fraction of the time."""
        if self.embeddings is None:
            raise ValueError("no embeddings, no neighbours")
        if "neighbours" in self.__dict__ or len(rows) == len(self):
            return self.neighbours.rows[rows]
        if self._sought is None or not np.array_equal(self._sought[0], rows):
            self._sought = rows, nearest(self.embeddings, self.order, seed=self.seed, asked=rows).rows[rows]
        return self._sought[1]

    def once(self, make: Callable[[Evidence], T]) -> T:
        """``make(self)``, worked out once for all detectors that ask for it."""
        if make not in self._made:
            begun = self._begun.pop(make, None)
            self._made[make] = make(self) if begun is None else begun()
        return self._made[make]

    def begin(self, *makes: Callable[[Evidence], Any]) -> None:
        """Of many examples, have these worked out by a second core for ``once``, in this order (``beside.begin``)."""
        new = [make for make in makes if make not in self._made and make not in self._begun]
        if new and len(self) >= MANY:
            self._begun.update(zip(new, begin([functools.partial(make, self) for make in new]), strict=True))

    def column(self, name: str) -> list[Any]:
        """A column of the split, read once; not to be changed."""
        if name not in self._columns:
            self._columns[name] = self.split.data[name][:]
        return self._columns[name]

    @functools.cached_property
    def groups(self) -> tuple[str, list[str]]:
        """By what the examples are grouped, a class or a kind of question, and the group of each."""
        by, groups = self.split.task.groups(self.split.data)
        return by, [str(each) for each in groups]

    @functools.cached_property
    def usable(self) -> np.ndarray:
        """(N,) bool: which can be trained on (``Task.is_usable``)."""
        return self.split.task.is_usable(self.split.data)

    @property
    def answers_questions(self) -> bool:
        return self.split.task.name == "qa"

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64 class numbers, -1 without a gold label; of a task with classes."""
        return np.asarray([-1 if label is None else label for label in self.column(self.label_column)])

    @functools.cached_property
    def class_names(self) -> list[str]:
        return list(self.split.data.features[self.label_column].names)

    @property
    def label_column(self) -> str:
        return self.split.task.label_column

    @functools.cached_property
    def golds(self) -> list[str]:
        """The first gold answer of each question, "" for an unanswerable one."""
        return [next(iter(answer["text"]), "") for answer in self.column("answers")]

    def has(self, *names: str) -> bool:
        """Whether all of these fields are there."""
        return all(getattr(self, name) is not None for name in names)


Score = Callable[[Evidence], np.ndarray]


@dataclass(frozen=True)
class Detector:
    """``score``: (N,) float64, higher is more likely wrong, NaN where it says nothing.

    needs: fields of ``Evidence`` without which it cannot be had. tasks: "any", "labels" or "qa". columns: of
    the tables among them that it reads. range, cost: in words, for ``--list``. suspicious: which end of the
    quantity that it is made from, "low" or "high". paper: where it comes from. flags: it only says yes or no (0 or 1).
    """

    name: str
    what: str
    score: Score
    needs: tuple[str, ...]
    tasks: str = "any"
    columns: tuple[str, ...] = ()
    range: str = "0..1"
    suspicious: str = "high"
    cost: str = "none"
    paper: str = ""
    flags: bool = False

    def can_judge(self, evidence: Evidence) -> bool:
        kind = "qa" if evidence.answers_questions else "labels"
        if self.tasks not in ("any", kind) or not evidence.has(*self.needs):
            return False
        tables = [getattr(evidence, name) for name in self.needs if name in TABLES]
        return all(column in table for table in tables for column in self.columns)

    def __call__(self, evidence: Evidence) -> np.ndarray:
        """Worked out once, also where another detector is made of it."""
        return evidence.once(self.checked)

    def checked(self, evidence: Evidence) -> np.ndarray:
        """The score, worked out."""
        scores = np.asarray(self.score(evidence), dtype=np.float64)
        if scores.shape != (len(evidence),):
            raise ValueError(f"{self.name} gave scores of shape {scores.shape} for {len(evidence)} examples")
        return scores


_registered: dict[str, Detector] = {}


def detector(name: str, what: str, **about: Any) -> Callable[[Score], Score]:
    """Register a function as a detector; about: the fields of ``Detector``."""

    def register(score: Score) -> Score:
        if name in _registered:
            raise ValueError(f"two detectors are called {name}")
        _registered[name] = Detector(name, what, score, **about)
        return score

    return register


def detectors() -> dict[str, Detector]:
    """All detectors of this room by name, in the order of their modules' names and of their lines."""
    from datamap import detection

    for each in pkgutil.iter_modules(detection.__path__, f"{detection.__name__}."):
        if each.name.rpartition(".")[2].startswith("detect_"):
            importlib.import_module(each.name)
    by_module = sorted(_registered.values(), key=lambda each: each.score.__module__)
    return {each.name: each for each in by_module}


def score_all(evidence: Evidence, names: tuple[str, ...] | None = None) -> pd.DataFrame:
    """The scores of every detector that can be had from ``evidence`` (or of those named), one column each, (N, D).

    ``evidence.opinions`` are columns beside them. A detector that says nothing of any example is left out. ValueError
    for a name that is neither.
    """
    import pandas as pd

    known, opinions = detectors(), evidence.opinions
    names = (*known, *opinions) if names is None else names
    if unknown := set(names) - known.keys() - opinions.keys():
        raise ValueError(f"no detectors: {', '.join(sorted(unknown))}")
    able = [name for name in names if name not in known or known[name].can_judge(evidence)]
    scores = {}
    with Progress("scoring", len(able), "detectors") as progress:
        for name in able:
            scores[name] = known[name](evidence) if name in known else np.asarray(opinions[name], dtype=np.float64)
            progress.advance()
    told = {name: score for name, score in scores.items() if not np.isnan(score).all()}
    return pd.DataFrame(told, index=pd.Index(evidence.split.ids, name="id"))


LISTED = {"metrics": "map", "out_of_fold": "out_of_fold.csv", "probabilities": "out_of_fold.csv", "rules": "texts",
          "": "texts"}


def described() -> str:
    """Every detector, a line each, as a table; the first line says how to read it."""
    import pandas as pd

    table = pd.DataFrame([
        {"name": each.name, "task": each.tasks, "range": "0 or 1" if each.flags else each.range,
         "suspicious": each.suspicious, "cost": each.cost,
         "needs": ", ".join(LISTED.get(need, need) for need in each.needs or ("",)), "paper": each.paper,
         "what": each.what}
        for each in detectors().values()
    ])
    return ("every score is higher for an example that is more likely wrong; suspicious: which end of the quantity "
            f"that it is made from\n\n{console_table(table)}")
