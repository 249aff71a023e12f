"""A few threads that work through a list, and stop together."""

from __future__ import annotations

import collections
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from storage.errors import ConfigError, StoppedError

# Ctrl-C waits as long for a transfer that is under way.
_GRACE_S = 2.0
# As long may a transfer take that is under way in another thread when a run fails: it may be the last of a shard.
_HURRIED_S = 10.0
_LOOK_UP_S = 0.5

Item = TypeVar("Item")
Result = TypeVar("Result")
Outcome = TypeVar("Outcome")


class Crew:
    """A few threads at a time; the first failure surfaces at once and stops the others."""

    def __init__(self, num_connections: int, progress: Callable[[int], object]) -> None:
        if num_connections < 1:
            raise ConfigError(f"num_connections is {num_connections}, expected at least 1")
        self._num_connections, self._progress = num_connections, progress
        self._stop, self._hurry, self._telling = threading.Event(), threading.Event(), threading.Lock()

    def hurry(self) -> None:
        """From now on nobody waits long: what goes well is done, what hangs or would be tried again is given up."""
        self._hurry.set()

    def sleep(self, seconds: float) -> None:
        """Wait, unless the others stop."""
        if self._hurry.wait(seconds):
            raise StoppedError

    def tell(self, num_bytes: int) -> None:
        """Report progress from any thread, and leave when the others stop."""
        if self._stop.is_set():
            raise StoppedError
        with self._telling:
            self._progress(num_bytes)

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], *, num_threads: int | None = None
    ) -> list[Result]:
        """The function's results in the order of the items.

        The threads are daemons: Ctrl-C waits a moment for a transfer that is under way and then ends the process.
        Raises StoppedError when others hurry and an item takes too long.
        """
        waiting = collections.deque(enumerate(items))
        outcomes: queue.SimpleQueue[tuple[int, Result] | BaseException] = queue.SimpleQueue()

        def work() -> None:
            while True:
                try:
                    index, item = waiting.popleft()
                except IndexError:
                    return
                try:
                    if self._stop.is_set():
                        raise StoppedError
                    outcomes.put((index, function(item)))
                except BaseException as error:
                    outcomes.put(error)
                    return

        num_started = min(num_threads or self._num_connections, len(items))
        threads = [threading.Thread(target=work, daemon=True, name="teachonce-transfer") for _ in range(num_started)]
        results: dict[int, Result] = {}
        try:
            for thread in threads:
                thread.start()
            while len(results) < len(items):
                outcome = self._next(outcomes)
                if isinstance(outcome, BaseException):
                    raise outcome
                results[outcome[0]] = outcome[1]
        except BaseException:
            self._stop.set()
            self._hurry.set()
            until = time.monotonic() + _GRACE_S
            for thread in (thread for thread in threads if thread.is_alive()):  # some may not have been started
                thread.join(max(until - time.monotonic(), 0))
            raise
        return [results[index] for index in range(len(items))]

    def _next(self, outcomes: queue.SimpleQueue[Outcome]) -> Outcome:
        """Wait for an outcome: as long as it takes, but not for a server that is silent while others hurry."""
        while not self._hurry.is_set():
            with contextlib.suppress(queue.Empty):
                return outcomes.get(timeout=_LOOK_UP_S)
        try:
            return outcomes.get(timeout=_HURRIED_S)
        except queue.Empty:
            raise StoppedError from None
