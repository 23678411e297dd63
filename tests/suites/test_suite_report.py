"""What a suite is reported as: tables, verdicts, counts of what is missing, pictures; on run directories made here."""

import argparse
import csv
import gc
import itertools
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.cbook import is_math_text
from matplotlib.colors import to_hex
from read_pictures import caption, legend, lines, seen
from scipy.stats import ttest_rel
from sklearn.metrics import f1_score
from statsmodels.stats.multitest import multipletests

from datamap.core.artifacts import META, digest
from datamap.core.clusters import Clusters
from datamap.core.errors import UserError
from datamap.core.files import read_json, write_json, write_jsonl
from datamap.suites import plots as suite_plots
from datamap.suites.comparison import ROW, examples_needed, multi_bootstrap, paired_statistics
from datamap.suites.definition import Experiment, Suite
from datamap.suites.planning import write_plan
from datamap.suites.report import HEADINGS, LISTS, SUBJECT, write_report
from datamap.suites.results import NO_CONTEXT, NO_SCORES, Metric, influence_on_macro_f1
from datamap.suites.runs import identity_of, run_name

SEEDS = (1, 2, 3)
IDS = [f"v{number:03d}" for number in range(40)]
VERDICTS = ("better", "worse", "no detectable difference", "underpowered")
COLOR_OF = {verdict: to_hex(color) for verdict, color in suite_plots.VERDICT_COLORS.items()}
COMMIT = "c0ffee"
FEW: dict[str, dict] = {"baseline": {}, "other": {}}
CONTROLLED: dict[str, dict] = {
    "baseline": {}, "small": {}, "small_control": {"control_of": "small"}, "fast": {"args": {"rate": 0.5}},
}



# --- run directories as run_experiments.py leaves them -----------------------------------------------------------


def planned(root: Path, experiments: dict[str, dict], seeds=SEEDS, name="study", description="A study") -> Path:
    """suite.json; the arguments of an experiment and its name make its settings."""
    rows = []
    for key, each in experiments.items():
        settings = {"seed": 42, "output_dir": Path("x"), "dataset": "d", **each.get("args", {})}
        told = each.get("description", f"what {key} does"), each.get("why", "")
        rows.append(Experiment(key, *told, [], each.get("control_of"), argparse.Namespace(**settings), digest(key)))
    suite = Suite(root / "study.json", name, description, next(iter(experiments)), {}, [], rows)
    write_plan(suite, seeds, root / name)
    return root / name


def place_of(directory: Path, experiment: str, seed: int) -> Path:
    plan = read_json(directory / "suite.json")
    settings = next(each["settings_hash"] for each in plan["experiments"] if each["name"] == experiment)
    return directory / run_name(experiment, seed, identity_of(settings, seed))


def metas(status: str = "finished", rows: int = 100, data: str = "data", **keys: Any) -> dict[str, Any]:
    """run_meta.json of a training and of the evaluation behind it."""
    common = {"status": "finished", "git_commit": COMMIT, "git_dirty": False, "seed": 1,
              "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00"}
    train, validation = ({"dataset": "d", "split": split, "fingerprint": f"{data}-{split}", "rows": count}
                         for split, count in (("train", rows), ("validation", 40)))
    arguments = {"do_train": True, "do_eval": True, "max_train_samples": None, "num_train_epochs": 3.0}
    trained = {**common, "arguments": arguments, "datasets": [train, validation]}
    evaluated = {**common, "arguments": {**arguments, "do_train": False}, "datasets": [validation]}
    return {**evaluated, "history": [trained], "status": status, **keys}


def scores_of(experiment: str, seed: int, effect: float = 0.0, n: int = len(IDS)) -> np.ndarray:
    """(n,) F1 of answers, 0..1, of examples that are easy or not whatever the model is."""
    ease = np.random.default_rng(0).normal(0.3, 1, n)
    noise = np.random.default_rng([seed, *experiment.encode()]).normal(effect, 0.4, n)
    return np.array([0.0, 0.4, 1.0])[np.searchsorted([-0.3, 0.0], ease + noise)]


def qa_metrics(scores: np.ndarray, prefix: str = "eval_") -> dict[str, float]:
    return {f"{prefix}exact_match": 100 * float((scores == 1).mean()), f"{prefix}f1": 100 * float(scores.mean()),
            f"{prefix}total": len(scores)}


def qa_rows(scores: np.ndarray, ids=None) -> list[dict]:
    return [{"id": key, "question": "q?", "context": f"passage of {key}", "predicted_answer": "a",
             "exact_match": int(score == 1), "f1": float(score)}
            for key, score in zip(ids or IDS, scores, strict=False)]


def finish(directory: Path, experiment: str, seed: int, scores: np.ndarray | None = None, effect=0.0, **meta) -> Path:
    """A finished QA run with its predictions."""
    scores = scores_of(experiment, seed, effect) if scores is None else np.asarray(scores, dtype=float)
    place = bare(directory, experiment, seed, **meta)
    write_json(place / "eval_metrics.json", {**qa_metrics(scores), "eval_runtime": 1.5, "eval_samples_per_second": 9})
    write_jsonl(place / "eval_predictions.jsonl", qa_rows(scores))
    return place


def bare(directory: Path, experiment: str, seed: int, **meta) -> Path:
    """A finished run that measured nothing."""
    place = place_of(directory, experiment, seed)
    place.mkdir(exist_ok=True)
    write_json(place / "config.json", {"identity": "x"})
    write_json(place / META, metas(**meta))
    return place


def classified(directory, experiment, seed, correct, f1, suffix="", predictions=True, **meta) -> Path:
    """A finished run of classification: fractions."""
    place = bare(directory, experiment, seed, **meta)
    correct = np.asarray(correct)
    write_json(place / f"eval_metrics{suffix}.json", {
        "eval_accuracy": float(correct.mean()), "eval_f1": f1, "eval_f1_good": f1, "eval_loss": 0.4, "eval_total": 40,
    })
    if predictions:
        write_jsonl(place / f"eval_predictions{suffix}.jsonl",
                    [{"id": key, "correct": int(one)} for key, one in zip(IDS, correct, strict=False)])
    return place


def fail(directory: Path, experiment: str, seed: int, error="OutOfMemoryError: 3 GB", **keys) -> Path:
    place = place_of(directory, experiment, seed)
    place.mkdir(exist_ok=True)
    write_json(place / META, metas("failed", error=error, **keys))
    (place / "log.txt").write_text("loading\ntraining\nit broke\n")
    return place


def everything(directory: Path, skip=(), effects=None, **meta) -> Path:
    """All runs of the plan but those of ``skip``: (experiment, seed)."""
    for each in read_json(directory / "suite.json")["experiments"]:
        for seed in each["seeds"]:
            if (each["name"], seed) not in skip:
                finish(directory, each["name"], seed, effect=(effects or {}).get(each["name"], 0.0), **meta)
    return directory


def one_metric(directory: Path) -> Path:
    """Exact match alone is enough for a picture."""
    for file in directory.glob("*/eval_metrics.json"):
        write_json(file, {"eval_exact_match": read_json(file)["eval_exact_match"]})
    return directory


def log_losses(place: Path, rows: list[dict]) -> None:
    pd.DataFrame(rows).to_csv(place / "training_log.csv", index=False)


def table(directory: Path, name="comparison.csv") -> pd.DataFrame:
    return pd.read_csv(directory / name, keep_default_na=False, na_values=[""])


def rows_of(directory: Path, **wanted) -> list[dict]:
    """Of comparison.json."""
    return [row for row in read_json(directory / "comparison.json")["comparisons"]
            if all(row[key] == value for key, value in wanted.items())]


def row_of(directory: Path, metric="f1", against="baseline", **wanted) -> dict:
    (row,) = rows_of(directory, metric=metric, against=against, **wanted)
    return row


