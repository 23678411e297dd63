import json
import re
from collections import Counter
from functools import cache
from gzip import open as gzip_open

import pytest
from conftest import DATA

from datamap.demo.builtin import generate
from datamap.demo.stories import DENSITIES, NAMES

VARIANTS = ("stories", "stories_4dir")
SIZES = {"train": 5000, "validation": 700, "validB": 1200, "test": 1000}
ACTORS = {"train": (2, 8), "validation": (2, 8), "validB": (9, 20), "test": (21, 30)}
CATEGORIES = ["simple", "deeper", "less_dense", "dense", "superdense"]


@pytest.fixture(scope="module")
def rows():
    return {(variant, split): generate(variant, split) for variant in VARIANTS for split in SIZES}


# --- a second reading of the rules, which shares nothing with the generator ---

STEP = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
WALK = re.compile(r"(?P<who>[A-Z][a-z]+) walks (?P<way>north|south|east|west)")
TURN = re.compile(r"(?P<who>[A-Z][a-z]+) turns (?P<turn>left|right|around)")
FOLLOW = re.compile(r"(?P<who>[A-Z][a-z]+) follows (?P<other>[A-Z][a-z]+)")
OPPOSITE = re.compile(r"(?P<who>[A-Z][a-z]+) goes in the opposite direction of (?P<other>[A-Z][a-z]+)")
QUESTION = re.compile(r"Is ([A-Z][a-z]+) following ([A-Z][a-z]+)\?")
FORMS = {"walk": WALK, "turn": TURN, "follow": FOLLOW, "opposite": OPPOSITE}


@cache
def parsed(story):
    """(kind, match) of each sentence, in order."""
    sentences = []
    assert story.endswith(".")
    for sentence in story.removesuffix(".").split(". "):
        matches = [(kind, form.fullmatch(sentence)) for kind, form in FORMS.items()]
        (found,) = [(kind, match) for kind, match in matches if match]
        sentences.append(found)
    return sentences


def asked(row):
    match = QUESTION.fullmatch(row["question"])
    assert match is not None, row["question"]
    return match.groups()


def answer(row):
    """1 when both asked actors head the same way at the end: headings as vectors, turned one sentence at a time."""
    heading = {}
    for kind, match in parsed(row["story"]):
        who = match["who"]
        if kind == "walk":
            heading[who] = STEP[match["way"]]
        elif kind == "turn":
            x, y = heading[who]
            heading[who] = {"left": (-y, x), "right": (y, -x), "around": (-x, -y)}[match["turn"]]
        elif kind == "follow":
            heading[who] = heading[match["other"]]
        else:
            x, y = heading[match["other"]]
            heading[who] = (-x, -y)
    first, second = asked(row)
    return int(heading[first] == heading[second])


@pytest.mark.parametrize(
    ("story", "label"),
    [
        ("Ann walks north. Bob walks south. Ann follows Bob. Bob turns around.", 0),  # a copy, not a lead
        ("Ann walks north. Bob walks south. Bob turns around. Ann follows Bob.", 1),
        ("Ann walks north. Bob walks east. Ann turns right.", 1),
        ("Ann walks north. Bob walks west. Ann turns left.", 1),
        ("Ann walks east. Bob walks east. Ann goes in the opposite direction of Bob. Ann turns around.", 1),
    ],
)
def test_the_second_reading_on_stories_done_by_hand(story, label):
    assert answer({"story": story, "question": "Is Ann following Bob?"}) == label


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("split", SIZES)
def test_a_second_reading_of_the_rules_gives_every_label(rows, variant, split):
    assert [answer(row) for row in rows[variant, split]] == [row["label"] for row in rows[variant, split]]


