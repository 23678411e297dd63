"""What only a card can show: learning rate 0, a resume, bf16, waits that are counted by CUDA itself, CUDA graphs.

Skipped without one: pytest -m gpu tests/training/test_training_on_a_gpu.py"""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

import run
from datamap.cartography.metrics import load_cartography_metrics
from datamap.core.files import read_json
from datamap.training.trainer import CartographyTrainer

pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: there is none here")]
GRAPHS = ("--torch_compile", "--torch_compile_backend", "cudagraphs")
COLUMNS = ["confidence", "start_confidence", "end_confidence", "loss", "aum", "el2n"]


def arguments(qa_dir, model, out, *extra):
    return [str(each) for each in (
        "--do_train", "--enable_cartography", "--model", model, "--dataset", qa_dir, "--max_length", "48",
        "--doc_stride", "20", "--num_train_epochs", "3", "--per_device_train_batch_size", "5",
        "--output_dir", out / "model", "--cartography_output_dir", out / "map", *extra)]


def recorded(out):
    return load_cartography_metrics(out / "map").sort_index()


def test_learning_rate_0_records_on_a_card_what_a_cpu_records(qa_dir, tiny_model, tmp_path):
    """Several windows; in float32 as on the CPU to rounding, in bf16, which is what a card chooses, about."""
    run.main(arguments(qa_dir, tiny_model, tmp_path / "cpu", "--learning_rate", "0", "--no_cuda"))
    run.main(arguments(qa_dir, tiny_model, tmp_path / "float32", "--learning_rate", "0", "--bf16", "false"))
    run.main(arguments(qa_dir, tiny_model, tmp_path / "bf16", "--learning_rate", "0"))
    expected = recorded(tmp_path / "cpu")
    for name, tolerance in (("float32", 1e-3), ("bf16", 0.1)):
        found = recorded(tmp_path / name)
        np.testing.assert_allclose(found[COLUMNS], expected.loc[found.index, COLUMNS], rtol=tolerance, atol=tolerance)
        assert found["variability"].max() < tolerance
    chosen = read_json(tmp_path / "bf16/model/run_meta.json")["arguments"]["on_gpu"]
    assert chosen["bf16"] is torch.cuda.is_bf16_supported(including_emulation=False)


def test_a_resume_in_mid_epoch_goes_on_as_it_began(qa_dir, tiny_model, tmp_path, monkeypatch):
    extra = ("--learning_rate", "1e-3", "--save_steps", "3", "--bf16", "false")
    run.main(arguments(qa_dir, tiny_model, tmp_path / "whole", *extra))

    class Cut(BaseException):
        pass

    step, seen = CartographyTrainer.training_step, []

    def training_step(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == 9:
            raise Cut
        return step(self, *args, **kwargs)

    monkeypatch.setattr(CartographyTrainer, "training_step", training_step)
    with pytest.raises(Cut):
        run.main(arguments(qa_dir, tiny_model, tmp_path / "cut", *extra))
    monkeypatch.undo()
    run.main([*arguments(qa_dir, tiny_model, tmp_path / "cut", *extra), "--resume_from_checkpoint"])
    found, expected = recorded(tmp_path / "cut"), recorded(tmp_path / "whole")
    np.testing.assert_allclose(found[COLUMNS], expected[COLUMNS], rtol=1e-3, atol=1e-3)
    assert expected["variability"].max() > 1e-3  # it did train


class Waits(TrainerCallback):
    """Synchronizing operations from the end of the fourth step to that of the eighth, as CUDA tells them."""

    def __init__(self):
        self.steps, self.found = 0, []

    def on_step_end(self, *args, **kwargs):
        self.steps += 1
        if self.steps == 4:
            torch.cuda.synchronize()
            self.block = warnings.catch_warnings(record=True)
            self.caught = self.block.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        elif self.steps == 8:
            torch.cuda.set_sync_debug_mode("default")
            self.block.__exit__(None, None, None)
            self.found = [str(each.message) for each in self.caught if "synchroniz" in str(each.message)]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_waits_once_at_most(qa_dir, tiny_model, tmp_path, monkeypatch, compiled):
    """Recording on; a first epoch in which every length is compiled is not counted."""
    waits = Waits()
    build_trainer = run.build_trainer

    def build(*args, **kwargs):
        trainer = build_trainer(*args, **kwargs)
        trainer.add_callback(waits)
        return trainer

    monkeypatch.setattr(run, "build_trainer", build)
    if compiled:
        waits.steps = -30
    run.main(arguments(qa_dir, tiny_model, tmp_path, "--logging_strategy", "no", "--save_strategy", "no",
                       *([*GRAPHS, "--num_train_epochs", "6"] if compiled else [])))
    assert waits.steps >= 8
    assert len(waits.found) <= 4, waits.found  # of four steps


@pytest.mark.parametrize("flags", [GRAPHS, ("--torch_compile",)])
def test_compiled_steps_give_the_same_losses_and_dynamics(qa_dir, tiny_model, tmp_path, monkeypatch, flags):
    """CUDA graphs of a few lengths, of the kernels as they are and of compiled ones; the model has no dropout."""
    step = CartographyTrainer.training_step

    def losses_of(out, *extra):
        losses = []

        def training_step(self, *args, **kwargs):
            loss = step(self, *args, **kwargs)
            losses.append(float(loss))
            return loss

        with monkeypatch.context() as patch:
            patch.setattr(CartographyTrainer, "training_step", training_step)
            run.main(arguments(qa_dir, tiny_model, out, "--learning_rate", "1e-3", "--bf16", "false", *extra))
        return SimpleNamespace(losses=losses, map=recorded(out))

    plain = losses_of(tmp_path / "plain")
    compiled = losses_of(tmp_path / "compiled", *flags)
    np.testing.assert_allclose(compiled.losses, plain.losses, rtol=5e-3)
    np.testing.assert_allclose(compiled.map[COLUMNS], plain.map[COLUMNS], rtol=2e-2, atol=5e-3)
    assert read_json(tmp_path / "compiled/model/run_meta.json")["arguments"]["on_gpu"]["lengths"]
