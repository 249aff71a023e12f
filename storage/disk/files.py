"""Publish a file whole or not at all.

The steps: write to a temporary name → flush and fsync → rename → fsync the directory. A process that is killed at any
point leaves the old state or the new one, and perhaps a temporary file that nobody reads.

Where several writers may write the same name, a hard link replaces the rename. The first writer gets the name, and the
writers after it do not replace its file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from storage.errors import WriteRefusedError, first_line

TEMPORARY_PREFIX = ".tmp-"
# What to do when a name is taken: replace the earlier file, drop the new one, or stage the new one beside it.
IfTaken = Literal["replace", "drop", "stage"]
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV)
_COPY_BYTES = 1 << 20


class HashingFile:
    """A write-only binary file that counts and hashes the bytes written to it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.num_bytes = 0
        self.closed = False
        # A library that writes to this file may replace the OSError of a refused write by its own error.
        self.refused: OSError | None = None

    def write(self, data: bytes) -> int:
        """Append `data` and return the number of bytes written."""
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
        """Flush the bytes to the disk."""
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
def publishing(path: Path, if_taken: IfTaken = "replace") -> Iterator[HashingFile]:
    """Yield a temporary file to write to; when the block ends without an error, give it the name `path`.

    When the block raises, publish nothing. Make parent directories as needed.

    if_taken: what to do when `path` exists. With "stage" the file gets the name staged_path(path, sha256), and
    install_staged renames it to `path`.

    Raise WriteRefusedError when the operating system refuses a write.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-{path.name}")
    file = None
    try:
        with refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = HashingFile(temporary)
        try:
            yield file
            with refusals(path):
                file.sync()
        finally:
            with contextlib.suppress(OSError):
                file.close()
        with refusals(path):
            if if_taken == "replace":
                os.replace(temporary, path)
            else:
                if not _link(temporary, path) and if_taken == "stage":
                    os.replace(temporary, staged_path(path, file.sha256))
                temporary.unlink(missing_ok=True)
            sync_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if file and file.refused:
            raise WriteRefusedError(str(path), file.refused.strerror or str(file.refused)) from error
        raise


def _link(temporary: Path, path: Path) -> bool:
    """Make `path` a hard link to `temporary`; return False when the name is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # Another writer may take the name between these two steps, and is then replaced. So on a file system without
        # hard links, writers may share a directory only if they write the same bytes.
        if path.exists():
            return False
        os.replace(temporary, path)
    return True


def staged_path(path: Path, sha256: str) -> Path:
    """Return the path at which a file is staged when the name `path` is taken."""
    return path.with_name(f"{TEMPORARY_PREFIX}{sha256}-{path.name}")


def install_staged(path: Path, sha256: str) -> None:
    """Rename the staged file with this sha256 to `path`, replacing any file there; do nothing when none is staged.

    Raise WriteRefusedError when the operating system refuses it.
    """
    staged = staged_path(path, sha256)
    if staged.exists():
        with refusals(path), contextlib.suppress(FileNotFoundError):  # another writer has renamed it
            os.replace(staged, path)
            sync_directory(path.parent)


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Raise WriteRefusedError in place of an error by which the operating system refuses a write to `path`.

    Errors of libraries that report such a refusal in their message count too.
    """
    try:
        yield
    except Exception as error:
        if not _is_refused_write(error):
            raise
        raise WriteRefusedError(str(path), getattr(error, "strerror", None) or first_line(error)) from error


def _is_refused_write(error: Exception) -> bool:
    """Return whether the operating system caused an error. safetensors and tokenizers say so only in the message."""
    return isinstance(error, OSError) or "(os error " in str(error)


def write_file(path: Path, content: bytes, if_taken: IfTaken = "replace") -> None:
    """Publish `content` as `path`. Raise WriteRefusedError when the operating system refuses a write."""
    with publishing(path, if_taken) as file:
        file.write(content)


def holds(path: Path, content: bytes) -> bool:
    """Return whether `path` is a file with this content."""
    return path.is_file() and path.read_bytes() == content


def may_replace(path: Path, beginning: bytes) -> bool:
    """Return whether a file that starts with `beginning` may replace `path` without loss of other data.

    True when `path` does not exist, is an empty file, or starts with `beginning`; False for anything but a file.
    Raise WriteRefusedError when the file cannot be read.
    """
    if not path.exists():
        return True
    if not path.is_file():  # a device or a pipe
        return False
    with refusals(path), path.open("rb") as file:
        return file.read(len(beginning)) in (b"", beginning)


def link_or_copy(source: Path, path: Path) -> None:
    """Publish the bytes of `source` as `path`: as a hard link where the operating system allows it, else as a copy.

    When `source` is a symbolic link, take the file that it leads to. Replace any file at `path`. Raise
    WriteRefusedError when the operating system refuses to write the copy.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.link(source.resolve(), path)
        sync_directory(path.parent)
    except OSError:
        with source.open("rb") as original, publishing(path) as copy:
            shutil.copyfileobj(original, copy, _COPY_BYTES)


def sync_directory(directory: Path) -> None:
    """Flush the entries of a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
