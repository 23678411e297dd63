"""run.py through its command line: training, evaluating, filtering, weighting, and every mistake in one line."""

import gc
import importlib.util
import io
import json
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import held_elsewhere, qa_rows, write_rows

import run
from datamap.cartography.categories import categorize_examples
from datamap.cartography.metrics import load_cartography_metrics
from datamap.core.files import read_table

SMALL = ["--no_cuda", "--max_length", "64", "--doc_stride", "20", "--per_device_train_batch_size", "8"]


def call(*argv):
    run.main([str(argument) for argument in argv])


@pytest.fixture(scope="module")
def trained(qa_dir, tiny_model, tmp_path_factory):
    """Stage 1 as users write it: a model and its cartography."""
    out = tmp_path_factory.mktemp("stage1")
    with redirect_stdout(io.StringIO()) as told:
        call(
            "--do_train", "--do_eval", "--num_train_epochs", "3", "--enable_cartography", "--learning_rate", "3e-3",
            "--cartography_output_dir", out / "cartography_output", "--output_dir", out / "initial_model",
            "--model", tiny_model, "--dataset", qa_dir, *SMALL,
        )
    (out / "console.txt").write_text(told.getvalue())
    return out


def read(path):
    return json.loads(Path(path).read_text())


def test_stage_1_writes_every_artifact(trained, qa_dir):
    model, cartography = trained / "initial_model", trained / "cartography_output"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "eval_metrics.json", "eval_predictions.jsonl"):
        assert (model / name).stat().st_size > 0
    metrics = read(model / "eval_metrics.json")
    assert {"eval_exact_match", "eval_f1", "eval_total"} <= metrics.keys()
    assert all(isinstance(value, int | float) for value in metrics.values())
    rows = [json.loads(line) for line in (model / "eval_predictions.jsonl").read_text().splitlines()]
    source = [json.loads(line) for line in (qa_dir / "validation.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in source]
    assert all(row["predicted_answer"] in row["context"] and row["source"] in ("story", "tale") for row in rows)
    assert metrics["eval_exact_match"] == pytest.approx(100 * np.mean([row["exact_match"] for row in rows]))

    assert sorted(path.name for path in cartography.glob("training_dynamics_*")) == [
        f"training_dynamics_epoch_{epoch}.json" for epoch in (1, 2, 3)
    ]
    table = pd.read_csv(cartography / "cartography_metrics.csv", dtype={"id": str})
    records = read(cartography / "cartography_metrics.json")
    assert table["id"].tolist() == [record["id"] for record in records]
    np.testing.assert_allclose(table["confidence"], [record["confidence"] for record in records], rtol=1e-12)
    assert table["never_learned"].dtype == bool
    assert (cartography / "cartography_map.png").stat().st_size > 10_000
    meta = read(model / "run_meta.json")
    assert meta["status"] == "finished" and meta["seed"] == 42
    assert [split["split"] for split in meta["datasets"]] == ["validation"]  # the evaluation is a run of its own
    [training] = meta["history"]
    assert training["status"] == "finished" and training["datasets"][0]["split"] == "train"
    assert meta["versions"]["torch"] and meta["arguments"]["learning_rate"] == 3e-3


def test_the_categories_of_the_map_are_counted_at_the_end(trained):
    counts = categorize_examples(load_cartography_metrics(trained / "cartography_output"))["category"].value_counts()
    [line] = [line for line in (trained / "console.txt").read_text().splitlines() if line.startswith("data map: ")]
    assert line.startswith(f"data map: {counts.sum()} examples: ")
    assert {name: int(n) for n, name in re.findall(r"(\d+) (easy|ambiguous|hard) \(", line)} == {
        name: counts.get(name, 0) for name in ("easy", "ambiguous", "hard")}


def test_one_small_batch_that_would_be_dropped(qa_dir, tiny_model, tmp_path, refused):
    line = refused(run.main, "--do_train", "--model", tiny_model, "--dataset", qa_dir, "--enable_cartography", *SMALL,
                   "--per_device_train_batch_size", "500", "--dataloader_drop_last", "--output_dir", tmp_path / "out",
                   "--cartography_output_dir", tmp_path / "map")
    assert "--dataloader_drop_last leaves nothing to train on: " in line and "less than one batch of 500" in line
    assert not (tmp_path / "out").exists() and not (tmp_path / "map").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--adam_beta2", "-1"), "the optimizer refuses its settings: Invalid beta parameter at index 1: -1.0; see"),
        (("--adam_epsilon", "-1"), "the optimizer refuses its settings: Invalid epsilon value"),
        (("--log_level_replica", "0,1"), "training arguments: --log_level_replica 0,1: expected one of detail, debug"),
        (("--lr_scheduler_type", "cosine_with_min_lr"), "the scheduler of the learning rate refuses its settings"),
        (("--use_liger_kernel",), "--use_liger_kernel needs a package that is not installed: pip install liger"),
        (("--push_to_hub",), "--push_to_hub cannot make a repository for this model (HF_HUB_OFFLINE is set); log in"),
    ],
)
def test_settings_that_the_libraries_refuse(qa_dir, tiny_model, tmp_path, refused, flags, words):
    line = refused(run.main, "--do_train", "--model", tiny_model, "--dataset", qa_dir, *SMALL, *flags, "--output_dir",
                   tmp_path / "out")
    assert words in line


