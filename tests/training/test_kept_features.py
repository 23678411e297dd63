"""Features of a split that are kept for the next who asks: made once, and nobody can tell them from new ones."""

import gc
import weakref

import pytest
from transformers import AutoTokenizer, CanineTokenizer

from datamap.core.splits import load_split
from datamap.tasks.qa import QuestionAnswering
from datamap.tasks.registry import get_task
from datamap.training import data as run_data
from datamap.training.data import features_of
from datamap.training.tiny_model import train_tokenizer

ASKED = (48, 8, "none")


@pytest.fixture
def made(monkeypatch):
    """Of how many examples features were made, each time; none are kept to begin with."""
    sizes: list[int] = []
    original = QuestionAnswering.features

    def counted(self, data, *rest):
        sizes.append(len(data))
        return original(self, data, *rest)

    monkeypatch.setattr(run_data, "_features", {})
    monkeypatch.setattr(QuestionAnswering, "features", counted)
    return sizes


def state_of(tokenizer) -> tuple:
    """What goes into the files of a model, and into its padding."""
    return tokenizer.backend_tokenizer.to_str(), tokenizer.padding_side, tokenizer.truncation_side


@pytest.mark.parametrize("side", ["right", "left"])
def test_features_are_made_once_whatever_was_tokenised_between(qa_dir, tiny_model, made, side):
    train, other = (load_split(str(qa_dir), split, get_task("qa")) for split in ("train", "validation"))
    tokenizers = [AutoTokenizer.from_pretrained(tiny_model, padding_side=side) for _ in range(2)]
    for tokenizer in tokenizers:
        first = features_of(train, tokenizer, *ASKED)
        tokenizer(["a word"], truncation=True, max_length=3, padding="max_length")
        assert features_of(train, tokenizer, *ASKED) is first
        features_of(other, tokenizer, *ASKED)
    assert made == [len(train.data), len(other.data)]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_tokenizer_is_left_alike_by_features_made_and_kept(qa_dir, tiny_model, made, side):
    train = load_split(str(qa_dir), "train", get_task("qa"))
    one, other = (AutoTokenizer.from_pretrained(tiny_model, padding_side=side) for _ in range(2))
    alone = AutoTokenizer.from_pretrained(tiny_model, padding_side=side)
    get_task("qa").features(train.data, alone, *ASKED)
    for tokenizer in (one, other):
        features_of(train, tokenizer, *ASKED)
        assert state_of(tokenizer) == state_of(alone)
    assert len(made) == 2, "one of them alone's"


def test_what_a_tokenizer_cuts_off_tells_its_features(made):
    """Two that differ in nothing else: one cuts texts at their end, the other at their beginning."""
    nli = load_split("demo:nli", "validation", get_task("nli"), 20)
    words = [text for column in nli.task.text_columns for text in nli.data[column][:]]
    found = []
    for side in ("right", "left"):
        tokenizer = train_tokenizer(words, 64)
        tokenizer.truncation_side = side
        found.append(features_of(nli, tokenizer, 8, 0, "none")["input_ids"][:])
    assert found[0] != found[1]


def test_the_features_of_a_slow_tokenizer_are_not_those_of_another(made):
    """They are known by the place of the tokenizer in memory, which must not become another's."""
    nli = load_split("demo:nli", "validation", get_task("nli"), 5)
    tokenizer = CanineTokenizer()
    assert not tokenizer.is_fast
    first = features_of(nli, tokenizer, 64, 0, "none")
    assert features_of(nli, tokenizer, 64, 0, "none") is first
    place = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert place() is not None
    run_data._features.clear()
    gc.collect()
    assert place() is None
