"""model_scores.py against torch.autograd in float64, one row at a time, and against what run.py writes."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import qa_rows, review_rows, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

import run
from datamap.cartography.metrics import load_cartography_metrics
from datamap.core import progress
from datamap.core.errors import UserError
from datamap.core.files import write_json
from datamap.core.splits import load_split
from datamap.selection.model_scores import SCORES, class_probabilities, evaluated, score_rows, wordpiece_ratio
from datamap.tasks.classification import SequenceClassification
from datamap.tasks.nli import NaturalLanguageInference
from datamap.tasks.qa import QuestionAnswering
from datamap.training.lstm_model import LSTMConfig, LSTMForSequenceClassification
from datamap.training.models import load_model, trained_fingerprint
from datamap.training.tiny_model import train_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("bad", "good", "so-so")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
DECODER = {**SIZES, "num_key_value_heads": 1, "head_dim": 8}
WINDOWS = {"max_length": 48, "doc_stride": 12}


def predict(*model_and_split, **settings) -> list:
    return evaluated(*model_and_split, **settings).predicted_values()


# --- data and models ---


def long_qa_rows() -> list[dict]:
    """Several windows each; one unanswerable, one whose answer is longer than a window."""
    rows = qa_rows(7, seed=5)
    rows[2]["answers"] = {"text": [], "answer_start": []}
    start = rows[4]["context"].index(" ") + 1
    rows[4]["answers"] = {"text": [rows[4]["context"][start:-20]], "answer_start": [start]}
    return rows


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scored")
    nli = [{"premise": row["sentence"], "hypothesis": row["sentence"][::-1], "label": row["label"]}
           for row in review_rows(9, 4, CLASSES)]
    made = {}
    for name, rows, task in (
        ("qa", long_qa_rows(), QuestionAnswering()),
        ("one", review_rows(24, 3, CLASSES), SequenceClassification()),
        ("pair", nli, NaturalLanguageInference()),
        ("binary", review_rows(40, 3), SequenceClassification()),
    ):
        made[name] = load_split(str(write_rows(directory / f"{name}.jsonl", rows)), "train", task)
    return made


@pytest.fixture(scope="module")
def tokenizer(splits):
    """Of all texts; BERT's special tokens, token types 0 and 1."""
    texts = [text for split in splits.values() for column in split.task.text_columns for text in split.data[column]]
    return train_tokenizer(texts, max_length=128)


def build(name: str, kind: str, tokenizer, num_labels: int = 3):
    """A model with large random weights, so that its answers differ, and with dropout, which must not be used."""
    head = {"num_labels": num_labels, "id2label": dict(enumerate(CLASSES[:num_labels]))} if kind != "qa" else {}
    common = {"vocab_size": len(tokenizer), "pad_token_id": 0, "initializer_range": 0.4, **head}
    special = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    torch.manual_seed(3)
    if name.startswith("lstm"):
        reads = name == "lstm_reader"
        config = LSTMConfig(vocab_size=len(tokenizer), hidden_size=16, dropout=0.3, reader=reads, **head)
        return LSTMForSequenceClassification(config)
    config = {
        "electra": lambda: transformers.ElectraConfig(**common, **SIZES, embedding_size=8),
        "bert": lambda: transformers.BertConfig(**common, **SIZES),
        "distilbert": lambda: transformers.DistilBertConfig(**common, dim=16, n_layers=2, n_heads=2, hidden_dim=24),
        "roberta": lambda: transformers.RobertaConfig(**common, **SIZES, type_vocab_size=2),
        "modernbert": lambda: transformers.ModernBertConfig(
            **common, **SIZES, **special, classifier_pooling="cls", local_attention=16
        ),
        "modernbert_mean": lambda: transformers.ModernBertConfig(
            **common, **SIZES, **special, classifier_pooling="mean", classifier_bias=True
        ),
        "qwen3": lambda: transformers.Qwen3Config(**common, **DECODER),
        "gpt2": lambda: transformers.GPT2Config(**common, n_embd=16, n_layer=2, n_head=2, n_positions=128),
    }[name]()
    if kind == "qa":
        return transformers.AutoModelForQuestionAnswering.from_config(config)
    return transformers.AutoModelForSequenceClassification.from_config(config)


