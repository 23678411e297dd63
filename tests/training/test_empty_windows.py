"""--empty_windows: most windows of a long context hold no answer, and need not all be trained on."""

import numpy as np
import pandas as pd
import pytest
from conftest import qa_rows, write_rows

import run
from datamap.core.errors import UserError
from datamap.core.splits import load_split
from datamap.tasks.registry import get_task
from datamap.training.data import features_of
from datamap.training.running import with_fewer_empty

WINDOWS = ["--max_length", "48", "--doc_stride", "8"]


@pytest.fixture(scope="module")
def long_contexts(tmp_path_factory):
    """Questions whose context is that of three of them, one after the other, and one that has no answer."""
    rows = qa_rows(12)
    joined = []
    for place, row in enumerate(rows):
        before = " ".join(rows[(place + step) % len(rows)]["context"] for step in (1, 2)) + " "
        answers = {"text": row["answers"]["text"],
                   "answer_start": [start + len(before) for start in row["answers"]["answer_start"]]}
        joined.append({**row, "context": before + row["context"], "answers": answers})
    joined[-1]["answers"] = {"text": [], "answer_start": []}
    return write_rows(tmp_path_factory.mktemp("long") / "train.jsonl", joined)


@pytest.fixture(scope="module")
def features(long_contexts, tiny_model):
    from transformers import AutoTokenizer

    split = load_split(str(long_contexts), "train", get_task("qa"))
    return features_of(split, AutoTokenizer.from_pretrained(tiny_model), 48, 8, "none")


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_all_that_hold_an_answer_stay_and_a_share_of_the_others(features, share):
    counts = np.array(features["counts"][:])
    assert 0 < counts.sum() < len(counts) / 2, "most windows are empty"
    kept = with_fewer_empty(features, share, seed=3)
    left = np.array(kept["counts"][:])
    assert left.sum() == counts.sum() and (~left).sum() == round(share * (~counts).sum())
    assert kept["row_index"][:] == list(range(len(kept)))
    again = with_fewer_empty(features, share, seed=3)
    assert again["input_ids"][:] == kept["input_ids"][:]
    if share == 0.25:
        assert with_fewer_empty(features, share, seed=4)["input_ids"][:] != kept["input_ids"][:]
    # The question without an answer is one in all its windows.
    last = [row for row in range(len(features)) if features["example_index"][row] == 11]
    assert kept["example_index"][:].count(11) == len(last)


def test_nothing_but_empty_windows(features):
    empty = features.select(np.flatnonzero(~np.array(features["counts"][:])))
    with pytest.raises(UserError, match="--empty_windows 0 leaves nothing to train on: no window of the"):
        with_fewer_empty(empty, 0.0, seed=0)


def test_a_run_trains_on_fewer_and_records_all_examples(long_contexts, tiny_model, tmp_path, caplog):
    caplog.set_level("INFO")
    common = ["--do_train", "--model", str(tiny_model), "--dataset", str(long_contexts), "--num_train_epochs", "3",
              "--no_cuda", *WINDOWS]
    ids = {}
    for name, more in (("all", []), ("few", ["--empty_windows", "0.1"])):
        run.main([*common, "--enable_cartography", "--output_dir", str(tmp_path / name),
                  "--cartography_output_dir", str(tmp_path / f"{name}_map"), *more])
        ids[name] = pd.read_csv(tmp_path / f"{name}_map" / "cartography_metrics.csv", dtype={"id": str})["id"].tolist()
    assert ids["few"] == ids["all"] and len(ids["all"]) >= 11
    assert "windows without the answer of their question" in caplog.text
    # A window's weight is its example's, wherever it stands among those that are left.
    run.main([*common, "--use_soft_weighting", "--cartography_output_dir", str(tmp_path / "all_map"),
              "--empty_windows", "0.1", "--output_dir", str(tmp_path / "weighted")])


@pytest.mark.parametrize(("flags", "said"), [
    (["--do_eval", "--empty_windows", "0.5"], "--empty_windows does nothing without --do_train"),
    (["--do_train", "--empty_windows", "2"], "expected a number from 0 to 1"),
    (["--do_train", "--task", "classification", "--empty_windows", "0.5"], "--empty_windows is for --task qa"),
])
def test_where_it_means_nothing(refused, flags, said, tmp_path):
    assert said in refused(run.main, *flags, "--dataset", "demo:clinical", "--model", "tiny", "--output_dir",
                           tmp_path / "out")
