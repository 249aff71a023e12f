"""Render the public names with their signatures and docstrings as Markdown."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import student
from storage.errors import TeachonceError

PAGE = Path(student.__file__).parents[1] / "docs" / "api.md"
_PACKAGES = ("pipeline", "storage", "student")
_SPECIAL_METHODS = ("__init__", "__iter__", "__len__")
_TOP = """# Public names

What is listed here keeps its names and meanings. Everything else may change. Names that need torch are imported when
they are first used, so `import student` and `import storage` take less than a second.

This page is made from the docstrings by `python -m scripts.api`.
"""


def render() -> str:
    """Return the page."""
    return "\n".join([_TOP, *(line for name in _PACKAGES for line in _package(importlib.import_module(name)))])


def _package(package: Any) -> Iterator[str]:
    yield f"## {package.__name__}\n\n{inspect.getdoc(package)}\n"
    for name in package.__all__:
        yield from _entry(f"{package.__name__}.{name}", getattr(package, name))


def _entry(name: str, value: Any) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"### {name}\n\n{_code(name, value)}\n\n{inspect.getdoc(value)}\n"
        return
    yield f"### {name}\n"
    if not issubclass(value, TeachonceError):
        yield f"{_code(name, value.__init__)}\n"
    yield f"{inspect.getdoc(value)}\n"
    for method_name, method in vars(value).items():
        text = inspect.getdoc(method) if _is_public(method_name, method) else None
        if text and text != inspect.getdoc(object.__init__):
            yield from _method(method_name, method, text)


def _is_public(name: str, member: Any) -> bool:
    is_code = inspect.isfunction(member) or isinstance(member, property | classmethod)
    return is_code and (name in _SPECIAL_METHODS or not name.startswith("_"))


def _method(name: str, member: Any, text: str) -> Iterator[str]:
    if name == "__init__":
        yield f"{text}\n"
    elif isinstance(member, property):
        yield f"#### {name}\n\n{text}\n"
    else:
        yield f"#### {name}\n\n{_code(name, getattr(member, '__func__', member))}\n\n{text}\n"


def _code(name: str, function: Callable[..., Any]) -> str:
    """Return a call of a function as a block of code, with types, one argument a line when there are several."""
    signature = inspect.signature(function)
    arguments = list(_arguments(signature))
    inside = (
        ", ".join(arguments) if len(arguments) < 3 else "".join(f"\n    {argument}," for argument in arguments) + "\n"
    )
    returns = signature.return_annotation
    arrow = "" if returns in (inspect.Signature.empty, "None", None) else f" -> {returns}"
    return f"```python\n{name}({inside}){arrow}\n```"


def _arguments(signature: inspect.Signature) -> Iterator[str]:
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    is_marked = False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        is_marked |= parameter.kind is inspect.Parameter.VAR_POSITIONAL
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not is_marked:
            is_marked = True
            yield "*"
        default = "" if parameter.default is inspect.Parameter.empty else f" = {_default(parameter.default)}"
        yield f"{stars.get(parameter.kind, '')}{parameter.name}: {parameter.annotation}{default}"


def _default(value: Any) -> str:
    """Return a default as it is written, without what differs between machines and versions."""
    is_plain = value is None or isinstance(value, bool | int | float | str | tuple)
    return repr(value) if is_plain else "…"
