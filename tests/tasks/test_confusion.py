"""The picture of a confusion matrix: counts, percentages and order are those of the table beside it."""

import datasets
import numpy as np
import pytest
from matplotlib.colors import to_hex
from read_pictures import caption, heat_map, lying, seen, title

from datamap.core.files import read_table
from datamap.tasks.classification import ClassificationEvaluation
from datamap.tasks.evaluation import plot_confusion

NAMES = ("no", "yes", "maybe", "never said")


class Output:
    def __init__(self, predictions, label_ids):
        self.predictions, self.label_ids = predictions, label_ids


def evaluated(gold, predicted, names=NAMES) -> ClassificationEvaluation:
    rows = {"id": [str(row) for row in range(len(gold))], "text": ["x"] * len(gold), "label": gold}
    types = datasets.Features({"id": datasets.Value("string"), "text": datasets.Value("string"),
                               "label": datasets.ClassLabel(names=list(names))})
    features = datasets.Dataset.from_dict({"labels": gold, "length": [1] * len(gold)})
    evaluation = ClassificationEvaluation(datasets.Dataset.from_dict(rows, types), features, "label", ["text"])
    evaluation(Output(np.eye(len(names))[predicted], np.arange(len(gold))))  # type: ignore[arg-type]
    return evaluation


def test_the_matrix_shows_the_counts_beside_it_and_their_share_of_the_row(tmp_path, pictures):
    rng = np.random.default_rng(0)
    gold = rng.choice(3, 3000, p=(0.7, 0.2, 0.1))  # no example is labelled "never said"
    predicted = np.where(rng.random(3000) < 0.6, gold, rng.integers(0, 4, 3000))
    evaluation = evaluated(gold, predicted)
    evaluation.write(tmp_path, "_valid", "reviews [valid]")
    table = read_table(tmp_path / "confusion_matrix_valid.csv").set_index(["label", "predicted_label"])["n"]
    figure = pictures["confusion_matrix_valid.png"]
    axis, bar = figure.axes
    shares, texts, mesh = heat_map(axis)
    for row, label in enumerate(NAMES):
        for column, answer in enumerate(NAMES):
            n, whole = int(np.sum((gold == row) & (predicted == column))), int(np.sum(gold == row))
            assert table[label, answer] == n
            if not whole:  # 0 % of nothing is no number
                assert np.isnan(shares[row, column]) and texts[row, column] == ""
                continue
            assert shares[row, column] == pytest.approx(100 * n / whole)
            assert texts[row, column] == f"{n:,}\n{100 * n / whole:.0f} %"
    assert shares.sum(axis=1)[:3] == pytest.approx([100] * 3) and any("," in text for text in texts.flat)
    assert mesh.get_clim() == (0, 100) and bar.get_ylabel() == "examples of the gold label (%)"
    light, dark = (to_hex(color) for color in mesh.cmap(mesh.norm(np.array([0.0, 100.0]))))
    assert light > dark
    for names, label in (("x", "predicted label"), ("y", "gold label")):
        assert seen(axis, names) == {0.5: "no", 1.5: "yes", 2.5: "maybe", 3.5: "never said"}
        assert getattr(axis, f"get_{names}label")() == label
    accuracy = np.mean(gold == predicted)
    assert caption(figure) == f"reviews [valid], n = 3,000; accuracy {accuracy:.3f}; blank: no examples"


def test_answers_that_are_no_label_have_a_column_and_no_row(tmp_path, pictures):
    counts = np.array([[6, 1, 3], [0, 4, 36]])
    plot_confusion(tmp_path / "matrix.png", counts, ["no $", "yes"], "pairs", ["no $", "yes", "no answer"])
    figure = pictures["matrix.png"]
    shares, texts, _ = heat_map(figure.axes[0])
    assert shares.tolist() == [[60, 10, 30], [0, 10, 90]]
    assert texts.tolist() == [["6\n60 %", "1\n10 %", "3\n30 %"], ["0\n0 %", "4\n10 %", "36\n90 %"]]
    assert list(seen(figure.axes[0], "x").values()) == [r"no \$", "yes", "no answer"]
    assert list(seen(figure.axes[0], "y").values()) == [r"no \$", "yes"]
    assert caption(figure) == "pairs, n = 50; accuracy 0.200"


