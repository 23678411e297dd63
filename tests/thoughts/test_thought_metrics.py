"""Metrics of answers that may be missing, against loops over the pairs; comparisons against the libraries."""


import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from statsmodels.stats.proportion import proportion_confint

from datamap.core.intervals import mcnemar, paired_equivalence
from datamap.thoughts import metrics as thought_metrics
from datamap.thoughts.metrics import compare_runs, confusion, length_table, pair_metrics

LABEL = st.sampled_from((0, 1, None))
PAIRS = st.lists(st.tuples(LABEL, LABEL, st.sampled_from(("strict", "object"))), max_size=40)


def metrics_of(pairs):
    gold, predicted = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    methods = ["none" if answer is None else method for _, answer, method in pairs]
    return gold, predicted, methods, pair_metrics(gold, predicted, methods)


# --- numbers -----------------------------------------------------------------------------------------------------


@given(PAIRS)
def test_metrics_equal_loops_over_the_pairs(pairs):
    gold, predicted, methods, metrics = metrics_of(pairs)
    n = labelled = right = parsed = answered = 0
    for true, answer in zip(gold, predicted, strict=True):
        n += 1
        answered += answer is not None
        if true is not None:
            labelled += 1
            right += true == answer
            parsed += answer is not None
    assert (metrics["n"], metrics["n_labelled"], metrics["n_labelled_parsed"]) == (n, labelled, parsed)
    assert metrics["accuracy"] == (right / labelled if labelled else None)
    assert metrics["accuracy_parsed"] == (right / parsed if parsed else None)
    assert metrics["parse_rate"] == (answered / n if n else None)
    assert sum(metrics[f"parsed_{method}"] for method in ("strict", "object", "none")) == n
    assert metrics["parsed_none"] == n - answered
    if labelled:
        interval = proportion_confint(right, labelled, method="wilson")
        assert np.allclose((metrics["accuracy_low"], metrics["accuracy_high"]), interval)
        assert metrics["majority_baseline"] == max(gold.count(0), gold.count(1)) / labelled
    f1 = []
    for label in (0, 1):
        hits = given_to = misses = 0
        for true, answer in zip(gold, predicted, strict=True):
            if true is not None:
                hits += true == label and answer == label
                given_to += true != label and answer == label
                misses += true == label and answer != label
        assert metrics[f"support_{label}"] == hits + misses
        if hits + given_to + misses == 0:
            assert metrics[f"precision_{label}"] is metrics[f"recall_{label}"] is metrics[f"f1_{label}"] is None
            continue
        precision = hits / (hits + given_to) if hits + given_to else 0.0
        recall = hits / (hits + misses) if hits + misses else 0.0
        f1.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
        assert metrics[f"precision_{label}"] == pytest.approx(precision)
        assert metrics[f"recall_{label}"] == pytest.approx(recall)
        assert metrics[f"f1_{label}"] == pytest.approx(f1[-1])
    assert metrics["f1_macro"] == (pytest.approx(sum(f1) / len(f1)) if f1 else None)


@given(st.lists(st.tuples(st.sampled_from((0, 1)), st.sampled_from((0, 1)), st.just("strict")), min_size=1))
def test_without_missing_answers_they_are_those_of_sklearn(pairs):
    gold, predicted, _, metrics = metrics_of(pairs)
    macro = precision_recall_fscore_support(gold, predicted, average="macro", zero_division=0)
    assert metrics["accuracy"] == metrics["accuracy_parsed"] == accuracy_score(gold, predicted)
    assert [metrics[f"{name}_macro"] for name in ("precision", "recall", "f1")] == pytest.approx(macro[:3])


def test_no_answer_counts_against_recall_and_for_no_precision():
    metrics = pair_metrics([0, 0, 1, 1], [0, None, 1, None], ["strict", "none", "object", "none"])
    assert metrics["accuracy"] == 0.5 and metrics["accuracy_parsed"] == 1.0
    assert metrics["precision_0"] == metrics["precision_1"] == metrics["precision_macro"] == 1.0
    assert metrics["recall_0"] == metrics["recall_1"] == metrics["recall_macro"] == 0.5
    assert metrics["f1_macro"] == pytest.approx(2 / 3)
    assert [metrics[f"parse_rate_{method}"] for method in ("strict", "object", "none")] == [0.25, 0.25, 0.5]


def test_what_cannot_be_told_is_none():
    nothing = pair_metrics([], [], [])
    assert nothing["n"] == 0 and nothing["accuracy"] is None and nothing["parse_rate"] is None
    unlabelled = pair_metrics([None, None], [1, None], ["strict", "none"])
    assert unlabelled["parse_rate"] == 0.5
    for name in ("accuracy", "accuracy_low", "accuracy_high", "accuracy_parsed", "majority_baseline", "f1_macro"):
        assert unlabelled[name] is None
    silent = pair_metrics([0, 1], [None, None], ["none", "none"])
    assert silent["accuracy"] == 0.0 and silent["accuracy_parsed"] is None and silent["f1_macro"] == 0.0


@pytest.mark.parametrize("given", [([0], [0, 1], ["strict"]), ([2], [0], ["strict"]), ([0], [-1], ["strict"]),
                                   ([0], [0], ["guessed"])])
def test_what_is_no_label_is_refused(given):
    with pytest.raises(ValueError):
        pair_metrics(*given)


