"""A text that is tokenized in parts gives the bytes of one part, wherever the parts end."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import PrecomputeConfig
from pipeline.corpus import long_texts
from pipeline.corpus.tokenization import tokenize_corpus
from pipeline.sources import parts as source_parts
from pipeline.sources.corpus import open_corpus
from tests.storage.text.families import FAMILIES, awkward_text, tokenizer_of

PART_BYTES = 3000


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "WINDOW_CHARS", 900)
    monkeypatch.setattr(long_texts, "OVERLAP_CHARS", 400)


@pytest.fixture
def bytes_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[str, str]]]:
    """Tokenizes a source in parts of so many bytes; their number, and what every file of the stores holds."""

    def bytes_of(tokenizer: Any, source: Path, part_bytes: int, **settings: Any) -> tuple[int, dict[str, str]]:
        monkeypatch.setattr(source_parts, "PART_BYTES", part_bytes)
        config = PrecomputeConfig(
            teacher="unused", data=str(source), out="unused", block_size=8, quiet=True, **settings
        )
        corpus = open_corpus(config)
        work_dir = tmp_path / f"{random.randbytes(8).hex()}" / "tokens"
        tokenize_corpus(corpus, tokenizer, config, vocab_size=len(tokenizer) + 2, context_length=64, work_dir=work_dir)
        files = {
            path.relative_to(work_dir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(work_dir.rglob("*"))
            if path.is_file()
        }
        assert [path.name for path in work_dir.parent.iterdir() if path.name != "claims"] == ["tokens"]
        return len(corpus.parts(tokenizer.is_fast and config.max_tokens is None)), files

    return bytes_of


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("separator", [None, "\\n", "\\n\\n", "e", "漢"])
def test_text(bytes_of: Callable[..., Any], tmp_path: Path, family: str, separator: str | None) -> None:
    path = tmp_path / "a.txt"
    path.write_text(awkward_text(random.Random(3), 20_000))
    tokenizer = tokenizer_of(family)
    num_parts, found = bytes_of(tokenizer, path, PART_BYTES, document_separator=separator)
    assert num_parts > 3
    assert found == bytes_of(tokenizer, path, 1 << 30, document_separator=separator)[1]
