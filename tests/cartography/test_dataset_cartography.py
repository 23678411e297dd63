"""Metrics against formulas done the slow way, files there and back, categories, the data map, and what is refused."""

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
from matplotlib.figure import Figure

from datamap.cartography import maps
from datamap.cartography.categories import (
    CATEGORIES,
    categorize_examples,
    category_thresholds,
    get_examples_by_category,
)
from datamap.cartography.dynamics import gold_statistics, read_dynamics, read_logged_logits, write_dynamics
from datamap.cartography.maps import plot_data_map, write_cartography
from datamap.cartography.metrics import METRIC_COLUMNS, compute_metrics, load_cartography_metrics
from datamap.core.errors import UserError
from datamap.core.files import write_csv

AWKWARD_IDS = ["001", "12e5", "nan", "NA", "None", "1.0", "-1", "true", "a,b", 'say "x"', "naïve/ü", " lead", "0x1F"]
MEANS = ("loss", "aum", "el2n", "start_confidence", "end_confidence")
COLUMNS = ("confidence", "correct", *MEANS)


def strict(text):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return json.loads(text, parse_constant=refuse)


def make_epochs(count=6, epochs=4, seed=0, ids=None, columns=COLUMNS):
    rng = np.random.default_rng(seed)
    ids = ids or [f"ex-{number}" for number in range(count)]
    for epoch in range(1, epochs + 1):
        values = {name: rng.random(len(ids)) for name in columns}
        right = {"correct": values["correct"] < 0.5} if "correct" in values else {}
        yield {"epoch": epoch, "id": list(ids), **values, **right}


def write_epochs(directory, epochs):
    for epoch in epochs:
        columns = {name: column for name, column in epoch.items() if name not in ("epoch", "id")}
        write_dynamics(directory, epoch["epoch"], epoch["id"], columns)


def metrics_frame(confidence, variability, ids=None):
    index = pd.Index(ids or [f"ex-{number}" for number in range(len(confidence))], name="id", dtype="str")
    return pd.DataFrame({"confidence": confidence, "variability": variability}, index=index, dtype=float)


def slow_metrics(epochs):
    """The formulas, one example at a time, from the list of its (p, correct, other columns)."""
    seen: dict[str, list[dict]] = {}
    for epoch in epochs:
        for row, example in enumerate(epoch["id"]):
            record = {name: column[row] for name, column in epoch.items() if name not in ("epoch", "id")}
            seen.setdefault(example, []).append(record)
    expected = {}
    for example, records in seen.items():
        p = [float(record["confidence"]) for record in records]
        right = [bool(record["correct"]) for record in records]
        mean = math.fsum(p) / len(p)
        expected[example] = {
            "confidence": mean,
            "variability": math.sqrt(math.fsum((value - mean) ** 2 for value in p) / len(p)),
            "correctness": sum(right) / len(right),
            "num_epochs": len(p),
            "forgetting_events": sum(a and not b for a, b in zip(right, right[1:], strict=False)),
            "never_learned": not any(right),
            "aleatoric": math.fsum(value * (1 - value) for value in p) / len(p),
        }
        for name in MEANS:
            if name in records[0]:
                expected[example][name] = math.fsum(float(record[name]) for record in records) / len(p)
    return expected


# --- metrics ---


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


# --- dynamics files ---


def test_dynamics_there_and_back(tmp_path):
    written = list(make_epochs(ids=AWKWARD_IDS, epochs=11))  # 10 and 11 sort after 9
    write_epochs(tmp_path, written)
    read = list(read_dynamics(tmp_path))
    assert [epoch["epoch"] for epoch in read] == list(range(1, 12))
    for before, after in zip(written, read, strict=True):
        assert after["id"] == AWKWARD_IDS
        assert set(after) == set(before)
        assert after["correct"].dtype == bool and (after["correct"] == before["correct"]).all()
        for name in (name for name in COLUMNS if name != "correct"):
            assert np.abs(after[name] - before[name]).max() <= 5.001e-7  # six decimals
    content = strict((tmp_path / "training_dynamics_epoch_3.json").read_text(encoding="utf-8"))
    assert list(content)[:2] == ["epoch", "id"] and content["epoch"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"training_dynamics_epoch_{number}.json" for number in range(1, 12)
    )


