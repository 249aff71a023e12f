"""Write the teacher's output in a thread while the teacher continues."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from storage.errors import StoppedError

Item = TypeVar("Item")


class _AbandonedError(Exception):
    """The code that puts items failed. A half-written shard must not be published."""


@dataclass(frozen=True)
class _Last:
    """Mark the end of the items. is_complete: False when the with block raised."""

    is_complete: bool


@contextlib.contextmanager
def write_behind(
    consume: Callable[[Iterator[Item]], None], depth: int, hurry: Callable[[], None] = lambda: None
) -> Iterator[Callable[[Item], None]]:
    """Run `consume` in a thread over the items that are put. Yield the function that puts an item.

    A put waits while the queue holds `depth` items. When `consume` fails, the next put or the end of the with block
    raises its error. When the with block raises, the iterator of items raises too, so that `consume` does not take the
    items for complete. The end of the with block always waits for `consume`. If the block raised, or Ctrl-C interrupted
    the wait, `hurry` is called before it waits.
    """
    items: queue.Queue[Item | _Last] = queue.Queue(depth)
    failures: list[BaseException] = []
    lasts: list[_Last] = []
    is_over = threading.Event()  # not Thread.join: if Ctrl-C interrupts it, Python 3.11 takes the thread for ended

    def received() -> Iterator[Item]:
        while not isinstance(item := items.get(), _Last):
            yield item
        lasts.append(item)
        if not item.is_complete:
            raise _AbandonedError

    def work() -> None:
        try:
            consume(received())
        except _AbandonedError:
            pass
        except BaseException as error:
            failures.append(error)
            while not lasts:  # make room, so that a put that waits returns and raises the failure
                item = items.get()
                lasts.extend([item] if isinstance(item, _Last) else [])
        finally:
            is_over.set()

    def put(item: Item) -> None:
        if not failures:
            items.put(item)
        if failures:
            raise failures[0]

    threading.Thread(target=work, name="teachonce-writer").start()
    try:
        yield put
        items.put(_Last(is_complete=True))
        is_over.wait()
    except BaseException as error:
        hurry()
        items.put(_Last(is_complete=False))  # after a first _Last it is never read
        is_over.wait()
        if failures and isinstance(error, StoppedError):  # the block was stopped because `consume` had failed
            raise failures[0] from None
        raise
    if failures:
        raise failures[0]