def cells(line: str) -> list[str]:
    """Of a line of a Markdown table."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def markdown_tables(text: str) -> list[list[list[str]]]:
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            tables[-1].append(cells(line))
        elif tables[-1]:
            tables.append([])
    return [each for each in tables if each]


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """statsmodels collects garbage with every correction for a family: not through all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """None are drawn, but for tests that ask for ``pictures``."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(suite_plots, "write_plots", lambda *_: None)


# --- results.csv -------------------------------------------------------------------------------------------------


def test_one_row_per_planned_run_whatever_its_state(tmp_path):
    directory = planned(tmp_path, CONTROLLED)
    everything(directory, skip={("small", 1), ("small", 2), ("fast", 3)})
    fail(directory, "small", 1)
    place_of(directory, "small", 2).mkdir()
    write_json(place_of(directory, "small", 2) / META, metas("failed", error="KeyboardInterrupt: "))
    write_report(directory, 1.0)
    found = table(directory, "results.csv")
    assert list(zip(found["experiment"], found["seed"], strict=True)) == [(e, s) for e in CONTROLLED for s in SEEDS]
    state = found.set_index(["experiment", "seed"])["state"]
    assert (state["small", 1], state["small", 2], state["fast", 3]) == ("failed", "interrupted", "pending")
    assert (state.value_counts()["finished"], set(found["suite"])) == (9, {"study"})
    assert found["control_of"].dropna().tolist() == ["small"] * 3
    assert found["directory"].tolist() == [place_of(directory, e, s).name for e in CONTROLLED for s in SEEDS]


def test_error_of_a_failed_run_and_of_no_other(tmp_path):
    directory = everything(planned(tmp_path, FEW), skip={("other", 1)})
    fail(directory, "other", 1, error='ValueError: a, "b"\nand c')
    finish(directory, "other", 2, error="KeyboardInterrupt: ")  # of an earlier attempt
    write_report(directory, 1.0)
    with (directory / "results.csv").open(newline="") as file:
        errors = [row["error"] for row in csv.DictReader(file)]
    assert errors == ["", "", "", 'ValueError: a, "b"\nand c', "", ""]


def test_all_metrics_of_the_evaluation_and_no_speed(tmp_path):
    directory = everything(planned(tmp_path, FEW))
    write_report(directory, 1.0)
    found = table(directory, "results.csv")
    assert {"exact_match", "f1", "total"} <= set(found.columns)
    assert not [name for name in found.columns if "runtime" in name or "per_second" in name]
    assert found["f1"].iloc[4] == pytest.approx(100 * scores_of("other", 2).mean(), abs=1e-12)
    assert found["exact_match"].iloc[4] == pytest.approx(100 * (scores_of("other", 2) == 1).mean(), abs=1e-12)


def test_all_settings_also_of_runs_that_are_not_there(tmp_path):
    more = {"rate": 0.5, "columns": ["a", "b"], "filters": {"random": {}}, "flag": True, "text": "x, y", "none": None}
    directory = planned(tmp_path, {"baseline": {}, "other": {"args": more}})
    finish(directory, "baseline", 1)
    write_report(directory, 1.0)
    found = table(directory, "results.csv")
    assert {name for name in found if name.startswith("args.")} == {
        f"args.{name}" for name in ("dataset", *more)
    }
    other = found[found["experiment"] == "other"].iloc[0]
    assert (other["args.rate"], other["args.text"], other["args.flag"]) == (0.5, "x, y", True)
    assert json.loads(other["args.columns"]) == ["a", "b"] and json.loads(other["args.filters"]) == {"random": {}}
    assert pd.isna(other["args.none"]) and pd.isna(found["args.text"].iloc[0])


@pytest.mark.parametrize("values", [[1, 0.5], [1, None], [True, None], ["a", None]])
def test_settings_of_experiments_may_be_missing(tmp_path, values):
    directory = planned(tmp_path, {f"e{place}": {"args": {"flag": one}} for place, one in enumerate(values)}, [1])
    write_report(directory, 1.0)
    found = table(directory, "results.csv")["args.flag"]
    assert [None if pd.isna(value) else value for value in found] == values


def test_number_of_training_examples(tmp_path):
    names = ("baseline", "filtered", "limited", "more", "untrained")
    directory = planned(tmp_path, {name: {} for name in names}, [1])
    finish(directory, "baseline", 1)
    write_json(finish(directory, "filtered", 1) / "filter_report.json", {"before": 100, "after": 33, "filters": []})
    for name, limit in (("limited", 60), ("more", 1000)):
        history = metas()["history"]
        history[0]["arguments"]["max_train_samples"] = limit
        finish(directory, name, 1, history=history)
    finish(directory, "untrained", 1, history=[])
    write_report(directory, 1.0)
    found = table(directory, "results.csv").set_index("experiment")["train_examples"]
    assert found.loc[list(names[:4])].tolist() == [100, 33, 60, 100] and pd.isna(found["untrained"])
    assert row_of(directory, experiment="filtered")["train_examples"] == 33
    assert "| filtered | baseline | 33 |" in (directory / "comparison.md").read_text()


@pytest.mark.parametrize("as_file", [True, False])
def test_seconds_of_selection_training_and_evaluation(tmp_path, as_file):
    """Of a control that draws as many at random, the selection only says how many: it took none."""
    names = ("baseline", "chosen", "chosen_control", "untrained", "older")
    directory = planned(tmp_path, {name: {} for name in names}, [1])
    selection = tmp_path / "shared/selection"
    selection.mkdir(parents=True)
    write_json(selection / "selection_meta.json", {"seconds": 12.5})
    for name in names:
        history = [] if name == "untrained" else metas()["history"]
        if name.startswith("chosen"):
            history[0]["arguments"] |= {"train_ids": str(selection / "selected.csv" if as_file else selection),
                                        "filter_random": name.endswith("control")}
        place = finish(directory, name, 1, history=history)
        if name != "untrained":
            trained = {"train_runtime": 3.0} | ({} if name == "older" else {"training_seconds": 40.25})
            write_json(place / "train_metrics.json", trained)
        for number, suffix in enumerate(("", "_test")[: 1 + (name == "chosen")]):
            metrics = read_json(place / "eval_metrics.json") if not suffix else {}
            write_json(place / f"eval_metrics{suffix}.json",
                       {**metrics, "eval_runtime": 1.5 + number, "eval_q_only_runtime": 0.25,
                        "eval_samples_per_second": 99.0})
    write_report(directory, 1.0)
    found = table(directory, "results.csv").set_index("experiment")
    wanted = {"baseline": [None, 40.25, 1.75], "chosen": [12.5, 40.25, 4.5], "chosen_control": [None, 40.25, 1.75],
              "untrained": [None, None, 1.75], "older": [None, None, 1.75]}
    for name, seconds in wanted.items():
        row = found.loc[name, ["selection_seconds", "training_seconds", "evaluation_seconds"]].tolist()
        assert [None if pd.isna(each) else each for each in row] == seconds, name


def test_runs_of_other_settings_are_left_out_and_named(tmp_path, caplog):
    directory = everything(planned(tmp_path, FEW))
    other = directory / "other-seed1-00000000"
    finish(directory, "other", 1).rename(other)
    finish(directory, "other", 1)
    with caplog.at_level(logging.INFO):
        write_report(directory, 1.0)
    assert "1 runs" in caplog.text and "other-seed1-00000000" in caplog.text
    assert len(table(directory, "results.csv")) == 6


def test_seeds_of_a_later_start_are_included(tmp_path):
    directory = everything(planned(tmp_path, FEW, [1, 2]))
    assert planned(tmp_path, FEW, [3, 4]) == directory
    everything(directory)
    write_report(directory, 1.0)
    assert row_of(directory, experiment="other")["seeds"] == [1, 2, 3, 4]
    assert len(table(directory, "results.csv")) == 8


# --- comparison.csv and .json ------------------------------------------------------------------------------------


def test_every_column_is_there_and_json_is_strict(tmp_path):
    directory = everything(planned(tmp_path, CONTROLLED), skip={("small", 1)})
    write_report(directory, 1.0)
    columns = [*SUBJECT, *ROW, "shown_low", "shown_high"]
    assert list(table(directory).columns) == columns

    def refuse(word):
        raise AssertionError(word)

    read = json.loads((directory / "comparison.json").read_text(), parse_constant=refuse)
    assert (read["suite"], read["description"], read["baseline"]) == ("study", "A study", "baseline")
    assert all(list(row) == columns for row in read["comparisons"])


def test_csv_and_json_say_the_same(tmp_path):
    directory = everything(planned(tmp_path, CONTROLLED), skip={("small", 1), ("fast", 1), ("fast", 2), ("fast", 3)})
    write_report(directory, 1.0)
    for read, (_, line) in zip(rows_of(directory), table(directory).iterrows(), strict=True):
        for name, value in read.items():
            if name in LISTS:
                assert json.loads(line[name]) == value
            elif value is None:
                assert pd.isna(line[name]), name
            else:
                assert line[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_one_row_per_experiment_and_metric_against_the_baseline_and_its_control(tmp_path):
    directory = everything(planned(tmp_path, CONTROLLED))
    write_report(directory, 1.0)
    expected = [("small", "baseline", "baseline"), ("fast", "baseline", "baseline"),
                ("small", "small_control", "control"),
                ("small_control", "baseline", "baseline (controls)")]
    for metric in ("exact_match", "f1"):
        found = [(row["experiment"], row["reference"], row["against"]) for row in rows_of(directory, metric=metric)]
        assert sorted(found) == sorted(expected)
    sizes = {row["against"]: row["family_size"] for row in rows_of(directory)}
    assert sizes == {"baseline": 4, "control": 2, "baseline (controls)": 2}, "of both metrics"


def test_a_comparison_that_could_not_be_made_counts_in_the_family(tmp_path):
    names: dict[str, dict] = {"baseline": {}, "a": {}, "b": {}, "c": {}}
    directory = everything(planned(tmp_path, names), skip={("c", seed) for seed in SEEDS}, effects={"a": 3.0})
    write_report(directory, 1.0)
    rows = rows_of(directory, metric="f1")
    assert [row["family_size"] for row in rows] == [6, 6, 6]
    smallest = min(row["p"] for row in rows_of(directory) if row["p"] is not None)
    assert min(row["p_holm"] for row in rows_of(directory) if row["p"] is not None) == pytest.approx(6 * smallest)
    assert (rows[2]["n"], rows[2]["p"], rows[2]["verdict"]) == (0, None, "underpowered")


def test_values_are_paired_by_seed(tmp_path):
    directory = planned(tmp_path, FEW, [5, 1, 4, 2, 3])
    for experiment, seeds in (("baseline", (1, 2, 3, 4)), ("other", (5, 4, 2, 1))):
        for seed in seeds:
            place = bare(directory, experiment, seed)
            score = seed * 10 + (experiment == "other") * seed / 4
            write_json(place / "eval_metrics.json", {"eval_exact_match": score, "eval_f1": score})
    write_report(directory, 1.0)
    row = row_of(directory, experiment="other")
    assert row["seeds"] == [1, 2, 4] and row["values"] == [10.25, 20.5, 41] and row["reference_values"] == [10, 20, 40]
    assert row["difference"] == pytest.approx((0.25 + 0.5 + 1) / 3) and (row["n"], row["wins"]) == (3, 3)
    assert row["mean"] == pytest.approx((10.25 + 20.5 + 41) / 3)
    assert (row["planned"], row["finished"], row["failed"], row["missing"]) == (5, 4, 0, 1)


# --- what is not there -------------------------------------------------------------------------------------------


def test_failed_missing_and_interrupted_runs_are_counted(tmp_path):
    directory = everything(planned(tmp_path, CONTROLLED), skip={("fast", seed) for seed in SEEDS})
    fail(directory, "fast", 1)
    place_of(directory, "fast", 2).mkdir()
    write_json(place_of(directory, "fast", 2) / META, {**metas(), "status": "running"})
    text = write_report(directory, 1.0)
    assert text.splitlines()[0] == "suite study: 12 runs, 9 finished, 1 failed, 2 missing"
    row = row_of(directory, experiment="fast")
    assert [row[name] for name in ("planned", "finished", "failed", "missing", "n")] == [3, 0, 1, 2, 0]
    told = (directory / "comparison.md").read_text()
    assert "12 runs, 9 finished, 1 failed, 2 missing" in told
    assert ["fast", "what fast does", "0 / 1 / 2"] in markdown_tables(told)[0]
    assert ["small_control", "what small_control does", "3 / 0 / 0"] in markdown_tables(told)[0]


def test_an_experiment_without_a_finished_run_has_its_row_everywhere(tmp_path):
    directory = everything(planned(tmp_path, {**FEW, "gone": {}}), skip={("gone", seed) for seed in SEEDS})
    text = write_report(directory, 1.0)
    assert [row["verdict"] for row in rows_of(directory, experiment="gone")] == ["underpowered"] * 2
    assert [line.split()[:4] for line in text.splitlines() if " gone " in line] == [["gone", "baseline", "0", "-"]] * 2
    told = [row for each in markdown_tables((directory / "comparison.md").read_text()) for row in each]
    assert [row[:5] for row in told if row[0] == "gone" and len(row) == 14] == [
        ["gone", "baseline", "-", "0", "-"]
    ] * 2


@pytest.mark.parametrize("gone", ["small", "small_control"])
def test_an_experiment_or_its_control_only(tmp_path, gone):
    directory = everything(planned(tmp_path, CONTROLLED), skip={(gone, seed) for seed in SEEDS})
    write_report(directory, 1.0)
    assert row_of(directory, against="control", experiment="small")["n"] == 0
    other = {"small": "baseline (controls)", "small_control": "baseline"}[gone]
    assert [row["n"] for row in rows_of(directory, metric="f1", against=other)] == ([3] if gone == "small" else [3, 3])


def test_nothing_is_finished(tmp_path):
    directory = planned(tmp_path, CONTROLLED)
    fail(directory, "baseline", 1)
    text = write_report(directory, 1.0)
    assert text.startswith("suite study: 12 runs, 0 finished, 1 failed, 11 missing")
    assert len(table(directory, "results.csv")) == 12
    assert (directory / "comparison.csv").read_text().strip().count("\n") == 0
    assert read_json(directory / "comparison.json")["comparisons"] == []
    told = (directory / "comparison.md").read_text()
    assert [row[0] for row in markdown_tables(told)[0][2:]] == list(CONTROLLED)


def test_a_baseline_without_finished_runs(tmp_path):
    directory = everything(planned(tmp_path, CONTROLLED), skip={("baseline", seed) for seed in SEEDS})
    text = write_report(directory, 1.0)
    assert "baseline: -, 0 seeds" in text
    assert {row["n"] for row in rows_of(directory) if row["reference"] == "baseline"} == {0}
    assert [row["n"] for row in rows_of(directory, against="control")] == [3, 3]
    assert "Baseline: -." in (directory / "comparison.md").read_text()


# --- few seeds ---------------------------------------------------------------------------------------------------


def test_a_single_seed_is_this_checkpoint_not_the_method(tmp_path):
    directory = everything(planned(tmp_path, FEW, [7]), effects={"other": 3.0})
    text = write_report(directory, 1.0)
    row = row_of(directory, "exact_match", experiment="other")
    ours, theirs = scores_of("other", 7, 3.0) == 1, scores_of("baseline", 7) == 1
    assert row["only_experiment_right"] == (ours & ~theirs).sum() >= 6
    assert row["only_reference_right"] == (theirs & ~ours).sum()
    assert row["p"] == row["p_mcnemar"] and (row["low"], row["p_t"], row["p_sign_flip"]) == (None, None, None)
    assert row["shown_low"] == row["bootstrap_low"] > 0
    assert row_of(directory, "f1")["p"] == row_of(directory, "f1")["p_bootstrap"]
    assert row["verdict"] == "better" and row["scope"] == "this checkpoint, not the method"
    for told in (text, (directory / "comparison.md").read_text()):
        assert len(re.findall("this checkpoint, not the method", told)) == 2
    assert f"(percent), baseline: {100 * theirs.mean():.2f}, 1 seed\n" in text


def test_two_seeds_are_never_a_finding(tmp_path):
    directory = everything(planned(tmp_path, FEW, [1, 2]), effects={"other": 9.0})
    text = write_report(directory, 1.0)
    assert {row["verdict"] for row in rows_of(directory)} == {"underpowered"}
    assert row_of(directory)["note"] == "2 seeds; train at least 3" and row_of(directory)["low"] is not None
    assert "underpowered" in text


@pytest.mark.parametrize("seeds", [[1], [1, 2], [1, 2, 3, 4, 5, 6]])
@pytest.mark.parametrize("predictions", [True, False])
def test_identical_runs(tmp_path, seeds, predictions):
    directory = planned(tmp_path, FEW, seeds)
    for experiment in FEW:
        for seed in seeds:
            place = finish(directory, experiment, seed, scores_of("same", seed))
            if not predictions:
                (place / "eval_predictions.jsonl").unlink()
    write_report(directory, 1.0)
    for row in rows_of(directory):
        assert row["difference"] == 0 and row["verdict"] not in ("better", "worse")
        assert row["verdict"] == "underpowered" and row["wins"] in (None, 0)
        if predictions:  # 40 examples, none of them told apart: of others one in 14 may be
            assert row["shown_high"] == -row["shown_low"] > 5
            assert len(seeds) < 3 or "at least 368 independent evaluation examples (40 there)" in row["note"]
        else:
            assert row["shown_low"] is None
            assert len(seeds) < 3 or "no scores of the examples: nothing tells the spread" in row["note"]


def test_identical_runs_on_many_examples(tmp_path):
    directory = planned(tmp_path, FEW)
    scores = scores_of("same", 1, n=400)
    for experiment in FEW:
        for seed in SEEDS:
            place = finish(directory, experiment, seed, scores)
            write_jsonl(place / "eval_predictions.jsonl", qa_rows(scores, [f"v{number}" for number in range(400)]))
    text = write_report(directory, 1.0)
    for row in rows_of(directory):
        assert (row["verdict"], row["note"]) == ("no detectable difference", "within ±1")
        assert row["p_equivalence"] == pytest.approx(0.99**400) and row["p_equivalence_holm"] < 0.05
        assert row["shown_high"] == pytest.approx(100 * (1 - 0.05 ** (1 / 400))) and row["examples"] == 400
    assert "no detectable difference (within ±1)" in text
    for seed in SEEDS:  # one example less than the margin needs, and a spread over seeds that would be small enough
        changed = scores[:298].copy()
        changed[np.flatnonzero(changed == 0.4)[: seed - 1]] = 0.5
        place = finish(directory, "other", seed, changed)
        write_jsonl(place / "eval_predictions.jsonl", qa_rows(changed, [f"v{number}" for number in range(298)]))
        place = finish(directory, "baseline", seed, scores[:298])
        write_jsonl(place / "eval_predictions.jsonl", qa_rows(scores[:298], [f"v{number}" for number in range(298)]))
    text = write_report(directory, 1.0)
    assert row_of(directory, "f1")["verdict"] == "underpowered" and row_of(directory, "f1")["power"] > 0.8
    assert "at least 368 independent evaluation examples (298 there))" in text


# --- clusters, and which metric it is about -----------------------------------------------------------------------


def in_clusters(directory: Path, column: str = "context", size: int = 5) -> Path:
    """The values of ``column``: of so many examples one; of another order in every second file."""
    for number, file in enumerate(sorted(directory.glob("*/eval_predictions.jsonl"))):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [row | {column: f"text {IDS.index(row['id']) // size}"} for row in rows]
        write_jsonl(file, rows[::-1] if number % 2 else rows)
    return directory


def test_questions_over_one_context_go_together(tmp_path):
    directory = in_clusters(everything(planned(tmp_path, FEW)))
    text = write_report(directory, 1.0)
    ours, theirs = (np.stack([100 * scores_of(name, seed) for seed in SEEDS]) for name in ("other", "baseline"))
    expected = multi_bootstrap(ours, theirs, 100.0, Clusters(np.arange(40) // 5))
    row = row_of(directory)
    for key, value in expected.items():
        assert row[key] == pytest.approx(value, rel=1e-4), key
    assert (row["cluster_by"], row["clusters"], row["examples"]) == ("context", 8, 40)
    effect = Clusters(np.arange(40) // 5).design_effect((ours - theirs).mean(axis=0))
    assert effect is not None
    assert row["design_effect"] == pytest.approx(effect, rel=1e-4)
    assert row["effective_examples"] == pytest.approx(40 / max(1, effect), rel=1e-4)
    told = (directory / "comparison.md").read_text()
    for each in (text, told):
        assert "40 examples in 8 clusters by context, worth " in each
    assert "Examples of one context go together" in told and row["warnings"] == []
    write_report(directory, 1.0, "none")
    assert row_of(directory)["clusters"] is None and row_of(directory)["p_bootstrap"] != row["p_bootstrap"]
    assert "count each by itself" in (directory / "comparison.md").read_text()


def test_any_column_or_an_error_that_names_what_there_is(tmp_path):
    directory = in_clusters(everything(planned(tmp_path, FEW)), "title", 10)
    write_report(directory, 1.0, "title")
    assert (row_of(directory)["cluster_by"], row_of(directory)["clusters"]) == ("title", 4)
    with pytest.raises(UserError, match=r"--cluster_by author: 40 of 40 examples of .*there is id, question, context"):
        write_report(directory, 1.0, "author")


def test_predictions_without_contexts_say_so(tmp_path):
    directory = everything(planned(tmp_path, FEW))
    for file in directory.glob("*/eval_predictions.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        write_jsonl(file, [{key: value for key, value in row.items() if key != "context"} for row in rows])
    text = write_report(directory, 1.0)
    assert f"warning: {NO_CONTEXT}" in text and row_of(directory)["warnings"] == [NO_CONTEXT]
    assert row_of(directory)["cluster_by"] is None
    write_report(directory, 1.0, "none")
    assert row_of(directory)["warnings"] == []


def test_classes_are_clustered_where_a_column_is_named(tmp_path):
    directory = planned(tmp_path, FEW)
    gold, answers = drawn_answers(np.random.default_rng(0), 40, 2, 3)
    for name, arm in zip(FEW, answers, strict=True):
        for seed, predicted in zip(SEEDS, arm, strict=True):
            answered(directory, name, seed, gold, predicted)
    write_report(directory, 1.0)
    assert {row["clusters"] for row in rows_of(directory)} == {None}
    in_clusters(directory, "premise", 4)
    write_report(directory, 1.0, "premise")
    influences = [np.stack([influence_on_macro_f1(gold, predicted) for predicted in arm]) for arm in answers]
    expected = multi_bootstrap(influences[1], influences[0], 1.0, Clusters(np.arange(40) // 4))
    assert row_of(directory, "f1")["bootstrap_se"] == pytest.approx(expected["bootstrap_se"], rel=1e-4)
    assert row_of(directory, "accuracy")["clusters"] == 10


def test_scores_of_one_evaluation_are_one_family_or_one_is_primary(tmp_path):
    directory = everything(planned(tmp_path, CONTROLLED), effects={"small": 0.6, "fast": 0.4})
    write_report(directory, 1.0)
    rows = rows_of(directory, against="baseline")
    expected = multipletests([row["p"] for row in rows], method="holm")[1]
    assert [row["p_holm"] for row in rows] == pytest.approx(list(expected)) and len(rows) == 4
    assert {row["role"] for row in rows} == {None}
    text = write_report(directory, 1.0, primary_metric="f1")
    for metric, role in (("f1", "primary"), ("exact_match", "secondary")):
        rows = rows_of(directory, against="baseline", metric=metric)
        expected = multipletests([row["p"] for row in rows], method="holm")[1]
        assert [row["p_holm"] for row in rows] == pytest.approx(list(expected)) and len(rows) == 2
        assert {row["role"] for row in rows} == {role} and f"{metric} (percent, {role}), baseline" in text
    part = text.partition("f1 (percent")[0]
    assert part.count("; secondary)") == 3 and "secondary" not in text.partition("f1 (percent")[2]
    assert "secondary one is corrected by itself" in (directory / "comparison.md").read_text()
    with pytest.raises(UserError, match="--primary_metric accuracy: the runs were scored by exact_match and f1"):
        write_report(directory, 1.0, primary_metric="accuracy")


# --- kinds of metrics --------------------------------------------------------------------------------------------


def test_metrics_of_classification(tmp_path):
    directory = planned(tmp_path, FEW)
    right = {(name, seed): scores_of(name, seed) == 1 for name in FEW for seed in SEEDS}
    for place, ((name, seed), correct) in enumerate(right.items()):
        classified(directory, name, seed, correct, 0.4 + 0.01 * place**2)
    text = write_report(directory, 1.0)
    assert [row["metric"] for row in rows_of(directory)] == ["accuracy", "f1"]
    accuracy, f1 = row_of(directory, "accuracy"), row_of(directory, "f1")
    assert accuracy["margin"] == f1["margin"] == 0.01
    assert accuracy["values"] == [right["other", seed].mean() for seed in SEEDS]
    expected = multi_bootstrap(np.stack([right["other", seed] for seed in SEEDS]).astype(float),
                               np.stack([right["baseline", seed] for seed in SEEDS]).astype(float))
    assert accuracy["p_bootstrap"] == pytest.approx(expected["p_bootstrap"], rel=1e-5)
    assert f1["p_bootstrap"] is None and f1["p"] == f1["p_t"]
    assert "accuracy (0..1), baseline: 0." in text
    assert f"{accuracy['difference']:+.4f}" in text


# --- macro F1 ----------------------------------------------------------------------------------------------------

ANSWERS = st.integers(1, 30).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 3), min_size=n, max_size=n)] * 2))


@settings(max_examples=25, deadline=None)
@given(ANSWERS)
def test_influences_are_the_change_of_macro_f1_with_an_examples_weight(answers):
    gold, predicted = np.array(answers)
    found = influence_on_macro_f1(gold, predicted)
    macro = f1_score(gold, predicted, average="macro", zero_division=0)
    assert found.mean() == pytest.approx(macro, abs=1e-12)
    for place in {0, len(gold) // 2, len(gold) - 1}:
        heavier = [np.ones(len(gold)) for _ in range(2)]
        heavier[0][place], heavier[1][place] = 1 + 1e-4, 1 - 1e-4
        up, down = (f1_score(gold, predicted, average="macro", zero_division=0, sample_weight=weights)
                    for weights in heavier)
        assert len(gold) * (up - down) / 2e-4 == pytest.approx(found[place] - macro, abs=1e-4)


def answered(directory, experiment, seed, gold, predicted, names=("no", "maybe", "yes"), column="label", known=True):
    """A finished run of classification with its predictions; known: run_meta.json names the column of the label."""
    place = bare(directory, experiment, seed)
    if known:
        meta = metas()
        for stage in (meta, *meta["history"]):
            for read in stage["datasets"]:
                read["task"] = {"name": "classification", "text_columns": ["text"], "label_column": column}
        write_json(place / META, meta)
    write_json(place / "eval_metrics.json", {
        "eval_accuracy": float((gold == predicted).mean()),
        "eval_f1": f1_score(gold, predicted, average="macro", zero_division=0),
    })
    write_jsonl(place / "eval_predictions.jsonl", [
        {"id": f"v{number:03d}", "text": "t", column: names[ours], "predicted_label": names[theirs],
         "correct": int(ours == theirs)} for number, (ours, theirs) in enumerate(zip(gold, predicted, strict=True))
    ])
    return place


def drawn_answers(rng, n: int, arms: int, seeds: int, method_sd: float = 1.5, seed_sd: float = 0.05):
    """Gold labels (n,) of three classes and answers (arms, seeds, n) of methods that are as good as each other, but
    not at the same examples."""
    gold = rng.choice(3, n, p=(0.6, 0.3, 0.1))
    logits = rng.normal(1, 1, n) + rng.normal(0, method_sd, (arms, 1, n)) + rng.normal(0, seed_sd, (arms, seeds, n))
    return gold, np.where(logits > 0, gold, (gold + 1) % 3)


@pytest.mark.parametrize(("names", "column"), [(("no", "maybe", "yes"), "label"), ((0, 1, 2), "stance")])
def test_macro_f1_is_compared_over_seeds_and_examples(tmp_path, names, column):
    directory = planned(tmp_path, FEW)
    gold, answers = drawn_answers(np.random.default_rng(0), 120, 2, 3)
    influences = []
    for name, arm in zip(FEW, answers, strict=True):
        for seed, predicted in zip(SEEDS, arm, strict=True):
            answered(directory, name, seed, gold, predicted, names, column)
        influences.append(np.stack([influence_on_macro_f1(gold, predicted) for predicted in arm]))
    write_report(directory, 1.0)
    row = row_of(directory, "f1")
    highest = 2 / (3 * (np.bincount(gold) / 120).min())
    expected = multi_bootstrap(influences[1], influences[0], highest)
    for key, value in expected.items():
        assert row[key] == pytest.approx(value, rel=1e-4), key
    assert row["p"] == max(row["p_t"], row["p_bootstrap"]) and row["warnings"] == []
    assert row["examples"] == 120 and row["examples_needed"] == examples_needed(0.01, highest, 0.05 / 2)
    # Seeds that agree say nothing of other examples.
    assert row["p_t"] < 0.05 < row["p_bootstrap"] and row["verdict"] == "underpowered"
    # In another order.
    lines = (file := place_of(directory, "other", 2) / "eval_predictions.jsonl").read_text().splitlines()
    file.write_text("\n".join(lines[::-1]) + "\n")
    write_report(directory, 1.0)
    assert row_of(directory, "f1") == row


def test_macro_f1_without_the_labels_is_over_seeds_and_says_so(tmp_path):
    directory = planned(tmp_path, FEW)
    gold, answers = drawn_answers(np.random.default_rng(0), 120, 2, 3)
    for name, arm in zip(FEW, answers, strict=True):
        for seed, predicted in zip(SEEDS, arm, strict=True):
            answered(directory, name, seed, gold, predicted, known=False)
    text = write_report(directory, 1.0)
    row = row_of(directory, "f1")
    assert row["p_bootstrap"] is None and row["p"] == row["p_t"] and row["examples"] is None
    assert row["warnings"] == [NO_SCORES] and f"warning: {NO_SCORES}" in text
    assert row_of(directory, "accuracy")["p_bootstrap"] is not None


def test_macro_f1_has_few_false_findings_where_the_examples_vary():
    """150 times two methods that are as good as each other: a t test over their seeds finds a difference in half."""
    rng = np.random.default_rng(0)
    found = {"p_bootstrap": 0, "p_t": 0}
    for _ in range(150):
        gold, answers = drawn_answers(rng, 150, 2, 4)
        ours, theirs = (np.stack([influence_on_macro_f1(gold, predicted) for predicted in arm]) for arm in answers)
        row = paired_statistics(ours.mean(axis=1), theirs.mean(axis=1)) | multi_bootstrap(ours, theirs)
        for name in found:
            found[name] += row[name] is not None and row[name] <= 0.05
    assert found["p_t"] > 45 and 1 <= found["p_bootstrap"] <= 17, found  # 7.5 expected at 5%


def test_a_single_seed_of_macro_f1(tmp_path):
    directory = planned(tmp_path, FEW, [1])
    gold, answers = drawn_answers(np.random.default_rng(0), 120, 2, 1)
    for name, arm in zip(FEW, answers, strict=True):
        answered(directory, name, 1, gold, arm[0])
    write_report(directory, 1.0)
    row = row_of(directory, "f1")
    influences = [influence_on_macro_f1(gold, arm[0]) for arm in answers]
    assert row["p"] == pytest.approx(ttest_rel(*influences).pvalue, rel=1e-4)
    assert row["shown_low"] < row["difference"] < row["shown_high"]


def test_a_single_seed_of_classification(tmp_path):
    directory = planned(tmp_path, FEW, [1])
    for name in FEW:
        classified(directory, name, 1, scores_of(name, 1) == 1, 0.5)
    text = write_report(directory, 1.0)
    assert row_of(directory, "accuracy")["p"] == row_of(directory, "accuracy")["p_mcnemar"]
    row = row_of(directory, "f1")
    assert (row["p"], row["verdict"], row["shown_low"]) == (None, "underpowered", None)
    assert "no per-example scores" in row["note"] and "f1 (0..1)" in text


def test_several_evaluation_sets(tmp_path):
    directory = planned(tmp_path, FEW)
    for place, name in enumerate(FEW):
        for seed in SEEDS:
            for suffix in ("_validation", "_test"):
                correct = scores_of(name + suffix, seed) == 1
                classified(directory, name, seed, correct, 0.5 + 0.01 * place * seed, suffix)
    text = write_report(directory, 1.0)
    found = [row["metric"] for row in rows_of(directory)]
    assert sorted(found) == ["accuracy_test", "accuracy_validation", "f1_test", "f1_validation"]
    row = row_of(directory, "accuracy_test")
    assert row["values"] == [(scores_of("other_test", seed) == 1).mean() for seed in SEEDS]
    assert row["p_bootstrap"] is not None and row_of(directory, "f1_validation")["p_bootstrap"] is None
    assert "accuracy_test (0..1)" in text
    assert {"f1_good_test", "loss_validation"} <= set(table(directory, "results.csv").columns)


ABLATED = {"": 0.5, "q_only": -1.0, "p_only": -2.0}


def ablated(directory: Path, name: str, seed: int, suffix: str = "") -> Path:
    place = bare(directory, name, seed)
    found: dict[str, float] = {}
    for ablation, effect in ABLATED.items():
        scores = scores_of(name, seed, effect + (name == "trained"))
        found |= qa_metrics(scores, f"eval_{ablation}_" if ablation else "eval_")
        write_jsonl(place / f"eval_predictions{suffix}{'_' * bool(ablation)}{ablation}.jsonl", qa_rows(scores))
    write_json(place / f"eval_metrics{suffix}.json", found)
    return place


def test_ablations_make_a_table_of_two_by_three(tmp_path):
    directory = planned(tmp_path, {"not_fine_tuned": {}, "trained": {}})
    for name in ("not_fine_tuned", "trained"):
        for seed in SEEDS:
            ablated(directory, name, seed)
    write_report(directory, 1.0)
    assert {row["metric"] for row in rows_of(directory)} == {
        f"{prefix}{score}" for prefix in ("", "q_only_", "p_only_") for score in ("exact_match", "f1")
    }
    assert all(row["p_bootstrap"] is not None for row in rows_of(directory))
    shown = markdown_tables((directory / "comparison.md").read_text())[-1]
    assert shown[0] == ["experiment", "question and passage", "q_only", "p_only"]
    assert [row[0] for row in shown[2:]] == ["not_fine_tuned", "trained"]
    results = table(directory, "results.csv").groupby("experiment")
    for row in shown[2:]:
        for cell, prefix in zip(row[1:], ("", "q_only_", "p_only_"), strict=True):
            values = [results[f"{prefix}{score}"].agg(["mean", "std"]).loc[row[0]] for score in ("exact_match", "f1")]
            assert cell == " / ".join(f"{one['mean']:.2f} ± {one['std']:.2f}" for one in values)


def test_ablations_of_several_evaluation_sets(tmp_path):
    directory = planned(tmp_path, {"not_fine_tuned": {}, "trained": {}}, [1])
    for name in ("not_fine_tuned", "trained"):
        for suffix in ("_validation", "_test"):
            ablated(directory, name, 1, suffix)
    write_report(directory, 1.0)
    assert row_of(directory, "q_only_f1_test")["p_bootstrap"] is not None
    shown = [each for each in markdown_tables((directory / "comparison.md").read_text()) if "p_only" in each[0]]
    assert shown and "- / -" not in str(shown)


def test_what_a_model_that_never_saw_passages_makes_of_them_stands_under_its_heading(tmp_path):
    directory = planned(tmp_path, {"baseline": {"args": {"ablations": "q_only"}}}, [1])
    place = bare(directory, "baseline", 1)
    found = {prefix: scores_of(prefix, 1) for prefix in ("", "none_", "p_only_")}  # "": q_only, the training's own
    write_json(place / "eval_metrics.json", {
        key: value for prefix, scores in found.items() for key, value in qa_metrics(scores, f"eval_{prefix}").items()
    })
    write_report(directory, 1.0)
    shown = markdown_tables((directory / "comparison.md").read_text())[-1]
    cell = dict(zip(shown[0], shown[2], strict=True)).get("question and passage")
    assert cell is not None and cell.endswith(f"{100 * found['none_'].mean():.2f}")


# --- predictions -------------------------------------------------------------------------------------------------


def test_without_predictions_the_seeds_alone_decide(tmp_path):
    directory = everything(planned(tmp_path, FEW))
    (place_of(directory, "other", 2) / "eval_predictions.jsonl").unlink()
    write_report(directory, 1.0)
    for row in rows_of(directory):
        assert row["p_bootstrap"] is None and row["p"] == row["p_t"]
        assert (row["shown_low"], row["shown_high"]) == (row["low"], row["high"])


def test_predictions_of_a_single_seed_are_aligned_by_id(tmp_path):
    """Right: ours 0 1 2 3, theirs 2 3 4, of six examples; McNemar's mid-p of 2 against 1 is 2 (1/8 + 3/16)."""
    directory = planned(tmp_path, FEW, [1])
    ours, theirs = np.array([1, 1, 1, 1, 0, 0.0]), np.array([0, 0, 1, 1, 1, 0.0])
    finish(directory, "other", 1, ours)
    place = finish(directory, "baseline", 1, theirs)
    write_jsonl(place / "eval_predictions.jsonl", [qa_rows(theirs)[index] for index in (5, 3, 1, 4, 0, 2)])
    write_report(directory, 1.0)
    row = row_of(directory, "exact_match")
    assert (row["only_experiment_right"], row["only_reference_right"]) == (2, 1)
    assert row["p"] == pytest.approx(0.625)
    assert row["difference"] == pytest.approx(100 / 6)


