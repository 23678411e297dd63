"""Perplexities of tiny random models of real architectures, against one text and one token at a time in float64."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from datamap.core.errors import UserError
from datamap.selection import cache, language_models
from datamap.selection.cache import cached
from datamap.selection.language_models import load_causal, load_masked, perplexity_rows, pseudo_perplexity_rows
from datamap.training.tiny_model import train_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [
    "the film is warm and bright , and the road was long",
    "",
    "the",
    "Nobody said a word.",
    "   ",
    "naïve café – 東京 🙂🙂 \u200b\u0301",
    "the film is warm",
    "it rained until late in the evening " * 12,
    "a",
    "the film is warm",
]
CORPUS = [*TEXTS, "the road was long and full of dust .", "a film of a road in the rain"] * 3
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
         "initializer_range": 0.3}
MAX_LENGTH = 40


def byte_level(begin: str | None = None, pad: str | None = "<|pad|>") -> PreTrainedTokenizerFast:
    """Bytes merged into pieces, as Qwen's; with ``begin`` in front of every text, as Llama's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", *filter(None, (pad, begin))]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainer)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token=pad,
                                   bos_token=begin)


def save(directory: Path, model, tokenizer) -> Path:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    causal = {**SIZES, "num_key_value_heads": 1, "max_position_embeddings": 512, "eos_token_id": 0,
              "bos_token_id": None}
    made = {}
    for name, tokenizer, tied in (("qwen", byte_level(), True), ("pad is eos", byte_level(pad=None), False)):
        config = transformers.Qwen3Config(**causal, vocab_size=len(tokenizer), head_dim=16, tie_word_embeddings=tied)
        made[name] = save(home / name, transformers.Qwen3ForCausalLM(config), tokenizer)
    tokenizer = byte_level(begin="<s>")
    config = transformers.LlamaConfig(**causal, vocab_size=len(tokenizer))
    made["llama"] = save(home / "llama", transformers.LlamaForCausalLM(config), tokenizer)

    wordpiece = train_tokenizer(CORPUS, max_length=512)
    wordpiece.model_input_names = ["input_ids", "attention_mask"]
    special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    sizes = {**SIZES, "vocab_size": len(wordpiece), "max_position_embeddings": 512}
    for sparse in (False, True):
        config = transformers.ModernBertConfig(**sizes, **special, sparse_prediction=sparse, local_attention=8)
        made[f"modernbert{' sparse' * sparse}"] = save(
            home / f"modernbert{sparse}", transformers.ModernBertForMaskedLM(config), wordpiece
        )
    wordpiece = train_tokenizer(CORPUS, max_length=512)
    made["bert"] = save(home / "bert", transformers.BertForMaskedLM(transformers.BertConfig(**sizes)), wordpiece)
    config = transformers.ElectraConfig(**sizes, embedding_size=16)
    made["electra"] = save(home / "electra", transformers.ElectraForMaskedLM(config), wordpiece)
    made["classifier"] = save(home / "classifier", transformers.ElectraForSequenceClassification(config), wordpiece)
    return made


CAUSAL = ("qwen", "pad is eos", "llama")
MASKED = ("modernbert", "modernbert sparse", "bert", "electra")


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    values = logits.double().numpy()
    values = values - values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def slow_perplexity(text: str, model, tokenizer, max_length: int = MAX_LENGTH) -> float:
    ids = tokenizer(text)["input_ids"][:max_length]
    losses = []
    for end in range(1, len(ids)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:end]])).logits[0, -1]
        losses.append(-log_softmax(logits)[ids[end]])
    return float(np.exp(np.mean(losses))) if losses else float("nan")


def slow_pseudo_perplexity(text: str, model, tokenizer, max_length: int = MAX_LENGTH) -> float:
    ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    losses = []
    for place in range(1, len(ids) - 1):  # [CLS] and [SEP] are not scored
        masked = [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([masked])).logits[0, place]
        losses.append(-log_softmax(logits)[ids[place]])
    return float(np.exp(np.mean(losses))) if losses else float("nan")


def values_of(rows_of, texts, model, tokenizer, batch_size: int = 4, max_length: int = MAX_LENGTH) -> np.ndarray:
    order, compute = rows_of(texts, model, tokenizer, max_length, batch_size)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(texts)))
    values = np.empty(len(texts), np.float32)
    values[order] = compute(order)
    return values


# --- perplexity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_perplexity_is_the_slow_one(saved, name):
    model, tokenizer = load_causal(saved[name], no_cuda=True)
    assert model.dtype == torch.float32 and not model.training
    values = values_of(perplexity_rows, TEXTS, model, tokenizer)
    slow = [slow_perplexity(text, model, tokenizer) for text in TEXTS]
    np.testing.assert_allclose(values, slow, rtol=1e-4)
    assert np.nanmin(values) >= 1
    lengths = [len(tokenizer(text)["input_ids"]) for text in TEXTS]
    assert max(lengths) > MAX_LENGTH and 1 in lengths
    np.testing.assert_array_equal(np.isnan(values), [length < 2 for length in lengths])
    assert np.isnan(values[1])


