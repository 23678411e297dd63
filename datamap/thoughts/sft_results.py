"""What a fine-tuning leaves beside its adapter: metrics, the log and its curves, answers, the model card."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamap.core.files import atomic, write_csv, write_json, write_jsonl
from datamap.core.plots import COLORS, new_figure, save_figure

if TYPE_CHECKING:
    import pandas as pd

    from datamap.thoughts.sft_training import GeneratedAnswers, ThoughtTrainer

PACKAGES = ("trl", "transformers", "peft", "bitsandbytes", "torch")
TAGS = ("lora", "trl", "sft", "natural-language-inference", "chain-of-thought")
CARD = Path(__file__).with_name("model_card.jinja")


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
    known = set(log.columns[log.notna().any()])
    panels = [(label, there) for label, lines in panels if (there := [line for line in lines if line[0] in known])]
    rows, columns = math.ceil(len(panels) / 2), min(len(panels), 2)
    figure, axes = new_figure(3.4 * columns, 2.6 * rows + 0.7, rows, columns, squeeze=False)
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
    for axis in axes.flat[len(panels) :]:
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


def model_card(facts: Mapping[str, Any]) -> str:
    """README.md, of which the text stands in ``CARD``, with YAML front matter.

    No license is named: the data, the base model and their owner decide that.
    facts: ``arguments`` (those of train_sft.py), ``prompt`` (the text of the file), ``counts`` (rows by part of
    sft_data.jsonl, ``originals`` and ``reflections`` among those trained on, ``truncated``, ``labels`` cut off),
    ``training`` (train_metrics.json), ``evaluated_on`` (name, or None for held-out rows), ``versions``, ``device``.
    """
    from huggingface_hub import ModelCard, ModelCardData

    arguments, generated = facts["arguments"], facts["training"]["eval_generate"]
    base, tags = arguments["model"], [*TAGS, *(["qlora"] if arguments["quantization"] == "4bit" else [])]
    local = os.path.isdir(base)  # a directory's name is no name on the Hub
    data = ModelCardData(library_name="peft", pipeline_tag="text-generation", tags=tags,
                         **({} if local else {"base_model": base}))
    card = ModelCard.from_template(
        data, str(CARD), **facts, local=local, model=Path(base).name if local else base,
        name=Path(os.path.abspath(arguments["output_dir"])).name, thoughts=Path(arguments["thoughts"]).name,
        unanswered=generated and generated["n"] - round(generated["parse_rate"] * generated["n"]),
        n="{:,}".format, g="{:g}".format, cell=lambda text: text.replace("|", "\\|"),
        share=lambda value: "not measured" if value is None else f"{value:.3f}",
    )
    return card.content + "\n"
