"""Which rows of a training make a batch, grouped by length, and how they are put into one, padded to the longest."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from datamap.tasks.base import Task
from datamap.tasks.qa_features import PADDING


class LengthGroupedSampler(Sampler[int]):
    """A shuffle in which the rows of a batch have about one length; a function of (seed, epoch) alone.

    The library's own grouping draws from the global random state, which differs after a resume and between processes.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))

    def longest_of_batches(self) -> list[int]:
        """The longest row of each batch of an epoch."""
        lengths = [self.lengths[row] for row in self]
        return [max(lengths[first : first + self.batch_size]) for first in range(0, len(lengths), self.batch_size)]


class SetEpoch(TrainerCallback):
    """Tells a sampler whose order is a function of ``epoch`` which one begins."""

    def __init__(self, sampler: Any):
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.epoch = int(round(state.epoch or 0, 6))  # a resumed epoch begins at a fraction


class PadToLongest:
    """Collate rows of ``task.features``, padded to the longest of the batch (to a multiple of 8 for tensor cores), or
    to the next of a few lengths.

    model: of which the rows are. The padding stands on the right, unless its head reads the last position, as XLNet's.
    most: tokens that it has positions for.
    """

    ONE = "in_one"  # name of the tensor that a batch is

    def __init__(self, tokenizer: PreTrainedTokenizerBase, task: Task, model: torch.nn.Module, multiple_of: int = 1,
                 most: int | None = None):
        self.multiple_of, self.most = multiple_of, most
        self.lengths: tuple[int, ...] = ()
        self.columns: list[str] | None = None  # of a batch that is one tensor
        self.on_the_left = getattr(getattr(model, "sequence_summary", None), "summary_type", None) == "last"
        self.numbers = ("row_index", *task.targets)
        self.fill = {
            "input_ids": tokenizer.pad_token_id or 0,
            "attention_mask": 0,
            "token_type_ids": tokenizer.pad_token_type_id,
            "token_roles": PADDING,
        }

    def to_lengths(self, lengths: Sequence[int]) -> PadToLongest:
        """The same, padding to the next of these, ascending; to the longest row without any."""
        other = copy.copy(self)
        other.lengths = tuple(lengths)
        return other

    def in_one(self, columns: Sequence[str]) -> PadToLongest:
        """The same, but a batch of rows with these columns is one tensor, (B, positions of all columns), which
        ``apart`` takes apart again: a loader worker sends each tensor by itself, and the host copies each to a GPU."""
        other = copy.copy(self)
        other.columns = [name for name in self.fill if name in columns]
        return other

    def apart(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert self.columns is not None
        one = batch[self.ONE]
        width = (one.shape[1] - len(self.numbers)) // len(self.columns)
        parts = one.split([*[width] * len(self.columns), *[1] * len(self.numbers)], dim=1)
        named = dict(zip((*self.columns, *self.numbers), parts, strict=True))
        return named | {name: named[name].squeeze(1) for name in self.numbers}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        longest = next((length for length in self.lengths if length >= longest), longest)
        rounded = longest + -longest % self.multiple_of
        longest = max(longest, rounded if self.most is None else min(rounded, self.most))
        batch: dict[str, np.ndarray] = {}
        for name, fill in self.fill.items():
            if name in rows[0]:
                padded = batch[name] = np.full((len(rows), longest), fill, dtype=np.int64)
                for place, row in enumerate(rows):
                    length = len(row[name])
                    padded[place, longest - length if self.on_the_left else 0 :][:length] = row[name]
        for name in self.numbers:
            batch[name] = np.array([row[name] for row in rows], dtype=np.int64)
        if self.columns is None:
            return {name: torch.from_numpy(values) for name, values in batch.items()}
        return {self.ONE: torch.from_numpy(np.concatenate([values.reshape(len(rows), -1) for values in batch.values()],
                                                          axis=1))}
