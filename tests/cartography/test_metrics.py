"""Metrics against formulas done the slow way, and their files there and back."""

import gzip
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from made_dynamics import AWKWARD_IDS, MEANS, make_epochs, slow_metrics

from datamap.cartography.categories import categorize_examples
from datamap.cartography.maps import load_map, write_cartography
from datamap.cartography.metrics import METRIC_COLUMNS, compute_metrics, load_cartography_metrics
from datamap.core.errors import UserError
from datamap.core.files import write_csv


def strict(text):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return json.loads(text, parse_constant=refuse)


@st.composite
def dynamics(draw):
    """Up to six epochs of up to eight examples, some missing from some epochs, in any order."""
    ids = draw(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=8, unique=True))
    optional = draw(st.lists(st.sampled_from(MEANS), unique=True))
    probability = st.one_of(st.sampled_from([0.0, 1.0, 1e-9, 1 - 1e-9]), st.floats(0, 1))
    epochs = []
    for number in range(1, draw(st.integers(1, 6)) + 1):
        there = draw(st.permutations(draw(st.lists(st.sampled_from(ids), min_size=number == 1, unique=True))))
        columns = {"confidence": draw(st.lists(probability, min_size=len(there), max_size=len(there)))}
        columns["correct"] = draw(st.lists(st.booleans(), min_size=len(there), max_size=len(there)))
        for name in optional:
            columns[name] = draw(st.lists(st.floats(-50, 50), min_size=len(there), max_size=len(there)))
        epochs.append({"epoch": number, "id": list(there), **{k: np.array(v, dtype=bool if k == "correct" else float)
                                                             for k, v in columns.items()}})
    return epochs


@settings(deadline=None)
@given(dynamics())
def test_metrics_equal_the_formulas(epochs):
    expected = slow_metrics(epochs)
    metrics = compute_metrics(epochs)
    assert metrics.index.tolist() == list(expected)  # order of first appearance
    assert metrics.index.name == "id"
    assert set(metrics.columns) == set(next(iter(expected.values())))
    for example, values in expected.items():
        for name, value in values.items():
            assert metrics.loc[example, name] == pytest.approx(value, abs=1e-10), (example, name)
    assert metrics["variability"].between(0, 0.5 + 1e-12).all()


def test_an_example_that_skips_an_epoch_is_averaged_over_its_own():
    epochs = [
        {"epoch": 1, "id": ["a", "b"], "confidence": np.array([0.2, 1.0]), "correct": np.array([True, False])},
        {"epoch": 2, "id": ["b"], "confidence": np.array([0.5]), "correct": np.array([False])},
        {"epoch": 3, "id": ["c", "a"], "confidence": np.array([0.7, 0.4]), "correct": np.array([True, False])},
    ]
    metrics = compute_metrics(epochs)
    assert metrics.index.tolist() == ["a", "b", "c"]
    assert metrics["num_epochs"].tolist() == [2, 2, 1]
    assert metrics["confidence"].to_numpy() == pytest.approx([0.3, 0.75, 0.7])
    assert metrics["variability"].to_numpy() == pytest.approx([0.1, 0.25, 0.0])
    assert metrics["forgetting_events"].tolist() == [1, 0, 0]  # right in epoch 1, next seen wrong in epoch 3
    assert metrics["never_learned"].tolist() == [False, True, False]
    assert metrics["num_epochs"].dtype.kind == "i" and metrics["never_learned"].dtype == bool


def test_variability_survives_values_next_to_one():
    p = [1 - 1e-9, 1 - 3e-9]  # sum of squares minus square of sums would lose it
    epochs = [{"epoch": n, "id": ["a"], "confidence": np.array([v]), "correct": np.array([True])}
              for n, v in enumerate(p, 1)]
    assert compute_metrics(epochs)["variability"].iloc[0] == pytest.approx(1e-9, rel=1e-6)


@pytest.mark.parametrize("bad", [-0.01, 1.01, math.nan, math.inf])
def test_confidence_outside_its_range_is_refused(bad):
    epochs = list(make_epochs())
    epochs[2]["confidence"][4] = bad
    with pytest.raises(UserError, match=r"epoch 3: confidence of 'ex-4' is not in 0\.\.1"):
        compute_metrics(epochs)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_column_that_is_no_number_is_refused(bad):
    epochs = list(make_epochs())
    epochs[1]["loss"][2] = bad
    with pytest.raises(UserError, match="epoch 2: loss of 'ex-2'"):
        compute_metrics(epochs)


def test_an_id_twice_in_one_epoch_is_refused():
    with pytest.raises(UserError, match="'b'"):
        compute_metrics(make_epochs(ids=["a", "b", "b"]))


def test_epochs_with_different_columns_are_refused():
    first, second = make_epochs(epochs=2)
    del second["aum"]
    with pytest.raises(UserError, match="'aum'"):
        compute_metrics([first, second])


