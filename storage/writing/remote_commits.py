"""Commit a shard at a URL to which other processes may send the same shard, perhaps with other last bits.

The first whole shard stands, whoever sent it, and its commit record is made from its bytes:

1. Put the shard unless there is one.
2. Read back what is there. If it is neither this shard nor, put by another process, a whole shard of the same rows,
   remove it and its record, and begin again.
3. Put the record of what is there unless there is a record. Remove a record of other bytes, and begin again.
4. Begin again if the shard was replaced meanwhile, which only step 2 of another process does.

So a process may be killed at any step. A shard without a record is committed by the next process that makes it. In a
store that cannot refuse to replace a file, step 1 replaces it, and steps 2 to 4 only make a mix-up unlikely.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from storage.errors import RecordError, RowError, ShardFormatError
from storage.records.commits import read_commit, write_commit
from storage.records.identity import CacheIdentity, ShardKey, ShardRecord
from storage.remote.directory import RemoteDirectory
from storage.remote.remote_records import read_remote
from storage.shards.shard import check_file, record_of_rows

Parsed = TypeVar("Parsed")


def commit_shard(remote: RemoteDirectory, staging: Path, identity: CacheIdentity, record: ShardRecord) -> ShardRecord:
    """Commit the shard of `record`, which was written in the local directory `staging`; return the record that stands.

    That is another one when another process sent the shard first. Raise TransferError when an error is final or the
    shard's deadline has passed.
    """

    def attempt() -> ShardRecord:
        is_ours = remote.create(check_file(staging, record), record.path)
        standing = _settle(remote, staging, identity, record, is_ours=is_ours)
        if standing is None:
            _remove(remote, record.key)
            raise OSError("what was read back is not a shard of this cache, and was removed")
        return standing

    return remote.retrying(record.path, attempt)


def prove_or_remove(remote: RemoteDirectory, record: ShardRecord) -> bool:
    """Read a committed shard back; if its bytes are not those of its record, remove both and return False.

    Older versions could leave such a shard, and it may be damaged, even so that its rows can still be read. Leave it if
    another process has replaced the record meanwhile.
    """
    for _ in range(2):  # the network may have damaged what came first
        if remote.holds(record.path, record.num_bytes, record.sha256):
            return True
    found = read_remote(remote, record.key.commit_path, functools.partial(read_commit, key=record.key))
    if found and found[0] == record:
        _remove(remote, record.key)
    return False


def create_record(remote: RemoteDirectory, staging: Path, name: str, read: Callable[[Path], Parsed | None]) -> Parsed:
    """Put the record `name` of the local directory `staging` unless there is one; return the one that stands."""

    def standing() -> Parsed | None:
        found = read_remote(remote, name, read)
        return found[0] if found else None

    def attempt() -> Parsed:
        if (found := standing()) is not None:
            return found
        remote.create(staging / name, name)
        try:
            found = standing()
        except RecordError as error:
            remote.put(staging / name, name)
            raise OSError("it arrived damaged, and was sent again") from error
        if found is None:
            raise OSError("another process removed it")
        return found

    return remote.retrying(name, attempt)


def _remove(remote: RemoteDirectory, key: ShardKey) -> None:
    remote.remove(key.path)
    remote.remove(key.commit_path)  # after the shard: a record without a shard counts as none


def _settle(
    remote: RemoteDirectory, staging: Path, identity: CacheIdentity, like: ShardRecord, *, is_ours: bool
) -> ShardRecord | None:
    """Put the record of the shard that is at the URL and return it; None when there is no whole shard.

    like: a record of the same rows. is_ours: whether it must be the record of the very bytes. Raise OSError to begin
    again.
    """
    version = remote.version(like.path)
    standing = _read_back(remote, staging, identity, like, is_ours=is_ours)
    if standing is None:
        return None
    write_commit(staging, standing)
    read = functools.partial(read_commit, key=like.key)
    found = create_record(remote, staging, like.key.commit_path, read)
    if remote.version(like.path) != version and not remote.holds(like.path, standing.num_bytes, standing.sha256):
        raise OSError("another process replaced it meanwhile")
    if found != standing:
        remote.remove(like.key.commit_path)
        raise OSError("its commit record was of other bytes, and was removed")
    return standing


def _read_back(
    remote: RemoteDirectory, staging: Path, identity: CacheIdentity, like: ShardRecord, *, is_ours: bool
) -> ShardRecord | None:
    """Return the record of the shard that is at the URL, None when there is no whole shard of the rows of `like`."""
    if remote.holds(like.path, like.num_bytes, like.sha256):
        return like
    copy = staging / "read-back.arrow"
    found = remote.fetch(like.path, copy)
    if found is None:
        return None
    if not remote.holds(like.path, found.file_bytes, found.sha256):
        raise OSError("two reads gave different bytes")
    if found.sha256 == like.sha256:
        return like
    if is_ours:  # it arrived damaged, perhaps so that it can still be read
        return None
    try:
        return record_of_rows(copy, identity, found, like)
    except (ShardFormatError, RowError):
        return None
