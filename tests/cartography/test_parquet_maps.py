"""Data maps in Parquet: block by block the same numbers as in memory, in every stage the same as of JSON and CSV."""

import argparse
import json
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import qa_rows
from made_dynamics import AWKWARD_IDS, make_epochs, slow_metrics

import analyze_cartography
import analyze_dataset
import dataset_cartography
import dataset_filters
import run
from datamap.analysis.filter_config import apply_filters
from datamap.cartography import dynamics, learning
from datamap.cartography.learning import Learning
from datamap.cartography.maps import CARTOGRAPHY_FILES, load_map, write_cartography
from datamap.cartography.metrics import compute_metrics, load_cartography_metrics
from datamap.core import parquet
from datamap.core.artifacts import stage
from datamap.core.errors import UserError
from datamap.core.files import read_json, read_table, write_csv, write_json, write_jsonl
from datamap.core.splits import load_split
from datamap.detection.known import known_of
from datamap.report import notebook
from datamap.report.page import gather
from datamap.tasks.registry import get_task
from datamap.training.data import known_variability

N = 40
FORMS = ("json", "parquet")


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Blocks of 7 examples, so that a map has several and the last is not whole."""
    with pytest.MonkeyPatch.context() as changed:
        for module in (parquet, learning):
            changed.setattr(module, "ROWS_A_GROUP", 7)
        yield


@pytest.fixture
def drawn():
    """For the tests that look at pictures; in the others these are empty files, for speed."""


@pytest.fixture(autouse=True)
def empty_pictures(request, monkeypatch):
    if "drawn" not in request.fixturenames:
        for module in ("cartography.maps", "analysis.map_summary", "analysis.integrated", "cartography.compare",
                       "cartography.settling", "cartography.joint_files", "tasks.slices"):
            monkeypatch.setattr(f"datamap.{module}.save_figure", lambda figure, path, *rest: Path(path).touch())
        monkeypatch.setattr("datamap.analysis.map_summary.plot_distributions", lambda path, *rest: Path(path).touch())


def record(directory, split, form, seed=0, **changes):
    """A map as run.py leaves it."""
    with patch("datamap.cartography.maps.plot_data_map"), stage(
        directory, {"do_train": True, "output_dir": "model", "seed": seed}, owns=CARTOGRAPHY_FILES, datasets=[split]
    ) as path:
        for epoch in make_epochs(ids=split.ids, epochs=5, seed=seed):
            columns = {name: values for name, values in epoch.items() if name not in ("epoch", "id")}
            dynamics.write_dynamics(path, epoch["epoch"], epoch["id"], columns, form)
        known = Learning({"accuracy": 0.2, "loss": 0.9})
        metrics = compute_metrics(known.follow(dynamics.read_dynamics(path)))
        write_cartography(path, metrics, "stories", learning=known.record(metrics), artifact_format=form)
    return path


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "stories.jsonl"
    write_jsonl(file, qa_rows(N))
    return load_split(str(file), "train", get_task("qa"))


@pytest.fixture(scope="module")
def maps(tmp_path_factory, split):
    home = tmp_path_factory.mktemp("maps")
    return {form: record(home / form, split, form) for form in FORMS}


def main(script, output, *flags):
    script.main(["--output_dir", str(output), *map(str, flags)])
    return output


def refused(capsys, script, output, *flags):
    with pytest.raises(SystemExit) as stop:
        main(script, output, *flags)
    assert stop.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    return line


def same_tables(one, other):
    pd.testing.assert_frame_equal(one, other, check_exact=True)


# --- the files -------------------------------------------------------------------------------------------------------


def test_an_epoch_is_the_same_in_either_form(tmp_path):
    epoch = next(make_epochs(ids=[*AWKWARD_IDS, "x", "y"], epochs=1))
    epoch["loss"][:3] = 1.23456749e-6, 1e9 + 1 / 3, -1e-9
    read: list[dict] = []
    for form in FORMS:
        columns = {name: values for name, values in epoch.items() if name not in ("epoch", "id")}
        (tmp_path / form).mkdir()
        dynamics.write_dynamics(tmp_path / form, 1, epoch["id"], columns, form)
        read += dynamics.read_dynamics(tmp_path / form)
    assert [path.name for path in (tmp_path / "parquet").iterdir()] == ["training_dynamics_epoch_1.parquet"]
    one, other = read
    assert list(one) == list(other) and one["id"] == other["id"] == epoch["id"]
    for name in one.keys() - {"epoch", "id"}:
        assert one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes(), name
    assert one["correct"].dtype == bool and one["loss"][0] == 1e-6 and str(other["loss"][2]) == "0.0"


def test_metrics_are_the_same_in_either_form(maps):
    assert not {path.suffix for path in maps["parquet"].iterdir()} & {".csv"}
    assert [path.name for path in maps["parquet"].glob("cartography_metrics.*")] == ["cartography_metrics.parquet"]
    one, other = (load_cartography_metrics(maps[form]) for form in FORMS)
    same_tables(one, other)
    assert other["never_learned"].dtype == bool and other["num_epochs"].dtype == np.int64
    same_tables(other, load_cartography_metrics(maps["parquet"] / "cartography_metrics.parquet"))
    assert read_json(maps["json"] / "thresholds.json") == read_json(maps["parquet"] / "thresholds.json")
    (frame, cuts), (their_frame, their_cuts) = (load_map(maps[form]) for form in FORMS)
    assert cuts == their_cuts
    same_tables(frame, their_frame)


# --- block by block --------------------------------------------------------------------------------------------------

CUTS = [(), ("--method", "percentile", "--confidence_threshold", "31", "--variability_threshold", "77"),
        ("--method", "fixed", "--confidence_threshold", "0.5", "--variability_threshold", "0.25")]


def without_metrics(directory, target):
    target.mkdir(parents=True)
    for file in directory.glob("training_dynamics*"):
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("from_metrics", [True, False])
def test_a_map_made_block_by_block_is_that_made_in_memory(maps, tmp_path, cuts, from_metrics, monkeypatch):
    if not from_metrics:  # as a trainer leaves it that was stopped
        maps = {form: without_metrics(maps[form], tmp_path / f"{form} alone" / "stories") for form in FORMS}
    ours = main(dataset_cartography, tmp_path / "json", "--cartography_dir", maps["json"], *cuts)
    monkeypatch.setattr(dataset_cartography, "read_metrics", None)  # nothing is read in memory
    monkeypatch.setattr(dataset_cartography, "read_epochs", None)
    theirs = main(dataset_cartography, tmp_path / "parquet", "--cartography_dir", maps["parquet"], *cuts,
                  "--artifact_format", "parquet")
    one, other = (load_cartography_metrics(path) for path in (ours, theirs))
    same_tables(one, other)
    assert read_json(ours / "thresholds.json") == read_json(theirs / "thresholds.json")
    assert (ours / "categories_by_epoch.csv").read_bytes() == (theirs / "categories_by_epoch.csv").read_bytes()
    assert {path.name for path in theirs.iterdir() if path.suffix == ".parquet"} == {
        "cartography_metrics.parquet", *(f"training_dynamics_epoch_{epoch}.parquet" for epoch in range(1, 6))}
    groups = pq.ParquetFile(theirs / "cartography_metrics.parquet").metadata
    assert [groups.row_group(place).num_rows for place in range(groups.num_row_groups)] == [7] * 5 + [5]


def test_the_picture_of_a_map_made_block_by_block_is_the_same(maps, tmp_path, drawn):
    made = [main(dataset_cartography, tmp_path / form, "--cartography_dir", maps[form], "--artifact_format", form)
            for form in FORMS]
    for name in ("cartography_map.png", "categories_by_epoch.png"):
        one, other = ((path / name).read_bytes() for path in made)
        assert one == other and len(one) > 10_000


def test_thresholds_and_metrics_of_blocks_are_exact(maps, tmp_path):
    alone = without_metrics(maps["parquet"], tmp_path / "alone")
    made = main(dataset_cartography, tmp_path / "map", "--cartography_dir", alone, "--artifact_format", "parquet")
    expected = slow_metrics(list(dynamics.read_dynamics(alone)))
    metrics = load_cartography_metrics(made)
    assert metrics.index.tolist() == list(expected)
    for example, row in metrics.iterrows():
        for name, value in expected[example].items():
            assert row[name] == pytest.approx(value, abs=1e-12), (example, name)
    ordered = [sorted(metrics[name].tolist()) for name in ("confidence", "variability")]
    cuts = read_json(made / "thresholds.json")
    assert [cuts[name] for name in ("confidence", "variability")] == [
        (values[N // 2 - 1] + values[N // 2]) / 2 for values in ordered]


@pytest.mark.parametrize("case", ["fewer", "another order", "others"])
def test_epochs_of_different_examples_are_joined_in_memory(split, tmp_path, case):
    epochs = list(make_epochs(ids=split.ids, epochs=3))
    keep = {"fewer": range(N - 3), "another order": [1, 0, *range(2, N)], "others": range(N)}[case]
    last = {name: value if name == "epoch" else np.asarray(value)[list(keep)] for name, value in epochs[2].items()}
    last["id"] = last["id"].tolist()
    if case == "others":
        last["id"][-1] = "new"
    for form in FORMS:
        (tmp_path / form).mkdir()
        for epoch in (*epochs[:2], last):
            columns = {name: values for name, values in epoch.items() if name not in ("epoch", "id")}
            dynamics.write_dynamics(tmp_path / form, epoch["epoch"], epoch["id"], columns, form)
    assert dynamics.streamed_files(tmp_path / "parquet") is None
    one, other = (load_cartography_metrics(main(dataset_cartography, tmp_path / f"{form} map", "--cartography_dir",
                                                tmp_path / form, "--artifact_format", form)) for form in FORMS)
    same_tables(one, other)
    assert len(other) == N + (case == "others") and other["num_epochs"].min() == (3 if "order" in case else
                                                                                  1 if case == "others" else 2)


@pytest.mark.parametrize("source, target", [("json", "parquet"), ("parquet", "json"), ("json", None)])
def test_a_map_is_written_in_the_form_that_is_asked_for(maps, tmp_path, source, target, monkeypatch):
    if target is None:  # by its size
        monkeypatch.setattr(parquet, "PARQUET_ABOVE", N - 1)
    flags = [] if target is None else ["--artifact_format", target]
    made = main(dataset_cartography, tmp_path / "map", "--cartography_dir", maps[source], *flags)
    same_tables(load_cartography_metrics(maps["json"]), load_cartography_metrics(made))
    suffixes = {path.suffix for path in made.glob("training_dynamics*")} | {
        path.suffix for path in made.glob("cartography_metrics*")}
    assert suffixes == ({".json", ".csv"} if target == "json" else {".parquet"})
    for one, other in zip(dynamics.read_dynamics(maps["json"]), dynamics.read_dynamics(made), strict=True):
        assert one["id"] == other["id"] and one["loss"].tobytes() == other["loss"].tobytes()


# --- files made elsewhere --------------------------------------------------------------------------------------------


def test_dynamics_and_metrics_of_somebody_else_are_read(tmp_path):
    rng, ids = np.random.default_rng(0), list(range(100, 130))
    for epoch in (1, 2, 3):
        pq.write_table(pa.table({
            "correct": pa.array(rng.integers(0, 2, 30), pa.int8()), "id": pa.array(ids, pa.int64()),
            "epoch": pa.array([epoch] * 30, pa.int32()), "confidence": pa.array(rng.random(30), pa.float32()),
        }), tmp_path / f"training_dynamics_epoch_{epoch}.parquet", row_group_size=11, compression="gzip")
    made = main(dataset_cartography, tmp_path / "map", "--cartography_dir", tmp_path, "--artifact_format", "parquet")
    read = list(dynamics.read_dynamics(tmp_path))
    assert read[0]["id"] == [str(each) for each in ids] and set(read[0]) == {"epoch", "id", "confidence", "correct"}
    same_tables(compute_metrics(read), load_cartography_metrics(made))
    table = pq.read_table(made / "cartography_metrics.parquet")
    theirs = table.set_column(0, "id", pa.array(ids)).append_column("mine", pa.array(["x"] * 30))
    pq.write_table(theirs, tmp_path / "theirs.parquet")
    frame, _ = load_map(tmp_path / "theirs.parquet")
    assert frame.index.tolist() == read[0]["id"] and frame["mine"].tolist() == ["x"] * 30


HOSTILE = {
    "a hole": ({"confidence": pa.array([0.5, None, 0.5])}, "confidence of 'b' is None; expected a number"),
    "text": ({"confidence": pa.array(["0.5", "high", "0.5"])}, "confidence of 'a' is '0.5'; expected a number"),
    "half right": ({"correct": pa.array([0, 2, 1])}, "correct of 'b' is 2; expected true or false"),
    "unknown": ({"correct": pa.array([True, None, False])}, "correct of 'b' is None; expected true or false"),
    "above 1": ({"confidence": pa.array([0.5, 1.5, 0.5])}, "confidence of 'b' is not in 0..1"),
    "an id twice": ({"id": pa.array(["a", "b", "a"])}, "1 ids occur more than once ('a')"),
    "no id": ({"id": pa.array(["a", None, "b"])}, "row 2: no id"),
    "another epoch": ({"epoch": pa.array([2, 2, 2])}, "says that it is of epoch 2, its name says 1"),
    "nested": ({"loss": pa.array([[1.0], [2.0], [3.0]])}, "loss of 'a' is"),
    "a column less": ({"correct": None}, "has no column 'correct'; it has 'id', 'confidence'"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("form", FORMS)  # of what is written: block by block, or in memory
def test_dynamics_that_cannot_be_are_one_line(tmp_path, capsys, case, form):
    changes, message = HOSTILE[case]
    columns = {"id": pa.array(["a", "b", "c"]), "confidence": pa.array([0.5, 0.6, 0.7]),
               "correct": pa.array([True, False, True]), **changes}
    columns = {name: values for name, values in columns.items() if values is not None}
    (tmp_path / "theirs").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "theirs" / "training_dynamics_epoch_1.parquet")
    line = refused(capsys, dataset_cartography, tmp_path / "map", "--cartography_dir", tmp_path / "theirs",
                   "--artifact_format", form)
    assert message in line
    assert not any((tmp_path / "map").glob("cartography_metrics*"))  # nothing half-written


@pytest.mark.parametrize("name", ["training_dynamics_epoch_2.parquet", "cartography_metrics.parquet"])
@pytest.mark.parametrize("how", ["cut", "pages"])
def test_damage_is_one_line_in_every_stage(maps, split, tmp_path, capsys, name, how):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in maps["parquet"].iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    content = (broken / name).read_bytes()
    (broken / name).write_bytes(content[:-20] if how == "cut" else
                                content[:4] + bytes(255 - each for each in content[4:400]) + content[400:])
    (broken / "run_meta.json").unlink()
    calls = [(dataset_cartography, ("--artifact_format", form)) for form in FORMS]
    if name.startswith("cartography"):
        calls += [(analyze_cartography, ("--dataset", split.name))]
        write_json(tmp_path / "filters.json", {"category": {"categories": ["easy"], "metrics_path": str(broken)}})
    for place, (script, flags) in enumerate(calls):
        line = refused(capsys, script, tmp_path / f"out {place}", "--cartography_dir", broken, *flags)
        assert f"{name} cannot be read as Parquet (" in line and line.endswith("is the file whole?")
    if name.startswith("cartography"):
        line = refused(capsys, dataset_filters, tmp_path / "filtered", "--filter_config", tmp_path / "filters.json",
                       "--dataset", split.name)
        assert f"{name} cannot be read as Parquet (" in line


def altered(maps, place, change):
    """A copy of the map in Parquet, as others may leave it, whose metrics a function has changed."""
    shutil.copytree(maps["parquet"], place)
    (place / "run_meta.json").unlink()
    table = pq.read_table(place / "cartography_metrics.parquet").to_pandas()
    pq.write_table(pa.Table.from_pandas(change(table), preserve_index=False), place / "cartography_metrics.parquet")
    return place


def test_a_map_that_cannot_be_written_again_takes_the_old_one_not_away(maps, tmp_path, capsys):
    odd = altered(maps, tmp_path / "odd", lambda table: table.assign(
        confidence=[*table["confidence"][:-1], 1.5]))
    output = tmp_path / "again"
    dataset_cartography.main(["--cartography_dir", str(maps["parquet"]), "--artifact_format", "parquet",
                              "--output_dir", str(output)])
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    with pytest.raises(SystemExit) as ended:
        dataset_cartography.main(["--cartography_dir", str(odd), "--artifact_format", "parquet",
                                  "--output_dir", str(output)])
    assert ended.value.code == 2 and "confidence of 1 examples" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before


def test_columns_of_others_may_have_gaps_in_a_later_block(maps, tmp_path):
    notes = pd.array([*range(N - 3), None, None, None], dtype="Int64")
    theirs = altered(maps, tmp_path / "theirs", lambda table: table.assign(annotator=notes))
    dataset_cartography.main(["--cartography_dir", str(theirs), "--artifact_format", "parquet",
                              "--output_dir", str(tmp_path / "again")])
    again = load_map(tmp_path / "again")[0]["annotator"]
    assert again[: N - 3].tolist() == list(range(N - 3)) and again[N - 3 :].isna().all()


def test_a_file_that_became_shorter_is_refused(maps, tmp_path, capsys):
    cut = tmp_path / "cut"
    cut.mkdir()
    for file in maps["parquet"].iterdir():
        content = file.read_bytes()
        (cut / file.name).write_bytes(content[:-1] if file.name == "cartography_metrics.parquet" else content)
    with pytest.raises(UserError, match="cartography_metrics.parquet is truncated: "):
        load_cartography_metrics(cut)


def test_a_directory_with_both_forms_is_answered_and_a_stage_removes_its_own(maps, split, tmp_path, capsys):
    both = record(tmp_path / "both", split, "json")
    for file in maps["parquet"].glob("*.parquet"):
        (both / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="holds training dynamics in two forms .*epoch_1.json, .*epoch_1.parquet"):
        list(dynamics.read_dynamics(both))
    with pytest.raises(UserError, match="holds cartography_metrics.csv and cartography_metrics.parquet, and which "):
        load_cartography_metrics(both)
    line = refused(capsys, dataset_cartography, tmp_path / "out", "--cartography_dir", both)
    assert "holds cartography_metrics.csv and cartography_metrics.parquet" in line
    for form in (*FORMS, "json"):
        made = main(dataset_cartography, tmp_path / "again", "--cartography_dir", maps["json"],
                    "--artifact_format", form)
        assert len(list(made.glob("training_dynamics*"))) == 5 and len(list(made.glob("cartography_metrics.*"))) == (
            2 if form == "json" else 1)


# --- the stages that read --------------------------------------------------------------------------------------------


def files_of(directory):
    """What a stage wrote, but for what says which directory it read."""
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in sorted(directory.rglob("*"))
            if path.is_file() and path.name != "run_meta.json"}


def in_either(maps, tmp_path, script, *flags):
    """A script writes the same files of the map in either form, which it reads under the same path."""
    found = []
    for form in FORMS:
        link = tmp_path / "map"
        link.unlink(missing_ok=True)
        link.symlink_to(maps[form], target_is_directory=True)
        found.append(files_of(main(script, tmp_path / f"{script.__name__} {form}", *flags)))
    assert found[0].keys() == found[1].keys() and found[0]
    assert [name for name, content in found[0].items() if content != found[1][name]] == []


@pytest.fixture
def clusters(split, tmp_path):
    rng = np.random.default_rng(0)
    with stage(tmp_path / "clusters", {}, owns=("cluster_*",), datasets=[split]) as path:
        write_csv(path / "cluster_assignments.csv", pd.DataFrame({
            "id": split.ids, "cluster": rng.integers(-1, 3, N), "dim1": rng.random(N), "dim2": rng.random(N),
            "cluster_probability": rng.random(N), "outlier_score": rng.random(N)}))
        write_json(path / "cluster_metadata.json", {"axes": ["one", "two"]})
    return path


def test_a_form_for_a_map_that_is_not_written_is_refused(maps, tmp_path, capsys):
    line = refused(capsys, analyze_cartography, tmp_path / "out", "--cartography_dir", maps["json"],
                   "--artifact_format", "parquet")
    assert line.endswith(f"--artifact_format is the form of a map that is written, and {maps['json']} is one already; "
                         "leave it out, or write the map again with dataset_cartography.py")


def test_analyze_cartography_says_the_same(maps, tmp_path):
    in_either(maps, tmp_path, analyze_cartography, "--cartography_dir", tmp_path / "map", "--slice_by", "source")


@pytest.mark.parametrize("flags", [(), ("--find_errors",)])
def test_analyze_dataset_says_the_same(maps, tmp_path, clusters, flags):
    in_either(maps, tmp_path, analyze_dataset, "--cartography_dir", tmp_path / "map", "--cluster_dir", clusters,
              *flags)


def test_the_joined_table_is_the_same_in_either_form(maps, tmp_path, clusters):
    tables = []
    for form in FORMS:
        made = main(analyze_dataset, tmp_path / form, "--cartography_dir", maps[form], "--cluster_dir", clusters,
                    "--export_unified", "--artifact_format", form)
        [file] = made.glob("unified_analysis.*")
        assert file.suffix == {"json": ".csv", "parquet": ".parquet"}[form]
        tables.append(read_table(file, ("id", "is_dataset_error")))
    same_tables(*tables)
    raw = pq.read_table(file)
    assert raw["rule4_pred_inside_gold_better"].null_count == N  # no predictions: neither False nor a number
    assert raw.schema.field("is_dataset_error").type == pa.bool_() and raw.schema.field("id").type in (
        pa.string(), pa.large_string())
    assert pd.read_parquet(file)["id"].tolist() == tables[0]["id"].tolist()  # with plain pandas
    main(analyze_dataset, tmp_path / "parquet", "--cartography_dir", maps["json"], "--cluster_dir", clusters,
         "--export_unified")
    assert [path.name for path in (tmp_path / "parquet").glob("unified_analysis.*")] == ["unified_analysis.csv"]


def test_filters_keep_the_same(maps, split):
    reports = []
    for form in FORMS:
        where = {"metrics_path": str(maps[form])}
        blocks = {"category": {"categories": ["easy", "ambiguous"], **where}, "ambiguous": {"top_fraction": 0.5},
                  "metric": {"metric": "aum", "drop_fraction": 0.1, "drop": "lowest"},
                  "confidence": {"min_confidence": 0.3}}
        kept, report = apply_filters(split, blocks, return_report=True)
        assert 0 < len(kept) < N
        reports.append(json.loads(json.dumps(report).replace(str(maps[form]), "MAP")))
    assert reports[0] == reports[1]


def test_filters_read_only_what_they_ask_for_and_tell_of_all_there_is(maps, split, monkeypatch):
    read, was = [], parquet.frame_of

    def noted(path, table, text=()):
        read.append(set(table.column_names))
        return was(path, table, text)

    monkeypatch.setattr(parquet, "frame_of", noted)
    blocks: dict = {"metric": {"metric": "aum", "min": 0.4, "metrics_path": str(maps["parquet"])}}
    assert 0 < len(apply_filters(split, blocks)) < N
    assert read == [{"id", "confidence", "variability", "correctness", "aum"}]
    blocks["metric"]["metric"] = "label_confidence"
    with pytest.raises(UserError, match="has no column 'label_confidence'; it has confidence, .*forgetting_events, "):
        apply_filters(split, blocks)


def test_filters_of_other_rows_than_the_map_join_by_id(maps, split):
    shuffled = split.data.select(np.random.default_rng(0).permutation(N)[:25])
    kept = [apply_filters(shuffled, {"category": {"categories": ["easy"], "metrics_path": str(maps[form])}})["id"][:]
            for form in FORMS]
    easy = load_map(maps["json"])[0].query("category == 'easy'").index
    assert kept[0] == kept[1] == [each for each in shuffled["id"][:] if each in easy] and kept[0]


def test_joint_maps_and_comparisons_are_the_same(split, tmp_path):
    joint = []
    for form in FORMS:
        runs = [record(tmp_path / f"{form} {seed}", split, form, seed) for seed in (1, 2)]
        joint.append(main(dataset_cartography, tmp_path / f"{form} joint", "--cartography_dir", *runs,
                          "--artifact_format", form))
        main(dataset_cartography, tmp_path / f"{form} compared", "--compare", *runs)
    one, other = map(load_cartography_metrics, joint)
    pd.testing.assert_frame_equal(one, other, check_exact=True, check_dtype=False)  # a CSV says 1 for 1.0
    for one, other in zip(*map(dynamics.read_dynamics, joint), strict=True):
        assert one["id"] == other["id"] and one["confidence"].tobytes() == other["confidence"].tobytes()
    for name in ("moved.csv", "category_moves.csv", "moved_map.png"):
        one, other = (tmp_path / f"{form} compared" / name for form in FORMS)
        assert name.endswith("png") or one.read_bytes() == other.read_bytes()


def test_the_curriculum_reads_the_same(maps, split):
    asked = {"use_label_smoothing": True, "use_soft_weighting": False}
    one, other = (known_variability(argparse.Namespace(cartography_output_dir=maps[form], **asked), split)
                  for form in FORMS)
    assert one is not None and other is not None and one.tobytes() == other.tobytes() and one.min() > 0


def test_writing_again_needs_no_more_than_a_block(maps, tmp_path, monkeypatch):
    """No reader is asked for more than ROWS_A_GROUP rows at a time, whatever the row groups of the files."""
    whole = tmp_path / "whole"
    whole.mkdir()
    for file in maps["parquet"].glob("training_dynamics*"):
        pq.write_table(pq.read_table(file), whole / file.name)  # one row group
    sizes = []
    was = dynamics._checked_frame

    def counted(path, epoch, ids, frame):
        sizes.append(len(frame))
        return was(path, epoch, ids, frame)

    monkeypatch.setattr(dynamics, "_checked_frame", counted)
    main(dataset_cartography, tmp_path / "map", "--cartography_dir", whole, "--artifact_format", "parquet")
    assert sizes == ([7] * 25 + [5] * 5) * 2  # to be checked, before the old map goes, and to be written


@pytest.mark.parametrize("script, flags, message", [
    (run, ("--do_train", "--artifact_format", "parquet"), "does nothing without --enable_cartography"),
    (analyze_dataset, ("--artifact_format", "parquet"), "--artifact_format is for --export_unified; add it"),
    (dataset_cartography, ("--compare", "a", "b", "--artifact_format", "json"), "does nothing with --compare"),
    (dataset_cartography, ("--artifact_format", "csv"), "invalid choice: 'csv'"),
])
def test_a_form_of_nothing_is_refused(script, flags, message, tmp_path, capsys):
    assert message in refused(capsys, script, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_the_page_and_the_notebook_show_the_same(maps, split):
    pages = []
    for form in FORMS:
        content = gather(known_of(split, maps[form])).content
        pages.append(json.loads(json.dumps({name: value for name, value in content.items() if name != "provenance"},
                                           default=str)))
    assert pages[0] == pages[1] and len(pages[0]["epochs"]["confidence"]) > 0
    home = maps["parquet"].parent
    with pytest.raises(UserError, match="several folders with cartography_metrics.csv .'json', 'parquet'."):
        notebook._only(home, notebook.MAP_FILE)
