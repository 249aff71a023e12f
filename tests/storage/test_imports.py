from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import storage

HEAVY = ("torch", "transformers", "datasets", "tokenizers", "pandas", "pyarrow.dataset")


@pytest.mark.parametrize("module", ["storage", "storage.cli"])
def test_importing_storage_pulls_in_nothing_heavy(run_python: Callable[..., Any], module: str) -> None:
    done = run_python(f"import sys, {module}; print(sorted(set(sys.argv[1:]) & set(sys.modules)))", *HEAVY)
    assert done.stdout == "[]\n", done.stderr


def test_the_public_surface_is_all_there() -> None:
    assert storage.__all__ == sorted(storage.__all__)
    for name in storage.__all__:
        assert getattr(storage, name).__module__.startswith("storage.")


def test_every_error_has_the_base_and_is_drawn_in_the_tree() -> None:
    from storage import errors

    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert name in str(errors.__doc__), name
            if value is not errors.StoppedError:  # it ends a thread, and nobody sees it
                assert issubclass(value, errors.TeachonceError), name
