"""A headless Chromium for tests of web pages, and a record of what a page complains about or asks for.

Needs Debian's `chromium` (or another Chromium or Chrome on the path) and the Python package playwright, whose wheel
brings its driver; no browser is downloaded.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str | None:
    """The Chromium or Chrome on the path."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextlib.contextmanager
def headless_chromium() -> Iterator[Browser]:
    """A browser for some tests; they are skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    executable = chromium()
    if executable is None:
        pytest.skip("no Chromium on the path (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class Visit:
    """A page, the errors it has logged or thrown, and the addresses it has asked for since it was opened."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def open(self, address: Path | str) -> None:
        """Load a file or an address."""
        self.page.goto(address.resolve().as_uri() if isinstance(address, Path) else address)


@contextlib.contextmanager
def visiting(
    browser: Browser, *, width: int = 1280, height: int = 900, dark: bool = False, script: bool = True
) -> Iterator[Visit]:
    """A fresh page of this size in CSS pixels, light or dark, with or without script."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        has_touch=width < 600,
        java_script_enabled=script,
    )
    try:
        visit = Visit(context.new_page())
        visit.page.on("console", lambda message: visit.errors.append(message.text) if message.type == "error" else None)
        visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        yield visit
    finally:
        context.close()
