"""The head against a slow float64 one, the scores against cleanlab called directly, planted flips against random."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from datamap.core.errors import UserError
from datamap.detection import label_quality as module
from datamap.detection.label_quality import label_issues, label_quality, out_of_fold_probabilities, self_filter

pytestmark = pytest.mark.filterwarnings("error")


def planted(n=300, d=12, classes=3, flipped=0.1, distance=1.2, seed=0):
    """Overlapping Gaussian classes with some labels flipped: vectors, labels, which are wrong."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % classes
    vectors = (rng.normal(size=(classes, d)) * distance)[truth] + rng.normal(size=(n, d))
    wrong = np.zeros(n, dtype=bool)
    wrong[rng.choice(n, round(flipped * n), replace=False)] = True
    labels = np.where(wrong, (truth + rng.integers(1, classes, n)) % classes, truth)
    return vectors.astype(np.float32), labels, wrong


def slow_probabilities(vectors, labels, n_classes, folds, state, weights=None):
    """Minimise the penalised loss of a linear head by BFGS, fold by fold, in float64."""
    from scipy.optimize import minimize
    from scipy.special import log_softmax
    from sklearn.model_selection import StratifiedKFold

    x = vectors.astype(np.float64)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    d = x.shape[1]
    result = np.zeros((len(labels), n_classes))
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=state).split(x, labels):
        importance = np.ones(len(train))
        for label in range(n_classes) if weights is not None else ():
            own = labels[train] == label
            importance[own] = weights[train][own] / weights[train][own].mean()

        def logits(flat, rows):
            if n_classes == 2:  # one logit, the other is 0
                score = x[rows] @ flat[:d] + flat[d]
                return np.stack([np.zeros(len(rows)), score], axis=1)
            matrix = flat.reshape(n_classes, d + 1)
            return x[rows] @ matrix[:, :d].T + matrix[:, d]

        def loss(flat, train=train, importance=importance, logits=logits):
            picked = log_softmax(logits(flat, train), axis=1)[np.arange(len(train)), labels[train]]
            slopes = flat.reshape(-1, d + 1)[:, :d]
            return -(importance * picked).sum() + d / 2 * (slopes**2).sum()

        start = np.zeros((1 if n_classes == 2 else n_classes) * (d + 1))
        best = minimize(loss, start, method="BFGS", options={"gtol": 1e-5}).x
        result[test] = np.exp(log_softmax(logits(best, test), axis=1))
    return result


# --- linear head -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "folds"), [(2, 5), (3, 3)])
def test_probabilities_are_those_of_a_slow_head(classes, folds):
    vectors, labels, _ = planted(60, 4, classes)
    vectors *= np.array([1, 1000, 0.001, 5], dtype=np.float32)  # neither units
    vectors += np.array([0, 1e5, 0, 500], dtype=np.float32)  # nor offsets matter
    fast = out_of_fold_probabilities(vectors, labels, classes, folds=folds, seed=3)
    slow = slow_probabilities(vectors, labels, classes, folds, module._split_state(3, 0))
    assert fast.shape == (60, classes) and fast.dtype == np.float64
    np.testing.assert_allclose(fast, slow, atol=2e-3)
    np.testing.assert_allclose(fast.sum(axis=1), 1, atol=1e-12)


def test_memory_mapped_vectors_and_pieces(tmp_path, monkeypatch):
    vectors, labels, _ = planted()
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    whole = out_of_fold_probabilities(vectors, labels, 3, seed=1)
    np.testing.assert_array_equal(out_of_fold_probabilities(mapped, labels, 3, seed=1), whole)
    np.testing.assert_array_equal(vectors, mapped)  # nothing was changed in place
    monkeypatch.setattr(module, "STANDARDISE_ROWS", 7)
    np.testing.assert_allclose(out_of_fold_probabilities(mapped, labels, 3, seed=1), whole, atol=1e-5)


def test_columns_of_rounding_say_nothing():
    """An encoder may have columns that are 0 but for rounding; scaled to variance 1 they would be pure noise."""
    vectors, labels, wrong = planted(d=4)
    noise = np.random.default_rng(0).normal(size=(len(vectors), 60))
    # The wrong labels leak through these columns: were they blown up, the head would learn the errors.
    leak = (noise + 9 * wrong[:, None] * labels[:, None]) * 1e-9
    nothing = np.concatenate([vectors, np.zeros_like(leak), np.full_like(leak, 7)], axis=1).astype(np.float32)
    rounding = np.concatenate([vectors, leak, 7 + leak * 500], axis=1).astype(np.float32)
    assert (rounding[:, 4:] != nothing[:, 4:]).any()
    np.testing.assert_array_equal(
        out_of_fold_probabilities(rounding, labels, 3, seed=0), out_of_fold_probabilities(nothing, labels, 3, seed=0)
    )
    small = vectors * np.float32(1e-12)  # all of it small is no rounding
    np.testing.assert_allclose(
        out_of_fold_probabilities(small, labels, 3, seed=0), out_of_fold_probabilities(vectors, labels, 3, seed=0),
        atol=1e-3,
    )


