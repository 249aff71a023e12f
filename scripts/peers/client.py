"""The driver's side of a worker."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from scripts.peers.worker import Answer
from scripts.support.child import Child
from scripts.support.system import System


class Worker(Child):
    """A worker process for one system, which runs until this is closed.

    `versions` is None when the system cannot be imported, and `missing` says why.
    """

    def __init__(self, system: System, python: str, seed: int, work_dir: Path) -> None:
        self._scratch_root = work_dir / "scratch"
        self._counter = itertools.count()
        arguments = system.module, system.name, str(seed)
        super().__init__(python, "scripts.peers.worker", arguments, work_dir, system.environment)
        hello = self.answer()
        self.versions: dict[str, str] | None = hello["versions"]
        self.missing: str = hello["missing"]

    def write(self, directory: Path, *, timeout_s: float, kill_after_s: float | None = None) -> Answer:
        """Run the writer, and kill it `kill_after_s` after its first file shows."""
        return self._act("write", directory, timeout_s, kill_after_s)

    def read(self, directory: Path, *, timeout_s: float) -> Answer:
        """Read an epoch."""
        return self._act("read", directory, timeout_s, None)

    def _act(self, action: str, directory: Path, timeout_s: float, kill_after_s: float | None) -> Answer:
        """A request of scripts/peers/worker.py; what it leaves in its scratch directories is removed."""
        scratch = self._scratch_root / str(next(self._counter))
        answer = self.ask(
            action=action,
            directory=str(directory),
            scratch=str(scratch),
            timeout_s=timeout_s,
            kill_after_s=kill_after_s,
        )
        for leftover in (scratch, *self.home.iterdir()):
            shutil.rmtree(leftover)
        return Answer(**answer)
