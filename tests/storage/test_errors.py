"""The one line that is made of another library's message."""

from __future__ import annotations

import inspect
import pickle

import pytest

from storage import errors
from storage.errors import TeachonceError, first_line


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


def test_every_error_comes_whole_from_another_process() -> None:
    classes = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, TeachonceError)]
    for error_class in classes:
        takes = (
            inspect.signature(error_class.__init__).parameters if "__init__" in vars(error_class) else ("self", "said")
        )
        error = error_class(*(7 if "bytes" in name else name for name in list(takes)[1:]))
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
    assert len(classes) > 25
