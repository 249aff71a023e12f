"""Join a path from an untrusted record to a directory, and refuse any path that leads out of it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from storage.errors import UnsafePathError


def safe_join(root: Path, relative: str, where: str) -> Path:
    """Return `root / relative`; raise UnsafePathError, which names `where`, unless it certainly lies below `root`.

    Refuse absolute and empty paths, "." and "..", backslashes, colons, unprintable characters and symbolic links.
    """
    parts = PurePosixPath(relative).parts
    plain = bool(parts) and not relative.startswith("/") and not {"..", "."} & set(relative.split("/"))
    if not plain or "\\" in relative or ":" in relative or not relative.isprintable():
        raise UnsafePathError(relative, where)
    path = root
    for part in parts:
        path = path / part
        try:
            is_refused = path.is_symlink()
        except OSError:  # the name is too long for the file system
            is_refused = True
        if is_refused:
            raise UnsafePathError(relative, where)
    return path
