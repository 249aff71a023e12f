"""Open the data source: the standard library, files, or the Hugging Face hub.

A row is a document. A plain text file is one document unless --document-separator splits it. Plain text, JSON lines,
Parquet and hub data are streamed, so memory does not grow with the corpus.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import PrecomputeConfig
from pipeline.errors import NoSuchDataError
from pipeline.sources.data_files import format_of, is_hub_id
from pipeline.sources.directories import find_below
from pipeline.sources.documents import Document, Part
from pipeline.sources.parts import file_parts
from pipeline.sources.rows import UNREADABLE, columns_of, row_documents
from pipeline.sources.stdlib_corpus import stdlib_documents
from storage.disk.hashing import sha256_file
from storage.errors import ConfigError, first_line
from storage.progress import tell

STDLIB = "stdlib"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A data source.

    parts: returns its parts in order, a pure function of data and settings; whether one may end inside a document is
    the caller's choice. files: those of which it consists, in order.
    """

    source: str
    fingerprint_of: Callable[[], str]
    licence: str | None
    parts: Callable[[bool], Sequence[Part]]
    files: Sequence[Path] = ()

    @functools.cached_property
    def fingerprint(self) -> str:
        """A sha256 of all bytes of the source, or of its name and commit on the hub."""
        return self.fingerprint_of()

    def documents(self) -> Iterator[Document]:
        """Yield every document from the beginning. Read the pieces of one before you take the next."""
        for part in self.parts(False):
            yield from part.documents()


def open_corpus(config: PrecomputeConfig) -> Corpus:
    """Open the corpus that --data names. Raises NoSuchDataError, or ConfigError for a prompt column of plain text."""
    if config.data == STDLIB:
        _require_no_columns(config)
        return _stdlib_corpus()
    path = Path(config.data)
    if path.exists():
        return _file_corpus(config, path)
    if not is_hub_id(config.data):
        raise NoSuchDataError(config.data, "no such file or directory")
    return _hub_corpus(config)


def _stdlib_corpus() -> Corpus:
    return Corpus(
        source="the docstrings of the Python standard library",
        fingerprint_of=_stdlib_fingerprint,
        licence="psfl",
        parts=lambda _: [Part(documents=_stdlib_documents)],
    )


def _stdlib_fingerprint() -> str:
    digest = hashlib.sha256()
    for document in stdlib_documents():
        digest.update(document.encode(errors="replace"))
    return digest.hexdigest()


def _stdlib_documents() -> Iterator[Document]:
    return (Document(pieces=[text], prompts={}) for text in stdlib_documents())


def _file_corpus(config: PrecomputeConfig, path: Path) -> Corpus:
    files = _data_files(path)
    if not files or not all(format_of(file) for file in files):
        raise NoSuchDataError(config.data, "no file of a known kind")
    if all(format_of(file) == "text" for file in files):
        _require_no_columns(config)
    return Corpus(
        source=path.resolve().name,
        fingerprint_of=functools.partial(_files_fingerprint, files),
        licence=None,
        parts=lambda splits_documents: file_parts(config, files, splits_documents=splits_documents),
        files=files,
    )


def _files_fingerprint(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _data_files(path: Path) -> list[Path]:
    """Return the file itself, or the data files below a directory. Print which files there cannot be read."""
    if path.is_file():
        return [path]
    found = find_below(path)
    if found.unread:
        tell(found.describe_unread(path))
    return found.files


def _require_no_columns(config: PrecomputeConfig) -> None:
    """Raise ConfigError when something is to come from a column: plain text has none."""
    if config.marks_wanted:
        flag, column = next(iter(config.document_columns.items()))
        raise ConfigError(
            f"{flag} {column}: --data {config.data} is plain text, which has no columns; "
            "give jsonl, parquet or hub data"
        )
    for kind, settings in config.prompt_settings.items():
        if kind in config.kinds and settings.prompt_column is not None:
            raise ConfigError(
                f"--{kind}.prompt-column {settings.prompt_column}: --data {config.data} is plain text, which has no "
                "columns; leave it out, or give jsonl, parquet or hub data"
            )


def _hub_corpus(config: PrecomputeConfig) -> Corpus:
    name = config.data.partition(":")[0]
    commit, rows = _hub_commit(config, name), load_hub(config)
    return Corpus(
        source=config.data,
        fingerprint_of=lambda: hashlib.sha256(f"{config.data} {commit}".encode()).hexdigest(),
        licence=rows.info.license or None,
        parts=lambda _: [_hub_part(config, rows, index) for index in range(rows.num_shards)],
    )


def _hub_part(config: PrecomputeConfig, rows: Any, index: int) -> Part:
    """Return the part of a hub data set that is one of its shards, mostly a file."""
    place = config.data if rows.num_shards == 1 else f"{config.data}, shard {index}"
    open_rows = functools.partial(hub_rows, config, rows, index)
    return Part(documents=functools.partial(row_documents, config, place, open_rows))


def hub_rows(config: PrecomputeConfig, rows: Any, index: int) -> tuple[list[str], Iterable[dict[str, Any]]]:
    """Return the names of the columns, and the rows of a shard with the asked ones: pictures are not decoded.

    rows: of load_hub, which asks the hub for its files.
    """
    shard = rows.shard(num_shards=rows.num_shards, index=index)
    names = shard.column_names or []
    columns = columns_of(config)
    return names, shard.select_columns([name for name in names if name in columns]) if names else shard


def _hub_commit(config: PrecomputeConfig, name: str) -> str:
    import huggingface_hub

    try:
        return str(huggingface_hub.dataset_info(name).sha)
    except (OSError, huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError) as error:
        raise NoSuchDataError(config.data, f"has no commit on the hub: {first_line(error)}") from error


def load_hub(config: PrecomputeConfig) -> Any:
    """Return the rows as a stream of `datasets`. Raises NoSuchDataError."""
    import datasets
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # errors are logged and raised: show them once
    name, _, subset = config.data.partition(":")
    try:
        return datasets.load_dataset(name, name=subset or None, split="train", streaming=True)
    except StopIteration as error:
        raise NoSuchDataError(config.data, "cannot be loaded: holds no rows, or is cut short") from error
    except UNREADABLE as error:
        reason = f"is no file or directory here, and cannot be loaded from the hub: {first_line(error)}"
        raise NoSuchDataError(config.data, reason) from error
