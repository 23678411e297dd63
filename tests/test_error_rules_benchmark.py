"""The benchmark of the error rules: its figures against slow counts, its weights by hand, itself at a tiny size."""

import importlib
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from sklearn.metrics import average_precision_score

from datamap.analysis.error_rules import RULE_WEIGHTS, RULES, RULES_NEEDING_PREDICTIONS

INSIDE, BETTER = RULES_NEEDING_PREDICTIONS


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("error_rules")


def made(seed: int, answered: bool, share: float = 0.2, n: int = 120) -> pd.DataFrame:
    """Errors of two kinds; every rule fires on the more of them the later it comes, rule 4 only where rule 8 does."""
    rng = np.random.default_rng(seed)
    error = np.where(rng.random(n) < share, rng.choice(["wrong_span", "overlong_span"], n), "right")
    table = pd.DataFrame({"error": error, "passage": np.arange(n) // 3})
    for place, rule in enumerate(RULES):
        table[rule] = rng.random(n) < np.where(error == "right", 0.1, 0.1 + 0.05 * place)
    table[INSIDE] &= table[BETTER]
    if not answered:
        table[[INSIDE, BETTER]] = pd.NA
    return table.astype({rule: "boolean" for rule in RULES})


def made_set(bench, seed: int, answered: bool = True):
    clean = made(seed, False, share=0)
    return bench.Tables(clean, [made(seed + each, False) for each in (1, 2, 3)],
                        [made(seed + 1, True)] if answered else [])


def slow_rates(tables, fires) -> tuple[int, int, int, int]:
    """Wrong and fired, wrong, right and fired, right."""
    counts = [0, 0, 0, 0]
    for table in tables:
        for row in table.to_dict("records"):
            at = 0 if row["error"] != "right" else 2
            counts[at] += bool(fires(row))
            counts[at + 1] += 1
    return counts[0], counts[1], counts[2], counts[3]


@pytest.mark.parametrize("rule", [RULES[0], RULES[8], BETTER])
def test_figures_of_a_rule(bench, rule):
    tables = made_set(bench, 10)
    found = bench.rule_figures("made", tables, rule)
    planted = tables.answered if rule == BETTER else tables.planted
    hit, wrong, false, right = slow_rates(planted, lambda row: row[rule])
    assert found["precision"]["share"] == hit / (hit + false) and found["precision"]["n"] == hit + false
    assert found["recall"]["share"] == hit / wrong
    assert found["lift"] == pytest.approx(hit / (hit + false) / (wrong / (wrong + right)))
    clean = tables.clean[rule].tolist() if rule != BETTER else [True] * false + [False] * (right - false)
    assert (found["clean"]["share"], found["clean"]["n"]) == (sum(clean) / len(clean), len(clean))
    for each in ("clean", "precision", "recall"):
        assert 0 <= found[each]["low"] <= found[each]["share"] <= found[each]["high"] <= 1
    of_kind = [table[table["error"] == "overlong_span"] for table in planted]
    assert found["by_kind"]["overlong_span"]["share"] == pytest.approx(pd.concat(of_kind)[rule].mean())
    assert set(found["by_kind"]) == {"wrong_span", "overlong_span"}


def test_without_a_model_the_cells_are_empty(bench):
    tables = made_set(bench, 10, answered=False)
    rows = [bench.rule_figures("clinical", tables, rule) for rule in RULES]
    page = bench.rule_page(rows, [], bench.evidence([tables]))
    assert "rules 4 and 8 are empty" in page
    for line in (r"\| 8 \|( *\|)+", r"\| 8 \|  \| 0.00 \|"):
        assert re.search(f"^{line}$", page, re.MULTILINE)


def test_weights_of_evidence_by_hand(bench):
    sets = [made_set(bench, 10), made_set(bench, 20)]
    weights = bench.evidence(sets)

    def by_hand(of, fires) -> float:
        rates = []
        for tables in sets:
            hit, wrong, false, right = slow_rates(of(tables), fires)
            share = wrong / (wrong + right)
            rates.append(((hit + 10 * share) / wrong, (false + 10 * (1 - share)) / right))
        return math.log2(sum(rate[0] for rate in rates) / sum(rate[1] for rate in rates))

    texts = [rule for rule in RULES if rule not in RULES_NEEDING_PREDICTIONS]
    for rule in texts:
        expected = by_hand(lambda tables: tables.planted, lambda row, rule=rule: row[rule])
        assert weights[rule] == round(max(0.0, expected), 2)
    alone = max(0.0, by_hand(lambda tables: tables.answered, lambda row: row[BETTER] and not row[INSIDE]))
    both = by_hand(lambda tables: tables.answered, lambda row: row[INSIDE])
    assert weights[BETTER] == round(alone, 2) and weights[INSIDE] == round(max(0.0, both - alone), 2)
    assert weights[RULES[8]] > 1 and len(weights) == len(RULES)


def test_a_rule_that_hardly_fires_says_little(bench):
    tables = made_set(bench, 10)
    for table in tables.planted:
        table[RULES[0]] = table[RULES[1]] = False
    first = tables.planted[0]
    first.loc[first["error"].ne("right").idxmax(), RULES[1]] = True
    weights = bench.evidence([tables])
    assert weights[RULES[0]] == 0 and 0 < weights[RULES[1]] < 1


def test_a_set_is_judged_by_the_weights_of_others(bench):
    found = {"one": made_set(bench, 10), "two": made_set(bench, 20), "three": made_set(bench, 30)}
    rows = bench.score_figures("one", found, draws=20)
    assert [(row["rules"], row["weights"]) for row in rows] == [(7, "equal"), (7, "measured"), (9, "equal"),
                                                               (9, "measured")]
    weights = bench.evidence([found["two"], found["three"]])
    assert weights != bench.evidence(list(found.values()))
    values, called = [], []
    for table in found["one"].planted:
        score = [sum(weights[rule] for rule in RULES if row[rule] is True) for row in table.to_dict("records")]
        values.append(average_precision_score(table["error"] != "right", np.round(score, 2)))
        called += list(np.round(score, 2) >= 3)
    assert rows[1]["average_precision"] == pytest.approx(np.mean(values))
    assert rows[1]["called"] == pytest.approx(np.mean(called))
    assert rows[1]["gain"]["mean"] == pytest.approx(rows[1]["average_precision"] - rows[0]["average_precision"])
    assert [row["weights"] for row in bench.score_figures("one", {"one": found["one"]}, 20)] == ["equal", "equal"]


def test_the_weights_in_the_code_are_those_of_the_page():
    page = (REPOSITORY / "docs" / "rules.md").read_text(encoding="utf-8")
    table = page.partition("**Weights of evidence**")[2].partition("**")[0]
    shown = dict(re.findall(r"^\| (\d) \|.*\| ([\d.]+) \|$", table, re.MULTILINE))
    assert {rule: float(shown[str(place)]) for place, rule in enumerate(RULES, start=1)} == RULE_WEIGHTS["measured"]


def test_it_runs_with_a_model(bench, qa_dir, tmp_path, monkeypatch, capsys):
    small = "--max_steps 1 --hidden_size 32 --num_layers 1 --max_length 64 --doc_stride 16"
    monkeypatch.setattr(bench, "SETS", {"made": bench.RuleSet(str(qa_dir), "tiny", small, 20)})
    monkeypatch.setattr(bench, "ERROR_SHARE", 0.5)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "rules.md").write_text(f"before\n{bench.FIRST}\nold\n{bench.LAST}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    bench.main(["--seeds", "0", "1", "--trained", "1", "--draws", "10", "--output_dir", str(tmp_path / "o"),
                "--write_docs"])
    found = json.loads((tmp_path / "o" / "error_rules.json").read_text(encoding="utf-8"))
    assert [row["rule"] for row in found["rules"]] == list(RULES)
    assert [row["clean"]["n"] for row in found["rules"]] == [10 if rule in RULES_NEEDING_PREDICTIONS else 24
                                                             for rule in RULES]
    assert [row["recall"]["n"] for row in found["rules"]] == [10 if rule in RULES_NEEDING_PREDICTIONS else 24
                                                              for rule in RULES]
    tables = (tmp_path / "o" / "rules.md").read_text(encoding="utf-8")
    page = (tmp_path / "docs" / "rules.md").read_text(encoding="utf-8")
    assert page == f"before\n{bench.FIRST}\n\n{tables}\n{bench.LAST}\nafter\n" and tables in capsys.readouterr().out


def test_of_the_demo_what_is_right_is_taken(bench, tmp_path):
    bench.main(["--sets", "clinical", "--seeds", "0", "--trained", "0", "--max_examples", "60", "--draws", "5",
                "--output_dir", str(tmp_path)])
    rows = [json.loads(line) for line in (tmp_path / "data/clinical/train.jsonl").read_text().splitlines()]
    assert 40 < len(rows) < 60 and set(rows[0]) == {"id", "question", "context", "answers"}
    found = json.loads((tmp_path / "error_rules.json").read_text(encoding="utf-8"))
    assert {row["clean"]["n"] for row in found["rules"] if "clean" in row} == {len(rows)}


def test_data_that_is_not_there_is_one_line(bench, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(["--data_dir", str(tmp_path), "--sets", "xquad"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and "holds no squad_xquad_en/xquad.en.json" in line
