"""Suites: what is refused before anything starts, controls, and that a run's identity holds all that decides it."""

import json
import os
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import qa_rows, write_rows

import run_experiments
from datamap.core.artifacts import stage
from datamap.core.errors import UserError
from datamap.core.files import read_json
from datamap.core.splits import load_split
from datamap.suites import definition as suites
from datamap.suites.definition import Experiment, settings_hash
from datamap.suites.planning import plan_suite, write_plan
from datamap.tasks.registry import get_task
from datamap.training.arguments import inputs_of, parse_args, task_of_run
from datamap.training.data import training_split

BASE = {"model": "tiny", "no_cuda": True, "do_train": True, "do_eval": True}


def experiment(name, **args):
    return {"name": name, "args": args}


def written(path: Path, value) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def finished_map(directory, qa_dir, seed=42):
    """A finished cartography of the training split: a third of the examples in each category."""
    split = load_split(str(qa_dir), "train", get_task("qa"))
    rows = [
        {"id": key, "confidence": place % 8 / 8, "variability": 0.4 if place % 3 == seed % 3 else 0.01 * place / 24,
         "aum": place - 12.0, "never_learned": False}
        for place, key in enumerate(split.ids)
    ]
    args = parse_args(["--do_train", "--enable_cartography", "--no_cuda", "--model", "tiny", "--dataset", str(qa_dir),
                       "--seed", str(seed)])
    with stage(directory, args, owns=("cartography_metrics.*",), datasets=[split.identity()]) as path:
        pd.DataFrame(rows).to_csv(path / "cartography_metrics.csv", index=False)
    return directory


def finished_clusters(directory, qa_dir):
    split = load_split(str(qa_dir), "train", get_task("qa"))
    with stage(directory, {}, owns=("cluster_assignments.csv",), datasets=[split.identity()]) as path:
        pd.DataFrame(
            {"id": split.ids, "cluster": [place % 5 - 1 for place in range(24)], "dim1": 0.0, "dim2": 0.0,
             "cluster_probability": [place % 10 / 10 for place in range(24)], "outlier_score": 0.1}
        ).to_csv(path / "cluster_assignments.csv", index=False)
    return directory


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, qa_dir):
    """A finished map and clusters, called as run.py expects them; lists of ids; filter files."""
    directory = tmp_path_factory.mktemp("inputs")
    finished_map(directory / "cartography_output", qa_dir)
    finished_clusters(directory / "cluster_output", qa_dir)
    finished_map(directory / "cartography_output_validation", qa_dir)
    for name, ids in (("few.csv", (1, 3, 5)), ("more.csv", (0, 1, 2, 3))):
        written(directory / name, "".join(["id\n", *(f"train-{number:03d}\n" for number in ids)]))
    low = {"metric": "confidence", "min": 0.3}
    for name, block in (("low.json", low), ("high.json", {**low, "min": 0.6})):
        written(directory / name, {"metric": {"metrics_path": "cartography_output", **block}})
    return directory


@pytest.fixture
def here(tmp_path, inputs, monkeypatch):
    """The working directory, with ``inputs`` in it."""
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def table(here, qa_dir):
    """Write a suite file called table.json; its keys may be given."""

    def write(*experiments, base=None, **keys):
        base = {**BASE, "dataset": str(qa_dir), **(base or {})}
        return str(written(here / "table.json", {"name": "mine", "base": base, "experiments": experiments, **keys}))

    return write


@pytest.fixture
def planned(table):
    """What ``run_experiments.py`` makes of a suite: the suite itself, its prerequisites, its runs."""

    def plan(*experiments, argv=(), **keys):
        return plan_suite(run_experiments.parse_args(["--suite", table(*experiments, **keys), *argv]))

    return plan


@pytest.fixture
def experiments_of(planned):
    """The experiments of a suite by name, controls among them."""

    def plan(*experiments, **keys) -> dict[str, Experiment]:
        return {each.name: each for each in planned(*experiments, **keys)[0].experiments}

    return plan


