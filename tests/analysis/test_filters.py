"""The filters against a slow plain-Python version, and every message that a user can get from it."""

import csv
import importlib.util
import json
import math
import statistics
import tempfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamap.analysis.error_rules import RULE_WEIGHTS, RULES, flag_errors
from datamap.analysis.filter_config import (
    apply_filters,
    filter_inputs,
    load_filter_config,
    validate_config,
    with_missing,
)
from datamap.analysis.filters import (
    BLOCKS,
    AmbiguousQuestionFilter,
    CategoryFilter,
    ClusterFilter,
    ConfidenceThresholdFilter,
    MetricFilter,
    RandomFilter,
    RuleFilter,
)
from datamap.core.artifacts import stage
from datamap.core.errors import UserError
from datamap.core.files import write_json
from datamap.core.splits import Split, load_split
from datamap.tasks.registry import get_task

METRICS = ("confidence", "variability", "aum", "never_learned")
CLUSTERS = ("cluster", "dim1", "dim2", "cluster_probability", "outlier_score")


def write_table(path, columns, rows):
    """``rows`` is {id: {column: value}}."""
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *columns])
        writer.writerows([example_id, *(row[column] for column in columns)] for example_id, row in rows.items())
    return str(path)


def metric_row(confidence, variability, aum=0.0, never_learned=False):
    return {"confidence": confidence, "variability": variability, "aum": aum, "never_learned": never_learned}


def cluster_row(cluster, probability):
    return {"cluster": cluster, "dim1": 0.0, "dim2": 0.0, "cluster_probability": probability, "outlier_score": 0.0}


def dataset_of(ids):
    return datasets.Dataset.from_dict({"id": ids, "question": [f"question {example_id}" for example_id in ids]})


# --- the slow version --------------------------------------------------------------------------------------------


def slow_categories(metrics):
    confidence = statistics.median(row["confidence"] for row in metrics.values())
    variability = statistics.median(row["variability"] for row in metrics.values())
    return {
        key: "ambiguous" if row["variability"] > variability else "easy" if row["confidence"] >= confidence else "hard"
        for key, row in metrics.items()
    }


def slow_keep(block, setting, ids, metrics, clusters):
    """The ids of the list ``ids`` that one filter keeps; examples without a row are kept."""
    if block == "ambiguous":
        category = slow_categories(metrics)
        ambiguous = [key for key in ids if category.get(key) == "ambiguous"]
        ambiguous.sort(key=lambda key: (-((1 - metrics[key]["confidence"]) + metrics[key]["variability"]), key))
        top = ambiguous[: math.ceil(Fraction(str(setting["top_fraction"])) * len(ambiguous))]
        return [key for key in ids if category.get(key) != "ambiguous" or key in top]
    if block == "category":
        category = slow_categories(metrics)
        return [key for key in ids if key not in metrics or category[key] in setting["categories"]]
    if block == "confidence":
        low, high = setting.get("min_confidence", 0), setting.get("max_confidence", 1)
        return [key for key in ids if key not in metrics or low <= metrics[key]["confidence"] <= high]
    if block == "cluster":
        return [
            key
            for key in ids
            if key not in clusters
            or clusters[key]["cluster"] not in setting.get("exclude_clusters", [])
            and clusters[key]["cluster_probability"] >= setting.get("min_probability", 0)
        ]
    name = setting["metric"]
    if "drop_fraction" in setting:
        known = sorted((key for key in ids if key in metrics), key=lambda key: (metrics[key][name], key))
        if setting["drop"] == "highest":
            known.sort(key=lambda key: (-metrics[key][name], key))
        dropped = known[: math.floor(Fraction(str(setting["drop_fraction"])) * len(known))]
        return [key for key in ids if key not in dropped]
    low, high = setting.get("min", -math.inf), setting.get("max", math.inf)
    return [key for key in ids if key not in metrics or low <= metrics[key][name] <= high]


# Few values, so that ties and values at a threshold are common.
unit = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0])
fractions = st.sampled_from([0.0, 0.07, 0.1, 0.33, 0.5, 0.9, 1.0])
some_ids = st.sampled_from(["001", "01", "1", "1.0", "12e5", "1200000", "NA", "nan", "é", "Z", "a,b", "a b", "x", "y"])
metric_rows = st.builds(metric_row, unit, st.sampled_from([0.0, 0.1, 0.3, 0.5]), st.integers(-2, 2), st.booleans())
cluster_rows = st.builds(cluster_row, st.integers(-1, 2), unit)


def setting_of(block, **optional):
    """A block with at least one of the optional settings."""
    return st.tuples(
        st.just(block), st.fixed_dictionaries({}, optional=optional).filter(lambda setting: len(setting) > 0)
    )


def metric_setting(**required):
    return st.tuples(
        st.just("metric"), st.fixed_dictionaries({"metric": st.sampled_from(METRICS), **required})
    )


one_block = st.one_of(
    st.tuples(st.just("ambiguous"), st.fixed_dictionaries({"top_fraction": fractions})),
    st.tuples(
        st.just("category"),
        st.fixed_dictionaries(
            {"categories": st.lists(st.sampled_from(["easy", "hard", "ambiguous"]), min_size=1, unique=True)}
        ),
    ),
    setting_of("confidence", min_confidence=st.sampled_from([0.0, 0.1]), max_confidence=st.sampled_from([0.5, 1])),
    setting_of("cluster", exclude_clusters=st.lists(st.integers(-1, 2), min_size=1), min_probability=unit),
    metric_setting(drop_fraction=fractions, drop=st.sampled_from(["lowest", "highest"])),
    metric_setting(min=st.sampled_from([-1, 0.1])),
    metric_setting(min=st.just(0), max=st.sampled_from([0.25, 1])),
)


