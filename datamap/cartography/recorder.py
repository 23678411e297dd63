"""Record training dynamics from any HuggingFace Trainer: what the model thinks of each example as it learns it.

With a Trainer of your own, two lines; the training rows are numbered by their place in ``ids``:

    from datamap import CartographyCallback
    CartographyCallback(ids, "./cartography_output").attach(trainer)

The Trainer may be for question answering, for classification, or TRL's SFTTrainer, whose completions are recorded.
``training.trainer.CartographyTrainer`` (run.py) calls ``record_heads`` itself. Recorded are scalars from the forward
pass that trains, before that batch's update; only the end of an epoch and the writing of a checkpoint wait for the
device.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from datamap.cartography.categories import category_thresholds, counted
from datamap.cartography.dynamics import read_dynamics, streamed_files, write_dynamics
from datamap.cartography.joined import ROW_STARTS, check_packed, joined_statistics, row_starts
from datamap.cartography.learning import Learning, guessing, progress
from datamap.cartography.maps import CARTOGRAPHY_FILES, write_cartography
from datamap.cartography.metrics import compute_metrics
from datamap.cartography.settling import ByEpoch
from datamap.cartography.streaming import stream_map
from datamap.core.artifacts import META, check_writable, has_open_stage
from datamap.core.errors import UserError
from datamap.core.files import atomic
from datamap.core.parquet import format_for

logger = logging.getLogger(__name__)

ONE_PROCESS_PER_GPU = (
    "recording needs one process per GPU: start with `accelerate launch`, or set CUDA_VISIBLE_DEVICES=0"
)
CONFIDENCE_TYPES = ("geometric", "product", "mean")
CHECKPOINT_FILE = "training_dynamics.npz"
QA_COLUMNS = ("confidence", "correct", "loss", "aum", "el2n", "start_confidence", "end_confidence")
COMPLETION_COLUMNS = ("confidence", "correct", "loss", "label_confidence")
# What a step keeps of each head, of which QA_COLUMNS are made at the end of the epoch. ``correct`` is UNSEEN where
# a row was not seen, in either kind of columns.
UNSEEN = -1.0
OF_A_HEAD = ("gold_log_p", "largest_other_log_p", "norm_of_others", "correct")
HEAD_COLUMNS = tuple(f"{head}/{name}" for head in ("first", "second") for name in OF_A_HEAD)


class Heads(NamedTuple):
    """The decisions of a model for a batch: H = 2 for question answering (start, end), 1 for classification."""

    logits: torch.Tensor  # (B, H, C) float32; -inf at padding, so that it takes no probability
    gold: torch.Tensor  # (B, H) int64
    candidates: torch.Tensor  # (B, C) bool, where label smoothing may put mass
    log_p: torch.Tensor  # (B, H, C), the log_softmax of the logits: both the loss and what is recorded are made of it


def heads_of(outputs: Any, batch: Mapping[str, torch.Tensor]) -> Heads:
    """Logits and gold decisions of a model output, whether it answers questions or classifies.

    For question answering ``batch`` holds start_positions and end_positions, and ``token_roles`` (see
    tasks/qa_features.py) or, from other people's trainers, attention_mask to tell the padding.
    """
    start_logits = getattr(outputs, "start_logits", None)
    if start_logits is not None:
        roles = batch.get("token_roles")
        real = roles > 0 if roles is not None else batch["attention_mask"].bool()
        candidates = roles > 1 if roles is not None else real
        logits = torch.stack([start_logits.float(), outputs.end_logits.float()], dim=1)
        logits = logits.masked_fill(~real[:, None, :], -torch.inf)
        gold = torch.stack([batch["start_positions"], batch["end_positions"]], dim=1)
        return Heads(logits, gold, candidates, logits.log_softmax(dim=-1))
    logits, labels = getattr(outputs, "logits", None), batch.get("labels")
    if logits is None or labels is None or logits.dim() != 2 or labels.dim() != 1:
        raise TypeError(
            "expected a model output with start_logits and end_logits, logits (B, C) and labels (B,), or log_probs "
            f"and label_mask (B, L - 1); found {type(outputs).__name__}"
        )
    candidates, logits = torch.ones_like(logits, dtype=torch.bool), logits.float()[:, None, :]
    return Heads(logits, labels[:, None], candidates, logits.log_softmax(dim=-1))


def row_losses(heads: Heads, smoothing: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy per row, mean over heads; (B,), in nats.

    ``smoothing`` (B,), 0..1: the share of each row's target that is spread uniformly over its candidates.
    """
    loss = -heads.log_p.gather(-1, heads.gold[..., None]).squeeze(-1)
    if smoothing is not None:
        candidates = heads.candidates[:, None, :]
        spread = -heads.log_p.masked_fill(~candidates, 0).sum(-1) / candidates.sum(-1)
        loss = (1 - smoothing[:, None]) * loss + smoothing[:, None] * spread
    return loss.mean(dim=1)


