"""Perturbations change what they say and nothing else, whatever the text; WordNet's synonyms come from its files."""

import itertools
import os
import shutil
import subprocess
import sys
import unicodedata

import nltk.data
import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from datamap.core.errors import UserError
from datamap.selection import perturbations
from datamap.selection.perturbations import KINDS, flip_rate, perturb, perturbed_texts, wordnet_synonyms, words

REVIEW = "It 's a Stirring , funny film -- and NOT one to miss ."
TABLE = {"film": ["movie", "picture"], "funny": ["amusing"], "miss": ["skip"], "stirring": ["moving"], "not": ["non"]}
CHINESE = "\u4f60\u597d"
# With vowel signs, which are marks.
HINDI = ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u092b\u093c\u093f\u0932\u094d\u092e"]
any_text = st.one_of(
    st.text(max_size=60),
    st.text(st.characters(), max_size=40),
    st.lists(st.sampled_from(["good", "NOT", "n't", "film", "'s", "--", ",", CHINESE, "\n"])).map(" ".join),
)


def table(word):
    return list(TABLE.get(word.lower(), []))


def backwards(word):
    """A synonym for every word, so that any text can be tried."""
    return [word[::-1] + "x"]


def in_words(text):
    return [text[start:end] for start, end in words(text)]


def gaps(text):
    """What stands before, between and after the words."""
    edges = [0, *itertools.chain(*words(text)), len(text)]
    return [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


# --- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (REVIEW, ["It", "'s", "a", "Stirring", "funny", "film", "and", "NOT", "one", "to", "miss"]),
        ("well-made, isn't it?", ["well-made", "isn't", "it"]),
        ("does n't 'quote' it", ["does", "n't", "quote", "it"]),
        ("cafe\u0301 noir", ["cafe\u0301", "noir"]),
        (" ".join(HINDI), HINDI),
        ("film\u2014which", ["film", "which"]),
        (" ... !", []),
        ("", []),
    ],
)
def test_words(text, expected):
    assert in_words(text) == expected


@settings(deadline=None)
@given(any_text)
def test_words_leave_no_letter_out(text):
    assert not any(character.isalnum() for gap in gaps(text) for character in gap)
    assert all(any(character.isalnum() or character == "_" for character in word) for word in in_words(text))


# --- perturbations -----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(any_text, st.integers(0, 2**32))
@example("no NOT can't n't", 0)
def test_deletion_takes_words_and_white_space_only(text, seed):
    result = perturb(text, "deletion", np.random.default_rng(seed))
    spans = words(text)
    protected = [word for word in in_words(text) if perturbations._is_negation(word)]
    if len(spans) < 2 or len(protected) == len(spans):
        assert result == text
        return
    assert len(result) < len(text)
    rest = iter(text)
    assert all(character in rest for character in result)  # nothing new, nothing out of order
    gone = min(max(1, round(0.1 * len(spans))), len(spans) - len(protected))
    assume(len(spans) <= 12)  # every choice of words is tried
    between = ["".join(gap.split()) for gap in gaps(text)]
    possible = set()
    for chosen in itertools.combinations(range(len(spans)), gone):
        kept = ["" if number in chosen else word for number, word in enumerate(in_words(text))]
        if all(kept[number] or not perturbations._is_negation(in_words(text)[number]) for number in range(len(spans))):
            possible.add("".join(itertools.chain(*itertools.zip_longest(between, kept, fillvalue=""))))
    assert "".join(result.split()) in possible


def test_deletion_of_each_word():
    drawn = {perturb("(a) not good film.", "deletion", np.random.default_rng(seed)) for seed in range(60)}
    assert drawn == {"() not good film.", "(a) not film.", "(a) not good."}
    drawn = {perturb(" isn\u2019t \n so  bad ", "deletion", np.random.default_rng(seed)) for seed in range(20)}
    assert drawn == {" isn\u2019t \n bad ", " isn\u2019t \n so  "}


@pytest.mark.parametrize(("count", "gone"), [(2, 1), (14, 1), (16, 2), (50, 5), (250, 25)])
def test_longer_texts_lose_a_tenth(count, gone):
    text = " ".join(f"w{number}" for number in range(count))
    result = perturb(text, "deletion", np.random.default_rng(1))
    assert len(result.split()) == count - gone and "  " not in result and result == result.strip()


