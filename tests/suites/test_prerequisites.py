"""What a suite's experiments read: an existing directory that matches is used and named, a missing one made once."""

import json
import logging
import os
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import qa_rows, write_rows

import dataset_cartography
import run_experiments
from datamap.analysis import cluster_arguments
from datamap.core.artifacts import load_meta, stage
from datamap.core.errors import UserError
from datamap.core.files import read_json, write_json
from datamap.core.splits import load_split
from datamap.suites.planning import plan_suite
from datamap.suites.prerequisites import places_of
from datamap.training import embeddings as extraction
from datamap.training import prerequisites
from datamap.training.arguments import parse_args, task_of_run
from datamap.training.prerequisites import PrerequisiteFailed, is_made, make

SIZES = {"max_length": 96, "doc_stride": 16}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, caplog):
    """An empty working directory, in which git is not asked for the commit of every directory that is written."""
    caplog.set_level(logging.INFO)  # whether or not a script has set it up in this process before
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datamap.core.artifacts._git_state", lambda: (None, None))
    return tmp_path


@pytest.fixture
def planned(here, qa_dir):
    """The prerequisites of a suite with one experiment, and its runs."""

    def plan(needs=None, base=None, args=None, argv=(), name="mine", experiments=None):
        base = {"model": "tiny", "no_cuda": True, "do_train": True, "do_eval": True, "dataset": str(qa_dir),
                **SIZES, **(base or {})}
        experiments = experiments or [{"name": "a", "args": args or {}}]
        table = {"name": name, "base": base, "experiments": experiments,
                 "prerequisites": {"cartography": {}} if needs is None else needs}
        file = here / f"{name}.json"
        file.write_text(json.dumps(table))
        suite, needed, runs = plan_suite(run_experiments.parse_args(["--suite", str(file), *argv]))
        return needed, runs

    return plan


def finished(directory, qa_dir, *flags, status="finished", split="train"):
    """A directory of training dynamics as run.py leaves it, with the arguments that these flags come to."""
    if "./model" in flags:
        Path("model").mkdir(exist_ok=True)
    args = parse_args(["--do_train", "--enable_cartography", "--model", "tiny", "--dataset", str(qa_dir), "--no_cuda",
                       "--max_length", "96", "--doc_stride", "16", *flags])
    data = load_split(str(qa_dir), split, task_of_run(args))
    rows = [{"id": key, "confidence": place / 24, "variability": place % 5 / 10, "aum": 0.0, "never_learned": False}
            for place, key in enumerate(data.ids)]
    with stage(directory, args, owns=("cartography_metrics.*",), datasets=[data.identity()]) as path:
        pd.DataFrame(rows).to_csv(path / "cartography_metrics.csv", index=False)
    meta = load_meta(directory)
    assert meta is not None
    write_json(directory / "run_meta.json", {**meta, "status": status})
    return directory


# --- a map that is there -----------------------------------------------------------------------------------------


def test_a_matching_map_is_used(planned, here, qa_dir):
    finished(here / "cartography_output", qa_dir)
    [found], [run] = planned(args={"use_soft_weighting": True})
    assert found.name == "cartography" and found.command == []
    assert found.directory.resolve() == here / "cartography_output"
    assert Path(parse_args(run.argv).cartography_output_dir).resolve() == here / "cartography_output"


def test_a_matching_map_is_named_before_anything_starts(planned, here, qa_dir, caplog, capsys, monkeypatch):
    finished(here / "cartography_output", qa_dir)
    planned()
    monkeypatch.setattr(run_experiments, "run_all", lambda todo, **settings: [])
    monkeypatch.setattr(run_experiments, "analyze", lambda directories, margin: None)
    run_experiments.main(["--suite", "mine.json"])
    assert "cartography: cartography_output\n" in caplog.text


def test_a_matching_map_needs_no_command_of_its_own(planned, here, qa_dir, capsys):
    finished(here / "cartography_output", qa_dir)
    planned()
    run_experiments.main(["--suite", "mine.json", "--dry_run"])
    [command] = capsys.readouterr().out.splitlines()
    assert "--seed=42" in command and "enable_cartography" not in command


