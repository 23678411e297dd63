"""Span search against an exhaustive one, answers against a plain loop, EM and F1 against the official arithmetic.

The slow versions here are written from the definitions and share nothing with the module.
"""

import math
import re
import string
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamap.tasks.qa_metrics import (
    Scores,
    best_spans,
    best_threshold,
    char_spans,
    choose_answers,
    normalize_answer,
    score_predictions,
    squad_summary,
    threshold_scores,
)

# Official arithmetic, slowly.


def slow_normalize(text):
    text = "".join(ch for ch in text.lower() if ch not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def slow_f1_of_one(prediction, gold, version_2):
    predicted, target = slow_normalize(prediction).split(), slow_normalize(gold).split()
    if version_2 and (not predicted or not target):
        return int(predicted == target)
    same = sum((Counter(predicted) & Counter(target)).values())
    if same == 0:
        return 0
    precision, recall = 1.0 * same / len(predicted), 1.0 * same / len(target)
    return (2 * precision * recall) / (precision + recall)


def slow_scores(prediction, golds, version_2):
    if version_2:
        golds = [gold for gold in golds if slow_normalize(gold)] or [""]
    exact = max(int(slow_normalize(prediction) == slow_normalize(gold)) for gold in golds)
    return exact, max(slow_f1_of_one(prediction, gold, version_2) for gold in golds)


def slow_summary(predictions, golds, version_2):
    scored = [slow_scores(p, g, version_2) for p, g in zip(predictions, golds, strict=True)]

    def mean(pairs, which):
        return 100.0 * sum(pair[which] for pair in pairs) / len(pairs)

    summary = {"exact_match": mean(scored, 0), "f1": mean(scored, 1), "total": len(scored)}
    if version_2:
        for name, wanted in (("HasAns", True), ("NoAns", False)):
            group = [pair for pair, gold in zip(scored, golds, strict=True) if (len(gold) > 0) == wanted]
            if group:
                summary |= {f"{name}_exact": mean(group, 0), f"{name}_f1": mean(group, 1), f"{name}_total": len(group)}
    return summary


# Words that meet: articles, letters, spaces and punctuation outside ASCII, case that changes length or alphabet.
PIECES = [
    "a", "an", "the", "The", "AN", "cat", "cats", "Cat", "dog", "2", "3.5", "theory", "thé", "the’s", "a–b", "a_b",
    "x-the-y", "İ", "\u212a", "ß", "é", "e\u0301", "a\u0301", "猫", "«le»", "\u3000", "\u00a0", "\u200b", "\x00",
    "\x1c", "\x85", "\n", "\t", ".", ",", "!", "“", "$5", "'", "", " ",
]
pieces = st.lists(st.sampled_from(PIECES), max_size=6).flatmap(
    lambda parts: st.sampled_from(["", " ", "  "]).map(lambda glue: glue.join(parts))
)
texts = st.one_of(pieces, st.text(max_size=12))


@pytest.mark.parametrize(
    "prediction, golds, version_2, expected",
    [
        ("The cat!", ["cat"], False, (1, 1.0)),
        ("black cat", ["cat"], False, (0, 2 / 3)),
        ("cat cat dog", ["cat cat cat"], False, (0, 2 / 3)),
        ("dog", ["cat", "big dog", "dogs"], False, (0, 2 / 3)),
        ("cat", ["dog"], False, (0, 0.0)),
        # Without tokens: equal in 1.1 for exact match only, a plain hit in 2.0.
        ("", [""], False, (1, 0.0)),
        ("the", ["a"], False, (1, 0.0)),
        ("the", ["the"], False, (1, 0.0)),
        ("the", ["the"], True, (1, 1.0)),
        ("", [], True, (1, 1.0)),
        ("an", [], True, (1, 1.0)),
        ("cat", [], True, (0, 0.0)),
        ("cat", ["..."], True, (0, 0.0)),
        ("", ["the", "cat"], True, (0, 0.0)),  # "the" is dropped, so that the example does have an answer
        ("", ["the", "cat"], False, (1, 0.0)),
        # Apostrophe and dash outside ASCII stay, and are word boundaries for the articles.
        ("the’s", ["’s"], False, (1, 1.0)),
        ("a–b", ["–b"], False, (1, 1.0)),
        ("a_b", ["ab"], False, (1, 1.0)),  # the underscore is punctuation
        ("thé", ["th"], False, (0, 0.0)),
        ("\u212aelvin", ["kelvin"], False, (1, 1.0)),  # the Kelvin sign
        ("x\u00a0the\u3000y", ["x y"], False, (1, 1.0)),
        ("a\x00b", ["\x00b"], False, (1, 1.0)),
    ],
)
def test_scores_by_hand(prediction, golds, version_2, expected):
    assert slow_scores(prediction, golds, version_2) == expected
    scores = score_predictions([prediction], [golds], version_2)
    assert (scores.exact_match[0], scores.f1[0]) == expected


@given(texts)
def test_normalize_answer_is_the_official_one(text):
    assert normalize_answer(text) == slow_normalize(text)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(texts, st.lists(texts, max_size=3)), min_size=1, max_size=6),
    st.booleans(),
    st.data(),
)
def test_scores_equal_the_official_arithmetic(rows, version_2, data):
    golds = [answers if version_2 or answers else ["cat"] for _, answers in rows]
    # Half of the predictions are gold answers, as they are in life.
    predictions = [
        data.draw(st.sampled_from(answers)) if answers and data.draw(st.booleans()) else text
        for (text, _), answers in zip(rows, golds, strict=True)
    ]
    scores = score_predictions(predictions, golds, version_2)
    expected = [slow_scores(p, g, version_2) for p, g in zip(predictions, golds, strict=True)]
    assert list(zip(scores.exact_match.tolist(), scores.f1.tolist(), strict=True)) == expected
    summary = squad_summary(scores)
    assert list(summary) == list(slow_summary(predictions, golds, version_2))
    assert summary == pytest.approx(slow_summary(predictions, golds, version_2), rel=1e-14)