HEADS = {
    "electra": "classifier.out_proj", "bert": "classifier", "distilbert": "classifier", "gpt2": "score",
    "roberta": "classifier.out_proj", "modernbert": "classifier", "modernbert_mean": "classifier", "qwen3": "score",
    "lstm": "classifier", "lstm_reader": "classifier",
}
QA_HEADS = dict.fromkeys(("electra", "bert", "distilbert", "roberta", "qwen3", "gpt2"), "qa_outputs")
QA_HEADS["modernbert"] = "classifier"


def slow_rows(model, tokenizer, split, head: str, **lengths) -> dict[str, list[list[float]]]:
    """Every score of every window that counts, by the definition: float64, no padding, no batch, autograd."""
    model = copy.deepcopy(model).double().eval()
    weights = list(model.get_submodule(head).parameters())
    assert len(weights) == 1 + (model.get_submodule(head).bias is not None)
    features = split.task.features(split.data, tokenizer, **lengths)
    found: dict[str, list[list[float]]] = {name: [[] for _ in range(len(split.data))] for name in SCORES}
    accepted = set(model.forward.__code__.co_varnames) | set(model.forward.__wrapped__.__code__.co_varnames
                                                             if hasattr(model.forward, "__wrapped__") else ())
    for row in features:
        if not row["counts"]:
            continue
        given_names = [name for name in tokenizer.model_input_names if name in accepted]
        outputs = model(**{name: torch.tensor([row[name]]) for name in given_names})
        if split.task.name == "qa":
            roles = torch.tensor(row["token_roles"])
            logits = [outputs.start_logits[0], outputs.end_logits[0]]
            golds, possible = [row["start_positions"], row["end_positions"]], roles >= 2
        else:
            logits, golds = [outputs.logits[0]], [row["labels"]]
            possible = torch.ones_like(logits[0], dtype=torch.bool)
        losses, entropies, norms = [], [], []
        for logit, gold in zip(logits, golds, strict=True):
            losses.append(torch.logsumexp(logit, 0) - logit[gold])
            p = torch.exp(logit - torch.logsumexp(logit, 0)).detach().numpy()
            norms.append(np.sqrt(((p - np.eye(len(p))[gold]) ** 2).sum()))
            q = p[possible.numpy()] / p[possible.numpy()].sum()
            entropies.append(-sum(each * np.log(each) for each in q if each > 0))
        loss = sum(losses) / len(losses)
        gradients = torch.autograd.grad(loss, weights)
        values = {"entropy": np.mean(entropies), "el2n": np.mean(norms),
                  "grand": np.sqrt(sum((gradient**2).sum().item() for gradient in gradients))}
        for name, value in values.items():
            found[name][row["example_index"]].append(value)
    return found


def assert_equal_to_slow(scores, slow, rtol=2e-4):
    for name, column in slow.items():
        for example, windows in enumerate(column):
            assert bool(np.ma.getmaskarray(scores[name])[example]) == (not windows)
            if windows:
                np.testing.assert_allclose(scores[name][example], np.mean(windows), rtol=rtol, atol=2e-6, err_msg=name)


