"""Training: ours beside what people use, what recording costs, and the built-in models beside each other.

All sides train the same model from the same weights on the same rows, an epoch each, in turn in one process:

- ours: the trainer that run.py builds, with the recorder;
- random batches: the library's Trainer as its examples use it, batches drawn at random, each padded to its longest;
- grouped: the same with the library's own grouping by length (``train_sampling_strategy="group_by_length"``);
- padded: the same with every row padded to one length, on a quarter of the rows (speeds are in examples a second);
- bare: a PyTorch loop over batches that were made before the clock runs, of rows sorted by length. Forward, backward,
  clipping and step, as all the others do them, and nothing else: no sampler, collator, log or callback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from timing import Clock, Found, Measure, Setting, in_turn, ratio, script

from datamap.core.files import write_jsonl
from datamap.core.flags import DEFAULT_SEED
from datamap.core.splits import load_split
from datamap.demo import builtin
from datamap.tasks.registry import get_task

BATCH_SIZE = 16
OURS, RANDOM, GROUPED, PADDED, BARE = "ours", "random batches", "grouped by length", "padded", "bare loop"


def sampled(setting: Setting, name: str, task: str, dataset: str, rows: int) -> str:
    """A directory with a seeded sample of the training split: the first rows of a file are of few documents."""
    from datamap.training.data import write_split

    split = load_split(dataset, "train", get_task(task))
    chosen = np.random.default_rng(DEFAULT_SEED).permutation(len(split.data))[:rows]
    place = setting.output(name)
    write_split(place / "train.jsonl", replace(split, data=split.data.select(np.sort(chosen))))
    return str(place)


class Trainings:
    """Trainings of one model on the same rows, from the same weights. flags: of run.py, beside those of all."""

    def __init__(
        self, setting: Setting, dataset: str, task: str, model: str, max_length: int, batch_size: int = BATCH_SIZE,
        epochs: int = 1, flags: Sequence[str] = ("--no_cuda",),
    ):
        from transformers import set_seed
        from transformers.utils import logging as transformers_logging

        from datamap.training.arguments import SIZES, parse_args
        from datamap.training.data import load_data
        from datamap.training.models import load_model, usable_length
        from datamap.training.running import training_arguments

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self.batch_size = batch_size
        self.output = str(setting.scratch / f"{Path(dataset).name}-{Path(model).name}")
        self.args = parse_args([
            "--do_train", "--enable_cartography", f"--task={task}", f"--dataset={dataset}", f"--model={model}",
            f"--max_length={max_length}", f"--num_train_epochs={epochs}",
            f"--per_device_train_batch_size={batch_size}",
            "--save_strategy=no", "--logging_strategy=no", "--disable_tqdm=true", *flags,
            f"--output_dir={self.output}", f"--cartography_output_dir={self.output}-map",
        ])
        self.data = load_data(self.args)
        self.arguments = training_arguments(self.args, self.data.task)
        set_seed(DEFAULT_SEED)
        sizes = {size: getattr(self.args, size) for size in SIZES}
        self.model, self.tokenizer = load_model(model, self.data.task, self.data.loaded, max_length, sizes)
        self.data.match_labels(self.model.config)
        self.args.max_length = usable_length(max_length, self.model, self.tokenizer)
        self.weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        features = self._our_trainer(False).train_dataset
        self.rows, self.lengths = len(features), np.asarray(features["length"][:])
        self.names = [*(name for name in self.tokenizer.model_input_names if name in features.column_names),
                      *self.data.task.targets]
        self.plain = features.select_columns([*self.names, "length"])
        self.batches: list[dict[str, Any]] = []

    def _our_trainer(self, record: bool) -> Any:
        from datamap.training.running import build_trainer

        self.args.enable_cartography = record
        return build_trainer(self.args, self.arguments, self.data, self.model, self.tokenizer, None)

    def ours(self, record: bool = True) -> dict[str, float]:
        trainer = self._our_trainer(record)
        found = self._timed(trainer)
        return {**found, "rows": self.rows, "recorder": trainer.dynamics.seconds if record else 0.0}

    def library(self, sampling: str = "random", pad_to: int | None = None) -> dict[str, float]:
        """pad_to: of all rows, on a quarter of them."""
        few = min(self.rows, max(self.batch_size, self.rows // 4))
        rows = self.plain if pad_to is None else self.plain.select(range(few))
        padding = {} if pad_to is None else {"padding": "max_length", "max_length": pad_to}
        return {**self._timed(self.library_trainer(sampling, rows, **padding)), "rows": len(rows)}

    def library_trainer(self, sampling: str, rows: Any, **padding: Any) -> Any:
        """The library's Trainer and collator, and the model's own loss."""
        from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

        ours = self.arguments
        arguments = TrainingArguments(
            output_dir=self.output, num_train_epochs=ours.num_train_epochs, seed=DEFAULT_SEED,
            per_device_train_batch_size=self.batch_size, learning_rate=ours.learning_rate, use_cpu=ours.use_cpu,
            bf16=ours.bf16, dataloader_pin_memory=not ours.use_cpu, save_strategy="no", logging_strategy="no",
            disable_tqdm=True, report_to="none", train_sampling_strategy=sampling,
        )
        return Trainer(model=self.model, args=arguments, train_dataset=rows, processing_class=self.tokenizer,
                       data_collator=DataCollatorWithPadding(self.tokenizer, **padding))

    def _timed(self, trainer: Any) -> dict[str, float]:
        """Seconds of a training: of all of it, and of its epoch alone, also of the processors."""
        from transformers import PrinterCallback, TrainerCallback

        epoch, whole = Clock(), Clock()

        class Epoch(TrainerCallback):
            def on_epoch_begin(self, *_: Any, **__: Any) -> None:
                epoch.__enter__()

            def on_epoch_end(self, *_: Any, **__: Any) -> None:  # after the recorder's, which was added before
                epoch.__exit__()

        self.model.load_state_dict(self.weights)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Epoch())
        with whole:
            trainer.train()
        return {"seconds": whole.seconds, "epoch": epoch.seconds, "epoch_cpu": epoch.cpu_seconds,
                "steps": trainer.state.global_step}

    def make_batches(self, **padding: Any) -> None:
        """Those of the bare loop, once. padding: settings of the library's collator."""
        from transformers import DataCollatorWithPadding

        if self.batches:
            return
        order, collate = np.argsort(self.lengths, kind="stable"), DataCollatorWithPadding(self.tokenizer, **padding)
        rows = [{name: self.plain[int(row)][name] for name in self.names} for row in order]
        self.batches = [dict(collate(rows[first : first + self.batch_size]))
                        for first in range(0, len(rows), self.batch_size)]

    def bare(self, batches: int | None = None) -> dict[str, float]:
        """batches: how many of them (default: all)."""
        import torch

        self.make_batches()
        self.model.load_state_dict(self.weights)
        self.model.train()
        parameters = [each for each in self.model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.arguments.learning_rate, weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(self.batches))
        torch.manual_seed(DEFAULT_SEED)
        with Clock() as clock:
            for place in torch.randperm(len(self.batches)).tolist()[:batches]:
                self.model(**self.batches[place]).loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        return {"seconds": clock.seconds, "epoch": clock.seconds, "epoch_cpu": clock.cpu_seconds, "rows": self.rows,
                "steps": len(self.batches)}

    def compare(self, rounds: int, what: str, bounds: dict[str, float | None], pad_to: int) -> list[Measure]:
        """Speeds of ours and of the sides in ``bounds``, and how many times theirs ours is, within the rounds."""
        every: dict[str, Callable[[], dict[str, float]]] = {
            OURS: self.ours, RANDOM: self.library, GROUPED: partial(self.library, "group_by_length"),
            PADDED: partial(self.library, pad_to=pad_to), BARE: self.bare,
        }
        sides = {name: every[name] for name in (OURS, *bounds)}
        self.bare(batches=2)  # first steps load kernels
        found = in_turn(rounds, *(lambda _, side=side: side() for side in sides.values()))
        speeds = {name: [one["rows"] / one["epoch"] for one in each] for name, each in zip(sides, found, strict=True)}
        labels = {PADDED: f"padded to {pad_to}"}
        measures = [Measure(f"{what}, {labels.get(name, name)}", each, " examples/s") for name, each in speeds.items()]
        # A speed over a speed is their seconds over ours.
        return [*measures, *(ratio(f"{what}, ours / {labels.get(name, name)}", speeds[OURS], speeds[name], least)
                             for name, least in bounds.items())]


