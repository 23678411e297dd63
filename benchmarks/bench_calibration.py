"""How often the verdicts of a suite are wrong, on simulated seeds whose true difference is known.

Reads nothing; draws experiments and references of several shapes of seed noise, alone and in families of six against
one reference, with questions that go together in contexts among them; two checkpoints on the same examples; and shares
of right answers, as slices have them. Writes bench_calibration.csv, checkpoints.csv, shares.csv and
bench_calibration.json and prints a Markdown table of each.

    python benchmarks/bench_calibration.py
    python benchmarks/bench_calibration.py --repetitions 200 --seed_counts 3,5 --output_dir /tmp/bench_calibration

All repetitions of a cell are decided at once, and the first few again by ``compare_family``, which must agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timing import bench_parser, markdown, report

from datamap.core.clusters import Clusters
from datamap.core.errors import command_line
from datamap.core.files import write_csv
from datamap.core.flags import DEFAULT_SEED, ListOf, positive_int
from datamap.core.intervals import clustered_interval, wilson_interval
from datamap.suites import comparison
from datamap.suites.comparison import (
    ALPHA,
    BETTER,
    NO_DIFFERENCE,
    UNDERPOWERED,
    WORSE,
    Comparison,
    single_seed_statistics,
)
from datamap.suites.results import influence_on_macro_f1

SEED_COUNTS = (3, 4, 5, 6, 8, 10)
FAMILY = 6
TRUE_DIFFERENCES = (0.5, 1.0, 2.0)  # standard deviations of the difference between seeds
MARGIN = 2.0  # likewise; the difference that the simulated user cares about
CHECKED = 2  # repetitions of a cell that compare_family decides again
EXAMPLES = 200
SHARES = (0.6, 0.3, 0.1)  # of the classes
TWO_LEVEL_REPETITIONS = 1000  # at most
AT_ONCE = 100  # of those
COVERAGE = (0.93, 0.97)


# --- shapes of seed noise ----------------------------------------------------------------------------------------


Draw = Callable[[np.random.Generator, tuple[int, ...], float], np.ndarray]


class Shape(NamedTuple):
    """``draw(rng, size, shift)`` gives values with the true mean moved up by ``shift``; ``sd`` is of a difference."""

    sd: float
    draw: Draw
    draw_reference: Draw | None = None


def skewed(rng: np.random.Generator, size: tuple[int, ...], shift: float) -> np.ndarray:
    return rng.exponential(1.0, size) - 1 + shift


def coarse(examples: int) -> Shape:
    return Shape(float(np.sqrt(2 * 0.8 * 0.2 / examples)),
                 lambda rng, size, shift: rng.binomial(examples, min(0.8 + shift, 1.0), size) / examples)


SHAPES = {
    "normal": Shape(2**0.5, lambda rng, size, shift: rng.normal(shift, 1.0, size)),
    "skewed": Shape(2**0.5, skewed),
    "heavy-tailed (t, 3 df)": Shape(6**0.5, lambda rng, size, shift: rng.standard_t(3, size) + shift),
    "coarse, 50 examples": coarse(50),
    "coarse, 400 examples": coarse(400),
    "one seed in ten fails": Shape(
        20**0.5, lambda rng, size, shift: rng.normal(shift, 1.0, size) - 10.0 * (rng.random(size) < 0.1)),
    "skewed, experiment only": Shape(
        1.09**0.5, skewed, lambda rng, size, shift: 0.3 * rng.normal(shift, 1.0, size)),
}


class TwoLevel(NamedTuple):
    """Scores from logits: of the example, of the method at it (mean 0 over examples), of the seed, and noise.

    binary: answers are right or wrong. macro: and are of classes of SHARES, a wrong one of either of the others.
    ease: mean logit of the examples. contexts: in so many clusters of examples, of one size or (unequal) of very
    different ones, which share ``within`` of the variance of the method at an example.
    """

    method_sd: float
    seed_sd: float
    noise_sd: float
    binary: bool
    macro: bool = False
    ease: float = 1.0
    examples: int = EXAMPLES
    contexts: int = 0
    unequal: bool = False
    within: float = 0.4

    def clusters(self, rng: np.random.Generator) -> Clusters | None:
        """Of the examples, drawn anew; None without contexts."""
        if not self.contexts:
            return None
        if not self.unequal:
            return Clusters(np.repeat(np.arange(self.contexts), self.examples // self.contexts))
        shares = rng.lognormal(0, 1, self.contexts)
        codes = rng.choice(self.contexts, self.examples, p=shares / shares.sum())
        return Clusters(codes)

    @property
    def highest(self) -> float:
        return 2 / (len(SHARES) * min(SHARES)) if self.macro else 1.0

    def draw(
        self, rng: np.random.Generator, repetitions: int, family: int, n: int, shift: float,
        clusters: Clusters | None = None,
    ) -> np.ndarray:
        """(repetitions, family + 1, n, examples) float32 scores, the reference first, on examples drawn anew."""

        def noise(*size: int) -> np.ndarray:
            return rng.standard_normal(size, dtype=np.float32)

        logits = self.ease + 1.5 * noise(repetitions, 1, 1, self.examples)
        method = noise(repetitions, family + 1, 1, self.examples)
        if clusters is not None:
            together = noise(repetitions, family + 1, 1, clusters.count)[..., clusters.codes]
            method = np.float32((1 - self.within) ** 0.5) * method + np.float32(self.within**0.5) * together
        logits = logits + self.method_sd * method
        logits = logits + self.seed_sd * noise(repetitions, family + 1, n, 1)
        if self.noise_sd:
            logits += self.noise_sd * noise(repetitions, family + 1, n, self.examples)
        logits[:, 1:] += np.float32(shift)
        scores = 1 / (1 + np.exp(-logits))
        if self.binary:
            scores = (rng.random(scores.shape, dtype=np.float32) < scores).astype(np.float32)
        if not self.macro:
            return scores
        gold = rng.choice(len(SHARES), (repetitions, 1, 1, self.examples), p=SHARES)
        other = (gold + rng.integers(1, len(SHARES), scores.shape)) % len(SHARES)
        gold, predicted = np.broadcast_arrays(gold, np.where(scores == 1, gold, other))
        runs = zip(gold.reshape(-1, self.examples), predicted.reshape(-1, self.examples), strict=True)
        return np.stack([influence_on_macro_f1(*run) for run in runs]).reshape(scores.shape).astype(np.float32)

    def population(self, accuracy: float) -> float:
        """The mean score where that is the share of right answers, in every class."""
        if not self.macro:
            return accuracy
        shares = np.array(SHARES)
        predicted = accuracy * shares + (1 - accuracy) * (1 - shares) / (len(SHARES) - 1)
        return float((2 * accuracy * shares / (shares + predicted)).mean())

    def shift_of(self, difference: float) -> float:
        """The shift of the logits that moves the population's mean score by ``difference``."""
        from scipy.optimize import brentq
        from scipy.special import expit

        spread = np.sqrt(1.5**2 + self.method_sd**2 + self.seed_sd**2 + self.noise_sd**2)
        logits = self.ease + spread * np.random.default_rng(DEFAULT_SEED).normal(size=50_000)
        wanted = self.population(expit(logits).mean()) + difference
        return brentq(lambda shift: self.population(expit(logits + shift).mean()) - wanted, 0.0, 10.0)

    def sd(self) -> float:
        """Standard deviation of a difference at one seed and ``examples`` examples, both drawn anew."""
        rng = np.random.default_rng(DEFAULT_SEED)
        parts = [self.draw(rng, 200, 1, 1, 0.0, self.clusters(rng)) for _ in range(20)]
        scores = np.concatenate(parts).mean(axis=-1)
        return float((scores[:, 1] - scores[:, 0]).std())


