"""What is recorded of chains of thought while training equals the probabilities of the full logits, in float64."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from tiny_mistral import chain_rows, save_model, toy_tokenizer, write_chains

import analyze_cartography
import train_sft
from datamap.cartography.dynamics import read_dynamics
from datamap.cartography.metrics import load_cartography_metrics
from datamap.cartography.recorder import CartographyCallback, completion_statistics
from datamap.core.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")
LONG = (3, 9, 10)  # these rows are cut before their label
MAX_LENGTH = 130


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("mistral"), toy_tokenizer(vocab_size=300))


@pytest.fixture(scope="module")
def thoughts(tmp_path_factory):
    directory = write_chains(tmp_path_factory.mktemp("thoughts"), chain_rows(23, seed=4, long=LONG))
    (directory / "short.txt").write_text("Premise: $premise\nHypothesis: $hypothesis\n")
    return directory


def arguments(thoughts, model, out, *extra):
    return [
        "--thoughts", thoughts, "--reflections", thoughts, "--prompt_file", thoughts / "short.txt", "--model", model,
        "--quantization", "none", "--no_cuda",
        "--lora_dropout", "0", "--max_length", MAX_LENGTH, "--num_train_epochs", "3", "--warmup_steps", "1",
        "--per_device_train_batch_size", "3", "--effective_batch_size", "6", "--eval_fraction", "0.1",
        "--eval_generate_steps", "0", "--max_new_tokens", "3", "--eval_strategy", "no", "--logging_steps", "1",
        "--enable_cartography", "--output_dir", out / "model", "--cartography_output_dir", out / "map", *extra,
    ]


def call(*argv):
    train_sft.main([str(argument) for argument in argv])


def slow_statistics(model_dir, out):
    """Untrained, in eval mode, row by row: id -> (confidence, loss, label_confidence, label is top-1)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir).double().eval()
    template = (out / "model/prompt.txt").read_text()
    expected = {}
    for line in (out / "model/sft_data.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["part"] != "train":
            continue
        body = template.replace("$premise", row["premise"]).replace("$hypothesis", row["hypothesis"]).strip()
        answer = json.dumps({"thought_process": row["thought_process"], "predicted_label": row["label"]})
        prompt = f"[INST] {body} [/INST]"
        ids = tokenizer(f"{prompt} {answer}</s>")["input_ids"]
        first = len(tokenizer(prompt)["input_ids"])
        assert ids[0] == 1 and ids[-1] == 2 and ids.count(1) == ids.count(2) == 1
        said = f'"predicted_label": {row["label"]}'
        label = next(end for end in range(len(ids)) if said in tokenizer.decode(ids[first : end + 1]))
        ids = ids[:MAX_LENGTH]
        if label >= len(ids):
            continue
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        gold = np.array([float(log_p[place - 1, ids[place]]) for place in range(first, len(ids))])
        expected[row["id"]] = (
            np.exp(gold.mean()), -gold.mean(), np.exp(float(log_p[label - 1, ids[label]])),
            float(log_p[label - 1].argmax() == ids[label]),
        )
    return expected


def check_against_eval_mode(model_dir, out, epochs=3):
    expected = slow_statistics(model_dir, out)
    metrics = load_cartography_metrics(out / "map")
    assert set(metrics.index) == set(expected) and len(expected) >= 15
    columns = ["confidence", "loss", "label_confidence", "correctness"]
    found = metrics[columns].to_numpy()
    np.testing.assert_allclose(found, np.array([expected[example] for example in metrics.index]), atol=2e-5)
    assert metrics["variability"].max() < 2e-6
    assert (metrics["num_epochs"] == epochs).all()
    assert metrics["loss"].std() > 0.05 and metrics["label_confidence"].std() > 1e-6
    assert "aum" not in metrics and "el2n" not in metrics
    return metrics


def test_learning_rate_0_records_the_probabilities_of_the_untrained_model(thoughts, model_dir, tmp_path):
    """With rows left over in the last batch, accumulation, gradient checkpointing, and rows cut before their label."""
    call(*arguments(thoughts, model_dir, tmp_path, "--learning_rate", "0"))
    metrics = check_against_eval_mode(model_dir, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "model/sft_data.jsonl").read_text().splitlines()]
    trained = {row["id"] for row in rows if row["part"] == "train"}
    cut = trained - set(metrics.index)
    assert cut == {f"pair-{number:03d}" for number in LONG} & trained and cut
    told = json.loads((tmp_path / "model/train_metrics.json").read_text())
    assert told["rows"]["label_cut_off"] == len(cut)


EXTRA = ("--learning_rate", "2e-3", "--lora_dropout", "0.2", "--save_steps", "2", "--logging_steps", "3",
         "--eval_generate_steps", "3")


