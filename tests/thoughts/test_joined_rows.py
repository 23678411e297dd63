"""What is recorded of packed and of padding-free rows equals what is recorded of single ones."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from tiny_mistral import chain_rows, save_model, toy_tokenizer, write_chains
from transformers import AutoModelForCausalLM, AutoTokenizer, masking_utils
from trl import SFTConfig, SFTTrainer

import train_sft
from datamap.cartography.joined import joined_statistics, packed_rows, row_starts, sees_rows_apart
from datamap.cartography.metrics import load_cartography_metrics
from datamap.cartography.recorder import CartographyCallback, completion_statistics
from datamap.core.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")
LONG = (3, 9, 10)  # these rows are cut before their label
COLUMNS = ["confidence", "loss", "label_confidence", "correctness", "num_epochs"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("mistral"), toy_tokenizer(vocab_size=300))


@pytest.fixture(scope="module")
def thoughts(tmp_path_factory):
    directory = write_chains(tmp_path_factory.mktemp("thoughts"), chain_rows(23, seed=4, long=LONG))
    (directory / "short.txt").write_text("Premise: $premise\nHypothesis: $hypothesis\n")
    return directory


def check_close(found, expected):
    """To a millionth, and where numbers are small to a few millionths of them."""
    np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), rtol=5e-6, atol=1e-7)


# --- a whole training ------------------------------------------------------------------------------------------------


def arguments(thoughts, model_dir, out, *extra):
    return [str(argument) for argument in (
        "--thoughts", thoughts, "--reflections", thoughts, "--prompt_file", thoughts / "short.txt", "--model",
        model_dir, "--quantization", "none", "--no_cuda", "--lora_dropout", "0", "--max_length", "130",
        "--learning_rate", "0", "--eval_fraction", "0", "--warmup_steps", "1", "--enable_cartography", "--output_dir",
        out / "model", "--cartography_output_dir", out / "map", *extra)]


def call(*given):
    train_sft.main(arguments(*given))
    out = given[2]
    return load_cartography_metrics(out / "map").sort_index()[COLUMNS]


@pytest.fixture(scope="module")
def single(thoughts, model_dir, tmp_path_factory):
    """Each row in a batch of its own."""
    return call(thoughts, model_dir, tmp_path_factory.mktemp("single"), "--per_device_train_batch_size", "1",
                "--effective_batch_size", "4")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_are_recorded_as_single_ones(single, thoughts, model_dir, tmp_path, attention):
    """Several packed rows in a batch, accumulated, with rows cut before their label."""
    found = call(thoughts, model_dir, tmp_path, "--packing", "--attn_implementation", attention, "--max_length", "400",
                 "--per_device_train_batch_size", "2", "--effective_batch_size", "4")
    assert len(found) == 23  # none is cut at 400 tokens
    both = found.loc[single.index]
    assert list(both.index) == list(single.index) and 15 <= len(single) < 23
    uncut = [row for row in single.index if row not in {f"pair-{number:03d}" for number in LONG}]
    check_close(both.loc[uncut], single.loc[uncut])
    assert single["loss"].std() > 0.05 and single["label_confidence"].std() > 1e-6


def test_rows_that_are_cut_and_packed(single, thoughts, model_dir, tmp_path):
    found = call(thoughts, model_dir, tmp_path, "--packing", "--per_device_train_batch_size", "4",
                 "--effective_batch_size", "4")
    assert list(found.index) == list(single.index)
    check_close(found, single)


def test_a_model_that_does_not_see_packed_rows_apart_is_refused(thoughts, model_dir, tmp_path, refused, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    assert sees_rows_apart(model)
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    assert not sees_rows_apart(model)
    told = refused(train_sft.main, *arguments(thoughts, model_dir, tmp_path, "--packing"))
    assert "--packing: this model reads rows that are packed behind one another as one text" in told
    assert not (tmp_path / "model").exists()


# --- any trainer of TRL ----------------------------------------------------------------------------------------------


def sft(model_dir, out, data, **settings):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.pad_token = tokenizer.unk_token
    config = SFTConfig(
        output_dir=str(out), num_train_epochs=2, learning_rate=0.0, use_cpu=True, bf16=False, save_strategy="no",
        disable_tqdm=True, completion_only_loss=True, report_to="none", **settings)
    return SFTTrainer(model=AutoModelForCausalLM.from_pretrained(model_dir), args=config, processing_class=tokenizer,
                      train_dataset=data)


def recorded(trainer, out):
    CartographyCallback([f"t{row:02d}" for row in range(11)], out).attach(trainer)
    trainer.train()
    return load_cartography_metrics(out).sort_index()[["confidence", "loss", "correctness", "variability"]]


def test_padding_free_batches_are_recorded_as_single_rows(model_dir, tmp_path):
    data = datasets.Dataset.from_list(
        [{"prompt": row["premise"] * (number % 3 + 1), "completion": " " + row["hypothesis"]}
         for number, row in enumerate(chain_rows(11))])
    one = recorded(sft(model_dir, tmp_path, data, per_device_train_batch_size=1), tmp_path / "one")
    for name, settings in (("free", {}), ("padded", {"pad_to_multiple_of": 16})):
        found = recorded(sft(model_dir, tmp_path, data, per_device_train_batch_size=4, padding_free=True,
                             max_length=None, **settings), tmp_path / name)
        check_close(found, one)
    assert one["confidence"].std() > 1e-4 and len(one) == 11


@pytest.mark.parametrize("index, told", [
    (None, "without saying which: use padding_free, or give the packed dataset a column row_index"),
    (lambda number: number, "without saying which"),
    (lambda number: [number], "does not hold each number from 0 to 10 once"),
])
def test_packed_rows_of_others_must_say_which_they_are(model_dir, tmp_path, index, told):
    data = datasets.Dataset.from_list([{"prompt": row["premise"], "completion": " so."} for row in chain_rows(11)])
    trainer = sft(model_dir, tmp_path, data, packing=True, max_length=60)
    packed = trainer.train_dataset
    assert 1 < len(packed) < 11 and [len(each) for each in packed["seq_lengths"]] != [1] * len(packed)
    if index:
        trainer.train_dataset = packed.add_column("row_index", [index(number) for number in range(len(packed))])
    with pytest.raises(UserError, match=told):
        CartographyCallback([f"t{row}" for row in range(11)], tmp_path / "map").attach(trainer)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_statistics_of_joined_rows_equal_those_of_each_alone():
    rng = np.random.default_rng(0)
    for trial in range(20):
        lengths = rng.integers(2, 9, rng.integers(2, 6)).tolist()
        padding, tokens = int(rng.integers(0, 3)), sum(lengths)
        starts = np.cumsum([0, *lengths[:-1]])
        mask = np.zeros(tokens + padding, dtype=bool)
        for start, length in zip(starts, lengths, strict=True):
            mask[start + rng.integers(1, length) : start + length] = True
        log_p, top = -rng.exponential(1, tokens + padding), rng.random(tokens + padding) < 0.8
        label = np.array([rng.integers(1, length) for length in lengths])
        whole = outputs(mask, log_p, top, slice(1, None))
        for labels in (None, torch.from_numpy(label)):
            found = joined_statistics(whole, torch.from_numpy(starts), labels)
            for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
                alone = outputs(mask, log_p, top, slice(start + 1, start + length))
                one = completion_statistics(alone, None if labels is None else labels[row : row + 1])
                torch.testing.assert_close(found[row : row + 1], one, msg=f"trial {trial}, row {row}")


def outputs(mask, log_p, top, part):
    return SimpleNamespace(log_probs=torch.tensor(log_p[part], dtype=torch.float32)[None],
                           label_mask=torch.tensor(mask[part])[None], is_top1=torch.tensor(top[part])[None])


def test_where_rows_begin():
    def batch(*positions):
        return {"input_ids": torch.zeros(1, len(positions)), "position_ids": torch.tensor([positions])}

    assert row_starts(batch(0, 1, 2, 0, 0, 1), 3).tolist() == [0, 3, 4]
    assert row_starts(batch(0, 1, 2, 0, 1, 0, 0), 2).tolist() == [0, 3]  # padding behind them
    for positions, rows in (((0, 1, 2, 3), 2), ((0, 1, 0, 1, 0, 1), 2), ((1, 2, 0, 1), 2)):
        with pytest.raises(UserError, match="cannot be told apart"):
            row_starts(batch(*positions), rows)
    with pytest.raises(UserError, match="joins 4 rows into 2 without position_ids"):
        row_starts({"input_ids": torch.zeros(2, 5)}, 4)


def test_which_rows_are_packed():
    rows = [[1, 2], [3], [1, 2], [4, 5, 6]]
    assert packed_rows([[4, 5, 6, 3], [1, 2, 1, 2]], [[3, 1], [2, 2]], rows) == [[3, 1], [0, 2]]
    for packed, lengths in (([[4, 5, 6, 3], [1, 2, 2, 1]], [[3, 1], [2, 2]]), ([[4, 5, 6, 3, 3]], [[3, 1, 1]])):
        with pytest.raises(RuntimeError, match="other tokens than were checked"):
            packed_rows(packed, lengths, rows)
    with pytest.raises(RuntimeError, match="2 rows stand in no packed row"):
        packed_rows([[3], [1, 2]], [[1], [2]], rows)