def trained_on(argv):
    """The ids that run.py trains on with these flags, and its filter report."""
    args = parse_args(argv)
    _, used, report = training_split(args, task_of_run(args))
    return used.ids, report


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sedes": [1]}, "unknown key 'sedes'"),
        ({"experiments": []}, "expected a list of experiments, found []"),
        ({"experiments": None}, "expected a list of experiments"),
        ({"experiments": {"a": {}}}, "expected a list of experiments"),
        ({"experiments": ["a"]}, "experiment 1: expected an object with a name, found 'a'"),
        ({"experiments": [experiment("a"), {"args": {}}]}, "experiment 2: expected an object with a name"),
        ({"experiments": [{"name": ""}]}, "experiment 1: expected an object with a name"),
        ({"experiments": [{"name": 3}]}, "experiment 1: expected an object with a name"),
        ({"experiments": [experiment("a"), experiment("a", max_length=64)]}, "two experiments are called"),
        ({"baseline": "none"}, "the baseline 'none' is no experiment; there is baseline"),
        ({"baseline": None}, "the baseline None is no experiment"),
        ({"baseline": ["baseline"]}, "the baseline ['baseline'] is no experiment"),
        ({"base": []}, "base: expected flags and their values, found []"),
        ({"base": {"max_lenght": 64}}, "base: unknown flag 'max_lenght'; did you mean --max_length"),
        ({"base": {"seed": 3}}, "base: seed is decided by the suite"),
        ({"base": {"max_length": {"a": 1}}}, "base: max_length is {'a': 1}"),
        ({"prerequisites": []}, "prerequisites: expected an object"),
        ({"prerequisites": {"maps": {}}}, "prerequisites: unknown key 'maps'; there is cartography"),
        ({"prerequisites": {"cartography": None}}, "prerequisites, cartography: expected flags"),
        ({"prerequisites": {"cartography": {"epochs": 3}}}, "prerequisites, cartography: unknown flag 'epochs'"),
        ({"prerequisites": {"clusters": {"learning_rate": 3}}}, "prerequisites, clusters: unknown flag"),
        ({"prerequisites": {"embeddings": {"output_dir": "x"}}}, "prerequisites, embeddings: output_dir is decided"),
        ({"name": "a/b"}, "the name 'a/b' is that of a directory"),
        ({"name": None}, "the name None"),
    ],
)
def test_a_wrong_suite_is_one_line_that_names_its_file(refused, here, changes, words):
    whole = {"base": {**BASE, "dataset": "demo:nothing"}, "experiments": [experiment("baseline")], **changes}
    message = refused(run_experiments.main, "--suite", written(here / "table.json", whole))
    assert "table.json" in message and words in message


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": "x", "arg": {}}, "unknown key 'arg'; there is args, control"),
        ({"name": "x", "args": [1]}, "expected flags and their values, found [1]"),
        ({"name": "x", "args": None}, "expected flags and their values, found None"),
        ({"name": "x", "control": "no"}, "control is 'no'; expected true or false"),
        ({"name": "x", "control": 0}, "control is 0; expected true or false"),
        (experiment("x", max_lenght=64), "unknown flag 'max_lenght'; did you mean --max_length"),
        (experiment("x", seed=3), "seed is decided by the suite"),
        (experiment("x", output_dir="out"), "output_dir is decided by the suite"),
        ({"name": "x", "args": {"output-dir": "out"}}, "output-dir is decided by the suite"),
        (experiment("x", overwrite=True), "overwrite is decided by the suite"),
        (experiment("x", resume_from_checkpoint="last"), "resume_from_checkpoint is decided by the suite"),
        (experiment("x", config="low.json"), "config is decided by the suite"),
        (experiment("x", seed=None), "seed is decided by the suite"),
        (experiment("x", eval_split=[["a"]]), "eval_split is [['a']]"),
        ({"name": "x y", "args": {}}, "the name is that of a directory"),
        ({"name": "x/y", "args": {}}, "the name is that of a directory"),
        ({"name": "x_control", "args": {}}, "no _control at its end"),
    ],
)
def test_a_wrong_experiment_is_one_line_that_names_file_and_experiment(refused, table, wrong, words):
    message = refused(run_experiments.main, "--suite", table(experiment("baseline"), wrong))
    assert "table.json" in message and f"experiment {wrong['name']}" in message and words in message


