"""One loader: whatever is loaded, for whatever purpose, the same is refused in one line."""

import json
import shutil

import pytest

from datamap.core.errors import UserError
from datamap.selection.language_models import load_causal, load_masked
from datamap.tasks.registry import get_task
from datamap.thoughts.causal_lm import load_causal_lm
from datamap.training.models import load_encoder, load_model, load_tokenizer

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


FAULTS = {
    "no model": (lambda model: (model / "config.json").unlink(), "holds no config.json, so no model"),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "holds no tokenizer"),
    "unfinished": (lambda model: (model / "run_meta.json").write_text(json.dumps(
        {"status": "running", "arguments": {"do_train": True}})), "its training is marked running"),
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