@pytest.mark.parametrize("count", [12, 13, 20, 21])
def test_many_classes_are_colours_without_numbers(tmp_path, pictures, count):
    counts = np.arange(count * count).reshape(count, count)
    plot_confusion(tmp_path / "matrix.png", counts, [f"class {row}" for row in range(count)], "x")
    axis = pictures["matrix.png"].axes[0]
    shares, texts, _ = heat_map(axis)
    assert shares == pytest.approx(100 * counts / counts.sum(axis=1, keepdims=True))
    assert "blank" not in caption(pictures["matrix.png"])
    assert bool(texts[0, 0]) == (count <= 12)
    assert axis.get_xticklabels()[0].get_rotation() == (90 if count > 20 else 30)
    assert len(seen(axis, "x")) == len(seen(axis, "y")) == count


def test_of_a_thousand_classes_the_most_confused_pairs_are_drawn(tmp_path, pictures):
    rng = np.random.default_rng(0)
    gold = rng.integers(1000, size=4000)
    predicted = np.where(rng.random(4000) < 0.8, gold, (gold + 1) % 1000)
    counts = np.zeros((1000, 1000), dtype=int)
    np.add.at(counts, (gold, predicted), 1)
    counts[7, 900], counts[30, 2] = 25, 21
    names = [f"complaint_about_{'delivery' if row % 2 else 'a_refund'}_number_{row}" for row in range(1000)]
    plot_confusion(tmp_path / "matrix.png", counts, names, "x")
    figure = pictures["matrix.png"]
    (axis,) = figure.axes
    bars = lying(axis)
    wrong = sorted((int(counts[row, column]) for row, column in np.argwhere(counts) if row != column), reverse=True)
    assert [width for _, _, width, _ in bars] == wrong[:30] and wrong[:2] == [25, 21]
    labels = list(seen(axis, "y").values())
    assert labels[0].split(" \u2192 ")[0].endswith("_7") and labels[0].endswith("_900")
    assert len(set(labels)) == 30, "pairs that differ have labels that differ"
    assert [text.get_text() for text in axis.texts][0] == f"{100 * 25 / counts[7].sum():.0f} %"
    assert f"the 30 of {len(wrong):,} confused pairs" in caption(figure) and "1,000 labels" in title(figure)
    assert f"({sum(wrong[:30]):,} of {sum(wrong):,} mistakes)" in caption(figure)


def test_a_thousand_classes_without_a_mistake(tmp_path, pictures):
    plot_confusion(tmp_path / "matrix.png", np.eye(1000, dtype=int), [str(row) for row in range(1000)], "x")
    assert lying(pictures["matrix.png"].axes[0]) == [] and "accuracy 1.000" in caption(pictures["matrix.png"])


def test_long_names_are_cut_and_stay_apart(tmp_path, pictures):
    names = ["complaint about the delivery", "complaint about the refund", "praise"]
    plot_confusion(tmp_path / "matrix.png", np.eye(3, dtype=int), names, "x")
    for axis in ("x", "y"):
        labels = list(seen(pictures["matrix.png"].axes[0], axis).values())
        assert labels[2] == "praise" and len(set(labels)) == 3 and max(map(len, labels)) <= 24


def test_files_that_a_person_opens_run_nothing(tmp_path, pictures):
    evaluation = evaluated(np.array([0, 1, 2]), np.array([1, 1, 0]), names=["=cmd", "@yes", "-1"])
    evaluation.write(tmp_path, "", "x")
    for name in ("misclassified.csv", "confusion_matrix.csv"):
        table = read_table(tmp_path / name)
        assert set(table["label"].astype(str)) <= {"'=cmd", "'@yes", "-1"}
    assert len(table) == 9
