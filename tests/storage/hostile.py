"""Arrow files that lie: their bytes, columns and flatbuffers changed by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scripts.support.arrow_file import ArrowFile, stored_as_it_is
from storage.rows import columns

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


def list_offsets(name: str, first: int | None, last: int) -> Callable[[bytes], bytes]:
    """A shard whose first record batch says other offsets, without a change where None, of the lists of a column.

    Arrow does not look at them while it reads; its constructors would refuse them.
    """

    def change(content: bytes) -> bytes:
        schema = pa.ipc.open_file(pa.py_buffer(content)).schema
        before = sum(columns.num_buffers(field.type) for field in islice(schema, schema.get_field_index(name)))
        file = ArrowFile(stored_as_it_is(content))
        metadata_at, metadata_bytes = struct.unpack_from("<qi", file.content, file.blocks[0])
        offset, num_bytes = struct.unpack_from("<qq", file.content, file.buffers(0)[before + 1])
        at = metadata_at + metadata_bytes + offset
        assert file.number("<q", at + 8) == 0, "behind the 8 bytes that say that it is stored as it is"
        if first is not None:
            file.put("<q", at + 8, first)
        return file.put("<q", at + num_bytes - 8, last)

    return change


def one_message_for(num_batches: int, num_buffers: int) -> Callable[[bytes], bytes]:
    """A shard whose footer lists many record batches, all described by one message, which lists many empty buffers."""

    def longer(table: bytearray, at: int, count: int, vector: bytes) -> None:
        """Let the field at `at` point to a vector behind the table, whose entries begin at a multiple of 8."""
        table += bytes(-(len(table) + 4) % 8)
        struct.pack_into("<I", table, at, len(table) - at)
        table += struct.pack("<I", count) + vector

    def change(content: bytes) -> bytes:
        file = ArrowFile(content)
        metadata_at, metadata_bytes, body_bytes = struct.unpack_from("<qi4xq", content, file.blocks[0])
        body_at, length_at = metadata_at + metadata_bytes, len(content) - 10
        metadata = bytearray(content[metadata_at:body_at])
        longer(metadata, file.field(file.record_batch(0), 2) - metadata_at, num_buffers, bytes(16 * num_buffers))
        footer_at = length_at - file.number("<i", length_at)
        footer = bytearray(content[footer_at:length_at])
        block = struct.pack("<qi4xq", metadata_at, len(metadata), body_bytes)
        longer(footer, file.field(file.footer, 3) - footer_at, num_batches, block * num_batches)
        head = content[:metadata_at] + metadata + content[body_at : body_at + body_bytes]
        return head + bytes(-len(head) % 8) + footer + struct.pack("<i", len(footer)) + content[-6:]

    return change
