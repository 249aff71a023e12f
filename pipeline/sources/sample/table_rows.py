"""Read rows at places of a Parquet or Arrow file."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.data_files import suffix_of
from pipeline.sources.sample.fragments import Reading, fragment_of, share_of_row
from pipeline.sources.sample.json_lines import DocumentsOf
from pipeline.sources.sample.windows import WINDOW_BYTES
from pipeline.sources.tables import arrow_batches, kept_columns
from storage.draws import hash_uniform

# The lengths of so many rows around a place say how much text a byte of the file holds there.
_ROWS_AROUND = 128
_PLACE_DRAW = 9


class TableReader:
    """Reads rows of a table. names: of its columns. sized: those whose length counts. can_cut: of JsonLinesReader."""

    is_whole = True

    def __init__(
        self, path: Path, columns: Collection[str], sized: Collection[str], documents_of: DocumentsOf, *, can_cut: bool
    ) -> None:
        self._path, self._documents_of, self._sized = path, documents_of, sized
        self._table = _ParquetRows(path, columns) if suffix_of(path) == ".parquet" else _ArrowRows(path, columns)
        self.names = self._table.names
        self._file_bytes = path.stat().st_size
        self._longest = WINDOW_BYTES if can_cut else math.inf

    def read(self, start: int, stop: int) -> Reading:
        """Return rows from near the place at which a file with rows of one length has bytes [start, stop)."""
        if not self._table.num_rows:
            return Reading(fragments=[], num_bytes=stop - start, density=0.0)
        bytes_a_row = self._file_bytes / self._table.num_rows
        first, rows = self._table.around(int(start / bytes_a_row))
        ends = np.cumsum([sum(len(str(row.get(name) or "")) for name in self._sized) for row in rows])
        text_length = int(ends[-1])
        density = text_length / (len(rows) * bytes_a_row)
        if not text_length:
            return Reading(fragments=[], num_bytes=stop - start, density=0.0)
        low = float(hash_uniform(_PLACE_DRAW, start)) * max(text_length - (stop - start), 0)
        return self._window(first, rows, ends.tolist(), (low, min(low + stop - start, text_length)), density)

    def _window(
        self, first: int, rows: list[dict[str, Any]], ends: list[int], window: tuple[float, float], density: float
    ) -> Reading:
        """Return the rows that begin in a window of their joined texts, and what lies there of long rows."""
        fragments, num_bytes = [], 0.0
        for index in range(bisect.bisect_right(ends, window[0]), len(rows)):
            row_start, row_stop = ends[index - 1] if index else 0, ends[index]
            if row_start >= window[1]:
                break
            low, high = share_of_row(*window, row_start, row_stop, self._longest)
            if high:
                found = self._documents_of(f"{self._path}, row {first + index + 1}", rows[index : index + 1])
                fragments += [fragment_of(document, low, high) for document in found]
                num_bytes += (high - low) * (row_stop - row_start)
        return Reading(fragments=fragments, num_bytes=num_bytes, density=density)


class _ParquetRows:
    """Rows of a Parquet file; those of one row group are read in one pass when they are asked for in order."""

    def __init__(self, path: Path, columns: Collection[str]) -> None:
        self._file = pq.ParquetFile(path, buffer_size=1 << 20)
        self.names = self._file.schema_arrow.names
        self._columns = kept_columns(self.names, columns)
        metadata = self._file.metadata
        self.num_rows = metadata.num_rows
        self._ends = list(itertools.accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)))
        self._group, self._first = -1, 0
        self._batch: pa.RecordBatch | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def around(self, row: int) -> tuple[int, list[dict[str, Any]]]:
        """Return the number of a row near `row`, and the rows from there on, of one row group."""
        group = bisect.bisect_right(self._ends, min(row, self.num_rows - 1))
        group_start = self._ends[group - 1] if group else 0
        if group != self._group or row < self._first:
            self._batches = self._file.iter_batches(_ROWS_AROUND, row_groups=[group], columns=self._columns)
            self._group, self._first, self._batch = group, group_start, next(self._batches)
        assert self._batch is not None
        while row >= self._first + self._batch.num_rows and (batch := next(self._batches, None)) is not None:
            self._first += self._batch.num_rows
            self._batch = batch
        return self._first, self._batch.to_pylist() if self._columns else [{}] * self._batch.num_rows


class _ArrowRows:
    """Rows of an Arrow file, which is mapped into memory."""

    def __init__(self, path: Path, columns: Collection[str]) -> None:
        reader, batches = arrow_batches(path)
        self.names = reader.schema.names
        kept = kept_columns(self.names, columns)
        self._batches = [batch.select(kept) for batch in batches]
        self._ends = list(itertools.accumulate(batch.num_rows for batch in self._batches))
        self.num_rows = self._ends[-1] if self._ends else 0

    def around(self, row: int) -> tuple[int, list[dict[str, Any]]]:
        """Return the number of a row near `row`, and the rows from there on, of one record batch."""
        index = bisect.bisect_right(self._ends, min(row, self.num_rows - 1))
        start, end = self._ends[index - 1] if index else 0, self._ends[index]
        first = max(start, min(row, end - _ROWS_AROUND))
        return first, self._batches[index].slice(first - start, _ROWS_AROUND).to_pylist()
