"""The driver's side of a worker."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from scripts.peers.system import System
from scripts.peers.worker import Answer, Request

_REPOSITORY = Path(__file__).parents[2]


class Worker:
    """A worker process for one system; what its library keeps at home or in temporary places is below `work_dir`.

    `versions` is None when the system cannot be imported, and `missing` says why.
    """

    def __init__(self, system: System, python: str, seed: int, work_dir: Path) -> None:
        self._scratch_root = work_dir / "scratch"
        self._counter = itertools.count()
        self._home = work_dir / "home"
        self._home.mkdir(parents=True)
        self._log = (work_dir / "log").open("w")
        self._process = subprocess.Popen(
            [python, "-m", "scripts.peers.worker", system.module, system.name, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=_REPOSITORY,
            env=os.environ | system.environment | {"HOME": str(self._home), "TMPDIR": str(self._home)},
        )
        hello = self._answer()
        self.versions: dict[str, str] | None = hello["versions"]
        self.missing: str = hello["missing"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

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
        assert self._process.stdin
        self._process.stdin.write(json.dumps(asdict(request)) + "\n")
        self._process.stdin.flush()
        answer = Answer(**self._answer())
        for leftover in (scratch, *self._home.iterdir()):
            shutil.rmtree(leftover)
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended: {Path(self._log.name).read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer
