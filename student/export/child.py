"""Run an exported file in a separate process, so that its memory, threads and crashes stay there."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from student.errors import RuntimeFailedError
from student.export.logits import Logits
from student.export.worker import Speed

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class LoneReader:
    """Sends requests about one exported file to student.export.worker.

    Raises RuntimeFailedError when the worker ends without an answer.
    """

    def __init__(self, path: Path, name: Path) -> None:
        self._name = name  # for errors: the export's final name, because `path` is a temporary one
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed in __exit__)
        search = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "student.export.worker", str(path.resolve())],
            env=os.environ | _ONE_THREAD | {"PYTHONPATH": search},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def __enter__(self) -> LoneReader:
        self.runtime = str(self._line()["runtime"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def speed(self, prompt_ids: Sequence[int], num_new: int) -> Speed:
        """Measure the speed of continuing a prompt. Call this first: its memory figures include earlier `logits`."""
        self._ask({"prompt_ids": list(prompt_ids), "num_new": num_new})
        return Speed(**self._line())

    def logits(self, ids: Sequence[int]) -> Logits:
        """Return the logits [T, V] after each of T ids, which are read as a sequence of their own."""
        self._ask({"ids": list(ids)})
        shape = self._line()["shape"]
        assert self._process.stdout
        num_bytes = 4 * math.prod(shape)
        data = self._process.stdout.read(num_bytes)
        if len(data) < num_bytes:
            raise self._failure()
        return np.frombuffer(data, dtype=np.float32).reshape(shape)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids that the file's own tokenizer makes of a text. For files that hold one."""
        self._ask({"text": text})
        ids: list[int] = self._line()["ids"]
        return ids

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failure() from error

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failure(self) -> RuntimeFailedError:
        status = self._process.wait()
        self._log.seek(0)
        last_words = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
        ended = f"signal {-status}" if status < 0 else f"exit code {status}"
        return RuntimeFailedError(str(self._name), f"{ended}: {last_words[0]}" if last_words else ended)
