"""Windows cut out of texts tokenised once: those that the tokenizer itself makes of each pair."""

from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import FAMILIES, STRAY, WORDS, make_tokenizer

from datamap.core.errors import UserError
from datamap.tasks import qa_features, qa_windows
from datamap.tasks.qa_features import CONTEXT, NO_ANSWER, OTHER
from datamap.tasks.registry import get_task
from datamap.tasks.spans import reads_as, visible, whole_offsets

datasets.disable_progress_bars()
FRAMES = ("roberta", "cls behind", "no frame", "context first")  # of other tokenizers than those of FAMILIES
PIECES = [*WORDS, *STRAY.values(), " ", "  ", "[SEP]", "[CLS]", "<s>", "</s>", "\u0301", "\ufb01x",
          "\U0001f469\u200d\U0001f467"]
TEXTS = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(["", " "])).map("".join), max_size=60).map("".join)


def tokenizer_of(name):
    from tokenizers import processors

    base = {"cls behind": "unigram", "context first": "characters"}.get(name, "byte-level")
    tokenizer = make_tokenizer(name if name in FAMILIES else base)
    backend = tokenizer.backend_tokenizer
    cls, sep = (("<s>", backend.token_to_id("<s>")), ("</s>", backend.token_to_id("</s>")))
    pairs = {"cls behind": "$A </s> $B:1 </s>:1 <s>:2", "context first": "<s> $B </s> $A:1 </s>:1"}
    if name == "roberta":
        backend.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=True)
    elif name == "no frame":
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    elif name in pairs:
        pair = pairs[name]
        backend.post_processor = processors.TemplateProcessing(single="$A", pair=pair, special_tokens=[cls, sep])
    if name != "roberta":
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


@pytest.fixture(scope="module", params=[*FAMILIES, *FRAMES])
def name_and_tokenizer(request):
    return request.param, tokenizer_of(request.param)


def as_data(rows):
    kinds = {"text": datasets.List(datasets.Value("string")), "answer_start": datasets.List(datasets.Value("int64"))}
    names = ("question", "context", "answers")
    return datasets.Dataset.from_dict(
        {name: [row[place] for row in rows] for place, name in enumerate(names)},
        features=datasets.Features({**dict.fromkeys(names, datasets.Value("string")), "answers": kinds}),
    )


def slowly(rows, tokenizer, max_length, doc_stride):
    """Pair by pair, window by window, token by token."""
    windows: list[dict[str, Any]] = []
    for index, (question, context, answers) in enumerate(rows):
        pair = tokenizer([question.lstrip()], [context], truncation="only_second", max_length=max_length,
                         stride=doc_stride, return_overflowing_tokens=True, return_offsets_mapping=True)
        among = [[place for place, side in enumerate(pair.sequence_ids(row)) if side == 1]
                 for row in range(len(pair["input_ids"]))]
        new = [(row, place) for row, places in enumerate(among) for place in places[doc_stride if row else 0 :]]
        spans = whole_offsets(context, np.array([pair["offset_mapping"][row][place] for row, place in new],
                                                dtype=np.int64).reshape(-1, 2),
                              lambda: [pair.encodings[row].tokens[place] for row, place in new]).tolist()  # noqa: B023
        overlap, reads = [], True
        if answers["text"]:
            first, end = (answers["answer_start"][0] + place for place in visible(answers["text"][0]))
            overlap = [token for token, span in enumerate(spans) if span[1] > first and span[0] < end and first < end]
            reads = bool(overlap) and reads_as(context[spans[overlap[0]][0] : spans[overlap[-1]][1]],
                                               answers["text"][0])
        begin = 0
        for row, places in enumerate(among):
            ids = pair["input_ids"][row]
            offsets = [list(each) for each in pair["offset_mapping"][row]]
            for number, place in enumerate(places):
                offsets[place] = spans[begin + number]
            none = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
            roles = [CONTEXT if place in places else OTHER for place in range(len(ids))]
            roles[none] = NO_ANSWER
            holds = bool(overlap) and begin <= overlap[0] and overlap[-1] < begin + len(places)
            start, end = (places[overlap[at] - begin] if holds else none for at in (0, -1))
            window = {name: pair[name][row] for name in tokenizer.model_input_names}
            windows.append({**window, "offset_start": [one for one, _ in offsets],
                            "offset_end": [other for _, other in offsets], "token_roles": roles,
                            "example_index": index, "start_positions": start, "end_positions": end,
                            "length": len(ids), "counts": reads and (holds or not answers["text"]),
                            "cut_answer": not reads, "row_index": len(windows)})
            begin += len(places) - doc_stride
    return windows


