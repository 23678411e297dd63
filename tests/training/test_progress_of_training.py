"""Off a terminal a training says how far it is, by itself."""

import logging
import re

import run
from datamap.core import progress
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
