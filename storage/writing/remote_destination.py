"""Write a cache at a URL: write each shard to a local disk, send it and its commit record, and read both back.

Object stores have neither rename nor locks. A process looks for a shard's commit record before it makes the shard and
again before it sends it, so two processes seldom send the same shard. When they do, the first shard stands
(storage.writing.remote_commits), and so does the first plan. The other files follow from plan and commit records alone.
"""

from __future__ import annotations

import contextlib
import functools
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from storage.disk.directories import remove_directory
from storage.disk.files import holds, refusals, write_file
from storage.errors import ConfigError, IncompleteCacheError, MissingFileError, RecordError
from storage.progress import tell
from storage.records.commits import read_commit, read_plan, write_plan
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
from storage.writing.remote_commits import commit_shard, create_record, prove_or_remove

# Commit records are small, so latency decides how long it takes to read them.
_NUM_CONNECTIONS = 32
# A file with this name in the work directory says that a run has begun the cache. Later runs resume from the directory.
_BEGUN_NAME = "begun"
# Versions that put a shard over another one, so that it may lie beside the record of the first.
_REPLACING_VERSIONS = frozenset({"0.1.0"})
# A directory there with the sha256 of each shard that a process of this machine has read back as its record says.
_PROVED_NAME = "proved"
# Shards that are read back at once. Each takes a piece of memory (storage.remote.directory).
_NUM_READERS = 8


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
        self._has_asked = False
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
        with self._staging() as staging:
            write_plan(staging, identity)
            begun = create_record(self._remote, staging, PLAN_NAME, read_plan)
        require_same_plan(self.where, begun, identity)
        write_file(self.work_dir / _BEGUN_NAME, b"")
        return begun

    def add_file(self, path: str, content: bytes) -> None:
        """Put a file that is not a shard unless it is there with this content."""
        with self._staging() as staging:
            write_file(staging / path, content)
            self._send(staging, file_record(staging, path))

    def look_up(self, keys: Sequence[ShardKey]) -> list[ShardKey]:
        """Read the commit records that this process has not read yet, many at a time.

        Return the keys of committed shards that no process of this machine has read back, in a cache that an earlier
        version may have written.
        """
        records = self._crew.map(self.read_commit, keys)
        if not self._is_of_earlier_version:
            return []
        return [record.key for record in records if record is not None and not self._is_proved(record)]

    def read_commit(self, key: ShardKey) -> ShardRecord | None:
        """Return a shard's commit record; None when the shard must be written."""
        if key not in self._committed:
            found = read_remote(self._remote, key.commit_path, functools.partial(read_commit, key=key))
            record = found[0] if found else None
            is_lost = record is not None and self._remote.num_bytes(key.path) != record.num_bytes
            (self._lost.add if is_lost else self._lost.discard)(key)
            if record is None or is_lost:
                return None
            self._committed[key] = record
        return self._committed[key]

    def prove(self, keys: Sequence[ShardKey], progress: Callable[[int], object]) -> list[ShardKey]:
        """Read these committed shards back; return those that are lost or damaged and must be written again.

        `progress` receives the number of shards done.
        """
        crew = Crew(_NUM_READERS, progress)

        def prove(key: ShardKey) -> bool:
            is_whole = self._prove(key)
            crew.tell(1)
            return is_whole

        # In random order: processes of this machine that begin together then divide the shards, by their notes.
        shuffled = random.sample(keys, len(keys))
        return [key for key, is_whole in zip(shuffled, crew.map(prove, shuffled), strict=True) if not is_whole]

    def stage_shard(
        self, identity: CacheIdentity, key: ShardKey, first_row: int, batches: Iterator[pa.RecordBatch]
    ) -> Callable[[], None]:
        """Write a shard to the local disk; return the function that sends it and then its commit record.

        It sends nothing when another process committed the shard meanwhile, and commits another process's shard if that
        was there first. It raises CacheMismatchError when a different cache was begun at the URL at the same time and
        its plan replaced this one.
        """
        with contextlib.ExitStack() as stack:
            staging = stack.enter_context(self._staging())
            record = write_shard(staging, identity, key, first_row, batches)
            kept = stack.pop_all()

        def commit() -> None:
            with kept:
                self._crew.map(functools.partial(self._commit, staging, identity), [record])

        return commit

    def hurry(self) -> None:
        """From now on, give up retries and transfers that hang; let all other transfers finish."""
        self._crew.hurry()

    def finish(self, identity: CacheIdentity, tokenizer_files: Sequence[str]) -> Manifest:
        """Write card and manifest over all committed shards, also those of other processes; return the manifest.

        Leave a cache that is finished and whole as it is.

        Raise IncompleteCacheError when shards are missing, MissingFileError when a tokenizer file is, and
        CacheMismatchError when the plan at the URL is another one.
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

    def _commit(self, staging: Path, identity: CacheIdentity, record: ShardRecord) -> None:
        """Commit a staged shard unless it is committed. Do not keep its record: `finish` reads the one that stands."""
        self._begun(identity)
        if self.read_commit(record.key) is None:
            self._ask_whether_it_creates()
            if record.key in self._lost:  # beside the old record a new shard of the same size would look committed
                self._remote.remove(record.key.commit_path)
            self._note(commit_shard(self._remote, staging, identity, record))

    def _ask_whether_it_creates(self) -> None:
        """Before the first shard, find out whether the store refuses to replace files; if not, print one line."""
        if self._has_asked:
            return
        self._has_asked = True
        content = self._remote.read_small(PLAN_NAME, MAX_RECORD_BYTES)
        if content is not None:
            with self._staging() as staging:
                write_file(staging / PLAN_NAME, content)
                self._remote.find_out_whether_it_creates(staging / PLAN_NAME, PLAN_NAME)
        if not self._remote.creates:
            tell(f"{self.where}: this store replaces files; whoever writes to it must agree on every byte of a shard")

    @functools.cached_property
    def _is_of_earlier_version(self) -> bool:
        begun = self.published_plan()
        return begun is None or begun.software.get("teachonce") in _REPLACING_VERSIONS

    def _prove(self, key: ShardKey) -> bool:
        """Return whether a committed shard has the bytes of its record; if not, remove both."""
        record = self._committed[key]
        if not self._is_proved(record):
            if not prove_or_remove(self._remote, record):
                del self._committed[key]
                return False
            self._note(record)
        return True

    def _note(self, record: ShardRecord) -> None:
        if self._is_of_earlier_version:
            write_file(self._note_path(record), record.sha256.encode())

    def _is_proved(self, record: ShardRecord) -> bool:
        return holds(self._note_path(record), record.sha256.encode())

    def _note_path(self, record: ShardRecord) -> Path:
        return self.work_dir / _PROVED_NAME / PurePosixPath(record.key.commit_path).stem

    def _begun(self, identity: CacheIdentity) -> CacheIdentity:
        """Return the plan at the URL, or `identity` when there is none; raise CacheMismatchError if it differs."""
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
