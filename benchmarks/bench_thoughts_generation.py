"""Time the answers to prompts in batches sorted by length and in batches as they come, in turn.

Reads nothing; builds a small Mistral with random weights and --prompts prompts, whose lengths are spread as those of
MNLI pairs (half of them shorter than 100 tokens, one in ten longer than 126) or as those of questions about documents
(half shorter than 200, one in ten longer than 630). Every answer runs to --max_new_tokens, so decoding, which sorting
hardly helps, has its full share. Prints seconds and their ratio over the rounds, of the clock and of the CPU (which
other programs disturb less), and writes bench_thoughts_generation.json.

    python benchmarks/bench_thoughts_generation.py
    python benchmarks/bench_thoughts_generation.py --prompts 16 --rounds 1 --output_dir /tmp/bench_generation
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datamap.core.artifacts import stage  # noqa: E402
from datamap.core.errors import command_line  # noqa: E402
from datamap.core.files import write_json  # noqa: E402
from datamap.core.flags import (  # noqa: E402
    DEFAULT_SEED,  # noqa: E402
    Parser,
    positive_int,
)

# Median and spread (standard deviation of the logarithm) of the lengths, tokens.
SPREADS = {"pairs": (100, 0.18), "documents": (200, 0.9)}
LONGEST = 2000
WORDS = 2000  # that the model knows
FILE = "bench_thoughts_generation.json"

logger = logging.getLogger(__name__)


def small_mistral(hidden_size: int) -> tuple[Any, Any]:
    """A model of 4 layers and a tokenizer whose tokens are whole words; it never ends a text."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

    words = {"<unk>": 0, "<pad>": 1, **{f"w{number}": number + 2 for number in range(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = MistralConfig(
        vocab_size=len(words), hidden_size=hidden_size, intermediate_size=3 * hidden_size, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=2 * LONGEST, sliding_window=None,
        bos_token_id=None, eos_token_id=None, pad_token_id=1,
    )
    torch.manual_seed(DEFAULT_SEED)
    return (
        MistralForCausalLM(config).eval(),
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>"),
    )


def prompts_of(spread: str, count: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    median, deviation = SPREADS[spread]
    lengths = np.clip(rng.lognormal(np.log(median), deviation, count), 10, LONGEST).astype(int)
    return [" ".join(f"w{word}" for word in rng.integers(WORDS, size=length)) for length in lengths], lengths


def seconds_of(
    model: Any, tokenizer: Any, prompts: Sequence[str], args: argparse.Namespace, sort: bool
) -> tuple[float, float]:
    """Of the clock and of the CPU."""
    from datamap.thoughts.generation import generate

    began, cpu_began = time.perf_counter(), time.process_time()
    settings = {"batch_size": args.batch_size, "max_new_tokens": args.max_new_tokens, "sort": sort}
    done = generate(model, tokenizer, prompts, **settings)
    written = sum(answer.num_tokens for _, answers in done for answer in answers)
    if written != len(prompts) * args.max_new_tokens:
        raise RuntimeError(f"{written} tokens were written where {len(prompts) * args.max_new_tokens} were asked for")
    return time.perf_counter() - began, time.process_time() - cpu_began


def padding_of(lengths: np.ndarray, batch_size: int, sort: bool) -> float:
    """The share of padding among the tokens of the prompts, 0..1."""
    order = np.sort(lengths)[::-1] if sort else lengths
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    return 1 - lengths.sum() / sum(len(batch) * batch.max() for batch in batches)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Seconds of generating in batches sorted by length and in batches as they come.")
    parser.add_argument("--prompts", type=positive_int, default=128, help="how many")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="prompts in a batch")
    parser.add_argument("--max_new_tokens", type=positive_int, default=64, help="length of every answer")
    parser.add_argument("--hidden_size", type=positive_int, default=256, help="width of the model, a multiple of 16")
    parser.add_argument("--rounds", type=positive_int, default=5, help="how often either is timed")
    parser.add_argument("--output_dir", default="./bench_thoughts_generation_output", help=f"where {FILE} goes")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import torch

    model, tokenizer = small_mistral(args.hidden_size)
    if torch.cuda.is_available():
        model = model.to("cuda", torch.bfloat16)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(), "prompts": args.prompts, "batch_size": args.batch_size,
        "max_new_tokens": args.max_new_tokens, "hidden_size": args.hidden_size, "rounds": args.rounds,
    }
    print(f"{'lengths':<12}{'padding':>14}{'':>8}{'seconds, median':>18}{'unsorted / sorted: min, median, max':>38}")
    for spread in SPREADS:
        prompts, lengths = prompts_of(spread, args.prompts, np.random.default_rng(DEFAULT_SEED))
        seconds: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        seconds_of(model, tokenizer, prompts[: args.batch_size], args, sort=True)  # warm-up
        for number in range(args.rounds):  # in turn, either first, so that what else the machine does hits both alike
            for sort in (True, False) if number % 2 else (False, True):
                seconds[sort].append(seconds_of(model, tokenizer, prompts, args, sort))
        padding = {sort: padding_of(lengths, args.batch_size, sort) for sort in (False, True)}
        found[spread] = {
            "median_length": float(np.median(lengths)), "longest": int(lengths.max()),
            "padding_unsorted": padding[False], "padding_sorted": padding[True],
        }
        for kind, name in enumerate(("clock", "CPU")):
            unsorted, by_length = (np.array([pair[kind] for pair in seconds[sort]]) for sort in (False, True))
            ratios = unsorted / by_length
            ratio = {"min": float(ratios.min()), "median": float(np.median(ratios)), "max": float(ratios.max())}
            found[spread][name] = {"seconds_unsorted": unsorted.tolist(), "seconds_sorted": by_length.tolist(),
                                   "ratio": ratio}
            shares = f"{padding[False]:.0%} / {padding[True]:.0%}"
            medians = f"{np.median(unsorted):.2f} / {np.median(by_length):.2f}"
            print(f"{spread:<12}{shares:>14}{name:>8}{medians:>18}"
                  f"{', '.join(f'{value:.2f}' for value in ratio.values()):>38}")
    with stage(args.output_dir, args, owns=(FILE,)) as path:
        write_json(path / FILE, found)
    print(f"wrote {FILE} to {args.output_dir}")


if __name__ == "__main__":
    main()
