"""Byte offsets of the fields of an Arrow IPC file, for programs and tests that damage a file or name its regions."""

from __future__ import annotations

import struct

import pyarrow as pa


class ArrowFile:
    """The bytes of an Arrow file, with the offsets of the flatbuffer fields that an attacker may want to change."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        length_at = len(content) - 10
        self.footer = self._target(length_at - self.number("<i", length_at))
        self.schema = self._target(self.field(self.footer, 1))

    def field(self, table: int, number: int) -> int:
        """Return the offset of field `number` of the table at offset `table`."""
        offset = self.number("<H", self.slot(table, number))
        assert offset, "the field is not there"
        return table + offset

    def slot(self, table: int, number: int) -> int:
        """Return the offset of the vtable entry that locates field `number` of the table at offset `table`."""
        return table - self.number("<i", table) + 4 + 2 * number

    @property
    def blocks(self) -> list[int]:
        """Offsets of the footer's entry for each record batch: its offset, metadata length and body length."""
        vector = self._target(self.field(self.footer, 3))
        return [vector + 4 + 24 * index for index in range(self.number("<I", vector))]

    def record_batch(self, index: int) -> int:
        """Return the offset of a record batch's table, which holds length, nodes, buffers and compression."""
        return self._target(self.field(self._message(index), 2))

    def message_body_bytes(self, index: int) -> int:
        """Return the offset of the body length in a record batch's message."""
        return self.field(self._message(index), 3)

    def node(self, index: int, number: int) -> int:
        """Return the offset of the length in field node `number` of a record batch.

        A node describes a column or the values of a list column. Nodes are numbered depth first.
        """
        return self._target(self.field(self.record_batch(index), 1)) + 4 + 16 * number

    def buffers(self, index: int) -> list[int]:
        """Return the offsets of a record batch's buffer entries, which hold the offset in its body and the length."""
        vector = self._target(self.field(self.record_batch(index), 2))
        return [vector + 4 + 16 * number for number in range(self.number("<I", vector))]

    def put(self, number_format: str, at: int, *numbers: int) -> bytes:
        """Write `numbers` at offset `at` and return the content."""
        struct.pack_into(number_format, self.content, at, *numbers)
        return bytes(self.content)

    def _message(self, index: int) -> int:
        return self._target(self.number("<q", self.blocks[index]) + 8)

    def _target(self, at: int) -> int:
        return at + self.number("<I", at)

    def number(self, number_format: str, at: int) -> int:
        """Return the number at offset `at`."""
        return int(struct.unpack_from(number_format, self.content, at)[0])


def stored_as_it_is(content: bytes) -> bytes:
    """Return the same shard with its buffers stored uncompressed, so that changing a byte changes a value."""
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
