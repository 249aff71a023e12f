"""Lay out a page: its HTML and its colours in light and dark mode."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.disk.files import may_replace, write_file
from storage.errors import ConfigError
from storage.pages.markup import Markup, element, one_line
from storage.remote.directory import require_local

_BEGINNING = b'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy"'
# Colours in light mode and in dark mode. Colours of text have a contrast of at least 4.5 on both `ground` and `panel`.
THEME = {
    "ground": ("#ffffff", "#14171c"),
    "panel": ("#f5f6f8", "#1c2027"),
    "line": ("#d9dce2", "#343a45"),
    "text": ("#1b1e24", "#e8eaee"),
    "muted": ("#565d69", "#a4abb8"),
    "link": ("#0b5cad", "#7cb8ff"),
    "series0": ("#a84300", "#ff9f5a"),
    "series1": ("#0b62c4", "#6cb0ff"),
    "series2": ("#1a7a45", "#5ed396"),
    "series3": ("#8a35d6", "#c9a2ff"),
    "series4": ("#b3145c", "#ff86b7"),
    "series5": ("#5c6470", "#b9c0cc"),
    "heat1": ("#fdeee0", "#33261c"),
    "heat2": ("#fbd9b8", "#4d3520"),
    "heat3": ("#f6bd86", "#6e4620"),
    "heat4": ("#ee9d52", "#8a5520"),
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page, to which the list of contents links. key: its id in the page."""

    key: str
    title: str
    content: Markup


def page(*, title: str, lead: Markup, sections: Sequence[Section]) -> bytes:
    """Return a whole page in UTF-8. It runs no script and fetches nothing. The same arguments give the same bytes."""
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Markup(style)),
    )
    contents = element(
        "nav",
        element("ul", *[element("li", element("a", s.title, href=f"#{s.key}")) for s in sections]),
        aria_label="Contents",
    )
    body = element(
        "body",
        element("header", element("h1", title), lead),
        contents,
        element("main", *[_section(section) for section in sections]),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n".encode()


def publish_page(out: Path, content: bytes) -> None:
    """Write a page; raise ConfigError as require_file_name does, WriteRefusedError when the write is refused."""
    require_file_name(out)
    write_file(out, content)


def require_file_name(out: Path) -> None:
    """Raise ConfigError when --out cannot become a page, or is a file that is no report. Call it before long work."""
    require_local(out)
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a directory; name a file, such as {out / 'report.html'}")
    if not may_replace(out, _BEGINNING):
        raise ConfigError(f"--out {out}: holds something else than a report; name another file")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ConfigError(f"--out {out}: {above} is a file, not a directory; name another place")


def grid(*figures: Markup | None) -> Markup:
    """Lay out figures side by side where there is room, and one below the other on a phone."""
    return element("div", *figures, class_="grid")


def quotation(text: str) -> Markup:
    """Return a text from the data as a quotation on one line."""
    return element("blockquote", one_line(text))


def note(*children: str) -> Markup:
    """Return a paragraph of small print."""
    return element("p", *children, class_="note")


def _section(section: Section) -> Markup:
    heading = element("h2", section.title, id=f"{section.key}-title")
    return element("section", heading, section.content, id=section.key, aria_labelledby=f"{section.key}-title")


def _style() -> str:
    light, dark = ("".join(f"--{name}:{colours[mode]};" for name, colours in THEME.items()) for mode in (0, 1))
    return (
        f":root{{color-scheme:light dark;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f"{(Path(__file__).parent / 'page.css').read_text()}"
    )
