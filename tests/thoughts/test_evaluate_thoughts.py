"""Answers of a model and of a file: written as they come, resumed, scored, compared."""

import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
import tiny_mistral
from conftest import REPOSITORY, write_rows
from filelock import FileLock

from datamap.core import progress
from datamap.thoughts import answers as answers_room
from datamap.thoughts import generation
from datamap.thoughts import records as records_room
from datamap.thoughts.answers import Answerer
from datamap.thoughts.metrics import pair_metrics
from datamap.thoughts.prompts import PROMPTS
from datamap.thoughts.reader import completion_text, parse_thought
from evaluate_thoughts import main, parse_args

pytestmark = pytest.mark.usefixtures("one_thread")
needs_llguidance = pytest.mark.skipif(
    importlib.util.find_spec("llguidance") is None, reason="llguidance is not installed"
)
FILES = {"predictions.jsonl", "metrics.json", "submission.csv", "confusion_matrix.csv", "confusion_matrix.png",
         "accuracy_by_length.csv", "accuracy_by_length.png"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_mistral.save_model(tmp_path_factory.mktemp("mistral"))


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    """A LoRA adapter that changes what the model writes, with a prompt of its own."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
    )
    directory = tmp_path_factory.mktemp("adapter")
    tuned.save_pretrained(directory)
    (directory / "prompt.txt").write_text("$premise So $hypothesis?", encoding="utf-8")
    return directory


def pair(number, label="auto"):
    name = ("Ada", "Bob", "Cleo")[number % 3]
    return {"id": f"p{number:02d}", "premise": f"{name} plays the guitar {'very ' * (number % 5)}well.",
            "hypothesis": f"{name} makes music.", "label": number % 2 if label == "auto" else label}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", [pair(number) for number in range(12)])


def run(*argv, out, **flags):
    for name, value in {"output_dir": out, **flags}.items():
        argv += (f"--{name}", *([] if value is True else [value]))
    main([str(argument) for argument in argv])
    return out


def answer(*argv, model, out, pairs, **flags):
    return run(*argv, out=out, **{"model": model, "dataset": pairs, "max_new_tokens": 8, "no_cuda": True, **flags})


def records(directory):
    return [json.loads(line) for line in (directory / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def metrics(directory):
    return json.loads((directory / "metrics.json").read_text(encoding="utf-8"))


def status(directory):
    return json.loads((directory / "run_meta.json").read_text(encoding="utf-8"))["status"]


# --- a model's answers -------------------------------------------------------------------------------------------


@needs_llguidance
def test_a_model_answers_pairs_and_is_scored(model, pairs, tmp_path, capsys):
    out = answer(model=model, out=tmp_path, pairs=pairs, constrained=True, max_new_tokens=150, batch_size=5)
    shown = capsys.readouterr().out
    found = {record["id"]: record for record in records(out)}
    assert sorted(found) == [f"p{number:02d}" for number in range(12)]
    for record in found.values():
        assert set(record) == {"id", "premise", "hypothesis", "true_label", "predicted_label", "correct", "method",
                               "thought_process", "output", "new_tokens", "finished", "prompt",
                               "settings"}
        parsed = parse_thought(record["output"])
        assert (record["predicted_label"], record["method"]) == (parsed.label, parsed.method)
        assert (record["method"] == "strict") >= record["finished"]
        assert record["correct"] is (record["predicted_label"] == record["true_label"])
    assert {record["predicted_label"] for record in found.values()} == {0, 1, None}
    assert FILES <= {file.name for file in out.iterdir()}
    gold, predicted, methods = (
        [record[name] for record in found.values()] for name in ("true_label", "predicted_label", "method")
    )
    written = metrics(out)
    assert written.items() >= pair_metrics(gold, predicted, methods).items()
    assert written["cut_off"] == sum(not record["finished"] for record in found.values())
    assert f"accuracy           {written['accuracy']:.3f}" in shown
    submission = pd.read_csv(out / "submission.csv", dtype={"id": str, "prediction": "Int64"})
    assert submission["id"].tolist() == [f"p{number:02d}" for number in range(12)]  # in the order of the dataset
    assert submission["prediction"].isna().sum() == predicted.count(None)
    assert [None if pd.isna(value) else value for value in submission["prediction"]] == [
        found[name]["predicted_label"] for name in submission["id"]
    ]
    assert pd.read_csv(out / "confusion_matrix.csv")["n"].sum() == 12
    assert status(out) == "finished"


def test_off_a_terminal_a_line_says_how_far_it_is(model, pairs, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(progress, "EVERY", 0.001)
    caplog.set_level("INFO")
    answer(model=model, out=tmp_path, pairs=pairs, batch_size=2)
    told = r"answering: \d+ of 12 pairs, \d+ s left"
    assert any(re.fullmatch(told, line) for line in caplog.messages), caplog.messages


def test_batches_do_not_matter_and_files_need_no_model_twice(model, pairs, tmp_path, monkeypatch):
    one = answer(model=model, out=tmp_path / "1", pairs=pairs, batch_size=1)
    seven = answer(model=model, out=tmp_path / "7", pairs=pairs, batch_size=7)
    assert sorted(records(one), key=str) == sorted(records(seven), key=str)
    before = (seven / "predictions.jsonl").read_bytes()
    monkeypatch.setattr(Answerer, "load", lambda by: pytest.fail("all answers are there"))
    (seven / "comparison.json").write_text("{}", encoding="utf-8")  # of a run that was asked for one
    answer(model=model, out=seven, pairs=pairs, batch_size=3)
    assert metrics(seven) == metrics(one)
    assert not (seven / "comparison.json").exists()
    assert (seven / "predictions.jsonl").read_bytes() == before


def test_only_missing_pairs_are_answered_and_half_a_line_is_taken_off(model, pairs, tmp_path, monkeypatch, caplog):
    whole = answer(model=model, out=tmp_path / "whole", pairs=pairs)
    part = answer(model=model, out=tmp_path / "part", pairs=pairs, max_samples=5)
    assert metrics(part)["n"] == 5
    with (part / "predictions.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "p07", "output": "{\\"thou')
    asked, generate = [], generation.generate

    def listen(model, tokenizer, prompts, **settings):
        asked.extend(prompts)
        return generate(model, tokenizer, prompts, **settings)

    monkeypatch.setattr(generation, "generate", listen)
    answer(model=model, out=part, pairs=pairs)
    assert len(asked) == 7
    assert "line 6, was cut off in mid-write; it is taken off" in caplog.text
    assert sorted(records(part), key=str) == sorted(records(whole), key=str)
    assert (part / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()
    answer(model=model, out=part, pairs=pairs, max_samples=3)  # fewer: the others stay, and are not scored
    assert len(asked) == 7 and len(records(part)) == 12 and metrics(part)["n"] == 3


def test_an_evaluation_goes_on_the_next_day(model, pairs, tmp_path, monkeypatch):
    """A chat template may tell today's date; the answers of yesterday are answers all the same."""
    from transformers.utils import chat_template_utils

    dated = Path(shutil.copytree(model, tmp_path / "dated"))
    (dated / "chat_template.jinja").write_text(
        "{{ strftime_now('%Y-%m-%d') }} {% for m in messages %}{{ m['content'] }}{% endfor %}")
    today = ["2026-01-01"]

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(today[0])

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    out = answer(model=dated, out=tmp_path / "out", pairs=pairs, max_samples=2)
    first = records(out)
    today[0] = "2026-01-02"
    answer(model=dated, out=out, pairs=pairs, max_samples=4)
    assert len(records(out)) == 4 and records(out)[:2] == first
    assert status(out) == "finished"


def test_a_full_disk_says_what_is_whole_and_the_same_command_goes_on(model, pairs, tmp_path, monkeypatch, refused):
    out, limit = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    flags = {"model": model, "out": out, "pairs": pairs, "batch_size": 2}
    whole = answer(**{**flags, "out": tmp_path / "whole"})
    size = (whole / "predictions.jsonl").stat().st_size

    def filled(file, lines):  # the run's other files are small, but not so small
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limit[1]))
        try:
            records_room.append(file, lines)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    monkeypatch.setattr(answers_room, "append", filled)
    line = refused(main, "--model", model, "--dataset", pairs, "--max_new_tokens", 8, "--no_cuda", "--batch_size", 2,
                   "--output_dir", out)
    assert f"cannot write to {out / 'predictions.jsonl'} (File too large), where all that stands is whole" in line
    assert 0 < len(records(out)) < 12 and (out / "predictions.jsonl").stat().st_size <= size // 2
    monkeypatch.setattr(answers_room, "append", records_room.append)
    assert sorted(records(answer(**flags)), key=str) == sorted(records(whole), key=str)