WRONG_ARGUMENTS = [
    (experiment("x", max_length="long"), "--max_length"),
    (experiment("x", do_train=False, do_eval=False), "nothing to do"),
    (experiment("x", do_eval=False), "it evaluates nothing; add do_eval"),
    (experiment("x", smoothing_factor=0.4), "--smoothing_factor does nothing without --use_label_smoothing"),
    (experiment("x", filter_categories=["odd"]), "'odd' is not one of easy"),
    (experiment("x", filter_categories=["easy"], filter_random=True), "leave filter_random out"),
    (experiment("x", filter_random=True), "as the other blocks would keep"),
    (experiment("x", filter_config="nowhere.json"), "nowhere.json: no such file"),
    (experiment("x", task="nope"), "invalid choice"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG_ARGUMENTS)
def test_arguments_that_run_would_refuse_are_refused_before_anything_starts(refused, table, here, wrong, words):
    before = sorted(here.rglob("*"))
    message = refused(run_experiments.main, "--suite", table(experiment("baseline"), wrong))
    assert "table.json, experiment x: " in message and words in message
    assert sorted(here.rglob("*")) == sorted([*before, here / "table.json"])


@pytest.mark.parametrize("wrong", [wrong for wrong, _ in WRONG_ARGUMENTS])
def test_arguments_that_run_would_refuse_name_the_file(refused, table, wrong):
    assert "table.json" in refused(run_experiments.main, "--suite", table(experiment("baseline"), wrong))


@pytest.mark.parametrize("args", [{"train_ids": "nowhere.csv"}, {"use_soft_weighting": True}])
def test_a_missing_input_names_the_experiment(refused, table, here, args):
    shutil.rmtree(here / "cartography_output")
    assert "experiment x" in refused(run_experiments.main, "--suite", table(experiment("a"), experiment("x", **args)))


@pytest.mark.parametrize("text", ["", "{", '{"experiments": [],}', '{"base": {"seed": 1, "seed": 2}}', "[]"])
def test_a_file_that_is_no_suite(refused, here, text):
    assert "table.json" in refused(run_experiments.main, "--suite", written(here / "table.json", text))


def test_an_unknown_suite_names_those_that_are_built_in(refused, here):
    message = refused(run_experiments.main, "--suite", "dmeo")
    assert "--suite dmeo" in message and "demo" in message
    assert "nowhere.json: no such file" in refused(run_experiments.main, "--suite", "nowhere.json")


def test_two_experiments_that_come_to_the_same_arguments(refused, table):
    message = refused(run_experiments.main, "--suite", table(experiment("a", max_length=512), experiment("b")))
    assert "a and b come to the same arguments" in message


def test_an_experiment_without_args_is_the_base(experiments_of):
    found = experiments_of({"name": "a"}, experiment("b", max_length=64), base={"max_length": 96})
    assert (found["a"].arguments.max_length, found["b"].arguments.max_length) == (96, 64)


def test_the_baseline_is_the_one_called_so_else_the_first(planned):
    assert planned(experiment("a"), experiment("baseline", max_length=64))[0].baseline == "baseline"
    assert planned(experiment("a"), experiment("b", max_length=64))[0].baseline == "a"
    assert planned(experiment("a"), experiment("b", max_length=64), baseline="b")[0].baseline == "b"


def test_two_experiments_of_one_name_are_named_once(refused, table):
    message = refused(run_experiments.main, "--suite", table(experiment("a"), experiment("a", max_length=64)))
    assert message.endswith("two experiments are called 'a'")


def test_a_control_is_no_baseline(planned):
    with pytest.raises(UserError, match="baseline 'x_control'"):
        planned(experiment("a"), experiment("x", filter_categories=["easy"]), baseline="x_control")


def test_overwrite_under_its_other_name_is_decided_by_the_suite(refused, table):
    message = refused(run_experiments.main, "--suite", table(experiment("a", overwrite_output_dir=True)), "--dry_run")
    assert "decided by the suite" in message


def test_a_flag_in_two_spellings_is_there_twice(planned):
    with pytest.raises(UserError, match="max.length"):
        planned({"name": "a", "args": {"max-length": 64, "max_length": 128}})


@pytest.mark.parametrize("name", ["", ".", "..", "shared", "a\nb", "a\tb"])
def test_a_name_that_is_no_directory_of_its_own(planned, name):
    with pytest.raises(UserError, match="name"):
        planned(experiment("a"), name=name)


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a\x00b"])
def test_an_experiment_whose_name_is_not_one_word(planned, name):
    with pytest.raises(UserError, match="name"):
        planned(experiment(name))


@pytest.mark.parametrize("keys", [{"description": 3}, {"description": None}, {"why": ["a"]}])
def test_a_description_is_a_text(planned, keys):
    with pytest.raises(UserError, match="experiment a"):
        planned({"name": "a", **keys})


def test_a_directory_is_not_taken_for_a_suite(here):
    (here / "demo").mkdir()
    assert suites.suite_file("demo").parent == suites.SUITES


# --- precedence --------------------------------------------------------------------------------------------------


def test_an_experiment_wins_over_the_command_line_and_this_over_the_base(experiments_of):
    found = experiments_of(
        experiment("a"), experiment("b", max_length=64), base={"max_length": 96, "doc_stride": 16, "learning_rate": 1},
        argv=["--max-length", "80", "--doc_stride", "8"],
    )
    settings = {name: (each.arguments.max_length, each.arguments.doc_stride) for name, each in found.items()}
    assert settings == {"a": (80, 8), "b": (64, 8)}
    assert found["b"].arguments.learning_rate == 1


def test_an_experiment_turns_a_switch_of_the_base_off(experiments_of):
    found = experiments_of(experiment("a"), experiment("b", use_label_smoothing=False),
                           base={"use_label_smoothing": True})
    assert [each.arguments.use_label_smoothing for each in found.values()] == [True, False]


def test_a_list_of_the_command_line_reaches_every_experiment(experiments_of):
    argv = ["--eval_split", "validation", "train"]
    found = experiments_of(experiment("a"), experiment("b", max_length=64), argv=argv)
    assert [each.arguments.eval_split for each in found.values()] == [["validation", "train"]] * 2


def test_null_in_an_experiment_is_the_default_again(experiments_of):
    found = experiments_of(experiment("a"), experiment("b", max_train_samples=None), base={"max_train_samples": 9})
    assert found["b"].arguments.max_train_samples is None


def test_the_directories_of_the_prerequisites_give_way_to_the_suite_s_own(experiments_of, here, qa_dir):
    finished_map(here / "mine", qa_dir)
    found = experiments_of(
        experiment("a", use_soft_weighting=True),
        experiment("b", use_label_smoothing=True, cartography_output_dir="mine"), prerequisites={"cartography": {}},
    )
    assert [each.arguments.cartography_output_dir for each in found.values()] == ["cartography_output", "mine"]


# --- controls ----------------------------------------------------------------------------------------------------


CHANGES_DATA = [
    {"filter_categories": ["easy", "ambiguous"]},
    {"filter_cartography": True, "ambiguous_top_fraction": 0.5},
    {"filter_clusters": True},
    {"filter_clusters": True, "exclude_clusters": [0, 3], "min_cluster_probability": 0.2},
    {"train_ids": "few.csv"},
    {"filter_config": "low.json"},
    {"train_ids": "more.csv", "filter_categories": ["easy", "hard"]},
    {"train_ids": "more.csv", "filter_config": "low.json"},
    {"filter_categories": ["easy"], "use_soft_weighting": True},
]


@pytest.mark.parametrize("args", CHANGES_DATA)
def test_an_experiment_with_other_training_data_gets_a_control(experiments_of, args):
    found = experiments_of(experiment("baseline"), experiment("x", **args))
    assert list(found) == ["baseline", "x", "x_control"]
    assert found["x_control"].control_of == "x" and found["x"].control_of is None
    assert found["x_control"].arguments.filter_random and not found["x"].arguments.filter_random


@pytest.mark.parametrize("args", CHANGES_DATA)
def test_a_control_has_the_size_of_its_experiment_drawn_with_the_seed(planned, args):
    runs = planned(experiment("baseline"), experiment("x", **args), argv=["--seeds", "1", "2", "3"])[2]
    ids = {(run.experiment, run.seed): trained_on(run.argv)[0] for run in runs}
    size = len(ids["x", 1])
    assert 0 < size < len(ids["baseline", 1]) == 24
    drawn = {tuple(ids["x_control", seed]) for seed in (1, 2, 3)}
    assert {len(each) for each in drawn} == {size} and len(drawn) == 3
    assert ids["x", 1] == ids["x", 2] == ids["x", 3]
    assert all(set(each) <= set(ids["baseline", 1]) for each in drawn)


def test_a_control_is_drawn_from_what_the_baseline_trains_on(planned):
    runs = planned(experiment("baseline"), experiment("x", train_ids="few.csv"), base={"max_train_samples": 7})[2]
    ids = {run.experiment: trained_on(run.argv)[0] for run in runs}
    assert len(ids["x"]) == len(ids["x_control"]) == 3
    assert set(ids["x_control"]) <= set(ids["baseline"]) and len(ids["baseline"]) == 7


def test_a_control_differs_from_its_experiment_in_nothing_else(experiments_of):
    found = experiments_of(experiment("baseline"), experiment("x", filter_categories=["easy"], max_length=64))
    settings, control = vars(found["x"].arguments), vars(found["x_control"].arguments)
    assert {name for name in settings if settings[name] != control[name]} == {"filter_random", "filters"}


@pytest.mark.parametrize(
    "args",
    [
        {"use_label_smoothing": True},
        {"use_soft_weighting": True, "weight_clip_max": 2},
        {"num_train_epochs": 5},
        {"ablations": "q_only"},
        {"enable_cartography": True},
    ],
)
def test_an_experiment_with_the_same_training_data_gets_no_control(experiments_of, args):
    assert list(experiments_of(experiment("baseline"), experiment("x", **args))) == ["baseline", "x"]


def test_no_control_where_it_is_not_wanted(experiments_of):
    treated = experiment("x", filter_categories=["easy"])
    assert list(experiments_of(experiment("baseline"), {**treated, "control": False})) == ["baseline", "x"]
    assert list(experiments_of(experiment("baseline"), {**treated, "control": True})) == ["baseline", "x", "x_control"]
    assert list(experiments_of(experiment("baseline"), treated, argv=["--no_controls"])) == ["baseline", "x"]


def test_no_control_for_a_filter_that_the_baseline_has_too(experiments_of):
    found = experiments_of(experiment("baseline"), experiment("x", max_length=64),
                           base={"filter_categories": ["easy", "hard"]})
    assert list(found) == ["baseline", "x"]


def test_no_control_for_an_experiment_that_leaves_nothing_out(experiments_of):
    found = experiments_of(experiment("cleaned", filter_categories=["easy"]), experiment("all"), baseline="cleaned")
    assert "all_control" not in found


def test_no_control_for_an_experiment_that_is_not_trained(experiments_of, here):
    (here / "model").mkdir()
    found = experiments_of(
        experiment("baseline"),
        experiment("x", do_train=False, model="model", filter_categories=["easy"], filter_validation=True),
    )
    assert list(found) == ["baseline", "x"]


def test_a_filter_file_that_draws_at_random_is_refused_like_the_switch(experiments_of, here):
    low = read_json(here / "low.json")
    written(here / "control.json", {**low, "random": {}})
    with pytest.raises(UserError, match="experiment x: .*random"):
        experiments_of(experiment("baseline"), experiment("x", filter_config="control.json"))


def test_a_control_is_no_filter_of_the_evaluation(experiments_of):
    found = experiments_of(experiment("baseline"), experiment("x", filter_categories=["easy"]))
    assert {each.arguments.filter_validation for each in found.values()} == {False}


@pytest.mark.parametrize(
    "flags",
    [
        ["--train_ids", "few.csv"],
        ["--filter_config", "low.json"],
        ["--train_ids", "more.csv", "--filter_config", "low.json"],
        ["--train_ids", "more.csv", "--filter_categories", "easy,ambiguous"],
        ["--filter_categories", "easy"],
    ],
)
def test_run_draws_as_many_as_the_other_flags_leave(here, qa_dir, flags):
    common = ["--do_train", "--dataset", str(qa_dir), "--model", "tiny", *flags]
    chosen, _ = trained_on(common)
    drawn, report = trained_on([*common, "--filter_random", "--seed", "5"])
    assert len(drawn) == len(set(drawn)) == len(chosen) and set(drawn) != set(chosen)
    assert report["after"] == len(drawn) and report["before"] == 24 and report["seed"] == 5
    assert [each["filter"] for each in report["filters"]] == ["random"]
    assert report["size_matched_to"][-1]["after"] == len(chosen)
    assert trained_on([*common, "--filter_random", "--seed", "5"])[0] == drawn
    assert trained_on([*common, "--filter_random", "--seed", "6"])[0] != drawn


# --- identity: what is one run and what are two ------------------------------------------------------------------

FLAGS = [
    # A flag, a value other than the default, and what must be set on both sides.
    ("num_train_epochs", 5, {}),
    ("learning_rate", 1e-3, {}),
    ("max_steps", 7, {}),
    ("warmup_steps", 0.1, {}),
    ("weight_decay", 0.01, {}),
    ("per_device_train_batch_size", 4, {}),
    ("per_device_eval_batch_size", 4, {}),
    ("gradient_accumulation_steps", 2, {}),
    ("lr_scheduler_type", "cosine", {}),
    ("max_grad_norm", 0.5, {}),
    ("optim", "adafactor", {}),
    ("adam_beta1", 0.8, {}),
    ("bf16", True, {}),
    ("data_seed", 3, {}),
    ("eval_strategy", "epoch", {}),
    ("keep_top_epochs", 2, {}),
    ("no_cuda", False, {"no_cuda": True}),
    ("max_train_samples", 12, {}),
    ("max_eval_samples", 5, {}),
    ("max_length", 64, {"doc_stride": 16}),
    ("doc_stride", 16, {}),
    ("max_answer_length", 8, {}),
    ("spans", "strict", {}),
    ("ablations", "q_only", {}),
    ("ablations", "p_only", {"ablations": "q_only"}),
    ("eval_ablations", ["none", "q_only"], {}),
    ("eval_split", ["validation", "train"], {}),
    ("train_split", "validation", {"eval_split": "train"}),
    ("slice_by", ["source"], {}),
    ("cluster_by", "source", {}),
    ("hidden_size", 64, {}),
    ("num_layers", 1, {}),
    ("dropout", 0.3, {}),
    ("vocab_size", 300, {}),
    ("enable_cartography", True, {}),
    ("confidence_type", "mean", {"enable_cartography": True}),
    ("cross_fit", 3, {"enable_cartography": True}),
    ("mc_dropout", 2, {"enable_cartography": True, "cross_fit": 3}),
    ("use_label_smoothing", True, {}),
    ("smoothing_factor", 0.4, {"use_label_smoothing": True}),
    ("use_soft_weighting", True, {}),
    ("weight_clip_min", 0.5, {"use_soft_weighting": True}),
    ("weight_clip_max", 2, {"use_soft_weighting": True}),
    ("filter_cartography", True, {}),
    ("ambiguous_top_fraction", 0.5, {"filter_cartography": True}),
    ("filter_categories", ["easy"], {}),
    ("filter_categories", ["easy", "hard"], {"filter_categories": ["easy"]}),
    ("filter_clusters", True, {}),
    ("exclude_clusters", [-1, 0], {"filter_clusters": True}),
    ("min_cluster_probability", 0.5, {"filter_clusters": True}),
    ("train_ids", "few.csv", {}),
    ("train_ids", "more.csv", {"train_ids": "few.csv"}),
    ("filter_config", "low.json", {}),
    ("filter_config", "high.json", {"filter_config": "low.json"}),
    ("filter_validation", True, {"filter_categories": ["easy"]}),
    ("max_drop_percentage", 99, {"filter_categories": ["easy"]}),
]
FILTERS = ("max_train_samples", "filter_cartography", "ambiguous_top_fraction", "filter_categories", "filter_clusters",
           "exclude_clusters", "min_cluster_probability", "train_ids", "filter_config")


@pytest.mark.parametrize(("flag", "value", "common"), FLAGS, ids=[f"{flag}={value}" for flag, value, _ in FLAGS])
def test_two_experiments_that_differ_in_a_flag_differ_in_arguments_and_identity(planned, here, flag, value, common):
    suite, _, runs = planned(experiment("a"), experiment("b", **{flag: value}), base=common, argv=["--no_controls"])
    write_plan(suite, [42], here / "experiments/mine")
    one, other = read_json(here / "experiments/mine/suite.json")["experiments"]
    assert one["arguments"].get(flag) != other["arguments"][flag]
    assert one["settings_hash"] != other["settings_hash"]
    assert len({run.identity for run in runs}) == len({run.directory for run in runs}) == 2


@pytest.mark.parametrize(
    ("flag", "value", "common"), [each for each in FLAGS if each[0] in FILTERS],
    ids=[f"{flag}={value}" for flag, value, _ in FLAGS if flag in FILTERS],
)
def test_two_experiments_that_differ_in_a_filter_flag_differ_in_their_reports(planned, flag, value, common):
    runs = planned(experiment("a"), experiment("b", **{flag: value}), base=common, argv=["--no_controls"])[2]
    (ids, report), (other_ids, other_report) = (trained_on(run.argv) for run in runs)
    assert ids != other_ids
    assert report != other_report or flag == "max_train_samples"  # whose cap comes before any filter


def test_the_label_column_and_the_task_are_part_of_the_identity(experiments_of, reviews):
    found = experiments_of(
        experiment("a", label_column="label"), experiment("b", label_column="kind"),
        base={"task": "classification", "dataset": str(reviews)},
    )
    assert found["a"].settings_hash != found["b"].settings_hash


def test_another_dataset_or_model_is_another_run(experiments_of, here):
    (here / "data").mkdir()
    (here / "model").mkdir()
    written(here / "model/config.json", "{}")
    for split in ("train", "validation"):
        write_rows(here / f"data/{split}.jsonl", qa_rows(8, seed=9, prefix=split))
    found = experiments_of(
        experiment("a"), experiment("b", dataset="data"), experiment("c", model="model"),
        experiment("d", model="model", do_train=False),
    )
    assert len({each.settings_hash for each in found.values()}) == 4


def identities(*argv):
    return {run.experiment: run.identity for run in plan_suite(run_experiments.parse_args([*argv, "--seeds", "1"]))[2]}


def test_a_run_is_what_it_was_in_earlier_versions(tmp_path, monkeypatch):
    """Finished suites go on after an update: whoever changes one of these lets every run of it be done again."""
    monkeypatch.chdir(tmp_path)
    assert identities("--suite", "demo") == {
        "baseline": "889f1c0d3af902c0", "no_hard": "85028b607f07c0f4", "no_hard_control": "6a3819fdc28d2d6c",
        "smoothing": "bcef151ed91e61ce", "weighting": "0d3808b6d8478d51",
    }
    selections = {
        "all": None, "random": {"selector": "random", "k": 60},
        "stratified": {"selector": "stratified", "k": 60, "strata": ["token_count", "label"]},
        "kcenter": {"selector": "kcenter", "fraction": 0.1, "model": "some/encoder"},
        "pipeline": {"pipeline": "label_issues:0.9,kmeans:0.1", "folds": 3},
        "perplexity": {"selector": "perplexity", "k": 6},
    }
    base = {**BASE, "task": "classification", "dataset": "demo:stories", "model": "lstm_reader",
            "num_train_epochs": 1, "max_train_samples": 300}
    experiments = [{"name": name, **({"select": select} if select else {})} for name, select in selections.items()]
    written(tmp_path / "chosen.json", {"baseline": "all", "base": base, "experiments": experiments})
    assert identities("--suite", "chosen.json", "--no_controls") == {
        "all": "f3e00643c0fbf552", "random": "ecf75c591fb5105f", "stratified": "89e3745758f17429",
        "kcenter": "4a1b1664cd29d0ce", "pipeline": "b767d55c1cfbca80", "perplexity": "c4ca68a5f8058733",
    }


def hash_of(*argv):
    args = parse_args([str(word) for word in argv])
    return settings_hash(args, inputs_of(args), {})


@pytest.fixture
def flags(here, qa_dir):
    return ["--do_train", "--do_eval", "--model", "tiny", "--dataset", str(qa_dir)]


def test_the_output_directory_the_seed_and_the_config_file_are_no_settings(flags, here):
    written(here / "flags.json", {"seed": 4, "output_dir": "out"})
    assert hash_of(*flags) == hash_of(*flags, "--config", here / "flags.json")
    assert hash_of(*flags) == hash_of(*flags, "--output_dir", "other", "--overwrite", "--seed", "5")
    assert hash_of(*flags) == hash_of(*flags, "--plot_format", "pdf", "svg")


def test_how_many_folds_are_trained_at_a_time_is_no_setting(flags):
    crossed = [*flags, "--enable_cartography", "--cross_fit", "3"]
    assert hash_of(*crossed) == hash_of(*crossed, "--cross_fit_workers", "2")


def test_planted_errors_make_another_run(flags):
    planted = [*flags, "--plant_errors", "0.2"]
    assert hash_of(*planted) == hash_of(*planted, "--plant_seed", "0") == hash_of(*planted, "--output_dir", "other")
    assert len({hash_of(*flags), hash_of(*planted), hash_of(*planted, "--plant_seed", "1")}) == 3


def test_the_seed_makes_another_run(planned):
    first, second = planned(experiment("a"), argv=["--seeds", "1", "2"])[2]
    assert first.identity != second.identity and first.directory != second.directory
    assert first.config["settings_hash"] == second.config["settings_hash"]


def test_the_order_of_keys_is_nothing(experiments_of):
    base = {"max_length": 64, "doc_stride": 16, "learning_rate": 1e-3}
    args = {"filter_clusters": True, "exclude_clusters": [0], "use_soft_weighting": True}
    one = experiments_of(experiment("a"), experiment("x", **args), base=base)
    backwards = dict(reversed(list(args.items())))
    other = experiments_of(experiment("a"), experiment("x", **backwards), base=dict(reversed(list(base.items()))))
    assert {name: each.settings_hash for name, each in one.items()} == {
        name: each.settings_hash for name, each in other.items()
    }


def test_a_default_that_is_written_out_is_the_default(flags):
    assert hash_of(*flags) == hash_of(*flags, "--max_length", "512", "--ablations", "none", "--no_cuda", "false")
    assert hash_of(*flags) == hash_of(*flags, "--spans", "nearest") != hash_of(*flags, "--spans", "strict")


READS_MAP = [
    ["--use_soft_weighting"],
    ["--use_label_smoothing"],
    ["--filter_categories", "easy"],
    ["--filter_cartography"],
]


@pytest.mark.parametrize("reads", READS_MAP)
def test_where_a_map_lies_is_nothing(flags, here, reads):
    before = hash_of(*flags, *reads)
    (here / "cartography_output").rename(here / "moved")
    assert hash_of(*flags, *reads, "--cartography_output_dir", "moved") == before
    assert hash_of(*flags, *reads, "--cartography_output_dir", here / "moved") == before


@pytest.mark.parametrize("reads", READS_MAP)
def test_a_map_that_was_made_again_is_another_run(flags, here, qa_dir, reads):
    before, without = hash_of(*flags, *reads), hash_of(*flags)
    finished_map(here / "cartography_output", qa_dir, seed=43)
    assert hash_of(*flags, *reads) != before
    assert hash_of(*flags) == without  # which does not read it


def test_the_map_that_the_suite_makes_is_one_wherever_the_experiments_are(experiments_of, here):
    shutil.rmtree(here / "cartography_output")
    hashes = []
    for directory in ("one", "two/deep"):
        found = experiments_of(experiment("a"), experiment("x", filter_categories=["easy"]),
                               prerequisites={"cartography": {}}, argv=["--experiments_dir", directory])
        assert directory in found["x"].arguments.cartography_output_dir
        hashes.append([each.settings_hash for each in found.values()])
    assert hashes[0] == hashes[1]


def test_another_prerequisite_is_another_run(experiments_of, here):
    shutil.rmtree(here / "cartography_output")
    hashes = [
        experiments_of(experiment("a", use_soft_weighting=True),
                       prerequisites={"cartography": {"num_train_epochs": epochs}})["a"].settings_hash
        for epochs in (4, 5)
    ]
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_dataset_that_changed_is_another_run(here, qa_dir, split):
    shutil.copytree(qa_dir, here / "data")
    flags = ("--do_train", "--do_eval", "--model", "tiny", "--dataset", "data")
    before = hash_of(*flags)
    assert hash_of(*flags) == before
    file = here / f"data/{split}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[-1]["question"] += "?"
    write_rows(file, rows)
    assert hash_of(*flags) != before


def test_a_dataset_that_was_only_touched_is_the_same_run(here, qa_dir):
    shutil.copytree(qa_dir, here / "data")
    flags = ("--do_train", "--do_eval", "--model", "tiny", "--dataset", "data")
    before = hash_of(*flags)
    os.utime(here / "data/train.jsonl", (1, 1))
    assert hash_of(*flags) == before


def test_a_list_of_ids_that_changed_is_another_run(flags, here):
    before = hash_of(*flags, "--train_ids", "few.csv")
    shutil.copy(here / "few.csv", here / "copy.csv")
    assert hash_of(*flags, "--train_ids", "copy.csv") == before
    written(here / "few.csv", (here / "few.csv").read_text() + "train-007\n")
    assert hash_of(*flags, "--train_ids", "few.csv") != before


def test_a_filter_file_that_changed_is_another_run(flags, here):
    before = hash_of(*flags, "--filter_config", "low.json")
    shutil.copy(here / "low.json", here / "copy.json")
    assert hash_of(*flags, "--filter_config", "copy.json") == before
    shutil.copy(here / "high.json", here / "low.json")
    assert hash_of(*flags, "--filter_config", "low.json") != before


def test_a_model_that_was_trained_again_is_another_run(flags, here):
    with stage(here / "model", {"seed": 3}, owns=()):
        pass
    before = hash_of(*flags, "--model", "model")
    assert hash_of(*flags, "--model", "model") == before
    with stage(here / "model", {"seed": 4}, owns=()):
        pass
    assert hash_of(*flags, "--model", "model") != before


def test_a_list_of_ids_that_changed_beside_a_run_meta_is_another_run(flags, here):
    with stage(here / "selected", {}, owns=("*.csv",)) as path:
        shutil.copy(here / "few.csv", path / "few.csv")
    before = hash_of(*flags, "--train_ids", "selected/few.csv")
    shutil.copy(here / "more.csv", here / "selected/few.csv")
    assert hash_of(*flags, "--train_ids", "selected/few.csv") != before


def test_two_lists_of_ids_in_one_directory_are_two_experiments(experiments_of, here):
    with stage(here / "selected", {}, owns=("*.csv",)) as path:
        shutil.copy(here / "few.csv", path / "few.csv")
        shutil.copy(here / "more.csv", path / "more.csv")
    one, other = [experiment(name, train_ids=f"selected/{name}.csv") for name in ("few", "more")]
    found = experiments_of(one, other)
    assert found["few"].settings_hash != found["more"].settings_hash


def test_every_file_that_a_list_of_filter_blocks_reads_counts(flags, here, qa_dir):
    finished_map(here / "other", qa_dir)
    blocks = [{"metrics_path": name, "metric": "confidence", "min": 0.1} for name in ("other", "cartography_output")]
    written(here / "two.json", {"metric": blocks})
    before = hash_of(*flags, "--filter_config", "two.json")
    finished_map(here / "other", qa_dir, seed=43)
    assert hash_of(*flags, "--filter_config", "two.json") != before


def test_the_order_of_filter_blocks_counts_because_it_changes_what_is_left(flags, here):
    metric = {"metrics_path": "cartography_output", "metric": "confidence", "drop": "lowest", "drop_fraction": 0.5}
    category = {"metrics_path": "cartography_output", "categories": ["easy", "hard"]}
    written(here / "one.json", {"metric": metric, "category": category})
    written(here / "other.json", {"category": category, "metric": metric})
    one, other = [[*flags, "--filter_config", f"{name}.json"] for name in ("one", "other")]
    assert trained_on(one)[0] != trained_on(other)[0]
    assert hash_of(*one) != hash_of(*other)


def test_a_map_made_elsewhere_is_told_by_its_content(flags, here):
    (here / "cartography_output/run_meta.json").unlink()
    before = hash_of(*flags, "--use_soft_weighting")
    os.utime(here / "cartography_output/cartography_metrics.csv", (1, 1))
    assert hash_of(*flags, "--use_soft_weighting") == before


# --- the command line --------------------------------------------------------------------------------------------


def test_the_defaults():
    args = run_experiments.parse_args(["--suite", "demo"])
    assert (args.mode, args.seeds, args.workers, args.launcher, args.extra) == ("run", [42], 1, "local", [])
    assert args.experiments_dir == "./experiments" and not (args.dry_run or args.no_controls or args.stop_on_error)


def test_the_command_of_the_issue():
    args = run_experiments.parse_args("--mode run --suite sample --max-train-samples 10000 --seeds 42 43 44".split())
    assert args.seeds == [42, 43, 44] and args.extra == ["--max_train_samples=10000"]


@pytest.mark.parametrize(
    ("words", "flag", "value"),
    [
        ("--max-train-samples 10 --seeds 1 2", "max_train_samples", 10),
        ("--learning_rate=1e-3 --seeds 1,2", "learning_rate", 1e-3),
        ("--filter_clusters --exclude_clusters -1,3 --seeds 1 2", "exclude_clusters", [-1, 3]),
        ("--exclude_clusters -1 3 --seeds 1 2 --filter_clusters", "exclude_clusters", [-1, 3]),
        ("--eval_split validation train --workers 1 --seeds 1 2", "eval_split", ["validation", "train"]),
        ("--no_cuda false --seeds 1 2", "no_cuda", False),
        ("--no_cuda --seeds 1 2", "no_cuda", True),
        ("--seeds 1 2 --model lstm_reader", "model", "lstm_reader"),
    ],
)
def test_flags_of_run_go_through(words, flag, value):
    args = run_experiments.parse_args(["--suite", "demo", *words.split()])
    assert args.seeds == [1, 2]
    assert getattr(parse_args(["--do_train", "--do_eval", *args.extra]), flag) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--mode run needs --suite"),
        ("--mode rum --suite demo", "invalid choice"),
        ("--suite demo --worker 2", "unknown argument --worker; did you mean --workers"),
        ("--suite demo --dry-runs", "unknown argument --dry_runs; did you mean --dry_run"),
        ("--suite demo --slurm-times 3", "did you mean --slurm_time"),
        ("--suite demo --max_train_sample 3", "did you mean --max_train_samples"),
        ("--suite demo --zzzzzzzz 3", "unknown argument --zzzzzzzz"),
        ("--suite demo --seed 3", "--seed is run.py's; a suite takes --seeds"),
        ("--suite demo --seed=3", "--seed is run.py's; a suite takes --seeds"),
        ("--suite demo --output_dir x", "--output_dir is decided by the suite"),
        ("--suite demo --config x.json", "--config is decided by the suite"),
        ("--suite demo --overwrite", "--overwrite is decided by the suite"),
        ("--suite demo --resume_from_checkpoint", "--resume_from_checkpoint is decided by the suite"),
        ("--suite demo --seeds 1 2 1", "--seeds names a seed twice"),
        ("--suite demo --seeds 1 01", "--seeds names a seed twice"),
        ("--suite demo --seeds one", "--seeds"),
        ("--suite demo --seeds", "--seeds"),
        ("--suite demo --seeds -1", "--seeds"),
        ("--suite demo --seeds 1.5", "--seeds"),
        ("--suite demo --workers 0", "--workers"),
        ("--suite demo --launcher slurm", "--launcher slurm needs --slurm_time"),
        ("--suite demo --launcher pbs", "invalid choice"),
        ("--suite demo --slurm_time 5", "--slurm_time does nothing without --launcher slurm"),
        ("--suite demo --slurm_partition p", "--slurm_partition does nothing without --launcher slurm"),
        ("--suite demo --slurm_gpus 1", "--slurm_gpus does nothing without --launcher slurm"),
        ("--suite demo --slurm_cpus 2", "--slurm_cpus does nothing without --launcher slurm"),
        ("--suite demo --slurm_parallel 2", "--slurm_parallel does nothing without --launcher slurm"),
        ("--suite demo --launcher slurm --slurm_time 5 --slurm_gpus -1", "--slurm_gpus must not be negative"),
        ("--suite demo --launcher slurm --slurm_time 0", "--slurm_time"),
        ("--mode analyze --max_length 3", "--max_length does nothing with --mode analyze"),
        ("--mode status --model tiny", "--model does nothing with --mode status"),
        ("--suite demo oops", "unknown argument oops"),
        ("oops --suite demo", "unknown argument oops"),
        ("--suite demo --margin -1", "--margin"),
    ],
)
def test_a_wrong_command_line_is_one_line(refused, words, message):
    assert message in refused(run_experiments.main, *words.split())


