"""samples: a row is one text that the teacher drew for a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.errors import RowError
from storage.rows import columns

FINISH_REASONS = ("stop", "length")


def schema(vocab_size: int) -> pa.Schema:
    """Columns of a samples shard."""
    tokens = columns.required_list(columns.token_type(vocab_size))
    return pa.schema(
        [
            columns.required("row_id", pa.int64()),
            columns.required("prompt_id", pa.int64()),
            columns.required("sample_index", pa.int32()),
            columns.required("prompt_ids", tokens),
            columns.required("completion_ids", tokens),
            columns.required("completion_logprobs", columns.required_list(pa.float16())),
            columns.required("text", pa.large_string()),
            columns.required("finish_reason", pa.string()),
            columns.required("seed", pa.uint64()),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One drawn text. completion_ids [n] and completion_logprobs [n] (nats, at temperature 1)."""

    row_id: int
    prompt_id: int
    sample_index: int
    prompt_ids: NDArray[Any]
    completion_ids: NDArray[Any]
    completion_logprobs: NDArray[Any]
    text: str
    finish_reason: str
    seed: int


def encode(rows: list[SampleRow], row_schema: pa.Schema) -> pa.RecordBatch:
    """Rows to a record batch."""

    def column(field: pa.Field) -> pa.Array:
        values = [getattr(row, field.name) for row in rows]
        if not pa.types.is_large_list(field.type):
            return pa.array(values, type=field.type)
        flat, offsets = columns.flatten_ragged(values, field.type.value_type.to_pandas_dtype())
        return columns.to_ragged(flat, offsets, field.type)

    return pa.RecordBatch.from_arrays([column(field) for field in row_schema], schema=row_schema)


def decode(batch: pa.RecordBatch) -> list[SampleRow]:
    """A record batch to rows."""
    lists = {
        name: np.split(values, offsets[1:-1])
        for name in ("prompt_ids", "completion_ids", "completion_logprobs")
        for values, offsets in [columns.ragged(batch, name)]
    }
    scalars = {name: batch.column(name).to_pylist() for name in batch.schema.names if name not in lists}
    named = lists | scalars
    return [SampleRow(**{name: values[i] for name, values in named.items()}) for i in range(batch.num_rows)]


def check(batch: pa.RecordBatch, vocab_size: int, where: str) -> None:
    """Raise RowError unless every row obeys the format's rules."""
    for name in ("prompt_ids", "completion_ids"):
        values, offsets = columns.ragged(batch, name)
        if np.any(values >= vocab_size):
            raise RowError(where, name, f"an id is outside the vocabulary of {vocab_size}")
        if np.any(np.diff(offsets) == 0):
            raise RowError(where, name, "is empty")
    logprobs, logprob_offsets = columns.ragged(batch, "completion_logprobs")
    if not np.array_equal(logprob_offsets, columns.ragged(batch, "completion_ids")[1]):
        raise RowError(where, "completion_logprobs", "its lengths differ from completion_ids")
    if not np.all(np.isfinite(logprobs) & (logprobs <= 0)):
        raise RowError(where, "completion_logprobs", "a value is not a finite number ≤ 0")
    if not set(columns.strings(batch, "finish_reason")) <= set(FINISH_REASONS):
        raise RowError(where, "finish_reason", f"a value is not one of {', '.join(FINISH_REASONS)}")
