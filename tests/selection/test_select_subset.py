"""select_subset.py through main(argv): every selector on tiny models, what it writes, and how it refuses."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from chat_server import chat_server, says
from conftest import REPOSITORY, qa_rows, review_rows, write_rows

import extract_embeddings
import run
import select_subset
from datamap.cartography.dynamics import read_dynamics
from datamap.cartography.dynamics import write_dynamics as write_epoch
from datamap.cartography.maps import write_cartography
from datamap.cartography.metrics import compute_metrics, load_cartography_metrics
from datamap.core.artifacts import stage
from datamap.core.files import read_json, read_table
from datamap.core.splits import load_split
from datamap.selection import cache as feature_cache
from datamap.selection import candidates, language_models
from datamap.selection import features as selection_features
from datamap.selection.arguments import parse_args
from datamap.selection.base import SELECTORS
from datamap.selection.perturbations import perturbed_texts
from datamap.tasks.registry import get_task
from datamap.training import models
from datamap.training.tiny_model import train_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

COLUMNS = ["id", "rank", "score", "reason"]
N = 48
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
         "initializer_range": 0.3}
STORIES = ["--dataset", "demo:stories", "--max_samples", "20"]
NLI = ["--dataset", "demo:nli", "--task", "nli", "--max_samples", "30"]


# --- what is read: models, a run, cartography ---------------------------------------------------------------------


def save(directory: Path, model, tokenizer) -> Path:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def corpus() -> list[str]:
    reviews = [row["sentence"] for row in review_rows(N, 0)]
    return [*reviews, *(row[part] for row in qa_rows(24, seed=1) for part in ("question", "context"))]


def modern_bert(directory: Path, seed: int) -> Path:
    tokenizer = train_tokenizer(corpus(), max_length=128)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    torch.manual_seed(seed)
    config = transformers.ModernBertConfig(
        **SIZES, vocab_size=len(tokenizer), max_position_embeddings=128, local_attention=8, pad_token_id=0,
        cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
    )
    return save(directory, transformers.ModernBertForMaskedLM(config), tokenizer)


def qwen(directory: Path) -> Path:
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE

    pieces = Tokenizer(BPE())
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|endoftext|>", "<|pad|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    pieces.train_from_iterator(corpus(), trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<|endoftext|>",
                                                     pad_token="<|pad|>")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SIZES, vocab_size=len(tokenizer), head_dim=8, num_key_value_heads=1,
                                      max_position_embeddings=128, eos_token_id=0, bos_token_id=None)
    return save(directory, transformers.Qwen3ForCausalLM(config), tokenizer)


def dynamics(ids: list[str], seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    epochs = []
    for number in range(1, 5):
        p = np.round(rng.random(len(ids)), 6)
        epochs.append({"epoch": number, "id": ids, "confidence": p, "correct": p > 0.5, "loss": -np.log(p + 1e-3),
                       "aum": np.round(rng.normal(size=len(ids)), 6)})
    return epochs


def write_map(directory: Path, split, rows: list[int] | None = None, seed: int = 0) -> Path:
    """What run.py --enable_cartography writes, of some rows of a split."""
    ids = [split.ids[row] for row in rows] if rows is not None else split.ids
    with stage(directory, {}, owns=("cartography*", "training_dynamics*"), datasets=[split.identity()]) as path:
        for epoch in dynamics(ids, seed):
            columns = {name: values for name, values in epoch.items() if name not in ("epoch", "id")}
            write_epoch(path, epoch["epoch"], ids, columns)
        write_cartography(path, compute_metrics(read_dynamics(path)))
    return directory


def reviews_split(directory: Path, name: str = "train"):
    return load_split(str(directory), name, get_task("classification"))


@pytest.fixture(scope="module")
def home(tmp_path_factory, reviews, qa_dir, tiny_model) -> SimpleNamespace:
    """An encoder, a causal LM, a classifier that run.py trained on the reviews with its map; maps without a model."""
    place = tmp_path_factory.mktemp("home")
    run.main(
        ["--do_train", "--enable_cartography", "--task", "classification", "--model", "tiny", "--dataset",
         str(reviews), "--hidden_size", "16", "--num_train_epochs", "2", "--max_length", "32", "--save_strategy",
         "no", "--no_cuda", "--output_dir", str(place / "classifier"), "--cartography_output_dir",
         str(place / "run_map")]
    )
    return SimpleNamespace(
        place=place, encoder=modern_bert(place / "encoder", 0), causal=qwen(place / "causal"),
        classifier=place / "classifier", run_map=place / "run_map", reader=tiny_model, reviews=reviews, qa=qa_dir,
        map=write_map(place / "map", reviews_split(reviews)),
        qa_map=write_map(place / "qa_map", load_split(str(qa_dir), "train", get_task("qa"))),
    )


@pytest.fixture
def choose(home, tmp_path, capsys) -> Callable:
    """Choose, by default of the reviews and with the cache of the module; returns table, meta, directory, output."""

    def call(*argv, data=None, cache=None, output="selection") -> SimpleNamespace:
        target = tmp_path / output
        data = ["--dataset", str(home.reviews)] if data is None else data
        capsys.readouterr()
        select_subset.main([str(word) for word in
                            [*argv, *data, "--no_cuda", "--output_dir", target,
                             "--cache_dir", cache or home.place / "cache"]])
        said = capsys.readouterr()
        return SimpleNamespace(table=read_table(target / "selected.csv"), meta=strict(target / "selection_meta.json"),
                               directory=target, out=said.out, err=said.err)

    return call


@pytest.fixture
def refuse(home, tmp_path, refused) -> Callable:
    """The one line of what must be refused, after which there is no output directory."""

    def call(*argv, data=None) -> str:
        data = ["--dataset", home.reviews] if data is None else data
        line = refused(select_subset.main, *argv, *data, "--no_cuda", "--output_dir", tmp_path / "none",
                       "--cache_dir", home.place / "cache")
        assert not (tmp_path / "none").exists()
        assert line.startswith("select_subset.py: error: ")
        return line

    return call


def strict(path: Path):
    def refuse_constant(name):
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)


def same(first: pd.DataFrame, second: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(first, second)


def check(found: SimpleNamespace, selector: str, k: int, ids) -> None:
    """What is true of every selection."""
    table, meta = found.table, found.meta
    assert table.columns.tolist() == COLUMNS
    assert table["rank"].astype(int).tolist() == list(range(1, k + 1))
    chosen = table["id"].tolist()
    assert len(set(chosen)) == k and set(chosen) <= set(ids)
    assert all(isinstance(reason, str) and reason for reason in table["reason"])
    assert (meta["selector"], meta["k"], meta["n"]) == (selector, k, len(ids))
    assert meta["fraction"] == pytest.approx(k / len(ids)) and meta["peak_memory_mb"] > 50
    assert meta["seconds"] >= sum(cost["seconds"] for cost in meta["features"].values()) >= 0
    for cost in meta["features"].values():
        assert set(cost.get("without", [])) <= set(ids)
    recorded = read_json(found.directory / "run_meta.json")
    assert recorded["status"] == "finished" and recorded["arguments"]["selector"] == selector
    embedded = {"embeddings", "judge_estimates", "self_filter"} & set(meta["features"]) or (
        "label_quality" in meta["features"] and recorded["arguments"]["probabilities"] == "embeddings")
    drawn = {f"selected_on_{place}.{kind}" for kind in ("png", "csv") for place, is_read in (
        ("embeddings", embedded), ("map", "cartography_dir" in recorded["inputs"])) if is_read}
    assert set(recorded["outputs"]) == {"selected.csv", "rejected.csv", "selection_meta.json"} | drawn
    rejected = read_table(found.directory / "rejected.csv")
    assert rejected.columns.tolist() == ["id", "score", "reason"]
    assert set(ids) - set(chosen) <= set(rejected["id"]) and not set(chosen) & set(rejected["id"])
    assert all(isinstance(reason, str) and reason for reason in rejected["reason"])
    command, last = found.out.strip().splitlines()
    assert command.startswith("train on them: python run.py --do_train ")
    args = run.parse_args(shlex.split(command.removeprefix("train on them: python run.py ")))
    assert args.train_ids == str(found.directory / "selected.csv") and args.output_dir == f"{found.directory}_model"
    assert args.dataset == recorded["arguments"]["dataset"] and args.task == recorded["arguments"]["task"]
    assert args.max_train_samples == recorded["arguments"]["max_samples"]
    settings = recorded["datasets"][0]["task"]
    assert {name: getattr(args, name) for name in settings if name != "name"} == {
        name: value for name, value in settings.items() if name != "name"}
    assert f"{k:,} of {len(ids):,}" in last and selector in last and str(found.directory) in last
    assert "Traceback" not in found.err and "error: " not in found.err.lower()


# --- every selector -----------------------------------------------------------------------------------------------


def flags_of(home, selector: str) -> list:
    """What a selector needs beside the dataset, for classification."""
    embedded = ["--model", home.encoder]
    return {
        "perplexity": ["--causal_lm", home.causal], "pseudo_perplexity": embedded, "label_issues": embedded,
        "consistency": ["--model_path", home.classifier, "--perturbations", "deletion", "swap", "--fill", "random"],
        "self_filter": [*embedded, "--rounds", 2], "kcenter": embedded, "kmeans": [*embedded, "--n_clusters", 6],
        "herding": embedded, "lexical_diversity": [*embedded, "--mattr_window", 3],
        "predictive_entropy": ["--model_path", home.classifier], "wordpiece_ratio": embedded,
        "el2n": ["--model_path", home.classifier], "grand": ["--model_path", home.classifier],
        "loss_trajectory": ["--cartography_dir", home.map, "--n_clusters", 4],
        **{name: ["--cartography_dir", home.map] for name in ("forgetting", "aum", "confidence", "variability")},
        "pipeline": [*embedded, "--pipeline", "label_issues:0.9, kcenter:0.5, forgetting:0.25", "--cartography_dir",
                     home.map],
        "fusion": [*embedded, "--fusion", "aum:1, wordpiece_ratio:0.5, confidence:2", "--cartography_dir", home.map],
    }.get(selector, [])


HYBRIDS = ("pipeline", "fusion")
OFFLINE = [name for name in SELECTORS if name != "llm_judge"]


@pytest.mark.parametrize("selector", OFFLINE)
def test_every_selector_on_reviews(home, choose, selector):
    named = [] if selector in HYBRIDS else ["--selector", selector]
    found = choose(*named, *flags_of(home, selector), "--k", 12)
    ids = reviews_split(home.reviews).ids
    check(found, selector, 12, ids)
    again = choose(*named, *flags_of(home, selector), "--fraction", 0.25, output="again")
    same(found.table, again.table)
    stratified = choose(*named, *flags_of(home, selector), "--k", 12, "--stratify", "label", "--fill", "random",
                        output="stratified")
    check(stratified, selector, 12, ids)
    labels = dict(zip(ids, reviews_split(home.reviews).data["label"][:], strict=True))
    assert pd.Series(stratified.table["id"]).map(labels).value_counts().tolist() == [6, 6]


def qa_flags(home, selector: str) -> list:
    flags = flags_of(home, selector)
    if selector == "pipeline":
        return ["--model", home.encoder, "--pipeline", "kcenter:0.5, aum:0.25", "--cartography_dir", home.qa_map]
    if selector == "stratified":
        return ["--strata", "token_count", "flesch"]
    swap = {home.map: home.qa_map, home.classifier: home.reader}
    return [swap.get(word, word) if isinstance(word, Path) else word for word in flags]


@pytest.mark.parametrize("selector", [name for name in OFFLINE if name not in ("label_issues", "self_filter")])
def test_every_selector_on_questions(home, choose, selector):
    named = [] if selector in HYBRIDS else ["--selector", selector]
    flags = qa_flags(home, selector)
    reads_windows = selector in ("kcenter", "predictive_entropy", "grand")
    sizes = ["--max_length", 64, "--doc_stride", 16] if reads_windows else ["--max_length", 128]
    found = choose(*named, *flags, *sizes, "--k", 6, data=["--dataset", home.qa, "--task", "qa"])
    check(found, selector, 6, [row["id"] for row in qa_rows(24, seed=1, prefix="train")])
    assert read_json(found.directory / "run_meta.json")["datasets"][0]["task"]["name"] == "qa"


@pytest.mark.parametrize("data, task", [(NLI, "nli"), (STORIES, "classification")])
@pytest.mark.parametrize("selector", ["label_issues", "herding", "lexical_diversity", "stratified", "perplexity"])
def test_pairs_and_stories(home, choose, data, task, selector):
    found = choose("--selector", selector, *flags_of(home, selector), "--k", 5,
                   *(["--folds", 2] if selector == "label_issues" else []), data=data)
    n = int(data[-1])
    check(found, selector, 5, load_split(data[1], "train", get_task(task), n).ids)
    assert read_json(found.directory / "run_meta.json")["datasets"][0]["task"]["name"] == task


# --- the choice is the right one ----------------------------------------------------------------------------------


def slow_embeddings(model: Path, split) -> np.ndarray:
    """Mean over all tokens, one text at a time."""
    encoder = transformers.AutoModel.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    vectors = []
    for text in split.data["sentence"][:]:
        with torch.no_grad():
            hidden = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vectors.append(hidden.double().numpy().mean(axis=0))
    return np.stack(vectors)


def test_kcenter_is_the_plain_greedy_on_mean_vectors(home, choose):
    split = reviews_split(home.reviews)
    vectors = slow_embeddings(home.encoder, split)
    rows = [int(np.linalg.norm(vectors - vectors.mean(axis=0), axis=1).argmin())]
    for _ in range(9):
        rows.append(int(np.linalg.norm(vectors[:, None] - vectors[rows], axis=2).min(axis=1).argmax()))
    found = choose("--selector", "kcenter", "--model", home.encoder, "--k", 10)
    assert found.table["id"].tolist() == [split.ids[row] for row in rows]
    assert found.table["reason"][0] == "nearest to the mean"


def test_scores_of_a_map_are_its_columns(home, choose):
    metrics = load_cartography_metrics(home.map)
    forgotten = metrics["forgetting_events"].where(~metrics["never_learned"], metrics["num_epochs"])
    wanted = {"aum": (metrics["aum"], False), "confidence": (metrics["confidence"], True),
              "variability": (metrics["variability"], False), "forgetting": (forgotten, False)}
    for selector, (values, ascending) in wanted.items():
        table = choose("--selector", selector, "--cartography_dir", home.map, "--k", 9).table
        scores = table["score"].astype(float)
        np.testing.assert_allclose(scores, metrics.assign(value=values).loc[table["id"], "value"], rtol=1e-12)
        assert scores.tolist() == sorted(scores, reverse=not ascending)
        np.testing.assert_allclose(scores, values.sort_values(ascending=ascending)[:9], rtol=1e-12)
    low = choose("--selector", "aum", "--cartography_dir", home.map, "--k", 9, "--keep", "lowest")
    assert set(low.table["id"]) == set(metrics["aum"].nsmallest(9).index)
    assert low.meta["settings"]["keep"] == "lowest" and "lowest" in low.table["reason"][0]


def test_entropy_is_the_models(home, choose):
    split = reviews_split(home.reviews)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(home.classifier).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(home.classifier)
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in split.data["sentence"][:]]
    p = torch.stack(logits).double().softmax(dim=1).numpy()
    entropy = pd.Series(-(p * np.log(p)).sum(axis=1), index=split.ids)
    found = choose("--selector", "predictive_entropy", "--model_path", home.classifier, "--k", 8)
    np.testing.assert_allclose(found.table["score"].astype(float), entropy[found.table["id"]], atol=2e-5)
    np.testing.assert_allclose(found.table["score"].astype(float), entropy.nlargest(8), atol=2e-5)
    warned = [line for line in found.err.splitlines() if line.startswith("warning") and "windows" not in line]
    assert len(warned) == 1 and "trained on this very dataset" in warned[0]
    other = choose("--selector", "predictive_entropy", "--model_path", home.classifier, "--k", 8, "--split", "test")
    assert "trained on this very dataset" not in other.err


def test_consistency_looks_at_one_column_at_a_time(home, choose, tmp_path):
    """Against predictions one by one, for pairs of texts."""
    split = load_split("demo:nli", "train", get_task("nli"), 30)
    texts = {column: split.data[column][:] for column in ("premise", "hypothesis")}
    names = split.data.features["label"].names
    tokenizer = train_tokenizer([text for column in texts.values() for text in column] * 2, max_length=128)
    torch.manual_seed(1)
    config = transformers.ElectraConfig(**SIZES, vocab_size=len(tokenizer), embedding_size=16, num_labels=3,
                                        max_position_embeddings=128, id2label=dict(enumerate(names)),
                                        label2id={name: number for number, name in enumerate(names)})
    model = transformers.ElectraForSequenceClassification(config).eval()
    place = save(tmp_path / "nli", model, tokenizer)

    def predicted(premise: str, hypothesis: str) -> int:
        with torch.no_grad():
            return int(model(**tokenizer(premise, hypothesis, return_tensors="pt")).logits.argmax())

    kept, ids = set(), split.ids
    changed = {column: perturbed_texts(values, ids, ("deletion", "swap"), 4, 5) for column, values in texts.items()}
    for row, (premise, hypothesis) in enumerate(zip(*texts.values(), strict=True)):
        first = predicted(premise, hypothesis)
        copies = [*((text, hypothesis) for text in changed["premise"][row]),
                  *((premise, text) for text in changed["hypothesis"][row])]
        if all(predicted(*copy) == first for copy in copies):
            kept.add(ids[row])
    assert 2 < len(kept) < 28, "a model that is moved by some changes"
    flags = ["--selector", "consistency", "--model_path", place, "--perturbations", "deletion,swap", "--copies", 4]
    found = choose(*flags, "--seed", 5, "--k", len(kept), data=NLI, cache=tmp_path / "cache")
    assert set(found.table["id"]) == kept
    assert (found.table["score"].astype(float) == 0).all()


def test_full_is_the_head_of_the_dataset(home, choose, tmp_path):
    rows = review_rows(12, 0)[::-1]
    data = ["--dataset", write_rows(tmp_path / "back.jsonl", rows), "--task", "classification"]
    assert choose("--selector", "full", "--k", 4, data=data).table["id"].tolist() == [row["id"] for row in rows[:4]]
    whole = choose("--selector", "full", data=data)
    check(whole, "full", 12, [row["id"] for row in rows])
    assert whole.table["id"].tolist() == [row["id"] for row in rows]
    assert whole.table["score"].isna().all()


def test_texts_too_short_are_listed_and_never_chosen(home, choose, tmp_path, refuse):
    rows = [*review_rows(12, 0), {"id": "x", "sentence": "a", "label": "good"},
            {"id": "blank", "sentence": " ", "label": "bad"}]
    data = ["--dataset", write_rows(tmp_path / "short.jsonl", rows)]
    flags = ["--selector", "perplexity", "--causal_lm", home.causal, "--p_low", 0, "--p_high", 1]
    found = choose(*flags, "--k", 12, data=data)
    assert found.meta["n"] == 13, "an example without a text is no candidate"
    assert found.meta["features"]["perplexity"]["without"] == ["x"]
    assert not {"x", "blank"} & set(found.table["id"])
    said = [line for line in found.err.splitlines() if "'x'" in line]
    assert said and "too short" in said[0]
    line = refuse(*flags, "--k", 13, data=data)
    assert "leaves 12 of 13" in line and "--fill random" in line
    filled = choose(*flags, "--k", 13, "--fill", "random", data=data)
    assert filled.table["reason"].str.startswith("random fill").tolist() == [False] * 12 + [True]
    assert filled.meta["filled"] == 1 and filled.table["id"][12] == "x"
    assert math.isnan(filled.table["score"].astype(float)[12])


def test_the_band_says_how_many_it_leaves(home, choose, refuse):
    flags = ["--selector", "perplexity", "--causal_lm", home.causal, "--p_low", 0.25, "--p_high", 0.75]
    line = refuse(*flags, "--k", 30)
    left = int(line.split("leaves ")[1].split()[0])
    assert 20 <= left <= 28 and "30" in line and "--fill random" in line
    whole = choose(*flags, "--k", left)
    assert whole.meta["filled"] == 0
    filled = choose(*flags, "--k", 30, "--fill", "random", output="filled")
    assert filled.meta["filled"] == 30 - left and filled.meta["fill"] == "random"
    assert set(filled.table["id"][:left]) == set(whole.table["id"])
    assert f"{30 - left:,} were drawn at random" in filled.err
    ranked = choose(*flags, "--k", 5, "--rank_by", "token_count", "--keep", "lowest", output="ranked")
    words = {row["id"]: len(row["sentence"].split()) for row in map(dict, reviews_split(home.reviews).data)}
    kept = sorted(words[example] for example in whole.table["id"])
    assert [words[example] for example in ranked.table["id"]] == kept[:5]
    told = {"keep": "lowest", "p_low": 0.25, "p_high": 0.75, "rank_by": "token_count"}
    assert told.items() <= ranked.meta["settings"].items()


def test_another_column_is_stratified_by(home, choose):
    found = choose("--selector", "herding", "--model", home.encoder, "--k", 24, "--stratify", "kind")
    kinds = {row["id"]: row["kind"] for row in map(dict, reviews_split(home.reviews).data)}
    have = pd.Series(kinds).value_counts()
    got = found.table["id"].map(kinds).value_counts()
    assert (got - have / 2).abs().max() <= 0.5 and got.sum() == 24
    assert found.meta["stratify"] == "kind"


def test_a_pipeline_keeps_its_shares(home, choose, refuse):
    text = "random:0.5, aum:0.25"
    found = choose("--pipeline", text, "--cartography_dir", home.map)
    check(found, "pipeline", 12, reviews_split(home.reviews).ids)
    assert found.meta["settings"]["members"] == [["random", 0.5], ["aum", 0.25]]
    assert "fraction" in refuse("--pipeline", text, "--cartography_dir", home.map, "--fraction", 0.5)
    line = refuse("--pipeline", "perplexity:0.9, aum:0.2", "--cartography_dir", home.map, "--causal_lm", home.causal)
    assert "perplexity leaves" in line and "0.9" in line


# --- reading what is there ----------------------------------------------------------------------------------------


def test_embeddings_of_the_extractor(home, choose, tmp_path, refuse):
    place = tmp_path / "vectors"
    extract_embeddings.main(["--model_path", str(home.encoder), "--dataset", str(home.reviews), "--task",
                             "classification", "--pooling", "mean", "--output_dir", str(place), "--no_cuda"])
    mine = choose("--selector", "kmeans", "--n_clusters", 5, "--model", home.encoder, "--k", 9)
    read = choose("--selector", "kmeans", "--n_clusters", 5, "--embedding_dir", place, "--k", 9, output="read",
                  data=[])
    assert read.table["id"].tolist() == mine.table["id"].tolist()
    np.testing.assert_allclose(read.table["score"].astype(float), mine.table["score"].astype(float), atol=1e-4)
    inputs = read_json(read.directory / "run_meta.json")["inputs"]
    assert inputs["embedding_dir"]["path"] == str(place)
    few = tmp_path / "few"
    extract_embeddings.main(["--model_path", str(home.encoder), "--dataset", str(home.reviews), "--task",
                             "classification", "--max_samples", "9", "--output_dir", str(few), "--no_cuda"])
    line = refuse("--selector", "herding", "--embedding_dir", few, "--k", 3, "--max_samples", 48)
    assert "39" in line and "--max_samples" in line
    assert "no such" in refuse("--selector", "herding", "--embedding_dir", tmp_path / "nowhere", "--k", 3)
    found = choose("--selector", "herding", "--embedding_dir", few, "--k", 9)  # among those that were embedded
    assert sorted(found.table["id"]) == sorted(reviews_split(home.reviews).ids[:9])


def test_defaults_are_taken_from_what_is_read(home, choose):
    found = choose("--selector", "forgetting", "--cartography_dir", home.qa_map, "--k", 5, data=[])
    check(found, "forgetting", 5, [row["id"] for row in qa_rows(24, seed=1, prefix="train")])
    recorded = read_json(found.directory / "run_meta.json")
    assert recorded["datasets"][0]["dataset"] == str(home.qa) and recorded["arguments"]["task"] == "qa"
    found = choose("--selector", "aum", "--cartography_dir", home.run_map, "--k", 5, data=[], output="run")
    check(found, "aum", 5, reviews_split(home.reviews).ids)
    found = choose("--selector", "el2n", "--model_path", home.classifier, "--k", 5, data=[], output="model")
    check(found, "el2n", 5, reviews_split(home.reviews).ids)


def test_a_map_of_some_examples_chooses_among_them(home, choose, tmp_path):
    part = write_map(tmp_path / "part", reviews_split(home.reviews), list(range(10, 30)))
    found = choose("--selector", "aum", "--cartography_dir", part, "--k", 20)
    ids = reviews_split(home.reviews).ids
    assert set(found.table["id"]) == set(ids[10:30])
    assert found.meta["features"]["aum"]["without"] == sorted([*ids[:10], *ids[30:]])
    again = choose("--selector", "loss_trajectory", "--cartography_dir", part, "--k", 20, output="losses")
    assert set(again.table["id"]) == set(ids[10:30])


def test_the_file_may_be_shuffled(home, choose, tmp_path):
    rows = [dict(row) for row in review_rows(N, 0)]
    files = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        files.append(write_rows(tmp_path / str(number) / "train.jsonl", rows).parent)
        rows = [rows[row] for row in np.random.default_rng(1).permutation(N)]
    for selector in ("kcenter", "kmeans", "herding", "random", "stratified", "label_issues", "perplexity",
                     "pseudo_perplexity", "lexical_diversity", "self_filter"):
        tables = [choose("--selector", selector, *flags_of(home, selector), "--k", 9, data=["--dataset", file]).table
                  for file in files]
        assert tables[0]["id"].tolist() == tables[1]["id"].tolist(), selector


def test_seeds(home, choose):
    tables = [choose("--selector", "random", "--k", 9, "--seed", seed).table for seed in (1, 1, 2)]
    same(tables[0], tables[1])
    assert set(tables[0]["id"]) != set(tables[2]["id"])


def test_ids_stay_what_they_are(home, choose, tmp_path):
    ids = ["001", "12e5", "1", "1.0", "NA", "nan", "a,b", 'say "so"', "é", "line\nbreak", "True", " x"]
    rows = [{**row, "id": name} for row, name in zip(review_rows(12, 0), ids, strict=True)]
    data = ["--dataset", write_rows(tmp_path / "odd.jsonl", rows)]
    found = choose("--selector", "full", data=data)
    assert found.table["id"].tolist() == ids
    assert b'"12e5"' in (found.directory / "selected.csv").read_bytes()
    chosen = choose("--selector", "random", "--k", 8, data=data).directory
    run.main(["--do_train", "--train_ids", str(chosen), "--task", "classification", *map(str, data),
              "--model", "tiny", "--hidden_size", "8", "--num_train_epochs", "1", "--save_strategy", "no",
              "--no_cuda", "--output_dir", str(tmp_path / "trained")])
    assert trained_ids(tmp_path / "trained", ids) == set(read_table(tmp_path / "selection" / "selected.csv")["id"])


def trained_ids(directory: Path, ids) -> set[str]:
    """By the report of the filters."""
    [report] = [file for file in directory.glob("*filter*.json")]
    removed = [each for step in read_json(report)["filters"] for group in step["removed"].values() for each in group]
    return set(ids) - set(removed)


def test_run_trains_on_exactly_these(home, choose, tmp_path):
    found = choose("--selector", "aum", "--cartography_dir", home.run_map, "--k", 10, "--stratify", "label",
                   data=[])
    run.main(["--do_train", "--enable_cartography", "--train_ids", str(found.directory / "selected.csv"), "--task",
              "classification", "--dataset", str(home.reviews), "--model", "tiny", "--hidden_size", "8",
              "--num_train_epochs", "1", "--save_strategy", "no", "--no_cuda", "--output_dir", str(tmp_path / "model"),
              "--cartography_output_dir", str(tmp_path / "map")])
    assert set(load_cartography_metrics(tmp_path / "map").index) == set(found.table["id"])


def test_an_answer_that_is_not_at_its_offset_is_never_chosen(home, choose, tmp_path):
    rows = qa_rows(12, seed=3)
    for row in rows[:4]:
        row["answers"]["answer_start"] = [row["answers"]["answer_start"][0] + 1]
    data = ["--dataset", write_rows(tmp_path / "shifted.jsonl", rows), "--task", "qa", "--spans", "strict"]
    good = [row["id"] for row in rows[4:]]
    for selector in ("full", "random", "kcenter"):
        found = choose("--selector", selector, *flags_of(home, selector), "--max_length", 128, "--fraction", 1,
                       data=data)
        check(found, selector, 8, good)
        assert "4 of 12 examples ('ex-000', 'ex-001', 'ex-002', ...) are not chosen from: answer not at" in found.err


# --- the cache ----------------------------------------------------------------------------------------------------


def raising(*_, **__):
    raise AssertionError("a model was loaded")


@pytest.mark.parametrize("selector", ["kcenter", "perplexity", "pseudo_perplexity", "predictive_entropy", "grand",
                                      "consistency", "label_issues"])
def test_the_second_call_loads_no_model(home, choose, tmp_path, monkeypatch, selector):
    flags = ["--selector", selector, *flags_of(home, selector), "--k", 7]
    first = choose(*flags, cache=tmp_path / "cache")
    for module, name in ((models, "load_encoder"), (language_models, "load_masked"),
                         (language_models, "load_causal"), (models, "load_model")):
        monkeypatch.setattr(module, name, raising)
    same(first.table, choose(*flags, cache=tmp_path / "cache").table)
    with pytest.raises(AssertionError, match="a model was loaded"):
        choose(*flags, "--max_length", 64, cache=tmp_path / "cache")
    with pytest.raises(AssertionError, match="a model was loaded"):
        choose(*flags, "--max_samples", 40, cache=tmp_path / "cache")
    with pytest.raises(AssertionError, match="a model was loaded"):
        choose(*flags, "--split", "validation", cache=tmp_path / "cache")


def test_another_model_in_the_same_place_is_another_entry(home, choose, tmp_path):
    place, cache = modern_bert(tmp_path / "model", 1), tmp_path / "cache"
    flags = ["--selector", "kcenter", "--model", place, "--k", 9]
    before = choose(*flags, cache=cache).table
    modern_bert(place, 2)
    after = choose(*flags, cache=cache).table
    assert before["score"].tolist() != after["score"].tolist()
    assert len(list(cache.glob("embeddings-*"))) == 2
    choose(*flags, "--pooling", "cls", cache=cache)
    assert len(list(cache.glob("embeddings-*"))) == 3
    modern_bert(place, 1)
    same(before, choose(*flags, cache=cache).table)


@pytest.mark.parametrize("selector", ["kcenter", "perplexity", "grand"])
def test_an_interrupted_computation_resumes(home, choose, tmp_path, monkeypatch, selector):
    flags = ["--selector", selector, *flags_of(home, selector), "--k", 9]
    plain = choose(*flags, cache=tmp_path / "plain").table
    computed: list[int] = []
    stops = [2]

    def counting(directory, name, key, shape, prepare, dtype):
        def prepare_counted():
            order, compute = prepare()

            def counted(rows):
                if len(computed) == stops[0]:
                    raise KeyboardInterrupt
                computed.append(len(rows))
                return compute(rows)

            return order, counted

        return feature_cache.cached(directory, name, key, shape, prepare_counted, dtype)

    monkeypatch.setattr(candidates, "cached", counting)
    monkeypatch.setattr(feature_cache, "SHARD_ROWS", 10)
    with pytest.raises(SystemExit) as stopped:
        choose(*flags, cache=tmp_path / "cache")
    assert stopped.value.code == 130 and computed == [10, 10]
    assert not (tmp_path / "selection" / "selected.csv").exists() or read_table(
        tmp_path / "selection" / "selected.csv")["id"].tolist() == plain["id"].tolist()
    stops[0] = 99
    found = choose(*flags, cache=tmp_path / "cache")
    assert computed == [10, 10, 10, 10, 8]
    assert "resumes at row 20 of 48" in found.err
    assert found.table["id"].tolist() == plain["id"].tolist()


# --- the judge ----------------------------------------------------------------------------------------------------


def opinion(request: dict) -> str:
    """Objects to whatever is cold, dull or grey."""
    text = request["messages"][-1]["content"]
    words = text.partition("[begin sentence")[2].partition("[end sentence")[0].split()
    wrong = bool({"cold", "dull", "grey"} & set(words))
    return json.dumps({"ambiguous": False, "sarcastic": wrong, "label_disagrees": False, "reason": "so"})


def judge_flags(url: str) -> list:
    return ["--selector", "llm_judge", "--judge_model", "m", "--base_url", url, "--workers", 2]


def test_the_judge_drops_what_it_objects_to(home, choose, tmp_path, refuse):
    rows = reviews_split(home.reviews)
    good = {example for example, label in zip(rows.ids, rows.data["label"][:], strict=True)
            if rows.data.features["label"].names[label] == "good"}
    with chat_server(opinion) as server:
        found = choose(*judge_flags(server.url), "--k", 24, cache=tmp_path / "cache")
        assert len(server.requests) == N and server.requests[0]["model"] == "m"
        assert set(found.table["id"]) == good
        check(found, "llm_judge", 24, rows.ids)
        again = choose(*judge_flags(server.url), "--k", 24, cache=tmp_path / "cache", output="again")
        assert len(server.requests) == N, "answers are kept"
        same(found.table, again.table)
    with pytest.raises(SystemExit):
        choose(*judge_flags(server.url), "--k", 25, cache=tmp_path / "cache")
    filled = choose(*judge_flags(server.url), "--k", 25, "--fill", "random", cache=tmp_path / "cache", output="filled")
    assert filled.meta["filled"] == 1 and len(filled.table) == 25
    # The verdicts do not depend on the order of the file, nor the choice on the key.
    assert "OPENAI" not in json.dumps(filled.meta)


def test_a_judge_with_a_budget_goes_on(home, choose, tmp_path, capsys):
    with chat_server(opinion) as server:
        flags = [*judge_flags(server.url), "--k", 20, "--max_requests", 30]
        with pytest.raises(SystemExit) as stopped:
            choose(*flags, cache=tmp_path / "cache")
        [line] = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert stopped.value.code == 2 and "--max_requests" in line and "30" in line
        assert len(server.requests) == 30 and not (tmp_path / "selection").exists()
        assert len(choose(*flags, cache=tmp_path / "cache").table) == 20
        assert len(server.requests) == N


@pytest.mark.parametrize(
    ("url", "proxy", "words"),
    [("localhost:1", "", "expected the address of a server"), ("http://localhost:1", "socks9://x", "ALL_PROXY")],
)
def test_a_server_that_cannot_be_leaves_nothing(home, refuse, monkeypatch, url, proxy, words):
    monkeypatch.setenv("ALL_PROXY", proxy)
    before = set(home.place.rglob("*"))
    assert words in refuse(*judge_flags(url), "--k", 3)
    assert set(home.place.rglob("*")) == before


def test_a_judge_of_half_and_a_student_for_the_rest(home, choose, tmp_path, refuse):
    flags = ["--model", home.encoder, "--judge_fraction", 0.5]
    with chat_server(opinion) as server:
        found = choose(*judge_flags(server.url), *flags, "--k", 20, cache=tmp_path / "cache")
        assert len(server.requests) == N // 2
        more = choose(*judge_flags(server.url), *flags[:-1], 0.75, "--k", 20, "--seed", 5, cache=tmp_path / "cache",
                      output="more")
        assert len(server.requests) == 3 * N // 4, "answers are kept, whatever the seed"
    report = found.meta["features"]["judge_estimates"]["student"]
    assert report["asked"] == report["judged"] == N // 2 and found.meta["settings"]["judge_fraction"] == 0.5
    assert more.meta["features"]["judge_estimates"]["student"]["judged"] == 3 * N // 4
    assert -1 <= report["spearman_low"] <= report["spearman"] <= report["spearman_high"] <= 1
    assert 0 <= report["mean_absolute_error_low"] <= report["mean_absolute_error"] <= report[
        "mean_absolute_error_high"] <= 3
    assert "a student that has not seen them has Spearman" in found.err
    check(found, "llm_judge", 20, reviews_split(home.reviews).ids)
    wrong = {row["id"] for row in reviews_split(home.reviews).data
             if {"cold", "dull", "grey"} & set(row["sentence"].split())}
    judged = found.table[found.table["reason"] == "no objection of the judge"]["id"]
    assert len(judged) and not set(judged) & wrong
    assert found.table["reason"].str.contains("the student expects").sum() == 20 - len(judged)
    line = refuse(*judge_flags(server.url), "--model", home.encoder, "--judge_fraction", 0.4, "--k", 3)
    assert "verdicts on 19 examples are too few to learn from" in line, "said before anything is asked"


def test_without_a_verdict_none_is_chosen(home, choose, tmp_path):
    with chat_server(lambda request: opinion(request).replace("false", "null", 1)) as server:
        with pytest.raises(SystemExit):
            choose(*judge_flags(server.url), "--k", 1, "--max_samples", 2, cache=tmp_path / "cache")
    with chat_server(opinion, [says("no")] * 6) as server:
        found = choose(*judge_flags(server.url), "--workers", 1, "--k", 1, "--max_samples", 4,
                       cache=tmp_path / "other")
        assert len(found.meta["features"]["judge_flags"]["without"]) == 1
        assert found.table["id"].tolist() != found.meta["features"]["judge_flags"]["without"]


def test_a_judge_of_questions(home, choose, tmp_path):
    with chat_server(opinion) as server:
        found = choose(*judge_flags(server.url), "--k", 3, "--max_samples", 5, cache=tmp_path / "cache",
                       data=["--dataset", home.qa, "--task", "qa"])
        assert len(found.table) == 3
        assert "[begin context" in server.requests[0]["messages"][-1]["content"]


def test_a_judge_that_is_not_there(home, refuse, tmp_path, monkeypatch):
    with chat_server(opinion) as server:
        url = server.url
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    line = refuse(*judge_flags(url), "--k", 3, "--max_samples", 3)
    assert url in line and "--base_url" in line
    assert "--judge_model" in refuse("--selector", "llm_judge", "--k", 3)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "OPENAI_API_KEY" in refuse("--selector", "llm_judge", "--judge_model", "m", "--k", 3)
    line = refuse(*judge_flags(url), "--k", 3, "--judge_prompt", tmp_path / "none.txt")
    assert "none.txt" in line and "no such file" in line


# --- pictures -----------------------------------------------------------------------------------------------------


def test_what_was_chosen_is_drawn_where_it_lies(home, choose, tmp_path, refuse):
    """On embeddings and map that are named, also by a selector that reads neither."""
    split = reviews_split(home.reviews)
    vectors = tmp_path / "vectors"
    extract_embeddings.main(["--model_path", str(home.encoder), "--dataset", str(home.reviews), "--task",
                             "classification", "--pooling", "mean", "--no_cuda", "--output_dir", str(vectors)])
    found = choose("--selector", "random", "--k", 9, "--embedding_dir", vectors, "--cartography_dir", home.map,
                   "--plot_format", "svg")
    assert set(found.meta["features"]) == set()
    chosen = set(found.table["id"])
    on_map = read_table(found.directory / "selected_on_map.csv").set_index("id")
    metrics = load_cartography_metrics(home.map)
    assert set(on_map.index) == set(split.ids)
    assert on_map["confidence"].to_dict() == pytest.approx(metrics["confidence"].to_dict())
    on_embeddings = read_table(found.directory / "selected_on_embeddings.csv").set_index("id")
    for table in (on_map, on_embeddings):
        assert set(table.index[table["is_selected"]]) == chosen and len(table) == N
    values = slow_embeddings(home.encoder, split)
    values = values - values.mean(axis=0)
    _, _, axes = np.linalg.svd(values, full_matrices=False)
    points = on_embeddings.loc[split.ids, ["dim1", "dim2"]].to_numpy()
    expected = values @ axes[:2].T
    for place in (0, 1):  # up to its sign, an axis is an axis
        sign = np.sign(points[:, place] @ expected[:, place])
        np.testing.assert_allclose(sign * points[:, place], expected[:, place], atol=1e-3 * np.abs(expected).max())
    assert (found.directory / "selected_on_map.svg").exists()
    assert read_json(found.directory / "run_meta.json")["inputs"]["embedding_dir"]["path"] == str(vectors)
    plain = choose("--selector", "random", "--k", 9, output="plain")
    assert plain.table["id"].tolist() == found.table["id"].tolist()
    assert not list(plain.directory.glob("selected_on_*"))
    other = write_map(tmp_path / "other", load_split("demo:stories", "train", get_task("classification"), 20))
    assert str(other) in refuse("--selector", "random", "--k", 3, "--cartography_dir", other)


# --- what is recorded ---------------------------------------------------------------------------------------------


def test_the_metadata_say_what_was_done(home, choose):
    found = choose("--selector", "kmeans", "--n_clusters", 5, "--model", home.encoder, "--k", 7, "--seed", 3)
    meta = found.meta
    assert meta["settings"]["n_clusters"] == 5 and meta["seed"] == 3 and meta["fill"] is None
    assert meta["what"] == SELECTORS["kmeans"].what
    assert list(meta["features"]) == ["embeddings"] and meta["select_seconds"] >= 0
    recorded = read_json(found.directory / "run_meta.json")
    arguments = recorded["arguments"]
    assert (arguments["n_clusters"], arguments["k"], arguments["model"]) == (5, 7, str(home.encoder))
    assert arguments["dataset"] == str(home.reviews) and arguments["split"] == "train"
    assert recorded["datasets"][0]["fingerprint"] == reviews_split(home.reviews).fingerprint
    found = choose("--selector", "fusion", "--fusion", "aum:1, confidence:2", "--cartography_dir", home.map, "--k", 7)
    assert found.meta["settings"]["members"] == [["aum", 1.0], ["confidence", 2.0]]
    inputs = read_json(found.directory / "run_meta.json")["inputs"]
    assert inputs["cartography_dir"]["fingerprints"] == [reviews_split(home.reviews).fingerprint]


def test_all_settings_of_a_feature_are_in_the_metadata(home, choose):
    """selection_meta.json is to hold all settings: also those that the features were computed with."""
    found = choose("--selector", "label_issues", "--model", home.encoder, "--folds", 3, "--pooling", "cls", "--k", 7)
    text = json.dumps(found.meta)
    assert str(home.encoder) in text and '"folds": 3' in text and '"pooling": "cls"' in text


def test_an_older_selection_is_replaced_and_a_refused_one_stays(home, choose, refused, tmp_path):
    choose("--selector", "random", "--k", 9)
    second = choose("--selector", "random", "--k", 4)
    assert len(second.table) == 4
    before = {file.name: file.read_bytes() for file in second.directory.iterdir()}
    refused(select_subset.main, "--selector", "random", "--k", 4000, "--dataset", home.reviews, "--output_dir",
            second.directory)
    assert {file.name: file.read_bytes() for file in second.directory.iterdir()} == before


def test_flags_may_stand_in_a_file(home, choose, refuse, tmp_path):
    file = tmp_path / "flags.json"
    file.write_text(json.dumps({"selector": "stratified", "strata": ["token_count", "label"], "bins": 2, "k": 9}))
    found = choose("--config", file)
    assert (found.meta["selector"], found.meta["k"]) == ("stratified", 9)
    assert {"strata": ["token_count", "label"], "bins": 2}.items() <= found.meta["settings"].items()
    assert choose("--config", file, "--k", 5).meta["k"] == 5
    file.write_text(json.dumps({"selector": "pipeline", "pipeline": "aum:0.5, random:0.25",
                                "cartography_dir": str(home.map)}))
    assert choose("--config", file).meta["k"] == 12
    file.write_text('{"selektor": "random"}')
    assert "did you mean --selector" in refuse("--config", file, "--k", 3)
    assert "no such file" in refuse("--config", tmp_path / "none.json", "--k", 3)


# --- refused ------------------------------------------------------------------------------------------------------

WRONG = {
    "nothing": ([], ["--selector", "--list"]),
    "no size": (["--selector", "random"], ["--fraction", "--k"]),
    "two sizes": (["--selector", "random", "--k", "3", "--fraction", "0.1"], ["--fraction", "--k", "exclude"]),
    "fraction 0": (["--selector", "random", "--fraction", "0"], ["--fraction", "above 0"]),
    "fraction 2": (["--selector", "random", "--fraction", "2"], ["--fraction", "'2'"]),
    "fraction nan": (["--selector", "random", "--fraction", "nan"], ["--fraction", "nan"]),
    "k 0": (["--selector", "random", "--k", "0"], ["--k", "'0'"]),
    "too many": (["--selector", "random", "--k", "49"], ["49", "48"]),
    "flag of another": (["--selector", "random", "--k", "3", "--n_clusters", "4"], ["--n_clusters", "random"]),
    "keep of none": (["--selector", "kcenter", "--k", "3", "--keep", "lowest"], ["--keep", "kcenter"]),
    "map that is not there": (
        ["--selector", "kcenter", "--k", "3", "--cartography_dir", "x"], ["--cartography_dir", "no such"]),
    "no share of a judge": (["--selector", "llm_judge", "--k", "3", "--judge_fraction", "0"], ["--judge_fraction"]),
    "share of no judge": (["--selector", "kcenter", "--k", "3", "--judge_fraction", "0.5"], ["--judge_fraction"]),
    "fusion of groups": (["--fusion", "aum:1, kmeans:1", "--k", "3"], ["kmeans gives no score", "kcenter"]),
    "no model_path": (["--selector", "predictive_entropy", "--k", "3"], ["--model_path"]),
    "no model_path, consistency": (
        ["--selector", "consistency", "--perturbations", "swap", "--k", "3"], ["--model_path", "run.py"]),
    "strata": (["--selector", "stratified", "--k", "3", "--strata", "colour"], ["colour", "token_count", "label"]),
    "rank_by": (["--selector", "perplexity", "--k", "3", "--rank_by", "colour"], ["colour", "token_count"]),
    "stratify": (["--selector", "random", "--k", "3", "--stratify", "colour"], ["colour", "kind", "size"]),
    "band": (["--selector", "perplexity", "--k", "3", "--p_low", "0.8", "--p_high", "0.2"], ["--p_low", "--p_high"]),
    "weights": (["--selector", "lexical_diversity", "--k", "3", "--lexical_weights", "1,2"], ["--lexical_weights"]),
    "negative weights": (
        ["--selector", "lexical_diversity", "--k", "3", "--lexical_weights", "-1,2,3"], ["--lexical_weights"]),
    "pipeline of whom": (["--selector", "pipeline", "--k", "3"], ["--pipeline", "label_issues:0.9"]),
    "pipeline of nobody": (["--pipeline", "kcentre:0.3"], ["'kcentre'", "kcenter"]),
    "pipeline of a pipeline": (["--pipeline", "pipeline:0.3"], ["'pipeline'"]),
    "pipeline without number": (["--pipeline", "kcenter"], ["NAME:NUMBER", "'kcenter'"]),
    "pipeline that grows": (["--pipeline", "kcenter:0.3, random:0.5"], ["shares"]),
    "pipeline above 1": (["--pipeline", "kcenter:3"], ["at most 1"]),
    "pipeline with a selector": (["--pipeline", "kcenter:0.3", "--selector", "random"], ["--pipeline", "random"]),
    "both hybrids": (
        ["--pipeline", "kcenter:0.3", "--fusion", "aum:1", "--k", "3"], ["--pipeline and --fusion exclude"]),
    "fusion without scores": (["--fusion", "kcenter:1", "--k", "3"], ["kcenter", "aum"]),
    "fusion below 0": (["--fusion", "aum:-1", "--k", "3"], ["above 0", "aum:-1"]),
    "fusion without size": (["--fusion", "aum:1"], ["--fraction", "--k"]),
    "no map": (["--selector", "aum", "--k", "3", "--cartography_dir", "./none"], ["none", "--enable_cartography"]),
    "no map, losses": (
        ["--selector", "loss_trajectory", "--k", "3", "--cartography_dir", "./none"],
        ["none", "--enable_cartography"]),
    "pooling of questions": (
        ["--selector", "kcenter", "--k", "3", "--pooling", "cls_and_answer_mean"], ["--pooling", "mean"]),
    "unknown flag": (["--selektor", "random", "--k", "3"], ["--selektor", "did you mean --selector"]),
    "split": (["--selector", "random", "--k", "3", "--split", "dev"], ["dev", "validation"]),
    "seed": (["--selector", "random", "--k", "3", "--seed", "x"], ["--seed", "'x'"]),
    "folds": (["--selector", "label_issues", "--k", "3", "--folds", "1"], ["--folds", "2"]),
    "scratch model": (["--selector", "kcenter", "--k", "3", "--model", "tiny"], ["tiny", "run.py"]),
    "no encoder": (["--selector", "kcenter", "--k", "3", "--model", "./none"], ["./none", "directory"]),
    "no causal": (["--selector", "perplexity", "--k", "3", "--causal_lm", "./none"], ["./none", "directory"]),
    "no classifier": (["--selector", "predictive_entropy", "--k", "3", "--model_path", "./none"], ["./none"]),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_one_line_for_every_mistake(refuse, mistake):
    argv, wanted = WRONG[mistake]
    line = refuse(*argv)
    assert all(word in line for word in wanted), line
    assert len(line) < 500, line


def test_an_unknown_selector_is_told_the_nearest(refuse):
    line = refuse("--selector", "kcentre", "--k", 3)
    assert "kcentre" in line and "kcenter" in line
    assert "did you mean kcenter" in line


@pytest.mark.parametrize("selector, flag, name", [
    ("kcenter", "--model", "answerdotai/ModernBERT-base"), ("pseudo_perplexity", "--model", "nobody/nothing"),
    ("wordpiece_ratio", "--model", "nobody/nothing"), ("perplexity", "--causal_lm", "Qwen/Qwen3-1.7B-Base"),
    ("predictive_entropy", "--model_path", "nobody/nothing"),
])
def test_models_of_the_hub_that_are_out_of_reach(refuse, selector, flag, name):
    line = refuse("--selector", selector, flag, name, "--k", 3)
    assert name in line and "cannot load" in line and len(line) < 500


def test_a_dataset_of_the_hub_that_is_out_of_reach(refuse):
    assert "stanfordnlp/sst2" in refuse("--selector", "random", "--k", 3, data=[])


def test_a_missing_map_is_what_is_named(refuse, tmp_path, monkeypatch):
    """Without a dataset the map is to name one: that it is not there comes before a default dataset."""
    monkeypatch.chdir(tmp_path)
    line = refuse("--selector", "forgetting", "--k", 3, data=[])
    assert "cartography_output" in line and "--enable_cartography" in line


def test_a_map_of_another_dataset(home, refuse, tmp_path):
    other = write_map(tmp_path / "other", reviews_split(home.reviews, "test"))
    for selector in ("aum", "loss_trajectory"):
        line = refuse("--selector", selector, "--cartography_dir", other, "--k", 3)
        assert "[test]" in line and "[train]" in line
    rows = [{**row, "sentence": row["sentence"] + " indeed"} for row in map(dict, reviews_split(home.reviews).data)]
    for row in rows:
        row["label"] = ("bad", "good")[row["label"]]
    (tmp_path / "changed").mkdir()
    changed = write_rows(tmp_path / "changed" / "train.jsonl", rows)
    assert "other content" in refuse("--selector", "aum", "--cartography_dir", home.map, "--k", 3,
                                     data=["--dataset", changed])


def test_a_map_that_lacks_a_column(home, refuse, tmp_path):
    split = reviews_split(home.reviews)
    with stage(tmp_path / "thin", {}, owns=("*.json", "*.csv"), datasets=[split.identity()]) as path:
        for epoch in dynamics(split.ids):
            write_epoch(path, epoch["epoch"], split.ids,
                        {name: epoch[name] for name in ("confidence", "correct")})
        write_cartography(path, compute_metrics(read_dynamics(path)))
    line = refuse("--selector", "aum", "--cartography_dir", path, "--k", 3)
    assert "no column 'aum'" in line
    assert "no loss" in refuse("--selector", "loss_trajectory", "--cartography_dir", path, "--k", 3)


def test_the_output_directory_is_not_what_is_read(home, refused):
    line = refused(select_subset.main, "--selector", "aum", "--cartography_dir", home.map, "--k", 3, "--output_dir",
                   home.map)
    assert "--output_dir" in line and (home.map / "cartography_metrics.csv").exists()


LABELLED = ("label_issues", "self_filter")


@pytest.mark.parametrize("selector", LABELLED)
def test_labels_that_questions_have_not(home, refuse, selector):
    line = refuse("--selector", selector, "--model", home.encoder, "--k", 3,
                  data=["--dataset", home.qa, "--task", "qa"])
    assert "class label" in line and "qa" in line


def test_that_questions_have_no_labels_is_said_before_anything_is_computed(home, refuse, monkeypatch):
    monkeypatch.setattr(models, "load_encoder", raising)
    for selector in LABELLED:
        refuse("--selector", selector, "--model", home.encoder, "--k", 3, "--max_length", 77,
               data=["--dataset", home.qa, "--task", "qa"])


def test_questions_are_not_stratified_by_label(home, refuse):
    line = refuse("--selector", "random", "--k", 3, "--stratify", "label",
                  data=["--dataset", home.qa, "--task", "qa"])
    assert "--stratify label" in line and "source" in line


def test_questions_are_stratified_without_a_label(home, choose, refuse):
    data = ["--dataset", home.qa, "--task", "qa"]
    found = choose("--selector", "stratified", "--k", 3, data=data)
    assert found.meta["settings"]["strata"] == ["token_count", "flesch"]
    assert "no class label" in refuse("--selector", "stratified", "--k", 3, "--strata", "label", data=data)


def test_a_column_of_questions_may_be_called_label(choose, tmp_path):
    rows = [{**row, "label": "ab"[number % 2]} for number, row in enumerate(qa_rows(12, seed=3))]
    data = ["--dataset", write_rows(tmp_path / "labelled.jsonl", rows), "--task", "qa"]
    found = choose("--selector", "random", "--k", 6, "--stratify", "label", data=data)
    labels = {row["id"]: row["label"] for row in rows}
    assert found.table["id"].map(labels).value_counts().tolist() == [3, 3]


def test_wordnet_that_is_missing(home, refuse, monkeypatch):
    import nltk.data
    from nltk.corpus import wordnet

    monkeypatch.setattr(nltk.data, "path", [])
    if hasattr(wordnet, "_unload"):
        wordnet._unload()
    line = refuse("--selector", "consistency", "--model_path", home.classifier, "--k", 3)
    assert "nltk.downloader wordnet" in line and "--perturbations deletion swap" in line


@pytest.mark.parametrize("content", [None, "{epochs: 3}", "[1]"])
def test_a_training_config_that_cannot_be_read(refuse, tmp_path, content, monkeypatch):
    monkeypatch.setattr(selection_features, "make", raising)  # it is said before the training
    if content is not None:
        (tmp_path / "flags.json").write_text(content)
    line = refuse("--selector", "el2n", "--training_config", tmp_path / "flags.json", "--model", "tiny", "--k", 3)
    assert "flags.json" in line


@pytest.mark.parametrize("probabilities", [
    "embeddings",
    "model",
])
def test_more_folds_than_examples_of_a_class(home, refuse, monkeypatch, probabilities):
    monkeypatch.setattr(selection_features, "make", raising)
    line = refuse("--selector", "label_issues", "--probabilities", probabilities, "--model", home.encoder,
                  "--folds", 30, "--k", 3)
    assert "folds" in line and "24" in line


def test_a_cache_that_is_a_file(home, refused, tmp_path):
    (tmp_path / "file").write_text("x")
    line = refused(select_subset.main, "--selector", "kcenter", "--model", home.encoder, "--k", 3, "--dataset",
                   home.reviews, "--cache_dir", tmp_path / "file", "--output_dir", tmp_path / "out")
    assert "--cache_dir" in line or str(tmp_path / "file") in line


def test_a_reader_is_no_classifier(home, refuse):
    line = refuse("--selector", "predictive_entropy", "--model_path", home.reader, "--k", 3)
    assert str(home.reader) in line


def test_the_task_must_be_named(home, refuse):
    """Questions are taken for labelled texts unless the task is named: the message is to say so."""
    assert "--task" in refuse("--selector", "random", "--k", 3, data=["--dataset", home.qa])


@pytest.mark.parametrize("selector", ["kcenter", "kmeans", "herding", "lexical_diversity", *LABELLED])
def test_a_vector_that_is_not_finite(home, refuse, tmp_path, selector):
    place = tmp_path / "vectors"
    extract_embeddings.main(["--model_path", str(home.encoder), "--dataset", str(home.reviews), "--task",
                             "classification", "--output_dir", str(place), "--no_cuda"])
    ids = reviews_split(home.reviews).ids
    vectors = np.load(place / "embeddings.npy")
    vectors[5, 3] = np.nan
    np.save(place / "embeddings.npy", vectors)
    assert ids[5] in refuse("--selector", selector, "--embedding_dir", place, "--k", 3)


def test_vectors_that_are_not_as_many_as_ids(home, refuse, tmp_path):
    place = tmp_path / "vectors"
    place.mkdir()
    (place / "embeddings_metadata.json").write_text(json.dumps({"ids": reviews_split(home.reviews).ids}))
    np.save(place / "embeddings.npy", np.ones((30, 4), dtype=np.float32))
    line = refuse("--selector", "kcenter", "--embedding_dir", place, "--k", 3)
    assert "30" in line and "48" in line


def test_a_model_directory_that_is_not_whole(home, refuse, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((home.encoder / "config.json").read_bytes())
    for selector in ("kcenter", "pseudo_perplexity", "wordpiece_ratio"):
        assert str(bare) in refuse("--selector", selector, "--model", bare, "--k", 3), selector


def test_a_model_with_other_labels(home, refuse):
    line = refuse("--selector", "predictive_entropy", "--model_path", home.classifier, "--k", 3, data=NLI)
    assert "good" in line


def test_the_model_directory_is_not_written_into(home, refused, tmp_path):
    """Its run_meta.json is what tells what the model was trained on."""
    model = modern_bert(tmp_path / "model", 0)
    before = sorted(file.name for file in model.iterdir())
    line = refused(select_subset.main, "--selector", "kcenter", "--model", model, "--k", 3, "--dataset", home.reviews,
                   "--output_dir", model, "--cache_dir", home.place / "cache", "--no_cuda")
    assert "--output_dir" in line and sorted(file.name for file in model.iterdir()) == before


def test_an_output_directory_that_is_a_file(home, refused, tmp_path):
    (tmp_path / "file").write_text("x")
    line = refused(select_subset.main, "--selector", "random", "--k", 3, "--dataset", home.reviews, "--output_dir",
                   tmp_path / "file")
    assert "is a file" in line


def test_a_column_of_lists_is_no_stratum(home, refuse):
    data = ["--dataset", home.qa, "--task", "qa"]
    assert "--stratify answers" in refuse("--selector", "random", "--k", 3, "--stratify", "answers", data=data)


def test_half_a_fold(refuse):
    assert "--folds" in refuse("--selector", "label_issues", "--k", 3, "--folds", 2.5)


@pytest.mark.parametrize("flags", [
    ["--selector", "kcenter", "--embedding_dir", "{vectors}", "--pooling", "cls"],
    ["--selector", "label_issues", "--embedding_dir", "{vectors}", "--warmup_epochs", "3"],
    ["--selector", "el2n", "--model_path", "{classifier}", "--warmup_epochs", "3"],
    ["--selector", "random", "--causal_lm", "x"], ["--selector", "random", "--rounds", "3"],
    ["--selector", "aum", "--judge_model", "x"], ["--selector", "kcenter", "--strata", "label"],
    ["--pipeline", "random:0.5,aum:0.1", "--keep", "lowest"],
])
def test_flags_that_do_nothing_are_told(home, refuse, flags):
    vectors = home.place / "vectors"
    if not vectors.exists():
        extract_embeddings.main(["--model_path", str(home.encoder), "--dataset", str(home.reviews), "--task",
                                 "classification", "--output_dir", str(vectors), "--no_cuda"])
    flags = [word.format(vectors=vectors, classifier=home.classifier) for word in flags]
    line = refuse(*flags, "--k", 3)
    assert "does nothing" in line and flags[-2] in line


def test_a_model_path_where_a_model_is_meant(refuse, home):
    line = refuse("--selector", "kcenter", "--model_path", home.classifier, "--k", 3)
    assert "--model_path" in line and "--model " in line.replace("--model_path", "")


def test_the_command_line_wins_over_the_file_in_size_too(home, choose, tmp_path):
    file = tmp_path / "flags.json"
    file.write_text(json.dumps({"selector": "random", "fraction": 0.5}))
    assert choose("--config", file, "--k", 5).meta["k"] == 5


# --- a warm-up ----------------------------------------------------------------------------------------------------


def test_the_warm_up_trains_on_exactly_the_candidates(home, tmp_path, monkeypatch, choose):
    """What the training of a warm-up is told, for ids that CSV and JSON write differently."""
    ids = ["001", 'say "so"', "é", "a,b", "back\\slash", "12e5", *[f"r{number}" for number in range(6)]]
    rows = [{**row, "id": name} for row, name in zip(review_rows(12, 0), ids, strict=True)]
    data = ["--dataset", write_rows(tmp_path / "odd.jsonl", rows), "--max_samples", 10]
    seen: list = []

    def stop(needed):
        seen.extend(needed)
        raise KeyboardInterrupt

    monkeypatch.setattr(selection_features, "make", stop)
    with pytest.raises(SystemExit):
        choose("--selector", "el2n", "--model", "tiny", "--warmup_epochs", 2, "--k", 3, data=data,
               cache=tmp_path / "cache")
    [asked] = seen
    words = dict(word.partition("=")[::2] for word in asked.command[1:])
    assert words["--num_train_epochs"] == "2" and words["--task"] == "classification"
    assert set(read_table(words["--train_ids"], text=("id",))["id"]) == set(ids[:10])


def test_el2n_after_a_warm_up(home, choose, tmp_path, monkeypatch):
    flags = ["--model", "tiny", "--max_length", 32, "--k", 8]
    training = tmp_path / "training.json"
    training.write_text(json.dumps({"hidden_size": 8, "learning_rate": 0.01}))
    cache = tmp_path / "cache"
    found = choose("--selector", "el2n", "--training_config", training, *flags, cache=cache)
    check(found, "el2n", 8, reviews_split(home.reviews).ids)
    scores = found.table["score"].astype(float)
    assert scores.is_monotonic_decreasing and scores.between(0, math.sqrt(2)).all()
    assert "trained on this very dataset" not in found.err
    began = time.monotonic()
    other = choose("--selector", "grand", "--training_config", training, *flags, cache=cache, output="grand")
    assert time.monotonic() - began < 4, "one training serves both"
    check(other, "grand", 8, reviews_split(home.reviews).ids)


@pytest.mark.slow
def test_label_issues_by_the_model_itself(home, choose, tmp_path):
    found = choose("--selector", "label_issues", "--probabilities", "model", "--model", "tiny", "--folds", 2,
                   "--max_length", 32, "--k", 8, "--warmup_epochs", 2, cache=tmp_path / "cache")
    check(found, "label_issues", 8, reviews_split(home.reviews).ids)
    assert len(list((tmp_path / "cache").glob("model-*/trainer_output/config.json"))) == 2


@pytest.mark.slow
def test_a_warm_up_on_questions(home, choose, tmp_path):
    found = choose("--selector", "grand", "--model", home.reader, "--max_length", 96, "--doc_stride", 16, "--k", 5,
                   data=["--dataset", home.qa, "--task", "qa"], cache=tmp_path / "cache")
    check(found, "grand", 5, [row["id"] for row in qa_rows(24, seed=1, prefix="train")])


@pytest.mark.slow
def test_a_warm_up_that_fails_is_one_line(home, refuse, tmp_path):
    (tmp_path / "training.json").write_text('{"learning_rate": -1}')
    line = refuse("--selector", "el2n", "--model", "tiny", "--training_config", tmp_path / "training.json", "--k", 3)
    assert "learning_rate" in line and "log.txt" in line


# --- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--help", "--list"])
def test_help_is_quick_and_imports_nothing_heavy(flag):
    code = ("import sys, select_subset\ntry:\n    select_subset.main([sys.argv[1]])\nexcept SystemExit: pass\n"
            "print([name for name in ('torch', 'transformers', 'sklearn', 'cleanlab', 'openai') "
            "if name in sys.modules], file=sys.stderr)")
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, flag], cwd=REPOSITORY, capture_output=True, text=True)
    seconds = time.monotonic() - began
    assert done.returncode == 0 and done.stderr.strip() == "[]"
    assert all(name in done.stdout for name in (("--selector", "--k") if flag == "--help" else SELECTORS))
    assert seconds < 2 or seconds < 2.5 * interpreter_seconds()


@functools.cache
def interpreter_seconds() -> float:
    """Of an import of pandas alone, on a machine that may be busy."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import pandas, pyarrow"], check=True)
    return time.monotonic() - began


