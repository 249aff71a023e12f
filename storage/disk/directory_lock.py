"""One writer at a time in a directory, where the file system can see to that."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from storage.disk.files import refusals
from storage.disk.locks import make_and_lock, try_lock
from storage.errors import ConfigError

# Also what network file systems say of a lock on a directory.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL)


@contextlib.contextmanager
def only_writer(directory: Path, what: str) -> Iterator[None]:
    """Make a directory and hold a lock on it; afterwards, what was made and stayed empty is removed.

    what: the writer, for who comes second. Raises ConfigError when the directory cannot be one, or has a writer
    already; WriteRefusedError when the system refuses it.
    """

    def exclude_others(descriptor: int) -> None:
        try:
            is_alone = try_lock(descriptor)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            is_alone = True  # a file system without locks excludes nobody
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
                path.rmdir()  # only when it is empty
        os.close(lock)
