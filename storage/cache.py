"""Opening a finished cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from storage.errors import IncompleteCacheError, MissingKindError, NoCacheError
from storage.manifest import (
    MANIFEST_NAME,
    PLAN_NAME,
    CacheIdentity,
    Manifest,
    ShardRecord,
    read_commit,
    read_manifest,
    read_plan,
)
from storage.shard import Shard

TOKENIZER_DIR = "tokenizer"


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A finished cache on local disk."""

    path: Path
    manifest: Manifest

    @property
    def identity(self) -> CacheIdentity:
        """Teacher, tokenizer, data and configuration."""
        return self.manifest.identity

    @property
    def tokenizer_dir(self) -> Path:
        """Directory with the tokenizer that travels with the cache."""
        return self.path / TOKENIZER_DIR

    def shards(self, kind: str, split: str) -> tuple[ShardRecord, ...]:
        """Shards of one kind and split; raises MissingKindError when there are no rows."""
        found = self.manifest.shards_of(kind, split)
        if not sum(shard.num_rows for shard in found):
            raise MissingKindError(str(self.path), kind, split)
        return found

    def num_rows(self, kind: str, split: str) -> int:
        """Rows of one kind and split, 0 when the cache holds none."""
        return sum(shard.num_rows for shard in self.manifest.shards_of(kind, split))

    def open_shard(self, record: ShardRecord) -> Shard:
        """Open a shard, its sha256 checked."""
        return Shard(self.path, self.identity, record)

    def record_batches(self, kind: str, split: str) -> Iterator[pa.RecordBatch]:
        """All record batches of one kind and split in stored order."""
        for record in self.shards(kind, split):
            shard = self.open_shard(record)
            for index in range(shard.num_record_batches):
                yield shard.read_batch(index)


def open_cache(path: str | Path) -> Cache:
    """Open a finished cache.

    Raises NoCacheError when there is none, IncompleteCacheError when precompute has not finished,
    RecordError or FormatVersionError when its manifest cannot be trusted.
    """
    cache_dir = Path(path)
    try:
        is_complete, is_begun = (cache_dir / MANIFEST_NAME).is_file(), (cache_dir / PLAN_NAME).is_file()
    except OSError as error:
        raise NoCacheError(str(path)) from error
    if is_complete:
        return Cache(path=cache_dir, manifest=read_manifest(cache_dir))
    if is_begun:
        planned = read_plan(cache_dir).planned_keys()
        committed = sum(read_commit(cache_dir, key) is not None for key in planned)
        raise IncompleteCacheError(str(path), committed, len(planned))
    raise NoCacheError(str(path))