@settings(deadline=None, max_examples=150)
@given(
    ids=st.lists(some_ids, min_size=4, unique=True),
    metrics=st.dictionaries(some_ids, metric_rows, min_size=6),  # so that most draws share ids
    clusters=st.dictionaries(some_ids, cluster_rows, min_size=6),
    blocks=st.lists(st.tuples(one_block, st.sampled_from(["keep", "drop", None])), min_size=1, max_size=4),
)
def test_equals_the_slow_version(ids, metrics, clusters, blocks):
    with tempfile.TemporaryDirectory() as directory:
        metrics_path = write_table(Path(directory) / "cartography_metrics.csv", METRICS, metrics)
        cluster_path = write_table(Path(directory) / "cluster_assignments.csv", CLUSTERS, clusters)
        config: dict[str, list[dict]] = {}
        order: dict[str, list[tuple]] = {}
        for (block, setting), missing in blocks:
            path = {"cluster_path": cluster_path} if block == "cluster" else {"metrics_path": metrics_path}
            config.setdefault(block, []).append({**setting, **path, "missing": missing})
            order.setdefault(block, []).append((block, setting, missing))
        expected, records = list(ids), []
        for block, setting, missing in (each for group in order.values() for each in group):
            listed = clusters if block == "cluster" else metrics
            before, absent = len(expected), sum(key not in listed for key in expected)
            expected = slow_keep(block, setting, expected, metrics, clusters)
            if missing == "drop" or missing is None and (block in ("category", "confidence") or "min" in setting):
                expected = [key for key in expected if key in listed]
            records.append((block, before, len(expected), absent))
            if not expected:
                break
        data = dataset_of(ids)
        unrelated = not set(ids) & set(metrics) and any(block != "cluster" for block in config)
        unrelated |= not set(ids) & set(clusters) and "cluster" in config
        if unrelated or not expected:
            with pytest.raises(UserError, match="shares no ids|leave none"):
                apply_filters(data, config)
            return
        filtered, report = apply_filters(data, config, return_report=True)

    assert filtered["id"][:] == expected
    assert filtered["question"][:] == [f"question {key}" for key in expected]
    found = [(each["filter"], each["before"], each["after"], each["missing_examples"]) for each in report["filters"]]
    assert found == records
    removed = [key for each in report["filters"] for names in each["removed"].values() for key in names]
    assert sorted(removed + expected) == sorted(ids)
    assert all(names for each in report["filters"] for names in each["removed"].values())
    json.dumps(report, allow_nan=False)


# --- single filters ----------------------------------------------------------------------------------------------


@pytest.fixture
def cartography(tmp_path):
    """Twelve examples a..l: six ambiguous (variability 0.3), three easy, three hard."""
    rows = {
        key: metric_row(round(0.1 + 0.07 * position, 2), 0.3 if position % 2 else 0.1, aum=position)
        for position, key in enumerate("abcdefghijkl")
    }
    (tmp_path / "cartography_output").mkdir()
    write_table(tmp_path / "cartography_output" / "cartography_metrics.csv", METRICS, rows)
    return str(tmp_path / "cartography_output")


@pytest.fixture
def clusters(tmp_path):
    rows = {key: cluster_row(position % 4 - 1, position / 11) for position, key in enumerate("abcdefghijkl")}
    (tmp_path / "cluster_output").mkdir()
    write_table(tmp_path / "cluster_output" / "cluster_assignments.csv", CLUSTERS, rows)
    return str(tmp_path / "cluster_output")


LETTERS = list("abcdefghijkl")


def kept(dataset, **config):
    return "".join(apply_filters(dataset, config)["id"])


def test_the_documented_call(cartography, clusters):
    filtered = apply_filters(
        dataset_of(LETTERS),
        {
            "ambiguous": {"enabled": True, "metrics_path": cartography, "top_fraction": 0.33},
            "cluster": {"cluster_path": clusters, "exclude_clusters": [-1], "min_probability": 0.7},
        },
    )
    # Ambiguous are b d f h j l, the least confident two stay; probability is position / 11, -1 are a e i.
    assert isinstance(filtered, datasets.Dataset)
    assert filtered["id"][:] == ["k"]


@pytest.mark.parametrize(
    ("fraction", "n", "ambiguous_kept", "dropped"),
    [
        (0, 10, 0, 0), (1, 10, 10, 10), (0.33, 1, 1, 0), (0.33, 3, 1, 0), (0.33, 4, 2, 1), (0.5, 5, 3, 2),
        (0.07, 100, 7, 7), (0.29, 100, 29, 29), (0.1, 30, 3, 3), (1e-6, 10, 1, 0),
    ],
)
def test_fractions_round_towards_keeping(tmp_path, fraction, n, ambiguous_kept, dropped):
    ambiguous = [f"{position:03}" for position in range(n)]
    rows = {key: metric_row(0.5, 0.3) for key in ambiguous} | {f"x{key}": metric_row(0.5, 0.1) for key in ambiguous}
    path = write_table(tmp_path / "m.csv", METRICS, rows)
    data = dataset_of([*ambiguous[::-1], "x000"])
    keep = AmbiguousQuestionFilter(metrics_path=path, top_fraction=fraction).decide(data).keep
    assert keep[-1] and keep.sum() == ambiguous_kept + 1
    assert np.array(data["id"][:])[keep][:-1].tolist() == ambiguous[:ambiguous_kept][::-1]  # ties: first by id
    only = dataset_of(ambiguous)
    for end in ("lowest", "highest"):
        decision = MetricFilter(metrics_path=path, metric="confidence", drop_fraction=fraction, drop=end).decide(only)
        assert (~decision.keep).nonzero()[0].tolist() == list(range(dropped))


