import re
from collections import Counter, defaultdict

import pytest

from datamap.demo import nli as demo_nli
from datamap.demo.builtin import DEMOS, generate
from datamap.demo.nli import LABELS, PLANTED_ERRORS

SIZES = {"train": 1500, "validation": 300}
KINDS = {
    "animals": ("dogs", "cats"), "clothes": ("coats", "hats"), "furniture": ("chairs", "tables"),
    "vehicles": ("cars", "buses"),
}
KIND_OF = {thing: kind for kind, things in KINDS.items() for thing in things} | {kind: kind for kind in KINDS}


@pytest.fixture(scope="module")
def rows():
    return {split: generate("nli", split) for split in SIZES}


def read(sentence):
    """What a sentence says, detail by detail, read off its words; None where it leaves a detail open."""
    words = sentence.lower().removesuffix(".").replace("pieces of furniture", "furniture").split()
    assert sentence[0].isupper() and sentence.endswith(".") and "  " not in sentence

    def only(*options):
        found = [option for option in options if option in words]
        assert len(found) <= 1, sentence
        return found[0] if found else None

    (thing,) = [word for word in words if word in KIND_OF]
    outdoors = None if "outdoors" not in words else "not" not in words
    return {
        "scene": (words[words.index("are") + 1], KIND_OF[thing]),
        "count": only("two", "three", "four"),
        "age": only("young", "old"),
        "outdoors": outdoors,
        "colour": only("white", "black"),
        "thing": None if thing in KINDS else thing,
        "when": only("noon", "night"),
    }


def label_of(row):
    premise, hypothesis = read(row["premise"]), read(row["hypothesis"])
    assert premise.pop("scene") == hypothesis.pop("scene")
    claimed = {detail: value for detail, value in hypothesis.items() if value is not None}
    if any(premise[detail] not in (None, value) for detail, value in claimed.items()):
        return "contradiction"
    return "neutral" if any(premise[detail] is None for detail in claimed) else "entailment"


@pytest.mark.parametrize(
    ("premise", "hypothesis", "label"),
    [
        ("At noon two old people are feeding dogs.", "Some people are feeding animals at noon.", "entailment"),
        ("Two old people are feeding dogs outdoors.", "Two people are feeding dogs not outdoors.", "contradiction"),
        ("Two old people are feeding dogs.", "Three people are feeding white dogs.", "contradiction"),
        ("Two old people are feeding animals.", "Old people are feeding dogs.", "neutral"),
        ("Two people are moving chairs.", "Two old people are moving pieces of furniture.", "neutral"),
    ],
)
def test_the_reading_on_pairs_done_by_hand(premise, hypothesis, label):
    assert label_of({"premise": premise, "hypothesis": hypothesis}) == label


def test_sizes_columns_and_ids(rows):
    assert DEMOS["nli"].sizes == SIZES
    assert LABELS == ("entailment", "neutral", "contradiction") and PLANTED_ERRORS == ("wrong_label",)
    for split, size in SIZES.items():
        assert len(rows[split]) == size and rows[split][17]["id"] == f"nli-{split}-00017"
        assert {tuple(row) for row in rows[split]} == {("id", "premise", "hypothesis", "label", "planted_error")}
        assert all(row["premise"] != row["hypothesis"] for row in rows[split])
        pairs = {(row["premise"], row["hypothesis"]) for row in rows[split]}
        assert len(pairs) == size


def test_labels_are_what_the_words_say_but_for_the_planted_ones(rows):
    for row in rows["train"] + rows["validation"]:
        assert (row["label"] != label_of(row)) == (row["planted_error"] == "wrong_label"), row
    assert {row["planted_error"] for row in rows["validation"]} == {""}
    assert Counter(row["label"] for row in rows["validation"]) == dict.fromkeys(LABELS, 100)
    assert Counter(label_of(row) for row in rows["train"]) == dict.fromkeys(LABELS, 500)


@pytest.mark.parametrize("n", [0, 1, 4, 50, 137, 500])
def test_a_tenth_is_planted_and_true_labels_are_balanced(n):
    drawn = generate("nli", "train", 3, n)
    assert len(drawn) == n
    assert sum(row["planted_error"] == "wrong_label" for row in drawn) == round(n / 10)
    true = Counter(label_of(row) for row in drawn)
    assert max(true[label] for label in LABELS) - min(true[label] for label in LABELS) <= 1


