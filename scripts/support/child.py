"""A Python process that answers requests, one JSON line each: the side that asks, and the side that answers.

Importing this imports nothing that another environment may lack.
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
    """A module that runs in an interpreter of its own until this is closed.

    What libraries keep at home or in temporary places is at `home`, below `work_dir`.
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
        """Its answer to `request`; RuntimeError with the end of its messages if it ended instead."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """What it says next."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended: {Path(self._log.name).read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


def stdout_for_answers() -> TextIO:
    """In the child: standard output, which from here on has nothing that libraries print."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def serve(answers: TextIO, answer: Callable[..., Mapping[str, Any]]) -> None:
    """In the child: answer every request, whose names are arguments of `answer`, until standard input ends."""
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=answers)
