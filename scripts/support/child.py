"""A Python process that answers requests, one JSON line each: both the parent's and the child's side.

This module imports the standard library only, because the child may run in another environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

_REPOSITORY = Path(__file__).parents[2]


class Child:
    """A module that runs in a separate interpreter until `close` is called.

    HOME and TMPDIR of the process are `home`, a directory below `work_dir`, so that libraries write only there.
    """

    def __init__(
        self, python: str, module: str, arguments: Sequence[str], work_dir: Path, environment: Mapping[str, str]
    ) -> None:
        self._name = f"{module} {' '.join(arguments)}"
        self.home = work_dir / "home"
        self.home.mkdir(parents=True)
        self._log = (work_dir / "log").open("w")
        self._process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=_REPOSITORY,
            env=os.environ | environment | {"HOME": str(self.home), "TMPDIR": str(self.home)},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send `request` and return the answer. Raise RuntimeError with the end of its log when the process ended."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the next answer. Raise RuntimeError with the end of the process's log when the process ended."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended: {Path(self._log.name).read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process and wait for it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


def stdout_for_answers() -> TextIO:
    """In the child: return standard output for answers, and send everything else that is printed to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def serve(answers: TextIO, answer: Callable[..., Mapping[str, Any]]) -> None:
    """In the child: answer requests until standard input ends. The fields of a request are arguments of `answer`."""
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=answers)
