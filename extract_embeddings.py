"""Turn each example of a dataset into one vector of a trained model.

Reads a model that run.py trained (or any checkpoint with an encoder) and the dataset. Writes embeddings.npy (float32,
examples x dimensions, in dataset order) and embeddings_metadata.json (ids in row order, and their texts).

    python extract_embeddings.py --model_path ./trainer_output --output_dir ./embeddings_output
    python extract_embeddings.py --model_path ./trainer_output --dataset demo:clinical --max_samples 100 --no_cuda

All vectors are of the last hidden layer. Question answering: [CLS vector ; mean of the answer-span token vectors] from
the first window that holds the answer; an unanswerable example, and one whose answer is in no window or not at its
offset, gives the CLS vector of its first window twice. Classification and NLI: the CLS vector, or with --pooling mean
the mean over all tokens of the text or pair, special tokens included.
"""

from __future__ import annotations

import argparse
import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from artifacts import atomic, check_not_read, check_whole_model, recorded_split, recorded_task, stage, write_json
from flags import Parser, positive_int
from helpers import Split, UserError, command_line, name_a_few
from models import load_encoder, usable_length, usable_stride
from tasks import TASKS, Task, add_task_flags, task_of

if TYPE_CHECKING:
    import datasets
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OWNS = ("embeddings.npy", "embeddings_metadata.json")
POOLINGS = tuple(dict.fromkeys(pooling for task in TASKS.values() for pooling in task.pooling))

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


def embed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: datasets.Dataset,
    spans: np.ndarray,
    out: np.ndarray,
    batch_size: int,
) -> None:
    """Fill ``out`` (N, P H) with the vectors of N rows of features, one per example, on the device of ``model``.

    spans: (N, P, 2), see ``pooled_spans``. Batches go from long to short, so that little is padded and memory runs
    out at once or never.
    """
    import torch
    from tqdm.auto import tqdm

    accepted = inspect.signature(model.forward).parameters
    names = [name for name in tokenizer.model_input_names if name in rows.column_names and name in accepted]
    order = np.argsort(-np.asarray(rows["length"][:]), kind="stable")
    device = model.device
    model.eval()
    batches = range(0, len(order), batch_size)
    with torch.inference_mode():
        for first in tqdm(batches, desc="embedding", unit="batch", disable=None):
            places = order[first : first + batch_size]
            chosen = rows[places]
            batch = tokenizer.pad({name: chosen[name] for name in names}, return_tensors="pt").to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                hidden = model(**batch).last_hidden_state
            vectors = pool(hidden, torch.from_numpy(spans[places]).to(device)).cpu().numpy()
            if not np.isfinite(vectors).all():
                raise UserError("the model gives NaN or infinite vectors: its training diverged; train it again")
            out[places] = vectors


# --- command line ------------------------------------------------------------------------------------------------


def build_parser() -> Parser:
    parser = Parser("Turn each example of a dataset into one vector of a trained model.")
    parser.add_argument("--model_path", required=True, help="directory that run.py wrote, or a Hub name")
    parser.add_argument(
        "--dataset", help="Hub name, file, directory or demo:... (default: the one the model was trained on)"
    )
    parser.add_argument("--split", help="split to embed (default: the one the model was trained on, else train)")
    parser.add_argument("--max_samples", type=positive_int, help="embed only the first N examples (default: all)")
    add_task_flags(parser)
    parser.add_argument(
        "--pooling", choices=POOLINGS,
        help="which token vectors make the embedding: "
        + "; ".join(f"{name} {' or '.join(task.pooling)}" for name, task in TASKS.items())
        + " (default: the first)",
    )  # fmt: skip
    parser.add_argument("--max_length", type=positive_int, default=512, help="longest window or text, in tokens")
    parser.add_argument(
        "--doc_stride", type=positive_int, help="tokens that two windows share, for qa only (default: 128)"
    )
    parser.add_argument("--batch_size", type=positive_int, default=32, help="windows or texts in a batch")
    parser.add_argument("--output_dir", default="./embeddings_output", help="where the files go")
    parser.add_switch("--no_cuda", help="use the CPU even where there is a GPU (on a GPU: bfloat16)")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return build_parser().parse_args(argv)


def check_task(args: argparse.Namespace, task: Task) -> None:
    """Refuse flags that this task has not got, and fill in its defaults."""
    if args.pooling and args.pooling not in task.pooling:
        raise UserError(f"--pooling {args.pooling} is not for --task {task.name}, which has {', '.join(task.pooling)}")
    if args.doc_stride and "doc_stride" not in task.flags:
        raise UserError(f"--doc_stride is for --task qa, this is {task.name}: its texts are not cut into windows")
    args.pooling = args.pooling or task.pooling[0]
    args.doc_stride = args.doc_stride or 128


def load_inputs(args: argparse.Namespace) -> tuple[Split, PreTrainedModel, PreTrainedTokenizerBase]:
    local = Path(args.model_path).exists()
    if local:
        check_whole_model(args.model_path)
        check_not_read(args.output_dir, args.model_path)
    elif args.model_path.startswith((".", "/", "~")):
        raise UserError(f"--model_path {args.model_path}: no such directory")
    task = task_of(args, recorded_task(args.model_path) if local else None)
    check_task(args, task)
    split = recorded_split(args.model_path, args.dataset, args.split, task, args.max_samples)
    if split is None:
        raise UserError(f"{args.model_path} does not record the dataset it was trained on; name it with --dataset")
    logger.info(f"embedding {len(split.data):,} examples of {split.name} [{split.split}]")
    model, tokenizer = load_encoder(args.model_path, args.no_cuda)
    return split, model, tokenizer


def describe(args: argparse.Namespace, split: Split, shape: tuple[int, ...], has_span: np.ndarray) -> dict[str, Any]:
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


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    split, model, tokenizer = load_inputs(args)
    task = split.task
    args.max_length = usable_length(args.max_length, model, tokenizer)
    args.doc_stride = usable_stride(args.doc_stride, args.max_length) if "doc_stride" in task.flags else None
    features = task.features(split.data, tokenizer, max_length=args.max_length, doc_stride=args.doc_stride or 0)
    rows, cls, answers = task.embedding_rows(split.data, features, tokenizer)
    if args.pooling != "mean" and (cls < 0).any():
        example = name_a_few(np.asarray(split.ids)[cls < 0].tolist(), 1)
        raise UserError(
            f"--pooling {args.pooling} needs a [CLS] token, which {type(tokenizer).__name__} does not put into every "
            f"text (example {example}); give --pooling mean"
        )
    spans = pooled_spans(args.pooling, cls, answers, np.asarray(rows["length"][:]))

    shape = (len(rows), spans.shape[1] * model.config.hidden_size)
    description = describe(args, split, shape, answers[:, 0] >= 0)
    inputs = {"model": args.model_path} if Path(args.model_path).exists() else {}
    with stage(args.output_dir, args, owns=OWNS, inputs=inputs, datasets=[split.identity()]) as path:
        with atomic(path / "embeddings.npy") as temporary:
            out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            embed(model, tokenizer, rows, spans, out, args.batch_size)
            out.flush()
        write_json(
            path / "embeddings_metadata.json", {**description, "ids": split.ids, "texts": task.brief(split.data)}
        )
    print(f"wrote {shape[0]:,} embeddings of {shape[1]:,} dimensions and their ids to {path}")


if __name__ == "__main__":
    main()