# --- scores ---


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("kind", ["one", "pair"])
def test_scores_of_a_classifier_equal_autograd_row_by_row(name, kind, splits, tokenizer):
    model = build(name, "classification", tokenizer).train()
    scores = score_rows(model, tokenizer, splits[kind], batch_size=4, names=SCORES)
    slow = slow_rows(model, tokenizer, splits[kind], HEADS[name])
    assert_equal_to_slow(scores, slow)
    assert np.ptp(scores["grand"]) > 1e-2 and np.ptp(scores["entropy"]) > 1e-3  # or anything would pass
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", QA_HEADS)
def test_scores_of_question_answering_equal_autograd_window_by_window(name, splits, tokenizer):
    model = build(name, "qa", tokenizer)
    scores = score_rows(model, tokenizer, splits["qa"], batch_size=4, names=SCORES, **WINDOWS)
    slow = slow_rows(model, tokenizer, splits["qa"], QA_HEADS[name], **WINDOWS)
    counted = [len(windows) for windows in slow["grand"]]
    assert counted[4] == 0 and counted[2] > 2 and max(counted) > 1  # nowhere whole; unanswerable; in an overlap
    assert_equal_to_slow(scores, slow)
    assert np.ptp(scores["grand"].compressed()) > 1e-2


@pytest.mark.parametrize(
    "kind, name",
    [("qa", "electra"), ("qa", "modernbert"), ("one", "qwen3"), ("pair", "lstm_reader"), ("one", "modernbert_mean")],
)
def test_order_and_batch_size_do_not_matter(kind, name, splits, tokenizer):
    split = splits[kind]
    model = build(name, "qa" if kind == "qa" else "classification", tokenizer)
    lengths = WINDOWS if kind == "qa" else {}
    whole = score_rows(model, tokenizer, split, batch_size=64, names=SCORES, **lengths)
    alone = score_rows(model, tokenizer, split, batch_size=1, names=SCORES, **lengths)
    order = np.random.default_rng(0).permutation(len(split.data))
    shuffled = dataclasses.replace(split, data=split.data.select(order))
    turned = score_rows(model, tokenizer, shuffled, batch_size=3, names=SCORES, **lengths)
    for score in SCORES:
        for other in (alone[score], turned[score][np.argsort(order)]):
            assert (np.ma.getmaskarray(other) == np.ma.getmaskarray(whole[score])).all()
            scale = np.maximum(1, whole[score].compressed())  # grand has no upper end
            np.testing.assert_allclose(other.compressed() / scale, whole[score].compressed() / scale, atol=1e-5)
    answers = predict(model, tokenizer, split, batch_size=64, **lengths)
    again = predict(model, tokenizer, shuffled, batch_size=1, **lengths)
    assert [answers[row] for row in order] == again


def test_a_model_is_given_only_what_it_takes(splits, tokenizer):
    """The tokenizer makes token types, and this forward has no room for them."""

    class Strict(transformers.BertForSequenceClassification):
        def forward(self, input_ids, attention_mask):
            return super().forward(input_ids, attention_mask)

    model = build("bert", "classification", tokenizer)
    strict = Strict(model.config)
    strict.load_state_dict(model.state_dict())
    found, usual = (score_rows(each, tokenizer, splits["one"]) for each in (strict, model))
    assert list(found) == list(usual) == ["entropy", "el2n", "grand"]
    for name in usual:  # of one text, all types are 0
        np.testing.assert_allclose(found[name], usual[name], rtol=1e-6)