@torch.no_grad()
def head_numbers(heads: Heads) -> torch.Tensor:
    """What is kept of each row until the end of the epoch, (B, 4 H) float32: OF_A_HEAD for each head.

    As few kernels as do: on a GPU the time of recording is that of their launches. ``columns_of`` makes the rest.
    """
    gold = heads.gold[..., None]
    others = heads.log_p.scatter(-1, gold, -torch.inf)
    largest = others.amax(dim=-1)
    norm = torch.linalg.vector_norm(others.exp_(), dim=-1)
    right = (heads.logits.argmax(dim=-1) == heads.gold).float()
    gold_log_p = heads.log_p.gather(-1, gold).squeeze(-1)
    return torch.stack([gold_log_p, largest, norm, right], dim=-1).flatten(start_dim=1)


def columns_of(numbers: np.ndarray, confidence_type: str = "geometric") -> np.ndarray:
    """The columns that are recorded, (N, 5 or 7) float32 in the order of QA_COLUMNS (the last two for two heads), of
    what ``head_numbers`` kept, (N, 4 H).

    confidence: of p over the heads the geometric mean, the product or the mean, 0..1. correct: every head's argmax is
    the gold one. loss, aum (gold logit minus largest other), el2n (norm of softmax minus one-hot): means over heads.
    """
    gold_log_p, largest, norm, right = np.moveaxis(
        numbers.astype(np.float64).reshape(len(numbers), -1, len(OF_A_HEAD)), -1, 0)
    p = np.exp(gold_log_p)
    if p.shape[1] == 1:
        confidence = p[:, 0]
    elif confidence_type == "mean":
        confidence = p.mean(axis=1)
    else:
        product = p.prod(axis=1)
        confidence = np.sqrt(product) if confidence_type == "geometric" else product
    # Not sqrt(1 - 2p + sum p^2): that loses everything when p is near 1.
    el2n = np.hypot(np.expm1(gold_log_p), norm)
    with np.errstate(invalid="ignore"):  # of logits that are no numbers any more
        margin = (gold_log_p - largest).mean(axis=1)
    columns = [confidence, right.min(axis=1), -gold_log_p.mean(axis=1), margin, el2n.mean(axis=1)]
    if p.shape[1] == 2:
        columns += [p[:, 0], p[:, 1]]
    return np.stack(columns, axis=1).astype(np.float32)


def confidences(heads: Heads, confidence_type: str = "geometric") -> torch.Tensor:
    """Confidence of each row, (B,) float32, 0..1; see ``columns_of``."""
    p = heads.log_p.gather(-1, heads.gold[..., None]).squeeze(-1).exp()
    if p.shape[1] == 1 or confidence_type == "mean":
        return p.mean(dim=1)
    return p.prod(dim=1).sqrt() if confidence_type == "geometric" else p.prod(dim=1)


