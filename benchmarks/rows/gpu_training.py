"""Training and embeddings on a GPU, of models of real shapes with random weights, on texts that are made up.

Each side trains for a few seconds behind its first steps, which load kernels and fill the queues, and is then stopped;
the clock runs from one wait for the card to another. Sides are those of rows/training.py, all in the precision that
ours chooses and padded to a multiple of 8. CUDA graphs are measured behind a whole epoch, in which every length is
recorded; what that took beyond the epoch's other steps is told, and from how many steps on it pays.
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
from datamap.training.on_gpu import buckets_of, out_of_memory
from rows import vectors
from rows.training import BARE, GROUPED, OURS, RANDOM, Trainings, sampled

BATCH_SIZE = 32
WARM_UP = 10  # steps
COUNTED = 5  # steps in which waits are counted
PROFILED = 3  # steps of which the card's own time is told
GRAPH_LENGTHS = 2  # fewer than a training has, as each is recorded by itself
RECORDING = 45  # seconds that graphs may take to be recorded and measured, so that the other rows have their time
GRAPHS, UNRECORDED = "ours, CUDA graphs", "ours, without recording"
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


def stopwatch(seconds: float, warm_up: int, batch_size: int, profiles: bool = False) -> Any:
    """A callback that stops a training so many seconds behind its first steps, and knows its rows a second, the ends
    of the first steps and, where it profiles, the milliseconds that the card works in a step."""
    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        steps, last, speed, busy = 0, 0, 0.0, 0.0
        profile: Any = None

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not self.steps:  # the workers that make batches have begun
                self.ends = [time.perf_counter()]

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps += 1
            if self.steps <= warm_up:
                self.ends.append(time.perf_counter())
            if self.steps == warm_up:
                wait_for_card()
                self.began = time.perf_counter()
            elif self.speed:
                if self.steps == self.last:
                    wait_for_card()
                    self.profile.__exit__(None, None, None)
                    times = [each.self_device_time_total for each in self.profile.key_averages()]  # microseconds
                    self.busy = sum(times) / 1000 / PROFILED
                    control.should_training_stop = True
            elif self.steps > warm_up and time.perf_counter() - self.began >= seconds:
                wait_for_card()
                self.speed = (self.steps - warm_up) * batch_size / (time.perf_counter() - self.began)
                if profiles:
                    self.last = self.steps + PROFILED
                    self.profile = profile(activities=[ProfilerActivity.CUDA])
                    self.profile.__enter__()
                else:
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

    seconds: of each side, in each round.
    """

    def __init__(self, setting: Setting, kind: str, shape: dict[str, int], task: str):
        import torch

        self.on_card = torch.cuda.is_available()
        self.batch_size = setting.size(BATCH_SIZE, 4)
        self.seconds, self.rounds = (0.05, 1) if setting.quick else (0.8, 3)
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

    def our_trainer(self, record: bool = True, graphs: bool = False) -> Any:
        self.args.torch_compile = graphs
        if graphs:  # without a card there are none: this backend traces the steps as well, and runs them as they are
            self.args.torch_compile_backend = "cudagraphs" if self.on_card else "aot_eager"
        trainer = self._our_trainer(record)
        vars(self.args).pop("torch_compile_backend", None)
        if graphs:
            sampler = trainer.length_sampler()
            trainer.buckets = buckets_of(sampler.longest_of_batches(), GRAPH_LENGTHS, max(sampler.lengths))
        return trainer

    def their_trainer(self, sampling: str) -> Any:
        return self.library_trainer(sampling, self.plain, pad_to_multiple_of=8)

    def load_kernels(self) -> None:
        """Train on a batch of each length, so that no side pays for what is loaded once."""
        import torch

        self.make_batches(pad_to_multiple_of=8)
        device = self.arguments.device
        self.batches = [{name: values.to(device) for name, values in batch.items()} for batch in self.batches]
        self.model.train()
        for batch in {each["input_ids"].shape: each for each in self.batches}.values():
            with torch.autocast(device.type, torch.bfloat16, enabled=self.arguments.bf16):
                loss = self.model(**batch).loss
            loss.backward()
        self.model.zero_grad()

    def watched(self, trainer: Any, warm_up: int = WARM_UP, profiles: bool = False) -> Any:
        if self.quick:
            warm_up = min(warm_up, 2)
        return self._run(trainer, stopwatch(self.seconds, warm_up, self.batch_size, profiles and self.on_card))

    def speed(self, trainer: Any) -> float:
        return self.watched(trainer).speed

    def bare_speed(self) -> float:
        """The bare loop, over batches on the card, in the same precision."""
        import torch

        device = self.arguments.device
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

    def compare(self, least_with_graphs: float) -> Found:  # type: ignore[override]
        """Speeds of all sides and their ratios, what recording costs, how often a step waits, how long the card works
        in it."""
        self.load_kernels()
        shares: list[float] = []  # of the training, in percent, that the recorder took by its own clock

        def ours() -> float:
            trainer = self.our_trainer()
            watch = self.watched(trainer)
            shares.append(100 * trainer.dynamics.seconds / watch.steps * watch.speed / self.batch_size)
            return watch.speed

        sides: dict[str, Callable[[], float]] = {
            OURS: ours,
            UNRECORDED: lambda: self.speed(self.our_trainer(record=False)),
            BARE: self.bare_speed,
            RANDOM: lambda: self.speed(self.their_trainer("random")),
            GROUPED: lambda: self.speed(self.their_trainer("group_by_length")),
        }
        found = in_turn(self.rounds, *(lambda _, side=side: side() for side in sides.values()))
        speeds = dict(zip(sides, found, strict=True))
        measures = [Measure(name, each, " rows/s") for name, each in speeds.items()]
        measures += [ratio("ours / bare loop", speeds[OURS], speeds[BARE], least=0.95),
                     ratio("ours / random batches", speeds[OURS], speeds[RANDOM]),
                     ratio("ours / grouped by length", speeds[OURS], speeds[GROUPED]),
                     Measure("recording", [100 * (other / own - 1) for own, other in
                                           zip(speeds[OURS], speeds[UNRECORDED], strict=True)], " %", most=1.0),
                     Measure("recording, by its own clock", shares, " %")]
        notes = self._on_the_card(measures)
        try:
            with time_limit(RECORDING if self.on_card else None):
                self._with_graphs(measures, speeds, least_with_graphs)
        except (TimeoutError, RuntimeError, UserError) as error:  # the compiler wraps the end of its time
            if isinstance(error, RuntimeError) and out_of_memory(error):
                raise
            notes.append(f"{GRAPHS}: not wholly measured, within the {RECORDING} seconds they may take: "
                         f"{type(error).__name__}: {first_line(error):.200}")
        return Found(measures, notes, details=self._details())

    def _with_graphs(self, measures: list[Measure], speeds: dict[str, list[float]], least: float) -> None:
        epoch = -(-self.rows // self.batch_size)
        first = self.watched(self.our_trainer(graphs=True), warm_up=epoch, profiles=True)
        own, bare = float(np.median(speeds[OURS])), float(np.median(speeds[BARE]))
        measures += [Measure(GRAPHS, [first.speed], " rows/s"),
                     Measure(f"{GRAPHS} / bare loop", [first.speed / bare], " x", least=least)]
        steps = np.diff(first.ends)
        taken = float((steps - np.median(steps))[steps > 5 * np.median(steps)].sum())
        measures.append(Measure(f"{GRAPHS}: to record them, {GRAPH_LENGTHS} lengths", [taken], " s"))
        if first.speed > own:
            saved = self.batch_size / own - self.batch_size / first.speed  # seconds a step
            measures.append(Measure(f"{GRAPHS} pay from", [taken / saved], " steps"))
        if self.on_card:
            measures.append(Measure(f"{GRAPHS}: the card works, of a step", [first.busy], " ms"))

    def _on_the_card(self, measures: list[Measure]) -> list[str]:
        if not self.on_card:
            return ["waits for the card, and its own time, are not measured: there is none"]
        for name, trainer, most in ((OURS, self.our_trainer(), 1.0), (RANDOM, self.their_trainer("random"), None)):
            waits = self._run(trainer, wait_counter()).found
            measures.append(Measure(f"waits a step, {name}", [waits], most=most))
        busy = self.watched(self.our_trainer(), profiles=True).busy
        measures.append(Measure(f"{OURS}: the card works, of a step", [busy], " ms"))
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
