"""How many chains are right, how long they are, and a judge: against slow versions and hand-made answers."""

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_mistral import save_tokenizer

from datamap.core.errors import UserError
from datamap.core.intervals import wilson_interval
from datamap.thoughts.reader import CRITERIA
from datamap.thoughts.statistics import (
    FIRST,
    SECOND,
    chain_lengths,
    judge_report,
    length_statistics,
    outcome_of,
    position_report,
    write_lengths,
)

LABELS = st.sampled_from([(1, 1), (0, 0), (0, 1), (1, 0), (None, 1), (1, None), (None, None)])


def chain(name="a", predicted=1, true=1, words=3):
    return {"id": str(name), "thought_process": "word " * words, "predicted_label": predicted, "true_label": true}


def scores_of(*three):
    return dict(zip(CRITERIA, three, strict=True))


# --- slow versions -----------------------------------------------------------------------------------------------


def percentile(values, share):
    """Between the two nearest values, in proportion."""
    ordered, place = sorted(values), share / 100 * (len(values) - 1)
    low = math.floor(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def auroc(right, wrong):
    won = sum((one > other) + (one == other) / 2 for one in right for other in wrong)
    return won / (len(right) * len(wrong))


def ranks(values):
    return [sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
            for value in values]


def spearman(one, other):
    first, second = ranks(one), ranks(other)
    mean = (len(first) + 1) / 2
    product = sum((a - mean) * (b - mean) for a, b in zip(first, second, strict=True))
    return product / math.sqrt(sum((a - mean) ** 2 for a in first) * sum((b - mean) ** 2 for b in second))


# --- outcomes and lengths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicted", "true", "outcome"),
    [(1, 1, "right"), (0, 0, "right"), (1, 0, "wrong"), (0, 1, "wrong"), (None, 1, "wrong"), (1, None, "unlabelled"),
     (None, None, "unlabelled")],
)
def test_outcomes(predicted, true, outcome):
    assert outcome_of(chain("a", predicted, true)) == outcome


def test_lengths_in_words_and_in_tokens(tmp_path):
    chains = [chain("a", words=4), {**chain("b"), "thought_process": " Two\nwords ", "other": "one"}]
    assert chain_lengths(chains) == ([4, 2], "words")
    assert chain_lengths([chains[1]], thought="other") == ([1], "words")
    tokenizer = save_tokenizer(tmp_path)
    lengths, unit = chain_lengths(chains, str(tmp_path))
    assert unit == "tokens"
    assert lengths == [len(tokenizer(one["thought_process"])["input_ids"]) - 1 for one in chains]  # without <s>


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="--tokenizer: model .*: no such directory; .*leave it out") as refused:
        chain_lengths([chain()], str(tmp_path / "none"))
    assert "\n" not in str(refused.value)


@settings(deadline=None)
@given(st.lists(st.tuples(LABELS, st.integers(0, 500)), max_size=40))
def test_statistics_of_lengths(drawn):
    chains = [chain(number, *labels) for number, (labels, _) in enumerate(drawn)]
    lengths = [length for _, length in drawn]
    found = length_statistics(chains, lengths)
    among: dict[str, list] = {"right": [], "wrong": [], "unlabelled": []}
    for one, length in zip(chains, lengths, strict=True):
        among[outcome_of(one)].append(length)
    assert set(found) == {outcome for outcome, values in among.items() if values}
    for outcome, one in found.items():
        values = among[outcome]
        expected = {"n": len(values), "mean": sum(values) / len(values), "median": percentile(values, 50),
                    "percentile_5": percentile(values, 5), "percentile_95": percentile(values, 95)}
        assert one == pytest.approx(expected)
    json.dumps(found, allow_nan=False)


