"""Files of text: which are read, as what, and their bytes."""

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
    """How a file is read by its name: text, json or parquet; None for any other."""
    return _FORMATS.get(_suffix_of(path))


def find_files(path: Path) -> list[Path]:
    """The file itself, or those of a directory that hold text, in the order of their paths.

    Raises NoSuchDataError for a directory that cannot be read, whose text nobody would miss.
    """
    return [path] if path.is_file() else sorted(file for file in _files_below(path) if _is_data(file))


def open_binary(path: Path) -> Any:
    """The file's bytes, decompressed; raises OSError.

    Unlike the plain readers, Arrow's notices a compressed file that is cut short, if anything of it is left.
    """
    compression = _COMPRESSIONS.get(path.suffix.lower())
    if compression and not path.stat().st_size:
        raise OSError(f"no bytes, expected those of {compression}")
    return pa.input_stream(str(path), compression=compression)


def refuse_utf16(path: Path) -> None:
    """Raise NoSuchDataError for a file that begins with a mark of UTF-16, or of UTF-32, which may begin alike."""
    with open_binary(path) as binary:
        if binary.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise NoSuchDataError(str(path), "is UTF-16 or UTF-32, expected UTF-8")


def _files_below(directory: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise NoSuchDataError(str(error.filename), f"cannot be read ({error.strerror})") from error

    for parent, _, names in os.walk(directory, onerror=refuse):
        yield from (path for name in names if (path := Path(parent, name)).is_file())


def _is_data(file: Path) -> bool:
    """Whether a file of a directory is read: one in Markdown tells of the others, and is not."""
    return format_of(file) is not None and _suffix_of(file) != ".md"


def _suffix_of(path: Path) -> str:
    """The last suffix but those of compressions, in lower case."""
    suffixes = (suffix.lower() for suffix in reversed(path.suffixes))
    return next((suffix for suffix in suffixes if suffix not in _COMPRESSIONS), "")
