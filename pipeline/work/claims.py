"""Claims on parts of the work, one lock file each: a process that ends, however it ends, gives its claims back.

Claims save work and decide nothing. Where a file system's locks exclude nobody, work is done twice, and what was
committed first stands.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from storage.disk.files import refusals
from storage.disk.locks import open_lock_file, try_lock

_DIRECTORY = "claims"
_LOOK_AGAIN_AFTER_S = 0.25


class Claims:
    """What this process has claimed of the work that shares a work directory."""

    def __init__(self, work_dir: Path) -> None:
        self._directory = work_dir / _DIRECTORY
        self._held: dict[str, int] = {}

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._held):
            self.give_back(name)

    def take(self, name: str) -> bool:
        """Claim `name`, a file name; False when another process, or another Claims, is at it.

        Raises WriteRefusedError.
        """
        with refusals(self._directory / name):
            self._directory.mkdir(parents=True, exist_ok=True)
            lock = open_lock_file(self._directory / name)
            is_ours = False
            try:
                is_ours = try_lock(lock)
            finally:
                if not is_ours:
                    os.close(lock)
        if is_ours:
            self._held[name] = lock
        return is_ours

    def give_back(self, name: str) -> None:
        """Let others have it."""
        os.close(self._held.pop(name))

    @staticmethod
    def wait() -> None:
        """Wait a moment before claims that others hold are tried again."""
        time.sleep(_LOOK_AGAIN_AFTER_S)


@contextlib.contextmanager
def claimed(work_dir: Path, name: str) -> Iterator[None]:
    """Inside, this process alone is at `name`: waits until it is free; raises WriteRefusedError."""
    with Claims(work_dir) as claims:
        while not claims.take(name):
            claims.wait()
        yield