def test_scores_equal_the_official_arithmetic_on_many_random_predictions():
    rng = np.random.default_rng(0)
    words = ["the", "a", "Cat", "cat,", "dog", "sat", "on", "mat.", "–", "3", "mg", "daily"]

    def text():
        return " ".join(rng.choice(words, rng.integers(0, 7)))

    predictions = [text() for _ in range(3000)]
    golds = [[text() for _ in range(rng.integers(0, 4))] for _ in predictions]
    for version_2 in (False, True):
        answers = golds if version_2 else [gold or [""] for gold in golds]
        scores = score_predictions(predictions, answers, version_2)
        expected = [slow_scores(p, g, version_2) for p, g in zip(predictions, answers, strict=True)]
        assert list(zip(scores.exact_match.tolist(), scores.f1.tolist(), strict=True)) == expected
        assert squad_summary(scores) == pytest.approx(slow_summary(predictions, answers, version_2), rel=1e-12)
        assert 0 < scores.f1.mean() < 1


def test_summary_of_squad_2_counts_the_groups_by_the_raw_gold_answers():
    scores = score_predictions(["cat", "", "dog", "the"], [["cat"], ["dog"], [], ["the"]], True)
    assert squad_summary(scores) == {
        "exact_match": 50.0, "f1": 50.0, "total": 4,
        "HasAns_exact": pytest.approx(200 / 3), "HasAns_f1": pytest.approx(200 / 3), "HasAns_total": 3,
        "NoAns_exact": 0.0, "NoAns_f1": 0.0, "NoAns_total": 1,
    }


def test_summary_of_squad_1():
    scores = score_predictions(["the"], [["the"]], False)
    assert squad_summary(scores) == {"exact_match": 100.0, "f1": 0.0, "total": 1}


def test_scoring_refuses_what_it_can_not_score():
    with pytest.raises(ValueError, match="example 1 has no gold answers"):
        score_predictions(["a", "b"], [["a"], []], version_2=False)
    with pytest.raises(ValueError, match="2 predictions, but gold answers for 1"):
        score_predictions(["a", "b"], [["a"]], False)
    with pytest.raises(ValueError, match="bare string"):
        score_predictions(["a"], ["a"], False)
    with pytest.raises(ValueError, match="no predictions"):
        squad_summary(score_predictions([], [], False))


# Spans.


