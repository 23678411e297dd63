"""Fine-tuning on chains of thought with TRL's SFTTrainer: rows as tokens, the trainer, what it watches on the way."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import os
import string
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig, SFTTrainer

from datamap.cartography.joined import packed_rows, sees_rows_apart
from datamap.core.errors import UserError, first_line
from datamap.core.files import nulls_for_nan
from datamap.thoughts.batches import GroupedInSteps
from datamap.thoughts.generation import generate
from datamap.thoughts.metrics import pair_metrics
from datamap.thoughts.prompts import chat_text, model_prompt, neutral
from datamap.thoughts.reader import completion_text, parse_thought
from datamap.thoughts.sft_arguments import AUTO, WHOLE
from datamap.training.batches import SetEpoch
from datamap.training.callbacks import Manifests, tell_in_lines
from datamap.training.library_flags import SFT_CONFIG, check_batches, given_training_flags, library_arguments
from datamap.training.models import positions_of
from datamap.training.on_gpu import room_for
from datamap.training.trainer import RefusedSettings

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    from peft import PeftModel
    from transformers import PreTrainedModel

LARGE_FOR_A_CPU = 1e9  # parameters
GENERATED = "eval_generate_"
LOGGED = ("n", "accuracy", "accuracy_low", "accuracy_high", "accuracy_parsed", "parse_rate", "precision_macro",
          "recall_macro", "f1_macro", "precision_0", "recall_0", "f1_0", "precision_1", "recall_1", "f1_1")

logger = logging.getLogger(__name__)


# --- rows as tokens -----------------------------------------------------------------------------------------------


def completion_start(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a completion begins with: the space that the chat template leaves before an answer, or nothing.

    A prompt does not end in it: there it would be a token of its own, which no text has before a word.
    """
    if tokenizer.chat_template is None:
        return " "  # [INST] ... [/INST] {"thought_process": ...
    question, answer = [{"role": "user", "content": "question"}], "answer-of-the-model"
    prompt = chat_text(tokenizer, question, add_generation_prompt=True).rstrip(" ")
    before = chat_text(tokenizer, [*question, {"role": "assistant", "content": answer}]).partition(answer)[0]
    between = before.removeprefix(prompt)
    return " " if between != before and between.startswith(" ") and not between.strip() else ""


def encode(
    rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, template: string.Template
) -> pd.DataFrame:
    """Rows with ``id, premise, hypothesis, thought_process, label`` as what the model reads and is to write.

    Columns ``ids, prompts, completions``; ``input_ids``, the tokens that the trainer makes of them, EOS included;
    ``prompt_lengths``, tokens before the completion; ``label_positions``, the index in ``input_ids`` of the token that
    says the label. Nothing is cut. UserError for a tokenizer without offsets, and for rows that do not have exactly
    one EOS token, at their end, and at most one BOS token (``check_special_tokens``).
    """
    import pandas as pd

    if not tokenizer.is_fast:
        raise UserError("the tokenizer of this model has no fast version (tokenizer.json), which tells what text a "
                        "token stands for; save one beside the model")
    start, eos = completion_start(tokenizer), str(tokenizer.eos_token)
    prompts = [model_prompt(tokenizer, template, row["premise"], row["hypothesis"]) for row in rows]
    completions = [start + completion_text(neutral(row["thought_process"], tokenizer), row["label"]) for row in rows]
    texts = [prompt + completion + eos for prompt, completion in zip(prompts, completions, strict=True)]
    whole = tokenizer(texts, verbose=False)
    alone = tokenizer(prompts, verbose=False)["input_ids"]
    # Where the two part, as the trainer has it: a token may reach over the end of the prompt.
    prompt_lengths = [len(os.path.commonprefix(each)) for each in zip(alone, whole["input_ids"], strict=True)]
    positions = []
    for row, text in enumerate(texts):
        digit = len(text) - len(eos) - 2  # before the brace that closes the object
        assert text[digit] in "01", text[digit:]
        positions.append(whole.char_to_token(row, digit))
    encoded = pd.DataFrame({
        "ids": [row["id"] for row in rows], "prompts": prompts, "completions": completions,
        "input_ids": whole["input_ids"], "prompt_lengths": prompt_lengths, "label_positions": positions,
    })
    check_special_tokens(encoded, tokenizer, template)
    return encoded


