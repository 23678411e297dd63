"""Pairs and chains of thought, of ours and of others, and what a model is fine-tuned on."""

import argparse
import gzip
import json
import logging
import string

import pytest
from conftest import DATA, write_rows
from tiny_mistral import save_tokenizer

from datamap.core.errors import UserError
from datamap.core.flags import Parser
from datamap.thoughts.data import (
    add_pair_flags,
    is_right,
    label_map,
    load_pairs,
    read_reflections,
    read_thoughts,
    training_rows,
)
from datamap.thoughts.prompts import PAIR, TUNED, load_prompt, model_prompt, neutral
from datamap.thoughts.reader import completion_text, parse_thought

# --- pairs -------------------------------------------------------------------------------------------------------


def pairs_file(directory, labels, name="pairs.jsonl", **more):
    rows = [{"premise": f"Premise {number}.", "hypothesis": f"It is {number}.", "label": label, **more}
            for number, label in enumerate(labels)]
    return str(write_rows(directory / name, rows))


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [([0, 1, 1], None, [0, 1, 1]), (["0", "1", " 1 "], None, [0, 1, 1]), ([0.0, 1.0], None, [0, 1]),
     (["entailment", "neutral", "contradiction"], {"entailment": 1, "neutral": 0, "contradiction": 0}, [1, 0, 0]),
     ([0, 1, 2], {"0": 1, "1": 0, "2": 0}, [1, 0, 0]), ([1, 0], {"1": 0, "0": 1}, [0, 1]),
     (["yes", "no", "no"], {"yes": 1, "no": 0, "never seen": 0}, [1, 0, 0])],
)
def test_labels_become_binary(tmp_path, labels, names, expected):
    split = load_pairs(pairs_file(tmp_path, labels), "train", names)
    assert split.data.column_names == ["id", "premise", "hypothesis", "label"]
    assert split.data["label"][:] == expected
    assert split.data["premise"][0] == "Premise 0."
    assert len(set(split.ids)) == len(labels)


@pytest.mark.parametrize("none", [None, -1, "-1", "-", ""])
def test_who_has_no_label_has_none(tmp_path, none):
    kind = str if isinstance(none, str) else int
    labels = [kind(1), none, kind(0)]
    assert load_pairs(pairs_file(tmp_path, labels), "train").data["label"][:] == [1, None, 0]
    assert load_pairs(pairs_file(tmp_path, [none] * 2, "b.jsonl"), "train").data["label"][:] == [None, None]


def test_a_split_without_a_column_of_labels(tmp_path):
    file = write_rows(tmp_path / "a.jsonl", [{"id": 7, "premise": "A.", "hypothesis": "B."}])
    split = load_pairs(str(file), "train")
    assert split.data[:] == {"id": ["7"], "premise": ["A."], "hypothesis": ["B."], "label": [None]}


def test_a_missing_number_in_a_parquet_file_is_no_label(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"premise": ["A.", "B.", "C."], "hypothesis": ["a.", "b.", "c."], "label": [1.0, None, 0.0]})
    frame.to_parquet(tmp_path / "a.parquet")
    assert load_pairs(str(tmp_path / "a.parquet"), "train").data["label"][:] == [1, None, 0]
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {**frame.to_dict("list"), "label": pa.array([1.0, float("nan"), 0.0])}  # NaN itself, not null
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    assert load_pairs(str(tmp_path / "b.parquet"), "train").data["label"][:] == [1, None, 0]


@pytest.mark.parametrize(
    ("labels", "names", "shown"),
    [(["entailment", "neutral", "contradiction"], None, "--label_map contradiction=0,entailment=1,neutral=0"),
     ([0, 1, 2], None, "--label_map 0=0|1,1=0|1,2=0|1"), (["yes", "no"], None, "--label_map no=0|1,yes=0|1"),
     (["entailment", "neutral"], {"entailment": 1}, "--label_map entailment=1,neutral=0"),
     (["0", "1"], {"entailment": 1}, "holds '0', '1'; say which labels are 1"), ([0.5, 1], None, "holds '0.5';"),
     ([True, False], None, "--label_map False=0|1,True=0|1")],
)
def test_labels_that_nobody_explained_are_refused(tmp_path, labels, names, shown):
    with pytest.raises(UserError) as refused:
        load_pairs(pairs_file(tmp_path, labels), "train", names)
    assert "pairs.jsonl" in str(refused.value) and "column label" in str(refused.value)
    assert shown in str(refused.value)
    assert "\n" not in str(refused.value)


