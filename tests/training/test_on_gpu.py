"""What is chosen for a GPU, steps that never wait for it, and compiled steps that learn and record the same.

Without a card waits are counted by what makes the host wait: reading a number out of a tensor."""

import copy
import json
import multiprocessing
import os
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_gpu_errors import USED_UP
from torch.utils._python_dispatch import TorchDispatchMode

import extract_embeddings
import run
from datamap.core.artifacts import stage
from datamap.core.errors import UserError
from datamap.core.files import read_json
from datamap.tasks.registry import get_task
from datamap.training import on_gpu, running
from datamap.training.arguments import parse_args
from datamap.training.batches import LengthGroupedSampler, PadToLongest
from datamap.training.on_gpu import (
    Card,
    buckets_of,
    card_of_process,
    chosen_for,
    compile_flags,
    how_compiled,
    masks_without_waiting,
    out_of_memory,
)
from datamap.training.trainer import CartographyTrainer, _walked_once

H200 = Card("made-up H200", bf16=True, cores=16)
WAITS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "unique2", "_unique2", "masked_select")


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for the device; copies from and to it may too, which do not show on a CPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        if name in WAITS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


# --- what is chosen ------------------------------------------------------------------------------------------------


def test_nothing_is_chosen_for_a_cpu():
    assert chosen_for(None, {}) == {}
    assert card_of_process(use_cpu=True) is None


def test_what_is_chosen_for_a_card():
    assert chosen_for(H200, {}) == {
        "bf16": True, "logging_nan_inf_filter": False, "dataloader_pin_memory": True, "dataloader_num_workers": 4,
        "dataloader_persistent_workers": True, "accelerator_config": {"non_blocking": True},
    }
    old = chosen_for(Card("made-up V100", bf16=False, cores=2), {})
    assert "bf16" not in old and old["dataloader_num_workers"] == 1
    alone = chosen_for(Card("made-up", bf16=True, cores=1), {})
    assert "dataloader_num_workers" not in alone and "dataloader_persistent_workers" not in alone


@pytest.mark.parametrize(("given", "left"), [
    ({"bf16": False}, {"bf16"}),
    ({"fp16": True}, {"bf16", "logging_nan_inf_filter"}),
    ({"dataloader_pin_memory": False}, {"dataloader_pin_memory", "accelerator_config"}),
    ({"accelerator_config": "mine.json"}, {"accelerator_config"}),
    ({"dataloader_num_workers": 0}, {"dataloader_num_workers", "dataloader_persistent_workers"}),
    ({"logging_nan_inf_filter": True}, {"logging_nan_inf_filter"}),
])
def test_flags_that_are_given_win(given, left):
    assert chosen_for(H200, given).keys() == chosen_for(H200, {}).keys() - left


@pytest.fixture
def task_and_argv(qa_dir, tiny_model, tmp_path):
    return [
        "--do_train", "--model", str(tiny_model), "--dataset", str(qa_dir), "--max_length", "48", "--doc_stride", "20",
        "--max_train_samples", "6", "--num_train_epochs", "2", "--per_device_train_batch_size", "5", "--no_cuda",
        "--save_strategy", "no",
        "--learning_rate", "1e-3", "--enable_cartography", "--cartography_output_dir", str(tmp_path / "map"),
        "--output_dir", str(tmp_path / "out"),
    ]


def test_the_library_takes_what_is_chosen(task_and_argv, monkeypatch, caplog):
    """Made up is the card alone: the arguments are built, and said in a line, as they would be on one."""
    from datamap.tasks.registry import get_task

    monkeypatch.setattr(running, "card_of_process", lambda use_cpu: H200)
    args = parse_args([flag for flag in task_and_argv if flag != "--no_cuda"] + ["--use_cpu"])
    arguments = running.training_arguments(args, get_task("qa"))
    assert arguments.bf16 and arguments.accelerator_config.non_blocking and not arguments.logging_nan_inf_filter
    assert args.on_gpu["card"] == "made-up H200" and args.on_gpu["dataloader_num_workers"] == 4
    line = on_gpu.in_words(H200, arguments, chosen_for(H200, {}))
    assert "\n" not in line and "bf16, a fused optimizer, copies that do not wait, 4 loader workers" in line
    args = parse_args([*task_and_argv, "--bf16", "false", "--dataloader_num_workers", "0"])
    arguments = running.training_arguments(args, get_task("qa"))
    assert not arguments.bf16 and arguments.dataloader_num_workers == 0
    json.dumps(args.on_gpu)


