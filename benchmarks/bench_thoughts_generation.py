"""Time the answers to prompts in batches sorted by length and in batches as they come, in turn.

Reads nothing; builds a small Mistral with random weights and --prompts prompts, whose lengths are spread as those of
MNLI pairs (half of them shorter than 100 tokens, one in ten longer than 126) or as those of questions about documents
(half shorter than 200, one in ten longer than 630). Every answer runs to its 64 tokens, so decoding, which sorting
hardly helps, has its full share. Prints seconds and their ratio over the rounds, of the clock and of the CPU (which
other programs disturb less), and writes bench_thoughts_generation.json.

    python benchmarks/bench_thoughts_generation.py
    python benchmarks/bench_thoughts_generation.py --prompts 16 --rounds 1 --output_dir /tmp/bench_generation
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from timing import Clock, Measure, bench_parser, in_turn, report

from datamap.core.errors import command_line
from datamap.core.flags import DEFAULT_SEED, positive_int

# Median and spread (standard deviation of the logarithm) of the lengths, tokens.
SPREADS = {"pairs": (100, 0.18), "documents": (200, 0.9)}
LONGEST = 2000
WORDS = 2000  # that the model knows
BATCH_SIZE, NEW_TOKENS, HIDDEN_SIZE = 16, 64, 256


def small_mistral() -> tuple[Any, Any]:
    """A model of 4 layers and a tokenizer whose tokens are whole words; it never ends a text."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

    words = {"<unk>": 0, "<pad>": 1, **{f"w{number}": number + 2 for number in range(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = MistralConfig(
        vocab_size=len(words), hidden_size=HIDDEN_SIZE, intermediate_size=3 * HIDDEN_SIZE, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=2 * LONGEST, sliding_window=None,
        bos_token_id=None, eos_token_id=None, pad_token_id=1,
    )
    torch.manual_seed(DEFAULT_SEED)
    model: Any = MistralForCausalLM(config).eval()
    if torch.cuda.is_available():
        model = model.to("cuda", torch.bfloat16)
    return model, PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


def prompts_of(spread: str, count: int) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(DEFAULT_SEED)
    median, deviation = SPREADS[spread]
    lengths = np.clip(rng.lognormal(np.log(median), deviation, count), 10, LONGEST).astype(int)
    return [" ".join(f"w{word}" for word in rng.integers(WORDS, size=length)) for length in lengths], lengths


def generating(model: Any, tokenizer: Any, prompts: Sequence[str], sort: bool, _: int = 0) -> Clock:
    from datamap.thoughts.generation import generate

    with Clock() as clock:
        done = list(generate(model, tokenizer, prompts, batch_size=BATCH_SIZE, max_new_tokens=NEW_TOKENS, sort=sort))
    written = sum(answer.num_tokens for _, answers in done for answer in answers)
    if written != len(prompts) * NEW_TOKENS:
        raise RuntimeError(f"{written} tokens were written where {len(prompts) * NEW_TOKENS} were asked for")
    return clock


def padding_of(lengths: np.ndarray) -> float:
    """The share of padding among the tokens of the prompts, 0..1."""
    batches = [lengths[first : first + BATCH_SIZE] for first in range(0, len(lengths), BATCH_SIZE)]
    return 1 - lengths.sum() / sum(len(batch) * batch.max() for batch in batches)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--prompts", type=positive_int, default=128, help="how many")
    parser.add_argument("--rounds", type=positive_int, default=5, help="how often either is timed")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    model, tokenizer = small_mistral()
    measures = []
    for spread in SPREADS:
        prompts, lengths = prompts_of(spread, args.prompts)
        generating(model, tokenizer, prompts[:BATCH_SIZE], True)  # warm-up
        sides = [partial(generating, model, tokenizer, prompts, sort) for sort in (False, True)]
        clocks = in_turn(args.rounds, *sides)
        for side, padding, each in zip(("as they come", "sorted"), (lengths, np.sort(lengths)[::-1]), clocks,
                                       strict=True):
            measures += [Measure(f"{spread}, {side}: padding", [100 * padding_of(padding)], " %"),
                         Measure(f"{spread}, {side}", [clock.seconds for clock in each], " s")]
        for name, field in (("clock", "seconds"), ("CPU", "cpu_seconds")):
            ratios = [getattr(one, field) / getattr(other, field) for one, other in zip(*clocks, strict=True)]
            measures.append(Measure(f"{spread}: unsorted / sorted, {name}", ratios))
    report(args, __file__, {"batch_size": BATCH_SIZE, "new_tokens": NEW_TOKENS, "hidden_size": HIDDEN_SIZE}, measures)


if __name__ == "__main__":
    main()
