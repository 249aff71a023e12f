"""Write and read the zstd frame of a packed cache and the frame with the sha256 that follows it.

The reader accepts only the header that the writer writes: other fields of a frame could hide data or attack the reader.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

import zstandard

from storage.errors import ArchiveError, first_line
from storage.processes import num_cores

_ZSTD_LEVEL = 3
_WINDOW_LOG = 25
_JOB_BYTES = 2 << 20
# With more threads, their jobs are larger together than the window. Then zstd enlarges its buffer, and the matches that
# it finds can depend on the buffer.
_MAX_THREADS = (1 << _WINDOW_LOG) // _JOB_BYTES
# Magic number, descriptor (only the checksum flag), window. zstd writes this for a stream of unknown length.
_FRAME_HEADER = bytes.fromhex("28b52ffd04") + bytes([(_WINDOW_LOG - 10) << 3])
_BLOCK_HEADER_BYTES = 3
_RLE_BLOCK = 1
_CHECKSUM_BYTES = 4
# Magic number of a skippable frame, and the length of its content: 32 bytes.
_TRAILER_HEADER = bytes.fromhex("502a4d1820000000")


def frame_compressor(num_threads: int | None) -> zstandard.ZstdCompressionObj:
    """Return a compressor whose output does not depend on num_threads (at least 1; None means one per core)."""
    # Always use threads: without any, zstd cuts its input at other places than with one or more.
    num_threads = min(num_threads or num_cores(), _MAX_THREADS)
    parameters = zstandard.ZstdCompressionParameters(
        compression_level=_ZSTD_LEVEL,
        window_log=_WINDOW_LOG,
        enable_ldm=True,
        job_size=_JOB_BYTES,
        write_checksum=True,
        threads=num_threads,
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compressobj()


def trailer(sha256: str) -> bytes:
    """Return the skippable frame that holds `sha256` (hex), the hash of all bytes before the frame."""
    return _TRAILER_HEADER + bytes.fromhex(sha256)


class FrameReader:
    """Read the content of a packed cache's only zstd frame in order, and unpack one zstd block at a time.

    zstandard's stream_reader continues into further frames, and its decompressobj unpacks all its input at once. So
    this class finds the blocks itself: each begins with 3 bytes that hold its length and whether it is the last.
    Every method raises ArchiveError when the file is damaged, cut off or unreadable. `progress` receives the number of
    bytes that are read from the file.
    """

    def __init__(self, file: BinaryIO, where: str, progress: Callable[[int], object]) -> None:
        self.where = where
        self.file_bytes = os.fstat(file.fileno()).st_size
        self._file, self._progress = file, progress
        self._digest = hashlib.sha256()
        self._block, self._position, self._is_last = b"", 0, False
        if self._stored(len(_FRAME_HEADER)) != _FRAME_HEADER:
            raise ArchiveError(where, "not a cache that teachonce-cache packed")
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG).decompressobj()
        self._decompressor.decompress(_FRAME_HEADER)

    def pieces(self, num_bytes: int) -> Iterator[bytes]:
        """Yield the next `num_bytes` bytes of the content in pieces."""
        while num_bytes:
            while self._position == len(self._block):
                self._next_block()
            piece = self._block[self._position : self._position + num_bytes]
            self._position += len(piece)
            num_bytes -= len(piece)
            yield piece

    def read(self, num_bytes: int) -> bytes:
        """Return the next `num_bytes` bytes of the content."""
        return b"".join(self.pieces(num_bytes))

    def finish(self) -> None:
        """Raise ArchiveError unless content and file end here and the trailer holds the right sha256."""
        while self._position == len(self._block) and not self._is_last:
            self._next_block()
        if self._position < len(self._block):
            raise ArchiveError(self.where, "holds more than its manifest lists")
        expected = trailer(self._digest.hexdigest())
        if self._stored(len(expected)) != expected:
            raise ArchiveError(self.where, "damaged: its bytes do not match its own sha256")
        if self._file.read(1):
            raise ArchiveError(self.where, "something follows the end of the archive")

    def _next_block(self) -> None:
        if self._is_last:
            raise ArchiveError(self.where, "ends before the last file that its manifest lists")
        header = self._stored(_BLOCK_HEADER_BYTES)
        fields = int.from_bytes(header, "little")
        self._is_last = bool(fields & 1)
        num_stored = 1 if fields >> 1 & 3 == _RLE_BLOCK else fields >> 3
        stored = self._stored(num_stored + (_CHECKSUM_BYTES if self._is_last else 0))
        try:
            self._block, self._position = self._decompressor.decompress(header + stored), 0
        except zstandard.ZstdError as error:
            raise ArchiveError(self.where, f"damaged ({first_line(error)})") from error

    def _stored(self, num_bytes: int) -> bytes:
        try:
            stored = self._file.read(num_bytes)
        except OSError as error:
            raise ArchiveError(self.where, f"cannot be read ({error.strerror})") from error
        if len(stored) < num_bytes:
            raise ArchiveError(self.where, "cut off")
        self._digest.update(stored)
        self._progress(num_bytes)
        return stored