TWO_LEVEL = {
    "two-level, exact match": TwoLevel(method_sd=1.5, seed_sd=0.15, noise_sd=0.0, binary=True),
    "two-level, F1, noise of the seeds": TwoLevel(method_sd=1.5, seed_sd=0.4, noise_sd=0.3, binary=False),
    "two-level, F1, noise of the examples": TwoLevel(method_sd=1.5, seed_sd=0.02, noise_sd=0.3, binary=False),
    "two-level, macro F1 of three classes": TwoLevel(1.5, 0.15, 0.0, binary=True, macro=True),
    "two-level, exact match, 30 examples": TwoLevel(1.5, 0.15, 0.0, binary=True, examples=30),
    "two-level, exact match near 0, 30 examples": TwoLevel(1.5, 0.15, 0.0, binary=True, ease=-6.0, examples=30),
    "two-level, exact match near 0, 6 examples": TwoLevel(1.5, 0.15, 0.0, binary=True, ease=-6.0, examples=6),
    "clusters, exact match, 40 contexts of 5": TwoLevel(1.5, 0.15, 0.0, binary=True, contexts=40),
    "clusters, F1, 10 contexts of 20": TwoLevel(1.5, 0.15, 0.3, binary=False, contexts=10),
    "clusters, F1, 40 contexts of 1 to 40": TwoLevel(1.5, 0.15, 0.3, binary=False, contexts=40, unequal=True),
    "clusters, macro F1, 40 contexts of 5": TwoLevel(1.5, 0.15, 0.0, binary=True, macro=True, contexts=40),
}
# Two checkpoints: what their seeds did is part of them.
CHECKPOINTS = {
    "exact match, 200 examples": TwoLevel(1.5, 0.0, 0.0, binary=True),
    "exact match, 30 examples": TwoLevel(1.5, 0.0, 0.0, binary=True, examples=30),
    "exact match near 0, 200 examples": TwoLevel(1.5, 0.0, 0.0, binary=True, ease=-6.0),
    "F1, 200 examples": TwoLevel(1.5, 0.0, 0.3, binary=False),
    "macro F1, 200 examples": TwoLevel(1.5, 0.0, 0.0, binary=True, macro=True),
    "exact match, 40 contexts of 5": TwoLevel(1.5, 0.0, 0.0, binary=True, contexts=40),
    "exact match near 0, 40 contexts of 5": TwoLevel(1.5, 0.0, 0.0, binary=True, ease=-6.0, contexts=40),
    "exact match, 40 contexts of 1 to 40": TwoLevel(1.5, 0.0, 0.0, binary=True, contexts=40, unequal=True),
    "F1, 10 contexts of 20": TwoLevel(1.5, 0.0, 0.3, binary=False, contexts=10),
    "F1, 40 contexts of 1 to 40": TwoLevel(1.5, 0.0, 0.3, binary=False, contexts=40, unequal=True),
    "macro F1, 40 contexts of 5": TwoLevel(1.5, 0.0, 0.0, binary=True, macro=True, contexts=40),
}
CHECKPOINT_MARGIN = 3.0  # standard deviations of the difference