@pytest.mark.parametrize("epochs", [[], [{"epoch": 1, "id": [], "confidence": np.empty(0), "correct": np.empty(0)}]])
def test_nothing_recorded_is_refused(epochs):
    with pytest.raises(UserError, match="no training dynamics"):
        compute_metrics(epochs)


# --- metrics files ---


@pytest.fixture
def map_dir(tmp_path):
    directory = tmp_path / "map"
    directory.mkdir()
    write_cartography(directory, compute_metrics(make_epochs(ids=AWKWARD_IDS, epochs=5)), "stories")
    return directory


def test_metrics_there_and_back(map_dir):
    metrics = compute_metrics(make_epochs(ids=AWKWARD_IDS, epochs=5))
    assert {path.name for path in map_dir.iterdir()} == {
        "cartography_metrics.csv", "cartography_metrics.json", "thresholds.json", "cartography_map.png"
    }
    for path in (map_dir, map_dir / "cartography_metrics.csv", str(map_dir)):
        pd.testing.assert_frame_equal(load_cartography_metrics(path), metrics, check_exact=True)
    loaded = load_cartography_metrics(map_dir / "cartography_metrics.json")
    pd.testing.assert_frame_equal(loaded, metrics, rtol=0, atol=1e-14)
    assert loaded.index.tolist() == AWKWARD_IDS
    assert loaded["never_learned"].dtype == bool


def test_metrics_json_is_strict_records_of_the_table(map_dir):
    records = strict((map_dir / "cartography_metrics.json").read_text(encoding="utf-8"))
    assert [record["id"] for record in records] == AWKWARD_IDS
    header = (map_dir / "cartography_metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    assert list(records[0]) == header.replace('"', "").split(",")
    # label_confidence is of chains of thought alone
    assert list(records[0]) == ["id", *(name for name in METRIC_COLUMNS if name != "label_confidence")]
    assert records[0]["num_epochs"] == 5 and isinstance(records[0]["never_learned"], bool)


def test_metrics_of_plain_pandas_users(map_dir):
    frame = pd.read_csv(map_dir / "cartography_metrics.csv", dtype={"id": str}, keep_default_na=False)
    assert frame["id"].tolist() == AWKWARD_IDS
    assert frame["never_learned"].dtype == bool


def test_metrics_merge_as_users_write_it(map_dir):
    cartography_df = load_cartography_metrics(map_dir)
    eval_df = pd.DataFrame({"id": ["NA", "001", "elsewhere"], "f1": [0.0, 1.0, 0.5]})
    merged = eval_df.merge(cartography_df, left_on="id", right_index=True)
    assert merged["id"].tolist() == ["NA", "001"]
    assert merged["confidence"].tolist() == cartography_df.loc[["NA", "001"], "confidence"].tolist()


def test_json_with_ids_as_numbers_joins_on_strings(tmp_path):
    file = tmp_path / "cartography_metrics.json"
    file.write_text(json.dumps([{"id": 7, "confidence": 0.5, "variability": 0.1}]))
    assert load_cartography_metrics(file).index.tolist() == ["7"]


def edit_csv(directory, column, value, row=2):
    file = directory / "cartography_metrics.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    table.loc[row, column] = value
    table.to_csv(file, index=False)


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("confidence", "1.2", r"confidence of 1 examples .'nan'. is missing or not in 0\.\.1"),
        ("confidence", "", r"confidence of 1 examples .'nan'. is missing"),
        ("confidence", "high", r"confidence of 1 examples"),
        ("variability", "0.6", r"variability of 1 examples .'nan'. is missing or not in 0\.\.0\.5"),
        ("correctness", "-0.1", r"correctness of 1 examples .'nan'. is missing or not in 0\.\.1"),
        ("variability", "NaN", r"variability of 1 examples"),
        ("aum", "inf", r"aum of 1 examples .'nan'. is missing or no finite number"),
        ("id", "001", r"1 ids occur more than once .'001'."),
        ("id", "", r"line 4: no id"),
    ],
)
def test_values_that_cannot_be_are_refused(map_dir, column, value, message):
    edit_csv(map_dir, column, value)
    with pytest.raises(UserError, match=message):
        load_cartography_metrics(map_dir)


@pytest.mark.parametrize(
    "content, message",
    [
        ('[{"id": "a", "confidence": 0.5, "variability": 0.1}', "line 1: malformed JSON"),
        ('{"id": "a"}', "expected a list of records"),
        ("[3]", "expected a list of records"),
        ("[]", "holds no examples"),
        ('[{"id": "a", "confidence": 0.5}]', "no column 'variability'"),
        ('[{"id": "a", "confidence": NaN, "variability": 0.1}]', "confidence of 1 examples"),
        ('[{"id": null, "confidence": 0.5, "variability": 0.1}]', "no id"),
        ('[{"id": 1, "confidence": 0.5, "variability": 0.1}, {"id": "1", "confidence": 0.5, "variability": 0.1}]',
         "ids occur more than once"),
    ],
)
def test_malformed_json_metrics_are_refused(tmp_path, content, message):
    file = tmp_path / "cartography_metrics.json"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        load_cartography_metrics(file)


