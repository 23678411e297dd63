"""Which k examples to train on, and why: a registry of selectors with one signature.

    from dataset_selectors import Features, select
    chosen = select(Features(ids, {"embeddings": vectors}), "kcenter", k=500, seed=42)      # id, rank, score, reason

A selector reads features: arrays with one row per example. ``needed(name, settings)`` says which; ``select_subset.py``
computes them (text_features.py). Rows may come in any order: they are put into that of the sorted ids first, and
equal scores are put into an order that the seed alone decides, so that the choice depends on neither.

A score that an example cannot have (its text is too short, say) is masked (numpy.ma); NaN anywhere else is an error.
A masked example is never chosen. Taxonomy of selectors: arXiv 2408.02085.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd

from helpers import UserError, name_a_few

HIGHEST, LOWEST = "highest", "lowest"


class Features:
    """What is known of n examples: ``features[name]`` is an array whose row i is about ``features.ids[i]``.

    ids are sorted; the arrays that are given go with the ids in the order given. Raises UserError for ids that occur
    twice, ValueError for arrays of other lengths.
    """

    def __init__(self, ids: Sequence[str], values: Mapping[str, np.ndarray]):
        if len(set(ids)) < len(ids):
            raise UserError("ids must be unique; some occur more than once")
        for name, array in values.items():
            if len(array) != len(ids):
                raise ValueError(f"feature {name} has {len(array):,} rows for {len(ids):,} ids")
        order = sorted(range(len(ids)), key=lambda row: ids[row])
        self.ids = [str(ids[row]) for row in order]
        self._values = dict(values)
        self._rows = None if order == list(range(len(ids))) else np.asarray(order)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> np.ndarray:
        values = self._values[name]  # a memory map stays one as long as nobody asks for a part of it
        return values if self._rows is None else values[self._rows]

    def among(self, rows: np.ndarray) -> Features:
        """The features of some rows, which are (m,) int and come to stand in ascending order."""
        part = object.__new__(Features)
        rows = np.sort(rows)
        part.ids = [self.ids[row] for row in rows]
        part._values = self._values
        part._rows = rows if self._rows is None else self._rows[rows]
        return part

    def check(self, names: Sequence[str]) -> None:
        """UserError that names the first example whose value is NaN or infinite, in a place that is not masked."""
        from diversity import check_finite

        for name in names:
            values = self[name]
            if values.ndim == 2 and not isinstance(values, np.ma.MaskedArray):
                check_finite(values, self.ids)
            elif values.dtype.kind == "f":
                bad = ~np.isfinite(np.ma.getdata(values)) & ~np.ma.getmaskarray(values)
                if bad.any():
                    row = int(np.argwhere(bad)[0][0])
                    raise UserError(f"{name} of example {self.ids[row]!r} is {np.ma.getdata(values)[row]}, no finite "
                                    "number; mend the feature, or leave the example out")  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What selectors can be told; each reads those that its entry in SELECTORS names.

    keep: ``highest`` or ``lowest`` scores, None for the selector's own end. p_low, p_high: quantiles of perplexity
    between which examples stay. rank_by: text metric by which they are ranked, None for the nearest to the middle.
    n_clusters: of k-means. lexical_weights: of semantic distance, MATTR and MTLD. strata: attributes, in ``bins``
    quantiles each where they are numbers. members: names with shares (pipeline) or weights (fusion).
    """

    keep: str | None = None
    p_low: float = 0.3
    p_high: float = 0.7
    rank_by: str | None = None
    n_clusters: int = 128
    lexical_weights: tuple[float, ...] = (1.0, 0.5, 0.5)
    strata: tuple[str, ...] = ("token_count", "flesch", "label")
    bins: int = 3
    members: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Picks:
    """rows: (m,) int, the best first, m at most the k that was asked for; scores: (m,) float, NaN where there is none;
    reasons: m short texts."""

    rows: np.ndarray
    scores: np.ndarray
    reasons: list[str]


Pick = Callable[[Features, int, np.random.Generator, Settings], Picks]


@dataclass(frozen=True)
class Selector:
    """One way to choose. needs: features; more: features that depend on the settings. settings: those that it reads.

    score: for those that rank by one number per example, (n,) masked float. keep: which end of it is chosen first.
    seeded: whether another seed makes another choice (beyond the order of equal scores).
    """

    name: str
    kind: str
    what: str
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    pick: Pick | None = None
    score: Callable[[Features, Settings], np.ma.MaskedArray] | None = None
    keep: str = HIGHEST
    more: Callable[[Settings], Sequence[str]] = lambda settings: ()
    seeded: bool = False


