"""Texts as numbers of words, against counting by hand."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datamap.core.words import how_often, numbered_words


@given(st.lists(st.lists(st.sampled_from(["a", "b", "", "\u00e9", "a b"]), max_size=5), max_size=6))
def test_words_are_numbered_as_they_first_appear(texts):
    found = numbered_words(texts)
    assert found.vocabulary == list(dict.fromkeys(word for words in texts for word in words))
    of_each = np.split(found.codes, found.starts)[1:]
    assert [[found.vocabulary[code] for code in codes] for codes in of_each] == texts
    assert found.rows.tolist() == [row for row, words in enumerate(texts) for _ in words]


@given(st.lists(st.integers(-3, 3)))
def test_how_often_each_stands_there(keys):
    counts = Counter(keys)
    assert how_often(np.array(keys, dtype=np.int64)).tolist() == [counts[key] for key in keys]
