"""Provide the files of shards: from the cache's own directory, or from a bounded local copy of a remote cache."""

from __future__ import annotations

import collections
import functools
import queue
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from storage.disk.directories import remove_leftovers
from storage.disk.safe_paths import safe_join
from storage.errors import LocalCacheTooSmallError
from storage.records.identity import ShardRecord
from storage.shards.shard import check_file, ensure_file

Fetch = Callable[[ShardRecord, Path], None]

_NUM_CONNECTIONS = 4


class ShardFiles(Protocol):
    """Local files of shards. The sha256 of each is checked the first time that this process needs it."""

    def acquire(self, record: ShardRecord) -> Path:
        """Return the path of a shard's file, which stays there until it is released as often as it was acquired."""

    def release(self, record: ShardRecord) -> None:
        """End one use of the file."""

    def prefetch(self, records: Iterable[ShardRecord]) -> None:
        """Prepare for shards that will be acquired soon, in this order."""


class DirectoryShards:
    """Shards in the cache's own directory."""

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._proved: dict[str, Path] = {}

    def acquire(self, record: ShardRecord) -> Path:
        """Return the path of the shard; raise the errors of check_file."""
        if record.path not in self._proved:
            self._proved[record.path] = check_file(self._cache_dir, record)
        return self._proved[record.path]

    def release(self, record: ShardRecord) -> None:
        """Do nothing: the file belongs to the cache."""

    def prefetch(self, records: Iterable[ShardRecord]) -> None:
        """Do nothing: the files are there."""


@dataclass(kw_only=True)
class _Copy:
    record: ShardRecord
    num_users: int = 0
    ready: Future[Path] = field(default_factory=Future)


def _serve_queue(waiting: queue.SimpleQueue[_Copy | None], ensure: Callable[[ShardRecord], Path]) -> None:
    while (copy := waiting.get()) is not None:
        if copy.ready.set_running_or_notify_cancel():
            try:
                copy.ready.set_result(ensure(copy.record))
            except BaseException as error:
                copy.ready.set_exception(error)


def _ensure_copy(directory: Path, fetch: Fetch, record: ShardRecord) -> Path:
    """Return the path of a whole copy; fetch the shard unless there is one."""

    def bring(path: Path) -> None:
        path.unlink(missing_ok=True)
        fetch(record, path)

    ensure_file(directory, record, bring)
    return safe_join(directory, record.path, str(directory))


class DownloadedShards:
    """Copies of remote shards in a local directory, of at most max_bytes together.

    The least recently used copies are deleted first. A copy in use is never deleted. Copies that an earlier process
    left are checked again and kept.
    """

    def __init__(
        self, directory: Path, max_bytes: int, shards: Iterable[ShardRecord], fetch: Fetch, lock: IO[str] | None = None
    ) -> None:
        """shards: all shards of the cache. fetch: copies a shard to a path and checks its sha256 on the way.

        lock: an open file that keeps other processes out of `directory` while this object exists.
        """
        self._directory, self._max_bytes, self._fetch, self._lock_file = directory, max_bytes, fetch, lock
        self._copies: collections.OrderedDict[str, _Copy] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[_Copy | None] = queue.SimpleQueue()
        remove_leftovers(directory)
        for record in shards:
            if safe_join(directory, record.path, str(directory)).is_file():
                self._begin(record)
        # The threads are daemons, so that a finished process does not wait for shards that it prefetched. They hold no
        # reference to this object, so that the directory's lock is released as soon as nothing else refers to it.
        for _ in range(_NUM_CONNECTIONS):
            arguments = (self._waiting, functools.partial(_ensure_copy, directory, fetch))
            threading.Thread(target=_serve_queue, args=arguments, daemon=True, name="teachonce-download").start()
            weakref.finalize(self, self._waiting.put, None)

    def acquire(self, record: ShardRecord) -> Path:
        """Return the path of the copy; download the shard when there is none.

        Raise TransferError when the download fails, LocalCacheTooSmallError when copies in use leave no room.
        """
        with self._lock:
            copy = self._copies.get(record.path)
            if copy is not None and copy.ready.done() and copy.ready.exception() is not None:
                self._evict(copy)
                copy = None
            if copy is None:
                self._make_room(record, keep=set(), may_wait=True)
                copy = self._begin(record)
            copy.num_users += 1
            self._copies.move_to_end(record.path)
        try:
            return copy.ready.result()
        except BaseException:
            self.release(record)
            raise

    def release(self, record: ShardRecord) -> None:
        """End one use of the copy."""
        with self._lock:
            self._copies[record.path].num_users -= 1

    def prefetch(self, records: Iterable[ShardRecord]) -> None:
        """Begin to download each of these shards that finds room without a wait; evict none of these for it."""
        wanted = list(records)
        keep = {record.path for record in wanted}
        with self._lock:
            for record in wanted:
                if record.path in self._copies:
                    self._copies.move_to_end(record.path)
                elif self._make_room(record, keep=keep, may_wait=False):
                    self._begin(record)

    def _begin(self, record: ShardRecord) -> _Copy:
        copy = _Copy(record=record)
        self._copies[record.path] = copy
        self._waiting.put(copy)
        return copy

    def _make_room(self, record: ShardRecord, *, keep: set[str], may_wait: bool) -> bool:
        """Evict the least recently used copies until `record` fits.

        Never evict copies in use or copies whose paths are in `keep`. With may_wait, cancel queued downloads and wait
        for running ones; raise LocalCacheTooSmallError when copies in use leave no room. Without may_wait, return False
        when no finished copy is left to evict.
        """
        while sum(c.record.shard_bytes for c in self._copies.values()) + record.shard_bytes > self._max_bytes:
            idle = [copy for path, copy in self._copies.items() if copy.num_users == 0 and path not in keep]
            leaving = next((copy for copy in idle if copy.ready.done() or (may_wait and copy.ready.cancel())), None)
            if leaving:
                self._evict(leaving)
            elif not may_wait:
                return False
            elif idle:
                wait([idle[0].ready])
            else:
                in_use = sum(copy.record.shard_bytes for copy in self._copies.values())
                raise LocalCacheTooSmallError(self._max_bytes, in_use + record.shard_bytes)
        return True

    def _evict(self, copy: _Copy) -> None:
        del self._copies[copy.record.path]
        safe_join(self._directory, copy.record.path, str(self._directory)).unlink(missing_ok=True)
