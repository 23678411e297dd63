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
import dataclasses
import logging
import math
import string
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.analysis.filter_config import apply_filters, filter_inputs
from datamap.cartography.maps import CARTOGRAPHY_FILES
from datamap.core.artifacts import check_not_read, check_writable, digest, model_meta, stage
from datamap.core.errors import UserError, command_line, is_main_process, name_a_few
from datamap.core.files import atomic, read_json, write_csv, write_json, write_jsonl
from datamap.core.splits import Split, default_eval_split, load_split
from datamap.tasks.registry import get_task
from datamap.thoughts.data import load_pairs, read_reflections, read_thoughts, training_rows
from datamap.thoughts.prompts import PAIR, load_prompt
from datamap.thoughts.sft_arguments import RESUMED_WITH, parse_args
from datamap.training.checkpoints import checkpoint_to_resume

if TYPE_CHECKING:
    import pandas as pd

    from datamap.thoughts.sft_training import Encoded, GeneratedAnswers, ThoughtTrainer

DATA_FILE, PROMPT_FILE = "sft_data.jsonl", "prompt.txt"
OWNS = (
    DATA_FILE, PROMPT_FILE, "filter_report.json", "train_metrics.json", "training_log.csv", "training_curves.png",
    "eval_generate.jsonl", "README.md", "adapter_config.json", "adapter_model.*", "checkpoint-[0-9]*",
)
PACKAGES = ("trl", "transformers", "peft", "bitsandbytes", "torch")
# What becomes of a row.
TRAINED, HELD_OUT, FILTERED, TOO_LONG, NOT_USED = "train", "held_out", "filtered", "too_long", "not_used"

logger = logging.getLogger(__name__)


# --- rows ---------------------------------------------------------------------------------------------------------


def load_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    thoughts = read_thoughts(args.thoughts)
    beside = Path(args.thoughts) / "reflections.jsonl"
    if not args.reflections and beside.exists() and beside.stat().st_size:
        logger.warning(f"{beside} is not used: --reflections {args.thoughts} takes the repaired chains too")
    return training_rows(thoughts, read_reflections(args.reflections) if args.reflections else [])


