"""run.py --map_split: the map of a split that is not trained on, recorded by evaluating it after every epoch."""

import json
import logging
import shutil

import pytest
from conftest import qa_rows, review_rows, write_rows

import run
from datamap.analysis.filter_config import apply_filters
from datamap.cartography import maps
from datamap.cartography.dynamics import read_dynamics
from datamap.cartography.maps import load_map
from datamap.core.artifacts import recorded_dataset
from datamap.core.files import read_json
from datamap.core.splits import load_split
from datamap.tasks.registry import get_task

pytestmark = pytest.mark.usefixtures("one_thread")
FLAGS = ["--do_train", "--enable_cartography", "--no_cuda", "--max_length", "64", "--num_train_epochs", "3",
         "--per_device_train_batch_size", "8"]
LABELS = ["--task", "classification", "--label_column", "label", "--model", "lstm"]


def call(out, *argv):
    run.main([*FLAGS, "--output_dir", str(out / "m"), "--cartography_output_dir", str(out / "c"), *map(str, argv)])
    return out


def predictions(out):
    return {row["id"]: row for row in map(json.loads, (out / "m/eval_predictions.jsonl").read_text().splitlines())}


def epochs_of(directory):
    return [dict(zip(epoch["id"], epoch["confidence"], strict=True)) for epoch in read_dynamics(directory)]


@pytest.fixture(scope="module")
def mapped(reviews, tmp_path_factory):
    return call(tmp_path_factory.mktemp("mapped"), *LABELS, "--dataset", reviews, "--map_split", "validation",
                "--do_eval", "--eval_split", "validation")


def test_it_holds_what_the_evaluation_after_each_epoch_says_of_the_label(mapped, reviews, tmp_path):
    """Its last epoch is the evaluation of the trained model; that of a training of one epoch less is its second."""
    epochs, final = epochs_of(mapped / "c_validation"), predictions(mapped)
    assert [len(each) for each in epochs] == [30, 30, 30] and set(epochs[0]) == set(final)
    for example, row in final.items():
        assert epochs[2][example] == pytest.approx(row["probabilities"][row["label"]], abs=2e-6)
    for place, epoch in enumerate(read_dynamics(mapped / "c_validation")):
        if place == 2:
            right = dict(zip(epoch["id"], epoch["correct"].tolist(), strict=True))
            assert right == {example: row["predicted_label"] == row["label"] for example, row in final.items()}
    short = call(tmp_path, *LABELS, "--dataset", reviews, "--num_train_epochs", "2", "--lr_scheduler_type", "constant",
                 "--do_eval")
    whole = call(tmp_path / "w", *LABELS, "--dataset", reviews, "--lr_scheduler_type", "constant", "--map_split",
                 "validation")
    second = epochs_of(whole / "c_validation")[1]
    for example, row in predictions(short).items():
        assert second[example] == pytest.approx(row["probabilities"][row["label"]], abs=2e-6)


def test_the_training_is_the_same_with_it(mapped, reviews, tmp_path):
    alone = call(tmp_path, *LABELS, "--dataset", reviews)
    for file in ("cartography_metrics.csv", "training_dynamics_epoch_3.json"):
        assert (alone / "c" / file).read_bytes() == (mapped / "c" / file).read_bytes()
    assert (alone / "m/model.safetensors").read_bytes() == (mapped / "m/model.safetensors").read_bytes()


def test_it_says_that_it_was_not_trained_on_and_filters_take_it_for_its_own_split(mapped, reviews, caplog):
    meta, task = read_json(mapped / "c_validation/run_meta.json"), get_task("classification", label_column="label")
    assert meta["status"] == "finished" and meta["arguments"]["trained_on"] is False
    assert "trained_on" not in read_json(mapped / "c/run_meta.json")["arguments"]
    assert (recorded_dataset(mapped / "c_validation") or {})["split"] == "validation"
    with caplog.at_level(logging.INFO):
        frame, _ = load_map(mapped / "c_validation")
    assert "examples that were not trained on" in caplog.text
    split = load_split(str(reviews), "validation", task)
    block = {"category": {"metrics_path": str(mapped / "c_validation"), "categories": ["ambiguous"]}}
    assert set(apply_filters(split, block)["id"]) == set(frame.index[frame["category"] == "ambiguous"])


def test_the_caption_of_the_picture(reviews, tmp_path, pictures, monkeypatch):
    captions, draw = [], maps.plot_data_map

    def drawn(*args, **kwargs):
        draw(*args, **kwargs)
        captions.append(pictures["cartography_map.png"]._supxlabel.get_text())

    monkeypatch.setattr(maps, "plot_data_map", drawn)
    call(tmp_path, *LABELS, "--dataset", reviews, "--map_split", "test", "--max_eval_samples", "12", "--do_eval",
         "--eval_split", "validation")
    assert len(captions) == 2 and sum("not trained on" in each for each in captions) == 1
    assert len(load_map(tmp_path / "c_test")[0]) == 12


def test_a_resumed_training_records_the_same(reviews, mapped, tmp_path):
    flags = [*LABELS, "--dataset", reviews, "--map_split", "validation", "--save_steps", "4", "--do_eval",
             "--eval_split", "validation"]  # six steps an epoch: 4 and 8 lie within one, 12 at the end of one
    whole = call(tmp_path, *flags)
    for step in (8, 12):
        again = tmp_path / f"from{step}"
        shutil.copytree(whole / "m", again / "m")
        call(again, *flags, "--resume_from_checkpoint", again / f"m/checkpoint-{step}")
        for epoch in (1, 2, 3):
            file = f"c_validation/training_dynamics_epoch_{epoch}.json"
            assert (again / file).read_bytes() == (whole / file).read_bytes()
    assert (whole / "c_validation/cartography_metrics.csv").read_bytes() == (
        mapped / "c_validation/cartography_metrics.csv").read_bytes()


def test_questions_of_a_file(tiny_model, qa_dir, tmp_path):
    """Windows that hold the answer are averaged, as in training; at a learning rate of 0 nothing varies."""
    rows = qa_rows(9, seed=8, prefix="foreign")
    write_rows(tmp_path / "foreign.jsonl", rows)
    call(tmp_path, "--dataset", qa_dir, "--model", tiny_model, "--learning_rate", "0", "--doc_stride", "20",
         "--map_split", tmp_path / "foreign.jsonl")
    frame, _ = load_map(tmp_path / "c_foreign")
    assert frame.index.tolist() == [row["id"] for row in rows] and frame["variability"].max() < 1e-6
    assert "start_confidence" in frame


def test_what_it_cannot_be(reviews, tmp_path, refused):
    def said(*argv):
        places = ["--output_dir", tmp_path / "m", "--cartography_output_dir", tmp_path / "c"]
        return refused(run.main, *map(str, [*FLAGS, *LABELS, "--dataset", reviews, *places, *argv]))

    assert "is trained on (--train_split train)" in said("--map_split", "train")
    assert "--map_split does nothing without --enable_cartography" in said(
        "--map_split", "validation", "--enable_cartography=false")
    assert "validationn" in said("--map_split", "validationn")
    blank = [{**row, "label": None} for row in review_rows(4, 0)]
    write_rows(tmp_path / "blank.jsonl", blank)
    assert "no row has a label" in said("--map_split", tmp_path / "blank.jsonl")
    (tmp_path / "c_validation").mkdir()
    (tmp_path / "c_validation/cartography_metrics.csv").write_text("id,confidence,variability\na,1,0\n")
    assert "holds a data map" in said("--map_split", "validation")