@pytest.fixture(scope="module")
def whole(thoughts, model_dir, tmp_path_factory):
    """A run that nothing interrupts, with dropout, and logs apart from saves."""
    out = tmp_path_factory.mktemp("whole")
    call(*arguments(thoughts, model_dir, out, *EXTRA))
    return out


def test_a_map_of_chains_can_be_analysed_without_further_flags(whole, tmp_path):
    analyze_cartography.main(["--cartography_dir", str(whole / "map"), "--output_dir", str(tmp_path / "analysis")])
    samples = json.loads((tmp_path / "analysis/hard_samples.json").read_text())
    assert samples[0]["premise"].startswith("The kite number") and 0 <= samples[0]["label_confidence"] <= 1
    distributions = (tmp_path / "analysis/metric_distributions.csv").read_text()
    assert "label_confidence" in distributions


class Killed(BaseException):
    pass


def cut_and_resume(monkeypatch, stop_after, argv):
    from datamap.thoughts import sft_training

    original, steps = sft_training.ThoughtTrainer.training_step, iter(range(1000))

    def training_step(self, *args, **kwargs):
        if next(steps) == stop_after:
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(sft_training.ThoughtTrainer, "training_step", training_step)
    with pytest.raises(Killed):
        call(*argv)
    monkeypatch.undo()
    call(*argv, "--resume_from_checkpoint")


def test_learning_rate_0_across_a_resume_in_mid_epoch(thoughts, model_dir, tmp_path, monkeypatch):
    argv = arguments(thoughts, model_dir, tmp_path, "--learning_rate", "0", "--save_steps", "2")
    cut_and_resume(monkeypatch, 13, argv)  # 4 steps of 2 micro-batches are an epoch, step 7 is being made
    check_against_eval_mode(model_dir, tmp_path)


