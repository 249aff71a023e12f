"""Write a cache in a directory that all processes share: first the plan, then the shards, last the manifest.

A shard's file is published before its commit record, so every shard with a record can be read. When two processes write
the same shard, hard links decide: the first commit record stands (storage/FORMAT.md, "Writing").
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.disk.directories import remove_directory, remove_leftovers
from storage.disk.files import TEMPORARY_PREFIX, holds, link_or_copy, write_file
from storage.disk.safe_paths import safe_join
from storage.errors import ConfigError, IncompleteCacheError
from storage.records.commits import forget_lost_shard, read_held_commit, read_plan, write_commit, write_plan
from storage.records.identity import PLAN_NAME, CacheIdentity, ShardKey, ShardRecord
from storage.records.manifest import MANIFEST_NAME, Manifest
from storage.shards.shard import write_shard
from storage.writing.card_and_manifest import read_finished, write_card_and_manifest
from storage.writing.plan_comparison import require_same_facts, require_same_plan

WORK_DIR = ".work"


class DirectoryDestination:
    """A directory as a Destination. merge and compact write their caches with it, too."""

    def __init__(self, out: Path) -> None:
        self.where = str(out)
        self.work_dir = out / WORK_DIR
        self.directory = out

    def require_own(self) -> None:
        """Raise ConfigError unless the directory is missing, empty, or a begun or finished cache; ignore leftovers."""
        if self.directory.exists() and not self.directory.is_dir():
            raise ConfigError(f"--out {self.where}: not a directory")
        if self.directory.exists() and not self._is_begun() and not self._has_manifest():
            ours = (WORK_DIR, TEMPORARY_PREFIX)
            strangers = [path.name for path in self.directory.iterdir() if not path.name.startswith(ours)]
            if strangers:
                raise ConfigError(
                    f"--out {self.where}: not empty and not a cache (found {strangers[0]!r}); name another directory"
                )

    def published_plan(self) -> CacheIdentity | None:
        """Return the plan on disk; None when there is none."""
        return read_plan(self.directory) if self._is_begun() else None

    def require_same_facts(self, facts: dict[str, Any]) -> None:
        """Raise CacheMismatchError when there is a plan and it differs from what is known of this run."""
        if self._is_begun():
            require_same_facts(self.where, read_plan(self.directory), facts)

    def begin_or_resume(self, identity: CacheIdentity) -> CacheIdentity:
        """Write the plan unless there is one; return the plan on disk.

        Raise CacheMismatchError when that plan differs from `identity`. Software versions may differ: any run with the
        same teacher, data and settings may finish a cache.
        """
        if not self._is_begun():
            write_plan(self.directory, identity, if_taken="drop")
        begun = read_plan(self.directory)  # perhaps written by a run that began at the same time
        require_same_plan(self.where, begun, identity)
        return begun

    def add_file(self, path: str, content: bytes) -> None:
        """Publish a file that is not a shard; replace one with other content, which is damaged.

        Raise UnsafePathError, LinkInTheWayError or WriteRefusedError.
        """
        if not holds(self.directory / path, content):
            write_file(safe_join(self.directory, path, self.where), content)

    def look_up(self, keys: Sequence[ShardKey]) -> list[ShardKey]:
        """Return nothing: on a disk, single lookups are fast, and a commit record stands beside its own shard."""
        return []

    def read_commit(self, key: ShardKey) -> ShardRecord | None:
        """Return a shard's commit record; None when the shard must be written."""
        return read_held_commit(self.directory, key)

    def prove(self, keys: Sequence[ShardKey], progress: Callable[[int], object]) -> list[ShardKey]:
        """Return nothing, as look_up does."""
        return []

    def stage_shard(
        self, identity: CacheIdentity, key: ShardKey, first_row: int, batches: Iterator[pa.RecordBatch]
    ) -> Callable[[], None]:
        """Write a shard; return the function that commits it. If another process commits it first, that shard stays."""
        forget_lost_shard(self.directory, key)
        record = write_shard(self.directory, identity, key, first_row, batches)
        return functools.partial(self._commit, record)

    def add_shard_file(self, source: Path, record: ShardRecord) -> None:
        """Commit the file `source` as the shard of `record`, by a hard link or, if that fails, by a copy."""
        link_or_copy(source, safe_join(self.directory, record.path, self.where))
        write_commit(self.directory, record)

    def hurry(self) -> None:
        """Do nothing: writes to a disk are not retried."""

    def finish(self, identity: CacheIdentity, tokenizer_files: Sequence[str]) -> Manifest:
        """Write card and manifest over all committed shards, also those of other processes; return the manifest.

        Leave a cache that is finished and whole as it is.

        tokenizer_files: paths in the cache. Raise IncompleteCacheError when the file system shows fewer commit records
        with their shards than are planned.
        """
        records = self._committed(identity)
        if len(records) < identity.num_planned_shards:
            raise IncompleteCacheError(self.where, len(records), identity.num_planned_shards)
        finished = read_finished(self.directory, identity, records)
        return finished or write_card_and_manifest(self.directory, identity, records, tokenizer_files)

    def finished(self) -> Manifest | None:
        """Return the manifest of a cache to which nothing is to be added; None when it is not finished and whole."""
        if not self._has_manifest():
            return None
        identity = read_plan(self.directory)
        return read_finished(self.directory, identity, self._committed(identity))

    def clean_up(self, *, is_done: bool) -> None:
        """Remove the work directory and leftovers if the cache is finished or has no plan; then an empty directory."""
        if self._has_manifest() or not self._is_begun():
            remove_directory(self.work_dir)
            remove_leftovers(self.directory)
        with contextlib.suppress(OSError):
            self.directory.rmdir()  # only when it is empty

    def _commit(self, record: ShardRecord) -> None:
        write_commit(self.directory, record, if_taken="drop")

    def _committed(self, identity: CacheIdentity) -> list[ShardRecord]:
        """Return the records of the planned shards that are committed and held, in order."""
        return [record for key in identity.planned_keys() if (record := self.read_commit(key)) is not None]

    def _has_manifest(self) -> bool:
        return (self.directory / MANIFEST_NAME).exists()

    def _is_begun(self) -> bool:
        return (self.directory / PLAN_NAME).exists()