def test_predictions_in_another_order_change_nothing(tmp_path):
    directory = everything(planned(tmp_path, CONTROLLED), effects={"small": 0.3})
    write_report(directory, 1.0)
    before = rows_of(directory)
    ours, theirs = (np.stack([100 * scores_of(name, seed, effect) for seed in SEEDS])
                    for name, effect in (("small", 0.3), ("baseline", 0.0)))
    expected = multi_bootstrap(ours, theirs)
    assert row_of(directory, experiment="small")["p_bootstrap"] == pytest.approx(expected["p_bootstrap"], rel=1e-4)
    for number, file in enumerate(sorted(directory.glob("*/eval_predictions.jsonl"))):
        if file.parent == place_of(directory, "small", 1):
            continue  # read first: its order is that of the resampling
        lines = file.read_text().splitlines()
        order = np.random.default_rng(number).permutation(len(lines))
        file.write_text("\n".join(lines[place] for place in order) + "\n")
    write_report(directory, 1.0)
    assert rows_of(directory) == before


def test_predictions_of_other_examples_are_not_compared(tmp_path):
    directory = everything(planned(tmp_path, FEW))
    scores = scores_of("other", 2)
    place = place_of(directory, "other", 2)
    write_jsonl(place / "eval_predictions.jsonl", qa_rows(scores, [f"w{number}" for number in range(40)]))
    write_report(directory, 1.0)
    assert {row["p_bootstrap"] for row in rows_of(directory)} == {None}
    write_jsonl(place / "eval_predictions.jsonl", qa_rows(scores)[:-1])
    write_report(directory, 1.0)
    assert {row["p_bootstrap"] for row in rows_of(directory)} == {None}


