"""Read Parquet and Arrow files row by row, and lists of lists in them as flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.errors import first_line
from storage.importing.errors import ImportRowError, ImportSourceError, MisalignedRowError
from storage.importing.source_text import Bools, Int64s

# Rows that are in memory at a time, and bytes of a Parquet column that are read at a time.
_BATCH_ROWS, _BUFFER_BYTES = 64, 1 << 20
_FILE_MAGIC = b"ARROW1"
_MASKED = -100


def table_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each row, such as "FILE, row 3" (from 0), and its Arrow scalars of `columns`.

    Raise ImportSourceError for a file that cannot be read or lacks a column.
    """
    number = 0
    try:
        for batch in _batches(path, columns):
            for row in range(batch.num_rows):
                yield f"{path}, row {number}", {name: batch.column(name)[row] for name in columns}
                number += 1
    except (OSError, pa.ArrowException) as error:
        raise ImportSourceError(str(path), f"cannot be read ({first_line(error)})") from error


def _batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path, buffer_size=_BUFFER_BYTES)
        _require_columns(path, file.schema_arrow.names, columns)
        yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns))
        return
    source = pa.memory_map(str(path))
    is_file = source.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    source.seek(0)
    reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
    _require_columns(path, reader.schema.names, columns)
    yield from (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else reader


def _require_columns(path: Path, held: Sequence[str], wanted: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in held]:
        raise ImportSourceError(
            str(path), f"has no column {missing[0]!r}, but {', '.join(held)}; name the columns by their flags"
        )


def flat_list(where: str, name: str, scalar: Any, dtype: Any) -> NDArray[Any]:
    """Return a list of numbers as an array; raise ImportRowError when it is none, or holds nulls."""
    values = scalar.values if _is_list(scalar.type) and scalar.is_valid else None
    if values is None or values.null_count or not _is_number(values.type):
        raise ImportRowError(where, f"{name} is {scalar.type}{'' if scalar.is_valid else ', null'}, expected numbers")
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False).astype(dtype)
    return array


def nested_list(where: str, name: str, scalar: Any, dtype: Any) -> tuple[Int64s, NDArray[Any]]:
    """Return the lengths of the inner lists, 0 for null, and all their values; raise ImportRowError."""
    inner = scalar.values if _is_list(scalar.type) and scalar.is_valid else None
    if inner is None or not _is_list(inner.type) or not _is_number(inner.type.value_type):
        raise ImportRowError(
            where,
            f"{name} is {scalar.type}{'' if scalar.is_valid else ', null'}, expected a list of numbers per position",
        )
    sizes = pc.fill_null(pc.list_value_length(inner), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = inner.flatten()
    if values.null_count:
        raise ImportRowError(where, f"{name} holds a null inside a position's list")
    return sizes, values.to_numpy(zero_copy_only=False).astype(dtype)


def wanted_tokens(where: str, name: str | None, row: dict[str, Any], num_tokens: int) -> Bools:
    """Return whether each token is to be taught: [L]. With a column of labels, -100 marks those that are not."""
    if name is None:
        return np.ones(num_tokens, np.bool_)
    labels = flat_list(where, name, row[name], np.int64)
    if len(labels) != num_tokens:
        raise MisalignedRowError(where, f"{name} has {len(labels)} labels for {num_tokens} tokens, expected as many")
    is_wanted: Bools = labels != _MASKED
    return is_wanted


def _is_list(column_type: Any) -> bool:
    return bool(
        pa.types.is_list(column_type) or pa.types.is_large_list(column_type) or pa.types.is_fixed_size_list(column_type)
    )


def _is_number(column_type: Any) -> bool:
    return bool(pa.types.is_integer(column_type) or pa.types.is_floating(column_type))
