"""The built-in model ``tiny``: a small ELECTRA and its WordPiece tokenizer, both made from the training split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCAB_SIZE = 4000
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
HIDDEN_SIZE = 128
NUM_LAYERS = 2
NUM_HEADS = 4
INTERMEDIATE_SIZE = 256
INITIALIZER_RANGE = 0.1  # the usual 0.02 is for wide models: this one would need twice the steps
POSITION_SCALE = 0.1  # of that for positions: what a word is matters more here than where it stands
LEARNING_RATE = 2e-3  # from random weights; the library's default of 5e-5 is for pretrained ones


def train_tokenizer(texts: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer with BERT's special tokens: the frequent words of ``texts``, and letters.

    The library's WordPiece trainer gives another vocabulary in every process (it iterates over hash maps), so that one
    seed would give many models, and the processes of a distributed run different ones. Counting words does not.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    letters = sorted({letter for word in counts for letter in word})
    repeated = (word for word, count in counts.items() if count > 1 and len(word) > 1)
    words = sorted(repeated, key=lambda word: (-counts[word], word))
    pieces = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), *words][:VOCAB_SIZE]
    tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, splitter, decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def build_model(tokenizer: PreTrainedTokenizerFast, model_class: Any, max_length: int) -> PreTrainedModel:
    """An ELECTRA of 2 layers, 128 wide, with random weights (seed torch first) and the head of ``model_class``."""
    import torch
    from transformers import ElectraConfig

    config = ElectraConfig(
        vocab_size=len(tokenizer),
        embedding_size=HIDDEN_SIZE,
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        intermediate_size=INTERMEDIATE_SIZE,
        max_position_embeddings=max(512, max_length),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=INITIALIZER_RANGE,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = model_class.from_config(config)
    with torch.no_grad():
        model.get_submodule("electra.embeddings.position_embeddings").weight.mul_(POSITION_SCALE)
    return model