def question_answering(setting: Setting) -> Found:
    from datamap.training.batches import LengthGroupedSampler

    source = setting.dataset("policyqa", "demo:clinical")
    few, many = (Trainings(setting, sampled(setting, f"policyqa-{rows}", "qa", source, rows), "qa", "minilm", 512)
                 for rows in (setting.size(200, 8), setting.size(800, 16)))
    bounds: dict[str, float | None] = {RANDOM: 1.6, GROUPED: 1.0, PADDED: 8.0, BARE: 0.95}
    measures = few.compare(setting.size(3, 1), "policyqa", bounds, setting.size(512, int(few.lengths.max())))
    # Among few rows there are few of about one length, and a shuffle must not put the same rows together every time.
    measures += many.compare(setting.size(2, 1), f"policyqa, {many.rows:,} rows", {BARE: 0.95}, 512)
    for each in (few, many):
        sampler = LengthGroupedSampler(each.lengths.tolist(), BATCH_SIZE, DEFAULT_SEED)
        for side, order in ((OURS, list(sampler)), (BARE, np.argsort(each.lengths).tolist())):
            measures.append(Measure(f"positions of batches / tokens of their rows, {each.rows:,} rows, {side}",
                                    [padding(each.lengths, order)], " x"))
    return Found(measures, details=lengths_of(few))


