"""Run a function over items in several processes of this machine; name the item whose process was killed, and go on.

concurrent.futures is not used: one killed process breaks its whole pool and does not say which item it worked on, and
after a killed parent its processes wait for ever.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

from storage.errors import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")

# A process that starts afresh takes over no locks and no threads of this one.
_SPAWN = multiprocessing.get_context("spawn")


def num_cores() -> int:
    """Return how many cores of this machine this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(
    start: Callable[[], Callable[[Item], Result]],
    items: Iterable[Item],
    num_processes: int,
    *,
    killed: Callable[[Item, str], Result],
    done: Callable[[int, Item, Result], object],
) -> None:
    """Call `done` with the index of each item, the item, and its result, in the order in which results arrive.

    start: makes the function, once in each process. `start`, items and results are pickled.
    killed: returns the result of an item whose process ended on the way, given the item and how the process ended.
    Another process takes its place.

    Raise the first exception of `start` or of the function; ConfigError when a process ends before it can take an item.
    After an exception or Ctrl-C all processes are killed. They end at once when this process ends in any way.
    """
    crew = _Crew(start, enumerate(items), killed)
    try:
        for _ in range(num_processes):
            crew.begin()
        for index, item, result in crew.results():
            done(index, item, result)
    finally:
        crew.end()


@dataclass(frozen=True)
class _Failure:
    error: Exception
    trace: str


@dataclass
class _Worker(Generic[Item]):
    """A process, and the item that it works on with its index; None while it starts."""

    process: SpawnProcess
    work: tuple[int, Item] | None = None


class _Crew(Generic[Item, Result]):
    def __init__(
        self,
        start: Callable[[], Callable[[Item], Result]],
        waiting: Iterator[tuple[int, Item]],
        killed: Callable[[Item, str], Result],
    ) -> None:
        self._start, self._waiting, self._killed = start, waiting, killed
        self._workers: dict[Connection, _Worker[Item]] = {}

    def begin(self) -> None:
        """Start one more process."""
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_serve, args=(theirs, self._start), daemon=True)
        with _interrupts_held_back():
            process.start()
        theirs.close()
        self._workers[ours] = _Worker(process)

    def results(self) -> Iterator[tuple[int, Item, Result]]:
        """Hand out items and yield results until no process has any work."""
        while self._workers:
            for connection in wait(list(self._workers)):
                assert isinstance(connection, Connection)
                yield from self._hear(connection, self._workers[connection])

    def _hear(self, connection: Connection, worker: _Worker[Item]) -> Iterator[tuple[int, Item, Result]]:
        try:
            outcome = connection.recv()
        except (EOFError, OSError):
            del self._workers[connection]
            how = _end_of(worker.process)
            if worker.work is None:
                raise ConfigError(
                    f"a further process could not start ({how}); ask for one job, or let the script that asks for more "
                    'do so below `if __name__ == "__main__":`'
                ) from None
            self.begin()
            yield *worker.work, self._killed(worker.work[1], how)
            return
        if isinstance(outcome, _Failure):
            raise outcome.error from RuntimeError(f"in another process:\n{outcome.trace}")
        finished, worker.work = worker.work, next(self._waiting, None)
        if worker.work is None:
            del self._workers[connection]
            connection.close()  # which ends it
            worker.process.join()
        else:
            with contextlib.suppress(OSError):  # it has just been killed, which is heard next
                connection.send(worker.work[1])
        if finished is not None:
            yield *finished, outcome

    def end(self) -> None:
        """Kill what still runs."""
        for worker in self._workers.values():
            worker.process.kill()
        for worker in self._workers.values():
            worker.process.join()


def _end_of(process: SpawnProcess) -> str:
    process.join()
    code = process.exitcode or 0
    if code >= 0:
        return f"exit code {code}"
    names = {known.value: known.name for known in signal.Signals}  # real-time signals have none
    return f"signal {-code}, {names[-code]}" if -code in names else f"signal {-code}"


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Hold SIGINT back, so that a process started meanwhile never gets it: Ctrl-C reaches all, and this one ends them.

    The tracker that multiprocessing starts beside the first process lets SIGINT through again, so it is started before.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, start: Callable[[], Callable[[Any], object]]) -> None:
    """Run in a started process: send None when it is ready, then the outcome of each item that arrives."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # no item is left, or the parent has ended
        function = _outcome(start)
        if isinstance(function, _Failure):
            connection.send(function)
            return
        connection.send(None)
        while True:
            connection.send(_outcome(functools.partial(function, connection.recv())))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _outcome(action: Callable[[], Result]) -> Result | _Failure:
    try:
        return action()
    except Exception as error:
        return _Failure(error, traceback.format_exc())
