"""Pack a finished cache into one file, a ustar archive inside one zstd frame, and unpack it.

The members are manifest.json, plan.json, the manifest's files, then for each shard its commit record and the shard. A
skippable frame with the sha256 of all bytes before it ends the file, so that every flipped bit is found. tar and zstd
skip this frame. `unpack` accepts only the headers and the order that `pack` writes: other fields of a tar header or a
zstd frame could hide data or attack the reader. With one version of libzstd, equal caches give equal bytes; another
version may compress differently.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from storage.disk.files import TEMPORARY_PREFIX, HashingFile, publishing, refusals, sync_directory
from storage.disk.safe_paths import safe_join, safe_join_to_read
from storage.errors import (
    ArchiveError,
    ConfigError,
    FormatVersionError,
    HashMismatchError,
    MissingFileError,
    RecordError,
    UnsafePathError,
)
from storage.reading.cache import Cache, open_cache
from storage.records.commits import check_commit, check_plan
from storage.records.identity import PLAN_NAME
from storage.records.manifest import MANIFEST_NAME, Manifest, read_manifest
from storage.records.records import MAX_RECORD_BYTES
from storage.sharing.tar_header import BLOCK_BYTES, END_OF_TAR, MAX_MEMBER_BYTES, padding, tar_header
from storage.sharing.zstd_frame import FrameReader, frame_compressor, trailer

_MAX_COMMIT_BYTES = 4096  # a commit record has about 500 bytes
# A manifest has at most _RECORD_BYTES and _RECORD_EXPANSION times the archive's bytes. A shard adds about 500 bytes to
# the manifest, and to the archive at least 64 bytes of hashes that zstd cannot compress. A larger manifest was made to
# fill the reader's memory.
_RECORD_BYTES = 1 << 20
_RECORD_EXPANSION = 32
_READ_BYTES = 1 << 20
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


@dataclass(frozen=True, kw_only=True)
class PackedCache:
    """The file that `pack` published: its size in bytes and its hex sha256."""

    archive_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _Member:
    """A file of `num_bytes` bytes with `sha256`; or, without `sha256`, a record of at most `num_bytes` bytes."""

    path: str
    num_bytes: int
    sha256: str | None = None

    def may_have(self, num_bytes: int) -> bool:
        return 0 <= num_bytes <= self.num_bytes if self.sha256 is None else num_bytes == self.num_bytes

    @property
    def size_rule(self) -> str:
        return f"{'at most ' if self.sha256 is None else ''}{self.num_bytes} bytes"


def pack(
    cache_dir: Path,
    file: Path,
    progress: Callable[[int], object] = lambda num_bytes: None,
    *,
    num_threads: int | None = None,
) -> PackedCache:
    """Write a finished cache to `file`; replace an existing packed cache.

    Check every size and sha256 while the bytes are copied. `progress` receives the number of bytes of the manifest's
    files and shards. num_threads: for compression, None means one per core. The bytes of the file do not depend on it.

    Raise NoCacheError, IncompleteCacheError, RecordError, FormatVersionError, UnsafePathError, MissingFileError or
    HashMismatchError for a cache that is not whole; ConfigError when `file` is a directory, inside the cache, or an
    existing file that is not a packed cache, or when tar cannot hold the cache; WriteRefusedError when a write fails.
    After an error, `file` is as it was before.
    """
    cache = open_cache(cache_dir)
    if file.is_dir() or file.resolve().is_relative_to(cache.path.resolve()):
        raise ConfigError(f"{file}: a directory, or inside the cache; name a file outside of {cache.path}")
    if file.exists() and not _may_be_replaced(file):
        raise ConfigError(f"{file}: holds something else than a packed cache; name another file")
    members = _members(cache.manifest, MAX_RECORD_BYTES, str(cache.path / MANIFEST_NAME))
    _check_records(cache.path, cache.manifest)
    sizes = [_size_on_disk(cache.path, member) for member in members]
    compressor = frame_compressor(num_threads)
    with publishing(file) as out:
        for member, num_bytes in zip(members, sizes, strict=True):
            out.write(compressor.compress(tar_header(member.path, num_bytes)))
            for piece in _checked_pieces(cache.path / member.path, member, num_bytes):
                out.write(compressor.compress(piece))
                progress(0 if member.sha256 is None else len(piece))
            out.write(compressor.compress(padding(num_bytes)))
        out.write(compressor.compress(END_OF_TAR))
        out.write(compressor.flush())
        out.write(trailer(out.sha256))
    return PackedCache(archive_bytes=out.num_bytes, sha256=out.sha256)


def _may_be_replaced(file: Path) -> bool:
    """Return whether the file is empty, or begins as a packed cache."""
    if not file.is_file():  # a device or a pipe
        return False
    with _opened(file) as archive:
        try:
            beginning = FrameReader(archive, str(file), lambda num_bytes: None).read(len(MANIFEST_NAME) + 1)
        except ArchiveError:
            return file.stat().st_size == 0
    return beginning == f"{MANIFEST_NAME}\0".encode()


def unpack(file: Path, cache_dir: Path, progress: Callable[[int], object] = lambda num_bytes: None) -> Cache:
    """Unpack the cache in `file` into `cache_dir`, a new or empty directory; return it opened.

    Nothing in the file is trusted: names, sizes, hashes, records and order must match the manifest, which is the first
    member. The directory appears when everything is checked and on disk. `progress` receives the number of bytes that
    are read from `file`.

    Raise ArchiveError, UnsafePathError or FormatVersionError for a file that is not a whole packed cache; ConfigError
    when `cache_dir` is taken; WriteRefusedError when a write fails. After an error, nothing is left behind.
    """
    target = _free_target(cache_dir)
    with _opened(file) as archive:
        stream = FrameReader(archive, str(file), progress)
        temporary = target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-{target.name}")
        try:
            with refusals(target):
                temporary.mkdir(parents=True)
            _extract(stream, temporary, target)
            with refusals(target):
                _sync_directories(temporary)
            _move(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return open_cache(cache_dir)


def _members(manifest: Manifest, max_record_bytes: int, where: str) -> list[_Member]:
    """Return every file of a cache, in the order of the archive; raise errors that name `where`.

    Raise UnsafePathError for a path that is not relative and normalized, RecordError when two files share a path or one
    is below another.
    """
    members = [_Member(path=name, num_bytes=max_record_bytes) for name in (MANIFEST_NAME, PLAN_NAME)]
    members += [_Member(path=file.path, num_bytes=file.file_bytes, sha256=file.sha256) for file in manifest.files]
    for shard in manifest.shards:
        members.append(_Member(path=shard.key.commit_path, num_bytes=_MAX_COMMIT_BYTES))
        members.append(_Member(path=shard.path, num_bytes=shard.shard_bytes, sha256=shard.sha256))
    previous: tuple[str, ...] = ("",)
    for parts, path in sorted((PurePosixPath(member.path).parts, member.path) for member in members):
        if not parts or "/".join(parts) != path:
            raise UnsafePathError(path, where)
        if parts[: len(previous)] == previous:
            raise RecordError(where, f"{path!r} is listed twice, or below a file")
        previous = parts
    return members


def _check_records(directory: Path, manifest: Manifest) -> None:
    check_plan(directory, manifest)
    for shard in manifest.shards:
        check_commit(directory, shard)


def _size_on_disk(cache_dir: Path, member: _Member) -> int:
    """Return the size of a member's file; raise an error if it is missing, not as recorded, or too large for tar."""
    path = safe_join_to_read(cache_dir, member.path, str(cache_dir))
    if not path.is_file():
        raise MissingFileError(str(path))
    num_bytes = path.stat().st_size
    if not member.may_have(num_bytes):
        raise HashMismatchError(str(path), f"{num_bytes} bytes", member.size_rule)
    tar_header(member.path, num_bytes)
    return num_bytes


