"""Find the files of a data source, tell their formats by their names, and open them."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import NoSuchDataError

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_FORMATS = {".txt": "text", ".text": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def format_of(path: Path) -> str | None:
    """Return the format that a file's name stands for: text, json or parquet; None for any other name."""
    return _FORMATS.get(_suffix_of(path))


def find_files(path: Path) -> list[Path]:
    """Return the file itself, or the data files below a directory, sorted by path.

    Raises NoSuchDataError when a directory cannot be read: its text would be missing without notice.
    """
    return [path] if path.is_file() else sorted(file for file in _files_below(path) if _is_data(file))


def open_binary(path: Path) -> Any:
    """Open a file for reading its decompressed bytes. Raises OSError.

    Arrow's reader detects a compressed file that is cut short, which zstandard's reader does not. It does not detect an
    empty one, so this function does.
    """
    compression = _COMPRESSIONS.get(path.suffix.lower())
    if compression and not path.stat().st_size:
        raise OSError(f"no bytes, expected those of {compression}")
    return pa.input_stream(str(path), compression=compression)


def refuse_utf16(path: Path) -> None:
    """Raise NoSuchDataError for a file that begins with a byte order mark of UTF-16.

    The mark of little-endian UTF-32 begins with the same bytes, so such files are refused too.
    """
    with open_binary(path) as binary:
        if binary.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise NoSuchDataError(str(path), "is UTF-16 or UTF-32, expected UTF-8")


def _files_below(directory: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise NoSuchDataError(str(error.filename), f"cannot be read ({error.strerror})") from error

    for parent, _, names in os.walk(directory, onerror=refuse):
        yield from (path for name in names if (path := Path(parent, name)).is_file())


def _is_data(file: Path) -> bool:
    """Return whether to read this file of a directory. Skip Markdown, which describes the other files."""
    return format_of(file) is not None and _suffix_of(file) != ".md"


def _suffix_of(path: Path) -> str:
    """Return the last suffix that does not name a compression, in lower case."""
    suffixes = (suffix.lower() for suffix in reversed(path.suffixes))
    return next((suffix for suffix in suffixes if suffix not in _COMPRESSIONS), "")