def test_one_run_on_other_examples_spoils_its_own_comparison_only(tmp_path):
    directory = everything(planned(tmp_path, {"baseline": {}, "odd": {}, "a": {}, "b": {}}))
    rows = qa_rows(scores_of("odd", 1), [f"w{number}" for number in range(40)])
    write_jsonl(place_of(directory, "odd", 1) / "eval_predictions.jsonl", rows)
    write_report(directory, 1.0)
    known = {row["experiment"]: row["p_bootstrap"] is not None for row in rows_of(directory, metric="f1")}
    assert known == {"odd": False, "a": True, "b": True}


def test_predictions_of_older_runs_without_scores(tmp_path):
    directory = everything(planned(tmp_path, FEW))
    place = place_of(directory, "baseline", 3)
    write_jsonl(place / "eval_predictions.jsonl", [{"id": key, "predicted_answer": "a"} for key in IDS])
    write_report(directory, 1.0)
    assert {row["p_bootstrap"] for row in rows_of(directory)} == {None}


@pytest.mark.parametrize("damage", ["cut", "empty", "word", "number"])
def test_predictions_that_cannot_be_read_are_told_in_one_line(tmp_path, damage):
    directory = everything(planned(tmp_path, FEW))
    file = place_of(directory, "baseline", 2) / "eval_predictions.jsonl"
    text = file.read_text()
    file.write_text({"cut": text[:-30], "empty": "", "word": text + "oops\n",
                     "number": text.replace('"f1": 1.0', '"f1": "all"')}[damage])
    with pytest.raises(UserError) as told:
        write_report(directory, 1.0)
    assert "\n" not in str(told.value) and str(file) in str(told.value)


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3]])
def test_scores_that_do_not_fit_the_metric_are_no_traceback(tmp_path, seeds):
    """Predictions that somebody else wrote, or of another evaluation than the metrics."""
    directory = everything(planned(tmp_path, FEW, seeds))
    file = place_of(directory, "baseline", 1) / "eval_metrics.json"
    write_json(file, {"eval_exact_match": 99.0, "eval_f1": 99.0})
    with pytest.raises(UserError, match="baseline-seed1.*|eval_predictions") as told:
        write_report(directory, 1.0)
    assert "\n" not in str(told.value)


