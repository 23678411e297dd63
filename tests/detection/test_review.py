"""The review that learns: against a slow solver, its fixed points, what it says, and whether it finds more."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evidence_made import made_labels, made_questions, of_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import norm, rankdata
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from datamap.core.splits import load_split
from datamap.detection.base import Evidence, score_all
from datamap.detection.review import (
    FEATURE_SPREAD,
    FLOOR,
    GROUP_SPREAD,
    MOST_GROUPS,
    OTHERS,
    SLOPE_SPREAD,
    ReviewFeatures,
    design,
    features,
    learn,
    rank,
    review,
    simulate_review,
    telling_words,
    weighted,
)
from datamap.tasks.questions import fold
from datamap.tasks.registry import get_task

NAMES = ("confidence", "oof_confidence", "knn_disagreement", "duplicate_disagreement")


@pytest.fixture(scope="module")
def labelled():
    return made_labels(300)


@pytest.fixture(scope="module")
def asked():
    return made_questions(120)


def suspicion_of(evidence, seed=0):
    return np.random.default_rng(seed).random(len(evidence))


def made_features(n=400, width=6, groups=3, seed=0, suspicion=0.1):
    rng = np.random.default_rng(seed)
    offset = np.full(n, np.log(suspicion / (1 - suspicion))) + 0.01 * rng.normal(size=n)
    return ReviewFeatures(rng.normal(size=(n, width)) * 0.3, [f"f{place}" for place in range(width)],
                    rng.integers(0, groups, n), [f"g{place}" for place in range(groups)], offset)


def slow_weights(rows, offset, wrong):
    """By a general minimiser, an example at a time, from its definition."""
    def objective(weights):
        value = float(sum(each * each for each in weights)) / 2
        for row, start, y in zip(rows, offset, wrong, strict=True):
            z = start + sum(a * b for a, b in zip(row, weights, strict=True))
            value += max(z, 0) - y * z + np.log1p(np.exp(-abs(z)))
        return value

    return minimize(objective, np.zeros(rows.shape[1]), method="BFGS", options={"gtol": 1e-7}).x


# --- learning ----------------------------------------------------------------------------------------------------


def test_weights_are_those_of_a_slow_solver():
    rng = np.random.default_rng(3)
    rows, offset = rng.normal(size=(40, 4)), rng.normal(size=40) - 1
    wrong = (rng.random(40) < 0.4).astype(float)
    assert np.allclose(learn(rows, offset, wrong), slow_weights(rows, offset, wrong), atol=1e-5)


def test_weights_are_those_of_scikit_learn():
    """Which has no offset: with a column of large variance in its place, whose weight must come out as 1."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    rows = rng.normal(size=(200, 5))
    wrong = (rng.random(200) < 1 / (1 + np.exp(-rows[:, 0]))).astype(float)
    fitted = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(rows, wrong)
    assert np.allclose(learn(rows, np.zeros(200), wrong), fitted.coef_[0], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), scale=st.floats(0.1, 30), certainty=st.floats(0, 9.2),
       all_alike=st.sampled_from([0, 1, None]))
def test_the_gradient_is_zero_whatever_was_decided(seed, n, scale, certainty, all_alike):
    """The one maximum, also where suspicion was quite sure of the opposite and all are decided alike."""
    rng = np.random.default_rng(seed)
    rows, offset = rng.normal(size=(n, 5)) * scale, certainty * rng.choice([-1, 1], n)
    wrong = rng.integers(0, 2, n).astype(float) if all_alike is None else np.full(n, float(all_alike))
    weights = learn(rows, offset, wrong)
    p = 1 / (1 + np.exp(-(offset + rows @ weights)))
    assert np.abs(rows.T @ (wrong - p) - weights).max() < 1e-7 * (1 + scale * n)


def test_without_decisions_it_is_suspicion(labelled, asked):
    for evidence in (labelled, asked):
        suspicion = suspicion_of(evidence)
        suspicion[:2] = 0, 1
        found = features(evidence, score_all(evidence, NAMES[:2]), suspicion)
        after = review(found, np.full(len(evidence), np.nan))
        assert np.allclose(after, np.clip(suspicion, FLOOR, 1 - FLOOR), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 30))
