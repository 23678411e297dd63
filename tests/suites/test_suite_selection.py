"""Experiments of a suite that choose what they train on: planned, carried out, shared with their controls."""

import json

import pytest
from conftest import write_rows

import run_experiments
from datamap.core.errors import UserError
from datamap.core.files import read_json, read_jsonl, read_table
from datamap.suites import console
from datamap.suites.planning import plan_suite
from datamap.suites.runner import execute
from run_experiments import parse_args

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def suite(tmp_path, monkeypatch, reviews):
    """Writes a suite of classification experiments and returns its file; its runs need no worker of their own."""

    def run_here(runs, retry, keep_models, **_):
        for run in runs:
            yield run, execute(run, retry, keep_models)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "run_locally", run_here)

    def write(*experiments, name="mine", **base):
        table = {
            "name": name, "baseline": experiments[0]["name"], "experiments": list(experiments),
            "base": {"task": "classification", "dataset": str(reviews), "model": "tiny", "no_cuda": True,
                     "do_train": True, "do_eval": True, "num_train_epochs": 1, "hidden_size": 32, **base},
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(table))
        return tmp_path / f"{name}.json"

    return write


def plan(file, *argv):
    return plan_suite(parse_args(["--suite", str(file), "--seeds", "1", "2", *argv]))[2]


ALL = {"name": "all"}
SELECT = {"selector": "stratified", "k": 12, "strata": ["token_count", "label"]}
CHOSEN = {"name": "chosen", "select": SELECT}


def test_runs_train_on_what_was_chosen_and_share_it_with_their_control(suite, tmp_path, reviews):
    file = suite(ALL, CHOSEN)
    run_experiments.main(["--suite", str(file), "--seeds", "1", "2"])
    runs = {(run.experiment, run.seed): run for run in plan(file)}
    assert {name for name, _ in runs} == {"all", "chosen", "chosen_control"}
    ids = [row["id"] for row in read_jsonl(reviews / "train.jsonl")]
    for seed in (1, 2):
        run, control = runs["chosen", seed], runs["chosen_control", seed]
        assert run.selection == control.selection
        directory = run.selection[-1].removeprefix("--output_dir=")
        chosen = read_table(f"{directory}/selected.csv")["id"].tolist()
        assert len(chosen) == 12 and read_json(f"{directory}/run_meta.json")["seed"] == seed
        [report] = read_json(run.directory / "filter_report.json")["filters"]
        trained = set(ids) - {example for removed in report["removed"].values() for example in removed}
        assert trained == set(chosen)
        assert read_json(control.directory / "filter_report.json")["after"] == 12
        assert "select_subset.py" in (run.directory / "log.txt").read_text()
        assert "select_subset.py" not in (control.directory / "log.txt").read_text()  # it was there
    table = read_table(tmp_path / "experiments/mine/results.csv").set_index(["experiment", "seed"])
    assert len(table) == 6
    for (experiment, seed), run in runs.items():
        row, trained = table.loc[experiment, seed], read_json(run.directory / "train_metrics.json")
        assert 0 < row["training_seconds"] == trained["training_seconds"] == trained["train_runtime"]
        assert 0 < row["evaluation_seconds"] == read_json(run.directory / "eval_metrics.json")["eval_runtime"]
        if experiment == "chosen":
            directory = run.selection[-1].removeprefix("--output_dir=")
            assert row["selection_seconds"] == read_json(f"{directory}/selection_meta.json")["seconds"] > 0
        else:
            assert row["selection_seconds"] != row["selection_seconds"], "empty"


def test_a_finished_suite_chooses_nothing_again(suite):
    file = suite(ALL, CHOSEN)
    run_experiments.main(["--suite", str(file), "--no_controls"])
    runs = plan_suite(parse_args(["--suite", str(file), "--no_controls"]))[2]
    before = [read_json(run.directory / "run_meta.json")["started"] for run in runs]
    run_experiments.main(["--suite", str(file), "--no_controls"])
    assert [read_json(run.directory / "run_meta.json")["started"] for run in runs] == before


@pytest.mark.parametrize(
    "other",
    [{"k": 13}, {"strata": ["label"]}, {"bins": 2}, {"selector": "random"}, {"stratify": "label"}, {"max_length": 99}],
)
def test_another_selection_is_another_run(suite, other):
    settings = {**SELECT, **other}
    if settings["selector"] == "random":
        settings.pop("strata")
    one, two = (plan(suite(ALL, {"name": "chosen", "select": each}), "--no_controls")
                for each in (SELECT, settings))
    assert one[0].identity == two[0].identity
    assert one[2].identity != two[2].identity and one[2].selection[-1] != two[2].selection[-1]