def test_the_rules_are_those_of_the_published_stories():
    folder = DATA / "stories_2dir"
    if not folder.is_dir():
        pytest.skip(f"public data: {folder} is not there")
    published = []
    for file in sorted(folder.glob("*.jsonl.gz")):
        with gzip_open(file, "rt", encoding="utf-8") as lines:
            published += [json.loads(line) for line in lines]
    assert len(published) == 6836
    assert [answer(row) for row in published] == [row["label"] for row in published]
    # A model trained on one reads the other: the same columns, categories, names and sentences.
    made = generate("stories", "validation", num_examples=50)
    assert list(made[0]) == list(published[0])
    assert {row["category"] for row in published} == set(CATEGORIES)
    assert {name for row in published for name in asked(row)} <= set(NAMES)


# --- what a row and a split are made of ---


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("split", SIZES)
def test_rows_say_what_they_are(rows, variant, split):
    drawn = rows[variant, split]
    assert len(drawn) == SIZES[split] and drawn[17]["id"] == f"{variant}-{split}-00017"
    ways = {"north", "south"} if variant == "stories" else set(STEP)
    turns = {"around"} if variant == "stories" else {"left", "right", "around"}
    for row in drawn:
        assert list(row) == ["id", "story", "question", "label", "category", "num_actors", "num_sentences"]
        sentences = parsed(row["story"])
        walks, events = sentences[: row["num_actors"]], sentences[row["num_actors"] :]
        actors = [match["who"] for _, match in walks]
        assert {kind for kind, _ in walks} == {"walk"} and len(set(actors)) == row["num_actors"]
        assert set(actors) <= set(NAMES)
        assert all(match["way"] in ways for _, match in walks)
        assert len(sentences) == row["num_sentences"] and len(events) >= 2
        for kind, match in events:
            assert kind != "walk" and match["who"] in actors
            if kind == "turn":
                assert match["turn"] in turns
            else:
                assert match["other"] in actors and match["other"] != match["who"]
        assert len(set(asked(row)) & set(actors)) == 2
    if variant == "stories_4dir":
        said = Counter(match["turn"] for row in drawn for kind, match in parsed(row["story"]) if kind == "turn")
        assert min(said.values()) > 0.3 * said.total()


def test_names_are_enough_and_none_holds_another():
    assert len(set(NAMES)) == len(NAMES) >= 30
    assert all(re.fullmatch("[A-Z][a-z]+", name) for name in NAMES)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("split", SIZES)
def test_every_slice_has_as_many_examples_and_half_of_them_say_yes(rows, variant, split):
    few, many = ACTORS[split]
    slices = Counter((row["category"], row["num_actors"]) for row in rows[variant, split])
    assert set(slices) == {(category, number) for category in CATEGORIES for number in range(few, many + 1)}
    assert max(slices.values()) - min(slices.values()) <= 1
    yes = Counter((row["category"], row["num_actors"]) for row in rows[variant, split] if row["label"])
    assert all(abs(2 * yes[which] - size) <= 1 for which, size in slices.items())


@pytest.mark.parametrize("n", [0, 1, 2, 34, 35, 36, 104, 141])
def test_any_size_is_as_even_as_it_can_be(n):
    drawn = generate("stories", "validation", 5, n)
    assert len(drawn) == n
    slices = Counter((row["category"], row["num_actors"]) for row in drawn)
    sizes = [slices[category, number] for category in CATEGORIES for number in range(2, 9)]
    assert max(sizes) - min(sizes) <= 1
    assert abs(2 * sum(row["label"] for row in drawn) - n) <= 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_story_comes_twice_and_no_two_splits_share_one_whatever_the_seed(rows, variant):
    texts = {split: [row["story"] for row in rows[variant, split]] for split in SIZES}
    assert all(len(set(stories)) == len(stories) for stories in texts.values())
    other = {split: [row["story"] for row in generate(variant, split, 7)] for split in ("train", "validation")}
    assert set(texts["train"] + other["train"]).isdisjoint(texts["validation"] + other["validation"])
    assert set(texts["train"]) != set(other["train"])


def test_the_first_rows_are_of_every_kind(rows):
    """--max_train_samples takes the first rows."""
    first = rows["stories", "train"][:300]
    assert {row["category"] for row in first} == set(CATEGORIES)
    assert {row["num_actors"] for row in first} == set(range(2, 9))
    assert 0.4 < sum(row["label"] for row in first) / 300 < 0.6
    assert 0.4 < sum(asked(row)[0] < asked(row)[1] for row in first) / 300 < 0.6  # no order of names


