"""Folds that leak nothing, the head's table, and the file that others read."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamap.core.errors import UserError
from datamap.core.files import write_csv
from datamap.core.splits import load_split
from datamap.detection.out_of_fold import assign_folds, folds_of, head_table, load_out_of_fold, probability_columns
from datamap.tasks.classification import SequenceClassification
from datamap.tasks.registry import get_task


def ids_of(count):
    return [f"e{row:03d}" for row in range(count)]


@given(st.data(), st.integers(2, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_equal_texts_share_a_fold_and_folds_are_of_a_size(data, folds, seed):
    count = data.draw(st.integers(folds, 60))
    numbers = data.draw(st.lists(st.integers(0, 40), min_size=count, max_size=count))
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    texts = [(str(number), "same") for number in numbers]
    assigned = assign_folds(ids_of(count), texts, labels, folds, seed)
    assert set(assigned) <= set(range(1, folds + 1))
    for text in set(texts):
        assert len({assigned[row] for row in range(count) if texts[row] == text}) == 1
    sizes = np.bincount(assigned - 1, minlength=folds)
    largest = max(texts.count(text) for text in texts)
    assert sizes.max() - sizes.min() <= largest * len(set(labels))
    shuffled = np.random.default_rng(seed).permutation(count)
    again = assign_folds([ids_of(count)[row] for row in shuffled], [texts[row] for row in shuffled], labels[shuffled],
                         folds, seed)
    assert (again == assigned[shuffled]).all()


@given(st.lists(st.integers(0, 2), min_size=12, max_size=60), st.integers(2, 4), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_labels_are_spread_evenly(labels, folds, seed):
    labels = np.array(labels)
    texts = [(str(row),) for row in range(len(labels))]
    assigned = assign_folds(ids_of(len(labels)), texts, labels, folds, seed)
    for label in np.unique(labels):
        counts = np.bincount(assigned[labels == label] - 1, minlength=folds)
        assert counts.max() - counts.min() <= 1
    counts = np.bincount(assigned - 1, minlength=folds)
    assert counts.max() - counts.min() <= 1 + len(np.unique(labels)) // 2


def test_the_seed_draws_the_folds():
    texts, labels = [(str(row),) for row in range(40)], np.zeros(40, dtype=int)
    drawn = [assign_folds(ids_of(40), texts, labels, 4, seed) for seed in (1, 1, 2)]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()
    assert (np.diff(drawn[0]) != 0).sum() > 10  # not the file's order


def test_each_of_as_many_examples_as_folds_is_judged_by_all_the_others(qa_dir):
    split = load_split(str(qa_dir), "train", get_task("qa"), 3)
    assert sorted(folds_of(split, 3, 0)) == [1, 2, 3]
    with pytest.raises(UserError, match=r"found 3 examples to train on .* for 4 folds; .*: --cross_fit 3$"):
        folds_of(split, 4, 0)


def test_a_class_needs_a_text_for_every_fold(tmp_path):
    rows = [{"id": str(row), "text": f"text {row}", "label": "ab"[row % 2]} for row in range(12)]
    for row in rows[1::2]:
        row["text"] = "one and the same"
    file = tmp_path / "twice.jsonl"
    pd.DataFrame(rows).to_json(file, orient="records", lines=True)
    split = load_split(str(file), "train", SequenceClassification())
    with pytest.raises(UserError, match="found 1 example of class 'b' .* for 3 folds.*drop or merge the class"):
        folds_of(split, 3, 0)


# --- the head ----------------------------------------------------------------------------------------------------


def test_the_head_is_logistic_regression_without_the_fold():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(3)
    labels = np.arange(60) % 3
    vectors = (rng.normal(size=(60, 8)) + 1.5 * np.eye(8)[labels]).astype(np.float32)
    fold = rng.permutation(np.arange(60) % 4) + 1
    table = head_table(ids_of(60), vectors, labels, ["no", "so-so", "yes"], fold, seed=0).set_index("id")
    scaled = (vectors - vectors.mean(0)) / vectors.std(0)
    for row in range(60):
        others = fold != fold[row]
        head = LogisticRegression(C=1 / 8, max_iter=1000, tol=1e-8).fit(scaled[others].astype(float), labels[others])
        p = head.predict_proba(scaled[row : row + 1].astype(float))[0]
        one = table.iloc[row]
        found = one[["probability_no", "probability_so-so", "probability_yes"]].to_numpy(dtype=float)
        np.testing.assert_allclose(found, p, atol=2e-3)
        gold, rest = found[labels[row]], np.delete(found, labels[row])
        assert one["confidence"] == pytest.approx(gold) and one["loss"] == pytest.approx(-np.log(gold))
        assert one["aum"] == pytest.approx(np.log(gold) - np.log(rest.max()))
        assert one["el2n"] == pytest.approx(np.sqrt((1 - gold) ** 2 + (rest**2).sum()))
        assert one["predicted_label"] == ["no", "so-so", "yes"][found.argmax()]
        assert one["correctness"] == (found.argmax() == labels[row])
    assert (table["fold"] == fold).all() and (table["num_epochs"] == 1).all()
    assert table["correctness"].mean() > 0.6


# --- reading -----------------------------------------------------------------------------------------------------


def table_of(**columns):
    table = {"id": ["001", "b"], "fold": [1, 2], "confidence": [0.25, 1.0], "predicted_label": ["NA", "2"],
             "probability_NA": [0.75, 0.0], "probability_2": [0.25, 1.0], **columns}
    return pd.DataFrame({name: values for name, values in table.items() if values is not None})


def test_ids_and_labels_are_text(tmp_path):
    write_csv(tmp_path / "out_of_fold.csv", table_of())
    for path in (tmp_path, tmp_path / "out_of_fold.csv"):
        read = load_out_of_fold(path)
        assert list(read.index) == ["001", "b"] and list(read["predicted_label"]) == ["NA", "2"]
        assert probability_columns(read) == {"NA": "probability_NA", "2": "probability_2"}


@pytest.mark.parametrize(("columns", "words"), [
    ({"fold": None}, "has no column 'fold'"),
    ({"predicted_label": None}, "has neither predicted_label nor predicted_answer"),
    ({"probability_2": [0.25, 1.5]}, r"probability_2 of 1 examples \('b'\) is missing or not in 0\.\.1"),
    ({"probability_2": [np.nan, 0.5]}, r"probability_2 of 1 examples \('001'\)"),
    ({"confidence": ["high", "low"]}, "confidence of 2 examples"),
    ({"dropout_confidence": [0.5, -0.1]}, "dropout_confidence of 1 examples"),
    ({"fold": [0, 1]}, r"fold of 1 examples \('001'\) is missing or not a fold from 1"),
    ({name: [] for name in ("id", "fold", "confidence", "predicted_label", "probability_NA", "probability_2")},
     "holds no examples"),
])
def test_what_is_no_such_file_is_refused_by_name(tmp_path, columns, words):
    write_csv(tmp_path / "out_of_fold.csv", table_of(**columns))
    with pytest.raises(UserError, match=words):
        load_out_of_fold(tmp_path)


def test_a_map_without_folds_says_what_writes_them(tmp_path):
    with pytest.raises(UserError, match=r"holds no out_of_fold\.csv; run\.py .*--cross_fit K writes it"):
        load_out_of_fold(tmp_path)
