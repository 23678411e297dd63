"""Detectors of any task and of labels, each against its formula written slowly here."""

import dataclasses
import math
import re

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from evidence_made import made_labels, made_questions, of_rows, relabelled
from hypothesis import given, settings
from hypothesis import strategies as st

from datamap.detection.base import Evidence, described, detectors, score_all
from datamap.detection.detect_ensemble import BORDA, discriminations
from datamap.detection.neighbours import nearest
from datamap.detection.reasons import reasons
from datamap.detection.votes import head_votes, projection_votes, ridge_votes, terms, votes, word_votes

EVIDENCE = {"labels": made_labels(), "qa": made_questions()}
LABELS = EVIDENCE["labels"]
SAYS_NOTHING_HERE = {"aum_threshold", "duplicate_disagreement", "near_duplicate_disagreement", "similar_questions"}


def score(name, evidence=LABELS):
    return detectors()[name](evidence)


def same(found, expected, tolerance=1e-12):
    np.testing.assert_allclose(found, np.asarray(expected, dtype=np.float64), rtol=tolerance, atol=tolerance)


# --- all of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVIDENCE)
def test_every_detector_of_a_task_can_be_had(kind):
    """Each is in the table, within the range that it names; flags are 0 or 1."""
    evidence = EVIDENCE[kind]
    wanted = {name for name, each in detectors().items() if each.tasks in ("any", kind)}
    wanted -= {"label_confidence", "oof_label_confidence"} - set(evidence.metrics)
    wanted.discard("oof_label_confidence")
    table = score_all(evidence)
    assert wanted - SAYS_NOTHING_HERE <= set(table) <= wanted
    assert list(table.index) == evidence.split.ids
    for name, column in table.items():
        known, each = column.dropna(), detectors()[name]
        if each.flags:
            assert set(known) <= {0, 1}, name
        low, _, high = each.range.partition("..")
        if high:
            top = {"log C": math.log(3), "epochs / 2": 3}.get(high) or float(high)
            assert known.between(float(low) - 1e-9, top + 1e-6).all(), name


@pytest.mark.parametrize("kind", EVIDENCE)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 1000))
def test_scores_do_not_depend_on_the_order_of_the_rows(kind, seed):
    evidence = EVIDENCE[kind]
    rows = np.random.default_rng(seed).permutation(len(evidence))
    pd.testing.assert_frame_equal(score_all(of_rows(evidence, rows)), score_all(evidence).iloc[rows], rtol=1e-9)


@pytest.mark.parametrize("kind", EVIDENCE)
def test_an_example_that_nothing_is_known_of(kind):
    """Its row is NaN or None throughout: what reads artifacts says NaN, the others are not disturbed."""
    whole = EVIDENCE[kind]
    evidence = of_rows(whole, np.arange(len(whole)))
    for name in ("metrics", "out_of_fold", "clusters"):
        table = getattr(evidence, name).copy()
        table.iloc[5] = np.nan
        setattr(evidence, name, table)
    evidence.predictions[5] = None
    evidence.embeddings[5] = np.nan
    if evidence.probabilities is not None:
        evidence.probabilities[5] = np.nan
    table, before = score_all(evidence), score_all(whole)
    from_artifacts = [name for name in table if detectors()[name].needs not in ((), ("rules",))
                      and name != "item_discrimination"]
    assert table[from_artifacts].iloc[5].isna().all()
    alone = ("metrics", "out_of_fold", "predictions")  # what is said of one example from these has no others in it
    direct = [name for name in from_artifacts if detectors()[name].needs[0] in alone]
    others = np.arange(len(evidence)) != 5
    pd.testing.assert_frame_equal(table[direct][others], before[direct][others])
    known = [name for name in from_artifacts if name not in SAYS_NOTHING_HERE and name != "cluster_minority"]
    assert table[known][others].notna().all().all()


def test_what_is_not_there_is_left_out():
    bare = Evidence(LABELS.split)
    assert set(score_all(bare)) == {"ensemble_disagreement", "majority_vote", "borda_count"}
    no_epochs = dataclasses.replace(bare, out_of_fold=LABELS.out_of_fold[["confidence", "loss"]])
    assert {"oof_confidence", "oof_loss"} <= set(score_all(no_epochs))
    assert "oof_variability" not in score_all(no_epochs) and "aum" not in score_all(no_epochs)


