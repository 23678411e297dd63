"""The suite ``maps``: recorded with several seeds, joined by the command that its end names."""

import shlex

import pytest

import dataset_cartography
import run_experiments
from datamap.core.files import read_json, read_table

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow  # two trainings, a comparison, seven pictures
def test_its_end_names_the_command_that_joins_the_maps(reviews, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_experiments.main(["--suite", "maps", "--seeds", "1", "2", "--task", "classification", "--label_column",
                          "label", "--dataset", str(reviews), "--model", "lstm", "--num_train_epochs", "3",
                          "--no_cuda", "--per_device_train_batch_size", "8", "--max_length", "32"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "suite maps: 2 runs, 2 finished, 0 failed, 0 missing"
    [command] = [line.partition(": ")[2] for line in lines if line.startswith("to join its maps: ")]
    python, script, *argv = shlex.split(command)
    assert (python, script) == ("python", "dataset_cartography.py")
    dataset_cartography.main(argv)
    joint = tmp_path / "experiments/maps/joint_map"
    assert [each["seed"] for each in read_json(joint / "joint_map.json")["runs"]] == [1, 2]
    assert (read_table(joint / "cartography_metrics.csv")["n_runs"] == 2).all()
    run_experiments.main(["--mode", "analyze", "--suite", "maps"])  # the joint map lies beside its runs
    assert "to join its maps: " in capsys.readouterr().out
