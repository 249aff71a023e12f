"""What one process of a machine has brought of a remote cache, the others take over instead of fetching it too.

Each keeps its copies in a directory of its own, where it alone decides what leaves. A copy that another one has already
becomes a second name of the same file; of several that want the same shard at the same time, as the processes of one
training do, one fetches it and the others wait. Whatever fails about this costs a download and nothing else; so do two
caches opened in one process, which no such lock tells apart.
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

# A process that is stopped, or fetches slower than this, holds up no other for longer.
_LONGEST_WAIT_S = 300.0
_WAIT_S = 0.05


class SharedCopies:
    """The other directories with copies of the same cache."""

    def __init__(self, directory: Path, base: Path, name: str, shards: Iterable[ShardRecord]) -> None:
        """directory: this process's, one of those at base/name-*; shards: all of the cache."""
        self._directory, self._base, self._name = directory, base, name
        self._places = {shard.path: place for place, shard in enumerate(shards)}
        self._lock_file: IO[str] | None = None
        with suppress(OSError):
            self._lock_file = (base / f"{name}.lock").open("a")

    @contextmanager
    def turn(self, record: ShardRecord) -> Iterator[None]:
        """Wait until no other process fetches the shard; where files cannot be locked, nobody waits."""
        place = self._places[record.path]
        is_mine = self._lock(place)
        try:
            yield
        finally:
            if is_mine and self._lock_file:
                with suppress(OSError):
                    fcntl.lockf(self._lock_file, fcntl.LOCK_UN, 1, place)

    def take_over(self, record: ShardRecord, path: Path) -> bool:
        """Whether another process had a whole copy, which now stands at `path`, too."""
        for directory in sorted(self._base.glob(f"{self._name}-*")):
            if directory == self._directory:
                continue
            with suppress(OSError, WriteRefusedError, CacheError):  # it has just left, cannot be copied, or is damaged
                if is_held(directory, record):
                    link_or_copy(directory / record.path, path)
                    check_file(self._directory, record)
                    return True
        return False

    def _lock(self, place: int) -> bool:
        """Lock a byte of a file that all share: the system gives it back when a process ends.

        The library filelock locks whole files: it would leave a lock file for each shard.
        """
        if self._lock_file is None:
            return False
        give_up_at = time.monotonic() + _LONGEST_WAIT_S
        while time.monotonic() < give_up_at:
            try:
                fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except BlockingIOError:
                time.sleep(_WAIT_S)
            except OSError:
                return False
            else:
                return True
        return False