def test_a_model_that_cannot_compute_activations_again(tmp_path, refused):
    line = refused(run.main, "--do_train", "--model", "lstm", "--task", "nli", "--dataset", "demo:nli",
                   "--activation_checkpointing", "--no_cuda", "--output_dir", tmp_path / "out")
    assert "--activation_checkpointing: LSTMForSequenceClassification cannot do that; leave it out" in line


@pytest.mark.parametrize("tracker", ["neptune", "mlflow"])
def test_a_tracker_that_is_not_installed(qa_dir, tmp_path, refused, monkeypatch, tracker):
    if importlib.util.find_spec(tracker):
        pytest.skip(f"{tracker} is installed")
    unraisable: list = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    line = refused(run.main, "--do_train", "--model", "tiny", "--dataset", qa_dir, "--report_to", tracker, *SMALL,
                   "--output_dir", tmp_path / "out")
    gc.collect()
    assert f"--report_to {tracker} needs the package of that name, which is not installed" in line
    assert not unraisable, "a traceback of an object that was half made"


def test_an_evaluation_before_the_training(qa_dir, tiny_model, tmp_path, caplog):
    common = ["--do_train", "--model", tiny_model, "--dataset", qa_dir, "--num_train_epochs", "1", "--eval_on_start",
              *SMALL]
    call(*common, "--output_dir", tmp_path / "alone")
    assert "epoch 0: f1 " in caplog.text and "before training" in caplog.text
    log = pd.read_csv(tmp_path / "alone" / "training_log.csv")
    assert log["step"].tolist()[0] == 0 and log["eval_f1"].notna().sum() == 1
    call(*common, "--keep_top_epochs", "1", "--output_dir", tmp_path / "kept")
    [best] = read(tmp_path / "kept" / "top_epochs.json")
    assert best["epoch"] == 1 and (tmp_path / "kept" / best["checkpoint"]).exists(), "there is none of the start"
    assert pd.read_csv(tmp_path / "kept" / "training_log.csv")["eval_f1"].notna().sum() == 2


def test_stage_2_smooths_and_weights(trained, qa_dir, tiny_model, tmp_path, monkeypatch):
    """The two-stage work as users write it; the loss must be the formula's, and its weights 1 on average."""
    from datamap.cartography import recorder as training_dynamics
    from datamap.training.trainer import CartographyTrainer

    seen = []
    original = training_dynamics.row_losses

    def spy(heads, smoothing):
        seen.append(smoothing)
        return original(heads, smoothing)

    monkeypatch.setattr(training_dynamics, "row_losses", spy)
    weights: dict = {}
    init = CartographyTrainer.__init__

    def keep(self, *args, **kwargs):
        init(self, *args, **kwargs)
        weights.update(rows=kwargs["train_dataset"]["example_index"][:], weights=kwargs["weights"],
                       smoothing=kwargs["smoothing"])

    monkeypatch.setattr(CartographyTrainer, "__init__", keep)
    call(
        "--do_train", "--num_train_epochs", "1", "--use_label_smoothing", "--use_soft_weighting",
        "--cartography_output_dir", trained / "cartography_output", "--output_dir", tmp_path / "final_model",
        "--model", tiny_model, "--dataset", qa_dir, *SMALL, "--max_length", "56",
    )
    variability = load_cartography_metrics(trained / "cartography_output")["variability"]
    ids = [json.loads(line)["id"] for line in (qa_dir / "train.jsonl").read_text().splitlines()]
    expected_smoothing = [min(0.3, 0.6 * variability[example]) for example in ids]
    raw = [min(10, max(0.1, variability[example] / variability.mean())) for example in ids]
    rows = weights["rows"]
    assert len(set(np.bincount(rows))) > 1  # of windows
    expected_weights = np.array(raw) / np.mean(np.array(raw)[rows])
    np.testing.assert_allclose(weights["smoothing"], np.array(expected_smoothing)[rows])
    np.testing.assert_allclose(weights["weights"], expected_weights[rows])
    assert seen and all(smoothing.max() > 0 for smoothing in seen)
    assert (tmp_path / "final_model/config.json").exists()


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_filter_cartography_reaches_the_trainer(trained, qa_dir, tiny_model, tmp_path, fraction):
    call(
        "--do_train", "--max_steps", "1", "--filter_cartography", "--ambiguous_top_fraction", fraction,
        "--cartography_output_dir", trained / "cartography_output", "--output_dir", tmp_path / "m",
        "--model", tiny_model, "--dataset", qa_dir, *SMALL,
    )
    metrics = categorize_examples(load_cartography_metrics(trained / "cartography_output"))
    ambiguous = int((metrics["category"] == "ambiguous").sum())
    report = read(tmp_path / "m/filter_report.json")
    removed = [example for ids in report["filters"][0]["removed"].values() for example in ids]
    assert report["before"] == 24 and report["after"] == 24 - len(removed)
    assert len(removed) == pytest.approx((1 - fraction) * ambiguous, abs=1)
    assert set(removed) <= set(metrics.index[metrics["category"] == "ambiguous"])