@pytest.mark.parametrize("seed", ["1", "42"])
def test_a_map_of_any_seed_and_of_as_many_epochs_as_it_took_matches(planned, here, qa_dir, seed):
    finished(here / "cartography_output", qa_dir, "--seed", seed, "--num_train_epochs", "7")
    assert planned()[0][0].command == []


def test_a_map_that_was_cut_elsewhere_is_the_same_recording(planned, here, qa_dir):
    finished(here / "recorded", qa_dir)
    for source, target in (("recorded", "once"), ("once", "cartography_output")):
        dataset_cartography.main(["--cartography_dir", source, "--method", "percentile", "--output_dir", target])
    assert planned(argv=["--cartography_output_dir", "cartography_output"])[0][0].command == []
    with pytest.raises(UserError, match="no finished map"):
        planned(argv=["--cartography_output_dir", "cartography_output", "--ablations", "q_only"])


def test_a_map_of_the_same_first_rows_matches(planned, here, qa_dir):
    finished(here / "cartography_output", qa_dir, "--max_train_samples", "12")
    assert planned(argv=["--max_train_samples", "12"])[0][0].command == []


def is_made_anew(needed):
    return bool(needed[0].command) and needed[0].directory.parts[:2] == ("experiments", "shared")


def test_a_map_of_another_model_is_not_used_and_that_is_said(planned, here, qa_dir, caplog):
    finished(here / "cartography_output", qa_dir, "--model", "./model")
    assert is_made_anew(planned()[0])
    assert "cartography_output is no map" in caplog.text and "not used" in caplog.text and "tiny" in caplog.text


def test_a_map_of_another_dataset_is_not_used_and_that_is_said(planned, here, qa_dir, caplog):
    (here / "data").mkdir()
    for split in ("train", "validation"):
        write_rows(here / f"data/{split}.jsonl", qa_rows(8, seed=9, prefix=split))
    finished(here / "cartography_output", here / "data")
    assert is_made_anew(planned()[0])
    assert "cartography_output is no map" in caplog.text and str(qa_dir) in caplog.text


def test_a_map_of_another_split_is_not_used(planned, here, qa_dir, caplog):
    finished(here / "cartography_output", qa_dir, split="validation")
    assert is_made_anew(planned()[0])
    assert "not used" in caplog.text


def test_a_map_of_the_dataset_before_it_changed_is_not_used(planned, here, qa_dir):
    shutil.copytree(qa_dir, here / "data")
    finished(here / "cartography_output", here / "data")
    assert planned(base={"dataset": str(here / "data")})[0][0].command == []
    with (here / "data/train.jsonl").open("a") as file:
        file.write(json.dumps(qa_rows(1, seed=8, prefix="late")[0]) + "\n")
    assert is_made_anew(planned(base={"dataset": str(here / "data")})[0])


@pytest.mark.parametrize("ours", [[], ["--max_train_samples", "13"], ["--max_train_samples", "99"]])
def test_a_map_of_fewer_rows_is_not_used(planned, here, qa_dir, caplog, ours):
    finished(here / "cartography_output", qa_dir, "--max_train_samples", "12")
    assert is_made_anew(planned(argv=ours)[0])
    assert "not used" in caplog.text


@pytest.mark.parametrize("its", [[], ["--max_train_samples", "12"], ["--max_train_samples", "99"]])
def test_a_map_of_more_rows_covers_the_first(planned, here, qa_dir, its):
    finished(here / "cartography_output", qa_dir, *its)
    assert planned(argv=["--max_train_samples", "11"])[0][0].command == []


def test_a_map_of_a_filtered_run_is_not_used(planned, here, qa_dir, caplog):
    finished(here / "first", qa_dir)
    block = {"metrics_path": "first", "metric": "confidence", "min": 0.5}
    (here / "filters.json").write_text(json.dumps({"metric": block}))
    finished(here / "cartography_output", qa_dir, "--filter_config", "filters.json")
    assert is_made_anew(planned()[0])
    assert "not used" in caplog.text


