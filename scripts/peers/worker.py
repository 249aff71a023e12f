"""Run a system's writer and reader in separate processes, which may hang, die or be killed.

    python -m scripts.peers.worker MODULE SYSTEM SEED

The process imports the system named SYSTEM in MODULE once. Then it answers requests, each a line of JSON on standard
input, with a line of JSON on standard output. Each request runs in a fork with its own process group and scratch
directory, so that it leaves nothing behind for the next request. The first answer says whether the system is installed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from scripts.support.child import serve, stdout_for_answers
from scripts.support.rows import NUM_ROWS, fingerprint, made_up_rows, make_row
from scripts.support.system import System

_POLL_S = {"read": 0.01, "write": 0.001}
_LAST_WORDS_S = 0.5
_ANSWER_NAME, _LOG_NAME = "answer.json", "log"


@dataclass(frozen=True, kw_only=True)
class Request:
    """An action, "write" or "read", on `directory`.

    The process is killed `kill_after_s` after its first file appears, or when `timeout_s` have passed.
    """

    action: str
    directory: str
    scratch: str
    timeout_s: float
    kill_after_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The result of a request.

    ending: "done", "error", "died" (by itself, without an answer), "killed" or "timeout". seconds: from a writer's
    first file, or from a reader's start, to the end. rows: fingerprints of the rows that a reader yielded, also before
    an error. error: the text of the exception and of its causes. has_logged_error: whether there is a traceback in the
    output, where threads leave theirs.
    """

    ending: str
    seconds: float
    rows: list[str]
    error: str
    has_logged_error: bool


def _run(system: System, seed: int, request: Request) -> Answer:
    scratch = Path(request.scratch)
    scratch.mkdir(parents=True)
    (scratch / _LOG_NAME).touch()
    child = os.fork()
    if child == 0:
        _child(system, seed, request, scratch)
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(child, child)  # the child does so too, because either may run first
    ending, seconds = _supervise(child, request)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # processes that the child started and left behind
    content: dict[str, Any] = {"rows": [], "error": ""}
    if ending == "ended":
        with contextlib.suppress(FileNotFoundError):
            content = json.loads((scratch / _ANSWER_NAME).read_bytes())
            ending = "error" if content["error"] else "done"
    has_logged_error = b"Traceback (most recent call last)" in (scratch / _LOG_NAME).read_bytes()
    return Answer(
        ending="died" if ending == "ended" else ending,
        seconds=seconds,
        has_logged_error=has_logged_error,
        **content,
    )


def _supervise(child: int, request: Request) -> tuple[str, float]:
    """Wait for the child, or kill it at its time. Return how it ended and its seconds."""
    begun = time.monotonic()
    is_writing = request.action == "write"
    counted_from = None if is_writing else begun
    while True:
        if os.waitpid(child, os.WNOHANG)[0]:
            return "ended", time.monotonic() - (counted_from or begun)
        now = time.monotonic()
        if counted_from is None and _has_file(Path(request.directory)):
            counted_from = now
        if request.kill_after_s is not None and counted_from and now - counted_from >= request.kill_after_s:
            return _kill(child, "killed", now - counted_from)
        if now - begun >= request.timeout_s:
            return _kill(child, "timeout", now - begun)
        time.sleep(_POLL_S[request.action])


def _kill(child: int, ending: str, seconds: float) -> tuple[str, float]:
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return ending, seconds


def _has_file(directory: Path) -> bool:
    return any(files for _, _, files in os.walk(directory))


def _child(system: System, seed: int, request: Request, scratch: Path) -> None:
    """Run the request, write the answer, and exit without running the parent's exit handlers."""
    try:
        os.setpgid(0, 0)
        log = os.open(scratch / _LOG_NAME, os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["TMPDIR"] = str(scratch)
        tempfile.tempdir = None
        answer = _act(system, seed, request, scratch)
        part = scratch / f"{_ANSWER_NAME}.part"
        part.write_text(json.dumps(answer))
        part.rename(scratch / _ANSWER_NAME)
    finally:
        os._exit(0)


def _act(system: System, seed: int, request: Request, scratch: Path) -> dict[str, Any]:
    rows: list[str] = []
    try:
        if request.action == "write":
            system.write(Path(request.directory), made_up_rows(seed))
        else:
            for row in system.read(Path(request.directory), scratch):
                rows.append(fingerprint(row))
            if len(rows) < NUM_ROWS:
                time.sleep(_LAST_WORDS_S)  # a thread may still log the reason
    except Exception as error:  # report any exception of a library
        traceback.print_exc()
        return {"rows": rows, "error": " | ".join(f"{type(e).__name__}: {e}" for e in _chain(error))}
    return {"rows": rows, "error": ""}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _hello(system: System) -> dict[str, Any]:
    try:
        for needed in system.needs:
            import_module(needed)
    except Exception as error:  # a partly installed library may raise anything
        return {"versions": None, "missing": f"{type(error).__name__}: {error}"}
    return {"versions": {name: metadata.version(name) for name in system.distributions}, "missing": ""}


def main() -> None:
    """Serve requests until standard input ends."""
    module, name, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    system = next(system for system in import_module(module).SYSTEMS if system.name == name)
    answers = stdout_for_answers()
    hello = _hello(system)
    if hello["versions"]:
        for row_id in range(NUM_ROWS):
            make_row(seed, row_id)  # rows are cached, and forks inherit the cache
    gc.freeze()  # otherwise a garbage collection in a fork would copy every page
    print(json.dumps(hello), file=answers)
    serve(answers, lambda **request: asdict(_run(system, seed, Request(**request))))


if __name__ == "__main__":
    main()
