"""Copies within and between splits, against a comparison of every pair."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import write_rows

from datamap.core.splits import load_split
from datamap.detection.base import Evidence
from datamap.report.copies import ALIKE, MOST_IN_BUCKET, duplicates, leaks, near_pairs, other_splits
from datamap.tasks.registry import get_task

WORDS = [f"word{number}" for number in range(400)]


def sentences(count, seed, length=12, changes=(0, 1, 2, 4)):
    """Random sentences, each followed by versions with some words changed."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        words = [str(word) for word in rng.choice(WORDS, length, replace=False)]
        for changed in changes:
            version = words.copy()
            for place in rng.choice(length, changed, replace=False):
                version[place] = str(rng.choice(WORDS))
            found.append(" ".join(version))
    return list(dict.fromkeys(found))


def alone(texts):
    """Examples of one text each."""
    return [(text,) for text in texts]


def jaccard(one, other):
    one, other = set(one.split()), set(other.split())
    return len(one & other) / len(one | other)


def test_near_pairs_are_those_of_a_comparison_of_all():
    texts = sentences(60, 0, length=24)
    expected = {(one, other) for one, other in itertools.combinations(range(len(texts)), 2)
                if jaccard(texts[one], texts[other]) >= ALIKE}
    found = near_pairs(alone(texts), None)
    assert {(one, other) for one, other, _ in found} <= expected
    assert len(found) >= 0.97 * len(expected) > 100
    assert all(overlap == jaccard(texts[one], texts[other]) for one, other, overlap in found)
    assert near_pairs(alone(texts), None) == found


def test_near_pairs_between_two():
    texts = sentences(40, 1, length=24)
    keys, others = texts[::2], texts[1::2]
    expected = {(one, other) for one, other in itertools.product(range(len(keys)), range(len(others)))
                if jaccard(keys[one], others[other]) >= ALIKE}
    found = {(one, other) for one, other, _ in near_pairs(alone(keys), alone(others))}
    assert found <= expected and len(found) >= 0.95 * len(expected) > 30


def test_every_text_of_a_pair_must_be_alike():
    long = " ".join(WORDS[:60])
    keys = [(long, "what is it called"), (long, "when did that happen"), (f"{long} more", "what is it called")]
    assert [(one, other) for one, other, _ in near_pairs(keys, None)] == [(0, 2)]


def test_texts_that_examples_share_are_compared_as_others():
    """Questions over a few contexts, as all pairs in plain Python have them."""
    contexts, rng = sentences(4, 5, length=40, changes=(0, 4)), np.random.default_rng(6)
    questions = sentences(30, 7, length=10, changes=(0, 1))
    keys = list(dict.fromkeys((question, str(rng.choice(contexts))) for question in [*questions, *questions]))
    expected = {(one, other): min(map(jaccard, keys[one], keys[other]))
                for one, other in itertools.combinations(range(len(keys)), 2)}
    expected = {pair: overlap for pair, overlap in expected.items() if overlap >= ALIKE}
    found = {(one, other): overlap for one, other, overlap in near_pairs(keys, None)}
    assert found.items() <= expected.items() and len(found) >= 0.9 * len(expected) > 10


def test_many_alike_do_not_take_forever():
    texts = [f"the same words in every one but the last {number}" for number in range(500)]
    assert len(near_pairs(alone(texts), None)) <= 500 * MOST_IN_BUCKET * 16


@pytest.mark.parametrize("texts", [[], ["one"], ["a b", "a c"], ["", ""]])
def test_short_and_few_texts(texts):
    assert near_pairs(alone(texts), None) == []


@pytest.fixture
def data(tmp_path):
    long = "a man in a red coat walks his old dog along the wide sandy beach"
    rows = [{"id": "a", "text": "One film.", "label": "good"}, {"id": "b", "text": "one  FILM.", "label": "bad"},
            {"id": "c", "text": long, "label": "good"}, {"id": "d", "text": f"{long} today", "label": "good"},
            {"id": "e", "text": "Nothing like it.", "label": "bad"}]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", [{"id": "x", "text": "One film.", "label": "bad"},
                                         {"id": "y", "text": f"{long} again", "label": "good"},
                                         {"id": "z", "text": "New words only here", "label": "bad"}])
    write_rows(tmp_path / "validation.jsonl", [{"id": "v", "other": "no text", "label": "bad"}])
    write_rows(tmp_path / "notes.jsonl", [{"id": "n", "text": "One film.", "label": "bad"}])
    return load_split(str(tmp_path), "train", get_task("classification"))


def test_copies_within_a_split(data):
    found = duplicates(Evidence(data))
    assert found.values.tolist() == [["b", "a", "exact", 1.0, False], ["d", "c", "near", 14 / 15, True]]


def test_copies_in_other_splits(data):
    others, said = other_splits(data)
    assert [other.split for other in others] == ["test"]
    assert len(said) == 1 and said[0].startswith("validation: ")
    found = leaks(Evidence(data), others)
    assert found.values.tolist()[0] == ["a", "test", "x", "exact", 1.0, False]
    near = {tuple(row[:4]) for row in found.values.tolist()[1:]}
    assert near == {("c", "test", "y", "near"), ("d", "test", "y", "near")}