def test_a_map_of_some_ids_is_not_used(planned, here, qa_dir, caplog):
    (here / "ids.csv").write_text("id\ntrain-001\n")
    finished(here / "cartography_output", qa_dir, "--train_ids", "ids.csv")
    assert is_made_anew(planned()[0])
    assert "not used" in caplog.text


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_map_that_is_not_whole_is_not_used(planned, here, qa_dir, status):
    finished(here / "cartography_output", qa_dir, status=status)
    assert is_made_anew(planned()[0])


def test_a_directory_without_run_meta_is_not_used(planned, here):
    (here / "cartography_output").mkdir()
    assert is_made_anew(planned()[0])


@pytest.mark.parametrize("status", ["running", "failed", None])
def test_why_a_map_that_is_not_whole_is_not_used_is_said(planned, here, qa_dir, caplog, status):
    finished(here / "cartography_output", qa_dir, status=status or "finished")
    if status is None:
        (here / "cartography_output/run_meta.json").unlink()
    planned()
    assert "cartography_output" in caplog.text and "not used" in caplog.text


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--max_train_samples", "12"], "max_train_samples"),
        (["--train_ids", "ids.csv"], "train_ids"),
        (["--model", "./model"], "./model"),
    ],
)
def test_the_reason_why_a_map_is_not_used_is_said(planned, here, qa_dir, caplog, flags, word):
    (here / "ids.csv").write_text("id\ntrain-001\n")
    finished(here / "cartography_output", qa_dir, *flags)
    planned()
    assert word in caplog.text


@pytest.mark.parametrize(
    "flags",
    [
        ["--ablations", "q_only"],
        ["--hidden_size", "64"],
        ["--confidence_type", "mean"],
    ],
)
def test_a_map_of_another_kind_of_training_is_not_used(planned, here, qa_dir, flags):
    finished(here / "cartography_output", qa_dir, *flags)
    assert is_made_anew(planned()[0])


def test_a_map_that_the_base_names_is_used(planned, here, qa_dir):
    finished(here / "mine", qa_dir)
    [found], _ = planned(base={"cartography_output_dir": "mine"})
    assert (found.directory, found.command) == (Path("mine"), [])


def test_a_map_that_the_base_names_and_that_does_not_match_is_refused(planned, refused, here, qa_dir):
    finished(here / "mine", qa_dir, "--model", "./model")
    with pytest.raises(UserError, match="mine is no finished map of .*; leave --cartography_output_dir out"):
        planned(base={"cartography_output_dir": "mine"})
    with pytest.raises(UserError, match="nowhere is no finished map"):
        planned(base={"cartography_output_dir": "nowhere"})
    assert "mine.json, prerequisites: nowhere" in refused(run_experiments.main, "--suite", "mine.json")


def test_a_map_on_the_command_line_is_used(planned, here, qa_dir):
    finished(here / "mine", qa_dir)
    assert planned(argv=["--cartography_output_dir", "mine"])[0][0].directory == Path("mine")


# --- a map that is to be made ------------------------------------------------------------------------------------


def test_a_suite_without_prerequisites_needs_nothing(planned):
    assert planned(needs={})[0] == []


def test_the_command_makes_a_map_of_what_the_baseline_trains_on(planned, qa_dir):
    needs = {"cartography": {"num_train_epochs": 5}}
    argv = ["--max_train_samples", "12", "--seeds", "7"]
    [made], [run] = planned(needs, args={"use_soft_weighting": True}, argv=argv)
    assert made.command[0] == "run.py"
    args = parse_args(made.command[1:])
    assert args.enable_cartography and args.do_train and args.model == "tiny" and args.dataset == str(qa_dir)
    assert (args.num_train_epochs, args.max_train_samples, args.max_length, args.seed) == (5, 12, 96, 42)
    assert Path(args.cartography_output_dir) == made.directory and args.filters == {}
    assert Path(args.output_dir).parent == made.directory.parent
    experiment = parse_args(run.argv)
    assert experiment.cartography_output_dir == args.cartography_output_dir and experiment.seed == 7
    assert "num_train_epochs" not in experiment


