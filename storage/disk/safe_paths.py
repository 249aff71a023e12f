"""Paths that a stranger's record names, joined to a directory that they may not leave."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from storage.errors import UnsafePathError


def safe_join(root: Path, relative: str, where: str) -> Path:
    """`root / relative`, or UnsafePathError when that could lie anywhere else."""
    parts = PurePosixPath(relative).parts
    plain = bool(parts) and not relative.startswith("/") and not {"..", "."} & set(relative.split("/"))
    if not plain or "\\" in relative or ":" in relative or not relative.isprintable():
        raise UnsafePathError(relative, where)
    path = root
    for part in parts:
        path = path / part
        try:
            followed = path.is_symlink()
        except OSError:  # a name too long for the system
            followed = True
        if followed:
            raise UnsafePathError(relative, where)
    return path
