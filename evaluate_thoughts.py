"""Let a fine-tuned model answer whether hypotheses follow, with its chain of thought, and score the answers.

Reads pairs, and a model with or without a LoRA adapter or, with --predictions, outputs made elsewhere (JSON Lines
or a JSON list with id and output). Writes predictions.jsonl, metrics.json, submission.csv (id, prediction),
confusion_matrix and accuracy_by_length (CSV and PNG) and, with --compare, comparison.json.

    python evaluate_thoughts.py --adapter ./sft_output --dataset nyu-mll/multi_nli --max_samples 1000 \\
        --label_map entailment=1,neutral=0,contradiction=0 --quantization 4bit --output_dir ./thoughts_evaluation
    python evaluate_thoughts.py --predictions outputs.jsonl --dataset demo:nli \\
        --label_map entailment=1,neutral=0,contradiction=0

A label is never guessed: an answer without one is null in the files, counted, and wrong in the accuracy. A run that
was stopped goes on with the same command; greedy answers in float32 depend neither on that nor on --batch_size.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamap.core.artifacts import artifact_file, check_not_read, check_writable, content_key, digest, stage
from datamap.core.errors import UserError, command_line, name_a_few
from datamap.core.files import appended_records, read_jsonl, read_rows, write_csv, write_json, write_jsonl
from datamap.core.flags import DEFAULT_SEED, Parser, number, positive_int, seed_number
from datamap.core.plots import dataset_label
from datamap.core.splits import default_eval_split
from datamap.thoughts.data import add_pair_flags, id_text, load_pairs
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
OF_A_MODEL = ("quantization", "temperature", "constrained")  # flags that would change answers
PROMPT_FILE = "prompt.txt"  # beside an adapter: what it was trained on

logger = logging.getLogger(__name__)


# --- command line ------------------------------------------------------------------------------------------------


def build_parser() -> Parser:
    parser = Parser("Let a fine-tuned model answer whether hypotheses follow, and score the answers.")
    group = parser.add_argument_group("pairs")
    group.add_argument("--dataset", help="Hub name, file, directory or demo:... with premise and hypothesis; without "
                                         "labels, answers are written but not scored")
    group.add_argument("--split", help="split to answer (default: validation, or what stands for it)")
    add_pair_flags(group)
    group.add_argument("--premise", metavar="TEXT", help="answer this one pair, with --hypothesis; writes nothing")
    group.add_argument("--hypothesis", metavar="TEXT", help="answer this one pair, with --premise")
    group = parser.add_argument_group("model")
    group.add_argument("--model", help="Hub name or directory (default: the one that the adapter was trained on)")
    group.add_argument("--adapter", help="directory that train_sft.py wrote, or a LoRA adapter of the Hub")
    group.add_argument("--quantization", choices=("none", "4bit"), default="none",
                       help="4bit: NF4 weights, as in training; none: float32 on the CPU, bfloat16 on a GPU")
    group.add_argument("--prompt_file", metavar="FILE", help=f"text with $premise and $hypothesis (default: "
                       f"{PROMPT_FILE} beside the adapter, else example_configs/prompts/sft.txt); with --predictions "
                       "what was asked: an example that stands in it, echoed, is no answer")
    group.add_switch("--no_cuda", help="use the CPU even where there is a GPU")
    group = parser.add_argument_group("decoding")
    group.add_argument("--batch_size", type=positive_int, default=16, help="prompts answered at once")
    group.add_argument("--max_new_tokens", type=positive_int, default=256, help="longest answer; longer ones are cut")
    group.add_argument("--temperature", type=lambda text: number(text, 0, 10), default=0.0,
                       help="0 takes the likeliest token, above it tokens are drawn (default: 0)")
    group.add_argument("--seed", type=seed_number, default=DEFAULT_SEED, help="for --temperature above 0: an answer "
                       "depends on it and on its prompt, not on the others in its batch")
    group.add_switch("--constrained", help="allow nothing but the JSON of an answer (needs llguidance)")
    group = parser.add_argument_group("results")
    group.add_argument("--predictions", metavar="FILE", help="score these outputs instead of a model's: JSON Lines or "
                       "a JSON list with id and output (null: no answer)")
    group.add_argument("--compare", metavar="DIR", help="output directory of another run on the same pairs: is the "
                       "difference more than chance? (exact McNemar)")
    group.add_argument("--output_dir", default="./thoughts_evaluation", help="where the files go")
    group.add_switch("--overwrite", help="begin again where --output_dir holds answers of another run")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    one_pair = args.premise is not None or args.hypothesis is not None
    if one_pair and (args.premise is None or args.hypothesis is None):
        parser.error("--premise and --hypothesis belong together; give both")
    for name in ("premise", "hypothesis"):
        if one_pair and not getattr(args, name).strip():
            parser.error(f"--{name} is empty; give a sentence")
    for name in ("dataset", "predictions", "compare"):
        if one_pair and getattr(args, name) is not None:
            parser.error(f"--premise and --hypothesis are one pair to answer; leave out --{name}")
    if not one_pair and args.dataset is None:
        parser.error("name the pairs with --dataset, or give one with --premise and --hypothesis")
    if args.predictions is None and args.model is None and args.adapter is None:
        parser.error("name what answers: --model, --adapter, or --predictions for outputs that are there already")
    if args.predictions is not None and (args.model or args.adapter):
        parser.error("--predictions scores outputs that are there already; leave out --model and --adapter")
    for name in OF_A_MODEL:
        if args.predictions is not None and getattr(args, name) != parser.get_default(name):
            parser.error(f"--predictions scores outputs that are there already; leave out --{name}")
    return args


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
        from datamap.thoughts.prompts import model_prompt

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
    from datamap.thoughts.prompts import PAIR, TUNED, load_prompt

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
    from datamap.thoughts.prompts import PAIR, PROMPTS

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


# --- results -----------------------------------------------------------------------------------------------------


def lengths_of(records: Sequence[Mapping[str, Any]]) -> tuple[list[int | None], str]:
    """The length of every answer and its unit: new tokens where they are known of all answers, else words."""
    written = [record for record in records if record["output"] is not None]
    if written and all(record["new_tokens"] is not None for record in written):
        return [None if record["output"] is None else record["new_tokens"] for record in records], "new tokens"
    return [None if record["output"] is None else len(record["output"].split()) for record in records], "words"


def metrics_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``thought_metrics.pair_metrics``, and of generated answers how many were cut off and their mean length."""
    from datamap.thoughts.metrics import pair_metrics

    columns = (
        [record[name] for record in records] for name in ("true_label", "predicted_label", "method")
    )
    tokens = [record["new_tokens"] for record in records if record["new_tokens"] is not None]
    ends = [record["finished"] for record in records if record["finished"] is not None]
    return {
        **pair_metrics(*columns),
        "no_output": sum(record["output"] is None for record in records),
        "cut_off": ends.count(False) if ends else None,
        "new_tokens_mean": sum(tokens) / len(tokens) if tokens else None,
    }


