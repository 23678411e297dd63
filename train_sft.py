"""Fine-tune a language model on chains of thought, with QLoRA, and watch how it learns them.

Reads chains of thought and their repaired ones (generate_thoughts.py), and a causal language model. Writes the adapter
with tokenizer and prompt, sft_data.jsonl (the rows), training_log.csv, training_curves.png, train_metrics.json,
eval_generate.jsonl (answers at the end) and a model card to --output_dir, and with --enable_cartography the training
dynamics of every chain.

    python train_sft.py --config example_configs/sft/mistral_7b_qlora.json --thoughts ./thoughts_output \\
        --reflections ./thoughts_output --output_dir ./sft_output
    python train_sft.py --model ./tiny_chat_model --thoughts ./thoughts_output --effective_batch_size 8 \\
        --warmup_steps 5 --max_steps 20 --no_cuda
"""

from __future__ import annotations

import argparse
import logging
import string
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from datamap.cartography.maps import CARTOGRAPHY_FILES
from datamap.core.artifacts import check_not_read, digest, sole_writer, stage
from datamap.core.errors import command_line, is_main_process
from datamap.core.files import read_json
from datamap.core.parquet import format_of
from datamap.thoughts.prompts import PAIR, PROMPT_FILE, load_prompt
from datamap.thoughts.sft_arguments import AUTO, checkpoint_of, inputs_of, parse_args
from datamap.thoughts.sft_rows import (
    DATA_FILE,
    HELD_OUT,
    TRAINED,
    as_split,
    assign_parts,
    count_parts,
    load_rows,
    pairs_to_answer,
    write_inputs,
)

OWNS = (
    DATA_FILE, PROMPT_FILE, "filter_report.json", "train_metrics.json", "training_log.csv", "training_curves.*",
    "eval_generate.jsonl", "README.md", "adapter_config.json", "adapter_model.*", "checkpoint-[0-9]*",
)

logger = logging.getLogger(__name__)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    template = load_prompt(args.prompt_file, PAIR)
    sources = [args.thoughts, *([args.reflections] if args.reflections else []), args.prompt_file]
    check_not_read(args.output_dir, *sources, *([args.model] if Path(args.model).is_dir() else []))
    with sole_writer(args.output_dir, *[args.cartography_output_dir] * args.enable_cartography):
        fine_tune(args, template)


def fine_tune(args: argparse.Namespace, template: string.Template) -> None:
    rows, template = load_rows(args, template)
    split = as_split(rows, str(Path(args.output_dir) / DATA_FILE))

    from transformers import set_seed

    from datamap.thoughts.batches import set_batches
    from datamap.thoughts.causal_lm import load_causal_lm, load_tokenizer
    from datamap.thoughts.sft_results import write_results
    from datamap.thoughts.sft_training import (
        GeneratedAnswers,
        add_adapter,
        build_trainer,
        check_device,
        check_size,
        encode,
        sft_config,
        train,
    )

    on_gpu = check_device(args)
    tokenizer = load_tokenizer(args.model)
    encoded = encode(rows, tokenizer, template)
    parts, report = assign_parts(args, split, encoded)
    trained, held_out = (np.flatnonzero(parts == kind) for kind in (TRAINED, HELD_OUT))
    chosen = encoded.iloc[trained]
    counts = count_parts(args, rows, parts, chosen)
    pairs, evaluated = pairs_to_answer(args, [rows[row] for row in held_out])
    known = {(rows[row]["premise"], rows[row]["hypothesis"]) for row in trained}
    repeated = sum((pair["premise"], pair["hypothesis"]) in known for pair in pairs)
    if repeated:
        logger.warning(f"{repeated:,} of the {len(pairs):,} pairs to be answered are trained on, too")
    # Who asks what a model was trained on looks for do_train; the rest tells a resumed run that nothing has changed.
    args.do_train, args.rows_digest, args.prompt_digest = True, digest(rows), digest(template.template)
    checkpoint = checkpoint_of(args, split)
    # Now, for the training may delete it.
    resumed = read_json(Path(checkpoint) / "trainer_state.json")["global_step"] if checkpoint else None

    config = sft_config(args, on_gpu, watches=len(held_out) > 0)
    set_seed(args.seed)
    model = load_causal_lm(args.model, tokenizer, load_in_4bit=args.quantization == "4bit", no_cuda=args.no_cuda,
                           trainable=True, attn_implementation=args.attn_implementation)
    check_size(model, min(int(chosen["input_ids"].str.len().max()), args.max_length), on_gpu)
    trainer = build_trainer(args, config, add_adapter(model, args), tokenizer, chosen, encoded.iloc[held_out])
    if args.per_device_train_batch_size == AUTO:
        set_batches(args, trainer)
    answers = None
    if pairs:
        answers = GeneratedAnswers(trainer, template, pairs, args.eval_generate_steps, args.max_new_tokens)
        trainer.add_callback(answers)
    if args.enable_cartography:
        from datamap.cartography.recorder import CartographyCallback

        labels = chosen["label_positions"]
        CartographyCallback(
            list(chosen["ids"]), args.cartography_output_dir, checkpoint=checkpoint,
            title=f"{Path(args.thoughts).name}, {Path(args.model).name}",
            label_positions=labels.where(labels < args.max_length, -1).to_numpy(),  # -1: cut off
            artifact_format=format_of(args),
        ).attach(trainer)
    logger.info(f"training on {len(trained):,} chains of thought, {len(held_out):,} held out")

    datasets = [split, evaluated]
    about: dict[str, Any] = {"inputs": inputs_of(args), "resume": bool(checkpoint)}
    with ExitStack() as stages:
        stages.enter_context(stage(args.output_dir, args, owns=OWNS, datasets=datasets, **about))
        if args.enable_cartography:
            stages.enter_context(stage(args.cartography_output_dir, args, owns=CARTOGRAPHY_FILES,
                                       datasets=datasets[:1], **about))
        if is_main_process():
            write_inputs(args, rows, parts, template, report)
        metrics = train(trainer, answers, checkpoint, on_gpu)
        metrics |= {
            "train_rows": len(trained), "held_out_rows": len(held_out), "rows": counts,
            "truncated_percentage": 100 * counts["truncated"] / len(trained), "device": "gpu" if on_gpu else "cpu",
        }
        trainer.save_model()  # with the tokenizer
        if is_main_process():
            name = f"{evaluated.name} [{evaluated.split}]" if evaluated else None
            facts = {"prompt": template.template, "counts": counts, "evaluated_on": name,
                     "answered_in_training": repeated, "resumed_from_step": resumed}
            write_results(trainer, answers, args, metrics, facts)
    if is_main_process():
        print(f"wrote adapter, metrics and model card to {args.output_dir}"
              + (f", training dynamics and cartography_map.png to {args.cartography_output_dir}"
                 if args.enable_cartography else ""))


if __name__ == "__main__":
    main()