def _checked_pieces(path: Path, member: _Member, num_bytes: int) -> Iterator[bytes]:
    """Yield the `num_bytes` bytes of a file in pieces; raise HashMismatchError when its size or sha256 is wrong."""
    digest, num_read = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            num_read += len(piece)
            if num_read > num_bytes:
                break
            yield piece
    if num_read != num_bytes:
        raise HashMismatchError(str(path), "a size that changes", f"{num_bytes} bytes")
    found = digest.hexdigest()
    if member.sha256 not in (None, found):
        raise HashMismatchError(str(path), f"sha256 {found[:16]}…", f"{member.sha256:.16}…")


def _extract(stream: FrameReader, directory: Path, target: Path) -> None:
    """Check the whole archive and write its files below `directory`; report a refused write as one to `target`."""
    max_record_bytes = min(MAX_RECORD_BYTES, _RECORD_BYTES + _RECORD_EXPANSION * stream.file_bytes)
    _extract_member(stream, _Member(path=MANIFEST_NAME, num_bytes=max_record_bytes), directory, target)
    with _errors_inside(stream.where):
        manifest = read_manifest(directory)
        members = _members(manifest, max_record_bytes, MANIFEST_NAME)
    for member in members[1:]:
        _extract_member(stream, member, directory, target)
    if stream.read(len(END_OF_TAR)) != END_OF_TAR:
        raise ArchiveError(stream.where, "holds more than its manifest lists")
    stream.finish()
    with _errors_inside(stream.where):
        _check_records(directory, manifest)