def test_categories_come_from_the_whole_file_and_fractions_from_what_is_left(cartography):
    data = dataset_of(list("fjl"))  # all ambiguous in the file; their own median would make one of them so
    decision = CategoryFilter(metrics_path=cartography, categories=["ambiguous"]).decide(data)
    assert decision.keep.all()
    assert decision.thresholds == {"confidence": pytest.approx(0.485), "variability": pytest.approx(0.2)}
    assert kept(data, ambiguous={"metrics_path": cartography, "top_fraction": 0.33}) == "f"
    assert kept(data, ambiguous={"metrics_path": cartography, "top_fraction": 0.34}) == "fj"


def test_instability_is_high_variability_and_low_confidence(tmp_path):
    rows = {"a": (0.6, 0.4), "b": (0.5, 0.2), "c": (0.2, 0.21), "d": (0.9, 0.5)}  # 0.8, 0.7, 1.01, 0.6
    rows |= {f"x{position}": (0.5, 0.1) for position in range(4)}
    path = write_table(tmp_path / "m.csv", METRICS, {key: metric_row(*row) for key, row in rows.items()})
    _, report = apply_filters(
        dataset_of(list(rows)), {"ambiguous": {"metrics_path": path, "top_fraction": 0.5}}, return_report=True
    )
    (record,) = report["filters"]
    assert record["removed"] == {"ambiguous, instability not in the top 0.5": ["b", "d"]}
    cuts = {"confidence": 0.5, "variability": 0.15, "instability": 0.8}
    assert record["thresholds"] == {name: pytest.approx(cut) for name, cut in cuts.items()}


def test_blocks_are_applied_in_the_order_of_the_config(cartography):
    data = dataset_of(LETTERS)
    ambiguous = {"ambiguous": {"metrics_path": cartography, "top_fraction": 0.5}}
    confidence = {"confidence": {"metrics_path": cartography, "min_confidence": 0.35}}
    assert kept(data, **ambiguous, **confidence) == "efgik"
    assert kept(data, **confidence, **ambiguous) == "efghik"


def test_bounds_belong_to_what_is_kept(cartography, clusters):
    data = dataset_of(LETTERS)
    limits = {"min_confidence": 0.31, "max_confidence": 0.45}
    assert kept(data, confidence={"metrics_path": cartography, **limits}) == "def"
    assert kept(data, metric={"metrics_path": cartography, "metric": "aum", "min": 3, "max": 5}) == "def"
    assert kept(data, cluster={"cluster_path": clusters, "min_probability": 10 / 11}) == "kl"


def test_drop_fraction_is_of_what_is_left(cartography):
    low = {"metrics_path": cartography, "metric": "aum", "min": 4}
    quarter = {"metric": "aum", "drop_fraction": 0.25, "drop": "lowest"}
    assert kept(dataset_of(LETTERS), metric=[low, quarter]) == "ghijkl"
    assert kept(dataset_of(LETTERS), metric=[{**quarter, "metrics_path": cartography}, low]) == "efghijkl"


def test_a_list_is_several_filters_and_metrics_path_is_named_once(cartography):
    blocks = [{"metric": "aum", "min": 2}, {"metric": "aum", "drop_fraction": 0.2, "drop": "highest"}]
    config = {"confidence": {"enabled": False, "metrics_path": cartography}, "metric": blocks}
    assert kept(dataset_of(LETTERS), **config) == "cdefghij"


@pytest.mark.parametrize(
    "block",
    [
        {"ambiguous": {"top_fraction": 1.0}},
        {"category": {"categories": ["easy", "hard", "ambiguous"]}},
        {"confidence": {"min_confidence": 0}},
        {"metric": {"metric": "aum", "min": 0}},
        {"metric": {"metric": "aum", "drop_fraction": 0, "drop": "highest"}},
        {"cluster": {"exclude_clusters": [7]}},
    ],
)
def test_examples_that_the_file_does_not_list(cartography, clusters, block):
    ((name, setting),) = block.items()
    path = {"cluster_path": clusters} if name == "cluster" else {"metrics_path": cartography}
    data = dataset_of(["new", *LETTERS[:3], "A"])
    outcomes = {"keep": (["new", "a", "b", "c", "A"], {}), "drop": (["a", "b", "c"], {"missing": ["new", "A"]})}
    for missing, (ids, removed) in outcomes.items():
        config = {name: {**setting, **path, "missing": missing}}
        filtered, report = apply_filters(data, config, return_report=True)
        assert filtered["id"][:] == ids
        assert report["filters"][0]["missing_examples"] == 2
        assert report["filters"][0]["removed"] == removed


@pytest.mark.parametrize(("block", "drops"), [
    ({"ambiguous": {"top_fraction": 1.0}}, False),
    ({"category": {"categories": ["easy", "hard", "ambiguous"]}}, True),
    ({"confidence": {"min_confidence": 0}}, True),
    ({"confidence": {"max_confidence": 1}}, True),
    ({"metric": {"metric": "aum", "min": 0}}, True),
    ({"metric": {"metric": "aum", "min": 0, "max": 99}}, True),
    ({"metric": {"metric": "aum", "max": 99}}, False),
    ({"metric": {"metric": "aum", "drop_fraction": 0, "drop": "lowest"}}, False),
    ({"cluster": {"exclude_clusters": [7]}}, False),
])
def test_what_says_what_to_keep_drops_what_its_file_does_not_list(cartography, clusters, block, drops, caplog):
    """A map of 3 of 8 examples: "keep only easy" must not keep five of which nothing is known."""
    ((name, setting),) = block.items()
    path = {"cluster_path": clusters} if name == "cluster" else {"metrics_path": cartography}
    data = dataset_of([*LETTERS[:3], *"VWXYZ"])
    caplog.set_level("INFO")
    filtered, report = apply_filters(data, {name: {**setting, **path}}, return_report=True)
    assert filtered["id"][:] == LETTERS[:3] + list("VWXYZ" * (not drops))
    (record,) = report["filters"]
    assert record["missing_examples"] == 5 and record["settings"]["missing"] == ("drop" if drops else "keep")
    assert record["removed"] == ({"missing": list("VWXYZ")} if drops else {})
    assert f"5 that its file does not list are {'dropped' if drops else 'kept'}" in caplog.text
    for missing in ("keep", "drop"):
        other = apply_filters(data, with_missing({name: {**setting, **path}}, missing))
        assert len(other) == {"keep": 8, "drop": 3}[missing]
        asked = apply_filters(data, with_missing({name: [{**setting, **path, "missing": "keep"}]}, missing))
        assert len(asked) == 8  # the block says it itself


