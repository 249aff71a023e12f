"""Between Arrow columns and numpy arrays: plain, ragged, and fixed-size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[Any]
# 65,535 itself must fit as a count as well as an id, hence "up to" and not "below".
_LARGEST_UINT16_VOCABULARY = 65535


def token_type(vocab_size: int) -> pa.DataType:
    """uint16 when every id and every count of ids fits in it, else uint32."""
    return pa.uint16() if vocab_size <= _LARGEST_UINT16_VOCABULARY else pa.uint32()


def required(name: str, column_type: pa.DataType) -> pa.Field:
    """A column without nulls."""
    return pa.field(name, column_type, nullable=False)


def required_list(value_type: pa.DataType) -> pa.DataType:
    """A list with 64-bit offsets and no null elements."""
    return pa.large_list(pa.field("item", value_type, nullable=False))


def required_fixed_list(value_type: pa.DataType, size: int) -> pa.DataType:
    """A list of `size` elements, none null."""
    return pa.list_(pa.field("item", value_type, nullable=False), size)


def num_buffers(column_type: pa.DataType) -> int:
    """Buffers of a column in a record batch: which are null, offsets where lengths vary, and values."""
    if pa.types.is_fixed_size_list(column_type):
        return 1 + num_buffers(column_type.value_type)
    if pa.types.is_large_list(column_type):
        return 2 + num_buffers(column_type.value_type)
    return 3 if pa.types.is_string(column_type) or pa.types.is_large_string(column_type) else 2


def to_fixed(values_RN: Array, column_type: pa.DataType) -> pa.Array:
    """[rows, n] to a fixed-size list column."""
    flat = pa.array(values_RN.reshape(-1), type=column_type.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=column_type)


def to_ragged(values: Array, offsets: NDArray[np.int64], column_type: pa.DataType) -> pa.Array:
    """Flat values and [rows + 1] offsets to a large-list column."""
    flat = pa.array(values, type=column_type.value_type)
    return pa.LargeListArray.from_arrays(pa.array(offsets, type=pa.int64()), flat, type=column_type)


def fixed(batch: pa.RecordBatch, name: str) -> Array:
    """A fixed-size list column as [rows, n], without a copy."""
    column = batch.column(name)
    size, stop = column.type.list_size, column.offset + len(column)
    return _values_of_all(column)[column.offset * size : stop * size].reshape(len(column), size)


def ragged(batch: pa.RecordBatch, name: str) -> tuple[Array, NDArray[np.int64]]:
    """A large-list column as flat values, without a copy, and [rows + 1] offsets that begin at 0."""
    column = batch.column(name)
    offsets = column.offsets.to_numpy()
    return _values_of_all(column)[offsets[0] : offsets[-1]], ragged_offsets(batch, name)


def ragged_offsets(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    """The [rows + 1] offsets of a large-list column, beginning at 0."""
    offsets: NDArray[np.int64] = batch.column(name).offsets.to_numpy()
    return np.asarray(offsets - offsets[0], dtype=np.int64)


def ragged_lengths(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    """[rows]: elements of each row of a large-list column."""
    return np.diff(ragged_offsets(batch, name))


def _values_of_all(column: pa.Array) -> Array:
    """Elements of a list column, of a slice's those of every row; `flatten` would cut, in ten times the time."""
    values: Array = column.values.to_numpy(zero_copy_only=False)
    return values


def plain(batch: pa.RecordBatch, name: str) -> Array:
    """A column of scalars."""
    values: Array = batch.column(name).to_numpy(zero_copy_only=False)
    return values


def strings(batch: pa.RecordBatch, name: str) -> list[str]:
    """A column of text."""
    values: list[str] = batch.column(name).to_pylist()
    return values


def offsets_of(lengths: Array) -> NDArray[np.int64]:
    """[n] lengths to [n + 1] offsets."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def flatten_ragged(rows: Sequence[Array], dtype: Any) -> tuple[Array, NDArray[np.int64]]:
    """A list of 1-D arrays to flat values and offsets."""
    flat = np.concatenate(rows) if rows else np.empty(0, dtype=dtype)
    cast = flat.astype(dtype)
    if np.issubdtype(cast.dtype, np.integer) and not np.array_equal(cast, flat):
        raise OverflowError(f"a value does not fit in {cast.dtype}")
    flat = cast
    return flat, offsets_of(np.array([len(row) for row in rows], dtype=np.int64))


def row_sums(values: Array, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of each ragged row of integers; an empty row sums to 0."""
    return np.diff(offsets_of(values)[offsets])
