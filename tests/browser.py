"""The browser of the page (datamap/report/browser.py), with mouse, keys and downloads: what a test does with it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from datamap.report.browser import CHROMIUM, PATIENCE, Browser

__all__ = ["CHROMIUM", "Hands"]


class Hands(Browser):
    """A browser that somebody uses."""

    def reload(self) -> None:
        self.run("delete document.body.dataset.ready")
        self._ask("Page.reload")
        self.until("document.body && document.body.dataset.ready === 'true'")

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def texts(self, selector: str) -> list[str]:
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.innerText)")

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        box = self.run(f"(({{left, top, width, height}}) => [left + width / 2, top + height / 2])"
                       f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())")
        self.mouse("mousePressed", *box)
        self.mouse("mouseReleased", *box)

    def mouse(self, kind: str, x: float, y: float) -> None:
        held = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)

    def drag(self, path: list[tuple[float, float]]) -> None:
        self.mouse("mouseMoved", *path[0])
        self.mouse("mousePressed", *path[0])
        for x, y in path[1:]:
            self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
        self.mouse("mouseReleased", *path[-1])

    def key(self, name: str) -> None:
        text = {"text": name} if len(name) == 1 else {}
        self._ask("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
        self._ask("Input.dispatchKeyEvent", type="keyUp", key=name)

    def type(self, text: str) -> None:
        self._ask("Input.insertText", text=text)

    def downloads_to(self, directory: Path) -> None:
        self._ask("Page.setDownloadBehavior", behavior="allow", downloadPath=str(directory))

    def download(self, directory: Path, name: str, start: Callable[[], None]) -> Path:
        """The file of that name, once it is whole."""
        self.downloads_to(directory)
        start()
        end = time.monotonic() + PATIENCE
        while not (directory / name).exists():
            if time.monotonic() > end:
                raise TimeoutError(f"{name} was not downloaded")
            self.run("0")
            time.sleep(0.05)
        return directory / name
