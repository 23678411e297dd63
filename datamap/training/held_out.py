"""What a model thinks of examples that it is not trained on: their dynamics, predictions and dropout's doubts."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import EvalPrediction, TrainerState, TrainingArguments

from datamap.cartography.dynamics import read_dynamics
from datamap.cartography.learning import guessing
from datamap.cartography.metrics import compute_metrics
from datamap.cartography.recorder import CartographyCallback, confidences, gold_decisions, heads_of
from datamap.core.errors import UserError
from datamap.core.files import write_csv
from datamap.core.parquet import format_of
from datamap.core.splits import Split
from datamap.detection.out_of_fold import OUT_OF_FOLD_FILE, PROBABILITY, head_table
from datamap.tasks.qa_features import CONTEXT, NO_ANSWER
from datamap.tasks.qa_metrics import best_spans
from datamap.training.data import RunData, features_of
from datamap.training.embeddings import embedder, embedding_spans
from datamap.training.models import SCRATCH_MODELS

if TYPE_CHECKING:
    import datasets
    import pandas as pd

    from datamap.training.trainer import CartographyTrainer

logger = logging.getLogger(__name__)


def passes(
    trainer: CartographyTrainer, features: datasets.Dataset
) -> Iterator[tuple[Any, dict[str, torch.Tensor]]]:
    """Output and batch of forward passes over all rows, without gradients; the longest rows first."""
    order, size = np.argsort(-np.asarray(features["length"][:]), kind="stable"), trainer.args.eval_batch_size
    for first in range(0, len(order), size):
        chosen = features[order[first : first + size]]
        rows = [dict(zip(chosen, values, strict=True)) for values in zip(*chosen.values(), strict=True)]
        yield forward(trainer, batch := trainer._prepare_inputs(trainer.data_collator(rows))), batch


def forward(trainer: CartographyTrainer, batch: dict[str, torch.Tensor]) -> Any:
    with torch.no_grad(), trainer.compute_loss_context_manager():
        return trainer.model(**trainer._model_inputs(batch))


class HeldOutCallback(CartographyCallback):
    """Records the dynamics of examples that are not trained on: after each epoch they pass through the model, without
    dropout, by the formulas of the recorder. Checkpoints and a resume are those of ``CartographyCallback``."""

    def __init__(self, trainer: CartographyTrainer, split: Split, features: datasets.Dataset, **settings: Any):
        counts = np.asarray(features["counts"][:], dtype=bool)
        super().__init__(split.ids, row_to_example=np.where(counts, features["example_index"][:], -1), **settings)
        self.trainer, self.features = trainer, features

    def check_dropout(self, drawn: int) -> None:
        """UserError where passes in training mode would be the same as others."""
        model = self.trainer.model
        shares = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
        shares += [value for name, value in vars(model.config).items() if "dropout" in name and value]
        if drawn and not any(shares):
            raise UserError(f"--mc_dropout {drawn}: this model has no dropout, every pass would say the same; leave "
                            "it out, or give --dropout to a model that is trained from scratch")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Nothing: ``write_held_out`` comes when the model is whole."""

    def _end_epoch(self, state: TrainerState) -> None:
        was_training = self.trainer.model.training
        self.trainer.model.eval()
        for outputs, batch in passes(self.trainer, self.features):
            self.record_heads(heads_of(outputs, batch), batch["row_index"])
        self.trainer.model.train(was_training)
        super()._end_epoch(state)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if state.global_step and round(state.epoch or 0, 6) >= len(self._history) + 1:
            self._end_epoch(state)  # the checkpoint was written on the last step of an epoch


class SplitMapCallback(HeldOutCallback):
    """Records the map of a split that is not trained on beside that of what is."""

    checkpoint_file = "map_split_dynamics.npz"

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        gold = gold_decisions(self.features)
        self._guessing = None if gold is None else guessing(gold[self.row_to_example >= 0])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        CartographyCallback.on_train_end(self, args, state, control, **kwargs)