def test_a_wrong_one_raises_what_is_alike_and_a_right_one_lowers_it(seed, count):
    found = made_features(seed=seed, n=60)
    found.values[1] = found.values[0]
    found.group[1] = found.group[0]
    rng = np.random.default_rng(seed)
    decided = np.full(60, np.nan)
    decided[2 : 2 + count] = rng.integers(0, 2, count)
    before = review(found, decided)[1]
    for value, sign in ((1.0, 1), (0.0, -1)):
        after = review(found, np.concatenate([[value], decided[1:]]))
        assert sign * (after[1] - before) > 0
        assert np.all((after > 0) & (after < 1))


def test_one_decision_moves_little_and_many_decide():
    found = made_features(groups=2, width=1)
    inside = np.flatnonzero(found.group == 0)
    decided = np.full(len(found), np.nan)
    decided[inside[0]] = 1
    left = inside[60:]
    assert 0.1 < review(found, decided)[left].mean() < 0.3
    decided[inside[:60]] = 1
    assert review(found, decided)[left].mean() > 0.8
    assert review(found, decided)[found.group == 1].mean() < 0.2


def test_the_order_of_the_examples_does_not_matter():
    found = made_features()
    decided = np.where(np.arange(len(found)) < 50, np.arange(len(found)) % 2, np.nan)
    order = np.random.default_rng(0).permutation(len(found))
    assert np.allclose(review(found.rows(order), decided[order]), review(found, decided)[order], atol=1e-9)


# --- what is looked at -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["labelled", "asked"])
def test_features_are_centred_and_each_kind_has_its_spread(kind, request):
    evidence = request.getfixturevalue(kind)
    suspicion = suspicion_of(evidence)
    scores = score_all(evidence, NAMES[:3] if kind == "labelled" else NAMES[:2])
    found = features(evidence, scores, suspicion)
    assert np.abs(found.values.mean(axis=0)).max() < 1e-9
    topics = [place for place, name in enumerate(found.names) if name.startswith("topic ")]
    for columns in (range(scores.shape[1]), topics):
        assert (found.values[:, list(columns)] ** 2).sum(axis=1).mean() == pytest.approx(FEATURE_SPREAD**2)
    assert np.allclose(found.values[:, -1], SLOPE_SPREAD * (found.offset - found.offset.mean()))
    assert found.names[-1] == "suspicion"
    assert sorted(set(found.groups)) == sorted(set(evidence.split.task.groups(evidence.split.data)[1]))


def test_only_the_ranks_of_a_detector_count_and_what_it_does_not_know_is_in_the_middle(labelled):
    scores = score_all(labelled, ("confidence",))
    scores.iloc[::7] = np.nan
    one, two = (features(labelled, table, suspicion_of(labelled)).values[:, 0]
                for table in (scores, np.exp(9 * scores)))
    assert np.allclose(one, two)
    assert np.allclose(one[::7], one[0])
    assert np.abs(one[::7]).max() < 0.1 * np.abs(one).max()


def test_a_detector_that_is_the_same_for_all_and_none_at_all(labelled):
    suspicion = suspicion_of(labelled)
    index = pd.Index(labelled.split.ids, name="id")
    none = features(labelled, pd.DataFrame(index=index), suspicion)
    same = features(labelled, pd.DataFrame({"flat": np.ones(len(index)), "empty": np.full(len(index), np.nan)}, index),
                    suspicion)
    assert none.names == same.names
    assert "flat" not in same.names


def test_the_columns_within_a_group_are_those_of_its_own_examples():
    found = made_features(n=9, width=2, groups=3)
    rows = design(found)
    assert rows.shape == (9, 3 + 2 + 6)
    for row, group in enumerate(found.group):
        one_hot = np.eye(3)[group]
        within = np.concatenate([found.values[row] * (place == group) / np.sqrt(3) for place in range(3)])
        assert np.allclose(rows[row], np.concatenate([GROUP_SPREAD * one_hot, found.values[row], within]))
    alone = ReviewFeatures(found.values, found.names, np.zeros(9, dtype=int), ["all"], found.offset)
    assert design(alone).shape == (9, 3)
    for each in (found, alone):
        weights: np.ndarray = np.random.default_rng(0).normal(size=(design(each).shape[1],))
        assert np.allclose(weighted(each, weights), design(each) @ weights)


