"""The plan that a cache is begun with, and the commit record of each shard: a shard exists when its record does.

plan.json is written first, commit records as shards appear.
"""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

from storage.disk.files import IfTaken, install_staged, staged_path
from storage.disk.safe_paths import safe_join
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
    """Publish plan.json."""
    write_record(cache_dir / PLAN_NAME, identity_content(identity), if_taken)


def read_plan(cache_dir: Path) -> CacheIdentity:
    """Read plan.json; raises RecordError, FormatVersionError, MissingFileError or UnsafePathError."""
    path = safe_join(cache_dir, PLAN_NAME, str(cache_dir))
    return parse_identity(read_versioned(path), path)


def check_plan(cache_dir: Path, manifest: Manifest) -> None:
    """Raise RecordError unless plan.json says what the manifest says."""
    if read_plan(cache_dir) != manifest.identity:
        raise RecordError(str(cache_dir / PLAN_NAME), f"differs from {MANIFEST_NAME}")


def write_commit(cache_dir: Path, record: ShardRecord, if_taken: IfTaken = "replace") -> ShardRecord:
    """Publish a shard's commit record: from now on the shard exists.

    Returns the record that stands: with if_taken = "drop", that of the writer who was first.
    """
    write_record(cache_dir / record.key.commit_path, dataclasses.asdict(record), if_taken)
    standing = read_commit(cache_dir, record.key) or record
    install_committed(cache_dir, standing)
    if standing.sha256 != record.sha256:
        staged_path(cache_dir / record.path, record.sha256).unlink(missing_ok=True)
    return standing


def install_committed(cache_dir: Path, record: ShardRecord) -> None:
    """Put a committed shard into its place if it is still staged beside it: its writer may have been killed."""
    install_staged(cache_dir / record.path, record.sha256)


def read_commit(cache_dir: Path, key: ShardKey) -> ShardRecord | None:
    """A shard's commit record, None when the shard is not committed."""
    found = _read_commit(cache_dir, key)
    return found[0] if found else None


def _read_commit(cache_dir: Path, key: ShardKey) -> tuple[ShardRecord, bytes] | None:
    """The commit record, and the bytes that it was read from."""
    path = safe_join(cache_dir, key.commit_path, str(cache_dir))
    if not path.exists():
        return None
    content = read_record_bytes(path)
    record = parse_shard_record(parse_record(content, path), path)
    if record.path != key.path:
        raise RecordError(str(path), f"speaks of {record.path!r}, expected {key.path!r}")
    return record, content


def check_commit(cache_dir: Path, record: ShardRecord) -> bytes:
    """The bytes of a shard's commit record; RecordError unless it is there and says what the manifest says."""
    key = record.key
    found = _read_commit(cache_dir, key)
    if found is None or found[0] != record:
        raise RecordError(str(cache_dir / key.commit_path), f"missing, or differs from {MANIFEST_NAME}")
    return found[1]


def is_held(cache_dir: Path, record: ShardRecord | FileRecord) -> bool:
    """Whether a recorded file is there in its recorded size; what its bytes are is for whoever reads them."""
    try:
        found = (cache_dir / record.path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == record.num_bytes


def read_held_commit(cache_dir: Path, key: ShardKey) -> ShardRecord | None:
    """A shard's commit record; None when the shard has to be made: for the first time, or because its file is lost.

    A committed shard that is still staged is put into its place.
    """
    record = read_commit(cache_dir, key)
    if record is None:
        return None
    install_committed(cache_dir, record)
    return record if is_held(cache_dir, record) else None


def forget_lost_shard(cache_dir: Path, key: ShardKey) -> None:
    """Remove the commit record of a shard whose file is lost, so that the first to make it anew may commit it."""
    if read_commit(cache_dir, key) is not None and read_held_commit(cache_dir, key) is None:
        (cache_dir / key.commit_path).unlink(missing_ok=True)
