"""Remember, on this machine, which shards hold only rows that obey the rules.

A stream that has checked all rows of a shard notes that here, and so does `teachonce-cache verify`. Later streams of
this user over the same bytes need no second check. They still check the sha256 of the file. Verifying reads no notes:
it always checks everything.

The notes are a file in the user's cache directory, never part of a cache: a table of _NUM_SLOTS slots. A note is the
sha256 of all that the check depends on, in the slot that its first bytes choose. A later note may take the slot, and
then rows are checked again. So the file has a bounded size, and processes need no lock: a note that is damaged or half
written is like none.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO

import storage.rows
import storage.shards
from storage.reading.remote_cache import user_cache_dir
from storage.records.identity import CacheIdentity, ShardRecord

_NUM_SLOTS = 1 << 18
_NOTE_BYTES = hashlib.sha256().digest_size


class Proofs:
    """The notes of this user on this machine; none where they cannot be kept."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        with suppress(OSError, RuntimeError):
            self._file = _open_own(notes_path())

    def holds(self, identity: CacheIdentity, record: ShardRecord) -> bool:
        """Return whether these bytes are noted as a shard whose rows all obey today's rules."""
        if self._file is None:
            return False
        note = _note(identity, record)
        with suppress(OSError):
            return os.pread(self._file.fileno(), _NOTE_BYTES, _place(note)) == note
        return False

    def add(self, identity: CacheIdentity, record: ShardRecord) -> None:
        """Note that all rows of a shard, whose sha256 is as recorded, obey the rules. Ignore a write that fails."""
        if self._file is not None:
            note = _note(identity, record)
            with suppress(OSError):
                os.pwrite(self._file.fileno(), note, _place(note))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def notes_path() -> Path:
    """Return the path of this user's notes; raise OSError or RuntimeError where there is no cache directory."""
    return user_cache_dir() / f"checked-rows-{os.getuid()}"


def _open_own(path: Path) -> IO[bytes] | None:
    """Open or make the file; return None unless only this user may write it and it is a plain file. Raise OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    file = open(os.open(path, flags, 0o600), "r+b", buffering=0)  # noqa: SIM115
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
        return file
    file.close()
    return None


def _place(note: bytes) -> int:
    return int.from_bytes(note[:8], "little") % _NUM_SLOTS * _NOTE_BYTES


def _note(identity: CacheIdentity, record: ShardRecord) -> bytes:
    facts = vars(identity.row_facts(record.key.kind))
    place = record.key.kind, identity.record_batch_rows, record.first_row_id, record.num_rows
    content = json.dumps([_rules_sha256(), record.sha256, place, facts], sort_keys=True)
    return hashlib.sha256(content.encode()).digest()


@functools.cache
def _rules_sha256() -> str:
    """Return a sha256 over the code that checks rows: a note of other rules says nothing."""
    folders = [Path(package.__path__[0]) for package in (storage.rows, storage.shards)]
    sources = [path for folder in folders for path in sorted(folder.glob("*.py*"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
