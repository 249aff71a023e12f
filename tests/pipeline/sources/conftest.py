"""Opens data as a run does, and reads its documents as texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import PrecomputeConfig
from pipeline.sources.corpus import Corpus, open_corpus


@pytest.fixture
def open_data(tmp_path: Path) -> Callable[..., Corpus]:
    def open_data(data: Path | str, **changes: object) -> Corpus:
        return open_corpus(PrecomputeConfig(teacher="unused", data=str(data), out=tmp_path / "unused", **changes))

    return open_data


@pytest.fixture
def read(open_data: Callable[..., Corpus]) -> Callable[..., list[str]]:
    def read(data: Path | str, **changes: object) -> list[str]:
        return ["".join(document.pieces) for document in open_data(data, **changes).documents()]

    return read