def test_random_control_has_the_same_size(trained, qa_dir, tiny_model, tmp_path):
    cluster = tmp_path / "cluster_output"
    cluster.mkdir()
    ids = load_cartography_metrics(trained / "cartography_output").index
    pd.DataFrame(
        {"id": ids, "cluster": np.arange(len(ids)) % 5 - 1, "dim1": 0.0, "dim2": 0.0,
         "cluster_probability": 0.9, "outlier_score": 0.1}
    ).to_csv(cluster / "cluster_assignments.csv", index=False)
    reports = {}
    for name, extra in (("filter", ()), ("control", ("--filter_random",))):
        call(
            "--do_train", "--max_steps", "1", "--filter_clusters", "--cluster_assignments_path", cluster,
            "--exclude_clusters", "-1,3,5", "--min_cluster_probability", "0.7", *extra,
            "--output_dir", tmp_path / name, "--model", tiny_model, "--dataset", qa_dir, *SMALL,
        )
        reports[name] = read(tmp_path / name / "filter_report.json")
    assert reports["filter"]["after"] == reports["control"]["after"] < 24
    removed = [sorted(sum(reports[name]["filters"][-1]["removed"].values(), [])) for name in reports]
    assert removed[0] != removed[1]


def test_ids_of_a_csv(trained, qa_dir, tiny_model, tmp_path):
    (tmp_path / "selected.csv").write_text("id,rank,score,reason\ntrain-003,1,0.5,x\ntrain-001,2,0.4,x\n")
    call("--do_train", "--max_steps", "1", "--train_ids", tmp_path / "selected.csv", "--output_dir", tmp_path / "m",
         "--model", tiny_model, "--dataset", qa_dir, *SMALL)
    assert read(tmp_path / "m/filter_report.json")["after"] == 2


def test_evaluates_a_trained_model_under_ablations(trained, qa_dir, tmp_path):
    call("--do_eval", "--eval_ablations", "none", "q_only", "p_only", "--model", trained / "initial_model",
         "--dataset", qa_dir, "--output_dir", tmp_path / "e", "--max_length", "64", "--doc_stride", "20", "--no_cuda",
         "--max-eval-samples", "6")
    metrics = read(tmp_path / "e/eval_metrics.json")
    before = read(trained / "initial_model/eval_metrics.json")
    assert metrics["eval_total"] == metrics["eval_q_only_total"] == metrics["eval_p_only_total"] == 6
    assert before["eval_total"] == 10
    for name in ("", "_q_only", "_p_only"):
        assert len((tmp_path / f"e/eval_predictions{name}.jsonl").read_text().splitlines()) == 6


def test_evaluating_into_the_model_directory_keeps_the_model(trained, qa_dir, tmp_path):
    import shutil

    from datamap.core.artifacts import model_meta

    shutil.copytree(trained / "initial_model", tmp_path / "m")
    call("--do_eval", "--eval_split", "train", "--model", tmp_path / "m", "--dataset", qa_dir, "--output_dir",
         tmp_path / "m", *SMALL)
    assert (tmp_path / "m/model.safetensors").exists()
    assert len((tmp_path / "m/eval_predictions.jsonl").read_text().splitlines()) == 24
    meta = model_meta(tmp_path / "m")
    assert meta is not None and meta["datasets"][0]["split"] == "train"
    assert len(read(tmp_path / "m/run_meta.json")["history"]) == 2


def test_filtered_validation_reports_both_numbers(trained, qa_dir, tmp_path):
    config = tmp_path / "filters.json"
    config.write_text(json.dumps({"rules": {"max_error_score": 1}}))
    call("--do_eval", "--model", trained / "initial_model", "--dataset", qa_dir, "--output_dir", tmp_path / "e",
         "--filter_config", config, "--filter_validation", *SMALL)
    metrics = read(tmp_path / "e/eval_metrics.json")
    assert metrics["eval_total"] == 10
    assert 0 < metrics["eval_filtered_total"] <= 10


def test_tiny_is_built_from_the_training_split_and_loads_again(qa_dir, tmp_path):
    call("--do_train", "--model", "tiny", "--max_steps", "2", "--dataset", qa_dir, "--output_dir", tmp_path / "m",
         *SMALL)
    call("--do_eval", "--model", tmp_path / "m", "--dataset", qa_dir, "--output_dir", tmp_path / "e", *SMALL)
    assert read(tmp_path / "m/config.json")["model_type"] == "electra"
    assert "eval_f1" in read(tmp_path / "e/eval_metrics.json")


