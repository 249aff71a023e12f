"""Locks that the system takes back when a process ends, however it ends: flock on an open file or directory.

Not by the library filelock: it locks no directory, shares no lock, and where flock is missing it leaves marker files
that outlive a killed process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path


def try_lock(descriptor: int) -> bool:
    """Lock an open file or directory for its holder alone, at once; False when another one holds a lock on it.

    A shared lock that the holder has becomes an exclusive one. Raises OSError where the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def share_lock(descriptor: int) -> None:
    """Lock an open file together with others; waits while one holds it alone. Raises OSError."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def make_and_lock(directory: Path, name: str | None, lock: Callable[[int], object]) -> int:
    """Make `directory`, open it, or the file `name` in it, and `lock` that; the descriptor that holds the lock.

    Another process that leaves may remove the directory between any two of these steps: then they begin again.
    Raises OSError, and what `lock` raises.
    """
    directory = directory.absolute()  # raises where the current directory was removed: the loop would not end there
    path, flags = (directory / name, os.O_CREAT | os.O_RDWR) if name else (directory, os.O_RDONLY | os.O_DIRECTORY)
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, flags)
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


def is_still_there(path: Path, descriptor: int) -> bool:
    """Whether `path` is what was opened as `descriptor`: others may have removed it, and made it again."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