def test_the_printed_command_is_the_one_that_runs(planned, here, capsys):
    [made], _ = planned(argv=["--experiments_dir", "my experiments"])
    run_experiments.main(["--suite", "mine.json", "--dry_run", "--experiments_dir", "my experiments"])
    first, second = capsys.readouterr().out.splitlines()
    assert shlex.split(first) == ["python", *made.command] and "--enable_cartography" not in second
    assert not (here / "my experiments").exists()


def test_two_suites_with_the_same_base_share_it(planned):
    one = planned(name="one", args={"use_soft_weighting": True})[0]
    other = planned(name="other", args={"filter_categories": ["easy"]})[0]
    assert (one[0].directory, one[0].command) == (other[0].directory, other[0].command)


@pytest.mark.parametrize(
    "change",
    [
        {"base": {"learning_rate": 1e-3}},
        {"base": {"max_length": 64}},
        {"base": {"num_layers": 1}},
        {"argv": ["--max_train_samples", "12"]},
        {"needs": {"cartography": {"num_train_epochs": 9}}},
    ],
)
def test_another_base_has_a_map_of_its_own(planned, change):
    assert planned()[0][0].directory != planned(**change)[0][0].directory


def test_the_seeds_of_a_suite_share_it(planned):
    needed, runs = planned(args={"use_soft_weighting": True}, argv=["--seeds", "1", "2", "3"])
    assert len(needed) == 1
    assert {parse_args(run.argv).cartography_output_dir for run in runs} == {str(needed[0].directory)}


def test_another_dataset_under_the_same_name_has_a_map_of_its_own(planned, here, qa_dir):
    shutil.copytree(qa_dir, here / "data")
    before = planned(base={"dataset": "data"})[0][0].directory
    with (here / "data/train.jsonl").open("a") as file:
        file.write(json.dumps(qa_rows(1, seed=8, prefix="late")[0]) + "\n")
    assert planned(base={"dataset": "data"})[0][0].directory != before


def test_another_model_under_the_same_name_has_a_map_of_its_own(planned, here):
    directories = []
    for seed in (1, 2):
        with stage(here / "model", {"seed": seed}, owns=()):
            pass
        directories.append(planned(base={"model": "model"})[0][0].directory)
    assert directories[0] != directories[1]


def test_wrong_flags_of_a_map_are_found_before_anything_starts(planned):
    with pytest.raises(UserError, match="mine.json, prerequisites: .*--num_train_epochs"):
        planned({"cartography": {"num_train_epochs": "many"}})


@pytest.mark.parametrize("base", [{"use_soft_weighting": True}, {"filter_categories": ["easy"]}])
def test_what_reads_the_map_is_left_out_of_the_run_that_makes_it(planned, base):
    try:
        [made], _ = planned(base=base)
    except UserError:
        pytest.fail("refused")

    args = parse_args(made.command[1:])
    assert not args.use_soft_weighting and not args.filters


# --- embeddings and clusters -------------------------------------------------------------------------------------

CLUSTERS = {"embeddings": {"batch_size": 8}, "clusters": {"min_cluster_size": 5}}


@pytest.fixture
def commands(planned):
    """The parsed commands that make embeddings and clusters, whose one experiment leaves clusters out."""

    def plan(needs=None, **keys):
        keys = {"args": {"filter_clusters": True}, **keys}
        needed, runs = planned({"cartography": {}, **CLUSTERS} if needs is None else needs, **keys)
        assert [each.name for each in needed] == ["cartography", "embeddings", "clusters"]
        scripts = [(each.command or ["?"])[0] for each in needed[1:]]
        assert scripts == ["extract_embeddings.py", "cluster_analysis.py"]
        embeddings, clusters = [each.command[1:] for each in needed[1:]]
        return SimpleNamespace(
            needed=needed, runs=runs, embeddings=extraction.build_parser().parse_args(embeddings),
            clusters=cluster_arguments.build_parser().parse_args(clusters),
        )

    return plan