def test_keeps_the_best_epoch(qa_dir, tiny_model, tmp_path):
    call("--do_train", "--do_eval", "--eval_strategy", "epoch", "--save_strategy", "epoch", "--load_best_model_at_end",
         "--num_train_epochs", "3", "--learning_rate", "3e-3", "--model", tiny_model, "--dataset", qa_dir,
         "--output_dir", tmp_path / "m", *SMALL)
    states = [read(path) for path in (tmp_path / "m").glob("checkpoint-*/trainer_state.json")]
    history = max(states, key=lambda state: state["global_step"])["log_history"]
    scores = [entry["eval_f1"] for entry in history if "eval_f1" in entry]
    assert len(scores) == 3
    assert read(tmp_path / "m/eval_metrics.json")["eval_f1"] == pytest.approx(max(scores))


def test_squad_2_style_data(tiny_model, tmp_path):
    rows = qa_rows(12, seed=5)
    for row in rows[::3]:
        row["answers"] = {"text": [], "answer_start": []}
    (tmp_path / "d").mkdir()
    write_rows(tmp_path / "d/train.jsonl", rows)
    write_rows(tmp_path / "d/validation.jsonl", rows)
    call("--do_train", "--do_eval", "--enable_cartography", "--num_train_epochs", "3", "--model", tiny_model,
         "--dataset", tmp_path / "d", "--eval_split", "validation", "--output_dir", tmp_path / "m",
         "--cartography_output_dir", tmp_path / "c", *SMALL)
    metrics = read(tmp_path / "m/eval_metrics.json")
    assert metrics["eval_NoAns_total"] == 4 and metrics["eval_HasAns_total"] == 8
    # At the best threshold of the no-answer score, which stands beside the predictions, and at 0.
    told = [json.loads(line) for line in (tmp_path / "m/eval_predictions.jsonl").read_text().splitlines()]
    at_best = []
    for row in told:
        assert row["predicted_answer"] == ("" if row["no_answer_score"] > 0 else row["span_answer"]) != row["answers"]
        answer = row["span_answer"] if row["no_answer_score"] <= metrics["eval_best_exact_thresh"] else ""
        at_best.append(answer in (row["answers"]["text"] or [""]))
    assert metrics["eval_best_exact"] == pytest.approx(100 * sum(at_best) / 12)
    assert metrics["eval_best_exact"] >= max(metrics["eval_exact_match"], metrics["eval_held_out_exact"])
    assert metrics["eval_best_f1"] >= metrics["eval_f1"] and metrics["eval_held_out_f1"] <= metrics["eval_best_f1"]
    assert len(load_cartography_metrics(tmp_path / "c")) == 12  # the unanswerable are recorded, too


def test_a_shorter_rerun_leaves_no_epoch_of_the_longer(trained, qa_dir, tiny_model, tmp_path):
    for epochs in (4, 3):
        call("--do_train", "--enable_cartography", "--num_train_epochs", epochs, "--model", tiny_model, "--dataset",
             qa_dir, "--output_dir", tmp_path / "m", "--cartography_output_dir", tmp_path / "c", "--overwrite", *SMALL)
    assert len(list((tmp_path / "c").glob("training_dynamics_epoch_*.json"))) == 3


@pytest.mark.parametrize("held", ["m", "c"])
def test_a_second_run_in_the_same_directory_destroys_nothing(refused, qa_dir, tiny_model, tmp_path, held):
    command = ("--do_train", "--enable_cartography", "--overwrite", "--model", tiny_model, "--dataset", qa_dir,
               "--output_dir", tmp_path / "m", "--cartography_output_dir", tmp_path / "c", *SMALL)
    for directory, file in (("m", "checkpoint-2/model.safetensors"), ("c", "training_dynamics_epoch_1.json")):
        (tmp_path / directory / file).parent.mkdir(parents=True)
        (tmp_path / directory / file).write_text("of the first")
    with held_elsewhere(tmp_path / held / ".lock"):
        assert f"{tmp_path / held}: another process is writing since 20" in refused(run.main, *command)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "model.safetensors", "training_dynamics_epoch_1.json"
    ]


def test_what_epochs_leave_out_is_said(qa_dir, tiny_model, tmp_path, caplog):
    """48 windows in batches of 10, of which the last is dropped."""
    command = ("--do_train", "--enable_cartography", "--num_train_epochs", "3", "--model", tiny_model, "--dataset",
               qa_dir, "--output_dir", tmp_path / "m", "--cartography_output_dir", tmp_path / "c", *SMALL,
               "--per_device_train_batch_size", "10", "--overwrite")
    call(*command)
    assert "rows out" not in caplog.text and "not whole" not in caplog.text
    call(*command, "--dataloader_drop_last")
    assert "--dataloader_drop_last: each epoch leaves 8 of 48 rows out" in caplog.text
    unseen = re.findall(r"epoch (\d) of the training dynamics is not whole: (\d) of 24 examples were not", caplog.text)
    assert [epoch for epoch, _ in unseen] == ["1", "2", "3"] and all(1 <= int(count) <= 8 for _, count in unseen)
    caplog.clear()
    call(*command, "--max_steps", "7")
    assert "epoch 2 of the training dynamics is not whole" in caplog.text and "epoch 1 of" not in caplog.text


