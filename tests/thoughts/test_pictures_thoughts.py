"""Pictures of answers, chains and fine-tunings, read back from their axes: they equal the tables beside them."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from read_pictures import caption, heat_map, legend, lines, seen, segments

from datamap.core.files import read_json, write_csv
from datamap.core.intervals import wilson_interval
from datamap.core.plots import COLORS, GREY, LIGHT_GREY
from datamap.thoughts import metrics as answers
from datamap.thoughts import statistics as chains
from datamap.thoughts.sft_results import plot_training

BLUE, RED = COLORS[0].lower(), COLORS[1].lower()


def near(found, expected):
    assert len(found) == len(expected)
    np.testing.assert_allclose(np.array(found, dtype=float), np.array(expected, dtype=float), rtol=1e-12)


# --- answers to pairs ---------------------------------------------------------------------------------------------


def records(count=100, seed=1) -> list[dict]:
    """Answers of 3 to 60 words: long ones are wrong more often, the longest hold none; some pairs have no label."""
    rng = np.random.default_rng(seed)
    made = []
    for row in range(count):
        words, true = int(rng.integers(3, 61)), None if row % 17 == 0 else int(row % 3 > 0)
        right = rng.random() < 1.2 - words / 60
        answer = None if words > 50 else int(rng.random() < 0.5) if true is None else true if right else 1 - true
        made.append({"id": f"p{row}", "output": "word " * words, "new_tokens": None, "finished": None,
                     "true_label": true, "predicted_label": answer, "method": "none" if answer is None else "strict"})
    return made


def test_answers_are_drawn_as_their_tables_have_them(tmp_path, pictures):
    made = records()
    answers.write_results(tmp_path, made, answers.metrics_of(made), "a-model on pairs")
    known = [row for row in made if row["true_label"] is not None]
    check_matrix(pictures["confusion_matrix.png"], pd.read_csv(tmp_path / "confusion_matrix.csv"), known)
    check_lengths(pictures["accuracy_by_length.png"], pd.read_csv(tmp_path / "accuracy_by_length.csv"), known,
                  read_json(tmp_path / "metrics.json")["majority_baseline"])


def check_matrix(figure, table, known):
    axis = figure.axes[0]
    shares, texts, _ = heat_map(axis)
    counted = table.set_index(["label", "predicted_label"])["n"]
    right = 0
    for label in (0, 1):
        of_label = [row["predicted_label"] for row in known if row["true_label"] == label]
        for column, answer in enumerate((0, 1, None)):
            n, name = of_label.count(answer), "no answer" if answer is None else str(answer)
            assert counted[label, name] == n
            assert shares[label, column] == pytest.approx(100 * n / len(of_label))
            assert texts[label, column] == f"{n}\n{100 * n / len(of_label):.0f} %"
            right += n * (label == answer)
    assert counted.sum() == len(known) < 100 and len(set(counted)) > 3
    assert list(seen(axis, "x").values()) == ["0 does not follow", "1 follows", "no answer"]
    assert list(seen(axis, "y").values()) == ["0 does not follow", "1 follows"]
    assert caption(figure) == (f"a-model on pairs; no answer counts as wrong, n = {len(known)}; "
                               f"accuracy {right / len(known):.3f}")


def check_lengths(figure, table, known, majority):
    (axis,) = figure.axes
    spread, intervals = segments(axis)
    groups = []
    for row in table.itertuples():
        inside = [one for one in known if row.shortest <= len(one["output"].split()) <= row.longest]
        right = sum(one["true_label"] == one["predicted_label"] for one in inside)
        groups.append((np.mean([len(one["output"].split()) for one in inside]), right / len(inside),
                       *wilson_interval(right, len(inside)),
                       np.mean([one["predicted_label"] is not None for one in inside]), len(inside)))
    assert len(groups) > 4 and 0 in table["accuracy"].values and 1 in table["parse_rate"].values
    mean, accuracy, low, high, parsed, n = (list(each) for each in zip(*groups, strict=True))
    near(table[["mean_length", "accuracy", "low", "high", "parse_rate", "n"]].to_numpy().T,
         [mean, accuracy, low, high, parsed, n])
    near(spread, [[[row.shortest, row.accuracy], [row.longest, row.accuracy]] for row in table.itertuples()])
    near(intervals, [[[row.mean_length, row.low], [row.mean_length, row.high]] for row in table.itertuples()])
    shown = {color: (x, y) for x, y, color in lines(axis)[:2]}
    near(shown[BLUE], [mean, accuracy])
    near(shown[GREY], [mean, parsed])
    assert lines(axis)[2][1:] == ([majority, majority], GREY)
    assert majority == np.mean([one["true_label"] for one in known]) > 0.5
    assert legend(axis) == {"accuracy": BLUE, "parse rate": GREY, "majority baseline": GREY}
    assert to_hex(axis.collections[0].get_color()[0]) == LIGHT_GREY
    assert axis.get_xlabel() == "length of the answer (words)"
    assert axis.get_ylim() == pytest.approx((-0.03, 1.03)) and axis.get_yticks().tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert caption(figure).startswith(f"a-model on pairs, n = {len(known)} (from left to right {str(n)[1:-1]}) ")


# --- chains of thought --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [24, 100, 400])
def test_chains_are_drawn_as_their_tables_have_them(tmp_path, pictures, count):
    rng = np.random.default_rng(count)
    made = [{"id": f"c{row}", "true_label": None if row % 10 == 0 else row % 2,
             "predicted_label": int(row % 2 == (rng.random() < 0.7))} for row in range(count)]
    lengths = [int(rng.integers(10, 40)) + 30 * (row["true_label"] != row["predicted_label"]) for row in made]
    chains.write_lengths(tmp_path, made, lengths, "tokens", "a-model")
    each = pd.read_csv(tmp_path / "thought_lengths.csv")
    groups = pd.read_csv(tmp_path / "thought_accuracy_by_length.csv")
    figure = pictures["thought_lengths.png"]
    left, right = figure.axes

    edges = np.histogram_bin_edges(lengths, min(30, max(5, count // 8)))
    areas = {to_hex(area.get_facecolor()[0]): area.get_paths()[0] for area in left.collections
             if isinstance(area, PolyCollection)}
    named, highest = {}, 0.0
    for outcome, color in (("right", BLUE), ("wrong", RED), ("unlabelled", GREY)):
        among = each[each["outcome"] == outcome]["length"]
        found = ["unlabelled" if row["true_label"] is None else
                 "right" if row["true_label"] == row["predicted_label"] else "wrong" for row in made]
        assert among.tolist() == [length for length, one in zip(lengths, found, strict=True) if one == outcome]
        named[f"{outcome} (n = {len(among)}, median {np.median(among):.0f})"] = color
        shares = 100 * np.histogram(among, edges)[0] / len(among)
        for middle, share in zip((edges[:-1] + edges[1:]) / 2, shares, strict=True):
            assert not areas[color].contains_point((middle, 1.001 * share + 1e-6))
            assert share == 0 or areas[color].contains_point((middle, 0.999 * share))
        highest = max(highest, shares.max())
    assert legend(left) == named and len(areas) == 3
    assert left.get_ylim()[0] == 0 and highest < left.get_ylim()[1] and max(left.get_yticks()) <= 100
    assert left.get_ylabel() == "chains of the outcome (%)" and left.get_xlabel() == "length of the chain (tokens)"

    (intervals,) = segments(right)
    near(intervals, [[[row.mean_length, row.low], [row.mean_length, row.high]] for row in groups.itertuples()])
    ((x, y, _),) = lines(right)
    near([x, y], [groups["mean_length"], groups["accuracy"]])
    assert right.get_ylim() == pytest.approx((-0.03, 1.03)) and right.get_ylabel() == "right (share)"
    n = each["outcome"].value_counts()
    counted = f"n = {count} ({n['right']} right, {n['wrong']} wrong, {n['unlabelled']} unlabelled)"
    assert caption(figure).startswith(f"a-model, {counted}; ")


def test_chains_of_one_length_have_whole_ticks_up_to_all_of_them(tmp_path, pictures):
    made = [{"id": str(row), "true_label": 1, "predicted_label": 1} for row in range(9)]
    chains.write_lengths(tmp_path, made, [7] * 9, "words", "a-model")
    left, right = pictures["thought_lengths.png"].axes
    assert left.get_yticks().tolist() == [0, 20, 40, 60, 80, 100]
    for axis in (left, right):
        assert len(axis.get_xticks()) and all(tick % 1 == 0 for tick in axis.get_xticks())


def test_chains_without_true_labels_say_so(tmp_path, pictures):
    made = [{"id": str(row), "true_label": None, "predicted_label": 1} for row in range(9)]
    chains.write_lengths(tmp_path, made, list(range(9)), "words", "a-model")
    left, right = pictures["thought_lengths.png"].axes
    (told,) = right.texts
    assert (told.get_text(), told.get_position()) == ("no true labels", (0.5, 0.5)) and not lines(right)
    assert list(legend(left)) == ["unlabelled (n = 9, median 4)"]


# --- fine-tuning --------------------------------------------------------------------------------------------------


def log_of(steps: int) -> pd.DataFrame:
    """Training points at every step, evaluations at every second, generated answers at every fourth."""
    step = np.arange(1, steps + 1)
    columns = {
        "step": step, "epoch": step / 4, "loss": 2 / step, "learning_rate": 1e-3 * (steps - step),
        "mean_token_accuracy": 1 - 1 / (step + 1), "eval_loss": np.where(step % 2, np.nan, 3 / step),
        "eval_mean_token_accuracy": np.where(step % 2, np.nan, 1 - 2 / (step + 2)),
        "eval_generate_accuracy": np.where(step % 4, np.nan, 0.5 + step / 200),
        "eval_generate_f1_macro": np.where(step % 4, np.nan, 0.4 + step / 200),
        "eval_generate_parse_rate": np.where(step % 4, np.nan, 0.6 + step / 200),
    }
    return pd.DataFrame(columns)


@pytest.mark.parametrize("steps", [30, 31])
def test_the_curves_are_drawn_as_the_log_has_them(tmp_path, pictures, steps):
    write_csv(tmp_path / "training_log.csv", log_of(steps))
    log = pd.read_csv(tmp_path / "training_log.csv")
    plot_training(tmp_path / "training_curves.png", log, "Fine-tuning", "n = 22")
    panels = {
        "loss (nats per token)": {"training": "loss", "held out": "eval_loss"},
        "token accuracy (share)": {"training": "mean_token_accuracy", "held out": "eval_mean_token_accuracy"},
        "learning rate": {"": "learning_rate"},
        "answered pairs (share)": {"accuracy": "eval_generate_accuracy", "F1, macro": "eval_generate_f1_macro",
                                   "parse rate": "eval_generate_parse_rate"},
    }
    axes = pictures["training_curves.png"].axes
    assert [axis.get_ylabel() for axis in axes] == list(panels)
    for axis, columns in zip(axes, panels.values(), strict=True):
        for place, (line, column) in enumerate(zip(axis.lines, columns.values(), strict=True)):
            known = log[log[column].notna()]
            assert line.get_xdata().tolist() == known["step"].tolist()
            assert line.get_ydata().tolist() == known[column].tolist()
            assert line.get_color() == COLORS[place]
            # Many points of a training are a line alone.
            assert (line.get_marker() == "None") == (steps == 31 and not column.startswith("eval_"))
        if len(columns) > 1:
            assert legend(axis) == {name: COLORS[place].lower() for place, name in enumerate(columns)}
        assert axis.get_xlabel() == "step" and axis.get_xlim()[0] == 0 and axis.get_xlim()[1] > 28
        if "share" in axis.get_ylabel():
            assert axis.get_ylim() == pytest.approx((-0.03, 1.03))


def test_what_was_not_logged_has_no_panel(tmp_path, pictures):
    log = log_of(8).drop(columns=["eval_loss", "mean_token_accuracy", "eval_mean_token_accuracy"])
    plot_training(tmp_path / "curves.png", log.assign(eval_generate_f1_macro=np.nan), "Fine-tuning", "n")
    shown = [axis for axis in pictures["curves.png"].axes if axis.get_visible()]
    assert [(axis.get_ylabel(), len(axis.lines)) for axis in shown] == [
        ("loss (nats per token)", 1), ("learning rate", 1), ("answered pairs (share)", 2)]