def test_off_a_terminal_a_line_says_how_far_it_is(splits, tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(progress, "EVERY", 0.001)
    caplog.set_level("INFO")
    score_rows(build("electra", "classification", tokenizer), tokenizer, splits["one"], 1, names=("el2n",))
    told = r"scoring: \d+ of \d+ windows, [\d.,]+ examples/s, \d+ s left"
    assert any(re.fullmatch(told, line) for line in caplog.messages), caplog.messages


def test_only_what_is_asked_for_is_returned(splits, tokenizer):
    model = build("electra", "classification", tokenizer)
    scores = score_rows(model, tokenizer, splits["one"], names=("el2n", "entropy"))
    assert list(scores) == ["el2n", "entropy"]
    everything = score_rows(model, tokenizer, splits["one"], names=SCORES)
    for name in scores:
        np.testing.assert_allclose(scores[name], everything[name], rtol=1e-6)
    with pytest.raises(ValueError, match="el2m"):
        score_rows(model, tokenizer, splits["one"], names=("el2m",))


def test_ranges_of_the_scores(splits, tokenizer):
    for kind, name in (("qa", "bert"), ("one", "bert")):
        model = build(name, "qa" if kind == "qa" else "classification", tokenizer)
        scores = score_rows(model, tokenizer, splits[kind], names=SCORES, **WINDOWS)
        assert all(score.dtype == np.float64 and score.shape == (len(splits[kind].data),) for score in scores.values())
        assert 0 <= scores["entropy"].min() <= scores["entropy"].max() <= np.log(48 if kind == "qa" else 3) + 1e-9
        assert 0 <= scores["el2n"].min() <= scores["el2n"].max() <= np.sqrt(2) + 1e-9
    with torch.no_grad():  # a model that knows nothing: the upper end of entropy, and EL2N by hand
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
    scores = score_rows(model, tokenizer, splits["one"], names=SCORES)
    np.testing.assert_allclose(scores["entropy"], np.log(3), rtol=1e-12)
    np.testing.assert_allclose(scores["el2n"], np.sqrt(4 / 9 + 1 / 9 + 1 / 9), rtol=1e-12)


def test_the_easiest_examples_keep_their_order(splits, tokenizer):
    """Probabilities that float32 rounds to 1 still give the scores that the formulas have for the logits."""
    model = build("electra", "classification", tokenizer, num_labels=2)
    gaps = np.linspace(18, 28, len(splits["binary"].data))
    labels = np.asarray(splits["binary"].data["label"][:])
    seen = iter(np.argsort(-np.asarray(splits["binary"].task.features(splits["binary"].data, tokenizer)["length"][:]),
                           kind="stable"))

    def replaced(module, arguments, output):  # rows come one by one
        row = next(seen)
        logits = torch.zeros_like(output)
        logits[0, labels[row]] = gaps[row]
        return logits

    model.classifier.out_proj.register_forward_hook(replaced)
    scores = score_rows(model, tokenizer, splits["binary"], batch_size=1, names=("el2n",))
    gaps = gaps.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(scores["el2n"], np.sqrt(2) * np.exp(-gaps) / (1 + np.exp(-gaps)), rtol=1e-3)
    assert (np.argsort(-scores["el2n"]) == np.arange(len(gaps))).all()


def test_logits_that_are_not_finite_are_refused(splits, tokenizer):
    for kind, name, weights in (("qa", "electra", "qa_outputs"), ("one", "electra", "classifier.out_proj"),
                                ("one", "qwen3", "score")):
        for value in (torch.nan, torch.inf):
            model = build(name, "qa" if kind == "qa" else "classification", tokenizer)
            with torch.no_grad():
                model.get_submodule(weights).weight[0, 0] = value
            for names in (("entropy",), ("grand",)):
                with pytest.raises(UserError, match="diverged"):
                    score_rows(model, tokenizer, splits[kind], names=names, **WINDOWS)
            with pytest.raises(UserError, match="diverged"):
                predict(model, tokenizer, splits[kind], **WINDOWS)
            assert all(weight.requires_grad for weight in model.parameters())


def test_grand_needs_a_linear_layer(splits, tokenizer):
    model = build("bert", "classification", tokenizer)
    model.classifier = torch.nn.Sequential(torch.nn.Linear(16, 3), torch.nn.Tanh())
    assert score_rows(model, tokenizer, splits["one"], names=("el2n",))["el2n"].shape == (24,)
    with pytest.raises(UserError, match="BertForSequenceClassification computes its logits by something else"):
        score_rows(model, tokenizer, splits["one"], names=("grand",))
    assert not any(module._forward_hooks for module in model.modules())


def test_rankings_that_algebra_makes_one(splits, tokenizer):
    """The claims of the module's docstring, and that those it does not make are false."""
    model = build("electra", "classification", tokenizer, num_labels=2)
    scores = score_rows(model, tokenizer, splits["binary"], names=SCORES)

    def gold(kind):
        found = class_probabilities(model, tokenizer, splits[kind], max_length=64, batch_size=8)
        return found[np.arange(len(found)), splits[kind].data["label"][:]]

    def ranking(name, table=scores):
        return np.argsort(np.asarray(table[name]).round(12), kind="stable").tolist()

    p = gold("binary")
    np.testing.assert_allclose(scores["el2n"], np.sqrt(2) * (1 - p), rtol=1e-5, atol=1e-6)
    by_p = np.argsort(-p, kind="stable").tolist()
    assert (np.diff(p[ranking("el2n")]) < 1e-6).all()  # by p, but for what float32 cannot tell apart
    assert ranking("entropy") != by_p and ranking("entropy") != by_p[::-1] and ranking("grand") != by_p
    uncertain = np.asarray(p * (1 - p))
    assert (np.diff(uncertain[ranking("entropy")]) > -1e-6).all()
    assert (np.diff(np.asarray(scores["entropy"])[np.argsort(uncertain)]) > -1e-6).all()

    model = build("electra", "classification", tokenizer)
    three = score_rows(model, tokenizer, splits["one"], names=SCORES)
    assert ranking("el2n", three) != np.argsort(-gold("one"), kind="stable").tolist()


def test_labels_are_those_of_the_model(splits, tokenizer):
    """A model that numbers the classes otherwise gets its own numbers, and predicts the same names."""
    model = build("electra", "classification", tokenizer)
    turned = copy.deepcopy(model)
    turned.config.id2label = {0: "so-so", 1: "bad", 2: "good"}
    with torch.no_grad():
        for weight in turned.classifier.out_proj.parameters():
            weight.copy_(weight[[2, 0, 1]].clone())
    one, other = (score_rows(each, tokenizer, splits["one"], names=SCORES) for each in (model, turned))
    for name in SCORES:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5)
    assert predict(model, tokenizer, splits["one"]) == predict(turned, tokenizer, splits["one"])
    assert set(predict(model, tokenizer, splits["one"])) <= set(CLASSES)


