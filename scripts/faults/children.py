"""Forked child processes that are paused, killed or run to their end.

The parent imports all heavy modules, so that a child starts in milliseconds. The parent runs no tensor code, because a
fork does not inherit its threads.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from tqdm import tqdm

_HUNG_AFTER_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a child ended: the exit status (negative for a signal) and the exception, if any."""

    status: int
    error_class: str = ""
    error: str = ""
    is_hung: bool = False

    def __str__(self) -> str:
        if self.is_hung:
            return f"still running after {_HUNG_AFTER_S:.0f} seconds"
        return f"{self.error_class}: {self.error}" if self.error_class else f"exit status {self.status}"


class Child:
    """A forked process that runs `work`. It can send lines to its parent, and pause until the parent continues it."""

    def __init__(self, work: Callable[[Child], object]) -> None:
        from_child, to_parent = os.pipe()
        from_parent, to_child = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(from_child)
            os.close(to_child)
            self._read_end, self._write_end = from_parent, to_parent
            self._run(work)
        os.close(to_parent)
        os.close(from_parent)
        self._read_end, self._write_end = from_child, to_child
        self._received = b""
        self.said: list[str] = []

    def _run(self, work: Callable[[Child], object]) -> NoReturn:
        status = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            # All forks share tqdm's lock. A child that is killed while it holds the lock would block all later ones.
            tqdm.set_lock(threading.RLock())
            work(self)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            words = f"{error} [{os.path.basename(where.filename)}:{where.lineno}]"
            self.say("error " + json.dumps([_class_names(error), words]))
        finally:
            os._exit(status)

    def say(self, line: str) -> None:
        """In the child: send the parent one line."""
        os.write(self._write_end, line.encode() + b"\n")

    def pause(self) -> None:
        """In the child: report a pause and wait for the parent's `go_on`."""
        self.say("paused")
        os.read(self._read_end, 1)

    def go_on(self) -> None:
        """In the parent: end the child's pause, or the next one if it is not paused."""
        os.write(self._write_end, b"1")

    def kill(self) -> None:
        """In the parent: send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def wait_for_pause(self) -> Ending | None:
        """Wait until the child pauses and return None. Return its ending if it ends first."""
        return None if self._listen(until="paused") else self.wait()

    def wait(self) -> Ending:
        """Wait for the end of the child and return it. Kill a child that hangs."""
        is_hung = False
        if self._listen(until=None) is None:
            is_hung = True
            self.kill()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._read_end)
        os.close(self._write_end)
        errors = [json.loads(line.removeprefix("error ")) for line in self.said if line.startswith("error ")]
        error_class, error = errors[0] if errors else ("", "")
        return Ending(status=status, error_class=error_class, error=error, is_hung=is_hung)

    def _listen(self, until: str | None) -> bool | None:
        """Read the child's lines. Return True at the line `until`, False at the child's end, None when it hangs."""
        deadline = time.monotonic() + _HUNG_AFTER_S
        while True:
            while b"\n" in self._received:
                line, _, self._received = self._received.partition(b"\n")
                self.said.append(line.decode())
                if self.said[-1] == until:
                    return True
            if not select.select([self._read_end], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            piece = os.read(self._read_end, 1 << 16)
            if not piece:
                return False
            self._received += piece


def _class_names(error: BaseException) -> str:
    """Return the name of the error's class, marked if it is not an error that users are meant to see."""
    from storage.errors import TeachonceError

    name = type(error).__name__
    return name if isinstance(error, TeachonceError) else f"{name} (not a TeachonceError)"


def run_in_child(work: Callable[[], object]) -> Ending:
    """Run `work` in a forked child and return its ending."""
    return Child(lambda child: work()).wait()


def warm_up(work: Callable[[], object]) -> None:
    """Run `work` in a child and import in this process the modules that it imported, so that later children need not.

    Raises RuntimeError when `work` fails.
    """

    def run(child: Child) -> None:
        work()
        child.say("modules " + " ".join(sys.modules))

    child = Child(run)
    ending = child.wait()
    if ending.status != 0:
        raise RuntimeError(f"the undisturbed run failed: {ending}")
    for line in child.said:
        for name in line.removeprefix("modules ").split():
            with contextlib.suppress(ImportError):  # names in sys.modules that cannot be imported
                importlib.import_module(name)
