"""The directory for what runs keep beside a cache that is being made: tokenized text, claims."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from storage.destinations import Destination
from storage.files import refusals


@contextlib.contextmanager
def work_directory(destination: Destination) -> Iterator[None]:
    """Inside, the destination's work directory is there.

    Every run holds a shared lock on it; whoever leaves last cleans up.
    """
    lock = _shared_lock(destination.work_dir)
    is_done = False
    try:
        yield
        is_done = True
    finally:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            destination.clean_up(is_done=is_done)
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
