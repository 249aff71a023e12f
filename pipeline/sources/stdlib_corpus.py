"""A corpus that every machine has: the docstrings in the standard library of the Python that runs this.

The modules are parsed, never imported or run.
"""

from __future__ import annotations

import ast
import functools
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "lib2to3"}


@functools.cache
def stdlib_documents() -> tuple[str, ...]:
    """Return one document per module: its docstrings in source order, each under the name it documents.

    The documents are a few megabytes. They stay in memory because parsing takes seconds and every run reads them twice.
    """
    return tuple(docstring_documents(Path(sysconfig.get_paths()["stdlib"])))


def docstring_documents(root: Path) -> Iterator[str]:
    """Yield one document for each module below `root` that has docstrings."""
    for path in sorted(root.rglob("*.py")):
        if _LEFT_OUT.isdisjoint(path.relative_to(root).parts):
            text = "\n\n".join(module_docstrings(path))
            if text:
                yield text + "\n"


def module_docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a module in source order, each under a line with the name that it documents."""
    try:
        module = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in sorted(ast.walk(module), key=lambda node: getattr(node, "lineno", 0)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and docstring.strip():
                name = path.stem if isinstance(node, ast.Module) else _heading(node)
                yield f"{name}\n{docstring}"


def _heading(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    return f"def {node.name}({ast.unparse(node.args)})"
