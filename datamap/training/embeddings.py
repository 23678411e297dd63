"""Examples as vectors: which token vectors of an encoder make an embedding, and how a split is embedded."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from datamap.core.errors import UserError, name_a_few
from datamap.core.splits import Split

if TYPE_CHECKING:
    import datasets
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def pooled_spans(pooling: str, cls: np.ndarray, answers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(N, P, 2): first and last token of the P spans whose mean vectors, one after the other, make an embedding.

    cls (N,): position of the [CLS] token. answers (N, 2): first and last token of the answer, -1 where there is none:
    there the [CLS] token stands for it. lengths (N,): tokens without padding.
    """
    if pooling == "mean":
        return np.stack([np.zeros_like(lengths), lengths - 1], axis=1)[:, None]
    alone = np.stack([cls, cls], axis=1)
    if pooling == "cls":
        return alone[:, None]
    return np.stack([alone, np.where(answers < 0, alone, answers)], axis=1)


def pool(hidden: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    """(B, L, H) last hidden states to (B, P H) float32: the mean vector of each span, one after the other.

    spans (B, P, 2): first and last position, both included. Padding lies outside every span and so has no weight.
    """
    import torch

    hidden = hidden.float()
    position = torch.arange(hidden.shape[1], device=hidden.device)
    inside = ((position >= spans[:, :, :1]) & (position <= spans[:, :, 1:])).float()
    means = torch.einsum("bpl,blh->bph", inside, hidden) / inside.sum(dim=2, keepdim=True)
    return means.flatten(start_dim=1)


def embedding_spans(
    split: Split, tokenizer: PreTrainedTokenizerBase, pooling: str, max_length: int, doc_stride: int
) -> tuple[datasets.Dataset, np.ndarray, np.ndarray]:
    """One row of features per example, their ``pooled_spans`` (N, P, 2), and whether each has an answer span, (N,)."""
    features = split.task.features(split.data, tokenizer, max_length=max_length, doc_stride=doc_stride)
    rows, cls, answers = split.task.embedding_rows(split.data, features, tokenizer)
    if pooling != "mean" and (cls < 0).any():
        example = name_a_few(np.asarray(split.ids)[cls < 0].tolist(), 1)
        raise UserError(
            f"--pooling {pooling} needs a [CLS] token, which {type(tokenizer).__name__} does not put into every "
            f"text (example {example}); give --pooling mean"
        )
    return rows, pooled_spans(pooling, cls, answers, np.asarray(rows["length"][:])), answers[:, 0] >= 0


def embedder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: datasets.Dataset,
    spans: np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The order in which N rows are best embedded, and what embeds some of them: (m,) places to (m, P H) float32.

    spans: (N, P, 2), see ``pooled_spans``. The order goes from long to short, so that little is padded and memory
    runs out at once or never. On a GPU in bfloat16.
    """
    import torch

    accepted = inspect.signature(model.forward).parameters
    names = [name for name in tokenizer.model_input_names if name in rows.column_names and name in accepted]
    order = np.argsort(-np.asarray(rows["length"][:]), kind="stable")
    device = model.device
    model.eval()

    def embed(places: np.ndarray) -> np.ndarray:
        vectors = []
        for first in range(0, len(places), batch_size):
            some = places[first : first + batch_size]
            chosen = rows[some]
            batch = tokenizer.pad({name: chosen[name] for name in names}, return_tensors="pt").to(device)
            with torch.inference_mode(), torch.autocast(
                device.type, torch.bfloat16, enabled=device.type == "cuda"
            ):
                hidden = model(**batch).last_hidden_state
                vectors.append(pool(hidden, torch.from_numpy(spans[some]).to(device)).cpu().numpy())
            if not np.isfinite(vectors[-1]).all():
                raise UserError("the model gives NaN or infinite vectors: its training diverged; train it again")
        return np.concatenate(vectors)

    return order, embed
