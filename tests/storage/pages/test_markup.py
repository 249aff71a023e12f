"""Whatever is not HTML already is text, and nothing invisible stays in it."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from storage.pages.markup import Markup, element, escape, join, one_line

HOSTILE = (
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "\" onmouseover=\"alert(1)",
    "' onfocus='alert(1)",
    "&lt;b&gt; &amp; &#60;",
    "]]><!-- --!>",
    "a\x00b\x1b[2Jc\x7f\x85",
    "\ud800 lone",
    "\u202egnp.exe\u2066",
    "\u2028line\u2029",
)  # fmt: skip


class Seen(HTMLParser):
    """Tags, attributes and text of a piece of HTML."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.values: list[str | None] = []
        self.text = ""
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [value for _, value in attributes]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text_in_content_and_attributes(text: str) -> None:
    seen = Seen(element("p", text, title=text))
    assert seen.tags == ["p"]
    assert seen.values == [seen.text]
    assert len(seen.text) >= len(text)
    assert "alert" not in text or "alert" in seen.text
    seen.text.encode()  # nothing that UTF-8 cannot hold


def test_what_no_eye_sees_is_written_out() -> None:
    assert escape("a\x00\x1b\u202e\ud800") == r"a\x00\x1b\u202e\ud800"
    assert escape("a\tb\nc\u00a0d\u3000e 🦉 é") == "a\tb\nc\u00a0d\u3000e 🦉 é"


def test_html_is_not_escaped_twice() -> None:
    inner = element("b", "1 < 2")
    assert inner == "<b>1 &lt; 2</b>"
    assert element("p", inner, " & ", None) == "<p><b>1 &lt; 2</b> &amp; </p>"
    assert isinstance(join(["<", inner]), Markup)
    assert join(["<", inner]) == "&lt;<b>1 &lt; 2</b>"


def test_attributes() -> None:
    made = element("input", type="radio", class_="a", aria_label="b", checked=True, disabled=False, value=0, id=None)
    assert made == '<input type="radio" class="a" aria-label="b" checked value="0">'


def test_line_breaks_become_signs() -> None:
    assert one_line("a\nb") == "a⏎ b"
    assert one_line("") == "∅"