def test_a_run_on_a_card_says_what_it_chose_and_records_it(task_and_argv, monkeypatch, caplog, tmp_path):
    """A card is made up, the training is on the CPU (in float32, without workers)."""
    caplog.set_level("INFO")
    monkeypatch.setattr(running, "card_of_process", lambda use_cpu: H200)
    run.main([*task_and_argv, "--bf16", "false", "--dataloader_num_workers", "0", "--dataloader_pin_memory", "false"])
    lines = [record.getMessage() for record in caplog.records if "made-up H200" in record.getMessage()]
    assert len(lines) == 1 and "float32" in lines[0] and "0 loader workers" in lines[0]
    recorded = read_json(tmp_path / "out" / "run_meta.json")["arguments"]["on_gpu"]
    assert recorded["card"] == "made-up H200" and recorded["logging_nan_inf_filter"] is False
    assert recorded["compiled"] is None and "bf16" not in recorded


def test_nothing_of_a_card_is_said_or_recorded_on_a_cpu(task_and_argv):
    from datamap.tasks.registry import get_task

    args = parse_args(task_and_argv)
    running.training_arguments(args, get_task("qa"))
    assert not hasattr(args, "on_gpu")


# --- waits ---------------------------------------------------------------------------------------------------------


def test_an_attention_mask_is_built_without_a_question(tiny_model):
    """The same outputs, with padding and without; and what the library did is there again afterwards."""
    from transformers import AutoModel
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS

    before = MASKS["sdpa"]
    model = AutoModel.from_pretrained(tiny_model).eval()
    assert model.config._attn_implementation == "sdpa"
    tokens = torch.randint(5, 40, (4, 12), generator=torch.Generator().manual_seed(0))
    whole, padded = torch.ones_like(tokens), torch.ones_like(tokens)
    padded[1:, 9:] = 0
    for mask in (whole, padded, None):
        with torch.no_grad(), Waits() as asked:
            expected = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        with torch.no_grad(), masks_without_waiting(True), Waits() as waits:
            found = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert waits.found == []
        assert len(asked.found) == (mask is not None)  # what is spared
    assert MASKS["sdpa"] is before


def trained(argv, monkeypatch, count=False):
    """Losses and shapes of the steps of a run, and what each waited for where it is counted, which is slow."""
    losses, waits, shapes = [], [], []
    step = CartographyTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        shapes.append(tuple(inputs["input_ids"].shape))
        counted = Waits()
        with counted if count else nullcontext():
            loss = step(self, model, inputs, *args, **kwargs)
        waits.append(counted.found)
        losses.append(float(loss))
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(CartographyTrainer, "training_step", training_step)
        run.main(argv)
    return SimpleNamespace(losses=losses, waits=waits, shapes=shapes)


def dynamics_of(directory):
    files = sorted(directory.glob("training_dynamics_epoch_*.json"))
    return [read_json(file) for file in files]


def assert_same_dynamics(one, other, tolerance=2e-4):
    for first, second in zip(dynamics_of(one), dynamics_of(other), strict=True):
        assert first["id"] == second["id"]
        for name in first.keys() - {"id", "epoch"}:
            np.testing.assert_allclose(second[name], first[name], rtol=tolerance, atol=tolerance, err_msg=name)


def elsewhere(argv, place):
    return [*argv, "--output_dir", str(place / "out"), "--cartography_output_dir", str(place / "map")]


def test_a_step_asks_nothing(task_and_argv, monkeypatch, tmp_path):
    """Forward, loss, recording, backward: nothing is read out of a tensor, where the library's mask would read one."""
    usual = trained(elsewhere(task_and_argv, tmp_path / "usual"), monkeypatch, count=True)
    with masks_without_waiting(True):
        found = trained(elsewhere(task_and_argv, tmp_path / "spared"), monkeypatch, count=True)
    assert all(waits == [] for waits in found.waits), found.waits
    assert all(len(waits) == 1 for waits in usual.waits)  # the mask's; so the test sees a wait where there is one
    np.testing.assert_allclose(found.losses, usual.losses, rtol=1e-4)
    assert_same_dynamics(tmp_path / "usual/map", tmp_path / "spared/map")


