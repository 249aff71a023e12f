"""The driver's side of a worker."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from scripts.peers.worker import Answer, Request
from scripts.support.child import Child
from scripts.support.system import System


class Worker:
    """A worker process for one system, which runs until this is left.

    `versions` is None when the system cannot be imported, and `missing` says why.
    """

    def __init__(self, system: System, python: str, seed: int, work_dir: Path) -> None:
        self._scratch_root = work_dir / "scratch"
        self._counter = itertools.count()
        arguments = system.module, system.name, str(seed)
        self._child = Child(python, "scripts.peers.worker", arguments, work_dir, system.environment)
        hello = self._child.answer()
        self.versions: dict[str, str] | None = hello["versions"]
        self.missing: str = hello["missing"]

    def __enter__(self) -> Worker:
        self._child.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.__exit__(kind, error, trace)

    def write(self, directory: Path, *, timeout_s: float, kill_after_s: float | None = None) -> Answer:
        """Run the writer, and kill it `kill_after_s` after its first file shows."""
        return self._ask("write", directory, timeout_s, kill_after_s)

    def read(self, directory: Path, *, timeout_s: float) -> Answer:
        """Read an epoch."""
        return self._ask("read", directory, timeout_s, None)

    def _ask(self, action: str, directory: Path, timeout_s: float, kill_after_s: float | None) -> Answer:
        scratch = self._scratch_root / str(next(self._counter))
        request = Request(
            action=action,
            directory=str(directory),
            scratch=str(scratch),
            timeout_s=timeout_s,
            kill_after_s=kill_after_s,
        )
        answer = Answer(**self._child.ask(asdict(request)))
        for leftover in (scratch, *self._child.home.iterdir()):
            shutil.rmtree(leftover)
        return answer
