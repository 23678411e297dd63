"""The built-in models ``lstm`` and ``lstm_reader``: classifiers of one text, or of a text and a question about it.

``lstm``: each text has a bidirectional LSTM (Hochreiter and Schmidhuber 1997) of its own, and the classifier sees the
state at [CLS] and the highest value of each feature over each text (Conneau et al. 2017, arXiv 1705.02364).
``lstm_reader`` adds a reader that goes through the first text from its end to its start on behalf of the words of the
second, see ``Reader``: made for texts in which one thing must be followed, and no plain LSTM. Both have a tokenizer of
whole words. Importing this module registers them with the Auto classes of transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import nn
from torch.nn.functional import cross_entropy, normalize, pad
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

from datamap.core.errors import UserError
from datamap.training.tiny_model import count_words, paired, vocabulary

VOCAB_SIZE = 20_000
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
HIDDEN_SIZE = 128
NUM_LAYERS = 1
DROPOUT = 0.1
LEARNING_RATE = 3e-3  # from random weights; the library's default of 5e-5 is for pretrained ones
REACH = 8  # words ahead to which the reader can move a query


class LSTMConfig(PreTrainedConfig):
    """Sizes of an LSTM classifier. ``hidden_size`` is even: one half for either reading direction. ``reader``: whether
    it is an ``lstm_reader``."""

    model_type = "lstm_classifier"
    vocab_size: int = VOCAB_SIZE
    hidden_size: int = HIDDEN_SIZE
    num_hidden_layers: int = NUM_LAYERS
    dropout: float = DROPOUT
    pad_token_id: int | None = 0
    reader: bool = False


class BidirectionalLSTM(nn.Module):
    """Layers of two LSTMs each, one reading from the left and one from the right, over texts of several lengths.

    Turning each text round within its length gives what packed sequences would, in less time on a CPU.
    """

    def __init__(self, size: int, num_layers: int, dropout: float):
        super().__init__()
        layers = range(num_layers)
        self.rightward = nn.ModuleList(nn.LSTM(size, size // 2, batch_first=True) for _ in layers)
        self.leftward = nn.ModuleList(nn.LSTM(size, size // 2, batch_first=True) for _ in layers)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, L, H) and lengths (B,), 0..L, to (B, L, H): H / 2 read from the left, then H / 2 read from the right.

        What stands behind a text's length means nothing, before and after.
        """
        position = torch.arange(states.shape[1], device=states.device)
        turned = torch.where(position < lengths[:, None], lengths[:, None] - 1 - position, position)
        for rightward, leftward in zip(self.rightward, self.leftward, strict=True):
            states = self.dropout(states)
            from_right = take(leftward(take(states, turned))[0], turned)
            states = torch.cat([rightward(states)[0], from_right], dim=-1)
        return states