def write_results(
    path: Path, records: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any], title: str
) -> None:
    import pandas as pd

    from datamap.thoughts.metrics import confusion, length_table, write_confusion, write_lengths

    write_json(path / "metrics.json", metrics)
    gold, predicted = ([record[name] for record in records] for name in ("true_label", "predicted_label"))
    submission = pd.DataFrame({"id": [record["id"] for record in records], "prediction": predicted})
    write_csv(path / "submission.csv", submission.astype({"id": "string", "prediction": "Int64"}))
    if not metrics["n_labelled"]:
        return
    write_confusion(path, confusion(gold, predicted), title)
    lengths, unit = lengths_of(records)
    table = length_table(lengths, gold, predicted)
    if len(table):
        write_lengths(path, table, unit, metrics, title)


def check_same_texts(
    source: str, rows: Mapping[str, Mapping[str, Any]], pairs: Mapping[str, Mapping[str, Any]]
) -> None:
    """UserError where rows that tell their texts have others under the ids of ``pairs``."""
    for name, row in rows.items():
        for text in ("premise", "hypothesis"):
            if name in pairs and row.get(text) not in (None, pairs[name][text]):
                raise UserError(f"{source}: the {text} of {name!r} is {row[text]!r:.60} there and "
                                f"{pairs[name][text]!r:.60} here; these are other pairs under the same ids")


def read_other(source: str, pairs: Mapping[str, Mapping[str, Any]]) -> dict[str, int | None]:
    """What another run predicted for the labelled ones of these pairs, by id."""
    file = artifact_file(source, RECORDS, "evaluate_thoughts.py")
    rows = {row["id"]: row for row in read_jsonl(file, ("id", "true_label", "predicted_label"))}
    labels = {name: pair["label"] for name, pair in pairs.items() if pair["label"] is not None}
    if not labels:
        raise UserError("--compare needs true labels, and these pairs have none")
    check_same_texts(f"--compare {source}", rows, pairs)
    for name, row in rows.items():
        if row["true_label"] is not None and labels.get(name, row["true_label"]) != row["true_label"]:
            raise UserError(f"--compare {source}: the true label of {name!r} is {row['true_label']} there and "
                            f"{labels[name]} here; compare runs on the same pairs with the same --label_map")
    shared = {name: rows[name]["predicted_label"] for name in labels if name in rows}
    if not shared:
        raise UserError(f"--compare {source} has no labelled pairs in common with this run ({name_a_few(rows)} there, "
                        f"{name_a_few(labels)} here); compare runs on the same pairs")
    return shared


