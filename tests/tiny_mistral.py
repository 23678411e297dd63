"""A random Mistral of 2 layers, 64 wide, with a byte-level BPE tokenizer of its own, and toy chains of thought."""

import json
from pathlib import Path

import numpy as np

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
NO_PAD = {name: token for name, token in SPECIAL.items() if name != "pad_token"}
TEXTS = (
    '{"thought_process": "Step 1: the premise says that a man plays a guitar. Step 2: the hypothesis says that a man '
    'plays an instrument. Step 3: it follows.", "predicted_label": 1}',
    '{"thought_process": "Step 1: nobody sleeps. Step 2: the dog sleeps. Step 3: it does not follow.", '
    '"predicted_label": 0}',
    "[INST] Premise: a boy runs on the beach. Hypothesis: a child is moving. Does it follow? [/INST]",
)
COLOURS = ("red", "blue", "green", "old")


def chain_rows(count: int, seed: int = 0, long: tuple[int, ...] = ()) -> list[dict]:
    """Every fourth one is wrong; the places in ``long`` are four times as long as the others."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        first, second = rng.choice(COLOURS, 2)
        label = int(first == second)
        thought = f"step 1: it is {first}. step 2: asked is {second}. step 3: so {'yes' if label else 'no'}."
        times = 4 if number in long else 1
        rows.append({
            "id": f"pair-{number:03d}", "premise": f"The kite number {number} is {first}.",
            "hypothesis": f"The kite is {second}.", "thought_process": " ".join([thought] * times),
            "predicted_label": label if number % 4 else 1 - label, "true_label": label,
        })
    return rows


def reflected(rows: list[dict]) -> list[dict]:
    return [
        {**row, "predicted_label": row["true_label"], "error_analysis": "wrong",
         "improved_thought_process": row["thought_process"]}
        for row in rows if row["predicted_label"] != row["true_label"]
    ]


def write_chains(directory: Path, rows: list[dict]) -> Path:
    """``thoughts.jsonl`` and ``reflections.jsonl`` in a directory of their own."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, chains in (("thoughts", rows), ("reflections", reflected(rows))):
        text = "".join(json.dumps(row) + "\n" for row in chains)
        (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return directory


def toy_texts() -> list[str]:
    rows = chain_rows(40)
    return [" ".join(map(str, row.values())) for row in rows] + [json.dumps(row) for row in rows]


def tiny_tokenizer(texts=TEXTS, vocab_size: int = 384, special=SPECIAL):
    """A byte-level BPE that puts <s> before every text."""
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
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def toy_tokenizer(vocab_size: int = 420):
    """Of the toy chains, and without a pad token."""
    return tiny_tokenizer(toy_texts(), vocab_size, NO_PAD)


def save_tokenizer(directory, **settings):
    tokenizer = tiny_tokenizer(**settings)
    tokenizer.save_pretrained(directory)
    return tokenizer


def save_model(directory, tokenizer=None, seed: int = 0, vocab_size: int | None = None, positions: int = 1024,
               spread: float = 0.3) -> Path:
    """Tokenizer and model in ``directory``; ``spread`` is the standard deviation of the weights: at the library's
    0.02 all tokens are nearly as likely, and rounding decides which one comes."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = tokenizer or tiny_tokenizer()
    config = MistralConfig(
        vocab_size=vocab_size or len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=positions, sliding_window=None,
        initializer_range=spread, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    MistralForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Path(directory)
