"""What a window holds: whole documents, and pieces of long ones."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.sources.documents import Document
from pipeline.sources.sample.windows import Window

# Cut a text where a space follows a word, as tokenizers do. Texts without spaces are cut anywhere.
_WORD_END = re.compile(r"(?<=\S)\s")
_FARTHEST_CHARS = 128


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A document or a piece of one, with its text in memory. begins, ends: whether the document does so in it."""

    document: Document
    begins: bool = True
    ends: bool = True


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was read of a range of a file.

    num_bytes: length of the fragments, as they stand in the text. density: such bytes in a byte of the file. Of a data
    set on the hub, rows take the place of bytes.
    """

    fragments: Sequence[Fragment]
    num_bytes: float
    density: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Windows of a source, and what was read of each. size: of the source, in `unit`: bytes, or rows on the hub.

    num_read_files: files of the num_files that were opened. beginnings: names of those of which only the beginning was
    read.
    """

    windows: Sequence[Window]
    readings: Sequence[Sequence[Reading]]
    size: int
    num_files: int
    num_read_files: int
    beginnings: Sequence[str]
    unit: Literal["bytes", "rows"] = "bytes"

    @property
    def read_size(self) -> float:
        """How much of the source the sample stands in for."""
        return math.fsum(r.num_bytes / r.density for readings in self.readings for r in readings if r.density)


class Reader(Protocol):
    """A file of which ranges can be read, in ascending order. is_whole: whether every part of it can be reached."""

    is_whole: bool

    def read(self, start: int, stop: int) -> Reading:
        """Return what stands for bytes [start, stop) of the file."""


def share_of_row(start: float, stop: float, row_start: float, row_stop: float, longest: float) -> tuple[float, float]:
    """Return which part of a row at bytes [row_start, row_stop) the window [start, stop) owns, from 0 to 1.

    A row belongs to the window in which it begins. One that is longer than `longest` is shared: each window owns what
    lies in it, so that a window never means much more text than its own length.
    """
    row_bytes = row_stop - row_start
    if row_bytes <= longest:
        return (0.0, 1.0) if start <= row_start < stop else (0.0, 0.0)
    low, high = max(start - row_start, 0) / row_bytes, min(stop - row_start, row_bytes) / row_bytes
    return (low, high) if low < high else (0.0, 0.0)


def fragment_of(document: Document, low: float, high: float) -> Fragment:
    """Return the part [low, high) of a document whose pieces are one text, cut at the ends of words."""
    if (low, high) == (0.0, 1.0):
        return Fragment(document=document)
    text = "".join(document.pieces)
    first, last = (_word_end(text, int(edge * len(text))) for edge in (low, high))
    prompts = document.prompts if high == 1 else {}  # those of one row count once
    piece = dataclasses.replace(document, pieces=[text[first:last]], prompts=prompts)
    return Fragment(document=piece, begins=low == 0, ends=high == 1)


def _word_end(text: str, place: int) -> int:
    found = _WORD_END.search(text, place, place + _FARTHEST_CHARS) if 0 < place < len(text) else None
    return found.start() if found else place
