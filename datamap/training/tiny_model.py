"""The built-in model ``tiny``: a small ELECTRA and its WordPiece tokenizer, both made from the training split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from datamap.core.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer
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


def train_tokenizer(texts: Iterable[str], max_length: int, vocab_size: int | None = None) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer with BERT's special tokens: the frequent words of ``texts``, and letters.

    ``vocab_size`` is the most pieces that it may hold (None: 4,000); UserError when no room is left for words.

    The library's WordPiece trainer gives another vocabulary in every process (it iterates over hash maps), so that one
    seed would give many models, and the processes of a distributed run different ones. Counting words does not.
    """
    from tokenizers import Tokenizer, decoders, models

    size = VOCAB_SIZE if vocab_size is None else vocab_size
    check_vocab_size(size, len(SPECIAL_TOKENS))
    normalizer, splitter, counts = count_words(texts)
    letters = sorted({letter for word in counts for letter in word})
    repeated = (word for word, count in counts.items() if count > 1 and len(word) > 1)
    words = sorted(repeated, key=lambda word: (-counts[word], word))
    pieces = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), *words][:size]
    tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, splitter, decoders.WordPiece()
    return paired(tokenizer, max_length, mask_token="[MASK]")


def check_vocab_size(size: int, num_special: int) -> None:
    if size < num_special + MIN_WORDS:
        raise UserError(
            f"--vocab_size {size}: expected at least {num_special + MIN_WORDS}, as {num_special} are special tokens; "
            "raise it, or leave it out"
        )


def count_words(texts: Iterable[str]) -> tuple[Normalizer, PreTokenizer, Counter[str]]:
    """How texts are lower-cased and how split into words and punctuation, and how often each word is in ``texts``."""
    from tokenizers import normalizers, pre_tokenizers

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    return normalizer, splitter, counts


def paired(tokenizer: Tokenizer, max_length: int, **special: str) -> PreTrainedTokenizerFast:
    """``tokenizer`` for transformers: ``[CLS] a [SEP]`` or ``[CLS] a [SEP] b [SEP]``, token types 0 and 1."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

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
    tokenizer: PreTrainedTokenizerFast,
    model_class: Any,
    max_length: int,
    *,
    hidden_size: int | None = None,
    num_layers: int | None = None,
    dropout: float | None = None,
    **head: Any,
) -> PreTrainedModel:
    """An ELECTRA with random weights (seed torch first) and the head of ``model_class``.

    None means the default: 2 layers, 128 wide, no dropout. ``head`` goes to the configuration (num_labels, id2label,
    label2id). UserError when the attention heads cannot share ``hidden_size`` evenly.
    """
    import torch
    from transformers import ElectraConfig

    size = HIDDEN_SIZE if hidden_size is None else hidden_size
    rate = DROPOUT if dropout is None else dropout
    if size < NUM_HEADS or size % NUM_HEADS:
        raise UserError(
            f"--hidden_size {size}: expected a multiple of {NUM_HEADS}, as --model tiny has {NUM_HEADS} attention "
            f"heads; take {max(1, round(size / NUM_HEADS)) * NUM_HEADS}"
        )
    config = ElectraConfig(
        vocab_size=len(tokenizer),
        embedding_size=size,
        hidden_size=size,
        num_hidden_layers=NUM_LAYERS if num_layers is None else num_layers,
        num_attention_heads=NUM_HEADS,
        intermediate_size=2 * size,
        max_position_embeddings=max(512, max_length),
        hidden_dropout_prob=rate,
        attention_probs_dropout_prob=rate,
        initializer_range=INITIALIZER_RANGE,
        pad_token_id=tokenizer.pad_token_id,
        **head,
    )
    model = model_class.from_config(config)
    with torch.no_grad():
        model.get_submodule("electra.embeddings.position_embeddings").weight.mul_(POSITION_SCALE)
    return model
