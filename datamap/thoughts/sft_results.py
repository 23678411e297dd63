"""What a fine-tuning leaves beside its adapter: metrics, the log and its curves, answers, the model card."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamap.core.files import atomic, write_csv, write_json, write_jsonl
from datamap.core.plots import COLORS, new_figure, save_figure

if TYPE_CHECKING:
    import pandas as pd

    from datamap.thoughts.sft_training import GeneratedAnswers, ThoughtTrainer

PACKAGES = ("trl", "transformers", "peft", "bitsandbytes", "torch")
# What became of rows that were neither trained on nor held out.
LEFT_OUT = {
    "filtered": "left out by filters", "too_long": "left out because their prompt alone fills the length limit",
    "not_used": "beyond --max_train_samples",
}
SETTINGS = {
    "longest sequence": "{max_length:,} tokens",
    "rows per step": "{effective_batch_size:,} (rows at once x processes x accumulated: {per_device_train_batch_size} "
                     "x {num_processes} x {gradient_accumulation_steps})",
    "learning rate": "{learning_rate:g}, {lr_scheduler_type}, {warmup_steps:g} warm-up steps",
    "epochs": "{epoch:g}",
    "steps": "{steps:,}",
    "gradient clipping": "{max_grad_norm:g}",
}
TAGS = ("lora", "trl", "sft", "natural-language-inference", "chain-of-thought")


def plot_training(path: Path, log: pd.DataFrame, title: str, caption: str) -> None:
    """Loss, token accuracy, learning rate, and what was generated, against the step; without points no panel."""
    from matplotlib.ticker import MaxNLocator

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
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
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

    import torch

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
    device = "CPU" if metrics["device"] == "cpu" else torch.cuda.get_device_name()
    card = model_card({**facts, "arguments": vars(args), "training": metrics, "versions": versions, "device": device})
    with atomic(path / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


# --- the model card ----------------------------------------------------------------------------------------------


def model_card(facts: Mapping[str, Any]) -> str:
    """README.md with YAML front matter. No license is named: the data, the base model and their owner decide that.

    facts: ``arguments`` (those of train_sft.py), ``prompt`` (the text of the file), ``counts`` (rows by part of
    sft_data.jsonl, ``originals`` and ``reflections`` among those trained on, ``truncated``, ``labels`` cut off),
    ``training`` (train_metrics.json), ``evaluated_on`` (name, or None for held-out rows), ``versions``, ``device``.
    """
    from huggingface_hub import ModelCardData

    arguments, training = facts["arguments"], facts["training"]
    base = arguments["model"]
    name = Path(os.path.abspath(arguments["output_dir"])).name
    named, shown, model = {"base_model": base}, f"`{base}`", base
    if os.path.isdir(base):  # a directory's name is no name on the Hub
        model = Path(base).name
        named, shown = {}, f"the model in the local directory `{model}`"
    tags = [*TAGS, *(["qlora"] if arguments["quantization"] == "4bit" else [])]
    data = ModelCardData(library_name="peft", pipeline_tag="text-generation", tags=tags, **named)
    pairs = f"`{facts['evaluated_on']}`" if facts["evaluated_on"] else "the held-out rows"
    answered = f"Answers were generated for pairs of {pairs}.\n\n" if training["eval_generate"] else ""
    sections = {
        "Use": "The prompt, which `prompt.txt` holds too:\n\n```\n" + facts["prompt"].strip() + "\n```\n\n"
               "It is put as the tokenizer's chat template wants it, else between `[INST]` and `[/INST]`.\n\n```\n"
               f'python evaluate_thoughts.py --model {model} --adapter {name} --premise "..." --hypothesis "..."\n```',
        "Data": _data(facts),
        "Settings": _table(("setting", "value"), _settings(facts)),
        "Measured in this run": answered + _table(("", "value", "over"), _measured(training, facts["device"])),
        "Limits": _limits(facts),
    }
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n"
        f"A LoRA adapter for {shown}. Given a premise and a hypothesis it writes a short chain of "
        "thought and a label as one JSON object: 1 if the hypothesis follows from the premise, 0 if it does not.\n\n"
        + "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items()) + "\n"
    )


def _data(facts: Mapping[str, Any]) -> str:
    counts, training = facts["counts"], facts["training"]
    lines = [
        f"{training['train_rows']:,} chains of thought from `{Path(facts['arguments']['thoughts']).name}`, one per "
        f"pair, all of which come to the true label: {counts['originals']:,} as they were first written, "
        f"{counts['reflections']:,} repaired after. {counts['label_1']:,} have the label 1 and "
        f"{counts['label_0']:,} the label 0. {training['held_out_rows']:,} more rows were held out.",
        *(f"{counts[part]:,} were {text}." for part, text in LEFT_OUT.items() if counts[part]),
        "All of them, and what became of each, are in `sft_data.jsonl`.",
    ]
    return " ".join(lines)


def _settings(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    values = {**facts["arguments"], **facts["training"]}
    return [
        ("quantisation of the frozen weights",
         "NF4, double quantisation, bfloat16 compute" if values["quantization"] == "4bit" else "none"),
        ("LoRA", "r {lora_r}, alpha {lora_alpha}, dropout {lora_dropout:g}, on ".format_map(values)
         + ", ".join(values["lora_target_modules"])),
        *((name, text.format_map(values)) for name, text in SETTINGS.items()),
        ("packing", "yes" if values["packing"] else "no"),
        ("seed", str(values["seed"])),
        ("software", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
    ]


def _measured(training: Mapping[str, Any], device: str) -> list[tuple[str, str, str]]:
    generated, held_out = training["eval_generate"], f"{training['held_out_rows']:,} rows"
    rows = [
        ("training loss", _number(training["train_loss"]), f"nats per token, mean over {training['steps']:,} steps"),
        ("held-out loss", _number(training.get("eval_loss")), f"nats per token, {held_out}"),
        ("held-out token accuracy", _number(training.get("eval_mean_token_accuracy")), "given the gold tokens before"),
    ]
    if generated:
        value = {name: _number(number) for name, number in generated.items()}
        rows += [
            ("accuracy", value["accuracy"], f"{generated['n_labelled']:,} pairs, no answer counts as wrong; 95 % "
             f"Wilson interval {value['accuracy_low']} to {value['accuracy_high']}"),
            ("accuracy among answers", value["accuracy_parsed"], f"{generated['n_labelled_parsed']:,} pairs"),
            ("parse rate", value["parse_rate"], f"{generated['n']:,} pairs"),
            ("majority baseline", value["majority_baseline"], "always the commoner label"),
            *((f"{name}, macro", value[f"{name}_macro"], "mean over the labels")
              for name in ("precision", "recall", "f1")),
        ]
    return [
        *rows,
        ("time", f"{training['train_runtime']:,.0f} s", device),
        ("peak memory", f"{training['peak_memory_gb']:.2f} GB", "of one process"),
        ("trained weights", f"{training['trainable_parameters']:,}", f"of {training['parameters']:,}"),
    ]


def _limits(facts: Mapping[str, Any]) -> str:
    training, counts = facts["training"], facts["counts"]
    generated = training["eval_generate"]
    lines = [
        f"{counts['truncated']:,} of {training['train_rows']:,} rows trained on "
        f"({training['truncated_percentage']:.1f} %) were cut at {facts['arguments']['max_length']:,} tokens, "
        f"{counts['label_cut_off']:,} of them before the label.",
        "It learnt only from chains that came to the true label; that a chain is sound was not checked.",
    ]
    if not generated:
        lines.append("No pairs were answered in this run: how well it does is unknown.")
    else:
        unanswered = generated["n"] - round(generated["parse_rate"] * generated["n"])
        lines.append(f"{unanswered:,} of {generated['n']:,} answers held no label that could be read.")
        if facts["evaluated_on"] is None:
            lines.append("The pairs that were answered are a biased sample: only such whose chain had come out right, "
                         "or had been repaired.")
        if generated["accuracy_low"] is not None and generated["accuracy_low"] <= generated["majority_baseline"]:
            lines.append("Its accuracy cannot be told from that of always giving the commoner label.")
        if facts["answered_in_training"]:
            lines.append(f"{facts['answered_in_training']:,} of the answered pairs were trained on.")
    if facts["resumed_from_step"]:
        lines.append(f"Time and memory are those since the run was resumed at step {facts['resumed_from_step']:,}.")
    lines.append("It was trained on one kind of data and prompt; what it does with others was not measured.")
    return "\n".join(f"- {line}" for line in lines)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
