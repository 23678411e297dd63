"""The built-in model ``lstm``: padding, company and order change nothing, saving loses nothing, and it learns."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from datamap.core.errors import UserError
from datamap.training import lstm_model

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["Ada follows Bob. Bob turns around.", "Is Ada following Bob?", "Cleo walks home, alone."]
LABELS = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}, "num_labels": 2}


def build(tokenizer, **settings):
    torch.manual_seed(0)
    settings = {"reader": True, **LABELS, **settings}
    model = lstm_model.build_model(tokenizer, AutoModelForSequenceClassification, 64, **settings)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return lstm_model.train_tokenizer(TEXTS, max_length=64)


@pytest.fixture(scope="module", params=[False, True], ids=["lstm", "lstm_reader"])
def model(request, tokenizer):
    return build(tokenizer, hidden_size=16, num_layers=2, reader=request.param)


def batch_of(rows: list[tuple[list[int], list[int]]], extra: int = 0) -> dict[str, torch.Tensor]:
    """Rows of (ids of the first text, ids of the second), padded at the right to the longest and ``extra`` more."""
    longest = max(len(first) + len(second) for first, second in rows) + extra
    batch = {name: torch.zeros(len(rows), longest, dtype=torch.int64)
             for name in ("input_ids", "attention_mask", "token_type_ids")}
    for place, (first, second) in enumerate(rows):
        length = len(first) + len(second)
        batch["input_ids"][place, :length] = torch.tensor(first + second)
        batch["attention_mask"][place, :length] = 1
        batch["token_type_ids"][place, len(first) : length] = 1
    return batch


# --- tokenizer ---


def test_words_are_numbered_by_count_then_alphabet():
    texts = ["b a c a", "C! b, D.", "a"]  # a 3; b, c 2; ! , . d 1
    tokenizer = lstm_model.train_tokenizer(texts, 32)
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "!", ",", ".", "d",
    ]
    again = lstm_model.train_tokenizer(texts[::-1], 32)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert lstm_model.train_tokenizer(texts, 32, vocab_size=8).get_vocab() == {
        word: number for word, number in tokenizer.get_vocab().items() if number < 8
    }


def test_layout_of_one_text_and_of_two(tokenizer):
    pair = tokenizer("ADA follows Zoe.", "Is Bob?", return_token_type_ids=True)
    words = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert words == ["[CLS]", "ada", "follows", "[UNK]", ".", "[SEP]", "is", "bob", "?", "[SEP]"]
    assert pair["token_type_ids"] == [0] * 6 + [1] * 4
    one = tokenizer("Ada", max_length=2, truncation=True)
    assert len(one["input_ids"]) == 2 and set(one) == {"input_ids", "token_type_ids", "attention_mask"}


@pytest.mark.parametrize("size", [0, 4, 7])
def test_refuses_a_vocabulary_without_room_for_words(size):
    with pytest.raises(UserError, match=f"--vocab_size {size}: expected at least 8"):
        lstm_model.train_tokenizer(TEXTS, 32, vocab_size=size)


# --- the model ---

ids = st.lists(st.integers(1, 12), min_size=1, max_size=9)
rows = st.tuples(ids, st.just([]) | ids)


@given(row=rows, company=st.lists(rows, max_size=3), extra=st.integers(0, 7))
@settings(max_examples=25, deadline=None)
def test_padding_and_company_change_nothing(model, row, company, extra):
    with torch.inference_mode():
        alone = model(**batch_of([row])).logits[0]
        among = model(**batch_of([*company, row], extra)).logits[-1]
        hidden = model.lstm(**batch_of([row])).last_hidden_state[0]
        padded = model.lstm(**batch_of([*company, row], extra)).last_hidden_state[-1]
    torch.testing.assert_close(among, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded[: len(hidden)], hidden, atol=1e-5, rtol=0)
    assert not padded[len(hidden) :].any()


def test_states_stand_in_the_order_of_the_tokens(model):
    """Of each text by itself: a text read alone by the LSTM has the states that it has in a pair, but for [CLS]."""
    first, second = [2, 4, 5, 6, 3], [7, 8, 3]
    with torch.inference_mode():
        hidden = model.lstm(**batch_of([(first, second)])).last_hidden_state[0]
        for encoder, ids, places in ((model.lstm.first, first, range(5)), (model.lstm.second, second, range(5, 8))):
            alone = encoder(model.lstm.embeddings(torch.tensor([ids])), torch.tensor([len(ids)]))[0]
            for number, place in enumerate(places):
                same = torch.allclose(hidden[place], alone[number], atol=1e-6)
                assert same == (place != 0 or not model.config.reader)
    assert hidden.shape == (8, model.config.hidden_size)


def test_packed_sequences_give_the_same_states():
    torch.manual_seed(1)
    ours = lstm_model.BidirectionalLSTM(6, 1, 0.0)
    theirs = torch.nn.LSTM(6, 3, batch_first=True, bidirectional=True)
    weights = {**ours.rightward[0].state_dict()}
    weights |= {f"{name}_reverse": value for name, value in ours.leftward[0].state_dict().items()}
    theirs.load_state_dict(weights)
    states, lengths = torch.randn(4, 7, 6), torch.tensor([3, 7, 1, 5])
    packed = torch.nn.utils.rnn.pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    got = ours(states, lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(got[row, :length], expected[row, :length], atol=1e-6, rtol=0)


def slow_reading(reader, ids, words, states, question_words, question_states) -> torch.Tensor:
    """The recurrence of the docstring, word by word, for one text and one question without padding."""
    size = words.shape[1]
    follows = []  # of each query: how much it follows each spelling
    for query in question_words:
        cosine = {number: torch.cosine_similarity(query, word, dim=0) for number, word in zip(ids, words, strict=True)}
        follows.append({number: torch.sigmoid(reader.sharpness * value - reader.threshold)
                        for number, value in cosine.items()})
    state = torch.ones(size, dtype=words.dtype)
    for place in range(len(ids) - 1, -1, -1):
        last = place == len(ids) - 1
        behind = torch.zeros(size // 2, dtype=words.dtype) if last else states[place + 1, size // 2 :]
        offsets = reader.offset(behind).softmax(dim=0)
        matches = [follow[ids[place]].clamp(max=1.0) for follow in follows]
        asked = sum(match * query for match, query in zip(matches, question_states, strict=True))
        seen = torch.cat([behind, asked])
        forget = torch.tanh(reader.forget(behind))
        added = torch.sigmoid(reader.admit(seen)) * torch.tanh(reader.candidate(seen))
        state = state + max(matches) * (forget * state + added - state)
        for follow, match in zip(follows, matches, strict=True):
            for number in follow:
                follow[number] = follow[number] * (1 - match * (1 - offsets[0]))
            for offset in range(1, len(offsets)):
                if place + offset < len(ids):
                    follow[ids[place + offset]] = follow[ids[place + offset]] + match * offsets[offset]
    return state


def test_reader_against_the_slow_way():
    torch.manual_seed(5)
    reader = lstm_model.Reader(6).double()
    torch.nn.init.constant_(reader.sharpness, 3.0)
    torch.nn.init.constant_(reader.threshold, 1.0)
    embeddings = torch.randn(9, 6, dtype=torch.float64)
    ids = torch.tensor([[1, 3, 4, 2, 3, 5, 1, 6, 2, 4, 3, 7], [1, 3, 3, 5, 2, 0, 0, 0, 0, 0, 0, 0]])
    question = torch.tensor([[3, 8, 4], [3, 2, 0]])
    lengths, question_lengths = [12, 5], [3, 2]
    states = torch.randn(2, 12, 6, dtype=torch.float64)
    question_states = torch.randn(2, 3, 6, dtype=torch.float64)
    inside = torch.arange(12) < torch.tensor(lengths)[:, None]
    question_inside = torch.arange(3) < torch.tensor(question_lengths)[:, None]
    states, question_states = states * inside[:, :, None], question_states * question_inside[:, :, None]
    with torch.inference_mode():
        got = reader(ids, embeddings[ids], inside, states, embeddings[question], question_inside, question_states)
        for row, (length, asked) in enumerate(zip(lengths, question_lengths, strict=True)):
            expected = slow_reading(
                reader, ids[row, :length].tolist(), embeddings[ids[row, :length]], states[row],
                embeddings[question[row, :asked]], question_states[row, :asked],
            )
            torch.testing.assert_close(got[row], expected)


def test_a_long_text_full_of_matches_does_not_explode():
    torch.manual_seed(6)
    reader = lstm_model.Reader(6)
    torch.nn.init.constant_(reader.sharpness, 0.0)
    torch.nn.init.constant_(reader.threshold, -9.0)  # every word is followed from the start
    ids = torch.randint(1, 40, (1, 500))
    inside, asked = torch.ones_like(ids, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool)
    with torch.inference_mode():
        state = reader(ids, torch.randn(1, 500, 6), inside, torch.randn(1, 500, 6), torch.randn(1, 4, 6), asked,
                       torch.randn(1, 4, 6))
    assert state.abs().max() <= 1 + 500  # begins at 1, and no word adds more than 1


@pytest.mark.parametrize("reader", [False, True])
def test_every_weight_gets_a_gradient(tokenizer, reader):
    model = build(tokenizer, hidden_size=16, num_layers=2, reader=reader)
    batch = tokenizer(TEXTS[:1], TEXTS[1:2], return_tensors="pt")
    output = model(**batch, labels=torch.tensor([1]))
    torch.testing.assert_close(output.loss, cross_entropy(output.logits, torch.tensor([1])))
    output.loss.backward()
    idle = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []


@pytest.mark.parametrize("reader", [False, True])
def test_one_text_leaves_no_weight_out_of_the_graph(tokenizer, reader):
    """Distributed training waits for the gradient of every weight, be it 0."""
    model = build(tokenizer, hidden_size=16, reader=reader)
    model(**tokenizer(TEXTS[:1], return_tensors="pt"), labels=torch.tensor([1])).loss.backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []
    assert all(torch.isfinite(value.grad).all() for value in model.parameters())


def test_token_types_default_to_one_text(model, tokenizer):
    batch = tokenizer(TEXTS[:1], return_tensors="pt")
    with torch.inference_mode():
        expected = model(**batch).logits
        torch.testing.assert_close(model(batch["input_ids"]).logits, expected)


def test_forward_takes_no_other_arguments(model):
    """With **kwargs the Trainer would take it that the model scales its loss by ``num_items_in_batch``."""
    assert list(inspect.signature(model.forward).parameters) == [
        "input_ids", "attention_mask", "token_type_ids", "labels",
    ]


def test_saved_and_loaded_is_the_same(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tokenizer_again = AutoTokenizer.from_pretrained(tmp_path)
    batch = tokenizer_again(TEXTS[:1] * 2, TEXTS[1:], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == tokenizer(TEXTS[:1] * 2, TEXTS[1:], padding=True)["input_ids"]
    again, loading = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert again.config.id2label == LABELS["id2label"] and again.config.num_hidden_layers == 2
    base, loading = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"]
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(**batch).logits, model(**batch).logits, atol=1e-6, rtol=0)
        expected = model.lstm(**batch).last_hidden_state
        torch.testing.assert_close(base.eval()(**batch).last_hidden_state, expected, atol=1e-6, rtol=0)


def test_sizes_reach_the_model(tokenizer):
    model = build(tokenizer, hidden_size=24, num_layers=3, dropout=0.4)
    assert model.lstm.embeddings.weight.shape == (len(tokenizer), 24)
    assert len(model.lstm.first.rightward) == 3
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.4}
    default = build(tokenizer).config
    assert (default.hidden_size, default.num_hidden_layers) == (lstm_model.HIDDEN_SIZE, lstm_model.NUM_LAYERS)


def test_refuses_what_it_cannot_be(tokenizer):
    with pytest.raises(UserError, match="--model lstm classifies.*--model tiny"):
        lstm_model.build_model(tokenizer, AutoModelForQuestionAnswering, 64)
    with pytest.raises(UserError, match="--hidden_size 15: expected an even number"):
        build(tokenizer, hidden_size=15)


# --- learning ---


def train(model, tokenizer, rows: Sequence[tuple[str, ...]], labels: np.ndarray, epochs: int) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    order = np.random.default_rng(0)
    for _ in range(epochs):
        for chosen in np.array_split(order.permutation(len(rows)), len(rows) // 25):
            batch = tokenizer(*map(list, zip(*(rows[place] for place in chosen), strict=True)), padding=True,
                              return_tensors="pt")
            model(**batch, labels=torch.from_numpy(labels[chosen])).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    model.eval()


def accuracy(model, tokenizer, rows: Sequence[tuple[str, ...]], labels: np.ndarray) -> float:
    batch = tokenizer(*map(list, zip(*rows, strict=True)), padding=True, return_tensors="pt")
    with torch.inference_mode():
        return float((model(**batch).logits.argmax(dim=1).numpy() == labels).mean())


@pytest.mark.parametrize("reader", [False, True])
def test_learns_word_order_in_one_text(reader):
    """Was "red" before "blue"? Every text has the same words, so that nothing but their order tells."""
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.permutation("red blue one two three four".split())) for _ in range(300)]
    labels = np.array([text.index("red") < text.index("blue") for text in texts]).astype(np.int64)
    tokenizer = lstm_model.train_tokenizer(texts, 32)
    model = build(tokenizer, hidden_size=32, reader=reader)
    rows = [(text,) for text in texts]
    train(model, tokenizer, rows[:200], labels[:200], epochs=6)
    assert accuracy(model, tokenizer, rows[200:], labels[200:]) >= 0.9


def test_learns_to_ask_the_text_about_a_word():
    """"ada on . bob off . ada off ." - "ada?": the last word on a name counts, the other name does not."""
    rng = np.random.default_rng(4)
    rows, labels = [], []
    for _ in range(400):
        state = {}
        facts = []
        for name in [*rng.permutation(["ada", "bob"]), *rng.choice(["ada", "bob"], 2)]:
            state[name] = int(rng.integers(2))
            facts.append(f"{name} {('off', 'on')[state[name]]} .")
        asked = str(rng.choice(["ada", "bob"]))
        rows.append((" ".join(facts), f"{asked} ?"))
        labels.append(state[asked])
    tokenizer = lstm_model.train_tokenizer([text for row in rows for text in row], 32)
    model = build(tokenizer, hidden_size=32)
    train(model, tokenizer, rows[:300], np.array(labels[:300]), epochs=8)
    assert accuracy(model, tokenizer, rows[300:], np.array(labels[300:])) >= 0.9
