"""Off a terminal a training says how far it is, by itself."""

import logging
import re

import pytest

import run
from datamap.core import progress
from datamap.core.splits import load_split
from datamap.tasks import base
from datamap.tasks.registry import get_task
from datamap.training.models import load_tokenizer
from datamap.training.trainer import CartographyTrainer


def test_step_loss_and_pace_come_in_lines(qa_dir, tiny_model, tmp_path, monkeypatch, caplog, one_thread):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    caplog.set_level(logging.INFO)
    predict = CartographyTrainer.prediction_step
    monkeypatch.setattr(CartographyTrainer, "prediction_step",  # long enough to be told of
                        lambda *args, **kwargs: (progress._ended.wait(0.1), predict(*args, **kwargs))[1])
    run.main(["--do_train", "--do_eval", "--model", str(tiny_model), "--dataset", str(qa_dir), "--max_length", "96",
              "--doc_stride", "24", "--num_train_epochs", "3", "--per_device_train_batch_size", "8", "--no_cuda",
              "--output_dir", str(tmp_path / "model")])
    trained = r"training: \d of 9 steps, loss \d\.\d+, [\d.]+ examples/s, \d+ s left"
    assert any(re.fullmatch(trained, line) for line in caplog.messages), caplog.messages
    assert any(re.fullmatch(r"evaluating: \d of \d batches, [\d.]+ examples/s, \d+ s left", line)
               for line in caplog.messages), caplog.messages
    assert progress.underway() == ""


@pytest.mark.parametrize("task, directory", [("qa", "qa_dir"), ("classification", "reviews")])
def test_so_does_what_comes_before_it(task, directory, tiny_model, request, monkeypatch, caplog):
    split = load_split(str(request.getfixturevalue(directory)), "train", get_task(task))
    tokenizer = load_tokenizer(str(tiny_model))
    whole = split.task.features(split.data, tokenizer, 96, 24)
    monkeypatch.setattr(progress, "EVERY", 0.01)
    monkeypatch.setattr(base, "TEXTS_AT_ONCE", 7)
    advance = progress.Progress.advance

    def slowly(self, count=1):
        advance(self, count)
        progress._ended.wait(0.2)

    monkeypatch.setattr(progress.Progress, "advance", slowly)
    caplog.set_level(logging.INFO)
    again = split.task.features(split.data, tokenizer, 96, 24)
    told = rf"tokenising: \d+ of {len(split.data)} examples, \d+ s left"
    assert any(re.fullmatch(told, line) for line in caplog.messages), caplog.messages
    assert again.to_dict() == whole.to_dict() and len(again) >= len(split.data)