# --- decisions, all repetitions at once --------------------------------------------------------------------------


class Tests(NamedTuple):
    """Arrays (repetitions, family); the bounds of the bootstrap are NaN where there are no scores of examples."""

    difference: np.ndarray
    sd: np.ndarray
    p: np.ndarray
    p_t: np.ndarray
    low: np.ndarray
    high: np.ndarray
    equal: np.ndarray  # p of equivalence
    bootstrap_low: np.ndarray
    bootstrap_high: np.ndarray
    p_alone: np.ndarray  # as if the examples were independent


def t_tests(values: np.ndarray, reference: np.ndarray, margin: float) -> Tests:
    """``values`` (R, family, n) against ``reference`` (R, 1, n)."""
    from scipy import stats

    n = values.shape[-1]
    differences = values - reference
    scale = np.maximum(np.abs(values).max(axis=-1), np.abs(reference).max(axis=-1))
    differences[np.abs(differences) <= 1e-9 * scale[..., None]] = 0.0
    difference, sd = differences.mean(axis=-1), differences.std(axis=-1, ddof=1)
    sd[np.ptp(differences, axis=-1) <= 1e-9 * scale] = 0.0
    se = sd / np.sqrt(n)
    p = np.where(sd > 0, 2 * stats.t.sf(np.abs(difference) / np.where(sd > 0, se, 1), n - 1), 1.0)
    half = stats.t.isf(ALPHA / 2, n - 1) * se
    none = np.full_like(p, np.nan)
    equal = np.where(sd > 0, stats.t.sf((margin - np.abs(difference)) / np.where(sd > 0, se, 1), n - 1), 1.0)
    return Tests(difference, sd, p, p, difference - half, difference + half, equal, none, none, none)


