"""A time limit for code that damaged input might send into an endless loop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class StillBusy(BaseException):
    """The time limit has passed. Not an Exception, so that no reader handles it as an error of a file."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise StillBusy inside the block when it takes longer than `seconds`. Works in the main thread only."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise StillBusy(f"still busy after {seconds:g} seconds")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
