"""Byte ranges of the regions of a file: of an Arrow IPC file by its layout, of JSON by kind of character."""

from __future__ import annotations

import string
import struct
from collections.abc import Callable

from scripts.support.arrow_file import ArrowFile

Spans = dict[str, list[range]]

_MAGIC = b"ARROW1"
_ALIGNMENT = 8
_LENGTH_BYTES = 4
_PREFIX_BYTES = 8  # a message begins with a marker of four bytes and a length of four bytes
_JSON_CLASSES = {
    "brackets": "{}[]",
    "quotes": '"',
    "separators": ",:",
    "whitespace": " \n",
    "digits": string.digits,
    "letters": string.ascii_letters,
}


def arrow_regions(content: bytes) -> Spans:
    """Return the byte ranges of an Arrow IPC file with compressed buffers, by region. They cover the whole file."""
    spans: Spans = {}

    def add(region: str, start: int, stop: int) -> None:
        if stop > start:
            spans.setdefault(region, []).append(range(start, stop))

    file = ArrowFile(content)
    footer_length = len(content) - len(_MAGIC) - _LENGTH_BYTES
    footer = footer_length - file.number("<i", footer_length)
    schema = _ALIGNMENT + _PREFIX_BYTES
    end = schema + file.number("<i", schema - _LENGTH_BYTES)
    add("magic", 0, len(_MAGIC))
    add("padding", len(_MAGIC), _ALIGNMENT)
    add("message length", _ALIGNMENT, schema)
    add("schema", schema, end)
    for index, block in enumerate(file.blocks):
        start, metadata_bytes, body_bytes = struct.unpack_from("<qi4xq", content, block)
        body, end = start + metadata_bytes, start + metadata_bytes + body_bytes
        add("message length", start, start + _PREFIX_BYTES)
        add("batch metadata", start + _PREFIX_BYTES, body)
        _add_buffers(add, file, index, body, end)
    add("end of stream", end, footer)
    add("footer", footer, footer_length)
    add("footer length", footer_length, len(content) - len(_MAGIC))
    add("magic", len(content) - len(_MAGIC), len(content))
    return spans


def json_regions(content: bytes) -> Spans:
    """Return the positions of a JSON text by kind of character."""
    spans: Spans = {}
    for position, byte in enumerate(content):
        names = [name for name, characters in _JSON_CLASSES.items() if chr(byte) in characters]
        spans.setdefault(names[0] if names else "other characters", []).append(range(position, position + 1))
    return spans


def whole(content: bytes) -> Spans:
    """Return the whole file as one region."""
    return {"whole": [range(len(content))]}


def _add_buffers(add: Callable[[str, int, int], None], file: ArrowFile, index: int, body: int, end: int) -> None:
    position = body
    for buffer in file.buffers(index):
        offset, num_bytes = struct.unpack_from("<qq", file.content, buffer)
        start = body + offset
        add("padding", position, start)
        # A compressed buffer begins with its uncompressed length. An empty buffer has no bytes.
        add("buffer length", start, min(start + 8, start + num_bytes))
        add("buffer", start + 8, start + num_bytes)
        position = start + num_bytes
    add("padding", position, end)