def test_overwrite_output_dir_is_decided_by_the_suite_too(capsys):
    with pytest.raises(SystemExit):
        run_experiments.parse_args(["--suite", "demo", "--overwrite_output_dir"])


def test_dry_run_does_nothing_with_analyze(capsys):
    with pytest.raises(SystemExit):
        run_experiments.parse_args(["--mode", "analyze", "--dry_run"])


def test_a_word_too_many_behind_a_flag_is_found_before_anything_starts(refused, table, here):
    message = refused(run_experiments.main, "--suite", table(experiment("a")), "--max_length", "64", "oops")
    assert "unknown argument oops" in message
    assert not (here / "experiments").exists()


def test_a_wrong_value_of_a_flag_of_run_is_found_before_anything_starts(refused, table, here):
    message = refused(run_experiments.main, "--suite", table(experiment("a")), "--max_length", "many")
    assert "--max_length" in message and "experiment a" in message
    assert not (here / "experiments").exists()


# --- --dry_run ---------------------------------------------------------------------------------------------------


def snapshot(directory):
    return {str(path): path.stat().st_mtime_ns for path in sorted(directory.rglob("*"))}


def test_dry_run_prints_commands_that_run_takes_and_touches_no_file(table, here, capsys):
    file = table(experiment("baseline"), experiment("x", filter_clusters=True, exclude_clusters=[-1, 3]),
                 experiment("y", train_ids="few.csv"))
    before = snapshot(here)
    run_experiments.main(["--suite", file, "--dry_run", "--seeds", "1", "2", "--learning_rate", "1e-3"])
    assert snapshot(here) == before
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(commands) == 5 * 2 and all(words[:2] == ["python", "run.py"] for words in commands)
    arguments = [parse_args(words[2:]) for words in commands]
    assert [each.seed for each in arguments] == [1, 2] * 5
    assert {each.learning_rate for each in arguments} == {1e-3}
    assert len({each.output_dir for each in arguments}) == 10
    assert {Path(each.output_dir).parent for each in arguments} == {Path("experiments/mine")}
    assert [each.exclude_clusters for each in arguments][2] == [-1, 3]