# --- mistakes ----------------------------------------------------------------------------------------------------


def squad(**changes):
    row = {"id": "a", "question": "Who?", "context": "Ada ran.", "answers": {"text": ["Ada"], "answer_start": [0]}}
    return {**row, **changes}


def file_of(tmp_path, *rows, name="data.jsonl"):
    return write_rows(tmp_path / name, list(rows))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "nothing to do"),
        (["--do_train", "--num_train_epoch", "3"], "did you mean --num_train_epochs"),
        (["--do_train", "--num_train_epochs", "three"], "--num_train_epochs"),
        (["--do_train", "--ambiguous_top_fraction", "1.5"], "0 to 1"),
        (["--do_train", "--min_cluster_probability", "-0.1"], "0 to 1"),
        (["--do_train", "--filter_categories", "easy,odd"], "'odd' is not one of easy"),
        (["--do_train", "--task", "nope"], "invalid choice"),
        (["--do_train", "--enable_cartography", "--use_soft_weighting"], "reads in the same run"),
        (["--do_train", "--enable_cartography", "--filter_cartography"], "reads in the same run"),
        (["--do_eval", "--enable_cartography"], "needs --do_train"),
        (["--do_train", "--filter_random"], "as the other blocks would keep"),
        (["--do_train", "--label_smoothing_factor", "0.1"], "--label_smoothing_factor is not taken"),
        (["--do_train", "--train_sampling_strategy", "sequential"], "--train_sampling_strategy is not taken"),
        (["--do_train", "--exclude_clusters", "-1,3"], "--exclude_clusters does nothing without --filter_clusters"),
        (["--do_train", "--smoothing_factor", "0.2"], "does nothing without --use_label_smoothing"),
        (["--do_train", "--max_drop_percentage", "5"], "does nothing without a filter"),
        (["--do_train", "--missing", "drop"], "--missing does nothing without a filter"),
        (["--do_eval", "--filter_categories", "easy"], "add --do_train"),
        (["--do_eval", "--model", "tiny"], "trained from scratch"),
        (["--do_train", "--use_soft_weighting", "--weight_clip_min", "0", "--weight_clip_max", "0"], "above 0"),
        (["--do_train", "--max_grad_norm", "inf"], "expected a number"),
        (["--do_train", "--seed", "-1"], "0 to 4"),
        (["--do_train", "--dataset", "nowhere.jsonl"], "no such file"),
        (["--do_train", "--dataset", "./nowhere"], "no such file"),
        (["--do_train", "--dataset", "demo:nothing"], "not built in"),
        (["--do_train", "--dataset", "nobody/nothing-here"], "Hub"),
        (["--do_train", "--filter_config", "nowhere.json"], "nowhere.json"),
    ],
)
def test_refuses_wrong_arguments(refused, argv, words):
    assert words in refused(run.main, *argv)


def test_refuses_unknown_splits_and_models(refused, qa_dir, tmp_path, tiny_model):
    message = refused(run.main, "--do_train", "--dataset", qa_dir, "--train_split", "dev", "--output_dir", tmp_path)
    assert "no split 'dev'" in message and "train, validation" in message
    one = file_of(tmp_path, squad())
    assert "only split is 'train'" in refused(run.main, "--do_eval", "--dataset", one, "--eval_split", "validation")
    assert "needs asking" in refused(run.main, "--do_train", "--do_eval", "--dataset", one)
    out = tmp_path / "o"
    message = refused(run.main, "--do_train", "--dataset", one, "--model", "./no-model", "--output_dir", out)
    assert "no-model" in message and "tiny" in message
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("", "data.jsonl", "is empty"),
        ('{"id": "a"}\n{"id": \n', "data.jsonl", "line 2: malformed JSON"),
        ('[{"id": "a"},\n {"id": ]', "data.json", "line 2: malformed JSON"),
        ("id,question,context\na,b,c\nd,e\n", "data.csv", "line 3: 2 columns where the header has 3"),
        ('id,question\na,"b\n', "data.csv", "line"),
        (json.dumps({"id": 1, "question": "q", "context": "c"}), "data.jsonl", "no column 'answers'"),
        (json.dumps({"id": 1, "text": "c"}), "data.jsonl", "'context', 'question', 'answers'"),
        (json.dumps(squad()) + "\n" + json.dumps(squad()), "data.jsonl", "occur more than once ('a')"),
        (json.dumps(squad(answers={"text": ["Bob"], "answer_start": [0]})), "data.jsonl", "no answer stands at"),
        (json.dumps(squad(answers={"text": [], "answer_start": []})), "data.jsonl", "all answers are empty"),
        (json.dumps(squad(answers={"text": ["Ada"], "answer_start": []})), "data.jsonl", "answer_start"),
        (json.dumps(squad(context=None)), "data.jsonl", "holds no text"),
        ("not a table", "data.txt", "expected one of .json"),
    ],
)
def test_refuses_bad_data(refused, tmp_path, text, name, words):
    (tmp_path / name).write_text(text)
    message = refused(run.main, "--do_train", "--dataset", tmp_path / name, "--output_dir", tmp_path / "out")
    assert words in message
    assert not (tmp_path / "out").exists()


