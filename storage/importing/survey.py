"""Read a source: its files, its checked texts, and what must be known of all of them before the first is written."""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from storage.disk.hashing import sha256_file
from storage.errors import ConfigError
from storage.importing.alignment import AlignmentGuard
from storage.importing.checks import checked
from storage.importing.config import ImportConfig
from storage.importing.errors import ImportSourceError, ImportTokenizerError
from storage.importing.formats import distillkit, topk_jsonl, topk_parquet
from storage.importing.source_text import CheckedText, SourceText
from storage.importing.tokenizer import ImportTokenizer
from storage.progress import Progress

_TABLES = (".parquet", ".arrow")
_JSON = (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".json")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source to be read any number of times.

    vocab_size: V, which all ids are below. fingerprint: hex sha256 over the sha256 of the files.
    """

    config: ImportConfig
    tokenizer: ImportTokenizer
    files: list[Path]
    vocab_size: int
    fingerprint: str

    def texts(self) -> Iterator[CheckedText]:
        """Yield every text, checked. Raise ImportRowError or ImportSourceError."""
        guard = AlignmentGuard()
        for path in self.files:
            for text in self._texts_of(path):
                if not text.lists_labels:
                    guard.add(text)
                yield checked(text, self.vocab_size, self.config.mass_tolerance)
        guard.close(str(self.config.source))

    @functools.cached_property
    def _texts_of(self) -> Callable[[Path], Iterator[SourceText]]:
        match self.config.format:
            case "topk-jsonl":
                return lambda path: topk_jsonl.texts(path, self.tokenizer)
            case "topk-parquet":
                return lambda path: topk_parquet.texts(path, self.config)
            case "distillkit":
                return lambda path: distillkit.texts(path, self.config)


def open_source(config: ImportConfig) -> Source:
    """Find the files and the tokenizer of an import.

    Raise ImportSourceError, ImportTokenizerError, or ConfigError for a --vocab-size that lacks ids of the tokenizer.
    """
    tokenizer = ImportTokenizer(config.tokenizer)
    if not tokenizer.num_ids:
        raise ImportTokenizerError(str(config.tokenizer), "has no tokens")
    if config.vocab_size is not None and config.vocab_size < tokenizer.num_ids:
        raise ConfigError(
            f"--vocab-size is {config.vocab_size:,}, but {config.tokenizer} has ids up to {tokenizer.num_ids - 1:,}"
        )
    files = _files(config)
    hashes = "".join(f"{sha256_file(path)}\n" for path in files)
    return Source(
        config=config,
        tokenizer=tokenizer,
        files=files,
        vocab_size=config.vocab_size or tokenizer.num_ids,
        fingerprint=hashlib.sha256(hashes.encode()).hexdigest(),
    )


def _files(config: ImportConfig) -> list[Path]:
    suffixes = _JSON if config.format == "topk-jsonl" else _TABLES
    if config.source.is_file():
        return [config.source]
    if not config.source.is_dir():
        raise ImportSourceError(str(config.source), "no such file or directory")
    found = sorted(path for path in config.source.rglob("*") if path.name.endswith(suffixes) and path.is_file())
    if not found:
        raise ImportSourceError(
            str(config.source), f"holds no file for --format {config.format}, expected {', '.join(suffixes)}"
        )
    return found


@dataclass(kw_only=True)
class Survey:
    """What all texts of a source add up to.

    num_tokens: tokens of each text with something to learn, in order. num_skipped: texts without. num_scaled: targets
    whose mass exceeded 1 by rounding. top_k: entries of the longest list. knows_labels: whether the log-probability of
    every label is known. begins_alike: whether every text begins as the tokenizer begins texts.
    """

    num_tokens: array[int] = field(default_factory=lambda: array("q"))
    num_skipped: int = 0
    num_scaled: int = 0
    num_targets: int = 0
    top_k: int = 0
    knows_labels: bool = True
    begins_alike: bool = True

    def add(self, text: CheckedText, beginning_ids: list[int]) -> None:
        """Count a text. beginning_ids: what the tokenizer puts before every text."""
        if not text.has_target:
            self.num_skipped += 1
            return
        self.num_tokens.append(len(text.input_ids))
        self.num_scaled += text.num_scaled
        self.num_targets += int(text.is_wanted.sum())
        self.top_k = max(self.top_k, int(text.size.max()))
        self.begins_alike &= text.input_ids[: len(beginning_ids)].tolist() == beginning_ids
        self.knows_labels &= not np.isnan(text.label_logprob).any()


def survey(source: Source) -> Survey:
    """Check every text of a source; raise ImportRowError, or ImportSourceError when there is nothing to learn."""
    found = Survey()
    with Progress(None, "check", "texts", quiet=source.config.quiet) as bar:
        for text in source.texts():
            found.add(text, source.tokenizer.beginning_ids)
            bar.update(1)
    if not found.num_tokens:
        what = f"{found.num_skipped} texts, none of which has a target" if found.num_skipped else "no text"
        raise ImportSourceError(str(source.config.source), f"holds {what}")
    return found
