"""The built-in model ``lstm``: a bidirectional LSTM that classifies one text or a pair, and its tokenizer of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from helpers import UserError

VOCAB_SIZE = 20_000
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 4
HIDDEN_SIZE = 128
NUM_LAYERS = 1
DROPOUT = 0.1
LEARNING_RATE = 2e-3  # from random weights; the library's default of 5e-5 is for pretrained ones


class LSTMConfig(PreTrainedConfig):
    """Sizes of an LSTM classifier. ``hidden_size`` is even: half of it for either reading direction."""

    model_type = "lstm_classifier"
    vocab_size: int = VOCAB_SIZE
    hidden_size: int = HIDDEN_SIZE
    num_hidden_layers: int = NUM_LAYERS
    dropout: float = DROPOUT
    pad_token_id: int | None = 0


class BidirectionalLSTM(nn.Module):
    """Layers of two LSTMs each, one reading from the left and one from the right, over texts of several lengths.

    Padding stands at the end. Reversing each text within its length gives what packed sequences would, and is three
    times as fast on a CPU.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, dropout: float):
        super().__init__()
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.forwards = nn.ModuleList(nn.LSTM(size, hidden_size // 2, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(nn.LSTM(size, hidden_size // 2, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, L, input) and lengths (B,), 0..L, to (B, L, hidden); what stands behind the length means nothing."""
        position = torch.arange(states.shape[1], device=states.device)
        reverse = torch.where(position < lengths[:, None], lengths[:, None] - 1 - position, position)
        for number, (right, left) in enumerate(zip(self.forwards, self.backwards, strict=True)):
            if number:
                states = self.dropout(states)
            reversed_ = take(left(take(states, reverse))[0], reverse)
            states = torch.cat([right(states)[0], reversed_], dim=-1)
        return states


def take(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The vectors (B, M, H) at ``places`` (B, M) of (B, L, H)."""
    return states.gather(1, places[:, :, None].expand(-1, -1, states.shape[-1]))


class LSTMPreTrainedModel(PreTrainedModel):
    config_class = LSTMConfig
    base_model_prefix = "lstm"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.LSTM):
            for name, value in module.named_parameters():
                if "weight_hh" in name:
                    for gate in value.chunk(4):
                        init.orthogonal_(gate)
                elif "weight" in name:
                    init.xavier_uniform_(value)
                else:
                    init.zeros_(value)
                    if "bias_ih" in name:  # the forget gate begins open
                        init.ones_(value[module.hidden_size : 2 * module.hidden_size])
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.3)
        else:
            super()._init_weights(module)


class LSTMModel(LSTMPreTrainedModel):
    """Encoder of one text or of two, each with an LSTM of its own; output in the token order of ``input_ids``."""

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        size, layers, dropout = config.hidden_size, config.num_hidden_layers, config.dropout
        self.embeddings = nn.Embedding(config.vocab_size, size)
        self.second = BidirectionalLSTM(size, size, layers, dropout)
        self.first = BidirectionalLSTM(2 * size, size, layers, dropout)
        self.dropout = nn.Dropout(dropout)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """(B, L) to ``last_hidden_state`` (B, L, hidden_size), 0 at padding; types: 0 first text, 1 second."""
        attended = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        words = self.dropout(self.embeddings(input_ids))
        first, first_places, first_lengths = _part(words, (attended > 0) & (types == 0))
        second, second_places, second_lengths = _part(words, (attended > 0) & (types == 1))
        second_states = self.second(second, second_lengths)
        aligned = _align(first, second, second_states, second_lengths)
        first_states = self.first(torch.cat([first, aligned], dim=-1), first_lengths)
        output = words.new_zeros(words.shape)
        for states, places, lengths in (
            (first_states, first_places, first_lengths),
            (second_states, second_places, second_lengths),
        ):
            inside = torch.arange(places.shape[1], device=places.device) < lengths[:, None]
            states = states * inside[:, :, None]
            output = output.scatter_add(1, places[:, :, None].expand_as(states), states)
        return BaseModelOutput(last_hidden_state=output)


def _part(words: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The chosen tokens (mask (B, L)) moved to the front, their places in the whole, and their numbers (B,)."""
    lengths = chosen.sum(dim=1)
    places = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(1, int(lengths.max()))]
    return take(words, places), places, lengths


def _align(first: torch.Tensor, second: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    scores = first @ second.transpose(1, 2) 
    outside = torch.arange(second.shape[1], device=second.device) >= lengths[:, None]
    scores = scores.masked_fill(outside[:, None], torch.finfo(scores.dtype).min)
    return (scores.softmax(dim=-1) @ values) * (lengths > 0)[:, None, None]


class LSTMForSequenceClassification(LSTMPreTrainedModel):
    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.lstm = LSTMModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.dense = nn.Linear(2 * config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits (B, num_labels); ``labels`` (B,) class numbers, for a mean cross-entropy as ``loss``."""
        hidden = self.lstm(input_ids, attention_mask, token_type_ids).last_hidden_state
        attended = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        highest = hidden.masked_fill(attended[:, :, None] == 0, torch.finfo(hidden.dtype).min).amax(dim=1)
        pooled = torch.relu(self.dense(self.dropout(torch.cat([hidden[:, 0], highest], dim=-1))))
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


AutoConfig.register(LSTMConfig.model_type, LSTMConfig, exist_ok=True)
AutoModel.register(LSTMConfig, LSTMModel, exist_ok=True)
AutoModelForSequenceClassification.register(LSTMConfig, LSTMForSequenceClassification, exist_ok=True)


def train_tokenizer(texts: Iterable[str], max_length: int, vocab_size: int | None = None) -> PreTrainedTokenizerFast:
    """A lower-casing tokenizer of whole words and punctuation: the most frequent of ``texts``; the rest is [UNK].

    Words of one count are in alphabetical order, so that every process numbers them alike.
    """
    size = VOCAB_SIZE if vocab_size is None else vocab_size
    if size < MIN_VOCAB_SIZE:
        raise UserError(f"--vocab_size {size}: --model lstm needs at least {MIN_VOCAB_SIZE}, {len(SPECIAL_TOKENS)} of "
                        "them for special tokens; raise it or leave it out")  # fmt: skip
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    words = [*SPECIAL_TOKENS, *sorted(counts, key=lambda word: (-counts[word], word))][:size]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    model_class: Any,
    max_length: int,
    *,
    hidden_size: int | None = None,
    num_layers: int | None = None,
    dropout: float | None = None,
    **head: Any,
) -> PreTrainedModel:
    """An LSTM with random weights (seed torch first); ``head`` goes to its configuration (num_labels, id2label, ...).

    None means the default of the model. ``max_length`` bounds nothing: an LSTM reads texts of any length.
    """
    if model_class.__name__ == "AutoModelForQuestionAnswering":
        raise UserError("--model lstm classifies whole texts and marks no answer spans; use --model tiny for --task qa")
    size = HIDDEN_SIZE if hidden_size is None else hidden_size
    if size < 2 or size % 2:
        raise UserError(f"--hidden_size {size}: --model lstm needs an even number, one half for either direction")
    config = LSTMConfig(
        vocab_size=len(tokenizer),
        hidden_size=size,
        num_hidden_layers=NUM_LAYERS if num_layers is None else num_layers,
        dropout=DROPOUT if dropout is None else dropout,
        pad_token_id=tokenizer.pad_token_id,
        **head,
    )
    return model_class.from_config(config)