@settings(deadline=None)
@given(any_text, st.integers(0, 2**32))
def test_swap_exchanges_two_neighbours(text, seed):
    result = perturb(text, "swap", np.random.default_rng(seed))
    before, between = in_words(text), gaps(text)
    if len(set(before)) < 2:
        assert result == text
        return
    possible = set()
    for place in range(len(before) - 1):
        swapped = list(before)
        swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
        possible.add("".join(itertools.chain(*itertools.zip_longest(between, swapped, fillvalue=""))))
    assert result in possible - {text}


@settings(deadline=None)
@given(any_text, st.integers(0, 2**32))
def test_synonyms_take_the_places_of_words(text, seed):
    result = perturb(text, "synonym", np.random.default_rng(seed), backwards)
    before = in_words(text)
    free = sum(not perturbations._is_negation(word) for word in before)
    if len(before) < 2 or not free:
        assert result == text
        return
    wanted = min(max(1, round(0.1 * len(before))), free)
    places = [number for number, word in enumerate(before) if not perturbations._is_negation(word)]
    assume(len(before) <= 12)  # every choice of words is tried
    possible = set()
    for chosen in itertools.combinations(places, wanted):
        after = [perturbations._in_case_of(word, backwards(word)[0]) if number in chosen else word
                 for number, word in enumerate(before)]
        possible.add("".join(itertools.chain(*itertools.zip_longest(gaps(text), after, fillvalue=""))))
    assert result in possible and result != text


def test_synonyms_keep_the_letter_case_and_spare_negations():
    drawn = {perturb(REVIEW, "synonym", np.random.default_rng(seed), table) for seed in range(200)}
    replaced = [("film", "movie"), ("film", "picture"), ("funny", "amusing"), ("miss", "skip"), ("Stirring", "Moving")]
    assert drawn == {REVIEW.replace(*pair) for pair in replaced}
    assert perturb("FILM x", "synonym", np.random.default_rng(0), lambda word: table(word)[:1]) == "MOVIE x"
    assert perturb("Not it", "synonym", np.random.default_rng(0), table) == "Not it"
    # A "synonym" equal to the word changes nothing and is not drawn.
    own = {"film": ["film", "movie"]}
    drawn = {perturb("film x", "synonym", np.random.default_rng(n), lambda word: own.get(word, [])) for n in range(20)}
    assert drawn == {"movie x"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["", "film", " film. ", "?!", CHINESE])
def test_fewer_than_two_words_stay(kind, text):
    assert perturb(text, kind, np.random.default_rng(0), backwards) == text


def test_unknown_kinds_are_refused():
    with pytest.raises(UserError, match="'typo'; expected some of synonym, deletion, swap"):
        perturb("a b", "typo", np.random.default_rng(0))
    with pytest.raises(UserError, match="'typo'"):
        perturbed_texts(["a b"], ["1"], ["swap", "typo"], 1, 0)
    for kinds, copies in (([], 1), (["swap"], 0)):
        with pytest.raises(UserError, match="expected at least 1 of each"):
            perturbed_texts(["a b"], ["1"], kinds, copies, 0)
    with pytest.raises(ValueError, match="needs a function"):
        perturb("a b", "synonym", np.random.default_rng(0))


# --- copies ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.dictionaries(st.text(max_size=8), any_text, min_size=1, max_size=6),
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 10**6),
    st.randoms(use_true_random=False),
)
def test_copies_depend_on_seed_id_and_number_alone(rows, kinds, copies, seed, random):
    ids = list(rows)
    result = dict(zip(ids, perturbed_texts([rows[i] for i in ids], ids, kinds, copies, seed, backwards), strict=True))
    for identity, drawn in result.items():
        text = rows[identity]
        assert len(drawn) <= copies and text not in drawn
        if len(set(in_words(text))) > 1 and not any(map(perturbations._is_negation, in_words(text))):
            assert len(drawn) == copies  # every kind can change it
    some = random.sample(ids, random.randint(1, len(ids)))
    again = perturbed_texts([rows[i] for i in some], some, kinds, copies, seed, backwards)
    assert again == [result[identity] for identity in some]
    fewer = perturbed_texts([rows[i] for i in ids], ids, kinds, 1, seed, backwards)
    assert all(drawn[:1] == result[identity][:1] for identity, drawn in zip(ids, fewer, strict=True) if drawn)


