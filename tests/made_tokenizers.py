"""Small tokenizers of every family, and the words and stray characters that they are tried on."""

from typing import Any

from datamap.training.tiny_model import train_tokenizer

WORDS = ("He", "went", "to", "Paris", "today.", "(London)", '"Rome",', "5", "mg", "aspirin's", "the", "x-ray;",
         "cafe\u0301", "caf\u00e9", "\u0645\u062f\u0631\u0633\u0629\u064c", "\u2603\ufe0f", "\U0001f600",
         "\u6f22\u5b57")
STRAY = {
    "nothing": "", "blank": " ", "blanks": "  ", "newline": "\n", "CRLF": "\r\n", "NBSP": "\u00a0", "tab": "\t",
    "zero-width": "\u200b", "soft hyphen": "\u00ad", "control": "\x07", "mark of direction": "\u200f", "BOM": "\ufeff",
    "emoji": "\u2603\ufe0f",
}
FAMILIES = ("wordpiece", "byte-level", "unigram", "byte-level behind punctuation", "byte-level behind words",
            "characters")


def make_tokenizer(family):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    """A small tokenizer of a family, trained on ``WORDS``."""
    texts = [" ".join(WORDS), " ".join(reversed(WORDS))] * 3
    if family == "wordpiece":
        return train_tokenizer(texts, max_length=512)
    special = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    options: dict[str, Any] = {"special_tokens": list(special.values()), "show_progress": False}
    if family == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        tokenizer.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", **options))
    elif family == "characters":
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(**options))
    else:
        splitters: dict[str, Any] = {"byte-level behind punctuation": [pre_tokenizers.Punctuation()],
                                     "byte-level behind words": [pre_tokenizers.BertPreTokenizer()]}
        splitter = splitters.get(family, [])
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=bool(splitter))
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splitter, byte_level])
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options))
    numbers = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    pair = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=numbers)
    tokenizer.post_processor = pair
    if family.startswith("byte-level"):  # as RoBERTa has it
        trims = processors.ByteLevel(trim_offsets=True, add_prefix_space=True)
        tokenizer.post_processor = processors.Sequence([trims, pair])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)
