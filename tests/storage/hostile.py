"""Arrow files that lie: their bytes, columns and flatbuffers changed by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
Batches = list[pa.RecordBatch]


def read_batches(cache_dir: Path, path: str) -> Batches:
    """The record batches of a shard, read at once."""
    with pa.OSFile(str(cache_dir / path)) as file:
        reader = pa.ipc.open_file(file)
        return [reader.get_batch(index) for index in range(reader.num_record_batches)]


def write_batches(batches: Batches, new: Callable[..., Any] = pa.ipc.new_file, **settings: Any) -> bytes:
    """Record batches as an Arrow file, compressed like ours unless told otherwise."""
    options = pa.ipc.IpcWriteOptions(**({"compression": "zstd"} | settings))
    sink = pa.BufferOutputStream()
    with new(sink, batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def with_array(batch: pa.RecordBatch, name: str, change: Callable[[pa.Array], pa.Array]) -> pa.RecordBatch:
    """The batch with one column replaced; the type stays."""
    arrays = {field.name: batch.column(field.name) for field in batch.schema}
    arrays[name] = change(arrays[name])
    return pa.RecordBatch.from_arrays(list(arrays.values()), schema=batch.schema)


def with_field(batches: Batches, name: str, change: Callable[[pa.Field], pa.Field]) -> Batches:
    """The batches with one column's field changed, its buffers as they were."""
    schema = batches[0].schema
    schema = schema.set(schema.get_field_index(name), change(schema.field(name)))
    return [pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in batches]


def with_offsets(*offsets: int) -> Callable[[pa.Array], pa.Array]:
    """A list column whose first offsets are others."""

    def change(column: pa.Array) -> pa.Array:
        buffers = column.buffers()
        changed = np.frombuffer(buffers[1], np.int64).copy()
        changed[: len(offsets)] = offsets
        children = [column.values]
        return pa.Array.from_buffers(column.type, len(column), [None, pa.py_buffer(changed)], children=children)

    return change


def claim(num_bytes: int) -> Callable[[bytes], bytes]:
    """A shard whose first compressed buffer says that it unpacks to `num_bytes`."""

    def change(content: bytes) -> bytes:
        at = content.index(ZSTD_MAGIC)
        return content[: at - 8] + num_bytes.to_bytes(8, "little", signed=True) + content[at:]

    return change


def bomb(num_bytes: int) -> Callable[[Batches], Batches]:
    """A shard whose `ids` do unpack to `num_bytes` zeros, which zstd stores in a thirty thousandth."""

    def widen(column: pa.Array) -> pa.Array:
        value_type = column.type.value_type
        zeros = np.zeros(num_bytes * 8 // value_type.bit_width, value_type.to_pandas_dtype())
        offsets = [*column.offsets.to_pylist()[:-1], len(zeros)]
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(zeros), type=column.type)

    return lambda batches: [with_array(batches[0], "ids", widen), *batches[1:]]


class ArrowFile:
    """An Arrow file's bytes with the places of the flatbuffer fields that a forger may want to change."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        length_at = len(content) - 10
        self.footer = self._target(length_at - self.number("<i", length_at))
        self.schema = self._target(self.field(self.footer, 1))

    def field(self, table: int, number: int) -> int:
        """Where a table's field stands."""
        offset = self.number("<H", self.slot(table, number))
        assert offset, "the field is not there"
        return table + offset

    def slot(self, table: int, number: int) -> int:
        """Where the vtable of a table says where the field stands."""
        return table - self.number("<i", table) + 4 + 2 * number

    @property
    def blocks(self) -> list[int]:
        """Where the footer says of each record batch: offset, metadata length, body length."""
        vector = self._target(self.field(self.footer, 3))
        return [vector + 4 + 24 * index for index in range(self.number("<I", vector))]

    def record_batch(self, index: int) -> int:
        """The table of a record batch: length, nodes, buffers, compression."""
        return self._target(self.field(self._message(index), 2))

    def message_body_bytes(self, index: int) -> int:
        """Where the message of a record batch says how long its body is."""
        return self.field(self._message(index), 3)

    def node(self, index: int, number: int) -> int:
        """Where a record batch says how long its column, or a column's list of values, is; counted in depth first."""
        return self._target(self.field(self.record_batch(index), 1)) + 4 + 16 * number

    def buffers(self, index: int) -> list[int]:
        """Where a record batch says of each buffer: offset in its body, length."""
        vector = self._target(self.field(self.record_batch(index), 2))
        return [vector + 4 + 16 * number for number in range(self.number("<I", vector))]

    def put(self, number_format: str, at: int, *numbers: int) -> bytes:
        """The content with numbers put in."""
        struct.pack_into(number_format, self.content, at, *numbers)
        return bytes(self.content)

    def _message(self, index: int) -> int:
        return self._target(self.number("<q", self.blocks[index]) + 8)

    def _target(self, at: int) -> int:
        return at + self.number("<I", at)

    def number(self, number_format: str, at: int) -> int:
        """The number that stands there."""
        return int(struct.unpack_from(number_format, self.content, at)[0])


