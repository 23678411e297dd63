"""run.py --eval_fraction: which examples are held out, and that later stages go by the same."""

import json
import logging

import numpy as np
import pytest
from conftest import qa_rows, review_rows, write_rows

import dataset_filters
import extract_embeddings
import run
from datamap.core.artifacts import recorded_dataset
from datamap.core.errors import UserError
from datamap.core.files import read_json
from datamap.core.splits import generate_hash_ids, load_split, overlap, parts_of
from datamap.tasks.registry import get_task
from datamap.training.arguments import parse_args
from datamap.training.data import load_data

QA, LABELS = get_task("qa"), get_task("classification")
REST, HELD_OUT = parts_of("train", 0.1)
TRAIN = ["--do_train", "--task", "classification", "--model", "tiny", "--hidden_size", "16", "--num_layers", "1",
         "--max_length", "16", "--no_cuda"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """80 reviews in one file."""
    return write_rows(tmp_path_factory.mktemp("one") / "reviews.jsonl", review_rows(80, seed=1))


def parts(path, task=LABELS, share=0.1):
    return [load_split(str(path), name, task) for name in parts_of("train", share)]


def test_a_share_is_held_out_and_the_rest_is_trained_on(file):
    rest, held_out = parts(file)
    whole = load_split(str(file), "train", LABELS)
    assert len(held_out.data) <= 8 < 2 * len(held_out.data)
    assert sorted(rest.ids + held_out.ids) == sorted(whole.ids)
    assert [example for example in whole.ids if example in set(rest.ids)] == rest.ids  # in the order of the file
    assert len({split.fingerprint for split in (rest, held_out, whole)}) == 3
    assert (rest.rows, rest.split) == (len(rest.data), REST)
    assert load_split(str(file), REST, LABELS, 5).ids == rest.ids[:5]


def test_what_is_held_out_depends_on_texts_alone(tmp_path, file):
    """Not on the order of the rows, and little on those that come later."""
    rows = review_rows(80, seed=1)
    held_out = set(parts(file)[1].ids)
    turned = write_rows(tmp_path / "turned.jsonl", rows[::-1])
    assert set(parts(turned)[1].ids) == held_out
    grown = write_rows(tmp_path / "grown.jsonl", [*rows, *review_rows(40, seed=7, prefix="new")])
    assert len(set(parts(grown)[1].ids) & held_out) >= len(held_out) - 2
    assert held_out <= set(parts(file, share=0.3)[1].ids)


def test_examples_with_one_context_stay_together(tmp_path):
    rows = [{**row, "id": f"{row['id']}-{copy}", "question": f"{row['question']} {copy}"}
            for row in qa_rows(30, seed=2) for copy in range(5)]
    rest, held_out = parts(write_rows(tmp_path / "a.jsonl", rows), QA)
    assert len(held_out.data) == 15 and not set(rest.data["context"][:]) & set(held_out.data["context"][:])
    one = write_rows(tmp_path / "b.jsonl", [{**row, "context": rows[0]["context"]} for row in rows])
    with pytest.raises(UserError, match="those with one context stay together and the smallest of 1 such groups are"):
        parts(one, QA)


def test_examples_without_ids_are_parted_the_same_way(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "id"} for row in review_rows(60, seed=3)]
    path = write_rows(tmp_path / "a.jsonl", [*rows, rows[0]])
    whole = load_split(str(path), "train", LABELS)
    rest, held_out = parts(path)
    assert whole.ids == generate_hash_ids(whole.data.remove_columns("id"), LABELS.for_columns(
        whole.data.column_names, "x").content_columns)
    assert sorted(rest.ids + held_out.ids) == sorted(whole.ids)


def test_which_splits_overlap():
    assert overlap("train", REST) and overlap(HELD_OUT, "train") and overlap(REST, REST)
    assert overlap(HELD_OUT, parts_of("train", 0.2)[0]) and not overlap(REST, HELD_OUT)
    assert not overlap("validation", REST) and not overlap("train", "validation")


