"""The teachonce cache, read as a trainer reads it, and read after verification."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scripts.support.caches import made_up_identity
from scripts.support.rows import ARRAY_TYPES, BLOCK_SIZE, NUM_ROWS, ROWS_PER_SHARD, VOCAB_SIZE, Row, RowSet
from scripts.support.system import System
from storage.reading.cache import open_cache
from storage.reading.row_stream import RowStream
from storage.reading.verification import verify_cache
from storage.records.identity import CacheIdentity
from storage.records.manifest import MANIFEST_NAME
from storage.rows import soft_targets
from storage.rows.soft_targets import SoftTargetRows
from storage.writing.directory_destination import DirectoryDestination

_BATCH_ROWS = 32
_NUM_SHARDS = NUM_ROWS // ROWS_PER_SHARD

_IDENTITY = dataclasses.replace(
    made_up_identity(
        NUM_ROWS, BLOCK_SIZE, VOCAB_SIZE, top_k=2, tail_weight=0.25, mantissa_bits=10, num_shards=_NUM_SHARDS
    ),
    record_batch_rows=_BATCH_ROWS,
)


def _write(directory: Path, rows: RowSet) -> None:
    """Write as precompute does: plan, missing shards each with its commit record, card, manifest."""
    if (directory / MANIFEST_NAME).exists():
        open_cache(directory)
        return
    destination = DirectoryDestination(directory)
    identity = destination.begin_or_resume(_IDENTITY)
    for key in identity.planned_keys():
        if destination.read_commit(key) is None:
            first = key.index * ROWS_PER_SHARD
            starts = range(first, first + ROWS_PER_SHARD, _BATCH_ROWS)
            batches = (_encode([rows.make_row(start + i) for i in range(_BATCH_ROWS)], identity) for start in starts)
            destination.stage_shard(identity, key, first, batches)()
    destination.finish(identity, [])


def _encode(rows: list[Row], identity: CacheIdentity) -> Any:
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in ("row_id", *ARRAY_TYPES)}
    for name in columns.keys() - {"segment_lengths", "ids", "logprobs"}:
        columns[name] = np.array(columns[name])
    for name in ("ids", "logprobs"):
        columns[name] = np.concatenate(columns[name])
    encoded = SoftTargetRows(**columns, tempered_tail_logmass={})
    return soft_targets.encode(
        encoded, identity.schema("soft_targets"), identity.mantissa_bits, identity.scalar_mantissa_bits
    )


def _read(directory: Path, scratch: Path) -> Iterator[Row]:
    """Yield the rows of an epoch of the shuffled stream."""
    cache = open_cache(directory)
    stream = RowStream(cache, "soft_targets", "train", batch_rows=_BATCH_ROWS, seed=0)
    batches = stream.batches()
    for _ in range(stream.num_rows // _BATCH_ROWS):
        yield from _decode(next(batches).rows)


def _decode(batch: Any) -> Iterator[Row]:
    row_ids = batch.column("row_id").to_pylist()
    arrays = {name: batch.column(name) for name in ARRAY_TYPES}
    for i, row_id in enumerate(row_ids):
        yield {"row_id": row_id} | {
            name: array[i].values.to_numpy(zero_copy_only=False) for name, array in arrays.items()
        }


def _verify_and_read(directory: Path, scratch: Path) -> Iterator[Row]:
    problems = verify_cache(directory).problems
    if problems:
        raise problems[0]
    yield from _read(directory, scratch)


def _system(name: str, configuration: str, read: Any) -> System:
    return System(
        module=__name__,
        name=name,
        configuration=configuration,
        needs=("storage",),
        distributions=("pyarrow", "numpy"),
        data_suffixes=(".arrow",),
        write=_write,
        read=read,
        is_peer=False,
    )


SYSTEMS = (
    _system("teachonce", "as training reads it: RowStream", _read),
    _system("teachonce, verified", "teachonce-cache verify, then RowStream", _verify_and_read),
)
