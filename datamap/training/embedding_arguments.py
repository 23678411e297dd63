"""The arguments of extract_embeddings.py: its flags, and which of them a task has not got."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datamap.core.errors import UserError
from datamap.core.flags import Parser, positive_int
from datamap.tasks.base import Task
from datamap.tasks.registry import TASKS, add_task_flags


def build_parser() -> Parser:
    parser = Parser("Turn each example of a dataset into one vector of a trained model.", "extract_embeddings.py")
    parser.add_argument("--model_path", required=True, help="directory that run.py wrote, or a Hub name")
    parser.add_argument(
        "--dataset", help="Hub name, file, directory or demo:... (default: the one the model was trained on)"
    )
    parser.add_argument("--split", help="split to embed (default: the one the model was trained on, else train)")
    parser.add_argument("--max_samples", type=positive_int, help="embed only the first N examples (default: all)")
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
