"""How many rows a fine-tuning takes at once, and which: chosen from the memory there is, and by length."""

from __future__ import annotations

import argparse
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from datamap.core.errors import UserError
from datamap.training.library_flags import check_batches
from datamap.training.on_gpu import out_of_memory

ON_A_CPU = 4  # rows at once where no memory is tried out
FEW_TOKENS, MANY_TOKENS = 2048, 16384  # at once: below, a GPU waits for its host; above, more bring it nothing
LEFT_FREE = 0.05  # of the memory, for what a training needs beside forward and backward

logger = logging.getLogger(__name__)


class GroupedInSteps(Sampler[int]):
    """A shuffle in which the rows of every step of the optimizer are sorted by length, longest first; a function of
    (seed, epoch) alone.

    lengths: of all rows. step: rows of a step, over all processes and accumulated batches. A step has the rows that
    a shuffle gives it, so that what is learnt does not depend on how many of them are taken at once; only the padding
    does. The library's own grouping is another after a resume.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, step: int, seed: int):
        self.lengths, self.step, self.seed, self.epoch = np.asarray(lengths), step, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.lengths))
        for first in range(0, len(order), self.step):
            rows = order[first : first + self.step]
            yield from rows[np.argsort(-self.lengths[rows], kind="stable")].tolist()


def choose(
    fits: Callable[[int, bool], bool], share: int, lengths: Sequence[int], may_checkpoint: bool = True
) -> tuple[int, bool]:
    """Rows at once, and whether to checkpoint: to keep few activations and compute the others a second time.

    fits: whether the memory holds a step of so many rows, with checkpointing or without. share: rows of a step and
    process, of which every answer is a divisor. lengths: tokens of all rows, of which the longest are tried.
    Without checkpointing, which costs a third forward pass, where that leaves the GPU enough to do at a time, else as
    many rows as it takes. UserError where not even one row fits.
    """
    longest = np.cumsum(-np.sort(-np.asarray(lengths)))
    tokens = {size: int(longest[min(size, len(longest)) - 1]) for size in range(1, share + 1) if share % size == 0}
    enough = min((size for size, count in tokens.items() if count >= MANY_TOKENS), default=share)
    sizes = [size for size in sorted(tokens, reverse=True) if size <= enough]
    plain = next((size for size in sizes if fits(size, False)), 0)
    if plain == sizes[0] or tokens.get(plain, 0) >= FEW_TOKENS or not may_checkpoint:
        size, checkpointing = plain, False
    else:
        size = next((size for size in sizes if size > plain and fits(size, True)), 0)
        size, checkpointing = (size, True) if size else (plain, False)
    if not size:
        raise UserError("the GPU has no room for one row at a time: lower --max_length, take a smaller --model, or "
                        "give --quantization 4bit" + " and --gradient_checkpointing" * (not may_checkpoint))
    return size, checkpointing


def set_batches(args: argparse.Namespace, trainer: Any) -> None:
    """Choose for ``--per_device_train_batch_size auto``, say what, and put it into ``args`` and the trainer.

    args: with ``effective_batch_size``, which stays, and ``num_processes``. trainer: a ``ThoughtTrainer``.
    """
    share, lengths, device = args.effective_batch_size // args.num_processes, trainer.lengths(), trainer.args.device
    if tries(device):
        size, checkpointing = choose(Trial(trainer, lengths), share, lengths, args.gradient_checkpointing)
    else:
        size = max(size for size in range(1, min(share, ON_A_CPU) + 1) if share % size == 0)
        checkpointing = args.gradient_checkpointing
    take(args, trainer, size, checkpointing)
    check_batches(trainer.args, len(trainer.train_dataset))
    where = f"a GPU of {_memory(device) / 1e9:.0f} GB" if device.type == "cuda" else (
        "a CPU, where no larger batch is tried")
    logger.info(f"--per_device_train_batch_size auto: {size:,} rows at once x {args.num_processes} processes x "
                f"{args.gradient_accumulation_steps:,} accumulated, {'with' if checkpointing else 'without'} gradient "
                f"checkpointing, on {where}")


def take(args: argparse.Namespace, trainer: Any, size: int, checkpointing: bool) -> None:
    args.per_device_train_batch_size, args.gradient_checkpointing = size, checkpointing
    args.gradient_accumulation_steps = args.effective_batch_size // (size * args.num_processes)
    config = trainer.args
    config.per_device_train_batch_size = size
    config.gradient_accumulation_steps = args.gradient_accumulation_steps
    if not hasattr(args, "per_device_eval_batch_size"):
        config.per_device_eval_batch_size = size
    for name in ("gradient_checkpointing", "activation_checkpointing"):  # its older and its newer name
        if hasattr(config, name):
            setattr(config, name, checkpointing)
    trainer._train_batch_size = config.train_batch_size  # which the library took when it was built
    if not checkpointing:
        trainer.model.disable_input_require_grads()


def tries(device: torch.device) -> bool:
    """Whether it shows by an error that memory is used up: on a CPU the system ends the process."""
    return device.type == "cuda"


class Trial:
    """Whether the memory holds a forward and a backward pass over the longest rows; all processes try together.

    The model is left as it was, with its gradients empty, and so are the random states.
    """

    def __init__(self, trainer: Any, lengths: Sequence[int]):
        self.trainer = trainer
        self.order = np.argsort(-np.asarray(lengths), kind="stable").tolist()

    def __call__(self, size: int, checkpointing: bool) -> bool:
        trainer, device = self.trainer, self.trainer.args.device
        rows = [self.order[place % len(self.order)] for place in range(size)]
        batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])
        switch_checkpointing(trainer.model, checkpointing, trainer.args)
        held: torch.Tensor | None = None
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            try:
                held = self._kept_free(device)
                self._step(trainer._prepare_inputs(batch))
                fits = True
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                fits = False
        del held
        trainer.model.zero_grad(set_to_none=True)
        switch_checkpointing(trainer.model, False, trainer.args)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if torch.distributed.is_initialized():
            every = torch.tensor(int(fits), device=device)
            torch.distributed.all_reduce(every, torch.distributed.ReduceOp.MIN)
            fits = bool(every)
        return fits

    def _step(self, batch: dict[str, Any]) -> None:
        """As the trainer has it, but for what it counts, which would count in the training."""
        model, config = self.trainer.model, self.trainer.args
        was_training = model.training
        model.train()
        try:
            with torch.autocast(config.device.type, torch.bfloat16, enabled=config.bf16):
                out = model(**batch, use_cache=False, fused_lm_head=True)
            (-out.log_probs.float().sum()).backward()
        finally:
            model.train(was_training)

    def _kept_free(self, device: torch.device) -> torch.Tensor | None:
        """Room for the states of the optimizer, the buckets of distributed training, and what else comes."""
        if device.type != "cuda":
            return None
        trained = sum(each.numel() for each in self.trainer.model.parameters() if each.requires_grad)
        return torch.empty(12 * trained + int(LEFT_FREE * _memory(device)), dtype=torch.uint8, device=device)


def _memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory


def switch_checkpointing(model: Any, on: bool, config: Any) -> None:
    """By its newer name, or the older one of libraries that have no other."""
    name = "activation_checkpointing" if hasattr(model, "activation_checkpointing_enable") else (
        "gradient_checkpointing")
    if not on:
        getattr(model, f"{name}_disable")()
        return
    settings = dict(getattr(config, f"{name}_kwargs", None) or {})
    # These two go by themselves, the others to torch.utils.checkpoint.
    own = {key: settings.pop(key) for key in ("every_n_layers", "offload") if key in settings}
    getattr(model, f"{name}_enable")(**{f"{name}_kwargs": settings or None}, **own)
