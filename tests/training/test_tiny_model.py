"""The built-in model ``tiny``: its default is what it always was, and its sizes can be set."""

from __future__ import annotations

import hashlib

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, ElectraConfig

from datamap.core.errors import UserError
from datamap.training import tiny_model

TEXTS = ["Where did Ada go? Ada went to Oslo. Ada went home."] * 2


def digest(model) -> str:
    state = hashlib.sha256()
    for name, value in model.state_dict().items():
        state.update(name.encode())
        state.update(value.numpy().tobytes())
    return state.hexdigest()


def test_default_weights_are_those_of_the_first_version():
    tokenizer = tiny_model.train_tokenizer(TEXTS, 128)
    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=len(tokenizer), embedding_size=128, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=512, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, initializer_range=0.1, pad_token_id=0,
    )
    first = AutoModelForQuestionAnswering.from_config(config)
    with torch.no_grad():
        first.electra.embeddings.position_embeddings.weight.mul_(0.1)
    torch.manual_seed(0)
    model = tiny_model.build_model(tokenizer, AutoModelForQuestionAnswering, 128)
    assert digest(model) == digest(first)
    assert model.config.to_dict() == first.config.to_dict()


def test_sizes_and_head_reach_the_model():
    tokenizer = tiny_model.train_tokenizer(TEXTS, 128)
    model = tiny_model.build_model(
        tokenizer, AutoModelForSequenceClassification, 600, hidden_size=32, num_layers=3, dropout=0.2, num_labels=3,
        id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2},
    )
    assert model.config.hidden_size == 32 and model.config.intermediate_size == 64
    assert model.config.max_position_embeddings == 600
    assert len(model.electra.encoder.layer) == 3
    dropouts = {module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert dropouts == {0.2}
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model(**tokenizer(["Ada went"], ["home"], return_tensors="pt")).logits.shape == (1, 3)


@pytest.mark.parametrize(("size", "near"), [(30, 32), (2, 4), (129, 128)])
def test_refuses_a_width_that_the_heads_cannot_share(size, near):
    tokenizer = tiny_model.train_tokenizer(TEXTS, 128)
    with pytest.raises(UserError, match=rf"--hidden_size {size}: expected a multiple of 4.*take {near}$"):
        tiny_model.build_model(tokenizer, AutoModelForQuestionAnswering, 128, hidden_size=size)


def test_vocabulary_is_capped():
    whole = tiny_model.train_tokenizer(TEXTS, 128)
    assert len(whole) > 20
    capped = tiny_model.train_tokenizer(TEXTS, 128, vocab_size=20)
    assert len(capped) == 20
    assert capped.convert_ids_to_tokens(range(20)) == whole.convert_ids_to_tokens(range(20))
    with pytest.raises(UserError, match="--vocab_size 6: expected at least 9"):
        tiny_model.train_tokenizer(TEXTS, 128, vocab_size=6)
