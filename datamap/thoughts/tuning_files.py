"""Fine-tuning files of others, whose rows are a ``text`` or ``messages``: taken apart into pair, thought and label."""

from __future__ import annotations

import functools
import logging
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamap.core.errors import UserError, name_a_few, repeated
from datamap.thoughts.data import id_text
from datamap.thoughts.reader import THOUGHT, Parsed, parse_thought

TEXT, MESSAGES = "text", "messages"
PAIR_LINES = re.compile(r"^\s*premise\s*:\s*(?P<premise>\S[^\n]*?)\s*\n\s*hypothesis\s*:\s*(?P<hypothesis>\S[^\n]*?)"
                        r"\s*$", re.IGNORECASE | re.MULTILINE)

logger = logging.getLogger(__name__)


def tuning_column(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """``text`` or ``messages`` where every row has it and none is a chain of thought by its columns, else None."""
    if any(THOUGHT in row for row in rows):
        return None
    return next((column for column in (MESSAGES, TEXT) if rows and all(column in row for row in rows)), None)


def tuning_rows(
    rows: Sequence[Mapping[str, Any]], column: str, where: str | Path, template: string.Template | None = None,
) -> tuple[list[dict[str, Any]], string.Template]:
    """What to fine-tune on: rows with ``id, premise, hypothesis, label, thought_process, source``, in their order; and
    the prompt that they are asked by, with $premise and $hypothesis.

    A row is the prompt with its pair and, behind it, the JSON object with thought and label: in one text, whatever
    marks the turns, or as messages of a user and an assistant. The prompt is ``template`` but for its white space, or
    where that is None what row 1 has between [INST] and [/INST], or its user says, with ``Premise:`` and
    ``Hypothesis:`` in lines of their own. Ids are the file's, else numbers from 1. Rows without a readable answer are
    left out, and counted; UserError for a row with another prompt, and where none is left.
    """
    ids = [str(number) if row.get("id") in (None, "") else id_text(row["id"]) for number, row in enumerate(rows, 1)]
    if twice := repeated(ids):
        raise UserError(f"{where}: {len(twice):,} ids occur more than once ({name_a_few(twice)}); rename them, or "
                        "take the id out")
    found, unreadable = [], []
    for number, (name, row) in enumerate(zip(ids, rows, strict=True), 1):
        here = f"{where}, row {number}"
        asked, answer = _of_messages(row[column], here) if column == MESSAGES else (row[column], None)
        if not isinstance(asked, str):
            raise UserError(f"{here}: {column} is {asked!r:.40}, no text")
        template = template or _own_template(asked, here)
        prompt = _pattern(template).search(asked)
        if not prompt:
            raise UserError(f"{here}: {asked.strip()!r:.60} is not asked by the prompt of the others, "
                            f"{template.template.strip()!r:.60}; --prompt_file names another")
        parsed = parse_thought(asked[prompt.end() :] if answer is None else answer)
        if parsed.label is None or parsed.thought is None:
            unreadable.append(name)
            continue
        found.append(_row(name, prompt, parsed))
    if not found or template is None:
        raise UserError(f"{where}: no row has an answer with thought_process and predicted_label; nothing to train on")
    if unreadable:
        logger.warning(f"{where}: {len(unreadable):,} of {len(rows):,} rows ({name_a_few(unreadable)}) have no "
                       "readable answer and are left out")
    logger.info(f"{where}: {len(found):,} rows of {column}, taken apart; their prompt is that of this model")
    return found, template


def _row(name: str, prompt: re.Match[str], parsed: Parsed) -> dict[str, Any]:
    return {"id": name, "premise": prompt["premise"].strip(), "hypothesis": prompt["hypothesis"].strip(),
            "label": parsed.label, THOUGHT: parsed.thought, "source": "original"}


def _own_template(asked: str, where: str) -> string.Template:
    inside = re.search(r"\[INST\](.*?)\[/INST\]", asked, re.DOTALL)
    body = inside[1] if inside else asked
    pair = PAIR_LINES.search(body)
    if not pair:
        raise UserError(f"{where}: no lines Premise: and Hypothesis: in {asked.strip()!r:.60}; name a file with the "
                        "prompt that it was made with (--prompt_file)")
    (start, end), (begin, stop) = pair.span("premise"), pair.span("hypothesis")
    parts = [each.replace("$", "$$") for each in (body[:start], body[end:begin], body[stop:])]
    return string.Template(f"{parts[0]}$premise{parts[1]}$hypothesis{parts[2]}".strip())


@functools.lru_cache(maxsize=1)
def _pattern(template: string.Template) -> re.Pattern[str]:
    """The prompt as a pattern, its places as groups; where it ends with a place, that ends with its turn."""
    parts, end = [], 0
    text = template.template.strip()
    for place in template.pattern.finditer(text):
        name = place["named"] or place["braced"]
        parts.append(_loose(text[end : place.start()]))
        if name:
            parts.append(f"(?P={name})" if f"(?P<{name}>" in "".join(parts) else rf"(?P<{name}>\S.*?)")
        else:
            parts.append(r"\$")
        end = place.end()
    rest = text[end:]
    return re.compile("".join(parts) + (_loose(rest) if rest.strip() else r"(?=\s*(?:\[/INST\]|</?s>|<\||\Z))"),
                      re.DOTALL)


def _loose(text: str) -> str:
    """A pattern of the words of a text, with whatever white space where it has some."""
    words = r"\s+".join(map(re.escape, text.split()))
    if not words:
        return r"\s+" if text else ""
    return r"\s*" * text[0].isspace() + words + r"\s*" * text[-1].isspace()


def _of_messages(messages: Any, where: str) -> tuple[Any, str]:
    """What the user asks and the assistant answers, in one turn each."""
    turns = [each for each in messages if not (isinstance(each, Mapping) and each.get("role") == "system")] if (
        isinstance(messages, list)) else []
    roles = [each.get("role") if isinstance(each, Mapping) else None for each in turns]
    if roles != ["user", "assistant"] or not isinstance(turns[1].get("content"), str):
        raise UserError(f"{where}: expected messages of a user and an assistant, one each (a system's may stand "
                        f"before them), found {messages!r:.60}")
    return turns[0].get("content"), turns[1]["content"]
