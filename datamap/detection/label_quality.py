"""How much to trust each label: a linear head's out-of-fold probabilities, cleanlab's scores, a self-filter."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from datamap.core.errors import UserError

MIN_WEIGHT = 1e-3  # of an example in the self-filter: distrusted, never silenced, so that no class weighs nothing
STANDARDISE_ROWS = 16_384  # rows read at a time, so that memory-mapped vectors are never copied whole


# --- linear head -------------------------------------------------------------------------------------------------


def out_of_fold_probabilities(
    vectors: np.ndarray, labels: np.ndarray, n_classes: int, *, folds: int = 5, seed: int,
    names: Sequence[str] | None = None, assigned: np.ndarray | None = None,
) -> np.ndarray:
    """Class probabilities of each example by a head that was trained without it: (n, C) float64, rows add up to 1.

    vectors: (n, d) float32, may be memory-mapped. labels: (n,) integers 0 .. C - 1. ``names``: of the classes, for
    messages. The rows are split into stratified folds, drawn by ``seed``; the folds depend on the order of the rows,
    so that rows in the order of their sorted ids give each example the same probabilities however the file is
    shuffled. assigned: (n,) the fold of each row, instead of ``folds`` that are drawn.

    The head is multinomial logistic regression on vectors standardised over all rows (no label is looked at), with an
    L2 penalty of strength d: the logits then have a prior variance near 1 at any width, which keeps the head from
    learning single wrong labels by heart. It is fitted in float32 with L-BFGS, the same to the bit for the same
    vectors and number of threads. Beside the vectors it holds a float32 copy of one training fold, (1 - 1/folds) of
    their size.

    A class without any example gets probability 0, which is what cleanlab expects. Every other class needs an
    example in each fold, else some examples would be judged by a head that has never seen their class: a class with
    fewer than ``folds`` raises UserError, as does a single class. Vectors must be finite (``diversity.check_finite``).
    """
    _check_labels(labels, len(vectors), n_classes)
    if assigned is None:
        _check_classes(labels, folds, names)
        assigned = _drawn_folds(labels, folds, _split_state(seed, 0))
    return _out_of_fold(vectors, labels, n_classes, assigned, *_centre_and_scale(vectors))


def _drawn_folds(labels: np.ndarray, folds: int, state: int) -> np.ndarray:
    """(n,) numbers of stratified folds."""
    from sklearn.model_selection import StratifiedKFold

    assigned = np.zeros(len(labels), dtype=np.int64)
    # The dummy stands for the vectors, which the splitter does not look at but would read.
    splitter = StratifiedKFold(folds, shuffle=True, random_state=state)
    for number, (_, test) in enumerate(splitter.split(np.zeros(len(labels)), labels)):
        assigned[test] = number
    return assigned


def _out_of_fold(
    vectors: np.ndarray, labels: np.ndarray, n_classes: int, assigned: np.ndarray, centre: np.ndarray,
    scale: np.ndarray, weights: np.ndarray | None = None,
) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    def standardised(rows: np.ndarray) -> np.ndarray:
        chosen = np.asarray(vectors[rows], dtype=np.float32)  # a copy: rows are chosen by number
        chosen -= centre
        chosen /= scale
        return chosen

    probabilities = np.zeros((len(labels), n_classes))
    for fold in np.unique(assigned):
        train, test = np.flatnonzero(assigned != fold), np.flatnonzero(assigned == fold)
        head = LogisticRegression(C=1 / vectors.shape[1], max_iter=1000)
        head.fit(standardised(train), labels[train], None if weights is None else _balanced(weights, labels, train))
        probabilities[np.ix_(test, head.classes_)] = head.predict_proba(standardised(test))
    return probabilities / probabilities.sum(axis=1, keepdims=True)  # float32 leaves them 1e-7 off


def _split_state(seed: int, round_number: int) -> int:
    """Rounds of neighbouring seeds share no split, as they would with seed + round."""
    return int(np.random.default_rng([seed, round_number]).integers(2**32))


def _centre_and_scale(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, (d,) float32 each, summed in float64 a few rows at a time.

    A column that spreads by less than a millionth of its own size or of the widest column holds nothing but rounding
    (encoders have such columns): its scale is infinite, so that it becomes 0 instead of noise of variance 1.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for start in range(0, len(vectors), STANDARDISE_ROWS):
        scaler.partial_fit(vectors[start : start + STANDARDISE_ROWS])
    deviation = np.sqrt(scaler.var_)
    floor = 1e-6 * np.maximum(deviation.max(), np.abs(scaler.mean_))
    return scaler.mean_.astype(np.float32), np.where(deviation > floor, deviation, np.inf).astype(np.float32)


def _check_labels(labels: np.ndarray, rows: int, n_classes: int) -> None:
    if labels.shape != (rows,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels of shape {labels.shape} and type {labels.dtype} for {rows} rows")
    if rows and not 0 <= labels.min() <= labels.max() < n_classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()} for {n_classes} classes")


def _check_classes(labels: np.ndarray, folds: int, names: Sequence[str] | None = None) -> None:
    if folds < 2:
        raise UserError(f"found {folds} folds; expected at least 2, one to learn from and one to judge")
    classes, counts = np.unique(labels, return_counts=True)
    called = [repr(names[number]) if names else str(number) for number in classes]
    if len(classes) < 2:
        raise UserError(f"found {'the one label ' + called[0] if called else 'no labels'}; expected two classes at "
                        "least: a label is judged by what tells its class from the others")
    count = int(counts.min())
    if count < folds:
        mend = f"use {count} folds, or drop or merge the class" if count > 1 else "drop the class or merge it"
        raise UserError(f"found {count} example{'s' if count > 1 else ''} of class {called[counts.argmin()]} for "
                        f"{folds} folds; expected at least one for each fold: {mend}")


# --- confident learning ------------------------------------------------------------------------------------------


def label_quality(labels: np.ndarray, probabilities: np.ndarray, method: str = "self_confidence") -> np.ndarray:
    """cleanlab's label quality score of each example: (n,) float64 from 0 (the label is suspicious) to 1.

    labels: (n,) integers 0 .. C - 1. probabilities: (n, C), out of fold. The score is cleanlab's own default, the
    self-confidence p(given label). With two classes its ranking is also that of the normalised margin 2 p - 1, of the
    loss -log p and of EL2N, sqrt(2) (1 - p). method: or ``normalized_margin``, (1 + p(given) - largest other p) / 2,
    or ``confidence_weighted_entropy``, the entropy divided by the self-confidence, scaled to where 1 is the best.
    """
    return _cleanlab().rank.get_label_quality_scores(labels, probabilities, method=method)


def label_issues(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Which labels cleanlab holds to be wrong, by confident learning: (n,) bool.

    Arguments as in ``label_quality``. Confident learning (Northcutt, Jiang & Chuang 2021, arXiv 1911.00068) counts
    for each pair of classes how many examples labelled i are confidently j, that is above the mean probability of j
    among the examples labelled j, and marks that many of the examples least likely to be i (cleanlab's default,
    "prune by noise rate"). Classes without examples are allowed, the last example of a class is never marked, and one
    class alone raises UserError.
    """
    if len(np.unique(labels)) < 2:
        raise UserError("found a single class; expected two at least: there is no other label that could be right")
    with warnings.catch_warnings():
        # Said of every class with one example or none, which is in the docstring above.
        warnings.filterwarnings("ignore", "May not flag all label issues in class")
        return _cleanlab().filter.find_label_issues(labels, probabilities, n_jobs=1)


