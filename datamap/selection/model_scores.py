"""Scores and predictions of a trained model for every example: entropy, EL2N, GraNd; pieces per word of a tokenizer.

Some of the scores are one ranking by algebra; choosing by one of them is choosing by the other:

- Two classes: with p the probability of the gold label (self-confidence), EL2N is sqrt(2) (1 - p), the loss -log p and
  the AUM of one epoch log p - log(1 - p). All rank the examples by p. With more classes only the loss does: EL2N also
  asks how the rest of the probability is spread.
- The entropy is none of these, as it does not know the label. Of two classes it ranks the examples as p (1 - p) does,
  which is the ``aleatoric`` of one epoch.
- GraNd of a classifier is EL2N times the length of the vector that its last layer reads (with a 1 added to it for the
  bias): another ranking wherever these lengths differ.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.errors import UserError
from datamap.core.progress import Progress
from datamap.core.splits import Split
from datamap.tasks.classification import ClassificationEvaluation
from datamap.tasks.evaluation import Evaluation
from datamap.training.data import features_of
from datamap.training.models import usable_length, usable_stride

if TYPE_CHECKING:
    import datasets
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from datamap.cartography.recorder import Heads
    from datamap.tasks.base import Task

    Batch = dict[str, torch.Tensor]
    Forward = Callable[[np.ndarray], tuple[Any, Batch]]  # row numbers to the model's output and its batch

SCORES = ("entropy", "el2n", "grand")
TEXTS_AT_ONCE = 1000  # that a tokenizer is given: enough for all its threads, little to hold in memory


# --- scores --------------------------------------------------------------------------------------------------------


def score_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split, batch_size: int = 32, *,
    max_length: int = 512, doc_stride: int = 128, names: Sequence[str] = SCORES,
) -> dict[str, np.ma.MaskedArray]:
    """What ``model`` makes of each of the N examples of ``split``: name -> (N,) float64; one pass, without dropout.

    ``entropy``: of the predicted distribution in nats, 0 (certain) to log C. Question answering: mean of start and
    end, each over the C positions that could be an answer.
    ``el2n``: L2 norm of softmax minus one-hot, 0 (certain and right) to sqrt(2) (Paul et al. 2021, arXiv 2107.07075).
    Question answering: mean of start and end.
    ``grand``: L2 norm of the gradient of the loss with respect to weight and bias of the last linear layer, from 0 up,
    higher is more to learn (the same paper, which has all parameters). The loss of question answering is the mean of
    start and end.

    An example of several windows gets the mean over the windows that count (those that hold its answer; all, where it
    has none), for ``grand`` the mean of the windows' norms; where no window counts it is masked. ``el2n`` is what
    training records in the same state of the model: there the softmax of a window is over all its tokens.

    Labels are matched to the model's in here, and ``max_length`` and ``doc_stride`` are lowered to what the model
    takes. The other rows and ``batch_size`` change a score by no more than 1e-5 on a CPU; on a GPU, where the model
    computes in bfloat16, by what that rounds. UserError: logits that are not finite, labels that the model does not
    know, and with ``grand`` a model whose logits are not those of a linear layer.
    """
    import torch

    if unknown := set(names) - set(SCORES):
        raise ValueError(f"unknown scores {sorted(unknown)}; there is {', '.join(SCORES)}")
    split, features = _features(model, tokenizer, split, max_length, doc_stride)
    rows = features.select(np.flatnonzero(features["counts"][:]))
    values = np.empty((0, len(names)))
    if len(rows):
        forward = _forward_of(model, tokenizer, split.task, rows)
        with ExitStack() as stack:
            stack.enter_context(_frozen(model))
            seen = stack.enter_context(_last_layer(model, forward)) if "grand" in names else {}

            def read(outputs: Any, batch: Batch) -> torch.Tensor:
                scores = _scores(_heads(outputs, batch), seen)
                return torch.stack([scores[name] for name in names], dim=1)

            values = _read_rows(forward, rows["length"][:], batch_size, read)
    count, example = len(split.data), np.asarray(rows["example_index"][:], dtype=np.int64)
    windows = np.bincount(example, minlength=count)
    sums = [np.bincount(example, weights=column, minlength=count) for column in values.T]
    return {name: np.ma.masked_array(total / np.maximum(windows, 1), mask=windows == 0)
            for name, total in zip(names, sums, strict=True)}


def _heads(outputs: Any, batch: Batch) -> Heads:
    """``recorder.heads_of`` in float64; UserError for logits that are not finite."""
    from datamap.cartography.recorder import heads_of

    heads = heads_of(outputs, batch)
    if not heads.logits.amax(dim=-1).isfinite().all():  # -inf alone is padding
        raise UserError("the model gives NaN or infinite logits: its training diverged; train it again")
    # In float32 a p of 1 - 1e-8 is 1, and the order of the examples that are learnt best would be lost.
    logits = heads.logits.double()
    return heads._replace(logits=logits, log_p=logits.log_softmax(dim=-1))


def _scores(heads: Heads, seen: Batch) -> Batch:
    """name -> (B,) float64. seen: what ``_last_layer`` gave, {} to leave ``grand`` out."""
    import torch

    from datamap.cartography.recorder import row_losses

    gold = heads.gold[..., None]
    error = heads.log_p.exp().scatter_add(-1, gold, torch.full_like(heads.log_p[..., :1], -1.0))
    possible = heads.logits.masked_fill(~heads.candidates[:, None, :], -torch.inf).softmax(dim=-1)
    scores = {"entropy": torch.special.entr(possible).sum(dim=-1).mean(dim=1), "el2n": error.norm(dim=-1).mean(dim=1)}
    if seen:
        scores["grand"] = _gradient_norms(row_losses(heads), seen["inputs"], seen["outputs"], bool(seen["has_bias"]))
    return {name: score.detach() for name, score in scores.items()}


def _gradient_norms(losses: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor, has_bias: bool) -> torch.Tensor:
    """Norm of each row's gradient for a linear layer, (B,) float64: its outputs' gradient g gives sum g h over tokens.

    losses (B,), each of its own row of ``outputs`` (B, ..., C); inputs (B, ..., H), of the layer.
    """
    import torch

    [gradient] = torch.autograd.grad(losses.sum(), outputs)
    rows, width = gradient.shape[0], gradient.shape[-1]
    gradient = gradient.double().reshape(rows, -1, width)
    hidden = inputs.detach().double().reshape(rows, -1, inputs.shape[-1])
    squares = (gradient.transpose(1, 2) @ hidden).square().sum(dim=(1, 2))
    if has_bias:
        squares = squares + gradient.sum(dim=1).square().sum(dim=1)
    return squares.sqrt()


@contextmanager
def _last_layer(model: PreTrainedModel, forward: Forward) -> Iterator[dict[str, Any]]:
    """Within, every forward pass leaves here what the last linear layer read and gave: inputs, outputs, has_bias.

    The outputs are cut off from what is before them, and a gradient goes back to them through whatever the model does
    with them: nothing, splitting into start and end, or taking one token's.
    """
    layer = _find_last_layer(model, forward)
    seen: dict[str, Any] = {"has_bias": layer.bias is not None}

    def catch(module: torch.nn.Module, arguments: tuple, output: torch.Tensor) -> torch.Tensor:
        seen["inputs"] = arguments[0]
        seen["outputs"] = output.detach().float().requires_grad_()  # float: bfloat16 would round the gradient
        return seen["outputs"]

    with layer.register_forward_hook(catch):
        yield seen


def _find_last_layer(model: PreTrainedModel, forward: Forward) -> torch.nn.Linear:
    """The linear layer whose outputs are the logits, or, for classifiers of a token, hold them: by one row."""
    import torch

    called: list[tuple[torch.nn.Linear, torch.Tensor]] = []
    with ExitStack() as hooks:
        for layer in (module for module in model.modules() if isinstance(module, torch.nn.Linear)):
            hooks.enter_context(layer.register_forward_hook(lambda *call: called.append((call[0], call[2]))))
        outputs, batch = forward(np.array([0]))
    _heads(outputs, batch)  # NaN equals nothing: this says so first
    if hasattr(outputs, "start_logits"):
        logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
    else:
        logits = outputs.logits
    for layer, output in reversed(called):
        if output.shape[0] == 1 and output.shape[-1] == logits.shape[-1]:
            same = (output.float() == logits.float()).all(dim=-1)  # (1, 3, C) == (1, C) compares token by token
            if same.any() if output.dim() > logits.dim() else same.all():
                return layer
    raise UserError(f"{type(model).__name__} computes its logits by something else than a linear layer, and GraNd is "
                    "the gradient for that; give another model, or choose el2n")


# --- predictions ---------------------------------------------------------------------------------------------------


def class_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split, batch_size: int = 32, **lengths: int
) -> np.ndarray:
    """(N, C) float64 softmax of a classifier, columns in the order of the classes of ``split``."""
    found = evaluated(model, tokenizer, split, batch_size, **lengths)
    assert isinstance(found, ClassificationEvaluation)
    wanted = split.data.features[found.label_column].names
    return found.probabilities[:, [found.names.index(name) for name in wanted]]


def evaluated(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split, batch_size: int = 32, *,
    max_length: int = 512, doc_stride: int = 128,
) -> Evaluation:
    """The task's evaluation, as run.py --do_eval has it, without metrics. Settings, rounding and errors as in
    ``score_rows``."""
    from transformers import EvalPrediction

    split, features = _features(model, tokenizer, split, max_length, doc_stride)
    evaluation = split.task.evaluation(split.data, features)
    rows = evaluation.features

    def read(outputs: Any, batch: Batch) -> torch.Tensor:
        _heads(outputs, batch)
        return split.task.row_predictions(outputs, batch)

    with _frozen(model):
        values = _read_rows(_forward_of(model, tokenizer, split.task, rows), rows["length"][:], batch_size, read)
    evaluation(EvalPrediction(predictions=values, label_ids=np.asarray(rows["row_index"][:])))
    return evaluation


# --- passes --------------------------------------------------------------------------------------------------------


def _features(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split, max_length: int, doc_stride: int
) -> tuple[Split, datasets.Dataset]:
    """The split with the model's label numbers, and its features."""
    data = split.task.match_labels(split.data, model.config, f"{split.name} [{split.split}]")
    split = dataclasses.replace(split, data=data)
    max_length = usable_length(max_length, model, tokenizer)
    if "doc_stride" in split.task.flags:
        doc_stride = usable_stride(doc_stride, max_length)
    return split, features_of(split, tokenizer, max_length, doc_stride, "none")


