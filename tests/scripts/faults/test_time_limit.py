from __future__ import annotations

import contextlib
import signal
import time

import pytest

from scripts.faults.time_limit import StillBusy, time_limit


def loop_for_ever() -> None:
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


def test_an_endless_loop_that_swallows_every_error_ends() -> None:
    with pytest.raises(StillBusy, match=r"still busy after 0\.05 seconds"), time_limit(0.05):
        loop_for_ever()


def test_nothing_is_left_behind() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyError), time_limit(60):
        raise KeyError("the block's own error")
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