def test_the_list_needs_nothing_else(capsys):
    select_subset.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    for selector in SELECTORS.values():
        [line] = [line for line in lines if line.split()[:1] == [selector.name]]
        assert selector.what in line


def test_the_help_names_the_default_task(capsys):
    with pytest.raises(SystemExit):
        select_subset.main(["--help"])
    assert "else qa" not in " ".join(capsys.readouterr().out.split())


def test_the_last_line_is_a_command_that_works(home, choose, tmp_path):
    """run.py trains on another dataset, for another task, unless it is told."""
    found = choose("--selector", "random", "--k", 9, data=NLI)
    assert "--do_train" in found.out and "--task nli" in found.out and "--dataset demo:nli" in found.out


def test_embeddings_of_one_split_in_two_orders_are_two_entries(home, tmp_path):
    """Rows are those of the split in its order, also where the other order is in the cache."""
    split = reviews_split(home.reviews)
    turned = dataclasses.replace(split, data=split.data.select(range(len(split.data) - 1, -1, -1)))
    args = parse_args(["--selector", "kcenter", "--k", "3", "--dataset", str(home.reviews), "--model",
                       str(home.encoder), "--max_length", "32", "--no_cuda", "--cache_dir", str(tmp_path)])
    one, other = (selection_features.features_for(candidates.Candidates(each, np.arange(N), args))[0]["embeddings"]
                  for each in (split, turned))
    np.testing.assert_allclose(one, other[::-1], atol=1e-5)


