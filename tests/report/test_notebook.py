"""demos/explore.ipynb, run from start to end on finished maps, and what it shows against what the files hold."""

from __future__ import annotations

import base64
import html
import json
import re

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, Hands
from conftest import REPOSITORY, qa_rows, review_rows, write_rows
from made_report import record, write_artifacts

import analyze_dataset
from datamap.analysis.model_errors import confusion_counts, predicted_table
from datamap.core.errors import UserError
from datamap.core.files import read_jsonl, read_table
from datamap.core.splits import load_split
from datamap.report.notebook import linked_maps, open_map
from datamap.report.page import content_of
from datamap.tasks.error_counts import error_counts
from datamap.tasks.registry import get_task

NOTEBOOK = REPOSITORY / "demos" / "explore.ipynb"
ROWS = {"qa": qa_rows(30, seed=3), "classification": review_rows(30, 0, ("good", "bad", "so-so"))}
# What shows HTML: a bare page, and the policy of VS Code's notebooks.
POLICIES = ("", "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
                "img-src https: data:; child-src https: data:")


@pytest.fixture(scope="module", params=list(ROWS))
def finished(request, tmp_path_factory):
    """A directory of finished artifacts, the flags that name them, and their split."""
    directory = tmp_path_factory.mktemp(request.param)
    file = write_rows(directory / "data.jsonl", ROWS[request.param])
    split = load_split(str(file), "train", get_task(request.param))
    flags = write_artifacts(directory / "finished", split)
    record(flags, split)
    return directory / "finished", flags, split


def page_in(text: str) -> str:
    """The page in the frame of a notebook's output."""
    [page] = re.findall(r'srcdoc="([^"]*)"', text)
    return html.unescape(page)


def numbers_of(content, key):
    [column] = [each for each in content["columns"] if each["key"] == key]
    return np.frombuffer(base64.b64decode(column["values"]), "<f4")


def test_it_is_committed_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 4 and not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert not re.search(r"/(tmp|home|root|work|Users)/", NOTEBOOK.read_text(encoding="utf-8"))


def test_it_runs_from_start_to_end(finished, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="notebooks are run by nbclient and ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="notebooks are run by nbclient and ipykernel")
    directory, flags, split = finished
    monkeypatch.setenv("DATA_MAP", str(directory))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for name in ("suspects", "errors"):
        notebook.cells.append(nbformat.v4.new_code_cell(f'{name}.to_csv(r"{tmp_path / name}.csv", index=False)'))
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=place).execute()
    shown = ["".join(str(output.get("data", {}).get("text/html", "")) for output in cell.outputs)
             for cell in notebook.cells if cell.cell_type == "code"]
    _, _, maps, worst, counts, _, *_ = shown

    content = content_of(page_in(maps))
    metrics = read_table(directory / "map" / "cartography_metrics.csv").set_index("id")
    clusters = read_table(directory / "clusters" / "cluster_assignments.csv").set_index("id")
    assert content["ids"] == split.ids
    for table, names in ((metrics, ("confidence", "variability")), (clusters, ("dim1", "dim2"))):
        for name in names:
            assert numbers_of(content, name) == pytest.approx(table[name][split.ids].to_numpy(), rel=1e-6)

    analyze_dataset.main(["--find_errors", *(word for pair in flags.items() for word in pair), "--output_dir",
                          str(tmp_path / "suspects")])
    wanted, found = (read_table(file, text=("gold", "predicted", "reasons"))
                     for file in (tmp_path / "suspects" / "suspects.csv", tmp_path / "suspects.csv"))
    assert found["id"].tolist() == wanted["id"].tolist()
    assert found["suspicion"].to_numpy() == pytest.approx(wanted["suspicion"].to_numpy())
    assert found["reasons"].fillna("").tolist() == wanted["reasons"].fillna("").tolist()
    assert all(example in worst for example in wanted["id"][:15]) and wanted["id"][15] not in worst

    column = "predicted_answer" if split.task.name == "qa" else "predicted_label"
    said = [row[column] for row in read_jsonl(directory / "predictions" / "eval_predictions.jsonl")]
    errors = predicted_table(split, said)
    assert read_table(tmp_path / "errors.csv")["error"].tolist() == errors["error"].tolist()
    assert len(set(errors["error"])) > 1
    wanted = error_counts(errors, "question_type") if split.task.name == "qa" else confusion_counts(errors)
    assert re.findall(r"<td>(\d+)</td>", counts) == [str(each) for each in wanted.to_numpy().ravel()]


def test_the_predictions_of_the_split_are_found(tmp_path):
    split = load_split(str(write_rows(tmp_path / "data.jsonl", ROWS["qa"])), "train", get_task("qa"))
    flags = write_artifacts(tmp_path / "finished", split)
    record(flags, split)
    write_rows(tmp_path / "finished" / "map" / "eval_predictions.jsonl", [{"id": "another", "predicted_answer": "x"}])
    known = open_map(tmp_path / "finished")
    assert None not in (known.evidence.predictions or [None])
    assert known.sources["predictions"] == tmp_path / "finished" / "predictions" / "eval_predictions.jsonl"
    for each in ("predictions", "clusters", "embeddings"):
        for file in (tmp_path / "finished" / each).iterdir():
            file.unlink()
    less = open_map(tmp_path / "finished").evidence
    assert less.predictions is None and less.clusters is None and less.embeddings is None and less.metrics is not None


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no folder of .* holds a cartography_metrics.csv"):
        open_map(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pd.DataFrame({"id": ["a"]}).to_csv(tmp_path / name / "cartography_metrics.csv")
    with pytest.raises(UserError, match=r"several folders with cartography_metrics.csv \('one', 'two'\)"):
        open_map(tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="the page is tested in Chromium, which is not installed here")
@pytest.mark.parametrize("finished", ["qa"], indirect=True)
def test_the_page_lives_in_its_frame(finished, tmp_path):
    """Selecting, turning to another part, and nothing goes wrong or is loaded."""
    shown = linked_maps(open_map(finished[0]))._repr_html_()
    browser = Hands(tmp_path / "profile")
    try:
        for number, policy in enumerate(POLICIES):
            file = tmp_path / f"notebook_{number}.html"
            file.write_text(f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
                            f'<body data-ready="true">{shown}', encoding="utf-8")
            browser.open(file)
            browser.until("document.readyState === 'complete'")
            browser.run("{ window.frame = document.querySelector('iframe');"
                        "window.within = (text) => frame.contentWindow.eval(text); }")
            browser.until("frame.contentDocument.body.dataset.ready === 'true'")
            browser.run("within('select([3, 5], MAPS[0])')")
            assert browser.run("within('MAPS[1].busy.then(() => byId(MAPS[1].id).data[0].selectedpoints)')") == [3, 5]
            browser.run("frame.contentDocument.querySelector('#tabs a[href=\"#overview\"]').click()")
            browser.until("!within('byId(\"part-overview\").hidden')")
            assert "Learning curves" in browser.run("within('byId(\"part-overview\").innerText')")
            assert browser.run("document.querySelector('img').naturalWidth") > 100  # behind the frame
        assert browser.errors == []
        loaded = {url for url in browser.requests if not url.startswith(("data:", "blob:", "about:"))}
        assert {url.rpartition("/")[2] for url in loaded} == {"notebook_0.html", "notebook_1.html"}
    finally:
        browser.close()
