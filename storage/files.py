"""Publishing a file so that it is either wholly there or not there at all.

write to a temporary name → flush and fsync → rename → fsync the directory. A process killed at any
point leaves the old state or the new one, and perhaps a temporary file that nobody reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from storage.errors import DiskFullError, UnsafePathError

TEMPORARY_PREFIX = ".tmp-"
_COPY_BYTES = 1 << 20


class HashingFile:
    """A write-only binary file that counts and hashes what passes through it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.num_bytes = 0
        self.closed = False
        # Libraries that write here may report a refused write as an error of their own.
        self.refused: OSError | None = None

    def write(self, data: bytes) -> int:
        """Append `data`."""
        view = memoryview(data)
        self._digest.update(view)
        self.num_bytes += view.nbytes
        try:
            return self._file.write(view)
        except OSError as error:
            self.refused = error
            raise

    def flush(self) -> None:
        """Hand buffered bytes to the operating system."""
        try:
            self._file.flush()
        except OSError as error:
            self.refused = error
            raise

    def sync(self) -> None:
        """Force the bytes onto the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self.closed = True
        self._file.close()

    @property
    def sha256(self) -> str:
        """Hex sha256 of everything written so far."""
        return self._digest.hexdigest()


@contextlib.contextmanager
def publishing(path: Path) -> Iterator[HashingFile]:
    """Yield a file to write; when the block ends well it appears as `path`, otherwise nothing does.

    Raises DiskFullError when the operating system refuses a write.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-{path.name}")
    file = None
    try:
        with _refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = HashingFile(temporary)
        try:
            yield file
            with _refusals(path):
                file.sync()
        finally:
            with contextlib.suppress(OSError):
                file.close()
        with _refusals(path):
            os.replace(temporary, path)
            _sync_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if file and file.refused:
            raise DiskFullError(str(path), file.refused.strerror or str(file.refused)) from error
        raise


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal of a write to `path` into DiskFullError."""
    try:
        yield
    except OSError as error:
        raise DiskFullError(str(path), error.strerror or str(error)) from error


def is_refused_write(error: BaseException) -> bool:
    """Whether an error is the operating system's refusal, also as safetensors and tokenizers tell it: in words."""
    return isinstance(error, OSError) or "(os error " in str(error)


def write_file(path: Path, content: bytes) -> None:
    """Publish `content` as `path`."""
    with publishing(path) as file:
        file.write(content)


def link_or_copy(source: Path, path: Path) -> None:
    """Publish the bytes of `source` as `path`: as a second name of the same file where the system allows, else a copy.

    What was at `path` is replaced. Raises DiskFullError when the copy is refused.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.link(source, path)
        _sync_directory(path.parent)
    except OSError:
        with source.open("rb") as original, publishing(path) as copy:
            shutil.copyfileobj(original, copy, _COPY_BYTES)


def remove_leftovers(directory: Path) -> None:
    """Delete temporary files that killed writers left below `directory`."""
    for leftover in directory.rglob(f"{TEMPORARY_PREFIX}*"):
        leftover.unlink(missing_ok=True)


def safe_join(root: Path, relative: str, where: str) -> Path:
    """`root / relative`, or UnsafePathError when that could lie anywhere else."""
    parts = PurePosixPath(relative).parts
    plain = bool(parts) and not relative.startswith("/") and not {"..", "."} & set(relative.split("/"))
    if not plain or "\\" in relative or ":" in relative or not relative.isprintable():
        raise UnsafePathError(relative, where)
    path = root.joinpath(*parts)
    for inside in [path, *path.parents][: len(parts)]:
        try:
            followed = inside.is_symlink()
        except OSError:  # a name too long for the system
            followed = True
        if followed:
            raise UnsafePathError(relative, where)
    return path


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
