"""Batches of a fine-tuning: what a made-up memory holds, and that what is learnt does not depend on it."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from made_gpu_errors import USED_UP
from safetensors.torch import load_file
from tiny_mistral import chain_rows, save_model, toy_tokenizer, write_chains
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer

import train_sft
from datamap.core.errors import UserError
from datamap.thoughts import batches, sft_arguments
from datamap.thoughts.batches import GroupedInSteps, choose

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("mistral"), toy_tokenizer(vocab_size=300))


@pytest.fixture(scope="module")
def thoughts(tmp_path_factory):
    directory = write_chains(tmp_path_factory.mktemp("thoughts"), chain_rows(21, seed=4, long=(3, 9)))
    (directory / "short.txt").write_text("Premise: $premise\nHypothesis: $hypothesis\n")
    return directory


def arguments(thoughts, model, out, *extra):
    return [str(argument) for argument in (
        "--thoughts", thoughts, "--reflections", thoughts, "--prompt_file", thoughts / "short.txt", "--model", model,
        "--quantization", "none", "--no_cuda", "--effective_batch_size", "8", "--num_train_epochs", "1",
        "--learning_rate", "2e-3", "--warmup_steps", "1", "--logging_steps", "1", "--eval_fraction", "0",
        "--output_dir", out, *extra,
    )]


def logged(out, *columns):
    with (out / "training_log.csv").open(newline="") as file:
        return np.array([[float(row[column]) for column in columns] for row in csv.DictReader(file) if row["loss"]])


# --- which rows ------------------------------------------------------------------------------------------------------


def padding(order, lengths, size):
    """Tokens of padding where so many rows are taken at once."""
    cut = [lengths[order[first : first + size]] for first in range(0, len(order), size)]
    return sum(len(rows) * rows.max() - rows.sum() for rows in cut)


def test_a_step_has_the_rows_of_a_shuffle_in_the_order_of_their_lengths():
    lengths = np.random.default_rng(0).lognormal(4, 0.5, 203).astype(int)
    sampler = GroupedInSteps(lengths, 16, seed=3)
    assert len(sampler) == 203
    orders = []
    for epoch in (0, 1, 0):
        sampler.epoch = epoch
        torch.manual_seed(epoch)  # of no matter
        orders.append(np.array(list(sampler)))
        assert sorted(orders[-1]) == list(range(203))
    assert orders[0].tolist() == orders[2].tolist() != orders[1].tolist()
    plain = np.random.default_rng((3, 0)).permutation(203)
    for first in range(0, 203, 16):
        step = orders[0][first : first + 16]
        assert set(step) == set(plain[first : first + 16])
        assert (np.diff(lengths[step]) <= 0).all()
    assert padding(orders[0], lengths, 4) < padding(plain, lengths, 4) / 2
    assert list(GroupedInSteps(lengths, 16, seed=4)) != orders[0].tolist()


# --- how many --------------------------------------------------------------------------------------------------------


def memory(rows):
    """A made-up memory of so many rows, or four times as many with checkpointing; and what was asked of it."""
    asked = []

    def fits(size, checkpointing):
        asked.append((size, checkpointing))
        return size <= rows * (4 if checkpointing else 1)

    return fits, asked


@pytest.mark.parametrize("rows, share, tokens, expected", [
    (100, 64, 100, (64, False)),  # the whole step
    (63, 64, 100, (32, False)),  # enough to do with 3,200 tokens
    (20, 64, 100, (64, True)),  # 1,600 tokens are too few
    (10, 64, 100, (32, True)),
    (1, 64, 100, (4, True)),
    (0.25, 64, 100, (1, True)),
    (3, 64, 4000, (2, False)),
    (100, 64, 4000, (8, False)),  # more than 16,384 tokens bring nothing
    (1, 1, 100, (1, False)),
    (7, 12, 100, (12, True)),
    (2, 12, 100, (6, True)),  # 8 rows, and 6 is a divisor
    (2, 7, 100, (7, True)),
    (1, 7, 100, (1, False)),  # checkpointing would hold 4, which is none
])
def test_the_choice_is_the_most_that_a_made_up_memory_holds(rows, share, tokens, expected):
    fits, asked = memory(rows)
    assert choose(fits, share, [tokens] * 200) == expected
    assert fits(*expected) and share % expected[0] == 0
    assert len(asked) == len(set(asked)) + 1  # nothing is tried twice but by this test


def test_the_longest_rows_count_and_checkpointing_can_be_forbidden():
    fits, _ = memory(20)
    assert choose(fits, 64, [10] * 184 + [200] * 16) == (16, False)
    assert choose(fits, 64, [10] * 200) == (64, True)
    assert choose(fits, 64, [10] * 200, may_checkpoint=False) == (16, False)
    fits, _ = memory(0.2)
    with pytest.raises(UserError, match="no room for one row at a time: lower --max_length, take a smaller --model, "
                                        "or give --quantization 4bit$"):
        choose(fits, 64, [10] * 200)
    fits, _ = memory(0.5)
    with pytest.raises(UserError, match="4bit and --gradient_checkpointing$"):
        choose(fits, 64, [10] * 200, may_checkpoint=False)


@pytest.fixture
def small_memory(monkeypatch):
    """Layers that hold so many rows, twice as many with checkpointing; and how often they had no room."""
    original, refusals, limit = MistralDecoderLayer.forward, [], {"rows": 2}

    def forward(self, hidden_states, *args, **kwargs):
        rows = hidden_states.shape[0]
        if rows > limit["rows"] * (2 if self.gradient_checkpointing else 1) and self.training:
            refusals.append(rows)
            raise USED_UP[len(refusals) % len(USED_UP)]
        return original(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(MistralDecoderLayer, "forward", forward)
    monkeypatch.setattr(batches, "tries", lambda device: True)
    return limit, refusals


@pytest.mark.parametrize("rows, few_tokens, expected, refused_rows", [
    (4, 200, (4, False), [8]), pytest.param(2, 2048, (4, True), [8, 4, 8], marks=pytest.mark.slow),
])
def test_auto_is_the_same_training_as_with_what_it_chose(
    thoughts, model_dir, tmp_path, monkeypatch, caplog, small_memory, rows, few_tokens, expected, refused_rows
):
    """Bit for bit, with dropout: what was tried leaves no trace. It is said, recorded, and resumed with."""
    limit, refusals = small_memory
    limit["rows"] = rows
    monkeypatch.setattr(batches, "FEW_TOKENS", few_tokens)
    auto = ("--per_device_train_batch_size", "auto", "--lora_dropout", "0.2")
    with caplog.at_level("INFO"):
        train_sft.main(arguments(thoughts, model_dir, tmp_path / "auto", *auto))
    assert refusals == refused_rows  # and none while it trained
    size, checkpointing = expected
    assert (f"auto: {size} rows at once x 1 processes x {8 // size} accumulated, "
            f"{'with' if checkpointing else 'without'} gradient checkpointing") in caplog.text
    meta = json.loads((tmp_path / "auto/run_meta.json").read_text())["arguments"]
    assert (meta["per_device_train_batch_size"], meta["gradient_checkpointing"]) == expected
    assert meta["gradient_accumulation_steps"] == 8 // size and meta["effective_batch_size"] == 8
    train_sft.main(arguments(thoughts, model_dir, tmp_path / "given", "--lora_dropout", "0.2",
                             "--per_device_train_batch_size", size, f"--gradient_checkpointing={checkpointing}"))
    columns = ("step", "loss", "grad_norm", "num_tokens", "entropy")
    np.testing.assert_array_equal(*(logged(tmp_path / name, *columns) for name in ("auto", "given")))
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("auto", "given"))
    assert all(torch.equal(one[name], other[name]) for name in one)

    limit["rows"] = 100  # a larger machine, but the same training
    train_sft.main(arguments(thoughts, model_dir, tmp_path / "auto", *auto, "--num_train_epochs", "2",
                             "--resume_from_checkpoint"))
    again = json.loads((tmp_path / "auto/run_meta.json").read_text())["arguments"]
    assert [again[name] for name in ("per_device_train_batch_size", "gradient_checkpointing")] == [*expected]


OF_TWO = """
import os, sys
import torch
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
import train_sft
from datamap.thoughts import batches

