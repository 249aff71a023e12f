"""Put files at a URL, and read them back to verify them."""

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

# Where every put is a commit, one commit holds this many units: shards with their commit records, or other files.
_UNITS_PER_COMMIT = 32


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Files that are published in order: a shard and its commit record, or one other file.

    `Sender.send` takes a unit as present when its last file has the right content and those before it the right sizes.
    told_bytes: bytes that are reported as progress.
    """

    files: tuple[FileRecord | ShardRecord, ...]
    told_bytes: int = 0


class Sender:
    """Put the units that are missing at a URL, and verify them there. `sent`: the files that were put."""

    def __init__(self, cache_dir: Path, remote: RemoteDirectory, crew: Crew) -> None:
        self.remote = remote
        self.sent: set[FileRecord | ShardRecord] = set()
        self._cache_dir, self._crew = cache_dir, crew

    def send(self, units: Sequence[Unit]) -> None:
        """Put the units that are missing."""
        is_there = self._crew.map(self._is_there, units)
        missing = [unit for unit, there in zip(units, is_there, strict=True) if not there]
        self._crew.tell(sum(unit.told_bytes for unit, there in zip(units, is_there, strict=True) if there))
        if self.remote.puts_are_commits:
            batches = [missing[i : i + _UNITS_PER_COMMIT] for i in range(0, len(missing), _UNITS_PER_COMMIT)]
            self._crew.map(self._put, batches, num_threads=1)  # two commits at once would conflict
        else:
            self._crew.map(self._put, [[unit] for unit in missing])
        self.sent.update(file for unit in missing for file in unit.files)

    def prove(self, units: Sequence[Unit]) -> None:
        """Read every byte back; put each file again that differs, until it is right or its deadline has passed."""
        self._crew.map(self._prove, units)

    def _is_there(self, unit: Unit) -> bool:
        *earlier, last = unit.files
        sizes_match = all(self.remote.num_bytes(file.path) == file.num_bytes for file in earlier)
        return sizes_match and self.remote.holds(last.path, last.num_bytes, last.sha256)

    def _put(self, units: Sequence[Unit]) -> None:
        files = [file for unit in units for file in unit.files]
        # Check the local files first: a copy of a damaged one would never match its sha256.
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
    """Return the record of a file with this path and content: its size in bytes and sha256."""
    return FileRecord(path=path, file_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
