"""Which k examples to train on, and why: the selectors, and how one is asked.

    from datamap.selection.selectors import Features, select
    chosen = select(Features(ids, {"embeddings": vectors}), "kcenter", k=500, seed=42)      # id, rank, score, reason

A selector reads features: arrays with one row per example. ``needed(name, settings)`` says which; ``select_subset.py``
computes them (features.py). Rows may come in any order: they are put into that of the sorted ids first, so that the
choice does not depend on it. Examples of equal score are ordered by the seed.

A score that an example cannot have (its text is too short, say) is masked (numpy.ma); NaN anywhere else is an error.
A masked example is never chosen. Taxonomy of selectors: arXiv 2408.02085. To add one, see docs/extending.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from datamap.core.errors import UserError, name_a_few
from datamap.core.flags import fraction, positive_int
from datamap.selection.base import (
    HIGHEST,
    KEEP,
    LOWEST,
    SELECTORS,
    Features,
    Picks,
    Setting,
    Settings,
    count_of,
    interleaved,
    largest_remainder,
    members_of,
    needed,
    picks,
    places,
    rank_normalised,
    ranked,
    ranks,
    ranks_by,
    without_scores,
)
from datamap.selection.text_metrics import METRICS

if TYPE_CHECKING:
    import pandas as pd

ROWS_AT_ONCE = 8192  # of embeddings, which may be a memory map
SPREADS = "kcenter"  # the member of a fusion that weighs by distance instead of a score
N_CLUSTERS = Setting("n_clusters", 128, "of k-means: how many", {"type": positive_int, "metavar": "N"})


# --- baselines ------------------------------------------------------------------------------------------------------


@picks("random", "baseline", "drawn at random", seeded=True)
def _random(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    return without_scores(rng.permutation(len(features))[:k], ["drawn at random"] * k)


@picks("full", "baseline", "everything, or the first k", needs=("position",))
def _full(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    rows = np.argsort(features["position"], kind="stable")[:k]
    return without_scores(rows, [f"row {place + 1:,} of the dataset" for place in features["position"][rows].tolist()])


# --- quality ------------------------------------------------------------------------------------------------------


def _wrong_band(settings: Settings) -> str | None:
    if settings.p_low >= settings.p_high:
        return f"--p_low {settings.p_low:g} is not below --p_high {settings.p_high:g}"
    if settings.rank_by is not None and settings.rank_by not in METRICS:
        return f"--rank_by {settings.rank_by} is no text metric; there is {', '.join(METRICS)}"
    if settings.keep and not settings.rank_by:
        return "--keep does nothing with --selector perplexity without --rank_by"
    return None


def _in_the_band(features: Features, settings: Settings, rows: np.ndarray) -> list[str]:
    band = f"between the quantiles {settings.p_low:g} and {settings.p_high:g}"
    return [f"perplexity {value:.4g}, {band}" for value in np.ma.getdata(features["perplexity"])[rows]]


@ranks("perplexity", "quality", "between two quantiles of perplexity under a causal language model (Marion et al. "
       "2023)", needs=("perplexity",), reason=_in_the_band, check=_wrong_band,
       more=lambda settings: [settings.rank_by] if settings.rank_by else [],
       settings=(Setting("p_low", 0.3, "quantile of perplexity, 0..1", {"type": fraction}),
                 Setting("p_high", 0.7, "quantile of perplexity, 0..1", {"type": fraction}),
                 Setting("rank_by", None, "text metric that ranks those in the band (default: nearest to its middle)",
                         {"metavar": "METRIC"}), KEEP))
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


ranks_by("pseudo_perplexity", "quality", "perplexity under a masked language model, each token hidden in turn "
         "(Salazar et al. 2020)", keep=LOWEST)
ranks_by("label_issues", "quality", "cleanlab's label quality from out-of-fold probabilities, what confident learning "
         "calls an issue last (Northcutt et al. 2021)", "label_quality")
ranks_by("self_filter", "quality", "agreement of a small head, trained on the rest over several rounds, with the "
         "label")


@ranks("consistency", "quality", "drops what a model predicts otherwise after small changes of the text",
       needs=("flip_rate",), reason="same prediction after every change")
def _consistency(features: Features, settings: Settings) -> np.ma.MaskedArray:
    values = np.ma.asarray(features["flip_rate"])
    return np.ma.masked_where(values > 0, values)


def _wrong_share(settings: Settings) -> str | None:
    return None if settings.judge_fraction > 0 else "--judge_fraction must be above 0, found 0"


def _no_objection(features: Features, settings: Settings, rows: np.ndarray) -> list[str]:
    if settings.judge_fraction == 1:
        return ["no objection of the judge"] * len(rows)
    return ["no objection of the judge" if is_judged else f"the student expects {flags:.2g} objections of the judge"
            for flags, is_judged in features["judge_estimates"][rows]]


@ranks("llm_judge", "quality", "drops what a chat model finds ambiguous, sarcastic or wrongly labelled",
       keep=LOWEST, reason=_no_objection, check=_wrong_share,
       more=lambda settings: ["judge_flags" if settings.judge_fraction == 1 else "judge_estimates"],
       settings=(Setting("judge_fraction", 1.0, "share of the examples that the judge is asked about, above 0 to 1; "
                         "of the others a regression on embeddings, fitted to its answers, says what it would find",
                         {"type": fraction, "metavar": "F"}),))
def _judged(features: Features, settings: Settings) -> np.ma.MaskedArray:
    """Objections of the judge, 0..3, those that it has any to masked; of what it was not asked about, expected ones.

    Known to be without objection comes before what is thought to be.
    """
    if settings.judge_fraction == 1:
        values = np.ma.asarray(features["judge_flags"])
        return np.ma.masked_where(values > 0, values)
    flags, is_judged = features["judge_estimates"].T
    return np.ma.masked_where((is_judged == 1) & (flags > 0), flags)


# --- diversity ----------------------------------------------------------------------------------------------------


def _nearest_to_the_mean(vectors: np.ndarray) -> tuple[int, float]:
    """The row nearest to the mean of all, and the root mean squared distance from the mean."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    squares = np.empty(len(vectors))
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        away = vectors[first : first + ROWS_AT_ONCE] - mean
        squares[first : first + ROWS_AT_ONCE] = np.einsum("ij,ij->i", away, away)
    return int(squares.argmin()), float(np.sqrt(squares.mean()))