def test_names_of_classes_count_not_their_numbers(tmp_path):
    """Of a set where 0 is entailment, as the sets of GLUE have it, 0 must not become "does not follow" in silence."""
    import datasets

    features = datasets.Features({"premise": datasets.Value("string"), "hypothesis": datasets.Value("string"),
                                  "label": datasets.ClassLabel(names=["entailment", "not_entailment"])})
    columns = {"premise": ["A."] * 3, "hypothesis": ["B."] * 3, "label": [0, 1, -1]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "rte")
    with pytest.raises(UserError, match="--label_map entailment=1,not_entailment=0"):
        load_pairs(str(tmp_path / "rte"), "train")
    split = load_pairs(str(tmp_path / "rte"), "train", {"entailment": 1, "not_entailment": 0})
    assert split.data["label"][:] == [1, 0, None]


def test_columns_by_their_usual_names_or_by_the_users(tmp_path):
    rows = [{"pair_ID": "p1", "sentence_A": "A.", "sentence_B": "B.", "gold_label": "yes", "true": 0}]
    file = str(write_rows(tmp_path / "a.jsonl", rows))
    split = load_pairs(file, "train", {"yes": 1})
    assert (split.data["premise"][0], split.data["hypothesis"][0], split.data["label"][0]) == ("A.", "B.", 1)
    split = load_pairs(file, "train", None, None, ["sentence_B", "sentence_A"], "true")
    assert (split.data["premise"][0], split.data["hypothesis"][0], split.data["label"][0]) == ("B.", "A.", 0)
    thoughts = str(write_rows(tmp_path / "b.jsonl", [thought()]))  # a file of chains is a file of pairs too
    assert load_pairs(thoughts, "train").data["label"][0] == 1


@pytest.mark.parametrize(
    ("texts", "label", "words"),
    [(["premise", "text"], "", "no column 'text'"), (["premise"], "", "'premise' is no pair of texts"),
     ((), "gold", "no column 'gold'"), (["premise", "hypothesis", "label"], "", "takes one or two columns")],
)
def test_columns_that_are_not_there_are_refused(tmp_path, texts, label, words):
    file = pairs_file(tmp_path, [0, 1])
    with pytest.raises(UserError, match=words):
        load_pairs(file, "train", None, None, texts, label)


def test_no_columns_of_a_pair(tmp_path):
    file = write_rows(tmp_path / "a.jsonl", [{"text": "A.", "label": 1}])
    with pytest.raises(UserError, match="no column with a usual name for --text_columns; give --text_columns"):
        load_pairs(str(file), "train")


@pytest.mark.parametrize("text", ["", "  ", None])
def test_a_text_that_is_empty_is_refused(tmp_path, text):
    rows = [{"premise": "A.", "hypothesis": "B.", "label": 1}, {"premise": "A.", "hypothesis": text, "label": 1}]
    with pytest.raises(UserError, match="column hypothesis of row 2 holds no text"):
        load_pairs(str(write_rows(tmp_path / "a.jsonl", rows)), "train")


def test_the_first_pairs_and_their_fingerprint(tmp_path):
    file = pairs_file(tmp_path, [0, 1, 0, 1])
    some, whole = load_pairs(file, "train", None, 2), load_pairs(file, "train")
    assert some.ids == whole.ids[:2]
    assert some.fingerprint == whole.fingerprint
    turned = load_pairs(file, "train", {"0": 1, "1": 0})
    assert turned.data["label"][:] == [1, 0, 1, 0]
    assert turned.fingerprint != whole.fingerprint


def test_a_built_in_dataset():
    names = {"entailment": 1, "neutral": 0, "contradiction": 0}
    assert set(load_pairs("demo:nli", "validation", names, 60).data["label"][:]) == {0, 1}


@pytest.mark.parametrize(
    ("text", "found"),
    [("entailment=1,neutral=0", {"entailment": 1, "neutral": 0}), (" a = 1 , b=0", {"a": 1, "b": 0}),
     ("0=1,1=0,2=0", {"0": 1, "1": 0, "2": 0}), ("a=b=1", {"a=b": 1}), ("not entailed=0", {"not entailed": 0})],
)
def test_a_label_map(text, found):
    found_here = label_map(text)
    assert found_here == found


