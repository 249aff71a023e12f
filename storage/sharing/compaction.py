"""Compressing the shards of a finished cache harder, offline: the same rows in fewer bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from storage.disk.files import link_or_copy, remove_leftovers
from storage.errors import ConfigError
from storage.reading.cache import Cache, open_cache
from storage.records.commits import read_held_commit, write_commit
from storage.records.identity import ShardRecord
from storage.shards.shard import Shard, write_shard
from storage.writing.publication import begin_or_resume, copy_tokenizer, finish, require_own_directory

COMPACT_ZSTD_LEVEL = 19
_MAX_ZSTD_LEVEL = 22


def compact(
    cache_dir: Path,
    out: Path,
    zstd_level: int = COMPACT_ZSTD_LEVEL,
    progress: Callable[[int], object] = lambda num_bytes: None,
    kept: Callable[[int], object] = lambda num_bytes: None,
) -> Cache:
    """Write the rows of a finished cache to a new cache at `out`, compressed at zstd_level (1 to 22).

    `progress` is told the old bytes of each shard when it is done. A shard that would not shrink keeps its
    bytes. The cache in cache_dir is only read. Killed and run again, it goes on; shards that an earlier run
    committed stay as they are, whatever its level was, and `kept` is told of them instead.

    Raises ConfigError for a level that zstd does not have and an `out` that is cache_dir or no place for a
    cache, CacheMismatchError for one that is another cache, what open_cache and reading a shard raise
    for a cache that is not finished or damaged, and WriteRefusedError.
    """
    if not 1 <= zstd_level <= _MAX_ZSTD_LEVEL:
        raise ConfigError(f"--zstd-level is {zstd_level}, expected 1 to {_MAX_ZSTD_LEVEL}")
    cache = open_cache(cache_dir)
    if out.exists() and out.samefile(cache_dir):
        raise ConfigError(f"--out {out}: is the cache itself; name another directory")
    require_own_directory(out)
    identity = begin_or_resume(out, cache.identity)
    tokenizer_files = copy_tokenizer(cache, out)
    for record in cache.manifest.shards:
        if read_held_commit(out, record.key) is None:
            write_commit(out, _recompress(cache, record, out, zstd_level))
            progress(record.shard_bytes)
        else:
            kept(record.shard_bytes)
    finish(out, identity, tokenizer_files)
    remove_leftovers(out)
    return open_cache(out)


def _recompress(cache: Cache, record: ShardRecord, out: Path, zstd_level: int) -> ShardRecord:
    """Publish a shard's rows at `out`, in the fewer bytes of old and new ones, and return its record."""
    shard = cache.open_shard(record)
    try:
        compacted = write_shard(
            out, cache.identity, record.key, record.first_row_id, _record_batches(shard), zstd_level
        )
        if compacted.shard_bytes < record.shard_bytes:
            return compacted
        link_or_copy(cache.path / record.path, out / record.path)
        return record
    finally:
        cache.close_shard(shard)


def _record_batches(shard: Shard) -> Iterator[pa.RecordBatch]:
    return (shard.read_batch(index) for index in range(shard.num_record_batches))
