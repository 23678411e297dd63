"""Examples as vectors: which token vectors of an encoder make an embedding, how a split is embedded, the flags."""

from __future__ import annotations

import argparse
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.artifacts import check_not_read, recorded_split, recorded_task
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import atomic, room_for_array
from datamap.core.flags import Parser, positive_int
from datamap.core.progress import Progress
from datamap.core.splits import Split
from datamap.tasks.registry import TASKS, add_task_flags, task_of
from datamap.training.models import check_whole_model, load_encoder
from datamap.training.on_gpu import masks_without_waiting, room_for

if TYPE_CHECKING:
    import datasets
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FETCHED_AT_ONCE = 64  # batches whose vectors a GPU keeps until they are fetched together

logger = logging.getLogger(__name__)


def pooled_spans(pooling: str, cls: np.ndarray, answers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(N, P, 2): first and last token of the P spans whose mean vectors, one after the other, make an embedding.

    cls (N,): position of the [CLS] token. answers (N, 2): first and last token of the answer, -1 where there is none:
    there the [CLS] token stands for it. lengths (N,): tokens without padding.
    """
    if pooling == "mean":
        return np.stack([np.zeros_like(lengths), lengths - 1], axis=1)[:, None]
    alone = np.stack([cls, cls], axis=1)
    if pooling == "cls":
        return alone[:, None]
    return np.stack([alone, np.where(answers < 0, alone, answers)], axis=1)


def pool(hidden: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    """(B, L, H) last hidden states to (B, P H) float32: the mean vector of each span, one after the other.

    spans (B, P, 2): first and last position, both included. Padding lies outside every span and so has no weight.
    """
    import torch

    hidden = hidden.float()
    position = torch.arange(hidden.shape[1], device=hidden.device)
    inside = ((position >= spans[:, :, :1]) & (position <= spans[:, :, 1:])).float()
    means = torch.einsum("bpl,blh->bph", inside, hidden) / inside.sum(dim=2, keepdim=True)
    return means.flatten(start_dim=1)


def embedding_spans(
    split: Split, tokenizer: PreTrainedTokenizerBase, pooling: str, max_length: int, doc_stride: int
) -> tuple[datasets.Dataset, np.ndarray, np.ndarray]:
    """One row of features per example, their ``pooled_spans`` (N, P, 2), and whether each has an answer span, (N,)."""
    features = split.task.features(split.data, tokenizer, max_length=max_length, doc_stride=doc_stride)
    rows, cls, answers = split.task.embedding_rows(split.data, features, tokenizer)
    if pooling != "mean" and (cls < 0).any():
        example = name_a_few(np.asarray(split.ids)[cls < 0].tolist(), 1)
        raise UserError(
            f"--pooling {pooling} needs a [CLS] token, which {type(tokenizer).__name__} does not put into every "
            f"text (example {example}); give --pooling mean"
        )
    return rows, pooled_spans(pooling, cls, answers, np.asarray(rows["length"][:])), answers[:, 0] >= 0


def embedder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset, spans: np.ndarray,
    batch_size: int, bf16: bool = True,
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The order in which N rows are best embedded, and what embeds some of them: (m,) places to (m, P H) float32.

    spans: (N, P, 2), see ``pooled_spans``. The order goes from long to short, so that little is padded and memory
    runs out at once or never. bf16: compute in bfloat16 on a GPU, where vectors are fetched for many batches at once,
    so that the host does not wait for each.
    """
    import torch

    accepted = inspect.signature(model.forward).parameters
    names = [name for name in tokenizer.model_input_names if name in rows.column_names and name in accepted]
    order = np.argsort(-np.asarray(rows["length"][:]), kind="stable")
    device, on_gpu = model.device, model.device.type == "cuda"
    model.eval()

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(device, non_blocking=True) if on_gpu else tensor

    def pooled(some: np.ndarray) -> torch.Tensor:
        chosen = rows[some]
        batch = tokenizer.pad({name: chosen[name] for name in names}, return_tensors="pt")
        hidden = model(**{name: moved(values) for name, values in batch.items()}).last_hidden_state
        return pool(hidden, moved(torch.from_numpy(spans[some])))

    def embed(places: np.ndarray) -> np.ndarray:
        vectors, at_once = [], batch_size * batches_at_once(model)
        for first in range(0, len(places), at_once):
            # One block of autocast for all of them: it converts each weight once.
            with torch.inference_mode(), masks_without_waiting(on_gpu), \
                    room_for(f"{batch_size:,} rows at once", "give a smaller batch size or --max_length"), \
                    torch.autocast(device.type, torch.bfloat16, enabled=on_gpu and bf16):
                several = [pooled(places[place : place + batch_size])
                           for place in range(first, min(first + at_once, len(places)), batch_size)]
                vectors.append(torch.cat(several).cpu().numpy())
            if not np.isfinite(vectors[-1]).all():
                raise UserError("the model gives NaN or infinite vectors: its training diverged; train it again")
        return np.concatenate(vectors)

    return order, embed


def batches_at_once(model: PreTrainedModel) -> int:
    """How many batches are embedded before their vectors are fetched."""
    return FETCHED_AT_ONCE if model.device.type == "cuda" else 1


# --- of extract_embeddings.py --------------------------------------------------------------------------------------


def build_parser() -> Parser:
    parser = Parser("Turn each example of a dataset into one vector of a trained model.", "extract_embeddings.py")
    parser.add_argument("--model_path", required=True, help="directory that run.py wrote, a Hub name, or minilm")
    parser.add_argument(
        "--dataset", help="Hub name, file, directory or demo:... (default: the one the model was trained on)"
    )
    parser.add_argument("--split", help="split to embed (default: the one the model was trained on, else train)")
    parser.add_argument("--max_samples", type=positive_int, help="embed only the first N examples "
                        "(default: as many as the model was trained on with --max_train_samples, else all)")
    add_task_flags(parser)
    parser.add_argument(
        "--pooling", choices=tuple(dict.fromkeys(pooling for task in TASKS.values() for pooling in task.pooling)),
        help="which token vectors make the embedding: "
        + "; ".join(f"{name} {' or '.join(task.pooling)}" for name, task in TASKS.items())
        + " (default: the first)",
    )
    parser.add_argument("--max_length", type=positive_int, default=512, help="longest window or text, in tokens")
    parser.add_argument(
        "--doc_stride", type=positive_int, help="tokens that two windows share, for qa only (default: 128)"
    )
    parser.add_argument("--batch_size", type=positive_int, default=32, help="windows or texts in a batch")
    parser.add_argument("--output_dir", default="./embeddings_output", help="where the files go")
    parser.add_switch("--no_cuda", help="use the CPU even where there is a GPU (on a GPU: bfloat16)")
    return parser


def load_inputs(args: argparse.Namespace) -> tuple[Split, PreTrainedModel, PreTrainedTokenizerBase]:
    """What is to be embedded and by what; flags that the task has not got are refused, its defaults filled in."""
    local = Path(args.model_path).exists()
    if local:
        check_whole_model(args.model_path)
        check_not_read(args.output_dir, args.model_path)
    elif args.model_path.startswith((".", "/", "~")):
        raise UserError(f"--model_path {args.model_path}: no such directory")
    task = task_of(args, recorded_task(args.model_path) if local else None)
    if args.pooling and args.pooling not in task.pooling:
        raise UserError(f"--pooling {args.pooling} is not for --task {task.name}, which has {', '.join(task.pooling)}")
    if args.doc_stride and "doc_stride" not in task.flags:
        raise UserError(f"--doc_stride is for --task qa, this is {task.name}: its texts are not cut into windows")
    args.pooling, args.doc_stride = args.pooling or task.pooling[0], args.doc_stride or 128
    split = recorded_split(args.model_path, args.dataset, args.split, task, args.max_samples)
    if split is None:
        raise UserError(f"{args.model_path} does not record the dataset it was trained on; name it with --dataset")
    logger.info(f"embedding {len(split.data):,} examples of {split.name} [{split.split}]")
    model, tokenizer = load_encoder(args.model_path, args.no_cuda)
    return split, model, tokenizer


def describe(args: argparse.Namespace, split: Split, shape: tuple[int, int], has_span: np.ndarray) -> dict[str, Any]:
    """What embeddings_metadata.json says of embeddings of this shape, but ids and texts."""
    identity, task = split.identity(), split.task
    description = {
        "model": args.model_path,
        "task": task.name,
        "pooling": args.pooling,
        "dataset": identity["dataset"],
        "split": identity["split"],
        "fingerprint": identity["fingerprint"],
        "max_length": args.max_length,
        **({"doc_stride": args.doc_stride} if "doc_stride" in task.flags else {}),
        "num_rows": shape[0],
        "num_dims": shape[1],
    }
    if args.pooling == "cls_and_answer_mean":
        unanswerable = task.brief(split.data)["answer"].count(None)
        description["num_unanswerable"] = unanswerable
        description["num_answer_not_found"] = int(np.sum(~has_span)) - unanswerable
        if not has_span.all():
            logger.info(
                f"{np.sum(~has_span):,} of {shape[0]:,} examples give their CLS vector twice: {unanswerable:,} are "
                f"unanswerable, {description['num_answer_not_found']:,} have their answer in no window or not at its "
                "offset"
            )
    return description


def write_embeddings(
    path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset, spans: np.ndarray,
    batch_size: int,
) -> tuple[int, int]:
    """Embed all rows into a .npy file of float32; returns its shape."""
    shape = (len(rows), spans.shape[1] * model.config.hidden_size)
    order, embed = embedder(model, tokenizer, rows, spans, batch_size)
    with atomic(path) as temporary, Progress("embedding", len(order), size=1) as progress:
        out = room_for_array(temporary, shape, np.float32)
        at_once = batch_size * batches_at_once(model)
        for first in range(0, len(order), at_once):
            places = order[first : first + at_once]
            out[places] = embed(places)
            progress.advance(len(places))
        out.flush()
    return shape
