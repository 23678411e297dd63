"""A training goes on as it began or says what differs, from whole checkpoints only; nothing is lost unasked."""

import itertools
import json
import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest

import run
from datamap.training import callbacks
from datamap.training.checkpoints import damage_of, has_whole_checkpoint, write_manifest

SMALL = ["--no_cuda", "--max_length", "64", "--doc_stride", "20", "--per_device_train_batch_size", "8"]


def call(*argv):
    run.main([str(argument) for argument in argv])


def read(path):
    return json.loads(Path(path).read_text())


@pytest.fixture(scope="module")
def begun(qa_dir, tiny_model, tmp_path_factory):
    """12 steps with checkpoints after 2, 4, ... 12, evaluated on the validation split; flags of the run."""
    out = tmp_path_factory.mktemp("begun")
    flags = ["--do_train", "--model", tiny_model, "--dataset", qa_dir, "--learning_rate", "1e-3", "--num_train_epochs",
             "2", "--save_steps", "2", "--logging_steps", "1", *SMALL]
    call(*flags, "--do_eval", "--enable_cartography", "--cartography_output_dir", out / "c", "--output_dir", out / "m")
    return out, [*flags, "--enable_cartography"]


@pytest.fixture
def again(begun, tmp_path):
    """The same in a place of its own, and the command that goes on with it."""
    shutil.copytree(begun[0] / "m", tmp_path / "m")
    shutil.copytree(begun[0] / "c", tmp_path / "c")
    meta = read(tmp_path / "m/run_meta.json")
    for each in [meta, *meta["history"]]:
        each["arguments"]["cartography_output_dir"] = str(tmp_path / "c")
    (tmp_path / "m/run_meta.json").write_text(json.dumps(meta))
    return [*begun[1], "--output_dir", tmp_path / "m", "--cartography_output_dir", tmp_path / "c"]


def steps_logged(directory):
    lines = (directory / "training_log.csv").read_text().splitlines()[1:]
    return {line.split(",")[0]: line for line in lines}


# --- as it began --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("learning_rate", "1e-4", "learning_rate 0.001, not 0.0001"),
        ("weight_decay", "0.1", "weight_decay 0.0 (the default), not 0.1"),
        ("warmup_steps", "3", "warmup_steps 0 (the default), not 3"),
        ("optim", "adafactor", "optim adamw_torch_fused (the default), not adafactor"),
        ("lr_scheduler_type", "cosine", "lr_scheduler_type linear (the default), not cosine"),
        ("max_grad_norm", "0.5", "max_grad_norm 1.0 (the default), not 0.5"),
        ("adam_beta2", "0.9", "adam_beta2 0.999 (the default), not 0.9"),
        ("num_train_epochs", "1", "num_train_epochs 2, not 1"),
        ("max_steps", "5", "num_train_epochs 2, not max_steps 5"),
        ("dataloader_drop_last", "true", "dataloader_drop_last False (the default), not True"),
        ("ignore_data_skip", "true", "ignore_data_skip False (the default), not True"),
        ("use_soft_weighting", None, "enable_cartography True, not False; use_soft_weighting False, not True"),
        ("use_label_smoothing", None, "use_label_smoothing False, not True"),
        ("spans", "strict", "spans nearest, not strict"),
        ("max_train_samples", "9", "max_train_samples None, not 9"),
        ("per_device_train_batch_size", "4", "per_device_train_batch_size 8, not 4"),
        ("load_best_model_at_end", "true", "load_best_model_at_end False (the default), not True"),
    ],
)
def test_what_changes_the_training_is_refused_with_both_values(refused, again, begun, flag, value, words):
    extra = [f"--{flag}", *([value] if value else [])]
    if flag.startswith("use_"):
        again.remove("--enable_cartography")
    if flag == "load_best_model_at_end":
        extra += ["--eval_strategy", "steps", "--eval_steps", "2"]
    told = refused(run.main, *again, *extra, "--resume_from_checkpoint")
    assert words in told and "resume with the flags it was started with" in told


def test_all_that_differs_is_said_at_once(refused, again):
    told = refused(run.main, *again, "--seed", "7", "--learning_rate", "0.1", "--resume_from_checkpoint")
    assert "was trained with learning_rate 0.001, not 0.1; seed 42, not 7: resume" in told


