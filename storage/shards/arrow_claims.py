"""Check the sizes that an Arrow file claims for its buffers before Arrow allocates memory for them.

Arrow allocates the unpacked size that a compressed buffer claims before it reads the buffer's content, and a zstd frame
of a kilobyte can hold 30 MB of zeros. So a small file could make Arrow allocate all memory. pyarrow gives access
neither to the places of buffers nor to their claims, and has no memory pool with a limit.

Find record batches as Arrow does, through the footer. Arrow verified the flatbuffer of the footer when it opened the
file, so only a few tables and vectors remain to be read. The package flatbuffers is not a dependency.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MIB = 1 << 20
# Buffers of a file may unpack to _FREE_BYTES plus _FREE_RATIO times the file's size. Those of shards that teachonce
# wrote unpack to about twice the file's size.
_FREE_BYTES = 64 * _MIB
_FREE_RATIO = 64

_MAGIC_BYTES = 6
_LENGTH_BYTES = 4
_CONTINUATION = b"\xff\xff\xff\xff"
_STORED_AS_IT_IS = -1
_ZSTD = 1
_RECORD_BATCH = 3
# Numbers of the fields in Arrow's Message.fbs and File.fbs.
_FOOTER_DICTIONARIES, _FOOTER_RECORD_BATCHES = 2, 3
_MESSAGE_HEADER_TYPE, _MESSAGE_HEADER, _MESSAGE_BODY_BYTES = 1, 2, 3
_BATCH_BUFFERS, _BATCH_COMPRESSION, _COMPRESSION_CODEC = 2, 3, 0

_BLOCK = np.dtype([("offset", "<i8"), ("metadata_bytes", "<i4"), ("unused", "<i4"), ("body_bytes", "<i8")])
_BUFFER = np.dtype([("offset", "<i8"), ("num_bytes", "<i8")])
_CLAIM = np.dtype("<i8")


class ClaimError(ValueError):
    """The file claims something that is false or not allowed; the message says what."""


class _OutsideError(ValueError):
    """A place lies outside the bytes that it should lie in."""


def check_claims(file: Any) -> None:
    """Raise ClaimError unless all record batches lie in the file, use zstd, and unpack to a bounded size in total.

    file: a buffer with all bytes of a file that Arrow has opened without an error.
    """
    content = memoryview(file).cast("B")
    try:
        footer_at, blocks = _blocks(content)
        content = content[:footer_at]
        unpacked_bytes = _unpacked_bytes(content, blocks)
    except (struct.error, _OutsideError) as error:
        raise ClaimError("something in it points outside of it") from error
    most = _FREE_BYTES + _FREE_RATIO * len(file)
    if unpacked_bytes > most:
        raise ClaimError(f"its {len(file)} bytes claim to unpack to {unpacked_bytes}, more than the {most} allowed")


def stored_buffer_bytes(file: Any) -> list[int]:
    """Return the bytes that each buffer of a record batch takes in the file, summed over all record batches.

    Return an empty list for a file without record batches. file: as for check_claims, which it has passed. Raise
    ClaimError when record batches differ in their number of buffers.
    """
    content = memoryview(file).cast("B")
    footer_at, blocks = _blocks(content)
    per_batch = [_buffers(content[:footer_at], block)["num_bytes"] for block in blocks]
    if len({len(num_bytes) for num_bytes in per_batch}) > 1:
        raise ClaimError("its record batches differ in their number of buffers")
    totals: NDArray[np.int64] = np.array(per_batch, dtype=np.int64).sum(axis=0)
    return [int(total) for total in np.atleast_1d(totals)] if per_batch else []


class _Table:
    """A flatbuffer table inside `data`, with access to its fields by number. Raise _OutsideError beyond `data`."""

    def __init__(self, data: memoryview, at: int) -> None:
        self._data, self._at = data, at
        self._vtable_at = at - self._number("<i", at)
        self._vtable_bytes = self._number("<H", self._vtable_at)

    def scalar(self, field: int, number_format: str, default: int) -> int:
        """Return the number in a field, `default` when the field is absent."""
        at = self._find(field)
        return default if at is None else self._number(number_format, at)

    def table(self, field: int) -> _Table | None:
        """Return the table in a field, None when the field is absent."""
        at = self._find(field)
        return None if at is None else _Table(self._data, at + self._number("<I", at))

    def structs(self, field: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the vector of structs in a field, empty when the field is absent."""
        at = self._find(field)
        if at is None:
            return np.empty(0, dtype)
        at += self._number("<I", at)
        num_bytes = self._number("<I", at) * dtype.itemsize
        return np.frombuffer(_part(self._data, at + _LENGTH_BYTES, num_bytes), dtype)

    def _find(self, field: int) -> int | None:
        slot = 4 + 2 * field
        offset = self._number("<H", self._vtable_at + slot) if slot < self._vtable_bytes else 0
        return self._at + offset if offset else None

    def _number(self, number_format: str, at: int) -> int:
        return _number(self._data, number_format, at)


