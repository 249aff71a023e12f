from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import storage

HEAVY = ("torch", "transformers", "datasets", "tokenizers", "pandas")
SOURCES = sorted(Path(storage.__path__[0]).glob("*.py"))


@pytest.mark.parametrize("module", ["storage", "storage.cli"])
def test_importing_storage_pulls_in_nothing_heavy(run_python: Callable[..., Any], module: str) -> None:
    done = run_python(f"import sys, {module}; print(sorted(set(sys.argv[1:]) & set(sys.modules)))", *HEAVY)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_storage_imports_neither_pipeline_nor_student_nor_torch(path: Path) -> None:
    forbidden = {"pipeline", "student", "torch", "transformers"}
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                modules = {alias.name.partition(".")[0] for alias in names}
            case ast.ImportFrom(module=str(name)):
                modules = {name.partition(".")[0]}
            case _:
                continue
        assert not modules & forbidden


def test_the_public_surface_is_all_there() -> None:
    assert storage.__all__ == sorted(storage.__all__)
    for name in storage.__all__:
        assert getattr(storage, name).__module__.startswith("storage.")


def test_every_error_has_the_base_and_is_drawn_in_the_tree() -> None:
    from storage import errors

    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, errors.TeachonceError), name
            assert name in str(errors.__doc__), name
