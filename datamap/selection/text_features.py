"""Features of texts, computed once and kept on disk: embeddings, perplexity, readability and lexical diversity.

What is kept (feature_cache.py) is found again by the fingerprint of the dataset, the examples and their order, the
model with its revision and the parameters. Rows are those of the ``Split`` that is given, in its order.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.artifacts import content_key
from datamap.core.errors import UserError, name_a_few
from datamap.core.splits import Split
from datamap.selection.cache import cached
from datamap.training import models
from datamap.training.embeddings import embedder, embedding_spans
from datamap.training.models import SCRATCH_MODELS, load_encoder, usable_length, usable_stride

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n"  # between the columns of an example where it is taken as one text

logger = logging.getLogger(__name__)


def texts_of(split: Split) -> list[str]:
    """Each example as one text: its text columns one below the other."""
    return [SEPARATOR.join(parts) for parts in zip(*(split.data[name][:] for name in split.task.text_columns),
                                                   strict=True)]


def split_key(split: Split) -> dict[str, Any]:
    """What tells the rows of a split from others: the dataset, which of its examples, and in which order."""
    ids = hashlib.blake2b("\x1f".join(split.ids).encode(), digest_size=8).hexdigest()
    return {"fingerprint": split.fingerprint, "task": split.task.settings(), "ids": ids}


def model_key(name: str, no_cuda: bool) -> dict[str, Any]:
    """What tells the numbers of a model from those of another of the same name: the content of a directory, the
    commit of a Hub model; and the precision, which on a GPU is bfloat16."""
    import torch

    precision = "bfloat16" if torch.cuda.is_available() and not no_cuda else "float32"
    if Path(name).exists():
        return {"content": content_key(name), "precision": precision}
    return {"name": name, "commit": getattr(_config(name), "_commit_hash", None), "precision": precision}


def _config(name: str) -> Any:
    if name in SCRATCH_MODELS:
        raise UserError(f"model {name} is trained from scratch and gives no features untrained; name a Hub model or a "
                        "directory that run.py wrote")
    return models.load_config(name)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    _config(name)  # says what is wrong with the name
    return models.load_tokenizer(name)


# --- embeddings ---------------------------------------------------------------------------------------------------


def embeddings(
    split: Split,
    name: str,
    *,
    pooling: str,
    max_length: int,
    doc_stride: int,
    batch_size: int,
    no_cuda: bool,
    cache_dir: Path,
) -> np.ndarray:
    """(N, D) float32, a memory map: one vector per example of the encoder; see ``embeddings.pooled_spans``."""
    key = {**split_key(split), **model_key(name, no_cuda), "pooling": pooling, "max_length": max_length,
           "doc_stride": doc_stride}

    def prepare() -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        model, tokenizer = load_encoder(name, no_cuda)
        length = usable_length(max_length, model, tokenizer)
        stride = usable_stride(doc_stride, length) if "doc_stride" in split.task.flags else 0
        rows, spans, _ = embedding_spans(split, tokenizer, pooling, length, stride)
        return embedder(model, tokenizer, rows, spans, batch_size)

    dims = _config(name).hidden_size * (1 if pooling in ("cls", "mean") else 2)
    return cached(cache_dir, "embeddings", key, (len(split.data), dims), prepare)


# --- language models ----------------------------------------------------------------------------------------------


def perplexity(
    split: Split, name: str, *, masked: bool, max_length: int, batch_size: int, no_cuda: bool, cache_dir: Path
) -> np.ma.MaskedArray:
    """(N,) >= 1, masked where a text is too short to score; under a causal, or a masked, language model."""
    from datamap.selection import language_models

    def prepare() -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        load, score = (
            (language_models.load_masked, language_models.pseudo_perplexity_rows) if masked
            else (language_models.load_causal, language_models.perplexity_rows)
        )
        model, tokenizer = load(name, no_cuda)
        length = usable_length(max_length, model, tokenizer)
        return score(texts_of(split), model, tokenizer, length, batch_size)

    key = {**split_key(split), **model_key(name, no_cuda), "max_length": max_length}
    values = cached(cache_dir, "pseudo_perplexity" if masked else "perplexity", key, (len(split.data),), prepare)
    scores = np.ma.masked_invalid(np.asarray(values, dtype=np.float64))
    short = np.asarray(split.ids)[np.ma.getmaskarray(scores)].tolist()
    if short:
        logger.warning(f"{len(short):,} of {len(scores):,} texts are too short to score ({name_a_few(short)})")
    return scores


# --- text metrics -------------------------------------------------------------------------------------------------


def metrics_table(split: Split, mattr_window: int, syllables_by: str, cache_dir: Path) -> pd.DataFrame:
    """The text metrics (text_metrics.py) of each example, as one text."""
    import pandas as pd

    from datamap.selection.text_metrics import METRICS, text_metrics

    def prepare() -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        texts = texts_of(split)
        return np.arange(len(texts)), lambda rows: text_metrics(
            [texts[row] for row in rows], syllables_by, mattr_window
        )[list(METRICS)].to_numpy(dtype=float)

    key = {**split_key(split), "mattr_window": mattr_window, "syllables_by": syllables_by}
    values = cached(cache_dir, "text_metrics", key, (len(split.data), len(METRICS)), prepare, dtype=np.float64)
    return pd.DataFrame(np.asarray(values), columns=list(METRICS))
