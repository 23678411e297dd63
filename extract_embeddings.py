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
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.artifacts import check_not_read, recorded_split, recorded_task, stage
from datamap.core.errors import UserError, command_line
from datamap.core.files import atomic, write_json
from datamap.core.splits import Split
from datamap.tasks.registry import task_of
from datamap.training.embedding_arguments import check_task, parse_args
from datamap.training.embeddings import embedder, embedding_spans
from datamap.training.model_files import check_whole_model
from datamap.training.models import load_encoder, usable_length, usable_stride

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OWNS = ("embeddings.npy", "embeddings_metadata.json")

logger = logging.getLogger(__name__)


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
    rows, spans, has_span = embedding_spans(split, tokenizer, args.pooling, args.max_length, args.doc_stride or 0)
    shape = (len(rows), spans.shape[1] * model.config.hidden_size)
    description = describe(args, split, shape, has_span)
    inputs = {"model": args.model_path} if Path(args.model_path).exists() else {}
    from tqdm.auto import tqdm

    with stage(args.output_dir, args, owns=OWNS, inputs=inputs, datasets=[split.identity()]) as path:
        with atomic(path / "embeddings.npy") as temporary:
            out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            order, embed = embedder(model, tokenizer, rows, spans, args.batch_size)
            for first in tqdm(range(0, len(order), args.batch_size), desc="embedding", unit="batch", disable=None):
                places = order[first : first + args.batch_size]
                out[places] = embed(places)
            out.flush()
        write_json(
            path / "embeddings_metadata.json", {**description, "ids": split.ids, "texts": task.brief(split.data)}
        )
    print(f"wrote {shape[0]:,} embeddings of {shape[1]:,} dimensions and their ids to {path}")


if __name__ == "__main__":
    main()
