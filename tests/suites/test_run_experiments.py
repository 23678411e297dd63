"""run_experiments.py from outside: its modes, what it prints, its exit status; runs are made here, none is trained."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from test_suite_report import (  # noqa: F401
    SEEDS,
    bare,
    everything,
    fail,
    finish,
    frozen,
    metas,
    place_of,
    planned,
    rows_of,
    table,
)

from datamap.core import progress
from datamap.core.artifacts import META
from datamap.core.files import read_json, write_json
from datamap.suites import console
from datamap.suites import plots as suite_plots
from datamap.suites.planning import estimate, plan_suite, write_plan
from datamap.suites.report import is_compared
from datamap.suites.runner import Outcome
from datamap.suites.runs import FAILED, FINISHED, seconds_of
from run_experiments import main, parse_args

BASE = {"model": "tiny", "no_cuda": True, "do_train": True, "do_eval": True, "num_train_epochs": 4}
FEW: dict[str, dict] = {"baseline": {}, "other": {}}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite_plots, "write_plots", lambda *_: None)
    return tmp_path


@pytest.fixture
def small(here, qa_dir):
    """A suite of two experiments, as a file."""
    file = here / "small.json"
    experiments = [{"name": "baseline", "args": {}}, {"name": "long", "args": {"num_train_epochs": 8}}]
    file.write_text(json.dumps({"name": "few", "base": {**BASE, "dataset": str(qa_dir)}, "experiments": experiments}))
    return file


@pytest.fixture
def runner(monkeypatch):
    """Runs end as ``runner`` says, (experiment, seed) -> error; what was begun is in ``runner["begun"]``."""
    ends: dict[Any, Any] = {"begun": []}

    def run_locally(runs, **settings):
        for run in runs:
            ends["begun"].append((run.experiment, run.seed))
            directory = run.directory.parent
            error = ends.get((run.experiment, run.seed))
            if error is None:
                finish(directory, run.experiment, run.seed)
                yield run, Outcome(FINISHED, 61.0)
            else:
                fail(directory, run.experiment, run.seed, error)
                yield run, Outcome(FAILED, 2.0, error)

    monkeypatch.setattr(console, "run_locally", run_locally)
    return ends


def run(small, *flags):
    main(["--suite", str(small), "--seeds", "1", "2", *map(str, flags)])


def status_of(call) -> object:
    with pytest.raises(SystemExit) as stopped:
        call()
    return stopped.value.code


# --- running ------------------------------------------------------------------------------------------------------


def test_a_suite_from_its_start_to_its_comparison(small, runner, capsys):
    run(small)
    out, err = capsys.readouterr()
    assert runner["begun"] == [("baseline", 1), ("baseline", 2), ("long", 1), ("long", 2)]
    assert "suite few: 4 runs, 4 finished, 0 failed, 0 missing" in out
    assert "wrote results.csv, comparison.csv, .json and .md, and plots to experiments/few" in out
    assert "suite few: 2 experiments, seeds 1, 2: 4 runs" in err and "4 to do: " in err
    assert "4/4  long, seed 2: finished in 61 s" in err
    for name in ("suite.json", "results.csv", "comparison.csv", "comparison.json", "comparison.md"):
        assert Path("experiments/few", name).exists()


def test_off_a_terminal_a_line_comes_while_a_run_takes_long(small, runner, capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    begin = console.run_locally

    def slowly(runs, **settings):
        for number, ended in enumerate(begin(runs, **settings)):
            if number == 2:
                time.sleep(0.5)
            yield ended

    monkeypatch.setattr(console, "run_locally", slowly)
    run(small)
    assert re.search(r"^runs: 2 of 4 runs, \d+ s left$", capsys.readouterr().err, re.MULTILINE)


def test_a_finished_suite_is_left_alone(small, runner, capsys):
    run(small)
    directory = Path("experiments/few")
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    runner["begun"].clear()
    capsys.readouterr()
    run(small)
    out, err = capsys.readouterr()
    assert runner["begun"] == []
    assert out == "nothing to do: experiments/few/comparison.md is there already; --mode analyze makes it again\n"
    assert "4 finished runs are left as they are" in err and "4 runs, of which 4 finished" in err
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()} == before


def test_a_margin_compares_a_finished_suite_anew(small, runner, capsys):
    run(small)
    run(small, "--margin", 7)
    assert {row["margin"] for row in rows_of(Path("experiments/few"))} == {7}
    assert "wrote results.csv" in capsys.readouterr().out


def test_another_seed_is_run_and_compared_with_those_before(small, runner):
    run(small)
    runner["begun"].clear()
    main(["--suite", str(small), "--seeds", "3"])
    assert runner["begun"] == [("baseline", 3), ("long", 3)]
    assert {tuple(row["seeds"]) for row in rows_of(Path("experiments/few"))} == {(1, 2, 3)}


def test_failed_runs_end_in_status_1_with_their_names_and_logs(small, runner, capsys):
    runner["long", 2] = "OutOfMemoryError: no 3 GB"
    assert status_of(lambda: run(small)) == 1
    out, err = capsys.readouterr()
    assert "4 runs, 3 finished, 1 failed, 0 missing" in out, "what there is is compared all the same"
    place = place_of(Path("experiments/few"), "long", 2)
    told = err[err.index("\nfailed: ") :]
    assert told == (f"\nfailed: long, seed 2: OutOfMemoryError: no 3 GB\n  {place}/log.txt\n  | loading\n"
                    "  | training\n  | it broke\n\n1 failed; --retry_failed runs them again\n")
    # Again: it is still a failure, and nothing is tried.
    runner["begun"].clear()
    assert status_of(lambda: run(small)) == 1
    out, err = capsys.readouterr()
    assert runner["begun"] == [] and "failed: long, seed 2" in err and "nothing to do" in out
    assert "1 failed before and stay so; --retry_failed" in err
    # And again, with success.
    del runner["long", 2]
    run(small, "--retry_failed")
    out, err = capsys.readouterr()
    assert runner["begun"] == [("long", 2)] and "failed: " not in err and "4 finished, 0 failed" in out


def test_every_failed_run_is_listed(small, runner, capsys):
    for seed in (1, 2):
        runner["long", seed] = f"ValueError: {seed}"
    runner["baseline", 1] = "ValueError: 0"
    assert status_of(lambda: run(small)) == 1
    err = capsys.readouterr().err
    assert re.findall(r"\nfailed: (.*): ValueError: (\d)", err) == [
        ("baseline, seed 1", "0"), ("long, seed 1", "1"), ("long, seed 2", "2"),
    ]
    assert "3 failed; --retry_failed" in err


def test_a_failed_run_without_a_log(small, runner, capsys):
    runner["long", 2] = "its process died: killed by SIGKILL (out of memory?)"
    status_of(lambda: run(small))
    (place_of(Path("experiments/few"), "long", 2) / "log.txt").unlink()
    capsys.readouterr()
    assert status_of(lambda: run(small)) == 1
    assert "failed: long, seed 2: its process died" in capsys.readouterr().err


# --- is it compared? ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newer", ["suite.json", "run", "nothing", "gone"])
def test_is_compared(small, runner, newer):
    run(small)
    runs = plan_suite(parse_args(["--suite", str(small), "--seeds", "1", "2"]))[2]
    directory = Path("experiments/few")
    report = directory / "comparison.md"
    assert is_compared(directory)
    later = report.stat().st_mtime_ns + 10**9
    if newer == "gone":
        report.unlink()
    elif newer != "nothing":
        os.utime(directory / newer if newer == "suite.json" else runs[3].directory / META, ns=(later, later))
    assert is_compared(directory) == (newer == "nothing")


def test_is_compared_looks_at_every_run_of_the_plan(small, runner):
    run(small)
    main(["--suite", str(small), "--seeds", "3"])
    directory = Path("experiments/few")
    later = (directory / "comparison.md").stat().st_mtime_ns + 10**9
    os.utime(place_of(directory, "long", 3) / META, ns=(later, later))  # retried, and killed before it was compared
    assert not is_compared(directory)


# --- status and analyze ------------------------------------------------------------------------------------------


def two_suites(root: Path) -> None:
    everything(planned(root / "experiments", FEW, name="first"))
    everything(planned(root / "experiments", FEW, name="second"), skip={("other", 2)})


def test_analyze_takes_every_suite(here, capsys):
    two_suites(here)
    main(["--mode", "analyze"])
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("suite ")] == [
        "suite first: 6 runs, 6 finished, 0 failed, 0 missing",
        "suite second: 6 runs, 5 finished, 0 failed, 1 missing",
    ]
    assert out.count("wrote results.csv") == 2 and (here / "experiments/first/comparison.md").exists()


def test_analyze_and_status_of_one_suite_by_name_or_file(here, capsys):
    two_suites(here)
    (here / "anything.json").write_text(json.dumps({"name": "second", "experiments": []}))
    (here / "second.json").write_text(json.dumps({"experiments": []}))
    for words in ("second", "anything.json", "second.json"):
        main(["--mode", "analyze", "--suite", words])
        out = capsys.readouterr().out
        assert out.startswith("suite second: ") and "first" not in out
        main(["--mode", "status", "--suite", words])
        assert capsys.readouterr().out.startswith("second: 5 finished, 1 pending\n")
    assert not (here / "experiments/first/comparison.md").exists()


def test_margin_of_analyze_reaches_the_file(here):
    directory = everything(planned(here / "experiments", FEW))
    main(["--mode", "analyze", "--margin", "2.5"])
    assert {row["margin"] for row in rows_of(directory)} == {2.5}
    assert set(table(directory)["margin"]) == {2.5}


def test_clusters_and_the_primary_metric_reach_the_file(here, refused):
    directory = everything(planned(here / "experiments", FEW))
    main(["--mode", "analyze", "--cluster_by", "context", "--primary_metric", "f1"])
    found = {(row["metric"], row["role"], row["cluster_by"]) for row in rows_of(directory)}
    assert found == {("f1", "primary", "context"), ("exact_match", "secondary", "context")}
    assert "--cluster_by author: 40 of 40 examples" in refused(main, "--mode", "analyze", "--cluster_by", "author")
    assert "--primary_metric accuracy" in refused(main, "--mode", "analyze", "--primary_metric", "accuracy")
    assert "does nothing with --mode status" in refused(main, "--mode", "status", "--cluster_by", "title")


def test_a_margin_of_nothing_is_refused(here, refused):
    everything(planned(here / "experiments", FEW))
    assert "--margin" in refused(main, "--mode", "analyze", "--margin", "0")


@pytest.mark.parametrize("margin", ["-1", "nan", "inf", "much"])
def test_a_margin_that_is_none(refused, margin):
    assert "argument --margin: expected a number from 0" in refused(main, "--mode", "analyze", f"--margin={margin}")


@pytest.mark.parametrize("mode", ["analyze", "status"])
def test_where_there_is_no_suite(here, refused, mode):
    assert "--experiments_dir experiments holds no suite" in refused(main, "--mode", mode)
    assert "--experiments_dir away holds no suite" in refused(main, "--mode", mode, "--experiments_dir", "away")
    (here / "experiments" / "shared").mkdir(parents=True)
    assert "--experiments_dir experiments holds no suite" in refused(main, "--mode", mode)
    assert "expected the path of a suite's JSON file, or one of" in refused(main, "--mode", mode, "--suite", "unknown")
    assert "experiments/demo holds no suite.json" in refused(main, "--mode", mode, "--suite", "demo")
    assert not (here / "away").exists()


def test_status_shows_every_run_and_its_state(here, capsys):
    directory = everything(planned(here / "experiments", FEW), skip={("other", 1), ("other", 2), ("other", 3)})
    fail(directory, "other", 1, "ValueError: no")
    bare(directory, "other", 2)
    write_json(place_of(directory, "other", 2) / META, {**metas(), "status": "running", "finished": None})
    main(["--mode", "status"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "study: 3 finished, 1 failed, 1 interrupted, 1 pending"
    assert lines[1].split() == ["experiment", "seed", "state", "time", "error"]
    assert [line.split()[:3] for line in lines[2:]] == [
        ["baseline", str(seed), "finished"] for seed in SEEDS
    ] + [["other", str(seed), state] for seed, state in zip(SEEDS, ("failed", "interrupted", "pending"), strict=True)]
    assert lines[2].endswith(" 2 min") and lines[5].endswith("  ValueError: no") and lines[7].endswith(" pending")


def test_status_changes_nothing(here):
    two_suites(here)
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    main(["--mode", "status"])
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_an_error_of_several_lines_is_one_line_of_the_status(here, capsys):
    directory = planned(here / "experiments", FEW, [1])
    fail(directory, "other", 1, "OutOfMemoryError: no 3 GB\nTried to allocate\n\nSee the documentation")
    main(["--mode", "status"])
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize("text", ['{"status": "fin', "{}", "[]"])
def test_a_run_whose_meta_is_damaged_is_to_be_done_again(here, caplog, capsys, text):
    directory = everything(planned(here / "experiments", FEW))
    (place_of(directory, "other", 1) / META).write_text(text)
    for mode, word in (("status", "1 interrupted"), ("analyze", "1 missing")):
        main(["--mode", mode])
        assert word in capsys.readouterr().out and "run_meta.json" in caplog.text


@pytest.mark.parametrize("file", ["eval_predictions.jsonl", "eval_metrics.json"])
def test_what_does_not_fit_is_one_line(here, refused, file):
    directory = everything(planned(here / "experiments", FEW))
    text = {"eval_metrics.json": '{"eval_exact_match": 3.0, "eval_f1": 4.0}', "eval_predictions.jsonl": '{"id": "v'}
    (place_of(directory, "other", 1) / file).write_text(text[file])
    assert "other-seed1" in refused(main, "--mode", "analyze")


@pytest.mark.parametrize("flags", [["--mode", "status", "--margin", "2"], ["--mode", "analyze", "--retry_failed"]])
def test_flags_that_do_nothing_in_a_mode_are_refused(here, refused, flags):
    everything(planned(here / "experiments", FEW))
    assert f"{flags[2]} does nothing with --mode {flags[1]}" in refused(main, *flags)


# --- how long it takes -------------------------------------------------------------------------------------------


def test_seconds_of_a_run():
    meta = metas()
    assert seconds_of(meta) == 120
    meta["history"].append({"started": "2026-01-01T05:00:00+00:00", "finished": "2026-01-01T05:00:30+00:00"})
    meta["history"].append({"started": "2026-01-01T06:00:00+00:00", "finished": None})
    assert seconds_of(meta) == 150
    assert seconds_of({"started": None, "finished": None}) is None
    assert seconds_of({"started": None, "finished": "2026-01-01T00:00:00+00:00", "history": []}) is None


@pytest.fixture
def guess(small):
    """What estimate says of seeds and workers when a run of 4 epochs on 24 examples took two minutes."""

    def call(*flags, workers=1, history=None, which=("baseline", "long")):
        args = parse_args(["--suite", str(small), *map(str, flags)])
        suite, needed, runs = plan_suite(args)
        directory = Path("experiments/few")
        write_plan(suite, args.seeds, directory)
        if history is not None:
            bare(directory, "baseline", args.seeds[0], history=history)
        todo = [run for run in runs if run.experiment in which]
        return estimate(todo, suite.experiments, needed, workers, directory)

    return call


def trained(rows=24, epochs=4, limit=None):
    (one,) = metas(rows=rows)["history"]
    one["arguments"] |= {"num_train_epochs": epochs, "max_train_samples": limit}
    return [one]


def minutes(told: str) -> float:
    found = re.match(r"about ([\d.]+) (s|min|h) with \d+ at a time, going by experiments/few/baseline-seed1-", told)
    assert found, told
    return float(found[1]) * {"s": 1 / 60, "min": 1, "h": 60}[found[2]]


def test_no_estimate_without_a_finished_run(guess):
    assert guess() == "how long they take will be known when the first is finished"
    assert guess(history=[]) == "how long they take will be known when the first is finished"


def test_estimate_grows_with_runs_epochs_and_examples(guess):
    one = ("baseline",)
    assert minutes(guess("--seeds", 1, history=trained(), which=one)) == 2
    assert minutes(guess("--seeds", 1, history=trained(), which=("long",))) == 4
    assert minutes(guess("--seeds", 1, 2, history=trained())) == 2 * (2 + 4)
    assert minutes(guess("--seeds", 1, "--max_train_samples", 12, history=trained(), which=one)) == 1
    assert minutes(guess("--seeds", 1, history=trained(limit=12), which=one)) == 4
    assert minutes(guess("--seeds", 1, 2, history=trained(), workers=2, which=one)) == 2
    assert minutes(guess("--seeds", *range(1, 61), history=trained(), which=one)) == 120


def test_more_workers_than_runs_make_none_faster(guess):
    assert minutes(guess("--seeds", 1, history=trained(), workers=8, which=("baseline",))) == 2


def test_a_run_that_trains_nothing_takes_no_training(guess, small):
    suite = read_json(small)
    suite["experiments"].append({"name": "untrained", "args": {"num_train_epochs": 0}})
    small.write_text(json.dumps(suite))
    assert minutes(guess("--seeds", 1, history=trained(), which=("untrained",))) < 0.5


def test_max_steps_limits_the_estimate(guess, small):
    suite = read_json(small)
    suite["experiments"].append({"name": "short", "args": {"max_steps": 1}})
    small.write_text(json.dumps(suite))
    assert minutes(guess("--seeds", 1, history=trained(), which=("short",))) < 1
