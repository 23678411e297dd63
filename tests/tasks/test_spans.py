"""Gold spans: whatever stands around an answer, the tokens that are trained on are those of its text."""

import logging
import unicodedata

import datasets
import numpy as np
import pytest
from conftest import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import FAMILIES, STRAY, WORDS, make_tokenizer

from datamap.core.splits import load_split
from datamap.tasks.qa import QAEvaluation
from datamap.tasks.qa_features import MIN_ADVANCE
from datamap.tasks.registry import get_task
from datamap.tasks.spans import place_of, places_of, stands_at, visible
from datamap.training.tiny_model import train_tokenizer

datasets.disable_progress_bars()


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request):
    return make_tokenizer(request.param)


def as_data(cases):
    """(context, answer, start) -> the examples of question answering, as loaded."""
    return datasets.Dataset.from_dict({
        "id": [str(number) for number in range(len(cases))], "question": ["Where?"] * len(cases),
        "context": [context for context, _, _ in cases],
        "answers": [{"text": [text], "answer_start": [start]} for _, text, start in cases],
    })


def read_back(cases, tokenizer, max_length=512, doc_stride=0):
    """For each case: whether it is trained on, and exact match of the model that gives exactly its labels."""
    task = get_task("qa")
    data, _ = task.mend(task.normalize(as_data(cases), "here"), "here")
    features = task.features(data, tokenizer, max_length, doc_stride)
    evaluation = task.evaluation(data, features)
    labelled = np.asarray(features["counts"][:])
    start, end = np.asarray(features["start_positions"][:]), np.asarray(features["end_positions"][:])
    best = np.stack([np.where(labelled, 1.0, -np.inf), start, end, np.full(len(features), -9.0)], axis=1)
    evaluation(type("Output", (), {"predictions": best, "label_ids": np.arange(len(features))}))
    learnable = np.ones(len(cases), dtype=bool)
    learnable[np.asarray(features["example_index"][:])[~task.is_learnable(features)]] = False
    assert isinstance(evaluation, QAEvaluation)
    return learnable, evaluation.scores.exact_match == 1, evaluation.predictions


def stray_cases():
    for before in STRAY.values():
        for behind in STRAY.values():
            for word in ("Paris", "cafe\u0301", "\u0645\u062f\u0631\u0633\u0629\u064c", "\u2603\ufe0f"):
                answer = before + word + behind
                yield f"He went to {answer} today.", answer, 11
                yield f"He went to {answer}", answer, 11
                yield f"{answer}today he went", answer, 0


def test_what_stands_around_an_answer_is_not_trained_on(tokenizer):
    """Blanks, invisible characters, accents, vowel signs and variation selectors, before and behind."""
    cases = [case for case in stray_cases() if not case[0].endswith("today he went") or case[1][-1].isspace()]
    learnable, right, predictions = read_back(cases, tokenizer)
    wrong = [(case, found) for case, ok, found in zip(cases, learnable & right, predictions, strict=True) if not ok]
    assert not wrong, wrong[:5]


def test_the_example_of_the_report(tokenizer):
    cases = [("He went to Paris today.", "Paris ", 11), ("He went to Paris ", "Paris ", 11),
             ("He went to Paris today.", " Paris", 10)]
    assert [text.strip() for text in read_back(cases, tokenizer)[2]] == ["Paris"] * 3


def test_every_word_of_a_long_context_in_windows(tokenizer):
    """The windows of a context overlap; each word is found whole in one of them, and read back."""
    context, cases = "", []
    for number in range(120):
        word = WORDS[number * 7 % len(WORDS)]
        cases.append((word, len(context)))
        context += word + (" ", "\n", "  ")[number % 3]
    whole = [(context, word, start) for word, start in cases]
    learnable, right, predictions = read_back(whole, tokenizer, max_length=64, doc_stride=20)
    wrong = [(case, found) for case, ok, found in zip(cases, learnable & right, predictions, strict=True) if not ok]
    assert not wrong, wrong[:5]


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_an_answer_is_read_back_or_left_out(tokenizer, data):
    """Any stretch of any text: what is trained on is its text, up to what exact match ignores."""
    pieces = st.lists(st.sampled_from([*WORDS, *STRAY.values(), " ", " "]), min_size=3, max_size=25)
    contexts = data.draw(st.lists(pieces.map("".join).filter(lambda text: visible(text)[1]), min_size=20, max_size=30))
    cases = []
    for context in contexts:
        first = data.draw(st.integers(0, len(context) - 1))
        end = data.draw(st.integers(first + 1, len(context)))
        cases.append((context, context[first:end], first))
    learnable, right, predictions = read_back(cases, tokenizer, max_length=40, doc_stride=8)
    for case, trained, ok, found in zip(cases, learnable, right, predictions, strict=True):
        assert ok or not trained or not found, (case, found)  # "": whole in no window


