"""What README, docs and docstrings tell readers to start is there."""

from __future__ import annotations

import importlib.util
import re

import pytest

from tests.places import ROOT

FILES = [
    ROOT / "README.md",
    *(path for folder in ("docs", "scripts", "storage", "pipeline", "student") for path in (ROOT / folder).rglob("*")),
]
MODULES = sorted(
    {
        name
        for path in FILES
        if path.suffix in (".md", ".py", ".sh")
        for name in re.findall(r"python -m (scripts(?:\.\w+)+)", path.read_text())
    }
)


@pytest.mark.parametrize("module", MODULES)
def test_a_documented_module_can_be_found(module: str) -> None:
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.submodule_search_locations is None or importlib.util.find_spec(f"{module}.__main__") is not None


def test_every_program_is_documented() -> None:
    programs = {path.parent.name for path in (ROOT / "scripts").glob("*/__main__.py")}
    assert programs == {name.split(".")[1] for name in MODULES} - {"study", "support"}