def test_kinds_take_turns_and_seeds_and_ids_differ():
    text = " ".join(f"w{number}" for number in range(9))
    (drawn,) = perturbed_texts([text], ["a"], ["deletion", "swap"], 4, 0)
    assert [len(copy.split()) for copy in drawn] == [8, 9, 8, 9]
    many = {
        tuple(perturbed_texts([text], [identity], ["deletion"], 12, seed)[0]) for identity in "ab" for seed in (0, 1)
    }
    assert len(many) == 4
    with pytest.raises(ValueError):
        perturbed_texts([text], ["a", "b"], ["swap"], 1, 0)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_gives_the_same_copies_in_every_process(hash_seed):
    program = ("from datamap.selection.perturbations import perturbed_texts; "
               f"print(perturbed_texts([{REVIEW!r}], ['r1'], ['deletion', 'swap'], 6, 42))")
    other = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )
    assert other.stdout.strip() == str(perturbed_texts([REVIEW], ["r1"], ["deletion", "swap"], 6, 42))


# --- flip rate ---------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 2), max_size=5)), max_size=8))
def test_flip_rate(rows):
    original, copies = [row[0] for row in rows], [np.array(row[1]) for row in rows]
    rates = flip_rate(np.array(original, dtype=int), copies)
    assert isinstance(rates, np.ma.MaskedArray) and rates.shape == (len(rows),) and rates.dtype == np.float64
    for rate, (label, drawn) in zip(rates, rows, strict=True):
        if drawn:
            assert rate == pytest.approx(1 - drawn.count(label) / len(drawn))
        else:
            assert rate is np.ma.masked
    assert np.isfinite(rates.data).all()


def test_flip_rate_of_answers():
    rates = flip_rate(["Oslo", "", "Lima"], [["Oslo", "Rome"], [""], []])
    assert rates.tolist() == [0.5, 0.0, None]
    with pytest.raises(ValueError):
        flip_rate(["Oslo"], [])


# --- WordNet -----------------------------------------------------------------------------------------------------

LICENCE = "  1 This stands in for the licence of WordNet 3.0 Copyright 2006, whose lines begin with two blanks.  \n"
FRAME = " 01 + 08 00"  # one verb frame, for all words of the set
# Part of speech (s: satellite adjective, similar to the set of the given number) and the words of each synonym set,
# the senses of a word in the order of their frequency.
SETS = (
    ("n", ["film", "movie", "picture", "moving_picture", "motion-picture"]),
    ("n", ["film", "cinema", "celluloid"]),
    ("v", ["shoot", "film", "take"]),
    ("a", ["good"]),
    ("s", ["superb", "splendid(a)"]),
    ("r", ["quickly", "rapidly", "speedily"]),
    ("n", ["angstrom", "a"]),
    ("n", ["mouse", "rodent"]),
    ("n", ["metropolis", "Paris"]),
)
SUFFIX = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}


