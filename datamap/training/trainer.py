"""The Trainer of run.py: a loss per example, so that examples can be smoothed, weighted and watched one by one.

To train with a loss of your own, subclass ``CartographyTrainer`` and override ``row_losses``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
import torch
from accelerate import DistributedType
from torch.utils.data import Sampler
from transformers import Trainer

from datamap.cartography import recorder
from datamap.cartography.recorder import CartographyCallback, Heads, head_numbers, heads_of
from datamap.core.errors import UserError, first_line
from datamap.core.hub import unreachable
from datamap.tasks.base import Task
from datamap.training.batches import LengthGroupedSampler, PadToLongest, SetEpoch
from datamap.training.on_gpu import masks_without_waiting

MAX_SMOOTHING = 0.3

logger = logging.getLogger(__name__)


class RefusedSettings:
    """Of a Trainer: what PyTorch, the model or the Hub refuses of the settings is a mistake of the user's."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        model = self.model  # type: ignore[attr-defined]
        names = ("activation_checkpointing", "gradient_checkpointing")  # transformers before 5.2x has the second alone
        asked = [name for name in names if getattr(self.args, name, False)]  # type: ignore[attr-defined]
        if asked and not model.supports_gradient_checkpointing:
            raise UserError(f"--{asked[0]}: {type(model).__name__} cannot do that; leave it out")

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        with _reached_hub("make a repository for this model"):
            super().init_hf_repo(*args, **kwargs)  # type: ignore[misc]

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        with _reached_hub(f"upload the model, which is whole in {self.args.output_dir}"):  # type: ignore[attr-defined]
            return super().push_to_hub(*args, **kwargs)  # type: ignore[misc]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        with _refused("optimizer", "--learning_rate, --weight_decay, --optim, --optim_args, --adam_*"):
            return super().create_optimizer(*args, **kwargs)  # type: ignore[misc]

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        with _refused("scheduler of the learning rate", "--lr_scheduler_type, --lr_scheduler_kwargs, --warmup_steps"):
            return super().create_scheduler(*args, **kwargs)  # type: ignore[misc]