def big_endian(content: bytes) -> bytes:
    """A shard whose schema says that its bytes are in the other order.

    The field is absent for little-endian files, so it is made to point at some 1 of the footer.
    """
    file = ArrowFile(content)
    at = next(at for at in range(file.schema, len(content), 2) if content[at : at + 2] == b"\1\0")
    return file.put("<H", file.slot(file.schema, 0), at - file.schema)


def footer_lists_first_batch_twice(content: bytes) -> bytes:
    """A shard whose second record batch is its first."""
    file = ArrowFile(content)
    first, second = file.blocks
    file.content[second : second + 24] = file.content[first : first + 24]
    return bytes(file.content)


def in_footer(index: int, number_format: str, number: int, skip: int = 0) -> Callable[[bytes], bytes]:
    """A shard whose footer says `number` of a record batch, `skip` bytes behind its offset."""

    def change(content: bytes) -> bytes:
        file = ArrowFile(content)
        return file.put(number_format, file.blocks[index] + skip, number)

    return change


def batch_length(number: int) -> Callable[[bytes], bytes]:
    """A shard whose first record batch says that it has `number` rows."""

    def change(content: bytes) -> bytes:
        file = ArrowFile(content)
        return file.put("<q", file.field(file.record_batch(0), 0), number)

    return change


def column_length(node: int, number: int) -> Callable[[bytes], bytes]:
    """A shard that says in its first record batch that one of its columns has `number` rows, or values."""

    def change(content: bytes) -> bytes:
        file = ArrowFile(content)
        return file.put("<q", file.node(0, node), number)

    return change


def stored_as_it_is(content: bytes) -> bytes:
    """The same shard with buffers that say that they are not compressed: a byte changed in one changes its value."""
    file, zstd = ArrowFile(content), pa.Codec("zstd")
    end = file.number("<q", file.blocks[0])
    changed = bytearray(content[:end])
    for index, block in enumerate(file.blocks):
        metadata_at, metadata_bytes, body_bytes = struct.unpack_from("<qi4xq", content, block)
        body_at = metadata_at + metadata_bytes
        body, end = bytearray(), body_at + body_bytes
        for buffer in file.buffers(index):
            offset, num_bytes = struct.unpack_from("<qq", content, buffer)
            packed = content[body_at + offset : body_at + offset + num_bytes]
            if packed:
                unpacked_bytes = int.from_bytes(packed[:8], "little", signed=True)
                is_packed = unpacked_bytes != -1
                packed = bytes([255] * 8) + (
                    zstd.decompress(packed[8:], unpacked_bytes).to_pybytes() if is_packed else packed[8:]
                )
            file.put("<qq", buffer, len(body), len(packed))
            body += packed + bytes(-len(packed) % 8)
        file.put("<q", file.message_body_bytes(index), len(body))
        file.put("<qi4xq", block, len(changed), metadata_bytes, len(body))
        changed += file.content[metadata_at:body_at] + body
    return bytes(changed + file.content[end:])
