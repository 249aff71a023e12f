"""Publish and remove directories whole or not at all, and delete the temporary files that killed writers left."""

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
    """Yield a temporary path at which the caller makes a file or a directory; then rename that to `path`.

    When the block raises, publish nothing and delete the temporary path. Raise WriteRefusedError when the operating
    system refuses a write.
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
    """Give `root`, or all files below it, the mode that new files get. safetensors lets only the owner read."""
    probe = root.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in [root, *root.rglob("*")]:
        if path.is_file():
            path.chmod(mode)


def _sync_tree(root: Path) -> None:
    """Flush a file, or a directory and everything below it, to the disk."""
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def remove_directory(directory: Path) -> None:
    """Delete a directory and its contents; ignore errors of the operating system.

    The directory first gets a temporary name. So a process that is killed here leaves either the whole directory or
    something that remove_leftovers deletes.
    """
    doomed = directory.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-{directory.name}")
    with contextlib.suppress(OSError):
        directory.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Delete the temporary files and directories that killed writers left below `directory`."""
    for leftover in list(directory.rglob(f"{TEMPORARY_PREFIX}*")):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
