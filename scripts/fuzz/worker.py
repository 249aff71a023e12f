"""A process that reads fuzzed inputs and may crash."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from scripts.fuzz.config import SECONDS_PER_INPUT, Name
from scripts.fuzz.targets import make_target

_MOST_ADDRESS_BYTES = 8 << 30


class FuzzFailureError(Exception):
    """An input was neither read nor refused. The message says what happened."""


class Worker:
    """A process that reads inputs one by one, so that a crash or a hang of a library does not stop the fuzzer."""

    def __init__(self, name: Name, cache_dir: Path) -> None:
        self.cache_dir = cache_dir
        self._name = name
        self._start()

    def run(self, data: bytes) -> str:
        """Read an input and return the name of the outcome. Raises FuzzFailureError when the input failed."""
        try:
            self._connection.send_bytes(data)
            answered = self._connection.poll(SECONDS_PER_INPUT)
            failure, text = self._connection.recv() if answered else (True, f"no answer in {SECONDS_PER_INPUT:.0f} s")
        except (EOFError, ConnectionError):
            self.process.join()
            answered, failure, text = False, True, f"the process died with exit code {self.process.exitcode}"
        if not answered:
            self.close()
            self._start()
        if failure:
            raise FuzzFailureError(text)
        return str(text)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self._connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self._name, self.cache_dir), daemon=True)
        self.process.start()
        theirs.close()


def _serve(connection: Connection, name: Name, cache_dir: Path) -> None:
    """Answer each input with (has failed, outcome or traceback)."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_ADDRESS_BYTES, _MOST_ADDRESS_BYTES))
    target = make_target(name, cache_dir)
    with contextlib.suppress(EOFError):
        while True:
            data = connection.recv_bytes()
            try:
                connection.send((False, target.outcome(data)))
            except Exception:
                connection.send((True, traceback.format_exc()))