def test_metrics_that_cannot_be_read_are_told_in_one_line(tmp_path):
    directory = everything(planned(tmp_path, FEW))
    file = place_of(directory, "baseline", 1) / "eval_metrics.json"
    file.write_text('{"eval_f1": 5')
    with pytest.raises(UserError, match="eval_metrics.json, line 1: malformed JSON"):
        write_report(directory, 1.0)


# --- warnings ----------------------------------------------------------------------------------------------------


def test_no_warning_where_nothing_differs(tmp_path):
    directory = everything(planned(tmp_path, FEW))
    text = write_report(directory, 1.0)
    assert {tuple(row["warnings"]) for row in rows_of(directory)} == {()}
    assert "arning" not in text and "arning" not in (directory / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"data": "changed"}, "the data differ (fingerprints)"),
        ({"git_commit": "0ddba11"}, "the code differs (2 commits)"),
        ({"git_dirty": True}, "the code was changed and not committed"),
    ],
)
def test_what_differs_beside_the_experiment_is_told_everywhere(tmp_path, meta, words):
    directory = everything(planned(tmp_path, {**FEW, "third": {}}))
    finish(directory, "other", 2, **meta)
    text = write_report(directory, 1.0)
    assert {row["experiment"]: row["warnings"] for row in rows_of(directory)} == {"other": [words], "third": []}
    assert f"warning: {words}" in text and f"Warning: {words}." in (directory / "comparison.md").read_text()


