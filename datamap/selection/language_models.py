"""How likely a language model finds a text: perplexity of a causal, pseudo-perplexity of a masked one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.errors import UserError
from datamap.training.models import device_of_process, load_pretrained

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from datamap.selection.cache import Compute

TOKENIZED_AT_ONCE = 10_000  # texts
MAX_LOGITS = 2**28  # of one forward pass: 1 GiB in float32
MAX_FLOAT_LOGITS = 2**25  # that are turned into probabilities at once

logger = logging.getLogger(__name__)


# --- models ------------------------------------------------------------------------------------------------------


def load_causal(name: str, no_cuda: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Causal language model and tokenizer of a Hub name or directory: float32 on the CPU, bfloat16 on a GPU."""
    from transformers import AutoModelForCausalLM

    model, tokenizer = _load(name, no_cuda, AutoModelForCausalLM, "a causal language model")
    if _sees_what_follows(model):
        raise UserError(f"model {name!r} sees the words that it is to predict, so its perplexity means nothing; give "
                        "a causal model (Qwen, GPT, Llama), or ask for the pseudo-perplexity")
    return model, tokenizer


def load_masked(name: str, no_cuda: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Masked language model and tokenizer of a Hub name or directory: float32 on the CPU, bfloat16 on a GPU."""
    from transformers import AutoModelForMaskedLM

    model, tokenizer = _load(name, no_cuda, AutoModelForMaskedLM, "a masked language model")
    if tokenizer.mask_token_id is None:
        raise UserError(f"the tokenizer of model {name!r} has no mask token; give a masked language model with its "
                        "own tokenizer (ModernBERT, BERT, RoBERTa)")
    return model, tokenizer


def _load(name: str, no_cuda: bool, model_class: Any, kind: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch

    device = device_of_process(no_cuda)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model, tokenizer = load_pretrained(name, model_class, kind, dtype=dtype)
    return model.to(device), tokenizer


def _sees_what_follows(model: PreTrainedModel) -> bool:
    """Whether a token changes the prediction before it: encoders can be loaded as causal models too."""
    import torch

    ids = torch.tensor([[5, 6, 7], [5, 6, 8]], device=model.device) % model.config.get_text_config().vocab_size
    with torch.inference_mode():
        first, second = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :2].float()
    return not torch.allclose(first, second, rtol=1e-3, atol=1e-3)


# --- tokens ------------------------------------------------------------------------------------------------------


@dataclass
class _Tokens:
    """All texts one after the other: text i has the tokens starts[i] to starts[i + 1]."""

    ids: np.ndarray  # (T,) int32
    own: np.ndarray  # (T,) bool: of the text itself, not a special token that the tokenizer put around it
    starts: np.ndarray  # (n + 1,)

    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def padded(self, rows: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(B, L) ids, attention mask and ``own`` of B texts, padded on the right to the longest."""
        lengths = self.lengths()[rows]
        real = np.arange(lengths.max()) < lengths[:, None]
        source = np.concatenate([np.arange(self.starts[row], self.starts[row + 1]) for row in rows])
        ids, own = np.full(real.shape, pad_id, dtype=np.int64), np.zeros_like(real)
        ids[real], own[real] = self.ids[source], self.own[source]
        return ids, real, own


def _tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> _Tokens:
    """Tokens with what the tokenizer adds on its own; texts longer than ``max_length`` are cut, with a warning."""
    ids, own, lengths, cut, longest = [], [], [], 0, 0
    for first in range(0, len(texts), TOKENIZED_AT_ONCE):
        block = list(texts[first : first + TOKENIZED_AT_ONCE])
        options = {"return_special_tokens_mask": True, "return_attention_mask": False, "verbose": False}
        encoded = tokenizer(block, **options)
        rows, special = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
        if long := [place for place, row in enumerate(rows) if len(row) > max_length]:
            cut, longest = cut + len(long), max(longest, *(len(rows[place]) for place in long))
            shorter = tokenizer([block[place] for place in long], truncation=True, max_length=max_length, **options)
            for number, place in enumerate(long):
                rows[place], special[place] = shorter["input_ids"][number], shorter["special_tokens_mask"][number]
        lengths += [len(row) for row in rows]
        ids.append(np.fromiter((token for row in rows for token in row), dtype=np.int32))
        own.append(np.fromiter((not token for row in special for token in row), dtype=bool))
    if cut:
        logger.warning(f"{cut:,} of {len(texts):,} texts are longer than {max_length} tokens (up to {longest:,}) and "
                       "were cut; --max_length takes more if the model does")
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return _Tokens(np.concatenate([np.zeros(0, np.int32), *ids]), np.concatenate([np.zeros(0, bool), *own]), starts)


def _perplexities(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(n,) float32: exp(total / count), NaN where nothing was scored. UserError when the model broke down."""
    with np.errstate(over="ignore"):
        values = np.exp(total / np.maximum(count, 1)).astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError("the model gives NaN or infinite perplexities: it is broken, or its training diverged; give "
                        "another")
    return np.where(count > 0, values, np.float32(np.nan))


# --- perplexity --------------------------------------------------------------------------------------------------


def perplexity_rows(
    texts: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int, batch_size: int
) -> tuple[np.ndarray, Compute]:
    """Perplexity under a causal model: order (long texts first) and compute, as ``cache.cached`` wants them.

    exp(mean negative log-likelihood of the predicted tokens), at least 1, lower = likelier; in float32 from the
    logits on. What the tokenizer adds is never predicted. A token needs one before it: where the tokenizer puts none
    in front, as Qwen's, a text's first token is not scored. NaN where no token is.
    """
    tokens = _tokenize(texts, tokenizer, max_length)
    order = np.argsort(-tokens.lengths(), kind="stable")
    predicted = tokens.own.copy()
    predicted[tokens.starts[:-1][tokens.lengths() > 0]] = False
    tokens = _Tokens(tokens.ids, predicted, tokens.starts)
    scored = np.diff(np.concatenate([[0], np.cumsum(predicted)])[tokens.starts])
    pad_id = tokenizer.pad_token_id or 0  # whatever it is, attention never sees it

    def compute(rows: np.ndarray) -> np.ndarray:
        total = np.zeros(len(rows))
        wanted = np.flatnonzero(scored[rows] > 0)
        first = 0
        while first < len(wanted):
            longest = int(tokens.lengths()[rows[wanted[first : first + batch_size]]].max())
            fit = max(1, min(batch_size, MAX_LOGITS // (longest * model.config.get_text_config().vocab_size)))
            places = wanted[first : first + fit]
            total[places] = _causal_loss(model, *tokens.padded(rows[places], pad_id))
            first += fit
        return _perplexities(total, scored[rows])

    return order, compute


def _causal_loss(model: PreTrainedModel, ids: np.ndarray, real: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(B,) float64: sum of the negative log-likelihoods of the tokens that ``predicted`` (B, L) marks, in nats."""
    import torch

    targets, counts = torch.from_numpy(ids).to(model.device), torch.from_numpy(predicted).to(model.device)
    with torch.inference_mode():
        attention = torch.from_numpy(real.astype(np.int64)).to(model.device)
        logits = model(input_ids=targets, attention_mask=attention, use_cache=False).logits
        total = torch.zeros(len(ids), dtype=torch.float64, device=model.device)
        step = max(1, MAX_FLOAT_LOGITS // (logits.shape[0] * logits.shape[2]))
        for first in range(1, ids.shape[1], step):  # the logits at a position predict the next one
            piece = slice(first, first + step)
            loss = _negative_log_likelihood(logits[:, first - 1 : ids.shape[1] - 1][:, :step], targets[:, piece])
            total += torch.where(counts[:, piece], loss, 0).double().sum(dim=1)
    return total.cpu().numpy()


def _negative_log_likelihood(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(...) float32 from (..., V) logits and (...) targets."""
    logits = logits.float()
    return logits.logsumexp(dim=-1) - logits.gather(-1, targets[..., None])[..., 0]


# --- pseudo-perplexity -------------------------------------------------------------------------------------------


def pseudo_perplexity_rows(
    texts: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int, batch_size: int
) -> tuple[np.ndarray, Compute]:
    """Pseudo-perplexity under a masked model: order (long texts first) and compute, as ``perplexity_rows``.

    exp(mean negative log-likelihood of a token given all others), at least 1, lower = likelier. Each token of a text
    is masked once, those that the tokenizer adds never; NaN where a text has none of its own. batch_size: copies of
    texts, each with one token masked, in a forward pass. Salazar et al. 2020, arXiv 1910.14659.
    """
    tokens = _tokenize(texts, tokenizer, max_length)
    order = np.argsort(-tokens.lengths(), kind="stable")
    pad_id, mask_id = tokenizer.pad_token_id or 0, tokenizer.mask_token_id

    def compute(rows: np.ndarray) -> np.ndarray:
        _, _, own = tokens.padded(rows, pad_id)
        copies, positions = np.nonzero(own)
        loss = np.zeros(len(copies))
        for first in range(0, len(copies), batch_size):
            batch = slice(first, first + batch_size)
            ids, real, _ = tokens.padded(rows[copies[batch]], pad_id)
            loss[batch] = _masked_loss(model, ids, real, positions[batch], mask_id)
        return _perplexities(np.bincount(copies, loss, len(rows)), own.sum(axis=1))

    return order, compute


def _masked_loss(
    model: PreTrainedModel, ids: np.ndarray, real: np.ndarray, positions: np.ndarray, mask_id: int
) -> np.ndarray:
    """(B,): negative log-likelihood, in nats, of the token at positions[b] of text b when it is masked."""
    import torch

    place = torch.from_numpy(positions).to(model.device)
    batch = torch.arange(len(ids), device=model.device)
    with torch.inference_mode(), _only_at(model, place):
        inputs = torch.from_numpy(ids).to(model.device)
        targets = inputs[batch, place]
        inputs[batch, place] = mask_id
        attention = torch.from_numpy(real.astype(np.int64)).to(model.device)
        logits = model(input_ids=inputs, attention_mask=attention).logits
        return _negative_log_likelihood(logits[:, 0], targets).double().cpu().numpy()


@contextmanager
def _only_at(model: PreTrainedModel, place: torch.Tensor) -> Iterator[None]:
    """Let the head see, of each text, only the hidden state at ``place`` (B,): one row of logits instead of L."""
    import torch

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        output.last_hidden_state = hidden[torch.arange(len(place), device=place.device), place][:, None]
        return output

    with model.base_model.register_forward_hook(keep):
        yield
