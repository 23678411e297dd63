"""What a causal language model writes after its prompts, batch by batch; free, or held to the JSON of a thought."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import CompileConfig, GenerationConfig, LogitsProcessor, LogitsProcessorList, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from datamap.core.errors import UserError, first_line
from datamap.thoughts.reader import LABELS, tells_reasoning
from datamap.training.models import positions_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# As reader.completion_text writes it, so that a model is not led away from what it was trained on. No free
# white space: there a model that repeats itself would never come to an end.
SCHEMA = {
    "type": "object",
    "properties": {
        "thought_process": {"type": "string", "pattern": r"^\S"},  # an empty thought is none
        "predicted_label": {"enum": list(LABELS)},
    },
    "required": ["thought_process", "predicted_label"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
}


# Compiling costs the time of so many steps of decoding on a GPU: from there on it is done unasked. None until
# benchmarks/bench_gpu.py has measured that on a card.
STEPS_THAT_PAY: int | None = None
# Few widths of prompts: each takes a graph of its own.
WIDTH = 64


@dataclass(frozen=True)
class Generated:
    """``text``: of the new tokens alone, special tokens left out unless some of them mark reasoning. ``num_tokens``:
    how many the model wrote, the one that ends the text included. ``finished``: it ended by itself, and was not cut
    off at ``max_new_tokens``."""

    text: str
    num_tokens: int
    finished: bool


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, batch_size: int,
    max_new_tokens: int, temperature: float = 0.0, seed: int = 0, constraint: SchemaConstraint | None = None,
    sort: bool = True, compiled: bool = False,
) -> Iterator[tuple[list[int], list[Generated]]]:
    """Yield, batch by batch, the places of its prompts in ``prompts`` and what the model wrote after each of them.

    prompts: as ``prompts.model_prompt`` makes them; the tokenizer adds its own special tokens in front.
    temperature: 0 takes the likeliest token (greedy), else tokens are drawn from softmax(logits / temperature), whole,
    by the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030) with noise that depends on ``seed``
    and the prompt alone: a prompt has one answer per seed, whatever stands beside it in the batch.
    constraint: holds every text to a schema; one that is cut off at ``max_new_tokens`` is no whole object, though.
    sort: by length, longest first, so that batches hold little padding and memory runs out at once or never. In
    float32 the answers depend neither on it nor on ``batch_size``; in bfloat16 and in 4 bit, rounding can differ.
    compiled: decode in fixed shapes (batches filled up, prompts padded to one of a few widths, a cache of one size
    that is used again), and on a GPU with the step of one token compiled and replayed from CUDA graphs, so that it
    waits for the reading of the weights and not for the host. The same answers in float32.

    The model may be in training, with gradient checkpointing and without a cache: its modes and the random states of
    the library are left as they were. Raises UserError for a prompt that leaves no room for ``max_new_tokens``.
    """
    rows = encode_prompts(tokenizer, prompts)
    stop = stop_tokens(model, tokenizer)
    _check_room(model, [len(row) for row in rows], max_new_tokens)
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row])) if sort else list(range(len(rows)))
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)  # attention never sees it
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, eos_token_id=stop or None,
        pad_token_id=next(token for token in known if token is not None), disable_compile=not compiled,
        # A graph for each shape: one for all would be slower, and they are few.
        compile_config=CompileConfig(dynamic=False) if compiled and model.device.type == "cuda" else None,
    )
    shapes = _FixedShapes(model, min(batch_size, len(order)), max_new_tokens) if compiled else None
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        taken = shapes.filled(places) if shapes else places
        processors = LogitsProcessorList()
        if constraint is not None:
            processors.append(constraint.processor(len(taken)))
        if temperature:
            seeds = [_seed_of(seed, prompts[place]) for place in taken]
            processors.append(_GumbelNoise(temperature, seeds, model.device))
        batch = [torch.tensor(rows[place]) for place in taken]
        ids = pad_sequence(batch, True, config.pad_token_id, padding_side="left")
        # The library counts positions from the first token that the mask shows.
        mask = pad_sequence([torch.ones_like(row) for row in batch], True, 0, padding_side="left")
        cache = {}
        if shapes:
            ids, mask = shapes.widened(ids, config.pad_token_id), shapes.widened(mask, 0)
            cache = {"past_key_values": shapes.cache(ids.shape[1])}
        with _evaluating(model, config), _heads_together(compiled):
            out = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config,
                logits_processor=processors, **cache,
            )
        new = out[: len(places), ids.shape[1] :].tolist()
        yield places, [_generated(tokens, stop, tokenizer) for tokens in new]


def can_compile(model: PreTrainedModel) -> bool:
    """Whether the step of one token can be compiled: for a cache of a fixed size, and weights that allow it."""
    quantizer = getattr(model, "hf_quantizer", None)
    return bool(getattr(model, "_can_compile_fullgraph", False)) and (quantizer is None or quantizer.is_compileable)


class _FixedShapes:
    """Batches of one size, prompts of a few widths, and a cache that stays where it is as long as its size does:
    whatever changes them, a graph must be compiled or recorded anew."""

    def __init__(self, model: PreTrainedModel, batch_size: int, max_new_tokens: int):
        self.config, self.batch_size, self.max_new_tokens = model.config, batch_size, max_new_tokens
        self.width = 0
        self.kept: StaticCache | None = None

    def filled(self, places: list[int]) -> list[int]:
        return places + places[-1:] * (self.batch_size - len(places))

    def widened(self, values: torch.Tensor, fill: int) -> torch.Tensor:
        """To the next power of two of WIDTH, on the left; always by one at least: without any padding the library
        takes another way, which would be another graph."""
        width = WIDTH
        while width <= values.shape[1]:
            width *= 2
        return torch.nn.functional.pad(values, (width - values.shape[1], 0), value=fill)

    def cache(self, width: int) -> StaticCache:
        if self.kept is None or width != self.width:
            self.kept = None  # before there is another
            self.width, self.kept = width, StaticCache(config=self.config, max_cache_len=width + self.max_new_tokens)
        self.kept.reset()
        return self.kept


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens of every prompt with what the tokenizer puts in front, but not the EOS that some put behind it."""
    if not prompts:
        return []
    rows = [list(row) for row in tokenizer(list(prompts), padding=False, truncation=False)["input_ids"]]
    ends = tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id is not None
    return [row[:-1] for row in rows] if ends else rows


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All tokens that end a text: those of the model's generation config and the tokenizer's EOS."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return sorted({end for end in [*ends, tokenizer.eos_token_id] if end is not None})


