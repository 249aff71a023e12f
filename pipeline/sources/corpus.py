"""Open the data source: the standard library, files, or the Hugging Face hub.

A row is a document. A plain text file is one document unless --document-separator splits it. Plain text, JSON lines,
Parquet and hub data are streamed, so memory does not grow with the corpus.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from pipeline.config import PrecomputeConfig
from pipeline.errors import ColumnError, NoSuchDataError
from pipeline.sources.data_files import format_of, is_hub_id, open_binary, refuse_utf16
from pipeline.sources.directories import find_below
from pipeline.sources.json_rows import json_rows
from pipeline.sources.stdlib_corpus import stdlib_documents
from pipeline.sources.tables import table_rows
from pipeline.sources.turns import Conversation, Pair, turns_of
from storage.disk.hashing import sha256_file
from storage.errors import ConfigError, TeachonceError, first_line
from storage.progress import tell

STDLIB = "stdlib"
# Plain text is read in pieces of this many characters.
_PIECE_CHARS = 1 << 18
# Single rows may lack the text column. Stop after this many rows if none has it: the name is probably wrong.
_MOST_ROWS_WITHOUT = 1000
# The decoder replaces bytes that are not UTF-8 by this character.
_REPLACEMENT = "\ufffd"
# Errors that datasets and its parsers raise for files that are cut short, empty or of another format.
UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zstandard.ZstdError)

Prompt = str | list[dict[str, Any]]
# Returns the names of all columns (none when only the rows tell), and the rows. Raises what UNREADABLE lists.
OpenRows = Callable[[], tuple[list[str], Iterable[dict[str, Any]]]]


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document: its text in pieces, cut anywhere, and its prompts by column (empty for plain text).

    turns: what a row holds in place of a text; pieces is empty then. place: source and row, for messages about it.
    """

    pieces: Iterable[str]
    prompts: dict[str, Prompt]
    turns: Conversation | Pair | None = None
    place: str = ""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A data source. Each call of `documents()` reads it from the beginning. files: in order; none but for files.

    Read the pieces of a document before you take the next document: plain text is split as it is read.
    """

    source: str
    fingerprint_of: Callable[[], str]
    licence: str | None
    documents: Callable[[], Iterator[Document]]
    files: Sequence[Path] = ()

    @functools.cached_property
    def fingerprint(self) -> str:
        """A sha256 of all bytes of the source, or of its name and commit on the hub."""
        return self.fingerprint_of()


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
        documents=lambda: (Document(pieces=[text], prompts={}) for text in stdlib_documents()),
    )


def _stdlib_fingerprint() -> str:
    digest = hashlib.sha256()
    for document in stdlib_documents():
        digest.update(document.encode(errors="replace"))
    return digest.hexdigest()


def _file_corpus(config: PrecomputeConfig, path: Path) -> Corpus:
    files = _data_files(path)
    if not files or not all(format_of(file) for file in files):
        raise NoSuchDataError(config.data, "no file of a known kind")
    if all(format_of(file) == "text" for file in files):
        _require_no_columns(config)

    def documents() -> Iterator[Document]:
        for file in files:
            match format_of(file):
                case "text":
                    yield from _text_documents(file, config.document_separator)
                case "json":
                    yield from row_documents(config, str(file), functools.partial(_json_rows, file))
                case _:
                    open_rows = functools.partial(table_rows, file, columns_of(config))
                    yield from row_documents(config, str(file), open_rows)

    return Corpus(
        source=path.resolve().name,
        fingerprint_of=functools.partial(_files_fingerprint, files),
        licence=None,
        documents=documents,
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
    commit = _hub_commit(config, config.data.partition(":")[0])
    return Corpus(
        source=config.data,
        fingerprint_of=lambda: hashlib.sha256(f"{config.data} {commit}".encode()).hexdigest(),
        licence=load_hub(config).info.license or None,
        documents=lambda: row_documents(config, config.data, functools.partial(hub_rows, config)),
    )


def hub_rows(
    config: PrecomputeConfig, index: int = 0, num_shards: int = 1
) -> tuple[list[str], Iterable[dict[str, Any]]]:
    """Return the names of the columns and the rows with the asked ones: pictures and sounds are not decoded.

    index: of one of num_shards parts of the data set's files.
    """
    rows = load_hub(config)
    if num_shards > 1:
        rows = rows.shard(num_shards=num_shards, index=index)
    names = rows.column_names or []
    columns = columns_of(config)
    return names, rows.select_columns([name for name in names if name in columns]) if names else rows


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


def _json_rows(path: Path) -> tuple[list[str], Iterator[dict[str, Any]]]:
    return [], json_rows(path)


def columns_of(config: PrecomputeConfig) -> set[str]:
    """Return the names of the columns that a run reads."""
    return _prompt_columns(config).union(config.document_columns.values())


def _prompt_columns(config: PrecomputeConfig) -> set[str]:
    return {kind.prompt_column for kind in config.prompt_settings.values() if kind.prompt_column}


def row_documents(config: PrecomputeConfig, source: str, open_rows: OpenRows) -> Iterator[Document]:
    """Yield the documents of rows. source: their place, for messages. Raises NoSuchDataError or ColumnError."""
    wanted = _prompt_columns(config)
    # A conversation or a pair has to be in every row, unless bad rows are skipped.
    most_without = 1 if config.marks_wanted and config.on_bad_row == "stop" else _MOST_ROWS_WITHOUT
    try:
        column_names, rows = open_rows()
        number, names = 0, set(column_names)
        for number, row in enumerate(rows, 1):
            names |= row.keys()
            if number == most_without and not names.issuperset(config.document_columns.values()):
                break
            turns, place = turns_of(config, row), f"{source}: row {number}"
            # With conversations and pairs, the tokenizer says which rows are bad: such rows may be skipped.
            prompts: dict[str, Any] = {
                c: row.get(c) if turns else _prompt(source, row, c, number, names) for c in wanted
            }
            pieces = [] if turns else [_text(config, source, row, number)]
            yield Document(pieces=pieces, prompts=prompts, turns=turns, place=place)
        for flag, column in config.document_columns.items():
            if number and column not in names:
                raise ColumnError(source, column, f"not among {sorted(names)}", flag)
    except TeachonceError:
        raise
    except UNREADABLE as error:
        raise NoSuchDataError(source, f"cannot be read: {first_line(error)}") from error


def _text(config: PrecomputeConfig, source: str, row: dict[str, Any], number: int) -> str:
    text = row.get(config.text_column)
    if not isinstance(text, str | None):
        found = f"row {number} holds {type(text).__name__}, not text"
        raise ColumnError(source, config.text_column, found, "--text-column")
    return text or ""


def _prompt(source: str, row: dict[str, Any], column: str, number: int, names: set[str]) -> Prompt:
    value = row.get(column)
    is_chat = isinstance(value, list) and len(value) > 0 and all(map(_is_message, value))
    if not isinstance(value, str) and not is_chat:
        holds = f"row {number} holds {type(value).__name__}, not text or chat"
        found = holds if column in row else f"not among {sorted(names)} of row {number}"
        raise ColumnError(source, column, found, "--samples.prompt-column or --beams.prompt-column")
    return value  # type: ignore[return-value]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and {"role", "content"} <= value.keys()


def _text_documents(path: Path, separator: str | None) -> Iterator[Document]:
    if separator is None:
        yield Document(pieces=_read_pieces(path), prompts={})
        return
    parts = _split(_read_pieces(path), separator.replace("\\n", "\n"))
    for _, part in itertools.groupby(parts, key=lambda part: part[0]):
        yield Document(pieces=(text for _, text in part), prompts={})


def _split(pieces: Iterable[str], separator: str) -> Iterator[tuple[int, str]]:
    """Yield the text between separators in parts, each with the number of separators before it.

    Hold back only what may be the beginning of a separator, so that a long text without any is never held as a whole.
    """
    number, rest = 0, ""
    for piece in pieces:
        *whole, rest = (rest + piece).split(separator)
        for text in whole:
            yield number, text
            number += 1
        num_sure = max(0, len(rest) - len(separator) + 1)
        yield number, rest[:num_sure]
        rest = rest[num_sure:]
    yield number, rest


def _read_pieces(path: Path) -> Iterator[str]:
    """Yield a text file in pieces. Raises NoSuchDataError.

    Bytes that are not UTF-8 become U+FFFD. Print the number of U+FFFD that were read.
    """
    num_replaced = 0
    try:
        refuse_utf16(path)
        with open_binary(path) as binary, io.TextIOWrapper(binary, "utf-8-sig", errors="replace") as file:
            while characters := file.read(_PIECE_CHARS):
                num_replaced += characters.count(_REPLACEMENT)
                yield characters
    except OSError as error:
        raise NoSuchDataError(str(path), f"cannot be read ({error})") from error
    finally:  # runs also when the caller stops early
        if num_replaced:
            tell(
                f"{path}: read {num_replaced:,} U+FFFD, which stand for bytes that are not UTF-8 "
                "unless the text itself holds them"
            )