def test_an_answer_within_a_token_is_left_out():
    cases = [("She takes 50mg daily now.", "50", 10), ("She takes 50mg daily now.", "50mg", 10)]
    tokenizer = train_tokenizer(["She takes 50mg daily now."] * 3, max_length=512)
    learnable, right, _ = read_back(cases, tokenizer)
    assert learnable.tolist() == [False, True] and right.tolist() == [False, True]
    assert read_back(cases, make_tokenizer("characters"))[0].all()


def test_blanks_around_the_answers_of_the_demo_change_nothing_that_is_trained_on():
    """The rows are those of the demo as it is, and so is every number that comes of them."""
    split = load_split("demo:clinical", "train", get_task("qa"), 300)
    answers, widened = split.data["answers"][:], 0
    for context, answer in zip(split.data["context"][:], answers, strict=True):
        if answer["text"]:
            first, end = answer["answer_start"][0], answer["answer_start"][0] + len(answer["text"][0])
            before, behind = context[first - 1 : first].isspace(), context[end : end + 1].isspace()
            answer["text"][0], answer["answer_start"][0] = context[first - before : end + behind], first - before
            widened += before or behind
    assert widened > 200
    columns = split.data.column_names
    kind = split.data.features["answers"]
    other = split.data.remove_columns("answers").add_column("answers", answers, feature=kind).select_columns(columns)
    tokenizer = train_tokenizer([text for name in ("question", "context") for text in split.data[name][:]], 512)
    one, two = (split.task.features(data, tokenizer, 96, 32) for data in (split.data, other))
    assert all(one[name][:] == two[name][:] for name in one.column_names)
    assert np.asarray(one["counts"][:]).sum() > 250


# --- off by a little ---------------------------------------------------------------------------------------------

CONTEXT = ("The dose was 5 mg of caf\u00e9ine, then 50 mg; the \ufb01nal\nresult, a party of art, was  good. "
           "5 mg helped.")


@pytest.mark.parametrize(
    ("text", "start", "found"),
    [
        ("dose", 4, "dose"),
        ("dose", 3, "dose"),
        ("dose", 6, "dose"),
        ("dose", 24, "dose"),
        ("dose", 25, None),  # beyond 20 characters
        ("dose", -1, None),
        ("dose", 10**9, None),
        (" dose", 4, " dose"),  # the start is that of the letter behind the blank
        ("dose ", 3, "dose "),
        ("\u200bdose", 4, "dose"),
        ("then 50", 26, "then 50"),
        ("mg", 24, None),  # at two places
        ("mg", 36, "mg"),  # behind it
        ("art", 60, "art"),  # not in party
        ("part", 60, None),
        ("5", 34, None),  # not in 50
        ("cafe\u0301ine", 21, "caf\u00e9ine"),
        ("cafe\u0301ine", 19, "caf\u00e9ine"),
        ("cafeine", 21, None),  # another word
        ("caf", 20, None),
        ("final result", 43, "\ufb01nal\nresult"),
        ("was good", 71, "was  good"),
        ("50mg", 35, "50 mg"),
        ("\u00a0good\u200b", 76, "good"),
        (" ", 3, " "),
        (" ", 4, None),
    ],
)
def test_where_an_answer_stands(text, start, found):
    place = place_of(CONTEXT, text, start)
    assert (place and CONTEXT[slice(*place)]) == found


def test_chinese_has_no_blanks_between_words():
    assert place_of("\u6211\u4eca\u5929\u53bb\u5317\u4eac\u3002", "\u5317\u4eac", 3) == (4, 6)


@given(st.text(min_size=1, max_size=40), st.integers(0, 40), st.integers(1, 20), st.integers(-25, 25))
@settings(max_examples=300)
def test_what_is_found_reads_as_the_answer(context, first, length, off):
    text = context[first : first + length]
    place = place_of(context, text, first + off) if text else None
    if place:
        def form(value):
            return [unicodedata.normalize("NFKD", char) for char in value if visible(char)[1]]
        assert "".join(form(context[slice(*place)])) == "".join(form(text))
        assert abs(place[0] - first - off) <= 20 + len(text)