def test_flags_name_the_parts(file, refused):
    args = parse_args([*TRAIN, "--dataset", str(file), "--eval_fraction", "0.1", "--do_eval"])
    assert (args.train_split, args.eval_split, args.eval_fraction) == (REST, [HELD_OUT], 0.1)
    again = parse_args([*TRAIN, "--dataset", str(file), "--eval_fraction", "0.1", "--train_split", REST])
    assert (again.train_split, again.eval_split) == (REST, [HELD_OUT])  # of a fold, say
    assert not hasattr(parse_args([*TRAIN, "--dataset", str(file)]), "eval_fraction")
    both = "--eval_split and --eval_fraction exclude each other"
    assert both in refused(run.main, *TRAIN, "--eval_fraction", "0.1", "--eval_split", "test")
    for wrong in ("0", "1", "x", "-0.1"):
        assert "--eval_fraction" in refused(run.main, *TRAIN, "--eval_fraction", wrong)
    words = "--eval_fraction 0.1 to hold some of it out"
    assert words in refused(run.main, *TRAIN, "--do_eval", "--dataset", file)


@pytest.mark.parametrize("seed", [1, 42])
def test_a_run_trains_on_one_part_and_evaluates_on_the_other(file, seed):
    asked = ["--dataset", str(file), "--do_eval", "--eval_fraction", "0.1", "--seed", str(seed)]
    data = load_data(parse_args([*TRAIN, *asked]))
    assert data.train is not None and data.train.ids == parts(file)[0].ids
    assert data.evaluated[0].ids == parts(file)[1].ids


def test_planted_errors_go_into_the_part_that_is_trained_on(file, tmp_path):
    args = parse_args([*TRAIN, "--dataset", str(file), "--do_eval", "--eval_fraction", "0.1", "--plant_errors", "0.2",
                       "--output_dir", str(tmp_path)])
    run.write_planted_errors(args, load_data(args))
    planted = tmp_path / "planted_data"
    assert sorted(path.name for path in planted.iterdir()) == [f"{HELD_OUT}.jsonl", f"{REST}.jsonl"]
    again, held_out = (load_split(str(planted), name, LABELS) for name in (REST, HELD_OUT))  # files, and whole
    assert again.ids == parts(file)[0].ids and held_out.fingerprint == parts(file)[1].fingerprint


def test_later_stages_go_by_the_same_rows(file, tmp_path, caplog, refused):
    caplog.set_level(logging.INFO)
    model, output = tmp_path / "model", tmp_path / "map"
    plain = [*TRAIN, "--dataset", str(file), "--eval_fraction", "0.1", "--num_train_epochs", "3"]
    given = [*plain, "--enable_cartography", "--cartography_output_dir", str(output), "--output_dir", str(model)]
    run.main([*given, "--do_eval"])
    rest, held_out = parts(file)
    for made in (model, output):
        recorded = recorded_dataset(made)
        assert recorded is not None and (recorded["split"], recorded["fingerprint"]) == (REST, rest.fingerprint)
    evaluated = read_json(model / "run_meta.json")
    assert evaluated["datasets"][0]["split"] == HELD_OUT and evaluated["arguments"]["eval_fraction"] == 0.1
    predicted = [json.loads(line)["id"] for line in (model / "eval_predictions.jsonl").read_text().splitlines()]
    assert predicted == held_out.ids

    extract_embeddings.main(["--model_path", str(model), "--no_cuda", "--output_dir", str(tmp_path / "vectors")])
    assert np.load(tmp_path / "vectors" / "embeddings.npy").shape[0] == len(rest.data)

    config = tmp_path / "filters.json"
    config.write_text(json.dumps({"category": {"metrics_path": str(output), "categories": ["easy", "ambiguous"]}}))
    dataset_filters.main(["--filter_config", str(config), "--output_dir", str(tmp_path / "filtered")])
    filtered = load_split(str(tmp_path / "filtered"), "train", LABELS)
    assert set(filtered.ids) < set(rest.ids)

    again = parse_args([*plain, "--filter_config", str(config), "--output_dir", str(tmp_path / "again")])
    trained = load_data(again).train
    assert trained is not None and set(trained.ids) == set(filtered.ids)

    # What was held out stays unseen: it is what is evaluated on, and anything else that holds training rows is told.
    later = parse_args(["--do_eval", "--model", str(model), "--no_cuda"])
    assert (later.dataset, later.eval_split) == (str(file), [HELD_OUT])
    caplog.clear()
    load_data(later)
    assert "which the model was trained on" not in caplog.text
    load_data(parse_args(["--do_eval", "--model", str(model), "--dataset", str(file), "--eval_split", "train"]))
    assert "evaluating on 'train', which the model was trained on" in caplog.text

    resume = [*given, "--resume_from_checkpoint", "--eval_fraction", "0.2"]
    assert "was trained with eval_fraction 0.1, not 0.2" in refused(run.main, *resume)