def check_special_tokens(encoded: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, template: string.Template) -> None:
    """Exactly one EOS, at the end, and one BOS, at the beginning, or none where the tokenizer has none.

    Where the chat template ends the user's turn with the EOS token, it may stand there as well.
    """
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    example = model_prompt(tokenizer, template, "a", "b")
    allowed = tokenizer(example + str(tokenizer.eos_token), verbose=False)["input_ids"].count(eos)
    for name, tokens, prompt in encoded[["ids", "input_ids", "prompt_lengths"]].itertuples(index=False):
        where = f"row {name!r}"
        if tokens.count(eos) != allowed or tokens[-1] != eos or eos in tokens[prompt:-1]:
            raise UserError(
                f"{where} has {tokens.count(eos)} EOS tokens ({tokenizer.eos_token}), expected "
                f"{allowed}, one of them at its end; does the tokenizer add one of itself (add_eos_token)?"
            )
        if bos is not None and bos != eos and (tokens.count(bos) > 1 or (bos in tokens and tokens[0] != bos)):
            raise UserError(
                f"{where} has {tokens.count(bos)} BOS tokens ({tokenizer.bos_token}), expected one, at its beginning; "
                "take it out of the prompt file or the chat template, the tokenizer adds it"
            )


# --- settings -----------------------------------------------------------------------------------------------------


def check_device(args: argparse.Namespace) -> bool:
    """Whether this run uses a GPU; UserError for what cannot work without one."""
    if torch.cuda.is_available() and not args.no_cuda:
        return True
    why = "this run is on the CPU (--no_cuda)" if torch.cuda.is_available() else "there is none here"
    if getattr(args, "optim", "").startswith("paged_"):
        raise UserError(f"--optim {args.optim} pages between GPU and CPU memory, it needs a GPU; {why}: give --optim "
                        f"{args.optim.removeprefix('paged_').replace('_32bit', '')}")
    for name in ("fp16", "tf32"):
        if getattr(args, name, False):
            raise UserError(f"--{name} needs a GPU, and {why}; leave it out")
    if "flash" in (args.attn_implementation or ""):
        raise UserError(f"--attn_implementation {args.attn_implementation} needs a GPU, and {why}; leave it out")
    return False


def sft_config(args: argparse.Namespace, on_gpu: bool, watches: bool) -> SFTConfig:
    """watches: there are held-out rows to evaluate on."""
    given = given_training_flags(vars(args), SFT_CONFIG)
    if args.per_device_train_batch_size == AUTO:  # until it is known
        given |= {"per_device_train_batch_size": 1}
    fields = {field.name for field in dataclasses.fields(SFTConfig)}
    # The older name of the same, of which newer libraries warn.
    name = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    given.setdefault(name, given.pop("gradient_checkpointing"))
    given.setdefault("per_device_eval_batch_size", given["per_device_train_batch_size"])
    given.setdefault("dataloader_pin_memory", on_gpu)
    given.setdefault("ddp_find_unused_parameters", False)  # every weight of an adapter is used
    if not given.get("fp16"):
        given.setdefault("bf16", on_gpu)
    if not on_gpu:
        given["use_cpu"] = True
    if watches:
        given.setdefault("eval_strategy", "steps")
        if given["eval_strategy"] == "steps":
            given.setdefault("eval_steps", args.eval_generate_steps or 100)
    return library_arguments(SFTConfig, output_dir=args.output_dir, seed=args.seed, do_train=True, **given)


def add_adapter(model: PreTrainedModel, args: argparse.Namespace) -> PeftModel:
    """The model with a new, untrained LoRA adapter on the layers that ``--lora_target_modules`` names.

    UserError for a name that no layer has: the library would leave it out without a word beside one that matches.
    """
    from peft import LoraConfig, get_peft_model

    names = args.lora_target_modules
    if names != ["all-linear"]:
        _check_layers(model, names)
    config = LoraConfig(
        r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, bias="none", task_type="CAUSAL_LM",
        target_modules=names[0] if names == ["all-linear"] else names,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"--lora_target_modules {','.join(names)}: {first_line(error):.200}") from error


def _check_layers(model: PreTrainedModel, names: Sequence[str]) -> None:
    """As PEFT matches them: whole paths, or their last parts (q_proj, 0.self_attn.q_proj)."""
    from transformers.pytorch_utils import Conv1D

    layers = dict(model.named_modules())
    unknown = [name for name in names if not any(path == name or path.endswith(f".{name}") for path in layers)]
    if unknown:
        linear = {path.rpartition(".")[2]: None for path, layer in layers.items()
                  if isinstance(layer, torch.nn.Linear | Conv1D)}
        raise UserError(f"--lora_target_modules {','.join(names)}: no layer is called {' or '.join(unknown)}; the "
                        f"linear ones are {', '.join(linear)} (all-linear, alone, takes all but the last)")


def adapted_layers(model: PeftModel) -> dict[str, int]:
    """How many layers of each name have an adapter, by the last part of their paths."""
    return dict(Counter(path.rpartition(".")[2] for path in model.base_model.targeted_module_names))


# --- the trainer --------------------------------------------------------------------------------------------------


