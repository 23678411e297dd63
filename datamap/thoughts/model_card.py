"""The model card of a fine-tuned adapter: Hub metadata, and what this run has trained on, with and measured."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TAGS = ("lora", "trl", "sft", "natural-language-inference", "chain-of-thought")


def model_card(facts: Mapping[str, Any]) -> str:
    """README.md with YAML front matter. No license is named: the data, the base model and their owner decide that.

    facts: ``arguments`` (those of train_sft.py), ``prompt`` (the text of the file), ``counts`` (rows by part of
    sft_data.jsonl, ``originals`` and ``reflections`` among those trained on, ``truncated``, ``labels`` cut off),
    ``training`` (train_metrics.json), ``evaluated_on`` (name, or None for held-out rows), ``versions``, ``device``.
    """
    from huggingface_hub import ModelCardData

    arguments = facts["arguments"]
    base = arguments["model"]
    is_local = os.path.isdir(base)
    tags = [*TAGS, *(["qlora"] if arguments["quantization"] == "4bit" else [])]
    # A directory's name is no name on the Hub.
    named = {} if is_local else {"base_model": base}
    data = ModelCardData(library_name="peft", pipeline_tag="text-generation", tags=tags, **named)
    name = Path(os.path.abspath(arguments["output_dir"])).name
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        f"A LoRA adapter for {_base(base, is_local)}. Given a premise and a hypothesis it writes a short chain of "
        "thought and a label as one JSON object: 1 if the hypothesis follows from the premise, 0 if it does not.",
        "## Use", _use(facts, base, is_local, name),
        "## Data", _data(facts),
        "## Settings", _settings(facts),
        "## Measured in this run", _measured(facts),
        "## Limits", _limits(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _base(base: str, is_local: bool) -> str:
    return f"the model in the local directory `{Path(base).name}`" if is_local else f"`{base}`"


def _use(facts: Mapping[str, Any], base: str, is_local: bool, name: str) -> str:
    model = Path(base).name if is_local else base
    return (
        "The prompt, which `prompt.txt` holds too:\n\n```\n" + facts["prompt"].strip() + "\n```\n\n"
        "It is put as the tokenizer's chat template wants it, else between `[INST]` and `[/INST]`.\n\n```\n"
        f'python evaluate_thoughts.py --model {model} --adapter {name} --premise "..." --hypothesis "..."\n```'
    )


def _data(facts: Mapping[str, Any]) -> str:
    counts, training = facts["counts"], facts["training"]
    rows = training["train_rows"]
    lines = [
        f"{rows:,} chains of thought from `{Path(facts['arguments']['thoughts']).name}`, one per pair, all of which "
        f"come to the true label: {counts['originals']:,} as they were first written, {counts['reflections']:,} "
        f"repaired after. {counts['label_1']:,} have the label 1 and {counts['label_0']:,} the label 0.",
        f"{training['held_out_rows']:,} more rows were held out.",
    ]
    for part, text in (("filtered", "left out by filters"), ("too_long", "left out because their prompt alone fills "
                       "the length limit"), ("not_used", "beyond --max_train_samples")):
        if counts[part]:
            lines.append(f"{counts[part]:,} were {text}.")
    lines.append("All of them, and what became of each, are in `sft_data.jsonl`.")
    return " ".join(lines)


def _settings(facts: Mapping[str, Any]) -> str:
    arguments = facts["arguments"]
    in_4bit = arguments["quantization"] == "4bit"
    rows = [
        ("quantisation of the frozen weights", "NF4, double quantisation, bfloat16 compute" if in_4bit else "none"),
        ("LoRA", f"r {arguments['lora_r']}, alpha {arguments['lora_alpha']}, dropout {arguments['lora_dropout']:g}, "
                 f"on {', '.join(arguments['lora_target_modules'])}"),
        ("longest sequence", f"{arguments['max_length']:,} tokens"),
        ("rows per step", f"{arguments['effective_batch_size']:,} (rows at once x processes x accumulated: "
                          f"{arguments['per_device_train_batch_size']} x {arguments['num_processes']} x "
                          f"{arguments['gradient_accumulation_steps']})"),
        ("learning rate", f"{arguments['learning_rate']:g}, {arguments['lr_scheduler_type']}, "
                          f"{arguments['warmup_steps']:g} warm-up steps"),
        ("epochs", f"{facts['training']['epoch']:g}"),
        ("steps", f"{facts['training']['steps']:,}"),
        ("gradient clipping", f"{arguments['max_grad_norm']:g}"),
        ("packing", "yes" if arguments["packing"] else "no"),
        ("seed", str(arguments["seed"])),
        ("software", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
    ]
    return _table(("setting", "value"), rows)


def _measured(facts: Mapping[str, Any]) -> str:
    training = facts["training"]
    generated = training["eval_generate"]
    rows = [
        ("training loss", _number(training["train_loss"]), f"nats per token, mean over {training['steps']:,} steps"),
        ("held-out loss", _number(training.get("eval_loss")), f"nats per token, {training['held_out_rows']:,} rows"),
        ("held-out token accuracy", _number(training.get("eval_mean_token_accuracy")), "given the gold tokens before"),
    ]
    if generated:
        n = f"{generated['n_labelled']:,} pairs"
        rows += [
            ("accuracy", _number(generated["accuracy"]), f"{n}, no answer counts as wrong; 95 % Wilson interval "
             f"{_number(generated['accuracy_low'])} to {_number(generated['accuracy_high'])}"),
            ("accuracy among answers", _number(generated["accuracy_parsed"]),
             f"{generated['n_labelled_parsed']:,} pairs"),
            ("parse rate", _number(generated["parse_rate"]), f"{generated['n']:,} pairs"),
            ("majority baseline", _number(generated["majority_baseline"]), "always the commoner label"),
        ]
        rows += [(f"{name}, macro", _number(generated[f"{name}_macro"]), "mean over the labels")
                 for name in ("precision", "recall", "f1")]
    rows += [
        ("time", f"{training['train_runtime']:,.0f} s", facts["device"]),
        ("peak memory", f"{training['peak_memory_gb']:.2f} GB", "of one process"),
        ("trained weights", f"{training['trainable_parameters']:,}", f"of {training['parameters']:,}"),
    ]
    answered = f"Answers were generated for pairs of {_evaluated(facts)}.\n\n" if generated else ""
    return answered + _table(("", "value", "over"), rows)


def _evaluated(facts: Mapping[str, Any]) -> str:
    return f"`{facts['evaluated_on']}`" if facts["evaluated_on"] else "the held-out rows"


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
