"""What a run says while it trains: a line for each logged step and each evaluation, the best epochs so far."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback

from datamap.core.errors import UserError
from datamap.core.progress import Progress
from datamap.tasks import slices
from datamap.tasks.evaluation import SPEED, Evaluation
from datamap.training.checkpoints import TopEpochs, seconds_until, write_manifest
from datamap.training.evaluation import quality, tracked, write_slices

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


def training_log(history: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """What was logged while training: one row per step with step, epoch, loss, learning_rate, eval_*, ..."""
    import pandas as pd

    steps: dict[int, dict[str, float]] = {}
    for logged in history:
        kept = {name: value for name, value in logged.items() if not name.endswith(SPEED) and "/" not in name}
        if "train_loss" not in kept:  # of the whole training: train_metrics.json
            steps.setdefault(int(logged["step"]), {}).update(kept)
    first = ["step", "epoch", "loss"]
    # Sorted: a checkpoint, from which a resumed run has its history, keeps no order.
    others = sorted({name for logged in steps.values() for name in logged} - set(first))
    return pd.DataFrame(list(steps.values()), columns=[*first, *others])


class ProgressOfTrainer(TrainerCallback):
    """How far training and evaluation are, in place of the library's bars: with the loss of the last batch."""

    def __init__(self, trainer: Trainer, bar: bool):
        self.trainer, self.bar = trainer, bar
        self.training: Progress | None = None
        self.predicting: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            self.training = Progress("training", state.max_steps, "steps", done=state.global_step, size=size,
                                     note=self._loss, bar=self.bar)
            self.training.__enter__()

    def _loss(self) -> str:
        loss = getattr(self.trainer, "last_loss", None)
        return "" if loss is None else f"loss {float(loss):.3g}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training is not None:
            self.training.advance(state.global_step - self.training.done)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training is not None:
            self.training.close()

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None,
                           **kwargs: Any) -> None:
        if state.is_world_process_zero and eval_dataloader is not None:
            if self.predicting is None:
                self.predicting = Progress("evaluating", len(eval_dataloader), "batches",
                                           size=args.eval_batch_size * args.world_size, bar=self.bar)
                self.predicting.__enter__()
            self.predicting.advance()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.predicting is not None:
            self.predicting.close()
        self.predicting = None


def tell_in_lines(trainer: Trainer) -> None:
    """Our own progress, and a word for each logged step and evaluation, instead of the library's bars and dumps."""
    has_bars = trainer.pop_callback(ProgressCallback) is not None
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressOfTrainer(trainer, has_bars))
    trainer.add_callback(StatusCallback)


class StatusCallback(TrainerCallback):
    """One status line per logged step, through logging, and a warning of rows that no epoch trains on."""

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if not args.dataloader_drop_last or train_dataloader is None:
            return
        rows = len(train_dataloader.dataset)
        left_out = rows - len(train_dataloader) * args.train_batch_size * args.world_size
        if left_out:
            logger.warning(f"--dataloader_drop_last: each epoch leaves {left_out:,} of {rows:,} rows out, others each "
                           "time; without it the last batch is a smaller one")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            step = f"{state.global_step}/{state.max_steps}"
            logger.info(f"epoch {state.epoch:.2f}  step {step}  loss {logs['loss']:.4f}")


