"""Check what a stream has read. Two threads share the record batches: the one that read them, and that of the user."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import pyarrow as pa

from storage.shards.shard import Shard, all_obey

# Record batches of at most this many bytes are checked together: with default settings, 3 of blocks of 1,024 tokens.
# A check is some hundred short operations, and after each of them a thread may have to wait for Python's global
# interpreter lock.
_TOGETHER_BYTES = 3 << 20


@dataclass(frozen=True, kw_only=True)
class Check:
    """The check of one record batch.

    read: the rows once they are read; note: called when they obey the format; done: the rows after that.
    """

    shard: Shard
    index: int
    read: Future[pa.RecordBatch]
    note: Callable[[], None]
    done: Future[pa.RecordBatch] = field(default_factory=Future)

    def run(self) -> None:
        """Wait until the rows are read, check them, and set `done` to them or to the error."""
        try:
            self.shard.check(self.read.result(), self.index)
        except Exception as error:
            self.done.set_exception(error)
        else:
            self.settle()

    def settle(self) -> None:
        """Set `done` to the rows, which obey the format."""
        self.note()
        self.done.set_result(self.read.result())

    @property
    def read_bytes(self) -> int | None:
        """Bytes of the rows in memory, 0 if they could not be read, None if they are not read yet."""
        if not self.read.done():
            return None
        # Not `nbytes`: that follows offsets, which nobody has checked.
        return 0 if self.read.exception() else int(self.read.result().get_total_buffer_size())


class Checks:
    """The checks of a window's record batches. Whoever takes one runs it."""

    def __init__(self, checks: dict[int, Check]) -> None:
        """checks: in the order in which the user of the rows needs them."""
        self._left = checks
        self._lock = threading.Lock()

    def run_needed(self, key: int) -> None:
        """Run the check `key`, which is needed now, unless somebody has taken it, and with it the next ones."""
        with self._lock:
            if key not in self._left:
                return
            taken = self._take([key, *(other for other in self._left if other != key)])
        _run_together(taken)

    def run_rest(self, is_closed: Callable[[], bool]) -> None:
        """Run the checks that nobody has taken, beginning with the one that is needed last, until none is left."""
        while self._left and not is_closed():
            with self._lock:
                taken = self._take(list(reversed(self._left)))
            _run_together(taken)

    def _take(self, keys: list[int]) -> list[Check]:
        """Take the first of these checks, and the next ones as long as they are read and small together."""
        taken: list[Check] = []
        num_bytes = 0
        for key in keys:
            read_bytes = self._left[key].read_bytes
            if taken and (read_bytes is None or num_bytes + read_bytes > _TOGETHER_BYTES):
                break
            taken.append(self._left.pop(key))
            num_bytes += read_bytes or 0
        return taken


def _run_together(checks: list[Check]) -> None:
    """Run the checks at once if that finds no problem; else one by one, so that each raises its own error."""
    try:
        are_read = len(checks) > 1 and not any(check.read.exception() for check in checks)
        if are_read and all_obey([(check.shard, check.index, check.read.result()) for check in checks]):
            for check in checks:
                check.settle()
        else:
            for check in checks:
                check.run()
    except BaseException as error:  # Ctrl-C, or no memory: nobody will run these checks, and nobody may wait for them
        for check in checks:
            if not check.done.done():
                check.done.set_exception(error)
        raise