def _check_room(model: PreTrainedModel, lengths: Sequence[int], max_new_tokens: int) -> None:
    positions = positions_of(model.config)
    longest = max(lengths, default=0)
    if positions and longest + max_new_tokens > positions:
        mend = f"lower --max_new_tokens to {positions - longest:,}, or " * (longest < positions)
        raise UserError(f"a prompt of {longest:,} tokens and {max_new_tokens:,} new ones are more than the "
                        f"{positions:,} positions of the model; {mend}leave the longest pairs out")


def _generated(tokens: list[int], stop: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Generated:
    end = next((place for place, token in enumerate(tokens) if token in stop), None)
    own = tokens if end is None else tokens[:end]
    text, whole = (tokenizer.decode(own, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
                   for skip in (True, False))
    if tells_reasoning(whole):  # with special tokens such as [THINK]: else its drafts would pass for answers
        text = whole
    return Generated(text, len(own) + (end is not None), end is not None)


@contextmanager
def _evaluating(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Without dropout, gradients and gradient checkpointing, which only acts in training; every module gets its own
    mode back. ``config`` stands for the model's own, from which the library takes whatever is not said."""
    training = [module for module in model.modules() if module.training]
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of an adapter
    own, owner.generation_config = owner.generation_config, config
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        owner.generation_config = own
        for module in training:
            module.training = True


def _attention_of_a_token(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, scaling: float | None = None, **settings: Any,
) -> tuple[torch.Tensor, None]:
    """The library's attention; of one new token a text and a mask for all heads, the heads that share keys and values
    (Ainslie et al. 2023, arXiv 2305.13245) stand as rows of one product. Where it compiles, the library copies keys
    and values for each head, which takes longer than to read the weights where many texts are written at once.

    query: (B, heads, 1, D). key, value: (B, shared, length, D). attention_mask: (B, 1, 1, length).
    """
    (batch, heads, tokens, width), shared = query.shape, key.shape[1]
    together = tokens == 1 and heads != shared and attention_mask is not None and attention_mask.shape[1] == 1
    if not together or any(settings.get(name) is not None for name in ("position_bias", "softcap")):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
    rows = query.view(batch, shared, heads // shared, width)
    out = torch.nn.functional.scaled_dot_product_attention(rows, key, value, attention_mask, scale=scaling)
    return out.reshape(batch, 1, heads, -1), None


@contextmanager
def _heads_together(active: bool) -> Iterator[None]:
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if active:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = _attention_of_a_token
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = own


# --- drawing -----------------------------------------------------------------------------------------------------


def _seed_of(seed: int, prompt: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}\x1f{prompt}".encode(), digest_size=7).digest(), "big")


class _GumbelNoise(LogitsProcessor):
    """Adds to every row of the logits its own noise, so that the greatest is a draw from their softmax."""

    def __init__(self, temperature: float, seeds: Sequence[int], device: torch.device):
        self.temperature, self.device = temperature, device
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty(scores.shape, dtype=torch.float32, device=self.device)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / self.temperature - torch.log(noise)


# --- a schema ----------------------------------------------------------------------------------------------------


def check_llguidance() -> None:
    if importlib.util.find_spec("llguidance") is None:
        raise UserError("--constrained needs llguidance, which is not installed: pip install llguidance")


class SchemaConstraint:
    """Lets a model write nothing but one object of ``SCHEMA``, with a space before it or not.

    The grammar and its masks are llguidance's. Raises UserError where it is not installed, or cannot read the
    tokenizer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        check_llguidance()
        from llguidance import LLMatcher
        from llguidance.hf import from_tokenizer

        self.stop = stop_tokens(model, tokenizer)
        vocab_size = model.config.get_text_config().vocab_size  # may be more than the tokenizer has tokens
        try:
            own = from_tokenizer(tokenizer, vocab_size, self.stop)
        except ValueError as error:
            raise UserError(f"--constrained: llguidance cannot read the tokenizer of this model "
                            f"({first_line(error):.200}); leave it out") from error
        grammar = LLMatcher.grammar_from_lark(f'start: " "? object\nobject: %json {json.dumps(SCHEMA)}')
        self._first = LLMatcher(own, grammar)
        if self._first.is_error():
            raise ValueError(self._first.get_error())

    def processor(self, rows: int) -> LogitsProcessor:
        """For one batch of ``rows`` texts."""
        return _SchemaMask([self._first.deep_copy() for _ in range(rows)], self.stop)


class _SchemaMask(LogitsProcessor):
    def __init__(self, matchers: Sequence[Any], stop: Sequence[int]):
        self.matchers, self.stop, self.begun = matchers, list(stop), False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        allowed = np.zeros(scores.shape, dtype=bool)
        for row, matcher, token in zip(allowed, self.matchers, input_ids[:, -1].tolist(), strict=True):
            if self.begun and not matcher.is_stopped() and not matcher.consume_token(token):
                raise RuntimeError(f"the grammar refuses a token that it has allowed: {matcher.get_error()}")
            if matcher.is_stopped():  # the object is whole; after its end the library writes padding, whatever is said
                row[self.stop] = True
            else:
                bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
                row[:] = np.unpackbits(bits, count=scores.shape[1], bitorder="little")
        self.begun = True
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), float("-inf"))
