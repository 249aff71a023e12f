"""Open files of every kind for reading ranges of them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.config import PrecomputeConfig
from pipeline.errors import NoSuchDataError
from pipeline.sources.data_files import format_of, is_compressed, refuse_utf16
from pipeline.sources.documents import Document
from pipeline.sources.json_rows import is_one_row_a_line
from pipeline.sources.rows import UNREADABLE, columns_of, row_documents
from pipeline.sources.sample.beginnings import Beginning, beginning_of, one_row_a_line
from pipeline.sources.sample.fragments import Reader, Reading
from pipeline.sources.sample.json_lines import JsonLinesReader
from pipeline.sources.sample.table_rows import TableReader
from pipeline.sources.sample.texts import TextReader
from pipeline.sources.tables import require_plain
from storage.errors import TeachonceError, first_line

_HEAD_BYTES = 1 << 20


class Files:
    """Opens files. most_bytes: to read from the beginning of a file. seen: gets the names of their columns."""

    def __init__(self, config: PrecomputeConfig, most_bytes: int, seen: set[str]) -> None:
        self._config, self._most_bytes, self._seen = config, most_bytes, seen
        self._can_cut = not config.marks_wanted

    @contextlib.contextmanager
    def opened(self, path: Path) -> Iterator[Reader]:
        """Yield a reader of a file. Raises DataError, also while it is read."""
        try:
            with path.open("rb") as file:
                match format_of(path):
                    case "text":
                        yield self._text(path, file)
                    case "json":
                        yield self._json(path, file)
                    case _:
                        yield self._table(path)
        except TeachonceError:
            raise
        except UNREADABLE as error:
            raise NoSuchDataError(str(path), f"cannot be read: {first_line(error)}") from error

    def _text(self, path: Path, file: BinaryIO) -> Reader:
        refuse_utf16(path)
        separator = self._config.document_separator
        if not is_compressed(path):
            return TextReader(file, path.stat().st_size, separator)
        found = beginning_of(path, self._most_bytes)
        num_bytes = len(found.content) if found.is_whole else None
        return _BeginningReader(path, found, TextReader(io.BytesIO(found.content), num_bytes, separator))

    def _json(self, path: Path, file: BinaryIO) -> Reader:
        refuse_utf16(path)
        head = beginning_of(path, _HEAD_BYTES)
        is_by_line = is_one_row_a_line(head.content)
        if is_by_line and not is_compressed(path):
            return self._lines(path, file)
        found = beginning_of(path, self._most_bytes)
        found = _without_cut_line(found) if is_by_line else one_row_a_line(path, found)
        return _BeginningReader(path, found, self._lines(path, io.BytesIO(found.content)))

    def _lines(self, path: Path, file: BinaryIO) -> JsonLinesReader:
        return JsonLinesReader(path, file, self._documents, can_cut=self._can_cut)

    def _table(self, path: Path) -> Reader:
        require_plain(path)
        columns = columns_of(self._config)
        sized = self._config.document_columns.values()
        reader = TableReader(path, columns, sized, self._documents, can_cut=self._can_cut)
        self._seen |= set(reader.names)
        return reader

    def _documents(self, source: str, rows: Sequence[dict[str, Any]]) -> Iterator[Document]:
        self._seen.update(*rows)
        # Whether any row has the columns is known when the sample is read: single rows may lack them.
        return row_documents(self._config, source, lambda: ([], rows), is_beginning=False, is_end=False)


class _BeginningReader:
    """Reads ranges of a file of which only the beginning can be reached, as if the rest were like it."""

    def __init__(self, path: Path, beginning: Beginning, reader: Reader) -> None:
        self.is_whole, self._reader = beginning.is_whole, reader
        self._file_bytes, self._num_bytes = path.stat().st_size, len(beginning.content)
        self._density = self._num_bytes / max(beginning.file_bytes, 1)

    def read(self, start: int, stop: int) -> Reading:
        """Return what lies at the same share of the beginning as bytes [start, stop) of the file."""
        low = int(start / self._file_bytes * max(self._num_bytes - (stop - start), 0))
        reading = self._reader.read(low, min(low + stop - start, self._num_bytes))
        return dataclasses.replace(reading, density=self._density)


def _without_cut_line(beginning: Beginning) -> Beginning:
    if beginning.is_whole:
        return beginning
    content = beginning.content[: beginning.content.rfind(b"\n") + 1]
    share = len(content) / max(len(beginning.content), 1)
    return dataclasses.replace(beginning, content=content, file_bytes=round(beginning.file_bytes * share))
