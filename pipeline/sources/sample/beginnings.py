"""Read the beginning of a file that cannot be entered in the middle: compressed, or JSON that is not one row a line."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from pipeline.errors import JsonRowError, NoSuchDataError
from pipeline.sources.data_files import LARGEST_WINDOW_BYTES, is_compressed
from storage.errors import first_line

# Feed so few bytes at a time that it is known to a fraction of a percent which bytes made a text.
_FED_BYTES = 1 << 12
_BETWEEN_ROWS = re.compile(r"[\s,\[\]]*")
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW_BYTES).decompressobj(),
}


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What the first file_bytes bytes of a file hold. is_whole: whether that is all of the file."""

    content: bytes
    file_bytes: int
    is_whole: bool


def beginning_of(path: Path, num_bytes: int) -> Beginning:
    """Return about the first num_bytes bytes of a file, decompressed. Raises NoSuchDataError for damaged bytes."""
    try:
        if is_compressed(path):
            return _decompressed(path, num_bytes)
        with path.open("rb") as file:
            content = file.read(num_bytes)
        return Beginning(content=content, file_bytes=len(content), is_whole=len(content) == path.stat().st_size)
    except (OSError, zlib.error, zstandard.ZstdError) as error:
        raise NoSuchDataError(str(path), f"cannot be read: {first_line(error)}") from error


def _decompressed(path: Path, num_bytes: int) -> Beginning:
    make, content, num_fed, num_used = _DECOMPRESSORS[path.suffix.lower()], bytearray(), 0, 0
    with path.open("rb") as file:
        stream, data = make(), b""
        while len(content) < num_bytes and (data := data or file.read(_FED_BYTES)):
            found = stream.decompress(data)
            rest = stream.unused_data if stream.eof else b""
            num_fed += len(data) - len(rest)
            content += found
            num_used = num_fed if found or stream.eof else num_used
            # Bytes after the end are a further member or, as of tapes, zeros.
            data = rest.lstrip(b"\0")
            num_fed += len(rest) - len(data)
            stream = make() if stream.eof else stream
    is_whole = len(content) < num_bytes or num_used == path.stat().st_size
    file_bytes = path.stat().st_size if is_whole else num_used
    return Beginning(content=bytes(content), file_bytes=file_bytes, is_whole=is_whole)


def one_row_a_line(path: Path, beginning: Beginning) -> Beginning:
    """Return the JSON values of an array, or of several lines each, as one a line. Leave out a value that is cut.

    Raises JsonRowError.
    """
    text, decoder = beginning.content.decode("utf-8-sig", errors="ignore"), json.JSONDecoder(strict=False)
    lines, place = [], _BETWEEN_ROWS.match(text).end()  # type: ignore[union-attr]
    while place < len(text):
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            break
        lines.append(json.dumps(value).encode() + b"\n")
        place = _BETWEEN_ROWS.match(text, end).end()  # type: ignore[union-attr]
    if place < len(text) and (beginning.is_whole or not lines):
        raise JsonRowError(str(path), f"the value at character {place:,}", "is not JSON, or is too long for a sample")
    share = place / max(len(text), 1)
    is_whole = beginning.is_whole
    return Beginning(content=b"".join(lines), file_bytes=round(beginning.file_bytes * share), is_whole=is_whole)