def slow_span(start_logits, end_logits, mask, limit):
    """Every valid span, in the order of the tie rule; sums in float32."""
    best = (-math.inf, -1, -1)
    for start in range(len(mask)):
        for end in range(start, len(mask)):
            if mask[start] and mask[end] and (limit is None or end - start + 1 <= limit):
                score = np.float32(start_logits[start]) + np.float32(end_logits[end])
                if np.isfinite(score) and score > best[0]:
                    best = (float(score), start, end)
    return best


def check_spans(start_logits, end_logits, mask, limit):
    found = best_spans(start_logits, end_logits, mask, limit)
    assert found.score.dtype == torch.float32 and found.start.dtype == found.end.dtype == torch.int64
    rows = zip(start_logits.float().numpy(), end_logits.float().numpy(), mask.numpy(), strict=True)
    expected = [slow_span(*row, limit) for row in rows]
    assert list(zip(*(column.tolist() for column in found), strict=True)) == expected


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 7, 16, 30, 39, 40, 1000])
def test_best_spans_equal_an_exhaustive_search(limit):
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(size=(2, 12, 40)).astype(np.float32))
    mask = torch.from_numpy(rng.random((12, 40)) < 0.7)
    mask[0], mask[1] = True, False
    mask[2] = torch.arange(40) == 39
    mask[3] = torch.arange(40) == 0
    mask[4] = (torch.arange(40) > 8) & (torch.arange(40) < 30)
    check_spans(logits[0], logits[1], mask, limit)
    check_spans(logits[0].half(), logits[1].half(), mask.long(), limit)
    check_spans(logits[0].bfloat16(), logits[1].bfloat16(), mask, limit)
    # Few distinct values: nearly every window has ties.
    check_spans(logits[0].round(), logits[1].round(), mask, limit)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_best_spans_equal_an_exhaustive_search_for_any_values(data):
    length = data.draw(st.integers(1, 9))
    # Sums of 1e8 and small numbers round to the same float32: ties that the logits do not show.
    values = st.sampled_from([0.0, 1.0, -1.0, 2.0, 1e8, 1e8 + 8, -1e8, 3e38, -3e38, math.inf, -math.inf, math.nan])
    row = st.lists(values, min_size=length, max_size=length)
    start, end = torch.tensor([data.draw(row)]), torch.tensor([data.draw(row)])
    mask = torch.tensor([data.draw(st.lists(st.booleans(), min_size=length, max_size=length))])
    limit = data.draw(st.one_of(st.none(), st.integers(1, length + 2)))
    usable_start, usable_end = mask & start.isfinite(), mask & end.isfinite()
    best = (-math.inf, -1, -1)
    for s in range(length):
        for e in range(s, min(length, s + (limit or length))):
            if usable_start[0, s] and usable_end[0, e]:
                score = (start[0, s] + end[0, e]).item()
                if score > best[0]:
                    best = (score, s, e)
    assert tuple(column.item() for column in best_spans(start, end, mask, limit)) == best


