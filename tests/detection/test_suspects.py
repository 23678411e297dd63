"""suspects.csv: its order, texts, reasons and proposals, from small artifacts made by hand."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from conftest import qa_rows, write_rows

import analyze_dataset
from datamap.core.files import read_json, read_table
from datamap.core.splits import load_split
from datamap.detection import known, suspects
from datamap.detection.base import Evidence
from datamap.detection.decisions import NO_ANSWER, read_decisions
from datamap.detection.reasons import reasons
from datamap.detection.suspects import marked, predicted, proposals, suspects_table
from datamap.tasks.registry import get_task

NO_SCORES = pd.DataFrame()


def by_confidence(evidence, scores):
    """In the stead of suspicion, whose weights may change."""
    return 1 - evidence.metrics["confidence"].to_numpy(dtype=float), "the data map"


def metrics(ids, **columns):
    n = len(ids)
    frame = pd.DataFrame({"id": ids, "confidence": np.linspace(0.9, 0.1, n), "variability": 0.1, "correctness": 1.0,
                          "num_epochs": 5, "forgetting_events": 0, "never_learned": False, "aum": 1.0, **columns})
    return frame


@pytest.fixture
def pairs(tmp_path):
    """Six sentence pairs; the first texts are there twice with different labels."""
    labels = ["neutral", "entailment", "neutral", "neutral", "contradiction", "neutral"]
    rows = [{"id": f"p{row}", "premise": "=A man eats." if row < 2 else f"Premise {row}.",
             "hypothesis": "Someone eats." if row < 2 else f"Hypothesis {row}.", "label": label}
            for row, label in enumerate(labels)]
    return load_split(str(write_rows(tmp_path / "pairs.jsonl", rows)), "train", get_task("nli"))


@pytest.fixture
def questions(tmp_path):
    """Eight questions, with what may be wrong with a span: 0 ends inside a word, 1 stands elsewhere, 2 has none."""
    rows = qa_rows(8, seed=3)
    for row, cut in ((0, 1),):
        rows[row]["answers"]["text"][0] = rows[row]["answers"]["text"][0][:-cut]
    rows[1]["answers"]["answer_start"] = [5000]
    rows[2]["answers"] = {"text": [], "answer_start": []}
    rows[7] |= {"context": rows[6]["context"], "question": rows[6]["question"].upper(),
                "answers": {"text": ["dust"], "answer_start": [rows[6]["context"].find("dust")]}}
    assert "dust" in rows[6]["context"]
    return load_split(str(write_rows(tmp_path / "notes.jsonl", rows)), "train", get_task("qa"))


def table_of(split, **columns):
    return metrics(split.ids, **columns).set_index("id")


# --- reasons -----------------------------------------------------------------------------------------------------


def test_reasons_of_labels(pairs):
    """Of the six: how 3 was learned and what models say of it, the copies 0 and 1, the forgotten 4."""
    gold = pairs.data["label"][:]
    names = pairs.data.features["label"].names
    probabilities = np.full((6, 3), 0.05)
    probabilities[np.arange(6), gold] = 0.9
    probabilities[3] = [0.95, 0.02, 0.03]  # classes in order: contradiction, entailment, neutral
    said = [names[number] for number in probabilities.argmax(axis=1)]
    evidence = Evidence(
        pairs, metrics=table_of(pairs, correctness=[1, 1, 1, 0, 0.4, 1], forgetting_events=[0, 0, 0, 0, 2, 0]),
        out_of_fold=table_of(pairs, fold=1, correctness=[1, 1, 1, 0, 1, 1], predicted_label=said),
        probabilities=probabilities, predictions=[*said[:4], None, said[5]],
        clusters=pd.DataFrame({"cluster": [0, 0, -1, 1, 1, 1]}), opinions={"a judge": np.array([0.9, 0, 0, 0, 0, 0])},
    )
    found = [text.split("; ") for text in reasons(evidence, NO_SCORES)]
    assert found[0] == ["the same text is labelled entailment in p1", "a judge holds it to be wrong"]
    assert found[1] == ["the same text is labelled neutral in p0"]
    assert found[2] == ["it lies in no cluster"]
    assert found[3] == [
        "never learned in 5 epochs",
        "a model trained without it says contradiction with probability 0.95, neutral with 0.03",
        "a model trained without it gave its label in none of 5 epochs",
        "the trained model says contradiction, though it was trained on this label",
    ]
    assert found[4] == ["right in 2 of 5 epochs only", "learned and forgotten 2 times"]
    assert found[5] == ["the model gave its label a probability of 0.10 on average, less than in 83% of the examples"]
    evidence.trained_on = False  # run.py --map_split: nothing was to be learned of them
    found = [text.split("; ") for text in reasons(evidence, NO_SCORES)]
    assert found[3][0] == "not trained on, and never right in 5 epochs"
    assert found[3][-1] == "the trained model says contradiction"
    assert found[4] == ["right in 2 of 5 epochs only", "right and then wrong 2 times"]


def test_reasons_from_neighbours(tmp_path):
    """Two groups of eight; one of the first is labelled as the second, two of the second as the first."""
    rng = np.random.default_rng(0)
    labels = [0] * 8 + [1] * 8
    labels[3], labels[14], labels[15] = 1, 0, 0
    rows = [{"id": f"r{row}", "text": f"Text {row}", "label": ("bad", "good")[label]}
            for row, label in enumerate(labels)]
    split = load_split(str(write_rows(tmp_path / "t.jsonl", rows)), "train", get_task("classification"))
    vectors = np.repeat([[1, 0, 0], [0, 1, 0]], 8, axis=0) + rng.normal(0, 0.01, (16, 3))
    found = reasons(Evidence(split, embeddings=vectors.astype(np.float32)), NO_SCORES)
    assert found[3] == "its five nearest neighbours are labelled bad"
    assert "nearest neighbours are labelled good" in found[14]
    assert not any("neighbours" in found[row] for row in (0, 1, 2, 4, 5, 6, 7))
    unknown = vectors.astype(np.float32)
    unknown[3] = np.nan
    assert reasons(Evidence(split, embeddings=unknown), NO_SCORES)[3] == ""


def test_reasons_of_answers(questions):
    golds = questions.task.readable(questions.data)["answer"]
    answers = [*golds]
    answers[3], answers[4], answers[5], answers[2] = "nothing", "", f"to {golds[5]}", "Oslo"
    evidence = Evidence(questions, out_of_fold=table_of(questions, predicted_answer=answers),
                        predictions=[None] * 7 + [f"very {golds[7]} road"])
    found = [text.split("; ") for text in reasons(evidence, NO_SCORES)]
    assert found[0] == ["the span ends inside a word"]
    assert found[1] == ["the annotated answer does not stand at its answer_start"]
    assert found[2] == ["a model trained without it answers 'Oslo', where none is annotated"]
    assert found[3] == ["a model trained without it answers 'nothing', which has no word of the annotated answer"]
    assert found[4] == [f"a model trained without it answers {NO_ANSWER}, where one is annotated"]
    said = f"a model trained without it answers 'to {golds[5]}', which holds the annotated answer and more"
    assert found[5] == [said]
    assert found[6] == ["the same text is answered 'dust' in ex-007"]
    assert found[7][0] == "the trained model answers 'very dust road', which holds the annotated answer and more"


def test_an_answer_of_one_article_is_an_answer(tmp_path):
    rows = qa_rows(2, seed=3)
    rows[0] |= {"context": "The old man saw the sea.", "answers": {"text": ["The"], "answer_start": [0]}}
    split = load_split(str(write_rows(tmp_path / "notes.jsonl", rows)), "train", get_task("qa"))
    [found, other] = reasons(Evidence(split, predictions=["the", rows[1]["answers"]["text"][0]]), NO_SCORES)
    assert found == "the answer has no word of content" and other == ""
    assert reasons(Evidence(split, predictions=["sea", None]), NO_SCORES)[0].endswith(
        "the trained model answers 'sea', which has no word of the annotated answer")


def test_where_nothing_is_known_the_detectors_are_named(pairs):
    scores = pd.DataFrame({"el2n": np.arange(6.0), "aum": np.arange(6.0)[::-1], "odd": np.nan})
    found = reasons(Evidence(pairs), scores)
    assert found[5] == "among the 5% most suspicious by el2n" and found[2] == ""
    assert "labelled" in found[0] and "aum" not in found[0]


# --- the table ---------------------------------------------------------------------------------------------------


def test_most_suspicious_first_and_unknown_last(pairs):
    table = suspects_table(Evidence(pairs), NO_SCORES, np.array([0.1, 0.9, np.nan, 0.9, 0.5, 0]), "texts")
    assert table["id"].tolist() == ["p1", "p3", "p4", "p0", "p5", "p2"]
    assert list(table) == ["id", "suspicion", "premise", "hypothesis", "gold", "predicted", "reasons", "evidence",
                           "proposed", "decision", "corrected"]
    assert table["gold"].tolist()[:2] == ["entailment", "neutral"] and set(table["evidence"]) == {"texts"}
    assert table[["predicted", "proposed", "decision", "corrected"]].isna().all(axis=None)


def test_the_answer_is_marked_in_its_surroundings(questions):
    table = suspects_table(Evidence(questions), NO_SCORES, np.arange(8.0)[::-1] / 10, "texts").set_index("id")
    context, answer = questions.data["context"][3], questions.data["answers"][3]
    start, text = answer["answer_start"][0], answer["text"][0]
    shown = table.loc["ex-003", "context"]
    assert f"[[{text}]]" in shown and shown.replace("[[", "").replace("]]", "").strip(". ") in context
    assert shown.index("[[") <= 104 and context[:start].endswith(shown.split("[[")[0].removeprefix("... "))
    assert "[[" not in table.loc["ex-001", "context"] and "[[" not in table.loc["ex-002", "context"]
    assert table.loc["ex-002", "gold"] == NO_ANSWER


@pytest.mark.parametrize(
    "context, start, length, expected",
    [
        ("a bc d", 2, 2, "a [[bc]] d"), ("a bc", 0, 0, "a bc"),
        ("x" * 200 + " b " + "y" * 200, 201, 1, "... [[b]] ..."),
        ("word " * 60, 150, 4, "... " + "word " * 20 + "[[word]]" + " word" * 20 + " ..."),
    ],
)
def test_surroundings_are_whole_words(context, start, length, expected):
    assert marked(context, start, length).split() == expected.split()


def test_labels_are_proposed_where_models_agree(pairs):
    """Out of fold all say contradiction; only where that is probable, and somebody else says so too."""
    evidence = Evidence(
        pairs, out_of_fold=table_of(pairs, predicted_label="contradiction"),
        probabilities=np.array([[0.9, 0.1, 0], [0.4, 0.3, 0.3], [0.9, 0.1, 0], [0.9, 0, 0.1], [0.9, 0.1, 0],
                                [0.9, 0.1, 0]]),
    )
    assert proposals(evidence) == ["contradiction", None, "contradiction", "contradiction", None, "contradiction"]
    assert predicted(evidence) == ["contradiction"] * 6
    evidence.predictions = ["contradiction", "contradiction", "neutral", None, "contradiction", "contradiction"]
    assert proposals(evidence) == ["contradiction", None, None, None, None, "contradiction"]
    assert proposals(Evidence(pairs, predictions=["contradiction"] * 6)) == [None] * 6


def test_answers_are_proposed_where_models_agree_and_they_stand(questions):
    golds, context = questions.task.readable(questions.data)["answer"], questions.data["context"][3]
    word = context.split()[0]
    answers = [*golds]
    answers[3], answers[4], answers[5], answers[6] = word, "not there", word, ""
    final = [*answers]
    final[5] = "something else"
    evidence = Evidence(questions, out_of_fold=table_of(questions, predicted_answer=answers), predictions=final)
    assert proposals(evidence) == [None, None, None, word, None, None, NO_ANSWER, None]


@pytest.mark.parametrize("rows", [[], [5, 0, 1], [3]])
def test_what_is_said_of_some_is_what_is_said_of_all(rows, pairs, questions):
    rng = np.random.default_rng(0)
    names = pairs.data.features["label"].names
    chosen = np.array(rows, dtype=np.int64)
    labels = [names[number] for number in rng.integers(0, 3, 6)]
    answers = [[*questions.task.readable(questions.data)["answer"][:4], "Oslo", "", "dust", "to the dust"][row]
               for row in rng.permutation(8)]
    for evidence in (
        Evidence(pairs, metrics=table_of(pairs), predictions=labels,
                 out_of_fold=table_of(pairs, predicted_label=labels)),
        Evidence(questions, metrics=table_of(questions), predictions=answers,
                 out_of_fold=table_of(questions, predicted_answer=answers)),
    ):
        scores = pd.DataFrame({"aum": rng.normal(size=len(evidence)), "odd_question": rng.normal(size=len(evidence))})
        said, proposed = reasons(evidence, scores), proposals(evidence)
        assert len(set(said)) > 3 and len(set(proposed)) > 1
        assert reasons(evidence, scores, chosen) == [said[row] for row in rows]
        assert proposals(evidence, chosen) == [proposed[row] for row in rows]


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path, pairs, monkeypatch):
    """Artifacts of the pairs, without run_meta.json; suspicion is 1 - confidence."""
    monkeypatch.setattr(known, "suspicion", by_confidence)
    (tmp_path / "map").mkdir()
    metrics(pairs.ids).to_csv(tmp_path / "map" / "cartography_metrics.csv", index=False)
    return ["--find_errors", "--cartography_dir", str(tmp_path / "map"), "--dataset", pairs.name, "--task", "nli",
            "--output_dir", str(tmp_path / "suspects")]


def test_the_command_writes_the_table(tmp_path, finished, capsys):
    analyze_dataset.main(finished)
    table = read_table(tmp_path / "suspects" / "suspects.csv", ("id", "decision", "corrected"), ("premise",))
    assert table["id"].tolist() == ["p5", "p4", "p3", "p2", "p1", "p0"]
    assert table["premise"].tolist()[-1] == "'=A man eats."  # would run in a spreadsheet
    assert table["suspicion"].tolist() == pytest.approx([0.9, 0.74, 0.58, 0.42, 0.26, 0.1])
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["id", "suspicion", "gold", "predicted", "reasons"] and said[1].startswith("p5")
    assert said[-2] == ("evidence: data map; not given: --embedding_dir, --cluster_dir, --predictions, "
                        "out_of_fold.csv (run.py --cross_fit)")
    assert said[-1].startswith("wrote suspects.csv, 6 examples, to ")
    meta = read_json(tmp_path / "suspects" / "run_meta.json")
    assert meta["status"] == "finished" and list(meta["outputs"]) == ["suspects.csv"]


def test_what_is_known_is_worked_out_once_until_a_file_changes(tmp_path, finished, pairs):
    at = tmp_path / "map" / "cartography_metrics.csv"
    first = known.known_of(pairs, str(at))

    def judge(split, suspicion):
        return {split.ids[0]: suspects.Opinion(1.0, "wrong", None)}

    table, _ = suspects.find_suspects(pairs, str(at), judge=judge)
    assert suspects.JUDGE in table and not first.evidence.opinions
    assert known.known_of(pairs, str(at)) is first
    folds = metrics(pairs.ids, fold=1, predicted_label="neutral")
    folds.to_csv(tmp_path / "map" / "out_of_fold.csv", index=False)
    second = known.known_of(pairs, str(at))
    assert first.evidence.out_of_fold is None and second.evidence.out_of_fold is not None
    assert known.known_of(pairs, str(at), seed=1) is not second
    changed = metrics(pairs.ids, confidence=0.5)
    changed.to_csv(at, index=False)
    again = known.known_of(pairs, str(at)).evidence.metrics
    assert again is not None and (again["confidence"] == 0.5).all()


def test_out_of_fold_answers_come_from_beside_the_map(tmp_path, finished, pairs, capsys):
    folds = metrics(pairs.ids, fold=1, predicted_label="neutral")
    for name in ("contradiction", "entailment", "neutral"):
        folds[f"probability_{name}"] = float(name == "neutral")
    folds.to_csv(tmp_path / "map" / "out_of_fold.csv", index=False)
    analyze_dataset.main(finished)
    table = read_table(tmp_path / "suspects" / "suspects.csv").set_index("id")
    assert table["proposed"].to_dict()["p4"] == "neutral" and pd.isna(table.loc["p5", "proposed"])
    assert "evidence: data map, out_of_fold.csv; not given" in capsys.readouterr().out


def test_what_somebody_worked_on_is_not_replaced(tmp_path, finished, refused):
    analyze_dataset.main(finished)
    analyze_dataset.main(finished)  # as it was written
    file = tmp_path / "suspects" / "suspects.csv"
    file.write_bytes(file.read_bytes().replace(b',,\r\n', b',drop,\r\n', 1))
    before = file.read_bytes()
    assert "may hold decisions" in refused(analyze_dataset.main, *finished)
    assert file.read_bytes() == before


def test_what_a_killed_stage_wrote_is_replaced_unless_somebody_decided(tmp_path, finished, refused):
    analyze_dataset.main(finished)
    file, meta = tmp_path / "suspects" / "suspects.csv", tmp_path / "suspects" / "run_meta.json"
    whole = file.read_bytes()
    killed = json.loads(meta.read_text(encoding="utf-8")) | {"status": "running"}
    del killed["outputs"]
    meta.write_text(json.dumps(killed), encoding="utf-8")
    file.write_bytes(whole.replace(b",,\r\n", b",drop,\r\n", 1))
    assert "may hold decisions" in refused(analyze_dataset.main, *finished)
    file.write_bytes(whole)
    analyze_dataset.main(finished)
    assert file.read_bytes() == whole


def test_decisions_rank_what_is_left_and_stay_in_the_file(tmp_path, finished, capsys, refused):
    reviewed = tmp_path / "reviewed.csv"
    reviewed.write_text("ID;Decision;Corrected\np5;drop;\np4;Fix;neutral\np3;;\np0;keep;\n")
    analyze_dataset.main([*finished, "--decisions", str(reviewed)])
    file = tmp_path / "suspects" / "suspects.csv"
    table = read_table(file, ("id",), ("corrected",))
    assert set(table["id"][:3]) == {"p1", "p2", "p3"} and table["decision"][:3].isna().all()
    assert dict(zip(table["id"][3:], table["decision"][3:], strict=True)) == {"p5": "drop", "p4": "fix", "p0": "keep"}
    assert table.set_index("id")["corrected"]["p4"] == "neutral"
    assert set(table["evidence"]) == {"the data map, 3 decisions"}
    said = capsys.readouterr().out
    assert "of 2 reviewed pairs labelled neutral 1 was wrong, of 1 labelled contradiction 1" in said
    again = read_decisions(file)
    assert again[again["decision"] != ""]["id"].tolist() == table["id"].tolist()[3:]
    reviewed.write_text("id,decision\nother,keep\n")
    finished[-1] = str(tmp_path / "more")
    assert "decides on 1 ids that" in refused(analyze_dataset.main, *finished, "--decisions", reviewed)
    assert "which is read" in refused(analyze_dataset.main, *finished[:-1], tmp_path, "--decisions", reviewed)


def test_without_a_decision_the_order_is_that_of_suspicion(tmp_path, finished, capsys):
    reviewed = tmp_path / "reviewed.csv"
    reviewed.write_text("id,decision\np5,\n")
    analyze_dataset.main([*finished, "--decisions", str(reviewed)])
    table = read_table(tmp_path / "suspects" / "suspects.csv")
    assert table["id"].tolist() == ["p5", "p4", "p3", "p2", "p1", "p0"]
    assert "no decisions yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--find_errors", "--export_unified"], "write different files"),
        (["--decisions", "d.csv"], "--decisions is for --find_errors"),
        (["--embedding_dir", "e"], "--embedding_dir is for --find_errors"),
        (["--find_errors", "--cartography_dir", "none"], "no such file or directory"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, said, refused):
    assert said in refused(analyze_dataset.main, *flags)


def test_the_dataset_must_be_known(tmp_path, finished, refused):
    argv = [word for word in finished if word not in ("--dataset", finished[finished.index("--dataset") + 1])]
    assert "records no dataset" in refused(analyze_dataset.main, *argv)
    assert not (tmp_path / "suspects").exists()


def test_reviewed_suspects_become_a_dataset(tmp_path, finished):
    """The whole road: found, decided on in the file itself, cleaned."""
    import dataset_filters

    analyze_dataset.main(finished)
    file = tmp_path / "suspects" / "suspects.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    table.loc[table["id"] == "p5", "decision"] = "drop"
    table.loc[table["id"] == "p3", ["decision", "corrected"]] = ["fix", "contradiction"]
    table.to_csv(file, sep=";", index=False, encoding="utf-16")
    dataset_filters.main(["--decisions", str(file), "--output_dir", str(tmp_path / "cleaned"), "--drop_above", "0.7"])
    lines = (tmp_path / "cleaned" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [(row["id"], row["label"]) for row in map(json.loads, lines)] == [
        ("p0", "neutral"), ("p1", "entailment"), ("p2", "neutral"), ("p3", "contradiction")
    ]


def test_a_text_that_is_missing_among_others_is_blank_on_the_console():
    """pandas says NaN of it in a column of texts."""
    table = pd.DataFrame({"id": ["a", "b"], "suspicion": [0.5, np.nan], "gold": ["yes", None],
                          "predicted": [None, "no " * 100], "reasons": [None, None]})
    lines = suspects.printed_suspects(table, 5).splitlines()
    assert lines[1].split() == ["a", "0.50", "yes"] and lines[2].startswith("b") and lines[2].endswith("...")
