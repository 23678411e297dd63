"""Names of the Hub: one line, at once where there is no network; what looks like a file does not go there."""

import os
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY, write_rows

from datamap.core import hub
from datamap.core.errors import UserError
from datamap.core.splits import default_eval_split, load_split
from datamap.tasks.registry import get_task

ROWS = [{"id": "a", "text": "well", "label": 0}, {"id": "b", "text": "badly", "label": 1}]


def load(name):
    return load_split(str(name), "train", get_task("classification"))


@pytest.fixture
def no_hub(monkeypatch):
    """Whoever asks the Hub fails the test."""

    def asked():
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(hub, "unreachable", asked)


@pytest.mark.parametrize("file", ["reviews.csv", "data/train.jsonl", "data/train.parquet", "train.jsonl.gz"])
def test_a_path_without_its_extension_is_said_to_be_one(tmp_path, monkeypatch, no_hub, file):
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    write_rows(tmp_path / file, ROWS)
    name = file.partition(".")[0]
    with pytest.raises(UserError, match=f"dataset '{name}': no such file or directory; is '{file}' meant") as refused:
        load(name)
    assert "\n" not in str(refused.value)


def test_a_script_of_the_same_name_is_no_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imdb.py").touch()
    with pytest.raises(UserError, match="nor in the cache, and the Hub cannot be reached .HF_HUB_OFFLINE is set."):
        load("imdb")


@pytest.mark.parametrize("name", ["a/b/c", "my data", "data/über alles", "a//b", "trainer_output/planted_data/train"])
def test_what_is_no_name_of_the_hub_is_not_asked_for(tmp_path, monkeypatch, no_hub, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file or directory, and no name of the Hub, which is owner/name"):
        load(name)
    assert default_eval_split(name) == "validation"


@pytest.mark.parametrize("flags", [
    ["--dataset", "nobody/nothing", "--do_train"], ["--dataset", "nobody/nothing", "--do_eval"],
    ["--model", "nobody/nothing", "--dataset", "demo:nli", "--task", "nli", "--do_train", "--max_train_samples", "8"],
])
def test_without_a_network_one_line_at_once(tmp_path, flags):
    """A process of its own, as the libraries read their environment once."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "*"}
    done = subprocess.run([sys.executable, str(REPOSITORY / "run.py"), *flags, "--no_cuda", "--output_dir", "out"],
                          cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("demo:nli")]
    assert done.returncode == 2, done.stderr
    [line] = lines
    assert "nobody/nothing" in line and "the Hub cannot be reached ([Errno 111] Connection refused)" in line
    assert not (tmp_path / "out").exists()


def test_a_retry_is_printed_once(capsys):
    code = ("import logging; from datamap.core.errors import setup_logging; setup_logging()\n"
            "from datamap.core.hub import unreachable; unreachable()\n"
            "logging.getLogger('huggingface_hub.utils._http').warning('Retrying in 1s')")
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stderr == "warning: Retrying in 1s\n"


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch):
    import huggingface_hub

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # is set by what is tested, and comes back as it was
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: time.sleep(20))
    monkeypatch.setattr(hub, "SECONDS", -0.9)
    began = time.monotonic()
    assert "has not answered" in hub.unreachable.__wrapped__()
    assert time.monotonic() - began < 5