def test_constant_vectors_give_the_shares_of_the_classes():
    labels = np.repeat([0, 1], [75, 25])
    probabilities = out_of_fold_probabilities(np.ones((100, 3), dtype=np.float32), labels, 2, seed=0)
    np.testing.assert_allclose(probabilities, np.tile([0.75, 0.25], (100, 1)), atol=1e-3)


def test_a_class_without_examples_has_probability_0():
    vectors, labels, _ = planted(classes=2)
    absent = out_of_fold_probabilities(vectors, labels * 2, 4, seed=5)
    np.testing.assert_array_equal(absent[:, [1, 3]], 0)
    np.testing.assert_array_equal(absent[:, [0, 2]], out_of_fold_probabilities(vectors, labels, 2, seed=5))
    assert label_issues(labels * 2, absent).tolist() == label_issues(labels, absent[:, [0, 2]]).tolist()


def test_seeds():
    vectors, labels, _ = planted()
    for score in (out_of_fold_probabilities, self_filter):
        first, again, other = (score(vectors, labels, 3, seed=seed) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).max() > 1e-4
    states = {module._split_state(seed, number) for seed in range(20) for number in range(20)}
    assert len(states) == 400


@pytest.mark.parametrize("score", [out_of_fold_probabilities, self_filter])
def test_what_a_user_can_mend(score):
    vectors, labels, _ = planted(60)
    broken = vectors.copy()
    broken[41, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):  # diversity.check_finite says which
        score(broken, labels, 3, seed=0)
    broken[17, 0] = -np.inf
    with pytest.raises(ValueError, match="infinity"):
        score(broken, labels, 3, seed=0)
    with pytest.raises(UserError, match="the one label 'good'; expected two classes"):
        score(vectors, np.ones(60, dtype=int), 2, seed=0, names=("bad", "good"))
    with pytest.raises(UserError, match="no labels"):
        score(vectors[:0], labels[:0], 2, seed=0)
    single = np.where(np.arange(60) == 5, 2, labels % 2)
    with pytest.raises(UserError, match=r"1 example of class 2 for \d folds; .*: drop the class or merge it$"):
        score(vectors, single, 3, seed=0)


def test_what_a_user_can_mend_of_folds():
    vectors, labels, _ = planted(60)
    rare = np.where(np.isin(np.arange(60), [5, 6, 7]), 2, labels % 2)
    with pytest.raises(UserError, match="3 examples of class 'so-so' for 5 folds; .*: use 3 folds, or drop"):
        out_of_fold_probabilities(vectors, rare, 3, seed=0, names=("bad", "good", "so-so"))
    assert out_of_fold_probabilities(vectors, rare, 3, folds=3, seed=0)[rare == 2, 2].min() > 0
    assert (self_filter(vectors, rare, 3, rounds=2, seed=0) > 0).all()  # its halves need only two
    with pytest.raises(UserError, match="found 1 folds"):
        out_of_fold_probabilities(vectors, labels, 3, folds=1, seed=0)
    with pytest.raises(UserError, match="found 0 rounds"):
        self_filter(vectors, labels, 3, rounds=0, seed=0)


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 3], [-1, 0, 1], [0.0, 1, 1]])
def test_labels_that_a_caller_got_wrong(labels):
    labels = np.array(labels)
    for score in (out_of_fold_probabilities, self_filter):
        with pytest.raises(ValueError, match="^labels "):
            score(np.ones((3, 2), dtype=np.float32), labels, 3, seed=0)


# --- confident learning ------------------------------------------------------------------------------------------


