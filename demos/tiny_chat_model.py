"""Make a tiny chat model that answers the prompts of generate_thoughts.py with the JSON that they ask for.

Reads the prompts in example_configs/prompts/ and writes a model with its tokenizer to --output_dir: a Mistral with
random weights, 2 layers, 128 wide, that is trained to fill in templates on pairs like those of
demo:nli. It cannot reason and knows nothing: it sees the end of a prompt and goes by the last word of a hypothesis.
It stands for a real model where none can be had, so that the whole road can be walked on a CPU.

    python demos/tiny_chat_model.py --output_dir ./tiny_chat_model
    transformers serve ./tiny_chat_model --host 127.0.0.1 --port 8000 --device cpu
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package beside this folder, installed or not

import numpy as np

from datamap.core.artifacts import check_writable, stage
from datamap.core.errors import command_line, name_a_few
from datamap.core.files import write_json
from datamap.core.flags import DEFAULT_SEED, Parser, seed_number
from datamap.demo import builtin
from datamap.thoughts.chains import PLACEHOLDERS, READERS
from datamap.thoughts.prompts import PAIR, PROMPTS, TUNED, fill_tagged, load_prompt
from datamap.thoughts.reader import ANALYSIS, CRITERIA, IMPROVED, LABEL, completion_text

if TYPE_CHECKING:
    from string import Template

    import torch
    from transformers import MistralForCausalLM, PreTrainedTokenizerFast

OWNS = ("config.json", "generation_config.json", "model.safetensors", "tokenizer*", "special_tokens_map.json",
        "chat_template.jinja", "tiny_chat_model.json")
FOLLOWS = "entailment"  # the label of demo:nli that is 1 here

BOS, EOS, UNK, PAD = "<s>", "</s>", "<unk>", "<pad>"
# The format of Mistral's instruction-tuned models, without tools and system messages.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant messages are known') }}{% endif %}{% endfor %}"
)

VOCAB_SIZE = 1500
HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS = 128, 2, 4, 2
MAX_LENGTH = 4096
WINDOW = 56  # tokens that a layer looks back, as in the first Mistral-7B: what matters is soon found among so few
CONTEXT = NUM_LAYERS * WINDOW  # no answer depends on what stands further before it
INITIALIZER_RANGE = 0.08
LEARNING_RATE, WARMUP, CLIP = 6e-3, 0.1, 1.0
BETAS = 0.9, 0.98
STEPS, REPORTED_STEPS = 120, 40  # a step takes about 0.4 s
BATCH = {"generate": 12, "reflect": 12, "score": 5, "compare": 3}  # more of what is harder to learn
IGNORED = -100  # a token that is not learned

NUM_TAUGHT, NUM_CHECKED = 600, 16  # pairs that are trained on, and pairs that are not
READABLE_SHARE = 0.75
MAX_NEW_TOKENS = 160

logger = logging.getLogger(__name__)


# --- templates ---------------------------------------------------------------------------------------------------


def chain(pair: Mapping[str, str], label: int) -> str:
    """Three steps that end in ``label``; the second depends on the last word of the hypothesis."""
    third = "follows" if label else "does not follow"
    return (f"Step 1: The premise says what people are doing. Step 2: The hypothesis speaks of {last_word(pair)}. "
            f"Step 3: So the hypothesis {third}.")


def last_word(pair: Mapping[str, str]) -> str:
    return pair["hypothesis"].rstrip(".").split()[-1]


def is_bare(pair: Mapping[str, str]) -> bool:
    """Whether neither a place nor a time ends the hypothesis."""
    return last_word(pair) not in ("outdoors", "noon", "night")


def answer(mode: str, values: Mapping[str, str]) -> str:
    """What the model is taught to answer to a prompt with these values in it."""
    if mode == "generate":
        label = int(is_bare(values))  # a poor guess on purpose: reflection needs wrong answers
        return completion_text(chain(values, label), label)
    if mode == "reflect":
        label = int(values["true_label"])
        analysis = f"The premise {'says' if label else 'does not say'} enough of {last_word(values)}."
        return json.dumps({ANALYSIS: analysis, IMPROVED: chain(values, label), LABEL: label})
    if mode == "score":
        label = int(values["label"])
        scores = {"coherence": 3 if is_bare(values) else 4, "correctness": 2 if label else 4, "brevity": 4 + label}
        reasons = {name: {"reason": f"Its {name} is seen at a glance.", "score": scores[name]} for name in CRITERIA}
        return json.dumps(reasons)
    better = {"01": "A", "10": "B"}.get(values["label_a"] + values["label_b"], "tie")
    return json.dumps({"reason": "What claims less is better.", "better": better})


def examples(mode: str, template: Template, pairs: Sequence[Mapping[str, str]], seed: int) -> list[tuple[str, str]]:
    """For each pair a filled-in prompt, and the answer to it."""
    rng = np.random.default_rng([seed, list(PLACEHOLDERS).index(mode)])
    made = []
    for pair in pairs:
        true_label = int(pair["label"] == FOLLOWS)
        labels = rng.integers(2, size=3).tolist()
        if mode == "reflect":  # only what is wrong is reflected on
            labels[0] = 1 - true_label
        values = {"premise": pair["premise"], "hypothesis": pair["hypothesis"], "true_label": str(true_label)}
        for end, label in zip(("", "_a", "_b"), labels, strict=True):
            values |= {f"thought{end}": chain(pair, label), f"label{end}": str(label)}
        made.append((fill_tagged(template, {name: values[name] for name in PLACEHOLDERS[mode]}), answer(mode, values)))
    return made


def unseen_pairs(seed: int) -> list[dict[str, str]]:
    """Pairs like those of demo:nli, but of none of its premises, in random order."""
    splits = list(builtin.DEMOS["nli"].sizes)
    known = {row["premise"] for split in splits for row in builtin.generate("nli", split)}
    rows = [row for split in splits for row in builtin.generate("nli", split, seed + 1)]
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[place] for place in order if rows[place]["premise"] not in known]


# --- tokenizer and model -----------------------------------------------------------------------------------------


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts BOS before a text, with Mistral's special tokens and chat format."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[UNK, BOS, EOS, PAD], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token=UNK, pad_token=PAD,
        chat_template=CHAT_TEMPLATE, model_max_length=MAX_LENGTH, clean_up_tokenization_spaces=False,
    )


def chat(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """What a server makes of a chat with this one message: the answer begins behind it."""
    return str(tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False))


def build_model(tokenizer: PreTrainedTokenizerFast) -> MistralForCausalLM:
    """A Mistral with random weights (seed torch first)."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN_SIZE, intermediate_size=3 * HIDDEN_SIZE,
        num_hidden_layers=NUM_LAYERS, num_attention_heads=NUM_HEADS, num_key_value_heads=NUM_KV_HEADS,
        max_position_embeddings=MAX_LENGTH, sliding_window=WINDOW, initializer_range=INITIALIZER_RANGE,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    return MistralForCausalLM(config)