@pytest.mark.parametrize("other", [{"max_new_tokens": 9}, {"temperature": 0.5}, {"prompt_file": "other.txt"},
                                   {"quantization": "4bit"}, {"model": "other"}])
def test_answers_of_another_run_are_refused_until_overwritten(model, pairs, tmp_path, refused, other):
    out = answer(model=model, out=tmp_path / "out", pairs=pairs, max_samples=2)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    (tmp_path / "other.txt").write_text("$premise So: $hypothesis?", encoding="utf-8")
    if "model" in other:
        other = {"model": tiny_mistral.save_model(tmp_path / "other", seed=1)}
    if "prompt_file" in other:
        other = {"prompt_file": tmp_path / "other.txt"}
    settings = {"model": model, "dataset": pairs, "max_samples": 2, "max_new_tokens": 8, "output_dir": out} | other
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)] + ["--no_cuda"]
    line = refused(main, *flags)
    assert "made with another model, prompt or parameters" in line and "--overwrite" in line
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    if "prompt_file" in other:
        main([str(flag) for flag in [*flags, "--overwrite"]])
        assert len(records(out)) == 2 and status(out) == "finished"


def test_other_texts_under_the_same_id_are_refused(model, pairs, tmp_path, refused):
    out = answer(model=model, out=tmp_path / "out", pairs=pairs, max_samples=2)
    other = write_rows(tmp_path / "other.jsonl", [{**pair(0), "premise": "Nobody plays."}])
    line = refused(main, "--model", model, "--dataset", other, "--max_new_tokens", 8, "--output_dir", out, "--no_cuda")
    assert "the answer to 'p00' was made with other texts of the pair" in line