# --- how hard it is ---


def densities(drawn):
    """category -> means of turns per actor, interactions per actor, depth of the deeper asked actor."""
    found: dict[str, list] = {category: [] for category in CATEGORIES}
    for row in drawn:
        depth, turns, interactions = {}, 0, 0
        for kind, match in parsed(row["story"]):
            if kind == "walk":
                depth[match["who"]] = 0
            elif kind == "turn":
                turns += 1
            else:
                interactions += 1
                depth[match["who"]] = depth[match["other"]] + 1
        deeper = max(depth[name] for name in asked(row))
        found[row["category"]].append((turns / row["num_actors"], interactions / row["num_actors"], deeper))
    return {
        category: [sum(column) / len(numbers) for column in zip(*numbers, strict=True)]
        for category, numbers in found.items()
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_categories_differ_by_what_their_names_promise(rows, variant):
    assert list(DENSITIES) == CATEGORIES
    for splits in (("train", "validation"), ("validB", "test")):
        means = densities([row for split in splits for row in rows[variant, split]])
        turns, interactions, depths = ({name: means[name][i] for name in CATEGORIES} for i in range(3))
        for fewer, more in zip(CATEGORIES, CATEGORIES[1:], strict=False):
            if (fewer, more) != ("deeper", "less_dense"):
                assert interactions[fewer] < interactions[more] and turns[fewer] > turns[more]
        assert abs(interactions["deeper"] - interactions["less_dense"]) < 0.1
        assert depths["simple"] < depths["less_dense"] < min(depths["deeper"], depths["dense"])
        assert depths["dense"] < depths["superdense"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_densities_are_near_those_of_the_published_stories(rows, variant):
    """Turns and interactions per actor of those of 9 to 30 actors."""
    means = densities(rows[variant, "validB"] + rows[variant, "test"])
    published = {
        "simple": (0.77, 0.23), "deeper": (0.53, 0.43), "less_dense": (0.50, 0.47), "dense": (0.43, 0.53),
        "superdense": (0.34, 0.64),
    }
    for category, expected in published.items():
        assert means[category][:2] == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_following_the_story_tells_the_answer(rows, variant):
    """Classifiers that count words (and pairs of words) stay at chance, also those that see only one of the texts."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    train, validation = rows[variant, "train"], rows[variant, "validation"]
    labels = [[row["label"] for row in split] for split in (train, validation)]
    for columns in (("story", "question"), ("story",), ("question",)):
        texts = [[" ".join(row[column] for column in columns) for row in split] for split in (train, validation)]
        for pairs in (1, 2):
            counts = CountVectorizer(ngram_range=(1, pairs), min_df=2)
            words = LogisticRegression(C=0.1, max_iter=1000).fit(counts.fit_transform(texts[0]), labels[0])
            accuracy = words.score(counts.transform(texts[1]), labels[1])
            assert accuracy <= 0.60, (columns, pairs, accuracy)


@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_of_each_kind_of_sentence_tell_nothing_even_to_a_tree(rows, variant):
    """Twins: within a slice, as many yes as no for any number of sentences of each kind."""
    from sklearn.tree import DecisionTreeClassifier

    def numbers(row):
        kinds = Counter(match["turn"] if kind == "turn" else kind for kind, match in parsed(row["story"]))
        named = [kinds[kind] for kind in ("walk", "follow", "opposite", "around", "left", "right")]
        return [*named, CATEGORIES.index(row["category"]), row["num_sentences"]]

    train, validation = rows[variant, "train"], rows[variant, "validation"]
    tree = DecisionTreeClassifier(min_samples_leaf=10, random_state=0)
    tree.fit([numbers(row) for row in train], [row["label"] for row in train])
    assert tree.score([numbers(row) for row in validation], [row["label"] for row in validation]) <= 0.55
