"""What a joint map leaves in its directory beside the files of every map, and what the console says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.cartography.dynamics import write_dynamics
from datamap.cartography.joint import EXTREMES, JOINT_FILE, OF_ONE_KIND, Joint, RecordedMap, mean_epochs
from datamap.cartography.maps import write_cartography
from datamap.cartography.stability import ENOUGH, SHARES, TOP, Curve
from datamap.core.files import write_csv, write_json
from datamap.core.parquet import format_for
from datamap.core.plots import COLORS, GREY, drawn_sample, new_figure, save_figure, whole_numbers
from datamap.core.tables import console_table

if TYPE_CHECKING:
    import pandas as pd

PAIRS_FILE, CURVE_FILE = "run_agreement.csv", "agreement_curve.csv"
STABILITY_PICTURE = "stability"
COLUMN_OF = {what: name for what, (name, _) in EXTREMES.items()}


def joint_identity(runs: Sequence[RecordedMap]) -> dict[str, Any] | None:
    """The identity of the dataset of a joint map: that of its runs, up to the longest of their caps."""
    known = [run.recorded for run in runs if run.recorded]
    if not known:
        return None
    caps = [each.get("max_samples") for each in known]
    capped = [cap for cap in caps if cap is not None]
    return {**known[0], "max_samples": max(capped) if len(capped) == len(caps) else None} if capped else known[0]


def write_joint(
    directory: str | Path, joint: Joint, title: str, method: str = "median", confidence_threshold: float | None = None,
    variability_threshold: float | None = None, error_bars: bool = False, artifact_format: str | None = None,
) -> None:
    """The files of ``write_cartography``, the means of the training dynamics (``mean_epochs``), joint_map.json,
    run_agreement.csv (a row per pair of runs and statistic), agreement_curve.csv and stability.png."""
    directory, form = Path(directory), format_for(len(joint.metrics), artifact_format)
    for epoch in mean_epochs([run["path"] for run in joint.record["runs"]]):
        columns = {name: values for name, values in epoch.items() if name not in ("epoch", "id")}
        write_dynamics(directory, epoch["epoch"], epoch["id"], columns, form)
    write_cartography(directory, joint.metrics, title, method, confidence_threshold, variability_threshold,
                      joint.learning, error_bars, artifact_format=form)
    write_json(directory / JOINT_FILE, joint.record)
    write_csv(directory / PAIRS_FILE, joint.pairs.astype({"share": "float64"}))
    write_csv(directory / CURVE_FILE, curve_table(joint.curves))
    plot_stability(directory / f"{STABILITY_PICTURE}.png", joint.metrics, joint.curves, title)


def curve_table(curves: Mapping[str, Curve]) -> pd.DataFrame:
    """A row per statistic and number of runs: the overlap that was measured, and the one by the formula."""
    import pandas as pd

    rows = [
        {"of": what, "share": TOP, "runs": k, "overlap": curve.overlaps.get(k), "fitted": curve.fitted.get(k)}
        for what, curve in curves.items() for k in sorted({*curve.overlaps, *curve.fitted})
    ]
    return pd.DataFrame(rows, columns=["of", "share", "runs", "overlap", "fitted"]).astype(
        {"overlap": "float64", "fitted": "float64"})


def plot_stability(path: str | Path, metrics: pd.DataFrame, curves: Mapping[str, Curve], title: str) -> None:
    """The joint map coloured by stability, and the agreement of k runs with k others."""
    runs = int(metrics["n_runs"].max())
    figure, (axis, right) = new_figure(9, 5, columns=2, width_ratios=[3, 2])
    known = metrics[metrics["stability"].notna()]
    drawn, note = drawn_sample(known)
    size = float(np.clip(20_000 / max(len(drawn), 1), 3, 18))
    drawn = drawn.sort_values("stability", ascending=False, kind="stable")  # the unstable lie above
    points = axis.scatter(drawn["variability"], drawn["confidence"], c=drawn["stability"], cmap="cividis", vmin=0,
                          vmax=1, s=size, linewidths=0)
    figure.colorbar(points, ax=axis, label="stability: share of pairs of runs with one category", shrink=0.8)
    axis.set(xlabel="variability, mean over runs", ylabel="confidence, mean over runs", ylim=(-0.02, 1.02),
             xlim=(-0.01, max(0.3, 1.03 * metrics["variability"].max())))
    for (what, curve), color in zip(curves.items(), COLORS, strict=False):
        if curve.fitted:
            right.plot(list(curve.fitted), list(curve.fitted.values()), color=color, linestyle="--", linewidth=1)
        right.plot(list(curve.overlaps), list(curve.overlaps.values()), "o", color=color, label=what)
    right.axhline(ENOUGH, color=GREY, linewidth=0.8, linestyle=":")
    right.axhline(TOP, color=GREY, linewidth=0.8, linestyle=":")
    right.text(right.get_xlim()[1], TOP + 0.01, "by chance", ha="right", fontsize=8, color=GREY)
    right.set(ylim=(0, 1.02), xlabel="runs that are averaged (count)",
              ylabel=f"overlap of the top {TOP:.0%} with that of other runs")
    whole_numbers(right.xaxis)
    right.legend()  # where it hides the fewest points
    dashed = "; dashed: by Spearman-Brown" if any(curve.fitted for curve in curves.values()) else ""
    save_figure(figure, path, "How far the runs agree",
                f"{title}, {runs} runs, n = {len(known):,}{note}; right, points: measured on disjoint choices of the "
                f"runs{dashed}")


def said_of(joint: Joint, runs: Sequence[RecordedMap]) -> str:
    """How stable it is, for the console."""
    import pandas as pd

    record, stable = joint.record, joint.record["stability"]
    lines = [f"{len(runs)} runs, {_differing(record, runs)}"]
    if record["in_every_run"] < record["examples"]:
        lines.append(f"{record['in_every_run']:,} of {record['examples']:,} examples are in every run; each is "
                     "averaged over its own (n_runs)")
    if stable["mean"] is not None:
        kappa = "" if stable["kappa"] is None else f", kappa {stable['kappa']:.2f}"
        each = ", ".join(f"{name} {value:.2f}" for name, value in stable["by_category"].items() if value is not None)
        lines.append(f"stability {stable['mean']:.2f}: the share of pairs of runs that put an example into one "
                     f"category ({stable['by_chance']:.2f} by chance{kappa}; {each}); {stable['always_the_same']:.0%} "
                     "of the examples have the same in every run")
    found = {(row["statistic"], row["of"], row["share"]): row for row in record["pairs"]}
    rows = []
    for what, metric in COLUMN_OF.items():
        ranks = found.get(("spearman", metric, None))
        row = {"two single runs": f"{metric}: {what}", "rank correlation": "-" if ranks is None else _range(ranks)}
        for share in SHARES:
            overlap = found.get(("overlap", what, share))
            row[f"same {share:.0%}"] = "-" if overlap is None else _range(overlap)
        rows.append(row)
    lines.append(console_table(pd.DataFrame(rows)))
    lines += [_of_curve(what, curve, len(runs)) for what, curve in joint.curves.items()]
    if joint.learning and joint.learning["warning"]:
        lines.append(f"warning: {joint.learning['warning']}")
    if set(record["differ_in"]) - OF_ONE_KIND:
        lines.append(f"the runs differ in {', '.join(record['differ_in'])}: their spread is not that of seeds alone, "
                     "and more such runs agree as said only where they are drawn from the same kinds")
    return "\n".join(lines)


def _differing(record: Mapping[str, Any], runs: Sequence[RecordedMap]) -> str:
    if not any(run.arguments for run in runs):
        return "which do not say how they were trained"
    if not record["differ_in"]:
        return "which were trained with the same flags and the same seed: their spread is that of the hardware"
    name = record["differ_in"][0]
    values = ", ".join(str(run.arguments.get(name)) for run in runs)
    return f"{name} {values}" if len(values) < 60 else f"of different {name}"


def _range(row: Mapping[str, Any]) -> str:
    if row["lowest"] == row["highest"]:
        return f"{row['mean']:.2f}"
    return f"{row['mean']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"


def _of_curve(what: str, curve: Curve, runs: int) -> str:
    measured = ", ".join(f"{value:.2f} of {k}" for k, value in curve.overlaps.items())
    text = f"the {what} {TOP:.0%}, means of so many runs against as many others: overlap {measured or '-'}"
    if runs in curve.fitted and runs not in curve.overlaps:
        text += f", {curve.fitted[runs]:.2f} of {runs} (extrapolated)"
    if curve.needed is None:
        return f"{text}; runs for {ENOUGH:.0%}: {curve.reason}"
    if curve.low is None:
        return f"{text}; runs for {ENOUGH:.0%}: {curve.needed} ({curve.reason})"
    until = "no limit" if curve.high is None else f"{curve.high}"
    return f"{text}; runs for {ENOUGH:.0%}: {curve.needed} (95 % interval {curve.low} to {until})"