def padding(lengths: np.ndarray, order: Sequence[int], batch_size: int = BATCH_SIZE) -> float:
    """Positions that are computed in this order, each batch padded to its longest row, for each token."""
    batches = [lengths[order[first : first + batch_size]] for first in range(0, len(order), batch_size)]
    return float(sum(len(batch) * batch.max() for batch in batches) / lengths.sum())


def sentences(setting: Setting) -> Found:
    measures, details = [], {}
    for name, task, stand_in in (("sick_nli", "nli", "demo:nli"), ("sst2", "classification", "demo:stories")):
        source = setting.dataset(name, stand_in)
        for model, rows in (("tiny", 16),) if setting.quick else (("minilm", 400), ("tiny", 1600)):
            each = Trainings(setting, sampled(setting, f"{name}-{rows}-{model}", task, source, rows), task, model, 128)
            bounds: dict[str, float | None] = {RANDOM: 1.2, GROUPED: None, PADDED: None, BARE: 0.95}
            measures += each.compare(setting.size(3, 1), f"{name}, {model}", bounds, 128)
            details[f"{name}, {model}"] = lengths_of(each)
    return Found(measures, details=details)


def lengths_of(each: Trainings) -> dict[str, float]:
    return {"rows": each.rows, "median_tokens": float(np.median(each.lengths)), "most_tokens": int(each.lengths.max())}


def recording(setting: Setting) -> Found:
    source = setting.dataset("policyqa", "demo:clinical")
    dataset = sampled(setting, "policyqa", "qa", source, setting.size(1900, 32))
    each = Trainings(setting, dataset, "qa", "tiny", 512)
    each.ours(record=False)  # a first training loads what later ones find there
    # So many rounds as a percent asks for: an epoch of 5 s differs by more from one to the next.
    sides = in_turn(setting.size(15, 1), lambda _: each.ours(), lambda _: each.ours(record=False))
    on, off = ({name: np.array([one[name] for one in side]) for name in side[0]} for side in sides)
    at_the_end = on["seconds"] - on["epoch"] - (off["seconds"] - off["epoch"])
    return Found([
        Measure("an epoch without recording", off["epoch"].tolist(), " s"),
        Measure("the epoch with recording / without", (on["epoch"] / off["epoch"]).tolist(), most=1.01),
        Measure("the same, CPU time", (on["epoch_cpu"] / off["epoch_cpu"]).tolist()),
        Measure("seconds in the recorder / of the epoch", (100 * on["recorder"] / on["epoch"]).tolist(), " %"),
        Measure("metrics and data map, the first in a process", at_the_end[:1].tolist(), " s", most=0.3),
        Measure("metrics and data map, later ones", at_the_end[1:].tolist() or at_the_end.tolist(), " s"),
    ], details=lengths_of(each))


