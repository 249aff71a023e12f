"""Claims on parts of the work, one lock file each. When a process ends, even if it is killed, its claims are free.

Claims only save work; the result does not depend on them. Where a file system's locks have no effect, work is done
twice, and the first commit stands.
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
    """The claims of this process in a work directory, which several processes may share."""

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
        """Claim `name`, a file name. Return False when another process, or another Claims, holds it.

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
        """Release a claim."""
        os.close(self._held.pop(name))

    @staticmethod
    def wait() -> None:
        """Sleep for a moment. Call this before you try again to take a claim that others hold."""
        time.sleep(_LOOK_AGAIN_AFTER_S)


@contextlib.contextmanager
def claimed(work_dir: Path, name: str) -> Iterator[None]:
    """Hold the claim on `name` inside the with block. Wait until it is free. Raises WriteRefusedError."""
    with Claims(work_dir) as claims:
        while not claims.take(name):
            claims.wait()
        yield
