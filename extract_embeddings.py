"""Turn each example of a dataset into one vector of a trained model.

Reads a model that run.py trained (or any question-answering checkpoint) and the dataset. Writes embeddings.npy
(float32, examples x dimensions, in dataset order) and embeddings_metadata.json (ids in row order, and their texts).

    python extract_embeddings.py --model_path ./trainer_output --output_dir ./embeddings_output
    python extract_embeddings.py --model_path ./trainer_output --dataset demo:clinical --max_samples 100 --no_cuda

The vector of a question-answering example is [CLS vector ; mean of the answer-span token vectors] of the last hidden
layer, from the first window that holds the answer. An unanswerable example, and one whose answer is in no window or
not at its offset, gives the CLS vector of its first window twice.
"""

from __future__ import annotations

import argparse
import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from artifacts import atomic, check_not_read, check_whole_model, recorded_split, stage, write_json
from helpers import Parser, Split, UserError, command_line, positive_int

if TYPE_CHECKING:
    import datasets
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks import QuestionAnswering

OWNS = ("embeddings.npy", "embeddings_metadata.json")
POOLING = "cls_and_answer_mean"

logger = logging.getLogger(__name__)


def choose_windows(windows: datasets.Dataset, aligned: np.ndarray) -> tuple[datasets.Dataset, np.ndarray]:
    """One window per example, in example order, and whether its labels mark an answer, (N,) bool.

    The first window that holds the answer, else the first. ``aligned`` (N,): whether the answer stands at its offset;
    where it does not, there is no span to look for.
    """
    example = np.asarray(windows["example_index"][:])
    holds = np.asarray(windows["start_positions"][:]) != _cls_positions(windows)
    holds &= np.asarray(windows["counts"][:]) & aligned[example]
    # Example by example, windows with the answer first, each kind in the order of the context.
    order = np.lexsort((~holds, example))
    first = order[np.unique(example[order], return_index=True)[1]]
    if len(first) != len(aligned):
        raise ValueError(f"{len(aligned)} examples, but windows of {len(first)}")
    return windows.select(first), holds[first]


def _cls_positions(windows: datasets.Dataset) -> np.ndarray:
    from tasks import NO_ANSWER

    return np.array([roles.index(NO_ANSWER) for roles in windows["token_roles"][:]], dtype=np.int64)


def pool(hidden: torch.Tensor, cls: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """(B, L, H) last hidden states to (B, 2 H) float32: vector at ``cls``, mean of the vectors ``start`` to ``end``.

    The three positions are (B,), ``end`` is included. Padding lies outside every span and so has no weight.
    """
    import torch

    hidden = hidden.float()
    rows = torch.arange(len(hidden), device=hidden.device)
    position = torch.arange(hidden.shape[1], device=hidden.device)
    inside = ((position >= start[:, None]) & (position <= end[:, None])).float()
    span = torch.einsum("bl,blh->bh", inside, hidden) / inside.sum(dim=1, keepdim=True)
    return torch.cat([hidden[rows, cls], span], dim=1)


def embed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: datasets.Dataset,
    has_span: np.ndarray,
    out: np.ndarray,
    batch_size: int,
) -> None:
    """Fill ``out`` (N, 2 H) with the vectors of N windows, one per example, on the device of ``model``.

    Batches go from long to short, so that little is padded and memory runs out at once or never.
    """
    import torch
    from tqdm.auto import tqdm

    accepted = inspect.signature(model.forward).parameters
    names = [name for name in tokenizer.model_input_names if name in windows.column_names and name in accepted]
    cls = _cls_positions(windows)
    start = np.where(has_span, windows["start_positions"][:], cls)
    end = np.where(has_span, windows["end_positions"][:], cls)
    order = np.argsort(-np.asarray(windows["length"][:]), kind="stable")
    device = model.device
    model.eval()
    batches = range(0, len(order), batch_size)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        for first in tqdm(batches, desc="embedding", unit="batch", disable=None):
            rows = order[first : first + batch_size]
            chosen = windows[rows]
            batch = tokenizer.pad({name: chosen[name] for name in names}, return_tensors="pt").to(device)
            hidden = model(**batch).last_hidden_state
            positions = (torch.from_numpy(where[rows]).to(device) for where in (cls, start, end))
            vectors = pool(hidden, *positions).cpu().numpy()
            if not np.isfinite(vectors).all():
                raise UserError("the model gives NaN or infinite vectors: its training diverged; train it again")
            out[rows] = vectors


# --- model and data ----------------------------------------------------------------------------------------------


def load_model(name: str, no_cuda: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Encoder and tokenizer of a checkpoint; its task head is left out."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as library_logging

    verbosity = library_logging.get_verbosity()
    library_logging.set_verbosity_error()  # it would report at length that the head is not used
    library_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, loading = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load the model {name!r} ({reason}); give a directory that run.py wrote, or a model of the Hub"
        ) from error
    finally:
        library_logging.set_verbosity(verbosity)
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(f"model {name!r} lacks {len(missing):,} weights of its encoder ({missing[0]}, ...)")
    return model.to("cuda" if torch.cuda.is_available() and not no_cuda else "cpu"), tokenizer


