"""Tokenizers and models to fine-tune: padding that is not EOS, 4 bit, adapters, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_mistral import save_model, toy_tokenizer

from datamap.core.errors import UserError
from datamap.thoughts import causal_lm
from datamap.thoughts.causal_lm import check_whole_adapter, load_causal_lm, load_tokenizer

TEXT = '[INST] The kite is red. [/INST] {"thought_process": "step 1", "predicted_label": 1}'

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("mistral"), toy_tokenizer())


@pytest.fixture(scope="module")
def adapter_dir(tmp_path_factory, model_dir):
    """A LoRA adapter that changes something: its B matrices are not zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = load_causal_lm(str(model_dir), load_tokenizer(str(model_dir)), no_cuda=True, trainable=True)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    directory = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(directory)
    load_tokenizer(str(model_dir)).save_pretrained(directory)
    return directory


def logits(model, tokenizer, text=TEXT):
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits.float()


def test_the_pad_token_is_never_eos(tmp_path):
    cases: dict[str, dict[str, str | None]] = {
        "unk": {}, "own": {"pad_token": "<s>"}, "eos": {"pad_token": "</s>"}, "none": {"unk_token": None}
    }
    found = {}
    for name, changes in cases.items():
        tokenizer = toy_tokenizer()
        for token, value in changes.items():
            setattr(tokenizer, token, value)
        tokenizer.save_pretrained(tmp_path / name)
        loaded = load_tokenizer(str(tmp_path / name))
        assert loaded.pad_token_id != loaded.eos_token_id
        found[name] = (loaded.pad_token, len(loaded) - len(tokenizer))
    assert found == {"unk": ("<unk>", 0), "own": ("<s>", 0), "eos": ("<unk>", 0), "none": ("<pad>", 1)}


def test_a_new_pad_token_gets_the_same_row_whenever_the_model_is_loaded(tmp_path):
    tokenizer = toy_tokenizer()
    tokenizer.unk_token = None
    save_model(tmp_path, tokenizer)
    tokenizer = load_tokenizer(str(tmp_path))
    first, second = (load_causal_lm(str(tmp_path), tokenizer, no_cuda=True) for _ in range(2))
    table = first.get_input_embeddings().weight
    assert table.shape[0] == len(tokenizer) == tokenizer.pad_token_id + 1
    torch.testing.assert_close(table[-1], table[:-1].mean(dim=0))
    torch.testing.assert_close(logits(first, tokenizer), logits(second, tokenizer), rtol=0, atol=0)
    assert first.config.pad_token_id == first.generation_config.pad_token_id == tokenizer.pad_token_id


def test_whole_on_the_cpu_is_float32_and_in_4_bit_nf4_twice_quantised(model_dir):
    import bitsandbytes

    tokenizer = load_tokenizer(str(model_dir))
    whole = load_causal_lm(str(model_dir), tokenizer, no_cuda=True)
    assert {weights.dtype for weights in whole.parameters()} == {torch.float32} and not whole.training
    small = load_causal_lm(str(model_dir), tokenizer, load_in_4bit=True, no_cuda=True)
    layer = small.model.layers[0].mlp.up_proj
    assert isinstance(layer, bitsandbytes.nn.Linear4bit)
    assert layer.weight.quant_state.quant_type == "nf4" and layer.weight.quant_state.nested
    assert layer.compute_dtype == torch.bfloat16
    exact, rough = logits(whole, tokenizer), logits(small, tokenizer)
    assert not torch.equal(exact, rough)
    torch.manual_seed(9)
    other = logits(type(whole)(whole.config).eval(), tokenizer)  # type: ignore[call-arg]
    near, far = (np.corrcoef(exact.flatten(), each.flatten())[0, 1] for each in (rough, other))
    assert near > 0.75 and abs(far) < 0.3


def test_gradients_in_4_bit_are_the_same_after_an_evaluation(model_dir):
    """Some processors make other weights of them in eval mode (AVX512-BF16; elsewhere this cannot fail)."""
    tokenizer = load_tokenizer(str(model_dir))
    model = load_causal_lm(str(model_dir), tokenizer, load_in_4bit=True, no_cuda=True, trainable=True)
    ids = torch.tensor([tokenizer("a kite is red")["input_ids"]])

    def gradient() -> torch.Tensor:
        inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
        model(inputs_embeds=inputs, labels=ids).loss.backward()
        assert inputs.grad is not None
        return inputs.grad

    before = gradient()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    model.train()
    torch.testing.assert_close(gradient(), before)