def with_bootstrap(
    tests: Tests, scores: np.ndarray, scored: TwoLevel, clusters: Clusters | None, margin: float
) -> Tests:
    """The same, with the multi-bootstrap of the (R, family + 1, n, N) scores, the reference first."""
    differences = np.subtract(scores[:, 1:], scores[:, :1], dtype=np.float64)
    groups = clusters or Clusters(np.arange(scores.shape[-1]))
    low, high, p, equal = bootstrap(differences, groups, margin, scored.highest)
    known = tests.sd > 0  # else the examples alone say whether there is a difference
    alone = tests.p_alone.copy()
    if clusters is not None:
        independent = Clusters(np.arange(scores.shape[-1]))
        alone[:, :1] = bootstrap(differences[:, :1], independent, margin, scored.highest)[2]
    return tests._replace(p=np.maximum(tests.p_t, p), equal=np.where(known, np.maximum(tests.equal, equal), equal),
                          bootstrap_low=low, bootstrap_high=high, p_alone=np.maximum(tests.p_t, alone))


def bootstrap(differences: np.ndarray, groups: Clusters, margin: float, highest: float) -> tuple[np.ndarray, ...]:
    """Ends, p and p of equivalence of (R, family, n, N) differences, (R, family) each: ``multi_bootstrap`` of all."""
    from scipy import stats

    n, examples = differences.shape[-2:]
    inside = (groups.codes[:, None] == np.arange(groups.count)).astype(float)

    def sums(values: np.ndarray) -> np.ndarray:
        return values if groups.are_examples else values @ inside

    by_seed, by_example, mean = (differences.mean(axis=axis) for axis in (-1, -2, (-2, -1)))
    of_seeds = by_seed.var(axis=-1, ddof=1) / n
    of_examples = sums(by_example - mean[..., None]) ** 2 @ groups.weights / examples**2
    residuals = sums(differences - by_seed[..., None] - by_example[..., None, :] + mean[..., None, None])
    noise = (residuals**2 @ groups.weights).sum(axis=-1) / ((n - 1) * n * examples**2)
    variance = np.maximum(np.maximum(of_seeds + of_examples - noise, of_seeds), of_examples)
    spread = np.ptp(differences, axis=(-2, -1)) > 1e-9 * np.abs(differences).max(axis=(-2, -1))
    se = np.sqrt(np.where(spread, variance, 1))
    share = np.where(spread, of_seeds / np.where(spread, variance, 1), 0)
    degrees = 1 / (share / (n - 1) + (1 - share) / groups.degrees)
    half = stats.t.isf(ALPHA / 2, degrees) * se
    low, high, p = mean - half, mean + half, 2 * stats.t.sf(np.abs(mean) / se, degrees)
    equal = stats.t.sf((margin - np.abs(mean)) / se, degrees)
    alone = by_example.var(axis=-1, ddof=1) / examples
    effect = of_examples / np.where(alone > 1e-15, alone, np.nan)
    worth = np.where(np.isnan(effect), groups.count, examples / np.fmax(effect, 1.0))
    for place in zip(*np.nonzero(~spread), strict=True):
        alike = comparison.multi_bootstrap(differences[place], 0 * differences[place], highest, groups)
        low[place], high[place] = alike["bootstrap_low"], alike["bootstrap_high"]
        p[place] = alike["p_bootstrap"]
        equal[place] = 0.0 if mean[place] == 0 else 1.0
    return low, high, p, np.maximum(equal, (1 - min(1.0, margin / highest)) ** worth)


def holm_rows(p: np.ndarray) -> np.ndarray:
    order = np.argsort(p, axis=1)
    sorted_p = np.take_along_axis(p, order, axis=1) * np.arange(p.shape[1], 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(sorted_p, axis=1), 1)
    result = np.empty_like(p)
    np.put_along_axis(result, order, adjusted, axis=1)
    return result