def memory(setting: Setting) -> Found:
    """Peak memory of whole trainings, with recording and without, of two sizes: what grows with the examples."""
    epochs, few, many = setting.size(4, 2), setting.size(20_000, 100), setting.size(80_000, 200)
    rng = np.random.default_rng(DEFAULT_SEED)
    place = setting.output("texts")
    for size in (few, many):
        (place / f"of-{size}").mkdir()
        write_jsonl(place / f"of-{size}" / "train.jsonl", (
            {"id": f"{row:08}", "sentence": " ".join(f"w{word}" for word in rng.integers(200, size=4)),
             "label": int(rng.integers(2))} for row in range(size)))

    def peak(size: int, record: bool) -> float:
        flags = ["--enable_cartography", f"--cartography_output_dir={setting.scratch / 'map'}"] if record else []
        return script(
            "run.py", "--do_train", "--task=classification", f"--dataset={place / f'of-{size}'}", "--model=tiny",
            "--hidden_size=16", "--num_layers=1", "--max_length=16", f"--num_train_epochs={epochs}",
            "--per_device_train_batch_size=512", "--save_strategy=no", "--logging_strategy=no", "--no_cuda",
            "--overwrite", f"--output_dir={setting.scratch / 'model'}", *flags,
        ).peak_gb * 1e9

    sides = [partial(peak, size, record) for size in (few, many) for record in (True, False)]
    few_on, few_off, many_on, many_off = (np.array(each) for each in in_turn(
        setting.size(2, 1), *(lambda _, side=side: side() for side in sides)))
    grown = ((many_on - many_off) - (few_on - few_off)) / (epochs * (many - few))
    return Found([
        Measure("bytes more an example and epoch", grown.tolist(), most=40.0),
        Measure(f"more of {many:,} examples in all", ((many_on - many_off) / 1e6).tolist(), " MB"),
        Measure("peak without recording", (many_off / 1e9).tolist(), " GB"),
    ], details={"epochs": epochs, "examples": [few, many]})


# --- the built-in models --------------------------------------------------------------------------------------------


class Epoch:
    """One model and its batches of stories; ``step`` trains on one of them."""

    def __init__(self, name: str, split: Any, tokens: int, batch_size: int):
        import torch

        from datamap.training.batches import PadToLongest
        from datamap.training.models import load_model

        torch.manual_seed(DEFAULT_SEED)
        self.model, tokenizer = load_model(name, split.task, split, tokens, {})
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        features = split.task.features(split.data, tokenizer, tokens)
        collate, names = PadToLongest(tokenizer, split.task, self.model), tokenizer.model_input_names
        rows = [features[row] for row in range(len(features))]
        batches = [collate(rows[first : first + batch_size]) for first in range(0, len(rows), batch_size)]
        self.batches = [{key: batch[key] for key in (*names, "labels")} for batch in batches]

    def step(self, number: int) -> float:
        with Clock() as clock:
            self.model(**self.batches[number]).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return clock.seconds


def lstm(setting: Setting) -> Found:
    """An epoch over long stories, forward, backward and step; batches are taken in turn."""
    import datasets

    split = load_split("demo:stories", "test", get_task("classification"))
    rows = builtin.generate("stories", "test", num_examples=setting.size(640, 64))
    split.data = split.task.normalize(datasets.Dataset.from_list(rows), "demo:stories")
    models = ("tiny", "lstm", "lstm_reader")
    runners = [Epoch(name, split, 200, 32) for name in models]
    for runner in runners:
        runner.step(0)
    tiny, *others = in_turn(len(runners[0].batches), *(runner.step for runner in runners))
    found = [Measure(f"{name} / tiny", np.divide(each, tiny).tolist())
             for name, each in zip(models[1:], others, strict=True)]
    return Found([Measure("tiny, a batch", tiny, " s"), *found], details={"batch_size": 32, "tokens": 200})


# --- weights ---------------------------------------------------------------------------------------------------------

VARIABILITY = {"much less": (0.3, 0.05), "less": (0.3, 0.15), "as much": (0.2, 0.2), "more": (0.15, 0.3),
               "much more": (0.05, 0.3)}  # of short examples, of long ones


def soft_weights(setting: Setting) -> Found:
    """The mean weight over the windows of an epoch, which multiplies the learning rate, with weights that are 1 on
    average over examples and with ours, which are so over windows; half of the examples are long."""
    from datamap.training.trainer import weights_of

    rng, examples, measures = np.random.default_rng(DEFAULT_SEED), setting.size(2000, 200), []
    for many in (3, 12):
        is_long = rng.permutation(examples) < examples / 2
        windows = np.where(is_long, many, 1)
        for word, means in VARIABILITY.items():
            variability = np.clip(np.where(is_long, means[1], means[0]) * rng.gamma(4, 0.25, examples), 0, 0.5)
            for over, given in (("examples", None), ("windows", windows)):
                scale = float(np.repeat(weights_of(variability, 0.1, 10.0, given), windows).mean())
                measures.append(Measure(f"1 and {many} windows, the long vary {word}: over {over}", [scale],
                                        most=None if given is None else 1 + 1e-9))
    return Found(measures)
