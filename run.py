"""Train or evaluate one model, and watch how it learns each example.

Reads a dataset, and the cartography, cluster or id files that filters and curriculum name. Writes the model, metrics
and predictions to --output_dir, and with --enable_cartography the training dynamics and the data map.

    python run.py --do_train --do_eval --enable_cartography --num_train_epochs 5 --output_dir ./trainer_output
    python run.py --do_train --do_eval --enable_cartography --model tiny --dataset demo:clinical --max_length 128 \\
        --doc_stride 32 --num_train_epochs 5 --no_cuda
    python run.py --do_train --do_eval --task classification --model lstm_reader --dataset demo:stories \\
        --num_train_epochs 10 --eval_split validation validB test --slice_by category num_actors --no_cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from datamap.cartography.maps import counted_map
from datamap.core.artifacts import sole_writer, stage
from datamap.core.errors import command_line, is_main_process
from datamap.core.files import write_csv
from datamap.detection.out_of_fold import OUT_OF_FOLD_FILE
from datamap.suites.cross_fit import forget, said_by, train_folds
from datamap.training.arguments import EVALUATION_FILES, SIZES, inputs_of, map_split_dir, parse_args
from datamap.training.data import load_data
from datamap.training.evaluation import evaluate_splits
from datamap.training.models import load_model, usable_length, usable_stride
from datamap.training.resuming import checkpoint_to_resume
from datamap.training.running import (
    ask_about_held_out,
    build_trainer,
    said_by_head,
    train_model,
    training_arguments,
    training_stages,
    write_planted_errors,
)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    maps = [args.cartography_output_dir] * args.enable_cartography + [*filter(None, [map_split_dir(args)])]
    with sole_writer(args.output_dir, *maps):
        train_and_evaluate(args)


def train_and_evaluate(args: argparse.Namespace) -> None:
    data = load_data(args)
    checkpoint = None
    if data.train is not None:
        args.rows_digest = data.rows_digest()  # tells a resumed run that nothing has changed
        checkpoint = checkpoint_to_resume(args, data.train)
    folds = []
    if hasattr(args, "cross_fit") and data.held_out is None:
        write_planted_errors(args, data)  # the folds train on it too
        folds = train_folds(args, data)

    from transformers import set_seed

    arguments = training_arguments(args, data.task)
    set_seed(args.seed)
    sizes = {size: getattr(args, size) for size in SIZES}
    model, tokenizer = load_model(args.model, data.task, data.loaded, args.max_length, sizes)
    data.match_labels(model.config)
    args.max_length = usable_length(args.max_length, model, tokenizer)
    if "doc_stride" in data.task.flags:
        args.doc_stride = usable_stride(args.doc_stride, args.max_length)  # here once, not at every tokenisation
    trainer = build_trainer(args, arguments, data, model, tokenizer, checkpoint)

    said = said_by_head(trainer, args, data) if getattr(args, "cross_fit_head", False) else None
    if args.do_train:
        with training_stages(args, data, resumes=checkpoint is not None):
            train_model(trainer, data, checkpoint)
            if folds:
                said = said_by(folds, data)
            if said is not None:
                write_csv(Path(args.cartography_output_dir) / OUT_OF_FOLD_FILE, said)
    if data.held_out is not None:
        ask_about_held_out(trainer, args, data)
    if args.do_eval:
        # A run of its own: when it fails, the model is as whole as before.
        evaluating, read = {**vars(args), "do_train": False}, [split.identity() for split in data.evaluated]
        with stage(args.output_dir, evaluating, owns=EVALUATION_FILES, inputs=inputs_of(args), datasets=read):
            evaluate_splits(trainer, args, data)
    if folds:
        forget(folds)
    if is_main_process():
        if args.enable_cartography and data.held_out is None:
            print(f"data map: {counted_map(args.cartography_output_dir)}")
        wrote = ["the model"] * args.do_train + ["metrics and predictions (eval_*)"] * args.do_eval
        wrote += ["top_epochs.json"] * bool(args.keep_top_epochs)
        print(f"wrote {', '.join(wrote)} to {args.output_dir}"
              + (f", training dynamics{', out_of_fold.csv' * (said is not None)} and cartography_map.png to "
                 f"{args.cartography_output_dir}" if args.enable_cartography else "")
              + (f", the map of {args.map_split} to {map_split_dir(args)}" if data.mapped is not None else ""))


if __name__ == "__main__":
    main()
