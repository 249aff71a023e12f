"""Where a cache is verified: in a directory or at a URL. Both are checked alike, and errors have the same words."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from storage.disk.files import refusals
from storage.disk.safe_paths import safe_join_to_read, safe_parts
from storage.errors import (
    CacheError,
    HashMismatchError,
    MissingFileError,
    RecordError,
    TransferError,
    UnreadableFileError,
)
from storage.reading.cache import open_cache
from storage.records.commits import check_commit, check_plan
from storage.records.identity import PLAN_NAME, CacheIdentity, FileRecord, ShardRecord
from storage.records.manifest import MANIFEST_NAME, Manifest
from storage.remote.directory import RemoteDirectory, is_remote_url
from storage.remote.remote_records import read_remote, read_remote_manifest
from storage.shards.shard import Shard, check_file


class Place(Protocol):
    """A directory or URL with a finished cache. The checks raise a CacheError that names the file."""

    where: str

    def named(self, path: str) -> str:
        """Return the name in messages of the file at a relative path."""

    def read_manifest(self) -> Manifest:
        """Return the manifest; raise NoCacheError or another CacheError when there is none to check against."""

    def check_plan(self, manifest: Manifest) -> None:
        """Check that plan.json agrees with the manifest."""

    def check_commit(self, record: ShardRecord) -> None:
        """Check that a shard's commit record agrees with its record in the manifest."""

    def check_file(self, record: FileRecord) -> None:
        """Check the size and the sha256 of a file that is no shard."""

    def open_shard(self, identity: CacheIdentity, record: ShardRecord) -> AbstractContextManager[Shard]:
        """Check the size and the sha256 of a shard and open it."""

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory of the cache, "." for its own.

        Raise UnreadableFileError when no listing is to be had.
        """


def place_at(path: str | Path) -> Place:
    """Return the place at a path or URL; raise the errors of RemoteDirectory for a URL that cannot be opened."""
    return UrlPlace(str(path)) if is_remote_url(str(path)) else DirectoryPlace(Path(path))


class DirectoryPlace:
    """A directory with a cache."""

    def __init__(self, cache_dir: Path) -> None:
        self.where = str(cache_dir)
        self._cache_dir = cache_dir

    def named(self, path: str) -> str:
        """Return the file's path."""
        return str(self._cache_dir / path)

    def read_manifest(self) -> Manifest:
        """Return the manifest; raise the errors of open_cache."""
        return open_cache(self._cache_dir).manifest

    def check_plan(self, manifest: Manifest) -> None:
        """Raise RecordError or another CacheError unless plan.json agrees with the manifest."""
        check_plan(self._cache_dir, manifest)

    def check_commit(self, record: ShardRecord) -> None:
        """Raise RecordError or another CacheError unless the commit record agrees with the manifest's record."""
        check_commit(self._cache_dir, record)

    def check_file(self, record: FileRecord) -> None:
        """Raise the errors of storage.shards.shard.check_file."""
        check_file(self._cache_dir, record)

    @contextlib.contextmanager
    def open_shard(self, identity: CacheIdentity, record: ShardRecord) -> Iterator[Shard]:
        """Yield the shard; raise the errors of check_file and ShardFormatError."""
        yield Shard(check_file(self._cache_dir, record), identity, record)

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory; none when it cannot be listed, which is also said of its listed files."""
        try:
            where = self._cache_dir
            if directory != ".":
                where = safe_join_to_read(where, directory, self.where)
            return os.listdir(where) if where.is_dir() else []
        except (CacheError, OSError):
            return []


class UrlPlace:
    """A URL with a cache. No file of it is kept on this machine.

    Arrow reads the footer at a shard's end before the rows. So the bytes of a shard, hashed as they arrive, go to a
    file without a name in the directory for temporary files. The system frees it when this process ends in any way.
    """

    def __init__(self, url: str) -> None:
        self._remote = RemoteDirectory(url)
        self.where = self._remote.url

    def named(self, path: str) -> str:
        """Return the file's URL."""
        return f"{self.where}/{path}"

    def read_manifest(self) -> Manifest:
        """Return the manifest; raise the errors of read_remote_manifest, or UnreadableFileError."""
        with _unread():
            return read_remote_manifest(self._remote)[0]

    def check_plan(self, manifest: Manifest) -> None:
        """Raise RecordError or another CacheError unless plan.json agrees with the manifest."""
        with _unread():
            found = read_remote(self._remote, PLAN_NAME, lambda staging: check_plan(staging, manifest))
        if found is None:
            raise MissingFileError(self.named(PLAN_NAME))

    def check_commit(self, record: ShardRecord) -> None:
        """Raise RecordError or another CacheError unless the commit record agrees with the manifest's record."""
        path = record.key.commit_path
        with _unread():
            found = read_remote(self._remote, path, lambda staging: check_commit(staging, record))
        if found is None:
            raise RecordError(self.named(path), f"missing, or differs from {MANIFEST_NAME}")

    def check_file(self, record: FileRecord) -> None:
        """Raise the errors of storage.shards.shard.check_file, UnreadableFileError when the store does not give it."""
        self._read(record, lambda: None, lambda piece: None)

    @contextlib.contextmanager
    def open_shard(self, identity: CacheIdentity, record: ShardRecord) -> Iterator[Shard]:
        """Yield the shard; raise the errors of check_file and ShardFormatError, or WriteRefusedError without room."""
        room = Path(tempfile.gettempdir())
        with contextlib.ExitStack() as stack:
            with refusals(room):
                file = stack.enter_context(tempfile.TemporaryFile())

            def begin() -> None:
                with refusals(room):
                    file.seek(0)

            def take(piece: bytes) -> None:
                with refusals(room):
                    file.write(piece)

            self._read(record, begin, take)
            begin()  # which hands the last bytes to the system
            yield Shard(Path(f"/dev/fd/{file.fileno()}"), identity, record, self.named(record.path))

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory, none outside of the cache.

        Raise UnreadableFileError when the store lists nothing, or may not be asked to.
        """
        if ".." in directory.split("/") or directory.startswith("/"):
            return []
        with _unread():
            names = self._remote.names("" if directory == "." else directory)
        if names is None:
            raise UnreadableFileError(self.where, "its store lists no files")
        return names

    def _read(
        self, record: ShardRecord | FileRecord, begin: Callable[[], object], take: Callable[[bytes], object]
    ) -> None:
        """Call `begin`, then `take` with each piece of a file; do so again when the sha256 is wrong.

        Raise MissingFileError, UnsafePathError, UnreadableFileError; HashMismatchError when the size is wrong, or when
        the same wrong sha256 comes twice, because the network did not damage those bytes.
        """
        safe_parts(record.path, self.where)
        named = self.named(record.path)
        with _unread():
            num_bytes = self._remote.num_bytes(record.path)
        if num_bytes is None:
            raise MissingFileError(named)
        if num_bytes != record.num_bytes:
            raise HashMismatchError(named, f"{num_bytes} bytes", f"{record.num_bytes} bytes")
        wrong: set[str] = set()

        def attempt() -> None:
            begin()
            found = self._remote.sha256_of(record.path, record.num_bytes, take)
            if found in wrong:
                raise HashMismatchError(named, f"sha256 {found[:16]}…", f"{record.sha256[:16]}…")
            if found != record.sha256:
                wrong.add(found)
                raise OSError(f"its bytes have sha256 {found[:16]}…, expected {record.sha256[:16]}…")

        with _unread():
            self._remote.retrying(record.path, attempt)


@contextlib.contextmanager
def _unread() -> Iterator[None]:
    """Raise UnreadableFileError in place of TransferError, which speaks of a copy."""
    try:
        yield
    except TransferError as error:
        raise UnreadableFileError(error.url, error.problem) from error
