"""Share copies of a remote cache's shards among the processes of one machine, so that each shard is fetched once.

Each process keeps its copies in its own directory and is the only one to delete files there. A copy that another
process already has becomes a hard link to the same file, or a copy of it. If several processes want the same shard at
the same time, as those of one training do, one fetches it and the others wait. If any of this fails, the shard is
downloaded, and nothing else is lost. Two caches opened in one process may also download a shard twice, because a lock
belongs to a process.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from storage.disk.files import link_or_copy
from storage.errors import CacheError, WriteRefusedError
from storage.records.commits import is_held
from storage.records.identity import ShardRecord
from storage.shards.shard import check_file

# The longest wait for another process, which may be stopped or slow to fetch.
_LONGEST_WAIT_S = 300.0
_POLL_S = 0.05


class SharedCopies:
    """The copies of the same cache that other processes keep in their directories."""

    def __init__(self, directory: Path, base: Path, name: str, shards: Iterable[ShardRecord]) -> None:
        """directory: that of this process, one of base/name-*; shards: all shards of the cache."""
        self._directory, self._base, self._name = directory, base, name
        self._places = {shard.path: place for place, shard in enumerate(shards)}
        self._lock_file: IO[str] | None = None
        with suppress(OSError):
            self._lock_file = (base / f"{name}.lock").open("a")

    @contextmanager
    def turn(self, record: ShardRecord) -> Iterator[None]:
        """Let only this process fetch the shard; first wait for another process that is fetching it.

        Go ahead without the lock after _LONGEST_WAIT_S, or where files cannot be locked.
        """
        place = self._places[record.path]
        is_locked = self._lock(place)
        try:
            yield
        finally:
            if is_locked and self._lock_file:
                with suppress(OSError):
                    fcntl.lockf(self._lock_file, fcntl.LOCK_UN, 1, place)

    def take_over(self, record: ShardRecord, path: Path) -> bool:
        """Link or copy another process's whole copy to `path`; return whether there was one."""
        for directory in sorted(self._base.glob(f"{self._name}-*")):
            if directory == self._directory:
                continue
            # The copy may have been deleted just now, it may not allow a copy, or it may be damaged.
            with suppress(OSError, WriteRefusedError, CacheError):
                if is_held(directory, record):
                    link_or_copy(directory / record.path, path)
                    check_file(self._directory, record)
                    return True
        return False

    def _lock(self, place: int) -> bool:
        """Lock byte `place` of a file that all processes share; return whether it is locked.

        The operating system releases the lock when the process ends.
        The library filelock locks whole files: it would leave a lock file for each shard.
        """
        if self._lock_file is None:
            return False
        give_up_at = time.monotonic() + _LONGEST_WAIT_S
        while time.monotonic() < give_up_at:
            try:
                fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except BlockingIOError:
                time.sleep(_POLL_S)
            except OSError:
                return False
            else:
                return True
        return False
