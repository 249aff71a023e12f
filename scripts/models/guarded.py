"""Run a function in a forked process that may hang, crash or take all memory."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from scripts.models.verdict import FAILED, Verdict, failure

_LIMIT_S = 120.0
_LIMIT_BYTES = 12 << 30
# A fork: the parent has imported all heavy modules, and runs no tensor code itself.
_FORK = multiprocessing.get_context("fork")


def guarded(work: Callable[[], Any]) -> Any:
    """Return what `work` returns; if it raises, hangs or ends the process, return the verdict that it failed."""
    ours, theirs = _FORK.Pipe(duplex=False)
    child = _FORK.Process(target=_run, args=(work, theirs))
    child.start()
    theirs.close()
    found = _received(ours)
    if child.is_alive():
        child.join(1 if found is not None else 0)
        child.kill()
    child.join()
    return found or Verdict(
        word=FAILED,
        why=f"no answer in {_LIMIT_S:.0f} s" if child.exitcode in (0, -9) else f"exit status {child.exitcode}",
    )


def _received(connection: Connection) -> Any:
    try:
        return connection.recv() if connection.poll(_LIMIT_S) else None
    except EOFError:
        return None


def _run(work: Callable[[], Any], connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_LIMIT_BYTES, _LIMIT_BYTES))
    try:
        connection.send(work())
    except Exception as error:
        connection.send(failure(error))