def test_dynamics_take_at_most_120_bytes(tmp_path):
    rng = np.random.default_rng(0)
    ids = [rng.bytes(12).hex() for _ in range(2000)]
    columns = {name: rng.random(2000).astype(np.float32) for name in COLUMNS if name != "correct"}
    columns["aum"] = rng.normal(0, 20, 2000).astype(np.float32)
    write_dynamics(tmp_path, 1, ids, {**columns, "correct": np.zeros(2000, dtype=bool)})
    assert (tmp_path / "training_dynamics_epoch_1.json").stat().st_size <= 120 * 2000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_diverged_training_is_named_and_nothing_written(tmp_path, bad):
    with pytest.raises(UserError, match="training diverged: loss of 1 examples .'b'. .* epoch 2"):
        write_dynamics(tmp_path, 2, ["a", "b"], {"confidence": np.array([0.1, 0.2]), "loss": np.array([1.0, bad])})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_epoch_is_refused(tmp_path):
    write_epochs(tmp_path, make_epochs(epochs=3))
    (tmp_path / "training_dynamics_epoch_2.json").unlink()
    with pytest.raises(UserError, match="N = 1, 3 only"):
        list(read_dynamics(tmp_path))


def test_a_missing_first_epoch_is_refused(tmp_path):
    write_epochs(tmp_path, make_epochs(epochs=3))
    (tmp_path / "training_dynamics_epoch_1.json").unlink()
    with pytest.raises(UserError, match="N = 2, 3 only"):
        list(read_dynamics(tmp_path))


def test_a_truncated_epoch_is_refused(tmp_path):
    write_epochs(tmp_path, make_epochs(epochs=2))
    file = tmp_path / "training_dynamics_epoch_2.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(UserError, match=r"epoch_2\.json, line 1: malformed JSON"):
        compute_metrics(read_dynamics(tmp_path))


