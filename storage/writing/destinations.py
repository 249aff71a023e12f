"""The place where precompute writes a cache: a directory or a URL. Any number of processes may write to it at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from storage.disk.directories import own_directory
from storage.reading.remote_cache import user_cache_dir
from storage.records.identity import CacheIdentity, ShardKey, ShardRecord
from storage.records.manifest import Manifest
from storage.remote.directory import is_remote_url
from storage.writing.directory_destination import DirectoryDestination
from storage.writing.remote_destination import RemoteDestination


class Destination(Protocol):
    """The place where precompute writes a cache. The methods are in the order of their first calls.

    where: the name of the place in messages. work_dir: a local directory for files that processes keep beside the
    cache. Processes that share it divide the work.
    """

    where: str
    work_dir: Path

    def require_own(self) -> None:
        """Raise ConfigError when no cache can be written there."""

    def published_plan(self) -> CacheIdentity | None:
        """Return the plan of the cache; None when it is not begun."""

    def require_same_facts(self, facts: dict[str, Any]) -> None:
        """Raise CacheMismatchError when a plan is published and differs from `facts`, some fields of an identity."""

    def begin_or_resume(self, identity: CacheIdentity) -> CacheIdentity:
        """Publish the plan unless there is one; return the published plan. Raise CacheMismatchError when it differs."""

    def add_file(self, path: str, content: bytes) -> None:
        """Publish a file that is not a shard, unless it is there with this content."""

    def look_up(self, keys: Sequence[ShardKey]) -> list[ShardKey]:
        """Find out which of these shards are committed, many at a time where single requests are slow.

        Return the keys of committed shards that are to be read back before the cache is finished.
        """

    def read_commit(self, key: ShardKey) -> ShardRecord | None:
        """Return a shard's commit record; None if it is not committed, or its file is lost or has another size."""

    def prove(self, keys: Sequence[ShardKey], progress: Callable[[int], object]) -> list[ShardKey]:
        """Read these committed shards back; return those that are lost or damaged and must be written again.

        `progress` receives the number of shards done.
        """

    def stage_shard(
        self, identity: CacheIdentity, key: ShardKey, first_row: int, batches: Iterator[pa.RecordBatch]
    ) -> Callable[[], None]:
        """Write a shard; return the function that commits it. Another thread may call it.

        If another process commits the shard meanwhile, that shard stays.
        """

    def hurry(self) -> None:
        """Tell other threads that the run has failed: finish what is in progress, but do not wait for retries."""

    def finish(self, identity: CacheIdentity, tokenizer_files: Sequence[str]) -> Manifest:
        """Write card and manifest over all committed shards, also those of other processes; return the manifest.

        Leave a cache that is finished and whole as it is.

        tokenizer_files: paths in the cache. Raise IncompleteCacheError when fewer shards are found than are planned.
        """

    def finished(self) -> Manifest | None:
        """Return the manifest of a cache to which nothing is to be added; None when it is not finished and whole."""

    def clean_up(self, *, is_done: bool) -> None:
        """Remove files that no process needs. The last process that leaves work_dir calls this.

        is_done: whether the process leaves because every shard is committed.
        """


def open_destination(out: str | Path, work_dir: Path | None = None) -> Destination:
    """Return the destination for `out`, a directory or a URL.

    work_dir: for a URL, the parent of the work directory; None means the user's cache directory. A directory ignores
    it. Another user's work directory is left to that user. Raise ConfigError for a URL that cannot be served.
    """
    if is_remote_url(str(out)):
        name = f"precompute-{hashlib.sha256(str(out).rstrip('/').encode()).hexdigest()[:16]}"
        return RemoteDestination(str(out), own_directory((work_dir or user_cache_dir()) / name))
    return DirectoryDestination(Path(out))
