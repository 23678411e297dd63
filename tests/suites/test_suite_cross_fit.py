"""An experiment of a suite that trains folds too: a worker carries them out, two of its own where it is asked to."""

import json

import pytest

import run_experiments
from datamap.detection.out_of_fold import load_out_of_fold
from datamap.suites.planning import plan_suite
from datamap.suites.runner import run_locally
from datamap.suites.runs import FINISHED, last_lines


@pytest.mark.slow
def test_workers_of_a_suite_train_folds(qa_dir, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    crossed = {"enable_cartography": True, "cross_fit": 2}
    suite = {
        "baseline": "alone",
        "base": {"dataset": str(qa_dir), "model": str(tiny_model), "max_length": 96, "doc_stride": 24, "no_cuda": True,
                 "num_train_epochs": 1, "do_train": True, "do_eval": True},
        "experiments": [{"name": "alone", "args": crossed},
                        {"name": "side_by_side", "args": {**crossed, "cross_fit_workers": 2, "learning_rate": 1e-3}}],
    }
    (tmp_path / "crossed.json").write_text(json.dumps(suite))
    runs = plan_suite(run_experiments.parse_args(["--suite", "crossed.json", "--seeds", "1"]))[2]
    ended = list(run_locally(runs, workers=1, retry=False, keep_models=False, stop_on_error=True))
    for run, outcome in ended:
        assert outcome.state == FINISHED, last_lines(run.directory / "log.txt", 20)
        table = load_out_of_fold(run.directory / "cartography_output")
        assert len(table) == 24 and sorted(set(table["fold"])) == [1, 2]
        assert not (run.directory / "folds").exists()
    assert len(ended) == 2
