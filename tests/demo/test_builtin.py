import hashlib
import json
import re
import subprocess
import sys
from collections import Counter

import pytest
from conftest import REPOSITORY

from datamap.demo import clinical
from datamap.demo.builtin import DEMOS, generate
from datamap.demo.clinical import KINDS, PLANTED_ERRORS

SIZES = {"train": 2500, "validation": 400}


@pytest.fixture(scope="module")
def rows():
    return {split: generate("clinical", split) for split in SIZES}


def sentences(context):
    return re.findall(r"[^.]+\.(?=\s|$)", context)


def sentence_of(context, start):
    """Number of the sentence that holds the character `start`."""
    return len(re.findall(r"\. ", context[:start]))


def occurrences(text, context):
    return len(re.findall(rf"(?<!\w){re.escape(text)}(?!\w)", context, re.IGNORECASE))


def pattern_of(template):
    """A slot stands for any words."""
    return "".join(".+" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{\w+\})", template))


def asked_kinds(question):
    """Kinds that have a question template which matches."""
    return {
        kind
        for kind, templates in clinical.QUESTIONS.items()
        if any(re.fullmatch(pattern_of(template), question) for template in templates)
    }


def stated_kinds(sentence):
    """Kinds that have a sentence template which matches, whatever clause was put before or behind it."""
    return {
        kind
        for kind, templates in clinical.SENTENCES.items()
        if any(
            re.search(pattern_of(re.sub(r"[\[\]<>]", "", template).removesuffix(".")), sentence, re.IGNORECASE)
            for template in templates
        )
    }


def test_default_sizes_columns_and_unique_ids(rows):
    assert list(DEMOS) == ["clinical", "nli", "stories", "stories_4dir"]
    assert list(DEMOS["clinical"].sizes) == ["train", "validation"]
    for split, expected in SIZES.items():
        assert len(rows[split]) == expected
        assert rows[split][17]["id"] == f"clinical-{split}-00017"
        assert len({row["id"] for row in rows[split]}) == expected
        for row in rows[split]:
            assert list(row) == ["id", "context", "question", "answers", "question_type", "planted_error"]
            assert row["question_type"] in KINDS and row["question"].strip()
        assert {row["question_type"] for row in rows[split]} == set(KINDS)


