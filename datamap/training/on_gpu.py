"""What a training does on a GPU unless its flags say otherwise: so that the host never waits for the card in a step.

Small encoders are bound by the host, which launches one kernel after the other, and by its waits for the card. Nothing
here changes what is learned but bfloat16, and nothing happens on a CPU.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datamap.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_WORKERS = 4  # that make batches: they are ahead of any card by then
MOST_BUCKETS = 4  # lengths that batches are padded to, each of which is compiled by itself
LENGTHS_OF = 8  # tensor cores take lengths by the eight
# Steps from which the steps of a training on a GPU are replayed from CUDA graphs unasked: below that, recording them
# takes longer than it saves. None until benchmarks/bench_gpu.py has measured that on a card.
COMPILED_FROM: int | None = None
GRAPHS = "cudagraphs"  # backend of torch.compile that leaves the kernels as they are
WITH_GRAPHS = ("reduce-overhead", "max-autotune")  # modes of the backend inductor
COMPILING = ("torch_compile", "torch_compile_backend", "torch_compile_mode")

logger = logging.getLogger(__name__)


class Card(NamedTuple):
    """The GPU of this process. bf16: whether it computes in bfloat16 itself. cores: of the host, for this process."""

    name: str
    bf16: bool
    cores: int


def card_of_process(use_cpu: bool) -> Card | None:
    """None without a GPU, or where it is not to be used."""
    import torch

    if use_cpu or not torch.cuda.is_available():
        return None
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Card(torch.cuda.get_device_name(), torch.cuda.is_bf16_supported(including_emulation=False),
                max(1, cores // processes))


def chosen_for(card: Card | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Training arguments of the library's that are chosen for a card, {} for a CPU; what is ``given`` is left alone.

    The optimizer is the library's default, which is fused. Copies wait for nothing only from pinned memory, so both go
    together; the filter of the logged loss asks every loss whether it is a number, and weights that are none are found
    at the end of the training anyway.
    """
    if card is None:
        return {}
    chosen: dict[str, Any] = {"dataloader_pin_memory": True}
    if not given.get("fp16"):  # whose scaler skips steps of which the loss is no number
        chosen["logging_nan_inf_filter"] = False
    if card.bf16 and not given.get("fp16"):
        chosen["bf16"] = True
    if workers := min(MOST_WORKERS, card.cores - 1):
        chosen["dataloader_num_workers"] = workers
    if given.get("dataloader_num_workers", workers):
        chosen["dataloader_persistent_workers"] = True
    if given.get("dataloader_pin_memory", True):
        chosen["accelerator_config"] = {"non_blocking": True}
    return {name: value for name, value in chosen.items() if name not in given}


def in_words(card: Card, arguments: Any, chosen: Mapping[str, Any]) -> str:
    """What a training does on a card, and which of it was chosen."""
    precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "float32"
    name = getattr(arguments.optim, "value", arguments.optim)
    fused = "a fused optimizer" if "fused" in name else f"the optimizer {name}"
    waits = "copies that do not wait" if getattr(arguments.accelerator_config, "non_blocking", False) else "copies"
    workers = arguments.dataloader_num_workers
    return (f"on {card.name}: {precision}, {fused}, {waits}, {workers} loader worker{'s' * (workers != 1)}"
            + (f" (chosen: {', '.join(sorted(chosen))}; flags of these names win)" if chosen else ""))


def out_of_memory(error: RuntimeError) -> bool:
    """Whether it says that a GPU's memory is used up: torch's own error, or of what allocates beside torch, the driver
    and cuBLAS, which makes its handle in the first product."""
    import torch

    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "error: out of memory" in said or "_ALLOC_FAILED" in said


@contextmanager
def room_for(what: str, advice: str) -> Iterator[None]:
    """UserError where a GPU has no room for ``what``, with the advice."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise UserError(f"the GPU has no room for {what}: {advice}") from error


@contextmanager
def masks_without_waiting(active: bool) -> Iterator[None]:
    """While it is active the library builds every attention mask, without asking the card whether it masks nothing.

    That question, which spares the mask of a batch without padding, makes the host wait in every step. A mask that
    masks nothing gives the same attention, to rounding.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS

    if not active:
        yield
        return
    mask_of = MASKS["sdpa"]

    def always(*args: Any, attention_mask: Any = None, **settings: Any) -> Any:
        if attention_mask is not None:  # without one nothing is asked
            settings |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return mask_of(*args, attention_mask=attention_mask, **settings)

    MASKS["sdpa"] = always
    try:
        yield
    finally:
        MASKS["sdpa"] = mask_of