def _forward_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, rows: datasets.Dataset
) -> Forward:
    """A function that runs the model, without dropout, on the rows of the given numbers."""
    import torch

    from datamap.training.batches import PadToLongest

    device = model.device
    on_gpu = device.type == "cuda"
    accepted = inspect.signature(model.forward).parameters
    inputs = [name for name in tokenizer.model_input_names if name in rows.column_names and name in accepted]
    collate = PadToLongest(tokenizer, task, model, 8 if on_gpu else 1)
    rows = rows.select_columns([name for name in rows.column_names if name in (*collate.fill, *collate.numbers)])
    model.eval()

    def forward(places: np.ndarray) -> tuple[Any, Batch]:
        chosen = rows[places]
        batch = collate([dict(zip(chosen, row, strict=True)) for row in zip(*chosen.values(), strict=True)])
        batch = {name: values.to(device) for name, values in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            return model(**{name: batch[name] for name in inputs}), batch

    return forward


def _read_rows(
    forward: Forward, lengths: Sequence[int], batch_size: int, read: Callable[[Any, Batch], torch.Tensor]
) -> np.ndarray:
    """``read`` (B, K) of every batch as (rows, K) float64. From long to short, so that little is padded and memory
    runs out at once or never."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches = []
    with Progress("scoring", len(order), "windows", size=1) as progress:
        for first in range(0, len(order), batch_size):
            places = order[first : first + batch_size]
            batches.append(read(*forward(places)).double().cpu().numpy())
            progress.advance(len(places))
    return np.concatenate(batches)[np.argsort(order)]


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """No gradient for any weight, and so no graph but the one that begins in ``_last_layer``."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


# --- tokenizers ----------------------------------------------------------------------------------------------------


def wordpiece_ratio(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> np.ma.MaskedArray:
    """Word pieces per word between blanks, special tokens apart: (N,) float64, about 1 (all words known) and more.

    Higher is rarer, or less like what the tokenizer was made from; punctuation counts as pieces too. Texts without a
    word are masked.
    """
    texts = list(texts)
    pieces: list[int] = []
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        encoded = tokenizer(texts[first : first + TEXTS_AT_ONCE], add_special_tokens=False, verbose=False)
        pieces.extend(map(len, encoded["input_ids"]))
    words = np.array([len(text.split()) for text in texts], dtype=np.int64)
    return np.ma.masked_array(np.array(pieces, dtype=np.float64) / np.maximum(words, 1), mask=words == 0)