def test_first_word_is_scored_only_after_a_begin(saved):
    """With a token before it one token is a text; without, there is nothing to predict it from."""
    texts = ["a", ""]
    assert np.isnan(values_of(perplexity_rows, texts, *load_causal(saved["qwen"], True))).all()
    model, tokenizer = load_causal(saved["llama"], True)
    begin, first = tokenizer("a")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[begin]])).logits[0, 0]
    values = values_of(perplexity_rows, texts, model, tokenizer)
    assert values[0] == pytest.approx(np.exp(-log_softmax(logits)[first]), rel=1e-4)
    assert np.isnan(values[1])


def test_added_end_is_not_scored(saved):
    model, tokenizer = load_causal(saved["qwen"], True)
    plain = values_of(perplexity_rows, TEXTS, model, tokenizer, max_length=200)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    assert tokenizer("a")["input_ids"][-1] == 0
    np.testing.assert_allclose(values_of(perplexity_rows, TEXTS, model, tokenizer, max_length=200), plain, rtol=1e-5)


def test_padding_token_where_there_is_none(saved):
    _, tokenizer = load_causal(saved["pad is eos"], True)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"


def test_end_of_text_within_a_text_counts(saved):
    """It is also the padding token: what counts goes by length, not by id."""
    model, tokenizer = load_causal(saved["pad is eos"], True)
    texts = ["the film<|endoftext|>the road<|endoftext|>", "the film is warm and bright and long"]
    assert tokenizer(texts[0])["input_ids"].count(0) == 2
    values = values_of(perplexity_rows, texts, model, tokenizer)
    np.testing.assert_allclose(values, [slow_perplexity(text, model, tokenizer) for text in texts], rtol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_perplexity_in_batches_of_any_size(saved, name, batch_size):
    model, tokenizer = load_causal(saved[name], True)
    alone = [values_of(perplexity_rows, [text], model, tokenizer)[0] for text in TEXTS]
    np.testing.assert_allclose(values_of(perplexity_rows, TEXTS, model, tokenizer, batch_size), alone, rtol=1e-4)


@pytest.mark.parametrize("limit", ["MAX_LOGITS", "MAX_FLOAT_LOGITS"])
def test_large_vocabularies_in_pieces(saved, monkeypatch, limit):
    model, tokenizer = load_causal(saved["qwen"], True)
    whole = values_of(perplexity_rows, TEXTS, model, tokenizer)
    shapes = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[0]))
    for size in (1, 7 * len(tokenizer), 90 * len(tokenizer)):
        shapes.clear()
        monkeypatch.setattr(language_models, limit, size)
        np.testing.assert_allclose(values_of(perplexity_rows, TEXTS, model, tokenizer), whole, rtol=1e-5)
        if limit == "MAX_LOGITS" and size == 1:
            assert set(shapes) == {1}  # texts in a forward pass
    handle.remove()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=12), min_size=1, max_size=6), batch_size=st.integers(1, 7))
def test_any_texts(saved, texts, batch_size):
    model, tokenizer = load_causal(saved["qwen"], True)
    values = values_of(perplexity_rows, texts, model, tokenizer, batch_size)
    np.testing.assert_allclose(values, [slow_perplexity(text, model, tokenizer) for text in texts], rtol=1e-4)
    model, tokenizer = load_masked(saved["modernbert"], True)
    values = values_of(pseudo_perplexity_rows, texts, model, tokenizer, batch_size)
    np.testing.assert_allclose(values, [slow_pseudo_perplexity(text, model, tokenizer) for text in texts], rtol=1e-4)


# --- pseudo-perplexity -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_pseudo_perplexity_is_the_slow_one(saved, name, batch_size):
    model, tokenizer = load_masked(saved[name], no_cuda=True)
    texts = TEXTS[:-1] if name == "modernbert" else TEXTS[1:7]
    values = values_of(pseudo_perplexity_rows, texts, model, tokenizer, batch_size)
    slow = [slow_pseudo_perplexity(text, model, tokenizer) for text in texts]
    np.testing.assert_allclose(values, slow, rtol=1e-4)
    assert np.nanmin(values) >= 1
    np.testing.assert_array_equal(np.isnan(values), [not text.strip() for text in texts])


