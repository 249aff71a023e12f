"""A cache that is made in a directory, which all processes share: the plan first, shards, the manifest last.

A shard's file is there before its commit record, so that whatever has a record can be read. Processes that make the
same shard settle it by hard links: the first commit record stands (storage/FORMAT.md, "Writing").
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.disk.directories import remove_directory, remove_leftovers
from storage.disk.files import TEMPORARY_PREFIX, link_or_copy, write_unless_equal
from storage.errors import ConfigError, IncompleteCacheError
from storage.records.commits import forget_lost_shard, read_held_commit, read_plan, write_commit, write_plan
from storage.records.identity import PLAN_NAME, CacheIdentity, ShardKey, ShardRecord
from storage.records.manifest import MANIFEST_NAME, Manifest
from storage.shards.shard import write_shard
from storage.writing.card_and_manifest import write_card_and_manifest
from storage.writing.plan_comparison import require_same_facts, require_same_plan

WORK_DIR = ".work"


class DirectoryDestination:
    """A directory as a Destination; merge and compact make their caches here too."""

    def __init__(self, out: Path) -> None:
        self.where = str(out)
        self.work_dir = out / WORK_DIR
        self.directory = out

    def require_own(self) -> None:
        """Raise ConfigError unless it is a cache, begun or finished, or a place where one can be begun."""
        if self.directory.exists() and not self.directory.is_dir():
            raise ConfigError(f"--out {self.where}: not a directory")
        if self.directory.exists() and not self._is_begun() and not self.is_finished():
            ours = (WORK_DIR, TEMPORARY_PREFIX)
            strangers = [path.name for path in self.directory.iterdir() if not path.name.startswith(ours)]
            if strangers:
                raise ConfigError(
                    f"--out {self.where}: not empty and not a cache (found {strangers[0]!r}); name another directory"
                )

    def require_same_facts(self, facts: dict[str, Any]) -> None:
        """Check what is known of this run against the plan, if one is there; raises CacheMismatchError."""
        if self._is_begun():
            require_same_facts(self.where, read_plan(self.directory), facts)

    def begin_or_resume(self, identity: CacheIdentity) -> CacheIdentity:
        """Write the plan of a new cache, or check that this run is the one that began it.

        Software versions may differ: any run with the same teacher and data may finish a cache. Returns the plan as it
        was begun; raises CacheMismatchError when it is another one.
        """
        if not self._is_begun():
            write_plan(self.directory, identity, if_taken="drop")
        begun = read_plan(self.directory)  # perhaps of a run that began at the same time
        require_same_plan(self.where, begun, identity)
        return begun

    def add_file(self, path: str, content: bytes) -> None:
        """Publish a file that is no shard; a damaged one is replaced."""
        write_unless_equal(self.directory / path, content)

    def look_up(self, keys: Sequence[ShardKey]) -> None:
        """Do nothing: a disk answers each question at once."""

    def read_commit(self, key: ShardKey) -> ShardRecord | None:
        """A shard's commit record, None when the shard has to be made."""
        return read_held_commit(self.directory, key)

    def add_shard(
        self, identity: CacheIdentity, key: ShardKey, first_row: int, batches: Iterator[pa.RecordBatch]
    ) -> None:
        """Write a shard and commit it; where another process was quicker, its shard stays."""
        forget_lost_shard(self.directory, key)
        write_commit(self.directory, write_shard(self.directory, identity, key, first_row, batches), if_taken="drop")

    def add_shard_file(self, source: Path, record: ShardRecord) -> None:
        """Commit a shard whose bytes are those of `source`: a second name of that file, or a copy of it."""
        link_or_copy(source, self.directory / record.path)
        write_commit(self.directory, record)

    def hurry(self) -> None:
        """Do nothing: a disk keeps no writer waiting."""

    def finish(self, identity: CacheIdentity, tokenizer_files: Sequence[str]) -> Manifest:
        """Join what is committed, whoever committed it, and the tokenizer's files (paths in the cache).

        Raises IncompleteCacheError when the system shows fewer commit records, with their shards, than are planned.
        """
        planned = identity.planned_keys()
        records = [record for key in planned if (record := self.read_commit(key)) is not None]
        if len(records) < len(planned):
            raise IncompleteCacheError(self.where, len(records), len(planned))
        return write_card_and_manifest(self.directory, identity, records, tokenizer_files)

    def is_finished(self) -> bool:
        """Whether there is a manifest."""
        return (self.directory / MANIFEST_NAME).exists()

    def clean_up(self, *, is_done: bool) -> None:
        """Tidy a finished cache, and a directory in which nothing was begun."""
        if self.is_finished() or not self._is_begun():
            remove_directory(self.work_dir)
            remove_leftovers(self.directory)
        with contextlib.suppress(OSError):
            self.directory.rmdir()  # only when it is empty

    def _is_begun(self) -> bool:
        return (self.directory / PLAN_NAME).exists()