def test_only_what_is_named_and_what_was_said_elsewhere():
    judged = dataclasses.replace(LABELS, opinions={"judge": np.arange(len(LABELS))})
    assert list(score_all(judged, ("loss", "judge"))) == ["loss", "judge"]
    assert score_all(judged)["judge"].tolist() == list(range(len(LABELS)))
    with pytest.raises(ValueError, match="no detectors: los$"):
        score_all(judged, ("los",))


def test_the_list_has_a_line_for_each():
    head, blank, titles, *lines = described().splitlines()
    assert "higher for an example that is more likely wrong" in head and not blank
    assert titles.split() == ["name", "task", "range", "suspicious", "cost", "needs", "paper", "what"]
    assert [line.split()[0] for line in lines] == list(detectors())


# --- the map, and the same out of fold ---------------------------------------------------------------------------

OF_COLUMNS = {
    "confidence": lambda row: 1 - row["confidence"], "correctness": lambda row: 1 - row["correctness"],
    "variability": lambda row: row["variability"], "forgetting_events": lambda row: row["forgetting_events"],
    "never_learned": lambda row: float(row["never_learned"]), "aum": lambda row: -row["aum"],
    "el2n": lambda row: row["el2n"], "aleatoric": lambda row: row["aleatoric"], "loss": lambda row: row["loss"],
}
OF_ENDS = {
    "weaker_boundary": lambda row: 1 - min(row["start_confidence"], row["end_confidence"]),
    "boundary_gap": lambda row: abs(row["start_confidence"] - row["end_confidence"]),
}


@pytest.mark.parametrize("name", OF_COLUMNS)
def test_columns_of_the_map(name):
    for prefix, table in (("", LABELS.metrics), ("oof_", LABELS.out_of_fold)):
        same(score(prefix + name), [OF_COLUMNS[name](row) for _, row in table.iterrows()])


@pytest.mark.parametrize("name", OF_ENDS)
def test_the_two_ends_of_an_answer(name):
    questions = EVIDENCE["qa"]
    for prefix, table in (("", questions.metrics), ("oof_", questions.out_of_fold)):
        same(score(prefix + name, questions), [OF_ENDS[name](row) for _, row in table.iterrows()])


def test_dropout_and_label_confidence():
    same(score("dropout_confidence"), [1 - p for p in LABELS.out_of_fold["dropout_confidence"]])
    same(score("dropout_entropy"), LABELS.out_of_fold["dropout_entropy"])
    same(score("label_confidence"), [1 - p for p in LABELS.metrics["label_confidence"]])


def test_threshold_samples():
    """Ten examples have a class of their own; what lies below the 99th percentile of their AUM is flagged."""
    column, data = LABELS.label_column, LABELS.split.data
    names = [*LABELS.class_names, "threshold_sample"]
    labels = [len(names) - 1 if row < 10 else label for row, label in enumerate(data[column][:])]
    feature = type(data.features[column])(names=names)
    split = dataclasses.replace(LABELS.split,
                                data=data.remove_columns(column).add_column(column, labels, feature=feature))
    found = score("aum_threshold", Evidence(split, LABELS.metrics))
    aum = LABELS.metrics["aum"].tolist()
    ordered = sorted(aum[:10])
    cut = ordered[8] + (0.99 * 9 - 8) * (ordered[9] - ordered[8])
    same(found, [math.nan if row < 10 else float(value < cut) for row, value in enumerate(aum)])
    assert 0 < np.nansum(found) < 50
    assert np.isnan(score("aum_threshold")).all()


# --- probabilities -----------------------------------------------------------------------------------------------


def test_cleanlab_and_what_it_comes_from():
    for row, (label, p) in enumerate(zip(LABELS.labels, LABELS.probabilities.tolist(), strict=True)):
        other = max(value for place, value in enumerate(p) if place != label)
        entropy = -sum(value * math.log(value) for value in p)
        weighted = entropy / math.log(3) / p[label]
        ordered = sorted(p)
        assert score("self_confidence")[row] == pytest.approx(1 - p[label])
        assert score("normalized_margin")[row] == pytest.approx((1 + other - p[label]) / 2)
        assert score("confidence_weighted_entropy")[row] == pytest.approx(1 - math.log(weighted + 1) / weighted)
        assert score("prediction_margin")[row] == pytest.approx(1 - (ordered[-1] - ordered[-2]))
        assert score("prediction_entropy")[row] == pytest.approx(entropy)


