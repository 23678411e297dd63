"""run.py --cross_fit: what models say of examples that they have not seen, and that they have not seen them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import qa_rows, review_rows, write_rows

import run
from datamap.cartography.dynamics import read_dynamics
from datamap.core.files import read_table
from datamap.detection.out_of_fold import load_out_of_fold
from datamap.training import held_out, trainer

pytestmark = pytest.mark.usefixtures("one_thread")
FOLDS = 3


def call(*argv):
    run.main([str(argument) for argument in argv])


def flags(reviews, out, *extra):
    return ["--do_train", "--enable_cartography", "--no_cuda", "--task", "classification", "--label_column", "label",
            "--dataset", reviews, "--model", "lstm", "--max_length", "32", "--num_train_epochs", "3",
            "--per_device_train_batch_size", "8", "--output_dir", out / "m", "--cartography_output_dir", out / "c",
            *extra]


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """As those of conftest.py, but one text stands there three times, once with the other label."""
    directory, rows = tmp_path_factory.mktemp("copies"), review_rows(48, 0, prefix="train")
    for copy in (5, 10):
        rows[copy]["sentence"] = rows[3]["sentence"]
    write_rows(directory / "train.jsonl", rows)
    write_rows(directory / "validation.jsonl", review_rows(12, 1, prefix="valid"))
    return directory


@pytest.fixture(scope="module")
def crossed(reviews, tmp_path_factory):
    """A run of three folds, whose directories are kept, and the texts that each model was trained on."""
    out = tmp_path_factory.mktemp("crossed")
    trained: dict[str, set[str]] = {}
    compute_loss = trainer.CartographyTrainer.compute_loss

    def watched(self, model, inputs, *args, **kwargs):
        texts = self.processing_class.batch_decode(inputs["input_ids"], skip_special_tokens=True)
        trained.setdefault(Path(self.args.output_dir).name.partition("-")[0], set()).update(texts)
        return compute_loss(self, model, inputs, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.CartographyTrainer, "compute_loss", watched)
        patch.setattr(run, "forget", lambda folds: None)
        call(*flags(reviews, out, "--cross_fit", FOLDS, "--mc_dropout", 5, "--do_eval"))
    return out, trained


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_example_is_there_once_in_the_order_of_the_data(crossed, reviews):
    rows, table = rows_of(reviews / "train.jsonl"), load_out_of_fold(crossed[0] / "c")
    assert list(table.index) == [row["id"] for row in rows]
    assert sorted(set(table["fold"])) == [1, 2, 3]
    for label in ("good", "bad"):
        counts = table["fold"][[row["id"] for row in rows if row["label"] == label]].value_counts()
        assert counts.max() - counts.min() <= 2


def test_no_model_was_trained_on_its_fold_and_each_on_all_the_others(crossed, reviews):
    rows, table = rows_of(reviews / "train.jsonl"), load_out_of_fold(crossed[0] / "c")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(crossed[0] / "m")
    texts = tokenizer.batch_decode(tokenizer([row["sentence"] for row in rows])["input_ids"], skip_special_tokens=True)
    assert len(set(texts)) == 46  # so the copies must share a fold
    for fold in range(1, FOLDS + 1):
        inside = {text for text, number in zip(texts, table["fold"], strict=True) if number == fold}
        assert crossed[1][f"fold{fold}"] == set(texts) - inside
        assert inside
    assert crossed[1]["m"] == set(texts)


def test_the_columns_are_those_of_the_map_by_the_same_formulas(crossed):
    out, table = crossed[0], load_out_of_fold(crossed[0] / "c")
    columns = list(read_table(out / "c/cartography_metrics.csv").columns)[1:]
    assert list(table.columns)[: len(columns) + 1] == ["fold", *columns]
    seen = 0
    for fold in (out / "m/folds").iterdir():
        epochs = list(read_dynamics(fold / "cartography_output"))
        assert len(epochs) == 3
        for place, example in enumerate(epochs[0]["id"]):
            p, right = ([epoch[name][place] for epoch in epochs] for name in ("confidence", "correct"))
            mean = sum(p) / 3
            slow = {
                "confidence": mean, "variability": (sum((each - mean) ** 2 for each in p) / 3) ** 0.5,
                "correctness": sum(right) / 3, "num_epochs": 3, "never_learned": not any(right),
                "forgetting_events": sum(right[e] and not right[e + 1] for e in (0, 1)),
                "aleatoric": sum(each * (1 - each) for each in p) / 3,
                **{name: sum(epoch[name][place] for epoch in epochs) / 3 for name in ("aum", "el2n", "loss")},
            }
            for name, value in slow.items():
                assert table.loc[example, name] == pytest.approx(value, abs=1e-9), name
            seen += 1
    assert seen == len(table)


def test_the_last_epoch_s_labels_and_probabilities_fit_the_dynamics(crossed, reviews):
    out, table = crossed[0], load_out_of_fold(crossed[0] / "c")
    labels = {row["id"]: row["label"] for row in rows_of(reviews / "train.jsonl")}
    probabilities = table[["probability_bad", "probability_good"]]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (table["predicted_label"] == np.where(probabilities["probability_bad"] > 0.5, "bad", "good")).all()
    for fold in (out / "m/folds").iterdir():
        *_, last = read_dynamics(fold / "cartography_output")
        for example, p, right in zip(last["id"], last["confidence"], last["correct"], strict=True):
            assert table.loc[example, f"probability_{labels[example]}"] == pytest.approx(p, abs=2e-6)
            assert (table.loc[example, "predicted_label"] == labels[example]) == right


def test_passes_with_dropout_differ_from_those_without(crossed, reviews):
    table = load_out_of_fold(crossed[0] / "c")
    gold = [table.loc[row["id"], f"probability_{row['label']}"] for row in rows_of(reviews / "train.jsonl")]
    difference = (table["dropout_confidence"] - gold).abs()
    assert 1e-4 < difference.mean() < 0.2
    assert ((table["dropout_entropy"] > 0) & (table["dropout_entropy"] <= np.log(2) + 1e-6)).all()


def test_what_the_mean_over_passes_says(reviews):
    """Two passes that are known: the mean confidence, and the entropy of the mean distribution."""
    logits = iter([torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])])
    fake: Any = SimpleNamespace(
        model=lambda **inputs: SimpleNamespace(logits=next(logits)), _model_inputs=lambda batch: {},
        compute_loss_context_manager=torch.no_grad,
    )
    [[confidence, entropy]] = held_out._dropout(fake, {"labels": torch.tensor([0])}, 2, "geometric").tolist()
    p = (1 / (1 + np.exp(-2)) + 1 / (1 + np.e)) / 2
    assert confidence == pytest.approx(p) and entropy == pytest.approx(-p * np.log(p) - (1 - p) * np.log(1 - p))


def test_the_training_itself_is_what_it_was(crossed, reviews, tmp_path):
    call(*flags(reviews, tmp_path))
    one, other = (read_table(out / "c/cartography_metrics.csv") for out in (crossed[0], tmp_path))
    pd.testing.assert_frame_equal(one, other)
    assert not (tmp_path / "c/out_of_fold.csv").exists() and not (tmp_path / "m/folds").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(crossed, reviews, tmp_path, monkeypatch, caplog):
    """In the third epoch of the second fold, then where the third is asked, then in the training of all."""
    epochs = iter(range(100))
    on_epoch_end = held_out.HeldOutCallback.on_epoch_end

    def killed(self, *args, **kwargs):
        if next(epochs) == FOLDS + 2:
            raise KeyboardInterrupt
        on_epoch_end(self, *args, **kwargs)

    command = flags(reviews, tmp_path, "--cross_fit", FOLDS, "--mc_dropout", 5)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(held_out.HeldOutCallback, "on_epoch_end", killed)
        call(*command)
    assert stopped.value.code == 130
    steps, training_step = [], trainer.CartographyTrainer.training_step

    def counted(self, *args, **kwargs):
        steps.append(Path(self.args.output_dir).name.partition("-")[0])
        if steps[-1] == "m" and len(steps) < 100:
            steps.extend([""] * 100)
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(trainer.CartographyTrainer, "training_step", counted)
    write_held_out, asked = held_out.write_held_out, []

    def killed_in_the_third(trainer, args, data):
        asked.append(args.fold)
        if asked == [2, 3]:
            raise KeyboardInterrupt
        write_held_out(trainer, args, data)

    monkeypatch.setattr(held_out, "write_held_out", killed_in_the_third)
    for _ in range(2):
        with pytest.raises(SystemExit):
            call(*command)
    assert asked == [2, 3, 3]
    assert "fold1" not in steps and steps.count("fold3") == 3 * steps.count("fold2")
    caplog.clear()
    with caplog.at_level("INFO"):
        call(*command)
    assert [caplog.text.count(f"fold {fold} of 3: was trained before") for fold in (1, 2, 3)] == [1, 1, 1]
    assert not (tmp_path / "m/folds").exists()
    pd.testing.assert_frame_equal(load_out_of_fold(tmp_path / "c"), load_out_of_fold(crossed[0] / "c"))


def test_folds_of_other_settings_are_not_lost_unasked(refused, reviews, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(run, "build_trainer", lambda *args: (_ for _ in ()).throw(RuntimeError))
        call(*flags(reviews, tmp_path, "--cross_fit", 2, "--num_train_epochs", 1))
    other = flags(reviews, tmp_path, "--cross_fit", 2, "--num_train_epochs", 1, "--learning_rate", 1e-3)
    told = refused(run.main, *other)
    assert "holds folds of an unfinished run with other settings" in told and "--overwrite" in told
    call(*other, "--overwrite")
    assert len(load_out_of_fold(tmp_path / "c")) == 48


def test_a_fold_that_fails_says_why_and_where(refused, reviews, tmp_path):
    told = refused(run.main, *flags(reviews, tmp_path, "--cross_fit", 2, "--mc_dropout", 3, "--dropout", 0))
    assert "fold 1 is failed" in told and "--mc_dropout 3: this model has no dropout" in told and "log.txt" in told
    assert not (tmp_path / "m/run_meta.json").exists()
    # What failed at once is in nobody's way.
    call(*flags(reviews, tmp_path, "--cross_fit", 2, "--dropout", 0, "--num_train_epochs", 1))


# --- questions ----------------------------------------------------------------------------------------------------


def questions(dataset, model, out, *extra):
    return ["--do_train", "--enable_cartography", "--no_cuda", "--model", model, "--dataset", dataset, "--max_length",
            "48", "--doc_stride", "20", "--num_train_epochs", "3", "--output_dir", out / "m",
            "--cartography_output_dir", out / "c", *extra]


def slow_margins(qa_dir, tiny_model):
    """Every span of every window that holds the answer, one by one: id -> margin."""
    from datamap.core.splits import load_split
    from datamap.tasks.registry import get_task
    from datamap.training.models import load_pretrained

    split = load_split(str(qa_dir), "train", get_task("qa"))
    model, tokenizer = load_pretrained(str(tiny_model), split.task.model_class, "a model")
    found: dict[str, list[float]] = {}
    for row in split.task.features(split.data, tokenizer, 48, 20):
        if not row["counts"]:
            continue
        with torch.no_grad():
            outputs = model(**{name: torch.tensor([row[name]]) for name in tokenizer.model_input_names if name in row})
        start, end = outputs.start_logits[0].tolist(), outputs.end_logits[0].tolist()
        gold = (row["start_positions"], row["end_positions"])
        inside = [place for place, role in enumerate(row["token_roles"]) if role == 2]
        others = [start[s] + end[e] for s in inside for e in inside if s <= e and (s, e) != gold]
        found.setdefault(split.ids[row["example_index"]], []).append(start[gold[0]] + end[gold[1]] - max(others))
    assert any(len(margins) > 1 for margins in found.values())
    return {example: sum(margins) / len(margins) for example, margins in found.items()}


def test_learning_rate_0_gives_the_map_of_the_untrained_model(qa_dir, tiny_model, tmp_path):
    """Every fold's model is then the one that is mapped (test_recorder.py checks that map the slow way)."""
    call(*questions(qa_dir, tiny_model, tmp_path, "--cross_fit", 2, "--learning_rate", 0))
    of_all = read_table(tmp_path / "c/cartography_metrics.csv").set_index("id")
    table = load_out_of_fold(tmp_path / "c")
    assert set(of_all.index) == set(table.index) and len(table) > 15
    numbers = [name for name in of_all.columns if name != "never_learned"]
    np.testing.assert_allclose(table[numbers], of_all.loc[table.index, numbers], atol=1e-5)
    assert table["variability"].max() < 1e-5 and table["confidence"].std() > 0.003
    margins = slow_margins(qa_dir, tiny_model)
    np.testing.assert_allclose(table["span_margin"], [margins[example] for example in table.index], atol=1e-4)
    contexts = {row["id"]: row["context"] for row in rows_of(qa_dir / "train.jsonl")}
    assert all(answer in contexts[example] for example, answer in table["predicted_answer"].items())


