"""Answers of a fine-tuned model to pairs: its prompts, what it writes, and the records of it; or outputs of others."""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamap.core.artifacts import content_key, digest, stage
from datamap.core.errors import UserError, name_a_few
from datamap.core.files import appended_records, read_jsonl, read_rows, write_jsonl
from datamap.thoughts.data import id_text
from datamap.thoughts.prompts import PAIR, PROMPT_FILE, PROMPTS, TUNED, load_prompt, model_prompt
from datamap.thoughts.reader import parse_thought
from datamap.thoughts.records import line_of, locked, prompt_key
from datamap.training.model_files import TOKENIZER_FILES, check_whole_model

if TYPE_CHECKING:
    import string

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from datamap.thoughts.generation import Generated, SchemaConstraint

    Loaded = tuple[PreTrainedModel, SchemaConstraint | None]

RECORDS = "predictions.jsonl"
RESULTS = ("metrics.json", "submission.csv", "confusion_matrix.*", "accuracy_by_length.*", "comparison.json")
OWNS = (RECORDS, *RESULTS)
MADE = ("new_tokens", "finished", "prompt", "settings")  # how an answer came to be

logger = logging.getLogger(__name__)


# --- model and prompts -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answerer:
    """What an answer depends on beside its pair. The weights are loaded when something is to be answered."""

    name: str
    adapter: str | None
    tokenizer: PreTrainedTokenizerBase
    template: string.Template
    parameters: dict[str, Any]

    def key(self) -> str:
        """16 hex digits over all of it."""
        parts = [content_key(part) if Path(part).exists() else part for part in (self.name, self.adapter) if part]
        return digest([parts, self.template.template, self.parameters])

    def prompt(self, premise: str, hypothesis: str) -> str:
        return model_prompt(self.tokenizer, self.template, premise, hypothesis)

    def load(self, args: argparse.Namespace) -> Loaded:
        from datamap.thoughts.causal_lm import load_causal_lm
        from datamap.thoughts.generation import SchemaConstraint

        four_bit = args.quantization == "4bit"
        model = load_causal_lm(
            self.name, self.tokenizer, adapter=self.adapter, load_in_4bit=four_bit, no_cuda=args.no_cuda
        )
        return model, SchemaConstraint(model, self.tokenizer) if args.constrained else None


def answerer(args: argparse.Namespace) -> Answerer:
    """UserError for whatever is missing, before any weights are read."""
    from datamap.thoughts.causal_lm import base_of_adapter, check_whole_adapter, load_tokenizer
    from datamap.training.models import device_of_process

    if args.adapter:
        check_whole_adapter(args.adapter)
    name = args.model or base_of_adapter(args.adapter)
    if name is None:
        raise UserError(f"adapter {args.adapter} does not say what model it was trained on; name it with --model")
    check_whole_model(name)
    template = template_of(args)
    if args.constrained:
        from datamap.thoughts.generation import check_llguidance

        check_llguidance()
    own = args.adapter and any((Path(args.adapter) / file).exists() for file in TOKENIZER_FILES)
    # The type that is computed in decides about roundings, and so about answers.
    bfloat16 = args.quantization == "4bit" or device_of_process(args.no_cuda).type == "cuda"
    parameters = {
        "max_new_tokens": args.max_new_tokens, "temperature": args.temperature,
        "seed": args.seed if args.temperature else None, "constrained": args.constrained,
        "quantization": args.quantization, "dtype": "bfloat16" if bfloat16 else "float32",
    }
    return Answerer(name, args.adapter, load_tokenizer(args.adapter if own else name), template, parameters)


def template_of(args: argparse.Namespace) -> string.Template:
    """What was asked: by --prompt_file, or beside the adapter or the model, else by the prompt for tuned models."""
    file = args.prompt_file
    if file is None:
        trained = Path(args.adapter or args.model or ".")
        places = [trained, trained.parent] if trained.name.startswith("checkpoint-") else [trained]
        beside = [place / PROMPT_FILE for place in places if (args.adapter or args.model)]
        file = next((place for place in beside if place.is_file()), TUNED)
    return load_prompt(file, PAIR)


# --- records -----------------------------------------------------------------------------------------------------


