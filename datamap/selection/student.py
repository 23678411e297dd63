"""What a judge would say of the examples that it was not asked about, from embeddings; and how far to believe it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from datamap.core.errors import UserError
from datamap.selection.base import count_of

FEWEST = 20  # verdicts to learn from
FOLDS = 5
PENALTIES = np.logspace(0, 6, 13)
RESAMPLES = 2000


def asked_rows(ids: Sequence[str], share: float) -> np.ndarray:
    """(m,) ascending rows that the judge is asked about: a share, 0..1, of the ids, by chance drawn from the ids.

    The same whatever the seed and the order, and all of them among those of a larger share: answers are paid for once.
    """
    order = sorted(range(len(ids)), key=lambda row: hashlib.blake2b(ids[row].encode(), person=b"judged").digest())
    return np.sort(np.array(order[: count_of(share, len(ids))], dtype=np.int64))


def check_enough(verdicts: int) -> None:
    if verdicts < FEWEST:
        raise UserError(f"the judge's verdicts on {verdicts:,} examples are too few to learn from, {FEWEST} are "
                        "needed: give a larger --judge_fraction")


def estimates(
    vectors: np.ndarray, rows: np.ndarray, marks: np.ndarray, highest: float, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """What a student of the judge says of all n examples, (n,) float64 in 0..``highest``, and how far it agrees.

    vectors: (n, d) finite embeddings; marks: (m,), 0..highest, the judge's of ``rows`` (m,). The student is a ridge
    regression on standardised embeddings, its penalty chosen by leaving one out.

    The agreement is about judged examples that the student has not seen, each said by one of FOLDS students fitted to
    the others, and so a little worse than the student of all: ``spearman``, rank correlation with the judge, -1..1,
    None where either says the same of all; ``mean_absolute_error`` in marks, beside that of always saying the mean
    (``of_the_mean``), which a student must be below; each with ``_low`` and ``_high``, the 95 % interval by
    resampling the judged examples (percentiles of RESAMPLES).

    UserError where there are fewer than FEWEST marks.
    """
    from sklearn.model_selection import KFold

    check_enough(len(rows))
    seen, marks = np.asarray(vectors[rows], dtype=np.float64), marks.astype(float)
    said, mean = np.empty(len(rows)), np.empty(len(rows))
    for rest, fold in KFold(FOLDS, shuffle=True, random_state=seed).split(seen):
        said[fold] = _student(seen[rest], marks[rest]).predict(seen[fold])
        mean[fold] = marks[rest].mean()
    of_all = _student(seen, marks).predict(np.asarray(vectors, dtype=np.float64))
    return np.clip(of_all, 0, highest), agreement(np.clip(said, 0, highest), marks, mean, np.random.default_rng(seed))


def _student(vectors: np.ndarray, marks: np.ndarray) -> Any:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(vectors, marks)


def agreement(said: np.ndarray, marks: np.ndarray, mean: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """The figures of ``estimates``, of what was ``said`` (m,) where the judge gave ``marks`` (m,)."""
    m = len(marks)
    errors, plain = abs(said - marks), abs(mean - marks)
    drawn = rng.integers(m, size=(RESAMPLES, m))
    correlations = np.concatenate([_spearman(said[part], marks[part]) for part in np.array_split(drawn, 20)])
    report: dict[str, Any] = {"judged": m}
    samples = {"spearman": (_spearman(said[None], marks[None])[0], correlations),
               "mean_absolute_error": (errors.mean(), errors[drawn].mean(axis=1)),
               "mean_absolute_error_of_the_mean": (plain.mean(), plain[drawn].mean(axis=1))}
    for name, (value, resampled) in samples.items():
        resampled = resampled[np.isfinite(resampled)]
        low, high = np.quantile(resampled, [0.025, 0.975]) if np.isfinite(value) else (np.nan, np.nan)
        for key, number in ((name, value), (f"{name}_low", low), (f"{name}_high", high)):
            report[key] = round(float(number), 6) if np.isfinite(number) else None
    return report


def _spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(r,) rank correlation of each row of two (r, m) arrays, NaN where a row has one value only."""
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=1) for values in (one, other)]
    first, second = (each - each.mean(axis=1, keepdims=True) for each in ranks)
    with np.errstate(invalid="ignore"):
        return (first * second).sum(axis=1) / np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))


def told(report: dict[str, Any]) -> str:
    """``agreement`` in one line, for people."""
    def of(name: str) -> str:
        value, low, high = (report[name + end] for end in ("", "_low", "_high"))
        return "undefined" if value is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"

    return (f"the judge was asked about {report['asked']:,} examples; on the {report['judged']:,} with a verdict a "
            f"student that has not seen them has Spearman {of('spearman')}, mean absolute error "
            f"{of('mean_absolute_error')} (always the mean: {of('mean_absolute_error_of_the_mean')})")