def test_no_answer_is_one_of_the_others_where_some_questions_have_none():
    outputs = torch.nn.Module()
    outputs.start_logits = torch.tensor([[5.0, 1.0, 2.0, -1.0], [5.0, 1.0, 2.0, -1.0], [0.0, 0.0, 9.0, 0.0]])
    outputs.end_logits = torch.tensor([[1.0, 0.0, 3.0, 0.0], [1.0, 0.0, 3.0, 0.0], [0.0, 0.0, 9.0, 0.0]])
    roles = torch.tensor([[3, 2, 2, 0], [3, 2, 2, 0], [3, 1, 2, 0]])
    gold = torch.tensor([2, 0, 2])
    batch = {"token_roles": roles, "start_positions": gold, "end_positions": gold}
    assert held_out.span_margins(outputs, batch, has_unanswerable=True).tolist() == [5 - 6, 6 - 5, 18 - 0]
    without = held_out.span_margins(outputs, batch, has_unanswerable=False).tolist()
    assert without[0] == 5 - 4 and np.isnan(without[2])  # the one span that there is


@pytest.mark.slow
def test_as_many_folds_as_questions_in_two_processes(tiny_model, tmp_path):
    rows = qa_rows(3, seed=4)
    rows[1]["answers"] = {"text": [], "answer_start": []}
    file = write_rows(tmp_path / "three.jsonl", rows)
    call(*questions(file, tiny_model, tmp_path, "--cross_fit", 3, "--cross_fit_workers", 2))
    table = load_out_of_fold(tmp_path / "c")
    assert list(table.index) == [row["id"] for row in rows] and sorted(table["fold"]) == [1, 2, 3]
    assert np.isfinite(table["span_margin"]).all()