@st.composite
def judged_labels(draw):
    n, classes = draw(st.integers(1, 25)), draw(st.integers(2, 5))
    labels = draw(hnp.arrays(np.int64, n, elements=st.integers(0, classes - 1)))
    raw = draw(hnp.arrays(np.float64, (n, classes), elements=st.sampled_from([0.0, 0.0, 1e-9, 0.1, 0.5, 1.0])))
    raw[raw.sum(axis=1) == 0] = 1
    return labels, raw / raw.sum(axis=1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(judged_labels())
def test_scores_are_cleanlabs(case):
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    labels, probabilities = case
    scores = label_quality(labels, probabilities)
    np.testing.assert_array_equal(scores, get_label_quality_scores(labels, probabilities))
    np.testing.assert_array_equal(scores, probabilities[np.arange(len(labels)), labels])
    if len(set(labels)) == 1:
        with pytest.raises(UserError, match="found a single class"):
            label_issues(labels, probabilities)
        return
    issues = label_issues(labels, probabilities)
    assert issues.shape == labels.shape and issues.dtype == bool
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(issues, find_label_issues(labels, probabilities))
    assert all((labels[~issues] == label).any() for label in labels)


def test_ranking_on_a_real_fit_is_cleanlabs(capfd):
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import order_label_issues

    vectors, labels, wrong = planted(600)
    probabilities = out_of_fold_probabilities(vectors, labels, 3, seed=0)
    scores, issues = label_quality(labels, probabilities), label_issues(labels, probabilities)
    np.testing.assert_array_equal(issues, find_label_issues(labels, probabilities))
    ours = np.flatnonzero(issues)[np.argsort(scores[issues], kind="stable")]
    np.testing.assert_array_equal(ours, order_label_issues(issues, labels, probabilities))
    assert wrong[issues].mean() > 0.6 and issues[wrong].mean() > 0.6
    assert capfd.readouterr() == ("", "")


def test_two_classes_rank_alike_by_every_name():
    """What the docstring of label_quality says of margin, loss and EL2N."""
    vectors, labels, _ = planted(classes=2)
    probabilities = out_of_fold_probabilities(vectors, labels, 2, seed=0)
    from cleanlab.rank import get_label_quality_scores

    order = np.argsort(label_quality(labels, probabilities), kind="stable")
    given = probabilities[np.arange(len(labels)), labels]
    el2n = np.linalg.norm(probabilities - np.eye(2)[labels], axis=1)
    np.testing.assert_allclose(el2n, np.sqrt(2) * (1 - given), atol=1e-12)
    margin = get_label_quality_scores(labels, probabilities, method="normalized_margin")
    for falling in (-margin, -np.log(given), el2n):
        assert (np.diff(falling[order]) <= 1e-12).all()


def test_cleanlab_does_not_switch_off_warnings():
    program = (
        "import warnings, numpy; from datamap.detection import label_quality; before = list(warnings.filters); "
        "label_quality.label_quality(numpy.array([0]), numpy.array([[0.5, 0.5]])); assert warnings.filters == before"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)


# --- self-filter -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_one_round_is_label_quality_on_two_folds(classes):
    vectors, labels, _ = planted(classes=classes)
    probabilities = out_of_fold_probabilities(vectors, labels, classes, folds=2, seed=9)
    np.testing.assert_array_equal(
        self_filter(vectors, labels, classes, rounds=1, seed=9), label_quality(labels, probabilities)
    )


def test_rounds_weight_by_the_score_so_far():
    vectors, labels, _ = planted(60, 3, 2)
    total = np.zeros(60)
    for number in range(3):
        weights = np.maximum(total / number, module.MIN_WEIGHT) if number else None
        probabilities = slow_probabilities(vectors, labels, 2, 2, module._split_state(4, number), weights)
        total += probabilities[np.arange(60), labels]
    np.testing.assert_allclose(self_filter(vectors, labels, 2, rounds=3, seed=4), total / 3, atol=2e-3)


@settings(deadline=None)
@given(hnp.arrays(np.float64, 12, elements=st.floats(0, 1)), st.randoms(use_true_random=False))
def test_weights_average_1_in_each_class(weights, random):
    labels = np.array([random.choice([0, 2]) for _ in range(12)])
    rows = np.array(sorted(random.sample(range(12), 8)))
    balanced = module._balanced(weights, labels, rows)
    assert balanced.shape == (8,) and (balanced > 0).all()
    for label in set(labels[rows]):
        own = labels[rows] == label
        assert balanced[own].mean() == pytest.approx(1)
        raised = np.maximum(weights[rows][own], module.MIN_WEIGHT)
        np.testing.assert_allclose(balanced[own], raised / raised.mean())


# --- both --------------------------------------------------------------------------------------------------------


def test_flipped_labels_are_found():
    from sklearn.metrics import average_precision_score

    vectors, labels, wrong = planted(1000, distance=0.6, seed=1)
    scores = {
        "label_quality": label_quality(labels, out_of_fold_probabilities(vectors, labels, 3, seed=0)),
        "self_filter": self_filter(vectors, labels, 3, seed=0),
    }
    for name, score in scores.items():
        assert average_precision_score(wrong, 1 - score) > 0.55, name  # 0.1 at random


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_vectors(data):
    """Constant columns, duplicate rows, huge and tiny numbers."""
    classes, each, d = (data.draw(st.integers(low, high)) for low, high in ((2, 4), (2, 6), (1, 4)))
    values = st.sampled_from([0.0, 0.0, 1.0, -1.0, 1e-30, 3e7, 0.1])
    vectors = data.draw(hnp.arrays(np.float32, (classes * each, d), elements=values.map(np.float32)))
    labels = data.draw(st.permutations(np.repeat(np.arange(classes), each).tolist()).map(np.array))
    probabilities = out_of_fold_probabilities(vectors, labels, classes, folds=2, seed=0)
    score = self_filter(vectors, labels, classes, rounds=2, seed=0)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert score.shape == (len(labels),) and ((score >= 0) & (score <= 1)).all()