def completion_statistics(outputs: Any, label_position: torch.Tensor | None = None) -> torch.Tensor:
    """What is recorded of each completion, (B, 3 or 4) float32 in the order of COMPLETION_COLUMNS.

    outputs: of TRL's fused head, which has no logits: ``log_probs`` of the gold tokens 1 to L - 1, ``is_top1`` and
    ``label_mask``, which is true on the completion (EOS included), each (B, L - 1). label_position: (B,) int64, where
    in ``input_ids`` the token stands that says the label.

    confidence: geometric mean of the probabilities of the completion's gold tokens, 0..1. loss: the mean of their
    negative logarithms, nats. correct: the label's token is the likeliest after the gold chain before it; without
    label_position, every token of the completion is. label_confidence: probability of the label's token, 0..1.
    """
    mask, is_top = outputs.label_mask.bool(), outputs.is_top1.bool()
    log_p = outputs.log_probs.float().clamp(max=0)  # rounding may leave it a little above
    mean = log_p.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    if label_position is None:
        return torch.stack([mean.exp(), (is_top | ~mask).all(dim=1).float(), -mean], dim=1)
    place = (label_position - 1).clamp(min=0)[:, None]  # what stands at 0 has no probability: the rest moves up
    label_p, right = log_p.gather(1, place).squeeze(1).exp(), is_top.gather(1, place).squeeze(1)
    return torch.stack([mean.exp(), right.float(), -mean, label_p], dim=1)


