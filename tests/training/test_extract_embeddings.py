"""extract_embeddings.py through its command line, with tiny untrained models, against one example at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import REPOSITORY, write_rows

import extract_embeddings
from datamap.core.files import read_json, room_for_array

pytestmark = pytest.mark.usefixtures("one_thread")

HIDDEN = 16
MAX_LENGTH, DOC_STRIDE = 40, 12
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def rows() -> list[dict]:
    """Examples whose answer lies in the first window, in a later one, in none; unanswerable; not at its offset."""
    rng = np.random.default_rng(5)

    def words(count: int) -> list[str]:
        return ["".join(rng.choice(list(LETTERS), rng.integers(1, 3))) for _ in range(count)]

    def example(name: str, length: int, first: int, count: int, question_length: int = 4) -> dict:
        context = words(length)
        start = len(" ".join([*context[:first], ""]))
        answer = {"text": [" ".join(context[first : first + count])], "answer_start": [start]}
        return {"id": name, "question": " ".join(words(question_length)) + "?", "context": " ".join(context),
                "answers": answer}

    made = [
        example("001", 8, 2, 1),
        example("12e5", 60, 50, 3),  # a later window
        example("first", 60, 0, 2),
        example("twice", 60, 12, 1),  # in the overlap of windows
        example("nowhere", 60, 5, 40),  # longer than a window
        {**example("unanswerable", 60, 3, 1), "answers": {"text": [], "answer_start": []}},
        example("last", 9, 8, 1, question_length=2),
        example("misaligned", 30, 4, 2),
    ]
    made[-1]["answers"]["answer_start"] = [made[-1]["answers"]["answer_start"][0] + 3000]
    return made


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Question-answering checkpoints of random weights; DistilBERT takes no token_type_ids."""
    directory = tmp_path_factory.mktemp("models")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", *LETTERS, *("##" + letter for letter in LETTERS)]
    (directory / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizerFast(str(directory / "vocab.txt"))
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "initializer_range": 0.5}
    bert = {**size, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    distilbert = {**size, "dim": HIDDEN, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    built = {
        "electra": transformers.ElectraForQuestionAnswering(transformers.ElectraConfig(**bert, embedding_size=8)),
        "bert": transformers.BertForQuestionAnswering(transformers.BertConfig(**bert)),
        "distilbert": transformers.DistilBertForQuestionAnswering(transformers.DistilBertConfig(**distilbert)),
    }
    for name, model in built.items():
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    # The saved tokenizer of a model without token types makes none.
    settings = json.loads((directory / "distilbert" / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    (directory / "distilbert" / "tokenizer_config.json").write_text(json.dumps(settings))
    return {name: directory / name for name in built}


def extract(model: Path, dataset: Path | None, output: Path, *flags: str) -> tuple[np.ndarray, dict]:
    argv = ["--model_path", str(model), "--output_dir", str(output), "--no_cuda", "--max_length", str(MAX_LENGTH)]
    argv += ["--doc_stride", str(DOC_STRIDE), *([] if dataset is None else ["--dataset", str(dataset)]), *flags]
    extract_embeddings.main(argv)
    return np.load(output / "embeddings.npy"), read_json(output / "embeddings_metadata.json")


@pytest.fixture(scope="module")
def whole(models, dataset, tmp_path_factory) -> Path:
    """The output directory of a run on every example, all in one batch."""
    output = tmp_path_factory.mktemp("whole")
    extract(models["electra"], dataset, output)
    return output


def slow_embedding(model, tokenizer, row: dict) -> np.ndarray:
    """One example, one window at a time, no padding, float64."""
    context, answer = row["context"], row["answers"]
    aligned = bool(answer["text"]) and context.startswith(answer["text"][0], answer["answer_start"][0])
    encoded = tokenizer(
        row["question"], context, truncation="only_second", max_length=MAX_LENGTH, stride=DOC_STRIDE,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )
    found = (0, [0])  # first window, CLS
    for window, offsets in enumerate(encoded["offset_mapping"]):
        if not aligned:
            break
        first, last = answer["answer_start"][0], answer["answer_start"][0] + len(answer["text"][0])
        sequence = encoded.sequence_ids(window)
        inside = [
            token
            for token, (start, end) in enumerate(offsets)
            if sequence[token] == 1 and start < last and end > first
        ]
        if inside and offsets[inside[0]][0] <= first and offsets[inside[-1]][1] >= last:
            found = (window, inside)
            break
    window, tokens = found
    inputs = {name: torch.tensor([encoded[name][window]]) for name in tokenizer.model_input_names}
    with torch.no_grad():
        hidden = model.base_model(**inputs).last_hidden_state[0].numpy().astype(np.float64)
    return np.concatenate([hidden[0], sum(hidden[token] for token in tokens) / len(tokens)])


@pytest.mark.parametrize("name", ["electra", "bert", "distilbert"])
def test_embeddings_equal_one_by_one(models, dataset, tmp_path, name, capsys):
    vectors, metadata = extract(models[name], dataset, tmp_path / "out", "--batch_size", "3")
    captured = capsys.readouterr()
    assert "newly initialized" not in captured.err and "UNEXPECTED" not in captured.err, "no tales about the head"
    assert captured.out.splitlines()[-1] == f"wrote 8 embeddings of 32 dimensions and their ids to {tmp_path / 'out'}"
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(models[name]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(models[name])
    assert ("token_type_ids" in tokenizer.model_input_names) == (name != "distilbert")
    expected = np.stack([slow_embedding(model, tokenizer, row) for row in rows()])
    assert vectors.dtype == np.float32 and vectors.shape == (8, 2 * HIDDEN)
    np.testing.assert_allclose(vectors, expected, atol=2e-5)
    assert np.abs(expected - expected.mean(axis=0)).max() > 0.1, "vectors that do not differ would prove nothing"

    assert metadata["ids"] == [row["id"] for row in rows()]
    assert metadata["texts"]["question"] == [row["question"] for row in rows()]
    assert metadata["texts"]["answer"][0] == rows()[0]["answers"]["text"][0]
    assert metadata["texts"]["answer"][5] is None
    assert metadata["num_unanswerable"] == 1 and metadata["num_answer_not_found"] == 2
    assert "3 of 8 examples give their CLS vector twice: 1 are unanswerable, 2 have" in captured.err
    twice = [row for row, vector in enumerate(vectors) if np.allclose(vector[:HIDDEN], vector[HIDDEN:], atol=1e-6)]
    assert twice == [4, 5, 7], "answer in no window, unanswerable, misaligned: the CLS vector stands twice"


def test_answers_off_by_a_little_are_embedded_where_they_stand(models, dataset, whole, tmp_path):
    """A blank in the text before the letter at its start, and a start that is two characters late."""
    moved = rows()
    for row in moved[1:3]:
        row["answers"]["answer_start"][0] += 2
    moved[0]["answers"]["text"] = [" " + moved[0]["answers"]["text"][0]]
    path = write_rows(tmp_path / "train.jsonl", moved)
    vectors, metadata = extract(models["electra"], path, tmp_path / "out")
    np.testing.assert_allclose(vectors, np.load(whole / "embeddings.npy"), atol=2e-5)
    _, strict = extract(models["electra"], path, tmp_path / "strict", "--spans", "strict")
    assert (metadata["num_answer_not_found"], strict["num_answer_not_found"]) == (2, 5)


def test_padding_and_batches_do_not_matter(models, dataset, whole, tmp_path):
    alone, _ = extract(models["electra"], dataset, tmp_path / "out", "--batch_size", "1")
    np.testing.assert_allclose(alone, np.load(whole / "embeddings.npy"), atol=2e-5)


def test_vectors_of_several_batches_are_fetched_together(models, dataset, whole, tmp_path, monkeypatch):
    """As on a GPU, where the host would wait for every batch: 8 rows are 4 batches, fetched three and one."""
    from datamap.training import embeddings

    fetched, fetch = [], torch.Tensor.cpu

    def counted(tensor):
        fetched.append(len(tensor))
        return fetch(tensor)

    monkeypatch.setattr(embeddings, "batches_at_once", lambda model: 3)
    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    together, _ = extract(models["electra"], dataset, tmp_path / "out", "--batch_size", "2")
    assert fetched == [6, 2]
    np.testing.assert_allclose(together, np.load(whole / "embeddings.npy"), atol=2e-5)


def test_metadata_says_what_was_embedded(models, dataset, whole, tmp_path):
    _, metadata = extract(models["electra"], dataset, tmp_path / "out", "--max_samples", "3")
    recorded = read_json(tmp_path / "out" / "run_meta.json")
    assert recorded["status"] == "finished"
    assert recorded["datasets"][0]["dataset"] == metadata["dataset"] == str(dataset)
    assert recorded["datasets"][0]["fingerprint"] == metadata["fingerprint"]
    expected = {"model": str(models["electra"]), "task": "qa", "split": "train", "num_rows": 3, "num_dims": 32,
                "pooling": "cls_and_answer_mean", "max_length": MAX_LENGTH, "doc_stride": DOC_STRIDE}
    assert {name: metadata[name] for name in expected} == expected
    assert metadata["ids"] == ["001", "12e5", "first"]
    uncapped = read_json(whole / "embeddings_metadata.json")
    assert uncapped["fingerprint"] == metadata["fingerprint"], "the fingerprint is that of the whole split"


def test_dataset_recorded_in_the_model(models, dataset, tmp_path, capsys, caplog):
    model = tmp_path / "model"
    model.symlink_to(models["electra"])
    with pytest.raises(SystemExit) as stop:
        extract(model, None, tmp_path / "out")
    assert stop.value.code == 2 and "name it with --dataset" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    trained = tmp_path / "trained"
    trained.mkdir()
    for file in models["electra"].iterdir():
        (trained / file.name).symlink_to(file)
    recorded = {"dataset": str(dataset), "split": "train", "fingerprint": "f"}
    meta = {"status": "finished", "arguments": {"do_train": True}, "datasets": [recorded]}
    (trained / "run_meta.json").write_text(json.dumps(meta))
    vectors, metadata = extract(trained, None, tmp_path / "out")
    assert metadata["dataset"] == str(dataset) and len(vectors) == 8
    assert str(dataset) in caplog.text
    # A model of the first rows (--max_train_samples) embeds these, unless asked for others.
    (trained / "run_meta.json").write_text(json.dumps({**meta, "datasets": [{**recorded, "max_samples": 3}]}))
    assert extract(trained, None, tmp_path / "first")[1]["ids"] == metadata["ids"][:3]
    assert read_json(tmp_path / "first" / "run_meta.json")["datasets"][0]["max_samples"] == 3
    assert len(extract(trained, None, tmp_path / "all", "--max_samples", "99")[0]) == 8
    (trained / "run_meta.json").write_text(json.dumps({**meta, "status": "running"}))
    with pytest.raises(SystemExit):
        extract(trained, None, tmp_path / "other")
    assert "is not whole" in capsys.readouterr().err


def test_lengths_beyond_the_model_are_lowered_and_said(models, dataset, tmp_path, caplog):
    model, output = str(models["electra"]), str(tmp_path)
    extract_embeddings.main(["--model_path", model, "--dataset", str(dataset), "--output_dir", output, "--no_cuda"])
    metadata = read_json(tmp_path / "embeddings_metadata.json")
    assert (metadata["max_length"], metadata["doc_stride"]) == (64, 32)
    assert "windows are of 64 tokens, not of 512 (--max_length): the model takes no more" in caplog.text
    assert "windows share 32 tokens, not 128 (--doc_stride)" in caplog.text


def test_clusters_of_embeddings_carry_their_texts(whole, tmp_path):
    import cluster_analysis

    cluster_analysis.main(
        ["--embedding_dir", str(whole), "--output_dir", str(tmp_path / "clusters"),
         "--visualization_method", "pca", "--min_cluster_size", "2"]
    )
    chosen = read_json(tmp_path / "clusters" / "cluster_samples.json")
    known = {row["id"]: row["question"] for row in rows()}
    examples = [example for cluster in chosen.values() for example in cluster]
    assert examples and all(known[example["id"]] == example["question"] for example in examples)
    meta = read_json(tmp_path / "clusters" / "run_meta.json")
    assert meta["datasets"] == read_json(whole / "run_meta.json")["datasets"]


# --- bad input ---------------------------------------------------------------------------------------------------


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        extract(*arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_models_that_are_none(models, dataset, tmp_path, capsys):
    out = tmp_path / "out"
    assert "no such directory" in refused(capsys, tmp_path / "nowhere", dataset, out)
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in refused(capsys, tmp_path / "empty", dataset, out)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in models["electra"].iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "cannot load an encoder from" in refused(capsys, broken, dataset, out)
    assert not out.exists(), "nothing may be written for bad input"


def test_missing_encoder_weights_are_not_drawn_at_random(models, dataset, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    partial = tmp_path / "partial"
    partial.mkdir()
    for file in models["electra"].iterdir():
        (partial / file.name).write_bytes(file.read_bytes())
    weights = load_file(partial / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "layer.1." not in name},
        partial / "model.safetensors", metadata={"format": "pt"},
    )
    assert "trained weights of an encoder" in refused(capsys, partial, dataset, tmp_path / "out")


def test_other_bad_input(models, dataset, tmp_path, capsys):
    out, model = tmp_path / "out", models["electra"]
    assert "no such file" in refused(capsys, model, tmp_path / "none.jsonl", out)
    assert "only split is 'train'" in refused(capsys, model, dataset, out, "--split", "test")
    assert "invalid choice: 'poetry'" in refused(capsys, model, dataset, out, "--task", "poetry")
    message = refused(capsys, model, dataset, out, "--pooling", "mean")
    assert "--pooling mean is not for --task qa, which has cls_and_answer_mean" in message
    assert "at least 1, found '0'" in refused(capsys, model, dataset, out, "--batch_size", "0")
    assert "leaves no room for a question" in refused(capsys, model, dataset, out, "--max_length", "10")
    assert not out.exists(), "nothing may be written for bad input"
    with pytest.raises(SystemExit):
        extract(model, dataset, model)
    assert "which is read" in capsys.readouterr().err


def test_a_diverged_model_leaves_no_whole_artifact(models, dataset, tmp_path, capsys):
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(models["electra"])
    with torch.no_grad():
        model.base_model.encoder.layer[0].output.dense.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    transformers.AutoTokenizer.from_pretrained(models["electra"]).save_pretrained(tmp_path / "nan")
    assert "its training diverged" in refused(capsys, tmp_path / "nan", dataset, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").glob("[!.]*")] == ["run_meta.json"]
    assert read_json(tmp_path / "out" / "run_meta.json")["status"] == "failed"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bfloat16_on_a_gpu_points_the_same_way(models, dataset, whole, tmp_path):
    extract_embeddings.main(
        ["--model_path", str(models["electra"]), "--dataset", str(dataset), "--output_dir", str(tmp_path),
         "--max_length", str(MAX_LENGTH), "--doc_stride", str(DOC_STRIDE)]
    )
    on_gpu, on_cpu = np.load(tmp_path / "embeddings.npy"), np.load(whole / "embeddings.npy")
    cosine = (on_gpu * on_cpu).sum(axis=1) / np.linalg.norm(on_gpu, axis=1) / np.linalg.norm(on_cpu, axis=1)
    assert on_gpu.dtype == np.float32 and cosine.min() > 0.99


def test_room_is_made_before_the_array_is_mapped(tmp_path):
    """The same file as numpy maps, and all of it on the disk: a page without room would kill the process (SIGBUS)."""
    room_for_array(tmp_path / "a.npy", (700, 3, 5), np.float32).flush()
    np.lib.format.open_memmap(tmp_path / "b.npy", mode="w+", dtype=np.float32, shape=(700, 3, 5)).flush()
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    room_for_array(tmp_path / "big.npy", (2**20, 3), np.float32)
    status = (tmp_path / "big.npy").stat()
    assert status.st_blocks * 512 >= status.st_size > 12 * 2**20


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line(models, dataset, tmp_path):
    """On a disk of 20 kB of its own; in a process of its own, which the mapping of old was killed in."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", place]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("file systems may not be mounted here")
    try:
        many = tmp_path / "train.jsonl"
        many.write_text("".join(json.dumps({**row, "id": f"{row['id']}-{copy}"}) + "\n"
                                for copy in range(40) for row in rows()), encoding="utf-8")
        command = [
            sys.executable, REPOSITORY / "extract_embeddings.py", "--model_path", models["electra"], "--dataset", many,
            "--output_dir", place / "out", "--no_cuda", "--max_length", str(MAX_LENGTH),
            "--doc_stride", str(DOC_STRIDE),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
        assert done.returncode == 2 and f"No space left on device: {place / 'out' / 'embeddings.npy'}" in line
        assert "then run the same command again" in line
        assert not [file.name for file in (place / "out").iterdir() if "embeddings" in file.name]
    finally:
        subprocess.run(["umount", place], check=True)