@pytest.mark.parametrize("text", ["", "a", "a=", "=1", " =1", "a=2", "a=-1", "a=yes", "a=1,", "a=1,a=0", "a:1"])
def test_a_label_map_that_says_nothing_is_refused(text, refused):
    with pytest.raises(argparse.ArgumentTypeError):
        label_map(text)

    def main(argv):
        parser = Parser("x")
        add_pair_flags(parser.add_argument_group("pairs"))
        parser.parse_args(argv)

    assert "--label_map" in refused(main, "--label_map", text)


def test_the_flags_of_pairs():
    parser = Parser("x")
    add_pair_flags(parser.add_argument_group("pairs"))
    args = parser.parse_args(["--label_map", "a=1,b=0", "--text_columns", "x,y"])
    assert (args.label_map, list(args.text_columns), args.label_column) == ({"a": 1, "b": 0}, ["x", "y"], "")
    assert parser.parse_args([]).label_map is None


# --- chains ------------------------------------------------------------------------------------------------------


def thought(name="a", predicted=1, true=1, **more):
    return {"id": name, "premise": f"Premise {name}.", "hypothesis": f"It is {name}.",
            "thought_process": f"Of {name}.", "predicted_label": predicted, "true_label": true, **more}


def reflection(name="a", predicted=1, true=1, **more):
    whole = {**thought(name, predicted, true), "error_analysis": "x", "improved_thought_process": f"Better {name}."}
    return {**whole, **more}


def written(path, rows, form):
    if form == "list":
        path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    elif form == "gz":
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "marked":
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(row) for row in rows).encode())
    else:
        write_rows(path, rows)
    return path


@pytest.mark.parametrize(
    ("name", "form"), [("a.jsonl", "lines"), ("a.json", "lines"), ("a.json", "list"), ("a.jsonl", "list"),
                       ("a.jsonl.gz", "gz"), ("a.txt", "lines"), ("a.jsonl", "marked")]
)
def test_chains_in_the_files_of_others(tmp_path, name, form):
    rows = [thought(17, "0", 1.0, model="m", chat_history=[{"role": "user"}]), thought("001", 1, "1"),
            thought(2.0, None, 0), thought("b ", 0, -1)]
    found = read_thoughts(written(tmp_path / name, rows, form))
    assert [chain["id"] for chain in found] == ["17", "001", "2", "b "]
    assert [chain["predicted_label"] for chain in found] == [0, 1, None, 0]
    assert [chain["true_label"] for chain in found] == [1, 1, 0, None]
    assert [is_right(chain) for chain in found] == [False, True, False, None]
    assert found[0]["model"] == "m" and found[0]["chat_history"] == [{"role": "user"}]
    assert all(type(chain[key]) in (int, type(None)) for chain in found for key in ("predicted_label", "true_label"))


def test_chains_in_a_directory(tmp_path):
    write_rows(tmp_path / "thoughts.jsonl", [thought()])
    write_rows(tmp_path / "reflections.jsonl", [reflection("b")])
    assert read_thoughts(tmp_path)[0]["thought_process"] == "Of a."
    assert read_reflections(str(tmp_path))[0]["improved_thought_process"] == "Better b."


def test_chains_that_are_not_there(tmp_path):
    for path in (tmp_path / "no", tmp_path / "no.jsonl"):
        with pytest.raises(UserError, match=r"no such file or directory; generate_thoughts.py --mode generate writes"):
            read_thoughts(path)
    with pytest.raises(UserError, match=r"holds no reflections.jsonl; generate_thoughts.py --mode reflect writes it"):
        read_reflections(tmp_path)
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no chains of thought; generate_thoughts.py --mode generate writes"):
        read_thoughts(tmp_path / "a.jsonl")