class CartographyCallback(TrainerCallback):
    """Records the training dynamics of every example and writes them, epoch by epoch, to ``output_dir``.

    ids: one string per example. row_to_example: (rows,) index into ids of each training row (window), -1 where the
    row does not count; default: the rows are the examples. Rows of one example are averaged; it counts as right when
    all are. checkpoint: the one that training resumes from; default ``output_dir/checkpoint-N`` of the Trainer.
    label_positions: (rows,) for completions that end in a label, the index in ``input_ids`` of the token that says it,
    -1 where it was cut off: such a row does not count. See ``completion_statistics``. artifact_format: "json" or
    "parquet" (default: by the number of ids, ``format_for``).

    Every (epoch, row) counts once, also where distributed training repeats rows to fill its batches. Each checkpoint
    gets what was recorded so far, and a resumed training goes on from that, also in mid-epoch.
    """

    checkpoint_file = CHECKPOINT_FILE

    def __init__(
        self, ids: Sequence[str], output_dir: str | Path, row_to_example: Sequence[int] | np.ndarray | None = None,
        confidence_type: str = "geometric", checkpoint: str | Path | None = None, title: str | None = None,
        label_positions: Sequence[int] | np.ndarray | None = None, artifact_format: str | None = None,
    ):
        if confidence_type not in CONFIDENCE_TYPES:
            raise UserError(f"unknown confidence type {confidence_type!r}; there is {', '.join(CONFIDENCE_TYPES)}")
        self.ids = list(ids)
        self.artifact_format = format_for(len(self.ids), artifact_format)
        self.output_dir = Path(output_dir)
        self.row_to_example = np.arange(len(self.ids)) if row_to_example is None else np.asarray(row_to_example)
        if len(self.row_to_example) and self.row_to_example.max() >= len(self.ids):
            raise ValueError(f"row_to_example points at {self.row_to_example.max()}, there are {len(self.ids)} ids")
        self.label_positions = None if label_positions is None else np.array(label_positions, dtype=np.int64)
        if self.label_positions is not None:
            if len(self.label_positions) != len(self.row_to_example):
                raise ValueError(f"{len(self.label_positions)} label positions for {len(self.row_to_example)} rows")
            self.row_to_example = np.where(self.label_positions < 0, -1, self.row_to_example)
        self._places: torch.Tensor | None = None  # label_positions on the device of the model
        self.confidence_type = confidence_type
        self.checkpoint = checkpoint
        self.title = title
        self._attached = False
        self.seconds = 0.0  # spent recording; on a GPU without the kernels' own time
        self._history: list[dict[str, np.ndarray]] = []  # finished epochs: columns over all examples, and "seen"
        self._values: torch.Tensor | None = None  # (rows, columns) of this epoch, on the device of the model
        self._columns: tuple[str, ...] = HEAD_COLUMNS  # names of the columns of _values, and maybe others behind them
        self._guessing: dict[str, float] | None = None  # of the training rows, where their gold decisions are columns

    # --- recording ---

    @torch.no_grad()
    def record(self, outputs: Any, batch: Mapping[str, torch.Tensor], row_index: torch.Tensor) -> None:
        """Take what is needed from a model's output and its batch; row_index (B,). No host synchronisation."""
        if getattr(outputs, "log_probs", None) is None:
            self.record_heads(heads_of(outputs, batch), row_index)
            return
        began = time.perf_counter()
        position = None
        if self.label_positions is not None:
            if self._places is None:
                self._places = torch.from_numpy(self.label_positions).to(outputs.log_probs.device)
            position = self._places[row_index]
        starts = batch.get(ROW_STARTS)
        statistics = completion_statistics(outputs, position) if starts is None else (
            joined_statistics(outputs, starts, position))
        self._store(statistics, row_index, COMPLETION_COLUMNS)
        self.seconds += time.perf_counter() - began

    @torch.no_grad()
    def record_heads(self, heads: Heads, row_index: torch.Tensor) -> None:
        """Take what is needed from one training forward pass; row_index (B,). No host synchronisation."""
        began = time.perf_counter()
        self._store(head_numbers(heads), row_index, HEAD_COLUMNS)
        self.seconds += time.perf_counter() - began

    @torch.no_grad()
    def record_numbers(self, numbers: torch.Tensor, row_index: torch.Tensor) -> None:
        """The same of ``head_numbers`` that were computed together with the loss; (B, 4 H)."""
        began = time.perf_counter()
        self._store(numbers, row_index, HEAD_COLUMNS)
        self.seconds += time.perf_counter() - began

    def _store(self, statistics: torch.Tensor, row_index: torch.Tensor, names: tuple[str, ...]) -> None:
        if self._values is None:
            self._values = statistics.new_full((len(self.row_to_example), statistics.shape[1]), UNSEEN)
            self._columns = names
        self._values.index_copy_(0, row_index, statistics)

    def attach(self, trainer: Trainer) -> CartographyCallback:
        """Connect to any Trainer whose training dataset is map-style; call before ``train``.

        Rows that TRL joins in padding-free batches are told apart by their positions. So are rows that it has packed
        beforehand; a column row_index of the packed dataset says which they are, with a list for each packed row.
        """
        columns, packed = getattr(trainer.train_dataset, "column_names", None), getattr(trainer.args, "packing", False)
        if packed:  # of TRL, as what follows
            check_packed(trainer.train_dataset["row_index"] if "row_index" in (columns or ()) else None,
                         len(self.row_to_example))
        elif len(trainer.train_dataset) != len(self.row_to_example):
            raise UserError(f"{len(trainer.train_dataset):,} training rows, but ids for {len(self.row_to_example):,}")
        if trainer.label_smoother is not None:
            raise UserError("label_smoothing_factor hides the labels from the recorder; set it to 0")
        if getattr(trainer.args, "shuffle_dataset", False):  # it has been, and the ids have not
            raise UserError("shuffle_dataset has changed the order of the rows, so they have other ids; set it to "
                            "False (every epoch is shuffled anyway)")
        if columns is None:
            trainer.train_dataset = _WithRowIndex(trainer.train_dataset)
        elif "row_index" not in columns:
            rows = list(range(len(self.row_to_example)))
            trainer.train_dataset = trainer.train_dataset.add_column("row_index", rows)
        check_writable(self.output_dir)
        self._attached = True
        trainer._set_signature_columns_if_needed()
        trainer._signature_columns.append("row_index")
        trainer.data_collator = _KeepRowIndex(trainer.data_collator)
        trainer.model.register_forward_pre_hook(self._take_row_index, with_kwargs=True)
        trainer.model.register_forward_hook(self._read_outputs, with_kwargs=True)
        trainer.add_callback(self)
        return self

    def _take_row_index(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        self._row_index, self._row_starts = kwargs.pop("row_index", None), kwargs.pop(ROW_STARTS, None)
        return args, kwargs

    def _read_outputs(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], outputs: Any) -> None:
        if self._row_index is not None and module.training and torch.is_grad_enabled():
            self.record(outputs, {**kwargs, ROW_STARTS: self._row_starts}, self._row_index)

    # --- events of the Trainer ---

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if args.n_gpu > 1:  # the library would split batches over threads
            raise UserError(ONE_PROCESS_PER_GPU)
        self._history, self._values = [], None
        gold = gold_decisions(getattr(kwargs.get("train_dataloader"), "dataset", None))
        counts = self.row_to_example >= 0
        if gold is not None and len(gold) == len(counts) and counts.any():
            self._guessing = guessing(gold[counts])
        if state.global_step > 0:
            checkpoint = self.checkpoint or Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self._restore(Path(checkpoint), args.device)
        if state.is_world_process_zero:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            # Of an earlier run.py it would describe this recording wrongly; of a stage that is open it tells, when
            # that is killed, that the recording is not whole.
            if self._attached and not has_open_stage(self.output_dir):
                (self.output_dir / META).unlink(missing_ok=True)
            for pattern in CARTOGRAPHY_FILES:  # epochs of an earlier, longer run must not survive
                for file in self.output_dir.glob(pattern):
                    file.unlink()
            for epoch in range(1, len(self._history) + 1):
                self._write_epoch(epoch)
        if self._values is not None:  # of a checkpoint, which says how far its epoch was
            assert state.epoch is not None
            if round(state.epoch, 6) >= len(self._history) + 1:
                self._end_epoch(state)  # it was written on the last step of an epoch

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        began = time.perf_counter()
        self._end_epoch(state)
        self.seconds += time.perf_counter() - began

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        merged = self._merged()  # every process takes part
        if not state.is_world_process_zero:
            return
        arrays = {f"epoch{number}/{name}": column for number, epoch in enumerate(self._history, 1)
                  for name, column in epoch.items()}
        if merged is not None:
            arrays["values"], arrays["columns"] = merged[0], np.array(self._columns)
        with atomic(Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.checkpoint_file) as temporary:
            np.savez(temporary, identity=self._identity(), **arrays)  # type: ignore[arg-type]

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            began = time.perf_counter()
            files = streamed_files(self.output_dir)
            if files is not None:
                metrics, _, record = stream_map(self.output_dir, files, self.title, self._guessing)
            else:
                learning, by_epoch = Learning(self._guessing), ByEpoch()
                metrics = compute_metrics(by_epoch.follow(learning.follow(read_dynamics(self.output_dir))))
                record = learning.record(metrics)
                write_cartography(self.output_dir, metrics, self.title, learning=record, by_epoch=by_epoch.table(),
                                  artifact_format=self.artifact_format)
            logger.info(f"wrote metrics and data map to {self.output_dir} in {time.perf_counter() - began:.1f} s")
            cuts = category_thresholds(metrics)
            logger.info(f"{counted(metrics, cuts)}; {progress(record or {})}")

    # --- epochs and checkpoints ---

    def _merged(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The current epoch's (values, seen) over all processes, each row from the first process that saw it."""
        values = self._values
        if values is None:
            return None  # in no process: all train in step
        seen = values[:, next(n for n, name in enumerate(self._columns) if name.endswith("correct"))] != UNSEEN
        group = torch.distributed
        if group.is_available() and group.is_initialized() and (world := group.get_world_size()) > 1:
            rank = group.get_rank()
            owner = torch.where(seen, rank, world).to(torch.int32)
            group.all_reduce(owner, group.ReduceOp.MIN)
            values = torch.where((owner == rank)[:, None], values, 0.0)
            group.all_reduce(values, group.ReduceOp.SUM)
            seen = owner < world
            values = torch.where(seen[:, None], values, UNSEEN)
        return values.cpu().numpy(), seen.cpu().numpy()

    def _end_epoch(self, state: TrainerState) -> None:
        merged = self._merged()
        self._values = None
        if merged is None:
            return
        values, names = merged[0], self._columns
        if names == HEAD_COLUMNS:
            values, names = columns_of(values, self.confidence_type), QA_COLUMNS
        self._history.append(_average_rows(values, merged[1], names, self.row_to_example, len(self.ids)))
        if state.is_world_process_zero:
            rows = self.row_to_example >= 0
            unseen = len(np.unique(self.row_to_example[rows & ~merged[1]]))
            if unseen:
                logger.warning(f"epoch {len(self._history)} of the training dynamics is not whole: {unseen:,} of "
                               f"{len(np.unique(self.row_to_example[rows])):,} examples were not trained on in it, or "
                               "not in all of their windows (--max_steps, part of an epoch, --dataloader_drop_last)")
            self._write_epoch(len(self._history))

    def _write_epoch(self, epoch: int) -> None:
        columns = self._history[epoch - 1]
        rows = np.flatnonzero(columns["seen"]).tolist()
        recorded = {name: column[rows] for name, column in columns.items() if name != "seen"}
        write_dynamics(self.output_dir, epoch, [self.ids[row] for row in rows], recorded, self.artifact_format)

    def _identity(self) -> str:
        digest = hashlib.blake2b("\x1e".join([self.confidence_type, *self.ids]).encode(), digest_size=8)
        digest.update(np.ascontiguousarray(self.row_to_example, dtype=np.int64).tobytes())
        if self.label_positions is not None:
            digest.update(self.label_positions.tobytes())
        return digest.hexdigest()

    def _restore(self, checkpoint: Path, device: torch.device) -> None:
        file = checkpoint / self.checkpoint_file
        if not file.exists():
            raise UserError(
                f"{checkpoint} holds no training dynamics ({self.checkpoint_file}): it was killed while it was saved, "
                "or trained without cartography; resume from an earlier checkpoint, or start again with --overwrite"
            )
        with np.load(file) as saved:
            if str(saved["identity"]) != self._identity():
                raise UserError(
                    f"{checkpoint} was recorded with other examples, windows or confidence type; resume with the data "
                    "and flags it was started with"
                )
            while f"{(prefix := f'epoch{len(self._history) + 1}/')}seen" in saved:
                self._history.append({key.removeprefix(prefix): saved[key] for key in saved if key.startswith(prefix)})
            if "values" in saved:
                if "seen" in saved:
                    raise UserError(f"{checkpoint} was recorded by an earlier version of this recorder; finish the "
                                    "training with that, or start again with --overwrite")
                self._columns = tuple(saved["columns"].tolist())
                self._values = torch.from_numpy(saved["values"]).to(device)
                # The first process takes it all; the others go on from nothing, and _merged joins them again.
                if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
                    self._values.fill_(UNSEEN)


class _WithRowIndex(torch.utils.data.Dataset):
    """A map-style dataset whose rows are dicts, with their numbers."""

    def __init__(self, data: Any):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**self.data[row], "row_index": row}


