"""Whether the model of a map has learned anything: told, and said wherever the categories are shown."""

import json
import math

import numpy as np
import pytest
from made_dynamics import write_epochs
from matplotlib.figure import Figure

import analyze_cartography
import dataset_cartography
from datamap.cartography.categories import counted, with_categories
from datamap.cartography.learning import MEANS_NOTHING, Learning, guessing
from datamap.cartography.maps import load_map, map_learning, means_nothing, write_cartography
from datamap.cartography.metrics import compute_metrics
from datamap.core.files import read_json


def epochs_of(right, loss, confidence=None):
    """Epochs with these shares of right answers among 200 examples and these mean losses."""
    rng = np.random.default_rng(0)
    for number, (share, level) in enumerate(zip(right, loss, strict=True), 1):
        correct = np.arange(200) < round(200 * share)
        p = rng.random(200) / 50 if confidence is None else confidence[number - 1]
        yield {"epoch": number, "id": [f"e{row}" for row in range(200)], "confidence": p,
               "correct": correct, "loss": level + rng.normal(0, 0.1, 200)}


def told(guess, right, loss):
    learning = Learning(guess)
    metrics = compute_metrics(learning.follow(epochs_of(right, loss)))
    return learning.record(metrics)


def test_guessing_is_the_best_constant_answer():
    labels = np.array([0] * 70 + [1] * 20 + [2] * 10)
    entropy = -sum(share * math.log(share) for share in (0.7, 0.2, 0.1))
    assert guessing(labels) == {"accuracy": 0.7, "loss": pytest.approx(entropy)}
    spans = np.array([[0, 0], [0, 0], [0, 3], [5, 7]])  # starts 3 : 1, ends 2 : 1 : 1
    starts, ends = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), 0.5 * math.log(2) + 0.5 * math.log(4)
    assert guessing(spans) == {"accuracy": 0.5, "loss": pytest.approx((starts + ends) / 2)}
    assert guessing(np.zeros((3, 1), int)) == {"accuracy": 1.0, "loss": 0.0}


HALVES = {"accuracy": 0.5, "loss": math.log(2)}


@pytest.mark.parametrize(("guess", "right", "loss", "learned"), [
    (HALVES, [0.5, 0.52, 0.49], [0.71, 0.69, 0.70], False),
    (HALVES, [0.5, 0.55, 0.56], [0.71, 0.69, 0.68], False),  # two standard errors are 0.071
    (HALVES, [0.5, 0.6, 0.58], [0.71, 0.69, 0.68], True),
    (HALVES, [0.5, 0.5, 0.5], [0.7, 0.6, 0.5], True),  # surer, not righter
    (HALVES, [0.5, 0.9, 0.5], [0.7, 0.3, 0.7], True),  # and forgotten again
    ({"accuracy": 0.95, "loss": 0.1985}, [0.95, 0.95, 0.95], [0.3, 0.2, 0.2], False),  # always the majority
    ({"accuracy": 0.02, "loss": 4.6}, [0, 0.005, 0.02], [4.8, 4.7, 4.6], False),  # spans, as in a map at the origin
    (None, [0, 0, 0], [4.8, 4.7, 4.6], False),
    (None, [0, 0, 0], [4.8, 3.7, 2.6], None),
    (None, [0, 0.1, 0], [4.8, 4.7, 4.6], None),
])
def test_learning_is_what_beats_guessing(guess, right, loss, learned):
    record = told(guess, right, loss)
    assert record["has_learned"] is learned
    assert (record["warning"] is not None) == (learned is False)
    assert record["accuracy"] == pytest.approx(right) and record["loss"] == pytest.approx(loss, abs=0.03)
    assert record["ever_right"] == round(200 * max(right)) and record["examples"] == 200
    json.dumps(record, allow_nan=False)


def captions(monkeypatch):
    """(title, caption) of what is drawn."""
    found = []
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        found.append((figure._suptitle.get_text(), figure._supxlabel.get_text().replace("\n", " ")))
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return found