def test_a_whole_step_waits_once_at_most(task_and_argv, monkeypatch, tmp_path):
    """With the library's own part of a step: the clipping, the optimizer, the check of the loss, the callbacks."""
    from transformers import TrainerCallback

    counts = []

    class Count(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.mode = Waits()
            self.mode.__enter__()

        def on_step_end(self, *args, **kwargs):
            self.mode.__exit__(None, None, None)
            counts.append(len(self.mode.found))

    def build(*args, **kwargs):
        trainer = build_trainer(*args, **kwargs)
        trainer.add_callback(Count())
        return trainer

    build_trainer = run.build_trainer
    monkeypatch.setattr(run, "build_trainer", build)
    quiet = ["--logging_nan_inf_filter", "false", "--logging_strategy", "no"]
    with masks_without_waiting(True):
        run.main(elsewhere([*task_and_argv, *quiet], tmp_path / "a"))
    spared, counts[:] = list(counts), []
    run.main(elsewhere([*task_and_argv, "--logging_strategy", "no"], tmp_path / "b"))
    assert max(spared) <= 1 and min(counts) >= 3, (spared, counts)


def test_a_step_walks_through_the_model_no_more_than_it_must(task_and_argv, monkeypatch, tmp_path):
    """The estimate of operations is the library's, and every module is in training mode, also after an evaluation."""
    from transformers import Trainer

    step, flops, modes, trainers, walks, walked = CartographyTrainer.training_step, [], [], [], [], []
    named_parameters = torch.nn.Module.named_parameters

    def counted(self, *args, **kwargs):
        walks.append(self)
        return named_parameters(self, *args, **kwargs)

    def training_step(self, model, inputs, *args, **kwargs):
        walked.append(sum(module is model for module in walks))  # behind the last step
        loss = step(self, model, inputs, *args, **kwargs)
        flops.append((self.floating_point_ops(inputs), Trainer.floating_point_ops(self, inputs)))
        modes.append(all(module.training for module in model.modules()))
        trainers.append(self)
        walks.clear()
        return loss

    monkeypatch.setattr(CartographyTrainer, "training_step", training_step)
    monkeypatch.setattr(torch.nn.Module, "named_parameters", counted)
    run.main([*elsewhere(task_and_argv, tmp_path), "--eval_strategy", "steps", "--eval_steps", "2", "--eval_split",
              "validation", "--max_eval_samples", "3"])
    assert all(modes) and len(modes) > 4
    assert all(ours == theirs > 0 for ours, theirs in flops)
    assert walked[0] > walked[1] == 0  # gradients are clipped and emptied in between
    assert not {"train", "parameters"} & vars(trainers[0].model).keys()


def test_copies_and_sharded_models_walk_by_themselves():
    """As who averages weights in a callback copies the model; and as fully sharded training puts other parameters into
    it, of which gradients must be clipped and emptied."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    with _walked_once(model, alone=True):
        assert model.train() is model and model[1].training
        other = copy.deepcopy(model)
        assert all(mine is named for mine, named in zip(other.parameters(), other[0].parameters(), strict=True))
        other.eval()
        assert model[1].training and not other[1].training
    with _walked_once(model, alone=False):
        model[0].weight = torch.nn.Parameter(torch.zeros(2, 2))
        assert any(each is model[0].weight for each in model.parameters())
    assert not {"train", "parameters"} & vars(model).keys()


# --- buckets and compiled steps --------------------------------------------------------------------------------------


def padded_positions(lengths, buckets):
    return sum(min(bucket for bucket in buckets if bucket >= length) for length in lengths)


def test_buckets_are_the_best_there_are():
    from itertools import combinations

    rng = np.random.default_rng(0)
    for most in (1, 2, 3, 4):
        lengths = rng.integers(5, 90, size=40).tolist()
        found = buckets_of(lengths, most=most)
        possible = sorted({-(-length // 8) * 8 for length in lengths})
        best = min(padded_positions(lengths, some) for some in combinations(possible, min(most, len(possible)))
                   if some[-1] >= max(lengths))
        assert padded_positions(lengths, found) == best and len(found) <= most
        assert list(found) == sorted(found)
    assert buckets_of([10, 10, 12], most=4) == (16,)
    assert buckets_of([10, 20], most=4, longest=500) == (16, 24, 504)


def test_batches_are_padded_to_the_next_length(tiny_model):
    from transformers import AutoTokenizer

    from datamap.tasks.registry import get_task

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    plain = PadToLongest(tokenizer, get_task("classification"), torch.nn.Linear(1, 1))
    collate = plain.to_lengths((16, 32))
    rows = [{"input_ids": [1] * size, "attention_mask": [1] * size, "row_index": size, "labels": 0}
            for size in (3, 17, 40)]
    assert [collate(rows[:upto])["input_ids"].shape[1] for upto in (1, 2, 3)] == [16, 32, 40]
    assert plain(rows[:1])["input_ids"].shape[1] == 3


@pytest.mark.parametrize("task", ["qa", "classification", "nli"])
def test_a_batch_crosses_as_one_tensor(tiny_model, task):
    from transformers import AutoTokenizer

    model = torch.nn.Linear(1, 1)
    plain = PadToLongest(AutoTokenizer.from_pretrained(tiny_model), get_task(task), model, 8)
    for on_the_left in (False, True):
        plain.on_the_left = on_the_left
        rows = [{name: list(range(place, place + size)) for place, name in enumerate(plain.fill)}
                | {name: 100 * size + place for place, name in enumerate(plain.numbers)} for size in (3, 17, 12)]
        for row in rows:
            row.pop("token_type_ids")
        collate = plain.in_one([*rows[0], "length"])
        [one] = collate(rows).values()
        assert one.shape[0] == 3  # from which the library reads how many rows a batch has
        found, expected = collate.apart(collate(rows)), plain(rows)
        assert found.keys() == expected.keys() and "token_type_ids" not in found
        for name, values in expected.items():
            assert found[name].dtype == values.dtype and torch.equal(found[name], values), name


@pytest.mark.parametrize("extra", [[], ["--max_steps", "3"],
                                   ["--eval_strategy", "epoch", "--eval_split", "validation"]])
def test_workers_end_with_what_they_work_for(task_and_argv, tmp_path, extra):
    """Also in the middle of an epoch. Those that persist would stay until their loader is collected as garbage, where
    PyTorch waits five seconds for each."""
    workers = ["--dataloader_num_workers", "2", "--dataloader_persistent_workers", "true"]
    children = {id(child) for child in multiprocessing.active_children()}
    run.main(elsewhere([*task_and_argv, *workers, *extra], tmp_path))
    assert {id(child) for child in multiprocessing.active_children()} <= children


def test_workers_that_stay_evaluate_what_they_are_asked_to(tmp_path):
    """As they are chosen on a card: the library keeps the loader of what was evaluated first."""
    argv = ["--do_eval", "--model", "tiny", "--dataset", "demo:clinical", "--no_cuda", "--max_eval_samples", "12",
            "--eval_ablations", "none", "q_only", "--max_length", "64", "--doc_stride", "16"]
    found = []
    run.main([*MODEL_FOR_EVALUATION, "--output_dir", str(tmp_path / "model")])
    for flags in ([], ["--dataloader_num_workers", "1", "--dataloader_persistent_workers", "true"]):
        place = tmp_path / f"out{len(flags)}"
        run.main([*argv, "--model", str(tmp_path / "model"), *flags, "--output_dir", str(place)])
        found.append({file.name: file.read_text() for file in sorted(place.glob("eval_predictions*"))})
    assert len(found[0]) == 2 and len(set(found[0].values())) == 2 and found[0] == found[1]


MODEL_FOR_EVALUATION = ["--do_train", "--model", "tiny", "--dataset", "demo:clinical", "--no_cuda",
                        "--max_train_samples", "40", "--max_length", "64", "--doc_stride", "16", "--learning_rate",
                        "1e-2", "--num_train_epochs", "2"]


def test_a_training_goes_on_in_the_precision_that_it_began_in(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "card_of_process", lambda use_cpu: H200)
    for began, goes_on in (({}, False), ({"on_gpu": {"bf16": True}}, True)):
        place = tmp_path / str(goes_on)
        with stage(place, {"do_train": True, **began}, owns=()):
            pass
        argv = ["--do_train", "--dataset", "demo:clinical", "--use_cpu", "--output_dir", str(place)]
        assert running.training_arguments(parse_args(argv), get_task("qa")).bf16
        again = parse_args([*argv, "--resume_from_checkpoint"])
        assert running.training_arguments(again, get_task("qa")).bf16 is goes_on


@pytest.mark.parametrize("flags", [{"torch_compile_mode": "reduce-overhead"}, {"torch_compile_backend": "cudagraphs"}])
def test_graphs_do_not_sum_up_gradients(flags):
    bert = type("Bert", (torch.nn.Module,), {"__module__": "transformers.models.bert"})()
    assert how_compiled(flags, H200, bert, 10, 1) is not None
    with pytest.raises(UserError, match="--gradient_accumulation_steps 2 sums them up"):
        how_compiled(flags, H200, bert, 10, 2)


def test_batches_are_not_padded_beyond_the_positions(task_and_argv):
    class Tokenizer:
        pad_token_id, pad_token_type_id, model_input_names = 0, 0, ["input_ids"]

    rows = [{"input_ids": [1] * 15, "token_roles": [1] * 15, "row_index": 0, "start_positions": 0, "end_positions": 0}]
    widths = [PadToLongest(Tokenizer(), get_task("qa"), torch.nn.Linear(1, 1), 8, most)(rows)["input_ids"].shape[1]
              for most in (None, 700, 15, 12)]
    assert widths == [16, 16, 15, 15]


def test_when_steps_are_compiled(monkeypatch):
    bert = type("Bert", (torch.nn.Module,), {"__module__": "transformers.models.bert"})()
    assert how_compiled({}, H200, bert, 10**9, 1) is None  # nobody has measured from where it pays
    steps = 20_000
    monkeypatch.setattr(on_gpu, "COMPILED_FROM", steps)
    assert how_compiled({}, None, bert, 10 * steps, 1) is None  # never unasked on a CPU
    assert how_compiled({}, H200, bert, steps - 1, 1) is None
    assert how_compiled({"torch_compile": False}, H200, bert, 10 * steps, 1) is None
    found = how_compiled({"torch_compile": True}, H200, bert, 1, 1)
    assert found == {"backend": "inductor", "dynamic": False, "mode": "reduce-overhead"}
    several = how_compiled({"torch_compile": True}, H200, bert, 1, 4)
    assert several is not None and "mode" not in several  # gradients are summed up
    assert how_compiled({"torch_compile_backend": "eager"}, None, bert, 1, 1) == {"backend": "eager", "dynamic": False}
    own = type("Own", (torch.nn.Module,), {})()
    assert how_compiled({}, H200, own, 10 * steps, 1) is None


def test_long_trainings_on_a_card_are_replayed_from_graphs_unasked(monkeypatch):
    monkeypatch.setattr(on_gpu, "can_compile", lambda model: True)
    monkeypatch.setattr(on_gpu, "COMPILED_FROM", 20_000)
    model = torch.nn.Linear(1, 1)
    assert how_compiled({}, H200, model, 20_000, 1) == {"backend": "cudagraphs", "dynamic": False}
    assert how_compiled({}, H200, model, 20_000, 2) is None  # gradients are summed up
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    assert how_compiled({}, H200, model, 20_000, 1) is None


def test_several_processes_compile_as_the_library_does(monkeypatch):
    flags = {"torch_compile": True, "learning_rate": 1.0}
    assert compile_flags(flags) == {"torch_compile": True}
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    assert compile_flags(flags) == {}


def test_compiled_steps_in_buckets_learn_and_record_the_same(task_and_argv, monkeypatch, tmp_path):
    """No dropout: the compiler's own kernels may draw other numbers. Odd batches at the end are not compiled."""
    argv = [*task_and_argv, "--max_length", "128", "--max_train_samples", "24", "--per_device_train_batch_size", "7"]
    plain = trained(elsewhere(argv, tmp_path / "plain"), monkeypatch)
    compiled = trained(elsewhere([*argv, "--torch_compile_backend", "aot_eager"], tmp_path / "compiled"),
                       monkeypatch)
    np.testing.assert_allclose(compiled.losses, plain.losses, rtol=1e-4)
    assert_same_dynamics(tmp_path / "plain/map", tmp_path / "compiled/map")
    whole, before = ({shape for shape in each.shapes if shape[0] == 7} for each in (compiled, plain))
    assert 2 <= len(whole) <= on_gpu.MOST_BUCKETS and len(before) > len(whole)
    assert plain.losses[0] != plain.losses[-1]


def test_buckets_alone_change_no_loss(task_and_argv, monkeypatch, tmp_path):
    """Padding takes no probability and no loss."""
    plain = trained(elsewhere(task_and_argv, tmp_path / "plain"), monkeypatch)
    init = CartographyTrainer.__init__

    def wide(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.buckets = (64,)

    monkeypatch.setattr(CartographyTrainer, "__init__", wide)
    padded = trained(elsewhere(task_and_argv, tmp_path / "padded"), monkeypatch)
    assert {shape[1] for shape in padded.shapes} == {64} and {shape[1] for shape in plain.shapes} != {64}
    np.testing.assert_allclose(padded.losses, plain.losses, rtol=1e-4)
    assert_same_dynamics(tmp_path / "plain/map", tmp_path / "padded/map")


def test_the_longest_of_batches_are_those_of_the_sampler():
    sampler = LengthGroupedSampler([3, 9, 4, 8, 5, 1, 2], 2, seed=1)
    rows = list(sampler)
    expected = [max(sampler.lengths[row] for row in rows[first : first + 2]) for first in range(0, 7, 2)]
    assert sampler.longest_of_batches() == expected


def test_graphs_without_a_card_are_refused_in_a_line(task_and_argv, refused):
    error = refused(run.main, *task_and_argv, "--torch_compile_backend", "cudagraphs")
    assert "--torch_compile_backend cudagraphs needs a GPU, and this run is on the CPU" in error


def test_an_unknown_backend_is_refused_in_a_line(task_and_argv, refused):
    assert "--torch_compile" in refused(run.main, *task_and_argv, "--torch_compile_backend", "no-such-backend")


# --- memory that is used up ----------------------------------------------------------------------------------------

def test_what_says_that_memory_is_used_up():
    assert all(map(out_of_memory, USED_UP))
    for other in ("CUDA error: device-side assert triggered", "DefaultCPUAllocator: can't allocate memory"):
        assert not out_of_memory(RuntimeError(other))


@pytest.mark.parametrize("error", USED_UP)
@pytest.mark.parametrize(("flags", "in_training", "told"), [
    (["--do_train"], True, "16 rows at once, or 4 to evaluate: lower --per_device_train_batch_size"),
    (["--do_train", "--eval_strategy", "epoch"], False, "16 rows at once, or 4 to evaluate: lower"),
    ([], False, "4 rows at once: lower --per_device_eval_batch_size or --max_length"),
])
def test_a_batch_without_room_ends_in_one_line(
    qa_dir, tiny_model, monkeypatch, tmp_path, refused, error, flags, in_training, told,
):
    original = torch.nn.Embedding.forward

    def forward(self, *args):
        if self.training == in_training:
            raise error
        return original(self, *args)

    monkeypatch.setattr(torch.nn.Embedding, "forward", forward)
    assert f"the GPU has no room for {told}" in refused(
        run.main, "--do_eval", *flags, "--model", tiny_model, "--dataset", qa_dir, "--max_length", "48",
        "--doc_stride", "20", "--per_device_train_batch_size", "16", "--per_device_eval_batch_size", "4", "--no_cuda",
        "--output_dir", tmp_path / "out")
    assert read_json(tmp_path / "out/run_meta.json")["status"] == "failed"


def test_texts_without_room_for_their_vectors_end_in_one_line(tiny_model, qa_dir, monkeypatch, tmp_path, refused):
    def forward(*_):
        raise USED_UP[0]

    monkeypatch.setattr(torch.nn.Embedding, "forward", forward)
    told = refused(extract_embeddings.main, "--model_path", tiny_model, "--dataset", qa_dir, "--no_cuda",
                   "--batch_size", "7", "--output_dir", tmp_path / "out")
    assert "the GPU has no room for 7 rows at once: give a smaller batch size or --max_length" in told
