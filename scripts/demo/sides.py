"""The two sides of the demo: a process in which the commands of one side run one after another, as if they were typed.

Libraries take seconds to import, so a side imports them once for all of its commands. The sides are separate processes,
because students are to be trained where nothing of the teacher's side was ever loaded.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import subprocess
import sys
from importlib import import_module
from types import TracebackType

from storage.progress import tell

_COMMANDS = {
    "teachonce-precompute": "pipeline.cli:main",
    "teachonce-cut": "pipeline.cli:cut",
    "teachonce-cache": "storage.cli:main",
    "teachonce-student": "student.cli:main",
}


class Side:
    """A process that runs commands. Its context manager ends it."""

    def __enter__(self) -> Side:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.demo.sides"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()  # after Ctrl-C, its command heard it too and is saving what it has

    def run(self, program: str, *arguments: str, shown: bool = True) -> str:
        """Run a command and return what it printed. If it fails, exit with its code."""
        if shown:
            tell(f"$ {program} {shlex.join(arguments)}")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([program, *arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        code, output = json.loads(answer) if answer else (self._process.wait() or 1, "")
        if code:
            tell("this stage failed; mend what it says and run the demo again: finished stages are kept")
            sys.exit(code)
        return str(output)


def main() -> None:
    """Run the commands that come in, one JSON list a line, and answer each with its exit code and what it printed."""
    answers = sys.stdout
    for line in sys.stdin:
        sys.argv = json.loads(line)
        module, function = _COMMANDS[sys.argv[0]].split(":")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                getattr(import_module(module), function)()
                code: object = 0
            except SystemExit as end:
                code = end.code
        answers.write(json.dumps([code or 0, printed.getvalue()]) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