def test_a_baseline_that_chooses_has_controls_of_other_selections_only(suite):
    other = {"name": "other", "select": {"selector": "random", "k": 9}}
    names = {run.experiment for run in plan(suite(CHOSEN, {"name": "same", "select": SELECT,
                                                           "args": {"num_train_epochs": 2}}, other))}
    assert names == {"chosen", "same", "other", "other_control"}


def test_the_dry_run_prints_both_commands(suite, capsys):
    run_experiments.main(["--suite", str(suite(ALL, CHOSEN)), "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    [place] = [number for number, line in enumerate(lines) if "chosen-seed" in line and "run.py" in line]
    assert lines[place - 1].startswith("python select_subset.py --selector=stratified")
    assert "--task=classification" in lines[place - 1] and "--seed=42" in lines[place - 1]


@pytest.mark.parametrize(
    ("select", "args", "expected"),
    [
        ({"selektor": "random"}, {}, "unknown flag 'selektor'; did you mean --selector?"),
        ({"selector": "random", "k": 5, "seed": 3}, {}, "seed is decided by the suite"),
        ({"selector": "random", "k": 5, "dataset": "x"}, {}, "dataset is decided by the suite"),
        ({"selector": "random"}, {}, "how many? give --fraction"),
        ({"selector": "random", "k": 5}, {"train_ids": "some.csv"}, "select and train_ids both say"),
        ({"selector": "random", "k": 5}, {"do_train": False, "model": "a/b", "hidden_size": None},
         "select says what to train on; add do_train"),
        ({"selector": "random", "k": 5}, {"plant_errors": 0.1}, "data without the errors of plant_errors"),
        ({"selector": "forgetting", "k": 5}, {}, "cartography_output: no such file or directory"),
        ("random", {}, "expected flags and their values"),
    ],
)
def test_what_is_wrong_with_a_selection_is_said_before_anything_starts(suite, tmp_path, select, args, expected):
    with pytest.raises(UserError, match="experiment chosen") as error:
        plan(suite(ALL, {"name": "chosen", "select": select, "args": args}))
    assert expected in str(error.value)
    assert not (tmp_path / "experiments").exists()


def test_a_selection_that_fails_fails_its_run_only(suite, capsys):
    too_many = {"name": "chosen", "control": False, "select": {"selector": "random", "k": 1000}}
    with pytest.raises(SystemExit) as stopped:
        run_experiments.main(["--suite", str(suite(ALL, too_many)), "--seeds", "1"])
    assert stopped.value.code == 1
    assert "more than the 48 examples" in capsys.readouterr().err


def test_what_changes_in_place_is_another_selection(suite, tmp_path, reviews):
    """A language model, and a column to stratify by that is neither text nor label."""
    rows = [{**row, "topic": "ab"[number % 2]} for number, row in enumerate(read_jsonl(reviews / "train.jsonl"))]
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data/validation.jsonl", read_jsonl(reviews / "validation.jsonl"))
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm/config.json").write_text("{}")

    def identities() -> list[str]:
        write_rows(tmp_path / "data/train.jsonl", rows)
        file = suite(
            {"name": "all"},
            {"name": "topics", "select": {"selector": "random", "k": 6, "stratify": "topic"}},
            {"name": "fluent", "select": {"selector": "perplexity", "k": 6, "causal_lm": str(tmp_path / "lm")}},
            dataset=str(tmp_path / "data"),
        )
        runs = plan_suite(parse_args(["--suite", str(file), "--no_controls"]))[2]
        return [run.identity for run in runs]

    first = identities()
    (tmp_path / "lm/config.json").write_text('{"a": 1}')
    second = identities()
    assert second[:2] == first[:2] and second[2] != first[2]
    rows = [{**row, "topic": "ab"[number % 3 == 0]} for number, row in enumerate(rows)]
    third = identities()
    assert third[0] == second[0] and third[1] != second[1] and third[2] == second[2]


def test_a_trained_model_may_be_one_of_the_hub(suite):
    entropy = {"selector": "predictive_entropy", "k": 6, "model_path": "somebody/some-model"}
    runs = plan(suite(ALL, {"name": "chosen", "select": entropy}), "--no_controls")
    assert "--model_path=somebody/some-model" in runs[2].selection


@pytest.mark.parametrize("flag", [{"batch_size": 7}])
def test_how_fast_it_is_chosen_makes_no_other_run(suite, flag):
    one, two = (plan(suite(ALL, {"name": "chosen", "select": each}), "--no_controls")
                for each in (SELECT, {**SELECT, **flag}))
    assert [run.identity for run in one] == [run.identity for run in two]