# --- pieces -------------------------------------------------------------------------------------------------------


def count_of(share: float, n: int) -> int:
    """How many of n examples a share of them is: the nearest whole number, halves up, at least 1."""
    return max(1, math.floor(Fraction(str(share)) * n + Fraction(1, 2)))


def largest_remainder(sizes: np.ndarray, total: int) -> np.ndarray:
    """(m,) quotas proportional to ``sizes`` that add up to ``total`` <= sum(sizes) exactly; none exceeds its size.

    Hamilton's method; among equal remainders the larger group, then the earlier, comes first.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    whole = int(sizes.sum())
    quotas, remainders = sizes * total // whole, sizes * total % whole
    order = np.lexsort((np.arange(len(sizes)), -sizes, -remainders))
    quotas[order[: total - int(quotas.sum())]] += 1
    return quotas


def ranked(values: np.ma.MaskedArray, rng: np.random.Generator, keep: str = HIGHEST) -> np.ndarray:
    """Rows from the best to the worst, the masked ones left out; equal values in an order that the seed decides."""
    plain = np.ma.getdata(values).astype(float)
    order = np.lexsort((rng.permutation(len(plain)), -plain if keep == HIGHEST else plain))
    return order[~np.ma.getmaskarray(values)[order]]


def rank_normalised(values: np.ma.MaskedArray) -> np.ma.MaskedArray:
    """Ranks as 0 (lowest) .. 1 (highest), of equal values the mean, 0.5 where all are equal; masked stays masked."""
    from scipy.stats import rankdata

    known = ~np.ma.getmaskarray(values)
    result = np.ma.masked_all(len(values), dtype=float)
    if known.any():
        ranks = rankdata(np.ma.getdata(values)[known])
        result[known] = (ranks - 1) / (len(ranks) - 1) if len(ranks) > 1 else 0.5
    return result


def interleaved(groups: Sequence[np.ndarray]) -> np.ndarray:
    """One order of the members of several ordered groups, such that every part from its start on takes from each
    about in proportion; returns places in the concatenation of the groups."""
    position = np.concatenate([(np.arange(len(group)) + 0.5) / max(1, len(group)) for group in groups])
    return np.argsort(position, kind="stable")


def _picked(order: np.ndarray, scores: np.ndarray, reason: str) -> Picks:
    return Picks(order, np.asarray(np.ma.filled(scores, np.nan), dtype=float)[order], [reason] * len(order))


def _no_scores(rows: np.ndarray, reasons: list[str]) -> Picks:
    return Picks(rows, np.full(len(rows), np.nan), reasons)


# --- baselines and bands ------------------------------------------------------------------------------------------


def _random(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    return _no_scores(rng.permutation(len(features))[:k], ["drawn at random"] * k)


def _full(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    return _no_scores(np.argsort(features["position"], kind="stable")[:k], ["in the order of the dataset"] * k)


def _perplexity_band(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    """Examples between two quantiles of perplexity (Marion et al. 2023, arXiv 2309.04564, keep the middle)."""
    perplexity = np.ma.asarray(features["perplexity"])
    known = np.ma.getdata(perplexity)[~np.ma.getmaskarray(perplexity)]
    if not len(known):
        return _no_scores(np.empty(0, dtype=np.int64), [])
    low, middle, high = np.quantile(known, [settings.p_low, (settings.p_low + settings.p_high) / 2, settings.p_high])
    inside = np.ma.filled((perplexity >= low) & (perplexity <= high), False)
    if settings.rank_by is None:
        by, keep, reason = np.ma.abs(np.ma.log(perplexity) - np.log(middle)), LOWEST, "perplexity nearest the middle"
    else:
        by, keep = np.ma.asarray(features[settings.rank_by]), settings.keep or HIGHEST
        reason = f"perplexity in the band, {keep} {settings.rank_by}"
    order = ranked(np.ma.masked_where(~inside, by), rng, keep)
    return _picked(order[:k], perplexity, reason)


def _survivors(feature: str, reason: str) -> Pick:
    """The examples whose ``feature`` is 0, in an order that the seed decides."""

    def pick(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
        values = np.ma.asarray(features[feature])
        return _picked(ranked(np.ma.masked_where(np.ma.filled(values, 1) > 0, values), rng)[:k], values, reason)

    return pick


# --- diversity ----------------------------------------------------------------------------------------------------


def _nearest_to_the_mean(vectors: np.ndarray, rows_at_once: int = 8192) -> tuple[int, float]:
    """The row nearest to the mean of all, and the root mean squared distance from the mean."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    squares = np.empty(len(vectors))
    for first in range(0, len(vectors), rows_at_once):
        away = vectors[first : first + rows_at_once] - mean
        squares[first : first + rows_at_once] = np.einsum("ij,ij->i", away, away)
    return int(squares.argmin()), float(np.sqrt(squares.mean()))