def recorder_of_split(
    trainer: CartographyTrainer, args: argparse.Namespace, split: Split, directory: str, checkpoint: str | None,
    title: str,
) -> SplitMapCallback:
    """UserError where none of its examples can be judged in the tokens of this model."""
    features = features_of(split, trainer.processing_class, args.max_length, args.doc_stride, args.ablations)
    rows, learnable = np.asarray(features["example_index"][:]), np.ones(len(split.data), dtype=bool)
    learnable[rows[~split.task.is_learnable(features)]] = False
    if not learnable.all():
        logger.warning(f"--map_split: {int((~learnable).sum()):,} of {len(learnable):,} examples are not in its map: "
                       f"{split.task.unlearnable}")
        split.data = split.data.select(np.flatnonzero(learnable))
        features = features_of(split, trainer.processing_class, args.max_length, args.doc_stride, args.ablations)
    if not len(split.data) or not any(features["counts"][:]):
        raise UserError(f"--map_split {args.map_split}: none of its examples can be judged: {split.task.unlearnable}")
    return SplitMapCallback(
        trainer, split, features, output_dir=directory, confidence_type=args.confidence_type, checkpoint=checkpoint,
        title=title, artifact_format=format_of(args),
    )


def write_held_out(trainer: CartographyTrainer, args: argparse.Namespace, data: RunData) -> None:
    """``out_of_fold.csv`` of one fold, for whose examples dynamics were recorded while the others were trained on."""
    import pandas as pd

    assert data.held_out is not None
    split, directory = data.held_out, Path(args.cartography_output_dir)
    features = features_of(split, trainer.processing_class, args.max_length, args.doc_stride, args.ablations)
    recorded = any(features["counts"][:])  # else its answers stand whole in no window
    metrics = compute_metrics(read_dynamics(directory)) if recorded else pd.DataFrame(index=pd.Index([], name="id"))
    said = pd.DataFrame(_final(trainer, args, split, features), index=pd.Index(split.ids, name="id"))
    table = metrics.join(said)
    table.insert(0, "fold", args.fold)
    write_csv(directory / OUT_OF_FOLD_FILE, table.reset_index())


def _final(
    trainer: CartographyTrainer, args: argparse.Namespace, split: Split, features: datasets.Dataset
) -> dict[str, Any]:
    """What the trained model says of each example: column -> one value per example."""
    answers = split.task.name == "qa"
    has_unanswerable = answers and not all(each["text"] for each in split.data["answers"][:])
    margins, dropout = np.full(len(features), np.nan), np.full((len(features), 2), np.nan)
    model, drawn = trainer.model, getattr(args, "mc_dropout", 0)
    model.eval()
    predictions: list[np.ndarray] = []
    places: list[np.ndarray] = []
    torch.manual_seed(args.seed)
    for outputs, batch in passes(trainer, features):
        rows = batch["row_index"].cpu().numpy()
        places.append(rows)
        predictions.append(split.task.row_predictions(outputs, batch).cpu().numpy())
        if answers:
            margins[rows] = span_margins(outputs, batch, has_unanswerable).cpu().numpy()
        if drawn:
            model.train()
            dropout[rows] = _dropout(trainer, batch, drawn, args.confidence_type).cpu().numpy()
            model.eval()
    evaluation = split.task.evaluation(split.data, features)
    evaluation(EvalPrediction(predictions=np.concatenate(predictions), label_ids=np.concatenate(places)))
    columns: dict[str, Any] = {}
    example, counts = np.asarray(features["example_index"][:]), np.asarray(features["counts"][:], dtype=bool)

    def of_examples(values: np.ndarray) -> np.ndarray:
        """The mean over the windows that count."""
        total = np.bincount(example[counts], weights=values[counts], minlength=len(split.data))
        return total / np.maximum(np.bincount(example[counts], minlength=len(split.data)), 1)

    if answers:
        columns["predicted_answer"] = evaluation.predicted_values()
        columns["span_margin"] = of_examples(margins)
    else:
        columns["predicted_label"] = [evaluation.names[place] for place in evaluation.predicted]
        columns |= {f"{PROBABILITY}{name}": column
                    for name, column in zip(evaluation.names, evaluation.probabilities.T, strict=True)}
    if drawn:
        columns["dropout_confidence"], columns["dropout_entropy"] = map(of_examples, dropout.T)
    return columns