@pytest.mark.parametrize(("key", "value"), [("git_commit", "0ddba11"), ("git_dirty", True)])
def test_the_code_of_the_training_counts_too(tmp_path, key, value):
    """Trained, interrupted, and evaluated by the next commit."""
    directory = everything(planned(tmp_path, FEW))
    history = metas()["history"]
    history[0][key] = value
    finish(directory, "other", 2, history=history)
    write_report(directory, 1.0)
    assert row_of(directory)["warnings"]


def test_a_difference_of_seeds_that_are_not_compared_is_no_warning(tmp_path):
    directory = everything(planned(tmp_path, FEW), skip={("baseline", 3)})
    finish(directory, "other", 3, git_commit="0ddba11")
    write_report(directory, 1.0)
    assert row_of(directory)["warnings"] == []


# --- intervals and verdicts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("predictions", [True, False])
@pytest.mark.parametrize("seeds", [1, 2, 3, 6])
def test_interval_and_verdict_go_together(tmp_path, seeds, predictions):
    effects = {"baseline": 0.0, "same": 0.0, "a": 0.25, "b": 0.6, "c": 2.0, "d": -0.4, "e": -2.0}
    directory = everything(planned(tmp_path, {name: {} for name in effects}, range(1, seeds + 1)), effects=effects)
    if not predictions:
        for file in directory.glob("*/eval_predictions.jsonl"):
            file.unlink()
    write_report(directory, 1.0)
    rows = rows_of(directory)
    assert len(rows) == 12
    for row in rows:
        assert row["verdict"] in VERDICTS
        significant = row["p_holm"] is not None and row["p_holm"] <= 0.05 and seeds != 2
        assert (row["verdict"] in ("better", "worse")) == significant, row
        if significant:
            assert (row["difference"] > 0) == (row["verdict"] == "better")
        if row["p"] is not None and row["p"] < 0.05:
            assert row["shown_low"] > 0 or row["shown_high"] < 0, row
        if seeds > 1 and row["p"] is not None and row["p"] > 0.05:
            assert row["shown_low"] <= 0 <= row["shown_high"], row
        if row["shown_low"] is not None:
            assert row["shown_low"] <= row["difference"] <= row["shown_high"]
            for low, high in (("low", "high"), ("bootstrap_low", "bootstrap_high")):
                if row[low] is not None:
                    assert row["shown_high"] - row["shown_low"] >= row[high] - row[low]
    if seeds == 6:
        assert {row["verdict"] for row in rows} >= {"better", "worse"}


def test_margin_reaches_the_comparison(tmp_path):
    directory = everything(planned(tmp_path, FEW))
    write_report(directory, 1.0)
    assert {row["margin"] for row in rows_of(directory)} == {1.0}
    needed = row_of(directory)["seeds_needed"]
    write_report(directory, 25.0)
    assert {row["margin"] for row in rows_of(directory)} == {25.0} and row_of(directory)["seeds_needed"] < needed


# --- console and Markdown ----------------------------------------------------------------------------------------


def expected_cells(row: dict) -> dict[str, str]:
    """By heading of comparison.md, from a row of comparison.json, percentages."""

    def p(value):
        return "-" if value is None else f"{value:.2g}" if value >= 0.001 else "< 0.001"

    return {
        "n": str(row["n"]), "difference": f"{row['difference']:+.2f}",
        "95 % interval": f"[{row['shown_low']:+.2f}, {row['shown_high']:+.2f}]",
        "wins": f"{row['wins']} of {row['n']}", "p": p(row["p"]),
        "p (Holm) of family": f"{p(row['p_holm'])} of {row['family_size']}",
        "p (sign flip; smallest possible)": f"{row['p_sign_flip']:.3g}; {row['p_sign_flip_smallest']:.3g}",
        "p (equivalence, Holm)": p(row["p_equivalence_holm"]), "g": f"{row['hedges_g']:.2f}",
        "training examples": f"{row['train_examples']:,.0f}",
    }


def test_numbers_of_markdown_and_console_are_those_of_the_table(tmp_path):
    directory = everything(planned(tmp_path, CONTROLLED), effects={"small": 0.4, "fast": -0.5}, rows=12_345)
    text = write_report(directory, 1.0)
    told = [each for each in markdown_tables((directory / "comparison.md").read_text()) if each[0] == list(HEADINGS)]
    assert len(told) == 2
    for metric, each in zip(("exact_match", "f1"), told, strict=True):
        rows = {(row["experiment"], row["reference"]): row for row in rows_of(directory, metric=metric)}
        assert len(each) == 2 + len(rows) == 6
        part = text.partition(f"\n{metric} (")[2].partition("\n\n")[0]
        for line in each[2:]:
            found, row = dict(zip(HEADINGS, line, strict=True)), rows[line[0], line[1]]
            expected = expected_cells(row)
            assert {name: found[name] for name in expected} == expected
            assert found["mean ± SD"] == f"{row['mean']:.2f} ± {row['sd']:.2f}"
            assert found["verdict"].startswith(row["verdict"])
            if row["against"] != "baseline (controls)":
                (shown,) = [one for one in part.splitlines() if one.split()[:2] == line[:2]]
                assert expected["difference"] in shown and expected["95 % interval"] in shown
                assert row["verdict"] in shown
        reference = rows["fast", "baseline"]
        assert f"baseline: {reference['reference_mean']:.2f} ± {reference['reference_sd']:.2f}, 3 seeds" in part


def test_the_mean_beside_n_is_of_these_n_seeds(tmp_path):
    directory = everything(planned(tmp_path, FEW), skip={("baseline", 3)})
    write_report(directory, 1.0)
    (told,) = [each for each in markdown_tables((directory / "comparison.md").read_text())
               if each[0] == list(HEADINGS)][1:]
    row, found = row_of(directory), dict(zip(told[0], told[2], strict=True))
    assert found["n"] == "2" and found["mean ± SD"] == f"{row['mean']:.2f} ± {row['sd']:.2f}"


def same_width(text: str) -> bool:
    tables = markdown_tables(text)
    return bool(tables) and all(len({len(row) for row in each}) == 1 for each in tables)


def test_every_row_has_as_many_cells_as_the_heading(tmp_path):
    for seeds in ([1], [1, 2, 3]):
        root = tmp_path / str(len(seeds))
        root.mkdir()
        directory = everything(planned(root, CONTROLLED, seeds), skip={("fast", 1)})
        write_report(directory, 1.0)
        text = (directory / "comparison.md").read_text()
        assert same_width(text)
        assert [len(each[0]) for each in markdown_tables(text)] == [3, len(HEADINGS), len(HEADINGS)]


@pytest.mark.parametrize(
    "changes",
    [{"description": "a | b"}, {"description": "a\nb"}, {"why": "p(a|b)"}, {"why": "first\r\n\r\nsecond"}],
)
def test_a_description_breaks_no_table(tmp_path, changes):
    directory = everything(planned(tmp_path, {"baseline": {}, "other": changes}, [1]))
    write_report(directory, 1.0)
    text = (directory / "comparison.md").read_text()
    assert same_width(text)
    assert [row[0] for row in markdown_tables(text)[0]] == ["experiment", "---", "baseline", "other"]


def test_a_name_breaks_no_table(tmp_path):
    directory = everything(planned(tmp_path, {"baseline": {}, "a|b": {}}, [1]))
    write_report(directory, 1.0)
    assert same_width((directory / "comparison.md").read_text())


@pytest.mark.parametrize("description", ["A study.", "Does it help?"])
def test_a_description_that_ends_by_itself(tmp_path, description):
    directory = everything(planned(tmp_path, FEW, [1], description=description))
    write_report(directory, 1.0)
    assert f"\n{description}\n" in (told := (directory / "comparison.md").read_text()) and ".." not in told


