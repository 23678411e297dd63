"""Models and their tokenizers: built in and trained from scratch, a directory that run.py wrote, or pretrained."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from datamap.core.artifacts import check_whole_model
from datamap.core.errors import UserError
from datamap.core.splits import Split

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from datamap.tasks.base import Task

# Built in: name -> module with train_tokenizer, build_model and LEARNING_RATE, and settings for build_model.
SCRATCH_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("tiny_model", {}), "lstm": ("lstm_model", {}), "lstm_reader": ("lstm_model", {"reader": True}),
}

logger = logging.getLogger(__name__)


def _module(name: str) -> Any:
    return importlib.import_module(f"datamap.training.{SCRATCH_MODELS[name][0]}")


def learning_rate_of(name: str) -> float | None:
    """The learning rate that a built-in model is trained with unless another is given."""
    return _module(name).LEARNING_RATE if name in SCRATCH_MODELS else None


def load_model(
    name: str, task: Task, train: Split | None, max_length: int, sizes: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model with the head of ``task``, and tokenizer. Set the seed of torch first.

    train: the training split as loaded, before any filter: tokenizers and sets of labels are made from the whole of
    it; None to evaluate only. sizes: hidden_size, num_layers, dropout, vocab_size of a built-in model, None for its
    own.
    """
    if name in SCRATCH_MODELS:
        assert train is not None
        module, settings = _module(name), SCRATCH_MODELS[name][1]
        texts = (text for column in task.text_columns for text in train.data[column][:])
        rest = {size: value for size, value in sizes.items() if size != "vocab_size"}
        head = task.head(None, train.data, train.name)
        tokenizer = module.train_tokenizer(texts, max_length, sizes.get("vocab_size"))
        return module.build_model(tokenizer, task.model_class, max_length, **settings, **rest, **head), tokenizer
    return _load_pretrained(name, task, train)


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Without the library's report on every weight of a head that is new, or not used; we say it in one line."""
    from transformers.utils import logging as library_logging

    verbosity = library_logging.get_verbosity()
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        library_logging.set_verbosity(verbosity)


def _load_pretrained(
    name: str, task: Task, train: Split | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoTokenizer

    from datamap.training import lstm_model  # noqa: F401  so that the Auto classes know it

    check_whole_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        config = AutoConfig.from_pretrained(name)
        head = task.head(config, train.data if train else None, train.name if train else "")
        with _quiet_library():
            model, loading = task.model_class.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=bool(head), **head
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model {name!r} cannot be loaded: give a Hub name, a directory with config.json and weights, or "
            f"{' or '.join(SCRATCH_MODELS)} ({reason:.200})"
        ) from error
    untrained = sorted(loading["missing_keys"])
    if untrained and train is None:
        raise UserError(
            f"model {name!r} has no trained {untrained[0]}: train it (--do_train), or evaluate a directory that "
            "run.py wrote"
        )
    if untrained:
        logger.info(f"{name} brings no {', '.join(sorted({key.split('.')[0] for key in untrained}))} for this task: "
                    "random to begin with")
    _give_padding(model, tokenizer)
    return model, tokenizer


def _give_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token is None:  # decoders have none; attention never sees it
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def usable_length(asked: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """``--max_length``, or with a warning as much of it as the model has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None) or asked
    for name, module in model.named_modules():  # RoBERTa and its kin count positions from padding_idx + 1
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions = min(positions, module.num_embeddings - module.padding_idx - 1)
    usable = min(asked, positions, tokenizer.model_max_length)
    if usable < asked:
        logger.warning(f"--max_length lowered from {asked} to {usable}: the model takes no more")
    return usable


def usable_stride(asked: int, max_length: int) -> int:
    if asked > max_length // 2:
        logger.warning(f"--doc_stride lowered from {asked} to {max_length // 2}: half of --max_length")
    return min(asked, max_length // 2)


def load_encoder(name: str, no_cuda: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Encoder and tokenizer of a checkpoint, in float32; its task head is left out."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    from datamap.training import lstm_model  # noqa: F401

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        with _quiet_library():
            model, loading = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load the model {name!r} ({reason}); give a directory that run.py wrote, or a model of the Hub"
        ) from error
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(f"model {name!r} lacks {len(missing):,} weights of its encoder ({missing[0]}, ...)")
    _give_padding(model, tokenizer)
    return model.to("cuda" if torch.cuda.is_available() and not no_cuda else "cpu"), tokenizer
