"""Training dynamics in files, ours and those logged by others: there and back, and what is refused."""

import gzip
import json
import math

import numpy as np
import pytest
from made_dynamics import AWKWARD_IDS, COLUMNS, make_epochs, slow_metrics, write_epochs

from datamap.cartography.dynamics import gold_statistics, read_dynamics, read_logged_logits, write_dynamics
from datamap.cartography.metrics import compute_metrics
from datamap.core.artifacts import load_meta, stage
from datamap.core.errors import UserError
from datamap.core.files import write_json


def strict(text):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return json.loads(text, parse_constant=refuse)


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
        ('{"guid": "b", "logits_epoch_0": [1, 2], "gold": "yes"}', "guid 'b': expected a list of numbers"),
        ("[1]", "line 2: expected a JSON object"),
        ('{"guid": "b", "logits_epoch_0": [1], "gold": 0}', "rows of different lengths"),
        ('{"guid": "b", "logits_epoch_0": 1, "gold": 0}', "logits_epoch_0"),
        ('{"guid": "b", "logits_epoch_0": ["x", "y"], "gold": 0}', "logits_epoch_0"),
        ('{"guid": "a", "logits_epoch_0": [1, 2], "gold": 0}', "a guid occurs more than once"),
        ('{"guid": "b", "logits_epoch_0": [1, 2], "gold": 0.9}', "guid 'b': .* \\(gold is 0.9\\)"),
        ('{"guid": "b", "logits_epoch_0": [1, 2], "gold": "0.9"}', "guid 'b': .* \\(gold is '0.9'\\)"),
        ('{"guid": "b", "logits_epoch_0": [1, 2], "gold": true}', "\\(gold is True\\)"),
        ('{"guid": "b", "logits_epoch_0": [1, 2], "gold": Infinity}', "guid 'b'"),
        ('{"guid": "b", "logits_epoch_0": "12", "gold": 0}', "logits_epoch_0 is '12'"),
        ('{"guid": "b", "logits_epoch_0": [1, NaN], "gold": 0}', "confidence of 'b'"),
    ],
)
def test_malformed_logs_are_refused(tmp_path, second, message):
    first = '{"guid": "a", "logits_epoch_0": [0.5, 2.0], "gold": 1}\n'
    (tmp_path / "dynamics_epoch_0.jsonl").write_text(first + second + "\n")
    with pytest.raises(UserError, match=message):
        compute_metrics(read_logged_logits(tmp_path))


def test_numbers_of_a_log_may_be_text(tmp_path):
    for name, records in (
        ("text", [{"guid": "a", "logits_epoch_0": ["0.5", "-2e0"], "gold": "1"}]),
        ("numbers", [{"guid": "a", "logits_epoch_0": [0.5, -2], "gold": 1.0}]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dynamics_epoch_0.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    one, other = (next(iter(read_logged_logits(tmp_path / name))) for name in ("text", "numbers"))
    assert one["gold"].tolist() == [1] and one["confidence"][0] == pytest.approx(1 / (1 + math.exp(2.5)))
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("gold", "logits", "message"), [
    (1, [1, 2], None),
    (0, [1, 2], r"dynamics_epoch_1.jsonl: gold of 1 examples \('b'\) is another class than in an earlier epoch"),
    (1, [1, 2, 3], "logits_epoch_1 has 3 classes, the epochs before it have 2"),
])
def test_epochs_of_a_log_agree(tmp_path, gold, logits, message):
    """Another gold class for one guid: what is averaged over epochs would be of two examples."""
    (tmp_path / "dynamics_epoch_0.jsonl").write_text('{"guid": "b", "logits_epoch_0": [1, 2], "gold": 1}\n')
    record = {"guid": "b", "logits_epoch_1": logits, "gold": gold}
    (tmp_path / "dynamics_epoch_1.jsonl").write_text(json.dumps(record) + "\n")
    if message is None:
        assert len(list(read_logged_logits(tmp_path))) == 2
        return
    with pytest.raises(UserError, match=message):
        list(read_logged_logits(tmp_path))


@pytest.mark.parametrize(("change", "message"), [
    ({"confidence": ["0.9", "0.1"]}, "confidence of 7 is '0.9'; expected a number for every example"),
    ({"confidence": [0.9, None]}, "confidence of 'b' is None; expected a number"),
    ({"correct": ["True", "False"]}, "correct of 7 is 'True'; expected true or false"),
    ({"correct": [1, 0.5]}, "correct of 'b' is 0.5; expected true or false"),
    ({"loss": ["x", 1]}, "loss of 7 is 'x'; expected a number"),
    ({"epoch": 2}, "says that it is of epoch 2, its name says 1"),
])
def test_dynamics_that_are_no_numbers_are_refused(tmp_path, change, message):
    content = {"epoch": 1, "id": [7, "b"], "confidence": [0.9, 0.1], "correct": [1, 0], **change}
    (tmp_path / "training_dynamics_epoch_1.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        list(read_dynamics(tmp_path))
    (tmp_path / "training_dynamics_epoch_1.json").write_text(json.dumps({**content, **{
        "epoch": 1, "confidence": [0.9, 0.1], "correct": [1, 0], "loss": [0.1, 2]}}))
    (found,) = read_dynamics(tmp_path)
    assert found["id"] == ["7", "b"]


def test_logs_that_are_empty_or_missing_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no dynamics_epoch_N\.jsonl"):
        list(read_logged_logits(tmp_path))
    (tmp_path / "dynamics_epoch_0.jsonl").write_text("")
    with pytest.raises(UserError, match="is empty"):
        list(read_logged_logits(tmp_path))


def test_a_truncated_compressed_log_is_refused(tmp_path):
    line = '{"guid": "a", "logits_epoch_0": [0.5, 2.0], "gold": 1}\n'
    whole = gzip.compress(line.encode() * 50)
    (tmp_path / "dynamics_epoch_0.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole gzip file"):
        list(read_logged_logits(tmp_path))


def test_a_number_in_the_place_of_a_column_is_named(tmp_path):
    content = '{"epoch": 1, "id": ["a"], "confidence": 3, "correct": [1]}'
    (tmp_path / "training_dynamics_epoch_1.json").write_text(content)
    with pytest.raises(UserError, match="'confidence' is no column"):
        list(read_dynamics(tmp_path))


def test_a_recording_that_goes_on_or_has_failed_is_refused(tmp_path):
    """Unless by a stage of this process, which reads what it has written so far."""
    epochs = list(make_epochs(ids=["a", "b"], epochs=2))
    with pytest.raises(KeyboardInterrupt), stage(tmp_path, {}, owns=("training_dynamics_epoch_*.json",)) as path:
        write_epochs(path, epochs)
        assert [epoch["epoch"] for epoch in read_dynamics(path)] == [1, 2]
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="is not whole: the run that writes it failed"):
        list(read_dynamics(tmp_path))
    write_json(tmp_path / "run_meta.json", {**(load_meta(tmp_path) or {}), "status": "running"})  # what a kill leaves
    with pytest.raises(UserError, match="is not whole: the run that writes it is still running or was killed"):
        list(read_dynamics(tmp_path))
    with stage(tmp_path, {}, owns=("training_dynamics_epoch_*.json",)) as path:
        write_epochs(path, epochs)
    assert len(list(read_dynamics(tmp_path))) == 2
    file = tmp_path / "training_dynamics_epoch_2.json"
    file.write_text(file.read_text().strip()[:-1])
    with pytest.raises(UserError, match="training_dynamics_epoch_2.json is truncated"):
        list(read_dynamics(tmp_path))