def test_no_minus_before_zero(tmp_path):
    directory = planned(tmp_path, FEW)
    for seed, score in zip(SEEDS, (50.001, 49.99, 50.0), strict=True):
        for name, value in (("baseline", 50.0), ("other", score)):
            write_json(bare(directory, name, seed) / "eval_metrics.json", {"eval_exact_match": 50.0, "eval_f1": value})
    assert "-0.00 " not in write_report(directory, 1.0)


# --- pictures ----------------------------------------------------------------------------------------------------


def drawn(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("*.png")}


def grown(directory: Path, sizes: dict[str, int]) -> Path:
    """Other sizes of the training set for some experiments."""
    for name, size in sizes.items():
        for place in directory.glob(f"{name}-seed*"):
            write_json(place / "filter_report.json", {"after": size})
    return directory


def test_pictures_of_every_metric(tmp_path, pictures):
    directory = everything(planned(tmp_path, CONTROLLED), effects={"small": 1.0})
    grown(directory, {"small": 50, "small_control": 50})
    losses = {}
    for name in CONTROLLED:
        for seed in SEEDS:
            rows = [{"step": step, "epoch": step / 2, "loss": 1 / step + seed} for step in (1, 2, 3)]
            log_losses(place_of(directory, name, seed), rows)
            losses[name, seed] = [each["loss"] for each in rows]
    write_report(directory, 1.0)
    assert drawn(directory) == set(pictures) == {
        "comparison_exact_match.png", "comparison_f1.png", "training_size_exact_match.png", "training_size_f1.png",
        "learning_curves.png",
    }
    check_differences(pictures["comparison_f1.png"], rows_of(directory, metric="f1"), " over 3 seeds, ")
    check_sizes(pictures["training_size_f1.png"], table(directory, "results.csv"), "f1")
    # The curves, and the file beside them.
    curves = table(directory, "learning_curves.csv")
    assert list(curves.columns[:4]) == ["experiment", "seed", "step", "epoch"] and len(curves) == 36
    for (name, seed), part in curves.groupby(["experiment", "seed"]):
        assert part["loss"].tolist() == pytest.approx(losses[name, seed])
    (axis,) = pictures["learning_curves.png"].axes
    check_curves(axis, curves, "loss")
    assert axis.get_xlabel() == "epoch" and axis.get_ylabel() == "training loss (nats)"
    assert caption(pictures["learning_curves.png"]).startswith(
        "Lines: mean of 3 seeds; bands: from the lowest to the highest.")


def check_differences(figure, compared, seeds, unit="percentage points"):
    """All seeds, their mean, the interval, the verdict and its colour, line by line from the top."""
    (axis,) = figure.axes
    labels = seen(axis, "y")
    assert [label.split("\nagainst ") for label in labels.values()] == [
        [row["experiment"], row["reference"]] for row in compared]
    gaps = [1.5 if row["against"] != last["against"] else 1.0 for last, row in itertools.pairwise(compared)]
    assert np.diff(list(labels)).tolist() == gaps
    zero, *found = lines(axis)
    assert zero[:2] == ([0, 0], [0, 1])
    for place, row in zip(labels, compared, strict=True):
        color, n = COLOR_OF[row["verdict"]], row["n"]
        expected = [([row["shown_low"], row["shown_high"]], [place] * 2)] if row["shown_low"] is not None else []
        differences = [ours - theirs for ours, theirs in zip(row["values"], row["reference_values"], strict=True)]
        expected += [(differences, [place] * n)] if n > 1 else []
        expected += [([row["difference"]], [place])]
        assert [line[:2] for line in found if line[1][0] == place] == expected
        marks = [line for line in axis.lines[1:] if np.atleast_1d(line.get_ydata())[0] == place]
        assert {to_hex(line.get_markeredgecolor()) for line in marks} == {color}
        assert row["difference"] == pytest.approx(np.mean(differences))
        (word,) = [text for text in axis.texts if text.xy[1] == place]
        assert word.get_text() == row["verdict"] + ("\n(this checkpoint)" if n == 1 else "")
        assert to_hex(word.get_color()) == color and 1 < word.xy[0] < 1.1, "beside the axes"
    (band,) = axis.patches
    margin = compared[0]["margin"]
    assert (band.get_x(), band.get_width()) == (-margin, 2 * margin)
    assert axis.get_ylim()[0] > max(labels) >= min(labels) > axis.get_ylim()[1], "the first on top"
    assert axis.get_xlabel().startswith("difference in ") and axis.get_xlabel().endswith(f"({unit})")
    told = caption(figure)
    assert seeds in told and f"differences below {margin:g}," in told


def check_sizes(figure, results, metric):
    """Every run at the size of its experiment; those of one size beside each other, in the order of the suite."""
    (axis,) = figure.axes
    results = results[results["train_examples"].notna() & results[metric].notna()]
    names = list(dict.fromkeys(results["experiment"]))
    sizes = results.groupby("experiment")["train_examples"].mean()
    step = 0.012 * np.ptp(results["train_examples"])
    for name, dashes, mean in zip(names, axis.lines[::2], axis.lines[1::2], strict=True):
        rows = results[results["experiment"] == name]
        alike = [other for other in names if sizes[other] == sizes[name]]
        place = sizes[name] + (alike.index(name) - (len(alike) - 1) / 2) * step
        assert dashes.get_xdata() == pytest.approx([place] * len(rows)) and mean.get_xdata() == pytest.approx([place])
        assert list(dashes.get_ydata()) == rows[metric].tolist()
        assert mean.get_ydata() == pytest.approx([rows[metric].mean()])
        control = isinstance(rows["control_of"].iloc[0], str)
        assert mean.get_markerfacecolor() == ("none" if control else mean.get_markeredgecolor())
        assert dashes.get_color() == mean.get_markeredgecolor()
    assert list(legend(axis)) == names
    color = {name: line.get_markeredgecolor() for name, line in zip(names, axis.lines[1::2], strict=True)}
    own = {name: of for name, of in zip(results["experiment"], results["control_of"], strict=True)
           if not isinstance(of, str)}
    assert len({color[name] for name in own}) == min(len(own), 7)
    for name, of in zip(results["experiment"], results["control_of"], strict=True):
        assert name in own or color[name] == color[of]
    assert f"n = {len(results):,} runs" in caption(figure)


def check_curves(axis, curves, column, bands=True):
    """The mean over seeds of every experiment; behind it all that lies between the lowest and the highest."""
    names = list(dict.fromkeys(curves["experiment"]))
    assert list(legend(axis)) == names
    areas = [area.get_paths()[0].vertices for area in axis.collections]
    assert len(areas) == (len(names) if bands else 0)
    for number, (name, line) in enumerate(zip(names, axis.lines, strict=True)):
        logs = [part[["epoch", column]].dropna().to_numpy() for _, part in
                curves[curves["experiment"] == name].groupby("seed")]
        epoch, values = np.stack(logs).transpose(2, 1, 0)  # each (logs, seeds)
        assert line.get_xdata() == pytest.approx(epoch.mean(axis=1))
        assert line.get_ydata() == pytest.approx(values.mean(axis=1))
        assert line.get_linestyle() == ("--" if name.endswith("_control") else "-")
        if bands:
            corners = {(round(x, 9), round(y, 9)) for x, y in areas[number]}
            edges = zip(*(np.round(each, 9).tolist() for each in (epoch.mean(axis=1), values.min(axis=1),
                                                                  values.max(axis=1))), strict=True)
            assert corners == {corner for x, low, high in edges for corner in ((x, low), (x, high))}
    colors = {name: line.get_color() for name, line in zip(names, axis.lines, strict=True)}
    assert all(color == colors[name.removesuffix("_control")] for name, color in colors.items())
    assert len(set(colors.values())) == min(7, sum(not name.endswith("_control") for name in names))


@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_every_verdict_has_its_word_and_its_colour(tmp_path, pictures, seeds):
    directory = everything(planned(tmp_path, {"baseline": {}, **{name: {} for name in "abcd"}}, seeds))
    write_report(directory, 1.0)
    rows = [{**row, "verdict": verdict} for row, verdict in
            zip(rows_of(directory, metric="exact_match"), VERDICTS, strict=True)]
    rows[3]["shown_low"] = rows[3]["shown_high"] = None
    metric = Metric("exact_match", "exact_match", "", "", 100.0)
    suite_plots.plot_differences(tmp_path / "made.png", "A study", metric, rows)
    check_differences(pictures["made.png"], rows, " over 1 seed, " if len(seeds) == 1 else " over 2 seeds, ")
    assert len(set(COLOR_OF.values())) == 4
    fraction = Metric("accuracy", "accuracy", "", "", 1.0)
    rows[0] = {**rows[0], "margin": 0.25}
    suite_plots.plot_differences(tmp_path / "fraction.png", "A study", fraction, rows[:1])
    check_differences(pictures["fraction.png"], rows[:1], "", unit="0..1")


def test_what_has_no_run_is_not_drawn(tmp_path, pictures):
    skip = [("other", seed) for seed in SEEDS]
    directory = one_metric(everything(planned(tmp_path, {"baseline": {}, "other": {}, "third": {}}), skip=skip))
    write_report(directory, 1.0)
    compared = rows_of(directory, metric="exact_match")
    assert [(row["experiment"], row["n"]) for row in compared] == [("other", 0), ("third", 3)]
    check_differences(pictures["comparison_exact_match.png"], compared[1:], " over 3 seeds, ")