def test_what_may_change_may_and_a_default_may_be_spelt_out(again, tmp_path, caplog):
    checkpoint = tmp_path / "m/checkpoint-4"
    with caplog.at_level(logging.INFO):
        call(*again, "--resume_from_checkpoint", checkpoint, "--weight_decay", "0", "--optim", "adamw_torch_fused",
             "--logging_steps", "2", "--save_steps", "100", "--dataloader_num_workers", "0", "--report_to", "none",
             "--eval_strategy", "epoch", "--num_train_epochs", "3", "--spans", "nearest")
    assert "num_train_epochs 3, before 2: from here on the learning rate takes the course of the longer" in caplog.text
    assert len(list((tmp_path / "c").glob("training_dynamics_epoch_*.json"))) == 3
    arguments = read(tmp_path / "m/run_meta.json")["arguments"]
    assert arguments["num_train_epochs"] == 3 and arguments["learning_rate"] == 1e-3


@pytest.mark.parametrize("step", [4, 12])
def test_the_training_loss_is_that_of_all_steps_wherever_it_went_on(again, begun, tmp_path, step):
    """Also where nothing was left to train."""
    call(*again, "--resume_from_checkpoint", tmp_path / f"m/checkpoint-{step}")
    resumed, whole = (read(place / "m/train_metrics.json")["train_loss"] for place in (tmp_path, begun[0]))
    assert resumed == whole
    losses = pd.read_csv(begun[0] / "m/training_log.csv")["loss"].dropna()
    assert len(losses) == 12 and whole == pytest.approx(losses.mean(), rel=1e-3)


def test_losses_that_were_not_logged_yet_go_on_where_they_were(begun, tmp_path):
    """A checkpoint between two lines of the log: the library would tell the mean of the steps since it alone."""
    flags = [*begun[1][:-1], "--logging_steps", "5", "--output_dir"]
    call(*flags, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    call(*flags, tmp_path / "again", "--resume_from_checkpoint", tmp_path / "again/checkpoint-4")
    logs = [pd.read_csv(tmp_path / name / "training_log.csv") for name in ("whole", "again")]
    columns = ["step", "loss", "grad_norm"]
    pd.testing.assert_frame_equal(logs[1][columns], logs[0][columns], check_exact=True)
    assert logs[0]["step"].tolist()[:2] == [5, 10]
    losses = [read(tmp_path / name / "train_metrics.json")["train_loss"] for name in ("whole", "again")]
    assert losses[0] == losses[1]


def test_a_checkpoint_without_the_sum_of_losses_leaves_their_mean_open(again, tmp_path):
    """Of an older version."""
    checkpoint = tmp_path / "m/checkpoint-4"
    state = read(checkpoint / "trainer_state.json")
    del state["stateful_callbacks"]["LossSoFar"]
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    write_manifest(checkpoint)
    call(*again, "--resume_from_checkpoint", checkpoint)
    assert read(tmp_path / "m/train_metrics.json")["train_loss"] is None


def test_what_was_evaluated_on_is_not_what_was_trained_on(refused, again):
    """The recorded datasets are those trained on and evaluated on; a resume is on the first."""
    told = refused(run.main, *again, "--train_split", "validation", "--resume_from_checkpoint")
    assert "was trained on other data than" in told and "[validation]" in told


def test_a_checkpoint_elsewhere_is_compared_with_the_run_that_wrote_it(refused, again, tmp_path):
    other = [*again, "--output_dir", tmp_path / "new", "--cartography_output_dir", tmp_path / "c2",
             "--resume_from_checkpoint", tmp_path / "m/checkpoint-4"]
    assert "learning_rate 0.001, not 0.1" in refused(run.main, *other, "--learning_rate", "0.1")
    call(*other)
    assert steps_logged(tmp_path / "new").keys() == steps_logged(tmp_path / "m").keys()
    (tmp_path / "m/run_meta.json").unlink()
    told = refused(run.main, *again, "--resume_from_checkpoint", tmp_path / "m/checkpoint-4")
    assert "holds no run_meta.json of its training" in told


def test_other_examples_are_refused_also_where_the_flags_are_the_same(refused, again, begun, tmp_path):
    """A map that was made again between start and resume chooses other examples, or weights them otherwise."""
    flags = [word for word in again if word != "--enable_cartography"]
    flags[flags.index(tmp_path / "m")] = tmp_path / "weighted"
    call(*flags, "--use_soft_weighting", "--max_steps", "4")
    table = pd.read_csv(tmp_path / "c/cartography_metrics.csv", dtype={"id": str})
    table.loc[0, "variability"] = 0.4
    table.to_csv(tmp_path / "c/cartography_metrics.csv", index=False)
    (tmp_path / "c/run_meta.json").unlink()
    told = refused(run.main, *flags, "--use_soft_weighting", "--max_steps", "4", "--resume_from_checkpoint")
    assert "was trained with other examples, or other metrics of them" in told


def test_as_many_processes_as_before(refused, again, tmp_path):
    checkpoint = tmp_path / "m/checkpoint-12"
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    write_manifest(checkpoint)
    told = refused(run.main, *again, "--resume_from_checkpoint")
    assert "written by a training of 2 processes, not 1" in told


# --- whole checkpoints --------------------------------------------------------------------------------------------


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("optimizer.pt", Path.unlink, "optimizer.pt is missing"),
        ("scheduler.pt", Path.unlink, "scheduler.pt is missing"),
        ("rng_state.pth", Path.unlink, "rng_state.pth is missing"),
        ("training_dynamics.npz", Path.unlink, "training_dynamics.npz is missing"),
        ("optimizer.pt", cut, "bytes, "),
        ("optimizer.pt", flip, "optimizer.pt is damaged"),
        ("model.safetensors", flip, "model.safetensors is damaged"),
        ("trainer_state.json", cut, "trainer_state.json has "),
        ("manifest.json", Path.unlink, "holds no manifest.json, which is written last"),
        ("manifest.json", cut, "its manifest.json is damaged"),
    ],
)
def test_what_is_damaged_is_not_whole(begun, tmp_path, file, damage, words):
    shutil.copytree(begun[0] / "m/checkpoint-6", tmp_path / "checkpoint-6")
    assert damage_of(tmp_path / "checkpoint-6", with_dynamics=True) is None
    if file == "manifest.json" and damage is cut:
        (tmp_path / "checkpoint-6" / file).write_text('{"files": {')
    else:
        damage(tmp_path / "checkpoint-6" / file)
    assert words in str(damage_of(tmp_path / "checkpoint-6", with_dynamics=True))
    assert not has_whole_checkpoint(tmp_path, with_dynamics=True)
    shutil.copytree(begun[0] / "m/checkpoint-4", tmp_path / "checkpoint-4")
    assert has_whole_checkpoint(tmp_path, with_dynamics=True)


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(again, begun, tmp_path, caplog):
    """And the training comes to what it would have come to."""
    (tmp_path / "m/checkpoint-12/optimizer.pt").unlink()
    call(*again, "--resume_from_checkpoint")
    assert "checkpoint-12 is not whole, optimizer.pt is missing; resuming from checkpoint-10" in caplog.text
    assert steps_logged(tmp_path / "m") == steps_logged(begun[0] / "m")
    assert damage_of(tmp_path / "m/checkpoint-12", with_dynamics=True) is None  # it was written again