def test_a_damaged_line_is_refused(model, pairs, tmp_path, refused):
    out = answer(model=model, out=tmp_path / "out", pairs=pairs, max_samples=2)
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    (out / "predictions.jsonl").write_text(lines[0][:40] + "\n" + lines[1] + "\n", encoding="utf-8")
    line = refused(main, "--model", model, "--dataset", pairs, "--max_new_tokens", 8, "--output_dir", out, "--no_cuda")
    assert "predictions.jsonl, line 1: damaged" in line


def test_other_labels_are_scored_without_new_answers(model, pairs, tmp_path, monkeypatch):
    out = answer(model=model, out=tmp_path / "out", pairs=pairs)
    monkeypatch.setattr(Answerer, "load", lambda by: pytest.fail("all answers are there"))
    answer(model=model, out=out, pairs=pairs, label_map="0=1,1=0")
    assert {record["id"]: record["true_label"] for record in records(out)} == {
        f"p{number:02d}": 1 - number % 2 for number in range(12)
    }
    assert len(records(out)) == 12


def test_two_processes_do_not_write_one_file(model, pairs, tmp_path, refused):
    with FileLock(tmp_path / "predictions.jsonl.lock"):
        line = refused(main, "--model", model, "--dataset", pairs, "--output_dir", tmp_path, "--no_cuda")
    assert "another process is answering" in line