def verdicts(tests: Tests) -> np.ndarray:
    """(R, family) words: the rule of comparison.verdict for n >= 3 seeds."""
    words = np.where(holm_rows(tests.equal) <= ALPHA, NO_DIFFERENCE, UNDERPOWERED)
    significant = (holm_rows(tests.p) <= ALPHA) & (tests.difference != 0)
    words = np.where(significant, np.where(tests.difference > 0, BETTER, WORSE), words)
    return np.where((tests.sd == 0) & (tests.difference != 0), UNDERPOWERED, words)


# --- one cell ----------------------------------------------------------------------------------------------------


def simulate(
    shape: Shape | TwoLevel, n: int, difference: float, repetitions: int, family: int, margin: float,
    rng: np.random.Generator,
) -> Tests:
    """Tests of ``family`` experiments that are truly better by ``difference`` than their one reference."""
    if isinstance(shape, Shape):
        values = shape.draw(rng, (repetitions, family, n), difference)
        reference = (shape.draw_reference or shape.draw)(rng, (repetitions, 1, n), 0.0)
        tests = t_tests(values, reference, margin)
        check(tests, values, reference, None, n, margin, None, None)
        return tests
    parts: list[Tests] = []
    shift = shape.shift_of(difference) if difference else 0.0
    for first in range(0, repetitions, AT_ONCE):
        clusters = shape.clusters(rng)
        scores = shape.draw(rng, min(AT_ONCE, repetitions - first), family, n, shift, clusters)
        means = scores.mean(axis=-1, dtype=np.float64)
        tests = with_bootstrap(t_tests(means[:, 1:], means[:, :1], margin), scores, shape, clusters, margin)
        if not parts:
            check(tests, means[:, 1:], means[:, :1], scores, n, margin, shape, clusters)
        parts.append(tests)
    return Tests(*map(np.concatenate, zip(*parts, strict=True)))


def check(
    tests: Tests, values: np.ndarray, reference: np.ndarray, scores: np.ndarray | None, n: int, margin: float,
    scored: TwoLevel | None, clusters: Clusters | None,
) -> None:
    """Raise AssertionError unless datamap.suites.comparison decides the first repetitions as the arrays do."""
    words = verdicts(tests)
    for row in range(min(CHECKED, len(values))):
        family = [
            Comparison(
                range(n), values[row, place], reference[row, 0], margin,
                scores=None if scores is None else scores[row, place + 1],
                reference_scores=None if scores is None else scores[row, 0], highest=scored.highest if scored else 1.0,
                clusters=clusters,
            )
            for place in range(values.shape[1])
        ]
        found = comparison.compare_family(family)
        for place, one in enumerate(found):
            assert one["verdict"] == words[row, place], (one, words[row, place])
            if one["p"] is not None:
                assert abs(one["p"] - tests.p[row, place]) < 1e-4, (one, tests.p[row, place])
            if one["p_equivalence"] is not None:
                assert abs(one["p_equivalence"] - tests.equal[row, place]) < 1e-4, (one, tests.equal[row, place])