def test_in_4_bit_the_recorded_equals_the_4_bit_model_in_eval_mode(thoughts, model_dir, tmp_path):
    from datamap.thoughts.causal_lm import load_causal_lm, load_tokenizer
    from datamap.thoughts.prompts import PAIR, load_prompt
    from datamap.thoughts.sft_training import encode

    call(*arguments(thoughts, model_dir, tmp_path, "--learning_rate", "0", "--quantization", "4bit"))
    metrics = load_cartography_metrics(tmp_path / "map")
    tokenizer = load_tokenizer(str(model_dir))
    model = load_causal_lm(str(model_dir), tokenizer, load_in_4bit=True, no_cuda=True)
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "model/sft_data.jsonl").read_text().splitlines())}
    encoded = encode([rows[example] for example in metrics.index], tokenizer,
                     load_prompt(tmp_path / "model/prompt.txt", PAIR))
    for row, tokens in enumerate(encoded.input_ids):
        ids = torch.tensor([tokens[:MAX_LENGTH]])
        with torch.no_grad():
            log_p = model(input_ids=ids).logits[0].double().log_softmax(-1)
        first = int(encoded.prompt_lengths[row])
        gold = log_p[first - 1 : -1].gather(1, ids[0, first:, None])
        # bfloat16 keeps two to three digits, and rounds otherwise in a batch with padding
        assert metrics["loss"].iloc[row] == pytest.approx(float(-gold.mean()), rel=0.02)
    assert metrics["variability"].max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_learning_rate_0_on_two_processes(thoughts, model_dir, tmp_path, launcher):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    if launcher == "accelerate":
        start = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
                 "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
                 "--main_process_port", "29617"]
    argv = arguments(thoughts, model_dir, tmp_path, "--learning_rate", "0", "--eval_strategy", "epoch")
    done = subprocess.run(
        [*start, "train_sft.py", *map(str, argv)], cwd=REPOSITORY, capture_output=True, text=True, timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    check_against_eval_mode(model_dir, tmp_path)
    told = json.loads((tmp_path / "model/train_metrics.json").read_text())
    # 2 processes x 3 rows make up the 6 of a step: one process alone would have accumulated.
    assert told["steps"] == 3 * -(-told["train_rows"] // 6)
    arguments_of_run = json.loads((tmp_path / "model/run_meta.json").read_text())["arguments"]
    assert arguments_of_run["num_processes"] == 2 and arguments_of_run["gradient_accumulation_steps"] == 1
    answers = [json.loads(line) for line in (tmp_path / "model/eval_generate.jsonl").read_text().splitlines()]
    assert len(answers) == told["held_out_rows"] == told["eval_generate"]["n"]  # each process answered its share


def sft_trainer(model_dir, out, **settings):
    """TRL's own trainer on rows of one's own."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.pad_token = tokenizer.unk_token
    data = datasets.Dataset.from_list(
        [{"prompt": row["premise"], "completion": " " + row["hypothesis"]} for row in chain_rows(11)]
    )
    config = SFTConfig(
        output_dir=str(out), num_train_epochs=2, learning_rate=0.0, per_device_train_batch_size=3, use_cpu=True,
        bf16=False, save_strategy="no", disable_tqdm=True, **settings,
    )
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    return SFTTrainer(model=model, args=config, processing_class=tokenizer, train_dataset=data), data


def test_any_sft_trainer_records_in_two_lines(model_dir, tmp_path):
    trainer, data = sft_trainer(model_dir, tmp_path)
    CartographyCallback([f"t{row}" for row in range(11)], tmp_path / "map").attach(trainer)
    trainer.train()
    metrics = load_cartography_metrics(tmp_path / "map").loc[[f"t{row}" for row in range(11)]]
    model, tokenizer = trainer.model.double().eval(), trainer.processing_class
    for row, example in enumerate(data):
        first = len(tokenizer(example["prompt"])["input_ids"])
        ids = torch.tensor(tokenizer(example["prompt"] + example["completion"] + "</s>")["input_ids"])
        with torch.no_grad():
            log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        gold = log_p[first - 1 : -1].gather(1, ids[first:, None]).squeeze(1)
        assert metrics["confidence"].iloc[row] == pytest.approx(float(gold.mean().exp()), abs=1e-5)
        whole = bool((log_p[first - 1 : -1].argmax(1) == ids[first:]).all())
        assert metrics["correctness"].iloc[row] == float(whole)
    assert "label_confidence" not in metrics


def test_rows_that_cannot_be_told_apart_are_refused(model_dir, tmp_path):
    trainer, _ = sft_trainer(model_dir, tmp_path, shuffle_dataset=True)
    with pytest.raises(UserError, match="shuffle_dataset"):
        CartographyCallback([f"t{row}" for row in range(11)], tmp_path / "map").attach(trainer)
    trainer.args.shuffle_dataset, trainer.args.packing = False, True
    with pytest.raises(UserError, match="packing"):
        CartographyCallback([f"t{row}" for row in range(11)], tmp_path / "map").attach(trainer)


def test_statistics_of_completions_by_hand():
    p = torch.tensor([[0.9, 0.5, 0.25, 1.0], [0.9, 0.2, 0.8, 0.4]])
    outputs = SimpleNamespace(
        log_probs=p.log(), label_mask=torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]]),
        is_top1=torch.tensor([[0, 1, 0, 0], [0, 0, 1, 1]]),
    )
    plain = completion_statistics(outputs)
    root = torch.tensor([0.125, 0.32]).sqrt()
    torch.testing.assert_close(plain, torch.stack([root, torch.tensor([0.0, 1.0]), -root.log()], dim=1))
    labelled = completion_statistics(outputs, torch.tensor([2, 4]))
    torch.testing.assert_close(labelled[:, :3], torch.stack([root, torch.tensor([1.0, 1.0]), -root.log()], dim=1))
    torch.testing.assert_close(labelled[:, 3], torch.tensor([0.5, 0.4]))


@pytest.mark.parametrize(
    "stop_after", [pytest.param(5, marks=pytest.mark.slow), 8, pytest.param(13, marks=pytest.mark.slow)]
)
def test_interrupted_and_resumed_gives_the_same_files(whole, thoughts, model_dir, tmp_path, monkeypatch, stop_after):
    """In mid-epoch, at the first step of the second epoch, and later."""
    cut_and_resume(monkeypatch, stop_after, arguments(thoughts, model_dir, tmp_path, *EXTRA))

    epochs = [list(read_dynamics(out / "map")) for out in (whole, tmp_path)]
    assert len(epochs[0]) == 3
    for one, other in zip(*epochs, strict=True):
        assert one.keys() == other.keys() and one["id"] == other["id"]
        for name in one.keys() - {"id", "epoch"}:
            np.testing.assert_array_equal(one[name], other[name])
    assert load_cartography_metrics(whole / "map")["variability"].max() > 1e-3  # it did train
    logs = [(out / "model/training_log.csv").read_text() for out in (whole, tmp_path)]
    assert logs[0] == logs[1] and logs[0].count("\n") > 6  # learning rate, loss, tokens, generated answers
    from safetensors.torch import load_file

    one, other = (load_file(out / "model/adapter_model.safetensors") for out in (whole, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()
    told = [json.loads((out / "model/train_metrics.json").read_text()) for out in (whole, tmp_path)]
    for name in ("train_loss", "steps", "num_tokens", "eval_generate"):
        assert told[0][name] == told[1][name], name
