"""Answers of a fine-tuned model to pairs: its prompts, what it writes, and the records of it; or outputs of others."""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamap.core.artifacts import content_key, digest, model_meta, stage
from datamap.core.errors import UserError, first_line, name_a_few
from datamap.core.files import appended_records, read_jsonl, read_rows, write_jsonl
from datamap.core.progress import Progress
from datamap.thoughts.data import id_text
from datamap.thoughts.prompts import PAIR, PROMPT_FILE, PROMPTS, TUNED, load_prompt, model_prompt
from datamap.thoughts.reader import parse_thought
from datamap.thoughts.records import append, line_of, locked, prompt_key
from datamap.training.models import TOKENIZER_FILES, check_whole_model
from datamap.training.on_gpu import room_for

if TYPE_CHECKING:
    import string

    from datamap.thoughts.generation import Generated

RECORDS = "predictions.jsonl"
RESULTS = ("metrics.json", "submission.csv", "confusion_matrix.*", "accuracy_by_length.*", "comparison.json")
OWNS = (RECORDS, *RESULTS)
MADE = ("new_tokens", "finished", "prompt", "settings")  # how an answer came to be

logger = logging.getLogger(__name__)


# --- model and prompts -------------------------------------------------------------------------------------------


class Answerer:
    """What answers: tokenizer and prompt now, the weights when there is something to be answered (``load``).

    UserError for whatever is missing, before any weights are read.
    """

    def __init__(self, args: argparse.Namespace):
        from datamap.thoughts.causal_lm import base_of_adapter, check_whole_adapter, load_tokenizer

        if args.adapter:
            check_whole_adapter(args.adapter)
        name = args.model or base_of_adapter(args.adapter)
        if name is None:
            raise UserError(f"adapter {args.adapter} does not say what model it was trained on; name it with --model")
        check_whole_model(name)
        self.args, self.name, self.template = args, name, template_of(args)
        if args.constrained:
            from datamap.thoughts.generation import check_llguidance

            check_llguidance()
        own = args.adapter and any((Path(args.adapter) / file).exists() for file in TOKENIZER_FILES)
        self.tokenizer = load_tokenizer(args.adapter if own else name)

    def key(self) -> str:
        """16 hex digits over all that an answer depends on beside its pair."""
        from datamap.training.models import device_of_process

        args = self.args
        # The type that is computed in decides about roundings, and so about answers.
        bfloat16 = args.quantization == "4bit" or device_of_process(args.no_cuda).type == "cuda"
        parameters = {
            "max_new_tokens": args.max_new_tokens, "temperature": args.temperature,
            "seed": args.seed if args.temperature else None, "constrained": args.constrained,
            "quantization": args.quantization, "dtype": "bfloat16" if bfloat16 else "float32",
        }
        parts = [content_key(part) if Path(part).exists() else part for part in (self.name, args.adapter) if part]
        return digest([parts, self.template.template, parameters])

    def prompt(self, premise: str, hypothesis: str) -> str:
        return model_prompt(self.tokenizer, self.template, premise, hypothesis)

    def load(self) -> None:
        from datamap.thoughts.causal_lm import load_causal_lm
        from datamap.thoughts.generation import SchemaConstraint, can_compile

        args = self.args
        self.model = load_causal_lm(self.name, self.tokenizer, adapter=args.adapter, no_cuda=args.no_cuda,
                                    load_in_4bit=args.quantization == "4bit")
        self.constraint = SchemaConstraint(self.model, self.tokenizer) if args.constrained else None
        on_gpu = self.model.device.type == "cuda"
        self.can_compile = on_gpu and can_compile(self.model)
        if args.compile and not self.can_compile:
            why = "this run is on the CPU" if not on_gpu else (
                "4-bit weights are none" if args.quantization == "4bit" else f"{self.name} is none")
            raise UserError(f"--compile needs a GPU and a model that the library can compile, and {why}; leave it out")

    def answer(self, prompts: Sequence[str]) -> Iterator[tuple[list[int], list[Generated]]]:
        """``generation.generate`` as the flags have it."""
        from datamap.thoughts.generation import generate

        args = self.args
        try:
            with room_for(f"--batch_size {args.batch_size}",
                          "lower it, or give --quantization 4bit; the same command goes on from here"):
                yield from generate(
                    self.model, self.tokenizer, prompts, batch_size=args.batch_size,
                    max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=args.seed,
                    constraint=self.constraint, compiled=self.compiles(len(prompts)),
                )
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise UserError(f"the decoding step cannot be compiled here ({first_line(error):.200}); give "
                            "--compile=false: the same command goes on from here") from error

    def compiles(self, prompts: int) -> bool:
        """Whether to compile the decoding step: as --compile says, else on a GPU where so many answers pay for it."""
        from datamap.thoughts.generation import STEPS_THAT_PAY

        args = self.args
        if args.compile is not None:
            return args.compile
        steps = -(-prompts // args.batch_size) * args.max_new_tokens
        if compiles := self.can_compile and STEPS_THAT_PAY is not None and steps >= STEPS_THAT_PAY:
            logger.info("compiling the decoding step, once; --compile=false leaves it as it is")
        return compiles


def template_of(args: argparse.Namespace) -> string.Template:
    """What was asked: by --prompt_file, or beside the adapter or the model, else by the prompt for tuned models."""
    file = args.prompt_file
    if file is None:
        trained = Path(args.adapter or args.model or ".")
        places = [trained, trained.parent] if trained.name.startswith("checkpoint-") else [trained]
        beside = [place / PROMPT_FILE for place in places if (args.adapter or args.model)]
        for place in beside:  # another prompt would give other answers
            is_ours = place.parent.is_dir() and PROMPT_FILE in (model_meta(place.parent) or {}).get("outputs", {})
            if is_ours and not place.is_file():
                raise UserError(f"{place.parent} holds no {PROMPT_FILE}, with which train_sft.py trained the model: "
                                "copy it too, or name a prompt with --prompt_file")
        file = next((place for place in beside if place.is_file()), TUNED)
    return load_prompt(file, PAIR)


# --- records -----------------------------------------------------------------------------------------------------


def read_recorded(path: Path, keys: Mapping[str, str], settings: str) -> dict[str, dict[str, Any]]:
    """The records in ``path`` by id, those of other pairs than ``keys`` (id -> prompt key) included.

    A last line that was cut off in mid-write is taken off the file. UserError for any other damaged line, and for
    records of another model, prompt or parameters (``settings``), or of other texts under the same id.
    """
    records = appended_records(path, _recorded, "delete that line, its pair is answered again")
    for place, record in enumerate(records, 1):
        name, same = record["id"], record["settings"] == settings
        if not same or keys.get(name, record["prompt"]) != record["prompt"]:
            what = "other texts of the pair" if same else "another model, prompt or parameters"
            raise UserError(f"{path}, line {place}: the answer to {name!r} was made with {what}; name another "
                            "--output_dir, or give --overwrite to begin again")
    return {record["id"]: record for record in records}


def _recorded(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    needed = ("id", "output", *MADE)
    if not isinstance(record, dict) or not all(name in record for name in needed):
        raise ValueError(f"no object with {', '.join(needed)}")
    return record


def answer_missing(
    by: Answerer, path: Path, pairs: Mapping[str, Mapping[str, Any]], prompts: Mapping[str, str],
    made: Mapping[str, Mapping[str, str]],
) -> dict[str, dict[str, Any]]:
    """Answer the pairs (all of them missing) and append every batch to ``path`` as it comes; the records by id."""
    records: dict[str, dict[str, Any]] = {}
    ids = list(pairs)
    with path.open("ab", buffering=0) as file, Progress("answering", len(ids), "pairs") as progress:
        for places, answers in by.answer([prompts[name] for name in ids]):
            batch = {}
            for name, answer in zip((ids[place] for place in places), answers, strict=True):
                how = {"new_tokens": answer.num_tokens, "finished": answer.finished, **made[name]}
                batch[name] = judged(pairs[name], answer.text, prompts[name], how)
            append(file, b"".join(map(line_of, batch.values())))  # from here on the batch outlives this process
            progress.advance(len(batch))
            records |= batch
    return records


def judged(pair: Mapping[str, Any], output: str | None, prompt: str, made: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an answer, in which ``prompt`` may be echoed. made: how it came to be."""
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
        **made,
    }


def _clean(text: str) -> str:
    """An escape may give half a surrogate pair, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


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
        records[name] = judged(pair, row.get("output"), prompt, {
            "new_tokens": tokens if isinstance(tokens, int) and not isinstance(tokens, bool) else None,
            "finished": finished if isinstance(finished, bool) else None,
        })
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
    """Answer what --output_dir does not hold yet, and yield all records by id; ``about``: of the stage around it.

    Recorded answers are read anew, with today's labels.
    """
    by = Answerer(args)
    settings = by.key()
    prompts = {name: by.prompt(pair["premise"], pair["hypothesis"]) for name, pair in pairs.items()}
    keys = {name: prompt_key(settings, {}, [{"role": "user", "content": text}]) for name, text in prompts.items()}
    path = Path(args.output_dir) / RECORDS
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, "answering"):
        recorded = {} if args.overwrite else read_recorded(path, keys, settings)
        missing = [name for name in pairs if name not in recorded]
        if recorded:
            others = len(recorded) + len(missing) - len(pairs)
            elsewhere = f", and {others:,} to other pairs" * bool(others)
            logger.info(f"{path}: {len(pairs) - len(missing):,} of {len(pairs):,} answers are there{elsewhere}")
        if missing:
            by.load()
        with stage(args.output_dir, args, resume=not args.overwrite, **about):
            for old in [file for pattern in RESULTS for file in path.parent.glob(pattern)]:
                old.unlink()  # only the answers are resumed
            records = {
                name: judged(pairs[name], record["output"], prompts[name], {made: record[made] for made in MADE})
                for name, record in recorded.items() if name in pairs
            }
            changed = sum(record != recorded[name] for name, record in records.items())
            if changed:
                logger.info(f"{changed:,} recorded answers are read in another way than then, or have another true "
                            "label")
                write_jsonl(path, (recorded | records).values())
            if missing:
                made = {name: {"prompt": keys[name], "settings": settings} for name in missing}
                records |= answer_missing(by, path, {name: pairs[name] for name in missing}, prompts, made)
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
