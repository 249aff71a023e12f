"""Where precompute makes a cache: a directory, or a URL. Any number of processes may be at one destination."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from storage.reading.remote_cache import user_cache_dir
from storage.records.identity import CacheIdentity, ShardKey, ShardRecord
from storage.records.manifest import Manifest
from storage.remote.directory import is_remote_url
from storage.writing.directory_destination import DirectoryDestination
from storage.writing.remote_destination import RemoteDestination


class Destination(Protocol):
    """What precompute asks of the place of a cache, in the order in which it asks.

    where: what to call it in messages. work_dir: a local directory for what processes keep beside the cache; those
    that share it divide the work.
    """

    where: str
    work_dir: Path

    def require_own(self) -> None:
        """Raise ConfigError when no cache can be there."""

    def require_same_facts(self, facts: dict[str, Any]) -> None:
        """Raise CacheMismatchError when a plan is published that says otherwise than these parts of an identity."""

    def begin_or_resume(self, identity: CacheIdentity) -> CacheIdentity:
        """Publish the plan, or check that it is this one; the plan as it was begun. Raises CacheMismatchError."""

    def add_file(self, path: str, content: bytes) -> None:
        """Publish a file that is no shard, unless it is there with this content."""

    def look_up(self, keys: Sequence[ShardKey]) -> None:
        """Learn which of many shards are committed, where asking for one after the other is slow."""

    def read_commit(self, key: ShardKey) -> ShardRecord | None:
        """A shard's commit record, None when the shard is not committed, or its file is lost or has another size."""

    def add_shard(
        self, identity: CacheIdentity, key: ShardKey, first_row: int, batches: Iterator[pa.RecordBatch]
    ) -> None:
        """Write a shard and commit it; nothing when it is committed meanwhile."""

    def hurry(self) -> None:
        """The run has failed: what other threads do here goes on only as long as nothing has to be waited for."""

    def finish(self, identity: CacheIdentity, tokenizer_files: Sequence[str]) -> Manifest:
        """Join what is committed, whoever committed it, and the tokenizer's files (paths in the cache).

        Raises IncompleteCacheError when fewer commit records are shown than are planned.
        """

    def is_finished(self) -> bool:
        """Whether the cache is whole."""

    def clean_up(self, *, is_done: bool) -> None:
        """Called by the last process that leaves work_dir: remove what nobody needs any more.

        is_done: it leaves because every shard is committed.
        """


def open_destination(out: str | Path, work_dir: Path | None = None) -> Destination:
    """The place for a cache.

    work_dir: for a URL, the directory below which work directories are made; None is the user's cache directory.
    Raises ConfigError for a URL that cannot be served.
    """
    if is_remote_url(str(out)):
        name = f"precompute-{hashlib.sha256(str(out).rstrip('/').encode()).hexdigest()[:16]}"
        return RemoteDestination(str(out), (work_dir or user_cache_dir()) / name)
    return DirectoryDestination(Path(out))
