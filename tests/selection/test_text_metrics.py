"""text_metrics.py against textstat itself and slow forms of the diversity measures, on any text."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamap.core.errors import UserError
from datamap.selection import text_metrics as module
from datamap.selection.text_metrics import METRICS, mtld, syllable_rule, text_metrics

TEXTS = [
    "",
    " \n",
    "...",
    "a",
    "The film is warm and bright. It wasn't long, and the road was full of dust! Nobody said a word?",
    "they presume their audience wo n't sit still for a sociology lesson , however entertainingly presented ,",
    "Mr. Smith's well-known idea: 'area' videos, 1,000 of them... e.g. this one. No. It really is so.",
    "naïve café – 東京 🙂🙂 İstanbul ΣΟΦΟΣ ß",
    "the the the the the the",
    " ".join(f"word{number % 17} and then" for number in range(40)),
]
WORDS = st.lists(st.sampled_from("a b c d e f g h i j".split()), max_size=120)


@pytest.fixture
def dictionary(tmp_path, monkeypatch):
    """A CMU dictionary of a few words where NLTK looks for it, and where textstat finds it through NLTK."""
    import nltk
    from textstat.backend.utils import get_cmudict

    place = tmp_path / "corpora" / "cmudict"
    place.mkdir(parents=True)
    (place / "cmudict").write_text(
        "IDEA 1 AY0 D IY1 AH0\nAREA 1 EH1 R IY0 AH0\nTHE 1 DH AH0\nTHE 2 DH IY0\nIT 1 IH1 T\n"
        "WASN'T 1 W AA1 Z AH0 N T\nVIDEOS 1 V IH1 D IY0 OW2 Z\nVIDEOS 2 V IH1 D Y OW2 Z\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    clear_textstat()
    get_cmudict.cache_clear()
    yield
    clear_textstat()
    get_cmudict.cache_clear()
    if hasattr(nltk.corpus.cmudict, "_unload"):
        nltk.corpus.cmudict._unload()


def clear_textstat() -> None:
    """It keeps results by text, whatever dictionary they came from."""
    from textstat.backend import counts, metrics

    for function in (counts.count_syllables, metrics.syllables_per_word, metrics.flesch_reading_ease):
        function.cache_clear()


@pytest.fixture
def no_dictionary(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])


def words_of(text: str) -> list[str]:
    from textstat.backend.selections import list_words

    return list_words(text, lowercase=True)


def slow_mattr(words: list[str], window: int) -> float:
    ratios = [len(set(words[first : first + window])) / window for first in range(len(words) - window + 1)]
    return float(np.mean(ratios)) if ratios else float("nan")


def slow_mtld(words: list[str]) -> float:
    """Segments are found from their definition: the shortest beginning whose ratio is below the threshold."""

    def factors(rest: list[str]) -> float:
        for end in range(1, len(rest) + 1):
            if len(set(rest[:end])) / end < 0.72:
                return 1 + factors(rest[end:])
        return (1 - len(set(rest)) / len(rest)) / (1 - 0.72) if rest else 0.0

    found = [factors(words), factors(words[::-1])]
    return float(np.mean([len(words) / each for each in found])) if all(found) else float("nan")


# --- against textstat --------------------------------------------------------------------------------------------


def check_like_textstat(texts: list[str]) -> None:
    from textstat import textstat

    table = text_metrics(texts, "cmudict")
    for row, text in enumerate(texts):
        here = table.iloc[row]
        count = len(words_of(text))
        assert here["token_count"] == count
        assert here["characters"] == textstat.char_count(text)
        assert here["sentences"] == textstat.sentence_count(text)
        assert here["syllables"] == textstat.syllable_count(text)
        if count:
            assert here["flesch"] == pytest.approx(textstat.flesch_reading_ease(text), rel=1e-9, abs=1e-9)
            assert here["word_length"] == pytest.approx(textstat.avg_letter_per_word(text))
            assert here["type_token_ratio"] == pytest.approx(len(set(words_of(text))) / count)
        else:
            assert here[["flesch", "word_length", "type_token_ratio", "mattr", "mtld"]].isna().all()


def test_equals_textstat(dictionary):
    check_like_textstat(TEXTS)


def test_equals_textstat_on_any_text(dictionary):
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.text(max_size=60) | st.text("aei .!?'tsd-\n", max_size=60), max_size=4))
    def check(texts):
        check_like_textstat(texts)

    check()


def test_dictionary_before_hyphenation(dictionary):
    table = text_metrics(["idea", "area", "wasn't", "videos", "the funny reader"], "cmudict")
    assert table["syllables"].tolist() == [3, 3, 2, 3, 5]
    plain = text_metrics(["idea", "area", "wasn't", "videos", "the funny reader"], "hyphenation")
    assert plain["syllables"].tolist()[:2] == [1, 1] and plain["syllables"][4] == 5


def test_reading_ease_by_hand(no_dictionary):
    table = text_metrics(["The funny reader sat down. The dog ran over there."], "hyphenation")
    here = table.iloc[0]
    # fun-ny and read-er have two; "over" has one by this rule, which leaves no single letter.
    assert (here["token_count"], here["sentences"], here["syllables"]) == (10, 2, 12)
    assert here["flesch"] == pytest.approx(206.835 - 1.015 * 5 - 84.6 * 1.2)


# --- syllable rules ----------------------------------------------------------------------------------------------


def test_rule_with_a_dictionary(dictionary, caplog):
    assert syllable_rule() == "cmudict"
    assert not caplog.text


def test_rule_without_says_so_and_downloads_nothing(no_dictionary, caplog, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk, "download", None)  # calling it would raise
    caplog.set_level(logging.WARNING)
    assert syllable_rule() == "hyphenation"
    assert "nltk.downloader cmudict" in caplog.text
    text_metrics(TEXTS, "hyphenation")


def test_dictionary_that_is_not_there_is_refused(no_dictionary):
    with pytest.raises(UserError, match="no CMU dictionary"):
        text_metrics(TEXTS, "cmudict")


@pytest.mark.parametrize("wrong", [{"syllables_by": "guess"}, {"window": 0}])
def test_wrong_settings(wrong):
    with pytest.raises(UserError, match="expected"):
        text_metrics(TEXTS, **{"syllables_by": "hyphenation", **wrong})


# --- diversity ---------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=5), st.integers(1, 40), st.integers(1, 60))
def test_diversity_is_the_slow_one(texts, window, min_tokens):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MTLD_MIN_TOKENS", min_tokens)
        table = text_metrics([" ".join(words) for words in texts], "hyphenation", window)
    assert list(table.columns) == list(METRICS)
    slow = [slow_mattr(words, window) for words in texts]
    np.testing.assert_allclose(table["mattr"], slow, rtol=1e-9)
    slow = [slow_mtld(words) if len(words) >= min_tokens else np.nan for words in texts]
    np.testing.assert_allclose(table["mtld"], slow, rtol=1e-9)


def test_window_as_long_as_the_text_gives_its_type_token_ratio():
    text = "the road was long and the film was warm"
    table = text_metrics([text], "hyphenation", window=9)
    assert table["mattr"][0] == table["type_token_ratio"][0] == pytest.approx(7 / 9)
    assert np.isnan(text_metrics([text], "hyphenation", window=10)["mattr"][0])


def test_mtld_by_hand():
    # The published example of a factor: "of the people by the people for the people" falls below 0.72 at the
    # sixth word (4 / 6 = 0.667); what follows is the part (1 - 1) / 0.28 = 0 of another.
    words = "of the people by the people for the people".split()
    forwards = 9 / 1
    # Backwards: people the for people (3 / 4), the (3 / 5 < 0.72) is a factor, by people the of has no repetition.
    backwards = 9 / 1
    assert mtld(words) == pytest.approx((forwards + backwards) / 2)
    # At exactly the threshold, 18 types in 25 words, the ratio is still kept: with 5 new words it is 23 / 30.
    words = [f"w{number % 18}" for number in range(25)]
    assert mtld(words) == pytest.approx(25)
    assert mtld([*words, *"abcde"]) == pytest.approx(30 / ((7 / 30) / 0.28))


def test_short_texts_are_missing_not_zero():
    texts = ["one two three two", " ".join(["one", "two", "three"] * 20), " ".join(f"w{i}" for i in range(60))]
    table = text_metrics(texts, "hyphenation")
    assert table["mattr"].isna().tolist() == [True, False, False]
    assert table["mtld"].isna().tolist() == [True, False, True]  # no word twice: no bound
    assert table["mattr"][2] == 1


# --- any text ----------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=80), max_size=6), st.integers(1, 6))
def test_ranges_on_any_text(texts, window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MTLD_MIN_TOKENS", 1)
        table = text_metrics(texts, "hyphenation", window)
    assert len(table) == len(texts) and table.index.equals(pd.RangeIndex(len(texts)))
    assert not np.isinf(table.to_numpy(float)).any()
    count = table["token_count"]
    assert (count >= 0).all() and (table["characters"] <= [len(text) for text in texts]).all()
    assert (table["syllables"] >= count).all()
    assert (table["sentences"] >= [bool(text) for text in texts]).all()
    for name in ("type_token_ratio", "mattr"):
        values = table[name].dropna()
        assert ((values > 0) & (values <= 1)).all()
    assert (table["mtld"].dropna() > 0).all()
    some = count > 0
    assert table.loc[some, ["type_token_ratio", "word_length", "flesch"]].notna().all(axis=None)
    assert table.loc[~some, ["type_token_ratio", "word_length", "flesch", "mattr", "mtld"]].isna().all(axis=None)
    assert (table["mattr"].notna() == (count >= window)).all()


def test_rows_do_not_depend_on_their_neighbours(monkeypatch):
    monkeypatch.setattr(module, "MTLD_MIN_TOKENS", 4)
    whole = text_metrics(TEXTS, "hyphenation", window=3)
    monkeypatch.setattr(module, "BLOCK", 3)
    pd.testing.assert_frame_equal(text_metrics(TEXTS, "hyphenation", window=3), whole)
    for row, text in enumerate(TEXTS):
        alone = text_metrics([text], "hyphenation", window=3)
        pd.testing.assert_frame_equal(alone, whole.iloc[[row]].reset_index(drop=True))
    assert len(text_metrics([], "hyphenation")) == 0
