"""Training and embeddings on a GPU, of models of real shapes with random weights, on texts that are made up.

Each side trains for a few seconds behind its first steps, which load kernels and fill the queues, and is then stopped;
the clock runs from one wait for the card to another. Sides are those of rows/training.py, all in the precision that
ours chooses. Steps that are compiled are measured behind a whole epoch, in which every length is compiled.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from timing import Clock, Found, Measure, Setting, in_turn, peer, ratio, timed

from datamap.core.errors import UserError, first_line
from datamap.core.files import write_jsonl
from datamap.core.flags import DEFAULT_SEED
from datamap.training.on_gpu import buckets_of
from rows import vectors
from rows.training import BARE, GROUPED, OURS, RANDOM, Trainings, sampled

BATCH_SIZE = 32
WARM_UP = 10  # steps
COUNTED = 5  # steps in which waits are counted
COMPILED_LENGTHS = 2  # fewer than a training has, as each is compiled by itself
COMPILING = 40  # seconds that compiling may take, so that the other rows have their time
COMPILED, UNRECORDED = "ours, compiled", "ours, without recording"
LENGTHS = {"qa": (60, 150), "classification": (6, 38)}  # words of a context or a sentence, a token each
BERT_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
ELECTRA_SMALL = {"embedding_size": 128, "hidden_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4,
                 "intermediate_size": 1024}
QUICK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VOCABULARY, WORDS = 30_522, 1_000  # of the models; of the texts, each of which is a token


def made_rows(task: str, count: int) -> Iterator[dict[str, Any]]:
    """Texts of about as many tokens as policyqa (114) and sst2 (23) have."""
    rng = np.random.default_rng(DEFAULT_SEED)
    low, high = LENGTHS[task]
    for row in range(count):
        words = [f"w{word}" for word in rng.integers(WORDS, size=rng.integers(low, high))]
        if task == "classification":
            yield {"id": str(row), "sentence": " ".join(words), "label": "yes" if rng.random() < 0.5 else "no"}
            continue
        first = int(rng.integers(len(words) - 5))
        start = len(" ".join(words[:first])) + (first > 0)
        asked = " ".join(f"w{word}" for word in rng.integers(WORDS, size=7))
        yield {"id": str(row), "question": f"what {asked}", "context": " ".join(words),
               "answers": {"text": [" ".join(words[first : first + 3])], "answer_start": [start]}}


def data_of(setting: Setting, task: str, rows: int) -> str:
    """A directory with train.jsonl: of --data_dir where it has the data set, else made up."""
    name = {"qa": "policyqa", "classification": "sst2"}[task]
    if setting.data_dir is not None and (setting.data_dir / name).is_dir():
        return sampled(setting, name, task, str(setting.data_dir / name), rows)
    place = setting.output(f"{name}-made")
    write_jsonl(place / "train.jsonl", made_rows(task, rows))
    return str(place)


def saved_model(setting: Setting, kind: str, shape: dict[str, int], task: str, dataset: str) -> str:
    """The directory of a model with random weights, and a tokenizer that knows the words of the data."""
    import torch
    from transformers import AutoConfig

    from datamap.core.splits import load_split
    from datamap.tasks.registry import get_task
    from datamap.training.tiny_model import train_tokenizer

    split = load_split(dataset, "train", get_task(task))
    texts = (text for column in split.task.text_columns for text in split.data[column][:])
    tokenizer = train_tokenizer(texts, max_length=512, vocab_size=VOCABULARY)
    torch.manual_seed(DEFAULT_SEED)
    vocabulary = max(setting.size(VOCABULARY, 0), len(tokenizer))
    config = AutoConfig.for_model(kind, **(QUICK if setting.quick else shape), vocab_size=vocabulary,
                                  **split.task.head(None, split.data, split.name))
    model = split.task.model_class.from_config(config)
    place = setting.scratch / f"{kind}-{task}"
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


def wait_for_card() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """TimeoutError in the block after so many seconds."""
    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds or 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def stopwatch(seconds: float, warm_up: int, batch_size: int) -> Any:
    """A callback that stops a training so many seconds behind its first steps, and knows its rows a second."""
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        steps, speed = 0, 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps += 1
            if self.steps == warm_up:
                wait_for_card()
                self.began = time.perf_counter()
            elif self.steps > warm_up and time.perf_counter() - self.began >= seconds:
                wait_for_card()
                self.speed = (self.steps - warm_up) * batch_size / (time.perf_counter() - self.began)
                control.should_training_stop = True

    return Stopwatch()


def wait_counter() -> Any:
    """A callback that counts how often the host waits for the card in a step, from the end of one to that of another,
    and stops the training."""
    import torch
    from transformers import TrainerCallback

    class Waits(TrainerCallback):
        steps, found = 0, 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps += 1
            if self.steps == WARM_UP:
                wait_for_card()
                self.caught = warnings.catch_warnings(record=True)
                self.seen = self.caught.__enter__()
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
            elif self.steps == WARM_UP + COUNTED:
                torch.cuda.set_sync_debug_mode("default")
                self.caught.__exit__(None, None, None)
                waits = [str(each.message) for each in self.seen or () if "synchroniz" in str(each.message)]
                self.found = len(waits) / COUNTED
                control.should_training_stop = True

    return Waits()


class OnCard(Trainings):
    """Trainings that end after a few seconds; without a card, in a quick run, on the CPU.

    seconds: of each side, in each of two rounds.
    """

    def __init__(self, setting: Setting, kind: str, shape: dict[str, int], task: str):
        import torch

        self.on_card = torch.cuda.is_available()
        self.batch_size = setting.size(BATCH_SIZE, 4)
        self.seconds, self.rounds = (0.05, 1) if setting.quick else (1.5, 2)
        self.quick = setting.quick
        dataset = data_of(setting, task, setting.size(64, 4) * self.batch_size)
        model = saved_model(setting, kind, shape, task, dataset)
        super().__init__(setting, dataset, task, model, 512, self.batch_size, epochs=1000,
                         flags=() if self.on_card else ("--no_cuda",))
        self.model.to(self.arguments.device)

    def _run(self, trainer: Any, watch: Any) -> Any:
        from transformers import PrinterCallback

        self.model.load_state_dict(self.weights)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(watch)
        trainer.train()
        return watch

    def our_trainer(self, record: bool = True, compiled: bool = False) -> Any:
        self.args.torch_compile = compiled
        if compiled and not self.on_card:
            self.args.torch_compile_backend = "aot_eager"  # a compiler takes longer than a quick run may
        trainer = self._our_trainer(record)
        vars(self.args).pop("torch_compile_backend", None)
        if compiled:
            sampler = trainer.length_sampler()
            trainer.buckets = buckets_of(sampler.longest_of_batches(), COMPILED_LENGTHS, max(sampler.lengths))
        return trainer

    def speed(self, trainer: Any, warm_up: int = WARM_UP) -> float:
        if self.quick:
            warm_up = min(warm_up, 2)
        return self._run(trainer, stopwatch(self.seconds, warm_up, self.batch_size)).speed

    def bare_speed(self) -> float:
        """The bare loop, over batches on the card, in the same precision."""
        import torch

        self.make_batches()
        device = self.arguments.device
        self.batches = [{name: values.to(device) for name, values in batch.items()} for batch in self.batches]
        self.model.load_state_dict(self.weights)
        self.model.train()
        parameters = [each for each in self.model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.arguments.learning_rate, weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 1_000_000)
        order, steps, clock = np.random.default_rng(DEFAULT_SEED), 0, Clock()
        began = time.perf_counter()
        while True:
            for place in order.permutation(len(self.batches)):
                with torch.autocast(device.type, torch.bfloat16, enabled=self.arguments.bf16):
                    loss = self.model(**self.batches[place]).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                steps += 1
                if steps == WARM_UP:
                    wait_for_card()
                    clock.__enter__()
                    began = time.perf_counter()
                elif steps > WARM_UP and time.perf_counter() - began >= self.seconds:
                    wait_for_card()
                    clock.__exit__()
                    return (steps - WARM_UP) * self.batch_size / clock.seconds

    def compare(self, least_compiled: float) -> Found:  # type: ignore[override]
        """Speeds of all sides and their ratios, what recording costs, and how often a step waits."""
        sides: dict[str, Callable[[], float]] = {
            OURS: lambda: self.speed(self.our_trainer()),
            UNRECORDED: lambda: self.speed(self.our_trainer(record=False)),
            BARE: self.bare_speed,
            RANDOM: lambda: self.speed(self.library_trainer("random", self.plain)),
            GROUPED: lambda: self.speed(self.library_trainer("group_by_length", self.plain)),
        }
        found = in_turn(self.rounds, *(lambda _, side=side: side() for side in sides.values()))
        speeds = dict(zip(sides, found, strict=True))
        measures = [Measure(name, each, " rows/s") for name, each in speeds.items()]
        measures += [ratio("ours / bare loop", speeds[OURS], speeds[BARE], least=0.95),
                     ratio("ours / random batches", speeds[OURS], speeds[RANDOM]),
                     ratio("ours / grouped by length", speeds[OURS], speeds[GROUPED]),
                     Measure("recording", [100 * (other / own - 1) for own, other in
                                           zip(speeds[OURS], speeds[UNRECORDED], strict=True)], " %", most=1.0)]
        from torch._dynamo.exc import TorchDynamoException

        notes = self._waits(measures)
        with Clock() as clock:
            try:
                with time_limit(COMPILING if self.on_card else None):
                    compiled = self.speed(self.our_trainer(compiled=True), warm_up=-(-self.rows // self.batch_size))
            except (TimeoutError, TorchDynamoException, UserError) as error:  # the compiler wraps the end of its time
                compiled = None
                notes = [*notes, f"{COMPILED} is not measured, within the {COMPILING} seconds it may take: "
                                 f"{type(error).__name__}: {first_line(error):.200}"]
        if compiled is not None:
            bare = float(np.median(speeds[BARE]))
            measures += [Measure(COMPILED, [compiled], " rows/s"),
                         Measure("ours, compiled / bare loop", [compiled / bare], " x", least=least_compiled),
                         Measure("compiling, with its measurement", [clock.seconds], " s")]
        return Found(measures, notes, details=self._details())

    def _waits(self, measures: list[Measure]) -> list[str]:
        if not self.on_card:
            return ["waits for the card are not measured: there is none"]
        for name, trainer, most in ((OURS, self.our_trainer(), 1.0),
                                    (RANDOM, self.library_trainer("random", self.plain), None)):
            waits = self._run(trainer, wait_counter()).found
            measures.append(Measure(f"waits a step, {name}", [waits], most=most))
        return []

    def _details(self) -> dict[str, Any]:
        about = {"rows": self.rows, "mean_tokens": float(np.mean(self.lengths)), "batch_size": self.batch_size,
                 "bf16": self.arguments.bf16, "chosen": getattr(self.args, "on_gpu", {})}
        if self.on_card:
            import torch

            about["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return about


def questions(setting: Setting) -> Found:
    return OnCard(setting, "bert", BERT_BASE, "qa").compare(1.5)


def small_sentences(setting: Setting) -> Found:
    return OnCard(setting, "electra", ELECTRA_SMALL, "classification").compare(2.0)


def sentences(setting: Setting) -> Found:
    return OnCard(setting, "bert", BERT_BASE, "classification").compare(2.0)


def embeddings(setting: Setting) -> Found:
    """Sentences to vectors, files aside: tokens, batches, forward passes, means."""
    from datamap.core.splits import load_split
    from datamap.tasks.registry import get_task
    from datamap.training.embeddings import embedder, embedding_spans
    from datamap.training.models import load_encoder

    notes: list[str] = []
    library = peer("sentence_transformers", "sentence-transformers", notes)
    dataset = data_of(setting, "classification", setting.size(6000, 24))
    place = saved_model(setting, "bert", BERT_BASE, "classification", dataset)
    split = load_split(dataset, "train", get_task("classification"))
    texts = split.data[split.task.text_columns[0]][:]
    model, tokenizer = load_encoder(place, no_cuda=False)
    device = model.device.type

    def ours(bf16: bool) -> np.ndarray:
        rows, spans, _ = embedding_spans(split, tokenizer, "mean", vectors.LONGEST, 0)
        order, embed = embedder(model, tokenizer, rows, spans, BATCH_SIZE, bf16=bf16)
        return embed(order)

    def theirs(other: Any) -> np.ndarray:
        return other.encode(texts, batch_size=BATCH_SIZE, show_progress_bar=False)

    def seconds_of(side: Callable[[Any], np.ndarray], what: Any, _: int) -> float:
        return timed(side, what)[0]

    measures: list[Measure] = []
    for name, bf16 in (("bf16", True), ("float32", False)):
        sides: list[Callable[[int], Any]] = [partial(seconds_of, ours, bf16)]
        if library:
            other = vectors.sentence_transformer(place, device)
            if bf16 and device == "cuda":
                other.bfloat16()
            sides.append(partial(seconds_of, theirs, other))
        for each in sides:
            each(0)  # loads kernels
        found = in_turn(setting.size(3, 1), *sides)
        measures.append(Measure(f"{name}, ours", [len(texts) / seconds for seconds in found[0]], " rows/s"))
        if library:
            speeds = [len(texts) / seconds for seconds in found[1]]
            measures += [Measure(f"{name}, sentence-transformers", speeds, " rows/s"),
                         ratio(f"{name}, ours / sentence-transformers", found[1], found[0], least=1.0)]
    return Found(measures, notes)