def test_confident_learning_counts_what_is_confidently_another_class():
    """As many of each pair of classes are marked as lie above the mean confidence of the other (prune by noise rate).

    Made so that the counts are clear: of 20 a, 3 are confidently b; of 20 b, 2 are confidently c; c is clean.
    """
    base = made_labels(60)
    labels = np.repeat([0, 1, 2], 20)
    p = np.full((60, 3), 0.05)
    p[np.arange(60), labels] = 0.9
    for row, wrong in ((0, 1), (1, 1), (2, 1), (20, 2), (21, 2)):
        p[row] = 0.02
        p[row, wrong] = 0.96
    evidence = Evidence(base.split, probabilities=p)
    evidence.labels = labels
    assert np.flatnonzero(score("confident_learning", evidence)).tolist() == [0, 1, 2, 20, 21]
    alone = Evidence(base.split, probabilities=p)
    alone.labels = np.zeros(60, dtype=np.int64)
    assert np.isnan(score("confident_learning", alone)).all()


def test_retag():
    golds = [LABELS.class_names[label] for label in LABELS.labels]
    same(score("retag"), [found != gold for found, gold in zip(LABELS.predictions, golds, strict=True)])
    predicted = LABELS.out_of_fold["predicted_label"]
    same(score("oof_retag"), [found != gold for found, gold in zip(predicted, golds, strict=True)])
    unknown = dataclasses.replace(LABELS, predictions=[None, "a class of another model", *LABELS.predictions[2:]])
    assert np.isnan(score("retag", unknown)[:2]).all()


# --- neighbours --------------------------------------------------------------------------------------------------


def compared(vectors):
    """Centred, each of length 1, in float64."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def slow_neighbours(vectors, k=10):
    unit = compared(vectors)
    found = []
    for row, vector in enumerate(unit):
        distance = {other: math.dist(vector, unit[other]) for other in range(len(unit)) if other != row}
        found.append(sorted(distance.items(), key=lambda each: each[1])[:k])
    return found


def test_neighbours_by_all_distances():
    expected = slow_neighbours(LABELS.embeddings)
    assert LABELS.neighbours.rows.tolist() == [[other for other, _ in near] for near in expected]
    same(LABELS.neighbours.distances, [[far for _, far in near] for near in expected], 1e-3)
    same(score("knn_distance"), [np.mean([far for _, far in near]) for near in expected], 1e-3)
    labels = LABELS.labels
    same(score("knn_disagreement"),
         [np.mean([labels[other] != labels[row] for other, _ in near]) for row, near in enumerate(expected)])
    for row, near in enumerate(expected):
        mass = {label: 0.0 for label in range(3)}
        for other, far in [(row, 0.0), *near]:
            mass[labels[other]] += math.exp(-(far**2))
        shares = [value / sum(mass.values()) for value in mass.values() if value]
        assert score("knn_entropy")[row] == pytest.approx(-sum(p * math.log(p) for p in shares), abs=1e-3)


def test_mean_distance():
    vectors, labels = LABELS.embeddings.astype(np.float64), LABELS.labels
    same(score("mean_distance"), [math.dist(vectors[row], vectors[labels == label].mean(axis=0))
                                  for row, label in enumerate(labels)], 1e-5)


def test_neighbours_among_a_sample():
    """Of many examples a sample is compared, in fewer dimensions: each row's neighbours are the nearest of that."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(400, 100)).astype(np.float32) * np.r_[np.full(20, 5), np.full(80, 0.01)]
    order = rng.permutation(400)
    found = nearest(vectors.astype(np.float32), order, seed=1, most_compared=150)
    pool = np.unique(found.rows)
    assert found.vectors.shape == (400, 64) and len(pool) <= 150
    same(np.linalg.norm(found.vectors, axis=1), np.ones(400), 1e-5)
    unit = found.vectors.astype(np.float64)
    for row in range(400):
        others = pool[pool != row]
        nearest_ten = others[np.argsort(np.linalg.norm(unit[others] - unit[row], axis=1))[:10]]
        assert set(found.rows[row]) == set(nearest_ten)
    again = nearest(vectors.astype(np.float32), order, seed=1, most_compared=150)
    assert (again.rows == found.rows).all()
    few = np.array([3, 250, 17])
    asked = nearest(vectors, order, seed=1, most_compared=150, asked=few)
    assert (asked.rows[few] == found.rows[few]).all() and (np.delete(asked.rows, few, axis=0) == -1).all()
    same(asked.distances[few], found.distances[few], 1e-5)


