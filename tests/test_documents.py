"""Paths that README, docs and FORMAT.md name exist, and their commands can be typed in the checkout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.places import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "storage" / "FORMAT.md"]
REPOSITORY_PATH = re.compile(r"`((?:pipeline|storage|student|scripts|tests|docs)/[^\s`]*)`")
WRITTEN = re.compile(r"(?:--out|cache start) ([\w.-]+)(?=\s)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_only_paths_that_exist(document: Path) -> None:
    paths = REPOSITORY_PATH.findall(document.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_command_writes_into_a_folder_of_the_repository(document: Path) -> None:
    """Commands are typed in the checkout, where `student` is a package."""
    written = WRITTEN.findall(document.read_text())
    assert {"pipeline", "storage", "student", "scripts", "tests", "docs"}.isdisjoint(written)


def test_what_commands_write_is_recognised() -> None:
    assert WRITTEN.findall("train cache --out student --x\nplain cache start c\n") == ["student", "c"]


def test_paths_are_recognised() -> None:
    assert REPOSITORY_PATH.findall("`docs/x.md`, `scripts/`, `student`, `s3://docs/x`") == ["docs/x.md", "scripts/"]