@picks("kcenter", "diversity", "greedy k-center: always the example farthest from those chosen (Sener and Savarese "
       "2018)", needs=("embeddings",))
def _k_center(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    from datamap.selection.diversity import k_center

    vectors = features["embeddings"]
    rows, distances, _ = k_center(vectors, k, _nearest_to_the_mean(vectors)[0])
    return Picks(rows, distances, ["nearest to the mean",
                                   *(f"{distance:.4g} from the nearest before it" for distance in distances[1:])])


@picks("kmeans", "diversity", "the nearest to the centres of k-means clusters, in proportion to their sizes",
       needs=("embeddings",), settings=(N_CLUSTERS,), seeded=True)
def _k_means(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    from datamap.selection.diversity import kmeans

    cluster, distance, _ = kmeans(features["embeddings"], min(settings.n_clusters, len(features)), rng)
    quotas = largest_remainder(np.bincount(cluster), k)
    groups = [members[ranked(np.ma.asarray(distance[members]), rng, LOWEST)][:quota]
              for members, quota in zip(members_of(cluster), quotas.tolist(), strict=True)]
    rows = np.concatenate(groups)[interleaved(groups)]
    reasons = [f"{distance[row]:.4g} from the centre of cluster {cluster[row]}" for row in rows]
    return Picks(rows, distance[rows], reasons)


@picks("herding", "diversity", "greedy mean matching (Welling 2009)", needs=("embeddings",))
def _herding(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    from datamap.selection.diversity import herding

    rows, errors = herding(features["embeddings"], k)
    return Picks(rows, errors, [f"with it the mean of the chosen is {error:.4g} from that of all" for error in errors])


def _wrong_weights(settings: Settings) -> str | None:
    weights = settings.lexical_weights
    if len(weights) == 3 and min(weights) >= 0 and 0 < sum(weights) < math.inf:
        return None
    return f"--lexical_weights takes three numbers from 0, not all 0, found {list(weights)}"


@picks("lexical_diversity", "diversity", "k-center with MATTR and MTLD added to the distance", check=_wrong_weights,
       needs=("embeddings", "mattr", "mtld"),
       settings=(Setting("lexical_weights", (1.0, 0.5, 0.5), "of semantic distance, MATTR and MTLD",
                         {"type": float, "metavar": "A,B,C"}),))
def _lexical_diversity(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    """Greedy k-center whose distance, in units of the spread of all, has rank-normalised MATTR and MTLD added to it.

    Texts too short for MATTR, or for MTLD, count there as the middle of the others.
    """
    from datamap.selection.diversity import k_center

    vectors = features["embeddings"]
    semantic, *weights = settings.lexical_weights
    lexical = {name.upper(): np.ma.asarray(features[name]) for name in ("mattr", "mtld")}
    bonus = np.zeros(len(features))
    for weight, values in zip(weights, lexical.values(), strict=True):
        bonus += weight * rank_normalised(values).filled(0.5)
    first, spread = _nearest_to_the_mean(vectors)
    scale = spread / semantic if semantic and spread else math.inf
    rows, distances, _ = k_center(vectors, k, first, bonus=bonus, scale=scale)
    reasons = []
    for row in rows:
        without = " and ".join(name for name, values in lexical.items() if values[row] is np.ma.masked)
        rich = ", ".join(f"{name} {values[row]:.3g}" for name, values in lexical.items()
                         if values[row] is not np.ma.masked)
        reasons.append("far away and rich in words" + f": {rich}" * bool(rich)
                       + f" (too short for {without})" * bool(without))
    return Picks(rows, distances / scale + bonus[rows], reasons)


def _wrong_strata(settings: Settings) -> str | None:
    unknown = [name for name in settings.strata if name not in (*METRICS, "label")]
    return f"--strata {unknown[0]} is no text metric; there is label, {', '.join(METRICS)}" if unknown else None


@picks("stratified", "diversity", "a coreset in proportion to strata of text attributes and label",
       check=_wrong_strata, more=lambda settings: settings.strata,
       settings=(Setting("strata", ("token_count", "flesch", "label"), "text metrics, or label (default: token_count "
                         "flesch label, where there is a label)"),
                 Setting("bins", 3, "quantiles of each metric of --strata", {"type": positive_int, "metavar": "N"})))
def _stratified(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    """From each stratum its proportional quota, evenly spaced in the order of its attributes."""
    import pandas as pd

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
        bins.append(codes)
        names.append(told)
    _, first, stratum = np.unique(np.stack(bins), axis=1, return_index=True, return_inverse=True)
    order = np.lexsort(within)
    groups = [order[members] for members in members_of(stratum[order])]
    groups = [
        members[((np.arange(quota) + 0.5) * len(members) / max(1, quota)).astype(np.int64)]
        for members, quota in zip(groups, largest_remainder(np.bincount(stratum), k).tolist(), strict=True)
    ]
    rows = np.concatenate(groups)[interleaved(groups)]
    reasons = ["stratum: " + ", ".join(told[codes[row]] for told, codes in zip(names, bins, strict=True))
               for row in first]
    return without_scores(rows, [reasons[number] for number in stratum[rows]])


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


ranks_by("predictive_entropy", "importance", "entropy of a model's prediction", "entropy")
ranks_by("wordpiece_ratio", "importance", "word pieces per word")
ranks_by("el2n", "importance", "norm of the error vector early in training (Paul et al. 2021, who average ten models)")
ranks_by("grand", "importance", "norm of the last layer's gradient early in training (Paul et al. 2021)")
ranks_by("forgetting", "importance", "how often it was forgotten in training; never learnt counts as forgotten in "
         "every epoch (Toneva et al. 2019)")
ranks_by("aum", "importance", "mean margin of the label's logit over training, low where mislabelled (Pleiss et al. "
         "2020)")
ranks_by("confidence", "importance", "mean probability of the label over training (Swayamdipta et al. 2020)",
         keep=LOWEST)
ranks_by("variability", "importance", "standard deviation of the label's probability over training (Swayamdipta "
         "et al. 2020)")


@picks("loss_trajectory", "importance", "as many from each cluster of per-epoch losses (S2L, Yang et al. 2024)",
       needs=("losses",), settings=(N_CLUSTERS,), seeded=True)
def _loss_trajectory(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    """S2L (arXiv 2403.07384): as many from each cluster of the per-epoch losses, at random; small clusters wholly.

    Of more clusters than k there would be some without any: there are at most k.
    """
    from datamap.selection.diversity import kmeans

    losses = np.ma.asarray(features["losses"])
    known = np.flatnonzero(~np.ma.getmaskarray(losses).any(axis=1))
    k = min(k, len(known))
    if not k:
        return without_scores(known, [])
    trajectories = np.ascontiguousarray(np.ma.getdata(losses)[known], dtype=np.float64)
    cluster, _, _ = kmeans(trajectories, min(settings.n_clusters, k), rng)
    left, groups, members = k, [], members_of(cluster)
    for place, rows in enumerate(sorted(members, key=len)):
        groups.append(rng.permutation(rows)[: left // (len(members) - place)])
        left -= len(groups[-1])
    rows = np.concatenate(groups)[interleaved(groups)]
    return without_scores(known[rows], [
        f"cluster {cluster[row]} of the loss trajectories (loss {trajectories[row][0]:.3g} to "
        f"{trajectories[row][-1]:.3g})" for row in rows
    ])


# --- hybrids ------------------------------------------------------------------------------------------------------


def _needs_of_members(settings: Settings) -> list[str]:
    return [need for name, _ in settings.members for need in needed(name, settings)]


@picks("pipeline", "hybrid", "one selector after the other, each keeps its share of all examples",
       more=_needs_of_members)
def _pipeline(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    """Each member keeps its share of all examples, of those that the members before it kept; the last one keeps k.

    Only the last is filled up, from what the others kept: nobody sees what an earlier member was filled up with.
    """
    kept, chosen = np.arange(len(features)), without_scores(np.empty(0, dtype=np.int64), [])
    for place, (name, share) in enumerate(settings.members):
        is_last = place + 1 == len(settings.members)
        wanted = k if is_last else max(k, count_of(share, len(features)))
        selector, part = SELECTORS[name], features.among(kept)
        values = selector.score(part, settings) if selector.score else None
        told = settings.replace(fill=settings.fill and is_last)
        found = selector.run(part, values, min(wanted, len(kept)), rng, told)
        if len(found.rows) < wanted and not is_last:
            raise UserError(f"{name} leaves {len(found.rows):,} of {len(features):,} examples, its share {share:g} "
                            f"asks for {wanted:,}: give it a smaller one")
        chosen = Picks(kept[found.rows], found.scores, found.reasons)
        kept = np.sort(chosen.rows)
    return chosen


def _weighted_ranks(features: Features, settings: Settings) -> np.ma.MaskedArray:
    """(n,) weighted sum of the members' scores, rank-normalised so that 1 is what the member would choose first."""
    total = np.ma.zeros(len(features))
    for name, weight in settings.members:
        member = SELECTORS[name]
        if name != SPREADS:
            assert member.score is not None
            ranks = rank_normalised(np.ma.asarray(member.score(features, settings)))
            total = total + weight * (ranks if member.keep == HIGHEST else 1 - ranks)
    return total


def _with_distance(features: Features, k: int, rng: np.random.Generator, settings: Settings) -> Picks:
    """Quality and diversity at once: greedily the example of the largest weighted mean of its ranks and its distance
    from those chosen before it.

    With r_m the rank-normalised score of member m (1: its first choice), S those chosen, w the weights, the next one
    has the largest ``(sum_m w_m r_m(x) + w_kcenter min_{s in S} |x - s| / spread) / sum w``; spread is the root mean
    squared distance of all embeddings from their mean, so that the distance of two examples is about 1.4. The first
    has the largest score alone. The objective is that of quality-diversity selection (Bukharin et al. 2024, arXiv
    2311.14736: (1 - alpha) diversity + alpha quality, greedily), with the distance of k-center (Sener and Savarese
    2018) as what an example adds to diversity. Within strata, ranks and distances are those of the stratum.
    """
    from datamap.selection.diversity import k_center

    weights = [weight for _, weight in settings.members]
    apart = sum(weight for name, weight in settings.members if name == SPREADS)
    ranks = _weighted_ranks(features, settings)
    known = np.flatnonzero(~np.ma.getmaskarray(ranks))
    k, vectors, bonus = min(k, len(known)), features["embeddings"], np.ma.getdata(ranks)[known]
    if not k:
        return without_scores(known, [])
    vectors = vectors if len(known) == len(vectors) else vectors[known]
    _, spread = _nearest_to_the_mean(vectors)
    scale = spread / apart if spread else math.inf
    rows, distances, _ = k_center(vectors, k, int(bonus.argmax()), bonus=bonus, scale=scale)
    of_ranks = bonus[rows] / (sum(weights) - apart)
    reasons = [f"mean rank {rank:.3g} (1: best) in the scores" + (f", {distance:.4g} from the nearest before it"
                                                                 if place else ", the best of all")
               for place, (rank, distance) in enumerate(zip(of_ranks, distances, strict=True))]
    return Picks(known[rows], (distances / scale + bonus[rows]) / sum(weights), reasons)


@ranks("fusion", "hybrid", "weighted mean of rank-normalised scores, and with kcenter of the distance to those chosen",
       more=_needs_of_members, pick=_with_distance)
def _fusion(features: Features, settings: Settings) -> np.ma.MaskedArray | None:
    """The weighted mean of the members' ranks, 0..1; None where distance counts, which no example has by itself."""
    if SPREADS in dict(settings.members):
        return None
    return _weighted_ranks(features, settings) / sum(weight for _, weight in settings.members)


# --- asking them ----------------------------------------------------------------------------------------------------


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
        able = [each.name for each in SELECTORS.values() if each.score and each.kind != "hybrid"]
        if kind == "fusion" and name not in (*able, SPREADS):
            raise UserError(f"--fusion: {name} gives no score to every example; these do: {', '.join(able)}; of those "
                            f"without, {SPREADS} alone can be weighed, by distance")
        members.append((name, value))
    if kind == "fusion" and {name for name, _ in members} == {SPREADS}:
        raise UserError(f"--fusion: {SPREADS} gives no score, and there is none beside it; --selector {SPREADS} is "
                        f"that, or name one of {', '.join(able)} too")
    shares = [share for _, share in members]
    if kind == "pipeline" and (max(shares) > 1 or shares != sorted(shares, reverse=True)):
        raise UserError(f"--pipeline {text!r}: shares are of all examples, at most 1, and none larger than the one "
                        "before it")
    return tuple(members)


def select(
    features: Features, name: str, k: int, seed: int, settings: Settings | None = None, *, stratify: str | None = None,
) -> pd.DataFrame:
    """Choose exactly k of n examples: ``id, rank`` (1 is the first chosen), ``score``, ``reason``.

    The score is the selector's own, by which it ranks, NaN where it has none: of k-center the distance to those chosen
    before, of k-means that to the cluster's centre, of herding that of the mean of those chosen so far to the mean of
    all. stratify: the feature that says to which group an example belongs: each group has its quota by largest
    remainder, and the selector works within it. Raises UserError when a feature is NaN somewhere, when k is not within
    1..n, and with the number when the selector leaves fewer than k, unless the settings say ``fill``.
    """
    import pandas as pd

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
        codes, values_of = pd.factorize(np.array([str(each) for each in features[stratify]], dtype=object), sort=True)
        groups, names = members_of(codes), [f" of {stratify} {each}" for each in values_of]
    quotas = largest_remainder(np.array([len(group) for group in groups]), k)
    chosen = []
    for place, (group, quota) in enumerate(zip(groups, quotas.tolist(), strict=True)):
        if not quota:
            continue
        part = features if len(group) == n else features.among(group)
        rng = np.random.default_rng([seed, place])
        found = selector.run(part, None if values is None else values[group], quota, rng, settings)
        if len(found.rows) < quota:
            raise UserError(f"{name} leaves {len(found.rows):,} of {len(group):,} examples{names[place]}, {quota:,} "
                            "were asked for: ask for fewer, or --fill random tops them up")
        chosen.append(Picks(group[found.rows], found.scores, found.reasons))
    rows = np.concatenate([each.rows for each in chosen])
    order = interleaved([each.rows for each in chosen])
    rows = rows[order]
    assert len(np.unique(rows)) == k == len(rows)
    reasons = [reason for each in chosen for reason in each.reasons]
    return pd.DataFrame({
        "id": [features.ids[row] for row in rows], "rank": np.arange(1, k + 1),
        "score": np.concatenate([each.scores for each in chosen])[order],
        "reason": [reasons[place] for place in order],
    })


def rejected(features: Features, name: str, chosen: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """The examples that ``select`` did not choose, in the order of their ids: ``id``, ``score`` and ``reason``.

    A selector that ranks says the place of each; one that picks has none for them.
    """
    import pandas as pd

    selector = SELECTORS[name]
    rows = np.flatnonzero(~np.isin(np.array(features.ids, dtype=object), chosen["id"].to_numpy(dtype=object)))
    scores, reasons = np.full(len(rows), np.nan), [f"not among the {len(chosen):,} that {name} picks"] * len(rows)
    if selector.score is not None and (values := selector.score(features, settings)) is not None:
        scores = np.ma.filled(values.astype(float), np.nan)[rows]
        reasons = places(name, values, settings.keep or selector.keep, rows)
    table = pd.DataFrame({"id": [features.ids[row] for row in rows], "score": scores, "reason": reasons})
    return table.astype({"id": str, "reason": str})  # texts, also where there is none


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
