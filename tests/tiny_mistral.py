"""A saved Mistral of 2 layers, 64 wide, with random weights and a byte-level BPE tokenizer of its own."""

from pathlib import Path

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
TEXTS = (
    '{"thought_process": "Step 1: the premise says that a man plays a guitar. Step 2: the hypothesis says that a man '
    'plays an instrument. Step 3: it follows.", "predicted_label": 1}',
    '{"thought_process": "Step 1: nobody sleeps. Step 2: the dog sleeps. Step 3: it does not follow.", '
    '"predicted_label": 0}',
    "[INST] Premise: a boy runs on the beach. Hypothesis: a child is moving. Does it follow? [/INST]",
)


def save_tokenizer(directory, texts=TEXTS, vocab_size: int = 384, special=SPECIAL):
    """A byte-level BPE that puts <s> before every text, saved into ``directory``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(special.values()), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin = (special["bos_token"], tokenizer.token_to_id(special["bos_token"]))
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{begin[0]} $A", pair=f"{begin[0]} $A $B", special_tokens=[begin]),
    ])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(directory)
    return fast


def save_model(directory, seed: int = 0, vocab_size: int = 384, positions: int = 1024, spread: float = 0.3) -> Path:
    """Tokenizer and model in ``directory``; ``spread`` is the standard deviation of the weights: at the library's
    0.02 all tokens are nearly as likely, and rounding decides which one comes."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = save_tokenizer(directory, vocab_size=vocab_size)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=positions, sliding_window=None, initializer_range=spread,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    MistralForCausalLM(config).save_pretrained(directory)
    return Path(directory)
