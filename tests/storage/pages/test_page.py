"""A page is whole in itself, allows its own sheet alone, and is published or not at all."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from storage.errors import ConfigError
from storage.pages.markup import element
from storage.pages.page import THEME, Section, page, publish_page, require_file_name

VOID = {"br", "input", "meta"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed in the wrong place; remembers ids and what refers to them."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("aria-labelledby", "aria-describedby"):
                self.references += (value or "").split()
            if name == "href" and tag == "a":
                assert (value or "").startswith("#")
                self.references.append((value or "")[1:])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(content: bytes) -> None:
    """Tags close where they should, ids are unique, references resolve, nothing is fetched or run."""
    text = content.decode()
    seen = Balanced(text)
    assert len(seen.ids) == len(set(seen.ids))
    assert set(seen.references) <= set(seen.ids)
    assert not re.search(r"<(script|link|img|iframe|object|embed|form|base)\b", text)
    assert not re.search(r"\s(src|srcset|action|on\w+|style)=", re.sub(r">[^<]*<", "><", text))
    assert not re.search(r"@import|url\((?!#)", text)
    (sheet,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode()
    assert f"default-src &#x27;none&#x27;; style-src &#x27;sha256-{digest}&#x27;;" in text


def small_page(title: str = "T") -> bytes:
    section = Section(key="s", title="S < S", content=element("p", "x"))
    return page(title=title, lead=element("p", "lead"), sections=[section])


def test_a_page_is_whole_and_runs_nothing() -> None:
    check_page(small_page())
    assert small_page() == small_page()


def test_a_hostile_title_is_text() -> None:
    content = small_page("</title><script>alert(1)</script>\ud800\u202e")
    check_page(content)
    assert b"alert(1)" in content


def test_every_colour_of_the_sheet_is_in_the_theme() -> None:
    content = small_page().decode()
    assert set(re.findall(r"var\(--(\w+)\)", content)) <= THEME.keys()


def test_a_directory_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        publish_page(tmp_path, b"")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("1")
    with pytest.raises(ConfigError, match=r"page\.html is a file, not a directory"):
        require_file_name(tmp_path / "page.html" / "x" / "y.html")


def test_publishing_makes_directories_and_replaces(tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    publish_page(out, small_page("1"))
    publish_page(out, small_page("2"))
    assert out.read_bytes() == small_page("2")
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize("content", ["{}", "<!doctype html>\n<html><body>my own</body></html>"])
def test_what_is_no_page_of_ours_stays(tmp_path: Path, content: str) -> None:
    out = tmp_path / "manifest.json"
    out.write_text(content)
    for refused in (lambda: require_file_name(out), lambda: publish_page(out, small_page())):
        with pytest.raises(ConfigError, match=r"manifest\.json: holds something else than a report; name another file"):
            refused()
    assert out.read_text() == content
    out.write_text("")
    publish_page(out, small_page())