# --- two runs ----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(deadline=None)
def test_mcnemar_is_that_of_the_library(pairs):
    found = compare_runs(*zip(*pairs, strict=True))
    table = [[0, 0], [0, 0]]
    for this, other in pairs:
        table[not this][not other] += 1
    assert found["p"] == mcnemar(table[0][1], table[1][0]) and found["clusters"] is None
    assert (found["p"] <= 0.05) == (found["difference_low"] > 0 or found["difference_high"] < 0)
    assert found["p_equivalence"] == paired_equivalence(table[0][1], table[1][0], len(pairs), 0.01)
    assert (found["both_right"], found["only_this_right"]) == (table[0][0], table[0][1])
    assert (found["only_other_right"], found["both_wrong"]) == (table[1][0], table[1][1])
    assert found["difference"] == pytest.approx(found["accuracy"] - found["other_accuracy"])
    assert -1 <= found["difference_low"] <= found["difference"] <= found["difference_high"] <= 1


def test_pairs_of_one_premise_are_no_independent_evidence():
    """Every pair eight times, under one premise: once, nobody can tell."""
    this, other = [True] * 12 + [False] * 3, [True] * 9 + [False] * 3 + [True] + [False] * 2
    premises = [f"premise {n}" for n in range(15)]
    assert compare_runs(this * 8, other * 8)["verdict"] == "better"
    found = compare_runs(this * 8, other * 8, premises * 8)
    assert (found["clusters"], found["n"], found["verdict"]) == (15, 120, "underpowered")
    assert found["p"] > 0.2 and found["difference_low"] < 0 < found["difference"] < found["difference_high"]
    assert compare_runs(this, other, premises) == compare_runs(this, other) | {"clusters": 15}
    assert compare_runs(this, other, ["one"] * 15)["p"] == 1.0


def test_the_verdict_follows_p_and_direction():
    def verdict(ours, theirs):
        right = [(True, True)] * 20 + [(True, False)] * ours + [(False, True)] * theirs
        return compare_runs(*zip(*right, strict=True))

    assert verdict(4, 0)["verdict"] == "underpowered"  # mid-p 0.0625
    assert verdict(5, 0)["verdict"] == "better"  # 0.03125
    assert verdict(0, 5)["verdict"] == "worse"
    same = verdict(0, 0)
    assert same["p"] == 1.0 and same["verdict"] == "underpowered"
    assert same["difference_low"] < 0 < same["difference_high"]  # 20 pairs cannot show that there is no difference
    for n, expected in ((2, "underpowered"), (30, "underpowered"), (200, "underpowered"),
                        (300, "no detectable difference")):
        found = compare_runs([True] * n, [True] * n)
        assert found["verdict"] == expected and (found["p_equivalence"] <= 0.05) == (n == 300)
    with pytest.raises(ValueError):
        compare_runs([], [])
    with pytest.raises(ValueError):
        compare_runs([True], [True, False])


# --- tables and pictures -----------------------------------------------------------------------------------------


def test_the_length_table_counts_every_labelled_pair_once():
    rng = np.random.default_rng(0)
    n = 203
    lengths = [None if rng.random() < 0.1 else int(rng.integers(5, 60)) for _ in range(n)]
    gold = [None if rng.random() < 0.1 else int(rng.integers(2)) for _ in range(n)]
    predicted = [None if rng.random() < 0.2 else int(rng.integers(2)) for _ in range(n)]
    table = length_table(lengths, gold, predicted)
    assert len(table) == 8
    known: list = [row for row in zip(lengths, gold, predicted, strict=True) if None not in row[:2]]
    assert table["n"].sum() == len(known)
    assert (table["longest"].to_numpy()[:-1] < table["shortest"].to_numpy()[1:]).all()
    for row in table.itertuples():
        group = [pair for pair in known if row.shortest <= pair[0] <= row.longest]
        right = sum(true == answer for _, true, answer in group)
        assert row.n == len(group)
        assert row.accuracy == pytest.approx(right / len(group))
        assert row.mean_length == pytest.approx(sum(pair[0] for pair in group) / len(group))
        assert row.parse_rate == pytest.approx(sum(pair[2] is not None for pair in group) / len(group))
        assert np.allclose((row.low, row.high), proportion_confint(right, len(group), method="wilson"))


def test_small_and_even_sets_make_few_groups():
    assert len(length_table([5, 9], [0, 1], [0, 1])) == 1
    assert list(length_table([7] * 50, [1] * 50, [1] * 50)["n"]) == [50]
    assert length_table([], [], []).empty
    assert length_table([3], [None], [1]).empty


@given(PAIRS)
def test_the_confusion_matrix_has_a_column_for_no_answer(pairs):
    gold, predicted, _, metrics = metrics_of(pairs)
    counts = confusion(gold, predicted)
    assert counts.sum() == metrics["n_labelled"]
    assert list(counts.sum(axis=1)) == [metrics["support_0"], metrics["support_1"]]
    assert counts[:, 2].sum() == metrics["n_labelled"] - metrics["n_labelled_parsed"]
    assert np.trace(counts) == round((metrics["accuracy"] or 0) * metrics["n_labelled"])


def test_tables_stand_beside_their_pictures(tmp_path):
    gold, predicted = [0, 1, 1, 1] * 10, [0, 1, None, 0] * 10
    metrics = pair_metrics(gold, predicted, ["none" if answer is None else "strict" for answer in predicted])
    thought_metrics.write_confusion(tmp_path, confusion(gold, predicted), "pairs")
    table = length_table(range(40), gold, predicted)
    thought_metrics.write_lengths(tmp_path, table, "words", metrics, "pairs")
    for name in ("confusion_matrix.png", "accuracy_by_length.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    matrix = pd.read_csv(tmp_path / "confusion_matrix.csv")
    assert matrix.columns.tolist() == ["label", "predicted_label", "n"]
    assert matrix["n"].tolist() == [10, 0, 0, 10, 10, 10]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "accuracy_by_length.csv"), table)
