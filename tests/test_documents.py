"""Paths that README, docs and FORMAT.md name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.places import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "storage" / "FORMAT.md"]
REPOSITORY_PATH = re.compile(r"`((?:pipeline|storage|student|scripts|tests|docs)/[^\s`]*)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_only_paths_that_exist(document: Path) -> None:
    paths = REPOSITORY_PATH.findall(document.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_paths_are_recognised() -> None:
    assert REPOSITORY_PATH.findall("`docs/x.md`, `scripts/`, `student`, `s3://docs/x`") == ["docs/x.md", "scripts/"]