def span_margins(outputs: Any, batch: dict[str, torch.Tensor], has_unanswerable: bool) -> torch.Tensor:
    """How much the gold span's score (start logit + end logit) is above that of the best other span, (B,) float32.

    Low, below 0 where another answer wins, is suspicious. The other spans are those of the context of any length and,
    where some examples are unanswerable, no answer; NaN where there is no other.
    """
    start, end = outputs.start_logits.float(), outputs.end_logits.float()
    candidates = batch["token_roles"] == CONTEXT
    if has_unanswerable:
        nowhere = batch["token_roles"] == NO_ANSWER
    places = [batch["start_positions"][:, None], batch["end_positions"][:, None]]
    gold = (start.gather(1, places[0]) + end.gather(1, places[1])).squeeze(1)
    # Another span has another start or another end.
    other_start = best_spans(start.scatter(1, places[0], -torch.inf), end, candidates).score
    other_end = best_spans(start, end.scatter(1, places[1], -torch.inf), candidates).score
    best = torch.maximum(other_start, other_end)
    if has_unanswerable:
        null = (start + end).masked_fill(~nowhere, -torch.inf).amax(dim=1)
        is_null = nowhere.gather(1, places[0]).squeeze(1)
        best = torch.where(is_null, best, torch.maximum(best, null))
    return torch.where(best.isfinite(), gold - best, torch.nan)


def _dropout(
    trainer: CartographyTrainer, batch: dict[str, torch.Tensor], drawn: int, confidence_type: str
) -> torch.Tensor:
    """Over ``drawn`` passes of a model in training mode, (B, 2): mean confidence, and entropy (nats) of the mean
    distribution, mean over heads (Gal & Ghahramani 2016, arXiv 1506.02142)."""
    confidence, mean = torch.zeros(()), torch.zeros(())
    for _ in range(drawn):
        heads = heads_of(forward(trainer, batch), batch)
        confidence = confidence.to(heads.logits.device) + confidences(heads, confidence_type) / drawn
        mean = mean.to(heads.logits.device) + heads.logits.softmax(dim=-1) / drawn
    return torch.stack([confidence, torch.special.entr(mean).sum(dim=-1).mean(dim=1)], dim=1)


def head_of_untrained(trainer: CartographyTrainer, args: argparse.Namespace, data: RunData) -> pd.DataFrame:
    """``out_of_fold.csv`` by a linear head on the mean token vectors of the model that is still to be trained."""
    assert data.train is not None and data.folds is not None
    if args.model in SCRATCH_MODELS:
        logger.warning(f"--cross_fit_head: {args.model} is trained from scratch, so the head reads vectors of an "
                       "untrained encoder, which know little of the language; a pretrained --model knows more")
    began, split = time.perf_counter(), data.train
    model, tokenizer = trainer.model, trainer.processing_class
    rows, spans, _ = embedding_spans(split, tokenizer, "mean", args.max_length, args.doc_stride)
    order, embed = embedder(model.base_model, tokenizer, rows, spans, trainer.args.eval_batch_size)
    found = embed(order)
    vectors = np.empty_like(found)
    vectors[order] = found
    embedded = time.perf_counter()
    labels, names = np.asarray(split.task.labels(split.data)), split.data.features[split.task.label_column].names
    table = head_table(split.ids, vectors, labels, names, data.folds, args.seed)
    logger.info(f"out of fold by a linear head: {len(table):,} examples embedded in {embedded - began:.1f} s, "
                f"{data.folds.max()} heads in {time.perf_counter() - embedded:.1f} s")
    return table