def compared(source: str, other: Mapping[str, int | None], records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    from datamap.thoughts.metrics import compare_runs

    gold = {name: record["true_label"] for name, record in records.items() if record["true_label"] is not None}
    right = [records[name]["predicted_label"] == gold[name] for name in other]
    other_right = [label == gold[name] for name, label in other.items()]
    return {"other": source, **compare_runs(right, other_right), "only_in_this": len(gold) - len(other)}


def told(found: Mapping[str, Any]) -> str:
    """A comparison in a sentence."""
    overlap = f" ({found['only_in_this']:,} others are not there)" * bool(found["only_in_this"])
    return (
        f"against {found['other']} on {found['n']:,} pairs{overlap}: accuracy {found['accuracy']:.3f} here, "
        f"{found['other_accuracy']:.3f} there, difference {found['difference']:+.3f} [{found['difference_low']:+.3f}, "
        f"{found['difference_high']:+.3f}]; right only here {found['only_this_right']:,}, only there "
        f"{found['only_other_right']:,}, exact McNemar p = {found['p_mcnemar']:.3g}: {found['verdict']}"
    )


def printed(metrics: Mapping[str, Any]) -> str:
    """The table for the console."""
    def shown(name: str) -> str:
        return "-" if metrics[name] is None else f"{metrics[name]:.3f}"

    counts = ", ".join(f"{method} {metrics[f'parsed_{method}']:,}" for method in ("strict", "object", "none"))
    rows = [("pairs", f"{metrics['n']:,}", f"{metrics['n_labelled']:,} with a true label")]
    if metrics["n_labelled"]:
        interval = f"95 % interval [{metrics['accuracy_low']:.3f}, {metrics['accuracy_high']:.3f}]"
        rows += [
            ("accuracy", shown("accuracy"), f"{interval}; no answer is wrong"),
            ("among answered", shown("accuracy_parsed"), f"{metrics['n_labelled_parsed']:,} pairs"),
            ("majority baseline", shown("majority_baseline"), "always the commoner label"),
            ("macro F1", shown("f1_macro"), f"label 0 {shown('f1_0')}, label 1 {shown('f1_1')}"),
        ]
    rows.append(("parse rate", shown("parse_rate"), counts))
    return "\n".join(f"{name:<18}{value:>7}  {note}".rstrip() for name, value, note in rows)


# --- one run -----------------------------------------------------------------------------------------------------


def answer_one(args: argparse.Namespace) -> None:
    by = answerer(args)
    prompt = by.prompt(args.premise, args.hypothesis)
    [(_, [answer])] = generated(args, by, by.load(args), [prompt])
    parsed = parse_thought(answer.text, prompt)
    if parsed.label is None:
        cut = f" and was cut off at {args.max_new_tokens} tokens" * (not answer.finished)
        print(f"no answer: what the model wrote cannot be read{cut}\nit wrote: {answer.text}")
        return
    print(f"answer:  {parsed.label}, the hypothesis {'follows' if parsed.label else 'does not follow'}")
    print(f"thought: {parsed.thought}")


def check_places(args: argparse.Namespace) -> None:
    """Whether what is read is there, and what is written can be, and in another place."""
    check_writable(args.output_dir)
    sources = [args.model, args.adapter, args.predictions, args.compare]
    check_not_read(args.output_dir, *(source for source in sources if source and Path(source).exists()))
    path = Path(args.output_dir) / RECORDS
    if args.predictions and not args.overwrite and path.exists():
        if any(record.get("settings") for record in read_jsonl(path)):
            raise UserError(f"{path} holds the answers of a model, which would be lost; name another --output_dir, or "
                            "give --overwrite")


def from_model(
    args: argparse.Namespace, pairs: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any],
    finish: Callable[[Mapping[str, Mapping[str, Any]]], None],
) -> None:
    """Answer what --output_dir does not hold yet, then ``finish``; ``about``: what the stage is told of its run."""
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
            finish({name: records[name] for name in pairs})


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.premise is not None:
        answer_one(args)
        return
    check_places(args)
    split = load_pairs(args.dataset, args.split or default_eval_split(args.dataset), args.label_map, args.max_samples,
                       args.text_columns or (), args.label_column)
    pairs = {pair["id"]: pair for pair in split.data}
    other = read_other(args.compare, pairs) if args.compare else None
    path = Path(args.output_dir)

    def finish(records: Mapping[str, Mapping[str, Any]]) -> None:
        metrics = metrics_of(list(records.values()))
        write_results(path, list(records.values()), metrics, dataset_label(split.name, split.split))
        print(printed(metrics))
        if not metrics["n_labelled"]:
            logger.warning(f"{split.name} [{split.split}] has no labels: answers are written, but not scored")
        if metrics["cut_off"]:
            logger.warning(f"{metrics['cut_off']:,} of {metrics['n']:,} answers were cut off; --max_new_tokens allows "
                           "longer ones")
        if other is not None:
            comparison = compared(args.compare, other, records)
            write_json(path / "comparison.json", comparison)
            print(told(comparison))

    read = {name: getattr(args, name) for name in ("model", "adapter", "predictions", "compare")}
    inputs = {name: source for name, source in read.items() if source and Path(source).exists()}
    about: dict[str, Any] = {"owns": OWNS, "inputs": inputs, "datasets": [split.identity()]}
    if args.predictions:
        records = judge_outputs(args, read_outputs(Path(args.predictions), pairs), pairs)
        with stage(path, args, **about):
            write_jsonl(path / RECORDS, records.values())
            finish(records)
    else:
        from_model(args, pairs, about, finish)
    written = [file.name for pattern in OWNS for file in sorted(path.glob(pattern))]
    print(f"wrote {', '.join(written)} to {path}")


if __name__ == "__main__":
    main()
