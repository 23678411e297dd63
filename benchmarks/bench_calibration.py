"""How often the verdicts of a suite are wrong, on simulated seeds whose true difference is known.

Reads nothing; draws experiments and references of several shapes of seed noise, alone and in families of six against
one reference. Writes bench_calibration.csv and bench_calibration.json and prints a Markdown table.

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

from datamap.core.errors import command_line
from datamap.core.files import write_csv
from datamap.core.flags import DEFAULT_SEED, ListOf, positive_int
from datamap.core.intervals import wilson_interval
from datamap.suites import comparison
from datamap.suites.comparison import (
    ALPHA,
    BETTER,
    NO_DIFFERENCE,
    POWER,
    UNDERPOWERED,
    WORSE,
    Comparison,
    examples_needed,
)
from datamap.suites.results import influence_on_macro_f1

SEED_COUNTS = (3, 4, 5, 6, 8, 10)
FAMILY = 6
TRUE_DIFFERENCES = (0.5, 1.0, 2.0)  # standard deviations of the difference between seeds
MARGIN = 2.0  # likewise; the difference that the simulated user cares about
CHECKED = 4  # repetitions of a cell that compare_family decides again
EXAMPLES = 200
SHARES = (0.6, 0.3, 0.1)  # of the classes
TWO_LEVEL_REPETITIONS = 2000  # at most
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
    ease: mean logit of the examples.
    """

    method_sd: float
    seed_sd: float
    noise_sd: float
    binary: bool
    macro: bool = False
    ease: float = 1.0
    examples: int = EXAMPLES

    @property
    def highest(self) -> float:
        return 2 / (len(SHARES) * min(SHARES)) if self.macro else 1.0

    def draw(self, rng: np.random.Generator, repetitions: int, family: int, n: int, shift: float) -> np.ndarray:
        """(repetitions, family + 1, n, examples) float32 scores, the reference first, on examples drawn anew."""

        def noise(*size: int) -> np.ndarray:
            return rng.standard_normal(size, dtype=np.float32)

        logits = self.ease + 1.5 * noise(repetitions, 1, 1, self.examples)
        logits = logits + self.method_sd * noise(repetitions, family + 1, 1, self.examples)
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
        scores = self.draw(np.random.default_rng(DEFAULT_SEED), 4000, 1, 1, 0.0).mean(axis=-1)
        return float((scores[:, 1] - scores[:, 0]).std())


TWO_LEVEL = {
    "two-level, exact match": TwoLevel(method_sd=1.5, seed_sd=0.15, noise_sd=0.0, binary=True),
    "two-level, F1, noise of the seeds": TwoLevel(method_sd=1.5, seed_sd=0.4, noise_sd=0.3, binary=False),
    "two-level, F1, noise of the examples": TwoLevel(method_sd=1.5, seed_sd=0.02, noise_sd=0.3, binary=False),
    "two-level, macro F1 of three classes": TwoLevel(1.5, 0.15, 0.0, binary=True, macro=True),
    "two-level, exact match, 30 examples": TwoLevel(1.5, 0.15, 0.0, binary=True, examples=30),
    "two-level, exact match near 0, 30 examples": TwoLevel(1.5, 0.15, 0.0, binary=True, ease=-6.0, examples=30),
    "two-level, exact match near 0, 6 examples": TwoLevel(1.5, 0.15, 0.0, binary=True, ease=-6.0, examples=6),
}


# --- decisions, all repetitions at once --------------------------------------------------------------------------


class Tests(NamedTuple):
    """Arrays (repetitions, family); the bounds of the bootstrap are NaN where there are no scores of examples."""

    difference: np.ndarray
    sd: np.ndarray
    p: np.ndarray
    p_t: np.ndarray
    low: np.ndarray
    high: np.ndarray
    total: np.ndarray  # the spread that the power is computed at
    bootstrap_low: np.ndarray
    bootstrap_high: np.ndarray


def t_tests(values: np.ndarray, reference: np.ndarray) -> Tests:
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
    return Tests(difference, sd, p, p, difference - half, difference + half, sd, none, none)


def with_bootstrap(tests: Tests, scores: np.ndarray, highest: float) -> Tests:
    """The same, with the multi-bootstrap of the (R, family + 1, n, N) scores, the reference first."""
    found = [[comparison.multi_bootstrap(each, reference, highest) for each in experiments]
             for reference, *experiments in scores]
    low, high, se, p = (np.array([[each[name] for each in row] for row in found])
                        for name in ("bootstrap_low", "bootstrap_high", "bootstrap_se", "p_bootstrap"))
    return tests._replace(p=np.maximum(tests.p_t, p), total=np.maximum(tests.sd, se * np.sqrt(scores.shape[2])),
                          bootstrap_low=low, bootstrap_high=high)


def holm_rows(p: np.ndarray) -> np.ndarray:
    order = np.argsort(p, axis=1)
    sorted_p = np.take_along_axis(p, order, axis=1) * np.arange(p.shape[1], 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(sorted_p, axis=1), 1)
    result = np.empty_like(p)
    np.put_along_axis(result, order, adjusted, axis=1)
    return result