def test_each_removed_example_has_one_reason(clusters):
    decision = ClusterFilter(cluster_path=clusters, exclude_clusters=[2, -1], min_probability=0.5).decide(
        dataset_of(LETTERS)
    )
    reasons = {reason: "".join(np.array(LETTERS)[mask]) for reason, mask in decision.removed.items()}
    assert reasons == {"cluster 2": "dhl", "cluster -1": "aei", "cluster_probability below 0.5": "bcf"}


def test_a_filter_does_not_judge_what_is_already_gone(cartography):
    among = np.arange(12) < 4
    low = ConfidenceThresholdFilter(metrics_path=cartography, min_confidence=0.2)
    decision = low.decide(dataset_of(LETTERS), among)
    assert np.flatnonzero(decision.keep).tolist() == [2, 3]
    assert np.flatnonzero(decision.removed["confidence below 0.2"]).tolist() == [0, 1]


def test_an_unknown_cluster_is_said(clusters, caplog):
    kept(dataset_of(LETTERS), cluster={"cluster_path": clusters, "exclude_clusters": [-1, 9]})
    assert "has no cluster 9; it has -1 to 2" in caplog.text


def test_ids_stay_strings(tmp_path):
    rows = {"001": 0.1, "1": 0.9, "12e5": 0.1, "1200000": 0.9, "NA": 0.1}
    path = write_table(tmp_path / "m.csv", METRICS, {key: metric_row(value, 0.1) for key, value in rows.items()})
    config = {"confidence": {"metrics_path": path, "max_confidence": 0.5}}
    assert apply_filters(dataset_of(list(rows)), config)["id"][:] == ["001", "12e5", "NA"]
    numbers = datasets.Dataset.from_dict({"id": [1, 1200000, 7]})
    config["confidence"]["missing"] = "keep"  # the file lists no 7
    assert apply_filters(numbers, config)["id"][:] == [7]


def test_no_enabled_block_changes_nothing(cartography):
    data = dataset_of(LETTERS)
    config = {"ambiguous": {"enabled": False, "metrics_path": "nowhere"}, "cluster": {"enabled": False}}
    for empty in ({}, config):
        filtered, report = apply_filters(data, empty, max_drop_percentage=0, return_report=True)
        assert filtered["id"][:] == LETTERS
        assert report == {"before": 12, "after": 12, "seed": 42, "filters": [], "size_matched_to": None}


# --- rules -------------------------------------------------------------------------------------------------------


CONTEXT = "The dose of aspirin was 81 mg daily. Aspirin was given on Monday, and, or later."


def test_a_map_and_clusters_in_one_directory(cartography, clusters):
    settings = {"metric": "confidence", "min": 0.3}, {"exclude_clusters": [-1]}
    apart = kept(dataset_of(LETTERS), metric={"metrics_path": cartography, **settings[0]},
                 cluster={"cluster_path": clusters, **settings[1]})
    file = Path(clusters) / "cluster_assignments.csv"
    file.rename(Path(cartography) / file.name)
    together = kept(dataset_of(LETTERS), metric={"metrics_path": cartography, **settings[0]},
                    cluster={"cluster_path": cartography, **settings[1]})
    assert together == apart and 0 < len(apart) < len(LETTERS)


@pytest.fixture
def questions():
    rows = [
        ("What is the dose of aspirin?", "81 mg"),
        ("dose", "and"),
        ("When was aspirin given?", "Aspirin,"),
        ("Was it given?", ""),
        ("aspirin dose of what", "aspirin was 81 mg daily. Aspirin was given on Monday, and, or"),
    ]
    return datasets.Dataset.from_dict(
        {
            "id": [str(position) for position in range(len(rows))],
            "question": [question for question, _ in rows],
            "context": [CONTEXT] * len(rows),
            "answers": [{"text": [text] if text else [], "answer_start": [0] if text else []} for _, text in rows],
        }
    )


@pytest.mark.parametrize("limit", range(5))
def test_rules_equal_the_score_of_each_example(questions, limit):
    answers = [(row["answers"]["text"] or [""])[0] for row in questions]
    scores = flag_errors(questions["question"][:], questions["context"][:], answers)["dataset_error_score"].tolist()
    expected = [str(position) for position, score in enumerate(scores) if score <= limit]
    assert Counter(scores).total() == 5 and min(scores) == 0 and max(scores) >= 3
    assert apply_filters(questions, {"rules": {"max_error_score": limit}})["id"][:] == expected
    if limit == 2:
        assert apply_filters(questions, {"rules": {}})["id"][:] == expected


