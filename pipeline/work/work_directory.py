"""The work directory of a cache that is being made. It holds tokenized text and claims."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from storage.disk.files import refusals
from storage.disk.locks import is_still_there, make_and_lock, share_lock, try_lock
from storage.writing.destinations import Destination

_LOCK_NAME = "lock"
# After these the same line may go on from the tokens that were made; after others, settings or data have to change.
_MAY_GO_ON = (KeyboardInterrupt, SystemExit, MemoryError)
# A run that fails kills its Ray workers. They cannot clean up, and may hold their locks a little longer than the run.
_WAIT_FOR_KILLED_S = 2.0


@contextlib.contextmanager
def work_directory(destination: Destination, *, keeps_tokens: bool = False) -> Iterator[None]:
    """Make the destination's work directory and keep it while the with block runs.

    Every process holds a shared lock in the directory. The last one that leaves cleans up, unless a later run is to use
    the tokens: with keeps_tokens, or when the block is interrupted. Raises WriteRefusedError.
    """
    with refusals(destination.work_dir):
        lock = make_and_lock(destination.work_dir, _LOCK_NAME, share_lock)
    is_done = False
    try:
        yield
        is_done = True
    except _MAY_GO_ON:
        keeps_tokens = keeps_tokens or _has_tokens(destination.work_dir)
        raise
    finally:
        is_alone = _lock_alone(lock, wait_s=0.0 if is_done else _WAIT_FOR_KILLED_S)
        if is_alone and not keeps_tokens and is_still_there(destination.work_dir / _LOCK_NAME, lock):
            destination.clean_up(is_done=is_done)
        os.close(lock)


def _has_tokens(work_dir: Path) -> bool:
    """Return whether a whole text, or a part of one, is tokenized there (pipeline/corpus)."""
    return any(any(work_dir.glob(f"{depth}/counts.json")) for depth in ("*", "*/*"))


def _lock_alone(lock: int, *, wait_s: float) -> bool:
    """Turn a shared lock into an exclusive one. Return False when others still hold it after `wait_s` seconds."""
    deadline = time.monotonic() + wait_s
    while not try_lock(lock):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True