@pytest.mark.parametrize("count", [7, 8])
def test_bands_of_more_than_seven_experiments_are_not_drawn(tmp_path, pictures, count):
    names = [f"e{number}" for number in range(count)]
    directory = one_metric(everything(planned(tmp_path, {name: {} for name in names}, [1, 2])))
    for number, name in enumerate(names):
        for seed in (1, 2):
            log_losses(place_of(directory, name, seed), [
                {"step": step, "epoch": step + seed / 10, "loss": number + seed / step,
                 "eval_exact_match": 10 * step + seed} for step in (1, 2, 3)])
    write_report(directory, 1.0)
    figure, curves = pictures["learning_curves.png"], table(directory, "learning_curves.csv")
    assert [axis.get_ylabel() for axis in figure.axes] == ["training loss (nats)", "eval exact match"]
    for axis, column in zip(figure.axes, ("loss", "eval_exact_match"), strict=True):
        axis.legend(axis.lines, names)  # the first panel's is for all
        check_curves(axis, curves, column, bands=count == 7)
    assert ("bands" in caption(figure)) == (count == 7)


def test_losses_that_cannot_be_compared_have_panels_of_their_own(tmp_path, pictures):
    args = {"baseline": {}, "plain": {}, "smoothed": {"use_label_smoothing": True},
            "both": {"use_label_smoothing": True, "use_soft_weighting": True}}
    directory = one_metric(everything(planned(tmp_path, {name: {"args": each} for name, each in args.items()}, [1])))
    for name in args:
        log_losses(place_of(directory, name, 1), [{"step": step, "epoch": step, "loss": 1 / step} for step in (1, 2)])
    write_report(directory, 1.0)
    figure = pictures["learning_curves.png"]
    assert [(axis.get_ylabel(), len(axis.lines)) for axis in figure.axes] == [
        ("training loss (nats)", 2), ("smoothed\ntraining loss (nats)", 1),
        ("smoothed and weighted\ntraining loss (nats)", 1)]
    assert list(legend(figure.axes[0])) == list(args) and "in a panel of its own" in caption(figure)


def test_thirty_experiments(tmp_path, pictures):
    names = [f"experiment_{number}" for number in range(15)]
    controls = {f"{name}_control": {"control_of": name} for name in names}
    directory = everything(planned(tmp_path, {"baseline": {}, **{name: {} for name in names}, **controls}, [1, 2]))
    grown(directory, {f"{name}*": 30 + number for number, name in enumerate(names)})
    for place in directory.glob("*-seed1-*"):
        log_losses(place, [{"step": 1, "epoch": 0.5, "loss": 2.0}, {"step": 2, "epoch": 1.0, "loss": 1.0}])
    one_metric(directory)
    write_report(directory, 1.0)
    assert drawn(directory) == {"comparison_exact_match.png", "training_size_exact_match.png", "learning_curves.png"}
    for name in drawn(directory):
        figure = pictures[name]
        assert figure.get_figheight() > 6
        axis, whole = figure.axes[0], figure.bbox
        assert axis.get_window_extent().width > 0.3 * whole.width, "there is room for the data"
        labels = axis.get_yticklabels() if name.startswith("comparison") else axis.get_legend().get_texts()
        assert len(labels) == (45 if name.startswith("comparison") else 31)
        for text in labels:
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= whole.x1 and box.y0 >= 0 and box.y1 <= whole.y1, text.get_text()


def test_every_experiment_of_many_looks_different(tmp_path, pictures):
    names = [f"experiment_{number}" for number in range(10)]
    directory = everything(planned(tmp_path, {name: {} for name in names}, [1]))
    grown(one_metric(directory), {name: 30 + number for number, name in enumerate(names)})
    write_report(directory, 1.0)
    handles = pictures["training_size_exact_match.png"].axes[0].get_legend().legend_handles
    looks = {(line.get_marker(), line.get_markeredgecolor(), line.get_markerfacecolor()) for line in handles}
    assert len(looks) == len(names)


@pytest.mark.parametrize("name", ["a_b_c", "x$y", "loss_{2}", "a%b^c", "naïve-Bäse"])
def test_unusual_names(tmp_path, pictures, name):
    check_names(tmp_path, pictures, name)


@pytest.mark.parametrize("name", ["cost$1$2", "x$y$", "$_$", "_hidden"])
def test_names_that_matplotlib_would_read_as_something_else(tmp_path, pictures, name):
    check_names(tmp_path, pictures, name)


def check_names(tmp_path, pictures, name):
    directory = everything(planned(tmp_path, {"baseline": {}, name: {}}, [1, 2]))
    one_metric(directory)
    for seed in (1, 2):
        place = place_of(directory, name, seed)
        write_json(place / "filter_report.json", {"after": 7})
        log_losses(place, [{"step": step, "epoch": step, "loss": 1 / step} for step in (1, 2)])
    write_report(directory, 1.0)
    assert len(drawn(directory)) == 3
    labels = [label for name in ("training_size_exact_match.png", "learning_curves.png")
              for label in legend(pictures[name].axes[0])]
    labels += [label.get_text() for label in pictures["comparison_exact_match.png"].axes[0].get_yticklabels()]
    shown = [label.replace(r"\$", "$").strip() for label in labels]
    assert shown == ["baseline", name, name, f"{name}\nagainst baseline"]
    assert not any(is_math_text(label) for label in labels)


def test_long_names_leave_room_for_the_data(tmp_path, pictures):
    names: dict[str, dict] = {"baseline": {}}
    names |= {("a_rather_long_name_of_an_experiment_" * 3)[:100] + str(n): {} for n in range(2)}
    directory = grown(one_metric(everything(planned(tmp_path, names, [1, 2]))), {"a_*": 20})
    write_report(directory, 1.0)
    for figure in pictures.values():
        assert figure.axes[0].get_window_extent().width > 0.2 * figure.bbox.width


def test_one_experiment_only(tmp_path, pictures):
    directory = everything(planned(tmp_path, {"baseline": {}}))
    log_losses(place_of(directory, "baseline", 1), [{"step": step, "epoch": step, "loss": 1.0} for step in (1, 2)])
    text = write_report(directory, 1.0)
    assert rows_of(directory) == [] and "exact_match (percent), baseline: " in text
    assert drawn(directory) == {"learning_curves.png"}
    assert same_width((directory / "comparison.md").read_text())


def test_nothing_to_draw(tmp_path, pictures):
    directory = planned(tmp_path, CONTROLLED)
    write_report(directory, 1.0)
    assert drawn(directory) == set() and not (directory / "learning_curves.csv").exists()


def test_training_sets_of_one_size_make_no_picture_of_sizes(tmp_path, pictures):
    directory = one_metric(everything(planned(tmp_path, FEW)))
    write_report(directory, 1.0)
    assert drawn(directory) == {"comparison_exact_match.png"}


def test_seeds_that_log_at_other_epochs_have_one_curve(tmp_path, pictures):
    directory = one_metric(everything(planned(tmp_path, {"baseline": {}}, [1, 2])))
    for seed, epochs in ((1, (0.5, 1.0)), (2, (0.6, 1.2))):
        rows = [{"step": 1, "epoch": epoch, "loss": seed * loss} for epoch, loss in zip(epochs, (4, 2), strict=True)]
        log_losses(place_of(directory, "baseline", seed), rows)
    write_report(directory, 1.0)
    (line,) = pictures["learning_curves.png"].axes[0].lines
    assert line.get_xdata() == pytest.approx([0.55, 1.1]) and line.get_ydata() == pytest.approx([6, 3])


def test_a_log_of_evaluations_only(tmp_path, pictures):
    """--logging_strategy no, --eval_strategy epoch: the loss is an empty column."""
    directory = one_metric(everything(planned(tmp_path, FEW, [1, 2])))
    for file in directory.glob("*/run_meta.json"):
        (file.parent / "training_log.csv").write_text("step,epoch,loss,eval_exact_match\n6,1.0,,40.0\n12,2.0,,50.0\n")
    write_report(directory, 1.0)
    figure = pictures["learning_curves.png"]
    assert [axis.get_ylabel() for axis in figure.axes] == ["eval exact match"]
    assert list(legend(figure.axes[0])) == ["baseline", "other"]
    assert len(table(directory, "learning_curves.csv")) == 8


def test_nothing_was_logged(tmp_path, pictures):
    directory = one_metric(everything(planned(tmp_path, FEW, [1])))
    for file in directory.glob("*/run_meta.json"):
        (file.parent / "training_log.csv").write_text("step,epoch,loss\n")
    write_report(directory, 1.0)
    assert "learning_curves.png" not in drawn(directory) and not (directory / "learning_curves.csv").exists()


def test_nothing_stays_of_an_earlier_report(tmp_path, pictures):
    directory = grown(one_metric(everything(planned(tmp_path, FEW, [1]))), {"other": 5})
    log_losses(place_of(directory, "other", 1), [{"step": step, "epoch": step, "loss": 1.0} for step in (1, 2)])
    write_report(directory, 1.0)
    assert len(drawn(directory)) == 3
    for name in FEW:
        (place_of(directory, name, 1) / META).unlink()
    write_report(directory, 1.0)
    assert drawn(directory) == set() and not (directory / "learning_curves.csv").exists()


def test_a_curve_of_one_point_can_be_seen(tmp_path, pictures):
    directory = one_metric(everything(planned(tmp_path, FEW, [1])))
    for name in FEW:
        log_losses(place_of(directory, name, 1), [{"step": 500, "epoch": 1.0, "loss": 0.7}])
    write_report(directory, 1.0)
    lines = pictures["learning_curves.png"].axes[0].lines
    assert all(len(line.get_xdata()) > 1 or line.get_marker() not in ("None", "", None) for line in lines)


def test_captions_count_right(tmp_path, pictures):
    directory = one_metric(everything(planned(tmp_path, FEW, [1])))
    log_losses(place_of(directory, "other", 1), [{"step": step, "epoch": step, "loss": 1.0} for step in (1, 2)])
    write_report(directory, 1.0)
    told = [caption(figure) for figure in pictures.values()]
    assert not any("1 seeds" in text or "1 to 1" in text for text in told)
