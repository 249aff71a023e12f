"""Text in Markdown."""

from __future__ import annotations

import pytest

from storage.pages.markdown import inline_code


@pytest.mark.parametrize(
    ("text", "expected"), [("a *b* <i>", "`a *b* <i>`"), ("`x`\n# y", "`'x' # y`"), (3, "`3`"), (None, "`None`")]
)
def test_nothing_is_markup(text: object, expected: str) -> None:
    assert inline_code(text) == expected
