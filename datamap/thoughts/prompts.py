"""Prompts: texts in files with $placeholders, and what may not be said in their places."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamap.core.errors import UserError
from datamap.core.files import read_text
from datamap.core.places import EXAMPLES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS = EXAMPLES / "prompts"
TUNED = PROMPTS / "sft.txt"  # what a fine-tuned model is asked: its training has shown it the rest
PAIR = ("premise", "hypothesis")
PROMPT_FILE = "prompt.txt"  # beside an adapter: what it was trained on
INSTRUCTION = ("[INST]", "[/INST]")  # around the question to a model without a chat template
TODAY = date(2024, 7, 26)  # in chat templates: that of Llama 3.1's own where there is no clock
# Put before a template, instead of the function of that name: its day is always TODAY, however its format is given.
CLOCK = "{%- macro strftime_now(format) -%}{{ format" + "".join(
    f".replace('%{code}', '{TODAY.strftime('%' + code)}')" for code in [*"aAbBcdDeFGhHIjmMpRSTuUVwWxXyYzZ", "-d", "-m"]
) + " }}{%- endmacro %}\n"


def load_prompt(path: str | Path, placeholders: Sequence[str]) -> string.Template:
    """The prompt in a file, with $name of every placeholder; UserError where they are not what it has."""
    path, wanted = Path(path), " and ".join(f"${name}" for name in placeholders)
    if not path.is_file():
        raise UserError(f"prompt {path}: no such file; expected a text with {wanted} in it")
    template = string.Template(re.sub(r"\r\n?", "\n", read_text(path)))
    if not template.is_valid():
        raise UserError(f"prompt {path}: a $ that begins no name; expected {wanted}, or $$ for the sign itself")
    found = template.get_identifiers()
    if unknown := [name for name in found if name not in placeholders]:
        raise UserError(f"prompt {path}: unknown placeholder ${unknown[0]}; expected {wanted}, or $$ for the sign")
    if missing := [name for name in placeholders if name not in found]:
        raise UserError(f"prompt {path}: the placeholder ${missing[0]} is missing; put it where the {missing[0]} "
                        "should stand")
    return template


def fill_tagged(template: string.Template, values: Mapping[str, Any]) -> str:
    """The prompt with its values; a value cannot close or open one of the prompt's own XML tags."""
    tags = "|".join(sorted(set(re.findall(r"</?([A-Za-z_]+)>", template.template))))
    inside = re.compile(rf"<(?=/?(?:{tags})\b)" if tags else r"(?!)", re.IGNORECASE)
    return template.substitute({name: inside.sub("< ", str(values[name])) for name in template.get_identifiers()})


def neutral(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """``text`` without the special tokens that it spells out, such as </s>: a space keeps their letters apart."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    for token in sorted(special | set(tokenizer.all_special_tokens) | set(INSTRUCTION), key=len, reverse=True):
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], **settings: Any) -> str:
    """Messages as the tokenizer's chat template wants them, on whatever day: the date that some templates tell is a
    fixed one, else the same pair would be another question tomorrow, and none that the model was trained on."""
    template = CLOCK + str(tokenizer.get_chat_template())
    return str(tokenizer.apply_chat_template(list(messages), chat_template=template, tokenize=False, **settings))


def model_prompt(tokenizer: PreTrainedTokenizerBase, template: string.Template, premise: str, hypothesis: str) -> str:
    """What a fine-tuned model reads of a pair, to be tokenized as plain text; the answer begins behind it.

    It is put as the tokenizer's chat template wants it, else between [INST] and [/INST]. A BOS token that the
    tokenizer adds of itself does not stand in it.
    """
    body = template.substitute(premise=neutral(premise, tokenizer), hypothesis=neutral(hypothesis, tokenizer)).strip()
    if tokenizer.chat_template is None:
        return f"{INSTRUCTION[0]} {body} {INSTRUCTION[1]}"
    text = chat_text(tokenizer, [{"role": "user", "content": body}], add_generation_prompt=True)
    bos = tokenizer.bos_token
    if bos and text.startswith(bos) and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        text = text.removeprefix(bos)
    return text.rstrip(" ")