def cell(name: str, shape: Shape | TwoLevel, n: int, repetitions: int) -> dict[str, Any]:
    """One row of the table."""
    rng = np.random.default_rng([DEFAULT_SEED, n, *name.encode()])
    sd = shape.sd if isinstance(shape, Shape) else shape.sd()
    margin = MARGIN * sd

    def rate(hits: Any) -> float:
        return float(np.mean(hits))

    tests = simulate(shape, n, 0.0, repetitions, FAMILY, margin, rng)
    alone = verdicts(Tests(*(column[:, :1] for column in tests)))[:, 0]  # no family
    found = np.isin(alone, (BETTER, WORSE))
    family = np.isin(verdicts(tests), (BETTER, WORSE)).any(axis=1)
    low, high = wilson_interval(int(found.sum()), repetitions)
    family_low, family_high = wilson_interval(int(family.sum()), repetitions)
    # No spread gives no interval: such repetitions count neither way.
    known = tests.sd[:, 0] > 0
    covered = ((tests.low <= 0) & (tests.high >= 0))[known, 0]
    row: dict[str, Any] = {
        "shape": name, "n": n, "repetitions": repetitions, "false_findings": rate(found), "low": low, "high": high,
        "family_error": rate(family), "family_low": family_low, "family_high": family_high,
        "t_test_alone": rate((tests.p_t[:, 0] <= ALPHA) & known), "t_coverage": rate(covered),
        "bootstrap_coverage": None if isinstance(shape, Shape) else rate(
            (tests.bootstrap_low <= 0)[:, 0] & (tests.bootstrap_high >= 0)[:, 0]),
        "as_independent": rate(tests.p_alone[:, 0] <= ALPHA) if getattr(shape, "contexts", 0) else None,
        "no_spread": rate(~known), "no_difference": rate(alone == NO_DIFFERENCE),
    }
    for difference in TRUE_DIFFERENCES:
        true = simulate(shape, n, difference * sd, repetitions, 1, margin, rng)
        words = verdicts(true)[:, 0]
        row[f"power_{difference:g}"] = rate(words == BETTER)
        if difference == MARGIN:
            row["missed"] = rate(words == NO_DIFFERENCE)
    row["outside"] = ", ".join(outside(row))
    return row


def outside(row: dict[str, Any]) -> list[str]:
    """The bounds that a row breaks by more than the simulation's own 95% interval."""
    missed = wilson_interval(round(row["missed"] * row["repetitions"]), row["repetitions"])[0]
    broken = [name for name, low in (("false findings", row["low"]), ("family", row["family_low"]),
                                     ("missed", missed)) if low > ALPHA]
    for name, key in (("t interval", "t_coverage"), ("bootstrap interval", "bootstrap_coverage")):
        if row[key] is not None:
            low, high = wilson_interval(round(row[key] * row["repetitions"]), row["repetitions"])
            broken += [name] * (high < COVERAGE[0] or low > COVERAGE[1])
    return broken


def table(rows: Sequence[dict[str, Any]]) -> str:
    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f}"

    lines = [["shape", "n", "false findings % (95 % interval)", "of six %", "t test alone %", "as independent %",
              "t interval covers %", "bootstrap covers %", "power % at 0.5, 1, 2 sd",
              "no difference said %, there is none", "missed %", "outside its bounds"]]
    for row in rows:
        power = ", ".join(f"{100 * row[f'power_{difference:g}']:.0f}" for difference in TRUE_DIFFERENCES)
        lines.append([
            row["shape"], str(row["n"]),
            f"{percent(row['false_findings'])} ({percent(row['low'])} to {percent(row['high'])})",
            percent(row["family_error"]), percent(row["t_test_alone"]), percent(row["as_independent"]),
            percent(row["t_coverage"]), percent(row["bootstrap_coverage"]), power, percent(row["no_difference"]),
            percent(row["missed"]), row["outside"],
        ])
    return markdown(lines)


# --- two checkpoints, and shares ----------------------------------------------------------------------------------


def checkpoints(name: str, shape: TwoLevel, repetitions: int) -> dict[str, Any]:
    """Two checkpoints on the same examples: p and interval as they are, and as if the examples were independent."""
    rng = np.random.default_rng([DEFAULT_SEED, 1, *name.encode()])
    margin = CHECKPOINT_MARGIN * shape.sd()
    binary = shape.binary and not shape.macro
    row: dict[str, Any] = {"shape": name, "repetitions": repetitions, "margin": margin}
    for difference, key in ((0.0, "none"), (margin, "margin")):
        shift, hits = shape.shift_of(difference) if difference else 0.0, []
        for first in range(0, repetitions, AT_ONCE):
            clusters = shape.clusters(rng)
            for reference, ours in shape.draw(rng, min(AT_ONCE, repetitions - first), 1, 1, shift, clusters)[:, :, 0]:
                both = [single_seed_statistics(ours, reference, binary, shape.highest, groups, margin)
                        for groups in (clusters, None)]
                hits.append([(found["p"] <= ALPHA, found["p_equivalence"] <= ALPHA,
                              found["bootstrap_low"] <= difference <= found["bootstrap_high"],
                              (found["p"] <= ALPHA) != (found["bootstrap_low"] > 0 or found["bootstrap_high"] < 0))
                             for found in both])
        rates = np.mean(hits, axis=0)
        if key == "none":
            row |= {"false_findings": rates[0, 0], "as_independent": rates[1, 0] if shape.contexts else None,
                    "coverage": rates[0, 2], "no_difference": rates[0, 1], "contradictions": rates[0, 3]}
        else:
            row |= {"power": rates[0, 0], "coverage_at_margin": rates[0, 2], "missed": rates[0, 1]}
    return row


