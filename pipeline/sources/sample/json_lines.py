"""Read a range of a file with one JSON row a line."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import JsonRowError
from pipeline.sources.documents import Document
from pipeline.sources.json_rows import checked_rows, parse
from pipeline.sources.sample.fragments import Reading, fragment_of, share_of_row
from pipeline.sources.sample.windows import WINDOW_BYTES

_BACK_BYTES = 1 << 16

# Takes a name for messages and rows, and returns the documents of the rows.
DocumentsOf = Callable[[str, Sequence[dict[str, Any]]], Iterator[Document]]


class JsonLinesReader:
    """Reads ranges of JSON lines. can_cut: whether long rows are texts, which may be read in parts."""

    is_whole = True

    def __init__(self, path: Path, file: BinaryIO, documents_of: DocumentsOf, *, can_cut: bool) -> None:
        self._path, self._file, self._documents_of = path, file, documents_of
        self._longest = WINDOW_BYTES if can_cut else math.inf

    def read(self, start: int, stop: int) -> Reading:
        """Return the rows that begin in [start, stop), and what lies there of long rows."""
        fragments, num_bytes = [], 0.0
        row_start = self._line_start(start)
        self._file.seek(row_start)
        while row_start < stop and (line := self._file.readline()):
            low, high = share_of_row(start, stop, row_start, row_start + len(line), self._longest)
            if high and line.strip():
                fragments += [fragment_of(document, low, high) for document in self._documents(line, row_start)]
            num_bytes += (high - low) * len(line)
            row_start += len(line)
        return Reading(fragments=fragments, num_bytes=num_bytes)

    def _line_start(self, place: int) -> int:
        """Return where the line that holds the byte at `place` begins."""
        while place > 0:
            first = max(place - _BACK_BYTES, 0)
            self._file.seek(first)
            found = self._file.read(place - first).rfind(b"\n")
            if found >= 0:
                return first + found + 1
            place = first
        return 0

    def _documents(self, line: bytes, place: int) -> Iterator[Document]:
        where = f"the line at byte {place:,}"
        content = line if place else line.removeprefix(codecs.BOM_UTF8)
        try:
            rows = list(checked_rows(str(self._path), parse(content, str(self._path), 1)))
        except JsonRowError as error:
            raise JsonRowError(str(self._path), where, error.found) from error
        return self._documents_of(f"{self._path}, {where}", rows)
