"""Tell the formats of files by their names, and open them."""

from __future__ import annotations

import codecs
import functools
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from pipeline.errors import NoSuchDataError

_FORMATS = {
    ".txt": "text", ".text": "text", ".md": "text",
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".parquet": "table", ".arrow": "table",
}  # fmt: skip
# Files that hold text or data which this project cannot read. Other files (pictures, programs) are left out silently.
UNREAD = {
    ".7z", ".avro", ".br", ".bz2", ".csv", ".doc", ".docx", ".epub", ".feather", ".htm", ".html", ".lz4", ".ods",
    ".odt", ".orc", ".pdf", ".rar", ".rst", ".rtf", ".tar", ".tex", ".tgz", ".tsv", ".xlsx", ".xml", ".xz", ".yaml",
    ".yml", ".z", ".zip",
}  # fmt: skip
_READ_BYTES = 1 << 16
# Archives of texts are often compressed with windows of 2^27 to 2^31 bytes (zstd --long), which most readers refuse.
LARGEST_WINDOW_BYTES = 1 << 31
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[^/]+)?", re.ASCII)


def format_of(path: Path) -> str | None:
    """Return the format that a file's name stands for: text, json or table; None for any other name."""
    return _FORMATS.get(suffix_of(path))


def suffix_of(path: Path) -> str:
    """Return the last suffix that does not name a compression, in lower case; empty when there is none."""
    suffixes = (suffix.lower() for suffix in reversed(path.suffixes))
    return next((suffix for suffix in suffixes if suffix not in _DECOMPRESSORS), "")


def stem_of(path: Path) -> str:
    """Return the name before the first dot, in lower case."""
    return path.name.split(".")[0].lower()


def is_hub_id(name: str) -> bool:
    """Return whether a name that is no file here can be that of a data set on the hub.

    A name with the suffix of a data file, or in a directory that exists here, is a mistyped path.
    """
    path = Path(name)
    is_in_directory = len(path.parts) > 1 and path.parent.is_dir()
    is_named_as_file = path.suffix.lower() in {*_FORMATS, *_DECOMPRESSORS, *UNREAD}
    return _HUB_ID.fullmatch(name) is not None and name[0] != "." and not is_in_directory and not is_named_as_file


def open_binary(path: Path) -> io.BufferedReader:
    """Open a file for reading its decompressed bytes.

    Raises OSError, also while reading, for compressed bytes that are damaged, cut short, or none at all.
    """
    chunks_of = _DECOMPRESSORS.get(path.suffix.lower())
    return path.open("rb") if chunks_of is None else io.BufferedReader(_Chunked(path, chunks_of))


def open_range(path: Path, start: int, stop: int | None) -> io.BufferedReader:
    """Open bytes [start, stop) of what open_binary gives for the file; a stop of None is its end.

    Raises OSError, and ValueError for a range of compressed bytes, which can only be read in order.
    """
    if (start, stop) == (0, None):
        return open_binary(path)
    if is_compressed(path):
        raise ValueError(f"{path}: compressed bytes have no ranges")
    return io.BufferedReader(_Chunked(path, functools.partial(_range_chunks, start, stop)))


def place_of(path: Path, start: int) -> str:
    """Return the name of a file, or of its range from `start` on, for messages."""
    return f"{path} behind byte {start}" if start else str(path)


def is_compressed(path: Path) -> bool:
    """Return whether a file's name says that its bytes are compressed."""
    return path.suffix.lower() in _DECOMPRESSORS


def refuse_utf16(path: Path) -> None:
    """Raise NoSuchDataError for a file that begins with a byte order mark of UTF-16.

    The mark of little-endian UTF-32 begins with the same bytes, so such files are refused too.
    """
    with open_binary(path) as binary:
        if binary.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise NoSuchDataError(str(path), "is UTF-16 or UTF-32, expected UTF-8")


class _Chunked(io.RawIOBase):
    """Bytes made out of a file's, chunk by chunk, as a stream."""

    def __init__(self, path: Path, chunks_of: Callable[[io.BufferedReader], Iterator[bytes]]) -> None:
        self._file = path.open("rb")
        self._chunks, self._rest = chunks_of(self._file), b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        while not self._rest:
            try:
                self._rest = next(self._chunks)
            except StopIteration:
                return 0
            except (EOFError, zlib.error, zstandard.ZstdError, MemoryError) as error:
                raise OSError(f"damaged or cut short: {error}") from error
        num_bytes = min(len(view), len(self._rest))
        view[:num_bytes], self._rest = self._rest[:num_bytes], self._rest[num_bytes:]
        return num_bytes


def _range_chunks(start: int, stop: int | None, file: io.BufferedReader) -> Iterator[bytes]:
    file.seek(start)
    while chunk := file.read(_READ_BYTES if stop is None else min(_READ_BYTES, stop - file.tell())):
        yield chunk


def _gzip_chunks(file: io.BufferedReader) -> Iterator[bytes]:
    """Yield the bytes of all members. Zeros after a member are padding, as of tapes."""
    if not file.peek(1):
        raise EOFError("no bytes, expected those of gzip")
    with gzip.GzipFile(fileobj=file) as members:
        while chunk := members.read(_READ_BYTES):
            yield chunk


def _zstd_chunks(file: io.BufferedReader) -> Iterator[bytes]:
    """Yield the bytes of all frames. zstandard's own reader would end without an error where a frame is cut."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW_BYTES)
    frame, num_frames, data = None, 0, b""
    while data := data or file.read(_READ_BYTES):
        if frame is None:
            frame, num_frames = decompressor.decompressobj(), num_frames + 1
        yield frame.decompress(data)
        data = frame.unused_data if frame.eof else b""
        frame = None if frame.eof else frame
    if frame is not None or not num_frames:
        raise EOFError("the last frame has no end" if num_frames else "no bytes, expected those of zstd")


_DECOMPRESSORS = {".gz": _gzip_chunks, ".zst": _zstd_chunks}
