"""docs/extending.md, "A filter of your own": its very code in a copy of the one file, used from its very config."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, qa_rows, write_rows

from datamap.core.files import read_json, read_jsonl


@pytest.fixture
def blocks():
    """The code and the config of the section."""
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", page.split("## A filter of your own\n")[1], flags=re.MULTILINE)[0]
    found = dict(re.findall(r"^```(python|json)\n(.*?)^```", section, re.MULTILINE | re.DOTALL))
    return found["python"], json.loads(found["json"])


def filtered(house, data, config):
    """dataset_filters.py of this house, run on the data."""
    (house / "filters.json").write_text(json.dumps(config))
    command = [sys.executable, "dataset_filters.py", "--dataset", data, "--filter_config", "filters.json"]
    return subprocess.run([*command, "--output_dir", "out"], cwd=house, capture_output=True, text=True)


def test_the_filter_of_the_page_works(blocks, tmp_path):
    code, config = blocks
    house = tmp_path / "house"
    shutil.copytree(REPOSITORY / "datamap", house / "datamap", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "dataset_filters.py", house)
    rows = qa_rows(12, seed=4)
    for row in rows[::3]:
        row["question"] = "Where to?"
    rows[1]["question"] = "What? " * 41
    data = write_rows(tmp_path / "stories.jsonl", rows)
    before = filtered(house, data, config)
    assert before.returncode == 2 and "unknown filter 'length'" in before.stderr

    with (house / "datamap" / "analysis" / "filters.py").open("a", encoding="utf-8") as file:
        file.write("\n\n" + code)
    done = filtered(house, data, config)
    assert done.returncode == 0, done.stderr
    kept = [row["id"] for place, row in enumerate(rows) if place % 3 and place != 1]
    assert [row["id"] for row in read_jsonl(house / "out" / "train.jsonl")] == kept
    (record,) = read_json(house / "out" / "filter_report.json")["filters"]
    assert record["filter"] == "length" and record["settings"]["max_words"] == 40
    assert {reason: len(ids) for reason, ids in record["removed"].items()} == {"words below 3": 4, "words above 40": 1}

    wrong = filtered(house, data, {"length": {"column": "poem"}})
    assert wrong.returncode == 2
    assert "filter length: the dataset has no column 'poem'; name another with column" in wrong.stderr
    wrong = filtered(house, data, {"length": {"min_words": -1}})
    assert "min_words is -1; expected a whole number of at least 0" in wrong.stderr
    wrong = filtered(house, data, {"length": {"min_words": 1}})
    assert "filter length needs column: the name of a column of texts" in wrong.stderr
