"""Directories: published whole or not at all, removed whole or not at all, and rid of what killed writers left."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from storage.disk.files import TEMPORARY_PREFIX, refusals, sync_directory


@contextlib.contextmanager
def publishing_path(path: Path) -> Iterator[Path]:
    """Yield a path for a file or a directory; when the block ends well it appears as `path`, otherwise nothing does.

    Raises WriteRefusedError when the operating system refuses a write.
    """
    scratch = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-{path.name}")
    staged = scratch / path.name
    try:
        with refusals(path):
            scratch.mkdir(parents=True)
        yield staged
        with refusals(path):
            give_usual_modes(staged)
            _sync_tree(staged)
            os.rename(staged, path)
            sync_directory(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def give_usual_modes(root: Path) -> None:
    """Give a file, or the files below a directory, the mode of new files: safetensors lets only the owner read."""
    probe = root.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in [root, *root.rglob("*")]:
        if path.is_file():
            path.chmod(mode)


def _sync_tree(root: Path) -> None:
    """Force a file, or all that is below a directory, onto the disk."""
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def remove_directory(directory: Path) -> None:
    """Delete a directory with all that is in it; a process killed meanwhile leaves it whole, or as a leftover."""
    doomed = directory.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-{directory.name}")
    with contextlib.suppress(OSError):
        directory.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Delete temporary files and directories that killed writers left below `directory`."""
    for leftover in list(directory.rglob(f"{TEMPORARY_PREFIX}*")):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