class _KeepRowIndex:
    """Wraps a collator so that the column row_index survives it, as a tensor; where the collator joins rows, with
    what tells them apart."""

    def __init__(self, collator: Any):
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if "row_index" not in rows[0]:  # evaluation
            return self.collator(rows)
        batch = self.collator([{key: value for key, value in row.items() if key != "row_index"} for row in rows])
        numbers = [row["row_index"] for row in rows]
        if isinstance(numbers[0], list):  # packed
            numbers = [number for each in numbers for number in each]
        batch["row_index"] = torch.tensor(numbers)
        if "input_ids" in batch and len(batch["input_ids"]) != len(numbers):
            batch[ROW_STARTS] = row_starts(batch, len(numbers))
        return batch


def gold_decisions(data: Any) -> np.ndarray | None:
    """(rows, H) gold decisions of a training dataset, None where no columns of it hold them."""
    there = getattr(data, "column_names", None) or ()
    for names in (("start_positions", "end_positions"), ("labels",), ("label",)):
        if set(names) <= set(there) and hasattr(data, "with_format"):
            columns = [np.asarray(data.with_format("numpy")[name][:]) for name in names]
            if all(column.ndim == 1 and column.dtype.kind in "iub" for column in columns):
                return np.stack(columns, axis=1)
    return None


def _average_rows(
    values: np.ndarray, seen: np.ndarray, names: Sequence[str], row_to_example: np.ndarray, num_examples: int
) -> dict[str, np.ndarray]:
    """One epoch per example from one epoch per row: means, except that every row must be right for ``correct``.

    names: those of the columns of ``values``, and maybe others behind them.
    """
    rows = np.flatnonzero(seen & (row_to_example >= 0))
    example = row_to_example[rows]
    counts = np.bincount(example, minlength=num_examples)
    columns = {}
    for name, column in zip(names, values[rows].T, strict=False):
        total = np.bincount(example, weights=column.astype(np.float64), minlength=num_examples)
        if name == "correct":
            columns[name] = (counts > 0) & (total == counts)
        else:
            columns[name] = (total / np.maximum(counts, 1)).astype(np.float32)
    return {"seen": counts > 0, **columns}
