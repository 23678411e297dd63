"""docs/extending.md, "A selector of your own": its very code in a copy of the one file, used by its very command."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from datamap.core.files import read_json, read_table
from datamap.core.splits import load_split
from datamap.tasks.registry import get_task


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """select_subset.py and the package, with the selector of the page at the end of selectors.py; the command."""
    place = tmp_path_factory.mktemp("checkout")
    shutil.copy(REPOSITORY / "select_subset.py", place)
    shutil.copytree(REPOSITORY / "datamap", place / "datamap", ignore=shutil.ignore_patterns("__pycache__"))
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    section = page.partition("## A selector of your own\n")[2].partition("\n## ")[0]
    [code] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    [command] = re.findall(r"```bash\npython (.*?)\n```", section, re.DOTALL)
    with (place / "datamap" / "selection" / "selectors.py").open("a", encoding="utf-8") as file:
        file.write("\n\n" + code)
    return place, command


def test_the_selector_of_the_page_chooses(checkout):
    place, command = checkout
    done = subprocess.run([sys.executable, *shlex.split(command)], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    split = load_split("demo:nli", "train", get_task("nli"))
    words = {row["id"]: len(f"{row['premise']} {row['hypothesis']}".split()) for row in split.data}
    chosen = read_table(place / "selection_output" / "selected.csv")
    assert [words[example] for example in chosen["id"]] == sorted(
        (count for count in words.values() if count <= 15), reverse=True)[:20]
    assert chosen["score"].tolist() == [words[example] for example in chosen["id"]]
    assert chosen["reason"].unique().tolist() == ["longest"]
    assert read_json(place / "selection_output" / "selection_meta.json")["settings"]["most_words"] == 15


def test_it_is_listed_and_its_setting_is_its_own(checkout):
    place, _ = checkout

    def run(*argv: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "select_subset.py", *argv], cwd=place, capture_output=True, text=True)

    assert "  longest            the longest texts of at most --most_words" in run("--list").stdout
    refused = run("--selector", "random", "--k", "3", "--most_words", "9")
    assert refused.returncode == 2 and "--most_words does nothing with --selector random" in refused.stderr
