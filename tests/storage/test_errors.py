"""The one line that is made of another library's message."""

from __future__ import annotations

import pytest

from storage.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("plain", "plain"),
        ("first\nsecond", "first"),
        ("\n\n  first  \nsecond", "first"),
        ("Error for field 'n_layer':\n    TypeError: got str\nmore", "Error for field 'n_layer': TypeError: got str"),
        ("Errors:\n\nin layers:\n\tsize 3, expected 4", "Errors: in layers: size 3, expected 4"),
        ("only a heading:", "only a heading"),
        ("", "ValueError"),
    ],
)  # fmt: skip
def test_the_first_line_that_holds_a_reason(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