class ThoughtTrainer(RefusedSettings, SFTTrainer):
    """TRL's trainer with batches by length, and without its draft of a model card: ours tells what was measured, when
    it is."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        pass

    def lengths(self) -> list[int]:
        """Tokens of every training row."""
        return [len(tokens) for tokens in self.train_dataset["input_ids"]]

    def _get_train_sampler(self, train_dataset: Any = None) -> GroupedInSteps:
        config = self.args
        step = config.train_batch_size * config.world_size * config.gradient_accumulation_steps
        sampler = GroupedInSteps(self.lengths(), step, config.seed if config.data_seed is None else config.data_seed)
        self.add_callback(SetEpoch(sampler))
        return sampler


def build_trainer(
    args: argparse.Namespace, config: SFTConfig, model: PeftModel, tokenizer: PreTrainedTokenizerBase,
    train: pd.DataFrame, held_out: pd.DataFrame,
) -> ThoughtTrainer:
    """A trainer on rows of which each leaves something to learn within ``--max_length``.

    UserError where the rows would not be trained on as they were checked.
    """
    import datasets

    def texts(rows: pd.DataFrame) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"prompt": list(rows["prompts"]), "completion": list(rows["completions"])})

    tokenizer.padding_side = "right"
    try:
        trainer = ThoughtTrainer(model=model, args=config, processing_class=tokenizer, train_dataset=texts(train),
                                 eval_dataset=texts(held_out) if len(held_out) else None)
    except (ValueError, ImportError) as error:
        raise UserError(f"the trainer refuses these settings: {first_line(error)}") from error
    if not args.packing:
        _check_same_tokens(trainer.train_dataset, train, args.max_length)
    elif not sees_rows_apart(model):
        raise UserError("--packing: this model reads rows that are packed behind one another as one text; leave it "
                        "out, or try --attn_implementation flash_attention_2 or sdpa")
    elif getattr(config, "packing_strategy", WHOLE) == WHOLE:
        data = trainer.train_dataset
        rows = [tokens[: args.max_length] for tokens in train["input_ids"]]
        trainer.train_dataset = data.add_column("row_index", packed_rows(data["input_ids"], data["seq_lengths"], rows))
    check_batches(config, len(trainer.train_dataset))
    tell_in_lines(trainer)
    trainer.add_callback(Continuity(trainer))
    return trainer


def _check_same_tokens(data: datasets.Dataset, train: pd.DataFrame, max_length: int) -> None:
    """Whether the trainer has made of the texts what was checked, and masked what was thought."""
    checked = train[["ids", "input_ids", "prompt_lengths"]].itertuples(index=False)
    for tokens, labels, (name, whole, prompt) in zip(data["input_ids"], data["labels"], checked, strict=True):
        if tokens != whole[:max_length] or labels != [-100] * prompt + tokens[prompt:]:
            raise RuntimeError(f"row {name!r}: the trainer has other tokens than were checked")


class Continuity(TrainerCallback):
    """Makes the curves of a resumed training those of an uninterrupted one, and warns of a warm-up without an end.

    The library forgets what it has summed up since the last log when it stops, and so logs with every checkpoint.
    """

    def __init__(self, trainer: ThoughtTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        counts = [logged["num_tokens"] for logged in state.log_history if "num_tokens" in logged]
        self.trainer._total_train_tokens = int(counts[-1]) if counts else 0
        warmup = args.get_warmup_steps(state.max_steps)
        if warmup >= state.max_steps:
            logger.warning(f"the warm-up of {warmup:,} steps takes up the whole training of {state.max_steps:,}: the "
                           f"learning rate never gets to {args.learning_rate:g}; lower --warmup_steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = control.should_log or control.should_save

    on_epoch_end = on_step_end


class GeneratedAnswers(TrainerCallback):
    """Has the model answer labelled pairs every so many steps, and logs how well under ``eval_generate_*``.

    pairs: with ``id, premise, hypothesis, label``. steps: 0 for never while it trains. Each process answers its share;
    what is logged is of all.
    """

    def __init__(self, trainer: ThoughtTrainer, template: string.Template, pairs: Sequence[Mapping[str, Any]],
                 steps: int, max_new_tokens: int):
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise UserError("answering pairs needs the whole model in every process, which FSDP and DeepSpeed split: "
                            "train with --eval_fraction 0 and without --eval_dataset")
        self.trainer, self.pairs, self.steps, self.max_new_tokens = trainer, list(pairs), steps, max_new_tokens
        self.tokenizer: Any = trainer.processing_class
        self.prompts = [model_prompt(self.tokenizer, template, pair["premise"], pair["hypothesis"]) for pair in pairs]
        self.metrics: dict[str, Any] = {}
        self.answers: list[dict[str, Any]] = []
        self.step = -1  # of the last answers

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.steps and state.global_step % self.steps == 0:
            self.measure()

    def measure(self) -> None:
        """Answer all pairs with the model as it is; ``metrics`` and ``answers`` hold the outcome."""
        from accelerate.utils import gather_object

        args, state, model = self.trainer.args, self.trainer.state, self.trainer.model
        if self.step == state.global_step:
            return
        self.step, should_log = state.global_step, self.trainer.control.should_log
        share = range(args.process_index, len(self.pairs), args.world_size)
        outputs: list[tuple[int, str]] = []
        was_training = model.training
        # In training mode its numbers would go among those of the training since the last log.
        model.eval()
        batches = generate(model, self.tokenizer, [self.prompts[place] for place in share],
                           batch_size=args.per_device_eval_batch_size, max_new_tokens=self.max_new_tokens)
        for places, generated in batches:
            outputs += [(share[place], one.text) for place, one in zip(places, generated, strict=True)]
        texts = dict(gather_object(outputs))
        parsed = [parse_thought(texts[place], self.prompts[place]) for place in range(len(self.pairs))]
        self.metrics = pair_metrics(
            [pair["label"] for pair in self.pairs], [one.label for one in parsed], [one.method for one in parsed]
        )
        self.answers = [
            {**{name: pair[name] for name in ("id", "premise", "hypothesis", "label")}, "output": texts[place],
             "predicted_label": one.label, "thought_process": one.thought, "method": one.method}
            for place, (pair, one) in enumerate(zip(self.pairs, parsed, strict=True))
        ]
        known = {name: self.metrics[name] for name in LOGGED if self.metrics[name] is not None}
        self.trainer.log({f"{GENERATED}{name}": value for name, value in known.items()})
        self.trainer.control.should_log = should_log  # a log asks for no other one
        if was_training:
            model.train()
        accuracy = "unknown" if self.metrics["accuracy"] is None else f"{self.metrics['accuracy']:.3f}"
        logger.info(f"step {state.global_step}: {len(self.pairs):,} pairs answered, accuracy {accuracy}, parse rate "
                    f"{self.metrics['parse_rate']:.3f}")


def check_size(model: PreTrainedModel, longest: int, on_gpu: bool) -> None:
    """longest: tokens of the longest row. UserError where the model has not so many positions."""
    positions = positions_of(model.config)
    if positions and longest > positions:
        raise UserError(f"a row of {longest:,} tokens is longer than the {positions:,} positions of the model; lower "
                        f"--max_length to {positions:,}")
    parameters = model.num_parameters()
    if not on_gpu and parameters > LARGE_FOR_A_CPU:
        logger.warning(f"a model of {parameters / 1e9:.1f} billion weights on a CPU takes minutes a step and days in "
                       "all; use a GPU, or a small model to try things out")


def train(
    trainer: ThoughtTrainer, answers: GeneratedAnswers | None, checkpoint: str | None, on_gpu: bool
) -> dict[str, Any]:
    """Train, evaluate and answer a last time; returns the numbers of train_metrics.json."""
    trainer.add_callback(Manifests(checkpoint))
    with room_for(f"{trainer.args.per_device_train_batch_size:,} rows at once",
                  "give --per_device_train_batch_size auto, or a smaller one, or lower --max_length"):
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
    if not math.isfinite(evaluated.get("eval_loss", 0)):
        logger.warning(f"the loss on the held-out rows is {evaluated['eval_loss']}, no number, and recorded as "
                       "missing; the weights are finite, a lower --learning_rate may help")
    trained, everything = model.get_nb_trainable_parameters()
    return nulls_for_nan({
        **{name: value for name, value in result.metrics.items() if name not in ("train_loss", "total_flos")},
        "train_loss": mean_loss(trainer.state.log_history), "steps": trainer.state.global_step,
        **{name: evaluated[name] for name in ("eval_loss", "eval_mean_token_accuracy") if name in evaluated},
        "eval_generate": answers.metrics if answers is not None else None,
        "parameters": everything, "trainable_parameters": trained,
        "adapted_layers": adapted_layers(model), "peak_memory_gb": peak_memory(on_gpu),
        "num_tokens": trainer._total_train_tokens,
    })


def mean_loss(history: Sequence[Mapping[str, float]]) -> float | None:
    """The training loss over all steps, nats per token, from what was logged; also of a resumed training."""
    total, before = 0.0, 0
    for logged in history:
        if "loss" in logged:
            total += logged["loss"] * (logged["step"] - before)
            before = int(logged["step"])
    return total / before if before else None


def peak_memory(on_gpu: bool) -> float:
    """The most memory that this process has held so far, GB (10^9 bytes): of its GPU, else its own."""
    import resource

    if on_gpu:
        return torch.cuda.max_memory_allocated() / 1e9
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / 1e9
