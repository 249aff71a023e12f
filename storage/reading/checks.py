"""Check what a stream has read. Two threads share the record batches: the one that read them, and that of the user."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import pyarrow as pa

from storage.shards.shard import Shard, all_obey

# Small record batches are checked together until they hold this many bytes. A check is some hundred short operations,
# and after each of them a thread may have to wait for Python's global interpreter lock.
_TOGETHER_BYTES = 2 << 20


@dataclass(frozen=True, kw_only=True)
class Check:
    """The check of one record batch, which whoever takes it has to run.

    read: the rows once they are read; done: the rows once they are checked; note: called before that.
    """

    shard: Shard
    index: int
    read: Future[pa.RecordBatch]
    note: Callable[[int], None]
    done: Future[pa.RecordBatch] = field(default_factory=Future)

    def run(self) -> None:
        """Wait until the rows are read, check them, and set `done` to them or to the error."""
        try:
            self.shard.check(self.read.result(), self.index)
        except BaseException as error:
            self.done.set_exception(error)
        else:
            self.settle()

    def settle(self) -> None:
        """Set `done` to the rows, which obey the format."""
        self.note(self.index)
        self.done.set_result(self.read.result())


def run_from_the_end(checks: dict[int, Check], is_closed: Callable[[], bool]) -> None:
    """Take and run checks of record batches that are read, from the last on, until none is left.

    checks: in the order in which the user of the rows needs them. He may take one meanwhile, when he needs it now.
    """
    while checks and not is_closed():
        _run_together(_taken_from_the_end(checks))


def _taken_from_the_end(checks: dict[int, Check]) -> list[Check]:
    taken: list[Check] = []
    num_bytes = 0
    while checks and num_bytes < _TOGETHER_BYTES:
        try:
            taken.append(checks.popitem()[1])
        except KeyError:
            break  # the user took the last one
        num_bytes += 0 if taken[-1].read.exception() else taken[-1].read.result().nbytes
    return taken


def _run_together(checks: list[Check]) -> None:
    """Run the checks at once if that finds no problem; else one by one, so that each raises its own error."""
    are_read = len(checks) > 1 and not any(check.read.exception() for check in checks)
    if are_read and all_obey([(check.shard, check.index, check.read.result()) for check in checks]):
        for check in checks:
            check.settle()
    else:
        for check in checks:
            check.run()