def _k_center(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    from diversity import k_center

    vectors = features["embeddings"]
    rows, distances, _ = k_center(vectors, k, _nearest_to_the_mean(vectors)[0])
    return Picks(rows, distances, ["nearest to the mean", *["farthest from those before it"] * (len(rows) - 1)])


def _herding(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    from diversity import herding

    rows, errors = herding(features["embeddings"], k)
    return Picks(rows, errors, ["brings the mean of the chosen nearest to that of all"] * len(rows))


def _k_means(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    from diversity import kmeans

    cluster, distance, _ = kmeans(features["embeddings"], min(settings.n_clusters, len(features)), rng)
    quotas = largest_remainder(np.bincount(cluster), k)
    groups = []
    for number, quota in enumerate(quotas.tolist()):
        members = np.flatnonzero(cluster == number)
        groups.append(members[ranked(np.ma.asarray(distance[members]), rng, LOWEST)][:quota])
    rows = np.concatenate(groups)[interleaved(groups)]
    return Picks(rows, distance[rows], [f"nearest to the centre of cluster {cluster[row]}" for row in rows])


def _lexical_diversity(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    """Greedy k-center whose distance, in units of the spread of all, has rank-normalised MATTR and MTLD added to it.

    Texts too short for MATTR, or for MTLD, count there as the middle of the others.
    """
    from diversity import k_center

    vectors = features["embeddings"]
    semantic, *lexical = settings.lexical_weights
    bonus = np.zeros(len(features))
    for weight, name in zip(lexical, ("mattr", "mtld"), strict=True):
        bonus += weight * rank_normalised(np.ma.asarray(features[name])).filled(0.5)
    first, spread = _nearest_to_the_mean(vectors)
    scale = spread / semantic if semantic and spread else math.inf
    rows, scores, _ = k_center(vectors, k, first, bonus=bonus, scale=scale)
    short = [(name.upper(), np.ma.getmaskarray(features[name])) for name in ("mattr", "mtld")]
    reasons = []
    for row in rows:
        without = " and ".join(name for name, mask in short if mask[row])
        reasons.append("far away and rich in words" + (f" (too short for {without})" if without else ""))
    return Picks(rows, scores, reasons)


def _stratified(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    """From each stratum its proportional quota, evenly spaced in the order of its attributes."""
    columns, within = [], []
    for name in settings.strata:
        values = features[name]
        if values.dtype.kind in "OUS":  # labels
            columns.append(np.array([f"{name} {value}" for value in values]))
        else:
            bins = _bins(values, settings.bins)
            columns.append(np.array([f"{name} {each} of {settings.bins}" if each else f"no {name}" for each in bins]))
            within.append(np.ma.filled(values.astype(float), np.inf))
    cells, stratum = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    within.append(np.arange(len(features)))
    groups = []
    for number, quota in enumerate(largest_remainder(np.bincount(stratum), k).tolist()):
        members = np.flatnonzero(stratum == number)
        members = members[np.lexsort([values[members] for values in reversed(within)])]
        groups.append(members[((np.arange(quota) + 0.5) * len(members) / max(1, quota)).astype(np.int64)])
    rows = np.concatenate(groups)[interleaved(groups)]
    return _no_scores(rows, ["stratum: " + ", ".join(cells[stratum[row]]) for row in rows])


def _bins(values: np.ndarray, bins: int) -> np.ndarray:
    """The quantile bin of each value, 1..bins, 0 where it is masked; equal values share a bin."""
    known = ~np.ma.getmaskarray(values)
    plain = np.ma.getdata(values)
    result = np.zeros(len(plain), dtype=np.int64)
    if known.any():
        edges = np.quantile(plain[known], np.arange(1, bins) / bins)
        result[known] = 1 + np.searchsorted(edges, plain[known], side="left")
    return result


# --- importance ---------------------------------------------------------------------------------------------------


def _loss_trajectory(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    """S2L (arXiv 2403.07384): clusters of the per-epoch losses, as many from each at random, small ones wholly."""
    from diversity import kmeans

    losses = np.ma.asarray(features["losses"])
    known = np.flatnonzero(~np.ma.getmaskarray(losses).any(axis=1))
    if not len(known):
        return _no_scores(known, [])
    k = min(k, len(known))
    trajectories = np.ascontiguousarray(np.ma.getdata(losses)[known], dtype=np.float64)
    cluster, distance, _ = kmeans(trajectories, min(settings.n_clusters, len(known)), rng)
    sizes = np.bincount(cluster)
    left, groups = k, []
    for place, number in enumerate(np.argsort(sizes, kind="stable").tolist()):
        quota = min(int(sizes[number]), left // (len(sizes) - place))
        members = rng.permutation(np.flatnonzero(cluster == number))[:quota]
        groups.append(members)
        left -= quota
    rows = np.concatenate(groups)[interleaved(groups)]
    reasons = [f"cluster {cluster[row]} of the loss trajectories" for row in rows]
    return Picks(known[rows], distance[rows], reasons)


# --- hybrids ------------------------------------------------------------------------------------------------------


def _pipeline(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    """Each member keeps its share of all examples, of those that the members before it kept; the last one keeps k."""
    kept = np.arange(len(features))
    for place, (name, share) in enumerate(settings.members):
        is_last = place + 1 == len(settings.members)
        wanted = k if is_last else max(k, count_of(share, len(features)))
        part = features.among(kept)
        picks = _run(SELECTORS[name], part, min(wanted, len(kept)), rng, settings)
        if len(picks.rows) < wanted and not is_last:
            raise UserError(f"{name} leaves {len(picks.rows):,} of {len(features):,} examples, its share {share:g} "
                            f"asks for {wanted:,}: give it a smaller one")  # fmt: skip
        kept = np.sort(kept)
        rows = kept[picks.rows]
        if is_last:
            return Picks(rows, picks.scores, picks.reasons)
        kept = rows
    raise ValueError("a pipeline needs members")


def _fusion(features: Features, settings: Settings) -> np.ma.MaskedArray:
    """Weighted mean of the members' scores, rank-normalised so that 1 is what the member would choose first."""
    total = np.ma.zeros(len(features))
    for name, weight in settings.members:
        member = SELECTORS[name]
        assert member.score is not None
        ranks = rank_normalised(member.score(features, settings))
        total = total + weight * (ranks if member.keep == HIGHEST else 1 - ranks)
    return total / sum(weight for _, weight in settings.members)


# --- the registry -------------------------------------------------------------------------------------------------


def _needs_of_members(settings: Settings) -> list[str]:
    return [need for name, _ in settings.members for need in needed(name, settings)]


def _scored(name: str, kind: str, what: str, keep: str, feature: str = "") -> Selector:
    """A selector that ranks by one feature, by default that of its own name."""
    feature = feature or name
    return Selector(name, kind, what, needs=(feature,), settings=("keep",), keep=keep,
                    score=lambda features, settings: np.ma.asarray(features[feature]))  # fmt: skip


SELECTORS: dict[str, Selector] = {
    each.name: each
    for each in (
        Selector("random", "baseline", "drawn at random", pick=_random, seeded=True),
        Selector("full", "baseline", "everything, or the first k", needs=("position",), pick=_full),
        Selector("perplexity", "quality", "between two quantiles of perplexity under a causal language model (Marion "
                 "et al. 2023)", needs=("perplexity",), settings=("p_low", "p_high", "rank_by", "keep"),
                 pick=_perplexity_band, more=lambda settings: [settings.rank_by] if settings.rank_by else []),
        _scored("pseudo_perplexity", "quality", "perplexity under a masked language model, each token hidden in turn "
                "(Salazar et al. 2020)", LOWEST),
        _scored("label_issues", "quality", "cleanlab's label quality from out-of-fold probabilities (Northcutt et al. "
                "2021)", HIGHEST, "label_quality"),
        Selector("consistency", "quality", "drops what a model predicts otherwise after small changes of the text",
                 needs=("flip_rate",), pick=_survivors("flip_rate", "same prediction after every change")),
        _scored("self_filter", "quality", "agreement of a small head, trained on the rest over several rounds, with "
                "the label", HIGHEST),
        Selector("llm_judge", "quality", "drops what a chat model finds ambiguous, sarcastic or wrongly labelled",
                 needs=("judge_flags",), pick=_survivors("judge_flags", "no objection of the judge")),
        Selector("kcenter", "diversity", "greedy k-center: always the example farthest from those chosen (Sener and "
                 "Savarese 2018)", needs=("embeddings",), pick=_k_center),
        Selector("kmeans", "diversity", "the nearest to the centres of k-means clusters, in proportion to their sizes",
                 needs=("embeddings",), settings=("n_clusters",), pick=_k_means, seeded=True),
        Selector("herding", "diversity", "greedy mean matching (Welling 2009)", needs=("embeddings",), pick=_herding),
        Selector("lexical_diversity", "diversity", "k-center with MATTR and MTLD added to the distance",
                 needs=("embeddings", "mattr", "mtld"), settings=("lexical_weights",), pick=_lexical_diversity),
        Selector("stratified", "diversity", "a coreset in proportion to strata of text attributes and label",
                 settings=("strata", "bins"), pick=_stratified, more=lambda settings: settings.strata),
        _scored("predictive_entropy", "importance", "entropy of a model's prediction", HIGHEST, "entropy"),
        _scored("wordpiece_ratio", "importance", "word pieces per word", HIGHEST),
        _scored("el2n", "importance", "norm of the error vector early in training (Paul et al. 2021)", HIGHEST),
        _scored("grand", "importance", "norm of the last layer's gradient early in training (Paul et al. 2021)",
                HIGHEST),
        _scored("forgetting", "importance", "how often it was forgotten in training; never learnt counts as forgotten "
                "in every epoch (Toneva et al. 2019)", HIGHEST),
        _scored("aum", "importance", "mean margin of the label's logit over training, low where mislabelled (Pleiss "
                "et al. 2020)", HIGHEST),
        _scored("confidence", "importance", "mean probability of the label over training (Swayamdipta et al. 2020)",
                LOWEST),
        _scored("variability", "importance", "standard deviation of the label's probability over training "
                "(Swayamdipta et al. 2020)", HIGHEST),
        Selector("loss_trajectory", "importance", "as many from each cluster of per-epoch losses (S2L, Yang et al. "
                 "2024)", needs=("losses",), settings=("n_clusters",), pick=_loss_trajectory, seeded=True),
        Selector("pipeline", "hybrid", "one selector after the other, each keeps its share of all examples",
                 pick=_pipeline, more=_needs_of_members),
        Selector("fusion", "hybrid", "weighted mean of rank-normalised scores", score=_fusion, more=_needs_of_members),
    )
}  # fmt: skip


def needed(name: str, settings: Settings) -> tuple[str, ...]:
    """The features that a selector reads."""
    selector = SELECTORS[name]
    return tuple(dict.fromkeys((*selector.needs, *selector.more(settings))))


def settings_of(name: str, settings: Settings) -> set[str]:
    """The settings that a selector and its members read."""
    members = {each for member, _ in settings.members for each in SELECTORS[member].settings}
    return {*SELECTORS[name].settings, *(members - {"keep"})}  # each member has an end of its own


def parse_members(text: str, kind: str) -> tuple[tuple[str, float], ...]:
    """``"label_issues:0.9, kcenter:0.3"`` as names with numbers; UserError for what makes no pipeline or fusion."""
    members = []
    for part in text.split(","):
        name, colon, number = (word.strip() for word in part.partition(":"))
        selector = SELECTORS.get(name)
        if selector is None or selector.kind == "hybrid":
            known = name_a_few([each.name for each in SELECTORS.values() if each.kind != "hybrid"], 99)
            raise UserError(f"--{kind}: {name!r} is no selector; there is {known}")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise UserError(f"--{kind}: expected NAME:NUMBER with a number above 0, found {part.strip()!r}")
        if kind == "fusion" and selector.score is None:
            able = [each.name for each in SELECTORS.values() if each.score and each.kind != "hybrid"]
            raise UserError(f"--fusion: {name} gives no score to every example; these do: {', '.join(able)}")
        members.append((name, value))
    shares = [share for _, share in members]
    if kind == "pipeline" and (max(shares) > 1 or shares != sorted(shares, reverse=True)):
        raise UserError(f"--pipeline {text!r}: shares are of all examples, at most 1, and none larger than the one "
                        "before it")  # fmt: skip
    return tuple(members)


# --- selecting ----------------------------------------------------------------------------------------------------


def _run(selector: Selector, features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    if selector.score is None:
        assert selector.pick is not None
        return selector.pick(features, k, rng, settings)
    values, keep = selector.score(features, settings), settings.keep or selector.keep
    return _picked(ranked(values, rng, keep)[:k], values, f"{keep} {selector.name}")


def select(
    features: Features,
    name: str,
    k: int,
    seed: int,
    settings: Settings | None = None,
    *,
    stratify: str | None = None,
    fill: bool = False,
) -> pd.DataFrame:
    """Choose exactly k of n examples: ``id, rank`` (1 is the first chosen), ``score`` (the selector's own, NaN where
    it has none), ``reason``.

    stratify: the feature that says to which group an example belongs: each group has its quota by largest remainder,
    and the selector works within it.
    fill: a selector that leaves fewer than k is topped up at random, said so in ``reason``; else that is a UserError
    with the number. Raises UserError too when a feature is NaN somewhere, and when k is not within 1..n.
    """
    settings = settings or Settings()
    selector, n = SELECTORS[name], len(features)
    if not 1 <= k <= n:
        raise UserError(f"{k:,} of {n:,} examples were asked for; ask for 1 to {n:,}")
    features.check(needed(name, settings))
    groups = [np.arange(n)]
    if stratify is not None:
        _, number = np.unique(features[stratify].astype(str), return_inverse=True)
        groups = [np.flatnonzero(number == each) for each in range(int(number.max()) + 1)]
    quotas = largest_remainder(np.array([len(group) for group in groups]), k)
    chosen, left = [], 0
    for place, (group, quota) in enumerate(zip(groups, quotas.tolist(), strict=True)):
        if not quota:
            continue
        rng = np.random.default_rng([seed, place])
        part = features if len(group) == n else features.among(group)
        picks = _run(selector, part, quota, rng, settings)
        left += len(picks.rows)
        if fill and len(picks.rows) < quota:
            picks = _topped_up(picks, len(group), quota, rng, name)
        chosen.append(Picks(group[picks.rows], picks.scores, picks.reasons))
    rows = np.concatenate([picks.rows for picks in chosen])
    if len(rows) < k:
        raise UserError(f"{name} leaves {left:,} of {n:,} examples{' in their strata' if stratify else ''}, "
                        f"{k:,} were asked for: ask for fewer, or --fill random tops them up")  # fmt: skip
    order = interleaved([picks.rows for picks in chosen])
    rows = rows[order]
    assert len(np.unique(rows)) == k == len(rows)
    reasons = [reason for picks in chosen for reason in picks.reasons]
    return pd.DataFrame(
        {
            "id": [features.ids[row] for row in rows],
            "rank": np.arange(1, k + 1),
            "score": np.concatenate([picks.scores for picks in chosen])[order],
            "reason": [reasons[place] for place in order],
        }
    )


def _topped_up(picks: Picks, n: int, k: int, rng: np.random.Generator, name: str) -> Picks:
    rest = rng.permutation(np.setdiff1d(np.arange(n), picks.rows))[: k - len(picks.rows)]
    return Picks(
        np.concatenate([picks.rows, rest]),
        np.concatenate([picks.scores, np.full(len(rest), np.nan)]),
        [*picks.reasons, *[f"random fill, not chosen by {name}"] * len(rest)],
    )


def described() -> str:
    """A table of the selectors, for people."""
    lines = []
    for kind in dict.fromkeys(each.kind for each in SELECTORS.values()):
        lines.append(f"{kind}:")
        for each in SELECTORS.values():
            if each.kind == kind:
                end = f"; {each.keep} first" if each.score and each.kind != "hybrid" else ""
                lines.append(f"  {each.name:18} {each.what}{end}")
    return "\n".join(lines)
