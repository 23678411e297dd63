"""Which k examples to train on, and why: a registry of selectors with one signature.

    from datamap.selection.selectors import Features, select
    chosen = select(Features(ids, {"embeddings": vectors}), "kcenter", k=500, seed=42)      # id, rank, score, reason

A selector reads features: arrays with one row per example. ``needed(name, settings)`` says which; ``select_subset.py``
computes them (selection_features.py). Rows may come in any order: they are put into that of the sorted ids first, so
that the choice does not depend on it. Examples of equal score are ordered by the seed.

A score that an example cannot have (its text is too short, say) is masked (numpy.ma); NaN anywhere else is an error.
A masked example is never chosen. Taxonomy of selectors: arXiv 2408.02085.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final, Literal

import numpy as np
import pandas as pd

from datamap.core.errors import UserError, name_a_few

HIGHEST: Final = "highest"
LOWEST: Final = "lowest"
FILLED = "random fill"  # how the reason of an example begins that no selector chose


class Features:
    """What is known of n examples: ``features[name]`` is an array whose row i is about ``features.ids[i]``.

    ids are sorted; the arrays that are given go with the ids in the order given. Raises UserError for ids that occur
    twice, ValueError for arrays of other lengths.
    """

    def __init__(self, ids: Sequence[str], values: Mapping[str, np.ndarray]):
        if len(set(ids)) < len(ids):
            seen: set[str] = set()
            repeated = [each for each in ids if each in seen or seen.add(each)]  # type: ignore[func-returns-value]
            raise UserError(f"ids must be unique; {name_a_few(repeated)} occur more than once")
        for name, array in values.items():
            if len(array) != len(ids):
                raise ValueError(f"feature {name} has {len(array):,} rows for {len(ids):,} ids")
        order = sorted(range(len(ids)), key=lambda row: ids[row])
        self.ids = [str(ids[row]) for row in order]
        # The order of the numbers in memory would change sums by their rounding.
        self._values = {name: array if np.ma.isMaskedArray(array) or array.flags.c_contiguous else array.copy()
                        for name, array in values.items()}
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
        from datamap.selection.diversity import check_finite

        for name in names:
            values = self[name]
            if values.ndim == 2 and not isinstance(values, np.ma.MaskedArray):
                check_finite(values, self.ids)
            elif values.dtype.kind == "f":
                bad = ~np.isfinite(np.ma.getdata(values)) & ~np.ma.getmaskarray(values)
                if bad.any():
                    place = tuple(np.argwhere(bad)[0].tolist())
                    raise UserError(f"{name} of example {self.ids[place[0]]!r} is {np.ma.getdata(values)[place]}, no "
                                    "finite number; mend the feature, or leave the example out")


@dataclass(frozen=True)
class Settings:
    """What selectors can be told; each reads those that its entry in SELECTORS names.

    keep: which scores to choose, None for the selector's own end. p_low, p_high: quantiles of perplexity between
    which examples stay. rank_by: text metric by which they are ranked, None for the nearest to the middle.
    n_clusters: of k-means. lexical_weights: of semantic distance, MATTR and MTLD. strata: attributes, in ``bins``
    quantiles each where they are numbers. members: names with shares (pipeline) or weights (fusion). fill: top up at
    random a selector, or the last one of a pipeline, that leaves fewer than were asked for.
    """

    keep: Literal["highest", "lowest"] | None = None
    p_low: float = 0.3
    p_high: float = 0.7
    rank_by: str | None = None
    n_clusters: int = 128
    lexical_weights: tuple[float, ...] = (1.0, 0.5, 0.5)
    strata: tuple[str, ...] = ("token_count", "flesch", "label")
    bins: int = 3
    members: tuple[tuple[str, float], ...] = ()
    fill: bool = False


@dataclass(frozen=True)
class Picks:
    """rows: (m,) int, the best first, m at most the k that was asked for; scores: (m,) float, NaN where there is none;
    reasons: m short texts."""

    rows: np.ndarray
    scores: np.ndarray
    reasons: list[str]


Pick = Callable[[Features, int, np.random.Generator, Settings], Picks]
Score = Callable[[Features, Settings], np.ma.MaskedArray]


@dataclass(frozen=True)
class Selector:
    """One way to choose. needs: features; more: features that depend on the settings. settings: those that it reads.

    It either ranks by one number per example, ``score`` (n,), of which the end ``keep`` comes first and which is
    taken over all examples even where strata are chosen from; or it picks, one with regard to the others. reason: of
    those that it chooses. seeded: whether another seed makes another choice, beyond the order of equal scores.
    """

    name: str
    kind: str
    what: str
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    pick: Pick | None = None
    score: Score | None = None
    keep: str = HIGHEST
    reason: str = ""
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
    whole = max(1, int(sizes.sum()))
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


def _members_of(group: np.ndarray) -> list[np.ndarray]:
    """The rows of each group, ascending; group: (n,) int from 0."""
    return np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])


def _no_scores(rows: np.ndarray, reasons: list[str]) -> Picks:
    return Picks(rows, np.full(len(rows), np.nan), reasons)


# --- baselines and bands ------------------------------------------------------------------------------------------


def _random(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    return _no_scores(rng.permutation(len(features))[:k], ["drawn at random"] * k)


def _full(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    return _no_scores(np.argsort(features["position"], kind="stable")[:k], ["in the order of the dataset"] * k)


def _perplexity_band(features: Features, settings: Settings) -> np.ma.MaskedArray:
    """Minus the distance of log perplexity from the middle of the band, or ``rank_by``; masked outside the band.

    The middle of the distribution is what Marion et al. 2023 (arXiv 2309.04564) found best to pretrain on.
    """
    perplexity = np.ma.asarray(features["perplexity"])
    known = perplexity.compressed()
    if not len(known):
        return np.ma.masked_all(len(features))
    low, middle, high = np.quantile(known, [settings.p_low, (settings.p_low + settings.p_high) / 2, settings.p_high])
    outside = np.ma.filled((perplexity < low) | (perplexity > high), True)
    by = features[settings.rank_by] if settings.rank_by else -np.ma.abs(np.ma.log(perplexity) - np.log(middle))
    return np.ma.masked_where(outside, by)


def _only_zeros(feature: str) -> Score:
    """The feature where it is 0; masked elsewhere."""

    def score(features: Features, settings: Settings) -> np.ma.MaskedArray:
        values = np.ma.asarray(features[feature])
        return np.ma.masked_where(values > 0, values)

    return score


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
    from datamap.selection.diversity import k_center

    vectors = features["embeddings"]
    rows, distances, _ = k_center(vectors, k, _nearest_to_the_mean(vectors)[0])
    return Picks(rows, distances, ["nearest to the mean", *["farthest from those before it"] * (len(rows) - 1)])


def _herding(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    from datamap.selection.diversity import herding

    rows, errors = herding(features["embeddings"], k)
    return Picks(rows, errors, ["brings the mean of the chosen nearest to that of all"] * len(rows))


def _k_means(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    from datamap.selection.diversity import kmeans

    cluster, distance, _ = kmeans(features["embeddings"], min(settings.n_clusters, len(features)), rng)
    quotas = largest_remainder(np.bincount(cluster), k)
    groups = [members[ranked(np.ma.asarray(distance[members]), rng, LOWEST)][:quota]
              for members, quota in zip(_members_of(cluster), quotas.tolist(), strict=True)]
    rows = np.concatenate(groups)[interleaved(groups)]
    return Picks(rows, distance[rows], [f"nearest to the centre of cluster {cluster[row]}" for row in rows])


def _lexical_diversity(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    """Greedy k-center whose distance, in units of the spread of all, has rank-normalised MATTR and MTLD added to it.

    Texts too short for MATTR, or for MTLD, count there as the middle of the others.
    """
    from datamap.selection.diversity import k_center

    vectors = features["embeddings"]
    semantic, *lexical = settings.lexical_weights
    bonus = np.zeros(len(features))
    for weight, name in zip(lexical, ("mattr", "mtld"), strict=True):
        bonus += weight * rank_normalised(np.ma.asarray(features[name])).filled(0.5)
    first, spread = _nearest_to_the_mean(vectors)
    scale = spread / semantic if semantic and spread else math.inf
    rows, distances, _ = k_center(vectors, k, first, bonus=bonus, scale=scale)
    short = [(name.upper(), np.ma.getmaskarray(features[name])) for name in ("mattr", "mtld")]
    reasons = []
    for row in rows:
        without = " and ".join(name for name, mask in short if mask[row])
        reasons.append("far away and rich in words" + (f" (too short for {without})" if without else ""))
    return Picks(rows, distances / scale + bonus[rows], reasons)


def _stratified(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    """From each stratum its proportional quota, evenly spaced in the order of its attributes."""
    cell = np.zeros(len(features), dtype=np.int64)
    bins, names, within = [], [], [np.arange(len(features))]
    for name in settings.strata:
        values = features[name]
        if values.dtype.kind in "OUS":  # labels
            codes, labels = pd.factorize(values, sort=True)
            told = [f"{name} {label}" for label in labels]
        else:
            codes = _bins(values, settings.bins)
            told = [f"no {name}", *(f"{name} {number} of {settings.bins}" for number in range(1, settings.bins + 1))]
            within.insert(1, np.ma.filled(values.astype(float), np.inf))
        cell = cell * len(told) + codes
        bins.append(codes)
        names.append(told)
    _, first, stratum = np.unique(cell, return_index=True, return_inverse=True)
    order = np.lexsort(within)
    groups = [order[members] for members in _members_of(stratum[order])]
    groups = [
        members[((np.arange(quota) + 0.5) * len(members) / max(1, quota)).astype(np.int64)]
        for members, quota in zip(groups, largest_remainder(np.bincount(stratum), k).tolist(), strict=True)
    ]
    rows = np.concatenate(groups)[interleaved(groups)]
    reasons = ["stratum: " + ", ".join(told[codes[row]] for told, codes in zip(names, bins, strict=True))
               for row in first]
    return _no_scores(rows, [reasons[number] for number in stratum[rows]])


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
    """S2L (arXiv 2403.07384): as many from each cluster of the per-epoch losses, at random; small clusters wholly.

    Of more clusters than k there would be some without any: there are at most k.
    """
    from datamap.selection.diversity import kmeans

    losses = np.ma.asarray(features["losses"])
    known = np.flatnonzero(~np.ma.getmaskarray(losses).any(axis=1))
    k = min(k, len(known))
    if not k:
        return _no_scores(known, [])
    trajectories = np.ascontiguousarray(np.ma.getdata(losses)[known], dtype=np.float64)
    cluster, _, _ = kmeans(trajectories, min(settings.n_clusters, k), rng)
    left, groups, members = k, [], _members_of(cluster)
    for place, rows in enumerate(sorted(members, key=len)):
        groups.append(rng.permutation(rows)[: left // (len(members) - place)])
        left -= len(groups[-1])
    rows = np.concatenate(groups)[interleaved(groups)]
    return _no_scores(known[rows], [f"cluster {number} of the loss trajectories" for number in cluster[rows]])


# --- hybrids ------------------------------------------------------------------------------------------------------


def _pipeline(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    """Each member keeps its share of all examples, of those that the members before it kept; the last one keeps k.

    Only the last is filled up, from what the others kept: nobody sees what an earlier member was filled up with.
    """
    kept, picks = np.arange(len(features)), _no_scores(np.empty(0, dtype=np.int64), [])
    for place, (name, share) in enumerate(settings.members):
        is_last = place + 1 == len(settings.members)
        wanted = k if is_last else max(k, count_of(share, len(features)))
        selector, part = SELECTORS[name], features.among(kept)
        values = selector.score(part, settings) if selector.score else None
        told = replace(settings, fill=settings.fill and is_last)
        found = _run(selector, part, values, min(wanted, len(kept)), rng, told)
        if len(found.rows) < wanted and not is_last:
            raise UserError(f"{name} leaves {len(found.rows):,} of {len(features):,} examples, its share {share:g} "
                            f"asks for {wanted:,}: give it a smaller one")
        picks = Picks(kept[found.rows], found.scores, found.reasons)
        kept = np.sort(picks.rows)
    return picks


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
                    score=lambda features, settings: np.ma.asarray(features[feature]))


SELECTORS: dict[str, Selector] = {
    each.name: each
    for each in (
        Selector("random", "baseline", "drawn at random", pick=_random, seeded=True),
        Selector("full", "baseline", "everything, or the first k", needs=("position",), pick=_full),
        Selector("perplexity", "quality", "between two quantiles of perplexity under a causal language model (Marion "
                 "et al. 2023)", needs=("perplexity",), settings=("p_low", "p_high", "rank_by", "keep"),
                 score=_perplexity_band, reason="perplexity in the band",
                 more=lambda settings: [settings.rank_by] if settings.rank_by else []),
        _scored("pseudo_perplexity", "quality", "perplexity under a masked language model, each token hidden in turn "
                "(Salazar et al. 2020)", LOWEST),
        _scored("label_issues", "quality", "cleanlab's label quality from out-of-fold probabilities, what confident "
                "learning calls an issue last (Northcutt et al. 2021)", HIGHEST, "label_quality"),
        Selector("consistency", "quality", "drops what a model predicts otherwise after small changes of the text",
                 needs=("flip_rate",), score=_only_zeros("flip_rate"), reason="same prediction after every change"),
        _scored("self_filter", "quality", "agreement of a small head, trained on the rest over several rounds, with "
                "the label", HIGHEST),
        Selector("llm_judge", "quality", "drops what a chat model finds ambiguous, sarcastic or wrongly labelled",
                 needs=("judge_flags",), score=_only_zeros("judge_flags"), reason="no objection of the judge"),
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
        _scored("el2n", "importance", "norm of the error vector early in training (Paul et al. 2021, who average ten "
                "models)", HIGHEST),
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
}


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
                        "before it")
    return tuple(members)


# --- selecting ----------------------------------------------------------------------------------------------------


def _run(
    selector: Selector, features: Features, values: np.ma.MaskedArray | None, k: int, rng: np.random.Generator,
    settings: Settings,
) -> Picks:
    """k picks, or fewer where there are not as many and they are not to be filled up. values: the scores, if any."""
    if values is None:
        assert selector.pick is not None
        picks = selector.pick(features, k, rng, settings)
    else:
        keep = settings.keep or selector.keep
        order = ranked(values, rng, keep)[:k]
        scores = np.ma.filled(values.astype(float), np.nan)[order]
        picks = Picks(order, scores, [selector.reason or f"{keep} {selector.name}"] * len(order))
    if settings.fill and len(picks.rows) < k:
        rest = rng.permutation(np.setdiff1d(np.arange(len(features)), picks.rows))[: k - len(picks.rows)]
        reasons = [*picks.reasons, *[f"{FILLED}, not chosen by {selector.name}"] * len(rest)]
        return Picks(np.append(picks.rows, rest), np.append(picks.scores, np.full(len(rest), np.nan)), reasons)
    return picks


def select(
    features: Features,
    name: str,
    k: int,
    seed: int,
    settings: Settings | None = None,
    *,
    stratify: str | None = None,
) -> pd.DataFrame:
    """Choose exactly k of n examples: ``id, rank`` (1 is the first chosen), ``score``, ``reason``.

    The score is the selector's own, by which it ranks, NaN where it has none: of k-center the distance to those chosen
    before, of k-means that to the cluster's centre, of herding that of the mean of those chosen so far to the mean of
    all. stratify: the feature that says to which group an example belongs: each group has its quota by largest
    remainder, and the selector works within it. Raises UserError when a feature is NaN somewhere, when k is not within
    1..n, and with the number when the selector leaves fewer than k, unless the settings say ``fill``.
    """
    settings = settings or Settings()
    selector, n = SELECTORS[name], len(features)
    if selector.kind == "hybrid" and not settings.members:
        raise ValueError(f"a {name} needs members")
    if not 1 <= k <= n:
        raise UserError(f"{k:,} of {n:,} examples were asked for; ask for 1 to {n:,}")
    features.check(needed(name, settings))
    values = selector.score(features, settings) if selector.score else None
    groups, names = [np.arange(n)], [""]
    if stratify is not None:
        number, found = pd.factorize(np.array([str(each) for each in features[stratify]], dtype=object), sort=True)
        groups, names = _members_of(number), [f" of {stratify} {each}" for each in found]
    quotas = largest_remainder(np.array([len(group) for group in groups]), k)
    chosen = []
    for place, (group, quota) in enumerate(zip(groups, quotas.tolist(), strict=True)):
        if not quota:
            continue
        part = features if len(group) == n else features.among(group)
        rng = np.random.default_rng([seed, place])
        picks = _run(selector, part, None if values is None else values[group], quota, rng, settings)
        if len(picks.rows) < quota:
            raise UserError(f"{name} leaves {len(picks.rows):,} of {len(group):,} examples{names[place]}, {quota:,} "
                            "were asked for: ask for fewer, or --fill random tops them up")
        chosen.append(Picks(group[picks.rows], picks.scores, picks.reasons))
    rows = np.concatenate([picks.rows for picks in chosen])
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


def described() -> str:
    """A table of the selectors, for people."""
    lines = []
    for kind in dict.fromkeys(each.kind for each in SELECTORS.values()):
        lines.append(f"{kind}:")
        for each in SELECTORS.values():
            if each.kind == kind:
                by_score = each.score is not None and not each.reason and kind != "hybrid"
                more = f"; {each.keep} first" if by_score else "; another choice for every seed" if each.seeded else ""
                lines.append(f"  {each.name:18} {each.what}{more}")
    return "\n".join(lines)