def texts(split: Split) -> dict[str, list[str | None]]:
    """What was embedded, to be read beside the clusters: question and first gold answer (None: unanswerable)."""
    answers = [answer["text"][0] if answer["text"] else None for answer in split.data["answers"][:]]
    return {"question": split.data["question"][:], "answer": answers}


def usable_length(asked: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    positions = getattr(model.config, "max_position_embeddings", None) or asked
    usable = min(asked, positions, tokenizer.model_max_length)
    if usable < asked:
        logger.warning(f"--max_length lowered from {asked} to {usable}: the model has no more positions")
    return usable


def usable_stride(asked: int, max_length: int) -> int:
    if asked > max_length // 2:
        logger.warning(f"--doc_stride lowered from {asked} to {max_length // 2}, half of --max_length")
    return min(asked, max_length // 2)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Turn each example of a dataset into one vector of a trained model.")
    parser.add_argument("--model_path", required=True, help="directory that run.py wrote, or a Hub name")
    parser.add_argument(
        "--dataset", help="Hub name, file, directory or demo:... (default: the one the model was trained on)"
    )
    parser.add_argument("--split", help="split to embed (default: the one the model was trained on, else train)")
    parser.add_argument("--max_samples", type=positive_int, help="embed only the first N examples (default: all)")
    parser.add_argument("--task", default="qa", help="what the dataset holds")
    parser.add_argument("--max_length", type=positive_int, default=512, help="tokens in a window")
    parser.add_argument("--doc_stride", type=positive_int, default=128, help="tokens that two windows share")
    parser.add_argument("--batch_size", type=positive_int, default=32, help="windows in a batch")
    parser.add_argument("--output_dir", default="./embeddings_output", help="where the files go")
    parser.add_switch("--no_cuda", help="use the CPU even where there is a GPU (on a GPU: bfloat16)")
    return parser.parse_args(argv)


def describe(args: argparse.Namespace, split: Split, shape: tuple[int, ...], has_span: np.ndarray) -> dict[str, Any]:
    identity = split.identity()
    unanswerable = sum(not answer["text"] for answer in split.data["answers"][:])
    return {
        "model": args.model_path,
        "task": args.task,
        "pooling": POOLING,
        "dataset": identity["dataset"],
        "split": identity["split"],
        "fingerprint": identity["fingerprint"],
        "max_length": args.max_length,
        "doc_stride": args.doc_stride,
        "num_rows": shape[0],
        "num_dims": shape[1],
        "num_unanswerable": unanswerable,
        "num_answer_not_found": int(np.sum(~has_span)) - unanswerable,
    }


def load_inputs(args: argparse.Namespace) -> tuple[QuestionAnswering, Split, PreTrainedModel, PreTrainedTokenizerBase]:
    from tasks import get_task

    task = get_task(args.task)
    if Path(args.model_path).exists():
        check_whole_model(args.model_path)
        check_not_read(args.output_dir, args.model_path)
    elif args.model_path.startswith((".", "/", "~")):
        raise UserError(f"--model_path {args.model_path}: no such directory")
    split = recorded_split(args.model_path, args.dataset, args.split, task, args.max_samples)
    if split is None:
        raise UserError(f"{args.model_path} does not record the dataset it was trained on; name it with --dataset")
    logger.info(f"embedding {len(split.data):,} examples of {split.name} [{split.split}]")
    return task, split, *load_model(args.model_path, args.no_cuda)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    task, split, model, tokenizer = load_inputs(args)
    args.max_length = usable_length(args.max_length, model, tokenizer)
    args.doc_stride = usable_stride(args.doc_stride, args.max_length)
    windows = task.features(split.data, tokenizer, max_length=args.max_length, doc_stride=args.doc_stride)
    windows, has_span = choose_windows(windows, task.is_aligned(split.data))

    shape = (len(windows), 2 * model.config.hidden_size)
    description = describe(args, split, shape, has_span)
    if not has_span.all():
        logger.info(
            f"{np.sum(~has_span):,} of {shape[0]:,} examples give their CLS vector twice: "
            f"{description['num_unanswerable']:,} are unanswerable, {description['num_answer_not_found']:,} have "
            "their answer in no window or not at its offset"
        )
    inputs = {"model": args.model_path} if Path(args.model_path).exists() else {}
    with stage(args.output_dir, args, owns=OWNS, inputs=inputs, datasets=[split.identity()]) as path:
        with atomic(path / "embeddings.npy") as temporary:
            out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            embed(model, tokenizer, windows, has_span, out, args.batch_size)
            out.flush()
        write_json(
            path / "embeddings_metadata.json", {**description, "ids": split.ids, "texts": texts(split)}
        )
    print(f"wrote {shape[0]:,} embeddings of {shape[1]:,} dimensions and their ids to {path}")


if __name__ == "__main__":
    main()