original = MistralDecoderLayer.forward

def forward(self, hidden_states, *args, **kwargs):
    if self.training and len(hidden_states) > (4, 2)[int(os.environ["RANK"])]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GB")
    return original(self, hidden_states, *args, **kwargs)

MistralDecoderLayer.forward, batches.tries, batches.FEW_TOKENS = forward, lambda device: True, 1
train_sft.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_two_processes_take_what_both_hold(thoughts, model_dir, tmp_path):
    (tmp_path / "two.py").write_text(OF_TWO)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(tmp_path / "two.py"), *arguments(thoughts, model_dir, tmp_path / "out", "--per_device_train_batch_size",
                                              "auto", "--lora_dropout", "0")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "auto: 2 rows at once x 2 processes x 2 accumulated, without gradient checkpointing" in done.stderr
    train_sft.main(arguments(thoughts, model_dir, tmp_path / "one", "--per_device_train_batch_size", "8",
                             "--lora_dropout", "0"))
    found, expected = (logged(tmp_path / name, "step", "loss", "num_tokens") for name in ("out", "one"))
    np.testing.assert_allclose(found[:2], expected[:2], rtol=2e-5)  # the last step repeats rows to fill its batches


def test_one_row_that_has_no_room_ends_in_one_line(thoughts, model_dir, tmp_path, refused, small_memory):
    small_memory[0]["rows"] = 0
    told = refused(train_sft.main, *arguments(thoughts, model_dir, tmp_path / "out",
                                              "--per_device_train_batch_size", "auto"))
    assert "no room for one row at a time" in told and not (tmp_path / "out").exists()


