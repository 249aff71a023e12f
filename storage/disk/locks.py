"""Locks with flock on an open file or directory. The system releases them when the process ends, however it ends.

The library filelock does not serve: it cannot lock a directory and has no shared locks, and where flock is missing it
leaves marker files that outlive a killed process.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

_MOST_TRIES = 100


def try_lock(descriptor: int) -> bool:
    """Take an exclusive lock on an open file or directory without waiting; return False when another holder has a lock.

    A shared lock that this descriptor holds becomes an exclusive one. Raise OSError when the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def share_lock(descriptor: int) -> None:
    """Take a shared lock on an open file; wait while another process holds an exclusive one.

    Raise OSError when the file system has no locks.
    """
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def open_lock_file(path: Path) -> int:
    """Open a file to lock it, and make it if it is missing; return the descriptor. Raise OSError.

    A file that only another user may write is opened for reading: flock needs no more.
    """
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY)


def make_and_lock(directory: Path, name: str | None, lock: Callable[[int], object]) -> int:
    """Make `directory`, open it or the file `name` in it, lock that with `lock`, and return the open descriptor.

    Another process that ends its work may remove the directory between any two of these steps. In that case, start
    again, up to 100 times: where no directory can be made, the system may answer as if it had just been removed. Raise
    OSError, and any error that `lock` raises.
    """
    path = directory / name if name else directory
    for _ in range(_MOST_TRIES):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = open_lock_file(path) if name else os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if is_still_there(path, descriptor):
            return descriptor
        os.close(descriptor)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def is_still_there(path: Path, descriptor: int) -> bool:
    """Return whether `path` is still the file or directory open as `descriptor`.

    Another process may have removed it, and made a new one.
    """
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
