"""Publishing a file so that it is either wholly there or not there at all.

write to a temporary name → flush and fsync → rename → fsync the directory. A process killed at any
point leaves the old state or the new one, and perhaps a temporary file that nobody reads.

Where several writers may meet, a hard link takes the place of the rename: the first to come gets the name, and
what it put there stays.
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
# What happens when a name is taken: replace the earlier file, drop the new one, or stage it beside the earlier.
IfTaken = Literal["replace", "drop", "stage"]
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV)
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
def publishing(path: Path, if_taken: IfTaken = "replace") -> Iterator[HashingFile]:
    """Yield a file to write; when the block ends well it appears as `path`, otherwise nothing does.

    if_taken: with "stage" the file stands as staged_path until `install_staged` is called.
    Raises WriteRefusedError when the operating system refuses a write.
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
    """Give a file a second name unless that is taken; whether it was free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # On such a file system only writers that agree on every byte may share a directory.
        if path.exists():
            return False
        os.replace(temporary, path)
    return True


def staged_path(path: Path, sha256: str) -> Path:
    """Where a file is staged whose name is taken."""
    return path.with_name(f"{TEMPORARY_PREFIX}{sha256}-{path.name}")


def install_staged(path: Path, sha256: str) -> None:
    """Put the staged file with this sha256 in the place of whatever stands at `path`; do nothing when there is none."""
    staged = staged_path(path, sha256)
    if staged.exists():
        with refusals(path), contextlib.suppress(FileNotFoundError):  # another writer may be quicker
            os.replace(staged, path)
            sync_directory(path.parent)


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal of a write to `path` into WriteRefusedError, also as libraries tell of it."""
    try:
        yield
    except Exception as error:
        if not _is_refused_write(error):
            raise
        raise WriteRefusedError(str(path), getattr(error, "strerror", None) or first_line(error)) from error


def _is_refused_write(error: Exception) -> bool:
    """Whether an error is the operating system's refusal, also as safetensors and tokenizers tell it: in words."""
    return isinstance(error, OSError) or "(os error " in str(error)


def write_file(path: Path, content: bytes, if_taken: IfTaken = "replace") -> None:
    """Publish `content` as `path`."""
    with publishing(path, if_taken) as file:
        file.write(content)


def write_unless_equal(path: Path, content: bytes) -> None:
    """Publish `content` as `path` unless it stands there."""
    if not path.is_file() or path.read_bytes() != content:
        write_file(path, content)


def may_replace(path: Path, beginning: bytes) -> bool:
    """Whether nothing would be lost: there is no such file, it is empty, or it begins as what replaces it."""
    if not path.exists():
        return True
    if not path.is_file():  # a device or a pipe
        return False
    with refusals(path), path.open("rb") as file:
        return file.read(len(beginning)) in (b"", beginning)


def link_or_copy(source: Path, path: Path) -> None:
    """Publish the bytes of `source` as `path`: as a second name of the same file where the system allows, else a copy.

    What was at `path` is replaced. Raises WriteRefusedError when the copy is refused.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.link(source, path)
        sync_directory(path.parent)
    except OSError:
        with source.open("rb") as original, publishing(path) as copy:
            shutil.copyfileobj(original, copy, _COPY_BYTES)


def sync_directory(directory: Path) -> None:
    """Force a directory's names onto the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