def test_rare_groups_share_their_weights(asked):
    class Many:
        name = "qa"

        def groups(self, data):
            return "question_type", [f"type {row % 20 if row > 40 else 0}" for row in range(len(data))]

        def __getattr__(self, name):
            return getattr(asked.split.task, name)

    many = of_rows(asked, np.arange(len(asked)))
    many.split = replace(many.split, task=Many())
    found = features(many, score_all(asked, NAMES[:1]), suspicion_of(asked))
    assert len(found.groups) == MOST_GROUPS
    assert found.groups[0] == "type 0"
    assert found.groups[-1] == OTHERS
    assert (found.group == MOST_GROUPS - 1).sum() > 1


def test_words_that_tell_a_pair_are_those_of_one_text_alone(labelled, asked):
    data = labelled.split.data
    for row, words in enumerate(telling_words(labelled, range(50))):
        one, two = (set(data[column][row].casefold().split()) for column in ("premise", "hypothesis"))
        assert {word.strip(".,?") for word in words} <= {word.strip(".,?") for word in one ^ two}
    question, words = asked.split.data["question"][0], telling_words(asked, [0])[0]
    assert len(words) == len(set(words))
    assert question.casefold().split()[0] in words


@pytest.mark.parametrize("kind", ["labelled", "asked"])
def test_shapes_and_topics_are_those_of_the_words_as_lists(kind, request):
    """Lengths and shared words counted in plain Python, topics of the TF-IDF that scikit-learn makes of the lists."""
    evidence = request.getfixturevalue(kind)
    data = evidence.split.data
    if kind == "asked":
        texts = [(fold(question), answer["text"][0].casefold() if answer["text"] else "")
                 for question, answer in zip(data["question"], data["answers"], strict=True)]
    else:
        texts = [(fold(one), fold(two)) for one, two in zip(data["premise"], data["hypothesis"], strict=True)]
    found = features(evidence, score_all(evidence, NAMES[:1]), suspicion_of(evidence))
    column = {name: found.values[:, place] for place, name in enumerate(found.names)}
    sets = [(set(one.split()), set(two.split())) for one, two in texts]
    shared = np.array([len(one & two) / len(one | two) for one, two in sets])
    longer = np.array([len(one.split()) for one, _ in texts])
    first = next(name for name in found.names if name.startswith("length of "))
    for name, values in (("shared words", shared), (first, longer)):
        ranks = (rankdata(values) - 0.5) / len(values)
        assert np.corrcoef(column[name], norm.ppf(ranks))[0, 1] == pytest.approx(1)
    telling = telling_words(evidence, range(len(evidence)))
    counts = pd.Series([word for words in telling for word in words]).value_counts()
    matrix = TfidfVectorizer(analyzer=list, vocabulary=sorted(counts[counts >= 3].index)).fit_transform(telling)
    topics = TruncatedSVD(sum(name.startswith("topic ") for name in found.names), random_state=0).fit_transform(matrix)
    for number, values in enumerate(topics.T, 1):
        assert np.corrcoef(column[f"topic {number}"], values)[0, 1] == pytest.approx(1)


# --- a ranking ---------------------------------------------------------------------------------------------------