# --- compiled steps -----------------------------------------------------------------------------------------------


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def compile_flags(values: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of the library's that compile, where our Trainer does that itself: with several processes they are
    left to the library."""
    if _processes() > 1:
        return {}
    return {name: values[name] for name in COMPILING if name in values}


def how_compiled(
    flags: Mapping[str, Any], card: Card | None, model: PreTrainedModel, steps: int, accumulated: int
) -> dict[str, Any] | None:
    """Settings of ``torch.compile`` for the steps of a training; None for steps that are not compiled.

    flags: see ``compile_flags``. steps: of the whole training. accumulated: batches of a step. Unasked only on a card,
    in a training of COMPILED_FROM steps, where what compiles is there (without it nothing was tried), and then with
    graphs of the kernels as they are: to compile those as well takes longer.
    """
    if flags.get("torch_compile") is False:
        return None
    # CUDA graphs write the gradients of each batch to the same place, so batches cannot be summed up there.
    single = card is not None and accumulated == 1
    if not flags:
        pays = COMPILED_FROM is not None and steps >= COMPILED_FROM and _processes() == 1
        return {"backend": GRAPHS, "dynamic": False} if single and pays and can_compile(model) else None
    backend, mode = flags.get("torch_compile_backend", "inductor"), flags.get("torch_compile_mode")
    if backend == GRAPHS and card is None:
        raise UserError(f"--torch_compile_backend {GRAPHS} needs a GPU, and this run is on the CPU: leave it out")
    if (backend == GRAPHS or mode in WITH_GRAPHS) and card is not None and not single:
        flag = f"--torch_compile_backend {backend}" if backend == GRAPHS else f"--torch_compile_mode {mode}"
        raise UserError(f"{flag} keeps gradients where the next batch overwrites them, and "
                        f"--gradient_accumulation_steps {accumulated} sums them up: leave one of them out")
    if mode is None and backend == "inductor" and single:
        mode = "reduce-overhead"
    return {"backend": backend, "dynamic": False} | ({"mode": mode} if mode else {})


def can_compile(model: PreTrainedModel) -> bool:
    """Whether the compiler's parts are there, and the model is one of the library's, which it can follow."""
    has_compiler = any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))
    return (importlib.util.find_spec("triton") is not None and has_compiler
            and type(model).__module__.startswith("transformers."))


def buckets_of(batch_lengths: Sequence[int], most: int = MOST_BUCKETS, longest: int | None = None) -> tuple[int, ...]:
    """The lengths that batches are padded to, at most ``most`` and ascending: those by which the fewest positions are
    padding, over batches of these lengths.

    batch_lengths: the longest row of each batch. longest: of all rows, which the last bucket must hold.
    """
    rounded = -(-np.asarray(batch_lengths) // LENGTHS_OF) * LENGTHS_OF
    lengths, counts = np.unique(np.append(rounded, -(-(longest or 0) // LENGTHS_OF) * LENGTHS_OF), return_counts=True)
    if longest is not None:
        counts[lengths.searchsorted(-(-longest // LENGTHS_OF) * LENGTHS_OF)] -= 1  # of no batch
    lengths, counts = lengths[lengths > 0], counts[lengths > 0]
    # cost[k][n]: positions of the batches of the n shortest lengths in k + 1 buckets, the last of lengths[n - 1].
    total = np.concatenate([[0], np.cumsum(counts)])
    cost, before = [np.append(0, lengths * total[1:])], []
    for _ in range(1, min(most, len(lengths))):
        options = cost[-1][None, :] + np.append(0, lengths)[:, None] * (total[:, None] - total[None, :])
        options = np.where(np.tri(len(total), k=0, dtype=bool), options, np.iinfo(np.int64).max)
        before.append(options.argmin(axis=1))
        cost.append(options.min(axis=1))
    place, chosen = len(lengths), []
    for origin in reversed(before):
        chosen.append(int(lengths[place - 1]))
        place = int(origin[place])
        if place == 0:
            break
    if place:
        chosen.append(int(lengths[place - 1]))
    return tuple(sorted(set(chosen)))
