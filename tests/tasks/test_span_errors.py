"""Kinds of wrong answers: by hand, and as where characters stand says."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamap.tasks.qa_metrics import score_predictions
from datamap.tasks.span_errors import SPAN_ERRORS, span_errors

CONTEXT = "She was given 20 mg of aspirin daily, and later 20 mg of codeine. Aspirin was stopped in May."
AT = CONTEXT.index


def answers(*texts, at=None):
    return {"text": list(texts), "answer_start": [AT(text) if at is None else at for text in texts]}


@pytest.mark.parametrize("gold, predicted, kind", [
    (answers("20 mg of aspirin"), "20 mg of aspirin", "none"),
    (answers("aspirin"), "the Aspirin.", "none"),  # exact match, by SQuAD's rules
    (answers("20 mg of aspirin"), "20 mg", "truncated"),
    (answers("20 mg of aspirin"), "aspirin", "truncated"),
    (answers("aspirin"), "20 mg of aspirin daily", "overlong"),
    (answers("20 mg of aspirin"), "aspirin daily", "shifted"),
    (answers("20 mg of aspirin"), "codeine", "elsewhere"),
    (answers("20 mg of aspirin"), "ibuprofen", "elsewhere"),  # stands nowhere
    (answers("20 mg of aspirin"), "", "no answer given"),
    (answers("20 mg of aspirin"), None, None),
    (answers(), "codeine", "no answer wanted"),
    (answers(), "", "none"),
    (answers("daily", "20 mg of codeine"), "20 mg of", "truncated"),  # of the answer nearest to it
    (answers("20 mg of codeine"), "later 20 mg", "shifted"),
    (answers("aspirin daily"), "aspirin", "truncated"),  # the nearest of the two places
    (answers("codeine", at=3), "20 mg of codeine", "overlong"),  # not at its start: where else it stands
    (answers("morphine", at=3), "codeine", "elsewhere"),  # stands nowhere
    (answers(" aspirin ", at=AT(" aspirin ")), "aspirin daily", "overlong"),  # blanks are no part of an answer
])
def test_each_kind(gold, predicted, kind):
    assert span_errors([CONTEXT, CONTEXT], [gold, answers()], [predicted, ""]) == [kind, "none"]


def test_of_equal_length():
    with pytest.raises(ValueError, match="1 contexts, answers to 0, predictions of 1"):
        span_errors(["a"], [], ["a"])


# Each character once, so that a text has one place, and not a letter, so that it is no part of a word.
LINE = "".join(chr(0x2200 + number) for number in range(24))
PLACES = st.tuples(st.integers(0, 23), st.integers(1, 24)).map(lambda pair: (min(pair), max(pair))).filter(
    lambda pair: pair[0] < pair[1])


@given(golds=st.lists(PLACES, max_size=3), said=st.one_of(st.none(), PLACES))
@settings(max_examples=300, deadline=None)
def test_a_kind_is_what_the_characters_say(golds, said):
    """The definitions, on sets of places."""
    gold = {"text": [LINE[first:end] for first, end in golds], "answer_start": [first for first, _ in golds]}
    text = "" if said is None else LINE[slice(*said)]
    [kind, _] = span_errors([LINE, LINE], [gold, answers()], [text, ""])
    assert kind in SPAN_ERRORS
    exact = score_predictions([text], [gold["text"]], version_2=True).exact_match[0]
    assert (kind == "none") == bool(exact)
    inside = set() if said is None else set(range(*said))
    wanted = [set(range(*place)) for place in golds]
    possible = {
        "none": inside in wanted or not inside and not wanted,
        "no answer given": not inside and wanted, "no answer wanted": inside and not wanted,
        "truncated": any(inside and inside < each for each in wanted),
        "overlong": any(inside > each for each in wanted),
        "shifted": any(inside & each and inside - each and each - inside for each in wanted),
        "elsewhere": inside and wanted and not any(inside & each for each in wanted),
    }
    assert possible[kind]
    if len(golds) <= 1:
        assert [name for name, holds in possible.items() if holds] == [kind]


@given(golds=st.lists(PLACES, min_size=1, max_size=3), said=PLACES)
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_answers_does_not_decide_whether_it_is_wrong(golds, said):
    def kind(places):
        gold = {"text": [LINE[first:end] for first, end in places], "answer_start": [first for first, _ in places]}
        return span_errors([LINE], [gold], [LINE[slice(*said)]])[0]

    one, other = kind(golds), kind(golds[::-1])
    assert {one, other} <= {"truncated", "overlong", "shifted"} or one == other