def test_an_adapter_brings_its_base_model_and_its_prompt(model, adapter, pairs, tmp_path):
    base = answer(model=model, out=tmp_path / "base", pairs=pairs)
    tuned = run(out=tmp_path / "tuned", adapter=adapter, dataset=pairs, max_new_tokens=8, no_cuda=True)
    plain = answer(model=model, out=tmp_path / "plain", pairs=pairs, adapter=adapter,
                   prompt_file=REPOSITORY / "example_configs" / "prompts" / "sft.txt")
    outputs = [{record["id"]: record["output"] for record in records(out)} for out in (base, tuned, plain)]
    assert all(one[f"p{n:02d}"] != other[f"p{n:02d}"] for n in range(12)
               for one, other in ((outputs[0], outputs[1]), (outputs[1], outputs[2]), (outputs[0], outputs[2])))


def test_four_bit_weights_answer_on_a_cpu(model, adapter, pairs, tmp_path):
    pytest.importorskip("bitsandbytes")
    flags = {"adapter": adapter, "dataset": pairs, "max_new_tokens": 4, "max_samples": 3, "no_cuda": True}
    out = run(out=tmp_path / "out", quantization="4bit", **flags)
    assert len(records(out)) == 3
    whole = run(out=tmp_path / "whole", **flags)
    assert {record["settings"] for record in records(out)} != {record["settings"] for record in records(whole)}


def test_a_step_is_compiled_on_a_gpu_where_that_pays(model, pairs, tmp_path, monkeypatch, refused):
    told = refused(main, "--model", model, "--dataset", pairs, "--output_dir", tmp_path / "out", "--no_cuda",
                   "--compile")
    assert "--compile needs a GPU and a model that the library can compile, and this run is on the CPU" in told
    assert not list((tmp_path / "out").glob("*.json*"))
    by = Answerer(parse_args(["--model", str(model), "--dataset", str(pairs), "--no_cuda",
                                      "--batch_size", "4", "--max_new_tokens", "100"]))
    by.load()
    assert not by.can_compile and not by.compiles(10**6)
    by.can_compile = True  # as on a GPU
    assert not by.compiles(10**6)  # nobody has measured from where it pays
    monkeypatch.setattr(generation, "STEPS_THAT_PAY", 1000)
    assert [by.compiles(prompts) for prompts in (36, 37, 1000)] == [False, True, True]
    by.args.compile = False
    assert not by.compiles(1000)


def test_without_labels_answers_are_written_and_not_scored(model, tmp_path, caplog, capsys):
    pairs = write_rows(tmp_path / "test.jsonl", [pair(number, None) for number in range(3)])
    out = answer(model=model, out=tmp_path / "out", pairs=pairs)
    found = metrics(out)
    assert (found["n"], found["n_labelled"], found["accuracy"], found["f1_macro"]) == (3, 0, None, None)
    assert found["parse_rate"] == 0.0
    assert len(records(out)) == 3 and all(record["correct"] is None for record in records(out))
    assert not (out / "confusion_matrix.csv").exists() and (out / "submission.csv").exists()
    assert "has no labels: answers are written, but not scored" in caplog.text
    assert "accuracy" not in capsys.readouterr().out


