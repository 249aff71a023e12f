"""One writer at a time in a directory, where the file system can see to that."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from storage.disk.files import refusals
from storage.errors import ConfigError

# Also what network file systems say of a lock on a directory.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL)


@contextlib.contextmanager
def only_writer(directory: Path, what: str) -> Iterator[None]:
    """Make a directory and hold a lock on it; afterwards, what was made and stayed empty is removed.

    what: the writer, for who comes second. Raises ConfigError when the directory cannot be one, or has a writer
    already; WriteRefusedError when the system refuses it.
    """
    with refusals(directory):
        made = [path for path in (directory, *directory.parents) if not path.exists()]
    lock = _locked(directory, what)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()  # only when it is empty
        os.close(lock)


def _locked(directory: Path, what: str) -> int:
    """Make a directory and lock it; descriptor of the lock. A file system that has no locks excludes nobody."""
    while True:
        with refusals(directory):
            try:
                directory.mkdir(parents=True, exist_ok=True)
                lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:  # removed by an earlier writer that has just ended
                continue
            except (FileExistsError, NotADirectoryError) as error:
                raise ConfigError(f"{directory}: not a directory; name a new or an empty one") from error
        try:
            with refusals(directory):
                _exclude_others(lock, directory, what)
        except BaseException:
            os.close(lock)
            raise
        if is_still_there(directory, lock):
            return lock
        os.close(lock)


def _exclude_others(lock: int, directory: Path, what: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"{directory}: another {what} writes here; wait until it has finished") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def is_still_there(path: Path, descriptor: int) -> bool:
    """Whether a path still is what was opened, and not removed or made anew by others."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