def rows_off_by_a_little():
    rows = [
        {"id": "right", "question": "q", "context": CONTEXT, "answers": {"text": ["dose"], "answer_start": [4]}},
        {"id": "behind", "question": "q", "context": CONTEXT, "answers": {"text": [" dose"], "answer_start": [4]}},
        {"id": "off", "question": "q", "context": CONTEXT, "answers": {"text": ["helped"], "answer_start": [88]}},
        {"id": "form", "question": "q", "context": CONTEXT,
         "answers": {"text": ["cafe\u0301ine"], "answer_start": [21]}},
        {"id": "twice", "question": "q", "context": CONTEXT, "answers": {"text": ["mg"], "answer_start": [24]}},
        {"id": "none", "question": "q", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
    ]
    return rows


def test_answers_are_moved_counted_and_named(tmp_path, caplog):
    path = str(write_rows(tmp_path / "data.jsonl", rows_off_by_a_little()))
    caplog.set_level(logging.WARNING)
    split, strict = (load_split(path, "train", get_task("qa", spans=spans)) for spans in ("nearest", "strict"))
    assert split.task.is_usable(split.data).tolist() == [True, True, True, True, False, True]
    assert strict.task.is_usable(strict.data).tolist() == [True, False, False, False, False, True]
    assert strict.mended == [] and strict.data["answers"][:] == [row["answers"] for row in rows_off_by_a_little()]
    assert split.fingerprint == strict.fingerprint and split.ids == strict.ids  # artifacts of the one fit the other
    moved = {each["id"]: tuple(each.values())[1:] for each in split.mended}
    assert moved == {
        "behind": (4, 3, " dose", " dose"),
        "off": (88, CONTEXT.index("helped"), "helped", "helped"),
        "form": (21, 21, "cafe\u0301ine", "caf\u00e9ine"),
    }
    assert "answers of 3 of 6 examples ('behind', 'off', 'form') do not stand at their answer_start" in caplog.text
    assert [each["id"] for each in load_split(path, "train", get_task("qa"), 2).mended] == ["behind"]
    assert get_task("qa").settings() == {"name": "qa"} and strict.task.settings()["spans"] == "strict"


def test_a_start_below_0_is_none():
    assert stands_at("a dose", "e", 5) and not stands_at("a dose", "e", -1)  # where Python counts from the end


def test_an_answer_in_no_token_does_not_read_as_itself():
    from tokenizers import pre_tokenizers

    tokenizer, cases = make_tokenizer("characters"), [("one - two", "-", 4), ("one - two", "two", 6)]
    assert read_back(cases, tokenizer)[0].tolist() == [True, True]
    backend, without = tokenizer.backend_tokenizer, pre_tokenizers.CharDelimiterSplit("-")
    backend.pre_tokenizer = pre_tokenizers.Sequence([without, backend.pre_tokenizer])
    assert read_back(cases, tokenizer)[0].tolist() == [False, True]


def test_a_long_question_keeps_as_many_tokens_as_there_is_room_for(caplog):
    room = 32 - 4 - MIN_ADVANCE - 3  # of max_length, beside the overlap, what a window goes on by, and special tokens
    tokenizer = train_tokenizer(["who takes aspirin now", "she takes it"] * 3, max_length=512)
    none: dict[str, list] = {"text": [], "answer_start": []}
    rows = [{"id": str(count), "question": "who " * count, "context": "she takes it", "answers": none}
            for count in (60, room)]
    windows = get_task("qa").features(datasets.Dataset.from_list(rows), tokenizer, 32, 4)
    who = tokenizer.convert_tokens_to_ids("who")
    assert [tokens.count(who) for tokens in windows["input_ids"][:]] == [room, room]
    assert f"1 questions are longer than {room} tokens" in caplog.text


@pytest.mark.parametrize(("context", "text", "found"), [
    ("a \ufb01t", "f", []), ("a \ufb01", "i", []), ("a \ufb01t", "fit", [(2, 4)]),
])
def test_no_place_begins_or_ends_within_a_character(context, text, found):
    assert places_of(context, text) == found


def test_a_place_too_far_off_is_none_though_it_is_alike():
    context = "x" * 5 + " " * 18 + "3\u00a0mg"
    assert place_of(context, "3 mg", 0) is None and place_of(context, "3 mg", 4) == (23, 27)