def _cleanlab() -> ModuleType:
    """The library, without its side effect: importing it (2.9.0) switches off every warning of the process."""
    with warnings.catch_warnings():
        import cleanlab.filter
        import cleanlab.rank
    return cleanlab


# --- self-filter -------------------------------------------------------------------------------------------------


def self_filter(
    vectors: np.ndarray, labels: np.ndarray, n_classes: int, *, rounds: int = 10, seed: int,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Agreement of a small head with each label, over rounds of distrusting what it disagreed with: (n,) from 0 to 1.

    Arguments as in ``out_of_fold_probabilities``. In each round the examples are split at random into two halves
    (stratified); a linear head learns from one half, every example weighted by its score so far, and judges the
    other, and the other way round. The score is the mean over rounds of the probability that the head gave to the
    label: high means that heads which never saw the example agree with it. Weights average 1 within a class, so that
    a class that is hard is not pushed out by one that is easy.

    The first round knows no scores: ``rounds=1`` is exactly ``label_quality`` on probabilities of two folds with the
    same seed. More rounds average out the luck of the split and lower the say of distrusted labels; the ranking stays
    close to ``label_quality``'s, of which this is a reweighted, repeated form, not another kind of evidence. With a
    tenth of SST-2's labels flipped it found them as well as the same rounds without weights, no better.

    A simple form of our own. Its parts are those of iterative noisy cross-validation (Chen et al. 2019, arXiv
    1905.05040), which instead keeps or drops whole examples whose label a network of the other half predicts; and the
    score in place of a loss weight recalls Self-Filter (Chen et al. 2024, arXiv 2402.12501), which trains a scoring
    network together with a vision-language model and then prefers the *hard* examples. Raises UserError for a class
    with fewer than two examples, and a single class.
    """
    if rounds < 1:
        raise UserError(f"found {rounds} rounds; expected at least 1")
    _check_labels(labels, len(vectors), n_classes)
    _check_classes(labels, 2, names)
    centre, scale = _centre_and_scale(vectors)
    total = np.zeros(len(labels))
    for round_number in range(rounds):
        weights = total / round_number if round_number else None
        state = _split_state(seed, round_number)
        probabilities = _out_of_fold(vectors, labels, n_classes, _drawn_folds(labels, 2, state), centre, scale,
                                     weights)
        total += probabilities[np.arange(len(labels)), labels]
    return total / rounds


def _balanced(weights: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Weights of the chosen rows, at least MIN_WEIGHT, divided by their mean within each class."""
    chosen, classes = np.maximum(weights[rows], MIN_WEIGHT), labels[rows]
    counts = np.bincount(classes)
    means = np.bincount(classes, weights=chosen) / np.maximum(counts, 1)
    return chosen / means[classes]
