"""Where the parts of a file lie: of an Arrow IPC file by its own layout, of JSON by kind of character."""

from __future__ import annotations

import string
import struct
from collections.abc import Iterator

Spans = dict[str, list[range]]

_MAGIC = b"ARROW1"
_CONTINUATION = b"\xff\xff\xff\xff"
_ALIGNMENT = 8
_RECORD_BATCH = 3
_JSON_CLASSES = {
    "brackets": "{}[]",
    "quotes": '"',
    "separators": ",:",
    "whitespace": " \n",
    "digits": string.digits,
    "letters": string.ascii_letters,
}


def arrow_regions(content: bytes) -> Spans:
    """Byte ranges of an Arrow IPC file with compressed buffers, by region; together they are the whole file."""
    spans: Spans = {}

    def add(region: str, start: int, stop: int) -> None:
        if stop > start:
            spans.setdefault(region, []).append(range(start, stop))

    add("magic", 0, len(_MAGIC))
    add("padding", len(_MAGIC), _ALIGNMENT)
    (footer_bytes,) = struct.unpack_from("<i", content, len(content) - len(_MAGIC) - 4)
    footer = len(content) - len(_MAGIC) - 4 - footer_bytes
    position = _ALIGNMENT
    while content[position : position + 4] == _CONTINUATION and position < footer:
        (metadata_bytes,) = struct.unpack_from("<i", content, position + 4)
        body = position + 8 + metadata_bytes
        if metadata_bytes == 0:
            add("end of stream", position, body)
        else:
            message = _Table(content, position + 8 + _u32(content, position + 8))
            is_batch = message.scalar(1, "<B") == _RECORD_BATCH
            add("message length", position, position + 8)
            add("batch metadata" if is_batch else "schema", position + 8, body)
            body_bytes = message.scalar(3, "<q")
            if is_batch:
                _add_body(add, message.table(2), body, body_bytes)
            body += body_bytes
        position = body
    add("footer", footer, footer + footer_bytes)
    add("footer length", footer + footer_bytes, len(content) - len(_MAGIC))
    add("magic", len(content) - len(_MAGIC), len(content))
    return spans


def json_regions(content: bytes) -> Spans:
    """Positions of a JSON text by kind of character."""
    spans: Spans = {}
    for position, byte in enumerate(content):
        names = [name for name, characters in _JSON_CLASSES.items() if chr(byte) in characters]
        spans.setdefault(names[0] if names else "other characters", []).append(range(position, position + 1))
    return spans


def whole(content: bytes) -> Spans:
    """A file without parts."""
    return {"whole": [range(len(content))]}


def _add_body(add: object, batch: _Table, body: int, body_bytes: int) -> None:
    assert callable(add)
    end = body
    for offset, length in batch.structs(2, "<qq"):
        start = body + offset
        add("padding", end, start)
        # A compressed buffer begins with its uncompressed length; an empty one is nothing at all.
        add("buffer length", start, min(start + 8, start + length))
        add("buffer", start + 8, start + length)
        end = start + length
    add("padding", end, body + body_bytes)


class _Table:
    """A table of a flatbuffer: https://flatbuffers.dev/internals."""

    def __init__(self, content: bytes, position: int) -> None:
        self._content, self._position = content, position
        (to_vtable,) = struct.unpack_from("<i", content, position)
        self._vtable = position - to_vtable

    def _field(self, index: int) -> int:
        (vtable_bytes,) = struct.unpack_from("<H", self._content, self._vtable)
        slot = 4 + 2 * index
        if slot >= vtable_bytes:
            return 0
        (offset,) = struct.unpack_from("<H", self._content, self._vtable + slot)
        return int(offset)

    def scalar(self, index: int, layout: str) -> int:
        """A number, 0 when it is left out."""
        offset = self._field(index)
        return int(struct.unpack_from(layout, self._content, self._position + offset)[0]) if offset else 0

    def table(self, index: int) -> _Table:
        """A table that this one refers to."""
        position = self._position + self._field(index)
        return _Table(self._content, position + _u32(self._content, position))

    def structs(self, index: int, layout: str) -> Iterator[tuple[int, ...]]:
        """The structs of a vector."""
        position = self._position + self._field(index)
        vector = position + _u32(self._content, position)
        for number in range(_u32(self._content, vector)):
            yield struct.unpack_from(layout, self._content, vector + 4 + number * struct.calcsize(layout))


def _u32(content: bytes, position: int) -> int:
    return int(struct.unpack_from("<I", content, position)[0])
