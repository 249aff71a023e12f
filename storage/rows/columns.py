"""Convert between Arrow columns and numpy arrays: scalars, ragged lists and fixed-size lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[Any]
# The largest id is V - 1, but a count of ids can be V, so 65,535 is the largest V that fits.
_LARGEST_UINT16_VOCABULARY = 65535


def token_type(vocab_size: int) -> pa.DataType:
    """Return uint16 when every id and every count of ids fits in it, else uint32."""
    return pa.uint16() if vocab_size <= _LARGEST_UINT16_VOCABULARY else pa.uint32()


def required(name: str, column_type: pa.DataType) -> pa.Field:
    """Return the field of a column without nulls."""
    return pa.field(name, column_type, nullable=False)


def required_list(value_type: pa.DataType) -> pa.DataType:
    """Return the type of a list with 64-bit offsets and no null elements."""
    return pa.large_list(pa.field("item", value_type, nullable=False))


def required_fixed_list(value_type: pa.DataType, size: int) -> pa.DataType:
    """Return the type of a list of `size` elements, none of them null."""
    return pa.list_(pa.field("item", value_type, nullable=False), size)


def num_buffers(column_type: pa.DataType) -> int:
    """Return a column's number of buffers in a record batch: validity bitmaps, offsets where lengths vary, values."""
    if pa.types.is_fixed_size_list(column_type):
        return 1 + num_buffers(column_type.value_type)
    if pa.types.is_large_list(column_type):
        return 2 + num_buffers(column_type.value_type)
    return 3 if pa.types.is_string(column_type) or pa.types.is_large_string(column_type) else 2


def to_fixed(values_RN: Array, column_type: pa.DataType) -> pa.Array:
    """Return an array [rows, n] as a fixed-size list column."""
    flat = pa.array(values_RN.reshape(-1), type=column_type.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=column_type)


def to_ragged(values: Array, offsets: NDArray[np.int64], column_type: pa.DataType) -> pa.Array:
    """Return flat values and their offsets [rows + 1] as a large-list column."""
    flat = pa.array(values, type=column_type.value_type)
    return pa.LargeListArray.from_arrays(pa.array(offsets, type=pa.int64()), flat, type=column_type)


def runs(values: Array, ends: NDArray[np.int64]) -> pa.RunEndEncodedArray:
    """Return numbers [n], each repeated up to its end [n], as a run-end encoded array; see `elements`."""
    children = [
        pa.Array.from_buffers(pa.from_numpy_dtype(part.dtype), len(part), [None, pa.py_buffer(part)])
        for part in (ends, values)
    ]
    encoded = pa.run_end_encoded(*[child.type for child in children])
    return pa.RunEndEncodedArray.from_buffers(encoded, int(ends[-1]), [None], children=children)


def elements(array: pa.Array) -> Array:
    """Return an Arrow array of numbers or bools, none of them null, as [n], without a copy but for bools. Read it only.

    `to_numpy` of Arrow imports pandas where it is installed, which takes a fifth of a second. So does pyarrow.array.
    """
    _, data = array.buffers()
    assert data is not None
    if pa.types.is_boolean(array.type):
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=array.offset + len(array), bitorder="little")
        return bits[array.offset :].view(np.bool_)
    dtype = np.dtype(array.type.to_pandas_dtype())
    values = np.ndarray((len(array),), dtype, data, array.offset * dtype.itemsize)
    values.flags.writeable = False  # others use the same memory
    return values


def fixed(batch: pa.RecordBatch, name: str) -> Array:
    """Return a fixed-size list column as an array [rows, n], without a copy but for bools."""
    column = batch.column(name)
    size = column.type.list_size
    return elements(column.values.slice(column.offset * size, len(column) * size)).reshape(len(column), size)


def with_own_bits(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with a copy of each column of lists of bools.

    Of a slice that begins at the first row Arrow writes the bits of the whole: a shard would hold bits of other rows.
    """
    is_bits = [getattr(field.type, "value_type", None) == pa.bool_() for field in batch.schema]
    if not any(is_bits):
        return batch
    columns = [
        to_fixed(fixed(batch, field.name), field.type) if copied else batch.column(field.name)
        for field, copied in zip(batch.schema, is_bits, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def ragged(batch: pa.RecordBatch, name: str) -> tuple[Array, NDArray[np.int64]]:
    """Return the flat values of a large-list column, without a copy, and its offsets [rows + 1], which begin at 0."""
    column = batch.column(name)
    offsets = elements(column.offsets)
    # `flatten` would return only the elements of a slice too, but takes ten times as long.
    return elements(column.values)[offsets[0] : offsets[-1]], offsets - offsets[0]


def ragged_offsets(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    """Return the offsets [rows + 1] of a large-list column, which begin at 0."""
    offsets = elements(batch.column(name).offsets)
    return np.asarray(offsets - offsets[0], dtype=np.int64)


def ragged_lengths(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    """Return the number of elements in each row of a large-list column: [rows]."""
    return np.diff(ragged_offsets(batch, name))


def plain(batch: pa.RecordBatch, name: str) -> Array:
    """Return a column of scalars: [rows]."""
    return elements(batch.column(name))


def strings(batch: pa.RecordBatch, name: str) -> list[str]:
    """Return the strings of a column of text."""
    values: list[str] = batch.column(name).to_pylist()
    return values


def offsets_of(lengths: Array) -> NDArray[np.int64]:
    """Return the offsets [n + 1], which begin at 0, of lists with lengths [n]."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def flatten_ragged(rows: Sequence[Array], dtype: Any) -> tuple[Array, NDArray[np.int64]]:
    """Concatenate 1-D arrays; return the values as `dtype` and the offsets [rows + 1].

    Raise OverflowError when a value does not fit in an integer `dtype`.
    """
    flat = np.concatenate(rows) if rows else np.empty(0, dtype=dtype)
    cast = flat.astype(dtype)
    if np.issubdtype(cast.dtype, np.integer) and not np.array_equal(cast, flat):
        raise OverflowError(f"a value does not fit in {cast.dtype}")
    flat = cast
    return flat, offsets_of(np.array([len(row) for row in rows], dtype=np.int64))


def row_sums(values: Array, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum of each ragged row of integers: [rows]. An empty row sums to 0."""
    return np.diff(offsets_of(values)[offsets])


def stretches(values: Array, starts: NDArray[np.int64], length: int) -> Array:
    """Return copies of values[start : start + length] for every start: [starts, length]."""
    if length == 0:
        return np.empty((len(starts), 0), values.dtype)
    # NumPy copies a stretch as one item of opaque bytes twice as fast as `length` separate items.
    item = np.dtype((np.void, length * values.itemsize))
    windows = np.ndarray((len(values) - length + 1,), item, values, strides=values.strides)
    copies: Array = windows[starts].view(values.dtype)
    return copies.reshape(len(starts), length)
