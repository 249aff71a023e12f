"""Build HTML and escape every string that is not HTML already.

markupsafe, and with it htpy and jinja2, leave control characters and marks that change a text's direction unescaped.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable

# Elements that have no content and no end tag.
_VOID = frozenset(("br", "input", "meta"))


class Markup(str):
    """A piece of HTML. Any other string is text and is escaped."""

    __slots__ = ()


Child = str | None
Attribute = str | int | float | bool | None


def element(tag: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """Return an element with its children; escape those that are text and leave out None.

    attributes: `class_` becomes class, `aria_label` becomes aria-label. True gives an attribute without a value. None
    and False leave the attribute out.
    """
    written = "".join(map(_attribute, attributes.keys(), attributes.values()))
    if tag in _VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{join(children)}</{tag}>")


def join(children: Iterable[Child]) -> Markup:
    """Join children; escape those that are text and leave out None."""
    return Markup("".join(escape(child) for child in children if child is not None))


def escape(text: str) -> Markup:
    """Return text as HTML: escape tags and entities, and write invisible characters as `visible` does."""
    return text if isinstance(text, Markup) else Markup(html.escape(visible(text)))


def one_line(text: str) -> str:
    """Return text with ⏎ in place of each line break; for an empty text return ∅."""
    return text.replace("\n", "⏎ ") or "∅"


def visible(text: str) -> str:
    r"""Return text in which control characters, lone surrogates and direction marks are written as \u202e is here."""
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
