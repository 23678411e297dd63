"""Small data and models that every test can share: built here, offline, on the CPU."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A shell lets what it runs in the background ignore Ctrl-C, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY.parent / "shared" / "data"
NAMES = ("Ada", "Bob", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana")
PLACES = ("Oslo", "Lima", "Cairo", "Quito", "Delhi", "Rome")
THINGS = ("a red kite", "two old maps", "the green lamp", "a glass of water")
OPINIONS = {"good": ("fine", "bright", "warm"), "bad": ("dull", "grey", "cold"), "so-so": ("plain", "usual", "known")}
FILLERS = ("The road was long and full of dust.", "It rained until late in the evening.", "Nobody said a word.")


def qa_rows(count: int, seed: int = 0, sentences: int = 6, prefix: str = "ex") -> list[dict]:
    """Short stories with a question about one of their sentences; answers stand at their offsets."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        people = rng.permutation(NAMES)[:sentences]
        facts = []
        for person in people:
            if rng.random() < 0.5:
                facts.append((f"Where did {person} go?", f"{person} went to ", str(rng.choice(PLACES))))
            else:
                facts.append((f"What did {person} carry?", f"{person} carried ", str(rng.choice(THINGS))))
        context, spans = "", []
        for _, start, answer in facts:
            context += " " * bool(context) + start
            spans.append(len(context))
            context += answer + ". " + str(rng.choice(FILLERS))
        asked = int(rng.integers(len(facts)))
        rows.append(
            {
                "id": f"{prefix}-{number:03d}",
                "question": facts[asked][0],
                "context": context,
                "answers": {"text": [facts[asked][2]], "answer_start": [spans[asked]]},
                "source": "story" if number % 2 else "tale",
            }
        )
    return rows


def review_rows(count: int, seed: int, classes=("good", "bad"), prefix="r") -> list[dict]:
    """One telling word among others; ``size`` is how many."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        label, size = classes[number % len(classes)], 2 + number // len(classes) % 3
        words = [str(rng.choice(("the", "film", "was", "and", "we"))) for _ in range(size)]
        words.insert(int(rng.integers(size + 1)), str(rng.choice(OPINIONS[label])))
        rows.append({"id": f"{prefix}{number:03d}", "sentence": " ".join(words), "label": label, "size": size,
                     "kind": "old" if number % 5 else "new"})
    return rows


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def qa_dir(tmp_path_factory) -> Path:
    """A dataset directory: train.jsonl of 24 and validation.jsonl of 10 examples, ids unique over both."""
    directory = tmp_path_factory.mktemp("stories")
    write_rows(directory / "train.jsonl", qa_rows(24, seed=1, prefix="train"))
    write_rows(directory / "validation.jsonl", qa_rows(10, seed=2, prefix="valid"))
    return directory


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    """train, validation and test splits of two classes; ids unique over all."""
    directory = tmp_path_factory.mktemp("reviews")
    for seed, (split, count) in enumerate({"train": 48, "validation": 30, "test": 30}.items()):
        write_rows(directory / f"{split}.jsonl", review_rows(count, seed, prefix=split))
    return directory


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, qa_dir) -> Path:
    """A saved ELECTRA of 2 layers, 32 wide, without dropout, with a QA head and a tokenizer for ``qa_dir``."""
    import torch
    from transformers import ElectraConfig, ElectraForQuestionAnswering

    from datamap.training.tiny_model import train_tokenizer

    texts = [text for row in qa_rows(24, seed=1) for text in (row["question"], row["context"])]
    tokenizer = train_tokenizer(texts, max_length=128)
    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=len(tokenizer), embedding_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
    )
    directory = tmp_path_factory.mktemp("model")
    ElectraForQuestionAnswering(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def one_thread():
    """Small models only wait for threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A Slurm that runs while the tests of a module do."""
    pytest.importorskip("submitit", reason="slurm tests need submitit")
    cluster, folder = Path(__file__).with_name("slurm_cluster.sh"), tmp_path_factory.mktemp("slurm")
    started = subprocess.run([cluster, "start", folder], capture_output=True, text=True, check=False)
    if started.returncode == 3:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            yield
    finally:
        subprocess.run([cluster, "stop", folder], check=True)


@contextmanager
def held_elsewhere(file: Path) -> Iterator[subprocess.Popen]:
    """Another process holds a lock file, until the block ends or it is killed."""
    code = ("import sys; from datamap.core.locks import lock\n"
            "with lock(sys.argv[1]): print('held', flush=True); sys.stdin.read()")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process


@pytest.fixture
def pictures(monkeypatch):
    """Every picture that ``save_figure`` writes: file name -> the figure, to be read back (read_pictures.py).

    They are written small, and a warning while they are drawn is an error.
    """
    import warnings

    from matplotlib.figure import Figure

    from datamap.core import plots

    names, found, begin, save = [], {}, plots.atomic, Figure.savefig

    def atomic(path):
        names.append(Path(path).name)
        return begin(path)

    def savefig(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        found[names[-1]] = figure

    monkeypatch.setattr(plots, "DOTS_PER_INCH", 40)
    monkeypatch.setattr(plots, "atomic", atomic)
    monkeypatch.setattr(Figure, "savefig", savefig)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield found


@pytest.fixture
def refused(capsys):
    """Call a script's main with arguments it must refuse: exit status 2 and one line, which is returned."""

    def call(main, *argv) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in argv])
        lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert stopped.value.code == 2
        assert len(lines) == 1, lines
        return lines[0]

    return call
