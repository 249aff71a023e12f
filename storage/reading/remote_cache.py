"""Open a cache at a URL: copy its manifest and tokenizer to this machine, and each shard when it is needed."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from storage.disk.directories import NOT_ALLOWED, may_write, own_directory
from storage.disk.files import refusals, write_file
from storage.disk.locks import open_lock_file, try_lock
from storage.errors import ConfigError, LocalCacheTooSmallError
from storage.reading.epoch_order import SHARDS_PER_GROUP
from storage.reading.shard_files import DownloadedShards
from storage.reading.shared_copies import SharedCopies
from storage.records.identity import SPLITS, FileRecord, ShardRecord
from storage.records.manifest import MANIFEST_NAME, Manifest, check_listed_files
from storage.remote.directory import RemoteDirectory
from storage.remote.remote_records import read_remote_manifest
from storage.rows.kinds import KINDS
from storage.shards.shard import ensure_file

DEFAULT_LOCAL_BYTES = 16 << 30
_LOCK_NAME = "lock"


@dataclass(frozen=True, kw_only=True)
class LocalCopy:
    """Where copies of a remote cache's shards are kept, and how many bytes they may take."""

    directory: Path
    max_bytes: int


def default_local_copy() -> LocalCopy:
    """Return the default: up to DEFAULT_LOCAL_BYTES in the user's cache directory."""
    return LocalCopy(directory=user_cache_dir(), max_bytes=DEFAULT_LOCAL_BYTES)


def user_cache_dir() -> Path:
    """Return the directory for files that can be fetched or made again: `teachonce` in XDG_CACHE_HOME or ~/.cache.

    Where several users share XDG_CACHE_HOME and another one made it, return one beside it that is this user's own.
    """
    return own_directory(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teachonce")


def open_remote(url: str, local_copy: LocalCopy) -> tuple[str, Path, Manifest, DownloadedShards]:
    """Return the URL without secrets, the local directory, the manifest and the shards of the cache at a URL.

    Raise NoCacheError or UnfinishedRemoteError when there is no finished cache, TransferError when it cannot be
    reached, LocalCacheTooSmallError when local_copy has no room for the shards that are in use at once.
    """
    remote = RemoteDirectory(url)
    manifest, content = read_remote_manifest(remote)
    base, name = local_copy.directory, hashlib.sha256(content).hexdigest()[:16]
    directory, lock = _own_directory(base, name)
    write_file(directory / MANIFEST_NAME, content)
    check_listed_files(manifest, remote.url)
    _require_room(manifest, local_copy.max_bytes)

    def download(record: ShardRecord | FileRecord, path: Path) -> None:
        remote.download(record.path, path, record.num_bytes, record.sha256)

    for record in manifest.files:
        ensure_file(directory, record, functools.partial(download, record))
    shared = SharedCopies(directory, base, name, manifest.shards)

    def fetch(record: ShardRecord, path: Path) -> None:
        with shared.turn(record):
            if not shared.take_over(record, path):
                download(record, path)

    files = DownloadedShards(directory, local_copy.max_bytes, manifest.shards, fetch, lock)
    return remote.url, directory, manifest, files


def _own_directory(base: Path, name: str) -> tuple[Path, IO[str]]:
    """Create or take over base/name-N with the lowest free N; return it and its open lock file.

    No other process uses the directory while the lock file is open. So each process bounds its own copies. Raise
    ConfigError when `base` is not a directory, or when this user may not make a directory in it.
    """
    number = 0
    while True:
        directory = base / f"{name}-{number}"
        with refusals(directory):
            try:
                lock = _lock_if_free(directory)
            except (FileExistsError, NotADirectoryError) as error:
                raise ConfigError(f"--local-cache-dir {base}: not a directory; name a new or an empty one") from error
            except OSError as error:
                if error.errno not in NOT_ALLOWED:
                    raise
                problem = f"cannot be written ({error.strerror}); name another directory, or set XDG_CACHE_HOME"
                raise ConfigError(f"--local-cache-dir {base}: {problem}") from error
        if lock:
            return directory, lock
        number += 1


def _lock_if_free(directory: Path) -> IO[str] | None:
    """Make `directory` if it is missing, and lock it; return its open lock file.

    Return None when another process holds it, or when it is another user's and this one may not write everywhere in it.
    """
    is_new = not os.path.isdir(directory)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        if is_new or all(map(may_write, [directory, *filter(Path.is_dir, directory.iterdir())])):
            lock = os.fdopen(open_lock_file(directory / _LOCK_NAME))
            if try_lock(lock.fileno()):
                return lock
            lock.close()
    except OSError as error:
        if is_new or error.errno not in NOT_ALLOWED:
            raise
    return None


def _require_room(manifest: Manifest, max_bytes: int) -> None:
    """Raise LocalCacheTooSmallError unless the shards in use at once fit.

    A stream holds one group of shards, and there is one stream for each kind. An evaluation holds one validation shard.
    """
    needed = 0
    for kind in KINDS:
        sizes = sorted((s.shard_bytes for s in manifest.shards_of(kind, "train")), reverse=True)
        needed += sum(sizes[:SHARDS_PER_GROUP])
    needed += max((s.shard_bytes for kind in KINDS for s in manifest.shards_of(kind, SPLITS[1])), default=0)
    if needed > max_bytes:
        raise LocalCacheTooSmallError(max_bytes, needed)
