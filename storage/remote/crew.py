"""Run a function over a list of items in a few threads; stop all threads when one fails."""

from __future__ import annotations

import collections
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from storage.errors import ConfigError, StoppedError

# After a failure or Ctrl-C, `map` waits at most this long for the transfers in progress.
_GRACE_S = 2.0
# Once the crew hurries, `map` waits at most this long for the next result: the transfer in progress may be the last of
# a shard.
_HURRIED_S = 10.0
_LOOK_UP_S = 0.5

Item = TypeVar("Item")
Result = TypeVar("Result")
Outcome = TypeVar("Outcome")


class Crew:
    """Threads for transfers, at most `num_connections` for each call of `map`; the first failure stops all of them.

    `progress` receives numbers of bytes. Raise ConfigError when `num_connections` is less than 1.
    """

    def __init__(self, num_connections: int, progress: Callable[[int], object]) -> None:
        if num_connections < 1:
            raise ConfigError(f"num_connections is {num_connections}, expected at least 1")
        self._num_connections, self._progress = num_connections, progress
        self._stop, self._hurry, self._progress_lock = threading.Event(), threading.Event(), threading.Lock()

    def hurry(self) -> None:
        """From now on, give up retries and transfers that hang; let all other transfers finish.

        `sleep` raises StoppedError at once. `map` raises it when no result arrives within _HURRIED_S seconds.
        """
        self._hurry.set()

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`; raise StoppedError as soon as the crew hurries."""
        if self._hurry.wait(seconds):
            raise StoppedError

    def tell(self, num_bytes: int) -> None:
        """Report progress, from any thread; raise StoppedError once a `map` of this crew has failed."""
        if self._stop.is_set():
            raise StoppedError
        with self._progress_lock:
            self._progress(num_bytes)

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], *, num_threads: int | None = None
    ) -> list[Result]:
        """Return the results of `function` in the order of `items`.

        num_threads: the most threads to run, by default `num_connections`. Raise the first error of any thread. Raise
        StoppedError when the crew hurries and no result arrives in time. The threads are daemons: after a failure or
        Ctrl-C, this method waits a moment for transfers in progress. Longer ones do not keep the process alive.
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
            give_up_at = time.monotonic() + _GRACE_S
            for thread in (thread for thread in threads if thread.is_alive()):  # some may never have started
                thread.join(max(give_up_at - time.monotonic(), 0))
            raise
        return [results[index] for index in range(len(items))]

    def _next(self, outcomes: queue.SimpleQueue[Outcome]) -> Outcome:
        """Wait for the next outcome without a limit; once the crew hurries, raise StoppedError after _HURRIED_S."""
        while not self._hurry.is_set():
            with contextlib.suppress(queue.Empty):
                return outcomes.get(timeout=_LOOK_UP_S)
        try:
            return outcomes.get(timeout=_HURRIED_S)
        except queue.Empty:
            raise StoppedError from None