def test_neighbours_of_a_few_are_those_that_all_have():
    rows, fresh = np.array([5, 0, 33]), dataclasses.replace(LABELS)
    few = fresh.neighbours_of(rows)
    assert "neighbours" not in fresh.__dict__, "only they are sought"
    assert (few == LABELS.neighbours.rows[rows]).all() and (fresh.neighbours_of(np.arange(60))[rows] == few).all()
    assert (reasons(fresh, score_all(fresh), rows) == np.array(reasons(LABELS, score_all(LABELS)))[rows]).all()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_fewer_examples_than_neighbours(n):
    vectors = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    found = nearest(vectors, np.arange(n), seed=0)
    assert found.rows.shape == (n, min(10, n - 1))
    few = of_rows(LABELS, np.arange(n))
    assert np.isnan(score("knn_disagreement", few)).all() == (n == 1)


def test_clusters():
    cluster, labels = LABELS.clusters["cluster"].tolist(), LABELS.labels
    same(score("cluster_noise"), [each == -1 for each in cluster])
    same(score("cluster_outlier"), LABELS.clusters["outlier_score"])
    expected = []
    for row, each in enumerate(cluster):
        others = [other for other in range(60) if other != row and cluster[other] == each]
        wrong = [labels[other] != labels[row] for other in others]
        expected.append(np.mean(wrong) if each != -1 and others else math.nan)
    same(score("cluster_minority"), expected)
    without = dataclasses.replace(LABELS, clusters=LABELS.clusters[["cluster"]])
    assert not detectors()["cluster_outlier"].can_judge(without)


# --- ensembles ---------------------------------------------------------------------------------------------------


def test_ridge_votes_by_leaving_folds_out():
    rng = np.random.default_rng(1)
    inputs = np.column_stack([rng.normal(size=(50, 4)), np.ones(50)]).astype(np.float32)
    targets = np.where(rng.integers(0, 3, 50)[:, None] == np.arange(3), 1, -1).astype(np.float32)
    fold = np.arange(50) % 5
    penalty = 0.01 * np.square(inputs.astype(float)).sum() / 5
    expected = np.zeros(50)
    for each in range(5):
        x, y = inputs[fold != each].astype(float), targets[fold != each]
        weights = np.linalg.inv(x.T @ x + penalty * np.eye(5)) @ x.T @ y
        expected[fold == each] = (inputs[fold == each] @ weights).argmax(axis=1)
    assert ridge_votes(inputs, targets, fold).tolist() == expected.tolist()


def test_disagreement_and_majority_by_counting():
    cast, labels = LABELS.once(votes), LABELS.labels
    assert list(cast) == ["words", "out_of_fold", "head", "neighbours"]
    ballots = [[int(found[row]) for found in cast.values()] for row in range(60)]
    same(score("ensemble_disagreement"), [np.mean([vote != labels[row] for vote in ballot])
                                          for row, ballot in enumerate(ballots)])
    expected = []
    for row, ballot in enumerate(ballots):
        ordered = sorted(range(3), key=ballot.count, reverse=True)
        winner = ordered[0] if ballot.count(ordered[0]) > ballot.count(ordered[1]) else labels[row]
        expected.append(winner != labels[row])
    same(score("majority_vote"), expected)
    projected = LABELS.once(projection_votes)
    assert projected.shape == (4, 60)  # of 6 dimensions, which are fewer than 32: drawn 4 times
    same(score("projection_ensemble"), (projected != labels).mean(axis=0))


def test_classes_too_rare_to_be_judged_have_no_vote():
    rare = of_rows(LABELS, np.arange(60))
    rare.labels = np.r_[[2, 2], np.arange(58) % 2]
    for found in (head_votes(rare), word_votes(rare)):
        assert (found[:2] == -1).all() and set(found[2:]) <= {0, 1}
    rare.labels = np.zeros(60, dtype=np.int64)
    assert (word_votes(rare) == -1).all() and (head_votes(rare) == -1).all()


def test_words_tell_what_they_can():
    """Of one text words and pairs of them, of two the words of both and of each; they learn which go with a class."""
    assert terms(["A red fox"]) == ["a", "red", "fox", "a red", "red fox"]
    assert terms(["a dog runs", "No dog runs"]) == ["both dog", "both runs", "first a", "second no"]
    found, golds = word_votes(made_labels(200)), made_labels(200).labels
    assert (found == golds).mean() > 0.55  # of three classes


