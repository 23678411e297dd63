"""The student of a judge: whom the judge is asked about, what is said of the others, and how far that agrees."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold

from datamap.core.errors import UserError
from datamap.selection.student import FOLDS, PENALTIES, agreement, asked_rows, estimates, told

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = [f"r{number:03d}" for number in range(300)]


def test_who_is_asked_depends_on_the_ids_alone():
    tenth = {IDS[row] for row in asked_rows(IDS, 0.1)}
    assert len(tenth) == 30
    order = np.random.default_rng(0).permutation(len(IDS)).tolist()
    shuffled = [IDS[row] for row in order]
    assert {shuffled[row] for row in asked_rows(shuffled, 0.1)} == tenth
    assert tenth < {IDS[row] for row in asked_rows(IDS, 0.2)}, "answers that are paid for are used again"
    assert asked_rows(IDS, 1.0).tolist() == list(range(300))
    assert abs(np.mean(asked_rows(IDS, 0.3)) - 149.5) < 25  # from everywhere


def made(n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors, and marks 0..3 that a direction of them decides but for ``noise``."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 8)) * [5, 1, 1, 1, 1, 1, 0.1, 1]
    marks = np.clip(np.round(1 + 4 * vectors[:, 6] * 3 + noise * rng.normal(size=n)), 0, 3)
    return vectors.astype(np.float32), marks.astype(int)


def slow(vectors: np.ndarray, marks: np.ndarray, new: np.ndarray) -> np.ndarray:
    mean, spread = vectors.mean(axis=0), vectors.std(axis=0)
    model = RidgeCV(PENALTIES).fit((vectors - mean) / spread, marks)
    return np.clip(model.predict((new - mean) / spread), 0, 3)


def test_the_figures_against_a_slow_version():
    vectors, all_marks = made(150, 0.5)
    rows = asked_rows(IDS[:150], 0.4)
    marks = all_marks[rows]
    expected, report = estimates(vectors, rows, marks, 3, seed=7)
    seen = vectors[rows].astype(float)
    np.testing.assert_allclose(expected, slow(seen, marks, vectors.astype(float)), atol=1e-9)
    said, mean = np.empty(len(rows)), np.empty(len(rows))
    for rest, fold in KFold(FOLDS, shuffle=True, random_state=7).split(rows):
        said[fold] = slow(seen[rest], marks[rest], seen[fold])
        mean[fold] = marks[rest].mean()
    assert report["judged"] == len(rows) == 60
    assert report["spearman"] == pytest.approx(stats.spearmanr(said, marks).statistic, abs=1e-6)
    errors = [abs(one - other) for one, other in zip(said.tolist(), marks.tolist(), strict=True)]
    assert report["mean_absolute_error"] == pytest.approx(math.fsum(errors) / 60, abs=1e-6)
    assert report["mean_absolute_error_of_the_mean"] == pytest.approx(abs(mean - marks).mean(), abs=1e-6)
    # The interval of a mean by resampling is about that of its standard error.
    half = 1.96 * np.std(errors) / math.sqrt(60)
    assert report["mean_absolute_error_high"] - report["mean_absolute_error_low"] == pytest.approx(2 * half, rel=0.1)
    # Fisher's, of ranks, in the width of Bonett and Wright 2000.
    z, se = math.atanh(report["spearman"]), math.sqrt((1 + report["spearman"] ** 2 / 2) / 57)
    assert report["spearman_low"] == pytest.approx(math.tanh(z - 1.96 * se), abs=0.12)
    assert report["spearman_high"] == pytest.approx(math.tanh(z + 1.96 * se), abs=0.12)
    assert "Spearman 0." in told({"asked": 61, **report}) and "\n" not in told({"asked": 61, **report})


def test_a_student_of_chance_is_told_from_one_that_knows():
    vectors, marks = made(200, 0.3)
    knows = estimates(vectors, np.arange(200), marks, 3, 0)[1]
    assert knows["spearman_low"] > 0.5
    assert knows["mean_absolute_error_high"] < knows["mean_absolute_error_of_the_mean_low"]
    shuffled = np.random.default_rng(1).permutation(marks)
    chance = estimates(vectors, np.arange(200), shuffled, 3, 0)[1]
    assert chance["spearman_low"] < 0
    assert chance["mean_absolute_error_high"] > chance["mean_absolute_error_of_the_mean_low"]


def test_a_judge_that_says_the_same_of_all_gives_no_correlation():
    vectors, _ = made(40, 0.3)
    expected, report = estimates(vectors, np.arange(40), np.zeros(40, dtype=int), 3, 0)
    assert (expected == 0).all()
    assert report["spearman"] is None and report["spearman_low"] is None and report["mean_absolute_error"] == 0
    assert "undefined" in told({"asked": 40, **report})


def test_ties_count_as_their_mean_rank():
    rng = np.random.default_rng(3)
    said, marks = rng.integers(3, size=50).astype(float), rng.integers(2, size=50).astype(float)
    report = agreement(said, marks, np.full(50, marks.mean()), rng)
    assert report["spearman"] == pytest.approx(stats.spearmanr(said, marks).statistic, abs=1e-6)


def test_too_few_verdicts_are_refused_in_one_line():
    vectors, marks = made(19, 0.3)
    with pytest.raises(UserError, match="19 examples are too few to learn from, 20 are needed: give a larger"):
        estimates(vectors, np.arange(19), marks, 3, 0)
