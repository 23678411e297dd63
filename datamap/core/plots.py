"""The manner of every figure: its colours, its size, its title and caption, the formats it is written in."""

from __future__ import annotations

import argparse
import functools
import logging
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamap.core.files import atomic

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito 2008: told apart by the colour-blind, darkest first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CATEGORY_COLORS = {"easy": COLORS[0], "ambiguous": COLORS[4], "hard": COLORS[1]}
DARK_GREY, GREY, LIGHT_GREY = "#444444", "#8c8c8c", "#d8d8d8"
DOTS_PER_INCH = 160
MAX_DRAWN_POINTS = 25_000
FORMATS = ("png", "pdf", "svg")
MAX_VECTOR_POINTS = 2_000  # of a scatter in a PDF or SVG; more become a picture in it, or it would take megabytes
MISSING_GLYPH = re.compile(r"Glyph (\d+) .*missing from font", re.DOTALL)  # what matplotlib says
REGULAR = ("400", "normal", "regular", "book")
EAST_ASIAN = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO"}

logger = logging.getLogger(__name__)
_formats: tuple[str, ...] = ()  # beside PNG


# --- formats -----------------------------------------------------------------------------------------------------


def add_plot_format(parser: Any) -> None:
    """The flag of every script that draws, for a parser or a group of it; absent from the namespace unless given."""
    parser.add_list("--plot_format", choices=FORMATS, default=argparse.SUPPRESS, metavar="pdf svg",
                    help="write every picture in these formats too, for papers (default: png alone)")


def picture_files(*names: str) -> tuple[str, ...]:
    """The files of pictures in every format, for what a stage owns."""
    return tuple(f"{name}.{kind}" for name in names for kind in FORMATS)


@contextmanager
def plot_formats(formats: Iterable[str] | None) -> Iterator[None]:
    """Inside, ``save_figure`` writes these formats beside PNG. Every stage does so with its ``--plot_format``."""
    global _formats
    before, _formats = _formats, tuple(sorted(set(formats or ()) - {"png"}))
    try:
        yield
    finally:
        _formats = before


# --- figures -----------------------------------------------------------------------------------------------------


def dataset_label(name: str, split: str) -> str:
    """``name [split]`` for captions; of a local path only the last part."""
    return f"{Path(name).resolve().name if Path(name).exists() else name} [{split}]"


def drawn_sample(points: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The points that a scatter has room for, a seeded sample where there are more, and what a caption says of it."""
    if len(points) <= MAX_DRAWN_POINTS:
        return points, ""
    rows = np.random.default_rng(0).choice(len(points), MAX_DRAWN_POINTS, replace=False)
    return points.iloc[rows], f" (random {len(rows):,} drawn)"


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **subplots: Any) -> tuple[Figure, Any]:
    """A figure of ``width`` x ``height`` inches and its axes, without pyplot (no window system, no global state)."""
    from matplotlib.figure import Figure

    # Some drawing functions measure their labels; save_figure says once what it could not write.
    warnings.filterwarnings("ignore", MISSING_GLYPH.pattern)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, **subplots)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def whole_numbers(axis: Axis) -> None:
    """Ticks of counts: no halves, thousands with commas."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axis.set_major_formatter("{x:,.0f}")


def save_figure(figure: Figure, path: str | Path, title: str, caption: str) -> None:
    """Write a PNG with the title above and the caption (n, what is drawn) below, both left-aligned and wrapped.

    About 11 characters of the title and 16 of the caption go into an inch. Beside it, the formats of ``plot_formats``.
    Characters that matplotlib's own font lacks are drawn in an installed one; where none has them, a warning says so.
    """
    from matplotlib.text import Text

    width = figure.get_figwidth()
    title, caption = (text.replace("$", r"\$") for text in (title, caption))  # a bare $ would begin a formula
    lines = [part for line in caption.split("\n") for part in textwrap.wrap(line, int(16 * width))]
    figure.suptitle(textwrap.fill(title, int(11 * width)), x=0.01, ha="left", fontsize=11)
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color=DARK_GREY)
    if missing := _write(figure, Path(path), "png"):
        families, nowhere = fonts_with(missing)
        if families:
            for text in figure.findobj(Text):
                assert isinstance(text, Text)
                text.set_fontfamily([*text.get_fontfamily(), *families])
            _write(figure, Path(path), "png")
        if nowhere:
            _say_missing(tuple(sorted({_script(character) for character in nowhere})))
    for collection in [each for axis in figure.axes for each in axis.collections] if _formats else ():
        collection.set_rasterized(len(np.asarray(collection.get_offsets())) > MAX_VECTOR_POINTS)
    for kind in _formats:
        _write(figure, Path(path), kind)


def _write(figure: Figure, path: Path, kind: str) -> set[str]:
    """Write one format, and return the characters for which there was no glyph."""
    import matplotlib

    # Without dates and random names the same picture is the same file; TrueType, as conferences ask for.
    dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    settings = {"pdf.fonttype": 42, "svg.hashsalt": path.name}
    with atomic(path.with_suffix(f".{kind}")) as temporary, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with matplotlib.rc_context(settings):
            figure.savefig(temporary, dpi=DOTS_PER_INCH, metadata=dated)
    missing = set()
    for warning in caught:
        if found := MISSING_GLYPH.match(str(warning.message)):
            missing.add(chr(int(found[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return missing


# --- characters that matplotlib's own font lacks -------------------------------------------------------------------


def fonts_with(characters: set[str]) -> tuple[list[str], set[str]]:
    """The fewest installed families that have these characters, and those that none has."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    manager = font_manager.fontManager
    known = {entry.fname for entry in manager.ttflist}
    for file in sorted(set(font_manager.findSystemFonts()) - known):  # installed since matplotlib listed them
        try:
            manager.addfont(file)
        except (OSError, RuntimeError, ValueError) as error:
            logger.debug(f"{file} is no font that can be read: {error}")
    wanted, has = set(map(ord, characters)), {}
    # Of a family the upright regular face, which texts are drawn in: its others may have fewer characters.
    for entry in sorted(manager.ttflist, key=lambda each: (each.style != "normal", str(each.weight) not in REGULAR)):
        if not entry.name.startswith("Last Resort") and entry.name not in has and Path(entry.fname).exists():
            has[entry.name] = wanted & FT2Font(entry.fname, face_index=entry.index).get_charmap().keys()
    families = []
    while has and (best := max(sorted(has, key=lambda name: ("Sans" not in name, "Mono" in name, name)),
                               key=lambda name: len(wanted & has[name]))) and wanted & has[best]:
        families.append(best)
        wanted -= has.pop(best)
    return families, set(map(chr, wanted))


def _script(character: str) -> str:
    return unicodedata.name(character, "unnamed").split()[0]


@functools.cache
def _say_missing(scripts: tuple[str, ...]) -> None:
    """Once, not for every picture."""
    packages = sorted({"fonts-noto-cjk" if script in EAST_ASIAN else "fonts-noto-core" for script in scripts})
    logger.warning(f"no installed font has the {', '.join(scripts)} characters of the labels, pictures show boxes for "
                   "them; install one that has them (on Debian and Ubuntu: "
                   f"apt install {' '.join(packages)}) and draw again")
