"""What judges of examples share: how an example stands in a prompt, and how a verdict is found in an answer."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datamap.core.splits import Split
from datamap.thoughts.reader import objects_in

UNANSWERABLE = "(none: the dataset says that the context does not answer the question)"


def texts_and_labels(split: Split) -> tuple[dict[str, list[str]], list[str]]:
    """What a judge reads of a split of any task: its text columns, and its label names or answers."""
    readable = split.task.readable(split.data)
    column = getattr(split.task, "label_column", "answer")
    labels = [str(label) for label in readable.pop(column)]
    return readable, [label or UNANSWERABLE for label in labels]


def fill(template: string.Template, texts: Mapping[str, str], label: str, **others: str) -> str:
    """The prompt of one example, each part between two lines that no text can hold.

    The lines carry a hash over the example: a text that wants to close its part would have to hold its own hash.
    others: values of further placeholders, which stand in the prompt as they are.
    """
    content = json.dumps([list(texts.items()), label])
    code = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def part(name: str, text: str) -> str:
        return f"[begin {name} {code}]\n{text}\n[end {name} {code}]"

    parts = [part(name, text) for name, text in texts.items()]
    return template.substitute(others, texts="\n\n".join(parts), label=part("label", label))


def verdict_in(
    text: str, keys: Sequence[str], read: Callable[[Mapping[str, Any]], dict[str, Any]], decisive: Sequence[str]
) -> dict[str, Any]:
    """The verdict in an answer: what ``read`` makes of the JSON object that has ``keys``, alone or among other text.

    What a model thinks aloud before ``</think>`` does not count. ValueError where there is no object of which ``read``
    raises none, and where there are several that differ in what is ``decisive``.
    """
    text = text.rpartition("</think>")[2]
    verdicts: list[dict[str, Any]] = []
    trouble = "no JSON object"
    for _, _, found in objects_in(text, keys):
        try:
            if missing := [name for name in keys if name not in found]:
                raise ValueError(f"no key {missing[0]!r}")
            verdicts.append(read(found))
        except ValueError as error:
            trouble = str(error)
    if not verdicts:
        raise ValueError(f"{trouble} in {text.strip()!r:.80}")
    if any(verdict[name] != verdicts[0][name] for verdict in verdicts for name in decisive):
        raise ValueError(f"{len(verdicts)} verdicts that differ")
    return verdicts[0]