def test_rules_by_their_measured_weights(questions, caplog):
    caplog.set_level("INFO")
    answers = [(row["answers"]["text"] or [""])[0] for row in questions]
    flags = flag_errors(questions["question"][:], questions["context"][:], answers)
    scores = [sum(RULE_WEIGHTS["measured"][rule] for rule in RULES if flags[rule].fillna(False)[place])
              for place in range(len(questions))]
    measured = {"rule_weights": "measured"}
    assert min(scores) < 1 < 3 <= max(scores)
    for cut, keeps in (({}, lambda score: score < 3), ({"max_error_score": 1}, lambda score: score <= 1)):
        filtered, report = apply_filters(questions, {"rules": {**measured, **cut}}, return_report=True)
        assert filtered["id"][:] == [str(place) for place, score in enumerate(scores) if keeps(score)]
    assert list(report["filters"][0]["removed"]) == ["dataset_error_score above 1"]
    assert "rules 4 and 8 not applied (they need the predictions of a model)" in caplog.text
    assert apply_filters(questions, {"rules": {"rule_weights": "equal"}})["id"][:] == apply_filters(
        questions, {"rules": {}})["id"][:]


def test_single_rules_remove_what_any_of_them_flags(questions):
    """Rules 7 and 9 are told from the texts here: how the answer begins and ends, how the question begins."""
    texts = [(row["answers"]["text"] or [""])[0] for row in questions]
    is_cut = [text.endswith((",", "and", "or")) or text.startswith("and") for text in texts]
    is_no_question = [not text.startswith(("What", "When", "Was")) for text in questions["question"]]
    rule7, rule9 = "rule7_boundary_weirdness", "rule9_question_not_starting_with_qword"
    assert any(is_cut) and any(is_no_question) and is_cut != is_no_question
    for rules, flagged in (([rule7], is_cut), ([rule9], is_no_question),
                           ([rule9, rule7], np.logical_or(is_cut, is_no_question))):
        filtered, report = apply_filters(questions, {"rules": {"rules": rules}}, return_report=True)
        assert filtered["id"][:] == [str(place) for place, is_flagged in enumerate(flagged) if not is_flagged]
        [record] = report["filters"]
        assert set(record["removed"]) <= set(rules) and record["settings"]["rules"] == rules
    assert record["removed"][rule9] == [str(place) for place, found in enumerate(is_no_question) if found]
    both = {"rules": [{"rules": [rule7]}, {"max_error_score": 1}]}
    by_score = apply_filters(questions, {"rules": {"max_error_score": 1}})["id"][:]
    assert apply_filters(questions, both)["id"][:] == [one for one in by_score if not is_cut[int(one)]]


def test_single_rules_that_need_predictions(questions, tmp_path):
    """Rule 8 fires for example 2 alone, of those that have a prediction; where there is none it says nothing."""
    file = tmp_path / "eval_predictions.jsonl"
    predictions = {"2": "aspirin was given on Monday", "3": "x", "1": None}
    file.write_text("".join(json.dumps({"id": key, "predicted_answer": text}) + "\n"
                            for key, text in predictions.items()))
    rules = {"rules": ["rule8_pred_better_q_alignment"], "predictions_path": str(tmp_path)}
    assert apply_filters(questions, {"rules": rules})["id"][:] == ["0", "1", "3", "4"]
    assert apply_filters(questions, {"rules": {**rules, "missing": "drop"}})["id"][:] == ["3"]


