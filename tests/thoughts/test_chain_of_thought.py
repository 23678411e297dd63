"""The chain-of-thought road from end to end: the demo with a served model, and what each stage leaves behind."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import ModuleType

import pytest

from datamap.core.artifacts import META
from datamap.core.errors import UserError
from datamap.core.files import read_json, read_jsonl
from datamap.demo import builtin
from datamap.thoughts.data import is_right, read_reflections, read_thoughts

REPOSITORY = Path(__file__).resolve().parents[2]
KEY = "sk-not-a-key-but-long-enough-to-be-one"
NUM_PAIRS = 32


def demo(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "demos" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny_chat_model, chain_of_thought = demo("tiny_chat_model"), demo("chain_of_thought")


def processes_about(text: str) -> list[str]:
    """The command lines of running processes that name ``text``."""
    listed = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if text in line and not line.startswith("ps ")]


# --- the tiny chat model -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lessons() -> dict[str, list[tuple[str, str]]]:
    """A few prompts of each mode with their answers."""
    pairs = tiny_chat_model.unseen_pairs(0)[:30]
    templates = {
        mode: tiny_chat_model.load_prompt(tiny_chat_model.PROMPTS / f"{mode}.txt", names)
        for mode, names in tiny_chat_model.PLACEHOLDERS.items()
    }
    return {mode: tiny_chat_model.examples(mode, template, pairs, 0) for mode, template in templates.items()}


def test_what_it_is_taught_can_be_read(lessons):
    found = {
        mode: [tiny_chat_model.READERS[mode](answer, prompt) for prompt, answer in pairs]
        for mode, pairs in lessons.items()
    }
    assert all(each is not None for each in sum(found.values(), []))
    assert all({each["predicted_label"] for each in found[mode]} == {0, 1} for mode in ("generate", "reflect"))
    assert {each["better"] for each in found["compare"]} == {"A", "B", "tie"}
    for (prompt, _), each in zip(lessons["reflect"], found["reflect"], strict=True):
        assert f"<true_label>\n{each['predicted_label']}\n" in prompt.rpartition("# Your case")[2]


def test_it_is_not_taught_the_pairs_of_the_demo():
    known = {row["premise"] for split in ("train", "validation") for row in builtin.generate("nli", split)}
    pairs = tiny_chat_model.unseen_pairs(42)
    assert len(pairs) > 600
    assert not known & {row["premise"] for row in pairs}


def test_the_loss_is_that_of_whole_prompts(lessons, one_thread):
    """What stands before the cut of a prompt changes nothing: compared with each row alone, from its beginning."""
    import torch

    for mode, pairs in lessons.items():
        pairs = pairs[:5]
        tokenizer = tiny_chat_model.train_tokenizer([text for pair in pairs for text in pair])
        torch.manual_seed(0)
        model = tiny_chat_model.build_model(tokenizer).double()
        encoded = tiny_chat_model.encode(tokenizer, pairs)
        loss = tiny_chat_model.batch_loss(model, encoded)
        losses = []
        for place, (prompt, answer) in enumerate(pairs):
            question = [{"role": "user", "content": prompt}]
            start = ids_of(tokenizer, question)
            whole = ids_of(tokenizer, [*question, {"role": "assistant", "content": answer}])
            assert whole[: len(start)] == start
            assert (whole[0], whole[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
            assert len(encoded[place][0]) < len(whole)
            logp = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            losses += [-logp[each - 1, whole[each]].item() for each in range(len(start), len(whole))]
        assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-7), mode  # positions are float32
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def ids_of(tokenizer, messages: list[dict]) -> list[int]:
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]


def test_one_seed_is_one_tokenizer(lessons):
    texts = [text for pairs in lessons.values() for pair in pairs for text in pair]
    first, second = (tiny_chat_model.train_tokenizer(texts).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


# --- end to end --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> tuple[Path, str]:
    """The directory that the demo wrote to, and what it said."""
    pytest.importorskip("fastapi", reason="transformers serve needs the extra 'serving'")
    output = tmp_path_factory.mktemp("road") / "thoughts_demo"
    done = subprocess.run(
        [sys.executable, REPOSITORY / "demos" / "chain_of_thought.py", "--output_dir", output, "--num_pairs",
         str(NUM_PAIRS), "--num_train_epochs", "2"],
        env={**os.environ, "OPENAI_API_KEY": KEY}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return output, done.stdout


@pytest.mark.slow
def test_thoughts_and_reflections(road):
    output, _ = road
    thoughts, reflections = (read(output / "thoughts_output") for read in (read_thoughts, read_reflections))
    assert len(thoughts) >= 20
    assert len(reflections) >= 5
    wrong = {chain["id"] for chain in thoughts if is_right(chain) is False}
    assert {chain["id"] for chain in reflections} <= wrong
    failures = output / "thoughts_output" / "failures.jsonl"
    failed = [row for row in read_jsonl(failures) if row["mode"] == "generate"] if failures.exists() else []
    assert len(thoughts) + len({row["id"] for row in failed}) == NUM_PAIRS
    assert len(read_jsonl(output / "thoughts_output" / "scores.jsonl")) >= 20


@pytest.mark.slow
def test_the_adapter_reloads_in_4_bit(road, one_thread):
    import torch
    from bitsandbytes.nn import Linear4bit

    from datamap.thoughts.causal_lm import load_causal_lm, load_tokenizer

    output, _ = road
    base, adapter = output / "tiny_chat_model", output / "sft_output"
    tokenizer = load_tokenizer(str(adapter))
    model = load_causal_lm(str(base), tokenizer, adapter=str(adapter), load_in_4bit=True, no_cuda=True)
    assert any(isinstance(module, Linear4bit) for module in model.modules())
    tuned = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert tuned and any(weight.abs().max() > 0 for weight in tuned)
    ids = torch.tensor([tokenizer("Premise: people are washing cars.")["input_ids"]])
    assert torch.isfinite(model(input_ids=ids).logits).all()


@pytest.mark.slow
def test_evaluation_is_whole(road):
    output, _ = road
    metrics = read_json(output / "thoughts_evaluation" / "metrics.json")
    predictions = read_jsonl(output / "thoughts_evaluation" / "predictions.jsonl")
    assert metrics["n"] == metrics["n_labelled"] == len(predictions) == 2 * NUM_PAIRS
    right = sum(row["predicted_label"] == row["true_label"] for row in predictions)
    assert metrics["accuracy"] == pytest.approx(right / len(predictions))
    read = sum(row["predicted_label"] is not None for row in predictions)
    assert metrics["parse_rate"] == pytest.approx(read / len(predictions))
    assert metrics["parse_rate"] >= 0.5


@pytest.mark.slow
def test_every_chain_trained_on_is_on_the_map(road):
    output, _ = road
    rows = read_jsonl(output / "sft_output" / "sft_data.jsonl")
    records = read_json(output / "cartography_output" / "cartography_metrics.json")
    assert len({row["id"] for row in rows}) == len(rows)
    assert {record["id"] for record in records} <= {row["id"] for row in rows}
    assert len(records) >= 0.9 * len(rows)
    assert all(0 < record["confidence"] <= 1 for record in records)


@pytest.mark.slow
def test_every_stage_finished_and_is_in_the_summary(road):
    output, said = road
    stages = ("tiny_chat_model", "thoughts_output", "sft_output", "cartography_output", "cartography_analysis",
              "thoughts_evaluation")
    assert {name: read_json(output / name / META)["status"] for name in stages} == dict.fromkeys(stages, "finished")
    thoughts = read_thoughts(output / "thoughts_output")
    right = sum(is_right(chain) is True for chain in thoughts)
    assert f"{len(thoughts)}, of which {right} come to the true label" in said
    for picture in output.glob("*/*.png"):
        assert str(picture) in said


@pytest.mark.slow
def test_the_key_is_in_no_file(road):
    output, said = road
    assert KEY not in said
    files = [file for file in output.rglob("*") if file.is_file()]
    assert len(files) > 30
    assert [file for file in files if KEY.encode() in file.read_bytes()] == []


@pytest.mark.slow
def test_nothing_is_left_running(road):
    assert processes_about(str(road[0])) == []


# --- the server --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_server_ends_with_an_error(road, tmp_path):
    model, log = road[0] / "tiny_chat_model", tmp_path / "server.log"
    with pytest.raises(ZeroDivisionError), chain_of_thought.served(model, log) as url:
        with urllib.request.urlopen(url.removesuffix("/v1") + "/health", timeout=10) as answer:
            assert json.loads(answer.read()) == {"status": "ok"}
        assert processes_about(str(road[0]))
        raise ZeroDivisionError
    assert processes_about(str(road[0])) == []


@pytest.mark.slow
def test_a_server_that_cannot_begin(road, tmp_path):
    with pytest.raises(UserError, match=r"the server of the tiny model ended \(1\); its last line in .*no-model"):
        with chain_of_thought.served(tmp_path / "no-model", tmp_path / "no-model.log"):
            raise AssertionError("there is no such model")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_server_ends_with_the_demo(road, number, status):
    """Ctrl-C and kill, while the server is being started."""
    output, _ = road
    demo = subprocess.Popen(
        [sys.executable, REPOSITORY / "demos" / "chain_of_thought.py", "--output_dir", output],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    end = time.monotonic() + 120
    while not any("serve" in line for line in processes_about(str(output))):
        assert demo.poll() is None and time.monotonic() < end, demo.communicate()[0]
        time.sleep(0.1)
    demo.send_signal(number)
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == status, said
    assert processes_about(str(output)) == []