def write_wordnet(folder):
    """A database of ``SETS`` in the format of wndb(5WN)."""
    folder.mkdir(parents=True)
    (folder / "lexnames").write_text("".join(f"{number:02d}\tfile{number}\t1\n" for number in range(45)))
    files, senses, head = dict.fromkeys(SUFFIX.values(), LICENCE), [], 0
    index: dict[tuple[str, str], list[int]] = {}
    for kind, names in SETS:
        suffix = SUFFIX[kind]
        offset = len(files[suffix].encode())
        head = offset if kind == "a" else head
        fields = f"{offset:08d} 03 {kind} {len(names):02x} " + " ".join(f"{name} 0" for name in names)
        pointers = f" 001 & {head:08d} a 0000" if kind == "s" else " 000"
        files[suffix] += f"{fields}{pointers}{FRAME if kind == 'v' else ''} | a gloss; \"an example\"  \n"
        for name in names:
            lemma = name.partition("(")[0].lower()
            index.setdefault((suffix, lemma), []).append(offset)
            senses.append(f"{lemma}%{'nvars'.index(kind) + 1}:03:00:: {offset:08d} 1 0\n")
    letters = {suffix: kind for kind, suffix in SUFFIX.items() if kind != "s"}
    for suffix, content in files.items():
        (folder / f"data.{suffix}").write_text(content)
        (folder / f"{suffix}.exc").write_text("mice mouse\n" if suffix == "noun" else "")
        lines = (
            f"{lemma} {letters[suffix]} {len(offsets)} 0 {len(offsets)} 0 "
            + " ".join(f"{offset:08d}" for offset in offsets) + "  \n"
            for (part, lemma), offsets in sorted(index.items()) if part == suffix
        )
        (folder / f"index.{suffix}").write_text(LICENCE + "".join(lines))
    (folder / "index.sense").write_text("".join(sorted(senses)))
    for path in (folder.parent, folder, *folder.iterdir()):  # nltk reads nothing that others could have written
        path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture
def nltk_data(tmp_path, monkeypatch):
    """The only place where nltk looks; what it loaded from there is forgotten afterwards."""
    from nltk.corpus import wordnet

    wordnet._unload()
    tmp_path.chmod(0o755)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    yield tmp_path
    wordnet._unload()


@pytest.fixture(params=["folder", "zip"])
def miniature(nltk_data, request):
    """As unpacked by hand, and as the downloader leaves it."""
    folder = nltk_data / "corpora" / "wordnet"
    write_wordnet(folder)
    if request.param == "zip":
        shutil.make_archive(str(folder), "zip", folder.parent, "wordnet")
        folder.with_suffix(".zip").chmod(0o644)
        shutil.rmtree(folder)


def test_wordnet_synonyms(miniature):
    synonyms = wordnet_synonyms()
    # The first sense as a noun and as a verb; "cinema" belongs to a rarer one; no compounds.
    assert synonyms("film") == synonyms("FILM") == ["movie", "picture", "shoot", "take"]
    assert synonyms("cinema") == ["celluloid", "film"]
    assert synonyms("superb") == ["splendid"]
    assert synonyms("speedily") == ["quickly", "rapidly"]
    assert synonyms("metropolis") == ["Paris"] and synonyms("paris") == ["metropolis"]
    assert synonyms("good") == []  # alone in its set
    assert synonyms("angstrom") == ["a"] and synonyms("a") == []  # a function word
    assert synonyms("films") == synonyms("mice") == synonyms("filming") == []  # other forms than those listed
    assert synonyms("xyzzy") == synonyms("moving-picture") == synonyms("\u6620\u753b") == []
    synonyms("film").append("changed by the caller")
    assert synonyms("film") == ["movie", "picture", "shoot", "take"]


def test_texts_perturbed_by_wordnet(miniature):
    (drawn,) = perturbed_texts(["The films , Superb film !"], ["1"], ["synonym"], 40, 0, wordnet_synonyms())
    after = {"movie", "picture", "shoot", "take"}
    assert set(drawn) == {"The films , Splendid film !", *(f"The films , Superb {word} !" for word in after)}


def test_wordnet_that_is_missing(nltk_data):
    message = r"nltk.downloader wordnet.*--perturbations deletion swap"
    with pytest.raises(UserError, match=message) as caught:
        wordnet_synonyms()
    assert "\n" not in str(caught.value)
    assert perturbed_texts(["a b"], ["1"], ["deletion", "swap"], 2, 0)[0][1] == "b a"
    assert perturbed_texts(["a b"], ["1"], ["swap", "synonym"], 1, 0) == [["b a"]]  # not reached


def test_wordnet_that_is_damaged_is_no_missing_one(nltk_data):
    folder = nltk_data / "corpora" / "wordnet"
    write_wordnet(folder)
    (folder / "index.noun").write_text("film n two\n")
    with pytest.raises(Exception, match="index.noun, line 1"):
        wordnet_synonyms()


def test_every_mark_is_part_of_a_word():
    marks = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Mn", "Mc", "Me")]
    assert all(words(f"a{mark}b c") == [(0, 3), (4, 5)] for mark in marks)