def test_the_commands_carry_model_sizes_and_places(commands):
    found = commands(argv=["--max_train_samples", "12"])
    cartography = parse_args(found.needed[0].command[1:])
    assert found.embeddings.model_path == cartography.output_dir
    assert (found.embeddings.max_length, found.embeddings.doc_stride, found.embeddings.max_samples) == (96, 16, 12)
    assert (found.embeddings.batch_size, found.embeddings.no_cuda, found.embeddings.split) == (8, True, "train")
    assert Path(found.embeddings.output_dir) == found.needed[1].directory
    assert found.clusters.embedding_dir == found.embeddings.output_dir
    assert Path(found.clusters.output_dir) == found.needed[2].directory
    assert found.clusters.min_cluster_size == 5


def test_the_experiments_read_the_clusters_that_are_made(commands):
    found = commands()
    arguments = parse_args(found.runs[0].argv)
    assert arguments.cluster_assignments_path == str(found.needed[2].directory)
    assert arguments.filters["cluster"]["cluster_path"] == str(found.needed[2].directory)


def test_clusters_bring_the_embeddings_and_the_model_that_they_need(commands):
    found = commands({"clusters": {}})
    assert found.clusters.min_cluster_size == cluster_arguments.build_parser().get_default("min_cluster_size")


def test_all_rows_are_embedded_where_all_are_trained_on(commands):
    assert commands().embeddings.max_samples is None


def test_classification_has_no_doc_stride(commands, reviews):
    found = commands(base={"task": "classification", "dataset": str(reviews), "doc_stride": None})
    assert found.embeddings.doc_stride is None and found.embeddings.max_length == 96


def test_a_found_map_lends_its_model_to_the_embeddings(commands, here, qa_dir):
    finished(here / "cartography_output", qa_dir, "--output_dir", "initial_model")
    with pytest.raises(UserError, match="clusters need the model of cartography_output, and initial_model holds none"):
        commands()
    write_json(finished(here / "initial_model", qa_dir) / "config.json", {})
    found = commands()
    assert found.needed[0].command == []
    assert found.embeddings.model_path == "initial_model"


@pytest.mark.parametrize("epochs", ["1", None])
@pytest.mark.parametrize("named", [True, False])
def test_a_map_of_other_epochs_than_the_suite_asks_for_is_used_and_that_is_said(planned, here, qa_dir, caplog, epochs,
                                                                               named):
    finished(here / "cartography_output", qa_dir, *(["--num_train_epochs", epochs] if epochs else []))
    argv = ["--cartography_output_dir", "cartography_output"] if named else []
    [found], _ = planned({"cartography": {"num_train_epochs": 5}}, args={"use_soft_weighting": True}, argv=argv)
    assert found.command == []
    assert f"its num_train_epochs is {epochs or 3}, where the suite asks for 5" in caplog.text
    caplog.clear()
    [found], _ = planned({"cartography": {}}, args={"use_soft_weighting": True})
    assert found.command == [] and "num_train_epochs" not in caplog.text, "the suite leaves the epochs open"


def test_a_map_made_with_other_flags_is_used_where_it_is_named(planned, here, qa_dir, caplog):
    finished(here / "cartography_output", qa_dir)
    needs = {"cartography": {"learning_rate": 0.5}}
    [made], _ = planned(needs, args={"use_soft_weighting": True})
    assert made.command and "learning_rate is None, where the suite asks for 0.5): not used" in caplog.text
    argv = ["--cartography_output_dir", "cartography_output"]
    [found], _ = planned(needs, args={"use_soft_weighting": True}, argv=argv)
    assert found.command == [] and "used all the same: its learning_rate is None" in caplog.text


def test_the_map_of_the_quick_start_serves_the_suite_sample(here, qa_dir, caplog):
    finished(here / "cartography_output", qa_dir)
    write_json(finished(here / "trainer_output", qa_dir) / "config.json", {})
    flags = ["--dataset", str(qa_dir), "--model", "tiny", "--max_length", "96", "--doc_stride", "16", "--no_cuda"]
    _, needed, _ = plan_suite(run_experiments.parse_args(["--suite", "sample", *flags]))
    assert (needed[0].name, needed[0].command) == ("cartography", []) and needed[1].command
    assert "its num_train_epochs is 3, where the suite asks for 5" in caplog.text