@pytest.mark.parametrize(
    "content, message",
    [
        ({"epoch": 1, "id": ["a"], "confidence": [0.5]}, "expected columns id, confidence, correct"),
        ([1, 2], "expected columns id, confidence, correct"),
        ({"epoch": 1, "id": ["a", "b"], "confidence": [0.5], "correct": [True, True]}, "different lengths"),
        ({"epoch": 1, "id": ["a"], "confidence": [math.nan], "correct": [True]}, "confidence of 'a'"),
        ({"epoch": 1, "id": ["a"], "confidence": [None], "correct": [True]}, "confidence of 'a'"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, content, message):
    (tmp_path / "training_dynamics_epoch_1.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        compute_metrics(read_dynamics(tmp_path))


def test_no_dynamics_at_all(tmp_path):
    with pytest.raises(UserError, match="no such directory; run.py --do_train --enable_cartography"):
        list(read_dynamics(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"holds no training_dynamics_epoch_N\.json"):
        list(read_dynamics(tmp_path))


# --- dynamics logged by others ---


def slow_gold(logits, gold):
    exponentials = [math.exp(value) for value in logits]
    p = [value / math.fsum(exponentials) for value in exponentials]
    others = [value for place, value in enumerate(logits) if place != gold]
    one_hot = [float(place == gold) for place in range(len(logits))]
    return {
        "confidence": p[gold],
        "correct": logits[gold] > max(others),
        "loss": -math.log(p[gold]),
        "aum": logits[gold] - max(others),
        "el2n": math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(p, one_hot, strict=True))),
    }


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("compressed", [False, True])
def test_logged_logits_equal_the_slow_formulas(tmp_path, classes, compressed):
    rng = np.random.default_rng(classes)
    logits = rng.normal(0, 4, size=(3, 20, classes))
    gold = rng.integers(classes, size=20)
    for epoch in range(3):
        records = [{"guid": row, f"logits_epoch_{epoch}": logits[epoch, row].tolist(), "gold": int(gold[row])}
                   for row in rng.permutation(20).tolist()]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        if compressed:
            (tmp_path / f"dynamics_epoch_{epoch}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        else:
            (tmp_path / f"dynamics_epoch_{epoch}.jsonl").write_text(lines)
    epochs = list(read_logged_logits(tmp_path))
    assert [logged["epoch"] for logged in epochs] == [1, 2, 3]
    for number, logged in enumerate(epochs):
        assert sorted(logged["id"], key=int) == [str(row) for row in range(20)]
        for place, example in enumerate(logged["id"]):
            for name, value in slow_gold(logits[number, int(example)].tolist(), int(gold[int(example)])).items():
                assert logged[name][place] == pytest.approx(value, abs=1e-12), name
    metrics = compute_metrics(epochs)
    expected = slow_metrics(epochs)
    for example in metrics.index:
        assert metrics.loc[example, "confidence"] == pytest.approx(expected[example]["confidence"])
    assert "start_confidence" not in metrics


def test_gold_statistics_of_large_logits_are_finite():
    values = gold_statistics(np.array([[1000.0, -1000.0], [-1000.0, 1000.0]]), np.array([0, 0]))
    assert values["confidence"].tolist() == [1, 0]
    assert values["loss"].tolist() == [0, 2000]
    assert values["el2n"] == pytest.approx([0, math.sqrt(2)])


@pytest.mark.parametrize("gold, classes", [(2, 2), (-1, 3), (0, 1)])
def test_gold_outside_the_classes_is_refused(gold, classes):
    with pytest.raises(UserError, match=f"gold labels run from {gold} to {gold}, logits have {classes} classes"):
        gold_statistics(np.zeros((1, classes)), np.array([gold]))


@pytest.mark.parametrize(
    "second, message",
    [
        ('{"guid": "b", "gold": 0}', "line 2: no 'logits_epoch_0'"),
        ('{"guid": "b", "logits_epoch_0": [1, 2]', "line 2: malformed JSON"),
        ('{"guid": "b", "logits_epoch_0": [1, 2], "gold": "yes"}', "guid 'b': expected a list of numbers in logits_epoch_0"),
        ("[1]", "line 2: expected a JSON object"),
        ('{"guid": "b", "logits_epoch_0": [1], "gold": 0}', "rows of different lengths"),
        ('{"guid": "b", "logits_epoch_0": 1, "gold": 0}', "logits_epoch_0"),
        ('{"guid": "b", "logits_epoch_0": ["x", "y"], "gold": 0}', "logits_epoch_0"),
        ('{"guid": "a", "logits_epoch_0": [1, 2], "gold": 0}', "a guid occurs more than once"),
        ('{"guid": "b", "logits_epoch_0": [1, NaN], "gold": 0}', "confidence of 'b'"),
    ],
)
def test_malformed_logs_are_refused(tmp_path, second, message):
    first = '{"guid": "a", "logits_epoch_0": [0.5, 2.0], "gold": 1}\n'
    (tmp_path / "dynamics_epoch_0.jsonl").write_text(first + second + "\n")
    with pytest.raises(UserError, match=message):
        compute_metrics(read_logged_logits(tmp_path))


def test_logs_that_are_empty_or_missing_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no dynamics_epoch_N\.jsonl"):
        list(read_logged_logits(tmp_path))
    (tmp_path / "dynamics_epoch_0.jsonl").write_text("")
    with pytest.raises(UserError, match="is empty"):
        list(read_logged_logits(tmp_path))


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


# --- categories ---


def test_categories_at_their_thresholds():
    frame = metrics_frame([0.5, 0.5, 0.4999, 0.9, 0.1], [0.2, 0.2001, 0.2, 0.0, 0.5])
    assert categorize_examples(frame, 0.5, 0.2, method="fixed")["category"].tolist() == [
        "easy",  # both equal to their thresholds
        "ambiguous",  # above the variability threshold, whatever the confidence
        "hard",
        "easy",
        "ambiguous",
    ]
    assert "category" not in frame  # a copy


def test_median_is_taken_of_the_whole_file():
    frame = metrics_frame([0.1, 0.2, 0.6, 0.8, 0.9], [0.3, 0.1, 0.2, 0.1, 0.4])
    assert category_thresholds(frame) == (0.6, 0.2)
    assert categorize_examples(frame)["category"].tolist() == ["ambiguous", "hard", "easy", "easy", "ambiguous"]
    assert category_thresholds(frame, confidence_threshold=0.7) == (0.7, 0.2)
    assert category_thresholds(frame, variability_threshold=0.0) == (0.6, 0.0)


def test_percentiles_are_those_of_sorted_values():
    rng = np.random.default_rng(0)
    confidence, variability = rng.random(101), rng.random(101) / 2
    frame = metrics_frame(confidence, variability)
    assert category_thresholds(frame, method="percentile") == (sorted(confidence)[50], sorted(variability)[67])
    assert category_thresholds(frame, 10, 0, method="percentile") == (sorted(confidence)[10], min(variability))
    counts = categorize_examples(frame, 0, 90, method="percentile")["category"].value_counts()
    assert counts.to_dict() == {"easy": 91, "ambiguous": 10}


def test_no_variability_means_nobody_is_ambiguous():
    frame = metrics_frame([0.1, 0.9, 0.5], [0.0, 0.0, 0.0])
    assert categorize_examples(frame)["category"].tolist() == ["hard", "easy", "easy"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.5)), min_size=1, max_size=30))
