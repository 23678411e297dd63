"""Pickles of others: what is plain is read as pickle.load reads it, and what is not runs nothing."""

import builtins
import gzip
import io
import os
import pickle
import pickletools
import struct
from collections import OrderedDict
from datetime import date
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamap.core.errors import UserError
from datamap.core.pickles import CONSTANTS, EMPTY, NAMES, PYTHON_2_TEXTS, VALUES, load_plain
from datamap.core.splits import default_eval_split, load_split, splits_of
from datamap.tasks.registry import get_task

SCALARS = (st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text())
KEYS = st.text() | st.integers(-(2**40), 2**40) | st.tuples(st.text(), st.integers(0, 9))
PLAIN = st.recursive(SCALARS, lambda part: st.lists(part, max_size=4) | st.tuples(part, part)
                     | st.dictionaries(KEYS, part, max_size=4), max_leaves=12)
ran: list[str] = []


def mark(*words) -> None:
    ran.append(str(words))


class Calls:
    """What pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class State:
    def __init__(self):
        self.text = "x"


def by_persistent_id(value) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, each):
            return "somewhere" if each == "x" else None

    file = io.BytesIO()
    Pickler(file, 2).dump(value)
    return file.getvalue()


# --- plain values ------------------------------------------------------------------------------------------------


@given(value=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
@settings(max_examples=200, deadline=None)
def test_plain_values_are_read_as_pickle_reads_them(value, protocol):
    raw = pickle.dumps([value], protocol)
    found = load_plain(raw, "x.pkl")
    assert found == pickle.loads(raw) == [value]
    assert repr(found) == repr([value])  # True is not 1, nor a tuple a list


def test_what_is_shared_is_read_as_often_as_it_is_there():
    story = ["Paul walks south."]
    rows = [{"story": story, "label": 1}, {"story": story, "label": 0}] * 20
    assert load_plain(pickle.dumps(rows), "x.pkl") == rows


HOSTILE = {
    "os.system": (pickle.dumps(Calls(os.system, "echo")), "system"),
    "protocol 0": (pickle.dumps(Calls(os.system, "echo"), 0), "system"),
    "eval": (pickle.dumps([1, Calls(eval, "1")]), "builtins.eval"),
    "getattr": (pickle.dumps({"a": (Calls(getattr, "x", "upper"),)}), "builtins.getattr"),
    "a name alone": (pickle.dumps(builtins.len), "builtins.len"),
    "deep within rows": (pickle.dumps([{"story": "x", "label": Calls(mark, 1)}]), "test_pickles.mark"),
    "a class of ours": (pickle.dumps(State(), 0), "copy_reg._reconstructor"),
    "its state": (pickle.dumps(State()), "test_pickles.State"),
    "an instance by hand": (b"(S'x'\nios\nsystem\n.", "os.system"),
    "a numpy number": (pickle.dumps({"label": np.int64(3)}), "numpy"),
    "a numpy array": (pickle.dumps([np.zeros(3)]), "numpy"),
    "a data frame": (pickle.dumps(pd.DataFrame({"a": [1]})), "pandas"),
    "an ordered dict": (pickle.dumps(OrderedDict(a=1)), "collections.OrderedDict"),
    "a date": (pickle.dumps(date(2020, 1, 1)), "datetime.date"),
    "a fraction": (pickle.dumps(Fraction(1, 3)), "fractions.Fraction"),
    "a complex number": (pickle.dumps(1j), "builtins.complex"),
    "a set": (pickle.dumps({1, 2}), "EMPTY_SET"),
    "a frozen set": (pickle.dumps(frozenset({1})), "FROZENSET"),
    "bytes": (pickle.dumps(b"x"), "SHORT_BINBYTES"),
    "a byte array": (pickle.dumps(bytearray(b"x"), 5), "BYTEARRAY8"),
    "a buffer": (pickle.dumps(pickle.PickleBuffer(b"x"), 5, buffer_callback=lambda each: False), "NEXT_BUFFER"),
    "a persistent id": (by_persistent_id(["x"]), "BINPERSID"),
    "a persistent id in text": (b"Psomewhere\n.", "PERSID"),
    "an extension": (b"\x82\x01.", "EXT1"),
    "a name out of the memo": (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93.", "os.system"),
    "names that are no text": (b"\x80\x04K\x01K\x02\x93.", "1.2"),
    "half a text of Python 2": (b"U\x02\xff\xfe.", "SHORT_BINSTRING"),
    "a number of thousands of bytes": (pickle.dumps(1 << 40_000), "more than 64 bits"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_whatever_is_not_plain_is_named_and_never_run(case, monkeypatch):
    def fail(*words):
        raise AssertionError("ran")

    for place, name in ((os, "system"), (builtins, "eval"), (pickle, "loads"), (pickle, "load")):
        monkeypatch.setattr(place, name, fail)
    raw, says = HOSTILE[case]
    with pytest.raises(UserError) as caught:
        load_plain(raw, "x.pkl")
    line = str(caught.value)
    assert line.startswith("x.pkl ") and says in line and "\n" not in line and len(line) < 260, line
    assert ran == []


DAMAGED = {
    "empty": b"", "text": b"hello", "json": b'[{"story": "x"}]', "gzip": gzip.compress(b"x"),
    "cut off": pickle.dumps([{"story": "x" * 50}] * 9)[:-20], "two pickles": pickle.dumps([1]) * 2,
    "no stack": b"0.", "no mark": b"\x80\x02t.", "two values": b"K\x01K\x02.", "a mark left": b"(K\x01.",
    "append to a number": b"K\x01K\x02a.", "set in a list": b"]K\x01K\x02s.", "odd pairs": b"}(K\x01u.",
    "no such memo": b"h\x07.", "a key that is a list": b"}]K\x01s.", "a key of lists": b"}]\x85K\x01s.",
    "bytes that lack": b"X\xff\xff\xff\x7fab.", "a length below 0": b"\x8b\xff\xff\xff\xff.",
    "nothing": b".", "a text that is no UTF-8": b"X\x02\x00\x00\x00\xff\xfe.",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_is_one_line(case):
    with pytest.raises(UserError) as caught:
        load_plain(DAMAGED[case], "x.pkl")
    assert str(caught.value).startswith("x.pkl ") and "\n" not in str(caught.value)


def test_depth_and_size_are_bounded():
    deep_list = b"]" * 20_000 + b"a" * 19_999 + b"."
    deep_tuple = b")" + b"\x85" * 20_000 + b"."
    deep_key = b"})" + b"\x85" * 20_000 + b"K\x01s."
    in_itself = b"]q\x00h\x00a."
    for raw in (deep_list, deep_tuple, in_itself):
        with pytest.raises(UserError, match="nested more than 20 deep, or holds itself"):
            load_plain(raw, "x.pkl")
    with pytest.raises(UserError, match="no whole pickle"):  # its hash would overrun the stack of C
        load_plain(deep_key, "x.pkl")
    laughs: list = ["ha"]
    for _ in range(12):
        laughs = [laughs] * 10
    raw = pickle.dumps(laughs)
    assert len(raw) < 1000
    with pytest.raises(UserError, match="more than 100 times as large as the file"):
        load_plain(raw, "x.pkl")
    long = pickle.dumps(["x" * 10_000] * 9)
    assert load_plain(long, "x.pkl") == ["x" * 10_000] * 9
    with pytest.raises(UserError, match="more than 100 times as large"):
        load_plain(pickle.dumps(["x" * 10_000] * 900), "x.pkl")
    # A memo of two billion places is a dict of one.
    place = struct.pack("<I", 2**31 - 1)
    assert load_plain(b"K\x05r" + place + b"j" + place + b"\x86.", "x.pkl") == (5, 5)


@given(raw=st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_plain_value_or_one_line(raw):
    for content in (raw, b"\x80\x04" + raw + b"."):
        try:
            load_plain(content, "x.pkl")
        except UserError as error:
            assert "\n" not in str(error)


@given(value=PLAIN, cut=st.integers(0, 40), byte=st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_flipped_byte_is_a_plain_value_or_one_line(value, cut, byte):
    raw = bytearray(pickle.dumps([value]))
    raw[cut % len(raw)] = byte
    try:
        load_plain(bytes(raw), "x.pkl")
    except UserError as error:
        assert "\n" not in str(error)


def test_no_operation_is_forgotten():
    """Whatever pickletools knows is plain, a part of a plain value, or refused by name."""
    known = {operation.name for operation in pickletools.opcodes}
    assert {*VALUES, *PYTHON_2_TEXTS, *CONSTANTS, *EMPTY, *NAMES} <= known
    assert not {*VALUES, *PYTHON_2_TEXTS, *CONSTANTS, *EMPTY} & {
        "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "GLOBAL", "STACK_GLOBAL", "PERSID", "BINPERSID",
        "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}


# --- stories -----------------------------------------------------------------------------------------------------

STORY = (["Paul walks south. ", "Kevin walks north. "], ("Paul", "Kevin", False),
         {"category": "simple", "num_actors": 2, "n_sentences": 2})
ROW = {"story": "Paul walks south. Kevin walks north.", "question": "Is Kevin following Paul?", "label": 0,
       "category": "simple", "num_actors": 2, "num_sentences": 2}


def yes(story):
    sentences, (first, second, _), *facts = story
    return (sentences, (first, second, True), *facts)


def written(path: Path, value, protocol=4) -> Path:
    raw = pickle.dumps(value, protocol)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


SHAPES = {
    "dicts": [{**ROW}, {**ROW, "label": 1}],
    "tuples": [(ROW["story"], ROW["question"], 0, 2, 2), (ROW["story"], ROW["question"], 1, 2, 2)],
    "lists": [[ROW["story"], ROW["question"], 0, 2, 2], [ROW["story"], ROW["question"], 1, 2, 2]],
    "three": [(ROW["story"], ROW["question"], 0), (ROW["story"], ROW["question"], 1)],
    "stories": [STORY, yes(STORY)],
    "dicts of stories": [{"story": STORY, "story_type": "negative"}, {"story": yes(STORY), "story_type": "positive"}],
    "by length": {(2, 2): {"neg": [STORY], "pos": [yes(STORY)]}},
    "by split": {("train", 2, 2): {"neg": [STORY[:2]], "pos": [yes(STORY[:2])]}},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["stories.pkl", "stories.pickle.gz"])
def test_every_shape_is_the_same_dataset(tmp_path, shape, name):
    path = written(tmp_path / name, SHAPES[shape])
    split = load_split(str(path), "train", get_task("classification"))
    assert splits_of(str(path)) == ["train"] and default_eval_split(str(path)) == "train"
    assert list(split.task.text_columns) == ["story", "question"]
    assert split.data["story"][:] == [ROW["story"]] * 2 and split.data["question"][:] == [ROW["question"]] * 2
    names = split.data.features["label"].names
    assert [names[label] for label in split.data["label"][:]] == ["0", "1"]
    if shape != "three":
        assert split.data["num_actors"][:] == [2, 2] and split.data["num_sentences"][:] == [2, 2]


def test_a_file_with_its_splits(tmp_path, refused):
    content = {("train", 2, 2): {"pos": [yes(STORY)] * 3, "neg": [STORY] * 2}, ("valid", 3, 2): {"pos": [yes(STORY)]},
               ("validB", 9, 2): {"neg": [STORY], "pos": []}, ("train", 4, 7): {"pos": [], "neg": [STORY]}}
    path = str(written(tmp_path / "all.pkl", content))
    assert splits_of(path) == ["train", "valid", "validB"] and default_eval_split(path) == "valid"
    train = load_split(path, "train", get_task("classification"))
    assert len(train.data) == 6 and train.data["num_actors"][:] == [2] * 5 + [4]
    assert train.data["num_sentences"][:] == [2] * 5 + [7]  # the key's count as they stand
    assert len(set(train.ids)) == 6, "copies have ids of their own"
    assert len(load_split(path, "validB", get_task("classification")).data) == 1
    with pytest.raises(UserError, match="has no split 'test'; it has train, valid, validB"):
        load_split(path, "test", get_task("classification"))
    with pytest.raises(UserError, match=r"all.pkl holds the splits train, valid, validB; name it by itself"):
        load_split(str(tmp_path), "all", get_task("classification"))
    written(Path(path), [ROW, {**ROW, "label": 1}])  # another file by now
    assert splits_of(path) == ["train"]


WRONG = {
    "a number": (3, "holds 3"), "nothing": ({}, "holds {}"), "an empty list": ([], "no rows"),
    "a text": ("stories", "holds 'stories'"), "a column dict": ({"story": ["a", "b"]}, "key 'story'"),
    "short tuples": ([("a", "b")], "item 1: expected a dict, or story, question, label"),
    "a story without names": ([(["a"], ("Paul", 3, True))], "two names with yes or no"),
    "an answer that is no yes": ([(["a"], ("Paul", "Ann", "maybe"))], "two names with yes or no"),
    "facts that hide the story": ([(["a"], ("P", "A", True), {"label": 0})], "its facts hold 'label'"),
    "a yes among the noes": ({("train", 2, 2): {"neg": [yes(STORY)]}}, "its answer is 1, and it stands in 'neg'"),
    "a third sign": ({("train", 2, 2): {"maybe": []}}, "'pos' and 'neg'"),
    "a key of texts": ({("train", "x"): {"pos": [yes(STORY)]}}, r"expected (split, num_actors, num_sentences)"),
    "no list": ({("train", 2, 2): {"pos": 3}}, "expected a list of stories in 'pos'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_shapes_are_refused_in_one_line(tmp_path, case):
    value, says = WRONG[case]
    path = written(tmp_path / "x.pkl", value)
    with pytest.raises(UserError) as caught:
        load_split(str(path), "train", get_task("classification"))
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_hostile_dataset_ends_a_script_with_one_line(tmp_path, refused):
    import select_subset

    path = written(tmp_path / "x.pkl", [{"story": "a", "label": Calls(os.system, f"touch {tmp_path / 'ran'}")}])
    line = refused(select_subset.main, "--selector", "random", "--k", 1, "--dataset", path, "--output_dir",
                   tmp_path / "none")
    assert f"{path} names" in line and "system" in line
    assert not (tmp_path / "ran").exists() and not (tmp_path / "none").exists()