def test_a_ranking_tells_what_it_learned(labelled):
    """All of one class are wrong, and none of the others."""
    suspicion, scores = suspicion_of(labelled), score_all(labelled, NAMES)
    names = labelled.class_names
    decisions = {example: "drop" if names[label] == "neutral" else "keep"
                 for example, label in zip(labelled.split.ids[:150], labelled.labels[:150].tolist(), strict=True)}
    nothing = rank(labelled, scores, suspicion, {**dict.fromkeys(labelled.split.ids, ""), "elsewhere": "drop"})
    assert nothing.learned == ["no decisions yet: the order is that of suspicion"]
    assert np.allclose(nothing.probability, np.clip(suspicion, FLOOR, 1 - FLOOR))
    found = rank(labelled, scores, suspicion, decisions)
    neutral = labelled.labels == names.index("neutral")
    reviewed = np.arange(len(labelled)) < 150
    count = int((neutral & reviewed).sum())
    parts = found.learned[0].replace(" reviewed pairs", "").replace(" were wrong", "").split(", ")
    assert sorted(parts) == sorted([
        f"of {count} labelled neutral {count}",
        *(f"of {((labelled.labels == names.index(name)) & reviewed).sum()} labelled {name} none"
          for name in ("entailment", "contradiction")),
    ])
    assert found.learned[0].count(" reviewed pairs labelled ") == found.learned[0].count(" were wrong") == 1
    assert found.learned[1] == (f"{count} of 150 were wrong, where suspicion had expected "
                                f"{suspicion[:150].sum():.1f}")
    left = ~reviewed
    assert found.probability[left & neutral].min() > found.probability[left & ~neutral].mean()
    few = rank(labelled, scores, suspicion, dict(list(decisions.items())[:4]))
    assert few.learned[-1].startswith("fewer than 5 of one sort")


def test_words_and_features_that_wrong_ones_have_are_told():
    split = load_split("demo:nli", "train", get_task("nli"), max_samples=300)
    evidence = Evidence(split)
    words = telling_words(evidence, range(len(evidence)))
    counts = pd.Series([word for each in words for word in set(each)]).value_counts()
    word = next(word for word, count in counts.items() if 30 <= count <= 90)
    has = np.array([word in each for each in words])
    scores = pd.DataFrame({"hint": has + np.random.default_rng(0).normal(size=300)}, pd.Index(split.ids, name="id"))
    decisions = {example: "fix" if wrong else "keep" for example, wrong in zip(split.ids, has, strict=True)}
    said = rank(evidence, scores, np.full(300, 0.1), decisions).learned
    wrong = int(has.sum())
    assert any(f"{word!r} in {wrong} of {wrong} wrong and 0 of {300 - wrong} right" in line for line in said)
    assert any(": hint is higher in the wrong ones, by " in line for line in said)


def test_questions_are_told_by_their_type(asked):
    decisions = dict(zip(asked.split.ids, ["keep", "drop"] * 60, strict=True))
    said = rank(asked, score_all(asked, NAMES[:2]), suspicion_of(asked), decisions).learned
    assert "reviewed questions of type" in said[0]
    assert said[1].startswith("60 of 120 were wrong")


def test_a_word_that_is_no_decision(labelled):
    with pytest.raises(ValueError, match="no decisions: maybe"):
        rank(labelled, score_all(labelled, NAMES[:1]), suspicion_of(labelled), {labelled.split.ids[0]: "maybe"})


# --- would it have helped ----------------------------------------------------------------------------------------


def test_a_systematic_error_is_found_faster_than_in_the_fixed_order():
    """Errors in one group alone, of which suspicion knows nothing."""
    found = made_features(n=600, seed=2)
    truth = (found.group == 1) & (found.values[:, 0] > 0)
    fixed = simulate_review(found, truth, depth=100, every=None)
    learned = simulate_review(found, truth, depth=100)
    assert learned[-1] > 2 * fixed[-1]
    assert learned[9] == fixed[9]
    assert np.array_equal(learned, simulate_review(found, truth, depth=100))


def test_a_simulated_review_counts_what_it_decided():
    found = made_features(n=50)
    truth = np.arange(50) % 5 == 0
    for every in (None, 7, 1):
        counts = simulate_review(found, truth, depth=80, every=every, seed=3)
        assert len(counts) == 50
        assert counts[-1] == truth.sum()
        assert set(np.diff(counts)) <= {0, 1}
    order = np.argsort(-found.offset, kind="stable")
    assert np.array_equal(simulate_review(found, truth, depth=20, every=None), np.cumsum(truth[order[:20]]))


def test_ties_are_drawn_by_the_seed():
    found = made_features(n=50)
    flat = ReviewFeatures(found.values, found.names, found.group, found.groups, np.zeros(50))
    truth = np.arange(50) < 10
    orders = {tuple(simulate_review(flat, truth, depth=50, every=None, seed=seed)) for seed in range(5)}
    assert len(orders) == 5