# --- training ----------------------------------------------------------------------------------------------------


Lesson = tuple[list[int], int]  # token ids of a prompt, cut to the last CONTEXT, and its answer; where that begins


def encode(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]]) -> list[Lesson]:
    prompts = tokenizer([chat(tokenizer, prompt) for prompt, _ in pairs], add_special_tokens=False)["input_ids"]
    answers = tokenizer([f" {text}{EOS}" for _, text in pairs], add_special_tokens=False)["input_ids"]
    return [(ids[-CONTEXT:] + end, len(ids[-CONTEXT:])) for ids, end in zip(prompts, answers, strict=True)]


def batch_loss(model: MistralForCausalLM, lessons: Sequence[Lesson]) -> torch.Tensor:
    """Mean loss of the answers' tokens."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [(torch.tensor(ids), start) for ids, start in lessons]
    ids = pad_sequence([row for row, _ in rows], batch_first=True, padding_value=model.config.pad_token_id)
    answers = [torch.cat([torch.full((start,), IGNORED), row[start:]]) for row, start in rows]
    labels = pad_sequence(answers, batch_first=True, padding_value=IGNORED)[:, 1:]
    # No token sees the padding, which stands behind all.
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    learned = labels != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][learned]), labels[learned])


def train(model: MistralForCausalLM, data: Mapping[str, Sequence[Lesson]], seed: int) -> list[float]:
    """Overfit the answers of every mode, ``BATCH`` of each in a step; the loss of each step."""
    import torch

    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=WARMUP)
    losses = []
    model.train()
    for step in range(1, STEPS + 1):
        total = 0.0
        for mode, lessons in data.items():
            rows = rng.integers(len(lessons), size=BATCH[mode]).tolist()
            loss = batch_loss(model, [lessons[row] for row in rows]) / len(data)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total)
        if step % REPORTED_STEPS == 0:
            logger.info(f"step {step:,} of {STEPS:,}: loss {total:.4f}")
    model.eval()
    return losses


def readable(
    model: MistralForCausalLM, tokenizer: PreTrainedTokenizerFast, cases: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, dict[str, int]]:
    """Of each mode's cases: n, how many answers can be read (parsed), and how many are the template's (exact)."""
    from datamap.thoughts.generation import generate

    found = {}
    for mode, pairs in cases.items():
        prompts = [chat(tokenizer, prompt).removeprefix(BOS) for prompt, _ in pairs]
        # One batch: its places are those of the prompts, by length.
        (places, texts), = generate(model, tokenizer, prompts, batch_size=len(pairs), max_new_tokens=MAX_NEW_TOKENS)
        written = [(place, one.text) for place, one in zip(places, texts, strict=True)]
        found[mode] = {
            "n": len(pairs),
            "parsed": sum(READERS[mode](text, prompts[place]) is not None for place, text in written),
            "exact": sum(text.strip() == pairs[place][1] for place, text in written),
        }
    return found


# --- script ------------------------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Make a tiny chat model that answers the prompts of generate_thoughts.py.")
    parser.add_argument("--output_dir", default="./tiny_chat_model", help="where model and tokenizer are written")
    parser.add_argument("--seed", type=seed_number, default=DEFAULT_SEED, help="of weights, pairs and their order")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    templates = {mode: load_prompt(PROMPTS / f"{mode}.txt", names) for mode, names in PLACEHOLDERS.items()}
    check_writable(args.output_dir)
    import torch

    began = time.monotonic()
    torch.set_num_threads(1)  # several wait for each other longer than they work, with so small a model
    torch.manual_seed(args.seed)
    pairs = unseen_pairs(args.seed)
    taught, held_out = pairs[NUM_CHECKED : NUM_CHECKED + NUM_TAUGHT], pairs[:NUM_CHECKED]
    data = {mode: examples(mode, template, taught, args.seed) for mode, template in templates.items()}
    tuned = load_prompt(TUNED, PAIR)
    texts = [text for mode in PLACEHOLDERS for pair in data[mode] for text in pair]
    texts += [tuned.substitute(premise=pair["premise"], hypothesis=pair["hypothesis"]) for pair in taught]
    tokenizer = train_tokenizer(texts)
    model = build_model(tokenizer)
    lessons = {mode: encode(tokenizer, pairs) for mode, pairs in data.items()}
    logger.info(f"training {model.num_parameters():,} weights, after {time.monotonic() - began:.0f} s of preparation")
    with stage(args.output_dir, args, owns=OWNS) as path:
        losses = train(model, lessons, args.seed)
        cases = {mode: examples(mode, template, held_out, args.seed) for mode, template in templates.items()}
        answers = readable(model, tokenizer, cases)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        write_json(path / "tiny_chat_model.json", {
            "steps": STEPS, "first_loss": losses[0], "last_loss": losses[-1], "held_out": answers,
            "seconds": round(time.monotonic() - began, 1),
        })
    for mode, counts in answers.items():
        print(f"{mode:<9} {counts['parsed']} of {counts['n']} answers on unseen pairs can be read, {counts['exact']} "
              "are to the letter what the template says")
    bad = [mode for mode, counts in answers.items() if counts["parsed"] < READABLE_SHARE * counts["n"]]
    if bad:
        logger.warning(f"too many answers to {name_a_few(bad)} cannot be read; another --seed may help")
    print(f"wrote the model to {path}")


if __name__ == "__main__":
    main()