def test_drops_answers_that_are_not_at_their_offsets_and_says_so(tiny_model, tmp_path, caplog):
    rows = qa_rows(6)
    rows[2]["answers"]["answer_start"] = [1000]
    call("--do_train", "--max_steps", "1", "--dataset", file_of(tmp_path, *rows), "--model", tiny_model,
         "--output_dir", tmp_path / "m", *SMALL)
    assert "1 of 6 examples ('ex-002') are not trained on: answer not at its answer_start" in caplog.text
    report = read(tmp_path / "m/filter_report.json")
    assert report["after"] == 5 and report["filters"][0]["removed"] == {"answer not at its answer_start": ["ex-002"]}


def test_answers_off_by_a_little_are_moved_and_those_within_a_token_left_out(tiny_model, tmp_path, caplog):
    rows = qa_rows(6)
    right = rows[2]["answers"]["answer_start"][0]
    rows[2]["answers"]["answer_start"] = [right + 2]
    text, start = rows[3]["answers"]["text"][0], rows[3]["answers"]["answer_start"][0]
    rows[3]["answers"]["text"] = [text[:-1]]  # within a word, as the tokens of this model are
    file = file_of(tmp_path, *rows)
    shared = ["--max_steps", "1", "--dataset", file, "--model", tiny_model, "--eval_split", "train", *SMALL]
    call("--do_train", "--do_eval", "--enable_cartography", "--output_dir", tmp_path / "m",
         "--cartography_output_dir", tmp_path / "c", *shared)
    for name in ("moved_answers.csv", "eval_moved_answers.csv"):
        table = read_table(tmp_path / "m" / name)
        assert table.to_dict("records") == [{"id": "ex-002", "answer_start": right + 2, "moved_start": right,
                                             "answer": rows[2]["answers"]["text"][0],
                                             "moved_answer": rows[2]["answers"]["text"][0]}]
    assert "1 of 6 examples ('ex-003') are not trained on: answer is not made of whole tokens" in caplog.text
    report = read(tmp_path / "m/filter_report.json")
    assert (report["before"], report["after"]) == (6, 5)
    assert report["filters"] == [{"filter": "unlearnable", "before": 6, "after": 5,
                                  "removed": {"answer is not made of whole tokens": ["ex-003"]}}]
    ids = read(tmp_path / "c/training_dynamics_epoch_1.json")["id"]
    assert "ex-002" in ids and "ex-003" not in ids and rows[3]["context"].startswith(text, start)
    call("--do_train", "--spans", "strict", "--output_dir", tmp_path / "strict", *shared)
    removed = [each["removed"] for each in read(tmp_path / "strict/filter_report.json")["filters"]]
    assert removed == [{"answer not at its answer_start": ["ex-002"]},
                       {"answer is not made of whole tokens": ["ex-003"]}]
    assert not (tmp_path / "strict/moved_answers.csv").exists()