def test_a_planted_label_is_either_of_the_other_two(rows):
    drawn = [row for seed in range(4) for row in generate("nli", "train", seed) if row["planted_error"]]
    changes = Counter((label_of(row), row["label"]) for row in drawn)
    assert len(changes) == 6
    assert min(changes.values()) > 0.1 * len(drawn)


def test_every_way_to_a_label_is_there(rows):
    ways: dict[str, Counter] = defaultdict(Counter)
    for row in rows["validation"]:
        premise, hypothesis = read(row["premise"]), read(row["hypothesis"])
        for detail, value in hypothesis.items():
            if value is None and premise[detail] is not None:
                ways[row["label"]]["dropped", detail] += 1
            elif premise[detail] is None and value is not None:
                ways[row["label"]]["added", detail] += 1
            elif premise[detail] != value:
                ways[row["label"]]["changed", detail] += 1
    assert {detail for way, detail in ways["entailment"] if way == "dropped"} >= {"count", "age", "outdoors"}
    assert {way for way, _ in ways["entailment"]} == {"dropped"}
    assert {detail for way, detail in ways["contradiction"] if way == "changed"} == {"count", "age", "outdoors"}
    assert {detail for way, detail in ways["neutral"] if way == "added"} == {"colour", "thing", "when"}
    assert min(count for label in LABELS for way, count in ways[label].items() if way[0] != "dropped") > 10


def test_general_words_stand_for_special_ones(rows):
    """A hypothesis may say "animals" of dogs (entailed), or dogs of "animals" (neutral)."""
    said: Counter = Counter()
    for row in rows["validation"]:
        premise, hypothesis = read(row["premise"]), read(row["hypothesis"])
        if premise["thing"] != hypothesis["thing"]:
            said[row["label"], premise["thing"] is None] += 1
    assert said["neutral", True] > 10 and not said["entailment", True]


def test_no_two_splits_share_a_premise_whatever_seed_and_size(rows):
    train = {row["premise"] for seed in (42, 43) for row in generate("nli", "train", seed)}
    assert train.isdisjoint(row["premise"] for row in rows["validation"])
    assert train.isdisjoint(row["premise"] for row in generate("nli", "validation", 43, 2000))


def test_one_text_alone_tells_nothing(rows):
    """Hypothesis-only and premise-only classifiers stay at chance, a third; 0.5 would be two classes of three."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    train, validation = rows["train"], rows["validation"]
    labels = [[label_of(row) for row in split] for split in (train, validation)]
    for columns in (("hypothesis",), ("premise",), ("premise", "hypothesis")):
        texts = [[" ".join(row[column] for column in columns) for row in split] for split in (train, validation)]
        for pairs in (1, 2):
            counts = CountVectorizer(ngram_range=(1, pairs), min_df=2)
            words = LogisticRegression(max_iter=1000).fit(counts.fit_transform(texts[0]), labels[0])
            accuracy = words.score(counts.transform(texts[1]), labels[1])
            assert accuracy <= 0.45, (columns, pairs, accuracy)


def test_no_word_stands_with_one_label_more_than_with_another(rows):
    shares: dict[str, Counter] = defaultdict(Counter)
    for row in rows["train"]:
        for word in set(re.findall(r"\w+", row["hypothesis"].lower())):
            shares[word][label_of(row)] += 1
    frequent = {word: counts for word, counts in shares.items() if counts.total() >= 150}
    assert {"not", "two", "black", "night"} <= set(frequent)
    for word, counts in frequent.items():
        assert max(counts.values()) / counts.total() < 0.45, (word, counts)


def test_which_details_agree_tells_the_label(rows):
    """A rule that compares the two texts word by word is learnable from the training split, its errors included."""
    from sklearn.tree import DecisionTreeClassifier

    def compared(row):
        premise, hypothesis = read(row["premise"]), read(row["hypothesis"])
        details = [detail for detail, value in hypothesis.items() if detail != "scene" and value is not None]
        return [
            sum(premise[detail] == hypothesis[detail] for detail in details),
            sum(premise[detail] is None for detail in details),
            len(details),
        ]

    train, validation = rows["train"], rows["validation"]
    tree = DecisionTreeClassifier(min_samples_leaf=5, random_state=0)
    tree.fit([compared(row) for row in train], [row["label"] for row in train])
    assert tree.score([compared(row) for row in validation], [row["label"] for row in validation]) > 0.95


def test_more_than_the_templates_hold_is_refused(monkeypatch):
    monkeypatch.setattr(demo_nli, "MAX_MISSES", 10)
    with pytest.raises(ValueError, match="num_examples is 50000; demo:nli cannot make so many different pairs"):
        generate("nli", "validation", 1, 50_000)