def read_recorded(path: Path, keys: Mapping[str, str], settings: str) -> tuple[dict[str, dict[str, Any]], int]:
    """The records of ``keys`` (id -> prompt key) in ``path`` by id, and how many there are of other pairs.

    A last line that was cut off in mid-write is taken off the file. UserError for any other damaged line, and for
    records of another model, prompt or parameters (``settings``), or of other texts under the same id.
    """
    records: dict[str, dict[str, Any]] = {}
    others = 0
    lines = appended_records(path, _recorded, "delete that line, its pair is answered again")
    for place, record in enumerate(lines, 1):
        name = record["id"]
        if record["settings"] != settings or keys.get(name, record["prompt"]) != record["prompt"]:
            other = record["settings"] != settings
            what = "another model, prompt or parameters" if other else "other texts of the pair"
            raise UserError(f"{path}, line {place}: the answer to {name!r} was made with {what}; name another "
                            "--output_dir, or give --overwrite to begin again")
        if name in keys:
            records[name] = record
        else:
            others += 1
    return records, others


def _recorded(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    needed = ("id", "output", *MADE)
    if not isinstance(record, dict) or not all(name in record for name in needed):
        raise ValueError(f"no object with {', '.join(needed)}")
    return record


def answer_missing(
    args: argparse.Namespace, by: Answerer, loaded: Loaded, pairs: Mapping[str, Mapping[str, Any]],
    prompts: Mapping[str, str], keys: Mapping[str, str], settings: str, path: Path,
) -> dict[str, dict[str, Any]]:
    """Answer the pairs (all of them missing) and append every batch to ``path`` as it comes; the records by id."""
    from tqdm.auto import tqdm

    records: dict[str, dict[str, Any]] = {}
    ids = list(pairs)
    with path.open("ab") as file, tqdm(total=len(ids), desc="answering", unit="pair", disable=None) as bar:
        for places, answers in generated(args, by, loaded, [prompts[name] for name in ids]):
            lines = []
            for place, answer in zip(places, answers, strict=True):
                name = ids[place]
                record = judged(pairs[name], answer.text, prompts[name])
                record |= {"new_tokens": answer.num_tokens, "finished": answer.finished, "prompt": keys[name],
                           "settings": settings}
                records[name] = record
                lines.append(line_of(record))
            file.write(b"".join(lines))
            file.flush()  # from here on the batch outlives this process
            bar.update(len(places))
    return records


def generated(
    args: argparse.Namespace, by: Answerer, loaded: Loaded, prompts: Sequence[str]
) -> Iterator[tuple[list[int], list[Generated]]]:
    import torch

    from datamap.thoughts.generation import generate

    model, constraint = loaded
    try:
        yield from generate(
            model, by.tokenizer, prompts, batch_size=args.batch_size, max_new_tokens=args.max_new_tokens,
            temperature=args.temperature, seed=args.seed, constraint=constraint,
        )
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"the GPU has no room for --batch_size {args.batch_size}; lower it, or give --quantization "
                        "4bit: the same command goes on from here") from error


def judged(pair: Mapping[str, Any], output: str | None, prompt: str) -> dict[str, Any]:
    """The record of an answer, without how it was made; ``prompt`` may be echoed in it."""
    parsed = parse_thought(output or "", prompt)
    return {
        "id": pair["id"],
        "premise": pair["premise"],
        "hypothesis": pair["hypothesis"],
        "true_label": pair["label"],
        "predicted_label": parsed.label,
        "correct": None if pair["label"] is None else parsed.label == pair["label"],
        "method": parsed.method,
        "thought_process": None if parsed.thought is None else _clean(parsed.thought),
        "output": None if output is None else _clean(output),
    }


def _clean(text: str) -> str:
    """An escape may give half a surrogate pair, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def judged_again(
    path: Path, found: Mapping[str, Mapping[str, Any]], pairs: Mapping[str, Mapping[str, Any]],
    prompts: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """Recorded answers as they are read today, with today's labels; the file is written anew where that differs."""
    now = {
        name: judged(pairs[name], record["output"], prompts[name]) | {made: record[made] for made in MADE}
        for name, record in found.items()
    }
    changed = sum(now[name] != record for name, record in found.items())
    if changed:
        logger.info(f"{changed:,} recorded answers are read in another way than then, or have another true label")
        write_jsonl(path, [now.get(record["id"], record) for record in read_jsonl(path)])
    return now


