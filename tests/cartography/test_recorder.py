"""What is recorded while training equals what the model thought; also on several processes and across a resume."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, write_rows

import run
from datamap.cartography.dynamics import read_dynamics
from datamap.cartography.metrics import load_cartography_metrics
from datamap.cartography.recorder import CartographyCallback
from datamap.core.artifacts import load_meta, sole_writer, stage
from datamap.core.files import read_json
from datamap.training import trainer as trainers

WINDOWS = ["--max_length", "48", "--doc_stride", "20"]  # several windows per example


KINDS = (".json", ".csv", ".parquet")


def arguments(qa_dir, model, out, *extra):
    return [
        "--do_train", "--enable_cartography", "--no_cuda", "--model", model, "--dataset", qa_dir, *WINDOWS,
        "--num_train_epochs", "3", "--per_device_train_batch_size", "5",
        "--output_dir", out / "model", "--cartography_output_dir", out / "map", *extra,
    ]


def call(*argv):
    run.main([str(argument) for argument in argv])


def slow_confidences(qa_dir, model_dir):
    """Untrained, in eval mode, window by window, without padding: id -> (confidence, start, end, loss, aum, el2n)."""
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForQuestionAnswering.from_pretrained(model_dir).double().eval()
    expected, several = {}, 0
    for line in (qa_dir / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        encoded = tokenizer(
            row["question"], row["context"], truncation="only_second", max_length=48, stride=20,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )
        first = row["answers"]["answer_start"][0]
        last = first + len(row["answers"]["text"][0])
        windows = []
        for number, tokens in enumerate(encoded["input_ids"]):
            offsets, sequence = encoded["offset_mapping"][number], encoded.sequence_ids(number)
            inside = [place for place, which in enumerate(sequence) if which == 1]
            starts = [place for place in inside if offsets[place][0] == first]
            ends = [place for place in inside if offsets[place][1] == last]
            if not starts or not ends:
                continue
            types = torch.tensor([encoded["token_type_ids"][number]])
            with torch.no_grad():
                output = model(input_ids=torch.tensor([tokens]), token_type_ids=types)
            values = []
            for logits, gold in ((output.start_logits[0], starts[0]), (output.end_logits[0], ends[0])):
                p = logits.softmax(-1)
                one_hot = torch.zeros_like(p)
                one_hot[gold] = 1
                others = torch.cat([logits[:gold], logits[gold + 1 :]])
                values.append([p[gold], -p[gold].log(), logits[gold] - others.max(), (p - one_hot).norm()])
            (ps, *rest_s), (pe, *rest_e) = values
            windows.append([(ps * pe).sqrt(), ps, pe, *((a + b) / 2 for a, b in zip(rest_s, rest_e, strict=True))])
        several += len(windows) > 1
        if windows:
            expected[row["id"]] = np.mean(np.array(windows, dtype=float), axis=0)
    assert several >= 3  # the average over windows is tested
    return expected


def check_against_eval_mode(qa_dir, model_dir, map_dir):
    expected = slow_confidences(qa_dir, model_dir)
    metrics = load_cartography_metrics(map_dir)
    columns = ["confidence", "start_confidence", "end_confidence", "loss", "aum", "el2n"]
    assert set(metrics.index) == set(expected)
    np.testing.assert_allclose(
        metrics[columns].to_numpy(), np.array([expected[example] for example in metrics.index]), atol=1e-4
    )
    assert metrics["variability"].max() < 1e-4
    assert (metrics["num_epochs"] == 3).all()
    assert metrics["confidence"].std() > 0.003  # a constant would agree with itself, too


def test_learning_rate_0_records_the_probabilities_of_the_untrained_model(qa_dir, tiny_model, tmp_path):
    call(*arguments(qa_dir, tiny_model, tmp_path, "--learning_rate", "0", "--gradient_accumulation_steps", "2"))
    check_against_eval_mode(qa_dir, tiny_model, tmp_path / "map")


def distributed(*argv):
    """run.py in two CPU processes (gloo)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "run.py"]
    return subprocess.run(
        [*command, *map(str, argv)], cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_learning_rate_0_on_two_processes(qa_dir, tiny_model, tmp_path):
    done = distributed(*arguments(qa_dir, tiny_model, tmp_path, "--learning_rate", "0"))
    assert done.returncode == 0, done.stderr[-3000:]
    check_against_eval_mode(qa_dir, tiny_model, tmp_path / "map")
    # Two ranks of batch 5 share the steps: had the launcher started one process, there would be twice as many.
    windows = sum(len(slow_windows) for slow_windows in window_counts(qa_dir, tiny_model).values())
    state = max((tmp_path / "model").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    steps = json.loads((state / "trainer_state.json").read_text())["global_step"]
    assert steps == 3 * -(-windows // 10)


def window_counts(qa_dir, model_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    rows = [json.loads(line) for line in (qa_dir / "train.jsonl").read_text().splitlines()]
    return {
        row["id"]: tokenizer(row["question"], row["context"], truncation="only_second", max_length=48, stride=20,
                             return_overflowing_tokens=True)["input_ids"]
        for row in rows
    }


def dynamics_bytes(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.glob("training_dynamics_epoch_*.json"))}


class Killed(BaseException):
    pass


def cut_and_resume(monkeypatch, stop_after, argv):
    """Interrupt a training after so many steps and resume it from its last checkpoint."""
    original, steps = trainers.CartographyTrainer.training_step, iter(range(1000))

    def training_step(self, *args, **kwargs):
        if next(steps) == stop_after:
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(trainers.CartographyTrainer, "training_step", training_step)
    with pytest.raises(Killed):
        call(*argv)
    monkeypatch.undo()
    call(*argv, "--resume_from_checkpoint")


def test_learning_rate_0_across_a_resume_in_mid_epoch(qa_dir, tiny_model, tmp_path, monkeypatch):
    argv = arguments(qa_dir, tiny_model, tmp_path, "--learning_rate", "0", "--save_steps", "3")
    cut_and_resume(monkeypatch, 14, argv)
    check_against_eval_mode(qa_dir, tiny_model, tmp_path / "map")


@pytest.mark.parametrize("stop_after", [4, 7, 13])
def test_interrupted_and_resumed_gives_the_same_files(qa_dir, tiny_model, tmp_path, monkeypatch, stop_after):
    """Interrupted in the first epoch, at its last step and in the second; checkpoints every second step."""
    extra = ("--learning_rate", "1e-3", "--save_steps", "2", "--save_total_limit", "3")
    call(*arguments(qa_dir, tiny_model, tmp_path / "whole", *extra))

    cut_and_resume(monkeypatch, stop_after, arguments(qa_dir, tiny_model, tmp_path / "cut", *extra))
    history = json.loads((tmp_path / "cut/map/run_meta.json").read_text())["history"]
    assert [run["status"] for run in history] == ["failed"]

    whole, cut = (dynamics_bytes(tmp_path / name / "map") for name in ("whole", "cut"))
    assert len(whole) == 3
    assert whole == cut
    metrics = [load_cartography_metrics(tmp_path / name / "map") for name in ("whole", "cut")]
    assert metrics[0].equals(metrics[1])
    assert metrics[0]["variability"].max() > 1e-3  # it did train


def test_a_recording_in_parquet_is_that_in_json_on_resume_too(qa_dir, tiny_model, tmp_path, monkeypatch):
    extra = ("--learning_rate", "1e-3", "--save_steps", "2")
    call(*arguments(qa_dir, tiny_model, tmp_path / "whole", *extra))
    as_parquet = arguments(qa_dir, tiny_model, tmp_path / "cut", *extra, "--artifact_format", "parquet")
    cut_and_resume(monkeypatch, 13, as_parquet)
    found = sorted(path.name for path in (tmp_path / "cut/map").iterdir() if path.suffix in KINDS)
    assert found == ["cartography_metrics.parquet", "categories_by_epoch.csv", "run_meta.json", "thresholds.json",
                     *(f"training_dynamics_epoch_{epoch}.parquet" for epoch in (1, 2, 3))]
    for one, other in zip(*(read_dynamics(tmp_path / name / "map") for name in ("whole", "cut")), strict=True):
        assert one["id"] == other["id"] and one.keys() == other.keys()
        assert all(one[name].tobytes() == other[name].tobytes() for name in one.keys() - {"epoch", "id"})
    metrics = [load_cartography_metrics(tmp_path / name / "map") for name in ("whole", "cut")]
    pd.testing.assert_frame_equal(*metrics, check_exact=True, check_dtype=False)  # a CSV says 0 for 0.0
    for name in ("thresholds.json", "categories_by_epoch.csv"):
        assert (tmp_path / "whole/map" / name).read_bytes() == (tmp_path / "cut/map" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_in_mid_epoch_and_resumed(qa_dir, tiny_model, tmp_path, processes):
    """The real thing: kill -9 of the process group in mid-epoch, then --resume_from_checkpoint."""
    extra = ("--learning_rate", "1e-3", "--save_steps", "3", "--num_train_epochs", "6")
    launcher = [sys.executable]
    if processes == 2:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

    def start(out, *more):
        argv = map(str, arguments(qa_dir, tiny_model, out, *extra, *more))
        return subprocess.Popen(
            [*launcher, "run.py", *argv], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        )

    whole = start(tmp_path / "whole")
    assert whole.wait(300) == 0, whole.stdout.read()[-3000:]

    cut = start(tmp_path / "cut")
    deadline = time.monotonic() + 240
    while not list((tmp_path / "cut/model").glob("checkpoint-*/manifest.json")):  # what is written last
        assert cut.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(cut.pid, signal.SIGKILL)
    cut.wait()
    epochs = len(dynamics_bytes(tmp_path / "cut/map"))
    assert epochs < 6  # killed before the end

    resumed = start(tmp_path / "cut", "--resume_from_checkpoint")
    assert resumed.wait(300) == 0, resumed.stdout.read()[-3000:]
    assert dynamics_bytes(tmp_path / "whole/map") == dynamics_bytes(tmp_path / "cut/map")


def test_any_trainer_records_in_two_lines(tmp_path, caplog):
    """A plain Trainer for classification, with gradient accumulation and an evaluation in between."""
    import datasets
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    from datamap.cartography.recorder import CartographyCallback

    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=3,
                        intermediate_size=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                        initializer_range=0.5)
    model = BertForSequenceClassification(config)
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 50, size=(22, 7))
    labels = rng.integers(0, 3, size=22)
    data = datasets.Dataset.from_dict({"input_ids": tokens, "attention_mask": np.ones_like(tokens), "labels": labels})
    model.accepts_loss_kwargs = False
    with torch.no_grad():
        p = model.eval()(input_ids=torch.tensor(tokens)).logits.softmax(-1).numpy()
    args = TrainingArguments(
        output_dir=str(tmp_path / "out"), num_train_epochs=2, learning_rate=0.0, per_device_train_batch_size=4,
        gradient_accumulation_steps=2, use_cpu=True, eval_strategy="epoch", save_strategy="no", disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=args, train_dataset=data, eval_dataset=data.select(range(5)))
    CartographyCallback([f"t{row}" for row in range(22)], tmp_path / "map").attach(trainer)
    trainer.train()

    metrics = load_cartography_metrics(tmp_path / "map").loc[[f"t{row}" for row in range(22)]]
    np.testing.assert_allclose(metrics["confidence"], p[np.arange(22), labels], atol=1e-5)
    np.testing.assert_allclose(metrics["correctness"], p.argmax(1) == labels)
    assert (metrics["num_epochs"] == 2).all()
    learning = read_json(tmp_path / "map" / "thresholds.json")["learning"]
    shares = np.bincount(labels) / 22
    assert learning["guessing"] == {"accuracy": pytest.approx(shares.max()),
                                    "loss": pytest.approx(-(shares * np.log(shares)).sum())}
    assert learning["accuracy"] == pytest.approx([(p.argmax(1) == labels).mean()] * 2)
    assert learning["ever_right"] == (p.argmax(1) == labels).sum()
    assert learning["has_learned"] is False and "the categories mean nothing yet" in caplog.text


def test_a_recording_within_a_stage_keeps_its_run_meta(tmp_path):
    """It tells, when the stage is killed, that the recording is not whole; that of an earlier run goes."""
    def begin():
        recorder = CartographyCallback(["a", "b"], tmp_path)
        recorder._attached = True
        state = SimpleNamespace(global_step=0, is_world_process_zero=True)
        recorder.on_train_begin(SimpleNamespace(n_gpu=0), state, None)

    with stage(tmp_path, {"seed": 3}, owns=("cartography_*",)):
        begin()
        assert read_json(tmp_path / "run_meta.json")["status"] == "running"
    with sole_writer(tmp_path):  # no stage yet
        begin()
    assert load_meta(tmp_path) is None


def test_dynamics_files_are_small(qa_dir, tiny_model, tmp_path):
    """At most 120 bytes per example and epoch, with ids of 24 characters as SQuAD has them."""
    rows = [json.loads(line) for line in (qa_dir / "train.jsonl").read_text().splitlines()]
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data/train.jsonl", [{**row, "id": f"{n:024x}"} for n, row in enumerate(rows)])
    call(*arguments(tmp_path / "data", tiny_model, tmp_path, "--learning_rate", "1e-3"))
    for epoch in read_dynamics(tmp_path / "map"):
        size = (tmp_path / "map" / f"training_dynamics_epoch_{epoch['epoch']}.json").stat().st_size
        assert size / len(epoch["id"]) <= 120


def test_resuming_needs_the_recorded_dynamics(qa_dir, tiny_model, tmp_path, refused):
    call(*arguments(qa_dir, tiny_model, tmp_path, "--learning_rate", "1e-3", "--save_steps", "4"))
    checkpoints = sorted((tmp_path / "model").glob("checkpoint-*"))
    for checkpoint in checkpoints:
        (checkpoint / "training_dynamics.npz").unlink()
    command = arguments(qa_dir, tiny_model, tmp_path, "--learning_rate", "1e-3", "--resume_from_checkpoint")
    assert "no whole checkpoint" in refused(run.main, *command)
    assert "not a whole checkpoint" in refused(run.main, *command, checkpoints[0])


def test_a_row_that_belongs_to_no_example_is_refused(tmp_path):
    with pytest.raises(ValueError, match="points at 2, there are 2 ids"):
        CartographyCallback(["a", "b"], tmp_path / "map", [0, 1, 2])
    CartographyCallback([], tmp_path / "map")


@pytest.mark.parametrize("attached", [True, False])
def test_who_runs_a_stage_keeps_its_run_meta(tmp_path, attached):
    """Beside a Trainer of somebody else's it would describe this recording wrongly; in run.py it says `running`."""
    from types import SimpleNamespace

    meta, stale = tmp_path / "run_meta.json", tmp_path / "training_dynamics_epoch_7.json"
    meta.write_text("{}")
    stale.write_text("{}")
    recorder = CartographyCallback(["a"], tmp_path)
    if attached:
        import datasets
        from transformers import Trainer, TrainingArguments

        model = torch.nn.Linear(1, 1)
        given = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
        recorder.attach(Trainer(model=model, args=given, train_dataset=datasets.Dataset.from_dict({"x": [1.0]})))
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    recorder.on_train_begin(SimpleNamespace(n_gpu=0), state, None)
    assert meta.exists() is not attached and not stale.exists()