# --- what run.py writes ---


def call(*argv):
    run.main([str(argument) for argument in argv])


def written(directory: Path, column: str) -> list:
    rows = (directory / "eval_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row)[column] for row in rows]


@pytest.fixture(scope="module")
def trained(reviews, qa_dir, tiny_model, tmp_path_factory) -> Path:
    """Both tasks, trained and evaluated, then an epoch without learning whose records are those of the model."""
    out = tmp_path_factory.mktemp("scores")
    for name, dataset, rate, flags in (
        ("qa", qa_dir, 3e-3, ["--model", tiny_model, "--max_length", 48, "--doc_stride", 12]),
        ("reviews", reviews, 1e-2,
         ["--task", "classification", "--model", "tiny", "--hidden_size", 32, "--num_layers", 1]),
    ):
        small = ["--no_cuda", "--dataset", dataset, "--per_device_train_batch_size", 8]
        call(*flags, *small, "--do_train", "--do_eval", "--num_train_epochs", 4, "--learning_rate", rate,
             "--output_dir", out / name, "--save_strategy", "epoch")
        kept = flags[2:] if name == "qa" else flags[:2]  # the size is the model's now
        call("--model", out / name, *kept, *small, "--do_train", "--num_train_epochs", 1, "--learning_rate", 0,
             "--enable_cartography", "--cartography_output_dir", out / f"{name}_map",
             "--output_dir", out / f"{name}_still")
    return out


CASES: tuple = (("qa", QuestionAnswering(), "predicted_answer", WINDOWS),
                ("reviews", SequenceClassification(), "predicted_label", {}))


@pytest.mark.parametrize("name, task, column, lengths", CASES)
def test_predictions_and_scores_are_those_of_run(name, task, column, lengths, trained, qa_dir, reviews):
    dataset = str(qa_dir if name == "qa" else reviews)
    train, validation = (load_split(dataset, split, task) for split in ("train", "validation"))
    model, tokenizer = load_model(str(trained / name), validation.task, None, 512, {})
    predictions = predict(model, tokenizer, validation, **lengths)
    assert predictions == written(trained / name, column)
    assert len(set(predictions)) > 1

    metrics = load_cartography_metrics(trained / f"{name}_map").reindex(train.ids)
    scores = score_rows(model, tokenizer, train, names=SCORES, **lengths)
    assert (np.ma.getmaskarray(scores["el2n"]) == metrics["el2n"].isna()).all()
    np.testing.assert_allclose(scores["el2n"].compressed(), metrics["el2n"].dropna(), rtol=1e-4, atol=1e-6)


def test_labels_that_are_numbers_are_predicted_as_numbers(tokenizer, tmp_path):
    rows = [{**row, "label": CLASSES.index(row["label"])} for row in review_rows(9, 1, CLASSES)]
    split = load_split(str(write_rows(tmp_path / "train.jsonl", rows)), "train", SequenceClassification())
    model = build("electra", "classification", tokenizer)
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert set(map(type, predict(model, tokenizer, split))) == {int}


def test_an_untrained_head_is_refused(tokenizer, splits, tmp_path):
    build("bert", "qa", tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="lacks 4 trained weights .*bert.pooler"):
        load_model(str(tmp_path), splits["binary"].task, None, 64, {})


def test_whether_a_model_was_trained_on_a_dataset(trained, reviews, tmp_path, monkeypatch):
    def trained_on(path, split):
        return trained_fingerprint(path) == split.fingerprint

    task = SequenceClassification()
    train, validation = (load_split(str(reviews), split, task) for split in ("train", "validation"))
    model = trained / "reviews"
    first = dataclasses.replace(train, data=train.data.select(range(5)))  # a part of it
    checkpoint = next(model.glob("checkpoint-*"))
    for path in (model, checkpoint):
        assert trained_on(str(path), train) and trained_on(str(path), first)
        assert not trained_on(str(path), validation)  # evaluated on it, into the same directory
    assert not trained_on(str(trained / "qa"), train)
    assert not trained_on(str(tmp_path), train)
    # Somebody else's model, only evaluated; and a Hub name in a directory in which something was trained.
    write_json(tmp_path / "run_meta.json", {"arguments": {"do_train": False}, "datasets": [train.identity()]})
    assert not trained_on(str(tmp_path), train)
    monkeypatch.chdir(model)
    assert not trained_on("electra", train)


# --- pieces per word ---


@given(st.lists(st.text(st.sampled_from("abfilm thewas \n\t.,-é"), max_size=40), max_size=12))
@settings(max_examples=60, deadline=None)
def test_pieces_per_word_equal_a_slow_count(tokenizer, texts):
    ratios = wordpiece_ratio(texts, tokenizer)
    assert ratios.shape == (len(texts),) and ratios.dtype == np.float64
    for text, ratio, masked in zip(texts, ratios, np.ma.getmaskarray(ratios), strict=True):
        assert masked == (not text.split())
        if not masked:
            pieces = [len(tokenizer.tokenize(word)) for word in text.split()]
            assert ratio == pytest.approx(np.mean(pieces))
            assert ratio >= 1


def test_pieces_per_word_of_known_texts(tokenizer, monkeypatch):
    texts = ["the film was", "the film, was", "", "  \n", "qqq the"]
    ratios = wordpiece_ratio(iter(texts), tokenizer)
    assert ratios[:2].tolist() == [1, 4 / 3] and np.ma.getmaskarray(ratios).tolist() == [0, 0, 1, 1, 0]
    assert ratios[4] == (1 + len(tokenizer.tokenize("qqq"))) / 2
    monkeypatch.setattr("datamap.selection.model_scores.TEXTS_AT_ONCE", 2)
    np.testing.assert_array_equal(wordpiece_ratio(texts, tokenizer).filled(-1), ratios.filled(-1))
    assert wordpiece_ratio([], tokenizer).shape == (0,)
