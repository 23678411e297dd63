"""demo:nli: labels that follow from the texts, planted errors, and no giveaways."""

import re
from collections import Counter

import pytest

from demo_data import generate
from demo_nli import ADDED, CHANGED, LABELS, SIZES, THINGS

GENERAL = set(THINGS)
PARTICULAR = {thing: kind for kind, (things, _) in THINGS.items() for thing in things}


@pytest.fixture(scope="module")
def rows():
    return {split: generate("nli", split) for split in SIZES}


def details(sentence: str) -> dict[str, str]:
    """What a sentence states, read without the generator: detail -> value; ``thing`` only where it is particular."""
    text = sentence.removesuffix(".").lower()
    known = {**{detail: CHANGED[detail] for detail in ("count", "age")}, **ADDED, "thing": tuple(PARTICULAR)}
    found = {
        detail: value
        for detail, values in known.items()
        for value in values
        if re.search(rf"\b{value}\b", text)
    }
    if "outdoors" in text:
        found["where"] = "not outdoors" if "not outdoors" in text else "outdoors"
    return found


def true_label(premise: str, hypothesis: str) -> str:
    stated, claimed = details(premise), details(hypothesis)
    if any(detail in stated and stated[detail] != value for detail, value in claimed.items()):
        return "contradiction"
    return "entailment" if set(claimed) <= set(stated) else "neutral"


@pytest.mark.parametrize("split", SIZES)
def test_the_labels_follow_from_the_texts_but_where_an_error_is_planted(rows, split):
    assert len(rows[split]) == SIZES[split]
    for row in rows[split]:
        assert list(row) == ["id", "premise", "hypothesis", "label", "planted_error"]
        right = row["label"] == true_label(row["premise"], row["hypothesis"])
        assert right == (row["planted_error"] == ""), row
    planted = sum(row["planted_error"] == "wrong_label" for row in rows[split])
    assert planted == (150 if split == "train" else 0)


def test_sentences_say_the_same_kind_of_thing(rows):
    """A hypothesis is about the action of its premise, and about its things, in general or in particular."""
    actions = {action for _, known in THINGS.values() for action in known}
    for row in rows["train"]:
        both = [set(re.findall(r"\w+", row[column].lower())) & actions for column in ("premise", "hypothesis")]
        assert both[0] == both[1] and len(both[0]) == 1
        kinds = [PARTICULAR.get(details(row[column]).get("thing", "")) for column in ("premise", "hypothesis")]
        general = [next((kind for kind in GENERAL if kind in row[column].lower()), None)
                   for column in ("premise", "hypothesis")]  # fmt: skip
        assert (kinds[0] or general[0]) == (kinds[1] or general[1])


def test_labels_are_balanced_and_splits_share_no_premise(rows):
    for split in SIZES:
        counts = Counter(true_label(row["premise"], row["hypothesis"]) for row in rows[split])
        assert set(counts) == set(LABELS) and max(counts.values()) - min(counts.values()) <= 1
    premises = [{row["premise"] for row in rows[split]} for split in SIZES]
    assert not premises[0] & premises[1]


def test_the_same_seed_gives_the_same_rows(rows):
    assert generate("nli", "train") == rows["train"]
    assert generate("nli", "train", seed=1) != rows["train"]


@pytest.mark.parametrize("columns", [("hypothesis",), ("premise",), ("premise", "hypothesis")])
def test_no_words_give_the_label_away(rows, columns):
    """Of three labels; Gururangan et al. 2018 find them in real data from the hypothesis alone."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = {split: [" ".join(row[column] for column in columns) for row in rows[split]] for split in SIZES}
    labels = {split: [row["label"] for row in rows[split]] for split in SIZES}
    words = CountVectorizer(ngram_range=(1, 2))
    model = LogisticRegression(max_iter=2000).fit(words.fit_transform(texts["train"]), labels["train"])
    assert model.score(words.transform(texts["validation"]), labels["validation"]) <= 0.5
