"""docs/extending.md, "A task of your own": its very code as one new file in a copy of the package, and run.py."""

import re
import shutil
import subprocess
import sys

from conftest import REPOSITORY, write_rows

from datamap.core.files import read_json, read_jsonl, read_table

THINGS = ("a dog", "a horse", "two birds", "an old man", "the child", "a girl")


def pairs(count: int, prefix: str) -> list[dict]:
    """Two sentences about one thing (5), about two things (0.4), or hard to say (3)."""
    rows = []
    for number in range(count):
        one, other = THINGS[number % 6], THINGS[(number + 1 + number // 6) % 6]
        score, second = ((5.0, one), (0.4, other), (3.0, other))[number % 3]
        rows.append({"id": f"{prefix}{number}", "sentence1": f"There is {one}.", "sentence2": f"One sees {second}.",
                     "score": score})
    return rows


def run(house, *flags):
    command = [sys.executable, "run.py", "--do_train", "--do_eval", "--enable_cartography", "--task", "similarity",
               "--model", "tiny", "--num_train_epochs", "3", "--no_cuda", *flags]
    return subprocess.run(command, cwd=house, capture_output=True, text=True)


def test_the_task_of_the_page_works(tmp_path):
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", page.split("## A task of your own\n")[1], flags=re.MULTILINE)[0]
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    house = tmp_path / "house"
    shutil.copytree(REPOSITORY / "datamap", house / "datamap", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "run.py", house)
    (house / "sts").mkdir()
    write_rows(house / "sts" / "train.jsonl", pairs(24, "t"))
    write_rows(house / "sts" / "validation.jsonl", pairs(9, "v"))
    refused = run(house, "--dataset", "sts")
    assert refused.returncode == 2 and "invalid choice: 'similarity'" in refused.stderr

    (house / "datamap" / "tasks" / "similarity.py").write_text(code, encoding="utf-8")
    done = run(house, "--dataset", "sts")
    assert done.returncode == 0, done.stderr
    assert "labels from score" in done.stderr and "8 of 24 examples without gold label are left out" in done.stderr
    metrics = read_json(house / "trainer_output" / "eval_metrics.json")
    assert metrics["eval_total"] == 6 and 0 <= metrics["eval_accuracy"] <= 1
    predictions = read_jsonl(house / "trainer_output" / "eval_predictions.jsonl")
    assert {row["score"] for row in predictions} == {"similar", "different"}
    assert all(set(row["probabilities"]) == {"similar", "different"} for row in predictions)
    recorded = read_table(house / "cartography_output" / "cartography_metrics.csv")
    assert len(recorded) == 16 and (recorded["num_epochs"] == 3).all()
    assert read_json(house / "trainer_output" / "run_meta.json")["datasets"][0]["task"] == {
        "name": "similarity", "text_columns": ["sentence1", "sentence2"], "label_column": "score"
    }

    write_rows(house / "bad.jsonl", [{**row, "score": "alike"} for row in pairs(6, "b")])
    wrong = run(house, "--dataset", "bad.jsonl", "--eval_split", "train")
    assert wrong.returncode == 2 and "column score holds no scores from 0 to 5" in wrong.stderr
