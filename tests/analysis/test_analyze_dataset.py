"""analyze_dataset.py and demos/unified_analysis_example.py through their command lines, on 60 hand-made examples."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from read_pictures import caption, heat_map, legend, lines, lying, scatters, seen, segments

import analyze_dataset
from datamap.analysis import integrated, unified_table
from datamap.analysis.error_rules import RULE_WEIGHTS, RULES, flag_errors
from datamap.cartography.categories import CATEGORIES, categorize_examples
from datamap.core.files import read_json, read_table
from datamap.core.plots import CATEGORY_COLORS, COLORS, LIGHT_GREY
from datamap.core.splits import load_split
from datamap.tasks.questions import question_type_of
from datamap.tasks.registry import get_task

N = 60
NO_METRICS, NO_CLUSTER = {3, 4}, {4, 5, 6}  # rows that one artifact or both do not know
ALWAYS = {
    "category_cluster_overlap.csv", "cluster_difficulty.csv", "cluster_map.csv", "patterns.json",
    "category_by_cluster.png", "cluster_difficulty.png", "cluster_map_by_category.png", "run_meta.json",
}
UNIFIED = {"unified_analysis.csv", "overlap_summary.json"}


def rows(word: str = "knee", prefix: str = "0") -> list[dict]:
    """The first 20 break three rules: long answer of two clauses with a comma at its end, odd question."""
    result: list[dict] = []
    for row in range(N):
        bad = row < 20
        answer = f"{word} hurts badly today, pills were taken often," if bad else word
        result.append(
            {
                "id": f"{prefix}{row:02d}",
                "question": "Tell." if bad else ("What hurts?" if row % 2 else "Is it bad?"),
                "context": f'The {answer} says "patient"\nnumber {row}; é.',
                "answers": {"text": [answer, word], "answer_start": [4, 4]} if row != 59
                else {"text": [], "answer_start": []},
                "planted_error": "overlong_span" if bad else "",
                "category": f"ward {row % 3}",  # a name that the table needs for itself
                "tags": ["a", f"b{row}"],
                "visits": None if row == 2 else row,
                "checked": None if row == 1 else row % 2 == 0,
                "nothing": None,
            }
        )
    return result


def write_dataset(path: Path, **changes: str) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(**changes)), encoding="utf-8")
    return path


def metrics() -> pd.DataFrame:
    rng = np.random.default_rng(11)
    confidence = np.where(np.arange(N) < 20, rng.uniform(0.05, 0.3, N), rng.uniform(0.4, 0.95, N))
    table = pd.DataFrame(
        {
            "id": [f"0{row:02d}" for row in range(N)],
            "confidence": confidence,
            "variability": np.where(np.arange(N) % 5 == 0, 0.3, 0.1),  # every fifth is ambiguous
            "num_epochs": 5,
            "never_learned": confidence < 0.2,
            "loss": -np.log(confidence),
        }
    )
    return table.drop(index=sorted(NO_METRICS))


def clusters() -> pd.DataFrame:
    """Noise, cluster 0 with the bad examples, clusters 1 and 2."""
    rng = np.random.default_rng(12)
    labels = np.array([-1 if row % 10 == 9 else 0 if row < 20 else 1 + row % 2 for row in range(N)])
    table = pd.DataFrame(
        {
            "id": [f"0{row:02d}" for row in range(N)],
            "cluster": labels,
            "dim1": labels + rng.normal(0, 0.1, N),
            "dim2": rng.normal(0, 1, N),
            "cluster_probability": np.where(labels < 0, 0.0, 0.9),
            "outlier_score": rng.uniform(0, 1, N),
        }
    )
    return table.drop(index=sorted(NO_CLUSTER)).iloc[::-1]  # files join on id, not on position


def write_artifact(directory: Path, name: str, table: pd.DataFrame, dataset: Path | None) -> Path:
    directory.mkdir()
    table.to_csv(directory / name, index=False)
    if dataset is not None:
        identity = load_split(str(dataset), "train", get_task("qa")).identity()
        meta = {"status": "finished", "datasets": [identity]}
        (directory / "run_meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return directory


def write_predictions(path: Path, predictions: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in predictions), encoding="utf-8")
    return path


@pytest.fixture
def house(tmp_path):
    """A directory with the dataset and both artifacts."""
    dataset = write_dataset(tmp_path / "notes.jsonl")
    write_artifact(tmp_path / "map", "cartography_metrics.csv", metrics(), dataset)
    write_artifact(tmp_path / "clusters", "cluster_assignments.csv", clusters(), dataset)
    return tmp_path


@pytest.fixture(autouse=True)
def empty_pictures(request, monkeypatch):
    """Pictures are drawn in the tests that ask for them; elsewhere they are empty files, for speed."""
    if "pictures" not in request.fixturenames:
        for plot in ("plot_category_by_cluster", "plot_difficulty", "plot_map"):
            monkeypatch.setattr(integrated, plot, lambda path, *rest: path.touch())


def run(house: Path, *flags: str | Path, output: str = "out") -> Path:
    argv = ["--cartography_dir", house / "map", "--cluster_dir", house / "clusters", "--output_dir", house / output]
    analyze_dataset.main([*map(str, argv), *map(str, flags)])
    return house / output


def refused(capsys, house: Path, *flags: str | Path) -> str:
    with pytest.raises(SystemExit) as stop:
        run(house, *flags)
    assert stop.value.code == 2
    assert not (house / "out").exists(), "nothing may be written for bad input"
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert ".py: error: " in line
    return line


def joined() -> pd.DataFrame:
    """What the artifacts say together, joined the slow way."""
    categories = categorize_examples(metrics().set_index("id"))
    labels = clusters().set_index("id")
    shared = [example for example in categories.index if example in labels.index]
    return pd.DataFrame([{"id": x, **categories.loc[x], **labels.loc[x]} for x in shared]).astype({"cluster": int})


# --- always ------------------------------------------------------------------------------------------------------


def test_writes_everything_and_names_it(house, pictures, capsys):
    output = run(house)  # the dataset is the recorded one
    assert {path.name for path in output.iterdir()} == ALWAYS
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in output.glob("*.png"))
    meta = read_json(output / "run_meta.json")
    assert meta["status"] == "finished" and meta["datasets"][0]["dataset"].endswith("notes.jsonl")
    printed = capsys.readouterr().out.strip().splitlines()
    assert "n = 56 with metrics and cluster" in printed[0]
    assert printed[-1] == f"wrote tables and pictures to {output}"


def test_tables_against_a_slow_count(house):
    output = run(house)
    expected = joined()
    cells = read_table(output / "category_cluster_overlap.csv")
    assert len(cells) == 3 * 4 and cells["n"].sum() == len(expected)  # empty cells are there with n = 0
    for cell in cells.itertuples():
        in_category, in_cluster = expected["category"] == cell.category, expected["cluster"] == cell.cluster
        n = sum(in_category & in_cluster)
        assert cell.n == n
        assert cell.share_of_category == pytest.approx(n / sum(in_category))
        assert cell.share_of_cluster == pytest.approx(n / sum(in_cluster))
        assert cell.share_of_all == pytest.approx(n / len(expected))
    difficulty = read_table(output / "cluster_difficulty.csv")
    assert difficulty["confidence_mean"].is_monotonic_increasing and set(difficulty["cluster"]) == {-1, 0, 1, 2}
    for row in difficulty.itertuples():
        inside = expected[expected["cluster"] == row.cluster]
        assert row.n == len(inside)
        assert row.loss_mean == pytest.approx(inside["loss"].astype(float).mean())
        assert row.hard_share == pytest.approx(list(inside["category"]).count("hard") / len(inside))
        values = inside["confidence"].to_numpy(dtype=float)
        margin = row.confidence_high - row.confidence_mean
        assert row.confidence_mean - row.confidence_low == pytest.approx(margin)
        # Student's t at 97.5% lies above the normal quantile and, from 5 examples on, below 2.8.
        assert 1.96 < margin / (values.std(ddof=1) / np.sqrt(len(values))) < 2.8
    points = read_table(output / "cluster_map.csv").set_index("id")
    assert points["category"].to_dict() == expected.set_index("id")["category"].to_dict()


def test_patterns_find_what_was_planted(house):
    patterns = read_json(run(house) / "patterns.json")
    expected = joined()
    assert patterns["n"] == 56 and patterns["num_clusters"] == 3
    assert patterns["noise_share"] == pytest.approx(np.mean(expected["cluster"] == -1))
    assert [found["cluster"] for found in patterns["hardest_clusters"]] == [0]
    assert patterns["hardest_clusters"][0]["n"] == sum(expected["cluster"] == 0)
    inside, confidence = expected["cluster"] == 0, expected["confidence"].astype(float)
    difference = confidence[inside].mean() - confidence[~inside].mean()
    assert patterns["hardest_clusters"][0]["difference_to_rest"] == pytest.approx(difference)
    for each in patterns["hardest_clusters"] + patterns["easiest_clusters"]:
        categories = list(expected["category"][expected["cluster"] == each["cluster"]])
        for name in ("hard", "ambiguous"):
            assert each[f"{name}_share"] == pytest.approx(categories.count(name) / len(categories))
    assert {found["cluster"] for found in patterns["easiest_clusters"]} <= {1, 2}
    counts = pd.crosstab(expected["category"], expected["cluster"]).to_numpy(dtype=float)
    independent = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / counts.sum()
    chi_square = ((counts - independent) ** 2 / independent).sum()
    found = patterns["category_cluster_association"]
    assert found["chi_square"] == pytest.approx(chi_square) and found["degrees_of_freedom"] == 6
    assert found["cramers_v"] == pytest.approx(np.sqrt(chi_square / (56 * 2)))
    assert found["share_of_cells_expecting_below_5"] == pytest.approx(np.mean(independent < 5))
    # "Tell." is a question of type "other", and all of them have low confidence.
    over = [(row["category"], row["question_type"]) for row in patterns["question_types_over_represented"]]
    assert over == [("hard", "other")]


def test_categories_are_cut_where_the_map_says(house):
    (house / "map" / "thresholds.json").write_text(json.dumps({"confidence": 0.9, "variability": 0.4}))
    output = run(house)
    assert read_json(output / "patterns.json")["thresholds"] == {"confidence": 0.9, "variability": 0.4}
    points = read_table(output / "cluster_map.csv").set_index("id")["category"]
    confidence = metrics().set_index("id")["confidence"]  # no variability is above 0.4, so nothing is ambiguous
    assert points.to_dict() == {x: "easy" if confidence[x] >= 0.9 else "hard" for x in points.index}


def test_patterns_find_nothing_in_noise():
    rng = np.random.default_rng(0)
    n = 4000
    frame = pd.DataFrame(
        {
            "confidence": rng.uniform(0, 1, n), "variability": rng.uniform(0, 0.5, n),
            "category": rng.choice(CATEGORIES, n), "cluster": pd.array(rng.integers(-1, 30, n), dtype="Int64"),
            "question_type": rng.choice(["what", "when", "who"], n),
        }
    )
    patterns = integrated.find_patterns(frame, (0.5, 0.25), "question_type")
    assert patterns["hardest_clusters"] == patterns["easiest_clusters"] == []
    assert patterns["question_types_over_represented"] == []
    assert patterns["category_cluster_association"]["cramers_v"] < 0.15


def test_one_cluster_or_tiny_clusters_are_no_pattern(house, pictures):
    clusters().assign(cluster=-1).to_csv(house / "clusters/cluster_assignments.csv", index=False)
    patterns = read_json(run(house) / "patterns.json")
    assert patterns["category_cluster_association"] is None and patterns["num_clusters"] == 0
    lonely = clusters().assign(cluster=range(len(clusters())), dim1=np.nan, dim2=np.nan)
    lonely.to_csv(house / "clusters/cluster_assignments.csv", index=False)
    output = run(house)
    assert read_json(output / "patterns.json")["hardest_clusters"] == []
    assert read_table(output / "cluster_difficulty.csv")["confidence_low"].isna().all()  # no interval from one example


def test_without_any_recorded_dataset(house, capsys, caplog):
    for directory in ("map", "clusters"):
        (house / directory / "run_meta.json").unlink()
    with caplog.at_level("INFO"):
        output = run(house)
    assert "no question types" in caplog.text
    assert not [key for key in read_json(output / "patterns.json") if key.endswith("_over_represented")]
    with pytest.raises(SystemExit) as stop:
        run(house, "--export_unified", output="new")
    assert stop.value.code == 2 and "--dataset" in capsys.readouterr().err and not (house / "new").exists()
    unified = run(house, "--export_unified", "--dataset", house / "notes.jsonl", output="new") / "unified_analysis.csv"
    assert len(read_table(unified)) == N


# --- the unified table -------------------------------------------------------------------------------------------


@pytest.fixture
def unified(house):
    some = [{"id": row["id"], "question": row["question"], "predicted_answer": "knee"} for row in rows()[:50]]
    predictions = write_predictions(house / "eval_predictions.jsonl", some)
    return run(house, "--export_unified", "--predictions", predictions)


def test_unified_columns_and_rows(unified):
    assert {path.name for path in unified.iterdir()} == UNIFIED | {"run_meta.json"}
    table = read_table(unified / "unified_analysis.csv")
    assert list(table) == [
        "id", "question", "context", "answer",
        "answers", "planted_error", "data_category", "tags", "visits", "checked", "nothing",
        "confidence", "variability", "num_epochs", "never_learned", "loss",
        "category", "cluster", "dim1", "dim2", "cluster_probability",
        *RULES, "dataset_error_score", "num_rules", "is_dataset_error", "predicted_answer", "span_error",
    ]
    source = rows()
    assert table["predicted_answer"].tolist()[:50] == ["knee"] * 50 and table["predicted_answer"][50:].isna().all()
    assert table["span_error"].tolist()[:50] == ["none"] * 50, "knee is the second annotated answer"
    assert table["id"].tolist() == [row["id"] for row in source]  # all examples, in the order of the dataset
    assert table["context"].tolist() == [row["context"] for row in source]  # quotes, line breaks and accents survive
    assert table["data_category"].tolist() == [row["category"] for row in source]
    assert [json.loads(text) for text in table["tags"]] == [row["tags"] for row in source]
    assert json.loads(table["answers"][0]) == source[0]["answers"]
    assert table["answer"][0] == source[0]["answers"]["text"][0] and table["answer"][59] == ""
    assert pd.isna(table["visits"][2]) and table["visits"][7] == 7 and table["nothing"].isna().all()
    assert table["checked"][0] is True and table["checked"][3] is False and pd.isna(table["checked"][1])


def test_unified_missing_is_empty_and_values_are_those_of_the_artifacts(unified):
    table = read_table(unified / "unified_analysis.csv")
    for row in range(N):
        assert pd.isna(table["confidence"][row]) == pd.isna(table["category"][row]) == (row in NO_METRICS)
        assert pd.isna(table["cluster"][row]) == pd.isna(table["dim1"][row]) == (row in NO_CLUSTER)
    expected = joined().set_index("id")
    both = table.set_index("id").loc[expected.index]
    assert both["category"].tolist() == expected["category"].tolist()
    for column in ("confidence", "loss", "cluster", "dim1", "cluster_probability"):
        assert both[column].to_numpy(dtype=float) == pytest.approx(expected[column].to_numpy(dtype=float), rel=1e-15)
    lines = (unified / "unified_analysis.csv").read_text(encoding="utf-8")
    assert ",5,false," in lines and ",5.0," not in lines  # integers stay integers beside empty cells


def test_unified_as_users_read_it(unified):
    df = pd.read_csv(unified / "unified_analysis.csv", dtype={"id": str})
    assert df["is_dataset_error"].dtype == bool and df["rule2_multi_clause"].dtype == bool
    chosen = df[(df["category"] == "ambiguous") & (df["is_dataset_error"])]
    assert 0 < len(chosen) < 20
    assert sum(df["cluster"] == -1) == sum(clusters()["cluster"] == -1)


def test_unified_rules_are_those_of_the_library(unified):
    table = read_table(unified / "unified_analysis.csv").astype(dict.fromkeys(RULES, "boolean"))
    source = rows()
    answers = [row["answers"]["text"][0] if row["answers"]["text"] else "" for row in source]
    texts = [row["question"] for row in source], [row["context"] for row in source], answers
    expected = flag_errors(*texts, ["knee"] * 50 + [None] * 10)
    for rule in RULES:
        assert table[rule].to_list() == expected[rule].to_list()
    assert table["dataset_error_score"].tolist() == expected["dataset_error_score"].tolist()
    assert table["num_rules"].tolist() == [9] * 50 + [7] * 10
    assert table["is_dataset_error"].tolist() == [row < 20 for row in range(N)]


def test_overlap_summary_against_a_slow_count(unified):
    table = read_table(unified / "unified_analysis.csv").astype(dict.fromkeys(RULES, "boolean"))
    summary = read_json(unified / "overlap_summary.json")
    assert summary["total_examples"] == N
    assert summary["coverage"] == {
        "cartography": {"n": 58, "share": 58 / 60}, "clusters": {"n": 57, "share": 57 / 60},
        "cartography_and_clusters": {"n": 56, "share": 56 / 60}, "error_rules": {"n": 60, "share": 1.0},
        "predictions": {"n": 50, "share": 50 / 60},
    }
    assert sum(cell["n"] for cell in summary["category_cluster_distribution"]) == 56
    for by in ("category", "cluster"):
        for record in summary[f"rule_rates_by_{by}"]:
            inside = table[table[by] == record[by]]
            assert record["n"] == len(inside)
            for rule in RULES:
                known = [flag for flag in inside[rule].to_list() if flag is not pd.NA]
                assert record[rule] == pytest.approx(sum(known) / len(known))
    regions = summary["high_overlap_regions"]
    assert summary["high_overlap_cuts"] == {
        "categories": ["hard", "ambiguous"], "min_examples": 10, "min_error_rate": 0.3
    }
    hard = table[(table["category"] == "hard") & (table["cluster"] == 0)]
    errors = int(hard["is_dataset_error"].sum())
    assert regions == [
        {"category": "hard", "cluster": 0, "total_examples": len(hard), "error_count": errors,
         "error_rate": errors / len(hard)}
    ]


def test_high_overlap_regions_cut_and_order():
    def cell(category: str, cluster: int | None, n: int, errors: int) -> pd.DataFrame:
        flags = [row < errors for row in range(n)]
        return pd.DataFrame({"category": category, "cluster": cluster, "is_dataset_error": flags})

    table = pd.concat(
        [
            cell("hard", 1, 10, 3), cell("ambiguous", -1, 20, 10), cell("hard", 2, 9, 9), cell("easy", 1, 50, 50),
            cell("hard", 3, 100, 29), cell("ambiguous", 1, 40, 20), cell("hard", None, 30, 30),
        ],
        ignore_index=True,
    )
    regions = unified_table.high_overlap_regions(table.astype({"cluster": "Int64"}))
    found = [(region["category"], region["cluster"], region["error_rate"]) for region in regions]
    assert found == [("ambiguous", 1, 0.5), ("ambiguous", -1, 0.5), ("hard", 1, 0.3)]


def test_without_predictions_two_rules_are_missing(house):
    output = run(house, "--export_unified")
    table = read_table(output / "unified_analysis.csv")
    missing = [rule for rule in RULES if table[rule].isna().all()]
    assert missing == ["rule4_pred_inside_gold_better", "rule8_pred_better_q_alignment"]
    assert (table["num_rules"] == 7).all()
    summary = read_json(output / "overlap_summary.json")
    assert summary["coverage"]["predictions"] is None
    assert summary["rule_rates"]["rule4_pred_inside_gold_better"] is None
    assert {path.name for path in output.glob("[!.]*")} == UNIFIED | {"run_meta.json"}, "nothing twice"
    run(house)  # a plain run into the same directory removes the table of the earlier one
    assert {path.name for path in output.iterdir()} == ALWAYS


def test_original_columns_never_overwrite_each_other(house):
    source = [{**row, "data_category": "other"} for row in rows()]
    (house / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in source), encoding="utf-8")
    table = read_table(run(house, "--export_unified") / "unified_analysis.csv")
    assert set(table["data_category"]) == {"other"} and table["data_data_category"][1] == "ward 1"


def test_default_output_directories(monkeypatch, tmp_path):
    assert analyze_dataset.parse_args([]).output_dir == "./integrated_analysis"
    assert analyze_dataset.parse_args(["--export-unified"]).output_dir == "./unified_export"
    assert analyze_dataset.parse_args(["--export_unified=true", "--output_dir", "x"]).output_dir == "x"


# --- what predictions get wrong -----------------------------------------------------------------------------------


def test_predictions_without_the_table_give_what_is_wrong_and_where(house, capsys):
    """Every third is cut, every third from elsewhere; the last ten are not predicted."""
    said = ["knee", "kne", "number"]
    some = [{"id": row["id"], "predicted_answer": said[number % 3]} for number, row in enumerate(rows()[:50])]
    output = run(house, "--predictions", write_predictions(house / "predictions.jsonl", some))
    assert {path.name for path in output.iterdir()} == {*ALWAYS, "wrong_answers.csv", "error_counts.csv"}
    wrong = read_table(output / "wrong_answers.csv")
    assert wrong["id"].tolist() == [row["id"] for number, row in enumerate(rows()[:50]) if number % 3]
    assert set(zip(wrong["predicted_answer"], wrong["span_error"], strict=True)) == {
        ("kne", "truncated"), ("number", "elsewhere")}
    assert {"data_category", "planted_error", "category", "cluster", "dataset_error_score"} <= set(wrong.columns)
    counts = read_table(output / "error_counts.csv").set_index(["by", "group", "error"])["n"]
    kind = dict(zip(said, ("none", "truncated", "elsewhere"), strict=True))
    metrics_of, cluster_of = categorize_examples(metrics().set_index("id"))["category"], clusters().set_index("id")
    slow: dict[tuple, int] = {}
    for number, row in enumerate(rows()[:50]):
        groups = {"all": "all", "category": metrics_of.get(row["id"]),
                  "cluster": cluster_of["cluster"].get(row["id"]),
                  "question_type": question_type_of(row["question"].lower())}
        for by, group in groups.items():
            if group is not None:
                key = by, str(group), kind[said[number % 3]]
                slow[key] = slow.get(key, 0) + 1
    found = {tuple(map(str, key)): n for key, n in counts.items() if n}
    assert found == slow and len({group for by, group, _ in found if by == "question_type"}) == 3
    told = capsys.readouterr().out
    assert f"{len(wrong)} of 50 predictions are wrong (wrong_answers.csv, error_counts.csv); by category" in told
    assert "truncated" in told and "elsewhere" in told


def test_predictions_need_the_texts(house, capsys):
    for name in ("map", "clusters"):
        (house / name / "run_meta.json").unlink()
    assert "--predictions needs its texts: name it with --dataset" in refused(capsys, house, "--predictions", "p")


# --- the rules alone ----------------------------------------------------------------------------------------------


def rules_alone(house: Path, *flags: str | Path) -> Path:
    analyze_dataset.main([str(word) for word in ("--error_rules", "--dataset", house / "notes.jsonl", "--output_dir",
                                                 house / "rules", *flags)])
    return house / "rules"


@pytest.mark.parametrize("with_predictions", [False, True])
def test_rules_of_a_dataset_alone(house, capsys, with_predictions):
    some = [{"id": row["id"], "predicted_answer": "hurts"} for row in rows()[:50]]
    file = write_predictions(house / "predictions.jsonl", some)
    output = rules_alone(house, "--predictions", file) if with_predictions else rules_alone(house)
    assert {path.name for path in output.glob("[!.]*")} == {"flagged_examples.csv", "rule_counts.csv",
                                                            "run_meta.json"}
    source = rows()
    answers = [row["answers"]["text"][0] if row["answers"]["text"] else "" for row in source]
    said = ["hurts"] * 50 + [None] * 10 if with_predictions else None
    expected = flag_errors([row["question"] for row in source], [row["context"] for row in source], answers, said)
    scores = expected["dataset_error_score"].tolist()
    order = sorted((place for place in range(N) if scores[place]), key=lambda place: (-scores[place], place))
    flagged = read_table(output / "flagged_examples.csv")
    assert flagged["id"].tolist() == [source[place]["id"] for place in order] and 20 <= len(order) < N
    assert flagged["category"].tolist() == [source[place]["category"] for place in order], "no map: the name is free"
    for rule in RULES:
        assert flagged.astype({rule: "boolean"})[rule].to_list() == [expected[rule][place] for place in order]
    counts = read_table(output / "rule_counts.csv").set_index(["by", "group", "rule"])
    kinds = [row["question"] for row in source]
    sizes = {kind: kinds.count(kind) for kind in set(kinds)}
    for rule in RULES:
        column = expected[rule].to_list()
        row = counts.loc["all", "all", rule]
        known = [value for value in column if value is not pd.NA]
        assert (row["flagged"], row["n"]) == (sum(known), len(known))
        assert pd.isna(row["share"]) if not known else row["share"] == sum(known) / len(known)
        by_type = counts.loc["question_type"].xs(rule, level="rule")
        assert sorted(by_type["n"]) == sorted(sizes.values()) or "pred" in rule
        assert by_type["flagged"].sum() == row["flagged"]
    assert counts.loc["all", "all", "is_dataset_error"]["flagged"] == 20
    told = capsys.readouterr().out
    assert f"{len(order)} of 60 examples break at least one of 9 rules, 20 at least 3" in told
    assert "wrote flagged_examples.csv and rule_counts.csv to" in told
    [silent] = [line for line in told.splitlines() if line.startswith("error rules that say nothing of their")]
    for rule in RULES:
        shares = expected[rule].astype("float64").dropna()
        number = rule.removeprefix("rule").partition("_")[0]
        assert bool(re.search(rf"\b{number}\b(?!%)", silent)) == (
            not 0 < shares.sum() < len(shares) / 2 or rule == "rule4_pred_inside_gold_better"), silent


def bits(source: list[dict]) -> list[float | None]:
    """The sum of the weights of the rules that fire for each example; None where none does."""
    answers = [row["answers"]["text"][0] if row["answers"]["text"] else "" for row in source]
    flags = flag_errors([row["question"] for row in source], [row["context"] for row in source], answers)
    fired = [[rule for rule in RULES if flags[rule].fillna(False)[place]] for place in range(N)]
    return [sum(RULE_WEIGHTS["measured"][rule] for rule in rules) if rules else None for rules in fired]


def test_measured_weights_rank_by_evidence(house, capsys):
    source = rows()
    for row in source[30:33]:
        row["question"] = "When did it hurt?"  # not at "knee": rule 5, which says much
    (house / "when.jsonl").write_text("".join(json.dumps(row) + "\n" for row in source), encoding="utf-8")
    output = rules_alone(house, "--dataset", house / "when.jsonl", "--rule_weights", "measured")
    flagged = read_table(output / "flagged_examples.csv").set_index("id")["dataset_error_score"]
    expected = {row["id"]: score for row, score in zip(source, bits(source), strict=True) if score is not None}
    assert flagged.is_monotonic_decreasing and flagged.to_dict() == pytest.approx(expected)
    assert 0 in expected.values(), "flagged, by a rule without weight"
    certain = sum(score >= 3 for score in expected.values())
    assert 0 < certain < len(expected)
    assert f"of 9 rules, {certain} have at least 3 bits of evidence" in capsys.readouterr().out


def test_measured_weights_in_the_joined_table(house, capsys):
    table = read_table(run(house, "--export_unified", "--rule_weights", "measured") / "unified_analysis.csv")
    assert table["dataset_error_score"].tolist() == pytest.approx([score or 0 for score in bits(rows())])
    told = capsys.readouterr().out
    assert "0 of 60 examples have at least 3 bits of evidence" in told or max(table["dataset_error_score"]) >= 3
    assert "\nerror rules that say nothing of their own here: " in told


def test_weights_are_of_rules(house, capsys):
    line = refused(capsys, house, "--rule_weights", "measured")
    assert "--rule_weights is for --error_rules and --export_unified" in line
    line = refused(capsys, house, "--export_unified", "--rule_weights", "measured", "--task", "nli")
    assert "--rule_weights: the error rules are for extractive question answering; this is --task nli" in line


def test_rules_alone_are_for_questions(house, capsys):
    with pytest.raises(SystemExit):
        rules_alone(house, "--task", "nli")
    assert "the error rules are for extractive question answering; this is --task nli" in capsys.readouterr().err


# --- bad input ---------------------------------------------------------------------------------------------------


def test_artifacts_missing_empty_truncated_or_unfinished(house, capsys):
    for directory, name in (("map", "cartography_metrics.csv"), ("clusters", "cluster_assignments.csv")):
        file, meta_file = house / directory / name, house / directory / "run_meta.json"
        whole, meta = file.read_bytes(), meta_file.read_text()
        file.write_bytes(b"")
        assert f"{name} is empty" in refused(capsys, house)
        meta_file.write_text(json.dumps({**json.loads(meta), "outputs": {name: len(whole)}}))
        file.write_bytes(whole[:-100])
        assert "truncated" in refused(capsys, house)
        meta_file.write_text(json.dumps({**json.loads(meta), "status": "failed"}))
        assert "is not whole" in refused(capsys, house)
        meta_file.write_text(meta)
        file.write_text(whole.decode().splitlines()[0] + "\n")
        assert "holds no examples" in refused(capsys, house)
        file.unlink()
        assert f"holds no {name}" in refused(capsys, house)
        file.write_bytes(whole)
    message = refused(capsys, house, "--cluster_dir", house / "nowhere")
    assert "no such file or directory" in message and "cluster_analysis.py" in message


def test_nan_and_missing_columns(house, capsys):
    table = metrics()
    table.loc[10, "variability"] = np.nan
    table.to_csv(house / "map/cartography_metrics.csv", index=False)
    assert "variability of 1 examples ('010')" in refused(capsys, house)
    metrics().to_csv(house / "map/cartography_metrics.csv", index=False)
    clusters().assign(cluster=lambda frame: frame["cluster"].where(frame["id"] != "010")).to_csv(
        house / "clusters/cluster_assignments.csv", index=False
    )
    assert "cluster of 1 examples ('010') is no whole number" in refused(capsys, house)
    for column, value in (("cluster", "x"), ("cluster_probability", "0,9")):
        table = clusters().astype(object)
        table.loc[table["id"] == "010", column] = value
        table.to_csv(house / "clusters" / "cluster_assignments.csv", index=False)
        assert f"{column} of 1 examples ('010') is no number" in refused(capsys, house)
    clusters().drop(columns="dim2").to_csv(house / "clusters/cluster_assignments.csv", index=False)
    assert "no column 'dim2'" in refused(capsys, house)


def test_another_dataset_is_refused_with_both_names(house, capsys):
    other = write_dataset(house / "other.jsonl", prefix="x")
    message = refused(capsys, house, "--dataset", other)
    assert "shares no ids" in message and "notes.jsonl" in message and "other.jsonl" in message
    changed = write_dataset(house / "changed.jsonl", word="foot")
    message = refused(capsys, house, "--dataset", changed)
    assert "other content" in message and "changed.jsonl" in message
    # Clusters of another dataset than the map.
    identity = load_split(str(other), "train", get_task("qa")).identity()
    (house / "clusters/run_meta.json").write_text(json.dumps({"status": "finished", "datasets": [identity]}))
    clusters().assign(id=lambda frame: "x" + frame["id"].str[1:]).to_csv(
        house / "clusters/cluster_assignments.csv", index=False
    )
    message = refused(capsys, house)
    assert "clusters was made from" in message and "other.jsonl" in message and "notes.jsonl" in message
    for directory in ("map", "clusters"):
        (house / directory / "run_meta.json").unlink()
    assert "share no ids" in refused(capsys, house)


def test_unknown_dataset_split_or_task(house, capsys):
    assert "no such file" in refused(capsys, house, "--dataset", house / "gone.jsonl")
    assert "only split is 'train'" in refused(capsys, house, "--split", "validation")
    assert "invalid choice: 'poems'" in refused(capsys, house, "--task", "poems")
    (house / "notes.jsonl").unlink()
    message = refused(capsys, house)
    assert "recorded in" in message and "--dataset" in message


def test_predictions_of_another_dataset_or_broken(house, capsys, caplog):
    file = house / "eval_predictions.jsonl"
    flags = ("--export_unified", "--predictions", file)
    assert "no such file" in refused(capsys, house, *flags)
    write_predictions(file, [{"id": "elsewhere-1", "question": "Q?", "predicted_answer": "x"}])
    message = refused(capsys, house, *flags)
    assert "shares no ids" in message and "elsewhere-1" in message and "notes.jsonl [train]" in message
    write_predictions(file, [{"id": "030", "question": "Another question?", "predicted_answer": "x"}])
    assert "has another question than" in refused(capsys, house, *flags)
    write_predictions(file, [{**rows()[30], "context": "Another note.", "predicted_answer": "x"}])
    assert "has another context than" in refused(capsys, house, *flags)
    write_predictions(file, [{"id": "030", "prediction": "x"}])
    assert "line 1: no 'predicted_answer'" in refused(capsys, house, *flags)
    write_predictions(file, [{"id": "030", "predicted_answer": 7}])
    assert "predicted_answer of '030' is not a text" in refused(capsys, house, *flags)
    file.write_text('{"id": "030", "predicted_answer": "x"}\n{"id": "03', encoding="utf-8")
    assert "line 2: malformed JSON" in refused(capsys, house, *flags)
    assert "line 2: malformed JSON" in refused(capsys, house, "--predictions", file)
    write_predictions(file, [{"id": f"0{row}", "predicted_answer": ""} for row in range(30, 45)])
    with caplog.at_level("INFO"):
        run(house, *flags)
    assert "covers 15 of 60 examples (25.0%)" in caplog.text


def test_never_writes_over_what_it_reads(house, capsys):
    for directory in ("map", "clusters"):
        before = (house / directory / "run_meta.json").read_bytes()
        with pytest.raises(SystemExit) as stop:
            run(house, output=directory)
        assert stop.value.code == 2 and "which is read" in capsys.readouterr().err
        assert (house / directory / "run_meta.json").read_bytes() == before


# --- pictures ----------------------------------------------------------------------------------------------------


def test_the_pictures_show_the_tables_beside_them(house, pictures):
    output = run(house)
    table, frame = read_table(output / "cluster_difficulty.csv"), joined()
    assert table["confidence_mean"].is_monotonic_increasing and len(table) == 4 and (table["n"] < 10).any()
    names = [f"{'noise' if row.cluster == -1 else row.cluster} (n = {row.n})" for row in table.itertuples()]
    check_shares(pictures["category_by_cluster.png"], table, names, frame)
    check_difficulty(pictures["cluster_difficulty.png"], table, names, read_json(output / "patterns.json"))
    check_map(pictures["cluster_map_by_category.png"], read_table(output / "cluster_map.csv"), frame)
    for name in ("category_by_cluster.png", "cluster_difficulty.png", "cluster_map_by_category.png"):
        assert caption(pictures[name]).startswith("notes.jsonl [train], n = 56 with metrics and cluster; cuts: ")


def check_shares(figure, table, names, frame):
    axis, bar = figure.axes
    values, texts, mesh = heat_map(axis)
    for row, cluster in enumerate(table["cluster"]):
        inside = frame["category"][frame["cluster"] == cluster].tolist()
        shares = [100 * inside.count(category) / len(inside) for category in CATEGORIES]
        assert values[row] == pytest.approx(shares)
        assert values[row] == pytest.approx([100 * table[f"{category}_share"][row] for category in CATEGORIES])
        assert texts[row].tolist() == [f"{share:.0f}" for share in shares]
    assert mesh.get_clim() == (0, 100) and bar.get_ylabel() == "examples of the cluster (%)"
    assert list(seen(axis, "x").values()) == list(CATEGORIES)
    assert seen(axis, "y") == {row + 0.5: name for row, name in enumerate(names)}


def check_difficulty(figure, table, names, patterns):
    axes = figure.axes
    assert [axis.get_xlabel().split()[0] for axis in axes] == ["confidence", "variability"]
    assert seen(axes[0], "y") == dict(enumerate(names)) and axes[0].get_ylim() == (3.5, -0.5)
    for axis, metric in zip(axes, ("confidence", "variability"), strict=True):
        dashed, dots = lines(axis)
        assert dashed[0] == [patterns["overall"][f"{metric}_mean"]] * 2
        assert dots == (table[f"{metric}_mean"].tolist(), [0, 1, 2, 3], COLORS[0].lower())
        assert segments(axis) == [[
            [[row[f"{metric}_low"], place], [row[f"{metric}_high"], place]]
            for place, row in table.iterrows() if row["n"] >= 10]]
    assert "from 10 examples on" in caption(figure)


def check_map(figure, points, frame):
    assert points["id"].tolist() == frame["id"].tolist()
    for axis, category in zip(figure.axes, CATEGORIES, strict=True):
        inside = points[frame["category"] == category]
        assert axis.get_title() == f"{category} (n = {len(inside)})"
        (_, grey, _), (_, shown, colors) = scatters(axis)
        assert grey == points[["dim1", "dim2"]].to_numpy().tolist()
        assert shown == inside[["dim1", "dim2"]].to_numpy().tolist()
        assert set(colors) == {CATEGORY_COLORS[category].lower()}


@pytest.mark.parametrize("count", [40, 41])
def test_pictures_of_many_clusters_show_the_largest_and_say_so(tmp_path, pictures, count):
    """The smallest of 41 clusters, which is neither the first nor the last, is not drawn."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame([
        {"cluster": cluster, "category": "easy" if row else "hard", "confidence": 0.1 + cluster / 60 + row / 1000,
         "variability": rng.random() / 2}
        for cluster in range(-1, count - 1) for row in range(9 if cluster == 17 else 10 + cluster % 3)])
    table = integrated.difficulty_table(frame)
    integrated.plot_category_by_cluster(tmp_path / "shares.png", table, "n")
    overall = {"confidence_mean": 0.5, "variability_mean": 0.25}
    integrated.plot_difficulty(tmp_path / "difficulty.png", table, overall, "n")
    kept = [cluster for cluster in range(-1, count - 1) if count == 40 or cluster != 17]
    names = [f"{'noise' if x == -1 else x} (n = {9 if x == 17 else 10 + x % 3})" for x in kept]
    values, texts, _ = heat_map(pictures["shares.png"].axes[0])
    axis = pictures["difficulty.png"].axes[0]
    assert list(seen(pictures["shares.png"].axes[0], "y").values()) == list(seen(axis, "y").values()) == names
    assert values[:, 2] == pytest.approx([100 / int(name[:-1].split()[-1]) for name in names])
    assert lines(axis)[1][0] == table["confidence_mean"][table["cluster"].isin(kept)].tolist()
    assert len(segments(axis)[0]) == (39 if count == 40 else 40)
    for figure in pictures.values():
        assert ("the 40 largest of 41 clusters" in caption(figure)) == (count == 41)


