"""benchmarks/run_all.py: its table, its page, and what it says of rows that cannot be measured; and that the forms
that ours are held against find what ours find, as else another thing would be timed."""

import hashlib
import importlib
import json
import logging
import re
import shlex
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import REPOSITORY, qa_rows

from datamap.analysis.error_rules import RULES, flag_errors
from datamap.core.files import write_json

NOT_BUILT: set[str] = set()


@pytest.fixture(autouse=True)
def level_as_before():
    """A row says no warnings in its process, which is that of the tests here; the next file's want theirs."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def run_all(bench, monkeypatch):
    """With three rows that take no time, in this process: one finds, one has no peer and no bound, one breaks."""
    module, table, timing = bench("run_all"), bench("rows.table"), bench("timing")

    def fast(setting):
        (setting.scratch / "file").touch()
        return timing.Found([timing.ratio("theirs / ours", [4.0, 9.0, 8.0], [2.0, 3.0, 2.0], least=5.0),
                             timing.Measure("memory", [0.5], " GB", most=1.0)], details={"sizes": [1, 2]})

    def alone(setting):
        notes: list[str] = []
        assert timing.peer("no_such_library", "no-such", notes) is None
        return timing.Found([timing.Measure("ours", [setting.size(100, 2)], " s")], notes, {}, {"a.png": "A picture"})

    def broken(setting):
        raise RuntimeError("of two lines\nand more")

    rows = [table.Row(number, name, f"what {name} is", "theirs", "5 x", 1, measure)
            for number, name, measure in ((1, "fast", fast), (2, "alone", alone), (0, "broken", broken),
                                          (3, "later", None))]
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(module, "READS_DATA", ("alone",))
    monkeypatch.setattr(module, "in_own_process", lambda function, *args: function(*args))
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda number, mp_context: ThreadPoolExecutor(number))
    monkeypatch.setattr(module, "setup_logging", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which --quick sets
    return module


def exit_line(capsys, call):
    with pytest.raises(SystemExit) as ended:
        call()
    error = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and error
    return error[-1]


# --- the table -------------------------------------------------------------------------------------------------------


def test_every_row_of_the_table_has_a_program(bench):
    rows = bench("rows.table").ROWS
    assert [row.number for row in rows if row.number] == list(range(1, 19))
    assert {row.name for row in rows if row.measure is None} == NOT_BUILT
    assert all(len({getattr(row, name) for row in rows}) == len(rows) for name in ("key", "name", "file"))
    assert set(bench("run_all").READS_DATA) <= {row.name for row in rows}
    assert sum(row.minutes for row in rows) <= 124


def test_the_page_of_the_repository_is_what_its_jsons_make(bench):
    module = bench("run_all")
    results = module.read_results(module.RESULTS)
    assert (module.HERE / "README.md").read_text(encoding="utf-8") == module.page(results, "results/")
    assert not any(record["quick"] for record in results.values())
    known = {row.file for row in (*bench("rows.table").ROWS, *bench("rows.gpu_table").GPU_ROWS)}
    assert {path.name for path in module.RESULTS.glob("*.json")} <= known
    drawn = {name for record in results.values() for name in record["pictures"]}
    assert {path.name for path in module.RESULTS.glob("*.png")} == drawn


@pytest.mark.parametrize("page", ["README.md", "RESULTS.md", *(f"docs/{path.name}"
                                                              for path in (REPOSITORY / "docs").glob("*.md"))])
def test_the_benchmarks_that_pages_name_are_there(bench, page):
    known = {name for row in bench("rows.table").ROWS for name in (row.key, row.name)}
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    named = re.findall(r"benchmarks/(\w+\.py)((?: [^`\n]*)?)", text)
    assert [name for name, _ in named if not (REPOSITORY / "benchmarks" / name).exists()] == []
    for name, rest in named:
        words = shlex.split(rest.partition("|")[0]) if name == "run_all.py" else []
        if "--only" in words:
            asked = words[words.index("--only") + 1 :]
            asked = asked[: next((place for place, word in enumerate(asked) if word.startswith("-")), len(asked))]
            assert asked and set(asked) <= known


def made_record():
    found = [{"examples": n, "seconds": n / 1e6, "cpu": n / 1e6, "gb": 0.5 + n * 3e-8, "dynamics": 50.0,
              "metrics": 65.0, "filter_seconds": n / 1e6, "filter_cpu": n / 2e6, "filter_gb": n * 2e-7}
             for n in (1_000_000, 3_000_000, 10_000_000)]
    costs = {"device": 29.0, "host": 26.0, "checkpoint": 26.0, "reduced": 32.0, "reducing": 6e-8, "epoch_end": 1.2e-6}
    return {"epochs": 5, "found": found, "recorder": costs}


def test_what_more_examples_need_is_worked_out_of_what_was_found(bench):
    scale = bench("rows.scale")
    assert scale.foreseen(made_record()["found"], "gb", 1e9) == pytest.approx(30.5)
    assert scale.foreseen(made_record()["found"][:1], "cpu", 1e9) == 1.0  # of one size there is no line
    rows = {line.split(" | ")[0].strip("| "): [cell.strip(" |") for cell in line.split(" | ")[1:]]
            for line in scale.table(made_record()).splitlines()}
    assert rows["5 epochs"] == ["10,000,000 examples", "100,000,000 examples", "1,000,000,000 examples"]
    assert rows["recorder, on each GPU"] == ["0.29 GB", "2.9 GB", "29 GB"]
    assert rows["recorder's part of the last checkpoint"] == ["1.3 GB", "13 GB", "130 GB"]
    assert rows["dynamics on disk"] == ["2.5 GB", "25 GB", "250 GB"]
    assert rows["map, memory"] == ["0.8 GB", "3.5 GB", "30 GB"]
    assert rows["all-reduce of an epoch, two processes on one machine"] == ["0.6 s", "6 s", "60 s"]
    assert rows["map, CPU time"] == ["10 s", "100 s", "17 minutes"]
    assert scale.duration(7200) == "2 hours" and scale.duration(7199) == "120 minutes"
    assert scale.table(made_record()).endswith(
        "from 1,000,000 and 3,000,000 examples it foresees, for a map of 10,000,000, 10 s of CPU time where 10 were "
        "found and 0.8 GB where 0.8 were found.")


def test_the_page_on_scale_quotes_what_was_measured(bench):
    scale, run_all = bench("rows.scale"), bench("run_all")
    text = run_all.SCALE.read_text(encoding="utf-8")
    assert text.count(scale.BEGINS) == text.count(scale.ENDS) == 1
    record = run_all.read_results(run_all.RESULTS).get("ten_million")
    quoted = text.partition(scale.BEGINS)[2].partition(scale.ENDS)[0].strip()
    assert quoted == ("" if record is None else scale.table(record["details"]))
    assert scale.table(made_record()) in scale.with_table(text, made_record())
    assert scale.with_table(scale.with_table(text, made_record()), made_record()).count("recorder, on each GPU") == 1


def test_what_the_recorder_holds_is_what_the_row_says(bench, tmp_path):
    """Four float32 of each head on the device; six float32 and two flags an epoch in memory and in the checkpoint."""
    found = bench("rows.scale").recording(10_000, 3, str(tmp_path))
    assert found["device"] == 8 * 4 and found["host"] == 6 * 4 + 2
    assert found["checkpoint"] == pytest.approx(found["host"], abs=0.5)


# --- running it ------------------------------------------------------------------------------------------------------


def test_rows_are_measured_and_shown(run_all, tmp_path, capsys):
    run_all.main(["--only", "fast", "--output_dir", str(tmp_path)])
    said = capsys.readouterr().out
    assert "row 1 (fast), 1 of 1: about 1 minutes" in said and "| theirs / ours | 3 x (2 to 4 in 3 rounds) |" in said
    record = json.loads((tmp_path / "01_fast.json").read_text(encoding="utf-8"))
    assert {"git_commit", "git_dirty", "versions", "machine", "seconds", "finished"} <= record.keys()
    assert record["measures"][0]["rounds"] == [2.0, 3.0, 4.0] and record["details"] == {"sizes": [1, 2]}
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page == run_all.page({"fast": record}, "")
    date = f"{record['finished'][:10]}, `{record['git_commit'][:7]}`"
    assert f"| [1](#fast) | what fast is | theirs | 5 x | 3 x BROKEN; 0.5 GB | {date} |" in page
    assert "| theirs / ours | 3 x (2 to 4 in 3 rounds) | at least 5 x: BROKEN |" in page
    assert "| [2](#alone) | what alone is | theirs | 5 x | not measured |  |" in page
    assert "| [3](#later) | what later is | theirs | 5 x | not built |  |" in page


def test_a_row_that_is_not_measured_now_keeps_its_figures(run_all, tmp_path, capsys):
    run_all.main(["--only", "fast", "--output_dir", str(tmp_path)])
    before = (tmp_path / "01_fast.json").read_bytes()
    run_all.main(["--only", "2", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path)])
    said, page = capsys.readouterr().out, (tmp_path / "README.md").read_text(encoding="utf-8")
    note = ("no-such is not installed (No module named 'no_such_library'): "
            'pip install -c constraints.txt -e ".[bench]"')
    assert (tmp_path / "01_fast.json").read_bytes() == before and f"row 2: {note}" in said.splitlines()
    assert "3 x BROKEN; 0.5 GB" in page and f"- {note}" in page.splitlines() and "| 100 s |" in page
    assert "![A picture](a.png)" in page
    (tmp_path / "README.md").unlink()
    run_all.main(["--page_only", "--output_dir", str(tmp_path)])
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == page
    line = exit_line(capsys, lambda: run_all.main(["--page_only", "--quick", "--output_dir", str(tmp_path)]))
    assert "--page_only measures nothing: leave --only and --quick out" in line


def test_nothing_is_overwritten_and_no_peer_is_missing_unsaid(run_all, tmp_path, capsys, monkeypatch):
    other = tmp_path / "README.md"
    other.write_text("# My project\n", encoding="utf-8")
    for flags in (["--quick"], ["--only", "fast"]):
        line = exit_line(capsys, lambda flags=flags: run_all.main([*flags, "--output_dir", str(tmp_path)]))
        assert f"{other} is no page of ours, and would be overwritten: name another --output_dir" in line
    assert other.read_text(encoding="utf-8") == "# My project\n" and list(tmp_path.iterdir()) == [other]
    empty = tmp_path / "empty"
    line = exit_line(capsys, lambda: run_all.main(["--page_only", "--output_dir", str(empty)]))
    assert f"--output_dir {empty}: there is no JSON of a row in it" in line
    monkeypatch.setitem(run_all.PEERS, "fast", "no_such_library")
    line = exit_line(capsys, lambda: run_all.main(["--only", "fast", "--output_dir", str(empty)]))
    assert "is held against no_such_library, which is not installed: pip install -c constraints.txt" in line
    run_all.main(["--quick", "--only", "fast", "--output_dir", str(empty)])  # which measures nothing


def test_a_row_that_cannot_be_measured_here_says_so_in_the_table(run_all):
    found = importlib.import_module("timing").Found([], ["this processor does not compute in bf16"])
    read = {"sst2/train.jsonl": "0123456789abcdef"}
    record = run_all.record_of(run_all.ROWS[0], found, run_all.machine(), False, 1.0, read)
    page = run_all.page({"fast": record}, "")
    assert "| theirs | 5 x | this processor does not compute in bf16 |" in page
    assert "SHA-256 of the data: sst2/train.jsonl 01234567." in page


def test_a_row_that_breaks_leaves_the_others_and_is_told(run_all, tmp_path, capsys, caplog):
    found = importlib.import_module("timing").Found([])
    write_json(tmp_path / "broken.json", run_all.record_of(run_all.ROWS[2], found, run_all.machine(), False, 1.0))
    before = (tmp_path / "broken.json").read_bytes()
    with pytest.raises(SystemExit) as ended:
        run_all.main(["--only", "1", "broken", "--output_dir", str(tmp_path)])
    assert ended.value.code == 1 and "not measured: broken (broken); see above" in caplog.text
    assert "row broken was not measured: RuntimeError: of two lines" in caplog.text
    assert 'raise RuntimeError("of two lines\\nand more")' in capsys.readouterr().err  # for who mends it
    assert (tmp_path / "01_fast.json").exists() and (tmp_path / "broken.json").read_bytes() == before


def test_a_row_whose_script_ends_leaves_the_others(run_all, tmp_path, caplog, monkeypatch):
    def ends(setting):
        raise SystemExit(2)

    monkeypatch.setattr(run_all, "ROWS", [run_all.ROWS[2]._replace(measure=ends), run_all.ROWS[0]])
    with pytest.raises(SystemExit) as ended:
        run_all.main(["--output_dir", str(tmp_path)])
    assert ended.value.code == 1 and (tmp_path / "01_fast.json").exists()
    assert "row broken was not measured: SystemExit: 2" in caplog.text


def test_quick_figures_are_no_results(run_all, tmp_path, capsys):
    run_all.main(["--quick", "--only", "1", "2", "--output_dir", str(tmp_path)])
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page.count("tiny sizes") == 2 and "BROKEN |" not in page and "| ours | 2 s |" in page
    assert {line.partition(" runs")[0] for line in capsys.readouterr().out.splitlines() if " runs, " in line} == {
        "row 1 (fast)", "row 2 (alone)"}


def test_resuming_goes_by_the_commit(run_all, bench, tmp_path, capsys, monkeypatch):
    state = {"git_commit": "a" * 40, "git_dirty": False, "versions": {}}
    for module in (run_all, bench("timing")):
        monkeypatch.setattr(module, "provenance", lambda *_, **__: dict(state))
    again = ["--resume", "--only", "fast", "--output_dir", str(tmp_path)]
    for changes, measured in (({}, True), ({}, False), ({"git_dirty": True}, True), ({"git_dirty": False}, True),
                              ({}, False), ({"git_commit": "b" * 40}, True), ({}, False)):
        state |= changes
        run_all.main(again)
        assert ("row 1 (fast), 1 of 1" in capsys.readouterr().out) == measured
    assert bench("timing").WRITTEN == tuple(str(path.relative_to(REPOSITORY)) for path in (
        run_all.RESULTS, run_all.HERE / "README.md", run_all.SCALE)), "else the first row makes the others changed"
    state["git_commit"] = None  # no checkout: nothing tells whether the code is the same
    for _ in range(2):
        run_all.main(again)
        assert "row 1 (fast), 1 of 1" in capsys.readouterr().out


@pytest.mark.parametrize("argv, expected", [
    (["--only", "99"], "--only 99: there is no such row; there are 1 (fast), 2 (alone), broken, 3 (later)"),
    (["--only", "fast", "slow"], "--only slow: there is no such row"),
    (["--quick"], "--quick measures nothing that belongs into the results: give it an --output_dir"),
    (["--only", "2"], "--data_dir is missing: a directory with policyqa/, sst2/ and sick_nli/"),
    (["--data_dir", "no/such"], "--data_dir no/such: no such directory"),
])
def test_mistakes_are_one_line(run_all, capsys, argv, expected):
    with pytest.raises(SystemExit) as ended:
        run_all.main(argv)
    captured = capsys.readouterr()
    assert ended.value.code == 2 and len(captured.err.splitlines()) == 1 and expected in captured.err
    assert not captured.out


def test_quick_figures_do_not_go_into_the_results(run_all, capsys):
    line = exit_line(capsys, lambda: run_all.main(["--quick", "--output_dir", str(run_all.RESULTS)]))
    assert "--quick measures nothing that belongs into" in line


def test_a_data_set_that_is_not_there(bench, tmp_path):
    timing = bench("timing")
    (tmp_path / "policyqa").mkdir()
    (tmp_path / "policyqa" / "train.jsonl").write_text("abc")
    setting = timing.Setting(tmp_path, True, tmp_path, tmp_path, {})
    assert setting.dataset("policyqa", "demo:clinical") == str(tmp_path / "policyqa")
    assert setting.read == {"policyqa/train.jsonl": hashlib.sha256(b"abc").hexdigest()}
    assert setting._replace(data_dir=None).dataset("sst2", "demo:stories") == "demo:stories"
    for lacking in (setting, setting._replace(data_dir=None, quick=False)):
        with pytest.raises(timing.UserError, match="reads the data set sst2: give --data_dir"):
            lacking.dataset("sst2", "demo:stories")


# --- the forms that ours are held against ----------------------------------------------------------------------------


def test_a_loop_over_windows_finds_what_ours_finds(bench, tiny_model):
    import datasets
    from transformers import AutoTokenizer

    from datamap.tasks.registry import get_task

    questions, task = bench("rows.questions"), get_task("qa")
    rows = [*qa_rows(40, sentences=12), {"id": "none", "question": "Who?", "context": "Nobody.", "answers": {
        "text": [], "answer_start": []}}]
    data = task.normalize(datasets.Dataset.from_list(rows), "rows")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ours = task.features(data, tokenizer, 64, 16)
    theirs = questions.windows_by_loop(data.select_columns(["question", "context", "answers"])[:], tokenizer, 64, 16)
    assert len(ours) > len(data)
    for name in ("input_ids", "start_positions", "end_positions"):
        assert ours[name][:] == theirs[name]


def test_nested_loops_and_every_span_find_what_ours_finds(bench):
    questions = bench("rows.questions")
    data = questions.make_windows(120)
    offsets, ours = questions.plain_offsets(data, 120), questions.vectorised(data)
    for exhaustive in (True, False):
        theirs = questions.by_loops(data, offsets, range(60), exhaustive)
        assert questions.share_missed(ours, theirs, range(60), exhaustive) <= (0.0 if exhaustive else 0.1)
    assert 0.2 < ours.exact_match.mean() < ours.f1.mean() < 1.0


def test_the_formula_by_example_scores_as_ours(bench):
    questions = bench("rows.questions")
    given = questions.made_answers(400)
    assert questions.by_formula(*given) == pytest.approx(questions.by_us(*given))
    assert 40 < questions.by_us(*given)[0] < questions.by_us(*given)[1] < 99


def test_rules_row_by_row_fire_as_ours(bench):
    maps = bench("rows.maps")
    columns = maps.ruled_examples(300)
    ours = flag_errors(*columns)[list(RULES)].astype(bool)
    assert maps.rules_by_row(columns).equals(ours) and (ours.sum() > 0).sum() >= 6


def test_pandas_keeps_what_our_filter_keeps(bench, tmp_path):
    maps = bench("rows.maps")
    maps.write_texts(str(tmp_path), 200)
    ours, theirs = maps.load_and_filter(str(tmp_path)), maps.pandas_round_trip(str(tmp_path))
    assert 100 < ours["kept"] == theirs["kept"] < 200


def test_no_help_waits_for_a_heavy_library(bench):
    heavy_libraries = bench("rows.processes").heavy_libraries
    loaded = {file.name: heavy_libraries(file.name) for file in REPOSITORY.glob("*.py") if file.name != "helpers.py"}
    assert len(loaded) == 13 and not any(loaded.values()), loaded


def test_long_documents_hold_the_paragraph_of_their_question(bench):
    rows = qa_rows(60, sentences=3)
    for row in rows[:20]:
        row["question"] = "What is asked again?"
    for row in rows[20:30]:
        row["question_type"] = "dose"
    left_out = [{**row, "question": "What is asked again?"} for row in rows[30:35]]  # as of those with long answers
    documents = list(bench("rows.long_documents").joined(rows, [*rows, *left_out], 40, 900, seed=1))
    asked: dict[str, set[str]] = {}
    for row in [*rows, *left_out]:
        asked.setdefault(row["context"], set()).add(row.get("question_type", row["question"]))
    own, places = {row["id"]: row for row in rows}, []
    assert len({each["id"] for each in documents}) == 40
    for each in documents:
        row, before = own[each["id"]], each["context"].partition(own[each["id"]]["context"])[0]
        assert each["paragraph"] == row["context"] and each["paragraph"] in each["context"]
        assert 900 <= len(each["context"]) and each["question"] == row["question"]
        for text, start in zip(each["answers"]["text"], each["answers"]["answer_start"], strict=True):
            assert each["context"][start:].startswith(text) and 0 <= start - len(before) < len(row["context"])
        others = [context for context in asked if context in each["context"] and context != row["context"]]
        assert len(others) >= 2 and not any(row.get("question_type", row["question"]) in asked[context]
                                          for context in others)
        places.append(len(before))
    assert min(places) == 0 < len(set(places)) > 10


def test_a_share_is_judged_by_speed_and_by_what_its_interval_shows(bench):
    long_documents, rng = bench("rows.long_documents"), np.random.default_rng(0)
    right, clusters = rng.random((5, 400)) < 0.3, importlib.import_module("datamap.core.clusters").Clusters(
        np.arange(400) // 2)
    windows = {0.0: 50, 0.05: 100, 1.0: 1000}

    def side(seconds, scores):
        return [{"train_runtime": seconds, "exact_match": one.astype(float), "f1": one.astype(float)}
                for one in scores]

    def judged(seconds, scores, before=None):
        found = long_documents.beside_all("some", {1.0: side(60.0, right), 0.05: side(seconds, scores)}, windows,
                                          clusters, before)
        return {measure.what: measure for measure in found.measures}, found.notes[0]

    of, said = judged(10.0, right ^ (rng.random((5, 400)) < 0.002))
    assert of["some: windows that hold no answer"].found == pytest.approx(95)
    assert of["some: windows of all / of the share"].found == 10
    assert "6.0 x as fast: 5 x is kept, and that exact match is no worse (the interval, over seeds and 200" in said
    assert said.endswith("is shown.") and "some: exact_match, more than before this training" not in of
    worse = right & (rng.random((5, 400)) < 0.7)
    of, said = judged(15.0, worse, {"exact_match": np.full(400, 0.4), "f1": np.zeros(400)})
    assert "4.0 x as fast: 5 x is not kept" in said and said.endswith("is not shown.")
    lost = of["some: exact_match of the share, more by"]
    assert lost.found == pytest.approx(np.median(100 * (worse.mean(axis=1) - right.mean(axis=1))))
    low = of["some: exact_match of the share, low end of its 95 % interval"]
    assert low.found < lost.found < -5 and not low.keeps
    assert not of["some: exact_match, more than before this training"].keeps
    assert of["some: f1, more than before this training"].keeps


@pytest.mark.slow
def test_all_sides_train_on_the_same_rows(bench, tmp_path):
    training, timing = bench("rows.training"), bench("timing")
    setting = timing.Setting(None, True, tmp_path, tmp_path, {})
    dataset = training.sampled(setting, "nli", "nli", "demo:nli", 40)
    each = training.Trainings(setting, dataset, "nli", "tiny", 64)
    weights = {name: value.clone() for name, value in each.model.state_dict().items()}
    sides = [each.ours(), each.ours(record=False), each.library(), each.library("group_by_length"), each.bare()]
    assert [(one["rows"], one["steps"]) for one in sides] == [(40, 3)] * 5
    assert each.library(pad_to=64)["rows"] == 16
    assert sum(len(batch["input_ids"]) for batch in each.batches) == 40
    widths = [batch["input_ids"].shape[1] for batch in each.batches]
    assert widths == sorted(widths) and sides[0]["recorder"] > 0 == sides[1]["recorder"]
    assert all(value.equal(weights[name]) for name, value in each.weights.items())
    assert any(not value.equal(weights[name]) for name, value in each.model.state_dict().items())


def test_the_stages_of_a_map_are_read_from_its_log(bench, tmp_path):
    (tmp_path / "log.txt").write_text(
        "--- 2026-11-27T05:00:00+00:00 python run.py --do_eval --output_dir='a b'\nwrote it\n"
        "--- 2026-11-27T05:00:09+00:00 python analyze_cartography.py\n", encoding="utf-8")
    assert bench("rows.processes").stages_of(tmp_path / "log.txt") == [
        ("run.py", ["--do_eval", "--output_dir=a b"]), ("analyze_cartography.py", [])]


def test_a_part_stops_before_it_takes_too_long(bench, tmp_path, monkeypatch):
    growth, timing = bench("rows.growth"), bench("timing")
    monkeypatch.setattr(growth, "in_own_process", lambda function, *args: function(*args))

    def quadratic(rows, directory):
        return 1e-8 * rows**2

    sizes, seconds, foreseen = growth.grow(growth.Part("squares", quadratic),
                                           timing.Setting(None, False, tmp_path, tmp_path, {}))
    assert sizes == [10_000, 100_000] and foreseen == seconds[-1] * 10 > growth.LONGEST
    assert growth.exponent(sizes, seconds) == pytest.approx(2, abs=1e-6)
    assert growth.exponent([10, 1000], [10 * np.log(10), 1000 * np.log(1000)]) == pytest.approx(1.24, abs=0.01)


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench_gpu(bench, monkeypatch):
    module = bench("bench_gpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return module


def test_without_a_card_each_row_says_when_it_was_last_measured(bench_gpu, bench, tmp_path, capsys):
    row = bench_gpu.GPU_ROWS[0]
    found = bench("timing").Found([bench("timing").Measure("ours", [700.0], " rows/s")])
    about = {**bench("timing").machine(), "gpu": "NVIDIA made up"}
    record = bench("timing").record_of(row, found, about, False, 3.0)
    write_json(tmp_path / row.file, {**record, "finished": "2026-01-02T03:04:05+00:00"})
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    bench_gpu.main(["--output_dir", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert f"{row.name} ({row.what}): not measured now, but on 2026-01-02 on NVIDIA made up" in lines
    assert all("not measured, never yet" in line for line in lines[1:-1]) and len(lines) == len(bench_gpu.GPU_ROWS) + 1
    assert lines[-1] == "there is no GPU here: nothing was measured, and nothing written"
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    page = bench("run_all").page(bench("run_all").read_results(tmp_path), "")
    assert "bench_gpu.py --only gpu_qa`: 2026-01-02" in page and "NVIDIA made up" in page


def test_all_rows_on_a_gpu_fit_into_seven_minutes(bench_gpu, bench, monkeypatch, tmp_path, capsys):
    """Each has its share of what is left, so that what one does not need goes to those behind it."""
    rows, clock, given = bench_gpu.GPU_ROWS, [0.0], []
    everyone = (*rows, *bench("rows.table").ROWS)
    assert len({row.name for row in everyone}) == len(everyone) and all(row.minutes > 0 for row in rows)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(bench_gpu, "time", type("Clock", (), {"monotonic": staticmethod(lambda: clock[0])}))

    def measure(row, args, seconds):
        given.append(seconds)
        clock[0] += seconds if len(given) > 1 else 5  # the first needs little, the others all that they may take
        return None if len(given) > 1 else "it was stopped"

    monkeypatch.setattr(bench_gpu, "measure", measure)
    with pytest.raises(SystemExit):
        bench_gpu.main(["--output_dir", str(tmp_path)])
    assert clock[0] <= 410.1 and given[1] > given[0] * rows[1].minutes / rows[0].minutes
    assert f"wrote {len(rows) - 1} JSONs" in capsys.readouterr().out


def test_out_of_memory_is_told_in_a_line_with_what_to_lower(bench_gpu, bench, tmp_path, monkeypatch):
    import pickle

    import torch

    def large(setting):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nOf several lines")

    row = bench_gpu.GPU_ROWS[0]._replace(measure=large)
    monkeypatch.setattr(bench_gpu, "GPU_ROWS", [row])
    monkeypatch.setattr(bench_gpu, "setup_logging", lambda: None)
    setting = bench("timing").Setting(None, True, tmp_path, tmp_path, {})
    bench_gpu.measured(row.name, setting, str(tmp_path / "found"))
    left = pickle.loads((tmp_path / "found").read_bytes())
    assert "out of memory" in left and "lower BATCH_SIZE" in left and "\n" not in left


def test_compiling_that_takes_too_long_is_stopped(bench):
    import time

    with pytest.raises(TimeoutError), bench("rows.gpu_training").time_limit(0.05):
        time.sleep(5)
    with bench("rows.gpu_training").time_limit(None):
        time.sleep(0.06)


def test_made_up_texts_are_as_long_as_they_say(bench):
    made = bench("rows.gpu_training").made_rows
    tokens = [len(row["context"].split()) + len(row["question"].split()) + 3 for row in made("qa", 400)]
    assert 110 < np.mean(tokens) < 118
    assert 21 < np.mean([len(row["sentence"].split()) + 2 for row in made("classification", 400)]) < 25
    for row in made("qa", 20):
        start = row["answers"]["answer_start"][0]
        assert row["context"][start:].startswith(row["answers"]["text"][0])


@pytest.mark.slow
def test_every_row_on_a_gpu_runs_at_tiny_sizes(bench_gpu, tmp_path, capsys):
    bench_gpu.main(["--quick", "--output_dir", str(tmp_path)])
    assert f"wrote {len(bench_gpu.GPU_ROWS)} JSONs" in capsys.readouterr().out
    for row in bench_gpu.GPU_ROWS:
        record = json.loads((tmp_path / row.file).read_text())
        assert record["quick"] and record["measures"] and all(one["least"] is None for one in record["measures"])