def test_rules_with_predictions(questions, tmp_path):
    file = tmp_path / "eval_predictions.jsonl"
    predictions = {"2": "aspirin was given on Monday", "3": "x", "1": None}
    lines = [json.dumps({"id": key, "predicted_answer": text}) for key, text in predictions.items()]
    file.write_text("\n".join(lines) + "\n")
    answers = [(row["answers"]["text"] or [""])[0] for row in questions]
    in_order = [predictions.get(str(position)) for position in range(5)]
    with_predictions = flag_errors(questions["question"][:], questions["context"][:], answers, in_order)
    without = flag_errors(questions["question"][:], questions["context"][:], answers)
    score, lower = with_predictions["dataset_error_score"], without["dataset_error_score"]
    assert score[2] > lower[2]  # the prediction makes the difference for example 2
    decision = RuleFilter(max_error_score=int(lower[2]), predictions_path=str(tmp_path)).decide(questions)
    assert decision.keep.tolist() == [bool(value <= lower[2]) for value in score]
    assert decision.missing.tolist() == [True, True, False, False, True]  # judged by seven rules
    decision = RuleFilter(max_error_score=9, predictions_path=str(file), missing="drop").decide(questions)
    assert decision.keep.tolist() == [False, False, True, True, False]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": "1"}'], "no 'predicted_answer'"),
        (['{"id": "1", "predicted_answer": "a"}', "{"], "line 2: malformed JSON"),
        (['{"id": "1", "predicted_answer": "a"}'] * 2, "1 ids occur more than once"),
        (['{"id": "1", "predicted_answer": 4}'], "predicted_answer of '1' is not a text"),
        (['{"id": "other", "predicted_answer": "a"}'], "shares no ids with the dataset"),
    ],
)
def test_bad_predictions(questions, tmp_path, lines, message):
    (tmp_path / "p.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        apply_filters(questions, {"rules": {"predictions_path": str(tmp_path / "p.jsonl")}})


def test_rules_need_the_columns_of_question_answering():
    with pytest.raises(UserError, match="filter rules: the dataset has no column 'answers', 'context'"):
        apply_filters(dataset_of(LETTERS), {"rules": {}})


# --- the size-matched control ------------------------------------------------------------------------------------


def test_the_control_matches_the_size_and_depends_on_the_seed_alone(cartography):
    data = dataset_of(LETTERS)
    low = {"metric": {"metrics_path": cartography, "metric": "aum", "max": 4}}
    high = {"confidence": {"metrics_path": cartography, "min_confidence": 0.59}}
    assert kept(data, **low) == "abcde" and kept(data, **high) == "hijkl"
    draws = {seed: apply_filters(data, {**low, "random": {}}, seed=seed)["id"][:] for seed in range(30)}
    for seed, drawn in draws.items():
        assert len(drawn) == 5 and drawn == sorted(drawn)
        assert apply_filters(data, {"random": {"enabled": True}, **high}, seed=seed)["id"][:] == drawn
    counts = Counter(letter for drawn in draws.values() for letter in drawn)
    assert set(counts) == set(LETTERS)  # the others' choice plays no part
    assert len({tuple(drawn) for drawn in draws.values()}) > 20
    assert kept(data, **low, random={"enabled": False}) == "abcde"


def test_the_report_of_a_control(cartography):
    config = {"category": {"metrics_path": cartography, "categories": ["hard"]}, "random": {}}
    filtered, report = apply_filters(dataset_of(LETTERS), config, seed=7, return_report=True)
    assert (report["before"], report["after"], report["seed"]) == (12, 3, 7)
    (record,) = report["filters"]
    assert record["filter"] == "random" and record["settings"]["num_examples"] == 3
    assert sorted(record["removed"]["not drawn"] + filtered["id"][:]) == LETTERS
    (matched,) = report["size_matched_to"]
    assert (matched["filter"], matched["before"], matched["after"]) == ("category", 12, 3)


@given(n=st.integers(1, 40), size=st.integers(0, 40), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_random_filter(n, size, seed):
    data = datasets.Dataset.from_dict({"id": [str(position) for position in range(n)]})
    keep = RandomFilter(num_examples=size, seed=seed).decide(data).keep
    assert keep.sum() == min(n, size)
    drawn = np.random.default_rng(seed).permutation(n)[:size]
    assert sorted(drawn.tolist()) == np.flatnonzero(keep).tolist()


# --- bad input ---------------------------------------------------------------------------------------------------


M = {"metrics_path": "m"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (["ambiguous"], "blocks by name (ambiguous, category, confidence, cluster, metric, rules, random), found"),
        ({"ambigous": {}}, "unknown filter 'ambigous' (did you mean 'ambiguous'?); there is ambiguous, category,"),
        ({"zzz": {}}, "unknown filter 'zzz'; there is ambiguous"),
        ({"ambiguous": True}, "filter ambiguous: expected its settings, like {\"enabled\": true}, found True"),
        ({"metric": []}, "filter metric: expected its settings"),
        ({"metric": [3]}, "filter metric: expected its settings"),
        ({"ambiguous": {**M, "top_fration": 0.3}}, "unknown setting 'top_fration' (did you mean 'top_fraction'?)"),
        ({"ambiguous": {**M, "zzz": 0.3}}, "'zzz'; it takes enabled, missing, metrics_path, top_fraction"),
        ({"ambiguous": {"enabled": False, "zzz": 0.3}}, "unknown setting 'zzz'"),
        ({"ambiguous": {**M, "enabled": "yes"}}, "filter ambiguous: enabled is 'yes'; expected true or false"),
        ({"ambiguous": {**M, "missing": "remove"}}, "missing is 'remove'; expected one of keep, drop"),
        ({"ambiguous": {"top_fraction": 0.5}}, "filter ambiguous needs metrics_path: the path of a cartography"),
        ({"ambiguous": {"metrics_path": 3}}, "metrics_path is 3; expected the path of"),
        ({"ambiguous": {"metrics_path": ""}}, "metrics_path is ''; expected the path of"),
        ({"ambiguous": {**M, "top_fraction": 33}}, "top_fraction is 33; expected a number from 0 to 1"),
        ({"ambiguous": {**M, "top_fraction": -0.1}}, "top_fraction is -0.1; expected a number from 0 to 1"),
        ({"ambiguous": {**M, "top_fraction": "0.3"}}, "top_fraction is '0.3'; expected a number"),
        ({"ambiguous": {**M, "top_fraction": math.nan}}, "top_fraction is nan; expected a number"),
        ({"ambiguous": {**M, "top_fraction": True}}, "top_fraction is True; expected a number"),
        ({"category": M}, "filter category needs categories: a list of easy, ambiguous, hard"),
        ({"category": {**M, "categories": ["hrad"]}}, "categories is ['hrad']; expected a list of easy, ambiguous"),
        ({"category": {**M, "categories": "hard"}}, "categories is 'hard'; expected a list"),
        ({"category": {**M, "categories": []}}, "categories is []; expected a list"),
        ({"confidence": M}, "filter confidence has nothing to filter by; give min_confidence or max_confidence"),
        ({"confidence": {**M, "min_confidence": 1.5}}, "min_confidence is 1.5; expected a number from 0 to 1"),
        (
            {"confidence": {**M, "min_confidence": 0.5, "max_confidence": 0.4}},
            "filter confidence: min_confidence 0.5 is above max_confidence 0.4",
        ),
        ({"cluster": {"exclude_clusters": [-1]}}, "filter cluster needs cluster_path"),
        ({"cluster": {"cluster_path": "c"}}, "has nothing to filter by; give exclude_clusters or min_probability"),
        ({"cluster": {"cluster_path": "c", "exclude_clusters": "-1,3"}}, "exclude_clusters is '-1,3'; expected a"),
        ({"cluster": {"cluster_path": "c", "exclude_clusters": [1.5]}}, "exclude_clusters is [1.5]; expected a"),
        ({"cluster": {"cluster_path": "c", "min_probability": 70}}, "min_probability is 70; expected"),
        ({"metric": {**M, "min": 0}}, "filter metric needs metric: one of confidence, variability"),
        ({"metric": {**M, "metric": "auc", "min": 0}}, "metric is 'auc'; expected one of confidence"),
        ({"metric": {**M, "metric": "aum"}}, "nothing to filter by; give min or max or drop_fraction"),
        ({"metric": {**M, "metric": "aum", "min": 2, "max": 1}}, "filter metric: min 2 is above max 1"),
        ({"metric": {**M, "metric": "aum", "min": math.inf}}, "min is inf; expected a number"),
        ({"metric": {**M, "metric": "aum", "drop_fraction": 0.1}}, "drop_fraction and drop (\"lowest\" or"),
        ({"metric": {**M, "metric": "aum", "min": 1, "drop": "lowest"}}, "drop_fraction and drop"),
        (
            {"metric": {**M, "metric": "aum", "min": 1, "drop_fraction": 0.1, "drop": "lowest"}},
            "drop_fraction and min or max are two filters; give a list of two blocks",
        ),
        ({"metric": {**M, "metric": "aum", "drop_fraction": 2, "drop": "lowest"}}, "drop_fraction is 2; expected"),
        ({"metric": {**M, "metric": "aum", "drop_fraction": 0.1, "drop": "low"}}, "drop is 'low'; expected one of"),
        ({"rules": {"max_error_score": 10}}, "max_error_score is 10; expected a whole number from 0 to 9"),
        ({"rules": {"max_error_score": 1.0}}, "max_error_score is 1.0; expected a whole number"),
        ({"rules": {"rules": ["rule7"]}}, "rules is ['rule7']; expected a list of rule1_length_anomaly, rule2_"),
        ({"rules": {"rule_weights": "even"}}, "rule_weights is 'even'; expected one of equal, measured"),
        ({"rules": {"rules": ["rule7_boundary_weirdness"], "rule_weights": "measured"}}, "rule_weights goes by how"),
        ({"rules": {"rules": []}}, "rules is []; expected a list of"),
        ({"rules": {"rules": ["rule7_boundary_weirdness"], "max_error_score": 1}}, "a list of two blocks"),
        ({"rules": {"rules": ["rule8_pred_better_q_alignment"]}}, "give predictions_path"),
        (
            {"rules": {"rules": ["rule7_boundary_weirdness"], "predictions_path": "p"}},
            "which rules does not name; leave it out",
        ),
        ({"random": {"seed": 3}}, "filter random: unknown setting 'seed'; it takes enabled"),
        ({"random": {}}, "filter random draws as many examples as the other blocks would keep; put them beside it"),
        ({"random": {}, "rules": {"enabled": False}}, "put them beside it"),
        ({"random": [{}, {}], "rules": {}}, "filter random is there twice"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(UserError) as error:
        validate_config(config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        apply_filters(dataset_of(LETTERS), config)


def test_the_classes_check_like_the_config():
    with pytest.raises(UserError, match="top_fraction is 33"):
        AmbiguousQuestionFilter(metrics_path="m", top_fraction=33)
    with pytest.raises(UserError, match="nothing to filter by"):
        ClusterFilter(cluster_path="c")
    with pytest.raises(UserError, match="num_examples is -1"):
        RandomFilter(num_examples=-1)


def test_validate_config_reads_no_file():
    config = {
        "rules": {},
        "metric": [
            {"metrics_path": "nowhere", "metric": "aum", "min": np.float64(0.5), "max": None},
            {"metric": "loss", "drop_fraction": 0.1, "drop": "highest"},
        ],
        "cluster": {"cluster_path": Path("nowhere"), "exclude_clusters": [-1], "enabled": False},
        "random": {},
    }
    filters = validate_config(config)
    assert [each.block for each in filters] == ["rules", "metric", "metric", "random"]
    assert isinstance(filters[2], MetricFilter) and filters[2].metrics_path == "nowhere"
    assert filter_inputs(config) == {"1.metric.metrics_path": "nowhere", "2.metric.metrics_path": "nowhere"}


def test_inputs_name_the_cuts_beside_a_metrics_file(tmp_path):
    """A map written again at other thresholds has the same metrics; a suite must not take it for the old one."""
    metrics = tmp_path / "cartography_metrics.csv"
    metrics.write_text("id,confidence,variability\na,0.5,0.1\n")
    config = {"category": {"metrics_path": str(metrics), "categories": ["easy"]}}
    assert filter_inputs(config) == {"0.category.metrics_path": str(metrics)}
    (tmp_path / "thresholds.json").write_text("{}")
    assert filter_inputs(config)["0.category.thresholds"] == str(tmp_path / "thresholds.json")
    config["category"]["metrics_path"] = str(tmp_path)
    assert filter_inputs(config) == {"0.category.metrics_path": str(tmp_path)}
    assert set(BLOCKS) == {"ambiguous", "category", "confidence", "cluster", "metric", "rules", "random"}


def test_missing_and_unfit_files(cartography, clusters, tmp_path):
    data = dataset_of(LETTERS)
    nothing = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="nothing: no such file or directory; run.py .*--enable_cartography"):
        kept(data, ambiguous={"metrics_path": nothing})
    with pytest.raises(UserError, match="nothing: no such file or directory; cluster_analysis.py writes"):
        kept(data, cluster={"cluster_path": nothing, "min_probability": 0.5})
    with pytest.raises(UserError, match="has no column 'cluster', 'cluster_probability'"):
        kept(data, cluster={"cluster_path": f"{cartography}/cartography_metrics.csv", "min_probability": 0.5})
    with pytest.raises(UserError, match="has no column 'loss'; it has confidence, variability, aum"):
        kept(data, metric={"metrics_path": cartography, "metric": "loss", "max": 1})
    with pytest.raises(UserError, match="shares no ids with the dataset .it has 'a', 'b', 'c', the dataset 'x', 'y'"):
        kept(dataset_of(["x", "y"]), cluster={"cluster_path": clusters, "min_probability": 0.5})
    with pytest.raises(UserError, match="filters join on a column 'id'; this dataset has question"):
        kept(data.remove_columns("id"), rules={})
    with pytest.raises(UserError, match="holds no examples"):
        kept(data.select([]), rules={})


@pytest.mark.parametrize("bad", ["", "NaN", "inf", "many"])
def test_a_missing_value_in_the_column_used(tmp_path, bad):
    rows = {key: metric_row(0.5, 0.1, aum=bad if key in "be" else 1) for key in LETTERS}
    path = write_table(tmp_path / "m.csv", METRICS, rows)
    # Also when the example is not in the dataset: the file is not whole.
    data = dataset_of(["a", "c"])
    with pytest.raises(UserError, match="aum of 2 examples .'b', 'e'. is missing or no finite number"):
        kept(data, metric={"metrics_path": path, "metric": "aum", "min": 0})


def test_nothing_left_and_too_much_dropped(cartography, clusters):
    data = dataset_of(LETTERS)
    hard = {"category": {"metrics_path": cartography, "categories": ["hard"]}}  # a, c, e
    late = {"cluster": {"cluster_path": clusters, "min_probability": 0.5}}
    with pytest.raises(UserError, match=r"leave none of 12 examples \(category drops 9, cluster drops 3\); loosen"):
        apply_filters(data, {**hard, **late})
    with pytest.raises(UserError, match="leave none of 12 examples"):
        apply_filters(data, {**hard, **late, "random": {}})
    message = r"drop 9 of 12 examples \(75.0 %: category drops 9\), more than max_drop_percentage 74.9; loosen"
    with pytest.raises(UserError, match=message):
        apply_filters(data, hard, max_drop_percentage=74.9)
    with pytest.raises(UserError, match=r"75.0 %: random drops 9\)"):
        apply_filters(data, {**hard, "random": {}}, max_drop_percentage=50)
    assert len(apply_filters(data, hard, max_drop_percentage=75)) == 3
    for wrong in (101, -1, "5", math.nan):
        with pytest.raises(UserError, match="max_drop_percentage is .*; expected a number from 0 to 100"):
            apply_filters(data, hard, max_drop_percentage=wrong)  # type: ignore[arg-type]


def recorded_cartography(directory, split):
    """A finished cartography of ``split``, with metrics for every example."""
    with stage(directory, {}, owns=("cartography_metrics.*",), datasets=[split.identity()]):
        rows = {key: metric_row(position % 10 / 10, position % 7 / 20) for position, key in enumerate(split.ids)}
        write_table(directory / "cartography_metrics.csv", METRICS, rows)
    return str(directory)


def test_a_split_is_checked_against_the_recorded_one(tmp_path, caplog):
    split = Split(dataset_of(LETTERS), "letters", "train", "0" * 16, 12, get_task("qa"))
    path = recorded_cartography(tmp_path / "cartography", split)
    config = {"metric": {"metrics_path": path, "metric": "confidence", "min": 0.35}}
    assert apply_filters(split, config)["id"][:] == list("efghij")
    other = Split(dataset_of(LETTERS), "others", "train", "1" * 16, 12, get_task("qa"))
    with pytest.raises(UserError, match=r"made from letters \[train\].* of others \[train\] but other content"):
        apply_filters(other, config)
    unrelated = Split(dataset_of(["x"]), "others", "validation", "1" * 16, 1, get_task("qa"))
    with pytest.raises(UserError, match=r"letters \[train\] and shares no ids with others \[validation\]"):
        apply_filters(unrelated, config)
    write_json(Path(path) / "run_meta.json", {"status": "running"})
    with pytest.raises(UserError, match="is still running or was killed"):
        apply_filters(split, config)


def test_load_filter_config(tmp_path):
    file = tmp_path / "filters.json"
    config = {"rules": {"max_error_score": 1}, "metric": [{"metrics_path": "m", "metric": "aum", "min": 0}]}
    file.write_text(json.dumps(config))
    assert load_filter_config(file) == config
    for text, message in (
        ('{"rules": {},\n}', "filters.json, line 2: malformed JSON"),
        ("", "filters.json, line 1: malformed JSON"),
        ("[]", "filters.json: expected a JSON object"),
        ('{"rules": {"max_error_score": 99}}', "filters.json: filter rules: max_error_score is 99"),
        ('{"rules": {}, "rules": {}}', "filters.json: 'rules' occurs twice in one object; leave one"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            load_filter_config(file)
    with pytest.raises(UserError, match="nowhere.json: no such file"):
        load_filter_config(tmp_path / "nowhere.json")


# --- the demo ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    file = Path(__file__).parents[2] / "demos" / "filtering_examples.py"
    spec = importlib.util.spec_from_file_location("filtering_examples", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo(demo, tmp_path, capsys):
    split = load_split("demo:clinical", "train", get_task("qa"))
    path = recorded_cartography(tmp_path / "cartography", split)
    rows = {key: cluster_row(position % 5 - 1, 0.9) for position, key in enumerate(split.ids)}
    cluster_path = write_table(tmp_path / "cluster_assignments.csv", CLUSTERS, rows)
    demo.main(["--cartography_dir", path, "--cluster_dir", cluster_path])
    printed = capsys.readouterr().out
    for expected in ("cluster -1", "dataset_error_score above 2", "size-matched control", "are hard"):
        assert expected in printed


def test_the_demo_says_how_to_make_what_it_reads(demo, tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        demo.main(["--cartography_dir", str(tmp_path / "nothing")])
    assert status.value.code == 2
    assert "no such file or directory; run.py" in capsys.readouterr().err


def test_a_filter_takes_its_settings_by_name_alone():
    from datamap.analysis import filters

    every = [each for each in vars(filters).values()
             if isinstance(each, type) and issubclass(each, filters.Filter) and each is not filters.Filter]
    assert len(every) > 6
    for each in every:
        with pytest.raises(TypeError, match="positional"):
            each("somewhere")  # type: ignore[call-arg]
