"""What must stay true of the whole: who imports whom, and what each package offers."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "storage": {"pipeline", "student", "torch", "transformers"},
    "pipeline": {"student"},
    "student": {"pipeline"},
}


def imported_names(source: str) -> Iterator[str]:
    """Every module named by an import statement, or by a call of import_module, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            yield from (str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))


def test_the_guard_sees_lazy_and_plain_imports() -> None:
    source = "import a.b\ndef f():\n    from c import d\n    import importlib\n    importlib.import_module('e')\n"
    assert set(imported_names(source)) == {"a.b", "c", "importlib", "e"}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_in_one_direction(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 10
    found = {
        (str(file.relative_to(ROOT)), name)
        for file in files
        for name in imported_names(file.read_text())
        if name.partition(".")[0] in FORBIDDEN[package]
    }
    assert not found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_everything_in_all_is_there_and_sorted(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__all__
    assert sorted(module.__all__) == sorted(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", FORBIDDEN)
def test_every_module_can_be_imported(package: str) -> None:
    for file in sorted((ROOT / package).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        try:
            importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        except ModuleNotFoundError as error:
            if error.name != "llama_cpp":  # the extra llama, which is compiled for minutes
                raise