def test_an_adapter_is_put_on_for_use_or_for_training(model_dir, adapter_dir):
    tokenizer = load_tokenizer(str(adapter_dir))
    base = load_causal_lm(str(model_dir), tokenizer, no_cuda=True)
    tuned = load_causal_lm(str(model_dir), tokenizer, adapter=str(adapter_dir), no_cuda=True)
    assert not torch.allclose(logits(base, tokenizer), logits(tuned, tokenizer))
    assert not any(weights.requires_grad for weights in tuned.parameters()) and not tuned.training
    again = load_causal_lm(str(model_dir), tokenizer, adapter=str(adapter_dir), no_cuda=True, trainable=True)
    with_gradient = {name for name, weights in again.named_parameters() if weights.requires_grad}
    assert again.training and with_gradient and all("lora_" in name for name in with_gradient)
    torch.testing.assert_close(logits(again.eval(), tokenizer), logits(tuned, tokenizer))
    assert causal_lm.base_of_adapter(str(adapter_dir)) == str(model_dir)


def test_an_adapter_of_another_base_is_told(model_dir, adapter_dir, tmp_path, caplog):
    tokenizer = toy_tokenizer()
    save_model(tmp_path / "other", tokenizer, seed=5)
    with caplog.at_level("WARNING"):
        load_causal_lm(str(tmp_path / "other"), load_tokenizer(str(model_dir)), adapter=str(adapter_dir), no_cuda=True)
    assert f"was trained on {model_dir}" in caplog.text


def refusal(call) -> str:
    with pytest.raises(UserError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_refused_in_one_line(model_dir, adapter_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer = load_tokenizer(str(model_dir))
    assert "cannot load a tokenizer" in refusal(lambda: load_tokenizer("nobody/no-such-model"))
    assert "holds no tokenizer" in refusal(lambda: load_tokenizer(str(tmp_path)))
    assert "no config.json" in refusal(lambda: load_causal_lm(str(tmp_path), tokenizer))
    assert "no such directory" in refusal(lambda: load_causal_lm(str(model_dir), tokenizer, adapter="./nowhere"))
    assert "holds no adapter_config.json" in refusal(
        lambda: load_causal_lm(str(model_dir), tokenizer, adapter=str(model_dir))
    )
    silent = toy_tokenizer()
    silent.eos_token = None
    silent.save_pretrained(tmp_path / "silent")
    assert "has no EOS token" in refusal(lambda: load_tokenizer(str(tmp_path / "silent")))
    wide = tmp_path / "wide"
    save_model(wide, tokenizer, vocab_size=900)
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    assert "cannot load" in refusal(lambda: load_causal_lm(str(wide), tokenizer, no_cuda=True))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[1]", "[]", '"a"', "3"])
def test_a_file_of_a_model_that_holds_no_object_is_refused(model_dir, tmp_path, file, content):
    copy = Path(shutil.copytree(model_dir, tmp_path / "model"))
    (copy / file).write_text(content)
    with pytest.raises(UserError, match="cannot load .* from .*/model' .*expected a directory") as refused:
        load_causal_lm(str(copy), load_tokenizer(str(copy)))
    assert "\n" not in str(refused.value)


def test_an_adapter_config_that_holds_a_list_is_refused(model_dir, adapter_dir, tmp_path):
    copy = Path(shutil.copytree(adapter_dir, tmp_path / "adapter"))
    (copy / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"adapter_config.json holds \[\]; expected the JSON object"):
        check_whole_adapter(str(copy), str(model_dir))


def test_an_unfinished_adapter_is_refused(model_dir, adapter_dir, tmp_path):
    import shutil

    shutil.copytree(adapter_dir, tmp_path / "adapter")
    meta = {"status": "running", "arguments": {"do_train": True}}
    (tmp_path / "adapter/run_meta.json").write_text(json.dumps(meta))
    tokenizer = load_tokenizer(str(model_dir))
    told = refusal(lambda: load_causal_lm(str(model_dir), tokenizer, adapter=str(tmp_path / "adapter"), no_cuda=True))
    assert "marked running" in told


def test_an_adapter_that_does_not_fit_is_refused(adapter_dir, tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = toy_tokenizer()
    config = MistralConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                           num_attention_heads=2, num_key_value_heads=2)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    told = refusal(lambda: load_causal_lm(str(tmp_path), tokenizer, adapter=str(adapter_dir), no_cuda=True))
    assert "cannot put adapter" in told


def test_an_adapter_of_more_or_fewer_layers_is_refused(model_dir, tmp_path):
    """Each has layers that the other has not: the rest would fit, and half an adapter would answer."""
    from peft import LoraConfig, get_peft_model
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = load_tokenizer(str(model_dir))
    model = load_causal_lm(str(model_dir), tokenizer, no_cuda=True, trainable=True)
    adapter = str(tmp_path / "adapter")
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).save_pretrained(adapter)
    load_causal_lm(str(model_dir), tokenizer, adapter=adapter, no_cuda=True)
    config = MistralConfig.from_pretrained(model_dir)
    for layers, where in ((1, "the model"), (3, "the adapter")):
        config.num_hidden_layers = layers
        config.layer_types = None
        base = tmp_path / str(layers)
        MistralForCausalLM(config).save_pretrained(base)
        tokenizer.save_pretrained(base)
        told = refusal(lambda base=base: load_causal_lm(str(base), tokenizer, adapter=adapter, no_cuda=True))
        assert f"4 of its weights are not in {where} (" in told, told