def test_items_that_good_models_get_wrong():
    """Newton's steps end where the penalised likelihood has its maximum, and such an item has the lowest slope."""
    rng = np.random.default_rng(5)
    skill = np.linspace(-2, 2, 12)
    right = (rng.random((12, 30)) < 1 / (1 + np.exp(-skill[:, None] - rng.normal(size=30)))).astype(float)
    right[:, 0] = skill < 0
    right[3, 4] = math.nan
    found = discriminations(right)
    assert found.argmin() == 0 and found[0] < 0

    rate = np.array([(np.nansum(row) + 0.5) / (np.sum(~np.isnan(row)) + 1) for row in right])
    ability = np.log(rate / (1 - rate))
    ability = (ability - ability.mean()) / ability.std()

    def objective(item, slope, offset):
        total = -((slope - 1) ** 2 + offset**2) / 2
        for voter in range(12):
            if not math.isnan(right[voter, item]):
                p = 1 / (1 + math.exp(-(slope * ability[voter] + offset)))
                total += math.log(p if right[voter, item] else 1 - p)
        return total

    for item in (0, 4, 9):
        best = max((objective(item, slope, offset), slope) for slope in np.arange(-3, 4, 0.02)
                   for offset in np.arange(-3, 3, 0.05))
        assert found[item] == pytest.approx(best[1], abs=0.03)


def test_borda_count_by_ranks():
    chosen = [name for name in BORDA if detectors()[name].can_judge(LABELS)]
    assert len(chosen) > 5
    total = np.zeros(60)
    for name in chosen:
        values = score(name).tolist()
        total += [(sum(other < value for other in values) + sum(other == value for other in values) / 2) / 60
                  for value in values]
    same(score("borda_count"), total / len(chosen))


# --- a wrong label scores higher than its clean twin ---------------------------------------------------------------


@pytest.fixture(scope="module")
def clean():
    """Three classes that are told by embeddings, clusters and models; every label right."""
    base = made_labels(90, seed=4, dims=8)
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(3, 8)) * 4
    base.embeddings = (centres[base.labels] + rng.normal(size=(90, 8))).astype(np.float32)
    base.probabilities = np.where(np.arange(3) == base.labels[:, None], 0.8, 0.1) + rng.random((90, 3)) / 50
    base.probabilities[[3, 40, 77]] = np.where(np.arange(3) == base.labels[[3, 40, 77], None], 0.98, 0.01)
    base.probabilities /= base.probabilities.sum(axis=1, keepdims=True)
    base.out_of_fold["predicted_label"] = [base.class_names[label] for label in base.labels]
    base.predictions = list(base.out_of_fold["predicted_label"])
    base.clusters = base.clusters.assign(cluster=base.labels.astype(float))
    return base


@pytest.mark.parametrize("name", [
    "self_confidence", "normalized_margin", "confidence_weighted_entropy", "confident_learning", "retag", "oof_retag",
    "knn_disagreement", "mean_distance", "cluster_minority", "ensemble_disagreement", "majority_vote",
    "projection_ensemble", "borda_count",
])
def test_a_wrong_label_scores_higher_than_the_same_example_with_the_right_one(clean, name):
    """Not so item_discrimination: an item that every model gets wrong says nothing of how good they are."""
    for row in (3, 40, 77):
        wrong = relabelled(clean, row, (int(clean.labels[row]) + 1) % 3)
        assert score(name, wrong)[row] > score(name, clean)[row], row


# --- docs/errors.md: which are the same ranking ---------------------------------------------------------------------


def test_with_two_classes_some_rankings_are_one():
    p = np.random.default_rng(2).random(60)
    two = Evidence(LABELS.split, probabilities=np.stack([p, 1 - p], axis=1))
    two.labels, two.class_names = np.arange(60) % 2, ["a", "b"]
    for names in (("self_confidence", "normalized_margin", "confidence_weighted_entropy"),
                  ("prediction_margin", "prediction_entropy")):
        orders = [np.argsort(score(name, two)).tolist() for name in names]
        assert all(order == orders[0] for order in orders), names
    # Each epoch's el2n is then sqrt(2) (1 - p), so that its mean goes with that of the confidence.
    epochs = np.random.default_rng(3).random((60, 5))
    squares = epochs**2 + (1 - epochs) ** 2
    same(np.sqrt(1 - 2 * epochs + squares).mean(axis=1), math.sqrt(2) * (1 - epochs.mean(axis=1)))


def test_every_detector_named_on_the_page_is_there():
    page = (REPOSITORY / "docs" / "errors.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", page)) - {"suspicion", "threshold_sample"}
    assert len(named) > 35
    assert named <= set(detectors()), named - set(detectors())
