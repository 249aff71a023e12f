"""HTML that escapes whatever is not HTML already.

markupsafe, and with it htpy and jinja2, leave control characters and marks that turn a text's direction as they are.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable

# Elements that have no content and no end tag.
_VOID = frozenset(("br", "input", "meta"))


class Markup(str):
    """A piece of HTML. Any other string is text."""

    __slots__ = ()


Child = str | None
Attribute = str | int | float | bool | None


def element(tag: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """An element with children, text among them escaped, None left out.

    attributes: `class_` is written class, `aria_label` aria-label; True is an attribute without a value, None and
    False are left out.
    """
    written = "".join(map(_attribute, attributes.keys(), attributes.values()))
    if tag in _VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{join(children)}</{tag}>")


def join(children: Iterable[Child]) -> Markup:
    """Children one after the other, text among them escaped, None left out."""
    return Markup("".join(escape(child) for child in children if child is not None))


def escape(text: str) -> Markup:
    """Text as HTML: nothing in it is a tag or an entity, and characters that no eye sees are written out."""
    return text if isinstance(text, Markup) else Markup(html.escape(visible(text)))


def one_line(text: str) -> str:
    """Text with a sign for each line break instead of the break."""
    return text.replace("\n", "⏎ ") or "∅"


def visible(text: str) -> str:
    r"""Text with control characters, lone surrogates and marks that turn its direction written as \u202e."""
    if text.isprintable():
        return text
    return "".join(c if _is_plain(c) else c.encode("unicode_escape").decode() for c in text)


def _is_plain(character: str) -> bool:
    return character.isprintable() or character in "\n\t" or unicodedata.category(character) == "Zs"


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    written = name.rstrip("_").replace("_", "-")
    return f" {written}" if value is True else f' {written}="{escape(str(value))}"'