@pytest.mark.parametrize("name", list(DEMOS))
def test_same_seed_same_bytes_in_another_process_and_nothing_heavy_imported(name):
    code = (
        "import sys, json; from datamap.demo.builtin import generate;"
        f"print(json.dumps(generate('{name}', 'train', 7, 60)));"
        "assert not {'torch', 'pandas', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    here = generate(name, "train", 7, 60)
    assert json.loads(done.stdout) == here
    assert done.stdout.strip() == json.dumps(here)
    assert generate(name, "train", 8, 60) != here


@pytest.mark.parametrize(
    ("name", "split", "digest"),
    [
        ("clinical", "validation", "0f9a5db6b303d5ef"),
        ("clinical", "train", "ed17d70f9457dcba"),
        ("nli", "validation", "84285df432f63d1e"),
        ("nli", "train", "fb94a11b81a56919"),
        ("stories", "validation", "ee52f8a8a9e78f84"),
        ("stories_4dir", "validation", "288cfe2701534bba"),
    ],
)
def test_rows_are_those_that_other_machines_and_earlier_versions_make(name, split, digest):
    """Published numbers hang on them. A generator that is changed on purpose changes its digest here."""
    assert hashlib.sha256(json.dumps(generate(name, split)).encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("n", [0, 1, 4, 50, 137, 500])
def test_planted_errors_are_a_tenth_in_equal_shares(n):
    found = Counter(row["planted_error"] for row in generate("clinical", "train", 3, n))
    assert sum(found.values()) == n
    planted = [found[error] for error in PLANTED_ERRORS]
    assert sum(planted) == round(n / 10) and max(planted) - min(planted) <= 1


def test_default_split_shares_are_exact_and_validation_is_clean(rows):
    assert Counter(row["planted_error"] for row in rows["train"]) == {"": 2250, **dict.fromkeys(PLANTED_ERRORS, 50)}
    assert PLANTED_ERRORS == (
        "wrong_span", "shifted_boundary", "overlong_span", "other_question", "malformed_question",
    )
    assert {row["planted_error"] for row in rows["validation"]} == {""}


def test_answers_are_whole_words_at_their_offsets(rows):
    for row in rows["train"] + rows["validation"]:
        context, answers = row["context"], row["answers"]
        assert len(answers["text"]) == len(answers["answer_start"]) >= 1
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            end = start + len(text)
            assert text and context[start:end] == text and text == text.strip(" .,")
            assert start == 0 or not context[start - 1].isalnum()
            assert end == len(context) or not context[end].isalnum()


def test_notes_have_4_to_9_sentences_and_no_slot_or_mark_is_left(rows):
    counts = Counter(len(sentences(row["context"])) for row in rows["train"] + rows["validation"])
    assert set(counts) == set(range(4, 10))
    assert not any(re.search(r"[{}<>\[\]]", row["context"] + row["question"]) for row in rows["train"])


def test_splits_share_no_note_whatever_seed_and_size(rows):
    train = {row["context"] for seed in (42, 43) for row in generate("clinical", "train", seed)}
    assert train.isdisjoint(row["context"] for row in rows["validation"])
    assert train.isdisjoint(row["context"] for row in generate("clinical", "validation", 43, 2000))


def test_exactly_one_sentence_answers_a_clean_question(rows):
    for row in rows["validation"] + [row for row in rows["train"][::3] if not row["planted_error"]]:
        context, first = row["context"], row["answers"]["text"][0]
        assert occurrences(first, context) == 1
        assert row["question_type"] in asked_kinds(row["question"])
        stated = [stated_kinds(sentence) for sentence in sentences(context)]
        matching = [number for number, kinds in enumerate(stated) if row["question_type"] in kinds]
        assert matching == [sentence_of(context, row["answers"]["answer_start"][0])], row


def test_some_clean_examples_have_several_golds_that_overlap(rows):
    for split in SIZES:
        clean = [row for row in rows[split] if not row["planted_error"]]
        several = [row["answers"]["text"] for row in clean if len(row["answers"]["text"]) > 1]
        assert 0.2 < len(several) / len(clean) < 0.8
        for texts in several:
            assert len(set(texts)) == 2 and (texts[0] in texts[1] or texts[1] in texts[0])


def test_most_questions_begin_with_a_question_word(rows):
    clean = [row["question"] for row in rows["train"] if not row["planted_error"]]
    beginning = re.compile(r"(What|Which|How|When|Where|On what|On which|At what|To what)\b")
    assert 0.9 < sum(beginning.match(question) is not None for question in clean) / len(clean) < 1


@pytest.mark.parametrize("seed", [1, 42])
def test_planted_errors_are_what_they_are_called(seed):
    drawn = generate("clinical", "train", seed)
    for row in drawn:
        error, context = row["planted_error"], row["context"]
        if not error:
            continue
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        stated = [stated_kinds(sentence) for sentence in sentences(context)]
        own = next((i for i, kinds in enumerate(stated) if row["question_type"] in kinds), None)
        assert own is not None
        first, last = sentence_of(context, start), sentence_of(context, start + len(text))
        if error == "malformed_question":
            assert not asked_kinds(row["question"])
            continue
        assert row["question_type"] in asked_kinds(row["question"])
        if error in ("wrong_span", "other_question"):
            assert own not in (first, last)
        if error == "overlong_span":
            assert first <= own <= last and len(text.split()) >= 5
            # It must fit where two windows overlap at --doc_stride 32, or no window would hold it.
            assert len(re.findall(r"\w+|[^\w\s]", text)) <= 32
        if error == "shifted_boundary":
            assert first == own == last
            # The gold answer of the same fact: the same note's clean rows tell it, where one asks for it.
            for other in drawn:
                if other["context"] == context and other["question_type"] == row["question_type"]:
                    assert other is row or other["answers"]["text"][0] != text


def test_other_question_keeps_an_answer_that_another_sentence_states():
    for row in generate("clinical", "train", 5, 500):
        if row["planted_error"] == "other_question":
            said = sentences(row["context"])[sentence_of(row["context"], row["answers"]["answer_start"][0])]
            assert stated_kinds(said) and row["question_type"] not in stated_kinds(said)


def test_some_notes_need_a_second_window_and_most_do_not(rows):
    # About one token a word and one a punctuation mark, as a WordPiece vocabulary trained on the notes gives.
    tokens = [len(re.findall(r"\w+|[^\w\s]", row["question"] + row["context"])) + 3 for row in rows["train"]]
    assert 0.04 < sum(n > 128 for n in tokens) / len(tokens) < 0.2


def test_unknown_names_and_sizes_are_refused():
    with pytest.raises(ValueError, match="no built-in dataset 'x'; there is clinical, nli, stories, stories_4dir"):
        generate("x", "train")
    with pytest.raises(ValueError, match="no split 'test'; it has train, validation"):
        generate("clinical", "test")
    with pytest.raises(ValueError, match="num_examples is -1"):
        generate("clinical", "train", 42, -1)
