"""Categories and their thresholds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_dynamics import metrics_frame

from datamap.cartography.categories import (
    CATEGORIES,
    categorize_examples,
    category_thresholds,
    get_examples_by_category,
)
from datamap.core.errors import UserError


def test_categories_at_their_thresholds():
    frame = metrics_frame([0.5, 0.5, 0.4999, 0.9, 0.1], [0.2, 0.2001, 0.2, 0.0, 0.5])
    assert categorize_examples(frame, 0.5, 0.2, method="fixed")["category"].tolist() == [
        "easy",  # both equal to their thresholds
        "ambiguous",  # above the variability threshold, whatever the confidence
        "hard",
        "easy",
        "ambiguous",
    ]
    assert "category" not in frame  # a copy


def test_median_is_taken_of_the_whole_file():
    frame = metrics_frame([0.1, 0.2, 0.6, 0.8, 0.9], [0.3, 0.1, 0.2, 0.1, 0.4])
    assert category_thresholds(frame) == (0.6, 0.2)
    assert categorize_examples(frame)["category"].tolist() == ["ambiguous", "hard", "easy", "easy", "ambiguous"]
    assert category_thresholds(frame, confidence_threshold=0.7) == (0.7, 0.2)
    assert category_thresholds(frame, variability_threshold=0.0) == (0.6, 0.0)


def test_percentiles_are_those_of_sorted_values():
    rng = np.random.default_rng(0)
    confidence, variability = rng.random(101), rng.random(101) / 2
    frame = metrics_frame(confidence, variability)
    assert category_thresholds(frame, method="percentile") == (sorted(confidence)[50], sorted(variability)[67])
    assert category_thresholds(frame, 10, 0, method="percentile") == (sorted(confidence)[10], min(variability))
    counts = categorize_examples(frame, 0, 90, method="percentile")["category"].value_counts()
    assert counts.to_dict() == {"easy": 91, "ambiguous": 10}


def test_no_variability_means_nobody_is_ambiguous():
    frame = metrics_frame([0.1, 0.9, 0.5], [0.0, 0.0, 0.0])
    assert categorize_examples(frame)["category"].tolist() == ["hard", "easy", "easy"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.5)), min_size=1, max_size=30))
def test_categories_follow_their_definition(points):
    frame = metrics_frame(*(list(side) for side in zip(*points, strict=True)))
    for method, first, second in (("median", None, None), ("percentile", 30, 80), ("fixed", 0.5, 0.25)):
        confidence_cut, variability_cut = category_thresholds(frame, first, second, method)
        got = categorize_examples(frame, first, second, method)["category"]
        for (confidence, variability), category in zip(points, got, strict=True):
            easy = "easy" if confidence >= confidence_cut else "hard"
            assert category == ("ambiguous" if variability > variability_cut else easy)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"method": "mean"}, "unknown threshold method 'mean'; there is median, percentile, fixed"),
        ({"method": "fixed"}, "needs both"),
        ({"method": "fixed", "confidence_threshold": 0.5}, "needs both"),
        ({"method": "fixed", "confidence_threshold": 1.5, "variability_threshold": 0.1}, r"0\.\.1, found 1\.5"),
        ({"variability_threshold": 0.6}, r"variability threshold lies in 0\.\.0\.5, found 0\.6"),
        ({"variability_threshold": math.nan}, "variability threshold"),
        ({"method": "percentile", "confidence_threshold": 101}, r"confidence threshold lies in 0\.\.100, found 101"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        categorize_examples(metrics_frame([0.5], [0.1]), **arguments)


def test_examples_of_a_category_come_in_order():
    frame = metrics_frame(
        [0.90, 0.70, 0.90, 0.20, 0.10, 0.10, 0.60, 0.40],
        [0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.40, 0.40],
        ["z", "e", "a", "h2", "h9", "h1", "m1", "m2"],
    )
    frame = categorize_examples(frame, 0.5, 0.2, method="fixed")
    assert get_examples_by_category(frame, "easy") == ["a", "z", "e"]  # highest first, ties by id
    assert get_examples_by_category(frame, "hard") == ["h1", "h9", "h2"]  # lowest first
    assert get_examples_by_category(frame, "ambiguous") == ["m2", "m1"]
    assert get_examples_by_category(frame, "hard", n=2) == ["h1", "h9"]
    assert get_examples_by_category(frame, "hard", n=0) == []
    assert get_examples_by_category(frame, "hard", n=100) == ["h1", "h9", "h2"]
    with pytest.raises(UserError, match="unknown category 'medium'; there is easy, ambiguous, hard"):
        get_examples_by_category(frame, "medium")


def test_examples_by_category_need_no_category_column():
    frame = metrics_frame([0.9, 0.1, 0.8, 0.2], [0.0, 0.0, 0.3, 0.3])
    for category in CATEGORIES:
        assert get_examples_by_category(frame, category) == get_examples_by_category(
            categorize_examples(frame), category
        )
    assert get_examples_by_category(frame, "hard") == ["ex-1"]