@contextmanager
def _refused(what: str, flags: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError(f"the {what} refuses its settings: {first_line(error)}; see {flags}") from error


@contextmanager
def _reached_hub(what: str) -> Iterator[None]:
    try:
        if why := unreachable():
            raise ConnectionError(why)
        yield
    except (OSError, ValueError) as error:
        raise UserError(f"--push_to_hub cannot {what} ({first_line(error)}); log in with `hf auth login` where the "
                        "Hub can be reached, or leave it out") from error


class CartographyTrainer(RefusedSettings, Trainer):
    """A Trainer whose rows (windows, or whole texts) each have a loss, a weight and a smoothing.

    What its evaluation keeps of a row is what the task asks for, not the logits of every token.

    dynamics: records training dynamics when given. smoothing, weights: (training rows,) float arrays, see
    ``smoothing_of`` and ``weights_of``; None for neither. Evaluation is never smoothed or weighted.
    """

    def __init__(
        self, *args: Any, task: Task, dynamics: CartographyCallback | None = None, smoothing: np.ndarray | None = None,
        weights: np.ndarray | None = None, **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        # Our loss is a mean over the batch, which the Trainer must divide by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.task = task
        self.dynamics = dynamics
        self.last_loss: torch.Tensor | None = None  # for who watches; not to be waited for in every step
        self.compiled: dict[str, Any] | None = None
        self.buckets: tuple[int, ...] = ()
        self._size: int | None = None
        self._batches: torch.utils.data.DataLoader | None = None  # of the training
        self._collator: Any = None  # of these batches
        self._step: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] | None = None
        self._smoothing, self._weights = (
            None if values is None else torch.as_tensor(values, dtype=torch.float32, device=self.args.device)
            for values in (smoothing, weights)
        )
        if dynamics is not None:
            self.add_callback(dynamics)

    def row_losses(self, heads: Heads, smoothing: torch.Tensor | None) -> torch.Tensor:
        """The loss of each row of the batch, (B,)."""
        return recorder.row_losses(heads, smoothing)

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        row_index = inputs["row_index"]
        smoothing, weights = (None if values is None else values[row_index]
                              for values in (self._smoothing, self._weights))
        if self.compiled is not None and not return_outputs and len(row_index) == self.args.train_batch_size:
            return self._compiled_loss(model, inputs, smoothing, weights)
        outputs = model(**self._model_inputs(inputs))
        heads = heads_of(outputs, inputs)
        if self.dynamics is not None:
            self.dynamics.record_heads(heads, row_index)
        losses = self.row_losses(heads, smoothing)
        if weights is not None:
            losses = losses * weights
        loss = losses.mean()
        self.last_loss = loss.detach()
        return (loss, outputs) if return_outputs else loss

    def _compiled_loss(
        self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], smoothing: torch.Tensor | None,
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        """Forward pass, loss and what is recorded as one compiled function: one launch with CUDA graphs."""
        if self._step is None:
            self._step = self._compile(model)
        torch.compiler.cudagraph_mark_step_begin()
        batch = {name: values for name, values in inputs.items() if name != "row_index"}
        try:
            loss, numbers = self._step(batch, smoothing, weights)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise UserError(f"the steps of this training cannot be compiled here ({first_line(error):.200}); leave "
                            "--torch_compile out") from error
        if self.dynamics is not None and numbers is not None:
            self.dynamics.record_numbers(numbers, inputs["row_index"])
        self.last_loss = loss.detach().clone()  # a CUDA graph writes the next loss to the same place
        return loss

    def _compile(self, model: torch.nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
        assert self.compiled is not None
        records = self.dynamics is not None

        def step(
            batch: dict[str, torch.Tensor], smoothing: torch.Tensor | None, weights: torch.Tensor | None
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            heads = heads_of(model(**self._model_inputs(batch)), batch)
            numbers = head_numbers(heads) if records else None
            losses = self.row_losses(heads, smoothing)
            return (losses if weights is None else losses * weights).mean(), numbers

        torch.compiler.reset()  # what earlier trainings of this process compiled counts towards the limit
        try:
            return torch.compile(step, **self.compiled)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"--torch_compile refuses its settings: {first_line(error)}; see --torch_compile_backend, "
                            "--torch_compile_mode") from error

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._step, self._size = None, None
        alone = self.accelerator.distributed_type == DistributedType.NO
        with masks_without_waiting(self.args.device.type == "cuda"), _walked_once(self.model, alone):
            try:
                return super().train(*args, **kwargs)
            finally:
                _end_workers(self._batches)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """The library's estimate, which counts the weights of the model anew in every step: of a dozen layers that
        takes a good part of the time in which a GPU is done with a batch of sentences."""
        if self._size is None:
            self._size = self.model.num_parameters(exclude_embeddings=True)
        return 6 * inputs[self.model.main_input_name].numel() * self._size

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        collator: Any = self.data_collator
        if isinstance(collator, PadToLongest):
            self._collator = collator.to_lengths(self.buckets).in_one(self.train_dataset.column_names)
            self.data_collator: Any = self._collator
        try:
            self._batches = super().get_train_dataloader()
            return self._batches
        finally:
            self.data_collator = collator  # evaluation pads to the longest

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, torch.Tensor]], Any]:
        batches, count = super().get_batch_samples(*args, **kwargs)
        return [self._collator.apart(batch) if PadToLongest.ONE in batch else batch for batch in batches], count

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """Its workers end with the evaluation. Where they persist the library keeps them, and the first split that was
        evaluated for all others."""
        persist = self.args.dataloader_persistent_workers
        self.args.dataloader_persistent_workers = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_persistent_workers = persist

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Keep what the task needs of each row, not its logits; the rows' numbers stand in for labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**self._model_inputs(inputs))
        return None, self.task.row_predictions(outputs, inputs), inputs["row_index"]

    def _model_inputs(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = self.processing_class.model_input_names  # type: ignore[union-attr]
        return {name: inputs[name] for name in names if name in inputs}

    def length_sampler(self, data: Any = None) -> LengthGroupedSampler:
        """The sampler of the training rows, or of ``data``."""
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        rows = self.train_dataset if data is None else data
        return LengthGroupedSampler(rows["length"][:], self.args.train_batch_size, seed)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        sampler = self.length_sampler(train_dataset)
        self.add_callback(SetEpoch(sampler))
        return sampler


@contextmanager
def _walked_once(model: torch.nn.Module, alone: bool) -> Iterator[None]:
    """Let the Trainer walk through the modules of the model once, not several times in every step: for ``train()``,
    which changes nothing unless ``eval()`` came before, and for the parameters, whose gradients are clipped and
    emptied. alone: in one process, where the library leaves the parameters in their place. Copies that are made of the
    model meanwhile walk by themselves."""
    parameters, walks = list(model.parameters()), type(model)

    def train(module: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
        return module if mode and module.training else walks.train(module, mode)

    def every(module: torch.nn.Module, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        return iter(parameters) if module is model and recurse else walks.parameters(module, recurse)

    model.eval()  # so that the first call reaches every module
    names = {"train": train, "parameters": every} if alone else {"train": train}
    for name, function in names.items():
        setattr(model, name, MethodType(function, model))
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)


def _end_workers(batches: Any) -> None:
    """End the processes that make the batches. Left to the garbage collector, which takes their queues first, they are
    not told to end, and PyTorch waits five seconds for each of them."""
    loader = getattr(batches, "base_dataloader", batches)
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()
        loader._iterator = None


def smoothing_of(variability: np.ndarray, factor: float) -> np.ndarray:
    """Label smoothing per example: min(0.3, factor * variability), so that the ambiguous are trusted less.

    variability: (N,), 0..0.5; NaN for an example without metrics, which is not smoothed. Returns (N,), 0..0.3.
    """
    return np.minimum(MAX_SMOOTHING, factor * np.nan_to_num(np.asarray(variability, dtype=np.float64)))


def weights_of(
    variability: np.ndarray, clip_min: float, clip_max: float, windows: np.ndarray | None = None
) -> np.ndarray:
    """Soft weights per example: variability over its mean, clipped to clip_min..clip_max, then divided by their mean
    over what the loss is a mean of.

    variability: (N,), 0..0.5; NaN for an example without metrics, which gets weight 1. windows: (N,), how many
    training rows each example has (default: one). Returns (N,) whose mean over those rows is 1, so that the learning
    rate keeps its meaning, also where long texts vary more, or less, than short ones. When no example varies, all
    weights are 1.
    """
    variability = np.asarray(variability, dtype=np.float64)
    weights = np.ones(len(variability))
    known = ~np.isnan(variability)
    if known.any() and variability[known].mean() > 0:
        clipped = np.clip(variability[known] / variability[known].mean(), clip_min, clip_max)
        weights[known] = clipped / np.average(clipped, weights=None if windows is None else windows[known])
    return weights
