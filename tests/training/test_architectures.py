"""Models that differ from BERT in what breaks: no limit of positions, padding on the left, a head that looks for
``</s>``, a tokenizer that knows more tokens than the model has vectors for."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import qa_rows, review_rows, write_rows
from transformers.utils import logging as library_logging

import run
import select_subset
from datamap.core.errors import UserError
from datamap.core.files import read_jsonl
from datamap.core.splits import load_split
from datamap.selection.model_scores import score_rows
from datamap.tasks.registry import get_task
from datamap.training.embeddings import embedder, embedding_spans
from datamap.training.models import load_encoder, load_model, usable_length
from datamap.training.tiny_model import train_tokenizer

QUICK = ["--no_cuda", "--max_steps", "1", "--save_strategy", "no", "--max_length", "96"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of bare encoders, untrained: XLNet, BART, and an ELECTRA whose tokenizer got two tokens more."""
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import (
        BartConfig,
        BartModel,
        ElectraConfig,
        ElectraModel,
        PreTrainedTokenizerFast,
        XLNetConfig,
        XLNetModel,
    )

    home = tmp_path_factory.mktemp("models")
    texts = [row["sentence"] for row in review_rows(48, 0)]
    texts += [text for row in qa_rows(24, seed=1) for text in (row["question"], row["context"])]
    tokenizer = train_tokenizer(texts, max_length=128)

    def save(name, model, its_tokenizer):
        model.save_pretrained(home / name)
        its_tokenizer.save_pretrained(home / name)

    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "initializer_range": 0.3}
    save("xlnet", XLNetModel(XLNetConfig(vocab_size=len(tokenizer), **sizes)), tokenizer)
    sizes = {"embedding_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 64, "max_position_embeddings": 128}
    electra = ElectraModel(ElectraConfig(vocab_size=len(tokenizer), **sizes))
    assert tokenizer.add_tokens(["zebrafilm", "quaggafilm"]) == 2
    save("longer", electra, tokenizer)

    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    split = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    words = sorted({word for text in [*texts, "< / s >"] for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: place for place, word in enumerate([*special.values(), *words])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = split
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
             "max_position_embeddings": 128, "init_std": 0.3}
    config = BartConfig(vocab_size=len(vocabulary), bos_token_id=0, pad_token_id=1, eos_token_id=2,
                        decoder_start_token_id=2, forced_eos_token_id=2, **sizes)
    save("bart", BartModel(config), PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="<s>",
                                                            sep_token="</s>", **special))
    return home


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Reviews, some with ``</s>`` in them."""
    rows = review_rows(24, 0, prefix="train")
    rows[3]["sentence"] += " </s>"
    rows[8]["sentence"] = "</s> " + rows[8]["sentence"] + " </s> and"
    home = tmp_path_factory.mktemp("hostile")
    write_rows(home / "train.jsonl", rows)
    write_rows(home / "validation.jsonl", [{**row, "id": f"valid{place}"} for place, row in enumerate(rows[:12])])
    return home


def classify(directory, data):
    """A model with a head that was drawn at random, its tokenizer, and what is to be classified."""
    split = load_split(str(data), "train", get_task("classification"))
    torch.manual_seed(1)
    model, tokenizer = load_model(str(directory), split.task, split, 96, {})
    return model.eval(), tokenizer, split


# --- XLNet -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["qa", "classification"])
def test_xlnet_trains_and_evaluates(models, qa_dir, reviews, tmp_path, task):
    data, sizes = (qa_dir, ["--doc_stride", "16"]) if task == "qa" else (reviews, [])
    run.main(["--do_train", "--do_eval", "--task", task, "--model", str(models / "xlnet"), "--dataset", str(data),
              "--output_dir", str(tmp_path), *QUICK, *sizes])
    meta = json.loads((tmp_path / "run_meta.json").read_text())
    assert meta["status"] == "finished" and meta["arguments"]["max_length"] == 96


def test_a_model_without_a_limit_of_positions_takes_what_is_asked(models):
    model, tokenizer = load_encoder(str(models / "xlnet"), no_cuda=True)
    assert model.config.max_position_embeddings == -1
    tokenizer.model_max_length = 10**30
    assert usable_length(700, model, tokenizer) == 700


@pytest.mark.parametrize("name", ["xlnet", "bart"])
def test_what_is_said_of_a_text_does_not_depend_on_its_batch(models, hostile, name):
    model, tokenizer, split = classify(models / name, hostile)
    alone, together = (score_rows(model, tokenizer, split, size, max_length=96, names=["el2n"])["el2n"]
                       for size in (1, 8))
    assert len({len(text.split()) for text in split.data["sentence"]}) > 1
    assert np.ptp(alone) > 1e-3
    assert np.abs(alone - together).max() < 1e-5


# --- BART --------------------------------------------------------------------------------------------------------


def test_bart_trains_on_texts_with_its_end_token(models, hostile, tmp_path):
    run.main(["--do_train", "--do_eval", "--task", "classification", "--model", str(models / "bart"), "--dataset",
              str(hostile), "--output_dir", str(tmp_path), *QUICK])
    assert len(read_jsonl(tmp_path / "eval_predictions.jsonl")) == 12
    _, tokenizer = load_encoder(str(tmp_path), no_cuda=True)
    tokens = tokenizer("a </s> b")["input_ids"]
    assert tokens.count(tokenizer.eos_token_id) == 1 and tokens[-1] == tokenizer.eos_token_id


# --- more tokens than vectors ------------------------------------------------------------------------------------


def test_tokens_without_a_vector_get_the_mean_of_the_others(models, reviews, caplog):
    caplog.set_level("INFO")
    model, tokenizer = load_encoder(str(models / "longer"), no_cuda=True)
    assert "knows 2 tokens that the model has no vectors for" in caplog.text
    vectors = model.get_input_embeddings().weight
    assert len(vectors) == len(tokenizer) == model.config.vocab_size
    torch.testing.assert_close(vectors[-1], vectors[:-2].mean(dim=0))
    again, _ = load_encoder(str(models / "longer"), no_cuda=True)
    assert torch.equal(vectors, again.get_input_embeddings().weight)


def test_texts_with_such_tokens_are_embedded_and_trained_on(models, tmp_path):
    rows = [{**row, "sentence": row["sentence"] + " zebrafilm"} for row in review_rows(8, 0)]
    data = write_rows(tmp_path / "train.jsonl", rows)
    model, tokenizer = load_encoder(str(models / "longer"), no_cuda=True)
    split = load_split(str(data), "train", get_task("classification"))
    features, spans, _ = embedding_spans(split, tokenizer, "mean", 96, 0)
    assert np.isfinite(embedder(model, tokenizer, features, spans, 4)[1](np.arange(8))).all()
    run.main(["--do_train", "--task", "classification", "--model", str(models / "longer"), "--dataset", str(data),
              "--output_dir", str(tmp_path / "out"), *QUICK])
    trained, _ = load_encoder(str(tmp_path / "out"), no_cuda=True)
    assert trained.config.vocab_size == len(tokenizer)


# --- what cannot be loaded ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"hidden_size": 48}, {"num_attention_heads": 0}, {"num_hidden_layers": "two"}])
def test_an_encoder_that_does_not_load_is_one_line(tiny_model, tmp_path, change):
    shutil.copytree(tiny_model, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match="cannot load an? .* from .*; expected a directory") as refused:
        load_encoder(str(tmp_path / "model"), no_cuda=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("argv", [["--selector", "kcenter"], ["--selector", "el2n"], ["--selector", "grand"],
                                  ["--selector", "label_issues", "--probabilities", "model"]])
@pytest.mark.parametrize("has_weights", [True, False])
def test_an_unfinished_model_is_refused_by_select_subset(tiny_model, reviews, tmp_path, refused, argv, has_weights):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "run_meta.json").write_text(json.dumps({"status": "running", "arguments": {"do_train": True}}))
    if not has_weights:
        (model / "config.json").unlink()
    line = refused(select_subset.main, *argv, "--k", "3", "--model", model, "--dataset", reviews, "--no_cuda",
                   "--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "out")
    assert line.startswith(f"select_subset.py: error: model {model} is not whole: its training is marked running")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("cache/model-*"))


@pytest.mark.parametrize("shown", [True, False])
def test_the_bars_of_the_library_are_left_as_they_were(tiny_model, shown):
    before = library_logging.is_progress_bar_enabled()
    try:
        (library_logging.enable_progress_bar if shown else library_logging.disable_progress_bar)()
        load_encoder(str(tiny_model), no_cuda=True)
        assert library_logging.is_progress_bar_enabled() is shown
    finally:
        (library_logging.enable_progress_bar if before else library_logging.disable_progress_bar)()


def test_the_encoder_of_a_model_whose_decoder_needs_an_input(models, tmp_path):
    """T5 has none by default; BART makes its own of the text."""
    from transformers import T5Config, T5Model

    tokenizer = load_encoder(str(models / "xlnet"), no_cuda=True)[1]
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    whole = T5Model(T5Config(vocab_size=len(tokenizer), **sizes)).eval()
    for part in (whole, tokenizer):
        part.save_pretrained(tmp_path)
    encoder, _ = load_encoder(str(tmp_path), no_cuda=True)
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        assert torch.equal(encoder(ids).last_hidden_state, whole.get_encoder()(ids).last_hidden_state)


def test_a_model_of_pictures_is_none_of_texts(models, tmp_path):
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(image_size=32, **sizes)).save_pretrained(tmp_path)
    load_encoder(str(models / "xlnet"), no_cuda=True)[1].save_pretrained(tmp_path)
    with pytest.raises(UserError, match="reads pixel_values, no texts; expected an encoder"):
        load_encoder(str(tmp_path), no_cuda=True)
