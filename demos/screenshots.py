"""A picture of a page (analyze_dataset.py --report) as its reader first sees it, for a README or a paper.

Reads report.html, which Chromium draws without a window. Writes a PNG of at most 256 colours, which keeps it small.

    python demos/screenshots.py report/report.html --output page.png
    python demos/screenshots.py report/report.html --output page_dark.png --dark --width 1000 --height 700
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package beside this folder, installed or not

from datamap.core.artifacts import artifact_file
from datamap.core.errors import UserError, command_line
from datamap.core.files import atomic, read_text
from datamap.core.flags import Parser, positive_int
from datamap.report.browser import CHROMIUM, NAMES, Browser
from datamap.report.page import REPORT_FILE

COLOURS = 256


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("A picture of a page, drawn by Chromium without a window.")
    parser.add_argument("report", help="report.html, or its directory, from analyze_dataset.py --report")
    parser.add_argument("--output", required=True, metavar="FILE", help="the PNG that is written")
    parser.add_argument("--width", type=positive_int, default=1400, help="of the window, pixels (default: 1400)")
    parser.add_argument("--height", type=positive_int, default=900, help="of the window, pixels (default: 900)")
    parser.add_switch("--dark", help="in the colours for a dark screen (default: light)")
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    page, output = artifact_file(args.report, REPORT_FILE, "analyze_dataset.py --report"), Path(args.output)
    if 'id="data"' not in read_text(page):
        raise UserError(f"{page} is no page of analyze_dataset.py --report")
    if CHROMIUM is None:
        raise UserError(f"found no {', '.join(NAMES)}; a picture needs one of them: apt-get install chromium")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no directory {output.parent}; make it first")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        size = {"width": args.width, "height": args.height}
        with closing(Browser(Path(profile), **size, flags=["--hide-scrollbars"])) as browser:
            browser.dark(args.dark)
            browser.open(page)
            picture = browser.screenshot()
    write_small(output, picture)
    print(f"wrote {output}, {args.width} x {args.height} pixels, {output.stat().st_size / 1000:.0f} kB")


def write_small(path: Path, picture: bytes) -> None:
    """A PNG with a palette, in which a colour of few pixels, a dot of a legend, becomes no other."""
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image = image.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    with atomic(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
