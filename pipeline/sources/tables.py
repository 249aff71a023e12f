"""Read rows from Parquet and Arrow files. Read the asked columns only, whatever stands beside them.

`datasets` would decode every column, fail on features that it does not know, and need a directory to write to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.data_files import suffix_of

# Rows that exist as Python objects at a time.
_BATCH_ROWS = 128
# Read a Parquet column in parts, so that memory does not grow with the row group.
_BUFFER_BYTES = 1 << 20
_ARROW_FILE_MAGIC = b"ARROW1"


def table_rows(path: Path, columns: Iterable[str]) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Return the names of all columns, and the rows in order with those of `columns` that the file has.

    Raises OSError or pyarrow.ArrowInvalid (a ValueError) for other bytes, also while the rows are read, and ValueError
    when two columns have one of the names.
    """
    require_plain(path)
    if suffix_of(path) == ".parquet":
        file = pq.ParquetFile(path, buffer_size=_BUFFER_BYTES)
        names = file.schema_arrow.names
        kept = kept_columns(names, columns)
        return names, _rows(file.iter_batches(batch_size=_BATCH_ROWS, columns=kept), kept)
    reader, batches = arrow_batches(path)
    kept = kept_columns(reader.schema.names, columns)
    return reader.schema.names, _rows(batches, kept)


def require_plain(path: Path) -> None:
    """Raise OSError for a compressed file: a table has a compression of its own."""
    if path.suffix.lower() != suffix_of(path):
        raise OSError(f"{suffix_of(path)} inside {path.suffix} cannot be read in parts; decompress the file")


def kept_columns(names: list[str], columns: Iterable[str]) -> list[str]:
    """Return those of `names` that are among `columns`. Raises ValueError when two columns have one of the names."""
    wanted = set(columns)
    kept = [name for name in names if name in wanted]
    if len(set(kept)) < len(kept):
        raise ValueError(f"several columns have one name, {max(kept, key=kept.count)!r}; rename all but one")
    return kept


def arrow_batches(path: Path) -> tuple[Any, Iterator[pa.RecordBatch]]:
    """Open an Arrow file of either form: the file format, or the stream format in which `datasets` saves."""
    source = pa.memory_map(str(path))
    is_file = source.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
    source.seek(0)
    if is_file:
        reader = pa.ipc.open_file(source)
        return reader, (reader.get_batch(index) for index in range(reader.num_record_batches))
    stream = pa.ipc.open_stream(source)
    return stream, iter(stream)


def _rows(batches: Iterable[pa.RecordBatch], columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        selected = batch.select(columns)
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            part = selected.slice(start, _BATCH_ROWS)
            yield from part.to_pylist() if columns else ({} for _ in range(min(_BATCH_ROWS, batch.num_rows - start)))