def read_outputs(path: Path, pairs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows of a --predictions file whose ids are those of pairs, by id."""
    if not path.is_file():
        raise UserError(f"--predictions {path}: no such file; expected JSON Lines or a JSON list with id and output")
    rows = read_rows(path)
    for place, row in enumerate(rows, 1):
        missing = [name for name in ("id", "output") if name not in row]
        if missing or row["id"] is None:
            raise UserError(f"{path}, record {place}: no {name_a_few(missing or ['id'])}; expected id and output")
        if not isinstance(row["output"], str | None):
            raise UserError(f"{path}, record {place} (id {row['id']!r}): output is {row['output']!r:.40}; expected "
                            "the raw text, or null for no answer")
    ids = [id_text(row["id"]) for row in rows]
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: {len(repeated):,} ids occur more than once ({name_a_few(repeated)}); keep one each")
    found = {name: row for name, row in zip(ids, rows, strict=True) if name in pairs}
    if not rows:
        raise UserError(f"--predictions {path} holds no rows; expected id and output of every pair")
    check_same_texts(f"--predictions {path}", found, pairs)
    if not found:
        raise UserError(f"{path} shares no ids with the pairs ({name_a_few(ids)} there, {name_a_few(pairs)} here); "
                        "give the --dataset and --split that were answered; a dataset without a column id has ids "
                        "made from its texts")
    if len(found) < len(ids):
        logger.warning(f"{path}: {len(ids) - len(found):,} of {len(ids):,} outputs are of other pairs and not scored")
    if len(found) < len(pairs):
        logger.warning(f"{len(pairs) - len(found):,} of {len(pairs):,} pairs have no output in {path} and count as no "
                       "answer")
    return found


def judge_outputs(
    args: argparse.Namespace, outputs: Mapping[str, Mapping[str, Any]], pairs: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Records of all pairs; tokens are known where the file says how many, as one of ours does."""
    template = template_of(args)
    # A prompt that is echoed is no answer; of those that it may be, ours are known.
    known = [(PROMPTS / f"{name}.txt").read_text(encoding="utf-8") for name in ("generate", "reflect")]
    records = {}
    for name, pair in pairs.items():
        row = outputs.get(name, {})
        prompt = "\n".join([template.substitute({part: pair[part] for part in PAIR}), *known])
        tokens, finished = row.get("new_tokens"), row.get("finished")
        records[name] = judged(pair, row.get("output"), prompt) | {
            "new_tokens": tokens if isinstance(tokens, int) and not isinstance(tokens, bool) else None,
            "finished": finished if isinstance(finished, bool) else None,
        }
    return records


def check_same_texts(
    source: str, rows: Mapping[str, Mapping[str, Any]], pairs: Mapping[str, Mapping[str, Any]]
) -> None:
    """UserError where rows that tell their texts have others under the ids of ``pairs``."""
    for name, row in rows.items():
        for text in ("premise", "hypothesis"):
            if name in pairs and row.get(text) not in (None, pairs[name][text]):
                raise UserError(f"{source}: the {text} of {name!r} is {row[text]!r:.60} there and "
                                f"{pairs[name][text]!r:.60} here; these are other pairs under the same ids")


# --- all of a run ---------------------------------------------------------------------------------------------------


@contextmanager
def answers_of_model(
    args: argparse.Namespace, pairs: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]
) -> Iterator[dict[str, dict[str, Any]]]:
    """Answer what --output_dir does not hold yet, and yield all records by id; ``about``: of the stage around it."""
    by = answerer(args)
    settings = by.key()
    prompts = {name: by.prompt(pair["premise"], pair["hypothesis"]) for name, pair in pairs.items()}
    keys = {name: prompt_key(settings, {}, [{"role": "user", "content": text}]) for name, text in prompts.items()}
    path = Path(args.output_dir) / RECORDS
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, "answering"):
        found, others = ({}, 0) if args.overwrite else read_recorded(path, keys, settings)
        if found or others:
            elsewhere = f", and {others:,} to other pairs" * bool(others)
            logger.info(f"{path}: {len(found):,} of {len(pairs):,} answers are there{elsewhere}")
        missing = {name: pair for name, pair in pairs.items() if name not in found}
        loaded = by.load(args) if missing else None
        with stage(args.output_dir, args, resume=not args.overwrite, **about):
            for old in [file for pattern in RESULTS for file in path.parent.glob(pattern)]:
                old.unlink()  # only the answers are resumed
            records = judged_again(path, found, pairs, prompts)
            if loaded:
                records |= answer_missing(args, by, loaded, missing, prompts, keys, settings, path)
            yield {name: records[name] for name in pairs}


@contextmanager
def answers_in_file(
    args: argparse.Namespace, pairs: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]
) -> Iterator[dict[str, dict[str, Any]]]:
    """The same of the outputs in --predictions."""
    path = Path(args.output_dir) / RECORDS
    if not args.overwrite and path.exists() and any(record.get("settings") for record in read_jsonl(path)):
        raise UserError(f"{path} holds the answers of a model, which would be lost; name another --output_dir, or "
                        "give --overwrite")
    records = judge_outputs(args, read_outputs(Path(args.predictions), pairs), pairs)
    with stage(args.output_dir, args, **about):
        write_jsonl(path, records.values())
        yield records
