"""Chains of thought on a GPU: QLoRA training and answers of a model of 7B shape with random weights.

Both are made on the card itself, so nothing is downloaded. Training: rows of 335 tokens on average, a step of 64 of
them; ours is what train_sft.py builds, with --per_device_train_batch_size auto, theirs TRL's trainer with its own
batch (8) and checkpointing. Both get the same rows in each step, from the same adapter, without dropout, so that
their losses must agree; a first step, which loads kernels, is not counted. Answers: 48 new tokens after prompts of
about 90, with the library's cache that grows, and with a static one and a compiled step (``generation.generate``).
What reading the weights takes is told as a share of the bandwidth that copying a large tensor reaches on this card.
"""

from __future__ import annotations

import gc
import string
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import numpy as np
from timing import Found, Measure, Setting, in_turn, ratio, timed

from datamap.core.errors import UserError
from datamap.core.flags import DEFAULT_SEED

SHAPE = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8}
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2}
WORDS = 32_768  # that the model knows
TOKENS, SPREAD = 335, 60  # of a row: mean, standard deviation
STEPS, STEP_ROWS, THEIR_ROWS = 3, 64, 8  # rows of a step, and of a batch by TRL's default
BATCHES, PROMPT_TOKENS, NEW_TOKENS = (32, 128), 120, 48
TEMPLATE = string.Template("Premise: $premise Hypothesis: $hypothesis")
SPECIAL = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}


# --- a model made on the card ----------------------------------------------------------------------------------------


def device_of(setting: Setting) -> Any:
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if not setting.quick:
        raise UserError("this row is about a GPU, and there is none here; --quick shows that it runs")
    return torch.device("cpu")


def random_model(setting: Setting, device: Any, in_4bit: bool) -> Any:
    """In bfloat16, or as QLoRA has it: NF4 with double quantisation."""
    import torch
    from transformers import BitsAndBytesConfig, MistralConfig, MistralForCausalLM

    config = MistralConfig(
        **(TINY if setting.quick else SHAPE), vocab_size=setting.size(WORDS, 400), sliding_window=None,
        max_position_embeddings=2048, bos_token_id=None, eos_token_id=None, pad_token_id=1)
    torch.manual_seed(DEFAULT_SEED)
    with device:
        model: Any = MistralForCausalLM._from_config(config, dtype=torch.bfloat16)
    if not in_4bit:
        return model.eval()
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                             bnb_4bit_compute_dtype=torch.bfloat16)
    return MistralForCausalLM.from_pretrained(  # type: ignore[arg-type]
        None, config=config, state_dict=model.state_dict(), dtype=torch.bfloat16, device_map={"": device},
        quantization_config=nf4)


