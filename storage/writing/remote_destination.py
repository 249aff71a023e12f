"""Write a cache at a URL: write each shard to a local disk, send it and its commit record, and read both back.

Object stores have neither rename nor locks. A process looks for a shard's commit record before it makes the shard and
again before it sends it, so two processes seldom send the same shard. When they do, the later put replaces the earlier.
This is harmless when the processes agree on every byte. Otherwise readers detect it by the sha256 in the manifest.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.disk.directories import remove_directory
from storage.disk.files import refusals, write_file
from storage.errors import ConfigError, IncompleteCacheError, MissingFileError, RecordError
from storage.records.commits import read_commit, read_plan, write_commit, write_plan
from storage.records.identity import PLAN_NAME, CacheIdentity, FileRecord, ShardKey, ShardRecord
from storage.records.manifest import CARD_NAME, MANIFEST_NAME, Manifest, read_manifest
from storage.records.records import MAX_RECORD_BYTES
from storage.remote.crew import Crew
from storage.remote.directory import RemoteDirectory
from storage.remote.remote_records import read_remote, require_no_foreign_card
from storage.remote.retrying import DEFAULT_POLICY, RetryPolicy
from storage.remote.sending import Sender, Unit
from storage.shards.shard import write_shard
from storage.writing.card_and_manifest import file_record, write_card_and_manifest
from storage.writing.plan_comparison import require_same_facts, require_same_plan

# Commit records are small, so latency decides how long it takes to read them.
_NUM_CONNECTIONS = 32
# A file with this name in the work directory says that a run has begun the cache. Later runs resume from the directory.
_BEGUN_NAME = "begun"


class RemoteDestination:
    """A directory at a URL that fsspec writes, as a Destination."""

    def __init__(self, url: str, work_dir: Path, policy: RetryPolicy = DEFAULT_POLICY) -> None:
        """Raise ConfigError for a URL that cannot be served, and for the Hub, where every shard would be a commit."""
        self._crew = Crew(_NUM_CONNECTIONS, lambda num_bytes: None)
        self._remote = RemoteDirectory(url, policy, sleep=self._crew.sleep)
        self.where = self._remote.url
        self.work_dir = work_dir
        self._committed: dict[ShardKey, ShardRecord] = {}
        self._lost: set[ShardKey] = set()
        if self._remote.puts_are_commits:
            raise ConfigError(
                f"--out {self.where}: every shard would be a commit of its own there; write to a directory, and send "
                "it with teachonce-cache push"
            )

    def require_own(self) -> None:
        """Raise TransferError when the URL cannot be reached, ConfigError when it holds a README.md and no cache.

        A cache of another run is found later, by its plan.
        """
        require_no_foreign_card(self._remote)

    def published_plan(self) -> CacheIdentity | None:
        """Return the plan at the URL; None when there is none."""
        found = read_remote(self._remote, PLAN_NAME, read_plan)
        return found[0] if found else None

    def require_same_facts(self, facts: dict[str, Any]) -> None:
        """Raise CacheMismatchError when a plan is published and differs from what is known of this run."""
        begun = self.published_plan()
        if begun is not None:
            require_same_facts(self.where, begun, facts)

    def begin_or_resume(self, identity: CacheIdentity) -> CacheIdentity:
        """Put the plan unless there is one; return the plan at the URL. Raise CacheMismatchError when it differs."""
        if self.published_plan() is None:
            with self._staging() as staging:
                write_plan(staging, identity)
                self._send(staging, file_record(staging, PLAN_NAME))
        begun = self._begun(identity)
        write_file(self.work_dir / _BEGUN_NAME, b"")
        return begun

    def add_file(self, path: str, content: bytes) -> None:
        """Put a file that is not a shard unless it is there with this content."""
        with self._staging() as staging:
            write_file(staging / path, content)
            self._send(staging, file_record(staging, path))

    def look_up(self, keys: Sequence[ShardKey]) -> None:
        """Read the commit records that this process has not read yet, many at a time."""
        self._crew.map(self.read_commit, [key for key in keys if key not in self._committed])

    def read_commit(self, key: ShardKey) -> ShardRecord | None:
        """Return a shard's commit record; None when the shard must be written."""
        if key not in self._committed:
            found = read_remote(self._remote, key.commit_path, functools.partial(read_commit, key=key))
            if found is None or found[0] is None:
                return None
            if self._remote.num_bytes(key.path) != found[0].num_bytes:
                self._lost.add(key)
                return None
            self._committed[key] = found[0]
        return self._committed[key]

    def add_shard(
        self, identity: CacheIdentity, key: ShardKey, first_row: int, batches: Iterator[pa.RecordBatch]
    ) -> None:
        """Write a shard to the local disk, send it and then its commit record.

        Send nothing when another process committed the shard meanwhile. Raise CacheMismatchError when a different cache
        was begun at the URL at the same time and its plan replaced this one.
        """
        with self._staging() as staging:
            record = write_shard(staging, identity, key, first_row, batches)
            [is_missing] = self._crew.map(functools.partial(self._is_missing, identity), [key])
            if is_missing:
                write_commit(staging, record)
                files = [record, file_record(staging, key.commit_path)]
                # When the old shard is lost, send the new record first: the old record beside a new shard of the same
                # size would look committed.
                # Do not store the record in _committed: another process may replace it, so `finish` reads it again.
                self._send(staging, *(reversed(files) if key in self._lost else files))

    def hurry(self) -> None:
        """From now on, give up retries and transfers that hang; let all other transfers finish."""
        self._crew.hurry()

    def finish(self, identity: CacheIdentity, tokenizer_files: Sequence[str]) -> Manifest:
        """Write card and manifest over all committed shards, also those of other processes; return the manifest.

        Leave a cache that is finished and whole as it is.

        Raise IncompleteCacheError when shards are missing, MissingFileError when a tokenizer file is, and
        CacheMismatchError as add_shard does.
        """
        begun = self._begun(identity)
        records = self._look_up_all(begun)
        if len(records) < begun.num_planned_shards:
            raise IncompleteCacheError(self.where, len(records), begun.num_planned_shards)
        if finished := self._read_finished(begun, records):
            return finished
        with self._staging() as staging:
            for name in tokenizer_files:
                write_file(staging / name, self._content(name))
            manifest = write_card_and_manifest(staging, begun, records, tokenizer_files)
            for name in (CARD_NAME, MANIFEST_NAME):
                self._send(staging, file_record(staging, name))
        return manifest

    def finished(self) -> Manifest | None:
        """Return the manifest of a cache to which nothing is to be added; None when it is not finished and whole."""
        begun = self.published_plan()
        return self._read_finished(begun, self._look_up_all(begun)) if begun else None

    def clean_up(self, *, is_done: bool) -> None:
        """Remove the work directory when the run is done, or when no process has begun the cache."""
        if is_done or not (self.work_dir / _BEGUN_NAME).exists():
            remove_directory(self.work_dir)

    @contextlib.contextmanager
    def _staging(self) -> Iterator[Path]:
        """Yield a new temporary directory for the files of one call; remove it afterwards."""
        with refusals(self.work_dir):
            self.work_dir.mkdir(parents=True, exist_ok=True)
            staging = tempfile.TemporaryDirectory(dir=self.work_dir, prefix="sending-", ignore_cleanup_errors=True)
        with staging:
            yield Path(staging.name)

    def _send(self, staging: Path, *files: FileRecord | ShardRecord) -> None:
        """Put these files, in this order, unless they are there; read every byte back."""
        unit = Unit(files=files)
        sender = Sender(staging, self._remote, self._crew)
        sender.send([unit])
        sender.prove([unit])

    def _is_missing(self, identity: CacheIdentity, key: ShardKey) -> bool:
        self._begun(identity)
        return self.read_commit(key) is None

    def _begun(self, identity: CacheIdentity) -> CacheIdentity:
        """Return the plan at the URL, or `identity` when there is none; raise CacheMismatchError when the plan differs.

        When two processes begin at the same time, the later plan replaces the earlier.
        """
        begun = self.published_plan() or identity
        require_same_plan(self.where, begun, identity)
        return begun

    def _look_up_all(self, identity: CacheIdentity) -> list[ShardRecord]:
        """Return the records of the planned shards that are committed and held, in order."""
        planned = identity.planned_keys()
        self.look_up(planned)
        return [self._committed[key] for key in planned if key in self._committed]

    def _read_finished(self, identity: CacheIdentity, records: Sequence[ShardRecord]) -> Manifest | None:
        """Return the manifest at the URL if it states this, and its other files are whole there; None otherwise."""
        try:
            found = read_remote(self._remote, MANIFEST_NAME, read_manifest)
        except RecordError:
            return None
        if found is None or (found[0].identity, found[0].shards) != (identity, tuple(records)):
            return None
        is_whole = all(self._remote.holds(file.path, file.num_bytes, file.sha256) for file in found[0].files)
        return found[0] if is_whole else None

    def _content(self, path: str) -> bytes:
        content = self._remote.read_small(path, MAX_RECORD_BYTES)
        if content is None:
            raise MissingFileError(f"{self.where}/{path}")
        return content