def test_categories_follow_their_definition(points):
    frame = metrics_frame(*(list(side) for side in zip(*points, strict=True)))
    for method, first, second in (("median", None, None), ("percentile", 30, 80), ("fixed", 0.5, 0.25)):
        confidence_cut, variability_cut = category_thresholds(frame, first, second, method)
        got = categorize_examples(frame, first, second, method)["category"]
        for (confidence, variability), category in zip(points, got, strict=True):
            easy = "easy" if confidence >= confidence_cut else "hard"
            assert category == ("ambiguous" if variability > variability_cut else easy)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"method": "mean"}, "unknown threshold method 'mean'; there is median, percentile, fixed"),
        ({"method": "fixed"}, "needs both"),
        ({"method": "fixed", "confidence_threshold": 0.5}, "needs both"),
        ({"method": "fixed", "confidence_threshold": 1.5, "variability_threshold": 0.1}, r"0\.\.1, found 1\.5"),
        ({"variability_threshold": 0.6}, r"variability threshold lies in 0\.\.0\.5, found 0\.6"),
        ({"variability_threshold": math.nan}, "variability threshold"),
        ({"method": "percentile", "confidence_threshold": 101}, r"confidence threshold lies in 0\.\.100, found 101"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        categorize_examples(metrics_frame([0.5], [0.1]), **arguments)


def test_examples_of_a_category_come_in_order():
    frame = metrics_frame(
        [0.90, 0.70, 0.90, 0.20, 0.10, 0.10, 0.60, 0.40],
        [0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.40, 0.40],
        ["z", "e", "a", "h2", "h9", "h1", "m1", "m2"],
    )
    frame = categorize_examples(frame, 0.5, 0.2, method="fixed")
    assert get_examples_by_category(frame, "easy") == ["a", "z", "e"]  # highest first, ties by id
    assert get_examples_by_category(frame, "hard") == ["h1", "h9", "h2"]  # lowest first
    assert get_examples_by_category(frame, "ambiguous") == ["m2", "m1"]
    assert get_examples_by_category(frame, "hard", n=2) == ["h1", "h9"]
    assert get_examples_by_category(frame, "hard", n=0) == []
    assert get_examples_by_category(frame, "hard", n=100) == ["h1", "h9", "h2"]
    with pytest.raises(UserError, match="unknown category 'medium'; there is easy, ambiguous, hard"):
        get_examples_by_category(frame, "medium")


def test_examples_by_category_need_no_category_column():
    frame = metrics_frame([0.9, 0.1, 0.8, 0.2], [0.0, 0.0, 0.3, 0.3])
    for category in CATEGORIES:
        assert get_examples_by_category(frame, category) == get_examples_by_category(
            categorize_examples(frame), category
        )
    assert get_examples_by_category(frame, "hard") == ["ex-1"]


# --- the data map ---


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_the_data_map_says_what_it_shows(tmp_path, drawn):
    frame = metrics_frame([0.9, 0.9, 0.1, 0.5], [0.1, 0.1, 0.1, 0.4]).assign(num_epochs=5)
    plot_data_map(frame, tmp_path / "map.png", "stories", thresholds=(0.5, 0.2))
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]
    axes, bars = drawn[0].axes
    assert "variability" in axes.get_xlabel() and "confidence" in axes.get_ylabel()
    assert bars.get_ylabel() == "examples"
    assert axes.get_title() == "stories: n = 4, 5 epochs"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(CATEGORIES)
    points = {collection.get_label(): len(collection.get_offsets()) for collection in axes.collections}
    assert points == {"easy": 2, "ambiguous": 1, "hard": 1}
    assert [text.get_text() for text in bars.texts] == ["2\n50%", "1\n25%", "1\n25%"]
    colors = {tuple(collection.get_facecolor()[0]) for collection in axes.collections}
    assert len(colors) == 3


def test_a_large_data_map_draws_a_sample_and_counts_all(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(maps, "MAX_DRAWN_POINTS", 50)
    rng = np.random.default_rng(0)
    frame = metrics_frame(rng.random(1200), rng.random(1200) / 2)
    for name in ("one.png", "two.png"):
        plot_data_map(frame, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()  # seeded
    axes, bars = drawn[0].axes
    assert sum(len(collection.get_offsets()) for collection in axes.collections) == 50
    assert axes.get_title() == "n = 1,200 (random 50 drawn)"
    assert sum(int(text.get_text().split("\n")[0]) for text in bars.texts) == 1200


@pytest.mark.parametrize("confidence, variability", [([0.5], [0.0]), ([0.0, 1.0], [0.5, 0.5])])
def test_the_data_map_of_few_or_extreme_examples(tmp_path, drawn, confidence, variability):
    plot_data_map(metrics_frame(confidence, variability), tmp_path / "map.png")
    axes = drawn[0].axes[0]
    assert axes.get_xlim()[1] > max(variability) and axes.get_ylim()[1] > max(confidence)


def test_reading_leaves_the_directory_as_it_was(map_dir, tmp_path):
    shutil.copytree(map_dir, tmp_path / "before")
    load_cartography_metrics(map_dir)
    for path in (tmp_path / "before").iterdir():
        assert (map_dir / path.name).read_bytes() == path.read_bytes()


def test_a_truncated_compressed_log_is_refused(tmp_path):
    import gzip

    line = '{"guid": "a", "logits_epoch_0": [0.5, 2.0], "gold": 1}\n'
    whole = gzip.compress(line.encode() * 50)
    (tmp_path / "dynamics_epoch_0.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole gzip file"):
        list(read_logged_logits(tmp_path))
