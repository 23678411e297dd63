"""demos/screenshots.py: a small picture of the page with both maps in their colours and an example opened."""

import importlib.util
import io

import numpy as np
import pytest
from browser import CHROMIUM
from conftest import REPOSITORY, qa_rows, write_rows
from made_report import make_page
from PIL import Image

from datamap.core.plots import CATEGORY_COLORS
from datamap.core.splits import load_split
from datamap.tasks.registry import get_task


@pytest.fixture(scope="module")
def screenshots():
    spec = importlib.util.spec_from_file_location("screenshots", REPOSITORY / "demos" / "screenshots.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    directory = tmp_path_factory.mktemp("page")
    split = load_split(str(write_rows(directory / "notes.jsonl", qa_rows(40, seed=3))), "train", get_task("qa"))
    with pytest.MonkeyPatch.context() as patch:
        return make_page(directory, split, patch)


OPACITY = 0.75  # of the points


def rgb(colour):
    return np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])


def near(pixels, wanted):
    """Where a picture has about that colour, (height, width)."""
    return np.abs(pixels.astype(int) - wanted).max(axis=2) < 25


@pytest.mark.skipif(CHROMIUM is None, reason="pictures are drawn by Chromium, which is not installed here")
@pytest.mark.parametrize("dark", [False, True])
def test_a_picture(screenshots, page, dark, tmp_path, capsys):
    output = tmp_path / "page.png"
    screenshots.main([str(page), "--output", str(output), *(["--dark"] if dark else [])])
    assert capsys.readouterr().out.startswith(f"wrote {output}, 1400 x 900 pixels, ")
    assert output.stat().st_size < 300_000 and list(tmp_path.iterdir()) == [output]
    image = Image.open(output)
    assert image.size == (1400, 900) and image.mode == "P"
    pixels = np.asarray(image.convert("RGB"))
    assert (pixels[890, 5].mean() < 60) == dark
    ground = rgb("#15171a" if dark else "#ffffff")
    for colour in CATEGORY_COLORS.values():
        found = near(pixels, OPACITY * rgb(colour) + (1 - OPACITY) * ground)[150:500]
        assert found[:, :460].sum() > 20 and found[:, 460:930].sum() > 20, colour  # the data map, the clusters
    assert near(pixels, rgb("#173c56" if dark else "#cfe6f5"))[150:, 940:].sum() > 100  # the answer in the example


def test_colours_of_few_pixels_stay_what_they_are(screenshots, tmp_path):
    """Two dots of a legend beside many shades of one of them."""
    pixels = np.full((900, 1400, 3), 255, dtype=np.uint8)
    shades = np.linspace(0, 1, 600)[:, None] * (255 - rgb("#d55e00")) + rgb("#d55e00")
    pixels[:600, :1000] = shades[:, None]
    pixels[:, 1000:1300] = np.arange(900)[:, None, None] // 4
    pixels[700:712, 20:32], pixels[700:712, 60:72] = rgb("#e69f00"), rgb("#d55e00")
    given = io.BytesIO()
    Image.fromarray(pixels).save(given, format="PNG")
    screenshots.write_small(tmp_path / "small.png", given.getvalue())
    with Image.open(tmp_path / "small.png") as written:
        assert np.abs(np.asarray(written.convert("RGB")).astype(int) - pixels).max() <= 12


def test_what_is_refused(screenshots, page, tmp_path, refused, monkeypatch):
    other = tmp_path / "other.html"
    other.write_text("<html></html>")
    output = ["--output", str(tmp_path / "page.png")]
    assert "is no page of analyze_dataset.py --report" in refused(screenshots.main, other, *output)
    missing = refused(screenshots.main, tmp_path / "no.html", *output)
    assert "no.html: no such file or directory; analyze_dataset.py --report writes report.html" in missing
    if CHROMIUM:
        assert "there is no directory" in refused(screenshots.main, page, "--output", tmp_path / "no" / "page.png")
    monkeypatch.setattr(screenshots, "CHROMIUM", None)
    assert "apt-get install chromium" in refused(screenshots.main, page, *output)
    assert not (tmp_path / "page.png").exists()
