"""What the tests of several processes run in them. It is apart from them so that a process starts without pytest."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from storage.errors import CacheError
from storage.reading import verification
from storage.reading.places import place_at
from storage.records.identity import CacheIdentity

LOST = "soft_targets/train-00001-of-00003.arrow"


def fail_at_three(number: int) -> float:
    return number / (number - 3)


def be_killed(number: int) -> None:
    os.kill(os.getpid(), number)


class Deadly:
    """Checks as the real one does, and is killed at LOST, as by the system when memory runs out."""

    def __init__(self, path: str | Path, identity: CacheIdentity) -> None:
        self._check = verification._Checker(place_at(path), identity)

    def __call__(self, check: verification._Check) -> list[CacheError]:
        if check.path == LOST:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._check(check)