class LossSoFar(TrainerCallback, ExportableState):
    """The training loss of all steps, which each checkpoint takes along: the library tells only that of those after
    the checkpoint from which a training goes on, and 0 where there are none."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.before: float | None = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = state.stateful_callbacks.setdefault(type(self).__name__, {"attributes": {"sum": None}})["attributes"]
        if state.global_step and "logged" in kept and hasattr(self.trainer, "_tr_loss"):
            # The library's own sums go on where they were, so that no rounding tells that it was stopped.
            self.before, self.trainer._total_loss_scalar = 0.0, kept["logged"]
            self.trainer._tr_loss += kept["unlogged"]
            self.trainer._globalstep_last_logged = kept["logged_at"]
        else:  # None: a checkpoint of an older version
            self.before = kept["sum"] if state.global_step else 0.0

    def state(self) -> dict[str, Any]:
        logged, unlogged = (float(getattr(self.trainer, name, 0.0)) for name in ("_total_loss_scalar", "_tr_loss"))
        if self.before is None:
            return {"args": {}, "attributes": {"sum": None}}
        return {"args": {}, "attributes": {
            "sum": self.before + logged + unlogged, "logged": self.before + logged, "unlogged": unlogged,
            "logged_at": getattr(self.trainer, "_globalstep_last_logged", 0),
        }}

    def mean(self) -> float | None:
        """Over all steps, at the end of the training; None where that cannot be told."""
        steps = self.trainer.state.global_step
        if self.before is None or not steps:
            return None
        return (self.before + self.trainer._total_loss_scalar) / steps


class Manifests(TrainerCallback):
    """Tells whole checkpoints from others: comes behind all that write into one, before what deletes older ones.

    Also how long the training took up to each, counted on from the ``checkpoint`` that it goes on from; steps that
    were lost in between do not count.
    """

    def __init__(self, checkpoint: str | None = None):
        self.before, self.began = seconds_until(checkpoint), time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        group = torch.distributed
        if group.is_available() and group.is_initialized():
            group.barrier()  # each process writes its random state
        if state.is_world_process_zero:
            seconds = None if self.before is None else self.before + time.monotonic() - self.began
            write_manifest(Path(args.output_dir) / f"checkpoint-{state.global_step}", seconds)


class EvaluationCallback(TrainerCallback):
    """Reports the evaluations during training: slices, and the best so far.

    metric: what "best" means, without ``eval_``. slice_values: of the split that is watched, {} for no slices. keep:
    of so many best epochs the checkpoints are kept, and listed in top_epochs.json; 0 leaves checkpoints alone.
    """

    def __init__(
        self, trainer: Trainer, metric: str, greater_is_better: bool, slice_values: Mapping[str, list], keep: int,
        title: str,
    ):
        self.trainer, self.output_dir = trainer, Path(trainer.args.output_dir)
        self.metric, self.title = metric, title
        self.slice_values, self.keep = slice_values, keep
        self.ranking = TopEpochs(self.output_dir, max(keep, 1), metric, greater_is_better)
        self.training = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.training = True
        # Of a training that goes on: the best so far.
        before = [(round(log["epoch"], 4), log["step"], quality(log)) for log in state.log_history
                  if f"eval_{self.metric}" in log and log["step"]]
        self.ranking.restore(before, standing=bool(self.keep))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        if not self.training:
            return
        numbers, epoch = quality(metrics), round(state.epoch or 0.0, 4)
        if self.metric not in numbers:
            raise UserError(f"--metric_for_best_model {self.metric}: there is {', '.join(numbers)}")
        evaluation: Evaluation = self.trainer.compute_metrics  # type: ignore[assignment]
        table, rows = None, []
        if self.slice_values:
            table = slices.slice_table(self.slice_values, evaluation.slice_statistics)
            rows = table.astype(object).where(table.notna(), None).to_dict("records")
        extra = f"majority baseline {numbers['majority_baseline']:.4g}" if "majority_baseline" in numbers else ""
        line = f"epoch {epoch:g}: {self.metric} {numbers[self.metric]:.4g}" + f" ({extra})" * bool(extra)
        if state.global_step == 0:  # --eval_on_start: no checkpoint of it could be kept, or be the best
            logger.info(f"{line}, before training")
            return
        before = self.ranking.entries[0] if self.ranking.entries else None
        self.ranking.add(epoch, state.global_step, numbers, rows)
        best = self.ranking.entries[0]
        # The files tell of the model that is left at the end.
        if table is not None and (best["step"] == state.global_step or not args.load_best_model_at_end):
            write_slices(table, list(self.slice_values), evaluation.rate, self.output_dir, "", self.title)
        if best["step"] == state.global_step:
            line += ", a new best" + (f"; before {before['metrics'][self.metric]:.4g}" if before else "")
        logger.info(line)
        if table is not None:
            logger.info(slices.printed(table, "slice_metrics.csv (of the best epoch)", ends=2))
        logs = tracked(numbers, table, list(self.slice_values))
        logs |= {f"best/{self.metric}": best["metrics"][self.metric], "best/epoch": best["epoch"]}
        for entry in self.ranking.entries if self.keep else ():
            place = f"top_epochs/{entry['rank']}"
            logs |= {f"{place}/{self.metric}": entry["metrics"][self.metric], f"{place}/epoch": entry["epoch"]}
        self.trainer.log(logs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.keep and state.is_world_process_zero:
            self.ranking.save(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.training = False
        if self.keep and state.is_world_process_zero:
            self.ranking.save(None)