# --- the demo ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    path = Path(__file__).resolve().parents[2] / "demos/unified_analysis_example.py"
    spec = importlib.util.spec_from_file_location("unified_analysis_example", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_demo(demo, house, unified, capsys):
    capsys.readouterr()
    demo.main(["--unified_dir", str(unified), "--output_dir", str(house / "example")])
    names = {"error_rates.csv", "error_rates.png", "rule_distribution.csv", "rule_distribution.png",
             "flagged_examples.csv", "flagged_examples.png", "problem_examples.csv", "run_meta.json"}
    assert {path.name for path in (house / "example").iterdir()} == names
    table = read_table(unified / "unified_analysis.csv")
    rules = read_table(house / "example/rule_distribution.csv").set_index("rule")
    assert rules["applied"].to_dict() == table[list(RULES)].notna().sum().to_dict()
    assert rules.loc["rule2_multi_clause", "flagged"] == 20
    rates = read_table(house / "example/error_rates.csv").set_index(["category", "cluster"])
    hard = table[(table["category"] == "hard") & (table["cluster"] == 0)]
    cell = rates.loc[("hard", 0)]
    assert cell["n"] == len(hard) and cell["errors"] == hard["is_dataset_error"].sum()
    problems = read_table(house / "example/problem_examples.csv")
    assert set(problems["id"]) == set(
        table.loc[table["category"].isin(["hard", "ambiguous"]) & table["is_dataset_error"], "id"]
    )
    assert problems["dataset_error_score"].is_monotonic_decreasing
    fired = table.set_index("id").loc[problems["id"][0], list(RULES)]
    assert problems["rules"][0].split(";") == [rule for rule in RULES if fired[rule] is True or fired[rule] == 1]
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("wrote problem_examples.csv")


def test_demo_without_a_unified_table(demo, house, capsys):
    with pytest.raises(SystemExit) as stop:
        demo.main(["--unified_dir", str(house / "map"), "--output_dir", str(house / "example")])
    assert stop.value.code == 2 and not (house / "example").exists()
    assert "analyze_dataset.py --export_unified writes it" in capsys.readouterr().err


def test_the_pictures_of_the_demo_show_the_tables_beside_them(demo, house, unified, pictures):
    demo.main(["--unified_dir", str(unified), "--output_dir", str(house / "example")])
    table = read_table(unified / "unified_analysis.csv")
    wrong = (table[list(RULES)].sum(axis=1) >= 3).to_numpy()
    assert wrong.tolist() == table["is_dataset_error"].tolist()

    axis, _ = pictures["error_rates.png"].axes
    values, texts, mesh = heat_map(axis)
    cells = read_table(house / "example/error_rates.csv").set_index(["category", "cluster"])
    assert seen(axis, "y") == {0.5: "noise", 1.5: "0", 2.5: "1", 3.5: "2"}
    assert [text.split("-")[-1] for text in seen(axis, "x").values()] == list(CATEGORIES)
    for row, cluster in enumerate((-1, 0, 1, 2)):
        for column, category in enumerate(CATEGORIES):
            inside = wrong[((table["cluster"] == cluster) & (table["category"] == category)).to_numpy()]
            if not len(inside):
                assert np.isnan(values[row, column]) and texts[row, column] == ""
                assert (category, cluster) not in cells.index
                continue
            assert values[row, column] == pytest.approx(100 * inside.mean())
            assert values[row, column] == pytest.approx(100 * cells.loc[(category, cluster), "error_rate"])
            assert texts[row, column] == f"{100 * inside.mean():.0f}% of {len(inside)}"
    assert mesh.get_clim() == (0, np.nanmax(values))
    assert caption(pictures["error_rates.png"]) == "notes.jsonl [train], n = 56 with category and cluster; blank: none"

    (axis,) = pictures["rule_distribution.png"].axes
    rules = read_table(house / "example/rule_distribution.csv")
    assert list(seen(axis, "y").values()) == [rule.replace("_", " ") for rule in RULES]
    assert axis.get_ylim()[0] > axis.get_ylim()[1], "the first on top"
    assert axis.get_xticks().tolist() == [0, 20, 40, 60, 80, 100] and axis.get_xlim()[0] == 0
    shown = lying(axis)
    for place, rule in enumerate(RULES):
        known = table[rule].dropna()
        flagged = int(known.astype(bool).sum())
        assert shown[place][:3] == pytest.approx((place, 0, 100 * flagged / len(known)))
        assert shown[place][2] == pytest.approx(100 * rules["rate"][place])
        assert axis.texts[place].get_text() == f"{flagged} of {len(known)}"

    figure = pictures["flagged_examples.png"]
    points = read_table(house / "example/flagged_examples.csv")
    mapped = table[table["confidence"].notna()]
    assert points["id"].tolist() == mapped["id"].tolist()
    assert points["is_dataset_error"].tolist() == mapped["is_dataset_error"].tolist()
    (_, every, greys), *groups = scatters(figure.axes[0])
    assert every == points[["variability", "confidence"]].to_numpy().tolist() and set(greys) == {LIGHT_GREY}
    counted = {}
    for category, (name, shown, colors) in zip(CATEGORIES, groups, strict=True):
        inside = mapped[mapped["is_dataset_error"].astype(bool) & (mapped["category"] == category)]
        assert shown == inside[["variability", "confidence"]].to_numpy().tolist()
        assert set(colors) <= {CATEGORY_COLORS[category].lower()}
        assert name == f"flagged, {category} ({len(inside)})"
        counted[name] = CATEGORY_COLORS[category].lower()
    assert legend(figure) == {"all examples": LIGHT_GREY, **counted}
    assert "n = 58 with metrics" in caption(figure)


def test_a_rule_without_predictions_has_no_bar(demo, house, pictures):
    demo.main(["--unified_dir", str(run(house, "--export_unified")), "--output_dir", str(house / "example")])
    (axis,) = pictures["rule_distribution.png"].axes
    for place in (3, 7):
        assert axis.texts[place].get_text() == "no predictions" and lying(axis)[place][2] == 0