class Reader(nn.Module):
    """Reads a text from its end to its start on behalf of the words of a question, and ends in one state.

    Each question word is a query that follows a word of the text: at first itself, wherever it stands. At a word that
    is followed, and only there, two things happen, both decided by what stands behind that word:

    - The state v becomes f v + c, as in an LSTM without its output gate; but f lies in -1..1, as a gate in 0..1
      cannot learn to tell odd from even (Grazzi et al. 2025, arXiv 2411.12537), nor "turned round" from "turned
      round twice".
    - The query stays or moves on to one of the next ``REACH`` words, with a probability for each: once "A follows B"
      is read, who asked about A asks about B. Reducing a query by each fact read is from Seo et al. 2017
      (query-reduction networks, arXiv 1606.04582), attention by distance from Shaw et al. 2018 (arXiv 1803.02155).

    It reads backwards because later facts overrule earlier ones.
    """

    def __init__(self, size: int):
        super().__init__()
        self.sharpness, self.threshold = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(()))
        self.offset = nn.Linear(size // 2, 1 + REACH)  # 0: stay
        self.forget = nn.Linear(size // 2, size)
        self.admit = nn.Linear(size // 2 + size, size)
        self.candidate = nn.Linear(size // 2 + size, size)

    def forward(
        self, ids: torch.Tensor, words: torch.Tensor, inside: torch.Tensor, states: torch.Tensor,
        question_words: torch.Tensor, question_inside: torch.Tensor, question_states: torch.Tensor,
    ) -> torch.Tensor:
        """Embeddings, mask and LSTM states (0 outside) of text (B, L, H) and question (B, K, H) to a state (B, H).

        ``ids`` (B, L) says which words of the text are the same.
        """
        # Read from the right up to the next word: what is said of a word must not depend on which word it is.
        behind = pad(states[:, 1:, states.shape[-1] // 2 :], (0, 0, 0, 1))
        number, spelling, used = distinct_words(ids, inside)
        offsets = self.offset(behind).softmax(dim=-1)
        leaves = (1 - offsets[:, :, 0, None, None]).unbind(dim=1)
        ahead, there = (pad(values, (0, REACH)).unfold(1, REACH, 1)[:, 1:] for values in (number, inside))
        target = offsets.new_zeros(*number.shape, used.shape[1]).scatter_add(2, ahead, offsets[:, :, 1:] * there)
        targets = target.unbind(dim=1)

        # followed[b, k, u]: how much query k follows the u-th distinct word of the text.
        followed = self.similarity(question_words, take(words, spelling))
        followed = followed * (question_inside[:, :, None] & used[:, None])
        matches = []
        for place in reversed(range(words.shape[1])):
            match = followed.gather(2, number[:, place, None, None].expand(-1, followed.shape[1], 1))
            match = match.clamp(max=1.0)  # where what it followed comes together; beyond 1 the state would explode
            matches.append(match)
            followed = followed + match * (targets[place][:, None] - leaves[place] * followed)
        match = torch.cat(matches[::-1], dim=-1).transpose(1, 2)

        asked = match @ question_states
        strength = match.amax(dim=-1, keepdim=True)
        seen = torch.cat([behind, asked], dim=-1)
        keep = 1 - strength * (1 - torch.tanh(self.forget(behind)))
        add = strength * torch.sigmoid(self.admit(seen)) * torch.tanh(self.candidate(seen))
        # The recurrence v = keep v + add from the last word to the first, beginning with 1, written out.
        left = torch.cat([torch.ones_like(keep[:, :1]), keep.cumprod(dim=1)], dim=1)  # still to come after each word
        return left[:, -1] + (add * left[:, :-1]).sum(dim=1)

    def similarity(self, some: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, M, H) and (B, N, H) to (B, M, N), 0..1: near 1 for the same word."""
        cosine = normalize(some, dim=-1) @ normalize(others, dim=-1).transpose(1, 2)
        return torch.sigmoid(self.sharpness * cosine - self.threshold)


def distinct_words(ids: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Number the distinct words of each text; ``ids`` and ``inside`` are (B, L), U is the most that a text has.

    Returns the number of the word at each place (B, L), 0..U-1, then for each number a place where its word stands
    (B, U) and whether there is one (B, U).
    """
    ordered, order = ids.masked_fill(~inside, -1).sort(dim=1, stable=True)
    new = pad((ordered[:, 1:] != ordered[:, :-1]).long(), (1, 0))
    number = torch.empty_like(ids).scatter_(1, order, new.cumsum(dim=1))
    count = int(number.max()) + 1
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    spelling = torch.zeros_like(ids[:, :1]).repeat(1, count).scatter_(1, number, places)
    used = torch.zeros_like(spelling, dtype=torch.bool).scatter_(1, number, inside)
    return number, spelling, used


class LSTMPreTrainedModel(PreTrainedModel):
    config_class = LSTMConfig
    base_model_prefix = "lstm"
    _input_embed_layer = "embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.LSTM):
            for name, value in module.named_parameters():
                if "weight_hh" in name:
                    for gate in value.chunk(4):
                        init.orthogonal_(gate)
                elif "weight_ih" in name:
                    init.xavier_uniform_(value)
                else:
                    init.zeros_(value)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight, gain=2.0)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, Reader):
            # A query follows its own word and no other, and mostly stays with it. Forgetting begins near -1 or 1 and
            # nearly nothing is added: of so many products of signs some carry the answer from the start. (Nearer to
            # 0, training settles for forgetting all at a word that sends the query elsewhere, and never learns where.)
            init.constant_(module.sharpness, 12.0)
            init.constant_(module.threshold, 6.0)
            init.xavier_uniform_(module.offset.weight, gain=0.5)
            init.constant_(module.offset.bias[:1], 3.0)
            init.xavier_uniform_(module.forget.weight, gain=12.0)
            init.constant_(module.admit.bias, -5.0)


class LSTMModel(LSTMPreTrainedModel):
    """The encoder: LSTM states of both texts in the order of ``input_ids``, a reader's state added at [CLS]."""

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        sizes = (config.hidden_size, config.num_hidden_layers, config.dropout)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.first, self.second = BidirectionalLSTM(*sizes), BidirectionalLSTM(*sizes)
        self.reader = Reader(config.hidden_size) if config.reader else None
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> BaseModelOutput:
        """(B, L) to ``last_hidden_state`` (B, L, hidden_size), 0 at padding, which stands at the end.

        ``token_type_ids`` are 0 in the first text, 1 in the second; without them there is one text.
        """
        words = self.embeddings(input_ids)
        parts = []
        for encoder, mask in zip((self.first, self.second), text_masks(input_ids, attention_mask, token_type_ids),
                                 strict=True):
            lengths = mask.sum(dim=1)
            places = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(1, int(lengths.max()))]
            inside = torch.arange(places.shape[1], device=mask.device) < lengths[:, None]
            text = take(words, places)
            parts.append((text, inside, self.dropout(encoder(text, lengths)) * inside[:, :, None], places))
        (first_words, first_inside, first, first_places), (second_words, second_inside, second, second_places) = parts
        if self.reader is not None:
            first_ids = input_ids.gather(1, first_places)
            state = self.reader(first_ids, first_words, first_inside, first, second_words, second_inside, second)
            state = state * second_inside[:, :1]  # no second text, nothing to read for
            first = torch.cat([first[:, :1] + state[:, None], first[:, 1:]], dim=1)
        output = torch.zeros_like(words)
        for states, places in ((first, first_places), (second, second_places)):
            output = output.scatter_add(1, places[:, :, None].expand_as(states), states.to(output.dtype))
        return BaseModelOutput(last_hidden_state=output)


def computes_in_bfloat16() -> bool:
    """Whether this CPU can run an LSTM under bfloat16 autocast: without instructions for it, the kernel refuses."""
    small = nn.LSTM(8, 8, batch_first=True)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            small(torch.zeros(1, 1, 8))
    except RuntimeError:
        return False
    return True


class LSTMForSequenceClassification(LSTMPreTrainedModel):
    """``LSTMModel`` and a hidden layer over its vector at [CLS] and its highest values over either text."""

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.lstm = LSTMModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.dense = nn.Linear(3 * config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None, labels: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """``logits`` (B, num_labels) and, with ``labels`` (B,) of class numbers, ``loss``, the mean cross-entropy."""
        hidden = self.lstm(input_ids, attention_mask, token_type_ids).last_hidden_state
        features = [hidden[:, 0]]
        for mask in text_masks(input_ids, attention_mask, token_type_ids):
            highest = hidden.masked_fill(~mask[:, :, None], torch.finfo(hidden.dtype).min).amax(dim=1)
            features.append(torch.where(mask.any(dim=1, keepdim=True), highest, 0))
        dense = torch.relu(self.dense(self.dropout(torch.cat(features, dim=-1))))
        logits = self.classifier(self.dropout(dense))
        loss = None if labels is None else cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def text_masks(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_type_ids: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two masks (B, L): the tokens of the first text, [CLS] and [SEP] among them, and those of the second."""
    attended = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
    return (attended > 0) & (types == 0), (attended > 0) & (types == 1)


def take(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The vectors (B, M, H) that stand at ``places`` (B, M) of (B, L, H)."""
    return states.gather(1, places[:, :, None].expand(-1, -1, states.shape[-1]))


AutoConfig.register(LSTMConfig.model_type, LSTMConfig, exist_ok=True)
AutoModel.register(LSTMConfig, LSTMModel, exist_ok=True)
AutoModelForSequenceClassification.register(LSTMConfig, LSTMForSequenceClassification, exist_ok=True)


def train_tokenizer(texts: Iterable[str], max_length: int, vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """A lower-casing tokenizer of whole words and punctuation: the most frequent of ``texts``; the rest is [UNK]."""
    words = vocabulary(SPECIAL_TOKENS, count_words(texts), vocab_size)
    return paired(Tokenizer(models.WordLevel(words, unk_token="[UNK]")), max_length)


def build_model(
    tokenizer: PreTrainedTokenizerFast, model_class: Any, max_length: int, *, hidden_size: int = HIDDEN_SIZE,
    num_layers: int = NUM_LAYERS, dropout: float = DROPOUT, reader: bool = False, **head: Any,
) -> PreTrainedModel:
    """An LSTM with random weights (seed torch first); ``head`` goes to its configuration (num_labels, id2label, ...).

    reader: an ``lstm_reader``. ``max_length`` bounds nothing: an LSTM reads texts of any length.
    """
    if model_class.__name__ == "AutoModelForQuestionAnswering":
        raise UserError("--model lstm classifies and cannot mark the answer in a text; for --task qa use --model tiny")
    if hidden_size < 2 or hidden_size % 2:
        raise UserError(
            f"--hidden_size {hidden_size}: expected an even number, as --model lstm gives one half to either reading "
            f"direction; take {hidden_size + hidden_size % 2 or 2}"
        )
    config = LSTMConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        dropout=dropout,
        pad_token_id=tokenizer.pad_token_id,
        reader=reader,
        **head,
    )
    return model_class.from_config(config)
