"""Causal language models to fine-tune and to generate with: tokenizer, weights in 4 bit or whole, LoRA adapter."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamap.core.artifacts import model_meta
from datamap.core.errors import UserError, first_line, name_a_few
from datamap.core.files import read_json
from datamap.training import models

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_PAD = "<pad>"
ADAPTER_CONFIG = "adapter_config.json"

logger = logging.getLogger(__name__)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Tokenizer of a Hub name, of a model directory or of an adapter, whose pad token is not its EOS token.

    A model that is trained with EOS as padding may never learn to stop. The pad token is the tokenizer's own, else
    its unk token, else a new ``<pad>``, for which ``load_causal_lm`` makes room in the model. ``padding_side`` is as
    saved. UserError when there is no tokenizer, or one without EOS.
    """
    tokenizer = models.load_tokenizer(name)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {name!r} has no EOS token, so its model cannot say where an answer ends; "
                        "give a causal language model with one")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        if tokenizer.unk_token_id not in (None, tokenizer.eos_token_id):
            tokenizer.pad_token = tokenizer.unk_token
        else:
            tokenizer.add_special_tokens({"pad_token": NEW_PAD})
    return tokenizer


def load_causal_lm(
    name: str, tokenizer: PreTrainedTokenizerBase, *, adapter: str | None = None, load_in_4bit: bool = False,
    no_cuda: bool = False, trainable: bool = False, attn_implementation: str | None = None,
) -> PreTrainedModel | PeftModel:
    """Causal language model of a Hub name or directory, on this process's device.

    load_in_4bit: NF4 with double quantisation, computing in bfloat16 (Dettmers et al. 2023, arXiv 2305.14314), on the
    CPU too. Otherwise float32 on the CPU and bfloat16 on a GPU. adapter: directory or Hub name of a LoRA adapter that
    is put on it. trainable: leave it in training mode, the adapter's weights with gradients; else in eval mode. A
    tokenizer that knows more tokens than the model gets rows for them, each the mean of the others.

    UserError, in one line, for whatever is not there, not whole, or does not fit together.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    # PEFT and TRL still read it by that name.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    if adapter is not None:
        check_whole_adapter(adapter, name)
    device = models.device_of_process(no_cuda)
    # The adapter, the cache and the hidden states stay in this type.
    dtype = torch.bfloat16 if device.type == "cuda" or load_in_4bit else torch.float32
    settings: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}}
    if load_in_4bit:
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    if attn_implementation is not None:
        settings["attn_implementation"] = attn_implementation
    model: Any = models.load_pretrained(
        name, AutoModelForCausalLM, "a causal language model", tokenizer=tokenizer, **settings
    )[0]
    _make_room(model, tokenizer)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    if load_in_4bit and trainable:
        _keep_weights_trainable(model)
    if adapter is not None:
        model = _with_adapter(model, adapter, name, trainable, in_bfloat16=load_in_4bit)
    return model.train() if trainable else model.eval()


def check_whole_adapter(adapter: str, name: str | None = None) -> None:
    """Refuse an adapter directory whose training did not finish; warn when it was trained on another model than
    ``name``."""
    if not Path(adapter).is_dir():
        if adapter.startswith((".", "/", "~")):
            raise UserError(f"adapter {adapter}: no such directory; train_sft.py writes one")
        return  # of the Hub
    config = Path(adapter) / ADAPTER_CONFIG
    if not config.exists():
        raise UserError(f"{adapter} holds no {ADAPTER_CONFIG}, so no adapter; train_sft.py writes one")
    meta = model_meta(adapter)
    if meta and meta.get("status") != "finished":
        raise UserError(f"adapter {adapter} is not whole: its training is marked {meta.get('status')}; go on with "
                        "train_sft.py --resume_from_checkpoint, or name one of its checkpoints")
    base = base_of_adapter(adapter)
    if base and name and base != name and Path(base).resolve() != Path(name).resolve():
        logger.warning(f"adapter {adapter} was trained on {base}, now it is put on {name}")


def base_of_adapter(adapter: str) -> str | None:
    """The base model that an adapter directory names; None where it names none, or is on the Hub."""
    file = Path(adapter) / ADAPTER_CONFIG
    if not file.is_file():
        return None
    config = read_json(file)
    if not isinstance(config, dict):
        raise UserError(f"{file} holds {config!r:.40}; expected the JSON object that PEFT writes there")
    return config.get("base_model_name_or_path")


def _keep_weights_trainable(model: PreTrainedModel) -> None:
    """On a CPU with AVX512-BF16, bitsandbytes 0.50 lays its weights out anew at the first pass in eval mode, for a
    product that has no gradient: whatever is trained after an evaluation would learn from wrong gradients."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _make_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Rows for the tokens that the tokenizer has and the model has not, the same ones whenever it is loaded."""
    import torch

    before = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) <= before:
        return
    # The library would draw them at random: the same adapter would then not be the same model twice.
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None:
                layer.weight[before:] = layer.weight[:before].float().mean(dim=0).to(layer.weight.dtype)
                if getattr(layer, "bias", None) is not None:
                    layer.bias[before:] = layer.bias[:before].float().mean().to(layer.bias.dtype)


def _with_adapter(model: PreTrainedModel, adapter: str, name: str, trainable: bool, in_bfloat16: bool) -> PeftModel:
    """in_bfloat16: as TRL trains adapters of 4-bit models; in float32, which PEFT would make of them, sums differ."""
    from peft import PeftModel
    from safetensors import SafetensorError

    settings: dict[str, Any] = {"is_trainable": trainable, "autocast_adapter_dtype": not in_bfloat16}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
            adapted = PeftModel.from_pretrained(model, adapter, **settings)
        found = adapted.load_adapter(adapter, "default", **settings)  # once more: this one tells what did not match
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"cannot put adapter {adapter!r} on {name!r} ({first_line(error):.200}); give the base model "
                        "that it was trained on") from error
    # Where either has layers that the other has not, the library leaves them out, and half an adapter answers.
    for keys, where in ((found.missing_keys, "the adapter"), (found.unexpected_keys, "the model")):
        if lacking := sorted(key for key in keys if "lora_" in key):
            raise UserError(f"adapter {adapter!r} does not fit {name!r}: {len(lacking):,} of its weights are not in "
                            f"{where} ({name_a_few(lacking, 1)}); give the base model that it was trained on")
    return adapted