def test_a_batch_that_has_no_room_ends_in_one_line(thoughts, model_dir, tmp_path, refused, small_memory):
    told = refused(train_sft.main, *arguments(thoughts, model_dir, tmp_path / "out", "--eval_generate_steps", "0",
                                              "--per_device_train_batch_size", "8"))
    assert "the GPU has no room for 8 rows at once: give --per_device_train_batch_size auto" in told
    assert json.loads((tmp_path / "out/run_meta.json").read_text())["status"] == "failed"


def test_on_a_cpu_nothing_is_tried(thoughts, model_dir, tmp_path, caplog):
    with caplog.at_level("INFO"):
        train_sft.main(arguments(thoughts, model_dir, tmp_path / "out", "--per_device_train_batch_size", "auto",
                                 "--max_steps", "1"))
    assert "auto: 4 rows at once x 1 processes x 2 accumulated, with gradient checkpointing, on a CPU" in caplog.text


def test_flags_that_contradict_auto(refused, monkeypatch):
    base = ["--thoughts", "t", "--per_device_train_batch_size", "auto"]
    assert sft_arguments.parse_args(base).effective_batch_size == 64
    assert "exclude each other" in refused(sft_arguments.parse_args, *base, "--gradient_accumulation_steps", "2")
    assert "expected" in refused(sft_arguments.parse_args, *base[:-1], "most")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "no multiple of the 3 processes" in refused(sft_arguments.parse_args, *base)


# --- what is learnt --------------------------------------------------------------------------------------------------


def test_losses_do_not_depend_on_how_many_rows_are_taken_at_once(thoughts, model_dir, tmp_path):
    """To rounding; gradients too, and the tokens that are counted. Rows are of very different lengths."""
    found = {}
    for size in (1, 2, 8):
        train_sft.main(arguments(thoughts, model_dir, tmp_path / str(size), "--lora_dropout", "0",
                                 "--per_device_train_batch_size", size, f"--gradient_checkpointing={size != 2}"))
        found[size] = logged(tmp_path / str(size), "step", "loss", "grad_norm", "num_tokens")
    assert len(found[1]) == 3 and np.ptp(found[1][:, 1]) > 0.1
    for size in (2, 8):
        np.testing.assert_allclose(found[size], found[1], rtol=2e-5)