def test_how_a_suite_evaluates_does_not_change_its_map(planned, here):
    [one], _ = planned({"cartography": {}}, base={"eval_split": ["validation"]}, args={"use_soft_weighting": True})
    [other], _ = planned({"cartography": {}}, base={"max_eval_samples": 5}, args={"use_soft_weighting": True})
    assert one.directory == other.directory


def test_finished_clusters_of_the_same_data_are_used(planned, here, qa_dir):
    finished(here / "cluster_output", qa_dir)
    lines = [f"train-{row:03d},{row % 2},1.0" for row in range(24)]
    assigned = here / "cluster_output" / "cluster_assignments.csv"
    assigned.write_text("\n".join(["id,cluster,cluster_probability", *lines[:-1], ""]))
    needed, _ = planned({"cartography": {}, **CLUSTERS}, args={"filter_clusters": True})
    assert needed[2].command, "one example is missing"
    assigned.write_text("\n".join(["id,cluster,cluster_probability", *lines, ""]))
    needed, runs = planned({"cartography": {}, **CLUSTERS}, args={"filter_clusters": True})
    assert [(each.name, not each.command) for each in needed] == [("cartography", False), ("clusters", True)]
    assert Path(parse_args(runs[0].argv).cluster_assignments_path) == Path("cluster_output")


@pytest.mark.parametrize("status", ["running", "failed"])
def test_clusters_that_are_not_whole_are_not_used(commands, here, qa_dir, status):
    finished(here / "cluster_output", qa_dir, status=status)
    assert commands().needed[2].directory != Path("cluster_output")


@pytest.mark.parametrize("there", [True, False])
def test_a_baseline_may_stand_beside_an_experiment_that_reads_clusters(planned, here, qa_dir, there):
    if there:
        finished(here / "cluster_output", qa_dir)
    experiments = [{"name": "baseline"}, {"name": "x", "args": {"filter_clusters": True}, "control": False}]
    _, runs = planned({"cartography": {}, **CLUSTERS}, experiments=experiments)
    assert len(runs) == 2


@pytest.mark.parametrize(
    "needs", [{"clusters": {"min_cluster_size": 1}}, {"embeddings": {"pooling": "none"}}, {"clusters": {"metric": 3}}]
)
def test_wrong_flags_of_clusters_are_found_before_anything_starts(planned, needs):
    with pytest.raises(UserError, match="prerequisites"):
        planned(needs, args={"filter_clusters": True})


@pytest.mark.parametrize("change", [{"clusters": {"min_cluster_size": 9}}, {"embeddings": {"pooling": "mean"}}])
def test_clusters_made_with_other_flags_lie_elsewhere(commands, change):
    one, other = commands(CLUSTERS), commands({**CLUSTERS, **change})
    assert one.needed[0].directory == other.needed[0].directory  # one map will do
    assert one.needed[2].directory != other.needed[2].directory


def test_clusters_of_a_map_that_was_made_again_are_others(commands, here, qa_dir):
    found = []
    write_json(finished(here / "trainer_output", qa_dir) / "config.json", {})
    for seed in ("1", "2"):
        finished(here / "cartography_output", qa_dir, "--seed", seed)
        found.append(commands())
    assert found[0].needed[2].identity != found[1].needed[2].identity
    assert found[0].needed[2].directory != found[1].needed[2].directory


def test_clusters_of_no_known_data_are_not_used(commands, here):
    with stage(here / "cluster_output", {}, owns=()):
        pass
    assert commands().needed[2].command


def test_why_clusters_are_not_used_is_said(commands, here, qa_dir, caplog):
    finished(here / "cluster_output", qa_dir, status="failed")
    commands()
    assert "cluster_output" in caplog.text and "not used" in caplog.text


def test_where_things_are(planned, here):
    needed, _ = planned({"cartography": {}, **CLUSTERS}, args={"filter_clusters": True})
    assert places_of(needed) == [
        f"--cartography_output_dir={needed[0].directory}", f"--cluster_assignments_path={needed[2].directory}"
    ]