def test_the_printed_command_names_columns_that_were_named(choose):
    data = ["--dataset", "demo:stories", "--task", "classification", "--text_columns", "question", "--label_column",
            "category"]
    found = choose("--selector", "random", "--k", 5, data=data)
    assert "--text_columns question --label_column category" in found.out


def test_every_kind_of_change_is_made(refuse, home):
    line = refuse("--selector", "consistency", "--k", 3, "--model_path", home.classifier, "--perturbations",
                  "deletion", "swap", "--copies", 1)
    assert "--copies 1 leaves out some of the 2 --perturbations" in line


def test_a_missing_value_is_another_stratum_than_the_text_none(tmp_path):
    rows = [{**row, "kind": kind} for row, kind in zip(review_rows(4, 0), (None, "None", "new", None), strict=True)]
    split = load_split(str(write_rows(tmp_path / "train.jsonl", rows)), "train", get_task("classification"))
    strata = candidates.Candidates(split, np.arange(4), argparse.Namespace()).strata("kind").tolist()
    assert strata[0] == strata[3] and len(set(strata)) == 3


def test_a_column_to_stratify_by_may_be_called_as_a_feature_is(choose, home, tmp_path):
    """The selector reads its own feature, not the column."""
    rows = [{**row, "token_count": "ab"[number % 2]} for number, row in enumerate(review_rows(20, 0))]
    data = ["--dataset", write_rows(tmp_path / "named.jsonl", rows), "--task", "classification"]
    found = choose("--selector", "stratified", "--strata", "token_count", "--bins", 2, "--k", 10, "--stratify",
                   "token_count", data=data)
    groups = {row["id"]: row["token_count"] for row in rows}
    assert sorted(groups[example] for example in found.table["id"]) == ["a"] * 5 + ["b"] * 5
    assert found.table["reason"].str.contains(r"token_count [12] of 2").all()


def test_an_unknown_selector_is_one_readable_line(refused):
    line = refused(select_subset.main, "--selector", "kcentre", "--k", "3", "--dataset", "demo:nli", "--task", "nli")
    assert "--selector kcentre: no such selector (--list names all); did you mean kcenter?" in line
    line = refused(select_subset.main, "--selector", "bogus", "--k", "3", "--dataset", "demo:nli", "--task", "nli")
    assert "--selector bogus: no such selector (--list names all) (" in line
