"""Completions that stand one behind another in one long row: padding-free batches, and packed rows.

They are told apart by their positions, which begin again at 0; the model must see them apart, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from datamap.core.errors import UserError

ROW_STARTS = "row_starts"


def row_starts(batch: Mapping[str, Any], rows: int) -> torch.Tensor:
    """Where in a batch (1, T) its rows begin, (rows,) int64: where ``position_ids`` is 0. Behind them may be padding,
    each token of it at position 0. UserError where there are other rows than so many."""
    positions = batch.get("position_ids")
    if positions is None or len(positions) != 1:
        raise UserError(f"a batch joins {rows:,} rows into {len(batch['input_ids']):,} without position_ids that "
                        "begin again with each, so they cannot be told apart: use TRL's padding_free, or its packing "
                        "strategy bfd")
    starts = (positions[0] == 0).nonzero().squeeze(1)
    padding = len(starts) - rows
    if padding < 0 or starts[rows:].tolist() != list(range(len(positions[0]) - padding, len(positions[0]))):
        raise UserError(f"a batch joins {rows:,} rows, and its position_ids begin {len(starts):,} times, so they "
                        "cannot be told apart")
    return starts[:rows]


def joined_statistics(
    outputs: Any, starts: torch.Tensor, label_position: torch.Tensor | None = None
) -> torch.Tensor:
    """``recorder.completion_statistics`` of S rows that stand in one, (S, 3 or 4).

    outputs: fields (1, T - 1), of the tokens 1 to T - 1. starts: (S,) int64, of the rows in it; what stands behind the
    last row is masked. label_position: (S,) int64, from the beginning of each row. No host synchronisation.
    """
    mask, is_top = outputs.label_mask[0].bool(), outputs.is_top1[0].bool()
    log_p = outputs.log_probs[0].float().clamp(max=0)  # rounding may leave it a little above
    places = torch.arange(1, len(log_p) + 1, device=log_p.device)
    row = torch.bucketize(places, starts, right=True) - 1

    def total(values: torch.Tensor) -> torch.Tensor:
        return log_p.new_zeros(len(starts)).index_add_(0, row, values.float())

    mean = total(log_p.masked_fill(~mask, 0)) / total(mask).clamp(min=1)
    if label_position is None:
        return torch.stack([mean.exp(), (total(mask & ~is_top) == 0).float(), -mean], dim=1)
    label = (starts + label_position - 1).clamp(min=0)  # -1: cut off, and of no matter
    return torch.stack([mean.exp(), is_top[label].float(), -mean, log_p[label].exp()], dim=1)


def packed_rows(
    packed: Sequence[Sequence[int]], lengths: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Which of ``rows`` stand in each packed row, in their order; rows that are alike are taken in turn.

    packed: tokens of the packed rows. lengths: of the rows in each of them. RuntimeError where not every row stands in
    one of them, once and whole.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for place in range(len(rows) - 1, -1, -1):
        places.setdefault(tuple(rows[place]), []).append(place)
    found: list[list[int]] = []
    for number, (tokens, each) in enumerate(zip(packed, lengths, strict=True)):
        ends = np.cumsum([0, *each])
        parts = [tuple(tokens[first:last]) for first, last in zip(ends[:-1], ends[1:], strict=True)]
        try:
            found.append([places[part].pop() for part in parts])
        except LookupError:
            raise RuntimeError(f"packed row {number} has other tokens than were checked") from None
    if left := sum(map(len, places.values())):
        raise RuntimeError(f"{left:,} rows stand in no packed row")
    return found


def check_packed(index: Sequence[Any] | None, rows: int) -> None:
    """UserError unless ``index``, the column row_index of a packed dataset, has each number below ``rows`` once."""
    told = ("packing puts several examples into one row without saying which: use padding_free, or give the packed "
            "dataset a column row_index, with a list of the numbers of the rows that stand in each, in their order")
    if index is None or any(not isinstance(each, list) for each in index):
        raise UserError(told)
    if sorted(number for each in index for number in each) != list(range(rows)):
        raise UserError(f"the column row_index of the packed dataset does not hold each number from 0 to {rows - 1:,} "
                        "once, and the ids are of so many rows")


def sees_rows_apart(model: Any) -> bool:
    """Whether a row that stands behind another is read as if it stood alone: what it gives is, to the last bit, the
    same behind other tokens."""
    tokens, half = torch.arange(24, device=model.device)[None] % model.config.get_text_config().vocab_size, 12
    ends = torch.tensor([0, half, 2 * half], dtype=torch.int32, device=model.device)
    about = {"position_ids": torch.arange(2 * half, device=model.device)[None] % half, "cu_seq_lens_q": ends,
             "cu_seq_lens_k": ends, "max_length_q": half, "max_length_k": half, "use_cache": False}
    other = tokens.clone()
    other[:, :half] = tokens[:, half:]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            one, two = (model(input_ids=ids, **about).logits[:, half:] for ids in (tokens, other))
    finally:
        model.train(training)
    return torch.equal(one, two)
