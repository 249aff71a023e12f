"""Join a path from an untrusted record to a directory, for writing or for reading.

No path in a record leads out of the directory. Symbolic links are the user's own: archives and copies of caches bring
none. The hub's client, DVC and git-annex keep files elsewhere and lay links to them. So reading follows links, but only
to plain files and directories, and the reader uses only bytes that are as recorded. Writing goes through no link.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from storage.errors import LinkInTheWayError, LinkTargetError, UnreadableFileError, UnsafePathError


def safe_parts(relative: str, where: str) -> tuple[str, ...]:
    """Return the names in a relative path; raise UnsafePathError, which names `where`, unless it leads downwards.

    Refuse absolute and empty paths, ".", "..", backslashes, colons and unprintable characters.
    """
    parts = PurePosixPath(relative).parts
    plain = bool(parts) and not relative.startswith("/") and not {"..", "."} & set(relative.split("/"))
    if not plain or "\\" in relative or ":" in relative or not relative.isprintable():
        raise UnsafePathError(relative, where)
    return parts


def safe_join(root: Path, relative: str, where: str) -> Path:
    """Return `root / relative` for writing; raise an error unless it certainly lies below `root`.

    Raise UnsafePathError, which names `where`, as safe_parts does and for a name that is too long; LinkInTheWayError
    when any part of the path below `root` is a symbolic link; UnreadableFileError when the system does not say so.
    """
    path = root
    for part in safe_parts(relative, where):
        path = path / part
        if _is_link(path, relative, where):
            raise LinkInTheWayError(str(path))
    return path


def safe_join_to_read(root: Path, relative: str, where: str) -> Path:
    """Return `root / relative` for reading; follow symbolic links.

    Raise UnsafePathError and UnreadableFileError as safe_join does; LinkTargetError when a link leads to anything but
    directories or a file with content. Files of /proc, which may block a reader for ever, say that they are empty.
    """
    path, is_linked = root, False
    for part in safe_parts(relative, where):
        path = path / part
        is_linked = _is_link(path, relative, where) or is_linked
        if is_linked:
            _check_linked(path)
    return path


def _is_link(path: Path, relative: str, where: str) -> bool:
    try:
        return path.is_symlink()
    except PermissionError as error:
        raise UnreadableFileError(str(path), error.strerror) from error
    except OSError as error:  # the name is too long for the file system
        raise UnsafePathError(relative, where) from error


def _check_linked(path: Path) -> None:
    """Raise LinkTargetError or UnreadableFileError for a link, or a path below one, that must not be read."""
    try:
        found = path.stat()
    except PermissionError as error:
        raise UnreadableFileError(str(path), error.strerror) from error
    except OSError as error:
        if path.is_symlink():  # it leads to nothing, or to itself
            raise LinkTargetError(str(path), os.path.realpath(path)) from error
        return  # missing in a linked directory, which the caller says
    if not stat.S_ISDIR(found.st_mode) and not (stat.S_ISREG(found.st_mode) and found.st_size):
        raise LinkTargetError(str(path), os.path.realpath(path))
