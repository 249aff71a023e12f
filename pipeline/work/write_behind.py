"""A thread that writes what the teacher made while the teacher goes on."""

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
    """Whoever made the items failed: what is half written must not be published."""


@dataclass(frozen=True)
class _Last:
    """Stands behind the last item."""

    is_complete: bool


@contextlib.contextmanager
def write_behind(
    consume: Callable[[Iterator[Item]], None], depth: int, hurry: Callable[[], None] = lambda: None
) -> Iterator[Callable[[Item], None]]:
    """Run `consume` in a thread over what is put, at most `depth` items behind; gives the function that puts.

    A failure of `consume` is raised by the next put, or at the end of the block. When the block raises, the
    items end in an exception instead of an end, so that `consume` does not take them for complete. `consume` is always
    waited for; `hurry` is called before that when it is not to take its time: the block raised, or the user did while
    this waited.
    """
    items: queue.Queue[Item | _Last] = queue.Queue(depth)
    failures: list[BaseException] = []
    lasts: list[_Last] = []
    is_over = threading.Event()  # after a Thread.join that Ctrl-C interrupts, Python 3.11 takes the thread for ended

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
            while not lasts:  # whoever waits for room to put goes on and sees the failure
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
        items.put(_Last(is_complete=False))  # behind a first one nobody reads it
        is_over.wait()
        if failures and isinstance(error, StoppedError):  # the block was stopped because `consume` had failed
            raise failures[0] from None
        raise
    if failures:
        raise failures[0]