def test_pseudo_perplexity_leaves_the_model_as_it_was(saved):
    model, tokenizer = load_masked(saved["modernbert"], True)
    inputs = tokenizer("the film is warm", return_tensors="pt")
    with torch.no_grad():
        before = model(**inputs).logits
        values_of(pseudo_perplexity_rows, TEXTS[:4], model, tokenizer)
        after = model(**inputs).logits
    assert torch.equal(before, after) and after.shape[1] == inputs["input_ids"].shape[1]


# --- both --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows_of", "load", "name"), [
    (perplexity_rows, load_causal, "qwen"), (pseudo_perplexity_rows, load_masked, "modernbert"),
])
class TestBoth:
    def test_long_texts_are_cut_and_told(self, saved, caplog, rows_of, load, name):
        model, tokenizer = load(saved[name], True)
        caplog.clear()
        long = values_of(rows_of, TEXTS, model, tokenizer, max_length=200)
        assert "were cut" not in caplog.text
        cut = values_of(rows_of, TEXTS, model, tokenizer)
        assert f"1 of 10 texts are longer than {MAX_LENGTH} tokens" in caplog.text
        assert abs(cut[7] / long[7] - 1) > 1e-3
        np.testing.assert_allclose(np.delete(cut, 7), np.delete(long, 7), rtol=1e-5)

    def test_order_is_by_length_and_stable(self, saved, rows_of, load, name):
        model, tokenizer = load(saved[name], True)
        texts = TEXTS * 20  # numpy sorts a few in a stable way whatever it is asked
        order, _ = rows_of(texts, model, tokenizer, MAX_LENGTH, 4)
        lengths = np.array([min(len(tokenizer(text)["input_ids"]), MAX_LENGTH) for text in texts])
        assert order.tolist() == sorted(range(len(texts)), key=lambda row: (-lengths[row], row))

    def test_through_the_cache_in_shards(self, saved, tmp_path, rows_of, load, name, monkeypatch):
        monkeypatch.setattr(cache, "SHARD_ROWS", 3)
        model, tokenizer = load(saved[name], True)
        shape, key = (len(TEXTS),), {"model": name}
        whole = values_of(rows_of, TEXTS, model, tokenizer)

        def prepare():
            return rows_of(TEXTS, model, tokenizer, MAX_LENGTH, 4)

        def breaking():
            order, compute = prepare()
            return order, lambda rows: compute(rows) if order[0] in rows else 1 / 0

        with pytest.raises(ZeroDivisionError):
            cached(tmp_path, "scores", key, shape, breaking)
        np.testing.assert_allclose(cached(tmp_path, "scores", key, shape, prepare), whole, rtol=1e-4)

    def test_only_texts_without_tokens(self, saved, rows_of, load, name):
        model, tokenizer = load(saved[name], True)
        assert np.isnan(values_of(rows_of, ["", " " if name != "qwen" else ""], model, tokenizer)).all()

    def test_broken_model_is_refused(self, saved, rows_of, load, name):
        model, tokenizer = load(saved[name], True)
        with torch.no_grad():
            model.get_input_embeddings().weight[:] = float("nan")
        with pytest.raises(UserError, match="NaN or infinite"):
            values_of(rows_of, TEXTS, model, tokenizer)


# --- loading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("load", "name", "message"), [
    (load_masked, "classifier", "lacks .* trained weights of a masked"),
    (load_causal, "classifier", "lacks .* trained weights of a causal"),
    (load_causal, "bert", "sees the words that it is to predict"),
    (load_causal, "electra", "sees the words that it is to predict"),
    (load_masked, "qwen", "cannot load a masked language model from"),
    (load_causal, "modernbert", "cannot load a causal language model from"),
])
def test_wrong_kind_of_model(saved, load, name, message):
    with pytest.raises(UserError, match=message) as refused:
        load(str(saved[name]), no_cuda=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("load", [load_causal, load_masked])
def test_no_model_there(load, tmp_path):
    for name in (str(tmp_path), str(tmp_path / "none"), "nobody/nothing-of-this-name"):
        with pytest.raises(UserError) as refused:
            load(name, no_cuda=True)
        assert "\n" not in str(refused.value)


def test_damaged_weights(saved, tmp_path):
    for file in saved["qwen"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot load"):
        load_causal(tmp_path, no_cuda=True)


def test_tokenizer_without_a_mask(saved, tmp_path):
    model = transformers.BertForMaskedLM.from_pretrained(saved["bert"])
    save(tmp_path, model, byte_level())
    with pytest.raises(UserError, match="no mask token"):
        load_masked(tmp_path, no_cuda=True)


def test_library_says_nothing_while_loading(saved, capfd, caplog):
    caplog.set_level(logging.INFO)
    load_causal(saved["qwen"], True)
    load_masked(saved["modernbert"], True)
    assert capfd.readouterr() == ("", "") and not caplog.text
