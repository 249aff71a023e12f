"""The parent's side of a worker process."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from scripts.peers.worker import Answer
from scripts.support.child import Child
from scripts.support.system import System


class Worker(Child):
    """A worker process for one system, which runs until `close` is called.

    `versions` is None when the system cannot be imported. Then `missing` says why.
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
        """Run the writer. Kill it `kill_after_s` after its first file appears; None lets it finish."""
        return self._act("write", directory, timeout_s, kill_after_s)

    def read(self, directory: Path, *, timeout_s: float) -> Answer:
        """Run the reader for an epoch."""
        return self._act("read", directory, timeout_s, None)

    def _act(self, action: str, directory: Path, timeout_s: float, kill_after_s: float | None) -> Answer:
        """Send a request to scripts/peers/worker.py. Remove the files that it leaves in its scratch directories."""
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