def test_best_spans_ties_take_the_smallest_start_then_the_smallest_end():
    zeros, mask = torch.zeros(1, 6), torch.tensor([[0, 0, 1, 1, 1, 0]])
    for limit in (None, 2):
        assert [column.tolist() for column in best_spans(zeros, zeros, mask, limit)] == [[0.0], [2], [2]]
    # 1e8 + 1 and 1e8 + 2 are the same float32, though the end logits differ.
    start, end = torch.tensor([[1e8, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    assert best_spans(start, end, torch.ones(1, 3)).end.item() == 0


def test_best_spans_takes_no_window_and_gives_no_gradient():
    empty = torch.zeros(0, 5)
    assert [len(column) for column in best_spans(empty, empty, empty.bool(), 3)] == [0, 0, 0]
    logits = torch.zeros(1, 5, requires_grad=True)
    assert not best_spans(logits, logits, torch.ones(1, 5), 3).score.requires_grad


def test_best_spans_refuses_bad_arguments():
    logits = torch.zeros(2, 5)
    with pytest.raises(ValueError, match=r"one shape \(windows, tokens\)"):
        best_spans(logits, logits, torch.ones(5))
    with pytest.raises(ValueError, match="at least 1 token"):
        best_spans(logits, logits, torch.ones(2, 5), 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("limit", [None, 1, 7, 30])
def test_best_spans_on_cuda_equal_those_on_the_cpu(limit):
    logits = torch.randn(2, 50, 200, generator=torch.Generator().manual_seed(0)).mul(2).round()
    mask = torch.rand(50, 200, generator=torch.Generator().manual_seed(1)) < 0.8
    expected = best_spans(logits[0], logits[1], mask, limit)
    found = best_spans(logits[0].cuda(), logits[1].cuda(), mask.cuda(), limit)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(expected, found, strict=True))


# Answers.


def test_char_spans():
    offsets, first = np.array([[0, 0], [0, 3], [4, 8], [0, 0], [5, 7]]), np.array([0, 3])
    begin, stop = char_spans(offsets, np.array([1, -1]), np.array([2, -1]), first)
    assert begin.tolist() == [0, 0] and stop.tolist() == [8, 0]
    begin, stop = char_spans(offsets, np.array([2, 1]), np.array([2, 1]), first)
    assert begin.tolist() == [4, 5] and stop.tolist() == [8, 7]
    with pytest.raises(ValueError, match="2 windows, but 1 starts"):
        char_spans(offsets, np.array([1]), np.array([2, -1]), first)


def slow_choose(contexts, rows, version_2):
    texts, scores = [], []
    for i, context in enumerate(contexts):
        best, null, window = -math.inf, math.nan, -1
        for w, (example, score, _, _, null_score) in enumerate(rows):
            if example != i:
                continue
            null = null_score if math.isnan(null) else min(null, null_score)
            if score > best:
                best, window = score, w
        text = "" if window < 0 else context[rows[window][2] : rows[window][3]]
        if version_2 and window >= 0 and null > best:
            text = ""
        texts.append(text)
        scores.append(best)
    return texts, scores


@settings(max_examples=200)
@given(st.data())
def test_choose_answers_equals_a_plain_loop(data):
    contexts = data.draw(st.lists(st.text(alphabet="abc ünï", min_size=6, max_size=9), max_size=4))
    # Few values: ties among windows, and with no answer.
    score = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 1.0, 2.0])
    row = st.tuples(st.integers(0, max(len(contexts) - 1, 0)), score, st.integers(0, 3), st.integers(3, 6), score)
    rows = data.draw(st.lists(row, max_size=10)) if contexts else []
    version_2 = data.draw(st.booleans())
    example, best, begin, stop, null = (np.array([r[i] for r in rows]) for i in range(5))
    found = choose_answers(contexts, example, best, begin, stop, null, version_2=version_2)
    texts, scores = slow_choose(contexts, rows, version_2)
    assert found.text == texts and found.score.tolist() == scores
    # The best span is that of SQuAD 1.1, and the no-answer score says where SQuAD 2.0 leaves it out.
    assert found.span == slow_choose(contexts, rows, False)[0]
    assert found.text == ["" if version_2 and value > 0 else span
                          for value, span in zip(found.no_answer, found.span, strict=True)]


# Scores of spans, of "" and no-answer scores; few values, so that examples tie.
EXAMPLES = st.lists(st.tuples(
    st.sampled_from([0.0, 0.25, 1.0]), st.booleans(), st.sampled_from([-math.inf, -2.0, -1.0, 0.0, 0.5, 3.0, math.inf])
), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(EXAMPLES)
def test_the_best_threshold_is_that_of_trying_all(examples):
    answered, unanswered, no_answer = (np.array(column, dtype=float) for column in zip(*examples, strict=True))
    best, threshold = best_threshold(answered, unanswered, no_answer)

    def at(value: float) -> float:
        rows = zip(answered, unanswered, no_answer, strict=True)
        return sum(yes if score <= value else no for yes, no, score in rows)

    tried = [at(value) for value in (-100.0, *(score for score in no_answer if math.isfinite(score)), 0.0)]
    assert len(answered) * best == pytest.approx(max(tried)) and math.isfinite(threshold)
    assert at(threshold) == pytest.approx(max(tried)), "what it says is what it gives"
    assert best * len(answered) >= at(0.0) - 1e-9


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), min_size=1, max_size=12),
       st.randoms(use_true_random=False))
