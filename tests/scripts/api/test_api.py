from __future__ import annotations

import pipeline
import storage
import student
from scripts.api.page import PAGE, render


def test_the_page_is_that_of_the_docstrings() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run python -m scripts.api"


def test_every_public_name_has_an_entry_with_its_docstring() -> None:
    page = render()
    for package in (pipeline, storage, student):
        for name in package.__all__:
            entry = page.split(f"### {package.__name__}.{name}\n")[1].split("\n### ")[0]
            assert str(getattr(package, name).__doc__).splitlines()[0] in entry
    assert "batch_rows: int,\n" in page
    assert "*,\n" in page