# --- making ------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """Instead of running commands: each leaves a finished directory, or fails."""
    state = SimpleNamespace(made=[], fails=False)

    def pretend(command, stdout, stderr, pass_fds, env):
        assert command[0] == sys.executable
        state.made.append([Path(command[1]).name, *command[2:]])
        state.gpus = env.get("CUDA_VISIBLE_DEVICES")
        stdout.write("ValueError: no luck\n" if state.fails else "well\n")
        stdout.flush()
        flag = "--cartography_output_dir=" if "run.py" in command[1] else "--output_dir="
        place = next(word for word in command if word.startswith(flag)).partition("=")[2]
        if not state.fails:
            with stage(place, {}, owns=()):
                pass
        return SimpleNamespace(returncode=int(state.fails))

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # nor nvidia-smi
    monkeypatch.setattr("subprocess.run", pretend)
    return state


def test_what_is_missing_is_made_once(planned, calls):
    needed, _ = planned({"cartography": {}, **CLUSTERS}, args={"filter_clusters": True})
    assert not any(is_made(each) for each in needed)
    make(needed)
    assert [each[0] for each in calls.made] == ["run.py", "extract_embeddings.py", "cluster_analysis.py"]
    assert all(is_made(each) for each in needed)
    make(needed)
    assert len(calls.made) == 3


@pytest.mark.parametrize(("visible", "seen"), [("0,1", "0"), ("GPU-7,GPU-9", "GPU-7"), ("", ""), ("3", "3")])
def test_of_several_gpus_a_prerequisite_sees_one(planned, calls, monkeypatch, visible, seen):
    """On several the library splits batches over threads, which a recording refuses."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    make(planned()[0])
    assert calls.gpus == seen


def test_the_gpus_are_those_that_nvidia_smi_lists(here, monkeypatch):
    smi = here / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    smi.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(here), prepend=os.pathsep)
    assert prerequisites.visible_gpus() == ["0", "1"]


def test_a_second_suite_finds_it_made(planned, calls):
    make(planned(name="one")[0])
    make(planned(name="other")[0])
    assert len(calls.made) == 1


def test_a_map_that_was_not_finished_is_begun_anew(planned, calls):
    [made], _ = planned()
    make([made])
    assert calls.made[0][-1] == "--overwrite"
    assert parse_args(calls.made[0][1:]).overwrite


def test_a_map_that_was_interrupted_goes_on_from_its_checkpoint(planned, calls, monkeypatch):
    monkeypatch.setattr(prerequisites, "has_whole_checkpoint", lambda directory, with_dynamics: True)
    make(planned()[0])
    assert calls.made[0][-1] == "--resume_from_checkpoint"


def test_a_map_that_was_made_is_not_left_for_one_that_came_later(planned, calls, here, qa_dir):
    needed, [run] = planned(args={"use_soft_weighting": True})
    make(needed)
    finished(here / "cartography_output", qa_dir)
    later, [same] = planned(args={"use_soft_weighting": True})
    assert later[0].directory == needed[0].directory
    assert same.identity == run.identity


def test_a_found_map_is_left_alone(planned, calls, here, qa_dir):
    finished(here / "cartography_output", qa_dir)
    before = read_json(here / "cartography_output/run_meta.json")
    make(planned()[0])
    assert calls.made == [] and read_json(here / "cartography_output/run_meta.json") == before


def test_one_that_fails_says_so_and_stops_what_needs_it(planned, calls):
    calls.fails = True
    needed, _ = planned({"cartography": {}, **CLUSTERS}, args={"filter_clusters": True})
    with pytest.raises(PrerequisiteFailed, match="cartography could not be made .*log.txt.*\n.*no luck"):
        make(needed)
    assert len(calls.made) == 1


def test_a_suite_whose_prerequisite_fails_ends_with_1_and_runs_nothing(planned, calls, here, capsys):
    calls.fails = True
    _, [run] = planned()
    with pytest.raises(SystemExit) as stopped:
        run_experiments.main(["--suite", "mine.json"])
    assert stopped.value.code == 1
    assert "no luck" in capsys.readouterr().err
    assert not run.directory.exists()