# --- a head alone -------------------------------------------------------------------------------------------------


def test_a_head_writes_the_same_file(reviews, tmp_path, caplog):
    call(*flags(reviews, tmp_path, "--cross_fit_head"))
    assert "--cross_fit_head: lstm is trained from scratch" in caplog.text
    table = load_out_of_fold(tmp_path / "c")
    assert list(table.index) == [row["id"] for row in rows_of(reviews / "train.jsonl")]
    assert sorted(set(table["fold"])) == [1, 2, 3, 4, 5]
    assert {"aum", "el2n", "loss", "predicted_label", "probability_bad", "probability_good"} <= set(table.columns)
    assert "variability" not in table
    call(*flags(reviews, tmp_path, "--overwrite"))
    assert not (tmp_path / "c/out_of_fold.csv").exists()  # it was of another run


def test_a_head_reads_the_untrained_model(reviews, tmp_path):
    call(*flags(reviews, tmp_path / "a", "--cross_fit_head", "--learning_rate", 0))
    call(*flags(reviews, tmp_path / "b", "--cross_fit_head", "--learning_rate", 1e-2))
    assert (tmp_path / "a/c/out_of_fold.csv").read_bytes() == (tmp_path / "b/c/out_of_fold.csv").read_bytes()


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("extra", "words"), [
    (["--cross_fit", "1"], "expected at least 2 folds"),
    (["--cross_fit", "3", "--cross_fit_head"], "exclude each other"),
    (["--cross_fit", "40"], "examples of class 'bad' (equal texts counted once) for 40 folds"),
    (["--mc_dropout", "3"], "--mc_dropout does nothing without --cross_fit"),
    (["--cross_fit_workers", "3"], "--cross_fit_workers does nothing without --cross_fit"),
    (["--cross_fit", "3", "--fold", "4"], "--fold is one of the folds"),
    (["--cross_fit", "3", "--enable_cartography", "false"], "--cross_fit does nothing without --enable_cartography"),
    (["--cross_fit", "3", "--lr_scheduler_type", "reduce_lr_on_plateau"], "exclude each other"),
])
def test_refuses_what_cannot_be_done(refused, reviews, tmp_path, extra, words):
    assert words in refused(run.main, *flags(reviews, tmp_path, *extra))
    assert not (tmp_path / "m").exists()


def test_a_head_is_not_for_questions(refused, qa_dir, tiny_model, tmp_path):
    told = refused(run.main, *questions(qa_dir, tiny_model, tmp_path, "--cross_fit_head"))
    assert "--cross_fit_head is for labels" in told


def test_refuses_several_processes_of_one_training(refused, reviews, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "is for one process, this is one of 2" in refused(run.main, *flags(reviews, tmp_path, "--cross_fit", "3"))
