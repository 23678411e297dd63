"""A language model's opinion of each example: is it ambiguous, is it sarcastic, is its label wrong?

The examples go to an OpenAI-compatible server (thoughts/chat_client.py), put into a prompt that is a file:
DEFAULT_PROMPT, or one of the user's own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamap.core.errors import name_a_few
from datamap.thoughts.chat_client import Question, ask_all
from datamap.thoughts.judging import fill, verdict_in
from datamap.thoughts.prompts import PROMPTS, load_prompt

DEFAULT_PROMPT = PROMPTS / "judge.txt"
ANSWERS = "judge_answers.jsonl"
VERDICTS = ("ambiguous", "sarcastic", "label_disagrees")
PLACEHOLDERS = ("texts", "label")

logger = logging.getLogger(__name__)


def judge(
    ids: Sequence[str], texts: Mapping[str, Sequence[str]], labels: Sequence[str], *, directory: str | Path,
    model: str, base_url: str | None = None, prompt_file: str | Path = DEFAULT_PROMPT, workers: int = 4,
    requests_per_minute: float | None = None, max_requests: int | None = None,
) -> list[dict[str, Any] | None]:
    """The judge's verdict on each example (see ``parse_verdict``), None where the model gave none that can be read.

    texts: column -> N texts; labels: N, what the dataset says. A verdict depends on its own example alone, not on the
    others nor on their order. The rest is ``chat_client.ask_all``'s; the answers are kept in
    ``directory``/judge_answers.jsonl and not asked for again.
    """
    template = load_prompt(prompt_file, PLACEHOLDERS)
    questions = [
        Question(name, [{"role": "user", "content": fill(template, dict(zip(texts, row, strict=True)), label)}])
        for name, label, *row in zip(ids, labels, *texts.values(), strict=True)
    ]
    answers = ask_all(
        questions, Path(directory) / ANSWERS, model=model, base_url=base_url, parameters={"temperature": 0},
        check=lambda _, text: parse_verdict(text), workers=workers, requests_per_minute=requests_per_minute,
        max_requests=max_requests,
    )
    if answers.failures:
        first, reason = next(iter(answers.failures.items()))
        logger.warning(f"the judge gives no verdict on {len(answers.failures):,} of {len(ids):,} examples "
                       f"({name_a_few(answers.failures)}; {first!r}: {reason})")
    return [answers.parsed.get(name) for name in ids]


def flags(verdicts: Sequence[Mapping[str, Any] | None]) -> np.ma.MaskedArray:
    """(N,) int64: how many of the three the judge found, 0 to 3, higher = worse; masked where there is no verdict."""
    counts = [sum(verdict[name] for name in VERDICTS) if verdict else 0 for verdict in verdicts]
    return np.ma.MaskedArray(np.array(counts, dtype=np.int64), mask=[verdict is None for verdict in verdicts])


# --- verdict -----------------------------------------------------------------------------------------------------


def parse_verdict(text: str) -> dict[str, Any]:
    """The verdict in a model's answer: VERDICTS as booleans and ``reason``.

    It is the JSON object that has these keys, alone or among other text; what a model thinks aloud before ``</think>``
    does not count. The strings "true" and "false" count as booleans. ValueError where there is no such object, and
    where there are several that differ.
    """
    return verdict_in(text, (*VERDICTS, "reason"), _verdict, VERDICTS)


def _verdict(found: Mapping[str, Any]) -> dict[str, Any]:
    verdict = {}
    for name in VERDICTS:
        value = {"true": True, "false": False}.get(found[name]) if isinstance(found[name], str) else found[name]
        if not isinstance(value, bool):
            raise ValueError(f"{name!r} is {found[name]!r:.40}, neither true nor false")
        verdict[name] = value
    if not isinstance(found["reason"], str):
        raise ValueError(f"'reason' is {found['reason']!r:.40}, no text")
    return {**verdict, "reason": found["reason"]}