def test_refuses_cartography_it_cannot_use(refused, trained, qa_dir, tiny_model, tmp_path):
    import shutil

    def with_cartography(directory, *extra, dataset=qa_dir):
        return refused(run.main, "--do_train", "--use_soft_weighting", "--cartography_output_dir", directory,
                       "--model", tiny_model, "--dataset", dataset, "--output_dir", tmp_path / "out", *SMALL, *extra)

    assert "no such file" in with_cartography(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "holds no cartography_metrics.csv" in with_cartography(tmp_path / "empty")

    copy = tmp_path / "copy"
    shutil.copytree(trained / "cartography_output", copy)
    table = (copy / "cartography_metrics.csv").read_text()
    half = table[: len(table) // 2]
    (copy / "cartography_metrics.csv").write_text(half[: half.rindex("\n") + 1])
    assert "is truncated" in with_cartography(copy)
    (copy / "cartography_metrics.csv").write_text(half)
    assert "columns where the header has" in with_cartography(copy)
    (copy / "run_meta.json").unlink()
    assert "columns where the header has" in with_cartography(copy)
    lines = table.splitlines()
    cells = lines[3].split(",")
    lines[3] = ",".join([cells[0], "", *cells[2:]])
    (copy / "cartography_metrics.csv").write_text("\n".join(lines) + "\n")
    assert "confidence of 1 examples" in with_cartography(copy)
    assert "no column 'confidence'" in (
        (copy / "cartography_metrics.csv").write_text("id,variability\na,0.1\n") and with_cartography(copy)
    )
    unfinished = tmp_path / "unfinished"
    shutil.copytree(trained / "cartography_output", unfinished)
    meta = read(unfinished / "run_meta.json")
    (unfinished / "run_meta.json").write_text(json.dumps({**meta, "status": "running"}))
    assert "is not whole" in with_cartography(unfinished)

    other = file_of(tmp_path, *qa_rows(5, seed=9, prefix="other"), name="other.jsonl")
    message = with_cartography(trained / "cartography_output", dataset=other)
    assert "shares no ids" in message and "other.jsonl" in message and str(qa_dir) in message
    same_ids = file_of(tmp_path, *qa_rows(24, seed=9, prefix="train"), name="same.jsonl")
    message = with_cartography(trained / "cartography_output", dataset=same_ids)
    assert "other content" in message and "same.jsonl" in message
    assert not (tmp_path / "out/model.safetensors").exists()


def test_refuses_to_train_on_nothing(refused, trained, qa_dir, tiny_model, tmp_path):
    config = tmp_path / "f.json"
    config.write_text(json.dumps({"confidence": {"metrics_path": str(trained / "cartography_output"),
                                                 "min_confidence": 0.999999}}))
    common = ("--do_train", "--model", tiny_model, "--dataset", qa_dir, "--output_dir", tmp_path / "out")
    assert "leave none of 24" in refused(run.main, *common, "--filter_config", config)
    message = refused(run.main, *common, "--filter_categories", "easy", "--max_drop_percentage", "5",
                      "--cartography_output_dir", trained / "cartography_output")
    assert "more than max_drop_percentage 5" in message
    (tmp_path / "ids.csv").write_text("id\nnobody\n")
    assert "shares no ids" in refused(run.main, *common, "--train_ids", tmp_path / "ids.csv")
    assert not (tmp_path / "out").exists()


def test_refuses_an_output_directory_that_cannot_be_written(refused, qa_dir, tiny_model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    common = ("--do_train", "--model", tiny_model, "--dataset", qa_dir)
    assert "is a file" in refused(run.main, *common, "--output_dir", tmp_path / "file")
    assert "not writable" in refused(run.main, *common, "--output_dir", tmp_path / "file/below")


def test_warns_of_too_few_epochs(qa_dir, tiny_model, tmp_path, caplog):
    call("--do_train", "--enable_cartography", "--num_train_epochs", "1", "--model", tiny_model, "--dataset", qa_dir,
         "--output_dir", tmp_path / "m", "--cartography_output_dir", tmp_path / "c", *SMALL)
    assert "fewer than 3 epochs" in caplog.text


def test_never_touches_the_checkpoints_of_an_unfinished_run(refused, qa_dir, tiny_model, tmp_path):
    common = ("--do_train", "--model", tiny_model, "--dataset", qa_dir, "--output_dir", tmp_path / "m", *SMALL,
              "--save_steps", "2", "--max_steps", "4")
    call(*common)
    meta = read(tmp_path / "m/run_meta.json")
    (tmp_path / "m/run_meta.json").write_text(json.dumps({**meta, "status": "running"}))
    message = refused(run.main, *common)
    assert "--resume_from_checkpoint" in message and "--overwrite" in message
    assert (tmp_path / "m/checkpoint-4").exists()
    other = file_of(tmp_path, *qa_rows(8, seed=4))
    message = refused(run.main, *common[:3], "--dataset", other, *common[5:], "--resume_from_checkpoint")
    assert "trained on other data" in message
    call(*common, "--resume_from_checkpoint")
    call(*common, "--overwrite")
    assert read(tmp_path / "m/run_meta.json")["status"] == "finished"


def test_a_failed_run_is_not_taken_for_whole(refused, qa_dir, tiny_model, tmp_path, monkeypatch):
    from datamap.training import trainer as trainers

    def broken(self, *args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(trainers.CartographyTrainer, "training_step", broken)
    with pytest.raises(RuntimeError):
        call("--do_train", "--enable_cartography", "--model", tiny_model, "--dataset", qa_dir, "--output_dir",
             tmp_path / "m", "--cartography_output_dir", tmp_path / "c", *SMALL)
    monkeypatch.undo()
    assert read(tmp_path / "m/run_meta.json")["status"] == "failed"
    message = refused(run.main, "--do_train", "--use_soft_weighting", "--cartography_output_dir", tmp_path / "c",
                      "--model", tiny_model, "--dataset", qa_dir, "--output_dir", tmp_path / "n")
    assert "is not whole" in message


def test_refuses_what_a_diverged_training_leaves(refused, qa_dir, tiny_model, tmp_path):
    message = refused(run.main, "--do_train", "--learning_rate", "1e30", "--max_grad_norm", "0", "--model", tiny_model,
                      "--dataset", qa_dir, "--output_dir", tmp_path / "m", *SMALL)
    assert "training diverged" in message
    assert read(tmp_path / "m/run_meta.json")["status"] == "failed"


def test_missing_decides_for_every_filter_that_does_not_say(tmp_path):
    def filters(*flags):
        return run.parse_args(["--do_train", "--filter_categories", "easy", *flags]).filters

    assert "missing" not in filters()["category"]
    found = filters("--filter_cartography", "--filter_random", "--missing", "keep")
    assert [found[name].get("missing") for name in ("ambiguous", "category", "random")] == ["keep", "keep", None]


def test_filters_of_the_validation_data_are_checked_before_training(refused, trained, qa_dir, tiny_model, tmp_path):
    message = refused(run.main, "--do_train", "--do_eval", "--filter_categories", "easy,ambiguous",
                      "--filter_validation", "--cartography_output_dir", trained / "cartography_output",
                      "--validation_cartography_output_dir", trained / "cartography_output", "--model",
                      tiny_model, "--dataset", qa_dir, "--output_dir", tmp_path / "m", *SMALL)
    assert "shares no ids" in message
    assert not (tmp_path / "m").exists()


def test_a_failed_evaluation_leaves_the_model_whole(qa_dir, tiny_model, tmp_path, monkeypatch):
    from datamap.tasks.qa import QAEvaluation

    def broken(self, output):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(QAEvaluation, "__call__", broken)
    with pytest.raises(RuntimeError):
        call("--do_train", "--do_eval", "--max_steps", "2", "--model", tiny_model, "--dataset", qa_dir,
             "--output_dir", tmp_path / "m", *SMALL)
    monkeypatch.undo()
    call("--do_eval", "--model", tmp_path / "m", "--output_dir", tmp_path / "e", *SMALL)  # on the recorded dataset
    assert read(tmp_path / "e/eval_metrics.json")["eval_total"] == 10


def test_overwrite_false_deletes_nothing(refused, qa_dir, tiny_model, tmp_path):
    (tmp_path / "m/checkpoint-5").mkdir(parents=True)
    message = refused(run.main, "--do_train", "--overwrite=false", "--model", tiny_model, "--dataset", qa_dir,
                      "--output_dir", tmp_path / "m")
    assert "unfinished run" in message and (tmp_path / "m/checkpoint-5").exists()


def test_refuses_models_that_would_answer_at_random(refused, trained, qa_dir, tmp_path):
    import shutil

    from transformers import AutoModel

    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(trained / "initial_model" / name, bare)
    common = ("--do_eval", "--dataset", qa_dir, "--output_dir", tmp_path / "o", *SMALL)
    assert "holds no tokenizer" in refused(run.main, "--model", bare, *common)
    headless = tmp_path / "headless"
    AutoModel.from_pretrained(trained / "initial_model").save_pretrained(headless)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(trained / "initial_model" / name, headless)
    message = refused(run.main, "--model", headless, *common)
    assert "lacks 2 trained weights of a model for --task qa (qa_outputs" in message


def test_missing_values_of_the_users_are_null_in_the_predictions(trained, tmp_path):
    rows = qa_rows(4, seed=3)
    rows[1]["score"] = float("nan")
    call("--do_eval", "--model", trained / "initial_model", "--dataset", file_of(tmp_path, *rows), "--eval_split",
         "train", "--output_dir", tmp_path / "e", *SMALL)
    lines = (tmp_path / "e/eval_predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["score"] for line in lines] == [None] * 4


def test_resuming_with_other_flags_is_refused(refused, qa_dir, tiny_model, tmp_path):
    common = ("--do_train", "--enable_cartography", "--model", tiny_model, "--dataset", qa_dir, "--output_dir",
              tmp_path / "m", "--cartography_output_dir", tmp_path / "c", "--save_steps", "2", *SMALL)
    call(*common)
    again = (*common, "--resume_from_checkpoint", tmp_path / "m/checkpoint-4")
    assert "trained with seed 42, not 7" in refused(run.main, *again, "--seed", "7")
    assert "confidence_type geometric, not product" in refused(run.main, *again, "--confidence_type", "product")


def test_resumes_where_the_window_was_lowered(refused, qa_dir, tiny_model, tmp_path):
    """The model takes 128 tokens; 512 and 128 are asked for, and asked for again at the resume."""
    common = ("--do_train", "--model", tiny_model, "--dataset", qa_dir, "--output_dir", tmp_path / "m", "--no_cuda",
              "--save_steps", "2", "--max_steps", "4", "--resume_from_checkpoint")
    call(*common[:-1])
    arguments = read(tmp_path / "m/run_meta.json")["arguments"]
    assert (arguments["max_length"], arguments["doc_stride"]) == (128, 64)
    call(*common, tmp_path / "m/checkpoint-2")
    assert "trained with windows [512, 128], not [64, 128]" in refused(run.main, *common, "--max_length", "64")


def test_ids_chosen_on_another_dataset_are_refused(refused, qa_dir, tiny_model, tmp_path):
    (tmp_path / "selected.csv").write_text("id\ntrain-001\n")
    meta = {"status": "finished", "datasets": [{"dataset": "other.jsonl", "split": "train", "fingerprint": "0" * 16}]}
    (tmp_path / "run_meta.json").write_text(json.dumps(meta))
    message = refused(run.main, "--do_train", "--train_ids", tmp_path / "selected.csv", "--model", tiny_model,
                      "--dataset", qa_dir, "--output_dir", tmp_path / "m")
    assert "other content" in message and "other.jsonl" in message
