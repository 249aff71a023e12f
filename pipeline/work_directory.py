"""The directory for what runs keep beside a cache that is being made: tokenized text, claims."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from storage.files import refusals, remove_directory, remove_leftovers
from storage.manifest import MANIFEST_NAME, PLAN_NAME
from storage.publication import WORK_DIR


@contextlib.contextmanager
def work_directory(out: Path) -> Iterator[Path]:
    """The work directory of the cache at `out`.

    Every run holds a shared lock on it; whoever leaves last cleans up after a finished cache, and after a
    directory in which nothing was begun.
    """
    work_dir = out / WORK_DIR
    lock = _shared_lock(work_dir)
    try:
        yield work_dir
    finally:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _clean_up(out)
        os.close(lock)


def _shared_lock(work_dir: Path) -> int:
    """Make the directory and lock it; descriptor of the lock."""
    while True:
        with refusals(work_dir):
            work_dir.mkdir(parents=True, exist_ok=True)
            try:
                lock = os.open(work_dir / "lock", os.O_CREAT | os.O_RDWR)
            except FileNotFoundError:  # the last run before this one has just cleaned up
                continue
            fcntl.flock(lock, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), (work_dir / "lock").stat()):
                return lock
        os.close(lock)


def _clean_up(out: Path) -> None:
    is_finished, is_begun = (out / MANIFEST_NAME).exists(), (out / PLAN_NAME).exists()
    if is_finished or not is_begun:
        remove_directory(out / WORK_DIR)
        remove_leftovers(out)
    with contextlib.suppress(OSError):
        out.rmdir()  # only when it is empty
