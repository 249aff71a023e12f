"""Signals that ask a run to stop. The run finishes its current step, saves a checkpoint and ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ALWAYS = (signal.SIGINT, signal.SIGTERM)
# A terminal that closes sends HUP; schedulers send USR1, USR2 or XCPU before a time limit. nohup has HUP ignored.
_UNLESS_IGNORED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yield a list that fills when the run is asked to stop by SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 or SIGXCPU.

    The last four have no effect if they are ignored when the context is entered.

    A second SIGINT (Ctrl-C) stops the run at once. Other signals do not, because terminals and launchers send them
    more than once.
    """
    received: list[int] = []
    numbers = [*_ALWAYS, *(number for number in _UNLESS_IGNORED if signal.getsignal(number) is not signal.SIG_IGN)]

    def remember(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        previous = {number: signal.signal(number, remember) for number in numbers}
    except ValueError:  # not in the main thread: the program that started this thread handles signals
        previous = {}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
