"""Open a cache: a directory, or a URL whose shards are copied to this machine when they are needed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.disk.hashing import directory_sha256
from storage.disk.safe_paths import safe_join_to_read
from storage.errors import (
    HashMismatchError,
    IncompleteCacheError,
    MissingFileError,
    MissingKindError,
    NoCacheError,
    RecordError,
    UnlistedFileError,
    UnsafePathError,
)
from storage.reading.remote_cache import LocalCopy, default_local_copy, open_remote
from storage.reading.shard_files import DirectoryShards, ShardFiles
from storage.reading.unlisted import may_stay
from storage.records.commits import read_commit, read_plan
from storage.records.identity import PLAN_NAME, CacheIdentity, ShardRecord
from storage.records.manifest import MANIFEST_NAME, TOKENIZER_DIR, Manifest, read_manifest
from storage.records.settings import find_setting
from storage.remote.directory import is_remote_url, require_local
from storage.rows.kinds import KINDS
from storage.shards.shard import Shard


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A cache whose shards can be read.

    where: its name in messages, a directory or a URL; path: its directory. For a remote cache, that is the local
    directory with its manifest, its tokenizer and copies of its shards.
    """

    where: str
    path: Path
    manifest: Manifest
    files: ShardFiles

    @property
    def identity(self) -> CacheIdentity:
        """Teacher, tokenizer, data and configuration."""
        return self.manifest.identity

    @property
    def tokenizer_dir(self) -> Path:
        """Directory with the tokenizer that travels with the cache."""
        return self.path / TOKENIZER_DIR

    def setting(self, *names: str) -> Any:
        """Return a setting of the identity, such as ("config", "beams", "length_penalty").

        Raise RecordError when the manifest does not state it.
        """
        try:
            return find_setting(vars(self.identity), names)
        except KeyError as error:
            raise RecordError(str(self.path / MANIFEST_NAME), f"states no {'.'.join(names)!r}") from error

    def checked_tokenizer_dir(self) -> Path:
        """Return the tokenizer's directory after checking that its files are those that the cache was begun with.

        Raise MissingFileError when there is no directory, UnsafePathError or LinkTargetError when it holds anything but
        files, UnlistedFileError for one that a finished cache's manifest does not list, and HashMismatchError when the
        files differ.
        """
        directory = safe_join_to_read(self.path, TOKENIZER_DIR, str(self.path))
        if not directory.is_dir():
            raise MissingFileError(str(directory))
        listed = {file.path for file in self.manifest.files}
        for path in sorted(directory.iterdir()):
            name = f"{TOKENIZER_DIR}/{path.name}"
            if listed and name not in listed and not may_stay(name):
                raise UnlistedFileError(str(path))
            if not safe_join_to_read(self.path, name, str(self.path)).is_file():
                raise UnsafePathError(path.name, str(directory))
        found, recorded = directory_sha256(directory), self.setting("tokenizer", "sha256")
        if found != recorded:
            raise HashMismatchError(str(directory), f"sha256 {found[:16]}…", f"{recorded[:16]}…")
        return directory

    def shards(self, kind: str, split: str) -> tuple[ShardRecord, ...]:
        """Return the shards of one kind and split; raise MissingKindError when they hold no rows."""
        found = self.manifest.shards_of(kind, split)
        if not sum(shard.num_rows for shard in found):
            raise MissingKindError(self.where, kind, split)
        return found

    def num_rows(self, kind: str, split: str) -> int:
        """Return the number of rows of one kind and split, 0 when the cache holds none."""
        return sum(shard.num_rows for shard in self.manifest.shards_of(kind, split))

    def held_kinds(self, split: str) -> list[str]:
        """Return the kinds that have rows in a split, in the order of KINDS."""
        return [kind for kind in KINDS if self.num_rows(kind, split)]

    @property
    def rows_sha256(self) -> str:
        """Hex sha256 over the hashes of all shards in order; equal for caches with the same rows in the same bytes."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.manifest.shards).encode()).hexdigest()

    def open_shard(self, record: ShardRecord) -> Shard:
        """Open a shard whose sha256 has been checked; release it with close_shard."""
        path = self.files.acquire(record)
        try:
            return Shard(path, self.identity, record)
        except BaseException:
            self.files.release(record)
            raise

    def close_shard(self, shard: Shard) -> None:
        """Release a shard: the local copy of a remote shard may now be deleted."""
        self.files.release(shard.record)

    def restricted_to(self, paths: Iterable[str]) -> Cache:
        """Return the same cache with only the shards at `paths`; raise MissingFileError for one not in the cache."""
        held = {shard.path: shard for shard in self.manifest.shards}
        for path in paths:
            if path not in held:
                raise MissingFileError(str(self.path / path))
        shards = tuple(held[path] for path in paths)
        return dataclasses.replace(self, manifest=dataclasses.replace(self.manifest, shards=shards))

    def record_batches(self, kind: str, split: str) -> Iterator[pa.RecordBatch]:
        """Yield all record batches of one kind and split in stored order, checked."""
        for record in self.shards(kind, split):
            shard = self.open_shard(record)
            try:
                for index in range(shard.num_record_batches):
                    yield shard.read_batch(index)
            finally:
                self.close_shard(shard)


def open_cache(path: str | Path, *, allow_incomplete: bool = False, local_copy: LocalCopy | None = None) -> Cache:
    """Open a cache.

    path: a directory, or any URL that fsspec reads.
    allow_incomplete: open an unfinished cache with the shards committed so far; for directories only.
    local_copy: where the shards of a URL are copied to.

    Raise NoCacheError when there is no cache, IncompleteCacheError when precompute has not finished (with
    allow_incomplete, when no shard is committed), RecordError or FormatVersionError when its manifest is not sound. For
    a URL, also raise the errors of open_remote.
    """
    if is_remote_url(str(path)):
        where, directory, manifest, files = open_remote(str(path), local_copy or default_local_copy())
        return Cache(where=where, path=directory, manifest=manifest, files=files)
    cache_dir = Path(path)
    try:
        is_complete, is_begun = (_holds(cache_dir / name) for name in (MANIFEST_NAME, PLAN_NAME))
    except OSError as error:
        raise NoCacheError(str(path), f"cannot be read ({error.strerror})") from error
    if is_complete:
        manifest = read_manifest(cache_dir)
        return Cache(where=str(cache_dir), path=cache_dir, manifest=manifest, files=DirectoryShards(cache_dir))
    if is_begun:
        return _open_incomplete(cache_dir, allow_incomplete)
    require_local(cache_dir)
    raise NoCacheError(str(path))


def _holds(path: Path) -> bool:
    """Return whether there is a file, or a symbolic link, which is checked when it is read."""
    return path.is_file() or path.is_symlink()


def _open_incomplete(cache_dir: Path, allow: bool) -> Cache:
    identity = read_plan(cache_dir)
    planned = identity.planned_keys()
    committed = tuple(record for key in planned if (record := read_commit(cache_dir, key)) is not None)
    if not allow or not committed:
        raise IncompleteCacheError(str(cache_dir), len(committed), len(planned))
    manifest = Manifest(identity=identity, shards=committed, files=())
    return Cache(where=str(cache_dir), path=cache_dir, manifest=manifest, files=DirectoryShards(cache_dir))
