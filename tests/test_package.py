"""What ``pip install .`` brings: one import name, everything it needs inside, and nothing of ours beside it.

The package is built from a copy of the tree as a clean checkout has it, and installed into an environment of its own
that sees the libraries of this one, but not the checkout.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.slow
IMPORT_SECONDS = 0.05
# The two lines that README promises, on a Trainer of somebody who knows nothing of this project.
RECORDS = """
import json

import datasets
import torch
from transformers import ElectraConfig, ElectraForSequenceClassification, Trainer, TrainingArguments

config = ElectraConfig(vocab_size=50, embedding_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=32)
data = datasets.Dataset.from_dict({"input_ids": [[1, 2 + row % 5] for row in range(12)], "labels": [0, 1] * 6})
args = TrainingArguments("model", num_train_epochs=2, use_cpu=True, save_strategy="no", disable_tqdm=True)
trainer = Trainer(model=ElectraForSequenceClassification(config), args=args, train_dataset=data)
ids = [f"row{row}" for row in range(12)]

from datamap import CartographyCallback
CartographyCallback(ids, "map").attach(trainer)
trainer.train()

import datamap
print(json.dumps({name: str(getattr(datamap, name)) for name in ["__file__", *datamap.__all__]}))
"""
FINDS = """
import json
from datamap.core.configs import read_mapping
from datamap.core.places import EXAMPLES
from datamap.report.page import html_of
from datamap.suites.definition import suite_file
from datamap.thoughts.prompts import PROMPTS, load_prompt

assert "Plotly" in html_of({})
print(json.dumps([str(suite_file("sample")), str(EXAMPLES), sorted(read_mapping(EXAMPLES / "demo.json")),
                  sorted(file.name for file in PROMPTS.glob("*.txt"))]))
"""


def pip(*words: str | Path, cwd: Path) -> None:
    line = [sys.executable, "-m", "pip", "-q", *map(str, words)]
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def build(kind: str, source: Path, out: Path) -> Path:
    """The wheel or sdist of a source tree, by the project's own build backend, offline."""
    program = f"import sys, setuptools.build_meta as backend; print(backend.build_{kind}(sys.argv[1]))"
    line = [sys.executable, "-c", program, str(out)]
    done = subprocess.run(line, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The files of the repository, those not yet committed too, without what git ignores."""
    copy = tmp_path_factory.mktemp("package") / "checkout"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (REPOSITORY / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def installed(checkout) -> Path:
    """The Python of a fresh environment in which the package, and nothing else, was installed from its wheel."""
    home = checkout.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / "bin" / "python"
    [packages] = home.glob("lib/python*/site-packages")
    before = set(packages.iterdir())
    wheel = build("wheel", checkout, checkout.parent)
    pip("--python", python, "install", "--no-deps", "--no-index", wheel, cwd=checkout.parent)
    gained = sorted(path.name for path in set(packages.iterdir()) - before)
    assert gained == ["datamap", "training_data_cartography-0.1.0.dist-info"]
    assert {path.name for path in (home / "bin").iterdir() if "python" not in path.name.lower()} <= {
        "activate", "activate.csh", "activate.fish", "Activate.ps1"
    }
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def run(python: Path, program: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    line = [str(python), "-c", program]
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_holds_the_package_and_its_examples(checkout, installed, tmp_path):
    sdist = build("sdist", checkout, tmp_path)
    shutil.unpack_archive(sdist, tmp_path, filter="data")
    [unpacked] = (path for path in tmp_path.iterdir() if path.is_dir())
    [wheel] = checkout.parent.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names == set(zipfile.ZipFile(build("wheel", unpacked, tmp_path)).namelist())
    ours = {str(file.relative_to(checkout)) for file in (checkout / "datamap").rglob("*.*")}
    examples = {f"datamap/{file.relative_to(checkout)}" for file in (checkout / "example_configs").rglob("*.*")
                if file.is_file()}
    assert {name for name in names if ".dist-info/" not in name} == ours | examples


def test_the_two_lines_record_any_trainer_and_every_public_name_is_there(installed, tmp_path):
    *_, names = run(installed, RECORDS, tmp_path).splitlines()
    assert (tmp_path / "map" / "cartography_map.png").stat().st_size > 0
    assert len((tmp_path / "map" / "cartography_metrics.csv").read_text(encoding="utf-8").splitlines()) == 13
    place = json.loads(names)["__file__"]
    assert Path(place).is_relative_to(installed.parents[1])
    assert {"CartographyCallback", "load_cartography_metrics", "categorize_examples", "get_examples_by_category",
            "apply_filters", "load_split"} <= set(json.loads(names))


def test_suites_prompts_and_configs_are_found(installed, tmp_path):
    suite, examples, config, prompts = json.loads(run(installed, FINDS, tmp_path))
    assert Path(examples).is_relative_to(installed.parents[1]) and Path(suite).is_relative_to(examples)
    assert "num_train_epochs" in config and "generate.txt" in prompts


def test_importing_is_instant(installed, tmp_path):
    program = ("import sys, time\nbefore, began = set(sys.modules), time.perf_counter()\nimport datamap\n"
               "print(time.perf_counter() - began, len(set(sys.modules) - before))")
    seconds, modules = zip(*(map(float, run(installed, program, tmp_path).split()) for _ in range(3)), strict=True)
    assert min(seconds) < IMPORT_SECONDS and max(modules) < 5