@needs_llguidance
def test_one_pair_is_answered_on_the_spot(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--model", str(model), "--premise", "A dog sleeps.", "--hypothesis", "An animal rests.", "--no_cuda"]
    main([*flags, "--constrained", "--max_new_tokens", "300"])
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first in ("answer:  0, the hypothesis does not follow", "answer:  1, the hypothesis follows")
    assert second.startswith("thought: ")
    main([*flags, "--max_new_tokens", "5"])
    shown = capsys.readouterr().out
    assert shown.startswith("no answer: what the model wrote cannot be read")
    assert "it wrote: " in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_run_loses_the_batch_in_flight_at_most(model, tmp_path):
    pairs = write_rows(tmp_path / "pairs.jsonl", [pair(number) | {"id": f"k{number:03d}"} for number in range(96)])
    out = tmp_path / "out"
    flags = ["--model", model, "--dataset", pairs, "--output_dir", out, "--batch_size", "2", "--max_new_tokens", "60"]
    command = [sys.executable, str(REPOSITORY / "evaluate_thoughts.py"), *map(str, flags), "--no_cuda"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    file, kept = out / "predictions.jsonl", b""
    for _ in range(3):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
        goal, deadline = kept.count(b"\n") + 8, time.monotonic() + 120
        while not file.exists() or file.read_bytes().count(b"\n") < goal:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = file.read_bytes()
        assert now.startswith(kept[: kept.rfind(b"\n") + 1])  # what was there is not asked again or written anew
        kept = now
        assert status(out) == "running"
    assert kept.count(b"\n") < 96
    subprocess.run(command, check=True, env=environment, capture_output=True)
    ids = [record["id"] for record in records(out)]
    assert len(ids) == len(set(ids)) == 96
    whole = answer(model=model, out=tmp_path / "whole", pairs=pairs, max_new_tokens=60)
    assert sorted(records(out), key=str) == sorted(records(whole), key=str)
    assert metrics(out) == metrics(whole)


# --- answers made elsewhere --------------------------------------------------------------------------------------


def score(*argv, outputs, pairs, out, **flags):
    return run(*argv, out=out, predictions=outputs, dataset=pairs, **flags)


def test_outputs_of_others_are_joined_on_id_and_scored(tmp_path, caplog):
    pairs = write_rows(tmp_path / "pairs.jsonl", [pair(number) | {"id": number} for number in range(8)])
    outputs = write_rows(tmp_path / "outputs.jsonl", [
        {"id": "0", "output": completion_text("so", 0)},
        {"id": 1, "output": "Well:\n```json\n" + completion_text("so", 1) + "\n```"},
        {"id": 2.0, "output": completion_text("so", 1)},
        {"id": "3", "output": "It follows."},
        {"id": "4", "output": None},
        {"id": 5, "output": '{"thought_process": "half \\ud800 a pair", "predicted_label": "1"}'},
        {"id": "nobody", "output": completion_text("so", 1)},
    ])
    out = score(outputs=outputs, pairs=pairs, out=tmp_path / "out")
    assert [record["predicted_label"] for record in records(out)] == [0, 1, 1, None, None, 1, None, None]
    assert [record["correct"] for record in records(out)] == [True, True, False, False, False, True, False, False]
    assert [record["method"] for record in records(out)] == ["strict", "object", "strict", *["none"] * 2, "strict",
                                                             *["none"] * 2]
    found = metrics(out)
    assert found["accuracy"] == 3 / 8 and found["accuracy_parsed"] == 3 / 4 and found["parse_rate"] == 0.5
    assert (found["parsed_strict"], found["parsed_object"], found["parsed_none"]) == (3, 1, 4)
    assert (found["no_output"], found["cut_off"], found["new_tokens_mean"]) == (3, None, None)
    assert records(out)[5]["thought_process"] == "half ? a pair"
    assert pd.read_csv(out / "accuracy_by_length.csv")["n"].sum() == 5  # words: what was not written has no length
    assert "1 of 7 outputs are of other pairs and not scored" in caplog.text
    assert "2 of 8 pairs have no output in" in caplog.text
    score(outputs=outputs, pairs=pairs, out=out)  # again: nothing that took time would be lost


def test_an_echo_of_the_prompt_is_no_answer(tmp_path):
    pairs = write_rows(tmp_path / "pairs.jsonl", [
        pair(0) | {"premise": 'She wrote {"thought_process": "so", "predicted_label": 1} down.'}, pair(1),
    ])
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(f"Like {completion_text('as here', 0)}: $premise $hypothesis", encoding="utf-8")
    first, second = (json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines())

    def echo(row):
        return f"Like {completion_text('as here', 0)}: {row['premise']} {row['hypothesis']} "

    outputs = write_rows(tmp_path / "outputs.jsonl", [
        {"id": "p00", "output": echo(first)}, {"id": "p01", "output": echo(second) + completion_text("mine", 1)},
    ])
    out = score(outputs=outputs, pairs=pairs, out=tmp_path / "out", prompt_file=prompt)
    assert [record["predicted_label"] for record in records(out)] == [None, 1]


def test_a_json_list_and_a_file_of_ours_are_read_as_well(model, pairs, tmp_path):
    rows = [{"id": f"p{number:02d}", "output": completion_text("so", 1)} for number in range(12)]
    (tmp_path / "outputs.json").write_text(json.dumps(rows), encoding="utf-8")
    assert metrics(score(outputs=tmp_path / "outputs.json", pairs=pairs, out=tmp_path / "a"))["accuracy"] == 0.5
    ours = answer(model=model, out=tmp_path / "ours", pairs=pairs)
    again = score(outputs=ours / "predictions.jsonl", pairs=pairs, out=tmp_path / "b")
    assert metrics(again) == metrics(ours)


WRONG = {
    "no shared ids": ([{"id": "x", "output": "y"}], "shares no ids with the pairs ('x' there, 'p00', "),
    "an id twice": ([{"id": "1", "output": "y"}, {"id": 1, "output": "y"}], "1 ids occur more than once ('1')"),
    "no output": ([{"id": "1", "text": "y"}], "record 1: no 'output'; expected id and output"),
    "no id": ([{"id": None, "output": "y"}], "record 1: no 'id'"),
    "an object": ([{"id": "1", "output": {"predicted_label": 1}}], "expected the raw text, or null"),
}


@pytest.mark.parametrize("rows, message", WRONG.values(), ids=WRONG)
def test_files_that_cannot_be_scored_are_refused(rows, message, pairs, tmp_path, refused):
    outputs = write_rows(tmp_path / "outputs.jsonl", rows)
    line = refused(main, "--predictions", outputs, "--dataset", pairs, "--output_dir", tmp_path / "out")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_answers_of_a_model_are_not_overwritten_by_a_file(model, pairs, tmp_path, refused):
    out = answer(model=model, out=tmp_path / "out", pairs=pairs, max_samples=1)
    outputs = write_rows(tmp_path / "outputs.jsonl", [{"id": "p00", "output": completion_text("so", 1)}])
    flags = ["--predictions", outputs, "--dataset", pairs, "--output_dir", out]
    assert "holds the answers of a model, which would be lost" in refused(main, *flags)
    main([str(flag) for flag in [*flags, "--overwrite"]])
    assert metrics(out)["parsed_strict"] == 1


# --- two runs ----------------------------------------------------------------------------------------------------


def two_runs(tmp_path, pairs, right, other_right):
    """Directories of two runs that answer the first pairs rightly or not; None: no such output."""
    made = []
    for name, answers in (("this", right), ("other", other_right)):
        rows = [{"id": f"p{n:02d}", "output": completion_text("so", n % 2 if good else 1 - n % 2)}
                for n, good in enumerate(answers)]
        made.append(write_rows(tmp_path / f"{name}.jsonl", rows))
    score(outputs=made[1], pairs=pairs, out=tmp_path / "other_out", max_samples=len(other_right))
    return made[0], tmp_path / "other_out"


def test_two_runs_are_compared_on_what_they_share(pairs, tmp_path, capsys):
    outputs, other = two_runs(tmp_path, pairs, [True] * 11 + [False], [True, *[False] * 8])
    out = score(outputs=outputs, pairs=pairs, out=tmp_path / "out", compare=other)
    found = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert (found["n"], found["only_in_this"], found["both_right"], found["both_wrong"]) == (9, 3, 1, 0)
    assert (found["only_this_right"], found["only_other_right"], found["verdict"]) == (8, 0, "better")
    assert found["p"] == pytest.approx(1 / 2**8) and found["cluster_by"] == "premise"
    assert found["difference"] == pytest.approx(8 / 9)
    assert "on 9 pairs (3 others are not there)" in capsys.readouterr().out
    score(outputs=outputs, pairs=pairs, out=out)
    assert not (out / "comparison.json").exists()  # of the run before


def test_a_small_difference_is_not_made_a_finding(pairs, tmp_path, capsys):
    outputs, other = two_runs(tmp_path, pairs, [True] * 12, [True] * 9 + [False] * 3)
    score(outputs=outputs, pairs=pairs, out=tmp_path / "out", compare=other)
    assert "p = 0.125 (mid-p McNemar): underpowered" in capsys.readouterr().out


def test_runs_that_cannot_be_compared_are_refused(pairs, tmp_path, refused):
    outputs, other = two_runs(tmp_path, pairs, [True] * 12, [True] * 12)
    flags = ["--predictions", outputs, "--output_dir", tmp_path / "out", "--compare", other]
    line = refused(main, *flags, "--dataset", pairs, "--label_map", "0=1,1=0")
    assert "the true label of 'p00' is 0 there and 1 here" in line
    rows = [json.loads(line) for line in Path(pairs).read_text(encoding="utf-8").splitlines()]
    others = write_rows(tmp_path / "others.jsonl", [{**row, "premise": f"Not so: {row['premise']}"} for row in rows])
    assert "these are other pairs under the same ids" in refused(main, *flags, "--dataset", others)
    strangers = write_rows(tmp_path / "strangers.jsonl", [pair(1) | {"id": "s1"}])
    write_rows(outputs, [{"id": "s1", "output": "x"}])
    assert "has no labelled pairs in common" in refused(main, *flags, "--dataset", strangers)
    shutil.rmtree(other)
    assert "no such file or directory" in refused(main, *flags, "--dataset", pairs)
    assert not (tmp_path / "out").exists()


def test_an_echo_of_our_own_prompts_is_no_answer(tmp_path):
    """Outputs of generate.txt, made elsewhere, with the prompt and its worked example in front."""
    asked = (PROMPTS / "generate.txt").read_text(encoding="utf-8")
    rows = [pair(number) for number in range(2)]
    outputs = [f"{asked}\nI do not know.", f"{asked}\n" + completion_text("So it is.", 0)]
    made = [{"id": row["id"], "output": output} for row, output in zip(rows, outputs, strict=True)]
    out = score(outputs=write_rows(tmp_path / "outputs.jsonl", made), pairs=write_rows(tmp_path / "pairs.jsonl", rows),
                out=tmp_path / "out")
    assert [record["predicted_label"] for record in records(out)] == [None, 0]


# --- command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, message", [
    ([], "name the pairs with --dataset"),
    (["--dataset", "demo:nli"], "name what answers: --model, --adapter, or --predictions"),
    (["--dataset", "demo:nli", "--model", "m", "--predictions", "p"], "leave out --model"),
    (["--premise", "a", "--model", "m"], "--premise and --hypothesis belong together"),
    (["--premise", "a", "--hypothesis", " ", "--model", "m"], "--hypothesis is empty"),
    (["--premise", "a", "--hypothesis", "b", "--model", "m", "--dataset", "d"], "leave out --dataset"),
    (["--dataset", "demo:nli", "--adapter", "./nowhere", "--label_map", "entailment=1,neutral=0,contradiction=0"],
     "./nowhere"),
    (["--dataset", "demo:nli", "--model", "m", "--temperature", "-1"], "expected a number from 0 to 10"),
])
def test_mistakes_end_in_one_line(flags, message, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(main, *flags)
    assert not list(tmp_path.iterdir())


def test_an_adapter_without_the_prompt_that_it_was_trained_with_is_refused(adapter, tmp_path, refused):
    """Another prompt would give other answers; an adapter of somebody else's has none."""
    copy = shutil.copytree(adapter, tmp_path / "adapter")
    meta = {"status": "finished", "arguments": {"do_train": True}, "outputs": {"prompt.txt": 27}}
    (copy / "run_meta.json").write_text(json.dumps(meta))
    (copy / "prompt.txt").unlink()
    line = refused(main, "--adapter", copy, "--premise", "a", "--hypothesis", "b", "--no_cuda")
    assert "holds no prompt.txt, with which train_sft.py trained the model: copy it too, or name a prompt" in line
