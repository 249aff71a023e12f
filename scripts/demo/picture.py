"""A picture of the page, where a Chromium is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SIZE = "1280,1500"


def take_picture(page: Path) -> None:
    """Write the top of the page beside it, as a .png. Do nothing without a browser."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        return
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                f"--user-data-dir={profile}", f"--window-size={_SIZE}",
                f"--screenshot={page.with_suffix('.png').resolve()}", page.resolve().as_uri(),
            ],
            capture_output=True,
            check=False,
        )  # fmt: skip
