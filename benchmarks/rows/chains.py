"""Chains of thought: answers of a chat server a second, batches sorted by length, the interval of a judge's leaning.

The server runs on this machine, in a process of its own, answers after 200 ms and is leaner than that of the tests:
no client can pass workers / latency. The batches are answered by a small Mistral with random weights; the lengths of
the prompts are spread as those of MNLI pairs (half of them shorter than 100 tokens, one in ten longer than 126) or as
those of questions about documents (half shorter than 200, one in ten longer than 630), and every answer runs to its 64
tokens, so that decoding, which sorting hardly helps, has its full share. The judges are made up: how often the 95 %
interval of the share of answers that prefer the chain shown first leaves out the true share, taken over pairs, as ours
is, and with Wilson's, which takes the two answers to a pair as independent.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from timing import Clock, Found, Measure, Setting, in_turn, timed

from datamap.core.files import write_jsonl
from datamap.core.flags import DEFAULT_SEED
from datamap.core.intervals import wilson_interval
from datamap.thoughts.statistics import FIRST, SECOND, position_report

# --- a chat server ---------------------------------------------------------------------------------------------------

WANTED = 0.9  # of workers / latency
WORKERS, LATENCY = 8, 0.2  # requests at a time; seconds that an answer takes
THOUGHT = {"thought_process": "Step 1: a. Step 2: b. Step 3: c.", "predicted_label": 1}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        began = time.monotonic()
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": json.dumps(THOUGHT)}
        answer = json.dumps({
            "id": "c", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        }).encode()
        time.sleep(max(0.0, LATENCY - (time.monotonic() - began)))
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"
        self.wfile.write(head.encode() + answer)

    def log_message(self, *_: Any) -> None:
        pass


def serve(address: Any) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address.send(f"http://127.0.0.1:{server.server_address[1]}/v1")
    server.serve_forever()


def rate(url: str, pairs: int) -> float:
    """Answers per second, recorded ones, of one call for so many pairs."""
    import generate_thoughts
    from datamap.thoughts.chains import ask

    with TemporaryDirectory() as directory:
        texts = [{"premise": f"Premise {number}.", "hypothesis": "So it is."} for number in range(pairs)]
        file = Path(directory) / "pairs.jsonl"
        write_jsonl(file, texts)
        args = generate_thoughts.parse_args([
            "--mode", "generate", "--dataset", str(file), "--model", "m", "--base_url", url, "--workers", str(WORKERS),
            "--output_dir", str(Path(directory) / "out"),
        ])
        questions = [(str(place), dict(pair), dict(pair)) for place, pair in enumerate(texts)]
        seconds, answers = timed(ask, args, "generate", questions)
    if len(answers.parsed) < pairs:
        raise RuntimeError(f"{len(answers.failures)} pairs without an answer")
    return pairs / seconds


def served(setting: Setting) -> Found:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        url = ours.recv()
        rate(url, WORKERS)  # loads the library
        rates = [rate(url, setting.size(800, 16)) for _ in range(setting.size(3, 1))]
    finally:
        server.terminate()
        server.join()
    possible = WORKERS / LATENCY
    return Found([Measure(f"answers a second, {possible:g} are possible", rates, least=WANTED * possible)],
                 details={"workers": WORKERS, "latency_seconds": LATENCY})


# --- batches ---------------------------------------------------------------------------------------------------------

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


def sorted_batches(setting: Setting) -> Found:
    model, tokenizer = small_mistral()
    measures = []
    for spread in SPREADS:
        prompts, lengths = prompts_of(spread, setting.size(64, 16))
        generating(model, tokenizer, prompts[:BATCH_SIZE], True)  # warm-up
        sides = [partial(generating, model, tokenizer, prompts, sort) for sort in (False, True)]
        clocks = in_turn(setting.size(3, 1), *sides)
        for side, padding, each in zip(("as they come", "sorted"), (lengths, np.sort(lengths)[::-1]), clocks,
                                       strict=True):
            measures += [Measure(f"{spread}, {side}: padding", [100 * padding_of(padding)], " %"),
                         Measure(f"{spread}, {side}", [clock.seconds for clock in each], " s")]
        for name, field in (("clock", "seconds"), ("CPU", "cpu_seconds")):
            ratios = [getattr(one, field) / getattr(other, field) for one, other in zip(*clocks, strict=True)]
            measures.append(Measure(f"{spread}: unsorted / sorted, {name}", ratios, " x"))
    return Found(measures, details={"batch_size": BATCH_SIZE, "new_tokens": NEW_TOKENS, "hidden_size": HIDDEN_SIZE})


# --- made-up judges --------------------------------------------------------------------------------------------------

PAIRS = (10, 20, 50, 200)  # pairs
ANSWERS = np.array(["A", "B", "tie"])


def whims(rng: np.random.Generator, shape: tuple[int, int], first: float, ties: float = 0.0) -> np.ndarray:
    """One place wins in both orders, the first with chance ``first``; each answer is a tie with chance ``ties``."""
    answers = np.repeat(np.where(rng.random(shape) < first, 0, 1)[..., None], 2, axis=2)
    return np.where(rng.random(answers.shape) < ties, 2, answers)


def content(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """The same chain wins in both orders in half of the pairs, and the same place in the others."""
    better = rng.integers(0, 2, shape)
    by_content = np.stack([better, 1 - better], axis=2)
    return np.where((rng.random(shape) < 0.5)[..., None], by_content, whims(rng, shape, 0.5))


# What draws (repetitions, pairs, 2) of ANSWERS, and the share of answers that prefer the first shown.
JUDGES: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], np.ndarray], float]] = {
    "a coin for every answer": (lambda rng, shape: rng.integers(0, 2, (*shape, 2)), 0.5),
    "a coin for every pair: one place wins twice": (lambda rng, shape: whims(rng, shape, 0.5), 0.5),
    "the same, 30 % ties": (lambda rng, shape: whims(rng, shape, 0.5, ties=0.3), 0.5),
    "half by content, half so": (content, 0.5),
    "the first shown wins twice in 80 % of the pairs": (lambda rng, shape: whims(rng, shape, 0.8), 0.8),
}


def intervals(answers: np.ndarray) -> list[tuple[float, ...]]:
    """Per repetition the ends over pairs and those over answers; no row for one of ties alone."""
    found: list[tuple[float, ...]] = []
    for drawn in ANSWERS[answers]:
        told = position_report({(str(pair), order): str(answer) for pair, both in enumerate(drawn)
                                for order, answer in zip((FIRST, SECOND), both, strict=True)})
        if told["low"] is not None:
            decided = told["n_answers"] - told["n_ties"]
            found.append((told["low"], told["high"], *wilson_interval(round(told["first_share"] * decided), decided)))
    return found


def position(setting: Setting) -> Found:
    rng, repetitions, measures = np.random.default_rng(DEFAULT_SEED), setting.size(2000, 50), []
    for name, (draw, truth) in JUDGES.items():
        for pairs in PAIRS:
            ends = np.array(intervals(draw(rng, (repetitions, pairs))))
            for kind, low, high in (("pairs", *ends[:, :2].T), ("answers", *ends[:, 2:].T)):
                what = f"{name}, {pairs} pairs: over {kind}"
                outside = 100 * float(((low > truth) | (high < truth)).mean())
                measures += [Measure(f"{what}, outside", [outside], " %"),
                             Measure(f"{what}, width", [float((high - low).mean())])]
    return Found(measures, details={"repetitions": repetitions})
