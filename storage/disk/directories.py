"""Publish and remove directories whole or not at all; find out who may write in one; remove leftovers of writers."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from storage.disk.files import TEMPORARY_PREFIX, refusals, sync_directory

# Errors by which the operating system says that this user may not write somewhere, or nobody.
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def may_write(directory: Path) -> bool:
    """Return whether this user may make files in an existing directory; raise any OSError that says something else."""
    try:
        with tempfile.TemporaryFile(dir=directory, prefix=TEMPORARY_PREFIX):
            return True
    except OSError as error:
        if error.errno not in NOT_ALLOWED:
            raise
        return False


def own_directory(directory: Path) -> Path:
    """Return `directory`; where another user made it and this one may not write there, `directory-UID` beside it."""
    is_another_s = os.path.isdir(directory) and not may_write(directory)
    return directory.with_name(f"{directory.name}-{os.getuid()}") if is_another_s else directory


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