def drawn_chains(count=240, seed=3):
    """Longer chains are wrong more often; some have no true label."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(20, 120, count).tolist()
    true = [None if number % 15 == 0 else int(rng.integers(2)) for number in range(count)]
    right = [rng.random() < 1.1 - length / 130 for length in lengths]
    chains = [chain(number, 1 if gold is None else gold if hit else 1 - gold, gold)
              for number, (gold, hit) in enumerate(zip(true, right, strict=True))]
    return chains, lengths


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_lengths_are_written_and_drawn(tmp_path):
    chains, lengths = drawn_chains()
    write_lengths(tmp_path, chains, lengths, "words", "a-model")
    rows = read_csv(tmp_path / "thought_lengths.csv")
    assert [(row["id"], int(row["length"]), row["outcome"]) for row in rows] == [
        (one["id"], length, outcome_of(one)) for one, length in zip(chains, lengths, strict=True)
    ]
    groups = read_csv(tmp_path / "thought_accuracy_by_length.csv")
    assert list(groups[0]) == ["shortest", "longest", "mean_length", "n", "accuracy", "low", "high"]
    assert sum(int(group["n"]) for group in groups) == sum(one["true_label"] is not None for one in chains)
    for group in groups:
        between = range(int(group["shortest"]), int(group["longest"]) + 1)
        inside = [one for one, length in zip(chains, lengths, strict=True)
                  if length in between and one["true_label"] is not None]
        right = sum(outcome_of(one) == "right" for one in inside)
        assert int(group["n"]) == len(inside)
        assert float(group["accuracy"]) == pytest.approx(right / len(inside))
        assert (float(group["low"]), float(group["high"])) == pytest.approx(wilson_interval(right, len(inside)))
    assert (tmp_path / "thought_lengths.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "chains", [[chain()], [chain("a", 1, None), chain("b", 0, None)], [chain("a", 0, 1)] * 3,
               [chain("a"), chain("b", 0, 1)]]
)
def test_a_few_chains_are_drawn_too(tmp_path, chains):
    write_lengths(tmp_path, chains, [7] * len(chains), "tokens", "t")
    assert (tmp_path / "thought_lengths.png").stat().st_size > 5000
    groups = read_csv(tmp_path / "thought_accuracy_by_length.csv")
    assert len(groups) == (chains[0]["true_label"] is not None)


# --- a judge -----------------------------------------------------------------------------------------------------


SCORE = st.integers(1, 5)


@settings(deadline=None)  # the first call imports scikit-learn
@given(st.lists(st.tuples(LABELS, st.integers(1, 30), st.none() | st.tuples(SCORE, SCORE, SCORE)), max_size=25))
def test_a_judge_against_slow_versions(drawn):
    chains = [chain(number, *labels) for number, (labels, _, _) in enumerate(drawn)]
    lengths = [length for _, length, _ in drawn]
    scores = {str(number): scores_of(*three) for number, (_, _, three) in enumerate(drawn) if three}
    found = judge_report(chains, {"of no chain": scores_of(1, 1, 1), **scores}, lengths)
    assert (found["n"], found["n_scored"]) == (len(chains), len(scores))
    json.dumps(found, allow_nan=False)
    places = {
        group: [place for place, one in enumerate(chains) if one["id"] in scores and outcome_of(one) in wanted]
        for group, wanted in (("all", ("right", "wrong", "unlabelled")), ("right", ("right",)), ("wrong", ("wrong",)))
    }
    for name in CRITERIA:
        for group, among in places.items():
            values = [scores[str(place)][name] for place in among]
            sizes = [lengths[place] for place in among]
            assert found[name][group] == (pytest.approx(sum(values) / len(values)) if values else None)
            bias = found["length_bias"][name][group]
            if len(values) < 3 or len(set(values)) == 1 or len(set(sizes)) == 1:
                assert bias is None
            else:
                assert bias["n"] == len(values)
                assert bias["rho"] == pytest.approx(spearman(values, sizes), abs=1e-12)
                assert 0 <= bias["p"] <= 1
    right, wrong = ([scores[str(place)]["correctness"] for place in places[group]] for group in ("right", "wrong"))
    assert (found["agreement"]["n_right"], found["agreement"]["n_wrong"]) == (len(right), len(wrong))
    assert found["agreement"]["auroc"] == (pytest.approx(auroc(right, wrong)) if right and wrong else None)


def test_a_judge_that_knows_and_one_that_likes_length():
    chains = [chain(number, 1, number % 2) for number in range(40)]
    lengths = list(range(40))
    knows = {one["id"]: scores_of(3, 5 if outcome_of(one) == "right" else 2, 1) for one in chains}
    found = judge_report(chains, knows, lengths)
    assert found["agreement"] == {"auroc": 1.0, "n_right": 20, "n_wrong": 20}
    assert found["correctness"] == {"all": 3.5, "right": 5.0, "wrong": 2.0}
    assert found["length_bias"]["correctness"]["right"] is None  # all alike
    assert found["coherence"] == {"all": 3.0, "right": 3.0, "wrong": 3.0}
    length = {one["id"]: scores_of(1 + size // 8, 1 + size // 8, 5 - size // 8)
              for one, size in zip(chains, lengths, strict=True)}
    found = judge_report(chains, length, lengths)
    assert found["length_bias"]["coherence"]["all"]["rho"] > 0.95
    assert found["length_bias"]["brevity"]["all"]["rho"] < -0.95
    assert found["length_bias"]["coherence"]["all"]["p"] < 1e-9
    assert abs(found["agreement"]["auroc"] - 0.5) < 0.1


def test_of_a_judge_that_said_nothing_nothing_is_told():
    found = judge_report([chain("a"), chain("b", 0, 1)], {}, [3, 4])
    assert (found["n"], found["n_scored"]) == (2, 0)
    assert found["agreement"] == {"auroc": None, "n_right": 0, "n_wrong": 0}
    assert all(found[name] == {"all": None, "right": None, "wrong": None} for name in CRITERIA)
    with pytest.raises(ValueError):
        judge_report([chain("a")], {}, [])


# --- position ----------------------------------------------------------------------------------------------------


def asked(**answers):
    """a="AB": of pair a the first shown won with the original first, the second with the reflection first."""
    return {(name, order): {"A": "A", "B": "B", "t": "tie"}[answer] for name, both in answers.items()
            for order, answer in zip((FIRST, SECOND), both, strict=True) if answer != "-"}


@pytest.mark.parametrize(
    ("answers", "first", "decided", "ties", "pairs", "consistent", "reflection"),
    [
        ({"a": "AA", "b": "AA"}, 4, 4, 0, 2, 0.0, None),  # always the first shown
        ({"a": "AB", "b": "AB"}, 2, 4, 0, 2, 1.0, 0.0),  # always the original
        ({"a": "BA", "b": "BA", "c": "AB"}, 3, 6, 0, 3, 1.0, 2 / 3),
        ({"a": "tt", "b": "BA"}, 1, 2, 2, 2, 1.0, 1.0),  # neither, in both orders, is consistent
        ({"a": "tt"}, 0, 0, 2, 1, 1.0, None),
        ({"a": "tA", "b": "Bt", "c": "BB"}, 1, 4, 2, 3, 0.0, None),
        ({"a": "A-", "b": "-A", "c": "-t"}, 2, 2, 1, 0, None, None),  # one order alone
        ({"a": "B-", "b": "BA"}, 1, 3, 0, 1, 1.0, 1.0),
    ],
)
def test_what_a_judge_is_shown_first(answers, first, decided, ties, pairs, consistent, reflection):
    found = position_report(asked(**answers))
    low, high = found.pop("low"), found.pop("high")
    assert found == {
        "n_answers": decided + ties, "n_ties": ties, "first_share": first / decided if decided else None,
        "n_pairs": pairs, "consistent_share": consistent, "reflection_share": reflection,
    }
    if decided:
        assert 0 <= low <= first / decided <= high <= 1 and low < high
    else:
        assert low is high is None


@given(st.lists(st.sampled_from(["AA", "AB", "BA", "BB"]), min_size=1, max_size=60))
def test_the_interval_of_a_judges_leaning_is_over_pairs(both):
    """Without ties only pairs where the same place wins twice tell: the interval of Bonett and Price (2012)."""
    found = position_report(asked(**{str(number): answers for number, answers in enumerate(both)}))
    first, second = ((both.count(kind) + 1) / (len(both) + 2) for kind in ("AA", "BB"))
    half = 1.959963984540054 * math.sqrt((first + second - (first - second) ** 2) / (len(both) + 2))
    low, high = max(first - second - half, -1), min(first - second + half, 1)
    assert (found["low"], found["high"]) == pytest.approx((0.5 + low / 2, 0.5 + high / 2), abs=1e-12)


def test_the_interval_of_a_judges_leaning_is_that_of_a_bootstrap_of_pairs():
    """With ties and answers to one order alone, on enough pairs that one more or less does not matter."""
    rng = np.random.default_rng(0)
    kinds = ["AA", "AA", "BB", "BB", "BB", "BB", "AB", "tA", "tt", "A-"]
    both = rng.choice(kinds, size=900)
    wins = np.array([(answers.count("A"), answers.count("B")) for answers in both])
    drawn = rng.multinomial(len(both), np.full(len(both), 1 / len(both)), 4000) @ wins
    low, high = np.quantile(drawn[:, 0] / drawn.sum(axis=1), [0.025, 0.975])
    found = position_report(asked(**{str(number): answers for number, answers in enumerate(both)}))
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.004)
    assert wilson_interval(*wins.sum(axis=0).cumsum()) != pytest.approx((low, high), abs=0.004)  # over answers


def test_an_unbiased_judge_is_outside_as_often_as_is_said():
    """One that takes the first shown twice, or the second shown twice, at random: its answers to a pair are one."""
    rng = np.random.default_rng(0)
    outside = 0
    for _ in range(1000):
        both = rng.choice(["AA", "BB"], size=30)
        found = position_report(asked(**{str(number): answers for number, answers in enumerate(both)}))
        outside += not found["low"] <= 0.5 <= found["high"]
    assert outside <= 70


def test_without_answers_nothing_is_told():
    found = position_report({})
    assert (found["n_answers"], found["n_ties"], found["n_pairs"]) == (0, 0, 0)
    assert {found[name] for name in ("first_share", "low", "high", "consistent_share", "reflection_share")} == {None}
