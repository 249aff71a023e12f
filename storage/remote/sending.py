"""Putting files at a URL, and proving that they are there."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.records.identity import FileRecord, ShardRecord
from storage.remote.crew import Crew
from storage.remote.directory import RemoteDirectory
from storage.shards.shard import check_file

# Where a put is a commit, this many shards with their records share one.
_SHARDS_PER_COMMIT = 32


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Files that are published one after the other: a shard and its commit record, or one other file.

    The last speaks for those before it. told_bytes: what counts as progress.
    """

    files: tuple[FileRecord | ShardRecord, ...]
    told_bytes: int = 0


class Sender:
    """Puts units that are missing, and proves those that are there."""

    def __init__(self, cache_dir: Path, remote: RemoteDirectory, crew: Crew) -> None:
        self.remote = remote
        self.sent: set[FileRecord | ShardRecord] = set()
        self._cache_dir, self._crew = cache_dir, crew

    def send(self, units: Sequence[Unit]) -> None:
        """Put what is not there."""
        is_there = self._crew.map(self._is_there, units)
        missing = [unit for unit, there in zip(units, is_there, strict=True) if not there]
        self._crew.tell(sum(unit.told_bytes for unit, there in zip(units, is_there, strict=True) if there))
        if self.remote.puts_are_commits:
            batches = [missing[i : i + _SHARDS_PER_COMMIT] for i in range(0, len(missing), _SHARDS_PER_COMMIT)]
            self._crew.map(self._put, batches, num_threads=1)  # two commits at once would conflict
        else:
            self._crew.map(self._put, [[unit] for unit in missing])
        self.sent.update(file for unit in missing for file in unit.files)

    def prove(self, units: Sequence[Unit]) -> None:
        """Read every byte back; put again what differs."""
        self._crew.map(self._prove, units)

    def _is_there(self, unit: Unit) -> bool:
        *earlier, last = unit.files
        sizes_match = all(self.remote.num_bytes(file.path) == file.num_bytes for file in earlier)
        return sizes_match and self.remote.holds(last.path, last.num_bytes, last.sha256)

    def _put(self, units: Sequence[Unit]) -> None:
        files = [file for unit in units for file in unit.files]
        # Locally damaged bytes would never prove right.
        self.remote.put_all([(check_file(self._cache_dir, file), file.path) for file in files])
        self._crew.tell(sum(unit.told_bytes for unit in units))

    def _prove(self, unit: Unit) -> None:
        for file in unit.files:
            self.remote.retrying(file.path, functools.partial(self._read_back, file))
        self._crew.tell(unit.told_bytes)

    def _read_back(self, file: FileRecord | ShardRecord) -> None:
        if not self.remote.holds(file.path, file.num_bytes, file.sha256, lambda num_bytes: self._crew.tell(0)):
            self.remote.put(check_file(self._cache_dir, file), file.path)
            self.sent.add(file)
            raise OSError("what was read back differs from the local file, which was sent again")


def as_file(path: str, content: bytes) -> FileRecord:
    """What is sent and proved when the file `path` of a cache has this content."""
    return FileRecord(path=path, file_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
