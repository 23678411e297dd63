"""The built-in model ``tiny``: a small ELECTRA and its WordPiece tokenizer, both made from the training split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from datamap.core.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCAB_SIZE = 4000
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MIN_WORDS = 4  # that a vocabulary must have room for
HIDDEN_SIZE = 128
NUM_LAYERS = 2
NUM_HEADS = 4
DROPOUT = 0.0
INITIALIZER_RANGE = 0.1  # the usual 0.02 is for wide models: this one would need twice the steps
POSITION_SCALE = 0.1  # of that for positions: what a word is matters more here than where it stands
LEARNING_RATE = 2e-3  # from random weights; the library's default of 5e-5 is for pretrained ones


def train_tokenizer(texts: Iterable[str], max_length: int, vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer with BERT's special tokens: the frequent words of ``texts``, and letters.

    ``vocab_size`` is the most pieces that it may hold; UserError when no room is left for words.

    The library's WordPiece trainer gives another vocabulary in every process (it iterates over hash maps), so that one
    seed would give many models, and the processes of a distributed run different ones. Counting words does not.
    """
    from tokenizers import Tokenizer, decoders, models

    counts = count_words(texts)
    letters = sorted({letter for word in counts for letter in word})
    words = (word for word, count in counts.items() if count > 1 and len(word) > 1)
    pieces = vocabulary(SPECIAL_TOKENS, [*letters, *(f"##{letter}" for letter in letters), *words], vocab_size)
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return paired(tokenizer, max_length, mask_token="[MASK]")


def vocabulary(special: Sequence[str], pieces: Iterable[str], size: int) -> dict[str, int]:
    """The numbers of the ``special`` tokens and the first ``pieces``, ``size`` in all."""
    if size < len(special) + MIN_WORDS:
        raise UserError(f"--vocab_size {size}: expected at least {len(special) + MIN_WORDS}, as {len(special)} are "
                        "special tokens; raise it, or leave it out")
    return {piece: place for place, piece in enumerate([*special, *pieces][:size])}


def count_words(texts: Iterable[str]) -> dict[str, int]:
    """How often each word is in ``texts``, the most frequent first, those of one count in alphabetical order.

    Every process then numbers them alike.
    """
    from tokenizers import normalizers, pre_tokenizers

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def paired(tokenizer: Tokenizer, max_length: int, **special: str) -> PreTrainedTokenizerFast:
    """``tokenizer`` for transformers: ``[CLS] a [SEP]`` or ``[CLS] a [SEP] b [SEP]``, token types 0 and 1."""
    from tokenizers import normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", **special,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, model_class: Any, max_length: int, *, hidden_size: int = HIDDEN_SIZE,
    num_layers: int = NUM_LAYERS, dropout: float = DROPOUT, **head: Any,
) -> PreTrainedModel:
    """An ELECTRA with random weights (seed torch first) and the head of ``model_class``.

    head: for the configuration (num_labels, id2label, label2id). UserError when the attention heads cannot share
    ``hidden_size`` evenly.
    """
    import torch
    from transformers import ElectraConfig

    if hidden_size < NUM_HEADS or hidden_size % NUM_HEADS:
        raise UserError(
            f"--hidden_size {hidden_size}: expected a multiple of {NUM_HEADS}, as --model tiny has {NUM_HEADS} "
            f"attention heads; take {max(1, round(hidden_size / NUM_HEADS)) * NUM_HEADS}"
        )
    config = ElectraConfig(
        vocab_size=len(tokenizer),
        embedding_size=hidden_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=NUM_HEADS,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=max(512, max_length),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=INITIALIZER_RANGE,
        pad_token_id=tokenizer.pad_token_id,
        **head,
    )
    model = model_class.from_config(config)
    with torch.no_grad():
        model.get_submodule("electra.embeddings.position_embeddings").weight.mul_(POSITION_SCALE)
    return model