def test_metrics_that_are_missing_empty_or_lack_columns_are_refused(map_dir, tmp_path):
    with pytest.raises(UserError, match="no such file or directory; run.py --do_train --enable_cartography writes"):
        load_cartography_metrics(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no cartography_metrics\.csv"):
        load_cartography_metrics(tmp_path)
    file = map_dir / "cartography_metrics.csv"
    whole = file.read_text()
    file.write_text("id,confidence\na,0.5\n")
    with pytest.raises(UserError, match="no column 'variability'"):
        load_cartography_metrics(map_dir)
    file.write_text(whole.splitlines()[0] + "\n")
    with pytest.raises(UserError, match="holds no examples"):
        load_cartography_metrics(map_dir)
    file.write_text("")
    with pytest.raises(UserError, match="is empty"):
        load_cartography_metrics(map_dir)
    file.write_text(whole[: whole.rindex(",") + 1])  # cut in the last line
    with pytest.raises(UserError, match="loss of 1 examples"):
        load_cartography_metrics(map_dir)


def test_published_metrics_can_be_read(tmp_path):
    source = DATA / "data_maps" / "winogrande_roberta.jsonl.gz"
    if not source.exists():
        pytest.skip(f"public data: {source} is not there")
    with gzip.open(source, "rt") as file:
        published = pd.DataFrame([json.loads(line) for line in file])
    table = published.rename(columns={"guid": "id"}).assign(correctness=published["correctness"] / 6)
    write_csv(tmp_path / "cartography_metrics.csv", table[["id", "confidence", "variability", "correctness"]])
    metrics = categorize_examples(load_cartography_metrics(tmp_path))
    assert len(metrics) == len(published)
    assert (metrics["category"] == "ambiguous").mean() == pytest.approx(0.5, abs=0.01)


def published(path, rows):
    names = ("guid", "confidence", "variability", "correctness")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return path


def test_published_metrics_may_be_text(tmp_path):
    rows = [["a", 0.9, 0.1, 5], ["1", 0.2, 0.3, 0], ["b", 0.5, 0.2, 2]]
    texts = [[str(value) for value in row] for row in rows]
    one = load_cartography_metrics(published(tmp_path / "one.jsonl", rows))
    other = load_cartography_metrics(published(tmp_path / "other.jsonl", texts))
    pd.testing.assert_frame_equal(one, other, check_dtype=False)
    assert other["confidence"].dtype == float and one["correctness"].tolist() == [1, 0, 0.4]
    assert categorize_examples(other)["category"].tolist() == ["easy", "ambiguous", "easy"]
    records = [{"id": row[0], "confidence": row[1], "variability": row[2]} for row in texts]
    (tmp_path / "cartography_metrics.json").write_text(json.dumps(records))
    assert load_cartography_metrics(tmp_path / "cartography_metrics.json")["variability"].tolist() == [0.1, 0.3, 0.2]
    for column, value in ((1, "0,9"), (3, "half"), (3, 1.5), (3, None), (2, True)):
        wrong = [list(row) for row in rows]
        wrong[1][column] = value
        with pytest.raises(UserError, match="'1'|count of epochs"):
            load_cartography_metrics(published(tmp_path / "wrong.jsonl", wrong))


def test_a_map_of_which_nothing_was_right_is_whole(tmp_path, caplog):
    rows = [[row, 0.1 + row / 100, 0.05, 0] for row in range(8)]
    metrics = load_cartography_metrics(published(tmp_path / "early.jsonl", rows))
    assert metrics["correctness"].tolist() == [0.0] * 8 and metrics.index.tolist() == [str(row) for row in range(8)]
    assert "num_epochs" not in metrics  # nobody knows
    load_map(tmp_path / "early.jsonl")
    assert "0 of 8 examples were ever right" in caplog.text
    epochs = [{**epoch, "correct": np.zeros(6, bool)} for epoch in make_epochs()]
    write_cartography(tmp_path, compute_metrics(epochs))
    assert load_cartography_metrics(tmp_path)["correctness"].tolist() == [0.0] * 6


def test_reading_leaves_the_directory_as_it_was(map_dir, tmp_path):
    shutil.copytree(map_dir, tmp_path / "before")
    load_cartography_metrics(map_dir)
    for path in (tmp_path / "before").iterdir():
        assert (map_dir / path.name).read_bytes() == path.read_bytes()