def test_seconds_of_a_training_are_counted_over_its_resumes(again, begun, tmp_path):
    """Up to the checkpoint from which it goes on, and from there: what was lost in between does not count."""
    whole = read(begun[0] / "m/train_metrics.json")
    assert whole["training_seconds"] == whole["train_runtime"]
    marks = [read(begun[0] / f"m/checkpoint-{step}/manifest.json")["seconds"] for step in range(2, 13, 2)]
    assert all(one < other for one, other in itertools.pairwise(marks)) and marks[-1] <= whole["train_runtime"] + 0.1
    manifest = tmp_path / "m/checkpoint-8/manifest.json"
    manifest.write_text(json.dumps({**read(manifest), "seconds": 1000.0}))
    call(*again, "--resume_from_checkpoint", tmp_path / "m/checkpoint-8")
    rest = read(tmp_path / "m/train_metrics.json")
    assert rest["training_seconds"] == 1000 + rest["train_runtime"] and rest["train_runtime"] < 1000
    assert 1000 < read(tmp_path / "m/checkpoint-12/manifest.json")["seconds"] <= rest["training_seconds"] + 0.1
    older = {name: value for name, value in read(manifest).items() if name != "seconds"}
    manifest.write_text(json.dumps(older))
    call(*again, "--resume_from_checkpoint", tmp_path / "m/checkpoint-8", "--num_train_epochs", "3")
    assert read(tmp_path / "m/train_metrics.json")["training_seconds"] is None


def test_a_damaged_checkpoint_by_name_is_refused(refused, again, tmp_path):
    flip(tmp_path / "m/checkpoint-4/scheduler.pt")
    told = refused(run.main, *again, "--resume_from_checkpoint", tmp_path / "m/checkpoint-4")
    assert "is not a whole checkpoint of such a run: scheduler.pt is damaged" in told
    told = refused(run.main, *again, "--resume_from_checkpoint", tmp_path / "m/checkpoint-5")
    assert "there is no such directory" in told


