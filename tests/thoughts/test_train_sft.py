"""train_sft.py through its command line: rows, tokens, curves, model card, configs, resuming, and what is refused."""

import csv
import json
import os
import re
import signal
import string
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import REPOSITORY, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_mistral import chain_rows, reflected, save_model, toy_tokenizer, write_chains

import train_sft
from datamap.core.errors import UserError
from datamap.thoughts import sft_arguments
from datamap.thoughts.reader import completion_text, parse_thought
from datamap.thoughts.sft_rows import held_out_rows

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIGS = REPOSITORY / "example_configs" / "sft"
CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
TURNS = (
    "{% for message in messages %}{{ message.role }}\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("mistral"), toy_tokenizer())


@pytest.fixture(scope="module")
def thoughts(tmp_path_factory):
    directory = write_chains(tmp_path_factory.mktemp("thoughts"), chain_rows(24, seed=2))
    (directory / "short.txt").write_text("Premise: $premise\nHypothesis: $hypothesis\n")
    return directory


def arguments(thoughts, model, out, *extra):
    return [str(argument) for argument in (
        "--thoughts", thoughts, "--reflections", thoughts, "--prompt_file", thoughts / "short.txt", "--model", model,
        "--quantization", "none", "--no_cuda", "--per_device_train_batch_size", "4", "--effective_batch_size", "8",
        "--learning_rate", "5e-3", "--warmup_steps", "2", "--logging_steps", "1", "--max_new_tokens", "8",
        "--eval_generate_steps", "3", "--output_dir", out, *extra,
    )]


def jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def log_of(path):
    with (path / "training_log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- a whole run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(thoughts, model_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("sft") / "adapter"
    train_sft.main(arguments(thoughts, model_dir, out, "--eval_fraction", "0.1", "--quantization", "4bit"))
    return out


def test_qlora_on_the_cpu_learns_and_writes_what_it_says(whole_run):
    names = {path.name for path in whole_run.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "prompt.txt", "sft_data.jsonl",
            "training_log.csv", "training_curves.png", "train_metrics.json", "README.md", "eval_generate.jsonl",
            "run_meta.json"} <= names
    told = json.loads((whole_run / "train_metrics.json").read_text())
    assert told["train_rows"] == 22 and told["held_out_rows"] == 2 and told["steps"] == 6
    log = log_of(whole_run)
    losses = [float(row["loss"]) for row in log]
    assert [int(row["step"]) for row in log] == [1, 2, 3, 4, 5, 6] and losses[-1] < 0.8 * losses[0]
    assert told["train_loss"] == pytest.approx(np.mean(losses))
    # Linear to the highest in two steps, then a cosine down: what a step was made with.
    cosine = [0.5 * (1 + np.cos(np.pi * step / 4)) for step in range(4)]
    rates = [float(row["learning_rate"]) for row in log]
    np.testing.assert_allclose(rates, 5e-3 * np.array([0, 0.5, *cosine]), rtol=1e-6, atol=1e-12)
    answered = [row["step"] for row in log if row["eval_generate_parse_rate"]]
    assert answered == ["3", "6"] == [row["step"] for row in log if row["eval_loss"]]
    assert json.loads((whole_run / "run_meta.json").read_text())["status"] == "finished"


def test_the_adapter_can_be_put_on_and_answers_as_it_did(whole_run, model_dir):
    from datamap.thoughts.causal_lm import load_causal_lm, load_tokenizer
    from datamap.thoughts.generation import generate
    from datamap.thoughts.prompts import PAIR, load_prompt, model_prompt

    tokenizer = load_tokenizer(str(whole_run))
    # Trainable, so that it multiplies as in training: for evaluation bitsandbytes has another product on some CPUs.
    model = load_causal_lm(str(model_dir), tokenizer, adapter=str(whole_run), load_in_4bit=True, no_cuda=True,
                           trainable=True).eval()
    answers = jsonl(whole_run / "eval_generate.jsonl")
    template = load_prompt(whole_run / "prompt.txt", PAIR)
    prompts = [model_prompt(tokenizer, template, row["premise"], row["hypothesis"]) for row in answers]
    texts: dict[int, str] = {}
    for places, found in generate(model, tokenizer, prompts, batch_size=4, max_new_tokens=8):
        texts |= dict(zip(places, (one.text for one in found), strict=True))
    assert [texts[place] for place in range(len(answers))] == [row["output"] for row in answers]


def test_a_loss_that_is_no_number_does_not_cost_the_training(thoughts, model_dir, tmp_path, monkeypatch, caplog):
    """Of the held-out rows, at the end: the adapter is whole, and the number missing."""
    import torch

    from datamap.thoughts.sft_training import ThoughtTrainer

    monkeypatch.setattr(ThoughtTrainer, "prediction_step",
                        lambda self, *_, **__: (torch.tensor(float("nan")), None, None))
    out = tmp_path / "adapter"
    train_sft.main(arguments(thoughts, model_dir, out, "--eval_fraction", "0.1", "--max_steps", "1"))
    told = json.loads((out / "train_metrics.json").read_text())
    assert told["eval_loss"] is None and told["train_loss"] > 0
    assert json.loads((out / "run_meta.json").read_text())["status"] == "finished"
    assert "| held-out loss | not measured |" in (out / "README.md").read_text()
    assert [row["eval_loss"] for row in log_of(out)] == [""]
    assert "the loss on the held-out rows is nan, no number, and recorded as missing" in caplog.text


def test_a_fine_tuning_file_of_others_is_trained_on_by_its_own_prompt(model_dir, tmp_path, refused):
    rows = [each for each in chain_rows(12, seed=3) if each["predicted_label"] == each["true_label"]]
    asked = "Premise: {premise}\nHypothesis: {hypothesis}\n\nDoes it follow?"
    file = write_rows(tmp_path / "chat.jsonl", [
        {"id": number, "messages": [{"role": "user", "content": asked.format(**row)}, {
            "role": "assistant", "content": completion_text(row["thought_process"], row["predicted_label"])}]}
        for number, row in enumerate(rows)])
    plain = arguments(tmp_path, model_dir, tmp_path / "adapter", "--max_steps", "1", "--eval_fraction", "0")
    plain[plain.index("--thoughts") + 1] = str(file)
    without = {"--reflections", "--prompt_file"}
    flags = [word for place, word in enumerate(plain) if word not in without and plain[place - 1] not in without]
    train_sft.main(flags)
    prompt = (tmp_path / "adapter" / "prompt.txt").read_text(encoding="utf-8")
    assert prompt == asked.format(premise="$premise", hypothesis="$hypothesis")
    kept = jsonl(tmp_path / "adapter" / "sft_data.jsonl")
    assert [(row["premise"], row["hypothesis"], row["thought_process"], row["label"]) for row in kept] == [
        (row["premise"], row["hypothesis"], row["thought_process"], row["true_label"]) for row in rows]
    line = refused(train_sft.main, *flags, "--output_dir", tmp_path / "other", "--reflections", file)
    assert "--reflections has nothing to repair" in line and not (tmp_path / "other").exists()


def test_the_rows_are_one_per_id_with_what_became_of_them(whole_run, thoughts):
    rows = jsonl(whole_run / "sft_data.jsonl")
    chains = {row["id"]: row for row in chain_rows(24, seed=2)}
    assert [row["id"] for row in rows if row["source"] == "original"] == [
        example for example, row in chains.items() if row["predicted_label"] == row["true_label"]
    ]
    assert len(rows) == len({row["id"] for row in rows}) == 24
    for row in rows:
        assert row["label"] == chains[row["id"]]["true_label"]
        assert list(row) == ["id", "premise", "hypothesis", "label", "thought_process", "source", "part"]
    assert {row["source"] for row in rows} == {"original", "reflection"}
    answered = {row["id"] for row in jsonl(whole_run / "eval_generate.jsonl")}
    assert answered == {row["id"] for row in rows if row["part"] == "held_out"}


def test_the_model_card_tells_what_was_measured(whole_run):
    from huggingface_hub import ModelCard

    card = ModelCard((whole_run / "README.md").read_text())
    metadata = card.data.to_dict()
    assert metadata["library_name"] == "peft" and metadata["pipeline_tag"] == "text-generation"
    assert {"lora", "qlora", "trl"} <= set(metadata["tags"])
    assert "license" not in metadata and "base_model" not in metadata  # a directory's name is no name on the Hub
    told = json.loads((whole_run / "train_metrics.json").read_text())
    assert f"| training loss | {told['train_loss']:.3f} |" in card.text
    assert f"| parse rate | {told['eval_generate']['parse_rate']:.3f} | 2 pairs |" in card.text
    assert f"{told['rows']['originals']:,} as they were first written" in card.text
    layers = json.loads((whole_run / "adapter_config.json").read_text())["target_modules"]
    assert len(layers) == 14  # seven in each of two blocks, by their paths
    assert told["adapted_layers"] == {path.rpartition(".")[2]: 2 for path in layers}
    assert all(f"{layer} (2)" in card.text for layer in told["adapted_layers"])
    assert "biased sample" in card.text and "r 32, alpha 64, dropout 0.05" in card.text
    assert str(whole_run.parent) not in card.content


def test_the_model_card_of_a_hub_model_names_it():
    from huggingface_hub import ModelCard

    from datamap.thoughts.sft_results import model_card

    args = sft_arguments.parse_args(["--thoughts", "t", "--config", str(CONFIGS / "mistral_7b_qlora.json")])
    training = dict.fromkeys(("eval_generate", "train_loss", "eval_loss")) | {
        "train_rows": 1000, "held_out_rows": 50, "epoch": 2.0, "steps": 32, "train_runtime": 7200.0,
        "adapted_layers": {"q_proj": 32, "up_proj": 32},
        "peak_memory_gb": 14.2, "trainable_parameters": 84, "parameters": 7000, "truncated_percentage": 1.2,
    }
    counts = dict.fromkeys(("held_out", "filtered", "too_long", "not_used", "originals", "reflections", "label_0",
                            "label_1", "truncated", "label_cut_off"), 12)
    card = ModelCard(model_card({
        "arguments": vars(args), "prompt": "$premise $hypothesis", "counts": counts, "training": training,
        "evaluated_on": None, "answered_in_training": 0, "resumed_from_step": 40, "versions": {"trl": "1"},
        "device": "a GPU",
    }))
    assert card.data.to_dict()["base_model"] == "mistralai/Mistral-7B-v0.3"
    assert "No pairs were answered" in card.text and "| training loss | not measured |" in card.text
    assert "on q_proj (32), up_proj (32) |" in card.text
    assert "12 of 1,000 rows trained on (1.2 %) were cut" in card.text and "resumed at step 40" in card.text


# --- tokens -------------------------------------------------------------------------------------------------------


def encoded(tokenizer, rows, prompt="Premise: $premise\nHypothesis: $hypothesis"):
    from datamap.thoughts.sft_training import encode

    return encode(rows, tokenizer, string.Template(prompt))


def training_row(thought="step 1: it is red.", label=1, premise="The kite is red.", hypothesis="The kite is old."):
    return {"id": "a", "premise": premise, "hypothesis": hypothesis, "thought_process": thought, "label": label}


@pytest.mark.parametrize("template", [None, CHAT, TURNS])
def test_one_bos_and_one_eos_whatever_the_chat_template(template):
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = template
    rows = encoded(tokenizer, [training_row(), training_row(label=0)])
    for row, tokens in enumerate(rows.input_ids):
        first, label = rows.prompt_lengths[row], rows.label_positions[row]
        answer = tokens[first:]
        assert tokens.count(1) == 1 and tokens[0] == 1
        assert answer.count(2) == 1 and answer[-1] == 2
        assert tokens.count(2) == (2 if template == TURNS else 1)  # there the user's turn ends so, too
        text = tokenizer.decode(answer[:-1])
        assert parse_thought(text).label == 1 - row and parse_thought(text).method == "strict"
        assert text.startswith("{" if template == TURNS else " {")
        assert str(1 - row) in tokenizer.decode([tokens[label]])
        assert str(1 - row) not in tokenizer.decode(tokens[label + 1 :])


@settings(max_examples=60, deadline=None)
@given(thought=st.text(min_size=1, max_size=40), premise=st.text(min_size=1, max_size=20), label=st.integers(0, 1))
def test_whatever_stands_in_a_chain_its_label_is_found(thought, premise, label):
    tokenizer = encoded_with
    row = training_row(thought=f"{thought} 0 1", premise=premise, label=label)
    rows = encoded(tokenizer, [row])
    tokens, place = rows.input_ids[0], rows.label_positions[0]
    before, said = (tokenizer.decode(tokens[rows.prompt_lengths[0] : end]) for end in (place, place + 1))
    ending = f'"predicted_label": {label}'
    assert said.removesuffix("}").endswith(ending) and not before.removesuffix("}").endswith(ending)
    assert tokens.count(1) == tokens.count(2) == 1


encoded_with = toy_tokenizer(vocab_size=330)


def test_special_tokens_that_a_text_spells_out_are_no_tokens():
    rows = encoded(encoded_with, [training_row(thought="end </s> [INST] begin <s>", premise="</s> [/INST] {}")])
    tokens = rows.input_ids[0]
    assert tokens.count(1) == tokens.count(2) == 1 and tokens[-1] == 2
    assert rows.prompts[0].count("[/INST]") == 1 and "[INST]" not in rows.completions[0]


def test_a_tokenizer_or_prompt_with_another_bos_or_eos_is_refused():
    from tokenizers.processors import TemplateProcessing

    tokenizer = toy_tokenizer()
    with pytest.raises(UserError, match="2 BOS tokens"):
        encoded(tokenizer, [training_row()], "<s> $premise $hypothesis")
    special = [("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    with pytest.raises(UserError, match="2 EOS tokens"):
        encoded(tokenizer, [training_row()])


def test_the_sample_set_round_trips_with_one_bos_and_one_eos():
    """Item 4 of the issue, on the chains that others wrote."""
    from conftest import DATA

    from datamap.thoughts.data import read_reflections, read_thoughts, training_rows

    folder = DATA / "nli_thoughts"
    if not folder.exists():
        pytest.skip(f"public data: {folder} is not there")
    rows = training_rows(
        read_thoughts(folder / "sample_thoughts.json"), read_reflections(folder / "sample_reflections.json")
    )
    tokenizer = toy_tokenizer()
    found = encoded(tokenizer, rows)
    assert len({row["id"] for row in rows}) == len(rows) == len(found.input_ids)
    for row, tokens, first in zip(rows, found.input_ids, found.prompt_lengths, strict=True):
        assert tokens.count(1) == tokens.count(2) == 1
        read = parse_thought(tokenizer.decode(tokens[first:-1]))
        assert (read.label, read.method) == (row["label"], "strict")
        assert read.thought is not None and read.thought.split() == row["thought_process"].split()


# --- cut rows, hold-out, filters ----------------------------------------------------------------------------------


def test_what_is_cut_is_counted_and_what_leaves_nothing_to_learn_is_left_out(model_dir, tmp_path, caplog):
    rows = chain_rows(24, seed=2, long=(5,))
    rows[7]["premise"] = rows[7]["premise"] * 30
    thoughts = write_chains(tmp_path / "thoughts", rows)
    (thoughts / "short.txt").write_text("Premise: $premise\nHypothesis: $hypothesis\n")
    with caplog.at_level("WARNING"):
        train_sft.main(arguments(thoughts, model_dir, tmp_path / "out", "--max_length", "120", "--max_steps", "1",
                                 "--eval_fraction", "0", "--max_train_samples", "20"))
    told = json.loads((tmp_path / "out/train_metrics.json").read_text())
    parts = {row["id"]: row["part"] for row in jsonl(tmp_path / "out/sft_data.jsonl")}
    assert parts["pair-007"] == "too_long" and list(parts.values()).count("not_used") == 4
    assert told["train_rows"] == 19 and told["rows"]["too_long"] == 1 and told["held_out_rows"] == 0
    assert told["rows"]["truncated"] == told["rows"]["label_cut_off"] == 1
    assert told["truncated_percentage"] == pytest.approx(100 / 19)
    assert "1 of 19 rows (5.3 %) are longer than" in caplog.text and "'pair-005'" in caplog.text
    assert "1 rows ('pair-007') are left out" in caplog.text
    assert "the warm-up of 2 steps takes up the whole training of 1:" in caplog.text
    assert told["eval_generate"] is None and not (tmp_path / "out/eval_generate.jsonl").exists()
    assert "1 of 19 rows trained on (5.3 %) were cut at 120 tokens" in (tmp_path / "out/README.md").read_text()


def test_the_hold_out_depends_on_ids_and_seed_alone():
    ids = [f"x{number}" for number in range(50)]
    rows = held_out_rows(ids, 0.1, seed=3)
    backwards = held_out_rows(ids[::-1], 0.1, seed=3)
    assert {ids[row] for row in rows} == {ids[::-1][row] for row in backwards} and len(rows) == 5
    assert rows != held_out_rows(ids, 0.1, seed=4)
    assert len(held_out_rows(ids, 0.001, seed=3)) == 1 and held_out_rows(ids, 0, seed=3) == []
    with pytest.raises(UserError, match="leaves none"):
        held_out_rows(["a"], 0.05, seed=3)


def test_filters_work_on_chains_of_thought(thoughts, model_dir, tmp_path):
    """A map of a first run chooses what a second is trained on, though the two hold out other rows."""
    recorded = ("--enable_cartography", "--cartography_output_dir", tmp_path / "map", "--eval_fraction", "0.1")
    train_sft.main(arguments(thoughts, model_dir, tmp_path / "first", *recorded, "--num_train_epochs", "3"))
    block = {"metric": {"metrics_path": str(tmp_path / "map"), "metric": "label_confidence", "drop_fraction": 0.5,
                        "drop": "lowest"}}
    (tmp_path / "filters.json").write_text(json.dumps(block))
    train_sft.main(arguments(thoughts, model_dir, tmp_path / "second", "--filter_config", tmp_path / "filters.json",
                             "--eval_fraction", "0.2", "--seed", "7", "--max_steps", "1"))
    parts = {row["id"]: row["part"] for row in jsonl(tmp_path / "second/sft_data.jsonl")}
    values = [value for value in parts.values() if value != "held_out"]
    report = json.loads((tmp_path / "second/filter_report.json").read_text())
    assert report["before"] == len(values) and report["after"] == values.count("train") < len(values)
    assert json.loads((tmp_path / "second/train_metrics.json").read_text())["train_rows"] == report["after"]
    removed = {example for ids in report["filters"][0]["removed"].values() for example in ids}
    assert removed == {example for example, part in parts.items() if part == "filtered"}


def test_pairs_of_another_set_are_answered(thoughts, model_dir, tmp_path, caplog):
    pairs = [{"id": f"e{n}", "premise": f"The lamp {n} is red.", "hypothesis": "It is red.",
              "label": ("entailment", "neutral")[n % 2]} for n in range(9)]
    first = chain_rows(24, seed=2)[1]
    pairs[0] |= {"premise": first["premise"], "hypothesis": first["hypothesis"]}
    write_rows(tmp_path / "pairs.jsonl", pairs)
    with caplog.at_level("WARNING"):
        train_sft.main(arguments(
            thoughts, model_dir, tmp_path / "out", "--eval_dataset", tmp_path / "pairs.jsonl", "--eval_samples", "5",
            "--label_map", "entailment=1,neutral=0", "--max_steps", "2", "--eval_fraction", "0.1",
            "--eval_generate_steps", "1",
        ))
    answers = jsonl(tmp_path / "out/eval_generate.jsonl")
    assert [(row["id"], row["label"]) for row in answers] == [("e0", 1), ("e1", 0), ("e2", 1), ("e3", 0), ("e4", 1)]
    assert "1 of the 5 pairs to be answered are trained on" in caplog.text and "biased" not in caplog.text
    assert [row["step"] for row in log_of(tmp_path / "out") if row["eval_generate_accuracy"]] == ["1", "2"]
    card = (tmp_path / "out/README.md").read_text()
    assert "pairs.jsonl [train]" in card and "biased" not in card


# --- configs and arguments ----------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_first_config_and_the_command_line_wins():
    plain = vars(sft_arguments.parse_args(["--thoughts", "t"]))
    first = vars(sft_arguments.parse_args(["--thoughts", "t", "--config", str(CONFIGS / "mistral_7b_qlora.json")]))
    assert {**first, "config": None} == plain
    assert (plain["model"], plain["lora_r"], plain["lora_alpha"], plain["lora_dropout"], plain["max_length"]) == (
        "mistralai/Mistral-7B-v0.3", 32, 64, 0.05, 512)
    assert (plain["effective_batch_size"], plain["gradient_accumulation_steps"]) == (64, 16)
    assert plain["warmup_steps"] == 150
    assert (plain["learning_rate"], plain["num_train_epochs"], plain["max_grad_norm"]) == (1e-4, 2, 0.3)
    assert plain["lr_scheduler_type"] == "cosine" and plain["gradient_checkpointing"] is True
    small = ["--thoughts", "t", "--config", str(CONFIGS / "mistral_7b_qlora_small.json")]
    second = sft_arguments.parse_args([*small, "--warmup_steps", "7", "--gradient_checkpointing=false"])
    assert (second.lora_r, second.lora_alpha, second.effective_batch_size, second.learning_rate) == (16, 32, 16, 2e-4)
    assert second.warmup_steps == 7 and second.gradient_checkpointing is False
    assert sft_arguments.parse_args(small).warmup_steps == 75


def test_every_flag_of_sft_config_is_accepted_and_means_the_same():
    """Against the library's own class: all of its fields, but those that are refused, reach it with their type."""
    import dataclasses

    from trl import SFTConfig

    from datamap.training.library_flags import DECIDED_BY_US_IN_SFT, SFT_CONFIG, training_fields

    there = {field.name for field in dataclasses.fields(SFTConfig) if field.init and not field.name.startswith("_")}
    assert set(training_fields(SFT_CONFIG)) == there - DECIDED_BY_US_IN_SFT
    args = sft_arguments.parse_args([
        "--thoughts", "t", "--weight-decay", "0.1", "--loss_type", "dft", "--use_cpu", "--bf16=false",
        "--lr_scheduler_kwargs", '{"num_cycles": 0.5}', "--report_to", "none", "--dataloader_num_workers", "2",
    ])
    from datamap.thoughts.sft_training import sft_config

    config = sft_config(args, on_gpu=False, watches=True)
    assert (config.weight_decay, config.loss_type, config.bf16) == (0.1, "dft", False)
    assert config.dataloader_num_workers == 2
    assert config.lr_scheduler_kwargs == {"num_cycles": 0.5} and args.no_cuda
    assert config.gradient_checkpointing and config.max_length == 512 and config.warmup_steps == 150


def test_help_answers_at_once_and_help_all_names_the_rest():
    def run(*words):
        return subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=True)

    done = run("-X", "importtime", "train_sft.py", "--help")
    assert "--eval_generate_steps" in done.stdout and "--adam_beta2" not in done.stdout
    assert re.search(r"\| +argparse\n", done.stderr)
    assert not re.search(r"\| +(torch|transformers|trl|peft|datasets)\n", done.stderr)  # they take seconds
    every = run("train_sft.py", "--help_all").stdout
    assert "--adam_beta2" in every and "--packing_strategy" in every


def test_accumulation_follows_from_the_effective_batch_size(monkeypatch, refused):
    base = ["--thoughts", "t", "--per_device_train_batch_size", "2"]
    assert sft_arguments.parse_args([*base, "--effective_batch_size", "12"]).gradient_accumulation_steps == 6
    given = sft_arguments.parse_args([*base, "--gradient_accumulation_steps", "3"])
    assert given.effective_batch_size == 6
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert sft_arguments.parse_args([*base, "--effective_batch_size", "12"]).gradient_accumulation_steps == 2
    told = refused(sft_arguments.parse_args, *base, "--effective_batch_size", "10")
    assert "no multiple" in told and "2 rows x 3 processes = 6" in told
    assert "leave one" in refused(
        sft_arguments.parse_args, *base, "--effective_batch_size", "12", "--gradient_accumulation_steps", "4"
    )


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--packing", "--packing_strategy", "wrapped", "--enable_cartography"], "--packing_strategy wrapped cuts "
         "rows into pieces, which --enable_cartography cannot put together"),
        (["--packing", "--attn_implementation", "flash_attention_2"], "needs a GPU"),
        (["--optim", "paged_adamw_8bit"], "--optim paged_adamw_8bit pages between GPU and CPU memory"),
        (["--fp16"], "--fp16 needs a GPU"),
        (["--resume_from_checkpoint", "--overwrite"], "exclude each other"),
        (["--label_map", "yes=1,no=0"], "does nothing without --eval_dataset"),
        (["--eval_fraction", "0", "--eval_strategy", "epoch"], "--eval_fraction is 0"),
        (["--eval_fraction", "0", "--eval_on_start"], "--eval_fraction is 0"),
        (["--chat_template_path", "x"], "is not taken"),
        (["--no_such_flag", "1"], "unknown argument"),
        (["--lora_target_modules", "nothing_so_called"], "no layer is called nothing_so_called; the linear ones are "
         "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head"),
        (["--lora_target_modules", "q_proj,qkv_proj,v_proj"], "no layer is called qkv_proj;"),  # one of three
        (["--lora_target_modules", "proj"], "no layer is called proj;"),  # no layer's name, though the end of some
        (["--lora_target_modules", "all-linear,embed_tokens"], "no layer is called all-linear;"),
        (["--lora_target_modules", "layers.7.self_attn.q_proj,q_proj"], "no layer is called layers.7.self_attn"),
        (["--lora_target_modules", "q_proj,input_layernorm"], "--lora_target_modules q_proj,input_layernorm: Target"),
        (["--lr_scheduler_type", "zigzag"], "training arguments"),
        (["--eval_fraction", "1"], "leaves none to train on"),
        (["--max_length", "5"], "no row is left to train on"),
        (["--resume_from_checkpoint"], "no whole checkpoint"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_written(
    thoughts, model_dir, tmp_path, refused, flags, told
):
    out = tmp_path / "out"
    assert told in refused(train_sft.main, *arguments(thoughts, model_dir, out, *flags))
    assert not out.exists()


def test_the_layers_that_are_named_are_adapted(model_dir):
    from datamap.thoughts.causal_lm import load_causal_lm, load_tokenizer
    from datamap.thoughts.sft_training import adapted_layers, add_adapter

    for names, expected in (("q_proj,v_proj", {"q_proj": 2, "v_proj": 2}), ("lm_head", {"lm_head": 1}),
                            ("layers.1.self_attn.q_proj,down_proj", {"q_proj": 1, "down_proj": 2})):
        args = sft_arguments.parse_args(["--thoughts", "t", "--lora_target_modules", names])
        model = load_causal_lm(str(model_dir), load_tokenizer(str(model_dir)), no_cuda=True, trainable=True)
        adapted = add_adapter(model, args)
        assert adapted_layers(adapted) == expected
        with_adapter = {name.partition(".lora_")[0] for name, _ in adapted.named_parameters() if "lora_" in name}
        assert len(with_adapter) == sum(expected.values())


def test_missing_inputs_are_named(thoughts, model_dir, tmp_path, refused):
    assert "--thoughts is missing" in refused(train_sft.main, "--model", model_dir)
    gone = arguments(tmp_path / "gone", model_dir, tmp_path / "out", "--prompt_file", thoughts / "short.txt")
    assert "gone" in refused(train_sft.main, *gone)
    (tmp_path / "prompt.txt").write_text("$premise only")
    assert "$hypothesis" in refused(
        train_sft.main, *arguments(thoughts, model_dir, tmp_path / "out", "--prompt_file", tmp_path / "prompt.txt")
    )
    assert "holds" in refused(train_sft.main, *arguments(thoughts, model_dir, thoughts))  # would remove what it reads


# --- resuming -----------------------------------------------------------------------------------------------------


def test_rows_that_are_all_cut_before_their_label_are_refused(thoughts, model_dir, tmp_path, refused):
    told = refused(train_sft.main, *arguments(thoughts, model_dir, tmp_path / "out", "--max_length", "45"))
    assert "every row is cut before its label" in told and not (tmp_path / "out").exists()


def test_a_map_that_a_filter_reads_is_not_written(thoughts, model_dir, tmp_path, refused):
    config = tmp_path / "filters.json"
    config.write_text(json.dumps({"category": {"metrics_path": str(tmp_path / "map"), "categories": ["easy"]}}))
    told = refused(train_sft.main, *arguments(
        thoughts, model_dir, tmp_path / "out", "--filter_config", config, "--enable_cartography",
        "--cartography_output_dir", tmp_path / "map",
    ))
    assert "which a filter reads" in told


def test_an_unfinished_run_is_neither_deleted_nor_resumed_unasked(thoughts, model_dir, tmp_path, refused):
    argv = arguments(thoughts, model_dir, tmp_path / "out", "--max_steps", "4", "--save_steps", "2")
    train_sft.main(argv)
    meta = json.loads((tmp_path / "out/run_meta.json").read_text())
    (tmp_path / "out/run_meta.json").write_text(json.dumps({**meta, "status": "failed"}))
    told = refused(train_sft.main, *argv)
    assert "--resume_from_checkpoint" in told and "--overwrite" in told
    assert "trained with lora_r 32, not 8" in refused(
        train_sft.main, *argv, "--lora_r", "8", "--resume_from_checkpoint"
    )
    assert "trained with learning_rate" in refused(
        train_sft.main, *argv, "--learning_rate", "1e-4", "--resume_from_checkpoint"
    )
    for flag, value in (("--max_grad_norm", "1.0"), ("--optim", "sgd"), ("--weight_decay", "0.1")):
        assert f"trained with {flag[2:]}" in refused(train_sft.main, *argv, flag, value, "--resume_from_checkpoint")
    other = write_chains(tmp_path / "other", [{**row, "thought_process": "so."} for row in chain_rows(24, seed=2)])
    (other / "short.txt").write_text((thoughts / "short.txt").read_text())
    assert "other chains of thought" in refused(
        train_sft.main, *arguments(other, model_dir, tmp_path / "out", "--max_steps", "4", "--resume_from_checkpoint")
    )
    (thoughts / "long.txt").write_text("Is it so? $premise $hypothesis")
    assert "another prompt" in refused(
        train_sft.main, *argv, "--prompt_file", thoughts / "long.txt", "--resume_from_checkpoint"
    )
    (tmp_path / "out/checkpoint-4/optimizer.pt").unlink()
    told = refused(train_sft.main, *argv, "--resume_from_checkpoint", tmp_path / "out/checkpoint-4")
    assert "is not a whole checkpoint of such a run: optimizer.pt is missing" in told
    train_sft.main([*argv, "--overwrite"])
    assert len(log_of(tmp_path / "out")) == 4
    assert "holds a trained model (finished 20" in refused(train_sft.main, *argv)


@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed(thoughts, model_dir, tmp_path):
    """The real thing: kill -9 once a checkpoint is whole, in mid-epoch, then --resume_from_checkpoint."""
    extra = ("--save_steps", "2", "--num_train_epochs", "8", "--enable_cartography", "--eval_generate_steps", "0")

    def start(name, *more):
        argv = arguments(thoughts, model_dir, tmp_path / name, *extra, "--cartography_output_dir",
                         tmp_path / f"{name}-map", *more)
        return subprocess.Popen(
            [sys.executable, "train_sft.py", *map(str, argv)], cwd=REPOSITORY, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        )

    whole = start("whole")
    assert whole.wait(300) == 0, whole.stdout.read()[-3000:]
    cut = start("cut")
    deadline = time.monotonic() + 240
    while not list((tmp_path / "cut").glob("checkpoint-*/manifest.json")):
        assert cut.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(cut.pid, signal.SIGKILL)
    cut.wait()
    assert not (tmp_path / "cut/train_metrics.json").exists()
    resumed = start("cut", "--resume_from_checkpoint")
    assert resumed.wait(300) == 0, resumed.stdout.read()[-3000:]
    logs = [log_of(tmp_path / name) for name in ("whole", "cut")]
    for column in ("step", "epoch", "learning_rate", "loss", "num_tokens"):
        assert [row[column] for row in logs[0]] == [row[column] for row in logs[1]], column
    maps = [(tmp_path / f"{name}-map/cartography_metrics.csv").read_bytes() for name in ("whole", "cut")]
    assert maps[0] == maps[1]
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_reflected_rows_and_completions_are_what_the_fixtures_say():
    """The toy data would hide mistakes if nothing in it was wrong."""
    rows = chain_rows(24, seed=2)
    assert len(reflected(rows)) == 6 and {row["true_label"] for row in rows} == {0, 1}
    assert completion_text("a", 1) == '{"thought_process": "a", "predicted_label": 1}'