def test_chains_of_a_run_that_goes_on_or_failed(tmp_path, caplog):
    write_rows(tmp_path / "thoughts.jsonl", [thought()])
    meta = {"status": "running", "owns": ["thoughts.jsonl"], "history": []}
    (tmp_path / "run_meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="still running or was killed"):
        read_thoughts(tmp_path)
    failed = {**meta, "status": "failed", "error": "UserError: the budget is used up"}
    (tmp_path / "run_meta.json").write_text(json.dumps(failed))
    assert len(read_thoughts(tmp_path)) == 1  # whole records, as many as there are
    assert "failed (UserError: the budget is used up); what there is of it is taken" in caplog.text


def test_chains_of_the_hub(monkeypatch, tmp_path):
    import datasets

    def load_dataset(name, subset, split):
        assert (name, subset, split) == ("jd0g/Mistral-Thinking-NLI", "thoughts", "train")
        return datasets.Dataset.from_list([thought("a"), thought("b", 0)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    assert [chain["id"] for chain in read_thoughts("jd0g/Mistral-Thinking-NLI:thoughts")] == ["a", "b"]
    for name in ("no/such.jsonl", "./no/such", "such"):
        with pytest.raises(UserError, match="no such file or directory"):
            read_thoughts(name)


def test_of_several_chains_of_an_id_the_last_counts(tmp_path, caplog):
    rows = [thought("1", 0), thought("2", 0), thought(1, 1, thought_process="Second.")]
    with caplog.at_level(logging.INFO):
        found = read_thoughts(write_rows(tmp_path / "a.jsonl", rows))
    assert [(chain["id"], chain["predicted_label"]) for chain in found] == [("2", 0), ("1", 1)]
    assert found[1]["thought_process"] == "Second."
    assert "1 of 3 chains come before another of the same id" in caplog.text


@pytest.mark.parametrize("key", ["id", "premise", "hypothesis", "thought_process", "predicted_label", "true_label"])
def test_a_chain_that_lacks_a_key_is_refused(tmp_path, key):
    rows = [thought(), {name: value for name, value in thought("b").items() if name != key}]
    with pytest.raises(UserError, match=f"a.jsonl, record 2: no '{key}'; expected id, premise, hypothesis,"):
        read_thoughts(write_rows(tmp_path / "a.jsonl", rows))
    if key == "thought_process":
        read_reflections(write_rows(tmp_path / "b.jsonl", [reflection()]))
        with pytest.raises(UserError, match="record 1: no 'improved_thought_process'"):
            read_reflections(write_rows(tmp_path / "b.jsonl", [thought()]))


@pytest.mark.parametrize(
    ("more", "words"),
    [({"premise": ""}, "premise is '', no text"), ({"hypothesis": None}, "hypothesis is None, no text"),
     ({"thought_process": ["a"]}, r"thought_process is \['a'\], no text"), ({"thought_process": " "}, "no text"),
     ({"predicted_label": 2}, "predicted_label is 2, neither 0 nor 1"), ({"true_label": "yes"}, "true_label is 'yes'"),
     ({"true_label": True}, "true_label is True"), ({"predicted_label": [1]}, r"predicted_label is \[1\]"),
     ({"id": None}, "id is None"), ({"id": ""}, "id is ''")],
)
def test_a_chain_that_is_none_is_refused(tmp_path, more, words):
    file = write_rows(tmp_path / "a.jsonl", [thought(), {**thought("b"), **more}])
    with pytest.raises(UserError, match=f"a.jsonl, record 2.*{words}") as refused:
        read_thoughts(file)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["[1]", "{half", '"text"', '{"a": 1}\n[2]\n'])
def test_what_holds_no_objects_is_refused(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match="a.jsonl"):
        read_thoughts(tmp_path / "a.jsonl")


# --- what to fine-tune on ----------------------------------------------------------------------------------------


def test_right_chains_and_right_repairs_one_per_id(caplog):
    thoughts = [thought("a"), thought("b", 0, 1), thought("c", 0, 0), thought("d", None, 1), thought("e", 1, None),
                thought("f", 0, 1)]
    reflections = [reflection("b"), reflection("c", 0, 0), reflection("z", 0, 0), reflection("f", 0, 1),
                   reflection("d")]
    with caplog.at_level(logging.INFO):
        rows = training_rows(thoughts, reflections)
    assert [(row["id"], row["source"], row["label"], row["thought_process"]) for row in rows] == [
        ("a", "original", 1, "Of a."), ("b", "reflection", 1, "Better b."), ("c", "original", 0, "Of c."),
        ("d", "reflection", 1, "Better d."), ("z", "reflection", 0, "Better z."),
    ]
    assert all(list(row) == ["id", "premise", "hypothesis", "label", "thought_process", "source"] for row in rows)
    assert "5 of 7 pairs have a right chain: 2 as first written, 3 repaired" in caplog.text


def test_without_reflections():
    assert [row["id"] for row in training_rows([thought("a"), thought("b", 0, 1)])] == ["a"]
    assert [row["id"] for row in training_rows([], [reflection("b"), reflection("a", 0, 1)])] == ["b"]


@pytest.mark.parametrize("more", [{"premise": "Another."}, {"hypothesis": "Another."}, {"true_label": 0}])
def test_reflections_on_other_pairs_are_refused(more):
    with pytest.raises(UserError, match="id 'b' is another pair in the reflections than in the thoughts"):
        training_rows([thought("a"), thought("b", 0, 1)], [reflection("b", **more)])


def test_nothing_right_is_refused():
    nothing: list[tuple[list, list]] = [
        ([thought("a", 0, 1)], [reflection("a", 0, 1)]), ([thought("a", 1, None)], []), ([], [])
    ]
    for thoughts, reflections in nothing:
        with pytest.raises(UserError, match="no chain of thought comes to the true label"):
            training_rows(thoughts, reflections)


# --- public data -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published():
    folder = DATA / "nli_thoughts"
    if not folder.is_dir():
        pytest.skip(f"public data: {folder} is not there")
    return folder


def test_published_chains_of_thought(published):
    thoughts = read_thoughts(published / "sample_thoughts.json")
    reflections = read_reflections(published / "sample_reflections.json")
    assert len(thoughts) == 100 and sum(is_right(chain) is True for chain in thoughts) == 67
    assert len(reflections) == 33 and sum(is_right(chain) is True for chain in reflections) == 32
    rows = training_rows(thoughts, reflections)
    assert len(rows) == len({row["id"] for row in rows}) == 99
    assert [row["source"] for row in rows].count("reflection") == 32
    truth = {chain["id"]: chain["true_label"] for chain in thoughts}
    assert all(row["label"] == truth[row["id"]] for row in rows)
    pairs = load_pairs(str(published / "sample.csv"), "train")
    assert set(pairs.data["label"][:]) == {0, 1}


def test_published_chains_go_through_the_tokenizer_and_back(published, tmp_path):
    tokenizer = save_tokenizer(tmp_path)
    rows = training_rows(read_thoughts(published / "sample_thoughts.json"),
                         read_reflections(published / "sample_reflections.json"))
    template = load_prompt(TUNED, PAIR)
    turns = "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"
    for chat_template in (None, turns):
        tokenizer.chat_template = chat_template
        for row in rows:
            prompt = model_prompt(tokenizer, template, row["premise"], row["hypothesis"])
            completion = " " + completion_text(neutral(row["thought_process"], tokenizer), row["label"])
            begun = tokenizer(prompt)["input_ids"]
            tokens = tokenizer(prompt + completion + tokenizer.eos_token)["input_ids"]
            assert tokens[: len(begun)] == begun  # so that the trainer can tell where the completion begins
            assert tokens.count(tokenizer.bos_token_id) == tokens.count(tokenizer.eos_token_id) == 1
            assert (tokens[0], tokens[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
            assert tokenizer.decode(tokens[1:-1]) == prompt + completion
            found = parse_thought(tokenizer.decode(tokens[len(begun) :], skip_special_tokens=True), prompt)
            assert (found.label, found.thought, found.method) == (row["label"], row["thought_process"], "strict")
            whole = parse_thought(tokenizer.decode(tokens))  # as it would stand in a file of others
            assert (whole.label, whole.thought) == (row["label"], row["thought_process"])


def test_special_tokens_in_the_texts_of_a_row(tmp_path):
    tokenizer = save_tokenizer(tmp_path)
    text = "</s> <s> [/INST] <pad>"
    prompt = model_prompt(tokenizer, string.Template("$premise $hypothesis"), text, text)
    tokens = tokenizer(prompt + " " + completion_text(neutral(text, tokenizer), 1) + "</s>")["input_ids"]
    special = [token for token in tokens if token in tokenizer.all_special_ids]
    assert special == [tokenizer.bos_token_id, tokenizer.eos_token_id]