def _extract_member(stream: FrameReader, member: _Member, directory: Path, target: Path) -> None:
    path = safe_join(directory, member.path, stream.where)
    num_bytes = _member_bytes(stream.read(BLOCK_BYTES), member, directory, stream.where)
    with refusals(target):
        path.parent.mkdir(parents=True, exist_ok=True)
        out = HashingFile(path)
    try:
        for piece in stream.pieces(num_bytes):
            with refusals(target):
                out.write(piece)
        with refusals(target):
            out.sync()
    finally:
        with contextlib.suppress(OSError):
            out.close()
    if member.sha256 not in (None, out.sha256):
        raise ArchiveError(
            stream.where, f"{member.path} has sha256 {out.sha256:.16}…, the manifest says {member.sha256:.16}…"
        )
    if any(stream.read(len(padding(num_bytes)))):
        raise ArchiveError(stream.where, f"something is hidden behind {member.path}")


def _member_bytes(header: bytes, member: _Member, directory: Path, where: str) -> int:
    """Return the size in a tar header; raise ArchiveError unless it is the header that `pack` writes for `member`."""
    if not any(header):
        raise ArchiveError(where, f"ends where {member.path} is expected")
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise ArchiveError(where, f"no tar header where {member.path} is expected ({error})") from error
    if found.type != tarfile.REGTYPE:
        raise ArchiveError(where, f"{found.name!r} is of tar's type {found.type!r}, expected the file {member.path}")
    if found.name != member.path:
        safe_join(directory, found.name, where)
        raise ArchiveError(where, f"holds {found.name!r} where {member.path} is expected")
    if not member.may_have(found.size) or not 0 <= found.size <= MAX_MEMBER_BYTES:
        raise ArchiveError(where, f"{member.path} has {found.size} bytes, expected {member.size_rule}")
    if header != tar_header(member.path, found.size):
        raise ArchiveError(where, f"the tar header of {member.path} is not as teachonce-cache writes it")
    return found.size


def _free_target(cache_dir: Path) -> Path:
    """Return the absolute path; raise ConfigError unless it is missing, or empty and not the current directory."""
    target = cache_dir.resolve()
    is_free = not cache_dir.is_symlink() and (not target.exists() or (target.is_dir() and not any(target.iterdir())))
    if not is_free or target == Path.cwd():
        raise ConfigError(f"{cache_dir}: already there; name a new directory, or an empty one that is not the current")
    return target


def _move(directory: Path, target: Path) -> None:
    with refusals(target):
        try:
            os.replace(directory, target)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            raise ConfigError(f"{target}: appeared meanwhile; name a new directory") from error
        sync_directory(target.parent)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    with contextlib.ExitStack() as stack:
        try:
            if not stat.S_ISREG(file.stat().st_mode):
                raise ArchiveError(str(file), "not a file")
            archive = stack.enter_context(file.open("rb"))
        except OSError as error:
            raise ArchiveError(str(file), f"cannot be read ({error.strerror})") from error
        yield archive


@contextlib.contextmanager
def _errors_inside(where: str) -> Iterator[None]:
    """Replace the temporary directory in errors about records by the archive, which is the file that the user knows."""
    try:
        yield
    except RecordError as error:
        raise ArchiveError(where, f"{Path(error.path).name}: {error.problem}") from error
    except UnsafePathError as error:
        raise UnsafePathError(error.path, where) from error
    except FormatVersionError as error:
        raise FormatVersionError(where, error.found, error.supported) from error


def _sync_directories(root: Path) -> None:
    for directory, _, _ in os.walk(root):
        sync_directory(Path(directory))