def test_the_best_threshold_is_that_of_the_official_script(examples, random):
    """find_best_thresh of evaluate-v2.0.py, on no-answer probabilities of which no two are alike."""
    no_answer = np.array(random.sample(range(1, 100), len(examples))) / 100
    scores = np.array([score * has for score, has in examples])  # an answer where there is none scores 0
    has_answer = np.array([has for _, has in examples])
    current = best = float((~has_answer).sum())
    threshold = 0.0
    for place in np.argsort(no_answer):
        current += scores[place] if has_answer[place] else -1
        if current > best:
            best, threshold = current, no_answer[place]
    found, chosen = best_threshold(scores, 1.0 - has_answer, no_answer)
    assert found == pytest.approx(best / len(examples))
    assert chosen == threshold or (threshold == 0.0 and chosen < no_answer.min())


def test_a_threshold_is_judged_on_the_other_half():
    def scores(values):
        return Scores(np.array(values, float), np.array(values, float) / 2, np.ones(len(values), bool), True)

    # First half: answering all up to 1 is best. Second half: answering none is.
    no_answer = np.array([0.0, 1.0, 2.0, 0.5, 1.5, 2.5])
    answered, unanswered = scores([1, 1, 0, 0, 0, 1]), scores([0, 0, 1, 1, 1, 0])
    found = threshold_scores(answered, unanswered, no_answer, np.array([True] * 3 + [False] * 3))
    # The second half is answered up to 1.0 (its 0.5: wrong), the first at none: only its third is right.
    assert found["held_out_exact"] == pytest.approx(100 * (1 + 1 + 0) / 6)
    assert found["held_out_f1"] == found["held_out_exact"] / 2
    assert found["best_exact"] == pytest.approx(100 * 4 / 6) and found["best_exact_thresh"] == 0.0
    assert set(threshold_scores(answered, unanswered, no_answer, None)) == {
        "best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh"}
    with pytest.raises(ValueError, match="no predictions"):
        best_threshold(np.zeros(0), np.zeros(0), np.zeros(0))


def test_a_threshold_chosen_by_what_it_is_judged_on_flatters():
    """Without any signal the best threshold is above chance, one from the other half is not."""
    rng, best, held_out = np.random.default_rng(0), [], []
    for _ in range(200):
        right = rng.integers(0, 2, 40).astype(float)
        yes, no = (Scores(values, values, np.ones(40, bool), True) for values in (right, 1 - right))
        found = threshold_scores(yes, no, rng.normal(size=40), np.arange(40) < 20)
        best.append(found["best_exact"])
        held_out.append(found["held_out_exact"])
    assert np.mean(best) > 58 and abs(np.mean(held_out) - 50) < 2


def test_no_answer_must_beat_the_best_span():
    def answer(null_scores, **options):
        windows = len(null_scores)
        return choose_answers(
            ["left knee"], np.zeros(windows, int), np.array([3.0, 1.0][:windows]), np.array([5, 0][:windows]),
            np.array([9, 4][:windows]), np.array(null_scores), **options,
        ).text

    assert answer([3.5], version_2=True) == [""]
    assert answer([3.0], version_2=True) == ["knee"]  # equal is not above
    assert answer([3.5], version_2=False) == ["knee"]  # SQuAD 1.1 always answers
    assert answer([9.0, 2.0], version_2=True) == ["knee"]  # the lowest null score of the windows counts


def test_examples_without_windows_or_without_spans_get_the_empty_answer():
    found = choose_answers(
        ["one", "two", "three"], np.array([2, 0]), np.array([1.0, -np.inf]), np.array([0, 0]), np.array([3, 0]),
        np.array([0.0, 4.0]), version_2=False,
    )
    assert found.text == ["", "", "thr"]
    assert found.score.tolist() == [-math.inf, -math.inf, 1.0]


def test_choose_answers_refuses_arrays_that_do_not_fit():
    one = np.zeros(1)
    with pytest.raises(ValueError, match="found 1, 2, 1, 1, 1"):
        choose_answers(["x"], one, np.zeros(2), one, one, one, version_2=False)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.0, found 1\.\.1"):
        choose_answers(["x"], one + 1, one, one, one, one, version_2=False)


def test_import_loads_no_torch():
    code = "import datamap.tasks.qa_metrics, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
