"""Shared by the tests of imports: a made-up teacher over bytes, its tokenizer, and an import of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from storage import Cache
from storage.importing.config import ImportConfig
from storage.importing.run import import_cache
from storage.importing.tokenizer import ImportTokenizer
from tests.storage.importing.dumps import MadeUpTeacher

Import = Callable[..., Cache]


@pytest.fixture(scope="session")
def tokenizer_dir(helpers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 bytes and an end of text, 257 ids."""
    directory = tmp_path_factory.mktemp("tokenizer")
    helpers.make_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def text_of(tokenizer_dir: Path) -> Callable[[int], str]:
    return ImportTokenizer(tokenizer_dir).text_of


@pytest.fixture(scope="session")
def made_up() -> MadeUpTeacher:
    return MadeUpTeacher(257)


@pytest.fixture
def imported(tokenizer_dir: Path, tmp_path: Path) -> Import:
    """Import a source with one block a text or so, nothing held out."""

    def run(source: Path, source_format: str, **changes: Any) -> Cache:
        settings: dict[str, Any] = {"out": tmp_path / "cache", "validation_fraction": 0.0, "tokenizer": tokenizer_dir}
        config = ImportConfig(source=source, format=source_format, quiet=True, **(settings | changes))  # type: ignore[arg-type]
        return import_cache(config).cache

    return run
