"""Verify a cache: hash every byte, check every row, compare every count, name every file that does not belong to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storage.errors import CacheError, RowError
from storage.reading.cache import Cache, open_cache
from storage.reading.unlisted import unlisted_files
from storage.records.commits import check_commit, check_plan
from storage.records.identity import ShardRecord
from storage.shards.shard import batch_stats, check_file


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The outcome of a verification: how much was checked, and one error for each problem. num_bytes: of the shards."""

    num_shards: int
    num_rows: int
    num_bytes: int
    problems: tuple[CacheError, ...]


def verify_cache(path: str | Path, progress: Callable[[int], object] = lambda num_bytes: None) -> Verification:
    """Check everything in a cache. `progress` receives the number of bytes of each file after its check.

    Raise NoCacheError, IncompleteCacheError, RecordError or FormatVersionError when there is no manifest to verify
    against. Return every other problem.
    """
    cache = open_cache(path)
    problems = check_records(cache)
    for file in cache.manifest.files:
        problems += _caught(lambda file=file: check_file(cache.path, file))  # type: ignore[misc]
        progress(file.file_bytes)
    for record in cache.manifest.shards:
        problems += _caught(lambda record=record: _check_shard(cache, record))  # type: ignore[misc]
        progress(record.shard_bytes)
    problems += unlisted_files(cache.path, cache.manifest)
    return Verification(
        num_shards=len(cache.manifest.shards),
        num_rows=sum(record.num_rows for record in cache.manifest.shards),
        num_bytes=sum(record.shard_bytes for record in cache.manifest.shards),
        problems=tuple(problems),
    )


def _caught(check: Callable[[], object]) -> list[CacheError]:
    try:
        check()
    except CacheError as error:
        return [error]
    return []


def check_records(cache: Cache) -> list[CacheError]:
    """Return one error for each plan or commit record that differs from the opened cache's manifest. Read no shard."""
    problems = _caught(lambda: check_plan(cache.path, cache.manifest))
    for record in cache.manifest.shards:
        problems += _caught(lambda record=record: check_commit(cache.path, record))  # type: ignore[misc]
    return problems


def _check_shard(cache: Cache, record: ShardRecord) -> None:
    shard = cache.open_shard(record)
    kind = record.key.kind
    stats = [batch_stats(shard.read_batch(index), kind) for index in range(shard.num_record_batches)]
    found = (
        sum(s.num_tokens for s in stats),
        sum(s.num_targets for s in stats),
        float(sum(s.entropy_sum_nats for s in stats)),
        float(sum(s.label_nll_sum_nats for s in stats)),
    )
    recorded = (record.num_tokens, record.num_targets, record.entropy_sum_nats, record.label_nll_sum_nats)
    if found != recorded:
        raise RowError(record.path, "counts", f"the rows give {found}, the manifest says {recorded}")