def test_a_command_survives_blanks_and_quotes(planned, here, qa_dir):
    place = here / "my 'data' $HOME"
    shutil.copytree(qa_dir, place)
    [run] = planned(experiment("a"), base={"dataset": str(place)}, argv=["--experiments_dir", "my experiments"])[2]
    words = shlex.split(run.config["command"])
    args = parse_args(words[2:])
    assert args.dataset == str(place) and args.output_dir == str(run.directory)
    assert tuple(words[2:]) == run.argv


def test_dry_run_of_the_built_in_demo(here, capsys):
    before = snapshot(here)
    run_experiments.main(["--suite", "demo", "--dry_run", "--seeds", "1"])
    first, *runs = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert parse_args(first[2:]).enable_cartography
    arguments = [parse_args(words[2:]) for words in runs]
    assert [each.filter_random for each in arguments] == [False, False, True, False, False]
    assert [each.use_soft_weighting for each in arguments] == [False, False, False, False, True]
    assert {each.cartography_output_dir for each in arguments} == {parse_args(first[2:]).cartography_output_dir}
    assert snapshot(here) == before


@pytest.mark.parametrize("name", sorted(path.stem for path in suites.SUITES.glob("*.json")))
def test_every_built_in_suite_can_be_planned(tmp_path, monkeypatch, qa_dir, reviews, name):
    monkeypatch.chdir(tmp_path)
    data = reviews if name in ("selection", "quality_diversity") else qa_dir
    argv = ["--suite", name, "--dataset", str(data), "--seeds", "1", "2"]
    suite, _, runs = plan_suite(run_experiments.parse_args(argv))
    assert suite.name == name and suite.description and len(suite.experiments) > (name != "maps")
    assert len(runs) == 2 * len(suite.experiments) == len({run.identity for run in runs})
    for run in runs:
        assert parse_args(run.argv).do_eval