def shares(contexts: int, size: int, within: float, ease: float, repetitions: int) -> dict[str, Any]:
    """How often the interval of a slice's share of right answers holds the true one, with and without clusters."""
    from scipy.stats import norm

    rng = np.random.default_rng([DEFAULT_SEED, 2, contexts, size, int(100 * within), int(100 * ease)])
    covered, truth, widths = np.zeros(2), norm.cdf(ease), []
    for _ in range(repetitions):
        codes = np.repeat(np.arange(contexts), rng.integers(1, 2 * size, contexts))
        logits = within**0.5 * rng.normal(size=contexts)[codes] + (1 - within) ** 0.5 * rng.normal(size=len(codes))
        right = (logits < ease).astype(float)
        low, high, _ = clustered_interval(right, Clusters(codes))
        plain = wilson_interval(right.sum(), len(right))
        covered += [low <= truth <= high, plain[0] <= truth <= plain[1]]
        widths.append(high - low)
    return {"contexts": contexts, "questions_each": size, "within": within, "share": truth, "repetitions": repetitions,
            "coverage": covered[0] / repetitions, "as_independent": covered[1] / repetitions,
            "width": float(np.mean(widths))}


def percents(rows: Sequence[dict[str, Any]], whole: Sequence[str]) -> str:
    """The rows as Markdown; all but the columns ``whole`` in percent."""
    lines = [[name.replace("_", " ") + " %" * (name not in whole) for name in rows[0]]]
    for row in rows:
        lines.append(["" if value is None else str(value) if name in whole else f"{100 * value:.1f}"
                      for name, value in row.items()])
    return markdown(lines)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = bench_parser(__doc__, __file__)
    parser.add_argument("--repetitions", type=positive_int, default=10_000,
                        help=f"of each cell; with per-example scores at most {TWO_LEVEL_REPETITIONS}")
    parser.add_argument("--seed_counts", type=ListOf(positive_int), default=list(SEED_COUNTS), help="each 3 or more")
    args = parser.parse_args(argv)
    if min(args.seed_counts) < comparison.MIN_SEEDS:
        parser.error(f"--seed_counts: expected {comparison.MIN_SEEDS} or more, found {min(args.seed_counts)}")
    return args


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import gc

    import pandas as pd

    gc.freeze()  # statsmodels collects garbage with every correction for a family
    shapes: dict[str, Shape | TwoLevel] = {**SHAPES, **TWO_LEVEL}
    rows = []
    for name, shape in shapes.items():
        most = args.repetitions if isinstance(shape, Shape) else TWO_LEVEL_REPETITIONS
        rows += [cell(name, shape, n, min(args.repetitions, most)) for n in args.seed_counts]
    print(table(rows))
    few = min(args.repetitions, TWO_LEVEL_REPETITIONS)
    single = [checkpoints(name, shape, few) for name, shape in CHECKPOINTS.items()]
    print("", percents(single, ("shape", "repetitions")), sep="\n")
    slices = [shares(contexts, size, within, ease, few)
              for contexts, size, within in ((8, 10, 0.3), (30, 5, 0.3), (100, 5, 0.3), (30, 5, 0.0))
              for ease in (0.3, 1.6)]
    print("", percents(slices, ("contexts", "questions_each", "repetitions")), sep="\n")
    report(args, __file__, {"rows": rows, "checkpoints": single, "shares": slices})
    for name, found in (("bench_calibration", rows), ("checkpoints", single), ("shares", slices)):
        write_csv(Path(args.output_dir, f"{name}.csv"), pd.DataFrame(found))


if __name__ == "__main__":
    main()
