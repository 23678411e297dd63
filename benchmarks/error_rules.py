"""What does each of the nine error rules find? Its precision and recall on planted errors, and how often it is wrong.

Plants errors as run.py --plant_errors does in a tenth of each data set, as it was published (of demo:clinical in what
carries no error), once for every seed, and applies the rules that read texts alone to all of it. For rules 4 and 8 the
tiny model of the demo, or minilm, is trained on the first of these examples and answers what it was trained on. From
the rates come weights of evidence; each set is also judged by the weights of the others. Writes error_rules.json and
rules.md, the tables of docs/rules.md, to --output_dir, and under runs/ what was trained; what is finished there is not
run again. --write_docs also puts the tables into docs/rules.md.

    python benchmarks/error_rules.py --data_dir DATA --write_docs
    python benchmarks/error_rules.py --sets clinical --seeds 0 --max_examples 200 --output_dir ./tried_output

DATA holds policyqa/ and squad_xquad_en/xquad.en.json.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from timing import bench_parser, markdown, report

from datamap.analysis.error_rules import (
    ERROR_SCORE,
    RULE_WEIGHTS,
    RULES,
    RULES_NEEDING_PREDICTIONS,
    flag_errors,
    rule_score,
)
from datamap.core.clusters import Clusters
from datamap.core.errors import UserError, command_line
from datamap.core.files import read_table, write_jsonl
from datamap.core.flags import positive_int, seed_number
from datamap.core.intervals import clustered_interval
from datamap.core.places import CHECKOUT
from datamap.core.splits import load_split
from datamap.demo.planting import QUESTION_KINDS
from datamap.detection.figures import average_precision, over_seeds_and_examples
from datamap.tasks.registry import get_task
from datamap.training.planted import PLANTED_DATA, PLANTED_FILE, with_planted_errors

if TYPE_CHECKING:
    import pandas as pd

    from datamap.core.splits import Split

ERROR_SHARE = 0.1
BY_CHANCE = 10  # one on a wrong example, nine on right ones
RIGHT, ERROR, PASSAGE = "right", "error", "passage"
TEXT_RULES = [rule for rule in RULES if rule not in RULES_NEEDING_PREDICTIONS]
INSIDE, BETTER = RULES_NEEDING_PREDICTIONS
FIRST, LAST = "<!-- tables of benchmarks/error_rules.py -->", "<!-- end of the tables -->"


class RuleSet(NamedTuple):
    """most: examples that the model of rules 4 and 8 is trained on, and answers (None: all)."""

    dataset: str
    model: str
    training: str  # flags of run.py
    most: int | None


DEMO = ("--learning_rate 2e-3 --warmup_steps 0.1 --num_train_epochs 4 --per_device_train_batch_size 16 "
        "--max_length 128 --doc_stride 32")  # as make demo trains
QA = ("--learning_rate 2e-4 --num_train_epochs 3 --per_device_train_batch_size 16 --max_length 256 --doc_stride 64")
SETS = {
    "clinical": RuleSet("demo:clinical", "tiny", DEMO, None),
    "policyqa": RuleSet("policyqa", "minilm", QA, 400),
    "xquad": RuleSet("squad_xquad_en/xquad.en.json", "minilm", QA, 400),
}


class Tables(NamedTuple):
    """A row for each example: ``error`` (a kind, or RIGHT), ``passage`` (a number for each context) and RULES. Of what
    is planted one table for each seed. answered: of what a model was trained on, with rules 4 and 8."""

    clean: pd.DataFrame
    planted: list[pd.DataFrame]
    answered: list[pd.DataFrame]

    def of(self, rule: str) -> list[pd.DataFrame]:
        return self.answered if rule in RULES_NEEDING_PREDICTIONS else self.planted


# --- tables --------------------------------------------------------------------------------------------------------


def clean_data(name: str, args: argparse.Namespace) -> Path:
    """A directory with what is right of the set, as far as is known."""
    about = SETS[name]
    place = about.dataset if about.dataset.startswith("demo:") else str(Path(args.data_dir, about.dataset))
    data = load_split(place, "train", get_task("qa"), args.max_examples).data
    kinds = data["planted_error"][:] if "planted_error" in data.column_names else [None] * len(data)
    directory = Path(args.output_dir, "data", name)
    directory.mkdir(parents=True, exist_ok=True)
    rows = data.select_columns(["id", "question", "context", "answers"])
    write_jsonl(directory / "train.jsonl", (row for row, kind in zip(rows, kinds, strict=True) if not kind))
    return directory


def flagged(split: Split, errors: Mapping[str, str], predictions: Sequence[str | None] | None = None) -> pd.DataFrame:
    readable = split.task.readable(split.data)
    table = flag_errors(readable["question"], readable["context"], readable["answer"], predictions)[list(RULES)]
    table.insert(0, ERROR, [errors.get(example, RIGHT) for example in split.ids])
    table.insert(1, PASSAGE, Clusters(readable["context"]).codes)
    return table


def planted_table(data: Path, seed: int) -> pd.DataFrame:
    args = argparse.Namespace(plant_errors=ERROR_SHARE, plant_seed=seed, output_dir=data)
    split = with_planted_errors(args, load_split(str(data), "train", get_task("qa")))
    return flagged(split, {each["id"]: each["kind"] for each in split.planted or ()})


def answered_table(name: str, data: Path, seed: int, args: argparse.Namespace) -> pd.DataFrame:
    """By the answers of a model that was trained on it; seed: of training and of what is planted."""
    from datamap.analysis.unified_table import predictions_of
    from datamap.suites.runner import carry_out

    about, place = SETS[name], Path(args.output_dir, "runs", f"{name}-{seed}")
    if not (place / "eval_predictions.jsonl").exists():
        place.mkdir(parents=True, exist_ok=True)
        argv = ["--do_train", "--do_eval", "--eval_split", "train", "--task", "qa", "--dataset", str(data), "--model",
                about.model, *about.training.split(), "--seed", str(seed), "--no_cuda", "--save_strategy", "no",
                "--plant_errors", str(ERROR_SHARE), "--plant_seed", str(seed), "--overwrite",
                "--output_dir", str(place)]
        if most := min(filter(None, (about.most, args.max_examples)), default=None):
            argv += ["--max_train_samples", str(most), "--max_eval_samples", str(most)]
        carry_out("run.py", argv, place / "log.txt")
    split = load_split(str(place / PLANTED_DATA), "train", get_task("qa"))
    planted = read_table(place / PLANTED_FILE, ("id", "kind"))
    return flagged(split, dict(zip(planted["id"], planted["kind"], strict=True)), predictions_of(place, split))


def tables_of(name: str, args: argparse.Namespace) -> Tables:
    data = clean_data(name, args)
    return Tables(
        flagged(load_split(str(data), "train", get_task("qa")), {}),
        [planted_table(data, seed) for seed in args.seeds],
        [answered_table(name, data, seed, args) for seed in args.seeds[: args.trained]],
    )


# --- figures -------------------------------------------------------------------------------------------------------


def share(fired: np.ndarray, passages: np.ndarray) -> dict[str, Any]:
    """Of (N,) flags: the share that is true, its 95 % interval by passages, and N; None without any."""
    if not len(fired):
        return {"share": None, "low": None, "high": None, "n": 0}
    low, high, _ = clustered_interval(fired.astype(float), Clusters(passages))
    return {"share": float(fired.mean()), "low": low, "high": high, "n": len(fired)}


def rule_figures(name: str, tables: Tables, rule: str) -> dict[str, Any]:
    """How often a rule fires on clean data (rules 4 and 8: on what was left as it was), its precision, recall and lift
    where a tenth is planted, and its recall by kind, over all seeds; ``bits`` of this set."""
    import pandas as pd

    planted = tables.of(rule)
    found: dict[str, Any] = {"set": name, "rule": rule}
    if not planted:
        return found
    every = pd.concat(planted, ignore_index=True)
    fired, wrong = every[rule].to_numpy(dtype=bool), (every[ERROR] != RIGHT).to_numpy()
    passages = every[PASSAGE].to_numpy()
    clean = every[~wrong] if rule in RULES_NEEDING_PREDICTIONS else tables.clean
    precision = share(wrong[fired], passages[fired])
    found |= {
        "examples": len(planted[0]), "seeds": len(planted),
        "clean": share(clean[rule].to_numpy(dtype=bool), clean[PASSAGE].to_numpy()),
        "precision": precision, "recall": share(fired[wrong], passages[wrong]),
        "lift": precision["share"] / wrong.mean() if fired.any() else None,
        "by_kind": {kind: share(fired[among], passages[among]) for kind in QUESTION_KINDS
                    if (among := (every[ERROR] == kind).to_numpy()).any()},
        "bits": bits([tables], rule, lambda table: table[rule]),
    }
    return found


def bits(sets: Iterable[Tables], rule: str, fires: Callable[[pd.DataFrame], pd.Series]) -> float | None:
    """log2 of how many times more often it fires on wrong examples than on right ones, each set with the same say and
    all seeds of it together; None without a table for this rule.

    BY_CHANCE firings, on wrong and right examples as many as there are of each, are added (the m-estimate of Cestnik
    1990): what hardly ever fires says little, and what never does nothing.
    """
    rates = []
    for tables in sets:
        if planted := tables.of(rule):
            fired = np.concatenate([fires(table).to_numpy(dtype=bool) for table in planted])
            wrong = np.concatenate([(table[ERROR] != RIGHT).to_numpy() for table in planted])
            rates.append([fired[among].mean() + BY_CHANCE / len(fired) for among in (wrong, ~wrong)])
    if not rates:
        return None
    on_wrong, on_right = np.mean(rates, axis=0)
    return float(np.log2(on_wrong / on_right))


def evidence(sets: Sequence[Tables]) -> dict[str, float]:
    """The weights of evidence of the rules on these sets, in bits; 0 where one is negative or was not measured.

    Where rule 4 fires rule 8 does: 8 gets what it says alone, 4 what both say beyond that.
    """
    said = {rule: bits(sets, rule, lambda table, rule=rule: table[rule]) for rule in RULES}  # type: ignore[misc]
    said[BETTER] = bits(sets, BETTER, lambda table: table[BETTER] & ~table[INSIDE])
    weights = {rule: max(0.0, weight or 0.0) for rule, weight in said.items()}
    weights[INSIDE] = max(0.0, weights[INSIDE] - weights[BETTER])
    return {rule: round(weight, 2) for rule, weight in weights.items()}


def score_figures(name: str, found: Mapping[str, Tables], draws: int) -> list[dict[str, Any]]:
    """The score by equal weights and by those measured on the other sets: average precision, and precision, recall and
    share of what it calls an error; seven rules on all examples, nine where a model answered."""
    others = [tables for other, tables in found.items() if other != name]
    weights = {"equal": RULE_WEIGHTS["equal"]} | ({"measured": evidence(others)} if others else {})
    rows = []
    for rules, tables in ((len(TEXT_RULES), found[name].planted), (len(RULES), found[name].answered)):
        if not tables:
            continue
        wrong = [(table[ERROR] != RIGHT).to_numpy() for table in tables]
        scores = {each: [rule_score(table, weight) for table in tables] for each, weight in weights.items()}
        for each, values in scores.items():
            called = np.concatenate(values) >= ERROR_SCORE
            is_wrong = np.concatenate(wrong)
            row = {"set": name, "rules": rules, "weights": each, "average_precision": float(np.mean(
                [average_precision(*pair) for pair in zip(wrong, values, strict=True)])),
                "called": float(called.mean()), "precision": float(is_wrong[called].mean()) if called.any() else None,
                "recall": float(called[is_wrong].mean())}
            if each != "equal":
                pairs = [[(is_wrong, ours), (is_wrong, equal)]
                         for is_wrong, ours, equal in zip(wrong, values, scores["equal"], strict=True)]
                row["gain"] = over_seeds_and_examples(pairs, draws=draws)._asdict()
            rows.append(row)
    return rows


# --- what is shown -------------------------------------------------------------------------------------------------


def percent(found: Mapping[str, Any] | None, with_interval: bool = True) -> str:
    if not found or found["share"] is None:
        return ""
    interval = f" ({100 * found['low']:.1f} to {100 * found['high']:.1f})" if with_interval else ""
    return f"{100 * found['share']:.1f}{interval}"


def rule_page(rules: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]], weights: Mapping[str, float],
              ) -> str:
    """The tables of docs/rules.md."""
    parts = []
    for name in dict.fromkeys(row["set"] for row in rules):
        mine = [row for row in rules if row["set"] == name]
        kinds = [kind for kind in QUESTION_KINDS if any(kind in row.get("by_kind", {}) for row in mine)]
        head = ("rule", "on clean, %", "precision, %", "recall, %", "lift",
                *(kind.replace("_", " ") for kind in kinds))
        body = [(RULES.index(row["rule"]) + 1, *(percent(row.get(each)) for each in ("clean", "precision", "recall")),
                 "" if row.get("lift") is None else f"{row['lift']:.1f}",
                 *(percent(row.get("by_kind", {}).get(kind), False) for kind in kinds)) for row in mine]
        [better] = [row for row in mine if row["rule"] == BETTER]
        model = "no model was trained, so that rules 4 and 8 are empty"
        if "examples" in better:
            model = f"rules 4 and 8 on {better['examples']:,}, answered by {SETS[name].model}"
        parts.append(f"**{name}** ({mine[0]['examples']:,} examples; {model})\n\n{markdown([head, *body])}")
    sets = list(dict.fromkeys(row["set"] for row in rules))
    bit = {(row["set"], row["rule"]): row["bits"] for row in rules if "bits" in row}
    said = {rule: [f"{bit[one, rule]:+.2f}" if (one, rule) in bit else "" for one in sets] for rule in RULES}
    table = [("rule", *sets, "weight"), *((place, *said[rule], f"{weights[rule]:.2f}")
                                          for place, rule in enumerate(RULES, start=1))]
    parts.append("**Weights of evidence**, bits\n\n" + markdown(table))
    table = [("set", "rules", "weights", "average precision", "gain", "called errors, %", "precision, %", "recall, %")]
    for row in scores:
        gain = "{mean:+.3f} ({low:+.3f} to {high:+.3f})".format(**row["gain"]) if "gain" in row else ""
        precision = "" if row["precision"] is None else f"{100 * row['precision']:.1f}"
        table.append((row["set"], row["rules"], row["weights"], f"{row['average_precision']:.3f}", gain,
                      f"{100 * row['called']:.1f}", precision, f"{100 * row['recall']:.1f}"))
    parts.append("**The score**, measured weights from the other sets\n\n" + markdown(table))
    return "\n\n".join(parts) + "\n"


def put_into(page: Path, tables: str) -> None:
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(f"{FIRST}\n.*{LAST}", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"{page} has no lines {FIRST} and {LAST}, between which the tables stand")
    page.write_text(pattern.sub(lambda _: f"{FIRST}\n\n{tables}\n{LAST}", text), encoding="utf-8")


# --- script --------------------------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--data_dir", default=".", help="holds the sets that are not built in")
    parser.add_list("--sets", choices=list(SETS), default=list(SETS), help="which", metavar="SET")
    parser.add_list("--seeds", type=seed_number, default=[0, 1, 2, 3, 4], help="of what is planted")
    parser.add_argument("--trained", type=int, choices=range(6), default=1, metavar="N",
                        help="the first N of the seeds get a model too (default: %(default)s)")
    parser.add_argument("--max_examples", type=positive_int, metavar="N", help="of each set (default: all)")
    parser.add_argument("--draws", type=positive_int, default=300, help="of the bootstrap")
    parser.add_switch("--write_docs", help="put the tables into docs/rules.md")
    args = parser.parse_args(argv)
    for name in args.sets:
        place = SETS[name].dataset
        if not place.startswith("demo:") and not Path(args.data_dir, place).exists():
            parser.error(f"--data_dir {args.data_dir} holds no {place}; name another, or leave {name} out with --sets")
    return args


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = {name: tables_of(name, args) for name in args.sets}
    rules = [rule_figures(name, tables, rule) for name, tables in found.items() for rule in RULES]
    scores = [row for name in found for row in score_figures(name, found, args.draws)]
    weights = evidence(list(found.values()))
    page = rule_page(rules, scores, weights)
    print(page)
    report(args, __file__, {"error_share": ERROR_SHARE, "weights": weights, "rules": rules, "scores": scores})
    Path(args.output_dir, "rules.md").write_text(page, encoding="utf-8")
    if args.write_docs:
        put_into(CHECKOUT / "docs" / "rules.md", page)


if __name__ == "__main__":
    main()