def _number(data: memoryview, number_format: str, at: int) -> int:
    return int(struct.unpack(number_format, _part(data, at, struct.calcsize(number_format)))[0])


def _root(data: memoryview) -> _Table:
    return _Table(data, _number(data, "<I", 0))


def _part(data: memoryview, at: int, num_bytes: int) -> memoryview:
    if min(at, num_bytes) < 0 or at + num_bytes > len(data):
        raise _OutsideError
    return data[at : at + num_bytes]


def _blocks(content: memoryview) -> tuple[int, list[tuple[int, int, int]]]:
    """Return where the footer begins, and offset, metadata_bytes and body_bytes of each record batch."""
    length_at = len(content) - _MAGIC_BYTES - _LENGTH_BYTES
    num_bytes = _number(content, "<i", length_at)
    footer = _root(_part(content, length_at - num_bytes, num_bytes))
    if len(footer.structs(_FOOTER_DICTIONARIES, _BLOCK)):
        raise ClaimError("it holds dictionaries")
    blocks = footer.structs(_FOOTER_RECORD_BATCHES, _BLOCK)[["offset", "metadata_bytes", "body_bytes"]]
    return length_at - num_bytes, blocks.tolist()


def _buffers(content: memoryview, block: tuple[int, int, int]) -> NDArray[Any]:
    """Return offset and num_bytes of each buffer of a record batch, in its body, which lies in `content`."""
    offset, metadata_bytes, body_bytes = block
    metadata = _part(content, offset, metadata_bytes)
    _part(content, offset + metadata_bytes, body_bytes)  # raises where there is no such body
    if metadata[:_LENGTH_BYTES] != _CONTINUATION:
        raise ClaimError("a record batch is laid out as before Arrow 0.15")
    message = _root(metadata[2 * _LENGTH_BYTES :])
    batch = message.table(_MESSAGE_HEADER)
    if batch is None or message.scalar(_MESSAGE_HEADER_TYPE, "<B", 0) != _RECORD_BATCH:
        raise ClaimError("its footer lists something else as a record batch")
    if message.scalar(_MESSAGE_BODY_BYTES, "<q", 0) != body_bytes:
        raise ClaimError("its footer and a record batch differ about the length of that")
    compression = batch.table(_BATCH_COMPRESSION)
    if compression is None or compression.scalar(_COMPRESSION_CODEC, "<b", 0) != _ZSTD:
        raise ClaimError("its buffers are not compressed with zstd")
    return batch.structs(_BATCH_BUFFERS, _BUFFER)


def _unpacked_bytes(content: memoryview, blocks: list[tuple[int, int, int]]) -> int:
    """Return the bytes that the non-empty buffers of all record batches claim to unpack to, in total.

    The claim is the buffer's first 8 bytes; −1 there says that the rest is not compressed.
    """
    buffers = [_buffers(content, block) for block in blocks]
    num_buffers = [len(per_batch) for per_batch in buffers]
    if sum(num_buffers) * _BUFFER.itemsize > len(content):
        raise ClaimError("its record batches share what describes them")  # and would take its size squared
    block_at, metadata_bytes, body_bytes = np.array(blocks, np.int64).reshape(-1, 3).repeat(num_buffers, axis=0).T
    body_at = block_at + metadata_bytes
    all_buffers = np.concatenate([np.empty(0, _BUFFER), *buffers])
    is_used = all_buffers["num_bytes"] != 0
    offsets, num_bytes = all_buffers["offset"][is_used], all_buffers["num_bytes"][is_used]
    body_at, body_bytes = body_at[is_used], body_bytes[is_used]
    if np.any(
        (num_bytes < _CLAIM.itemsize) | (num_bytes > body_bytes) | (offsets < 0) | (offsets > body_bytes - num_bytes)
    ):
        raise _OutsideError
    first_bytes = np.frombuffer(content, np.uint8)[(body_at + offsets)[:, None] + np.arange(_CLAIM.itemsize)]
    claims = first_bytes.view(_CLAIM)[:, 0]
    if np.any(claims < _STORED_AS_IT_IS):
        raise ClaimError(f"a buffer claims to unpack to {claims.min()} bytes")
    return sum(np.where(claims == _STORED_AS_IT_IS, num_bytes, claims).tolist())
