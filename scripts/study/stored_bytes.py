"""Measure the bytes per token that columns of sparse targets take on disk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.plan import RECORD_BATCH_ROWS
from pipeline.producers.sparsify import SparseTargets
from storage.rows.soft_targets import SoftTargetRows, encode, schema
from storage.shards.shard import ZSTD_LEVEL

PAYLOAD = ["head_size", "tail_size", "ids", "logprobs"]


def payload_bytes(found: SparseTargets, vocab_size: int, block_size: int, mantissa_bits: int) -> float:
    """Return the bytes per token of ids, logprobs and sizes."""
    batch = as_record_batch(found, vocab_size, block_size, mantissa_bits)
    return compressed_bytes(batch.select(PAYLOAD)) / len(found.head_size)


def as_record_batch(
    found: SparseTargets,
    vocab_size: int,
    block_size: int,
    mantissa_bits: int,
    input_ids: NDArray[Any] | None = None,
) -> pa.RecordBatch:
    """Return targets of whole blocks [R · T] as rows of a cache. input_ids [R, T + 1] are zeros unless given."""
    shape = (len(found.head_size) // block_size, block_size)
    rows = SoftTargetRows(
        row_id=np.arange(shape[0]),
        input_ids=np.zeros((shape[0], block_size + 1), np.int64) if input_ids is None else input_ids,
        segment_lengths=[np.array([block_size + 1])] * shape[0],
        head_size=found.head_size.reshape(shape),
        tail_size=found.tail_size.reshape(shape),
        ids=found.ids,
        logprobs=found.logprobs,
        tail_logprob=found.tail_logprob.reshape(shape),
        entropy=found.entropy.reshape(shape),
        label_logprob=found.label_logprob.reshape(shape),
        tempered_tail_logmass={},
    )
    return encode(rows, schema(vocab_size, block_size), mantissa_bits, scalar_mantissa_bits=mantissa_bits)


def compressed_bytes(
    batch: pa.RecordBatch, record_batch_rows: int = RECORD_BATCH_ROWS, zstd_level: int = ZSTD_LEVEL
) -> int:
    """Return the size in bytes of a shard with these columns, without the size of an empty shard."""
    codec = pa.Codec("zstd", compression_level=zstd_level)

    def file_bytes(rows: pa.RecordBatch) -> int:
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression=codec)
        with pa.ipc.new_file(sink, rows.schema, options=options) as writer:
            for start in range(0, rows.num_rows, record_batch_rows):
                writer.write_batch(rows.slice(start, record_batch_rows))
        return int(sink.getvalue().size)

    return file_bytes(batch) - file_bytes(batch.slice(0, 0))


def draw_counts_bytes(ids_CD: NDArray[np.int64], vocab_size: int, block_size: int) -> float:
    """Return the bytes per token of draws with replacement, stored as ascending ids with counts in an Arrow file."""
    unique = [np.unique(row, return_counts=True) for row in ids_CD]
    sizes = np.array([len(ids) for ids, _ in unique])
    per_row = sizes.reshape(-1, block_size).sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(per_row)])
    token = pa.uint16() if vocab_size <= 1 << 16 else pa.uint32()

    def ragged(parts: list[NDArray[Any]], value_type: pa.DataType) -> pa.Array:
        return pa.LargeListArray.from_arrays(
            pa.array(offsets, pa.int64()), pa.array(np.concatenate(parts), type=value_type)
        )

    columns = {
        "ids": ragged([ids for ids, _ in unique], token),
        "counts": ragged([counts for _, counts in unique], pa.uint8()),
        "sizes": pa.FixedSizeListArray.from_arrays(pa.array(sizes, type=pa.uint8()), block_size),
    }
    return compressed_bytes(pa.RecordBatch.from_pydict(columns)) / len(ids_CD)
