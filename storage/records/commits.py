"""Read and write plan.json, with which a cache begins, and the commit record of each shard.

plan.json is written first. A commit record is written after its shard; a shard exists when its commit record does.
"""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

from storage.disk.files import IfTaken, install_staged, staged_path
from storage.disk.safe_paths import safe_join, safe_join_to_read
from storage.errors import RecordError
from storage.records.identity import (
    PLAN_NAME,
    CacheIdentity,
    FileRecord,
    ShardKey,
    ShardRecord,
    identity_content,
    parse_identity,
    parse_shard_record,
    read_versioned,
)
from storage.records.manifest import MANIFEST_NAME, Manifest
from storage.records.records import parse_record, read_record_bytes, write_record


def write_plan(cache_dir: Path, identity: CacheIdentity, if_taken: IfTaken = "replace") -> None:
    """Publish plan.json. Raise WriteRefusedError or LinkInTheWayError."""
    write_record(safe_join(cache_dir, PLAN_NAME, str(cache_dir)), identity_content(identity), if_taken)


def read_plan(cache_dir: Path) -> CacheIdentity:
    """Read plan.json. Raise RecordError, FormatVersionError, MissingFileError or UnsafePathError."""
    path = safe_join_to_read(cache_dir, PLAN_NAME, str(cache_dir))
    return parse_identity(read_versioned(path), path)


def check_plan(cache_dir: Path, manifest: Manifest) -> None:
    """Raise RecordError unless plan.json states the same identity as the manifest."""
    if read_plan(cache_dir) != manifest.identity:
        raise RecordError(str(cache_dir / PLAN_NAME), f"differs from {MANIFEST_NAME}")


def write_commit(cache_dir: Path, record: ShardRecord, if_taken: IfTaken = "replace") -> ShardRecord:
    """Publish a shard's commit record, from which on the shard exists, and rename its staged file to its path.

    Return the commit record on disk: with if_taken = "drop", that of the first writer. When that is another writer's,
    delete the shard staged here.
    """
    path = safe_join(cache_dir, record.key.commit_path, str(cache_dir))
    write_record(path, dataclasses.asdict(record), if_taken)
    standing = read_commit(cache_dir, record.key) or record
    install_committed(cache_dir, standing)
    if standing.sha256 != record.sha256:
        staged_path(cache_dir / record.path, record.sha256).unlink(missing_ok=True)
    return standing


def install_committed(cache_dir: Path, record: ShardRecord) -> None:
    """Rename a committed shard to its path if it is still staged, as when its writer was killed."""
    if staged_path(cache_dir / record.path, record.sha256).exists():
        install_staged(safe_join(cache_dir, record.path, str(cache_dir)), record.sha256)


def read_commit(cache_dir: Path, key: ShardKey) -> ShardRecord | None:
    """Read a shard's commit record; return None when the shard is not committed.

    Raise RecordError, or UnsafePathError, when it is not sound.
    """
    found = _read_commit(cache_dir, key)
    return found[0] if found else None


def _read_commit(cache_dir: Path, key: ShardKey) -> tuple[ShardRecord, bytes] | None:
    """Return the commit record and the bytes that it was read from; None when there is none."""
    path = safe_join_to_read(cache_dir, key.commit_path, str(cache_dir))
    if not path.exists():
        return None
    content = read_record_bytes(path)
    record = parse_shard_record(parse_record(content, path), path)
    if record.path != key.path:
        raise RecordError(str(path), f"speaks of {record.path!r}, expected {key.path!r}")
    return record, content


def check_commit(cache_dir: Path, record: ShardRecord) -> bytes:
    """Return the bytes of a shard's commit record; raise RecordError when it is missing or differs from `record`.

    record: the shard's record in the manifest.
    """
    key = record.key
    found = _read_commit(cache_dir, key)
    if found is None or found[0] != record:
        raise RecordError(str(cache_dir / key.commit_path), f"missing, or differs from {MANIFEST_NAME}")
    return found[1]


def is_held(cache_dir: Path, record: ShardRecord | FileRecord) -> bool:
    """Return whether a recorded file exists and has its recorded size. This does not check its sha256.

    Raise LinkTargetError for a symbolic link to nothing: whoever laid it can fetch the file.
    """
    try:
        found = safe_join_to_read(cache_dir, record.path, str(cache_dir)).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == record.num_bytes


def read_held_commit(cache_dir: Path, key: ShardKey) -> ShardRecord | None:
    """Return a shard's commit record; None when the shard must be made, for the first time or because its file is lost.

    Rename a committed shard that is still staged to its path.
    """
    record = read_commit(cache_dir, key)
    if record is None:
        return None
    install_committed(cache_dir, record)
    return record if is_held(cache_dir, record) else None


def forget_lost_shard(cache_dir: Path, key: ShardKey) -> None:
    """Delete the commit record of a shard whose file is lost, so that a writer can make and commit the shard again."""
    if read_commit(cache_dir, key) is not None and read_held_commit(cache_dir, key) is None:
        safe_join(cache_dir, key.commit_path, str(cache_dir)).unlink(missing_ok=True)