def test_killed_while_the_first_checkpoint_is_written_the_advice_leads_on(refused, again, tmp_path, monkeypatch):
    command = [*again, "--output_dir", tmp_path / "new", "--cartography_output_dir", tmp_path / "c2"]

    def killed(checkpoint, seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(callbacks, "write_manifest", killed)
    with pytest.raises(SystemExit):
        call(*command)
    monkeypatch.undo()
    told = refused(run.main, *command)
    assert "holds checkpoint-2 of an unfinished run, and no whole checkpoint" in told
    assert "--overwrite" in told and "--resume_from_checkpoint" not in told
    told = refused(run.main, *command, "--resume_from_checkpoint")
    assert "no whole checkpoint" in told and "start again with --overwrite" in told
    call(*command, "--overwrite")
    assert read(tmp_path / "new/run_meta.json")["status"] == "finished"


def test_the_best_so_far_must_be_there(refused, again, tmp_path):
    command = [*again, "--output_dir", tmp_path / "best", "--cartography_output_dir", tmp_path / "c2",
               "--eval_strategy", "steps", "--eval_steps", "2", "--max_steps", "4", "--load_best_model_at_end"]
    call(*command)
    state, best = tmp_path / "best/checkpoint-4/trainer_state.json", tmp_path / "best/checkpoint-2"
    assert read(state)["best_model_checkpoint"]
    state.write_text(json.dumps({**read(state), "best_model_checkpoint": str(best)}))  # whichever it was
    write_manifest(state.parent)
    shutil.rmtree(best)
    told = refused(run.main, *command, "--resume_from_checkpoint")
    assert f"{best}, the best of this training so far, is not whole: there is no such directory" in told


def test_a_model_without_its_optimizer_is_named(refused, again, tmp_path):
    command = [*again, "--output_dir", tmp_path / "new", "--cartography_output_dir", tmp_path / "c2",
               "--save_only_model", "--max_steps", "2"]
    call(*command)
    told = refused(run.main, *command, "--resume_from_checkpoint")
    assert "checkpoint-2: it was saved without its optimizer (--save_only_model)" in told


# --- nothing is lost unasked --------------------------------------------------------------------------------------


def everything(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def test_a_finished_run_is_not_overwritten_unasked(refused, again, tmp_path):
    before = everything(tmp_path)
    assert "holds a trained model (finished 20" in refused(run.main, *again)
    elsewhere = [*again, "--output_dir", tmp_path / "new"]
    assert f"{tmp_path / 'c'} holds a data map" in refused(run.main, *elsewhere)
    assert everything(tmp_path) == before
    shutil.copytree(tmp_path / "m", tmp_path / "m2")
    assert "holds a trained model" in refused(
        run.main, *again, "--resume_from_checkpoint", tmp_path / "m/checkpoint-4", "--output_dir", tmp_path / "m2"
    )
    call(*again, "--overwrite", "--max_steps", "2")
    assert read(tmp_path / "m/run_meta.json")["arguments"]["max_steps"] == 2


def test_the_model_that_is_read_is_not_overwritten_unasked(refused, again, qa_dir, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "downloaded")  # no run_meta.json
    command = ["--do_train", "--max_steps", "1", "--model", model, "--dataset", qa_dir, "--output_dir", model, *SMALL]
    before = everything(model)
    told = refused(run.main, *command)
    assert f"{model} holds a trained model: name another --output_dir, or replace it with --overwrite" in told
    assert everything(model) == before
    call(*command, "--overwrite")
    call("--do_eval", "--model", model, "--dataset", qa_dir, "--output_dir", model, *SMALL)  # that needs no asking
    call("--do_eval", "--model", model, "--dataset", qa_dir, "--output_dir", model, *SMALL)
    assert (model / "model.safetensors").exists()


def test_a_resume_of_a_directory_without_checkpoints(refused, again, qa_dir, tmp_path):
    for checkpoint in (tmp_path / "m").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    told = refused(run.main, *again, "--resume_from_checkpoint")
    assert "no whole checkpoint" in told and "start again with --overwrite" in told
    told = refused(run.main, *again, "--output_dir", tmp_path / "empty", "--cartography_output_dir", tmp_path / "c2",
                   "--resume_from_checkpoint")
    assert "start without the flag" in told and not (tmp_path / "empty").exists()
