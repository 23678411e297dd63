"""A step keeps less than it did, and the dynamics are those of the formulas computed at once."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from datamap.cartography.recorder import (
    HEAD_COLUMNS,
    QA_COLUMNS,
    CartographyCallback,
    Heads,
    columns_of,
    confidences,
    head_numbers,
)

# Those that launch no kernel.
FREE = ("view", "_unsafe_view", "unsqueeze", "squeeze", "select", "slice", "detach", "expand", "alias", "t",
        "transpose", "permute", "empty", "reshape", "_reshape_alias", "empty_like", "lift_fresh")


class Launches(TorchDispatchMode):
    """Counts the operators of a block that compute or copy, as a stand-in for the kernels that a GPU launches."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        if name not in FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def at_once(logits, gold, confidence_type="geometric"):
    """The formulas of DESIGN.md, each in the step: what was recorded of a batch until the formulas were put off."""
    gold = gold[..., None]
    log_p = logits.log_softmax(dim=-1)
    gold_log_p = log_p.gather(-1, gold).squeeze(-1)
    p = gold_log_p.exp()
    top = logits.topk(2, dim=-1)
    is_top = top.indices[..., 0] == gold[..., 0]
    gold_logit = logits.gather(-1, gold).squeeze(-1)
    margin = gold_logit - torch.where(is_top, top.values[..., 1], top.values[..., 0])
    others = log_p.exp().scatter(-1, gold, 0).square().sum(-1)
    el2n = (torch.expm1(gold_log_p).square() + others).sqrt()
    if p.shape[1] == 1:
        confidence = p[:, 0]
    elif confidence_type == "mean":
        confidence = p.mean(dim=1)
    else:
        product = p.prod(dim=1)
        confidence = product.sqrt() if confidence_type == "geometric" else product
    columns = [confidence, is_top.all(dim=1).float(), -gold_log_p.mean(1), margin.mean(1), el2n.mean(1)]
    if p.shape[1] == 2:
        columns += [p[:, 0], p[:, 1]]
    return torch.stack(columns, dim=1)


def made(rows, heads, places, scale, seed, padded=True):
    """Logits of a batch, of which the last places of each row may be padding."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, heads, places, generator=generator)
    lengths = torch.randint(2, places + 1, (rows,), generator=generator) if padded else torch.full((rows,), places)
    logits = logits.masked_fill(torch.arange(places)[None, None] >= lengths[:, None, None], -torch.inf)
    gold = (torch.rand(rows, heads, generator=generator) * lengths[:, None]).long()
    return Heads(logits, gold, logits[:, 0].isfinite(), logits.log_softmax(dim=-1))


@pytest.mark.parametrize("confidence_type", ["geometric", "product", "mean"])
@pytest.mark.parametrize(("heads", "places", "padded"), [(2, 40, True), (1, 3, False), (1, 2, False)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
def test_columns_equal_the_formulas(heads, places, padded, scale, confidence_type):
    batch = made(400, heads, places, scale, seed=heads + places, padded=padded)
    found = columns_of(head_numbers(batch).numpy(), confidence_type)
    expected = at_once(batch.logits, batch.gold, confidence_type).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    slow = at_once(batch.logits.double(), batch.gold, confidence_type).numpy()
    np.testing.assert_allclose(found, slow, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(confidences(batch, confidence_type), slow[:, 0], rtol=1e-5, atol=1e-6)
    assert (found[:, 1] == expected[:, 1]).all() and 0 < found[:, 1].mean() < 1


def test_equal_logits_are_right_where_the_gold_one_comes_first():
    logits = torch.zeros(2, 1, 3)
    batch = Heads(logits, torch.tensor([[0], [2]]), torch.ones(2, 3, dtype=torch.bool), logits.log_softmax(-1))
    assert columns_of(head_numbers(batch).numpy())[:, 1].tolist() == [1, 0]  # as argmax, and so the prediction, has it


def test_a_step_launches_half_of_what_it_did(tmp_path):
    """The log-probabilities are those of the loss; formulas, and what was seen, come at the end of the epoch."""
    for heads, places in ((2, 40), (1, 3)):
        batch = made(32, heads, places, 1.0, seed=0)
        recorder = CartographyCallback([str(row) for row in range(32)], tmp_path)
        recorder.record_heads(batch, torch.arange(32))
        with Launches() as launches:
            recorder.record_heads(batch, torch.arange(32))
        with Launches() as old:
            values, seen = torch.zeros(32, 7), torch.zeros(32, dtype=torch.bool)
            statistics = at_once(batch.logits, batch.gold)
            values[:, : statistics.shape[1]].index_copy_(0, torch.arange(32), statistics)
            seen.index_fill_(0, torch.arange(32), True)
        own = [name for name in launches.names if name != "arange"]
        theirs = [name for name in old.names if name not in ("arange", "zeros", "zero_")]
        assert len(own) <= 10 and len(theirs) >= 25, (own, theirs)


def test_an_epoch_of_windows_equals_the_formulas(tmp_path):
    """Three batches: several windows of an example, some that do not count, one row that comes twice."""
    row_to_example = np.array([0, 0, 0, 1, -1, 2, 2, 3])
    recorder = CartographyCallback(["a", "b", "c", "d"], tmp_path, row_to_example)
    whole = made(8, 2, 30, 3.0, seed=5)
    for rows in ([6, 0, 3], [2, 5, 1], [4, 7, 0]):
        recorder.record_heads(Heads(*(part[rows] for part in whole)), torch.tensor(rows))
    values, seen = recorder._merged() or (np.zeros(0), np.zeros(0))
    assert seen.all() and values.shape == (8, len(HEAD_COLUMNS))
    recorder._end_epoch(type("State", (), {"is_world_process_zero": False}))
    [epoch] = recorder._history
    slow = at_once(whole.logits.double(), whole.gold).numpy()
    for example in range(4):
        windows = slow[row_to_example == example]
        for place, name in enumerate(QA_COLUMNS):
            expected = (windows[:, place] == 1).all() if name == "correct" else windows[:, place].mean()
            assert epoch[name][example] == pytest.approx(expected, rel=2e-6, abs=1e-6)


def test_rows_that_were_not_seen_are_told_from_the_others(tmp_path):
    recorder = CartographyCallback(["a", "b", "c"], tmp_path)
    batch = made(2, 1, 3, 1.0, seed=1)
    recorder.record_heads(batch, torch.tensor([2, 0]))
    _, seen = recorder._merged() or (np.zeros(0), np.zeros(0))
    assert seen.tolist() == [True, False, True]
