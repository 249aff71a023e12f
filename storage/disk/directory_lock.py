"""Allow one writer at a time in a directory, on file systems that have locks."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from storage.disk.files import refusals
from storage.disk.locks import make_and_lock, try_lock
from storage.errors import ConfigError

# Errors of file systems without locks, and of network file systems that cannot lock a directory.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL)


@contextlib.contextmanager
def only_writer(directory: Path, what: str) -> Iterator[None]:
    """Make `directory` and its parents, and hold a lock on it for the length of the block.

    Afterwards, remove the directories that were made here and are empty. On a file system without locks, exclude
    nobody.

    what: name of the writer, for the error message that a second writer gets.

    Raise ConfigError when the path is not a directory or another writer holds the lock, WriteRefusedError when the
    operating system refuses to make or lock the directory.
    """

    def exclude_others(descriptor: int) -> None:
        try:
            is_alone = try_lock(descriptor)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            is_alone = True
        if not is_alone:
            raise ConfigError(f"{directory}: another {what} writes here; wait until it has finished")

    with refusals(directory):
        made = [path for path in (directory, *directory.parents) if not path.exists()]
        try:
            lock = make_and_lock(directory, None, exclude_others)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(f"{directory}: not a directory; name a new or an empty one") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()  # fails when it is not empty
        os.close(lock)
