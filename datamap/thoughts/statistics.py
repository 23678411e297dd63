"""What generated chains of thought are like: how many are right, how long they are, and how far to trust a judge.

A judge is an LLM (Zheng et al. 2023, arXiv 2306.05685). It is asked without the true labels, and measured with them.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.errors import UserError
from datamap.core.files import write_csv
from datamap.core.intervals import Z
from datamap.core.plots import COLORS, GREY, new_figure, save_figure
from datamap.thoughts.data import TRUE_LABEL, is_right
from datamap.thoughts.metrics import draw_accuracy, length_table
from datamap.thoughts.reader import CRITERIA, LABEL, THOUGHT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

OUTCOMES = ("right", "wrong", "unlabelled")
OUTCOME_COLORS = {"right": COLORS[0], "wrong": COLORS[1], "unlabelled": GREY}
FIRST, SECOND = "original first", "reflection first"  # the two orders in which a pair of chains is shown

logger = logging.getLogger(__name__)


def outcome_of(chain: Mapping[str, Any]) -> str:
    return {True: "right", False: "wrong", None: "unlabelled"}[is_right(chain)]


# --- lengths -----------------------------------------------------------------------------------------------------


def chain_lengths(
    chains: Sequence[Mapping[str, Any]], tokenizer: str | None = None, thought: str = THOUGHT
) -> tuple[list[int], str]:
    """The length of each chain and its unit: tokens of a tokenizer (a Hub name or directory), else words."""
    texts = [chain[thought] for chain in chains]
    if tokenizer is None:
        return [len(text.split()) for text in texts], "words"
    if not texts:
        return [], "tokens"
    from datamap.training.models import load_tokenizer

    try:
        loaded = load_tokenizer(tokenizer)
    except UserError as error:
        raise UserError(f"--tokenizer: {error}, or leave it out to count words") from error
    return [len(tokens) for tokens in loaded(texts, add_special_tokens=False, verbose=False)["input_ids"]], "tokens"


def length_statistics(chains: Sequence[Mapping[str, Any]], lengths: Sequence[int]) -> dict[str, Any]:
    """Per outcome ``n``, mean, median, 5th and 95th percentile of the lengths; no entry for one without a chain."""
    found = np.array([outcome_of(chain) for chain in chains])
    length = np.asarray(lengths, dtype=np.float64)
    statistics = {}
    for outcome in OUTCOMES:
        if (among := length[found == outcome]).size:
            low, median, high = np.percentile(among, [5, 50, 95]).tolist()
            statistics[outcome] = {"n": len(among), "mean": float(among.mean()), "median": median,
                                   "percentile_5": low, "percentile_95": high}
    return statistics


def write_lengths(directory: Path, chains: Sequence[Mapping[str, Any]], lengths: Sequence[int], unit: str,
                  title: str) -> None:
    """``thought_lengths.csv`` (id, length, outcome), ``thought_accuracy_by_length.csv``, and ``thought_lengths.png``:
    how long right and wrong chains are, and how often chains of a length are right."""
    import pandas as pd
    from matplotlib.ticker import MaxNLocator

    outcomes = [outcome_of(chain) for chain in chains]
    each = pd.DataFrame({"id": [chain["id"] for chain in chains], "length": list(lengths), "outcome": outcomes})
    table = length_table(lengths, [chain[TRUE_LABEL] for chain in chains], [chain[LABEL] for chain in chains])
    write_csv(directory / "thought_lengths.csv", each)
    write_csv(directory / "thought_accuracy_by_length.csv", table.drop(columns="parse_rate"))
    figure, (left, right) = new_figure(9, 3.6, columns=2)
    _draw_distributions(left, each, unit)
    right.set(xlabel=f"length of the chain ({unit})", ylabel="right (share)", ylim=(-0.03, 1.03))
    if len(table):
        draw_accuracy(right, table)
    else:
        right.text(0.5, 0.5, "no true labels", ha="center", va="center", transform=right.transAxes, color=GREY)
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    counts = ", ".join(f"{outcomes.count(name):,} {name}" for name in OUTCOMES if name in outcomes)
    caption = f"{title}, n = {len(each):,} ({counts}); bars on the right: 95 % Wilson intervals"
    heading = "Length of the chains of thought, and how often they are right"
    save_figure(figure, directory / "thought_lengths.png", heading, caption)


def _draw_distributions(axis: Axes, each: pd.DataFrame, unit: str) -> None:
    import seaborn

    lengths = {outcome: among for outcome in OUTCOMES if len(among := each["length"][each["outcome"] == outcome])}
    names = {outcome: f"{outcome} (n = {len(among):,}, median {among.median():.0f})"
             for outcome, among in lengths.items()}
    seaborn.histplot(
        x=each["length"], hue=each["outcome"].map(names), hue_order=list(names.values()), ax=axis, element="step",
        palette=[OUTCOME_COLORS[outcome] for outcome in names], stat="percent", common_norm=False, alpha=0.35,
        bins=min(30, max(5, len(each) // 8)),
    )
    axis.set(xlabel=f"length of the chain ({unit})", ylabel="chains of the outcome (%)")
    axis.set_ylim(0, axis.get_ylim()[1] * 1.25)  # room for the legend
    axis.set_yticks([tick for tick in axis.get_yticks() if tick <= 100])
    seaborn.move_legend(axis, "upper right", title=None, frameon=False, fontsize=8)


# --- a judge -----------------------------------------------------------------------------------------------------


def judge_report(
    chains: Sequence[Mapping[str, Any]], scores: Mapping[str, Mapping[str, Any]], lengths: Sequence[int]
) -> dict[str, Any]:
    """Whether a judge's scores (id -> ``parse_scores``; 1 to 5) agree with what is right, and like length.

    ``<criterion>``: mean score of all, of right and of wrong chains. ``agreement``: of the correctness score with
    being right, ``auroc`` (0..1: the chance that a right chain is scored above a wrong one; at 0.5 the judge cannot
    tell) and how many chains of each it is over. ``length_bias``: Spearman's rank correlation of each score with the
    length, -1..1, also among right and among wrong chains alone, where length cannot stand for being right. None
    where it cannot be told.
    """
    from sklearn.metrics import roc_auc_score

    scored = [(chain, length) for chain, length in zip(chains, lengths, strict=True) if chain["id"] in scores]
    length = np.array([length for _, length in scored], dtype=np.float64)
    outcomes = np.array([outcome_of(chain) for chain, _ in scored], dtype=object)
    known = np.isin(outcomes, OUTCOMES[:2])
    groups = {"all": np.ones(len(scored), dtype=bool), "right": outcomes == "right", "wrong": outcomes == "wrong"}
    report: dict[str, Any] = {"n": len(chains), "n_scored": len(scored), "length_bias": {}}
    for name in CRITERIA:
        score = np.array([scores[chain["id"]][name] for chain, _ in scored], dtype=np.float64)
        report[name] = {group: float(score[rows].mean()) if rows.any() else None for group, rows in groups.items()}
        report["length_bias"][name] = {group: _spearman(score[rows], length[rows]) for group, rows in groups.items()}
        if name == "correctness":
            two = groups["right"].any() and groups["wrong"].any()
            report["agreement"] = {
                "auroc": float(roc_auc_score(groups["right"][known], score[known])) if two else None,
                "n_right": int(groups["right"].sum()), "n_wrong": int(groups["wrong"].sum()),
            }
    return report


def _spearman(scores: np.ndarray, lengths: np.ndarray) -> dict[str, Any] | None:
    from scipy.stats import spearmanr

    if len(scores) < 3 or np.ptp(scores) == 0 or np.ptp(lengths) == 0:
        return None
    found = spearmanr(scores, lengths)
    return {"rho": float(found.statistic), "p": float(found.pvalue), "n": len(scores)}


def position_report(preferences: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """Whether a judge likes what it is shown first: (id, order) -> "A" (the first shown), "B" or "tie".

    Every pair of chains is shown in both orders (FIRST, SECOND). Of the answers that are not a tie ``first_share``,
    0..1, prefer the chain shown first, with its 95 % interval (``low``, ``high``: ``_interval_over_pairs``); an
    unbiased judge's is 0.5.
    ``consistent_share``: of the pairs that were answered in both orders those where the same chain, or neither, wins.
    ``reflection_share``: of the pairs with a consistent winner those where the reflection wins. None where unknown.
    """
    answers = list(preferences.values())
    first, decided = answers.count("A"), len(answers) - answers.count("tie")
    both = [(preferences[name, FIRST], preferences[name, SECOND]) for name, order in preferences
            if order == FIRST and (name, SECOND) in preferences]
    swapped = {"A": "B", "B": "A", "tie": "tie"}
    same = [one for one, other in both if one == swapped[other]]
    winners = [one for one in same if one != "tie"]
    wins: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for (name, _), answer in preferences.items():
        if answer != "tie":
            wins[name]["AB".index(answer)] += 1
    low, high = _interval_over_pairs(list(wins.values())) if wins else (None, None)
    return {
        "n_answers": len(answers), "n_ties": answers.count("tie"),
        "first_share": first / decided if decided else None, "low": low, "high": high,
        "n_pairs": len(both), "consistent_share": len(same) / len(both) if both else None,
        "reflection_share": winners.count("B") / len(winners) if winners else None,
    }


def _interval_over_pairs(wins: Sequence[Sequence[int]]) -> tuple[float, float]:
    """95 % interval, within 0..1, of the share of wins of the first shown; per pair of chains (its wins, the other's).

    What is drawn is a pair, not an answer: its two answers may go together (a judge takes the first shown twice) or
    against each other (the better chain wins twice). The ratio's standard error over pairs is the limit of a bootstrap
    of pairs (Cochran 1977, chapter 6). One pair is added where the first shown wins twice, and one where the second
    does: without ties this is the interval of Bonett and Price (2012) of how many more pairs are of the one kind than
    of the other, halved, around 0.5. Unlike a bootstrap's it has a width where all pairs are
    alike.
    """
    first, second = np.array([*wins, (2, 0), (0, 2)], dtype=np.float64).T
    lead, answers = first - second, first + second
    share = lead.sum() / answers.sum()
    half = Z * np.sqrt(((lead - share * answers) ** 2).sum()) / answers.sum()
    return 0.5 + float(max(share - half, -1)) / 2, 0.5 + float(min(share + half, 1)) / 2