def as_split(rows: Sequence[Mapping[str, Any]], name: str) -> Split:
    """All rows as the NLI dataset that analyses and filters will find in the file ``name``."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / DATA_FILE
        write_jsonl(file, rows)
        task = get_task("nli", text_columns=["premise", "hypothesis"], label_column="label")
        return dataclasses.replace(load_split(str(file), "train", task), name=name)


def held_out_rows(ids: Sequence[str], fraction: float, seed: int) -> list[int]:
    """The rows to hold out, at least one unless ``fraction`` is 0: drawn from the sorted ids, whatever their order."""
    if not fraction:
        return []
    count = max(1, round(fraction * len(ids)))
    if count >= len(ids):
        raise UserError(f"--eval_fraction {fraction:g} holds out {count:,} of {len(ids):,} rows and leaves none to "
                        "train on; lower it, or give more chains of thought")
    order = sorted(range(len(ids)), key=lambda row: ids[row])
    return sorted(order[place] for place in np.random.default_rng(seed).permutation(len(ids))[:count])


def assign_parts(
    args: argparse.Namespace, split: Split, encoded: Encoded
) -> tuple[list[str], dict[str, Any] | None]:
    """What becomes of every row, and the report of the filters.

    The first --max_train_samples rows are used; of these some are held out, before any filter, so that runs with and
    without filters are evaluated on the same.
    """
    ids = split.ids
    used = len(ids) if args.max_train_samples is None else min(args.max_train_samples, len(ids))
    parts = [TRAINED] * used + [NOT_USED] * (len(ids) - used)
    for row in held_out_rows(ids[:used], args.eval_fraction, args.seed):
        parts[row] = HELD_OUT
    too_long = np.flatnonzero(encoded.prompt_lengths >= args.max_length)
    if named := [ids[row] for row in too_long if parts[row] != NOT_USED]:
        logger.warning(f"{len(named):,} rows ({name_a_few(named)}) are left out: their prompt alone has "
                       f"--max_length {args.max_length:,} tokens or more")
    for row in too_long.tolist():
        parts[row] = TOO_LONG if parts[row] != NOT_USED else NOT_USED
    report = None
    if args.filters:
        rows = [row for row, part in enumerate(parts) if part == TRAINED]
        # The fingerprint stays that of all rows: files about them are recognised whatever is held out.
        candidates = dataclasses.replace(split, data=split.data.select(rows))
        kept, report = apply_filters(candidates, args.filters, seed=args.seed, return_report=True)
        stays = set(kept["id"][:])
        for row in rows:
            parts[row] = TRAINED if ids[row] in stays else FILTERED
    if TRAINED not in parts:
        found = ", ".join(f"{count:,} {part}" for part, count in Counter(parts).items())
        raise UserError(f"no row is left to train on: {found}; give more chains of thought, or a larger --max_length")
    return parts, report


def pairs_to_answer(
    args: argparse.Namespace, held_out: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], Split | None]:
    """The pairs that are answered while training: those of --eval_dataset, else the held-out rows."""
    if args.eval_dataset is None:
        if held_out:
            logger.warning("pairs of the held-out rows are answered, a biased sample: only such whose chain was right "
                           "or was repaired; --eval_dataset names others")
        return [dict(row) for row in held_out[: args.eval_samples]], None
    split = load_pairs(
        args.eval_dataset, args.eval_split or default_eval_split(args.eval_dataset), args.label_map, args.eval_samples,
        args.text_columns or (), args.label_column,
    )
    pairs = [pair for pair in split.data.to_list() if pair["label"] is not None]
    if not pairs:
        raise UserError(f"{args.eval_dataset} [{split.split}]: none of the first {args.eval_samples:,} pairs has a "
                        "label; name a labelled split with --eval_split")
    return pairs, split


def count_parts(
    args: argparse.Namespace, rows: Sequence[Mapping[str, Any]], parts: Sequence[str], train: Encoded
) -> dict[str, int]:
    trained = [row for row, part in zip(rows, parts, strict=True) if part == TRAINED]
    cut = int((train.lengths > args.max_length).sum())
    label_cut_off = int((train.cut_labels(args.max_length) < 0).sum())
    if label_cut_off == len(trained):
        raise UserError(f"every row is cut before its label: --max_length is {args.max_length:,}, the rows have up to "
                        f"{train.lengths.max():,} tokens; raise it")
    if cut:
        named = [train.ids[row] for row in np.flatnonzero(train.lengths > args.max_length)]
        logger.warning(f"{cut:,} of {len(trained):,} rows ({100 * cut / len(trained):.1f} %) are longer than "
                       f"--max_length {args.max_length:,} tokens (up to {train.lengths.max():,}) and are cut "
                       f"({name_a_few(named)}), {label_cut_off:,} of them before their label"
                       + ", which leaves these out of the data map" * args.enable_cartography)
    sources, labels = Counter(row["source"] for row in trained), Counter(row["label"] for row in trained)
    return {
        **{part: parts.count(part) for part in (HELD_OUT, FILTERED, TOO_LONG, NOT_USED)},
        "originals": sources["original"], "reflections": sources["reflection"],
        "label_0": labels[0], "label_1": labels[1], "truncated": cut, "label_cut_off": label_cut_off,
    }


# --- resuming -----------------------------------------------------------------------------------------------------


def checkpoint_of(args: argparse.Namespace, split: Split) -> str | None:
    view = {**vars(args), "keep_top_epochs": None, "dataset": args.thoughts, "train_split": "train"}
    checkpoint = checkpoint_to_resume(argparse.Namespace(**view), split)
    if checkpoint is None:
        return None
    before = (model_meta(args.output_dir) or {}).get("arguments", {})
    for name in RESUMED_WITH:
        if before and before.get(name) != getattr(args, name, None):
            what = {"rows_digest": "other chains of thought", "prompt_digest": "another prompt"}.get(
                name, f"{name} {before.get(name)}, not {getattr(args, name, None)}"
            )
            raise UserError(f"{args.output_dir} was trained with {what}: resume with what it was started with, or "
                            "start again with --overwrite")
    return checkpoint


def inputs_of(args: argparse.Namespace) -> dict[str, str | None]:
    inputs = {"thoughts": args.thoughts, "reflections": args.reflections, "prompt": args.prompt_file,
              "model": args.model if Path(args.model).is_dir() else None}
    return inputs | filter_inputs(args.filters)


# --- training -----------------------------------------------------------------------------------------------------


def train(
    trainer: ThoughtTrainer, answers: GeneratedAnswers | None, checkpoint: str | None, on_gpu: bool
) -> dict[str, Any]:
    """Train, evaluate and answer a last time; returns the numbers of train_metrics.json."""
    from datamap.thoughts.sft_training import mean_loss, peak_memory

    result = trainer.train(resume_from_checkpoint=checkpoint)
    model = trainer.model
    # The Trainer leaves losses that are not numbers out of its mean, so only the weights can tell.
    if not all(bool(weights.isfinite().all()) for weights in model.parameters() if weights.requires_grad):
        raise UserError("training diverged: weights are no numbers any more; lower --learning_rate")
    history = trainer.state.log_history
    evaluated: dict[str, float] = {}
    if trainer.eval_dataset is not None:
        last = [logged for logged in history if "eval_loss" in logged and logged["step"] == trainer.state.global_step]
        evaluated = dict(last[-1]) if last else trainer.evaluate()
    if answers is not None:
        answers.measure()
    trained, everything = model.get_nb_trainable_parameters()
    return {
        **{name: value for name, value in result.metrics.items() if name not in ("train_loss", "total_flos")},
        "train_loss": mean_loss(trainer.state.log_history), "steps": trainer.state.global_step,
        **{name: evaluated[name] for name in ("eval_loss", "eval_mean_token_accuracy") if name in evaluated},
        "eval_generate": answers.metrics if answers is not None else None,
        "parameters": everything, "trainable_parameters": trained, "peak_memory_gb": peak_memory(on_gpu),
        "num_tokens": trainer._total_train_tokens,
    }


def plot_training(path: Path, log: pd.DataFrame, title: str, caption: str) -> None:
    """Loss, token accuracy, learning rate, and what was generated, against the step; without points no panel."""
    from matplotlib.ticker import MaxNLocator

    from datamap.core.plots import COLORS, new_figure, save_figure

    panels: list[tuple[str, list[tuple[str, str]]]] = [
        ("loss (nats per token)", [("loss", "training"), ("eval_loss", "held out")]),
        ("token accuracy (share)", [("mean_token_accuracy", "training"), ("eval_mean_token_accuracy", "held out")]),
        ("learning rate", [("learning_rate", "")]),
        ("answered pairs (share)", [("eval_generate_accuracy", "accuracy"), ("eval_generate_f1_macro", "F1, macro"),
                                    ("eval_generate_parse_rate", "parse rate")]),
    ]
    panels = [(label, [(column, name) for column, name in lines if column in log and log[column].notna().any()])
              for label, lines in panels]
    panels = [panel for panel in panels if panel[1]]
    figure, axes = new_figure(3.4 * min(len(panels), 2), 2.6 * math.ceil(len(panels) / 2) + 0.7,
                              math.ceil(len(panels) / 2), min(len(panels), 2), squeeze=False)
    for axis, (label, lines) in zip(axes.flat, panels, strict=False):
        for place, (column, name) in enumerate(lines):
            points = log[["step", column]].dropna()
            few = len(points) <= 30
            axis.plot(points["step"], points[column], color=COLORS[place], label=name, linewidth=1.2,
                      marker=("o", "s", "^")[place] if few or column.startswith("eval_") else None, markersize=3,
                      linestyle=("-", "--", ":")[place])
        if "(share)" in label:
            axis.set_ylim(-0.03, 1.03)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylabel(label, fontsize=8)
        axis.tick_params(labelsize=7)
        if len(lines) > 1:
            axis.legend(fontsize=7, frameon=False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    save_figure(figure, path, title, caption)


def write_results(
    trainer: ThoughtTrainer, answers: GeneratedAnswers | None, args: argparse.Namespace, metrics: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    from importlib import metadata

    from datamap.thoughts.model_card import model_card
    from datamap.thoughts.sft_training import device_name
    from datamap.training.callbacks import training_log

    path = Path(args.output_dir)
    write_json(path / "train_metrics.json", metrics)
    log = training_log(trainer.state.log_history)
    write_csv(path / "training_log.csv", log)
    answered = f", {len(answers.pairs):,} pairs of {facts['evaluated_on'] or 'them'} answered" if answers else ""
    caption = (f"n = {metrics['train_rows']:,} rows trained on, {metrics['held_out_rows']:,} held out{answered}; "
               f"{args.effective_batch_size:,} rows per step; a training point is the mean since the one before it")
    title = f"Fine-tuning {Path(args.model).name} on chains of thought"
    plot_training(path / "training_curves.png", log, title, caption)
    if answers is not None:
        write_jsonl(path / "eval_generate.jsonl", answers.answers)
    used = [name for name in PACKAGES if args.quantization == "4bit" or name != "bitsandbytes"]
    versions = {name: metadata.version(name) for name in used}
    device = "CPU" if metrics["device"] == "cpu" else device_name()
    card = model_card({**facts, "arguments": vars(args), "training": metrics, "versions": versions, "device": device})
    with atomic(path / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


def write_inputs(args: argparse.Namespace, rows: Sequence[Mapping[str, Any]], parts: Sequence[str],
                 template: string.Template, report: dict[str, Any] | None) -> None:
    """The rows with what becomes of them, the prompt and the report of the filters: before anything is trained."""
    path = Path(args.output_dir)
    write_jsonl(path / DATA_FILE, [{**row, "part": part} for row, part in zip(rows, parts, strict=True)])
    with atomic(path / PROMPT_FILE) as temporary:
        temporary.write_text(template.template, encoding="utf-8")
    if report is not None:
        write_json(path / "filter_report.json", report)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    template = load_prompt(args.prompt_file, PAIR)
    check_writable(args.output_dir)
    sources = [args.thoughts, *([args.reflections] if args.reflections else []), args.prompt_file]
    check_not_read(args.output_dir, *sources, *([args.model] if Path(args.model).is_dir() else []))
    if args.enable_cartography:
        check_writable(args.cartography_output_dir)
    rows = load_rows(args)
    split = as_split(rows, str(Path(args.output_dir) / DATA_FILE))

    from datamap.thoughts.causal_lm import load_causal_lm, load_tokenizer
    from datamap.thoughts.sft_training import add_adapter, build_trainer, check_device, check_size, encode, sft_config

    on_gpu = check_device(args)
    tokenizer = load_tokenizer(args.model)
    encoded = encode(rows, tokenizer, template)
    parts, report = assign_parts(args, split, encoded)
    trained, held_out = ([row for row, part in enumerate(parts) if part == kind] for kind in (TRAINED, HELD_OUT))
    chosen = encoded.select(trained)
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

    config = sft_config(args, on_gpu, watches=bool(held_out))

    from transformers import set_seed

    set_seed(args.seed)
    model = load_causal_lm(args.model, tokenizer, load_in_4bit=args.quantization == "4bit", no_cuda=args.no_cuda,
                           trainable=True, attn_implementation=args.attn_implementation)
    check_size(model, min(int(chosen.lengths.max()), args.max_length), on_gpu)
    trainer = build_trainer(args, config, add_adapter(model, args), tokenizer, chosen, encoded.select(held_out))
    answers = None
    if pairs:
        from datamap.thoughts.sft_training import GeneratedAnswers

        answers = GeneratedAnswers(trainer, tokenizer, template, pairs, args.eval_generate_steps,
                                   config.per_device_eval_batch_size, args.max_new_tokens)
        trainer.add_callback(answers)
    if args.enable_cartography:
        from datamap.cartography.recorder import CartographyCallback

        CartographyCallback(
            chosen.ids, args.cartography_output_dir, checkpoint=checkpoint,
            title=f"{Path(args.thoughts).name}, {Path(args.model).name}",
            label_positions=chosen.cut_labels(args.max_length),
        ).attach(trainer)
    logger.info(f"training on {len(trained):,} chains of thought, {len(held_out):,} held out")

    identities = [split.identity(), *([evaluated.identity()] if evaluated else [])]
    with ExitStack() as stack:
        run = stage(args.output_dir, args, owns=OWNS, inputs=inputs_of(args), datasets=identities,
                    resume=bool(checkpoint))
        stack.enter_context(run)
        if args.enable_cartography:
            run = stage(args.cartography_output_dir, args, owns=CARTOGRAPHY_FILES, inputs=inputs_of(args),
                        datasets=identities[:1], resume=bool(checkpoint))
            stack.enter_context(run)
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
