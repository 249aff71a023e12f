"""docs/loops.md shows the recipes as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.places import ROOT

FILES = sorted(path for path in (ROOT / "scripts" / "loops").glob("*.py") if not path.stem.startswith("__"))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_the_page_holds_the_code_of_a_recipe(file: Path) -> None:
    assert f"```python\n{file.read_text()}```\n" in (ROOT / "docs" / "loops.md").read_text()
