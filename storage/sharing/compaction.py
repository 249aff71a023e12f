"""Compress the shards of a finished cache at a higher zstd level: the same rows in fewer bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from storage.disk.directories import remove_leftovers
from storage.errors import ConfigError
from storage.reading.cache import Cache, open_cache
from storage.records.commits import write_commit
from storage.records.identity import ShardRecord
from storage.shards.shard import write_shard
from storage.sharing.tokenizer_copy import copy_tokenizer
from storage.writing.directory_destination import DirectoryDestination

COMPACT_ZSTD_LEVEL = 19
_MAX_ZSTD_LEVEL = 22


def compact(
    cache_dir: Path,
    out: Path,
    zstd_level: int = COMPACT_ZSTD_LEVEL,
    progress: Callable[[int], object] = lambda num_bytes: None,
    kept: Callable[[int], object] = lambda num_bytes: None,
) -> Cache:
    """Write the rows of a finished cache to a new cache at `out`, compressed at zstd_level (1 to 22); return it opened.

    The cache in cache_dir is only read. A shard that would not shrink keeps its bytes. If this function is killed, call
    it again to resume. Shards that an earlier call committed stay as they are, even when its level was different.

    `progress` receives the old bytes of each shard after it is written. `kept` receives the old bytes of each shard
    that was already committed.

    Raise ConfigError for a level that zstd does not have, or when `out` is cache_dir or holds something that is not a
    cache; CacheMismatchError when `out` is a different cache; the errors of open_cache and of reading a shard when the
    cache is not finished or is damaged; WriteRefusedError when a write fails.
    """
    if not 1 <= zstd_level <= _MAX_ZSTD_LEVEL:
        raise ConfigError(f"--zstd-level is {zstd_level}, expected 1 to {_MAX_ZSTD_LEVEL}")
    cache = open_cache(cache_dir)
    if out.exists() and out.samefile(cache_dir):
        raise ConfigError(f"--out {out}: is the cache itself; name another directory")
    destination = DirectoryDestination(out)
    destination.require_own()
    identity = destination.begin_or_resume(cache.identity)
    tokenizer_files = copy_tokenizer(cache, destination)
    for record in cache.manifest.shards:
        if destination.read_commit(record.key) is None:
            _add_recompressed(cache, record, destination, zstd_level)
            progress(record.shard_bytes)
        else:
            kept(record.shard_bytes)
    destination.finish(identity, tokenizer_files)
    remove_leftovers(out)
    return open_cache(out)


def _add_recompressed(cache: Cache, record: ShardRecord, destination: DirectoryDestination, zstd_level: int) -> None:
    """Recompress a shard; commit the new file if it is smaller, otherwise the old one."""
    shard = cache.open_shard(record)
    try:
        batches = (shard.read_batch(index) for index in range(shard.num_record_batches))
        compacted = write_shard(
            destination.directory, cache.identity, record.key, record.first_row_id, batches, zstd_level
        )
        if compacted.shard_bytes < record.shard_bytes:
            write_commit(destination.directory, compacted)
        else:
            destination.add_shard_file(cache.path / record.path, record)
    finally:
        cache.close_shard(shard)
