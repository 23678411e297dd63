"""Chains of thought about toy pairs, and a random Mistral of two layers whose tokenizer was trained on them."""

import json
from pathlib import Path

import numpy as np

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


def tiny_tokenizer(texts: list[str], vocab_size: int = 420, merges: bool = True):
    """Byte-level BPE with <unk>, <s> (added in front by itself) and </s>, and no pad token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size if merges else 0, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def tiny_mistral(directory: Path, tokenizer, seed: int = 0, vocab_size: int | None = None) -> Path:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=vocab_size or len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
        initializer_range=0.3,
    )
    MistralForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def toy_texts() -> list[str]:
    rows = chain_rows(40)
    return [" ".join(map(str, row.values())) for row in rows] + [json.dumps(row) for row in rows]