def test_there_are_the_built_in_suites_of_the_issue():
    names = {path.stem for path in suites.SUITES.glob("*.json")}
    assert names >= {"sample", "minimal", "filtering", "weighting", "ablations", "combined", "demo"}


def test_a_warning_of_run_is_heard(table, capsys):
    file = table(experiment("a", enable_cartography=True, num_train_epochs=2))
    run_experiments.main(["--suite", file, "--dry_run"])
    assert "variability will say little" in capsys.readouterr().err


def test_a_run_that_records_a_map_records_its_own(planned):
    runs = planned(experiment("a", enable_cartography=True), argv=["--seeds", "1", "2"])[2]
    places = [Path(parse_args(run.argv).cartography_output_dir) for run in runs]
    assert places == [run.directory / "cartography_output" for run in runs]


def test_the_plan_keeps_the_seeds_of_before(planned, here):
    for seeds in ([1, 2], [2, 3]):
        suite = planned(experiment("a"))[0]
        write_plan(suite, seeds, here / "e")
    assert read_json(here / "e/suite.json")["experiments"][0]["seeds"] == [1, 2, 3]
    suite = planned(experiment("a", max_length=64))[0]
    write_plan(suite, [5], here / "e")
    assert read_json(here / "e/suite.json")["experiments"][0]["seeds"] == [5]