@st.composite
def examples(draw):
    contexts = draw(st.lists(TEXTS, min_size=1, max_size=3))
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        context = draw(st.sampled_from(contexts))
        answers: dict[str, list] = {"text": [], "answer_start": []}
        if context and draw(st.booleans()):
            first = draw(st.integers(0, len(context) - 1))
            text = context[first : first + draw(st.integers(1, 20))]
            answers = {"text": [text], "answer_start": [max(0, first + draw(st.sampled_from([0, 0, 0, 3])))]}
        rows.append((draw(TEXTS)[: draw(st.integers(0, 12))], context, answers))
    return rows


@settings(max_examples=20, deadline=None)
@given(rows=examples(), stride=st.sampled_from([0, 1, 8, 20]))
def test_windows_are_those_of_the_tokenizer(name_and_tokenizer, rows, stride):
    name, tokenizer = name_and_tokenizer
    if name == "no frame":
        rows = [("Where?", *row[1:]) for row in rows]  # else there may be windows without a token
    found = get_task("qa").features(as_data(rows), tokenizer, 64, stride)
    for ours, expected in zip(found, slowly(rows, tokenizer, 64, stride), strict=True):
        assert ours == expected


def test_answers_wherever_windows_begin_and_end(name_and_tokenizer):
    tokenizer, context = name_and_tokenizer[1], " ".join(WORDS * 3)
    places = [0, *(place + 1 for place, char in enumerate(context) if char == " ")]
    rows = [("Where?", context, {"text": [context[first:end].strip()], "answer_start": [first]})
            for first, end in zip(places, places[2:], strict=False)]
    found = list(get_task("qa").features(as_data(rows), tokenizer, 44, 8))
    assert len(found) > 2 * len(rows) and found == slowly(rows, tokenizer, 44, 8)


def questions_over_two_contexts(count=40):
    contexts = [" ".join(WORDS * 3), " ".join(reversed(WORDS))]
    return [(f"{WORDS[row % len(WORDS)]}?", contexts[row % 2],
             {"text": ["Paris"], "answer_start": [contexts[row % 2].index("Paris")]}) for row in range(count)]


def test_a_text_is_tokenised_once(name_and_tokenizer, monkeypatch):
    """However many pairs it stands in; but for a tokenizer whose pairs are not put together from their texts."""
    name, tokenizer = name_and_tokenizer
    seen, encode = [], type(tokenizer)._encode_plus

    def counted(self, text, text_pair=None, **settings):
        seen.extend(text)
        return encode(self, text, text_pair, **settings)

    monkeypatch.setattr(type(tokenizer), "_encode_plus", counted)
    rows = questions_over_two_contexts()
    found = get_task("qa").features(as_data(rows), tokenizer, 40, 8)
    distinct = len({row[0] for row in rows}) + 2
    assert len(seen) == distinct + 3 + (len(rows) if name == "context first" else 0)  # 3: how pairs are put together
    assert len(found) > len(rows)


def test_windows_do_not_depend_on_what_is_kept_nor_on_the_batch(monkeypatch):
    rows = questions_over_two_contexts()
    tokenizer = make_tokenizer("wordpiece")
    expected = get_task("qa").features(as_data(rows), tokenizer, 40, 8)
    monkeypatch.setattr(qa_windows, "TOKENS_KEPT", 10)
    monkeypatch.setattr(qa_features, "EXAMPLES_AT_ONCE", 3)
    assert list(get_task("qa").features(as_data(rows), tokenizer, 40, 8)) == list(expected)


def test_no_token_at_all_is_refused():
    rows: list[Any] = [("", "", {"text": [], "answer_start": []})]
    with pytest.raises(UserError, match="neither question nor context"):
        get_task("qa").features(as_data(rows), tokenizer_of("no frame"), 40, 8)
