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

from collections.abc import Sequence
from pathlib import Path

from datamap.core.artifacts import stage
from datamap.core.errors import command_line
from datamap.core.files import write_json
from datamap.training.embeddings import build_parser, describe, embedding_spans, load_inputs, write_embeddings
from datamap.training.models import usable_length, usable_stride

OWNS = ("embeddings.npy", "embeddings_metadata.json")


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    split, model, tokenizer = load_inputs(args)
    task = split.task
    args.max_length = usable_length(args.max_length, model, tokenizer)
    args.doc_stride = usable_stride(args.doc_stride, args.max_length) if "doc_stride" in task.flags else None
    rows, spans, has_span = embedding_spans(split, tokenizer, args.pooling, args.max_length, args.doc_stride or 0)
    inputs = {"model": args.model_path} if Path(args.model_path).exists() else {}
    with stage(args.output_dir, args, owns=OWNS, inputs=inputs, datasets=[split]) as path:
        shape = write_embeddings(path / "embeddings.npy", model, tokenizer, rows, spans, args.batch_size)
        description = describe(args, split, shape, has_span)
        write_json(path / "embeddings_metadata.json",
                   {**description, "ids": split.ids, "texts": task.brief(split.data)})
    print(f"wrote {shape[0]:,} embeddings of {shape[1]:,} dimensions and their ids to {path}")


if __name__ == "__main__":
    main()
