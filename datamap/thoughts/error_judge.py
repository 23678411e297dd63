"""A chat model as one more detector of wrong examples: what it says of the most suspicious ones.

Asked by the client that records every answer as it comes (chat_client.py), with the prompt in DEFAULT_PROMPT. What it
costs is said before the first request.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamap.core.errors import name_a_few
from datamap.core.splits import Split
from datamap.detection.decisions import NO_ANSWER
from datamap.detection.suspects import Opinion
from datamap.tasks.spans import places_of
from datamap.thoughts.chat_client import Question, ask_all
from datamap.thoughts.judging import fill, texts_and_labels, verdict_in
from datamap.thoughts.prompts import PROMPTS, load_prompt
from datamap.thoughts.records import prompt_key, read_records

DEFAULT_PROMPT = PROMPTS / "error_judge.txt"
ANSWERS = "judge_answers.jsonl"
PLACEHOLDERS = ("texts", "label", "choices")
KEYS = ("verdict", "probability", "correction", "reason")
VERDICTS = {"wrong": (0.5, 1.0), "right": (0.0, 0.5), "unsure": (0.0, 1.0)}  # with the probabilities that go with them
PARAMETERS = {"temperature": 0}
CHARACTERS_A_TOKEN, ANSWER_TOKENS = 4, 70  # for the estimate: English, and the four keys with a sentence

logger = logging.getLogger(__name__)


class Cost(NamedTuple):
    """What asking would take: requests without retries; tokens by the estimate above."""

    requests: int
    prompt_tokens: int
    completion_tokens: int


def judge_errors(
    split: Split, suspicion: np.ndarray, *, top: int, directory: str | Path, model: str, base_url: str | None = None,
    workers: int = 8,
) -> dict[str, Opinion]:
    """The judge's opinion of the ``top`` most suspicious examples, by id, without those of which it gives none.

    suspicion: (N,), higher is more likely wrong; equals in the order of the split. Answers are kept in
    ``directory``/judge_answers.jsonl and not asked for again (``chat_client.ask_all``, also for its errors). An answer
    depends on its own example alone.
    """
    rows = np.argsort(-suspicion, kind="stable")[:top].tolist()
    asked = questions(split, rows)
    path = Path(directory) / ANSWERS
    cost = expected_cost(asked, path, model)
    logger.info(f"{model} judges {len(asked):,} examples: {cost.requests:,} requests to come, about "
                f"{cost.prompt_tokens:,} tokens in and {cost.completion_tokens:,} out")
    answers = ask_all(asked, path, model=model, base_url=base_url, parameters=PARAMETERS, workers=workers,
                      check=lambda _, text: parse_opinion(text))
    if answers.failures:
        first, reason = next(iter(answers.failures.items()))
        logger.warning(f"the judge gives no verdict on {len(answers.failures):,} of {len(asked):,} examples "
                       f"({name_a_few(answers.failures)}; {first!r}: {reason})")
    ids = split.ids
    return {ids[row]: _opinion(answers.parsed[ids[row]], split, row) for row in rows if ids[row] in answers.parsed}


def questions(split: Split, rows: Sequence[int]) -> list[Question]:
    template, ids = load_prompt(DEFAULT_PROMPT, PLACEHOLDERS), split.ids
    texts, labels = texts_and_labels(split)
    choices = _choices(split)
    return [
        Question(ids[row], [{"role": "user", "content": fill(
            template, {name: values[row] for name, values in texts.items()}, labels[row], choices=choices)}])
        for row in rows
    ]


def expected_cost(asked: Sequence[Question], path: Path, model: str) -> Cost:
    """Of those questions that are not answered in ``path`` yet."""
    keys = {question.id: prompt_key(model, PARAMETERS, question.messages) for question in asked}
    known = read_records(path, keys) if path.exists() else {}
    missing = [question for question in asked if question.id not in known]
    characters = sum(len(message["content"]) for question in missing for message in question.messages)
    return Cost(len(missing), -(-characters // CHARACTERS_A_TOKEN), ANSWER_TOKENS * len(missing))


def _choices(split: Split) -> str:
    if split.task.name == "qa":
        return (f"An answer is a piece of the context, copied letter by letter, or {NO_ANSWER} where the context does "
                "not answer the question.")
    return f"The labels of this dataset are: {', '.join(_class_names(split))}."


def _class_names(split: Split) -> list[str]:
    return list(split.data.features[split.task.label_column].names)


# --- answers -----------------------------------------------------------------------------------------------------


def parse_opinion(text: str) -> dict[str, Any]:
    """KEYS of the JSON object in a model's answer; ValueError where there is none, or one that contradicts itself."""
    return verdict_in(text, KEYS, _verdict, ("verdict", "probability"))


def _verdict(found: Mapping[str, Any]) -> dict[str, Any]:
    verdict, probability = found["verdict"], found["probability"]
    correction, reason = found["correction"], found["reason"]
    if not isinstance(verdict, str) or (verdict := verdict.strip().casefold()) not in VERDICTS:
        raise ValueError(f"'verdict' is {found['verdict']!r:.40}, none of {', '.join(VERDICTS)}")
    if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability <= 1:
        raise ValueError(f"'probability' is {probability!r:.40}, no number from 0 to 1")
    low, high = VERDICTS[verdict]
    if not low <= probability <= high:
        raise ValueError(f"'verdict' is {verdict} and 'probability' {probability}, of the label being wrong")
    if not isinstance(correction, str | None):
        raise ValueError(f"'correction' is {correction!r:.40}, neither a text nor null")
    if not isinstance(reason, str):
        raise ValueError(f"'reason' is {reason!r:.40}, no text")
    return {"verdict": verdict, "probability": float(probability), "correction": correction, "reason": reason}


def _opinion(said: Mapping[str, Any], split: Split, row: int) -> Opinion:
    correction = said["correction"] if said["verdict"] == "wrong" else None
    return Opinion(said["probability"], f"a chat model says {said['verdict']}: {' '.join(said['reason'].split())}",
                   None if correction is None else _possible(correction, split, row))


def _possible(correction: str, split: Split, row: int) -> str | None:
    """The correction as the dataset can have it and does not have it yet, None where it cannot: another class by its
    name, or a piece of the context."""
    example, correction = split.data[row], correction.strip()
    if split.task.name != "qa":
        names = _class_names(split)
        named = next((name for name in names if name.casefold() == correction.casefold()), None)
        return None if named == names[example[split.task.label_column]] else named
    gold = next(iter(example["answers"]["text"]), NO_ANSWER)
    if correction == gold or not (correction == NO_ANSWER or places_of(example["context"], correction)):
        return None
    return correction
