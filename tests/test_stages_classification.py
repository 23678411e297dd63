"""The stages after run.py for classification and NLI: each through main(argv) on what the stage before it wrote.

Three small models are trained: on one text, on premise and hypothesis, and an LSTM on story and question. No stage is
told the task: all take it from what run.py recorded.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import REPOSITORY, write_rows

import analyze_cartography
import analyze_dataset
import cluster_analysis
import extract_embeddings
import run
from datamap.analysis import clusters, integrated, map_summary
from datamap.analysis.error_rules import RULES
from datamap.analysis.unified_table import unified_table
from datamap.cartography import maps
from datamap.cartography.categories import CATEGORIES, categorize_examples
from datamap.cartography.metrics import load_cartography_metrics
from datamap.core.files import read_json, read_jsonl, read_table
from datamap.core.splits import load_split
from datamap.demo import builtin as demo_data
from datamap.tasks.registry import get_task
from datamap.training import embeddings

pytestmark = pytest.mark.usefixtures("one_thread")

N = 48
WIDTH = 16
GOOD, BAD = ("warm", "funny", "bright", "moving"), ("dull", "slow", "empty", "loud")
THINGS = ("film", "story", "cast", "music", "ending")


def sentiment_rows() -> list[dict]:
    """One text; class names; a column whose name the later stages need for themselves."""
    rng = np.random.default_rng(1)
    made: list[dict] = []
    for row in range(N):
        words = GOOD if row % 3 else BAD
        parts = [f"the {rng.choice(THINGS)} is {rng.choice(words)}" for _ in range(int(rng.integers(1, 4)))]
        label = "positive" if row % 3 else "negative"
        made.append({"id": f"{row:03d}", "sentence": " and ".join(parts), "label": label,
                     "category": f"genre {row % 2}", "stars": None if row == 5 else row % 5})
    return made


def nli_rows() -> list[dict]:
    """Numbered classes, and two examples without gold label, which are left out."""
    rng = np.random.default_rng(2)
    made: list[dict] = []
    for row in range(N):
        thing, word = str(rng.choice(THINGS)), str(rng.choice(GOOD))
        said = (word, str(rng.choice(BAD)), "long")[row % 3]
        premise = f"the {thing} is {word}" + " and everybody says so" * (row % 2)
        made.append({"id": f"pair-{row}", "premise": premise, "hypothesis": f"the {thing} is {said}",
                     "label": -1 if row in (7, 8) else (0, 2, 1)[row % 3]})
    return made


def story_rows() -> list[dict]:
    return demo_data.generate("stories", "train", num_examples=N)


CASES = {
    "sentiment": (sentiment_rows, "classification", "tiny"),
    "nli": (nli_rows, "nli", "tiny"),
    "stories": (story_rows, "classification", "lstm"),
}
LENGTHS = {"sentiment": 24, "nli": 24, "stories": 128}
TEXTS = {"sentiment": ["sentence"], "nli": ["premise", "hypothesis"], "stories": ["story", "question"]}


def gold(case: str) -> list[dict]:
    """The rows that have a gold label."""
    return [row for row in CASES[case][0]() if row["label"] != -1]


@pytest.fixture(scope="module")
def houses(tmp_path_factory) -> dict[str, Path]:
    """For each case a directory with the outputs of all stages, under their usual names."""
    made = {}
    for case, (rows, task, model) in CASES.items():
        house = made[case] = tmp_path_factory.mktemp(case)
        data = write_rows(house / "train.jsonl", rows())
        with pytest.MonkeyPatch.context() as patch:
            if case != "sentiment":  # its pictures are enough
                for module, plots in {
                    map_summary: ("plot_distributions", "plot_correlations", "plot_groups"),
                    integrated: ("plot_category_by_cluster", "plot_difficulty", "plot_map"),
                    clusters: ("save_figure",), maps: ("plot_map_by_correctness",),
                }.items():
                    for plot in plots:
                        patch.setattr(module, plot, lambda *rest: None)
            run.main(
                ["--do_train", "--do_eval", "--enable_cartography", "--task", task, "--model", model,
                 "--dataset", str(data), "--eval_split", "train", "--num_train_epochs", "3", "--hidden_size",
                 str(WIDTH), "--learning_rate", "5e-3", "--max_length", str(LENGTHS[case]),
                 "--output_dir", str(house / "trainer_output"), "--save_strategy", "no", "--no_cuda",
                 "--cartography_output_dir", str(house / "cartography_output")]
            )
            for pooling in ("cls", "mean"):
                extract(house, house / f"embeddings_{pooling}", *(["--pooling", "mean"] if pooling == "mean" else []))
            cluster_analysis.main(
                ["--embedding_dir", str(house / "embeddings_cls"), "--output_dir", str(house / "cluster_output"),
                 "--visualization_method", "pca", "--min_cluster_size", "5"]
            )
            analyze_cartography.main(
                ["--cartography_dir", str(house / "cartography_output"),
                 "--output_dir", str(house / "cartography_analysis")]
            )
            integrate(house, house / "integrated_analysis")
            predictions = ["--predictions", str(house / "trainer_output")] if case != "stories" else []
            integrate(house, house / "unified_export", "--export_unified", *predictions)
    return made


def extract(house: Path, output: Path, *flags: str) -> np.ndarray:
    extract_embeddings.main(
        ["--model_path", str(house / "trainer_output"), "--output_dir", str(output), "--no_cuda", *flags]
    )
    return np.load(output / "embeddings.npy")


def integrate(house: Path, output: Path, *flags: str) -> None:
    analyze_dataset.main(
        ["--cartography_dir", str(house / "cartography_output"), "--cluster_dir", str(house / "cluster_output"),
         "--output_dir", str(output), *flags]
    )


# --- embeddings --------------------------------------------------------------------------------------------------


def slow_embeddings(house: Path, case: str, rows: list[dict], max_length: int) -> dict[str, np.ndarray]:
    """One example at a time, no padding, means in float64."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(house / "trainer_output").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(house / "trainer_output")
    vectors: dict[str, list] = {"cls": [], "mean": []}
    for row in rows:
        texts = [row[column] for column in TEXTS[case]]
        inputs = tokenizer(*texts, truncation="longest_first", max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            hidden = model.base_model(**inputs).last_hidden_state[0].numpy().astype(np.float64)
        assert inputs["input_ids"][0, 0] == tokenizer.cls_token_id
        vectors["cls"].append(hidden[0])
        vectors["mean"].append(sum(hidden) / len(hidden))
    return {pooling: np.stack(values) for pooling, values in vectors.items()}


@pytest.mark.parametrize("case", list(CASES))
def test_embeddings_equal_one_by_one(houses, case):
    house, rows = houses[case], gold(case)
    expected = slow_embeddings(house, case, rows, LENGTHS[case])
    assert len({len(" ".join(row[column] for column in TEXTS[case]).split()) for row in rows}) > 1, "padding is needed"
    for pooling in ("cls", "mean"):
        vectors = np.load(house / f"embeddings_{pooling}" / "embeddings.npy")
        assert vectors.dtype == np.float32 and vectors.shape == (len(rows), WIDTH)
        np.testing.assert_allclose(vectors, expected[pooling], atol=2e-5)
        assert np.abs(vectors - vectors.mean(axis=0)).max() > 0.05, "vectors that do not differ would prove nothing"
        metadata = read_json(house / f"embeddings_{pooling}" / "embeddings_metadata.json")
        assert metadata["ids"] == [row["id"] for row in rows]
        assert list(metadata["texts"]) == [*TEXTS[case], "label"]
        for column, values in metadata["texts"].items():
            assert values == [row[column] for row in rows]
        assert (metadata["task"], metadata["pooling"]) == (CASES[case][1], pooling)
        assert not {"num_unanswerable", "num_answer_not_found", "doc_stride"} & metadata.keys()
    assert np.abs(expected["cls"] - expected["mean"]).max() > 0.05


@pytest.mark.parametrize("case", ["sentiment", "stories"])
def test_padding_batches_and_a_cut(houses, tmp_path, case):
    house = houses[case]
    whole = np.load(house / "embeddings_mean" / "embeddings.npy")
    alone = extract(house, tmp_path / "alone", "--pooling", "mean", "--batch_size", "1")
    np.testing.assert_allclose(alone, whole, atol=2e-5)
    few = extract(house, tmp_path / "few", "--pooling", "mean", "--max_samples", "5", "--batch_size", "4")
    np.testing.assert_allclose(few, whole[:5], atol=2e-5)
    cut = extract(house, tmp_path / "cut", "--pooling", "mean", "--max_length", "9")
    np.testing.assert_allclose(cut, slow_embeddings(house, case, gold(case), 9)["mean"], atol=2e-5)
    assert np.abs(cut - whole).max() > 0.01


def test_what_stands_at_padding_has_no_weight():
    rng = np.random.default_rng(0)
    hidden, lengths = torch.from_numpy(rng.normal(size=(3, 7, 4)).astype(np.float32)), np.array([7, 2, 4])
    cls = np.array([0, 0, 1])
    none = np.full((3, 2), -1)
    for pooling in ("cls", "mean"):
        spans = torch.from_numpy(embeddings.pooled_spans(pooling, cls, none, lengths))
        found = embeddings.pool(hidden, spans)
        longer = torch.cat([hidden, torch.full((3, 5, 4), 1e9)], dim=1)
        for row, length in enumerate(lengths):
            longer[row, length:] = 1e9
        assert torch.equal(embeddings.pool(longer, spans), found)
        slow = [hidden[row, :length].mean(dim=0) if pooling == "mean" else hidden[row, cls[row]]
                for row, length in enumerate(lengths)]
        np.testing.assert_allclose(found, torch.stack(slow), atol=1e-6)


def test_a_tokenizer_like_that_of_a_decoder(houses, tmp_path, refused):
    """No [CLS] token: only mean pooling is left. No padding token either: the one that ends a text stands in."""
    model = tmp_path / "trainer_output"
    model.mkdir()
    for file in (houses["sentiment"] / "trainer_output").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    tokenizer = read_json(model / "tokenizer.json") | {"post_processor": None}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = read_json(model / "tokenizer_config.json") | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config["eos_token"] = config["sep_token"]
    del config["cls_token"], config["pad_token"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    output = tmp_path / "out"
    message = refused(extract_embeddings.main, "--model_path", model, "--output_dir", output, "--no_cuda")
    assert "needs a [CLS] token" in message and "--pooling mean" in message and not output.exists()
    vectors = extract(tmp_path, output, "--pooling", "mean")
    assert vectors.shape == (N, WIDTH)
    alone = extract(tmp_path, tmp_path / "alone", "--pooling", "mean", "--batch_size", "1")
    np.testing.assert_allclose(vectors, alone, atol=2e-5)


def test_other_column_names_are_guessed_again(houses, tmp_path):
    rows = [{("text" if key == "sentence" else key): row[key] for key in row} for row in sentiment_rows()]
    data = write_rows(tmp_path / "renamed.jsonl", rows)
    vectors = extract(houses["sentiment"], tmp_path / "out", "--dataset", str(data))
    np.testing.assert_allclose(vectors, np.load(houses["sentiment"] / "embeddings_cls" / "embeddings.npy"), atol=2e-5)
    assert list(read_json(tmp_path / "out" / "embeddings_metadata.json")["texts"]) == ["text", "label"]


# --- the analyses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", list(CASES))
def test_label_analysis_and_samples(houses, case):
    house, rows = houses[case], {row["id"]: row for row in gold(case)}
    frame = categorize_examples(load_cartography_metrics(house / "cartography_output"))
    assert set(frame.index) == rows.keys()
    labels = pd.Series({example: row["label"] for example, row in rows.items()}).reindex(frame.index)
    table = pd.read_csv(house / "cartography_analysis" / "label_analysis.csv").set_index("label")
    assert set(table.index) == set(labels), "labels read back as what they are in the data"
    assert table["n"].is_monotonic_decreasing
    for label, row in table.iterrows():
        inside = frame[(labels == label).to_numpy()]
        assert row["n"] == len(inside)
        assert row["confidence_mean"] == pytest.approx(sum(inside["confidence"]) / len(inside))
        assert row["loss_median"] == pytest.approx(np.median(inside["loss"]))
        for category in CATEGORIES:
            assert row[f"{category}_share"] == pytest.approx(list(inside["category"]).count(category) / len(inside))
    for category in CATEGORIES:
        samples = read_json(house / "cartography_analysis" / f"{category}_samples.json")
        assert len(samples) == min(20, sum(frame["category"] == category))
        for sample in samples:
            assert list(sample)[: len(TEXTS[case]) + 2] == ["id", *TEXTS[case], "label"]
            for column in (*TEXTS[case], "label"):
                assert sample[column] == rows[sample["id"]][column]
            assert sample["confidence"] == pytest.approx(frame.loc[sample["id"], "confidence"])
    assert not list((house / "cartography_analysis").glob("*question_type*"))


def test_pictures(houses):
    pictures = {path.name: path for stage in ("cartography_analysis", "integrated_analysis", "unified_export")
                for path in (houses["sentiment"] / stage).glob("*.png")}
    assert pictures.keys() == {
        "category_by_label.png", "metric_distributions.png", "metric_correlations.png", "category_by_cluster.png",
        "cluster_difficulty.png", "cluster_map_by_category.png", "cartography_map_by_correctness.png",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures.values())


@pytest.mark.parametrize("case", list(CASES))
def test_clusters_carry_their_texts(houses, case):
    rows = {row["id"]: row for row in gold(case)}
    clusters = read_json(houses[case] / "cluster_output" / "cluster_samples.json")
    examples = [example for cluster in clusters.values() for example in cluster]
    assert examples
    for example in examples:
        for column in (*TEXTS[case], "label"):
            assert example[column] == rows[example["id"]][column]


@pytest.mark.parametrize("case", list(CASES))
def test_without_the_unified_table(houses, case):
    output = houses[case] / "integrated_analysis"
    assert not list(output.glob("unified*")) + list(output.glob("overlap_summary*"))
    patterns = read_json(output / "patterns.json")
    assert "labels_over_represented" in patterns and "question_types_over_represented" not in patterns
    assert patterns["n"] == len(gold(case))
    recorded = read_json(output / "run_meta.json")["datasets"][0]["task"]
    assert recorded == {"name": CASES[case][1], "text_columns": TEXTS[case], "label_column": "label"}


METRICS = ["confidence", "variability", "correctness", "num_epochs", "forgetting_events", "never_learned", "aum",
           "el2n", "aleatoric", "loss"]
CLUSTER = ["category", "cluster", "dim1", "dim2", "cluster_probability"]


@pytest.mark.parametrize(
    ("case", "original", "predicted"),
    [
        ("sentiment", ["data_category", "stars"], ["predicted_label"]),
        ("nli", [], ["predicted_label"]),
        ("stories", ["data_category", "num_actors", "num_sentences"], []),
    ],
)
def test_unified_table(houses, case, original, predicted):
    file = houses[case] / "unified_export" / "unified_analysis.csv"
    table, rows = pd.read_csv(file, dtype={"id": str}), gold(case)
    expected = ["id", *TEXTS[case], "label", *original, *METRICS, *CLUSTER, *predicted]
    assert list(table) == expected, "and so no rules and no score"
    assert table["id"].tolist() == [row["id"] for row in rows]
    for column in (*TEXTS[case], "label"):
        assert table[column].tolist() == [row[column] for row in rows]
    if "data_category" in original:
        assert table["data_category"].tolist() == [row["category"] for row in rows]
    assert set(table["category"]) <= set(CATEGORIES) and table["cluster"].dtype.kind == "i"
    metrics = load_cartography_metrics(houses[case] / "cartography_output").loc[table["id"]]
    assert table["confidence"].tolist() == pytest.approx(metrics["confidence"].tolist())
    if predicted:
        written = {row["id"]: row["predicted_label"] for row in
                   read_jsonl(houses[case] / "trainer_output" / "eval_predictions.jsonl")}
        assert table["predicted_label"].tolist() == [written[example] for example in table["id"]]


@pytest.mark.parametrize("case", list(CASES))
def test_overlap_summary_has_nothing_of_the_rules(houses, case):
    summary = read_json(houses[case] / "unified_export" / "overlap_summary.json")
    assert list(summary) == ["total_examples", "coverage", "category_cluster_distribution"]
    n = len(gold(case))
    everything = {"n": n, "share": 1.0}
    assert summary["total_examples"] == n == sum(cell["n"] for cell in summary["category_cluster_distribution"])
    assert summary["coverage"] == {
        "cartography": everything, "clusters": everything, "cartography_and_clusters": everything,
        "predictions": None if case == "stories" else everything,
    }


def test_predictions_of_some_examples(houses, tmp_path, refused):
    rows = read_jsonl(houses["nli"] / "trainer_output" / "eval_predictions.jsonl")
    file = write_rows(tmp_path / "eval_predictions.jsonl", rows[:10])
    flags = ("--export_unified", "--predictions", str(file))
    integrate(houses["nli"], tmp_path / "out", *flags)
    lines = (tmp_path / "out" / "unified_analysis.csv").read_text(encoding="utf-8").splitlines()
    assert [line.rsplit(",", 1)[1] for line in lines[1:11]] == [str(row["predicted_label"]) for row in rows[:10]]
    assert lines[-1].endswith(","), "whole numbers beside empty cells"
    column = read_table(tmp_path / "out" / "unified_analysis.csv")["predicted_label"]
    assert column.notna().tolist() == [True] * 10 + [False] * (len(column) - 10)

    def message() -> str:
        return refused(lambda argv: integrate(houses["nli"], tmp_path / "bad", *argv), *flags)

    write_rows(file, [{**rows[0], "premise": "Something else."}])
    assert "has another premise than" in message()
    write_rows(file, [{"id": rows[0]["id"], "predicted_label": ["0"]}])
    assert "predicted_label of 'pair-0' is not a label" in message()
    write_rows(file, [{"id": rows[0]["id"], "predicted_answer": "0"}])
    assert "no 'predicted_label'" in message()
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("case", ["sentiment", "nli"])
def test_what_predictions_get_wrong(houses, case, tmp_path, refused, capsys):
    """Some predictions are turned, so that there are mistakes of every class."""
    rows = read_jsonl(houses[case] / "trainer_output" / "eval_predictions.jsonl")
    names = sorted({row["label"] for row in gold(case)})
    said = [names[(names.index(row["label"]) + (number % 3 == 0)) % len(names)] for number, row in enumerate(rows)]
    file = write_rows(tmp_path / "said.jsonl", [{**row, "predicted_label": label}
                                                for row, label in zip(rows, said, strict=True)])
    integrate(houses[case], tmp_path / "out", "--predictions", str(file))
    wrong = read_table(tmp_path / "out" / "misclassified.csv")
    assert wrong["id"].tolist() == [row["id"] for row in rows[::3]]
    assert wrong["label"].tolist() == [row["label"] for row in rows[::3]]
    assert wrong["predicted_label"].tolist() == said[::3] and {"category", "cluster", "aum"} <= set(wrong.columns)
    counts = read_table(tmp_path / "out" / "error_counts.csv").set_index(["by", "group", "error"])["n"]
    for label in names:
        there = [number for number, row in enumerate(rows) if row["label"] == label]
        assert counts["label", str(label), "wrong"] == sum(number % 3 == 0 for number in there)
        assert counts["label", str(label), "none"] == sum(number % 3 > 0 for number in there)
    for by in ("all", "category", "cluster", "label"):
        assert counts[by].sum() == len(rows) and counts[by].xs("wrong", level="error").sum() == len(wrong)
    assert f"{len(wrong)} of {len(rows)} predictions are wrong (misclassified.csv" in capsys.readouterr().out
    write_rows(file, [{**rows[0], "predicted_label": "odd"}])
    told = refused(lambda argv: integrate(houses[case], tmp_path / "bad", *argv), "--predictions", str(file))
    assert "the predictions have labels that" in told and "'odd'" in told and not (tmp_path / "bad").exists()


def test_columns_with_names_that_are_taken(tmp_path):
    """The label column, a text column and another one are called like columns of the analyses."""
    rows = [{"id": f"r{row}", "loss": f"text {row}", "category": ("x", "y")[row % 2], "cluster": row,
             "data_cluster": 7, "is_dataset_error": True} for row in range(6)]
    data = write_rows(tmp_path / "train.jsonl", rows)
    task = get_task("classification", text_columns=["loss"], label_column="category")
    split = load_split(str(data), "train", task)
    ids = pd.Index([row["id"] for row in rows], name="id")
    metrics = pd.DataFrame({"confidence": 0.5, "variability": 0.1, "loss": 1.0, "category": "hard"}, index=ids)
    clusters = pd.DataFrame({"cluster": 3}, index=ids)
    table = unified_table(split, metrics, clusters, None)
    assert list(table) == ["id", "data_loss", "data_category", "data_data_cluster", "data_cluster", "is_dataset_error",
                           "confidence", "variability", "loss", "category", "cluster"]
    assert table["data_loss"].tolist() == [row["loss"] for row in rows]
    assert table["data_category"].tolist() == ["x", "y"] * 3 and set(table["category"]) == {"hard"}
    assert table["data_data_cluster"].tolist() == list(range(6)) and set(table["data_cluster"]) == {7}
    sample = map_summary.samples(metrics, "hard", 1, split)[0]
    assert sample["data_loss"] == rows[int(sample["id"][1:])]["loss"] and sample["loss"] == 1.0


# --- bad input ---------------------------------------------------------------------------------------------------


def test_pooling_and_flags_of_another_task(houses, tmp_path, refused):
    output = tmp_path / "out"
    given = ("--model_path", houses["nli"] / "trainer_output", "--output_dir", output, "--no_cuda")
    message = refused(extract_embeddings.main, *given, "--pooling", "cls_and_answer_mean")
    assert "--pooling cls_and_answer_mean is not for --task nli, which has cls, mean" in message
    assert "invalid choice: 'max'" in refused(extract_embeddings.main, *given, "--pooling", "max")
    assert "--doc_stride is for --task qa" in refused(extract_embeddings.main, *given, "--doc_stride", "16")
    assert not output.exists()


@pytest.mark.parametrize("script", ["extract_embeddings", "analyze_cartography", "analyze_dataset"])
def test_wrong_task_or_column(houses, tmp_path, refused, script):
    house, output = houses["sentiment"], tmp_path / "out"
    main, given = {
        "extract_embeddings": (extract_embeddings.main, ("--model_path", house / "trainer_output", "--no_cuda")),
        "analyze_cartography": (analyze_cartography.main, ("--cartography_dir", house / "cartography_output")),
        "analyze_dataset": (
            analyze_dataset.main,
            ("--cartography_dir", house / "cartography_output", "--cluster_dir", house / "cluster_output"),
        ),
    }[script]
    given = (*given, "--output_dir", output)
    message = refused(main, *given, "--task", "qa")
    assert "no column 'context', 'question'" in message and "--task nli or classification" in message
    assert "no column with a usual name for --text_columns" in refused(main, *given, "--task", "nli")
    message = refused(main, *given, "--label_column", "mood")
    assert "has no column 'mood'" in message and "sentence" in message
    assert "has no column 'words'" in refused(main, *given, "--text_columns", "words")
    assert "--text_columns is not for --task qa" in refused(main, *given, "--task", "qa", "--text_columns", "sentence")
    assert not output.exists(), "nothing may be written for bad input"
    if script != "extract_embeddings":  # other columns are other content
        assert "other content" in refused(main, *given, "--label_column", "category")


# --- the demos ---------------------------------------------------------------------------------------------------


def demo(name: str):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "demos" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_demos(houses, tmp_path, capsys):
    house = houses["sentiment"]
    table = read_table(house / "unified_export" / "unified_analysis.csv")
    hard = table[table["category"] == "hard"].sort_values(["confidence", "id"])
    capsys.readouterr()
    demo("unified_analysis_example").main(
        ["--unified_dir", str(house / "unified_export"), "--output_dir", str(tmp_path / "example")]
    )
    printed = capsys.readouterr().out
    assert "no error rules" in printed and f"{len(hard)} of {N} examples with metrics are hard" in printed
    assert {path.name for path in (tmp_path / "example").iterdir()} == {"problem_examples.csv", "run_meta.json"}
    problems = read_table(tmp_path / "example" / "problem_examples.csv")
    assert problems["id"].tolist() == hard["id"].tolist() and list(problems) == list(table)
    assert not set(RULES) & set(problems)

    demo("filtering_examples").main(
        ["--cartography_dir", str(house / "cartography_output"), "--cluster_dir", str(house / "cluster_output")]
    )
    printed = capsys.readouterr().out
    assert "rules" not in printed
    rows = {row["id"]: row for row in sentiment_rows()}
    shown = [line.split(": ", 1) for line in printed.splitlines()[-3:]]
    assert all(text == f"{rows[name.strip()]['sentence']} -> {rows[name.strip()]['label']}" for name, text in shown)