def test_a_map_of_nothing_learned_says_so_everywhere(tmp_path, monkeypatch, caplog, capsys):
    drawn = captions(monkeypatch)
    map_dir = tmp_path / "map"
    map_dir.mkdir()
    guess = {"accuracy": 0.02, "loss": 4.6}
    epochs = list(epochs_of([0, 0.01, 0.015], [4.8, 4.7, 4.6]))
    write_epochs(map_dir, epochs)
    learning = Learning(guess)
    metrics = compute_metrics(learning.follow(epochs))
    write_cartography(map_dir, metrics, "stories", learning=learning.record(metrics))
    warning = read_json(map_dir / "thresholds.json")["learning"]["warning"]
    assert warning.startswith(f"{MEANS_NOTHING} (3 of 200 examples were ever right; accuracy in the best epoch 1.5%, "
                              "always the commonest answer 2.0%; loss 4.")
    assert warning in caplog.text
    ((title, caption),) = drawn
    assert title.endswith("the categories mean nothing yet") and warning in caption
    for reads in (lambda: load_map(map_dir), lambda: load_map(map_dir / "cartography_metrics.csv")):
        caplog.clear()
        reads()
        assert warning in caplog.text
    assert MEANS_NOTHING in means_nothing(map_dir, metrics)

    drawn.clear()
    analyze_cartography.main(["--cartography_dir", str(map_dir), "--output_dir", str(tmp_path / "analysis")])
    assert len(drawn) == 3 and all(MEANS_NOTHING in caption for _, caption in drawn)
    assert MEANS_NOTHING in capsys.readouterr().out
    other = tmp_path / "other"
    dataset_cartography.main(["--cartography_dir", str(map_dir), "--method", "percentile", "--output_dir", str(other)])
    assert read_json(other / "thresholds.json")["learning"]["warning"] == warning
    for file in map_dir.glob("training_dynamics_*"):  # metrics alone
        file.unlink()
    dataset_cartography.main(["--cartography_dir", str(map_dir), "--output_dir", str(tmp_path / "third")])
    assert (map_learning(tmp_path / "third", metrics) or {})["guessing"] == guess


def test_a_map_that_learned_prints_its_cuts_with_its_counts(tmp_path, monkeypatch, caplog, capsys):
    """All of it is learned well: half is "hard" or "ambiguous" all the same, from a confidence of 0.9 down."""
    drawn = captions(monkeypatch)
    map_dir = tmp_path / "map"
    map_dir.mkdir()
    rng = np.random.default_rng(1)
    levels = 0.85 + rng.random(200) / 10
    epochs = list(epochs_of([0.9, 1, 1], [0.3, 0.2, 0.1], [levels + 0.02 * rng.random(200) for _ in range(3)]))
    write_epochs(map_dir, epochs)
    learning = Learning(HALVES)
    metrics = compute_metrics(learning.follow(epochs))
    write_cartography(map_dir, metrics, "stories", learning=learning.record(metrics))
    assert "mean nothing" not in caplog.text and "mean nothing" not in str(drawn)
    assert means_nothing(map_dir, metrics) == ""
    frame, cuts = load_map(map_dir)
    counts = {name: int((with_categories(metrics, cuts)["category"] == name).sum()) for name in ("easy", "hard")}
    said = (f"{counts['easy']} easy (confidence from {cuts[0]:.3g}), 100 ambiguous (variability above {cuts[1]:.3g}), "
            f"{counts['hard']} hard (confidence below {cuts[0]:.3g})")
    assert counted(frame, cuts) == said and cuts[0] > 0.9 and counts["hard"] > 20
    analyze_cartography.main(["--cartography_dir", str(map_dir), "--output_dir", str(tmp_path / "analysis")])
    assert said in capsys.readouterr().out
    dataset_cartography.main(["--cartography_dir", str(map_dir), "--output_dir", str(tmp_path / "other")])
    assert said in capsys.readouterr().out


def test_a_log_of_another_trainer_is_judged_by_its_gold_classes(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for name, learned in (("nothing", False), ("something", True)):
        (tmp_path / name).mkdir()
        for epoch in range(3):
            rows = []
            for row in range(120):
                gold = row % 3
                logits = rng.normal(0, 0.1, 3)
                logits[gold] += 2.0 * learned
                rows.append(json.dumps({"guid": row, f"logits_epoch_{epoch}": logits.tolist(), "gold": gold}) + "\n")
            (tmp_path / name / f"dynamics_epoch_{epoch}.jsonl").write_text("".join(rows))
        caplog.clear()
        dataset_cartography.main(["--training_dynamics", str(tmp_path / name), "--output_dir",
                                  str(tmp_path / f"{name}_map")])
        found = read_json(tmp_path / f"{name}_map" / "thresholds.json")["learning"]
        assert found["has_learned"] is learned and (MEANS_NOTHING in caplog.text) is not learned
        assert found["guessing"] == {"accuracy": pytest.approx(1 / 3), "loss": pytest.approx(math.log(3))}
        assert "gold" not in read_json(tmp_path / f"{name}_map" / "training_dynamics_epoch_1.json")
