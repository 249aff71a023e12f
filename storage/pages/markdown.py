"""Put text into Markdown, of which cards are made."""

from __future__ import annotations


def inline_code(value: object) -> str:
    """Return untrusted text as inline code, in which nothing is markup."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return f"`{text.replace('`', chr(39))}`"