def verdicts(tests: Tests, n: int, margin: float, scored: TwoLevel | None) -> np.ndarray:
    """(R, family) words: the rule of comparison.verdict for n >= 3 seeds; scored: what drew the scores, if any."""
    from scipy.optimize import brentq

    alpha = ALPHA / tests.p.shape[1]
    # Margin over spread at which the power reaches POWER.
    enough = brentq(lambda ratio: (comparison.power_at(n, 1.0, ratio, alpha) or 0.0) - POWER, 1e-6, 1000.0)
    significant = (holm_rows(tests.p) <= ALPHA) & (tests.difference != 0)
    can_show = tests.total > 0
    if scored is not None:
        can_show = scored.examples >= np.array(examples_needed(margin, scored.highest, alpha))
    words = np.where((tests.total * enough <= margin) & can_show, NO_DIFFERENCE, UNDERPOWERED)
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
        tests = t_tests(values, reference)
        check(tests, values, reference, None, n, margin, None)
        return tests
    parts: list[Tests] = []
    shift = shape.shift_of(difference) if difference else 0.0
    for first in range(0, repetitions, AT_ONCE):
        scores = shape.draw(rng, min(AT_ONCE, repetitions - first), family, n, shift)
        means = scores.mean(axis=-1, dtype=np.float64)
        tests = with_bootstrap(t_tests(means[:, 1:], means[:, :1]), scores, shape.highest)
        if not parts:
            check(tests, means[:, 1:], means[:, :1], scores, n, margin, shape)
        parts.append(tests)
    return Tests(*map(np.concatenate, zip(*parts, strict=True)))


def check(
    tests: Tests, values: np.ndarray, reference: np.ndarray, scores: np.ndarray | None, n: int, margin: float,
    scored: TwoLevel | None,
) -> None:
    """Raise AssertionError unless datamap.suites.comparison decides the first repetitions as the arrays do."""
    words = verdicts(tests, n, margin, scored)
    for row in range(min(CHECKED, len(values))):
        family = [
            Comparison(
                range(n), values[row, place], reference[row, 0], margin,
                scores=None if scores is None else scores[row, place + 1],
                reference_scores=None if scores is None else scores[row, 0], highest=scored.highest if scored else 1.0,
            )
            for place in range(values.shape[1])
        ]
        found = comparison.compare_family(family)
        for place, one in enumerate(found):
            assert one["verdict"] == words[row, place], (one, words[row, place])
            if one["p"] is not None:
                assert abs(one["p"] - tests.p[row, place]) < 1e-4, (one, tests.p[row, place])


def cell(name: str, shape: Shape | TwoLevel, n: int, repetitions: int) -> dict[str, Any]:
    """One row of the table."""
    rng = np.random.default_rng([DEFAULT_SEED, n, *name.encode()])
    sd = shape.sd if isinstance(shape, Shape) else shape.sd()
    margin = MARGIN * sd

    def rate(hits: Any) -> float:
        return float(np.mean(hits))

    tests = simulate(shape, n, 0.0, repetitions, FAMILY, margin, rng)
    scored = None if isinstance(shape, Shape) else shape
    alone = verdicts(Tests(*(column[:, :1] for column in tests)), n, margin, scored)[:, 0]  # no family
    found = np.isin(alone, (BETTER, WORSE))
    family = np.isin(verdicts(tests, n, margin, scored), (BETTER, WORSE)).any(axis=1)
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
        "no_spread": rate(~known), "no_difference": rate(alone == NO_DIFFERENCE),
    }
    for difference in TRUE_DIFFERENCES:
        true = simulate(shape, n, difference * sd, repetitions, 1, margin, rng)
        words = verdicts(true, n, margin, scored)[:, 0]
        row[f"power_{difference:g}"] = rate(words == BETTER)
        if difference == MARGIN:
            row["missed"] = rate(words == NO_DIFFERENCE)
    row["outside"] = ", ".join(outside(row))
    return row


def outside(row: dict[str, Any]) -> list[str]:
    """The bounds that a row breaks by more than the simulation's own 95% interval."""
    broken = [name for name, low in (("false findings", row["low"]), ("family", row["family_low"])) if low > ALPHA]
    for name, key in (("t interval", "t_coverage"), ("bootstrap interval", "bootstrap_coverage")):
        if row[key] is not None:
            low, high = wilson_interval(round(row[key] * row["repetitions"]), row["repetitions"])
            broken += [name] * (high < COVERAGE[0] or low > COVERAGE[1])
    return broken


def table(rows: Sequence[dict[str, Any]]) -> str:
    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f}"

    lines = [["shape", "n", "false findings % (95 % interval)", "of six %", "t test alone %", "t interval covers %",
              "bootstrap covers %", "power % at 0.5, 1, 2 sd", "missed %", "outside its bounds"]]
    for row in rows:
        power = ", ".join(f"{100 * row[f'power_{difference:g}']:.0f}" for difference in TRUE_DIFFERENCES)
        lines.append([
            row["shape"], str(row["n"]),
            f"{percent(row['false_findings'])} ({percent(row['low'])} to {percent(row['high'])})",
            percent(row["family_error"]), percent(row["t_test_alone"]), percent(row["t_coverage"]),
            percent(row["bootstrap_coverage"]), power, percent(row["missed"]), row["outside"],
        ])
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
    import pandas as pd

    shapes: dict[str, Shape | TwoLevel] = {**SHAPES, **TWO_LEVEL}
    rows = []
    for name, shape in shapes.items():
        most = args.repetitions if isinstance(shape, Shape) else TWO_LEVEL_REPETITIONS
        rows += [cell(name, shape, n, min(args.repetitions, most)) for n in args.seed_counts]
    print(table(rows))
    report(args, __file__, {"rows": rows})
    write_csv(Path(args.output_dir, "bench_calibration.csv"), pd.DataFrame(rows))


if __name__ == "__main__":
    main()