def word_tokenizer(words: int, ends: bool) -> Any:
    """Tokens are whole words. ends: with an EOS token; without, every answer is as long as it may be."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {token: place for place, token in enumerate(SPECIAL.values())}
    known |= {token: len(known) + place for place, token in enumerate(("0", "1", "}", ":", ",", '"'))}
    known |= {f"w{number}": number for number in range(len(known), words)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{
        name: token for name, token in SPECIAL.items() if ends or name != "eos_token"})


def texts(rng: np.random.Generator, lengths: np.ndarray, words: int) -> list[str]:
    return [" ".join(f"w{word}" for word in rng.integers(len(SPECIAL) + 6, words, length)) for length in lengths]


def room(what: str, lower: str) -> AbstractContextManager[None]:
    from datamap.training.on_gpu import room_for

    return room_for(what, f"lower {lower} in benchmarks/rows/gpu_thoughts.py, or take a larger GPU")


def emptied(device: Any) -> None:
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# --- QLoRA -----------------------------------------------------------------------------------------------------------


class Steps:
    """Trainings of one model in 4 bit on the same rows, each with a new adapter that begins as the others did."""

    def __init__(self, setting: Setting):
        from datamap.thoughts.sft_arguments import parse_args
        from datamap.thoughts.sft_training import encode

        self.setting, self.device = setting, device_of(setting)
        self.step_rows, self.steps = setting.size(STEP_ROWS, 8), setting.size(STEPS, 2)
        words = setting.size(WORDS, 400)
        rng = np.random.default_rng(DEFAULT_SEED)
        count, mean, spread = self.step_rows * self.steps, setting.size(TOKENS, 45), setting.size(SPREAD, 6)
        # A row has 40 tokens beside its thought.
        lengths = np.clip(rng.normal(mean, spread, count), mean / 3, 1.5 * mean).astype(int) - 40
        rows = [{"id": str(number), "premise": "w30 " * 12, "hypothesis": "w31 " * 8, "thought_process": thought,
                 "label": number % 2} for number, thought in enumerate(texts(rng, lengths.clip(1), words))]
        self.tokenizer = word_tokenizer(words, ends=True)
        self.rows = encode(rows, self.tokenizer, TEMPLATE)
        self.args = parse_args([
            "--thoughts=made", "--per_device_train_batch_size=auto", f"--effective_batch_size={self.step_rows}",
            "--lora_dropout=0", f"--max_steps={self.steps}", "--warmup_steps=0", "--logging_steps=1",
            "--max_length=2048", "--save_strategy=no", "--report_to=none", f"--output_dir={setting.scratch / 'ours'}",
            *(["--no_cuda"] if self.device.type == "cpu" else []),
        ])
        seconds, self.base = timed(random_model, setting, self.device, True)
        self.chosen: tuple[int, bool] | None = None
        self.lengths = self.rows["input_ids"].str.len().to_numpy()
        self.details: dict[str, Any] = {"seconds_to_build": seconds, "tokens": float(self.lengths.mean())}

    def adapted(self) -> Any:
        from transformers import set_seed

        from datamap.thoughts.sft_training import add_adapter

        set_seed(DEFAULT_SEED)
        return add_adapter(self.base, self.args).train()

    def ours(self, records: bool) -> dict[str, Any]:
        import copy

        from datamap.cartography.recorder import CartographyCallback
        from datamap.thoughts.batches import set_batches, take
        from datamap.thoughts.sft_training import build_trainer, sft_config

        args = copy.copy(self.args)
        config = sft_config(args, self.device.type == "cuda", watches=False)
        trainer = build_trainer(args, config, self.adapted(), self.tokenizer, self.rows, self.rows[:0])
        if self.chosen is None:
            self.details["seconds_to_choose"], _ = timed(set_batches, args, trainer)
            self.chosen = args.per_device_train_batch_size, args.gradient_checkpointing
            self.details |= dict(zip(("rows_at_once", "gradient_checkpointing"), self.chosen, strict=True))
        take(args, trainer, *self.chosen)
        if records:
            CartographyCallback(list(self.rows["ids"]), self.setting.scratch / "map",
                                label_positions=self.rows["label_positions"].to_numpy()).attach(trainer)
        return self._timed(trainer)

    def theirs(self) -> dict[str, Any]:
        """TRL's trainer as it is, on the rows in the order of our steps."""
        import datasets
        from trl import SFTConfig, SFTTrainer

        from datamap.training.library_flags import library_arguments

        order = np.random.default_rng((self.args.seed, 0)).permutation(len(self.rows))
        data = datasets.Dataset.from_dict({"prompt": list(self.rows["prompts"].iloc[order]),
                                           "completion": list(self.rows["completions"].iloc[order])})
        config = library_arguments(
            SFTConfig, output_dir=str(self.setting.scratch / "theirs"), seed=self.args.seed, max_length=2048,
            per_device_train_batch_size=min(THEIR_ROWS, self.step_rows), max_steps=self.steps,
            gradient_accumulation_steps=max(1, self.step_rows // THEIR_ROWS), learning_rate=self.args.learning_rate,
            max_grad_norm=self.args.max_grad_norm, lr_scheduler_type=self.args.lr_scheduler_type, logging_steps=1,
            train_sampling_strategy="sequential", save_strategy="no", report_to="none", disable_tqdm=True,
            bf16=self.device.type == "cuda", **({"use_cpu": True} if self.device.type == "cpu" else {}))
        self.tokenizer.padding_side = "right"
        return self._timed(SFTTrainer(model=self.adapted(), args=config, processing_class=self.tokenizer,
                                      train_dataset=data))

    def _timed(self, trainer: Any) -> dict[str, Any]:
        """Tokens a second of every step but the first, padding not counted; losses; the most memory that was held."""
        import torch
        from transformers import PrinterCallback, TrainerCallback

        on_gpu, ends = self.device.type == "cuda", []

        class Ends(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                if on_gpu:
                    torch.cuda.synchronize()
                ends.append(time.perf_counter())

        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Ends())
        emptied(self.device)
        trainer.train()
        memory = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
        losses = [logged["loss"] for logged in trainer.state.log_history if "loss" in logged]
        trainer.model.unload()  # the base is that of the next
        order = np.random.default_rng((self.args.seed, 0)).permutation(len(self.rows))
        tokens = self.lengths[order].reshape(-1, self.step_rows).sum(axis=1)
        del trainer
        emptied(self.device)
        seconds = [after - before for before, after in pairwise(ends)]
        return {"speeds": (tokens[1:] / seconds).tolist(), "losses": losses, "memory": memory}


def qlora(setting: Setting) -> Found:
    with room("QLoRA, the model", "SHAPE"):
        steps = Steps(setting)
    sides: dict[str, Callable[[], dict[str, Any]]] = {
        "TRL's defaults": steps.theirs, "ours": lambda: steps.ours(False), "ours, recording": lambda: steps.ours(True)}
    found = {}
    for name, side in sides.items():
        with room(f"QLoRA, {name}", "TOKENS" if name.startswith("ours") else "THEIR_ROWS"):
            found[name] = side()
    measures = [Measure(f"QLoRA, {name}", each["speeds"], " tokens/s") for name, each in found.items()]
    measures += [Measure(f"QLoRA, {name}: memory", [each["memory"]], " GB") for name, each in found.items()
                 if each["memory"] is not None]
    trl, ours, recording = (np.array(each["speeds"]) for each in found.values())
    losses = np.array([found[name]["losses"] for name in ("TRL's defaults", "ours")])
    apart = np.abs(losses[1] / losses[0] - 1)
    measures += [
        Measure("QLoRA, ours / TRL's defaults", (ours / trl).tolist(), " x", least=1.8),
        Measure("QLoRA, recording / without", (recording / ours).tolist(), " x"),
        Measure("QLoRA, losses of the steps apart, the most", [100 * float(apart.max())], " %", most=1.0),
    ]
    notes = [] if steps.device.type == "cuda" else ["memory is measured on a GPU only"]
    return Found(measures, notes, {**steps.details, "losses": losses.tolist(), "rows_of_a_step": steps.step_rows})


# --- answers ---------------------------------------------------------------------------------------------------------


def bandwidth(setting: Setting, device: Any) -> float:
    """Bytes a second that a copy reads and writes."""
    import torch

    source = torch.empty(setting.size(2**31, 2**22), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy(_: int) -> float:
        waited(device)
        began = time.perf_counter()
        target.copy_(source)
        waited(device)
        return time.perf_counter() - began

    [seconds] = in_turn(6, copy)
    return 2 * source.numel() / min(seconds[1:])


def waited(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def batch_seconds(
    model: Any, tokenizer: Any, prompts: Sequence[str], rows: int, new: int, compiled: bool
) -> list[float]:
    """Of each batch of so many rows; in the first are compiling and the making of a cache."""
    from datamap.thoughts.generation import generate

    seconds, began = [], time.perf_counter()
    for _, answered in generate(model, tokenizer, prompts, batch_size=rows, max_new_tokens=new, sort=False,
                                compiled=compiled):
        ended = time.perf_counter()
        seconds.append(ended - began)
        if any(answer.num_tokens != new for answer in answered):
            raise RuntimeError(f"an answer has other than {new} tokens")
        began = time.perf_counter()
    return seconds


def answers(setting: Setting) -> Found:
    """What a step takes is what an answer of all tokens takes beyond one of a single token, over the steps."""
    device, words = device_of(setting), setting.size(WORDS, 400)
    with room("answers, the model", "SHAPE"):
        build, model = timed(random_model, setting, device, False)
    reads = sum(each.numel() * each.element_size() for name, each in model.named_parameters()
                if "embed_tokens" not in name)
    reached = bandwidth(setting, device)
    tokenizer, rng = word_tokenizer(words, ends=False), np.random.default_rng(DEFAULT_SEED)
    new, longest = setting.size(NEW_TOKENS, 4), setting.size(PROMPT_TOKENS, 12)
    measures: list[Measure] = []
    for rows in BATCHES if not setting.quick else (2, 3):
        lengths = rng.integers(longest // 2, longest, 2 * rows)
        prompts, name = texts(rng, lengths, words), f"answers, {rows} at once"
        wholes = {}
        for side, compiled in (("growing cache", False), ("compiled", True)):
            with room(name, "BATCHES"):
                first, *whole = batch_seconds(model, tokenizer, prompts, rows, new, compiled)
                [_, *alone] = batch_seconds(model, tokenizer, prompts, rows, 1, compiled)
            wholes[side] = whole
            step = [max(each - one, 1e-9) / (new - 1) for each, one in zip(whole, alone, strict=True)]
            measures += [
                Measure(f"{name}, {side}", [rows * new / each for each in whole], " tokens/s"),
                Measure(f"{name}, {side}: a step", [1000 * each for each in step], " ms"),
                Measure(f"{name}, {side}: of the bandwidth", [100 * reads / (each * reached) for each in step], " %"),
            ]
        measures += [ratio(f"{name}, compiled / growing cache", wholes["growing cache"], wholes["compiled"], 5.0),
                     Measure(f"{name}: compiling, once", [first - min(whole)], " s")]
    details = {"seconds_to_build": build, "bytes_a_second": reached, "weight_bytes": reads, "new_tokens": new}
    return Found(measures, [] if device.type == "cuda" else ["on a CPU nothing is compiled"], details)
