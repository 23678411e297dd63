"""Formats, fonts and axes that all pictures share."""

import importlib
import warnings

import pytest

from datamap.core import plots
from datamap.core.artifacts import stage
from datamap.core.flags import Parser
from datamap.core.plots import add_plot_format, fonts_with, new_figure, picture_files, plot_formats, save_figure


def draw(path, labels=("a", "b"), points=3):
    figure, (left, right) = new_figure(5, 3, columns=2)
    left.barh(labels, range(len(labels)))
    right.scatter(range(points), range(points))
    save_figure(figure, path, f"title {labels[0]}", "caption")
    return figure


def test_pictures_are_written_in_more_formats_inside_a_stage_that_asks_for_them(tmp_path):
    parser = Parser("x")
    add_plot_format(parser)
    assert not vars(parser.parse_args([])), "what was run before has the same arguments"
    args = parser.parse_args(["--plot_format", "pdf", "svg"])
    with stage(tmp_path / "papers", args, owns=picture_files("map")) as path:
        draw(path / "map.png")
        first = {file.suffix: file.read_bytes() for file in path.glob("map.*")}
        assert set(first) == {".png", ".pdf", ".svg"}
        assert first[".png"].startswith(b"\x89PNG") and first[".pdf"].startswith(b"%PDF") and b"<svg" in first[".svg"]
        assert b"/FontType 3" not in first[".pdf"] and b"/Subtype /Type3" not in first[".pdf"]
        draw(path / "map.png")
        assert first == {file.suffix: file.read_bytes() for file in path.glob("map.*")}, "no dates, no random names"
    with stage(tmp_path / "papers", {}, owns=picture_files("map")) as path:
        assert not list(path.glob("map.*")), "those of the earlier run are gone"
        draw(path / "map.png")
    assert [file.name for file in path.glob("map.*")] == ["map.png"]


def test_formats_are_those_of_the_innermost_stage(tmp_path):
    with plot_formats(["pdf"]):
        with plot_formats(None):
            draw(tmp_path / "inner.png")
        draw(tmp_path / "outer.v2.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["inner.png", "outer.v2.pdf", "outer.v2.png"]


def test_many_points_are_a_picture_within_the_vector_file(tmp_path):
    with plot_formats(["svg"]):
        draw(tmp_path / "few.png", points=50)
        draw(tmp_path / "many.png", points=plots.MAX_VECTOR_POINTS + 1)
    assert b"<image" not in (tmp_path / "few.svg").read_bytes()
    assert b"<image" in (tmp_path / "many.svg").read_bytes()
    assert (tmp_path / "many.svg").stat().st_size < 100_000


@pytest.mark.parametrize("word", ["bmp", "jpg"])
def test_other_formats_are_refused(word, capsys):
    parser = Parser("x")
    add_plot_format(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--plot_format", word])
    assert f"'{word}' is not one of png, pdf, svg" in capsys.readouterr().err


@pytest.mark.parametrize("script", [
    "run", "analyze_cartography", "analyze_dataset", "cluster_analysis", "dataset_cartography", "run_experiments",
    "generate_thoughts", "evaluate_thoughts", "train_sft",
])
def test_every_script_that_draws_takes_formats(script, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(script).main(["--help"])
    assert "--plot_format" in capsys.readouterr().out


# --- fonts -------------------------------------------------------------------------------------------------------


@pytest.fixture
def font(tmp_path):
    """A font with one glyph, of a character that no font of this machine has: a square."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib import font_manager

    def square(side):
        pen = TTGlyphPen(None)
        for number, point in enumerate([(0, 0), (0, side), (side, side), (side, 0)]):
            (pen.lineTo if number else pen.moveTo)(point)
        pen.closePath()
        return pen.glyph()

    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "one"])
    builder.setupCharacterMap({0x20BB7: "one"})
    builder.setupGlyf({".notdef": square(100), "one": square(800)})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "one": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Made Sans", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(tmp_path / "made.ttf")
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(tmp_path / "made.ttf")
    yield "Made Sans"
    font_manager.fontManager.ttflist[:] = before
    font_manager.fontManager._findfont_cached.cache_clear()  # type: ignore[attr-defined]


def test_characters_are_drawn_in_an_installed_font_that_has_them(tmp_path, font, caplog):
    assert fonts_with({"\U00020bb7"}) == ([font], set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(tmp_path / "a.png", ("\U00020bb7 label", "other"))
    assert not caplog.text
    label = figure.axes[0].get_yticklabels()[0]
    assert label.get_fontfamily()[-1] == font and len(label.get_fontfamily()) == 2
    alone = draw(tmp_path / "b.png", ("label", "other"))
    assert font not in alone.axes[0].get_yticklabels()[0].get_fontfamily()


def test_without_such_a_font_one_line_says_what_to_install(tmp_path, caplog, recwarn, monkeypatch):
    monkeypatch.setattr(plots, "fonts_with", lambda characters: ([], characters))
    plots._say_missing.cache_clear()
    for name in ("a", "b"):
        draw(tmp_path / f"{name}.png", ("\u597d\u8bc4", "\u0e01"))
    (line,) = caplog.messages
    assert "CJK, THAI" in line and "apt install fonts-noto-cjk fonts-noto-core)" in line and "\n" not in line
    assert not [each for each in recwarn if "Glyph" in str(each.message)]


def test_arabic_and_hebrew_have_glyphs():
    assert fonts_with(set("\u0645\u0631\u0627\u062c\u0639\u0629\u05e9")) == (["DejaVu Sans"], set())


# --- axes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 3, 7, 41, 1234567])
def test_counts_have_no_halves(tmp_path, most):
    figure, axis = new_figure(4, 3)
    axis.bar(["a"], [most])
    plots.whole_numbers(axis.yaxis)
    save_figure(figure, tmp_path / "x.png", "t", "c")
    ticks = [tick for tick in axis.get_yticks() if 0 <= tick <= most]
    assert len(ticks) > 1 and all(tick == int(tick) for tick in ticks)
    texts = [label.get_text() for label in axis.get_yticklabels()]
    assert len(set(texts)) == len(texts) and (most < 1000 or any("," in text for text in texts))
