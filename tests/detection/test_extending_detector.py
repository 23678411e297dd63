"""docs/extending.md, "A detector of your own": its very code as one new file in a copy of the package, its command."""

import re
import shlex
import shutil
import subprocess
import sys

from conftest import REPOSITORY

from datamap.core.splits import load_split
from datamap.tasks.registry import get_task

SCORES = """
from datamap.core.splits import load_split
from datamap.detection.base import Evidence, score_all
from datamap.tasks.registry import get_task

split = load_split("demo:nli", "train", get_task("nli"), max_samples=30)
print(score_all(Evidence(split), ("short_text",)).to_csv())
"""


def test_the_detector_of_the_page_is_found_and_listed(tmp_path):
    shutil.copy(REPOSITORY / "analyze_dataset.py", tmp_path)
    shutil.copytree(REPOSITORY / "datamap", tmp_path / "datamap", ignore=shutil.ignore_patterns("__pycache__"))
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    section = page.partition("## A detector of your own\n")[2].partition("\n## ")[0]
    [code] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    [command] = re.findall(r"```bash\npython (.*?)\n```", section, re.DOTALL)
    (tmp_path / "datamap" / "detection" / "detect_length.py").write_text(code, encoding="utf-8")

    def run(*argv: str) -> str:
        done = subprocess.run([sys.executable, *argv], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    [line] = [line for line in run(*shlex.split(command)).splitlines() if line.startswith("short_text ")]
    assert re.split(r"\s{2,}", line) == ["short_text", "labels", "0..1", "low", "texts", "texts",
                                         "1 / words of all texts of an example"]
    header, *rows = run("-c", SCORES).split()
    split = load_split("demo:nli", "train", get_task("nli"), max_samples=30)
    assert header == "id,short_text"
    assert [(row.split(",")[0], float(row.split(",")[1])) for row in rows] == [
        (row["id"], 1 / len(f"{row['premise']} {row['hypothesis']}".split())) for row in split.data]
